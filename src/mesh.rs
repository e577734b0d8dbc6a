//! Channels between workers: bounded, typed, without a lock.
//!
//! Tasks on different workers talk by sending values. [`channel`] makes a channel from one task to one other; [`full`] makes
//! one for every pair of workers, with one receiver for each worker; [`reply`] lets a question carry the way back.
//!
//! | call | gives |
//! |---|---|
//! | [`channel`] | a [`Sender`] and a [`Receiver`] |
//! | [`full`] | for every worker a [`Mesh`]: senders to all, one receiver from all |
//! | [`reply`] | a [`Reply`] to send along, an [`Answer`] to await |
//!
//! **Where they work.** Every end is `Send` if its values are, and is bound to no worker: it is made anywhere, moved to
//! where it is needed and awaited there, by a task that stays or one that may be stolen, on another runtime, or by an executor of
//! another make.
//!
//! **Back-pressure.** A channel has the room it was made with. [`Sender::send`] waits for room;
//! [`Sender::try_send`] gives the value back.
//!
//! **The end.** A dropped end is seen on the other side. Values that nobody takes are dropped when the receiver goes, by it or by
//! who was sending just then.
//!
//! To call into a service that has an instance on each worker there is [`Sharded`](crate::Sharded), which needs no channels.

pub use crate::runtime::mesh::channel::{Receiver, SendError, Sender, TryRecvError, TrySendError, channel};
#[cfg(not(loom))]
pub use crate::runtime::mesh::full::{Mesh, full};
pub use crate::runtime::mesh::reply::{Answer, Reply, Unanswered, reply};
