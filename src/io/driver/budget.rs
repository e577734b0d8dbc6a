//! What the machine's limits leave to one worker.
//!
//! Two limits end programs that ignore them. RLIMIT_MEMLOCK bounds what a *user* may lock: rings and registered memory, of
//! all its processes together; beyond it the kernel refuses. A control group's memory limit bounds what a group of
//! processes may use; beyond it the kernel kills. Neither may be found out by running into it: the first worker would take
//! all and leave the last without a ring, or the process would be gone. So each worker has an equal *share*, and spends it
//! in the order of what it can least do without:
//!
//! ```text
//! share of RLIMIT_MEMLOCK   ring (down to 64 entries) ─▶ receive ring's addresses ─▶ arena (registered as far as it goes)
//! share of the group's      the arena's size, since registered pages are all in memory
//! ```
//!
//! A share is no promise, as other processes may have taken theirs: within it, the kernel is asked, and asked again for half.
//! What comes of it stands in the capability report. Buffers beyond the share travel as plain memory.

/// One worker's shares. `None` where nothing bounds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    memlock: Option<u64>,
    memory: Option<u64>,
}

/// Part of a group's memory that all arenas together may take: the rest is the program's.
const ARENAS_PART: u64 = 4;

/// The smallest ring that is worth having: below it a burst of a few dozen connections is several entries.
pub(super) const RING_ENTRIES_MIN: u32 = 64;

/// What memory is locked in.
const PAGE: u64 = 4096;

impl Budget {
    /// The share of one of `workers`, of this process's limits.
    pub(crate) fn of_one(workers: usize) -> Budget {
        Budget::shares(crate::os::memlock_limit(), crate::os::memory_limit(), workers)
    }

    fn shares(memlock: Option<u64>, memory: Option<u64>, workers: usize) -> Budget {
        let share = |bytes: u64| bytes / workers.max(1) as u64;
        Budget { memlock: memlock.map(share), memory: memory.map(|bytes| share(bytes / ARENAS_PART)) }
    }

    /// A share of RLIMIT_MEMLOCK alone.
    #[cfg(test)]
    pub(super) fn of_memlock(bytes: u64) -> Budget {
        Budget { memlock: Some(bytes), memory: None }
    }

    /// Whether a ring of `entries` is within the share. The smallest always is: without a ring there is no worker.
    pub(super) fn allows_ring(&self, entries: u32) -> bool {
        entries <= RING_ENTRIES_MIN || self.memlock.is_none_or(|share| ring_bytes(entries) <= share)
    }

    /// Whether `bytes` more may be locked, beside a ring of `entries` and a page for the receive ring's addresses.
    pub(super) fn allows_locked(&self, bytes: usize, entries: u32) -> bool {
        self.memlock.is_none_or(|share| ring_bytes(entries) + PAGE + bytes as u64 <= share)
    }

    /// Makes a pool that may have so many chunks of so many bytes fit the share: first fewer chunks, then smaller ones, halved
    /// down to `least`.
    pub(crate) fn fit_pool(&self, bytes: &mut usize, chunks_max: &mut usize, least: usize) {
        let Some(share) = self.memory else { return };
        while *bytes > least && *bytes as u64 > share {
            *bytes /= 2;
        }
        let chunks = usize::try_from(share / (*bytes).max(1) as u64).unwrap_or(usize::MAX);
        *chunks_max = (*chunks_max).min(chunks.max(1));
    }
}

/// What a ring of `entries` takes of RLIMIT_MEMLOCK: 64 bytes for each submission; four completions of 16 bytes and an index
/// of 4 for each, behind a header.
pub(super) fn ring_bytes(entries: u32) -> u64 {
    let entries = u64::from(entries);
    (entries * 64).next_multiple_of(PAGE) + (entries * (4 * 16 + 4) + 512).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    // If the first of several workers could take what the last needs, a runtime would start or not by the order of threads.
    #[test]
    fn equal_shares_leave_a_ring_for_each_worker() {
        for (kib, workers) in [(32, 2), (64, 2), (64, 4), (1024, 16), (8192, 64)] {
            let budget = Budget::shares(Some(kib << 10), None, workers);
            let largest =
                (6..16).map(|order| 1 << order).filter(|&entries| budget.allows_ring(entries)).max();
            let entries = largest.expect("the smallest is always allowed");
            assert!(ring_bytes(entries) * workers as u64 <= kib << 10, "{kib} KiB for {workers}: {entries}");
            assert!(!budget.allows_locked(1 << 23, entries));
        }
        assert!(Budget::default().allows_ring(1 << 15) && Budget::default().allows_locked(1 << 30, 1 << 15));
    }

    // An arena that fills the group's memory leaves none for the program, and the kernel ends it.
    #[test]
    fn all_arenas_together_keep_to_their_part_of_the_groups_memory() {
        const LEAST: usize = 1 << 16;
        let fitted = |budget: Budget, mut bytes: usize, mut chunks_max: usize| {
            budget.fit_pool(&mut bytes, &mut chunks_max, LEAST);
            (bytes, chunks_max)
        };
        for workers in [1, 2, 7] {
            let budget = Budget::shares(None, Some(64 << 20), workers);
            for (bytes, chunks_max) in [(256 << 20, 1), (4 << 20, 8), (1 << 20, 64)] {
                let (bytes, chunks_max) = fitted(budget, bytes, chunks_max);
                let all = bytes * chunks_max * workers;
                assert!(bytes.is_power_of_two() && all <= 16 << 20, "{workers}: {chunks_max} of {bytes}");
                assert!(all > 6 << 20, "{workers}: {chunks_max} of {bytes} is less than need be");
            }
        }
        assert_eq!(fitted(Budget::shares(None, Some(4096), 2), 4 << 20, 8), (LEAST, 1));
        assert_eq!(fitted(Budget::default(), 4 << 20, 8), (4 << 20, 8));
    }
}
