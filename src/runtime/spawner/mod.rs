//! Where a task goes that may run on any worker, and who comes for it if it cannot run there.
//!
//! A [`Spawner`] is shared by the workers of a runtime. It has a *desk* for each of them: the worker's stealable [`Queue`] and what others
//! must know of it to choose. The choices themselves are pure functions, in [`policy`].
//!
//! ```text
//!  spawn ─▶ place: two desks at random, the lighter one ─▶ own ring, or inbox of the other and ring its doorbell
//!  wake  ─▶ on a worker of the runtime: its own ring;  elsewhere: the inbox of the task's home
//!                                      │
//!                                      ▼
//!                            wake_searcher: does nobody search, and does somebody sleep? wake that one to search
//! ```
//!
//! So all that is ready and may move lies in a desk's queue, never behind the task that its worker is just polling.
//!
//! # Stealing
//!
//! A worker that has nothing to do looks at all desks, and robs the longest queue of half. One does so at a time, the
//! *searcher*; the flag `searching` says that there is one. The role comes to a worker that looks around by itself
//! ([`try_search`](Spawner::try_search)), or together with being woken ([`Doorbell::summon`]).
//!
//! ```text
//!   who makes a task visible                       who goes to sleep
//! p1  push the task                              r1  announce the sleep
//! p2  fence(SeqCst)                              r2  fence(SeqCst)
//! p3  searching? ─▶ done                         r3  searching? ─▶ park
//! p4  nobody asleep? ─▶ done                     r4  anything in any queue? ─▶ do not park, search
//! p5  searching := true; was it? ─▶ done         r5  park
//! p6  exchange the sleeper's announcement;
//!     failed? searching := false, from p2        the searcher, when it has looked (and taken something, or not)
//!     unpark it, as the searcher                 q1  searching := false
//!                                                q2  fence(SeqCst)
//!                                                q3  anything left in any queue? ─▶ from p2
//! ```
//!
//! **No task lies in a queue while a worker sleeps that could run it,** but for the moment that the one takes who sees to it:
//!
//! - *p against r.* The fences p2 and r2 are in one order. If p2 is first, r4 sees the task (or r3 somebody who searches). If
//!   r2 is first, p4 sees the announcement.
//! - *p against q, r against q.* Who sees `searching` at p3 or r3 leaves it to the searcher. That one's q1 comes later in the
//!   order of the flag, so the fence before that look comes before q2, and q3 sees the task, and p4 after it the sleeper. At p6
//!   the role is given back in the same way, hence from p2 on again. (Another round means that another thread has woken that
//!   sleeper: the loop is lock-free, and in practice is one round.)
//! - *The queue's owner is asleep.* Then it was rung for what was sent to it, and needs no searcher. What it moves into its
//!   ring when it comes, it announces as p does, unless it is about to run it.
//!
//! **One wake for a burst.** While a woken searcher is on its way, the next thousand pushes see the flag and go on. It wakes
//! the next when it has found something and leaves something. So workers are woken one after another, as long as there is work
//! for one more.
//!
//! # The end
//!
//! A stealable task that was polled before is in the list of its *home*, the worker that first polled it, wherever it is now. At the end
//!
//! 1. each worker drops what is in its ring and, of the tasks in its list, those that wait for a wake;
//! 2. the rest of its list (in another's queue, or being polled there, or about to be queued by another thread) it leaves here;
//! 3. the last worker to come takes all that was left. Nobody polls any more, so what is not finished by now is its own to drop.
//!
//! So the future of a task is dropped on a worker even if another thread is just about to push it: that push then finds a task
//! that has ended, and gives up no more than its reference. A task that was never polled is dropped by whoever finds it, or
//! cannot place it any more.

mod queue;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use crossbeam_utils::CachePadded;
use fastrand::Rng;

pub(in crate::runtime) use self::queue::{Emptied, Queue};
use super::mesh::doorbell::{Doorbell, Heard};
use super::policy::{self, Load};
use super::task::{Counted, TaskRef};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use crate::sync::{Arc, mutant};

