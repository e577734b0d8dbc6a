//! Encodings of `io::op::net` for io_uring: one entry for each operation.
//!
//! Addresses, headers of messages and their lists of parts lie in the operation's block, in the slot, which is where the kernel reads
//! and fills them; the buffers are the operation's. Two kinds come without one: an accept that goes on (`ACCEPT_MULTI`) and receives
//! whose buffer the kernel picks from the receive ring (`RECV_MULTI`, or once by `BUFFER_SELECT`).
//!
//! A descriptor that an answer brings is of the process, or *direct*, as the operation asks: [`yields`](PlatformOp::yields) says which,
//! so that whoever decodes it owns the right thing.
#![expect(unsafe_code, reason = "shows the kernel addresses inside operations in their slots")]

use std::io;
use std::net::Shutdown as How;
use std::ptr;

use io_uring::types::DestinationSlot;
use io_uring::{opcode, squeue};
use socket2::SockAddr;

use super::{UringDriver, on_target};
use crate::io::buf::{FixedBuf, IoBuf, IoBufMut, IoBufMutVec, IoBufVec, Rest};
use crate::io::driver::address::Address;
use crate::io::driver::{Completion, PlatformOp, Yields, fits_inline};
use crate::io::op::net::{
    Accept, AcceptMany, Connect, Recv, RecvFrom, RecvMany, RecvVectored, Send, SendTo, SendVectored,
    Shutdown, Socket,
};
use crate::io::op::transfer_len;

/// Parts of one vectored call at most: Linux's `UIO_MAXIOV`.
pub(super) const PARTS_MAX: usize = 1024;

/// `IORING_RECVSEND_POLL_FIRST`: do not try before there is something.
const POLL_FIRST: u16 = 1;

/// What `sendmsg` and `recvmsg` read: a header, the parts it points to, and for a receive the address.
pub(crate) struct Message<P> {
    header: libc::msghdr,
    parts: P,
}

impl<P: Default> Default for Message<P> {
    fn default() -> Message<P> {
        // SAFETY: a `msghdr` is integers and pointers, for which zero is a value.
        Message { header: unsafe { std::mem::zeroed() }, parts: P::default() }
    }
}

/// One part of a message, or of a vectored call.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Part(libc::iovec);

impl Default for Part {
    fn default() -> Part {
        Part(libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 })
    }
}

/// The parts of a list of buffers to write from.
pub(super) fn parts_of<V: IoBufVec>(bufs: &V) -> Vec<Part> {
    let mut parts = Vec::with_capacity(bufs.io_count().min(PARTS_MAX));
    bufs.io_each(|part, len| {
        if parts.len() < PARTS_MAX {
            parts.push(Part(libc::iovec { iov_base: part.cast_mut().cast(), iov_len: len }));
        }
    });
    parts
}

/// The parts of a list of buffers to read into.
pub(super) fn parts_of_mut<V: IoBufMutVec>(bufs: &mut V) -> Vec<Part> {
    let mut parts = Vec::with_capacity(bufs.io_count().min(PARTS_MAX));
    bufs.io_each_mut(|part, len| {
        if parts.len() < PARTS_MAX {
            parts.push(Part(libc::iovec { iov_base: part.cast(), iov_len: len }));
        }
    });
    parts
}

/// The list as the kernel takes it.
pub(super) fn part_list(parts: &[Part]) -> (*const libc::iovec, u32) {
    (parts.as_ptr().cast(), u32::try_from(parts.len()).expect("at most PARTS_MAX parts"))
}

impl<P> Message<P> {
    fn set_destination(&mut self, to: &SockAddr) {
        self.header.msg_name = to.as_ptr().cast_mut().cast();
        self.header.msg_namelen = to.len();
    }
}

/// Which kind of descriptor a request makes.
fn makes(direct: bool) -> Yields {
    if direct { Yields::DirectDescriptor } else { Yields::OsDescriptor }
}

