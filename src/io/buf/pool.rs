//! Who makes buffers.
//!
//! A [`BufPool`] gives out [`FixedBuf`]s. [`BuddyPool`] is one for any size from one arena; it belongs to one worker,
//! and its handle is cheap to clone there. What it has no room for comes from the heap, and is counted: such a buffer
//! works everywhere, only the kernel does not know it by index.
//!
//! The pool is at home on one thread, its buffers are everywhere. What other threads drop waits on a list until the
//! owner looks, which it does when it runs out, once a turn ([`BuddyPool::reclaim`]), and when asked for figures.

use std::error::Error;
use std::fmt;
use std::io;
use std::rc::Rc;

use super::FixedBuf;
use super::arena::ArenaRef;
use super::buddy::{ARENA_MAX, ARENA_MIN};

/// A source of [`FixedBuf`]s.
pub trait BufPool {
    /// An empty buffer for exactly `size` bytes: from the pool if it has room, else from the heap.
    ///
    /// # Panics
    ///
    /// When `size` is more than `isize::MAX`. Running out of memory ends the program, as for a `Vec`.
    fn alloc(&self, size: usize) -> FixedBuf;

    /// An empty buffer for exactly `size` bytes from the pool, or nothing.
    fn try_alloc(&self, size: usize) -> Option<FixedBuf>;

    /// What the pool holds and what it did.
    fn stats(&self) -> PoolStats;
}

/// A snapshot of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Size of the arena.
    pub arena_bytes: usize,
    /// Bytes of it that are not lent. A buffer takes up the next power of two of pages.
    pub free_bytes: usize,
    /// The largest buffer that the pool could give now.
    pub free_largest_bytes: usize,
    /// Blocks that are lent: one for each living buffer of the pool, one for a receive ring.
    pub blocks_out: usize,
    /// Buffers that the pool gave.
    pub hits: u64,
    /// Buffers that had to come from the heap.
    pub misses: u64,
    /// Blocks that came back from other threads.
    pub returned_remotely: u64,
}

/// A pool of any size of buffer, from one page-aligned arena, by the buddy system.
///
/// A clone is another handle to the same pool. The pool stays on its thread; its buffers may go anywhere and are good
/// even after it is gone. A buffer takes up the next power of two, at least 4 KiB.
///
/// ```
/// use veloq::io::buf::{BufPool, BuddyPool};
///
/// let pool = BuddyPool::new(64 * 1024)?;
/// let half = pool.alloc(32 * 1024);
/// assert!(pool.try_alloc(64 * 1024).is_none());
/// let heap = pool.alloc(64 * 1024);                // does not fail: the heap has it
/// assert_eq!(pool.stats().misses, 1);
/// drop(half);
/// assert_eq!(pool.stats().free_largest_bytes, 64 * 1024);
/// # drop(heap);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BuddyPool {
    core: Rc<Core>,
}

/// What the handles share: the arena's first hold.
#[derive(Debug)]
struct Core {
    arena: ArenaRef,
}

impl BuddyPool {
    /// Maps an arena of `arena_bytes`, a power of two from 64 KiB to 1 GiB, for the running thread.
    ///
    /// Its pages cost memory when they are first used, or when the arena is registered with a ring.
    ///
    /// # Errors
    ///
    /// `InvalidInput` with an [`ArenaSizeError`] for another size; what the kernel answered if it does not map.
    pub fn new(arena_bytes: usize) -> io::Result<BuddyPool> {
        if !arena_bytes.is_power_of_two() || !(ARENA_MIN..=ARENA_MAX).contains(&arena_bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, ArenaSizeError { arena_bytes }));
        }
        Ok(BuddyPool { core: Rc::new(Core { arena: ArenaRef::open(arena_bytes)? }) })
    }

    /// Takes back what other threads have dropped. Returns how many blocks that were.
    ///
    /// When there is none this is one plain load, so a worker does it every turn.
    pub fn reclaim(&self) -> usize {
        self.core.arena.reclaim()
    }

    /// A hold on the arena, for a driver to register it and to carve the receive ring from.
    pub(crate) fn arena(&self) -> ArenaRef {
        self.core.arena.hold()
    }
}

impl BufPool for BuddyPool {
    fn alloc(&self, size: usize) -> FixedBuf {
        self.try_alloc(size).unwrap_or_else(|| {
            self.core.arena.count_miss();
            FixedBuf::heap(size)
        })
    }

