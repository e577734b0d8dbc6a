//! The completion port, and how any thread wakes the driver that waits at it.
//!
//! A wake is a packet of its own. Of the wakes that come before the driver has taken that packet one is sent: whoever wakes
//! a port that is woken already knows that the driver will not sleep before it has taken the packet, and that it looks at
//! what was published before after that. The port is counted, not borrowed: whoever holds an [`Unparker`], or has a job on a
//! thread of the pool, can post after the driver has ended, and the handle cannot have become somebody else's meanwhile.
#![expect(unsafe_code, reason = "makes the port, and posts to it")]

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::task::Wake;

use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::IO::{CreateIoCompletionPort, PostQueuedCompletionStatus};

use super::Overlapped;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The key of packets that belong to operations, whoever sends them.
pub(super) const OPERATION: usize = 1;
/// The key of the packet that wakes.
pub(super) const WAKE: usize = 2;

/// A completion port, owned: the last one to hold it closes it.
#[derive(Debug)]
pub(super) struct Port {
    handle: OwnedHandle,
    /// Whether a waking packet is at the port, or about to be.
    woken: AtomicBool,
}

impl Port {
    /// A port that one thread waits at.
    pub(super) fn new() -> io::Result<Port> {
        // SAFETY: no handle, no port: a new one is made, and the key means nothing.
        let port = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, 1) };
        if port.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was made just now, and nobody else knows it.
        let handle = unsafe { OwnedHandle::from_raw_handle(port) };
        Ok(Port { handle, woken: AtomicBool::new(false) })
    }

    /// The port as calls name it, while `self` lives.
    pub(super) fn handle(&self) -> HANDLE {
        self.handle.as_raw_handle()
    }

    /// Sends a packet. The kernel does not look at what `overlapped` points to.
    pub(super) fn post(&self, key: usize, overlapped: *mut Overlapped) -> io::Result<()> {
        // SAFETY: the port is open while `self` lives, and the pointer is only carried along.
        let posted = unsafe { PostQueuedCompletionStatus(self.handle(), 0, key, overlapped.cast()) };
        if posted == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Wakes one driver. Cheap to clone, usable from any thread, also after the driver's end.
#[derive(Clone, Debug)]
pub(crate) struct Unparker {
    port: Arc<Port>,
}

impl Unparker {
    pub(super) fn new(port: Arc<Port>) -> Unparker {
        Unparker { port }
    }

    /// Wakes the driver, or keeps it from sleeping the next time.
    pub(crate) fn unpark(&self) {
        // Release, for the `swap` in `answer`: what this thread published before is seen by the driver after it, whether
        // the packet is ours or somebody's who came earlier. Acquire, so that nothing of ours moves before the look.
        if self.port.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.port.post(WAKE, ptr::null_mut()) {
            // The kernel has no memory for a packet. The next one who wakes tries again.
            self.port.woken.store(false, Ordering::Release);
            debug_assert!(false, "posting to an open port failed: {error}");
        }
    }

    /// Notes that the driver has taken the packet, before it looks at what was published.
    pub(super) fn answer(&self) {
        // Acquire: pairs with the `swap` of every `unpark` that found or left the port woken until now.
        self.port.woken.swap(false, Ordering::AcqRel);
    }
}

/// Says that a thread of the pool is done with an operation: posts its packet.
pub(super) struct Poster {
    port: Arc<Port>,
    /// The operation, in its slot. Only carried to the port and back to the driver's thread.
    overlapped: usize,
}

impl Poster {
    pub(super) fn new(port: &Arc<Port>, overlapped: *mut Overlapped) -> Poster {
        Poster { port: Arc::clone(port), overlapped: overlapped.expose_provenance() }
    }
}

impl Wake for Poster {
    fn wake(self: std::sync::Arc<Self>) {
        let posted = self.port.post(OPERATION, ptr::with_exposed_provenance_mut(self.overlapped));
        // Without its packet the operation stays in flight, as one does that the kernel never answers: its slot keeps what
        // it owns, and the driver's end counts it.
        debug_assert!(posted.is_ok(), "posting to an open port failed: {posted:?}");
    }
}
