//! Several workers on one thread, in a simulated world: the same workers, mesh, timers and driver core as in a program,
//! with a virtual clock and a kernel whose order of answers is seeded.
//!
//! Each test runs under many seeds. One that fails prints its seed, and fails under it every time.

mod background;
mod dump;
mod fairness;
mod stealing;
mod tear_down;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::context::Context;
use super::mesh::links::RoomToSend;
use super::mesh::mailbox::Mailbox;
use super::sharded::{CallError, Sharded, StopError};
use super::shared::Shared;
use super::spawner::Spawner;
use super::spin::{Spinner, Unparked};
use super::task::{JoinHandle, TaskRef};
use super::timer::Clock;
use super::worker::Worker;
use super::worker_id::WorkerId;
use crate::io::buf::Pool;
use crate::io::driver::sim::{Faults, SimDriver, SimWorld};
use crate::io::driver::waiter::waker_that_meddles;
use crate::io::driver::{DriverConfig, DriverHandle, Op, PlatformDriver};
use crate::io::op::net::{Recv, Send};
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, Mutex};
use crate::task::yield_now;
use crate::time::{Instant, sleep, timeout};
use crate::{mesh, spawn_local, spawn_to};

/// Workers that take turns on this thread.
struct Crew {
    world: SimWorld,
    workers: Vec<Worker>,
}

impl Crew {
    fn new(count: usize, seed: u64) -> Crew {
        Crew::of(count, seed, true, Duration::from_secs(5))
    }

    /// The same, where tasks stay where they were placed.
    fn without_thieves(count: usize, seed: u64) -> Crew {
        Crew::of(count, seed, false, Duration::from_secs(5))
    }

    /// The same, where a worker that stands still is waited for so long.
    fn with_patience(drain_patience: Duration, count: usize, seed: u64) -> Crew {
        Crew::of(count, seed, true, drain_patience)
    }

    fn of(count: usize, seed: u64, steals: bool, drain_patience: Duration) -> Crew {
        let world = SimWorld::new(seed, Faults::SOME);
        let config = DriverConfig::default();
        let spawner = Spawner::new(count, steals);
        let mailboxes: Box<[_]> = (0..count).map(|worker| Mailbox::new(&spawner, worker, || ())).collect();
        let shared = Arc::new(Shared::new(spawner, mailboxes, drain_patience));
        let workers = (0..count).map(|index| {
            let sim = SimDriver::new(&world, &config).expect("a simulated driver needs nothing");
            let driver = DriverHandle::new(PlatformDriver::Sim(sim), &config);
            let pool = Pool::fixed(4 << 20).expect("4 MiB can be mapped");
            driver.register_buffers(&pool, &config);
            let spinner = Spinner::new(0, Unparked::default());
            let clock = Clock::Virtual(world.clock());
            Worker::new(WorkerId::new(index), Arc::clone(&shared), driver, pool, clock, 64, spinner)
        });
        Crew { workers: workers.collect(), world }
    }

    /// Starts `work` on worker 0 and takes turns until it has ended. Its result.
    fn run<T: 'static>(&mut self, work: impl Future<Output = T> + 'static) -> T {
        self.run_choosing(work, |_| true)
    }

    /// The same, where in each round only those workers take a turn that are chosen: the others stand still, as in a long poll, and
    /// meanwhile nobody sleeps.
    fn run_choosing<T: 'static>(
        &mut self,
        work: impl Future<Output = T> + 'static,
        mut chosen: impl FnMut(usize) -> bool,
    ) -> T {
        /// Many times the rounds that a test needs, few enough that one which hangs fails soon.
        const ROUNDS_MAX: usize = 1_000_000;
        let mut rounds = 0;
        let result = Rc::new(RefCell::new(None));
        let main: JoinHandle<()> = {
            let (first, result) = (self.workers[0].context(), Rc::clone(&result));
            let _entered = first.enter();
            first.spawn_local(async move { *result.borrow_mut() = Some(work.await) })
        };
        while !main.is_finished() {
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "the crew goes round and round, and the main task does not end");
            let turns: Vec<bool> = (0..self.workers.len()).map(&mut chosen).collect();
            // All work first, then all wait: a worker that waits while another is busy only takes what is there.
            let mut busy = turns.contains(&false);
            for (worker, _) in self.workers.iter_mut().zip(&turns).filter(|(_, turn)| **turn) {
                let _entered = worker.context().clone().enter();
                worker.work();
                busy |= worker.has_work();
            }
            // Its last poll may have left nothing to wait for.
            busy |= main.is_finished();
            for (worker, _) in self.workers.iter_mut().zip(&turns).filter(|(_, turn)| **turn) {
                let _entered = worker.context().clone().enter();
                worker.wait(!busy);
            }
        }
        result.take().expect("the main task has left its result")
    }

    /// Ends every worker; none may leave anything in the kernel.
    fn end(self) {
        for worker in self.workers {
            assert_eq!(worker.end().leaked, 0);
        }
        assert_eq!(self.world.sockets_open(), 0, "every descriptor has been closed by its owner");
    }
}

