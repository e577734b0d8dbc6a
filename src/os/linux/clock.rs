//! The clock that deadlines are measured on.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`: the same clock on every thread, never set back, standing still while the machine is
/// suspended. A `u64` lasts for 584 years of uptime.
pub(crate) fn monotonic_ns() -> u64 {
    ns_of(ClockId::Monotonic)
}

/// The same clock as of the kernel's last tick, some milliseconds ago: a look at memory that the kernel keeps up to date.
pub(crate) fn coarse_ns() -> u64 {
    ns_of(ClockId::MonotonicCoarse)
}

fn ns_of(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).expect("the monotonic clock starts at 0");
    let nanos = u64::try_from(now.tv_nsec).expect("nanoseconds of a second are not negative");
    seconds * 1_000_000_000 + nanos
}
