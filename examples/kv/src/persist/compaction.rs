//! Keeping the log short, beside the commands.
//!
//! The steps are those of [`log`](crate::log#compaction). The committer does the first two, since frames must go to one log
//! or the other: a new log, and a sync of the old one; writers wait for it, milliseconds every 64 MiB. The rest is a task
//! of its own: it takes a slice of the shard, writes it, and serves others meanwhile, until the base is complete.
//!
//! If it fails (no space for a second copy), the old base and all logs are still there and still right. It is tried again
//! when the new log has become worth it.

use std::rc::Rc;

use veloq::task::{self, Class, JoinHandle};

use super::open::{SLICE, create_log, name_base, of_shard_before, remove, write_base};
use super::{Persist, PersistError, Step};
use crate::log::{COMPACT_MIN, FileName, Journal, Kind, worth_compacting};
use crate::shard::SnapshotCursor;

/// When to compact, and whether somebody is at it.
#[derive(Debug)]
pub(super) struct Compaction {
    base_len: u64,
    /// Bytes of logs before the newest that the start found. They count once, for the first attempt.
    older_len: u64,
    /// After an attempt that could not begin: how long the log is before the next.
    not_before: u64,
    wanted: bool,
    running: Option<JoinHandle<()>>,
}

impl Compaction {
    pub(super) fn new(base_len: u64, older_len: u64) -> Self {
        Self { base_len, older_len, not_before: 0, wanted: false, running: None }
    }

    /// Whether to begin one, now that the newest log is so long.
    pub(super) fn is_due(&self, log_len: u64) -> bool {
        let idle = self.running.as_ref().is_none_or(JoinHandle::is_finished);
        let worth = log_len >= self.not_before && worth_compacting(self.older_len + log_len, self.base_len);
        idle && (self.wanted || worth)
    }

    /// Begins none any more, and ends the one under way.
    pub(super) fn give_up(&mut self) -> Option<JoinHandle<()>> {
        self.wanted = false;
        self.running.take().inspect(JoinHandle::abort)
    }
}

impl Persist {
    /// Begins a compaction, though the log may be short. It goes on in the background.
    pub fn compact(&self) {
        self.compaction.borrow_mut().wanted = true;
        self.wake();
    }

    /// Lets frames go to a new log, and has the rest done by a task.
    ///
    /// # Errors
    /// If the old log could not be synced. That no new one could be made is only a compaction that failed.
    pub(super) async fn start_compaction(self: &Rc<Self>) -> Result<(), PersistError> {
        let (old, len) = (self.log.borrow().name, self.log.borrow().writer.len());
        {
            let mut compaction = self.compaction.borrow_mut();
            (compaction.wanted, compaction.older_len, compaction.not_before) = (false, 0, len + COMPACT_MIN);
        }
        let next = FileName { generation: old.generation + 1, ..old };
        let log = match create_log(self.opened.dir(), next).await {
            Ok(log) => log,
            Err(error) => {
                self.compaction_failed(&error);
                return Ok(());
            }
        };
        self.at(Step::NextLog);
        let mark = self.mark();
        self.sync(mark).await?;
        *self.log.borrow_mut() = log;
        self.compaction.borrow_mut().not_before = 0;
        self.notify();
        self.fill();
        self.at(Step::Switched);
        let persist = Rc::clone(self);
        // Nobody waits for it, and it has the whole shard to write: requests go first.
        let task = task::Builder::new().name("compaction").class(Class::Background).spawn_local(async move {
            if let Err(error) = persist.write_out(next.generation).await {
                persist.compaction_failed(&error);
            }
        });
        self.compaction.borrow_mut().running = Some(task);
        Ok(())
    }

    /// Writes the base of a generation, and removes what is older.
    async fn write_out(&self, generation: u64) -> Result<(), PersistError> {
        let dir = self.opened.dir();
        let base = FileName { generation, kind: Kind::Base, ..self.log.borrow().name };
        let mut cursor = SnapshotCursor::default();
        let slice = |journal: &mut Journal| self.state.borrow().shard.snapshot(&mut cursor, SLICE, journal);
        let written = write_base(dir, base, slice, || self.at(Step::BasePart)).await;
        let base_len = match written {
            Ok(len) => len,
            Err(error) => {
                // The half of it may be what fills the disk. If it cannot be removed either, the next start does it.
                drop(remove(&dir.join(FileName { kind: Kind::Temporary, ..base }.to_string())).await);
                return Err(error);
            }
        };
        self.at(Step::BaseSynced);
        name_base(dir, base).await?;
        self.at(Step::BaseNamed);
        self.compaction.borrow_mut().base_len = base_len;
        let older = of_shard_before(dir, base).await?;
        for file in older {
            remove(&dir.join(file.to_string())).await?;
            self.at(Step::Removed);
        }
        self.count(|stats| {
            stats.compactions += 1;
            stats.last_error = None;
        });
        Ok(())
    }

    fn compaction_failed(&self, error: &PersistError) {
        eprintln!("kv: the log could not be compacted: {error}");
        self.count(|stats| stats.last_error = Some(error.to_string()));
    }
}
