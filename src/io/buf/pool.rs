//! Who makes buffers.
//!
//! A [`BufPool`] gives out [`FixedBuf`]s. Of the two there are,
//!
//! * [`BuddyPool`] serves any size, in powers of two from 4 KiB to the size of a chunk: files, streams;
//! * [`HybridPool`] serves packets, in powers of two from 256 B to 64 KiB, and takes the rest from the heap, up to a limit.
//!
//! A pool belongs to one thread, and its handle is cheap to clone there; a runtime's workers have one each
//! ([`Builder::pool`](crate::runtime::Builder::pool)). Its buffers are everywhere. What other threads drop waits on a list
//! until the owner looks, which it does when it runs out, once a turn ([`BuddyPool::reclaim`]), and when asked for figures.
//!
//! Its memory comes in *chunks* of one size, at most [`PoolConfig::chunks_max`] of them; `chunks` tells how they come and go.
//! What there is no room for comes from the heap, or can be waited for ([`BufPool::alloc_async`], told in `waiting`). A buffer
//! of the heap works everywhere, only the kernel does not know it by index.

use std::error::Error;
use std::fmt;
use std::io;

use super::buddy::{ARENA_MAX, ARENA_MIN};
use super::chunks::Pool;
use super::{AllocAsync, FixedBuf};

/// A source of [`FixedBuf`]s.
///
/// ```
/// use veloq::io::buf::{BufPool, BuddyPool, HybridPool};
///
/// fn greet(pool: &dyn BufPool) -> usize {
///     let mut buf = pool.alloc(100);
///     buf.extend_from_slice(b"hello");
///     buf.len()
/// }
/// assert_eq!(greet(&BuddyPool::new(1 << 20)?), 5);
/// assert_eq!(greet(&HybridPool::new(1 << 20)?), 5);
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait BufPool {
    /// An empty buffer for exactly `size` bytes: from the pool if it has room, else from the heap, which is counted.
    ///
    /// # Panics
    ///
    /// When `size` is more than `isize::MAX`. Running out of memory ends the program, as for a `Vec`.
    fn alloc(&self, size: usize) -> FixedBuf;

    /// An empty buffer for exactly `size` bytes from the pool, or nothing. Also nothing while somebody waits in
    /// [`alloc_async`](Self::alloc_async): who came first is served first.
    fn try_alloc(&self, size: usize) -> Option<FixedBuf>;

    /// An empty buffer for exactly `size` bytes from the pool, as soon as it has room and all who asked earlier have theirs.
    ///
    /// This is how a program bounds its memory instead of spilling over to the heap. The place in the queue is taken at the
    /// first poll. A future that is dropped gives up its place and loses nothing. What the pool could not give even if
    /// all of it were free comes from the heap at once, as from [`alloc`](Self::alloc). (Of a worker's pool, all but the receive
    /// ring, which lies in its first chunk.)
    ///
    /// ```
    /// use veloq::io::buf::{BufPool, BuddyPool};
    ///
    /// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
    /// let pool = BuddyPool::new(64 * 1024)?;
    /// let all = pool.alloc(64 * 1024);
    /// let waiter = veloq::spawn_local(pool.alloc_async(4096));
    /// std::thread::spawn(move || drop(all));           // from whichever thread it comes back
    /// assert_eq!(waiter.await.unwrap().capacity(), 4096);
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    fn alloc_async(&self, size: usize) -> AllocAsync;

    /// What the pool holds and what it did.
    fn stats(&self) -> PoolStats;
}

/// A snapshot of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Bytes of all chunks together.
    pub arena_bytes: usize,
    /// Bytes of them that are not lent. A buffer takes up the next power of two.
    pub free_bytes: usize,
    /// The largest buffer that the pool could give now without another chunk.
    pub free_largest_bytes: usize,
    /// Blocks that are lent: one for each living buffer of the pool, one for a receive ring.
    pub blocks_out: usize,
    /// Buffers that the pool gave from its chunks.
    pub hits: u64,
    /// Buffers that had to come from the heap.
    pub misses: u64,
    /// Blocks that came back from other threads.
    pub returned_remotely: u64,
    /// Chunks there are now.
    pub chunks: usize,
    /// Chunks that came after the first.
    pub chunks_grown: u64,
    /// Chunks among them that were given back.
    pub chunks_given_back: u64,
    /// Bytes of the chunks that lie in huge pages which the administrator had set aside ([`HugePages::Reserved`]).
    pub reserved_huge_bytes: usize,
    /// Bytes of the buffers that came from the heap and are still alive. With a worker's pool, what waits in its sockets is among them.
    pub heap_bytes: usize,
    /// Futures that wait in [`BufPool::alloc_async`].
    pub waiting: usize,
}

