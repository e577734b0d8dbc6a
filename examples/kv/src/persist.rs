//! The log on files: what [`log`](crate::log) computes, written, synced and read back.
//!
//! # Start
//!
//! ```text
//! open_dir (once) ──▶ recover, Persist::start (each worker) ──▶ settle (once) ──▶ clients
//! lock, MANIFEST      replay, cut a torn tail                   new manifest if the number of shards changed; old files go
//! ```
//!
//! See the module `open`. Each worker has a [`Persist`], and nothing of it is shared with another.
//!
//! # Group commit
//!
//! Commands leave records in the worker's journal. One task, the *committer*, is the only one that writes the log:
//!
//! 1. It seals everything journalled since the last time into one frame. It runs behind all tasks that are ready, so what
//!    arrived in the same turn goes along.
//! 2. It writes the frame, with `--fsync always` so that it is synced when it is written. What is journalled meanwhile is the
//!    next frame.
//! 3. It wakes those whose [`Ticket`] is covered. A ticket is a position in the stream of records, so "covered" is a
//!    comparison, and a command that changed nothing still waits for the changes it may have seen.
//! 4. If something is journalled by then, it lets the replies go out, and takes what has arrived meanwhile along
//!    ([`next_turn`]), before it goes on with 1: [`LOOKS`] times at most, and no longer than a look brings something. It does not
//!    sleep until somebody asks. The worker has its hands full with the replies, so the write would hardly be on its way sooner, and a
//!    lone client does not come here.
//!
//! With `everysec` a task of its own syncs, a second after the last sync or later, and never beside another sync. With `no`
//! the system writes when it likes. Then [`Persist::durable`] is ready at once, unless [`BACKLOG_MAX`] bytes wait to be
//! written: a disk that is slower than the clients slows them down and does not fill the memory. Nor does a shard take commands, with
//! any policy, while so much is journalled for the next frame ([`Persist::room`]): a pipeline of COPYs is short, and its records are not.
//!
//! **Room.** A sync of a file that grew must also write the file's new length and extents, through the file system's
//! journal. So with `always` the file is filled with zeros ahead of the frames, [`ROOM`] bytes at a time, by a task of its own, until
//! there are [`ROOM_AHEAD`] bytes; frames then replace zeros, and the sync writes data only. (Merely allocated room would
//! not do: marking it as written is metadata too.) The committer waits for a fill that it would meet, so
//! zeros never replace a frame. (Direct I/O, with and without `O_DSYNC`, was tried instead: it was not clearly faster,
//! and must write the last block again and again.)
//!
//! # When the disk fails
//!
//! A *write* that fails (no space) acknowledges nothing. All who wait get the error; the frame is kept and
//! written again each second, at the same place. The shard is read-only meanwhile: it refuses writes before they run,
//! whichever worker's clients they come from. What was in memory then is seen by reads, though not on the
//! disk: their clients were told. Once the write succeeds, all is as before.
//!
//! A *sync* that fails is final: the kernel may have dropped what it could not write, and a later sync would succeed without
//! it. With `always` a write is its own sync, so there any error but a lack of space is final. The shard is read-only until
//! the server starts again, from what is really on the disk.
//!
//! # Stop
//!
//! [`Persist::stop`] writes what is journalled, syncs and closes, whatever the policy is. A compaction under way is given
//! up; the next start finds base and logs as it left them.

mod compaction;
mod open;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use veloq::fs::File;
use veloq::spawn_local;
use veloq::task::{JoinHandle, next_turn};
use veloq::time::{Instant, sleep, sleep_until};

use crate::limits::BACKLOG_MAX;
use crate::log::{Corrupt, FileName, Frame, Writer};
use crate::node::State;
use compaction::Compaction;

pub use open::{Opened, Recovered, open_dir, recover, settle};

/// Bytes of zeros written at a time, ahead of the frames: 1 MiB is a millisecond's work for a disk, and the metadata that it costs
/// is spread over some ten thousand small writes.
pub const ROOM: u64 = ZEROS.len() as u64;

/// How much room there should be. A burst of large values may go through it; then their frames make the file grow, which
/// is slower and as right.
pub const ROOM_AHEAD: u64 = 4 * ROOM;

