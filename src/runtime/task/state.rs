//! The header of a task: its words, and every transition they make.
//!
//! The text of [`super`] says what the words mean together. Here each transition is one method; those on shared words are one
//! atomic instruction whose answer is an enum or a struct that must be used.
#![expect(unsafe_code, reason = "the owner's words are plain memory in a header that other threads can see")]

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::ptr::{self, NonNull};
use std::task::Waker;

use super::label::{Class, Label, Name};
use super::raw::{VTable, drop_quietly};
use super::remote::Link;
use super::waker;
use crate::io::driver::waiter::TaskWaker;
#[cfg(not(loom))]
use crate::runtime::dump::TaskState;
use crate::runtime::mesh::mailbox::Mailbox;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize};
use crate::sync::{Arc, Cell, UnsafeCell, mutant};

/// What is at the front of each task's allocation, whatever its future.
///
/// The link comes first: a node of the remote list *is* a header (`repr(C)`, so their addresses are equal).
#[repr(C)]
pub(in crate::runtime) struct Header {
    /// The place in a remote list or an inbox. Belongs to whoever turned QUEUED on, then to the list.
    pub(super) link: Link,
    /// The waker of whoever awaits the `JoinHandle`. Whose it is to touch follows from `join`.
    pub(super) join_waker: UnsafeCell<Option<Waker>>,
    /// Where it was spawned; see [`Header::label`].
    location: &'static Location<'static>,
    /// What it is called.
    name: Option<Name>,
    /// Its number.
    pub(super) id: TaskId,
    /// Its span, entered for each poll.
    #[cfg(feature = "tracing")]
    pub(super) span: tracing::Span,
    /// How many references to this memory there are, those that the owner has in stock included.
    pub(super) references: AtomicUsize,
    /// What other threads want of the owner.
    pub(super) remote: Remote,
    /// Who may read the output, and whom to wake when it is there.
    pub(super) join: Join,
    /// Which of its owner's queues it waits in.
    class: Class,
    /// The owner's mailbox, or a stealable task's home; see [`Header::mailbox`].
    mailbox: UnsafeCell<Option<Arc<Mailbox>>>,
    /// Whose it is, as the address of a mailbox; [`NOBODY`] as long as it has no owner. See [`Header::belongs_to`].
    owner: AtomicPtr<Mailbox>,
    /// What it is polled with. It stands for this address, whichever task is here.
    pub(super) task_waker: TaskWaker,
    /// What depends on the type of the future.
    pub(super) vtable: &'static VTable,
    /// Stands for what is behind the header, whose type only the cell knows, so that loom sees who is at it.
    pub(super) contents: UnsafeCell<()>,
    /// Plain words; see [`Header::owned`]. They and the stage behind the header are what a wake and a poll touch.
    owned: Owned,
}

/// The words that only the owner touches, once it has adopted the task. Before that, only the one who creates it does.
#[repr(C)]
pub(super) struct Owned {
    /// The neighbours in the task list. Of a header at rest, the second is the next on its shelf.
    pub(super) list_prev: Cell<Option<NonNull<Header>>>,
    /// See `list_prev`.
    pub(super) list_next: Cell<Option<NonNull<Header>>>,
    /// How many polls its owner had made when it was put into the list.
    pub(super) born: Cell<u64>,
    /// How many of the references are the owner's: one as long as it has a use for the task, and beyond that those that it gives
    /// out, and takes back, without an atomic instruction. None once it has let the task go.
    pub(super) stock: Cell<u32>,
    /// How many operations wait as this task. Each has a slot of the driver's, which are fewer.
    pub(super) waiters: Cell<u32>,
    /// The next in the ready queue.
    pub(super) ready_next: Cell<Option<NonNull<Header>>>,
    /// Where the owner has it.
    pub(super) life: Cell<Life>,
    /// Whether the task is in the ready queue.
    pub(super) ready: Cell<bool>,
    /// Whether the task is to be cancelled instead of polled; or has ended while it was ready, and is not to be polled either.
    pub(super) aborted: Cell<bool>,
}

/// References that the owner of a task that it spawned itself has in stock: more than most tasks ever give to other threads,
/// where they are dropped and do not come back. Should they run out, or the task have come from elsewhere, references are
/// made by an atomic instruction.
pub(super) const STOCK: u32 = 1 << 16;

