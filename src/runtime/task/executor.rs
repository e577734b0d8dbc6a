//! The owner's side of its tasks: the list of all that are unfinished, the queue of those that are ready.
//!
//! A [`Executor`] belongs to one thread. While it is *entered* a thread-local names it, which is how a waker knows that it is
//! at home. Several may be entered inside one another (several workers on one thread); the innermost counts.
//!
//! One turn of a worker does, with what is here: [`drain_remote`](Executor::drain_remote) (tasks woken or sent from
//! elsewhere become ready), then [`run`](Executor::run) up to its budget, first in, first out. A task that wakes itself while
//! it is polled goes behind all that are ready.
//!
//! Both lists run through the headers. Every change to them is complete before any user code runs and touches nothing but
//! `Cell`s, so user code may come back here from wherever it is called.
#![expect(unsafe_code, reason = "intrusive lists over headers that the owner's reference keeps")]

use std::fmt;
use std::future::Future;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use super::join::JoinHandle;
use super::label::Label;
use super::raw::{self, Shared, TaskRef};
use super::state::{Header, Life, Owned};
use crate::runtime::mesh::mailbox::Mailbox;
use crate::sync::{Arc, Cell, mutant, per_thread};

/// A worker's tasks.
///
/// Dropping it closes it.
pub(crate) struct Executor {
    mailbox: Arc<Mailbox>,
    phase: Cell<Phase>,
    /// Whether a task is being polled or dropped by `run_one`; that does not nest.
    busy: Cell<bool>,
    /// The ready queue: where the next poll comes from, and where the next wake goes.
    ready_first: Cell<Option<NonNull<Header>>>,
    ready_last: Cell<Option<NonNull<Header>>>,
    /// Every Linked task, newest first.
    tasks: Cell<Option<NonNull<Header>>>,
    ready: Cell<usize>,
    alive: Cell<usize>,
    spawned: Cell<u64>,
    polls: Cell<u64>,
    wakes_local: Cell<u64>,
    wakes_remote: Cell<u64>,
}

/// Whether tasks are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// They are.
    Open,
    /// `close` is dropping them; those that their destructors spawn are dropped by it, too.
    Closing,
    /// They are cancelled on the spot.
    Closed,
}

/// What a worker's tasks have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskCounters {
    /// Tasks that were spawned or adopted.
    pub(crate) spawned: u64,
    /// Tasks that are unfinished.
    pub(crate) alive: usize,
    /// Tasks in the ready queue.
    pub(crate) ready: usize,
    /// Polls.
    pub(crate) polls: u64,
    /// Times a task was made ready by this thread.
    pub(crate) wakes_local: u64,
    /// Tasks taken from the remote list.
    pub(crate) wakes_remote: u64,
}

per_thread! {
    /// The `Executor` that is entered on this thread. No destructor, so wakers can look at any time.
    static CURRENT: std::cell::Cell<*const Executor> = std::cell::Cell::new(ptr::null());
}

/// The `Executor` that is entered on this thread, or null.
fn current() -> *const Executor {
    // A thread of a model that has ended has none.
    CURRENT.try_with(std::cell::Cell::get).unwrap_or(ptr::null())
}

