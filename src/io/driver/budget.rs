//! What the machine's limits leave to one worker.
//!
//! Two limits end programs that ignore them. RLIMIT_MEMLOCK bounds what a *user* may lock: rings and registered memory, of
//! all its processes together; beyond it the kernel refuses. A control group's memory limit bounds what a group of
//! processes may use; beyond it the kernel kills. Neither may be found out by running into it: the first worker would take
//! all and leave the last without a ring, or the process would be gone. So each worker has an equal *share*, and spends it
//! in the order of what it can least do without:
//!
//! ```text
//! share of RLIMIT_MEMLOCK   ring (down to 64 entries) ─▶ receive ring's addresses ─▶ the arena's chunks, one by one
//! share of the group's      the arena's size, since registered pages are all in memory
//! ```
//!
//! A share is no promise, as other processes may have taken theirs: within it, the kernel is asked, and asked again for half.
//! What comes of it stands in the capability report. Buffers beyond the share travel as plain memory. Chunks are made smaller so that
//! the first is within the share, down to [`REGISTERED_CHUNK_MIN`]: an ordinary user's 8 MiB are enough for fourteen workers' registered
//! memory, where the default of 4 MiB would register one worker's.

use crate::io::buf::CHUNKS_MAX;

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

/// The smallest chunk that a pool is cut down to in order to be registered: half of it is the receive ring's, which with fewer than its
/// 32 buffers would be dry so often that plain memory is the better bargain.
const REGISTERED_CHUNK_MIN: usize = 512 << 10;

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

    /// The largest ring within the share, of `wanted` entries or by halves fewer. The smallest always is: without a ring there is no
    /// worker.
    pub(super) fn ring_entries(&self, wanted: u32) -> u32 {
        let mut entries = wanted.clamp(1, 1 << 15).next_power_of_two();
        while entries > RING_ENTRIES_MIN && self.memlock.is_some_and(|share| ring_bytes(entries) > share) {
            entries /= 2;
        }
        entries
    }

    /// Whether `bytes` more may be locked, beside a ring of `entries` and a page for the receive ring's addresses.
    pub(super) fn allows_locked(&self, bytes: usize, entries: u32) -> bool {
        self.memlock.is_none_or(|share| (ring_bytes(entries) + PAGE).saturating_add(bytes as u64) <= share)
    }

    /// Makes chunks so small that the first can be registered beside a ring of `entries_wanted` or what of it fits, and as many more of
    /// them. Where that is not to be had, they stay as they are.
    pub(crate) fn fit_chunks(&self, bytes: &mut usize, chunks_max: &mut usize, entries_wanted: u32) {
        let entries = self.ring_entries(entries_wanted);
        let mut smaller = *bytes;
        while smaller > REGISTERED_CHUNK_MIN && !self.allows_locked(smaller, entries) {
            smaller /= 2;
        }
        if smaller < *bytes && self.allows_locked(smaller, entries) {
            *chunks_max = (*chunks_max * (*bytes / smaller)).min(CHUNKS_MAX);
            *bytes = smaller;
        }
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
            let entries = budget.ring_entries(1 << 15);
            assert!(ring_bytes(entries) * workers as u64 <= kib << 10, "{kib} KiB for {workers}: {entries}");
            assert!(!budget.allows_locked(1 << 23, entries));
        }
        assert_eq!(Budget::default().ring_entries(1 << 15), 1 << 15);
        assert!(Budget::default().allows_locked(1 << 30, 1 << 15));
    }

    // If the default chunk is larger than an ordinary user's share, nobody but root has registered memory.
    #[test]
    fn chunks_are_so_small_that_the_first_can_be_registered() {
        let fitted = |kib: u64, workers: usize| {
            let budget = Budget::shares(Some(kib << 10), None, workers);
            let (mut bytes, mut chunks_max) = (4 << 20, 8);
            budget.fit_chunks(&mut bytes, &mut chunks_max, 256);
            (bytes >> 10, chunks_max, budget.allows_locked(bytes, budget.ring_entries(256)))
        };
        assert_eq!(fitted(8192, 1), (4096, 8, true));
        assert_eq!(fitted(8192, 2), (2048, 16, true));
        assert_eq!(fitted(8192, 4), (1024, 32, true));
        assert_eq!(fitted(8192, 8), (512, 64, true));
        assert_eq!(fitted(8192, 14), (512, 64, true));
        assert_eq!(fitted(8192, 15), (4096, 8, false), "there is no point in making it smaller");
        assert_eq!(fitted(1024, 1), (512, 64, true));
        assert_eq!(fitted(64, 1), (4096, 8, false));
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
