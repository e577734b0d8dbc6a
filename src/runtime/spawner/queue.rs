//! One worker's stealable queue: where its stealable tasks wait, and those that were placed on it and have not started.
//!
//! It has two parts, because it is filled from two sides. All who take may take from both.
//!
//! ```text
//!   the owner pushes ─▶ ring  [head .. tail)         ─▶ the owner pops one, a thief takes half
//!      overflow  │
//!                ▼
//!   anyone sends ─▶ inbox  (an intrusive list)       ─▶ the owner moves them into its ring, a thief takes half
//! ```
//!
//! # The ring
//!
//! `tail` is written by the owner alone. `head` moves by compare-and-swap, by one (pop) or by half of what there is (steal);
//! both only ever grow. Who takes reads head and tail, *reads the slots*, and then moves head: so it reads before it owns.
//!
//! ```text
//!   owner: push                                taker
//! p1  head + CAPACITY > tail?                t1  h := head, t := tail
//! p2  slot[tail] := task                     t2  read slot[h], slot[h+1], ..
//! p3  tail := tail + 1                       t3  head: h ─▶ h + n? then they are ours
//! ```
//!
//! **What was read is what was there** if t3 succeeds. The slots up to t were written before p3, which t1 has seen. A slot may
//! have been written again since: only after p1 saw a head beyond h, that is after another taker's t3. Had that come before
//! ours, ours would fail, since head never returns to h. Had it come after ours, then our read t2 is before our t3, that before
//! theirs in the order of `head`, and theirs (a release) before p1 (an acquire) and so before the new write, which t2 then
//! cannot have seen.
//!
//! A thief's loot goes into its own ring: behind its own tail, where nobody looks before p3.
//!
//! # The inbox
//!
//! Senders are wait-free, as wakers must be (see [`remote`](crate::runtime::task::RemoteList)). That list has one taker at a
//! time; here any of several may want to be that one, and none may wait. So *takers* counts who came since the inbox was last
//! left alone:
//!
//! ```text
//!   takers + 1; was it 0? then the inbox is ours, else go away
//!   take ..
//!   takers := 0; was it more than 1? then ring the owner
//! ```
//!
//! Who goes away may have been told of a task that the one inside does not see any more. But both instructions are
//! read-modify-writes of one word: the one inside sees the other's mark when it leaves, and rings the owner, who looks again. A
//! task in the gap of an unfinished push is found likewise: its sender has yet to ring.
//!
//! After the worker has closed, whoever is told so by the ring empties the inbox ([`discard`](Queue::discard)) in the same manner.
#![expect(unsafe_code, reason = "tasks are handed on as pointers, and one thread at a time may push or take")]

use std::fmt;
use std::ptr::{self, NonNull};

use crossbeam_utils::CachePadded;

use crate::runtime::policy;
use crate::runtime::task::{RemoteList, TaskRef};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicPtr, AtomicUsize};
use crate::sync::mutant;

/// Tasks that a ring holds: 2 KiB of pointers. A burst beyond it goes by the inbox, which has no bound but the tasks themselves.
const CAPACITY: usize = if cfg!(loom) { 2 } else { 256 };

/// A worker's stealable queue.
pub(in crate::runtime) struct Queue {
    head: CachePadded<AtomicUsize>,
    tail: CachePadded<AtomicUsize>,
    slots: Box<[AtomicPtr<()>]>,
    inbox: RemoteList,
    /// Who came to take from the inbox since it was last left.
    takers: AtomicUsize,
    /// Tasks in the inbox, or about to be. It orders nothing: whoever counts on a task is told of it in another way.
    sent: CachePadded<AtomicUsize>,
}

/// What came of an attempt to take from an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(in crate::runtime) enum Emptied {
    /// So many tasks were taken.
    Taken(usize),
    /// The same, and somebody was turned away meanwhile: ring the owner.
    Missed(usize),
    /// Somebody else is at it, and will ring the owner.
    Busy,
}

impl Queue {
    /// An empty queue.
    pub(in crate::runtime) fn new() -> Queue {
        Queue {
            head: CachePadded::new(AtomicUsize::new(0)),
            tail: CachePadded::new(AtomicUsize::new(0)),
            slots: (0..CAPACITY).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            inbox: RemoteList::new(),
            takers: AtomicUsize::new(0),
            sent: CachePadded::new(AtomicUsize::new(0)),
        }
    }

