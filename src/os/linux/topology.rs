//! Which processors there are, and what they share.
//!
//! The kernel tells it in files below `/sys/devices`, one value each:
//!
//! | file | says |
//! |---|---|
//! | `system/cpu/online` | the CPUs that run |
//! | `system/cpu/cpuN/topology/core_cpus_list` | the threads of N's core, N among them (older kernels: `thread_siblings_list`) |
//! | `system/cpu/cpuN/cache/indexM/level`, `type`, `shared_cpu_list` | its caches, and who shares each: the last has the highest level |
//! | `system/node/online`, `system/node/nodeN/cpulist` | the NUMA nodes, and each one's CPUs; perhaps none |
//! | `cpu_atom/cpus` | the slower kind, where Intel builds two |
//! | `system/cpu/cpuN/cpu_capacity` | how fast N is beside the fastest, where the kernel knows (arm64) |
//!
//! None of them is there on every machine: containers hide some, kernels without NUMA have no nodes, virtual machines no caches.
//! What is not said is taken to be alike: each CPU a core of its own, one cache and one node for all. So there is no error here;
//! a machine that tells nothing is treated as a flat one.

use std::collections::BTreeMap;
use std::path::Path;

use crate::os::{Cpu, Topology};

impl Topology {
    /// What the kernel says now.
    pub(crate) fn read() -> Topology {
        let devices = Path::new("/sys/devices");
        Topology::parse(|file| std::fs::read_to_string(devices.join(file)).ok())
    }

    /// What the files say that `read` gives, by their paths below `/sys/devices`.
    pub(crate) fn parse(read: impl Fn(&str) -> Option<String>) -> Topology {
        let list = |file: &str| read(file).as_deref().and_then(parse_list);
        let online = list("system/cpu/online").unwrap_or_default();
        let mut nodes = BTreeMap::new();
        for node in list("system/node/online").unwrap_or_default() {
            // A node without CPUs has an empty list: it is memory only.
            for cpu in list(&format!("system/node/node{node}/cpulist")).unwrap_or_default() {
                nodes.insert(cpu, node);
            }
        }
        let capacity = |cpu: usize| {
            read(&format!("system/cpu/cpu{cpu}/cpu_capacity"))
                .and_then(|text| text.trim().parse::<u32>().ok())
        };
        let capacities: BTreeMap<usize, u32> =
            online.iter().filter_map(|cpu| Some((*cpu, capacity(*cpu)?))).collect();
        let fastest = capacities.values().max().copied();
        let atoms = list("cpu_atom/cpus").unwrap_or_default();
        let cores = groups(&online, |cpu| {
            list(&format!("system/cpu/cpu{cpu}/topology/core_cpus_list"))
                .or_else(|| list(&format!("system/cpu/cpu{cpu}/topology/thread_siblings_list")))
        });
        // By its level: the third index is the second level's instructions on s390, and many a machine has no third level.
        let caches = groups(&online, |cpu| {
            let cache = |index| format!("system/cpu/cpu{cpu}/cache/index{index}");
            let level = |index: &usize| read(&format!("{}/level", cache(*index)))?.trim().parse::<u32>().ok();
            let for_data = |index: &usize| {
                read(&format!("{}/type", cache(*index))).is_some_and(|kind| kind.trim() != "Instruction")
            };
            let last = (0..CACHES_MAX).filter(for_data).max_by_key(level)?;
            list(&format!("{}/shared_cpu_list", cache(last)))
        });
        let cpus = online.iter().map(|number| Cpu {
            number: *number,
            node: nodes.get(number).copied().unwrap_or(0),
            cache: caches.get(number).copied().unwrap_or(online[0]),
            core: cores.get(number).copied().unwrap_or(*number),
            slow: atoms.contains(number) || capacities.get(number).is_some_and(|own| Some(*own) < fastest),
        });
        Topology(cpus.collect())
    }
}

/// How many caches of a CPU are looked at: four levels, of which two may have one for data and one for instructions, and two more.
const CACHES_MAX: usize = 8;

/// For each CPU the first of its group, where `members` knows the group. Members are asked once for each group.
fn groups(online: &[usize], members: impl Fn(usize) -> Option<Vec<usize>>) -> BTreeMap<usize, usize> {
    let mut firsts = BTreeMap::new();
    for cpu in online {
        if firsts.contains_key(cpu) {
            continue;
        }
        for member in members(*cpu).unwrap_or_default() {
            firsts.insert(member, *cpu);
        }
    }
    firsts
}

/// Reads "0-3,8": a list as the kernel writes them. `None` if it is none.
pub(crate) fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        numbers.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

/// A machine for tests, from a file of `path:content` lines as `grep -r . /sys/devices` prints them, its paths from there on.
#[cfg(test)]
pub(crate) fn captured(tree: &str) -> Topology {
    let files: BTreeMap<&str, &str> = tree.lines().filter_map(|line| line.split_once(':')).collect();
    Topology::parse(|file| files.get(file).map(|content| (*content).to_owned()))
}

