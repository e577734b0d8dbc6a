//! Promise: any owned memory works in any operation, and a recycled buffer shows nobody what was in it before.
//!
//! The first tests take each type of buffer through operations on files and sockets, alone and in lists. The last one is
//! about secrets: connections that each have a mark of their own in every byte they send, and one small pool, whose blocks pass
//! from one to the next through reads that come back short, empty, failed, timed out, or not at all because they were
//! dropped. Whatever a safe call shows of a buffer must bear its connection's mark.
//!
//! `VELOQ_RECYCLES` says how many buffers are recycled, `scripts/storm` runs a million.

#![expect(
    unsafe_code,
    reason = "a waker with a vtable of its own, and an allocator that looks at what comes back"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::{Future, poll_fn};
use std::io::{self, BufRead, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::thread;
use std::time::Duration;

use veloq::fs::{File, OpenOptions};
use veloq::io::buf::{BuddyPool, BufPool, FixedBuf, HybridPool, IoBuf, IoBufMut, PoolConfig, PoolKind};
use veloq::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use veloq::runtime::Builder;
use veloq::spawn_local;

/// Buffers recycled by default: a second of a debug build.
const RECYCLES: u64 = 20_000;

fn runtime() -> veloq::Runtime {
    Builder::new().workers(1).pin(false).build().expect("this kernel has io_uring")
}

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has ports");
    let to = listener.local_addr().expect("a listener has an address");
    let here = TcpStream::connect(to).await.expect("the listener is there");
    (here, listener.accept().await.expect("a connection waits").0)
}

/// A file to write and read, which is gone with the returned directory.
async fn file() -> (File, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    (options.open(dir.path().join("file")).await.expect("a file can be made"), dir)
}

/// Two sockets for messages.
async fn datagrams() -> (UdpSocket, UdpSocket) {
    let bind = async || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has ports");
    (bind().await, bind().await)
}

/// Sends `buf` over a connection, into a file and as a message, alone and in each kind of list, and wants `abcdef` to arrive.
async fn written<B: IoBuf>(buf: B) {
    let (here, there) = pair().await;
    let (sent, buf) = here.write_all(buf).await;
    sent.expect("the peer is there");
    let (received, bytes) = there.read_exact(vec![0; 6]).await;
    received.expect("six bytes were sent");
    assert_eq!(bytes, b"abcdef", "{}", std::any::type_name::<B>());

    let (file, _dir) = file().await;
    let (wrote, buf) = file.write_all_at(buf, 0).await;
    wrote.expect("the disk has room");
    let (wrote, list) = file.write_vectored_at(vec![buf], 6).await;
    assert_eq!(wrote.expect("the disk has room"), 6);
    let (read, bytes) = file.read_at(Vec::with_capacity(64), 0).await;
    assert_eq!((read.expect("it can be read"), &bytes[..]), (12, &b"abcdefabcdef"[..]));

    let [buf] = <[B; 1]>::try_from(list).ok().expect("it comes back");
    let (sent, [buf]) = here.write_vectored([buf]).await;
    assert_eq!(sent.expect("the peer is there"), 6);
    let (sent, (_, buf)) = here.write_vectored(("-", buf)).await;
    assert_eq!(sent.expect("the peer is there"), 7);
    let (received, bytes) = there.read_exact(vec![0; 13]).await;
    received.expect("so much was sent");
    assert_eq!(bytes, b"abcdef-abcdef");

    let (from, to) = datagrams().await;
    let (sent, _buf) = from.send_to(buf, to.local_addr().expect("it is bound")).await;
    assert_eq!(sent.expect("the peer is there"), 6);
    let (received, bytes) = to.recv_from(Vec::with_capacity(64)).await;
    assert_eq!((received.expect("it was sent").0, &bytes[..]), (6, &b"abcdef"[..]));
}

