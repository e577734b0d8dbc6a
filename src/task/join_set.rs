//! Many tasks, of which one awaits whichever ends next.
//!
//! The tasks stand in a vector with free places between; a task that ends puts its place on a list (`runtime::task::finished`),
//! and the set takes it from there. So each end costs the same, however many tasks there are, and they come in the order in which
//! they ended.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::{AbortHandle, JoinError, JoinHandle};
use crate::runtime::WorkerId;
use crate::runtime::task::Finished;

/// Tasks that belong together: awaited in the order in which they end, and aborted together. On whichever workers they run.
///
/// Dropping the set aborts its tasks. They are gone a little later, each on its worker; [`shutdown`](JoinSet::shutdown) waits
/// for that.
///
/// ```
/// use veloq::task::JoinSet;
///
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// let mut squares = JoinSet::new();
/// for worker in veloq::workers() {
///     squares.spawn_to(worker, async move || worker.index() * worker.index());
/// }
/// let mut sum = 0;
/// while let Some(square) = squares.join_next().await {
///     sum += square?;
/// }
/// assert_eq!(sum, 1);
/// # Ok::<(), std::io::Error>(())
/// # })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct JoinSet<T> {
    places: Vec<Place<T>>,
    /// The free place to be taken next, if it is not beyond the end.
    free: usize,
    len: usize,
    finished: Finished,
    /// Places of tasks that have ended, oldest first: what was taken from `finished` and not yet asked for.
    ended: VecDeque<usize>,
}

enum Place<T> {
    Taken(JoinHandle<T>),
    /// Which one is free after this one.
    Free(usize),
}

impl<T: 'static> JoinSet<T> {
    /// A set without tasks.
    #[must_use]
    pub fn new() -> JoinSet<T> {
        JoinSet { places: Vec::new(), free: 0, len: 0, finished: Finished::new(), ended: VecDeque::new() }
    }

    /// Runs a future as a task of this worker; see [`spawn_local`](super::spawn_local).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn spawn_local<F: Future<Output = T> + 'static>(&mut self, future: F) -> AbortHandle {
        self.insert(super::spawn_local(future))
    }

    /// Runs `work` on a worker; see [`spawn_to`](super::spawn_to).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread, or there is no such worker.
    #[track_caller]
    pub fn spawn_to<F, Fut>(&mut self, worker: WorkerId, work: F) -> AbortHandle
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send,
    {
        self.insert(super::spawn_to(worker, work))
    }

    /// Runs a future wherever there is time for it; see [`spawn`](super::spawn()).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn spawn<F>(&mut self, future: F) -> AbortHandle
    where
        F: Future<Output = T> + Send + 'static,
        T: Send,
    {
        self.insert(super::spawn(future))
    }

    /// Runs `work` on a worker that has time for it; see [`spawn_pinned`](super::spawn_pinned).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub fn spawn_pinned<F, Fut>(&mut self, work: F) -> AbortHandle
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send,
    {
        self.insert(super::spawn_pinned(work))
    }

    /// Takes a task in that was spawned in some other way: by a [`Builder`](super::Builder), say, with a name.
    ///
    /// ```
    /// # use veloq::task::{Builder, JoinSet};
    /// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
    /// let mut set = JoinSet::new();
    /// set.insert(Builder::new().name("answer").spawn_local(async { 42 }));
    /// assert_eq!(set.join_next().await.transpose()?, Some(42));
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn insert(&mut self, mut task: JoinHandle<T>) -> AbortHandle {
        let abort = task.abort_handle();
        let place = self.free;
        task.notify(&self.finished.entry(place));
        match self.places.get_mut(place) {
            Some(free) => match mem::replace(free, Place::Taken(task)) {
                Place::Free(next) => self.free = next,
                Place::Taken(_) => unreachable!("a place that is free is not taken"),
            },
            None => {
                self.places.push(Place::Taken(task));
                self.free = self.places.len();
            }
        }
        self.len += 1;
        abort
    }

    /// Waits for the next task that ends, and yields what it returned, or why it did not. `None` if no task is left.
    ///
    /// Dropping the future loses nothing.
    pub async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        poll_fn(|cx| self.poll_join_next(cx)).await
    }

    /// As [`join_next`](JoinSet::join_next), for those who poll by themselves. Only the last waker is woken.
    pub fn poll_join_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, JoinError>>> {
        if self.len == 0 {
            return Poll::Ready(None);
        }
        if self.ended.is_empty() {
            std::task::ready!(self.finished.poll(cx, &mut self.ended));
        }
        Poll::Ready(self.pop())
    }

    /// What a task returned that has ended already, without waiting.
    pub fn try_join_next(&mut self) -> Option<Result<T, JoinError>> {
        if self.ended.is_empty() {
            self.finished.take(&mut self.ended);
        }
        self.pop()
    }

    /// Takes out the task that ended first, if one is known to have.
    fn pop(&mut self) -> Option<Result<T, JoinError>> {
        let place = self.ended.pop_front()?;
        let Place::Taken(mut task) = mem::replace(&mut self.places[place], Place::Free(self.free)) else {
            unreachable!("a task keeps its place until its end was asked for");
        };
        self.free = place;
        self.len -= 1;
        match Pin::new(&mut task).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => unreachable!("a join waker is woken when the task is complete"),
        }
    }

    /// Aborts all tasks. They stay in the set, and [`join_next`](JoinSet::join_next) tells of each what came of it: one that ended
    /// before the abort reached it has returned something.
    pub fn abort_all(&mut self) {
        for task in self.tasks() {
            task.abort();
        }
    }

    /// Aborts all tasks and waits until they are gone: each future has been dropped on its worker then.
    pub async fn shutdown(&mut self) {
        self.abort_all();
        while self.join_next().await.is_some() {}
    }

    /// Lets all tasks go on by themselves, and empties the set.
    pub fn detach_all(&mut self) {
        // Their entries may yet come, so they have a list of their own, which goes with them.
        self.finished = Finished::new();
        self.ended.clear();
        (self.free, self.len) = (0, 0);
        // Last of all: what has ended is dropped with them, and that is the program's code.
        self.places.clear();
    }

    /// How many tasks are in the set, those included that have ended and were not asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the set has no tasks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> JoinSet<T> {
    fn tasks(&self) -> impl Iterator<Item = &JoinHandle<T>> {
        self.places.iter().filter_map(|place| match place {
            Place::Taken(task) => Some(task),
            Place::Free(_) => None,
        })
    }
}

impl<T: 'static> Default for JoinSet<T> {
    fn default() -> JoinSet<T> {
        JoinSet::new()
    }
}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        for task in self.tasks() {
            task.abort();
        }
    }
}

impl<T> fmt::Debug for JoinSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinSet").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Panics when it is dropped.
    struct Fragile;
    impl Drop for Fragile {
        fn drop(&mut self) {
            panic!("a destructor of the program's");
        }
    }

    // A set that is half emptied would wait for tasks that it has not any more.
    #[veloq::test]
    async fn an_output_that_panics_when_it_is_dropped_leaves_an_empty_set() {
        let mut set = JoinSet::new();
        set.spawn_local(async { Some(Fragile) });
        while !set.tasks().all(JoinHandle::is_finished) {
            crate::task::yield_now().await;
        }
        assert!(catch_unwind(AssertUnwindSafe(|| set.detach_all())).is_err(), "void: nothing panicked");
        assert!(set.is_empty() && set.join_next().await.is_none());
        set.spawn_local(async { None });
        assert!(set.join_next().await.is_some_and(|joined| joined.is_ok()));
    }
}
