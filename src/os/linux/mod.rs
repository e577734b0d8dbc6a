//! Linux's own calls.

mod affinity;
mod clock;
mod file;
pub(crate) mod map;
mod status;
mod topology;

pub(crate) use affinity::Affinity;
pub(crate) use clock::{coarse_ns, monotonic_ns};
pub(crate) use file::{direct_alignment, is_direct, set_len};
pub(crate) use map::Mapping;
pub(crate) use status::FileStatus;
pub(crate) use topology::{Cpu, Topology};
#[cfg(test)]
pub(crate) use topology::{captured, machines};
