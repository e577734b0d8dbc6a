//! Promise: what may run anywhere is never stuck behind a worker that is busy.
//!
//! A worker is made busy by a poll that blocks until the test lets it go. So what these tests wait for comes while it is blocked, or they
//! hang: no time is measured.

use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use veloq::io::op::misc::nop;
use veloq::mesh;
use veloq::runtime::{Builder, Handle, Runtime};
use veloq::task::{CancelToken, yield_now};
use veloq::time::{sleep, timeout};
use veloq::{WorkerId, current_worker, spawn, spawn_local, spawn_pinned, spawn_to};

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

/// A queue that lost or doubled a task between those who take from it would show in the sum, or hang.
#[test]
fn spawned_tasks_run_and_are_joined() {
    for _ in 0..20 {
        let sum = runtime(2).block_on(async {
            let tasks: Vec<_> = (0..1_000u64)
                .map(|n| {
                    spawn(async move {
                        yield_now().await;
                        n
                    })
                })
                .collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.expect("no panic");
            }
            sum
        });
        assert_eq!(sum, 499_500);
    }
}

/// What a poll spawns before it blocks is on its own worker as often as not. If a push woke no thief, it would wait there for ever.
#[test]
fn a_thousand_tasks_finish_before_the_poll_that_spawned_them_returns() {
    runtime(2).block_on(async {
        let sum = spawn_to(WorkerId::new(1), async || {
            let (ran, all_ran) = mpsc::channel();
            for n in 0..500 {
                let (one, other) = (ran.clone(), ran.clone());
                drop(spawn(async move { one.send(n).expect("the poll waits for it") }));
                drop(spawn_pinned(async move || other.send(n).expect("the poll waits for it")));
            }
            (0..1_000).map(|_| all_ran.recv().expect("a task was dropped")).sum::<u64>()
        });
        assert_eq!(sum.await.expect("it does not panic"), 2 * 124_750);
    });
}

/// Tasks that were polled before have a home, to which a wake from outside sends them. It is blocked.
#[test]
fn a_thousand_tasks_woken_from_outside_finish_while_the_home_of_half_of_them_is_blocked() {
    runtime(2).block_on(async {
        let open = Arc::new(AtomicUsize::new(0));
        let (waiting, all_wait) = mpsc::channel::<Waker>();
        let (ran, all_ran) = mpsc::channel();
        for n in 0..1_000 {
            let (open, waiting, ran) = (Arc::clone(&open), waiting.clone(), ran.clone());
            drop(spawn(async move {
                let mut told = false;
                poll_fn(|cx| {
                    if open.load(Ordering::Acquire) == 1 {
                        return Poll::Ready(());
                    }
                    if !std::mem::replace(&mut told, true) {
                        waiting.send(cx.waker().clone()).expect("the test waits for it");
                    }
                    Poll::Pending
                })
                .await;
                ran.send(n).expect("the poll waits for it");
            }));
        }
        let wakers = spawn_local(async move {
            let mut wakers = Vec::new();
            while wakers.len() < 1_000 {
                wakers.extend(all_wait.try_iter());
                yield_now().await;
            }
            wakers
        });
        let wakers = wakers.await.expect("it does not panic");
        let (blocks, blocked) = mpsc::channel();
        let stuck = spawn_to(WorkerId::new(1), async move || {
            blocks.send(()).expect("the test waits for it");
            (0..1_000).map(|_| all_ran.recv().expect("a task was dropped")).sum::<u64>()
        });
        let outside = thread::spawn(move || {
            blocked.recv().expect("it blocks");
            open.store(1, Ordering::Release);
            wakers.into_iter().for_each(Waker::wake);
        });
        assert_eq!(stuck.await.expect("it does not panic"), 499_500);
        outside.join().expect("it does not panic");
    });
}

