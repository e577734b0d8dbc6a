//! CPU time used so far.
#![cfg_attr(windows, expect(unsafe_code, reason = "asks the system about this process"))]

use std::time::Duration;

/// Of the whole process.
#[cfg(target_os = "linux")]
pub(crate) fn of_process() -> Duration {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(clock).expect("CPU time is not negative")
}

/// Of the whole process.
#[cfg(windows)]
pub(crate) fn of_process() -> Duration {
    use windows_sys::Win32::Foundation::FILETIME;
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessTimes};

    let [mut began, mut ended, mut kernel, mut user] = [FILETIME::default(); 4];
    // SAFETY: the handle is the process's own, and the system writes four numbers to where it is told.
    let asked = unsafe {
        GetProcessTimes(GetCurrentProcess(), &raw mut began, &raw mut ended, &raw mut kernel, &raw mut user)
    };
    assert_ne!(asked, 0, "a process may ask this of itself");
    let ns = |time: FILETIME| (u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime)) * 100;
    Duration::from_nanos(ns(kernel) + ns(user))
}
