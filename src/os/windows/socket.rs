//! Socket options of which every system has its own idea.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use socket2::{SockAddr, SockRef, Socket};

use super::BorrowedDescriptor;

/// Who is, or was, at the other end.
pub(crate) fn peer_name(socket: BorrowedDescriptor<'_>) -> io::Result<SockAddr> {
    match socket {
        BorrowedDescriptor::Socket(socket) => SockRef::from(&socket).peer_addr(),
        BorrowedDescriptor::Handle(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Receives what is there, without waiting. There is no such call for a socket of a port: only the driver can receive.
///
/// # Errors
///
/// `Unsupported`.
pub(crate) fn receive_now(_: BorrowedDescriptor<'_>, _: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Lets an address be bound again while connections of an earlier owner are still ending. It can be in any case: the option of this name
/// would let others take an address that is in use.
#[expect(clippy::unnecessary_wraps, reason = "other systems can refuse")]
pub(crate) fn reuse_address(_: &Socket, _: bool) -> io::Result<()> {
    Ok(())
}

/// How long sent data may go without an acknowledgement before the connection is given up. That is not asked of one connection here.
///
/// # Errors
///
/// `Unsupported`.
pub(crate) fn user_timeout(_: &SockRef<'_>) -> io::Result<Option<Duration>> {
    Err(no_user_timeout())
}

/// Sets it, which cannot be.
///
/// # Errors
///
/// `Unsupported`.
pub(crate) fn set_user_timeout(_: &SockRef<'_>, _: Option<Duration>) -> io::Result<()> {
    Err(no_user_timeout())
}

fn no_user_timeout() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "Windows has no TCP_USER_TIMEOUT: probe with `set_tcp_keepalive`, or put the write under a `timeout`",
    )
}

/// Lets several sockets be bound to one address. There is no such thing.
///
/// # Errors
///
/// `Unsupported`.
pub(crate) fn reuse_port(_: &Socket) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "Windows shares a port between no two sockets: listen on one worker, and hand the connections to the others",
    ))
}
