//! A deadline for one operation, which gives the buffer back.
//!
//! [`timeout`](super::timeout()) drops what takes too long, and with it the buffer that an operation owns. A [`Deadline`] asks
//! the kernel to cancel the operation instead, and goes on waiting for the answer: the operation ends either way, with
//! its result or with `TimedOut`, and with its buffer. The same on every backend: the worker's wheel, then a cancellation.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::instant::nanoseconds;
use crate::io::driver::{Op, Operation};
use crate::runtime::timer::Timer;

/// An operation that is cancelled when its time is up. Made by [`Op::deadline`].
#[must_use = "an operation does nothing until it is awaited"]
#[derive(Debug)]
pub struct Deadline<T: Operation> {
    op: Op<T>,
    /// `None` once it has passed.
    timer: Option<Timer>,
}

impl<T: Operation> Op<T> {
    /// Gives the operation so long from its first poll. If it has not ended then, it is cancelled, and ends with
    /// `TimedOut` and its buffer, or with what it achieved if the kernel was faster. A kernel that cannot interrupt an
    /// operation (a read from a disk that is under way) is waited for.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
    /// let file = veloq::fs::File::open("/etc/hostname").await?;
    /// let (read, buf) = file.read_at(veloq::alloc(4096), 0).deadline(Duration::from_secs(1)).await;
    /// assert_eq!(read?, buf.len());
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn deadline(self, limit: Duration) -> Deadline<T> {
        Deadline { op: self, timer: Some(Timer::after(nanoseconds(limit))) }
    }
}

impl<T: Operation> Future for Deadline<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = &mut *self;
        if let Poll::Ready(output) = Pin::new(&mut this.op).poll(cx) {
            return Poll::Ready(output);
        }
        let timer_passed = this.timer.as_mut().is_some_and(|timer| timer.poll(cx).is_ready());
        if timer_passed {
            this.timer = None;
            this.op.time_out();
            // One that was still in the backlog is answered already.
            return Pin::new(&mut this.op).poll(cx);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;
    use std::time::Duration;

    use crate::io::driver::Descriptor;
    use crate::io::op::misc::Poll;
    use crate::io::op::net::Recv;
    use crate::io::op::start;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let theirs = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        (listener.accept().expect("it was connected").0, theirs)
    }

    /// An operation that never ends must come back with its buffer; without the cancellation this test would hang.
    #[veloq::test]
    async fn a_receive_that_takes_too_long_gives_its_buffer_back() {
        let (ours, _theirs) = pair();
        let fd = Rc::new(Descriptor::Os(ours.into()));
        let kept = |_, _| panic!("nobody abandons it");
        let recv = Recv { fd, buf: Vec::with_capacity(77), flags: 0, waits: false, stash: None, kept };
        let (received, buf) = start(recv).deadline(Duration::from_millis(5)).await;
        assert_eq!(received.expect_err("nothing was sent").kind(), io::ErrorKind::TimedOut);
        assert_eq!(buf.capacity(), 77);
    }

    /// An answer that comes in time must not be touched.
    #[veloq::test]
    async fn an_operation_that_is_in_time_keeps_its_result() {
        let (ours, mut theirs) = pair();
        io::Write::write_all(&mut theirs, b"x").expect("there is room");
        let fd = Rc::new(Descriptor::Os(ours.into()));
        let ready = start(Poll { fd }).deadline(Duration::from_secs(100)).await;
        ready.expect("a byte is there");
    }
}