/// Reads into `buf` from a connection, a file and a message, alone and in each kind of list.
async fn read<B: IoBufMut>(buf: B) {
    let (here, there) = pair().await;
    there.write_all(b"abcdef").await.0.expect("the peer is there");
    let (received, buf) = here.read_exact(buf.slice(..6)).await;
    received.expect("six bytes were sent");
    assert_eq!(&buf[..], b"abcdef", "{}", std::any::type_name::<B>());

    let (file, _dir) = file().await;
    file.write_all_at(b"ghijkl", 0).await.0.expect("the disk has room");
    let (read, buf) = file.read_at(buf.into_inner(), 0).await;
    let buf = buf.slice(..6);
    assert_eq!((read.expect("it can be read"), &buf[..]), (6, &b"ghijkl"[..]));
    let (read, list) = file.read_vectored_at(vec![buf], 1).await;
    let [buf] = <[_; 1]>::try_from(list).expect("it comes back");
    assert_eq!((read.expect("it can be read"), &buf[..5]), (5, &b"hijkl"[..]));

    there.write_all(b"-mnopqr").await.0.expect("the peer is there");
    let (read, (first, buf)) = here.read_vectored((Vec::with_capacity(1), buf)).await;
    assert_eq!((read.expect("so much was sent"), &first[..], &buf[..]), (7, &b"-"[..], &b"mnopqr"[..]));
    there.write_all(b"stuvwx").await.0.expect("the peer is there");
    let (read, [buf]) = here.read_vectored([buf]).await;
    assert_eq!((read.expect("so much was sent"), &buf[..]), (6, &b"stuvwx"[..]));

    let (from, to) = datagrams().await;
    from.send_to(b"yz!", to.local_addr().expect("it is bound")).await.0.expect("the peer is there");
    let (received, buf) = to.recv_from(buf).await;
    assert_eq!((received.expect("it was sent").0, &buf[..3]), (3, &b"yz!"[..]));
}

fn filled(mut buf: FixedBuf) -> FixedBuf {
    buf.write_all(b"abcdef").expect("there is room");
    buf
}

// A type that names a wrong address or length sends other bytes than its own.
#[test]
fn every_type_of_buffer_can_be_written_from() {
    runtime().block_on(async {
        let (buddy, hybrid) = (BuddyPool::new(1 << 16), HybridPool::new(1 << 16));
        let (buddy, hybrid) = (buddy.expect("64 KiB can be mapped"), hybrid.expect("64 KiB can be mapped"));
        written(filled(veloq::alloc(4096))).await;
        written(filled(buddy.alloc(100))).await;
        written(filled(hybrid.alloc(100))).await;
        written(filled(FixedBuf::heap(6))).await;
        written(filled(hybrid.alloc(1 << 20))).await;
        written(filled(veloq::alloc(100)).freeze()).await;
        written(filled(veloq::alloc(100)).split_to(6)).await;
        written(b"abcdef".to_vec()).await;
        written(b"abcdef".to_vec().into_boxed_slice()).await;
        written(Box::new(*b"abcdef")).await;
        written(String::from("abcdef")).await;
        written("abcdef").await;
        written(b"abcdef").await;
        written(&b"abcdef"[..]).await;
        written(Arc::<[u8]>::from(&b"abcdef"[..])).await;
        written(Rc::<[u8]>::from(&b"abcdef"[..])).await;
        written("..abcdef..".slice(2..8)).await;
        #[cfg(feature = "bytes")]
        {
            written(bytes::Bytes::from_static(b"abcdef")).await;
            written(bytes::BytesMut::from(&b"abcdef"[..])).await;
            written(bytes::Bytes::from(filled(veloq::alloc(100)))).await;
        }
    });
}

