//! On which CPU each worker runs.
//!
//! [`Placement`] is what the program wants. What it gets depends on the machine ([`Topology`]: what shares a core, a cache, a node), on the
//! CPUs that the process may use (its affinity mask, into which the kernel has worked the cgroup's cpuset), and on how much
//! of them: a cgroup may have a quota of so many CPUs' time. [`seats`] is a function of these, so it is tested with
//! machines nobody here has.
//!
//! **Number.** Where the program does not say how many workers there are, there is one for each CPU that it may use, but no more than the
//! quota pays for: workers beyond it would only be stopped by turns, each holding up who waits for it. The standard library
//! knows the quota ([`available_parallelism`](std::thread::available_parallelism)), rounded down. A list of cores is taken at its word.
//!
//! **Order.** Both orders use every CPU once before any is used again:
//!
//! ```text
//! spread:  node 0    node 1    node 0    node 1    ...   then the slower kind, then the second threads of cores
//!          cache 0   cache 0   cache 1   cache 1
//! packed:  core 0, core 0's second thread, core 1, ...   the whole of a cache, then the next; a whole node, then the next
//! ```
//!
//! Spread is the default: memory bandwidth and caches are shared by as few as can be, and a core's threads slow each other down.
//! Packed is for programs that leave the rest of the machine to others, or whose workers talk much.

use std::collections::HashMap;
use std::fmt;
use std::io;

use super::worker_id::WORKERS_MAX;
use crate::os::{Cpu, Topology};

/// Where workers run: a setting of the [`Builder`](super::Builder).
///
/// With more workers than CPUs, several share one.
///
/// ```
/// use veloq::runtime::{Builder, Placement};
///
/// let runtime = Builder::new().placement(Placement::Packed).workers(1).build()?;
/// let seat = runtime.handle().seat(veloq::WorkerId::new(0)).expect("it is pinned");
/// println!("worker 0 runs on CPU {} of node {}", seat.cpu, seat.node);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// As far from each other as can be: over nodes, caches and cores before a core gets a second worker. The default.
    #[default]
    Spread,
    /// As close to each other as can be: a core's threads, then a cache's cores, then a node's caches.
    Packed,
    /// On these CPUs, in this order: worker 0 on the first. As many workers as CPUs, unless set otherwise.
    Cores(Vec<usize>),
    /// Spread over the CPUs of one NUMA node.
    Node(usize),
    /// Wherever the kernel puts them, from one moment to the next.
    Unpinned,
}

/// The CPU that a worker is pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seat {
    /// Its number, as affinity masks count.
    pub cpu: usize,
    /// Its NUMA node; 0 on a machine without.
    pub node: usize,
}

/// A [`Placement`] that this machine, or the part of it that the process may use, does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlacementError {
    /// A list of cores without any.
    NoCores,
    /// A CPU that the process may not use, or that does not run.
    CpuNotAllowed {
        /// Which.
        cpu: usize,
        /// Those that it may use.
        allowed: Vec<usize>,
    },
    /// A node with no CPU that the process may use; there may be no such node.
    NodeNotAllowed {
        /// Which.
        node: usize,
        /// Those that have one.
        allowed: Vec<usize>,
    },
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlacementError::NoCores => {
                write!(f, "the list of cores is empty; name at least one, or choose another placement")
            }
            PlacementError::CpuNotAllowed { cpu, allowed } => write!(
                f,
                "this process may not use CPU {cpu}; it may use {allowed:?} (see the affinity mask and the cpuset)"
            ),
            PlacementError::NodeNotAllowed { node, allowed } => write!(
                f,
                "this process may use no CPU of node {node}; it may use some of the nodes {allowed:?}"
            ),
        }
    }
}

impl std::error::Error for PlacementError {}

