//! Work that blocks: on threads of its own, awaited like a task.
//!
//! A worker that blocks keeps everything waiting that it has: its tasks, its timers, its sockets. What must block (a library
//! without an asynchronous form, a long computation) goes to a pool of threads that the runtime has for it, which is bounded and
//! elastic ([`thread_pool`](crate::io::driver::thread_pool)), and the task awaits a [`BlockingHandle`] meanwhile.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use super::context::Context;
use super::shared::Shared;
use super::task::{JoinError, Label, TaskId};
use crate::io::driver::thread_pool::{Answer, PoolRefused};

/// Runs `work`, which may block, on a thread that the runtime keeps for such work, and yields what it returns.
///
/// Threads start as they are needed, up to [`Builder::blocking_threads`](super::Builder::blocking_threads), run on every core the
/// process may use, and end when they have been idle for a while. When all are busy, jobs wait in order; when too many wait
/// already ([`Builder::blocking_queue`](super::Builder::blocking_queue)), `work` is dropped and the handle says so at once.
///
/// Dropping the handle detaches the job; [`abort`](BlockingHandle::abort) takes it back while it is queued. A thread cannot be
/// stopped, so a job that runs will run to its end: a runtime that ends waits for it as long as
/// [`Builder::drain_patience`](super::Builder::drain_patience) says, and what is left then is counted by
/// [`Handle::unfinished_jobs`](super::Handle::unfinished_jobs) and ends with the process. Jobs still queued at the end are dropped
/// unrun.
///
/// ```
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let sum = veloq::spawn_blocking(|| (1..=1_000_000u64).sum::<u64>()).await?;
/// assert_eq!(sum, 500_000_500_000);
/// # Ok::<(), std::io::Error>(())
/// # })?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If no worker runs on this thread; [`Handle::spawn_blocking`](super::Handle::spawn_blocking) needs none.
#[track_caller]
pub fn spawn_blocking<F, T>(work: F) -> BlockingHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    BlockingHandle::start(&Context::current().shared, Label::here(), work)
}

/// Awaits the end of a job that [`spawn_blocking`] started, and yields what it returned.
///
/// Dropping the handle detaches the job. The handle can be awaited anywhere, by any executor.
///
/// # Panics
///
/// Awaiting a handle again after it has yielded panics.
#[must_use = "the job runs all the same, but nobody hears what came of it"]
pub struct BlockingHandle<T> {
    id: TaskId,
    label: Label,
    job: Job<T>,
}

/// What a handle awaits.
enum Job<T> {
    Accepted(Answer<T>),
    Refused(PoolRefused),
    Told,
}

impl<T: Send + 'static> BlockingHandle<T> {
    /// Hands `work` to a runtime's pool.
    pub(crate) fn start(
        shared: &Shared,
        label: Label,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BlockingHandle<T> {
        let job = match shared.blocking.submit(work) {
            Ok(answer) => Job::Accepted(answer),
            Err(refused) => Job::Refused(refused),
        };
        BlockingHandle { id: TaskId::next(), label, job }
    }
}

impl<T> BlockingHandle<T> {
    /// Takes the job back if no thread has begun with it: its closure is dropped here, and the handle yields a [`JoinError`] that
    /// [is a cancellation](JoinError::is_cancelled). A job that runs already goes on, and yields what it returns.
    ///
    /// ```
    /// # veloq::runtime::Builder::new().workers(1).pin(false).blocking_threads(1).build()?.block_on(async {
    /// let (go, gate) = std::sync::mpsc::channel::<()>();
    /// let first = veloq::spawn_blocking(move || gate.recv().is_err());
    /// let second = veloq::spawn_blocking(|| unreachable!("the only thread is taken"));
    /// second.abort();
    /// let second: Result<(), _> = second.await;
    /// assert!(second.expect_err("it was aborted").is_cancelled());
    /// drop(go);
    /// assert!(first.await?);
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn abort(&self) {
        if let Job::Accepted(answer) = &self.job {
            answer.abort();
        }
    }

    /// Whether the job has ended, so that awaiting the handle would not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        match &self.job {
            Job::Accepted(answer) => answer.is_ready(),
            Job::Refused(_) | Job::Told => true,
        }
    }

    /// The job's number, of the same kind as the tasks'.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// What the job was called by [`Builder::name`](crate::task::Builder::name).
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.label.name().map(AsRef::as_ref)
    }

    /// Where the job was spawned.
    #[must_use]
    pub fn location(&self) -> &'static Location<'static> {
        self.label.location()
    }
}

impl<T> Future for BlockingHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (id, label) = (this.id, &this.label);
        let result = match &mut this.job {
            Job::Accepted(answer) => match Pin::new(answer).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => result.map_err(|failed| JoinError::of_job(id, label.clone(), failed)),
            },
            Job::Refused(refused) => Err(JoinError::refused(id, label.clone(), *refused)),
            Job::Told => panic!("a BlockingHandle yields once; do not poll it again after that"),
        };
        this.job = Job::Told;
        Poll::Ready(result)
    }
}

impl<T> fmt::Debug for BlockingHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingHandle")
            .field("id", &self.id)
            .field("label", &self.label)
            .field("finished", &self.is_finished())
            .finish()
    }
}
