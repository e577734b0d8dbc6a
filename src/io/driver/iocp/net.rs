//! Encodings of `io::op::net` for completion ports.
#![expect(unsafe_code, reason = "shows the kernel addresses inside operations in their slots")]

use std::io;
use std::mem::take;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown as How, SocketAddr};

use socket2::{SockAddr, SockRef};
use windows_sys::Win32::Networking::WinSock::{SOCKADDR, SOCKADDR_INET, WSABUF, WSAMSG};

use super::{Block, Call, IocpDriver, Parts, Request, Step, Target, check_direct, owned};
use crate::io::buf::{FixedBuf, IoBuf, IoBufMut, IoBufMutVec, IoBufVec, Rest};
use crate::io::driver::{Completion, Descriptor, PlatformOp, Yields, fits_inline};
use crate::io::op::net::{
    Accept, AcceptMany, Connect, Recv, RecvFrom, RecvMany, RecvVectored, Send, SendTo, SendVectored,
    Shutdown, Socket,
};
use crate::io::op::{TRANSFER_BYTES_MAX, transfer_len};
use crate::os::{AcceptRoom, OwnedDescriptor, internet_address};

/// Parts of one vectored call at most: what Linux takes, so that programs meet the same bound. The list is read within the call.
const PARTS_MAX: usize = 1024;

fn part(start: *mut u8, len: usize) -> WSABUF {
    WSABUF { len: transfer_len(len), buf: start }
}

/// Gathers parts, as many as one call may have, and as many bytes as one transfer.
struct Gather {
    parts: Vec<WSABUF>,
    room: usize,
}

impl Gather {
    fn new(count: usize) -> Gather {
        Gather { parts: Vec::with_capacity(count.min(PARTS_MAX)), room: TRANSFER_BYTES_MAX }
    }

    fn add(&mut self, start: *mut u8, len: usize) {
        if self.parts.len() < PARTS_MAX && self.room > 0 {
            let len = len.min(self.room);
            self.room -= len;
            self.parts.push(part(start, len));
        }
    }
}

/// The parts of a list of buffers to write from.
fn parts_of<V: IoBufVec>(bufs: &V) -> Parts {
    let mut gather = Gather::new(bufs.io_count());
    bufs.io_each(|part, len| gather.add(part.cast_mut(), len));
    Parts::Many(gather.parts)
}

/// The parts of a list of buffers to read into.
fn parts_of_mut<V: IoBufMutVec>(bufs: &mut V) -> Parts {
    let mut gather = Gather::new(bufs.io_count());
    bufs.io_each_mut(|part, len| gather.add(part, len));
    Parts::Many(gather.parts)
}

/// The address as calls take it.
fn destination(to: &SockAddr) -> (*const SOCKADDR, i32) {
    (to.as_ptr().cast(), to.len())
}

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Socket {
    type Block = Block;

    /// Nothing is waited for, so it is made here.
    fn encode(&mut self, block: &mut Block, _: &mut IocpDriver) -> io::Result<Request> {
        check_direct(self.direct)?;
        let made = socket2::Socket::new(self.domain.into(), self.kind.into(), Some(self.protocol.into()))?;
        Ok(block.request(Step::Socket, Target::NONE, Call::None(Some(made.into()))))
    }

    fn yields(&self) -> Yields {
        Yields::OsDescriptor
    }
}

// SAFETY: the address is in the operation itself.
unsafe impl PlatformOp<IocpDriver> for Connect {
    type Block = Block;

    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        let target = driver.socket(&self.fd)?;
        bind_anywhere(owned(&self.fd)?, &self.to)?;
        let (to, to_len) = destination(&self.to);
        Ok(block.request(Step::Connect, target, Call::Connect { to, to_len }))
    }
}

/// `ConnectEx` takes bound sockets only. One that is not gets the address that `connect` would have found for it.
fn bind_anywhere(socket: &OwnedDescriptor, to: &SockAddr) -> io::Result<()> {
    let socket = SockRef::from(socket);
    // Asking a socket that is not bound for its address is an error.
    if socket.local_addr().is_ok() {
        return Ok(());
    }
    let any: SocketAddr = match to.as_socket() {
        Some(SocketAddr::V4(_)) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        Some(SocketAddr::V6(_)) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        None => return Err(io::ErrorKind::Unsupported.into()),
    };
    socket.bind(&any.into())
}

