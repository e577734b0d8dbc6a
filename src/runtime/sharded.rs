//! A service with one instance on each worker.
//!
//! A [`Sharded<S>`] is a name for the instances: a number, the same on every worker, under which each worker keeps its
//! own `S`. The `S` is made on its worker, used there and dropped there, so it need not be `Send` and needs no locks. What
//! travels between workers is the call: a closure that is `Send`, and its result.
//!
//! ```text
//! start: factory runs on every worker ─▶ all Ok? open ─▶ calls ─▶ stop: all gates closed
//!            └─ an error: those that started are dropped, last first          └▶ calls in flight end, or the deadline
//!                                                                             └▶ instances dropped, last worker first
//! ```
//!
//! **The gate.** A call enters through its instance's gate, which counts it. Stopping closes every gate first, so that no
//! instance is called by another one's last calls after it has gone; then it waits for the calls in flight, worker by
//! worker in reverse order, and drops the instances. All of this is plain memory of the worker.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::context::Context;
use super::task::{JoinError, JoinHandle};
use super::timer::{Timer, Timers};
use super::worker_id::WorkerId;
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
///     counters.on(worker, async |count| count.set(count.get() + 1)).await.expect("it is not stopped");
/// }
/// assert_eq!(counters.local().expect("it is not stopped").get(), 1);
/// counters.stop(std::time::Duration::from_secs(1)).await.expect("no call is in flight");
/// # Ok::<(), std::io::Error>(())
/// # })?;
/// # Ok::<(), std::io::Error>(())
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

