//! A stream socket, below the shape that `net` gives it: what receives from it, who may, and where bytes wait.
//!
//! There are two ways to receive. [`Read`], [`ReadExact`] and [`ReadVectored`] bring a buffer of the caller's, one plain
//! receive each. [`Recv`] brings none: it gets a [`FixedBuf`] once data is there, so an idle connection holds no buffer.
//! For that it *arms* a multishot receive, which stays with the kernel from call to call.
//!
//! **Order.** A byte can wait in three places, and is older the further left it waits:
//!
//! ```text
//! stash ◀── answers of the multishot receive ◀── kernel
//!   ▲            (buffers of the receive ring)     │
//!   └── plain receives whose future was dropped ◀──┘   never both at once
//! ```
//!
//! A reader empties them from the left. A plain receive is submitted only when no multishot receive is armed and no other
//! plain receive is with the driver, and the other way round. So a `read` after a `recv` cancels the multishot receive,
//! waits for its terminal completion and takes what it brought, before it asks the kernel itself.
//!
//! **Nothing is lost.** Whatever a dropped future's receive still brings comes to the stash, and is what the next call
//! returns. A dropped `read_exact` puts back what it had. An error that came with nobody waiting is reported once. The
//! end of the stream need not be kept: the kernel says it again.
//!
//! **Credit.** The receive ring is small and everybody's. A socket arms only with a *credit* ([`Receivers`]): a
//! few ring buffers that may wait in its multishot receive. Beyond it the receive is cancelled, and armed again when
//! somebody waits and what waited is gone. All credits together never exceed the ring. A socket that gets no credit
//! receives once per call, into a buffer that the kernel picks when data is there.
//!
//! A credit cannot bind the kernel, which takes what it needs for what has arrived, and programs keep buffers as long as
//! they like: the ring can run *dry*. Then every socket with a credit that nobody reads from is *relieved*: what waits in ring
//! buffers is copied to the heap (counted), the buffers go back, and its receive is cancelled. The reader that met the
//! dry ring takes what is there into a buffer of the pool or the heap, by a call that does not wait; if nothing is there,
//! it does so as soon as its socket is readable. So a silent reader starves nobody, and nobody is later than with the
//! ring: the worker hears of data at the end of one turn, and the reader has it in the next. (To receive by an operation
//! instead would take one turn more; to receive without waiting for the ring's word would let one busy socket keep the worker.)
#![expect(unsafe_code, reason = "says how much of a buffer a call has filled")]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use socket2::SockRef;

use super::buf::{BufResult, FixedBuf, IoBuf, IoBufMut, IoBufMutVec, IoBufVec, Rest, Slice};
use super::driver::{Descriptor, DriverConfig, DriverHandle, InFlight, Multishot, Op, SharedDescriptor};
use super::op::{self, copy_of, net};
use super::stash::{Reader, Stash, is_cancelled, is_dry};
use crate::os::{self, message};

/// A connected stream socket.
pub(crate) struct Socket {
    fd: SharedDescriptor,
    driver: DriverHandle,
    stash: Rc<Stash>,
    armed: RefCell<Option<Armed>>,
}

/// A multishot receive, from arming until its terminal answer was taken.
struct Armed {
    many: Multishot<net::RecvMany>,
    /// Given back with it.
    _credit: Credit,
}

/// Where a plain receive finds its bytes.
enum Source {
    /// In the stash.
    Stash,
    /// Nowhere yet: the kernel may be asked.
    Kernel,
}

/// What a caller without a buffer can do next.
enum Next {
    /// Take this.
    Chunk(io::Result<FixedBuf>),
    /// Receive once: the socket has no credit.
    Once,
    /// Receive without the ring: it is dry.
    Dry,
    /// The same: there is none.
    NoRing,
}

impl Socket {
    /// The socket behind `fd`.
    pub(crate) fn new(fd: SharedDescriptor, driver: DriverHandle) -> Rc<Socket> {
        Rc::new(Socket { fd, driver, stash: Rc::default(), armed: RefCell::new(None) })
    }

    /// The descriptor, for operations and options.
    pub(crate) fn fd(&self) -> &SharedDescriptor {
        &self.fd
    }

    /// The driver that the socket belongs to.
    pub(crate) fn driver(&self) -> &DriverHandle {
        &self.driver
    }

    /// What was received and not taken.
    pub(crate) fn stash(&self) -> &Rc<Stash> {
        &self.stash
    }

    /// Answers of the multishot receive that wait, and bytes in the stash if there are any.
    #[cfg(test)]
    pub(crate) fn waits(&self) -> usize {
        let armed = self.armed.borrow().as_ref().map_or(0, |armed| armed.many.waiting());
        armed + usize::from(!self.stash.is_empty())
    }