/// Where a task is in its life, as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// No owner has it yet.
    Fresh,
    /// In the owner's ready queue, or in its first poll; unfinished.
    Unpolled,
    /// In the owner's list; unfinished.
    Linked,
    /// Complete; nothing of it is left but the header.
    Done,
}

impl Header {
    /// Writes a header with references for two: the owner's side (or the `TaskRef` that will become it) and the `JoinHandle`.
    ///
    /// Word by word, where it shall be: a header that is put together elsewhere and copied costs more than all that is in it.
    ///
    /// # Safety
    ///
    /// `place` is memory for a header, and nobody else's.
    pub(super) unsafe fn write(
        place: NonNull<Header>,
        origin: Origin,
        vtable: &'static VTable,
        mailbox: Option<Arc<Mailbox>>,
        label: Label,
    ) {
        let (stock, remote) = match origin {
            Origin::Here => (STOCK, 0),
            Origin::Elsewhere => (1, QUEUED | FRESH),
            Origin::Placed => (1, QUEUED),
        };
        let id = TaskId::next();
        let class = label.class();
        #[cfg(feature = "tracing")]
        let span = label.span(id);
        let header = place.as_ptr();
        // SAFETY: the caller's own promise. Every field is written, in their order.
        unsafe {
            (&raw mut (*header).link).write(Link::new());
            (&raw mut (*header).join_waker).write(UnsafeCell::new(None));
            (&raw mut (*header).location).write(label.location);
            (&raw mut (*header).name).write(label.name);
            (&raw mut (*header).id).write(id);
            #[cfg(feature = "tracing")]
            (&raw mut (*header).span).write(span);
            (&raw mut (*header).references).write(AtomicUsize::new(stock as usize + 1));
            (&raw mut (*header).remote).write(Remote(AtomicU8::new(remote)));
            (&raw mut (*header).join).write(Join(AtomicU8::new(HANDLE)));
            (&raw mut (*header).class).write(class);
            (&raw mut (*header).mailbox).write(UnsafeCell::new(mailbox));
            (&raw mut (*header).owner).write(AtomicPtr::new(NOBODY));
            (&raw mut (*header).task_waker).write(waker::task_waker(place, vtable.stealable));
            (&raw mut (*header).vtable).write(vtable);
            (&raw mut (*header).contents).write(UnsafeCell::new(()));
            let owned = &raw mut (*header).owned;
            (&raw mut (*owned).list_prev).write(Cell::new(None));
            (&raw mut (*owned).list_next).write(Cell::new(None));
            (&raw mut (*owned).born).write(Cell::new(0));
            (&raw mut (*owned).stock).write(Cell::new(stock));
            (&raw mut (*owned).waiters).write(Cell::new(0));
            (&raw mut (*owned).ready_next).write(Cell::new(None));
            (&raw mut (*owned).life).write(Cell::new(Life::Fresh));
            (&raw mut (*owned).ready).write(Cell::new(false));
            (&raw mut (*owned).aborted).write(Cell::new(false));
        }
    }

    /// Ends what a header holds for its task: its name, its span, a waker that was left. The mailbox and whose it is stay, for the task
    /// for which it is [renewed](Header::renew).
    ///
    /// # Safety
    ///
    /// Nobody refers to the task any more, and neither a stage nor an output is left in it.
    pub(super) unsafe fn rest(mut task: NonNull<Header>) {
        // SAFETY: the caller's own promise.
        let header = unsafe { task.as_mut() };
        let name = header.name.take();
        #[cfg(feature = "tracing")]
        let span = std::mem::replace(&mut header.span, tracing::Span::none());
        // SAFETY: nobody else is left.
        let waker = header.join_waker.with_mut(|slot| unsafe { (*slot).take() });
        // Foreign code, when all is in order, and quietly: it is called in the middle of whatever gave up the last reference.
        drop(name);
        if let Some(waker) = waker {
            drop_quietly(waker);
        }
        #[cfg(feature = "tracing")]
        drop_quietly(span);
    }

    /// Whether there is nothing that [`rest`](Header::rest) would end, as with nearly every task.
    ///
    /// # Safety
    ///
    /// As for `rest`.
    #[inline]
    pub(super) unsafe fn is_at_rest(&self) -> bool {
        #[cfg(feature = "tracing")]
        if !self.span.is_none() {
            return false;
        }
        // SAFETY: nobody else is left.
        self.name.is_none() && self.join_waker.with(|slot| unsafe { (*slot).is_none() })
    }

