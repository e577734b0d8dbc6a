//! The mesh: how workers talk to each other without sharing anything.
//!
//! Workers share no queue and no lock. Each ordered pair of them has a [`ring`] of its own, with one thread
//! that pushes and one that pops, and a *doorbell* at the receiver's end that says which of its rings to look
//! into. The order of events:
//!
//! 1. The sender pushes into its ring for that receiver, as often as its turn gives it reason to, and
//!    publishes once.
//! 2. Then it rings: one bit in the receiver's doorbell, and a wake-up only if the receiver sleeps.
//! 3. The receiver's next turn takes the bits, and from each ring that has one what it holds, up to a bound; a ring with
//!    a rest comes first the next time.
//!
//! A ring is bounded. A value that does not fit comes back to its sender, who keeps it: a slow receiver is
//! felt where the work comes from, and nowhere else.
//!
//! That is how tasks travel ([`links`]). A program's own values travel by [`channel`]s, over the same rings, from task to
//! task: there a [`bell`] stands for the doorbell, and wakes a task. [`full`](mod@full) makes them for every pair of
//! workers; a [`reply`](mod@reply) is for one value.

pub(crate) mod bell;
pub(crate) mod channel;
pub(crate) mod doorbell;
#[cfg(not(loom))]
pub(crate) mod full;
#[cfg(not(loom))]
pub(crate) mod links;
pub(crate) mod mailbox;
pub(crate) mod reply;
pub(crate) mod ring;
pub(crate) mod room;

/// Messages that wait for one worker at most, of those that one other sends: what their ring and the outbox before it hold
/// ([`links`]).
pub(crate) const MESSAGES_MAX: usize = 5120;
