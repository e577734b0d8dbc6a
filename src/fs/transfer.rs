//! A read or a write of a file, as a future.
//!
//! A [`Transfer`] is an [`Op`], or the refusal of one: what Veloq can see to be wrong (an offset that the kernel would not
//! take, a buffer that Direct I/O cannot use) ends it at its first poll, with the buffer, and nothing is submitted. It is
//! `'static` and has a name, so that a struct can hold it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::io::driver::{Completion, Op, Operation};
use crate::io::op;

/// The future of [`File::read_at`](super::File::read_at).
pub type ReadAt<B> = Transfer<op::fs::ReadAt<B>>;
/// The future of [`File::write_at`](super::File::write_at).
pub type WriteAt<B> = Transfer<op::fs::WriteAt<B>>;
/// The future of [`File::read_vectored_at`](super::File::read_vectored_at).
pub type ReadVectoredAt<V> = Transfer<op::fs::ReadVectoredAt<V>>;
/// The future of [`File::write_vectored_at`](super::File::write_vectored_at).
pub type WriteVectoredAt<V> = Transfer<op::fs::WriteVectoredAt<V>>;

/// A read or a write of a file. It is submitted when first polled, and yields a
/// [`BufResult`](crate::io::buf::BufResult).
///
/// Dropping it asks the kernel to cancel the transfer, which may have happened all the same. The buffer returns to where
/// it came from when the kernel is done with it; to keep it, await the transfer.
#[must_use = "a transfer does nothing until it is awaited"]
#[derive(Debug)]
pub struct Transfer<T: Operation>(State<T>);

#[derive(Debug)]
enum State<T: Operation> {
    /// Will be, or was, submitted.
    Op(Op<T>),
    /// Will not be submitted; empty when that has been told.
    Refused(Option<(T, io::Error)>),
}

// An `Op` is `Unpin`, and a refused operation is plain data.
impl<T: Operation> Unpin for Transfer<T> {}

impl<T: Operation> Transfer<T> {
    /// The operation on the driver of the worker that runs on this thread, or its refusal.
    #[track_caller]
    pub(super) fn new(operation: T, refusal: Option<io::Error>) -> Transfer<T> {
        Transfer(match refusal {
            None => State::Op(op::start(operation)),
            Some(error) => State::Refused(Some((operation, error))),
        })
    }
}

impl<T: Operation> Future for Transfer<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        match &mut self.0 {
            State::Op(op) => Pin::new(op).poll(cx),
            State::Refused(refusal) => {
                let (operation, error) =
                    refusal.take().expect("a `Transfer` is not polled after it was ready");
                Poll::Ready(operation.into_output(Completion::failed(error)))
            }
        }
    }
}
