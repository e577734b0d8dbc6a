//! Which worker of a runtime.

use std::fmt;

/// Names one worker of a runtime: 0 is the thread in `block_on`, the others follow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(u16);

/// Workers of one runtime at most: each pair may have a ring, and 1,024 workers already have a million pairs.
pub const WORKERS_MAX: usize = 1024;

impl WorkerId {
    /// The worker of that number.
    ///
    /// # Panics
    ///
    /// If the number is [`WORKERS_MAX`] or more, which no runtime has.
    #[track_caller]
    #[must_use]
    pub fn new(index: usize) -> WorkerId {
        assert!(
            index < WORKERS_MAX,
            "a runtime has at most {WORKERS_MAX} workers, so there is no worker {index}"
        );
        WorkerId(u16::try_from(index).expect("just compared"))
    }

    /// The number: from 0 to one less than the number of workers.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.0)
    }
}
