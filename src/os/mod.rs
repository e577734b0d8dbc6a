//! The operating systems' own calls: mapping memory, affinity and topology, clocks, metadata.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::FileStatus;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    Affinity, Cpu, Mapping, Topology, coarse_ns, direct_alignment, is_direct, map, monotonic_ns, set_len,
};
#[cfg(all(test, target_os = "linux"))]
pub(crate) use linux::{captured, machines};
