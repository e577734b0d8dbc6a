//! What must exist before a connection can be accepted: `AcceptEx` fills a socket of ours, and a block of addresses.
#![expect(unsafe_code, reason = "reads the block of addresses, of which only Winsock knows the form")]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::windows::io::AsRawSocket;
use std::ptr;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockRef, Socket, Type};
use windows_sys::Win32::Networking::WinSock::{SOCKADDR, SOCKADDR_IN6, SOCKET};

use super::OwnedDescriptor;

/// `GetAcceptExSockaddrs`, which each provider has its own of.
pub(crate) type ReadAddresses = unsafe extern "system" fn(
    *const core::ffi::c_void,
    u32,
    u32,
    u32,
    *mut *mut SOCKADDR,
    *mut i32,
    *mut *mut SOCKADDR,
    *mut i32,
);

/// Bytes of one address: the largest of the internet's, and 16 more for Winsock itself.
const ADDRESS_BYTES: usize = size_of::<SOCKADDR_IN6>() + 16;

/// A socket that will be the next connection, and where the two addresses will stand.
pub(crate) struct AcceptRoom {
    domain: Domain,
    socket: Option<Socket>,
    /// Made with the socket.
    addresses: Option<Box<Addresses>>,
    read: Option<ReadAddresses>,
}

/// Winsock writes numbers of up to eight bytes here.
#[repr(C, align(8))]
struct Addresses([u8; 2 * ADDRESS_BYTES]);

impl Default for AcceptRoom {
    fn default() -> AcceptRoom {
        AcceptRoom { domain: Domain::IPV4, socket: None, addresses: None, read: None }
    }
}

impl AcceptRoom {
    /// Bytes of each address, as `AcceptEx` wants to know.
    #[expect(clippy::cast_possible_truncation, reason = "some forty bytes")]
    pub(crate) const ADDRESS_BYTES: u32 = ADDRESS_BYTES as u32;

    /// Makes the room for a connection of `listener`'s.
    ///
    /// # Errors
    ///
    /// What the system said when asked for a socket.
    pub(crate) fn for_one_of(listener: &OwnedDescriptor) -> io::Result<AcceptRoom> {
        let domain = SockRef::from(listener).local_addr()?.domain();
        let addresses = Some(Box::new(Addresses([0; 2 * ADDRESS_BYTES])));
        let mut room = AcceptRoom { domain, addresses, ..AcceptRoom::default() };
        room.refill()?;
        Ok(room)
    }

    /// Makes a socket in place of the one that was taken.
    ///
    /// # Errors
    ///
    /// What the system said when asked for it.
    pub(crate) fn refill(&mut self) -> io::Result<()> {
        self.socket = Some(Socket::new(self.domain, Type::STREAM, Some(Protocol::TCP))?);
        Ok(())
    }

    /// The socket that is to be filled.
    pub(crate) fn socket(&self) -> SOCKET {
        let socket = self.socket.as_ref().expect("the room was filled before it was shown");
        usize::try_from(socket.as_raw_socket()).expect("64 bits of a socket")
    }

    /// Takes the socket that was filled: a connection, attached to no port.
    pub(crate) fn take(&mut self) -> OwnedDescriptor {
        self.socket.take().expect("a room is emptied once for each time it was filled").into()
    }

    /// Where the addresses go. They do not move when the room does.
    pub(crate) fn addresses(&mut self) -> *mut u8 {
        self.addresses.as_mut().expect("the room was made for a listener").0.as_mut_ptr()
    }

    /// Notes what reads the addresses.
    pub(crate) fn set_reader(&mut self, read: ReadAddresses) {
        self.read = Some(read);
    }

    /// Who has connected, once the answer is there.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        let read = self.read?;
        let (mut local, mut local_len) = (ptr::null_mut(), 0);
        let (mut remote, mut remote_len) = (ptr::null_mut::<SOCKADDR>(), 0);
        let (block, size) = (self.addresses.as_ref()?.0.as_ptr(), Self::ADDRESS_BYTES);
        // SAFETY: the block is one that `AcceptEx` has filled, with these sizes; what comes back points into it.
        unsafe {
            read(
                block.cast(),
                0,
                size,
                size,
                &raw mut local,
                &raw mut local_len,
                &raw mut remote,
                &raw mut remote_len,
            );
        }
        // SAFETY: so many bytes of an address are at `remote`, within the block, if there is one.
        if remote.is_null() { None } else { unsafe { internet_address(remote, remote_len) } }
    }
}

/// The internet address that Winsock has written, if it is one.
///
/// # Safety
///
/// `bytes` of an address can be read at `address`.
pub(crate) unsafe fn internet_address(address: *const SOCKADDR, bytes: i32) -> Option<SocketAddr> {
    let count = usize::try_from(bytes).ok().filter(|count| *count <= size_of::<SockAddrStorage>())?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: they can be read, as the caller says, and there is room for them; of what is zero, family 0 is no address.
    let copied = unsafe {
        ptr::copy_nonoverlapping(address.cast::<u8>(), (&raw mut storage).cast(), count);
        SockAddr::new(storage, bytes)
    };
    copied.as_socket()
}

impl fmt::Debug for AcceptRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptRoom").field("socket", &self.socket).finish_non_exhaustive()
    }
}
