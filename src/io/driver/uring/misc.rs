//! Encodings of `io::op::misc` for io_uring.
#![expect(unsafe_code, reason = "shows the kernel addresses inside operations in their slots")]

use std::io;
use std::mem::ManuallyDrop;

use io_uring::{opcode, squeue};

use super::{UringDriver, on_target};
use crate::io::driver::{Completion, Descriptor, PlatformOp};
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
    /// The descriptor, once the kernel has the request. Dropped undecoded, because nobody asked and the driver has ended, it must
    /// not be closed: the kernel has done that, and the number may be somebody else's by now.
    type Block = Option<ManuallyDrop<Descriptor>>;

    fn encode(&mut self, block: &mut Self::Block, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let descriptor = self.descriptor.as_ref().expect("a close is encoded once");
        let entry = on_target!(driver.target(descriptor)?, fd => opcode::Close::new(fd).build());
        *block = self.descriptor.take().map(ManuallyDrop::new);
        Ok(entry)
    }

    /// The kernel closes a descriptor whatever it answers, unless the request was cancelled before it ran.
    fn decode(&mut self, block: &mut Self::Block, completion: &Completion) {
        let Some(descriptor) = block.take().map(ManuallyDrop::into_inner) else { return };
        if completion.result.as_ref().is_err_and(is_cancelled) {
            self.descriptor = Some(descriptor); // It never ran: the operation's drop closes it.
        } else {
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
