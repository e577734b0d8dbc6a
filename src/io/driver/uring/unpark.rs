//! Wakes a parked driver from any thread.
//!
//! On Linux this is an `eventfd` that the driver watches, by a poll that answers each write and stays armed: a foreign thread can write
//! to it, and a driver that some other event loop has borrowed can be waited for through it. Nobody reads it, so its count only
//! grows. The descriptor is counted, not borrowed: whoever holds an [`Unparker`] can wake after the driver has ended, and the number
//! cannot have become somebody else's meanwhile.

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
    /// A new event that nobody waits for yet. Writing to it never blocks, whatever its count: a wake must not.
    pub(crate) fn new() -> io::Result<Unparker> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Unparker { event: Arc::new(event) })
    }

    /// Wakes the driver, or keeps it from sleeping the next time.
    ///
    /// The count has room for a wake each nanosecond of five centuries; a doorbell sends one for each time its worker sleeps.
    pub(crate) fn unpark(&self) {
        let written = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
        debug_assert!(written.is_ok(), "writing to an open eventfd that is not full cannot fail");
    }

    /// The event itself, for the backend that watches it.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
