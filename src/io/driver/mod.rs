//! The portable half of the kernel connection.
//!
//! A worker has one driver: the `StableSlab` that owns every operation in flight, and one backend (`Driver`) that
//! speaks to the kernel. `PlatformDriver` is the choice among the backends that this build holds. I/O objects and
//! futures reach the driver through a `DriverHandle`, a counted reference that never leaves its thread.
//!
//! ```text
//! Op::poll ─▶ DriverHandle::submit ─▶ StableSlab::insert ─▶ PlatformOp::encode ─▶ Driver::submit ─▶ (kernel)
//!                                                                                                     │
//! Op::poll ◀─ waiter woken ◀─ StableSlab::complete ◀─ Driver::process_completions / Driver::park ◀────┘
//! ```
//!
//! Wakers and destructors are user code, and may come back here (submit, drop another operation). So no borrow of the
//! driver is held while they run: the slab notes what is to be told or dropped, and `DriverHandle` does it when the
//! borrow has ended.
//!
//! To add an operation: declare it in `io::op` (its fields, its [`OpLifecycle`]), then write its encoding for each
//! backend in the file of the same name (its `PlatformOp`).

mod address;
pub(crate) mod budget;
mod capability;
mod completion;
#[cfg_attr(windows, expect(dead_code, reason = "direct descriptors are io_uring's"))]
mod descriptor;
#[cfg(windows)]
pub(crate) mod iocp;
mod op;
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod sim;
mod slab;
#[cfg(all(test, target_os = "linux"))]
pub(crate) mod tests;
pub(crate) mod thread_pool;
mod token;
#[cfg(target_os = "linux")]
pub(crate) mod uring;
pub(crate) mod waiter;

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use budget::Budget;
pub use capability::{Capabilities, Feature, Refusal, Unavailable};
pub(crate) use completion::Answer;
pub use completion::{Completion, Resource, Yields};
#[cfg(target_os = "linux")]
pub(crate) use descriptor::DirectTable;
pub use descriptor::{Descriptor, DescriptorName, DirectDescriptor, SharedDescriptor};
#[cfg(windows)]
pub(crate) use iocp::Unparker;
pub(crate) use op::InFlight;
pub use op::{Multishot, MultishotLifecycle, Op, OpLifecycle};
pub(crate) use slab::OperationInSlot;
pub use slab::OperationState;
pub use thread_pool::{PoolRefused, ThreadPoolStats};
pub use token::Token;
#[cfg(target_os = "linux")]
pub(crate) use uring::Unparker;

use crate::io::buf::{BufPool, ChunkChange, FixedBuf, Pool};
use crate::io::socket::Receivers;
use crate::sync::Arc;
use slab::{Abandon, About, LetGo, Notice, PayloadType, StableSlab};
use thread_pool::{ThreadPool, ThreadPoolConfig, quietly};
use waiter::Waiter;

/// How long a shutdown waits before it asks again for the cancellation of what is left. A cancellation can miss: an
/// operation that moves from a kernel thread to a poll is for a moment in neither place. 10 ms is far longer than that
/// moment, and short beside anybody's patience.
const CANCEL_AGAIN_NS: u64 = 10_000_000;

/// The seals: traits that only this crate can implement, until 1.0.
pub(crate) mod sealed {
    /// Nothing outside this crate is an operation.
    pub trait Sealed {}
}

/// How large the driver's parts are, and what it may use.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DriverConfig {
    /// Entries of the submission ring; a power of two. More operations than this wait in a backlog, they are not
    /// refused. 256 entries are 16 KiB, and one kernel entry seldom carries more.
    pub ring_entries: u32,
    /// Operations in flight at most; the next gets a typed error. A slot takes about half a kilobyte, so the default of
    /// 1,048,576 is a bound against runaway programs, not a reservation.
    pub operations_max: u32,
    /// Indices in the table of direct descriptors; 0 for none.
    pub direct_descriptors: u32,
    /// Buffers in the receive ring, a power of two up to 32,768; 0 for none.
    pub receive_buffers: u16,
    /// Bytes of each buffer in the receive ring, and of those that stand in for them; from 1 to 2^30, the largest chunk.
    pub receive_buffer_bytes: u32,
    /// How long a busy worker that has sent something out and would sleep waits for company, at most: for as many answers as it has
    /// lately had at a time, instead of the first. That makes fewer, larger turns. One timer serves many waits, so most that
    /// need the bound end sooner; one that needed all of it is the last until the worker is busy again. Zero, the default,
    /// wakes for the first answer; a worker that is not busy always does. For servers of many connections on one worker: messages from
    /// other workers would wait as well.
    pub linger: Duration,
    /// Kernel worker threads at most for bounded work (files), and for unbounded work (what cannot be polled).
    pub kernel_workers_max: [u32; 2],
    /// Features to do without, by the names in [`Capabilities`]; for tests, and to work around a broken kernel. Where that is
    /// a size, the least of it is taken.
    pub without: Vec<&'static str>,
    /// Features that the program insists on, by the names in [`Capabilities`]: if one is refused, or there is less of it than
    /// was asked for, that is an error with an [`Unavailable`] as its source.
    pub required: Vec<&'static str>,
    /// The worker's shares of the machine's limits.
    pub(crate) budget: Budget,
}

