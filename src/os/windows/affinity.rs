//! Which processors a thread may run on.
//!
//! Windows counts processors in *groups* of up to 64. Here they have one number: the group's times 64, and the place within the group.
//! A thread is in one group at a time, and may be moved to any; so a process that was not confined may use the processors of all
//! of them.
#![expect(unsafe_code, reason = "asks and tells the system about the calling thread")]

use std::io;
use std::ptr;

use windows_sys::Win32::System::SystemInformation::GROUP_AFFINITY;
use windows_sys::Win32::System::Threading::{
    GetActiveProcessorCount, GetActiveProcessorGroupCount, GetCurrentThread, GetThreadGroupAffinity,
    SetThreadGroupAffinity,
};

/// Processors of a group at most: bits of its mask.
pub(super) const GROUP: usize = usize::BITS as usize;

/// A set of processors of one group, as the kernel keeps one for each thread.
#[derive(Clone, Copy)]
pub(crate) struct Affinity {
    group: u16,
    mask: usize,
}

impl Affinity {
    /// Where the calling thread may run.
    pub(crate) fn of_this_thread() -> io::Result<Affinity> {
        let mut found = GROUP_AFFINITY::default();
        // SAFETY: the kernel writes one mask to where it is told; the handle is the calling thread's own.
        if unsafe { GetThreadGroupAffinity(GetCurrentThread(), &raw mut found) } == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Affinity { group: found.Group, mask: found.Mask })
    }

    /// The processors that the calling thread could be moved to: its own, if somebody has confined it to a part of its group, else
    /// those of all groups.
    pub(crate) fn allowed() -> io::Result<Vec<usize>> {
        let own = Affinity::of_this_thread()?;
        // SAFETY: the calls have no preconditions.
        let groups = unsafe { GetActiveProcessorGroupCount() };
        let all = (0..groups).flat_map(|group| {
            // SAFETY: nor has this one: a group that is not there has no processors.
            let count = unsafe { GetActiveProcessorCount(group) };
            let first = usize::from(group) * GROUP;
            first..first + usize::try_from(count).unwrap_or(0)
        });
        let (own, all): (Vec<usize>, Vec<usize>) = (own.cpus(), all.collect());
        let group = own.first().map_or(0, |cpu| cpu / GROUP);
        let confined = all.iter().any(|cpu| cpu / GROUP == group && !own.contains(cpu));
        Ok(if confined || all.is_empty() { own } else { all })
    }

    /// Exactly one processor.
    pub(crate) fn only(cpu: usize) -> Affinity {
        let group =
            u16::try_from(cpu / GROUP).expect("numbers of processors come from groups, which a u16 counts");
        Affinity { group, mask: 1 << (cpu % GROUP) }
    }

    /// The processors, in order of their numbers.
    pub(crate) fn cpus(&self) -> Vec<usize> {
        cpus(self.group, self.mask).collect()
    }

    /// Moves the calling thread here, and keeps it here.
    pub(crate) fn apply_to_this_thread(&self) -> io::Result<()> {
        let wanted = GROUP_AFFINITY { Mask: self.mask, Group: self.group, Reserved: [0; 3] };
        // SAFETY: the kernel reads one mask; the handle is the calling thread's own.
        if unsafe { SetThreadGroupAffinity(GetCurrentThread(), &raw const wanted, ptr::null_mut()) } == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The processors of a group's mask.
pub(super) fn cpus(group: u16, mask: usize) -> impl Iterator<Item = usize> {
    (0..GROUP)
        .filter(move |place| mask >> place & 1 == 1)
        .map(move |place| usize::from(group) * GROUP + place)
}

/// Lets the calling thread run on every processor that the process may use. It does already: a thread starts with its process's set, not
/// with that of the thread which started it.
pub(crate) fn run_anywhere() {}

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Affinity").field(&self.cpus()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A number that means another processor than the mask does would pin two workers to one.
    #[test]
    fn numbers_run_through_the_groups() {
        assert_eq!(Affinity { group: 2, mask: 0b1010 }.cpus(), [2 * 64 + 1, 2 * 64 + 3]);
        assert_eq!(Affinity::only(67).cpus(), [67]);
    }

    // A thread that stays where it was would make pinning a no-op that nobody sees.
    #[test]
    fn a_thread_moves_there_and_back() {
        let before = Affinity::of_this_thread().expect("every thread has one");
        let allowed = Affinity::allowed().expect("as many");
        let last = *allowed.last().expect("at least one");
        Affinity::only(last).apply_to_this_thread().expect("it is allowed");
        assert_eq!(Affinity::of_this_thread().expect("as before").cpus(), [last]);
        assert_eq!(
            Affinity::allowed().expect("as before").len().min(2),
            if allowed.len() == 1 { allowed.len() } else { 1 }
        );
        before.apply_to_this_thread().expect("it was allowed");
        assert_eq!(Affinity::of_this_thread().expect("as before").cpus(), before.cpus());
    }
}
