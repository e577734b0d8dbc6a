//! The receive ring's memory: buffers of one size that the kernel picks from.
//!
//! A driver that lets the kernel choose where to put what arrives hands it a number of buffers in advance, each called
//! by an id. [`RingBlocks`] is that memory: one block of the arena, cut into `count` pieces.
//!
//! ```text
//!             take(bid, len)                   drop, on any thread
//! kernel's ──────────────────▶ a FixedBuf's ────────────────────────▶ returned
//!     ▲                                                                  │
//!     └──────────── the driver hands it to the kernel again ◀────────────┘ drain_returned
//! ```
//!
//! When the kernel says it filled `bid`, the driver makes a `FixedBuf` of it, which goes to the program without a copy.
//! When that is dropped, its id is noted: on the owner's thread in a plain list, elsewhere by [`Returns`]. The driver
//! drains both and gives the ids to the kernel again.
//!
//! The home of these buffers is the [`Ring`] header. It lives until `RingBlocks` and all its buffers are gone, by the
//! protocol that arenas live by; then the block goes back to the arena, like any other block and from whichever thread.
//! The block is lent until then, so the arena outlives it.
#![expect(unsafe_code, reason = "raw pointers to a header that lives until the last buffer is back")]

use std::cell::RefCell;
use std::fmt;
use std::ptr::NonNull;

use super::arena::{Arena, ArenaRef};
use super::fixed::{FixedBuf, Home};
use super::owned::Owned;
use super::poison::{poison, unpoison};
use super::returns::{Release, Returns};
use super::{PAGE, Registration};

/// The header that the ring's buffers point to. See the module's prose.
pub(super) struct Ring {
    arena: NonNull<Arena>,
    /// Where the block of the arena begins.
    base: NonNull<u8>,
    /// From one buffer to the next; at least `size`.
    stride: usize,
    size: u32,
    count: u16,
    returns: Returns,
    books: Owned<RefCell<Books>>,
}

/// What only the owner's thread sees.
struct Books {
    /// Until the `RingBlocks` is dropped.
    open: bool,
    /// By id: whether it is a `FixedBuf`'s, and how many are.
    taken: Box<[bool]>,
    taken_count: usize,
    /// Dropped on this thread and not drained yet. Has room for all ids, so it never allocates.
    returned: Vec<u16>,
}

impl Books {
    fn give_back(&mut self, bid: u16) {
        let taken = std::mem::replace(&mut self.taken[usize::from(bid)], false);
        assert!(taken, "buffer {bid} of a receive ring came back, but it was not taken");
        self.taken_count -= 1;
    }
}

impl Ring {
    /// How the kernel calls this memory, if it was told.
    pub(super) fn registration(&self) -> Option<Registration> {
        // SAFETY: the ring's block is lent by the arena, which keeps the arena's header alive.
        unsafe { self.arena.as_ref() }.registration()
    }

    /// Whether whoever gives a buffer back overwrites it first.
    pub(super) fn zeroes(&self) -> bool {
        // SAFETY: the ring's block keeps the arena's header alive, as in `registration`.
        unsafe { self.arena.as_ref() }.zeroes()
    }

    /// Gives a buffer back on the owner's thread while the `RingBlocks` lives. Returns whether that was so.
    fn give_back_at_home(&self, bid: u16) -> bool {
        let Some(books) = self.books.get() else { return false };
        let mut books = books.borrow_mut();
        if books.open {
            books.give_back(bid);
            books.returned.push(bid);
        }
        books.open
    }

    /// The id of the buffer that begins at `base`.
    fn id_of(&self, base: NonNull<u8>) -> u16 {
        let offset = base.addr().get() - self.base.addr().get();
        u16::try_from(offset / self.stride).expect("ids of a receive ring have 16 bits")
    }

