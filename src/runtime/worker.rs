//! One core's loop, as a value.
//!
//! A [`Worker`] owns an executor, timers, a driver, a pool and its ends of the mesh, and does nothing by itself: whoever
//! holds it calls it. The threads of a [`Runtime`](super::Runtime) are shells around the two steps of a turn, and a test
//! can take turns of several workers on one thread.
//!
//! ```text
//! work:  take what the mesh and other threads brought
//!        run ready tasks, up to the budget
//!        fire due timers
//!        publish what was sent, ring
//! wait:  something ready?   one kernel entry that submits and reaps, or none if there is neither
//!        nothing ready?     steal; nothing to steal? look around for a moment, if that has paid lately (see `spin`);
//!                           announce, look again, park: the same entry, but it sleeps
//! ```
//!
//! One turn is at most one kernel entry: what the tasks submitted goes out by the very call that waits for answers. Who wants to go
//! on behind that entry, and behind the tasks that it makes ready, is woken last ([`next_turn`](crate::task::next_turn())).
//!
//! **Fairness.** The budget bounds how many polls come between two looks at the driver, and [`SLICE_NS`] how long: a task
//! that always yields delays arriving data and due timers by one budget, long polls by one slice and one of them. A healthy turn is
//! far from its slice, and a precise clock costs as much as a short poll. So turns look at the coarse one, a number in memory that
//! moves on each few milliseconds; a turn in which it does ends its polls, and the next ones go by the precise clock until one has ended
//! within its slice. If polls get long in the middle of a turn, those until the next look pass unseen (see [`policy`]).
//!
//! **Background.** A background task runs when no foreground task is ready, or when the background has had less than its share.
//! Each poll of one is followed by a look at everything else, so that a flood of them delays a foreground wake by one poll and no
//! more. The clock is read for it only while a background task is ready.
//!
//! **Stealing.** Only a worker without anything ready looks at other workers' queues; when, and why no task is slept through,
//! is told in [`spawner`](super::spawner). A search that is lost to others, or meets a queue that is just being emptied, is
//! repeated a few times; if there is still something to be seen, the worker sleeps for a moment, longer each time,
//! instead of turning on the spot.
//!
//! **Tear-down** ([`Worker::end`]): refuse new work, drop futures here, drop what the mesh still holds, cancel every
//! operation and reap until the kernel holds nothing of ours; what it will not give back is leaked, counted and reported.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::context::{Context, Parts};
use super::mesh::doorbell::WokenAs;
use super::mesh::links::Links;
use super::policy::{self, SLICE_NS};
use super::shared::Shared;
use super::spin::Spinner;
use super::stall::{Watch, Watched};
use super::task::Executor;
use super::timer::{Clock, Timers};
use super::trace;
use super::worker_id::WorkerId;
use crate::io::buf::Pool;
use crate::io::driver::thread_pool::quietly;
use crate::io::driver::{Drained, DriverHandle};
use crate::sync::Arc;

/// What background tasks may have of a busy worker's time, by default: enough for a compaction to keep up with the writes that make it
/// necessary, little enough for nobody else to notice.
pub(crate) const BACKGROUND_PERCENT: u32 = 10;

/// Ready tasks from which on a turn takes in fewer than it runs: half a budget. So a worker that is flooded from elsewhere leaves the
/// messages in their rings, where their senders feel it, and its queue stays short; and one that has many tasks of its own
/// still takes what comes. Four budgets, as long as they have their default.
const CROWDED: usize = 256;

/// Turns between two publications of the counters by a busy worker. An idle one publishes before it sleeps.
const TURNS_PER_PUBLICATION: u64 = 64;

/// One core's loop and all it owns. It stays on the thread that made it.
#[derive(Debug)]
pub(crate) struct Worker {
    context: Context,
    budget: usize,
    /// Searches in a row that found nothing.
    failures: u32,
    /// Whether it has searched since it last ran tasks.
    searched: Cell<bool>,
    /// Whether the last turn was longer than a slice, so that the next goes by the precise clock.
    overran: Cell<bool>,
    /// What background tasks may have of a busy worker's time.
    background_percent: u32,
    /// When one of them runs though foreground tasks are ready.
    background_due_ns: Cell<u64>,
}

