//! What a socket has received and nobody has taken yet.
//!
//! A receive whose future was dropped may still complete: its bytes left the kernel and must not be lost. The operation
//! holds its socket's stash and puts them here when its answer comes; the next receive on the socket takes them first.
//! So that the order of the stream holds, only one plain receive may be with the driver at a time: the stash knows
//! whether one is ([`Stash::receive_begins`], [`Stash::receive_ended`]), and who waits for its end.
//!
//! **One reader at a time.** Two tasks that read one stream would each get pieces of it, so a future that reads holds the
//! socket's [`Reader`] from its first poll until it is ready or dropped; a second one gets a [`ReaderBusy`].
//!
//! A stream's stash holds [`FixedBuf`]s, never buffers of the receive ring: those are few, and what waits here may wait
//! for long. A datagram socket's holds [`Datagram`]s. An error that a dropped receive got is kept too, and reported once.
#![expect(unsafe_code, reason = "moves stashed bytes into buffers that are known by address only")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::buf::{FixedBuf, IoBufMut, IoBufMutVec};
use super::driver::waiter::Waiter;
use crate::os::error;

/// What was received, in order, and whether a plain receive is with the driver.
#[derive(Debug)]
pub(crate) struct Stash<T = FixedBuf> {
    chunks: RefCell<VecDeque<io::Result<T>>>,
    receiving: Cell<bool>,
    drained: Cell<bool>,
    waiter: RefCell<Option<Waiter>>,
    has_reader: Cell<bool>,
}

/// One future's claim to be the socket's reader. It ends with the value.
#[derive(Debug)]
pub(crate) struct Reader<T = FixedBuf> {
    stash: Rc<Stash<T>>,
    holds: bool,
}

/// Another task is receiving from the socket just now.
///
/// The source of the [`io::Error`] of kind `ResourceBusy` that a second reader gets.
///
/// ```
/// # fn read() -> std::io::Result<()> { Ok(()) }
/// use veloq::net::ReaderBusy;
///
/// if let Err(error) = read()
///     && error.get_ref().is_some_and(|source| source.is::<ReaderBusy>())
/// {
///     panic!("two tasks read one stream: which of them gets what is left to chance");
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderBusy;

impl fmt::Display for ReaderBusy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another task is receiving from this socket; one reader at a time")
    }
}

impl Error for ReaderBusy {}

impl<T> Reader<T> {
    /// A claim that has not been made yet.
    pub(crate) fn new(stash: &Rc<Stash<T>>) -> Reader<T> {
        Reader { stash: Rc::clone(stash), holds: false }
    }

    /// Makes the claim, unless it is made already.
    ///
    /// # Errors
    ///
    /// [`ReaderBusy`] if somebody else has.
    pub(crate) fn claim(&mut self) -> io::Result<()> {
        if !self.holds {
            if self.stash.has_reader.replace(true) {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, ReaderBusy));
            }
            self.holds = true;
        }
        Ok(())
    }

    /// Gives the claim up.
    pub(crate) fn release(&mut self) {
        if std::mem::take(&mut self.holds) {
            self.stash.has_reader.set(false);
        }
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.release();
    }
}

/// One message, and who sent it.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) bytes: FixedBuf,
    pub(crate) from: Option<SocketAddr>,
}

impl<T> Default for Stash<T> {
    fn default() -> Stash<T> {
        Stash {
            chunks: RefCell::new(VecDeque::new()),
            receiving: Cell::new(false),
            drained: Cell::new(false),
            waiter: RefCell::new(None),
            has_reader: Cell::new(false),
        }
    }
}

impl<T> Stash<T> {
    /// Notes that a plain receive goes to the driver.
    pub(crate) fn receive_begins(&self) {
        assert!(
            !self.receiving.replace(true),
            "one plain receive at a time, so that the stream stays in order"
        );
    }

    /// Notes that the plain receive is over, and tells who waited for that.
    pub(crate) fn receive_ended(&self) {
        self.receiving.set(false);
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Notes whether the receive that is over took all that was there.
    pub(crate) fn set_drained(&self, drained: bool) {
        self.drained.set(drained);
    }

    /// Whether the last receive took all that was there.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained.get()
    }

