//! Work that blocks: it runs beside the workers, ends as it says, and is never silent where that is forbidden.

#[path = "system/processors.rs"]
mod processors;

use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use veloq::runtime::{Builder, Handle};
use veloq::task::{self, BlockingHandle, JoinError, PoolRefused};

fn builder() -> Builder {
    Builder::new().workers(1).pin(false)
}

/// A job that says when it runs, and ends when the sender is dropped.
fn gated() -> (BlockingHandle<()>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (say, running) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let job = veloq::spawn_blocking(move || {
        say.send(()).expect("the test waits");
        let _ended = gate.recv();
    });
    (job, running, go)
}

fn refusal(error: &(dyn Error + 'static)) -> PoolRefused {
    *error.source().and_then(|source| source.downcast_ref()).expect("the source says why")
}

// A job that ran on the worker would wait for a task that waits for it.
#[test]
fn a_job_that_blocks_keeps_no_task_waiting() {
    builder().build().expect("a runtime").block_on(async {
        let (send, receive) = mpsc::channel();
        let job = veloq::spawn_blocking(move || receive.recv().expect("the task sends") + 1);
        veloq::spawn_local(async move { send.send(41).expect("the job waits") });
        assert_eq!(job.await.expect("it ran"), 42);
    });
}

// An error that said only "panicked" would send its reader searching through every job there is.
#[test]
fn a_panic_reaches_the_handle_with_name_and_place() {
    builder().build().expect("a runtime").block_on(async {
        let job = task::Builder::new().name("hash").spawn_blocking(|| -> u32 { panic!("out of luck") });
        let (id, line) = (job.id(), job.location().line());
        let error = job.await.expect_err("it panics");
        assert!(error.is_panic() && error.id() == id && error.name() == Some("hash"));
        let text = error.to_string();
        assert!(text.contains("\"hash\"") && text.contains(&format!("blocking.rs:{line}")), "{text}");
        assert!(text.ends_with("panicked: out of luck"), "{text}");
    });
}

// Without a bound a slow disk fills the memory; with a bound that only drops, nobody knows.
#[test]
fn beyond_its_bounds_the_pool_refuses_with_a_reason() {
    builder().blocking_threads(1).blocking_queue(1).build().expect("a runtime").block_on(async {
        let (first, running, go) = gated();
        running.recv().expect("it runs");
        let second = veloq::spawn_blocking(|| 2);
        let third = veloq::spawn_blocking(|| 3);
        assert!(third.is_finished(), "a refusal is known at once");
        let error = third.await.expect_err("one waits already");
        assert!(error.is_refused() && !error.is_cancelled() && !error.is_panic());
        assert_eq!(refusal(&error), PoolRefused::Full { queue_max: 1 });
        assert_eq!(io::Error::from(error).get_ref().map(|error| error.is::<JoinError>()), Some(true));
        drop(go);
        first.await.expect("it ran");
        assert_eq!(second.await.expect("it ran"), 2);
    });
}

// Lookups whose time was over while the resolver was slow would be made all the same, before those that somebody waits for; and they
// would fill the queue, so that those are refused.
#[test]
fn what_nobody_waits_for_any_more_leaves_the_queue() {
    let dir = tempfile::tempdir().expect("a directory");
    for number in 0..300 {
        std::fs::write(dir.path().join(number.to_string()), "").expect("there is room");
    }
    builder().blocking_threads(1).blocking_queue(1).build().expect("a runtime").block_on(async {
        // More than are fetched at once, so that the rest is fetched when these have been given out.
        let mut listed = veloq::fs::read_dir(dir.path()).await.expect("it is there");
        let (first, running, go) = gated();
        running.recv().expect("it runs");
        while poll_once(pin!(listed.next_entry())).is_ready() {}
        drop(listed);
        for _ in 0..2 {
            assert!(poll_once(pin!(veloq::net::TcpStream::connect("localhost:1"))).is_pending());
            assert!(poll_once(pin!(veloq::fs::read_dir(dir.path()))).is_pending());
        }
        let second = veloq::spawn_blocking(|| 2);
        drop(go);
        first.await.expect("it ran");
        assert_eq!(second.await.expect("there was room for it"), 2);
    });
}

/// Polls for somebody who will not come back.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

// A runtime that promises its latency must not find threads behind `connect`; one that says `spawn_blocking` has asked for it.
#[test]
fn a_strict_runtime_names_the_calls_that_would_block_silently() {
    let dir = tempfile::tempdir().expect("a directory");
    builder().strict(true).build().expect("a runtime").block_on(async {
        let listed = veloq::fs::read_dir(dir.path()).await.expect_err("no ring can list a directory");
        assert_eq!(listed.kind(), io::ErrorKind::Unsupported);
        let why = listed.get_ref().and_then(|error| error.downcast_ref::<PoolRefused>());
        assert_eq!(why, Some(&PoolRefused::Strict { call: "listing a directory" }));

        let found = veloq::net::TcpStream::connect("localhost:1").await.expect_err("a name needs a resolver");
        let why = found.get_ref().and_then(|error| error.downcast_ref::<PoolRefused>());
        assert_eq!(why, Some(&PoolRefused::Strict { call: "resolving a name" }));
        veloq::net::TcpListener::bind("127.0.0.1:0").await.expect("a number needs none");

        assert_eq!(veloq::spawn_blocking(|| 1).await.expect("it says so itself"), 1);
    });
}

// A job half way through a write that the end of the program cut off would leave half a file.
#[test]
fn the_end_of_a_runtime_waits_for_jobs_that_run_and_drops_those_that_wait() {
    let finished = Arc::new(AtomicBool::new(false));
    let runtime = builder().blocking_threads(1).build().expect("a runtime");
    let handle = runtime.handle();
    let waiting = runtime.block_on(async {
        let (say, running) = mpsc::channel();
        let (guard, dropped) = mpsc::channel::<()>();
        // Goes on when the main task, and its end of the channel, are gone: while the runtime ends.
        let finished = Arc::clone(&finished);
        let job = veloq::spawn_blocking(move || {
            say.send(()).expect("the test waits");
            let _gone = dropped.recv();
            // Not to wait for anything: an end that does not wait for this job has come by then.
            std::thread::sleep(Duration::from_millis(50));
            finished.store(true, Ordering::Release);
        });
        running.recv().expect("it runs");
        let waiting = veloq::spawn_blocking(|| unreachable!("a runtime that ends begins with nothing new"));
        veloq::spawn_local(async move {
            let _guard = guard;
            job.await
        });
        // Wrapped, since it is awaited elsewhere.
        Some(waiting)
    });
    assert!(finished.load(Ordering::Acquire), "it was waited for");
    assert_eq!(handle.unfinished_jobs(), 0);
    let waiting = waiting.expect("just wrapped");
    let waiting: Result<(), _> = builder().build().expect("a runtime").block_on(waiting);
    assert!(waiting.expect_err("it was dropped").is_cancelled());
    let late = handle.spawn_blocking(|| 1);
    assert!(late.is_finished(), "nobody would run it any more");
}

// A thread that never returns cannot be stopped; a runtime that waits for it for ever cannot end either.
#[test]
fn a_job_that_does_not_end_is_counted_and_left() {
    let runtime = builder().drain_patience(Duration::ZERO).build().expect("a runtime");
    let handle = runtime.handle();
    let go = runtime.block_on(async {
        let (job, running, go) = gated();
        running.recv().expect("it runs");
        drop(job);
        go
    });
    assert_eq!(handle.unfinished_jobs(), 1);
    drop(go);
}

// A thread started by a pinned worker inherits its one core, and would then compete with just that worker.
#[test]
fn blocking_threads_run_on_every_core_and_have_names() {
    let cpus = || processors::allowed().len();
    let before = cpus();
    let runtime = Builder::new().workers(1).pin(true).thread_name("db").build().expect("a runtime");
    runtime.block_on(async {
        let job = veloq::spawn_blocking(move || (cpus(), std::thread::current().name().map(str::to_owned)));
        let (found, name) = job.await.expect("it ran");
        assert_eq!(found, before);
        assert!(name.expect("a name").starts_with("db-blocking-"));
    });
}

// A thread outside the runtime has a handle only, and the same needs.
#[test]
fn a_handle_starts_blocking_work_from_any_thread() {
    let runtime = builder().build().expect("a runtime");
    let handle: Handle = runtime.handle();
    let outside = std::thread::spawn(move || handle.spawn_blocking(|| 7));
    let job = outside.join().expect("it does not panic");
    assert_eq!(runtime.block_on(job).expect("it ran"), 7);
}
