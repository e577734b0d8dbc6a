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
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::waiter::Waiter;
use super::{Completion, Descriptor, DriverHandle, Operation, Token, WeakDriver};
use crate::io::stash::is_cancelled;

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

/// An operation in flight, as a future. It is submitted when first polled.
///
/// Dropping it asks the kernel to cancel the operation and leaves the buffer with the driver until the kernel has
/// answered; the buffer then returns to where it came from. To keep the buffer, await the future, with a deadline if
/// need be.
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Op<T: Operation> {
    state: State<T>,
    driver: WeakDriver,
    /// Set when its deadline has passed: a cancellation is then the deadline's doing, and is reported as such.
    timed_out: bool,
}

#[derive(Debug)]
enum State<T> {
    /// Will be submitted at the first poll.
    Unsubmitted(T),
    /// Will not be submitted: it ends with this error at the first poll.
    Refused(T, io::Error),
    Submitted(Token),
    Finished,
}

// The operation is moved into its slot before the kernel sees it; nothing in the future itself is pinned.
impl<T: Operation> Unpin for Op<T> {}

impl<T: Operation> Op<T> {
    /// The future of `operation` on `driver`.
    pub(crate) fn new(operation: T, driver: &DriverHandle) -> Op<T> {
        Op { state: State::Unsubmitted(operation), driver: driver.downgrade(), timed_out: false }
    }

    /// The future of an operation that Veloq can see to be wrong: it gives the error, and the buffer, without submitting.
    pub(crate) fn refused(operation: T, error: io::Error, driver: &DriverHandle) -> Op<T> {
        Op { state: State::Refused(operation, error), driver: driver.downgrade(), timed_out: false }
    }

    /// Asks the kernel to cancel the operation because its time is up, and keeps waiting for its answer. That may still be
    /// a success; a cancellation is reported as `TimedOut`.
    pub(crate) fn time_out(&mut self) {
        self.timed_out = true;
        if let State::Submitted(token) = self.state
            && let Some(driver) = self.driver.upgrade()
        {
            driver.request_cancel(token);
        }
    }
}

impl<T: Operation> Op<T> {
    /// What the driver calls the operation, from its first poll until it is ready.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        match self.state {
            State::Submitted(token) => Some(token),
            State::Unsubmitted(_) | State::Refused(..) | State::Finished => None,
        }
    }
}

/// Why a future cannot go on: its operation, buffer included, went with the driver.
const ENDED: &str = "an operation is not polled any more when its runtime has ended";

impl<T: Operation> Future for Op<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = &mut *self;
        // The usual case first, and without moving the state: it has room for the whole operation.
        if let State::Submitted(token) = this.state {
            let driver = this.driver.upgrade().expect(ENDED);
            let (operation, mut completion) = ready!(driver.poll_op::<T>(token, cx));
            this.state = State::Finished;
            if this.timed_out && completion.result.as_ref().is_err_and(is_cancelled) {
                completion.result = Err(io::ErrorKind::TimedOut.into());
            }
            return Poll::Ready(operation.into_output(completion));
        }
        match std::mem::replace(&mut this.state, State::Finished) {
            State::Unsubmitted(operation) => match this.driver.submit(operation, false, Waiter::of(cx)) {
                Ok(token) => {
                    this.state = State::Submitted(token);
                    Poll::Pending
                }
                Err((operation, error)) => Poll::Ready(operation.into_output(Completion::failed(error))),
            },
            State::Refused(operation, error) => Poll::Ready(operation.into_output(Completion::failed(error))),
            State::Submitted(_) => unreachable!("looked at above"),
            State::Finished => panic!("`Op` polled after it was ready"),
        }
    }
}

impl<T: Operation> Drop for Op<T> {
    fn drop(&mut self) {
        if let State::Submitted(token) = self.state
            && let Some(driver) = self.driver.upgrade()
        {
            driver.abandon(token);
        }
    }
}

/// An operation that answers more than once, as a stream. It is submitted when first polled, and answers wait in its
/// slot, in order, until they are taken.
#[must_use = "an operation does nothing until it is polled"]
#[derive(Debug)]
pub struct Multishot<T: Operation + MultishotLifecycle> {
    state: State<T>,
    driver: WeakDriver,
    cancelling: bool,
}

impl<T: Operation + MultishotLifecycle> Unpin for Multishot<T> {}

impl<T: Operation + MultishotLifecycle> Multishot<T> {
    /// The stream of `operation` on `driver`.
    pub(crate) fn new(operation: T, driver: &DriverHandle) -> Multishot<T> {
        Multishot { state: State::Unsubmitted(operation), driver: driver.downgrade(), cancelling: false }
    }

    /// The next answer, or `None` after the terminal one was taken.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        if let Some(item) = self.try_next() {
            return Poll::Ready(item);
        }
        if let State::Unsubmitted(_) = self.state {
            let State::Unsubmitted(operation) = std::mem::replace(&mut self.state, State::Finished) else {
                unreachable!("just matched")
            };
            match self.driver.submit(operation, true, Waiter::of(cx)) {
                Ok(token) => self.state = State::Submitted(token),
                Err((operation, error)) => {
                    drop(operation);
                    return Poll::Ready(Some(T::into_item(Completion::failed(error))));
                }
            }
        } else if let State::Submitted(token) = self.state {
            self.driver.upgrade().expect(ENDED).set_waiter(token, cx);
        }
        Poll::Pending
    }

    /// The next answer if one is there (`Some(None)` when all were taken). Does not submit, and does not wait.
    pub(crate) fn try_next(&mut self) -> Option<Option<T::Item>> {
        match self.state {
            State::Unsubmitted(_) | State::Refused(..) => None,
            State::Finished => Some(None),
            State::Submitted(token) => {
                let (operation, completion) = self.driver.upgrade().expect(ENDED).take_next::<T>(token)?;
                if operation.is_some() {
                    self.state = State::Finished;
                }
                Some(Some(T::into_item(completion)))
            }
        }
    }

    /// Asks the kernel to stop. Answers that come before the terminal one are kept.
    pub(crate) fn request_cancel(&mut self) {
        if let State::Submitted(token) = self.state
            && !self.cancelling
            && let Some(driver) = self.driver.upgrade()
        {
            self.cancelling = true;
            driver.request_cancel(token);
        }
    }

    /// Answers that wait to be taken, the terminal one not counted.
    pub(crate) fn waiting(&self) -> usize {
        match self.state {
            State::Submitted(token) => self.driver.upgrade().map_or(0, |driver| driver.waiting_items(token)),
            State::Unsubmitted(_) | State::Refused(..) | State::Finished => 0,
        }
    }

    /// Whether the terminal answer was taken.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }
}

impl<T: Operation + MultishotLifecycle> Drop for Multishot<T> {
    fn drop(&mut self) {
        if let State::Submitted(token) = self.state
            && let Some(driver) = self.driver.upgrade()
        {
            driver.abandon(token);
        }
    }
}