impl Worker {
    /// A worker of the runtime that `shared` belongs to, over a driver made on this thread.
    pub(crate) fn new(
        id: WorkerId,
        shared: Arc<Shared>,
        driver: DriverHandle,
        pool: Pool,
        clock: Clock,
        budget: usize,
        spinner: Spinner,
    ) -> Worker {
        driver.share_threads(&shared.blocking);
        let now_ns = driver.now_ns();
        shared.published[id.index()].times.start(now_ns);
        driver.note_time(now_ns);
        let executor = Executor::new(Arc::clone(shared.mailbox(id)));
        let links = Links::new(id, Arc::clone(&shared)).into();
        let watch = shared.watches.get(id.index()).map(Arc::clone);
        let parts = Parts {
            id,
            shared,
            executor,
            timers: Timers::new(clock.clone()),
            clock,
            driver,
            pool,
            links,
            instances: Default::default(),
            watch,
            dry_told: Default::default(),
            turns: Default::default(),
            after_look: Default::default(),
            parks: Default::default(),
            timers_fired: Default::default(),
            spinner,
            placed: Default::default(),
            steals: Default::default(),
            steals_failed: Default::default(),
            stolen: Default::default(),
        };
        let background_percent = BACKGROUND_PERCENT;
        Worker {
            context: Context::new(parts),
            budget,
            background_percent,
            background_due_ns: Cell::new(0),
            failures: 0,
            searched: Cell::new(false),
            overran: Cell::new(false),
        }
    }

    /// The same with another share for background tasks.
    pub(crate) fn with_background_percent(self, background_percent: u32) -> Worker {
        Worker { background_percent, ..self }
    }

    /// What code on this worker sees of it.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// The first half of a turn: everything but the kernel. The worker must be entered.
    pub(crate) fn work(&mut self) {
        let parts = &*self.context;
        parts.turns.set(parts.turns.get() + 1);
        if let Some(watch) = &parts.watch {
            watch.turn();
        }
        let crowded = parts.executor.pinned_ready() >= CROWDED;
        let most = if crowded { self.budget.div_ceil(2) } else { usize::MAX };
        parts.links.borrow_mut().receive(most, |task| parts.executor.adopt(task));
        parts.executor.drain_remote();
        self.run_ready();
        let fired = parts.timers.fire_due();
        parts.timers_fired.set(parts.timers_fired.get() + fired as u64);
        let has_room = parts.links.borrow_mut().flush();
        for waiter in has_room {
            waiter.wake();
        }
        parts.pool.reclaim();
    }

    /// Runs ready tasks up to the budget or the slice.
    fn run_ready(&self) {
        let executor = &self.context.executor;
        if !executor.has_ready() {
            return;
        }
        let parts = &*self.context;
        let (ready, coarse_ns) = (executor.pinned_ready(), parts.clock.coarse_ns());
        parts.shared.spawner.note_polling(parts.id.index(), ready, coarse_ns);
        // What was robbed to be run at once may have pinned tasks before it by now; and what was placed here since the
        // summons, others left to the searcher.
        if self.searched.replace(false) && executor.has_surplus() {
            parts.shared.spawner.wake_searcher();
        }
        if executor.has_background() {
            return self.run_both();
        }
        let overran = if self.overran.get() {
            self.run_foreground(parts.driver.now_ns(), || parts.driver.now_ns())
        } else {
            self.run_foreground(coarse_ns, || parts.clock.coarse_ns())
        };
        self.overran.set(overran);
    }

