//! What the sockets promise, against the real kernel, over loopback.
//!
//! The peers are threads with std's sockets: they are right, and they run when they like, so that bytes and connections
//! arrive at any point of a turn. Futures are given up after a few turns, not after a time.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;

#[path = "../../tests/system/wine.rs"]
mod wine;

use super::*;
use crate::io::buf::IoBuf;
use crate::io::driver::waiter::waker_that_meddles;
use crate::io::driver::{DriverConfig, DriverHandle};
use crate::runtime::Builder;
use crate::spawn_local;

/// Runs `test` on one worker that is made with `change`.
fn run_with<F: Future>(change: impl FnOnce(&mut DriverConfig), test: F) -> F::Output {
    let mut config = DriverConfig::default();
    change(&mut config);
    let runtime =
        Builder::new().workers(1).pin(false).driver(config).build().expect("this kernel has io_uring");
    runtime.block_on(test)
}

fn run<F: Future>(test: F) -> F::Output {
    run_with(|_| (), test)
}

/// Lets the worker turn once.
async fn turn() {
    let mut turned = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut turned, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Whether the kernel picks the buffers of receives that stay armed. Without that, what arrives waits with the kernel until it is
/// asked for.
fn has_ring() -> bool {
    DriverHandle::current().receivers().credits().1 > 0
}

/// Lets the worker turn until as many answers wait with the stream, if any can.
async fn until_waiting(stream: &TcpStream, answers: usize) {
    while has_ring() && stream.socket_waits() < answers {
        turn().await;
    }
}

/// What `future` yields within so many turns. After that it is dropped.
async fn within<F: Future>(turns: u64, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..=turns {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        turn().await;
    }
    None
}

/// Numbers that look random and are the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn size(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("it is below a usize")
    }
}

/// `len` bytes in which a piece that is lost, doubled or moved is noticed.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed | 1);
    (0..len).map(|_| dice.below(256).to_le_bytes()[0]).collect()
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback can be bound");
    let addr = listener.local_addr().expect("a bound socket has an address");
    (listener, addr)
}

/// A connection: our end, and a thread's that runs `peer` with the other.
async fn with_peer<R: Send + 'static>(
    peer: impl FnOnce(StdStream) -> R + Send + 'static,
) -> (TcpStream, JoinHandle<R>) {
    let (listener, addr) = listen().await;
    let thread = thread::spawn(move || peer(StdStream::connect(addr).expect("somebody listens")));
    let (stream, _) = listener.accept().await.expect("somebody connects");
    (stream, thread)
}

/// Both ends of a connection, ours.
async fn pair() -> (TcpStream, TcpStream) {
    let (listener, addr) = listen().await;
    let client = TcpStream::connect(addr).await.expect("somebody listens");
    (client, listener.accept().await.expect("somebody connects").0)
}

fn is<E: std::error::Error + 'static>(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<E>())
}

// A connection that was accepted for a future that is gone would be closed, or wait for ever: its number would be missing.
#[test]
fn dropped_accepts_lose_no_connection() {
    const CONNECTIONS: u32 = 1000;
    run(async {
        let (listener, addr) = listen().await;
        let (ask, asked) = mpsc::channel::<u32>();
        let clients = thread::spawn(move || {
            let connect = |number: u32| {
                let mut stream = StdStream::connect(addr).expect("somebody listens");
                stream.write_all(&number.to_le_bytes()).expect("the connection is there");
                stream
            };
            asked.into_iter().map(connect).collect::<Vec<_>>()
        });
        let (mut dice, mut dropped, mut numbers) = (Dice(7), 0, BTreeSet::new());
        let mut wanted = 0;
        while numbers.len() < CONNECTIONS as usize {
            // Bursts, and pauses in which accepts wait for nothing and are dropped.
            if wanted < CONNECTIONS && (numbers.len() == wanted as usize || dice.below(4) == 0) {
                ask.send(wanted).expect("the clients run");
                wanted += 1;
            }
            let Some(accepted) = within(dice.below(3), listener.accept()).await else {
                dropped += 1;
                continue;
            };
            let (stream, peer) = accepted.expect("accepting works");
            assert_eq!(peer.ip(), addr.ip());
            let (read, number) = stream.read_exact(vec![0; 4]).await;
            read.expect("each client says its number");
            let number = u32::from_le_bytes(number.try_into().expect("four bytes"));
            assert!(numbers.insert(number), "connection {number} came twice");
        }
        assert!(dropped >= 100, "only {dropped} accepts were dropped: the run shows nothing");
        drop(ask);
        assert_eq!(clients.join().expect("the clients ran").len(), CONNECTIONS as usize);
    });
}

// A listener that nobody serves would use up the process's descriptors, one connection after the other.
#[test]
fn connections_that_nobody_accepts_are_left_to_the_kernel() {
    run(async {
        let (listener, addr) = listen().await;
        assert!(within(1, listener.accept()).await.is_none(), "nobody connects");
        let mut peers = Vec::new();
        for _ in 0..200 {
            peers.push(TcpStream::connect(addr).await.expect("the backlog has room"));
            turn().await;
        }
        let stashed = listener.stashed();
        assert!((64..80).contains(&stashed), "{stashed} connections wait with the listener");
        for peer in &peers {
            let (_, from) = listener.accept().await.expect("none was lost");
            assert_eq!(from, peer.local_addr().expect("connected"), "they come in order");
        }
    });
}

// A reader that never comes back would fill the ring, and others fall back to slower ways, though they behave.
#[test]
fn data_that_nobody_reads_is_left_to_the_kernel() {
    run(async {
        let (one, two) = pair().await;
        assert!(within(1, one.recv()).await.is_none(), "nothing was sent");
        for _ in 0..100 {
            two.write_all(vec![1; 100]).await.0.expect("the peer's buffer has room");
            turn().await;
        }
        assert!(one.socket_waits() <= 8, "{} ring buffers wait with the socket", one.socket_waits());
        let (read, buf) = one.read_exact(vec![0; 10_000]).await;
        read.expect("none was lost");
        assert!(buf.iter().all(|byte| *byte == 1));
    });
}

