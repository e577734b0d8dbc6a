//! Signals that ask the program to end.
//!
//! Any number of futures, on any workers, see each signal that comes after their first poll. From the first one on, the signal does not
//! end the process any more, even when no future waits: the handler stays, as with every library that handles signals.
//!
//! How a future learns of a signal differs: on Linux a handler may do next to nothing, and writes to an event that the future's worker
//! waits for; on Windows it runs on a thread of its own, and wakes the task.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(windows)]
use windows as system;

use std::io;

/// Waits for Ctrl-C (`SIGINT`; on Windows `CTRL_C_EVENT`).
///
/// ```no_run
/// # async fn serve() {}
/// #[veloq::main]
/// async fn main() -> std::io::Result<()> {
///     let server = veloq::spawn_local(serve());
///     veloq::signal::ctrl_c().await?;
///     server.abort();
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// What the kernel said if the handler or the event cannot be had.
pub async fn ctrl_c() -> io::Result<()> {
    system::interrupt().await
}

/// Waits for the request to end that service managers send (`SIGTERM`). On Windows: Ctrl-Break, or that the console is closed, the user
/// logs off or the machine is shut down; the program then has the few seconds that the system gives it.
///
/// # Errors
///
/// What the kernel said if the handler or the event cannot be had.
pub async fn terminate() -> io::Result<()> {
    system::terminate().await
}
