//! Waiting for a task, ending it, and what came of it.
//!
//! How the handle and the owner share the waker slot and the output is told in [`super`], under *Joining*. Here is
//! the handle's side of it.
#![expect(
    unsafe_code,
    reason = "the handle's turns at the waker slot and the output, and `Send` when the output is"
)]

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::TaskId;
use super::executor::Executor;
use super::label::Label;
use super::raw::{self, Counted, Payload};
use super::state::{Header, Progress, Side};
use super::waker;
use crate::io::driver::thread_pool::{JobFailed, PoolRefused};
use crate::runtime::mesh::MESSAGES_MAX;
use crate::runtime::worker_id::WorkerId;

/// Awaits a task's end, and yields what it returned.
///
/// Dropping the handle *detaches* the task: it goes on, and what it returns is dropped. To end it, call
/// [`abort`](JoinHandle::abort). A handle can be awaited on any worker, by any executor, and moved to another thread if `T`
/// can be.
///
/// Polling is cancel-safe: a handle that was polled in a `select` and lost can be awaited again.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
///     let sum = veloq::spawn_local(async { 3 + 4 });
///     let broken = veloq::spawn_local(async { if true { panic!("out of luck") } });
///     assert_eq!(sum.await?, 7);
///     let error = broken.await.expect_err("it panicked, and only it");
///     assert!(error.is_panic() && error.to_string().ends_with("panicked: out of luck"));
///     Ok(())
/// })
/// # }
/// ```
///
/// # Panics
///
/// Awaiting a handle again after it has yielded panics.
pub struct JoinHandle<T> {
    /// One word. A second, written by itself and then moved together with this one, would stall the move.
    task: Counted,
    /// The handle owns a `T` from completion on.
    output: PhantomData<T>,
}

