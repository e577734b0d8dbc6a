//! Whether Windows is Wine, and what is left out there.
//!
//! A test that Wine cannot show asks [`lacks`] first, and says why: what is left out is printed, and `scripts/windows` counts it. On
//! Windows itself, and on Linux, everything runs.
#![cfg_attr(windows, expect(unsafe_code, reason = "asks the system what it is"))]

use std::io::Write;

/// Whether this is Wine, which lacks what `test` needs: `what` says it.
pub(crate) fn lacks(test: &str, what: &str) -> bool {
    let is_here = is_here();
    if is_here {
        // Not by `eprintln!`, which a passing test keeps to itself.
        writeln!(std::io::stderr(), "left out under Wine: {test}: {what}").expect("there is standard error");
    }
    is_here
}

/// Whether this is Wine: its kernel library has a function that tells its version.
#[cfg(windows)]
fn is_here() -> bool {
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};

    // SAFETY: both names end with a zero, and the library is one that no process is without.
    unsafe { GetProcAddress(GetModuleHandleA(c"ntdll".as_ptr().cast()), c"wine_get_version".as_ptr().cast()) }
        .is_some()
}

#[cfg(not(windows))]
fn is_here() -> bool {
    false
}
