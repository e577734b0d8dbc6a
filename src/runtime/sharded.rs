//! A service with one instance on each worker.
//!
//! A [`Sharded<S>`] is a name for the instances: a number, the same on every worker, under which each worker keeps its
//! own `S`. The `S` is made on its worker, used there and dropped there, so it need not be `Send` and needs no locks. What
//! travels between workers is the call: a closure that is `Send`, and its result.
//!
//! ```text
//! start: the factory runs on every worker ─▶ all Ok? open ─▶ calls ─▶ stop: every gate closed
//!            └─ an error: those that started                           └▶ calls in flight end, or the deadline passes
//!               are dropped, last worker first                           └▶ instances stopped, last worker first
//! ```
//!
//! **A start that is given up.** Until all have started, an instance is kept by a [`Started`], which is what the factory's task returns.
//! Whoever drops it takes the instance away again: the one who waited for the start, or, if nobody waits any more, the task itself when
//! its factory is done. So there is no moment at which an instance belongs to nobody.
//!
//! **The gate.** A call enters its instance through a [`Gate`], which counts it. Stopping closes all gates first, on every
//! worker, so that no new call can reach an instance while another one is being taken away.
//!
//! **Calls made by calls.** What a call in flight calls belongs to it, and a gate that is closed to everybody else lets it in: else
//! a call that had reached the first of three instances could not finish. The runtime knows by the call's *line*: the numbers
//! of the services whose calls it is part of, outermost first. It is a task-local, in place while the call is polled, and it
//! goes along when the call calls on another worker. A task that a call spawns is not part of the call.
//!
//! **When is the last call over?** An instance that is idle may yet be called by a call that is in flight elsewhere, and that one
//! by a third which has given it up and ended (dropping the future of a call does not end it on another worker). So stopping
//! asks in rounds: every worker says, once it is idle, how many calls have ever entered there. When two rounds after one another
//! hear the same sum, then no call entered any instance between a worker's two answers, and it was idle at both, so it was idle all
//! the while. All these spans contain the moment between the two rounds. At that moment every instance was idle, and
//! only a call in flight can let another one in: the last call is over. (One that was given up may still be on its way. It finds
//! the service stopped, and nobody waits for it.)

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::context::Context;
use super::gate::{Gate, GatePass};
use super::mesh::links::RoomToSend;
use super::mesh::reply::reply;
use super::shared::Shared;
use super::task::{Aborting, JoinError, JoinHandle, Label, TaskRef};
use super::task_local::TaskLocal;
use super::timer::{Timer, Timers};
use super::worker_id::WorkerId;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A service with one instance on each worker. Cheap to clone; can be sent anywhere in its runtime.
///
/// ```
/// use std::cell::Cell;
/// use veloq::runtime::Sharded;
///
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// let counters = Sharded::start(async |_worker| Ok::<_, std::io::Error>(Cell::new(0))).await?;
/// for worker in veloq::workers() {
///     counters.on(worker, async |count| count.set(count.get() + 1)).await?;
/// }
/// assert_eq!(counters.local()?.get(), 1);
/// assert_eq!(counters.map_reduce(async |count| count.get(), 0, |sum, count| sum + count).await?, 2);
/// counters.stop(std::time::Duration::from_secs(1)).await.expect("no call is in flight");
/// # Ok::<(), std::io::Error>(())
/// # })?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// **From tasks that may be stolen, and from threads outside.** The future of a call is not `Send`: the call may be one of this worker's
/// own instance, and that runs in the caller's task, which then has to stay. A task that may move, or a thread that has a
/// [`Handle`](super::Handle), sends a task to make the call; what comes back is a [`JoinHandle`], which is
/// `Send`.
///
/// ```
/// # use std::cell::Cell;
/// # use veloq::{WorkerId, runtime::Sharded};
/// # async fn program(counters: Sharded<Cell<u32>>, worker: WorkerId) {
/// veloq::spawn(async move {
///     let call = async move || counters.on(worker, async |count| count.get()).await;
///     veloq::spawn_to(worker, call).await
/// });
/// # }
/// ```
///
/// This does not compile:
///
/// ```compile_fail
/// # use std::cell::Cell;
/// # use veloq::{WorkerId, runtime::Sharded};
/// # async fn program(counters: Sharded<Cell<u32>>, worker: WorkerId) {
/// veloq::spawn(async move {
///     let call = async move || counters.on(worker, async |count| count.get()).await;
///     call().await
/// });
/// # }
/// ```
pub struct Sharded<S> {
    key: u64,
    workers: usize,
    _instances: PhantomData<fn() -> S>,
}