/// Where a new direct descriptor goes: wherever the table has room.
pub(super) fn destination(direct: bool) -> Option<DestinationSlot> {
    direct.then(DestinationSlot::auto_target)
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Socket {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        driver.check_direct(self.direct)?;
        // A direct descriptor is not inherited by anything, and the kernel refuses the flag for it.
        let kind = if self.direct { self.kind } else { self.kind | libc::SOCK_CLOEXEC };
        Ok(opcode::Socket::new(self.domain, kind, self.protocol).file_index(destination(self.direct)).build())
    }

    fn yields(&self) -> Yields {
        makes(self.direct)
    }
}

// SAFETY: the address is in the operation itself.
unsafe impl PlatformOp<UringDriver> for Connect {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let (to, len) = (self.to.as_ptr().cast(), self.to.len());
        Ok(on_target!(driver.target(&self.fd)?, fd => opcode::Connect::new(fd, to, len).build()))
    }
}

// SAFETY: the address and its length are in the block.
unsafe impl PlatformOp<UringDriver> for Accept {
    type Block = Address;

    fn encode(&mut self, address: &mut Address, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        driver.check_direct(self.direct)?;
        let (storage, len) = ((&raw mut address.storage).cast(), &raw mut address.len);
        let flags = if self.direct { 0 } else { libc::SOCK_CLOEXEC };
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            opcode::Accept::new(fd, storage, len).flags(flags).file_index(destination(self.direct)).build()
        }))
    }

    fn yields(&self) -> Yields {
        makes(self.direct)
    }

    fn decode(&mut self, address: &mut Address, completion: &Completion) {
        self.peer = completion.result.is_ok().then(|| address.read()).flatten();
    }
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for AcceptMany {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        driver.check_direct(self.direct)?;
        let flags = if self.direct { 0 } else { libc::SOCK_CLOEXEC };
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            opcode::AcceptMulti::new(fd).flags(flags).allocate_file_index(self.direct).build()
        }))
    }

    fn yields(&self) -> Yields {
        makes(self.direct)
    }
}

// SAFETY: the address is the buffer's, which `IoBufMut` promises does not move.
unsafe impl<B: IoBufMut> PlatformOp<UringDriver> for Recv<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let (address, len) = (self.buf.io_mut_ptr(), transfer_len(self.buf.io_capacity()));
        let ioprio = if self.waits { POLL_FIRST } else { 0 };
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            opcode::Recv::new(fd, address, len).flags(self.flags).ioprio(ioprio).build()
        }))
    }
}

// SAFETY: the entry holds no address; the buffers are the receive ring's.
unsafe impl PlatformOp<UringDriver> for RecvMany {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let group = driver.receive_group()?;
        if self.once.is_none() {
            return Ok(on_target!(driver.target(&self.fd)?, fd => opcode::RecvMulti::new(fd, group).build()));
        }
        // A length of 0 stands for that of the buffer that the kernel picks.
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            let recv = opcode::Recv::new(fd, ptr::null_mut(), 0).buf_group(group).build();
            recv.flags(squeue::Flags::BUFFER_SELECT)
        }))
    }

    fn yields(&self) -> Yields {
        Yields::Buffer
    }
}

// SAFETY: the header is in the block, the parts in a vector that the block owns, their addresses are the buffers'.
unsafe impl<V: IoBufMutVec> PlatformOp<UringDriver> for RecvVectored<V> {
    type Block = Message<Vec<Part>>;

    fn encode(&mut self, message: &mut Self::Block, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        message.parts = parts_of_mut(&mut self.bufs);
        message.header.msg_iov = message.parts.as_mut_ptr().cast();
        message.header.msg_iovlen = message.parts.len();
        let header = &raw mut message.header;
        Ok(on_target!(driver.target(&self.fd)?, fd => opcode::RecvMsg::new(fd, header).build()))
    }
}

// SAFETY: header, part and address are in the block; the part's address is the buffer's.
unsafe impl<B: IoBufMut> PlatformOp<UringDriver> for RecvFrom<B> {
    type Block = Message<(Part, Address)>;

    fn encode(&mut self, message: &mut Self::Block, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let len = transfer_len(self.buf.io_capacity()) as usize;
        message.parts.0 = Part(libc::iovec { iov_base: self.buf.io_mut_ptr().cast(), iov_len: len });
        message.header.msg_name = (&raw mut message.parts.1.storage).cast();
        message.header.msg_namelen = message.parts.1.len;
        message.header.msg_iov = (&raw mut message.parts.0).cast();
        message.header.msg_iovlen = 1;
        let header = &raw mut message.header;
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            opcode::RecvMsg::new(fd, header).flags(self.flags.cast_unsigned()).build()
        }))
    }

    fn decode(&mut self, message: &mut Self::Block, completion: &Completion) {
        if completion.result.is_ok() {
            message.parts.1.len = message.header.msg_namelen;
            self.from = message.parts.1.read();
        }
    }
}