/// Receives a stream by every call there is, most of them given up, and compares it with what was sent.
async fn receive_all(seed: u64) {
    const BYTES: usize = 1 << 19;
    let expected = pattern(BYTES, seed);
    let sent = expected.clone();
    let (ask, asked) = mpsc::channel::<usize>();
    let (stream, peer) = with_peer(move |mut peer| {
        let mut rest = &sent[..];
        for len in asked {
            let (part, after) = rest.split_at(len);
            peer.write_all(part).expect("we read it all");
            rest = after;
        }
    })
    .await;
    let (mut got, mut dice, mut dropped) = (Vec::with_capacity(BYTES), Dice(seed | 1), 0);
    let mut wanted = 0;
    while got.len() < BYTES {
        // Sometimes more is on its way than one receive takes, sometimes nothing and the receive is dropped.
        if wanted < BYTES && (got.len() == wanted || dice.below(4) == 0) {
            let len = (1 + dice.size(20_000)).min(BYTES - wanted);
            ask.send(len).expect("the peer runs");
            wanted += len;
        }
        let (turns, size) = (dice.below(3), 1 + dice.size(9000));
        let received = match dice.below(4) {
            0 => within(turns, stream.recv()).await.map(|data| data.expect("the stream is whole").to_vec()),
            1 => within(turns, stream.read(Vec::with_capacity(size))).await.map(|(read, buf)| {
                assert_eq!(read.expect("the stream is whole"), buf.len());
                buf
            }),
            2 => within(turns, stream.read_exact(vec![0; size])).await.map(|(read, buf)| {
                match read {
                    Ok(()) => assert_eq!(buf.len(), size),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
                }
                buf
            }),
            _ => {
                let bufs = [Vec::with_capacity(size), Vec::with_capacity(100)];
                within(turns, stream.read_vectored(bufs)).await.map(|(read, bufs)| {
                    let all = bufs.concat();
                    assert_eq!(read.expect("the stream is whole"), all.len());
                    all
                })
            }
        };
        match received {
            Some(bytes) => {
                let at = got.len();
                assert!(
                    expected[at..].starts_with(&bytes),
                    "seed {seed}: {} bytes after {at} are wrong",
                    bytes.len()
                );
                got.extend_from_slice(&bytes);
            }
            None => dropped += 1,
        }
    }
    drop(ask);
    assert!(stream.recv().await.expect("the stream ended well").is_empty());
    assert!(dropped >= 10, "only {dropped} receives were dropped: the run shows nothing");
    peer.join().expect("the peer ran");
}

// A byte that came for a dropped future and was not kept, or was put back at the wrong place, breaks the pattern.
#[test]
fn dropped_receives_lose_no_byte() {
    run(async {
        for seed in 1..12 {
            receive_all(seed * 77).await;
        }
    });
}

// The same where the ring runs dry all the time, and where there is none.
#[test]
fn dropped_receives_lose_no_byte_without_buffers_to_spare() {
    for buffers in [2, 0] {
        run_with(
            |config| {
                config.receive_buffers = buffers;
                config.receive_buffer_bytes = 4096;
            },
            async {
                for seed in 1..6 {
                    receive_all(seed * 1001).await;
                }
            },
        );
    }
}

// Several at once share the ring: credits, single picks and the pool's buffers are all in use.
#[test]
fn many_streams_at_a_small_ring_lose_no_byte() {
    run_with(
        |config| {
            config.receive_buffers = 8;
            config.receive_buffer_bytes = 4096;
        },
        async {
            let tasks: Vec<_> = (1..16).map(|seed| spawn_local(receive_all(seed * 31))).collect();
            for task in join_all(tasks).await {
                task.expect("it does not panic");
            }
        },
    );
}

// Data for one that never reads would fill the ring, and every other connection would wait for it for ever.
#[test]
fn a_silent_reader_starves_nobody() {
    const ROUNDS: usize = 20;
    const FLOOD: usize = 200_000;
    run_with(
        |config| {
            config.receive_buffers = 4;
            config.receive_buffer_bytes = 4096;
        },
        async {
            let flood = pattern(FLOOD, 5);
            let expected = flood.clone();
            let (silent, flooder) = with_peer(move |mut peer| {
                peer.write_all(b"x").expect("room");
                peer.read_exact(&mut [0]).expect("somebody has read it");
                peer.write_all(&flood).expect("it is read at the end");
            })
            .await;
            // It reads once, and so has a receive armed. What follows it leaves there.
            assert_eq!(&silent.recv().await.expect("a byte")[..], b"x");
            silent.write_all("y").await.0.expect("the peer is there");
            until_waiting(&silent, 4).await;
            let mut tasks = Vec::new();
            for number in 0..63 {
                let (stream, peer) = with_peer(move |mut peer| {
                    let said = pattern(1000, number);
                    let mut heard = vec![0; 1000];
                    for _ in 0..ROUNDS {
                        peer.write_all(&said).expect("somebody reads");
                        peer.read_exact(&mut heard).expect("somebody echoes");
                        assert_eq!(heard, said);
                    }
                })
                .await;
                tasks.push(spawn_local(async move {
                    loop {
                        let data = stream.recv().await.expect("the peer is there");
                        if data.is_empty() {
                            break;
                        }
                        stream.write_all(data).await.0.expect("the peer is there");
                    }
                    peer
                }));
            }
            for task in join_all(tasks).await {
                task.expect("it does not panic").join().expect("every echo came back");
            }
            let (read, got) = silent.read_exact(vec![0; FLOOD]).await;
            read.expect("it is all there");
            assert!(got == expected, "the silent reader's bytes are not what was sent");
            flooder.join().expect("it was all taken");
        },
    );
}

// A program may keep what it received. If that were all the ring has, every connection would wait for the program.
#[test]
fn buffers_that_a_program_keeps_starve_nobody() {
    run_with(
        |config| {
            config.receive_buffers = 2;
            config.receive_buffer_bytes = 4096;
        },
        async {
            let (mut kept, mut streams) = (Vec::new(), Vec::new());
            for number in 0..20u8 {
                let (one, two) = pair().await;
                two.write_all(vec![number; 10]).await.0.expect("the peer is there");
                kept.push(one.recv().await.expect("data"));
                two.write_all(vec![number; 5]).await.0.expect("the peer is there");
                kept.push(one.recv().await.expect("data, again"));
                streams.push((one, two));
            }
            for (number, pair) in (0u8..).zip(kept.chunks(2)) {
                assert_eq!((&pair[0][..], &pair[1][..]), (&[number; 10][..], &[number; 5][..]));
            }
            let dry = DriverHandle::current().counters().receive_ring_dry;
            assert!(dry > 0 || !has_ring(), "the ring never ran dry");
        },
    );
}

// Credits that were not given back would leave later connections without any; too many would be more than the ring, which only Linux
// has.
#[cfg(target_os = "linux")]
#[test]
fn all_credits_together_stay_within_the_ring_and_come_back() {
    run(async {
        let receivers = DriverHandle::current();
        let receivers = receivers.receivers();
        let mut streams = Vec::new();
        for _ in 0..270 {
            let (one, two) = pair().await;
            assert!(within(1, one.recv()).await.is_none(), "nothing was sent");
            let (granted, all) = receivers.credits();
            assert!(granted <= all);
            streams.push((one, two));
        }
        let (granted, all) = receivers.credits();
        assert_eq!((granted, all), (256, 256), "more sockets than buffers want them all");
        drop(streams);
        assert_eq!(receivers.credits().0, 0);
    });
}

