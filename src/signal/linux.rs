//! Each future has an event of its own that the process's signal handler writes to (a write is all that a handler may do), and waits for
//! it through its worker's driver.
#![expect(unsafe_code, reason = "registers signal handlers")]

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use signal_hook_registry::{SigId, register, unregister};

use crate::io::driver::Descriptor;
use crate::io::op::misc::Poll;
use crate::io::op::start;

pub(super) async fn interrupt() -> io::Result<()> {
    Listener::new(libc::SIGINT)?.wait().await
}

pub(super) async fn terminate() -> io::Result<()> {
    Listener::new(libc::SIGTERM)?.wait().await
}

/// One wait for one signal.
struct Listener {
    event: OwnedFd,
    action: SigId,
}

impl Listener {
    fn new(signal: i32) -> io::Result<Listener> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let handlers_end: Arc<OwnedFd> = Arc::new(event.try_clone()?);
        let write = move || {
            // Fails only when the event is at its maximum, and then it is ready in any case.
            let _written = rustix::io::write(&*handlers_end, &1u64.to_ne_bytes());
        };
        // SAFETY: the action runs in a signal handler: it makes one `write` system call to a descriptor that it owns, which
        // is async-signal-safe; it takes no lock and allocates nothing. (It may set `errno`, which the registry restores.)
        let action = unsafe { register(signal, write) }?;
        Ok(Listener { event, action })
    }

    async fn wait(self) -> io::Result<()> {
        let event = Rc::new(Descriptor::Os(self.event.try_clone()?));
        start(Poll { fd: event }).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        unregister(self.action);
    }
}
