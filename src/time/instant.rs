//! A point in time, by the clock of the workers.
//!
//! It is a number of nanoseconds since an origin that all workers of a process share (a simulation has its
//! own), so instants of different workers compare. Arithmetic follows `std::time::Instant`, name by name.

use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::Duration;

use crate::runtime::timer::Timers;

/// A point in time, by the clock of the workers; [`std::time::Instant`] for programs that may run on virtual
/// time.
///
/// Measures 584 years from the clock's origin.
///
/// ```
/// # use std::time::Duration;
/// # use veloq::time::{Instant, sleep};
/// # veloq::runtime::Builder::new().workers(1).build()?.block_on(async {
/// let start = Instant::now();
/// sleep(Duration::from_millis(5)).await;
/// assert!(start.elapsed() >= Duration::from_millis(5));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    /// Nanoseconds since the clock's origin.
    ns: u64,
}

impl Instant {
    /// Reads the clock.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[must_use]
    #[track_caller]
    pub fn now() -> Instant {
        Instant { ns: Timers::current().now() }
    }

    /// How long ago this was; zero if it is yet to come.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[must_use]
    #[track_caller]
    pub fn elapsed(&self) -> Duration {
        Instant::now().duration_since(*self)
    }

    /// How much later than `earlier` this is; zero if it is not later.
    #[must_use]
    pub fn duration_since(&self, earlier: Instant) -> Duration {
        self.saturating_duration_since(earlier)
    }

    /// How much later than `earlier` this is; `None` if it is before.
    #[must_use]
    pub fn checked_duration_since(&self, earlier: Instant) -> Option<Duration> {
        self.ns.checked_sub(earlier.ns).map(Duration::from_nanos)
    }

    /// How much later than `earlier` this is; zero if it is not later.
    #[must_use]
    pub fn saturating_duration_since(&self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.ns.saturating_sub(earlier.ns))
    }

    /// `self + duration`, or `None` if that is more than 584 years from the clock's origin.
    #[must_use]
    pub fn checked_add(&self, duration: Duration) -> Option<Instant> {
        let ns = u64::try_from(duration.as_nanos()).ok()?;
        Some(Instant { ns: self.ns.checked_add(ns)? })
    }

    /// `self - duration`, or `None` if that is before the clock's origin.
    #[must_use]
    pub fn checked_sub(&self, duration: Duration) -> Option<Instant> {
        let ns = u64::try_from(duration.as_nanos()).ok()?;
        Some(Instant { ns: self.ns.checked_sub(ns)? })
    }

    /// `self + duration`, or the last instant there is, which never comes.
    pub(super) fn saturating_add(self, duration: Duration) -> Instant {
        Instant { ns: self.ns.saturating_add(nanoseconds(duration)) }
    }

    /// Nanoseconds since the clock's origin.
    pub(super) fn ns(self) -> u64 {
        self.ns
    }
}

/// As many nanoseconds as `duration` has, up to 584 years.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// # Panics
    ///
    /// If the result is more than 584 years from the clock's origin; [`Instant::checked_add`] does not.
    #[track_caller]
    fn add(self, duration: Duration) -> Instant {
        self.checked_add(duration).expect("overflow when adding a duration to an instant")
    }
}

impl AddAssign<Duration> for Instant {
    #[track_caller]
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    /// # Panics
    ///
    /// If the result is before the clock's origin; [`Instant::checked_sub`] does not.
    #[track_caller]
    fn sub(self, duration: Duration) -> Instant {
        self.checked_sub(duration).expect("overflow when subtracting a duration from an instant")
    }
}

impl SubAssign<Duration> for Instant {
    #[track_caller]
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;

    /// How much later `self` is; zero if it is not later, as for std's.
    fn sub(self, earlier: Instant) -> Duration {
        self.duration_since(earlier)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::runtime::timer::tests::{MS, virtual_timers};

    #[test]
    fn it_goes_by_the_clock_of_the_worker() {
        // An instant taken from the system's clock would not move with virtual time.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        let start = Instant::now();
        clock.set(clock.get() + 7 * MS);
        assert_eq!(start.elapsed(), Duration::from_millis(7));
        assert_eq!(Instant::now() - start, Duration::from_millis(7));
        assert_eq!(start - Instant::now(), Duration::ZERO);
    }

    #[test]
    fn arithmetic_is_checked() {
        // Wrapping would turn "never" into "long ago".
        let (timers, _clock) = virtual_timers();
        let _entered = timers.enter();
        let now = Instant::now();
        assert_eq!(now.checked_add(Duration::MAX), None);
        assert_eq!(now.checked_sub(Duration::from_secs(1 << 40)), None);
        assert_eq!(now.saturating_add(Duration::MAX).ns(), u64::MAX);
        assert_eq!(now + Duration::from_secs(1) - Duration::from_secs(1), now);
    }
}
