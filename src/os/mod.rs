//! The operating systems' own calls: mapping memory, limits, affinity and topology, clocks, metadata.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    BorrowedDescriptor, FileStatus, OpenHow, OwnedDescriptor, RawDescriptor, SystemPath, error, forget, lend,
    message, raw, run_anywhere, system_path,
};
#[cfg(windows)]
mod windows;
#[cfg(all(target_os = "linux", feature = "backtrace"))]
pub(crate) use linux::frames;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    Affinity, Cpu, Mapping, Topology, coarse_ns, direct_alignment, is_direct, map, memlock_limit,
    memory_limit, monotonic_ns, peer_name, set_len,
};
#[cfg(target_os = "linux")]
pub(crate) use linux::{Interruptible, Registers, handle_interrupts, interrupt};
#[cfg(all(test, target_os = "linux"))]
pub(crate) use linux::{captured, machines};
#[cfg(windows)]
pub(crate) use windows::{
    AttachedTo, BorrowedDescriptor, OwnedDescriptor, RawDescriptor, error, forget, lend, message, raw,
};

use std::fmt;
use std::path::PathBuf;

/// A place in the program, in a backtrace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// The instruction, or the one to return to.
    pub address: u64,
    /// The function, if its name is known.
    pub function: Option<String>,
    /// The source file, if it is known.
    pub file: Option<PathBuf>,
    /// The line in the file, if it is known.
    pub line: Option<u32>,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.function {
            Some(function) => f.write_str(function)?,
            None => write!(f, "{:#x}", self.address)?,
        }
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            write!(f, " at {}:{line}", file.display())?;
        }
        Ok(())
    }
}