// A type whose length does not follow shows bytes that were not read, or hides some that were.
#[test]
fn every_type_of_buffer_can_be_read_into() {
    runtime().block_on(async {
        let hybrid = HybridPool::new(1 << 16).expect("64 KiB can be mapped");
        read(veloq::alloc(4096)).await;
        read(hybrid.alloc(300)).await;
        read(hybrid.alloc(1 << 20)).await;
        read(FixedBuf::heap(6)).await;
        read(veloq::alloc(100).split_off(7)).await;
        read(Vec::with_capacity(100)).await;
        read(vec![9; 8].into_boxed_slice()).await;
        read(Box::new([9; 8])).await;
        #[cfg(feature = "bytes")]
        read(bytes::BytesMut::with_capacity(100)).await;
    });
}

// A list that is walked in another order, or whose lengths are wrong after a short read, mixes its parts.
#[test]
fn lists_are_written_and_read_in_order() {
    runtime().block_on(async {
        let (here, there) = pair().await;
        let (file, _dir) = file().await;
        let pooled = || filled(veloq::alloc(4096));
        let (wrote, _) = file.write_vectored_at(("ab", pooled(), vec![b'y'], b"z"), 0).await;
        assert_eq!(wrote.expect("the disk has room"), 10);
        let (wrote, _) = here.write_vectored([pooled(), pooled().split_off(3)]).await;
        assert_eq!(wrote.expect("the peer is there"), 9);
        let (wrote, _) = here.write_vectored(vec!["12", "", "3"]).await;
        assert_eq!(wrote.expect("the peer is there"), 3);

        let parts = (veloq::alloc(3), Vec::with_capacity(4), Box::new([0; 2]), veloq::alloc(10));
        let (read, (first, second, third, rest)) = file.read_vectored_at(parts, 0).await;
        assert_eq!(read.expect("it can be read"), 10);
        assert_eq!([&first[..], &second, &third[..], &rest[..]], [&b"aba"[..], b"bcde", b"fy", b"z"]);

        let (read, got) = there.read_exact(vec![0; 12]).await;
        read.expect("twelve bytes were sent");
        assert_eq!(got, b"abcdefdef123");
        here.write_all(b"abcdef").await.0.expect("the peer is there");
        let (read, [first, second, third]) = there.read_vectored([4, 4, 4].map(veloq::alloc)).await;
        assert_eq!(read.expect("six bytes were sent"), 6);
        assert_eq!([&first[..], &second[..], &third[..]], [&b"abcd"[..], b"ef", b""]);
        let (read, list) = file.read_vectored_at(vec![Vec::with_capacity(8), vec![1; 8]], 4).await;
        assert_eq!((read.expect("it can be read"), list), (6, vec![b"cdefyz".to_vec(), Vec::new()]));
    });
}

// What speaks `Read` and `Write` must find every byte once, in order, wherever a buffer ends; and its staging is the pool's, or
// each operation would have its pages looked up.
#[test]
fn what_speaks_read_and_write_is_staged_in_buffers_of_the_pool() {
    runtime().block_on(async {
        let (here, there) = pair().await;
        let lines: Vec<_> = (0..3000usize).map(|n| format!("{n}{}\n", "x".repeat(n % 50))).collect();
        let all = lines.concat().into_bytes();
        let sender = spawn_local(async move {
            for piece in all.chunks(777) {
                let mut staged = veloq::alloc(1024);
                staged.write_all(piece).expect("there is room");
                assert!(cfg!(windows) || staged.registration().is_some(), "Windows registers no memory");
                there.write_all(staged).await.0.expect("the peer reads");
            }
        });
        let (mut read, mut line) = (Vec::new(), Vec::new());
        while read.len() < lines.len() {
            let mut staged = here.recv().await.expect("it is connected");
            assert!((cfg!(windows) || staged.registration().is_some()) && !staged.is_empty());
            while staged.read_until(b'\n', &mut line).expect("it never fails") > 0 && line.ends_with(b"\n") {
                read.push(String::from_utf8(std::mem::take(&mut line)).expect("it was text"));
            }
            assert!(staged.is_empty(), "what is left of it is in the line");
        }
        sender.await.expect("it was all taken");
        assert!(read == lines);
    });
}