    /// The only owner's descriptor, or the socket again if there are others, be it operations in flight.
    pub(crate) fn into_fd(self: Rc<Socket>) -> Result<SharedDescriptor, Rc<Socket>> {
        Ok(Rc::try_unwrap(self)?.fd)
    }

    /// Waits until nothing receives from the socket any more. What did is in the stash.
    pub(crate) fn poll_disarmed(&self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.spill() {
            self.stop();
            let item = ready!(self.poll_armed(cx));
            self.keep(item);
        }
        self.stash.poll_quiet(cx)
    }

    /// Asks the kernel to stop the multishot receive. That may tell somebody at once, so nothing is borrowed then.
    fn stop(&self) {
        let token = self.armed.borrow_mut().as_mut().and_then(|armed| armed.many.begin_cancel());
        if let Some(token) = token {
            self.driver.request_cancel(token);
        }
    }

    /// The next answer of the multishot receive; `None` when none is armed any more.
    #[inline]
    fn poll_armed(&self, cx: &Context<'_>) -> Poll<Option<io::Result<FixedBuf>>> {
        let token = {
            let mut slot = self.armed.borrow_mut();
            let Some(armed) = &mut *slot else { return Poll::Ready(None) };
            if let Some(item) = armed.many.try_next() {
                if armed.many.is_finished() {
                    *slot = None;
                }
                return Poll::Ready(item);
            }
            armed.many.token().expect("what is armed was submitted, and has an answer to come")
        };
        // The waker is cloned with nothing borrowed: that is foreign code, and may come back to this socket.
        self.driver.set_waiter(token, cx);
        Poll::Pending
    }

    /// Waits until the stash has something, or the kernel may be asked.
    fn poll_source(&self, cx: &mut Context<'_>) -> Poll<Source> {
        if self.stash.is_empty() {
            self.spill();
        }
        if self.stash.is_empty() {
            ready!(self.poll_disarmed(cx));
        }
        Poll::Ready(if self.stash.is_empty() { Source::Kernel } else { Source::Stash })
    }

    /// Waits for the next piece of the stream, with a multishot receive armed if there is a credit for it.
    fn poll_next(self: &Rc<Socket>, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            if let Some(chunk) = self.stash.pop() {
                return Poll::Ready(Next::Chunk(chunk));
            }
            let item = if self.armed.borrow().is_some() {
                ready!(self.poll_armed(cx))
            } else {
                ready!(self.stash.poll_quiet(cx));
                if !self.stash.is_empty() {
                    continue;
                }
                let Some(credit) = Credit::take(self) else { return Poll::Ready(Next::Once) };
                ready!(self.arm(credit, cx))
            };
            match item {
                None => {}
                Some(Err(error)) if is_cancelled(&error) => {}
                Some(Err(error)) if is_dry(&error) => {
                    return Poll::Ready(Next::Dry);
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    self.driver.receivers().forget_ring();
                    return Poll::Ready(Next::NoRing);
                }
                Some(chunk) => return Poll::Ready(Next::Chunk(chunk)),
            }
        }
    }

    /// Submits a multishot receive. Ready, with the reason, if it is refused.
    #[cold]
    fn arm(&self, credit: Credit, cx: &mut Context<'_>) -> Poll<Option<io::Result<FixedBuf>>> {
        let operation = net::RecvMany { fd: Rc::clone(&self.fd), credit: credit.buffers, once: None };
        let mut many = Multishot::new(operation, &self.driver);
        let refused = many.poll_next(cx);
        if refused.is_pending() {
            *self.armed.borrow_mut() = Some(Armed { many, _credit: credit });
        }
        refused
    }

    /// Moves what the multishot receive has brought to the stash, out of the ring's buffers. Says whether none is armed
    /// any more.
    fn spill(&self) -> bool {
        loop {
            let item = {
                let mut slot = self.armed.borrow_mut();
                let Some(armed) = &mut *slot else { return true };
                let Some(item) = armed.many.try_next() else { return false };
                if armed.many.is_finished() {
                    *slot = None;
                }
                item
            };
            self.keep(item);
        }
    }

    /// Puts one answer of the multishot receive at the end of the stash. What the kernel will say again is not kept.
    fn keep(&self, item: Option<io::Result<FixedBuf>>) {
        match item {
            None => {}
            Some(Ok(buf)) => {
                self.driver.receivers().spilled_bytes.update(|bytes| bytes + buf.len() as u64);
                self.stash.keep(Ok(buf.len()), |bytes| copy_of(&[buf], bytes));
            }
            Some(Err(error)) if is_dry(&error) => {}
            Some(Err(error)) => self.stash.keep_error(error),
        }
    }

    /// Gives ring buffers back that wait here while nobody reads.
    fn relieve(&self) {
        if self.stash.has_reader() {
            return;
        }
        let waits = self.armed.borrow().as_ref().is_some_and(|armed| armed.many.waiting() > 0);
        if waits && !self.spill() {
            self.stop();
        }
    }

    /// What follows a receive into a buffer that the kernel was to pick.
    fn picked(&self, answer: io::Result<FixedBuf>) -> Result<Step, io::Result<FixedBuf>> {
        match answer {
            Err(error) if is_dry(&error) => self.found_dry(),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.driver.receivers().forget_ring();
                Ok(Step::Unreadable)
            }
            answer => Err(answer),
        }
    }

    /// What follows when the ring was dry.
    fn found_dry(&self) -> Result<Step, io::Result<FixedBuf>> {
        self.driver.receivers().relieve();
        self.take_now(Step::Unreadable)
    }

    /// What follows when the wait is over.
    fn waited<T>(&self, readable: io::Result<T>) -> Result<Step, io::Result<FixedBuf>> {
        match readable {
            Ok(_) => self.take_now(Step::Readable(message::DONT_WAIT)),
            // A backend that cannot wait for readiness receives at once, and the buffer waits with it.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Step::Readable(0)),
            Err(error) => Err(Err(error)),
        }
    }

    /// Takes what is there, by a call that does not wait. What follows if nothing is, or `otherwise` if only the driver can receive.
    fn take_now(&self, otherwise: Step) -> Result<Step, io::Result<FixedBuf>> {
        let mut buf = self.driver.alloc(self.driver.receivers().buffer_bytes.get());
        let received = self.fd.as_os().and_then(|fd| os::receive_now(fd, buf.spare_capacity_mut()));
        match received {
            Ok(bytes) => {
                // SAFETY: the kernel has just written so many bytes to the room that it was shown, from the buffer's first on.
                unsafe { buf.set_len(bytes) };
                Err(Ok(buf))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Step::Unreadable),
                io::ErrorKind::Unsupported => Ok(otherwise),
                _ => Err(Err(error)),
            },
        }
    }

    /// One receive into `buf`, to be submitted at once.
    #[inline]
    fn receive<B: IoBufMut>(&self, buf: B, flags: i32, kept: fn(B, usize) -> FixedBuf) -> net::Recv<B> {
        self.stash.receive_begins();
        let (fd, stash) = (Rc::clone(&self.fd), Some(Rc::clone(&self.stash)));
        net::Recv { fd, buf, flags, waits: flags == 0 && self.stash.is_drained(), stash, kept }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("fd", &self.fd)
            .field("stash", &self.stash)
            .field("armed", &self.armed.try_borrow().map(|armed| armed.is_some()))
            .finish_non_exhaustive()
    }
}

