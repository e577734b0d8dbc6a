//! One piece of memory that a pool lends out in blocks, and its life.
//!
//! A pool has one or several arenas. An [`Arena`] is a *header*: the mapping, its number, the kernel's index for it, the
//! books ([`Blocks`]) and the list of what other threads gave back ([`Returns`]). The header is on the heap, and
//! what is lent points to it:
//!
//! ```text
//!             Pool ──┐
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
//! and once a turn. When the pool is dropped, or has no more use for an arena that it grew by, [`ArenaRef::close`] marks the
//! books closed, closes the list, and settles what is still out (blocks and holds) into an atomic count; from then on every
//! give-back, on whichever thread, subtracts one, and the one that makes it zero frees header and mapping. `returns` has the
//! proof that this is exactly one. So a buffer is good for as long as its owner likes, on whichever thread, whatever became of its pool.
//!
//! The owner's path has no atomic read-modify-write: at home it is a comparison of addresses and plain stores.
#![expect(unsafe_code, reason = "raw pointers to a header that lives until the last block is back")]

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ptr::NonNull;

use super::atomic_waker::AtomicWaker;
use super::blocks::Blocks;
use super::fixed::{FixedBuf, Home};
use super::owned::Owned;
use super::poison::{poison, unpoison};
use super::pool::{HugePages, PoolConfig, PoolStats};
use super::returns::{Release, Returns};
use crate::os::map::Mapping;
use crate::sync::Arc;

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
    /// The unit in which blocks are numbered has two to the power of this many bytes.
    unit_log2: u32,
    /// Whether bytes are overwritten before they are lent again.
    zeroes: bool,
    /// Whether the mapping is of huge pages that were set aside.
    reserved_huge: bool,
    books: Owned<Books>,
}

/// [`Arena::registered`] while it is not. Indices have 16 bits.
const UNREGISTERED: u32 = u32::MAX;

/// What only the owner's thread sees.
struct Books {
    /// Until the pool is dropped.
    open: Cell<bool>,
    /// How many `ArenaRef`s there are; not counted any more when closed.
    holds: Cell<usize>,
    blocks: Blocks,
    returned_remotely: Cell<u64>,
}

impl Arena {
    /// How the kernel calls this memory, if it was told.
    pub(super) fn registration(&self) -> Option<Registration> {
        let index = self.registered.load(std::sync::atomic::Ordering::Relaxed);
        u16::try_from(index).ok().map(|index| Registration { arena: self.id, index })
    }

    /// Whether whoever gives bytes back overwrites them first.
    #[inline]
    pub(super) fn zeroes(&self) -> bool {
        self.zeroes
    }

    /// The address of a block, derived from the mapping's.
    #[inline]
    pub(super) fn block(&self, block: u32) -> NonNull<u8> {
        let offset = (block as usize) << self.unit_log2;
        assert!(offset < self.map.len(), "block {block} is not in this arena");
        // SAFETY: the offset is within the mapping, as the line above checks.
        unsafe { self.map.base().add(offset) }
    }

    /// The number of the block at this address. For an address that is no block's, a number that the books do not know as lent.
    #[inline]
    fn number(&self, base: NonNull<u8>) -> u32 {
        let offset = base.addr().get().wrapping_sub(self.map.base().addr().get());
        u32::try_from(offset >> self.unit_log2).unwrap_or(u32::MAX)
    }

    /// Lends what `allocate` finds in the books, after looking at what other threads gave back if need be. When the pool
    /// is gone, there is none.
    #[inline(always)]
    fn lend(&self, books: &Books, allocate: impl Fn(&Blocks) -> Option<u32>) -> Option<u32> {
        if !books.open.get() {
            return None;
        }
        match allocate(&books.blocks) {
            Some(block) => Some(block),
            None => self.lend_returned(books, allocate),
        }
    }

    #[cold]
    fn lend_returned(&self, books: &Books, allocate: impl Fn(&Blocks) -> Option<u32>) -> Option<u32> {
        if self.take_returns(books) == 0 { None } else { allocate(&books.blocks) }
    }