impl Default for DriverConfig {
    fn default() -> DriverConfig {
        DriverConfig {
            ring_entries: 256,
            operations_max: 1 << 20,
            direct_descriptors: 1024,
            receive_buffers: 256,
            receive_buffer_bytes: 8 * 1024,
            linger: Duration::ZERO,
            kernel_workers_max: [16, 64],
            without: Vec::new(),
            required: Vec::new(),
            budget: Budget::default(),
        }
    }
}

/// What a driver has done so far. Every number only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverCounters {
    /// System calls that entered the ring or waited at the port.
    pub entries: u64,
    /// Entries among them that were allowed to sleep.
    pub parks: u64,
    /// Operations shown to the kernel.
    pub submitted: u64,
    /// Answers reaped, of any kind.
    pub completions: u64,
    /// Operations that had to wait because the submission ring was full.
    pub backlogged: u64,
    /// Cancellations asked of the kernel.
    pub cancels: u64,
    /// Cancellations that found their operation and stopped it.
    pub cancels_won: u64,
    /// Cancellations that found their operation beyond stopping.
    pub cancels_lost: u64,
    /// Cancellations that found their operation no more: it had ended.
    pub cancels_late: u64,
    /// Answers to operations that were abandoned.
    pub abandoned: u64,
    /// Descriptors that an abandoned operation yielded, and that were closed or kept for the next caller.
    pub descriptors_reclaimed: u64,
    /// Answers whose token named no operation.
    pub stale: u64,
    /// Operations too large for their slot.
    pub boxed: u64,
    /// Times the kernel found the receive ring empty.
    pub receive_ring_dry: u64,
    /// Chunks of the pool that were registered with the kernel.
    pub chunks_registered: u64,
    /// Chunks that were not, because that would be more than the user may lock: their buffers travel as plain memory.
    pub chunks_refused: u64,
}

/// One backend: what a kernel connection must be able to do. All methods run on the worker's thread.
///
/// A backend owns no operation: slots do. It gets the slab with each call, arms what it has shown to the kernel, and
/// stores answers there. It is asked for what came with an answer when that leaves its slot.
pub(crate) trait Driver: Sized + 'static {
    /// One request as the kernel takes it.
    type Entry;

    /// Queues a request. It is armed at once, or waits in the backlog (its slot stays queued) if the ring is full.
    fn submit(&mut self, slab: &mut StableSlab, token: Token, entry: Self::Entry);

    /// Asks the kernel to cancel an armed operation.
    fn cancel(&mut self, token: Token);

    /// Submits what is queued and stores what has completed. Makes no system call if there is neither.
    fn process_completions(&mut self, slab: &mut StableSlab) -> io::Result<()>;

    /// The same, and sleeps until there is a completion, a wake from the [`Unparker`], or the clock reaches
    /// `deadline_ns`.
    fn park(&mut self, slab: &mut StableSlab, deadline_ns: Option<u64>) -> io::Result<()>;

    /// Gives what came with an answer its owner. Called once for each answer that was stored.
    fn own(&mut self, yields: Yields, answer: Answer) -> Completion;

    /// Whether `process_completions` would find an answer. Makes no system call.
    fn has_news(&mut self) -> bool;

    /// Makes a pool's arena known to the kernel, and carves the receive ring out of it. Says how many buffers that has.
    fn register_buffers(&mut self, pool: &Pool, config: &DriverConfig) -> usize;

    /// Tells the kernel which of the pool's chunks came and went.
    fn update_buffers(&mut self, changes: Vec<ChunkChange>);

    /// Takes a runtime's threads for what this kernel can only do by blocking, if there is any such thing.
    fn use_threads(&mut self, _threads: &Arc<ThreadPool>) {}

    /// What wakes a parked driver from any thread.
    fn unparker(&self) -> Unparker;

    /// Nanoseconds on the driver's clock, which never goes back.
    fn now_ns(&self) -> u64;

    /// Whether nothing of the driver's own is in the kernel's hands: the last step of tear-down.
    fn quiesce(&mut self, slab: &mut StableSlab) -> bool;

    /// What this kernel gives, and what it refused.
    fn capabilities(&self) -> &Capabilities;

    /// The same, to add what is decided elsewhere.
    fn capabilities_mut(&mut self) -> &mut Capabilities;

    /// Counters of the backend's part; the slab's are added by the caller.
    fn counters(&self) -> DriverCounters;
}