    /// Writes into a header at [rest](Header::rest) what is new of a task, as [`write`](Header::write) does for [`Origin::Here`]. What
    /// adoption, a queue or a list writes before anybody reads it is left to them: what a short task costs is, for a good part, its
    /// header's stores.
    ///
    /// # Safety
    ///
    /// It is at rest, and the caller's alone, who is its owner.
    pub(super) unsafe fn renew(task: NonNull<Header>, vtable: &'static VTable, label: Label) {
        let id = TaskId::next();
        #[cfg(feature = "tracing")]
        let span = label.span(id);
        let class = label.class();
        let header = task.as_ptr();
        // SAFETY: the caller's own promise. What is overwritten has no destructor (of a span that is none, it does nothing), and no name is
        // there.
        unsafe {
            (&raw mut (*header).location).write(label.location);
            if let Some(name) = label.name {
                (&raw mut (*header).name).write(Some(name));
            }
            (&raw mut (*header).id).write(id);
            #[cfg(feature = "tracing")]
            (&raw mut (*header).span).write(span);
            (&raw mut (*header).vtable).write(vtable);
            // Whoever comes to refer to the task does so by what this thread hands out: no other looks at these now.
            (&raw mut (*header).references).write(AtomicUsize::new(STOCK as usize + 1));
            (&raw mut (*header).remote).write(Remote(AtomicU8::new(0)));
            (&raw mut (*header).join).write(Join(AtomicU8::new(HANDLE)));
            (&raw mut (*header).class).write(class);
            let owned = &raw mut (*header).owned;
            (&raw mut (*owned).stock).write(Cell::new(STOCK));
            (&raw mut (*owned).waiters).write(Cell::new(0));
            (&raw mut (*owned).life).write(Cell::new(Life::Fresh));
            (&raw mut (*owned).ready).write(Cell::new(false));
            (&raw mut (*owned).aborted).write(Cell::new(false));
        }
    }

    /// Where it was spawned, what it is called, and its class.
    pub(super) fn label(&self) -> Label {
        Label { location: self.location, name: self.name.clone(), class: Some(self.class) }
    }

    /// Where it was spawned.
    pub(super) fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// What it is called.
    pub(super) fn name(&self) -> Option<&Cow<'static, str>> {
        self.name.as_deref()
    }

    /// Which of its owner's queues it waits in.
    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// The owner's mailbox; of a stealable task the mailbox of its *home*. It lives as long as any of its tasks' headers. `None`
    /// for a task that may still go to any worker.
    ///
    /// This costs a task that comes from elsewhere one atomic add; one that is spawned by its owner mostly gets it with its memory (see
    /// [`cells`](super::cells)).
    ///
    /// # Safety
    ///
    /// The mailbox was set at the task's birth; or the caller has the right to run the task; or it has seen (in the remote
    /// word, or by holding a waker) that the task was adopted or polled.
    pub(super) unsafe fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        // SAFETY: written by `settle` alone, before anyone but its caller may look; read-only from then on.
        self.mailbox.with(|mailbox| unsafe { (*mailbox).as_ref() })
    }

    /// Says whose the task is, if nobody has said so before. The next change of the remote word publishes it.
    ///
    /// # Safety
    ///
    /// The caller has the sole right to run or adopt the task.
    pub(super) unsafe fn settle(&self, home: &Arc<Mailbox>) {
        // SAFETY: until the task is settled nobody else looks (`mailbox`), and the caller is one at a time.
        self.mailbox.with_mut(|mailbox| unsafe {
            if (*mailbox).is_none() {
                *mailbox = Some(Arc::clone(home));
            }
        });
    }

    /// Whether the task was adopted by the worker of `mailbox`, which may be null: then it was not. No stealable task ever is.
    ///
    /// The header keeps the mailbox, so no other has its address.
    pub(super) fn belongs_to(&self, mailbox: *const Mailbox) -> bool {
        // Relaxed: the owner's own thread reads what it has written, and another, whatever it reads, not its own mailbox.
        ptr::eq(self.owner.load(Relaxed), mailbox)
    }

    /// Says that the task belongs to the worker of `mailbox`, whose reference it has, from here on.
    ///
    /// # Safety
    ///
    /// The caller runs on that worker's thread, and has the sole right to adopt the task.
    pub(super) unsafe fn belong_to(&self, mailbox: &Arc<Mailbox>) {
        self.owner.store((&raw const **mailbox).cast_mut(), Relaxed);
    }

    /// The owner's words.
    ///
    /// # Safety
    ///
    /// The caller runs on the thread that owns the task. While the task is Fresh, only its creator and the thread of the
    /// owner to be may look, and nobody changes anything.
    pub(super) unsafe fn owned(&self) -> &Owned {
        &self.owned
    }
}