    /// Takes back what other threads gave back. Returns how many blocks that were.
    fn take_returns(&self, books: &Books) -> usize {
        let taken = self.returns.take(|block| books.blocks.free(block));
        books.returned_remotely.update(|count| count + taken as u64);
        taken
    }

    /// Gives a block back on the owner's thread while the pool lives. Returns whether that was so.
    #[inline]
    fn give_back_at_home(&self, block: u32) -> bool {
        let Some(books) = self.books.get().filter(|books| books.open.get()) else { return false };
        books.blocks.free(block);
        if let Some(waker) = self.returns.answer_at_home() {
            // Runs the program's waker, which may end the pool: nothing of this arena is used afterwards.
            waker.wake();
        }
        true
    }

    /// Gives the block that begins at `base` back, on any thread.
    ///
    /// # Safety
    ///
    /// The block was lent by `arena`, was not given back yet, and is used by nobody any more. The caller does not touch
    /// `arena` again on account of this block.
    #[inline]
    pub(super) unsafe fn give_back(arena: NonNull<Arena>, base: NonNull<u8>) {
        // SAFETY: a block that is lent keeps the header alive.
        let header = unsafe { arena.as_ref() };
        let block = header.number(base);
        if !header.give_back_at_home(block) {
            // SAFETY: the block is still lent, and the caller gives it up with this call.
            unsafe { Arena::give_back_elsewhere(arena, block) }
        }
    }