    /// Waits until no plain receive is with the driver.
    pub(crate) fn poll_quiet(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.receiving.get() {
            return Poll::Ready(());
        }
        // Cloning a waker and dropping one are foreign code, so nothing is borrowed meanwhile, and what it may have changed is
        // looked at again.
        let waiter = Waiter::of(cx);
        if !self.receiving.get() {
            return Poll::Ready(());
        }
        let before = self.waiter.borrow_mut().replace(waiter);
        drop(before);
        Poll::Pending
    }

    /// Puts something at the end of what waits.
    pub(crate) fn push(&self, chunk: io::Result<T>) {
        self.chunks.borrow_mut().push_back(chunk);
    }

    /// Keeps the error of an abandoned receive. That it was cancelled, or that nothing was there, is not worth keeping.
    pub(crate) fn keep_error(&self, error: io::Error) {
        if !is_stopped(&error) && error.kind() != io::ErrorKind::WouldBlock {
            self.push(Err(error));
        }
    }

    /// Takes what came first.
    pub(crate) fn pop(&self) -> Option<io::Result<T>> {
        self.chunks.borrow_mut().pop_front()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.borrow().is_empty()
    }

    /// Whether a future reads, or waits to.
    pub(crate) fn has_reader(&self) -> bool {
        self.has_reader.get()
    }

    /// Takes the first error that waits, past whatever waits before it.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        let mut chunks = self.chunks.borrow_mut();
        let at = chunks.iter().position(Result::is_err)?;
        chunks.remove(at)?.err()
    }
}

impl Stash<Datagram> {
    /// Takes the message that came first into `buf`; what does not fit is lost, as in a receive. Says how much that was,
    /// and who sent it.
    pub(crate) fn take_into<B: IoBufMut>(
        &self,
        buf: &mut B,
    ) -> Option<io::Result<(usize, Option<SocketAddr>)>> {
        Some(self.pop()?.map(|message| Self::copy_into(&message, buf)))
    }

    /// Shows it in `buf`, and leaves it where it is. An error is taken.
    pub(crate) fn show_into<B: IoBufMut>(
        &self,
        buf: &mut B,
    ) -> Option<io::Result<(usize, Option<SocketAddr>)>> {
        Some(self.pop()?.map(|message| {
            let shown = Self::copy_into(&message, buf);
            self.chunks.borrow_mut().push_front(Ok(message));
            shown
        }))
    }

    /// Makes what fits of a message all the content of `buf`.
    fn copy_into<B: IoBufMut>(message: &Datagram, buf: &mut B) -> (usize, Option<SocketAddr>) {
        let bytes = &message.bytes[..message.bytes.len().min(buf.io_capacity())];
        // SAFETY: `IoBufMut` promises that the pointer is good for writes of `io_capacity` bytes, which `bytes` does not
        // exceed; the message's memory is its own. So many bytes are then initialised.
        unsafe {
            buf.io_mut_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            buf.io_set_len(bytes.len());
        }
        (bytes.len(), message.from)
    }
}

impl Stash {
    /// Copies waiting bytes into `buf`, which may have none, as many as there are and as fit, and leaves them where they are. Says how
    /// many.
    ///
    /// # Errors
    ///
    /// The error that waits before any byte. It is taken.
    pub(crate) fn show_into<B: IoBufMut>(&self, buf: &mut B) -> io::Result<usize> {
        let (room, target) = (buf.io_capacity(), buf.io_mut_ptr());
        let mut chunks = self.chunks.borrow_mut();
        if let Some(error) = chunks.pop_front_if(|chunk| chunk.is_err()) {
            error?;
        }
        let mut shown = 0;
        for bytes in chunks.iter().map_while(|chunk| chunk.as_ref().ok()) {
            let wanted = bytes.len().min(room - shown);
            // SAFETY: `IoBufMut` promises that `target` is good for writes of `room` bytes while `buf` is not touched otherwise, and
            // it is borrowed here; `shown + wanted <= room`. The chunk's memory is its own.
            unsafe { target.add(shown).copy_from_nonoverlapping(bytes.as_ptr(), wanted) };
            shown += wanted;
        }
        drop(chunks);
        // SAFETY: so many bytes from the buffer's start were written above, and they are within its capacity.
        unsafe { buf.io_set_len(shown) };
        Ok(shown)
    }

