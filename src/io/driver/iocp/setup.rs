//! Makes a port, finds the functions that Winsock hands out by request, and says what this Windows gives.
#![expect(unsafe_code, reason = "asks for functions by their numbers, and attaches handles")]

use std::io;
use std::os::windows::io::AsRawSocket;
use std::ptr;

use socket2::{Domain, Protocol, Socket, Type};
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::{
    LPFN_ACCEPTEX, LPFN_CONNECTEX, LPFN_GETACCEPTEXSOCKADDRS, LPFN_WSARECVMSG,
    LPWSAOVERLAPPED_COMPLETION_ROUTINE, SIO_GET_EXTENSION_FUNCTION_POINTER, SO_PROTOCOL_INFOW, SOCKADDR,
    SOCKET, SOL_SOCKET, WSAID_ACCEPTEX, WSAID_CONNECTEX, WSAID_GETACCEPTEXSOCKADDRS, WSAID_WSARECVMSG,
    WSAIoctl, WSAMSG, WSAPROTOCOL_INFOW, XP1_IFS_HANDLES, getsockopt,
};
use windows_sys::Win32::Storage::FileSystem::SetFileCompletionNotificationModes;
use windows_sys::Win32::System::IO::{CreateIoCompletionPort, OVERLAPPED};
use windows_sys::Win32::System::WindowsProgramming::{
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE,
};
use windows_sys::core::{BOOL, GUID};

use super::unpark::{OPERATION, Port};
use super::{Capabilities, DriverConfig, Skips};
use crate::io::driver::Unavailable;
use crate::os::ReadAddresses;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A port, and what goes with it.
pub(super) struct Made {
    pub(super) port: Port,
    pub(super) number: u64,
    pub(super) extensions: Extensions,
    pub(super) skips: Skips,
    pub(super) capabilities: Capabilities,
}

/// `AcceptEx`.
type AcceptEx = unsafe extern "system" fn(
    SOCKET,
    SOCKET,
    *mut core::ffi::c_void,
    u32,
    u32,
    u32,
    *mut u32,
    *mut OVERLAPPED,
) -> BOOL;

/// `ConnectEx`.
type ConnectEx = unsafe extern "system" fn(
    SOCKET,
    *const SOCKADDR,
    i32,
    *const core::ffi::c_void,
    u32,
    *mut u32,
    *mut OVERLAPPED,
) -> BOOL;

/// `WSARecvMsg`.
type RecvMsg = unsafe extern "system" fn(
    SOCKET,
    *mut WSAMSG,
    *mut u32,
    *mut OVERLAPPED,
    LPWSAOVERLAPPED_COMPLETION_ROUTINE,
) -> i32;

/// What Winsock's own provider has beyond its exports.
#[derive(Clone, Copy)]
pub(super) struct Extensions {
    pub(super) accept: AcceptEx,
    pub(super) connect: ConnectEx,
    pub(super) addresses: ReadAddresses,
    pub(super) receive_message: RecvMsg,
}

