//! The waker of whoever waits for a pool, where every thread that gives something back can reach it.
//!
//! One thread, the pool's, *sets* it; any thread *wakes* it: takes the waker out, and wakes that. The waker is in a plain cell,
//! and a word says whose it is:
//!
//! ```text
//!            set                       wake
//! Empty ──▶ Busy ──▶ Set     Set ──▶ Busy ──▶ Empty, then the waker is woken
//!           ▲ set, a newer waker │
//!           └────────────────────┘
//! ```
//!
//! Only who brings the word to Busy touches the cell. Nobody waits for it: whoever wakes and finds Busy goes away, since
//! either another is waking already, or the setter is about to look for itself (it sets the waker first, then says that it
//! waits, then looks); a setter that finds Busy has just been woken for, and wakes itself.
#![expect(unsafe_code, reason = "a cell that two threads hand to each other")]

use std::fmt;
use std::task::Waker;

use crate::io::driver::thread_pool::quietly;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::mutant;

/// No waker is in the cell.
const EMPTY: u8 = 0;
/// A waker is in the cell.
const SET: u8 = 1;
/// Somebody is at the cell.
const BUSY: u8 = 2;

/// See the module's prose.
pub(super) struct AtomicWaker {
    state: AtomicU8,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: the cell is touched only by who brought `state` to BUSY, and that is one at a time; a `Waker` may go anywhere.
unsafe impl Sync for AtomicWaker {}
// SAFETY: what may be shared may be moved, since nothing in it knows its thread: an atomic, and a `Waker` in the cell.
unsafe impl Send for AtomicWaker {}

impl AtomicWaker {
    pub(super) fn new() -> AtomicWaker {
        AtomicWaker { state: AtomicU8::new(EMPTY), waker: UnsafeCell::new(None) }
    }

    /// Puts `waker` in, on the pool's thread. If the one before is being taken out right now, wakes `waker` at once: the task
    /// looks again in its next turn, while who wakes needs two more steps.
    pub(super) fn set(&self, waker: &Waker) {
        let new = waker.clone();
        let old = match self.exchange(Some(new), SET) {
            Ok(old) => old,
            Err(new) => {
                // The old waker is being woken for news that is meant for the new one.
                if let (Some(new), false) = (&new, mutant("atomic waker: a setter that is late says nothing"))
                {
                    new.wake_by_ref();
                }
                new
            }
        };
        // A destructor of the program's, when nothing of ours is in its way.
        drop(old);
    }

    /// Takes the waker out, on the pool's thread: nobody waits any more.
    #[cfg_attr(loom, expect(dead_code, reason = "loom's model of `returns` does not reach it"))]
    pub(super) fn clear(&self) {
        drop(self.exchange(None, EMPTY));
    }

    /// Wakes whoever waits. On any thread; runs the program's waker.
    pub(super) fn wake(&self) {
        // Relaxed: whoever answers a mark comes after the setter who left it there, and so sees no older word than SET.
        if self.state.load(Ordering::Relaxed) != SET {
            return;
        }
        // Acquire pairs with the Release in `exchange`: it brings the waker.
        let order =
            if mutant("atomic waker: wake learns nothing") { Ordering::Relaxed } else { Ordering::Acquire };
        if self.state.compare_exchange(SET, BUSY, order, Ordering::Relaxed).is_err() {
            return;
        }
        // SAFETY: this thread brought the word to BUSY.
        let waker = self.waker.with_mut(|waker| unsafe { (*waker).take() });
        // Release pairs with the Acquire in `exchange`: the next to touch the cell comes after this.
        let order = if mutant("atomic waker: wake publishes nothing") {
            Ordering::Relaxed
        } else {
            Ordering::Release
        };
        self.state.store(EMPTY, order);
        if let Some(waker) = waker {
            // A panic of the program's would meet whoever drops a buffer.
            quietly(|| waker.wake());
        }
    }

    /// Exchanges what is in the cell for `new`, and then says `then`. Gives `new` back if somebody else is at the cell.
    fn exchange(&self, new: Option<Waker>, then: u8) -> Result<Option<Waker>, Option<Waker>> {
        // Relaxed: only a guess, checked by the exchange.
        let seen = self.state.load(Ordering::Relaxed);
        // Acquire pairs with the Release in `wake`.
        let taken = self.state.compare_exchange(seen, BUSY, Ordering::Acquire, Ordering::Relaxed);
        if seen == BUSY || taken.is_err() {
            return Err(new);
        }
        // SAFETY: this thread brought the word to BUSY.
        let old = self.waker.with_mut(|waker| unsafe { std::mem::replace(&mut *waker, new) });
        // Release pairs with the Acquire in `wake`: it publishes the waker.
        self.state.store(then, Ordering::Release);
        Ok(old)
    }
}

impl fmt::Debug for AtomicWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicWaker").finish_non_exhaustive()
    }
}