/// Looks at the kernel between a frame and the next. The first sends the replies and finds most of what they bring, the others find who was
/// a moment later; then those who have asked already have waited enough.
pub const LOOKS: usize = 3;

/// A frame's memory is used for the next one up to this size; what one huge value took goes back.
const SPARE_MAX: usize = 1024 * 1024;

/// How long the committer waits before it repeats a write that failed, and how far apart syncs are with `everysec`.
const SECOND: Duration = Duration::from_secs(1);

/// What room is made of. It is never written, so it takes no memory of its own.
static ZEROS: [u8; 1024 * 1024] = [0; 1024 * 1024];

// ---- Settings ---------------------------------------------------------------------------------------------------------

/// When a write is on the disk for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Fsync {
    /// Before it is acknowledged.
    Always,
    /// A second later at most, as far as the disk can follow.
    #[default]
    Everysec,
    /// When the operating system likes, some 30 seconds later.
    No,
}

impl fmt::Display for Fsync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Always => "always",
            Self::Everysec => "everysec",
            Self::No => "no",
        })
    }
}

/// What a server promises of its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durability {
    /// When the log is synced.
    pub fsync: Fsync,
    /// Whether there is a log at all.
    pub enabled: bool,
}

/// Why the log cannot be read, written or trusted. Its text names the file.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PersistError {
    /// The operating system refused.
    Io {
        /// What it was asked to do.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What it said.
        error: Arc<io::Error>,
    },
    /// A file is damaged: acknowledged writes are missing.
    Corrupt(Corrupt),
    /// A file that others build on is not there.
    Missing(PathBuf),
    /// Another server uses the directory.
    Locked(PathBuf),
    /// The log was stopped; what came after it is not in it.
    Stopped,
}

impl PersistError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { doing, path, error: Arc::new(error) }
    }

    fn corrupt(path: &Path, offset: u64, what: &'static str) -> Self {
        Self::Corrupt(Corrupt { path: path.to_owned(), offset, what })
    }
}

impl fmt::Display for PersistError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, path, error } => write!(f, "cannot {doing} {}: {error}", path.display()),
            Self::Corrupt(corrupt) => write!(f, "{corrupt}"),
            Self::Missing(path) => {
                write!(f, "{} is missing, and files beside it build on it", path.display())
            }
            Self::Locked(path) => write!(f, "{} is in use by another server", path.display()),
            Self::Stopped => f.write_str("the log is closed"),
        }
    }
}

impl std::error::Error for PersistError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(&**error),
            Self::Corrupt(corrupt) => Some(corrupt),
            Self::Missing(_) | Self::Locked(_) | Self::Stopped => None,
        }
    }
}

// ---- One worker's log -------------------------------------------------------------------------------------------------

/// All records that were journalled up to a moment. See [`Persist::ticket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "a ticket is to be shown to `durable`"]
pub struct Ticket(u64);

/// What a [`Persist`] has done since it started.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PersistStats {
    /// Bytes of frames written to logs.
    pub bytes: u64,
    /// Frames written to logs.
    pub frames: u64,
    /// Syncs of logs.
    pub syncs: u64,
    /// Compactions that came to their end.
    pub compactions: u64,
    /// Bytes of records that are journalled and not yet written.
    pub waiting: u64,
    /// The last thing that went wrong, if it has not been made good since.
    pub last_error: Option<String>,
}

/// The log of one worker's shard.
#[derive(Debug)]
pub struct Persist {
    /// Holds the lock on the directory.
    opened: Opened,
    state: Rc<RefCell<State>>,
    log: RefCell<Log>,
    /// Positions in the stream of records, in bytes since the start: what is in frames, what of it is in the file, and what
    /// of that is synced.
    sealed: Cell<u64>,
    written: Cell<u64>,
    synced: Cell<u64>,
    /// Up to here those who wait were told that it failed.
    told: Cell<u64>,
    health: RefCell<Health>,
    waiting: RefCell<Vec<(Ticket, Waker)>>,
    /// The committer, when it has nothing to do.
    idle: RefCell<Option<Waker>>,
    phase: Cell<Phase>,
    committer: RefCell<Option<JoinHandle<Result<(), PersistError>>>>,
    /// Makes room in the log that was current when it began.
    filling: RefCell<Option<JoinHandle<()>>>,
    /// The sync of `everysec`.
    syncing: RefCell<Option<JoinHandle<()>>>,
    last_sync: Cell<Instant>,
    compaction: RefCell<Compaction>,
    stats: RefCell<PersistStats>,
}

