//! An operation as a future ([`Op`]) and as a stream ([`Multishot`]).
//!
//! An operation is data (`op::ReadAt`, ...) until its future is first polled. Then it moves into a slot of the driver,
//! and the future keeps the token alone. When the terminal completion is in, the next poll takes the operation out again
//! and [`OpLifecycle::into_output`] turns it into what the caller gets, its buffer included.
//!
//! A future that is dropped before leaves the operation to the driver: the slot is abandoned, cancellation is requested,
//! and the answer, whenever it comes, goes to [`OpLifecycle::abandon`]. A future that is forgotten (`mem::forget`) leaves
//! a slot that is answered but never asked for; it is freed when the driver ends. So that it can end, futures hold a weak
//! reference to it: whoever else may outlive a worker, forgotten futures do, for ever.

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::waiter::Waiter;
use super::{Completion, Descriptor, DriverHandle, Operation, Token, WeakDriver, closed_error};
use crate::io::stash::is_stopped;

/// What every operation says of itself, whatever the platform.
///
/// `pre_alloc` makes what must exist before submission; `into_output` makes of the operation and the kernel's answer
/// what the caller gets. Sealed: operations are declared in `io::op`.
pub trait OpLifecycle: super::sealed::Sealed + Sized + 'static {
    /// What the future yields.
    type Output;

    /// The operation's name in dumps and errors.
    const KIND: &'static str;

    /// What the operation is done to, for dumps.
    fn descriptor(&self) -> Option<&Descriptor> {
        None
    }

    /// Makes what must exist before the kernel may see the operation, as the socket that `AcceptEx` fills.
    ///
    /// # Errors
    ///
    /// What the operating system said; the operation then ends with this error and is not submitted.
    fn pre_alloc(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Answers of a multishot operation that may wait untaken. When so many have waited for a turn, the driver asks the
    /// kernel to stop; what comes until it has stopped waits, too.
    fn items_max(&self) -> usize {
        usize::MAX
    }

    /// Lets go of what the kernel has no more use for after the first of two answers, when nobody waits for the second.
    /// Called while the driver is borrowed: no user code.
    fn let_go(&mut self) {}

    /// Makes the caller's result.
    fn into_output(self, completion: Completion) -> Self::Output;

    /// Deals with an answer that nobody waits for. By default it is decoded like any other, and dropped: a descriptor
    /// is closed, a buffer goes back. An operation whose answer must not be lost keeps it for the next caller.
    fn abandon(self, completion: Completion) {
        drop(self.into_output(completion));
    }
}

/// An operation that answers more than once.
pub trait MultishotLifecycle: OpLifecycle {
    /// What the stream yields.
    type Item;

    /// Makes an item of one answer. The terminal answer is an item too.
    fn into_item(completion: Completion) -> Self::Item;
}

/// An operation that was submitted: its name, and the way to it. Futures that make their operation when they are polled hold this
/// instead of an [`Op`], which has room for one that is not submitted yet.
///
/// Dropping it asks the kernel to cancel the operation, which is left to the driver.
#[derive(Debug)]
pub(crate) struct InFlight<T: Operation> {
    /// `None` once the answer was taken.
    token: Option<Token>,
    driver: WeakDriver,
    operation: PhantomData<fn() -> T>,
}

/// Why a future cannot go on: its operation, buffer included, went with the driver.
const ENDED: &str = "an operation is not polled any more when its runtime has ended";

impl<T: Operation> InFlight<T> {
    /// Submits `operation`, or gives what becomes of it because it cannot be.
    #[inline]
    pub(crate) fn submit(
        operation: T,
        driver: &DriverHandle,
        cx: &Context<'_>,
    ) -> Result<InFlight<T>, T::Output> {
        let submitted = driver.submit(operation, false, Some(Waiter::of(cx)));
        let token = submitted.map_err(|(operation, error)| refuse(operation, error))?;
        Ok(InFlight { token: Some(token), driver: driver.downgrade(), operation: PhantomData })
    }

