//! The Linux backend: one io_uring per worker.
//!
//! The ring is made on the thread that submits to it, with `SINGLE_ISSUER` and `DEFER_TASKRUN` where the kernel has them:
//! completions are then posted only while this thread is inside `io_uring_enter`, which makes them cheap and batched.
//! The price is that an empty completion queue does not mean that nothing is pending; `TASKRUN_FLAG` makes the kernel say
//! so in the submission ring's flags, which every turn looks at.
//!
//! One kernel entry submits everything that is queued and runs what is pending. A turn that finds the submission queue
//! empty, no pending work flagged and no completion posted makes no system call. The completion queue's head is published
//! before each entry, since a full queue would make the kernel return at once.
//!
//! When the submission ring is full, requests wait in a backlog in order. Their slots stay *queued*: a request that is
//! dropped there never reaches the kernel.
//!
//! The driver has requests of its own, under reserved tokens: a watch for the [`Unparker`]'s event, always armed, which is
//! how other threads wake a parked worker; cancellations; the closing of direct descriptors; and a timer.
//!
//! **Lingering.** A busy worker may wait for company instead of the first answer (`DriverConfig::linger`), and a timer bounds that.
//! Each entry could bring the bound along, but a timer that is the machine's next one must be programmed when it is armed and again when it
//! is taken back, and in a virtual machine that made a park 20 µs longer, more than two requests' worth. So one request in the ring
//! is the timer of all waits: armed by a wait that finds none, never taken back, and its answer ends whichever wait it meets
//! (the kernel returns for a timeout, however many answers are wanted). A wait that began after the arming ends sooner than it
//! might. If the timer has expired when a wait begins, though the driver has not seen the answer, the kernel takes that for an answer like
//! others: so each wait has a bound of its own as well, of twice the time. That comes after the ring's timer, and is cheap for this reason.
#![expect(unsafe_code, reason = "enters the ring, and shows the kernel addresses of what slots own")]

mod buffer_table;
mod fs;
mod misc;
mod net;
mod receive_ring;
mod setup;
#[cfg(test)]
mod tests;
mod unpark;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::slab::StableSlab;
use super::{
    Answer, Capabilities, Completion, Descriptor, DirectDescriptor, DirectTable, Driver, DriverConfig,
    DriverCounters, Resource, Token, Yields,
};
use crate::io::buf::{ChunkChange, Pool, Registration};
use buffer_table::BufferTable;
use receive_ring::ReceiveRing;
pub(crate) use unpark::Unparker;

/// The watch for the unparker's event.
const WAKE: Token = Token::reserved(0);
/// A cancellation. Its answer says whether it won.
const CANCEL: Token = Token::reserved(1);
/// The closing of a direct descriptor.
const CLOSE_DIRECT: Token = Token::reserved(2);
/// The timer that bounds how long a busy worker waits for company.
const LINGER: Token = Token::reserved(3);

/// `IORING_ENTER_GETEVENTS`: run pending work and post completions.
const ENTER_GETEVENTS: u32 = 1;
/// `IORING_ENTER_EXT_ARG`: the argument carries a timeout.
const ENTER_EXT_ARG: u32 = 1 << 3;
/// `IORING_ENTER_REGISTERED_RING`: the descriptor is an index in the thread's table of registered rings.
const ENTER_REGISTERED_RING: u32 = 1 << 4;
/// `IORING_ENTER_NO_IOWAIT`: a thread that sleeps here is idle, not waiting for a disk.
const ENTER_NO_IOWAIT: u32 = 1 << 7;

/// One worker's io_uring.
pub(crate) struct UringDriver {
    /// Dropped before the memory that the kernel knows by index.
    ring: IoUring,
    /// The ring's index in this thread's table of registered rings, if it has one.
    ring_index: Option<u32>,
    no_iowait: bool,
    /// How long a busy worker waits for company, at an address that the kernel reads when it takes the timer; `None` for not at all.
    linger: Option<Box<Timespec>>,
    /// The same time.
    linger_ns: u64,
    /// Whether the timer is in the ring.
    linger_armed: bool,
    /// Answers for each entry, lately: a moving average, in sixteenths.
    answers_lately: u32,
    backlog: VecDeque<(Token, squeue::Entry)>,
    /// The driver's own requests that found the submission queue full.
    own_backlog: VecDeque<squeue::Entry>,
    unparker: Unparker,
    wake_armed: bool,
    /// Set by tear-down: the watch for the event is not armed again.
    closing: bool,
    /// Cancellations and closings whose answers are outstanding.
    own_in_flight: u32,
    table: Option<BufferTable>,
    receive_ring: Option<ReceiveRing>,
    direct: Option<Rc<DirectTable>>,
    capabilities: Capabilities,
    counters: DriverCounters,
    /// Has the kernel run every operation on one of its worker threads: where late writes come from.
    #[cfg(test)]
    pub(crate) force_async: bool,
}

