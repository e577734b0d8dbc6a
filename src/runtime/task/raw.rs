//! The cell of a task: the header, and behind it the closure, the future or the output.
//!
//! Everyone but this file knows a task as a pointer to its [`Header`]; what depends on the future's type goes through the
//! header's [`VTable`]. A [`Counted`] is one of the counted references.
//!
//! The contents are touched by one party at a time, as the text of [`super`] lays down: before adoption whoever holds the
//! [`TaskRef`], then the owner until completion, then the `JoinHandle` if there is one. The vtable's functions say which of
//! them may call.
#![expect(
    unsafe_code,
    reason = "one allocation of unknown type, shared by pointers that are counted by hand"
)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::mem::{self, ManuallyDrop, offset_of};
use std::ops::Deref;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, Waker};

use super::cells::{CellLayout, Cells};
use super::executor::Executor;
use super::join::{Failure, JoinHandle};
use super::label::Label;
use super::state::{Begun, Header, Origin, STOCK};
use super::waker;
use crate::runtime::mesh::mailbox::Mailbox;
use crate::runtime::worker_id::WorkerId;
use crate::sync::Arc;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// What depends on the type of the task's future. Each function takes a pointer to the header of a live cell of that type.
pub(super) struct VTable {
    /// Polls the task, and completes it when it ends. Called by the owner, on a task that is unfinished, or by the worker that runs
    /// a stealable one, outside of any other call on the same task.
    pub(super) poll: unsafe fn(NonNull<Header>) -> Polled,
    /// Drops the closure or future and completes the task as one that was cancelled, or not sent to a worker. Called by whoever has the
    /// stage (its owner or runner, or the holder of its `TaskRef`), once, on a task that is not complete.
    cancel: unsafe fn(NonNull<Header>, unsent_to: Option<WorkerId>),
    /// How far behind the header's address the output stands, once the task is complete: a `Result<T, Failure>`.
    output_at: usize,
    /// Drops the output. Called by whoever owns it, once, and not after it was taken. The destructor's panic goes to the caller, unless the
    /// output is what another panic carried.
    pub(super) drop_output: unsafe fn(NonNull<Header>),
    /// What the cell takes of memory.
    pub(super) layout: CellLayout,
    /// Whether any worker may poll the task, whenever it is ready.
    pub(super) stealable: bool,
}

/// What came of a poll.
#[must_use]
pub(super) enum Polled {
    /// The task waits.
    Pending,
    /// It is complete, and whoever waited for that has been woken, unless that is the pinned task which is given here with the reference of
    /// a waker: that is the caller's to wake.
    Complete(Option<NonNull<Header>>),
}

/// A task in memory.
///
/// The header comes first (`repr(C)`), so a pointer to one is a pointer to the other.
#[repr(C)]
struct TaskCell<S, F: Future, const STEALABLE: bool> {
    header: Header,
    contents: UnsafeCell<Contents<S, F>>,
}

/// What a cell holds behind its header: the stage until the task is complete, then the output, if nobody has taken or dropped it. Which of
/// the two, and whose it is, nobody needs to look up here: the protocol says it.
///
/// Each access but the first, which makes the cell, is shown to loom by the header's [`contents`](Header::contents).
#[repr(C)]
union Contents<S, F: Future> {
    stage: ManuallyDrop<Stage<S, F>>,
    output: ManuallyDrop<Result<F::Output, Failure>>,
}

/// What makes a task's future on its owner.
trait Start<F> {
    /// Makes it.
    fn start(self) -> F;
}

impl<F, S: FnOnce() -> F> Start<F> for S {
    fn start(self) -> F {
        self()
    }
}

/// What makes the future of a task that was spawned with it: nothing does, so that no poll need look for it.
enum Never {}

impl<F> Start<F> for Never {
    fn start(self) -> F {
        match self {}
    }
}

/// What there is of a task that is not complete. `S` is the closure that makes the future on the owner.
enum Stage<S, F> {
    /// Not polled yet; from elsewhere.
    Start(S),
    /// Pinned here until it is dropped.
    Future(F),
    /// Dropped.
    Empty,
}

