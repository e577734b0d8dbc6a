//! Polls that take too long, reported while they last.
//!
//! A worker that is stuck in a poll keeps everything waiting that it has, and cannot say so itself. So a thread of the runtime, the
//! *watchdog*, looks at every worker now and then. It exists only if [`Builder::stall_threshold`](super::Builder::stall_threshold) says
//! so; without it the workers write nothing of what stands here.
//!
//! ```text
//!   worker (its Watch)                              watchdog, four times per threshold
//!   a turn begins:  turn := odd number              the same odd number as at the last looks, for longer than the threshold?
//!   it parks:       turn := even number             ask: state := ASKED, and a signal to the worker's thread
//!                                                                 │
//!   (signal handler) ASKED? copy registers, stack, ◀──────────────┘
//!                    the task's number and label; state := TAKEN ─▶ find the frames in the copy, name them, report
//! ```
//!
//! One report for one turn: what goes on for an hour is told once, with the time it had lasted then.
//!
//! **What the handler may do.** It interrupts the worker anywhere, in the middle of malloc too. It loads and stores, takes a lock by one
//! attempt (the watchdog holds it only while no question is open), counts a reference up, and copies a bounded part of its own stack. The
//! frames are found in that copy, by the watchdog, which may allocate as it likes. So the worker loses the time of a copy of
//! 64 KiB, and nothing else; a system call that the signal interrupts is begun again by the kernel, or fails with `EINTR` where calls
//! do that.

#![expect(unsafe_code, reason = "looks at the task that a thread polls, while the thread stands still")]

use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::shared::Shared;
use super::task::{Label, PolledThere, TaskId};
use super::worker_id::WorkerId;
use crate::os::{
    Frame, INTERRUPT_SIGNAL, Interruptible, Registers, handle_interrupts, interrupt, monotonic_ns,
};
use crate::sync::Arc;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicU8, AtomicU64};

/// A poll that takes too long, as it was seen while it lasted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StallReport {
    /// The worker that is stuck.
    pub worker: WorkerId,
    /// The task that it polls. `None` if it is stuck elsewhere: in a destructor, or in code between the polls.
    pub task: Option<StalledTask>,
    /// For how long it has been in this turn at the least. It goes on.
    pub lasts: Duration,
    /// Where the worker's thread is, the newest frame first. Empty if the thread did not answer the signal in time (it blocks it, or is
    /// stopped, or sleeps in the kernel where no signal reaches it). Without the crate's feature `backtrace` the first frame's
    /// address is all there is.
    pub frames: Vec<Frame>,
}

/// The task in a [`StallReport`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StalledTask {
    /// Its number.
    pub id: TaskId,
    /// What it was called.
    pub name: Option<String>,
    /// Where it was spawned.
    pub location: &'static Location<'static>,
}

impl fmt::Display for StallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} has been in one turn for {:?}", self.worker, self.lasts)?;
        if let Some(task) = &self.task {
            write!(f, ", polling task {}", task.id)?;
            if let Some(name) = &task.name {
                write!(f, ", {name:?}")?;
            }
            write!(f, ", spawned at {}", task.location)?;
        }
        self.frames.iter().enumerate().try_for_each(|(number, frame)| write!(f, "\n{number:>4}: {frame}"))
    }
}

/// What the user wants done with reports.
#[derive(Clone)]
pub(crate) struct Hook(Arc<dyn Fn(&StallReport) + Send + Sync>);

