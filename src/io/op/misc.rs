//! Operations that belong to neither files nor sockets: nop, poll, close, cancel.

use std::io;

use super::{seal, start};
use crate::io::driver::{Completion, Descriptor, Op, OpLifecycle, SharedDescriptor, Token};

/// Does nothing, by way of the kernel.
#[derive(Debug, Default)]
pub struct Nop;

/// Waits until a receive or a read would find something, be it the end or an error.
#[derive(Debug)]
pub struct Poll {
    pub(crate) fd: SharedDescriptor,
}

/// Closes a descriptor, and yields what the kernel said to it.
#[derive(Debug)]
pub struct Close {
    /// Here until the kernel has the request, and again if that never ran: then the drop closes it.
    pub(crate) descriptor: Option<Descriptor>,
}

/// Asks for the cancellation of another operation. Yields whether it was found and stopped.
#[derive(Debug)]
pub struct Cancel {
    pub(crate) target: Token,
}

/// Goes to the kernel and back: what an operation costs at the least.
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
pub fn nop() -> Op<Nop> {
    start(Nop)
}

/// Cancels the operation that `target` names ([`Op::token`]), if it is in flight on this worker. That operation still ends
/// by itself: as cancelled, or with what it achieved.
///
/// # Errors
///
/// `NotFound` if it has ended, `EALREADY` if it is beyond cancelling.
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
pub fn cancel(target: Token) -> Op<Cancel> {
    start(Cancel { target })
}

seal!(Nop, Poll, Close, Cancel);

impl OpLifecycle for Nop {
    type Output = io::Result<()>;
    const KIND: &'static str = "nop";

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Poll {
    type Output = io::Result<()>;
    const KIND: &'static str = "poll";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Close {
    type Output = io::Result<()>;
    const KIND: &'static str = "close";

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Cancel {
    type Output = io::Result<()>;
    const KIND: &'static str = "cancel";

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}