/// A waker that is the program's code throughout: whenever it is cloned, woken or dropped it takes a buffer of the pool, and
/// waits in its queue for a moment. It stays on its thread.
fn meddling(pool: &BuddyPool) -> Waker {
    fn meddle(data: *const ()) {
        // SAFETY: each copy of the waker holds a count of the pool's handle, this one among them.
        let pool = unsafe { &*data.cast::<BuddyPool>() };
        drop(pool.try_alloc(4096));
        let mut waits = pin!(pool.alloc_async(4096));
        let _ = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    fn clone(data: *const ()) -> RawWaker {
        meddle(data);
        // SAFETY: as above; the copy has a count of its own from here on.
        unsafe { Rc::increment_strong_count(data.cast::<BuddyPool>()) };
        RawWaker::new(data, &VTABLE)
    }
    fn drop_count(data: *const ()) {
        meddle(data);
        // SAFETY: the waker's own count, which it is at the end of.
        unsafe { Rc::decrement_strong_count(data.cast::<BuddyPool>()) };
    }
    static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, drop_count, meddle, drop_count);
    let data = Rc::into_raw(Rc::new(pool.clone())).cast();
    // SAFETY: the vtable counts handles as `RawWaker` asks. They are not `Send`; the test uses one thread.
    unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
}