// Two readers would each get pieces of the stream, and no error would say so.
#[test]
fn a_second_reader_gets_a_typed_error() {
    run(async {
        let (one, two) = pair().await;
        let one = Rc::new(one);
        let reader = Rc::clone(&one);
        let first = spawn_local(async move { reader.recv().await });
        turn().await;
        let error = one.recv().await.expect_err("somebody reads");
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        assert!(is::<ReaderBusy>(&error));
        let (result, buf) = one.read(vec![7; 3]).await;
        assert!(is::<ReaderBusy>(&result.expect_err("somebody reads")));
        assert_eq!(buf, [7; 3], "the buffer comes back as it was");
        let (result, _) = one.read_exact(vec![0; 3]).await;
        assert!(is::<ReaderBusy>(&result.expect_err("somebody reads")));
        two.write_all("abc").await.0.expect("the peer is there");
        assert_eq!(&first.await.expect("no panic").expect("data")[..], b"abc");
        // And when the first is through, or dropped, the next may.
        assert!(within(2, one.recv()).await.is_none());
        two.write_all("de").await.0.expect("the peer is there");
        let (read, buf) = one.read_exact(vec![0; 2]).await;
        read.expect("nobody else reads");
        assert_eq!(buf, b"de");
    });
}

#[test]
fn a_second_acceptor_gets_a_typed_error() {
    run(async {
        let (listener, addr) = listen().await;
        let first = spawn_local(listener.accept());
        turn().await;
        let error = listener.accept().await.expect_err("somebody accepts");
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        assert!(is::<AcceptorBusy>(&error));
        let _client = TcpStream::connect(addr).await.expect("somebody listens");
        first.await.expect("no panic").expect("a connection");
    });
}

// If one direction's end closed both, the answer would be lost; if the end were told once, a reader would wait for ever.
#[test]
fn a_half_closed_connection_still_answers_and_its_end_is_final() {
    run(async {
        let (one, two) = pair().await;
        one.write_all("question").await.0.expect("the peer is there");
        one.shutdown(Shutdown::Write).await.expect("it is connected");
        let (read, buf) = two.read_exact(Vec::with_capacity(8)).await;
        read.expect("it was sent");
        assert_eq!(buf, b"question");
        for _ in 0..3 {
            assert!(two.recv().await.expect("an end is no error").is_empty());
            let (read, buf) = two.read(vec![1; 4]).await;
            assert_eq!((read.expect("an end is no error"), buf.len()), (0, 0));
        }
        two.write_all("answer").await.0.expect("the other direction is open");
        drop(two);
        let (read, buf) = one.read_exact(vec![9; 10]).await;
        assert_eq!(read.expect_err("it is shorter").kind(), ErrorKind::UnexpectedEof);
        assert_eq!(buf, b"answer", "the buffer holds what came");
    });
}

// The owned writing half is how a task says that it is done: its drop must reach the peer, that of the other must not.
#[test]
fn halves_end_their_own_direction_only() {
    run(async {
        let (one, two) = pair().await;
        let (read, write) = one.into_split();
        write.write_all("ab").await.0.expect("the peer is there");
        drop(write);
        assert_eq!(&two.recv().await.expect("data")[..], b"ab");
        assert!(two.recv().await.expect("an end").is_empty());
        two.write_all("cd").await.0.expect("the reading half is there");
        assert_eq!(&read.recv().await.expect("data")[..], b"cd");

        let (one, two) = pair().await;
        let (read, write) = one.into_split();
        let (other, _) = pair().await.0.into_split();
        let ReuniteError(_, write) = other.reunite(write).expect_err("another stream's");
        let one = read.reunite(write).expect("the same stream's");
        let (_, write) = one.split();
        write.write_all("ef").await.0.expect("not shut down by taking it apart");
        assert_eq!(&two.recv().await.expect("data")[..], b"ef");
    });
}

// The futures own what they need, so that they can be stored, or given to a task. A half that ended the direction under one would cut off
// what it was told to send.
#[test]
fn a_write_that_outlives_its_half_is_sent_before_the_direction_ends() {
    run(async {
        let data = pattern(4 << 20, 11);
        let (one, two) = pair().await;
        let (_read, write) = one.into_split();
        let sending = write.write_all(data.clone());
        drop(write);
        let sending = spawn_local(sending);
        let mut got = Vec::new();
        loop {
            let more = two.recv().await.expect("nobody resets it");
            if more.is_empty() {
                break;
            }
            got.extend_from_slice(&more);
        }
        assert!(got == data, "{} of {} bytes came before the end", got.len(), data.len());
        sending.await.expect("no panic").0.expect("the peer has read it all");
    });
}

// A connection that is gone before it is accepted has no peer that `getpeername` names; its bytes are there all the same. Windows drops
// both.
#[cfg(target_os = "linux")]
#[test]
fn what_a_connection_sent_before_its_reset_is_accepted() {
    run(async {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(addr).await.expect("a free port");
            assert!(within(1, listener.accept()).await.is_none(), "nobody has connected");
            let mut peer =
                StdStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
            let ours = peer.local_addr().expect("it is connected");
            peer.write_all(b"the last words").expect("room");
            socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("an option");
            drop(peer);
            let (stream, peer) = listener.accept().await.expect("it was there");
            assert_eq!(peer, ours);
            assert_eq!(stream.peer_addr().expect("it is remembered"), ours);
            let (read, buf) = stream.read_exact(vec![0; 14]).await;
            read.expect("they came before the reset");
            assert_eq!(buf, b"the last words");
            assert_eq!(stream.read(buf).await.0.expect_err("the reset").kind(), ErrorKind::ConnectionReset);
        }
    });
}

// A connection that is gone before it is accepted is an error to some systems. Told to the caller, or taken for the end, it would hide the
// one behind it.
#[test]
fn a_connection_that_was_reset_before_it_was_accepted_hides_no_other() {
    run(async {
        let (listener, addr) = listen().await;
        for _ in 0..20 {
            let reset = StdStream::connect(addr).expect("somebody listens");
            socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).expect("an option");
            drop(reset);
            let peer = StdStream::connect(addr).expect("somebody listens");
            let ours = peer.local_addr().expect("it is connected");
            // The other one may come first, with or without a peer.
            while listener.accept().await.expect("accepting works").1 != ours {}
        }
    });
}

// A wildcard stands for any address of this machine: the peer is the one that answered.
#[test]
fn the_peer_is_who_answered() {
    run(async {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let stream = TcpStream::connect(("0.0.0.0", port)).await.expect("somebody listens");
        assert_eq!(stream.peer_addr().expect("it is connected"), SocketAddr::from(([127, 0, 0, 1], port)));
    });
}

