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
use std::task::{Context, Poll, RawWakerVTable, Waker};

use super::TaskId;
use super::label::Label;
use super::raw::{Payload, Shared};
use super::state::{Header, Progress};
use super::waker;
use crate::io::driver::thread_pool::{JobFailed, PoolRefused};

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
    task: Shared,
    /// Whose waker is in the slot, if it is lent.
    lent: Option<Identity>,
    /// The handle owns a `T` from completion on.
    output: PhantomData<T>,
}

// SAFETY: by the handle one gets at the output (so `T: Send` is needed), at the waker slot in the handle's turns (wakers
// are `Send`), and at the header's shared words. The pointer in `lent` is compared, never followed.
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
    pub(super) unsafe fn new(task: Shared) -> JoinHandle<T> {
        JoinHandle { task, lent: None, output: PhantomData }
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
        self.task.label.name().map(Cow::as_ref)
    }

    /// Has `waker` woken when the task is complete; now, if it is.
    pub(crate) fn notify(&mut self, waker: &Waker) {
        if self.task.join.progress() == Progress::Complete || self.wait(waker) == Progress::Complete {
            waker.wake_by_ref();
        }
    }

    /// Puts `waker` into the slot for the owner to wake, and says whether the task is complete already.
    fn wait(&mut self, waker: &Waker) -> Progress {
        // If it is the one in the slot, it will be woken. Should the owner have completed and taken it since, it has been woken.
        if self.lent == Some(Identity::of(waker)) {
            return Progress::Running;
        }
        if self.lent.take().is_some() && self.task.join.retract_waker() == Progress::Complete {
            return Progress::Complete;
        }
        let waker = waker.clone();
        let identity = Identity::of(&waker);
        // SAFETY: WAKER is off and the handle is there, so the slot is ours.
        let old = self.task.join_waker.with_mut(|slot| unsafe { (*slot).replace(waker) });
        let progress = self.task.join.lend_waker();
        match progress {
            Progress::Running => self.lent = Some(identity),
            // SAFETY: the owner completed while WAKER was off, so it leaves the slot alone; it is still ours.
            Progress::Complete => drop(self.task.join_waker.with_mut(|slot| unsafe { (*slot).take() })),
        }
        // Foreign code, called when all is in order again.
        drop(old);
        progress
    }
}

/// What [`Waker::will_wake`] compares, kept beside the slot because the slot itself may be the owner's by now.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    data: *const (),
    vtable: *const RawWakerVTable,
}

impl Identity {
    fn of(waker: &Waker) -> Identity {
        Identity { data: waker.data(), vtable: waker.vtable() }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.task.join.progress() == Progress::Running && self.wait(cx.waker()) == Progress::Running {
            return Poll::Pending;
        }
        let mut output: Option<Result<T, JoinError>> = None;
        // SAFETY: the task is complete, this is its handle and `T` its output type (`new`), and `output` is of the type
        // that the vtable writes.
        unsafe { (self.task.vtable.take_output)(self.task.task(), (&raw mut output).cast()) };
        Poll::Ready(output.expect("a JoinHandle yields once; do not poll it again after that"))
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        match self.task.join.drop_handle() {
            // SAFETY: the task was complete while its handle was there, so the output is ours to drop, and `T` may be
            // dropped here: the handle came to this thread either never, or because `T: Send`.
            Progress::Complete => unsafe { (self.task.vtable.drop_output)(self.task.task()) },
            // SAFETY: WAKER is off since that instruction, and the owner will see neither it nor the handle.
            Progress::Running => drop(self.task.join_waker.with_mut(|slot| unsafe { (*slot).take() })),
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_task(f, "JoinHandle", &self.task)
    }
}

/// Ends a task from wherever it is kept. Dropping it does nothing.
#[derive(Clone)]
pub struct AbortHandle {
    task: Shared,
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
        self.task.label.name().map(Cow::as_ref)
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
        .field("label", &task.label)
        .field("finished", &(task.join.progress() == Progress::Complete))
        .finish()
}

/// Why a task returned nothing: it panicked, or it was cancelled (aborted, or its worker ended before it), or, as blocking work, it
/// was refused at the bound.
pub struct JoinError {
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
}

impl JoinError {
    /// The error of a task that is cancelled.
    pub(super) fn cancelled(task: &Header) -> JoinError {
        JoinError { id: task.id, label: task.label.clone(), reason: Reason::Cancelled }
    }

