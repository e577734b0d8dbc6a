//! The processors that the calling thread may use, by their numbers.
#![cfg_attr(windows, expect(unsafe_code, reason = "asks the system about the calling thread"))]

#[cfg(target_os = "linux")]
pub(crate) fn allowed() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};

    let set = sched_getaffinity(None).expect("every thread has one");
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

#[cfg(windows)]
pub(crate) fn allowed() -> Vec<usize> {
    use windows_sys::Win32::System::SystemInformation::GROUP_AFFINITY;
    use windows_sys::Win32::System::Threading::{GetCurrentThread, GetThreadGroupAffinity};

    let mut set = GROUP_AFFINITY::default();
    // SAFETY: the handle is the thread's own, and the system writes one set to where it is told.
    let asked = unsafe { GetThreadGroupAffinity(GetCurrentThread(), &raw mut set) };
    assert_ne!(asked, 0, "every thread has one");
    (0..64)
        .filter(|place| set.Mask >> place & 1 == 1)
        .map(|place| usize::from(set.Group) * 64 + place)
        .collect()
}
