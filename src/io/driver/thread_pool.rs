//! Threads for what a kernel can only do by blocking: resolving names, and whatever a program must call that blocks.
//!
//! The pool is elastic: a job that finds no idle thread starts one, up to a bound; a thread that has been idle for a while
//! ends. Beyond the bound jobs wait in a queue, in order; beyond the queue's bound they are refused with a typed error. A
//! job answers through an [`Answer`], a future that any task may await. Dropping the answer does not stop the job, only
//! nobody hears what came of it; aborting it takes the job out of the queue, unless a thread has it already, and a [`Wanted`]
//! answer aborts when it is dropped. A job that panics ends alone, and its panic is what the answer yields.
//!
//! ```text
//! submit ─▶ queue ─▶ idle thread, or a new one ─▶ job runs ─▶ Answer woken
//!              └──── abort, shut_down: dropped unrun, Answer yields `Dropped` ────┘
//! ```
//!
//! One lock guards queue and counts; jobs run, and are dropped, outside it. A thread counts as idle from the moment it waits
//! until the moment it is awake again, and a job is left to the idle ones only while there are more of them than queued jobs,
//! so none waits for a thread that another job will get. A thread whose idle time is up looks at the queue once more: a job
//! may have been left to it in that very moment.
//!
//! **Two kinds of use.** A program that calls `spawn_blocking` knows what it does. A name lookup or a listed directory uses
//! the pool *silently*, behind a call that looks like any other; a *strict* pool refuses that, naming the call.
//!
//! **The end.** A thread of the system cannot be stopped from outside. So [`shut_down`](ThreadPool::shut_down) drops what is
//! queued, and waits for the running jobs that the program started (they may be in the middle of a write), but not for silent
//! ones: all that a lookup yields is an answer that nobody will hear. What is waited for in vain is counted; its threads end
//! with their job, or with the process.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, lock, mutant};

/// How large a pool may become, and what it is for.
#[derive(Clone, Debug)]
pub(crate) struct ThreadPoolConfig {
    /// Threads at most. What blocks here waits for disks and name servers, not for cores, so there are more of them than
    /// cores; each takes a stack (2 MiB of address space, of which little is touched).
    pub(crate) threads_max: usize,
    /// Jobs that wait for a thread at most.
    pub(crate) queue_max: usize,
    /// How long a thread stays with nothing to do.
    pub(crate) idle: Duration,
    /// What the threads are called, before their number.
    pub(crate) name: String,
    /// Whether silent use is refused.
    pub(crate) strict: bool,
}

impl Default for ThreadPoolConfig {
    /// 64 threads, as the kernel's own pool for unbounded work has here; 4096 queued jobs, 64 for each thread; 10 s of
    /// idleness, so that a burst a second keeps its threads.
    fn default() -> ThreadPoolConfig {
        ThreadPoolConfig {
            threads_max: 64,
            queue_max: 4096,
            idle: Duration::from_secs(10),
            name: "veloq-blocking".to_owned(),
            strict: false,
        }
    }
}

/// A bounded, elastic pool of named threads. Dropping it closes it, and waits for nobody.
pub(crate) struct ThreadPool {
    shared: Arc<Threads>,
}

/// The threads, what they wait for, and the jobs that wait for them.
struct Threads {
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
    /// Threads that wait for a job.
    idle: usize,
    /// Threads that have not begun to end.
    threads: usize,
    /// Threads that run a silent job. The pool's end waits for all others.
    silent: usize,
    /// Threads that run a job of the program's.
    awaited: usize,
    /// The threads that have not begun to end, by their number.
    handles: HashMap<u64, JoinHandle<()>>,
    /// Threads that are about to end, and touch nothing here any more. Joined by the next one that starts, or at the end.
    ending: Vec<JoinHandle<()>>,
    started: u64,
    accepted: u64,
    refused: u64,
    closed: bool,
}

struct Job {
    /// Jobs are numbered in the order of the queue.
    number: u64,
    silent: bool,
    run: Box<dyn FnOnce() + Send>,
}

/// What a pool is doing, and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadPoolStats {
    /// Threads that are there, now.
    pub threads: u64,
    /// Threads among them that wait for a job, now.
    pub idle: u64,
    /// Jobs that wait for a thread, now.
    pub queued: u64,
    /// Jobs that were accepted, ever.
    pub jobs: u64,
    /// Jobs that were refused, ever.
    pub refused: u64,
}

