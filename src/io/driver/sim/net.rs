//! Encodings of `io::op::net` for the simulation: streams; datagrams are not simulated.
#![expect(unsafe_code, reason = "gives the simulated kernel addresses inside operations in their slots")]

use std::io;
use std::net::SocketAddr;

use super::{Lent, Request, SimDriver};
use crate::io::buf::{IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Completion, PlatformOp, Yields};
use crate::io::op::net::{
    Accept, AcceptMany, Connect, Recv, RecvFrom, RecvMany, RecvVectored, Send, SendTo, SendVectored,
    Shutdown, Socket,
};

/// The memory of a buffer to receive into.
fn room<B: IoBufMut>(buf: &mut B) -> Lent {
    let (initialised, len) = (buf.io_len(), buf.io_capacity());
    Lent::new(buf.io_mut_ptr(), initialised, len)
}

/// The memory of what is to be sent, which is only read.
fn content(base: *const u8, len: usize) -> Lent {
    Lent::new(base.cast_mut(), len, len)
}

// SAFETY: the request holds no address.
unsafe impl PlatformOp<SimDriver> for Socket {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut SimDriver) -> io::Result<Request> {
        let stream = self.kind & 0xf == libc::SOCK_STREAM;
        if stream { Ok(Request::Socket) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn yields(&self) -> Yields {
        Yields::DirectDescriptor
    }
}

// SAFETY: the request holds no address.
unsafe impl PlatformOp<SimDriver> for Connect {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        let to = self.to.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Request::Connect { socket: driver.target(&self.fd)?, port: to.port() })
    }
}

// SAFETY: the address is the block's.
unsafe impl PlatformOp<SimDriver> for Accept {
    type Block = Option<SocketAddr>;

    fn encode(&mut self, peer: &mut Self::Block, driver: &mut SimDriver) -> io::Result<Request> {
        Ok(Request::Accept { socket: driver.target(&self.fd)?, peer })
    }

    fn yields(&self) -> Yields {
        Yields::DirectDescriptor
    }

    fn decode(&mut self, peer: &mut Self::Block, completion: &Completion) {
        self.peer = completion.result.is_ok().then(|| peer.take()).flatten();
    }
}

// SAFETY: the request holds no address.
unsafe impl PlatformOp<SimDriver> for AcceptMany {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        Ok(Request::AcceptMany { socket: driver.target(&self.fd)? })
    }

    fn yields(&self) -> Yields {
        Yields::DirectDescriptor
    }
}

// SAFETY: the address is the buffer's, which `IoBufMut` promises does not move.
unsafe impl<B: IoBufMut> PlatformOp<SimDriver> for Recv<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        Ok(Request::Recv { socket: driver.target(&self.fd)?, into: vec![room(&mut self.buf)] })
    }
}

// SAFETY: the request holds no address; the buffers are the driver's.
unsafe impl PlatformOp<SimDriver> for RecvMany {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        Ok(Request::RecvMany { socket: driver.target(&self.fd)?, once: self.once.is_some() })
    }

    fn yields(&self) -> Yields {
        Yields::Buffer
    }
}

// SAFETY: the addresses are the buffers', which `IoBufMutVec` promises do not move.
unsafe impl<V: IoBufMutVec> PlatformOp<SimDriver> for RecvVectored<V> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        let mut initialised = Vec::with_capacity(self.bufs.io_count());
        self.bufs.io_each(|_, len| initialised.push(len));
        let mut initialised = initialised.into_iter();
        let mut into = Vec::with_capacity(initialised.len());
        self.bufs.io_each_mut(|base, len| {
            into.push(Lent::new(base, initialised.next().unwrap_or(0), len));
        });
        Ok(Request::Recv { socket: driver.target(&self.fd)?, into })
    }
}

// SAFETY: there is no request.
unsafe impl<B: IoBufMut> PlatformOp<SimDriver> for RecvFrom<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut SimDriver) -> io::Result<Request> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

// SAFETY: the address is the buffer's, which `IoBuf` promises does not move.
unsafe impl<B: IoBuf> PlatformOp<SimDriver> for Send<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        let from = vec![content(self.buf.io_ptr(), self.buf.io_len())];
        Ok(Request::Send { socket: driver.target(self.target())?, from, zero_copy: self.zero_copy })
    }
}

// SAFETY: the addresses are the buffers', which `IoBufVec` promises do not move.
unsafe impl<V: IoBufVec> PlatformOp<SimDriver> for SendVectored<V> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        if self.to.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut from = Vec::with_capacity(self.bufs.io_count());
        self.bufs.io_each(|base, len| from.push(content(base, len)));
        Ok(Request::Send { socket: driver.target(&self.fd)?, from, zero_copy: false })
    }
}

// SAFETY: there is no request.
unsafe impl<B: IoBuf> PlatformOp<SimDriver> for SendTo<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut SimDriver) -> io::Result<Request> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

// SAFETY: the request holds no address.
unsafe impl PlatformOp<SimDriver> for Shutdown {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        Ok(Request::Shutdown { socket: driver.target(&self.fd)?, how: self.how })
    }
}
