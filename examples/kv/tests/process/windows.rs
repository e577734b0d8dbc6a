//! What a test does to a `kv` process on Windows.
//!
//! Ctrl-C goes to all processes of a console. So each server has a console of its own, without a window; and to send it there takes a
//! process that attaches itself to it, which the tests, with a console of their own, or none, must not do. The test program therefore runs
//! itself again, for the test [`presses_ctrl_c`] alone.
#![expect(unsafe_code, reason = "attaches to another process's console, and asks what that has used")]

use std::os::windows::io::AsRawHandle;
use std::os::windows::process::CommandExt;
use std::process::{Child, Command};

use windows_sys::Win32::Foundation::WAIT_OBJECT_0;
use windows_sys::Win32::System::Console::{
    AttachConsole, CTRL_C_EVENT, GenerateConsoleCtrlEvent, SetConsoleCtrlHandler,
};
use windows_sys::Win32::System::ProcessStatus::{GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::{CREATE_NO_WINDOW, DETACHED_PROCESS, WaitForSingleObject};

/// What a server is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
}

/// What tells a server to stop. Ctrl-Break would as well, but goes to a group of processes that must then not hear Ctrl-C.
pub(crate) const SIGNALS: [Signal; 1] = [Signal::Interrupt];

/// Says to the test program which process is meant.
const TO: &str = "KV_TEST_CTRL_C";

/// The program, with a console of its own.
pub(super) fn kv() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv"));
    command.creation_flags(CREATE_NO_WINDOW);
    command
}

pub(super) fn signal(child: &Child, Signal::Interrupt: Signal) {
    let program = std::env::current_exe().expect("a test has a file");
    let name = "process::system::presses_ctrl_c";
    let sent = Command::new(program)
        .args(["--exact", name])
        .env(TO, child.id().to_string())
        .creation_flags(DETACHED_PROCESS)
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&sent.stdout);
    // Who has ended, since an earlier signal, has no console.
    assert!(sent.status.success() && said.contains("1 passed") || has_ended(child), "{said}");
}

fn has_ended(child: &Child) -> bool {
    // SAFETY: the handle is open while the child is borrowed; nothing is waited for.
    unsafe { WaitForSingleObject(child.as_raw_handle(), 0) == WAIT_OBJECT_0 }
}

/// No test of its own: what [`signal`] starts.
#[test]
fn presses_ctrl_c() {
    let Ok(to) = std::env::var(TO) else { return };
    let process = to.parse().expect("a process's number");
    // SAFETY: the calls have no preconditions; the handler is none, so that the event does not end this process.
    let (attached, _, sent) = unsafe {
        let attached = AttachConsole(process);
        (attached, SetConsoleCtrlHandler(None, 1), GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0))
    };
    assert_eq!((attached, sent), (1, 1), "{}", std::io::Error::last_os_error());
}

/// The most memory that it has had.
pub(super) fn peak_memory_kib(child: &Child) -> u64 {
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let bytes = u32::try_from(size_of::<PROCESS_MEMORY_COUNTERS>()).expect("some bytes");
    // SAFETY: the handle is open while the child is borrowed, and so many bytes may be written.
    let told = unsafe { GetProcessMemoryInfo(child.as_raw_handle(), &raw mut counters, bytes) };
    assert_ne!(told, 0, "{}", std::io::Error::last_os_error());
    counters.PeakWorkingSetSize as u64 / 1024
}

/// Memory for the program itself: what it has when it has just started. Wine reads the whole file, with all that debuggers want to know.
pub(super) fn program_kib(child: &Child) -> u64 {
    peak_memory_kib(child)
}
