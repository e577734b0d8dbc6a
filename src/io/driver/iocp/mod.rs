//! The Windows backend: one completion port per worker.
//!
//! A request is shown to the kernel when it is submitted, by the call that stands for it (`WSARecv`, `ReadFile`, `AcceptEx`,
//! ..), with the address of an `OVERLAPPED`. That is the first field of the operation's [`Block`], and so of its slot: the
//! packet that answers the call carries the address back, and the address is the operation. A turn takes up to
//! [`PACKETS_MAX`] packets with one `GetQueuedCompletionStatusEx`; without anything in flight it makes no system call. A
//! parked worker waits in the same call, as long as the next timer allows.
//!
//! **Who owns an `OVERLAPPED`, and what it stands in.** The driver, until the call is made; the kernel, from then until its
//! packet was taken or the call said that there will be none; the driver again. While the kernel has it, nothing here makes
//! a reference to it: what the driver notes beside it ([`Overlapped`]'s other fields) it reads and writes through the pointer.
//! A packet carries no generation. So a slot is given up only after its packet, and no packet is ever late: there is exactly
//! one for each call that is to have one.
//!
//! ```text
//!            ┌ fails at once ───────────────────────────────▶ answered, no packet
//! submit ─▶ call ─ succeeds at once, the handle skips ──────▶ answered, no packet
//!            └ pending, or a success or warning that does not skip ─▶ in the kernel ─▶ packet ─▶ answered
//! ```
//!
//! **Skipping the packet of a success** (`FILE_SKIP_COMPLETION_PORT_ON_SUCCESS`) saves the way through the port where data is
//! there already. It is sound for files, and for stream sockets whose providers are all the system's own
//! (`XP1_IFS_HANDLES`, asked once); a layered provider may send a packet all the same. It is *not* used
//!
//! - for datagram sockets: a receive of more than the buffer holds ends with a *warning* (`WSAEMSGSIZE`), which looks like a
//!   failure of the call, but has run, and is followed by a packet. Which it is would depend on the mode, and in the mode
//!   that skips Windows' datagram sockets have been seen to lose answers;
//! - for listeners: each connection that waits would be an answer within the call that asks for the next, in a loop as
//!   long as the backlog. With a packet each they come one by one, between everything else.
//!
//! **Attachment.** A handle is attached to a port once, for life. That happens with the first operation on it, and is noted
//! beside the handle ([`AttachedTo`]): a connection that was accepted and not used can still go to any worker. A socket that
//! is attached elsewhere is refused. A file that cannot be attached (std opens them for blocking use) is read and written by
//! a thread of the pool, which asks for no packet.
//!
//! **What a kernel can only do by blocking** (opening, metadata, syncing, names) is a job of the thread pool. The answer's
//! waker posts the packet, so a job and a call end alike. While a thread has the job, the slot owns what the job points to
//! (the buffers of a read or write), abandoned or not: the packet is posted when the job is over, or was dropped unrun. A
//! job that waits in the pool's queue is cancelled by being taken out of it; a running one is waited for.
//!
//! **Cancelling** is `CancelIoEx` for one `OVERLAPPED`. It may come too late, and then the packet is on its way: nothing
//! is found, nothing is lost. An operation of several calls (`AcceptMany`, a list of buffers) is between two of them
//! at such a moment, so it also notes that it is to stop, and starts no other.
//!
//! **Tear-down.** Everything in flight is cancelled, and packets are taken until there is none to come. Closing a handle or
//! the port is no barrier: the kernel writes to an `OVERLAPPED` and its buffer until the packet. What it does not give back in
//! time is leaked, with its slot, and counted.
#![expect(unsafe_code, reason = "shows the kernel addresses of what slots own, and gets them back")]

mod fs;
mod misc;
mod net;
mod setup;
#[cfg(test)]
mod tests;
mod unpark;

use std::fmt;
use std::future::Future;
use std::io;
use std::mem::offset_of;
use std::os::windows::io::RawSocket;
use std::pin::Pin;
use std::ptr;
use std::task::{Context, Poll, Waker};

use socket2::{SockRef, Type};
use windows_sys::Win32::Foundation::{
    ERROR_BROKEN_PIPE, ERROR_HANDLE_EOF, ERROR_INVALID_PARAMETER, ERROR_IO_PENDING, ERROR_MORE_DATA,
    ERROR_NETNAME_DELETED, HANDLE, WAIT_TIMEOUT,
};
use windows_sys::Win32::Networking::WinSock::{
    SO_UPDATE_ACCEPT_CONTEXT, SO_UPDATE_CONNECT_CONTEXT, SOCKADDR, SOCKET, SOL_SOCKET, WSABUF,
    WSAECONNABORTED, WSAECONNRESET, WSAEMSGSIZE, WSAENOTCONN, WSAGetOverlappedResult, WSAMSG, WSARecv,
    WSASend, WSASendTo, setsockopt,
};
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::IO::{
    CancelIoEx, GetOverlappedResult, GetQueuedCompletionStatusEx, OVERLAPPED, OVERLAPPED_0, OVERLAPPED_0_0,
    OVERLAPPED_ENTRY,
};
use windows_sys::Win32::System::Threading::INFINITE;

