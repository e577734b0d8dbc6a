//! Makes a ring with what the kernel has, and says what it has not.
//!
//! Each flag and each registration is tried alone and degrades alone; one that is refused never takes the others with it.
//! A ring that does not fit into RLIMIT_MEMLOCK, or into the worker's share of it ([`budget`](crate::io::driver::budget)), is
//! tried at half the size, down to 64 entries. What Veloq cannot do without (a kernel of 6.1 or later that allows io_uring,
//! and room for that smallest ring) is an error that names need, found and remedy.
#![expect(unsafe_code, reason = "one registration that the io-uring crate ties to a borrowed submitter")]

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};

use super::{Capabilities, DriverConfig};
use crate::io::driver::Unavailable;
use crate::io::driver::budget::{RING_ENTRIES_MIN, ring_bytes};

/// How often, and how long each time, a start waits for room for the smallest ring. The kernel gives a closed ring's share of
/// RLIMIT_MEMLOCK back from a thread of its own, some milliseconds later: a service that is started again at once would be
/// refused for the sake of its predecessor.
const UNCHARGE_ROUNDS: u32 = 100;
const UNCHARGE_ROUND: Duration = Duration::from_millis(2);

/// `IORING_REGISTER_RING_FDS`.
const REGISTER_RING_FDS: u32 = 20;
/// `IORING_UNREGISTER_RING_FDS`.
const UNREGISTER_RING_FDS: u32 = 21;

/// A ring, and which of the optional things it got.
pub(super) struct Made {
    pub(super) ring: IoUring,
    pub(super) ring_index: Option<u32>,
    pub(super) no_iowait: bool,
    pub(super) direct: bool,
    pub(super) capabilities: Capabilities,
}

/// The optional set-up flags, in the order in which they are given up when the kernel refuses the lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flags {
    no_sqarray: bool,
    defer_taskrun: bool,
    single_issuer: bool,
    submit_all: bool,
    coop_taskrun: bool,
}

/// The flags' names, in the same order.
const FLAGS: [&str; 5] = ["no_sqarray", "defer_taskrun", "single_issuer", "submit_all", "coop_taskrun"];

impl Flags {
    fn wanted(config: &DriverConfig) -> Flags {
        let want = |name: &str| !config.without.contains(&name);
        Flags {
            no_sqarray: want("no_sqarray"),
            defer_taskrun: want("defer_taskrun") && want("single_issuer"),
            single_issuer: want("single_issuer"),
            submit_all: want("submit_all"),
            coop_taskrun: want("coop_taskrun"),
        }
    }

    fn get(&mut self, name: &str) -> &mut bool {
        match name {
            "no_sqarray" => &mut self.no_sqarray,
            "defer_taskrun" => &mut self.defer_taskrun,
            "single_issuer" => &mut self.single_issuer,
            "submit_all" => &mut self.submit_all,
            "coop_taskrun" => &mut self.coop_taskrun,
            _ => panic!("{name} is not a set-up flag"),
        }
    }

    fn build(self, entries: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        // Four completions for each submission: multishot operations answer more often than they are submitted.
        builder.setup_clamp().setup_cqsize(entries.saturating_mul(4));
        if self.no_sqarray {
            builder.setup_no_sqarray();
        }
        if self.single_issuer {
            builder.setup_single_issuer();
        }
        if self.defer_taskrun {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        } else if self.coop_taskrun {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if self.submit_all {
            builder.setup_submit_all();
        }
        builder.build(entries)
    }
}

/// Makes a ring for the calling thread.
pub(super) fn make(config: &DriverConfig) -> io::Result<Made> {
    let mut capabilities = Capabilities::default();
    let (ring, flags) = make_ring(config, &mut capabilities)?;
    check_floor(&ring)?;
    report_flags(flags, config, &mut capabilities);
    let ring_index =
        optional(config, &mut capabilities, "registered_ring", REMEDY_KERNEL, || register_ring(&ring));
    let workers = config.kernel_workers_max;
    optional(config, &mut capabilities, "iowq_max_workers", "the kernel's own bound holds", || {
        ring.submitter().register_iowq_max_workers(&mut workers.clone())
    });
    let direct = config.direct_descriptors > 0
        && optional(config, &mut capabilities, "direct_descriptors", "use ordinary descriptors", || {
            ring.submitter().register_files_sparse(config.direct_descriptors)
        })
        .is_some();
    let no_iowait =
        optional(config, &mut capabilities, "no_iowait", "idle time may be accounted as iowait", || {
            if ring.params().is_feature_no_iowait() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
        })
        .is_some();
    Ok(Made { ring, ring_index, no_iowait, direct, capabilities })
}

const REMEDY_KERNEL: &str = "a newer kernel has it; every entry looks the descriptor up";
pub(super) const REMEDY_SWITCH: &str = "take it out of `DriverConfig::without`";

/// Tries one optional thing, and notes what came of it.
fn optional<R>(
    config: &DriverConfig,
    capabilities: &mut Capabilities,
    name: &'static str,
    remedy: &'static str,
    attempt: impl FnOnce() -> io::Result<R>,
) -> Option<R> {
    if config.without.contains(&name) {
        capabilities.refuse(name, "switched off", REMEDY_SWITCH);
        return None;
    }
    match attempt() {
        Ok(made) => {
            capabilities.grant(name);
            Some(made)
        }
        Err(error) => {
            capabilities.refuse(name, error, remedy);
            None
        }
    }
}

/// Finds the largest ring with the most flags that the kernel gives.
fn make_ring(config: &DriverConfig, capabilities: &mut Capabilities) -> io::Result<(IoUring, Flags)> {
    let wanted = config.ring_entries.clamp(1, 1 << 15).next_power_of_two();
    let is_off = config.without.contains(&"ring_entries");
    let mut entries = if is_off { wanted.min(RING_ENTRIES_MIN) } else { config.budget.ring_entries(wanted) };
    let mut flags = Flags::wanted(config);
    let mut patience = UNCHARGE_ROUNDS;
    loop {
        match flags.build(entries) {
            Ok(ring) => {
                if is_off {
                    capabilities.grant_part("ring_entries", "switched off", REMEDY_SWITCH);
                } else if entries < wanted {
                    capabilities.grant_part(
                        "ring_entries",
                        format!("{} has room for {entries} entries, not for {wanted}", memlock()),
                        "raise RLIMIT_MEMLOCK (`ulimit -l`); until then operations wait in the backlog sooner",
                    );
                } else {
                    capabilities.grant("ring_entries");
                }
                return Ok((ring, flags));
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL) if give_up_one(&mut flags, entries) => {}
                Some(libc::ENOMEM) if entries > RING_ENTRIES_MIN => entries /= 2,
                Some(libc::ENOMEM) if patience > 0 => {
                    patience -= 1;
                    std::thread::sleep(UNCHARGE_ROUND);
                }
                _ => return Err(unavailable(&error, entries)),
            },
        }
    }
}