impl UringDriver {
    /// A ring for the calling thread, which alone may use it.
    ///
    /// # Errors
    ///
    /// With an [`Unavailable`](super::Unavailable) as source, if this kernel or its configuration gives no ring that
    /// Veloq can use.
    pub(crate) fn new(config: &DriverConfig) -> io::Result<UringDriver> {
        // Before the ring is made: nothing fails behind that, so it need not be taken out of the thread's table again.
        let unparker = Unparker::new().map_err(|error| setup::unavailable(&error, config.ring_entries))?;
        let setup::Made { ring, ring_index, no_iowait, direct, capabilities } = setup::make(config)?;
        let linger = config.linger.min(LINGER_MAX);
        let linger_ns = u64::try_from(linger.as_nanos()).expect("it is not longer than the longest");
        Ok(UringDriver {
            ring,
            ring_index,
            no_iowait,
            linger: (!linger.is_zero()).then(|| Box::new(timespec(linger_ns))),
            linger_ns,
            linger_armed: false,
            answers_lately: 0,
            backlog: VecDeque::new(),
            own_backlog: VecDeque::new(),
            unparker,
            wake_armed: false,
            closing: false,
            own_in_flight: 0,
            table: None,
            receive_ring: None,
            direct: direct.then(Rc::default),
            capabilities,
            counters: DriverCounters::default(),
            #[cfg(test)]
            force_async: false,
        })
    }

    /// The index of a buffer that is registered with this ring; one of another ring's is plain memory here.
    fn fixed_index(&self, registration: Option<Registration>) -> Option<u16> {
        self.table.as_ref()?.index(registration?)
    }

    /// Carves the receive ring out of the pool's arena, and shows it to the kernel.
    fn register_receive_ring(&mut self, pool: &Pool, config: &DriverConfig) {
        const NAME: &str = "receive_ring";
        if config.receive_buffers == 0 || config.without.contains(&NAME) {
            self.capabilities.refuse(NAME, "switched off", "set `DriverConfig::receive_buffers`");
            return;
        }
        match ReceiveRing::register(&self.ring, pool, config) {
            Ok(ring) => {
                let (wanted, found) = (config.receive_buffers.next_power_of_two(), ring.count());
                self.receive_ring = Some(ring);
                if found < wanted {
                    let why = format!("the pool has room for {found} buffers, not for {wanted}");
                    self.capabilities.grant_part(NAME, why, "make the pool larger");
                } else {
                    self.capabilities.grant(NAME);
                }
            }
            Err(error) => {
                let why = match error.raw_os_error() {
                    Some(libc::ENOMEM) => {
                        format!("{} has no room for its page of addresses", setup::memlock())
                    }
                    _ => error.to_string(),
                };
                let remedy =
                    "raise RLIMIT_MEMLOCK (`ulimit -l`); until then each receive brings its own buffer";
                self.capabilities.refuse(NAME, why, remedy);
            }
        }
    }

    /// Makes the pool's memory known to the kernel by index: what it has now, and from now on what comes.
    fn register_arena(&mut self, pool: &Pool, config: &DriverConfig) {
        const NAME: &str = "registered_buffers";
        if config.without.contains(&NAME) {
            self.capabilities.refuse(NAME, "switched off", setup::REMEDY_SWITCH);
            return;
        }
        pool.watch();
        let ring = &self.ring;
        let registered = BufferTable::new(ring, config.budget).and_then(|mut table| {
            let changes = pool.take_changes();
            changes.into_iter().try_for_each(|change| table.update(ring, change))?;
            Ok(table)
        });
        match registered {
            Ok(table) => {
                self.table = Some(table);
                self.capabilities.grant(NAME);
            }
            Err(error) => {
                pool.unwatch();
                let bytes = pool.arena().len();
                let why = match error.raw_os_error() {
                    Some(libc::ENOMEM) => {
                        format!(
                            "a worker's share of {} has no room for {} KiB",
                            setup::memlock(),
                            bytes / 1024
                        )
                    }
                    _ => error.to_string(),
                };
                let remedy = "raise RLIMIT_MEMLOCK (`ulimit -l`) or make the pool smaller; until then buffers \
                              travel as plain memory";
                self.capabilities.refuse(NAME, why, remedy);
            }
        }
    }

