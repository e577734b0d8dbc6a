//! Where a task goes.
//!
//! | call | takes | runs |
//! |---|---|---|
//! | [`spawn_local`] | any `'static` future | here |
//! | [`spawn_to`] | a `Send` closure; its future need not be `Send` | there |
//! | [`spawn_pinned`] | the same | where there is time for it; once it has started, it stays |
//! | [`spawn`] | a `Send` future | where there is time for it, whenever it is ready |
//! | [`on_every_worker`] | a `Send` closure that can be called on each worker | everywhere |

use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::Poll;

use super::JoinHandle;
use crate::runtime::WorkerId;
use crate::runtime::context::{Context, spawn_here};
use crate::runtime::mesh::links::RoomToSend;
use crate::runtime::task::{Aborting, Label};

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
    spawn_here(future, Label::here())
}

/// Runs `work` on another worker (or this one): the closure is called there, and the future that it makes stays there. So
/// the future may hold what the closure did not bring, as `Rc`s and sockets.
///
/// The message goes out at the end of this turn. A worker that is too slow to take its messages is felt here: when its
/// ring and this worker's outbox are full (5,120 messages), the closure is dropped and the handle answers with a
/// [refusal](super::JoinError::is_refused) whose source is a [`SendRefused`](super::SendRefused).
/// [`Sharded::on`](crate::runtime::Sharded::on) waits for room instead.
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

/// Runs a future on whichever worker has time for it. It starts on the less busy of two workers drawn at random, and whenever
/// it is ready and its worker is not there to poll it, an idle one takes it over. For computations, and for waiting on others' answers.
///
/// Between two polls the future may move, so it must be `Send`; it is polled by one worker at a time, and dropped on a worker. A task that
/// was started and not finished when the runtime ends is dropped by a worker; one that never started, possibly by whoever spawned it.
///
/// **Sockets, files and what they return while they work are not `Send`:** an operation belongs to the ring of one worker,
/// and so does all that holds it. A future that does I/O goes by another call:
///
/// | the task | call |
/// |---|---|
/// | has sockets or files already | [`spawn_local`]: it stays where they are |
/// | opens them itself, anywhere | [`spawn_pinned`]: it may travel until it starts |
/// | opens them itself, on a certain worker | [`spawn_to`] |
///
/// Timers, channels, [`JoinHandle`]s and [`CancelToken`](super::CancelToken)s are `Send` and move with the task.
///
/// ```
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// let sums: Vec<_> = (0..4u64)
///     .map(|part| veloq::spawn(async move { (part * 1000..(part + 1) * 1000).sum::<u64>() }))
///     .collect();
/// let mut total = 0;
/// for sum in sums {
///     total += sum.await.expect("it does not panic");
/// }
/// assert_eq!(total, 7_998_000);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// This does not compile, since a file that one worker has opened would be read by another:
///
/// ```compile_fail,E0277
/// async fn length(file: veloq::fs::File) -> std::io::Result<u64> {
///     Ok(file.metadata().await?.len())
/// }
/// # async fn f(file: veloq::fs::File) {
/// veloq::spawn(length(file));
/// # }
/// ```
///
/// # Panics
///
/// If no worker runs on this thread; [`Handle::spawn`](crate::runtime::Handle::spawn) is for other threads.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Context::current().spawn(Label::here(), future)
}

/// Runs `work` on whichever worker has time for it: the closure may travel until it is called, and the future that it makes
/// stays on the worker that called it. So the future may do I/O and hold `Rc`s, if it makes them itself.
///
/// ```
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("hello");
/// let written = veloq::spawn_pinned(async move || {
///     let file = veloq::fs::File::create(path).await?;
///     file.write_at(Vec::from("hello"), 0).await.0
/// });
/// assert_eq!(written.await??, 5);
/// # Ok::<(), std::io::Error>(())
/// # })?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If no worker runs on this thread; [`Handle::spawn_pinned`](crate::runtime::Handle::spawn_pinned) is for other threads.
#[track_caller]
pub fn spawn_pinned<F, Fut>(work: F) -> JoinHandle<Fut::Output>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    Context::current().spawn_pinned(Label::here(), work)
}

/// Runs `work` on every worker, this one included, and waits for all. The first error is returned at once, and the
/// others are aborted; so are all of them when this future is dropped. Nothing is sent before it is polled, and a worker for
/// which too many messages wait is waited for.
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
    let (label, workers) = (Label::here(), Context::current().shared.workers());
    async move {
        let mut calls: Vec<Aborting<Result<(), E>>> = Vec::with_capacity(workers);
        for worker in (0..workers).map(WorkerId::new) {
            RoomToSend::new(worker).await;
            let work = work.clone();
            let call = Context::current().spawn_to_as(label.clone(), worker, async move || work().await);
            calls.push(Aborting(call));
        }
        first_error_of(calls).await
    }
}

/// Waits for all calls, or for the first that fails.
fn first_error_of<E>(mut calls: Vec<Aborting<Result<(), E>>>) -> impl Future<Output = Result<(), E>> {
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

/// What a stealable task cannot hold, each beside the same task placed where it can be held: so that it is refused for
/// that reason alone.
///
/// A stream:
///
/// ```
/// # async fn program(stream: veloq::net::TcpStream) {
/// veloq::spawn_local(async move { stream.recv().await.map(drop) });
/// # }
/// ```
///
/// ```compile_fail,E0277
/// # async fn program(stream: veloq::net::TcpStream) {
/// veloq::spawn(async move { stream.recv().await.map(drop) });
/// # }
/// ```
///
/// A listener that it made itself, across an await:
///
/// ```
/// # async fn program() {
/// veloq::spawn_pinned(async move || {
///     let listener = veloq::net::TcpListener::bind("127.0.0.1:0").await?;
///     listener.accept().await.map(drop)
/// });
/// # }
/// ```
///
/// ```compile_fail,E0277
/// # async fn program() {
/// veloq::spawn(async move {
///     let listener = veloq::net::TcpListener::bind("127.0.0.1:0").await?;
///     listener.accept().await.map(drop)
/// });
/// # }
/// ```
///
/// An operation, in flight or not:
///
/// ```
/// # async fn program(read: veloq::fs::ReadAt<Vec<u8>>) {
/// veloq::spawn_local(async move { read.await.0.map(drop) });
/// # }
/// ```
///
/// ```compile_fail,E0277
/// # async fn program(read: veloq::fs::ReadAt<Vec<u8>>) {
/// veloq::spawn(async move { read.await.0.map(drop) });
/// # }
/// ```
///
/// A socket for datagrams, though only to drop it:
///
/// ```
/// # async fn program(socket: veloq::net::UdpSocket) {
/// veloq::spawn_local(async move { drop(socket) });
/// # }
/// ```
///
/// ```compile_fail,E0277
/// # async fn program(socket: veloq::net::UdpSocket) {
/// veloq::spawn(async move { drop(socket) });
/// # }
/// ```
///
/// What it can hold: buffers, handles, timers, channels.
///
/// ```
/// # async fn program(buf: veloq::io::buf::FixedBuf, other: veloq::task::JoinHandle<u8>) {
/// let (sender, receiver) = veloq::mesh::channel::<u8>(16);
/// veloq::spawn(async move {
///     veloq::time::sleep(std::time::Duration::from_millis(1)).await;
///     drop((buf, other.await, sender, receiver));
/// });
/// # }
/// ```
#[cfg(doctest)]
struct NotStealable;