    /// The answer, once.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<T::Output> {
        self.poll_with(cx, T::into_output)
    }

    /// The same, with the result made by `finish`.
    #[inline]
    fn poll_with<R>(&mut self, cx: &Context<'_>, finish: impl FnOnce(T, Completion) -> R) -> Poll<R> {
        let token = self.token.expect(POLLED_AFTER_READY);
        let driver = self.driver.upgrade().expect(ENDED);
        driver.poll_op(token, cx, |operation, completion| {
            self.token = None;
            finish(operation, completion)
        })
    }

    /// Asks the kernel to cancel the operation, and keeps waiting for its answer.
    fn request_cancel(&self) {
        if let Some((token, driver)) = self.token.zip(self.driver.upgrade()) {
            driver.request_cancel(token);
        }
    }
}

impl<T: Operation> Drop for InFlight<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(token) = self.token
            && let Some(driver) = self.driver.upgrade()
        {
            driver.abandon(token);
        }
    }
}

/// What becomes of an operation that is not submitted.
#[cold]
fn refuse<T: Operation>(operation: T, error: io::Error) -> T::Output {
    operation.into_output(Completion::failed(error))
}

/// What is said to a caller who polls a future again after its answer.
const POLLED_AFTER_READY: &str = "`Op` polled after it was ready";

/// An operation in flight, as a future. It is submitted when first polled.
///
/// Dropping it asks the kernel to cancel the operation and leaves the buffer with the driver until the kernel has
/// answered; the buffer then returns to where it came from. To keep the buffer, await the future, with a deadline if
/// need be.
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Op<T: Operation> {
    state: State<T>,
    /// Set when its deadline has passed: a cancellation is then the deadline's doing, and is reported as such.
    timed_out: bool,
}

#[derive(Debug)]
enum State<T: Operation> {
    /// Will be submitted at the first poll.
    Unsubmitted(T, WeakDriver),
    /// Will not be submitted: it ends with this error at the first poll.
    Refused(T, io::Error),
    Submitted(InFlight<T>),
    Finished,
}

// The operation is moved into its slot before the kernel sees it; nothing in the future itself is pinned.
impl<T: Operation> Unpin for Op<T> {}

impl<T: Operation> Op<T> {
    /// The future of `operation` on `driver`.
    #[inline]
    pub(crate) fn new(operation: T, driver: &DriverHandle) -> Op<T> {
        Op { state: State::Unsubmitted(operation, driver.downgrade()), timed_out: false }
    }

    /// The future of `operation` on the driver of the worker that runs on this thread.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[inline]
    #[track_caller]
    pub(crate) fn here(operation: T) -> Op<T> {
        Op { state: State::Unsubmitted(operation, WeakDriver::current()), timed_out: false }
    }

    /// The future of an operation that Veloq can see to be wrong: it gives the error, and the buffer, without submitting.
    pub(crate) fn refused(operation: T, error: io::Error) -> Op<T> {
        Op { state: State::Refused(operation, error), timed_out: false }
    }

    /// Asks the kernel to cancel the operation because its time is up, and keeps waiting for its answer. That may still be
    /// a success; a cancellation is reported as `TimedOut`.
    pub(crate) fn time_out(&mut self) {
        self.timed_out = true;
        if let State::Submitted(submitted) = &self.state {
            submitted.request_cancel();
        }
    }
}

impl<T: Operation> Op<T> {
    /// What the driver calls the operation, from its first poll until it is ready.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        match &self.state {
            State::Submitted(submitted) => submitted.token,
            State::Unsubmitted(..) | State::Refused(..) | State::Finished => None,
        }
    }
}

impl<T: Operation> Future for Op<T> {
    type Output = T::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = &mut *self;
        // The usual case first, and without moving the state: it has room for the whole operation.
        if let State::Submitted(submitted) = &mut this.state {
            let timed_out = this.timed_out;
            return submitted.poll_with(cx, |operation, mut completion| {
                if timed_out && completion.result.as_ref().is_err_and(is_stopped) {
                    completion.result = Err(io::ErrorKind::TimedOut.into());
                }
                operation.into_output(completion)
            });
        }
        match std::mem::replace(&mut this.state, State::Finished) {
            State::Unsubmitted(operation, driver) => {
                let Some(driver) = driver.upgrade() else {
                    return Poll::Ready(refuse(operation, closed_error()));
                };
                match InFlight::submit(operation, &driver, cx) {
                    Ok(submitted) => {
                        this.state = State::Submitted(submitted);
                        Poll::Pending
                    }
                    Err(output) => Poll::Ready(output),
                }
            }
            State::Refused(operation, error) => Poll::Ready(refuse(operation, error)),
            State::Submitted(_) => unreachable!("looked at above"),
            State::Finished => panic!("{POLLED_AFTER_READY}"),
        }
    }
}