    /// The group of the receive ring, if there is one.
    fn receive_group(&self) -> io::Result<u16> {
        match &self.receive_ring {
            Some(ring) => Ok(ring.group()),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Refuses direct descriptors where the ring has no table for them.
    fn check_direct(&self, wanted: bool) -> io::Result<()> {
        if wanted && self.direct.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this worker's ring has no table of direct descriptors (`DriverConfig::direct_descriptors`)",
            ));
        }
        Ok(())
    }

    /// What the kernel calls a descriptor.
    fn target(&self, fd: &Descriptor) -> io::Result<Target> {
        match fd {
            Descriptor::Os(fd) => Ok(Target::Os(Fd(fd.as_raw_fd()))),
            Descriptor::Direct(direct) => match &self.direct {
                Some(table) if direct.belongs_to(table) => Ok(Target::Direct(Fixed(direct.index()))),
                _ => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a direct descriptor can be used on the worker that opened it only",
                )),
            },
        }
    }

    /// Puts an entry into the submission queue, or gives it back if that is full.
    fn push(&mut self, entry: squeue::Entry) -> Result<(), squeue::Entry> {
        let mut queue = self.ring.submission();
        // SAFETY: what the entry points to is owned by its slot, or by the driver itself for its own requests, and keeps
        // its address until the terminal completion is reaped (`PlatformOp`'s contract).
        match unsafe { queue.push(&entry) } {
            Ok(()) => Ok(()),
            Err(_) => Err(entry),
        }
    }

    /// Queues a request of the driver's own.
    fn push_own(&mut self, entry: squeue::Entry) {
        if let Err(entry) = self.push(entry) {
            self.own_backlog.push_back(entry);
        }
    }

    /// Queues what the turn has left to do: own requests, the watch for wakes, the closing of direct descriptors, and the
    /// backlog, in this order, as far as there is room.
    #[inline]
    fn fill(&mut self, slab: &mut StableSlab) {
        let has_own = !self.own_backlog.is_empty() || (!self.wake_armed && !self.closing);
        let has_closing = self.direct.as_ref().is_some_and(|table| table.has_closing());
        if has_own || has_closing || !self.backlog.is_empty() {
            self.fill_in(slab);
        }
    }

    /// The same when there is something. (Out of line: most turns have nothing, and come by twice.)
    #[inline(never)]
    fn fill_in(&mut self, slab: &mut StableSlab) {
        while let Some(entry) = self.own_backlog.pop_front() {
            if let Err(entry) = self.push(entry) {
                self.own_backlog.push_front(entry);
                return;
            }
        }
        if !self.wake_armed && !self.closing {
            // Once for all wakes: each write to the event is an answer, and nobody need read the event, which would cost more than all
            // that a sleeping worker does otherwise.
            let event = Fd(self.unparker.as_fd().as_raw_fd());
            let watch = opcode::PollAdd::new(event, libc::POLLIN.cast_unsigned().into()).multi(true).build();
            self.wake_armed = true;
            self.push_own(watch.user_data(WAKE.to_user_data()));
        }
        while let Some(index) = self.direct.as_ref().and_then(|table| table.pop_closing()) {
            let close = opcode::Close::new(Fixed(index)).build();
            self.own_in_flight += 1;
            self.push_own(close.user_data(CLOSE_DIRECT.to_user_data()));
        }
        while let Some((token, entry)) = self.backlog.pop_front() {
            if !slab.is_queued(token) {
                continue; // Dropped or cancelled while it waited: the kernel never sees it.
            }
            if let Err(entry) = self.push(entry) {
                self.backlog.push_front((token, entry));
                return;
            }
            self.counters.submitted += 1;
            slab.arm(token);
        }
    }

    /// Whether an entry would do anything: something is queued, or the kernel has flagged pending work.
    fn must_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Enters the kernel once. Submits everything queued; with `wait`, sleeps until a completion or the timeout.
    fn enter(&mut self, wait: Option<Wait>) -> io::Result<()> {
        let to_submit = self.queued();
        let mut flags = ENTER_GETEVENTS;
        if self.ring_index.is_some() {
            flags |= ENTER_REGISTERED_RING;
        }
        self.counters.entries += 1;
        let entered = match wait {
            None => self.enter_raw(to_submit, 0, flags, None),
            Some(Wait { answers, timeout }) => {
                self.counters.parks += 1;
                if self.no_iowait {
                    flags |= ENTER_NO_IOWAIT;
                }
                match &timeout {
                    None => self.enter_raw(to_submit, answers, flags, None),
                    Some(timeout) => {
                        let args = SubmitArgs::new().timespec(timeout);
                        self.enter_raw(to_submit, answers, flags | ENTER_EXT_ARG, Some(&args))
                    }
                }
            }
        };
        match entered.map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) => Ok(()),
            // The time is up; a signal came; the kernel wants its completions reaped first, or has no memory just now.
            // None of them says that nothing was submitted: the submission queue's head does.
            Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn enter_raw(
        &self,
        to_submit: u32,
        min_complete: u32,
        flags: u32,
        args: Option<&SubmitArgs<'_, '_>>,
    ) -> io::Result<()> {
        let fd = match self.ring_index {
            Some(index) => libc::c_long::from(index),
            None => libc::c_long::from(self.ring.as_raw_fd()),
        };
        let (arg, arg_bytes) = match args {
            Some(args) => (std::ptr::from_ref(args).cast::<libc::c_void>(), size_of::<SubmitArgs<'_, '_>>()),
            None => (std::ptr::null(), 0),
        };
        // SAFETY: the descriptor is our ring's, or its index in this thread's table. The entries shown hold addresses
        // that stay valid (see `push`). With `ENTER_EXT_ARG`, `arg` is an `io_uring_getevents_arg` (which `SubmitArgs`
        // is, transparently) that outlives the call; without, it is null.
        let result = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, fd, to_submit, min_complete, flags, arg, arg_bytes)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Stores every posted completion in the slab.
    fn reap(&mut self, slab: &mut StableSlab) {
        let before = self.counters.completions;
        let UringDriver { ring, counters, wake_armed, linger_armed, own_in_flight, .. } = self;
        // The iterator's end publishes the head, also if something below fails half way.
        for entry in ring.completion() {
            counters.completions += 1;
            match Token::from_user_data(entry.user_data()) {
                WAKE => *wake_armed = cqueue::more(entry.flags()),
                CANCEL => {
                    *own_in_flight -= 1;
                    match -entry.result() {
                        0 => counters.cancels_won += 1,
                        libc::ENOENT => counters.cancels_late += 1,
                        _ => counters.cancels_lost += 1,
                    }
                }
                CLOSE_DIRECT => *own_in_flight -= 1,
                LINGER => *linger_armed = false,
                token => {
                    let answer = Answer {
                        result: u32::try_from(entry.result()).map_err(|_| -entry.result()),
                        more: cqueue::more(entry.flags()),
                        drained: !cqueue::sock_nonempty(entry.flags()),
                        buffer: cqueue::buffer_select(entry.flags()),
                    };
                    if answer.result == Err(libc::ENOBUFS) && slab.yields(token) == Yields::Buffer {
                        counters.receive_ring_dry += 1;
                    }
                    slab.complete(token, answer);
                }
            }
        }
        let answers = u32::try_from((self.counters.completions - before).min(1 << 12)).expect("just bounded");
        // An eighth of each new number, in sixteenths.
        self.answers_lately = self.answers_lately - self.answers_lately / 8 + answers * 2;
    }

    /// Entries of the submission queue that the kernel has not taken.
    fn queued(&mut self) -> u32 {
        u32::try_from(self.ring.submission().len()).expect("a ring has at most 32,768 entries")
    }

    /// What a park waits for. A busy worker with something to send waits for company, as long as `linger` allows: what it
    /// sends is mostly answered at once, which alone is no reason to wake.
    fn wait(&mut self, left_ns: Option<u64>) -> Wait {
        let lately = self.answers_lately / 16;
        let queued = self.queued();
        let timeout = left_ns.map(timespec);
        if lately < LINGER_ANSWERS_MIN || queued == 0 || !self.arm_linger() {
            return Wait { answers: 1, timeout };
        }
        let latest_ns = 2 * self.linger_ns;
        Wait {
            answers: queued + (lately / 2).min(LINGER_ANSWERS_MAX),
            timeout: Some(timespec(left_ns.map_or(latest_ns, |left_ns| left_ns.min(latest_ns)))),
        }
    }

    /// Sees to it that the timer for a wait is in the ring. Says so if it is not to be had.
    fn arm_linger(&mut self) -> bool {
        let Some(linger) = self.linger.as_deref().filter(|_| !self.closing) else { return false };
        if !self.linger_armed {
            // Read when the kernel takes the entry; the box lives as long as the ring.
            let timer = opcode::Timeout::new(linger).build();
            self.linger_armed = self.push(timer.user_data(LINGER.to_user_data())).is_ok();
        }
        self.linger_armed
    }

    /// Hands returned receive buffers to the kernel again.
    fn refill_receive_ring(&mut self) {
        if let Some(ring) = &mut self.receive_ring {
            ring.refill();
        }
    }
}