/// Whether writes can be promised anything.
#[derive(Debug, Clone)]
enum Health {
    Good,
    /// A write failed, and is repeated.
    Failing(PersistError),
    /// A sync failed: until the next start.
    Lost(PersistError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Stopping,
    Stopped,
}

/// What the committer does next.
enum Due {
    Commit,
    Compact,
    Stop,
}

impl Persist {
    /// Takes over what [`recover`] found, and starts the committer, on this worker. `state` is borrowed for moments, never
    /// across an await.
    ///
    /// # Panics
    /// If no worker runs on this thread.
    #[must_use]
    pub fn start(recovered: Recovered, state: Rc<RefCell<State>>) -> Rc<Persist> {
        let Recovered { opened, log, base_len, older_len } = recovered;
        let persist = Rc::new(Persist {
            opened,
            state,
            log: RefCell::new(log),
            sealed: Cell::new(0),
            written: Cell::new(0),
            synced: Cell::new(0),
            told: Cell::new(0),
            health: RefCell::new(Health::Good),
            waiting: RefCell::default(),
            idle: RefCell::default(),
            phase: Cell::new(Phase::Running),
            committer: RefCell::default(),
            filling: RefCell::default(),
            syncing: RefCell::default(),
            last_sync: Cell::new(Instant::now()),
            compaction: RefCell::new(Compaction::new(base_len, older_len)),
            stats: RefCell::default(),
        });
        persist.fill();
        *persist.committer.borrow_mut() = Some(spawn_local(Rc::clone(&persist).commit_until_stopped()));
        persist
    }

    /// Names everything that the shard has journalled so far. Costs nothing.
    ///
    /// # Panics
    /// If the state is mutably borrowed.
    pub fn ticket(&self) -> Ticket {
        let position = self.position();
        // What has failed, and whose writers know it, does not fail readers again.
        Ticket(if position <= self.told.get() { position.min(self.covered()) } else { position })
    }

