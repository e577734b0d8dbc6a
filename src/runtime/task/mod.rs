//! The task cell: one allocation that holds a task from spawn to join, and the protocol by which threads share it.
//!
//! ```text
//! ┌ Header ───────────────────────────────────────────────┐┌ Stage, then Output ───────────────────┐
//! │ shared:  remote word · references · join word · link  ││ Start(closure) ─▶ Future ─▶ Ok or Err │
//! │ owner's: life, ready, aborted, waiters, queue links   ││        └────────────┴─▶ Empty ──┘     │
//! │ fixed:   vtable, mailbox, owner, id, label, waker     │└───────────────────────────────────────┘
//! └───────────────────────────────────────────────────────┘
//! ```
//!
//! There are two kinds. A *pinned* task belongs to one worker, its *owner*, for life; this text is about it, up to the section
//! on the other kind, *stealable* tasks, which share the cell but are polled by any worker. The owner polls a pinned task, and
//! only the owner ever touches the future. Everybody else (wakers on other threads, join and abort handles) sees the header's
//! shared half. The owner's half is plain memory: on the paths that run a million times a second (wake here, poll, an operation
//! that waits) there is not one atomic read-modify-write.
//!
//! | file | holds |
//! |---|---|
//! | [`state`] | the header and the transitions of its words |
//! | [`raw`] | the cell with its future, the vtable, counted references, [`TaskRef`] |
//! | [`waker`] | the [`Waker`](std::task::Waker) and the [`Waiter`](crate::io::driver::waiter::Waiter) over a header |
//! | [`join`] | [`JoinHandle`], [`AbortHandle`], [`JoinError`] |
//! | [`finished`] | the list in which the tasks of a set stand when they have ended |
//! | [`label`] | [`Label`]: what a task is known by besides its number |
//! | [`remote`] | the intrusive list by which other threads hand tasks to the owner |
//! | [`ready`] | the queue of tasks that are ready |
//! | [`cells`] | memory of tasks that are no more, for the next |
//! | [`executor`] | [`Executor`]: the owner's task list and ready queue, and everything it does with a task |
//!
//! # A task's life, as its owner sees it
//!
//! ```text
//!              TaskRef dropped, or worker closed: closure dropped there, Err(cancelled)
//!           ┌────────────────────────────────────────────────────────────▶ (complete, never the owner's)
//!        Fresh ──adopt──▶ Unpolled ──────────┐
//!                 spawn ──▶ │ first poll:    ├── completed, panicked, aborted, closed ──────▶ Done
//!                           ▼ Pending        │                                                 │
//!                         Linked ────────────┘                              out of the queue, no waiters
//!                           │  ▲ poll: Pending                                                 ▼
//!                      wake ▼  │                                                owner's reference released
//!                    ready queue ─▶ polled
//! ```
//!
//! An unfinished task is *Unpolled*, in the ready queue or in its first poll, and then *Linked*: in the owner's task list. So a task that
//! ends in its first poll is never put there. *Ready* is a flag beside that and means: in the ready
//! queue. It is cleared just before the poll, so a task that is woken while it is polled goes to the back of the queue
//! and needs no third state. A task that is Done may still sit in the queue; it is skipped there.
//!
//! A task from another thread is *Fresh*: a closure that is `Send`, not yet a future. It arrives by the remote list,
//! as a [`TaskRef`] in a message, or through a stealable queue (then its owner is whoever adopts it, and only from then on has it
//! a mailbox), is adopted (made ready), and the closure is called at the first poll. Until
//! then it can be dropped on any thread.
//!
//! # Who keeps the memory
//!
//! The header is freed, on whichever thread that happens, when the atomic count falls to zero. Counted are:
//!
//! - each `Waker`, `JoinHandle`, `AbortHandle`, `TaskRef`;
//! - the node in the remote list, while it is there;
//! - for a stealable task, **one** that goes with the right to run it, and one for the list of its home;
//! - **one** for the owner, for as long as the task is unfinished *or* ready *or* has waiters. All three are plain
//!   words. Once all are false none can become true again (only an unfinished task is queued, and waiters are made during a
//!   poll), so the owner gives its reference back exactly once: after each change that makes one of them false it asks
//!   whether that was the last.
//!
//! The owner buys references in stock. A task that it spawned is born with many, all counted in the atomic count and all the owner's; how
//! many of them it still has is a plain word. As long as it has any, a reference that is made on the owner's thread comes
//! from the stock, and one that is dropped there, wherever it was made, goes back to it: only the plain word changes. What
//! the owner gives back in the end is the whole stock, in one instruction. So a waker that is cloned, woken and dropped on its own
//! worker costs no atomic read-modify-write, and neither does a handle.
//!
//! By then there is only the header left: the owner drops the future when it completes the task, and an output is dropped at
//! completion (handle gone) or by the handle. So a foreign thread that frees a header destroys nothing that belongs to a worker. What
//! it may meet is made for any thread: the task's `tracing` span, if there are such, whose end its subscriber is told; and a join
//! waker that was left in its slot because the `clone` of the one that should have replaced it panicked.
//!
//! Memory that is given up while the owner is entered is mostly not freed but kept, with its header, for the tasks that it spawns next (see
//! [`cells`]).
//!
//! # Waking
//!
//! *On the owner* (the header names as its owner the mailbox of the thread-local [`Executor`], as it does from adoption on): if the
//! task is unfinished and not ready, it is marked ready and pushed on the queue. A few plain stores.
//!
//! *Elsewhere*, with the remote word's bits QUEUED, ABORT, FRESH:
//!
//! ```text
//!   waker                                             owner
//! w1  write what the task is to see                o1  take the node out of the list
//! w2  before := fetch_or(QUEUED)                   o2  before := fetch_and(!QUEUED)
//!     was QUEUED? ─▶ done                          o3  ABORT in before? remember it
//! w3  references + 1, push the node                o4  ready; references − 1
//! w4  ring the doorbell                            o5  poll
//! ```
//!
//! The task is in the list at most once, because only the one who turns QUEUED on pushes, and it is turned off only after
//! the node has left the list. No wake is lost: w2 and o2 are read-modify-writes of one word. If w2 finds QUEUED, then o2
//! is still to come, reads from w2 (or later in its release sequence), and the poll o5 after it sees w1. If it does not, the node is
//! pushed and o1 finds it. Hence QUEUED is turned off *before* the poll; after it, a wake that came during the poll would
//! be forgotten. Abort is the same with w2 setting ABORT in the same instruction. `wake` is wait-free: one fetch_or, one
//! add, one swap, one store, and the ring; it never allocates, never spins, and runs nobody else's code as long as the
//! worker is open.
//!
//! A Fresh task has QUEUED on from birth: it will be made ready anyway, so all that abort has to do is leave its bit. For the
//! same reason nobody looks for its mailbox before it was adopted.
//!
//! # Stealable tasks
//!
//! A stealable task's future is `Send`, and any worker may poll it, one at a time. Its whole state is in the remote word, of
//! QUEUED, RUNNING and ABORT:
//!
//! ```text
//!                     wake: QUEUED on, we push                      begin: QUEUED off, RUNNING on
//!     born ─▶ queued ◀─────────────────────── idle ◀──── pending ────┐
//!               └──────────────────────────────────────────▶ running ┤
//!               ▲                                                     ├─▶ finished: RUNNING stays on for ever
//!               └───────────── pending, and QUEUED is on: we push ────┘
//! ```
//!
//! A wake or an abort turns QUEUED on, and *who turns it on while RUNNING is off pushes* the task on a stealable queue (see
//! [`spawner`](super::spawner)). While a poll is under way the wake leaves the bit, and the runner pushes when it turns RUNNING
//! off, by the same instruction that would tell it of the bit. So a task is in at most one queue, only one worker can take it
//! out of there, and that one alone turns RUNNING on. A finished task is one whose run has no end, so nobody pushes it any
//! more. An abort is found by the next `begin`, which then drops the future instead of polling it.
//!
//! The **right to run** a task is a [`TaskRef`] in a queue, and a local variable of the runner. The reference that goes with it is counted
//! once: while the task is idle it is the word's, and whoever turns QUEUED on takes it from there. So a wake and a poll change no count.
//!
//! The **home** of a stealable task is the worker whose poll was the first to be pending. Its mailbox is written then, before
//! RUNNING is turned off, and nobody reads it before: until then a wake has nothing to push. The home keeps the task in its
//! list, so that it is found at the end; a wake from a thread that is no worker of the runtime goes to its queue. A worker that
//! finishes the task elsewhere gives it back by the home's remote list, and rings: there is only a header left, but the push may
//! have left a gap that somebody else's wake fell behind.
//! How the last of them are found at the end is told in [`spawner`](super::spawner).
//!
//! # Closing
//!
//! [`Executor::close`] drops every future, on this thread. A push from elsewhere after that must neither be polled nor leak: the
//! node holds a reference to a header that holds the mailbox that holds the list. The pusher learns of the close by the
//! very instruction that rings (see [`doorbell`](crate::runtime::mesh::doorbell)) and then empties the list itself; see
//! [`mailbox`](crate::runtime::mesh::mailbox). A Fresh task found there is cancelled, any other node only gives back its reference.
//!
//! # Joining
//!
//! The join word has the bits HANDLE (there is a `JoinHandle`), WAKER (the slot holds the waker of whoever awaits it), COMPLETE (set by the
//! owner, once, in place of the others) and TAKEN (set by the handle, beside COMPLETE, when it takes the output). Only the owner and
//! the one handle write it, and after COMPLETE only the handle does. Each change before that is one read-modify-write whose answer says
//! who owns what from there on:
//!
//! ```text
//!   the waker slot belongs to     the handle while WAKER is off; to nobody while it is on;
//!                                 to whoever turns it off: the handle by retract, or the owner by COMPLETE
//!   the output belongs to         the owner until COMPLETE; then to the handle if HANDLE was on, else to the owner,
//!                                 which drops it
//! ```
//!
//! - *wait*: write the slot, turn WAKER on. Was COMPLETE on? Then the owner never saw WAKER; the slot is still the handle's,
//!   and the output is there.
//! - *wait again*: turn WAKER off first. Was COMPLETE on? Then the owner has the slot; take the output. The waker that is
//!   there may do.
//! - *drop*: turn HANDLE and WAKER off, unless COMPLETE is on. Was it? Then the output is the handle's to drop. Else a waker in the slot
//!   is, and the output will be the owner's.
//! - *complete*: write the output, turn COMPLETE on. Was WAKER on? Take the slot and wake. Was HANDLE off? Drop the output.
//!
//! Who waits is mostly another task of the same worker. If the ready queue is empty then that one is next, and it is polled without having
//! been there ([`Executor::run`]).
//!
//! On the owner's thread nothing completes between two lines of the handle's. So there it changes the word by plain stores: it replaces the
//! waker in the slot with WAKER on, and stores HANDLE and WAKER.
//!
//! # User code
//!
//! Polls, destructors and wakers are other people's code. They may spawn, wake, abort, drop handles and panic. So nothing
//! is borrowed while they run (all of the owner's words are `Cell`s, each list operation is complete before and after), and each
//! such call is caught where it is made: a panic becomes the task's [`JoinError`]; one that has no task to go to (a
//! detached output's destructor, a join waker) ends there. A panic payload may itself panic when it is dropped; then
//! *its* payload is leaked, since that game has no other end.

mod cells;
mod executor;
mod finished;
mod join;
mod label;
mod raw;
mod ready;
mod remote;
mod state;
mod waker;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod random_tests;
#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(not(loom))]
pub(in crate::runtime) use executor::AbortOnUnwind;
#[cfg(not(loom))]
pub(crate) use executor::Entered;
pub(crate) use executor::Executor;
pub(crate) use finished::Finished;
#[cfg(not(loom))]
pub(crate) use join::Aborting;
pub use join::{AbortHandle, JoinError, JoinHandle, SendRefused};
pub use label::Class;
pub(crate) use label::Label;
pub(in crate::runtime) use raw::Counted;
pub(crate) use raw::TaskRef;
pub(in crate::runtime) use remote::RemoteList;
pub use state::TaskId;
#[cfg(not(loom))]
pub(in crate::runtime) use waker::PolledThere;
pub use waker::{id, name};