    fn try_alloc(&self, size: usize) -> Option<FixedBuf> {
        // Nothing needs no memory, and no block.
        if size == 0 { Some(FixedBuf::heap(0)) } else { self.core.arena.try_alloc(size) }
    }

    fn stats(&self) -> PoolStats {
        self.core.arena.stats()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.arena.close();
    }
}

/// Why [`BuddyPool::new`] refused a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaSizeError {
    arena_bytes: usize,
}

impl fmt::Display for ArenaSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "an arena of {} bytes; its size must be a power of two from {ARENA_MIN} (64 KiB) to {ARENA_MAX} (1 GiB)",
            self.arena_bytes
        )
    }
}

impl Error for ArenaSizeError {}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use proptest::prelude::*;

    use super::super::{IoBuf, Registration};
    use super::*;

    const ARENA: usize = 1 << 18;

    fn pool() -> BuddyPool {
        BuddyPool::new(ARENA).expect("256 KiB can be mapped")
    }

    // A size that slips through would break the books' arithmetic.
    #[test]
    fn only_powers_of_two_within_bounds_are_arenas() {
        for bytes in [0, 4096, ARENA_MIN / 2, ARENA_MIN + 4096, ARENA_MAX * 2] {
            let error = BuddyPool::new(bytes).expect_err("not a size of an arena");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let inner = error.into_inner().expect("a typed source");
            assert_eq!(inner.downcast_ref(), Some(&ArenaSizeError { arena_bytes: bytes }));
        }
        assert!(BuddyPool::new(ARENA_MIN).is_ok());
        assert!(BuddyPool::new(ARENA_MAX).is_ok());
    }

    // A page that was somebody else's must not be seen, and a buffer must not be larger than asked for.
    #[test]
    fn a_buffer_is_empty_exact_and_aligned() {
        let pool = pool();
        for size in [1, 100, 4095, 4096, 4097, 65536] {
            let mut buf = pool.try_alloc(size).expect("the arena is free");
            assert_eq!((buf.len(), buf.capacity(), buf.remaining()), (0, size, size));
            assert!(buf.io_ptr().addr().is_multiple_of(4096));
            buf.resize(size, 0xAA);
        }
        assert_eq!(pool.alloc(0).capacity(), 0);
        assert_eq!(pool.stats().blocks_out, 0);
        assert_eq!(pool.stats().misses, 0);
    }

    // Without the fallback a busy server would stop; without the count nobody would know why it is slow.
    #[test]
    fn what_does_not_fit_comes_from_the_heap_and_is_counted() {
        let pool = pool();
        let all = pool.alloc(ARENA);
        assert!(pool.try_alloc(1).is_none());
        let heap = pool.alloc(4096);
        assert!(heap.io_ptr().addr().is_multiple_of(4096));
        let huge = pool.alloc(ARENA_MAX + 1);
        let stats = pool.stats();
        assert_eq!((stats.hits, stats.misses, stats.blocks_out), (1, 2, 1));
        drop((all, heap, huge));
        assert_eq!(pool.stats().free_largest_bytes, ARENA);
    }

    // If the pool looked only at its own lists it would go to the heap while other threads have given all back.
    #[test]
    fn what_other_threads_drop_is_found_when_the_pool_runs_out() {
        let pool = pool();
        let all = pool.alloc(ARENA);
        thread::spawn(move || drop(all)).join().expect("dropping does not panic");
        let again = pool.try_alloc(ARENA).expect("it came back");
        drop(again);
        assert_eq!(pool.stats().returned_remotely, 1);
        assert_eq!(pool.reclaim(), 0);
    }

    // A registration that named another arena's index would make the kernel write into foreign pages.
    #[test]
    fn a_buffer_says_where_it_is_registered() {
        let (pool, other) = (pool(), pool());
        let arena = pool.arena();
        assert_ne!(arena.id(), other.arena().id());
        let buf = pool.alloc(4096);
        assert_eq!(buf.registration(), None);
        arena.set_registered(3);
        let expected = Some(Registration { arena: arena.id(), index: 3 });
        assert_eq!(buf.registration(), expected);
        let slice = buf.slice(0..100);
        assert_eq!(slice.registration(), expected);
        assert_eq!(pool.alloc(ARENA).registration(), None, "the heap is not registered");
        let offset = slice.io_ptr().addr() - arena.base().addr().get();
        assert!(offset + slice.io_capacity() <= arena.len());
    }

    // Unmapping with a buffer out would fault on its next use, here on other threads; a hold must do the same.
    #[test]
    fn buffers_and_holds_outlive_the_pool() {
        let pool = pool();
        let arena = pool.arena();
        let (here, first, second) = (pool.alloc(4096), pool.alloc(8192), pool.alloc(100));
        let handle = pool.clone();
        drop(pool);
        assert_eq!(handle.stats().blocks_out, 3);
        drop(handle);
        let threads = [first, second].map(|mut buf| {
            thread::spawn(move || {
                let capacity = buf.capacity();
                buf.resize(capacity, 7);
                assert!(buf.iter().all(|&byte| byte == 7));
            })
        });
        for thread in threads {
            thread.join().expect("the memory is there");
        }
        drop(here);
        assert_eq!((arena.len(), arena.base().addr().get() % 4096), (ARENA, 0));
        assert!(arena.carve_ring(1, 4096).is_none(), "nothing is lent when the pool is gone");
    }

    // The race that matters: the owner drops its pool while other threads drop buffers. A double free or an early unmap
    // crashes; a leak shows as addresses that are never used again.
    #[test]
    fn dropping_pool_and_buffers_at_once_unmaps_each_arena_exactly_once() {
        const BYTES: usize = 1 << 23;
        // A queue of one: the two threads meet all the time, and few arenas are alive at once.
        let (send, receive) = mpsc::sync_channel::<Vec<FixedBuf>>(1);
        let foreign = thread::spawn(move || {
            for bufs in receive {
                drop(bufs);
            }
        });
        let mut bases = Vec::new();
        for round in 0..500 {
            let pool = BuddyPool::new(BYTES).expect("8 MiB can be mapped");
            let mut bufs: Vec<_> = (0..round % 7 + 1).map(|n| pool.alloc(4096 << (n % 3))).collect();
            let kept = bufs.split_off(bufs.len() / 2);
            bases.push(pool.arena().base().addr().get());
            send.send(bufs).expect("the thread is there");
            if round % 2 == 0 {
                drop(kept);
                drop(pool);
            } else {
                drop(pool);
                drop(kept);
            }
        }
        drop(send);
        foreign.join().expect("dropping does not panic");
        bases.sort_unstable();
        bases.dedup();
        // A leaked arena is never mapped over; 500 leaked ones would be 500 different addresses.
        assert!(bases.len() < 250, "{} of 500 arenas had an address of their own: they leak", bases.len());
    }

    proptest! {
        // Overlap would show as a foreign byte, a lost block as a pool that is not whole at the end; buffers are dropped
        // here and on other threads in any order.
        #[test]
        fn buffers_do_not_overlap_and_none_is_lost(
            steps in proptest::collection::vec((0u8..4, 1usize..40_000, any::<prop::sample::Index>()), 1..80),
        ) {
            let pool = pool();
            let mut bufs: Vec<(u8, FixedBuf)> = Vec::new();
            for (number, (what, size, which)) in (0u8..).zip(steps) {
                match what {
                    0 | 1 => {
                        let mut buf = pool.alloc(size);
                        prop_assert!(size < 4096 || buf.io_ptr().addr().is_multiple_of(4096));
                        buf.resize(size, number);
                        bufs.push((number, buf));
                    }
                    _ if bufs.is_empty() => {}
                    2 => drop(bufs.swap_remove(which.index(bufs.len()))),
                    _ => {
                        let buf = bufs.swap_remove(which.index(bufs.len()));
                        thread::scope(|scope| { scope.spawn(move || drop(buf)); });
                    }
                }
                for (number, buf) in &bufs {
                    // Blocks begin and end at pages, so an overlap takes a first or a last byte of some buffer with it.
                    let ends = (buf.first(), buf.last());
                    prop_assert_eq!(ends, (Some(number), Some(number)), "two buffers share a byte");
                }
            }
            drop(bufs);
            let stats = pool.stats();
            prop_assert_eq!((stats.blocks_out, stats.free_largest_bytes), (0, ARENA));
        }
    }
}