// SAFETY: by the handle one gets at the output (so `T: Send` is needed), at the waker slot in the handle's turns (wakers
// are `Send`), and at the header's shared words.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: all that takes `&self` are atomic operations on the header.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> Unpin for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// The handle of a new task.
    ///
    /// # Safety
    ///
    /// There is no other, HANDLE is on, and `T` is the output type of the task.
    pub(super) unsafe fn new(task: Counted) -> JoinHandle<T> {
        JoinHandle { task, output: PhantomData }
    }

    /// Ends the task: its worker drops the future soon, and the handle yields a [`JoinError`] that
    /// [is a cancellation](JoinError::is_cancelled). A task that ends by itself before that yields what it returned.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
    ///     let endless = veloq::spawn_local(std::future::pending::<()>());
    ///     endless.abort();
    ///     assert!(endless.await.expect_err("it was aborted").is_cancelled());
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub fn abort(&self) {
        // SAFETY: the handle has a reference.
        unsafe { waker::abort(self.task.task()) };
    }

    /// A handle that can only abort, to be kept elsewhere.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { task: self.task.clone() }
    }

    /// Whether the task has ended, so that awaiting the handle would not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.join.progress() == Progress::Complete
    }

    /// The task's number.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.task.id
    }

    /// What the task was called by [`Builder::name`](crate::task::Builder::name).
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.task.name().map(Cow::as_ref)
    }

    /// Has `waker` woken when the task is complete; now, if it is.
    pub(crate) fn notify(&mut self, waker: &Waker) {
        if self.is_finished() || self.wait(waker) == Progress::Complete {
            waker.wake_by_ref();
        }
    }

    /// Where the handle is.
    fn side(&self) -> Side {
        if Executor::has(&self.task) { Side::Owner } else { Side::Elsewhere }
    }

    /// Puts `waker` into the slot for the owner to wake, and says whether the task is complete already.
    #[inline(never)]
    fn wait(&mut self, waker: &Waker) -> Progress {
        if self.side() == Side::Elsewhere {
            return self.wait_elsewhere(waker);
        }
        // SAFETY: the owner touches the slot as it completes the task, on this thread; the handle is here.
        let is_free = self.task.join_waker.with(|slot| unsafe { (*slot).is_none() });
        // A task that waits for one of its own worker's, for the first time, as nearly always.
        if is_free && let Some(waker) = waker::clone_pinned(waker) {
            // SAFETY: as above; no foreign code has run since the task was seen not to be complete. Nothing is overwritten that needs
            // dropping.
            self.task.join_waker.with_mut(|slot| unsafe { slot.write(Some(waker)) });
            self.task.join.lend_waker_here();
            return Progress::Running;
        }
        self.wait_here(waker)
    }

    /// The same off the owner's thread, or where nobody knows.
    #[inline(never)]
    fn wait_elsewhere(&mut self, waker: &Waker) -> Progress {
        match self.task.join.retract_waker() {
            Progress::Complete => return Progress::Complete,
            Progress::Running => {}
        }
        // SAFETY: WAKER is off and the handle there, so the slot is ours.
        let old = self.task.join_waker.with_mut(|slot| unsafe {
            let lent = (*slot).as_ref().is_some_and(|lent| lent.will_wake(waker));
            if lent { None } else { (*slot).replace(waker.clone()) }
        });
        let progress = self.task.join.lend_waker();
        if progress == Progress::Complete {
            // SAFETY: the owner completed while WAKER was off, so it leaves the slot alone; it is still ours.
            drop(self.task.join_waker.with_mut(|slot| unsafe { (*slot).take() }));
        }
        // Foreign code, called when all is in order again.
        drop(old);
        progress
    }

    /// The same on the owner's thread, where nothing can happen to the task meanwhile but by foreign code that is called here.
    #[inline(never)]
    fn wait_here(&mut self, waker: &Waker) -> Progress {
        // SAFETY: the owner touches the slot as it completes the task, on this thread; the handle is here.
        let there = self
            .task
            .join_waker
            .with(|slot| unsafe { (*slot).as_ref() }.is_some_and(|old| old.will_wake(waker)));
        let mut old = None;
        if !there {
            let waker = waker.clone();
            if self.task.join.progress() == Progress::Complete {
                return Progress::Complete;
            }
            // SAFETY: no foreign code has run since the look at the word, so the task is not complete, and the slot not the owner's.
            old = self.task.join_waker.with_mut(|slot| unsafe { (*slot).replace(waker) });
        }
        // Also for a waker that was there: it may have been taken back to be replaced, by a clone that panicked.
        self.task.join.lend_waker_here();
        drop(old);
        Progress::Running
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.task.join.progress() == Progress::Running && self.wait(cx.waker()) == Progress::Running {
            return Poll::Pending;
        }
        assert!(!self.task.join.has_taken(), "a JoinHandle yields once; do not poll it again after that");
        self.task.join.take_output();
        // SAFETY: the task is complete, this is its handle and `T` its output type (`new`), and it has not taken the output
        // before.
        let output = unsafe { raw::take_output::<T>(self.task.task()) };
        Poll::Ready(output.map_err(|failure| JoinError::new(&self.task, failure)))
    }
}

impl<T> Drop for JoinHandle<T> {
    #[inline]
    fn drop(&mut self) {
        if !self.task.join.has_taken() {
            self.detach();
        }
    }
}

impl<T> JoinHandle<T> {
    /// Leaves the task, or its output, to itself.
    #[inline(never)]
    fn detach(&mut self) {
        match self.task.join.drop_handle(self.side()) {
            // SAFETY: the task was complete while its handle was there, so the output is ours to drop, and `T` may be
            // dropped here: the handle came to this thread either never, or because `T: Send`.
            Progress::Complete => unsafe { (self.task.vtable.drop_output)(self.task.task()) },
            // SAFETY: WAKER is off since that change, and the owner will see neither it nor the handle.
            Progress::Running => drop(self.task.join_waker.with_mut(|slot| unsafe { (*slot).take() })),
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_task(f, "JoinHandle", &self.task)
    }
}

/// Aborts its task when it is dropped.
#[cfg(not(loom))]
pub(crate) struct Aborting<T>(pub(crate) JoinHandle<T>);

#[cfg(not(loom))]
impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ends a task from wherever it is kept. Dropping it does nothing.
#[derive(Clone)]
pub struct AbortHandle {
    task: Counted,
}

impl AbortHandle {
    /// Ends the task; see [`JoinHandle::abort`].
    pub fn abort(&self) {
        // SAFETY: the handle has a reference.
        unsafe { waker::abort(self.task.task()) };
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.join.progress() == Progress::Complete
    }

