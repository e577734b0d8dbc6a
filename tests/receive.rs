//! Promise: a buffer is taken when data has arrived, not before; and when the receive ring has none left, nobody waits for one.
//!
//! The kernel picks buffers from a small ring, which all connections of a worker share. What could go wrong: a byte that is lost
//! or doubled where a socket changes from one way of receiving to another; a reader that waits for a buffer which somebody
//! else keeps; a worker that spins because the kernel says "no buffers" again and again; an idle connection that holds memory.
//!
//! `VELOQ_FLOOD` says how many bytes the flood has: 32 MiB, and 1 GiB by `scripts/storm`.
#![cfg(target_os = "linux")]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use veloq::io::buf::FixedBuf;
use veloq::io::driver::DriverConfig;
use veloq::net::{Shutdown, TcpListener, TcpStream};
use veloq::runtime::{Builder, Handle, WorkerMetrics};
use veloq::task::yield_now;
use veloq::{WorkerId, spawn_local, spawn_to};

/// Buffers of the ring in the tests of a dry one.
const RING: u16 = 4;

/// How long idleness is watched. A worker that spins makes a hundred thousand turns in it.
const WATCHED: Duration = Duration::from_millis(300);

/// Two of these tests need most of the descriptors that a process may have.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("the variable holds a number"))
}

/// Raises the limit on descriptors as far as it goes, and says how many connections of `wanted` it allows with one end in this
/// process.
fn connections(wanted: u64, ends: u64) -> u64 {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).expect("up to its maximum");
    wanted.min(limits.maximum.map_or(wanted, |most| most.saturating_sub(200) / ends))
}

