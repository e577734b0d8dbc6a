//! How many bytes of the heap a pool's buffers have.
//!
//! Only the pool's thread adds, any thread subtracts. The highest bit of the same word says that the pool waits for room, so
//! that there is no moment at which whoever gives back sees nobody waiting while the pool sees no room.

use std::fmt;

use super::bell::Bell;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Set while the pool waits for room. Sizes are at most `isize::MAX`, and all of them together are in one address space.
const AWAITED: usize = 1 << (usize::BITS - 1);

/// See the module's prose.
pub(super) struct Meter {
    out: AtomicUsize,
    bell: Arc<Bell>,
}

impl Meter {
    pub(super) fn new(bell: Arc<Bell>) -> Meter {
        Meter { out: AtomicUsize::new(0), bell }
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
        // Acquire pairs with the Release in `announce`: it brings the waker in the bell. Nothing else is published: the
        // bytes go to the allocator.
        let before = self.out.fetch_sub(bytes, Ordering::Acquire);
        if before & AWAITED != 0 {
            // Whoever sees the mark twice rings twice. Acquire, as above: the mark that this takes away may be a newer one.
            self.out.fetch_and(!AWAITED, Ordering::Acquire);
            self.bell.ring();
        }
    }

    /// Says that the pool waits for room for `bytes`. Returns whether there is room already.
    #[must_use = "room that is there already rings no bell"]
    pub(super) fn announce(&self, bytes: usize, max: usize) -> bool {
        // Release pairs with the Acquire in `subtract`: it publishes the waker in the bell.
        let before = self.out.fetch_or(AWAITED, Ordering::Release) & !AWAITED;
        before.saturating_add(bytes) <= max
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("out_bytes", &self.out_bytes()).finish_non_exhaustive()
    }
}
