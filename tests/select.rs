//! Promise: an operation is a future like any other.
//!
//! Combinators poll it with wakers of their own, in any order, from different tasks; they drop it, keep it for later, or forget
//! it. Whatever they do, nothing is lost and nothing is stuck. A wake that goes to the wrong place leaves its test hanging.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, join, join_all, select, select_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use veloq::fs::File;
use veloq::io::op::misc::nop;
use veloq::net::{TcpListener, TcpStream, UdpSocket};
use veloq::runtime::{Builder, Handle, Runtime};
use veloq::task::{JoinHandle, yield_now};
use veloq::time::{interval, sleep};
use veloq::{WorkerId, spawn_local, spawn_to, workers};

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

/// The byte at a place of the test's file.
fn byte(at: u64) -> u8 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

async fn file(bytes: u64) -> (tempfile::TempDir, File) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("file");
    std::fs::write(&path, (0..bytes).map(byte).collect::<Vec<u8>>()).expect("it can be written");
    let file = File::open(path).await.expect("it exists");
    (dir, file)
}

/// Two ends of a connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let one = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
    (one, listener.accept().await.expect("it was connected").0)
}

/// `FuturesUnordered` polls a member only when the member's own waker was woken. An operation that woke the task instead, or
/// kept the waker of another member, would never be polled again.
#[test]
fn a_thousand_reads_in_one_set_all_end_with_their_own_bytes() {
    const READS: u64 = 1_000;
    runtime(1).block_on(async {
        let (_dir, file) = file(READS * 64).await;
        let mut reads: FuturesUnordered<_> = (0..READS)
            .map(|number| {
                let read = file.read_at(Vec::with_capacity(64), number * 64);
                async move { (number, read.await) }
            })
            .collect();
        let mut seen = vec![false; usize::try_from(READS).expect("it is small")];
        while let Some((number, (read, buf))) = reads.next().await {
            assert_eq!(read.expect("it can be read"), 64);
            assert!((number * 64..).zip(&buf).all(|(at, &found)| found == byte(at)), "read {number}");
            let index = usize::try_from(number).expect("it is small");
            assert!(!std::mem::replace(&mut seen[index], true), "read {number} ended twice");
        }
        assert!(seen.into_iter().all(|seen| seen));
    });
}

/// The loser of a `select` is dropped in each round. Bytes that its receive had taken would be missing, an acknowledgement that
/// it had got would leave the other side waiting.
#[test]
fn the_loser_of_a_select_loses_nothing() {
    runtime(1).block_on(async {
        let (left, left_peer) = connected().await;
        let (right, right_peer) = connected().await;
        let senders = [(left_peer, 500u16), (right_peer, 700)].map(|(stream, count)| {
            spawn_local(async move {
                for number in 0..count {
                    let (sent, _) = stream.write_all(vec![number.to_le_bytes()[0]]).await;
                    sent.expect("it is connected");
                    if number % 7 == 0 {
                        sleep(Duration::from_micros(50)).await;
                    }
                }
            })
        });
        let mut received = [Vec::new(), Vec::new()];
        let mut open = [true, true];
        let mut ticks = interval(Duration::from_micros(100));
        while open[0] || open[1] {
            let side = |side: usize, stream: &TcpStream| {
                let (recv, open) = (stream.recv(), open[side]);
                Box::pin(async move { if open { (side, recv.await) } else { std::future::pending().await } })
            };
            let (left, right) = (side(0, &left), side(1, &right));
            let first = match select(select(left, right), Box::pin(ticks.tick())).await {
                Either::Left((Either::Left((first, _)) | Either::Right((first, _)), _)) => Some(first),
                // Where a round takes longer than a tick, one is always due, and whoever sends would never have its turn.
                Either::Right(_) => {
                    yield_now().await;
                    None
                }
            };
            if let Some((side, data)) = first {
                let data = data.expect("it is connected");
                open[side] = !data.is_empty();
                received[side].extend_from_slice(&data);
            }
        }
        for (sender, (received, count)) in senders.into_iter().zip(received.iter().zip([500u16, 700])) {
            sender.await.expect("it does not panic");
            let expected: Vec<u8> = (0..count).map(|number| number.to_le_bytes()[0]).collect();
            assert_eq!(*received, expected);
        }
    });
}

/// Of many operations that wait, whichever is first must wake the one that selects, and those that lose go back into the next
/// round: they are not dropped here.
#[test]
fn select_over_many_operations_finds_each_as_it_ends() {
    runtime(1).block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..20 {
            pairs.push(connected().await);
        }
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mut waiting: Vec<_> = ours.iter().map(TcpStream::recv).collect();
        let mut left: Vec<usize> = (0..20).collect();
        for number in [3, 19, 0, 7, 12, 1, 18, 5, 4, 9, 2, 6, 8, 10, 11, 13, 14, 15, 16, 17] {
            let (sent, _) = theirs[number].write_all(vec![7]).await;
            sent.expect("it is connected");
            let (data, index, rest) = select_all(waiting).await;
            assert_eq!(&data.expect("it is connected")[..], [7]);
            assert_eq!(left.swap_remove(index), number);
            waiting = rest;
            if waiting.is_empty() {
                break;
            }
        }
        assert!(left.is_empty());
    });
}