/// A worker's receive ring, as its sockets share it: who has a credit, and how much all credits together may be.
#[derive(Debug)]
pub(crate) struct Receivers {
    /// Buffers in the ring; 0 without one.
    ring_buffers: Cell<usize>,
    /// Bytes in each, and in the buffers that stand in for them.
    buffer_bytes: Cell<usize>,
    /// Whether the backend can let the kernel pick a buffer for a single receive.
    picks_once: Cell<bool>,
    /// The sum of all credits, at most `ring_buffers`.
    granted: Cell<usize>,
    /// The sockets that have a credit. As none is below one buffer, there are at most `ring_buffers` of them.
    holders: RefCell<Vec<Option<Weak<Socket>>>>,
    free_places: RefCell<Vec<usize>>,
    /// Bytes copied out of ring buffers because they had to wait, or because a plain read took them; ever.
    spilled_bytes: Cell<u64>,
}

/// Ring buffers that may wait in one socket while there is plenty: enough for a pipelining client to run ahead of its
/// server, few enough that 16 silent ones are needed to claim half of the default ring.
const CREDIT_MAX: usize = 4;

impl Receivers {
    /// Of a driver that has no ring yet.
    pub(crate) fn new(config: &DriverConfig) -> Receivers {
        Receivers {
            ring_buffers: Cell::new(0),
            buffer_bytes: Cell::new(config.receive_buffer_bytes as usize),
            picks_once: Cell::new(false),
            granted: Cell::new(0),
            holders: RefCell::default(),
            free_places: RefCell::default(),
            spilled_bytes: Cell::new(0),
        }
    }

    /// Notes how many buffers the ring has, if there is one.
    pub(crate) fn set_ring(&self, ring_buffers: usize, picks_once: bool) {
        self.ring_buffers.set(ring_buffers);
        self.picks_once.set(picks_once);
    }

    /// The sum of all credits, and the bound that it keeps.
    #[cfg(test)]
    pub(crate) fn credits(&self) -> (usize, usize) {
        (self.granted.get(), self.ring_buffers.get())
    }

    /// Notes that there is no ring after all. No more credits are given.
    fn forget_ring(&self) {
        self.ring_buffers.set(0);
        self.picks_once.set(false);
    }

