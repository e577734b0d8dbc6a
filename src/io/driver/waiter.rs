//! Who is told when an operation has its answer.
//!
//! The I/O layer knows nothing of tasks. What it must call upwards is handed to it as a [`Waiter`]: either an ordinary
//! [`Waker`], or an opaque counted reference to the task that is being polled right now, with a vtable that the runtime
//! supplies. The second kind costs no atomic instruction: it never leaves the worker, so its count is a plain integer.
//!
//! Order of events: to poll a task, the executor calls [`run_as`] with that task's [`TaskWaker`]. An operation that
//! must wait asks [`Waiter::of`] with the poll's context. When the context's waker is the running task's own, the
//! operation gets a counted reference to the task; when a combinator such as `FuturesUnordered` put a waker of its own
//! there, it gets a clone of that. Operations refresh their waiter at each poll, so a future may move between tasks.
#![expect(
    unsafe_code,
    reason = "a hand-written vtable, as in std's RawWaker, but single-threaded and counted"
)]

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicPtr, compiler_fence};
use std::task::{Context, RawWaker, RawWakerVTable, Waker};

use super::thread_pool::quietly;

/// What a runtime supplies so that the I/O layer can hold and wake its tasks without knowing them.
///
/// All three functions are called on the worker that owns the task, and only there.
#[derive(Debug)]
pub(crate) struct WaiterVTable {
    /// Equal to `Waker::vtable` of every such task's own waker. A foreign waker may well carry the same data pointer (one
    /// that wraps the task's waker and wants to be told first); its vtable differs.
    pub(crate) waker: &'static RawWakerVTable,
    /// Adds one to the task's count of waiters.
    pub(crate) retain: unsafe fn(*const ()),
    /// Makes the task ready and takes one from its count of waiters.
    pub(crate) wake: unsafe fn(*const ()),
    /// Takes one from the task's count of waiters.
    pub(crate) release: unsafe fn(*const ()),
}

/// An uncounted name of a task: the data pointer of its waker, and how to count and wake it.
#[derive(Clone, Copy, Debug)]
struct RawWaiter {
    /// Equal to `Waker::data` of the task's own waker.
    data: *const (),
    /// The runtime's functions for `data`.
    vtable: &'static WaiterVTable,
}

impl RawWaiter {
    /// Whether `waker` is the task's own.
    fn is_waker(&self, waker: &Waker) -> bool {
        std::ptr::eq(self.data, waker.data()) && std::ptr::eq(self.vtable.waker, waker.vtable())
    }
}

/// A task as it is polled: its own waker, which is not counted, and how to count the task as a waiter. It stays beside the task, so that a
/// poll has nothing to put together.
#[derive(Debug)]
pub(crate) struct TaskWaker {
    waker: ManuallyDrop<Waker>,
    vtable: &'static WaiterVTable,
}

impl TaskWaker {
    /// What the task is polled with whose waker has that data pointer and those functions.
    ///
    /// # Safety
    ///
    /// Whenever [`run_as`] is called with it, the functions of `waker` are sound to call on `data` by [`RawWaker`]'s contract, but that
    /// it is never dropped.
    pub(crate) unsafe fn new(
        data: *const (),
        waker: &'static RawWakerVTable,
        vtable: &'static WaiterVTable,
    ) -> TaskWaker {
        // SAFETY: nobody uses it but `run_as`, and the caller vouches for that time.
        let waker = unsafe { Waker::from_raw(RawWaker::new(data, waker)) };
        TaskWaker { waker: ManuallyDrop::new(waker), vtable }
    }

    fn raw(&self) -> RawWaiter {
        RawWaiter { data: self.waker.data(), vtable: self.vtable }
    }
}

