//! Tear-down: whatever is in flight, nothing is leaked, nothing is freed too early, and nothing hangs.
//!
//! Closing a ring is no barrier: a kernel thread that is in the middle of a read writes into its buffer after the ring's
//! descriptor is closed. So each round ends a driver with every kind of operation in flight, some forced onto kernel
//! threads (`IOSQE_ASYNC`), while data arrives; and the memory of the buffers is watched for the rest of the test.
//! `VELOQ_ROUNDS` says how many rounds; 100 take some seconds.

use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;

use super::every_kind::{Holder, Spare, force_async, rounds, start_every_kind};
use super::{CANARY, Faults, Graveyard, PATIENCE, Rig, Tracked, poll_once};
use crate::io::buf::{BufPool, Pool};
use crate::io::driver::{
    Answer, DriverConfig, DriverHandle, Op, OpLifecycle, Operation, PlatformDriver, Token,
};
use crate::io::op::fs::ReadAt;
use crate::io::op::misc::Nop;
use crate::io::op::net::{Accept, Recv, RecvVectored};
use crate::sync::caught;

/// Futures that were polled once, to be dropped before the end, after it, or at once.
struct InFlight {
    round: usize,
    started: usize,
    kept: Vec<Holder>,
}

impl InFlight {
    fn start(&mut self, mut future: Holder) {
        if poll_once(&mut future).is_pending() {
            self.started += 1;
            match (self.round + self.started) % 3 {
                0 => drop(future),
                _ => self.kept.push(future),
            }
        }
    }

    fn start_op<T: Operation>(&mut self, op: Op<T>) {
        self.start(Box::pin(async move {
            let _ = op.await;
        }));
    }
}

/// One driver's life. Data arrives right before the end, so that the kernel is in the middle of it. Yields what is left of its pool.
fn live_and_end(round: usize, yard: &Graveyard, folder: &Path) -> Spare {
    let config = DriverConfig { receive_buffers: 8, receive_buffer_bytes: 512, ..DriverConfig::default() };
    let rig = Rig::uring(&config);
    force_async(&rig.driver, round % 2 == 1);
    let pool = Pool::fixed(1 << 16).expect("64 KiB can be mapped");
    rig.driver.register_buffers(&pool, &config);
    let mut flight = InFlight { round, started: 0, kept: Vec::new() };
    let mut other_ends = start_every_kind(&rig.driver, yard, folder, |future| flight.start(future));
    if !round.is_multiple_of(3) {
        rig.driver.process_completions().expect("the ring can be entered");
    }
    other_ends.write(1);
    other_ends.hang_up();
    if round.is_multiple_of(5) {
        rig.driver.process_completions().expect("the ring can be entered");
    }
    let after = flight.kept.split_off(flight.kept.len() / 2);
    drop(flight);
    let drained = rig.driver.shut_down(PATIENCE);
    assert_eq!(drained.leaked, 0, "round {round}: {:?}", rig.driver);
    assert_eq!(rig.driver.in_flight(), 0);
    drop(after);
    assert_eq!(rig.driver.occupied(), 0, "round {round}");
    let spare = Spare::of(&pool);
    // What comes now finds nobody.
    other_ends.write(2);
    drop(rig);
    assert_eq!(
        pool.stats().free_bytes + spare.bytes(),
        1 << 16,
        "round {round}: every block of the pool is back"
    );
    spare
}

/// A buffer that is freed while the kernel still writes to it shows as a canary disturbed; one that is never freed, as a
/// count that is short; an operation that never ends, as one that was leaked.
#[test]
fn a_driver_ends_with_everything_in_flight_and_nobody_writes_afterwards() {
    let (yard, folder) = (Graveyard::default(), tempfile::tempdir().expect("a folder"));
    let mut spares = Vec::new();
    for round in 0..rounds() {
        spares.push(live_and_end(round, &yard, folder.path()));
        assert_eq!(yard.dropped(), yard.made(), "round {round}: each buffer is dropped, once");
    }
    let disturbed = yard.disturbed() + spares.iter().map(Spare::disturbed).sum::<usize>();
    assert_eq!(disturbed, 0, "bytes were written to buffers that had been freed (canary {CANARY:#x})");
}