/// An operation's encoding for one backend.
///
/// # Safety
///
/// The entry that `encode` returns may point only into `self`, into `block`, or into memory that `self` owns and that
/// does not move when `self` does (the contract of [`IoBuf`](crate::io::buf::IoBuf)). Both stay where they are until the
/// terminal completion has been reaped.
#[expect(unsafe_code, reason = "an encoding is a promise about addresses that the kernel will use")]
pub(crate) unsafe trait PlatformOp<D: Driver>: OpLifecycle {
    /// What the kernel reads or writes besides the buffer: address blocks, message headers, `OVERLAPPED`.
    type Block: Default + 'static;

    /// Makes the request. `self` and `block` are in their slot.
    fn encode(&mut self, block: &mut Self::Block, driver: &mut D) -> io::Result<D::Entry>;

    /// What a successful answer's number is.
    fn yields(&self) -> Yields {
        Yields::Number
    }

    /// Moves what the kernel wrote into `block` over into the operation, once the terminal completion is in.
    fn decode(&mut self, _block: &mut Self::Block, _completion: &Completion) {}
}

/// An operation that every backend of this build can encode. Implemented for all of them.
#[cfg(all(target_os = "linux", not(test)))]
#[expect(private_bounds, reason = "sealed: the bounds are the seal")]
pub trait Operation: OpLifecycle + PlatformOp<uring::UringDriver> {}
#[cfg(all(target_os = "linux", not(test)))]
impl<T: OpLifecycle + PlatformOp<uring::UringDriver>> Operation for T {}

/// An operation that every backend of this build can encode. Implemented for all of them.
#[cfg(all(target_os = "linux", test))]
#[expect(private_bounds, reason = "sealed: the bounds are the seal")]
pub trait Operation: OpLifecycle + PlatformOp<uring::UringDriver> + PlatformOp<sim::SimDriver> {}
#[cfg(all(target_os = "linux", test))]
impl<T: OpLifecycle + PlatformOp<uring::UringDriver> + PlatformOp<sim::SimDriver>> Operation for T {}

/// An operation that every backend of this build can encode. Implemented for all of them.
#[cfg(windows)]
#[expect(private_bounds, reason = "sealed: the bounds are the seal")]
pub trait Operation: OpLifecycle + PlatformOp<iocp::IocpDriver> {}
#[cfg(windows)]
impl<T: OpLifecycle + PlatformOp<iocp::IocpDriver>> Operation for T {}

/// The backends compiled in; one is chosen when the worker starts.
#[derive(Debug)]
#[cfg_attr(
    all(test, target_os = "linux"),
    expect(clippy::large_enum_variant, reason = "there is one for each worker, and it is not moved about")
)]
pub(crate) enum PlatformDriver {
    /// Linux io_uring.
    #[cfg(target_os = "linux")]
    Uring(uring::UringDriver),
    /// A Windows completion port.
    #[cfg(windows)]
    Iocp(iocp::IocpDriver),
    /// In memory, with a virtual clock and a seeded order of completions.
    #[cfg(all(test, target_os = "linux"))]
    Sim(sim::SimDriver),
}

impl PlatformDriver {
    /// The kernel's backend, for the calling thread.
    ///
    /// # Errors
    ///
    /// With an [`Unavailable`] as source, if this machine has none that Veloq can use.
    pub(crate) fn new(config: &DriverConfig) -> io::Result<PlatformDriver> {
        #[cfg(target_os = "linux")]
        return Ok(PlatformDriver::Uring(uring::UringDriver::new(config)?));
        #[cfg(windows)]
        return Ok(PlatformDriver::Iocp(iocp::IocpDriver::new(config)?));
    }
}

