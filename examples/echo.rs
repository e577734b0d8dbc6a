//! A TCP echo server that uses every core and locks nothing.
//!
//! Each worker has a listener of its own on the same address (`SO_REUSEPORT`); the kernel spreads connections over them,
//! and a connection stays on the worker that accepted it. `recv` takes a buffer from the worker's pool only when data has
//! arrived, so that an idle connection holds none, and the buffer travels on into the write without a copy.
//!
//! ```sh
//! cargo run --release --example echo                  # on 127.0.0.1:7000
//! cargo run --release --example echo -- 127.0.0.1:7777
//! ```
//!
//! Then `nc 127.0.0.1 7000`, and type. Ctrl-C ends it.
#![expect(clippy::print_stdout, reason = "a server says where it listens")]

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use veloq::net::{TcpListener, TcpStream};
use veloq::spawn_local;

#[veloq::main]
async fn main() -> ExitCode {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let Ok(address) = address.parse::<SocketAddr>() else {
        eprintln!("echo: {address:?} is no address\n\nusage: echo [IP:PORT]");
        return ExitCode::from(2);
    };
    match serve(address).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Listens on every worker. Returns when one of them cannot.
async fn serve(address: SocketAddr) -> io::Result<()> {
    veloq::on_every_worker(async move || {
        let listener = TcpListener::builder().reuse_port(true).bind(address).await?;
        let worker = veloq::current_worker();
        for feature in veloq::runtime::capabilities().refused() {
            eprintln!("worker {worker} goes without: {feature}");
        }
        println!("worker {worker} echoes on {}", listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            drop(spawn_local(echo(stream))); // Detached: it ends with its connection.
        }
    })
    .await
}

/// Sends back what comes, until the client has closed its half or is gone.
async fn echo(stream: TcpStream) {
    while let Ok(data) = stream.recv().await {
        if data.is_empty() {
            break;
        }
        let (sent, _data) = stream.write_all(data).await;
        if sent.is_err() {
            break;
        }
    }
}
