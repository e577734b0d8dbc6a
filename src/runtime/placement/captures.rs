//! Machines that nobody here has, as they were captured: what is read of each is what `lscpu` reads, and workers sit on it as
//! [`Placement`] says.
//!
//! util-linux tests its `lscpu` with `/sys` trees of real machines, and says what it is to print for each. `scripts/topology` fetches
//! them and says in `VELOQ_TOPOLOGY` where they are: `dumps/NAME/sys/devices`, and `expected/lscpu-NAME`. Without it the tests say so and
//! pass; with it, it is a failure if the trees are not the many kinds that make this worth its time.
//!
//! The trees have what `lscpu` reads. It goes by masks and folders where the runtime reads lists, which the same kernels have beside them:
//! [`Capture::file`] makes a list that was left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Machine, Placement, PlacementError, Seat, seats};
use crate::os::{Cpu, Topology};

/// A machine, and what `lscpu` says of it.
struct Capture {
    name: String,
    devices: PathBuf,
    expected: String,
}

/// All of them, or none where they are not.
fn captures() -> Vec<Capture> {
    let Some(place) = std::env::var_os("VELOQ_TOPOLOGY").map(PathBuf::from) else {
        eprintln!("not tested: the captured machines are not here, scripts/topology fetches them");
        return Vec::new();
    };
    let mut captures: Vec<_> = names(&place.join("dumps"))
        .map(|name| Capture {
            devices: place.join("dumps").join(&name).join("sys/devices"),
            expected: fs::read_to_string(place.join(format!("expected/lscpu-{name}")))
                .expect("each machine has its answers"),
            name,
        })
        .collect();
    captures.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(captures.len() >= 16, "they were 16 in util-linux 2.38");
    captures
}

/// What is in a folder; nothing if there is none.
fn names(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder).into_iter().flatten().map(|entry| {
        entry.expect("it can be listed").file_name().into_string().expect("they have plain names")
    })
}

/// A list of CPUs or nodes as the kernel writes them, but for ranges.
fn list(numbers: impl IntoIterator<Item = usize>) -> String {
    numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(",")
}

impl Capture {
    fn topology(&self) -> Topology {
        Topology::parse(|file| self.file(file))
    }

    /// What a file below `/sys/devices` says, or said: a list is made from the mask beside it, and that of the nodes from their folders.
    fn file(&self, file: &str) -> Option<String> {
        if let Ok(text) = fs::read_to_string(self.devices.join(file)) {
            return Some(text);
        }
        if file == "system/node/online" {
            return Some(list(self.nodes()));
        }
        // Words of 32 bits, the highest first.
        let mask = fs::read_to_string(self.devices.join(file.replace("list", "map"))).ok()?;
        let words =
            mask.trim().rsplit(',').map(|word| u32::from_str_radix(word, 16).expect("a word of a mask"));
        let bits = |(at, word): (usize, u32)| {
            (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 32 + bit)
        };
        Some(list(words.enumerate().flat_map(bits)))
    }

    /// The nodes, those without CPUs too.
    fn nodes(&self) -> BTreeSet<usize> {
        let of_node = |name: String| name.strip_prefix("node")?.parse().ok();
        names(&self.devices.join("system/node")).filter_map(of_node).collect()
    }

    /// What `lscpu` prints behind a heading.
    fn says(&self, heading: &str) -> Option<&str> {
        self.expected
            .lines()
            .find_map(|line| Some(line.split_once(':').filter(|(head, _)| *head == heading)?.1.trim()))
    }

    /// `lscpu --parse`: for each CPU its columns by their names; those that are empty are not there.
    fn table(&self) -> BTreeMap<usize, BTreeMap<&str, usize>> {
        let mut lines = self.expected.lines().skip_while(|line| !line.starts_with("# CPU,"));
        let heads: Vec<&str> =
            lines.next().expect("it has a table").trim_start_matches("# ").split(',').collect();
        lines
            .take_while(|line| !line.is_empty())
            .map(|line| heads.iter().copied().zip(line.split(',')))
            .map(|row| {
                row.filter_map(|(head, text)| Some((head, text.parse().ok()?))).collect::<BTreeMap<_, _>>()
            })
            .filter_map(|row| Some((*row.get("CPU")?, row)))
            .collect()
    }
}

/// The CPUs of each group.
fn grouped<K: Ord>(cpus: &[Cpu], key: impl Fn(&Cpu) -> K) -> BTreeMap<K, BTreeSet<usize>> {
    let mut groups = BTreeMap::new();
    for cpu in cpus {
        groups.entry(key(cpu)).or_insert_with(BTreeSet::new).insert(cpu.number);
    }
    groups
}

