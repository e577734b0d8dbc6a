//! What code that runs on a worker can reach of it.
//!
//! A [`Context`] is a counted reference to one worker's parts. It is entered for the worker's turns; while it is, the
//! free functions (`spawn_local`, `sleep`, opening a file) find their worker through it. Identity is the context, not the
//! thread: several workers can take turns on one thread, each entering its own.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::task::Waker;

use super::mesh::links::{Links, Unsent};
use super::metrics::WorkerMetrics;
use super::shared::Shared;
use super::spin::Spinner;
use super::stall::Watch;
use super::task::{Executor, JoinHandle, Label, TaskRef};
use super::timer::{Clock, Timers};
use super::worker_id::WorkerId;
use crate::io::buf::Pool;
use crate::io::driver::DriverHandle;
use crate::sync::Arc;

/// One worker's parts, as code on the worker reaches them.
#[derive(Clone)]
pub(crate) struct Context(Rc<Parts>);

/// The parts themselves.
pub(crate) struct Parts {
    pub(crate) id: WorkerId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) executor: Rc<Executor>,
    pub(crate) timers: Timers,
    pub(crate) clock: Clock,
    pub(crate) driver: DriverHandle,
    pub(crate) pool: Pool,
    pub(crate) links: RefCell<Links>,
    /// What this worker has of services, by the service's number, which grows.
    pub(crate) instances: RefCell<BTreeMap<u64, Rc<dyn Any>>>,
    /// What the watchdog sees of this worker, if there is one.
    pub(crate) watch: Option<Arc<Watch>>,
    /// How often the receive ring was found empty when that was last told.
    pub(crate) dry_told: Cell<u64>,
    pub(crate) turns: Cell<u64>,
    /// Who goes on behind the next look at the kernel.
    pub(crate) after_look: RefCell<Vec<Waker>>,
    pub(crate) parks: Cell<u64>,
    pub(crate) timers_fired: Cell<u64>,
    pub(crate) spinner: Spinner,
    pub(crate) placed: Cell<u64>,
    pub(crate) steals: Cell<u64>,
    pub(crate) steals_failed: Cell<u64>,
    pub(crate) stolen: Cell<u64>,
}

thread_local! {
    /// The worker whose turn it is on this thread.
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// While it lives, a worker's parts are the thread's current ones. Restores those before.
pub(crate) struct Entered {
    outer: Option<Context>,
    _executor: super::task::Entered,
    _timers: super::timer::Entered,
    _driver: crate::io::driver::Entered,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Bound to a name, so that what may be the last reference is dropped after the cell's borrow.
        let _left = CURRENT.replace(self.outer.take());
    }
}

impl Context {
    /// A reference to these parts.
    pub(crate) fn new(parts: Parts) -> Context {
        Context(Rc::new(parts))
    }

