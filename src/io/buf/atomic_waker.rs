//! The waker of whoever waits for a pool, where every thread that gives something back can reach it.
//!
//! One thread, the pool's, *sets* the bell; any thread *rings* it: it takes the waker out and wakes it. The waker is in a
//! plain cell, and a word says whose it is:
//!
//! ```text
//!            set                       ring
//! Quiet ──▶ Busy ──▶ Set     Set ──▶ Busy ──▶ Quiet, then wake
//!           ▲ set, a newer waker │
//!           └────────────────────┘
//! ```
//!
//! Only who brings the word to Busy touches the cell. Nobody waits for it: whoever rings and finds Busy goes away, since
//! either another is ringing already, or the setter is about to look for itself (it sets the bell first, then says that it
//! waits, then looks); a setter that finds Busy has just been rung for, and wakes itself.
#![expect(unsafe_code, reason = "a cell that two threads hand to each other")]

use std::fmt;
use std::task::Waker;

use crate::io::driver::thread_pool::quietly;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::mutant;

/// No waker is in the cell.
const QUIET: u8 = 0;
/// A waker is in the cell.
const SET: u8 = 1;
/// Somebody is at the cell.
const BUSY: u8 = 2;

/// See the module's prose.
pub(super) struct Bell {
    state: AtomicU8,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: the cell is touched only by who brought `state` to BUSY, and that is one at a time; a `Waker` may go anywhere.
unsafe impl Sync for Bell {}
// SAFETY: as above.
unsafe impl Send for Bell {}

impl Bell {
    pub(super) fn new() -> Bell {
        Bell { state: AtomicU8::new(QUIET), waker: UnsafeCell::new(None) }
    }

    /// Puts `waker` into the bell, on the pool's thread. If it is being rung right now, wakes `waker` at once: the task looks
    /// again in its next turn, while who rings needs two more steps.
    pub(super) fn set(&self, waker: &Waker) {
        let new = waker.clone();
        let old = match self.exchange(Some(new), SET) {
            Ok(old) => old,
            Err(new) => {
                // The old waker is being woken for news that is meant for the new one.
                if let (Some(new), false) = (&new, mutant("bell: a setter that is late says nothing")) {
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
    pub(super) fn unset(&self) {
        drop(self.exchange(None, QUIET));
    }

    /// Wakes whoever waits. On any thread; runs the program's waker.
    pub(super) fn ring(&self) {
        // Relaxed: whoever answers a mark comes after the setter who left it there, and so sees no older word than SET.
        if self.state.load(Ordering::Relaxed) != SET {
            return;
        }
        // Acquire pairs with the Release in `exchange`: it brings the waker.
        let order = if mutant("bell: ring learns nothing") { Ordering::Relaxed } else { Ordering::Acquire };
        if self.state.compare_exchange(SET, BUSY, order, Ordering::Relaxed).is_err() {
            return;
        }
        // SAFETY: this thread brought the word to BUSY.
        let waker = self.waker.with_mut(|waker| unsafe { (*waker).take() });
        // Release pairs with the Acquire in `exchange`: the next to touch the cell comes after this.
        let order =
            if mutant("bell: ring publishes nothing") { Ordering::Relaxed } else { Ordering::Release };
        self.state.store(QUIET, order);
        if let Some(waker) = waker {
            // A panic of the program's would meet whoever drops a buffer.
            quietly(|| waker.wake());
        }
    }

    /// Exchanges what is in the cell for `new`, and then says `then`. Gives `new` back if somebody else is at the cell.
    fn exchange(&self, new: Option<Waker>, then: u8) -> Result<Option<Waker>, Option<Waker>> {
        // Relaxed: only a guess, checked by the exchange.
        let seen = self.state.load(Ordering::Relaxed);
        // Acquire pairs with the Release in `ring`.
        let taken = self.state.compare_exchange(seen, BUSY, Ordering::Acquire, Ordering::Relaxed);
        if seen == BUSY || taken.is_err() {
            return Err(new);
        }
        // SAFETY: this thread brought the word to BUSY.
        let old = self.waker.with_mut(|waker| unsafe { std::mem::replace(&mut *waker, new) });
        // Release pairs with the Acquire in `ring`: it publishes the waker.
        self.state.store(then, Ordering::Release);
        Ok(old)
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}