/// Does the same with whichever backend it is.
macro_rules! on_backend {
    ($platform:expr, $driver:ident => $body:expr) => {
        match $platform {
            #[cfg(target_os = "linux")]
            PlatformDriver::Uring($driver) => $body,
            #[cfg(windows)]
            PlatformDriver::Iocp($driver) => $body,
            #[cfg(all(test, target_os = "linux"))]
            PlatformDriver::Sim($driver) => $body,
        }
    };
}

/// An operation in its slot: first what the kernel reads besides the buffer, then the operation itself.
#[repr(C)]
pub(crate) struct Payload<T: PlatformOp<D>, D: Driver> {
    block: T::Block,
    operation: T,
}

impl<T: PlatformOp<D>, D: Driver> LetGo for Payload<T, D> {
    fn let_go(&mut self) {
        self.operation.let_go();
    }
}

impl<T: PlatformOp<D>, D: Driver> Payload<T, D> {
    const TYPE: PayloadType = PayloadType::of::<Self>(T::KIND, release::<T, D>);
}

/// Whether the operation, with its block, lives in its slot. The encodings assert it for the buffer types of ours.
pub(crate) const fn fits_inline<T: PlatformOp<D>, D: Driver>() -> bool {
    slab::is_inline::<Payload<T, D>>()
}

/// Finishes an abandoned operation: takes it out of its slot, and lets it deal with its answer.
fn release<T: PlatformOp<D>, D: Driver>(driver: &DriverHandle, token: Token) {
    let (operation, completion) = {
        let core = &mut *driver.0.core.borrow_mut();
        let (yields, answer) = core.slab.answer(token).expect("only a finished operation is released");
        let completion = core.own(yields, answer);
        core.abandoned += 1;
        core.descriptors_reclaimed += u64::from(matches!(completion.resource, Resource::Descriptor(_)));
        (take::<T, D>(&mut core.slab, token, &completion), completion)
    };
    operation.abandon(completion);
}

/// Takes a finished operation out of its slot, decoded.
#[inline]
fn take<T: PlatformOp<D>, D: Driver>(slab: &mut StableSlab, token: Token, completion: &Completion) -> T {
    let mut payload = slab.take::<Payload<T, D>>(token);
    payload.operation.decode(&mut payload.block, completion);
    payload.operation
}

/// [`take`], with the backend named by a reference to it.
#[inline]
fn take_from<T: PlatformOp<D>, D: Driver>(
    _: &D,
    slab: &mut StableSlab,
    token: Token,
    completion: &Completion,
) -> T {
    take::<T, D>(slab, token, completion)
}

/// A worker's driver, as futures and I/O objects hold it.
#[derive(Clone)]
pub(crate) struct DriverHandle(Rc<DriverCell>);

/// A worker's driver, as futures hold it: they may be forgotten, and must not keep it from ending.
#[derive(Clone)]
pub(crate) struct WeakDriver(Weak<DriverCell>);

impl WeakDriver {
    /// The driver of the worker that runs on this thread.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[track_caller]
    pub(crate) fn current() -> WeakDriver {
        match CURRENT.with(|current| current.borrow().as_ref().map(DriverHandle::downgrade)) {
            Some(driver) => driver,
            None => no_worker(),
        }
    }

    /// The driver, unless it has ended and everybody has let go of it.
    #[inline]
    pub(crate) fn upgrade(&self) -> Option<DriverHandle> {
        self.0.upgrade().map(DriverHandle)
    }
}

impl fmt::Debug for WeakDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.upgrade(), f)
    }
}

struct DriverCell {
    core: RefCell<Core>,
    /// The worker's pool, once its arena is registered.
    pool: OnceCell<Pool>,
    /// Who may hold how much of the receive ring.
    receivers: Receivers,
    /// The runtime's threads for what the kernel can only do by blocking.
    threads: OnceCell<Arc<ThreadPool>>,
    /// Set by `shut_down`: new operations are refused, and end as cancelled.
    closed: Cell<bool>,
}

struct Core {
    slab: StableSlab,
    backend: PlatformDriver,
    abandoned: u64,
    descriptors_reclaimed: u64,
}

impl Core {
    /// Cancels the multishot operations whose answers nobody takes.
    fn stop_overfull(&mut self) {
        while let Some(token) = self.slab.pop_overfull() {
            on_backend!(&mut self.backend, driver => driver.cancel(token));
        }
    }

