//! All workers of a program: started together, ended together.
//!
//! [`Builder::build`](super::Builder::build) makes the calling thread's worker and starts a thread for each other one.
//! Rings are made on the thread that submits to them, so each thread makes its own driver and reports its mailbox (or why
//! there is none) before any of them runs:
//!
//! ```text
//! builder ── spawns ──▶ thread: driver, mailbox ── "ready" or an error ──▶ builder
//! builder ── the shared block, once all are ready ──▶ thread: worker, turns until stop, end
//! ```
//!
//! [`Runtime::block_on`] runs one future on the calling thread, which is worker 0 for that long. When the future is
//! ready (or has panicked), every worker drops its tasks, gets back what the kernel has, and ends; then the threads are
//! joined and `block_on` returns. The order is the same if the runtime is dropped without having run.
//!
//! A worker sees that it is to end when it comes out of its turn. One that sits in a poll which does not return is not waited for
//! longer than [`Builder::drain_patience`](super::Builder::drain_patience): its thread is left to itself. It ends as the others do,
//! should the poll ever return, and owns or shares by counting all that it needs for that.
#![expect(unsafe_code, reason = "block_on runs a future that may borrow from its caller")]

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread;

use super::builder::Builder;
use super::handle::Handle;
use super::mesh::mailbox::Mailbox;
use super::metrics::Metrics;
use super::placement::Seat;
use super::shared::Shared;
use super::spawner::Spawner;
use super::spin::{Spinner, Unparked};
use super::stall::Watchdog;
use super::task::{AbortOnUnwind, Label};
use super::timer::Clock;
use super::trace;
use super::worker::Worker;
use super::worker_id::WorkerId;
use crate::io::buf::Pool;
use crate::io::driver::budget::Budget;
use crate::io::driver::{Capabilities, DriverHandle, PlatformDriver, Unavailable};
use crate::os::Affinity;
use crate::sync::Arc;

/// The workers of a program. Made by [`Builder`]; bound to the thread that built it, which becomes worker 0.
pub struct Runtime {
    worker: Option<Worker>,
    pub(super) shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
    /// Dropped with the runtime, when the workers have ended.
    _watchdog: Option<Watchdog>,
    /// Each worker's report.
    capabilities: Vec<Capabilities>,
    /// The affinity to give back to the calling thread.
    caller: Option<Affinity>,
    cpu: Option<Affinity>,
}

impl Runtime {
    /// A runtime with the defaults: one pinned worker for each CPU the process may use.
    ///
    /// # Errors
    ///
    /// Those of [`Builder::build`].
    pub fn new() -> io::Result<Runtime> {
        Builder::new().build()
    }

    /// Starts what `builder` says: a worker for each seat.
    pub(super) fn start(builder: &Builder, seats: &[Option<Seat>]) -> io::Result<Runtime> {
        let workers = seats.len();
        let mut builder = builder.clone();
        builder.driver.budget = Budget::of_one(workers);
        let builder = &builder;
        let cpu_of = |worker: usize| seats[worker].map(|seat| Affinity::only(seat.cpu));
        let spawner = Spawner::new(workers, builder.steal);
        let (report, reports) = mpsc::channel();
        let mut starts = Vec::new();
        let mut threads = Vec::new();
        for index in 1..workers {
            let (start, started) = mpsc::channel::<Arc<Shared>>();
            let (report, builder, cpu) = (report.clone(), builder.clone(), cpu_of(index));
            let spawner = Arc::clone(&spawner);
            let name = format!("{}-{index}", builder.thread_name);
            let thread = thread::Builder::new().name(name);
            let thread = thread
                .spawn(move || run_worker(WorkerId::new(index), &builder, &spawner, cpu, report, &started));
            threads.push(thread.map_err(|error| no_thread(index, workers, &error))?);
            starts.push(start);
        }
        drop(report);
        let cpu = cpu_of(0);
        let caller = cpu.map(|_| Affinity::of_this_thread()).transpose()?;
        let parts = {
            let _there_and_back = caller.zip(cpu).map(|(caller, cpu)| Visit::to(cpu, caller));
            WorkerParts::make(builder, &spawner, 0)?
        };
        let mut ready = vec![Some(parts.ready())];
        ready.resize(workers, None);
        for (id, report) in reports {
            // An error ends this function and drops `starts`: the threads that wait for their start end.
            ready[id.index()] = Some(report?);
        }
        let ready = ready.into_iter().map(|ready| ready.expect("every thread has reported"));
        let (mailboxes, capabilities): (Vec<_>, Vec<_>) = ready.unzip();
        let shared = Shared::new(spawner, mailboxes.into(), builder.drain_patience);
        let shared = shared.with_blocking(builder.blocking()).with_seats(seats.into());
        let is_watched = builder.stall.threshold.is_some();
        let shared = Arc::new(if is_watched { shared.with_watches() } else { shared });
        // A watchdog that cannot be had fails the start while the threads can still be told: they end with `starts`.
        let watchdog = Watchdog::start(&builder.stall, &builder.thread_name, &shared)?;
        for start in starts {
            start.send(Arc::clone(&shared)).expect("a thread that reported waits for its start");
        }
        capabilities.iter().for_each(trace::degraded);
        let worker = parts.into_worker(WorkerId::new(0), Arc::clone(&shared), builder);
        Ok(Runtime { worker: Some(worker), shared, threads, _watchdog: watchdog, capabilities, caller, cpu })
    }