    /// Tasks that wait here, for thieves and placers to compare. Of some recent moment.
    pub(in crate::runtime) fn len(&self) -> usize {
        self.in_ring() + self.in_inbox()
    }

    /// Tasks in the ring.
    pub(in crate::runtime) fn in_ring(&self) -> usize {
        // Head first: it never passes the tail, so a tail that is read later is not behind it.
        let head = self.head.load(Relaxed);
        self.tail.load(Relaxed).saturating_sub(head).min(CAPACITY)
    }

    /// Tasks in the inbox.
    pub(in crate::runtime) fn in_inbox(&self) -> usize {
        self.sent.load(Relaxed)
    }

    /// Appends a task to the ring.
    ///
    /// # Errors
    ///
    /// Gives the task back if the ring is full.
    ///
    /// # Safety
    ///
    /// The caller is the queue's owner: no other call of `push`, `take_sent` or, as the thief, `steal` is under way or
    /// unordered with this one.
    pub(in crate::runtime) unsafe fn push(&self, task: TaskRef) -> Result<(), TaskRef> {
        if self.room() == 0 {
            return Err(task);
        }
        // SAFETY: there is room, and the caller is the owner.
        unsafe { self.fill(0, task.into_raw().as_ptr().cast()) };
        // SAFETY: just filled.
        unsafe { self.publish(1) };
        Ok(())
    }

    /// Free slots. For the owner.
    fn room(&self) -> usize {
        // Acquire: pairs with the Release of whoever moved head; its reads of the slots come before our next writes. (No mutant: in a model
        // nobody reads what is yet to be written.)
        CAPACITY - (self.tail.load(Relaxed) - self.head.load(Acquire))
    }

    /// Writes a slot behind the tail.
    ///
    /// # Safety
    ///
    /// The caller is the owner, and has seen more than `offset` free slots.
    unsafe fn fill(&self, offset: usize, task: *mut ()) {
        let tail = self.tail.load(Relaxed);
        self.slots[(tail + offset) % CAPACITY].store(task, Relaxed);
    }

    /// Shows the next `count` slots to those who take.
    ///
    /// # Safety
    ///
    /// The caller is the owner, and has filled them with tasks that are its own.
    unsafe fn publish(&self, count: usize) {
        let order = if mutant("push: tail relaxed") { Relaxed } else { Release };
        // Release: pairs with the Acquire of `take`, and publishes the slots and the tasks.
        self.tail.store(self.tail.load(Relaxed) + count, order);
    }

    /// Takes the oldest task of the ring.
    pub(in crate::runtime) fn pop(&self) -> Option<TaskRef> {
        loop {
            let mut task = ptr::null_mut();
            match self.take(|_| 1, |_, slot| task = slot) {
                Take::Empty => return None,
                // Another has taken it: that one got on.
                Take::Lost => {}
                Take::Won(_) => {
                    let task = NonNull::new(task.cast()).expect("a slot between head and tail has a task");
                    // SAFETY: `push` had it from `into_raw`; the right to it was the ring's, and is ours since head moved.
                    return Some(unsafe { TaskRef::from_raw(task) });
                }
            }
        }
    }

    /// Takes as many of the oldest as `count` makes of how many there are: shows each to `read`, and then tries to own them. Only if that
    /// was [`Take::Won`] is what was read to be used.
    fn take(&self, count: impl FnOnce(usize) -> usize, mut read: impl FnMut(usize, *mut ())) -> Take {
        // Acquire: so that the tail is not older than the head, and so not behind it.
        let head = self.head.load(if mutant("take: head relaxed") { Relaxed } else { Acquire });
        // Acquire: pairs with the Release of `publish`.
        let tail = self.tail.load(Acquire);
        debug_assert!(tail >= head, "the tail is not older than a head that was read before it");
        let ready = tail - head;
        if ready == 0 {
            return Take::Empty;
        }
        if ready > CAPACITY {
            return Take::Lost;
        }
        let count = count(ready);
        for offset in 0..count {
            read(offset, self.slots[(head + offset) % CAPACITY].load(Relaxed));
        }
        if mutant("take: head by load and store") {
            if self.head.load(Acquire) != head {
                return Take::Lost;
            }
            self.head.store(head + count, Release);
            return Take::Won(count);
        }
        // Release: pairs with the Acquire of `room`; the reads above are over. Acquire on failure is for the next attempt.
        match self.head.compare_exchange(head, head + count, AcqRel, Acquire) {
            Ok(_) => Take::Won(count),
            Err(_) => Take::Lost,
        }
    }

