//! The errors that portable code looks for, by their raw codes.

/// The operation was cancelled.
pub(crate) const CANCELLED: i32 = libc::ECANCELED;
/// The receive ring has no buffer left.
pub(crate) const NO_BUFFERS: i32 = libc::ENOBUFS;