/// Why the threads for blocking work refused a job. The source of the error that the caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolRefused {
    /// All threads are busy and the queue is full.
    Full {
        /// The queue's bound.
        queue_max: usize,
    },
    /// There is no thread, and the system gives none.
    NoThread,
    /// The runtime is strict, and this call would have blocked a thread without saying so.
    Strict {
        /// What the call was about to do.
        call: &'static str,
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
            PoolRefused::NoThread => f.write_str("the system gives no thread for blocking work"),
            PoolRefused::Strict { call } => write!(
                f,
                "{call} would block a thread, which this runtime is too strict to do silently; use `spawn_blocking`"
            ),
            PoolRefused::Closed => f.write_str("the threads for blocking work have shut down"),
        }
    }
}

impl Error for PoolRefused {}

impl From<PoolRefused> for io::Error {
    fn from(refused: PoolRefused) -> io::Error {
        let kind = match refused {
            PoolRefused::Full { .. } => io::ErrorKind::QuotaExceeded,
            PoolRefused::NoThread => io::ErrorKind::OutOfMemory,
            PoolRefused::Strict { .. } => io::ErrorKind::Unsupported,
            PoolRefused::Closed => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, refused)
    }
}

impl ThreadPool {
    /// A pool without threads; they start with the jobs.
    pub(crate) fn new(config: ThreadPoolConfig) -> ThreadPool {
        ThreadPool {
            shared: Arc::new(Threads {
                config,
                state: Mutex::new(State::default()),
                work: Condvar::new(),
                ended: Condvar::new(),
            }),
        }
    }

    /// Runs `job` on a thread of the pool, for a caller who knows that it blocks one.
    ///
    /// # Errors
    ///
    /// [`PoolRefused`] at the bound or after the end. The job is dropped, not run.
    pub(crate) fn submit<R: Send + 'static>(
        &self,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Answer<R>, PoolRefused> {
        self.submit_as(false, job)
    }

    /// Runs `job` on a thread of the pool, on behalf of a call that does not look like it.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit); and [`PoolRefused::Strict`] with `call` if the pool is strict.
    pub(crate) fn submit_silently<R: Send + 'static>(
        &self,
        call: &'static str,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Answer<R>, PoolRefused> {
        if self.shared.config.strict {
            self.shared.lock().refused += 1;
            return Err(PoolRefused::Strict { call });
        }
        self.submit_as(true, job)
    }

    fn submit_as<R: Send + 'static>(
        &self,
        silent: bool,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<Answer<R>, PoolRefused> {
        let line = Arc::new(Mutex::new(Line { answer: None, waker: None }));
        let promise = Promise(Some(Arc::clone(&line)));
        let run = move || {
            let result = catch(job);
            promise.keep(result.map_err(JobFailed::Panicked));
        };
        let number = self.queue(silent, Box::new(run))?;
        Ok(Answer { line, queued: Some((Arc::clone(&self.shared), number)) })
    }

    /// Refuses new jobs, drops those that wait, and joins the threads once the running jobs have ended, besides the silent
    /// ones.
    ///
    /// Gives up after `patience`, and says how many jobs were still running then. Their threads end with them.
    pub(crate) fn shut_down(&self, patience: Duration) -> usize {
        self.close();
        let state = self.shared.lock();
        let busy = |state: &mut State| state.threads > state.silent;
        let mut state = self.shared.ended.wait_while(state, patience, busy);
        let running = state.awaited;
        let ending = std::mem::take(&mut state.ending);
        drop(state);
        ending.into_iter().for_each(join);
        running
    }

    /// Refuses new jobs, and drops those that wait.
    pub(crate) fn close(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.queue);
        if !mutant("shut down: tell nobody") {
            self.shared.work.notify_all();
        }
        drop(state);
        dropped.into_iter().for_each(Job::discard);
    }

    /// What it is doing, and has done.
    pub(crate) fn stats(&self) -> ThreadPoolStats {
        let state = self.shared.lock();
        ThreadPoolStats {
            threads: state.threads as u64,
            idle: state.idle as u64,
            queued: state.queue.len() as u64,
            jobs: state.accepted,
            refused: state.refused,
        }
    }

    /// Queues a job, and starts a thread for it if need be. Says the job's number.
    fn queue(&self, silent: bool, run: Box<dyn FnOnce() + Send>) -> Result<u64, PoolRefused> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let spare = state.idle > if mutant("queue: any idle thread will do") { 0 } else { state.queue.len() };
        let wants = !state.closed && !spare && state.threads < shared.config.threads_max;
        // Refused by the system, with other threads there, it is merely later that the job runs: it queues, within the bound.
        let started = wants && Threads::start_thread(shared, &mut state).is_ok();
        let refused = if state.closed {
            Some(PoolRefused::Closed)
        } else if wants && !started && state.threads == 0 {
            Some(PoolRefused::NoThread)
        } else if !spare && !started && state.queue.len() >= shared.config.queue_max {
            Some(PoolRefused::Full { queue_max: shared.config.queue_max })
        } else {
            None
        };
        if let Some(refused) = refused {
            state.refused += 1;
            return Err(refused);
        }
        let number = state.accepted;
        state.accepted += 1;
        state.queue.push_back(Job { number, silent, run });
        shared.work.notify_one();
        Ok(number)
    }

    /// For models: the time of every idle thread is up, now.
    #[cfg(all(test, loom))]
    fn let_idle_time_pass(&self) {
        let _state = self.shared.lock();
        self.shared.work.expire();
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ThreadPool").field(&self.stats()).finish()
    }
}

