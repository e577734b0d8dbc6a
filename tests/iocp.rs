//! Operations that end as badly as they can, on Windows' completion ports: dropped when just begun, when answered and not yet
//! looked at, with their runtime.
//!
//! Three things could go wrong, and each would show. An operation that is forgotten with its socket, file or event leaves a *handle*:
//! the process has more of them after a thousand rounds. A buffer that is let go of while the kernel still has it is written to
//! afterwards: each receive brings a *canary*, whose memory outlives it, painted when it is dropped and looked at later. And
//! what a dropped call had got must be what the next one gets: *no byte and no connection is lost*.
//!
//! `VELOQ_ROUNDS` says how many rounds.
#![cfg(windows)]
#![expect(unsafe_code, reason = "a buffer whose memory outlives it")]

#[path = "system/descriptors.rs"]
mod descriptors;

use std::cell::RefCell;
use std::fs;
use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener as StdListener, TcpStream as StdStream};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use veloq::fs::File;
use veloq::io::buf::{IoBuf, IoBufMut};
use veloq::net::{TcpListener, TcpStream, UdpSocket};
use veloq::runtime::Builder;
use veloq::spawn_local;
use veloq::task::yield_now;

/// A slice by default, which takes a moment.
fn rounds() -> usize {
    std::env::var("VELOQ_ROUNDS").map_or(40, |rounds| rounds.parse().expect("VELOQ_ROUNDS is a number"))
}

/// Handles are counted in the whole process, so one test at a time opens any.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the memory of a dropped canary looks like, as long as nobody writes to it.
const PAINT: u8 = 0xA5;
/// Bytes of a canary.
const BYTES: usize = 512;

/// A buffer whose memory goes back to its cage when it is dropped.
struct Canary {
    memory: Option<Box<[u8; BYTES]>>,
    len: usize,
    cage: Rc<Cage>,
}

/// Where the memory of dropped canaries is looked after: where it is, or a late write would not be seen.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "the memory stays where the kernel knows it")]
struct Cage(RefCell<Vec<Box<[u8; BYTES]>>>);

impl Cage {
    fn canary(self: &Rc<Cage>) -> Canary {
        Canary { memory: Some(Box::new([0; BYTES])), len: 0, cage: Rc::clone(self) }
    }

    /// Looks at what was painted so far, and forgets it. Says how much of it was written to.
    fn hits(&self) -> usize {
        let painted = std::mem::take(&mut *self.0.borrow_mut());
        painted.iter().filter(|memory| memory.iter().any(|byte| *byte != PAINT)).count()
    }
}

impl Canary {
    fn bytes(&self) -> &[u8] {
        &self.memory.as_ref().expect("it lives")[..self.len]
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let mut memory = self.memory.take().expect("dropped once");
        memory.fill(PAINT);
        self.cage.0.borrow_mut().push(memory);
    }
}

// SAFETY: the memory is on the heap, does not move with the canary, and is initialised.
unsafe impl IoBuf for Canary {
    fn io_ptr(&self) -> *const u8 {
        self.memory.as_ref().expect("it lives").as_ptr()
    }

    fn io_len(&self) -> usize {
        self.len
    }

    fn io_capacity(&self) -> usize {
        BYTES
    }
}

// SAFETY: as above, and it is the canary's alone.
unsafe impl IoBufMut for Canary {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.memory.as_mut().expect("it lives").as_mut_ptr()
    }

    unsafe fn io_set_len(&mut self, len: usize) {
        self.len = len;
    }
}

/// Polls a future once.
async fn begin<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match Pin::new(&mut *future).poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Runs `round` so often, on one worker, and looks at handles and canaries. A few rounds come first, for what is made once.
fn storm(round: impl AsyncFn(usize, &Rc<Cage>)) {
    let _alone = alone();
    let run = |rounds: usize| {
        let runtime = Builder::new().workers(1).build().expect("a runtime");
        let leaked = runtime.handle();
        let cage = Rc::new(Cage::default());
        let hits = runtime.block_on(async {
            let mut hits = 0;
            for number in 0..rounds {
                round(number, &cage).await;
                if number % 16 == 15 {
                    hits += cage.hits();
                }
            }
            hits
        });
        // With the runtime has ended whatever was in flight.
        assert_eq!(
            (hits + cage.hits(), leaked.leaked_operations()),
            (0, 0),
            "canaries hit, operations leaked"
        );
    };
    run(8);
    let before = descriptors::open();
    run(rounds());
    assert_eq!(descriptors::open(), before, "handles");
}

/// Both ends of a connection.
async fn connection() -> (TcpStream, StdStream) {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let ours = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("a connection");
    (ours, listener.accept().expect("its other end").0)
}

// A connection that an accept had got when it was dropped must be the next one's; the socket that AcceptEx was to fill must be closed.
#[test]
fn accepts_are_dropped() {
    storm(async |number, _| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        assert!(begin(&mut listener.accept()).await.is_none(), "nobody has connected");
        if number.is_multiple_of(2) {
            let mut peer = StdStream::connect(address).expect("the backlog has room");
            peer.write_all(b"hello").expect("there is room");
            if number.is_multiple_of(4) {
                let (stream, from) = listener.accept().await.expect("the connection is kept");
                assert_eq!(from, peer.local_addr().expect("its address"));
                let (read, buf) = stream.read_exact(vec![0; 5]).await;
                read.expect("its bytes are there");
                assert_eq!(buf, b"hello");
            }
        }
    });
}

