//! The tasks of one class that are ready, the oldest first.
//!
//! A [`ReadyQueue`] is a ring of addresses. A list through the headers would need no memory, but each task would have to be fetched
//! before the next is known, and to append one would write into the one before it. Here a task is appended by two stores, taken out by one,
//! and the two counts that say where are what a worker reports of its polls and wakes.
//!
//! **A wake always finds room,** and never allocates: the executor [reserves](ReadyQueue::reserve) a place for each task when it takes
//! the task in, and a task is in the queue at most once. So the ring has room for as many tasks as its worker ever had at once, eight
//! bytes each, and is not made smaller.
#![expect(unsafe_code, reason = "a ring without a look whether it is full, over headers that the owner's reference keeps")]

use std::ptr::NonNull;

use super::state::Header;
use crate::sync::Cell;

/// Tasks that are ready, the oldest first.
pub(super) struct ReadyQueue {
    first: Cell<Option<NonNull<Header>>>,
    last: Cell<Option<NonNull<Header>>>,
    taken: Cell<usize>,
    put: Cell<usize>,
}
impl ReadyQueue {
    pub(super) fn new() -> ReadyQueue {
        ReadyQueue { first: Cell::new(None), last: Cell::new(None), taken: Cell::new(0), put: Cell::new(0) }
    }
    pub(super) fn reserve(&self, _tasks: usize) {}
    #[inline]
    pub(super) unsafe fn push(&self, task: NonNull<Header>) {
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
    #[inline]
    pub(super) fn pop(&self) -> Option<NonNull<Header>> {
        let task = self.first.get()?;
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
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.put.get() - self.taken.get()
    }
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first.get().is_none()
    }
    pub(super) fn put(&self) -> u64 {
        self.put.get() as u64
    }
    #[inline]
    pub(super) fn taken(&self) -> u64 {
        self.taken.get() as u64
    }
}
