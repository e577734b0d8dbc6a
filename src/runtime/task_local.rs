//! Values that belong to a task, or to a part of one, as thread-locals belong to a thread.
//!
//! The value lives in the future of [`scope`](TaskLocal::scope), beside the future that it is for, and goes where that goes:
//! to another task, another worker, another runtime. A thread-local slot holds it only while that future is polled or dropped:
//!
//! ```text
//!   poll ──▶ swap value and slot ──▶ poll what is inside ──▶ swap back, also if that panicked
//! ```
//!
//! What was in the slot before (the value of a scope further out, or none) waits in the scope's future meanwhile. So scopes
//! nest, and at each moment the slot has what the innermost scope on the stack gave it.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::LocalKey;

use pin_project_lite::pin_project;

/// The key of a value that each task can have its own of. Declared by [`task_local!`](crate::task_local).
///
/// A task that is spawned inside a scope does not inherit the value: it outlives the scope. Give it one of its own.
pub struct TaskLocal<T: 'static> {
    slot: &'static LocalKey<RefCell<Option<T>>>,
}

impl<T: 'static> TaskLocal<T> {
    /// For the macro: a key over this slot, which nobody else uses.
    #[doc(hidden)]
    #[must_use]
    pub const fn new(slot: &'static LocalKey<RefCell<Option<T>>>) -> TaskLocal<T> {
        TaskLocal { slot }
    }

    /// Runs `future` with this value: whatever it calls and awaits can look at it by [`with`](TaskLocal::with), and so can its
    /// destructor. Scopes nest; the innermost counts.
    ///
    /// The future may move between workers if both it and the value may.
    ///
    /// # Panics
    ///
    /// The future panics if it is polled inside `with` of the same key.
    pub fn scope<F: Future>(&self, value: T, future: F) -> TaskScope<T, F> {
        TaskScope { slot: self.slot, value: Some(value), future: Some(future) }
    }

    /// Calls `f` with this value in place.
    ///
    /// # Panics
    ///
    /// If called inside [`with`](TaskLocal::with) of the same key.
    #[track_caller]
    pub fn sync_scope<R>(&self, value: T, f: impl FnOnce() -> R) -> R {
        let mut value = Some(value);
        let _in_place = InPlace::put(self.slot, &mut value).expect(BORROWED);
        f()
    }

    /// Calls `f` with the value of the innermost scope.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[track_caller]
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        match self.try_with(f) {
            Ok(result) => result,
            Err(error) => panic!("{error}; put the future into the key's `scope`"),
        }
    }

    /// Calls `f` with the value of the innermost scope.
    ///
    /// # Errors
    ///
    /// [`NotInScope`] if there is none; `f` is not called then.
    pub fn try_with<R>(&self, f: impl FnOnce(&T) -> R) -> Result<R, NotInScope> {
        let found = self.slot.try_with(|slot| slot.borrow().as_ref().map(f));
        found.ok().flatten().ok_or(NotInScope(()))
    }
}

impl<T: 'static> fmt::Debug for TaskLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskLocal").finish_non_exhaustive()
    }
}

pin_project! {
    /// The future of [`TaskLocal::scope`].
    #[must_use = "futures do nothing unless awaited"]
    pub struct TaskScope<T: 'static, F> {
        slot: &'static LocalKey<RefCell<Option<T>>>,
        // Ours while nothing runs, else that of the scope around us.
        value: Option<T>,
        #[pin]
        future: Option<F>,
    }

    impl<T: 'static, F> PinnedDrop for TaskScope<T, F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                // Inside `with`, or at the end of the thread, the value cannot be put in place; dropped it must be all the same.
                let _in_place = InPlace::put(this.slot, this.value);
                this.future.set(None);
            }
        }
    }
}

impl<T: 'static, F: Future> Future for TaskScope<T, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _in_place = InPlace::put(this.slot, this.value).expect(BORROWED);
        let future =
            this.future.as_mut().as_pin_mut().expect("a scope's future has ended; do not poll it again");
        let output = std::task::ready!(future.poll(cx));
        // Its destructor may want the value as well.
        this.future.set(None);
        Poll::Ready(output)
    }
}

impl<T: 'static, F> fmt::Debug for TaskScope<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskScope").finish_non_exhaustive()
    }
}

/// While it lives, a value and what was in the slot have changed places.
struct InPlace<'a, T: 'static> {
    slot: &'static LocalKey<RefCell<Option<T>>>,
    value: &'a mut Option<T>,
}

impl<'a, T: 'static> InPlace<'a, T> {
    /// Swaps, unless the slot is borrowed or gone.
    fn put(slot: &'static LocalKey<RefCell<Option<T>>>, value: &'a mut Option<T>) -> Option<InPlace<'a, T>> {
        InPlace::swap(slot, value).then_some(InPlace { slot, value })
    }

    fn swap(slot: &'static LocalKey<RefCell<Option<T>>>, value: &mut Option<T>) -> bool {
        let swapped =
            slot.try_with(|slot| slot.try_borrow_mut().map(|mut slot| mem::swap(&mut *slot, value)));
        matches!(swapped, Ok(Ok(())))
    }
}

impl<T: 'static> Drop for InPlace<'_, T> {
    fn drop(&mut self) {
        // Every borrow is one of `with`, which began after `put` and has ended before this.
        InPlace::swap(self.slot, self.value);
    }
}

/// Why a value cannot be put in place.
const BORROWED: &str = "a task-local's scope cannot be entered inside `with` of the same key";

/// No scope of the [`TaskLocal`] is around this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotInScope(());

impl fmt::Display for NotInScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task-local has no value here")
    }
}

impl Error for NotInScope {}
