//! Veloq is an async runtime for programs that live from I/O: thread-per-core, shared-nothing, with completion I/O
//! (io_uring on Linux, IOCP on Windows).
//!
//! # Ten minutes of Veloq
//!
//! **A worker for each core.** A [`Runtime`] has one worker per CPU, each with its own task queue, its own ring to the
//! kernel and its own pool of buffers. They share nothing, so nothing is locked: a task that was spawned on a worker
//! stays there, and may hold `Rc`s, sockets and files.
//!
//! ```
//! #[veloq::main]
//! async fn main() -> std::io::Result<()> {
//!     veloq::on_every_worker(async || {
//!         println!("{} of {}", veloq::current_worker(), veloq::workers().len());
//!         Ok(())
//!     })
//!     .await
//! }
//! ```
//!
//! **Buffers are given and come back.** The kernel writes into memory while the program goes on, so an operation owns
//! its buffer from submission to completion and returns it with the result. Dropping an operation leaves the buffer with
//! the driver until the kernel has let go. [`alloc`] gives a buffer that the kernel knows already; a `Vec<u8>` does as
//! well.
//!
//! ```
//! # #[veloq::main]
//! # async fn main() -> std::io::Result<()> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("hello");
//! let file = veloq::fs::File::create(&path).await?;
//! let (written, buf) = file.write_at(Vec::from("hello"), 0).await;
//! assert_eq!(written?, 5);
//! assert_eq!(buf, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! **Four ways to place a task.** [`spawn_local`] runs a future here. [`spawn_to`] runs a closure's future on the worker
//! that is named; the closure travels, the future does not. [`spawn_pinned`] does the same where there is time for it.
//! [`spawn`] is for work that does no I/O: its future is `Send`, is placed where there is time, and moves to a worker that has
//! nothing to do. What they return can be awaited from anywhere. [`on_every_worker`] runs a closure on all, and a service with
//! one instance per worker is a [`Sharded`].
//!
//! **Nothing arrives for nobody.** A dropped `accept` loses no connection and a dropped `recv` no bytes: what had arrived
//! is kept with the socket, and is what the next call returns.
//!
//! **Everything is bounded, and says so.** Queues, rings, pools and operations in flight have a bound with a default and
//! a reason; at the bound there is back-pressure or a typed error. Where the kernel lacks something, the runtime does
//! without that one thing and reports it ([`Runtime::capabilities`]); where a limit leaves room for less, it takes less.
//!
//! # Where things are
//!
//! | module | for |
//! |---|---|
//! | [`net`] | TCP and UDP |
//! | [`fs`] | files |
//! | [`time`] | sleeping, timeouts, intervals |
//! | [`task`] | spawning, joining, cancelling |
//! | [`mesh`] | channels between workers |
//! | [`signal`] | Ctrl-C and SIGTERM |
//! | [`runtime`] | building a runtime; services on every worker; counters |
//! | [`io`] | buffers and pools; operations and drivers, for those who look beneath |
#![cfg_attr(
    windows,
    expect(
        dead_code,
        unused_imports,
        reason = "receive rings, registered memory and tokens as numbers are io_uring's"
    )
)]

#[cfg(not(loom))]
pub mod fs;
pub mod io;
pub mod mesh;
#[cfg(not(loom))]
pub mod net;
#[cfg(not(loom))]
mod os;
pub mod runtime;
#[cfg(not(loom))]
pub mod signal;
mod sync;
pub mod task;
#[cfg(not(loom))]
pub mod time;

#[cfg(not(loom))]
pub use runtime::{Runtime, Sharded, WorkerId, alloc, alloc_async, current_worker, workers};
#[cfg(not(loom))]
pub use task::{on_every_worker, spawn, spawn_blocking, spawn_local, spawn_pinned, spawn_to};
#[cfg(all(feature = "macros", not(loom)))]
pub use veloq_macros::{main, test};

// Unit tests name the crate as its users do: the macros expand to `::veloq`.
#[cfg(test)]
extern crate self as veloq;

/// The README's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