thread_local! {
    /// The task that is being polled on this thread, or null: what `run_as` was called with. Whoever stops the thread may look at it, so
    /// it is one word, and changes in one piece.
    static RUNNING: AtomicPtr<TaskWaker> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// The task that is being polled on this thread.
fn now_running() -> Option<RawWaiter> {
    // Relaxed, here and below: it is this thread's own.
    let running = RUNNING.with(|running| running.load(Relaxed));
    // SAFETY: who called `run_as` lent it what is there for the length of the call, which takes the address away before it returns; an
    // `Outer` puts an address back only inside the call that it is of.
    unsafe { running.as_ref() }.map(TaskWaker::raw)
}

/// Polls (in `poll`) the task that `task` stands for, so that operations in it can wait as that task. Afterwards nobody is polled: an
/// [`Outer`] puts back who was before.
///
/// # Safety
///
/// Until `poll` returns, `task` must stand for a live task of the worker that runs on this thread, and the functions of
/// its vtable must be sound to call on it from this thread. References retained meanwhile are given back on the same
/// worker.
#[inline]
pub(crate) unsafe fn run_as<R>(task: &TaskWaker, poll: impl FnOnce(&mut Context<'_>) -> R) -> R {
    /// Ends it even if `poll` unwinds.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            put(ptr::null_mut());
        }
    }
    let _end = End;
    put(ptr::from_ref(task).cast_mut());
    poll(&mut Context::from_waker(&task.waker))
}

/// Says who is being polled, to the code that this thread goes on with and to whoever stops it.
#[inline]
fn put(task: *mut TaskWaker) {
    // Who stops this thread sees its memory as the compiler ordered the changes: the one to the address comes after what it
    // points to was written, and before that place is used for something else.
    compiler_fence(SeqCst);
    RUNNING.with(|running| running.store(task, Relaxed));
    compiler_fence(SeqCst);
}

/// The task in whose poll others are polled, as when a worker is driven by a task of another worker on its thread. Kept while they are, and
/// then it is the one that runs again: so [`run_as`] need not look for an outer task each time.
#[derive(Debug)]
pub(crate) struct Outer(*mut TaskWaker);

impl Outer {
    /// Sets aside whoever is being polled now: until it runs again, and no other does, nobody is.
    pub(crate) fn set_aside() -> Outer {
        let outer = Outer(RUNNING.with(|running| running.load(Relaxed)));
        put(ptr::null_mut());
        outer
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        put(self.0);
    }
}

/// Where a thread has the task that it polls, for whoever stops the thread to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunningThere(NonNull<AtomicPtr<TaskWaker>>);

// SAFETY: it is an address until somebody calls `get`, which vouches for the thread that it belongs to.
unsafe impl Send for RunningThere {}
// SAFETY: a shared one can be copied, and nothing else is done without `get`'s promise.
unsafe impl Sync for RunningThere {}

impl RunningThere {
    /// Where the calling thread has it.
    pub(crate) fn of_this_thread() -> RunningThere {
        RUNNING.with(|running| RunningThere(NonNull::from(running)))
    }

    /// The data pointer of the task that is being polled there, if one is and its functions are `vtable`.
    ///
    /// # Safety
    ///
    /// The thread has not ended and stands still: this is called by a signal handler on it, or it is suspended.
    pub(crate) unsafe fn get(self, vtable: &'static WaiterVTable) -> Option<*const ()> {
        // SAFETY: the thread has not ended, and with it what is local to it.
        let task = unsafe { self.0.as_ref() }.load(Relaxed);
        // SAFETY: null, or what `run_as` was called with on that thread, which is kept until another was put there; since the thread
        // stands still, by the caller's promise, it is kept while we look.
        let task = unsafe { task.as_ref() }?.raw();
        ptr::eq(task.vtable, vtable).then_some(task.data)
    }
}

/// The data pointer of the task that is being polled on this thread, if one is and its functions are `vtable`.
pub(crate) fn running(vtable: &'static WaiterVTable) -> Option<*const ()> {
    now_running().filter(|task| std::ptr::eq(task.vtable, vtable)).map(|task| task.data)
}

