//! Which processors there are, and what they share.
//!
//! `GetLogicalProcessorInformationEx` tells it in records of different lengths, one after the other:
//!
//! | record | says |
//! |---|---|
//! | a core | its processors, and its class of efficiency: a higher one is faster |
//! | a cache | its level, and its processors; the one of the highest level is the last |
//! | a NUMA node | its number and its processors |
//!
//! What is not said is taken to be alike: each processor a core of its own, one cache and one node for all. A system that tells nothing
//! is treated as a flat one, with the processors that the process may use.
#![expect(unsafe_code, reason = "reads records of different lengths that the system wrote")]

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::ptr;

use windows_sys::Win32::System::SystemInformation::{
    CACHE_RELATIONSHIP, GROUP_AFFINITY, GetLogicalProcessorInformationEx, NUMA_NODE_RELATIONSHIP,
    PROCESSOR_RELATIONSHIP, RelationAll, RelationCache as CACHE, RelationNumaNode as NUMA_NODE,
    RelationProcessorCore as CORE, SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX,
};

use super::affinity::{self, Affinity};
use crate::os::{Cpu, Topology};

/// What one record says of some CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Record {
    Core { cpus: Vec<usize>, class: u8 },
    Cache { cpus: Vec<usize>, level: u8 },
    Node { cpus: Vec<usize>, number: usize },
}

impl Topology {
    /// What the system says now.
    pub(crate) fn read() -> Topology {
        let records = records(&ask());
        let allowed = || Affinity::allowed().unwrap_or_default();
        let flat = || allowed().into_iter().map(|cpu| Record::Core { cpus: vec![cpu], class: 0 }).collect();
        Topology::of(&if records.is_empty() { flat() } else { records })
    }

    fn of(records: &[Record]) -> Topology {
        let mut nodes = BTreeMap::new();
        let mut caches = BTreeMap::new();
        let mut cores = BTreeMap::new();
        let mut classes = BTreeMap::new();
        for record in records {
            match record {
                Record::Core { cpus, class } => cpus.iter().for_each(|cpu| {
                    cores.insert(*cpu, cpus[0]);
                    classes.insert(*cpu, *class);
                }),
                Record::Cache { cpus, level } => cpus.iter().for_each(|cpu| {
                    let last = caches.entry(*cpu).or_insert((*level, cpus[0]));
                    *last = (*last).max((*level, cpus[0]));
                }),
                Record::Node { cpus, number } => cpus.iter().for_each(|cpu| {
                    nodes.insert(*cpu, *number);
                }),
            }
        }
        let fastest = classes.values().max().copied();
        let first = cores.keys().next().copied().unwrap_or(0);
        let cpus = cores.iter().map(|(number, core)| Cpu {
            number: *number,
            node: nodes.get(number).copied().unwrap_or(0),
            cache: caches.get(number).map_or(first, |(_, cache)| *cache),
            core: *core,
            slow: classes.get(number).copied() < fastest,
        });
        Topology(cpus.collect())
    }
}

/// The system's records, or nothing where it tells none. Words, for the records' alignment.
fn ask() -> Vec<u64> {
    let mut bytes = 0;
    // Twice is enough unless a processor is added in between; then the machine is taken to be flat.
    // SAFETY: with no room the system writes nothing but how much it wants.
    unsafe { GetLogicalProcessorInformationEx(RelationAll, ptr::null_mut(), &raw mut bytes) };
    let mut words = vec![0u64; usize::try_from(bytes).unwrap_or(0).div_ceil(8)];
    // SAFETY: there is room for so many bytes, aligned as the records are.
    let told = unsafe {
        GetLogicalProcessorInformationEx(
            RelationAll,
            words.as_mut_ptr().cast::<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX>(),
            &raw mut bytes,
        )
    };
    words.truncate(if told == 0 { 0 } else { usize::try_from(bytes).unwrap_or(0) / 8 });
    words
}

