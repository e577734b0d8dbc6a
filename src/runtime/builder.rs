//! How a runtime is made: its settings, and the order in which they are looked at.
//!
//! A [`Builder`] is data, and nothing happens before [`Builder::build`]. That refuses what is out of bounds ([`InvalidSetting`]), asks the
//! machine for its processors, and gives each worker a seat. The rest is `Runtime::start`, most of it on the workers' own threads,
//! because a ring belongs to the thread that made it and memory to the node of the processor that first touched it:
//!
//! ```text
//! check ─▶ processors ─▶ seats ─▶ shares of the limits ─▶ each worker on its thread, pinned:  driver ─▶ pool ─▶ registered
//! ```
//!
//! What a user asks for is a wish where the machine may have less: a worker's share of a limit makes the pool or its chunks smaller
//! (`make_pool`), and the capability report says so. [`Builder::require`] turns the wish into a condition.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::placement::{Machine, Placement, seats};
use super::runtime::Runtime;
use super::stall::{Hook, StallConfig, StallReport};
use super::worker::BACKGROUND_PERCENT;
use super::worker_id::WORKERS_MAX;
use crate::io::buf::{Pool, PoolConfig};
use crate::io::driver::thread_pool::ThreadPoolConfig;
use crate::io::driver::{DriverConfig, DriverHandle};
use crate::os::{Affinity, Topology};

/// Below this, the scheduler of the operating system makes stalls out of nothing.
const STALL_THRESHOLD_MIN: Duration = Duration::from_millis(4);

/// Threads for blocking work at most: 4096 stacks are 8 GiB of address space, and more runnable threads than that are no pool
/// but a mistake.
const BLOCKING_THREADS_MAX: usize = 4096;

/// The smallest pool: that of the smallest arena.
const POOL_BYTES_MIN: usize = 64 * 1024;

