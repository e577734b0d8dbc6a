//! Paths, and how files are opened.

use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::OwnedHandle;
use std::path::{Path, PathBuf};

use windows_sys::Win32::Foundation::ERROR_DIRECTORY;
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_NO_BUFFERING, FILE_FLAG_OVERLAPPED, FILE_FLAG_WRITE_THROUGH,
};

use crate::os::Wanted;

/// A path as an operation owns it. std makes the kernel's form of it, where it is used.
pub(crate) type SystemPath = PathBuf;

/// The path as an operation owns it.
///
/// # Errors
///
/// `InvalidInput` for a path with a zero in it.
pub(crate) fn system_path(path: &Path) -> io::Result<SystemPath> {
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a path contains a zero, which ends it for the kernel",
        ));
    }
    Ok(path.to_path_buf())
}

/// What may be said of a file that is opened beyond what all systems know: std's `OpenOptionsExt`.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenExtras {
    pub(crate) access_mode: Option<u32>,
    pub(crate) share_mode: Option<u32>,
    pub(crate) custom_flags: u32,
    pub(crate) attributes: u32,
    pub(crate) security_qos_flags: Option<u32>,
}

impl OpenExtras {
    /// Whether they say what the file is opened to do.
    pub(crate) fn name_access(&self) -> bool {
        self.access_mode.is_some()
    }
}

/// How a file is opened: std's options. std knows what `CreateFileW` wants of each combination.
#[derive(Clone, Debug)]
pub(crate) struct OpenHow {
    options: std::fs::OpenOptions,
    direct: bool,
    /// Whether it must be a directory.
    directory: bool,
}

impl OpenHow {
    /// Always for overlapped operations, without which a handle cannot be attached to a port.
    pub(crate) fn new(wanted: &Wanted, extras: &OpenExtras) -> OpenHow {
        let Wanted { read, write, append, truncate, create, create_new, direct, durable } = *wanted;
        let mut flags = extras.custom_flags | FILE_FLAG_OVERLAPPED;
        if direct {
            flags |= FILE_FLAG_NO_BUFFERING;
        }
        if durable {
            flags |= FILE_FLAG_WRITE_THROUGH;
        }
        let mut options = std::fs::OpenOptions::new();
        options
            .read(read)
            .write(write)
            .append(append)
            .truncate(truncate)
            .create(create)
            .create_new(create_new);
        options.custom_flags(flags).attributes(extras.attributes);
        if let Some(access) = extras.access_mode {
            options.access_mode(access);
        }
        if let Some(share) = extras.share_mode {
            options.share_mode(share);
        }
        if let Some(flags) = extras.security_qos_flags {
            options.security_qos_flags(flags);
        }
        OpenHow { options, direct: flags & FILE_FLAG_NO_BUFFERING != 0, directory: false }
    }

    /// A directory, to be synced: that is granted only to who may write to it.
    pub(crate) fn directory() -> OpenHow {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
        OpenHow { options, direct: false, directory: true }
    }

    /// Whether it is opened for Direct I/O.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Opens it. Blocks.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn open(&self, path: &Path) -> io::Result<OwnedHandle> {
        let opened = self.options.open(path)?;
        if self.directory && !opened.metadata()?.is_dir() {
            return Err(io::Error::from_raw_os_error(ERROR_DIRECTORY.cast_signed()));
        }
        Ok(opened.into())
    }
}
