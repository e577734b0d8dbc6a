//! The clock that deadlines are measured on.
#![expect(unsafe_code, reason = "reads the performance counter")]

use std::sync::OnceLock;

use windows_sys::Win32::System::Performance::{QueryPerformanceCounter, QueryPerformanceFrequency};

/// Nanoseconds of the performance counter: the same clock on every thread, never set back. It goes on while the machine is
/// suspended. A `u64` lasts for 584 years of uptime.
pub(crate) fn monotonic_ns() -> u64 {
    static FREQUENCY: OnceLock<u64> = OnceLock::new();
    let frequency = *FREQUENCY.get_or_init(|| {
        let mut per_second = 0;
        // SAFETY: the kernel writes one number to where it is told.
        unsafe { QueryPerformanceFrequency(&raw mut per_second) };
        u64::try_from(per_second)
            .ok()
            .filter(|per_second| *per_second > 0)
            .expect("every Windows since XP has it")
    });
    let mut ticks = 0;
    // SAFETY: the kernel writes one number to where it is told.
    unsafe { QueryPerformanceCounter(&raw mut ticks) };
    in_ns(u64::try_from(ticks).expect("the counter starts at 0"), frequency)
}

/// The same clock. Windows has one that is cheaper to look at, but it counts from another moment and another rate: a deadline on the
/// one says nothing on the other. This one is read without entering the kernel, on every machine of the last ten years.
pub(crate) fn coarse_ns() -> u64 {
    monotonic_ns()
}

/// Ticks of so many per second, in nanoseconds. Whole seconds apart, so that a counter of years does not overflow.
fn in_ns(ticks: u64, per_second: u64) -> u64 {
    let (seconds, rest) = (ticks / per_second, ticks % per_second);
    seconds * 1_000_000_000 + rest * 1_000_000_000 / per_second
}

#[cfg(test)]
mod tests {
    use super::*;

    // A product of ticks and nanoseconds overflows after half an hour at 10 MHz.
    #[test]
    fn a_counter_of_years_is_still_exact() {
        assert_eq!(in_ns(25, 10_000_000), 2_500);
        let ten_years_s = 10 * 365 * 86_400;
        assert_eq!(in_ns(ten_years_s * 10_000_000 + 1, 10_000_000), ten_years_s * 1_000_000_000 + 100);
        assert_eq!(in_ns(3_000_000_000 * ten_years_s - 1, 3_000_000_000), ten_years_s * 1_000_000_000 - 1);
    }

    // A deadline that was computed on one look and compared on the next must not be in the future for ever.
    #[test]
    fn the_clock_does_not_go_back() {
        let looks: Vec<u64> = (0..1000).map(|_| monotonic_ns()).collect();
        assert!(looks.is_sorted(), "{looks:?}");
    }
}
