//! What the spawner knows of workers and tells them, without threads. Interleavings are loom's (see `loom_tests`).

use std::panic::Location;
use std::rc::Rc;

use fastrand::Rng;

use super::Spawner;
use crate::runtime::mesh::doorbell::WokenAs;
use crate::runtime::mesh::mailbox::Mailbox;
use crate::runtime::policy::STUCK_NS;
use crate::runtime::task::{Executor, JoinHandle, TaskRef};
use crate::sync::Arc;

/// A spawner, and the executor of each worker.
fn house<const WORKERS: usize>() -> (Arc<Spawner>, [Rc<Executor>; WORKERS]) {
    let spawner = Spawner::new(WORKERS, true);
    let executors = std::array::from_fn(|worker| Executor::new(Mailbox::new(&spawner, worker, || ())));
    (spawner, executors)
}

fn stealable() -> (TaskRef, JoinHandle<()>) {
    TaskRef::new_stealable(async {}, Location::caller().into())
}

fn pinned_to(worker: &Executor) -> JoinHandle<()> {
    let (task, handle) = TaskRef::new_remote_at(async || (), worker.mailbox(), Location::caller());
    worker.mailbox().push(task);
    handle
}

/// A stealable task is the only one when its worker looks for it, so no thief is told; but a pinned one came with it, is polled first, and
/// may block. Then the other would lie there while a worker sleeps.
#[test]
fn a_task_that_comes_with_a_pinned_one_is_shown_to_a_thief() {
    for pinned_first in [false, true] {
        let (spawner, [first, second]) = house::<2>();
        let (first_bell, second_bell) = (first.mailbox().doorbell(), second.mailbox().doorbell());
        assert_eq!(first_bell.announce_sleep(), Ok(()));
        assert_eq!(second_bell.announce_sleep(), Ok(()));
        let (task, _handle) = stealable();
        // Who rings first is told that it has woken the worker, and wakes nobody else.
        let _pinned = if pinned_first {
            let pinned = pinned_to(&first);
            spawner.send(0, task);
            pinned
        } else {
            spawner.send(0, task);
            pinned_to(&first)
        };
        let _ = first_bell.wake_up();
        let _entered = first.enter();
        assert_eq!(first.drain_remote(), 2);
        assert_eq!(second_bell.wake_up(), WokenAs::Searcher, "pinned first: {pinned_first}");
    }
}

/// A thief that is woken for a task that the worker runs at once comes for nothing; one for each task that arrives would be a herd.
#[test]
fn a_task_that_is_next_wakes_no_thief() {
    let (spawner, [first, second]) = house::<2>();
    let (first_bell, second_bell) = (first.mailbox().doorbell(), second.mailbox().doorbell());
    assert_eq!(first_bell.announce_sleep(), Ok(()));
    assert_eq!(second_bell.announce_sleep(), Ok(()));
    let (task, _handle) = stealable();
    spawner.send(0, task);
    let _ = first_bell.wake_up();
    let _entered = first.enter();
    assert_eq!(first.drain_remote(), 1);
    assert_eq!(second_bell.wake_up(), WokenAs::Itself);
}

/// A push that woke a sleeper although one is on its way would wake a whole house for a burst: a system call for each of its workers.
#[test]
fn a_burst_wakes_one_thief_whatever_its_size_and_however_many_sleep() {
    for tasks in [1, 100] {
        let (_spawner, executors) = house::<128>();
        let (owner, sleepers) = executors.split_first().expect("there are some");
        for sleeper in sleepers {
            assert_eq!(sleeper.mailbox().doorbell().announce_sleep(), Ok(()));
        }
        let handles: Vec<_> = (0..tasks)
            .map(|_| {
                let (task, handle) = stealable();
                owner.push(task);
                handle
            })
            .collect();
        let woken = sleepers.iter().map(|sleeper| sleeper.mailbox().doorbell().wake_up());
        assert_eq!(woken.filter(|woken| *woken == WokenAs::Searcher).count(), 1, "{tasks} tasks");
        drop(handles);
    }
}

/// Without what workers note of themselves every choice is one between equals, and a task is placed behind a poll that does not end.
#[test]
fn what_workers_note_of_themselves_decides_where_tasks_go() {
    let (spawner, _executors) = house::<2>();
    let mut random = Rng::with_seed(1);
    let mut goes_to =
        |now_ns, worker| (0..50).all(|_| spawner.choose(Some(0), &mut random, now_ns) == worker);
    let began_ns = 1_000_000_000;
    assert!(goes_to(began_ns, 0), "of two that are parked home is preferred");
    spawner.note_polling(0, 0, began_ns);
    assert!(goes_to(began_ns, 1), "the other is parked");
    spawner.note_polling(1, 1, began_ns);
    assert!(goes_to(began_ns, 0), "the other has one ready");
    spawner.note_polling(1, 1, began_ns + STUCK_NS);
    assert!(goes_to(began_ns + STUCK_NS + 1, 1), "home has been in one turn for too long");
    spawner.note_parking(1);
    spawner.note_polling(0, 0, began_ns + 10 * STUCK_NS);
    assert!(goes_to(began_ns + 10 * STUCK_NS, 1), "who is parked is not stuck, and has nothing ready");
}

/// A dump takes what waits out of the ring and puts it back, and each task that is back can be seen by a thief. Once one comes between,
/// the ring holds fewer than were counted, and who goes on by the count sees the first again.
#[test]
fn a_dump_shows_no_task_twice_whatever_thieves_take_meanwhile() {
    let (_spawner, [first, second]) = house::<2>();
    let _entered = first.enter();
    let _handles = [(); 4].map(|()| {
        let (task, handle) = stealable();
        first.push(task);
        handle
    });
    let mut shown = Vec::new();
    let unlisted = first.each_placed(|task| {
        shown.push(task.id);
        second.rob();
    });
    assert_eq!((shown.len(), unlisted), (4, 0));
    shown.sort_unstable();
    shown.dedup();
    assert_eq!(shown.len(), 4, "nobody is shown twice");
    assert!(second.rob() > 0, "and all are back, for thieves too");
}