// Two listeners for the two families at one port: without the option the second finds the address in use.
#[test]
fn both_families_can_be_listened_to_at_one_port() {
    run(async {
        let six = TcpListener::builder().only_v6(true).bind("[::]:0").await.expect("a free port");
        let port = six.local_addr().expect("it is bound").port();
        let four = TcpListener::builder().only_v6(true).bind(("0.0.0.0", port)).await.expect("free for IPv4");
        assert_eq!(four.local_addr().expect("it is bound").port(), port);
    });
}

// A reset that read as an end would pass for a complete message: by either call, whether it waits already or finds the reset there.
#[test]
fn a_reset_is_an_error_for_reader_and_writer() {
    const LATER: &str = "net::tests::a_reset_is_an_error_for_reader_and_writer, to a read that comes later";
    let before = [true, false].map(|by_recv| (by_recv, true));
    let later = [true, false].map(|by_recv| (by_recv, false));
    let later = if wine::lacks(LATER, "to that it is the end") { &[][..] } else { &later };
    run(async {
        for (by_recv, waits) in before.iter().chain(later) {
            let (one, two) = pair().await;
            two.write_all("last").await.0.expect("the peer is there");
            let data =
                if *by_recv { one.recv().await.map(|data| data.len()) } else { one.read(vec![0; 4]).await.0 };
            assert_eq!(data.expect("data"), 4);
            two.set_linger(Some(Duration::ZERO)).expect("an option");
            let read = async {
                if *by_recv { one.recv().await.map(drop) } else { one.read(vec![0; 4]).await.0.map(drop) }
            };
            let mut read = pin!(read);
            if *waits {
                assert!(
                    poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx).is_pending())).await,
                    "nothing has come"
                );
                turn().await;
            }
            drop(two);
            let error = read.await.expect_err("the peer reset the connection");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let error = one.write_all("x").await.0.expect_err("nobody is there");
            // Windows says it again.
            let kind = if cfg!(windows) { ErrorKind::ConnectionReset } else { ErrorKind::BrokenPipe };
            assert_eq!(error.kind(), kind, "and no signal ended the process");
        }
    });
}

// A partial write that is taken for a whole one, or started again from the beginning, breaks the echo.
#[test]
fn a_megabyte_comes_back_through_either_call() {
    run(async {
        let data = pattern(1 << 20, 3);
        for by_recv in [true, false] {
            let (one, two) = pair().await;
            let echo = spawn_local(async move {
                let mut buf = vec![0; 10_000];
                loop {
                    if by_recv {
                        let data = two.recv().await.expect("the peer is there");
                        if data.is_empty() {
                            return;
                        }
                        two.write_all(data).await.0.expect("the peer is there");
                    } else {
                        let (read, data) = two.read(buf).await;
                        if read.expect("the peer is there") == 0 {
                            return;
                        }
                        let (written, mut data) = two.write_all(data).await;
                        written.expect("the peer is there");
                        data.resize(10_000, 0);
                        buf = data;
                    }
                }
            });
            let (read, write) = one.into_split();
            let (sent, mut rest) = (data.clone(), Vec::with_capacity(data.len()));
            let writer = spawn_local(async move { write.write_all(sent).await.0 });
            while rest.len() < data.len() {
                rest.extend_from_slice(&read.recv().await.expect("the echo goes on"));
            }
            assert!(rest == data, "the echo is not what was sent");
            writer.await.expect("no panic").expect("all was taken");
            echo.await.expect("no panic");
        }
    });
}

/// A buffer that the peer's reading holds up must not hold the descriptor as well: the connection would stay open behind its owner's
/// back. Who else holds it shows in `into_std`, which refuses then. Only a ring answers such a write twice.
#[cfg(target_os = "linux")]
#[test]
fn a_dropped_zero_copy_write_keeps_its_buffer_and_not_its_connection() {
    run(async {
        let (stream, _silent) = pair().await;
        let driver = DriverHandle::current();
        let occupied = driver.occupied();
        // More than the peer's window takes. Some are dropped before the first of their two answers, some between the two.
        for turns in [0, 4].repeat(8) {
            let _ = within(turns, stream.write_zero_copy(vec![7; 64 << 10])).await;
        }
        let refused = stream.into_std().await.map(drop);
        assert!(refused.is_ok(), "{refused:?}");
        assert!(driver.occupied() > occupied, "void: the kernel has let go of all buffers");
    });
}

// The network reads the buffer after the call has said how much it took. If the buffer came back with the first answer, what the
// program writes to it next would be sent; here it overwrites each buffer as soon as it has it.
#[test]
fn a_zero_copy_write_gives_its_buffer_back_when_it_may_be_written_to() {
    const PIECE: usize = 100_000;
    run(async {
        let data = pattern(PIECE * 40, 11);
        let expected = data.clone();
        let (stream, peer) = with_peer(move |mut peer| {
            let mut all = vec![0; expected.len()];
            peer.read_exact(&mut all).expect("it is sent");
            assert!(all == expected, "what arrived is not what was sent");
        })
        .await;
        for (number, piece) in data.chunks(PIECE).enumerate() {
            if number % 2 == 0 {
                // Registered: the kernel goes by index.
                let mut buf = crate::alloc(PIECE);
                buf.extend_from_slice(piece);
                let (sent, mut buf) = stream.write_zero_copy(buf).await;
                assert_eq!(sent.expect("the peer is there"), PIECE);
                buf.fill(0xEE);
            } else {
                let (sent, mut buf) = stream.write_zero_copy(piece.to_vec()).await;
                assert_eq!(sent.expect("the peer is there"), PIECE);
                buf.fill(0xEE);
            }
        }
        peer.join().expect("every byte is right");
        // Dropped at its first poll: the slot is free once the kernel has let go.
        let driver = DriverHandle::current();
        let occupied = driver.occupied();
        let (stream, peer) = with_peer(|mut peer| peer.read_to_end(&mut Vec::new()).map(drop)).await;
        assert!(within(0, stream.write_zero_copy(vec![1; PIECE])).await.is_none());
        drop(stream);
        while driver.occupied() > occupied {
            turn().await;
        }
        let _ = peer.join().expect("it does not panic");
    });
}