/// What an entry that may sleep waits for.
struct Wait {
    /// So many completions.
    answers: u32,
    /// Or so long.
    timeout: Option<Timespec>,
}

/// Takes ownership of a descriptor that the kernel has just made for us.
fn own_fd(fd: u32) -> OwnedFd {
    let raw = RawFd::try_from(fd).expect("the kernel's descriptors are small and not negative");
    // SAFETY: the caller passes the result of a successful accept, open or socket that was just reaped from the ring;
    // it is open, and each completion is decoded once, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn timespec(ns: u64) -> Timespec {
    let nanos = u32::try_from(ns % 1_000_000_000).expect("a remainder of 10^9 fits");
    Timespec::new().sec(ns / 1_000_000_000).nsec(nanos)
}

/// Answers at a time from which on a worker counts as busy: below, waiting for more would delay without saving.
const LINGER_ANSWERS_MIN: u32 = 4;

/// Answers that a busy worker waits for at most: by then the cost of an entry is spread thin enough.
const LINGER_ANSWERS_MAX: u32 = 16;

/// The longest wait for company. The kernel refuses a time that its clock cannot hold, and a refused timer would bound nothing.
const LINGER_MAX: Duration = Duration::from_secs(3600);

/// What the kernel calls a descriptor: a number of the process, or an index in the ring's table.
enum Target {
    Os(Fd),
    Direct(Fixed),
}

