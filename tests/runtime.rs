//! A runtime starts, runs what it is given on the workers it is given it for, and ends whatever is left.

use std::cell::Cell;
use std::error::Error as _;
use std::rc::Rc;
use std::time::Duration;

use veloq::runtime::{Builder, Handle};
use veloq::task::{JoinSet, SendRefused, yield_now};
use veloq::time::sleep;
use veloq::{WorkerId, current_worker, spawn_local, spawn_to, workers};

fn runtime(workers: usize) -> veloq::Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

/// A future that borrows from its caller must be gone when `block_on` returns; its result must arrive.
#[test]
fn block_on_returns_what_the_future_made_of_borrowed_values() {
    let word = String::from("borrowed");
    let length = runtime(1).block_on(async { word.len() });
    assert_eq!(length, word.len());
}

/// A wake that is lost anywhere between workers leaves this test hanging.
#[test]
fn a_task_runs_on_the_worker_it_is_sent_to_and_answers_across_the_mesh() {
    runtime(3).block_on(async {
        for _ in 0..200 {
            for worker in workers() {
                let seen = spawn_to(worker, async move || current_worker()).await.expect("it does not panic");
                assert_eq!(seen, worker);
            }
        }
    });
}

/// A message that was refused for want of room, and says that it was cancelled, would look like one that somebody aborted.
#[test]
fn a_message_beyond_the_bound_is_refused_and_names_the_worker() {
    runtime(2).block_on(async {
        let other = workers().last().expect("there are two");
        // None goes out before this turn ends.
        let mut set = JoinSet::new();
        for n in 0..5_120 {
            set.spawn_to(other, async move || n);
        }
        let refused = spawn_to(other, async || ()).await.expect_err("there is no room");
        let source = refused.source().and_then(|source| source.downcast_ref::<SendRefused>());
        let source = source.expect("the source says why");
        assert_eq!((source.worker, source.messages_max), (other, 5_120));
        assert!(refused.is_refused() && !refused.is_cancelled() && !refused.is_panic());
        let said = "was refused: 5120 messages from here wait for worker 1 already";
        assert!(refused.to_string().ends_with(said), "{refused}");
        set.spawn_to(other, async || 0);
        set.insert(veloq::task::Builder::new().name("named").spawn_to(other, async || 0));
        let (mut sum, mut refused) = (0, 0);
        while let Some(ended) = set.join_next().await {
            match ended {
                Ok(n) => sum += n,
                Err(error) => refused += u32::from(error.is_refused()),
            }
        }
        assert_eq!((sum, refused), ((0..5_120).sum(), 2));
        spawn_to(other, async || ()).await.expect("there is room again");
    });
}

/// More messages than ring and outbox hold, from two sides at once: none may be lost, none may run twice.
#[test]
fn a_storm_of_messages_loses_none() {
    runtime(2).block_on(async {
        let mut answers = Vec::new();
        let other = WorkerId::new(1);
        for round in 0..40 {
            let batch: Vec<_> = (0..1000u64).map(|n| spawn_to(other, async move || n)).collect();
            for (expected, answer) in (0u64..).zip(batch) {
                assert_eq!(answer.await.expect("it is not refused"), expected);
            }
            answers.push(round);
        }
        assert_eq!(answers.len(), 40);
    });
}

/// 5,000 tasks made ready at once are more than any budget: those beyond it must come in later turns.
#[test]
fn all_tasks_made_ready_at_once_run() {
    runtime(1).block_on(async {
        let ran = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..5000)
            .map(|_| {
                let ran = Rc::clone(&ran);
                spawn_local(async move { ran.set(ran.get() + 1) })
            })
            .collect();
        for task in tasks {
            task.await.expect("it does not panic");
        }
        assert_eq!(ran.get(), 5000);
    });
}

/// A sleeping worker must be woken by its wheel's deadline, and never early.
#[test]
fn a_sleep_ends_after_its_time() {
    runtime(1).block_on(async {
        let start = veloq::time::Instant::now();
        sleep(Duration::from_millis(20)).await;
        assert!(start.elapsed() >= Duration::from_millis(20));
    });
}

