//! What the kernel knows of a file besides its content.
//!
//! Asking is one operation, of a path or of an open file ([`File::metadata`](super::File::metadata)), and the answer is a copy:
//! [`Metadata`] changes no more, and needs no file to be looked at. What every system has stands in the first part; below are what
//! only one has, as methods of the name that std's extension traits give them.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use crate::io::op::{self, fs::Status, fs::Subject};
use crate::os::{self, FileKind, FileStatus, system_path};

/// Asks for the metadata of what `path` names, following symbolic links.
///
/// ```
/// #[veloq::main(workers = 1)]
/// async fn main() -> std::io::Result<()> {
///     let here = veloq::fs::metadata(".").await?;
///     assert!(here.is_dir());
///     assert_eq!(here.modified()?, std::fs::metadata(".")?.modified()?);
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// What the operating system said, `NotFound` first of all. `InvalidInput` for a path with a zero byte in it.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    status(path.as_ref(), true).await
}

/// Asks for the metadata of what `path` names; of a symbolic link, if it names one.
///
/// # Errors
///
/// As [`metadata`].
///
/// # Panics
///
/// When polled outside a worker.
pub async fn symlink_metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    status(path.as_ref(), false).await
}

/// Whether `path` names something, following symbolic links.
///
/// ```
/// # #[veloq::main(workers = 1)]
/// # async fn main() -> std::io::Result<()> {
/// assert!(veloq::fs::exists(".").await?);
/// assert!(!veloq::fs::exists("./no/such/thing").await?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When that cannot be found out, as where a directory on the way may not be searched.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn exists(path: impl AsRef<Path>) -> io::Result<bool> {
    match metadata(path).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn status(path: &Path, follow: bool) -> io::Result<Metadata> {
    let subject = Subject::Path(system_path(path)?, follow);
    Ok(Metadata::new(op::start(Status { subject, status: None }).await?))
}

/// What the kernel knows of a file besides its content, at one moment.
#[derive(Clone, Debug)]
pub struct Metadata(FileStatus);

impl Metadata {
    pub(super) fn new(status: FileStatus) -> Metadata {
        Metadata(status)
    }

    /// Whether it is a file, a directory, a symbolic link or something else.
    pub fn file_type(&self) -> FileType {
        FileType(self.0.kind())
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type().is_dir()
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type().is_file()
    }

    /// Whether it is a symbolic link; only [`symlink_metadata`] can find one.
    pub fn is_symlink(&self) -> bool {
        self.file_type().is_symlink()
    }

    /// Bytes of content.
    #[expect(clippy::len_without_is_empty, reason = "as std's, and a file's metadata is never empty")]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Who may read, write and execute it. `std::os::unix::fs::PermissionsExt` shows the bits.
    pub fn permissions(&self) -> std::fs::Permissions {
        self.0.permissions()
    }

    /// When the content was last changed.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a moment that `SystemTime` cannot hold, which a damaged file system can report.
    pub fn modified(&self) -> io::Result<SystemTime> {
        self.0.modified()
    }

    /// When the content was last read, as far as the file system keeps that.
    ///
    /// # Errors
    ///
    /// As [`modified`](Self::modified).
    pub fn accessed(&self) -> io::Result<SystemTime> {
        self.0.accessed()
    }

    /// When the file was made.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the file system does not keep that; else as [`modified`](Self::modified).
    pub fn created(&self) -> io::Result<SystemTime> {
        self.0.created()
    }
}

#[cfg(unix)]
impl Metadata {
    /// Type and permission bits, as `st_mode` has them.
    pub fn mode(&self) -> u32 {
        self.0.mode()
    }

    /// The inode's number, unique in its file system.
    pub fn ino(&self) -> u64 {
        self.0.inode()
    }

    /// How many names it has (hard links).
    pub fn nlink(&self) -> u64 {
        u64::from(self.0.links())
    }

    /// The owner.
    pub fn uid(&self) -> u32 {
        self.0.owner().0
    }

    /// The group.
    pub fn gid(&self) -> u32 {
        self.0.owner().1
    }

    /// Space taken on disk, in units of 512 bytes; less than [`len`](Self::len) says if there are holes.
    pub fn blocks(&self) -> u64 {
        self.0.blocks()
    }
}

#[cfg(windows)]
impl Metadata {
    /// The attributes (`FILE_ATTRIBUTE_*`).
    pub fn file_attributes(&self) -> u32 {
        self.0.attributes()
    }
}

/// What kind of thing a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileType(FileKind);

impl FileType {
    /// The same type, as std has it.
    pub(super) fn from_std(file_type: std::fs::FileType) -> FileType {
        FileType(os::file_kind(file_type))
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.0 == FileKind::Directory
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.0 == FileKind::File
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.0 == FileKind::Symlink
    }
}

#[cfg(unix)]
impl FileType {
    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.0 == FileKind::Other(libc::S_IFBLK)
    }

    /// Whether it is a character device.
    pub fn is_char_device(&self) -> bool {
        self.0 == FileKind::Other(libc::S_IFCHR)
    }

    /// Whether it is a named pipe.
    pub fn is_fifo(&self) -> bool {
        self.0 == FileKind::Other(libc::S_IFIFO)
    }

    /// Whether it is a socket.
    pub fn is_socket(&self) -> bool {
        self.0 == FileKind::Other(libc::S_IFSOCK)
    }
}
