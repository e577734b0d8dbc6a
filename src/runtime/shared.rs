//! What the workers of one runtime share. It is all here: mailboxes, stealable queues, the places where new rings change hands, a stop
//! flag, and each worker's published counters.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use super::mesh::mailbox::Mailbox;
use super::mesh::ring::Consumer;
use super::mesh::room::Room;
use super::metrics::Published;
use super::placement::Seat;
use super::spawner::Spawner;
use super::stall::Watch;
use super::task::TaskRef;
use super::worker_id::WorkerId;
use crate::io::driver::thread_pool::{ThreadPool, ThreadPoolConfig};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The shared block of a runtime. It lives until the last handle to it is gone, which may be long after the workers.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Where each worker gets what other threads have for it.
    pub(crate) mailboxes: Box<[Arc<Mailbox>]>,
    /// Who places tasks among the workers, and lets them steal from each other.
    pub(crate) spawner: Arc<Spawner>,
    /// For each ordered pair of workers, sender times number of workers plus receiver: how their ring begins.
    pairs: Box<[Pair]>,
    /// What the watchdog sees of each worker; none if there is no watchdog.
    pub(crate) watches: Box<[Arc<Watch>]>,
    /// Each worker's counters, written by it alone.
    pub(crate) published: Box<[CachePadded<Published>]>,
    /// Set once: workers end when they see it.
    stopping: AtomicBool,
    /// Operations that workers could not get back from the kernel when they ended.
    leaked: AtomicUsize,
    /// The threads for work that blocks.
    pub(crate) blocking: Arc<ThreadPool>,
    /// Blocking jobs that were still running when nobody waited for them any more.
    jobs_left: AtomicUsize,
    /// The workers on threads of their own that take turns, and what is waited for when the runtime ends.
    turning: Mutex<Vec<WorkerId>>,
    /// Told when one of them has left its loop.
    left: Condvar,
    /// Those that were given up when the runtime ended.
    stuck: Mutex<Vec<WorkerId>>,
    /// How long a worker that ends waits for the kernel, and the runtime for blocking jobs and for a worker that is in a poll.
    pub(crate) drain_patience: Duration,
    /// Where each worker is pinned; nothing of workers that are not threads.
    seats: Box<[Option<Seat>]>,
}

/// One sender and one receiver.
#[derive(Debug, Default)]
struct Pair {
    /// The receiver's end of a new ring, from the sender's first message until the receiver's next look.
    receiver_end: Mutex<Option<Consumer<TaskRef>>>,
    /// Whether the sender found the ring full, and wants to be rung when there is room.
    room: Room,
}

impl Shared {
    /// The block for these workers.
    pub(crate) fn new(
        spawner: Arc<Spawner>,
        mailboxes: Box<[Arc<Mailbox>]>,
        drain_patience: Duration,
    ) -> Shared {
        let workers = mailboxes.len();
        Shared {
            mailboxes,
            spawner,
            pairs: (0..workers * workers).map(|_| Pair::default()).collect(),
            watches: Box::default(),
            published: (0..workers).map(|_| CachePadded::default()).collect(),
            stopping: AtomicBool::new(false),
            leaked: AtomicUsize::new(0),
            blocking: Arc::new(ThreadPool::new(ThreadPoolConfig::default())),
            jobs_left: AtomicUsize::new(0),
            turning: Mutex::new((1..workers).map(WorkerId::new).collect()),
            left: Condvar::new(),
            stuck: Mutex::default(),
            drain_patience,
            seats: Box::default(),
        }
    }

    /// The block with such threads for work that blocks.
    pub(crate) fn with_blocking(self, blocking: ThreadPoolConfig) -> Shared {
        Shared { blocking: Arc::new(ThreadPool::new(blocking)), ..self }
    }

    /// The block for workers that run there.
    pub(crate) fn with_seats(self, seats: Box<[Option<Seat>]>) -> Shared {
        Shared { seats, ..self }
    }

    /// The block for workers that a watchdog looks at.
    pub(crate) fn with_watches(self) -> Shared {
        Shared { watches: self.mailboxes.iter().map(|_| Watch::new()).collect(), ..self }
    }

