//! Operations as futures: dropped at every stage, moved, many at once.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{Faults, Graveyard, Rig, Wakes, next_once, on_every_backend, poll_once};
use crate::io::buf::{FixedBuf, Pool};
use crate::io::driver::{Descriptor, DriverConfig};
use crate::io::op::fs::{ReadAt, WriteAt};
use crate::io::op::misc::Nop;
use crate::io::op::net::{Recv, Send, kept_whole};
use crate::io::stash::Stash;

/// A future that nobody polls must not have told anybody.
#[test]
fn an_operation_dropped_before_its_first_poll_never_was() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let yard = Graveyard::default();
        let (one, _other) = rig.pair();
        drop(rig.recv(&one, yard.buf(8)));
        assert_eq!((yard.dropped(), rig.driver.occupied(), rig.driver.counters().submitted), (1, 0, 0));
    });
}

/// A zero-copy send is answered twice. Whatever becomes of its future, its buffer must stay until the second answer: the simulated
/// kernel looks whether the bytes are still the same when it lets go of them, and a graveyard fills what is dropped.
#[test]
fn a_zero_copy_send_keeps_its_buffer_until_the_kernel_lets_go() {
    for seed in 0..40 {
        let rig = Rig::sim(&DriverConfig::default(), seed, Faults::SOME);
        let yard = Graveyard::default();
        let (one, other) = rig.pair();
        let zero_copy = |buf| Send { fd: Some(Rc::clone(&one)), buf, flags: 0, zero_copy: true };
        let mut send = rig.op(zero_copy(yard.buf(64)));
        assert!(poll_once(&mut send).is_pending());
        let mut early = Vec::new();
        while early.is_empty() {
            early = rig.recv_exact(&other, 1);
        }
        // The bytes have arrived, so the first answer is on its way or given.
        if seed % 2 == 0 {
            drop(send);
            rig.turn_until(|| rig.driver.in_flight() == 0);
        } else {
            let (sent, buf) = rig.run(send);
            assert!((1..=64).contains(&sent.expect("the other end is open")));
            drop(buf);
        }
        assert_eq!((yard.dropped(), rig.driver.occupied()), (1, 0));
        rig.end();
    }
}

/// What waits in the backlog is ours still: its buffer must come back at once, and the kernel must never hear of it.
#[test]
fn an_operation_dropped_in_the_backlog_never_reaches_the_kernel() {
    let config = DriverConfig { ring_entries: 1, ..DriverConfig::default() };
    on_every_backend(&config, |rig| {
        let yard = Graveyard::default();
        let (one, other) = rig.pair();
        let mut nop = rig.op(Nop);
        let mut dropped = rig.recv(&one, yard.buf(8));
        let mut kept = rig.recv(&one, yard.buf(8));
        assert!(poll_once(&mut nop).is_pending() && poll_once(&mut dropped).is_pending());
        assert!(poll_once(&mut kept).is_pending());
        let counters = rig.driver.counters();
        assert_eq!((counters.submitted, counters.backlogged), (1, 2));
        drop(dropped);
        assert_eq!((yard.dropped(), rig.driver.counters().cancels), (1, 0));
        rig.run(nop).expect("a nop succeeds");
        rig.send_all(&other, b"x");
        let (received, buf) = rig.run(kept);
        assert_eq!((received.expect("a byte is there"), buf.bytes()[0]), (1, b'x'));
        let counters = rig.driver.counters();
        assert_eq!((counters.submitted, counters.cancels, counters.stale), (3, 0, 0), "nop, kept, send");
    });
}

/// If the future's end freed the buffer, the kernel would write into memory that is somebody else's.
#[test]
fn a_dropped_read_keeps_its_buffer_until_the_kernel_is_done() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let yard = Graveyard::default();
        let (one, other) = rig.pair();
        let mut read = rig.recv(&one, yard.buf(64));
        assert!(poll_once(&mut read).is_pending());
        rig.driver.process_completions().expect("the ring can be entered");
        let in_kernel = rig.driver.in_flight();
        drop(read);
        assert_eq!((in_kernel, rig.driver.in_flight(), yard.dropped()), (1, 1, 0));
        rig.turn_until(|| rig.driver.in_flight() == 0);
        assert_eq!((yard.dropped(), rig.driver.occupied()), (1, 0));
        rig.send_all(&other, &[7; 64]);
        let counters = rig.driver.counters();
        assert_eq!((counters.cancels, counters.abandoned, yard.disturbed()), (1, 1, 0));
    });
}