// 8 MiB do not fit the socket's buffers: what is counted as sent must be exactly what arrives.
#[test]
fn a_large_vectored_write_sends_what_it_says() {
    run(async {
        let (one, peer) = with_peer(|mut peer| {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).map(|_| got)
        })
        .await;
        let bufs: Vec<Vec<u8>> = (0..2000).map(|n| pattern(4096, n)).collect();
        let (sent, bufs) = one.write_vectored(bufs).await;
        let sent = sent.expect("the peer reads");
        assert!(sent > 0);
        one.shutdown(Shutdown::Write).await.expect("it is connected");
        let got = peer.join().expect("the peer ran").expect("the stream ended well");
        assert_eq!(got.len(), sent);
        assert!(got == bufs.concat()[..sent], "the bytes are not those of the buffers, in order");
    });
}

// The kernel takes 1024 parts in one call, and perhaps not all of those: where one call ends and the next begins, a byte would be
// missing or come twice.
#[test]
fn all_of_several_buffers_are_sent_however_many_calls_that_takes() {
    run(async {
        let (one, peer) = with_peer(|peer| {
            let mut got = Vec::new();
            // What is sent again and again comes to an end, too.
            peer.take(8 << 20).read_to_end(&mut got).map(|_| got)
        })
        .await;
        let parts = |count, len| -> Vec<Vec<u8>> {
            // Every second is empty, and so are more in a row than fit one call.
            (0u64..count).map(|n| pattern(if n % 2 == 0 && n > 1100 { len } else { 0 }, n)).collect()
        };
        let mut sent = Vec::new();
        for bufs in [parts(5000, 1000), parts(5000, 3), parts(2, 0), Vec::new()] {
            sent.extend(bufs.concat());
            let (written, after) = one.write_all_vectored(bufs.clone()).await;
            written.expect("the peer reads");
            assert!(after == bufs, "the buffers come back as they were");
        }
        let (written, _) = one.write_all_vectored(("head", vec![b'x'; 3 << 20])).await;
        written.expect("the peer reads");
        sent.extend_from_slice(b"head");
        sent.resize(sent.len() + (3 << 20), b'x');
        one.shutdown(Shutdown::Write).await.expect("it is connected");
        let got = peer.join().expect("the peer ran").expect("the stream ended well");
        assert!(got == sent, "the bytes are not those of the buffers, in order");
        let (refused, bufs) = one.write_all_vectored(["a", "b"]).await;
        refused.expect_err("this direction has ended");
        assert_eq!(bufs, ["a", "b"]);
    });
}

// What waits with the socket when it is handed over would be missing from the stream.
#[test]
fn into_std_gives_what_was_received_and_refuses_while_others_hold_the_stream() {
    run(async {
        let (one, two) = pair().await;
        two.write_all("abcdef").await.0.expect("the peer is there");
        let data = one.recv().await.expect("data");
        assert_eq!(&data[..], b"abcdef");
        two.write_all("more to").await.0.expect("the peer is there");
        until_waiting(&one, 1).await;
        let pending = one.write("");
        let refused = one.into_std().await.expect_err("a write is there");
        assert_eq!(refused.error().kind(), ErrorKind::ResourceBusy);
        let (_, one) = refused.into_parts();
        drop(pending);
        two.write_all(" come").await.0.expect("the peer is there");
        drop(two);
        let (mut std_stream, mut unread) = one.into_std().await.expect("nobody else holds it");
        assert!(unread.starts_with(b"more to") || !has_ring());
        let rest = thread::spawn(move || {
            let mut rest = Vec::new();
            std_stream.read_to_end(&mut rest).map(|_| rest)
        });
        unread.extend(rest.join().expect("no panic").expect("the stream ended well"));
        assert_eq!(unread, b"more to come");
    });
}

// Connections that the listener had accepted for nobody would be closed, and their clients see the end of a stream that never began.
#[test]
fn a_listener_gives_std_the_connections_that_nobody_took() {
    run(async {
        let (listener, addr) = listen().await;
        assert!(within(1, listener.accept()).await.is_none(), "nobody connects");
        let mut clients = Vec::new();
        for number in 0..3u8 {
            let client = TcpStream::connect(addr).await.expect("the backlog has room");
            client.write_all(vec![number]).await.0.expect("the connection is there");
            clients.push(client);
        }
        while listener.stashed() < 3 {
            turn().await;
        }
        let (listener, waiting) = listener.into_std().await.expect("nobody else holds it");
        // The next one waits in the kernel, for std.
        let late = TcpStream::connect(addr).await.expect("it still listens");
        let accepted = thread::spawn(move || {
            let (_stream, peer) = listener.accept().expect("somebody has connected");
            for ((stream, _), number) in waiting.iter().zip(0u8..) {
                let mut byte = [9];
                (&*stream).read_exact(&mut byte).expect("each client says its number");
                assert_eq!(byte, [number]);
            }
            (waiting.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), peer)
        });
        let (peers, last) = accepted.join().expect("no panic");
        let from: Vec<_> = clients.iter().map(|client| client.local_addr().expect("connected")).collect();
        assert_eq!((peers, last), (from, late.local_addr().expect("connected")));
        let (listener, _) = listen().await;
        let accept = listener.accept();
        let refused = listener.into_std().await.expect_err("an accept is there");
        assert_eq!(refused.kind(), ErrorKind::ResourceBusy);
        drop(accept);
    });
}

// A peek that takes, or that shows what comes later before what waits with the socket, would lose bytes or mix them up.
#[test]
fn what_is_peeked_at_is_still_there_to_be_read() {
    run(async {
        let (one, two) = pair().await;
        two.write_all("abc").await.0.expect("the peer is there");
        for _ in 0..2 {
            assert_eq!(one.peek(Vec::with_capacity(2)).await.1, b"ab", "it shows what the kernel has");
        }
        // What a dropped read had got waits with the socket, and comes first.
        two.write_all("def").await.0.expect("the peer is there");
        assert_eq!(&one.recv().await.expect("data")[..1], b"a");
        two.write_all("ghi").await.0.expect("the peer is there");
        until_waiting(&one, 1).await;
        let (shown, first) = one.peek(Vec::with_capacity(100)).await;
        let shown = shown.expect("bytes wait");
        assert_eq!(first.len(), shown);
        let (read, again) = one.read(Vec::with_capacity(shown)).await;
        assert_eq!((read.expect("bytes wait"), again), (shown, first));
        // One that is dropped in flight takes nothing along, and its socket goes on.
        assert!(within(2, one.peek(vec![0; 8])).await.is_none(), "nothing is there");
        two.write_all("jkl").await.0.expect("the peer is there");
        let (read, last) = one.read_exact(vec![0; 3]).await;
        read.expect("they have come");
        assert_eq!(last, b"jkl");
        two.shutdown(Shutdown::Write).await.expect("connected");
        assert_eq!(one.peek(vec![0; 8]).await.0.expect("the end"), 0);
        let (halves, _write) = one.into_split();
        assert_eq!(halves.peek(vec![0; 8]).await.0.expect("the end"), 0);
    });
}

