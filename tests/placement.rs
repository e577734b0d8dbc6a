//! Promise: workers run where they were told to, and no more of them than the process is given CPUs for.
//!
//! What the kernel itself says of the threads is compared with what was asked for. Which CPUs are chosen on machines that are not this one
//! is tested where the choice is made.

#[path = "system/processors.rs"]
mod processors;

use std::io;

use processors::allowed;
use veloq::WorkerId;
use veloq::runtime::{Builder, Placement, PlacementError, Seat};

/// For each worker: what the runtime says, and what the kernel says on the worker.
fn found(builder: Builder) -> Vec<(Option<Seat>, Vec<usize>)> {
    let runtime = builder.build().expect("this kernel has io_uring");
    let handle = runtime.handle();
    runtime.block_on(async {
        let mut found = Vec::new();
        for worker in veloq::workers() {
            let there = veloq::spawn_to(worker, async || allowed()).await.expect("no panic");
            found.push((handle.seat(worker), there));
        }
        found
    })
}

/// A worker that says it is on one CPU and may run on all, or the other way round, misleads whoever places memory or interrupts by it.
#[test]
fn pinned_workers_are_where_they_say() {
    let before = allowed();
    for placement in [Placement::Spread, Placement::Packed] {
        for (worker, (seat, there)) in
            found(Builder::new().placement(placement).workers(3)).into_iter().enumerate()
        {
            let seat = seat.expect("it is pinned");
            assert_eq!(there, [seat.cpu], "worker {worker}");
            assert!(before.contains(&seat.cpu));
        }
    }
    assert_eq!(allowed(), before, "this thread has its own CPUs back");
}

#[test]
fn a_list_of_cores_is_taken_at_its_word() {
    let last = *allowed().last().expect("this runs somewhere");
    let found = found(Builder::new().placement(Placement::Cores(vec![last, last])));
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|(seat, there)| seat.expect("it is pinned").cpu == last && *there == [last]));
}

#[test]
fn unpinned_workers_may_run_wherever_the_process_may() {
    let before = allowed();
    let found = found(Builder::new().placement(Placement::Unpinned).workers(2));
    assert!(found.iter().all(|(seat, there)| seat.is_none() && *there == before), "{found:?}");
}

/// To make a runtime without running it must not leave the thread where worker 0 would have been.
#[test]
fn a_runtime_that_never_runs_leaves_the_thread_where_it_was() {
    let before = allowed();
    let runtime = Builder::new().workers(2).build().expect("this kernel has io_uring");
    assert_eq!(allowed(), before, "built, and not running");
    drop(runtime);
    assert_eq!(allowed(), before);
}

#[test]
fn a_placement_that_cannot_be_had_is_a_typed_error() {
    let error = Builder::new().placement(Placement::Node(999)).build().expect_err("no machine is so large");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let source = error.get_ref().and_then(|source| source.downcast_ref::<PlacementError>());
    assert!(matches!(source, Some(PlacementError::NodeNotAllowed { node: 999, .. })), "{error:?}");
}

/// With a quota of one CPU's time, a second worker only takes the first one's. The test runs itself again with another cgroup's
/// files before its eyes, which takes namespaces that not every machine allows; there it says so. Other systems have no cgroups.
#[cfg(target_os = "linux")]
#[test]
fn a_quota_is_respected() {
    const CHILD: &str = "VELOQ_TEST_QUOTA";
    if let Some(expected) = std::env::var_os(CHILD) {
        let found = found(Builder::new());
        assert_eq!(found.len().to_string(), expected.to_str().expect("a number"));
        return;
    }
    let all = allowed().len();
    let cases = [
        ("v2: 1.5 CPUs", "0::/app", "app/cpu.max", "150000 100000", 1),
        ("v2: an outer group's", "0::/app", "cpu.max", "50000 100000", 1),
        ("v2: none", "0::/app", "app/cpu.max", "max 100000", all),
        ("v1: 1 CPU", "3:cpu,cpuacct:/app", "cpu/app/cpu.cfs_quota_us", "100000", 1),
        ("v1: none", "3:cpu,cpuacct:/app", "cpu/app/cpu.cfs_quota_us", "-1", all),
    ];
    for (case, group, file, content, expected) in cases {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = [
            ("self", group),
            ("tree/cgroup.controllers", "cpu"),
            ("tree/app/cgroup.controllers", "cpu"),
            ("tree/cpu/app/cpu.cfs_period_us", "100000"),
            (&format!("tree/{file}"), content),
        ];
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("a directory");
            std::fs::write(path, content).expect("a file");
        }
        let script =
            "mount --bind tree /sys/fs/cgroup && mount --bind self /proc/$$/cgroup || exit 77; exec \"$@\"";
        let mut child = std::process::Command::new("unshare");
        child.args(["-rm", "sh", "-c", script, "sh"]).current_dir(dir.path());
        child.arg(std::env::current_exe().expect("a test has a file"));
        child.args(["--exact", "a_quota_is_respected"]).env(CHILD, expected.to_string());
        match child.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) if matches!(output.status.code(), Some(1 | 77)) => {
                return void(&format!("no namespaces here: {}", String::from_utf8_lossy(&output.stderr)));
            }
            Ok(output) => panic!("{case}: {}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => return void(&format!("`unshare` cannot be run: {error}")),
        }
    }
}

/// A test that shows nothing here says so; in a run that is to show everything that is a failure.
#[cfg(target_os = "linux")]
fn void(why: &str) {
    eprintln!("not tested, {why}");
    let all = std::env::var_os("VELOQ_NO_VOID").is_some();
    assert!(!all, "a quota is not tested, {why}; run this where namespaces are allowed, as by root");
}

/// Who asks for a worker that there is not gets none.
#[test]
fn a_worker_that_is_not_there_has_no_seat() {
    let runtime = Builder::new().workers(1).build().expect("this kernel has io_uring");
    assert_eq!(runtime.handle().seat(WorkerId::new(5)), None);
}
