//! An open thing of the kernel's, and who closes it.
//!
//! Every descriptor has one owner from the moment a completion is decoded. The last owner to go closes it: an
//! [`Descriptor::Os`] by closing its file descriptor, a [`Descriptor::Direct`] by putting its index on the list of the
//! ring it belongs to, which closes it with its next kernel entry. Operations own a counted reference
//! ([`SharedDescriptor`]), so a number is never closed, and never reused by the kernel for something else, while an
//! operation that names it is in flight.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::rc::Rc;

use crate::os::{self, BorrowedDescriptor, OwnedDescriptor, RawDescriptor};

/// An open file or socket.
#[derive(Debug)]
pub enum Descriptor {
    /// A descriptor of the process, as std and every other library understand it.
    Os(OwnedDescriptor),
    /// An index in the table of one worker's ring: cheaper for the kernel to look up, and meaningless elsewhere.
    Direct(DirectDescriptor),
}

/// How operations hold a descriptor.
pub type SharedDescriptor = Rc<Descriptor>;

impl Descriptor {
    /// The descriptor of the process.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a direct descriptor, which no call outside the ring can name.
    pub fn as_os(&self) -> io::Result<BorrowedDescriptor<'_>> {
        match self {
            Descriptor::Os(fd) => Ok(os::lend(fd)),
            Descriptor::Direct(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a direct descriptor belongs to its ring and has no descriptor of the process",
            )),
        }
    }
}

/// A descriptor as dumps name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorName {
    /// A descriptor of the process, by its number.
    Os(RawDescriptor),
    /// An index in the table of the worker's ring.
    Direct(u32),
}

impl fmt::Display for DescriptorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DescriptorName::Os(fd) => write!(f, "descriptor {fd}"),
            DescriptorName::Direct(index) => write!(f, "direct descriptor {index}"),
        }
    }
}

impl Descriptor {
    /// What dumps call it.
    pub(crate) fn name(&self) -> DescriptorName {
        match self {
            Descriptor::Os(fd) => DescriptorName::Os(os::raw(fd)),
            Descriptor::Direct(direct) => DescriptorName::Direct(direct.index),
        }
    }

    /// Lets the owner go without closing: the kernel has closed it, by a close operation.
    pub(crate) fn closed_by_kernel(self) {
        match self {
            Descriptor::Os(fd) => os::forget(fd),
            Descriptor::Direct(mut direct) => direct.open = false,
        }
    }
}

/// One index in a ring's table of direct descriptors. Dropping it closes it there.
pub struct DirectDescriptor {
    index: u32,
    open: bool,
    table: Rc<DirectTable>,
}

impl DirectDescriptor {
    pub(crate) fn new(index: u32, table: Rc<DirectTable>) -> DirectDescriptor {
        DirectDescriptor { index, open: true, table }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Whether `table` is the one that the index counts in.
    pub(crate) fn belongs_to(&self, table: &Rc<DirectTable>) -> bool {
        Rc::ptr_eq(&self.table, table)
    }
}

impl Drop for DirectDescriptor {
    fn drop(&mut self) {
        if self.open {
            self.table.closing.borrow_mut().push(self.index);
        }
    }
}

impl fmt::Debug for DirectDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirectDescriptor").field(&self.index).finish()
    }
}

/// What direct descriptors know of their ring: the list of those to close.
#[derive(Debug, Default)]
pub(crate) struct DirectTable {
    closing: RefCell<Vec<u32>>,
}

impl DirectTable {
    /// An index whose owner is gone and that is still open.
    pub(crate) fn pop_closing(&self) -> Option<u32> {
        self.closing.borrow_mut().pop()
    }

    /// Whether indices wait to be closed.
    pub(crate) fn has_closing(&self) -> bool {
        !self.closing.borrow().is_empty()
    }
}
