//! How long a turn lasts, on virtual time: a task that works moves the clock on.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use super::Crew;
use crate::runtime::policy::SLICE_NS;
use crate::spawn_local;
use crate::task::yield_now;
use crate::time::{Instant, sleep_until};

/// A timer's resolution, and what turns take of the world's time.
const TICK: Duration = Duration::from_micros(200);

/// Notes when it is woken, and wakes the task that waits.
struct Fired {
    at: Mutex<Option<Instant>>,
    task: Waker,
}

impl Wake for Fired {
    fn wake(self: Arc<Self>) {
        self.at.lock().expect("nobody panics with it").get_or_insert_with(Instant::now);
        self.task.wake_by_ref();
    }
}

/// How late a timer fires, whenever the task that waits for it has its turn.
async fn lateness(due: Instant) -> Duration {
    let mut sleep = pin!(sleep_until(due));
    let task = poll_fn(|cx| std::task::Poll::Ready(cx.waker().clone())).await;
    let fired = Arc::new(Fired { at: Mutex::default(), task });
    let waker = Waker::from(Arc::clone(&fired));
    poll_fn(|_| sleep.as_mut().poll(&mut Context::from_waker(&waker))).await;
    // Ready without a wake: it was due when it was polled.
    let at = *fired.at.lock().expect("nobody panics with it");
    at.map_or(Duration::ZERO, |at| at.duration_since(due))
}

/// How late timers fire, one after the other, beside so many tasks that are always ready and whose polls take so long.
fn late_beside(tasks: usize, poll: Duration) -> Vec<Duration> {
    let mut crew = Crew::new(1, 1);
    let clock = crew.world.clock();
    let late = crew.run(async move {
        let poll_ns = u64::try_from(poll.as_nanos()).expect("it is short");
        for _ in 0..tasks {
            let clock = Rc::clone(&clock);
            drop(spawn_local(async move {
                loop {
                    clock.set(clock.get() + poll_ns);
                    yield_now().await;
                }
            }));
        }
        let mut late = Vec::new();
        for round in 0..50 {
            // After the task itself has been in its place of the queue, and in any part of a poll.
            let due = Instant::now() + poll * 50 + Duration::from_micros(round * 37);
            late.push(lateness(due).await);
        }
        late
    });
    crew.end();
    late
}

/// Sixteen polls that nobody looks at are 160 ms here, in which no timer fires and no data is seen.
#[test]
fn long_polls_delay_a_timer_by_one_of_them() {
    let poll = Duration::from_millis(10);
    for late in late_beside(20, poll) {
        assert!(late <= poll + TICK, "{late:?}");
    }
}

/// Polls of 100 µs are short beside a tick of the coarse clock: if nothing else were looked at, forty of them would go by.
#[test]
fn polls_of_middling_length_delay_a_timer_by_a_slice() {
    let poll = Duration::from_micros(100);
    for late in late_beside(200, poll) {
        assert!(late <= Duration::from_nanos(SLICE_NS) + poll + TICK, "{late:?}");
    }
}

/// A reading of the clock costs about as much as a short poll, and a turn that is far from its slice needs none.
#[test]
fn turns_of_short_polls_read_no_clock() {
    const ROUNDS: u64 = 1_000;
    let mut crew = Crew::new(1, 2);
    let world = crew.world.clone();
    let readings = crew.run(async move {
        for _ in 0..100 {
            drop(spawn_local(async {
                loop {
                    yield_now().await;
                }
            }));
        }
        let before = world.readings();
        for _ in 0..ROUNDS {
            yield_now().await;
        }
        world.readings() - before
    });
    // A round is more than a turn. What is read is for the counters' publication, once in 64 turns.
    assert!(readings <= ROUNDS / 16, "{readings} readings in more than {ROUNDS} turns");
    crew.end();
}
