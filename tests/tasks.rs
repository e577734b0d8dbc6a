//! What can be had of tasks beyond running them: names, sets, gates, values of their own.

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
