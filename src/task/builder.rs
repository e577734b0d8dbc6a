//! What can be said of a task when it is spawned: its name, and its class.
//!
//! Where a task runs is said by the method that spawns it, which are the same here as beside this module. What is said of it becomes
//! its `Label`, together with the place of the call, and goes into the header of its one allocation: a name is kept behind a pointer,
//! which a task without one leaves empty. Errors, dumps, stall reports and spans read it there.

use std::borrow::Cow;
use std::future::Future;

use super::{BlockingHandle, JoinHandle};
use crate::runtime::WorkerId;
use crate::runtime::context::{Context, spawn_here};
use crate::runtime::task::{Class, Label};

/// Spawns a task with more said of it than where it runs: a name, which errors and dumps then show beside its number.
///
/// A task without a name does not pay for the possibility; one with a name pays for keeping it.
///
/// ```
/// use veloq::task::Builder;
///
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let task = Builder::new().name("compaction").spawn_local(async { panic!("the disk is full") });
/// assert_eq!(task.name(), Some("compaction"));
/// let error = task.await.map(|()| ()).expect_err("it panics");
/// assert!(error.to_string().contains(r#""compaction", spawned at "#));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is spawned until one of the spawning methods is called"]
pub struct Builder {
    name: Option<Cow<'static, str>>,
    class: Option<Class>,
}

impl Builder {
    /// A builder of tasks of which nothing is said.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// What the task is called: by [`JoinHandle::name`], [`JoinError`](super::JoinError) and [`name`](super::name). Names need
    /// not differ.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Builder {
        self.name = Some(name.into());
        self
    }

    /// Whether the task is foreground or background work.
    ///
    /// By default, `spawn_local` makes a task of the class of the task that calls it, and everything else makes a foreground
    /// task: what comes from another worker is something that somebody there waits for. Classes are for tasks that stay on a
    /// worker; one that may be stolen whenever it is ready is always foreground.
    ///
    /// ```
    /// use veloq::task::{Builder, Class, yield_now};
    ///
    /// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
    /// let scrubbing = Builder::new().class(Class::Background).spawn_local(async {
    ///     for _block in 0..1_000 {
    ///         // A millisecond of work; then whoever serves requests comes first.
    ///         yield_now().await;
    ///     }
    /// });
    /// # scrubbing.await.expect("no panic");
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn class(mut self, class: Class) -> Builder {
        self.class = Some(class);
        self
    }

    /// Runs a future here; see [`spawn_local`](super::spawn_local).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn spawn_local<F: Future + 'static>(self, future: F) -> JoinHandle<F::Output> {
        spawn_here(future, self.label())
    }

    /// Runs `work` on a worker; see [`spawn_to`](super::spawn_to).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread, or there is no such worker.
    #[track_caller]
    pub fn spawn_to<F, Fut>(self, worker: WorkerId, work: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        Context::current().spawn_to_as(self.label(), worker, work)
    }

    /// Runs `work`, which may block, on a thread kept for that; see [`spawn_blocking`](super::spawn_blocking).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn spawn_blocking<F, T>(self, work: F) -> BlockingHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        BlockingHandle::start(&Context::current().shared, self.label(), work)
    }

    /// Runs a future wherever there is time for it; see [`spawn`](super::spawn()).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Context::current().spawn(self.label(), future)
    }

    /// Runs `work` on a worker that has time for it; see [`spawn_pinned`](super::spawn_pinned).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn spawn_pinned<F, Fut>(self, work: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        Context::current().spawn_pinned(self.label(), work)
    }

    #[track_caller]
    fn label(self) -> Label {
        let label = self.name.into_iter().fold(Label::here(), Label::named);
        self.class.into_iter().fold(label, Label::of_class)
    }
}