    /// The credit for one more socket: generous while more than half of the ring is unclaimed, then one buffer each.
    fn next_credit(&self) -> Option<usize> {
        let all = self.ring_buffers.get();
        match all.saturating_sub(self.granted.get()) {
            0 => None,
            left if left > all / 2 => Some(CREDIT_MAX.min(left)),
            _ => Some(1),
        }
    }

    /// Makes every socket that nobody reads from give its ring buffers back.
    fn relieve(&self) {
        let holders: Vec<Rc<Socket>> =
            self.holders.borrow().iter().flatten().filter_map(Weak::upgrade).collect();
        for socket in holders {
            socket.relieve();
        }
    }
}

/// A socket's right to have a multishot receive armed, and how many ring buffers may wait in it. Dropping it gives them back.
struct Credit {
    driver: DriverHandle,
    index: usize,
    buffers: usize,
}

impl Credit {
    /// A credit for `socket`, if there is any left.
    fn take(socket: &Rc<Socket>) -> Option<Credit> {
        let receivers = socket.driver.receivers();
        let buffers = receivers.next_credit()?;
        receivers.granted.update(|granted| granted + buffers);
        let mut holders = receivers.holders.borrow_mut();
        let index = receivers.free_places.borrow_mut().pop().unwrap_or_else(|| {
            holders.push(None);
            holders.len() - 1
        });
        holders[index] = Some(Rc::downgrade(socket));
        Some(Credit { driver: socket.driver.clone(), index, buffers })
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let receivers = self.driver.receivers();
        receivers.granted.update(|granted| granted - self.buffers);
        receivers.holders.borrow_mut()[self.index] = None;
        receivers.free_places.borrow_mut().push(self.index);
    }
}

/// The future of `recv`: the next piece of a stream, in a buffer that is taken only when data is there.
///
/// Yields what has arrived, at most one buffer full; an empty buffer is the end of the stream. Dropping it loses nothing:
/// what arrives later waits for the next call.
#[must_use = "nothing is received until it is awaited"]
#[derive(Debug)]
pub struct Recv {
    socket: Rc<Socket>,
    reader: Reader,
    step: Step,
}

/// How far a [`Recv`] has come.
#[derive(Debug)]
enum Step {
    /// It looks at what waits and at the multishot receive.
    Look,
    /// It receives once, into a buffer that the kernel picks.
    Pick(InFlight<net::RecvMany>),
    /// It is to wait until a receive would find something.
    Unreadable,
    /// It waits for that.
    Wait(InFlight<op::misc::Poll>),
    /// It is to receive into a buffer of the pool, with these flags, where that takes an operation.
    Readable(i32),
    /// It does.
    Receive(InFlight<net::Recv<FixedBuf>>),
}

impl Recv {
    pub(crate) fn new(socket: &Rc<Socket>) -> Recv {
        Recv { socket: Rc::clone(socket), reader: Reader::new(&socket.stash), step: Step::Look }
    }

    #[inline]
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<FixedBuf>> {
        let Recv { socket, step, .. } = self;
        loop {
            let next = match step {
                Step::Look => match ready!(socket.poll_next(cx)) {
                    Next::Chunk(chunk) => Err(chunk),
                    Next::Once if socket.driver.receivers().picks_once.get() => {
                        socket.stash.receive_begins();
                        let (fd, once) = (Rc::clone(&socket.fd), Some(Rc::clone(&socket.stash)));
                        let pick = net::RecvMany { fd, credit: 1, once };
                        let pick = InFlight::submit(pick, &socket.driver, cx);
                        pick.map(Step::Pick).or_else(|answer| socket.picked(answer))
                    }
                    Next::Dry => socket.found_dry(),
                    Next::Once | Next::NoRing => Ok(Step::Unreadable),
                },
                Step::Pick(pick) => socket.picked(ready!(pick.poll(cx))),
                Step::Unreadable => {
                    let wait = op::misc::Poll { fd: Rc::clone(&socket.fd) };
                    let wait = InFlight::submit(wait, &socket.driver, cx);
                    wait.map(Step::Wait).or_else(|answer| socket.waited(answer))
                }
                Step::Wait(wait) => socket.waited(ready!(wait.poll(cx))),
                Step::Readable(flags) => {
                    let buf = socket.driver.alloc(socket.driver.receivers().buffer_bytes.get());
                    let receive = socket.receive(buf, *flags, net::kept_whole);
                    let receive = InFlight::submit(receive, &socket.driver, cx);
                    receive.map(Step::Receive).or_else(Step::received)
                }
                Step::Receive(receive) => Step::received(ready!(receive.poll(cx))),
            };
            match next {
                Ok(next) => *step = next,
                Err(answer) => return Poll::Ready(answer),
            }
        }
    }
}