/// Builds an entry for either kind of descriptor: the two types share a trait that cannot be named.
macro_rules! on_target {
    ($target:expr, $fd:ident => $entry:expr) => {
        match $target {
            $crate::io::driver::uring::Target::Os($fd) => $entry,
            $crate::io::driver::uring::Target::Direct($fd) => $entry,
        }
    };
}
use on_target;

impl Driver for UringDriver {
    type Entry = squeue::Entry;

    fn submit(&mut self, slab: &mut StableSlab, token: Token, entry: squeue::Entry) {
        let entry = entry.user_data(token.to_user_data());
        #[cfg(test)]
        let entry = if self.force_async { entry.flags(squeue::Flags::ASYNC) } else { entry };
        if !self.backlog.is_empty() {
            self.counters.backlogged += 1;
            self.backlog.push_back((token, entry));
            return;
        }
        match self.push(entry) {
            Ok(()) => {
                self.counters.submitted += 1;
                slab.arm(token);
            }
            Err(entry) => {
                self.counters.backlogged += 1;
                self.backlog.push_back((token, entry));
            }
        }
    }

    fn cancel(&mut self, token: Token) {
        self.counters.cancels += 1;
        self.own_in_flight += 1;
        let cancel = opcode::AsyncCancel::new(token.to_user_data()).build();
        self.push_own(cancel.user_data(CANCEL.to_user_data()));
    }

    fn process_completions(&mut self, slab: &mut StableSlab) -> io::Result<()> {
        self.refill_receive_ring();
        self.fill(slab);
        if self.must_enter() {
            self.enter(None)?;
        }
        self.reap(slab);
        // What did not fit goes with the next turn's entry, which the queue's being non-empty makes sure of.
        self.fill(slab);
        Ok(())
    }