/// What shares a core, a node, a cache is another's reading of the same files, which thousands of machines have proved: a path that is
/// misread, a node's number taken for its place, or an offline CPU taken for one that runs, is told apart here.
#[test]
fn captured_machines_are_read_as_lscpu_reads_them() {
    // Machines with what is easily got wrong.
    let (mut tables, mut caches, mut several_nodes, mut gaps, mut memory_only, mut offline) =
        (0, 0, 0, 0, 0, 0);
    let captures = captures();
    for capture in &captures {
        let name = &capture.name;
        let Topology(cpus) = capture.topology();
        let online: Vec<_> = cpus.iter().map(|cpu| cpu.number).collect();
        let told = capture.says("On-line CPU(s) list").expect("it says who runs");
        assert_eq!(Some(&online), crate::os::parse_list(told).as_ref(), "{name}");
        offline += usize::from(capture.says("Off-line CPU(s) list").is_some());

        let table = capture.table();
        if table.is_empty() {
            continue;
        }
        tables += 1;
        assert_eq!(online, table.keys().copied().collect::<Vec<_>>(), "{name}");
        let by_column = |column: &str| -> BTreeSet<_> {
            grouped(&cpus, |cpu| table[&cpu.number].get(column)).into_values().collect()
        };
        let cores: BTreeSet<_> = grouped(&cpus, |cpu| cpu.core).into_values().collect();
        assert_eq!(cores, by_column("Core"), "{name}: cores");
        for cpu in &cpus {
            let node = table[&cpu.number].get("Node").copied().unwrap_or(0);
            assert_eq!(cpu.node, node, "{name}: the node of CPU {}", cpu.number);
            assert!(!cpu.slow, "{name}: none of these has two kinds of CPUs");
        }
        let used: BTreeSet<_> = cpus.iter().map(|cpu| cpu.node).collect();
        several_nodes += usize::from(used.len() > 1);
        gaps += usize::from(used.iter().enumerate().any(|(at, node)| at != *node));
        memory_only += usize::from(capture.nodes().difference(&used).count() > 0);

        // The last column is the last cache's, where caches are told as here: sparc64 has files of its own.
        let last =
            table[&online[0]].keys().filter(|head| head.starts_with('L') && !head.ends_with('i')).max();
        if let Some(last) = last.filter(|_| capture.file("system/cpu/cpu0/cache/index0/level").is_some()) {
            caches += 1;
            let groups: BTreeSet<_> = grouped(&cpus, |cpu| cpu.cache).into_values().collect();
            assert_eq!(groups, by_column(last), "{name}: who shares an {last} cache");
        } else {
            assert!(cpus.iter().all(|cpu| cpu.cache == online[0]), "{name}: nothing is said of caches");
        }
    }
    if !captures.is_empty() {
        eprintln!(
            "{} machines, {tables} with a table: {caches} with caches, {several_nodes} with several nodes, {gaps} with a gap in \
             their numbers, {memory_only} with a node without CPUs, {offline} with CPUs that are off",
            captures.len()
        );
        assert!(
            tables >= 15
                && caches >= 9
                && several_nodes >= 3
                && gaps >= 1
                && memory_only >= 1
                && offline >= 1
        );
    }
}

/// How many of the workers sit on each group; groups with none too.
fn taken<K: Ord>(
    cpus: &[Cpu],
    seats: &BTreeSet<usize>,
    key: impl Fn(&Cpu) -> K,
) -> BTreeMap<K, (usize, usize)> {
    let groups = grouped(cpus, key).into_iter();
    groups.map(|(key, group)| (key, (group.intersection(seats).count(), group.len()))).collect()
}