/// The one to tell when an operation has its answer. Neither `Send` nor `Sync`.
pub(crate) enum Waiter {
    /// The task that was polled when the operation was; counted in the task, so the task's memory is there.
    Task(TaskRef),
    /// Anything else that can be woken.
    Waker(Waker),
}

impl Waiter {
    /// The waiter that stands for `cx`.
    pub(crate) fn of(cx: &Context<'_>) -> Waiter {
        match now_running() {
            Some(task) if task.is_waker(cx.waker()) => {
                // SAFETY: `run_as` vouches for `task` until its poll returns, and we are inside that poll.
                unsafe { (task.vtable.retain)(task.data) };
                Waiter::Task(TaskRef(task))
            }
            _ => Waiter::Waker(cx.waker().clone()),
        }
    }

    /// The address of the task, if it is one and not somebody else's waker.
    pub(crate) fn task(&self) -> Option<*const ()> {
        match self {
            Waiter::Task(task) => Some(task.0.data),
            Waiter::Waker(_) => None,
        }
    }

    /// Whether waking `self` would wake what `cx` stands for, so that it need not be replaced.
    pub(crate) fn will_wake(&self, cx: &Context<'_>) -> bool {
        match self {
            Waiter::Task(task) => task.0.is_waker(cx.waker()),
            Waiter::Waker(waker) => waker.will_wake(cx.waker()),
        }
    }

    /// Tells it. A `Waker` is foreign code: no borrow of the driver may be held here, and a panic ends with it.
    pub(crate) fn wake(self) {
        match self {
            Waiter::Task(task) => {
                let raw = task.0;
                std::mem::forget(task);
                // SAFETY: `task` held one count, which this call consumes; it was made on this worker and is `!Send`.
                unsafe { (raw.vtable.wake)(raw.data) };
            }
            Waiter::Waker(waker) => quietly(|| waker.wake()),
        }
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiter::Task(task) => f.debug_tuple("Task").field(&task.0.data).finish(),
            Waiter::Waker(waker) => f.debug_tuple("Waker").field(waker).finish(),
        }
    }
}

/// One count in a task's number of waiters. `!Send`, because it holds raw pointers.
pub(crate) struct TaskRef(RawWaiter);

impl Drop for TaskRef {
    fn drop(&mut self) {
        // SAFETY: `self` holds one count, made on this worker and never sent from it.
        unsafe { (self.0.vtable.release)(self.0.data) };
    }
}

/// A waker whose clone calls `meddle`, as that of a program's own waker may call anything. For tests that use one thread.
#[cfg(all(test, not(loom)))]
pub(crate) fn waker_that_meddles(meddle: impl Fn() + 'static) -> Waker {
    use std::rc::Rc;

    type Meddle = Box<dyn Fn()>;
    static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, forget, |_| (), forget);

    fn clone(data: *const ()) -> RawWaker {
        // SAFETY: `data` came from `Rc::into_raw`, and the waker that is cloned has a count in it, which stays its own.
        let meddle = ManuallyDrop::new(unsafe { Rc::from_raw(data.cast::<Meddle>()) });
        meddle();
        RawWaker::new(Rc::into_raw(Rc::clone(&meddle)).cast(), &VTABLE)
    }
    fn forget(data: *const ()) {
        // SAFETY: as above; the waker ends here, and its count with it.
        drop(unsafe { Rc::from_raw(data.cast::<Meddle>()) });
    }

    let meddle: Meddle = Box::new(meddle);
    // SAFETY: the vtable counts as `RawWaker` asks. That it may not be sent is what the caller vouches for.
    unsafe { Waker::from_raw(RawWaker::new(Rc::into_raw(Rc::new(meddle)).cast(), &VTABLE)) }
}

/// A waker that panics when it wakes, as that of a program's own may.
#[cfg(all(test, not(loom)))]
pub(crate) fn waker_that_panics() -> Waker {
    use std::sync::Arc;
    use std::task::Wake;

    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Panics>) {
            panic!("a waker of the program's");
        }
    }
    Waker::from(Arc::new(Panics))
}
