//! The two ways to be told of a task's progress: std's [`Waker`] and the I/O layer's counted waiter, both over a header.
//!
//! A `Waker`'s data pointer is the header's address; its vtable is one static for all pinned tasks, or another for all stealable ones. The
//! waker that a task is polled with stands in its header and is not counted, since the owner or the runner keeps the header meanwhile;
//! cloning it counts one.
//!
//! The waiter is the same pointer with another vtable, made by [`Waiter::of`](crate::io::driver::waiter::Waiter::of) when
//! an operation is polled with that waker. It stays on the worker and is counted in a plain word.
#![expect(
    unsafe_code,
    reason = "std's RawWaker and the waiter's vtable are hand-counted pointers by definition"
)]

use std::borrow::Cow;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::task::{Context, RawWaker, RawWakerVTable, Waker};

use super::TaskId;
use super::executor::{self, Executor};
#[cfg(not(loom))]
use super::label::Label;
#[cfg(feature = "tracing")]
use super::raw::drop_quietly;
use super::raw::{Counted, TaskRef};
use super::state::{Header, Request};
#[cfg(not(loom))]
use crate::io::driver::waiter::RunningThere;
use crate::io::driver::waiter::{TaskWaker, WaiterVTable, run_as, running};

/// What a task is polled with: its own waker, and how it is counted as a waiter. With a stealable task's waker that is never done, since
/// that has other functions than a waiter asks for: the count would be the owner's, and such a task has none.
pub(super) fn task_waker(task: NonNull<Header>, is_stealable: bool) -> TaskWaker {
    let data = task.as_ptr().cast_const().cast::<()>();
    // SAFETY: the vtable's functions expect the address of a live header, which is what `poll_as` is called with, and a reference, which
    // this waker has not; but it is never dropped.
    unsafe { TaskWaker::new(data, if is_stealable { STEALABLE } else { PINNED }, &WAITER) }
}

/// Polls by `poll`, with a waker and a waiter that stand for `task`.
///
/// # Safety
///
/// This is the owner of the task, which stays unfinished until `poll` has returned; or the task is stealable, and this is its runner, which
/// keeps a reference.
#[inline]
pub(super) unsafe fn poll_as<R>(task: NonNull<Header>, poll: impl FnOnce(&mut Context<'_>) -> R) -> R {
    // SAFETY: the header is live until `poll` returns.
    let header = unsafe { task.as_ref() };
    #[cfg(feature = "tracing")]
    let entered = header.span.enter();
    // SAFETY: the header is live until `poll` returns; the waiter's functions are sound on its owner, which this thread
    // is if they are called, and waiters are `!Send`.
    let polled = unsafe { run_as(&header.task_waker, poll) };
    // A subscriber is foreign code. By now the output may be in the place of the stage: nothing may unwind that would have the stage
    // dropped.
    #[cfg(feature = "tracing")]
    drop_quietly(entered);
    polled
}

/// The number of the task that runs here. `None` outside of a task's poll.
///
/// ```
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let task = veloq::spawn_local(async { veloq::task::id() });
/// let id = task.id();
/// assert_eq!(task.await.expect("it does not panic"), Some(id));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use]
pub fn id() -> Option<TaskId> {
    with_running(|task| task.id)
}

/// What the task that runs here was called by [`Builder::name`](crate::task::Builder::name). `None` if it was not, and outside
/// of a task's poll.
#[must_use]
pub fn name() -> Option<Cow<'static, str>> {
    with_running(|task| task.name().cloned()).flatten()
}

/// Which task a thread polls, for whoever stops the thread to look.
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub(in crate::runtime) struct PolledThere(RunningThere);

#[cfg(not(loom))]
impl PolledThere {
    /// Which one the calling thread polls.
    pub(in crate::runtime) fn of_this_thread() -> PolledThere {
        PolledThere(RunningThere::of_this_thread())
    }

    /// Number and label of the task. Allocates nothing, takes no lock.
    ///
    /// # Safety
    ///
    /// As [`RunningThere::get`].
    pub(in crate::runtime) unsafe fn task(self) -> Option<(TaskId, Label)> {
        // SAFETY: the caller's own promise.
        let data = unsafe { self.0.get(&WAITER) }?;
        // SAFETY: `poll_as` put it there for the length of a poll that goes on when the thread does, and the header is kept meanwhile.
        // Number and label do not change after the task was made.
        let header = unsafe { header_of(data).as_ref() };
        Some((header.id, header.label()))
    }
}

/// Calls `look` with the task that is being polled on this thread.
pub(super) fn with_running<R>(look: impl FnOnce(&Header) -> R) -> Option<R> {
    let data = running(&WAITER)?;
    // SAFETY: `poll_as` put it there, for as long as it polls, and the header is kept meanwhile. We are inside that poll.
    Some(look(unsafe { header_of(data).as_ref() }))
}