use super::slab::StableSlab;
use super::thread_pool::{self, JobFailed, ThreadPool, ThreadPoolConfig};
use super::{
    Answer, Capabilities, Completion, Descriptor, Driver, DriverConfig, DriverCounters, Resource, Token,
    Yields,
};
use crate::io::buf::{ChunkChange, Pool};
use crate::io::stash::is_cancelled;
use crate::os::{self, AcceptRoom, AttachedTo, FileStatus, OwnedDescriptor, RawDescriptor};
use crate::sync::Arc;
use setup::Extensions;
pub(crate) use unpark::Unparker;
use unpark::{OPERATION, Port, Poster, WAKE};

/// What a call says that a packet will answer.
const PENDING: [i32; 3] = [ERROR_IO_PENDING.cast_signed(), ERROR_MORE_DATA.cast_signed(), WSAEMSGSIZE];

/// Packets taken at a time: 128 entries are one 4 KiB page, and the next task is never further behind than that.
const PACKETS_MAX: usize = 128;

/// One worker's completion port.
pub(crate) struct IocpDriver {
    port: Arc<Port>,
    /// Names the port among all that there ever were.
    number: u64,
    extensions: Extensions,
    skips: Skips,
    unparker: Unparker,
    /// What the kernel, or a thread, has: the operation of each slot, or null.
    shown: Vec<*mut Overlapped>,
    /// How many of them are not null.
    in_kernel: usize,
    packets: Box<[OVERLAPPED_ENTRY; PACKETS_MAX]>,
    /// What came with answers that nobody has asked for yet; their numbers are places here.
    brought: Vec<Option<OwnedDescriptor>>,
    threads: Arc<ThreadPool>,
    capabilities: Capabilities,
    counters: DriverCounters,
}

/// Which kinds of handles skip the packet of a success.
#[derive(Clone, Copy, Debug)]
struct Skips {
    streams: bool,
    files: bool,
}

/// What an operation shows to the kernel, and what the driver notes beside it.
#[repr(C)]
pub(crate) struct Overlapped {
    /// The kernel's, from the call to the packet.
    raw: OVERLAPPED,
    token: Token,
    /// What `CancelIoEx` and the decoding of errors need; null for what no call was made for.
    handle: HANDLE,
    /// Whether a call that succeeds at once has had its answer.
    skips: bool,
    step: Step,
    cancel: Cancel,
}

/// What an operation has in its slot besides itself.
#[repr(C)]
pub(crate) struct Block<X = ()> {
    overlapped: Overlapped,
    extra: X,
}

const _: () = {
    assert!(offset_of!(Overlapped, raw) == 0);
    assert!(offset_of!(Block, overlapped) == 0 && offset_of!(Block<Work>, overlapped) == 0);
    assert!(offset_of!(Block<AcceptRoom>, overlapped) == 0);
};

/// What an answer means, and in which kind of block it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The number is the answer.
    Socket,
    /// A datagram: one that the buffer could not hold is cut, as elsewhere.
    Datagram,
    /// The same of a file, whose end is no error.
    File,
    /// The socket becomes a connection.
    Connect,
    /// The socket in the `Block<AcceptRoom>` becomes one.
    Accept,
    /// The same, and on to the next.
    AcceptMany,
    /// One part of the chain in a `Block<Work>`; on to the next.
    Chain,
    /// A thread has ended the job in a `Block<Work>`.
    Job,
}

/// Whether somebody has asked for the end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    No,
    /// When nothing was there to cancel.
    Missed,
    Asked,
}

/// A file's list of buffers, which the kernel takes one by one.
#[derive(Default)]
pub(crate) struct Chain {
    parts: Vec<Span>,
    next: usize,
    done: u32,
    offset: u64,
    writes: bool,
}

/// Memory that an operation in its slot owns.
#[derive(Clone, Copy)]
struct Span {
    start: *mut u8,
    len: u32,
}

// SAFETY: a span is made of a buffer in an operation's slot, and goes to another thread only within that operation's job. The slot
// keeps the buffer until the job's packet, and nobody else uses it meanwhile (the contract of `IoBuf`).
unsafe impl Send for Span {}

/// What an operation that is no single call has in its block.
#[derive(Default)]
pub(crate) enum Work {
    /// Nothing: a single call.
    #[default]
    None,
    /// What a thread's job will come to.
    Job(thread_pool::Answer<io::Result<Done>>),
    /// What a job came to, if that is metadata.
    Status(FileStatus),
    /// A file's list of buffers.
    Chain(Chain),
}

/// What a job comes to.
#[derive(Debug)]
pub(crate) enum Done {
    Number(u32),
    Descriptor(OwnedDescriptor),
    Status(FileStatus),
}

/// One request as it goes to the kernel.
pub(crate) struct Request {
    overlapped: *mut Overlapped,
    target: Target,
    call: Call,
}

