//! Owned-buffer I/O: buffers, operations, and the driver that carries them to the kernel.

#[cfg(not(loom))]
pub mod buf;
pub mod driver;
#[cfg(not(loom))]
pub(crate) mod op;
#[cfg(not(loom))]
pub(crate) mod stash;
