//! Threads for what a kernel can only do by blocking: resolving names, and whatever a program must call that blocks.
//!
//! The pool is elastic: a job that finds no idle thread starts one, up to a bound; a thread that has been idle for a while
//! ends. Beyond the bound jobs wait in a queue, in order; beyond the queue's bound they are refused with a typed error. A
//! job answers through an [`Answer`], a future that any task may await. Dropping the answer does not stop the job, only
//! nobody hears what came of it. A job that panics ends alone, and its panic is what the answer yields.
//!
//! ```text
//! submit ─▶ queue ─▶ idle thread, or a new one ─▶ job runs ─▶ Answer woken
//!              └──── shut_down: dropped, Answer yields `Closed` ────┘
//! ```
//!
//! One lock guards queue and counts; jobs run outside it. A thread counts as idle from the moment it waits until the
//! moment it has taken a job, and a job is left to the idle ones only while there are more of them than queued jobs, so
//! none waits for a thread that another job will get.

use std::any::Any;
use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

/// How large a pool may become.
#[derive(Clone, Debug)]
pub(crate) struct ThreadPoolConfig {
    /// Threads at most. What blocks here waits for disks and name servers, not for cores, so there are more of them than
    /// cores; each takes a stack (2 MiB of address space, of which little is touched).
    pub(crate) threads_max: usize,
    /// Jobs that wait for a thread at most.
    pub(crate) queue_max: usize,
    /// How long a thread stays with nothing to do.
    pub(crate) idle: Duration,
}

impl Default for ThreadPoolConfig {
    /// 64 threads, as the kernel's own pool for unbounded work has here; 4096 queued jobs, 64 for each thread; 10 s of
    /// idleness, so that a burst a second keeps its threads.
    fn default() -> ThreadPoolConfig {
        ThreadPoolConfig { threads_max: 64, queue_max: 4096, idle: Duration::from_secs(10) }
    }
}

/// A bounded, elastic pool of named threads.
pub(crate) struct ThreadPool {
    shared: Arc<Shared>,
}

struct Shared {
    config: ThreadPoolConfig,
    state: Mutex<State>,
    /// Told when a job is queued, and when the pool closes.
    work: Condvar,
    /// Told when a thread is about to end.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    idle: usize,
    /// Threads that have not begun to end.
    threads: usize,
    /// All that were started and not yet joined. Those that ended are joined when the next one starts.
    handles: Vec<JoinHandle<()>>,
    started: usize,
    closed: bool,
}

type Job = Box<dyn FnOnce() + Send>;

/// Why a pool refused a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolRefused {
    /// All threads are busy and the queue is full.
    Full {
        /// The queue's bound.
        queue_max: usize,
    },
    /// The pool has shut down.
    Closed,
}

impl fmt::Display for PoolRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolRefused::Full { queue_max } => {
                write!(f, "all threads for blocking work are busy, and {queue_max} jobs wait for one already")
            }
            PoolRefused::Closed => f.write_str("the threads for blocking work have shut down"),
        }
    }
}

impl Error for PoolRefused {}

impl From<PoolRefused> for io::Error {
    fn from(refused: PoolRefused) -> io::Error {
        let kind = match refused {
            PoolRefused::Full { .. } => io::ErrorKind::QuotaExceeded,
            PoolRefused::Closed => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, refused)
    }
}

impl ThreadPool {
    /// A pool without threads; they start with the jobs.
    pub(crate) fn new(config: ThreadPoolConfig) -> ThreadPool {
        ThreadPool {
            shared: Arc::new(Shared {
                config,
                state: Mutex::default(),
                work: Condvar::new(),
                ended: Condvar::new(),
            }),
        }
    }

