//! A TCP echo server that uses every core and locks nothing.
//!
//! Each worker has a listener of its own on the same address (`SO_REUSEPORT`); the kernel spreads connections over them,
//! and a connection stays on the worker that accepted it. Where sockets cannot share an address (Windows), one worker accepts, and
//! hands each connection to the next worker before it is used. `recv` takes a buffer from the worker's pool only when data has
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
use veloq::{spawn_local, spawn_to};

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

/// Listens on every worker, or on this one for all. Returns when it cannot.
async fn serve(address: SocketAddr) -> io::Result<()> {
    veloq::on_every_worker(async || {
        for feature in veloq::runtime::capabilities().refused() {
            eprintln!("worker {} goes without: {feature}", veloq::current_worker());
        }
        Ok::<(), io::Error>(())
    })
    .await?;
    match veloq::on_every_worker(async move || accept_here(address).await).await {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => accept_for_all(address).await,
        ended => ended,
    }
}

/// Accepts this worker's connections, on a listener that shares its address with those of the other workers.
async fn accept_here(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::builder().reuse_port(true).bind(address).await?;
    println!("worker {} echoes on {}", veloq::current_worker(), listener.local_addr()?);
    loop {
        let (stream, _peer) = listener.accept().await?;
        drop(spawn_local(echo(stream))); // Detached: it ends with its connection.
    }
}

/// Accepts everybody's connections, and hands them out in turn: what was not used yet may go to any worker.
async fn accept_for_all(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("worker {} echoes on {} for all", veloq::current_worker(), listener.local_addr()?);
    loop {
        for worker in veloq::workers() {
            let (stream, _unread) = listener.accept().await?.0.into_std().await?;
            drop(spawn_to(worker, async move || echo(TcpStream::from_std(stream)?).await)); // Detached too.
        }
    }
}

/// Sends back what comes, until the client has closed its half or is gone.
async fn echo(stream: TcpStream) -> io::Result<()> {
    loop {
        let data = stream.recv().await?;
        if data.is_empty() {
            return Ok(());
        }
        let (sent, _data) = stream.write_all(data).await;
        sent?;
    }
}