impl From<PlacementError> for io::Error {
    fn from(error: PlacementError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// What there is to be had.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) topology: Topology,
    /// The CPUs that the process may use.
    pub(super) allowed: Vec<usize>,
    /// How many of them at once.
    pub(super) parallelism: usize,
}

/// Where each worker runs: one entry for each, `None` where it is not pinned. `workers` if the program says how many.
///
/// # Errors
///
/// If the machine has no such place.
pub(super) fn seats(
    placement: &Placement,
    workers: Option<usize>,
    machine: &Machine,
) -> Result<Vec<Option<Seat>>, PlacementError> {
    let cpus = machine.cpus();
    let chosen = match placement {
        Placement::Spread => spread(cpus),
        Placement::Packed => packed(cpus),
        Placement::Cores(list) => listed(list, &cpus)?,
        Placement::Node(node) => spread(of_node(*node, cpus)?),
        Placement::Unpinned => Vec::new(),
    };
    let count = workers.unwrap_or(match placement {
        Placement::Cores(list) => list.len(),
        Placement::Unpinned => machine.parallelism,
        _ => chosen.len().min(machine.parallelism),
    });
    let seat = |cpu: &Cpu| Seat { cpu: cpu.number, node: cpu.node };
    if chosen.is_empty() {
        return Ok(vec![None; count.min(WORKERS_MAX)]);
    }
    Ok(chosen.iter().map(|cpu| Some(seat(cpu))).cycle().take(count.min(WORKERS_MAX)).collect())
}

impl Machine {
    /// The CPUs that the process may use, in order of their numbers. Of one that `/sys` does not show nothing but its number is known.
    fn cpus(&self) -> Vec<Cpu> {
        let known: HashMap<usize, Cpu> = self.topology.0.iter().map(|cpu| (cpu.number, *cpu)).collect();
        let flat = |number| Cpu { number, node: 0, cache: 0, core: number, slow: false };
        self.allowed
            .iter()
            .map(|number| known.get(number).copied().unwrap_or_else(|| flat(*number)))
            .collect()
    }
}

/// Cores before their second threads, the faster kind before the slower, and among those each cache and each node in turn.
fn spread(mut cpus: Vec<Cpu>) -> Vec<Cpu> {
    /// Says, for each, how many came before it with the same key.
    fn count<K: std::hash::Hash + Eq>(seen: &mut HashMap<K, usize>, key: K) -> usize {
        let count = seen.entry(key).or_default();
        *count += 1;
        *count - 1
    }
    let (mut threads, mut peers, mut caches) = (HashMap::new(), HashMap::new(), HashMap::new());
    // What several nodes share is a cache of each: so is the one that stands for all of them where a machine tells of nodes alone.
    let cache = |cpu: &Cpu| (cpu.node, cpu.cache);
    // Which of its node's caches each is, in order of their first CPUs.
    let mut places = HashMap::new();
    for cpu in &cpus {
        places.entry(cache(cpu)).or_insert_with(|| count(&mut caches, cpu.node));
    }
    cpus.sort_by_cached_key(|cpu| {
        let thread = count(&mut threads, cpu.core);
        let peer = count(&mut peers, (thread, cpu.slow, cache(cpu)));
        (thread, cpu.slow, peer, places[&cache(cpu)], cpu.node, cpu.number)
    });
    cpus
}

/// A core's threads, a cache's cores, a node's caches; the faster kind first within a node.
fn packed(mut cpus: Vec<Cpu>) -> Vec<Cpu> {
    cpus.sort_by_key(|cpu| (cpu.node, cpu.slow, cpu.cache, cpu.core, cpu.number));
    cpus
}

fn listed(list: &[usize], cpus: &[Cpu]) -> Result<Vec<Cpu>, PlacementError> {
    if list.is_empty() {
        return Err(PlacementError::NoCores);
    }
    let find = |wanted: &usize| {
        cpus.iter().find(|cpu| cpu.number == *wanted).copied().ok_or_else(|| PlacementError::CpuNotAllowed {
            cpu: *wanted,
            allowed: cpus.iter().map(|cpu| cpu.number).collect(),
        })
    };
    list.iter().map(find).collect()
}

fn of_node(node: usize, cpus: Vec<Cpu>) -> Result<Vec<Cpu>, PlacementError> {
    let mut allowed: Vec<usize> = cpus.iter().map(|cpu| cpu.node).collect();
    let of_node: Vec<Cpu> = cpus.into_iter().filter(|cpu| cpu.node == node).collect();
    if of_node.is_empty() {
        allowed.sort_unstable();
        allowed.dedup();
        return Err(PlacementError::NodeNotAllowed { node, allowed });
    }
    Ok(of_node)
}

#[cfg(all(test, target_os = "linux"))]
mod captures;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::os::{captured, machines};