    /// Gives what came with an answer its owner.
    fn own(&mut self, yields: Yields, answer: Answer) -> Completion {
        on_backend!(&mut self.backend, driver => driver.own(yields, answer))
    }
}

impl Drop for Core {
    /// Nobody will ask any more: what came with the answers goes where it would have gone.
    fn drop(&mut self) {
        let Core { slab, backend, .. } = self;
        slab.take_unasked(|yields, answer| {
            drop(on_backend!(&mut *backend, driver => driver.own(yields, answer)));
        });
    }
}

thread_local! {
    /// The driver of the worker whose turn it is on this thread.
    static CURRENT: RefCell<Option<DriverHandle>> = const { RefCell::new(None) };
}

/// While it lives, the driver is the current one of this thread. Restores the one before.
#[derive(Debug)]
pub(crate) struct Entered(Option<DriverHandle>);

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        let ours = CURRENT.with(|current| std::mem::replace(&mut *current.borrow_mut(), before));
        drop(ours);
    }
}

/// What a driver's end left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Drained {
    /// Operations the kernel did not give back in time. Their memory is leaked.
    pub(crate) leaked: usize,
}

impl DriverHandle {
    /// A driver over `backend`.
    pub(crate) fn new(backend: PlatformDriver, config: &DriverConfig) -> DriverHandle {
        DriverHandle(Rc::new(DriverCell {
            core: RefCell::new(Core {
                slab: StableSlab::new(config.operations_max),
                backend,
                abandoned: 0,
                descriptors_reclaimed: 0,
            }),
            pool: OnceCell::new(),
            receivers: Receivers::new(config),
            threads: OnceCell::new(),
            closed: Cell::new(false),
        }))
    }

    /// The driver, held so that it may end meanwhile.
    pub(crate) fn downgrade(&self) -> WeakDriver {
        WeakDriver(Rc::downgrade(&self.0))
    }