/// A future that moved to another task must wake that one, and the first must hear nothing.
#[test]
fn an_operation_wakes_the_task_that_polled_it_last() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let (one, other) = rig.pair();
        let (first, second) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
        let (first_waker, second_waker) = (Waker::from(Arc::clone(&first)), Waker::from(Arc::clone(&second)));
        let mut read = rig.recv(&one, vec![0; 8]);
        let mut polled = |waker: &Waker| Future::poll(Pin::new(&mut read), &mut Context::from_waker(waker));
        assert!(polled(&first_waker).is_pending());
        rig.driver.process_completions().expect("the ring can be entered");
        assert!(polled(&second_waker).is_pending() && polled(&second_waker).is_pending());
        assert_eq!(Arc::strong_count(&first), 2, "the first task's waker is let go: ours and `first_waker`");
        rig.send_all(&other, b"x");
        rig.turn_until(|| second.count() > 0);
        assert_eq!((first.count(), second.count()), (0, 1));
        assert!(polled(&second_waker).is_ready());
    });
}

/// A combinator with wakers of its own polls only what was woken: one lost wake, and this never ends.
#[test]
fn a_thousand_unordered_reads_all_complete() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let (one, other) = rig.pair();
        let reads: FuturesUnordered<_> = (0..1000).map(|_| rig.recv(&one, vec![0; 1])).collect();
        let bytes: Vec<u8> = (0u8..250).cycle().take(1000).collect();
        let received = rig.run(async {
            let mut reads = reads;
            let mut received = Vec::new();
            let mut sent = 0;
            while sent < bytes.len() {
                sent += rig.send(&other, bytes[sent..].to_vec()).await.0.expect("the other end is open");
            }
            while let Some((result, buf)) = reads.next().await {
                assert_eq!(result.expect("a byte for each"), 1);
                received.extend(buf);
            }
            received
        });
        let mut sorted = received;
        sorted.sort_unstable();
        let mut expected = bytes.clone();
        expected.sort_unstable();
        assert_eq!(sorted, expected);
        assert_eq!(rig.driver.occupied(), 0);
    });
}

/// The same with a file, whose reads complete while they are submitted.
#[test]
fn a_thousand_unordered_reads_of_a_file_each_get_their_own_bytes() {
    let config = DriverConfig::default();
    let rig = Rig::uring(&config);
    let file = Rc::new(Descriptor::Os(tempfile::tempfile().expect("a temporary file").into()));
    let numbers: Vec<u8> = (0u32..1000).flat_map(u32::to_le_bytes).collect();
    let write = WriteAt { fd: Rc::clone(&file), buf: numbers, offset: 0, durable: false };
    assert_eq!(rig.run(rig.op(write)).0.expect("a fresh file"), 4000);
    rig.run(async {
        let mut reads: FuturesUnordered<_> = (0u32..1000)
            .map(|number| {
                let buf = Vec::with_capacity(4);
                let read = rig.op(ReadAt { fd: Rc::clone(&file), buf, offset: u64::from(number) * 4 });
                async move { (number, read.await) }
            })
            .collect();
        let mut seen = 0;
        while let Some((number, (result, buf))) = reads.next().await {
            assert_eq!((result.expect("a read"), buf), (4, number.to_le_bytes().to_vec()));
            seen += 1;
        }
        assert_eq!(seen, 1000);
    });
    rig.end();
}

/// The loser of a race is dropped while its answer may be on the way: its bytes must not be lost, nor come twice.
#[test]
fn the_loser_of_a_select_loses_no_bytes() {
    let kept = Cell::new(0);
    on_every_backend(&DriverConfig::default(), |rig| {
        let (quick, quick_peer) = rig.pair();
        let (slow, slow_peer) = rig.pair();
        let stash = Rc::new(Stash::default());
        let mut sent: Vec<u8> = Vec::new();
        let mut received: Vec<u8> = Vec::new();
        for round in 0..20u8 {
            stash.receive_begins();
            let loser = rig.op(Recv {
                fd: Rc::clone(&slow),
                buf: Vec::with_capacity(64),
                flags: 0,
                waits: false,
                stash: Some(Rc::clone(&stash)),
                kept: kept_whole,
            });
            let (to_slow, to_quick) = (rig.send(&slow_peer, vec![round; 3]), rig.send(&quick_peer, vec![1]));
            let winner = rig.recv(&quick, Vec::with_capacity(64));
            match rig.run(async {
                // Both are sent while both are waited for.
                let mut race = select(winner, loser);
                let first = futures_util::poll!(&mut race);
                assert!(first.is_pending());
                let (sent_quick, sent_slow) = futures_util::join!(to_quick, to_slow);
                sent_quick.0.expect("the other end is open");
                sent.extend(vec![round; sent_slow.0.expect("the other end is open")]);
                race.await
            }) {
                Either::Left((_, loser)) => drop(loser),
                Either::Right(((result, buf), winner)) => {
                    result.expect("bytes are there");
                    received.extend(buf);
                    drop(winner);
                }
            }
            rig.turn_until(|| rig.driver.in_flight() == 0);
            while let Some(chunk) = stash.pop() {
                kept.set(kept.get() + 1);
                received.extend_from_slice(&chunk.expect("bytes are there"));
            }
        }
        received.extend(rig.recv_exact(&slow, sent.len() - received.len()));
        assert_eq!(received, sent);
    });
    assert!(kept.get() > 0, "no dropped receive completed all the same: this run shows nothing");
}

