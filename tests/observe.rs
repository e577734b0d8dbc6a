//! What a program can see of its runtime: stalls while they last, and what every task waits for.

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use veloq::io::op::misc::nop;
use veloq::net::TcpListener;
use veloq::runtime::{
    Builder, DescriptorName, Handle, OperationState, Runtime, StallReport, TaskDump, TaskState,
};
use veloq::task;

/// Long enough for a machine with more to do than cores, short enough for a test.
const THRESHOLD: Duration = Duration::from_millis(30);

/// Nobody waits so long for an answer that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A runtime that is watched, and where its reports go.
fn watched(workers: usize) -> (Runtime, mpsc::Receiver<StallReport>) {
    let (send, reports) = mpsc::channel();
    let builder = Builder::new().workers(workers).pin(false).stall_threshold(THRESHOLD);
    let builder = builder.on_stall(move |report| {
        // A test that has what it wants is gone.
        let _told = send.send(report.clone());
    });
    (builder.build().expect("a runtime"), reports)
}

/// Lets go what spins, also when the test fails.
struct Go(Arc<AtomicBool>);

impl Drop for Go {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn gate() -> (Go, Arc<AtomicBool>) {
    let gate = Arc::new(AtomicBool::new(false));
    (Go(Arc::clone(&gate)), gate)
}

/// Stays on the processor until told to go.
#[inline(never)]
fn spin_until(go: &AtomicBool) {
    while !go.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
}

// A report that came when the poll is over could not say where it is; one that named the wrong task would send its reader astray.
#[test]
fn a_poll_that_takes_too_long_is_reported_while_it_lasts() {
    let (runtime, reports) = watched(2);
    let handle = runtime.handle();
    let report = runtime.block_on(async {
        let last = veloq::workers().last().expect("there are two");
        let (go, stuck) = gate();
        let work = async move || spin_until(&stuck);
        let (spinning, line) = (task::Builder::new().name("spinner").spawn_to(last, work), line!());
        // On a crowded machine any worker may stand still for as long; the one that is stuck is told of in any case.
        let report = veloq::spawn_blocking(move || {
            let mut reports = std::iter::from_fn(|| reports.recv_timeout(PATIENCE).ok());
            reports.find(|report| report.worker == last && report.task.is_some())
        });
        let report = report.await.expect("it does not panic").expect("there is a stall to report");
        let task = report.task.as_ref().expect("just looked");
        assert_eq!((task.id, task.name.as_deref()), (spinning.id(), Some("spinner")));
        assert_eq!((task.location.file(), task.location.line()), (file!(), line));
        assert!(!spinning.is_finished(), "it is told while it lasts");
        drop(go);
        spinning.await.expect("it does not panic");
        report
    });
    assert!(report.lasts >= THRESHOLD);
    assert!(handle.metrics().total().stalls >= 1);
    assert!(!report.frames.is_empty(), "a thread that spins answers its signal");
    let text = report.to_string();
    assert!(text.contains("\"spinner\"") && text.contains("observe.rs"), "{text}");
    if cfg!(feature = "backtrace") {
        assert!(text.contains("spin_until"), "the frames name the function that does not return:\n{text}");
        assert!(text.contains("run_worker"), "and go down to where the thread began:\n{text}");
    }
}

// A watchdog that takes sleep for a stall would tell of each of these waits.
#[test]
fn a_runtime_that_waits_has_no_stalls() {
    const WAITS: usize = 10;
    let (runtime, reports) = watched(2);
    let handle = runtime.handle();
    runtime.block_on(async {
        for _ in 0..WAITS {
            // Not to wait for anything: waiting is what is watched, and three times as long as a stall would have to last.
            veloq::time::sleep(THRESHOLD * 3).await;
        }
        veloq::spawn_blocking(|| std::thread::sleep(THRESHOLD * 3)).await.expect("it blocks nobody");
    });
    // The machine may have kept a worker from its core in the middle of a turn; then there was a stall, and it was counted.
    let told = reports.try_iter().count();
    assert_eq!(handle.metrics().total().stalls, told as u64);
    assert!(told < WAITS, "{told} stalls in {WAITS} waits");
}

// A blocking call that failed because somebody looked would make the watchdog a cause of bugs.
#[test]
fn a_stalled_worker_that_sleeps_in_the_kernel_answers_and_sleeps_on() {
    let (runtime, reports) = watched(1);
    let (read, write) = std::io::pipe().expect("a pipe");
    let helper = std::thread::spawn(move || {
        let report = reports.recv_timeout(PATIENCE).expect("there is a stall to report");
        drop(write);
        report
    });
    let ended = runtime.block_on(async move {
        let mut read = read;
        std::io::Read::read(&mut read, &mut [0])
    });
    assert_eq!(ended.expect("the read goes on after the signal"), 0);
    let report = helper.join().expect("it does not panic");
    assert!(report.task.is_some() && !report.frames.is_empty(), "{report}");
}

fn named<'a>(tasks: &'a [TaskDump], name: &str) -> &'a TaskDump {
    tasks.iter().find(|task| task.name.as_deref() == Some(name)).expect("the task is there")
}