fn builder() -> Builder {
    let mut config = DriverConfig::default();
    config.receive_buffers = RING;
    Builder::new().pin(false).driver(config)
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// The byte at a place of a connection's stream: no two of them agree for long.
fn bytes(connection: u64, at: u64) -> [u8; 8] {
    let word = (connection << 40 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()
}

/// A piece of a connection's stream that begins at a multiple of 8.
fn piece(connection: u64, at: u64, len: usize) -> Vec<u8> {
    let mut piece = Vec::with_capacity(len + 8);
    while piece.len() < len {
        piece.extend_from_slice(&bytes(connection, at + piece.len() as u64));
    }
    piece.truncate(len);
    piece
}

/// A thousand connections send all they have at once, to a worker that has four buffers for what arrives, while each eighth
/// of its tasks keeps what it got last until the next has come. If a byte were lost, or a reader waited for a buffer, a
/// stream would be wrong or would not end; if a worker asked the kernel again and again, its operations would not be few.
#[test]
fn a_flood_to_a_thousand_connections_with_four_buffers_arrives_whole() {
    const PIECE: usize = 16 * 1024;
    let _turn = one_at_a_time();
    let connections = connections(1_000, 2);
    let share = setting("VELOQ_FLOOD", 32 << 20).div_ceil(connections).next_multiple_of(PIECE as u64);
    let (received, pieces, worker) =
        builder().workers(2).build().expect("this kernel has io_uring").block_on(async {
            let (listener, address) = listen().await;
            let clients = spawn_to(WorkerId::new(1), async move || {
                let clients: Vec<_> = (0..connections)
                    .map(|number| {
                        spawn_local(async move {
                            let stream = TcpStream::connect(address).await.expect("it listens");
                            stream
                                .write_all(Vec::from(number.to_le_bytes()))
                                .await
                                .0
                                .expect("it is connected");
                            for at in (0..share).step_by(PIECE) {
                                stream.write_all(piece(number, at, PIECE)).await.0.expect("somebody reads");
                            }
                            stream.shutdown(Shutdown::Write).await.expect("it is connected");
                            // Its end comes when all has been read.
                            assert!(stream.recv().await.expect("it is connected").is_empty());
                        })
                    })
                    .collect();
                for client in clients {
                    client.await.expect("it was all taken");
                }
            });
            let (received, pieces) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let mut readers = Vec::new();
            for place in 0..connections {
                let (stream, _) = listener.accept().await.expect("somebody connects");
                let (received, pieces) = (Rc::clone(&received), Rc::clone(&pieces));
                readers.push(spawn_local(async move {
                    let (read, number) = stream.read_exact(Vec::with_capacity(8)).await;
                    read.expect("it says who it is");
                    let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
                    let (mut at, mut kept) = (0u64, None);
                    loop {
                        let data = stream.recv().await.expect("it is connected");
                        if data.is_empty() {
                            break;
                        }
                        let skipped = usize::try_from(at % 8).expect("less than 8");
                        let expected = piece(number, at - at % 8, data.len() + skipped);
                        assert!(data[..] == expected[skipped..], "connection {number} is wrong from {at} on");
                        at += data.len() as u64;
                        pieces.set(pieces.get() + 1);
                        kept = (place % 8 == 0).then_some(data);
                    }
                    drop(kept);
                    received.set(received.get() + at);
                }));
            }
            for reader in readers {
                reader.await.expect("it found nothing wrong");
            }
            clients.await.expect("they found nothing wrong");
            (received.get(), pieces.get(), published().await)
        });
    assert_eq!(received, share * connections, "what was sent arrives, to the last byte");
    eprintln!(
        "{received} bytes in {pieces} pieces; the ring was dry {} times; {} operations in {} entries, {} turns, {} parks",
        worker.receive_ring_dry, worker.operations, worker.kernel_entries, worker.turns, worker.parks
    );
    assert!(worker.receive_ring_dry > connections, "void: the ring was seldom dry");
    // A piece costs a receive; where the ring is dry two more: to wait for data, and to get it. A socket that was beaten to
    // the data by its own stash costs another round.
    let bound = 4 * (pieces + 4 * connections);
    assert!(worker.operations <= bound, "{} operations for {pieces} pieces", worker.operations);
}

/// While all buffers are kept, and nothing arrives, a worker must sleep; what then arrives must be received though nobody gives a
/// buffer back; and when they are given back, they must be used again.
#[test]
fn a_dry_ring_costs_nothing_while_nothing_arrives_and_keeps_nobody_waiting() {
    const SOCKETS: usize = 100;
    let _turn = one_at_a_time();
    let runtime = builder().workers(1).budget(1).build().expect("this kernel has io_uring");
    let handle = runtime.handle();
    let (settled, is_settled) = std::sync::mpsc::channel::<()>();
    let watched = veloq::task::CancelToken::new();
    let is_watched = watched.clone();
    let watcher = thread::spawn(move || {
        is_settled.recv().expect("the readers wait");
        // The readers' last submissions are in when the numbers stay the same.
        let turns = || handle.metrics()[0].turns;
        let mut before = turns();
        loop {
            thread::sleep(WATCHED);
            let after = turns();
            if after == before {
                watched.cancel();
                return;
            }
            let made = after - before;
            assert!(made < 1_000, "{made} turns while nothing arrives");
            before = after;
        }
    });
    runtime.block_on(async move {
        let (listener, address) = listen().await;
        let mut pairs = Vec::new();
        for _ in 0..SOCKETS {
            let client = TcpStream::connect(address).await.expect("it listens");
            pairs.push((client, Rc::new(listener.accept().await.expect("it was connected").0)));
        }
        // The first keeps all that the ring has.
        let (client, keeper) = pairs.pop().expect("there are some");
        let mut kept = Vec::new();
        while kept.len() < usize::from(RING) {
            client.write_all("kept").await.0.expect("it is connected");
            kept.push(keeper.recv().await.expect("it was sent"));
        }
        let readers: Vec<_> = pairs
            .iter()
            .map(|(_, server)| {
                let (server, polls) = (Rc::clone(server), Rc::new(Cell::new(0)));
                (spawn_local(received_in(server, Rc::clone(&polls))), polls)
            })
            .collect();
        for _ in 0..10 {
            yield_now().await;
        }
        settled.send(()).expect("somebody watches");
        is_watched.cancelled().await;

        // With the ring as dry as before, each has its data when it is polled because of it: in the turn after the one at whose
        // end the worker hears of it. Another poll would be another turn.
        for ((client, _), (reader, polls)) in pairs.iter().zip(readers) {
            let before = polls.get();
            client.write_all("through").await.0.expect("it is connected");
            assert_eq!(&reader.await.expect("it does not panic")[..], b"through");
            assert_eq!(polls.get() - before, 1, "polls, though the data was there");
        }
        // Who comes when the data is there asks the ring first, as where it is not dry, and has it with the answer.
        let keeping = (client, keeper);
        for (client, server) in pairs.iter().chain([&keeping]) {
            client.write_all("at once").await.0.expect("it is connected");
            let socket = server.as_fd().expect("it is the process's");
            SockRef::from(&socket).peek(&mut [MaybeUninit::uninit()]).expect("it was sent");
            let polls = Rc::new(Cell::new(0));
            assert_eq!(&received_in(Rc::clone(server), Rc::clone(&polls)).await[..], b"at once");
            assert!(polls.get() <= 2, "{} polls, though the data was there", polls.get());
        }
        let dry = published().await.receive_ring_dry;
        assert!(dry > 0, "void: the ring was not dry");
        assert!(kept.iter().all(|data| data[..] == *b"kept"));
        drop(kept);
        // From now on nobody meets a dry ring, at one buffer at a time.
        for (client, server) in &pairs {
            client.write_all("again").await.0.expect("it is connected");
            assert_eq!(&server.recv().await.expect("it was sent")[..], b"again");
        }
        assert_eq!(published().await.receive_ring_dry, dry, "the buffers are back");
    });
    watcher.join().expect("the worker slept");
}

/// Receives, and counts how often that is polled: each time is a turn of its own.
async fn received_in(server: Rc<TcpStream>, polls: Rc<Cell<u64>>) -> FixedBuf {
    let mut data = pin!(server.recv());
    let counted = poll_fn(|cx| {
        polls.set(polls.get() + 1);
        data.as_mut().poll(cx)
    });
    counted.await.expect("it is connected")
}

/// The first worker's numbers, once they are those of now: it publishes before it sleeps.
async fn published() -> WorkerMetrics {
    veloq::time::sleep(Duration::from_millis(2)).await;
    Handle::current().metrics()[0]
}

/// Ten thousand connections that say nothing must hold no buffer, and little else: a server is sized by them. The other ends are a
/// process of their own, which has as many descriptors.
#[test]
fn an_idle_connection_holds_no_buffer_and_at_most_two_kibibytes() {
    const CHILD: &str = "VELOQ_TEST_CONNECT";
    const NAME: &str = "an_idle_connection_holds_no_buffer_and_at_most_two_kibibytes";
    let connections = connections(10_000, 1);
    if let Ok(address) = std::env::var(CHILD) {
        return connect_and_wait(&address, connections);
    }
    let _turn = one_at_a_time();
    let runtime = Builder::new().workers(1).pin(false).build().expect("this kernel has io_uring");
    let each = runtime.block_on(async move {
        let (listener, address) = listen().await;
        let mut child = Command::new(std::env::current_exe().expect("a test has a file"))
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        let (first, _) = listener.accept().await.expect("somebody connects");
        let mut tasks = vec![spawn_local(echo(first))];
        let (before, rss_before) = (published().await, resident_bytes());
        for _ in 1..connections {
            let (stream, _) = listener.accept().await.expect("somebody connects");
            tasks.push(spawn_local(echo(stream)));
        }
        let (after, rss_after) = (published().await, resident_bytes());
        assert!(after.in_flight >= connections, "void: {} receives are armed", after.in_flight);
        assert_eq!(after.buffers_out, before.buffers_out, "an idle connection has no buffer of the pool");
        assert_eq!(after.pool_misses, before.pool_misses, "nor one of the heap");
        // They are alive: each answers.
        drop(child.stdin.take());
        for task in tasks {
            assert_eq!(task.await.expect("it does not panic"), 4);
        }
        assert!(child.wait().expect("it was started").success(), "every connection was answered");
        (rss_after - rss_before) / connections
    });
    eprintln!("{connections} idle connections hold {each} bytes each of the process's memory");
    assert!(each <= 2048, "{each} bytes for an idle connection");
}

/// Echoes until the peer has ended. Says how many bytes that were.
async fn echo(stream: TcpStream) -> usize {
    let mut total = 0;
    while let Ok(data) = stream.recv().await {
        if data.is_empty() {
            break;
        }
        total += data.len();
        let (sent, _data) = stream.write_all(data).await;
        if sent.is_err() {
            break;
        }
    }
    total
}

/// The other process: connects, waits until it is told to go on, and wants an echo on each connection.
fn connect_and_wait(address: &str, connections: u64) {
    let connect = |_| std::net::TcpStream::connect(address).expect("it listens");
    let mut streams: Vec<_> = (0..connections).map(connect).collect();
    let told = std::io::stdin().read_to_end(&mut Vec::new());
    told.expect("its end comes");
    for stream in &mut streams {
        stream.write_all(b"ping").expect("it is connected");
    }
    for stream in &mut streams {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("it is echoed");
        assert_eq!(answer, *b"ping");
    }
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: u64 = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * rustix::param::page_size() as u64
}
