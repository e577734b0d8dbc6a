//! What a buffer costs, beside what else there is: `cargo bench --bench buffers`.
//!
//! `alloc_and_free` takes a buffer of a size and drops it, over and over, on one thread: from both pools, from the heap as a
//! `FixedBuf`, as a `Vec` from the system's allocator, from mimalloc, and from a plain list of boxes that were dropped.
//! `turn` takes 32 and drops all, as a turn of a worker does. `free_elsewhere` drops them on another thread, 1,024 at a time.
//! `read_4_kib` reads pages of a cached file, 32 at once, into buffers that the kernel knows and into others.
//!
//! Look at the items per second, and at those of one run beside each other: they belong to the machine. A buffer of a pool is
//! page-aligned from 4 KiB up and known to the kernel; a `Vec` is neither.
#![expect(unsafe_code, reason = "an allocator is called by hand")]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::mpsc;
use std::thread;

use divan::Bencher;
use divan::counter::ItemsCount;
use futures_util::future::join_all;
#[cfg(target_os = "linux")]
use mimalloc::MiMalloc;
use veloq::fs::File;
use veloq::io::buf::{BuddyPool, BufPool, FixedBuf, HybridPool, IoBuf};
use veloq::runtime::{Builder, Runtime};

/// It is written in C, and not built elsewhere: there its row is once more the system's.
#[cfg(not(target_os = "linux"))]
use std::alloc::System as MiMalloc;

/// Reads of one sample, and those that are under way at once.
const READS: u64 = 64_000;
const AT_ONCE: usize = 32;

/// Pages of the file that is read, which the page cache holds.
const PAGES: usize = 1024;

/// Buffers of one sample: so many that the sample's own cost does not count.
const BUFFERS: u64 = 20_000;

/// Buffers that a turn holds at once.
const TURN: usize = 32;

/// Buffers that go to another thread at once.
const BATCH: usize = 1024;

const SIZES: [usize; 5] = [256, 2048, 4096, 65_536, 1 << 20];

fn main() {
    divan::main();
}

/// Where buffers come from.
trait Source {
    type Buf: Send + 'static;
    fn new() -> Self;
    fn alloc(&self, size: usize) -> Self::Buf;
}

impl Source for BuddyPool {
    type Buf = FixedBuf;
    fn new() -> BuddyPool {
        BuddyPool::new(64 << 20).expect("64 MiB can be mapped")
    }
    fn alloc(&self, size: usize) -> FixedBuf {
        BufPool::alloc(self, size)
    }
}

impl Source for HybridPool {
    type Buf = FixedBuf;
    fn new() -> HybridPool {
        HybridPool::new(64 << 20).expect("64 MiB can be mapped")
    }
    fn alloc(&self, size: usize) -> FixedBuf {
        BufPool::alloc(self, size)
    }
}

/// A `FixedBuf` without a pool.
struct Heap;

impl Source for Heap {
    type Buf = FixedBuf;
    fn new() -> Heap {
        Heap
    }
    fn alloc(&self, size: usize) -> FixedBuf {
        FixedBuf::heap(size)
    }
}

/// What a program without a pool does.
struct Vector;

impl Source for Vector {
    type Buf = Vec<u8>;
    fn new() -> Vector {
        Vector
    }
    fn alloc(&self, size: usize) -> Vec<u8> {
        Vec::with_capacity(size)
    }
}

/// The same, from mimalloc, without being the program's allocator.
struct Mi;

struct MiBuf(*mut u8, Layout);

// SAFETY: the memory is this value's alone, and mimalloc takes it back on any thread.
unsafe impl Send for MiBuf {}

impl Drop for MiBuf {
    fn drop(&mut self) {
        // SAFETY: this is what `alloc` returned for the layout.
        unsafe { MiMalloc.dealloc(self.0, self.1) };
    }
}

impl Source for Mi {
    type Buf = MiBuf;
    fn new() -> Mi {
        Mi
    }
    fn alloc(&self, size: usize) -> MiBuf {
        let layout = Layout::from_size_align(size, 1).expect("a size of a buffer");
        // SAFETY: the layout is not of size zero.
        MiBuf(unsafe { MiMalloc.alloc(layout) }, layout)
    }
}

/// The simplest pool: a list of boxes of one size. It knows no other threads, so it is left out where they are.
struct List;