    /// Makes this worker the thread's current one until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered {
        Entered {
            _executor: self.executor.enter(),
            _timers: self.timers.enter(),
            _driver: self.driver.enter(),
            outer: CURRENT.replace(Some(self.clone())),
        }
    }

    /// The worker whose turn it is on this thread.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[track_caller]
    pub(crate) fn current() -> Context {
        match Context::try_current() {
            Some(context) => context,
            None => no_worker(),
        }
    }

    /// The worker whose turn it is on this thread, if there is one.
    pub(crate) fn try_current() -> Option<Context> {
        CURRENT.with_borrow(Option::clone)
    }

    /// [How late](Spinner::late_ns) the worker is whose turn it is on this thread; zero if there is none. Asked by wakers, which may be
    /// called at any time, at the thread's end, too.
    pub(crate) fn late_ns() -> u64 {
        let late_ns =
            |current: &RefCell<Option<Context>>| Some(current.try_borrow().ok()?.as_ref()?.spinner.late_ns());
        CURRENT.try_with(late_ns).ok().flatten().unwrap_or(0)
    }

    /// Runs `work` on a worker. If too many messages wait for it, the closure is dropped, and the handle says so.
    #[track_caller]
    pub(crate) fn spawn_to<F, Fut>(&self, worker: WorkerId, work: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        self.spawn_to_as(Label::here(), worker, work)
    }

    /// As `spawn_to`, of a task that is known by `label`.
    #[track_caller]
    pub(crate) fn spawn_to_as<F, Fut>(
        &self,
        label: Label,
        worker: WorkerId,
        work: F,
    ) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let (task, handle) = TaskRef::new_remote_at(work, self.shared.mailbox(worker), label);
        if worker == self.id {
            self.executor.adopt(task);
            return handle;
        }
        let sent = self.links.borrow_mut().send(worker, task);
        match sent {
            Ok(()) | Err((_, Unsent::Closed)) => {}
            Err((task, Unsent::Full)) => task.refuse(worker),
        }
        handle
    }

    /// Runs `work` on a worker, however many messages wait for it: by its mailbox, for few and small ones that are not to be refused.
    pub(crate) fn spawn_past_the_bound<F, Fut>(
        &self,
        label: Label,
        worker: WorkerId,
        work: F,
    ) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let mailbox = self.shared.mailbox(worker);
        let (task, handle) = TaskRef::new_remote_at(work, mailbox, label);
        mailbox.push(task);
        handle
    }

    /// Runs a future wherever there is time for it.
    pub(crate) fn spawn<F>(&self, label: Label, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (task, handle) = TaskRef::new_stealable(future, label);
        self.place(task);
        handle
    }

    /// Runs `work` on a worker that has time for it.
    pub(crate) fn spawn_pinned<F, Fut>(&self, label: Label, work: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let (task, handle) = TaskRef::new_pinned(work, label);
        self.place(task);
        handle
    }

    fn place(&self, task: TaskRef) {
        self.placed.set(self.placed.get() + 1);
        self.executor.place(task, self.clock.coarse_ns());
    }

    /// Has this one woken behind the next look at the kernel.
    pub(crate) fn wake_after_look(&self, waker: &Waker) {
        let waker = waker.clone();
        self.after_look.borrow_mut().push(waker);
    }

    /// For tests: runs a future as a task of this worker.
    #[cfg(test)]
    #[track_caller]
    pub(crate) fn spawn_local<F: Future + 'static>(&self, future: F) -> JoinHandle<F::Output> {
        self.executor.spawn(future, Label::here())
    }

    /// What this worker has done so far, besides its times.
    pub(crate) fn metrics(&self) -> WorkerMetrics {
        let driver = self.driver.counters();
        let tasks = self.executor.counters();
        // Not all that the pool can say of itself: how large its largest block is it knows only when it has joined what it keeps.
        let (pool_hits, pool_misses) = self.pool.hits_and_misses();
        let (spins, spins_won, spin_ns) = self.spinner.counts();
        let (mesh_sent, mesh_received) = self.links.borrow().counts();
        WorkerMetrics {
            turns: self.turns.get(),
            polls: tasks.polls,
            spawned: tasks.spawned,
            local_wakes: tasks.wakes_local,
            tasks: tasks.alive as u64,
            ready: tasks.ready as u64,
            parks: self.parks.get(),
            spins,
            spins_won,
            spin_ns,
            kernel_entries: driver.entries,
            operations: driver.submitted,
            completions: driver.completions,
            in_flight: self.driver.in_flight() as u64,
            slots: self.driver.occupied() as u64,
            mesh_sent,
            mesh_received,
            remote_wakes: tasks.wakes_remote,
            timers_fired: self.timers_fired.get(),
            placed: self.placed.get(),
            steals: self.steals.get(),
            steals_failed: self.steals_failed.get(),
            stolen: self.stolen.get(),
            cancels: driver.cancels,
            cancels_won: driver.cancels_won,
            cancels_lost: driver.cancels_lost,
            cancels_late: driver.cancels_late,
            backlogged: driver.backlogged,
            boxed: driver.boxed,
            descriptors_reclaimed: driver.descriptors_reclaimed,
            receive_ring_dry: driver.receive_ring_dry,
            pool_hits,
            chunks_registered: driver.chunks_registered,
            chunks_refused: driver.chunks_refused,
            pool_misses,
            buffers_out: self.pool.lent_blocks() as u64,
            ..WorkerMetrics::default()
        }
    }
}

/// Runs a future as a task of the worker whose turn it is on this thread.
///
/// # Panics
///
/// If there is none.
#[track_caller]
pub(crate) fn spawn_here<F: Future + 'static>(future: F, label: Label) -> JoinHandle<F::Output> {
    // Without a reference to the context, counted for the length of the call: this is called for each request.
    match Executor::spawn_here(future, label) {
        Some(handle) => handle,
        None => no_worker(),
    }
}

/// Says that this thread is nobody's.
#[track_caller]
fn no_worker() -> ! {
    panic!("no Veloq worker on this thread; call this inside `Runtime::block_on` or a spawned task")
}

impl std::ops::Deref for Context {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("id", &self.id).field("driver", &self.driver).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buf::BufPool;

    // A worker shares its counters each time before it sleeps. Were the blocks joined for that which its pool keeps as they were cut, the
    // next request's buffers would all have to be cut anew.
    #[veloq::test]
    async fn a_look_at_the_counters_leaves_the_pools_blocks_as_they_are() {
        let context = Context::current();
        drop([(); 3].map(|()| context.pool.alloc(4096)));
        assert_eq!(context.pool.kept_blocks(), 3, "void: they are not kept");
        let before = context.metrics().buffers_out;
        assert_eq!(context.pool.kept_blocks(), 3);
        let _lent = context.pool.alloc(4096);
        assert_eq!(context.metrics().buffers_out, before + 1);
    }
}