/// Uses what a task may hold wherever it was placed.
async fn use_everything(handle: Handle, token: CancelToken) -> WorkerId {
    sleep(Duration::from_micros(300)).await;
    assert!(timeout(Duration::from_micros(300), pending::<()>()).await.is_err());
    assert_eq!(timeout(Duration::from_secs(60), async { 1 }).await, Ok(1));
    let other = spawn(async { 7 });
    assert_eq!(other.await.expect("it does not panic"), 7);
    assert_eq!(handle.spawn_to(WorkerId::new(0), async || 8).await.expect("it does not panic"), 8);
    assert_eq!(handle.spawn(async { 9 }).await.expect("it does not panic"), 9);
    assert_eq!(handle.spawn_pinned(async || 10).await.expect("it does not panic"), 10);
    token.cancelled().await;
    current_worker()
}

/// A part that knows its worker only by the thread, or counts itself in a plain word of a task that moves, breaks here.
#[test]
fn timers_handles_and_tokens_work_in_all_four_placements() {
    runtime(2).block_on(async {
        let (handle, token) = (Handle::current(), CancelToken::new());
        let (h, t) = (handle.clone(), token.clone());
        let there = spawn_to(WorkerId::new(1), async move || use_everything(h, t).await);
        let (h, t) = (handle.clone(), token.clone());
        let pinned = spawn_pinned(async move || {
            let worker = current_worker();
            assert_eq!(use_everything(h, t).await, worker, "a task that has started stays");
        });
        let here = spawn_local(use_everything(handle.clone(), token.clone()));
        let anywhere = spawn(use_everything(handle, token.clone()));
        sleep(Duration::from_millis(1)).await;
        token.cancel();
        assert_eq!(there.await.expect("it does not panic"), WorkerId::new(1));
        pinned.await.expect("it does not panic");
        assert_eq!(here.await.expect("it does not panic"), WorkerId::new(0));
        anywhere.await.expect("it does not panic");
    });
}