impl Executor {
    /// The tasks of the worker that `mailbox` belongs to.
    ///
    /// # Panics
    ///
    /// If the mailbox has had a `Executor` before: only one may take from its list.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Rc<Executor> {
        mailbox.claim();
        Rc::new(Executor {
            mailbox,
            phase: Cell::new(Phase::Open),
            busy: Cell::new(false),
            ready_first: Cell::new(None),
            ready_last: Cell::new(None),
            tasks: Cell::new(None),
            ready: Cell::new(0),
            alive: Cell::new(0),
            spawned: Cell::new(0),
            polls: Cell::new(0),
            wakes_local: Cell::new(0),
            wakes_remote: Cell::new(0),
        })
    }

    /// Makes these the tasks of this thread until the guard is dropped.
    pub(crate) fn enter(self: &Rc<Executor>) -> Entered {
        let outer = current();
        CURRENT.with(|current| current.set(Rc::as_ptr(self)));
        Entered { local: Rc::clone(self), outer }
    }

    /// For tests: calls `f` with the `Executor` that is entered on this thread. `None` if none is.
    #[cfg(test)]
    pub(super) fn with_current<R>(f: impl FnOnce(&Executor) -> R) -> Option<R> {
        let current = current();
        // SAFETY: as in `with_owner_of`.
        unsafe { current.as_ref() }.map(f)
    }

    /// Calls `f` with the entered `Executor` if it is the one that owns the task.
    pub(super) fn with_owner_of<R>(task: &Header, f: impl FnOnce(&Executor) -> R) -> Option<R> {
        // SAFETY: whoever put the pointer there keeps the `Executor` until it has taken the pointer away again: `Entered` by
        // its `Rc`, which it leaks rather than dropping it out of order, and `close` by its own borrow. That is later than
        // the end of `f`, since both are on this thread and `f` is called on top of them.
        let local = unsafe { current().as_ref() }?;
        // The header keeps its mailbox, so no other mailbox has this address.
        ptr::eq(&raw const *local.mailbox, &raw const *task.mailbox).then(|| f(local))
    }

    /// For tests: the worker's mailbox.
    #[cfg(test)]
    pub(super) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Starts a task, which is polled in a later [`run`](Executor::run). After [`close`](Executor::close) it is cancelled at once.
    pub(crate) fn spawn<F: Future + 'static>(
        &self,
        future: F,
        label: impl Into<Label>,
    ) -> JoinHandle<F::Output> {
        let (task, handle) = raw::spawn_here(future, Arc::clone(&self.mailbox), label.into());
        // SAFETY: the new cell's first reference becomes the owner's; nobody else knows the task but its handle.
        unsafe { self.admit(task) };
        handle
    }

    /// Takes in a task that came in a message. After [`close`](Executor::close) it is cancelled at once.
    ///
    /// # Panics
    ///
    /// If the task was made for another worker.
    pub(crate) fn adopt(&self, task: TaskRef) {
        assert!(task.is_for(&self.mailbox), "a task is adopted by the worker it was made for");
        if self.phase.get() == Phase::Closed {
            return;
        }
        let task = task.into_raw();
        // SAFETY: the `TaskRef`'s reference becomes the owner's, and the task is in no list.
        unsafe { self.adopt_raw(task) };
    }

    /// # Safety
    ///
    /// `task` is Fresh, in no list, and comes with the reference of its `TaskRef`.
    unsafe fn adopt_raw(&self, task: NonNull<Header>) {
        // SAFETY: the reference keeps it.
        let header = unsafe { task.as_ref() };
        let taken = header.remote.take();
        // SAFETY: this is the owner, from here on.
        unsafe { header.owned() }.aborted.set(taken.aborted);
        // SAFETY: the caller's own promise.
        unsafe { self.admit(task) };
    }

    /// Links a new task and makes it ready, or cancels it.
    ///
    /// # Safety
    ///
    /// `task` is Fresh, for this owner, known to no other that could adopt it, and comes with a reference, which becomes the owner's.
    unsafe fn admit(&self, task: NonNull<Header>) {
        self.spawned.set(self.spawned.get() + 1);
        // SAFETY: this is the task's owner now, and has a reference.
        unsafe {
            self.link(task);
            if self.phase.get() == Phase::Closed {
                self.cancel(task);
            } else {
                self.make_ready(task);
            }
        }
    }

    /// Makes tasks ready that were woken, aborted or sent from elsewhere, and says how many. If there are more than
    /// [`REMOTE_BATCH`], the rest is left for the next call, and the doorbell stays rung.
    pub(crate) fn drain_remote(&self) -> usize {
        if self.phase.get() != Phase::Open || !self.mailbox.doorbell().take_remote() {
            return 0;
        }
        for count in 0..REMOTE_BATCH {
            // SAFETY: this claimed the mailbox, is `!Send`, and while it is open nobody else takes.
            let Some(task) = (unsafe { self.mailbox.remote.take() }) else {
                return count;
            };
            // SAFETY: the node's reference keeps it.
            let header = unsafe { task.as_ref() };
            self.wakes_remote.set(self.wakes_remote.get() + 1);
            if header.remote.peek().fresh {
                // SAFETY: the node's reference is the one that came with the closure, and the node is out of the list.
                unsafe { self.adopt_raw(task) };
                continue;
            }
            // SAFETY: the node's reference; dropped at the end of this round.
            let node = unsafe { Shared::from_raw(task) };
            // SAFETY: not Fresh, and for this worker (it was in its list), so this is the owner.
            let owned = unsafe { node.owned() };
            let taken =
                if mutant("wake: queued until polled") { node.remote.peek() } else { node.remote.take() };
            if owned.life.get() == Life::Linked {
                if taken.aborted {
                    owned.aborted.set(true);
                }
                // SAFETY: this is the owner, of a Linked task.
                unsafe { self.make_ready(task) };
            }
        }
        self.mailbox.nudge();
        REMOTE_BATCH
    }

    /// Runs ready tasks, oldest first, until none is left or `budget` have been run; says how many. Tasks that are made
    /// ready meanwhile count.
    pub(crate) fn run(&self, budget: usize) -> usize {
        (0..budget).take_while(|_| self.run_one()).count()
    }

    /// Polls the task that has been ready for longest, or drops it if it was aborted. Returns whether there was one.
    ///
    /// # Panics
    ///
    /// If called from inside a task of this worker.
    pub(crate) fn run_one(&self) -> bool {
        assert!(!self.busy.get(), "a task cannot run the tasks of its own worker");
        debug_assert!(ptr::eq(current(), self), "a worker is entered when it runs its tasks");
        while let Some(task) = self.pop_ready() {
            // SAFETY: until `let_go` below, the owner's reference keeps it (it was ready), and this is its owner.
            let owned = unsafe { task.as_ref().owned() };
            if owned.life.get() == Life::Done {
                // SAFETY: no longer ready, which can be the end of its use.
                unsafe { let_go(task) };
                continue;
            }
            self.busy.set(true);
            if owned.aborted.get() {
                // SAFETY: this is the owner of a Linked task.
                unsafe { self.cancel(task) };
            } else {
                self.polls.set(self.polls.get() + 1);
                // SAFETY: the task is Linked, this is its owner, and `busy` keeps polls from nesting.
                let polled = unsafe { (task.as_ref().vtable.poll)(task) };
                if mutant("wake: queued until polled") {
                    // SAFETY: it is still Linked.
                    let _ = unsafe { task.as_ref() }.remote.take();
                }
                if polled.is_ready() {
                    // SAFETY: it is Linked and complete.
                    unsafe { self.retire(task) };
                }
            }
            self.busy.set(false);
            return true;
        }
        false
    }

    /// Whether a task is ready.
    pub(crate) fn has_ready(&self) -> bool {
        self.ready_first.get().is_some()
    }

    /// What happened so far.
    pub(crate) fn counters(&self) -> TaskCounters {
        TaskCounters {
            spawned: self.spawned.get(),
            alive: self.alive.get(),
            ready: self.ready.get(),
            polls: self.polls.get(),
            wakes_local: self.wakes_local.get(),
            wakes_remote: self.wakes_remote.get(),
        }
    }

    /// Ends all tasks: refuses new ones, and drops every future, here and now. Their handles report that they were
    /// cancelled. Tasks that are spawned by the destructors that run are dropped, too. The second call does nothing.
    ///
    /// Afterwards waiters may still be counted in headers; they are given back on this thread whenever their operations end.
    ///
    /// # Panics
    ///
    /// If called from inside a task of this worker.
    pub(crate) fn close(&self) {
        assert!(!self.busy.get(), "a task cannot close its own worker");
        if self.phase.get() != Phase::Open {
            return;
        }
        /// Puts the outer `Executor` back.
        struct Restore(*const Executor);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.with(|current| current.set(self.0));
            }
        }
        let _restore = Restore(current());
        CURRENT.with(|current| current.set(self));

        // Destructors run below, of tasks that are still Linked: nobody may poll meanwhile.
        self.busy.set(true);
        self.phase.set(Phase::Closing);
        // SAFETY: we claimed it, and `drain_remote` takes only while the phase is Open.
        unsafe { self.mailbox.close() };
        while let Some(task) = self.tasks.get() {
            // SAFETY: a Linked task of ours.
            unsafe { self.cancel(task) };
        }
        self.phase.set(Phase::Closed);
        while let Some(task) = self.pop_ready() {
            // SAFETY: no longer ready, which can be the end of its use.
            unsafe { let_go(task) };
        }
        self.busy.set(false);
    }

    /// Makes the task ready, unless it is or has ended.
    ///
    /// # Safety
    ///
    /// This is the owner of `task`, which is live.
    pub(super) unsafe fn wake_here(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let owned = unsafe { task.as_ref().owned() };
        if owned.life.get() == Life::Linked && !owned.ready.get() {
            self.wakes_local.set(self.wakes_local.get() + 1);
            // SAFETY: Linked, and this is its owner.
            unsafe { self.make_ready(task) };
        }
    }

    /// Appends the task to the ready queue, unless it is in it.
    ///
    /// # Safety
    ///
    /// `task` is Linked, and this is its owner.
    unsafe fn make_ready(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let owned = unsafe { task.as_ref().owned() };
        if owned.ready.replace(true) {
            return;
        }
        owned.ready_next.set(None);
        match self.ready_last.replace(Some(task)) {
            // SAFETY: a task in the queue is kept by the owner's reference.
            Some(last) => unsafe { last.as_ref().owned() }.ready_next.set(Some(task)),
            None => self.ready_first.set(Some(task)),
        }
        self.ready.set(self.ready.get() + 1);
    }

    /// Takes the first task from the ready queue. Its caller looks whether that was its last use.
    fn pop_ready(&self) -> Option<NonNull<Header>> {
        let task = self.ready_first.get()?;
        // SAFETY: a task in the queue is kept by the owner's reference, and this is its owner.
        let owned = unsafe { task.as_ref().owned() };
        let next = owned.ready_next.replace(None);
        self.ready_first.set(next);
        if next.is_none() {
            self.ready_last.set(None);
        }
        owned.ready.set(false);
        self.ready.set(self.ready.get() - 1);
        Some(task)
    }

    /// Puts the task into the list.
    ///
    /// # Safety
    ///
    /// `task` is Fresh, this is its owner now, and has a reference for it.
    unsafe fn link(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let owned = unsafe { task.as_ref().owned() };
        debug_assert_eq!(owned.life.get(), Life::Fresh, "a task is adopted once");
        owned.life.set(Life::Linked);
        let next = self.tasks.replace(Some(task));
        owned.list_next.set(next);
        if let Some(next) = next {
            // SAFETY: a Linked task is kept by the owner's reference.
            unsafe { next.as_ref().owned() }.list_prev.set(Some(task));
        }
        self.alive.set(self.alive.get() + 1);
    }

    /// Drops the task's future and completes it as cancelled.
    ///
    /// # Safety
    ///
    /// `task` is Linked, not being polled, and this is its owner.
    unsafe fn cancel(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise; a Linked task is not complete, and its stage is the owner's.
        unsafe { (task.as_ref().vtable.cancel)(task) };
        // SAFETY: it is Linked (nothing but this and `run_one` retires a task, and they do not nest on one task).
        unsafe { self.retire(task) };
    }

    /// Takes a complete task out of the list.
    ///
    /// # Safety
    ///
    /// `task` is Linked and complete, and this is its owner. It may be gone afterwards.
    unsafe fn retire(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let owned = unsafe { task.as_ref().owned() };
        let (prev, next) = (owned.list_prev.take(), owned.list_next.take());
        // SAFETY: its neighbours are Linked, so the owner's references keep them.
        let neighbour = |task: NonNull<Header>| -> &Owned { unsafe { (*task.as_ptr()).owned() } };
        match prev {
            Some(prev) => neighbour(prev).list_next.set(next),
            None => self.tasks.set(next),
        }
        if let Some(next) = next {
            neighbour(next).list_prev.set(prev);
        }
        owned.life.set(Life::Done);
        self.alive.set(self.alive.get() - 1);
        // SAFETY: no longer Linked, which can be the end of its use.
        unsafe { let_go(task) };
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("phase", &self.phase.get())
            .field("counters", &self.counters())
            .finish()
    }
}

