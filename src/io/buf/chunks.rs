//! The pool itself: a row of arenas, which grows and shrinks.
//!
//! A pool begins with one arena, its first *chunk*, and keeps it. When a buffer finds no room in any, the pool maps another
//! of the same size, up to [`PoolConfig::chunks_max`].
//!
//! **Which chunk serves.** The one that served last is asked first, and when it has nothing the others, oldest first. At
//! each [`reclaim`](Pool::reclaim), once a turn, the oldest becomes the first to be asked again. So use gathers in the old
//! chunks and the young ones run empty, while within a turn nobody looks twice through those that are full.
//!
//! **When a chunk goes.** Of the chunks that the pool grew by, at most one stays when nothing of it is lent: the *spare*.
//! Further ones go at the next look; the spare goes when it was not needed for [`SPARE_LOOKS`] looks in a row. To go is to
//! be closed like the arena of a pool that is dropped, so it is unmapped when the last that holds it lets go.
//!
//! **How the kernel learns of it.** Growing happens inside of `alloc`, which may be called from anywhere, so the pool calls
//! nobody up. A driver that wants to know [watches](Pool::watch), and from then on each coming and going is noted
//! ([`ChunkChange`]). It takes the notes when it likes, once a turn, and updates its table:
//!
//! ```text
//!   grow ─▶ Came(hold) ─▶ registered under an index, hold kept ··· idle ─▶ Went(id) ─▶ table entry emptied, hold dropped ─▶ unmapped
//! ```
//!
//! Until it is registered a chunk's buffers travel as plain memory. The kernel cannot be using a chunk that goes: every
//! operation owns its buffer until its terminal completion, and none of the chunk's is alive.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;

use super::arena::ArenaRef;
use super::atomic_waker::AtomicWaker;
use super::meter::Meter;
use super::pool::{PoolConfig, PoolKind};
use super::waiting::{AllocAsync, Queue};
use super::{ArenaId, BufPool, FixedBuf, PoolStats, buddy, slabs};
use crate::sync::Arc;

/// Looks at which the spare chunk must have been idle before it goes. A worker looks once a turn, so this is some
/// milliseconds of work without it at least, which is worth more than mapping and registering it once more.
const SPARE_LOOKS: u32 = 256;

/// A chunk that came or went since a driver looked last.
#[derive(Debug)]
pub(crate) enum ChunkChange {
    /// It is to be registered; the hold keeps it mapped, and goes when the kernel has forgotten it.
    Came(ArenaRef),
    /// Nothing of it is lent, nor will be.
    Went(ArenaId),
}

/// A pool of either kind. See the module's prose.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(super) core: Rc<Core>,
}

/// What the handles share.
pub(super) struct Core {
    config: PoolConfig,
    /// Oldest first; never empty.
    chunks: RefCell<Vec<ArenaRef>>,
    /// Which of them is asked first.
    hot: Cell<usize>,
    /// The largest buffer that the first can give beside what is lent of it for good.
    first_max: Cell<usize>,
    /// What a driver has not yet heard; nothing is noted while nobody watches.
    changes: RefCell<Option<Vec<ChunkChange>>>,
    /// Whether there are any.
    changed: Cell<bool>,
    /// Looks in a row at which a spare was idle.
    spare_looks: Cell<u32>,
    pub(super) queue: Queue,
    pub(super) waker: Arc<AtomicWaker>,
    /// Of what came from the heap.
    meter: Arc<Meter>,
    hits: Cell<u64>,
    misses: Cell<u64>,
    /// Of chunks that are gone.
    returned_remotely: Cell<u64>,
    chunks_grown: Cell<u64>,
    chunks_given_back: Cell<u64>,
}

