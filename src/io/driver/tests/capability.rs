//! What is done without a feature, what a turn costs, and what wakes a parked driver.

use std::rc::Rc;
use std::task::Poll;

use super::{Rig, next_once, on_every_backend, poll_once};
use crate::io::buf::{BufPool, Pool};
use crate::io::driver::{Descriptor, DriverConfig};
use crate::io::op::fs::{ReadAt, WriteAt};
use crate::io::op::misc::Nop;
use crate::io::op::net::Socket;

/// Every feature that can be done without.
const FEATURES: [&str; 11] = [
    "no_sqarray",
    "defer_taskrun",
    "single_issuer",
    "submit_all",
    "coop_taskrun",
    "registered_ring",
    "iowq_max_workers",
    "direct_descriptors",
    "no_iowait",
    "registered_buffers",
    "receive_ring",
];

/// Uses what a driver can do, and finds it right or refused as the report says.
fn exercise(rig: &Rig, config: &DriverConfig) {
    let pool = Pool::fixed(1 << 20).expect("a MiB can be mapped");
    rig.driver.register_buffers(&pool, config);
    let capabilities = rig.driver.capabilities();
    rig.run(rig.op(Nop)).expect("a nop succeeds");

    let file = Rc::new(Descriptor::Os(tempfile::tempfile().expect("a temporary file").into()));
    let mut buf = pool.alloc(4096);
    buf.extend_from_slice(&[3; 4096]);
    let (written, buf) = rig.run(rig.op(WriteAt { fd: Rc::clone(&file), buf, offset: 0, durable: false }));
    assert_eq!(written.expect("a fresh file"), 4096);
    let (read, buf) = rig.run(rig.op(ReadAt { fd: file, buf, offset: 0 }));
    assert_eq!(read.expect("what was written"), 4096);
    assert!(buf.iter().all(|byte| *byte == 3));

    let (one, other) = rig.pair();
    let mut read = rig.recv(&one, vec![0; 4]);
    assert!(poll_once(&mut read).is_pending());
    rig.driver.process_completions().expect("the ring can be entered");
    rig.send_all(&other, b"data");
    assert_eq!(rig.run(read).0.expect("bytes are there"), 4);

    let mut stream = rig.recv_many(&one);
    rig.send_all(&other, b"more");
    let item = rig.run(std::future::poll_fn(|cx| stream.poll_next(cx)));
    match item.expect("an item or an error") {
        Ok(buf) => assert!(capabilities.has("receive_ring") && buf[..] == b"more"[..]),
        Err(error) => {
            assert!(!capabilities.has("receive_ring"));
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        }
    }
    drop(stream);
    rig.turn_until(|| rig.driver.in_flight() == 0);

    let socket = Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0, direct: true };
    assert_eq!(rig.run(rig.op(socket)).is_ok(), capabilities.has("direct_descriptors"));
}

/// One refused feature must not take the others with it, nor anything a program relies on.
#[test]
fn each_feature_can_be_missing_alone() {
    for name in FEATURES {
        let config = DriverConfig { without: vec![name], ..DriverConfig::default() };
        let with_all = Rig::uring(&DriverConfig::default());
        let rig = Rig::uring(&config);
        exercise(&with_all, &DriverConfig::default());
        exercise(&rig, &config);
        let (all, report) = (with_all.driver.capabilities(), rig.driver.capabilities());
        for feature in &report.features {
            let takes_along = name == "single_issuer" && feature.name == "defer_taskrun";
            if feature.name == name {
                let refusal = feature.refused.as_ref().expect("it was switched off");
                assert_eq!(refusal.why, "switched off");
            } else if !takes_along {
                assert_eq!(feature.in_use, all.has(feature.name), "{}", feature.name);
            }
        }
        assert!(report.features.iter().any(|feature| feature.name == name), "{name} is reported: {report}");
        rig.end();
        with_all.end();
    }
}

/// With nothing at all there must still be a ring that works.
#[test]
fn all_features_can_be_missing_at_once() {
    let config = DriverConfig { without: FEATURES.to_vec(), ..DriverConfig::default() };
    let rig = Rig::uring(&config);
    exercise(&rig, &config);
    let report = rig.driver.capabilities();
    assert!(FEATURES.iter().all(|name| !report.has(name)), "{report}");
    let lines = report.to_string();
    assert!(
        lines.lines().all(|line| line.contains("not in use: ") || line == "ring_entries: in use"),
        "{report}"
    );
    rig.end();
}