impl<S> Clone for Sharded<S> {
    fn clone(&self) -> Sharded<S> {
        Sharded { key: self.key, workers: self.workers, _instances: PhantomData }
    }
}

/// The number of the next service of this process.
static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

/// How long a worker is given to answer whatever the patience: nothing but time tells one that is stuck from one that has yet to be woken
/// and given a core, for which a loaded system may take a tick of its clock. The longest is that of Windows, 15.6 ms.
const GRACE_MIN: Duration = Duration::from_millis(20);

thread_local! {
    static LINE: RefCell<Option<Line>> = const { RefCell::new(None) };
}

/// The line of the call that is being polled.
static CALL: TaskLocal<Line> = TaskLocal::new(&LINE);

/// The services whose calls a call is part of, each once, outermost first.
type Line = Rc<[u64]>;

impl<S: 'static> Sharded<S> {
    /// Makes an instance on every worker, all at the same time.
    ///
    /// If the future is dropped before it is ready, the factories are aborted, and the instances that have started dropped, each on its
    /// worker.
    ///
    /// A service that is not [stopped](Sharded::stop) is dropped when the runtime ends: on each worker by itself, and services
    /// that were started later before those started earlier.
    ///
    /// # Errors
    ///
    /// The first error that the factory returned, by worker; instances that had started are dropped before, last worker first.
    ///
    /// # Panics
    ///
    /// If the factory panics, with its payload; if no worker runs on this thread.
    pub async fn start<F, E>(factory: F) -> Result<Sharded<S>, E>
    where
        F: AsyncFnOnce(WorkerId) -> Result<S, E> + Clone + Send + 'static,
        E: Send + 'static,
    {
        let workers = Context::current().shared.workers();
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let service = Sharded { key, workers, _instances: PhantomData };
        let mut starts = Vec::with_capacity(workers);
        for worker in service.ids() {
            let factory = factory.clone();
            let start = async move || Ok(Started::insert(key, factory(worker).await?));
            starts.push(Aborting(service.spawn_to(Label::here(), worker, start).await));
        }
        let (mut started, mut failed) = (Vec::with_capacity(workers), None);
        for start in &mut starts {
            match (&mut start.0).await {
                Ok(Ok(instance)) => started.push(instance),
                Ok(Err(error)) => failed = failed.or(Some(Ok(error))),
                Err(error) => failed = failed.or(Some(Err(error))),
            }
        }
        let Some(failed) = failed else {
            started.into_iter().for_each(Started::keep);
            return Ok(service);
        };
        // Nobody else knows the service, so no call can be in flight. What this leaves, because it is dropped half-way or a
        // worker is stuck, goes with `started`.
        let _no_calls = service.stop(Duration::ZERO).await;
        drop(started);
        match failed {
            Ok(error) => Err(error),
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // The runtime is ending, and so is the task that waits here.
            Err(_) => std::future::pending().await,
        }
    }

    /// Calls the instance of a worker, there. On this worker the call runs in the caller's own task; on another it is a
    /// task of that worker, and the closure goes over the mesh. Waits first if too many messages wait for that worker.
    ///
    /// Dropping the future before it is ready ends a call on this worker. It does not stop a call that is on its way to another.
    ///
    /// While the service [stops](Sharded::stop), only calls that are made inside of a call of this same service are let in, on
    /// whichever worker.
    ///
    /// # Errors
    ///
    /// [`CallError::Stopped`] if the service has been stopped, [`CallError::Panicked`] if the call panics, on this worker or
    /// another.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread, or there is no such worker.
    #[track_caller]
    pub fn on<F, R>(&self, worker: WorkerId, call: F) -> impl Future<Output = Result<R, CallError>>
    where
        F: AsyncFnOnce(&S) -> R + Send + 'static,
        R: Send + 'static,
    {
        let label = Label::here();
        async move {
            let line = CALL.try_with(Rc::clone).ok();
            if worker == Context::current().id {
                return self.call_here(line, call).await;
            }
            answer(self.send(label, worker, line, call).await).await
        }
    }

    /// Calls every instance at the same time, as [`on`](Sharded::on) does. The results are in the order of the workers.
    ///
    /// # Errors
    ///
    /// The first error in the order of the workers, when all calls have ended.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn on_all<F, R>(&self, call: F) -> impl Future<Output = Result<Vec<R>, CallError>>
    where
        F: AsyncFnOnce(&S) -> R + Clone + Send + 'static,
        R: Send + 'static,
    {
        let label = Label::here();
        async move {
            let here = Context::current().id;
            let line = CALL.try_with(Rc::clone).ok();
            let mut others = Vec::with_capacity(self.workers);
            for worker in self.ids().filter(|worker| *worker != here) {
                others.push(self.send(label.clone(), worker, line.clone(), call.clone()).await);
            }
            let mut results = Vec::with_capacity(self.workers);
            let ours = self.call_here(line, call).await;
            for other in others {
                results.push(answer(other).await);
            }
            results.insert(here.index(), ours);
            results.into_iter().collect()
        }
    }

    /// Calls every instance at the same time, and folds the results in the order of the workers.
    ///
    /// ```
    /// # use veloq::runtime::Sharded;
    /// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
    /// let shards = Sharded::start(async |worker| Ok::<_, std::io::Error>(worker.index() as u64 + 1)).await?;
    /// let total = shards.map_reduce(async |shard| *shard * 10, 0, |sum, part| sum + part).await?;
    /// assert_eq!(total, 30);
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`on_all`](Sharded::on_all); nothing is folded then.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn map_reduce<F, R, A>(
        &self,
        map: F,
        init: A,
        reduce: impl FnMut(A, R) -> A,
    ) -> impl Future<Output = Result<A, CallError>>
    where
        F: AsyncFnOnce(&S) -> R + Clone + Send + 'static,
        R: Send + 'static,
    {
        let parts = self.on_all(map);
        async move { Ok(parts.await?.into_iter().fold(init, reduce)) }
    }

    /// This worker's instance, to be used here. It counts as a call in flight until it is dropped.
    ///
    /// # Errors
    ///
    /// [`CallError::Stopped`] if the service has been stopped.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub fn local(&self) -> Result<Instance<S>, CallError> {
        let within = CALL.try_with(|line| line.contains(&self.key)).unwrap_or(false);
        Shard::find(self.key).and_then(|shard| shard.enter(within)).ok_or(CallError::Stopped)
    }

    /// Stops the service: from here on every new call is refused. Calls in flight, and what they call of this service, may
    /// finish until `patience` has passed; then the instances are dropped, last worker first, each on its worker. An instance
    /// that is still in use then is dropped by its last call.
    ///
    /// A worker that is in a poll and does not answer is waited for until `patience` has passed, and at least as long as
    /// [`Builder::drain_patience`](super::Builder::drain_patience) says, or 20 ms if that is less. Then it is left out, and named by
    /// the error; it stops its instance when it comes back.
    ///
    /// Two stops at the same time share the work: each instance is stopped by the one that reaches it first, and both wait for
    /// it. If the future is dropped, the gates stay closed, and the instances that it has not reached stay until another stop
    /// or the end of the runtime.
    ///
    /// # Errors
    ///
    /// [`Unfinished`] if calls were in flight when the time was up, or a worker did not answer.
    ///
    /// # Panics
    ///
    /// If the destructor of an instance panics, with its payload, when all have been stopped. If no worker runs on this
    /// thread.
    pub async fn stop(&self, patience: Duration) -> Result<(), Unfinished> {
        match self.stop_with(patience, async |_instance| Ok::<(), Infallible>(())).await {
            Ok(()) => Ok(()),
            Err(StopError::Unfinished(unfinished)) => Err(unfinished),
        }
    }

    /// Stops the service as [`stop`](Sharded::stop) does, and gives each instance to `stop`, which can do what a destructor
    /// cannot: await. One after the other, last worker first, each on its worker; all of them, also when one fails.
    ///
    /// `patience` is for calls in flight, and for workers that do not answer. An instance that is in use even so is not given to
    /// `stop`; that of a worker which did not answer is, when it comes back, and nobody waits for it. How long `stop` may take is its
    /// own business.
    ///
    /// ```
    /// # use std::{io, time::Duration};
    /// # use veloq::{fs::File, runtime::Sharded};
    /// # async fn close(files: Sharded<File>) -> io::Result<()> {
    /// files.stop_with(Duration::from_secs(5), async |file: File| {
    ///     file.sync_all().await?;
    ///     file.close().await
    /// })
    /// .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`StopError::Failed`] with the first error of `stop`; else [`StopError::Unfinished`] if calls were in flight when the
    /// time was up, or a worker did not answer.
    ///
    /// # Panics
    ///
    /// If `stop` or the destructor of an instance panics, with its payload, when all have been stopped. If no worker runs on
    /// this thread.
    pub async fn stop_with<F, E>(&self, patience: Duration, stop: F) -> Result<(), StopError<E>>
    where
        F: AsyncFnOnce(S) -> Result<(), E> + Clone + Send + 'static,
        E: Send + 'static,
    {
        let key = self.key;
        let grace_ns = saturating_ns(Context::current().shared.drain_patience.max(GRACE_MIN));
        let deadline_ns = Timers::current().now().saturating_add(saturating_ns(patience));
        let answers_by_ns = deadline_ns.max(Timers::current().now().saturating_add(grace_ns));
        let close = async move || {
            if let Some(shard) = Shard::<S>::find(key) {
                let _closed = shard.gate.close();
            }
        };
        let closed = self.on_workers(answers_by_ns, close).await;
        let mut silent: Vec<WorkerId> = self
            .ids()
            .zip(&closed)
            .filter(|(_, answer)| answer.is_none())
            .map(|(worker, _)| worker)
            .collect();
        self.idle_until(deadline_ns, answers_by_ns).await;
        let (mut calls, mut failed, mut panic) = (0, None, None);
        for worker in self.ids().rev() {
            let (begins, begun) = reply();
            let stop = stop.clone();
            let depart = async move || {
                let _nobody_waits = begins.send(());
                Shard::<S>::depart(key, stop).await
            };
            let waits = !silent.contains(&worker);
            let departs = Context::current().spawn_past_the_bound(Label::here(), worker, depart);
            let now_ns = Timers::current().now();
            let by_ns = if waits { answers_by_ns.max(now_ns.saturating_add(grace_ns)) } else { now_ns };
            if until(by_ns, begun).await.is_none() {
                if waits {
                    silent.push(worker);
                }
                continue;
            }
            match departs.await {
                Ok(Departed::Stopped(Ok(()))) => {}
                Ok(Departed::Stopped(Err(error))) => failed = failed.or(Some(error)),
                Ok(Departed::InUse(by)) => calls += by,
                Err(error) if error.is_panic() => panic = panic.or(Some(error)),
                // The runtime is ending, and drops the instances itself.
                Err(_) => {}
            }
        }
        silent.sort_unstable();
        match (panic, failed, calls) {
            (Some(panic), ..) => resume_unwind(panic.into_panic()),
            (None, Some(error), _) => Err(StopError::Failed(error)),
            (None, None, 0) if silent.is_empty() => Ok(()),
            (None, None, calls) => Err(StopError::Unfinished(Unfinished { calls, silent })),
        }
    }

    /// Waits until the last call is over, or the deadline. See *When is the last call over?* above. A worker that does not answer is
    /// not waited for any longer than that says.
    async fn idle_until(&self, deadline_ns: u64, answers_by_ns: u64) {
        let key = self.key;
        let mut before = None;
        loop {
            let idle = async move || {
                let Some(shard) = Shard::<S>::find(key) else { return 0 };
                until(deadline_ns, shard.gate.left()).await;
                shard.entered.get()
            };
            let round = self.on_workers(answers_by_ns, idle).await;
            let entered: u64 = round.into_iter().flatten().map(|entered| entered.unwrap_or(0)).sum();
            if before == Some(entered) || Timers::current().now() >= deadline_ns {
                return;
            }
            before = Some(entered);
        }
    }

    /// Runs a call of this worker's instance, in the task that is being polled.
    async fn call_here<F, R>(&self, line: Option<Line>, call: F) -> Result<R, CallError>
    where
        F: AsyncFnOnce(&S) -> R,
    {
        let within = line.as_ref().is_some_and(|line| line.contains(&self.key));
        let shard = Shard::<S>::find(self.key).ok_or(CallError::Stopped)?;
        let instance = shard.enter(within).ok_or(CallError::Stopped)?;
        let line = match line {
            None => Rc::clone(&shard.line),
            Some(line) if within => line,
            Some(line) => line.iter().copied().chain([self.key]).collect(),
        };
        drop(shard);
        let mut call = pin!(CALL.scope(line, call(&instance)));
        // The same call gives the same error on each worker. What it leaves half done is the service's own, as on another worker.
        poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(payload) => match JoinError::of_running(payload) {
                Ok(error) => Poll::Ready(Err(CallError::Panicked(error))),
                Err(payload) => resume_unwind(payload),
            },
        })
        .await
    }

    /// Sends a call to another worker, when there is room for it.
    async fn send<F, R>(
        &self,
        label: Label,
        worker: WorkerId,
        line: Option<Line>,
        call: F,
    ) -> JoinHandle<Result<R, CallError>>
    where
        F: AsyncFnOnce(&S) -> R + Send + 'static,
        R: Send + 'static,
    {
        let service = self.clone();
        // Few calls are made by calls, and only they pay for it.
        let line: Option<Box<[u64]>> = line.map(|line| Box::from(&*line));
        self.spawn_to(label, worker, async move || service.call_here(line.map(Rc::from), call).await).await
    }

    /// Runs `work` on every worker at the same time, and waits for all; but not for those that have not answered, or been sent anything for
    /// want of room, when the clock has reached the deadline. They answer `None`.
    async fn on_workers<F, R>(&self, deadline_ns: u64, work: F) -> Vec<Option<Result<R, JoinError>>>
    where
        F: AsyncFnOnce() -> R + Clone + Send + 'static,
        R: Send + 'static,
    {
        // Side by side: one that has no room to be sent to does not take the others' time.
        let mut calls: Vec<_> = self
            .ids()
            .map(|worker| {
                let work = work.clone();
                Box::pin(async move {
                    self.spawn_to(Label::here(), worker, async move || work().await).await.await
                })
            })
            .collect();
        let mut answers: Vec<_> = calls.iter().map(|_| None).collect();
        let all = poll_fn(|cx| {
            for (call, answer) in calls.iter_mut().zip(&mut answers) {
                if answer.is_none()
                    && let Poll::Ready(given) = call.as_mut().poll(cx)
                {
                    *answer = Some(given);
                }
            }
            if answers.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
        });
        until(deadline_ns, all).await;
        answers
    }

    /// Runs `work` on a worker, when there is room to send it there.
    async fn spawn_to<F, Fut>(&self, label: Label, worker: WorkerId, work: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        RoomToSend::new(worker).await;
        Context::current().spawn_to_as(label, worker, work)
    }

    fn ids(&self) -> impl DoubleEndedIterator<Item = WorkerId> + use<S> {
        (0..self.workers).map(WorkerId::new)
    }
}

