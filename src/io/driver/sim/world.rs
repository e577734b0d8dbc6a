//! What the drivers of one simulation share: the clock, the chances, the sockets, and who is idle.
//!
//! **Time** stands still while anybody has something to do, but for [`TURN_NS`] that each turn takes. It moves when the
//! drivers have nothing due: to the earliest answer or deadline. A park never blocks, since the others run on the same
//! thread: a driver that parks with nothing due says when it wants to be woken, and returns. The clock moves once every
//! driver has said so, or once one has said so twice in a row (the others are not being turned at all). If all are idle
//! and nothing is left that could ever happen, the simulated program is deadlocked, and the park panics and says so.
//!
//! **Chances** come from one seeded generator, drawn from in the order of events. So the same seed gives the same run.
//!
//! **Sockets** are a listener's queue, or one end of a pipe with an inbox of bounded size. They are the world's and have
//! numbers that are never used twice; each driver has its own table of descriptors over them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::rc::Rc;
use std::task::Poll;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::io::driver::Unparker;

/// What a turn takes on the virtual clock: a task that yields for ever must not keep timers from firing.
const TURN_NS: u64 = 1_000;

/// Bytes that wait at one end of a pipe at most: few enough that a test meets back-pressure after some buffers.
const INBOX_BYTES_MAX: usize = 64 * 1024;

/// Connections that wait to be accepted at most: what Linux took as `SOMAXCONN` for long.
const LISTEN_MAX: usize = 128;

/// Fruitless parks in a row, with nothing in sight, that several drivers may make before they count as deadlocked. One
/// idle round proves nothing: what they send each other by other ways than sockets is not seen here.
const IDLE_PARKS_MAX: u32 = 100_000;

/// What goes wrong, how often. Each chance is out of 256.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// The longest time from submission to the first attempt, and from attempt to answer where that is late.
    pub(crate) delay_ns_max: u64,
    /// Fewer bytes are received or sent than could be.
    pub(crate) short: u8,
    /// What was done is told later: a cancellation may come between, and lose.
    pub(crate) late: u8,
    /// A cancellation lets its target try once more, and loses if that succeeds.
    pub(crate) cancel_loses: u8,
    /// The receive ring is found empty though it is not.
    pub(crate) dry: u8,
    /// A multishot operation ends with a success that could have been followed by more.
    pub(crate) multishot_ends: u8,
}

impl Faults {
    /// Everything works, at once.
    pub(crate) const NONE: Faults =
        Faults { delay_ns_max: 0, short: 0, late: 0, cancel_loses: 0, dry: 0, multishot_ends: 0 };

    /// Everything goes wrong now and then.
    pub(crate) const SOME: Faults =
        Faults { delay_ns_max: 50_000, short: 64, late: 96, cancel_loses: 128, dry: 32, multishot_ends: 16 };
}

/// The number of a socket in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SocketId(u64);

/// One simulation, shared by its drivers. A handle; it does not leave its thread.
#[derive(Clone)]
pub(crate) struct SimWorld(Rc<World>);

struct World {
    /// Shared with the timers of the workers that live in this world.
    now_ns: Rc<Cell<u64>>,
    /// How often a driver was asked for it.
    readings: Cell<u64>,
    random: Cell<u64>,
    faults: Faults,
    sockets: RefCell<BTreeMap<SocketId, Socket>>,
    sockets_made: Cell<u64>,
    drivers: Cell<usize>,
    drivers_made: Cell<u32>,
    /// The drivers that have parked with nothing due since something last happened.
    idle: RefCell<BTreeMap<u32, Idle>>,
    idle_parks: Cell<u32>,
}

/// What an idle driver waits for.
struct Idle {
    wake_ns: Option<u64>,
    unparker: Unparker,
}

enum Socket {
    /// Made, and neither connected nor listening.
    Fresh,
    Listener {
        port: u16,
        waiting: VecDeque<(SocketId, SocketAddr)>,
    },
    Stream {
        peer: SocketId,
        inbox: VecDeque<u8>,
        /// Nothing more will come.
        read_ended: bool,
        /// Nothing more may be sent.
        write_ended: bool,
    },
}