    /// Runs foreground tasks until none is ready, the budget is used up, or the slice is over by that clock. Whether it was the slice.
    fn run_foreground(&self, start_ns: u64, now_ns: impl Fn() -> u64) -> bool {
        let executor = &self.context.executor;
        let (mut left, mut took_ns) = (self.budget, 0);
        loop {
            let ran = executor.run(left.min(policy::polls_per_look(self.budget - left, took_ns)));
            left -= ran;
            // Tasks that overflowed are ready, and yet not to be run before the next turn.
            if ran == 0 || left == 0 || !executor.has_foreground() {
                return false;
            }
            took_ns = now_ns().saturating_sub(start_ns);
            if took_ns >= SLICE_NS {
                return true;
            }
        }
    }

    /// The same while a background task is ready: when one is due, it is run and ends the turn's polls.
    fn run_both(&self) {
        let executor = &self.context.executor;
        let start_ns = self.context.driver.now_ns();
        let (mut left, mut took_ns) = (self.budget, 0);
        loop {
            let ran = executor.run(left.min(policy::polls_per_look(self.budget - left, took_ns)));
            left -= ran;
            let now_ns = self.context.driver.now_ns();
            if executor.has_background()
                && (!executor.has_foreground() || self.background_due_ns.get() <= now_ns)
            {
                executor.run_background();
                let (due_ns, ended_ns) = (self.background_due_ns.get(), self.context.driver.now_ns());
                let due_ns = policy::background_due(due_ns, now_ns, ended_ns, self.background_percent);
                self.background_due_ns.set(due_ns);
                return;
            }
            took_ns = now_ns - start_ns;
            // Tasks that overflowed are ready, and yet not to be run before the next turn.
            if ran == 0 || left == 0 || !executor.has_foreground() || took_ns >= SLICE_NS {
                return;
            }
        }
    }

    /// The second half of a turn: the kernel. Sleeps only if nothing is ready and `may_park`. The worker must be entered.
    pub(crate) fn wait(&mut self, may_park: bool) {
        let is_idle = {
            let parts = &*self.context;
            parts.spinner.turned();
            let has_asked = !parts.after_look.borrow().is_empty();
            !has_asked && !parts.executor.has_ready() && !parts.links.borrow().has_unfinished()
        };
        let is_idle = is_idle && !self.steal();
        let parts = &*self.context;
        let mailbox = parts.shared.mailbox(parts.id);
        let announces = may_park && is_idle && !self.spins();
        let deadline =
            if announces && mailbox.doorbell().announce_sleep().is_ok() { self.sleeps_until() } else { None };
        let entered = if let Some(deadline) = deadline {
            parts.parks.set(parts.parks.get() + 1);
            parts.shared.spawner.note_parking(parts.id.index());
            self.publish();
            let times = &parts.shared.published[parts.id.index()].times;
            times.sleep(parts.driver.now_ns());
            if let Some(watch) = &parts.watch {
                watch.park();
            }
            let entered = parts.driver.park(deadline);
            let now_ns = parts.driver.now_ns();
            times.wake(now_ns);
            parts.driver.note_time(now_ns);
            parts.spinner.slept(now_ns);
            entered
        } else {
            if parts.turns.get().is_multiple_of(TURNS_PER_PUBLICATION) {
                self.publish();
                parts.driver.note_time(parts.driver.now_ns());
            }
            parts.driver.process_completions()
        };
        if !parts.after_look.borrow().is_empty() {
            for waker in parts.after_look.take() {
                // A program's own, as that of a combinator is, may panic.
                quietly(|| waker.wake());
            }
        }
        if announces && mailbox.doorbell().wake_up() == WokenAs::Searcher {
            self.search();
        }
        if let Err(error) = entered {
            // Nothing can be submitted or reaped any more, and what is in flight cannot be waited for.
            panic!("the kernel refuses to enter the ring of {:?}: {error}", self.context.id);
        }
    }

    /// Looks around for a while before it sleeps, if that pays. Whether something has come, so that it need not sleep.
    fn spins(&self) -> bool {
        let parts = &*self.context;
        if parts.spinner.would_spin() {
            // What was submitted goes out first: no kernel entry follows while it looks. An error is met again by the park.
            let entered = parts.driver.process_completions();
            if entered.is_ok() && parts.executor.has_ready() {
                return true;
            }
        }
        let doorbell = parts.shared.mailbox(parts.id).doorbell();
        parts.spinner.spin(doorbell, &parts.driver, parts.timers.next_deadline())
    }