/// The call, and its arguments. All addresses are in the operation's slot or owned by what is there.
enum Call {
    /// None: it is done, and yields this, if anything.
    None(Option<OwnedDescriptor>),
    /// None, but the answer takes the way through the port.
    Post,
    Receive {
        parts: Parts,
        flags: u32,
    },
    ReceiveMessage(*mut WSAMSG),
    Send {
        parts: Parts,
    },
    SendTo {
        parts: Parts,
        to: *const SOCKADDR,
        to_len: i32,
    },
    Connect {
        to: *const SOCKADDR,
        to_len: i32,
    },
    Accept,
    Read {
        into: Span,
        offset: u64,
    },
    Write {
        from: Span,
        offset: u64,
    },
    Job(thread_pool::Answer<io::Result<Done>>),
}

/// The parts of one transfer. The kernel reads the list within the call.
enum Parts {
    One(WSABUF),
    Many(Vec<WSABUF>),
}

impl Parts {
    fn list(&self) -> (*const WSABUF, u32) {
        match self {
            Parts::One(part) => (ptr::from_ref(part), 1),
            Parts::Many(parts) => {
                (parts.as_ptr(), u32::try_from(parts.len()).expect("at most PARTS_MAX parts"))
            }
        }
    }
}

/// What a call said.
enum Said {
    /// A packet will come.
    Pending,
    /// No packet will come: this is the answer.
    Answer(io::Result<u32>),
}

impl<X: Default> Default for Block<X> {
    fn default() -> Block<X> {
        let overlapped = Overlapped {
            raw: OVERLAPPED::default(),
            token: Token::reserved(0),
            handle: ptr::null_mut(),
            skips: false,
            step: Step::Socket,
            cancel: Cancel::No,
        };
        Block { overlapped, extra: X::default() }
    }
}

impl<X> Block<X> {
    /// A request of this block's operation, on `target`.
    fn request(&mut self, step: Step, target: Target, call: Call) -> Request {
        self.overlapped.step = step;
        // The pointer is made of the whole block's, so that it may be used for all of it.
        let overlapped = (&raw mut *self).cast();
        Request { overlapped, target, call }
    }
}

impl Block<Work> {
    /// A request that a thread carries out, and may have begun when this returns. `what` is for whoever must not block a thread.
    ///
    /// # Errors
    ///
    /// Why no thread of the pool will.
    fn job(
        &mut self,
        driver: &IocpDriver,
        what: &'static str,
        run: impl FnOnce() -> io::Result<Done> + Send + 'static,
    ) -> io::Result<Request> {
        let answer = driver.threads.submit_silently(what, run)?;
        Ok(self.request(Step::Job, Target::NONE, Call::Job(answer)))
    }
}

/// An attached handle.
#[derive(Clone, Copy)]
struct Target {
    handle: HANDLE,
    skips: bool,
}

impl Target {
    /// For what is done to no handle.
    const NONE: Target = Target { handle: ptr::null_mut(), skips: false };

    fn socket(self) -> SOCKET {
        self.handle.addr()
    }
}

impl IocpDriver {
    /// A port for the calling thread, which alone waits at it.
    ///
    /// # Errors
    ///
    /// What the system said; with an [`Unavailable`](super::Unavailable) as source, if its sockets lack what Veloq needs.
    pub(crate) fn new(config: &DriverConfig) -> io::Result<IocpDriver> {
        let setup::Made { port, number, extensions, skips, capabilities } = setup::make(config)?;
        let port = Arc::new(port);
        Ok(IocpDriver {
            unparker: Unparker::new(Arc::clone(&port)),
            port,
            number,
            extensions,
            skips,
            shown: Vec::new(),
            in_kernel: 0,
            packets: Box::new([OVERLAPPED_ENTRY::default(); PACKETS_MAX]),
            brought: Vec::new(),
            threads: Arc::new(ThreadPool::new(ThreadPoolConfig::default())),
            capabilities,
            counters: DriverCounters::default(),
        })
    }

    /// A listening socket, attached. None of its packets is spared (module docs).
    fn listener(&self, fd: &Descriptor) -> io::Result<Target> {
        self.attached_socket(fd, |_| false)
    }

    /// Any other socket, attached. A stream spares packets.
    fn socket(&self, fd: &Descriptor) -> io::Result<Target> {
        let streams = self.skips.streams;
        self.attached_socket(fd, |socket| streams && is_stream(socket))
    }