    /// Where a worker is pinned, if it is.
    pub(crate) fn seat(&self, worker: WorkerId) -> Option<Seat> {
        self.seats.get(worker.index()).copied().flatten()
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// The mailbox of a worker.
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    #[track_caller]
    pub(crate) fn mailbox(&self, worker: WorkerId) -> &Arc<Mailbox> {
        match self.mailboxes.get(worker.index()) {
            Some(mailbox) => mailbox,
            None => panic!("there is no worker {worker}: the runtime has {}", self.workers()),
        }
    }

    /// Leaves the receiver's end of a new ring for it to find.
    pub(crate) fn hand_over(&self, from: WorkerId, to: WorkerId, receiver_end: Consumer<TaskRef>) {
        let before = self.lock_receiver_end(from, to).replace(receiver_end);
        assert!(before.is_none(), "a pair of workers has one ring, made once");
    }

    /// Takes the end that `hand_over` left.
    pub(crate) fn take_over(&self, from: WorkerId, to: WorkerId) -> Option<Consumer<TaskRef>> {
        self.lock_receiver_end(from, to).take()
    }

    fn lock_receiver_end(
        &self,
        from: WorkerId,
        to: WorkerId,
    ) -> std::sync::MutexGuard<'_, Option<Consumer<TaskRef>>> {
        self.pair(from, to).receiver_end.lock().expect("nobody panics while a ring changes hands")
    }

    /// Where a sender asks to be rung when its ring has room again.
    pub(crate) fn room(&self, from: WorkerId, to: WorkerId) -> &Room {
        &self.pair(from, to).room
    }

    fn pair(&self, from: WorkerId, to: WorkerId) -> &Pair {
        &self.pairs[from.index() * self.workers() + to.index()]
    }

    /// Tells every worker to end.
    pub(crate) fn stop(&self) {
        // Before any task is dropped: a thread that its job's task lets go shall find nothing new to begin with.
        self.blocking.close();
        // Release: pairs with the Acquire of `is_stopping`. The ring after it makes sure that each worker looks.
        self.stopping.store(true, Ordering::Release);
        for mailbox in &self.mailboxes {
            mailbox.nudge();
        }
    }

    /// Whether the workers are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Notes that a worker's thread has left its loop.
    pub(crate) fn leave(&self, worker: WorkerId) {
        self.turning().retain(|turning| *turning != worker);
        self.left.notify_all();
    }

    /// Waits until every worker's thread has left its loop, or patience is over, and says which have not.
    pub(crate) fn wait_until_left(&self) -> Vec<WorkerId> {
        let (turning, _) = self
            .left
            .wait_timeout_while(self.turning(), self.drain_patience, |turning| !turning.is_empty())
            .expect("nobody panics while it counts workers");
        let stuck = turning.clone();
        drop(turning);
        self.stuck.lock().expect("nobody panics while it counts workers").clone_from(&stuck);
        stuck
    }

    /// The workers that had not left their loop when the runtime ended.
    pub(crate) fn stuck(&self) -> Vec<WorkerId> {
        self.stuck.lock().expect("nobody panics while it counts workers").clone()
    }

    fn turning(&self) -> MutexGuard<'_, Vec<WorkerId>> {
        self.turning.lock().expect("nobody panics while it counts workers")
    }

    /// Notes what a worker's driver left in the kernel's hands.
    pub(crate) fn note_leaked(&self, operations: usize) {
        // Relaxed, here and for `jobs_left`: numbers that publish nothing. Who asks after `block_on` is ordered behind the workers by
        // the joining of their threads; who asks earlier gets what is known so far.
        self.leaked.fetch_add(operations, Ordering::Relaxed);
    }

    /// Ends the threads for blocking work, once the workers have ended.
    pub(crate) fn end_blocking(&self) {
        let left = self.blocking.shut_down(self.drain_patience);
        self.jobs_left.store(left, Ordering::Relaxed);
    }

    /// Blocking jobs that were running when the runtime ended without them.
    pub(crate) fn jobs_left(&self) -> usize {
        self.jobs_left.load(Ordering::Relaxed)
    }

    /// Operations that the kernel did not give back.
    pub(crate) fn leaked(&self) -> usize {
        self.leaked.load(Ordering::Relaxed)
    }
}