/// Gives the owner's reference back if the owner's side has no more use for the task.
///
/// # Safety
///
/// On the task's owner, right after a change that can have ended its use: it left the list, it left the ready
/// queue, or a waiter went. So the reference has not been given back before.
pub(super) unsafe fn let_go(task: NonNull<Header>) {
    // SAFETY: until it is given back, the owner's reference keeps the task.
    if unsafe { task.as_ref().owned() }.is_let_go() {
        // SAFETY: the owner's one reference; `is_let_go` never becomes false again, and each change asks once, so this
        // is reached once.
        drop(unsafe { Shared::from_raw(task) });
    }
}

/// Keeps a [`Executor`] entered. Guards are dropped in the reverse order of entering.
#[derive(Debug)]
#[must_use]
pub(crate) struct Entered {
    local: Rc<Executor>,
    outer: *const Executor,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if ptr::eq(current(), Rc::as_ptr(&self.local)) {
            CURRENT.with(|current| current.set(self.outer));
            return;
        }
        // An inner guard will put our pointer back, so it must stay good for ever.
        std::mem::forget(Rc::clone(&self.local));
        assert!(
            std::thread::panicking(),
            "guards of entered workers are dropped in the reverse order of entering"
        );
    }
}

/// Tasks taken from the remote list before others get their turn: four times the default budget of a turn, so the list
/// is shortened even while it is filled, and a flood of wakes cannot keep the worker from its tasks.
const REMOTE_BATCH: usize = 256;
