//! Both pools against a model in which nothing is known but who has which bytes.
//!
//! Buffers are taken, waited for, filled, split and frozen, and dropped here or on another thread, in any order; chunks come and go.
//! What could go wrong: two buffers share a byte, a block is lost or never joined again, a pool says no although it has room or grows
//! although it need not, a waiter sleeps although there is room for it, a count drifts.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use veloq::io::buf::{AllocAsync, BuddyPool, BufPool, FixedBuf, HybridPool, IoBuf, PoolConfig, SharedBuf};

/// The smallest chunk, which begins at a multiple of its size, as does one of 2 MiB. So an address says which chunk it is of.
const SMALL: usize = 64 << 10;
const LARGE: usize = 2 << 20;
/// What a hybrid pool's slabs are cut from.
const SLAB: usize = 64 << 10;
const HEAP_MAX: usize = 300_000;
/// Buffers of one step: as many as the most divided slab has.
const FILL_MAX: usize = 256;

#[derive(Arbitrary, Debug)]
struct Case {
    hybrid: bool,
    /// Of which few are large: they take longer to map than everything else takes.
    chunks: u8,
    chunks_max: u8,
    zero_on_recycle: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// From the pool or the heap.
    Alloc {
        size: u32,
        shift: u8,
    },
    /// From the pool, or nothing.
    TryAlloc {
        size: u32,
        shift: u8,
    },
    /// As many from the pool as there are.
    Fill {
        size: u32,
        shift: u8,
    },
    /// Waits, and is polled at once.
    Wait {
        size: u32,
        shift: u8,
    },
    PollWaiter(u8),
    DropWaiter(u8),
    Drop(u8),
    DropElsewhere(u8),
    Split {
        which: u8,
        at: u16,
    },
    Freeze(u8),
    Reclaim,
    Stats,
}

/// Sizes of every magnitude.
fn size(size: u32, shift: u8) -> usize {
    (size as usize % (2 * SMALL + 2) >> (shift % 18)) + 1
}

/// What is known without looking into the pool.
struct Model {
    hybrid: bool,
    chunk: usize,
    chunks_max: usize,
    chunks: usize,
    /// By address, how many bytes each block that is lent takes up.
    lent: BTreeMap<usize, usize>,
    heap_bytes: usize,
    hits: u64,
    misses: u64,
}

impl Model {
    /// What a buffer of the pool takes up, if a chunk can hold it.
    fn block(&self, size: usize) -> Option<usize> {
        let (least, most) = if self.hybrid { (256, SLAB) } else { (4096, self.chunk) };
        Some(size.next_power_of_two().max(least)).filter(|&block| block <= most)
    }

    /// Whether one of the chunks that there are has room for a block.
    fn has_room(&self, block: usize) -> bool {
        // What is divided up: whole chunks by halving, or slabs of one size of piece each.
        let unit = if self.hybrid { SLAB } else { self.chunk };
        let mut used: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (&address, &bytes) in &self.lent {
            used.entry(address - address % unit).or_default().push((address, bytes));
        }
        self.chunks * self.chunk / unit > used.len()
            || used.iter().any(|(&base, lent)| {
                if self.hybrid {
                    return lent[0].1 == block && lent.len() < SLAB / block;
                }
                let mut pages = vec![false; unit / 4096];
                for (at, bytes) in lent {
                    pages[(at - base) / 4096..(at - base + bytes) / 4096].fill(true);
                }
                pages.chunks_exact(block / 4096).any(|run| !run.contains(&true))
            })
    }

    /// Whether the pool could give this now, with another chunk if need be.
    fn can_give(&self, size: usize) -> bool {
        match self.block(size) {
            Some(block) => self.has_room(block) || self.chunks < self.chunks_max,
            None => self.hybrid && self.heap_bytes + size <= HEAP_MAX,
        }
    }

    /// Whether it could if all of it were free.
    fn could_give(&self, size: usize) -> bool {
        self.block(size).is_some() || (self.hybrid && size <= HEAP_MAX)
    }

    /// Notes a buffer that the pool gave, as it may.
    fn give(&mut self, size: usize, buf: &FixedBuf) -> Home {
        let Some(block) = self.block(size) else { return self.heap(size) };
        self.hits += 1;
        if !self.has_room(block) {
            self.chunks += 1;
        }
        let address = buf.io_ptr().addr();
        assert_eq!(address % block.min(if self.hybrid { SLAB } else { 4096 }), 0, "a block of {block}");
        let before = self.lent.range(..address + block).next_back();
        assert!(before.is_none_or(|(&at, &bytes)| at + bytes <= address), "two buffers share a byte");
        self.lent.insert(address, block);
        Home::Block(address)
    }

    fn heap(&mut self, size: usize) -> Home {
        self.misses += 1;
        self.heap_bytes += size;
        Home::Heap(size)
    }

