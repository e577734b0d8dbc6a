//! The errors that portable code looks for, by their raw codes.

use windows_sys::Win32::Foundation::ERROR_OPERATION_ABORTED;
use windows_sys::Win32::Networking::WinSock::WSAENOBUFS;

/// The operation was cancelled. Sockets and files have the same code for it.
pub(crate) const CANCELLED: i32 = ERROR_OPERATION_ABORTED.cast_signed();
/// The receive ring has no buffer left: what only other systems say, since none is had here.
pub(crate) const NO_BUFFERS: i32 = WSAENOBUFS;
