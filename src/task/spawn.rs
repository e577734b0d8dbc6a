//! Where a task goes.
//!
//! | call | takes | runs |
//! |---|---|---|
//! | [`spawn_local`] | any `'static` future | here |
//! | [`spawn_to`] | a `Send` closure; its future need not be `Send` | there |
//! | [`on_every_worker`] | a `Send` closure that can be called on each worker | everywhere |

use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::Poll;

use super::JoinHandle;
use crate::runtime::WorkerId;
use crate::runtime::context::Context;

/// Runs a future as a task of this worker, where it stays. It may hold `Rc`s and do I/O.
///
/// Dropping the handle detaches the task; [`JoinHandle::abort`] cancels it.
///
/// ```
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let task = veloq::spawn_local(async { 6 * 7 });
/// assert_eq!(task.await.expect("the task does not panic"), 42);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If no worker runs on this thread.
#[track_caller]
pub fn spawn_local<F: Future + 'static>(future: F) -> JoinHandle<F::Output> {
    Context::current().spawn_local(future)
}

/// Runs `work` on another worker (or this one): the closure is called there, and the future that it makes stays there. So
/// the future may hold what the closure did not bring, as `Rc`s and sockets.
///
/// The message goes out at the end of this turn. A worker that is too slow to take its messages is felt here: when its
/// ring and this worker's outbox are full (5,120 messages), the closure is dropped and the handle answers with a
/// cancelled [`JoinError`](super::JoinError). [`Sharded::on`](crate::runtime::Sharded::on) waits for room instead.
///
/// ```
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// let other = veloq::workers().last().expect("there is at least one worker");
/// let id = veloq::spawn_to(other, async move || veloq::current_worker()).await;
/// assert_eq!(id.expect("the task does not panic"), other);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If no worker runs on this thread, or there is no such worker.
#[track_caller]
pub fn spawn_to<F, Fut>(worker: WorkerId, work: F) -> JoinHandle<Fut::Output>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    Context::current().spawn_to(worker, work)
}

/// Runs `work` on every worker, this one included, and waits for all. The first error is returned at once, and the
/// others are aborted; so are all of them when this future is dropped.
///
/// ```
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// veloq::on_every_worker(async || {
///     println!("{} is here", veloq::current_worker());
///     Ok::<(), std::io::Error>(())
/// })
/// .await
/// # })?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// The first that a worker's call returned.
///
/// # Panics
///
/// If a worker's call panics, with its payload; if no worker runs on this thread.
#[track_caller]
pub fn on_every_worker<F, E>(work: F) -> impl Future<Output = Result<(), E>>
where
    F: AsyncFn() -> Result<(), E> + Clone + Send + 'static,
    E: Send + 'static,
{
    let workers = Context::current().shared.workers();
    let mut calls: Vec<Aborting<Result<(), E>>> = (0..workers)
        .map(|index| {
            let work = work.clone();
            Aborting(spawn_to(WorkerId::new(index), async move || work().await))
        })
        .collect();
    poll_fn(move |cx| {
        let mut pending = false;
        let mut first_error = None;
        calls.retain_mut(|call| match Pin::new(&mut call.0).poll(cx) {
            Poll::Pending => {
                pending = true;
                true
            }
            Poll::Ready(result) => {
                match result {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => first_error = first_error.take().or(Some(Err(error))),
                    Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                    // Cancelled: the runtime is ending, and so is the task that waits here.
                    Err(_) => {}
                }
                false
            }
        });
        match first_error {
            Some(error) => Poll::Ready(error),
            None if pending => Poll::Pending,
            None => Poll::Ready(Ok(())),
        }
    })
}

/// Aborts its task when it is dropped.
struct Aborting<T>(JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