    /// Runs `future` on this thread, and every worker's tasks meanwhile. When it is ready, ends the runtime: what is still
    /// spawned is dropped, each task on its own worker, and every operation is awaited or cancelled.
    ///
    /// A worker that is in a poll is waited for as long as [`Builder::drain_patience`] says, then left to itself and named by
    /// [`Handle::stuck_workers`].
    ///
    /// ```
    /// use veloq::runtime::Runtime;
    ///
    /// let word = String::from("borrowed");
    /// let length = Runtime::new()?.block_on(async { word.len() });
    /// assert_eq!(length, 8);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If the future panics, with its payload. If called inside another runtime's `block_on`.
    #[track_caller]
    pub fn block_on<F: Future>(mut self, future: F) -> F::Output {
        let nested = super::context::Context::try_current().is_some();
        assert!(!nested, "a Veloq runtime is running on this thread already; await the future instead");
        let mut worker =
            self.worker.take().expect("the worker is taken here, and `block_on` takes the runtime");
        if let Some(cpu) = &self.cpu {
            // Where the CPU has gone since (a cpuset changed), running elsewhere is better than not at all.
            let _moved = cpu.apply_to_this_thread();
        }
        let output = Cell::new(None);
        let main = async { output.set(Some(future.await)) };
        let abort_on_unwind = AbortOnUnwind;
        let watched = worker.watched();
        let entered = worker.context().enter();
        // SAFETY: the future is dropped on this thread before this function returns or unwinds: it finishes, or `end` below closes the
        // worker's executor, which drops every future it has, or ends the process. The turns cannot unwind past that, since they are
        // caught; should anything else up to there, `AbortOnUnwind` ends the process, too. Wakers and handles that outlive the task
        // know its header only, which holds no part of the future; and its output borrows nothing.
        let mut task = unsafe { worker.context().executor.spawn_borrowing(main, Label::here()) };
        let turns = catch_unwind(AssertUnwindSafe(|| {
            loop {
                worker.work();
                if task.is_finished() {
                    break;
                }
                worker.wait(true);
            }
        }));
        drop(entered);
        drop(watched);
        let others = self.end(Some(worker));
        std::mem::forget(abort_on_unwind);
        let ended = Pin::new(&mut task).poll(&mut Context::from_waker(Waker::noop()));
        match (turns, others, ended) {
            (Err(panic), _, _) | (_, Err(panic), _) => resume_unwind(panic),
            (_, _, Poll::Ready(Err(error))) if error.is_panic() => resume_unwind(error.into_panic()),
            _ => output
                .into_inner()
                .expect("the main task has ended without a panic, so it has left its result"),
        }
    }

    /// A handle for other threads, good before, during and after `block_on`.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// What the workers have done so far; see [`Handle::metrics`].
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.handle().metrics()
    }

    /// What the kernel gives each worker, and what it refused, worker 0 first. All ask the same; where a limit bounds what they
    /// get together, one may get less than another. Code on a worker asks [`capabilities`](super::capabilities()).
    #[must_use]
    pub fn capabilities(&self) -> &[Capabilities] {
        &self.capabilities
    }

    /// Ends every worker, this thread's first, and joins the threads. An error is the payload of a worker that panicked.
    fn end(&mut self, worker: Option<Worker>) -> thread::Result<()> {
        self.shared.stop();
        let ours = catch_unwind(AssertUnwindSafe(|| worker.map(Worker::end)));
        let stuck = if self.threads.is_empty() { Vec::new() } else { self.shared.wait_until_left() };
        let threads = (1..).map(WorkerId::new).zip(self.threads.drain(..));
        // A thread that is dropped goes on by itself.
        let others = threads.filter(|(worker, _)| !stuck.contains(worker)).map(|(_, thread)| thread.join());
        let others = others.fold(Ok(()), Result::and);
        self.shared.end_blocking();
        trace::unfinished_jobs(self.shared.jobs_left());
        if let Some(caller) = self.caller.take() {
            // The thread may have been moved to a cpuset without these CPUs; then it stays where it is.
            let _moved = caller.apply_to_this_thread();
        }
        ours.map(drop).and(others)
    }
}