/// Reads the records one after the other; each begins with its kind and its length, and ends with masks as many as it says.
fn records(words: &[u64]) -> Vec<Record> {
    const HEAD: usize = offset_of!(SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, Anonymous);
    let bytes = words.as_ptr().cast::<u8>();
    let len = words.len() * 8;
    /// Reads a value of plain data at `at`, if it lies before `end`.
    fn read<T: Copy>(bytes: *const u8, at: usize, end: usize) -> Option<T> {
        // SAFETY: the range lies within the buffer that the caller's `end` ends; every pattern of bits is a `T`, which is a structure
        // of numbers in all uses below.
        (at + size_of::<T>() <= end).then(|| unsafe { bytes.add(at).cast::<T>().read_unaligned() })
    }
    let mut records = Vec::new();
    let mut at = 0;
    while let Some([kind, size]) = read::<[u32; 2]>(bytes, at, len) {
        let (kind, size) = (kind.cast_signed(), usize::try_from(size).unwrap_or(0));
        let end = at + size;
        if size < HEAD || end > len {
            break;
        }
        let body = at + HEAD;
        // Older systems say of some kinds 0 masks and mean 1.
        let masks = |offset: usize, count: u16| -> Vec<usize> {
            let masks = (0..usize::from(count.max(1))).map_while(|index| {
                read::<GROUP_AFFINITY>(bytes, body + offset + index * size_of::<GROUP_AFFINITY>(), end)
            });
            let mut cpus: Vec<usize> = masks.flat_map(|mask| affinity::cpus(mask.Group, mask.Mask)).collect();
            cpus.sort_unstable();
            cpus
        };
        let record = match kind {
            CORE => read::<[u8; 2]>(bytes, body, end).map(|[_flags, class]| {
                let count = read(bytes, body + offset_of!(PROCESSOR_RELATIONSHIP, GroupCount), end);
                Record::Core {
                    cpus: masks(offset_of!(PROCESSOR_RELATIONSHIP, GroupMask), count.unwrap_or(1)),
                    class,
                }
            }),
            CACHE => read::<u8>(bytes, body, end).map(|level| {
                let count = read(bytes, body + offset_of!(CACHE_RELATIONSHIP, GroupCount), end);
                Record::Cache {
                    cpus: masks(offset_of!(CACHE_RELATIONSHIP, Anonymous), count.unwrap_or(1)),
                    level,
                }
            }),
            NUMA_NODE => read::<u32>(bytes, body, end).map(|number| {
                let count = read(bytes, body + offset_of!(NUMA_NODE_RELATIONSHIP, GroupCount), end);
                let cpus = masks(offset_of!(NUMA_NODE_RELATIONSHIP, Anonymous), count.unwrap_or(1));
                Record::Node { cpus, number: usize::try_from(number).unwrap_or(0) }
            }),
            _ => None,
        };
        let says_something = |record: &Record| match record {
            Record::Core { cpus, .. } | Record::Cache { cpus, .. } | Record::Node { cpus, .. } => {
                !cpus.is_empty()
            }
        };
        records.extend(record.filter(says_something));
        at = end;
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as the system writes it: `head` are the bytes before the masks.
    fn record(kind: i32, head: &[u8], masks: &[(u16, usize)]) -> Vec<u64> {
        let mut bytes = head.to_vec();
        for (group, mask) in masks {
            bytes.extend_from_slice(&mask.to_ne_bytes());
            bytes.extend_from_slice(&group.to_ne_bytes());
            bytes.extend_from_slice(&[0; 6]);
        }
        let size = u32::try_from(bytes.len() + 8).expect("it is small");
        let mut words = vec![u64::from(kind.cast_unsigned()) | u64::from(size) << 32];
        words.extend(
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))),
        );
        words
    }

    fn core(class: u8, group: u16, mask: usize) -> Vec<u64> {
        let mut head = [0; 24];
        (head[1], head[22]) = (class, 1);
        record(CORE, &head, &[(group, mask)])
    }

    fn cache(level: u8, group: u16, mask: usize) -> Vec<u64> {
        let mut head = [0; 32];
        (head[0], head[30]) = (level, 1);
        record(CACHE, &head, &[(group, mask)])
    }

    fn node(number: u8, masks: &[(u16, usize)]) -> Vec<u64> {
        let mut head = [0; 24];
        (head[0], head[22]) = (number, u8::try_from(masks.len()).expect("few"));
        record(NUMA_NODE, &head, masks)
    }

    // An offset that is off by two, or a group that is lost, pins workers to processors that are not there.
    #[test]
    fn two_groups_with_two_threads_a_core_are_read() {
        let words = [
            core(0, 0, 0b0011),
            core(0, 0, 0b1100),
            core(0, 1, 0b0011),
            cache(2, 0, 0b0011),
            cache(3, 0, 0b1111),
            cache(3, 1, 0b0011),
            node(0, &[(0, 0b1111)]),
            node(1, &[(1, 0b0011)]),
        ]
        .concat();
        let told: Vec<_> = Topology::of(&records(&words))
            .0
            .iter()
            .map(|cpu| (cpu.number, cpu.node, cpu.cache, cpu.core))
            .collect();
        assert_eq!(
            told,
            [(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 2), (3, 0, 0, 2), (64, 1, 64, 64), (65, 1, 64, 64)]
        );
    }

    // Some kinds of cores share a second level and have no third.
    #[test]
    fn the_last_cache_is_the_one_of_the_highest_level() {
        let words = [
            core(0, 0, 0b0001),
            core(0, 0, 0b0010),
            core(0, 0, 0b0100),
            core(0, 0, 0b1000),
            cache(3, 0, 0b0011),
            cache(2, 0, 0b0001),
            cache(2, 0, 0b0010),
            cache(2, 0, 0b1100),
            cache(1, 0, 0b0100),
            cache(1, 0, 0b1000),
        ]
        .concat();
        let caches: Vec<_> = Topology::of(&records(&words)).0.iter().map(|cpu| cpu.cache).collect();
        assert_eq!(caches, [0, 0, 2, 2]);
    }

    #[test]
    fn the_slower_kind_is_known() {
        let words = [core(1, 0, 0b0011), core(0, 0, 0b0100), node(0, &[(0, 0b0111)])].concat();
        let slow: Vec<_> = Topology::of(&records(&words)).0.iter().map(|cpu| cpu.slow).collect();
        assert_eq!(slow, [false, false, true]);
    }

    // A node that spans groups has several masks.
    #[test]
    fn a_node_of_two_groups_has_both() {
        let words = [core(0, 0, 1), core(0, 1, 1), node(3, &[(0, 1), (1, 1)])].concat();
        let nodes: Vec<_> =
            Topology::of(&records(&words)).0.iter().map(|cpu| (cpu.number, cpu.node)).collect();
        assert_eq!(nodes, [(0, 3), (64, 3)]);
    }

    // A length that leads nowhere must end the walk.
    #[test]
    fn records_that_are_cut_off_are_not_read() {
        let mut words = core(0, 0, 1);
        words.pop();
        assert_eq!(records(&words), []);
        assert_eq!(records(&[0]), []);
        assert_eq!(records(&[]), []);
    }

    // The records above are made up; this is the machine that runs the test.
    #[test]
    fn this_machine_can_be_read() {
        let Topology(cpus) = Topology::read();
        let allowed = Affinity::allowed().expect("every thread has some");
        assert!(
            allowed.iter().all(|cpu| cpus.iter().any(|told| told.number == *cpu)),
            "{allowed:?} of {cpus:?}"
        );
    }
}