/// The driver keeps whom to wake from the last poll. If it kept the first, the task that the operation was moved to would sleep
/// for ever.
#[test]
fn an_operation_moved_to_another_task_after_its_first_poll_ends_there() {
    runtime(2).block_on(async {
        let (one, other) = connected().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (_dir, file) = file(100).await;

        let recv = moved(one.recv()).await;
        let accept = moved(listener.accept()).await;
        let read = moved(file.read_at(vec![0; 100], 0)).await;
        let nothing = moved(nop()).await;
        let asleep = moved(sleep(Duration::from_millis(20))).await;
        let call = spawn_to(WorkerId::new(1), async move || sleep(Duration::from_millis(20)).await);
        let joined = moved(call).await;

        let (sent, _) = other.write_all("moved").await;
        sent.expect("it is connected");
        let _client = TcpStream::connect(address).await.expect("it listens");
        assert_eq!(&recv.await.expect("no panic").expect("it is connected")[..], b"moved");
        accept.await.expect("no panic").expect("it was connected");
        let (read, buf) = read.await.expect("no panic");
        assert_eq!((read.expect("it can be read"), buf), (100, (0..100).map(byte).collect()));
        nothing.await.expect("no panic").expect("the kernel has nothing against it");
        asleep.await.expect("no panic");
        joined.await.expect("no panic").expect("no panic there either");
    });
}

/// Polls once, here; then a task of its own has it.
async fn moved<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    let mut future = Box::pin(future);
    poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending(), "it is not ready at its first poll");
        Poll::Ready(())
    })
    .await;
    spawn_local(future)
}

/// Two tasks, by turns, poll the same operation; only the last waker counts, and it changes while the operation is with the
/// kernel.
#[test]
fn whoever_polled_last_is_woken() {
    runtime(1).block_on(async {
        for _ in 0..100 {
            let (one, other) = connected().await;
            let mut recv = Some(Box::pin(one.recv()));
            for _ in 0..3 {
                let mut ours = recv.take();
                let polls = spawn_local(async move {
                    let polled = ours.as_mut().expect("it came back");
                    poll_fn(|cx| Poll::Ready(polled.as_mut().poll(cx).is_pending())).await;
                    ours
                });
                recv = polls.await.expect("no panic");
                nop().await.expect("the kernel has nothing against it");
            }
            let (data, (sent, _)) = join(recv.expect("it came back"), other.write_all("x")).await;
            sent.expect("it is connected");
            assert_eq!(&data.expect("it is connected")[..], b"x");
        }
    });
}

/// A forgotten future never asks for its answer, and never says that it is gone. Its buffer must stay until the kernel has
/// answered, and the runtime must end all the same: hanging, or reporting a leak, are the two ways not to.
#[test]
fn forgotten_operations_do_not_keep_a_runtime_from_ending() {
    let runtime = runtime(2);
    let handle = runtime.handle();
    runtime.block_on(async {
        for worker in workers() {
            let forgetting = spawn_to(worker, async move || {
                let (one, other) = connected().await;
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
                let (_dir, file) = file(4096).await;
                for _ in 0..10 {
                    forget(file.read_at(veloq::alloc(4096), 0)).await;
                    forget(Box::pin(TcpStream::connect(listener.local_addr().expect("it is bound")))).await;
                    forget(sleep(Duration::from_secs(3_600))).await;
                    forget(nop()).await;
                    forget(spawn_local(std::future::pending::<()>())).await;
                }
                forget(one.recv()).await;
                forget(other.read(veloq::alloc(4096))).await;
                forget(listener.accept()).await;
                forget(socket.recv_from(vec![0; 100])).await;
                // The worker goes on as before.
                nop().await.expect("the kernel has nothing against it");
                forget(nop()).await;
            });
            forgetting.await.expect("no panic");
        }
    });
    assert_eq!(handle.leaked_operations(), 0);
    assert_eq!(handle.metrics().iter().map(|worker| worker.in_flight).sum::<u64>(), 0);
}

async fn forget<F: Future + Unpin>(mut future: F) {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx).is_pending())).await;
    std::mem::forget(future);
}

/// A handle is awaited where it was not made, and the answer comes back over the mesh; a wake that goes to the worker of the
/// task, and not to that of the waiter, would leave it hanging.
#[test]
fn handles_are_awaited_on_any_worker() {
    runtime(3).block_on(async {
        for _ in 0..50 {
            let chain = spawn_to(WorkerId::new(1), async move || {
                nop().await.expect("the kernel has nothing against it");
                WorkerId::new(1)
            });
            let there = spawn_to(WorkerId::new(2), async move || {
                let first = chain.await.expect("no panic");
                // This one is made there and awaited here.
                (first, spawn_to(WorkerId::new(0), async move || veloq::current_worker()))
            });
            let (first, second) = there.await.expect("no panic");
            assert_eq!((first, second.await.expect("no panic")), (WorkerId::new(1), WorkerId::new(0)));
        }
        let handle = Handle::current();
        let all = join_all((0..300usize).map(|number| {
            handle.spawn_to(WorkerId::new(number % 3), async move || {
                sleep(Duration::from_micros(number as u64 % 5)).await;
                number
            })
        }));
        for (expected, answer) in all.await.into_iter().enumerate() {
            assert_eq!(answer.expect("no panic"), expected);
        }
    });
}
