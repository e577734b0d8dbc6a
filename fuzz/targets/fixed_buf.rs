//! One buffer's operations against a vector and a number: content and room.
//!
//! What could go wrong: a byte that was never written through the buffer is shown, content moves or is lost when the view does, a part
//! reaches into its sibling, a call that must refuse does not.
#![no_main]

use std::io::{BufRead, Read, Write};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use veloq::io::buf::{BuddyPool, BufPool, FixedBuf, HybridPool, IoBuf};

#[derive(Arbitrary, Debug)]
struct Case {
    source: Source,
    capacity: u16,
    steps: Vec<(u8, Step)>,
}

#[derive(Arbitrary, Debug)]
enum Source {
    Heap,
    Buddy,
    Hybrid,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Extend(Vec<u8>),
    Write(Vec<u8>),
    Resize(u16, u8),
    Truncate(u16),
    Advance(u16),
    Read(u8),
    Consume(u16),
    Clear,
    Set(u16, u8),
    SplitOff(u16),
    SplitTo(u16),
    Freeze(u16, u16),
    Slice(u16, u16),
    Drop,
}

/// What a buffer should be.
struct Model {
    buf: FixedBuf,
    content: Vec<u8>,
    /// Bytes that `advance` dropped, and room after them.
    dropped: usize,
    capacity: usize,
}

impl Model {
    fn check(&self) {
        assert_eq!(self.buf[..], self.content[..]);
        assert_eq!((self.buf.len(), self.buf.is_empty()), (self.content.len(), self.content.is_empty()));
        assert_eq!(self.buf.capacity(), self.capacity);
        assert_eq!(self.buf.remaining(), self.capacity - self.content.len());
        assert_eq!((self.buf.io_len(), self.buf.io_capacity()), (self.content.len(), self.capacity));
        assert!(!format!("{:?}", self.buf).contains('['));
    }

    fn advance(&mut self, n: usize) {
        self.content.drain(..n);
        self.dropped += n;
        self.capacity -= n;
    }
}

fn run(case: Case) {
    let (buddy, hybrid) = (BuddyPool::new(1 << 16), HybridPool::new(1 << 16));
    let (buddy, hybrid) = (buddy.expect("it can be mapped"), hybrid.expect("it can be mapped"));
    let capacity = usize::from(case.capacity);
    let alloc = || match case.source {
        Source::Heap => FixedBuf::heap(capacity),
        Source::Buddy => buddy.alloc(capacity),
        Source::Hybrid => hybrid.alloc(capacity),
    };
    // Its memory was somebody's.
    let mut before = alloc();
    before.resize(capacity, 0xAA);
    drop(before);
    let mut parts = vec![Model { buf: alloc(), content: Vec::new(), dropped: 0, capacity }];
    for (which, step) in case.steps {
        if parts.is_empty() {
            return;
        }
        let at = usize::from(which) % parts.len();
        let part = &mut parts[at];
        let within = |n: u16, most: usize| usize::from(n) % (most + 1);
        match step {
            Step::Extend(mut bytes) => {
                bytes.truncate(part.buf.remaining());
                part.buf.extend_from_slice(&bytes);
                part.content.extend_from_slice(&bytes);
            }
            Step::Write(bytes) => {
                let room = part.capacity - part.content.len();
                let wrote = part.buf.write(&bytes).expect("it never fails");
                assert_eq!(wrote, bytes.len().min(room));
                part.content.extend_from_slice(&bytes[..wrote]);
            }
            Step::Resize(len, value) => {
                let len = within(len, part.capacity);
                part.buf.resize(len, value);
                part.content.resize(len, value);
            }
            Step::Truncate(len) => {
                part.buf.truncate(usize::from(len));
                part.content.truncate(usize::from(len));
            }
            Step::Advance(n) => {
                let n = within(n, part.content.len());
                part.buf.advance(n);
                part.advance(n);
            }
            Step::Read(n) => {
                let mut into = vec![0; usize::from(n)];
                let read = part.buf.read(&mut into).expect("it never fails");
                assert_eq!(read, into.len().min(part.content.len()));
                assert_eq!(into[..read], part.content[..read]);
                part.advance(read);
            }
            Step::Consume(n) => {
                let n = within(n, part.content.len());
                assert_eq!(part.buf.fill_buf().expect("it never fails"), part.content);
                part.buf.consume(n);
                part.advance(n);
            }
            Step::Clear => {
                part.buf.clear();
                part.content.clear();
                part.capacity += std::mem::take(&mut part.dropped);
            }
            Step::Set(at, value) => {
                if let Some(byte) = part.content.get_mut(usize::from(at)) {
                    *byte = value;
                    part.buf[usize::from(at)] = value;
                }
            }
            Step::SplitOff(at) => {
                let at = within(at, part.capacity);
                let buf = part.buf.split_off(at);
                let content = part.content.split_off(at.min(part.content.len()));
                let capacity = part.capacity - at;
                part.capacity = at;
                parts.push(Model { buf, content, dropped: 0, capacity });
            }
            Step::SplitTo(at) => {
                let at = within(at, part.content.len());
                let buf = part.buf.split_to(at);
                let content = part.content.drain(..at).collect();
                let dropped = std::mem::take(&mut part.dropped);
                part.capacity -= at;
                parts.push(Model { buf, content, dropped, capacity: at });
            }
            Step::Freeze(begin, end) => {
                let end = within(end, part.content.len());
                let begin = within(begin, end);
                let shared = std::mem::replace(&mut part.buf, FixedBuf::heap(0)).freeze();
                assert_eq!(shared[..], part.content[..]);
                let piece = shared.part(begin..end);
                assert_eq!(piece[..], part.content[begin..end]);
                let shared = shared.try_unfreeze().expect_err("there is another handle");
                drop(piece);
                part.buf = shared.try_unfreeze().expect("it is the only one");
            }
            Step::Slice(begin, end) => {
                let begin = within(begin, part.content.len());
                let end = begin + within(end, part.capacity - begin);
                let slice = std::mem::replace(&mut part.buf, FixedBuf::heap(0)).slice(begin..end);
                assert_eq!(slice[..], part.content[begin..end.min(part.content.len())]);
                assert_eq!((slice.io_len(), slice.io_capacity()), (slice.len(), end - begin));
                part.buf = slice.into_inner();
            }
            Step::Drop => drop(parts.swap_remove(at)),
        }
        parts.iter().for_each(Model::check);
    }
    drop(parts);
    assert_eq!((buddy.stats().blocks_out, hybrid.stats().blocks_out), (0, 0));
}

fuzz_target!(|case: Case| run(case));
