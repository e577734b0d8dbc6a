//! Encodings of `io::op::misc` for the simulation.
#![expect(unsafe_code, reason = "an encoding is a promise about addresses")]

use std::io;
use std::mem::ManuallyDrop;

use super::{Request, SimDriver};
use crate::io::driver::{Completion, Descriptor, PlatformOp};
use crate::io::op::misc::{Cancel, Close, Nop, Poll};
use crate::io::stash::is_cancelled;

// SAFETY: the request holds no address.
unsafe impl PlatformOp<SimDriver> for Nop {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut SimDriver) -> io::Result<Request> {
        Ok(Request::Nop)
    }
}

// SAFETY: there is no request.
unsafe impl PlatformOp<SimDriver> for Poll {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut SimDriver) -> io::Result<Request> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

// SAFETY: the request holds no address.
unsafe impl PlatformOp<SimDriver> for Close {
    /// The descriptor, once the kernel has the request. Dropped undecoded, because nobody asked and the driver has ended, it must
    /// not be closed: the kernel has done that, and the number may be somebody else's by now.
    type Block = Option<ManuallyDrop<Descriptor>>;

    fn encode(&mut self, block: &mut Self::Block, driver: &mut SimDriver) -> io::Result<Request> {
        let descriptor = self.descriptor.as_ref().expect("a close is encoded once");
        let index = driver.index(descriptor)?;
        *block = self.descriptor.take().map(ManuallyDrop::new);
        Ok(Request::Close { index })
    }

    fn decode(&mut self, block: &mut Self::Block, completion: &Completion) {
        let Some(descriptor) = block.take().map(ManuallyDrop::into_inner) else { return };
        if completion.result.as_ref().is_err_and(is_cancelled) {
            self.descriptor = Some(descriptor); // It never ran: the operation's drop closes it.
        } else {
            descriptor.closed_by_kernel();
        }
    }
}

// SAFETY: the request holds no address.
unsafe impl PlatformOp<SimDriver> for Cancel {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut SimDriver) -> io::Result<Request> {
        Ok(Request::Cancel { target: self.target })
    }
}
