//! Tasks: what runs on the workers, and how to wait for it or end it.
//!
//! A task is a future that a worker drives to its end. Spawning one gives a [`JoinHandle`], which is itself a future and
//! yields what the task returned, or a [`JoinError`] that says why it did not: a panic ends its task and nothing else.
//!
//! A task stays on the worker on which it was first polled; its future is polled and dropped there and nowhere else. So it may
//! hold an `Rc`, a socket or a file. Only what [`spawn()`] started may move: its future is `Send`, and one worker at a time
//! polls it. The handle may go anywhere, if what the task returns may.

#[cfg(not(loom))]
mod builder;
mod cancel;
#[cfg(not(loom))]
mod join_set;
#[cfg(not(loom))]
mod local;
#[cfg(not(loom))]
mod next_turn;
#[cfg(not(loom))]
mod spawn;
mod yield_now;

#[cfg(not(loom))]
pub use crate::io::driver::PoolRefused;
#[cfg(not(loom))]
pub use crate::runtime::blocking::{BlockingHandle, spawn_blocking};
#[cfg(not(loom))]
pub use crate::runtime::gate::{Closing, Gate, GateClosed, GatePass};
pub use crate::runtime::task::{AbortHandle, Class, JoinError, JoinHandle, SendRefused, TaskId, id, name};
#[cfg(not(loom))]
pub use crate::runtime::task_local::{NotInScope, TaskLocal, TaskScope};
#[cfg(not(loom))]
pub use builder::Builder;
pub use cancel::{CancelToken, Cancelled};
#[cfg(not(loom))]
pub use join_set::JoinSet;
#[cfg(not(loom))]
pub use next_turn::next_turn;
#[cfg(not(loom))]
pub use spawn::{on_every_worker, spawn, spawn_local, spawn_pinned, spawn_to};
pub use yield_now::yield_now;
