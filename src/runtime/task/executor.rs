//! The owner's side of its tasks: the list of all that are unfinished, the queue of those that are ready.
//!
//! An [`Executor`] belongs to one thread. While it is *entered* a thread-local names it, which is how a waker knows that it is
//! at home. Several may be entered inside one another (several workers on one thread); the innermost counts.
//!
//! One turn of a worker does, with what is here: [`drain_remote`](Executor::drain_remote) (tasks woken or sent from
//! elsewhere become ready), then [`run`](Executor::run) up to its budget, first in, first out. A task that wakes itself while
//! it is polled goes behind all that are ready. One that waited for the end of the task just polled goes there, too; but if nobody is, it
//! need not pass through the queue. Background tasks have a queue of their own, of which
//! [`run_background`](Executor::run_background) takes one; when, is the worker's business.
//!
//! The task list keeps a task from the end of its first poll on: one that ends in that poll never needs to be found, and until then it is
//! in the queue.
//!
//! Stealable tasks are in the worker's [`Queue`](crate::runtime::spawner) while they are ready, where thieves see them; this
//! worker and those take from there. Pinned and stealable ones are run by turns, a few of each. The task list keeps those that
//! were first polled here, until they have ended, wherever that may be.
//!
//! Both lists run through the headers. Every change to them is complete before any user code runs and touches nothing but
//! `Cell`s, so user code may come back here from wherever it is called.
//!
//! # What the arguments below rest on
//!
//! - *This is the owner*: the task was adopted by this executor (it is in its list or queue, or names its mailbox). An executor has
//!   claimed its mailbox, which only one ever does, and is `!Send`. So as long as the task is there, no other thread touches its
//!   [`Owned`] words, nor, until it is complete, its contents.
//! - *The owner's reference keeps it*: a task that is unfinished, ready or waited for has not been let go ([`let_go`]), so the count that
//!   the owner got when it adopted the task has not been given back.
#![expect(unsafe_code, reason = "intrusive lists over headers that the owner's reference keeps")]

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
#[cfg(not(loom))]
use std::iter;
use std::mem::{self, ManuallyDrop};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use fastrand::Rng;

use super::cells::Cells;
use super::join::JoinHandle;
use super::label::{Class, Label};
use super::raw::{self, Counted, Polled, TaskRef, drop_quietly};
use super::ready::ReadyQueue;
use super::state::{Begun, Header, Left, Life, Owned, Request};
use super::waker;
use crate::io::driver::waiter::Outer;
#[cfg(not(loom))]
use crate::runtime::dump::{TaskDump, TaskState};
use crate::runtime::mesh::mailbox::Mailbox;
use crate::runtime::spawner::{Emptied, Spawner};
use crate::sync::{Arc, Cell, mutant, per_thread};

/// A worker's tasks.
///
/// Dropping it closes it.
pub(crate) struct Executor {
    mailbox: Arc<Mailbox>,
    phase: Cell<Phase>,
    /// Whether tasks are being run; that does not nest.
    busy: Cell<bool>,
    /// How far the kinds have come in taking turns: [`RUN_OF_A_KIND`] pinned ones, then as many stealable ones. Kept between calls, since a
    /// call may be for a single poll.
    in_cycle: Cell<usize>,
    /// Where the next poll comes from, and where the next wake goes.
    foreground: ReadyQueue,
    /// The same for background tasks.
    background: ReadyQueue,
    /// The class of the task that is being polled, which those that it spawns inherit.
    class: Cell<Class>,
    /// Every Linked task, newest first.
    tasks: Cell<Option<NonNull<Header>>>,
    counts: Counts,
    /// Whether this worker has sent itself tasks because the ring was full, or found no room for those that others sent. Nobody
    /// rings for them any more.
    overflow: Cell<bool>,
    random: RefCell<Rng>,
    /// Memory for the next tasks.
    cells: Cells,
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

/// What is counted: as little as [`TaskCounters`] can be told from, together with what the ready queues count. A short task is made of
/// few stores, and each count that goes with it is one of them.
#[derive(Default)]
struct Counts {
    /// Pinned tasks that were made ready for their first poll.
    admitted: Cell<u64>,
    /// Stealable tasks that were put into the list.
    homed: Cell<u64>,
    /// Tasks that ended here and were not counted before: stealable ones in their first poll, others that came too late.
    passed: Cell<u64>,
    /// Tasks of the two that have ended.
    retired: Cell<u64>,
    /// Pinned tasks that were woken by the end of another, and polled next, without a ready queue.
    handed: Cell<u64>,
    /// Tasks that were taken out of a ready queue and not polled.
    skipped: Cell<u64>,
    /// Polls of stealable tasks.
    stealable_polls: Cell<u64>,
    /// Tasks taken from the remote list.
    wakes_remote: Cell<u64>,
    /// Those of them that were put into a ready queue, and not for their first poll.
    readied: Cell<u64>,
}

/// Counts one more.
fn count_one(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl Counts {
    /// Tasks that are unfinished, and known here.
    #[inline]
    fn alive(&self) -> u64 {
        self.admitted.get() + self.homed.get() - self.retired.get()
    }
}

/// What a worker's tasks have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskCounters {
    /// Tasks that were spawned or adopted.
    pub(crate) spawned: u64,
    /// Tasks that are unfinished.
    pub(crate) alive: usize,
    /// Tasks that are ready.
    pub(crate) ready: usize,
    /// Polls.
    pub(crate) polls: u64,
    /// Times a task was made ready by this thread.
    pub(crate) wakes_local: u64,
    /// Tasks taken from the remote list.
    pub(crate) wakes_remote: u64,
}

/// Who is entered on a thread: the executor and its mailbox; both null if none is.
#[derive(Clone, Copy, Debug)]
struct Current {
    executor: *const Executor,
    mailbox: *const Mailbox,
}

impl Current {
    const NONE: Current = Current { executor: ptr::null(), mailbox: ptr::null() };

