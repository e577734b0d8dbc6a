//! What a worker says of itself where it can be held still: in the middle of a poll, and in a world whose kernel takes its time.

use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Waker};

use super::Crew;
use crate::io::driver::{Op, OperationState, PlatformDriver};
use crate::io::op::net::{Recv, kept_whole};
use crate::runtime::context::Context;
use crate::runtime::dump::TaskState;
use crate::task::{self, Class, yield_now};
use crate::{spawn, spawn_local};

/// Tasks that wait behind a poll are what a dump is asked for. Who walks the list of those that have begun sees none of them; and one that
/// was taken out to be looked at, and forgotten, would never run.
#[test]
fn tasks_that_have_not_begun_are_shown_and_run_all_the_same() {
    /// What the ring holds, and some more.
    const TASKS: usize = 300;
    let mut crew = Crew::new(1, 1);
    let (dump, begun) = crew.run(async {
        let begun = [(); 2].map(|()| {
            spawn(async {
                loop {
                    yield_now().await;
                }
            })
        });
        // The kinds take turns, of a few polls each.
        for _ in 0..20 {
            yield_now().await;
        }
        let begun = begun.map(|task| task.id());
        let tasks: Vec<_> = (0..TASKS)
            .map(|n| task::Builder::new().name(format!("number {n}")).spawn(async move { n }))
            .collect();
        let dump = Context::current().dump();
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.expect("it does not panic"), n);
        }
        (dump, begun)
    });
    let placed: Vec<_> = dump.tasks.iter().filter(|task| task.state == TaskState::Placed).collect();
    assert_eq!(placed.len() + dump.unlisted, TASKS);
    assert!(placed.len() > 200 && dump.unlisted > 0, "void: {} and {}", placed.len(), dump.unlisted);
    assert_eq!(placed[7].name.as_deref(), Some("number 7"));
    let all: BTreeSet<_> = dump.tasks.iter().map(|task| task.id).collect();
    assert_eq!(all.len(), dump.tasks.len(), "nobody is shown twice");
    assert!(begun.iter().all(|id| all.contains(id)), "nor is one left out that has begun");
    assert!(dump.to_string().contains("\"number 7\""), "{dump}");
    crew.end();
}

/// A task is put into the list by its first poll. Until then a dump that looks there only would not show it: of a worker that is late, the
/// very tasks that it is late for.
#[test]
fn tasks_that_wait_for_their_first_poll_are_shown() {
    let mut crew = Crew::new(1, 1);
    let (dump, ids) = crew.run(async {
        let waits = spawn_local(pending::<()>());
        yield_now().await;
        let unpolled = [Class::Foreground, Class::Background, Class::Foreground]
            .map(|class| task::Builder::new().class(class).spawn_local(async {}));
        let dump = Context::current().dump();
        (dump, [waits.id(), unpolled[0].id(), unpolled[2].id(), unpolled[1].id()])
    });
    let shown = dump.tasks.iter().map(|task| (task.id, task.state, task.age_polls));
    let expected = [TaskState::Waiting, TaskState::Ready, TaskState::Ready, TaskState::Ready];
    let expected = ids.into_iter().zip(expected).zip([1, 0, 0, 0]);
    assert_eq!(
        shown.collect::<Vec<_>>(),
        expected.map(|((id, state), age)| (id, state, age)).collect::<Vec<_>>()
    );
    crew.end();
}

/// An operation that was dropped keeps its buffer until the kernel answers: who looks for memory looks for these. And one whose waker is
/// somebody else's must not be shown with a task that it will not wake.
#[test]
fn abandoned_operations_and_those_of_no_task_stand_alone() {
    let mut crew = Crew::new(1, 2);
    let driver = crew.workers[0].context().driver.clone();
    let dumps = crew.run(async move {
        let pair = driver.with_backend(|backend| match backend {
            PlatformDriver::Sim(sim) => sim.pair(),
            PlatformDriver::Uring(_) => panic!("this crew lives in a simulated world"),
        });
        let (ours, _theirs) = pair.expect("a pair can always be had");
        let recv = Recv {
            fd: Rc::new(ours),
            buf: Vec::with_capacity(8),
            flags: 0,
            waits: false,
            stash: None,
            kept: kept_whole::<Vec<u8>>,
        };
        let foreign = {
            let mut op = pin!(Op::new(recv, &driver));
            assert!(op.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
            // The turn's end shows it to the kernel.
            yield_now().await;
            Context::current().dump()
        };
        [foreign, Context::current().dump()]
    });
    let [foreign, abandoned] = dumps.map(|dump| {
        let [operation] = &dump.operations[..] else { panic!("there is one operation:\n{dump}") };
        assert!(dump.tasks.iter().all(|task| task.operations.is_empty()), "{dump}");
        operation.state
    });
    assert_eq!((foreign, abandoned), (OperationState::InFlight, OperationState::Abandoned));
    crew.end();
}
