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
    // A process always has some; Wine answers with none.
    if count > 0 { usize::try_from(count).expect("it is small") } else { listed() }
}

/// The same, counted in the list of all processes' handles.
#[cfg(windows)]
fn listed() -> usize {
    use std::ffi::c_void;

    #[link(name = "ntdll")]
    unsafe extern "system" {
        fn NtQuerySystemInformation(class: i32, into: *mut c_void, bytes: u32, needed: *mut u32) -> i32;
    }
    /// `SystemExtendedHandleInformation`: two words, the first the number of entries; each entry five words, the second the process.
    const CLASS: i32 = 64;
    const WORDS: u32 = 1 << 20;
    let mut list = vec![0usize; WORDS as usize];
    let mut needed = 0;
    // SAFETY: so many bytes may be written to the list.
    let status =
        unsafe { NtQuerySystemInformation(CLASS, list.as_mut_ptr().cast(), WORDS * 8, &raw mut needed) };
    assert_eq!(status, 0, "the list is had, and fits");
    let own = std::process::id() as usize;
    let count = list[2..].chunks_exact(5).take(list[0]).filter(|entry| entry[1] == own).count();
    assert!(count > 0, "a process has some");
    count
}
