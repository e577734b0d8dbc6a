//! What can be had of tasks beyond running them: names, sets, gates, values of their own.

use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use veloq::runtime::{Builder, Handle};
use veloq::task;
use veloq::{WorkerId, spawn_local};

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