    /// All of a machine, or so many CPUs' time of it.
    fn machine(tree: &str, parallelism: usize) -> Machine {
        let topology = captured(tree);
        let allowed = topology.0.iter().map(|cpu| cpu.number).collect();
        Machine { topology, allowed, parallelism }
    }

    fn cpus(placement: Placement, workers: Option<usize>, machine: &Machine) -> Vec<usize> {
        let seats = seats(&placement, workers, machine).expect("it can be had");
        seats.into_iter().map(|seat| seat.expect("it is pinned").cpu).collect()
    }

    // Two workers on one core while another core is free halve each other; two on one node while another is free share its
    // memory's bandwidth.
    #[test]
    fn spread_takes_nodes_caches_and_cores_before_second_threads() {
        let all = |tree| cpus(Placement::Spread, None, &machine(tree, 64));
        assert_eq!(all(machines::VIRTUAL), [0, 1]);
        assert_eq!(all(machines::DESKTOP), [0, 1, 2, 3, 4, 5, 6, 7]);
        // Even CPUs are on one socket, odd ones on the other; 8 to 15 are second threads.
        assert_eq!(all(machines::SOCKETS), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        // Four caches of two cores each: one core of each, then the other; then the second threads likewise.
        assert_eq!(all(machines::CCX), [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]);
        // CPU 7 has lost its sibling and is a first thread; 4 is core 0's second.
        assert_eq!(all(machines::OFFLINE), [0, 1, 7, 4]);
        // The fast cores, the slow ones, the fast ones' second threads.
        assert_eq!(all(machines::HYBRID), [0, 2, 4, 5, 6, 7, 1, 3]);
        assert_eq!(all(machines::BIG_LITTLE), [4, 5, 0, 1, 2, 3]);
    }

    // Virtual machines often have nodes and tell of no caches, or of one for all; all workers of a few would share one node's memory.
    #[test]
    fn spread_takes_nodes_in_turn_whatever_is_said_of_caches() {
        let nodes = "system/cpu/online:0-7\nsystem/node/online:0,2\nsystem/node/node0/cpulist:0-3\n\
                     system/node/node2/cpulist:4-7\n";
        let mut one_cache = nodes.to_owned();
        for cpu in 0..8 {
            let cache = format!("system/cpu/cpu{cpu}/cache/index3");
            one_cache += &format!("{cache}/level:3\n{cache}/type:Unified\n{cache}/shared_cpu_list:0-7\n");
        }
        for tree in [nodes, &one_cache] {
            assert_eq!(cpus(Placement::Spread, None, &machine(tree, 64)), [0, 4, 1, 5, 2, 6, 3, 7]);
        }
    }

    #[test]
    fn packed_fills_a_core_then_a_cache_then_a_node() {
        let all = |tree| cpus(Placement::Packed, None, &machine(tree, 64));
        assert_eq!(all(machines::DESKTOP), [0, 4, 1, 5, 2, 6, 3, 7]);
        assert_eq!(all(machines::SOCKETS), [0, 8, 2, 10, 4, 12, 6, 14, 1, 9, 3, 11, 5, 13, 7, 15]);
        assert_eq!(all(machines::CCX), [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]);
        assert_eq!(all(machines::OFFLINE), [0, 4, 1, 7]);
        assert_eq!(all(machines::HYBRID), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_nodes_workers_stay_on_it_and_know_it() {
        let sockets = machine(machines::SOCKETS, 64);
        assert_eq!(cpus(Placement::Node(1), None, &sockets), [1, 3, 5, 7, 9, 11, 13, 15]);
        let seats = seats(&Placement::Node(1), None, &sockets).expect("it has such a node");
        assert!(seats.iter().all(|seat| seat.expect("it is pinned").node == 1));
    }

    // More workers than the quota pays for are stopped by turns in the middle of whatever they do.
    #[test]
    fn a_quota_makes_fewer_workers_but_no_list_shorter() {
        let container = machine(machines::SOCKETS, 3);
        assert_eq!(cpus(Placement::Spread, None, &container), [0, 1, 2]);
        assert_eq!(cpus(Placement::Packed, None, &container), [0, 8, 2]);
        assert_eq!(cpus(Placement::Node(1), None, &container), [1, 3, 5]);
        assert_eq!(seats(&Placement::Unpinned, None, &container), Ok(vec![None; 3]));
        assert_eq!(cpus(Placement::Cores(vec![9, 2, 4, 7]), None, &container), [9, 2, 4, 7]);
        assert_eq!(cpus(Placement::Spread, Some(5), &container), [0, 1, 2, 3, 4]);
    }

    // A container sees the whole machine in `/sys`, and may use a part of it.
    #[test]
    fn only_allowed_cpus_are_taken_whatever_sys_shows() {
        let container = Machine { allowed: vec![3, 9, 10, 11], ..machine(machines::SOCKETS, 4) };
        // 3 and 11 are one core; 10 is alone on its node.
        assert_eq!(cpus(Placement::Spread, None, &container), [10, 3, 9, 11]);
        assert_eq!(cpus(Placement::Packed, None, &container), [10, 9, 3, 11]);
        let hidden = Machine { topology: Topology::default(), ..container };
        assert_eq!(cpus(Placement::Spread, None, &hidden), [3, 9, 10, 11]);
        assert_eq!(cpus(Placement::Packed, Some(2), &hidden), [3, 9]);
    }

    #[test]
    fn more_workers_than_cpus_share_them() {
        let desktop = machine(machines::VIRTUAL, 2);
        assert_eq!(cpus(Placement::Spread, Some(5), &desktop), [0, 1, 0, 1, 0]);
        assert_eq!(cpus(Placement::Cores(vec![1]), Some(3), &desktop), [1, 1, 1]);
        assert_eq!(seats(&Placement::Unpinned, Some(5), &desktop), Ok(vec![None; 5]));
    }

    // A worker that silently runs elsewhere than was asked for is found out by who measures it, months later.
    #[test]
    fn what_cannot_be_had_is_said() {
        let container = Machine { allowed: vec![1, 3], ..machine(machines::SOCKETS, 2) };
        let refused = |placement| seats(&placement, None, &container).expect_err("it cannot be had");
        assert_eq!(refused(Placement::Cores(vec![])), PlacementError::NoCores);
        let allowed = vec![1, 3];
        assert_eq!(
            refused(Placement::Cores(vec![1, 2])),
            PlacementError::CpuNotAllowed { cpu: 2, allowed: allowed.clone() }
        );
        assert_eq!(
            refused(Placement::Cores(vec![99])),
            PlacementError::CpuNotAllowed { cpu: 99, allowed: allowed.clone() }
        );
        // Node 0 has CPUs, but none for us; node 2 is memory only; there is no node 7.
        for node in [0, 2, 7] {
            assert_eq!(
                refused(Placement::Node(node)),
                PlacementError::NodeNotAllowed { node, allowed: vec![1] }
            );
        }
        let error: io::Error = refused(Placement::Node(7)).into();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("node 7"), "{error}");
    }
}
