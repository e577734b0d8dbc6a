//! What a stream socket has received and nobody has taken yet.
//!
//! A receive whose future was dropped may still complete: its bytes left the kernel and must not be lost. The operation
//! holds its socket's stash and puts them here when its answer comes; the next receive on the socket takes them first.
//! So that the order of the stream holds, only one plain receive may be with the driver at a time: the stash knows
//! whether one is ([`Stash::receive_begins`], [`Stash::receive_ended`]), and who waits for its end.
//!
//! An error that a dropped receive got is kept too, and reported once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};

use super::buf::FixedBuf;
use super::driver::waiter::Waiter;

/// Received bytes in order, and whether a plain receive is with the driver.
#[derive(Debug, Default)]
pub(crate) struct Stash {
    chunks: RefCell<VecDeque<io::Result<FixedBuf>>>,
    receiving: Cell<bool>,
    waiter: RefCell<Option<Waiter>>,
}

impl Stash {
    /// Notes that a plain receive goes to the driver.
    pub(crate) fn receive_begins(&self) {
        assert!(
            !self.receiving.replace(true),
            "one plain receive at a time, so that the stream stays in order"
        );
    }

    /// Notes that the plain receive is over, and tells who waited for that.
    pub(crate) fn receive_ended(&self) {
        self.receiving.set(false);
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Waits until no plain receive is with the driver.
    pub(crate) fn poll_quiet(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.receiving.get() {
            return Poll::Ready(());
        }
        let before = self.waiter.borrow_mut().replace(Waiter::of(cx));
        drop(before);
        Poll::Pending
    }

    /// Keeps what an abandoned receive got: `copy` is called if it got bytes. A cancellation is not worth keeping.
    pub(crate) fn keep(&self, result: io::Result<usize>, copy: impl FnOnce(usize) -> FixedBuf) {
        match result {
            Ok(0) => {}
            Ok(bytes) => self.push(Ok(copy(bytes))),
            Err(error) if is_cancelled(&error) => {}
            Err(error) => self.push(Err(error)),
        }
    }

    /// Puts something at the end of what waits.
    pub(crate) fn push(&self, chunk: io::Result<FixedBuf>) {
        self.chunks.borrow_mut().push_back(chunk);
    }

    /// Puts something back in front of what waits: it was taken and not used.
    pub(crate) fn push_front(&self, chunk: io::Result<FixedBuf>) {
        self.chunks.borrow_mut().push_front(chunk);
    }

    /// Takes what came first.
    pub(crate) fn pop(&self) -> Option<io::Result<FixedBuf>> {
        self.chunks.borrow_mut().pop_front()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.borrow().is_empty()
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.borrow().iter().map(|chunk| chunk.as_ref().map_or(0, |buf| buf.len())).sum()
    }
}

/// Whether the kernel says that the operation was cancelled.
pub(crate) fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}