    /// Sends a task to the queue, from any thread. The caller rings its owner next.
    pub(in crate::runtime) fn send(&self, task: TaskRef) {
        self.sent.fetch_add(1, Relaxed);
        self.inbox.push_ref(task);
    }

    /// Moves what was sent into the ring, as much as there is room for.
    ///
    /// # Safety
    ///
    /// As [`push`](Queue::push).
    pub(in crate::runtime) unsafe fn take_sent(&self) -> Emptied {
        // SAFETY: the caller's own promise.
        self.empty_inbox(self.room(), |task| unsafe { self.accept(task) })
    }

    /// Appends a task for which there is room.
    ///
    /// # Safety
    ///
    /// As [`push`](Queue::push); the caller has seen a free slot.
    unsafe fn accept(&self, task: TaskRef) {
        // SAFETY: the caller's own promise.
        let refused = unsafe { self.push(task) };
        assert!(refused.is_ok(), "room that was seen is not taken by others");
    }

    /// Moves half of `victim`'s ring to the end of this one, or half of its inbox if the ring is empty.
    ///
    /// # Safety
    ///
    /// As [`push`](Queue::push): the caller owns `self`.
    pub(in crate::runtime) unsafe fn steal(&self, victim: &Queue) -> Emptied {
        let room = self.room();
        let taken = victim.take(
            |ready| policy::take(ready, room),
            // SAFETY: `take` asks for no more than there is room for, and the caller is the owner.
            |offset, task| unsafe { self.fill(offset, task) },
        );
        match taken {
            Take::Won(count) => {
                // SAFETY: filled above, with tasks that are ours since they are not the victim's any more.
                unsafe { self.publish(count) };
                Emptied::Taken(count)
            }
            Take::Lost => Emptied::Taken(0),
            Take::Empty => {
                let half = policy::take(victim.in_inbox(), room);
                // SAFETY: the caller's own promise, and no more than there is room for.
                victim.empty_inbox(half, |task| unsafe { self.accept(task) })
            }
        }
    }

    /// Takes up to `max` tasks from the inbox, unless somebody is at it.
    fn empty_inbox(&self, max: usize, mut visit: impl FnMut(TaskRef)) -> Emptied {
        if max == 0 || self.in_inbox() == 0 {
            return Emptied::Taken(0);
        }
        // Acquire: pairs with the Release of the one inside before, whose place at the list's end we take. Release: pairs with its
        // Acquire when it leaves, by which it learns of what we were told of.
        let order = if mutant("inbox: entered relaxed") { Relaxed } else { AcqRel };
        if self.takers.fetch_add(1, order) != 0 {
            return Emptied::Busy;
        }
        let mut taken = 0;
        while taken < max {
            // SAFETY: only the one who found `takers` at zero is here until it sets it back, and each such one is ordered after
            // the one before.
            let Some(task) = (unsafe { self.inbox.take() }) else { break };
            // SAFETY: `send` gave the right to it to the list, and we took it from there.
            visit(unsafe { TaskRef::from_raw(task) });
            taken += 1;
        }
        self.sent.fetch_sub(taken, Relaxed);
        let marks = if mutant("inbox: leave without a look") {
            self.takers.store(0, Release);
            1
        } else {
            self.takers.swap(0, AcqRel)
        };
        if marks > 1 { Emptied::Missed(taken) } else { Emptied::Taken(taken) }
    }

    /// Empties the inbox of a worker that has closed: see [`TaskRef::discard`]. Whoever sends to it does this afterwards.
    pub(in crate::runtime) fn discard(&self) {
        while let Emptied::Missed(_) = self.empty_inbox(usize::MAX, TaskRef::discard) {}
    }
}

/// What came of an attempt to take from a ring.
#[must_use]
enum Take {
    /// There is nothing.
    Empty,
    /// Another was quicker.
    Lost,
    /// So many are ours.
    Won(usize),
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The queue of a worker that never ran, or was not closed: nobody polls these any more.
        while let Some(task) = self.pop() {
            task.discard();
        }
        self.discard();
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("ring", &self.in_ring()).field("inbox", &self.in_inbox()).finish()
    }
}