impl<S> fmt::Debug for Sharded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharded")
            .field("key", &self.key)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

/// What came of a call that was sent.
async fn answer<R>(call: JoinHandle<Result<R, CallError>>) -> Result<R, CallError> {
    match call.await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => Err(CallError::Panicked(error)),
        Err(_) => Err(CallError::Stopped),
    }
}

/// What `future` yields, if it does before the clock has reached the deadline.
async fn until<F: Future>(deadline_ns: u64, future: F) -> Option<F::Output> {
    let (mut future, mut deadline) = (pin!(future), Timer::at(deadline_ns));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => deadline.poll(cx).map(|()| None),
    })
    .await
}

fn saturating_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What one worker keeps of a service.
struct Shard<S> {
    /// The instance, until it is taken away. Calls hold it as well.
    service: RefCell<Option<Rc<S>>>,
    gate: Gate,
    /// Calls that have entered, ever.
    entered: Cell<u64>,
    /// Whoever takes the instance away is inside; who comes to do the same waits here.
    departure: Gate,
    /// The line of a call that is part of no other.
    line: Line,
}

/// What came of taking an instance away.
enum Departed<E> {
    /// It was stopped, now or by another stop.
    Stopped(Result<(), E>),
    /// It is left to so many calls.
    InUse(usize),
}

