//! The list by which other threads hand tasks to a worker: each mailbox has one for pinned tasks, and each stealable queue one
//! as its inbox.
//!
//! Any number of threads push, one at a time takes. The node is the task's own header, so that pushing allocates nothing, and a
//! push is one swap and one store, so that it is wait-free (this is Vyukov's intrusive queue):
//!
//! ```text
//! oldest ─▶ A ─▶ B ─▶ C ◀─ newest       push(D):  p1  D.next := null
//!                                                  p2  before := newest.swap(D)        (C)
//!                                                  p3  before.next := D
//! ```
//!
//! Between p2 and p3 the chain has a gap: the taker sees C without a next, although C is not the newest. It does not
//! wait there; it says that there is nothing to take. That loses nothing, since the pusher rings the doorbell *after* p3: whoever
//! found the gap is rung once more. A task pushed behind the gap is late by as long as the gap lasts, two instructions
//! unless that thread is descheduled just there. A stack with a compare-and-swap would have no gap, but its pushers would retry.
//!
//! A task is taken only once the next node is known, and by then `newest` has moved past it. So its link is free, and the
//! task may be pushed again. For the last task in the list the *stub*, a node without a task, is pushed behind it.
#![expect(unsafe_code, reason = "links live in headers of tasks, which the nodes' references keep")]

use std::ptr::{self, NonNull};

use crossbeam_utils::CachePadded;

use super::raw::{Counted, TaskRef, drop_quietly};
use super::state::Header;
use crate::sync::atomic::AtomicPtr;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{UnsafeCell, mutant};

/// A task's place in the list. The first field of its [`Header`].
pub(super) struct Link {
    next: AtomicPtr<Link>,
}

impl Link {
    /// A link that is in no list.
    pub(super) fn new() -> Link {
        Link { next: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// The list. Each node in it holds one counted reference to its task (in an inbox: a [`TaskRef`]).
pub(in crate::runtime) struct RemoteList {
    /// The end at which threads push.
    newest: CachePadded<AtomicPtr<Link>>,
    /// The end at which the one taker takes.
    oldest: UnsafeCell<*mut Link>,
    /// The node without a task. Heap memory of its own, freed with the list.
    stub: *mut Link,
}

// SAFETY: the nodes are headers of tasks, which any thread may refer to (`Counted` is `Send`); `newest` is atomic; `oldest`
// is behind `take`, whose caller vouches for being the only one; `stub` never changes.
unsafe impl Send for RemoteList {}
// SAFETY: what a `&RemoteList` can do without a promise of its caller's is to push, which touches `newest` and the links of nodes,
// all atomic.
unsafe impl Sync for RemoteList {}

impl RemoteList {
    /// An empty list.
    pub(in crate::runtime) fn new() -> RemoteList {
        let stub = Box::into_raw(Box::new(Link::new()));
        RemoteList { newest: CachePadded::new(AtomicPtr::new(stub)), oldest: UnsafeCell::new(stub), stub }
    }

    /// Pushes a task together with one reference to it. The caller rings the doorbell next.
    ///
    /// # Safety
    ///
    /// `task` is live, the caller gives up one of its references, and is the one who turned QUEUED on, so that the
    /// task is in no list.
    pub(in crate::runtime) unsafe fn push(&self, task: NonNull<Header>) {
        // SAFETY: a header starts with its link, and the node's reference keeps it until it is taken.
        unsafe { self.link(task.cast().as_ptr()) };
    }

    /// Pushes a task that nobody runs. The caller rings the doorbell next.
    pub(in crate::runtime) fn push_ref(&self, task: TaskRef) {
        // SAFETY: the `TaskRef` held a reference; there is one at a time per task, and while there is, QUEUED is on and the
        // task is in no list.
        unsafe { self.push(task.into_raw()) };
    }

    /// # Safety
    ///
    /// `node` is in no list, and lives until it is taken.
    unsafe fn link(&self, node: *mut Link) {
        // SAFETY: not in a list, so ours alone; an earlier taker's reads are ordered before by the remote word.
        unsafe { (*node).next.store(ptr::null_mut(), Relaxed) };
        // Release: publishes the null above (and the task's words) to the pusher behind us and to the taker. Acquire: pairs
        // with that Release of the pusher before us, whose null must not come after our store below.
        let order = if mutant("list: swap relaxed") { Relaxed } else { AcqRel };
        let before = self.newest.swap(node, order);
        // Release: pairs with the Acquire in `take`.
        let order = if mutant("list: link relaxed") { Relaxed } else { Release };
        // SAFETY: `before` is the stub, or a task that cannot be taken before its next is known, which is this store. After
        // it, neither `before` nor `node` is touched by us.
        unsafe { (*before).next.store(node, order) };
    }

    /// Takes the oldest task, with the reference that its node held. `None` if there is none, or if its pusher is not done; then the
    /// doorbell will ring.
    ///
    /// # Safety
    ///
    /// No other call of `take` is under way or unordered with this one.
    pub(in crate::runtime) unsafe fn take(&self) -> Option<NonNull<Header>> {
        self.oldest.with_mut(|oldest| {
            // SAFETY: the caller is the only taker.
            let oldest = unsafe { &mut *oldest };
            let mut node = *oldest;
            // Acquire: pairs with the Release in `link`; the node that `next` names, and the task it is, are visible.
            let order = if mutant("list: next relaxed") { Relaxed } else { Acquire };
            // SAFETY: `oldest` is the stub or a node that was not taken, so its memory is there.
            let mut next = unsafe { (*node).next.load(order) };
            if node == self.stub {
                if next.is_null() {
                    return None;
                }
                // The stub is out of the list from here on.
                *oldest = next;
                node = next;
                // SAFETY: it was the stub's next, and is not taken.
                next = unsafe { (*node).next.load(order) };
            }
            if next.is_null() {
                // Relaxed: it is only compared. What is behind the node is reached by its link, and by no other way.
                if self.newest.load(Relaxed) != node {
                    return None;
                }
                // SAFETY: `oldest` has passed the stub, so it is in no list; it lives as long as `self`.
                unsafe { self.link(self.stub) };
                // SAFETY: the node is not taken until its next is known.
                next = unsafe { (*node).next.load(order) };
                if next.is_null() {
                    return None;
                }
            }
            *oldest = next;
            NonNull::new(node.cast())
        })
    }

    /// Takes whatever is there on behalf of a worker that has closed, and disposes of it.
    ///
    /// # Safety
    ///
    /// As [`take`](RemoteList::take); and the owner polls no more.
    pub(in crate::runtime) unsafe fn discard(&self) {
        // SAFETY: the caller's own promise.
        while let Some(task) = unsafe { self.take() } {
            // SAFETY: the node's reference is ours now.
            let task = unsafe { Counted::from_raw(task) };
            if task.remote.peek().fresh {
                // SAFETY: FRESH is turned off by the owner when it takes the task in, which it will not do any more; so the task
                // is Fresh, and the reference that came with the closure is the node's.
                drop_quietly(unsafe { TaskRef::from_raw(task.into_raw()) });
            }
        }
    }
}

impl Drop for RemoteList {
    fn drop(&mut self) {
        // Each node's task refers to the mailbox and so to this list; hence there is none, and only the stub is to be freed.
        // SAFETY: made by `Box::into_raw` in `new`; nobody else has the list.
        drop(unsafe { Box::from_raw(self.stub) });
    }
}
