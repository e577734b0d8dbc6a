//! How much memory the system lets this process lock, and use.
#![expect(unsafe_code, reason = "asks the system about this process")]

use std::mem::MaybeUninit;
use std::ptr;

use windows_sys::Win32::System::JobObjects::{
    JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_PROCESS_MEMORY, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectExtendedLimitInformation, QueryInformationJobObject,
};
use windows_sys::Win32::System::Memory::GetProcessWorkingSetSizeEx;
use windows_sys::Win32::System::Threading::GetCurrentProcess;

/// What the system keeps of the minimum working set for itself, to lock nothing there: the few pages that its manual speaks of.
const OVERHEAD: u64 = 16 * 4096;

/// Bytes that this process may lock: the minimum of its working set less a small overhead. A program that wants more raises it
/// before the runtime starts. `None` if nothing bounds it.
pub(crate) fn memlock_limit() -> Option<u64> {
    let (mut minimum, mut maximum, mut flags) = (0, 0, 0);
    // SAFETY: the kernel writes three numbers to where it is told; the handle is the process's own.
    let asked = unsafe {
        GetProcessWorkingSetSizeEx(GetCurrentProcess(), &raw mut minimum, &raw mut maximum, &raw mut flags)
    };
    let minimum = if asked == 0 { 0 } else { u64::try_from(minimum).unwrap_or(u64::MAX) };
    Some(minimum.saturating_sub(OVERHEAD))
}

/// Bytes of memory that this process's job may use, or this process within it: a container's bound. `None` if nothing bounds it.
pub(crate) fn memory_limit() -> Option<u64> {
    let mut limits = MaybeUninit::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>::zeroed();
    let bytes = u32::try_from(size_of_val(&limits)).expect("some hundred bytes");
    // SAFETY: no handle means this process's own job; the kernel writes at most so many bytes. All-zero is a valid answer.
    let limits = unsafe {
        let asked = QueryInformationJobObject(
            ptr::null_mut(),
            JobObjectExtendedLimitInformation,
            limits.as_mut_ptr().cast(),
            bytes,
            ptr::null_mut(),
        );
        if asked == 0 {
            return None; // It belongs to none.
        }
        limits.assume_init()
    };
    let flags = limits.BasicLimitInformation.LimitFlags;
    let bound = |flag, bytes: usize| (flags & flag != 0).then(|| u64::try_from(bytes).unwrap_or(u64::MAX));
    let process = bound(JOB_OBJECT_LIMIT_PROCESS_MEMORY, limits.ProcessMemoryLimit);
    let job = bound(JOB_OBJECT_LIMIT_JOB_MEMORY, limits.JobMemoryLimit);
    process.into_iter().chain(job).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A bound of 0 would leave a pool without a byte, on a machine with no bound at all.
    #[test]
    fn a_process_without_bounds_is_told_so() {
        assert!(memlock_limit().is_some());
        assert_ne!(memory_limit(), Some(0));
    }
}