impl<S: 'static> Shard<S> {
    fn new(key: u64, service: S) -> Shard<S> {
        Shard {
            service: RefCell::new(Some(Rc::new(service))),
            gate: Gate::new(),
            entered: Cell::new(0),
            departure: Gate::new(),
            line: Rc::new([key]),
        }
    }

    /// What this worker keeps of the service with that number.
    fn find(key: u64) -> Option<Rc<Shard<S>>> {
        let shard: Rc<dyn Any> = Context::current().instances.borrow().get(&key).cloned()?;
        Some(shard.downcast::<Shard<S>>().expect("a service's number names instances of its type"))
    }

    /// The instance with a call in it, if there is one and the gate is open, or the call is `within` one that is in flight.
    fn enter(&self, within: bool) -> Option<Instance<S>> {
        let pass = if within { self.gate.admit() } else { self.gate.enter().ok()? };
        let service = self.service.borrow().clone()?;
        self.entered.set(self.entered.get() + 1);
        Some(Instance { service, _pass: pass })
    }

    /// Takes this worker's instance away, and stops it if no call has it.
    async fn depart<E>(key: u64, stop: impl AsyncFnOnce(S) -> Result<(), E>) -> Departed<E> {
        let Some(shard) = Shard::<S>::find(key) else { return Departed::Stopped(Ok(())) };
        // It is, unless this worker was silent.
        let _closed = shard.gate.close();
        let Some(service) = shard.service.take() else {
            shard.departure.left().await;
            return Departed::Stopped(Ok(()));
        };
        let _departing = Departing { key, _pass: shard.departure.admit() };
        match Rc::try_unwrap(service) {
            Ok(service) => Departed::Stopped(stop(service).await),
            Err(_in_use) => Departed::InUse(shard.gate.inside()),
        }
    }
}

