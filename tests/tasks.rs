//! What can be had of tasks beyond running them: names, sets, gates, values of their own.

use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use veloq::runtime::{Builder, Handle};
use veloq::task::{self, CancelToken, JoinSet};
use veloq::{WorkerId, spawn_local, spawn_to};

fn runtime(workers: usize) -> veloq::Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

/// A name that is lost on the way, or told of the wrong task, misleads whoever reads a dump.
#[test]
fn a_task_knows_its_name_and_number_wherever_it_runs() {
    runtime(2).block_on(async {
        for worker in veloq::workers() {
            let named = task::Builder::new().name("flush").spawn_to(worker, async move || {
                let inner = spawn_local(async { (task::id(), task::name()) });
                let inner_id = inner.id();
                let (id, name) = inner.await.expect("it does not panic");
                assert_eq!((id, name), (Some(inner_id), None), "a name is not inherited");
                task::yield_now().await;
                (task::id(), task::name())
            });
            assert_eq!(named.name(), Some("flush"));
            let id = named.id();
            let (seen_id, seen_name) = named.await.expect("it does not panic");
            assert_eq!(seen_id, Some(id));
            assert_eq!(seen_name.as_deref(), Some("flush"));
        }
        let numbered = (0..3).map(|n| task::Builder::new().name(format!("shard {n}")).spawn_local(async {}));
        let names: Vec<_> = numbered.map(|task| task.name().map(str::to_owned)).collect();
        assert_eq!(names, ["shard 0", "shard 1", "shard 2"].map(|name| Some(name.to_owned())));
    });
    assert_eq!((task::id(), task::name()), (None, None), "no task runs here");
}

/// Whoever reads that a task died must learn which: the place of the caller's own line, not one inside the runtime.
#[test]
fn an_error_names_the_task_and_the_line_that_spawned_it() {
    runtime(1).block_on(async {
        let named = task::Builder::new().name("flush");
        let first_line = line!();
        let tasks = [
            named.clone().spawn_local(std::future::pending::<()>()),
            named.spawn_to(WorkerId::new(0), async move || std::future::pending::<()>().await),
            spawn_local(std::future::pending::<()>()),
            veloq::spawn_to(WorkerId::new(0), async move || std::future::pending::<()>().await),
            Handle::current().spawn_to(WorkerId::new(0), async move || std::future::pending::<()>().await),
        ];
        for (task, line) in tasks.into_iter().zip(first_line + 2..) {
            task.abort();
            let (id, name) = (task.id(), task.name().map(str::to_owned));
            let error = task.await.expect_err("it was aborted");
            assert_eq!((error.id(), error.name()), (id, name.as_deref()));
            assert_eq!((error.location().file(), error.location().line()), (file!(), line));
            let said = error.to_string();
            assert!(
                said.contains(&format!("{id}")) && said.contains(&format!("{}:{line}", file!())),
                "{said}"
            );
            assert_eq!(said.contains("\"flush\""), name.is_some(), "{said}");
        }
    });
}

veloq::task_local! {
    /// What the tests below put into scopes.
    static DEPTH: u32;
    static NOTES: Rc<Cell<u32>>;
}

fn depth() -> Option<u32> {
    DEPTH.try_with(|depth| *depth).ok()
}

/// A value that stays in the slot between polls is another task's at the next one.
#[test]
fn each_task_sees_the_value_of_its_own_scope_at_every_await() {
    runtime(2).block_on(async {
        let tasks: Vec<_> = (0..100u32)
            .map(|n| {
                let worker = WorkerId::new(n as usize % 2);
                let steps = async move {
                    for _ in 0..10 {
                        task::yield_now().await;
                        assert_eq!(depth(), Some(n));
                        let inner = DEPTH.scope(n + 1000, async {
                            task::yield_now().await;
                            depth()
                        });
                        assert_eq!(inner.await, Some(n + 1000), "the innermost scope counts");
                        assert_eq!(DEPTH.sync_scope(n + 2000, depth), Some(n + 2000));
                        assert_eq!(
                            spawn_local(async { depth() }).await.expect("no panic"),
                            None,
                            "not inherited"
                        );
                    }
                };
                veloq::spawn_to(worker, move || DEPTH.scope(n, steps))
            })
            .collect();
        for task in tasks {
            task.await.expect("it does not panic");
        }
        assert_eq!(depth(), None);
    });
}

/// A panic between the two swaps must not leave the inner value to whoever is polled next on this thread.
#[test]
fn a_panic_leaves_the_slot_as_it_was() {
    DEPTH.sync_scope(1, || {
        let panics = AssertUnwindSafe(|| DEPTH.sync_scope(2, || panic!("as planned")));
        assert!(catch_unwind(panics).is_err());
        assert_eq!(depth(), Some(1));
        let mut future = pin!(DEPTH.scope(3, async {
            if depth() == Some(3) {
                panic!("as planned")
            }
        }));
        let poll = AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        assert!(catch_unwind(poll).is_err());
        assert_eq!(depth(), Some(1));
    });
    assert_eq!(depth(), None);
}