/// Moves what `pre_alloc` has made into the block, where the kernel fills it.
fn accept(
    fd: &Descriptor,
    step: Step,
    made: &mut AcceptRoom,
    block: &mut Block<AcceptRoom>,
    driver: &mut IocpDriver,
) -> io::Result<Request> {
    // No packet is spared, so that connections come one by one (the header of this backend).
    let target = driver.listener(fd)?;
    block.extra = take(made);
    block.extra.set_reader(driver.extensions.addresses);
    Ok(block.request(step, target, Call::Accept))
}

// SAFETY: the socket and the addresses are in the block.
unsafe impl PlatformOp<IocpDriver> for Accept {
    type Block = Block<AcceptRoom>;

    fn encode(&mut self, block: &mut Block<AcceptRoom>, driver: &mut IocpDriver) -> io::Result<Request> {
        check_direct(self.direct)?;
        accept(&self.fd, Step::Accept, &mut self.room, block, driver)
    }

    fn yields(&self) -> Yields {
        Yields::OsDescriptor
    }

    fn decode(&mut self, block: &mut Block<AcceptRoom>, completion: &Completion) {
        self.peer = completion.result.is_ok().then(|| block.extra.peer()).flatten();
    }
}

// SAFETY: the socket and the addresses are in the block.
unsafe impl PlatformOp<IocpDriver> for AcceptMany {
    type Block = Block<AcceptRoom>;

    fn encode(&mut self, block: &mut Block<AcceptRoom>, driver: &mut IocpDriver) -> io::Result<Request> {
        check_direct(self.direct)?;
        accept(&self.fd, Step::AcceptMany, &mut self.room, block, driver)
    }

    fn yields(&self) -> Yields {
        Yields::OsDescriptor
    }
}

// SAFETY: the address is the buffer's, which `IoBufMut` promises does not move.
unsafe impl<B: IoBufMut> PlatformOp<IocpDriver> for Recv<B> {
    type Block = Block;

    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        let part = part(self.buf.io_mut_ptr(), self.buf.io_capacity());
        let receive = Call::Receive { parts: Parts::One(part), flags: self.flags.cast_unsigned() };
        Ok(block.request(Step::Socket, driver.socket(&self.fd)?, receive))
    }
}

// SAFETY: nothing is encoded.
unsafe impl PlatformOp<IocpDriver> for RecvMany {
    type Block = Block;

    /// There is no receive ring.
    fn encode(&mut self, _: &mut Block, _: &mut IocpDriver) -> io::Result<Request> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

// SAFETY: the parts' addresses are the buffers', which `IoBufMutVec` promises do not move.
unsafe impl<V: IoBufMutVec> PlatformOp<IocpDriver> for RecvVectored<V> {
    type Block = Block;

    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        let receive = Call::Receive { parts: parts_of_mut(&mut self.bufs), flags: 0 };
        Ok(block.request(Step::Socket, driver.socket(&self.fd)?, receive))
    }
}

/// What `WSARecvMsg` is told and tells: the message, which it writes to until the packet, and what that points to besides the buffer.
#[derive(Default)]
pub(crate) struct Envelope {
    message: WSAMSG,
    part: WSABUF,
    /// Room for an address of either kind.
    from: SOCKADDR_INET,
}

// SAFETY: the message, its one part and the sender's address are in the block; the part's address is the buffer's.
unsafe impl<B: IoBufMut> PlatformOp<IocpDriver> for RecvFrom<B> {
    type Block = Block<Envelope>;