/// Places and steals tasks among the workers of a runtime.
pub(crate) struct Spawner {
    desks: Box<[Desk]>,
    /// Whether a worker searches for tasks, or is being woken to.
    searching: CachePadded<AtomicBool>,
    /// Whether there are thieves at all.
    steals: bool,
    /// Tasks that were placed by threads outside of the runtime, or as such. For each of them its number is the seed of the choice.
    from_outside: AtomicU64,
    end: Mutex<End>,
}

/// What others see of one worker.
struct Desk {
    queue: Queue,
    /// There once the worker has its mailbox.
    doorbell: OnceLock<Arc<Doorbell>>,
    load: CachePadded<LoadWords>,
}

impl Desk {
    fn doorbell(&self) -> &Doorbell {
        self.doorbell.get().expect("every worker has its mailbox before the first task is spawned")
    }
}

/// What a worker says of itself, as of some recent turn. Relaxed: a choice by old news costs balance, nothing else.
#[derive(Default)]
struct LoadWords {
    /// Pinned tasks that are ready.
    pinned_ready: AtomicUsize,
    /// When its present turn began to poll, by the coarse clock; 0 while it is parked.
    polls_since_ns: AtomicU64,
}

/// How the runtime ends.
struct End {
    /// Workers that have not ended.
    open: usize,
    /// What those that have ended could not finish themselves.
    left: Vec<Counted>,
}

impl Spawner {
    /// The spawner of a runtime of so many workers.
    pub(crate) fn new(workers: usize, steals: bool) -> Arc<Spawner> {
        let desk = |_| Desk { queue: Queue::new(), doorbell: OnceLock::new(), load: CachePadded::default() };
        Arc::new(Spawner {
            desks: (0..workers).map(desk).collect(),
            searching: CachePadded::new(AtomicBool::new(false)),
            // A house of one has no thieves.
            steals: steals && workers > 1,
            from_outside: AtomicU64::new(0),
            end: Mutex::new(End { open: workers, left: Vec::new() }),
        })
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.desks.len()
    }

    /// Makes a worker's doorbell known.
    ///
    /// # Panics
    ///
    /// If the worker has one already.
    pub(crate) fn introduce(&self, worker: usize, doorbell: &Arc<Doorbell>) {
        let new = self.desks[worker].doorbell.set(Arc::clone(doorbell)).is_ok();
        assert!(new, "each worker has one mailbox");
    }

    /// A worker's stealable queue.
    pub(in crate::runtime) fn queue(&self, worker: usize) -> &Queue {
        &self.desks[worker].queue
    }

    /// Chooses the worker that gets a new task. `home` is the worker that places, if one does; `now_ns` is the coarse clock.
    pub(crate) fn choose(&self, home: Option<usize>, random: &mut Rng, now_ns: u64) -> usize {
        policy::place(self.workers(), home, random, |worker| {
            let desk = &self.desks[worker];
            if desk.doorbell.get().is_some_and(|doorbell| doorbell.is_closed()) {
                return None;
            }
            let ready = desk.queue.len() + desk.load.pinned_ready.load(Relaxed);
            let turn_ns = match desk.load.polls_since_ns.load(Relaxed) {
                0 => 0,
                // At least 1: it is at work.
                since_ns => now_ns.saturating_sub(since_ns).max(1),
            };
            Some(Load { ready, turn_ns })
        })
    }

    /// The same for a thread outside of the runtime.
    pub(crate) fn choose_from_outside(&self, now_ns: u64) -> usize {
        let mut random = Rng::with_seed(self.from_outside.fetch_add(1, Relaxed));
        self.choose(None, &mut random, now_ns)
    }

    /// How often that was.
    pub(crate) fn placed_from_outside(&self) -> u64 {
        self.from_outside.load(Relaxed)
    }

    /// Sends a task to a worker, from any thread. If the worker has closed and the task was never polled, it is cancelled instead.
    pub(crate) fn send(&self, worker: usize, task: TaskRef) {
        let desk = &self.desks[worker];
        desk.queue.send(task);
        match desk.doorbell().ring_remote() {
            // It comes at once, and has nothing else to do.
            Heard::Woken => {}
            Heard::Open => self.wake_searcher(),
            Heard::Closed if mutant("send: leave a closed inbox alone") => {}
            Heard::Closed => desk.queue.discard(),
        }
    }