    /// A socket, attached; `skips` says whether one that is not attached yet is to spare the packets of successes.
    fn attached_socket(
        &self,
        fd: &Descriptor,
        skips: impl FnOnce(&OwnedDescriptor) -> bool,
    ) -> io::Result<Target> {
        let owned = owned(fd)?;
        let RawDescriptor::Socket(socket) = os::raw(owned) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file is no socket"));
        };
        let handle = socket_handle(socket);
        match self.attach(owned, handle, skips) {
            Some(skips) => Ok(Target { handle, skips }),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a socket belongs for life to the worker that first used it, and this one was used elsewhere before",
            )),
        }
    }

    /// A file, attached if it can be; else only a thread can read or write it, without a packet.
    fn file(&self, fd: &Descriptor) -> io::Result<(HANDLE, Option<Target>)> {
        let owned = owned(fd)?;
        let RawDescriptor::Handle(handle) = os::raw(owned) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket is no file"));
        };
        let handle = ptr::without_provenance_mut(handle);
        let attached = self.attach(owned, handle, |_| self.skips.files);
        Ok((handle, attached.map(|skips| Target { handle, skips })))
    }

    /// Attaches a handle to the port, unless it is. Says whether it skips; `None` if it cannot be attached.
    fn attach(
        &self,
        owned: &OwnedDescriptor,
        handle: HANDLE,
        skips: impl FnOnce(&OwnedDescriptor) -> bool,
    ) -> Option<bool> {
        match owned.attached() {
            AttachedTo::Port { number, skips } if number == self.number => Some(skips),
            AttachedTo::Port { .. } | AttachedTo::Refused => None,
            AttachedTo::Nothing => {
                let made = setup::attach(&self.port, handle, skips(owned));
                owned.set_attached(match made {
                    Some(skips) => AttachedTo::Port { number: self.number, skips },
                    None => AttachedTo::Refused,
                });
                made
            }
        }
    }

    /// What a slot's operation is known by, if it is with the kernel or a thread.
    fn shown(&self, token: Token) -> Option<*mut Overlapped> {
        let overlapped = *self.shown.get(token.index() as usize)?;
        // SAFETY: what is not null in `shown` is in flight, so its slot is there; the token is the driver's alone.
        (!overlapped.is_null() && unsafe { (*overlapped).token } == token).then_some(overlapped)
    }

    /// Makes a call of the kernel's.
    fn call(&mut self, overlapped: *mut Overlapped, target: Target, call: Call) -> Said {
        let Target { handle, skips } = target;
        let (socket, none) = (target.socket(), None);
        let mut bytes = 0;
        let raw: *mut OVERLAPPED = overlapped.cast();
        // SAFETY: this holds for every call below as well. `raw` is in the operation's slot and not in use: it was never shown, or
        // its packet was taken. The handle is open as long as the operation, which owns a count of it. The memory that the call
        // reads or writes later is in the slot or owned by what is there (`PlatformOp`'s contract), and the slot outlives the
        // packet (module docs). Lists of parts and `flags` are read, and `bytes` is written, within the call only.
        unsafe { raw.write(OVERLAPPED::default()) };
        let succeeded = match call {
            Call::None(_) | Call::Job(_) => unreachable!("no call of the kernel's"),
            Call::Post => {
                return match self.port.post(OPERATION, overlapped) {
                    Ok(()) => Said::Pending,
                    Err(error) => Said::Answer(Err(error)),
                };
            }
            Call::Receive { parts, flags: mut wanted } => {
                let (list, count) = parts.list();
                // SAFETY: what is said of every call at the top.
                unsafe { WSARecv(socket, list, count, &raw mut bytes, &raw mut wanted, raw, none) == 0 }
            }
            Call::ReceiveMessage(message) => {
                let receive = self.extensions.receive_message;
                // SAFETY: as above; the message, and what it names besides the buffer, are in the block.
                unsafe { receive(socket, message, &raw mut bytes, raw, none) == 0 }
            }
            Call::Send { parts } => {
                let (list, count) = parts.list();
                // SAFETY: what is said of every call at the top.
                unsafe { WSASend(socket, list, count, &raw mut bytes, 0, raw, none) == 0 }
            }
            Call::SendTo { parts, to, to_len } => {
                let (list, count) = parts.list();
                // SAFETY: as above; the address is in the operation.
                unsafe { WSASendTo(socket, list, count, &raw mut bytes, 0, to, to_len, raw, none) == 0 }
            }
            Call::Connect { to, to_len } => {
                let connect = self.extensions.connect;
                // SAFETY: as above; the address is in the operation, and nothing is sent along.
                unsafe { connect(socket, to, to_len, ptr::null(), 0, &raw mut bytes, raw) != 0 }
            }
            Call::Accept => {
                let (accept, size) = (self.extensions.accept, AcceptRoom::ADDRESS_BYTES);
                // SAFETY: with this call the block is a `Block<AcceptRoom>`, in its slot, and the driver's until the call.
                let room = unsafe { &mut (*overlapped.cast::<Block<AcceptRoom>>()).extra };
                let (connection, addresses) = (room.socket(), room.addresses().cast());
                // SAFETY: as above; the room was filled just before, and its addresses have the sizes that are named.
                unsafe { accept(socket, connection, addresses, 0, size, size, &raw mut bytes, raw) != 0 }
            }
            Call::Read { into, offset } => {
                // SAFETY: what is said of every call at the top; it holds until the call is made, so `raw` may be written once more.
                unsafe {
                    raw.write(at(offset));
                    ReadFile(handle, into.start, into.len, &raw mut bytes, raw) != 0
                }
            }
            Call::Write { from, offset } => {
                // SAFETY: as for `Call::Read`.
                unsafe {
                    raw.write(at(offset));
                    WriteFile(handle, from.start, from.len, &raw mut bytes, raw) != 0
                }
            }
        };
        if succeeded {
            return if skips { Said::Answer(Ok(bytes)) } else { Said::Pending };
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The last two are warnings: the call has run, and its packet comes.
            Some(code) if PENDING.contains(&code) => Said::Pending,
            _ => Said::Answer(Err(error)),
        }
    }

    /// Has the end of a job post the packet; unless it has ended already, as is then said.
    fn watch(
        &mut self,
        overlapped: *mut Overlapped,
        mut answer: thread_pool::Answer<io::Result<Done>>,
    ) -> Option<io::Result<Done>> {
        let waker = Waker::from(Arc::new(Poster::new(&self.port, overlapped)));
        // Asked once: either the answer is there, and no packet will come, or it comes with the packet.
        match Pin::new(&mut answer).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(ended) => Some(ended.unwrap_or_else(|failed| Err(job_error(failed)))),
            Poll::Pending => {
                // SAFETY: with this step the block is a `Block<Work>`, in its slot, and the driver's alone: the thread knows
                // its address only.
                unsafe { (*overlapped.cast::<Block<Work>>()).extra = Work::Job(answer) };
                None
            }
        }
    }

    /// Keeps what came with an answer until it is asked for, under this number.
    fn bring(&mut self, descriptor: OwnedDescriptor) -> u32 {
        let place = self.brought.iter().position(Option::is_none).unwrap_or(self.brought.len());
        if place == self.brought.len() {
            self.brought.push(None);
        }
        self.brought[place] = Some(descriptor);
        u32::try_from(place).expect("fewer than there are slots and items")
    }

    /// Notes that the kernel or a thread has an operation.
    fn show(&mut self, overlapped: *mut Overlapped, token: Token) {
        let index = token.index() as usize;
        if index >= self.shown.len() {
            self.shown.resize(index + 1, ptr::null_mut());
        }
        debug_assert!(self.shown[index].is_null(), "a slot has one operation");
        self.shown[index] = overlapped;
        self.in_kernel += 1;
    }

    /// Notes that it is the driver's again.
    fn hide(&mut self, token: Token) {
        self.shown[token.index() as usize] = ptr::null_mut();
        self.in_kernel -= 1;
    }

    /// Takes what is at the port, waiting for it for `milliseconds` at most.
    fn take_packets(&mut self, slab: &mut StableSlab, milliseconds: u32) -> io::Result<()> {
        let mut taken = 0;
        self.counters.entries += 1;
        let list = self.packets.as_mut_ptr();
        let room = u32::try_from(PACKETS_MAX).expect("128 fits");
        // SAFETY: the port is open; the list has room for so many entries, and is nobody else's during the call.
        let any = unsafe {
            GetQueuedCompletionStatusEx(self.port.handle(), list, room, &raw mut taken, milliseconds, 0)
        };
        if any == 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error().map(i32::cast_unsigned) {
                Some(WAIT_TIMEOUT) => Ok(()),
                _ => Err(error),
            };
        }
        for place in 0..taken as usize {
            let entry = self.packets[place];
            match entry.lpCompletionKey {
                WAKE => self.unparker.answer(),
                OPERATION => {
                    self.counters.completions += 1;
                    self.packet(slab, entry.lpOverlapped.cast(), entry.dwNumberOfBytesTransferred);
                }
                // Somebody else has posted it: whoever duplicated the port's handle. It is none of ours.
                _ => {}
            }
        }
        Ok(())
    }

    /// Deals with the packet of an operation.
    fn packet(&mut self, slab: &mut StableSlab, overlapped: *mut Overlapped, bytes: u32) {
        // SAFETY: packets with the key of operations carry what a call or a job was given: the block of an operation in
        // flight, since this packet ends its flight. From here on the kernel has nothing of it.
        let (token, step) = unsafe { ((*overlapped).token, (*overlapped).step) };
        assert!(self.shown(token) == Some(overlapped), "a packet comes for what is in flight, once");
        if step == Step::Job {
            // SAFETY: with this step the block is a `Block<Work>`, in its slot, which no thread touches.
            let work = unsafe { &mut (*overlapped.cast::<Block<Work>>()).extra };
            let Work::Job(mut answer) = std::mem::take(work) else { panic!("a job's packet comes once") };
            let Poll::Ready(ended) = Pin::new(&mut answer).poll(&mut Context::from_waker(Waker::noop()))
            else {
                panic!("a job's packet comes when its answer is there")
            };
            self.end_job(slab, overlapped, ended.unwrap_or_else(|failed| Err(job_error(failed))));
        } else {
            // SAFETY: the packet was taken, so the kernel has written the status.
            let result = unsafe { result_of(overlapped, bytes) };
            self.answered(slab, overlapped, result);
        }
    }

    /// Goes on with an operation whose call has its answer: ends it, or makes its next call.
    fn answered(&mut self, slab: &mut StableSlab, overlapped: *mut Overlapped, result: io::Result<u32>) {
        // SAFETY: the operation is in flight, and the kernel has nothing of it just now.
        let (step, handle) = unsafe { ((*overlapped).step, (*overlapped).handle) };
        let result = match step {
            Step::Socket | Step::Datagram | Step::Job => result,
            Step::File => ended_file(result),
            Step::Connect => {
                if result.is_ok() {
                    connected(handle.addr());
                }
                result
            }
            Step::Accept | Step::AcceptMany => return self.accepted(slab, overlapped, result),
            Step::Chain => return self.went_on(slab, overlapped, ended_file(result)),
        };
        self.end(slab, overlapped, result);
    }

    /// Yields a connection; where more are asked for, on to the next.
    fn accepted(&mut self, slab: &mut StableSlab, overlapped: *mut Overlapped, mut result: io::Result<u32>) {
        loop {
            // SAFETY: the operation is in flight, and the kernel has nothing of it between two calls. With this step the
            // block is a `Block<AcceptRoom>`; the reference ends before the next call.
            let block = unsafe { &mut *overlapped.cast::<Block<AcceptRoom>>() };
            let Overlapped { token, handle, step, cancel, .. } = block.overlapped;
            match result {
                Ok(_) => {
                    let connection = block.extra.take();
                    accepted(&connection, handle);
                    let number = self.bring(connection);
                    if step == Step::Accept {
                        return self.end(slab, overlapped, Ok(number));
                    }
                    slab.complete(
                        token,
                        Answer { result: Ok(number), more: true, drained: false, buffer: None },
                    );
                }
                // It was reset while it waited: there is nothing to be had of it, and others wait behind it.
                Err(error) if step == Step::AcceptMany && is_reset(&error) => {}
                Err(error) => return self.end(slab, overlapped, Err(error)),
            }
            if cancel != Cancel::No {
                return self.end(slab, overlapped, Err(io::Error::from_raw_os_error(os::error::CANCELLED)));
            }
            if let Err(error) = block.extra.refill() {
                return self.end(slab, overlapped, Err(error));
            }
            match self.call(overlapped, Target { handle, skips: false }, Call::Accept) {
                Said::Pending => return,
                Said::Answer(answer) => result = answer,
            }
        }
    }

    /// Counts what one part of a list of buffers brought; on to the next, as long as each is filled.
    fn went_on(&mut self, slab: &mut StableSlab, overlapped: *mut Overlapped, mut result: io::Result<u32>) {
        loop {
            // SAFETY: the operation is in flight, and the kernel has nothing of it between two calls. With this step the
            // block is a `Block<Work>`; the reference ends before the next call.
            let block = unsafe { &mut *overlapped.cast::<Block<Work>>() };
            let Overlapped { handle, skips, cancel, .. } = block.overlapped;
            let Work::Chain(chain) = &mut block.extra else { unreachable!("the step says so") };
            let was_whole = result.as_ref().is_ok_and(|bytes| chain.count(*bytes));
            match chain.next_call() {
                Some(call) if was_whole && cancel == Cancel::No => {
                    match self.call(overlapped, Target { handle, skips }, call) {
                        Said::Pending => return,
                        Said::Answer(answer) => result = ended_file(answer),
                    }
                }
                _ => {
                    // What was done is worth more than an error, which the next call gets again.
                    let result = if chain.done > 0 { Ok(chain.done) } else { result };
                    return self.end(slab, overlapped, result);
                }
            }
        }
    }

    /// Ends an operation that a thread has carried out.
    fn end_job(&mut self, slab: &mut StableSlab, overlapped: *mut Overlapped, ended: io::Result<Done>) {
        let result = ended.map(|done| match done {
            Done::Number(number) => number,
            Done::Descriptor(descriptor) => self.bring(descriptor),
            Done::Status(status) => {
                // SAFETY: the operation is in flight, with this step its block is a `Block<Work>`, and no thread touches it.
                unsafe { (*overlapped.cast::<Block<Work>>()).extra = Work::Status(status) };
                0
            }
        });
        self.end(slab, overlapped, result);
    }

    /// Stores the terminal answer. Nobody outside has the block any more, and from here on it is the slab's alone.
    fn end(&mut self, slab: &mut StableSlab, overlapped: *mut Overlapped, result: io::Result<u32>) {
        // SAFETY: the operation is in flight until the next lines, so its block is there.
        let (token, cancel) = unsafe { ((*overlapped).token, (*overlapped).cancel) };
        if cancel == Cancel::Asked {
            match &result {
                Err(error) if is_cancelled(error) => self.counters.cancels_won += 1,
                _ => self.counters.cancels_lost += 1,
            }
        }
        self.hide(token);
        slab.complete(
            token,
            Answer { result: result.map_err(code), more: false, drained: false, buffer: None },
        );
    }

    /// Asks for the end of an operation. Says whether there was something to ask.
    fn stop(&mut self, token: Token) -> io::Result<()> {
        self.counters.cancels += 1;
        let found = self.shown(token).and_then(|overlapped| {
            // SAFETY: the operation is in flight, and these fields are the driver's.
            let (step, handle) = unsafe { ((*overlapped).step, (*overlapped).handle) };
            let found = if step == Step::Job {
                // SAFETY: with this step the block is a `Block<Work>`, which no thread touches.
                let work = unsafe { &(*overlapped.cast::<Block<Work>>()).extra };
                let Work::Job(answer) = work else { unreachable!("the step says so") };
                answer.abort();
                true
            } else {
                // SAFETY: the handle is open, as the operation owns a count of it; the kernel compares the address.
                unsafe { CancelIoEx(handle, overlapped.cast()) != 0 }
            };
            // SAFETY: it is in flight still: only a packet that is taken ends it, and none was. The field is the driver's.
            unsafe { (*overlapped).cancel = if found { Cancel::Asked } else { Cancel::Missed } };
            found.then_some(())
        });
        if found.is_none() {
            self.counters.cancels_late += 1;
        }
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Chain {
    /// Counts what the part that was called last brought. Says whether that was all of it.
    fn count(&mut self, bytes: u32) -> bool {
        self.done += bytes;
        self.parts[self.next - 1].len == bytes
    }

    /// The call for the next part, if there is one.
    fn next_call(&mut self) -> Option<Call> {
        let part = *self.parts.get(self.next)?;
        self.next += 1;
        let offset = self.offset + u64::from(self.done);
        Some(if self.writes { Call::Write { from: part, offset } } else { Call::Read { into: part, offset } })
    }
}

/// An `OVERLAPPED` for a place in a file.
#[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart on purpose")]
fn at(offset: u64) -> OVERLAPPED {
    let halves = OVERLAPPED_0_0 { Offset: offset as u32, OffsetHigh: (offset >> 32) as u32 };
    OVERLAPPED { Anonymous: OVERLAPPED_0 { Anonymous: halves }, ..OVERLAPPED::default() }
}

/// The descriptor of the process.
fn owned(fd: &Descriptor) -> io::Result<&OwnedDescriptor> {
    match fd {
        Descriptor::Os(owned) => Ok(owned),
        Descriptor::Direct(_) => Err(direct_error()),
    }
}

/// A socket as the calls know it that take any handle.
fn socket_handle(socket: RawSocket) -> HANDLE {
    ptr::without_provenance_mut(usize::try_from(socket).expect("64 bits of a socket"))
}

/// Whether it carries a stream. What cannot be asked is taken for one that does not, which costs packets only.
fn is_stream(socket: &OwnedDescriptor) -> bool {
    SockRef::from(socket).r#type().is_ok_and(|kind| kind == Type::STREAM)
}

/// Refuses direct descriptors.
fn check_direct(wanted: bool) -> io::Result<()> {
    if wanted { Err(direct_error()) } else { Ok(()) }
}

fn direct_error() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "direct descriptors are io_uring's: Windows has none")
}