    /// Gives a block back on another thread than the owner's, or when the pool is gone.
    ///
    /// # Safety
    ///
    /// As for [`give_back`](Self::give_back).
    #[inline(never)]
    unsafe fn give_back_elsewhere(arena: NonNull<Arena>, block: u32) {
        // SAFETY: the block is still lent, so the header is alive, and the caller gives it up with this call. When the
        // owner's thread comes here the books are closed, and then so is the list.
        unsafe {
            let release = Returns::push(&raw const (*arena.as_ptr()).returns, block);
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
            Release::Last => {
                // SAFETY: the header came from `Box::leak` in `open`, and the last one (there is one, see `returns`) comes
                // after every use of it and of its memory.
                let arena = unsafe { Box::from_raw(arena.as_ptr()) };
                // The addresses may be mapped anew, by anybody.
                unpoison(arena.map.base(), arena.map.len());
            }
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
/// A driver takes one from the [`Pool`](super::Pool), registers the memory, and keeps the hold until the
/// kernel has forgotten the pages.
pub(crate) struct ArenaRef {
    arena: NonNull<Arena>,
}

impl ArenaRef {
    /// Maps an arena of the configured kind and size, and makes the running thread the owner. Whoever waits for its pool has set `waker`.
    ///
    /// The pool keeps this first hold, and closes the arena before dropping it.
    pub(super) fn open(config: &PoolConfig, waker: Arc<AtomicWaker>) -> io::Result<ArenaRef> {
        let bytes = config.bytes;
        let blocks = Blocks::new(config.kind, bytes);
        let reserved = match config.huge_pages {
            HugePages::Reserved => Mapping::guarded_reserved_huge(bytes).ok(),
            HugePages::Never | HugePages::Advised => None,
        };
        let reserved_huge = reserved.is_some();
        let map = match reserved {
            Some(map) => map,
            None => Mapping::guarded(bytes, config.huge_pages != HugePages::Never)?,
        };
        poison(map.base(), map.len());
        let arena = Arena {
            id: ArenaId::next(),
            map,
            registered: std::sync::atomic::AtomicU32::new(UNREGISTERED),
            returns: Returns::with_waker(blocks.units(), waker),
            unit_log2: blocks.unit_log2(),
            zeroes: config.zero_on_recycle,
            reserved_huge,
            books: Owned::new(Books {
                open: Cell::new(true),
                holds: Cell::new(1),
                blocks,
                returned_remotely: Cell::default(),
            }),
        };
        Ok(ArenaRef { arena: NonNull::from(Box::leak(Box::new(arena))) })
    }

    /// One more hold.
    pub(super) fn hold(&self) -> ArenaRef {
        let books = self.books();
        assert!(
            books.open.get(),
            "holds are handed out by the pool, which closes the arena when it is dropped"
        );
        books.holds.update(|holds| holds + 1);
        ArenaRef { arena: self.arena }
    }

    /// The end of the pool: from now on whoever gives back the last block or hold frees the arena.
    pub(super) fn close(&self) {
        let books = self.books();
        assert!(books.open.replace(false), "an arena is closed once, by its pool");
        self.header().returns.close(|block| books.blocks.free(block));
        let out = books.blocks.lent_blocks() + books.holds.get();
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
    ///
    /// Inlined with its callers, so that the buffer is written where it will stay: reading six words right after they were
    /// written costs more than all the rest.
    #[inline(always)]
    pub(super) fn try_alloc(&self, size: usize) -> Option<FixedBuf> {
        let header = self.header();
        let block = header.lend(self.books(), |blocks| blocks.allocate(size))?;
        let home = Home::Block(self.arena);
        // SAFETY: the block was lent just now, to this buffer, which gives it back on drop; it is at least `size` bytes
        // long, and its address derives from the mapping, which outlives what is lent.
        Some(unsafe { FixedBuf::from_home(header.block(block), 0, size, home) })
    }

    /// Lends a block that is no buffer: for the receive ring. With its address goes the pointer to give it back to.
    pub(super) fn lend_ring(&self, bytes: usize) -> Option<(NonNull<Arena>, NonNull<u8>)> {
        let block = self.header().lend(self.books(), |blocks| blocks.allocate_ring(bytes))?;
        Some((self.arena, self.header().block(block)))
    }

    /// Takes back what other threads gave back. Returns how many blocks that were.
    pub(super) fn reclaim(&self) -> usize {
        let books = self.books();
        if books.open.get() { self.header().take_returns(books) } else { 0 }
    }

    /// Blocks that are lent, as far as the books know.
    pub(super) fn lent_blocks(&self) -> usize {
        self.books().blocks.lent_blocks()
    }

    /// Blocks that are kept as they were cut.
    #[cfg(test)]
    pub(super) fn kept_blocks(&self) -> usize {
        self.books().blocks.kept_blocks()
    }

    /// Whether nothing is lent, as far as the books know.
    pub(super) fn is_idle(&self) -> bool {
        self.lent_blocks() == 0
    }

    /// Bytes of the largest block that could be lent now.
    pub(super) fn free_largest_bytes(&self) -> usize {
        self.books().blocks.free_largest_bytes()
    }

    /// Says that the pool waits for a block. Returns whether some have come back already, which ring no more.
    #[must_use = "what has come back should be taken"]
    pub(super) fn announce(&self) -> bool {
        self.header().returns.announce()
    }

    /// Adds this arena's figures to the pool's, after [`reclaim`](Self::reclaim).
    pub(super) fn add_to(&self, stats: &mut PoolStats) {
        self.reclaim();
        let header = self.header();
        let books = self.books();
        stats.chunks += 1;
        stats.arena_bytes += self.len();
        stats.reserved_huge_bytes += if header.reserved_huge { self.len() } else { 0 };
        stats.free_bytes += books.blocks.free_bytes();
        stats.free_largest_bytes = stats.free_largest_bytes.max(books.blocks.free_largest_bytes());
        stats.blocks_out += books.blocks.lent_blocks();
        stats.returned_remotely += books.returned_remotely.get();
    }

    #[inline]
    fn header(&self) -> &Arena {
        // SAFETY: this hold is counted, so the header is alive as long as `self` is.
        unsafe { self.arena.as_ref() }
    }

    #[inline]
    fn books(&self) -> &Books {
        self.header().books.get().expect("an ArenaRef does not leave the thread that owns the arena")
    }
}

impl Drop for ArenaRef {
    fn drop(&mut self) {
        let books = self.books();
        if books.open.get() {
            books.holds.update(|holds| holds - 1);
            debug_assert!(
                books.holds.get() > 0,
                "the pool's own hold is dropped after it has closed the arena"
            );
            return;
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