/// A destructor that logs with the request's number must find it, whether the future ended or was dropped on the way.
#[test]
fn a_future_is_dropped_with_its_value_in_place() {
    struct Notes(u32);
    impl Drop for Notes {
        fn drop(&mut self) {
            NOTES.with(|notes| notes.set(notes.get() + self.0));
        }
    }
    runtime(1).block_on(async {
        let (ended, dropped) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let notes = Notes(1);
        NOTES
            .scope(
                ended.clone(),
                poll_fn(move |_| {
                    let _notes = &notes;
                    Poll::Ready(())
                }),
            )
            .await;
        assert_eq!(ended.get(), 1, "by the poll that ended it");
        let notes = Notes(10);
        let waits = NOTES.scope(dropped.clone(), async move {
            let _notes = notes;
            std::future::pending::<()>().await;
        });
        assert!(veloq::time::timeout(Duration::ZERO, waits).await.is_err());
        assert_eq!(dropped.get(), 10, "by the drop");
    });
}

/// Swapping under a borrow would show `with` another value than it looks at.
#[test]
#[should_panic(expected = "cannot be entered inside `with`")]
fn a_scope_is_not_entered_while_its_key_is_looked_at() {
    DEPTH.sync_scope(1, || DEPTH.with(|_| DEPTH.sync_scope(2, || ())));
}

/// A value that stayed in the first thread's slot would be missing on the second, and found by others on the first.
#[test]
fn the_value_goes_where_its_future_goes() {
    let poll = |future: &mut std::pin::Pin<Box<dyn Future<Output = Option<u32>> + Send>>| {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    };
    let mut future: std::pin::Pin<Box<dyn Future<Output = Option<u32>> + Send>> =
        Box::pin(DEPTH.scope(7, async {
            task::yield_now().await;
            depth()
        }));
    assert!(poll(&mut future).is_pending());
    assert_eq!(depth(), None);
    let elsewhere = std::thread::spawn(move || (poll(&mut future), depth()));
    assert_eq!(elsewhere.join().expect("it does not panic"), (Poll::Ready(Some(7)), None));
}

/// Looking through all tasks at every end would poll the one who joins ten thousand times ten thousand; a lost end would leave it
/// waiting.
#[test]
fn ten_thousand_tasks_are_joined_in_the_order_in_which_they_end() {
    const TASKS: u64 = 10_000;
    runtime(2).block_on(async {
        let mut set = JoinSet::new();
        let (start, turn) = (CancelToken::new(), Rc::new(Cell::new(0)));
        for n in 0..TASKS {
            let (start, turn) = (start.clone(), Rc::clone(&turn));
            set.spawn_local(async move {
                // Half of them end in the reverse order.
                start.cancelled().await;
                while n % 2 == 1 && turn.get() + n < TASKS {
                    task::yield_now().await;
                }
                turn.set(turn.get() + 1);
                turn.get()
            });
            if n % 100 == 0 {
                // The other worker's are among them, and end when they like.
                set.spawn_to(WorkerId::new(1), async move || 0);
            }
        }
        assert_eq!(set.len(), 10_100);
        start.cancel();
        let (mut polls, mut last, mut ended) = (0u64, 0, 0);
        loop {
            let next = poll_fn(|cx| {
                polls += 1;
                set.poll_join_next(cx)
            });
            let Some(result) = next.await else { break };
            ended += 1;
            match result.expect("it does not panic") {
                0 => {}
                turn => {
                    assert_eq!(turn, last + 1, "in the order in which they ended");
                    last = turn;
                }
            }
        }
        assert_eq!((ended, last), (10_100, TASKS));
        // One poll for each end, one for the end of all, and one more for each wait, of which an end ends each.
        assert!(polls <= 2 * 10_100 + 1, "{polls} polls");
    });
}

