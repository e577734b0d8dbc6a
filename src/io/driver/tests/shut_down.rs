//! Tear-down: whatever is in flight, nothing is leaked, nothing is freed too early, and nothing hangs.
//!
//! Closing a ring is no barrier: a kernel thread that is in the middle of a read writes into its buffer after the ring's
//! descriptor is closed. So each round ends a driver with every kind of operation in flight, some forced onto kernel
//! threads (`IOSQE_ASYNC`), while data arrives; and the memory of the buffers is watched for the rest of the test.
//! `VELOQ_ROUNDS` says how many rounds; 100 take some seconds.

use std::ffi::CString;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::pipe::{PipeFlags, pipe_with};

use super::{CANARY, Faults, Graveyard, PATIENCE, Rig, next_once, poll_once};
use crate::io::buf::{BufPool, Pool};
use crate::io::driver::{
    Descriptor, DriverConfig, Multishot, Op, Operation, PlatformDriver, SharedDescriptor,
};
use crate::io::op::fs::{
    Allocate, Allocation, Open, ReadAt, ReadVectoredAt, Status, Subject, Sync, Truncate, WriteAt,
    WriteVectoredAt,
};
use crate::io::op::misc::{Close, Nop, Poll};
use crate::io::op::net::{
    Accept, AcceptMany, Connect, RecvFrom, RecvVectored, SendTo, SendVectored, Shutdown, Socket,
};
use crate::os::OpenHow;

/// Rounds by default: enough for a few late writers to show on any machine, without holding up the other tests.
const ROUNDS: u64 = 100;

fn rounds() -> u64 {
    std::env::var("VELOQ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("VELOQ_ROUNDS is a number"))
}

/// Futures that were polled once, to be dropped before the end, after it, or never.
struct InFlight {
    round: u64,
    started: u64,
    kept: Vec<Box<dyn std::any::Any>>,
}

impl InFlight {
    fn start<T: Operation>(&mut self, rig: &Rig, operation: T) {
        self.keep_polled(rig.op(operation));
    }

    fn keep_polled<T: Operation>(&mut self, mut op: Op<T>) {
        if poll_once(&mut op).is_pending() {
            self.keep(op);
        }
    }

    fn keep<F: 'static>(&mut self, future: F) {
        self.started += 1;
        match (self.round + self.started) % 3 {
            0 => drop(future),
            _ => self.kept.push(Box::new(future)),
        }
    }
}

fn os(fd: impl Into<OwnedFd>) -> SharedDescriptor {
    Rc::new(Descriptor::Os(fd.into()))
}

/// Starts one of each kind. Returns where to write so that those which wait get something.
fn start_all(rig: &Rig, yard: &Graveyard, flight: &mut InFlight) -> Vec<SharedDescriptor> {
    let buf = || yard.buf(512);
    let (one, other) = rig.pair();
    let (full, _full_peer) = rig.pair();
    // Receives: plain, vectored, multishot, of datagrams.
    for _ in 0..4 {
        flight.keep_polled(rig.recv(&one, buf()));
    }
    flight.start(rig, RecvVectored { fd: Rc::clone(&one), bufs: [buf(), buf()], stash: None });
    let mut stream = rig.recv_many(&one);
    if next_once(&mut stream).is_pending() {
        flight.keep(stream);
    }
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address: SocketAddr = udp.local_addr().expect("it is bound");
    let udp = os(udp);
    flight.start(rig, RecvFrom { fd: Rc::clone(&udp), buf: buf(), flags: 0, from: None, stash: None });
    flight.start(rig, SendTo { fd: Rc::clone(&udp), buf: buf(), to: address.into() });
    // Sends into a pipe that is full.
    flight.keep_polled(rig.send(&full, vec![0; 1 << 20]));
    flight.keep_polled(rig.send(&full, buf()));
    flight.start(rig, SendVectored { fd: Rc::clone(&full), bufs: vec![buf(), buf()], to: None });
    // Connections.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let listener = os(listener);
    flight.start(rig, Accept::new(Rc::clone(&listener), false));
    flight.start(rig, Accept::new(Rc::clone(&listener), true));
    let mut stream = Multishot::new(AcceptMany::new(Rc::clone(&listener), false), &rig.driver);
    if next_once(&mut stream).is_pending() {
        flight.keep(stream);
    }
    for direct in [false, true] {
        flight.start(rig, Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0, direct });
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    flight.start(rig, Connect { fd: os(socket), to: address.into() });
    // Files, among them pipes that nothing has been written to, and a name that nobody opens.
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let (reader, writer) = (os(reader), os(writer));
    for _ in 0..4 {
        flight.start(rig, ReadAt { fd: Rc::clone(&reader), buf: buf(), offset: 0 });
    }
    flight.start(rig, ReadVectoredAt { fd: Rc::clone(&reader), bufs: vec![buf(), buf()], offset: 0 });
    let file = os(tempfile::tempfile().expect("a temporary file"));
    flight.start(
        rig,
        Allocate { fd: Rc::clone(&file), allocation: Allocation::Extend, offset: 0, len: 1 << 16 },
    );
    flight.start(rig, WriteAt { fd: Rc::clone(&file), buf: yard.buf(1 << 13), offset: 0, durable: false });
    flight.start(rig, WriteVectoredAt { fd: Rc::clone(&file), bufs: vec![buf(), buf()], offset: 0 });
    flight.start(rig, ReadAt { fd: Rc::clone(&file), buf: yard.buf(1 << 13), offset: 0 });
    flight.start(rig, Sync { fd: Rc::clone(&file), data_only: true });
    flight.start(rig, Status { subject: Subject::Open(Rc::clone(&file)), status: None });
    flight.start(rig, Truncate { fd: file, len: 1 });
    let path = CString::new("/proc/self/exe").expect("no zero inside");
    for direct in [false, true] {
        flight
            .start(rig, Open { path: path.clone(), how: OpenHow { flags: libc::O_RDONLY, mode: 0 }, direct });
    }
    // The rest.
    flight.start(rig, Nop);
    flight.start(rig, Poll { fd: reader });
    flight.start(rig, Shutdown { fd: full, how: std::net::Shutdown::Read });
    flight.start(rig, Close { descriptor: Some(Descriptor::Os(own_end())) });
    vec![other, writer]
}