/// Makes a cell for a task spawned by its owner. The caller gets the owner's stock of references, and the handle has its one.
///
/// # Safety
///
/// `cells` and `mailbox` are those of the executor that runs here.
pub(super) unsafe fn spawn_here<F: Future>(
    future: F,
    cells: &Cells,
    mailbox: &Arc<Mailbox>,
    label: Label,
) -> (NonNull<Header>, JoinHandle<F::Output>) {
    let task = match cells.take(TaskCell::<Never, F, false>::LAYOUT) {
        Some(task) => {
            // SAFETY: it was taken off the shelf of the owner, who runs here, by the caller's promise.
            unsafe { Header::renew(task, TaskCell::<Never, F, false>::VTABLE, label) };
            task
        }
        // SAFETY: the caller's own promise.
        None => unsafe { TaskCell::<Never, F, false>::first(mailbox, label) },
    };
    // SAFETY: the memory is that of a cell of this type, and has a header.
    unsafe { fill::<Never, F, false>(task, Stage::Future(future)) }
}

/// Puts the stage behind a header, which makes it a cell. The caller gets the references that are not the handle's.
///
/// # Safety
///
/// `task` is the header of what will be a cell of this type, and nobody else's.
#[inline]
unsafe fn fill<S, F, const STEALABLE: bool>(
    task: NonNull<Header>,
    stage: Stage<S, F>,
) -> (NonNull<Header>, JoinHandle<F::Output>)
where
    S: Start<F>,
    F: Future,
{
    let cell = task.cast::<TaskCell<S, F, STEALABLE>>();
    // SAFETY: the caller's own promise; the header comes first.
    unsafe {
        let contents = Contents { stage: ManuallyDrop::new(stage) };
        (&raw mut (*cell.as_ptr()).contents).write(UnsafeCell::new(contents));
    }
    // SAFETY: nobody holds the references of a new cell; one of them is this handle's, whose `T` is the output type of this very cell.
    let handle = unsafe { JoinHandle::new(Counted::from_raw(task)) };
    (task, handle)
}