    fn park(&mut self, slab: &mut StableSlab, deadline_ns: Option<u64>) -> io::Result<()> {
        self.refill_receive_ring();
        self.fill(slab);
        let waits_behind = !self.backlog.is_empty() || !self.own_backlog.is_empty();
        let has_news = !self.ring.completion().is_empty() || slab.has_notices();
        if waits_behind || has_news {
            return self.process_completions(slab);
        }
        let left_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(self.now_ns()));
        let was_armed = self.linger_armed;
        let wait = self.wait(left_ns);
        let arms = self.linger_armed && !was_armed;
        self.enter(Some(wait))?;
        self.reap(slab);
        if arms && !self.linger_armed {
            // All the time that there is, and no company: the busy time is over, and nobody else shall wait for it.
            self.answers_lately = 0;
        }
        Ok(())
    }

    fn own(&mut self, yields: Yields, answer: Answer) -> Completion {
        let Ok(number) = answer.result else {
            // A receive that failed on a kernel thread has used up the buffer that it picked: it goes back to the ring.
            if let (Some(buffer), Some(ring)) = (answer.buffer, &mut self.receive_ring) {
                drop(ring.filled(buffer, 0));
            }
            return answer.with(Resource::None);
        };
        // An answer that names a buffer has one, also if it is stale and nobody knows what it was to yield.
        if let (Some(buffer), Some(ring)) = (answer.buffer, &mut self.receive_ring) {
            return answer.with(Resource::Buffer(ring.filled(buffer, number)));
        }
        answer.with(match yields {
            Yields::Number | Yields::Buffer => Resource::None,
            Yields::OsDescriptor => Resource::Descriptor(Descriptor::Os(own_fd(number))),
            Yields::DirectDescriptor => {
                let table =
                    self.direct.as_ref().expect("a direct descriptor was asked of a ring that has a table");
                Resource::Descriptor(Descriptor::Direct(DirectDescriptor::new(number, Rc::clone(table))))
            }
        })
    }

    fn has_news(&mut self) -> bool {
        let queue = self.ring.submission();
        let flagged = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        flagged || !self.ring.completion().is_empty()
    }

    fn register_buffers(&mut self, pool: &Pool, config: &DriverConfig) -> usize {
        // The receive ring first: its page of addresses is worth more than the arena's being known.
        self.register_receive_ring(pool, config);
        self.register_arena(pool, config);
        self.receive_ring.as_ref().map_or(0, |ring| usize::from(ring.count()))
    }

    fn update_buffers(&mut self, changes: Vec<ChunkChange>) {
        let Some(table) = &mut self.table else { return };
        for change in changes {
            // Refused is counted, and no reason to stop: the chunk's buffers travel as plain memory.
            let _refused = table.update(&self.ring, change);
        }
    }

    fn unparker(&self) -> Unparker {
        self.unparker.clone()
    }

    fn now_ns(&self) -> u64 {
        crate::os::monotonic_ns()
    }

    fn quiesce(&mut self, _slab: &mut StableSlab) -> bool {
        if !self.closing {
            self.closing = true;
            if self.wake_armed {
                self.cancel(WAKE);
            }
            if self.linger_armed {
                self.cancel(LINGER);
            }
        }
        let closing_left = self.direct.as_ref().is_some_and(|table| table.has_closing());
        !self.wake_armed && !self.linger_armed && self.own_in_flight == 0 && !closing_left
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn capabilities_mut(&mut self) -> &mut Capabilities {
        &mut self.capabilities
    }

    fn counters(&self) -> DriverCounters {
        let mut counters = self.counters;
        if let Some(table) = &self.table {
            (counters.chunks_registered, counters.chunks_refused) = (table.registered, table.refused);
        }
        counters
    }
}

impl Drop for UringDriver {
    /// A registered ring keeps itself open: it must leave the thread's table before its descriptor is closed.
    fn drop(&mut self) {
        if let Some(ring) = self.receive_ring.take() {
            ring.unregister(&self.ring);
        }
        if let Some(index) = self.ring_index {
            setup::unregister_ring(&self.ring, index);
        }
    }
}

impl fmt::Debug for UringDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringDriver").field("counters", &self.counters).finish_non_exhaustive()
    }
}
