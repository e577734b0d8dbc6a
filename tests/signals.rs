//! Promise: signals that ask the program to end reach every future that waits for them, on every worker, and do not end the
//! process meanwhile.
//!
//! The tests send signals to their own process, so they are alone in it and take turns.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::future::{join_all, select};
use rustix::process::{Signal, getpid, kill_process};
use veloq::runtime::{Builder, Runtime};
use veloq::signal::{ctrl_c, terminate};
use veloq::{WorkerId, spawn_local, spawn_to};

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

fn raise(signal: Signal) {
    kill_process(getpid(), signal).expect("a process may signal itself");
}

/// A future that has been polled once, and so waits for signals from now on.
async fn waiting(
    wait: impl Future<Output = io::Result<()>> + 'static,
) -> Pin<Box<dyn Future<Output = io::Result<()>>>> {
    let mut wait = Box::pin(wait);
    poll_fn(|cx| {
        assert!(wait.as_mut().poll(cx).is_pending(), "no signal has come");
        Poll::Ready(())
    })
    .await;
    wait
}

/// Each signal wakes those who wait for it, however many, and nobody else: a handler that tells the first only would leave the
/// second waiting for ever, and one that does not tell them apart would end the wrong wait.
#[test]
fn each_signal_wakes_all_who_wait_for_it_and_nobody_else() {
    let _turn = one_at_a_time();
    runtime(1).block_on(async {
        let mut stops = Vec::new();
        for _ in 0..5 {
            stops.push(waiting(ctrl_c()).await);
        }
        let end = waiting(terminate()).await;
        raise(Signal::INT);
        for stop in join_all(stops).await {
            stop.expect("the handler is there");
        }
        let mut end = Box::pin(end);
        let early = poll_fn(|cx| Poll::Ready(end.as_mut().poll(cx).is_ready())).await;
        assert!(!early, "SIGINT is not SIGTERM");
        raise(Signal::TERM);
        end.await.expect("the handler is there");
    });
}

/// Waiters on other workers have rings of their own, and are asleep.
#[test]
fn a_signal_reaches_every_worker() {
    let _turn = one_at_a_time();
    runtime(3).block_on(async {
        let mut tasks = Vec::new();
        for worker in 0..3 {
            let (ready, is_ready) = std::sync::mpsc::channel();
            let task = spawn_to(WorkerId::new(worker), async move || {
                let wait = waiting(terminate()).await;
                ready.send(()).expect("the test waits");
                wait.await
            });
            // Not by blocking: the first of the tasks runs on this very worker.
            while is_ready.try_recv().is_err() {
                assert!(!task.is_finished());
                veloq::time::sleep(std::time::Duration::from_micros(100)).await;
            }
            tasks.push(task);
        }
        raise(Signal::TERM);
        for task in tasks {
            task.await.expect("no panic").expect("the handler is there");
        }
    });
}

/// A wait that has ended must not have used up what the next one waits for, and a dropped one must not take a signal along.
#[test]
fn signals_are_waited_for_again_and_again() {
    let _turn = one_at_a_time();
    runtime(1).block_on(async {
        for _ in 0..20 {
            drop(waiting(ctrl_c()).await);
            let kept = waiting(ctrl_c()).await;
            let (done, other) = (waiting(ctrl_c()).await, waiting(terminate()).await);
            raise(Signal::INT);
            select(done, other).await.factor_first().0.expect("the handler is there");
            kept.await.expect("the handler is there");
        }
    });
}

/// From the first wait on the signal does not end the process, although nobody waits any more: here it comes between.
#[test]
fn a_signal_that_nobody_waits_for_does_not_end_the_process() {
    let _turn = one_at_a_time();
    runtime(1).block_on(async {
        drop(waiting(ctrl_c()).await);
        raise(Signal::INT);
        let next = waiting(ctrl_c()).await;
        raise(Signal::INT);
        spawn_local(next).await.expect("no panic").expect("the handler is there");
    });
}