    fn of(executor: &Executor) -> Current {
        Current { executor, mailbox: &raw const *executor.mailbox }
    }

    /// Who is entered on this thread.
    fn get() -> Current {
        // A thread of a model that has ended has none.
        CURRENT.try_with(std::cell::Cell::get).unwrap_or(Current::NONE)
    }

    /// Enters this one, and says who was entered before.
    fn replace(self) -> Current {
        CURRENT.with(|current| current.replace(self))
    }
}

per_thread! {
    /// The `Executor` that is entered on this thread. No destructor, so wakers can look at any time.
    static CURRENT: std::cell::Cell<Current> = std::cell::Cell::new(Current::NONE);
}

impl Executor {
    /// The tasks of the worker that `mailbox` belongs to.
    ///
    /// # Panics
    ///
    /// If the mailbox has had an `Executor` before: only one may take from its list.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Rc<Executor> {
        mailbox.claim();
        // Workers that draw the same numbers would all go to the same victim.
        let random = RefCell::new(Rng::with_seed(mailbox.worker() as u64));
        Rc::new(Executor {
            mailbox,
            phase: Cell::new(Phase::Open),
            busy: Cell::new(false),
            in_cycle: Cell::new(0),
            foreground: ReadyQueue::new(),
            background: ReadyQueue::new(),
            class: Cell::new(Class::Foreground),
            tasks: Cell::new(None),
            counts: Counts::default(),
            overflow: Cell::new(false),
            random,
            cells: Cells::new(),
        })
    }

    /// Makes these the tasks of this thread until the guard is dropped.
    pub(crate) fn enter(self: &Rc<Executor>) -> Entered {
        Entered { local: Rc::clone(self), outer: Current::of(self).replace() }
    }

    /// Calls `f` with the `Executor` that is entered on this thread. `None` if none is.
    pub(super) fn with_current<R>(f: impl FnOnce(&Executor) -> R) -> Option<R> {
        // SAFETY: whoever put the pointer there keeps the `Executor` until it has taken the pointer away again: `Entered` by
        // its `Rc`, which it leaks rather than dropping it out of order, and `close` by its own borrow. That is later than
        // the end of `f`, since both are on this thread and `f` is called on top of them.
        unsafe { Current::get().executor.as_ref() }.map(f)
    }

    /// Calls `f` with the entered `Executor` if it is the one that owns the task, whose memory `f` must not end.
    #[inline]
    pub(super) fn with_owner_of<R>(task: &Header, f: impl FnOnce(&Executor) -> R) -> Option<R> {
        // SAFETY: `f` is called on top of whoever has entered it.
        unsafe { Executor::owner_of(task) }.map(f)
    }

    /// The entered `Executor`, if it is the one that owns the task.
    ///
    /// # Safety
    ///
    /// It is used no longer than the caller runs.
    #[inline]
    pub(super) unsafe fn owner_of<'a>(task: &Header) -> Option<&'a Executor> {
        let current = Current::get();
        // SAFETY: no task belongs to a mailbox that is null, so one is entered; who entered it keeps it (see `with_current`), longer
        // than the caller runs.
        task.belongs_to(current.mailbox).then(|| unsafe { &*current.executor })
    }

    /// Whether the `Executor` that is entered on this thread owns the task, so that the owner's words are this thread's to touch. No
    /// stealable task is owned, nor one that is still to be adopted.
    pub(super) fn has(task: &Header) -> bool {
        if mutant("owner: whoever asks") {
            return true;
        }
        task.belongs_to(Current::get().mailbox)
    }

    /// Takes back the memory of a task that is no more: it is kept for the next if the task was this worker's, else freed.
    ///
    /// # Safety
    ///
    /// Nobody refers to `task` any more, and neither a stage nor an output is left in it.
    #[inline(never)]
    pub(super) unsafe fn clear_away(task: NonNull<Header>) {
        // SAFETY: it is there until one of the two below takes it, by the caller's own promise; its header is at rest when it is kept.
        unsafe {
            let kept = match Executor::owner_of(task.as_ref()) {
                Some(local) if task.as_ref().is_at_rest() => local.cells.keep(task),
                _ => false,
            };
            if !kept {
                Executor::clear_away_slowly(task);
            }
        }
    }

    /// The same where something is left to be dropped, or the memory cannot be kept.
    ///
    /// # Safety
    ///
    /// As [`clear_away`](Executor::clear_away).
    #[inline(never)]
    unsafe fn clear_away_slowly(task: NonNull<Header>) {
        // SAFETY: nobody refers to it, by the caller's own promise, so what it still holds is nobody's to look at. It is there until it is
        // kept or cleared, after which nothing here names it.
        unsafe {
            Header::rest(task);
            let kept = Executor::owner_of(task.as_ref()).is_some_and(|local| local.cells.keep(task));
            if !kept {
                task.as_ref().vtable.layout.clear(task);
            }
        }
    }

