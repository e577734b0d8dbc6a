//! How a message is received or sent.

/// Answers at once, if need be that there is nothing.
pub(crate) const DONT_WAIT: i32 = libc::MSG_DONTWAIT;
/// Leaves in the socket what it shows.
pub(crate) const PEEK: i32 = libc::MSG_PEEK;
/// Goes on until the whole buffer is sent.
pub(crate) const WAIT_ALL: i32 = libc::MSG_WAITALL;