/// A task arms everything on one worker, and goes on on another because the first is blocked. Entries left in the first one's
/// wheel, or a waker that still meant the first one, would leave it waiting.
#[test]
fn what_a_task_waits_for_survives_its_migration() {
    let runtime = runtime(2);
    let handle = runtime.handle();
    let driver = thread::spawn(move || {
        for _ in 0..20 {
            let (first, first_worker) = mpsc::channel();
            let (moved, moved_to) = mpsc::channel();
            let (mut values, mut received) = mesh::channel(4);
            let token = CancelToken::new();
            let home_is_blocked = Arc::new(AtomicBool::new(false));
            let (its_token, goes_on, asks) = (token.clone(), Arc::clone(&home_is_blocked), handle.clone());
            let task = handle.spawn(async move {
                let home = current_worker();
                let mut slept = pin!(sleep(Duration::from_millis(2)));
                let mut limited = pin!(timeout(Duration::from_millis(2), pending::<()>()));
                let mut within = pin!(timeout(Duration::from_secs(3_600), its_token.cancelled()));
                let mut cancelled = pin!(its_token.cancelled());
                let childs_token = its_token.clone();
                let mut child = pin!(spawn(async move { childs_token.cancelled().await }));
                let mut asked = pin!(asks.spawn_to(home, async || 8));
                let mut value = pin!(received.recv());
                // One poll of each here..
                let mut begun = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut begun, true) {
                        // A timer may be first, while home is not blocked yet.
                        return if goes_on.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending };
                    }
                    assert!(slept.as_mut().poll(cx).is_pending());
                    assert!(limited.as_mut().poll(cx).is_pending());
                    assert!(within.as_mut().poll(cx).is_pending());
                    assert!(cancelled.as_mut().poll(cx).is_pending());
                    assert!(child.as_mut().poll(cx).is_pending());
                    assert!(asked.as_mut().poll(cx).is_pending());
                    assert!(value.as_mut().poll(cx).is_pending());
                    // The waker goes out, and with it the right to say when this goes on.
                    first.send((home, cx.waker().clone())).expect("the test waits for it");
                    Poll::Pending
                })
                .await;
                // .. and the rest on the other worker.
                moved.send(current_worker()).expect("the test waits for it");
                slept.await;
                assert!(limited.await.is_err(), "nobody ends it but its time");
                within.await.expect("an hour has not passed");
                cancelled.await;
                child.await.expect("it does not panic");
                assert_eq!(asked.await.expect("it does not panic"), 8);
                value.await
            });
            let (home, waker) = first_worker.recv().expect("it is polled");
            let (release, released) = mpsc::channel::<()>();
            let (blocks, blocked) = mpsc::channel();
            let stuck = handle.spawn_to(home, async move || {
                blocks.send(()).expect("the test waits for it");
                released.recv().expect("the test releases it");
            });
            blocked.recv().expect("it blocks");
            home_is_blocked.store(true, Ordering::Release);
            waker.wake();
            let went_on_at = moved_to.recv().expect("it goes on while its home is blocked");
            assert_ne!(went_on_at, home, "void: it has not moved");
            release.send(()).expect("it waits");
            token.cancel();
            values.try_send(9).expect("there is room");
            assert_eq!(wait(task).expect("it does not panic"), Some(9));
            wait(stuck).expect("it does not panic");
        }
    });
    runtime.block_on(async {
        while !driver.is_finished() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    driver.join().expect("it does not panic");
}

/// Waits on this thread.
fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Without thieves a task runs where it lies, also behind a poll that blocks, however idle the others are. A setting that stopped
/// nothing but the counting would let them run.
#[test]
fn stealing_can_be_switched_off() {
    const TASKS: usize = 100;
    let runtime =
        Builder::new().workers(2).pin(false).steal(false).build().expect("this kernel has io_uring");
    let handle = runtime.handle();
    runtime.block_on(async {
        let stuck_worker = WorkerId::new(1);
        let (open, ran) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (waiting, all_wait) = mpsc::channel::<Waker>();
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let (open, ran, waiting) = (Arc::clone(&open), Arc::clone(&ran), waiting.clone());
                spawn(async move {
                    let mut told = false;
                    poll_fn(|cx| {
                        if open.load(Ordering::Acquire) {
                            return Poll::Ready(());
                        }
                        if !std::mem::replace(&mut told, true) {
                            waiting.send(cx.waker().clone()).expect("the test waits for it");
                        }
                        Poll::Pending
                    })
                    .await;
                    ran.fetch_add(1, Ordering::Relaxed);
                    current_worker()
                })
            })
            .collect();
        let mut wakers = Vec::new();
        while wakers.len() < TASKS {
            wakers.extend(all_wait.try_iter());
            yield_now().await;
        }
        let ((blocks, blocked), (release, released)) = (mpsc::channel(), mpsc::channel::<()>());
        let stuck = spawn_to(stuck_worker, async move || {
            open.store(true, Ordering::Release);
            // A task that is woken by a worker goes into that worker's queue.
            wakers.into_iter().for_each(Waker::wake);
            blocks.send(()).expect("the test waits for it");
            released.recv().expect("the test releases it");
        });
        while blocked.try_recv().is_err() {
            nop().await.expect("a nop succeeds");
        }
        // Each time this worker has nothing else to do it would look for something.
        for _ in 0..1_000 {
            nop().await.expect("a nop succeeds");
        }
        assert_eq!(ran.load(Ordering::Relaxed), 0, "they lie behind a poll that blocks");
        release.send(()).expect("it waits");
        stuck.await.expect("it does not panic");
        for task in tasks {
            assert_eq!(task.await.expect("it does not panic"), stuck_worker);
        }
    });
    let metrics = handle.metrics();
    assert_eq!(metrics.iter().map(|worker| worker.steals + worker.stolen).sum::<u64>(), 0);
    assert_eq!(metrics.iter().map(|worker| worker.placed).sum::<u64>(), 100);
}

