//! Windows' own calls.

mod descriptor;
pub(crate) mod error;
pub(crate) mod message;

pub(crate) use descriptor::{AttachedTo, forget, lend, raw};
pub use descriptor::{BorrowedDescriptor, OwnedDescriptor, RawDescriptor};