impl Step {
    /// What follows when something was received, or was not there after all.
    fn received((result, buf): BufResult<usize, FixedBuf>) -> Result<Step, io::Result<FixedBuf>> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Step::Unreadable),
            result => Err(result.map(|_| buf)),
        }
    }
}

impl Future for Recv {
    type Output = io::Result<FixedBuf>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.reader.claim()?;
        let chunk = ready!(this.poll_step(cx));
        this.step = Step::Look;
        this.reader.release();
        Poll::Ready(chunk)
    }
}

/// The future of `read` and `peek`: some bytes of a stream, in a buffer of the caller's; a peek leaves them in the stream.
///
/// Yields how many there are (0: the stream has ended, or the buffer has no capacity) and the buffer, filled from its
/// start. Dropping it loses no byte: what arrives later waits for the next call. It does lose the buffer.
#[must_use = "nothing is read until it is awaited"]
#[derive(Debug)]
pub struct Read<B: IoBufMut> {
    socket: Rc<Socket>,
    reader: Reader,
    /// Whether what is read stays where it is.
    peeks: bool,
    step: Reading<B, net::Recv<B>>,
}

/// How far a read has come: the buffer is here, or with its operation.
#[derive(Debug)]
enum Reading<B, T: super::driver::Operation> {
    Start(B),
    InFlight(InFlight<T>),
    Finished,
}

/// What is said to a caller who polls a future again after its answer.
const POLLED_AFTER_READY: &str = "a read or write was polled after it was ready";

// What the kernel sees is in a slot of the driver; nothing in the futures themselves is pinned.
impl<B: IoBufMut> Unpin for Read<B> {}
impl<B: IoBufMut> Unpin for ReadExact<B> {}
impl<V: IoBufMutVec> Unpin for ReadVectored<V> {}
impl<B: IoBuf> Unpin for WriteAll<B> {}
impl<V: IoBufVec> Unpin for WriteAllVectored<V> {}

impl<B: IoBufMut> Read<B> {
    pub(crate) fn new(socket: &Rc<Socket>, buf: B) -> Read<B> {
        let reader = Reader::new(&socket.stash);
        Read { socket: Rc::clone(socket), reader, peeks: false, step: Reading::Start(buf) }
    }

    pub(crate) fn peek(socket: &Rc<Socket>, buf: B) -> Read<B> {
        Read { peeks: true, ..Read::new(socket, buf) }
    }
}

impl<B: IoBufMut> Future for Read<B> {
    type Output = BufResult<usize, B>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Reading::InFlight(receive) = &mut this.step {
            let answer = ready!(receive.poll(cx));
            this.step = Reading::Finished;
            this.reader.release();
            return Poll::Ready(answer);
        }
        let Reading::Start(mut buf) = mem::replace(&mut this.step, Reading::Finished) else {
            panic!("{POLLED_AFTER_READY}")
        };
        if buf.io_capacity() == 0 {
            return Poll::Ready((Ok(0), buf));
        }
        if let Err(error) = this.reader.claim() {
            return Poll::Ready((Err(error), buf));
        }
        let answer = match this.socket.poll_source(cx) {
            Poll::Pending => {
                this.step = Reading::Start(buf);
                return Poll::Pending;
            }
            Poll::Ready(Source::Stash) if this.peeks => (this.socket.stash.show_into(&mut buf), buf),
            Poll::Ready(Source::Stash) => (this.socket.stash.take_into(&mut buf, 0), buf),
            Poll::Ready(Source::Kernel) => {
                let receive = match this.peeks {
                    false => this.socket.receive(buf, 0, net::kept_whole),
                    // It takes no byte, but the connection's error: the kernel says that once.
                    true => this.socket.receive(buf, message::PEEK, net::kept_nothing),
                };
                match InFlight::submit(receive, &this.socket.driver, cx) {
                    Ok(receive) => {
                        this.step = Reading::InFlight(receive);
                        return Poll::Pending;
                    }
                    Err(answer) => answer,
                }
            }
        };
        this.reader.release();
        Poll::Ready(answer)
    }
}

/// The future of `read_vectored`: some bytes of a stream, in several buffers of the caller's, filled one after the other.
///
/// Otherwise as [`Read`].
#[must_use = "nothing is read until it is awaited"]
#[derive(Debug)]
pub struct ReadVectored<V: IoBufMutVec> {
    socket: Rc<Socket>,
    reader: Reader,
    step: Reading<V, net::RecvVectored<V>>,
}

impl<V: IoBufMutVec> ReadVectored<V> {
    pub(crate) fn new(socket: &Rc<Socket>, bufs: V) -> ReadVectored<V> {
        let reader = Reader::new(&socket.stash);
        ReadVectored { socket: Rc::clone(socket), reader, step: Reading::Start(bufs) }
    }

