//! Whether bundles and incremental buffers pay for receiving: `cargo bench -p veloq --bench receive`.
//!
//! The kernel picks the buffers of a multishot receive from a ring. It can do so in three ways: a buffer for each completion, as Veloq
//! has it; several buffers in a row for one completion (*bundle*, `IORING_RECVSEND_BUNDLE`); or a part of a buffer for each,
//! until it is used up (*incremental*, `IOU_PBUF_RING_INC`). Here they receive the same from one ring of 2 MiB, which is written by hand
//! and compares every byte with what was sent: a stream on one connection, and short messages on many. Each row is the median of five
//! rounds, taken in turns: processor time of the receiving thread, kernel and program together, and how many bytes a completion brought.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "a ring of buffers, shared with the kernel by hand")
)]

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::slice;
    use std::sync::atomic::{AtomicU16, Ordering};
    use std::thread;
    use std::time::Duration;

    use io_uring::types::{BufRingEntry, Fd};
    use io_uring::{IoUring, cqueue, opcode};
    use rustix::time::{ClockId, clock_gettime};

    const ROUNDS: usize = 5;
    /// Bytes of the ring's buffers together, whatever their size.
    const RING_BYTES: usize = 2 << 20;
    const INCREMENTAL: u16 = 2;
    const GROUP: u16 = 0;
    /// What is sent repeats after so many bytes: a prime, so that a piece in the wrong place shows.
    const PERIOD: usize = 65_521;

    #[derive(Clone, Copy)]
    struct Way {
        name: &'static str,
        bundle: bool,
        incremental: bool,
        buffer: usize,
    }

    const WAYS: [Way; 4] = [
        Way { name: "one buffer, 8 KiB", bundle: false, incremental: false, buffer: 8 << 10 },
        Way { name: "one buffer, 64 KiB", bundle: false, incremental: false, buffer: 64 << 10 },
        Way { name: "bundle of 8 KiB", bundle: true, incremental: false, buffer: 8 << 10 },
        Way { name: "incremental, 64 KiB", bundle: false, incremental: true, buffer: 64 << 10 },
    ];

    #[derive(Clone, Copy)]
    struct Load {
        name: &'static str,
        connections: usize,
        piece: usize,
        bytes: usize,
    }

    const LOADS: [Load; 2] = [
        Load {
            name: "a stream, written 64 KiB at a time",
            connections: 1,
            piece: 64 << 10,
            bytes: 256 << 20,
        },
        Load {
            name: "messages of 200 bytes on 64 connections",
            connections: 64,
            piece: 200,
            bytes: 64 << 20 >> 2,
        },
    ];

    /// What one round came to.
    struct Came {
        cpu: Duration,
        completions: usize,
        dry: usize,
    }

    pub(super) fn main() {
        // `cargo test --benches` only wants to see that it runs.
        let quick = !std::env::args().any(|argument| argument == "--bench");
        for load in LOADS {
            let load = if quick { Load { bytes: load.bytes >> 8, ..load } } else { load };
            let mut came: [Vec<Came>; WAYS.len()] = Default::default();
            for _ in 0..if quick { 1 } else { ROUNDS } {
                for (way, came) in WAYS.iter().zip(&mut came) {
                    came.push(receive(*way, load));
                }
            }
            report(load, &mut came);
        }
    }

    #[expect(clippy::print_stdout, reason = "this is what a benchmark is for")]
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn report(load: Load, came: &mut [Vec<Came>]) {
        println!("\n{}\n", load.name);
        println!("| the kernel picks | ns of CPU per KiB | to the first | bytes per completion | ring dry |");
        println!("|---|---|---|---|---|");
        let mut first = None;
        for (way, came) in WAYS.iter().zip(came) {
            came.sort_by_key(|came| came.cpu);
            let median = &came[came.len() / 2];
            let each = median.cpu.as_nanos() as f64 / (load.bytes as f64 / 1024.0);
            let ratio = each / *first.get_or_insert(each);
            let per_completion = load.bytes / median.completions;
            println!("| {} | {each:.1} | {ratio:.2} | {per_completion} | {} |", way.name, median.dry);
        }
    }

    /// Receives a load in one way, compares every byte, and says what it took.
    fn receive(way: Way, load: Load) -> Came {
        let pattern: Vec<u8> = (0..PERIOD + RING_BYTES).map(|at| mix(at % PERIOD)).collect();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let share = (load.bytes / load.connections).next_multiple_of(load.piece);
        let sender = thread::spawn({
            let pattern = pattern.clone();
            move || {
                let connect = |_| TcpStream::connect(address).expect("it listens");
                let mut streams: Vec<_> = (0..load.connections).map(connect).collect();
                streams.iter().for_each(|stream| stream.set_nodelay(true).expect("it is TCP"));
                for at in (0..share).step_by(load.piece) {
                    for stream in &mut streams {
                        let from = at % PERIOD;
                        stream.write_all(&pattern[from..from + load.piece]).expect("somebody reads");
                    }
                }
                streams
            }
        });
        let accept = |_| listener.accept().expect("somebody connects").0;
        let streams: Vec<TcpStream> = (0..load.connections).map(accept).collect();
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(8192)
            .build(256)
            .expect("this kernel has io_uring");
        let mut buffers = Buffers::register(&ring, way);
        let mut at = vec![0; streams.len()];
        let mut came = Came { cpu: Duration::ZERO, completions: 0, dry: 0 };
        let began = cpu();
        let mut open = streams.len();
        for connection in 0..streams.len() {
            arm(&mut ring, &streams, way, connection);
        }
        while open > 0 {
            ring.submit_and_wait(1).expect("a ring is entered");
            let answers: Vec<cqueue::Entry> = ring.completion().collect();
            for answer in answers {
                let connection = usize::try_from(answer.user_data()).expect("it was an index");
                match usize::try_from(answer.result()) {
                    Ok(len) if len > 0 => {
                        came.completions += 1;
                        let first = cqueue::buffer_select(answer.flags()).expect("the kernel picked one");
                        let is_used_up = !cqueue::buffer_more(answer.flags());
                        buffers.take(way, first, len, is_used_up, |bytes| {
                            let from = at[connection] % PERIOD;
                            assert!(
                                bytes == &pattern[from..from + bytes.len()],
                                "a wrong byte: {}",
                                way.name
                            );
                            at[connection] += bytes.len();
                        });
                        if at[connection] == share {
                            open -= 1;
                        }
                    }
                    Ok(_) => continue,
                    Err(_) if answer.result() == -libc::ENOBUFS => came.dry += 1,
                    Err(_) => panic!("receiving failed: {}", answer.result()),
                }
                if !cqueue::more(answer.flags()) && at[connection] < share {
                    buffers.publish();
                    arm(&mut ring, &streams, way, connection);
                }
            }
            buffers.publish();
        }
        came.cpu = cpu() - began;
        // The ring goes first: until then the kernel may write to the buffers.
        drop(ring);
        drop(sender.join().expect("all was taken"));
        came
    }

    fn mix(at: usize) -> u8 {
        (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).to_le_bytes()[0]
    }

    fn cpu() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("time is not negative")
    }

    fn arm(ring: &mut IoUring, streams: &[TcpStream], way: Way, connection: usize) {
        let fd = Fd(streams[connection].as_raw_fd());
        let entry = if way.bundle {
            opcode::RecvMultiBundle::new(fd, GROUP).build()
        } else {
            opcode::RecvMulti::new(fd, GROUP).build()
        };
        let entry = entry.user_data(connection as u64);
        // SAFETY: the entry points to nothing; its buffers are the registered ones, which outlive the ring.
        unsafe { ring.submission().push(&entry) }.expect("there are more entries than connections");
    }

    /// The ring of buffers: entries on a page of their own, and the bytes.
    struct Buffers {
        entries: *mut BufRingEntry,
        bytes: *mut u8,
        count: u16,
        size: usize,
        tail: u16,
        /// By slot of the ring, which buffer is there; by buffer, in which slot it is and how much of it was filled.
        slots: Vec<u16>,
        slot_of: Vec<u16>,
        filled: Vec<usize>,
    }

    fn layouts(count: u16) -> [Layout; 2] {
        let entries = usize::from(count) * size_of::<BufRingEntry>();
        [entries, RING_BYTES].map(|bytes| Layout::from_size_align(bytes, 4096).expect("a small size"))
    }

    impl Buffers {
        fn register(ring: &IoUring, way: Way) -> Buffers {
            let count = u16::try_from(RING_BYTES / way.buffer).expect("there are few");
            // SAFETY: neither layout is of size zero.
            let [entries, bytes] = layouts(count).map(|layout| unsafe { alloc_zeroed(layout) });
            assert!(!entries.is_null() && !bytes.is_null(), "there is memory");
            let mut buffers = Buffers {
                entries: entries.cast(),
                bytes,
                count,
                size: way.buffer,
                tail: 0,
                slots: vec![0; usize::from(count)],
                slot_of: vec![0; usize::from(count)],
                filled: vec![0; usize::from(count)],
            };
            let flags = if way.incremental { INCREMENTAL } else { 0 };
            let address = entries.addr() as u64;
            // SAFETY: the entries are a page-aligned allocation of `count`, freed after the ring is gone.
            unsafe { ring.submitter().register_buf_ring_with_flags(address, count, GROUP, flags) }
                .expect("this kernel has rings of buffers of this kind");
            (0..count).for_each(|buffer| buffers.offer(buffer));
            buffers.publish();
            buffers
        }

        fn offer(&mut self, buffer: u16) {
            let slot = self.tail & (self.count - 1);
            // SAFETY: `slot` is below `count`; the kernel reads entries below the published tail only, and this one was
            // taken a lap ago.
            let entry = unsafe { &mut *self.entries.add(usize::from(slot)) };
            // SAFETY: `buffer` is below `count`.
            let start = unsafe { self.bytes.add(usize::from(buffer) * self.size) };
            entry.set_addr(start.addr() as u64);
            entry.set_len(u32::try_from(self.size).expect("buffers are small"));
            entry.set_bid(buffer);
            self.slots[usize::from(slot)] = buffer;
            self.slot_of[usize::from(buffer)] = slot;
            self.filled[usize::from(buffer)] = 0;
            self.tail = self.tail.wrapping_add(1);
        }

        fn publish(&self) {
            // SAFETY: the tail lies in the first entry. Release pairs with the kernel's acquire and publishes the entries.
            unsafe {
                let tail = BufRingEntry::tail(self.entries).cast_mut();
                AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
            }
        }

        /// Shows `len` bytes that the kernel has put into `buffer`, and for a bundle into those behind it in the ring; offers it the
        /// used ones again.
        fn take(&mut self, way: Way, buffer: u16, len: usize, is_used_up: bool, mut each: impl FnMut(&[u8])) {
            let (mut buffer, mut left) = (buffer, len);
            loop {
                let filled = self.filled[usize::from(buffer)];
                let here = left.min(self.size - filled);
                // SAFETY: the kernel says that it wrote these bytes of the buffer, and does not touch them again before they are
                // offered to it.
                each(unsafe {
                    slice::from_raw_parts(self.bytes.add(usize::from(buffer) * self.size + filled), here)
                });
                left -= here;
                let slot = self.slot_of[usize::from(buffer)];
                if !way.incremental || is_used_up {
                    self.offer(buffer);
                } else {
                    self.filled[usize::from(buffer)] += here;
                }
                if left == 0 {
                    return;
                }
                assert!(way.bundle, "one completion is one buffer");
                buffer = self.slots[usize::from((slot + 1) & (self.count - 1))];
            }
        }
    }

    impl Drop for Buffers {
        fn drop(&mut self) {
            let [entries, bytes] = layouts(self.count);
            // SAFETY: both were allocated with these layouts, and the ring that knew them is gone.
            unsafe {
                dealloc(self.entries.cast(), entries);
                dealloc(self.bytes, bytes);
            }
        }
    }
}
