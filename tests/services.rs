//! A service has one instance on each worker, is called from everywhere, and ends in order.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::Duration;

use veloq::runtime::{Builder, CallError, Sharded, StopError};
use veloq::task::yield_now;
use veloq::time::sleep;
use veloq::{WorkerId, current_worker, spawn_local, spawn_to, workers};

/// More than any of these tests takes; a stop that waits for it hangs, and is seen.
const FOREVER: Duration = Duration::from_secs(3600);

fn runtime(workers: usize) -> veloq::Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

/// Notes, in order, what happened on which worker.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<(usize, &'static str)>>>);
impl Notes {
    fn note(&self, what: &'static str) {
        let worker = current_worker().index();
        self.0.lock().expect("no test panics under the lock").push((worker, what));
    }
    fn take(&self) -> Vec<(usize, &'static str)> {
        std::mem::take(&mut self.0.lock().expect("no test panics under the lock"))
    }
}

/// An instance that notes its end. Not `Send`.
struct Noted {
    notes: Notes,
    _local: Rc<()>,
}
impl Noted {
    fn new(notes: &Notes) -> Noted {
        Noted { notes: notes.clone(), _local: Rc::default() }
    }
}
impl Drop for Noted {
    fn drop(&mut self) {
        self.notes.note("dropped");
    }
}

async fn start(notes: &Notes) -> Sharded<Noted> {
    let notes = notes.clone();
    let service = Sharded::start(async move |_worker| Ok::<_, Infallible>(Noted::new(&notes))).await;
    service.expect("the factory does not fail")
}

/// Every call reaches its own instance; after the stop every call is refused.
#[test]
fn a_service_has_one_instance_on_each_worker() {
    runtime(3).block_on(async {
        let service =
            Sharded::start(async |worker: WorkerId| Ok::<_, Infallible>((worker, Cell::new(0)))).await;
        let service = service.expect("the factory does not fail");
        for worker in workers() {
            for expected in 1..=10 {
                let call = async |instance: &(WorkerId, Cell<i32>)| {
                    instance.1.set(instance.1.get() + 1);
                    (instance.0, instance.1.get())
                };
                let (id, count) = service.on(worker, call).await.expect("it is not stopped");
                assert_eq!((id, count), (worker, expected));
            }
        }
        service.stop(FOREVER).await.expect("no call is in flight");
        assert!(matches!(service.local().map(drop), Err(CallError::Stopped)));
        for worker in workers() {
            assert!(matches!(service.on(worker, async |_| ()).await, Err(CallError::Stopped)));
        }
        assert!(matches!(service.on_all(async |_| ()).await, Err(CallError::Stopped)));
        service.stop(FOREVER).await.expect("a service that is stopped already is left as it is");
    });
}

/// Results in the order of completion would give every shard's answer another one's name. So the first worker answers last.
#[test]
fn results_come_in_the_order_of_the_workers() {
    runtime(3).block_on(async {
        let shards = Sharded::start(async |worker: WorkerId| Ok::<_, Infallible>(worker)).await;
        let shards = shards.expect("the factory does not fail");
        for caller in workers() {
            let shards = shards.clone();
            let (all, reduced) = spawn_to(caller, async move || {
                let slow_first = async |worker: &WorkerId| {
                    sleep(Duration::from_millis(3 - worker.index() as u64)).await;
                    assert_eq!(current_worker(), *worker);
                    worker.index()
                };
                let all = shards.on_all(slow_first).await.expect("it is not stopped");
                let reduced = shards.map_reduce(slow_first, String::new(), |text, n| format!("{text}{n}"));
                (all, reduced.await.expect("it is not stopped"))
            })
            .await
            .expect("it does not panic");
            assert_eq!((all, reduced.as_str()), (vec![0, 1, 2], "012"));
        }
    });
}

/// If one instance cannot start, those that did must be dropped, the last first, and the error be the factory's.
#[test]
fn a_service_that_cannot_start_is_rolled_back() {
    let notes = Notes::default();
    let noted = notes.clone();
    runtime(4).block_on(async move {
        let factory = async move |worker: WorkerId| {
            match worker.index() {
                1 => Err("no room"),
                // Later than the error: the rollback must not overlook it.
                2 => {
                    sleep(Duration::from_millis(2)).await;
                    Ok(Noted::new(&noted))
                }
                _ => Ok(Noted::new(&noted)),
            }
        };
        let error = Sharded::start(factory).await.map(drop).expect_err("one factory fails");
        assert_eq!(error, "no room");
    });
    assert_eq!(notes.take(), [(3, "dropped"), (2, "dropped"), (0, "dropped")]);
}

