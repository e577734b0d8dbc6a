//! One piece of memory that a pool lends out in blocks, and its life.
//!
//! An [`Arena`] is a *header*: the mapping, its number, the kernel's index for it, the books ([`Buddy`]) and the list of
//! what other threads gave back ([`Returns`]). The header is on the heap, and what is lent points to it:
//!
//! ```text
//!        BuddyPool ──┐
//!  driver: ArenaRef ─┤           ┌─ books: free lists, counts      the owner's thread only (Owned)
//!          FixedBuf ─┼─▶ Arena ──┼─ returns: blocks given back     any thread
//!          FixedBuf ─┤   header  ├─ registered: the kernel's index any thread reads
//!        RingBlocks ─┘           └─ Mapping: the bytes
//! ```
//!
//! **Two kinds of things keep it alive**, and the books count both: *blocks* (each lent to one `FixedBuf` or one
//! receive ring) and *holds* (an [`ArenaRef`] each: the pool has one; a driver has one for as long as the kernel knows
//! the pages, since registered pages must not be unmapped under a living ring).
//!
//! **Order of events.** While the pool lives the header is *open*: on the owner's thread a block is given back by
//! plain writes to the books, on other threads by the list, which the owner drains when its own blocks do not suffice
//! and once a turn. When the pool is dropped, [`ArenaRef::close`] marks the books closed, closes the list, and settles
//! what is still out (blocks and holds) into an atomic count; from then on every give-back, on whichever thread,
//! subtracts one, and the one that makes it zero frees header and mapping. `returns` has the proof that this is exactly
//! one. So a buffer is good for as long as its owner likes, on whichever thread, whatever became of its pool.
//!
//! The owner's path has no atomic read-modify-write: at home it is a comparison of addresses and plain stores.
#![expect(unsafe_code, reason = "raw pointers to a header that lives until the last block is back")]

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ptr::NonNull;

use super::PAGE;
use super::buddy::{self, Buddy};
use super::fixed::{FixedBuf, Home};
use super::owned::Owned;
use super::pool::PoolStats;
use super::returns::{Release, Returns};
use crate::os::map::Mapping;

/// Which arena, among all of this process. Numbers are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArenaId(u64);

