//! What each worker has done, for whoever asks.
//!
//! A worker writes its numbers into its own padded block, before it sleeps and every so many turns, with plain relaxed stores; any
//! thread may read them. Each number is exact as of some recent turn; two numbers read one after the other may be of different
//! turns.
//!
//! **Busy and idle.** A worker that looked at the clock in every turn would pay for it in every turn. It looks where it sleeps
//! instead, once before and once after, which beside the system call between them is not felt: what lies between is idle time, all
//! the rest since its start is busy. The two words of that ([`Times`]) are written on the spot, so whoever reads them counts the
//! present sleep in, and a worker that sits in a long poll is seen to be busy.

use std::fmt;
use std::ops::Deref;

use crate::io::driver::ThreadPoolStats;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Defines the published block and its snapshot with the same fields: those that only grow, and those that say what is now.
macro_rules! metrics {
    (
        grows { $($(#[$doc:meta])* $name:ident),+ $(,)? }
        now { $($(#[$now_doc:meta])* $now:ident),+ $(,)? }
    ) => {
        /// What one worker has done so far. Every number only grows, besides those that say "now".
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct WorkerMetrics {
            $($(#[$doc])* pub $name: u64,)+
            $($(#[$now_doc])* pub $now: u64,)+
            /// Nanoseconds since its start in which the worker did not sleep: its own work, and what the kernel did in its name.
            pub busy_ns: u64,
            /// Nanoseconds since its start in which the worker slept, having nothing to do. The present sleep counts.
            pub idle_ns: u64,
            /// Turns that took too long ([`Builder::stall_threshold`](super::Builder::stall_threshold)).
            pub stalls: u64,
        }

        /// A worker's numbers as it shares them: one writer, any number of readers.
        #[derive(Debug, Default)]
        pub(crate) struct Published {
            $($name: AtomicU64,)+
            $($now: AtomicU64,)+
            pub(crate) times: Times,
            /// Written by the watchdog.
            stalls: AtomicU64,
        }

        impl Published {
            /// Shares a new state, besides the times. Relaxed: the numbers order nothing.
            pub(crate) fn store(&self, now: &WorkerMetrics) {
                $(self.$name.store(now.$name, Ordering::Relaxed);)+
                $(self.$now.store(now.$now, Ordering::Relaxed);)+
            }

            /// The watchdog has seen a stall.
            pub(crate) fn note_stall(&self) {
                self.stalls.store(self.stalls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }

            /// The state of some recent turn, and the times as of `now_ns` on the worker's clock.
            pub(crate) fn load(&self, now_ns: u64) -> WorkerMetrics {
                let (busy_ns, idle_ns) = self.times.load(now_ns);
                WorkerMetrics {
                    $($name: self.$name.load(Ordering::Relaxed),)+
                    $($now: self.$now.load(Ordering::Relaxed),)+
                    busy_ns,
                    idle_ns,
                    stalls: self.stalls.load(Ordering::Relaxed),
                }
            }
        }

        impl WorkerMetrics {
            /// What has been done since `earlier`, an older snapshot of the same worker. What says "now" is as it is now.
            #[must_use]
            pub fn since(&self, earlier: &WorkerMetrics) -> WorkerMetrics {
                WorkerMetrics {
                    $($name: self.$name.saturating_sub(earlier.$name),)+
                    $($now: self.$now,)+
                    busy_ns: self.busy_ns.saturating_sub(earlier.busy_ns),
                    idle_ns: self.idle_ns.saturating_sub(earlier.idle_ns),
                    stalls: self.stalls.saturating_sub(earlier.stalls),
                }
            }

            /// The numbers of both, added up.
            fn plus(&self, other: &WorkerMetrics) -> WorkerMetrics {
                WorkerMetrics {
                    $($name: self.$name + other.$name,)+
                    $($now: self.$now + other.$now,)+
                    busy_ns: self.busy_ns + other.busy_ns,
                    idle_ns: self.idle_ns + other.idle_ns,
                    stalls: self.stalls + other.stalls,
                }
            }

            /// Every number with its name, in the order of the fields.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [
                    $((stringify!($name), self.$name),)+
                    $((stringify!($now), self.$now),)+
                    ("busy_ns", self.busy_ns),
                    ("idle_ns", self.idle_ns),
                    ("stalls", self.stalls),
                ]
                .into_iter()
            }
        }
    };
}

metrics! {
    grows {
        /// Turns of the worker's loop.
        turns,
        /// Times a task was polled.
        polls,
        /// Times the worker went to sleep.
        parks,
        /// Times the worker looked around for a while before it would sleep ([`Builder::spin`](super::Builder::spin)).
        spins,
        /// Times it was rung meanwhile, and did not sleep.
        spins_won,
        /// Nanoseconds that it has spent so: CPU time in which nothing was done. Part of the busy time.
        spin_ns,
        /// Tasks that were spawned here, or came here.
        spawned,
        /// Times a task was made ready by its own worker.
        local_wakes,
        /// Wakes and tasks that came from other threads.
        remote_wakes,
        /// Timers that fired.
        timers_fired,
        /// Tasks that code on this worker gave to the spawner to place, here or elsewhere; besides those that went by a
        /// [`Handle`](super::Handle) ([`Metrics::placed_by_handles`]).
        placed,
        /// Times this worker took tasks from another.
        steals,
        /// Times it looked for some in vain.
        steals_failed,
        /// Tasks that it took.
        stolen,
        /// Tasks sent to other workers over the mesh: `spawn_to`, and calls into services. What a program sends over channels of its own
        /// ([`mesh`](crate::mesh)) is not counted.
        mesh_sent,
        /// Tasks received from other workers over the mesh.
        mesh_received,
        /// System calls that entered the ring.
        kernel_entries,
        /// Operations shown to the kernel.
        operations,
        /// Answers reaped from the kernel.
        completions,
        /// Operations that had to wait because the submission ring was full.
        backlogged,
        /// Cancellations asked of the kernel.
        cancels,
        /// Cancellations that found their operation and stopped it.
        cancels_won,
        /// Cancellations whose operation could not be stopped any more, and went on to its end.
        cancels_lost,
        /// Cancellations that came when their operation had ended.
        cancels_late,
        /// Descriptors that an abandoned operation yielded, and that were closed or kept for the next caller.
        descriptors_reclaimed,
        /// Operations too large for their slot, which cost an allocation.
        boxed,
        /// Times the kernel found the receive ring empty.
        receive_ring_dry,
        /// Chunks of the pool that were registered with the kernel.
        chunks_registered,
        /// Chunks that were not, because that would be more than the user may lock: their buffers travel as plain memory.
        chunks_refused,
        /// Buffers that the pool gave.
        pool_hits,
        /// Buffers that the pool could not give and the heap did.
        pool_misses,
    }
    now {
        /// Tasks that are not finished, now: those that stay on this worker, and the stealable ones that were first polled here.
        tasks,
        /// Tasks that are ready to be polled, now.
        ready,
        /// Operations whose answer is outstanding, now.
        in_flight,
        /// Slots of operations that are taken, now: in flight, or answered and not yet asked for.
        slots,
        /// Blocks of the pool that are lent, now: one for each of its buffers, and one for the receive ring.
        buffers_out,
    }
}

impl WorkerMetrics {
    /// Operations that an entry into the kernel carried on average: how well system calls were shared.
    #[must_use]
    pub fn operations_per_entry(&self) -> f64 {
        ratio(self.operations, self.kernel_entries)
    }

    /// The part of the time in which the worker did not sleep, from 0 to 1.
    #[must_use]
    pub fn utilisation(&self) -> f64 {
        ratio(self.busy_ns, self.busy_ns.saturating_add(self.idle_ns))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// When a worker began, sleeps and has slept. On the worker's clock, in nanoseconds; 0 for what has not happened.
#[derive(Debug, Default)]
pub(crate) struct Times {
    started: AtomicU64,
    ended: AtomicU64,
    /// How long it has slept, up to its last wake.
    slept: AtomicU64,
    /// Since when it sleeps.
    asleep_since: AtomicU64,
}

impl Times {
    /// The worker is there.
    pub(crate) fn start(&self, now_ns: u64) {
        self.started.store(now_ns.max(1), Ordering::Relaxed);
    }

    /// The worker goes to sleep.
    pub(crate) fn sleep(&self, now_ns: u64) {
        self.asleep_since.store(now_ns.max(1), Ordering::Relaxed);
    }

    /// The worker is awake again.
    pub(crate) fn wake(&self, now_ns: u64) {
        let since = self.asleep_since.load(Ordering::Relaxed);
        let slept = self.slept.load(Ordering::Relaxed) + now_ns.saturating_sub(since);
        // First nothing, then the sum: between the two a sleep is missing, which `load` looks out for, and not counted twice.
        // Release: pairs with the Acquire of `load`; whoever sees the new sum sees that the sleep is over.
        self.asleep_since.store(0, Ordering::Relaxed);
        self.slept.store(slept, Ordering::Release);
    }

    /// The worker is no more.
    pub(crate) fn end(&self, now_ns: u64) {
        self.ended.store(now_ns.max(1), Ordering::Relaxed);
    }

    /// Busy and idle time until `now_ns`, or until the end.
    fn load(&self, now_ns: u64) -> (u64, u64) {
        let started = self.started.load(Ordering::Relaxed);
        let ended = self.ended.load(Ordering::Relaxed);
        let until = if ended == 0 { now_ns } else { ended };
        if started == 0 {
            return (0, 0);
        }
        let mut idle = 0;
        // A worker that wakes between the two looks is looked at again; one that does it each time is busy, and the sleep that
        // is missing is short.
        for _ in 0..LOOKS {
            let slept = self.slept.load(Ordering::Acquire);
            let asleep_since = self.asleep_since.load(Ordering::Relaxed);
            idle = slept + if asleep_since == 0 { 0 } else { until.saturating_sub(asleep_since) };
            if self.slept.load(Ordering::Acquire) == slept {
                break;
            }
        }
        let alive = until.saturating_sub(started);
        (alive.saturating_sub(idle), idle.min(alive))
    }
}

/// Times that a reader looks for a worker that stands still for the length of three loads.
const LOOKS: usize = 4;

/// What a runtime has done so far: a snapshot of all counters. A slice of the workers' numbers, by worker, and those of the threads
/// for blocking work.
///
/// Counters are always on. Two snapshots differ by what was done between them:
///
/// ```
/// let runtime = veloq::runtime::Builder::new().workers(1).pin(false).build()?;
/// let handle = runtime.handle();
/// runtime.block_on(async {
///     let before = handle.metrics();
///     veloq::io::op::misc::nop().await.expect("a nop succeeds");
///     veloq::time::sleep(std::time::Duration::from_millis(1)).await;
///     let work = handle.metrics().since(&before);
///     assert!(work[0].operations >= 1 && work.total().idle_ns > 0);
///     println!("{work}");
/// });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    workers: Vec<WorkerMetrics>,
    placed_by_handles: u64,
    blocking: ThreadPoolStats,
}

impl Metrics {
    pub(crate) fn new(
        workers: Vec<WorkerMetrics>,
        placed_by_handles: u64,
        blocking: ThreadPoolStats,
    ) -> Metrics {
        Metrics { workers, placed_by_handles, blocking }
    }

    /// Tasks that were given by a [`Handle`](super::Handle), mostly from threads outside of the runtime, to be placed with whichever
    /// worker has time for them. [`placed`](WorkerMetrics::placed) counts the others.
    #[must_use]
    pub fn placed_by_handles(&self) -> u64 {
        self.placed_by_handles
    }

    /// The threads for blocking work.
    #[must_use]
    pub fn blocking(&self) -> ThreadPoolStats {
        self.blocking
    }

    /// All workers' numbers, added up.
    #[must_use]
    pub fn total(&self) -> WorkerMetrics {
        self.workers.iter().fold(WorkerMetrics::default(), |sum, worker| sum.plus(worker))
    }

    /// What has been done since `earlier`, an older snapshot of the same runtime. What says "now" is as it is now.
    #[must_use]
    pub fn since(&self, earlier: &Metrics) -> Metrics {
        let workers = self.workers.iter().zip(&earlier.workers).map(|(now, then)| now.since(then));
        let blocking = ThreadPoolStats {
            jobs: self.blocking.jobs.saturating_sub(earlier.blocking.jobs),
            refused: self.blocking.refused.saturating_sub(earlier.blocking.refused),
            ..self.blocking
        };
        let placed_by_handles = self.placed_by_handles.saturating_sub(earlier.placed_by_handles);
        Metrics { workers: workers.collect(), placed_by_handles, blocking }
    }
}

impl Deref for Metrics {
    type Target = [WorkerMetrics];

    fn deref(&self) -> &[WorkerMetrics] {
        &self.workers
    }
}

impl IntoIterator for Metrics {
    type Item = WorkerMetrics;
    type IntoIter = std::vec::IntoIter<WorkerMetrics>;

    fn into_iter(self) -> Self::IntoIter {
        self.workers.into_iter()
    }
}

impl<'a> IntoIterator for &'a Metrics {
    type Item = &'a WorkerMetrics;
    type IntoIter = std::slice::Iter<'a, WorkerMetrics>;

    fn into_iter(self) -> Self::IntoIter {
        self.workers.iter()
    }
}

/// As a table: a line for each number, a column for each worker, and their sum.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        write!(f, "{:<22}", "worker")?;
        for worker in 0..self.workers.len() {
            write!(f, " {worker:>14}")?;
        }
        writeln!(f, " {:>14}", "all")?;
        let columns = || self.workers.iter().chain([&total]);
        for (line, (name, _)) in total.iter().enumerate() {
            write!(f, "{name:<22}")?;
            for column in columns() {
                let (_, number) = column.iter().nth(line).expect("every worker has the same numbers");
                write!(f, " {number:>14}")?;
            }
            writeln!(f)?;
        }
        write!(f, "{:<22}", "operations per entry")?;
        columns().try_for_each(|column| write!(f, " {:>14.2}", column.operations_per_entry()))?;
        write!(f, "\n{:<22}", "utilisation")?;
        columns().try_for_each(|column| write!(f, " {:>13.1}%", column.utilisation() * 100.0))?;
        let ThreadPoolStats { threads, idle, queued, jobs, refused } = self.blocking;
        write!(f, "\nplaced by handles: {} tasks", self.placed_by_handles)?;
        writeln!(
            f,
            "\nblocking work: {threads} threads ({idle} idle), {queued} jobs queued, {jobs} taken, {refused} refused"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Idle time that is only known after the sleep would show a worker that sleeps for an hour as one that is busy for an hour.
    #[test]
    fn the_present_sleep_is_idle_time_and_the_present_poll_is_busy() {
        let times = Times::default();
        assert_eq!(times.load(5), (0, 0), "not started");
        times.start(100);
        assert_eq!(times.load(150), (50, 0));
        times.sleep(160);
        assert_eq!(times.load(260), (60, 100));
        times.wake(300);
        assert_eq!(times.load(300), (60, 140));
        assert_eq!(times.load(400), (160, 140));
        times.sleep(400);
        times.wake(410);
        times.end(500);
        assert_eq!(times.load(9_999), (250, 150));
    }

    // A difference in which what is now is subtracted, too, would show negative tasks.
    #[test]
    fn a_difference_subtracts_what_grows_and_keeps_what_is_now() {
        let then = WorkerMetrics { polls: 10, tasks: 7, busy_ns: 5, ..WorkerMetrics::default() };
        let now = WorkerMetrics { polls: 30, tasks: 3, busy_ns: 9, ..WorkerMetrics::default() };
        let (then, now) = (vec![then; 2], vec![now; 2]);
        let jobs = |jobs| ThreadPoolStats { jobs, threads: 4, ..ThreadPoolStats::default() };
        let work = Metrics::new(now, 8, jobs(9)).since(&Metrics::new(then, 3, jobs(2)));
        assert_eq!((work[1].polls, work[1].tasks, work[1].busy_ns), (20, 3, 4));
        assert_eq!((work.total().polls, work.total().tasks), (40, 6));
        assert_eq!((work.blocking().jobs, work.blocking().threads), (7, 4));
        assert_eq!(work.placed_by_handles(), 5);
    }

    // A table whose columns have shifted is read wrongly, and looks right.
    #[test]
    fn the_table_has_a_line_for_each_number_and_a_column_for_each_worker() {
        let worker = |polls| WorkerMetrics { polls, ..WorkerMetrics::default() };
        let metrics = Metrics::new(vec![worker(11), worker(22)], 0, ThreadPoolStats::default());
        let table = metrics.to_string();
        let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let polls = table.lines().find(|line| line.starts_with("polls ")).expect("a line for polls");
        assert_eq!(columns(polls), ["polls", "11", "22", "33"]);
        let numbers = metrics.total().iter().count();
        assert_eq!(table.lines().count(), 1 + numbers + 4, "{table}");
    }
}
