//! Adds the numbers on each line that a client sends: `cargo run --example sum`, then `nc 127.0.0.1 7001`.
//!
//! Code that speaks `std::io::Read` and `Write` (parsers, compressors, TLS without I/O) is staged in buffers of the worker's arena: what
//! arrives is a `FixedBuf` that is read from its front, and an answer is written into one, which the operation then sends. Neither
//! is held while the client says nothing.

use std::io::{self, BufRead, Write};

use veloq::net::{TcpListener, TcpStream};
use veloq::spawn_local;

/// Bytes of an answer at most: a number, its sign, a line end.
const ANSWER_MAX: usize = 24;

/// Bytes of a line at most.
const LINE_MAX: usize = 1 << 16;

#[veloq::main(workers = 1)]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7001".to_owned());
    let listener = TcpListener::bind(address).await?;
    eprintln!("adds on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().await?;
        spawn_local(async move {
            if let Err(error) = serve(&stream).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

async fn serve(stream: &TcpStream) -> io::Result<()> {
    // Of a line that has not arrived whole.
    let mut line = Vec::new();
    loop {
        let mut input = stream.recv().await?;
        if input.is_empty() {
            return Ok(());
        }
        let mut output = veloq::alloc(4096);
        while input.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            if output.remaining() < ANSWER_MAX {
                output = send(stream, output).await?;
            }
            writeln!(output, "{}", sum(&line))?;
            line.clear();
        }
        if line.len() > LINE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
        }
        send(stream, output).await?;
    }
}

/// Sends what a buffer holds, and gives it back empty.
async fn send(stream: &TcpStream, output: veloq::io::buf::FixedBuf) -> io::Result<veloq::io::buf::FixedBuf> {
    let (sent, mut output) = stream.write_all(output).await;
    sent?;
    output.clear();
    Ok(output)
}

fn sum(line: &[u8]) -> i64 {
    let words = line.split(u8::is_ascii_whitespace);
    let numbers = words.filter_map(|word| std::str::from_utf8(word).ok()?.parse::<i64>().ok());
    numbers.fold(0, i64::wrapping_add)
}