impl Threads {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Starts a thread, which waits for the lock before it looks for a job.
    fn start_thread(shared: &Arc<Threads>, state: &mut State) -> io::Result<()> {
        let number = state.started;
        let name = format!("{}-{number}", shared.config.name);
        let thread = Arc::clone(shared);
        let handle = thread::Builder::new().name(name).spawn(move || thread.run(number))?;
        state.started += 1;
        state.threads += 1;
        state.handles.insert(number, handle);
        Ok(())
    }

    /// A thread's life.
    fn run(&self, number: u64) {
        #[cfg(not(loom))]
        crate::os::run_anywhere();
        let ended = std::mem::take(&mut self.lock().ending);
        ended.into_iter().for_each(join);
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                let (silent, awaited) = if job.silent { (1, 0) } else { (0, 1) };
                state.silent += silent;
                state.awaited += awaited;
                drop(state);
                quietly(job.run);
                state = self.lock();
                state.silent -= silent;
                state.awaited -= awaited;
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (next, expired) = self.work.wait_for(state, self.config.idle);
            state = next;
            state.idle -= 1;
            if expired && (state.queue.is_empty() || mutant("idle thread: end without a last look")) {
                break;
            }
        }
        state.threads -= 1;
        let own = state.handles.remove(&number);
        state.ending.extend(own);
        self.ended.notify_all();
    }

    /// Takes a job out of the queue, unless a thread has taken it.
    fn withdraw(&self, number: u64) -> Option<Job> {
        let mut state = self.lock();
        let place = state.queue.binary_search_by_key(&number, |job| job.number).ok()?;
        if mutant("abort: look, then take") {
            drop(state);
            state = self.lock();
        }
        state.queue.remove(place)
    }
}

impl Job {
    /// Drops it unrun. Its destructor is user code, and its promise wakes a task: no lock is held meanwhile.
    fn discard(self) {
        quietly(|| drop(self));
    }
}

/// Joins a thread that runs no job any more.
fn join(handle: JoinHandle<()>) {
    // Jobs' panics are caught; a thread that panicked all the same has said so on standard error.
    let _ = handle.join();
}

/// Runs a job, and catches its panic. Under loom nothing is caught: there a panic is loom's verdict on the model.
fn catch<R>(job: impl FnOnce() -> R) -> Result<R, Box<dyn Any + Send>> {
    if cfg!(loom) {
        return Ok(job());
    }
    // Whatever the job leaves half done is its own, and is dropped, not used.
    catch_unwind(AssertUnwindSafe(job))
}

/// Runs `job` on a thread of its own: for what must get on while a pool is full and workers are stuck.
///
/// # Errors
///
/// What the system said if it gives no thread.
#[cfg(not(loom))]
pub(crate) fn on_own_thread<R: Send + 'static>(
    name: &str,
    job: impl FnOnce() -> R + Send + 'static,
) -> io::Result<Answer<R>> {
    let line = Arc::new(Mutex::new(Line { answer: None, waker: None }));
    let promise = Promise(Some(Arc::clone(&line)));
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        crate::os::run_anywhere();
        promise.keep(catch(job).map_err(JobFailed::Panicked));
    })?;
    Ok(Answer { line, queued: None })
}

/// Runs what ends with user code (a waker, the destructor of a buffer or a result) on a thread that has more to do.
pub(crate) fn quietly(run: impl FnOnce()) {
    if let Err(payload) = catch(run)
        && let Err(unending) = catch(|| drop(payload))
    {
        std::mem::forget(unending);
    }
}

