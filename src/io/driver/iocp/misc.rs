//! Encodings of `io::op::misc` for completion ports.
#![expect(unsafe_code, reason = "shows the kernel addresses inside operations in their slots")]

use std::io;
use std::ptr;

use windows_sys::Win32::Networking::WinSock::WSABUF;

use super::{Block, Call, Done, IocpDriver, Parts, Request, Step, Target, Work};
use crate::io::driver::{Descriptor, PlatformOp};
use crate::io::op::misc::{Cancel, Close, Nop, Poll};
use crate::os;

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Nop {
    type Block = Block;

    fn encode(&mut self, block: &mut Block, _: &mut IocpDriver) -> io::Result<Request> {
        Ok(block.request(Step::Socket, Target::NONE, Call::Post))
    }
}

// SAFETY: the request holds the block's address only: the kernel is given no byte to write to.
unsafe impl PlatformOp<IocpDriver> for Poll {
    type Block = Block;

    /// A receive of nothing, which is answered when there is something. Of a datagram it would take something away.
    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        let nothing = WSABUF { len: 0, buf: ptr::null_mut() };
        let receive = Call::Receive { parts: Parts::One(nothing), flags: 0 };
        Ok(block.request(Step::Socket, driver.socket(&self.fd)?, receive))
    }
}

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Close {
    type Block = Block<Work>;

    /// A socket is closed at once; closing a file may wait for whoever looks at what was written.
    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        match self.descriptor.take().expect("a close is encoded once") {
            Descriptor::Os(descriptor) if matches!(os::raw(&descriptor), os::RawDescriptor::Handle(_)) => {
                block.job(driver, "closing a file", move || {
                    drop(descriptor);
                    Ok(Done::Number(0))
                })
            }
            descriptor => {
                drop(descriptor);
                Ok(block.request(Step::Socket, Target::NONE, Call::None(None)))
            }
        }
    }
}

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Cancel {
    type Block = Block;

    fn encode(&mut self, block: &mut Block, driver: &mut IocpDriver) -> io::Result<Request> {
        driver.stop(self.target)?;
        Ok(block.request(Step::Socket, Target::NONE, Call::None(None)))
    }
}