// An age that began with the slot, or with the last reading of another worker's clock, would send its reader after the wrong
// operation. Bounds are what the test's own clock says: no later than the submission was seen, no earlier than there was a runtime.
#[test]
fn an_operation_is_as_old_as_its_submission() {
    let born = Instant::now();
    Builder::new().workers(1).pin(false).build().expect("a runtime").block_on(async move {
        let waiting = task::Builder::new().name("waiting").spawn_local(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            listener.accept().await.map(drop)
        });
        // By then the accept has been submitted.
        let mut seen = None;
        let ages = loop {
            nop().await.expect("a nop succeeds");
            let asked = Instant::now();
            let dump = Handle::current().dump(PATIENCE).await.expect("a thread can be had");
            let here = dump.workers[0].as_ref().expect("it answers");
            let task = here.tasks.iter().find(|task| task.id == waiting.id()).expect("it waits");
            match task.operations.iter().find(|operation| operation.kind.starts_with("accept")) {
                None => {}
                Some(operation) => match seen {
                    None => seen = Some(Instant::now()),
                    Some(seen) => break (asked - seen, operation.age, born.elapsed()),
                },
            }
        };
        let (least, age, most) = ages;
        assert!(least > Duration::ZERO && least <= age && age <= most, "{least:?} <= {age:?} <= {most:?}");
        waiting.abort();
    });
}

// "On descriptor 3" of an operation whose descriptor is the ring's own would be read as the process's number 3.
#[cfg(target_os = "linux")]
#[test]
fn a_direct_descriptor_is_shown_as_one() {
    Builder::new().workers(1).pin(false).build().expect("a runtime").block_on(async {
        let listener = TcpListener::builder().direct(true).bind("127.0.0.1:0").await.expect("a free port");
        let peer = std::net::TcpStream::connect(listener.local_addr().expect("it is bound"));
        let _peer = peer.expect("it listens");
        let (stream, _) = listener.accept().await.expect("it was connected to");
        let reading = task::Builder::new()
            .name("reading")
            .spawn_local(async move { stream.read(Vec::with_capacity(8)).await.0 });
        let descriptor = loop {
            nop().await.expect("a nop succeeds");
            let dump = Handle::current().dump(PATIENCE).await.expect("a thread can be had");
            let here = dump.workers[0].as_ref().expect("it answers");
            if let [operation, ..] = &named(&here.tasks, "reading").operations[..] {
                break operation.descriptor;
            }
        };
        assert!(matches!(descriptor, Some(DescriptorName::Direct(_))), "{descriptor:?}");
        reading.abort();
    });
}