/// What a job comes to, as a future.
#[must_use = "the job runs all the same, but nobody hears what came of it"]
pub(crate) struct Answer<R> {
    line: Arc<Mutex<Line<R>>>,
    /// Where the job may be queued, and under which number.
    queued: Option<(Arc<Threads>, u64)>,
}

/// Where the job's thread and the awaiting task meet.
struct Line<R> {
    answer: Option<Result<R, JobFailed>>,
    waker: Option<Waker>,
}

/// Why a job has no result.
pub(crate) enum JobFailed {
    /// It panicked, with this payload.
    Panicked(Box<dyn Any + Send>),
    /// It never began: it was aborted, or the pool shut down.
    Dropped,
}

impl JobFailed {
    /// Goes on with the job's panic, or says that the pool has closed.
    pub(crate) fn into_error(self) -> io::Error {
        match self {
            JobFailed::Panicked(payload) => std::panic::resume_unwind(payload),
            JobFailed::Dropped => PoolRefused::Closed.into(),
        }
    }
}

impl fmt::Debug for JobFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JobFailed::Panicked(_) => "Panicked",
            JobFailed::Dropped => "Dropped",
        })
    }
}

impl<R> Answer<R> {
    /// Takes the job out of the queue and drops it here, if no thread has it yet.
    pub(crate) fn abort(&self) {
        if let Some((pool, number)) = &self.queued
            && let Some(job) = pool.withdraw(*number)
        {
            job.discard();
        }
    }

    /// The same, for a job that is of no use but to whoever waits for it.
    #[cfg(not(loom))]
    pub(crate) fn wanted(self) -> Wanted<R> {
        Wanted(self)
    }

    /// Whether the answer is there.
    pub(crate) fn is_ready(&self) -> bool {
        lock(&self.line).answer.is_some()
    }
}

impl<R> Future for Answer<R> {
    type Output = Result<R, JobFailed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Cloned before and dropped after the lock is held: a waker is user code then, and may abort this very job.
        let waker = cx.waker().clone();
        let mut line = lock(&self.line);
        if let Some(answer) = line.answer.take() {
            drop(line);
            return Poll::Ready(answer);
        }
        if mutant("answer: look, then leave a waker") {
            drop(line);
            line = lock(&self.line);
        }
        let before = line.waker.replace(waker);
        drop(line);
        drop(before);
        Poll::Pending
    }
}

impl<R> fmt::Debug for Answer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

/// An [`Answer`] that takes the job out of the queue when it is dropped, unless a thread has it already: what waits behind jobs
/// that take long, longer than anybody waits for it, would else be done all the same, before what somebody does wait for.
#[cfg(not(loom))]
#[must_use = "dropped, it takes the job back"]
pub(crate) struct Wanted<R>(Answer<R>);

#[cfg(not(loom))]
impl<R> Future for Wanted<R> {
    type Output = Result<R, JobFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

#[cfg(not(loom))]
impl<R> fmt::Debug for Wanted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wanted").field(&self.0).finish()
    }
}

#[cfg(not(loom))]
impl<R> Drop for Wanted<R> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The job's end of an [`Answer`]. Dropped unkept, it says that the job never ran.
struct Promise<R>(Option<Arc<Mutex<Line<R>>>>);

impl<R> Promise<R> {
    fn keep(mut self, answer: Result<R, JobFailed>) {
        self.tell(answer);
    }

