//! A value inside a shared structure that only one thread ever sees.
//!
//! An arena's header is reachable from every thread that holds one of its buffers, but its books (free lists, counts)
//! belong to the thread that made it. [`Owned`] lets them lie in the header all the same: it hands out a reference on
//! that thread and `None` on any other. So "am I at home?" and "may I touch the books?" are one question, and the
//! compiler makes everyone ask it.
//!
//! A thread is known by the address of a thread-local byte: two instructions, no system call, no counter. No two threads
//! that are alive at once share it. When a thread has ended, a later one may get the same address, and with it what the
//! first one owned. That is sound: it is a transfer between threads (hence `T: Send`), ordered by the C library, which
//! hands the dead thread's storage over under its own lock. In practice it does not happen, since the pool that owns
//! the books cannot leave its thread and is dropped there.
#![expect(unsafe_code, reason = "shares with all threads what only one of them can reach")]

use std::fmt;

thread_local! {
    /// Its address is the thread's name. It has no destructor, so it can be asked for until the thread's very end.
    static HERE: u8 = const { 0 };
}

/// The name of the running thread; 0, which is no thread's, if it has none any more.
#[inline]
fn here() -> usize {
    HERE.try_with(|here| (&raw const *here).addr()).unwrap_or(0)
}

/// A `T` that only the thread which made it can reach.
pub(super) struct Owned<T> {
    thread: usize,
    value: T,
}

// SAFETY: `get` gives `&T` to one thread only, the one whose name was recorded (see the module's prose on names that are
// used again), so `T` need not be `Sync`. What another thread can do with an `Owned<T>` is drop it, and that takes
// `T: Send`.
unsafe impl<T: Send> Sync for Owned<T> {}

impl<T> Owned<T> {
    /// `value`, to be seen by the running thread only.
    pub(super) fn new(value: T) -> Owned<T> {
        // A thread so far gone that it has no name is nobody's, also not its own.
        let thread = if here() == 0 { usize::MAX } else { here() };
        Owned { thread, value }
    }

    /// The value, if this is the thread that owns it.
    #[inline]
    pub(super) fn get(&self) -> Option<&T> {
        (self.thread == here()).then_some(&self.value)
    }
}

impl<T> fmt::Debug for Owned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // If another thread got the reference, plain state would be raced on.
    #[test]
    fn only_the_thread_that_made_it_sees_the_value() {
        let owned = Owned::new(std::cell::Cell::new(1));
        owned.get().expect("this thread made it").set(2);
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(owned.get().is_none()));
        });
        assert_eq!(owned.get().map(std::cell::Cell::get), Some(2));
    }
}