/// The next port's number. A number is all that is taken from here: nothing is published by it.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Makes a port for the calling thread.
pub(super) fn make(config: &DriverConfig) -> io::Result<Made> {
    // A socket to ask: each provider has functions of its own, and all internet sockets of a process have the same.
    let asked = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let socket = number(&asked);
    let datagrams = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    let extensions = Extensions {
        // SAFETY: the type of each function is the one that its number stands for.
        accept: unsafe { extension::<LPFN_ACCEPTEX>(socket, WSAID_ACCEPTEX) }?.ok_or_else(lacking)?,
        // SAFETY: the same.
        connect: unsafe { extension::<LPFN_CONNECTEX>(socket, WSAID_CONNECTEX) }?.ok_or_else(lacking)?,
        // SAFETY: the same.
        addresses: unsafe { extension::<LPFN_GETACCEPTEXSOCKADDRS>(socket, WSAID_GETACCEPTEXSOCKADDRS) }?
            .ok_or_else(lacking)?,
        // SAFETY: the same.
        receive_message: unsafe { extension::<LPFN_WSARECVMSG>(number(&datagrams), WSAID_WSARECVMSG) }?
            .ok_or_else(lacking)?,
    };
    let mut capabilities = Capabilities::default();
    let skips = skips(config, socket, &mut capabilities);
    for (name, remedy) in NOT_HERE {
        capabilities.refuse(name, "Windows has no such thing", remedy);
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(Made { port: Port::new()?, number, extensions, skips, capabilities })
}

fn number(socket: &Socket) -> SOCKET {
    usize::try_from(socket.as_raw_socket()).expect("64 bits of a socket")
}

/// What io_uring has and ports have not, and what is done without it.
const NOT_HERE: [(&str, &str); 3] = [
    ("direct_descriptors", "use ordinary descriptors"),
    ("receive_ring", "`recv` waits until there is something, then receives into a buffer of the pool"),
    ("registered_buffers", "buffers travel as plain memory"),
];

/// Whether packets of successes may be spared, and for what.
fn skips(config: &DriverConfig, socket: SOCKET, capabilities: &mut Capabilities) -> Skips {
    const NAME: &str = "skip_completion_port_on_success";
    if config.without.contains(&NAME) {
        capabilities.refuse(NAME, "switched off", "take it out of `DriverConfig::without`");
        return Skips { streams: false, files: false };
    }
    let streams = is_systems_own(socket);
    if streams {
        capabilities.grant(NAME);
    } else {
        let why = "a layered provider without IFS handles is installed";
        capabilities.grant_part(NAME, why, "remove it; until then sockets' packets all go through the port");
    }
    Skips { streams, files: true }
}

/// Whether the socket's provider is the system's own, or behaves as it does.
fn is_systems_own(socket: SOCKET) -> bool {
    // SAFETY: the structure is numbers and text, for which zero is a value.
    let mut info: WSAPROTOCOL_INFOW = unsafe { std::mem::zeroed() };
    let mut len = i32::try_from(size_of::<WSAPROTOCOL_INFOW>()).expect("some hundred bytes");
    // SAFETY: the socket is open, and `len` bytes may be written to `info`.
    let said =
        unsafe { getsockopt(socket, SOL_SOCKET, SO_PROTOCOL_INFOW, (&raw mut info).cast(), &raw mut len) };
    said == 0 && info.dwServiceFlags1 & XP1_IFS_HANDLES != 0
}

/// Asks for one of the provider's functions.
///
/// # Safety
///
/// `F` is an optional pointer to a function of the type that `id` stands for.
unsafe fn extension<F: Default>(socket: SOCKET, id: GUID) -> io::Result<F> {
    let mut function = F::default();
    let mut written = 0;
    let id_bytes = u32::try_from(size_of::<GUID>()).expect("16 bytes");
    let bytes = u32::try_from(size_of::<F>()).expect("a pointer");
    // SAFETY: the call reads the number and writes one pointer, both of the lengths that are named, before it returns: without
    // an `OVERLAPPED` it does not go on afterwards.
    let said = unsafe {
        WSAIoctl(
            socket,
            SIO_GET_EXTENSION_FUNCTION_POINTER,
            (&raw const id).cast(),
            id_bytes,
            (&raw mut function).cast(),
            bytes,
            &raw mut written,
            ptr::null_mut(),
            None,
        )
    };
    if said == 0 { Ok(function) } else { Err(lacking()) }
}

fn lacking() -> io::Error {
    Unavailable {
        need: "sockets with AcceptEx, ConnectEx and WSARecvMsg",
        found: "a provider that has not all of them".to_owned(),
        remedy: "remove the layered provider that hides them (`netsh winsock show catalog` names it)",
    }
    .into_error(io::ErrorKind::Unsupported)
}

/// Attaches a handle to the port, for as long as it is open. Says whether it skips the packets of successes, as is asked for;
/// `None` if it cannot be attached: it is attached already, or was not opened for overlapped operations.
pub(super) fn attach(port: &Port, handle: HANDLE, skips: bool) -> Option<bool> {
    // SAFETY: both handles are open, and the key is a number of ours.
    let attached = unsafe { CreateIoCompletionPort(handle, port.handle(), OPERATION, 0) };
    if attached.is_null() {
        return None;
    }
    let flags = if skips {
        FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE
    } else {
        FILE_SKIP_SET_EVENT_ON_HANDLE
    };
    let flags = u8::try_from(flags).expect("two bits");
    // SAFETY: the handle is open. Where the modes are refused the packets all come, as is noted.
    let is_set = unsafe { SetFileCompletionNotificationModes(handle, flags) != 0 };
    Some(skips && is_set)
}