// The bytes that a receive had got when it was dropped must be the next one's; its buffer must live until the kernel is done.
#[test]
fn receives_are_dropped() {
    storm(async |number, cage| {
        let (ours, mut theirs) = connection().await;
        assert!(begin(&mut ours.read(cage.canary())).await.is_none(), "nothing was sent");
        if !number.is_multiple_of(3) {
            theirs.write_all(b"12345").expect("there is room");
        }
        if number % 3 == 1 {
            let (read, buf) = ours.read_exact(cage.canary().slice(..5)).await;
            read.expect("what was sent arrives");
            assert_eq!(buf.into_inner().bytes(), b"12345");
        }
    });
}

// The answer is at the port, and nobody has looked, when its future is dropped: the packet must find its operation all the same.
#[test]
fn packets_come_late() {
    storm(async |number, cage| {
        let (ours, mut theirs) = connection().await;
        let mut read = ours.read(cage.canary());
        assert!(begin(&mut read).await.is_none(), "nothing was sent");
        theirs.write_all(b"late").expect("there is room");
        // The peer's end is seen here when the bytes have gone through, without a turn of the worker in between.
        theirs.shutdown(std::net::Shutdown::Write).expect("it is open");
        drop(read);
        if number.is_multiple_of(2) {
            let (read, buf) = ours.read_exact(cage.canary().slice(..4)).await;
            read.expect("what was sent is kept");
            assert_eq!(buf.into_inner().bytes(), b"late");
            assert_eq!(ours.read(cage.canary()).await.0.expect("the end"), 0);
        }
    });
}

// A connection that is made after nobody wants it any more must be closed.
#[test]
fn connects_are_dropped() {
    storm(async |number, _| {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let address = listener.local_addr().expect("its address");
        {
            let mut connect = pin!(TcpStream::connect(address));
            for _ in 0..number % 4 {
                // As far as the call's own steps go: made, connecting, connected.
                if begin(&mut connect).await.is_some() {
                    break;
                }
                yield_now().await;
            }
        }
        yield_now().await;
    });
}

// A read of a file that nobody waits for: its buffer must live until the packet, and the file until the read.
#[test]
fn file_reads_are_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, [7; 4 * BYTES]).expect("a file");
    storm(async |number, cage| {
        let file = File::open(&path).await.expect("it is there");
        for place in 0..3 {
            let mut read = file.read_at(cage.canary(), place * 512);
            if let Some((read, buf)) = begin(&mut read).await {
                assert_eq!((read.expect("it is there"), buf.bytes()[0]), (BYTES, 7));
            }
        }
        // A job of the pool's: the same, by a thread.
        let std_file = File::from_std(fs::File::open(&path).expect("it is there"));
        let mut read = std_file.read_at(cage.canary(), 0);
        assert!(begin(&mut read).await.is_none(), "a thread has it");
        if number.is_multiple_of(2) {
            drop(read);
        } else {
            let (read, buf) = read.await;
            assert_eq!((read.expect("it is there"), buf.bytes()[0]), (BYTES, 7));
        }
        drop(begin(&mut pin!(File::open(&path))).await);
    });
}

// A runtime ends with something of everything in flight: what it does not get back it would leak, or free too early.
#[test]
fn runtimes_end_with_everything_in_flight() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, [7; 4 * BYTES]).expect("a file");
    let round = |number: usize| {
        let cage = Rc::new(Cage::default());
        let runtime = Builder::new().workers(1).build().expect("a runtime");
        let handle = runtime.handle();
        let mut peers: Vec<StdStream> = Vec::new();
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
            let address = listener.local_addr().expect("its address");
            let (ours, mut theirs) = connection().await;
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
            let file = File::open(&path).await.expect("it is there");
            let (one, two, three) = (cage.canary(), cage.canary(), cage.canary());
            let path = path.clone();
            spawn_local(async move { drop(listener.accept().await) });
            spawn_local(async move { drop(ours.read(one).await) });
            spawn_local(async move { drop(udp.recv_from(two).await) });
            spawn_local(async move { drop(file.read_at(three, 512).await) });
            spawn_local(async move { drop(TcpStream::connect(address).await) });
            spawn_local(async move { drop(veloq::fs::metadata(&path).await) });
            // All of them begin; the runtime's end finds them where they are.
            yield_now().await;
            if number.is_multiple_of(2) {
                theirs.write_all(b"too late").expect("there is room");
            }
            peers.push(theirs);
        });
        assert_eq!(handle.leaked_operations(), 0, "operations leaked");
        for mut peer in peers {
            // The other end is closed, or it would be waited for here.
            drop(peer.write_all(b"x").and_then(|()| peer.read(&mut [0])));
        }
        assert_eq!(cage.hits(), 0, "canaries hit");
    };
    (0..8).for_each(round);
    let before = descriptors::open();
    (0..rounds()).for_each(round);
    assert_eq!(descriptors::open(), before, "handles");
}
