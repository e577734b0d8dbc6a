//! A file's metadata as the kernel reports it.

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

    /// Last change of the content: seconds since 1970 and nanoseconds.
    pub(crate) fn modified(&self) -> (i64, u32) {
        (self.0.stx_mtime.tv_sec, self.0.stx_mtime.tv_nsec)
    }

    /// Last read of the content, as far as the file system keeps it.
    pub(crate) fn accessed(&self) -> (i64, u32) {
        (self.0.stx_atime.tv_sec, self.0.stx_atime.tv_nsec)
    }

    /// When the file was made, if the file system keeps that.
    pub(crate) fn created(&self) -> Option<(i64, u32)> {
        let known = self.0.stx_mask & libc::STATX_BTIME != 0;
        known.then_some((self.0.stx_btime.tv_sec, self.0.stx_btime.tv_nsec))
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
