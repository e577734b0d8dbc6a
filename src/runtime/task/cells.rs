//! Memory of tasks that are no more, kept for the next.
//!
//! A worker that spawns a task for each request frees one for each, of the same few sizes. So the worker keeps the memory of its own
//! tasks that die on its thread, and gives it to those that it spawns: the last one freed first, which is in the cache. The allocator is
//! asked only when more tasks are alive than were before.
//!
//! The header stays in it, *at rest*, with what the next task needs as well: a counted reference to the worker's mailbox, so that this
//! count, which other threads change too, is left alone.
//!
//! Sizes are rounded up to whole cache lines, and there is a shelf for each. A type's cells all have their rounded size, wherever they
//! are made, so that any of them can be put on its shelf. What is larger than the largest shelf, or aligned to more than a header
//! is, goes to the allocator and back. So does everything under a sanitizer, which then sees who uses a task that is no more.
#![expect(unsafe_code, reason = "memory without a type, between two tasks")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use super::state::Header;
use crate::sync::Cell;

/// A worker's shelves.
pub(super) struct Cells {
    /// The piece on each shelf that was kept last, and from it the others. A piece on the shelf of number `n` has `n + 1` lines, of
    /// which the first are a header at rest.
    shelves: [Cell<Option<NonNull<Header>>>; SHELVES],
    kept_bytes: Cell<usize>,
}

/// What cells of one type take of memory: known where the type is, so that it costs nothing to ask.
#[derive(Clone, Copy)]
pub(super) struct CellLayout {
    layout: Layout,
    /// [`NO_SHELF`] if none is kept.
    shelf: usize,
}

impl CellLayout {
    /// Of a cell of type `T`.
    pub(super) const fn of<T>() -> CellLayout {
        let layout = Layout::new::<T>();
        let lines = layout.size().div_ceil(LINE);
        if lines > SHELVES || layout.align() > align_of::<Header>() || cfg!(asan) {
            return CellLayout { layout, shelf: NO_SHELF };
        }
        match Layout::from_size_align(lines * LINE, layout.align()) {
            Ok(layout) => CellLayout { layout, shelf: lines - 1 },
            Err(_) => panic!("a kilobyte is not too large"),
        }
    }

    /// New memory.
    pub(super) fn allocate(self) -> NonNull<Header> {
        // SAFETY: a cell is not empty: it has a header.
        let place = unsafe { alloc(self.layout) };
        NonNull::new(place).unwrap_or_else(|| handle_alloc_error(self.layout)).cast()
    }

    /// Drops a header, and gives the memory back to the allocator.
    ///
    /// # Safety
    ///
    /// It was [allocated](CellLayout::allocate) as the same cell, nobody uses it any more, and behind the header nothing is left to be
    /// dropped.
    #[inline(never)]
    pub(super) unsafe fn clear(&self, place: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        unsafe {
            place.drop_in_place();
            dealloc(place.as_ptr().cast(), self.layout);
        }
    }
}

impl Cells {
    /// Empty shelves.
    pub(super) fn new() -> Cells {
        Cells { shelves: std::array::from_fn(|_| Cell::new(None)), kept_bytes: Cell::new(0) }
    }

    /// Memory for a cell, with a header at rest. `None` if there is none here.
    #[inline]
    pub(super) fn take(&self, layout: CellLayout) -> Option<NonNull<Header>> {
        let shelf = self.shelves.get(layout.shelf)?;
        let place = shelf.get()?;
        // SAFETY: what is on a shelf is a header that was this worker's, and is nobody else's.
        shelf.set(unsafe { place.as_ref().owned() }.list_next.get());
        self.kept_bytes.set(self.kept_bytes.get() - layout.layout.size());
        Some(place)
    }

    /// Keeps the memory of a cell that is no more, unless there is no shelf for it, or enough is kept. Whether it did.
    ///
    /// # Safety
    ///
    /// What is in it is a header at rest that was this worker's, and nothing else; nobody uses it any more, or will, if this says yes.
    #[inline]
    pub(super) unsafe fn keep(&self, place: NonNull<Header>) -> bool {
        // SAFETY: a header at rest, which is nobody else's until it is taken from its shelf.
        let header = unsafe { place.as_ref() };
        let layout = &header.vtable.layout;
        let kept_bytes = self.kept_bytes.get() + layout.layout.size();
        let Some(shelf) = self.shelves.get(layout.shelf).filter(|_| kept_bytes <= KEPT_BYTES_MAX) else {
            return false;
        };
        self.kept_bytes.set(kept_bytes);
        // SAFETY: this was its owner.
        unsafe { header.owned() }.list_next.set(shelf.replace(Some(place)));
        true
    }
}

impl Drop for Cells {
    fn drop(&mut self) {
        for (shelf, first) in self.shelves.iter().enumerate() {
            let mut next = first.take();
            while let Some(place) = next {
                // SAFETY: a header at rest, which is this shelf's alone.
                next = unsafe { place.as_ref().owned() }.list_next.get();
                let layout = Layout::from_size_align((shelf + 1) * LINE, align_of::<Header>());
                let layout = CellLayout { layout: layout.expect("as it was in `CellLayout::of`"), shelf };
                // SAFETY: what is on a shelf was allocated with the shelf's layout, whose alignment is a header's, since a cell
                // starts with one and is aligned to no more.
                unsafe { layout.clear(place) };
            }
        }
    }
}

/// What is kept comes in pieces of so many bytes: a cache line.
const LINE: usize = 64;

/// Shelves: the futures of nearly all tasks take less than a kilobyte.
const SHELVES: usize = 16;

/// The number of none of them.
const NO_SHELF: usize = SHELVES;

/// What a worker keeps at the most: the tasks of a thousand requests of usual size, and less than a core's own cache holds. Beyond that
/// memory that was used long ago is no faster than the allocator's.
const KEPT_BYTES_MAX: usize = 256 << 10;
