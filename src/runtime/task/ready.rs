//! The tasks of one class that are ready, the oldest first: a list through their headers.
//!
//! A ring of addresses takes fewer stores, and is slower: a task that is put in and taken out at once is then found by what was just
//! stored, twice over. The two counts are what a worker reports of its polls and wakes.
#![expect(unsafe_code, reason = "an intrusive list over headers that the owner's reference keeps")]

use std::ptr::NonNull;

use super::state::Header;
use crate::sync::Cell;

/// Tasks that are ready, linked through their headers.
pub(super) struct ReadyQueue {
    first: Cell<Option<NonNull<Header>>>,
    last: Cell<Option<NonNull<Header>>>,
    /// How many tasks were ever put in.
    put: Cell<u64>,
    /// How many tasks were ever taken out.
    taken: Cell<u64>,
}

impl ReadyQueue {
    /// An empty one.
    pub(super) fn new() -> ReadyQueue {
        ReadyQueue { first: Cell::new(None), last: Cell::new(None), put: Cell::new(0), taken: Cell::new(0) }
    }

    /// Appends a task, which is ready from here on.
    ///
    /// # Safety
    ///
    /// `task` is unfinished and not ready, and belongs to the executor that has this queue.
    #[inline]
    pub(super) unsafe fn push(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise: an unfinished task is kept by the owner's reference, and so is one that is ready.
        let owned = unsafe { task.as_ref().owned() };
        owned.ready.set(true);
        owned.ready_next.set(None);
        match self.last.replace(Some(task)) {
            // SAFETY: a task in the queue is kept by the owner's reference.
            Some(last) => unsafe { last.as_ref().owned() }.ready_next.set(Some(task)),
            None => self.first.set(Some(task)),
        }
        self.put.set(self.put.get() + 1);
    }

    /// Takes the first task, which is ready no more. Its caller looks whether that was its last use.
    #[inline]
    pub(super) fn pop(&self) -> Option<NonNull<Header>> {
        let task = self.first.get()?;
        // SAFETY: a task in the queue is kept by the owner's reference, and this is its owner.
        let owned = unsafe { task.as_ref().owned() };
        let next = owned.ready_next.get();
        self.first.set(next);
        if next.is_none() {
            self.last.set(None);
        }
        owned.ready.set(false);
        self.taken.set(self.taken.get() + 1);
        Some(task)
    }

    /// Shows each task, the oldest first. `each` changes no queue.
    #[cfg(not(loom))]
    pub(super) fn each(&self, mut each: impl FnMut(NonNull<Header>)) {
        let mut next = self.first.get();
        while let Some(task) = next {
            each(task);
            // SAFETY: a task in the queue is kept by the owner's reference, and this is its owner.
            next = unsafe { task.as_ref().owned() }.ready_next.get();
        }
    }

    /// Whether there are none.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first.get().is_none()
    }

    /// How many there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::try_from(self.put.get() - self.taken.get()).expect("they are in memory")
    }

    /// How many were ever put in.
    pub(super) fn put(&self) -> u64 {
        self.put.get()
    }

    /// How many were ever taken out.
    #[inline]
    pub(super) fn taken(&self) -> u64 {
        self.taken.get()
    }
}
