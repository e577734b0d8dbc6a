//! Veloq: a thread-per-core async runtime with completion I/O.

pub mod io;
pub mod runtime;
mod sync;
pub mod task;
#[cfg(not(loom))]
mod os;