/// The system's code of an error. What std says of its own accord in a job is that it does not take the path or the combination.
#[expect(clippy::needless_pass_by_value, reason = "what became of an error is its code")]
fn code(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(ERROR_INVALID_PARAMETER.cast_signed())
}

/// Why a job brought nothing. A job that panicked goes on panicking on the worker, as its caller's own code would.
fn job_error(failed: JobFailed) -> io::Error {
    match failed {
        JobFailed::Dropped => io::Error::from_raw_os_error(os::error::CANCELLED),
        panicked @ JobFailed::Panicked(_) => panicked.into_error(),
    }
}

/// A read that begins at the end of a file, or of what a closed pipe held, brings nothing.
fn ended_file(result: io::Result<u32>) -> io::Result<u32> {
    match result.as_ref().err().and_then(io::Error::raw_os_error).map(i32::cast_unsigned) {
        Some(ERROR_HANDLE_EOF | ERROR_BROKEN_PIPE) => Ok(0),
        _ => result,
    }
}

/// Whether a connection ended before it was accepted. Wine then finds that it has no peer.
fn is_reset(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(WSAECONNRESET | WSAECONNABORTED | WSAENOTCONN))
        || error.raw_os_error() == Some(ERROR_NETNAME_DELETED.cast_signed())
}