    /// Gives the buffer that begins at `base` back, on any thread.
    ///
    /// # Safety
    ///
    /// The buffer was taken from `ring`, was not given back yet, and is used by nobody any more. The caller does not touch
    /// `ring` again on account of this buffer.
    pub(super) unsafe fn give_back(ring: NonNull<Ring>, base: NonNull<u8>) {
        // SAFETY: a buffer that is taken keeps the header alive.
        let header = unsafe { ring.as_ref() };
        let bid = header.id_of(base);
        if header.give_back_at_home(bid) {
            return;
        }
        // SAFETY: the buffer is still taken, so the header is alive, and the caller gives it up with this call. When the
        // owner's thread comes here the books are closed, and then so is the list.
        unsafe {
            let release = Returns::push(&raw const (*ring.as_ptr()).returns, u32::from(bid));
            Ring::released(ring, release);
        }
    }

    /// Gives the block back to the arena and frees the header, if that was the last.
    ///
    /// # Safety
    ///
    /// `release` is the answer for `ring`, and nobody was given it before.
    unsafe fn released(ring: NonNull<Ring>, release: Release) {
        match release {
            Release::Held => {}
            Release::Last => {
                // SAFETY: the header came from `Box::leak` in `carve_ring`, and the last one comes after every use.
                let ring = unsafe { Box::from_raw(ring.as_ptr()) };
                poison(ring.base, usize::from(ring.count) * ring.stride);
                // SAFETY: the block was lent to this ring, none of whose buffers is left; the kernel has no business
                // there any more, as whoever dropped the `RingBlocks` saw to.
                unsafe { Arena::give_back(ring.arena, ring.base) };
            }
        }
    }
}

impl ArenaRef {
    /// Sets aside memory for `count` buffers of `size` bytes, or nothing if the arena has no free block for them.
    ///
    /// A `size` of 4 KiB or more is rounded up to whole pages from one buffer to the next, so that each is
    /// page-aligned; the whole is rounded up to a power of two.
    ///
    /// # Panics
    ///
    /// When `count` or `size` is zero.
    pub(crate) fn carve_ring(&self, count: u16, size: u32) -> Option<RingBlocks> {
        assert!(count > 0 && size > 0, "a receive ring has buffers, and they hold something");
        let stride =
            if size as usize >= PAGE { (size as usize).next_multiple_of(PAGE) } else { size as usize };
        let (arena, base) = self.lend_ring(stride.checked_mul(usize::from(count))?)?;
        unpoison(base, stride * usize::from(count));
        let ring = Ring {
            arena,
            base,
            stride,
            size,
            count,
            returns: Returns::new(u32::from(count)),
            books: Owned::new(RefCell::new(Books {
                open: true,
                taken: vec![false; usize::from(count)].into_boxed_slice(),
                taken_count: 0,
                returned: Vec::with_capacity(usize::from(count)),
            })),
        };
        Some(RingBlocks { ring: NonNull::from(Box::leak(Box::new(ring))) })
    }
}

/// The memory of a receive ring, while its driver lives. `!Send`: it stays on the arena's thread.
///
/// To be dropped only when the kernel has forgotten the ring: what was not taken goes back to the arena then (or when the
/// last buffer that was taken is dropped). A driver that cannot be sure must leak it, and count that.
pub(crate) struct RingBlocks {
    ring: NonNull<Ring>,
}

impl RingBlocks {
    /// How many buffers there are; their ids are `0..count`.
    pub(crate) fn count(&self) -> u16 {
        self.ring().count
    }

    /// Bytes of each buffer.
    pub(crate) fn size(&self) -> u32 {
        self.ring().size
    }

    /// The first byte of buffer `bid`, good for [`size`](Self::size) bytes: what the kernel is told.
    ///
    /// # Panics
    ///
    /// When there is no such buffer.
    pub(crate) fn ptr(&self, bid: u16) -> NonNull<u8> {
        let ring = self.ring();
        assert!(bid < ring.count, "buffer {bid} of a receive ring of {}", ring.count);
        // SAFETY: the block holds `count * stride` bytes, and `bid` is less than `count`.
        unsafe { ring.base.add(usize::from(bid) * ring.stride) }
    }