impl<S, F, const STEALABLE: bool> TaskCell<S, F, STEALABLE>
where
    S: Start<F>,
    F: Future,
{
    const LAYOUT: CellLayout = CellLayout::of::<Self>();

    const VTABLE: &'static VTable = &VTable {
        poll: Self::poll,
        cancel: Self::cancel,
        output_at: offset_of!(Self, contents),
        drop_output: Self::drop_output,
        layout: Self::LAYOUT,
        stealable: STEALABLE,
    };

    /// New memory with the header of a task that its owner spawns.
    ///
    /// # Safety
    ///
    /// The mailbox is that of the executor that runs here.
    #[inline(never)]
    unsafe fn first(mailbox: &Arc<Mailbox>, label: Label) -> NonNull<Header> {
        let task = Self::LAYOUT.allocate();
        // SAFETY: the memory is new. This is the owner's thread, by the caller's promise, and nobody else knows the task.
        unsafe {
            Header::write(task, Origin::Here, Self::VTABLE, Some(Arc::clone(mailbox)), label);
            task.as_ref().belong_to(mailbox);
        }
        task
    }

    /// # Safety
    ///
    /// As [`VTable::poll`].
    unsafe fn poll(task: NonNull<Header>) -> Polled {
        // SAFETY: the task is unfinished, so the owner's reference keeps the cell; or its runner's does.
        let cell = unsafe { task.cast::<Self>().as_ref() };
        // SAFETY: the task stays unfinished (or its runner's reference stays) until this call is over, and we run on its owner (or
        // are its runner).
        let polled = catch(|| unsafe { waker::poll_as(task, |cx| cell.advance(cx)) });
        match polled {
            Ok(Poll::Pending) => return Polled::Pending,
            Ok(Poll::Ready(())) => {}
            Err(payload) => cell.fail(Failure::Panicked(payload)),
        }
        // SAFETY: the contents are the owner's or the runner's, who calls, until the task is complete; they are the output.
        let waker = unsafe { Self::complete(task) };
        // The one who waits is mostly another task of this worker's, which the executor can go on with at once.
        Polled::Complete(match waker.map(waker::into_pinned) {
            None => None,
            Some(Ok(waiting)) => Some(waiting.into_raw()),
            Some(Err(waker)) => {
                wake_quietly(waker);
                None
            }
        })
    }

    /// # Safety
    ///
    /// As [`VTable::cancel`].
    unsafe fn cancel(task: NonNull<Header>, unsent_to: Option<WorkerId>) {
        // SAFETY: whoever has the stage has a reference.
        unsafe { task.cast::<Self>().as_ref() }.fail(Failure::Cancelled { unsent_to });
        // SAFETY: the contents are the caller's, and are the output.
        if let Some(waker) = unsafe { Self::complete(task) } {
            wake_quietly(waker);
        }
    }

    /// Polls the future, and puts its output into its place when it ends: here, where the output is at hand, since on its way
    /// out of [`catch`] it would pass through memory twice. From there on nothing unwinds: what would be dropped as the future is none.
    ///
    /// The caller has the stage. (Not an `unsafe fn`, here and below, because only the functions above can call it and each says so.)
    #[inline]
    fn advance(&self, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.with_stage(|stage| {
            // SAFETY: of an unfinished task the stage is the owner's alone, and of a stealable one its runner's; the executor
            // does not nest, so no other call on it is under way: nobody else has a reference to it until `with_stage` returns.
            let stage = unsafe { &mut *stage };
            if let Stage::Start(_) = stage {
                Self::begin(stage);
            }
            let Stage::Future(future) = stage else {
                unreachable!("a task that is not complete has a future");
            };
            // SAFETY: the future was moved into this heap cell before its first poll, and is moved no more: it is
            // dropped in place by `empty`, and the cell does not move.
            unsafe { Pin::new_unchecked(future) }.poll(cx)
        });
        let Poll::Ready(output) = polled else { return Poll::Pending };
        match catch(|| self.empty()) {
            Ok(()) => self.put(Ok(output)),
            Err(payload) => self.put_panic(output, payload),
        }
        Poll::Ready(())
    }

    /// Lends the stage.
    #[inline]
    fn with_stage<R>(&self, look: impl FnOnce(*mut Stage<S, F>) -> R) -> R {
        self.header.contents.with_mut(|_| look(self.contents.get().cast()))
    }

    /// Lends the place of the output.
    #[inline]
    fn with_output<R>(&self, look: impl FnOnce(*mut Result<F::Output, Failure>) -> R) -> R {
        self.header.contents.with_mut(|_| look(self.contents.get().cast()))
    }

    /// Has the closure make the future. (Out of line, as are the others below that few polls need: inlined, they would make every poll save
    /// their registers.)
    #[inline(never)]
    fn begin(stage: &mut Stage<S, F>) {
        if let Stage::Start(start) = mem::replace(stage, Stage::Empty) {
            *stage = Stage::Future(start.start());
        }
    }

    /// Puts a panic of the future's destructor in the place of the output. The caller has the stage, and has emptied it.
    #[cold]
    #[inline(never)]
    fn put_panic(&self, output: F::Output, payload: Payload) {
        drop_quietly(output);
        self.put(Err(Failure::Panicked(payload)));
    }

    /// Drops what the stage holds, and puts there why there is no output.
    ///
    /// A destructor that panics makes the task one that panicked, unless it had already.
    ///
    /// The caller has the stage.
    #[cold]
    fn fail(&self, failure: Failure) {
        let failure = match (catch(|| self.empty()), failure) {
            (Ok(()), failure) => failure,
            (Err(payload), Failure::Cancelled { unsent_to: None }) => Failure::Panicked(payload),
            (Err(payload), first) => {
                drop_quietly(payload);
                first
            }
        };
        self.put(Err(failure));
    }

    /// Puts the output into the place of the stage. The caller has that, and has emptied it.
    #[inline]
    fn put(&self, output: Result<F::Output, Failure>) {
        // SAFETY: the stage is the caller's; it is Empty, so nothing is overwritten that needs dropping.
        self.with_output(|place| unsafe { place.write(output) });
    }

    /// Hands the output to the handle, and gives back who waits for it, to be woken; without a handle it is dropped.
    ///
    /// # Safety
    ///
    /// The contents are the caller's, and are the output, and the task is not complete. They are the caller's no more afterwards.
    #[inline]
    unsafe fn complete(task: NonNull<Header>) -> Option<Waker> {
        // SAFETY: whoever has the stage has a reference.
        let cell = unsafe { task.cast::<Self>().as_ref() };
        let completed = cell.header.join.complete();
        if !completed.has_handle {
            cell.drop_unwanted();
        }
        if !completed.has_waker {
            return None;
        }
        // SAFETY: `complete` handed the slot to us.
        let waker = cell.header.join_waker.with_mut(|slot| unsafe { (*slot).take() });
        Some(waker.expect("WAKER is on only while the slot is full"))
    }

    /// Drops the output of a detached task: what that does concerns nobody else. The caller has the output.
    #[inline(never)]
    fn drop_unwanted(&self) {
        // SAFETY: the output is the caller's, and dropped once.
        if let Err(payload) = catch(|| self.with_output(|output| unsafe { output.drop_in_place() })) {
            drop_quietly(payload);
        }
    }

    /// Drops what the stage holds, in place, and leaves it Empty even if that panics.
    ///
    /// The caller has the stage.
    #[inline]
    fn empty(&self) {
        /// Marks the stage as empty when it is dropped.
        struct Emptied<S, F>(*mut Stage<S, F>);
        impl<S, F> Drop for Emptied<S, F> {
            fn drop(&mut self) {
                // SAFETY: what was here has just been dropped in place, and the caller of `empty` has the stage.
                unsafe { self.0.write(Stage::Empty) };
            }
        }
        self.with_stage(|stage| {
            let _emptied = Emptied(stage);
            // SAFETY: the caller has the stage; the value is valid, and is overwritten by `_emptied` without being
            // dropped again.
            unsafe { stage.drop_in_place() };
        });
    }

    /// # Safety
    ///
    /// As [`VTable::drop_output`].
    unsafe fn drop_output(task: NonNull<Header>) {
        // SAFETY: the owner of the output has a reference.
        let cell = unsafe { task.cast::<Self>().as_ref() };
        cell.with_output(|output| {
            // SAFETY: the output is the caller's, and dropped once.
            let drop = || unsafe { output.drop_in_place() };
            // SAFETY: as above.
            if unsafe { (*output).is_err() } {
                // What a panic carries is not the caller's, and it depends on the moment who drops it; the owner is quiet about it, too.
                let _ = catch(drop).map_err(drop_quietly);
            } else {
                drop();
            }
        });
    }
}