    /// Makes this the thread's current driver until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered {
        Entered(CURRENT.with(|current| current.borrow_mut().replace(self.clone())))
    }

    /// The driver of the worker that runs on this thread.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[track_caller]
    pub(crate) fn current() -> DriverHandle {
        match DriverHandle::try_current() {
            Some(driver) => driver,
            None => no_worker(),
        }
    }

    /// The driver of the worker that runs on this thread, if there is one.
    pub(crate) fn try_current() -> Option<DriverHandle> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Moves `operation` into a slot and queues it.
    ///
    /// # Errors
    ///
    /// The operation and why it did not start: what `pre_alloc` or the encoding said, too many operations in flight, or
    /// a driver that has ended.
    #[inline]
    pub(crate) fn submit<T: Operation>(
        &self,
        mut operation: T,
        multishot: bool,
        waiter: Option<Waiter>,
    ) -> Result<Token, (T, io::Error)> {
        if self.0.closed.get() {
            return Err((operation, closed_error()));
        }
        if let Err(error) = operation.pre_alloc() {
            return Err((operation, error));
        }
        let core = &mut *self.0.core.borrow_mut();
        let slab = &mut core.slab;
        if !slab.has_room() {
            return Err((operation, exhausted_error()));
        }
        on_backend!(&mut core.backend, driver => submit_on(slab, driver, operation, multishot, waiter))
    }

    /// Takes a finished operation and its answer, and makes the caller's result of them, which may run user code; or keeps `cx` to
    /// wake later.
    #[inline]
    pub(crate) fn poll_op<T: Operation, R>(
        &self,
        token: Token,
        cx: &Context<'_>,
        finish: impl FnOnce(T, Completion) -> R,
    ) -> Poll<R> {
        let mut borrow = self.0.core.borrow_mut();
        let core = &mut *borrow;
        if let Some((yields, answer)) = core.slab.answer(token) {
            let completion = core.own(yields, answer);
            let operation: T = on_backend!(
                &core.backend, driver => take_from(driver, &mut core.slab, token, &completion)
            );
            drop(borrow);
            return Poll::Ready(finish(operation, completion));
        }
        drop(borrow);
        self.set_waiter(token, cx);
        Poll::Pending
    }

    /// Makes `cx` the one to tell of the operation's next answer.
    pub(crate) fn set_waiter(&self, token: Token, cx: &Context<'_>) {
        if self.0.core.borrow_mut().slab.is_waited_for_by(token, cx) {
            return;
        }
        let waiter = Waiter::of(cx);
        let before = self.0.core.borrow_mut().slab.replace_waiter(token, waiter);
        // A foreign waker's drop is user code: it runs here, with no borrow held.
        drop(before);
    }

    /// Takes the next item of a multishot operation, or the terminal answer, with which its operation comes.
    pub(crate) fn take_next<T: Operation>(&self, token: Token) -> Option<(Option<T>, Completion)> {
        let core = &mut *self.0.core.borrow_mut();
        if let Some((yields, item)) = core.slab.pop_item(token) {
            return Some((None, core.own(yields, item)));
        }
        let (yields, answer) = core.slab.answer(token)?;
        let completion = core.own(yields, answer);
        let operation =
            on_backend!(&core.backend, driver => take_from(driver, &mut core.slab, token, &completion));
        Some((Some(operation), completion))
    }

    /// Items of a multishot operation that wait.
    pub(crate) fn waiting_items(&self, token: Token) -> usize {
        self.0.core.borrow_mut().slab.items(token)
    }

    /// Asks for an operation's cancellation; its future still gets the answer.
    pub(crate) fn request_cancel(&self, token: Token) {
        {
            let core = &mut *self.0.core.borrow_mut();
            if core.slab.is_queued(token) {
                core.slab.complete(token, Answer::cancelled());
            } else if !core.slab.is_done(token) {
                on_backend!(&mut core.backend, driver => driver.cancel(token));
            }
        }
        self.tell();
    }

    /// Leaves an operation to the driver: its future is gone.
    pub(crate) fn abandon(&self, token: Token) {
        let release = {
            let core = &mut *self.0.core.borrow_mut();
            match core.slab.abandon(token) {
                Abandon::Cancel => {
                    on_backend!(&mut core.backend, driver => driver.cancel(token));
                    None
                }
                Abandon::ReleaseNow => core.slab.release_fn(token),
                Abandon::Nothing => None,
            }
        };
        if let Some(release) = release {
            release(self, token);
        }
        self.tell();
    }

    /// One step: submits what is queued, stores what has completed, then wakes and releases.
    pub(crate) fn process_completions(&self) -> io::Result<()> {
        self.update_buffers();
        let result = {
            let core = &mut *self.0.core.borrow_mut();
            core.stop_overfull();
            on_backend!(&mut core.backend, driver => driver.process_completions(&mut core.slab))
        };
        self.tell();
        result
    }

    /// The same, but sleeps until something happens or the clock reaches `deadline_ns`.
    pub(crate) fn park(&self, deadline_ns: Option<u64>) -> io::Result<()> {
        self.update_buffers();
        let result = {
            let core = &mut *self.0.core.borrow_mut();
            core.stop_overfull();
            on_backend!(&mut core.backend, driver => driver.park(&mut core.slab, deadline_ns))
        };
        self.tell();
        result
    }

    /// Whether `process_completions` would find an answer. Makes no system call.
    pub(crate) fn has_news(&self) -> bool {
        on_backend!(&mut self.0.core.borrow_mut().backend, driver => driver.has_news())
    }

    /// Makes a pool the worker's, and its arena known to the kernel. What is refused stands in the capability report.
    pub(crate) fn register_buffers(&self, pool: &Pool, config: &DriverConfig) {
        assert!(self.0.pool.set(pool.clone()).is_ok(), "a worker has one pool, registered once");
        let core = &mut *self.0.core.borrow_mut();
        let ring_buffers = on_backend!(&mut core.backend, driver => driver.register_buffers(pool, config));
        pool.note_lent_for_good();
        let picks_once = match &core.backend {
            #[cfg(target_os = "linux")]
            PlatformDriver::Uring(_) => true,
            #[cfg(windows)]
            PlatformDriver::Iocp(_) => false,
            #[cfg(all(test, target_os = "linux"))]
            PlatformDriver::Sim(_) => false,
        };
        self.0.receivers.set_ring(ring_buffers, picks_once);
    }

    /// Makes a runtime's threads for blocking work the ones to use.
    pub(crate) fn share_threads(&self, threads: &Arc<ThreadPool>) {
        let given = self.0.threads.set(Arc::clone(threads));
        assert!(given.is_ok(), "a driver gets its threads before it is used");
        on_backend!(&mut self.0.core.borrow_mut().backend, driver => driver.use_threads(threads));
    }

    /// The threads for what the kernel can only do by blocking. A driver outside any runtime has its own.
    pub(crate) fn threads(&self) -> &Arc<ThreadPool> {
        self.0.threads.get_or_init(|| Arc::new(ThreadPool::new(ThreadPoolConfig::default())))
    }

    /// Tells the backend how the pool has grown and shrunk. When it has not, this is two plain loads.
    fn update_buffers(&self) {
        let changes = self.0.pool.get().map(Pool::take_changes).unwrap_or_default();
        if !changes.is_empty() {
            let core = &mut *self.0.core.borrow_mut();
            on_backend!(&mut core.backend, driver => driver.update_buffers(changes));
        }
    }

    /// Who may hold how much of the receive ring.
    pub(crate) fn receivers(&self) -> &Receivers {
        &self.0.receivers
    }

    /// A buffer from the worker's pool, or from the heap if the pool cannot give one.
    pub(crate) fn alloc(&self, size: usize) -> FixedBuf {
        match self.0.pool.get() {
            Some(pool) => pool.alloc(size),
            None => FixedBuf::heap(size),
        }
    }

    /// A buffer from the heap, on account of the worker's pool.
    pub(crate) fn heap(&self, size: usize) -> FixedBuf {
        self.0.pool.get().map_or_else(|| FixedBuf::heap(size), |pool| pool.heap(size))
    }

    /// What wakes this driver from any thread.
    pub(crate) fn unparker(&self) -> Unparker {
        on_backend!(&self.0.core.borrow().backend, driver => driver.unparker())
    }

    /// Notes the time, so that what is submitted from now on knows its age.
    pub(crate) fn note_time(&self, now_ns: u64) {
        self.0.core.borrow_mut().slab.note_time(now_ns);
    }

    /// Describes every operation, with the address of the task that it will wake.
    pub(crate) fn each_operation(&self, each: impl FnMut(OperationInSlot, Option<*const ()>)) {
        self.0.core.borrow().slab.each(each);
    }

    /// Nanoseconds on the driver's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        on_backend!(&self.0.core.borrow().backend, driver => driver.now_ns())
    }

    /// What this kernel gives, and what it refused.
    pub(crate) fn capabilities(&self) -> Capabilities {
        on_backend!(&self.0.core.borrow().backend, driver => driver.capabilities().clone())
    }

    /// Adds to the report what is decided above the driver.
    pub(crate) fn report(&self, add: impl FnOnce(&mut Capabilities)) {
        add(on_backend!(&mut self.0.core.borrow_mut().backend, driver => driver.capabilities_mut()));
    }

    /// Operations whose terminal completion has not been reaped.
    pub(crate) fn in_flight(&self) -> usize {
        self.0.core.borrow().slab.in_flight()
    }

    /// Slots that are not free.
    pub(crate) fn occupied(&self) -> usize {
        self.0.core.borrow().slab.occupied()
    }

    /// What has been done so far.
    pub(crate) fn counters(&self) -> DriverCounters {
        let core = self.0.core.borrow();
        let mut counters = on_backend!(&core.backend, driver => driver.counters());
        counters.abandoned = core.abandoned;
        counters.descriptors_reclaimed = core.descriptors_reclaimed;
        counters.stale = core.slab.stale();
        counters.boxed = core.slab.boxed();
        counters
    }

    /// Runs `look` with the backend, for tests and for what only one platform has.
    #[cfg(test)]
    pub(crate) fn with_backend<R>(&self, look: impl FnOnce(&mut PlatformDriver) -> R) -> R {
        look(&mut self.0.core.borrow_mut().backend)
    }

    /// Ends the driver: refuses new operations, cancels every one in flight, and reaps until the kernel holds nothing of
    /// ours, or `patience` has passed. What is still in flight then is leaked, with its memory, and counted.
    ///
    /// Closing a ring is no barrier: a kernel thread may write to a buffer after its descriptor was closed. So the ring
    /// is closed only by the drop of the last handle, after this.
    pub(crate) fn shut_down(&self, patience: Duration) -> Drained {
        self.0.closed.set(true);
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = self.now_ns().saturating_add(patience_ns);
        #[cfg(all(test, target_os = "linux"))]
        if crate::sync::mutant("the drain leaves out reads") {
            self.take_reads_for_ended();
        }
        let (armed, queued): (Vec<Token>, Vec<Token>) = {
            let core = &*self.0.core.borrow();
            (core.slab.in_kernel().map(|(token, _)| token).collect(), core.slab.queued().collect())
        };
        for token in queued.into_iter().chain(armed) {
            self.request_cancel(token);
        }
        let mut again_ns = self.now_ns().saturating_add(CANCEL_AGAIN_NS);
        loop {
            let quiet = {
                let core = &mut *self.0.core.borrow_mut();
                let own_quiet = on_backend!(&mut core.backend, driver => driver.quiesce(&mut core.slab));
                own_quiet && core.slab.in_flight() == 0
            };
            self.tell();
            if quiet {
                return Drained { leaked: 0 };
            }
            if self.now_ns() >= again_ns {
                again_ns = self.now_ns().saturating_add(CANCEL_AGAIN_NS);
                let left: Vec<Token> =
                    self.0.core.borrow().slab.in_kernel().map(|(token, _)| token).collect();
                for token in left {
                    self.request_cancel(token);
                }
            }
            if self.now_ns() >= deadline_ns || self.park(Some(deadline_ns.min(again_ns))).is_err() {
                let leaked = self.in_flight();
                // The kernel may still write to these pages and buffers, whoever drops the other handles: keep them all.
                std::mem::forget(self.clone());
                return Drained { leaked };
            }
        }
    }

    /// Does what the slab has noted, with no borrow held: wakes, releases, discards.
    #[inline]
    fn tell(&self) {
        if self.0.core.try_borrow().is_ok_and(|core| core.slab.has_notices()) {
            self.tell_all();
        }
    }

    /// The same when there is something. (Out of line: most turns have nothing.)
    #[inline(never)]
    fn tell_all(&self) {
        loop {
            let (mut woken, mut notices) = {
                let Ok(mut core) = self.0.core.try_borrow_mut() else { return };
                let Some(lists) = core.slab.take_notices() else { return };
                lists
            };
            woken.drain(..).for_each(Waiter::wake);
            for notice in notices.drain(..) {
                match notice {
                    Notice::Forget(waiter) => quietly(|| drop(waiter)),
                    Notice::Release(token) => {
                        let release = self.0.core.borrow_mut().slab.release_fn(token);
                        if let Some(release) = release {
                            quietly(|| release(self, token));
                        }
                    }
                    Notice::Discard(yields, answer) => {
                        let completion = {
                            let core = &mut *self.0.core.borrow_mut();
                            let completion = core.own(yields, answer);
                            let is_descriptor = matches!(completion.resource, Resource::Descriptor(_));
                            core.descriptors_reclaimed += u64::from(is_descriptor);
                            completion
                        };
                        drop(completion);
                    }
                }
            }
            self.0.core.borrow_mut().slab.return_notices(woken, notices);
        }
    }
}

