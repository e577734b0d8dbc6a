//! What other threads see of a worker: where to leave a task, and how to ring.
//!
//! A [`Mailbox`] is shared (`Arc`) by the worker, by the senders of the mesh, by handles outside the runtime, and by
//! each of the worker's tasks. So it outlives the worker: the last waker that somebody forgot in a static still finds
//! it, pushes in vain, and leaks nothing.
//!
//! # The end of the remote list
//!
//! While the worker is open it is the only one who takes from the list. Closing hands that right over:
//!
//! ```text
//!   pusher                                        closer
//!   push the node                                 close the doorbell: fetch_or(CLOSED) on the control word
//!   ring: fetch_or(REMOTE) on the control word    sweep
//!   was CLOSED on? ─▶ sweep
//! ```
//!
//! Both are read-modify-writes of one word. If the pusher rings first, the closer's sweep finds the node. If the closer is
//! first, the pusher is told, and sweeps itself. A node behind the gap of an unfinished push (see
//! [`RemoteList`]) is found by the sweep of the one who closes the gap: that one has yet to ring.
//!
//! Several may want to sweep at once, and only one may take. The first in is the sweeper; the others leave a mark in
//! [`Mailbox::sweepers`] and go away, and the sweeper goes round again until there was no new mark. So nobody waits. A
//! sweep gives back references, and drops the closures of tasks that were never adopted: those are `Send`, and their
//! handles report a cancelled task. Only after a worker has closed can `wake` thereby run a destructor that is not its own.
#![expect(unsafe_code, reason = "says who may take from the remote list, which only one may at a time")]

use std::fmt;

use super::doorbell::{Doorbell, Heard};
use crate::runtime::spawner::{Queue, Spawner};
use crate::runtime::task::{Counted, RemoteList, TaskRef};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sync::atomic::{AtomicBool, AtomicUsize};
use crate::sync::{Arc, mutant};

/// A worker's public side.
pub(crate) struct Mailbox {
    doorbell: Arc<Doorbell>,
    /// All stealable queues of the runtime, and which of them is this worker's.
    spawner: Arc<Spawner>,
    worker: usize,
    /// Tasks that other threads woke or sent.
    pub(in crate::runtime) remote: RemoteList,
    /// After closing: how many found the list in need of a sweep since the sweeper last looked.
    sweepers: AtomicUsize,
    /// Whether the worker has come for it.
    claimed: AtomicBool,
}

impl Mailbox {
    /// The mailbox of a worker.
    ///
    /// `unpark` wakes the worker out of its park, or makes its next park return at once. It may be called from any
    /// thread, at any time until the mailbox is dropped, which is later than the worker's end: it must own what it needs.
    ///
    /// `spawner` places and steals tasks among the workers; this is the one of number `worker`.
    ///
    /// # Panics
    ///
    /// If that worker has one already.
    pub(crate) fn new(
        spawner: &Arc<Spawner>,
        worker: usize,
        unpark: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Mailbox> {
        let doorbell = Arc::new(Doorbell::new(spawner.workers(), unpark));
        spawner.introduce(worker, &doorbell);
        Arc::new(Mailbox {
            doorbell,
            spawner: Arc::clone(spawner),
            worker,
            remote: RemoteList::new(),
            sweepers: AtomicUsize::new(0),
            claimed: AtomicBool::new(false),
        })
    }

    /// The worker's doorbell.
    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Who places tasks on this worker and the others of its runtime.
    pub(crate) fn spawner(&self) -> &Arc<Spawner> {
        &self.spawner
    }

    /// The worker's number.
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }

    /// The worker's stealable queue.
    pub(in crate::runtime) fn queue(&self) -> &Queue {
        self.spawner.queue(self.worker)
    }

    /// Leaves a task in the worker's stealable queue, from any thread. If the worker has closed and the task was never polled,
    /// it is cancelled instead.
    pub(crate) fn place(&self, task: TaskRef) {
        self.spawner.send(self.worker, task);
    }

    /// Gives a task that was finished elsewhere back to its home, this worker, which takes it out of its list when it comes by.
    pub(in crate::runtime) fn give_back(&self, task: Counted) {
        // SAFETY: the task is finished, so its link is nobody's: QUEUED leads to no push any more. The reference is given up.
        unsafe { self.remote.push(task.into_raw()) };
        // There is no hurry, but whoever pushed behind this task has rung for the gap that it left, and rings no more.
        if !mutant("give back: ring nobody") {
            self.ring_remote();
        }
    }

    /// Makes the worker look around, without leaving it anything. For news that it finds elsewhere, such as a request to
    /// stop: publish it first.
    pub(crate) fn nudge(&self) {
        self.ring_remote();
    }

    /// Sends a task to the worker, which adopts it in its next turn. If the worker has closed, the task is cancelled
    /// instead.
    ///
    /// # Panics
    ///
    /// If the task was made for another worker.
    pub(crate) fn push(&self, task: TaskRef) {
        assert!(task.is_for(self), "a task is pushed to the worker it was made for");
        self.remote.push_ref(task);
        self.ring_remote();
    }

    /// Rings after a push, and sees to it that a list whose worker is gone gets empty.
    ///
    /// The caller keeps the mailbox alive by something other than what it pushed.
    pub(in crate::runtime) fn ring_remote(&self) {
        if self.doorbell.ring_remote() == Heard::Closed && !mutant("push: leave a closed list alone") {
            self.sweep();
        }
    }

    /// Says that there is one who takes from the list from now on.
    ///
    /// # Panics
    ///
    /// If there was one before.
    pub(in crate::runtime) fn claim(&self) {
        // Relaxed: this only counts to one.
        assert!(!self.claimed.swap(true, Relaxed), "a mailbox belongs to one worker");
    }

    /// Ends the worker's public side: what is in the list is given back or cancelled, and so is whatever comes later.
    ///
    /// # Safety
    ///
    /// The caller is the one who claimed the mailbox, and takes from the list no more.
    pub(in crate::runtime) unsafe fn close(&self) {
        self.doorbell.close();
        self.sweep();
        self.queue().discard();
    }

    /// Empties the list of a closed worker, unless somebody is at it; that one then goes round again.
    fn sweep(&self) {
        // Acquire: pairs with the Release of the sweeper before us, whose place at the list's end we take. Release: pairs with
        // the Acquire of the exchange below, by which the present sweeper learns of our push.
        if self.sweepers.fetch_add(1, AcqRel) != 0 && !mutant("sweep: everyone at once") {
            return;
        }
        let mut seen = 1;
        loop {
            // SAFETY: the worker has closed, so it polls no more and takes only here; and among those who come here, only the one
            // who brought `sweepers` up from zero gets this far, until the exchange below sets it back. The closing bit
            // and then `sweepers` order each taker after the one before (text of this module).
            unsafe { self.remote.discard() };
            match self.sweepers.compare_exchange(seen, 0, AcqRel, Acquire) {
                Ok(_) => return,
                Err(marks) => seen = marks,
            }
        }
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("doorbell", &self.doorbell).finish_non_exhaustive()
    }
}
