//! Paths, and how files are opened, as the kernel takes them.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

/// How a file is opened: `open(2)` flags, and the permissions of one that is created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenHow {
    pub(crate) flags: i32,
    pub(crate) mode: u32,
}
