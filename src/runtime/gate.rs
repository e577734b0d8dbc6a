//! A gate: counts who is inside, lets nobody in once it is closed, and tells when the last one has left.
//!
//! ```text
//!           enter ─▶ a pass, counted until it is dropped
//!  Open ────────────────────────────────────────────────▶ Closed ─────────────────▶ Closed, and empty
//!                                            close │  enter ─▶ GateClosed  │
//!                                                  └── everyone who awaits the close ──▶ ready
//! ```
//!
//! Closing is two things that happen at different times: from the call on nobody gets in; and later, when the last pass
//! is dropped, whoever awaits the close is told. Only the second is waited for, so a future of [`Gate::close`] that is dropped
//! leaves a closed gate behind, and any number may wait. A gate does not open again.
//!
//! A pass may be cloned, even when the gate is closed: work that was let in may split, and is out when all of it is.
//!
//! All of this is plain memory of one worker: a gate is `!Send`, and costs an addition to enter and one to leave.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::io::driver::thread_pool::quietly;

/// Lets work in until it is closed, and then tells when all of it has left. For draining: whatever must not go away under those
/// who use it is closed behind a gate first.
///
/// A gate belongs to its worker (it is `!Send`, and uses no atomics). Clones are the same gate.
///
/// ```
/// use veloq::task::Gate;
///
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let gate = Gate::new();
/// let pass = gate.enter().expect("it is open");
/// let request = veloq::spawn_local(async move {
///     veloq::task::yield_now().await;
///     drop(pass);
///     "answered"
/// });
/// let closing = gate.close();
/// assert!(gate.enter().is_err(), "nobody gets in any more");
/// closing.await;
/// assert!(request.await.is_ok(), "whoever was inside could finish");
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Gate {
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    closed: Cell<bool>,
    /// How many passes there are.
    inside: Cell<usize>,
    /// Who waits for the last one, by ticket.
    closers: RefCell<Vec<(u64, Waker)>>,
    /// The last ticket that was given out.
    tickets: Cell<u64>,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Lets the caller in, until it drops the pass.
    ///
    /// # Errors
    ///
    /// [`GateClosed`] once [`close`](Gate::close) has been called.
    pub fn enter(&self) -> Result<GatePass, GateClosed> {
        if self.state.closed.get() {
            return Err(GateClosed(()));
        }
        Ok(self.admit())
    }

    /// Lets in what belongs to somebody who is inside, even if the gate is closed.
    pub(super) fn admit(&self) -> GatePass {
        self.state.inside.set(self.state.inside.get() + 1);
        GatePass { state: Rc::clone(&self.state) }
    }

    /// Closes the gate, now; the future is ready when everybody has left.
    ///
    /// The gate stays closed if the future is dropped. Closing again is waiting once more, and any number may wait. One who
    /// holds a pass may close the gate, but not await it with the pass in hand: that would be waiting for itself.
    pub fn close(&self) -> Closing {
        self.state.closed.set(true);
        self.left()
    }

    /// Waits for a moment at which nobody is inside, whether or not the gate is closed.
    pub(super) fn left(&self) -> Closing {
        let ticket = self.state.tickets.get() + 1;
        self.state.tickets.set(ticket);
        Closing { state: Rc::clone(&self.state), ticket }
    }

    /// Whether the gate has been closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.closed.get()
    }

    /// How many passes there are now.
    #[must_use]
    pub fn inside(&self) -> usize {
        self.state.inside.get()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = self.is_closed();
        f.debug_struct("Gate").field("closed", &closed).field("inside", &self.inside()).finish()
    }
}

/// The right to be inside a [`Gate`]. It ends when the pass is dropped.
///
/// A clone is a pass of its own, and can be had from a pass even when the gate is closed.
pub struct GatePass {
    state: Rc<State>,
}

impl Clone for GatePass {
    fn clone(&self) -> GatePass {
        Gate { state: Rc::clone(&self.state) }.admit()
    }
}

impl Drop for GatePass {
    fn drop(&mut self) {
        let inside = self.state.inside.get() - 1;
        self.state.inside.set(inside);
        if inside == 0 {
            // Taken out first: a waker is foreign code, and may come back here.
            let closers = self.state.closers.take();
            for (_, closer) in closers {
                quietly(|| closer.wake());
            }
        }
    }
}

impl fmt::Debug for GatePass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatePass").finish_non_exhaustive()
    }
}

/// The future of [`Gate::close`]: ready when nobody is inside any more.
#[must_use = "the gate is closed, but those inside have left only when this is ready"]
pub struct Closing {
    state: Rc<State>,
    ticket: u64,
}

impl Future for Closing {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.inside.get() == 0 {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let mut closers = self.state.closers.borrow_mut();
        let stale = match closers.iter_mut().find(|(ticket, _)| *ticket == self.ticket) {
            Some((_, before)) => Some(std::mem::replace(before, waker)),
            None => {
                closers.push((self.ticket, waker));
                None
            }
        };
        drop(closers);
        // Foreign code, called with nothing borrowed.
        drop(stale);
        Poll::Pending
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let mut closers = self.state.closers.borrow_mut();
        let place = closers.iter().position(|(ticket, _)| *ticket == self.ticket);
        let stale = place.map(|place| closers.swap_remove(place));
        drop(closers);
        drop(stale);
    }
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").field("inside", &self.state.inside.get()).finish()
    }
}

