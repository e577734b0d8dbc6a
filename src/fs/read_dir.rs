//! What stands in a directory.
//!
//! No ring can list a directory, so a thread of the blocking pool does. It reads a batch of entries at a time, with the
//! type of each, and hands the open directory back with them; so a large directory is never in memory as a whole, and a
//! small one costs a single trip.
//!
//! ```text
//! Open ── batch is empty ──▶ Fetching (a thread has the directory) ── entries ──▶ Open
//!                                └────────────── the last ones ─────────────────▶ Ended
//! ```

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::future::{Future, poll_fn};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use super::{FileType, Metadata, symlink_metadata};
use crate::io::driver::DriverHandle;
use crate::io::driver::thread_pool::{JobFailed, ThreadPool, Wanted};
use crate::sync::Arc;

/// Entries that a thread reads at a time: a handful of system calls' worth, so that the trip to the thread and back does
/// not count, and a few dozen KiB.
const BATCH_ENTRIES: usize = 256;

/// What a strict runtime refuses.
const CALL: &str = "listing a directory";

/// Opens a directory to list it. `.` and `..` are not listed, and the order is the file system's.
///
/// ```
/// #[veloq::main(workers = 1)]
/// async fn main() -> std::io::Result<()> {
///     # let dir = tempfile::tempdir()?;
///     # let dir = dir.path();
///     veloq::fs::write(dir.join("one"), "1").await.0?;
///     veloq::fs::create_dir(dir.join("two")).await?;
///     let mut entries = veloq::fs::read_dir(dir).await?;
///     let mut found = Vec::new();
///     while let Some(entry) = entries.next_entry().await? {
///         found.push((entry.file_name().to_owned(), entry.file_type().is_dir()));
///     }
///     found.sort();
///     assert_eq!(found, [("one".into(), false), ("two".into(), true)]);
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// What the operating system said, as `NotFound`, or `NotADirectory`. `QuotaExceeded` if too much blocking work waits
/// already. `Unsupported` on a [strict](crate::runtime::Builder::strict) runtime.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn read_dir(path: impl AsRef<Path>) -> io::Result<ReadDir> {
    let path = path.as_ref().to_owned();
    let threads = Arc::clone(DriverHandle::current().threads());
    let first = threads.submit_silently(CALL, move || std::fs::read_dir(path).map(Box::new).map(fetch))?;
    let batch = first.wanted().await.map_err(JobFailed::into_error)??;
    let mut entries = ReadDir { state: State::Ended, batch: VecDeque::new(), threads };
    entries.take(batch);
    Ok(entries)
}

/// The entries of a directory. What is created or removed meanwhile may be listed or not.
#[derive(Debug)]
pub struct ReadDir {
    state: State,
    /// Read, and not yet asked for.
    batch: VecDeque<io::Result<DirEntry>>,
    threads: Arc<ThreadPool>,
}

#[derive(Debug)]
enum State {
    /// In a box: where std keeps an entry in it, it is much larger than the rest.
    Open(Box<std::fs::ReadDir>),
    Fetching(Wanted<Batch>),
    Ended,
}

/// Some entries, and the directory if there may be more.
struct Batch {
    entries: VecDeque<io::Result<DirEntry>>,
    rest: Option<Box<std::fs::ReadDir>>,
}

impl ReadDir {
    /// The next entry, or `None` when there are no more. Dropping the future loses none.
    ///
    /// # Errors
    ///
    /// What the operating system said to this entry; the next ones may be fine. `QuotaExceeded` if too much blocking work
    /// waits already; that ends the listing.
    pub async fn next_entry(&mut self) -> io::Result<Option<DirEntry>> {
        poll_fn(|cx| self.poll_next_entry(cx)).await
    }

    /// As [`next_entry`](Self::next_entry), to be polled.
    ///
    /// # Errors
    ///
    /// As [`next_entry`](Self::next_entry).
    pub fn poll_next_entry(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<DirEntry>>> {
        loop {
            if let Some(entry) = self.batch.pop_front() {
                return Poll::Ready(entry.map(Some));
            }
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Poll::Ready(Ok(None)),
                State::Open(dir) => {
                    let fetched = self.threads.submit_silently(CALL, move || fetch(dir))?;
                    self.state = State::Fetching(fetched.wanted());
                }
                State::Fetching(mut answer) => match Pin::new(&mut answer).poll(cx) {
                    Poll::Pending => {
                        self.state = State::Fetching(answer);
                        return Poll::Pending;
                    }
                    Poll::Ready(batch) => self.take(batch.map_err(JobFailed::into_error)?),
                },
            }
        }
    }

    /// Makes what a thread has read the entries to give out.
    fn take(&mut self, batch: Batch) {
        self.batch = batch.entries;
        self.state = batch.rest.map_or(State::Ended, State::Open);
    }
}

/// Reads a batch. Runs on a thread of the pool.
fn fetch(mut dir: Box<std::fs::ReadDir>) -> Batch {
    let entries: VecDeque<_> = dir.by_ref().take(BATCH_ENTRIES).map(|entry| DirEntry::new(&entry?)).collect();
    let rest = (entries.len() == BATCH_ENTRIES).then_some(dir);
    Batch { entries, rest }
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    path: PathBuf,
    file_type: FileType,
    #[cfg(unix)]
    inode: u64,
}

impl DirEntry {
    /// Asks for the type here, on the pool's thread: where the directory does not hold it, that is a system call.
    fn new(entry: &std::fs::DirEntry) -> io::Result<DirEntry> {
        let file_type = FileType::from_std(entry.file_type()?);
        Ok(DirEntry {
            path: entry.path(),
            file_type,
            #[cfg(unix)]
            inode: std::os::unix::fs::DirEntryExt::ino(entry),
        })
    }

    /// The name, without the directory.
    pub fn file_name(&self) -> &OsStr {
        self.path.file_name().expect("an entry has a name, and is neither `.` nor `..`")
    }

    /// The name, behind the path that was given to [`read_dir`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was when the directory was read. A symbolic link is one.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// The inode's number.
    #[cfg(unix)]
    pub fn ino(&self) -> u64 {
        self.inode
    }

    /// Asks for its metadata, as it is now; of a symbolic link, if it is one.
    ///
    /// # Errors
    ///
    /// As [`symlink_metadata`].
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn metadata(&self) -> io::Result<Metadata> {
        symlink_metadata(&self.path).await
    }
}