    /// Waits until the records that the ticket names are as safe as the policy promises before a reply: on the disk with
    /// `always`. Otherwise it is ready at once, unless too much waits to be written.
    ///
    /// # Errors
    /// When they could not be written or synced, or came after the stop. They must not be acknowledged then: whether they are
    /// found after a crash is not known.
    pub async fn durable(&self, ticket: Ticket) -> Result<(), PersistError> {
        poll_fn(|cx| {
            if self.has(ticket) {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = self.failure() {
                self.told.set(self.told.get().max(ticket.0));
                return Poll::Ready(Err(error));
            }
            self.wait(ticket, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// Waits while the shard is [behind](crate::shard::Shard::is_behind).
    ///
    /// # Panics
    /// If the state is mutably borrowed.
    pub async fn room(&self) {
        poll_fn(|cx| {
            let is_behind = {
                let state = self.state.borrow();
                state.shard.is_behind(&state.journal)
            };
            if !is_behind {
                return Poll::Ready(());
            }
            // When the frame under way is written, the next takes all that is journalled.
            self.wait(Ticket(self.sealed.get()), cx.waker());
            self.wake();
            Poll::Pending
        })
        .await
    }

    fn wait(&self, ticket: Ticket, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|(other, known)| *other == ticket && known.will_wake(waker)) {
            waiting.push((ticket, waker.clone()));
        }
    }

    /// Says that the journal got records. Cheap when the committer knows already.
    pub fn wake(&self) {
        if let Some(committer) = self.idle.take() {
            committer.wake();
        }
    }

    /// Why nothing can be promised, while that is so: the shard is read-only then.
    #[must_use]
    pub fn failure(&self) -> Option<PersistError> {
        match &*self.health.borrow() {
            Health::Good if self.phase.get() == Phase::Stopped => Some(PersistError::Stopped),
            Health::Good => None,
            Health::Failing(error) | Health::Lost(error) => Some(error.clone()),
        }
    }

    /// Writes what is journalled, syncs, and closes the log. What is journalled later is not in it.
    ///
    /// # Errors
    /// If that could not be done; another call gives [`PersistError::Stopped`].
    pub async fn stop(&self) -> Result<(), PersistError> {
        let Some(committer) = self.committer.take() else { return Err(PersistError::Stopped) };
        self.phase.set(Phase::Stopping);
        self.wake();
        let stopped = committer.await.unwrap_or(Err(PersistError::Stopped));
        self.phase.set(Phase::Stopped);
        self.notify();
        stopped
    }

    /// What it has done so far.
    ///
    /// # Panics
    /// If the state is mutably borrowed.
    #[must_use]
    pub fn stats(&self) -> PersistStats {
        let last_error = self.failure().map(|error| error.to_string());
        let stats = self.stats.borrow().clone();
        let waiting = self.position() - self.written.get();
        PersistStats { waiting, last_error: last_error.or(stats.last_error), ..stats }
    }

    fn position(&self) -> u64 {
        self.sealed.get() + self.state.borrow().journal.len() as u64
    }

    /// Up to where the policy's promise is kept.
    fn covered(&self) -> u64 {
        match self.opened.fsync() {
            Fsync::Always => self.synced.get(),
            Fsync::Everysec | Fsync::No => self.written.get(),
        }
    }

    /// Whether a reply may show what the ticket names.
    pub(crate) fn has(&self, ticket: Ticket) -> bool {
        let in_memory = match self.opened.fsync() {
            Fsync::Always => 0,
            Fsync::Everysec | Fsync::No if self.failure().is_some() => 0,
            Fsync::Everysec | Fsync::No => BACKLOG_MAX as u64,
        };
        ticket.0 <= self.covered() + in_memory
    }

    /// Wakes those who can go on now, be it with an error.
    fn notify(&self) {
        let failed = self.failure().is_some();
        if failed {
            self.told.set(self.position());
        }
        let ready: Vec<_> = {
            let mut waiting = self.waiting.borrow_mut();
            waiting.extract_if(.., |(ticket, _)| failed || self.has(*ticket)).collect()
        };
        // After the borrow has ended: what a waker does is not ours.
        for (_, waker) in ready {
            waker.wake();
        }
    }

    // ---- The committer ------------------------------------------------------------------------------------------------

    async fn commit_until_stopped(self: Rc<Self>) -> Result<(), PersistError> {
        let written = self.commit_all().await;
        self.quiesce().await;
        written?;
        let mark = self.mark();
        self.sync(mark).await
    }

    async fn commit_all(self: &Rc<Self>) -> Result<(), PersistError> {
        let mut spare = Vec::new();
        loop {
            match self.due().await {
                Due::Commit => spare = self.commit(spare).await?,
                Due::Compact => self.start_compaction().await?,
                Due::Stop => return self.lost(),
            }
        }
    }

    /// What to do next, when there is something.
    async fn due(&self) -> Due {
        poll_fn(|cx| {
            let due = if self.compaction.borrow().is_due(self.log.borrow().writer.len()) {
                Due::Compact
            } else if !self.state.borrow().journal.is_empty() {
                Due::Commit
            } else if self.phase.get() != Phase::Running {
                Due::Stop
            } else {
                *self.idle.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            };
            Poll::Ready(due)
        })
        .await
    }

    /// Makes a frame of the journal and writes it; gives its memory back for the next one.
    ///
    /// # Errors
    /// When all is over: a sync has failed, or the server stops and the write still fails.
    async fn commit(self: &Rc<Self>, spare: Vec<u8>) -> Result<Vec<u8>, PersistError> {
        self.lost()?;
        let Frame { offset, seq, bytes } = {
            let journal = &mut self.state.borrow_mut().journal;
            self.sealed.set(self.sealed.get() + journal.len() as u64);
            self.log.borrow_mut().writer.seal(journal, spare)
        };
        let (upto, len) = (self.sealed.get(), bytes.len() as u64);
        self.meet_room(offset + len).await;
        let durable = self.opened.fsync() == Fsync::Always;
        let mut bytes = self.write(bytes, offset, durable).await?;
        self.written.set(upto);
        self.log.borrow_mut().written = Some(seq);
        self.count(|stats| {
            stats.frames += 1;
            stats.bytes += len;
        });
        self.at(Step::Written);
        match self.opened.fsync() {
            Fsync::Always => self.note_synced(&self.mark()),
            Fsync::Everysec => self.sync_in_time(),
            Fsync::No => {}
        }
        self.notify();
        self.fill();
        self.gather().await;
        if bytes.capacity() > SPARE_MAX {
            bytes = Vec::new();
        }
        Ok(bytes)
    }

    /// Lets others journal more for a frame that has begun, as long as each look at the kernel brings some.
    async fn gather(&self) {
        let mut known = 0;
        for _ in 0..LOOKS {
            let journalled = self.state.borrow().journal.len();
            if journalled == known {
                break;
            }
            known = journalled;
            next_turn().await;
        }
    }

    /// Writes until it succeeds, and lets everybody know as long as it does not. If it is to be `durable` too, an error that
    /// may be the sync's is final.
    async fn write(&self, mut bytes: Vec<u8>, offset: u64, durable: bool) -> Result<Vec<u8>, PersistError> {
        loop {
            let (file, path) = self.log.borrow().open();
            let written;
            (written, bytes) = if durable {
                file.write_all_durable_at(bytes, offset).await
            } else {
                file.write_all_at(bytes, offset).await
            };
            let Err(error) = written else {
                let failing = matches!(*self.health.borrow(), Health::Failing(_));
                if failing {
                    self.set_health(Health::Good);
                    eprintln!("kv: {} can be written again", path.display());
                }
                return Ok(bytes);
            };
            let is_write = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if durable && !is_write {
                return Err(self.lose(PersistError::io("write and sync", &path)(error)));
            }
            let error = PersistError::io("write", &path)(error);
            self.lost()?;
            if let Health::Good = self.set_health(Health::Failing(error.clone())) {
                eprintln!("kv: {error}; this shard is read-only until it can be written");
            }
            self.notify();
            if self.phase.get() != Phase::Running {
                return Err(error);
            }
            self.pause().await;
        }
    }

    /// A second, or less if the server stops.
    async fn pause(&self) {
        let mut second = pin!(sleep(SECOND));
        poll_fn(|cx| {
            if self.phase.get() != Phase::Running {
                return Poll::Ready(());
            }
            *self.idle.borrow_mut() = Some(cx.waker().clone());
            second.as_mut().poll(cx)
        })
        .await;
    }

    // ---- Syncs --------------------------------------------------------------------------------------------------------

    /// What a sync that begins now will have covered.
    fn mark(&self) -> Mark {
        let log = self.log.borrow();
        let (file, path) = log.open();
        Mark { file, path, generation: log.name.generation, seq: log.written, upto: self.written.get() }
    }

    /// Syncs the current log, and notes how far it is safe then.
    async fn sync(&self, mark: Mark) -> Result<(), PersistError> {
        let synced = mark.file.sync_data().await;
        self.last_sync.set(Instant::now());
        if let Err(error) = synced {
            return Err(self.lose(PersistError::io("sync", &mark.path)(error)));
        }
        self.note_synced(&mark);
        Ok(())
    }

    /// Notes that nothing can be promised any more, and lets everybody know.
    fn lose(&self, error: PersistError) -> PersistError {
        eprintln!("kv: {error}; this shard is read-only until the server starts again");
        self.set_health(Health::Lost(error.clone()));
        self.notify();
        error
    }

    /// Notes whether anything can be promised, and has the shard refuse writes if not. Gives what was so before.
    fn set_health(&self, health: Health) -> Health {
        let before = self.health.replace(health);
        self.state.borrow_mut().shard.read_only = self.failure().map(|error| error.to_string());
        before
    }

    /// Notes how far the current log is safe.
    fn note_synced(&self, mark: &Mark) {
        self.count(|stats| stats.syncs += 1);
        self.synced.set(self.synced.get().max(mark.upto));
        let mut log = self.log.borrow_mut();
        if let Some(seq) = mark.seq
            && log.name.generation == mark.generation
        {
            log.writer.synced(seq);
        }
        drop(log);
        self.at(Step::Synced);
    }

    /// Sees to it that what has been written is synced a second after the last sync.
    fn sync_in_time(self: &Rc<Self>) {
        if self.syncing.borrow().as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let persist = Rc::clone(self);
        let task = spawn_local(async move {
            while persist.synced.get() < persist.written.get() {
                sleep_until(persist.last_sync.get() + SECOND).await;
                let mark = persist.mark();
                if persist.sync(mark).await.is_err() {
                    break;
                }
            }
        });
        *self.syncing.borrow_mut() = Some(task);
    }

    // ---- Room ---------------------------------------------------------------------------------------------------------

    /// Begins to make more room in the current log, if it wants some and nobody is at it.
    fn fill(self: &Rc<Self>) {
        if self.opened.fsync() != Fsync::Always
            || self.filling.borrow().as_ref().is_some_and(|task| !task.is_finished())
        {
            return;
        }
        let (file, generation, from) = {
            let log = self.log.borrow();
            let from = log.room.max(log.writer.len());
            if log.no_more_room || from >= log.writer.len() + ROOM_AHEAD {
                return;
            }
            (log.open().0, log.name.generation, from)
        };
        let to = (from / ROOM + 1) * ROOM;
        let zeros = &ZEROS[..usize::try_from(to - from).expect("at most ROOM")];
        let persist = Rc::clone(self);
        let task = spawn_local(async move {
            // Durable: a sync of a frame is of the frame's bytes alone, and would find its blocks unallocated still.
            let (filled, _) = file.write_all_durable_at(zeros, from).await;
            let mut log = persist.log.borrow_mut();
            if log.name.generation == generation {
                log.room = to;
                // No space for room is no failure: frames will meet it, and say so, if there is none for them.
                log.no_more_room = filled.is_err();
            }
        });
        *self.filling.borrow_mut() = Some(task);
    }

    /// Waits for a fill that a frame with this end would run into.
    async fn meet_room(&self, end: u64) {
        if end <= self.log.borrow().room {
            return;
        }
        if let Some(filling) = self.filling.take() {
            // A fill neither panics nor is aborted; either way it is over.
            drop(filling.await);
        }
        let mut log = self.log.borrow_mut();
        log.room = log.room.max(end);
    }

    // ---- Stop ---------------------------------------------------------------------------------------------------------

    /// Ends the tasks beside the committer.
    async fn quiesce(&self) {
        let compaction = self.compaction.borrow_mut().give_up();
        let syncing = self.syncing.take().inspect(JoinHandle::abort);
        let filling = self.filling.take();
        for task in [compaction, syncing, filling].into_iter().flatten() {
            // It ended by itself or by the abort, and says nothing either way.
            drop(task.await);
        }
    }

    /// Nothing can be promised any more, once a sync has failed.
    fn lost(&self) -> Result<(), PersistError> {
        match &*self.health.borrow() {
            Health::Lost(error) => Err(error.clone()),
            Health::Good | Health::Failing(_) => Ok(()),
        }
    }

    fn count(&self, count: impl FnOnce(&mut PersistStats)) {
        count(&mut self.stats.borrow_mut());
    }

    fn at(&self, step: Step) {
        at(step, self.opened.dir());
    }
}

/// A moment at which a crash would find the files in a state of its own; tests look into them.
fn at(step: Step, path: &Path) {
    #[cfg(test)]
    tests::at(step, path);
    #[cfg(not(test))]
    let _ = (step, path);
}

/// Moments between which a crash may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    TailSynced,
    Written,
    Synced,
    NextLog,
    Switched,
    BasePart,
    BaseSynced,
    BaseNamed,
    Removed,
}

/// A log that frames go to.
#[derive(Debug)]
struct Log {
    name: FileName,
    path: PathBuf,
    /// Shared with the operations on it.
    file: Rc<File>,
    writer: Writer,
    /// The frame that was written last.
    written: Option<u64>,
    /// How far frames and zeros reach.
    room: u64,
    no_more_room: bool,
}

impl Log {
    fn open(&self) -> (Rc<File>, PathBuf) {
        (Rc::clone(&self.file), self.path.clone())
    }
}

/// What a sync makes safe.
struct Mark {
    file: Rc<File>,
    path: PathBuf,
    generation: u64,
    seq: Option<u64>,
    upto: u64,
}
