//! Which processors a thread may run on.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A set of processors, as the kernel keeps one for each thread.
#[derive(Clone, Copy)]
pub(crate) struct Affinity(CpuSet);

impl Affinity {
    /// Where the calling thread may run.
    pub(crate) fn of_this_thread() -> io::Result<Affinity> {
        Ok(Affinity(sched_getaffinity(None)?))
    }

    /// The processors that the calling thread could be moved to.
    pub(crate) fn allowed() -> io::Result<Vec<usize>> {
        Ok(Affinity::of_this_thread()?.cpus())
    }

    /// Exactly one processor.
    pub(crate) fn only(cpu: usize) -> Affinity {
        let mut set = CpuSet::new();
        set.set(cpu);
        Affinity(set)
    }

    /// The processors, in order of their numbers.
    pub(crate) fn cpus(&self) -> Vec<usize> {
        (0..CpuSet::MAX_CPU).filter(|cpu| self.0.is_set(*cpu)).collect()
    }

    /// Moves the calling thread here, and keeps it here.
    pub(crate) fn apply_to_this_thread(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }
}

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Affinity").field(&self.cpus()).finish()
    }
}

/// Lets the calling thread run on every core that the system allows the process. It was started by a worker, which may be
/// pinned to one core, and would compete with it there.
pub(crate) fn run_anywhere() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    // The kernel takes out what it does not have or does not allow. If it refuses all the same, the inherited set holds.
    let _ = sched_setaffinity(None, &all);
}