// "It hangs" is all that can be said of a program whose tasks nobody can ask what they wait for.
#[test]
fn a_dump_shows_what_each_task_waits_for() {
    Builder::new().workers(2).pin(false).build().expect("a runtime").block_on(async {
        let (say, ready) = mpsc::channel();
        let accepting = task::Builder::new().name("accepting").spawn_local(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            say.send(()).expect("the test waits");
            listener.accept().await.map(drop)
        });
        let sleeping = task::Builder::new().name("sleeping").spawn_local(veloq::time::sleep(PATIENCE));
        let idle = task::Builder::new().name("idle").spawn_local(pending::<()>());
        let last = veloq::workers().last().expect("there are two");
        let away = task::Builder::new().name("away").spawn_to(last, async || pending::<()>().await);
        while ready.try_recv().is_err() {
            nop().await.expect("a nop succeeds");
        }
        // The accept goes out with the turn after the bind.
        for _ in 0..3 {
            nop().await.expect("a nop succeeds");
        }
        let dump = Handle::current().dump(PATIENCE).await.expect("a thread can be had");
        let [here, there] = [0, 1].map(|index| dump.workers[index].as_ref().expect("it answers"));
        let task = named(&here.tasks, "accepting");
        assert_eq!((task.id, task.state), (accepting.id(), TaskState::Waiting));
        assert_eq!(task.location.file(), file!());
        assert!(task.age_polls > 3);
        let [operation] = &task.operations[..] else { panic!("it waits for one operation:\n{dump}") };
        assert!(operation.kind.starts_with("accept"), "{dump}");
        assert_eq!(operation.state, OperationState::InFlight);
        assert!(matches!(operation.descriptor, Some(DescriptorName::Os(_))), "{dump}");
        assert!(named(&here.tasks, "sleeping").operations.is_empty());
        assert!(named(&here.tasks, "idle").operations.is_empty());
        assert!(here.timers >= 1 && here.next_timer.is_some_and(|next| next <= PATIENCE));
        assert_eq!(named(&there.tasks, "away").id, away.id());
        assert_eq!(there.tasks.len(), 1, "the question itself is not shown:\n{dump}");
        let text = dump.to_string();
        assert!(text.contains("\"accepting\", spawned at") && text.contains("in flight"), "{text}");
        for task in
            [idle.abort_handle(), sleeping.abort_handle(), away.abort_handle(), accepting.abort_handle()]
        {
            task.abort();
        }
    });
}

// A dump that waited for a stuck worker would hang exactly when it is needed.
#[test]
fn a_dump_does_not_wait_for_a_worker_that_is_stuck() {
    Builder::new().workers(2).pin(false).build().expect("a runtime").block_on(async {
        let last = veloq::workers().last().expect("there are two");
        let ((go, stuck), (say, running)) = (gate(), mpsc::channel());
        let spinning = veloq::spawn_to(last, async move || {
            say.send(()).expect("the test waits");
            spin_until(&stuck);
        });
        while running.try_recv().is_err() {
            nop().await.expect("a nop succeeds");
        }
        // How soon this worker answers is the machine's affair; the other never does.
        let mut patience = Duration::from_millis(10);
        let dump = loop {
            let dump = Handle::current().dump(patience).await.expect("a thread can be had");
            assert!(dump.workers[1].is_none(), "{dump}");
            if dump.workers[0].is_some() {
                break dump;
            }
            patience *= 2;
        };
        assert!(dump.to_string().contains("worker 1 does not answer"), "{dump}");
        drop(go);
        spinning.await.expect("it does not panic");
    });
}

// A handle is kept by threads that outlive the runtime; they must be told that there is nothing, and at once.
#[test]
fn a_dump_of_a_runtime_that_has_ended_is_empty() {
    let runtime = Builder::new().workers(2).pin(false).build().expect("a runtime");
    let handle = runtime.handle();
    runtime.block_on(async {});
    let dump = handle.dump_blocking(Duration::MAX);
    assert!(dump.workers.iter().all(Option::is_none), "{dump}");
}
