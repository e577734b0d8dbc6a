//! Whether somebody else wanted the CPU that a thread runs on.
#![expect(unsafe_code, reason = "a call that no crate wraps for a single thread")]

use std::mem::MaybeUninit;

/// How often the calling thread has lost its CPU to another one, so far. `None` if the system does not say.
///
/// Time that an interrupt took, or the hypervisor of a virtual machine, is not among it: nobody waits there for a CPU of ours.
pub(crate) fn preemptions() -> Option<u64> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the kernel writes one `rusage` to where it is told.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    if failed != 0 {
        return None;
    }
    // SAFETY: the call has not failed, so it was written.
    u64::try_from(unsafe { usage.assume_init() }.ru_nivcsw).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::os::Affinity;

    // If a switch that another thread forces did not count, a worker would spin on a CPU that somebody else waits for.
    #[test]
    fn a_thread_that_shares_its_cpu_learns_of_it() {
        let cpu = Affinity::allowed().expect("affinity can be read")[0];
        let is_over = AtomicBool::new(false);
        let share =
            || Affinity::only(cpu).apply_to_this_thread().expect("a thread may stay where it may run");
        thread::scope(|scope| {
            scope.spawn(|| {
                share();
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            scope.spawn(|| {
                share();
                let before = preemptions().expect("Linux counts them");
                // Both want the CPU, so the scheduler takes it from this one, too, before long.
                while preemptions() == Some(before) {
                    std::hint::spin_loop();
                }
                is_over.store(true, Ordering::Relaxed);
            });
        });
    }
}