    fn take_back(&mut self, home: Home) {
        match home {
            Home::Block(address) => drop(self.lent.remove(&address).expect("it was lent")),
            Home::Heap(size) => self.heap_bytes -= size,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Home {
    Block(usize),
    Heap(usize),
}

/// A buffer, what each of its bytes is, and where its memory goes when the last part is gone.
struct Held {
    bytes: Bytes,
    mark: u8,
    home: Rc<Home>,
}

enum Bytes {
    Fixed(FixedBuf),
    Shared(SharedBuf),
}

impl Held {
    fn check(&self) {
        let bytes: &[u8] = match &self.bytes {
            Bytes::Fixed(buf) => buf,
            Bytes::Shared(buf) => buf,
        };
        assert!(bytes.iter().all(|byte| *byte == self.mark), "a foreign byte");
    }
}

struct Waiter {
    future: Pin<Box<AllocAsync>>,
    size: usize,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A thread that drops what it is sent, and says so.
static ELSEWHERE: LazyLock<Mutex<(Sender<Bytes>, Receiver<()>)>> = LazyLock::new(|| {
    let (send, receive) = channel::<Bytes>();
    let (done, is_done) = channel();
    thread::spawn(move || {
        for bytes in receive {
            drop(bytes);
            done.send(()).expect("somebody waits");
        }
    });
    Mutex::new((send, is_done))
});

fn drop_elsewhere(bytes: Bytes) {
    let elsewhere = ELSEWHERE.lock().expect("nobody panics while it is locked");
    elsewhere.0.send(bytes).expect("the thread is there");
    elsewhere.1.recv().expect("the thread is there");
}

fn run(case: Case) {
    let mut config = PoolConfig::default();
    config.bytes = if case.chunks < 16 { LARGE } else { SMALL };
    config.chunks_max = usize::from(case.chunks_max) % 4 + 1;
    config.heap_bytes_max = HEAP_MAX;
    config.zero_on_recycle = case.zero_on_recycle;
    let pool = if case.hybrid {
        Pool::Hybrid(HybridPool::with_config(&config).expect("it can be mapped"))
    } else {
        Pool::Buddy(BuddyPool::with_config(&config).expect("it can be mapped"))
    };
    drive(&pool, &config, case);
    // Buffers of a pool that is gone take its memory with them.
    let last: Vec<_> = (0..3).map(|_| Bytes::Fixed(pool.any().alloc(256))).collect();
    drop(pool);
    last.into_iter().for_each(drop_elsewhere);
}

enum Pool {
    Buddy(BuddyPool),
    Hybrid(HybridPool),
}

impl Pool {
    fn any(&self) -> &dyn BufPool {
        match self {
            Pool::Buddy(pool) => pool,
            Pool::Hybrid(pool) => pool,
        }
    }

    fn reclaim(&self) -> usize {
        match self {
            Pool::Buddy(pool) => pool.reclaim(),
            Pool::Hybrid(pool) => pool.reclaim(),
        }
    }
}

fn drive(handle: &Pool, config: &PoolConfig, case: Case) {
    let pool = handle.any();
    let mut model = Model {
        hybrid: case.hybrid,
        chunk: config.bytes,
        chunks_max: config.chunks_max,
        chunks: 1,
        lent: BTreeMap::new(),
        heap_bytes: 0,
        hits: 0,
        misses: 0,
    };
    let mut held: Vec<Held> = Vec::new();
    let mut waiters: Vec<Waiter> = Vec::new();
    let mut marks = (0u8..=255).cycle();
    for step in case.steps {
        let mut took = |home: Home, size: usize, mut buf: FixedBuf| {
            assert_eq!((buf.len(), buf.capacity()), (0, size));
            let mark = marks.next().expect("endless");
            buf.resize(size, mark);
            held.push(Held { bytes: Bytes::Fixed(buf), mark, home: Rc::new(home) });
        };
        match step {
            Step::Alloc { size: bytes, shift } => {
                let size = size(bytes, shift);
                let gives = waiters.is_empty() && model.can_give(size);
                let buf = pool.alloc(size);
                let home = if gives { model.give(size, &buf) } else { model.heap(size) };
                took(home, size, buf);
            }
            Step::TryAlloc { size: bytes, shift } => {
                let size = size(bytes, shift);
                let buf = pool.try_alloc(size);
                assert_eq!(buf.is_some(), waiters.is_empty() && model.can_give(size), "{size} bytes");
                if let Some(buf) = buf {
                    took(model.give(size, &buf), size, buf);
                }
            }
            Step::Fill { size: bytes, shift } => {
                let size = size(bytes, shift);
                for _ in 0..FILL_MAX {
                    let Some(buf) = pool.try_alloc(size) else {
                        assert!(!waiters.is_empty() || !model.can_give(size), "{size} bytes");
                        break;
                    };
                    took(model.give(size, &buf), size, buf);
                }
            }
            Step::Wait { size: bytes, shift } => {
                let size = size(bytes, shift);
                let (gives, could) = (waiters.is_empty() && model.can_give(size), model.could_give(size));
                let mut waiter =
                    Waiter { future: Box::pin(pool.alloc_async(size)), size, woken: Arc::default() };
                match poll(&mut waiter) {
                    Some(buf) if could => {
                        assert!(gives, "it overtook, or took what is not there");
                        took(model.give(size, &buf), size, buf);
                    }
                    Some(buf) => took(model.heap(size), size, buf),
                    None => {
                        assert!(could && !gives, "there was room for {size} bytes");
                        waiters.push(waiter);
                    }
                }
            }
            Step::PollWaiter(which) if !waiters.is_empty() => {
                let at = usize::from(which) % waiters.len();
                let size = waiters[at].size;
                let gives = at == 0 && model.can_give(size);
                let buf = poll(&mut waiters[at]);
                assert_eq!(buf.is_some(), gives, "waiter {at}");
                if let Some(buf) = buf {
                    drop(waiters.remove(at));
                    took(model.give(size, &buf), size, buf);
                }
            }
            Step::DropWaiter(which) if !waiters.is_empty() => {
                drop(waiters.remove(usize::from(which) % waiters.len()));
            }
            Step::Drop(which) | Step::DropElsewhere(which) if !held.is_empty() => {
                let gone = held.swap_remove(usize::from(which) % held.len());
                gone.check();
                if matches!(step, Step::Drop(_)) {
                    drop(gone.bytes);
                } else {
                    drop_elsewhere(gone.bytes);
                }
                if let Some(home) = Rc::into_inner(gone.home) {
                    model.take_back(home);
                }
            }
            Step::Split { which, at } if !held.is_empty() => {
                let which = usize::from(which) % held.len();
                let (mark, home) = (held[which].mark, Rc::clone(&held[which].home));
                let rest = match &mut held[which].bytes {
                    Bytes::Fixed(buf) => {
                        let at = usize::from(at) % (buf.capacity() + 1);
                        // Nothing is left of a buffer for a part without room, which is the heap's.
                        if at == buf.capacity() { None } else { Some(Bytes::Fixed(buf.split_off(at))) }
                    }
                    Bytes::Shared(buf) => Some(Bytes::Shared(buf.part(usize::from(at) % (buf.len() + 1)..))),
                };
                held.extend(rest.map(|bytes| Held { bytes, mark, home }));
            }
            Step::Freeze(which) if !held.is_empty() => {
                let which = usize::from(which) % held.len();
                let Held { bytes, mark, home } = held.swap_remove(which);
                let bytes = match bytes {
                    Bytes::Fixed(buf) => Bytes::Shared(buf.freeze()),
                    Bytes::Shared(buf) => match buf.try_unfreeze() {
                        Ok(buf) => Bytes::Fixed(buf),
                        Err(buf) => Bytes::Shared(buf),
                    },
                };
                held.push(Held { bytes, mark, home });
            }
            Step::Reclaim => {
                handle.reclaim();
                // How long a spare stays is the pool's business; that it goes only when it is idle is not.
                model.chunks = pool.stats().chunks;
                let lent: BTreeSet<_> = model.lent.keys().map(|at| at - at % model.chunk).collect();
                assert!(model.chunks >= lent.len().max(1));
            }
            Step::Stats => compare(&model, pool, waiters.len()),
            _ => {}
        }
        if let Some(first) = waiters.first() {
            let woken = first.woken.0.load(Ordering::SeqCst);
            assert!(woken || !model.can_give(first.size), "the first sleeps, and there is room for it");
        }
    }
    drop(waiters);
    held.iter().for_each(Held::check);
    compare(&model, pool, 0);
    for gone in held {
        drop(gone.bytes);
        if let Some(home) = Rc::into_inner(gone.home) {
            model.take_back(home);
        }
    }
    compare(&model, pool, 0);
    assert!(model.lent.is_empty() && model.heap_bytes == 0);
}

fn poll(waiter: &mut Waiter) -> Option<FixedBuf> {
    waiter.woken.0.store(false, Ordering::SeqCst);
    let waker = Waker::from(Arc::clone(&waiter.woken));
    match waiter.future.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(buf) => Some(buf),
        Poll::Pending => None,
    }
}

/// The pool's own figures are the model's.
fn compare(model: &Model, pool: &dyn BufPool, waiting: usize) {
    let stats = pool.stats();
    let arena = model.chunks * model.chunk;
    assert_eq!((stats.chunks, stats.arena_bytes), (model.chunks, arena));
    assert_eq!(stats.blocks_out, model.lent.len());
    assert_eq!(stats.free_bytes, arena - model.lent.values().sum::<usize>());
    assert_eq!((stats.hits, stats.misses), (model.hits, model.misses));
    assert_eq!((stats.heap_bytes, stats.waiting), (model.heap_bytes, waiting));
    let orders = (8..=21).rev().map(|order| 1usize << order);
    let largest =
        orders.filter(|&block| model.block(block) == Some(block)).find(|&block| model.has_room(block));
    assert_eq!(stats.free_largest_bytes, largest.unwrap_or(0));
}

fuzz_target!(|case: Case| run(case));