    /// The task's number.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.task.id
    }

    /// What the task was called by [`Builder::name`](crate::task::Builder::name).
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.task.name().map(Cow::as_ref)
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_task(f, "AbortHandle", &self.task)
    }
}

/// What both handles show of their task.
fn debug_task(f: &mut fmt::Formatter<'_>, name: &str, task: &Header) -> fmt::Result {
    f.debug_struct(name)
        .field("id", &task.id)
        .field("label", &task.label())
        .field("finished", &(task.join.progress() == Progress::Complete))
        .finish()
}

/// How a task ended that returned nothing, as its cell keeps it until somebody asks.
pub(super) enum Failure {
    /// It was aborted, or its worker ended before it; or it was to go to that worker, for which too many messages wait.
    Cancelled { unsent_to: Option<WorkerId> },
    /// It panicked, with this.
    Panicked(Payload),
}

/// Why a task returned nothing: it panicked, or it was cancelled (aborted, or its worker ended before it), or it was refused at a
/// bound: as blocking work, or sent to a worker for which too many messages wait.
///
/// It is one word, made when somebody asks: so what a task returned is not moved about as part of something larger.
pub struct JoinError(Box<Told>);

/// What an error tells.
struct Told {
    id: TaskId,
    label: Label,
    reason: Reason,
}

/// The ways not to return.
enum Reason {
    Cancelled,
    /// What the panic carries. The mutex is never contended; it makes the error `Sync`, which a payload need not be.
    Panicked(Mutex<Payload>),
    /// The pool for blocking work did not take it.
    Refused(PoolRefused),
    /// There was no room to send it.
    Unsent(SendRefused),
}

/// Why a worker was not sent a task: so many messages from the worker that called wait for it already. The
/// [source](std::error::Error::source) of the [`JoinError`] that the handle answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendRefused {
    /// The worker that is slow to take its messages.
    pub worker: WorkerId,
    /// How many wait for it.
    pub messages_max: usize,
}

impl fmt::Display for SendRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages from here wait for worker {} already", self.messages_max, self.worker)
    }
}

impl std::error::Error for SendRefused {}

impl JoinError {
    #[cold]
    fn told(id: TaskId, label: Label, reason: Reason) -> JoinError {
        JoinError(Box::new(Told { id, label, reason }))
    }

    /// The error of a task that ended so.
    #[cold]
    #[inline(never)]
    pub(super) fn new(task: &Header, failure: Failure) -> JoinError {
        let reason = match failure {
            Failure::Cancelled { unsent_to: None } => Reason::Cancelled,
            Failure::Cancelled { unsent_to: Some(worker) } => {
                Reason::Unsent(SendRefused { worker, messages_max: MESSAGES_MAX })
            }
            Failure::Panicked(payload) => Reason::Panicked(Mutex::new(payload)),
        };
        JoinError::told(task.id, task.label(), reason)
    }

    /// The error of a panic that was caught inside the task that runs here. Gives the payload back if none does.
    pub(in crate::runtime) fn of_running(payload: Payload) -> Result<JoinError, Payload> {
        let mut payload = Some(payload);
        let error = waker::with_running(|task| {
            JoinError::new(task, Failure::Panicked(payload.take().expect("one task runs here at most")))
        });
        error.ok_or_else(|| payload.expect("no task has taken it"))
    }

    /// The error of blocking work that was taken and has no result.
    pub(in crate::runtime) fn of_job(id: TaskId, label: Label, failed: JobFailed) -> JoinError {
        let reason = match failed {
            JobFailed::Panicked(payload) => Reason::Panicked(Mutex::new(payload)),
            JobFailed::Dropped => Reason::Cancelled,
        };
        JoinError::told(id, label, reason)
    }