    /// Queues a task that may move with the worker that is entered on this thread, if that is one of `spawner`'s.
    ///
    /// # Errors
    ///
    /// Gives the task back if it is not, or has closed.
    pub(super) fn push_here(spawner: &Arc<Spawner>, task: TaskRef) -> Result<(), TaskRef> {
        let mut task = Some(task);
        Executor::with_current(|local| {
            if Arc::ptr_eq(local.mailbox.spawner(), spawner) && local.phase.get() != Phase::Closed {
                local.push(task.take().expect("it is called once"));
            }
        });
        task.map_or(Ok(()), Err)
    }

    /// Appends a task that may move to this worker's stealable queue, and sees to it that a thief comes if one has the time.
    pub(in crate::runtime) fn push(&self, task: TaskRef) {
        // SAFETY: this has claimed the mailbox and with it its queue, and is `!Send`.
        if let Err(task) = unsafe { self.mailbox.queue().push(task) } {
            if self.phase.get() != Phase::Open {
                return task.discard();
            }
            self.mailbox.queue().send(task);
            self.overflow.set(true);
        }
        self.mailbox.spawner().wake_searcher();
    }

    /// Places a new task that may move: on this worker or another.
    pub(crate) fn place(&self, task: TaskRef, now_ns: u64) {
        let spawner = self.mailbox.spawner();
        let here = self.mailbox.worker();
        let to = spawner.choose(Some(here), &mut self.random.borrow_mut(), now_ns);
        if to == here && self.phase.get() != Phase::Closed {
            self.push(task);
        } else {
            spawner.send(to, task);
        }
    }

    /// Whether the stealable queue holds a task that is not the next to be polled here.
    pub(crate) fn has_surplus(&self) -> bool {
        self.mailbox.queue().in_ring() > usize::from(self.foreground.is_empty())
    }

    /// Robs another worker's stealable queue; this one's is empty. How many tasks that brought. The caller is the searcher.
    pub(crate) fn rob(&self) -> usize {
        let spawner = self.mailbox.spawner();
        let Some(victim) = spawner.victim(self.mailbox.worker(), &mut self.random.borrow_mut()) else {
            return 0;
        };
        // SAFETY: this has claimed the mailbox and with it its queue, and is `!Send`.
        match unsafe { self.mailbox.queue().steal(spawner.queue(victim)) } {
            Emptied::Busy => 0,
            Emptied::Taken(count) => count,
            Emptied::Missed(count) => {
                spawner.remind(victim);
                count
            }
        }
    }

