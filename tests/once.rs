//! Promise: every task runs, and is dropped, exactly once and where it should be, however it ends.
//!
//! `scripts/storm` runs these with millions of tasks; here is a slice.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn};
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};

use veloq::runtime::{Builder, Runtime};
use veloq::task::yield_now;
use veloq::{WorkerId, spawn, spawn_local, spawn_pinned, spawn_to};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("it is a number"))
}

fn runtime() -> Runtime {
    Builder::new().workers(2).pin(false).build().expect("this kernel has io_uring")
}

/// Tasks that are joined at a time: enough that rings overflow.
const BATCH: u64 = 2_000;

/// Counts its drops.
struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task that two workers take from a queue is polled after its end, one that neither takes is never joined. Each is numbered, so that
/// one that ran twice cannot make up for one that did not.
#[test]
fn stealable_tasks_run_and_are_dropped_once() {
    static RAN: AtomicU64 = AtomicU64::new(0);
    static SUM: AtomicU64 = AtomicU64::new(0);
    static DROPPED: AtomicU64 = AtomicU64::new(0);
    let tasks = number("VELOQ_TASKS", 100_000).next_multiple_of(BATCH);
    runtime().block_on(async {
        for batch in 0..tasks / BATCH {
            let numbers = batch * BATCH..(batch + 1) * BATCH;
            let handles: Vec<_> = numbers
                .map(|n| {
                    let counted = Counted(&DROPPED);
                    spawn(async move {
                        let _counted = counted;
                        for _ in 0..n % 3 {
                            yield_now().await;
                        }
                        RAN.fetch_add(1, Ordering::Relaxed);
                        SUM.fetch_add(n, Ordering::Relaxed);
                    })
                })
                .collect();
            for handle in handles {
                handle.await.expect("it does not panic");
            }
        }
    });
    assert_eq!(RAN.load(Ordering::Relaxed), tasks);
    assert_eq!(SUM.load(Ordering::Relaxed), tasks * (tasks - 1) / 2);
    assert_eq!(DROPPED.load(Ordering::Relaxed), tasks);
}

/// A payload whose destructor panics.
struct Grudge;

impl Drop for Grudge {
    fn drop(&mut self) {
        resume_unwind(Box::new("never again"));
    }
}

/// Panics when it is dropped.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 {
            resume_unwind(Box::new("dropped"));
        }
    }
}

/// A panic that is not caught where it is made takes a worker with it, and all of its tasks; one that is caught too late leaves its task
/// without an answer.
#[test]
fn tasks_that_panic_lose_nothing_else() {
    static DROPPED: AtomicU64 = AtomicU64::new(0);
    let tasks = number("VELOQ_PANICS", 20_000).next_multiple_of(BATCH);
    let (mut fine, mut panicked) = (0, 0);
    let counts = runtime().block_on(async {
        for _ in 0..tasks / BATCH {
            let handles: Vec<_> = (0..BATCH)
                .map(|n| {
                    let counted = Counted(&DROPPED);
                    // Of thirty tasks three panic, each in its own way.
                    let bomb = Bomb(n % 30 == 20);
                    spawn(async move {
                        let (_counted, _bomb) = (counted, bomb);
                        yield_now().await;
                        match n % 30 {
                            0 => resume_unwind(Box::new("polled")),
                            10 => resume_unwind(Box::new(Grudge)),
                            _ => n,
                        }
                    })
                })
                .collect();
            for (n, handle) in (0..BATCH).zip(handles) {
                match handle.await {
                    Ok(number) => {
                        assert_eq!(number, n);
                        fine += 1;
                    }
                    Err(error) => {
                        assert!(error.is_panic() && n % 10 == 0, "{error}");
                        panicked += 1;
                        // Its payload may have a grudge.
                        let payload = error.into_panic();
                        if payload.is::<Grudge>() {
                            std::mem::forget(payload);
                        }
                    }
                }
            }
        }
        (fine, panicked)
    });
    let each = (0..BATCH).filter(|n| n % 10 == 0).count() as u64;
    assert_eq!(counts, (tasks - tasks / BATCH * each, tasks / BATCH * each));
    assert_eq!(DROPPED.load(Ordering::Relaxed), tasks);
}

/// The payload of a panic that nobody will ask for is dropped by the worker. If that panics in turn, the worker must not go with it.
#[test]
fn a_grudge_of_a_detached_task_ends_with_it() {
    static DROPPED: AtomicU64 = AtomicU64::new(0);
    const TASKS: u64 = 3 * 500;
    fn bears_a_grudge(early: bool) -> impl Future<Output = ()> {
        let counted = Counted(&DROPPED);
        async move {
            let _counted = counted;
            if !early {
                yield_now().await;
            }
            resume_unwind(Box::new(Grudge))
        }
    }
    runtime().block_on(async {
        for n in 0..TASKS / 3 {
            drop(spawn(bears_a_grudge(n % 2 == 0)));
            drop(spawn_local(bears_a_grudge(n % 2 == 0)));
            drop(spawn_pinned(async move || bears_a_grudge(n % 2 == 0).await));
        }
        while DROPPED.load(Ordering::Relaxed) < TASKS {
            yield_now().await;
        }
        for worker in veloq::workers() {
            assert_eq!(spawn_to(worker, async || 7).await.expect("the worker is there"), 7);
        }
    });
    assert_eq!(DROPPED.load(Ordering::Relaxed), TASKS);
}