// If any of a waker's code ran while the pool's queue is borrowed, that code could not use the pool: it would panic.
#[test]
fn a_wakers_own_code_may_use_the_pool_it_waits_for() {
    let pool = BuddyPool::new(1 << 16).expect("64 KiB can be mapped");
    let all = pool.alloc(1 << 16);
    let [mut first, mut second] = [(); 2].map(|()| Box::pin(pool.alloc_async(1 << 16)));
    for _ in 0..2 {
        // A new waker each time, so that the one before is replaced.
        let waker = meddling(&pool);
        assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(second.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    drop(first);
    drop(all);
    assert!(second.as_mut().poll(&mut Context::from_waker(&meddling(&pool))).is_ready());
    drop(second);
    assert_eq!((pool.stats().waiting, pool.stats().blocks_out), (0, 0));
}

// A connection that sees another's mark has seen another's bytes: a length that was not set back, a range that reaches into
// the spare, a buffer that came home while the kernel still wrote.
#[test]
fn a_recycled_buffer_shows_nothing_of_its_former_lives() {
    let recycles = std::env::var("VELOQ_RECYCLES").map_or(RECYCLES, |n| n.parse().expect("a number"));
    for kind in [PoolKind::Buddy, PoolKind::Hybrid] {
        // So little that every block is used by everyone.
        let mut pool = PoolConfig::default();
        (pool.kind, pool.bytes, pool.chunks_max) = (kind, 1 << 18, 1);
        let mut driver = veloq::io::driver::DriverConfig::default();
        (driver.receive_buffers, driver.receive_buffer_bytes) = (8, 4096);
        let builder = Builder::new().workers(1).pin(false).driver(driver).pool(pool);
        builder.build().expect("this kernel has io_uring").block_on(async {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (elsewhere, drops) = mpsc::channel::<FixedBuf>();
            let dropper = thread::spawn(move || drops.into_iter().for_each(drop));
            let each = recycles / 2 / u64::from(CONNECTIONS);
            let all: Vec<_> = (1..=CONNECTIONS)
                .map(|mark| {
                    let (path, elsewhere) = (dir.path().join(mark.to_string()), elsewhere.clone());
                    spawn_local(async move { connection(mark, each, &path, elsewhere).await })
                })
                .collect();
            let mut met = [0; KINDS];
            for task in all {
                let counts = task.await.expect("a connection sees its own bytes only");
                met.iter_mut().zip(counts).for_each(|(met, count)| *met += count);
            }
            drop(elsewhere);
            dropper.join().expect("dropping does not panic");
            assert!(met.iter().all(|&count| count > recycles / 200), "a void run: {met:?}");
            eprintln!("{kind:?}: short, empty, failed, timed out, dropped and picked reads: {met:?}");
        });
    }
}

/// Connections, each with a task and a mark: the upper four bits of all its bytes.
const CONNECTIONS: u8 = 12;

/// Kinds of reads.
const KINDS: usize = 6;

/// What one connection does. Returns how many reads of each kind it made.
async fn connection(mark: u8, rounds: u64, path: &Path, elsewhere: mpsc::Sender<FixedBuf>) -> [u64; KINDS] {
    let (here, there) = pair().await;
    let (ended, peer) = pair().await;
    peer.shutdown(Shutdown::Write).await.expect("the connection is there");
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    let write_only = options.open(path).await.expect("a file can be made");
    let own = options.read(true).open(path).await.expect("the file is there");
    own.write_all_at(vec![mark << 4 | 2; 100], 0).await.0.expect("the disk has room");
    let mut met = [0; KINDS];
    let mut state = u64::from(mark);
    let mut chance = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    for _ in 0..rounds {
        let kind = chance(KINDS);
        met[kind] += 1;
        let sent = chance(300) + 1;
        // Its own last bytes all over the block, for whoever has it next.
        let mut secret = veloq::alloc(4096);
        check(&secret, mark);
        secret.resize(4096, mark << 4 | 5);
        if chance(4) == 0 {
            elsewhere.send(secret).expect("the thread is there");
        } else {
            drop(secret);
        }
        let buf = veloq::alloc([256, 4096, 10_000][chance(3)]);
        check(&buf, mark);
        let buf = match kind {
            // Short: less arrives than there is room for.
            0 => {
                there.write_all(vec![mark << 4 | 1; sent]).await.0.expect("the connection is there");
                let (read, buf) = here.read(buf).await;
                assert_eq!(read.expect("something was sent"), buf.len());
                buf
            }
            // Empty: the peer has ended.
            1 => {
                let (read, buf) = ended.read(buf).await;
                assert_eq!((read.expect("an end is no error"), buf.len()), (0, 0));
                buf
            }
            // Failed: the file cannot be read.
            2 => {
                let (read, buf) = write_only.read_at(buf, 0).await;
                assert!(read.is_err() && buf.is_empty());
                buf
            }
            // Cancelled by its deadline, or answered just before: the buffer comes back either way.
            3 => {
                let (read, buf) = own.read_at(buf, 0).deadline(Duration::ZERO).await;
                assert!(read.is_ok_and(|read| read == buf.len()) || buf.is_empty());
                buf
            }
            // Dropped when it waits, or when its answer has come: the buffer goes home by itself.
            4 => {
                {
                    let mut reading = pin!(here.read(buf));
                    poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_ready())).await;
                    if chance(2) == 0 {
                        there.write_all(vec![mark << 4 | 3; sent]).await.0.expect("the connection is there");
                    }
                }
                veloq::alloc(4096)
            }
            // A buffer that the kernel picked.
            _ => {
                drop(buf);
                there.write_all(vec![mark << 4 | 4; sent]).await.0.expect("the connection is there");
                here.recv().await.expect("something was sent")
            }
        };
        check(&buf, mark);
        consume(buf, mark, chance(6));
    }
    met
}

/// Whatever is shown bears the mark.
fn check(bytes: &[u8], mark: u8) {
    let foreign = bytes.iter().position(|byte| byte >> 4 != mark);
    assert_eq!(foreign, None, "connection {mark} sees {:?}", foreign.map(|at| bytes[at]));
}