    /// For tests: the worker's mailbox.
    #[cfg(test)]
    pub(in crate::runtime) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Starts a task, which is polled in a later [`run`](Executor::run). After [`close`](Executor::close) it is cancelled at once.
    pub(crate) fn spawn<F: Future + 'static>(
        &self,
        future: F,
        label: impl Into<Label>,
    ) -> JoinHandle<F::Output> {
        // SAFETY: it borrows nothing.
        unsafe { self.spawn_borrowing(future, label.into()) }
    }

    /// The same for a future that may borrow.
    ///
    /// # Safety
    ///
    /// What it borrows is there until the task has ended, or this is closed, and so is what its output borrows until that is taken or
    /// dropped.
    pub(crate) unsafe fn spawn_borrowing<F: Future>(&self, future: F, label: Label) -> JoinHandle<F::Output> {
        let label = label.inheriting(self.class.get());
        // SAFETY: both are this executor's, which is `!Send`.
        let (task, handle) = unsafe { raw::spawn_here(future, &self.cells, &self.mailbox, label) };
        // SAFETY: the references that came with it become the owner's; nobody else knows the task but its handle.
        unsafe { self.admit(task) };
        handle
    }

    /// Starts a task of the worker that is entered on this thread. `None` if none is.
    pub(crate) fn spawn_here<F: Future + 'static>(future: F, label: Label) -> Option<JoinHandle<F::Output>> {
        Executor::with_current(|local| local.spawn(future, label))
    }

    /// Takes in a task that came in a message. After [`close`](Executor::close) it is cancelled at once.
    ///
    /// # Panics
    ///
    /// If the task was made for another worker.
    pub(crate) fn adopt(&self, task: TaskRef) {
        // SAFETY: the holder of the `TaskRef` has the sole right to adopt it.
        unsafe { task.header().settle(&self.mailbox) };
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
        unsafe {
            header.belong_to(&self.mailbox);
            header.owned().aborted.set(taken.aborted);
        }
        // SAFETY: the caller's own promise.
        unsafe { self.admit(task) };
    }

    /// Makes a new task ready, or cancels it.
    ///
    /// # Safety
    ///
    /// `task` is Fresh, belongs to this owner, is known to no other that could adopt it, and comes with a reference, which becomes the
    /// owner's.
    #[inline]
    unsafe fn admit(&self, task: NonNull<Header>) {
        if self.phase.get() == Phase::Closed {
            // SAFETY: the caller's own promise.
            return unsafe { self.turn_away(task) };
        }
        count_one(&self.counts.admitted);
        // SAFETY: this is the task's owner now, and has a reference.
        unsafe {
            let queue = self.queue_of(task.as_ref());
            task.as_ref().owned().life.set(Life::Unpolled);
            queue.push(task);
        }
    }

    /// Cancels a new task: it came when all others had been dropped.
    ///
    /// # Safety
    ///
    /// As [`admit`](Executor::admit).
    #[cold]
    #[inline(never)]
    unsafe fn turn_away(&self, task: NonNull<Header>) {
        count_one(&self.counts.passed);
        // SAFETY: the caller's own promise: the stage is this owner's, and so is a reference, which goes back.
        unsafe {
            raw::cancel(task);
            task.as_ref().owned().life.set(Life::Done);
            let_go(task);
        }
    }

    /// Makes tasks ready that were woken, aborted or sent from elsewhere, and says how many. If there are more than
    /// [`REMOTE_BATCH`], the rest is left for the next call, and the doorbell stays rung.
    pub(crate) fn drain_remote(&self) -> usize {
        if self.phase.get() != Phase::Open {
            return 0;
        }
        let rung = self.mailbox.doorbell().take_remote();
        if !rung && !self.overflow.get() {
            return 0;
        }
        let sent = self.take_sent();
        let early = mutant("drain: look before the pinned ones are in") && !self.has_surplus();
        let woken = if rung { self.take_woken() } else { 0 };
        // A single task that is next need not be shown to thieves. Whether it is next is known only now: behind pinned ones that came
        // with it, it would wait for their polls, and nobody else has told a thief.
        if sent > 0 && self.has_surplus() && !early {
            self.mailbox.spawner().wake_searcher();
        }
        sent + woken
    }

    /// Takes up to a batch from the remote list, and says how many.
    fn take_woken(&self) -> usize {
        for count in 0..REMOTE_BATCH {
            // SAFETY: this claimed the mailbox, is `!Send`, and while it is open nobody else takes.
            let Some(task) = (unsafe { self.mailbox.remote.take() }) else { return count };
            // SAFETY: the node's reference keeps it.
            let header = unsafe { task.as_ref() };
            if header.vtable.stealable {
                // SAFETY: a finished task that was given back: it is in this list until now, and the node's reference ends with it.
                unsafe {
                    self.retire(task);
                    drop(Counted::from_raw(task));
                }
                continue;
            }
            count_one(&self.counts.wakes_remote);
            if header.remote.peek().fresh {
                // SAFETY: the node's reference is the one that came with the closure, and the node is out of the list.
                unsafe { self.adopt_raw(task) };
                continue;
            }
            // SAFETY: the node's reference; dropped at the end of this round.
            let node = unsafe { Counted::from_raw(task) };
            // SAFETY: not Fresh, and for this worker (it was in its list), so this is the owner.
            let owned = unsafe { node.owned() };
            let taken =
                if mutant("wake: queued until polled") { node.remote.peek() } else { node.remote.take() };
            if owned.is_unfinished() {
                if taken.aborted {
                    owned.aborted.set(true);
                }
                if !owned.ready.get() {
                    count_one(&self.counts.readied);
                    // SAFETY: this is the owner, of an unfinished task that is not ready.
                    unsafe { self.queue_of(&node).push(task) };
                }
            }
        }
        self.mailbox.nudge();
        REMOTE_BATCH
    }

    /// Moves what others sent, and what found the ring full, into the ring. The caller tells thieves of it.
    fn take_sent(&self) -> usize {
        let queue = self.mailbox.queue();
        let was_empty = queue.in_ring() == 0;
        // SAFETY: this has claimed the mailbox and with it its queue, and is `!Send`.
        let count = match unsafe { queue.take_sent() } {
            // The thief that is at it rings, as soon as it is not.
            Emptied::Busy => 0,
            Emptied::Taken(count) => count,
            Emptied::Missed(count) => {
                self.mailbox.nudge();
                count
            }
        };
        // Whatever thieves have done to the ring since: what it had no room for is looked at again. If it had room and nothing came,
        // a sender is half way, and will ring.
        self.overflow.set((count > 0 || !was_empty) && queue.in_inbox() > 0);
        count
    }

    /// Runs ready foreground tasks until none is left or `budget` have been run; says how many. Tasks that are made ready meanwhile
    /// count. Pinned ones, and likewise stealable ones, run oldest first; whose turn it is, the next call goes on from there.
    pub(crate) fn run(&self, budget: usize) -> usize {
        let _busy = self.set_busy();
        let (mut left, mut in_vain) = (budget, 0);
        while left > 0 && in_vain < 2 {
            let at = self.in_cycle.get();
            let most = left.min(RUN_OF_A_KIND - at % RUN_OF_A_KIND);
            let ran = if at < RUN_OF_A_KIND {
                self.run_pinned(&self.foreground, most)
            } else {
                (0..most).take_while(|_| self.run_one_stealable()).count()
            };
            let next = if ran < most { at - at % RUN_OF_A_KIND + RUN_OF_A_KIND } else { at + ran };
            self.in_cycle.set(next % (2 * RUN_OF_A_KIND));
            left -= ran;
            in_vain = if ran == 0 { in_vain + 1 } else { 0 };
        }
        budget - left
    }

    /// Notes that tasks are being run, until what it returns is dropped.
    fn set_busy(&self) -> Busy<'_> {
        assert!(!self.busy.replace(true), "a task cannot run the tasks of its own worker");
        debug_assert!(ptr::eq(Current::get().executor, self), "a worker is entered when it runs its tasks");
        Busy { executor: self, _outer: Outer::set_aside() }
    }

    /// Polls the oldest task of the stealable queue, drops it if it was aborted, or adopts it if it is a pinned one that is to
    /// start. Returns whether there was one.
    fn run_one_stealable(&self) -> bool {
        let Some(task) = self.mailbox.queue().pop() else { return false };
        if !task.header().vtable.stealable {
            self.adopt(task);
            return true;
        }
        let task = task.into_counted();
        match task.remote.begin() {
            Begun::Cancel => {
                // SAFETY: the run is ours, and with it the stage, whose future is `Send`.
                unsafe { raw::cancel(task.task()) };
                self.finish(task);
            }
            Begun::Poll => {
                count_one(&self.counts.stealable_polls);
                // SAFETY: the run is ours, `task` is a reference, and `busy` keeps polls from nesting.
                match unsafe { (task.vtable.poll)(task.task()) } {
                    Polled::Pending => self.pause(task),
                    Polled::Complete(waiting) => {
                        if let Some(waiting) = waiting {
                            // SAFETY: the poll gave the reference.
                            unsafe { waker::wake_and_drop(waiting) };
                        }
                        self.finish(task);
                    }
                }
            }
        }
        true
    }

    /// Ends the run of a stealable task that is pending.
    fn pause(&self, task: Counted) {
        // SAFETY: the run is ours.
        if unsafe { task.mailbox() }.is_none() {
            // Its first poll: this is its home.
            // SAFETY: the run is ours, and so is the right to settle it.
            unsafe { task.settle(&self.mailbox) };
            count_one(&self.counts.homed);
            // SAFETY: it is in no list, this is its home from now on, and the list gets a reference of its own.
            unsafe { self.link(Counted::clone(&task).into_raw()) };
        }
        // From here on the reference is the word's, or that of the right to run it again.
        let task = task.into_raw();
        // SAFETY: it is kept by that reference, which nobody can have given up before the run is over.
        let request = unsafe { (*task.as_ptr()).remote.pause() };
        if request == Request::Push {
            // SAFETY: it was woken while it ran, so the right to run it is ours.
            self.push(unsafe { TaskRef::from_raw(task) });
        }
    }

    /// Takes leave of a stealable task that has ended here.
    fn finish(&self, task: Counted) {
        // SAFETY: the run is ours for ever.
        match unsafe { task.mailbox() } {
            // It ended in its first poll, and was in no list.
            None => count_one(&self.counts.passed),
            // SAFETY: this is its home, and it is Linked until now.
            Some(home) if Arc::ptr_eq(home, &self.mailbox) => unsafe { self.retire(task.task()) },
            Some(home) => Arc::clone(home).give_back(task),
        }
    }

    /// Runs the background task that has been ready for longest. What it spawns by `spawn_local` is background work, too.
    /// Returns whether there was one.
    ///
    /// # Panics
    ///
    /// If called from inside a task of this worker.
    pub(crate) fn run_background(&self) -> bool {
        let _busy = self.set_busy();
        self.class.set(Class::Background);
        self.run_pinned(&self.background, 1) > 0
    }

    /// Polls up to `most` pinned tasks of `queue`, those first that have been ready for longest, or drops those that were aborted. How many
    /// there were.
    #[inline(never)]
    fn run_pinned(&self, queue: &ReadyQueue, most: usize) -> usize {
        let mut ran = 0;
        while ran < most {
            let Some(mut task) = queue.pop() else { break };
            // SAFETY: until `let_go` or `retire`, the owner's reference keeps it (it was ready), and this is its owner.
            if unsafe { task.as_ref().owned() }.aborted.get() {
                // SAFETY: this took it out of the queue, and is its owner.
                ran += usize::from(unsafe { self.pass_over(task) });
                continue;
            }
            ran += 1;
            // SAFETY: the task is unfinished, this is its owner, and `busy` keeps polls from nesting.
            while let Some(next) = unsafe { self.poll(task, queue, ran < most) } {
                task = next;
                ran += 1;
            }
        }
        ran
    }

    /// Polls a pinned task. If that ends it, and another waited for that, who is next in `queue`, the caller is to poll that one, if it
    /// `may_go_on`.
    ///
    /// # Safety
    ///
    /// The task is unfinished, and not ready; this is its owner, and no other poll is under way.
    #[inline]
    unsafe fn poll(
        &self,
        task: NonNull<Header>,
        queue: &ReadyQueue,
        may_go_on: bool,
    ) -> Option<NonNull<Header>> {
        // SAFETY: the caller's own promise.
        let polled = unsafe { (task.as_ref().vtable.poll)(task) };
        if mutant("wake: queued until polled") {
            // SAFETY: the owner still has its reference.
            let _ = unsafe { task.as_ref() }.remote.take();
        }
        // SAFETY: this is its owner, and it is unfinished until `retire`, which it is handed to when it is complete. What waits for it
        // comes with a reference.
        unsafe {
            match polled {
                Polled::Pending => {
                    if task.as_ref().owned().life.get() == Life::Unpolled {
                        self.link(task);
                    }
                    None
                }
                Polled::Complete(waiting) => {
                    self.retire(task);
                    waiting.and_then(|waiting| self.wake_waiting(waiting, queue, may_go_on))
                }
            }
        }
    }

    /// Wakes a pinned task that waited for another's end. If it is this worker's, nobody is before it in `queue`, and it `may_go_on`, it
    /// need not be put there: then the caller polls it.
    ///
    /// # Safety
    ///
    /// `waiting` is a reference, which is consumed.
    #[inline]
    unsafe fn wake_waiting(
        &self,
        waiting: NonNull<Header>,
        queue: &ReadyQueue,
        may_go_on: bool,
    ) -> Option<NonNull<Header>> {
        // SAFETY: the reference keeps it.
        let header = unsafe { waiting.as_ref() };
        let is_next = header.belongs_to(&raw const *self.mailbox)
            && may_go_on
            && queue.is_empty()
            && ptr::eq(self.queue_of(header), queue);
        // SAFETY: looked at only if it is next, and then this is its owner; the reference keeps it.
        if !is_next || !unsafe { header.owned() }.is_idle() {
            // SAFETY: the caller's own promise.
            unsafe { waker::wake_and_drop(waiting) };
            return None;
        }
        // SAFETY: it is next, so this is its owner.
        debug_assert!(!unsafe { header.owned() }.aborted.get(), "who is aborted is made ready");
        count_one(&self.counts.handed);
        // SAFETY: this is the owner, which has a reference of its own: the task is unfinished.
        unsafe { Counted::from_raw(waiting).take_back() };
        Some(waiting)
    }

    /// Drops a task instead of polling it, if it has not ended. Whether it had not.
    ///
    /// # Safety
    ///
    /// It was taken out of a ready queue just now, and this is its owner.
    #[cold]
    #[inline(never)]
    unsafe fn pass_over(&self, task: NonNull<Header>) -> bool {
        count_one(&self.counts.skipped);
        // SAFETY: the caller's own promise: what made it ready keeps it until one of the two lets it go.
        unsafe {
            let is_unfinished = task.as_ref().owned().is_unfinished();
            if is_unfinished {
                self.cancel(task);
            } else {
                let_go(task);
            }
            is_unfinished
        }
    }

    /// Whether a task is ready.
    pub(crate) fn has_ready(&self) -> bool {
        self.has_foreground() || self.has_background()
    }

    /// Whether a foreground task is ready.
    pub(crate) fn has_foreground(&self) -> bool {
        !self.foreground.is_empty() || self.mailbox.queue().in_ring() > 0 || self.overflow.get()
    }

    /// Whether a background task is ready.
    pub(crate) fn has_background(&self) -> bool {
        !self.background.is_empty()
    }

    /// Pinned foreground tasks that are ready.
    pub(crate) fn pinned_ready(&self) -> usize {
        self.foreground.len()
    }

    /// Polls so far.
    #[inline]
    fn polls(&self) -> u64 {
        let taken = self.foreground.taken() + self.background.taken();
        taken + self.counts.handed.get() - self.counts.skipped.get() + self.counts.stealable_polls.get()
    }

    /// What happened so far.
    pub(crate) fn counters(&self) -> TaskCounters {
        let counts = &self.counts;
        let made_ready = self.foreground.put() + self.background.put() + counts.handed.get();
        TaskCounters {
            spawned: counts.admitted.get() + counts.homed.get() + counts.passed.get(),
            alive: usize::try_from(counts.alive()).expect("they are in memory"),
            ready: self.pinned_ready() + self.background.len() + self.mailbox.queue().len(),
            polls: self.polls(),
            wakes_local: made_ready - counts.admitted.get() - counts.readied.get(),
            wakes_remote: counts.wakes_remote.get(),
        }
    }

    /// Describes every unfinished task that is known here, with the address by which waiters know it: those of the list, the newest first;
    /// then those that are ready for their first poll, the oldest first. Not the one that asks, if that is in its first poll.
    #[cfg(not(loom))]
    pub(crate) fn each_task(&self, mut each: impl FnMut(*const (), TaskDump)) {
        let running = super::id();
        let mut next = self.tasks.get();
        while let Some(task) = next {
            // SAFETY: a Linked task is kept by the owner's reference; `each` is ours and changes no list.
            let header = unsafe { task.as_ref() };
            // SAFETY: this is its owner.
            let owned = unsafe { header.owned() };
            next = owned.list_next.get();
            if header.join.is_complete_hint() {
                // A stealable one that has ended elsewhere, and will be taken out of the list.
                continue;
            }
            let state = match owned.ready.get() {
                _ if running == Some(header.id) => TaskState::Running,
                _ if header.vtable.stealable => header.remote.glance(),
                true => TaskState::Ready,
                false => TaskState::Waiting,
            };
            let age_polls = self.polls() - owned.born.get();
            each(task.as_ptr().cast_const().cast(), Executor::describe(header, state, age_polls));
        }
        for queue in [&self.foreground, &self.background] {
            queue.each(|task| {
                // SAFETY: a task that is ready is kept by the owner's reference, and this is its owner.
                let (header, owned) = unsafe { (task.as_ref(), task.as_ref().owned()) };
                if owned.life.get() == Life::Unpolled {
                    let task = task.as_ptr().cast_const().cast();
                    each(task, Executor::describe(header, TaskState::Ready, 0));
                }
            });
        }
    }

    /// Describes every task of the stealable queue that has not begun, the oldest first, and says how many lie behind those, in the inbox,
    /// where nobody can look at them. Those that have begun are described by their homes.
    #[cfg(not(loom))]
    pub(crate) fn each_placed(&self, mut each: impl FnMut(TaskDump)) -> usize {
        let queue = self.mailbox.queue();
        self.take_sent();
        // All are taken out, looked at and pushed again, which tells thieves of them: a task in the ring could be taken, and gone, while it
        // is looked at. One that was back before all have been seen would be seen again, if thieves have taken others meanwhile.
        let tasks: Vec<_> = iter::from_fn(|| queue.pop()).collect();
        for task in &tasks {
            // SAFETY: the right to run it is ours until it is pushed, and the mailbox is written by who runs or adopts it.
            if unsafe { task.header().mailbox() }.is_none() {
                each(Executor::describe(task.header(), TaskState::Placed, 0));
            }
        }
        for task in tasks {
            self.push(task);
        }
        queue.in_inbox()
    }

    #[cfg(not(loom))]
    fn describe(header: &Header, state: TaskState, age_polls: u64) -> TaskDump {
        TaskDump {
            id: header.id,
            name: header.name().map(ToString::to_string),
            location: header.location(),
            state,
            age_polls,
            operations: Vec::new(),
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
        struct Restore(Current);
        impl Drop for Restore {
            fn drop(&mut self) {
                self.0.replace();
            }
        }
        let _restore = Restore(Current::of(self).replace());
        // Whoever closes relies on it that no future is left.
        let abort_on_unwind = AbortOnUnwind;

        // Destructors run below, of tasks that are still unfinished: nobody may poll meanwhile.
        self.busy.set(true);
        self.phase.set(Phase::Closing);
        // SAFETY: we claimed it, and `drain_remote` takes only while the phase is Open.
        unsafe { self.mailbox.close() };
        let mut left = Vec::new();
        loop {
            if let Some(task) = self.mailbox.queue().pop() {
                drop_quietly(task);
            } else if let Some(task) = self.foreground.pop().or_else(|| self.background.pop()) {
                // SAFETY: it was taken out of the queue.
                unsafe { self.cancel_ready(task) };
            } else if let Some(task) = self.tasks.get() {
                // SAFETY: a Linked task of ours.
                unsafe { self.cancel_or_leave(task, &mut left) };
            } else {
                break;
            }
        }
        self.phase.set(Phase::Closed);
        for task in self.mailbox.spawner().leave(left) {
            let found = task.remote.begin_last();
            if found != Left::Finished {
                // SAFETY: every worker has closed, so nobody else begins a run, and the stage is ours.
                unsafe { raw::cancel(task.task()) };
            }
            if found == Left::Idle {
                // SAFETY: the reference that the word kept; nobody turns QUEUED on any more and takes it from there.
                drop(unsafe { Counted::from_raw(task.task()) });
            }
        }
        self.busy.set(false);
        mem::forget(abort_on_unwind);
    }

    /// Drops a pinned task, if it is in no list; else it is left to the list, or to itself.
    ///
    /// # Safety
    ///
    /// This is the task's owner, and has taken it out of a ready queue.
    unsafe fn cancel_ready(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise: it is kept by what made it ready, until one of these lets it go.
        unsafe {
            if task.as_ref().owned().life.get() == Life::Linked {
                count_one(&self.counts.skipped);
            } else {
                let _ = self.pass_over(task);
            }
        }
    }

    /// Drops a task of the list. A stealable one that has been woken is in a queue, or on its way to one; it is left to whoever ends last.
    ///
    /// # Safety
    ///
    /// `task` is Linked, not being polled here, and this is its owner or home.
    unsafe fn cancel_or_leave(&self, task: NonNull<Header>, left: &mut Vec<Counted>) {
        // SAFETY: the list's reference keeps it.
        let header = unsafe { task.as_ref() };
        if !header.vtable.stealable {
            // SAFETY: the caller's own promise.
            unsafe { self.cancel(task) };
        } else if header.remote.begin_idle() {
            // SAFETY: the run is ours, and the reference that the word kept.
            let task = unsafe { Counted::from_raw(task) };
            // SAFETY: with the run comes the stage, and its future is `Send`.
            unsafe { raw::cancel(task.task()) };
            self.finish(task);
        } else {
            // SAFETY: the list's reference is still there to make one from.
            let list = unsafe { ManuallyDrop::new(Counted::from_raw(task)) };
            if !mutant("end: leave nothing") {
                left.push(Counted::clone(&list));
            }
            // SAFETY: it is Linked. Whoever finishes it will find this mailbox closed, and give the list nothing back.
            unsafe { self.retire(task) };
        }
    }

    /// Makes the task ready, unless it is or has ended.
    ///
    /// # Safety
    ///
    /// This is the owner of `task`, which is live.
    pub(super) unsafe fn wake_here(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let owned = unsafe { task.as_ref().owned() };
        if owned.is_idle() {
            // SAFETY: unfinished and not ready, and this is its owner.
            unsafe { self.queue_of(task.as_ref()).push(task) };
        }
    }

    /// The ready queue of the task's class.
    #[inline]
    fn queue_of(&self, task: &Header) -> &ReadyQueue {
        match task.class() {
            Class::Foreground => &self.foreground,
            Class::Background => &self.background,
        }
    }

    /// Puts the task into the list.
    ///
    /// # Safety
    ///
    /// `task` is unfinished and in no list, this is its owner or home, and has a reference for it.
    #[inline(never)]
    unsafe fn link(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let owned = unsafe { task.as_ref().owned() };
        debug_assert!(matches!(owned.life.get(), Life::Fresh | Life::Unpolled), "a task is listed once");
        owned.life.set(Life::Linked);
        owned.born.set(self.polls());
        let next = self.tasks.replace(Some(task));
        owned.list_prev.set(None);
        owned.list_next.set(next);
        if let Some(next) = next {
            // SAFETY: a Linked task is kept by the owner's reference.
            unsafe { next.as_ref().owned() }.list_prev.set(Some(task));
        }
    }

    /// Drops the task's future and completes it as cancelled.
    ///
    /// # Safety
    ///
    /// `task` is unfinished, not being polled, and this is its owner.
    unsafe fn cancel(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise; an unfinished task is not complete, and its stage is the owner's.
        unsafe { raw::cancel(task) };
        // SAFETY: it is unfinished (nothing but this and `poll` retires a pinned task, and they do not nest on one task).
        unsafe { self.retire(task) };
    }

    /// Ends a complete task, and takes it out of the list if it is there.
    ///
    /// # Safety
    ///
    /// `task` is unfinished and complete, and this is its owner. It may be gone afterwards.
    unsafe fn retire(&self, task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let owned = unsafe { task.as_ref().owned() };
        count_one(&self.counts.retired);
        if owned.life.get() == Life::Linked {
            // SAFETY: it is.
            unsafe { self.unlink(owned) };
        }
        owned.life.set(Life::Done);
        if owned.ready.get() {
            // It is not polled when its turn comes.
            owned.aborted.set(true);
        }
        // SAFETY: no longer unfinished, which can be the end of its use.
        unsafe { let_go(task) };
    }

    /// Takes a task out of the list.
    ///
    /// # Safety
    ///
    /// It is Linked, and this is its owner or home.
    #[inline(never)]
    unsafe fn unlink(&self, owned: &Owned) {
        let (prev, next) = (owned.list_prev.get(), owned.list_next.get());
        // SAFETY: its neighbours are Linked, so the owner's references keep them.
        let neighbour = |task: NonNull<Header>| -> &Owned { unsafe { (*task.as_ptr()).owned() } };
        match prev {
            Some(prev) => neighbour(prev).list_next.set(next),
            None => self.tasks.set(next),
        }
        if let Some(next) = next {
            neighbour(next).list_prev.set(prev);
        }
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

/// While tasks are run. Should that unwind, the worker can still be closed: every list is whole whenever foreign code is called.
struct Busy<'a> {
    executor: &'a Executor,
    _outer: Outer,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.executor.class.set(Class::Foreground);
        self.executor.busy.set(false);
    }
}

