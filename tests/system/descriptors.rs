//! How many descriptors or handles this process has open.
#![cfg_attr(windows, expect(unsafe_code, reason = "asks the system about this process"))]

#[cfg(target_os = "linux")]
pub(crate) fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

#[cfg(windows)]
pub(crate) fn open() -> usize {
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};

    let mut count = 0;
    // SAFETY: the handle is the process's own, and the system writes one number to where it is told.
    let asked = unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut count) };
    assert_ne!(asked, 0, "a process may ask this of itself");
    usize::try_from(count).expect("it is small")
}
