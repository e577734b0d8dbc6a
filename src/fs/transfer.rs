//! Reads and writes of a file, as futures with names.
//!
//! Each is an [`Op`]: submitted when first polled, `'static`, so that a struct can hold it. What Veloq can see to be wrong
//! (an offset that the kernel would not take, a buffer that Direct I/O cannot use) ends it at its first poll, with the
//! buffer, and nothing is submitted.

use crate::io::driver::{Op, Operation};
use crate::io::op;

/// The future of [`File::read_at`](super::File::read_at).
pub type ReadAt<B> = Op<op::fs::ReadAt<B>>;
/// The future of [`File::write_at`](super::File::write_at).
pub type WriteAt<B> = Op<op::fs::WriteAt<B>>;
/// The future of [`File::read_vectored_at`](super::File::read_vectored_at).
pub type ReadVectoredAt<V> = Op<op::fs::ReadVectoredAt<V>>;
/// The future of [`File::write_vectored_at`](super::File::write_vectored_at).
pub type WriteVectoredAt<V> = Op<op::fs::WriteVectoredAt<V>>;

/// The operation on the driver of the worker that runs on this thread, or its refusal.
#[track_caller]
pub(super) fn transfer<T: Operation>(operation: T, refusal: Option<std::io::Error>) -> Op<T> {
    match refusal {
        None => Op::here(operation),
        Some(error) => Op::refused(operation, error),
    }
}