impl Hook {
    pub(crate) fn new(hook: impl Fn(&StallReport) + Send + Sync + 'static) -> Hook {
        Hook(Arc::new(hook))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// How stalls are looked for.
#[derive(Clone, Debug)]
pub(crate) struct StallConfig {
    /// How long a turn lasts that is reported.
    pub(crate) threshold: Option<Duration>,
    pub(crate) hook: Option<Hook>,
    /// The signal by which a thread is asked where it is.
    pub(crate) signal: i32,
}

impl Default for StallConfig {
    fn default() -> StallConfig {
        StallConfig { threshold: None, hook: None, signal: INTERRUPT_SIGNAL }
    }
}

/// No question is open.
const QUIET: u8 = 0;
/// The watchdog wants to know where the thread is.
const ASKED: u8 = 1;
/// The thread has answered.
const TAKEN: u8 = 2;

/// Words of the stack that are copied: 64 KiB hold the frames of a hundred calls of usual size.
const STACK_WORDS: usize = 8192;

/// How long the watchdog waits for an answer. A thread that runs answers within a scheduler's time slice.
const ANSWER_PATIENCE: Duration = Duration::from_millis(200);

/// How often it looks for one meanwhile.
const ANSWER_LOOKS: u32 = 100;

/// What the watchdog sees of one worker.
pub(crate) struct Watch {
    /// Odd in a turn, another number each time; even when parked, before the first and after the last.
    turn: AtomicU64,
    /// What the system calls the worker's thread, while there is one.
    thread: Mutex<Option<i32>>,
    state: AtomicU8,
    taken: Mutex<Taken>,
}

/// What the worker's thread answers, made readable.
#[derive(Default)]
struct Answer {
    task: Option<(TaskId, Label)>,
    frames: Vec<Frame>,
}

/// What the handler takes down.
struct Taken {
    registers: Registers,
    stack: Box<[u64]>,
    words: usize,
    task: Option<(TaskId, Label)>,
}

impl Watch {
    pub(crate) fn new() -> Arc<Watch> {
        let stack = vec![0; STACK_WORDS].into_boxed_slice();
        let taken = Taken { registers: Registers::default(), stack, words: 0, task: None };
        Arc::new(Watch {
            turn: AtomicU64::new(0),
            thread: Mutex::new(None),
            state: AtomicU8::new(QUIET),
            taken: Mutex::new(taken),
        })
    }

    /// The worker begins a turn. Relaxed: the watchdog compares numbers, and follows them nowhere.
    pub(crate) fn turn(&self) {
        self.turn.store((self.turn.load(Relaxed) + 1) | 1, Relaxed);
    }

    /// The worker goes to sleep, or ends.
    pub(crate) fn park(&self) {
        self.turn.store((self.turn.load(Relaxed) + 1) & !1, Relaxed);
    }

    /// Lets the calling thread, the worker's, be asked where it is.
    pub(crate) fn enter(self: &Arc<Watch>) -> Watched {
        let (watch, polled) = (Arc::clone(self), PolledThere::of_this_thread());
        let look = move |registers: &Registers| watch.on_interrupt(registers, polled);
        let interruptible = Interruptible::new(Box::new(look));
        *lock(&self.thread) = Some(interruptible.thread());
        Watched { watch: Arc::clone(self), _interruptible: interruptible }
    }

    /// Runs in the signal handler (the module's text says what it may do).
    fn on_interrupt(&self, registers: &Registers, polled: PolledThere) {
        // A signal that comes late finds that nobody asks any more. Acquire: pairs with the Release of `ask`; what was taken last is
        // out of the way.
        if self.state.load(Acquire) != ASKED {
            return;
        }
        let Ok(mut taken) = self.taken.try_lock() else { return };
        let taken = &mut *taken;
        taken.registers = *registers;
        taken.words = registers.copy_stack(&mut taken.stack);
        // An answer that was too late may lie there still, and must not be dropped here: that could free memory.
        if taken.task.is_none() {
            // SAFETY: this is called while the thread that entered stands still, interrupted or suspended.
            taken.task = unsafe { polled.task() };
        }
        // Release: pairs with the Acquire of `ask`, and publishes nothing that the lock does not.
        self.state.store(TAKEN, Release);
    }

    /// Asks the worker's thread where it is. `None` if it does not answer.
    fn ask(&self, signal: i32) -> Option<Answer> {
        lock(&self.taken).task = None;
        // Release: pairs with the Acquire at the begin of `on_interrupt`, which thereby knows what was taken last to be out of the way.
        self.state.store(ASKED, Release);
        // Sent under the lock, without which the thread does not leave: its number is not another's yet.
        if lock(&self.thread).is_some_and(|thread| interrupt(thread, signal)) {
            for _ in 0..ANSWER_LOOKS {
                // Acquire, here and in the swap: pairs with the Release of TAKEN in `on_interrupt`, for what the thread copied.
                if self.state.load(Acquire) == TAKEN {
                    break;
                }
                thread::sleep(ANSWER_PATIENCE / ANSWER_LOOKS);
            }
        }
        // Whoever comes later finds that nobody asks.
        if self.state.swap(QUIET, AcqRel) != TAKEN {
            return None;
        }
        let mut taken = lock(&self.taken);
        let frames = frames(&taken.registers, &taken.stack[..taken.words]);
        Some(Answer { task: taken.task.take(), frames })
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("turn", &self.turn)
            .field("thread", &self.thread)
            .finish_non_exhaustive()
    }
}

/// While it lives, its thread answers the watchdog.
pub(crate) struct Watched {
    watch: Arc<Watch>,
    _interruptible: Interruptible,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.park();
        *lock(&self.watch.thread) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(feature = "backtrace")]
fn frames(registers: &Registers, stack: &[u64]) -> Vec<Frame> {
    crate::os::frames(registers, stack)
}

#[cfg(not(feature = "backtrace"))]
fn frames(registers: &Registers, _: &[u64]) -> Vec<Frame> {
    vec![Frame { address: registers.instruction, function: None, file: None, line: None }]
}

/// The thread that looks. Dropping it ends and joins it.
#[derive(Debug)]
pub(crate) struct Watchdog {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watchdog {
    /// Starts watching the workers of `shared`, if `config` says so.
    pub(crate) fn start(
        config: &StallConfig,
        name: &str,
        shared: &Arc<Shared>,
    ) -> std::io::Result<Option<Watchdog>> {
        let Some(threshold) = config.threshold else { return Ok(None) };
        handle_interrupts(config.signal)?;
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (config, shared) = (config.clone(), Arc::clone(shared));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name(format!("{name}-watchdog"));
        let thread = thread.spawn(move || watch(&config, threshold, &shared, &stopped))?;
        Ok(Some(Watchdog { stop, thread: Some(thread) }))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A hook's panic is caught; another one has said so on standard error.
            let _ended = thread.join();
        }
    }
}

/// What the watchdog has seen of one worker: which turn, since when, and whether that was reported.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    turn: u64,
    since_ns: u64,
    reported: bool,
}

impl Seen {
    /// Takes note of a look. For how long the turn has lasted, if it is to be reported now.
    fn look(&mut self, turn: u64, now_ns: u64, threshold_ns: u64) -> Option<u64> {
        if turn != self.turn {
            *self = Seen { turn, since_ns: now_ns, reported: false };
        }
        let lasts_ns = now_ns.saturating_sub(self.since_ns);
        let stalls = turn % 2 == 1 && lasts_ns >= threshold_ns && !self.reported;
        self.reported |= stalls;
        stalls.then_some(lasts_ns)
    }
}

/// The watchdog's life.
fn watch(config: &StallConfig, threshold: Duration, shared: &Shared, stop: &(Mutex<bool>, Condvar)) {
    let mut seen = vec![Seen::default(); shared.watches.len()];
    let threshold_ns = u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX);
    let mut stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let waited = stop.1.wait_timeout_while(stopped, threshold / 4, |stop| !*stop);
        stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
        if *stopped {
            return;
        }
        for (index, (watch, seen)) in shared.watches.iter().zip(&mut seen).enumerate() {
            let turn = watch.turn.load(Relaxed);
            let Some(lasts_ns) = seen.look(turn, monotonic_ns(), threshold_ns) else { continue };
            let Answer { task, frames } = watch.ask(config.signal).unwrap_or_default();
            shared.published[index].note_stall();
            let task = task.map(|(id, label)| StalledTask {
                id,
                name: label.name().map(ToString::to_string),
                location: label.location(),
            });
            let report = StallReport {
                worker: WorkerId::new(index),
                task,
                lasts: Duration::from_nanos(lasts_ns),
                frames,
            };
            super::trace::stall(&report);
            if let Some(Hook(hook)) = &config.hook {
                // A hook that panics is not the end of watching.
                let _told = catch_unwind(AssertUnwindSafe(|| hook(&report)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A worker that is parked for an hour is not stalled, one that turns all the time is not, and a stall is told once.
    #[test]
    fn only_a_turn_that_stands_still_is_reported_and_once() {
        let mut seen = Seen::default();
        assert_eq!(seen.look(2, 0, 100), None, "parked");
        assert_eq!(seen.look(2, 1_000, 100), None, "for long");
        assert_eq!(seen.look(3, 1_100, 100), None, "the turn was just seen to begin");
        assert_eq!(seen.look(3, 1_150, 100), None);
        assert_eq!(seen.look(3, 1_210, 100), Some(110));
        assert_eq!(seen.look(3, 9_000, 100), None, "it has been told");
        assert_eq!(seen.look(5, 9_010, 100), None);
        assert_eq!(seen.look(7, 9_200, 100), None, "busy, not stalled");
        assert_eq!(seen.look(7, 9_300, 100), Some(100));
    }

    // Turn and park numbers that met would hide a stall, or invent one.
    #[test]
    fn turns_are_odd_parks_are_even_and_all_differ() {
        let watch = Watch::new();
        let mut numbers = vec![0];
        for _ in 0..3 {
            watch.turn();
            numbers.push(watch.turn.load(Relaxed));
            watch.turn();
            numbers.push(watch.turn.load(Relaxed));
            watch.park();
            numbers.push(watch.turn.load(Relaxed));
        }
        assert!(numbers.is_sorted() && numbers.windows(2).all(|two| two[0] != two[1]), "{numbers:?}");
        let odd: Vec<_> = numbers.iter().map(|number| number % 2).collect();
        assert_eq!(odd, [0, 1, 1, 0, 1, 1, 0, 1, 1, 0]);
    }
}