/// A foreign thread's task must wake a worker that is parked.
#[test]
fn a_handle_reaches_a_sleeping_runtime_from_another_thread() {
    runtime(2).block_on(async {
        let handle = Handle::current();
        let task =
            std::thread::spawn(move || handle.spawn_to(WorkerId::new(1), async move || current_worker()))
                .join()
                .expect("the thread does not panic");
        assert_eq!(task.await.expect("it does not panic"), WorkerId::new(1));
    });
}

/// Futures dropped at the end must be dropped on their worker, where their `Rc`s are.
#[test]
fn the_end_drops_tasks_that_never_finish() {
    struct OnDrop(std::sync::mpsc::Sender<std::thread::ThreadId>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let ids = runtime(2).block_on(async {
        let mut ids = Vec::new();
        for worker in workers() {
            let sender = sender.clone();
            let id = spawn_to(worker, async move || {
                drop(spawn_local(async move {
                    let _kept = OnDrop(sender);
                    std::future::pending::<()>().await;
                }));
                yield_now().await; // The other is polled before this one again.
                std::thread::current().id()
            });
            ids.push(id.await.expect("it does not panic"));
        }
        ids
    });
    drop(sender);
    let mut dropped: Vec<_> = receiver.iter().collect();
    let mut expected = ids;
    dropped.sort_by_key(|id| format!("{id:?}"));
    expected.sort_by_key(|id| format!("{id:?}"));
    assert_eq!(dropped, expected);
}

/// A panic ends its task, and reaches whoever joins it.
#[test]
fn a_panic_ends_its_task_and_nothing_else() {
    runtime(2).block_on(async {
        let error = spawn_local(async { panic!("as planned") }).await.expect_err("it panics");
        assert!(error.is_panic());
        let error = spawn_to(WorkerId::new(1), async move || {
            assert!(current_worker() == WorkerId::new(0), "as planned");
        });
        assert!(error.await.expect_err("it panics").is_panic());
        assert_eq!(spawn_to(WorkerId::new(1), async move || 7).await.expect("that worker lives on"), 7);
    });
}

/// The main future's panic must reach the caller of `block_on`, after everything has ended.
#[test]
#[should_panic(expected = "as planned")]
fn a_panic_of_the_main_future_is_the_callers() {
    runtime(2).block_on(async { panic!("as planned") });
}

/// A poll that does not return must not keep the program from its end; and when it does return, the worker's futures must be dropped
/// there, as ever, though nobody waits for it.
#[test]
fn a_worker_that_is_stuck_is_left_to_end_by_itself() {
    struct OnDrop(std::sync::mpsc::Sender<Option<std::thread::ThreadId>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.send(Some(std::thread::current().id()));
        }
    }
    let runtime = Builder::new().workers(2).pin(false).drain_patience(Duration::from_millis(5));
    let runtime = runtime.build().expect("this kernel has io_uring");
    let handle = runtime.handle();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (dropped, drops) = std::sync::mpsc::channel();
    let thread = runtime.block_on(async move {
        let stuck = WorkerId::new(1);
        let waits = dropped.clone();
        let id = spawn_to(stuck, async move || {
            let kept = OnDrop(waits);
            drop(spawn_local(async move {
                let _kept = kept;
                std::future::pending::<()>().await;
            }));
            veloq::task::yield_now().await;
            std::thread::current().id()
        });
        let id = id.await.expect("it does not panic");
        drop(spawn_to(stuck, async move || {
            dropped.send(None).expect("the test listens");
            // Blocks the whole worker, as no task should.
            let _released = released.recv();
        }));
        while drops.try_recv().is_err() {
            veloq::task::yield_now().await;
        }
        (id, drops)
    });
    let (id, drops) = thread;
    assert_eq!(handle.stuck_workers(), [WorkerId::new(1)]);
    assert!(drops.try_recv().is_err(), "nobody else drops its futures");
    drop(release);
    assert_eq!(drops.recv().expect("it ends"), Some(id), "on its own thread");
}