    /// The pool of the process: for work that no runtime need wait for when it ends, as resolving names.
    pub(crate) fn of_process() -> &'static ThreadPool {
        static POOL: LazyLock<ThreadPool> = LazyLock::new(|| ThreadPool::new(ThreadPoolConfig::default()));
        &POOL
    }

    /// Runs `job` on a thread of the pool.
    ///
    /// # Errors
    ///
    /// [`PoolRefused`] at the bound or after the end. The job is dropped, not run.
    pub(crate) fn submit<R: Send + 'static>(
        &self,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Answer<R>, PoolRefused> {
        let desk = Arc::new(Mutex::new(Desk { answer: None, waker: None }));
        let promise = Promise(Arc::clone(&desk));
        self.queue(Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(job));
            promise.keep(result.map_err(JobFailed::Panicked));
        }))?;
        Ok(Answer(desk))
    }

    /// Refuses new jobs, drops those that wait, and joins the threads once the running jobs have ended.
    ///
    /// Gives up after `patience`, and says how many threads were still running then. They end with their job.
    pub(crate) fn shut_down(&self, patience: Duration) -> usize {
        let mut state = self.shared.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.queue);
        self.shared.work.notify_all();
        drop(state);
        // The jobs' destructors are user code, and their answers wake tasks.
        drop(dropped);
        let state = self.shared.lock();
        let (mut state, _) = self
            .shared
            .ended
            .wait_timeout_while(state, patience, |state| state.threads > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let running = state.threads;
        let handles = std::mem::take(&mut state.handles);
        drop(state);
        if running == 0 {
            handles.into_iter().for_each(join);
        }
        running
    }

    /// Threads that are there.
    #[cfg(test)]
    pub(crate) fn threads(&self) -> usize {
        self.shared.lock().threads
    }

    fn queue(&self, job: Job) -> Result<(), PoolRefused> {
        let shared = &self.shared;
        let mut state = shared.lock();
        if state.closed {
            return Err(PoolRefused::Closed);
        }
        let spare = state.idle > state.queue.len();
        if !spare && state.threads < shared.config.threads_max {
            state.queue.push_back(job);
            match shared.start_thread(&mut state) {
                // Without a single thread the job would wait for ever.
                Err(_) if state.threads == 0 => {
                    let job = state.queue.pop_back();
                    drop(state);
                    drop(job);
                    return Err(PoolRefused::Full { queue_max: 0 });
                }
                Ok(()) | Err(_) => return Ok(()),
            }
        }
        if !spare && state.queue.len() >= shared.config.queue_max {
            return Err(PoolRefused::Full { queue_max: shared.config.queue_max });
        }
        state.queue.push_back(job);
        shared.work.notify_one();
        Ok(())
    }
}

impl Drop for ThreadPool {
    /// Joins the threads, however long their jobs take.
    fn drop(&mut self) {
        self.shut_down(Duration::MAX);
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("ThreadPool")
            .field("threads", &state.threads)
            .field("idle", &state.idle)
            .field("queued", &state.queue.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Jobs run outside the lock, so nothing that panics holds it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_thread(self: &Arc<Shared>, state: &mut State) -> io::Result<()> {
        let (ended, running) = state.handles.drain(..).partition(JoinHandle::is_finished);
        state.handles = running;
        let _: Vec<JoinHandle<()>> = ended;
        let shared = Arc::clone(self);
        let name = format!("veloq-blocking-{}", state.started);
        let handle = thread::Builder::new().name(name).spawn(move || shared.run())?;
        state.started += 1;
        state.threads += 1;
        state.handles.push(handle);
        Ok(())
    }

    /// A thread's life.
    fn run(&self) {
        run_anywhere();
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (next, waited) = self
                .work
                .wait_timeout_while(state, self.config.idle, |state| state.queue.is_empty() && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
    }
}

/// Lets the calling thread run on every core that the system allows the process. It was started by a worker, which may be
/// pinned to one core, and would compete with it there.
fn run_anywhere() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    // The kernel takes out what it does not have or does not allow. If it refuses all the same, the inherited set holds.
    let _ = sched_setaffinity(None, &all);
}

/// Joins a thread that runs nothing any more.
fn join(handle: JoinHandle<()>) {
    // Jobs' panics are caught; a thread that panicked all the same has said so on standard error.
    let _ = handle.join();
}

/// What a job comes to, as a future.
#[must_use = "the job runs all the same, but nobody hears what came of it"]
pub(crate) struct Answer<R>(Arc<Mutex<Desk<R>>>);

/// Where the job's thread and the awaiting task meet.
struct Desk<R> {
    answer: Option<Result<R, JobFailed>>,
    waker: Option<Waker>,
}

/// Why a job has no result.
pub(crate) enum JobFailed {
    /// It panicked, with this payload.
    Panicked(Box<dyn Any + Send>),
    /// The pool shut down before it began.
    Closed,
}

impl JobFailed {
    /// Goes on with the job's panic, or says that the pool has closed.
    pub(crate) fn into_error(self) -> io::Error {
        match self {
            JobFailed::Panicked(payload) => std::panic::resume_unwind(payload),
            JobFailed::Closed => PoolRefused::Closed.into(),
        }
    }
}

impl fmt::Debug for JobFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JobFailed::Panicked(_) => "Panicked",
            JobFailed::Closed => "Closed",
        })
    }
}

impl<R> Future for Answer<R> {
    type Output = Result<R, JobFailed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut desk = lock(&self.0);
        if let Some(answer) = desk.answer.take() {
            return Poll::Ready(answer);
        }
        if !desk.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            let before = desk.waker.replace(cx.waker().clone());
            drop(desk);
            drop(before);
        }
        Poll::Pending
    }
}

impl<R> fmt::Debug for Answer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

/// The job's end of an [`Answer`]. Dropped unkept, it says that the job never ran.
struct Promise<R>(Arc<Mutex<Desk<R>>>);

