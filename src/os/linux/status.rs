//! Metadata of a file, as `statx(2)` gives it.
//!
//! [`FileStatus`] is the kernel's own structure, boxed as it was filled, and each question is answered from it when it is asked. Its
//! mask says what was filled: when a file was made not every file system keeps, and asking for that is then an error, not a zero. Moments
//! are seconds from 1970, before it too, and nanoseconds that count forward from there.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::os::FileKind;

/// What `statx` said of a file.
#[derive(Clone)]
pub struct FileStatus(Box<libc::statx>);

impl FileStatus {
    pub(crate) fn new(raw: Box<libc::statx>) -> FileStatus {
        FileStatus(raw)
    }

    /// Bytes of content.
    pub(crate) fn len(&self) -> u64 {
        self.0.stx_size
    }

    /// Type and permission bits, as `st_mode` has them.
    pub(crate) fn mode(&self) -> u32 {
        u32::from(self.0.stx_mode)
    }

    /// What kind of thing it is.
    pub(crate) fn kind(&self) -> FileKind {
        kind_of(self.mode())
    }

    /// Who may do what with it.
    pub(crate) fn permissions(&self) -> std::fs::Permissions {
        std::fs::Permissions::from_mode(self.mode())
    }

    /// Number of hard links.
    pub(crate) fn links(&self) -> u32 {
        self.0.stx_nlink
    }

    /// Inode number.
    pub(crate) fn inode(&self) -> u64 {
        self.0.stx_ino
    }

    /// Owner and group.
    pub(crate) fn owner(&self) -> (u32, u32) {
        (self.0.stx_uid, self.0.stx_gid)
    }

    /// 512-byte blocks taken on disk.
    pub(crate) fn blocks(&self) -> u64 {
        self.0.stx_blocks
    }

    /// Last change of the content.
    pub(crate) fn modified(&self) -> io::Result<SystemTime> {
        time(self.0.stx_mtime.tv_sec, self.0.stx_mtime.tv_nsec)
    }

    /// Last read of the content, as far as the file system keeps it.
    pub(crate) fn accessed(&self) -> io::Result<SystemTime> {
        time(self.0.stx_atime.tv_sec, self.0.stx_atime.tv_nsec)
    }

    /// When the file was made, if the file system keeps that.
    pub(crate) fn created(&self) -> io::Result<SystemTime> {
        if self.0.stx_mask & libc::STATX_BTIME == 0 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this file system does not keep when a file was created",
            ));
        }
        time(self.0.stx_btime.tv_sec, self.0.stx_btime.tv_nsec)
    }
}

impl std::fmt::Debug for FileStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileStatus")
            .field("len", &self.len())
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}

/// What std's type says. std shows it by questions only, of which one has the answer yes.
pub(crate) fn file_kind(file_type: std::fs::FileType) -> FileKind {
    let known = [
        (file_type.is_file(), libc::S_IFREG),
        (file_type.is_dir(), libc::S_IFDIR),
        (file_type.is_symlink(), libc::S_IFLNK),
        (file_type.is_block_device(), libc::S_IFBLK),
        (file_type.is_char_device(), libc::S_IFCHR),
        (file_type.is_fifo(), libc::S_IFIFO),
        (file_type.is_socket(), libc::S_IFSOCK),
    ];
    kind_of(known.into_iter().find_map(|(is, bits)| is.then_some(bits)).unwrap_or(0))
}

/// What `st_mode` says.
fn kind_of(mode: u32) -> FileKind {
    match mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        other => FileKind::Other(other),
    }
}

/// The moment `seconds` after the beginning of 1970 (before it, if negative) and `nanos` later.
///
/// # Errors
///
/// `InvalidData` for one that `SystemTime` cannot hold.
fn time(seconds: i64, nanos: u32) -> io::Result<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let rest = Duration::from_nanos(u64::from(nanos));
    second.and_then(|second| second.checked_add(rest)).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "the file system reports a moment that no clock can show")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // The fraction counts forward also before 1970; a sign error would be off by up to two seconds.
    #[test]
    fn moments_before_1970_count_their_fraction_forward() {
        let half = Duration::from_millis(500);
        assert_eq!(time(-1, 500_000_000).expect("half a second before"), UNIX_EPOCH - half);
        assert_eq!(time(1, 500_000_000).expect("a second and a half after"), UNIX_EPOCH + 3 * half);
        assert_eq!(time(i64::MAX, 1_000_000_000).expect_err("too late").kind(), io::ErrorKind::InvalidData);
    }
}