/// Makes a pinned task ready, from whichever thread. What the task's waker does.
///
/// # Safety
///
/// The caller has a reference to `task`, or otherwise knows that it lives until this returns.
pub(super) unsafe fn wake(task: NonNull<Header>) {
    // SAFETY: the caller's own promise.
    let header = unsafe { task.as_ref() };
    let woken = Executor::with_owner_of(header, |owner| {
        // SAFETY: the task is live, and this is its owner.
        unsafe { owner.wake_here(task) };
    });
    if woken.is_none() && !header.join.is_complete_hint() {
        let request = header.remote.request_poll();
        // SAFETY: the caller's own promise, and that is the answer to this request.
        unsafe { fulfil(task, request) };
    }
}

/// Has the task cancelled by its owner, or by whoever runs it next, from whichever thread.
///
/// # Safety
///
/// As [`wake`].
pub(super) unsafe fn abort(task: NonNull<Header>) {
    // SAFETY: the caller's own promise.
    let header = unsafe { task.as_ref() };
    if header.join.is_complete_hint() {
        return;
    }
    // While it is fresh it has no owner, and QUEUED is on: the bit is left, as from elsewhere.
    let done = Executor::with_owner_of(header, |owner| {
        // SAFETY: this is the owner.
        let owned = unsafe { header.owned() };
        if owned.is_unfinished() {
            owned.aborted.set(true);
            // SAFETY: the task is live, and this is its owner.
            unsafe { owner.wake_here(task) };
        }
    });
    if done.is_some() {
        return;
    }
    let request = header.remote.request_abort();
    // SAFETY: the caller's own promise, and that is the answer to this request.
    unsafe {
        if header.vtable.stealable {
            fulfil_stealable(task, request);
        } else {
            fulfil(task, request);
        }
    }
}

/// Makes a stealable task ready, from whichever thread.
///
/// # Safety
///
/// As [`wake`].
unsafe fn wake_stealable(task: NonNull<Header>) {
    // SAFETY: the caller's own promise.
    let request = unsafe { task.as_ref() }.remote.request_poll();
    // SAFETY: the caller's own promise, and that is the answer to this request.
    unsafe { fulfil_stealable(task, request) };
}

/// Queues a stealable task where thieves see it, if that is what the request asks for: with this worker, if it is one of the task's
/// runtime, else at the task's home.
///
/// # Safety
///
/// As [`wake`]; `request` was answered by the task's remote word just now.
unsafe fn fulfil_stealable(task: NonNull<Header>, request: Request) {
    if request == Request::Pending {
        return;
    }
    // SAFETY: the caller keeps the header, whoever runs the task meanwhile; it has been idle, so it has been polled.
    let home = unsafe { (*task.as_ptr()).mailbox() }.expect("a task that was polled has a home");
    // SAFETY: we turned QUEUED on in a task that was idle, so the right to run is ours, and the reference was the word's.
    let task = unsafe { TaskRef::from_raw(task) };
    if let Err(task) = Executor::push_here(home.spawner(), task) {
        home.place(task);
    }
}

/// Pushes the task on its owner's list, if that is what the request asks for.
///
/// # Safety
///
/// As [`wake`]; `request` was answered by the task's remote word just now.
unsafe fn fulfil(task: NonNull<Header>, request: Request) {
    if request == Request::Pending {
        return;
    }
    // SAFETY: the caller has a reference, from which this one is made for the node. (It gives that one up by `into_raw`.)
    let node = unsafe { ManuallyDrop::new(Counted::from_raw(task)) };
    let node = Counted::clone(&node).into_raw();
    // SAFETY: the caller's reference lasts, and with it the mailbox, even if the node is taken at once.
    let mailbox = unsafe { task.as_ref().mailbox() }.expect("a task that was adopted has an owner");
    // SAFETY: `node` brings a reference, and we are who turned QUEUED on.
    unsafe { mailbox.remote.push(node) };
    mailbox.ring_remote();
}

/// The functions of a pinned task's waker.
const PINNED: &RawWakerVTable = {
    static VTABLE: RawWakerVTable =
        RawWakerVTable::new(clone_raw::<false>, wake_by_value::<false>, wake_by_ref::<false>, drop_waker);
    &VTABLE
};

/// The functions of a stealable task's waker.
const STEALABLE: &RawWakerVTable = {
    static VTABLE: RawWakerVTable =
        RawWakerVTable::new(clone_raw::<true>, wake_by_value::<true>, wake_by_ref::<true>, drop_waker);
    &VTABLE
};

/// Clones a waker without the way through its functions, if it is that of a pinned task. No foreign code runs. `None` if it is not.
#[inline]
pub(super) fn clone_pinned(waker: &Waker) -> Option<Waker> {
    if !ptr::eq(waker.vtable(), PINNED) {
        return None;
    }
    // SAFETY: these are its functions, so its data is what they expect, and the clone is what that function would have returned.
    Some(unsafe { Waker::from_raw(clone_raw::<false>(waker.data())) })
}