/// An instance of a service of which not all have started. Dropped, on whichever worker, it takes the instance away.
struct Started {
    key: u64,
    worker: WorkerId,
    /// `None` once the service is to keep it.
    shared: Option<Arc<Shared>>,
}

impl Started {
    /// Keeps an instance on this worker.
    fn insert<S: 'static>(key: u64, instance: S) -> Started {
        let here = Context::current();
        here.instances.borrow_mut().insert(key, Rc::new(Shard::new(key, instance)));
        Started { key, worker: here.id, shared: Some(Arc::clone(&here.shared)) }
    }

    /// The service has started.
    fn keep(mut self) {
        self.shared = None;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let key = self.key;
        let take_away = async move || {
            let shard = Context::current().instances.borrow_mut().remove(&key);
            drop(shard);
        };
        // Past the bound on messages, since a destructor cannot wait for room; there is one for each instance.
        let mailbox = shared.mailbox(self.worker);
        mailbox.push(TaskRef::new_remote_at(take_away, mailbox, Label::here()).0);
    }
}

/// An instance is being taken away. When that is over, however it ends, the worker forgets the service.
struct Departing {
    key: u64,
    _pass: GatePass,
}

impl Drop for Departing {
    fn drop(&mut self) {
        if let Some(context) = Context::try_current() {
            let shard = context.instances.borrow_mut().remove(&self.key);
            drop(shard);
        }
    }
}

