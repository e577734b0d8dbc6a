//! Open things of the kernel's: a socket or a file handle, and the completion port that it answers to.
//!
//! A handle can be attached to one completion port, once, for as long as it is open. That is remembered here, beside the
//! handle: not before the first operation on it is it attached ([`AttachedTo`]), so until then it can go to any worker.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::windows::io::{
    AsHandle, AsRawHandle, AsRawSocket, AsSocket, BorrowedHandle, BorrowedSocket, IntoRawHandle,
    IntoRawSocket, OwnedHandle, OwnedSocket, RawSocket,
};

/// An open socket or file, owned: dropping it closes it.
pub struct OwnedDescriptor {
    kind: Kind,
    attached: Cell<AttachedTo>,
}

#[derive(Debug)]
enum Kind {
    Socket(OwnedSocket),
    Handle(OwnedHandle),
}

/// Where the packets of a handle's operations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachedTo {
    /// Nowhere yet, as far as we know.
    Nothing,
    /// To the port of this number; numbers are never used again.
    Port {
        /// The port.
        number: u64,
        /// Whether an operation that succeeds within the call sends no packet.
        skips: bool,
    },
    /// Not to be had: it is not made for overlapped operations, or it is attached to a port that we know nothing of.
    Refused,
}

/// An open socket or file, lent.
#[derive(Clone, Copy, Debug)]
pub enum BorrowedDescriptor<'a> {
    /// A socket.
    Socket(BorrowedSocket<'a>),
    /// A file, or anything else that is no socket.
    Handle(BorrowedHandle<'a>),
}

/// The number of an open socket or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawDescriptor {
    /// A socket.
    Socket(RawSocket),
    /// A file, or anything else that is no socket.
    Handle(usize),
}

impl OwnedDescriptor {
    fn new(kind: Kind) -> OwnedDescriptor {
        OwnedDescriptor { kind, attached: Cell::new(AttachedTo::Nothing) }
    }

    /// The port that the handle is attached to.
    pub(crate) fn attached(&self) -> AttachedTo {
        self.attached.get()
    }

    /// Notes what came of attaching it.
    pub(crate) fn set_attached(&self, to: AttachedTo) {
        self.attached.set(to);
    }

    /// The socket.
    ///
    /// # Panics
    ///
    /// If it is none.
    fn into_socket(self) -> OwnedSocket {
        match self.kind {
            Kind::Socket(socket) => socket,
            Kind::Handle(_) => panic!("a file handle is no socket"),
        }
    }

    /// The file handle.
    ///
    /// # Panics
    ///
    /// If it is a socket.
    fn into_handle(self) -> OwnedHandle {
        match self.kind {
            Kind::Handle(handle) => handle,
            Kind::Socket(_) => panic!("a socket is no file handle"),
        }
    }
}

impl fmt::Debug for OwnedDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.kind, f)
    }
}

impl fmt::Display for RawDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RawDescriptor::Socket(socket) => write!(f, "socket {socket:#x}"),
            RawDescriptor::Handle(handle) => write!(f, "{handle:#x}"),
        }
    }
}

/// The descriptor, lent.
pub(crate) fn lend(descriptor: &OwnedDescriptor) -> BorrowedDescriptor<'_> {
    match &descriptor.kind {
        Kind::Socket(socket) => BorrowedDescriptor::Socket(socket.as_socket()),
        Kind::Handle(handle) => BorrowedDescriptor::Handle(handle.as_handle()),
    }
}

/// The number, for dumps and calls.
pub(crate) fn raw(descriptor: &OwnedDescriptor) -> RawDescriptor {
    match &descriptor.kind {
        Kind::Socket(socket) => RawDescriptor::Socket(socket.as_raw_socket()),
        Kind::Handle(handle) => RawDescriptor::Handle(handle.as_raw_handle().addr()),
    }
}

/// Another handle for the same open thing. It is attached to the same port, if the first is, and so of no use to another worker: it is
/// for calls that Veloq does not make.
///
/// # Errors
///
/// What the system said.
pub(crate) fn duplicate(descriptor: BorrowedDescriptor<'_>) -> io::Result<OwnedDescriptor> {
    match descriptor {
        BorrowedDescriptor::Socket(socket) => socket.try_clone_to_owned().map(OwnedDescriptor::from),
        BorrowedDescriptor::Handle(handle) => handle.try_clone_to_owned().map(OwnedDescriptor::from),
    }
}

/// Lets the owner go without closing: the kernel has closed it.
pub(crate) fn forget(descriptor: OwnedDescriptor) {
    match descriptor.kind {
        Kind::Socket(socket) => _ = socket.into_raw_socket(),
        Kind::Handle(handle) => _ = handle.into_raw_handle(),
    }
}

impl AsSocket for OwnedDescriptor {
    /// # Panics
    ///
    /// If it is a file handle: nobody asks one for a socket's options.
    fn as_socket(&self) -> BorrowedSocket<'_> {
        match &self.kind {
            Kind::Socket(socket) => socket.as_socket(),
            Kind::Handle(_) => panic!("a file handle is no socket"),
        }
    }
}

/// Conversions from and to std's owners. Those out of it panic if it is the other kind of thing.
macro_rules! convert {
    ($variant:ident, $owner:ty, $out:ident: $($type:ty),+) => {
        $(impl From<$type> for OwnedDescriptor {
            fn from(owned: $type) -> OwnedDescriptor {
                OwnedDescriptor::new(Kind::$variant(<$owner>::from(owned)))
            }
        }

        impl From<OwnedDescriptor> for $type {
            fn from(descriptor: OwnedDescriptor) -> $type {
                <$type>::from(descriptor.$out())
            }
        })+
    };
}

convert!(
    Socket, OwnedSocket, into_socket:
    OwnedSocket, std::net::TcpListener, std::net::TcpStream, std::net::UdpSocket, socket2::Socket
);
convert!(Handle, OwnedHandle, into_handle: OwnedHandle, std::fs::File);
