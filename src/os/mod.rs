//! The operating systems' own calls: mapping memory, affinity, clocks, metadata.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::FileStatus;
#[cfg(target_os = "linux")]
pub(crate) use linux::{Affinity, Mapping, map, monotonic_ns};
