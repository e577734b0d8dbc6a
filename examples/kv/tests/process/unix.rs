//! What a test does to a `kv` process on Unix.

use std::fs;
use std::process::{Child, Command};

pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, kill_process, prlimit};

/// What tells a server to stop.
pub(crate) const SIGNALS: [Signal; 2] = [Signal::TERM, Signal::INT];

/// The program. By a shell that has it ignore the signal that says that a file is too large: see [`limit_files`].
pub(super) fn kv() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#, env!("CARGO_BIN_EXE_kv")]);
    command
}

pub(super) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it is our child, and not waited for");
}

/// Bounds the size of the files that it may write, and gives the bound before.
pub(super) fn limit_files(child: &Child, bytes: Option<u64>) -> Option<u64> {
    let limit = Rlimit { current: bytes, maximum: getrlimit(Resource::Fsize).maximum };
    prlimit(Some(Pid::from_child(child)), Resource::Fsize, limit).expect("it is our child").current
}

/// The most memory that it has had, from `/proc`.
pub(super) fn peak_memory_kib(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line for it");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Memory for the program itself: pages of its file, as far as they were needed, which is next to nothing.
pub(super) fn program_kib(_: &Child) -> u64 {
    0
}