/// A worker that slept through a message, or a deadline of the wrong worker, would leave the crew without anything to do,
/// which the simulated kernel reports as a deadlock.
#[test]
fn workers_on_one_thread_talk_and_sleep_on_virtual_time() {
    for seed in 0..50 {
        let mut crew = Crew::new(3, seed);
        let (hops, slept) = crew.run(async {
            let start = Instant::now();
            let mut hops = 0;
            for round in 0..20 {
                let to = WorkerId::new(round % 3);
                let hop = spawn_to(to, async move || {
                    sleep(Duration::from_secs(60)).await;
                    assert_eq!(crate::current_worker(), to, "a task runs where it was sent");
                    1
                });
                hops += hop.await.expect("it does not panic");
            }
            (hops, start.elapsed())
        });
        assert_eq!(hops, 20, "seed {seed}");
        // An hour's sleep is over at once for everybody else, and not a tick early.
        assert!(
            slept >= Duration::from_secs(20 * 60) && slept < Duration::from_secs(20 * 61),
            "seed {seed}: {slept:?}"
        );
        crew.end();
    }
}

/// A closure that a destructor sends at the very end, to a worker that has ended or from one that lets go of its last service,
/// would lie in a ring that nobody takes, and with it whatever it holds.
#[test]
fn what_destructors_send_at_the_end_is_dropped_with_the_workers() {
    /// Sends a closure that holds `held` to worker 1, when it is dropped.
    struct SendsAtTheEnd(Arc<AtomicU64>);
    impl Drop for SendsAtTheEnd {
        fn drop(&mut self) {
            let held = Arc::clone(&self.0);
            drop(spawn_to(WorkerId::new(1), async move || held.load(Relaxed)));
        }
    }
    for ended_first in [1, 0] {
        let held = Arc::new(AtomicU64::new(0));
        let mut crew = Crew::new(2, 7);
        let (of_task, of_service) = (SendsAtTheEnd(Arc::clone(&held)), SendsAtTheEnd(Arc::clone(&held)));
        crew.run(async move {
            drop(spawn_local(async move {
                std::future::pending::<()>().await;
                drop(of_task);
            }));
            // Worker 0's instance is the one that sends.
            let of_service = Arc::new(std::sync::Mutex::new(Some(of_service)));
            let service = Sharded::start(async move |worker| {
                let mut of_service = of_service.lock().expect("nobody panics with it");
                Ok::<_, ()>(if worker == WorkerId::new(0) { of_service.take() } else { None })
            })
            .await;
            assert!(service.is_ok(), "nothing fails");
        });
        let shared = Arc::clone(&crew.workers[0].context().shared);
        let mut workers: VecDeque<_> = crew.workers.into();
        workers.rotate_left(ended_first);
        for worker in workers {
            assert_eq!(worker.end().leaked, 0);
        }
        assert_eq!(Arc::strong_count(&held), 1, "a closure outlives the workers, worker {ended_first} first");
        drop(shared);
    }
}

