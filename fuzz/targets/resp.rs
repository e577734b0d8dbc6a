//! kv's request parser: any bytes, in any pieces.
//!
//! What could go wrong: a panic, a length that runs away, an argument outside of its buffer, state that makes a command read differently
//! when it arrives in pieces. What was read is written as commands and read again, and must be the same.
#![no_main]

use arbitrary::Arbitrary;
use kv::resp::{Parser, ProtocolError};
use libfuzzer_sys::fuzz_target;

const BULK_MAX: usize = 4096;

#[derive(Arbitrary, Debug)]
struct Case {
    pieces: Vec<u8>,
    stream: Vec<u8>,
}

type Commands = Vec<Vec<Vec<u8>>>;

/// Feeds a stream as a connection does, and gives the commands and the error that ended it.
fn commands(stream: &[u8], pieces: impl Iterator<Item = usize>) -> (Commands, Option<ProtocolError>) {
    let mut parser = Parser::new(BULK_MAX);
    let (mut buffer, mut read, mut fed) = (Vec::new(), Commands::new(), 0);
    let mut pieces = pieces.chain(std::iter::repeat(usize::MAX));
    while fed < stream.len() {
        let piece = pieces.next().expect("endless").clamp(1, stream.len() - fed);
        buffer.extend_from_slice(&stream[fed..fed + piece]);
        fed += piece;
        loop {
            let frame = match parser.parse(&buffer) {
                Ok(None) => break,
                Ok(Some(frame)) => frame,
                Err(error) => return (read, Some(error)),
            };
            assert!(frame.len > 0 && frame.len <= buffer.len());
            let args: Vec<_> = frame.args.iter().map(<[u8]>::to_vec).collect();
            assert!(args.iter().all(|arg| arg.len() <= frame.len));
            let len = frame.len;
            read.extend((!args.is_empty()).then_some(args));
            buffer.drain(..len);
        }
        assert!(parser.missing() <= BULK_MAX + 2, "no argument may be longer");
    }
    (read, None)
}

fn run(case: Case) {
    let whole = commands(&case.stream, std::iter::empty());
    let pieces = case.pieces.iter().map(|&piece| usize::from(piece));
    assert_eq!(commands(&case.stream, pieces), whole);
    assert_eq!(commands(&case.stream, std::iter::repeat(1)), whole);
    let mut written = Vec::new();
    for command in &whole.0 {
        written.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
        for arg in command {
            written.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            written.extend_from_slice(arg);
            written.extend_from_slice(b"\r\n");
        }
    }
    // Inline words may be longer than an argument may be.
    if whole.0.iter().flatten().all(|arg| arg.len() <= BULK_MAX) {
        assert_eq!(commands(&written, std::iter::empty()), (whole.0, None));
    }
}

fuzz_target!(|case: Case| run(case));