/// Machines for tests.
#[cfg(test)]
pub(crate) mod machines {
    pub(crate) const VIRTUAL: &str = include_str!("testdata/virtual-2.txt");
    /// All that a real machine says, most of which nobody here asks for; the others are written down to what is asked for.
    pub(crate) const CAPTURED: &str = include_str!("testdata/captured-2.txt");
    pub(crate) const DESKTOP: &str = include_str!("testdata/smt-4c8t.txt");
    pub(crate) const SOCKETS: &str = include_str!("testdata/2-sockets-8c16t.txt");
    pub(crate) const CCX: &str = include_str!("testdata/ccx-4x2c.txt");
    pub(crate) const OFFLINE: &str = include_str!("testdata/offline-siblings.txt");
    pub(crate) const HYBRID: &str = include_str!("testdata/hybrid-2p4e.txt");
    pub(crate) const BIG_LITTLE: &str = include_str!("testdata/big-little-arm64.txt");
}

#[cfg(test)]
mod tests {
    use super::machines::*;
    use super::*;

    /// Number, node, cache, core.
    fn told(tree: &str) -> Vec<(usize, usize, usize, usize)> {
        captured(tree).0.iter().map(|cpu| (cpu.number, cpu.node, cpu.cache, cpu.core)).collect()
    }

    // The list is all there is to it, and an off-by-one would pin a worker to a CPU that is not there.
    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_list("5"), Some(vec![5]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("0-x"), None);
        assert_eq!(parse_list("(null)"), None);
    }

    #[test]
    fn a_virtual_machine_has_cores_without_siblings() {
        assert_eq!(told(VIRTUAL), [(0, 0, 0, 0), (1, 0, 0, 1)]);
    }

    // A path that no kernel has, or a line as no kernel writes it, would read well from trees that were written for the test.
    #[test]
    fn a_real_machine_is_read_as_it_was_captured() {
        assert!(CAPTURED.lines().count() > 2 * VIRTUAL.lines().count(), "it is whole");
        assert_eq!(told(CAPTURED), told(VIRTUAL), "two CPUs of one socket, which share its cache");
    }

    #[test]
    fn siblings_share_a_core() {
        let expected: Vec<_> = (0..8).map(|cpu| (cpu, 0, 0, cpu % 4)).collect();
        assert_eq!(told(DESKTOP), expected);
    }

    // This one numbers its CPUs by turns, as many servers do: even ones on one socket, odd ones on the other.
    #[test]
    fn two_sockets_are_two_nodes() {
        let expected: Vec<_> = (0..16).map(|cpu| (cpu, cpu % 2, cpu % 2, cpu % 8)).collect();
        assert_eq!(told(SOCKETS), expected);
    }

    #[test]
    fn caches_divide_a_node() {
        let expected: Vec<_> = (0..16).map(|cpu| (cpu, 0, cpu % 8 / 2 * 2, cpu % 8)).collect();
        assert_eq!(told(CCX), expected);
    }

    // A cache found by its place in the list would be another one on machines without a third level, where neighbours share the second;
    // with several kinds of cores some may have one.
    #[test]
    fn the_last_cache_is_the_one_of_the_highest_level() {
        let mut tree = String::from("system/cpu/online:0-5\n");
        let mut cache = |cpu: usize, index: usize, level: usize, kind: &str, shared: &str| {
            let place = format!("system/cpu/cpu{cpu}/cache/index{index}");
            tree +=
                &format!("{place}/level:{level}\n{place}/type:{kind}\n{place}/shared_cpu_list:{shared}\n");
        };
        for cpu in 0..6 {
            let own = &cpu.to_string();
            cache(cpu, 0, 1, "Data", own);
            cache(cpu, 1, 1, "Instruction", own);
            match cpu {
                0 | 1 => {
                    cache(cpu, 2, 2, "Unified", own);
                    cache(cpu, 3, 3, "Unified", "0-1");
                }
                2 | 3 => cache(cpu, 2, 2, "Unified", "2-3"),
                _ => {
                    cache(cpu, 2, 2, "Data", "4-5");
                    cache(cpu, 3, 2, "Instruction", own);
                }
            }
        }
        let caches: Vec<_> = captured(&tree).0.iter().map(|cpu| cpu.cache).collect();
        assert_eq!(caches, [0, 0, 2, 2, 4, 4]);
    }

    // What is offline has a folder, but no topology in it; its sibling must not wait for it.
    #[test]
    fn cpus_that_are_offline_are_not_there() {
        assert_eq!(told(OFFLINE), [(0, 0, 0, 0), (1, 0, 0, 1), (4, 0, 0, 0), (7, 0, 0, 7)]);
    }

    #[test]
    fn the_slower_kind_is_known() {
        let slow = |tree| captured(tree).0.iter().map(|cpu| cpu.slow).collect::<Vec<_>>();
        assert_eq!(slow(HYBRID), [false, false, false, false, true, true, true, true]);
        assert_eq!(slow(BIG_LITTLE), [true, true, true, true, false, false]);
        assert!(!slow(SOCKETS).contains(&true));
    }

    // A container may show next to nothing. That is no reason not to start.
    #[test]
    fn a_machine_that_tells_nothing_is_flat() {
        assert_eq!(told("system/cpu/online:0-2"), [(0, 0, 0, 0), (1, 0, 0, 1), (2, 0, 0, 2)]);
        assert_eq!(told(""), []);
    }

    // The captures are of other machines; this is the one that runs the test.
    #[test]
    fn this_machine_can_be_read() {
        let Topology(cpus) = Topology::read();
        let allowed = super::super::Affinity::of_this_thread().expect("every thread has one").cpus();
        assert!(
            allowed.iter().all(|cpu| cpus.iter().any(|told| told.number == *cpu)),
            "{allowed:?} of {cpus:?}"
        );
    }
}
