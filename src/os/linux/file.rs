//! What is asked of an open file on the thread itself.
//!
//! These calls look at, or change, an inode that is in memory because the file is open; they wait for no disk, so a trip
//! through the ring would cost more than they do. Each says where that has a limit.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, ftruncate, statx};

/// Whether the file was opened with `O_DIRECT`.
pub(crate) fn is_direct(fd: BorrowedFd<'_>) -> bool {
    fcntl_getfl(fd).is_ok_and(|flags| flags.contains(OFlags::DIRECT))
}

/// What Direct I/O on the file demands of addresses, and of offsets and lengths; `None` where the kernel does not say.
///
/// `STATX_DIOALIGN` came with Linux 6.1, and file systems took it up one by one. What a network file system knows is
/// believed without asking the server again (`AT_STATX_DONT_SYNC`).
pub(crate) fn direct_alignment(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = statx(fd, c"", flags, StatxFlags::DIOALIGN).ok()?;
    let said = status.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    // Two zeros say that the file knows no Direct I/O at all; then it could not have been opened for it.
    (said && status.stx_dio_mem_align > 0 && status.stx_dio_offset_align > 0)
        .then_some((status.stx_dio_mem_align, status.stx_dio_offset_align))
}

/// Sets a file's length after the ring has refused to: by `ftruncate(2)`, for kernels before 6.9, whose rings cannot do it. Shortening
/// a file with much data in the page cache can take milliseconds.
///
/// # Errors
///
/// What `ftruncate` said, or the ring, where its refusal was no question of age.
pub(crate) fn set_len_otherwise(fd: BorrowedFd<'_>, len: u64, refusal: io::Error) -> io::Result<()> {
    // Either the kernel does not know the operation, or it does not like the request; the answer is the same. This call is right in the
    // first case, and gets the same error in the second.
    if refusal.raw_os_error() != Some(libc::EINVAL) {
        return Err(refusal);
    }
    Ok(ftruncate(fd, len)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    // A wrong answer would refuse what the kernel takes, or let through what it does not.
    #[test]
    fn a_file_is_direct_if_it_was_opened_so() {
        let cached = tempfile::NamedTempFile::new().expect("a temporary file");
        assert!(!is_direct(cached.as_fd()));
        let mut options = std::fs::OpenOptions::new();
        match options.read(true).custom_flags(libc::O_DIRECT).open(cached.path()) {
            Ok(direct) => assert!(is_direct(direct.as_fd())),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "this file system has none"),
        }
    }

    // The alignment divides addresses; a zero or an odd number would make nonsense of that.
    #[test]
    fn an_alignment_is_a_power_of_two() {
        let file = tempfile::tempfile().expect("a temporary file");
        if let Some((memory, offset)) = direct_alignment(file.as_fd()) {
            assert!(memory.is_power_of_two() && offset.is_power_of_two(), "{memory} {offset}");
        }
    }

    // This is the road of old kernels, which a new one never takes by itself.
    #[test]
    fn the_length_is_set_without_the_ring_too() {
        let file = tempfile::tempfile().expect("a temporary file");
        let refusal = || io::Error::from_raw_os_error(libc::EINVAL);
        set_len_otherwise(file.as_fd(), 5_000_000_000, refusal()).expect("a sparse file");
        assert_eq!(file.metadata().expect("its metadata").len(), 5_000_000_000);
        set_len_otherwise(file.as_fd(), 3, refusal()).expect("a short file");
        assert_eq!(file.metadata().expect("its metadata").len(), 3);
    }
}
