//! Whether somebody else wanted the CPU that a thread runs on.

/// How often the calling thread has lost its CPU to another one, so far. `None`: Windows counts a thread's switches only for whoever
/// traces the system.
pub(crate) fn preemptions() -> Option<u64> {
    None
}