    /// Keeps what an abandoned receive got: `copy` is called if it got bytes.
    pub(crate) fn keep(&self, result: io::Result<usize>, copy: impl FnOnce(usize) -> FixedBuf) {
        match result {
            Ok(0) => {}
            Ok(bytes) => self.push(Ok(copy(bytes))),
            Err(error) => self.keep_error(error),
        }
    }

    /// Puts bytes back in front of what waits: they were taken and not used.
    pub(crate) fn unread(&self, bytes: FixedBuf) {
        if !bytes.is_empty() {
            self.chunks.borrow_mut().push_front(Ok(bytes));
        }
    }

    /// Takes waiting bytes into `buf`, whose first `at` bytes are content and stay, as many as there are and as fit.
    /// Says how many it took, leaves the rest in front, and makes the two together all the content of `buf`.
    ///
    /// # Errors
    ///
    /// The error that waits, if it comes before any byte. It is taken, and `buf` is as it was.
    pub(crate) fn take_into<B: IoBufMut>(&self, buf: &mut B, at: usize) -> io::Result<usize> {
        assert!(at <= buf.io_len(), "what is kept of a buffer is part of its content");
        let room = buf.io_capacity() - at;
        let target = buf.io_mut_ptr();
        let taken = self.take_up_to(room, |taken, bytes| {
            // SAFETY: `IoBufMut` promises that `target` is good for writes of `io_capacity` bytes while `buf` is not
            // touched otherwise, and it is borrowed here. `take_up_to` calls with `taken + bytes.len() <= room`.
            unsafe { target.add(at + taken).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        })?;
        // SAFETY: the first `at` bytes were content, as asserted; the `taken` after them were written above. Both together
        // are within the capacity.
        unsafe { buf.io_set_len(at + taken) };
        Ok(taken)
    }

    /// Takes waiting bytes into the buffers of a list, one after the other, as [`take_into`](Self::take_into) does.
    ///
    /// # Errors
    ///
    /// The error that waits, if it comes before any byte.
    pub(crate) fn take_into_vec<V: IoBufMutVec>(&self, bufs: &mut V) -> io::Result<usize> {
        let mut total = 0;
        let mut result = Ok(());
        bufs.io_each_mut(|target, room| {
            if result.is_err() || (total > 0 && self.is_empty()) {
                return;
            }
            match self.take_up_to(room, |taken, bytes| {
                // SAFETY: `IoBufMutVec` promises that `target` is good for writes of `room` bytes during this call;
                // `take_up_to` stays within.
                unsafe { target.add(taken).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            }) {
                Ok(taken) => total += taken,
                // Bytes that came before it are worth more than the error: it waits for the next call.
                Err(error) if total > 0 => self.chunks.borrow_mut().push_front(Err(error)),
                Err(error) => result = Err(error),
            }
        });
        result?;
        // SAFETY: `total` bytes were written above, each buffer filled before the next: a buffer is left with room only
        // when nothing (or only an error) waits any more, and then nothing is written to the ones after it.
        unsafe { bufs.io_set_total_len(total) };
        Ok(total)
    }

    /// Hands out at most `room` waiting bytes, in order, each piece with the number of bytes before it.
    fn take_up_to(&self, room: usize, mut take: impl FnMut(usize, &[u8])) -> io::Result<usize> {
        let mut taken = 0;
        while taken < room
            && let Some(chunk) = self.pop()
        {
            match chunk {
                Ok(mut bytes) => {
                    let wanted = bytes.len().min(room - taken);
                    take(taken, &bytes[..wanted]);
                    taken += wanted;
                    bytes.advance(wanted);
                    self.unread(bytes);
                }
                Err(error) if taken == 0 => return Err(error),
                Err(error) => {
                    self.chunks.borrow_mut().push_front(Err(error));
                    break;
                }
            }
        }
        Ok(taken)
    }
}

/// Whether the kernel says that the operation was cancelled.
pub(crate) fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(error::CANCELLED)
}

/// Whether the operation was stopped: before it began, while it waited, or in the middle of it, on a kernel thread (`EINTR`).
pub(crate) fn is_stopped(error: &io::Error) -> bool {
    is_cancelled(error) || error.kind() == io::ErrorKind::Interrupted
}

/// Whether the kernel says that the receive ring is empty.
pub(crate) fn is_dry(error: &io::Error) -> bool {
    error.raw_os_error() == Some(error::NO_BUFFERS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::driver::waiter::waker_that_meddles;

    fn stash_of(chunks: &[&str]) -> Stash {
        let stash = Stash::default();
        for chunk in chunks {
            let mut bytes = FixedBuf::heap(chunk.len());
            bytes.extend_from_slice(chunk.as_bytes());
            stash.push(Ok(bytes));
        }
        stash
    }

    // A byte that is dropped or doubled where a chunk meets the end of the caller's buffer would show here.
    #[test]
    fn bytes_are_taken_in_order_and_the_rest_stays_in_front() {
        let stash = stash_of(&["abc", "defg", "h"]);
        let mut buf = Vec::with_capacity(5);
        assert_eq!(stash.take_into(&mut buf, 0).expect("no error waits"), 5);
        assert_eq!(buf, b"abcde");
        let mut list = [Vec::with_capacity(1), Vec::with_capacity(4)];
        assert_eq!(stash.take_into_vec(&mut list).expect("no error waits"), 3);
        assert_eq!(list, [b"f".to_vec(), b"gh".to_vec()]);
        assert!(stash.is_empty());
    }

    // Bytes that were shown and are then gone, or an error that hides behind them, would be lost to the read that follows.
    #[test]
    fn what_is_shown_is_still_there_to_be_taken() {
        let stash = stash_of(&["abc", "def"]);
        stash.push(Err(io::ErrorKind::ConnectionReset.into()));
        let mut buf = Vec::with_capacity(5);
        for _ in 0..2 {
            assert_eq!(stash.show_into(&mut buf).expect("bytes come first"), 5);
            assert_eq!(buf, b"abcde");
        }
        let mut all = Vec::with_capacity(16);
        assert_eq!(stash.show_into(&mut all).expect("bytes come first"), 6);
        assert_eq!(stash.take_into(&mut all, 0).expect("bytes come first"), 6);
        assert_eq!(all, b"abcdef");
        assert!(stash.show_into(&mut all).is_err(), "then the error");
        assert_eq!(stash.show_into(&mut all).expect("once"), 0);
    }

    // An error reported before the bytes that came first would make the caller give up on a stream that has more.
    #[test]
    fn an_error_waits_for_the_bytes_before_it_and_is_reported_once() {
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let stash = stash_of(&["ab"]);
        stash.push(Err(reset()));
        let mut list = [Vec::with_capacity(2), Vec::with_capacity(2)];
        assert_eq!(stash.take_into_vec(&mut list).expect("bytes come first"), 2);
        let mut buf = b"x".to_vec();
        buf.reserve(8);
        let error = stash.take_into(&mut buf, 1).expect_err("then the error");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(buf, b"x");
        assert_eq!(stash.take_into(&mut buf, 1).expect("once"), 0);
    }

    // Borrowed meanwhile, the place of the waiter would be found so by a clone that comes back; and what it ended would be
    // waited for.
    #[test]
    fn a_waker_may_end_the_receive_when_it_is_cloned() {
        let stash = Rc::new(Stash::<FixedBuf>::default());
        stash.receive_begins();
        let waker = waker_that_meddles({
            let stash = Rc::clone(&stash);
            move || stash.receive_ended()
        });
        assert!(stash.poll_quiet(&mut Context::from_waker(&waker)).is_ready());
    }

    // `read_exact` fills one buffer in steps: a step must not disturb what the ones before brought.
    #[test]
    fn taking_goes_on_where_the_content_ends() {
        let stash = stash_of(&["cd"]);
        let mut buf = Vec::with_capacity(16);
        buf.extend_from_slice(b"ab--");
        assert_eq!(stash.take_into(&mut buf, 2).expect("no error waits"), 2);
        assert_eq!(buf, b"abcd");
    }
}
