//! Promise: a wake from another thread is never lost, and never waits for the one that it wakes.
//!
//! `scripts/storm` runs these with ten million wakes, and with a worker that stands still for a second; here is a slice.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use veloq::runtime::Builder;
use veloq::{WorkerId, spawn_local, spawn_to};

/// Tasks that one thread wakes by turns, so that many are in the list at once.
const TASKS: usize = 32;

/// When a wake counts as lost. It is read only by threads that are waiting for one.
const STUCK: Duration = Duration::from_secs(60);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("it is a number"))
}

/// A task that waits to be woken for each number up to the last, and says which it has seen.
#[derive(Default)]
struct Woken {
    asked: AtomicU64,
    seen: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Woken {
    async fn until(self: Arc<Self>, last: u64) {
        poll_fn(|cx| {
            self.waker.lock().expect("nobody panics with it").get_or_insert_with(|| cx.waker().clone());
            // The last look is the one that counts: a wake after it brings this task back.
            let asked = self.asked.load(Ordering::Acquire);
            self.seen.store(asked, Ordering::Release);
            if asked == last { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Waits until the task has been polled for the first time.
    fn waker(&self) -> Waker {
        loop {
            if let Some(waker) = self.waker.lock().expect("nobody panics with it").clone() {
                return waker;
            }
            thread::yield_now();
        }
    }
}

/// Two threads wake tasks of two workers, and each wake must be followed by a poll before the next is made. Sometimes the
/// workers have gone to sleep by then, mostly they have not.
#[test]
fn each_wake_from_another_thread_is_followed_by_a_poll() {
    let wakes = number("VELOQ_WAKES", 100_000);
    let rounds = wakes / (2 * TASKS as u64);
    let sets: Vec<Vec<Arc<Woken>>> = (0..2).map(|_| (0..TASKS).map(|_| Arc::default()).collect()).collect();
    let threads: Vec<_> = sets
        .iter()
        .map(|set| {
            let set = set.clone();
            thread::spawn(move || {
                let wakers: Vec<Waker> = set.iter().map(|woken| woken.waker()).collect();
                for round in 1..=rounds {
                    for (woken, waker) in set.iter().zip(&wakers) {
                        woken.asked.store(round, Ordering::Release);
                        waker.wake_by_ref();
                    }
                    for woken in &set {
                        let mut since = None;
                        while woken.seen.load(Ordering::Acquire) != round {
                            let since = *since.get_or_insert_with(Instant::now);
                            assert!(since.elapsed() < STUCK, "wake {round} was lost");
                            thread::yield_now();
                        }
                    }
                }
            })
        })
        .collect();
    let runtime = Builder::new().workers(2).pin(false).build().expect("this kernel has io_uring");
    runtime.block_on(async move {
        let mut tasks = Vec::new();
        for woken in sets.into_iter().flatten().enumerate().map(|(n, woken)| (n % 2, woken)) {
            let (worker, woken) = woken;
            tasks.push(spawn_to(WorkerId::new(worker), async move || woken.until(rounds).await));
        }
        for task in tasks {
            task.await.expect("it does not panic");
        }
    });
    for thread in threads {
        thread.join().expect("no wake was lost");
    }
}

/// A worker that stands still, here because it wants a lock that the waking thread holds, must not hold up whoever wakes its
/// tasks: the two would wait for each other for ever. Each task is woken twice: the first wake leaves it in the worker's list, the second
/// finds that it is there. Says what CPU time the slowest of each kind took.
#[test]
fn waking_tasks_of_a_worker_that_stands_still_does_not_wait_for_it() {
    let wakes = number("VELOQ_STALLED_WAKES", 20_000);
    let stall = Duration::from_millis(number("VELOQ_STALL_MS", 0));
    let set: Vec<Arc<Woken>> = (0..wakes).map(|_| Arc::default()).collect();
    let (asks, asked) = mpsc::channel::<Waker>();
    let lock = Arc::new(Mutex::new(()));
    let (wants_lock, tasks) = (Arc::clone(&lock), set.clone());
    let caller = thread::spawn(move || {
        let wakers: Vec<Waker> = set.iter().map(|woken| woken.waker()).collect();
        let held = lock.lock().expect("nobody panics with it");
        let began = Instant::now();
        let start = asked.recv().expect("the task sends its waker");
        // From here on the worker soon stands still: its next task takes the lock.
        start.wake();
        let slowest = [1, 2].map(|number| {
            let took = set.iter().zip(&wakers).map(|(woken, waker)| {
                woken.asked.store(number, Ordering::Release);
                let before = cpu_time();
                waker.wake_by_ref();
                cpu_time() - before
            });
            took.max().unwrap_or_default()
        });
        // Whatever is left of the time for which the worker is to stand still.
        thread::sleep(stall.saturating_sub(began.elapsed()));
        drop(held);
        slowest
    });
    let runtime = Builder::new().workers(1).pin(false).build().expect("this kernel has io_uring");
    runtime.block_on(async move {
        let waits: Vec<_> = tasks.into_iter().map(|woken| spawn_local(woken.until(2))).collect();
        let mut told = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut told, true) {
                return Poll::Ready(());
            }
            asks.send(cx.waker().clone()).expect("the caller waits for it");
            Poll::Pending
        })
        .await;
        drop(wants_lock.lock().expect("nobody panics with it"));
        for wait in waits {
            wait.await.expect("it does not panic");
        }
    });
    let [pushed, found] = caller.join().expect("no wake has waited");
    eprintln!(
        "{wakes} tasks of a worker that stood still: the slowest wake that queued one took {pushed:?} of CPU time"
    );
    eprintln!("and the slowest that found it queued {found:?}");
}

/// The CPU time of this thread.
#[cfg(target_os = "linux")]
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).expect("CPU time is not negative")
}

/// Only told, not compared, and Windows counts a thread's time in ticks of 15 ms: there nothing is told.
#[cfg(windows)]
fn cpu_time() -> Duration {
    Duration::ZERO
}