    fn tell(&mut self, answer: Result<R, JobFailed>) {
        let Some(line) = self.0.take() else { return };
        let mut line = lock(&line);
        line.answer = Some(answer);
        let waker = line.waker.take();
        drop(line);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<R> Drop for Promise<R> {
    fn drop(&mut self) {
        self.tell(Err(JobFailed::Dropped));
    }
}

/// Models of the hand-off. Whatever is left undone shows as a thread that waits for ever, which loom reports.
#[cfg(all(test, loom))]
mod models {
    use loom::future::block_on;

    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use crate::sync::atomic::Ordering::Relaxed;
    use crate::sync::model;

    fn pool(threads_max: usize) -> ThreadPool {
        ThreadPool::new(ThreadPoolConfig { threads_max, ..ThreadPoolConfig::default() })
    }

    /// Two jobs for one thread, then the end: both are answered, whether the thread had begun to wait or not.
    fn hand_off() {
        let pool = pool(1);
        let [one, two] = [1, 2].map(|n| pool.submit(move || n).expect("there is room"));
        assert_eq!(block_on(one).expect("it ran"), 1);
        assert_eq!(block_on(two).expect("it ran"), 2);
        assert_eq!(pool.shut_down(Duration::MAX), 0);
    }

    #[test]
    fn loom_every_job_is_answered() {
        model::holds(hand_off);
    }

    #[test]
    fn loom_mutant_answer_leaves_a_waker_late() {
        model::catches("answer: look, then leave a waker", hand_off);
    }

    #[test]
    fn loom_mutant_shut_down_tells_nobody() {
        model::catches("shut down: tell nobody", hand_off);
    }

    /// The only thread's idle time is up while a job is left to it.
    fn end_against_job() {
        let pool = Arc::new(pool(1));
        assert_eq!(block_on(pool.submit(|| 1).expect("there is room")).expect("it ran"), 1);
        let clock = crate::sync::thread::spawn({
            let pool = pool.clone();
            move || pool.let_idle_time_pass()
        });
        let answer = pool.submit(|| 2).expect("there is room");
        assert_eq!(block_on(answer).expect("it ran"), 2);
        clock.join().expect("the clock does not panic");
        assert_eq!(pool.shut_down(Duration::MAX), 0);
    }

    #[test]
    fn loom_an_idle_thread_ends_and_forgets_no_job() {
        model::holds(end_against_job);
    }

    #[test]
    fn loom_mutant_idle_thread_ends_without_a_last_look() {
        model::catches("idle thread: end without a last look", end_against_job);
    }

    /// One thread is idle when two jobs come, of which the first waits for the second: that needs a second thread.
    fn one_idle_thread_for_two_jobs() {
        let pool = pool(2);
        assert_eq!(block_on(pool.submit(|| 0).expect("there is room")).expect("it ran"), 0);
        let meeting = Arc::new((Mutex::new(false), Condvar::new()));
        let first = pool.submit({
            let meeting = meeting.clone();
            move || drop(meeting.1.wait_while(lock(&meeting.0), Duration::MAX, |met| !*met))
        });
        let second = pool.submit(move || {
            *lock(&meeting.0) = true;
            meeting.1.notify_all();
        });
        block_on(first.expect("there is room")).expect("it ran");
        // It has, or the first would wait for it still.
        drop(second);
        assert_eq!(pool.shut_down(Duration::MAX), 0);
    }

    #[test]
    fn loom_no_job_waits_for_a_thread_that_another_gets() {
        // With three, a minute does not suffice.
        model::holds_within(2, one_idle_thread_for_two_jobs);
    }

    #[test]
    fn loom_mutant_any_idle_thread_will_do() {
        model::catches("queue: any idle thread will do", one_idle_thread_for_two_jobs);
    }

    /// The first of two jobs is aborted while a thread takes it: it is run or dropped, not both, and the other is run.
    fn abort_against_thread() {
        let pool = pool(1);
        let ran = Arc::new(AtomicUsize::new(0));
        let first = pool.submit({
            let ran = ran.clone();
            move || ran.fetch_add(1, Relaxed)
        });
        let first = first.expect("there is room");
        let second = pool.submit(|| 2).expect("there is room");
        first.abort();
        let answered = block_on(first).is_ok();
        assert_eq!(block_on(second).expect("only the first was aborted"), 2);
        assert_eq!(ran.load(Relaxed), usize::from(answered));
        assert_eq!(pool.shut_down(Duration::MAX), 0);
    }

    #[test]
    fn loom_an_aborted_job_is_run_or_dropped() {
        model::holds(abort_against_thread);
    }

    #[test]
    fn loom_mutant_abort_looks_then_takes() {
        model::catches("abort: look, then take", abort_against_thread);
    }

    /// The pool ends while a job is queued or taken: it is run or dropped, and its answer says which.
    fn end_against_hand_off() {
        let pool = pool(1);
        let ran = Arc::new(AtomicUsize::new(0));
        let answer = pool.submit({
            let ran = ran.clone();
            move || ran.fetch_add(1, Relaxed)
        });
        assert_eq!(pool.shut_down(Duration::MAX), 0);
        let answered = block_on(answer.expect("there is room")).is_ok();
        assert_eq!(ran.load(Relaxed), usize::from(answered));
        assert_eq!(pool.submit(|| ()).expect_err("it has ended"), PoolRefused::Closed);
    }

    #[test]
    fn loom_a_pool_that_ends_leaves_no_job_unanswered() {
        model::holds(end_against_hand_off);
    }

    #[test]
    fn loom_mutant_a_pool_ends_and_tells_nobody() {
        model::catches("shut down: tell nobody", end_against_hand_off);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::task::Wake;
    use std::thread;

    use super::*;
    use crate::io::driver::waiter::waker_that_meddles;

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
        assert!(pool.stats().threads <= 4);
        assert_eq!(pool.stats().jobs, 200);
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
        assert!(matches!(wait(second), Err(JobFailed::Dropped)));
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
        let state = pool.shared.ended.wait_while(state, Duration::MAX, |state| state.threads > 0);
        assert_eq!(state.idle, 0);
    }

    // A job that was given up and still holds its place would keep others out; one that says nothing, its task asleep.
    #[test]
    fn an_aborted_job_leaves_the_queue_and_says_so() {
        let pool = pool(1, 1);
        let (go, gate) = mpsc::channel::<()>();
        let (say, running) = mpsc::channel::<()>();
        let first = pool.submit(move || {
            say.send(()).expect("the test waits");
            let _ = gate.recv();
        });
        running.recv().expect("the job runs");
        let kept = Arc::new(());
        let second = pool.submit({
            let kept = Arc::clone(&kept);
            move || drop(kept)
        });
        let second = second.expect("one may wait");
        second.abort();
        assert_eq!(Arc::strong_count(&kept), 1, "the job's captures are dropped by the abort");
        let third = pool.submit(|| 3).expect("the place is free again");
        assert!(matches!(wait(second), Err(JobFailed::Dropped)));
        let first = first.expect("it was taken");
        first.abort();
        drop(go);
        assert!(wait(first).is_ok(), "a running job is not to be stopped");
        assert_eq!(wait(third).expect("it ran"), 3);
    }

    // The lock is not to be had twice: a clone that aborts its own job would wait for itself.
    #[test]
    fn a_waker_may_end_the_pool_when_it_is_cloned() {
        let pool = Arc::new(pool(1, 1));
        let (go, gate) = mpsc::channel::<()>();
        let (say, running) = mpsc::channel::<()>();
        let first = pool.submit(move || {
            say.send(()).expect("the test waits");
            let _ = gate.recv();
        });
        running.recv().expect("the job runs");
        let mut second = pool.submit(|| 2).expect("one may wait");
        let waker = waker_that_meddles({
            let pool = Arc::clone(&pool);
            move || pool.close()
        });
        let answer = Pin::new(&mut second).poll(&mut Context::from_waker(&waker));
        assert!(matches!(answer, Poll::Ready(Err(JobFailed::Dropped))));
        drop(go);
        assert!(wait(first.expect("it was taken")).is_ok());
    }

    // A program that lives from its latency must not find out in production that `connect` waits for threads.
    #[test]
    fn a_strict_pool_names_the_call_that_would_have_been_silent() {
        let pool = ThreadPool::new(ThreadPoolConfig { strict: true, ..ThreadPoolConfig::default() });
        let refused = pool.submit_silently("resolving a name", || ()).expect_err("it is strict");
        assert_eq!(refused, PoolRefused::Strict { call: "resolving a name" });
        assert!(refused.to_string().starts_with("resolving a name would block a thread"));
        assert_eq!(io::Error::from(refused).kind(), io::ErrorKind::Unsupported);
        assert_eq!(wait(pool.submit(|| 5).expect("it says so itself")).expect("it ran"), 5);
        assert_eq!((pool.stats().jobs, pool.stats().refused), (1, 1));
    }

    // A name server that does not answer must not hold up the end of a program that does not care any more.
    #[test]
    fn the_end_waits_for_no_silent_job() {
        let pool = pool(2, 8);
        let (go, gate) = mpsc::channel::<()>();
        let (say, running) = mpsc::channel::<()>();
        let lookup = pool.submit_silently("resolving a name", move || {
            say.send(()).expect("the test waits");
            let _ = gate.recv();
        });
        running.recv().expect("the job runs");
        assert_eq!(pool.shut_down(Duration::MAX), 0);
        drop(go);
        assert!(wait(lookup.expect("it was taken")).is_ok());
    }

    // A thread that a result's destructor takes with it would be missing for ever after.
    #[test]
    fn a_result_whose_drop_panics_leaves_the_pool_whole() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let pool = pool(1, 8);
        drop(pool.submit(|| Bomb).expect("room"));
        assert_eq!(wait(pool.submit(|| 5).expect("room")).expect("it ran"), 5);
        assert_eq!(pool.stats().threads, 1);
    }
}