    /// Buffer `bid`, which the kernel has filled with `len` bytes, as the program's own.
    ///
    /// # Safety
    ///
    /// The kernel was handed `bid`, has said that it wrote `len` bytes from the buffer's start, and does not touch it
    /// again until it is handed to it anew, which the caller does not do before
    /// [`drain_returned`](Self::drain_returned) names it.
    ///
    /// # Panics
    ///
    /// When `bid` is a `FixedBuf` already, or `len` is more than its size: then the driver has lost count.
    pub(crate) unsafe fn take(&self, bid: u16, len: usize) -> FixedBuf {
        let base = self.ptr(bid);
        let ring = self.ring();
        assert!(len <= ring.size as usize, "the kernel filled {len} bytes of a buffer of {}", ring.size);
        {
            let mut books = self.books().borrow_mut();
            let taken = std::mem::replace(&mut books.taken[usize::from(bid)], true);
            assert!(!taken, "buffer {bid} of a receive ring was taken twice");
            books.taken_count += 1;
        }
        let home = Home::Ring(self.ring);
        // SAFETY: `size` bytes from `base` are the buffer's, which nobody else has: not another `FixedBuf` (checked
        // above), not the kernel (the caller says so). It is counted, so the header and the block stay until it is back.
        unsafe { FixedBuf::from_home(base, len, ring.size as usize, home) }
    }

    /// Calls `each` with every id whose buffer was dropped since the last call, on whichever thread. Returns how many.
    ///
    /// When there is none, this is two plain loads.
    pub(crate) fn drain_returned(&self, mut each: impl FnMut(u16)) -> usize {
        let mut drained = 0;
        let mut each = |bid| {
            unpoison(self.ptr(bid), self.size() as usize);
            each(bid);
        };
        // The books are never borrowed while `each` runs.
        let next = || self.books().borrow_mut().returned.pop();
        while let Some(bid) = next() {
            drained += 1;
            each(bid);
        }
        drained
            + self.ring().returns.take(|bid| {
                let bid = u16::try_from(bid).expect("ids of a receive ring have 16 bits");
                self.books().borrow_mut().give_back(bid);
                each(bid);
            })
    }

    /// How many buffers are the program's now, or were and are not drained yet if another thread dropped them.
    pub(crate) fn taken(&self) -> usize {
        self.books().borrow().taken_count
    }

    fn ring(&self) -> &Ring {
        // SAFETY: the header is freed only by the last one after `drop` below, so it is alive as long as `self` is.
        unsafe { self.ring.as_ref() }
    }

    fn books(&self) -> &RefCell<Books> {
        self.ring().books.get().expect("a RingBlocks does not leave the thread that made it")
    }
}

impl Drop for RingBlocks {
    fn drop(&mut self) {
        let out = {
            let mut books = self.books().borrow_mut();
            books.open = false;
            let came_back = self.ring().returns.close(|_| {});
            books.taken_count - came_back
        };
        // SAFETY: nobody is the last before this settles what is out, so the header is alive. The list was closed above;
        // every buffer that is still taken will come to `leave` once, now that the books are closed. `self` is at its
        // end and not used again.
        unsafe {
            let release = Returns::settle(&raw const (*self.ring.as_ptr()).returns, out);
            Ring::released(self.ring, release);
        }
    }
}