// The same of datagrams, whose sender is shown with them.
#[test]
fn a_datagram_that_is_peeked_at_is_still_there_to_be_received() {
    run(async {
        let one = UdpSocket::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let two = UdpSocket::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let (to, from) = (two.local_addr().expect("bound"), one.local_addr().expect("bound"));
        let mut dropped = Box::pin(two.recv_from(vec![0; 100]));
        assert!(within(1, dropped.as_mut()).await.is_none(), "nothing was sent");
        one.send_to("first", to).await.0.expect("sent");
        drop(dropped);
        one.send_to("second", to).await.0.expect("sent");
        for datagram in ["first", "second"] {
            for _ in 0..2 {
                let (shown, buf) = two.peek_from(vec![0; 100]).await;
                assert_eq!(
                    (shown.expect("it arrived"), &buf[..]),
                    ((datagram.len(), from), datagram.as_bytes())
                );
            }
            assert_eq!(two.peek(vec![0; 3]).await.0.expect("it arrived"), 3);
            assert_eq!(two.recv_from(vec![0; 100]).await.1, datagram.as_bytes());
        }
        assert!(within(2, two.peek_from(vec![0; 8])).await.is_none(), "nothing is left");
        one.send_to("third", to).await.0.expect("sent");
        assert_eq!(two.recv_from(vec![0; 100]).await.1, b"third");
    });
}

// The kernel tells a peek of the reset and has told it then: dropped with its answer, the connection would seem to have ended well.
// Windows says it again.
#[cfg(target_os = "linux")]
#[test]
fn a_reset_that_came_to_a_dropped_peek_is_reported_once() {
    run(async {
        let (listener, addr) = listen().await;
        for polled_late in [true, false] {
            let peer = StdStream::connect(addr).expect("it listens");
            let (stream, _) = listener.accept().await.expect("somebody connected");
            let mut peek = Box::pin(stream.peek(vec![0; 8]));
            assert!(within(1, peek.as_mut()).await.is_none(), "nothing was sent");
            socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("an option");
            drop(peer);
            if polled_late {
                // Its answer comes, and nobody looks.
                for _ in 0..4 {
                    turn().await;
                }
            }
            drop(peek);
            let error = stream.read(vec![0; 8]).await.0.expect_err("the peer reset the connection");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(stream.read(vec![0; 8]).await.0.expect("it was told"), 0);
        }
    });
}

// The same of datagrams, where the loss would hide that nobody is there.
#[cfg(target_os = "linux")]
#[test]
fn a_refusal_that_came_to_a_dropped_peek_is_reported_once() {
    run(async {
        let gone = UdpSocket::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback can be bound");
        socket.connect(gone.local_addr().expect("bound")).await.expect("nothing is waited for");
        drop(gone.into_std().await.expect("nothing is in flight"));
        let mut peek = Box::pin(socket.peek_from(vec![0; 8]));
        assert!(within(1, peek.as_mut()).await.is_none(), "nothing was sent");
        socket.send("x").await.0.expect("nobody has refused yet");
        for _ in 0..4 {
            turn().await;
        }
        drop(peek);
        let told = within(4, socket.recv_from(vec![0; 8])).await.expect("it was not lost");
        assert_eq!(told.0.expect_err("nobody is there").kind(), ErrorKind::ConnectionRefused);
        assert!(within(2, socket.recv_from(vec![0; 8])).await.is_none(), "it was told");
    });
}

// A builder that forgets an option would show by a second socket that is refused, or by one that takes the other family's port.
#[cfg(target_os = "linux")]
#[test]
fn udp_sockets_share_an_address_when_both_say_so() {
    run(async {
        let alone = UdpSocket::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let taken = alone.local_addr().expect("bound");
        let refused =
            UdpSocket::builder().reuse_port(true).bind(taken).await.expect_err("the first did not share");
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        for builder in [UdpSocket::builder().reuse_port(true), UdpSocket::builder().reuse_addr(true)] {
            let first = builder.clone().bind("127.0.0.1:0").await.expect("loopback can be bound");
            let address = first.local_addr().expect("bound");
            let second = builder.bind(address).await.expect("both share");
            assert_eq!(second.local_addr().expect("bound"), address);
        }
        let six = UdpSocket::builder().only_v6(true).bind("[::]:0").await.expect("it can be bound");
        let port = six.local_addr().expect("bound").port();
        UdpSocket::builder().bind(("0.0.0.0", port)).await.expect("the other family's is free");
        let both = UdpSocket::builder().only_v6(false).bind("[::]:0").await.expect("it can be bound");
        let port = both.local_addr().expect("bound").port();
        let refused = UdpSocket::bind(("0.0.0.0", port)).await.expect_err("it has both");
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    });
}

// A stream in non-blocking mode would make every read fail at once with EAGAIN.
#[test]
fn streams_of_std_in_either_mode_become_ours() {
    run(async {
        let std_listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        std_listener.set_nonblocking(true).expect("a mode");
        let listener = TcpListener::from_std(std_listener).expect("a mode");
        let std_stream = StdStream::connect(listener.local_addr().expect("bound")).expect("somebody listens");
        std_stream.set_nonblocking(true).expect("a mode");
        let one = TcpStream::from_std(std_stream).expect("a mode");
        let (two, peer) = listener.accept().await.expect("a connection");
        assert_eq!(peer, one.local_addr().expect("connected"));
        assert_eq!(one.peer_addr().expect("connected"), two.local_addr().expect("connected"));
        let reader = spawn_local(async move { one.read(Vec::with_capacity(9)).await });
        turn().await;
        two.write_all("hello").await.0.expect("the peer is there");
        let (read, buf) = reader.await.expect("no panic");
        assert_eq!(read.expect("it waits for data"), 5);
        assert_eq!(buf, b"hello");
    });
}

// Direct descriptors take their own path through accept (one at a time, with the address) and have no options.
#[cfg(target_os = "linux")]
#[test]
fn a_listener_of_direct_descriptors_serves() {
    run(async {
        let listener = TcpListener::builder().direct(true).bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("the listener itself has a descriptor");
        let mut dice = Dice(3);
        for round in 0..50u32 {
            let peer = thread::spawn(move || {
                let mut peer = StdStream::connect(addr).expect("somebody listens");
                peer.write_all(&round.to_le_bytes()).expect("room");
                let mut answer = [0; 4];
                peer.read_exact(&mut answer).expect("it is echoed");
                (answer, peer.local_addr().expect("connected"))
            });
            let (stream, from) = loop {
                if let Some(accepted) = within(dice.below(3), listener.accept()).await {
                    break accepted.expect("accepting works");
                }
            };
            let data = stream.recv().await.expect("data");
            stream.write_all(data).await.0.expect("the peer is there");
            let (answer, peer) = peer.join().expect("the peer ran");
            assert_eq!((answer, peer), (round.to_le_bytes(), from));
            assert_eq!(stream.peer_addr().expect("known since the accept"), from);
            assert_eq!(stream.nodelay().expect_err("no options").kind(), ErrorKind::Unsupported);
            let refused = stream.into_std().await.expect_err("it belongs to the ring");
            assert_eq!(refused.error().kind(), ErrorKind::Unsupported);
        }
    });
}