// SAFETY: the address is the buffer's, which `IoBuf` promises does not move.
unsafe impl<B: IoBuf> PlatformOp<UringDriver> for Send<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let (address, len) = (self.buf.io_ptr(), transfer_len(self.buf.io_len()));
        let flags = self.flags | libc::MSG_NOSIGNAL;
        if self.zero_copy {
            let index = driver.fixed_index(self.buf.registration());
            return Ok(on_target!(driver.target(self.target())?, fd => {
                opcode::SendZc::new(fd, address, len).buf_index(index).flags(flags).build()
            }));
        }
        Ok(
            on_target!(driver.target(self.target())?, fd => opcode::Send::new(fd, address, len).flags(flags).build()),
        )
    }
}

// SAFETY: the header is in the block, the parts in a vector that the block owns, the destination in the operation; the
// parts' addresses are the buffers'.
unsafe impl<V: IoBufVec> PlatformOp<UringDriver> for SendVectored<V> {
    type Block = Message<Vec<Part>>;

    fn encode(&mut self, message: &mut Self::Block, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        message.parts = parts_of(&self.bufs);
        message.header.msg_iov = message.parts.as_mut_ptr().cast();
        message.header.msg_iovlen = message.parts.len();
        if let Some(to) = &self.to {
            message.set_destination(to);
        }
        let header = &raw const message.header;
        let flags = self.flags | libc::MSG_NOSIGNAL;
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            opcode::SendMsg::new(fd, header).flags(flags.cast_unsigned()).build()
        }))
    }
}

// SAFETY: header and part are in the block, the destination in the operation; the part's address is the buffer's.
unsafe impl<B: IoBuf> PlatformOp<UringDriver> for SendTo<B> {
    type Block = Message<Part>;

    fn encode(&mut self, message: &mut Self::Block, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let len = transfer_len(self.buf.io_len()) as usize;
        message.parts = Part(libc::iovec { iov_base: self.buf.io_ptr().cast_mut().cast(), iov_len: len });
        message.header.msg_iov = (&raw mut message.parts).cast();
        message.header.msg_iovlen = 1;
        message.set_destination(&self.to);
        let header = &raw const message.header;
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            opcode::SendMsg::new(fd, header).flags(libc::MSG_NOSIGNAL.cast_unsigned()).build()
        }))
    }
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Shutdown {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let how = match self.how {
            How::Read => libc::SHUT_RD,
            How::Write => libc::SHUT_WR,
            How::Both => libc::SHUT_RDWR,
        };
        Ok(on_target!(driver.target(&self.fd)?, fd => opcode::Shutdown::new(fd, how).build()))
    }
}

// Every operation of ours lives in its slot with the buffers a program uses most.
const _: () = {
    assert!(fits_inline::<Connect, UringDriver>());
    assert!(fits_inline::<Accept, UringDriver>());
    assert!(fits_inline::<Recv<FixedBuf>, UringDriver>() && fits_inline::<Recv<Vec<u8>>, UringDriver>());
    assert!(
        fits_inline::<RecvFrom<FixedBuf>, UringDriver>() && fits_inline::<RecvFrom<Vec<u8>>, UringDriver>()
    );
    assert!(fits_inline::<SendTo<FixedBuf>, UringDriver>() && fits_inline::<SendTo<Vec<u8>>, UringDriver>());
    assert!(fits_inline::<SendVectored<[FixedBuf; 2]>, UringDriver>());
    assert!(fits_inline::<SendVectored<Rest<[FixedBuf; 2]>>, UringDriver>());
};
#[cfg(feature = "bytes")]
const _: () = {
    assert!(
        fits_inline::<Send<bytes::Bytes>, UringDriver>()
            && fits_inline::<SendTo<bytes::Bytes>, UringDriver>()
    );
};