/// Takes the output of a complete task.
///
/// # Safety
///
/// The caller has it, and a reference to the task, whose output is a `T`. Nobody takes or drops it afterwards.
#[inline]
pub(super) unsafe fn take_output<T>(task: NonNull<Header>) -> Result<T, Failure> {
    // SAFETY: the caller's own promise.
    let header = unsafe { task.as_ref() };
    header.contents.with_mut(|_| {
        // SAFETY: the vtable is that of the cell's type, so the place is in the cell, and holds what the caller says; nobody else looks.
        unsafe { task.byte_add(header.vtable.output_at).cast::<Result<T, Failure>>().read() }
    })
}

/// One counted reference to a task's cell, good on any thread.
pub(in crate::runtime) struct Counted(NonNull<Header>);

// SAFETY: through a `Counted` one reaches the header only. Its shared words are atomics; its plain words are behind
// `Header::owned`, whose caller vouches for the thread; the join slot and the contents are behind functions whose callers
// vouch for their turn. The count is atomic, and freeing runs no destructor but those of the mailbox's and the name's
// `Arc`, of a span and of a waker, which are all `Send`.
unsafe impl Send for Counted {}
// SAFETY: what a `&Counted` gives is the header, as above, and a clone, whose count is atomic or, on the owner's thread, the owner's own.
unsafe impl Sync for Counted {}

impl Counted {
    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// `task` is a live cell, and the caller gives up one of its references.
    pub(super) unsafe fn from_raw(task: NonNull<Header>) -> Counted {
        Counted(task)
    }

    /// Gives up the reference without changing the count: what holds the pointer now holds the reference.
    pub(in crate::runtime) fn into_raw(self) -> NonNull<Header> {
        let task = self.0;
        mem::forget(self);
        task
    }

    /// What dropping it does on the task's owner.
    ///
    /// # Safety
    ///
    /// This is the owner.
    pub(super) unsafe fn take_back(self) {
        let task = self.into_raw();
        // SAFETY: the caller's own promise; the reference was `self`'s, and one of the two takes it.
        unsafe {
            if !put_back(task) {
                give_up(task, 1);
            }
        }
    }

    /// The cell, for as long as `self` lives.
    pub(super) fn task(&self) -> NonNull<Header> {
        self.0
    }
}

impl Clone for Counted {
    fn clone(&self) -> Counted {
        if Executor::has(self) {
            // SAFETY: this is the owner.
            let stock = unsafe { &self.owned().stock };
            if stock.get() > 1 {
                stock.set(stock.get() - 1);
                return Counted(self.0);
            }
        }
        // Relaxed: a new reference is made from an old one, which keeps the cell; handing it to a thread orders the rest.
        let before = self.references.fetch_add(1, Relaxed);
        // As in std's Arc: forgetting two thousand million clones must not wrap around to a free cell.
        if before > usize::MAX / 2 {
            std::process::abort();
        }
        Counted(self.0)
    }
}

