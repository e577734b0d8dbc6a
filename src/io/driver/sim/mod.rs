//! The simulated backend: everything in memory, on a virtual clock, in an order that a seed decides.
//!
//! It is a kernel for tests. Several [`SimDriver`]s share a [`SimWorld`] and run on one thread, so that a test can turn
//! several workers by hand and see the same run again for the same seed. There are pipes and listeners; there are no files.
//! All descriptors are direct ones: a number in the table of the driver that opened it.
//!
//! ```text
//! submit ─▶ queue ─▶ (next turn) ─▶ kernel list ─▶ attempted ─▶ answered ─▶ slab
//!    └▶ backlog ─┘                     ▲    │ would block   └─ late ─┘
//!                                      └────┘
//! ```
//!
//! A request is attempted when its delay is over, and again every turn until it succeeds. What it does to the sockets
//! happens at the attempt; what it does to memory happens right before its answer is given. So between the two, a
//! cancellation comes too late, and a buffer that was freed too early is written to when it is somebody else's.
//!
//! Like a kernel, the simulation keeps bare pointers to what slots own, and uses them until it has given the terminal
//! answer and never after. It trusts nobody else to keep away from them: in debug builds it marks the memory it was lent
//! ([`Lent`]) and checks the marks before it writes. A driver that is dropped with requests in the kernel list writes to all
//! their memory once more, as a kernel thread does that outlives its ring.
#![expect(unsafe_code, reason = "plays the kernel: keeps addresses of what slots own, and uses them later")]

mod fs;
mod misc;
mod net;
mod world;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::task::Poll;

use super::slab::StableSlab;
use super::{
    Answer, Capabilities, Completion, Descriptor, DirectDescriptor, DirectTable, Driver, DriverConfig,
    DriverCounters, Resource, Token, Unparker, Yields,
};
use crate::io::buf::{ChunkChange, FixedBuf, Pool, RingBlocks};
pub(crate) use world::{Faults, SimWorld};
use world::{SocketId, os_error, take_unparked};

/// A cancellation of the driver's own.
const CANCEL: Token = Token::reserved(0);

/// Descriptors of one driver at most: more than any test opens, few enough that a leak in a loop is noticed.
const DESCRIPTORS_MAX: usize = 1 << 16;

/// Bytes that are marked of each piece of memory lent: the first page of it, so that large buffers do not slow tests.
const MARKED_BYTES_MAX: usize = 4096;

/// What uninitialised memory is marked with, and what a dropped driver writes.
const MARK: u8 = 0xa5;

/// One worker's simulated kernel connection.
pub(crate) struct SimDriver {
    number: u32,
    world: SimWorld,
    /// The world's sockets, by direct descriptor.
    sockets: Vec<Option<SocketId>>,
    table: Rc<DirectTable>,
    queue: Vec<(Token, Request)>,
    queue_max: usize,
    backlog: VecDeque<(Token, Request)>,
    kernel: Vec<Pending>,
    /// Cancellations of the driver's own whose answers are outstanding.
    own_in_flight: u32,
    receive_ring: Option<ReceiveRing>,
    receive_buffer_bytes: u32,
    /// Buffers that answers brought and nobody has taken, by the number in the answer.
    brought: Vec<Option<FixedBuf>>,
    unparker: Unparker,
    capabilities: Capabilities,
    counters: DriverCounters,
}

/// A request as the simulation takes it.
#[derive(Debug)]
pub(crate) enum Request {
    /// Nothing.
    Nop,
    /// Stop the operation of this name.
    Cancel { target: Token },
    /// Close this direct descriptor.
    Close { index: u32 },
    /// Make a socket.
    Socket,
    /// Connect it to a port.
    Connect { socket: SocketId, port: u16 },
    /// Accept one connection, and write down who it is.
    Accept { socket: SocketId, peer: *mut Option<SocketAddr> },
    /// Accept connection after connection.
    AcceptMany { socket: SocketId },
    /// Receive into these pieces of memory.
    Recv { socket: SocketId, into: Vec<Lent> },
    /// Receive into buffers of the driver's, again and again or once.
    RecvMany { socket: SocketId, once: bool },
    /// Send these pieces of memory; if without a copy, let go of them later.
    Send { socket: SocketId, from: Vec<Lent>, zero_copy: bool },
    /// End one or both directions.
    Shutdown { socket: SocketId, how: Shutdown },
}