/// With `DEFER_TASKRUN` (and with `COOP_TASKRUN`) a completion can be pending and not posted. If the turn looked at the
/// completion queue alone, it would find nothing until it slept.
#[test]
fn a_pending_completion_is_found_by_the_next_turn_without_sleeping() {
    for without in [vec![], vec!["defer_taskrun"], vec!["defer_taskrun", "coop_taskrun"]] {
        let rig = Rig::uring(&DriverConfig { without, ..DriverConfig::default() });
        let (one, other) = rig.pair();
        let Descriptor::Os(raw) = &*other else { panic!("a socket of the process") };
        for round in 0..100 {
            let mut read = rig.recv(&one, vec![0; 8]);
            assert!(poll_once(&mut read).is_pending());
            rig.driver.process_completions().expect("the ring can be entered");
            assert!(poll_once(&mut read).is_pending());
            rustix::io::write(raw, b"x").expect("there is room");
            rig.driver.process_completions().expect("the ring can be entered");
            assert!(poll_once(&mut read).is_ready(), "not found in round {round}");
        }
        assert_eq!(rig.driver.counters().parks, 0);
        rig.end();
    }
}

/// A worker turns thousands of times a second: a turn with nothing to submit and nothing pending must be free.
#[test]
fn a_turn_with_nothing_to_do_makes_no_system_call() {
    let rig = Rig::uring(&DriverConfig::default());
    let (one, _other) = rig.pair();
    let mut read = rig.recv(&one, vec![0; 8]);
    assert!(poll_once(&mut read).is_pending());
    rig.run(rig.op(Nop)).expect("a nop succeeds");
    let entries = rig.driver.counters().entries;
    for _ in 0..1000 {
        rig.driver.process_completions().expect("nothing is asked of the kernel");
    }
    assert_eq!(rig.driver.counters().entries, entries);
    drop(read);
    rig.end();
}

/// One kernel entry must carry all that is ready, not one operation each.
#[test]
fn one_entry_carries_many_operations() {
    let rig = Rig::uring(&DriverConfig::default());
    let mut nops: Vec<_> = (0..64).map(|_| rig.op(Nop)).collect();
    for nop in &mut nops {
        assert!(poll_once(nop).is_pending());
    }
    let before = rig.driver.counters();
    rig.driver.process_completions().expect("the ring can be entered");
    let after = rig.driver.counters();
    assert_eq!((after.entries - before.entries, after.completions - before.completions), (1, 64));
    assert!(nops.iter_mut().all(|nop| poll_once(nop).is_ready()));
    rig.end();
}

/// A wake that comes before the sleep must not be lost, nor one that comes from another thread during it.
#[test]
fn an_unparker_wakes_a_driver_that_sleeps_or_is_about_to() {
    on_every_backend(&DriverConfig::default(), |rig| {
        for _ in 0..3 {
            rig.driver.unparker().unpark();
            rig.driver.park(None).expect("it wakes at once");
        }
    });
    let rig = Rig::uring(&DriverConfig::default());
    let unparker = rig.driver.unparker();
    let thread = std::thread::spawn(move || unparker.unpark());
    rig.driver.park(None).expect("the other thread wakes it");
    thread.join().expect("it only wakes");
    // After the end it writes to nobody.
    let unparker = rig.driver.unparker();
    rig.end();
    unparker.unpark();
}

/// A deadline that is reached must end the sleep, though nothing has happened.
#[test]
fn a_park_ends_at_its_deadline() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let deadline_ns = rig.driver.now_ns() + 2_000_000;
        rig.turn_until(|| {
            if rig.driver.now_ns() < deadline_ns {
                rig.driver.park(Some(deadline_ns)).expect("the driver can be entered");
            }
            rig.driver.now_ns() >= deadline_ns
        });
    });
}

/// Without a receive ring a multishot receive must be refused, not wait for buffers that never come.
#[test]
fn a_multishot_receive_without_a_ring_is_refused() {
    let rig = Rig::uring(&DriverConfig::default());
    let (one, _other) = rig.pair();
    let mut stream = rig.recv_many(&one);
    let Poll::Ready(Some(Err(error))) = next_once(&mut stream) else { panic!("it cannot be encoded") };
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    drop(stream);
    rig.end();
}