/// Bytes that pass from worker to worker through a pipe whose reads are dropped at random: none may be lost, whatever the
/// kernel's order of answers.
#[test]
fn operations_of_several_workers_are_dropped_and_torn_down_without_a_trace() {
    for seed in 0..100 {
        let mut crew = Crew::new(2, seed);
        let driver = crew.workers[0].context().driver.clone();
        let total = crew.run(async move {
            let pair = driver.with_backend(|backend| match backend {
                PlatformDriver::Sim(sim) => sim.pair(),
                PlatformDriver::Uring(_) => panic!("this crew lives in a simulated world"),
            });
            let (ours, theirs) = pair.expect("a pair can always be had");
            let (ours, theirs) = (Rc::new(ours), Rc::new(theirs));
            let stash = Rc::new(crate::io::stash::Stash::default());
            let received = Rc::new(Cell::new(0usize));
            for round in 0u64..30 {
                let buf = vec![7u8; 16];
                let send =
                    Op::new(Send { fd: Some(Rc::clone(&ours)), buf, flags: 0, zero_copy: false }, &driver);
                let sent = crate::spawn_local(send);
                // The other worker's message keeps it busy while this one's operations are in flight.
                let ping = spawn_to(WorkerId::new(1), async move || round);
                let read = async {
                    std::future::poll_fn(|cx| stash.poll_quiet(cx)).await;
                    stash.receive_begins();
                    let kept = crate::io::op::net::kept_whole::<Vec<u8>>;
                    let recv = Recv {
                        fd: Rc::clone(&theirs),
                        buf: Vec::with_capacity(8),
                        flags: 0,
                        waits: false,
                        stash: Some(Rc::clone(&stash)),
                        kept,
                    };
                    Op::new(recv, &driver).await.0
                };
                // As often as not the read is given up while the kernel has it.
                let limit = Duration::from_micros((seed * 31 + round * 17) % 40);
                if let Ok(Ok(bytes)) = timeout(limit, read).await {
                    received.set(received.get() + bytes);
                }
                assert_eq!(ping.await.expect("it does not panic"), round);
                let (sent, buf) = sent.await.expect("it does not panic");
                // A short write sends the rest another time; here only the count matters.
                let _ = buf;
                received.set(received.get() + (16 - sent.expect("the peer reads")));
            }
            // What is left: in the stash, and in the pipe.
            drop(ours);
            loop {
                std::future::poll_fn(|cx| stash.poll_quiet(cx)).await;
                while let Some(chunk) = stash.pop() {
                    received.set(received.get() + chunk.expect("no error was kept").len());
                }
                stash.receive_begins();
                let kept = crate::io::op::net::kept_whole::<Vec<u8>>;
                let fd = Rc::clone(&theirs);
                let recv = Recv {
                    fd,
                    buf: Vec::with_capacity(64),
                    flags: 0,
                    waits: false,
                    stash: Some(Rc::clone(&stash)),
                    kept,
                };
                match Op::new(recv, &driver).await.0.expect("the pipe ends in order") {
                    0 => break,
                    bytes => received.set(received.get() + bytes),
                }
            }
            received.get()
        });
        assert_eq!(total, 30 * 16, "seed {seed}");
        crew.end();
    }
}

/// A sender that is always there must not keep the messages of another from a worker, nor the worker's own tasks from their turns.
/// Counted in values of the flood that were taken meanwhile.
#[test]
fn a_flooded_receiver_hears_the_others_and_lets_its_tasks_run() {
    /// Values taken from one ring in a row, and times that an end is ready without a pause (see the channel).
    const STREAK: u64 = 64;
    const UNBROKEN: u64 = 256;
    for seed in 0..20 {
        let mut crew = Crew::new(3, seed);
        let (waited, paused, flooded) = crew.run(async {
            let mut ends = mesh::full::<Option<mesh::Reply<()>>>(1024).into_iter();
            let (mut first, mut flood, mut quiet) =
                (ends.next().expect("0"), ends.next().expect("1"), ends.next().expect("2"));
            let taken = Arc::new(AtomicU64::new(0));
            let now = |taken: &AtomicU64| taken.load(Relaxed);
            let flooding = spawn_to(WorkerId::new(1), async move || {
                loop {
                    while flood.try_send(WorkerId::new(0), None).is_ok() {}
                    yield_now().await;
                }
            });
            let seen = Arc::clone(&taken);
            let asking = spawn_to(WorkerId::new(2), async move || {
                let mut waited = 0;
                for _ in 0..200 {
                    let (reply, answer) = mesh::reply();
                    let asked_at = now(&seen);
                    quiet.send(WorkerId::new(0), Some(reply)).await.expect("it is being read");
                    answer.await.expect("it is answered");
                    waited = waited.max(now(&seen) - asked_at);
                }
                waited
            });
            let seen = Arc::clone(&taken);
            let ticking = spawn_local(async move {
                let (mut last, mut paused) = (0, 0);
                while last < 50_000 {
                    yield_now().await;
                    (last, paused) = (now(&seen), paused.max(now(&seen) - last));
                }
                paused
            });
            let receiving = spawn_local(async move {
                loop {
                    match first.recv().await {
                        None => taken.fetch_add(1, Relaxed),
                        Some(reply) => {
                            reply.send(()).expect("somebody waits");
                            continue;
                        }
                    };
                }
            });
            let (waited, paused) = (asking.await.expect("no panic"), ticking.await.expect("no panic"));
            flooding.abort();
            receiving.abort();
            (waited, paused, 50_000)
        });
        assert!(flooded >= 50_000 && waited > 0, "void: seed {seed}");
        // The asker sees the answer in its next turn, by when the receiver has had one whole turn more.
        let per_turn = 64 * UNBROKEN;
        assert!(waited <= STREAK + per_turn, "seed {seed}: an answer took {waited} values of the flood");
        assert!(paused <= UNBROKEN, "seed {seed}: a task waited for {paused} values");
        crew.end();
    }
}