impl Owned {
    /// Whether the task is its owner's and has not ended.
    #[inline]
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(self.life.get(), Life::Unpolled | Life::Linked)
    }

    /// Whether the task is to be woken to be polled.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.is_unfinished() && !self.ready.get()
    }

    /// Whether the owner's side has no use for the task any more, so that its one reference goes back.
    pub(super) fn is_let_go(&self) -> bool {
        self.life.get() == Life::Done && !self.ready.get() && self.waiters.get() == 0
    }
}

/// Who made a task.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// Its owner, which makes it ready at once.
    Here,
    /// Perhaps another thread; the owner has yet to adopt it.
    Elsewhere,
    /// Any thread, for any worker to run: a stealable task.
    Placed,
}

/// The remote word.
pub(super) struct Remote(AtomicU8);

/// What a request on the remote word obliges its maker to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Request {
    /// Push the task on the owner's remote list; a stealable one on a stealable queue.
    Push,
    /// Nothing: somebody will come by.
    Pending,
}

/// What a worker finds that begins to run a stealable task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Begun {
    /// It is to be polled.
    Poll,
    /// It is to be cancelled.
    Cancel,
}

/// What the last worker to end finds in a stealable task that nobody has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Left {
    /// It is finished after all.
    Finished,
    /// It is in a queue, or on its way to one, with the reference of who may run it.
    Queued,
    /// It waits; the reference is the word's.
    Idle,
}

/// What the owner found in the remote word when it took the task in.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Taken {
    /// The task is to be adopted.
    pub(super) fresh: bool,
    /// The task is to be cancelled.
    pub(super) aborted: bool,
}

impl Remote {
    /// Asks the owner to poll the task.
    pub(super) fn request_poll(&self) -> Request {
        self.request(QUEUED)
    }

    /// Asks the owner to cancel the task.
    pub(super) fn request_abort(&self) -> Request {
        if mutant("abort: flag after the request") {
            let request = self.request(QUEUED);
            self.0.fetch_or(ABORT, AcqRel);
            return request;
        }
        self.request(QUEUED | ABORT)
    }

    fn request(&self, bits: u8) -> Request {
        let before = if mutant("wake: load, then store") {
            let before = self.0.load(Acquire);
            self.0.store(before | bits, Relaxed);
            before
        } else {
            // Release: pairs with the Acquire of `take` and publishes what the caller wrote for the task to see. Acquire:
            // when QUEUED was off, pairs with the Release of `take` (or `pause`), after which the link is the caller's to write.
            self.0.fetch_or(bits, if mutant("wake: asked relaxed") { Relaxed } else { AcqRel })
        };
        if before & (QUEUED | RUNNING) == 0 { Request::Push } else { Request::Pending }
    }

    /// Stealable: turns the right to run into a run.
    pub(super) fn begin(&self) -> Begun {
        // Acquire: pairs with the Release of `request` (the poll sees what wakers wrote) and of `pause` (and what the last poll left).
        let before = self.0.fetch_xor(QUEUED | RUNNING, AcqRel);
        debug_assert_eq!(before & (QUEUED | RUNNING), QUEUED, "only a queued task is run, by one at a time");
        if before & ABORT == 0 { Begun::Poll } else { Begun::Cancel }
    }

    /// Stealable: ends a run whose poll was pending. On [`Request::Push`] the task was woken meanwhile, and is this thread's to
    /// push; otherwise it may run elsewhere from here on, and be gone.
    pub(super) fn pause(&self) -> Request {
        if mutant("pause: load, then store") {
            let before = self.0.load(Acquire);
            self.0.store(before & !RUNNING, Relaxed);
            return if before & QUEUED == 0 { Request::Pending } else { Request::Push };
        }
        let order = if mutant("pause: relaxed") { Relaxed } else { AcqRel };
        // Release: publishes the future, as the poll left it, to the next `begin`.
        let before = self.0.fetch_and(!RUNNING, order);
        if before & QUEUED == 0 { Request::Pending } else { Request::Push }
    }