/// Looks at a buffer by every safe call.
fn consume(mut buf: FixedBuf, mark: u8, how: usize) {
    let shown = format!("{buf:?}");
    let (len, capacity) = (buf.len(), buf.capacity());
    let expected = format!("FixedBuf {{ len: {len}, capacity: {capacity}, registered: ");
    assert!(shown.starts_with(&expected), "{shown}");
    match how {
        0 => {
            let shared = buf.freeze();
            let copy = shared.clone();
            drop(shared);
            check(&copy, mark);
            check(&copy.part(len / 2..), mark);
            assert!(!format!("{copy:?}").contains('['));
            drop(copy.try_unfreeze().expect("the only one").split_off(len / 3));
        }
        1 => {
            let slice = buf.slice(len / 2..);
            check(&slice, mark);
            assert!(!format!("{slice:?}").contains('['));
            check(&slice.into_inner(), mark);
        }
        2 => {
            let rest = buf.split_off(len / 2);
            check(&rest, mark);
            check(&buf, mark);
            buf.clear();
            check(&buf, mark);
        }
        3 => {
            buf.advance(len / 2);
            check(&buf, mark);
            buf.clear();
            buf.extend_from_slice(&vec![mark << 4; capacity / 2]);
            buf.resize(capacity, mark << 4);
            check(&buf, mark);
        }
        4 => {
            let first = buf.split_to(len);
            check(&first, mark);
            check(&buf, mark);
        }
        _ => {
            #[cfg(feature = "bytes")]
            check(&bytes::Bytes::from(buf), mark);
        }
    }
}

/// The system's allocator, which counts, of allocations for a buffer of one size, the bytes of a secret that are in them when they
/// come back.
struct Watching;

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The capacity of the buffers that are looked at.
static WATCHED: AtomicUsize = AtomicUsize::new(0);
/// How many were, and the secret's bytes in them.
static LOOKED_AT: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// The secret.
const SECRET: u8 = 0xEE;

/// A buffer's allocation may be a page larger, for the alignment.
fn is_watched(layout: Layout) -> bool {
    let watched = WATCHED.load(Ordering::Relaxed);
    watched > 0 && [watched, watched + 4096].contains(&layout.size())
}

// SAFETY: the system's allocator, but for a look.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises, passed on. What is looked at later is initialised by this.
        unsafe { if is_watched(layout) { System.alloc_zeroed(layout) } else { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_watched(layout) {
            // SAFETY: the block was zeroed by `alloc` and is the caller's until it has been given back.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            LOOKED_AT[0].fetch_add(1, Ordering::Relaxed);
            LOOKED_AT[1].fetch_add(bytes.iter().filter(|&&byte| byte == SECRET).count(), Ordering::Relaxed);
        }
        // SAFETY: the caller's promises, passed on.
        unsafe { System.dealloc(block, layout) };
    }
}

// What a pool cannot give comes from the heap, where a secret that stays is in the next core dump as well. The allocator looks, since
// nobody else may: whether the compiler has left the zeroes out, as nobody reads them before the memory is given back, shows there alone.
#[test]
fn a_pool_that_zeroes_does_so_with_what_came_from_the_heap() {
    let mut config = PoolConfig::default();
    (config.bytes, config.chunks_max) = (1 << 16, 1);
    for zeroes in [true, false] {
        config.zero_on_recycle = zeroes;
        let buddy = BuddyPool::with_config(&config).expect("64 KiB can be mapped");
        let hybrid = HybridPool::with_config(&config).expect("64 KiB can be mapped");
        let _all = buddy.alloc(1 << 16);
        let pools: [(&dyn BufPool, usize); 2] = [(&buddy, 3_777), (&hybrid, 77_777)];
        for (pool, capacity) in pools {
            WATCHED.store(capacity, Ordering::Relaxed);
            LOOKED_AT.iter().for_each(|count| count.store(0, Ordering::Relaxed));
            let mut secret = pool.alloc(capacity);
            secret.resize(capacity, SECRET);
            let rest = secret.split_off(1_000);
            drop(secret);
            thread::spawn(move || drop(rest)).join().expect("dropping does not panic");
            WATCHED.store(0, Ordering::Relaxed);
            let [buffers, left] = LOOKED_AT.each_ref().map(|count| count.load(Ordering::Relaxed));
            assert_eq!((pool.stats().misses, buffers), (1, 1), "void: it did not come from the heap");
            // An address that is noted beside the buffer may have such bytes.
            assert!(if zeroes { left <= 8 } else { left >= capacity }, "{left} bytes of the secret are left");
        }
        // Elsewhere it depends on the moment where a socket keeps what it was sent.
        if !cfg!(target_os = "linux") {
            continue;
        }
        let left = left_by_a_stash(&config);
        assert!(
            if zeroes { left <= 8 } else { left >= 5_555 },
            "{left} bytes of the secret are left by a stash"
        );
    }
}

