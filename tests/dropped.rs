//! Promise: a dropped operation loses nothing and leaves nothing behind.
//!
//! A storm of operations (recv, read, accept, connect, open, read_at, recv_from, timeouts), each dropped at a point that
//! chance picks: before its first poll, after it, some turns later, while its answer comes, by `select`, by a timeout, by an
//! abort from its own worker or from another. What a lost byte, connection or descriptor would look like:
//!
//! | who | sends | so that a loss shows as |
//! |---|---|---|
//! | streams | bytes that follow from their position | a wrong byte, or a sum that is short at the end of the stream |
//! | connections | their number, once `connect` has succeeded | a number that nobody accepted |
//! | datagrams | numbers in order, few at a time | a gap |
//! | files | bytes that follow from their position | a wrong byte |
//!
//! Afterwards descriptors, slots and buffers must be exactly as many as before. A storm that met too little to have shown
//! anything is void, and fails.
//!
//! `VELOQ_DROPS` says how many operations are dropped, `VELOQ_SEED` in which order; `scripts/storm` runs the full figures.

#[path = "system/descriptors.rs"]
mod descriptors;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};
use veloq::fs::File;
use veloq::io::driver::DriverConfig;
use veloq::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use veloq::runtime::{Builder, Handle};
use veloq::task::yield_now;
use veloq::time::{sleep, timeout};
use veloq::{WorkerId, current_worker, spawn_blocking, spawn_local, spawn_to, workers};

/// Drops by default: some seconds of a debug build.
const DROPS: u64 = 30_000;

/// Workers of the storm: two, so that aborts come from elsewhere too.
const WORKERS: u16 = 2;

/// The last connection's number: what waited before it has been accepted when it is.
const LAST: u64 = u64::MAX;

/// Datagrams that are sent and not yet received at most: what any socket's buffer holds.
const DATAGRAMS_AHEAD: u64 = 16;

/// Bytes of the file that is read.
const FILE_BYTES: usize = 1 << 16;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("the variable holds a number"))
}

/// Lost bytes and connections show as the table above says; what is left behind, as figures that differ; an operation
/// that never ends, as a test that does not.
#[test]
fn operations_dropped_at_random_points_lose_nothing_and_leave_nothing() {
    drop_at_random_points(setting("VELOQ_DROPS", DROPS), &DriverConfig::default());
}

/// The same where receives find no buffer in the ring more often than one, and are dropped on each of the other ways to receive:
/// while they wait for readiness, and while they receive into a buffer of the pool. Windows has no such ring.
#[cfg(target_os = "linux")]
#[test]
fn the_same_holds_where_the_receive_ring_runs_dry() {
    let mut config = DriverConfig::default();
    config.receive_buffers = 2;
    let dry = drop_at_random_points(setting("VELOQ_DROPS", DROPS) / 4, &config);
    assert!(dry > 100, "void: the ring was dry {dry} times");
}

/// Runs a storm on workers of this configuration. Says how often their receive rings were dry.
fn drop_at_random_points(drops: u64, config: &DriverConfig) -> u64 {
    // The process's descriptors are counted, so there is one storm at a time.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = setting("VELOQ_SEED", 1);
    let ring = config.receive_buffers;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("pattern");
    let content: Vec<u8> = (0..FILE_BYTES).map(|at| byte(seed, at)).collect();
    std::fs::write(&path, content).expect("the file can be written");

    let runtime = Builder::new()
        .workers(WORKERS.into())
        .pin(false)
        .driver(config.clone())
        .blocking_idle(Duration::from_millis(10))
        .build()
        .expect("this kernel has io_uring");
    let handle = runtime.handle();
    let tally = runtime.block_on(async {
        let before = at_rest(ring).await;
        let storms: Vec<_> = workers()
            .map(|worker| {
                let (path, share) = (path.clone(), drops / u64::from(WORKERS));
                let seed = seed.wrapping_mul(1 << 8).wrapping_add(worker.index() as u64);
                spawn_to(worker, async move || storm(seed, share, &path).await)
            })
            .collect();
        let mut tally = Tally::default();
        for storm in storms {
            tally.add(&storm.await.expect("the storm found nothing wrong"));
        }
        assert_eq!(at_rest(ring).await, before, "what is taken after the storm, and was before; seed {seed}");
        tally
    });
    assert_eq!(handle.leaked_operations(), 0);
    let reclaimed: u64 = handle.metrics().iter().map(|worker| worker.descriptors_reclaimed).sum();
    eprintln!("{tally:#?}, {reclaimed} descriptors reclaimed");
    // Descriptors that came to an abandoned slot, or that were kept for the next caller.
    assert!(
        reclaimed + tally.kept >= drops / 30,
        "void: {reclaimed} descriptors were reclaimed, {} kept",
        tally.kept
    );
    for (kind, dropped) in &tally.dropped {
        // An accept on a port is more often answered before it can be dropped.
        let least = if cfg!(windows) { 1 } else { drops / 200 };
        assert!(*dropped >= least, "void: only {dropped} of {kind} were dropped");
    }
    assert_eq!(tally.dropped.len(), 11, "void: a kind is missing");
    handle.metrics().iter().map(|worker| worker.receive_ring_dry).sum()
}