fn own_end() -> OwnedFd {
    std::os::unix::net::UnixStream::pair().expect("a pair of sockets").0.into()
}

/// One driver's life. Data arrives right before the end, so that the kernel is in the middle of it.
fn live_and_end(round: u64, yard: &Graveyard) {
    let config = DriverConfig { receive_buffers: 8, receive_buffer_bytes: 512, ..DriverConfig::default() };
    let rig = Rig::uring(&config);
    rig.driver.with_backend(|backend| match backend {
        PlatformDriver::Uring(uring) => uring.force_async = round % 2 == 1,
        PlatformDriver::Sim(_) => {}
    });
    let pool = Pool::fixed(1 << 16).expect("64 KiB can be mapped");
    rig.driver.register_buffers(&pool, &config);
    let mut flight = InFlight { round, started: 0, kept: Vec::new() };
    let write_to = start_all(&rig, yard, &mut flight);
    if !round.is_multiple_of(3) {
        rig.driver.process_completions().expect("the ring can be entered");
    }
    let writers: Vec<_> = write_to.iter().map(|fd| fd.as_os().expect("of the process")).collect();
    for writer in &writers {
        rustix::io::write(writer, &[1; 700]).expect("there is room");
    }
    if round.is_multiple_of(5) {
        rig.driver.process_completions().expect("the ring can be entered");
    }
    let (before, after) = {
        let half = flight.kept.len() / 2;
        let after = flight.kept.split_off(half);
        (flight.kept, after)
    };
    drop(before);
    let drained = rig.driver.shut_down(PATIENCE);
    assert_eq!(drained.leaked, 0, "round {round}: {:?}", rig.driver);
    assert_eq!(rig.driver.in_flight(), 0);
    for writer in &writers {
        // What comes now finds nobody.
        let _ = rustix::io::write(writer, &[2; 700]);
    }
    drop(after);
    assert_eq!(rig.driver.occupied(), 0, "round {round}");
    drop(rig);
    assert_eq!(pool.stats().blocks_out, 0, "round {round}: every block of the pool is back");
}

/// A buffer that is freed while the kernel still writes to it shows as a canary disturbed; one that is never freed, as a
/// count that is short; an operation that never ends, as one that was leaked.
#[test]
fn a_driver_ends_with_everything_in_flight_and_nobody_writes_afterwards() {
    let yard = Graveyard::default();
    for round in 0..rounds() {
        live_and_end(round, &yard);
        assert_eq!(yard.dropped(), yard.made(), "round {round}: each buffer is dropped, once");
    }
    assert_eq!(yard.disturbed(), 0, "bytes were written to buffers that had been freed (canary {CANARY:#x})");
}

/// The same where late writes come for certain: a simulated kernel writes to all it has when its driver is dropped.
#[test]
fn a_simulated_driver_ends_with_everything_in_flight() {
    let yard = Graveyard::default();
    for seed in 0..rounds() {
        let config = DriverConfig { ring_entries: 16, ..DriverConfig::default() };
        let rig = Rig::sim(&config, seed, Faults::SOME);
        let world = rig.world.clone().expect("it is simulated");
        let mut flight = InFlight { round: seed, started: 0, kept: Vec::new() };
        let (one, other) = rig.pair();
        let listener = rig.driver.with_backend(|backend| match backend {
            PlatformDriver::Sim(sim) => Rc::new(sim.listen(1).expect("nobody listens")),
            PlatformDriver::Uring(_) => panic!("it is simulated"),
        });
        for _ in 0..10 {
            flight.keep_polled(rig.recv(&one, yard.buf(64)));
            flight.keep_polled(rig.send(&other, yard.buf(10_000)));
            flight.start(
                &rig,
                RecvVectored { fd: Rc::clone(&other), bufs: [yard.buf(8), yard.buf(8)], stash: None },
            );
            flight.start(&rig, Nop);
        }
        flight.start(&rig, Accept::new(Rc::clone(&listener), true));
        let mut stream = rig.recv_many(&one);
        if next_once(&mut stream).is_pending() {
            flight.keep(stream);
        }
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