impl Pool {
    /// Maps the first chunk, for the running thread.
    pub(crate) fn new(config: &PoolConfig) -> io::Result<Pool> {
        config.check()?;
        let waker = Arc::new(AtomicWaker::new());
        let first = ArenaRef::open(config, Arc::clone(&waker))?;
        let core = Core {
            config: config.clone(),
            chunks: RefCell::new(vec![first]),
            hot: Cell::new(0),
            first_max: Cell::new(config.bytes),
            changes: RefCell::new(None),
            changed: Cell::new(false),
            spare_looks: Cell::new(0),
            queue: Queue::default(),
            meter: Arc::new(Meter::new(Arc::clone(&waker), config.zero_on_recycle)),
            waker,
            hits: Cell::new(0),
            misses: Cell::new(0),
            returned_remotely: Cell::new(0),
            chunks_grown: Cell::new(0),
            chunks_given_back: Cell::new(0),
        };
        Ok(Pool { core: Rc::new(core) })
    }

    /// A pool of one chunk of `bytes`, for tests of other modules.
    #[cfg(test)]
    pub(crate) fn fixed(bytes: usize) -> io::Result<Pool> {
        Pool::new(&PoolConfig::fixed(bytes))
    }

    /// A hold on the first chunk, for a driver to carve the receive ring from.
    pub(crate) fn arena(&self) -> ArenaRef {
        self.core.chunks.borrow()[0].hold()
    }

    /// Notes that what is lent just now, a receive ring, does not come back while the pool is used: nobody is to wait for it.
    pub(crate) fn note_lent_for_good(&self) {
        self.core.first_max.set(self.core.chunks.borrow()[0].free_largest_bytes());
    }

    /// A buffer of the heap on the pool's account, for what must not take up its room. It is no miss: the pool was not asked.
    pub(crate) fn heap(&self, size: usize) -> FixedBuf {
        FixedBuf::metered(size, &self.core.meter)
    }

    /// From now on notes which chunks come and go, those that there are already first among them.
    pub(crate) fn watch(&self) {
        let came = self.core.chunks.borrow().iter().map(|chunk| ChunkChange::Came(chunk.hold())).collect();
        *self.core.changes.borrow_mut() = Some(came);
        self.core.changed.set(true);
    }

    /// Notes no more: nobody wants to know.
    pub(crate) fn unwatch(&self) {
        self.core.changes.take();
        self.core.changed.set(false);
    }

    /// What came and went since the last call. When that is nothing, this is one plain load.
    pub(crate) fn take_changes(&self) -> Vec<ChunkChange> {
        if !self.core.changed.replace(false) {
            return Vec::new();
        }
        self.core.changes.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Buffers that the pool gave, and those that the heap had to give instead.
    pub(crate) fn hits_and_misses(&self) -> (u64, u64) {
        (self.core.hits.get(), self.core.misses.get())
    }

    /// Blocks that are lent, as far as the pool knows.
    pub(crate) fn lent_blocks(&self) -> usize {
        self.core.chunks.borrow().iter().map(ArenaRef::lent_blocks).sum()
    }

    /// Blocks that are kept as they were cut.
    #[cfg(test)]
    pub(crate) fn kept_blocks(&self) -> usize {
        self.core.chunks.borrow().iter().map(ArenaRef::kept_blocks).sum()
    }

    /// Takes back what other threads have dropped, and gives up idle chunks. Returns how many blocks came back.
    pub(crate) fn reclaim(&self) -> usize {
        let came_back = self.core.chunks.borrow().iter().map(ArenaRef::reclaim).sum();
        self.core.hot.set(0);
        self.core.give_up_idle();
        came_back
    }
}

impl BufPool for Pool {
    #[inline]
    fn alloc(&self, size: usize) -> FixedBuf {
        match self.core.take_hot(size) {
            Some(buf) => buf,
            None => self.core.take_or_heap(size),
        }
    }

    #[inline]
    fn try_alloc(&self, size: usize) -> Option<FixedBuf> {
        match self.core.take_hot(size) {
            Some(buf) => Some(buf),
            None => self.core.take_in_turn(size),
        }
    }

    fn alloc_async(&self, size: usize) -> AllocAsync {
        AllocAsync::new(Rc::clone(&self.core), size)
    }

