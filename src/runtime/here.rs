//! What a task can ask of the worker that it runs on: which it is, who else there is, memory, and what the kernel gives it.
//!
//! All of it is in the `Context` that is entered for the turn, and found through the thread; nothing here is kept. So the answers are
//! the running worker's, also in a simulation where several share a thread, and a task that has moved gets those of its new one.
//! Outside of a worker each of these panics, and says what to do.

use super::context::Context;
use super::worker_id::WorkerId;
use crate::io::buf::{AllocAsync, BufPool, FixedBuf};
use crate::io::driver::Capabilities;

/// The workers of this runtime, in order.
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
#[must_use]
pub fn workers() -> impl ExactSizeIterator<Item = WorkerId> + DoubleEndedIterator {
    (0..Context::current().shared.workers()).map(WorkerId::new)
}

/// The worker that this code runs on.
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
#[must_use]
pub fn current_worker() -> WorkerId {
    Context::current().id
}

/// An empty buffer for exactly `size` bytes, from this worker's pool: page-aligned from 4 KiB up, and known to the kernel
/// beforehand. It goes back to the pool when it is dropped, on whichever thread. What the pool cannot give comes from the
/// heap, works the same, and is counted ([`WorkerMetrics::pool_misses`](super::WorkerMetrics::pool_misses)).
///
/// ```
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let mut buf = veloq::alloc(4096);
/// buf.extend_from_slice(b"hello");
/// assert_eq!((buf.len(), buf.capacity()), (5, 4096));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
#[must_use]
pub fn alloc(size: usize) -> FixedBuf {
    Context::current().pool.alloc(size)
}

/// An empty buffer for exactly `size` bytes from this worker's pool, as soon as that has room and all who asked earlier have
/// theirs ([`BufPool::alloc_async`]).
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
pub fn alloc_async(size: usize) -> AllocAsync {
    Context::current().pool.alloc_async(size)
}

/// What the kernel gives the worker that runs on this thread, and what it refused.
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
#[must_use]
pub fn capabilities() -> Capabilities {
    Context::current().driver.capabilities()
}