/// Ends the process if dropped: unwinding any further would leave a future that borrows from a frame that is gone.
pub(in crate::runtime) struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        // Of a model the panic is the verdict.
        if !cfg!(loom) {
            std::process::abort();
        }
    }
}

/// Gives the owner's reference back if the owner's side has no more use for the task.
///
/// # Safety
///
/// On the task's owner, right after a change that can have ended its use: it ended, it left the ready
/// queue, or a waiter went. So the reference has not been given back before.
pub(super) unsafe fn let_go(task: NonNull<Header>) {
    // SAFETY: until it is given back, the owner's reference keeps the task.
    if unsafe { task.as_ref().owned() }.is_let_go() {
        // SAFETY: it has not been given back: that is done below, once.
        let stock = unsafe { task.as_ref().owned() }.stock.replace(0);
        // SAFETY: the references are the owner's; `is_let_go` never becomes false again, and each change asks once, so this
        // is reached once.
        unsafe { raw::give_up(task, if mutant("let go: only one") { 1 } else { stock as usize }) };
    }
}

/// Keeps an [`Executor`] entered. Guards are dropped in the reverse order of entering.
#[derive(Debug)]
#[must_use]
pub(crate) struct Entered {
    local: Rc<Executor>,
    outer: Current,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if ptr::eq(Current::get().executor, Rc::as_ptr(&self.local)) {
            self.outer.replace();
            return;
        }
        // An inner guard will put our pointer back, so it must stay good for ever.
        mem::forget(Rc::clone(&self.local));
        assert!(
            std::thread::panicking(),
            "guards of entered workers are dropped in the reverse order of entering"
        );
    }
}

/// Tasks taken from the remote list before others get their turn: four times the default budget of a turn, so the list
/// is shortened even while it is filled, and a flood of wakes cannot keep the worker from its tasks.
const REMOTE_BATCH: usize = 256;

/// Tasks of one kind, pinned or stealable, that run before the other kind has its turn: few beside the budget of a turn, and
/// enough that a worker that has one kind only seldom looks for the other.
const RUN_OF_A_KIND: usize = 8;