// A refusal that ended the listener would take the service down with the first shortage; one that was not told would be
// a listener that is silent for no reason. Two indices are all there are: the third connection has no room.
#[cfg(target_os = "linux")]
#[test]
fn a_refused_accept_is_told_and_accepting_goes_on() {
    run_with(|config| config.direct_descriptors = 2, async {
        let listener = TcpListener::builder().direct(true).bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("bound");
        let mut held = Vec::new();
        let mut peers = Vec::new();
        for _ in 0..3 {
            peers.push(TcpStream::connect(addr).await.expect("the backlog has room"));
        }
        for _ in 0..2 {
            held.push(listener.accept().await.expect("there is room").0);
        }
        // The kernel has taken the connection by then, and closes it.
        let error = listener.accept().await.expect_err("there is no room");
        assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
        held.clear();
        turn().await;
        peers.push(TcpStream::connect(addr).await.expect("the backlog has room"));
        listener.accept().await.expect("there is room again");
    });
}

// The same for ordinary descriptors, in a process of its own, since the limit is the process's.
#[cfg(target_os = "linux")]
#[test]
fn a_shortage_of_descriptors_is_told_and_accepting_goes_on() {
    const NAME: &str = "net::tests::a_shortage_of_descriptors_is_told_and_accepting_goes_on";
    if std::env::var_os("VELOQ_TEST_CHILD").is_none() {
        let test = std::env::current_exe().expect("a test is a program");
        let child = std::process::Command::new(test)
            .args([NAME, "--exact", "--nocapture"])
            .env("VELOQ_TEST_CHILD", "1")
            .output()
            .expect("a program can be run");
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        return;
    }
    run(async {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let (listener, addr) = listen().await;
        // The kernel takes the limit down when the accept is armed, which is at the first call.
        let peer = StdStream::connect(addr).expect("the backlog has room");
        let before = getrlimit(Resource::Nofile);
        let mut none = before;
        none.current = Some(0);
        setrlimit(Resource::Nofile, none).expect("a limit can be lowered");
        for _ in 0..3 {
            let error = listener.accept().await.expect_err("there is no descriptor for it");
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        setrlimit(Resource::Nofile, before).expect("up to the hard limit");
        let (_, from) = listener.accept().await.expect("it waited in the backlog");
        assert_eq!(from, peer.local_addr().expect("connected"));
    });
}

// A name that resolves to several addresses of which the first refuses (::1 for `localhost`) must still connect.
#[test]
fn connecting_tries_every_address_and_resolves_names() {
    run(async {
        let (listener, addr) = listen().await;
        let refused = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
            gone.local_addr().expect("bound")
        };
        TcpStream::connect([refused, addr]).await.expect("the second listens");
        TcpStream::connect(("localhost", addr.port())).await.expect("a name");
        TcpStream::connect(format!("localhost:{}", addr.port())).await.expect("a name and a port");
        TcpStream::connect(&addr.to_string()).await.expect("an address in letters");
        let error = TcpStream::connect(refused).await.expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        for wrong in ["", "localhost", ":80", "127.0.0.1:port", "localhost:70000"] {
            let error = TcpStream::connect(wrong).await.expect_err("not an address");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong:?}");
        }
        let none: &[SocketAddr] = &[];
        assert_eq!(TcpStream::connect(none).await.expect_err("none").kind(), ErrorKind::InvalidInput);
        let mut incoming = listener.incoming();
        for _ in 0..4 {
            incoming.next().await.expect("it never ends").expect("a connection");
        }
    });
}

