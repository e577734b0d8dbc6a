//! What the kernel answered, and what came with the answer.
//!
//! An answer passes here in two forms. An [`Answer`] is plain data: the number or the error, whether more will follow, and what the
//! kernel calls the buffer that it picked. That is what a slot keeps, because it is copied for every operation. When it leaves the
//! slot, the backend makes of it, once, a [`Completion`], which *owns* what came along:
//!
//! ```text
//! kernel ─▶ Answer (in the slot) ──own──▶ Completion { result, resource }  ─▶ into_output, or abandon
//!                                              descriptor: closed if nobody takes it
//!                                              buffer: back to the receive ring
//! ```
//!
//! So a descriptor or a buffer that came for a future that is gone has an owner like any other, and is dropped like any other.

use std::io;

use super::descriptor::Descriptor;
use crate::io::buf::FixedBuf;

/// One answer of the kernel's as its slot keeps it: plain data, small because every operation passes it on. What came with it
/// is the slot's until [`Driver::own`](super::Driver::own) makes of it, once, the [`Completion`] that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// What the call would have returned, or the system's code of what went wrong.
    pub(crate) result: Result<u32, i32>,
    /// As [`Completion::more`].
    pub(crate) more: bool,
    /// As [`Completion::drained`].
    pub(crate) drained: bool,
    /// What the backend calls the buffer that came along, if one did.
    pub(crate) buffer: Option<u16>,
}

impl Answer {
    /// The terminal answer of an operation that was removed before the kernel saw it.
    pub(crate) fn cancelled() -> Answer {
        Answer { result: Err(crate::os::error::CANCELLED), more: false, drained: false, buffer: None }
    }

    /// The answer, and what came with it.
    pub(crate) fn with(self, resource: Resource) -> Completion {
        let Answer { result, more, drained, .. } = self;
        Completion { result: result.map_err(io::Error::from_raw_os_error), more, drained, resource }
    }
}

/// One answer of the kernel's to one operation. It owns what came with it.
#[derive(Debug)]
pub struct Completion {
    /// What the call would have returned: usually a number of bytes.
    pub result: io::Result<u32>,
    /// Whether more answers to the same operation will follow. Only one without `more` frees the operation's slot.
    pub more: bool,
    /// Whether the system says that this was all there is for now: the next receive will have to wait.
    pub drained: bool,
    /// The buffer or descriptor that the kernel gave. Dropping it returns or closes it.
    pub resource: Resource,
}

/// What a completion can bring besides a number. It has an owner from the moment the completion is decoded.
#[derive(Debug)]
pub enum Resource {
    /// Nothing.
    None,
    /// A buffer that the kernel picked from the receive ring, holding the bytes received.
    Buffer(FixedBuf),
    /// A descriptor that the kernel made.
    Descriptor(Descriptor),
}

impl Completion {
    /// A terminal answer that the kernel did not give: the operation never reached it.
    pub(crate) fn failed(error: io::Error) -> Completion {
        Completion { result: Err(error), more: false, drained: false, resource: Resource::None }
    }

    /// The answer as a count of bytes.
    pub(crate) fn into_bytes(self) -> io::Result<usize> {
        self.result.map(|bytes| bytes as usize)
    }

    /// The answer where only success matters.
    pub(crate) fn into_unit(self) -> io::Result<()> {
        self.result.map(drop)
    }

    /// The descriptor of a successful accept, open or socket.
    pub(crate) fn into_descriptor(self) -> io::Result<Descriptor> {
        self.result?;
        match self.resource {
            Resource::Descriptor(descriptor) => Ok(descriptor),
            Resource::None | Resource::Buffer(_) => {
                panic!("the backend owns a descriptor when it decodes one")
            }
        }
    }
}

/// Which kind of resource a backend must make of a successful answer's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yields {
    /// The number is a number.
    Number,
    /// The number counts bytes in a buffer of the receive ring; 0 may come without one.
    Buffer,
    /// The number is a descriptor of the process, newly made for us.
    OsDescriptor,
    /// The number is an index in the ring's table of direct descriptors, newly filled.
    DirectDescriptor,
}