impl ArenaId {
    fn next() -> ArenaId {
        // Not from `crate::sync`: a number is published with whatever carries it, and loom has nothing to explore here.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        // Relaxed: only that each value is given once matters.
        ArenaId(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

/// That a buffer's memory is registered with a ring, and how the kernel calls it there.
///
/// The index means something to the ring of `arena`'s own driver only; every other must use the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Registration {
    /// The arena that was registered.
    pub arena: ArenaId,
    /// Its index in the ring's table of buffers.
    pub index: u16,
}

/// The header. See the module's prose.
pub(super) struct Arena {
    id: ArenaId,
    map: Mapping,
    /// The index in the ring's table, or [`UNREGISTERED`]. Written by the owner. Relaxed everywhere: to the owner's
    /// driver it is its own last write; any other driver sees by `id` that the index is not for it, whatever it reads.
    registered: std::sync::atomic::AtomicU32,
    returns: Returns,
    books: Owned<RefCell<Books>>,
}

/// [`Arena::registered`] while it is not. Indices have 16 bits.
const UNREGISTERED: u32 = u32::MAX;

/// What only the owner's thread sees.
struct Books {
    /// Until the pool is dropped.
    open: bool,
    /// How many `ArenaRef`s there are; not counted any more when closed.
    holds: usize,
    buddy: Buddy,
    hits: u64,
    misses: u64,
    returned_remotely: u64,
}

impl Arena {
    /// How the kernel calls this memory, if it was told.
    pub(super) fn registration(&self) -> Option<Registration> {
        let index = self.registered.load(std::sync::atomic::Ordering::Relaxed);
        u16::try_from(index).ok().map(|index| Registration { arena: self.id, index })
    }

    /// The address of a page, derived from the mapping's.
    pub(super) fn page(&self, page: u32) -> NonNull<u8> {
        let offset = page as usize * PAGE;
        assert!(offset < self.map.len(), "page {page} is not in this arena");
        // SAFETY: the offset is within the mapping, as the line above checks.
        unsafe { self.map.base().add(offset) }
    }

    /// Lends the smallest block that holds `bytes`, after looking at what other threads gave back if need be. When the
    /// pool is gone, there is none.
    fn lend(&self, books: &mut Books, bytes: usize) -> Option<u32> {
        let order = buddy::order_of(bytes)?;
        if !books.open {
            return None;
        }
        if let Some(page) = books.buddy.allocate(order) {
            return Some(page);
        }
        self.take_returns(books);
        books.buddy.allocate(order)
    }

    /// Takes back what other threads gave back. Returns how many blocks that were.
    fn take_returns(&self, books: &mut Books) -> usize {
        let taken = self.returns.take(|page| books.buddy.free(page));
        books.returned_remotely += taken as u64;
        taken
    }

    /// Gives a block back on the owner's thread while the pool lives. Returns whether that was so.
    fn give_back_at_home(&self, page: u32) -> bool {
        let Some(books) = self.books.get() else { return false };
        let mut books = books.borrow_mut();
        if books.open {
            books.buddy.free(page);
        }
        books.open
    }

    /// Gives a block back, on any thread.
    ///
    /// # Safety
    ///
    /// The block that begins at `page` was lent by `arena`, was not given back yet, and is used by nobody any more. The
    /// caller does not touch `arena` again on account of this block.
    pub(super) unsafe fn give_back(arena: NonNull<Arena>, page: u32) {
        // SAFETY: a block that is lent keeps the header alive.
        if unsafe { arena.as_ref() }.give_back_at_home(page) {
            return;
        }
        // SAFETY: the block is still lent, so the header is alive, and the caller gives it up with this call. When the
        // owner's thread comes here the books are closed, and then so is the list.
        unsafe {
            let release = Returns::push(&raw const (*arena.as_ptr()).returns, page);
            Arena::released(arena, release);
        }
    }

    /// Frees header and mapping if that was the last.
    ///
    /// # Safety
    ///
    /// `release` is the answer for `arena`, and nobody was given it before.
    unsafe fn released(arena: NonNull<Arena>, release: Release) {
        match release {
            Release::Held => {}
            // SAFETY: the header came from `Box::leak` in `open`, and the last one (there is one, see `returns`) comes
            // after every use of it and of its memory.
            Release::Last => drop(unsafe { Box::from_raw(arena.as_ptr()) }),
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("id", &self.id)
            .field("bytes", &self.map.len())
            .field("registration", &self.registration())
            .finish_non_exhaustive()
    }
}

/// A hold on an arena: while it exists, header and mapping do. `!Send`: it stays on the owner's thread.
///
/// A driver takes one with [`BuddyPool::arena`](super::BuddyPool), registers the memory, and keeps the hold until the
/// kernel has forgotten the pages.
pub(crate) struct ArenaRef {
    arena: NonNull<Arena>,
}

impl ArenaRef {
    /// Maps `bytes`, a size that [`Buddy::new`] takes, and makes the running thread the owner.
    ///
    /// The pool keeps this first hold, and closes the arena before dropping it.
    pub(super) fn open(bytes: usize) -> io::Result<ArenaRef> {
        let buddy = Buddy::new(bytes);
        let arena = Arena {
            id: ArenaId::next(),
            map: Mapping::new(bytes)?,
            registered: std::sync::atomic::AtomicU32::new(UNREGISTERED),
            returns: Returns::new(u32::try_from(bytes / PAGE).expect("pages are numbered in u32")),
            books: Owned::new(RefCell::new(Books {
                open: true,
                holds: 1,
                buddy,
                hits: 0,
                misses: 0,
                returned_remotely: 0,
            })),
        };
        Ok(ArenaRef { arena: NonNull::from(Box::leak(Box::new(arena))) })
    }

    /// One more hold.
    pub(super) fn hold(&self) -> ArenaRef {
        let mut books = self.books().borrow_mut();
        assert!(books.open, "holds are handed out by the pool, which closes the arena when it is dropped");
        books.holds += 1;
        ArenaRef { arena: self.arena }
    }

    /// The end of the pool: from now on whoever gives back the last block or hold frees the arena.
    pub(super) fn close(&self) {
        let out = {
            let mut books = self.books().borrow_mut();
            assert!(books.open, "an arena is closed once, by its pool");
            books.open = false;
            self.header().returns.close(|page| books.buddy.free(page));
            books.buddy.lent_blocks() + books.holds
        };
        // SAFETY: this hold keeps the header alive. The list was closed above. Every block that is lent, and every
        // hold, will come to `leave` once, now that the books are closed; none that was given back will.
        let release = unsafe { Returns::settle(&raw const (*self.arena.as_ptr()).returns, out) };
        assert_eq!(release, Release::Held, "this hold is still out");
    }

    /// Which arena this is.
    pub(crate) fn id(&self) -> ArenaId {
        self.header().id
    }

    /// The first byte of the arena; good for [`len`](Self::len) bytes, while this hold lives.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.header().map.base()
    }

    /// The arena's size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.header().map.len()
    }

    /// Notes that the whole arena is registered with the driver's ring under `index`. From now on its buffers say so; when
    /// that ring is gone, nobody is left for whom it means anything.
    pub(crate) fn set_registered(&self, index: u16) {
        self.header().registered.store(u32::from(index), std::sync::atomic::Ordering::Relaxed);
    }

    /// A buffer of exactly `size` bytes, or nothing if no block is large enough or the pool is gone.
    pub(super) fn try_alloc(&self, size: usize) -> Option<FixedBuf> {
        let mut books = self.books().borrow_mut();
        let page = self.header().lend(&mut books, size)?;
        books.hits += 1;
        let home = Home::Block { arena: self.arena, page };
        // SAFETY: the block was lent just now, to this buffer, which gives it back on drop; it is at least `size` bytes
        // long, and its address derives from the mapping, which outlives what is lent.
        Some(unsafe { FixedBuf::from_home(self.header().page(page), 0, size, home) })
    }

    /// Lends a block that is no buffer: for the receive ring. With it goes the pointer to give it back to.
    pub(super) fn lend(&self, bytes: usize) -> Option<(NonNull<Arena>, u32)> {
        let page = self.header().lend(&mut self.books().borrow_mut(), bytes)?;
        Some((self.arena, page))
    }

    /// Counts a buffer that had to come from the heap.
    pub(super) fn count_miss(&self) {
        self.books().borrow_mut().misses += 1;
    }

    /// Takes back what other threads gave back. Returns how many blocks that were.
    pub(super) fn reclaim(&self) -> usize {
        let mut books = self.books().borrow_mut();
        if books.open { self.header().take_returns(&mut books) } else { 0 }
    }

    /// The books, in figures, after [`reclaim`](Self::reclaim).
    pub(super) fn stats(&self) -> PoolStats {
        self.reclaim();
        let mut books = self.books().borrow_mut();
        PoolStats {
            arena_bytes: self.len(),
            free_bytes: books.buddy.free_bytes(),
            free_largest_bytes: books.buddy.free_largest_bytes(),
            blocks_out: books.buddy.lent_blocks(),
            hits: books.hits,
            misses: books.misses,
            returned_remotely: books.returned_remotely,
        }
    }

    fn header(&self) -> &Arena {
        // SAFETY: this hold is counted, so the header is alive as long as `self` is.
        unsafe { self.arena.as_ref() }
    }

    fn books(&self) -> &RefCell<Books> {
        self.header().books.get().expect("an ArenaRef does not leave the thread that owns the arena")
    }
}

impl Drop for ArenaRef {
    fn drop(&mut self) {
        {
            let mut books = self.books().borrow_mut();
            if books.open {
                books.holds -= 1;
                debug_assert!(
                    books.holds > 0,
                    "the pool's own hold is dropped after it has closed the arena"
                );
                return;
            }
        }
        // SAFETY: the books are closed, so this hold was settled as one that is out; it keeps the header alive until
        // here and is not used again.
        unsafe {
            let release = Returns::leave(&raw const (*self.arena.as_ptr()).returns);
            Arena::released(self.arena, release);
        }
    }
}

impl fmt::Debug for ArenaRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ArenaRef").field(self.header()).finish()
    }
}
