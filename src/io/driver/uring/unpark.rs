//! Wakes a parked driver from any thread.
//!
//! On Linux this is an `eventfd` that the driver watches, once for all wakes: a foreign thread can write to it, and a driver that
//! some other event loop has borrowed can be waited for through it. The descriptor is counted, not borrowed: whoever holds
//! an [`Unparker`] can wake after the driver has ended, and the number cannot have become somebody else's meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes one driver. Cheap to clone, usable from any thread, also after the driver's end.
#[derive(Clone, Debug)]
pub(crate) struct Unparker {
    event: Arc<OwnedFd>,
}

impl Unparker {
    /// A new event that nobody waits for yet. It blocks: the ring's read waits until somebody writes.
    pub(crate) fn new() -> io::Result<Unparker> {
        Ok(Unparker { event: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?) })
    }

    /// Wakes the driver, or keeps it from sleeping the next time.
    ///
    /// Writing would block only at 2^64 - 2 unread wakes; the doorbell sends one for each time the worker sleeps.
    pub(crate) fn unpark(&self) {
        let written = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "writing to an open eventfd cannot fail");
    }

    /// The event itself, for the backend that reads it.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