/// The pinned task whose waker this is.
///
/// # Errors
///
/// Gives the waker back if it is another.
#[inline]
pub(super) fn into_pinned(waker: Waker) -> Result<Counted, Waker> {
    if !ptr::eq(waker.vtable(), PINNED) {
        return Err(waker);
    }
    let waker = ManuallyDrop::new(waker);
    // SAFETY: these are its functions, so its data is a header's address and comes with a reference, which the waker gives up.
    Ok(unsafe { Counted::from_raw(header_of(waker.data())) })
}

/// # Safety
///
/// `data` is the header of a live task, which is stealable or not.
#[inline]
unsafe fn clone_raw<const IS_STEALABLE: bool>(data: *const ()) -> RawWaker {
    // SAFETY: the waker that is cloned keeps the header; what is taken from it here is given back by forgetting it.
    let waker = ManuallyDrop::new(unsafe { Counted::from_raw(header_of(data)) });
    let clone = Counted::clone(&waker).into_raw();
    RawWaker::new(clone.as_ptr().cast_const().cast(), if IS_STEALABLE { STEALABLE } else { PINNED })
}

/// # Safety
///
/// As [`clone_raw`]; and `data` comes with a reference.
unsafe fn wake_by_value<const IS_STEALABLE: bool>(data: *const ()) {
    // SAFETY: the caller's own promise.
    unsafe {
        if IS_STEALABLE {
            wake_elsewhere::<true>(header_of(data));
        } else {
            wake_and_drop(header_of(data));
        }
    }
}

/// Wakes a pinned task, from whichever thread, and gives up a reference to it.
///
/// # Safety
///
/// The caller has the reference, and uses it no more.
pub(super) unsafe fn wake_and_drop(task: NonNull<Header>) {
    // SAFETY: the caller's reference, which is consumed, keeps the header until it is taken back; after that nothing here names it.
    unsafe {
        if let Some(owner) = Executor::owner_of(task.as_ref()) {
            owner.wake_here(task);
            Counted::from_raw(task).take_back();
        } else {
            wake_elsewhere::<false>(task);
        }
    }
}

/// As `wake_by_value`, off the owner's thread. (Out of line, so that a wake at home has no registers to save.)
///
/// # Safety
///
/// As [`wake`]; and `task` comes with a reference.
#[inline(never)]
unsafe fn wake_elsewhere<const IS_STEALABLE: bool>(task: NonNull<Header>) {
    // SAFETY: the reference is the waker's, which is consumed. It is given up after the wake is done.
    let waker = unsafe { Counted::from_raw(task) };
    // SAFETY: `waker` is a reference.
    unsafe { wake_by_ref::<IS_STEALABLE>(waker.task().as_ptr().cast_const().cast()) };
}

/// # Safety
///
/// As [`clone_raw`].
unsafe fn wake_by_ref<const IS_STEALABLE: bool>(data: *const ()) {
    let task = header_of(data);
    // SAFETY: the waker keeps the header.
    unsafe { if IS_STEALABLE { wake_stealable(task) } else { wake(task) } };
}

/// # Safety
///
/// `data` is the header of a live task, and comes with a reference.
unsafe fn drop_waker(data: *const ()) {
    // SAFETY: the reference is the waker's, which is consumed.
    drop(unsafe { Counted::from_raw(header_of(data)) });
}

/// The functions of every task's waiter. All run on the task's owner, though not always while it is entered.
static WAITER: WaiterVTable =
    WaiterVTable { waker: PINNED, retain: retain_waiter, wake: wake_waiter, release: release_waiter };

/// # Safety
///
/// `data` is the header of a task that is being polled, on this thread.
unsafe fn retain_waiter(data: *const ()) {
    let task = header_of(data);
    // SAFETY: a task that is polled is unfinished, and on its owner.
    let waiters = unsafe { &task.as_ref().owned().waiters };
    waiters.set(waiters.get() + 1);
}

/// # Safety
///
/// `data` is the header of a task, on its owner's thread, and comes with one count of its waiters.
unsafe fn wake_waiter(data: *const ()) {
    // SAFETY: the waiter's count keeps the header until it is taken off below.
    unsafe { wake(header_of(data)) };
    // SAFETY: the count comes with the call.
    unsafe { release_waiter(data) };
}

/// # Safety
///
/// As [`wake_waiter`].
unsafe fn release_waiter(data: *const ()) {
    let task = header_of(data);
    // SAFETY: the waiter's count keeps the header, and this is its owner.
    let waiters = unsafe { &task.as_ref().owned().waiters };
    waiters.set(waiters.get() - 1);
    // SAFETY: the change just made is one that can leave the owner's side without use for the task.
    unsafe { executor::let_go(task) };
}

/// The header whose address a waker or waiter carries.
fn header_of(data: *const ()) -> NonNull<Header> {
    NonNull::new(data.cast_mut().cast()).expect("the data of a task's waker is its header's address")
}
