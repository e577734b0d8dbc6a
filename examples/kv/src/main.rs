//! The `kv` server program.

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use futures_util::future::{Either, select};
use kv::options::Options;
use kv::server::Server;
use std::pin::pin;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.demo {
        Some(time) => kv::demo::run(&options, time),
        None => serve(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until Ctrl-C or SIGTERM, then stops in order.
fn serve(options: &Options) -> io::Result<()> {
    kv::server::runtime(options)?.block_on(async {
        let interrupted = pin!(veloq::signal::ctrl_c());
        let terminated = pin!(veloq::signal::terminate());
        let server = Server::start(options).await?;
        eprintln!("kv: {} workers serve {}", veloq::workers().len(), server.addr());
        let (Either::Left((signalled, _)) | Either::Right((signalled, _))) =
            select(interrupted, terminated).await;
        signalled?;
        eprintln!("kv: stopping");
        server.stop().await
    })
}