/// What a call came to, in the words of its own kind: a socket's errors are not a file's.
///
/// # Safety
///
/// `overlapped` is an operation whose packet was taken, with so many `bytes`.
unsafe fn result_of(overlapped: *mut Overlapped, bytes: u32) -> io::Result<u32> {
    let raw: *const OVERLAPPED = overlapped.cast();
    // SAFETY: the operation is in flight and the kernel is done with it, as the caller says.
    let (status, step, handle) = unsafe { ((*raw).Internal, (*overlapped).step, (*overlapped).handle) };
    if status == 0 {
        return Ok(bytes);
    }
    let (mut moved, mut flags) = (0, 0);
    let is_file = matches!(step, Step::File | Step::Chain);
    // SAFETY: the handle is open, as the operation owns a count of it; the call looks at the status only, and does not wait.
    let succeeded = unsafe {
        if is_file {
            GetOverlappedResult(handle, raw, &raw mut moved, 0) != 0
        } else {
            WSAGetOverlappedResult(handle.addr(), raw, &raw mut moved, 0, &raw mut flags) != 0
        }
    };
    if succeeded {
        return Ok(bytes);
    }
    let error = io::Error::last_os_error();
    if step == Step::Datagram && error.raw_os_error() == Some(WSAEMSGSIZE) { Ok(bytes) } else { Err(error) }
}

