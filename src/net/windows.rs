//! std's traits for the sockets of Windows, for calls that Veloq does not have. A socket stays its owner's.
//!
//! The other way, from a socket to its owner, is by std: `TcpStream::from_std(socket.into())`.

use std::os::windows::io::{AsRawSocket, AsSocket, BorrowedSocket, RawSocket};

use super::{TcpListener, TcpStream, UdpSocket};
use crate::io::driver::Descriptor;
use crate::os::BorrowedDescriptor;

macro_rules! lend {
    ($($owner:ty),+) => {
        $(impl AsSocket for $owner {
            fn as_socket(&self) -> BorrowedSocket<'_> {
                socket(self.fd())
            }
        }

        impl AsRawSocket for $owner {
            fn as_raw_socket(&self) -> RawSocket {
                self.as_socket().as_raw_socket()
            }
        })+
    };
}

lend!(TcpListener, TcpStream, UdpSocket);

fn socket(descriptor: &Descriptor) -> BorrowedSocket<'_> {
    match descriptor.as_os() {
        Ok(BorrowedDescriptor::Socket(socket)) => socket,
        _ => unreachable!("here it is a socket, and direct descriptors are of other systems"),
    }
}