/// Clears the flag whose absence makes the kernel accept the rest; failing that, the first that is still set.
fn give_up_one(flags: &mut Flags, entries: u32) -> bool {
    let set: Vec<&str> = FLAGS.into_iter().filter(|name| *flags.clone().get(name)).collect();
    let alone = set.iter().find(|name| {
        let mut fewer = *flags;
        *fewer.get(name) = false;
        fewer.defer_taskrun &= fewer.single_issuer;
        fewer.build(entries).is_ok()
    });
    let Some(name) = alone.or(set.first()) else { return false };
    *flags.get(name) = false;
    flags.defer_taskrun &= flags.single_issuer;
    true
}

fn report_flags(mut flags: Flags, config: &DriverConfig, capabilities: &mut Capabilities) {
    for name in FLAGS {
        match (*flags.get(name), name) {
            (true, _) => capabilities.grant(name),
            (false, _) if config.without.contains(&name) => {
                capabilities.refuse(name, "switched off", REMEDY_SWITCH);
            }
            (false, _) => capabilities.refuse(name, "this kernel does not know it", "a newer kernel has it"),
        }
    }
}

/// Whether the kernel has what nothing can stand in for: Linux 6.1, seen by an operation that came just before it.
fn check_floor(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe).is_ok();
    if probed && probe.is_supported(opcode::SendMsgZc::CODE) && ring.params().is_feature_ext_arg() {
        return Ok(());
    }
    let found = rustix::system::uname();
    Err(Unavailable {
        need: "io_uring of Linux 6.1 or later",
        found: format!("Linux {}", found.release().to_string_lossy()),
        remedy: "run a newer kernel",
    }
    .into_error(io::ErrorKind::Unsupported))
}

/// Says why there is no ring at all.
pub(super) fn unavailable(error: &io::Error, entries: u32) -> io::Error {
    let need = "an io_uring";
    let (found, remedy) = match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            ("a kernel without io_uring".to_owned(), "run Linux 6.1 or later with io_uring built in")
        }
        Some(libc::EPERM | libc::EACCES) => {
            let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            match switch.trim() {
                "1" | "2" => (
                    format!("kernel.io_uring_disabled = {}", switch.trim()),
                    "set it to 0, or join the group named by kernel.io_uring_group",
                ),
                _ => (
                    "io_uring_setup refused, as a seccomp filter does (containers often have one)".to_owned(),
                    "allow io_uring_setup, io_uring_enter and io_uring_register in the filter",
                ),
            }
        }
        Some(libc::ENOMEM) => (
            format!(
                "{} has no room for a ring of {entries} entries ({} KiB) beside what this user has locked already",
                memlock(),
                ring_bytes(entries) / 1024,
            ),
            "raise RLIMIT_MEMLOCK (`ulimit -l`), or run fewer workers",
        ),
        Some(libc::EMFILE | libc::ENFILE) => {
            ("no free descriptor for the ring".to_owned(), "raise RLIMIT_NOFILE (`ulimit -n`)")
        }
        _ => (format!("io_uring_setup failed: {error}"), "see io_uring_setup(2) for this error"),
    };
    Unavailable { need, found, remedy }.into_error(error.kind())
}

/// The limit on locked memory, as reports name it.
pub(super) fn memlock() -> String {
    match crate::os::memlock_limit() {
        Some(bytes) => format!("RLIMIT_MEMLOCK of {} KiB", bytes / 1024),
        None => "memory".to_owned(),
    }
}

/// The argument of the two registrations below: `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Puts the ring into the calling thread's table of registered rings, and gives its index there.
fn register_ring(ring: &IoUring) -> io::Result<u32> {
    let fd = u64::try_from(ring.as_raw_fd()).expect("an open descriptor is not negative");
    let mut update = RingUpdate { offset: u32::MAX, reserved: 0, data: fd };
    // SAFETY: the kernel reads and writes one `io_uring_rsrc_update`, which outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_RING_FDS, &raw mut update, 1)
    };
    if result == 1 { Ok(update.offset) } else { Err(io::Error::last_os_error()) }
}

/// Takes the ring out of the thread's table. A ring left there stays open until the thread ends.
pub(super) fn unregister_ring(ring: &IoUring, index: u32) {
    let update = RingUpdate { offset: index, reserved: 0, data: 0 };
    // SAFETY: the kernel reads one `io_uring_rsrc_update`, which outlives the call. On another thread than the one that
    // registered it the index is unknown or somebody else's; but a driver never leaves its thread.
    unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            UNREGISTER_RING_FDS,
            &raw const update,
            1,
        )
    };
}
