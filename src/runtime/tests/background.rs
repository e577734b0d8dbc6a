//! Foreground and background, on virtual time: a task that works moves the clock on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::Crew;
use crate::runtime::task::JoinHandle;
use crate::runtime::worker_id::WorkerId;
use crate::spawn_to;
use crate::sync::Arc;
use crate::task::{self, Class};
use crate::time::{Instant, sleep, sleep_until};

/// Makes the virtual clock go on, as work would.
fn burn(clock: &Cell<u64>, nanos: u64) {
    clock.set(clock.get() + nanos);
}

/// A task of that class that works in slices until it is aborted, and counts the time that it had.
fn work_in_slices(
    clock: &Rc<Cell<u64>>,
    class: Class,
    slice_ns: u64,
    had_ns: &Rc<Cell<u64>>,
) -> JoinHandle<()> {
    let (clock, had_ns) = (Rc::clone(clock), Rc::clone(had_ns));
    task::Builder::new().class(class).spawn_local(async move {
        loop {
            burn(&clock, slice_ns);
            had_ns.set(had_ns.get() + slice_ns);
            task::yield_now().await;
        }
    })
}

/// A background that is given turns, or that pays nothing for long polls, takes more than its share; one that waits for idleness gets
/// nothing at all. Six seconds, in which the foreground always has something ready.
#[test]
fn a_busy_worker_gives_the_background_its_share_and_no_more() {
    for (slice_ns, seed) in [(100_000, 1), (2_000_000, 2), (30_000_000, 3)] {
        let mut crew = Crew::new(1, seed);
        let clock = crew.world.clock();
        let (foreground, background) = crew.run(async move {
            let (foreground, background) = (Rc::default(), Rc::default());
            for _ in 0..20 {
                work_in_slices(&clock, Class::Foreground, 50_000, &foreground);
                work_in_slices(&clock, Class::Background, slice_ns, &background);
            }
            sleep(Duration::from_secs(6)).await;
            (foreground.get(), background.get())
        });
        let percent = background * 100 / (foreground + background);
        assert!((8..=10).contains(&percent), "slices of {slice_ns} ns: {percent} %");
        crew.end();
    }
}

/// What the foreground leaves is the background's; and what it took then is not held against it later.
#[test]
fn an_idle_worker_gives_the_background_everything_and_does_not_charge_for_it() {
    let mut crew = Crew::new(1, 4);
    let clock = crew.world.clock();
    let (idle, busy) = crew.run(async move {
        let (foreground, background) = (Rc::default(), Rc::default());
        work_in_slices(&clock, Class::Background, 1_000_000, &background);
        sleep(Duration::from_secs(10)).await;
        let idle = background.replace(0);
        work_in_slices(&clock, Class::Foreground, 5_000, &foreground);
        sleep(Duration::from_secs(1)).await;
        (idle, background.get())
    });
    // Turns take some of the time.
    assert!(idle > 9_900_000_000, "{idle} ns of ten idle seconds");
    assert!((80_000_000..=105_000_000).contains(&busy), "{busy} ns of the busy second after them");
    crew.end();
}

/// A thousand background tasks are ready at all times, and each poll of one takes 5 ms. Were several run between two looks at timers,
/// mailboxes and the driver, a foreground task would wait for all of them.
#[test]
fn a_flood_of_background_work_delays_a_foreground_wake_by_one_poll() {
    const SLICE: Duration = Duration::from_millis(5);
    for seed in 0..5 {
        let mut crew = Crew::new(2, seed);
        let clock = crew.world.clock();
        crew.run(async move {
            let had_ns = Rc::default();
            for _ in 0..1_000 {
                work_in_slices(&clock, Class::Background, 5_000_000, &had_ns);
            }
            for round in 0..100 {
                // A timer that falls into the middle of a poll; a message from a worker that has nothing else to do, and back.
                let due = Instant::now() + Duration::from_micros(700 * (round % 20));
                sleep_until(due).await;
                let late = due.elapsed();
                // One poll, the turn after it, and the rounding of the wheel.
                assert!(late < SLICE + Duration::from_millis(2), "seed {seed}: a timer is {late:?} late");
                let before = Instant::now();
                let there = spawn_to(WorkerId::new(1), async || Instant::now()).await.expect("no panic");
                let late = there.elapsed();
                assert!(late < SLICE + Duration::from_millis(2), "seed {seed}: an answer is {late:?} late");
                assert!(before.elapsed() < 2 * SLICE + Duration::from_millis(2), "seed {seed}");
            }
        });
        crew.end();
    }
}

/// A library that spawns must not lift background work into the foreground, and the foreground's must not sink; but a message from
/// elsewhere is somebody's request, and what is said counts.
#[test]
fn tasks_inherit_the_class_of_the_task_that_spawns_them_unless_told_otherwise() {
    let mut crew = Crew::new(1, 6);
    let order = crew.run(async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let note = |what: &'static str| {
            let order = Rc::clone(&order);
            async move { order.borrow_mut().push(what) }
        };
        let spawns = {
            let (inherits, told) = (note("inherits"), note("told"));
            async move {
                let inherits = crate::spawn_local(inherits);
                task::Builder::new().class(Class::Foreground).spawn_local(told).await.expect("no panic");
                inherits.await.expect("no panic");
            }
        };
        let background = task::Builder::new().class(Class::Background).spawn_local(spawns);
        let waiting = task::Builder::new().class(Class::Background).spawn_local(note("waits already"));
        let plain = crate::spawn_local(note("plain"));
        for task in [background, waiting, plain] {
            task.await.expect("no panic");
        }
        order.take()
    });
    assert_eq!(order, ["plain", "told", "waits already", "inherits"]);
    crew.end();
}

/// A worker that ends with background tasks in its queue, or whose background task is aborted, drops them like any other, and frees
/// their headers, each of which has a share of the mailbox.
#[test]
fn background_tasks_are_aborted_and_dropped_like_others() {
    let mut crew = Crew::new(1, 7);
    let clock = crew.world.clock();
    let had_ns: Rc<Cell<u64>> = Rc::default();
    let counted = Rc::clone(&had_ns);
    let mailbox = Arc::downgrade(crew.workers[0].context().shared.mailbox(WorkerId::new(0)));
    crew.run(async move {
        for _ in 0..10 {
            work_in_slices(&clock, Class::Background, 1_000, &counted);
        }
        let aborted = work_in_slices(&clock, Class::Background, 1_000, &counted);
        task::yield_now().await;
        aborted.abort();
        assert!(aborted.await.expect_err("it was aborted").is_cancelled());
    });
    crew.end();
    assert_eq!(Rc::strong_count(&had_ns), 1, "every future is dropped");
    assert_eq!(mailbox.strong_count(), 0, "every header is freed");
}