/// A request that the kernel has.
struct Pending {
    token: Token,
    request: Request,
    /// When it is attempted, or answered.
    at_ns: u64,
    /// What has been done and is yet to be told.
    reply: Option<Reply>,
}

/// What came of a request, and what is to be written to its memory before anybody is told.
struct Reply {
    answer: Answer,
    received: Vec<u8>,
    peer: Option<SocketAddr>,
}

impl Reply {
    fn of(result: Result<u32, i32>, more: bool, buffer: Option<u16>) -> Reply {
        Reply { answer: Answer { result, more, drained: false, buffer }, received: Vec::new(), peer: None }
    }

    fn done() -> Reply {
        Reply::of(Ok(0), false, None)
    }

    fn failed(error: &io::Error) -> Reply {
        let code = error.raw_os_error().expect("the simulated kernel speaks the system's codes");
        Reply::of(Err(code), false, None)
    }
}

/// The buffers of multishot receives, when a pool is registered.
struct ReceiveRing {
    blocks: RingBlocks,
    free: Vec<u16>,
}

/// Memory that a slot owns and the kernel may use until it has given its terminal answer.
///
/// [`claim`](Lent::claim) marks it, in debug builds: a checksum of what is initialised, a pattern in the rest (where no
/// one can see it, whatever becomes of the operation). If the marks have changed when the kernel uses the memory,
/// somebody else has written to it meanwhile.
#[derive(Debug)]
pub(crate) struct Lent {
    base: *mut u8,
    initialised: usize,
    len: usize,
    checksum: u64,
}

impl Lent {
    /// The `len` bytes at `base`, the first `initialised` of which hold something.
    fn new(base: *mut u8, initialised: usize, len: usize) -> Lent {
        let len = crate::io::op::transfer_len(len) as usize;
        Lent { base, initialised: initialised.min(len), len, checksum: 0 }
    }

    /// Marks the memory: the kernel has it from now on.
    fn claim(&mut self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.checksum = self.sum();
        let rest = (self.len - self.initialised).min(MARKED_BYTES_MAX);
        // SAFETY: the rest lies in the `len` bytes at `base`, which the slot owns and lends until the terminal answer;
        // it is given for writing wherever `initialised` is less than `len`.
        unsafe { self.base.add(self.initialised).write_bytes(MARK, rest) };
    }