impl<R> Promise<R> {
    fn keep(&self, answer: Result<R, JobFailed>) {
        let mut desk = lock(&self.0);
        if desk.answer.is_none() {
            desk.answer = Some(answer);
        }
        let waker = desk.waker.take();
        drop(desk);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<R> Drop for Promise<R> {
    /// After `keep` this finds the answer there, or taken with nobody waiting any more; either way nothing is told.
    fn drop(&mut self) {
        if !thread::panicking() && Arc::strong_count(&self.0) > 1 {
            self.keep(Err(JobFailed::Closed));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::Wake;

    use super::*;

    /// Wakes a thread that blocks on an answer.
    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn wait<R>(mut answer: Answer<R>) -> Result<R, JobFailed> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(result) = Pin::new(&mut answer).poll(&mut cx) {
                return result;
            }
            thread::park();
        }
    }

    fn pool(threads_max: usize, queue_max: usize) -> ThreadPool {
        ThreadPool::new(ThreadPoolConfig { threads_max, queue_max, ..ThreadPoolConfig::default() })
    }

    // A waker stored after the job had looked for one would be a task that sleeps for ever.
    #[test]
    fn every_job_answers_on_a_named_thread() {
        let pool = pool(4, 1000);
        let answers: Vec<_> = (0..200)
            .map(|n| {
                let job = move || (n, thread::current().name().map(str::to_owned));
                pool.submit(job).expect("1000 may wait")
            })
            .collect();
        for (n, answer) in answers.into_iter().enumerate() {
            let (number, name) = wait(answer).expect("the job ran");
            assert_eq!(number, n);
            assert!(name.expect("a name").starts_with("veloq-blocking-"));
        }
        assert!(pool.threads() <= 4);
    }

    // Without the bound a slow disk would fill the memory with jobs.
    #[test]
    fn beyond_threads_and_queue_a_job_is_refused() {
        let pool = pool(1, 1);
        let (go, gate) = mpsc::channel::<()>();
        let (say, running) = mpsc::channel::<()>();
        let first = pool.submit(move || {
            say.send(()).expect("the test waits");
            gate.recv()
        });
        running.recv().expect("the job runs");
        let second = pool.submit(|| 2).expect("one may wait");
        let refused = pool.submit(|| 3).expect_err("one waits already");
        assert_eq!(refused, PoolRefused::Full { queue_max: 1 });
        assert_eq!(io::Error::from(refused).kind(), io::ErrorKind::QuotaExceeded);
        go.send(()).expect("the job waits");
        assert!(wait(first.expect("it was taken")).expect("it ran").is_ok());
        assert_eq!(wait(second).expect("it ran"), 2);
    }

    // A panic that took the thread with it would shrink the pool, one that vanished would hide a bug.
    #[test]
    fn a_panic_reaches_the_answer_and_leaves_the_pool_whole() {
        let pool = pool(1, 8);
        let answer = pool.submit(|| -> u32 { std::panic::panic_any("payload") }).expect("room");
        match wait(answer) {
            Err(JobFailed::Panicked(payload)) => assert_eq!(payload.downcast_ref(), Some(&"payload")),
            other => panic!("{other:?}"),
        }
        assert_eq!(wait(pool.submit(|| 5).expect("room")).expect("it ran"), 5);
    }

    // A task that awaits a job which is never to run would hang at shutdown.
    #[test]
    fn shutting_down_answers_what_waits_and_joins_what_runs() {
        let pool = pool(1, 8);
        let (go, gate) = mpsc::channel::<()>();
        let (say, running) = mpsc::channel::<()>();
        let first = pool.submit(move || {
            say.send(()).expect("the test waits");
            let _ = gate.recv();
            1
        });
        running.recv().expect("the job runs");
        let second = pool.submit(|| 2).expect("room");
        assert_eq!(pool.shut_down(Duration::ZERO), 1, "the first still runs");
        assert!(matches!(wait(second), Err(JobFailed::Closed)));
        assert_eq!(pool.submit(|| 3).expect_err("closed"), PoolRefused::Closed);
        drop(go);
        assert_eq!(pool.shut_down(Duration::MAX), 0);
        assert_eq!(wait(first.expect("it was taken")).expect("it ran to its end"), 1);
    }

    // Threads that never ended would be a leak that looks like a pool.
    #[test]
    fn an_idle_thread_ends() {
        let config = ThreadPoolConfig { idle: Duration::from_millis(1), ..ThreadPoolConfig::default() };
        let pool = ThreadPool::new(config);
        wait(pool.submit(|| ()).expect("room")).expect("it ran");
        let state = pool.shared.lock();
        let state = pool.shared.ended.wait_while(state, |state| state.threads > 0).expect("not poisoned");
        assert_eq!(state.idle, 0);
    }
}