impl Socket {
    fn stream(peer: SocketId) -> Socket {
        Socket::Stream { peer, inbox: VecDeque::new(), read_ended: false, write_ended: false }
    }
}

impl SimWorld {
    /// A world in which `seed` decides.
    pub(crate) fn new(seed: u64, faults: Faults) -> SimWorld {
        SimWorld(Rc::new(World {
            now_ns: Rc::default(),
            readings: Cell::new(0),
            random: Cell::new(seed),
            faults,
            sockets: RefCell::default(),
            sockets_made: Cell::new(0),
            drivers: Cell::new(0),
            drivers_made: Cell::new(0),
            idle: RefCell::default(),
            idle_parks: Cell::new(0),
        }))
    }

    /// The virtual clock.
    pub(crate) fn clock(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.0.now_ns)
    }

    /// The time.
    pub(crate) fn now_ns(&self) -> u64 {
        self.0.now_ns.get()
    }

    /// The time, as a driver is asked for it.
    pub(crate) fn read_clock(&self) -> u64 {
        self.0.readings.set(self.readings() + 1);
        self.now_ns()
    }

    /// How often drivers were asked for the time.
    pub(crate) fn readings(&self) -> u64 {
        self.0.readings.get()
    }

    /// Sockets that are open: 0 when everything was closed.
    pub(crate) fn sockets_open(&self) -> usize {
        self.0.sockets.borrow().len()
    }

    pub(super) fn faults(&self) -> Faults {
        self.0.faults
    }

    /// The next number of the seed's sequence (splitmix64, Steele, Lea and Flood 2014; its constants).
    pub(super) fn random(&self) -> u64 {
        let state = self.0.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.random.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("a usize has at most 64 bits");
        usize::try_from(self.random() % bound).expect("below a usize")
    }

    /// True `of_256` times in 256.
    pub(super) fn chance(&self, of_256: u8) -> bool {
        self.random() % 256 < u64::from(of_256)
    }

    /// When something begins that is begun now.
    pub(super) fn soon_ns(&self) -> u64 {
        self.now_ns() + self.random() % (self.0.faults.delay_ns_max + 1)
    }

    /// Adds a driver, and gives it its number.
    pub(super) fn join(&self) -> u32 {
        let number = self.0.drivers_made.get();
        self.0.drivers_made.set(number + 1);
        self.0.drivers.set(self.0.drivers.get() + 1);
        number
    }

    /// Takes a driver out. Those that wait for everybody no longer wait for it.
    pub(super) fn leave(&self, driver: u32) {
        self.0.drivers.set(self.0.drivers.get() - 1);
        self.0.idle.borrow_mut().remove(&driver);
    }

    /// Something happened: nobody is known to be idle any more.
    pub(super) fn progress(&self) {
        self.0.idle.borrow_mut().clear();
        self.0.idle_parks.set(0);
    }

    /// A turn has taken its time. What whoever took it has done since may have given the idle ones something to do.
    pub(super) fn turn(&self) {
        self.0.now_ns.set(self.now_ns() + TURN_NS);
        self.0.idle.borrow_mut().clear();
    }

    /// Notes that `driver` has nothing due before `wake_ns`, and moves the clock if nobody else has either.
    ///
    /// # Panics
    ///
    /// If nothing can ever happen any more.
    pub(super) fn idle(&self, driver: u32, wake_ns: Option<u64>, unparker: &Unparker) {
        let again;
        {
            let idle = &mut *self.0.idle.borrow_mut();
            again = idle.insert(driver, Idle { wake_ns, unparker: unparker.clone() }).is_some();
            let all = idle.len() == self.0.drivers.get();
            if !all && !again || idle.values().any(|driver| is_unparked(&driver.unparker)) {
                return;
            }
            if let Some(wake_ns) = idle.values().filter_map(|driver| driver.wake_ns).min() {
                self.0.now_ns.set(self.now_ns().max(wake_ns));
                idle.clear();
                self.0.idle_parks.set(0);
                return;
            }
        }
        let parks = self.0.idle_parks.get() + 1;
        self.0.idle_parks.set(parks);
        let alone = self.0.drivers.get() == 1;
        assert!(
            !alone && parks < IDLE_PARKS_MAX,
            "simulated deadlock at {} ns: every driver is parked, no answer is on its way and no deadline is set",
            self.now_ns(),
        );
    }

    /// A socket that is not connected.
    pub(super) fn socket(&self) -> SocketId {
        self.add(Socket::Fresh)
    }

    /// A socket that waits for connections to `port`.
    pub(super) fn listen(&self, port: u16) -> io::Result<SocketId> {
        match self.listener(port) {
            Some(_) => Err(os_error(libc::EADDRINUSE)),
            None => Ok(self.add(Socket::Listener { port, waiting: VecDeque::new() })),
        }
    }

    /// Two connected sockets.
    pub(super) fn pair(&self) -> (SocketId, SocketId) {
        let (one, other) = (self.socket(), self.socket());
        let sockets = &mut *self.0.sockets.borrow_mut();
        sockets.insert(one, Socket::stream(other));
        sockets.insert(other, Socket::stream(one));
        (one, other)
    }

    /// Connects to `port`. Waits while the listener's queue is full.
    pub(super) fn connect(&self, id: SocketId, port: u16) -> Poll<io::Result<()>> {
        match self.0.sockets.borrow().get(&id) {
            Some(Socket::Fresh) => {}
            Some(Socket::Stream { .. }) => return Poll::Ready(Err(os_error(libc::EISCONN))),
            Some(Socket::Listener { .. }) => return Poll::Ready(Err(os_error(libc::EINVAL))),
            None => return Poll::Ready(Err(os_error(libc::EBADF))),
        }
        let Some(listener) = self.listener(port) else {
            return Poll::Ready(Err(os_error(libc::ECONNREFUSED)));
        };
        if self.waiting(listener) >= LISTEN_MAX {
            return Poll::Pending;
        }
        let served = self.add(Socket::stream(id));
        let from_port = 1024 + u16::try_from(id.0 % 60_000).expect("below 60,000");
        let sockets = &mut *self.0.sockets.borrow_mut();
        sockets.insert(id, Socket::stream(served));
        if let Some(Socket::Listener { waiting, .. }) = sockets.get_mut(&listener) {
            waiting.push_back((served, (Ipv4Addr::LOCALHOST, from_port).into()));
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the connection that has waited longest.
    pub(super) fn accept(&self, id: SocketId) -> Poll<io::Result<(SocketId, SocketAddr)>> {
        match self.0.sockets.borrow_mut().get_mut(&id) {
            Some(Socket::Listener { waiting, .. }) => match waiting.pop_front() {
                Some(connection) => Poll::Ready(Ok(connection)),
                None => Poll::Pending,
            },
            Some(_) => Poll::Ready(Err(os_error(libc::EINVAL))),
            None => Poll::Ready(Err(os_error(libc::EBADF))),
        }
    }

    /// Bytes that could be received, at most `room`; 0 at the end of the stream.
    pub(super) fn receivable(&self, id: SocketId, room: usize) -> Poll<io::Result<usize>> {
        match self.0.sockets.borrow().get(&id) {
            Some(Socket::Stream { inbox, read_ended, .. }) => match inbox.len().min(room) {
                0 if !inbox.is_empty() || *read_ended => Poll::Ready(Ok(0)),
                0 => Poll::Pending,
                bytes => Poll::Ready(Ok(bytes)),
            },
            Some(_) => Poll::Ready(Err(os_error(libc::ENOTCONN))),
            None => Poll::Ready(Err(os_error(libc::EBADF))),
        }
    }

    /// Takes `bytes` that [`receivable`](Self::receivable) said are there.
    pub(super) fn receive(&self, id: SocketId, bytes: usize) -> Vec<u8> {
        match self.0.sockets.borrow_mut().get_mut(&id) {
            Some(Socket::Stream { inbox, .. }) => inbox.drain(..bytes).collect(),
            _ => Vec::new(),
        }
    }

    /// Bytes that could be sent, at most `len`. Waits while the other end's inbox is full.
    pub(super) fn sendable(&self, id: SocketId, len: usize) -> Poll<io::Result<usize>> {
        let sockets = self.0.sockets.borrow();
        match sockets.get(&id) {
            Some(Socket::Stream { peer, write_ended: false, .. }) => match sockets.get(peer) {
                Some(Socket::Stream { inbox, .. }) => match (INBOX_BYTES_MAX - inbox.len()).min(len) {
                    0 if len > 0 => Poll::Pending,
                    bytes => Poll::Ready(Ok(bytes)),
                },
                _ => Poll::Ready(Err(os_error(libc::EPIPE))),
            },
            Some(Socket::Stream { .. }) => Poll::Ready(Err(os_error(libc::EPIPE))),
            Some(_) => Poll::Ready(Err(os_error(libc::ENOTCONN))),
            None => Poll::Ready(Err(os_error(libc::EBADF))),
        }
    }

    /// Puts `bytes`, as many as [`sendable`](Self::sendable) said, into the other end's inbox.
    pub(super) fn send(&self, id: SocketId, bytes: &[u8]) {
        self.with_peer(id, |peer| {
            if let Socket::Stream { inbox, .. } = peer {
                inbox.extend(bytes);
            }
        });
    }

    /// Ends one or both directions.
    pub(super) fn shut_down(&self, id: SocketId, how: Shutdown) -> io::Result<()> {
        let (reads, writes) = match how {
            Shutdown::Read => (true, false),
            Shutdown::Write => (false, true),
            Shutdown::Both => (true, true),
        };
        match self.0.sockets.borrow_mut().get_mut(&id) {
            Some(Socket::Stream { read_ended, write_ended, .. }) => {
                *read_ended |= reads;
                *write_ended |= writes;
            }
            Some(_) => return Err(os_error(libc::ENOTCONN)),
            None => return Err(os_error(libc::EBADF)),
        }
        if writes {
            self.with_peer(id, end_reading);
        }
        Ok(())
    }

    /// Closes a socket. The other end reads what was sent, then the end of the stream.
    pub(super) fn close(&self, id: SocketId) {
        self.with_peer(id, end_reading);
        let closed = self.0.sockets.borrow_mut().remove(&id);
        if let Some(Socket::Listener { waiting, .. }) = closed {
            for (connection, _) in waiting {
                self.close(connection);
            }
        }
    }

    fn add(&self, socket: Socket) -> SocketId {
        let id = SocketId(self.0.sockets_made.get());
        self.0.sockets_made.set(id.0 + 1);
        self.0.sockets.borrow_mut().insert(id, socket);
        id
    }

    fn listener(&self, wanted: u16) -> Option<SocketId> {
        let sockets = self.0.sockets.borrow();
        sockets.iter().find_map(|(id, socket)| match socket {
            Socket::Listener { port, .. } if *port == wanted => Some(*id),
            _ => None,
        })
    }

    fn waiting(&self, listener: SocketId) -> usize {
        match self.0.sockets.borrow().get(&listener) {
            Some(Socket::Listener { waiting, .. }) => waiting.len(),
            _ => 0,
        }
    }

    fn with_peer(&self, id: SocketId, change: impl FnOnce(&mut Socket)) {
        let sockets = &mut *self.0.sockets.borrow_mut();
        let Some(Socket::Stream { peer, .. }) = sockets.get(&id) else { return };
        let peer = *peer;
        if let Some(peer) = sockets.get_mut(&peer) {
            change(peer);
        }
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWorld").field("now_ns", &self.now_ns()).finish_non_exhaustive()
    }
}

fn end_reading(socket: &mut Socket) {
    if let Socket::Stream { read_ended, .. } = socket {
        *read_ended = true;
    }
}

/// Whether somebody has rung and the driver has not looked yet.
fn is_unparked(unparker: &Unparker) -> bool {
    let event = unparker.as_fd();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut events = [PollFd::new(&event, PollFlags::IN)];
    rustix::event::poll(&mut events, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Takes the rings since the last look, if there were any.
pub(super) fn take_unparked(unparker: &Unparker) -> bool {
    let mut count = [0; 8];
    is_unparked(unparker) && rustix::io::read(unparker.as_fd(), &mut count).is_ok()
}

/// An error as the operating system would give it.
pub(super) fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
