//! How a message is received or sent.

/// Answers at once, if need be that there is nothing. There is no such flag: a receive that finds nothing waits.
pub(crate) const DONT_WAIT: i32 = 0;
/// Leaves in the socket what it shows.
pub(crate) const PEEK: i32 = windows_sys::Win32::Networking::WinSock::MSG_PEEK;
/// Goes on until the whole buffer is sent, as every send on a stream does here.
pub(crate) const WAIT_ALL: i32 = 0;