/// The same where late writes come for certain: a simulated kernel writes to all it has when its driver is dropped.
#[test]
fn a_simulated_driver_ends_with_everything_in_flight() {
    let yard = Graveyard::default();
    for seed in 0..rounds() {
        let config = DriverConfig { ring_entries: 16, ..DriverConfig::default() };
        let rig = Rig::sim(&config, seed as u64, Faults::SOME);
        let world = rig.world.clone().expect("it is simulated");
        let mut flight = InFlight { round: seed, started: 0, kept: Vec::new() };
        let (one, other) = rig.pair();
        let listener = rig.driver.with_backend(|backend| match backend {
            PlatformDriver::Sim(sim) => Rc::new(sim.listen(1).expect("nobody listens")),
            PlatformDriver::Uring(_) => panic!("it is simulated"),
        });
        for _ in 0..10 {
            flight.start_op(rig.recv(&one, yard.buf(64)));
            flight.start_op(rig.send(&other, yard.buf(10_000)));
            let bufs = [yard.buf(8), yard.buf(8)];
            flight.start_op(rig.op(RecvVectored { fd: Rc::clone(&other), bufs, stash: None }));
            flight.start_op(rig.op(Nop));
        }
        flight.start_op(rig.op(Accept::new(Rc::clone(&listener), true)));
        let mut stream = rig.recv_many(&one);
        flight.start(Box::pin(async move { while poll_fn(|cx| stream.poll_next(cx)).await.is_some() {} }));
        for _ in 0..seed % 4 {
            rig.driver.process_completions().expect("it never fails");
        }
        let after = flight.kept.split_off(flight.kept.len() / 2);
        drop(flight);
        assert_eq!(rig.driver.shut_down(PATIENCE).leaked, 0, "seed {seed}: {:?}", rig.driver);
        drop(after);
        assert_eq!(rig.driver.occupied(), 0, "seed {seed}");
        drop((rig, one, other, listener));
        assert_eq!(yard.dropped(), yard.made(), "seed {seed}: each buffer is dropped, once");
        assert_eq!(world.sockets_open(), 0, "seed {seed}");
    }
    assert_eq!(yard.disturbed(), 0, "bytes were written to buffers that had been freed (canary {CANARY:#x})");
}

impl DriverHandle {
    /// The drain taken out for operations of which the kernel has a buffer and nothing else. To go on without an answer to the
    /// others spoils what is not watched, and ends the process before a test can tell why.
    pub(in crate::io::driver) fn take_reads_for_ended(&self) {
        let slab = &mut self.0.core.borrow_mut().slab;
        let kinds = [ReadAt::<Tracked>::KIND, Recv::<Tracked>::KIND];
        let reads: Vec<Token> =
            slab.in_kernel().filter(|(_, kind)| kinds.contains(kind)).map(|(token, _)| token).collect();
        reads.into_iter().for_each(|token| slab.complete(token, Answer::cancelled()));
    }
}

/// A storm that did not notice a drain which leaves something out would prove nothing.
#[test]
fn a_drain_that_leaves_out_reads_is_caught() {
    let freed = "bytes were written to buffers that had been freed";
    // A simulated kernel sees it the moment it happens, in a build that looks.
    let had = if cfg!(debug_assertions) { "somebody wrote to memory that the kernel had" } else { freed };
    for (test, complaint) in [
        ("a_driver_ends_with_everything_in_flight_and_nobody_writes_afterwards", freed),
        ("a_simulated_driver_ends_with_everything_in_flight", had),
    ] {
        caught("the drain leaves out reads", &format!("io::driver::tests::shut_down::{test}"), complaint);
    }
}

/// A driver that is dropped without its tear-down must leak what the kernel has, not free it.
#[test]
fn a_driver_dropped_without_tear_down_frees_nothing_that_the_kernel_has() {
    let yard = Graveyard::default();
    for make in [Rig::uring, |config: &DriverConfig| Rig::sim(config, 1, Faults::NONE)] {
        let dropped = yard.dropped();
        let rig = make(&DriverConfig::default());
        let (one, other) = rig.pair();
        let mut read = rig.recv(&one, yard.buf(64));
        assert!(poll_once(&mut read).is_pending());
        rig.driver.process_completions().expect("the driver can be entered");
        drop((read, rig));
        drop((one, other));
        assert_eq!((yard.dropped(), yard.disturbed()), (dropped, 0));
    }
}

/// What is asked of a driver after its end must be refused with the buffer back, not queued for nobody.
#[test]
fn operations_after_the_end_are_refused() {
    super::on_every_backend(&DriverConfig::default(), |rig| {
        let (one, _other) = rig.pair();
        let mut early = rig.recv(&one, vec![0; 8]);
        assert!(poll_once(&mut early).is_pending());
        assert_eq!(rig.driver.shut_down(PATIENCE).leaked, 0);
        let (result, buf) = rig.run(early);
        assert_eq!(
            (result.expect_err("nothing was sent").raw_os_error(), buf.len()),
            (Some(libc::ECANCELED), 8)
        );
        let (result, buf) = rig.run(rig.recv(&one, vec![5; 8]));
        assert_eq!(
            (result.expect_err("it has ended").kind(), buf),
            (std::io::ErrorKind::BrokenPipe, vec![5; 8])
        );
    });
}
