//! How one task waits for what others leave it: a place for its waker, and the order in which both sides look.
//!
//! [`doorbell`](super::doorbell) wakes a worker, a [`Bell`] a task. One side *waits*: the receiver of a channel for a value, its
//! sender for room. The other side rings, from whichever thread, after each thing that may be waited for.
//!
//! ```text
//!   ringer                                     waiting task
//!   ──────                                     ────────────
//! s1  publish                                r1  announce: put the waker into its place, state := WAITS
//! s2  fence(SeqCst)                          r2  fence(SeqCst)
//! s3  state is WAITS? take the waker, wake   r3  look again: is it there? ─▶ withdraw, go on
//!                                            r4  return Pending
//! ```
//!
//! If s2 comes first in the order of fences, r3 sees what s1 published. If r2 does, s3 sees the announcement. A ringer that
//! finds nobody waiting has paid a fence and a load; the first of a burst that finds a waker takes it, and the rest find none.
//! So a burst wakes once.
//!
//! The waker's place belongs to whoever turned the state to BUSY, for a few instructions in which no foreign code runs but
//! the waker's own `clone`. Nobody waits for it:
//!
//! - a *ringer* that finds BUSY goes away. Either the waiting side is in r1, has r2 before it, and r3 will see; or another
//!   ringer is about to wake it. Had the task announced itself since and passed r2 before our s2, we would have seen WAITS.
//! - a *task* that finds BUSY is being woken at this moment. It wakes itself, and so comes again.
#![expect(unsafe_code, reason = "the waker's place passes from thread to thread with the state")]

use std::fmt;
use std::task::Waker;

use crate::io::driver::thread_pool::quietly;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU8, fence};
use crate::sync::{UnsafeCell, mutant};

/// Wakes the one task that waits.
pub(crate) struct Bell {
    state: AtomicU8,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: the waker, which is `Send`, is reached only by the thread that has turned `state` to BUSY, one at a time.
unsafe impl Sync for Bell {}
// SAFETY: it holds a `Waker`, which is `Send`, and a word; nothing in it knows the thread that it is on.
unsafe impl Send for Bell {}

/// Nobody waits. A waker of an earlier wait may be left in its place.
const QUIET: u8 = 0;

/// The waker in its place is to be woken.
const WAITS: u8 = 1;

/// Somebody has the waker's place.
const BUSY: u8 = 2;

impl Bell {
    /// A bell at which nobody waits.
    pub(crate) fn new() -> Bell {
        Bell { state: AtomicU8::new(QUIET), waker: UnsafeCell::new(None) }
    }

    /// Announces that a task waits, to be woken by `waker`. Look again after this; return `Pending` only if there is nothing.
    pub(crate) fn announce(&self, waker: &Waker) {
        match self.claim() {
            Some(mut place) => {
                // SAFETY: `place` stands for BUSY, which we turned on.
                let fits = self
                    .waker
                    .with(|slot| unsafe { (*slot).as_ref().is_some_and(|old| old.will_wake(waker)) });
                let old = if fits { None } else { Some(waker.clone()) };
                // SAFETY: `place` is still there, and with it BUSY: cloning the waker, which is foreign code, may have rung or announced
                // at this bell, and has found the place taken.
                let old = old.and_then(|new| self.waker.with_mut(|slot| unsafe { (*slot).replace(new) }));
                place.next = WAITS;
                drop(place);
                // Foreign code, when the place is free again.
                drop(old);
            }
            None => waker.wake_by_ref(),
        }
        if !mutant("bell: announce without fence") {
            fence(SeqCst);
        }
    }

    /// Takes the announcement back. A ringer that was faster wakes the task once for nothing.
    pub(crate) fn withdraw(&self) {
        // Relaxed: the waker stays where it is; whoever claims its place next acquires the store that put it there, in
        // whose release sequence this stands. A failure means that a ringer is at it.
        let _ringer = self.state.compare_exchange(WAITS, QUIET, Relaxed, Relaxed);
    }

    /// Wakes the task that waits, if one does. Publish first.
    pub(crate) fn ring(&self) {
        if !mutant("bell: ring without fence") {
            fence(SeqCst);
        }
        self.ring_behind_a_fence();
    }

    /// The same for one who has fenced what it published (s2) already.
    pub(crate) fn ring_behind_a_fence(&self) {
        if self.state.load(Relaxed) != WAITS {
            return;
        }
        let Some(place) = self.claim_as(WAITS) else { return };
        // SAFETY: `place` stands for BUSY, which we turned on.
        let waker = self.waker.with_mut(|slot| unsafe { (*slot).take() });
        drop(place);
        let waker = waker.expect("who announced has left a waker");
        // A panic of the waiting side's is none of the ringer's, who may be in the middle of taking a value.
        quietly(|| waker.wake());
    }

    /// The waker's place, unless somebody has it.
    fn claim(&self) -> Option<Place<'_>> {
        match self.state.load(Relaxed) {
            BUSY => None,
            state => self.claim_as(state),
        }
    }

    fn claim_as(&self, state: u8) -> Option<Place<'_>> {
        if mutant("bell: claim by a store") {
            self.state.store(BUSY, Relaxed);
            return Some(Place { bell: self, next: QUIET });
        }
        // Acquire: pairs with the Release in `Place::drop`; what the last one did with the waker's place is done.
        self.state.compare_exchange(state, BUSY, Acquire, Relaxed).ok()?;
        Some(Place { bell: self, next: QUIET })
    }
}

/// The right to the waker's place. Given back when dropped, also by an unwinding `clone`.
struct Place<'a> {
    bell: &'a Bell,
    next: u8,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the next `claim_as`.
        self.bell.state.store(self.next, Release);
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").field("waits", &(self.state.load(Relaxed) == WAITS)).finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::task::Wake;

    use loom::thread;

    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use crate::sync::{Arc, model};

    /// A waker that counts.
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn counting() -> (std::sync::Arc<Count>, Waker) {
        let count = std::sync::Arc::new(Count(AtomicUsize::new(0)));
        (count.clone(), Waker::from(count))
    }

    /// Two threads publish and ring while a task waits, is polled again with another waker, and waits again. In the end it
    /// must have seen both messages, or been woken after it looked.
    fn wait_against_rings() {
        let shared = Arc::new((Bell::new(), AtomicUsize::new(0)));
        let ringers: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.1.fetch_add(1, Relaxed);
                    shared.0.ring();
                })
            })
            .collect();
        let mut polls = Vec::new();
        for _ in 0..2 {
            let (count, waker) = counting();
            shared.0.announce(&waker);
            let seen = shared.1.load(Relaxed);
            polls.push((count, seen));
            if seen == 2 {
                shared.0.withdraw();
                break;
            }
        }
        for ringer in ringers {
            ringer.join().expect("it does not panic");
        }
        let (last, seen) = polls.last().expect("it was polled");
        assert!(*seen == 2 || last.0.load(Relaxed) > 0, "it waits for what is there");
    }

    #[test]
    fn loom_a_bell_is_never_missed() {
        model::holds(wait_against_rings);
    }

    #[test]
    fn loom_mutant_bell_announced_without_fence() {
        model::catches("bell: announce without fence", wait_against_rings);
    }

    #[test]
    fn loom_mutant_bell_rung_without_fence() {
        model::catches("bell: ring without fence", wait_against_rings);
    }

    #[test]
    fn loom_mutant_bell_claimed_by_a_store() {
        model::catches("bell: claim by a store", wait_against_rings);
    }
}