    fn receive(&self, bufs: V) -> net::RecvVectored<V> {
        let Socket { fd, stash, .. } = &*self.socket;
        stash.receive_begins();
        net::RecvVectored { fd: Rc::clone(fd), bufs, stash: Some(Rc::clone(stash)) }
    }
}

impl<V: IoBufMutVec> Future for ReadVectored<V> {
    type Output = BufResult<usize, V>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Reading::InFlight(receive) = &mut this.step {
            let answer = ready!(receive.poll(cx));
            this.step = Reading::Finished;
            this.reader.release();
            return Poll::Ready(answer);
        }
        let Reading::Start(mut bufs) = mem::replace(&mut this.step, Reading::Finished) else {
            panic!("{POLLED_AFTER_READY}")
        };
        let mut room = 0usize;
        bufs.io_each_mut(|_, capacity| room = room.saturating_add(capacity));
        if room == 0 {
            return Poll::Ready((Ok(0), bufs));
        }
        if let Err(error) = this.reader.claim() {
            return Poll::Ready((Err(error), bufs));
        }
        let answer = match this.socket.poll_source(cx) {
            Poll::Pending => {
                this.step = Reading::Start(bufs);
                return Poll::Pending;
            }
            Poll::Ready(Source::Stash) => (this.socket.stash.take_into_vec(&mut bufs), bufs),
            Poll::Ready(Source::Kernel) => {
                match InFlight::submit(this.receive(bufs), &this.socket.driver, cx) {
                    Ok(receive) => {
                        this.step = Reading::InFlight(receive);
                        return Poll::Pending;
                    }
                    Err(answer) => answer,
                }
            }
        };
        this.reader.release();
        Poll::Ready(answer)
    }
}

/// The future of `read_exact`: as many bytes of a stream as the buffer has capacity for.
///
/// Yields the buffer whatever happens; after an error it holds what came before. Dropping it loses no byte: what it had
/// is put back in front of the stream. It does lose the buffer.
#[must_use = "nothing is read until it is awaited"]
#[derive(Debug)]
pub struct ReadExact<B: IoBufMut> {
    socket: Rc<Socket>,
    reader: Reader,
    /// Bytes at the buffer's start that were read.
    filled: usize,
    step: Reading<B, net::Recv<Slice<B>>>,
}

impl<B: IoBufMut> ReadExact<B> {
    pub(crate) fn new(socket: &Rc<Socket>, buf: B) -> ReadExact<B> {
        let reader = Reader::new(&socket.stash);
        ReadExact { socket: Rc::clone(socket), reader, filled: 0, step: Reading::Start(buf) }
    }

    /// Ends with the buffer holding exactly what was read.
    fn finish(&mut self, result: io::Result<()>, buf: B) -> Poll<BufResult<(), B>> {
        self.step = Reading::Finished;
        self.reader.release();
        Poll::Ready((result, buf))
    }
}

impl<B: IoBufMut> Future for ReadExact<B> {
    type Output = BufResult<(), B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let received = if let Reading::InFlight(receive) = &mut this.step {
                ready!(receive.poll(cx))
            } else {
                let Reading::Start(mut buf) = mem::replace(&mut this.step, Reading::Finished) else {
                    panic!("{POLLED_AFTER_READY}")
                };
                if let Err(error) = this.reader.claim() {
                    return Poll::Ready((Err(error), buf));
                }
                // Also when nothing waits: it cuts the buffer to what was read.
                match this.socket.stash.take_into(&mut buf, this.filled) {
                    Ok(taken) => this.filled += taken,
                    Err(error) => return this.finish(Err(error), buf),
                }
                if this.filled == buf.io_capacity() {
                    return this.finish(Ok(()), buf);
                }
                match this.socket.poll_source(cx) {
                    Poll::Pending => {
                        this.step = Reading::Start(buf);
                        return Poll::Pending;
                    }
                    Poll::Ready(Source::Stash) => {
                        this.step = Reading::Start(buf);
                        continue;
                    }
                    Poll::Ready(Source::Kernel) => {
                        let receive = this.socket.receive(buf.slice(this.filled..), 0, net::kept_with_begin);
                        match InFlight::submit(receive, &this.socket.driver, cx) {
                            Ok(receive) => {
                                this.step = Reading::InFlight(receive);
                                return Poll::Pending;
                            }
                            Err(answer) => answer,
                        }
                    }
                }
            };
            let (result, rest) = received;
            let buf = rest.into_inner();
            match result {
                Ok(0) => return this.finish(Err(io::ErrorKind::UnexpectedEof.into()), buf),
                Ok(read) => {
                    this.filled += read;
                    this.step = Reading::Start(buf);
                }
                Err(error) => return this.finish(Err(error), buf),
            }
        }
    }
}

