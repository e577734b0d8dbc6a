//! What `tracing` is told: a span for each task, entered for its polls and closed at its end; events for what the runtime has to report.
#![cfg(feature = "tracing")]

use std::fmt::{Debug, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use veloq::runtime::Builder;
use veloq::task;

/// Writes down all that is said to it.
#[derive(Default)]
struct Notes {
    spans: AtomicU64,
    /// The span of the last task that was called "unlucky": it panics when it is left.
    unlucky: AtomicU64,
    lines: Mutex<Vec<String>>,
}

impl Notes {
    fn note(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// The one subscriber of this process: the tests' runtimes have threads of their own, which a thread's subscriber would not hear.
fn notes() -> &'static Notes {
    static NOTES: std::sync::OnceLock<&'static Notes> = std::sync::OnceLock::new();
    NOTES.get_or_init(|| {
        let notes: &'static Notes = Box::leak(Box::default());
        tracing::subscriber::set_global_default(Shared(notes)).expect("there is none yet");
        notes
    })
}

struct Shared(&'static Notes);

/// The fields of a span or an event, as text.
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").expect("a string takes it");
    }
}

impl Subscriber for Shared {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("veloq")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.0.spans.fetch_add(1, Ordering::Relaxed) + 1;
        let mut fields = Fields(String::new());
        span.record(&mut fields);
        if fields.0.contains("name=\"unlucky\"") {
            self.0.unlucky.store(id, Ordering::Relaxed);
        }
        self.0.note(format!("span {id} {}{}", span.metadata().name(), fields.0));
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.note(format!("event {}{}", event.metadata().level(), fields.0));
    }

    fn enter(&self, span: &Id) {
        self.0.note(format!("enter {}", span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        self.0.note(format!("exit {}", span.into_u64()));
        if span.into_u64() == self.0.unlucky.load(Ordering::Relaxed) && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("a subscriber of the program's"));
        }
    }

    fn try_close(&self, span: Id) -> bool {
        self.0.note(format!("close {}", span.into_u64()));
        true
    }
}

fn lines() -> Vec<String> {
    notes().lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

// A span that is not left after each poll would claim the time of every other task on the worker; one never closed is a leak.
#[test]
fn a_task_is_a_span_that_is_entered_for_each_poll() {
    notes();
    let line = Builder::new().workers(1).pin(false).build().expect("a runtime").block_on(async {
        let (task, line) = (task::Builder::new().name("twice").spawn_local(task::yield_now()), line!());
        task.await.expect("it does not panic");
        line
    });
    let lines = lines();
    let start = lines.iter().find(|line| line.contains("name=\"twice\"")).expect("the task has a span");
    assert!(start.contains(&format!("location=tests/tracing.rs:{line}:")), "{start}");
    let id = start.split(' ').nth(1).expect("the span's number");
    let of = |what: &str| lines.iter().filter(|line| **line == format!("{what} {id}")).count();
    assert_eq!((of("enter"), of("exit"), of("close")), (2, 2, 1), "two polls, one end");
}

/// Is ready at once, and frees its box when it is dropped.
struct Ready<T> {
    _held: Box<u64>,
    output: fn() -> T,
}

impl<T> Future for Ready<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<T> {
        Poll::Ready((self.output)())
    }
}

// The output stands where the future was. A subscriber's panic, as the span is left behind the task's last poll, comes when it is there
// already: taken for the future's own, it would have the output dropped as a future.
#[test]
fn a_subscriber_that_panics_as_a_task_ends_leaves_its_output_alone() {
    thread_local! {
        static HELD: Rc<()> = Rc::new(());
    }
    fn run<T: 'static>(output: fn() -> T) -> T {
        notes();
        let future = Ready { _held: Box::new(7), output };
        let runtime = Builder::new().workers(1).pin(false).build().expect("a runtime");
        runtime.block_on(async {
            let task = task::Builder::new().name("unlucky").spawn_local(future);
            task.await.expect("the task does not panic")
        })
    }
    let held = run(|| (HELD.with(Rc::clone), [7; 8]));
    assert_eq!((HELD.with(Rc::strong_count), held.1), (2, [7; 8]));
    drop(held);
    assert_eq!(HELD.with(Rc::strong_count), 1, "it is dropped once");
    assert_eq!(run(|| [true; 128]), [true; 128]);
}

// A report that only a hook gets is not in the log, where it will be looked for.
#[test]
fn a_stall_and_what_the_kernel_refused_are_events() {
    notes();
    let mut config = veloq::io::driver::DriverConfig::default();
    config.without = vec!["receive_ring"];
    let builder = Builder::new().workers(1).pin(false).driver(config);
    let (send, told) = std::sync::mpsc::channel();
    let builder = builder.stall_threshold(Duration::from_millis(20)).on_stall(move |_| {
        // Of several stalls the first is enough.
        let _told = send.send(());
    });
    let runtime = builder.build().expect("a runtime");
    runtime.block_on(async move { told.recv().expect("this very wait is a stall") });
    let lines = lines();
    let has = |level: &str, text: &str| {
        lines.iter().any(|line| line.starts_with(&format!("event {level}")) && line.contains(text))
    };
    assert!(has("DEBUG", "message=degraded feature=\"receive_ring\""), "{lines:?}");
    assert!(has("WARN", "message=stall worker=0"), "{lines:?}");
}
