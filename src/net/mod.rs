//! TCP and UDP, in std's shapes, with owned buffers.
//!
//! The names are std's, and so is what they do; what differs follows from completion I/O. A read or write takes its
//! buffer by value and gives it back with the result ([`BufResult`](crate::io::buf::BufResult)), whatever the result is.
//! All methods take `&self`, so one task can read while another writes. The futures of
//! accepting, of reading and writing a stream, and of receiving and sending datagrams on a connected socket have names and
//! own what they need, so that they can be stored.
//!
//! ```
//! use veloq::net::{TcpListener, TcpStream};
//!
//! # #[veloq::main]
//! # async fn main() -> std::io::Result<()> {
//! let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
//! let client = TcpStream::connect(listener.local_addr()?).await?;
//! let (server, _peer) = listener.accept().await?;
//!
//! let (sent, _) = client.write_all(b"hello").await;
//! sent?;
//! let data = server.recv().await?;                     // a FixedBuf, taken when data has arrived
//! assert_eq!(&data[..], b"hello");
//! let (echoed, _) = server.write_all(data).await;      // back without a copy
//! echoed?;
//! let (read, buf) = client.read_exact(vec![0; 5]).await;
//! read?;
//! assert_eq!(buf, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! **Nothing is lost.** Any of these futures may be dropped at any time, as `select` and timeouts do. A dropped
//! [`accept`](TcpListener::accept) loses no connection, a dropped [`recv`](TcpStream::recv), [`read`](TcpStream::read) or
//! [`read_exact`](TcpStream::read_exact) no byte, a dropped [`recv_from`](UdpSocket::recv_from) no datagram: it waits with
//! the socket for the next call. The price is that a socket has one reader at a time; a second gets a [`ReaderBusy`].
//! A dropped *write* may have sent a part.
//!
//! **One worker.** A socket belongs to the worker that made it, and is not `Send`. To hand one over, turn it into std's
//! ([`TcpStream::into_std`]), send that, and make it Veloq's there ([`TcpStream::from_std`]); listeners and UDP sockets have the same
//! two calls.
//!
//! | file | holds |
//! |---|---|
//! | `tcp_listener` | listening; accepting with a bound |
//! | `tcp_stream` | connections, their options, hand-over |
//! | `split` | the two halves of a connection |
//! | `udp` | datagrams |
//! | `addr` | what counts as an address; resolving names |

mod addr;
mod split;
mod tcp_listener;
mod tcp_stream;
#[cfg(test)]
mod tests;
mod udp;
#[cfg(windows)]
mod windows;

use std::io;

pub use addr::ToSocketAddrs;
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use tcp_listener::{Accept, AcceptorBusy, Incoming, TcpListener, TcpListenerBuilder};
pub use tcp_stream::{IntoStdError, TcpKeepalive, TcpStream};
pub use udp::{RecvFrom, UdpSocket, UdpSocketBuilder};

pub use crate::io::socket::{
    Read, ReadExact, ReadVectored, Recv, Write, WriteAll, WriteAllVectored, WriteVectored,
};
pub use crate::io::stash::ReaderBusy;

/// std's half-close directions, as [`TcpStream::shutdown`] takes them.
pub use std::net::Shutdown;

use crate::io::driver::Descriptor;

/// The descriptor's options, for descriptors that have any: a direct one has none.
fn options(fd: &Descriptor) -> io::Result<socket2::SockRef<'_>> {
    match fd {
        Descriptor::Os(fd) => Ok(socket2::SockRef::from(fd)),
        Descriptor::Direct(_) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a connection with a direct descriptor has no options: no call outside its ring can name it",
        )),
    }
}

/// The internet address in what the system calls an address.
fn internet(address: &socket2::SockAddr) -> io::Result<std::net::SocketAddr> {
    address.as_socket().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the system named an address that is not IPv4 or IPv6")
    })
}
