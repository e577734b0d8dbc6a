//! The operating systems' own calls: mapping memory, affinity, clocks, metadata.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::FileStatus;
#[cfg(target_os = "linux")]
pub(crate) use linux::{Affinity, Mapping, direct_alignment, is_direct, map, monotonic_ns, set_len};