    fn encode(&mut self, block: &mut Block<Envelope>, driver: &mut IocpDriver) -> io::Result<Request> {
        let target = driver.socket(&self.fd)?;
        let Envelope { message, part: only, from } = &mut block.extra;
        *only = part(self.buf.io_mut_ptr(), self.buf.io_capacity());
        *message = WSAMSG {
            name: (&raw mut *from).cast(),
            namelen: i32::try_from(size_of_val(from)).expect("some thirty bytes"),
            lpBuffers: only,
            dwBufferCount: 1,
            Control: WSABUF::default(),
            dwFlags: self.flags.cast_unsigned(),
        };
        let message = &raw mut block.extra.message;
        Ok(block.request(Step::Datagram, target, Call::ReceiveMessage(message)))
    }

    fn decode(&mut self, block: &mut Block<Envelope>, completion: &Completion) {
        if completion.result.is_ok() {
            let Envelope { message, from, .. } = &block.extra;
            let room = i32::try_from(size_of_val(from)).expect("some thirty bytes");
            // SAFETY: so many bytes were written to the room by the packet that ends the operation, and no more than it has.
            self.from = unsafe { internet_address((&raw const *from).cast(), message.namelen.min(room)) };
        }
    }
}

// SAFETY: the address is the buffer's, which `IoBuf` promises does not move.
unsafe impl<B: IoBuf> PlatformOp<IocpDriver> for Send<B> {
    type Block = Block;

    /// A stream's send goes on until all is sent. Without a copy is how the network takes it in any case, as far as it can.
    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        let part = part(self.buf.io_ptr().cast_mut(), self.buf.io_len());
        let target = driver.socket(self.target())?;
        Ok(block.request(Step::Socket, target, Call::Send { parts: Parts::One(part) }))
    }
}

// SAFETY: the destination is in the operation; the parts' addresses are the buffers', which `IoBufVec` promises do not move.
unsafe impl<V: IoBufVec> PlatformOp<IocpDriver> for SendVectored<V> {
    type Block = Block;

    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        let parts = parts_of(&self.bufs);
        let target = driver.socket(&self.fd)?;
        let send = match self.to.as_deref().map(destination) {
            Some((to, to_len)) => Call::SendTo { parts, to, to_len },
            None => Call::Send { parts },
        };
        Ok(block.request(Step::Socket, target, send))
    }
}

// SAFETY: the destination is in the operation; the part's address is the buffer's.
unsafe impl<B: IoBuf> PlatformOp<IocpDriver> for SendTo<B> {
    type Block = Block;

    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        let part = part(self.buf.io_ptr().cast_mut(), self.buf.io_len());
        let target = driver.socket(&self.fd)?;
        let (to, to_len) = destination(&self.to);
        Ok(block.request(Step::Socket, target, Call::SendTo { parts: Parts::One(part), to, to_len }))
    }
}

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Shutdown {
    type Block = Block;

    /// Nothing is waited for, so it is done here.
    fn encode(&mut self, block: &mut Block, _: &mut IocpDriver) -> io::Result<Request> {
        let how: How = self.how;
        SockRef::from(owned(&self.fd)?).shutdown(how)?;
        Ok(block.request(Step::Socket, Target::NONE, Call::None(None)))
    }
}

// Every operation of ours lives in its slot with the buffers a program uses most.
const _: () = {
    assert!(fits_inline::<Connect, IocpDriver>());
    assert!(fits_inline::<Accept, IocpDriver>() && fits_inline::<AcceptMany, IocpDriver>());
    assert!(fits_inline::<Recv<FixedBuf>, IocpDriver>() && fits_inline::<Recv<Vec<u8>>, IocpDriver>());
    assert!(
        fits_inline::<RecvFrom<FixedBuf>, IocpDriver>() && fits_inline::<RecvFrom<Vec<u8>>, IocpDriver>()
    );
    assert!(fits_inline::<SendTo<FixedBuf>, IocpDriver>() && fits_inline::<SendTo<Vec<u8>>, IocpDriver>());
    assert!(fits_inline::<SendVectored<[FixedBuf; 2]>, IocpDriver>());
    assert!(fits_inline::<SendVectored<Rest<[FixedBuf; 2]>>, IocpDriver>());
};
#[cfg(feature = "bytes")]
const _: () = {
    assert!(
        fits_inline::<Send<bytes::Bytes>, IocpDriver>() && fits_inline::<SendTo<bytes::Bytes>, IocpDriver>()
    );
};
