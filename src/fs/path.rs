//! Paths as the kernel takes them.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The path's bytes, ended by a zero; as an operation owns them.
pub(super) fn to_c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a path contains a zero byte, which ends it for the kernel",
        )
    })
}
