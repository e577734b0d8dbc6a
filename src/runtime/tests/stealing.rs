//! Stealing among workers that take turns as a seed says: some stand still, as in a long poll, while the others go on.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::Crew;
use crate::runtime::context::Context;
use crate::sync::Arc;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use crate::task::yield_now;
use crate::time::sleep;
use crate::{current_worker, spawn, spawn_pinned, spawn_to};

/// Tasks that lay where only their worker sees them would wait for as long as it stands still, here for ever.
#[test]
fn what_is_placed_with_a_worker_that_stands_still_is_run_by_the_others() {
    for (count, seed) in (2..8).flat_map(|count| (0..10).map(move |seed| (count, seed))) {
        let mut crew = Crew::new(count, seed);
        let stuck = count - 1;
        let stolen = crew.run_choosing(
            async move {
                // Some of each that never ran, and of those that may move whenever they are ready some that have.
                let tasks: Vec<_> = (0..200)
                    .map(|n| {
                        if n % 2 == 0 {
                            return spawn_pinned(async move || current_worker().index());
                        }
                        spawn(async move {
                            for _ in 0..n % 5 {
                                yield_now().await;
                            }
                            current_worker().index()
                        })
                    })
                    .collect();
                for task in tasks {
                    let ran_on = task.await.expect("it does not panic");
                    assert_ne!(ran_on, stuck, "it stands still");
                }
                Context::current().metrics().stolen
            },
            |worker| worker != stuck,
        );
        assert!(stolen > 0 || count > 2, "void: the only one left has stolen nothing, seed {seed}");
        crew.end();
    }
}

/// A worker in a long poll has an empty queue, and looks like the best of all to whoever knows nothing but queues: what the poll spawns
/// would all stay behind it. Without thieves, who would mend that.
#[test]
fn what_a_long_poll_spawns_goes_elsewhere() {
    for (count, seed) in (2..6).map(|count| (count, 3)) {
        let mut crew = Crew::without_thieves(count, seed);
        let clock = crew.world.clock();
        let stayed = crew.run(async move {
            // By then everybody has polled something, and parked.
            for worker in crate::workers() {
                spawn_to(worker, async || ()).await.expect("it does not panic");
            }
            sleep(Duration::from_secs(1)).await;
            clock.set(clock.get() + 1_000_000_000);
            let home = current_worker();
            let tasks: Vec<_> = (0..100).map(|_| spawn(async { current_worker() })).collect();
            let mut stayed = 0;
            for task in tasks {
                stayed += usize::from(task.await.expect("it does not panic") == home);
            }
            stayed
        });
        assert_eq!(stayed, 0, "of 100, with {count} workers");
        crew.end();
    }
}

/// Every way to wait, on workers that come and go: a task that was taken by two would be polled after its end, one taken by none or
/// whose wake was left at a worker that is not its home any more would never end; and one that is pinned must not move.
#[test]
fn tasks_that_move_between_workers_run_and_are_dropped_once() {
    struct Counted(Arc<AtomicU64>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    const TASKS: u64 = 60;
    let mut stolen = 0;
    for seed in 0..120 {
        let count = 2 + usize::try_from(seed % 5).expect("it is small");
        let mut crew = Crew::new(count, seed);
        let (ran, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut random = fastrand::Rng::with_seed(seed);
        let (sums, counted) = (Arc::clone(&ran), Arc::clone(&dropped));
        // Of every third crew the main task does not wait for the others: they end wherever they are.
        let waits = !seed.is_multiple_of(3);
        let work = async move {
            let tasks: Vec<_> = (0..TASKS)
                .map(|n| {
                    let (ran, counted) = (Arc::clone(&sums), Counted(Arc::clone(&counted)));
                    if n.is_multiple_of(4) {
                        return spawn_pinned(async move || {
                            let _counted = counted;
                            let home = Rc::new(Cell::new(current_worker()));
                            for step in 0..n % 7 {
                                sleep(Duration::from_micros((seed * step) % 50)).await;
                                yield_now().await;
                                assert_eq!(home.get(), current_worker(), "it stays where it started");
                            }
                            ran.fetch_add(1 << n, Relaxed);
                        });
                    }
                    spawn(async move {
                        let _counted = counted;
                        for step in 0..n % 7 {
                            match (seed + n + step) % 3 {
                                0 => yield_now().await,
                                1 => sleep(Duration::from_micros((seed * n) % 50)).await,
                                // Woken by whichever worker ends the other.
                                _ => spawn(yield_now()).await.expect("it does not panic"),
                            }
                        }
                        ran.fetch_add(1 << n, Relaxed);
                    })
                })
                .collect();
            if !waits {
                return sleep(Duration::from_micros(seed % 60)).await;
            }
            for task in tasks {
                task.await.expect("it does not panic");
            }
        };
        crew.run_choosing(work, |_| random.u8(..) < 160);
        stolen += crew.workers.iter().map(|worker| worker.context().metrics().stolen).sum::<u64>();
        crew.end();
        assert_eq!(dropped.load(Relaxed), TASKS, "seed {seed}");
        if waits {
            assert_eq!(ran.load(Relaxed), (1 << TASKS) - 1, "one bit for each task, seed {seed}");
        }
    }
    assert!(stolen > 1_000, "void: {stolen} were stolen");
}