    fn stats(&self) -> PoolStats {
        let core = &*self.core;
        let mut stats = PoolStats {
            hits: core.hits.get(),
            misses: core.misses.get(),
            returned_remotely: core.returned_remotely.get(),
            chunks_grown: core.chunks_grown.get(),
            chunks_given_back: core.chunks_given_back.get(),
            heap_bytes: core.meter.out_bytes(),
            waiting: core.queue.len(),
            ..PoolStats::default()
        };
        core.chunks.borrow().iter().for_each(|chunk| chunk.add_to(&mut stats));
        stats
    }
}

impl Core {
    /// A buffer from the chunk that served last, if that has one and nobody waits: what nearly every call comes to.
    #[inline(always)]
    fn take_hot(&self, size: usize) -> Option<FixedBuf> {
        // Nothing needs no block.
        if size == 0 || !self.queue.is_empty() {
            return None;
        }
        let buf = self.chunks.borrow()[self.hot.get()].try_alloc(size)?;
        self.hits.set(self.hits.get() + 1);
        Some(buf)
    }

    /// A buffer from the pool, unless somebody waits.
    #[cold]
    fn take_in_turn(&self, size: usize) -> Option<FixedBuf> {
        if self.queue.is_empty() { self.take(size) } else { None }
    }

    #[cold]
    fn take_or_heap(&self, size: usize) -> FixedBuf {
        self.take_in_turn(size).unwrap_or_else(|| self.heap(size))
    }

    /// A buffer from the pool, whoever waits: for the first who does.
    pub(super) fn take(&self, size: usize) -> Option<FixedBuf> {
        // Nothing needs no memory.
        if size == 0 {
            return Some(FixedBuf::heap(0));
        }
        self.take_elsewhere(size)
    }

    /// A buffer from any chunk, from a new one, or, if this is a hybrid pool's business, from the heap.
    fn take_elsewhere(&self, size: usize) -> Option<FixedBuf> {
        if size > self.block_max() {
            let within = self.could_give(size) && self.meter.has_room(size, self.config.heap_bytes_max);
            return within.then(|| self.heap(size));
        }
        let chunks = self.chunks.borrow();
        let mut found = None;
        for (index, chunk) in chunks.iter().enumerate() {
            found = chunk.try_alloc(size);
            if found.is_some() {
                self.hot.set(index);
                break;
            }
        }
        drop(chunks);
        if found.is_none() && self.grow() {
            found = self.chunks.borrow()[self.hot.get()].try_alloc(size);
        }
        self.hits.set(self.hits.get() + u64::from(found.is_some()));
        found
    }

    /// A buffer from the heap, counted.
    #[cold]
    pub(super) fn heap(&self, size: usize) -> FixedBuf {
        self.misses.set(self.misses.get() + 1);
        FixedBuf::metered(size, &self.meter)
    }

    /// Whether the pool could give a buffer of `size` if all of it were free that comes back.
    pub(super) fn could_give(&self, size: usize) -> bool {
        if size <= self.block_max() {
            return self.config.chunks_max > 1 || size <= self.first_max.get();
        }
        match self.config.kind {
            PoolKind::Buddy => false,
            PoolKind::Hybrid => size <= self.config.heap_bytes_max,
        }
    }

    /// Says that somebody waits for `size` bytes: whatever comes back next wakes them. Returns whether something has
    /// come back already.
    #[must_use = "what has come back should be taken"]
    pub(super) fn announce(&self, size: usize) -> bool {
        if size > self.block_max() {
            return self.meter.announce(size, self.config.heap_bytes_max);
        }
        // Not lazily: each chunk must be told.
        self.chunks.borrow().iter().fold(false, |came_back, chunk| chunk.announce() | came_back)
    }

    /// The largest buffer that a chunk can hold.
    fn block_max(&self) -> usize {
        match self.config.kind {
            PoolKind::Buddy => self.config.bytes.min(buddy::ARENA_MAX),
            PoolKind::Hybrid => slabs::SLAB,
        }
    }

    /// Maps another chunk, and lets it be asked first. Returns whether there is one: the bound, or the kernel, may forbid it.
    fn grow(&self) -> bool {
        let mut chunks = self.chunks.borrow_mut();
        if chunks.len() >= self.config.chunks_max {
            return false;
        }
        let Ok(chunk) = ArenaRef::open(&self.config, Arc::clone(&self.waker)) else { return false };
        if let Some(changes) = &mut *self.changes.borrow_mut() {
            changes.push(ChunkChange::Came(chunk.hold()));
            self.changed.set(true);
        }
        self.hot.set(chunks.len());
        chunks.push(chunk);
        self.chunks_grown.set(self.chunks_grown.get() + 1);
        true
    }