/// What kind of pool a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolKind {
    /// A [`BuddyPool`].
    Buddy,
    /// A [`HybridPool`].
    Hybrid,
}

/// Whether a chunk of 2 MiB or more shall lie in huge pages: fewer entries of the processor's address cache, and faster to
/// register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// The kernel's default for any memory.
    Never,
    /// The kernel is advised to (`MADV_HUGEPAGE`), and does as far as it has any.
    Advised,
    /// From those that the administrator has set aside (`vm.nr_hugepages`); as far as there are none, advised.
    /// [`PoolStats::reserved_huge_bytes`] says what came of it.
    Reserved,
}

/// How a pool is made.
///
/// ```
/// use veloq::io::buf::{BufPool, HybridPool, PoolConfig};
///
/// let mut config = PoolConfig::default();
/// config.bytes = 1 << 20;                // of one chunk
/// config.chunks_max = 4;
/// config.zero_on_recycle = true;
/// let pool = HybridPool::with_config(&config)?;
/// assert_eq!(pool.stats().arena_bytes, 1 << 20);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Which pool a runtime's workers have; [`PoolKind::Buddy`] by default. Whoever makes a pool by hand has said so already.
    pub kind: PoolKind,
    /// Bytes of a chunk, a power of two from 64 KiB to 1 GiB: what a pool has from the start, and the size by which it grows.
    /// 4 MiB by default. A runtime makes its workers' chunks smaller, down to 512 KiB, and allows as many more, where otherwise not even
    /// the first could be registered within a worker's share of RLIMIT_MEMLOCK; the capability report says so.
    pub bytes: usize,
    /// Chunks there may be, from 1 to [`CHUNKS_MAX`]; 8 by default. A pool grows when a buffer finds no room.
    pub chunks_max: usize,
    /// Of a [`HybridPool`], bytes of the heap that its large buffers may take together; 64 MiB by default. Beyond it
    /// [`try_alloc`](BufPool::try_alloc) gives nothing, [`alloc_async`](BufPool::alloc_async) waits, and
    /// [`alloc`](BufPool::alloc), which never fails, gives all the same.
    pub heap_bytes_max: usize,
    /// Whether to use huge pages; [`HugePages::Advised`] by default.
    pub huge_pages: HugePages,
    /// Whether a buffer's memory is overwritten with zeroes, all of its capacity, when it is dropped; off by default. What the pool took
    /// from the heap is, too. No safe call shows a buffer's former bytes in any case; this is for who fears a core dump, or `unsafe` code
    /// of their own.
    pub zero_on_recycle: bool,
}

/// Chunks a pool may have at most: looking through all of them must stay cheaper than asking the heap.
pub const CHUNKS_MAX: usize = 64;

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig {
            kind: PoolKind::Buddy,
            bytes: 4 << 20,
            chunks_max: 8,
            heap_bytes_max: 64 << 20,
            huge_pages: HugePages::Advised,
            zero_on_recycle: false,
        }
    }
}

impl PoolConfig {
    /// The defaults, with all memory in one chunk of `bytes`.
    pub(super) fn fixed(bytes: usize) -> PoolConfig {
        PoolConfig { bytes, chunks_max: 1, ..PoolConfig::default() }
    }

    /// Refuses what is out of bounds.
    pub(super) fn check(&self) -> io::Result<()> {
        let (bytes, chunks_max) = (self.bytes, self.chunks_max);
        let size = bytes.is_power_of_two() && (ARENA_MIN..=ARENA_MAX).contains(&bytes);
        if size && (1..=CHUNKS_MAX).contains(&chunks_max) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, PoolConfigError { bytes, chunks_max }))
    }
}