/// An operation that answers more than once, as a stream. It is submitted when first polled, and answers wait in its
/// slot, in order, until they are taken.
#[must_use = "an operation does nothing until it is polled"]
#[derive(Debug)]
pub struct Multishot<T: Operation + MultishotLifecycle> {
    state: Stream<T>,
    driver: WeakDriver,
    cancelling: bool,
}

#[derive(Debug)]
enum Stream<T> {
    /// Will be submitted at the first poll.
    Unsubmitted(T),
    Submitted(Token),
    /// The terminal answer was taken.
    Finished,
}

impl<T: Operation + MultishotLifecycle> Unpin for Multishot<T> {}

impl<T: Operation + MultishotLifecycle> Multishot<T> {
    /// The stream of `operation` on `driver`.
    pub(crate) fn new(operation: T, driver: &DriverHandle) -> Multishot<T> {
        Multishot { state: Stream::Unsubmitted(operation), driver: driver.downgrade(), cancelling: false }
    }

    /// The next answer, or `None` after the terminal one was taken.
    #[inline]
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        if let Stream::Submitted(token) = self.state {
            let driver = self.driver.upgrade().expect(ENDED);
            if let Some(item) = self.take(&driver, token) {
                return Poll::Ready(Some(item));
            }
            driver.set_waiter(token, cx);
            return Poll::Pending;
        }
        self.poll_first(cx)
    }

    /// The same of one that is not submitted yet, or finished.
    #[cold]
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        let Stream::Unsubmitted(operation) = std::mem::replace(&mut self.state, Stream::Finished) else {
            return Poll::Ready(None);
        };
        let submitted = match self.driver.upgrade() {
            Some(driver) => driver.submit(operation, true, Some(Waiter::of(cx))),
            None => Err((operation, closed_error())),
        };
        match submitted {
            Ok(token) => {
                self.state = Stream::Submitted(token);
                Poll::Pending
            }
            Err((_, error)) => Poll::Ready(Some(T::into_item(Completion::failed(error)))),
        }
    }

    /// The next answer if one is there (`Some(None)` when all were taken). Does not submit, and does not wait.
    pub(crate) fn try_next(&mut self) -> Option<Option<T::Item>> {
        match self.state {
            Stream::Unsubmitted(_) => None,
            Stream::Finished => Some(None),
            Stream::Submitted(token) => {
                let driver = self.driver.upgrade().expect(ENDED);
                self.take(&driver, token).map(Some)
            }
        }
    }

    #[inline]
    fn take(&mut self, driver: &DriverHandle, token: Token) -> Option<T::Item> {
        let (operation, completion) = driver.take_next::<T>(token)?;
        if operation.is_some() {
            self.state = Stream::Finished;
        }
        Some(T::into_item(completion))
    }

    /// What the driver is to be asked to cancel, once. Answers that come before the terminal one are kept.
    pub(crate) fn begin_cancel(&mut self) -> Option<Token> {
        let token = self.token()?;
        (!std::mem::replace(&mut self.cancelling, true)).then_some(token)
    }

    /// What the driver knows it by, from the first poll until the terminal answer was taken.
    pub(crate) fn token(&self) -> Option<Token> {
        match self.state {
            Stream::Submitted(token) => Some(token),
            Stream::Unsubmitted(_) | Stream::Finished => None,
        }
    }

    /// Answers that wait to be taken, the terminal one not counted.
    pub(crate) fn waiting(&self) -> usize {
        match self.state {
            Stream::Submitted(token) => self.driver.upgrade().map_or(0, |driver| driver.waiting_items(token)),
            Stream::Unsubmitted(_) | Stream::Finished => 0,
        }
    }

    /// Whether the terminal answer was taken.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.state, Stream::Finished)
    }
}

impl<T: Operation + MultishotLifecycle> Drop for Multishot<T> {
    fn drop(&mut self) {
        if let Stream::Submitted(token) = self.state
            && let Some(driver) = self.driver.upgrade()
        {
            driver.abandon(token);
        }
    }
}
