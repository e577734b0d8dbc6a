//! How many bytes of the heap a pool's buffers have.
//!
//! Only the pool's thread adds, any thread subtracts. The highest bit of the same word says that the pool waits for room, so
//! that there is no moment at which whoever gives back sees nobody waiting while the pool sees no room.

use std::fmt;

use super::atomic_waker::AtomicWaker;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::mutant;

/// Set while the pool waits for room. Sizes are at most `isize::MAX`, and all of them together are in one address space.
const AWAITED: usize = 1 << (usize::BITS - 1);

/// See the module's prose.
pub(super) struct Meter {
    out: AtomicUsize,
    waker: Arc<AtomicWaker>,
    /// Whether bytes are overwritten before they go back.
    zeroes: bool,
}

impl Meter {
    pub(super) fn new(waker: Arc<AtomicWaker>, zeroes: bool) -> Meter {
        Meter { out: AtomicUsize::new(0), waker, zeroes }
    }

    /// Whether whoever gives bytes back overwrites them first.
    #[cfg_attr(loom, expect(dead_code, reason = "loom's model does not reach it"))]
    pub(super) fn zeroes(&self) -> bool {
        self.zeroes
    }

    /// Bytes that are out.
    pub(super) fn out_bytes(&self) -> usize {
        // Relaxed: a figure.
        self.out.load(Ordering::Relaxed) & !AWAITED
    }

    /// Whether `bytes` more would be within `max`. On the pool's thread it stays true until that thread adds.
    pub(super) fn has_room(&self, bytes: usize, max: usize) -> bool {
        self.out_bytes().saturating_add(bytes) <= max
    }

    /// Counts `bytes` that come from the heap, on the pool's thread.
    pub(super) fn add(&self, bytes: usize) {
        // Relaxed: by the count nothing is published.
        self.out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` as back, on any thread.
    pub(super) fn subtract(&self, bytes: usize) {
        // Acquire pairs with the Release in `announce`: it brings the waker that was set. Nothing else is published: the
        // bytes go to the allocator.
        let order =
            if mutant("meter: subtracting learns nothing") { Ordering::Relaxed } else { Ordering::Acquire };
        let before = self.out.fetch_sub(bytes, order);
        if before & AWAITED != 0 && !mutant("meter: subtracting wakes nobody") {
            // Whoever sees the mark twice wakes twice. Acquire, as above: the mark that this takes away may be a newer one.
            self.out.fetch_and(!AWAITED, order);
            self.waker.wake();
        }
    }

    /// Says that the pool waits for room for `bytes`. Returns whether there is room already.
    #[must_use = "room that is there already wakes nobody"]
    pub(super) fn announce(&self, bytes: usize, max: usize) -> bool {
        // Release pairs with the Acquire in `subtract`: it publishes the waker that was set.
        let publish =
            if mutant("meter: announcing publishes nothing") { Ordering::Relaxed } else { Ordering::Release };
        let before = self.out.fetch_or(AWAITED, publish) & !AWAITED;
        before.saturating_add(bytes) <= max
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("out_bytes", &self.out_bytes()).finish_non_exhaustive()
    }
}

/// The protocol under loom: two foreign threads give back while the pool waits for the room of both.
#[cfg(all(test, loom))]
mod loom_tests {
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    use super::*;
    use crate::sync::model;

    /// The pool waits until both are back, and changes its waker once, as a future does that moves to another task.
    fn give_back_while_the_pool_waits() {
        let set = Arc::new(AtomicWaker::new());
        let meter = Arc::new(Meter::new(Arc::clone(&set), false));
        meter.add(2);
        for _ in 0..2 {
            let meter = Arc::clone(&meter);
            loom::thread::spawn(move || meter.subtract(1));
        }
        let poll = |waker: &Waker| {
            loop {
                if meter.has_room(2, 2) {
                    return Poll::Ready(());
                }
                set.set(waker);
                if !meter.announce(2, 2) {
                    return Poll::Pending;
                }
            }
        };
        if poll(Waker::noop()).is_pending() {
            // A wake that is missed is a deadlock, which loom finds.
            loom::future::block_on(poll_fn(|cx| {
                // As in `returns`: a setter that is late wakes itself until who rings has gone on.
                loom::thread::yield_now();
                poll(cx.waker())
            }));
        }
        assert_eq!(meter.out_bytes(), 0);
    }

    // Room that comes back unnoticed leaves a waiter asleep for ever.
    #[test]
    fn loom_room_that_is_waited_for_wakes() {
        model::holds(give_back_while_the_pool_waits);
    }

    #[test]
    fn loom_catches_each_mutant_of_the_meter() {
        model::catches("meter: subtracting wakes nobody", give_back_while_the_pool_waits);
        model::catches("meter: subtracting learns nothing", give_back_while_the_pool_waits);
        model::catches("meter: announcing publishes nothing", give_back_while_the_pool_waits);
    }
}