/// Holds what [`Placement`] says of both orders for one number of workers.
fn hold(name: &str, machine: &Machine, workers: usize) {
    let cpus = machine.cpus();
    let node_of: BTreeMap<_, _> = cpus.iter().map(|cpu| (cpu.number, cpu.node)).collect();
    let on = |placement: &Placement| {
        let seats = seats(placement, Some(workers), machine).expect("it can be had");
        assert_eq!(seats.len(), workers, "{name}: {placement:?}");
        let mut uses: BTreeMap<usize, usize> = node_of.keys().map(|cpu| (*cpu, 0)).collect();
        for Seat { cpu, node } in seats.into_iter().map(|seat| seat.expect("it is pinned")) {
            assert_eq!(node_of.get(&cpu), Some(&node), "{name}: {placement:?} on CPU {cpu}");
            *uses.entry(cpu).or_default() += 1;
        }
        let (least, most) = (uses.values().min().expect("some"), uses.values().max().expect("some"));
        assert!(most - least <= 1, "{name}: {placement:?} uses each CPU once before any is used again");
        uses.into_iter().filter(|(_, uses)| *uses > 0).map(|(cpu, _)| cpu).collect::<BTreeSet<_>>()
    };
    let cache = |cpu: &Cpu| (cpu.node, cpu.cache);

    let seats = on(&Placement::Spread);
    let cores = grouped(&cpus, |cpu| cpu.core);
    let busy = taken(&cpus, &seats, |cpu| cpu.core).values().filter(|(taken, _)| *taken > 0).count();
    assert_eq!(busy, workers.min(cores.len()), "{name}: {workers} spread: each core before a second thread");
    let nodes = taken(&cpus, &seats, |cpu| cpu.node);
    let busy = nodes.values().filter(|(taken, _)| *taken > 0).count();
    assert_eq!(
        busy,
        workers.min(nodes.len()),
        "{name}: {workers} spread: each node has one before any has two"
    );
    // First threads alone: a cache that has a core to spare has no more than one worker less than any other.
    if workers <= cores.len() {
        let firsts: Vec<Cpu> = cores
            .values()
            .map(|core| *core.first().expect("it has one"))
            .map(|first| *cpus.iter().find(|cpu| cpu.number == first).expect("it was one of them"))
            .collect();
        let caches = taken(&firsts, &seats, cache);
        let most = caches.values().map(|(taken, _)| *taken).max().expect("some");
        let even = caches.values().all(|(taken, room)| taken == room || taken + 1 >= most);
        assert!(even, "{name}: {workers} spread over caches: {caches:?}");
    }

    let seats = on(&Placement::Packed);
    for (what, groups) in [
        ("core", taken(&cpus, &seats, |cpu| (cpu.node, cpu.core))),
        ("cache", taken(&cpus, &seats, cache)),
        ("node", taken(&cpus, &seats, |cpu| (cpu.node, 0))),
    ] {
        let begun = groups.values().filter(|(taken, room)| *taken > 0 && taken < room).count();
        assert!(begun <= 1, "{name}: {workers} packed: a {what} is begun before another is full");
    }
}

/// Two workers on one core, or all of them on one node, while others are free, run at half their speed on a machine that nobody here
/// could try.
#[test]
fn workers_sit_on_captured_machines_as_placements_say() {
    for capture in &captures() {
        let name = &capture.name;
        let topology = capture.topology();
        let all: Vec<usize> = topology.0.iter().map(|cpu| cpu.number).collect();
        // The whole of it, and what a cpuset might leave: no second threads, or a few CPUs from everywhere.
        let half = all[..all.len().div_ceil(2)].to_vec();
        let some = all.iter().copied().step_by(3).collect();
        for allowed in [all, half, some] {
            let count = allowed.len();
            let machine = Machine { topology: topology.clone(), allowed, parallelism: count };
            for workers in 1..=2 * count + 1 {
                hold(name, &machine, workers);
            }
            let cpus = machine.cpus();
            for node in capture.nodes() {
                let of_node: BTreeSet<_> =
                    cpus.iter().filter(|cpu| cpu.node == node).map(|cpu| cpu.number).collect();
                match seats(&Placement::Node(node), None, &machine) {
                    Ok(seats) => {
                        assert!(seats.iter().flatten().all(|seat| seat.node == node), "{name}: node {node}");
                        assert_eq!(
                            seats.iter().flatten().map(|seat| seat.cpu).collect::<BTreeSet<_>>(),
                            of_node
                        );
                    }
                    Err(error) => {
                        let allowed = grouped(&cpus, |cpu| cpu.node).into_keys().collect();
                        assert_eq!(error, PlacementError::NodeNotAllowed { node, allowed }, "{name}");
                        assert!(of_node.is_empty(), "{name}: node {node}");
                    }
                }
            }
            let quota = Machine { parallelism: 2, ..machine };
            for placement in [Placement::Spread, Placement::Packed] {
                let seats = seats(&placement, None, &quota).expect("it can be had");
                assert_eq!(seats.len(), count.min(2), "{name}: a quota of two CPUs' time");
            }
        }
    }
}