impl fmt::Debug for DriverHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.core.try_borrow() {
            Ok(core) => f.debug_tuple("DriverHandle").field(&core.slab).finish(),
            Err(_) => f.write_str("DriverHandle(in use)"),
        }
    }
}

/// Inserts, encodes and queues an operation on one backend, whose slab has room.
#[inline]
fn submit_on<T: PlatformOp<D>, D: Driver>(
    slab: &mut StableSlab,
    driver: &mut D,
    operation: T,
    multishot: bool,
    waiter: Option<Waiter>,
) -> Result<Token, (T, io::Error)> {
    let about = About {
        multishot,
        items_max: operation.items_max(),
        yields: operation.yields(),
        descriptor: operation.descriptor().map(Descriptor::name),
    };
    let payload = Payload::<T, D> { block: T::Block::default(), operation };
    let (token, payload) = slab.insert(payload, &Payload::<T, D>::TYPE, about, waiter);
    match payload.operation.encode(&mut payload.block, driver) {
        Ok(entry) => {
            driver.submit(slab, token, entry);
            Ok(token)
        }
        Err(error) => Err((slab.withdraw::<Payload<T, D>>(token).operation, error)),
    }
}

#[track_caller]
fn no_worker() -> ! {
    panic!("no Veloq worker on this thread; call this inside `Runtime::block_on` or a spawned task")
}

fn closed_error() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the runtime that this I/O object belongs to has shut down")
}

fn exhausted_error() -> io::Error {
    io::Error::new(
        io::ErrorKind::QuotaExceeded,
        "too many operations in flight on this worker; await some of them, or raise `DriverConfig::operations_max`",
    )
}
