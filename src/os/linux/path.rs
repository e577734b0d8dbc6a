//! Paths, and how files are opened, as the kernel takes them.
//!
//! A path becomes its bytes with a zero behind them, on the heap, so that an operation can own it at an address that stays while the
//! kernel reads. What is wanted of a file becomes `open(2)`'s flags and a mode; flags of the caller's own are added, but those for access
//! and for inheritance, which are decided here and by the backend.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::os::Wanted;

/// A path as an operation owns it: its bytes, ended by a zero.
pub(crate) type SystemPath = CString;

/// The path as an operation owns it.
///
/// # Errors
///
/// `InvalidInput` for a path with a zero byte in it.
pub(crate) fn system_path(path: &Path) -> io::Result<SystemPath> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a path contains a zero byte, which ends it for the kernel",
        )
    })
}

/// What may be said of a file that is opened beyond what all systems know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenExtras {
    /// The permissions of one that is created.
    pub(crate) mode: u32,
    /// More `open(2)` flags.
    pub(crate) custom_flags: i32,
}

impl Default for OpenExtras {
    fn default() -> OpenExtras {
        OpenExtras { mode: 0o666, custom_flags: 0 }
    }
}

impl OpenExtras {
    /// Whether they say what the file is opened to do.
    #[expect(clippy::unused_self, reason = "on other systems they can")]
    pub(crate) fn name_access(&self) -> bool {
        false
    }
}

/// How a file is opened: `open(2)` flags, and the permissions of one that is created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenHow {
    pub(crate) flags: i32,
    pub(crate) mode: u32,
}

impl OpenHow {
    /// What is wanted must not contradict itself.
    pub(crate) fn new(wanted: &Wanted, extras: &OpenExtras) -> OpenHow {
        let access = match (wanted.read, wanted.write, wanted.append) {
            (false, true, false) => libc::O_WRONLY,
            (true, true, false) => libc::O_RDWR,
            (false, _, true) => libc::O_WRONLY | libc::O_APPEND,
            (true, _, true) => libc::O_RDWR | libc::O_APPEND,
            (_, false, false) => libc::O_RDONLY,
        };
        let creation = match (wanted.create_new, wanted.create, wanted.truncate) {
            (true, _, _) => libc::O_CREAT | libc::O_EXCL,
            (false, true, true) => libc::O_CREAT | libc::O_TRUNC,
            (false, true, false) => libc::O_CREAT,
            (false, false, true) => libc::O_TRUNC,
            (false, false, false) => 0,
        };
        let direct = if wanted.direct { libc::O_DIRECT } else { 0 };
        let durable = if wanted.durable { libc::O_DSYNC } else { 0 };
        // The backend sets O_CLOEXEC where it means something.
        let custom = extras.custom_flags & !(libc::O_ACCMODE | libc::O_CLOEXEC);
        OpenHow { flags: access | creation | direct | durable | custom, mode: extras.mode }
    }

    /// A directory, to be synced.
    pub(crate) fn directory() -> OpenHow {
        OpenHow { flags: libc::O_RDONLY | libc::O_DIRECTORY, mode: 0 }
    }

    /// Whether it is opened for Direct I/O.
    pub(crate) fn is_direct(&self) -> bool {
        self.flags & libc::O_DIRECT != 0
    }
}