/// A worker to which others send faster than it runs must leave the messages to their senders: else its queue grows without bound.
#[test]
fn a_worker_that_is_flooded_with_tasks_leaves_them_in_their_rings() {
    for seed in 0..20 {
        let mut crew = Crew::new(3, seed);
        let most_alive = crew.run(async {
            let floods: Vec<_> = [1, 2]
                .map(|from| {
                    spawn_to(WorkerId::new(from), async move || {
                        for _ in 0..20_000 {
                            RoomToSend::new(WorkerId::new(0)).await;
                            drop(spawn_to(WorkerId::new(0), async || ()));
                        }
                    })
                })
                .into();
            let mut most_alive = 0;
            while !floods.iter().all(JoinHandle::is_finished) {
                most_alive = most_alive.max(Context::current().metrics().tasks);
                yield_now().await;
            }
            most_alive
        });
        // Crowded, and then one turn's worth of two rings.
        assert!(most_alive > 200, "void: seed {seed}: {most_alive}");
        assert!(most_alive <= 256 + 2 * 256 + 64, "seed {seed}: {most_alive} tasks");
        crew.end();
    }
}

/// A future that waits for room while another side of its `select` is polled again and again, or that is given up and made anew, would
/// leave a waker behind each time, for as long as the receiver is stuck; and one that has moved meanwhile, at the worker it came from.
#[test]
fn who_waits_for_room_waits_once_and_leaves_nothing_behind() {
    /// Has no room left towards `to`: there are fewer places than that.
    fn fill(to: WorkerId) {
        for _ in 0..6_000 {
            drop(spawn_to(to, async || ()));
        }
    }
    fn waits(room: &mut RoomToSend, waker: &Waker) -> bool {
        Pin::new(room).poll(&mut std::task::Context::from_waker(waker)).is_pending()
    }
    let mut crew = Crew::new(3, 0);
    let stuck = WorkerId::new(1);
    let work = async move {
        fill(stuck);
        let counts = [(), ()].map(|()| Arc::new(Wakes::default()));
        let mut rooms = [(), ()].map(|()| RoomToSend::new(stuck));
        for _ in 0..500 {
            for (room, count) in rooms.iter_mut().zip(&counts) {
                assert!(waits(room, &Waker::from(count.clone())));
            }
        }
        let kept = || counts.each_ref().map(|count| Arc::strong_count(count) - 1);
        assert_eq!(kept(), [1, 1], "after a thousand polls");
        let [mut moves, stays] = rooms;
        drop(stays);
        assert_eq!(kept(), [1, 0]);
        let waker = Waker::from(counts[0].clone());
        let moved = spawn_to(WorkerId::new(2), async move || {
            fill(stuck);
            assert!(waits(&mut moves, &waker));
            Some(moves)
        });
        let moved = moved.await.expect("no panic");
        assert_eq!(kept(), [1, 0], "at the worker that polled it last");
        drop(moved);
        assert_eq!(kept(), [0, 0]);
        // The links are not borrowed while a waker is cloned, which may send.
        let sends = waker_that_meddles(|| drop(spawn_to(WorkerId::new(2), async || ())));
        assert!(waits(&mut RoomToSend::new(stuck), &sends));
    };
    crew.run_choosing(work, |worker| worker != stuck.index());
    crew.end();
}