/// Thefts that are not counted cannot be seen, and a policy cannot be judged.
#[test]
fn thefts_are_counted() {
    let runtime = runtime(2);
    let handle = runtime.handle();
    let there = runtime.block_on(async {
        let there = spawn_to(WorkerId::new(1), async || {
            let (ran, all_ran) = mpsc::channel();
            for _ in 0..100 {
                let ran = ran.clone();
                drop(spawn(async move { ran.send(current_worker()).expect("the poll waits for it") }));
            }
            drop(ran);
            all_ran.iter().filter(|worker| *worker == WorkerId::new(0)).count()
        });
        there.await.expect("it does not panic")
    });
    let metrics = handle.metrics();
    assert_eq!(there, 100, "the other worker was blocked");
    assert!(metrics[0].steals > 0 && metrics[0].stolen >= metrics[0].steals, "{metrics:?}");
    assert_eq!(metrics[1].placed, 100);
}

/// What comes from outside is placed like anything else, and a count that leaves it out shows less than half of what a server places
/// that takes its work from another thread.
#[test]
fn placements_from_outside_are_counted() {
    let runtime = runtime(2);
    let handle = runtime.handle();
    let before = handle.metrics();
    let outside = thread::spawn({
        let handle = handle.clone();
        move || {
            for _ in 0..10 {
                wait(handle.spawn(async {})).expect("it does not panic");
            }
            for _ in 0..5 {
                wait(handle.spawn_pinned(async || {})).expect("it does not panic");
            }
        }
    });
    runtime.block_on(async {
        while !outside.is_finished() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    outside.join().expect("it does not panic");
    let work = handle.metrics().since(&before);
    assert_eq!((work.placed_by_handles(), work.total().placed), (15, 0), "{work}");
}

/// Counts what is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task that waits for ever, one that yields for ever and one that never started: each has a different place at the end.
#[test]
fn whatever_is_unfinished_at_the_end_is_dropped_once() {
    for _ in 0..50 {
        let dropped = Arc::new(AtomicUsize::new(0));
        let runtime = runtime(2);
        let handle = runtime.handle();
        let mut waits = None;
        runtime.block_on(async {
            for _ in 0..50 {
                let counted = [(); 3].map(|()| Counted(Arc::clone(&dropped)));
                let [waits, yields, pinned] = counted;
                drop(spawn(async move {
                    let _waits = waits;
                    pending::<()>().await;
                }));
                drop(spawn(async move {
                    let _yields = yields;
                    loop {
                        yield_now().await;
                    }
                }));
                drop(spawn_pinned(async move || {
                    let _pinned = pinned;
                    pending::<()>().await;
                }));
            }
            yield_now().await;
            waits = Some(spawn(pending::<()>()));
        });
        assert_eq!(dropped.load(Ordering::Relaxed), 150);
        let waits = waits.expect("it was spawned");
        assert!(wait(waits).expect_err("the runtime has ended").is_cancelled());
        assert!(wait(handle.spawn(async {})).expect_err("the runtime has ended").is_cancelled());
        assert!(wait(handle.spawn_pinned(async || {})).expect_err("the runtime has ended").is_cancelled());
    }
}

/// An abort that is seen only by an owner is not seen by a task that has none.
#[test]
fn abort_and_panic_end_a_stealable_task() {
    runtime(2).block_on(async {
        for _ in 0..100 {
            let waits = spawn(pending::<()>());
            let yields = spawn(async {
                loop {
                    yield_now().await;
                }
            });
            let panics = spawn(async {
                yield_now().await;
                std::panic::resume_unwind(Box::new("out of luck"));
            });
            yield_now().await;
            waits.abort();
            let aborts = yields.abort_handle();
            thread::spawn(move || aborts.abort()).join().expect("it does not panic");
            assert!(waits.await.expect_err("it was aborted").is_cancelled());
            assert!(yields.await.expect_err("it was aborted").is_cancelled());
            assert!(panics.await.expect_err("it panicked").is_panic());
        }
    });
}