/// This worker's instance of a [`Sharded`] service, held as a call in flight.
pub struct Instance<S> {
    // Goes before the pass: when nobody is inside, nobody has the instance.
    service: Rc<S>,
    _pass: GatePass,
}

impl<S> Deref for Instance<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.service
    }
}

impl<S: fmt::Debug> fmt::Debug for Instance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instance").field(&self.service).finish()
    }
}

/// Why a call did not happen or has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The service has been stopped, or its runtime has.
    Stopped,
    /// The call panicked, in the task that the error names.
    Panicked(JoinError),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Stopped => f.write_str("the service has been stopped"),
            CallError::Panicked(error) => write!(f, "the call failed: {error}"),
        }
    }
}

impl Error for CallError {}

impl From<CallError> for std::io::Error {
    fn from(error: CallError) -> std::io::Error {
        std::io::Error::other(error)
    }
}

/// What [`Sharded::stop`] left behind when it ran out of patience.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// Calls that were still in flight. Their instances go with the last of them.
    pub calls: usize,
    /// Workers that did not answer: each is in a poll, and stops its instance after that.
    pub silent: Vec<WorkerId>,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls were still in flight when the service was stopped", self.calls)?;
        self.silent.iter().try_for_each(|worker| write!(f, "; worker {worker} did not answer"))
    }
}

impl Error for Unfinished {}

/// Why [`Sharded::stop_with`] did not stop everything in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopError<E> {
    /// Calls were still in flight, so their instances were left to them; or a worker did not answer.
    Unfinished(Unfinished),
    /// The first error of those that stopped the instances.
    Failed(E),
}

impl<E: fmt::Display> fmt::Display for StopError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopError::Unfinished(unfinished) => unfinished.fmt(f),
            StopError::Failed(error) => write!(f, "an instance was not stopped in order: {error}"),
        }
    }
}

impl<E: Error + 'static> Error for StopError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            StopError::Unfinished(_) => None,
            StopError::Failed(error) => Some(error),
        }
    }
}

impl<E: Error + Send + Sync + 'static> From<StopError<E>> for std::io::Error {
    fn from(error: StopError<E>) -> std::io::Error {
        std::io::Error::other(error)
    }
}

impl From<Unfinished> for std::io::Error {
    fn from(error: Unfinished) -> std::io::Error {
        std::io::Error::other(error)
    }
}