    /// The last look before a park, after the announcement: `None` if there is something to steal, else until when to sleep.
    fn sleeps_until(&self) -> Option<Option<u64>> {
        let parts = &*self.context;
        let deadline = parts.timers.next_deadline();
        if !parts.shared.spawner.needs_searcher(parts.id.index()) {
            return Some(deadline);
        }
        let later = parts.clock.now_ns() + policy::back_off(self.failures)?;
        Some(Some(deadline.map_or(later, |deadline| deadline.min(later))))
    }

    /// Takes from other workers, if there is something and nobody else is at it. Whether that brought something to run.
    fn steal(&mut self) -> bool {
        let parts = &*self.context;
        let spawner = &parts.shared.spawner;
        spawner.needs_searcher(parts.id.index()) && spawner.try_search() && self.search()
    }

    /// Takes from other workers, as the searcher. Whether that brought something to run.
    fn search(&mut self) -> bool {
        let parts = &*self.context;
        let passes = policy::passes(self.failures);
        let taken = (0..passes).map(|_| parts.executor.rob()).find(|taken| *taken > 0).unwrap_or(0);
        parts.shared.spawner.end_search(parts.id.index(), taken);
        self.searched.set(true);
        if taken == 0 {
            parts.steals_failed.set(parts.steals_failed.get() + 1);
            self.failures = self.failures.saturating_add(1);
            return false;
        }
        parts.steals.set(parts.steals.get() + 1);
        parts.stolen.set(parts.stolen.get() + taken as u64);
        self.failures = 0;
        true
    }

    /// Whether another turn would find something to do without the kernel's help. For whoever takes turns of several.
    #[cfg(test)]
    pub(crate) fn has_work(&self) -> bool {
        let parts = &*self.context;
        let doorbell = parts.shared.mailbox(parts.id).doorbell();
        let rung = doorbell.announce_sleep().is_err();
        let woken = doorbell.wake_up();
        assert_eq!(woken, WokenAs::Itself, "nobody summons it meanwhile: there is one thread");
        let has_asked = !parts.after_look.borrow().is_empty();
        rung || has_asked || parts.executor.has_ready() || parts.links.borrow().has_unfinished()
    }

    /// Lets the calling thread, on which all turns are taken, be watched, if there is a watchdog.
    pub(crate) fn watched(&self) -> Option<Watched> {
        self.context.watch.as_ref().map(Watch::enter)
    }

    /// Shares the counters with other threads.
    fn publish(&self) {
        let parts = &*self.context;
        let now = self.context.metrics();
        parts.shared.published[parts.id.index()].store(&now);
        let dry = parts.dry_told.replace(now.receive_ring_dry);
        trace::ring_dry(parts.id, now.receive_ring_dry - dry);
    }

    /// Ends the worker. Every future is dropped here, on this thread; then the kernel gives back what it has.
    pub(crate) fn end(self) -> Drained {
        let parts = &*self.context;
        let entered = self.context.enter();
        parts.executor.close();
        let left = parts.links.borrow_mut().close();
        drop(left);
        // The later a service was started, the sooner it goes: it may use those that were there before. One that panics then
        // keeps neither the others nor the kernel's part from their end.
        let mut panicked = None;
        loop {
            let latest = parts.instances.borrow_mut().pop_last();
            let Some(latest) = latest else { break };
            panicked = panicked.or(catch_unwind(AssertUnwindSafe(|| drop(latest))).err());
        }
        let patience: Duration = parts.shared.drain_patience;
        let drained = parts.driver.shut_down(patience);
        parts.shared.note_leaked(drained.leaked);
        trace::leaked(parts.id, drained.leaked);
        self.publish();
        parts.shared.published[parts.id.index()].times.end(parts.driver.now_ns());
        drop(entered);
        if let Some(payload) = panicked {
            resume_unwind(payload);
        }
        drained
    }
}
