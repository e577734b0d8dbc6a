//! How much memory the system lets this process lock, and use.
#![expect(unsafe_code, reason = "asks the system about this process")]

use std::mem::MaybeUninit;
use std::ptr;

use windows_sys::Win32::System::JobObjects::{
    JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_PROCESS_MEMORY, JOBOBJECT_EXTENDED_LIMIT_INFORMATION,
    JobObjectExtendedLimitInformation, QueryInformationJobObject,
};

/// Bytes that this process may lock. Nothing here has to be locked to work, so no bound is one for the runtime: what the quota allows is
/// found by trying, when memory is mapped.
pub(crate) fn memlock_limit() -> Option<u64> {
    None
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
        assert_ne!(memory_limit(), Some(0));
    }
}