    /// The error of a task that panicked.
    pub(super) fn panicked(task: &Header, payload: Payload) -> JoinError {
        let reason = Reason::Panicked(Mutex::new(payload));
        JoinError { id: task.id, label: task.label.clone(), reason }
    }

    /// The error of a panic that was caught inside the task that runs here. Gives the payload back if none does.
    pub(in crate::runtime) fn of_running(payload: Payload) -> Result<JoinError, Payload> {
        let mut payload = Some(payload);
        let error = waker::with_running(|task| {
            JoinError::panicked(task, payload.take().expect("one task runs here at most"))
        });
        error.ok_or_else(|| payload.expect("no task has taken it"))
    }

    /// The error of blocking work that was taken and has no result.
    pub(in crate::runtime) fn of_job(id: TaskId, label: Label, failed: JobFailed) -> JoinError {
        let reason = match failed {
            JobFailed::Panicked(payload) => Reason::Panicked(Mutex::new(payload)),
            JobFailed::Dropped => Reason::Cancelled,
        };
        JoinError { id, label, reason }
    }

    /// The error of blocking work that was not taken.
    pub(in crate::runtime) fn refused(id: TaskId, label: Label, refused: PoolRefused) -> JoinError {
        JoinError { id, label, reason: Reason::Refused(refused) }
    }

    /// Whether this was blocking work that [`spawn_blocking`](crate::task::spawn_blocking) could not place: too much of it waits
    /// already, or the runtime has ended. The [source](std::error::Error::source) is a
    /// [`PoolRefused`] that says which.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.reason, Reason::Refused(_))
    }

    /// Whether the task was aborted, or its worker ended before it.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self.reason, Reason::Cancelled)
    }

    /// Whether the task panicked: in a poll, or in the destructor of its future.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        matches!(self.reason, Reason::Panicked(_))
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
        match self.reason {
            Reason::Panicked(payload) => Ok(payload.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Reason::Cancelled | Reason::Refused(_) => Err(self),
        }
    }

    /// The number of the task.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// What the task was called.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.label.name().map(Cow::as_ref)
    }

    /// Where the task was spawned.
    #[must_use]
    pub fn location(&self) -> &'static Location<'static> {
        self.label.location()
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
        let (id, label) = (self.id, &self.label);
        match &self.reason {
            Reason::Cancelled => write!(f, "task {id}, {label}, was cancelled"),
            Reason::Refused(refused) => write!(f, "task {id}, {label}, was refused: {refused}"),
            Reason::Panicked(payload) => JoinError::with_message(payload, |message| match message {
                Some(message) => write!(f, "task {id}, {label}, panicked: {message}"),
                None => write!(f, "task {id}, {label}, panicked"),
            }),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Cancelled => f.debug_tuple("JoinError::Cancelled").field(&self.id).finish(),
            Reason::Refused(refused) => {
                f.debug_tuple("JoinError::Refused").field(&self.id).field(refused).finish()
            }
            Reason::Panicked(payload) => JoinError::with_message(payload, |message| {
                f.debug_tuple("JoinError::Panicked").field(&self.id).field(&message.unwrap_or("..")).finish()
            }),
        }
    }
}

impl std::error::Error for JoinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::Refused(refused) => Some(refused),
            Reason::Cancelled | Reason::Panicked(_) => None,
        }
    }
}

impl From<JoinError> for std::io::Error {
    fn from(error: JoinError) -> std::io::Error {
        std::io::Error::other(error)
    }
}