/// Values and errors must not be mixed up, and each must be told once.
#[test]
fn a_set_tells_of_each_task_what_came_of_it() {
    runtime(2).block_on(async {
        let mut set = JoinSet::default();
        assert!(set.join_next().await.is_none() && set.try_join_next().is_none());
        set.spawn_local(async { 1 });
        set.spawn_to(WorkerId::new(1), async move || 2);
        set.spawn_local(async { panic!("as planned") });
        set.spawn_local(std::future::pending()).abort();
        let over = spawn_local(async { 3 });
        while !over.is_finished() {
            task::yield_now().await;
        }
        set.insert(over);
        set.spawn(async { 4 });
        set.spawn_pinned(async || 5);
        let (mut values, mut panics, mut cancelled) = (Vec::new(), 0, 0);
        for left in (0..7).rev() {
            match set.join_next().await.expect("there is one more") {
                Ok(value) => values.push(value),
                Err(error) if error.is_panic() => panics += 1,
                Err(_) => cancelled += 1,
            }
            assert_eq!(set.len(), left);
        }
        values.sort_unstable();
        assert_eq!((values, panics, cancelled), (vec![1, 2, 3, 4, 5], 1, 1));
        // Places are used again, and an end that is not waited for is found.
        set.spawn_local(async { 4 });
        let four = loop {
            match set.try_join_next() {
                Some(four) => break four,
                None => task::yield_now().await,
            }
        };
        assert_eq!(four.expect("it does not panic"), 4);
    });
}

/// A task that outlives its set, or a shutdown that returns before the futures are dropped, keeps what it should have given up.
#[test]
fn a_set_takes_its_tasks_with_it() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    async fn endless(dropped: Dropped) {
        let _dropped = dropped;
        std::future::pending::<()>().await;
    }
    runtime(2).block_on(async {
        let count = Arc::new(AtomicUsize::new(0));
        let fill = |set: &mut JoinSet<()>| {
            for worker in veloq::workers() {
                let dropped = Dropped(count.clone());
                set.spawn_to(worker, move || endless(dropped));
            }
        };
        let mut set = JoinSet::new();
        fill(&mut set);
        set.shutdown().await;
        assert_eq!((count.load(Ordering::Relaxed), set.len()), (2, 0));

        fill(&mut set);
        drop(set);
        while count.load(Ordering::Relaxed) < 4 {
            task::yield_now().await;
        }

        let mut set = JoinSet::new();
        fill(&mut set);
        let ends = set.spawn_local(async {});
        while !ends.is_finished() {
            task::yield_now().await;
        }
        set.detach_all();
        assert!(set.is_empty() && set.join_next().await.is_none());
        // What an old task has told must not be taken for news of the new ones.
        set.spawn_local(task::yield_now());
        assert!(set.join_next().await.expect("it is there").is_ok());
        drop(set);
        let alive = Handle::current();
        spawn_to(WorkerId::new(1), async move || alive.workers()).await.expect("it does not panic");
        assert_eq!(count.load(Ordering::Relaxed), 4, "detached tasks go on");
    });
}

/// An abort that is only looked at when the task is next woken would leave each of these waiting for ever; one that drops the
/// future elsewhere would be seen by the thread that drops it.
#[test]
fn an_abort_is_seen_at_the_await_wherever_the_task_waits() {
    struct OnDrop(std::sync::mpsc::Sender<std::thread::ThreadId>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().id());
        }
    }
    const LONG: Duration = Duration::from_secs(3600);
    type Wait = fn() -> std::pin::Pin<Box<dyn Future<Output = ()>>>;
    let waits: [Wait; 7] = [
        || Box::pin(std::future::pending()),
        || Box::pin(async { veloq::time::sleep(LONG).await }),
        || Box::pin(async { veloq::time::timeout(LONG, std::future::pending::<()>()).await.unwrap_or(()) }),
        || {
            Box::pin(async {
                let (left, right) = (pin!(veloq::time::sleep(LONG)), pin!(std::future::pending::<()>()));
                futures_util::future::select(left, right).await;
            })
        },
        || {
            Box::pin(async {
                let mut set = JoinSet::new();
                set.spawn_local(std::future::pending::<()>());
                set.join_next().await;
            })
        },
        || {
            Box::pin(async {
                let gate = task::Gate::new();
                let pass = gate.enter();
                gate.close().await;
                drop(pass);
            })
        },
        || Box::pin(async { CancelToken::new().cancelled().await }),
    ];
    runtime(2).block_on(async {
        for worker in veloq::workers() {
            let thread = spawn_to(worker, async move || std::thread::current().id());
            let thread = thread.await.expect("it does not panic");
            for wait in waits {
                let (dropped, drops) = std::sync::mpsc::channel();
                let waiting = CancelToken::new();
                let begun = waiting.clone();
                let task = spawn_to(worker, async move || {
                    let _dropped = OnDrop(dropped);
                    begun.cancel();
                    wait().await;
                });
                waiting.cancelled().await;
                task.abort();
                assert!(task.await.expect_err("it was aborted").is_cancelled());
                assert_eq!(drops.recv(), Ok(thread), "its future is gone when its handle says so");
            }
        }
        // What is ready when it is polled has not come to an await.
        let ready = spawn_local(async { 7 });
        task::yield_now().await;
        ready.abort();
        assert_eq!(ready.await.expect("it ended before"), 7);
    });
}
