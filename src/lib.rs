//! Veloq: a thread-per-core async runtime with completion I/O.

pub mod io;
pub mod runtime;
mod sync;
#[cfg(not(loom))]
mod os;