/// Goes back to the list of its thread.
struct Listed(Box<[u8]>);

thread_local! {
    static LIST: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

impl Source for List {
    type Buf = Listed;
    fn new() -> List {
        LIST.take();
        List
    }
    fn alloc(&self, size: usize) -> Listed {
        let dropped = LIST.with_borrow_mut(Vec::pop);
        Listed(dropped.unwrap_or_else(|| vec![0; size].into_boxed_slice()))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        LIST.with_borrow_mut(|list| list.push(std::mem::take(&mut self.0)));
    }
}

#[divan::bench(types = [BuddyPool, HybridPool, Heap, Vector, Mi, List], args = SIZES, sample_count = 30, sample_size = 1)]
fn alloc_and_free<S: Source>(bencher: Bencher<'_, '_>, size: usize) {
    let source = S::new();
    bencher.counter(ItemsCount::new(BUFFERS)).bench_local(|| {
        for _ in 0..BUFFERS {
            let buf = source.alloc(black_box(size));
            black_box(&buf);
        }
    });
}

#[divan::bench(types = [BuddyPool, HybridPool, Heap, Vector, Mi, List], args = SIZES, sample_count = 30, sample_size = 1)]
fn turn<S: Source>(bencher: Bencher<'_, '_>, size: usize) {
    let source = S::new();
    let mut held = Vec::with_capacity(TURN);
    bencher.counter(ItemsCount::new(BUFFERS)).bench_local(|| {
        for _ in 0..BUFFERS / TURN as u64 {
            held.extend((0..TURN).map(|_| source.alloc(black_box(size))));
            black_box(&mut held).clear();
        }
    });
}

#[divan::bench(types = [BuddyPool, HybridPool, Heap, Vector, Mi], args = [256, 4096])]
fn free_elsewhere<S: Source>(bencher: Bencher<'_, '_>, size: usize) {
    let source = S::new();
    // The vector goes back and forth, so that no batch allocates one.
    let (lend, lent) = mpsc::sync_channel::<Vec<S::Buf>>(1);
    let (give_back, back) = mpsc::sync_channel(1);
    let other = thread::spawn(move || {
        for mut bufs in lent {
            bufs.clear();
            if give_back.send(bufs).is_err() {
                break;
            }
        }
    });
    let mut empty = Vec::with_capacity(BATCH);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        let mut bufs = std::mem::take(&mut empty);
        bufs.extend((0..BATCH).map(|_| source.alloc(black_box(size))));
        lend.send(bufs).expect("the thread is there");
        empty = back.recv().expect("the thread is there");
    });
    drop(lend);
    other.join().expect("dropping does not panic");
}

/// Reads pages of a cached file into buffers that `alloc` makes once.
fn read_pages(bencher: Bencher<'_, '_>, registered: bool, alloc: fn(usize) -> FixedBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("pages");
    std::fs::write(&path, vec![7; 4096 * PAGES]).expect("the disk has room");
    let runtime = || Builder::new().workers(1).build().expect("this kernel has io_uring");
    bencher.counter(ItemsCount::new(READS)).with_inputs(runtime).bench_local_values(|runtime: Runtime| {
        runtime.block_on(async {
            let file = File::open(&path).await.expect("it was written");
            let mut bufs: Vec<_> = (0..AT_ONCE).map(|_| alloc(4096)).collect();
            assert!(bufs.iter().all(|buf| buf.registration().is_some() == registered));
            let mut page = 0;
            for _ in 0..READS / AT_ONCE as u64 {
                let reads = join_all(bufs.drain(..).map(|buf| {
                    page = (page + 37) % PAGES as u64;
                    file.read_at(buf, page * 4096)
                }));
                bufs =
                    reads.await.into_iter().map(|(read, buf)| (read.expect("it is there"), buf).1).collect();
            }
        });
    });
}

/// The kernel goes by index (`READ_FIXED`).
#[divan::bench(sample_count = 30)]
fn read_4_kib_registered(bencher: Bencher<'_, '_>) {
    read_pages(bencher, true, veloq::alloc);
}

/// The kernel looks the page up (`READ`).
#[divan::bench(sample_count = 30)]
fn read_4_kib_plain(bencher: Bencher<'_, '_>) {
    read_pages(bencher, false, FixedBuf::heap);
}
