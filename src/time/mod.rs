//! Time: waiting for it, limiting others by it, and telling it.
//!
//! - [`sleep()`] and [`sleep_until`] wait.
//! - [`timeout()`] and [`timeout_at`] give a future so long and no longer; an operation's
//!   [`deadline`](crate::io::Op::deadline) does so and gives its buffer back.
//! - [`interval()`] and [`interval_at`] tick.
//! - [`Instant`] is a point in the time of the workers, which a simulation may run faster or slower than the
//!   wall's.
//!
//! **How exact.** Nothing ends early. What waits is woken in the first turn of its worker after the deadline,
//! with a resolution of 65.5 µs; a worker that has nothing else to do sleeps until then. Deadlines more than
//! 584 years away never come.
//!
//! **What it costs.** No system call and no allocation: each worker keeps its deadlines on a wheel, where one
//! is added and taken away at a cost that does not depend on how many there are.
//!
//! **Where it works.** On a worker: inside [`Runtime::block_on`](crate::runtime::Runtime::block_on) or a
//! spawned task. Elsewhere these functions panic. All futures here are `Send` (as far as what they wrap is):
//! one that was armed on one worker can be polled or dropped on another.

mod deadline;
mod instant;
mod interval;
mod sleep;
mod timeout;

pub use deadline::Deadline;
pub use instant::Instant;
pub use interval::{Interval, MissedTickBehavior, interval, interval_at};
pub use sleep::{Sleep, sleep, sleep_until};
pub use timeout::{Elapsed, Timeout, timeout, timeout_at};