    /// Stealable: begins a run of a task that nobody has woken. Whether it was so.
    pub(super) fn begin_idle(&self) -> bool {
        // Acquire: pairs with the Release of `pause`. An aborted task is queued, so an idle word is zero.
        self.0.compare_exchange(0, RUNNING, Acquire, Relaxed).is_ok()
    }

    /// Stealable: begins a run that no other worker can begin any more.
    pub(super) fn begin_last(&self) -> Left {
        // Acquire: as in `begin`.
        match self.0.fetch_or(RUNNING, AcqRel) {
            before if before & RUNNING != 0 => Left::Finished,
            before if before & QUEUED != 0 => Left::Queued,
            _ => Left::Idle,
        }
    }

    /// Stealable: what the task does, at a glance.
    #[cfg(not(loom))]
    pub(super) fn glance(&self) -> TaskState {
        // Relaxed: by the time that it is read it may be otherwise.
        match self.0.load(Relaxed) {
            now if now & RUNNING != 0 => TaskState::Running,
            now if now & QUEUED != 0 => TaskState::Ready,
            _ => TaskState::Waiting,
        }
    }

    /// Takes note, as the owner, of all that was requested. The task's node is in no list at this moment.
    pub(super) fn take(&self) -> Taken {
        // Acquire pairs with the Release of `request`: the poll that follows sees what every requester wrote. Release
        // pairs with its Acquire: the next pusher may write the link, which this thread has read.
        let order = if mutant("wake: taken without acquire") { Relaxed } else { AcqRel };
        let before = self.0.fetch_and(!(QUEUED | FRESH), order);
        Taken { fresh: before & FRESH != 0, aborted: before & ABORT != 0 }
    }

    /// What `take` would find. Only the holder of a node that is in no list can rely on it.
    pub(super) fn peek(&self) -> Taken {
        // Acquire: pairs with the Release of `request`, as in `take`; who finds FRESH on or off goes on to use the task.
        let now = self.0.load(Acquire);
        Taken { fresh: now & FRESH != 0, aborted: now & ABORT != 0 }
    }
}

/// The join word.
pub(super) struct Join(AtomicU8);

/// What the owner finds when it completes a task.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Completed {
    /// The output is the handle's from here on; if not, it is the owner's to drop.
    pub(super) has_handle: bool,
    /// The waker slot is the owner's, and full: take it and wake.
    pub(super) has_waker: bool,
}

/// Where a handle is at a transition of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// On the thread of the task's owner, so that nothing of the task's can happen at the same time.
    Owner,
    /// Anywhere else; or nobody knows.
    Elsewhere,
}

/// What the handle finds at a transition of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Progress {
    /// Not complete before this transition.
    Running,
    /// Complete: the output is the handle's.
    Complete,
}

impl Join {
    /// Whether the output has been written, or the task cancelled.
    pub(super) fn progress(&self) -> Progress {
        // Acquire: pairs with the Release of `complete`; the output is visible.
        Join::read(self.0.load(Acquire))
    }

    /// Whether the task is complete, as a hint that publishes nothing. Never wrong when it says yes.
    pub(super) fn is_complete_hint(&self) -> bool {
        self.0.load(Relaxed) & COMPLETE != 0
    }

    /// Owner: the output is in its place.
    pub(super) fn complete(&self) -> Completed {
        // Release: publishes the output to the handle. Acquire: pairs with the Release of `lend_waker` (the waker in the
        // slot is visible).
        let order = if mutant("complete: relaxed") { Relaxed } else { AcqRel };
        // The other bits are nobody's any more, so that they need not be kept.
        let before = self.0.swap(COMPLETE, order);
        debug_assert_eq!(before & COMPLETE, 0, "a task completes once");
        Completed { has_handle: before & HANDLE != 0, has_waker: before & WAKER != 0 }
    }

    /// Handle: the slot has been filled; whoever turns WAKER off owns it next. If complete, it is still the handle's.
    pub(super) fn lend_waker(&self) -> Progress {
        let found = Join::read(self.set(Side::Elsewhere, 0, WAKER));
        if mutant("join: no look after lending") { Progress::Running } else { found }
    }

    /// Handle, on the owner's thread, of a task that is not complete: the slot has been filled.
    pub(super) fn lend_waker_here(&self) {
        // Relaxed: who looks next is the owner, here, or the handle, which whoever moves it orders.
        self.0.store(HANDLE | WAKER, Relaxed);
    }

    /// Handle: takes the slot back, if it was lent. If complete, the owner has it.
    pub(super) fn retract_waker(&self) -> Progress {
        Join::read(self.set(Side::Elsewhere, WAKER, 0))
    }

