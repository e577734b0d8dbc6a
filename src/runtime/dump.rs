//! What every task waits for, on demand: the answer to "why does nothing happen?".
//!
//! Each worker describes itself, between two polls: its unfinished tasks, those that were placed with it and that nobody has begun, its
//! operations in flight, its timers. A task that is just on its way, in a message or between two queues, is described by nobody.
//! Nothing is kept for that but what is there anyway, besides two words: a slot remembers the last reading of the clock before its
//! operation was submitted, and a task how many polls its worker had made when it had its first. Both are plain stores of what the worker
//! knows already.
//!
//! **Whose operation.** An operation is shown with the task that polled it last: the one that its slot will wake. One that waits with a
//! waker of somebody else's (a combinator that has its own) stands alone; so does one whose future was dropped and whose answer the
//! kernel owes.
//!
//! **Ages** are upper bounds: a worker reads its clock when it wakes from a sleep, and every 64 turns when it does not sleep.
//!
//! **A worker that does not answer** is stuck in a poll, or overrun with messages. The dump does not wait for it longer than it was
//! told, and shows it as silent. So that this holds however stuck the workers are, a thread of its own collects the answers.

use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::context::Context;
use super::shared::Shared;
use super::task::{TaskId, TaskRef};
use super::worker_id::WorkerId;
use crate::io::driver::thread_pool::ThreadPoolStats;
use crate::io::driver::{DescriptorName, OperationState};
use crate::os::monotonic_ns;
use crate::sync::Arc;

/// The tasks of a runtime and what they wait for, as of one moment of each worker. Made by [`Handle::dump`](super::Handle::dump).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Dump {
    /// Each worker's part, by worker. `None` for one that did not answer in time: it is stuck in a poll.
    pub workers: Vec<Option<WorkerDump>>,
    /// The threads for blocking work, and how many of its jobs wait for one.
    pub blocking: ThreadPoolStats,
}

/// One worker's part of a [`Dump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerDump {
    /// Which worker.
    pub worker: WorkerId,
    /// Its unfinished tasks: those that it has polled, the newest first, and those that are to be, the oldest first; then those that were
    /// placed with it and that no worker has begun, the oldest first.
    pub tasks: Vec<TaskDump>,
    /// More tasks that were placed with it, so many that its queue has no room to show them.
    pub unlisted: usize,
    /// Operations that belong to none of these tasks.
    pub operations: Vec<OperationDump>,
    /// Timers that are armed.
    pub timers: usize,
    /// Until the first of them is due.
    pub next_timer: Option<Duration>,
}

/// A task in a [`Dump`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskDump {
    /// Its number.
    pub id: TaskId,
    /// What it was called.
    pub name: Option<String>,
    /// Where it was spawned.
    pub location: &'static Location<'static>,
    /// What it does.
    pub state: TaskState,
    /// Polls that its worker has made, of whichever tasks, since this one had its first. 0 if it has not begun.
    pub age_polls: u64,
    /// The operations that will wake it.
    pub operations: Vec<OperationDump>,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskState {
    /// It waits for a wake.
    Waiting,
    /// It has been woken, and waits for its poll.
    Ready,
    /// It is being polled.
    Running,
    /// It waits for its first poll, and for whichever worker has the time for that.
    Placed,
}

/// An operation in a [`Dump`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OperationDump {
    /// What is done, as "read" or "accept".
    pub kind: &'static str,
    /// What it is done to.
    pub descriptor: Option<DescriptorName>,
    /// How far it is.
    pub state: OperationState,
    /// How long ago it was submitted, at the most.
    pub age: Duration,
}

impl Context {
    /// Describes this worker, without the task that asks.
    pub(super) fn dump(&self) -> WorkerDump {
        let now_ns = self.driver.now_ns();
        let asking = super::task::id();
        let mut tasks = Vec::new();
        let mut by_address = HashMap::new();
        self.executor.each_task(|address, task| {
            if Some(task.id) != asking {
                by_address.insert(address, tasks.len());
                tasks.push(task);
            }
        });
        let unlisted = self.executor.each_placed(|task| tasks.push(task));
        let mut operations = Vec::new();
        self.driver.each_operation(|operation, waiter| {
            let dump = OperationDump {
                kind: operation.kind,
                descriptor: operation.descriptor,
                state: operation.state,
                age: Duration::from_nanos(now_ns.saturating_sub(operation.since_ns)),
            };
            match waiter.and_then(|address| by_address.get(&address)) {
                Some(task) => tasks[*task].operations.push(dump),
                None => operations.push(dump),
            }
        });
        let next_timer = self.timers.next_deadline();
        WorkerDump {
            worker: self.id,
            tasks,
            unlisted,
            operations,
            timers: self.timers.armed(),
            next_timer: next_timer.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns))),
        }
    }
}

/// Asks every worker, and waits for `patience` at the most. Blocks the thread.
pub(super) fn collect(shared: &Arc<Shared>, patience: Duration) -> Dump {
    let (answer, answers) = channel();
    for mailbox in &shared.mailboxes {
        let answer = answer.clone();
        let ask = move || async move {
            // Nobody listens any more if the time is up.
            let _told = answer.send(Context::current().dump());
        };
        let (task, _detached) = TaskRef::new_remote_at(ask, mailbox, Location::caller());
        mailbox.push(task);
    }
    drop(answer);
    let mut workers = vec![None; shared.workers()];
    let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
    let deadline_ns = monotonic_ns().saturating_add(patience_ns);
    while workers.iter().any(Option::is_none) {
        let left = Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()));
        match answers.recv_timeout(left) {
            Ok(dump) => {
                let index = dump.worker.index();
                workers[index] = Some(dump);
            }
            // Out of time; or all workers have ended, and the questions were dropped.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Dump { workers, blocking: shared.blocking.stats() }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, worker) in self.workers.iter().enumerate() {
            match worker {
                Some(worker) => write!(f, "{worker}")?,
                None => writeln!(f, "worker {index} does not answer: it is stuck in a poll, or has ended")?,
            }
        }
        let ThreadPoolStats { threads, idle, queued, .. } = self.blocking;
        writeln!(f, "blocking work: {} of {threads} threads busy, {queued} jobs queued", threads - idle)
    }
}

impl fmt::Display for WorkerDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerDump { worker, tasks, unlisted, operations, timers, next_timer } = self;
        write!(f, "worker {worker}: {} tasks, {timers} timers", tasks.len())?;
        match next_timer {
            Some(next) => writeln!(f, ", the first due in {next:?}")?,
            None => writeln!(f)?,
        }
        tasks.iter().try_for_each(|task| write!(f, "  {task}"))?;
        if *unlisted > 0 {
            writeln!(f, "  and {unlisted} tasks that have not begun")?;
        }
        operations.iter().try_for_each(|operation| writeln!(f, "  of no task here: {operation}"))
    }
}

impl fmt::Display for TaskDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskDump { id, name, location, state, age_polls, operations } = self;
        write!(f, "task {id}")?;
        if let Some(name) = name {
            write!(f, ", {name:?}")?;
        }
        let state = match state {
            TaskState::Waiting => "waiting",
            TaskState::Ready => "ready",
            TaskState::Running => "running",
            TaskState::Placed => "not begun",
        };
        writeln!(f, ", spawned at {location}: {state}, {age_polls} polls old")?;
        operations.iter().try_for_each(|operation| writeln!(f, "    {operation}"))
    }
}

impl fmt::Display for OperationDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(descriptor) = &self.descriptor {
            write!(f, " on {descriptor}")?;
        }
        write!(f, ": {}, {:?} old", self.state, self.age)
    }
}