/// Makes a socket that `ConnectEx` has connected one that can be asked for its peer and shut down.
fn connected(socket: SOCKET) {
    // SAFETY: the socket is open, as the operation that has just been answered owns a count of it; no value is passed.
    let updated = unsafe { setsockopt(socket, SOL_SOCKET, SO_UPDATE_CONNECT_CONTEXT, ptr::null(), 0) };
    debug_assert_eq!(updated, 0, "{}", io::Error::last_os_error());
}

/// Makes a socket that `AcceptEx` has filled one that can be asked for its peer and shut down. One that is reset already cannot
/// be asked, and whoever asks it hears so.
fn accepted(connection: &OwnedDescriptor, listener: HANDLE) {
    let RawDescriptor::Socket(socket) = os::raw(connection) else { unreachable!("a room holds a socket") };
    let socket = socket_handle(socket).addr();
    let len = i32::try_from(size_of::<HANDLE>()).expect("eight bytes");
    // SAFETY: both sockets are open: one is lent, the operation that has just been answered owns a count of the other. The
    // value is the listener's number, read within the call.
    let _updated = unsafe {
        setsockopt(socket, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, (&raw const listener).cast(), len)
    };
}

/// Milliseconds until `deadline_ns`, rounded up: a timer fires late by less than one, never early and in a loop.
fn milliseconds(now_ns: u64, deadline_ns: Option<u64>) -> u32 {
    let Some(deadline_ns) = deadline_ns else { return INFINITE };
    let left = deadline_ns.saturating_sub(now_ns).div_ceil(1_000_000);
    // The largest is for ever. Whoever sleeps for 49 days looks at the clock again.
    u32::try_from(left).unwrap_or(INFINITE).min(INFINITE - 1)
}