    /// Handle: it is being dropped. If complete, the output is its to drop, and the slot is the owner's, or is left to the header's
    /// end; if not, what is in the slot is its to drop, and the output is the owner's.
    pub(super) fn drop_handle(&self, side: Side) -> Progress {
        if mutant("drop handle: load, then store") {
            let now = self.0.load(Acquire);
            self.0.store(now & !(HANDLE | WAKER), Relaxed);
            return Join::read(now);
        }
        Join::read(self.set(side, HANDLE | WAKER, 0))
    }

    /// Handle: turns bits off and on, unless the task is complete, and says what it found.
    fn set(&self, side: Side, off: u8, on: u8) -> u8 {
        // Acquire: pairs with the Release of `complete`. After that only `take_output` changes the word, and nobody looks at these bits.
        let before = self.0.load(Acquire);
        if before & COMPLETE != 0 || before & !off | on == before {
            return before;
        }
        match side {
            // There is one handle, so it and the owner are the only ones who write, and both are this thread. Relaxed: who writes
            // next is the owner, here, or the handle, which whoever moves it orders.
            Side::Owner => {
                self.0.store(before & !off | on, Relaxed);
                before
            }
            // One of the two is zero. Release: publishes the waker in the slot to `complete`. Acquire: pairs with its Release, if it
            // was first.
            Side::Elsewhere if on == 0 => self.0.fetch_and(!off, AcqRel),
            Side::Elsewhere => self.0.fetch_or(on, AcqRel),
        }
    }

    /// Handle, of a complete task: it takes the output.
    pub(super) fn take_output(&self) {
        // Of a complete task the word is the handle's alone to write. Release: who reads this instead of what `complete` wrote learns
        // no less.
        self.0.store(COMPLETE | TAKEN, if mutant("taken: relaxed") { Relaxed } else { Release });
    }

    /// Handle: whether it has taken the output.
    pub(super) fn has_taken(&self) -> bool {
        // Relaxed: the bit is for the handle's own eyes; whoever moves that orders the rest.
        self.0.load(Relaxed) & TAKEN != 0
    }

    fn read(word: u8) -> Progress {
        if word & COMPLETE == 0 { Progress::Running } else { Progress::Complete }
    }
}

/// A number that no other task of this process has or had.
///
/// Numbers grow on each thread, and have gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(u64);

impl TaskId {
    /// The next number of this thread.
    pub(in crate::runtime) fn next() -> TaskId {
        use std::sync::atomic::AtomicU64;
        /// What no thread has reserved, from here on. Nothing is published by it, so models need not see it.
        static FREE: AtomicU64 = AtomicU64::new(0);
        /// Numbers reserved at a time: a line that all workers write is touched once per so many spawns. At a billion
        /// threads that each spawn one task, 64 bits still do not run out.
        const RESERVED: u64 = 1024;
        std::thread_local! {
            /// The next number of this thread, less one.
            static NEXT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
        }
        NEXT.with(|next| {
            let mut id = next.get();
            // At the end of what was reserved, and before anything was.
            if id.is_multiple_of(RESERVED) {
                id = FREE.fetch_add(RESERVED, Relaxed);
            }
            next.set(id + 1);
            TaskId(id + 1)
        })
    }

    /// The number.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The owner of a task that has none. Not null: that is the mailbox of a thread on which no worker is entered, and such a thread owns
/// nothing.
const NOBODY: *mut Mailbox = NonNull::dangling().as_ptr();

/// Remote word: the node is in the remote list, or about to be, or the task waits for adoption. Stealable: the task is in a
/// queue, or about to be, or was woken while it runs.
const QUEUED: u8 = 1;

/// Remote word: the task is to be cancelled. Never turned off.
const ABORT: u8 = 2;

/// Remote word: the stage holds a closure that no owner has seen.
const FRESH: u8 = 4;

/// Remote word, stealable: a worker polls or drops the task. Never turned off when it is finished: its last run has no end.
const RUNNING: u8 = 8;

/// Join word: the output is there. Never turned off.
const COMPLETE: u8 = 1;

/// Join word: there is a `JoinHandle`.
const HANDLE: u8 = 2;

/// Join word: the slot holds the waker of whoever awaits the handle, and is nobody's to touch.
const WAKER: u8 = 4;

/// Join word: the handle has taken the output. Beside COMPLETE alone.
const TAKEN: u8 = 8;