/// The backlog must keep order and lose nothing, and 10,000 slots must be found again.
#[test]
fn ten_thousand_operations_go_through_a_ring_of_eight() {
    let config = DriverConfig { ring_entries: 8, ..DriverConfig::default() };
    let test = |rig: &Rig| {
        let mut nops: FuturesUnordered<_> = (0..10_000).map(|_| rig.op(Nop)).collect();
        let done = rig.run(async {
            let mut done = 0;
            while let Some(result) = nops.next().await {
                result.expect("a nop succeeds");
                done += 1;
            }
            done
        });
        let counters = rig.driver.counters();
        assert_eq!((done, counters.submitted, counters.stale), (10_000, 10_000, 0));
        assert!(counters.backlogged >= 9_000, "{counters:?}");
        assert_eq!(rig.driver.occupied(), 0);
    };
    for rig in [Rig::uring(&config), Rig::sim(&config, 1, super::Faults::SOME)] {
        test(&rig);
        rig.end();
    }
}

/// Sends that wait in the backlog of a tiny ring must reach the stream in the order in which they were first polled.
#[test]
fn the_backlog_keeps_order() {
    let config = DriverConfig { ring_entries: 2, ..DriverConfig::default() };
    let rig = Rig::uring(&config);
    let (one, other) = rig.pair();
    let bytes: Vec<u8> = (0..200).collect();
    let mut sends: Vec<_> = bytes.iter().map(|byte| rig.send(&one, vec![*byte])).collect();
    for send in &mut sends {
        assert!(poll_once(send).is_pending());
    }
    for send in sends {
        assert_eq!(rig.run(send).0.expect("the other end is open"), 1);
    }
    assert_eq!(rig.recv_exact(&other, 200), bytes);
    rig.end();
}

/// More answers at once than the completion queue holds: the kernel keeps the rest, and says so in a flag to be looked at.
#[test]
fn an_overflowing_completion_queue_loses_nothing() {
    let config = DriverConfig { ring_entries: 8, ..DriverConfig::default() };
    let rig = Rig::uring(&config);
    let (one, other) = rig.pair();
    let Descriptor::Os(raw) = &*other else { panic!("a socket of the process") };
    let mut reads: Vec<_> = (0..500).map(|_| rig.recv(&one, vec![0; 1])).collect();
    for read in &mut reads {
        assert!(poll_once(read).is_pending());
    }
    rig.turn_until(|| rig.driver.counters().submitted == 500);
    assert_eq!(rustix::io::write(raw, &[9; 500]).expect("there is room"), 500);
    for read in reads {
        let (result, buf) = rig.run(read);
        assert_eq!((result.expect("a byte for each"), &buf[..]), (1, &[9][..]));
    }
    assert_eq!(rig.driver.counters().stale, 0);
    rig.end();
}

/// A stream's items must come in order, hold exactly what was sent, and go on after the ring ran dry.
#[test]
fn a_multishot_receive_yields_the_stream_in_order() {
    let config = DriverConfig { receive_buffers: 8, receive_buffer_bytes: 4096, ..DriverConfig::default() };
    on_every_backend(&config, |rig| {
        let pool = Pool::fixed(1 << 20).expect("a MiB can be mapped");
        rig.driver.register_buffers(&pool, &config);
        let (one, other) = rig.pair();
        let bytes: Vec<u8> = (0u8..251).cycle().take(100_000).collect();
        let mut held: Vec<FixedBuf> = Vec::new();
        let mut received: Vec<u8> = Vec::new();
        let mut stream = rig.recv_many(&one);
        // It goes on while we receive: neither the ring nor the pipe holds everything.
        let (mut sent, mut sending) = (0, rig.send(&other, bytes.clone()));
        while received.len() < bytes.len() {
            if sent < bytes.len()
                && let Poll::Ready((result, _)) = poll_once(&mut sending)
            {
                sent += result.expect("the other end is open");
                sending = rig.send(&other, bytes[sent..].to_vec());
            }
            match next_once(&mut stream) {
                Poll::Ready(Some(Ok(buf))) => {
                    assert!(!buf.is_empty(), "the stream has not ended");
                    received.extend_from_slice(&buf);
                    held.push(buf);
                }
                Poll::Ready(Some(Err(error))) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{error}");
                    held.clear();
                }
                Poll::Ready(None) => {
                    stream = rig.recv_many(&one);
                }
                Poll::Pending => rig.driver.park(None).expect("the driver can be entered"),
            }
        }
        assert_eq!(received, bytes);
        drop((stream, held, sending));
        rig.turn_until(|| rig.driver.occupied() == 0);
    });
}
