//! What a row measures: the processor time of the whole process, the time on the wall, and how much of the first was spent
//! waiting awake.
#![expect(unsafe_code, reason = "asks the kernel for processor time, and pins threads")]

use std::sync::Mutex;
use std::time::Instant;

/// What one run of a row came to.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Operations done.
    pub ops: u64,
    /// Processor time of all threads, user and system, those that the kernel runs for us among them.
    pub cpu_ns: u64,
    /// Time on the wall.
    pub wall_ns: u64,
    /// Part of `cpu_ns` that a runtime reports as spent spinning before it would sleep.
    pub spin_ns: u64,
}

/// A measurement that is under way.
#[derive(Debug)]
pub struct Started {
    spun_ns: u64,
    wall: Instant,
    cpu_ns: u64,
}

/// Asks a runtime what it has spent spinning so far.
type Spun = Box<dyn Fn() -> u64 + Send>;

/// The runtime to be asked, if it can tell.
static SPUN: Mutex<Option<Spun>> = Mutex::new(None);

/// Has `spun` asked at the start and at the end of the measurement.
pub fn spinning(spun: impl Fn() -> u64 + Send + 'static) {
    *SPUN.lock().expect("nobody panics with it") = Some(Box::new(spun));
}

/// What was spent spinning so far.
fn spun_ns() -> u64 {
    SPUN.lock().expect("nobody panics with it").as_ref().map_or(0, |spun| spun())
}

/// Starts to measure.
pub fn start() -> Started {
    Started { spun_ns: spun_ns(), wall: Instant::now(), cpu_ns: cpu_ns() }
}

impl Started {
    /// Ends the measurement of so many operations.
    pub fn stop(self, ops: u64) -> Sample {
        let cpu_ns = cpu_ns() - self.cpu_ns;
        let wall_ns = u64::try_from(self.wall.elapsed().as_nanos()).expect("a row takes less than 584 years");
        Sample { ops, cpu_ns, wall_ns, spin_ns: spun_ns() - self.spun_ns }
    }
}

impl Sample {
    /// The line by which a run tells its parent.
    pub fn print(self) {
        println!("{} {} {} {}", self.ops, self.cpu_ns, self.wall_ns, self.spin_ns);
    }

    /// Reads what `print` wrote.
    pub fn parse(line: &str) -> Option<Sample> {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let mut next = || fields.next()?.ok();
        Some(Sample { ops: next()?, cpu_ns: next()?, wall_ns: next()?, spin_ns: next()? })
    }
}

/// Processor time of this process so far.
fn cpu_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec for the call to fill.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) };
    assert_eq!(failed, 0, "every Linux has this clock");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Keeps the calling thread on one CPU: the `index`th of those that the process may use.
pub fn pin(index: usize) {
    // SAFETY: a set of CPUs is a plain bit field, for which zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of_val(&set);
    // SAFETY: `set` is of the size that is given.
    let allowed = *ALLOWED.get_or_init(|| {
        let mut all = set;
        // SAFETY: `all` is a set for the call to fill, of the size that is given.
        unsafe { libc::sched_getaffinity(0, size, &raw mut all) };
        all
    });
    // SAFETY: the index is below CPU_SETSIZE.
    let cpu =
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &allowed) }).nth(index);
    let cpu = cpu.expect("the rows of two threads need two CPUs");
    // SAFETY: as above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is of the size that is given.
    let failed = unsafe { libc::sched_setaffinity(0, size, &raw const set) };
    assert_eq!(failed, 0, "a thread may stay on a CPU that it may use");
}

/// The CPUs that the process might use before any thread was pinned.
static ALLOWED: std::sync::OnceLock<libc::cpu_set_t> = std::sync::OnceLock::new();
