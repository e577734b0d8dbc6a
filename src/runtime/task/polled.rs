//! Which task a thread is polling, for whoever interrupts that thread.
//!
//! A worker that is watched ([`stall`](crate::runtime::stall)) leaves the header of the task that it polls in its [`Polled`], for the
//! length of the poll. A signal handler on that very thread may look at it: the header is there for as long as it stands there, since the
//! poll, which is interrupted, goes on afterwards. No other thread may.
//!
//! On a thread that is not watched a poll looks at one thread-local word, and that is all.
#![expect(unsafe_code, reason = "a header is looked at from a signal handler, in the middle of its poll")]

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use super::TaskId;
use super::label::Label;
use super::state::Header;
use crate::sync::Arc;
use crate::sync::atomic::AtomicPtr;
use crate::sync::atomic::Ordering::Relaxed;

/// Where a worker leaves the task that it polls.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Polled(AtomicPtr<Header>);

thread_local! {
    /// Where this thread does. No destructor, and stored in one piece.
    static HERE: Cell<*const Polled> = const { Cell::new(ptr::null()) };
}

/// While it lives, its thread's polls are noted.
#[derive(Debug)]
pub(in crate::runtime) struct PolledHere {
    polled: Arc<Polled>,
    not_send: PhantomData<*const ()>,
}

impl Polled {
    /// Has the calling thread leave the task that it polls here.
    pub(in crate::runtime) fn enter(self: &Arc<Polled>) -> PolledHere {
        HERE.set(Arc::as_ptr(self));
        PolledHere { polled: Arc::clone(self), not_send: PhantomData }
    }

    /// Number and label of the task. Allocates nothing, takes no lock.
    ///
    /// # Safety
    ///
    /// The calling thread is the one that entered, which a signal has interrupted, or which is not polling.
    pub(in crate::runtime) unsafe fn task(&self) -> Option<(TaskId, Label)> {
        // Relaxed: this thread wrote it.
        let task = NonNull::new(self.0.load(Relaxed))?;
        // SAFETY: `note` put it there for the length of a poll that this thread has begun and not ended, and whoever polls keeps the
        // header. Number and label do not change after the task was made.
        let header = unsafe { task.as_ref() };
        Some((header.id, header.label.clone()))
    }
}

impl Drop for PolledHere {
    fn drop(&mut self) {
        if ptr::eq(HERE.get(), Arc::as_ptr(&self.polled)) {
            HERE.set(ptr::null());
        }
    }
}

/// Notes that this thread polls `task`, until the guard is dropped; the caller keeps the header until then.
#[inline]
pub(super) fn note(task: NonNull<Header>) -> Noted {
    let here = HERE.get();
    if here.is_null() {
        return Noted { here, outer: ptr::null_mut() };
    }
    // SAFETY: `PolledHere` keeps it until it has taken the pointer away.
    let outer = unsafe { &(*here).0 };
    let before = outer.load(Relaxed);
    outer.store(task.as_ptr(), Relaxed);
    Noted { here, outer: before }
}

/// Puts the task back that was polled before, if there was one.
pub(super) struct Noted {
    here: *const Polled,
    outer: *mut Header,
}

impl Drop for Noted {
    #[inline]
    fn drop(&mut self) {
        if !self.here.is_null() {
            // SAFETY: a worker leaves (drops its `PolledHere`) outside of its polls, so it is there still.
            unsafe { &(*self.here).0 }.store(self.outer, Relaxed);
        }
    }
}