impl fmt::Debug for RingBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingBlocks")
            .field("count", &self.count())
            .field("size", &self.size())
            .field("taken", &self.taken())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::{BufPool, IoBuf, Pool};
    use super::*;

    fn pool() -> Pool {
        Pool::fixed(1 << 18).expect("256 KiB can be mapped")
    }

    /// Does what the kernel does: fills buffer `bid` with its own number and says so.
    fn receive(ring: &RingBlocks, bid: u16, len: usize) -> FixedBuf {
        let byte = u8::try_from(bid).expect("tests use few buffers");
        // SAFETY: `len` is within the buffer (tests use less than `size`), which is not taken: `take` checks.
        unsafe {
            ring.ptr(bid).write_bytes(byte, len);
            ring.take(bid, len)
        }
    }

    fn drained(ring: &RingBlocks) -> Vec<u16> {
        let mut bids = Vec::new();
        ring.drain_returned(|bid| bids.push(bid));
        bids.sort_unstable();
        bids
    }

    // An id that is lost starves the ring; one that comes twice lets the kernel write into a buffer in use.
    #[test]
    fn every_id_comes_back_once_from_here_and_from_other_threads() {
        let pool = pool();
        let ring = pool.arena().carve_ring(8, 512).expect("4 KiB of 256 KiB are free");
        let here: Vec<_> = [0, 3, 5].map(|bid| receive(&ring, bid, 100)).into();
        let there: Vec<_> = [1, 2, 7].map(|bid| receive(&ring, bid, 512)).into();
        assert!(there.iter().all(|buf| buf.len() == 512));
        assert_eq!(&here[1][..], [3; 100]);
        assert_eq!(ring.taken(), 6);
        drop(here);
        thread::spawn(move || drop(there)).join().expect("dropping does not panic");
        assert_eq!(drained(&ring), [0, 1, 2, 3, 5, 7]);
        assert_eq!(drained(&ring), []);
        assert_eq!(ring.taken(), 0);
        drop(receive(&ring, 3, 1));
        assert_eq!(drained(&ring), [3]);
    }

    // Two buffers that overlap would mix two connections' bytes.
    #[test]
    fn buffers_do_not_overlap_and_whole_pages_are_aligned() {
        let pool = pool();
        for (count, size) in [(16u16, 300u32), (4, 4096), (4, 5000)] {
            let ring = pool.arena().carve_ring(count, size).expect("the arena is free but for this ring");
            let bufs: Vec<_> = (0..count).map(|bid| receive(&ring, bid, size as usize)).collect();
            for (bid, buf) in bufs.iter().enumerate() {
                assert!(buf.iter().all(|&byte| usize::from(byte) == bid));
                assert!(buf.capacity() < PAGE || buf.io_ptr().addr().is_multiple_of(PAGE));
            }
        }
        assert_eq!(pool.stats().free_largest_bytes, 1 << 18, "each ring's block came back");
    }

    // A block freed with the ring while a buffer of it is still out would be lent to somebody else.
    #[test]
    fn the_block_goes_back_when_ring_and_buffers_are_gone() {
        let pool = pool();
        let ring = pool.arena().carve_ring(4, 4096).expect("16 KiB of 256 KiB are free");
        let (here, there) = (receive(&ring, 0, 10), receive(&ring, 1, 10));
        drop(receive(&ring, 2, 10));
        drop(ring);
        assert_eq!(pool.stats().blocks_out, 1);
        drop(here);
        assert_eq!(pool.stats().blocks_out, 1);
        thread::spawn(move || {
            assert_eq!(&there[..], [1; 10]);
            drop(there);
        })
        .join()
        .expect("the buffer is intact");
        assert_eq!(pool.stats().blocks_out, 0);
    }

    // The order in which a program's ends meet must not matter: pool first, then ring, then buffers elsewhere.
    #[test]
    fn buffers_outlive_ring_and_pool() {
        let pool = pool();
        let ring = pool.arena().carve_ring(4, 4096).expect("16 KiB of 256 KiB are free");
        let bufs: Vec<_> = (0..4).map(|bid| receive(&ring, bid, 4096)).collect();
        drop(pool);
        drop(ring);
        for (bid, buf) in (0u8..).zip(bufs) {
            thread::spawn(move || assert!(buf.iter().all(|&byte| byte == bid))).join().expect("intact");
        }
    }

    #[test]
    fn a_ring_that_does_not_fit_is_none() {
        let pool = pool();
        let _half = pool.alloc(1 << 17);
        assert!(pool.arena().carve_ring(64, 4096).is_none());
        assert!(pool.arena().carve_ring(u16::MAX, u32::MAX).is_none());
        assert!(pool.arena().carve_ring(32, 4096).is_some());
    }

    // The kernel's double answer, or our double use of one, must stop the program, not share a buffer.
    #[test]
    #[should_panic(expected = "buffer 1 of a receive ring was taken twice")]
    fn taking_a_buffer_twice_panics() {
        let pool = pool();
        let ring = pool.arena().carve_ring(2, 512).expect("1 KiB of 256 KiB is free");
        let _first = receive(&ring, 1, 1);
        let _second = receive(&ring, 1, 1);
    }
}