impl<B: IoBufMut> Drop for ReadExact<B> {
    /// Un-reads. If a receive is in flight its operation has the buffer, and does the same when it ends.
    fn drop(&mut self) {
        if let Reading::Start(buf) = mem::replace(&mut self.step, Reading::Finished)
            && self.filled > 0
        {
            self.socket.stash.unread(copy_of(&[buf], self.filled));
        }
    }
}

/// The future of `write` and `write_zero_copy`: sends some of a buffer.
///
/// Yields how many bytes were taken, and the buffer. If it is dropped, some of them may have been sent.
#[must_use = "nothing is written until it is awaited"]
#[derive(Debug)]
pub struct Write<B: IoBuf> {
    send: Op<net::Send<B>>,
    _end: Option<Rc<WritingEnd>>,
}

impl<B: IoBuf> Write<B> {
    pub(crate) fn new(socket: &Socket, buf: B) -> Write<B> {
        Write::to(&socket.fd, &socket.driver, buf)
    }

    /// The same for a socket of another kind.
    pub(crate) fn to(fd: &SharedDescriptor, driver: &DriverHandle, buf: B) -> Write<B> {
        let send = net::Send { fd: Some(Rc::clone(fd)), buf, flags: 0, zero_copy: false };
        Write { send: Op::new(send, driver), _end: None }
    }

    /// The same without a copy of the bytes.
    pub(crate) fn zero_copy(socket: &Socket, buf: B) -> Write<B> {
        let fd = Some(Rc::clone(&socket.fd));
        let send = net::Send { fd, buf, flags: message::WAIT_ALL, zero_copy: true };
        Write { send: Op::new(send, &socket.driver), _end: None }
    }

    /// The same, which keeps the direction open until it is gone.
    pub(crate) fn before(self, end: Option<&Rc<WritingEnd>>) -> Write<B> {
        Write { _end: end.cloned(), ..self }
    }
}

impl<B: IoBuf> Future for Write<B> {
    type Output = BufResult<usize, B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.send).poll(cx)
    }
}

/// The future of `write_vectored`: sends some of several buffers, in order, at most 1024 of them.
///
/// Yields how many bytes were taken, and the buffers. If it is dropped, some of them may have been sent.
#[must_use = "nothing is written until it is awaited"]
#[derive(Debug)]
pub struct WriteVectored<V: IoBufVec> {
    send: Op<net::SendVectored<V>>,
    _end: Option<Rc<WritingEnd>>,
}

impl<V: IoBufVec> WriteVectored<V> {
    pub(crate) fn new(socket: &Socket, bufs: V) -> WriteVectored<V> {
        let send = net::SendVectored { fd: Rc::clone(&socket.fd), bufs, flags: 0, to: None };
        WriteVectored { send: Op::new(send, &socket.driver), _end: None }
    }

    /// The same, which keeps the direction open until it is gone.
    pub(crate) fn before(self, end: Option<&Rc<WritingEnd>>) -> WriteVectored<V> {
        WriteVectored { _end: end.cloned(), ..self }
    }
}

impl<V: IoBufVec> Future for WriteVectored<V> {
    type Output = BufResult<usize, V>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.send).poll(cx)
    }
}

/// The future of `write_all`: sends all of a buffer.
///
/// Yields the buffer whatever happens. If it is dropped or fails, some of it may have been sent.
#[must_use = "nothing is written until it is awaited"]
#[derive(Debug)]
pub struct WriteAll<B: IoBuf> {
    socket: Rc<Socket>,
    sent: usize,
    step: Writing<B>,
    _end: Option<Rc<WritingEnd>>,
}

/// How far a [`WriteAll`] has come.
#[derive(Debug)]
enum Writing<B: IoBuf> {
    Start(B),
    InFlight(InFlight<net::Send<Slice<B>>>),
    Finished,
}

impl<B: IoBuf> WriteAll<B> {
    pub(crate) fn new(socket: &Rc<Socket>, buf: B) -> WriteAll<B> {
        WriteAll { socket: Rc::clone(socket), sent: 0, step: Writing::Start(buf), _end: None }
    }

    /// The same, which keeps the direction open until it is gone.
    pub(crate) fn before(self, end: Option<&Rc<WritingEnd>>) -> WriteAll<B> {
        WriteAll { _end: end.cloned(), ..self }
    }
}

