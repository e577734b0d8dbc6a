//! Ticks: something to do again and again.
//!
//! Each tick is scheduled one period after the one before, not after when that was taken, so lateness does
//! not add up. A tick is *missed* when the next one is due before it is taken. What happens then is the
//! program's choice: [`MissedTickBehavior`].

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::{Instant, Sleep, sleep_until};

/// Ticks now, and then once every `period`.
///
/// ```
/// # use std::time::Duration;
/// # veloq::runtime::Builder::new().workers(1).build()?.block_on(async {
/// let mut interval = veloq::time::interval(Duration::from_millis(5));
/// let first = interval.tick().await;          // at once
/// let second = interval.tick().await;
/// assert_eq!(second - first, Duration::from_millis(5));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If `period` is zero, or no worker runs on this thread.
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    interval_at(Instant::now(), period)
}

/// Ticks at `start`, and then once every `period`.
///
/// # Panics
///
/// If `period` is zero.
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval's period must be longer than nothing");
    Interval { sleep: sleep_until(start), period, missed: MissedTickBehavior::default() }
}

/// What an [`Interval`] does when a tick was taken so late that the next one is due already.
///
/// With a period of 10, and a program that is busy from 12 to 37:
///
/// ```text
/// expected   0    10    20    30    40    50    60    70
/// Burst      0    10        37,37  40    50    60    70      all ticks come, the late ones at once
/// Delay      0    10        37        47    57    67         a full period after each
/// Skip       0    10        37    40    50    60    70       what was missed is left out
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTickBehavior {
    /// Makes up for it: ticks without waiting until it has caught up. For what must happen so many times.
    #[default]
    Burst,
    /// Goes on one period after the late tick was taken. For what must not happen too often.
    Delay,
    /// Leaves the missed ticks out and goes on with the next one on schedule. For what must happen in step.
    Skip,
}

impl MissedTickBehavior {
    /// When to tick next, after the tick that was due at `due` has been taken at `now`.
    fn next(self, due: Instant, now: Instant, period: Duration) -> Instant {
        let next = due.saturating_add(period);
        let missed = next <= now;
        match self {
            MissedTickBehavior::Delay if missed => now.saturating_add(period),
            MissedTickBehavior::Skip if missed => {
                let into_period = (now - due).as_nanos() % period.as_nanos();
                let into_period = u64::try_from(into_period).expect("less than an instant can tell");
                now.saturating_add(period - Duration::from_nanos(into_period))
            }
            _ => next,
        }
    }
}

/// Ticks at a fixed rate; made by [`interval`] and [`interval_at`].
#[derive(Debug)]
pub struct Interval {
    /// Sleeps until the next tick.
    sleep: Sleep,
    period: Duration,
    missed: MissedTickBehavior,
}

impl Interval {
    /// Waits for the next tick. The instant it was scheduled for, which may have passed.
    ///
    /// Dropping the future loses no tick.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// [`tick`](Self::tick), for futures written by hand.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        ready!(Pin::new(&mut self.sleep).poll(cx));
        let due = self.sleep.deadline();
        self.sleep.reset(self.missed.next(due, Instant::now(), self.period));
        Poll::Ready(due)
    }

    /// Ticks next one period from now.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn reset(&mut self) {
        self.sleep.reset(Instant::now().saturating_add(self.period));
    }

    /// The time between ticks.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }

    /// What happens to ticks that were missed. `Burst`, unless set otherwise.
    #[must_use]
    pub fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.missed
    }

    /// Chooses what happens to ticks that were missed.
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.missed = behavior;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::sleep::run;
    use super::*;
    use crate::runtime::timer::tests::{MS, virtual_timers};

    /// The schedule of the documentation: when ticks were taken, in periods of 10 ms, if the program is busy
    /// from 12 to 37.
    fn taken(behavior: MissedTickBehavior) -> Vec<u128> {
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            let start = Instant::now();
            let mut interval = interval(Duration::from_millis(10));
            interval.set_missed_tick_behavior(behavior);
            let mut taken = Vec::new();
            while taken.len() < 7 {
                interval.tick().await;
                taken.push(start.elapsed().as_millis());
                if taken.len() == 2 {
                    clock.set(start.ns() + 37 * MS);
                }
            }
            taken
        })
    }

    #[test]
    fn missed_ticks_are_made_up_for_put_off_or_left_out() {
        // Each behaviour against the table in its documentation.
        assert_eq!(taken(MissedTickBehavior::Burst), [0, 10, 37, 37, 40, 50, 60]);
        assert_eq!(taken(MissedTickBehavior::Delay), [0, 10, 37, 47, 57, 67, 77]);
        assert_eq!(taken(MissedTickBehavior::Skip), [0, 10, 37, 40, 50, 60, 70]);
    }

    #[test]
    fn lateness_does_not_add_up() {
        // Each tick is taken a little late, as the wheel's resolution has it; the thousandth must not be a
        // thousand times as late.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            let mut interval = interval(Duration::from_micros(1_001));
            let start = interval.tick().await;
            for n in 1..=1_000 {
                assert_eq!(interval.tick().await, start + n * Duration::from_micros(1_001));
            }
            assert!(start.elapsed() < Duration::from_micros(1_001_066));
        });
    }

    #[test]
    fn a_dropped_tick_is_not_lost() {
        // `select` drops the losing branches every time round.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            let mut interval = interval(Duration::from_millis(10));
            let start = interval.tick().await;
            for _ in 0..3 {
                let cut_short = super::super::timeout(Duration::from_millis(3), interval.tick()).await;
                assert!(cut_short.is_err());
            }
            assert_eq!(interval.tick().await, start + Duration::from_millis(10));
            interval.reset();
            assert_eq!(
                interval.tick().await - start,
                Duration::from_millis(10) + interval.period() + Duration::from_nanos(late(start))
            );
        });
        /// How late the tick before the reset was taken: the wheel's rounding, the same in every run of a
        /// virtual clock.
        fn late(start: Instant) -> u64 {
            (start.ns() + 10 * MS).next_multiple_of(65_536) - (start.ns() + 10 * MS)
        }
    }

    #[test]
    #[should_panic(expected = "longer than nothing")]
    fn a_period_of_nothing_is_refused() {
        // It would tick for ever without letting anybody else run.
        let (timers, _clock) = virtual_timers();
        let _entered = timers.enter();
        interval(Duration::ZERO);
    }
}
