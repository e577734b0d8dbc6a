//! What socket2 does not ask of a socket, a receive that does not wait, and options of which every system has its own idea.
#![expect(unsafe_code, reason = "one option has no safe call")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{SockAddr, SockRef, Socket};

/// Who is, or was, at the other end: after a reset too, where `getpeername(2)` no longer says.
///
/// `SO_PEERNAME` still does, but copies no more than it is asked for and refuses what is longer than the address; so the
/// length is that of the socket's own address, which is of the same family.
pub(crate) fn peer_name(socket: BorrowedFd<'_>) -> io::Result<SockAddr> {
    let options = SockRef::from(&socket);
    match options.peer_addr() {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
        answer => return answer,
    }
    let own_len = options.local_addr()?.len();
    // SAFETY: `try_init` lends storage that holds an address of any family, and its length. The kernel writes at most
    // `*len` bytes there before the call returns; on success they are an address of the socket's family.
    unsafe {
        SockAddr::try_init(|address, len| {
            *len = own_len;
            match libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERNAME,
                address.cast(),
                len,
            ) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }
    .map(|((), address)| address)
}

/// Receives what is there, without waiting. Returns how many bytes of `into` that are; 0 is the end.
///
/// # Errors
///
/// `WouldBlock` if nothing is there.
pub(crate) fn receive_now(socket: BorrowedFd<'_>, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    SockRef::from(&socket).recv_with_flags(into, libc::MSG_DONTWAIT)
}

/// Lets an address be bound again while connections of an earlier owner are still ending, or not.
pub(crate) fn reuse_address(socket: &Socket, reuse: bool) -> io::Result<()> {
    socket.set_reuse_address(reuse)
}

/// How long sent data may go without an acknowledgement before the connection is given up; `None` if the system decides.
pub(crate) fn user_timeout(socket: &SockRef<'_>) -> io::Result<Option<Duration>> {
    socket.tcp_user_timeout()
}

/// Sets it.
pub(crate) fn set_user_timeout(socket: &SockRef<'_>, limit: Option<Duration>) -> io::Result<()> {
    socket.set_tcp_user_timeout(limit)
}

/// Lets several sockets be bound to one address; the kernel shares out what arrives.
pub(crate) fn reuse_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}