/// The [`Gate`] has been closed, so nobody is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateClosed(());

impl fmt::Display for GateClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the gate has been closed")
    }
}

impl Error for GateClosed {}

impl From<GateClosed> for std::io::Error {
    fn from(error: GateClosed) -> std::io::Error {
        std::io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::io::driver::waiter::waker_that_panics;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    impl Wakes {
        fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn poll(closing: &mut Closing, wakes: &Arc<Wakes>) -> Poll<()> {
        Pin::new(closing).poll(&mut Context::from_waker(&Waker::from(wakes.clone())))
    }

    #[test]
    fn everyone_who_closes_is_told_when_the_last_has_left() {
        // A second closer that takes the first one's place, or a wake for each pass and not for the last, would be seen here.
        let gate = Gate::new();
        let (first, second) = (gate.enter().expect("open"), gate.clone().enter().expect("open"));
        let wakes = [(), ()].map(|()| Arc::new(Wakes::default()));
        let mut closings = [gate.close(), gate.close()];
        for _ in 0..2 {
            for (closing, wakes) in closings.iter_mut().zip(&wakes) {
                assert_eq!(poll(closing, wakes), Poll::Pending);
            }
        }
        assert_eq!(gate.enter().map(drop), Err(GateClosed(())));
        drop(first);
        assert_eq!(wakes.each_ref().map(|wakes| wakes.count()), [0, 0], "one is still inside");
        drop(second);
        for (closing, wakes) in closings.iter_mut().zip(&wakes) {
            assert_eq!(wakes.count(), 1);
            assert_eq!(poll(closing, wakes), Poll::Ready(()));
            assert_eq!(Arc::strong_count(wakes), 1, "no waker is kept");
        }
        assert_eq!(
            poll(&mut gate.close(), &wakes[0]),
            Poll::Ready(()),
            "and whoever comes later need not wait"
        );
    }

    #[test]
    fn a_waker_that_panics_keeps_nobody_waiting() {
        // The last pass goes once, and whoever is not told then is never told.
        let gate = Gate::new();
        let pass = gate.enter().expect("open");
        let (mut first, mut second) = (gate.close(), gate.close());
        assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&waker_that_panics())).is_pending());
        let wakes = Arc::new(Wakes::default());
        assert!(poll(&mut second, &wakes).is_pending());
        drop(pass);
        assert_eq!(wakes.count(), 1);
    }

    #[test]
    fn a_gate_that_is_empty_closes_at_once() {
        let gate = Gate::new();
        drop(gate.enter());
        assert_eq!(poll(&mut gate.close(), &Arc::default()), Poll::Ready(()));
        assert!(gate.is_closed());
    }

    #[test]
    fn the_gate_stays_closed_when_nobody_waits_for_it_any_more() {
        // A close that took effect at its first poll, or ended with its future, would let somebody in.
        let gate = Gate::new();
        let pass = gate.enter().expect("open");
        let wakes = Arc::new(Wakes::default());
        let mut closing = gate.close();
        assert!(gate.enter().is_err(), "closed by the call, not by the poll");
        assert_eq!(poll(&mut closing, &wakes), Poll::Pending);
        drop(closing);
        assert!(gate.enter().is_err());
        assert_eq!(Arc::strong_count(&wakes), 1, "the waker goes with its future");
        drop(pass);
        assert_eq!(wakes.count(), 0);
    }

    #[test]
    fn work_that_splits_is_out_when_all_of_it_is() {
        // Counting the clone only while the gate is open would tell the closer too early.
        let gate = Gate::new();
        let pass = gate.enter().expect("open");
        let mut closing = gate.close();
        let (wakes, part) = (Arc::new(Wakes::default()), pass.clone());
        assert_eq!(gate.inside(), 2);
        assert_eq!(poll(&mut closing, &wakes), Poll::Pending);
        drop(pass);
        assert_eq!((wakes.count(), poll(&mut closing, &wakes)), (0, Poll::Pending));
        drop(part);
        assert_eq!((wakes.count(), poll(&mut closing, &wakes)), (1, Poll::Ready(())));
    }

    #[test]
    fn a_waker_may_use_the_gate_that_wakes_it() {
        // Waking with the list borrowed would panic here.
        struct Reenters;
        std::thread_local! {
            static GATE: Gate = Gate::new();
        }
        impl Wake for Reenters {
            fn wake(self: Arc<Self>) {
                GATE.with(|gate| {
                    let waker = Waker::from(self);
                    let pass = gate.admit();
                    let mut again = gate.close();
                    assert!(Pin::new(&mut again).poll(&mut Context::from_waker(&waker)).is_pending());
                    drop(again);
                    drop(pass);
                });
            }
        }
        GATE.with(|gate| {
            let pass = gate.enter().expect("open");
            let mut closing = gate.close();
            let waker = Waker::from(Arc::new(Reenters));
            assert!(Pin::new(&mut closing).poll(&mut Context::from_waker(&waker)).is_pending());
            drop(pass);
            assert_eq!(gate.inside(), 0);
        });
    }
}
