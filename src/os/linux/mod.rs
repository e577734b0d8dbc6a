//! Linux's own calls.

mod accept;
mod affinity;
mod clock;
mod descriptor;
pub(crate) mod error;
mod file;
mod interrupt;
mod limits;
pub(crate) mod map;
pub(crate) mod message;
mod path;
mod preemption;
mod socket;
mod status;
mod topology;
#[cfg(feature = "backtrace")]
mod unwind;

pub(crate) use accept::AcceptRoom;
pub(crate) use affinity::{Affinity, run_anywhere};
pub(crate) use clock::{coarse_ns, monotonic_ns};
pub(crate) use descriptor::{BorrowedDescriptor, OwnedDescriptor, RawDescriptor};
pub(crate) use descriptor::{duplicate, forget, lend, raw};
pub(crate) use file::{direct_alignment, is_direct, set_len_otherwise};
pub(crate) use interrupt::{
    INTERRUPT_SIGNAL, Interruptible, Registers, handle as handle_interrupts, interrupt,
};
pub(crate) use limits::{memlock_limit, memory_limit};
pub(crate) use path::{OpenExtras, OpenHow, SystemPath, system_path};
pub(crate) use preemption::preemptions;
pub(crate) use socket::{peer_name, receive_now, reuse_address, reuse_port, set_user_timeout, user_timeout};
pub(crate) use status::{FileStatus, file_kind};
#[cfg(test)]
pub(crate) use topology::{captured, machines, parse_list};
#[cfg(feature = "backtrace")]
pub(crate) use unwind::frames;