    /// A worker is about to poll, with so many pinned tasks ready.
    pub(crate) fn note_polling(&self, worker: usize, pinned_ready: usize, now_ns: u64) {
        let load = &self.desks[worker].load;
        load.pinned_ready.store(pinned_ready, Relaxed);
        load.polls_since_ns.store(now_ns.max(1), Relaxed);
    }

    /// A worker is about to park.
    pub(crate) fn note_parking(&self, worker: usize) {
        let load = &self.desks[worker].load;
        load.pinned_ready.store(0, Relaxed);
        load.polls_since_ns.store(0, Relaxed);
    }

    /// Wakes a worker to search, if nobody searches and somebody sleeps. Called by whoever has just made a task visible.
    pub(crate) fn wake_searcher(&self) {
        if !self.steals {
            return;
        }
        loop {
            if !mutant("push: no fence") {
                fence(SeqCst);
            }
            let is_asleep = |worker: usize| {
                self.desks[worker].doorbell.get().is_some_and(|doorbell| doorbell.is_sleeping())
            };
            let searching = self.searching.load(Relaxed);
            let Some(sleeper) = policy::summoned(searching, self.workers(), is_asleep) else { return };
            // Acquire, here and in `try_search`: pairs with the Release of `end_search`. The role has one holder at a time.
            if self.searching.swap(true, AcqRel) || self.desks[sleeper].doorbell().summon() {
                return;
            }
            self.searching.store(false, Release);
            if mutant("summon: give up at once") {
                return;
            }
        }
    }

    /// Whether there is something to steal, and nobody who is about to. Asked after the announcement of a sleep, this is the look
    /// that must come before it.
    pub(crate) fn needs_searcher(&self, worker: usize) -> bool {
        self.steals && !self.searching.load(Relaxed) && self.has_loot(worker)
    }

    /// Whether another than `worker` has tasks to steal.
    fn has_loot(&self, worker: usize) -> bool {
        self.desks.iter().enumerate().any(|(other, desk)| other != worker && desk.queue.len() > 0)
    }

    /// Makes the calling worker the searcher, if there is none. Whether it did; then it searches, and ends that.
    pub(crate) fn try_search(&self) -> bool {
        let order = if mutant("search: begun relaxed") { Relaxed } else { AcqRel };
        !self.searching.load(Relaxed) && !self.searching.swap(true, order)
    }

    /// The searcher `worker` has looked, and has taken so many tasks.
    pub(crate) fn end_search(&self, worker: usize, taken: usize) {
        self.searching.store(false, if mutant("search: ended relaxed") { Relaxed } else { Release });
        if mutant("search: no look after the end") {
            return;
        }
        fence(SeqCst);
        if policy::leaves_more(taken, || self.has_loot(worker)) {
            self.wake_searcher();
        }
    }

    /// Whom `worker` should rob, if there is anything.
    pub(crate) fn victim(&self, worker: usize, random: &mut Rng) -> Option<usize> {
        policy::victim(worker, self.workers(), random, |victim| self.desks[victim].queue.len())
    }

    /// Makes a worker look at its inbox, from which somebody was turned away while another took from it.
    pub(crate) fn remind(&self, worker: usize) {
        let desk = &self.desks[worker];
        if desk.doorbell().ring_remote() == Heard::Closed {
            desk.queue.discard();
        }
    }

    /// A worker has ended, and leaves what it could not finish. The last one is given all that was left, and finishes it.
    pub(in crate::runtime) fn leave(&self, mut left: Vec<Counted>) -> Vec<Counted> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.left.append(&mut left);
        end.open -= 1;
        if end.open == 0 { std::mem::take(&mut end.left) } else { Vec::new() }
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner")
            .field("queues", &self.desks.iter().map(|desk| &desk.queue).collect::<Vec<_>>())
            .field("searching", &self.searching.load(Acquire))
            .finish_non_exhaustive()
    }
}
