//! Owned-buffer I/O: buffers, operations, and the driver that carries them to the kernel.

#[cfg(not(loom))]
pub mod buf;
#[cfg(not(loom))]
pub mod driver;
#[cfg(not(loom))]
pub mod op;
#[cfg(not(loom))]
pub(crate) mod socket;
#[cfg(not(loom))]
pub(crate) mod stash;

#[cfg(not(loom))]
pub use buf::{BufResult, FixedBuf, IoBuf, IoBufMut};
#[cfg(not(loom))]
pub use driver::{Multishot, Op};

// What loom's models reach of this layer: the modules that two threads meet in, and what the tasks wait with.
#[cfg(loom)]
pub(crate) mod buf {
    mod atomic_waker;
    mod meter;
    mod returns;
}
#[cfg(loom)]
pub(crate) mod driver {
    pub(crate) mod thread_pool;
    pub(crate) mod waiter;
}