/// Bytes of a secret that are left when it has waited in a socket: it came for a `recv` that was dropped, and was set aside for a
/// `read` of less.
fn left_by_a_stash(config: &PoolConfig) -> usize {
    const BYTES: usize = 5_555;
    let mut config = config.clone();
    config.bytes = 4 << 20;
    let builder = Builder::new().workers(1).pin(false).pool(config);
    builder.build().expect("this kernel has io_uring").block_on(async {
        let (here, there) = pair().await;
        {
            let mut receiving = pin!(here.recv());
            poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx).is_pending())).await;
            there.write_all(vec![SECRET; BYTES]).await.0.expect("the peer is there");
        }
        WATCHED.store(BYTES, Ordering::Relaxed);
        LOOKED_AT.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        let (read, byte) = here.read_exact(vec![0]).await;
        assert_eq!((read.ok(), &byte[..]), (Some(()), &[SECRET][..]));
        drop(here);
        WATCHED.store(0, Ordering::Relaxed);
    });
    let [buffers, left] = LOOKED_AT.each_ref().map(|count| count.load(Ordering::Relaxed));
    assert_eq!(buffers, 1, "void: nothing waited");
    left
}

// A pool of a worker that does not grow, or that cannot be waited for, would make programs bring their own.
#[test]
fn a_workers_pool_can_be_waited_for() {
    let mut pool = PoolConfig::default();
    (pool.bytes, pool.chunks_max) = (1 << 16, 1);
    let mut driver = veloq::io::driver::DriverConfig::default();
    driver.receive_buffers = 0;
    let builder = Builder::new().workers(1).pin(false).driver(driver).pool(pool);
    builder
        .build()
        .expect("this kernel has io_uring")
        .block_on(async {
            let all = veloq::alloc(1 << 16);
            let waiters: Vec<_> =
                (0..4).map(|_| spawn_local(async { veloq::alloc_async(1 << 15).await.capacity() })).collect();
            // On a thread of its own, while the worker has nothing to do and sleeps.
            thread::spawn(move || drop(all));
            for waiter in waiters {
                assert_eq!(waiter.await.expect("no panic"), 1 << 15);
            }
            Ok::<(), io::Error>(())
        })
        .expect("nothing failed");
}

// A worker's only chunk holds its receive ring, which does not come back while the worker lives: whoever waited for all of the chunk
// would wait for ever.
#[test]
fn what_a_workers_only_chunk_can_never_give_comes_from_the_heap_at_once() {
    for kind in [PoolKind::Buddy, PoolKind::Hybrid] {
        let mut config = PoolConfig::default();
        // As large as the largest buffer of either kind.
        (config.kind, config.bytes, config.chunks_max) = (kind, 64 << 10, 1);
        let runtime = Builder::new().workers(1).pin(false).pool(config).build();
        let runtime = runtime.expect("this kernel has io_uring");
        let has_ring = runtime.capabilities()[0].has("receive_ring");
        runtime.block_on(async move {
            let mut waits = pin!(veloq::alloc_async(64 << 10));
            let taken = poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx))).await;
            let Poll::Ready(taken) = taken else { panic!("a {kind:?} pool has it wait for ever") };
            assert_eq!(taken.capacity(), 64 << 10);
            let buddy = kind == PoolKind::Buddy;
            assert!(
                !(buddy && has_ring) || veloq::alloc_async(32 << 10).await.capacity() == 32 << 10,
                "half is there"
            );
        });
    }
}