impl Deref for Counted {
    type Target = Header;

    fn deref(&self) -> &Header {
        // SAFETY: `self` is a reference that is counted, so the cell is there.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Counted {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the reference is given up here: `put_back` takes it, or says that it did not, and then `give_up` does.
        unsafe {
            if !Executor::has(self) || !put_back(self.0) {
                give_up(self.0, 1);
            }
        }
    }
}

/// Puts a reference back into its owner's stock, if there is some: that keeps the cell. Whether it did. Not beyond a bound: each wake
/// from elsewhere makes a reference, and the count of all shall not grow with them.
///
/// # Safety
///
/// The caller has a reference, runs on the task's owner, and uses the reference no more if this says yes.
unsafe fn put_back(task: NonNull<Header>) -> bool {
    // SAFETY: the caller's own promise.
    let stock = unsafe { &task.as_ref().owned().stock };
    let has_some = (1..2 * STOCK).contains(&stock.get());
    if has_some {
        stock.set(stock.get() + 1);
    }
    has_some
}

/// Drops a task's closure or future, and completes it as cancelled.
///
/// # Safety
///
/// The caller has the stage (the task's owner, or its runner, or the holder of a Fresh task) and a reference, and the task is not complete.
pub(super) unsafe fn cancel(task: NonNull<Header>) {
    // SAFETY: the caller's own promise.
    unsafe { (task.as_ref().vtable.cancel)(task, None) };
}

/// Gives up `count` references, and frees the cell if those were the last.
///
/// # Safety
///
/// The caller has them, and uses them no more.
pub(super) unsafe fn give_up(task: NonNull<Header>, count: usize) {
    // SAFETY: the references last until the subtraction below. The place is named through the pointer, so that no
    // reference to the header lives on after that.
    let references = unsafe { &(*task.as_ptr()).references };
    // If no others are left nobody can make any: no read-modify-write is needed. Acquire, here and below,
    // pairs with the Release of every other holder's subtraction: whatever they did to the cell happened before it is freed.
    if references.load(Acquire) == count || references.fetch_sub(count, AcqRel) == count {
        // SAFETY: those were the last references. Neither a stage nor an output is left by now (module docs of `task`).
        unsafe { Executor::clear_away(task) };
    }
}

/// A task that nobody runs at the moment, and the sole right and duty to run it next.
///
/// There are two kinds. A *Fresh* one is on its way to its owner: a closure that is `Send`, whose future need not be. It enters its
/// worker by [`Mailbox::push`] from any thread, inside a message by [`Executor::adopt`](super::Executor::adopt), or
/// through a stealable queue. A *stealable* one is a future that is `Send`, polled or not yet.
///
/// Dropped, it drops the closure or future, on this thread, and its handle reports that the task was cancelled.
pub(crate) struct TaskRef(Option<Counted>);