/// What may not have grown when everything has ended.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    descriptors: usize,
    /// Of each worker: slots, operations in flight, buffers of the pool, tasks; and how often the receive ring ran dry while
    /// as many of its buffers were held as it has.
    of_workers: Vec<[u64; 5]>,
}

/// Waits until the kernel has answered everything, and counts.
async fn at_rest(ring: u16) -> Taken {
    let mut of_workers = Vec::new();
    for worker in workers() {
        of_workers.push(
            spawn_to(worker, async move || worker_at_rest(worker, ring).await).await.expect("no panic"),
        );
    }
    // Where threads have handles, those for blocking work are counted with the rest. One more thread joins those that have ended, and is
    // the only one then.
    threads_ended().await;
    spawn_blocking(|| ()).await.expect("it does not panic");
    threads_ended().await;
    let descriptors = descriptors::open();
    Taken { descriptors, of_workers }
}

/// Waits until the threads for blocking work have been idle for too long. The bound is on how often is looked.
async fn threads_ended() {
    for _ in 0..2_000 {
        if Handle::current().metrics().blocking().threads == 0 {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// A worker publishes its figures before it sleeps, so each sleep shows those of the moment that it began. The bound is on
/// how often is looked, not on time; an operation that is still in flight then will never be answered.
async fn worker_at_rest(worker: WorkerId, ring: u16) -> [u64; 5] {
    let dry = Handle::current().metrics()[worker.index()].receive_ring_dry;
    hold_receive_ring(ring).await;
    let mut now = Handle::current().metrics()[worker.index()];
    for _ in 0..2_000 {
        sleep(Duration::from_millis(1)).await;
        now = Handle::current().metrics()[worker.index()];
        if now.in_flight == 0 {
            break;
        }
    }
    [now.slots, now.in_flight, now.buffers_out, now.tasks, now.receive_ring_dry - dry]
}

/// Receives as often as the ring has buffers, and keeps them all for that long: one that did not come back will be missing.
async fn hold_receive_ring(ring: u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
    let (server, _) = listener.accept().await.expect("it was connected");
    let mut held = Vec::new();
    for _ in 0..ring {
        let (sent, _) = client.write_all("x").await;
        sent.expect("it is connected");
        held.push(server.recv().await.expect("it is connected"));
    }
    sleep(Duration::from_millis(1)).await;
}

/// What became of the operations, by kind.
#[derive(Debug, Default)]
struct Tally {
    dropped: BTreeMap<&'static str, u64>,
    finished: BTreeMap<&'static str, u64>,
    /// Connections that a dropped accept left for the next.
    kept: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.kept += other.kept;
        for (sum, part) in [(&mut self.dropped, &other.dropped), (&mut self.finished, &other.finished)] {
            for (kind, count) in part {
                *sum.entry(kind).or_default() += count;
            }
        }
    }
}

/// The storm of one worker.
struct Storm {
    random: Cell<u64>,
    /// Drops that are still to come. When there are none, everything is awaited to its end.
    left: Cell<u64>,
    tally: RefCell<Tally>,
    /// Numbers of connections whose `connect` succeeded.
    connected: RefCell<BTreeSet<u64>>,
}

async fn storm(seed: u64, drops: u64, path: &Path) -> Tally {
    let storm = Rc::new(Storm {
        random: Cell::new(seed),
        left: Cell::new(drops),
        tally: RefCell::default(),
        connected: RefCell::default(),
    });
    // Direct descriptors on one of the workers, where there are any: a table of 1,024 that a leak would fill.
    let direct = cfg!(target_os = "linux") && current_worker().index() == 1;
    let listener = TcpListener::builder().direct(direct).bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");

    let mut others = Vec::new();
    for number in 0..6 {
        let client = TcpStream::connect(address).await.expect("it listens");
        let (server, _) = listener.accept().await.expect("it was connected");
        let seed = seed.wrapping_mul(31).wrapping_add(number);
        others.push(spawn_local(Rc::clone(&storm).stream(client, server, seed)));
    }
    for _ in 0..2 {
        others.push(spawn_local(Rc::clone(&storm).files(path.to_owned(), seed >> 8)));
    }
    others.push(spawn_local(Rc::clone(&storm).datagrams()));
    for _ in 0..4 {
        others.push(spawn_local(Rc::clone(&storm).timeouts()));
    }

    others.push(spawn_local(Rc::clone(&storm).short_lives()));

    let accepts = spawn_local(Rc::clone(&storm).accepts(listener));
    let connects: Vec<_> =
        (0..4).map(|task| spawn_local(Rc::clone(&storm).connects(address, task))).collect();
    for connects in connects {
        connects.await.expect("connecting found nothing wrong");
    }
    // Behind it in the backlog there is nobody.
    let last = TcpStream::connect(address).await.expect("it listens");
    introduce(&last, LAST).await;
    let accepted = accepts.await.expect("accepting found nothing wrong");
    let odd: Vec<u64> = accepted.symmetric_difference(&storm.connected.borrow()).copied().take(10).collect();
    assert!(odd.is_empty(), "connections {odd:x?} succeeded or were accepted, and not both");
    for other in others {
        other.await.expect("nothing was lost");
    }
    storm.tally.take()
}

impl Storm {
    /// A number below `end`.
    fn below(&self, end: u64) -> u64 {
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        mixed(self.random.get()) % end
    }

    fn size_below(&self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).expect("it is below a usize")
    }

    fn goes_on(&self) -> bool {
        self.left.get() > 0
    }

    /// Lets some other tasks run, or some turns pass.
    async fn pause(&self) {
        match self.below(8) {
            0..=3 => yield_now().await,
            4..=5 => yields(self.below(200)).await,
            6 => yields(0).await,
            _ => sleep(Duration::from_micros(self.below(300))).await,
        }
    }

    /// Runs an operation to its end, or drops it on the way. Nothing in here waits for more than the operation does.
    async fn toss<T: 'static>(
        &self,
        kind: &'static str,
        operation: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let mut operation = Box::pin(operation);
        let way = if self.goes_on() { self.below(9) } else { u64::MAX };
        let result = match way {
            // Before its first poll.
            0 => None,
            // After it, when the kernel has not seen it.
            1 => polled(&mut operation).await,
            // Its answer may have come, but nobody has looked.
            2 | 3 => match polled(&mut operation).await {
                Some(result) => Some(result),
                None => {
                    self.pause().await;
                    None
                }
            },
            // Polled again and again, and dropped when it has waited long enough.
            4 => {
                let mut result = None;
                for _ in 0..self.below(20) {
                    result = polled(&mut operation).await;
                    if result.is_some() {
                        break;
                    }
                    self.pause().await;
                }
                result
            }
            5 => timeout(Duration::from_micros(self.below(300)), operation).await.ok(),
            6 => match select(operation, Box::pin(self.pause())).await {
                Either::Left((result, _)) => Some(result),
                Either::Right(_) => None,
            },
            7 => {
                let task = spawn_local(operation);
                self.pause().await;
                if self.below(2) == 0 {
                    task.abort();
                } else {
                    let (abort, other) = (task.abort_handle(), WorkerId::new(1 - current_worker().index()));
                    drop(spawn_to(other, async move || abort.abort()));
                }
                task.await.ok()
            }
            _ => Some(operation.await),
        };
        let mut tally = self.tally.borrow_mut();
        let counts = match &result {
            Some(_) => &mut tally.finished,
            None => {
                self.left.set(self.left.get().saturating_sub(1));
                &mut tally.dropped
            }
        };
        *counts.entry(kind).or_default() += 1;
        result
    }

    /// One end writes, the other reads what must be the same.
    async fn stream(self: Rc<Storm>, client: TcpStream, server: TcpStream, seed: u64) {
        let storm = Rc::clone(&self);
        let writer = spawn_local(async move {
            let mut sent = 0;
            while storm.goes_on() {
                let chunk: Vec<u8> = (0..=storm.size_below(3_000)).map(|at| byte(seed, sent + at)).collect();
                let (written, chunk) = client.write_all(chunk).await;
                written.expect("the other end reads");
                sent += chunk.len();
                storm.pause().await;
            }
            client.shutdown(Shutdown::Write).await.expect("it is connected");
            (sent, client)
        });
        let mut received = 0;
        while let Some(bytes) = self.some_bytes(&server).await {
            for (at, &found) in bytes.iter().enumerate() {
                assert_eq!(found, byte(seed, received + at), "the byte at {} of the stream", received + at);
            }
            received += bytes.len();
        }
        let (sent, _client) = writer.await.expect("writing found nothing wrong");
        assert_eq!(received, sent, "what was sent arrives, to the last byte");
    }

    /// Some bytes of a stream, by one way of receiving or another; `None` at its end.
    async fn some_bytes(&self, stream: &TcpStream) -> Option<Vec<u8>> {
        loop {
            let bytes = match self.below(5) {
                0 | 1 => {
                    self.toss("recv", stream.recv()).await.map(|data| Vec::from(&data.expect("no error")[..]))
                }
                2 => {
                    let read = stream.read(Vec::with_capacity(1 + self.size_below(2_000)));
                    self.toss("read", read).await.map(|(read, buf)| {
                        assert_eq!(read.expect("no error"), buf.len());
                        buf
                    })
                }
                3 => {
                    let read = stream.read(veloq::alloc(4096));
                    self.toss("read", read).await.map(|(read, buf)| {
                        assert_eq!(read.expect("no error"), buf.len());
                        Vec::from(&buf[..])
                    })
                }
                _ => {
                    let read = stream.read_exact(Vec::with_capacity(1 + self.size_below(500)));
                    match self.toss("read_exact", read).await {
                        // At the end of the stream, what there was is in the buffer.
                        Some((Err(error), buf)) if error.kind() == io::ErrorKind::UnexpectedEof => Some(buf),
                        Some((read, buf)) => {
                            read.expect("no error");
                            Some(buf)
                        }
                        None => None,
                    }
                }
            };
            match bytes {
                None => {}
                Some(bytes) if bytes.is_empty() => return None,
                Some(bytes) => return Some(bytes),
            }
        }
    }

    /// Connects again and again, and says who it is whenever that succeeds.
    async fn connects(self: Rc<Storm>, address: SocketAddr, task: u64) {
        let mut number = task << 32;
        while self.goes_on() {
            match self.toss("connect", TcpStream::connect(address)).await {
                None => {}
                Some(connected) => {
                    let stream = connected.expect("it listens");
                    number += 1;
                    assert!(self.connected.borrow_mut().insert(number));
                    introduce(&stream, number).await;
                }
            }
        }
    }

    /// Accepts until the last has come. Says who came.
    async fn accepts(self: Rc<Storm>, listener: TcpListener) -> BTreeSet<u64> {
        let mut came = BTreeSet::new();
        let mut before_was_dropped = false;
        loop {
            let mut accept = listener.accept();
            // The first poll of an accept finds only what an earlier one has left.
            let accepted = match polled(&mut accept).await {
                Some(found) => {
                    self.tally.borrow_mut().kept += u64::from(before_was_dropped);
                    Some(found)
                }
                None => self.toss("accept", accept).await,
            };
            before_was_dropped = accepted.is_none();
            let Some(accepted) = accepted else { continue };
            let (stream, _) = accepted.expect("there are descriptors left");
            // One whose `connect` was dropped comes as well, and says nothing.
            let Some(number) = self.introduced(&stream).await else { continue };
            if number == LAST {
                return came;
            }
            assert!(came.insert(number), "connection {number} came twice");
        }
    }

    /// Who a connection says it is.
    async fn introduced(&self, stream: &TcpStream) -> Option<u64> {
        loop {
            let read = self.toss("read_exact", stream.read_exact(Vec::with_capacity(16))).await;
            let Some((read, card)) = read else { continue };
            read.ok()?;
            let (number, check) = card.split_at(8);
            let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
            assert_eq!(check, mixed(number).to_le_bytes(), "what connection {number} says is whole");
            return Some(number);
        }
    }

    /// Opens a file again and again, and reads from it what must be there.
    async fn files(self: Rc<Storm>, path: PathBuf, seed: u64) {
        while self.goes_on() {
            let Some(opened) = self.toss("open", File::open(path.clone())).await else { continue };
            let file = opened.expect("it exists");
            for _ in 0..2 {
                let (at, len) = (self.size_below(FILE_BYTES - 4096), 1 + self.size_below(4096));
                let right = |bytes: &[u8]| {
                    (at..).zip(bytes).all(|(at, &found)| found == byte(seed, at)) && bytes.len() == len
                };
                if self.below(2) == 0 {
                    let read = self.toss("read_at", file.read_at(veloq::alloc(len), at as u64)).await;
                    assert!(read.is_none_or(|(read, buf)| read.is_ok() && right(&buf)));
                } else {
                    let read = self.toss("read_at", file.read_at(Vec::with_capacity(len), at as u64)).await;
                    assert!(read.is_none_or(|(read, buf)| read.is_ok() && right(&buf[..len])));
                }
            }
        }
    }

    /// Sends numbers to itself, and receives them in order.
    async fn datagrams(self: Rc<Storm>) {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let sender = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = receiver.local_addr().expect("it is bound");
        let received = Rc::new(Cell::new(0));
        let (storm, arrived) = (Rc::clone(&self), Rc::clone(&received));
        let sending = spawn_local(async move {
            let mut sent: u64 = 0;
            while storm.goes_on() {
                if sent - arrived.get() < DATAGRAMS_AHEAD {
                    let (result, _) = sender.send_to(Vec::from(sent.to_le_bytes()), address).await;
                    result.expect("loopback takes it");
                    sent += 1;
                }
                storm.pause().await;
            }
            sender.send_to(Vec::from(LAST.to_le_bytes()), address).await.0.expect("loopback takes it");
            sent
        });
        let sent = loop {
            let receive = receiver.recv_from(Vec::with_capacity(64));
            let Some((result, buf)) = self.toss("recv_from", receive).await else { continue };
            assert_eq!(result.expect("no error").0, 8);
            match u64::from_le_bytes(buf.try_into().expect("8 bytes")) {
                LAST => break sending.await.expect("sending found nothing wrong"),
                number => assert_eq!(number, received.replace(number + 1), "datagrams come in order"),
            }
        };
        assert_eq!(received.get(), sent, "each datagram arrives");
    }

    /// Listens, connects, sends, and drops it all while connections and bytes wait that nobody has taken.
    async fn short_lives(self: Rc<Storm>) {
        while self.goes_on() {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("it is bound");
            let first = TcpStream::connect(address).await.expect("it listens");
            let (server, _) = listener.accept().await.expect("it was connected");
            let (mut accept, mut recv) = (listener.accept(), server.recv());
            assert!(polled(&mut accept).await.is_none() && polled(&mut recv).await.is_none());
            let mut clients = Vec::new();
            for _ in 0..self.below(4) {
                clients.push(TcpStream::connect(address).await.expect("it listens"));
                first.write_all(vec![1; 100]).await.0.expect("it is connected");
            }
            self.pause().await;
            drop((accept, recv));
            for (kind, count) in [("listener", 1), ("stream", 1)] {
                self.left.set(self.left.get().saturating_sub(count));
                *self.tally.borrow_mut().dropped.entry(kind).or_default() += count;
            }
        }
    }

    /// Waits for nothing, for a while that hardly ever ends first.
    async fn timeouts(self: Rc<Storm>) {
        while self.goes_on() {
            let limit = Duration::from_micros(1 << self.below(15));
            let waiting = timeout(limit, std::future::pending::<()>());
            if let Some(waited) = self.toss("timeout", waiting).await {
                waited.expect_err("nothing comes");
            }
        }
    }
}

/// Says who a connection is.
async fn introduce(stream: &TcpStream, number: u64) {
    let card = [number.to_le_bytes(), mixed(number).to_le_bytes()].concat();
    let (said, _) = stream.write_all(card).await;
    said.expect("it is connected");
}

/// The byte at a place of a stream or file: no two of them agree for long.
fn byte(seed: u64, at: usize) -> u8 {
    mixed(seed.wrapping_add(at as u64 >> 3)).to_le_bytes()[at & 7]
}

/// SplitMix64's mixing step.
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Polls once.
async fn polled<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn yields(count: u64) {
    for _ in 0..count {
        yield_now().await;
    }
}