/// A start that is given up must leave nothing: neither the instances that were there already, nor one whose factory could not be
/// aborted, being in a poll, and ends later. And a factory that waits must not go on.
#[test]
fn a_start_that_is_given_up_is_rolled_back() {
    let notes = Notes::default();
    let noted = notes.clone();
    runtime(4).block_on(async move {
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let factory = {
            let noted = noted.clone();
            async move |worker: WorkerId| {
                let instance = Noted::new(&noted);
                match worker.index() {
                    1 => noted.note("waits"),
                    2 => noted.note("blocks"),
                    _ => noted.note("starts"),
                }
                match worker.index() {
                    1 => std::future::pending().await,
                    2 => drop(gate.lock().expect("no test panics under the lock").recv()),
                    _ => {}
                }
                Ok::<_, Infallible>(instance)
            }
        };
        let mut start = Box::pin(Sharded::start(factory));
        // All are there, or as far as they get.
        poll_fn(|cx| {
            assert!(start.as_mut().poll(cx).is_pending());
            cx.waker().wake_by_ref();
            let begun = noted.0.lock().expect("no test panics under the lock").len();
            if begun == 4 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        noted.take();
        drop(start);
        go.send(()).expect("the factory waits");
        while noted.0.lock().expect("no test panics under the lock").len() < 4 {
            yield_now().await;
        }
        let mut dropped = noted.take();
        dropped.sort_unstable();
        assert_eq!(dropped, [0, 1, 2, 3].map(|worker| (worker, "dropped")));
    });
    assert_eq!(notes.take(), [], "nothing was left to the end of the runtime");
}

/// The hook is where files are synced: it must have the instance whole, on its worker, and the others must not have
/// been forgotten because one failed.
#[test]
fn each_instance_is_stopped_on_its_worker_and_the_last_first() {
    runtime(3).block_on(async {
        let notes = Notes::default();
        let service = start(&notes).await;
        let stop = async |instance: Noted| {
            instance.notes.note("stopping");
            yield_now().await;
            if current_worker() == WorkerId::new(1) { Err("the disk is full") } else { Ok(()) }
        };
        let stopped = service.stop_with(FOREVER, stop).await;
        assert_eq!(stopped, Err(StopError::Failed("the disk is full")));
        let expected: Vec<_> =
            [2, 1, 0].into_iter().flat_map(|worker| [(worker, "stopping"), (worker, "dropped")]).collect();
        assert_eq!(notes.take(), expected);
        assert!(service.local().is_err());
    });
}

/// A panic here and a panic there must look the same to the caller, and leave service and caller as they are.
#[test]
fn a_panic_in_a_call_is_its_callers_error_on_every_worker() {
    runtime(2).block_on(async {
        let service = start(&Notes::default()).await;
        for worker in workers() {
            let error = service.on(worker, async |_: &Noted| panic!("as planned")).await;
            let Err(CallError::Panicked(error)) = error else { panic!("it panics on {worker}") };
            assert!(error.is_panic() && error.to_string().ends_with("panicked: as planned"), "{error}");
            assert!(service.on(worker, async |_| ()).await.is_ok(), "the instance is called as before");
        }
        let one = async |_: &Noted| assert!(current_worker() != WorkerId::new(1), "as planned");
        assert!(matches!(service.on_all(one).await, Err(CallError::Panicked(_))));
        service.stop(FOREVER).await.expect("a call that panicked is over");
    });
}

/// One of the hooks panics: the others must have been called, and whoever stops must hear of it.
#[test]
#[should_panic(expected = "as planned")]
fn a_panic_while_stopping_is_told_when_all_are_stopped() {
    runtime(3).block_on(async {
        let notes = Notes::default();
        let service = start(&notes).await;
        let (stopping, noted) = (service.clone(), notes.clone());
        let stop = async |_instance: Noted| {
            assert!(current_worker() != WorkerId::new(2), "as planned");
            Ok::<_, Infallible>(())
        };
        let stopped = spawn_local(async move { stopping.stop_with(FOREVER, stop).await }).await;
        assert_eq!(noted.take(), [(2, "dropped"), (1, "dropped"), (0, "dropped")]);
        assert!(service.local().is_err());
        std::panic::resume_unwind(stopped.expect_err("the stop panics").into_panic());
    });
}

/// Whether a call that is part of no other is refused.
async fn refused(service: &Sharded<Noted>) -> bool {
    let service = service.clone();
    spawn_local(async move { service.local().is_err() }).await.expect("it does not panic")
}

/// A call that is in flight when its service is stopped calls another instance, which calls a third, by way of another service. If
/// the gates shut one of them out, or an instance went because nobody was in it yet, the call would fail.
#[test]
fn a_call_in_flight_may_call_its_service_to_the_end() {
    runtime(3).block_on(async {
        let notes = Notes::default();
        let (service, other) = (start(&notes).await, start(&Notes::default()).await);
        let [first, second, third] = [1, 2, 0].map(|n| workers().nth(n).expect("there are three"));
        let (stopping, within) = (service.clone(), service.clone());
        let in_flight = spawn_local(async move {
            let call = async move |noted: &Noted| {
                noted.notes.note("first");
                while !refused(&within).await {
                    yield_now().await;
                }
                let by_way = within.clone();
                let deeper = async move |noted: &Noted| {
                    noted.notes.note("second");
                    let back = async move |_: &Noted| {
                        by_way.on(third, async |noted: &Noted| noted.notes.note("third")).await
                    };
                    other.on(first, back).await?
                };
                within.on(second, deeper).await?
            };
            service.on(first, call).await?
        });
        while notes.0.lock().expect("no test panics under the lock").is_empty() {
            yield_now().await;
        }
        stopping.stop(FOREVER).await.expect("every call ends");
        in_flight.await.expect("it does not panic").expect("what a call in flight calls is let in");
        let calls = [(1, "first"), (2, "second"), (0, "third")];
        let ends = [(2, "dropped"), (1, "dropped"), (0, "dropped")];
        assert_eq!(notes.take(), [calls, ends].concat());
    });
}

/// A call that does not end must not keep the others from being stopped, nor lose its instance under it.
#[test]
fn an_instance_in_use_at_the_deadline_is_dropped_by_its_last_call() {
    runtime(2).block_on(async {
        let notes = Notes::default();
        let service = start(&notes).await;
        let used = service.local().expect("it is not stopped");
        let stop = async |instance: Noted| {
            instance.notes.note("stopping");
            Ok::<_, Infallible>(())
        };
        let stopped = service.stop_with(Duration::from_millis(5), stop).await;
        assert!(matches!(&stopped, Err(StopError::Unfinished(left)) if left.calls == 1), "{stopped:?}");
        assert_eq!(notes.take(), [(1, "stopping"), (1, "dropped")]);
        assert!(service.local().is_err());
        used.notes.note("used");
        drop(used);
        assert_eq!(notes.take(), [(0, "used"), (0, "dropped")]);
    });
}

/// A stop that was given up half-way must leave the service closed, and the next stop must do what is left, and not before an
/// instance that is being stopped is.
#[test]
fn a_stop_that_was_dropped_is_ended_by_the_next() {
    runtime(3).block_on(async {
        let notes = Notes::default();
        let service = start(&notes).await;
        let slow = async |instance: Noted| {
            instance.notes.note("stopping");
            sleep(Duration::from_millis(5)).await;
            Ok::<_, Infallible>(())
        };
        // Given up as soon as the first instance is being stopped.
        let mut stop = Box::pin(service.stop_with(FOREVER, slow));
        poll_fn(|cx| {
            let _pending = stop.as_mut().poll(cx);
            cx.waker().wake_by_ref();
            let begun = !notes.0.lock().expect("no test panics under the lock").is_empty();
            if begun { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        drop(stop);
        assert!(service.local().is_err(), "the gates stay closed");
        service.stop(FOREVER).await.expect("no call is in flight");
        assert_eq!(notes.take(), [(2, "stopping"), (2, "dropped"), (1, "dropped"), (0, "dropped")]);
    });
}

/// The end of the runtime must not forget a service that nobody stopped, and one that uses another in its destructor must still
/// find it.
#[test]
fn services_that_nobody_stopped_go_with_the_runtime_the_latest_first() {
    struct Uses(Sharded<Noted>, Notes);
    impl Drop for Uses {
        fn drop(&mut self) {
            self.1.note(if self.0.local().is_ok() { "found" } else { "missed" });
        }
    }
    let notes = Notes::default();
    let noted = notes.clone();
    runtime(2).block_on(async move {
        let first = start(&noted).await;
        let second = Sharded::start(async move |_| Ok::<_, Infallible>(Uses(first.clone(), noted.clone())));
        second.await.map(drop).expect("the factory does not fail");
    });
    let mut seen = notes.take();
    seen.sort_by_key(|(worker, _)| *worker);
    assert_eq!(seen, [(0, "found"), (0, "dropped"), (1, "found"), (1, "dropped")]);
}