/// Makes a [`Runtime`]. Every setting has a default; the defaults are one pinned worker for each CPU the process may use.
///
/// ```
/// let runtime = veloq::runtime::Builder::new().workers(1).pin(false).build()?;
/// assert_eq!(runtime.block_on(async { 6 * 7 }), 42);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) workers: Option<usize>,
    pub(super) placement: Placement,
    pub(super) budget: usize,
    pub(super) steal: bool,
    pub(super) background_percent: u32,
    pub(super) pool: PoolConfig,
    pub(super) driver: DriverConfig,
    pub(super) drain_patience: Duration,
    pub(super) spin: Duration,
    pub(super) thread_name: String,
    blocking: ThreadPoolConfig,
    pub(super) stall: StallConfig,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    /// A builder with the defaults.
    #[must_use]
    pub fn new() -> Builder {
        Builder {
            workers: None,
            placement: Placement::Spread,
            budget: 64,
            steal: true,
            background_percent: BACKGROUND_PERCENT,
            pool: PoolConfig::default(),
            driver: DriverConfig::default(),
            drain_patience: Duration::from_secs(5),
            spin: Duration::from_micros(20),
            thread_name: "veloq".to_owned(),
            blocking: ThreadPoolConfig::default(),
            stall: StallConfig::default(),
        }
    }

    /// How many workers there are, the calling thread included. By default one for each CPU that the process may use, or fewer if
    /// its cgroup's quota pays for fewer: with `cpu.max` at two and a half CPUs' time there are two.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Builder {
        self.workers = Some(workers);
        self
    }

    /// On which CPUs the workers run: each stays on one, as far from the others as can be, by default.
    ///
    /// The thread that calls `block_on` gets its own affinity back when that returns.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Builder {
        self.placement = placement;
        self
    }

    /// Short for the [`placement`](Self::placement)s [`Spread`](Placement::Spread) (`true`) and [`Unpinned`](Placement::Unpinned)
    /// (`false`).
    #[must_use]
    pub fn pin(self, pin: bool) -> Builder {
        self.placement(if pin { Placement::Spread } else { Placement::Unpinned })
    }

    /// Tasks polled between two looks at the driver; 64 by default. Fewer give a steadier latency, more a little more
    /// throughput.
    #[must_use]
    pub fn budget(mut self, polls: usize) -> Builder {
        self.budget = polls;
        self
    }

    /// Whether an idle worker takes tasks of [`spawn`](crate::spawn) and [`spawn_pinned`](crate::spawn_pinned) from workers
    /// that have not come to run them. On by default. Without it they run where they were placed, and wait there behind
    /// whatever is polled.
    #[must_use]
    pub fn steal(mut self, steal: bool) -> Builder {
        self.steal = steal;
        self
    }

    /// What [background](crate::task::Class) tasks may have of a worker's time while foreground tasks want it, in percent: 1 to
    /// 100, and 10 by default. Whatever nobody else wants is theirs as well.
    #[must_use]
    pub fn background_percent(mut self, percent: u32) -> Builder {
        self.background_percent = percent;
        self
    }

    /// Bytes of each worker's buffer pool at the start, and by which it grows: a power of two from 64 KiB to 1 GiB. 4 MiB by
    /// default. Less where a limit on memory leaves less room, which the capability report says
    /// ([`PoolConfig::bytes`](crate::io::buf::PoolConfig::bytes)).
    #[must_use]
    pub fn pool_bytes(mut self, bytes: usize) -> Builder {
        self.pool.bytes = bytes;
        self
    }

    /// All settings of the workers' buffer pools, their kind among them. Its bounds are checked by [`build`](Self::build).
    ///
    /// ```
    /// use veloq::io::buf::{PoolConfig, PoolKind};
    ///
    /// let mut packets = PoolConfig::default();
    /// packets.kind = PoolKind::Hybrid;
    /// let runtime = veloq::runtime::Builder::new().workers(1).pin(false).pool(packets).build()?;
    /// assert_eq!(runtime.block_on(async { veloq::alloc(1500).capacity() }), 1500);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn pool(mut self, config: PoolConfig) -> Builder {
        self.pool = config;
        self
    }

    /// Entries of each worker's submission ring; 256 by default.
    #[must_use]
    pub fn ring_entries(mut self, entries: u32) -> Builder {
        self.driver.ring_entries = entries;
        self
    }

    /// How long a busy worker that would sleep waits for more than one answer
    /// ([`DriverConfig::linger`](crate::io::driver::DriverConfig::linger)); not at all by default.
    #[must_use]
    pub fn linger(mut self, limit: Duration) -> Builder {
        self.driver.linger = limit;
        self
    }

    /// For how long a worker that has nothing to do looks at its doorbell before it sleeps, at most; 20 µs by default, and zero
    /// turns it off.
    ///
    /// It looks only for messages of other workers and threads, only if the last waits show that they mostly come within this
    /// time, and only if there is a CPU for each worker that nobody else uses. Waking a worker that sleeps takes some 60 µs, one
    /// that looks less than one; the price is CPU time ([`WorkerMetrics::spin_ns`](super::WorkerMetrics::spin_ns)).
    #[must_use]
    pub fn spin(mut self, limit: Duration) -> Builder {
        self.spin = limit;
        self
    }

    /// All settings of the drivers.
    #[must_use]
    pub fn driver(mut self, config: DriverConfig) -> Builder {
        self.driver = config;
        self
    }

    /// Insists on a feature of the kernel, or on a size ("ring_entries", "pool_bytes"), by its name in
    /// [`Capabilities`](crate::io::driver::Capabilities): where there is none of it, or less than was asked for, building fails.
    /// Without this the runtime takes what there is, and reports it.
    ///
    /// ```
    /// use veloq::runtime::Builder;
    ///
    /// match Builder::new().require("registered_buffers").build() {
    ///     Ok(runtime) => runtime.block_on(async { /* every buffer of the pool is known to the kernel */ }),
    ///     Err(error) => eprintln!("{error}"), // as: Veloq needs registered_buffers; found: ..; remedy: ..
    /// }
    /// ```
    #[must_use]
    pub fn require(mut self, feature: &'static str) -> Builder {
        self.driver.required.push(feature);
        self
    }

    /// How long a worker that ends waits for the kernel to give back what it has, and the runtime for blocking jobs that
    /// run and for a worker that is in a poll; 5 s by default each. What is left then is leaked and counted; a worker that is
    /// stuck is left to itself ([`Handle::stuck_workers`](super::Handle::stuck_workers)).
    #[must_use]
    pub fn drain_patience(mut self, patience: Duration) -> Builder {
        self.drain_patience = patience;
        self
    }

    /// Threads for blocking work at most ([`spawn_blocking`](crate::spawn_blocking), name lookups, listing directories); 64 by
    /// default. They start as they are needed.
    #[must_use]
    pub fn blocking_threads(mut self, max: usize) -> Builder {
        self.blocking.threads_max = max;
        self
    }

    /// Blocking jobs at most that wait for a thread; 4096 by default. What comes then is refused with a
    /// [`PoolRefused`](crate::task::PoolRefused).
    #[must_use]
    pub fn blocking_queue(mut self, max: usize) -> Builder {
        self.blocking.queue_max = max;
        self
    }

    /// How long a thread for blocking work stays with nothing to do; 10 s by default.
    #[must_use]
    pub fn blocking_idle(mut self, limit: Duration) -> Builder {
        self.blocking.idle = limit;
        self
    }

    /// Reports a worker that has been in one turn for longer than this: a poll takes too long, and everything else on that worker
    /// waits. Off by default, and then it costs nothing. A thread of the runtime looks at the workers four times per threshold; 100 ms
    /// is a good one.
    ///
    /// A report goes to [`on_stall`](Self::on_stall), to the counter [`stalls`](super::WorkerMetrics::stalls), and to `tracing` if the
    /// crate is built with that feature. The crate's feature `backtrace` gives it the functions that the worker is in.
    #[must_use]
    pub fn stall_threshold(mut self, threshold: Duration) -> Builder {
        self.stall.threshold = Some(threshold.max(STALL_THRESHOLD_MIN));
        self
    }

    /// What is done with the report of a stall. It is called on the watchdog's thread, while the stall lasts.
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    ///
    /// let (send, reports) = mpsc::channel();
    /// let runtime = veloq::runtime::Builder::new()
    ///     .workers(1)
    ///     .pin(false)
    ///     .stall_threshold(Duration::from_millis(20))
    ///     .on_stall(move |report| send.send(report.to_string()).expect("the test waits"))
    ///     .build()?;
    /// let report = runtime.block_on(async move { reports.recv().expect("this very wait is a stall") });
    /// assert!(report.starts_with("worker 0 has been in one turn for"), "{report}");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn on_stall(mut self, hook: impl Fn(&StallReport) + Send + Sync + 'static) -> Builder {
        self.stall.hook = Some(Hook::new(hook));
        self
    }

    /// The signal by which the watchdog asks a stalled thread where it is; `SIGURG` by default. Its handler stays in place; a signal that
    /// is not the watchdog's goes to the handler that was there when the first runtime was built. On Windows, where a thread is asked
    /// by suspending it, it means nothing.
    #[must_use]
    pub fn stall_signal(mut self, signal: i32) -> Builder {
        self.stall.signal = signal;
        self
    }

    /// Whether calls that would block a thread *silently* are refused instead; off by default. io_uring cannot do everything:
    /// names are resolved and directories are listed by threads, behind calls that look like any other. A strict
    /// runtime answers such a call with an error whose source, a [`PoolRefused::Strict`](crate::task::PoolRefused::Strict), names
    /// it. `spawn_blocking` is not silent, and stays allowed.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Builder {
        self.blocking.strict = strict;
        self
    }

    /// What the threads are called: the workers' with their number, as "veloq-1", and those for blocking work as
    /// "veloq-blocking-1"; "veloq" by default.
    #[must_use]
    pub fn thread_name(mut self, name: impl Into<String>) -> Builder {
        self.thread_name = name.into();
        self
    }

    /// Makes the runtime: starts the other workers' threads, and the calling thread's driver. Call
    /// [`Runtime::block_on`] on this same thread.
    ///
    /// # Errors
    ///
    /// `InvalidInput` with an [`InvalidSetting`] for a setting out of its bounds, or a
    /// [`PlacementError`](super::PlacementError) for a placement that this machine does not have. What the kernel said if a thread, a pool
    /// or a ring cannot be had; where it is io_uring itself, a worker's thread, or a feature that is [required](Self::require), the
    /// source is an [`Unavailable`](crate::io::driver::Unavailable) that names need, found and remedy.
    pub fn build(mut self) -> io::Result<Runtime> {
        self.check()?;
        let machine = Machine {
            topology: Topology::read(),
            allowed: Affinity::allowed()?,
            parallelism: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let seats = seats(&self.placement, self.workers, &machine)?;
        // Alone there is nobody to look out for; and with fewer CPUs than workers, whoever looks keeps another from its work.
        if !(2..=machine.parallelism).contains(&seats.len()) {
            self.spin = Duration::ZERO;
        }
        Runtime::start(&self, &seats)
    }

    /// The settings of the threads for blocking work.
    pub(super) fn blocking(&self) -> ThreadPoolConfig {
        ThreadPoolConfig { name: format!("{}-blocking", self.thread_name), ..self.blocking.clone() }
    }

    /// Makes a worker's pool, as large as asked for and as its share of the machine allows.
    pub(super) fn make_pool(&self, driver: &DriverHandle) -> io::Result<Pool> {
        const NAME: &str = "pool_bytes";
        let is_off = self.driver.without.contains(&NAME);
        let mut config = self.pool.clone();
        let DriverConfig { budget, ring_entries, .. } = &self.driver;
        let most = |config: &PoolConfig| config.bytes.saturating_mul(config.chunks_max);
        let mut smaller = None;
        if is_off {
            (config.bytes, config.chunks_max) = (POOL_BYTES_MIN, 1);
        } else {
            budget.fit_pool(&mut config.bytes, &mut config.chunks_max, POOL_BYTES_MIN);
            if most(&config) < most(&self.pool) {
                let (found, wanted) = (most(&config) / 1024, most(&self.pool) / 1024);
                smaller = Some((
                    format!(
                        "a quarter of the control group's memory has room for {found} KiB for each worker, not \
                         for {wanted}"
                    ),
                    "raise the group's memory limit; until then the heap gives what the pool cannot",
                ));
            }
            let wanted = config.bytes / 1024;
            if !self.driver.without.contains(&"registered_buffers") {
                budget.fit_chunks(&mut config.bytes, &mut config.chunks_max, *ring_entries);
            }
            let found = config.bytes / 1024;
            if smaller.is_none() && found < wanted {
                smaller = Some((
                    format!(
                        "a worker's share of RLIMIT_MEMLOCK has room for chunks of {found} KiB, not of {wanted}"
                    ),
                    "raise RLIMIT_MEMLOCK (`ulimit -l`); until then the heap gives larger buffers than a chunk",
                ));
            }
        }
        let pool = Pool::new(&config)?;
        driver.report(|capabilities| match smaller {
            _ if is_off => {
                capabilities.grant_part(NAME, "switched off", "take it out of `DriverConfig::without`");
            }
            Some((why, remedy)) => capabilities.grant_part(NAME, why, remedy),
            None => capabilities.grant(NAME),
        });
        Ok(pool)
    }

    fn check(&self) -> io::Result<()> {
        if self.thread_name.contains('\0') {
            let wrong = "`thread_name` holds a NUL, which no thread's name may";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
        }
        let listed = if let Placement::Cores(cores) = &self.placement { cores.len().max(1) } else { 1 };
        let checks = [
            ("workers", self.workers.unwrap_or(listed), 1, WORKERS_MAX),
            ("budget", self.budget, 1, 1 << 20),
            ("background_percent", self.background_percent as usize, 1, 100),
            ("ring_entries", self.driver.ring_entries as usize, 1, 1 << 15),
            ("blocking_threads", self.blocking.threads_max, 1, BLOCKING_THREADS_MAX),
            ("receive_buffers", usize::from(self.driver.receive_buffers), 0, 1 << 15),
            ("receive_buffer_bytes", self.driver.receive_buffer_bytes as usize, 1, 1 << 30),
            ("operations_max", self.driver.operations_max as usize, 16, u32::MAX as usize),
        ];
        for (name, found, least, most) in checks {
            if found < least || found > most {
                let wrong = InvalidSetting { name, found, least, most };
                return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
            }
        }
        Ok(())
    }
}

/// A setting of the [`Builder`] that is out of its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidSetting {
    /// Which one.
    pub name: &'static str,
    /// What it was set to.
    pub found: usize,
    /// The least it may be.
    pub least: usize,
    /// The most it may be.
    pub most: usize,
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InvalidSetting { name, found, least, most } = self;
        write!(f, "`{name}` is {found}, and may be from {least} to {most}")
    }
}

impl std::error::Error for InvalidSetting {}