/// What both kinds of pools have in common: a handle, the trait's calls, `reclaim`.
macro_rules! pool {
    ($name:ident, $kind:ident) => {
        impl $name {
            /// Maps one chunk of `bytes`, a power of two from 64 KiB to 1 GiB, for the running thread. The pool does not grow.
            ///
            /// Its pages cost memory when they are first used, or when the chunk is registered with a ring.
            ///
            /// # Errors
            ///
            /// `InvalidInput` with a [`PoolConfigError`] for another size; what the kernel answered if it does not map.
            pub fn new(bytes: usize) -> io::Result<$name> {
                $name::with_config(&PoolConfig::fixed(bytes))
            }

            /// Maps the first chunk of a pool, for the running thread.
            ///
            /// # Errors
            ///
            /// `InvalidInput` with a [`PoolConfigError`] for what is out of bounds; what the kernel answered if it does not
            /// map.
            pub fn with_config(config: &PoolConfig) -> io::Result<$name> {
                Pool::new(&PoolConfig { kind: PoolKind::$kind, ..config.clone() }).map($name)
            }

            /// Takes back what other threads have dropped, and gives up chunks that are idle. Returns how many buffers came
            /// back.
            ///
            /// When there is nothing to do this is one plain load for each chunk, so a worker does it every turn.
            pub fn reclaim(&self) -> usize {
                self.0.reclaim()
            }
        }

        impl BufPool for $name {
            #[inline]
            fn alloc(&self, size: usize) -> FixedBuf {
                self.0.alloc(size)
            }

            #[inline]
            fn try_alloc(&self, size: usize) -> Option<FixedBuf> {
                self.0.try_alloc(size)
            }

            fn alloc_async(&self, size: usize) -> AllocAsync {
                self.0.alloc_async(size)
            }

            fn stats(&self) -> PoolStats {
                self.0.stats()
            }
        }
    };
}

/// A pool of any size of buffer, page-aligned, by the buddy system.
///
/// A clone is another handle to the same pool. The pool stays on its thread; its buffers may go anywhere and are good
/// even after it is gone. A buffer takes up the next power of two, at least 4 KiB, and has at most the size of a chunk.
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
pub struct BuddyPool(Pool);

pool!(BuddyPool, Buddy);

/// A pool of packets: pieces of 256 B to 64 KiB from slabs of one size each, and the heap for what is larger.
///
/// A buffer takes up the next power of two, at least 256 B, and begins at a multiple of that. A larger one than 64 KiB is an
/// allocation of its own, which is counted, and bounded by [`PoolConfig::heap_bytes_max`]. Everything else is as for
/// [`BuddyPool`].
///
/// ```
/// use veloq::io::buf::{BufPool, HybridPool};
///
/// let pool = HybridPool::new(64 * 1024)?;
/// let packets: Vec<_> = (0..32).map(|_| pool.alloc(1500)).collect();      // 2 KiB each
/// assert!(pool.try_alloc(1500).is_none());
/// let large = pool.try_alloc(1 << 20).expect("the heap is within its limit");
/// assert_eq!((pool.stats().hits, pool.stats().heap_bytes), (32, 1 << 20));
/// # drop((packets, large));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HybridPool(Pool);

pool!(HybridPool, Hybrid);

/// Why a [`PoolConfig`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfigError {
    bytes: usize,
    chunks_max: usize,
}

impl fmt::Display for PoolConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PoolConfigError { bytes, chunks_max } = self;
        write!(
            f,
            "a pool of at most {chunks_max} chunks of {bytes} bytes; there may be 1 to {CHUNKS_MAX}, each a power of two \
             from {ARENA_MIN} (64 KiB) to {ARENA_MAX} (1 GiB)"
        )
    }
}

impl Error for PoolConfigError {}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::super::{IoBuf, Registration};
    use super::*;

    const ARENA: usize = 1 << 18;

    fn pool() -> Pool {
        Pool::fixed(ARENA).expect("256 KiB can be mapped")
    }

    // A size that slips through would break the books' arithmetic.
    #[test]
    fn only_powers_of_two_within_bounds_are_arenas() {
        for bytes in [0, 4096, ARENA_MIN / 2, ARENA_MIN + 4096, ARENA_MAX * 2] {
            let error = BuddyPool::new(bytes).expect_err("not a size of an arena");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let inner = error.into_inner().expect("a typed source");
            assert_eq!(inner.downcast_ref(), Some(&PoolConfigError { bytes, chunks_max: 1 }));
        }
        for chunks_max in [0, CHUNKS_MAX + 1] {
            let error = HybridPool::with_config(&PoolConfig { chunks_max, ..PoolConfig::default() });
            assert_eq!(error.expect_err("not a number of chunks").kind(), io::ErrorKind::InvalidInput);
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
            let pool = Pool::fixed(BYTES).expect("8 MiB can be mapped");
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
}