impl TaskRef {
    /// A task for the worker of `mailbox`. `start` is called there, at the first poll, to make the
    /// future.
    pub(crate) fn new_remote_at<S, F>(
        start: S,
        mailbox: &Arc<Mailbox>,
        label: impl Into<Label>,
    ) -> (TaskRef, JoinHandle<F::Output>)
    where
        S: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        let mailbox = Some(Arc::clone(mailbox));
        TaskRef::new::<S, F, false>(Stage::Start(start), Origin::Elsewhere, mailbox, label.into())
    }

    /// A task for whichever worker adopts it. `start` is called there, at the first poll, to make the future.
    pub(crate) fn new_pinned<S, F>(start: S, label: Label) -> (TaskRef, JoinHandle<F::Output>)
    where
        S: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        TaskRef::new::<S, F, false>(Stage::Start(start), Origin::Elsewhere, None, label)
    }

    /// A task for all workers.
    pub(crate) fn new_stealable<F>(future: F, label: Label) -> (TaskRef, JoinHandle<F::Output>)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        TaskRef::new::<Never, F, true>(Stage::Future(future), Origin::Placed, None, label)
    }

    fn new<S, F, const STEALABLE: bool>(
        stage: Stage<S, F>,
        origin: Origin,
        mailbox: Option<Arc<Mailbox>>,
        label: Label,
    ) -> (TaskRef, JoinHandle<F::Output>)
    where
        S: Start<F> + 'static,
        F: Future + 'static,
    {
        let task = TaskCell::<S, F, STEALABLE>::LAYOUT.allocate();
        // SAFETY: the memory is new.
        let (task, handle) = unsafe {
            Header::write(task, origin, TaskCell::<S, F, STEALABLE>::VTABLE, mailbox, label);
            fill::<S, F, STEALABLE>(task, stage)
        };
        // SAFETY: this takes over the first of the new cell's two references; the task is Fresh or queued.
        (unsafe { TaskRef::from_raw(task) }, handle)
    }

    /// Takes over the right to run a task, and the reference that comes with it.
    ///
    /// # Safety
    ///
    /// The caller gives up both: `task` is Fresh and nobody else has or adopts it, or it is stealable, and it was the caller who turned
    /// QUEUED on, or to whom the right was handed by [`into_raw`](TaskRef::into_raw).
    pub(in crate::runtime) unsafe fn from_raw(task: NonNull<Header>) -> TaskRef {
        // SAFETY: the caller gives up a reference.
        TaskRef(Some(unsafe { Counted::from_raw(task) }))
    }

    /// Hands the task on, with the reference and the duty to run or cancel it.
    pub(in crate::runtime) fn into_raw(self) -> NonNull<Header> {
        self.into_counted().into_raw()
    }

    /// As [`into_raw`](TaskRef::into_raw), with the reference as such.
    pub(super) fn into_counted(mut self) -> Counted {
        self.0.take().expect("only `into_counted` and `end` take it")
    }

    /// The task's header.
    pub(super) fn header(&self) -> &Header {
        self.0.as_ref().expect("only `into_counted` and `end` take it")
    }

    /// Whether this task is one for the worker of `mailbox`.
    pub(crate) fn is_for(&self, mailbox: &Mailbox) -> bool {
        // SAFETY: whoever has a `TaskRef` has the right to run the task.
        let owner = unsafe { self.header().mailbox() };
        owner.is_some_and(|owner| std::ptr::eq(&raw const **owner, mailbox))
    }

    /// Lets go of the task, found in a queue that its worker will not look into any more. One that was never polled is
    /// dropped here. A future that was polled is dropped by a worker, which will find it by other means; here only
    /// the reference ends.
    pub(in crate::runtime) fn discard(self) {
        // SAFETY: whoever has a `TaskRef` has the right to run the task.
        if self.header().vtable.stealable && unsafe { self.header().mailbox() }.is_some() {
            drop(self.into_counted());
        } else {
            drop_quietly(self);
        }
    }
}

impl TaskRef {
    /// Drops it, and tells its handle that too many messages wait for `worker`.
    pub(in crate::runtime) fn refuse(mut self, worker: WorkerId) {
        self.end(Some(worker));
    }

    fn end(&mut self, unsent_to: Option<WorkerId>) {
        if let Some(task) = self.0.take() {
            if task.vtable.stealable {
                // Aborted or not: it is cancelled.
                let (Begun::Poll | Begun::Cancel) = task.remote.begin();
            }
            // SAFETY: the one who holds the `TaskRef` has the stage. What is in it may be dropped on this thread: a closure that
            // is `Send` (the task is Fresh), or a future that is (it is stealable).
            unsafe { (task.vtable.cancel)(task.task(), unsent_to) };
        }
    }
}

impl Drop for TaskRef {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl fmt::Debug for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple("TaskRef");
        if let Some(task) = &self.0 {
            tuple.field(&task.id);
        }
        tuple.finish()
    }
}

/// What a panic carries.
pub(super) type Payload = Box<dyn Any + Send>;

/// Calls user code that must not take the worker with it.
///
/// Under loom nothing is caught: there a panic is loom's verdict on the model.
pub(super) fn catch<R>(user: impl FnOnce() -> R) -> Result<R, Payload> {
    if cfg!(loom) {
        return Ok(user());
    }
    // Whatever the closure leaves half done is the panicking task's own, and is dropped, not used.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(user))
}

/// Wakes somebody whose waker is foreign code: a panic of it ends here.
#[inline(never)]
fn wake_quietly(waker: Waker) {
    if let Err(payload) = catch(|| waker.wake()) {
        drop_quietly(payload);
    }
}

/// Drops a value whose destructor may panic. If the payload of that panic panics in turn, *its* payload is leaked.
pub(super) fn drop_quietly<T>(value: T) {
    if let Err(payload) = catch(|| drop(value))
        && let Err(unending) = catch(|| drop(payload))
    {
        mem::forget(unending);
    }
}