impl Driver for IocpDriver {
    type Entry = Request;

    fn submit(&mut self, slab: &mut StableSlab, token: Token, request: Request) {
        let Request { overlapped, target, call } = request;
        // SAFETY: the block is in its slot, which the slab has not shown to anybody; the reference that it was encoded
        // through has ended.
        unsafe {
            (*overlapped).token = token;
            (*overlapped).handle = target.handle;
            (*overlapped).skips = target.skips;
        }
        slab.arm(token);
        self.show(overlapped, token);
        self.counters.submitted += 1;
        let call = match call {
            Call::None(brought) => {
                let number = brought.map_or(0, |descriptor| self.bring(descriptor));
                return self.end(slab, overlapped, Ok(number));
            }
            Call::Job(answer) => {
                if let Some(ended) = self.watch(overlapped, answer) {
                    self.end_job(slab, overlapped, ended);
                }
                return;
            }
            call => call,
        };
        if let Said::Answer(answer) = self.call(overlapped, target, call) {
            self.answered(slab, overlapped, answer);
        }
    }

    fn cancel(&mut self, token: Token) {
        // Not found is counted.
        let _found = self.stop(token);
    }

    fn process_completions(&mut self, slab: &mut StableSlab) -> io::Result<()> {
        if self.in_kernel == 0 { Ok(()) } else { self.take_packets(slab, 0) }
    }

    fn park(&mut self, slab: &mut StableSlab, deadline_ns: Option<u64>) -> io::Result<()> {
        if slab.has_notices() {
            return self.process_completions(slab);
        }
        self.counters.parks += 1;
        let left = milliseconds(self.now_ns(), deadline_ns);
        self.take_packets(slab, left)
    }

    fn own(&mut self, yields: Yields, answer: Answer) -> Completion {
        let resource = match (yields, answer.result) {
            (Yields::OsDescriptor, Ok(number)) => {
                let descriptor = self.brought[number as usize].take().expect("asked for once");
                Resource::Descriptor(Descriptor::Os(descriptor))
            }
            _ => Resource::None,
        };
        answer.with(resource)
    }

    /// The port tells only by a system call.
    fn has_news(&mut self) -> bool {
        false
    }

    fn register_buffers(&mut self, _: &Pool, _: &DriverConfig) -> usize {
        0
    }

    fn update_buffers(&mut self, _: Vec<ChunkChange>) {}

    fn use_threads(&mut self, threads: &Arc<ThreadPool>) {
        self.threads = Arc::clone(threads);
    }

    fn unparker(&self) -> Unparker {
        self.unparker.clone()
    }

    fn now_ns(&self) -> u64 {
        os::monotonic_ns()
    }

    /// All that is in flight has a slot.
    fn quiesce(&mut self, _: &mut StableSlab) -> bool {
        true
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn capabilities_mut(&mut self) -> &mut Capabilities {
        &mut self.capabilities
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}

impl fmt::Debug for IocpDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IocpDriver")
            .field("in_kernel", &self.in_kernel)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
