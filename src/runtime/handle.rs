//! A runtime as other threads hold it.
//!
//! Whoever is on a worker reaches its runtime through the `Context`. A [`Handle`] is for everybody else: it has what the workers share,
//! counted, and no part of any worker. So it does three things: it sends (a task goes to a worker's mailbox, and the doorbell is rung), it
//! reads what each worker publishes (counters, seats, what was left at the end), and it asks (a dump is a question that a worker
//! answers in its turn, or not in time).
//!
//! A handle neither keeps a runtime going nor is it spoilt by its end. What is sent to a worker that has ended is dropped, and the
//! handle that waits for it hears that it was cancelled; the figures stay as they were last.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use super::blocking::BlockingHandle;
use super::dump::{self, Dump};
use super::metrics::Metrics;
use super::placement::Seat;
use super::shared::Shared;
use super::task::{JoinHandle, Label, TaskRef};
use super::timer::Clock;
use super::worker_id::WorkerId;
use crate::io::driver::thread_pool::{JobFailed, on_own_thread};
use crate::sync::Arc;

/// A runtime as any thread can hold it: to give it work, and to look at its counters. Keeps nothing alive that matters:
/// a runtime ends whether or not handles are left.
///
/// **What a handle spawns is not bounded.** A thread outside has no turn at whose end it could be told to wait, so each call makes its
/// task and leaves it with a worker, as [`spawn`](crate::spawn()) does with one that it makes here. One that can make tasks faster
/// than the workers run them has to limit itself: it awaits what it has spawned, or it sends values over a
/// [`channel`](crate::mesh::channel), which has as much room as it was made with. (Blocking work is bounded:
/// [`Builder::blocking_queue`](super::Builder::blocking_queue).)
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>) -> Handle {
        Handle { shared }
    }

    /// The handle of the runtime whose worker runs on this thread.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[track_caller]
    #[must_use]
    pub fn current() -> Handle {
        Handle::new(Arc::clone(&super::context::Context::current().shared))
    }

    /// How many workers the runtime has.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.shared.workers()
    }

    /// The CPU that a worker is pinned to, and its NUMA node. `None` if it is not pinned, or there is no such worker.
    #[must_use]
    pub fn seat(&self, worker: WorkerId) -> Option<Seat> {
        self.shared.seat(worker)
    }

    /// Runs `work` on a worker: the closure is called there, and its future stays there, so only the closure and the
    /// result need be `Send`. The handle can be awaited anywhere.
    ///
    /// On a runtime that has ended the closure is dropped, and the handle answers with a cancelled
    /// [`JoinError`](crate::task::JoinError).
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    #[track_caller]
    pub fn spawn_to<F, Fut>(&self, worker: WorkerId, work: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let mailbox = self.shared.mailbox(worker);
        let (task, handle) = TaskRef::new_remote_at(work, mailbox, Label::here());
        mailbox.push(task);
        handle
    }

    /// Runs a future on whichever worker has time for it; see [`veloq::spawn`](crate::spawn). From a task of the runtime that function is
    /// cheaper.
    ///
    /// On a runtime that has ended the future is dropped, and the handle answers with a cancelled
    /// [`JoinError`](crate::task::JoinError).
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (task, handle) = TaskRef::new_stealable(future, Label::here());
        self.place(task);
        handle
    }

    /// Runs `work` on whichever worker comes to it first, where its future stays; see [`veloq::spawn_pinned`](crate::spawn_pinned).
    ///
    /// On a runtime that has ended the closure is dropped, and the handle answers with a cancelled
    /// [`JoinError`](crate::task::JoinError).
    #[track_caller]
    pub fn spawn_pinned<F, Fut>(&self, work: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let (task, handle) = TaskRef::new_pinned(work, Label::here());
        self.place(task);
        handle
    }

    fn place(&self, task: TaskRef) {
        let spawner = &self.shared.spawner;
        spawner.send(spawner.choose_from_outside(Clock::System.coarse_ns()), task);
    }

    /// What the runtime has done so far: every counter of every worker, exact as of some recent turn of each.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let now_ns = crate::os::monotonic_ns();
        let workers = self.shared.published.iter().map(|published| published.load(now_ns));
        let placed_by_handles = self.shared.spawner.placed_from_outside();
        Metrics::new(workers.collect(), placed_by_handles, self.shared.blocking.stats())
    }

    /// Runs `work`, which may block, on a thread kept for that; see [`spawn_blocking`](crate::spawn_blocking). On a runtime that has
    /// ended it is dropped, and the handle answers with a [refusal](crate::task::JoinError::is_refused).
    #[track_caller]
    pub fn spawn_blocking<F, T>(&self, work: F) -> BlockingHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        BlockingHandle::start(&self.shared, Label::here(), work)
    }

    /// What every task waits for: the tasks of each worker, with the operations that will wake them, and the timers. A worker that does
    /// not answer within `patience` is stuck in a poll; its part is then missing, and the dump says so.
    ///
    /// It can be awaited on any thread, by any executor, and works however many workers are stuck. Dropping the future loses the
    /// answer, nothing else.
    ///
    /// ```
    /// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
    /// use std::time::Duration;
    /// use veloq::runtime::Handle;
    ///
    /// let _server = veloq::task::Builder::new().name("server").spawn_local(async {
    ///     veloq::net::TcpListener::bind("127.0.0.1:0").await?.accept().await
    /// });
    /// let dump = Handle::current().dump(Duration::from_secs(1)).await?;
    /// println!("{dump}");
    /// assert!(dump.to_string().contains("\"server\""));
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the system said if it gives no thread to collect the answers.
    pub async fn dump(&self, patience: Duration) -> io::Result<Dump> {
        let shared = Arc::clone(&self.shared);
        let answer = on_own_thread("veloq-dump", move || dump::collect(&shared, patience))?;
        answer.await.map_err(JobFailed::into_error)
    }

    /// As [`dump`](Self::dump), for a thread that may block: one outside of the runtime. On a worker's thread it would wait for that
    /// worker in vain, until `patience` is over.
    #[must_use]
    pub fn dump_blocking(&self, patience: Duration) -> Dump {
        dump::collect(&self.shared, patience)
    }

    /// Blocking jobs that were still running when the runtime had waited for them long enough
    /// ([`Builder::drain_patience`](super::Builder::drain_patience)) and ended. Their threads end with them.
    #[must_use]
    pub fn unfinished_jobs(&self) -> usize {
        self.shared.jobs_left()
    }

    /// The workers that were still in a poll when the runtime had waited for them long enough
    /// ([`Builder::drain_patience`](super::Builder::drain_patience)) and ended. Each drops its tasks and ends when its poll does. None
    /// unless somebody blocks a worker.
    #[must_use]
    pub fn stuck_workers(&self) -> Vec<WorkerId> {
        self.shared.stuck()
    }

    /// Operations that the kernel had not given back when their workers ended; their memory is leaked. Zero unless a
    /// drain ran out of patience.
    #[must_use]
    pub fn leaked_operations(&self) -> usize {
        self.shared.leaked()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("workers", &self.workers()).finish_non_exhaustive()
    }
}