// A backlog that is full does not answer: without the bound the task would wait for minutes.
#[test]
fn a_connect_that_is_not_answered_times_out() {
    run(async {
        let listener = TcpListener::builder().backlog(0).bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("bound");
        let mut connected = Vec::new();
        let error = loop {
            match TcpStream::connect_timeout(addr, Duration::from_millis(50)).await {
                Ok(stream) => connected.push(stream),
                Err(error) => break error,
            }
            assert!(connected.len() < 100, "a backlog of 0 takes only a few");
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn options_are_set_and_read_back() {
    run(async {
        let (one, _two) = pair().await;
        one.set_nodelay(true).expect("an option");
        assert!(one.nodelay().expect("an option"));
        one.set_linger(Some(Duration::from_secs(3))).expect("an option");
        assert_eq!(one.linger().expect("an option"), Some(Duration::from_secs(3)));
        one.set_linger(None).expect("an option");
        one.set_ttl(42).expect("an option");
        assert_eq!(one.ttl().expect("an option"), 42);
        one.set_keepalive(true).expect("an option");
        assert!(one.keepalive().expect("an option"));
        one.set_keepalive(false).expect("an option");
        let mut probing =
            TcpKeepalive::new().with_time(Duration::from_secs(61)).with_interval(Duration::from_secs(7));
        let test = "net::tests::options_are_set_and_read_back, the number of probes";
        if !wine::lacks(test, "there is no such option") {
            probing = probing.with_retries(5);
        }
        one.set_tcp_keepalive(&probing).expect("an option");
        assert!(one.keepalive().expect("an option"), "with its times set, probing is on");
        one.set_recv_buffer_size(16 * 1024).expect("an option");
        one.set_send_buffer_size(16 * 1024).expect("an option");
        assert!(one.recv_buffer_size().expect("an option") >= 16 * 1024);
        assert!(one.send_buffer_size().expect("an option") >= 16 * 1024);
        assert!(one.take_error().expect("an option").is_none());
    });
}

// What the calls above set is asked of the system by another crate's names, so that a call which sets its neighbour's option shows.
#[cfg(target_os = "linux")]
#[test]
fn options_of_linux_reach_the_system() {
    run(async {
        let (one, _two) = pair().await;
        let probing =
            TcpKeepalive::new().with_time(Duration::from_secs(61)).with_interval(Duration::from_secs(7));
        one.set_tcp_keepalive(&probing.with_retries(5)).expect("an option");
        let fd = one.as_fd().expect("of the process");
        let system = socket2::SockRef::from(&fd);
        assert_eq!(system.tcp_keepalive_time().expect("an option"), Duration::from_secs(61));
        assert_eq!(system.tcp_keepalive_interval().expect("an option"), Duration::from_secs(7));
        assert_eq!(system.tcp_keepalive_retries().expect("an option"), 5);
        assert_eq!(one.tcp_user_timeout().expect("an option"), None);
        one.set_tcp_user_timeout(Some(Duration::from_millis(1500))).expect("an option");
        assert_eq!(one.tcp_user_timeout().expect("an option"), Some(Duration::from_millis(1500)));
        one.set_tcp_user_timeout(None).expect("an option");
        assert_eq!(one.tcp_user_timeout().expect("an option"), None);
    });
}

// On a system without the option a call that does nothing would leave a program with connections that never end.
#[cfg(windows)]
#[test]
fn an_option_that_windows_has_not_is_refused() {
    run(async {
        let (one, _two) = pair().await;
        let refused = one.set_tcp_user_timeout(Some(Duration::from_secs(1))).expect_err("there is none");
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn datagrams_go_there_and_back_on_both_families() {
    run(async {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let one = UdpSocket::bind(host).await.expect("loopback can be bound");
            let two = UdpSocket::bind(host).await.expect("loopback can be bound");
            let (to, from) = (two.local_addr().expect("bound"), one.local_addr().expect("bound"));
            assert_eq!(one.send_to("ping", to).await.0.expect("sent"), 4);
            let (received, buf) = two.recv_from(vec![0; 100]).await;
            assert_eq!((received.expect("it arrived"), &buf[..]), ((4, from), &b"ping"[..]));
            two.connect(from).await.expect("an address");
            assert_eq!(two.peer_addr().expect("connected"), from);
            assert_eq!(two.send("pong").await.0.expect("sent"), 4);
            assert_eq!(one.recv(Vec::with_capacity(2)).await.1, b"po", "the rest of a datagram is lost");
            assert_eq!(two.send("").await.0.expect("an empty one is one"), 0);
            assert_eq!(one.recv_from(vec![1; 9]).await.0.expect("it arrived"), (0, to));
        }
    });
}

// A datagram for a dropped future would be gone, though the kernel had it: over loopback, with room, none is lost.
#[test]
fn dropped_receives_lose_no_datagram() {
    const DATAGRAMS: u32 = 2000;
    run(async {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback can be bound");
        let addr = socket.local_addr().expect("bound");
        let sender = thread::spawn(move || {
            let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback can be bound");
            let mut word = [0; 4];
            for number in 0..DATAGRAMS {
                sender.send_to(&number.to_le_bytes(), addr).expect("sent");
                // At most 32 ahead of the receiver, whose buffer in the kernel holds many more.
                if number % 32 == 31 {
                    sender.recv(&mut word).expect("the receiver says go on");
                }
            }
        });
        let (mut dice, mut dropped, mut expected) = (Dice(9), 0, 0);
        while expected < DATAGRAMS {
            match within(dice.below(2), socket.recv_from(vec![0; 16])).await {
                None => dropped += 1,
                Some((received, buf)) => {
                    let (_, from) = received.expect("it arrived");
                    let number = u32::from_le_bytes(buf.try_into().expect("four bytes"));
                    assert_eq!(number, expected, "lost, doubled or out of order");
                    if number % 32 == 31 {
                        socket.send_to(vec![0; 4], from).await.0.expect("sent");
                    }
                    expected += 1;
                }
            }
        }
        assert!(dropped >= 50, "only {dropped} receives were dropped: the run shows nothing");
        sender.join().expect("the sender ran");
        let (_, unread) = socket.into_std().await.expect("nobody else holds it");
        assert!(unread.is_empty());
    });
}

// What a `read_exact` had taken from the stash when it was dropped would be missing from the stream: here it waits, with
// bytes in hand, for the end of an armed receive.
#[test]
fn a_read_exact_that_is_dropped_half_way_unreads() {
    run(async {
        let (one, two) = pair().await;
        assert!(within(1, one.recv()).await.is_none(), "nothing was sent");
        two.write_all("abcdef").await.0.expect("the peer is there");
        until_waiting(&one, 1).await;
        assert_eq!(one.read(Vec::with_capacity(2)).await.1, b"ab");
        assert!(within(0, one.read_exact(Vec::with_capacity(10))).await.is_none(), "there are four");
        two.write_all("ghijkl").await.0.expect("the peer is there");
        // And here with a receive in flight.
        assert!(within(3, one.read_exact(Vec::with_capacity(11))).await.is_none(), "there are ten");
        let (read, buf) = one.read_exact(Vec::with_capacity(10)).await;
        read.expect("ten bytes");
        assert_eq!(buf, b"cdefghijkl");
    });
}

// A slice of a buffer must be filled where it lies, also in several steps and from the stash.
#[test]
fn read_exact_fills_a_slice_and_leaves_the_rest_of_the_buffer() {
    run(async {
        let (one, two) = pair().await;
        two.write_all("abc").await.0.expect("the peer is there");
        let waits = spawn_local(async move {
            let (read, part) = one.read_exact(vec![b'-'; 10].slice(2..8)).await;
            read.map(|()| part.into_inner())
        });
        for _ in 0..10 {
            turn().await;
        }
        two.write_all("def").await.0.expect("the peer is there");
        assert_eq!(waits.await.expect("no panic").expect("six bytes"), b"--abcdef--");
    });
}

// Whatever is borrowed while a waker is cloned would be found so by a clone that comes back to the socket.
#[test]
fn a_waker_may_use_the_socket_when_it_is_cloned() {
    run(async {
        let (listener, addr) = listen().await;
        let client = TcpStream::connect(addr).await.expect("somebody listens");
        let listener = Rc::new(listener);
        let mut accept = listener.accept();
        let waker = waker_that_meddles({
            let listener = Rc::clone(&listener);
            move || assert_eq!(listener.stashed(), 0)
        });
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut accept).poll(&mut cx).is_pending(), "submitted");
        assert!(Pin::new(&mut accept).poll(&mut cx).is_pending(), "and waited for");
        drop(waker);
        let (server, _) = accept.await.expect("somebody has connected");
        let (server, cloned) = (Rc::new(server), Rc::new(Cell::new(0)));
        let waker = || {
            let (server, cloned) = (Rc::clone(&server), Rc::clone(&cloned));
            waker_that_meddles(move || cloned.set(cloned.get() + 1 + server.socket_waits()))
        };
        for _ in 0..2 {
            let mut recv = server.recv();
            assert!(Pin::new(&mut recv).poll(&mut Context::from_waker(&waker())).is_pending());
        }
        let mut read = server.read(vec![0; 8]);
        assert!(Pin::new(&mut read).poll(&mut Context::from_waker(&waker())).is_pending());
        assert_eq!(
            cloned.get(),
            3,
            "once when armed, once by the second call, once by the read that disarms"
        );
        drop(client);
    });
}
