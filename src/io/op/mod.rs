//! Every operation, declared once, whatever the platform.
//!
//! An operation is a struct with what it needs (descriptor, buffer, address) and its
//! [`OpLifecycle`](crate::io::driver::OpLifecycle), which says what becomes of the kernel's answer. How a kernel is asked is
//! not said here: each backend has a file of the same name with the encodings, in the same order. Programs meet these
//! types in the names of futures: a [`File::read_at`](crate::fs::File::read_at) is an [`Op<fs::ReadAt<B>>`](Op).
//!
//! Lengths: a kernel transfers at most 2,147,479,552 bytes at a time (Linux's `MAX_RW_COUNT`), so a longer buffer is
//! read or written in part, as with std.
#![expect(unsafe_code, reason = "a completed read says how many bytes of a buffer the kernel initialised")]

pub mod fs;
pub mod misc;
pub mod net;

use crate::io::buf::{BufResult, FixedBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Completion, DriverHandle, Op, Operation};

/// The most bytes one operation transfers: what Linux calls `MAX_RW_COUNT`, 2^31 less a page.
pub(crate) const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;

/// The length of a transfer of at most `len` bytes, as kernels take it.
#[expect(clippy::cast_possible_truncation, reason = "bounded by TRANSFER_BYTES_MAX, which fits")]
pub(crate) fn transfer_len(len: usize) -> u32 {
    len.min(TRANSFER_BYTES_MAX) as u32
}

/// Gives a buffer back with what was read into it.
#[inline]
pub(crate) fn filled<B: IoBufMut>(mut buf: B, completion: Completion) -> BufResult<usize, B> {
    let result = completion.into_bytes();
    if let Ok(read) = result {
        assert!(read <= buf.io_capacity(), "the kernel wrote past the buffer it was given");
        // SAFETY: the operation gave the kernel this buffer from its start, and its completion says that the first
        // `read` bytes were written. The completion was terminal, so the kernel no longer writes.
        unsafe { buf.io_set_len(read) };
    }
    (result, buf)
}

/// Gives buffers back with what was read into them, in order.
pub(crate) fn filled_vec<V: IoBufMutVec>(mut bufs: V, completion: Completion) -> BufResult<usize, V> {
    let result = completion.into_bytes();
    if let Ok(read) = result {
        // SAFETY: the operation gave the kernel these buffers, each from its start, in order; its terminal completion
        // says that it filled the first `read` bytes of them.
        unsafe { bufs.io_set_total_len(read) };
    }
    (result, bufs)
}

/// A copy of the first `bytes` of what was read into `bufs`: for an answer that nobody waits for any more. It is on account of the
/// worker's pool, which counts it, and overwrites it in the end if it does that.
pub(crate) fn copy_of<V: IoBufVec>(bufs: &V, bytes: usize) -> FixedBuf {
    let driver = DriverHandle::try_current();
    let mut copy = driver.map_or_else(|| FixedBuf::heap(bytes), |driver| driver.heap(bytes));
    bufs.io_each(|part, len| {
        let wanted = len.min(copy.capacity() - copy.len());
        // SAFETY: `IoBufVec` promises `len` initialised bytes at `part`, that nobody else writes while `bufs` is borrowed;
        // the kernel is done with them, since the operation's terminal completion is in.
        copy.extend_from_slice(unsafe { std::slice::from_raw_parts(part, wanted) });
    });
    copy
}

/// Starts an operation on the driver of the worker that runs on this thread.
#[track_caller]
pub(crate) fn start<T: Operation>(operation: T) -> Op<T> {
    Op::here(operation)
}

/// Declares that types are operations; nothing outside this crate can.
macro_rules! seal {
    ($($name:ident $(<$generic:ident: $bound:path>)?),+ $(,)?) => {
        $(impl$(<$generic: $bound>)? crate::io::driver::sealed::Sealed for $name$(<$generic>)? {})+
    };
}
pub(crate) use seal;