    /// The error of blocking work that was not taken.
    pub(in crate::runtime) fn refused(id: TaskId, label: Label, refused: PoolRefused) -> JoinError {
        JoinError::told(id, label, Reason::Refused(refused))
    }

    /// Whether the task was refused at a bound, and so never began. It was blocking work that
    /// [`spawn_blocking`](crate::task::spawn_blocking) could not place, as too much of it waits already, or the runtime has ended: the
    /// [source](std::error::Error::source) is a [`PoolRefused`] that says which. Or [`spawn_to`](crate::task::spawn_to) had no
    /// room to send it: the source is a [`SendRefused`].
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.0.reason, Reason::Refused(_) | Reason::Unsent(_))
    }

    /// Whether the task was aborted, or its worker ended before it.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self.0.reason, Reason::Cancelled)
    }

    /// Whether the task panicked: in a poll, or in the destructor of its future.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        matches!(self.0.reason, Reason::Panicked(_))
    }

    /// What the panic carried, for [`resume_unwind`](std::panic::resume_unwind).
    ///
    /// # Panics
    ///
    /// If the task did not panic.
    #[track_caller]
    #[must_use]
    pub fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        self.try_into_panic()
            .expect("into_panic is for the error of a task that panicked; ask `is_panic` first")
    }

    /// What the panic carried.
    ///
    /// # Errors
    ///
    /// Gives the error back if the task did not panic.
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send + 'static>, JoinError> {
        match self.0.reason {
            Reason::Panicked(payload) => Ok(payload.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Reason::Cancelled | Reason::Refused(_) | Reason::Unsent(_) => Err(self),
        }
    }

    /// The number of the task.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.0.id
    }

    /// What the task was called.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.label.name().map(Cow::as_ref)
    }

    /// Where the task was spawned.
    #[must_use]
    pub fn location(&self) -> &'static Location<'static> {
        self.0.label.location()
    }

    /// Calls `f` with what the panic said, if it said something.
    fn with_message<R>(payload: &Mutex<Payload>, f: impl FnOnce(Option<&str>) -> R) -> R {
        let payload = payload.lock().unwrap_or_else(PoisonError::into_inner);
        let message = payload.downcast_ref::<&'static str>().copied();
        f(message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)))
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, label) = (self.0.id, &self.0.label);
        match &self.0.reason {
            Reason::Cancelled => write!(f, "task {id}, {label}, was cancelled"),
            Reason::Refused(refused) => write!(f, "task {id}, {label}, was refused: {refused}"),
            Reason::Unsent(refused) => write!(f, "task {id}, {label}, was refused: {refused}"),
            Reason::Panicked(payload) => JoinError::with_message(payload, |message| match message {
                Some(message) => write!(f, "task {id}, {label}, panicked: {message}"),
                None => write!(f, "task {id}, {label}, panicked"),
            }),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.reason {
            Reason::Cancelled => f.debug_tuple("JoinError::Cancelled").field(&self.0.id).finish(),
            Reason::Refused(refused) => {
                f.debug_tuple("JoinError::Refused").field(&self.0.id).field(refused).finish()
            }
            Reason::Unsent(refused) => {
                f.debug_tuple("JoinError::Refused").field(&self.0.id).field(refused).finish()
            }
            Reason::Panicked(payload) => JoinError::with_message(payload, |message| {
                f.debug_tuple("JoinError::Panicked")
                    .field(&self.0.id)
                    .field(&message.unwrap_or(".."))
                    .finish()
            }),
        }
    }
}

impl std::error::Error for JoinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.reason {
            Reason::Refused(refused) => Some(refused),
            Reason::Unsent(refused) => Some(refused),
            Reason::Cancelled | Reason::Panicked(_) => None,
        }
    }
}

impl From<JoinError> for std::io::Error {
    fn from(error: JoinError) -> std::io::Error {
        std::io::Error::other(error)
    }
}
