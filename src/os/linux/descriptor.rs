//! Open things of the kernel's: on Linux what std calls them.

pub(crate) use std::os::fd::{
    BorrowedFd as BorrowedDescriptor, OwnedFd as OwnedDescriptor, RawFd as RawDescriptor,
};

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

/// The descriptor, lent.
pub(crate) fn lend(descriptor: &OwnedDescriptor) -> BorrowedDescriptor<'_> {
    descriptor.as_fd()
}

/// The number, for dumps.
pub(crate) fn raw(descriptor: &OwnedDescriptor) -> RawDescriptor {
    descriptor.as_raw_fd()
}

/// Another number for the same open thing.
///
/// # Errors
///
/// The limit on descriptors.
pub(crate) fn duplicate(descriptor: BorrowedDescriptor<'_>) -> io::Result<OwnedDescriptor> {
    descriptor.try_clone_to_owned()
}

/// Lets the owner go without closing: the kernel has closed it.
pub(crate) fn forget(descriptor: OwnedDescriptor) {
    let _closed = descriptor.into_raw_fd();
}
