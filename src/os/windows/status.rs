//! A file's metadata as the system reports it.

use std::io;
use std::time::SystemTime;

use crate::os::FileKind;

/// What std has asked of a file, by its handle or its path.
#[derive(Clone, Debug)]
pub struct FileStatus(std::fs::Metadata);

impl FileStatus {
    pub(crate) fn new(metadata: std::fs::Metadata) -> FileStatus {
        FileStatus(metadata)
    }

    /// Bytes of content.
    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// What kind of thing it is.
    pub(crate) fn kind(&self) -> FileKind {
        file_kind(self.0.file_type())
    }

    /// Whether it may be written.
    pub(crate) fn permissions(&self) -> std::fs::Permissions {
        self.0.permissions()
    }

    /// Last change of the content.
    pub(crate) fn modified(&self) -> io::Result<SystemTime> {
        self.0.modified()
    }

    /// Last read of the content, as far as the file system keeps it.
    pub(crate) fn accessed(&self) -> io::Result<SystemTime> {
        self.0.accessed()
    }

    /// When the file was made.
    pub(crate) fn created(&self) -> io::Result<SystemTime> {
        self.0.created()
    }

    /// The attributes (`FILE_ATTRIBUTE_*`).
    pub(crate) fn attributes(&self) -> u32 {
        std::os::windows::fs::MetadataExt::file_attributes(&self.0)
    }
}

/// What std's type says. A directory that is a link is a link.
pub(crate) fn file_kind(file_type: std::fs::FileType) -> FileKind {
    if file_type.is_symlink() {
        FileKind::Symlink
    } else if file_type.is_dir() {
        FileKind::Directory
    } else if file_type.is_file() {
        FileKind::File
    } else {
        FileKind::Other(0)
    }
}