impl<B: IoBuf> Future for WriteAll<B> {
    type Output = BufResult<(), B>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let (result, rest) = if let Writing::InFlight(send) = &mut this.step {
                let answer = ready!(send.poll(cx));
                this.step = Writing::Finished;
                answer
            } else {
                let Writing::Start(buf) = mem::replace(&mut this.step, Writing::Finished) else {
                    panic!("{POLLED_AFTER_READY}")
                };
                let end = buf.io_len();
                if this.sent == end {
                    return Poll::Ready((Ok(()), buf));
                }
                // The kernel itself goes on after a part, so that one round is the rule.
                let send = net::Send {
                    fd: Some(Rc::clone(&this.socket.fd)),
                    buf: buf.slice(this.sent..end),
                    flags: message::WAIT_ALL,
                    zero_copy: false,
                };
                match InFlight::submit(send, &this.socket.driver, cx) {
                    Ok(send) => {
                        this.step = Writing::InFlight(send);
                        return Poll::Pending;
                    }
                    Err(answer) => answer,
                }
            };
            let end = rest.end();
            let buf = rest.into_inner();
            match result {
                Ok(0) => return Poll::Ready((Err(io::ErrorKind::WriteZero.into()), buf)),
                Ok(sent) if this.sent + sent == end => return Poll::Ready((Ok(()), buf)),
                Ok(sent) => {
                    this.sent += sent;
                    this.step = Writing::Start(buf);
                }
                Err(error) => return Poll::Ready((Err(error), buf)),
            }
        }
    }
}

/// The future of `write_all_vectored`: sends all of several buffers, in order.
///
/// Yields the buffers whatever happens. If it is dropped or fails, some of them may have been sent.
#[must_use = "nothing is written until it is awaited"]
#[derive(Debug)]
pub struct WriteAllVectored<V: IoBufVec> {
    socket: Rc<Socket>,
    step: WritingMany<V>,
    _end: Option<Rc<WritingEnd>>,
}

/// How far a [`WriteAllVectored`] has come.
#[derive(Debug)]
enum WritingMany<V: IoBufVec> {
    Start(Rest<V>),
    InFlight(InFlight<net::SendVectored<Rest<V>>>),
    Finished,
}

impl<V: IoBufVec> WriteAllVectored<V> {
    pub(crate) fn new(socket: &Rc<Socket>, bufs: V) -> WriteAllVectored<V> {
        let step = WritingMany::Start(Rest { bufs, written: 0 });
        WriteAllVectored { socket: Rc::clone(socket), step, _end: None }
    }

    /// The same, which keeps the direction open until it is gone.
    pub(crate) fn before(self, end: Option<&Rc<WritingEnd>>) -> WriteAllVectored<V> {
        WriteAllVectored { _end: end.cloned(), ..self }
    }
}

impl<V: IoBufVec> Future for WriteAllVectored<V> {
    type Output = BufResult<(), V>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let (result, mut rest) = if let WritingMany::InFlight(send) = &mut this.step {
                let answer = ready!(send.poll(cx));
                this.step = WritingMany::Finished;
                answer
            } else {
                let WritingMany::Start(rest) = mem::replace(&mut this.step, WritingMany::Finished) else {
                    panic!("{POLLED_AFTER_READY}")
                };
                if rest.io_count() == 0 {
                    return Poll::Ready((Ok(()), rest.bufs));
                }
                // As in `WriteAll`: there is a second round for more than 1024 buffers.
                let fd = Rc::clone(&this.socket.fd);
                let send = net::SendVectored { fd, bufs: rest, flags: message::WAIT_ALL, to: None };
                match InFlight::submit(send, &this.socket.driver, cx) {
                    Ok(send) => {
                        this.step = WritingMany::InFlight(send);
                        return Poll::Pending;
                    }
                    Err(answer) => answer,
                }
            };
            match result {
                Ok(0) => return Poll::Ready((Err(io::ErrorKind::WriteZero.into()), rest.bufs)),
                Ok(sent) => {
                    rest.written += sent;
                    this.step = WritingMany::Start(rest);
                }
                Err(error) => return Poll::Ready((Err(error), rest.bufs)),
            }
        }
    }
}

/// The end of a stream's writing direction: it comes when the last that refers to this is gone. Those are a half of the stream, and the
/// writes that it began, which own what they need and may outlive it.
#[derive(Debug)]
pub(crate) struct WritingEnd {
    fd: SharedDescriptor,
    comes: Cell<bool>,
}

impl WritingEnd {
    pub(crate) fn of(socket: &Socket) -> Rc<WritingEnd> {
        Rc::new(WritingEnd { fd: Rc::clone(&socket.fd), comes: Cell::new(true) })
    }

    /// It does not come: the half is part of its stream again.
    pub(crate) fn call_off(&self) {
        self.comes.set(false);
    }
}

impl Drop for WritingEnd {
    fn drop(&mut self) {
        // (A direct descriptor has no call for that outside the ring.)
        if self.comes.get()
            && let Descriptor::Os(fd) = &*self.fd
        {
            // It fails only for a connection that is gone already.
            let _ = SockRef::from(fd).shutdown(Shutdown::Write);
        }
    }
}