/// Counts its wakes.
#[derive(Default)]
struct Wakes(AtomicU64);
impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A burst of values costs its receiver one wake from elsewhere, however long it is.
#[test]
fn a_burst_over_a_channel_wakes_its_receiver_once() {
    let mut crew = Crew::new(2, 7);
    let wakes = crew.run(async {
        let (mut sender, mut receiver) = mesh::channel(1024);
        let reading = spawn_to(WorkerId::new(1), async move || {
            let before = Context::current().metrics().remote_wakes;
            for _ in 0..1_000 {
                receiver.recv().await.expect("there are a thousand");
            }
            Context::current().metrics().remote_wakes - before
        });
        // It waits for the first value before there is one.
        for _ in 0..4 {
            yield_now().await;
            sleep(Duration::from_millis(1)).await;
        }
        for value in 0..1_000 {
            sender.try_send(value).expect("there is room");
        }
        reading.await.expect("no panic")
    });
    assert_eq!(wakes, 1);
    crew.end();
}

/// A crew that ends with messages under way, tasks asleep and operations in flight must drop each exactly once.
#[test]
fn a_crew_that_ends_in_the_middle_drops_everything_once() {
    struct Counted(Arc<crate::sync::atomic::AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, crate::sync::atomic::Ordering::Relaxed);
        }
    }
    for seed in 0..50 {
        let dropped = Arc::new(crate::sync::atomic::AtomicUsize::new(0));
        let mut crew = Crew::new(3, seed);
        let count = Arc::clone(&dropped);
        crew.run(async move {
            for n in 0..300 {
                let counted = Counted(Arc::clone(&count));
                drop(spawn_to(WorkerId::new(n % 3), async move || {
                    let _counted = counted;
                    sleep(Duration::from_secs(n as u64)).await;
                }));
            }
            sleep(Duration::from_secs(seed)).await;
        });
        // One that is in a ring, and belongs to a worker that ends later.
        let late = {
            let first = crew.workers[0].context();
            let _entered = first.enter();
            let counted = Counted(Arc::clone(&dropped));
            let work = async move || drop(counted);
            let (task, handle) = TaskRef::new_remote_at(
                work,
                first.shared.mailbox(WorkerId::new(2)),
                std::panic::Location::caller(),
            );
            assert!(first.links.borrow_mut().send(WorkerId::new(2), task).is_ok(), "there is room");
            handle
        };
        crew.end();
        assert_eq!(dropped.load(crate::sync::atomic::Ordering::Relaxed), 301, "seed {seed}");
        assert!(late.is_finished());
    }
}