    /// Panics if anybody has written to the memory since it was claimed.
    fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let rest = (self.len - self.initialised).min(MARKED_BYTES_MAX);
        // SAFETY: `claim` initialised these bytes, and the slot lends them still: the terminal answer is not given.
        let marked = unsafe { std::slice::from_raw_parts(self.base.add(self.initialised), rest) };
        assert!(
            self.checksum == self.sum() && marked.iter().all(|byte| *byte == MARK),
            "somebody wrote to memory that the kernel had: {self:?}",
        );
    }

    /// A checksum of what is initialised (FNV-1a).
    fn sum(&self) -> u64 {
        let bytes = self.initialised.min(MARKED_BYTES_MAX);
        // SAFETY: the slot lends the memory until the terminal answer, and these bytes of it are initialised.
        let bytes = unsafe { std::slice::from_raw_parts(self.base, bytes) };
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// Adds the first `bytes` to `to`.
    fn read(&self, bytes: usize, to: &mut Vec<u8>) {
        self.check();
        assert!(bytes <= self.initialised, "only what is initialised is sent");
        // SAFETY: the slot lends the memory until the terminal answer, which this kernel has not given; `bytes` of it are initialised,
        // as was just asserted.
        to.extend_from_slice(unsafe { std::slice::from_raw_parts(self.base, bytes) });
    }

    /// Writes `bytes` at its start.
    fn write(&self, bytes: &[u8]) {
        self.check();
        assert!(bytes.len() <= self.len, "a kernel does not write past what it was lent");
        // SAFETY: `len` bytes at `base` are lent for writing until the terminal answer; `bytes` is memory of ours.
        unsafe { self.base.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl SimDriver {
    /// A driver in `world`.
    ///
    /// # Errors
    ///
    /// If the event for the [`Unparker`] cannot be had: that one thing is the real kernel's.
    pub(crate) fn new(world: &SimWorld, config: &DriverConfig) -> io::Result<SimDriver> {
        let unparker = Unparker::new()?;
        Ok(SimDriver {
            number: world.join(),
            world: world.clone(),
            sockets: Vec::new(),
            table: Rc::default(),
            queue: Vec::new(),
            queue_max: config.ring_entries.max(1) as usize,
            backlog: VecDeque::new(),
            kernel: Vec::new(),
            own_in_flight: 0,
            receive_ring: None,
            receive_buffer_bytes: config.receive_buffer_bytes,
            brought: Vec::new(),
            unparker,
            capabilities: Capabilities::default(),
            counters: DriverCounters::default(),
        })
    }

    /// A descriptor that waits for connections to `port`, from any driver of the world.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` if another one does.
    pub(crate) fn listen(&mut self, port: u16) -> io::Result<Descriptor> {
        let socket = self.world.listen(port)?;
        self.open(socket)
    }

    /// The two ends of a pipe, both this driver's.
    pub(crate) fn pair(&mut self) -> io::Result<(Descriptor, Descriptor)> {
        let (one, other) = self.world.pair();
        Ok((self.open(one)?, self.open(other)?))
    }

    /// Gives a socket a number in this driver's table, and that an owner.
    fn open(&mut self, socket: SocketId) -> io::Result<Descriptor> {
        let index = self.number(socket)?;
        Ok(Descriptor::Direct(DirectDescriptor::new(index, Rc::clone(&self.table))))
    }

    /// Gives a socket a number in this driver's table.
    fn number(&mut self, socket: SocketId) -> io::Result<u32> {
        let free = self.sockets.iter().position(Option::is_none).unwrap_or(self.sockets.len());
        if free >= DESCRIPTORS_MAX {
            self.world.close(socket);
            return Err(os_error(libc::ENFILE));
        }
        if free == self.sockets.len() {
            self.sockets.push(None);
        }
        self.sockets[free] = Some(socket);
        Ok(u32::try_from(free).expect("below DESCRIPTORS_MAX"))
    }

    /// Closes what a number in the table stands for.
    fn close(&mut self, index: u32) {
        if let Some(socket) = self.sockets[index as usize].take() {
            self.world.close(socket);
            self.world.progress();
        }
    }

    /// The number of a descriptor in this driver's table.
    fn index(&self, fd: &Descriptor) -> io::Result<u32> {
        match fd {
            Descriptor::Direct(direct) if direct.belongs_to(&self.table) => Ok(direct.index()),
            Descriptor::Direct(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a direct descriptor can be used on the worker that opened it only",
            )),
            Descriptor::Os(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a simulated driver knows simulated descriptors only",
            )),
        }
    }

    /// The socket that a descriptor stands for.
    fn target(&self, fd: &Descriptor) -> io::Result<SocketId> {
        self.sockets[self.index(fd)? as usize].ok_or_else(|| os_error(libc::EBADF))
    }

    /// Lets everything happen that is due, and tells whether anything did.
    fn step(&mut self, slab: &mut StableSlab) -> bool {
        while let Some(index) = self.table.pop_closing() {
            self.close(index);
        }
        if let Some(ReceiveRing { blocks, free }) = &mut self.receive_ring {
            blocks.drain_returned(|buffer| free.push(buffer));
        }
        let admitted = self.admit();
        let completions = self.counters.completions;
        self.answer_due(slab);
        // As in a real ring, the backlog moves up into the room that this has made.
        while self.queue.len() < self.queue_max
            && let Some((token, request)) = self.backlog.pop_front()
        {
            if slab.is_queued(token) {
                self.queue_up(slab, token, request);
            }
        }
        let happened = admitted || self.counters.completions > completions;
        if happened {
            self.counters.entries += 1;
            self.world.turn();
            self.world.progress();
        }
        happened
    }

    fn queue_up(&mut self, slab: &mut StableSlab, token: Token, request: Request) {
        self.queue.push((token, request));
        self.counters.submitted += 1;
        slab.arm(token);
    }

    /// Shows the kernel what is queued, and tells whether anything was.
    fn admit(&mut self) -> bool {
        let admitted = !self.queue.is_empty();
        for (token, mut request) in self.queue.drain(..) {
            if let Request::Recv { into: lent, .. } | Request::Send { from: lent, .. } = &mut request {
                lent.iter_mut().for_each(Lent::claim);
            }
            self.kernel.push(Pending { token, request, at_ns: self.world.soon_ns(), reply: None });
        }
        admitted
    }

    /// Goes through the kernel's list in an order that the seed decides, and answers what can be.
    fn answer_due(&mut self, slab: &mut StableSlab) {
        let now_ns = self.world.now_ns();
        let mut due = 0;
        for place in 0..self.kernel.len() {
            if self.kernel[place].at_ns <= now_ns {
                self.kernel.swap(place, due);
                due += 1;
            }
        }
        for last in (1..due).rev() {
            self.kernel.swap(last, self.world.below(last + 1));
        }
        let mut place = 0;
        while place < due.min(self.kernel.len()) {
            if self.kernel[place].at_ns > now_ns {
                place += 1;
                continue;
            }
            let mut pending = self.kernel.swap_remove(place);
            if self.advance(slab, &mut pending) {
                continue;
            }
            let last = self.kernel.len();
            self.kernel.push(pending);
            self.kernel.swap(place, last);
            place += 1;
        }
    }

    /// Attempts a request, or tells what came of it; true once the terminal answer is given.
    fn advance(&mut self, slab: &mut StableSlab, pending: &mut Pending) -> bool {
        loop {
            if let Some(reply) = pending.reply.take() {
                let more = reply.answer.more;
                self.give(slab, pending, reply);
                if !more {
                    return true;
                }
                if let Request::Send { .. } = pending.request {
                    // It is sent. The second answer comes when the kernel has no use for the memory any more.
                    pending.reply = Some(Reply::done());
                    pending.at_ns = self.world.soon_ns() + 1;
                    return false;
                }
            }
            let Poll::Ready(reply) = self.attempt(&pending.request) else { return false };
            self.world.progress();
            let late = !reply.answer.more && self.world.chance(self.world.faults().late);
            pending.reply = Some(reply);
            if late {
                pending.at_ns = self.world.soon_ns() + 1;
                return false;
            }
        }
    }

    /// Writes what an answer brings, and then gives it.
    fn give(&mut self, slab: &mut StableSlab, pending: &Pending, reply: Reply) {
        match &pending.request {
            Request::Recv { into, .. } => scatter(&reply.received, into),
            Request::Send { from, .. } => from.iter().for_each(Lent::check),
            Request::Accept { peer, .. } if reply.peer.is_some() => {
                // SAFETY: it points into the slot's block, which stays until the terminal answer, given below.
                unsafe { **peer = reply.peer };
            }
            _ => {}
        }
        self.counters.completions += 1;
        if pending.token == CANCEL {
            self.own_in_flight -= 1;
            match reply.answer.result {
                Ok(_) => self.counters.cancels_won += 1,
                Err(libc::ENOENT) => self.counters.cancels_late += 1,
                Err(_) => self.counters.cancels_lost += 1,
            }
        } else {
            slab.complete(pending.token, reply.answer);
        }
    }

    /// Does what is asked, if it can be done now.
    fn attempt(&mut self, request: &Request) -> Poll<Reply> {
        let world = self.world.clone();
        Poll::Ready(match request {
            Request::Nop => Reply::done(),
            Request::Cancel { target } => self.cancel_now(*target),
            Request::Close { index } => {
                self.close(*index);
                Reply::done()
            }
            Request::Socket => self.descriptor(world.socket(), false),
            Request::Connect { socket, port } => match world.connect(*socket, *port) {
                Poll::Ready(Ok(())) => Reply::done(),
                Poll::Ready(Err(error)) => Reply::failed(&error),
                Poll::Pending => return Poll::Pending,
            },
            Request::Accept { socket, .. } => match world.accept(*socket) {
                Poll::Ready(Ok((socket, peer))) => {
                    Reply { peer: Some(peer), ..self.descriptor(socket, false) }
                }
                Poll::Ready(Err(error)) => Reply::failed(&error),
                Poll::Pending => return Poll::Pending,
            },
            Request::AcceptMany { socket } => match world.accept(*socket) {
                Poll::Ready(Ok((socket, _))) => {
                    let more = !world.chance(world.faults().multishot_ends);
                    self.descriptor(socket, more)
                }
                Poll::Ready(Err(error)) => Reply::failed(&error),
                Poll::Pending => return Poll::Pending,
            },
            Request::Recv { socket, into } => {
                let room = into.iter().map(|lent| lent.len).sum();
                match world.receivable(*socket, room) {
                    Poll::Ready(Ok(bytes)) => {
                        let received = world.receive(*socket, self.shortened(bytes));
                        Reply { received: received.clone(), ..Reply::of(count(&received), false, None) }
                    }
                    Poll::Ready(Err(error)) => Reply::failed(&error),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Request::RecvMany { socket, once } => {
                match world.receivable(*socket, self.receive_buffer_bytes as usize) {
                    Poll::Ready(Ok(0)) => Reply::done(),
                    Poll::Ready(Ok(bytes)) => self.receive_buffer(*socket, bytes, *once),
                    Poll::Ready(Err(error)) => Reply::failed(&error),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Request::Send { socket, from, zero_copy } => {
                let len = from.iter().map(|lent| lent.len).sum();
                match world.sendable(*socket, len) {
                    Poll::Ready(Ok(bytes)) => {
                        let sent = gather(from, self.shortened(bytes));
                        world.send(*socket, &sent);
                        Reply::of(count(&sent), *zero_copy, None)
                    }
                    Poll::Ready(Err(error)) => Reply::failed(&error),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Request::Shutdown { socket, how } => match world.shut_down(*socket, *how) {
                Ok(()) => Reply::done(),
                Err(error) => Reply::failed(&error),
            },
        })
    }

    /// An answer that brings a descriptor.
    fn descriptor(&mut self, socket: SocketId, more: bool) -> Reply {
        match self.number(socket) {
            Ok(index) => Reply::of(Ok(index), more, None),
            Err(error) => Reply::failed(&error),
        }
    }

    /// An answer that brings a buffer, or says that there is none.
    fn receive_buffer(&mut self, socket: SocketId, bytes: usize, once: bool) -> Reply {
        let bytes = self.shortened(bytes);
        let dry = self.world.chance(self.world.faults().dry);
        let buf = match &mut self.receive_ring {
            _ if dry => None,
            Some(ReceiveRing { blocks, free }) => free.pop().map(|buffer| {
                let received = self.world.receive(socket, bytes);
                // SAFETY: the buffer is on the free list, so it is neither a `FixedBuf` nor known to anybody else; it has
                // room for `receive_buffer_bytes`, and `bytes` was bounded by that. It is full from here on, and comes
                // back to the list only by `drain_returned`.
                unsafe {
                    blocks.ptr(buffer).as_ptr().copy_from_nonoverlapping(received.as_ptr(), received.len());
                    blocks.take(buffer, received.len())
                }
            }),
            None => {
                let mut buf = FixedBuf::heap(self.receive_buffer_bytes as usize);
                buf.extend_from_slice(&self.world.receive(socket, bytes));
                Some(buf)
            }
        };
        match buf {
            Some(buf) => {
                let more = !once && !self.world.chance(self.world.faults().multishot_ends);
                let free = self.brought.iter().position(Option::is_none).unwrap_or(self.brought.len());
                let number = u16::try_from(free).expect("a test has fewer buffers on their way");
                if free == self.brought.len() {
                    self.brought.push(None);
                }
                let result = count(&buf);
                self.brought[free] = Some(buf);
                Reply::of(result, more, Some(number))
            }
            None => {
                self.counters.receive_ring_dry += 1;
                Reply::failed(&os_error(libc::ENOBUFS))
            }
        }
    }

    /// Stops a request, if it is not too late. What has been done already is told all the same.
    fn cancel_now(&mut self, target: Token) -> Reply {
        let found = |pending: &Pending| pending.token == target && pending.reply.is_none();
        let Some(place) = self.kernel.iter().position(found) else {
            return Reply::failed(&os_error(libc::ENOENT));
        };
        if self.world.chance(self.world.faults().cancel_loses) {
            let mut pending = self.kernel.swap_remove(place);
            if let Poll::Ready(mut reply) = self.attempt(&pending.request) {
                // It completes all the same; one that would have gone on ends here.
                reply.answer.more = false;
                pending.at_ns = self.world.soon_ns();
                pending.reply = Some(reply);
                self.kernel.push(pending);
                return Reply::failed(&os_error(libc::EALREADY));
            }
            self.kernel.push(pending);
        }
        let place = self.kernel.iter().position(found).expect("found above, and put back");
        self.kernel[place].reply = Some(Reply::failed(&os_error(libc::ECANCELED)));
        self.kernel[place].at_ns = self.world.soon_ns();
        Reply::done()
    }

    /// Fewer bytes than could be, now and then, but at least one if there is one.
    fn shortened(&self, bytes: usize) -> usize {
        if bytes > 1 && self.world.chance(self.world.faults().short) {
            1 + self.world.below(bytes)
        } else {
            bytes
        }
    }
}

impl Driver for SimDriver {
    type Entry = Request;

    fn submit(&mut self, slab: &mut StableSlab, token: Token, entry: Request) {
        if self.backlog.is_empty() && self.queue.len() < self.queue_max {
            self.queue_up(slab, token, entry);
        } else {
            self.counters.backlogged += 1;
            self.backlog.push_back((token, entry));
        }
    }

    fn cancel(&mut self, token: Token) {
        self.counters.cancels += 1;
        self.own_in_flight += 1;
        self.queue.push((CANCEL, Request::Cancel { target: token }));
    }

    fn process_completions(&mut self, slab: &mut StableSlab) -> io::Result<()> {
        self.world.turn();
        self.step(slab);
        Ok(())
    }

    /// Never blocks: it moves the clock, or returns so that others can be turned.
    ///
    /// # Panics
    ///
    /// If nothing can ever happen any more: the simulated program is deadlocked.
    fn park(&mut self, slab: &mut StableSlab, deadline_ns: Option<u64>) -> io::Result<()> {
        self.counters.parks += 1;
        let happened = self.step(slab) || slab.has_notices();
        if take_unparked(&self.unparker) || happened {
            self.world.progress();
            return Ok(());
        }
        let now_ns = self.world.now_ns();
        let answers_ns = self.kernel.iter().map(|pending| pending.at_ns).filter(|at_ns| *at_ns > now_ns);
        let wake_ns = answers_ns.chain(deadline_ns).min();
        if wake_ns.is_none_or(|wake_ns| wake_ns > now_ns) {
            self.world.idle(self.number, wake_ns, &self.unparker);
            self.step(slab);
        }
        Ok(())
    }

    fn own(&mut self, yields: Yields, answer: Answer) -> Completion {
        let Ok(number) = answer.result else { return answer.with(Resource::None) };
        if let Some(buffer) = answer.buffer {
            let buf = self.brought[usize::from(buffer)].take();
            return answer.with(Resource::Buffer(buf.expect("a buffer gets its owner once")));
        }
        answer.with(match yields {
            Yields::Number | Yields::Buffer => Resource::None,
            Yields::OsDescriptor => unreachable!("all descriptors here are direct ones"),
            Yields::DirectDescriptor => Resource::Descriptor(Descriptor::Direct(DirectDescriptor::new(
                number,
                Rc::clone(&self.table),
            ))),
        })
    }

    fn has_news(&mut self) -> bool {
        let now_ns = self.world.now_ns();
        self.kernel.iter().any(|pending| pending.at_ns <= now_ns)
    }

    fn register_buffers(&mut self, pool: &Pool, config: &DriverConfig) -> usize {
        if config.receive_buffers == 0 || config.without.contains(&"receive_ring") {
            self.capabilities.refuse("receive_ring", "switched off", "set `DriverConfig::receive_buffers`");
            return 0;
        }
        let Some(blocks) = pool.arena().carve_ring(config.receive_buffers, config.receive_buffer_bytes)
        else {
            self.capabilities.refuse("receive_ring", "no room", "make the pool larger; the heap stands in");
            return 0;
        };
        let (free, count) = ((0..blocks.count()).collect(), usize::from(blocks.count()));
        self.receive_ring = Some(ReceiveRing { blocks, free });
        self.capabilities.grant("receive_ring");
        count
    }

    fn update_buffers(&mut self, _changes: Vec<ChunkChange>) {}

    fn unparker(&self) -> Unparker {
        self.unparker.clone()
    }

    fn now_ns(&self) -> u64 {
        self.world.read_clock()
    }

    fn quiesce(&mut self, _slab: &mut StableSlab) -> bool {
        self.own_in_flight == 0 && !self.table.has_closing()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn capabilities_mut(&mut self) -> &mut Capabilities {
        &mut self.capabilities
    }

    fn counters(&self) -> DriverCounters {
        self.counters
    }
}

impl Drop for SimDriver {
    /// Closes what is open, and writes to whatever the kernel still had: nobody may have freed it.
    fn drop(&mut self) {
        for pending in &self.kernel {
            if let Request::Recv { into, .. } = &pending.request {
                for lent in into {
                    // SAFETY: the request's terminal answer was not given, so its slot still lends the memory: a slab
                    // that is dropped with operations in flight leaks them. If that were not so, this would show it.
                    unsafe { lent.base.write_bytes(MARK, lent.len) };
                }
            }
        }
        for socket in self.sockets.iter().flatten() {
            self.world.close(*socket);
        }
        self.world.leave(self.number);
    }
}

impl fmt::Debug for SimDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDriver")
            .field("number", &self.number)
            .field("in_kernel", &self.kernel.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Writes `bytes` into the pieces, each filled before the next.
fn scatter(mut bytes: &[u8], into: &[Lent]) {
    for lent in into {
        let (here, rest) = bytes.split_at(bytes.len().min(lent.len));
        lent.write(here);
        bytes = rest;
    }
}

/// The first `bytes` of the pieces, one after the other.
fn gather(from: &[Lent], bytes: usize) -> Vec<u8> {
    let mut sent = Vec::with_capacity(bytes);
    for lent in from {
        lent.read(lent.len.min(bytes - sent.len()), &mut sent);
    }
    sent
}

/// A number of bytes as an answer.
#[expect(clippy::unnecessary_wraps, reason = "it is the result of an answer")]
fn count(bytes: &[u8]) -> Result<u32, i32> {
    Ok(u32::try_from(bytes.len()).expect("bounded by an inbox or a buffer"))
}
