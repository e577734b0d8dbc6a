//! Room for an address that the kernel fills in, for the blocks of operations that hear from somebody.
#![expect(unsafe_code, reason = "what the kernel wrote becomes an address")]

use std::net::SocketAddr;

use socket2::{SockAddr, SockAddrStorage, socklen_t};

/// An address that the kernel fills in.
pub(crate) struct Address {
    pub(super) storage: SockAddrStorage,
    pub(super) len: socklen_t,
}

impl Default for Address {
    fn default() -> Address {
        let storage = SockAddrStorage::zeroed();
        Address { len: storage.size_of(), storage }
    }
}

impl Address {
    /// The internet address that the kernel wrote, if it is one. Asked once the operation's terminal completion is in.
    pub(super) fn read(&mut self) -> Option<SocketAddr> {
        let storage = std::mem::replace(&mut self.storage, SockAddrStorage::zeroed());
        // SAFETY: the kernel wrote `len` bytes of an address here, or none, and the zeroed storage has family 0; it has
        // let go of both by the terminal completion, which is in before an operation is decoded.
        let address = unsafe { SockAddr::new(storage, self.len) };
        address.as_socket()
    }
}