impl Drop for Runtime {
    /// Ends a runtime that never ran. After `block_on` there is nothing left to end.
    fn drop(&mut self) {
        let worker = self.worker.take();
        if self.end(worker).is_err() && !thread::panicking() {
            panic!("a worker panicked outside of any task; its message stands above");
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("workers", &self.shared.workers()).finish_non_exhaustive()
    }
}

/// The calling thread's visit to the CPU that it will work on, so that its memory is that CPU's. It is over when this is dropped.
struct Visit(Affinity);

impl Visit {
    fn to(cpu: Affinity, from: Affinity) -> Visit {
        // A CPU that the process may not use any more is no reason to fail.
        let _moved = cpu.apply_to_this_thread();
        Visit(from)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let _moved = self.0.apply_to_this_thread();
    }
}

/// A worker's mailbox and its driver's report.
type Ready = (Arc<Mailbox>, Capabilities);

/// What a thread can make of a worker before it knows the others.
struct WorkerParts {
    driver: DriverHandle,
    pool: Pool,
    mailbox: Arc<Mailbox>,
    unparked: Unparked,
}

impl WorkerParts {
    fn make(builder: &Builder, spawner: &Arc<Spawner>, worker: usize) -> io::Result<WorkerParts> {
        let backend = PlatformDriver::new(&builder.driver)?;
        let driver = DriverHandle::new(backend, &builder.driver);
        let pool = builder.make_pool(&driver)?;
        driver.register_buffers(&pool, &builder.driver);
        driver.capabilities().check_required(&builder.driver.required)?;
        let unparker = driver.unparker();
        let unparked = Unparked::default();
        let told = unparked.clone();
        let mailbox = Mailbox::new(spawner, worker, move || {
            told.set(Clock::System.now_ns(), super::context::Context::late_ns());
            unparker.unpark();
        });
        Ok(WorkerParts { driver, pool, mailbox, unparked })
    }

    /// What the builder needs to know before the others can be told.
    fn ready(&self) -> Ready {
        (Arc::clone(&self.mailbox), self.driver.capabilities())
    }

    fn into_worker(self, id: WorkerId, shared: Arc<Shared>, builder: &Builder) -> Worker {
        let limit_ns = u64::try_from(builder.spin.as_nanos()).unwrap_or(u64::MAX);
        let spinner = Spinner::new(limit_ns, self.unparked);
        Worker::new(id, shared, self.driver, self.pool, Clock::System, builder.budget, spinner)
            .with_background_percent(builder.background_percent)
    }
}

/// Says that the system gives no thread for a worker.
fn no_thread(worker: usize, workers: usize, error: &io::Error) -> io::Error {
    let unavailable = Unavailable {
        need: "a thread for each worker",
        found: format!("none for worker {worker} of {workers}: {error}"),
        remedy: "raise the limits on threads (RLIMIT_NPROC, the control group's pids.max), or run fewer workers",
    };
    unavailable.into_error(error.kind())
}

/// The body of a worker's thread.
fn run_worker(
    id: WorkerId,
    builder: &Builder,
    spawner: &Arc<Spawner>,
    cpu: Option<Affinity>,
    report: mpsc::Sender<(WorkerId, io::Result<Ready>)>,
    started: &mpsc::Receiver<Arc<Shared>>,
) {
    // First of all, so that the ring's and the pool's memory is this CPU's. A CPU that the process may not use any more is
    // no reason to fail: the worker then runs where it may.
    let _pinned = cpu.map(|cpu| cpu.apply_to_this_thread());
    let parts = match WorkerParts::make(builder, spawner, id.index()) {
        Ok(parts) => parts,
        Err(error) => return drop(report.send((id, Err(error)))),
    };
    if report.send((id, Ok(parts.ready()))).is_err() {
        return; // The builder has failed elsewhere and is gone.
    }
    // The builder reads reports until nobody is left who could send one.
    drop(report);
    let Ok(shared) = started.recv() else { return };
    let mut worker = parts.into_worker(id, Arc::clone(&shared), builder);
    /// Says that the loop is over, also when it was left by a panic.
    struct Leaves<'a>(&'a Shared, WorkerId);
    impl Drop for Leaves<'_> {
        fn drop(&mut self) {
            self.0.leave(self.1);
        }
    }
    let leaves = Leaves(&shared, id);
    let watched = worker.watched();
    let entered = worker.context().enter();
    // Whatever ends the turns, what the worker holds ends as it would have.
    let turns = catch_unwind(AssertUnwindSafe(|| {
        while !shared.is_stopping() {
            worker.work();
            worker.wait(!shared.is_stopping());
        }
    }));
    drop(entered);
    drop(watched);
    drop(leaves);
    let _drained = worker.end();
    if let Err(payload) = turns {
        resume_unwind(payload);
    }
}