/// A worker that does not come out of a poll must not keep a service from being stopped everywhere else, nor lose its instance
/// without the hook when it does come out.
#[test]
fn a_stop_leaves_out_a_worker_that_stands_still_and_names_it() {
    type Notes = Arc<Mutex<Vec<(usize, &'static str)>>>;
    fn note(notes: &Notes, what: &'static str) {
        notes.lock().expect("nobody panics under it").push((crate::current_worker().index(), what));
    }
    struct Noted(Notes);
    impl Drop for Noted {
        fn drop(&mut self) {
            note(&self.0, "dropped");
        }
    }
    let stuck = WorkerId::new(1);
    // Nothing, less than a worker that stands still is granted in any case, and more.
    for patience in [0, 20, 160].map(Duration::from_millis) {
        let mut crew = Crew::with_patience(Duration::from_millis(40), 3, 0);
        let stands_still = Rc::new(Cell::new(false));
        let standing = Rc::clone(&stands_still);
        let work = async move {
            let notes = Notes::default();
            let noted = Arc::clone(&notes);
            let started = Sharded::start(async move |_| Ok::<_, Infallible>(Noted(noted))).await;
            let service = started.expect("the factory does not fail");
            let stop = async |instance: Noted| {
                note(&instance.0, "stopping");
                Ok::<_, Infallible>(())
            };
            standing.set(true);
            // The second finds the others' instances gone, and the first one's hook still to come. It has no room to send, either.
            for stopped in [[2, 0].as_slice(), &[]] {
                let stopping = service.stop_with(patience, stop).await;
                let unfinished = match stopping.expect_err("one does not answer") {
                    StopError::Unfinished(unfinished) => unfinished,
                    StopError::Failed(never) => match never {},
                };
                assert_eq!((unfinished.calls, &*unfinished.silent), (0, [stuck].as_slice()));
                assert!(unfinished.to_string().ends_with("; worker 1 did not answer"), "{unfinished}");
                let seen = mem::take(&mut *notes.lock().expect("nobody panics under it"));
                let ends = stopped.iter().flat_map(|&worker| [(worker, "stopping"), (worker, "dropped")]);
                assert!(seen.iter().copied().eq(ends), "{seen:?}");
                for _ in 0..6_000 {
                    drop(spawn_to(stuck, async || ()));
                }
            }
            standing.set(false);
            service.stop(Duration::from_secs(3600)).await.expect("everybody answers");
            let seen = mem::take(&mut *notes.lock().expect("nobody panics under it"));
            assert_eq!(seen, [(1, "stopping"), (1, "dropped")]);
        };
        crew.run_choosing(work, |worker| worker != stuck.index() || !stands_still.get());
        crew.end();
    }
}

/// A stop's patience is the workers' too, in each of its parts. One that is given none for a part, however healthy all are, names those
/// that have had no turn since they were asked, and waits neither for their hooks nor in their order.
#[test]
fn a_stop_takes_no_healthy_worker_for_one_that_stands_still() {
    for patience in [Duration::ZERO, Duration::from_secs(5)] {
        let mut crew = Crew::with_patience(Duration::ZERO, 3, 0);
        crew.run(async move {
            let started = Sharded::start(async |worker| Ok::<_, Infallible>(worker)).await;
            let service = started.expect("the factory does not fail");
            let stopped = Arc::new(Mutex::new(Vec::new()));
            let noted = Arc::clone(&stopped);
            let stop = async move |worker: WorkerId| {
                noted.lock().expect("nobody panics under it").push(worker.index());
                if worker == WorkerId::new(1) { Err("the disk is full") } else { Ok(()) }
            };
            assert_eq!(
                service.stop_with(patience, stop).await,
                Err(StopError::Failed("the disk is full")),
                "{patience:?}"
            );
            assert_eq!(*stopped.lock().expect("nobody panics under it"), [2, 1, 0], "{patience:?}");
        });
        crew.end();
    }
}

/// The same, of a worker that is in a poll when its own instance's turn has come, for longer than it is granted in any case but not as
/// long as the stop's patience.
#[test]
fn a_stop_waits_with_all_its_patience_for_the_last_part_too() {
    let mut crew = Crew::with_patience(Duration::from_millis(1), 3, 0);
    let clock = crew.world.clock();
    let hooked = Arc::new(AtomicU64::new(0));
    let hooks = Arc::clone(&hooked);
    let work = async move {
        let started = Sharded::start(async |worker| Ok::<_, Infallible>(worker)).await;
        let service = started.expect("the factory does not fail");
        let stop = async move |_worker: WorkerId| {
            hooks.fetch_add(1, Relaxed);
            Ok::<_, Infallible>(())
        };
        service.stop_with(Duration::from_secs(3600), stop).await
    };
    // From the first hook on, which is worker 2's, worker 1 stands still for a minute.
    let mut stood_ms = 0;
    let stopped = crew.run_choosing(work, |worker| {
        let stands = worker == 1 && hooked.load(Relaxed) == 1 && stood_ms < 60_000;
        if stands {
            stood_ms += 1;
            clock.set(clock.get() + 1_000_000);
        }
        !stands
    });
    assert_eq!((stopped, stood_ms, hooked.load(Relaxed)), (Ok(()), 60_000, 3));
    crew.end();
}

/// Calls, and calls of calls, of a service that is stopped in the middle: whatever was let in must end, with all that it
/// calls, before the first instance goes, and nothing may be let in afterwards, whatever the kernel's and the timers' order.
#[test]
fn a_service_is_stopped_behind_its_last_call() {
    /// One for all workers, which share this thread.
    #[derive(Default)]
    struct Tally {
        begun: Cell<u32>,
        ended: Cell<u32>,
        refused: Cell<u32>,
        departed: RefCell<Vec<usize>>,
    }
    thread_local! {
        static TALLY: Tally = Tally::default();
    }
    struct Counts(WorkerId);
    impl Drop for Counts {
        fn drop(&mut self) {
            TALLY.with(|tally| {
                assert_eq!(tally.begun.get(), tally.ended.get(), "an instance went under a call");
                tally.departed.borrow_mut().push(self.0.index());
            });
        }
    }
    /// A call in flight.
    struct Ends;
    impl Ends {
        fn begin() -> Ends {
            TALLY.with(|tally| tally.begun.set(tally.begun.get() + 1));
            Ends
        }
    }
    impl Drop for Ends {
        fn drop(&mut self) {
            TALLY.with(|tally| tally.ended.set(tally.ended.get() + 1));
        }
    }
    /// Calls some worker's instance, and that calls another, until `hops` are made; sleeps between.
    fn hop(
        service: Sharded<Counts>,
        hops: u64,
        seed: u64,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), CallError>>>> {
        Box::pin(async move {
            let to = WorkerId::new(usize::try_from(seed % 3).expect("it is small"));
            let inner = service.clone();
            let call = async move |counts: &Counts| {
                assert_eq!(counts.0, crate::current_worker());
                let _ends = Ends::begin();
                sleep(Duration::from_micros(seed % 40)).await;
                if hops > 0 {
                    let further = hop(inner, hops - 1, seed / 3 + 7 * seed % 11);
                    // Some are given up, and go on by themselves if they have left this worker.
                    let patience = if seed.is_multiple_of(4) { seed % 30 } else { 1_000_000 };
                    if let Ok(answer) = timeout(Duration::from_micros(patience), further).await {
                        answer.expect("what a call in flight calls is let in");
                    }
                }
            };
            service.on(to, call).await
        })
    }
    let mut refused = 0;
    for seed in 0..200 {
        TALLY.with(|tally| {
            tally.begun.set(0);
            tally.ended.set(0);
            tally.departed.borrow_mut().clear();
        });
        let mut crew = Crew::new(3, seed);
        crew.run(async move {
            let service = Sharded::start(async |worker| Ok::<_, std::io::Error>(Counts(worker))).await;
            let service = service.expect("the factory does not fail");
            let callers: Vec<_> = (0..30u64)
                .zip((0..3).cycle())
                .map(|(n, worker)| {
                    let service = service.clone();
                    spawn_to(WorkerId::new(worker), async move || {
                        sleep(Duration::from_micros(n * (1 + seed % 7))).await;
                        match hop(service, n % 5, seed * 31 + n * 17).await {
                            Ok(()) => {}
                            Err(CallError::Stopped) => {
                                TALLY.with(|tally| tally.refused.set(tally.refused.get() + 1));
                            }
                            Err(error) => panic!("{error}"),
                        }
                    })
                })
                .collect();
            sleep(Duration::from_micros(seed % 120)).await;
            service.stop(Duration::from_secs(60)).await.expect("every call ends");
            assert!(matches!(service.on_all(async |_| ()).await, Err(CallError::Stopped)));
            for caller in callers {
                caller.await.expect("it does not panic");
            }
        });
        TALLY.with(|tally| {
            assert_eq!(*tally.departed.borrow(), [2, 1, 0], "seed {seed}");
            assert_eq!(tally.begun.get(), tally.ended.get(), "seed {seed}");
            assert!(tally.refused.get() < 200 * 30, "none was let in");
            refused = tally.refused.get();
        });
        crew.end();
    }
    assert!(refused > 0, "no stop came in the middle");
}

/// A thousand tasks are sent to a worker that sits in a poll which ends when all of them have run. If they lay where only that worker sees
/// them, or a push woke nobody although somebody sleeps, this would hang.
#[test]
fn a_thousand_tasks_aimed_at_a_blocked_worker_finish_before_its_poll_returns() {
    let runtime = super::Builder::new().workers(2).pin(false).build().expect("this kernel has io_uring");
    let shared = Arc::clone(&runtime.shared);
    runtime.block_on(async move {
        let (blocks, blocked) = std::sync::mpsc::channel();
        let (ran, all_ran) = std::sync::mpsc::channel();
        let stuck = spawn_to(WorkerId::new(1), async move || {
            blocks.send(()).expect("the test waits for it");
            (0..1_000).map(|_| all_ran.recv().expect("a task was dropped")).sum::<u64>()
        });
        // From a thread of its own: this worker must be free to steal.
        let aims = std::thread::spawn(move || {
            blocked.recv().expect("it blocks");
            for n in 0..1_000 {
                let ran = ran.clone();
                let work = async move { ran.send(n).expect("the poll waits for it") };
                let (task, _detached) = TaskRef::new_stealable(work, super::task::Label::here());
                shared.spawner.send(1, task);
            }
        });
        assert_eq!(stuck.await.expect("it does not panic"), 499_500);
        aims.join().expect("it does not panic");
    });
}
