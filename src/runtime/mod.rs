//! Workers, tasks, timers and the mesh: what makes a program of futures run on every core.
//!
//! A [`Runtime`] is made by a [`Builder`] and has one *worker* for each core. A worker has its own task queue, its own
//! driver and its own buffer pool, and shares with the others nothing but mailboxes. In reading order:
//!
//! | module | holds |
//! |---|---|
//! | `worker` | the turn: what a worker does, in which order, and how it ends |
//! | `spin` | whether a worker without work looks around before it sleeps |
//! | `context` | what code that runs on a worker can reach of it |
//! | `task` | the task cell: one allocation from spawn to join, and who may touch which part of it |
//! | `mesh` | rings, doorbells and mailboxes: how workers and other threads reach a worker |
//! | `placement` | on which CPU each worker runs |
//! | `spawner` | where a task goes that may run anywhere, and who steals it; the queue that thieves see |
//! | `policy` | the scheduler's decisions, as pure functions |
//! | `timer` | deadlines |
//! | `builder`, `runtime`, `handle` | starting and ending all workers together, and reaching them from elsewhere |
//! | `gate` | who is inside of what is to be closed |
//! | `task_local` | values that belong to a task |
//! | `blocking` | work that blocks, on threads of its own |
//! | `sharded` | a service with one instance on each worker |
//! | `metrics` | what each worker has done |
//! | `stall` | polls that take too long |
//! | `dump` | what every task waits for |
//! | `trace` | what is told to `tracing` |

#[cfg(not(loom))]
pub(crate) mod blocking;
#[cfg(not(loom))]
mod builder;
#[cfg(not(loom))]
pub(crate) mod context;
#[cfg(not(loom))]
mod dump;
#[cfg(not(loom))]
pub(crate) mod gate;
#[cfg(not(loom))]
mod handle;
#[cfg(not(loom))]
mod here;
pub(crate) mod mesh;
#[cfg(not(loom))]
mod metrics;
#[cfg(not(loom))]
mod placement;
pub(crate) mod policy;
#[cfg(not(loom))]
#[expect(clippy::module_inception, reason = "the file is named for the type it holds")]
mod runtime;
#[cfg(not(loom))]
mod sharded;
#[cfg(not(loom))]
pub(crate) mod shared;
pub(crate) mod spawner;
#[cfg(not(loom))]
mod spin;
#[cfg(not(loom))]
mod stall;
pub(crate) mod task;
#[cfg(not(loom))]
pub(crate) mod task_local;
#[cfg(all(test, target_os = "linux", not(loom)))]
mod tests;
pub(crate) mod timer;
#[cfg(not(loom))]
mod trace;
#[cfg(not(loom))]
mod worker;
mod worker_id;

#[cfg(not(loom))]
pub use crate::io::driver::ThreadPoolStats;
#[cfg(not(loom))]
pub use crate::io::driver::{DescriptorName, OperationState};
#[cfg(not(loom))]
pub use crate::os::Frame;
#[cfg(not(loom))]
pub use builder::{Builder, InvalidSetting};
#[cfg(not(loom))]
pub use dump::{Dump, OperationDump, TaskDump, TaskState, WorkerDump};
#[cfg(not(loom))]
pub use handle::Handle;
#[cfg(not(loom))]
pub use here::{alloc, alloc_async, capabilities, current_worker, workers};
#[cfg(not(loom))]
pub use metrics::{Metrics, WorkerMetrics};
#[cfg(not(loom))]
pub use placement::{Placement, PlacementError, Seat};
#[cfg(not(loom))]
pub use runtime::Runtime;
#[cfg(not(loom))]
pub use sharded::{CallError, Instance, Sharded, StopError, Unfinished};
#[cfg(not(loom))]
pub use stall::{StallReport, StalledTask};
#[cfg(not(loom))]
pub use worker_id::{WORKERS_MAX, WorkerId};
