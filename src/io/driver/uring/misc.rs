//! Encodings of `io::op::misc` for io_uring.
#![expect(unsafe_code, reason = "shows the kernel addresses inside operations in their slots")]

use std::io;

use io_uring::{opcode, squeue};

use super::{UringDriver, on_target};
use crate::io::driver::{Completion, PlatformOp};
use crate::io::op::misc::{Cancel, Close, Nop, Poll};
use crate::io::stash::is_cancelled;

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Nop {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut UringDriver) -> io::Result<squeue::Entry> {
        Ok(opcode::Nop::new().build())
    }
}

/// What [`Poll`] waits for; an error or a hang-up ends the wait in any case.
const READABLE: u32 = libc::POLLIN.cast_unsigned() as u32;

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Poll {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        Ok(on_target!(driver.target(&self.fd)?, fd => opcode::PollAdd::new(fd, READABLE).build()))
    }
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Close {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let descriptor = self.descriptor.as_ref().expect("a close is encoded once");
        Ok(on_target!(driver.target(descriptor)?, fd => opcode::Close::new(fd).build()))
    }

    /// The kernel closes a descriptor whatever it answers, unless the request was cancelled before it ran. Then it is
    /// still ours, and the operation's drop closes it.
    fn decode(&mut self, (): &mut (), completion: &Completion) {
        let never_ran = completion.result.as_ref().is_err_and(is_cancelled);
        if !never_ran && let Some(descriptor) = self.descriptor.take() {
            descriptor.closed_by_kernel();
        }
    }
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Cancel {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut UringDriver) -> io::Result<squeue::Entry> {
        Ok(opcode::AsyncCancel::new(self.target.to_user_data()).build())
    }
}
