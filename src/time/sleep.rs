//! Waiting for a point in time.
//!
//! A [`Sleep`] is a deadline and a `Timer`. It touches nothing until it is polled: then its timer takes a place on the wheel of the
//! worker that polls it, and keeps it from poll to poll. Polled on another worker, because its task was stolen, it takes a
//! place there; the old one is given back by a list without a lock. Dropping does the same.
//!
//! Deadlines are rounded up to a tick of the wheel (65 µs), so that nothing fires early and what is due together fires together. One
//! that has passed already is ready at its first poll, and touches no wheel.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Instant;
use crate::runtime::timer::Timer;

/// Waits for `duration`, counted from this call.
///
/// More than 584 years is for ever.
///
/// ```
/// # use std::time::Duration;
/// # veloq::runtime::Builder::new().workers(1).build()?.block_on(async {
/// veloq::time::sleep(Duration::from_millis(5)).await;
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(Instant::now().saturating_add(duration))
}

/// Waits until `deadline`.
///
/// # Panics
///
/// When polled, if no worker runs on the thread.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, timer: Timer::at(deadline.ns()) }
}

/// The future of [`sleep`] and [`sleep_until`]; ready when its deadline has passed, and from then on.
///
/// Dropping it disarms it. It is `Send` and `Unpin`, and takes a place on the wheel of the worker it is
/// polled on.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: Instant,
    timer: Timer,
}

impl Sleep {
    /// The point in time that it waits for.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits for another point in time instead, whether the old one has passed or not.
    ///
    /// Cheaper than a new `Sleep`. A task that waits already is woken at the new deadline; one that was
    /// woken, or waited on another worker, must poll again to be.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use veloq::time::{Instant, sleep};
    /// # veloq::runtime::Builder::new().workers(1).build()?.block_on(async {
    /// let start = Instant::now();
    /// let mut idle = sleep(Duration::from_secs(60));
    /// idle.reset(start + Duration::from_millis(5));
    /// idle.await;
    /// assert!(start.elapsed() < Duration::from_secs(60));
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.timer.reset(deadline.ns());
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.timer.poll(cx)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::runtime::timer::Timers;
    use crate::runtime::timer::tests::{MS, park, virtual_timers, waker};

    /// Polls a future to its end, moving the virtual clock from deadline to deadline.
    pub(in crate::time) fn run<F: Future>(timers: &Timers, clock: &Cell<u64>, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let (waker, _wakes) = waker();
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            park(timers, clock);
        }
    }

    #[test]
    fn sleeping_takes_as_long_as_asked_and_at_most_a_tick_more() {
        // Durations around the edges of ticks and levels, one after the other, from instants that are no
        // edges.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            for ns in [1, 65_535, 65_536, 65_537, 4_194_304, 300 * MS, 86_400_000 * MS] {
                clock.set(clock.get() + 12_345);
                let start = Instant::now();
                sleep(Duration::from_nanos(ns)).await;
                let late = start.elapsed() - Duration::from_nanos(ns);
                assert!(start.elapsed() >= Duration::from_nanos(ns));
                assert!(late < Duration::from_nanos(65_536), "{ns} ns: {late:?} late");
            }
        });
    }

    #[test]
    fn no_time_is_no_wait() {
        // Waiting a tick for nothing would slow loops whose delay came out as zero.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        let (waker, _) = waker();
        let cx = &mut Context::from_waker(&waker);
        let now = Instant::now();
        for mut over in [sleep(Duration::ZERO), sleep_until(now), sleep_until(now - Duration::from_millis(1))]
        {
            assert_eq!(Pin::new(&mut over).poll(cx), Poll::Ready(()));
            assert_eq!(Pin::new(&mut over).poll(cx), Poll::Ready(()), "and stays over");
        }
        assert_eq!(clock.get(), now.ns());
    }

    #[test]
    fn for_ever_does_not_end() {
        // `Duration::MAX` must neither panic nor wrap; it must not keep a worker from parking without a limit
        // either.
        let (timers, _clock) = virtual_timers();
        let _entered = timers.enter();
        let (waker, _) = waker();
        let mut sleep = sleep(Duration::MAX);
        assert_eq!(Pin::new(&mut sleep).poll(&mut Context::from_waker(&waker)), Poll::Pending);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_sleep_can_be_used_again() {
        // After it ended its entry is spent; a reset must arm it anew.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            let mut again = sleep(Duration::from_millis(1));
            for _ in 0..3 {
                (&mut again).await;
                assert!(Instant::now() >= again.deadline());
                again.reset(Instant::now() + Duration::from_millis(1));
            }
        });
        assert_eq!(timers.armed(), 0);
    }

    #[test]
    fn what_waits_for_time_can_be_sent() {
        // Stealable tasks hold these across awaits.
        fn assert_send_sync<T: Send + Sync>() {}
        assert_send_sync::<Sleep>();
        assert_send_sync::<super::super::Interval>();
        assert_send_sync::<super::super::Timeout<()>>();
    }
}
#[cfg(all(test, not(loom)))]
pub(super) use tests::run;