/// Must be dropped on the thread that made it.
struct Local<'a> {
    made_on: ThreadId,
    elsewhere: &'a AtomicU64,
    dropped: &'a AtomicU64,
    here: PhantomData<Rc<Cell<u8>>>,
}

impl<'a> Local<'a> {
    fn new(elsewhere: &'a AtomicU64, dropped: &'a AtomicU64) -> Local<'a> {
        Local { made_on: thread::current().id(), elsewhere, dropped, here: PhantomData }
    }
}

impl Drop for Local<'_> {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if thread::current().id() != self.made_on {
            self.elsewhere.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Futures that are not `Send`, by each way in which one can end. A route that drops it where the last reference dies would be seen in
/// the thread; one that forgets it, in the count.
#[test]
fn futures_that_must_stay_are_dropped_where_they_were_made() {
    static ELSEWHERE: AtomicU64 = AtomicU64::new(0);
    static DROPPED: AtomicU64 = AtomicU64::new(0);
    /// Closures that had not started when the runtime ended: they made no future.
    static UNSTARTED: AtomicU64 = AtomicU64::new(0);
    struct Unstarted;
    impl Drop for Unstarted {
        fn drop(&mut self) {
            UNSTARTED.fetch_add(1, Ordering::Relaxed);
        }
    }
    /// Waits for ever, and gives its waker away.
    fn waits(wakers: mpsc::Sender<Waker>) -> impl Future<Output = ()> {
        let local = Local::new(&ELSEWHERE, &DROPPED);
        let mut given = false;
        poll_fn(move |cx: &mut Context<'_>| {
            let _local = &local;
            if !std::mem::replace(&mut given, true) {
                let _nobody_wants_it = wakers.send(cx.waker().clone());
            }
            Poll::Pending
        })
    }
    const ROUTES: u64 = 6;
    const PER_RUNTIME: u64 = 500;
    let tasks = number("VELOQ_LOCALS", 12_000).next_multiple_of(ROUTES * PER_RUNTIME);
    for _ in 0..tasks / (ROUTES * PER_RUNTIME) {
        let (aborts, to_abort) = mpsc::channel::<veloq::task::AbortHandle>();
        let (wakers, to_wake) = mpsc::channel::<Waker>();
        // Aborts, wakes and drops the last wakers, while the workers end and afterwards.
        let afar = thread::spawn(move || {
            to_abort.into_iter().for_each(|abort| abort.abort());
            for waker in to_wake {
                waker.wake_by_ref();
            }
        });
        runtime().block_on(async {
            let work = async |wakers: mpsc::Sender<Waker>, aborts: mpsc::Sender<_>, count: u64| {
                for _ in 0..count {
                    let here = spawn_local(waits(wakers.clone()));
                    let from_afar = spawn_local(waits(wakers.clone()));
                    drop(spawn_local(waits(wakers.clone())));
                    let (pinned, unstarted) = (wakers.clone(), Unstarted);
                    drop(spawn_pinned(async move || {
                        std::mem::forget(unstarted);
                        waits(pinned).await;
                    }));
                    drop(spawn_local(async {
                        let _local = Local::new(&ELSEWHERE, &DROPPED);
                        yield_now().await;
                    }));
                    let local = Local::new(&ELSEWHERE, &DROPPED);
                    let mut never_awaited: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                        let _local = local;
                        pending::<()>().await;
                    });
                    poll_fn(|cx| {
                        assert!(never_awaited.as_mut().poll(cx).is_pending());
                        Poll::Ready(())
                    })
                    .await;
                    drop(spawn_local(never_awaited));
                    yield_now().await;
                    here.abort();
                    aborts.send(from_afar.abort_handle()).expect("the other thread listens");
                }
            };
            let (w, a) = (wakers.clone(), aborts.clone());
            let there = spawn_to(WorkerId::new(1), async move || work(w, a, PER_RUNTIME / 2).await);
            work(wakers, aborts, PER_RUNTIME / 2).await;
            there.await.expect("it does not panic");
        });
        afar.join().expect("it does not panic");
    }
    assert_eq!(ELSEWHERE.load(Ordering::Relaxed), 0, "a future left its thread");
    assert_eq!(DROPPED.load(Ordering::Relaxed) + UNSTARTED.load(Ordering::Relaxed), tasks);
}
