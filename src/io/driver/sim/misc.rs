//! Encodings of `io::op::misc` for the simulation.
#![expect(unsafe_code, reason = "an encoding is a promise about addresses")]

use std::io;

use super::{Request, SimDriver};
use crate::io::driver::{Completion, PlatformOp};
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
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut SimDriver) -> io::Result<Request> {
        let descriptor = self.descriptor.as_ref().expect("a close is encoded once");
        Ok(Request::Close { index: driver.index(descriptor)? })
    }

    /// One that was cancelled never ran: the descriptor is still ours, and the operation's drop closes it.
    fn decode(&mut self, (): &mut (), completion: &Completion) {
        let never_ran = completion.result.as_ref().is_err_and(is_cancelled);
        if !never_ran && let Some(descriptor) = self.descriptor.take() {
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