impl<S: 'static> Sharded<S> {
    /// Makes an instance on every worker, all at the same time.
    ///
    /// # Errors
    ///
    /// The first error that the factory returned; instances that had started are dropped before, last worker first.
    ///
    /// # Panics
    ///
    /// If the factory panics, with its payload; if no worker runs on this thread.
    pub async fn start<F, E>(factory: F) -> Result<Sharded<S>, E>
    where
        F: AsyncFn(WorkerId) -> Result<S, E> + Clone + Send + 'static,
        E: Send + 'static,
    {
        let workers = Context::current().shared.workers();
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let service = Sharded { key, workers, _instances: PhantomData };
        let starts: Vec<JoinHandle<Result<(), E>>> = service
            .ids()
            .map(|worker| {
                let factory = factory.clone();
                Context::current().spawn_to(worker, async move || {
                    let instance = Kept::new(factory(worker).await?);
                    Context::current().instances.borrow_mut().insert(key, instance);
                    Ok(())
                })
            })
            .collect();
        let mut failed = None;
        for start in starts {
            match start.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed = failed.or(Some(Ok(error))),
                Err(error) => failed = failed.or(Some(Err(error))),
            }
        }
        let Some(failed) = failed else { return Ok(service) };
        service.drop_instances(Duration::ZERO).await;
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
    /// Dropping the future before it is ready does not stop a call that is on its way.
    ///
    /// # Errors
    ///
    /// [`CallError::Stopped`] if the service has been stopped, [`CallError::Panicked`] if the call panics on another
    /// worker.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread, or there is no such worker.
    pub async fn on<F, R>(&self, worker: WorkerId, call: F) -> Result<R, CallError>
    where
        F: AsyncFnOnce(&S) -> R + Send + 'static,
        R: Send + 'static,
    {
        let context = Context::current();
        if worker == context.id {
            return Ok(call(&*self.local()?).await);
        }
        context.room_to_send(worker).await;
        let service = self.clone();
        let answer =
            Context::current().spawn_to(worker, async move || Ok(call(&*service.local()?).await)).await;
        answer
            .map_err(|error| if error.is_panic() { CallError::Panicked(error) } else { CallError::Stopped })?
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
        let context = Context::current();
        let instances = context.instances.borrow();
        let instance = instances.get(&self.key).ok_or(CallError::Stopped)?;
        let kept = Rc::clone(instance)
            .downcast::<Kept<S>>()
            .expect("a service's number names instances of its type");
        kept.enter().ok_or(CallError::Stopped)
    }

    /// Stops the service: from here on every call is refused. Calls in flight may finish until `patience` has passed;
    /// then the instances are dropped, last worker first, each on its worker. An instance that is still in use then is
    /// dropped by its last call.
    ///
    /// # Errors
    ///
    /// [`Unfinished`] if calls were in flight when the time was up.
    pub async fn stop(&self, patience: Duration) -> Result<(), Unfinished> {
        let key = self.key;
        for worker in self.ids() {
            let closed = Context::current().spawn_to(worker, async move || {
                if let Some(gate) = Kept::<S>::find(key) {
                    gate.open.set(false);
                }
            });
            drop(closed.await);
        }
        match self.drop_instances(patience).await {
            0 => Ok(()),
            calls => Err(Unfinished { calls }),
        }
    }

    /// Takes every instance away, last worker first, when its calls have ended or the time is up. Counts those that had
    /// not.
    async fn drop_instances(&self, patience: Duration) -> usize {
        let key = self.key;
        let mut unfinished = 0;
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = Timers::current().now().saturating_add(patience_ns);
        for worker in self.ids().rev() {
            let dropped = Context::current().spawn_to(worker, async move || {
                let Some(kept) = Kept::<S>::find(key) else { return 0 };
                kept.open.set(false);
                kept.idle_until(deadline_ns).await;
                let instance = Context::current().instances.borrow_mut().remove(&key);
                drop(instance);
                kept.calls.get()
            });
            unfinished += dropped.await.unwrap_or(0);
        }
        unfinished
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

/// One worker's instance, with its gate.
struct Kept<S> {
    service: S,
    open: Cell<bool>,
    calls: Cell<usize>,
    /// Who waits for the last call to end.
    idle: RefCell<Option<Waker>>,
}

impl<S: 'static> Kept<S> {
    fn new(service: S) -> Rc<Kept<S>> {
        Rc::new(Kept { service, open: Cell::new(true), calls: Cell::new(0), idle: RefCell::new(None) })
    }

    /// This worker's instance of the service with that number.
    fn find(key: u64) -> Option<Rc<Kept<S>>> {
        let instance = Context::current().instances.borrow().get(&key).cloned()?;
        Some(instance.downcast::<Kept<S>>().expect("a service's number names instances of its type"))
    }

    /// A call, if the gate is open.
    fn enter(self: Rc<Self>) -> Option<Instance<S>> {
        if !self.open.get() {
            return None;
        }
        self.calls.set(self.calls.get() + 1);
        Some(Instance { kept: self })
    }

    /// Ready when no call is in flight, or the clock has reached the deadline.
    async fn idle_until(&self, deadline_ns: u64) {
        let mut deadline = Timer::at(deadline_ns);
        poll_fn(|cx| {
            if self.calls.get() == 0 {
                return Poll::Ready(());
            }
            let before = self.idle.borrow_mut().replace(cx.waker().clone());
            drop(before);
            deadline.poll(cx)
        })
        .await;
    }
}

/// This worker's instance of a [`Sharded`] service, held as a call in flight.
pub struct Instance<S> {
    kept: Rc<Kept<S>>,
}

impl<S> Deref for Instance<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.kept.service
    }
}

impl<S> Drop for Instance<S> {
    fn drop(&mut self) {
        self.kept.calls.set(self.kept.calls.get() - 1);
        if self.kept.calls.get() == 0 {
            let waker = self.kept.idle.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Instance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Instance").field(&self.kept.service).finish()
    }
}

/// Why a call did not happen or has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The service has been stopped, or its runtime has.
    Stopped,
    /// The call panicked on its worker.
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
        std::io::Error::other(error.to_string())
    }
}

/// Calls were still in flight when [`Sharded::stop`] ran out of patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// How many.
    pub calls: usize,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls were still in flight when the service was stopped", self.calls)
    }
}

impl Error for Unfinished {}
