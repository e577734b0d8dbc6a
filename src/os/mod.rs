//! The operating systems' own calls: mapping memory, limits, affinity and topology, clocks, metadata.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(windows)]
use windows as system;

#[cfg(feature = "backtrace")]
pub(crate) use system::frames;
pub(crate) use system::{
    AcceptRoom, Affinity, BorrowedDescriptor, FileStatus, INTERRUPT_SIGNAL, Interruptible, OpenExtras,
    OpenHow, OwnedDescriptor, RawDescriptor, Registers, SystemPath, coarse_ns, direct_alignment, duplicate,
    error, file_kind, forget, handle_interrupts, interrupt, is_direct, lend, map, memlock_limit,
    memory_limit, message, monotonic_ns, peer_name, preemptions, raw, receive_now, reuse_address, reuse_port,
    run_anywhere, set_len_otherwise, set_user_timeout, system_path, user_timeout,
};

#[cfg(all(test, target_os = "linux"))]
pub(crate) use linux::{captured, machines, parse_list};
#[cfg(windows)]
pub(crate) use windows::{AttachedTo, ConsoleEvent, Events, ReadAddresses, internet_address};

use std::fmt;
use std::path::PathBuf;

/// What is wanted of a file that is opened, on every system.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) truncate: bool,
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    /// Direct I/O.
    pub(crate) direct: bool,
    /// Each write is durable when it is done.
    pub(crate) durable: bool,
}

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FileKind {
    File,
    Directory,
    Symlink,
    /// None of these; on Linux the bits of `st_mode` that say what.
    Other(u32),
}

/// One CPU: a hardware thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// Its number, as affinity masks count; on Windows its group's times 64, and its place in the group.
    pub(crate) number: usize,
    /// Its NUMA node.
    pub(crate) node: usize,
    /// Whom it shares its last cache with: the lowest CPU of them.
    pub(crate) cache: usize,
    /// Its core: the lowest CPU of it.
    pub(crate) core: usize,
    /// Whether there are faster ones.
    pub(crate) slow: bool,
}

/// The CPUs that run, in order of their numbers: as large as the system's own view, which knows nothing of affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Topology(pub(crate) Vec<Cpu>);

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