    /// Gives up the chunks that have nothing lent, except the first, and except a spare for a while.
    fn give_up_idle(&self) {
        let mut chunks = self.chunks.borrow_mut();
        if chunks.len() == 1 {
            return;
        }
        let Some(spare) =
            chunks.iter().skip(1).position(ArenaRef::is_idle).map(|after_first| after_first + 1)
        else {
            return self.spare_looks.set(0);
        };
        let looks = self.spare_looks.get() + 1;
        let spare_goes = looks >= SPARE_LOOKS;
        self.spare_looks.set(if spare_goes { 0 } else { looks });
        for index in (spare..chunks.len()).rev() {
            let goes = if index == spare { spare_goes } else { chunks[index].is_idle() };
            if goes {
                self.give_up(&chunks.remove(index));
            }
        }
    }

    /// Closes a chunk that nobody will be lent from any more.
    fn give_up(&self, chunk: &ArenaRef) {
        let id = chunk.id();
        let mut stats = PoolStats::default();
        chunk.add_to(&mut stats);
        self.returned_remotely.set(self.returned_remotely.get() + stats.returned_remotely);
        self.chunks_given_back.set(self.chunks_given_back.get() + 1);
        chunk.close();
        let unheard = |change: &ChunkChange| matches!(change, ChunkChange::Came(came) if came.id() == id);
        let at = self.changes.borrow().as_ref().and_then(|changes| changes.iter().position(unheard));
        match (&mut *self.changes.borrow_mut(), at) {
            // Nobody has heard that it came, so nobody need hear that it went.
            (Some(changes), Some(at)) => drop(changes.remove(at)),
            (Some(changes), None) => {
                changes.push(ChunkChange::Went(id));
                self.changed.set(true);
            }
            (None, _) => {}
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // What a driver has not heard is of no interest any more, and holds are let go before their arenas are closed.
        self.changes.take();
        self.chunks.borrow().iter().for_each(ArenaRef::close);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("config", &self.core.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::super::{HugePages, IoBuf};
    use super::*;

    const CHUNK: usize = 64 << 10;

    fn pool(kind: PoolKind, chunks_max: usize) -> Pool {
        let config = PoolConfig { kind, bytes: CHUNK, chunks_max, ..PoolConfig::default() };
        Pool::new(&config).expect("64 KiB can be mapped")
    }

    /// What a driver would have heard: the chunks that came, and those that went.
    fn heard(pool: &Pool) -> (Vec<ArenaRef>, Vec<ArenaId>) {
        let (mut came, mut went) = (Vec::new(), Vec::new());
        for change in pool.take_changes() {
            match change {
                ChunkChange::Came(hold) => came.push(hold),
                ChunkChange::Went(id) => went.push(id),
            }
        }
        (came, went)
    }

    // A pool that grows without bound is no bound, one that does not grow spills to the heap, and one that never shrinks keeps
    // the memory of its worst moment for ever.
    #[test]
    fn a_pool_grows_to_its_bound_and_gives_back_what_is_idle() {
        for kind in [PoolKind::Buddy, PoolKind::Hybrid] {
            let pool = pool(kind, 4);
            let bufs: Vec<_> =
                (0..4).map(|_| pool.try_alloc(CHUNK).expect("there may be four chunks")).collect();
            assert!(pool.try_alloc(CHUNK).is_none(), "there may not be five");
            let stats = pool.stats();
            assert_eq!((stats.chunks, stats.chunks_grown, stats.arena_bytes), (4, 3, 4 * CHUNK));
            pool.reclaim();
            assert_eq!(pool.stats().chunks, 4, "nothing is idle");
            let there: Vec<_> = bufs;
            thread::spawn(move || drop(there)).join().expect("dropping does not panic");
            pool.reclaim();
            assert_eq!(pool.stats().chunks, 2, "the first, and a spare");
            for _ in 0..SPARE_LOOKS {
                pool.reclaim();
            }
            let stats = pool.stats();
            assert_eq!((stats.chunks, stats.chunks_given_back, stats.returned_remotely), (1, 3, 4));
        }
    }

    // Where nobody has set huge pages aside, and few have, a pool that wants them must work all the same, and say that it has none.
    #[test]
    fn a_pool_without_the_huge_pages_it_was_to_have_works_and_says_so() {
        const HUGE: usize = 2 << 20;
        for kind in [PoolKind::Buddy, PoolKind::Hybrid] {
            let config = PoolConfig {
                kind,
                bytes: HUGE,
                chunks_max: 2,
                huge_pages: HugePages::Reserved,
                ..PoolConfig::default()
            };
            let pool = Pool::new(&config).expect("2 MiB can be mapped");
            let mut bufs: Vec<_> =
                std::iter::repeat_with(|| pool.try_alloc(1 << 16)).map_while(|buf| buf).collect();
            assert_eq!(bufs.len(), 64, "all of two chunks");
            bufs.iter_mut().for_each(|buf| buf.resize(1 << 16, 7));
            let stats = pool.stats();
            assert!(stats.reserved_huge_bytes.is_multiple_of(HUGE), "a chunk has them or not: {stats:?}");
            let set_aside = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
            if set_aside.trim().parse() == Ok(0u64) {
                assert_eq!(stats.reserved_huge_bytes, 0);
            }
            let config = PoolConfig { bytes: 64 << 10, ..config };
            let small = Pool::new(&config).expect("64 KiB can be mapped");
            assert_eq!(small.stats().reserved_huge_bytes, 0, "a chunk smaller than a huge page is of none");
        }
    }

    // If use did not gather in the old chunks, one small buffer in each would keep all of them.
    #[test]
    fn after_a_look_the_oldest_chunk_serves_again() {
        let pool = pool(PoolKind::Buddy, 8);
        let first = pool.alloc(CHUNK);
        let in_second = pool.alloc(4096);
        drop(first);
        assert_eq!(pool.stats().chunks, 2);
        pool.reclaim();
        let in_first = pool.alloc(4096);
        drop(in_second);
        for _ in 0..SPARE_LOOKS {
            pool.reclaim();
        }
        assert_eq!(pool.stats().chunks, 1);
        drop(in_first);
    }

    // A spare that goes while it is in use now and then is mapped and registered over and over.
    #[test]
    fn a_spare_that_is_needed_stays() {
        let pool = pool(PoolKind::Buddy, 2);
        let first = pool.alloc(CHUNK);
        for _ in 0..10 {
            drop(pool.try_alloc(CHUNK).expect("the second chunk"));
            for _ in 0..SPARE_LOOKS - 1 {
                pool.reclaim();
            }
            let busy = pool.try_alloc(CHUNK).expect("the second chunk");
            pool.reclaim();
            drop(busy);
        }
        assert_eq!((pool.stats().chunks_grown, pool.stats().chunks_given_back), (1, 0));
        drop(first);
    }

    // A chunk that the driver does not hear of is never registered; one that goes unheard stays mapped, and its index taken.
    #[test]
    fn a_driver_hears_of_each_chunk_once() {
        let pool = pool(PoolKind::Buddy, 4);
        let first = pool.alloc(CHUNK);
        pool.watch();
        let second = pool.alloc(CHUNK);
        let (holds, went) = heard(&pool);
        assert_eq!((holds.len(), went.len(), holds[0].id() != holds[1].id()), (2, 0, true));
        holds[1].set_registered(7);
        assert_eq!(second.registration().map(|known| (known.arena, known.index)), Some((holds[1].id(), 7)));
        assert!(pool.take_changes().is_empty());
        drop((first, second));
        for _ in 0..SPARE_LOOKS {
            pool.reclaim();
        }
        let (came, went) = heard(&pool);
        assert_eq!((came.len(), went), (0, vec![holds[1].id()]));
        // The hold keeps what the kernel may still know, as it keeps that of a pool which was dropped.
        assert_eq!(holds[1].len(), CHUNK);
        drop(holds);
        // What came and went between two looks is nobody's business.
        let first = pool.alloc(CHUNK);
        drop(pool.alloc(CHUNK));
        for _ in 0..SPARE_LOOKS {
            pool.reclaim();
        }
        assert!(pool.take_changes().is_empty());
        drop(first);
    }

    // A grown chunk's buffers must survive their chunk and their pool, here and on other threads.
    #[test]
    fn buffers_of_a_chunk_outlive_the_pool() {
        let pool = pool(PoolKind::Hybrid, 3);
        pool.watch();
        let mut bufs: Vec<_> = (0..3).map(|_| pool.alloc(CHUNK)).collect();
        drop(pool);
        bufs.iter_mut().for_each(|buf| buf.resize(CHUNK, 7));
        let here = bufs.pop();
        thread::spawn(move || drop(bufs)).join().expect("dropping does not panic");
        assert!(here.is_some_and(|buf| buf.iter().all(|&byte| byte == 7)));
    }

    // Without the bound, a few large requests take the machine's memory; without the count nobody knows.
    #[test]
    fn a_hybrid_pool_bounds_its_heap() {
        let config = PoolConfig {
            kind: PoolKind::Hybrid,
            bytes: CHUNK,
            heap_bytes_max: 1 << 20,
            ..PoolConfig::default()
        };
        let pool = Pool::new(&config).expect("64 KiB can be mapped");
        let large = pool.try_alloc(1 << 20).expect("the heap has its limit");
        assert!(large.io_ptr().addr().is_multiple_of(4096));
        assert_eq!(large.registration(), None);
        assert!(pool.try_alloc(CHUNK + 1).is_none(), "there is no room");
        let more = pool.alloc(CHUNK + 1);
        assert_eq!((pool.stats().heap_bytes, pool.stats().misses), ((1 << 20) + CHUNK + 1, 2));
        thread::spawn(move || drop((large, more))).join().expect("dropping does not panic");
        assert_eq!(pool.stats().heap_bytes, 0);
        assert!(pool.try_alloc((1 << 20) + 1).is_none(), "larger than the limit");
    }

    proptest! {
        // Overlap would show as a foreign byte, a lost block as a pool that is not whole at the end; buffers are dropped
        // here and on other threads in any order, and chunks come and go.
        #[test]
        fn buffers_do_not_overlap_and_none_is_lost(
            hybrid in any::<bool>(),
            steps in proptest::collection::vec((0u8..7, 0usize..17, 0usize..40_000, any::<prop::sample::Index>()), 1..120),
        ) {
            let pool = pool(if hybrid { PoolKind::Hybrid } else { PoolKind::Buddy }, 4);
            pool.watch();
            let mut holds = Vec::new();
            let mut bufs: Vec<(u8, FixedBuf)> = Vec::new();
            for (number, (what, shift, size, which)) in (0u8..).zip(steps) {
                // Sizes of every magnitude.
                let size = (size >> shift) + 1;
                match what {
                    0..3 => {
                        let mut buf = pool.alloc(size);
                        prop_assert!(size < 4096 || buf.io_ptr().addr().is_multiple_of(4096));
                        prop_assert_eq!((buf.len(), buf.capacity()), (0, size));
                        buf.resize(size, number);
                        bufs.push((number, buf));
                    }
                    3 => {
                        pool.reclaim();
                        holds.extend(heard(&pool).0);
                    }
                    _ if bufs.is_empty() => {}
                    4 | 5 => drop(bufs.swap_remove(which.index(bufs.len()))),
                    _ => {
                        let buf = bufs.swap_remove(which.index(bufs.len()));
                        thread::scope(|scope| { scope.spawn(move || drop(buf)); });
                    }
                }
                for (number, buf) in &bufs {
                    prop_assert!(buf.iter().all(|byte| byte == number), "two buffers share a byte");
                }
            }
            drop(bufs);
            for _ in 0..=SPARE_LOOKS {
                pool.reclaim();
            }
            let stats = pool.stats();
            prop_assert_eq!((stats.blocks_out, stats.free_largest_bytes, stats.heap_bytes), (0, CHUNK, 0));
            prop_assert_eq!((stats.chunks, stats.free_bytes), (1, CHUNK));
        }
    }
}
