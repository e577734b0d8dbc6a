//! Files: `std::fs` with buffers that an operation owns, and with Direct I/O.
//!
//! A [`File`] has no cursor. Each transfer names its offset ([`File::read_at`], [`File::write_at`]), so that many can be
//! in flight on one file, in any order. Buffers are moved in and come back with the result, whatever it is:
//!
//! ```
//! use veloq::fs::{self, File};
//!
//! #[veloq::main(workers = 1)]
//! async fn main() -> std::io::Result<()> {
//!     let dir = tempfile::tempdir()?;
//!     let path = dir.path().join("greeting");
//!
//!     let file = File::create(&path).await?;
//!     let (written, _) = file.write_all_at("hello, disk", 0).await;
//!     written?;
//!     file.sync_all().await?;
//!
//!     let file = File::open(&path).await?;
//!     let (read, buf) = file.read_at(Vec::with_capacity(5), 7).await;
//!     assert_eq!((read?, &buf[..]), (4, &b"disk"[..]));
//!
//!     assert_eq!(fs::read(&path).await?, b"hello, disk");
//!     fs::remove_file(&path).await
//! }
//! ```
//!
//! **Dropping a future** asks the kernel to cancel what it waits for, and promises nothing else: a write, a rename or a
//! removal that was dropped may have happened, in part or as a whole. The buffer stays alive until the kernel is done
//! with it. An [`open`](OpenOptions::open) that was dropped leaves no descriptor behind.
//!
//! **Blocking.** Nothing here blocks the worker: what a ring can only do by blocking, the kernel does on threads of its
//! own, and what a ring cannot do at all, listing a directory, a thread of ours does. The exceptions are calls on the
//! metadata of a file that is open already (its Direct I/O alignment; on kernels older than 6.9 its length), which wait
//! for nothing; and dropping a `File`, which closes it on the worker's thread. Where that may wait (a network file system,
//! the last reference to a large file without a name) use [`File::close`].
//!
//! **Errors** are the operating system's, as std's are. Where Veloq itself refuses, the kind is std's and the text says
//! what to do; [`Misaligned`] can be had by downcast.
//!
//! In reading order: `open_options`, `file`, `transfer` (a read or write as a future), `direct` (what Direct I/O demands),
//! `metadata`, `dir` (names and directories), `read_dir`, `path`.

mod dir;
mod direct;
mod file;
mod metadata;
mod open_options;
mod read_dir;
mod transfer;

pub use crate::io::op::fs::Allocation;
pub use dir::{create_dir, create_dir_all, remove_dir, remove_file, rename, sync_dir};
pub use direct::{Alignment, Buffering, Misaligned};
pub use file::{AllocateFile, File, SyncFile, read, read_to_string, write};
pub use metadata::{FileType, Metadata, exists, metadata, symlink_metadata};
pub use open_options::OpenOptions;
pub use read_dir::{DirEntry, ReadDir, read_dir};
pub use transfer::{ReadAt, ReadVectoredAt, WriteAt, WriteVectoredAt};
