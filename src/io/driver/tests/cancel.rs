//! Cancellation: who owns what an operation yields when nobody waits for it any more.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::rc::Rc;

use rustix::io::{fcntl_dupfd_cloexec, fcntl_getfd};

use super::{Faults, Rig, next_once, on_every_backend, poll_once};
use crate::io::buf::Pool;
use crate::io::driver::{Descriptor, DriverConfig, Multishot, PlatformDriver, SharedDescriptor};
use crate::io::op::fs::Open;
use crate::io::op::misc::Close;
use crate::io::op::net::{Accept, AcceptMany, Connect, RecvMany, Socket};
use crate::os::OpenHow;

/// A listener, and the address it listens at.
fn listener(rig: &Rig) -> (SharedDescriptor, SocketAddr) {
    rig.driver.with_backend(|backend| match backend {
        PlatformDriver::Uring(_) => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("it is bound");
            (Rc::new(Descriptor::Os(listener.into())), address)
        }
        PlatformDriver::Sim(sim) => {
            let listener = sim.listen(7000).expect("nobody listens there yet");
            (Rc::new(listener), (Ipv4Addr::LOCALHOST, 7000).into())
        }
    })
}

/// A connected client.
fn client(rig: &Rig, to: SocketAddr) -> SharedDescriptor {
    let socket = Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0, direct: false };
    let fd = Rc::new(rig.run(rig.op(socket)).expect("a socket"));
    rig.run(rig.op(Connect { fd: Rc::clone(&fd), to: to.into() })).expect("somebody listens");
    fd
}

fn accept(fd: &SharedDescriptor) -> Accept {
    Accept::new(Rc::clone(fd), false)
}

/// The usual case must work before the unusual ones mean anything.
#[test]
fn a_connection_is_accepted_with_its_peer_and_carries_bytes() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let (listener, address) = listener(rig);
        let client = client(rig, address);
        let (server, peer) = rig.run(rig.op(accept(&listener))).expect("a client waits");
        assert!(peer.expect("an internet address").ip().is_loopback());
        let server = Rc::new(server);
        rig.send_all(&client, b"to the server");
        assert_eq!(rig.recv_exact(&server, 13), b"to the server");
        rig.send_all(&server, b"and back");
        assert_eq!(rig.recv_exact(&client, 8), b"and back");
        let server = Rc::try_unwrap(server).expect("no operation holds it");
        rig.run(rig.op(Close { descriptor: Some(server) })).expect("it is open");
        let (end, _) = rig.run(rig.recv(&client, vec![0; 1]));
        assert_eq!(end.expect("an orderly end"), 0);
    });
}

/// An accept that was dropped and completed all the same holds a connection: it must be closed, or be there still.
#[test]
fn an_abandoned_accept_leaks_no_connection() {
    let reclaimed = std::cell::Cell::new(0);
    let test = |rig: &Rig| {
        let (listener, address) = listener(rig);
        let client = client(rig, address);
        let mut abandoned = rig.op(accept(&listener));
        assert!(poll_once(&mut abandoned).is_pending());
        drop(abandoned);
        rig.turn_until(|| rig.driver.in_flight() == 0);
        let counters = rig.driver.counters();
        assert_eq!(counters.abandoned, 1);
        reclaimed.set(reclaimed.get() + counters.descriptors_reclaimed);
        if counters.descriptors_reclaimed == 0 {
            let _accepted = rig.run(rig.op(accept(&listener))).expect("the connection is there still");
        }
        // Either way the server's end is closed by now, and the client sees that.
        let (end, _) = rig.run(rig.recv(&client, vec![0; 1]));
        assert_eq!(end.expect("an orderly end"), 0);
    };
    on_every_backend(&DriverConfig::default(), test);
    for seed in 100..300 {
        let rig = Rig::sim(&DriverConfig::default(), seed, Faults::SOME);
        test(&rig);
        let world = rig.world.clone().expect("it is simulated");
        rig.end();
        assert_eq!(world.sockets_open(), 0, "seed {seed}");
    }
    assert!(reclaimed.get() > 20, "too few accepts completed all the same: {}", reclaimed.get());
}

/// Items of a multishot accept that nobody took, and those that come after the drop, must be closed.
#[test]
fn an_abandoned_multishot_accept_closes_what_it_yielded() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let (listener, address) = listener(rig);
        let mut stream = Multishot::new(AcceptMany::new(Rc::clone(&listener), false), &rig.driver);
        assert!(next_once(&mut stream).is_pending());
        let clients: Vec<_> = (0..5).map(|_| client(rig, address)).collect();
        drop(stream);
        drop(listener);
        rig.turn_until(|| rig.driver.in_flight() == 0);
        for client in clients {
            // Closed after it was accepted, or reset with its listener: not kept open.
            let (end, _) = rig.run(rig.recv(&client, vec![0; 1]));
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        }
    });
}

/// A request that completes while it is submitted, before its cancellation: the descriptor it made must be closed. A
/// named pipe tells: its reader sees the end once there is no writer, the abandoned one included.
#[test]
fn an_abandoned_open_that_completed_is_closed() {
    let rig = Rig::uring(&DriverConfig::default());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success());
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("a pipe");
    let path = CString::new(path.into_os_string().into_vec()).expect("no zero inside");
    for round in 1..=100 {
        let mut open = rig.op(Open {
            path: path.clone(),
            how: OpenHow { flags: libc::O_WRONLY, mode: 0 },
            direct: false,
        });
        assert!(poll_once(&mut open).is_pending());
        drop(open);
        let_it_end(&rig);
        assert_eq!((&reader).read(&mut [0; 1]).ok(), Some(0), "a writer is open still, in round {round}");
        assert_eq!(rig.driver.counters().abandoned, round);
    }
    let reclaimed = rig.driver.counters().descriptors_reclaimed;
    assert!(reclaimed >= 50, "too few opens completed all the same: {reclaimed}");
    rig.end();
}

/// The same for sockets, as ordinary and as direct descriptors. A table of direct descriptors that leaked one each round
/// would be full.
#[test]
fn abandoned_sockets_are_closed() {
    let config = DriverConfig { direct_descriptors: 16, ..DriverConfig::default() };
    let rig = Rig::uring(&config);
    for direct in [false, true] {
        for _ in 0..200 {
            let socket = Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0, direct };
            let mut made = rig.op(socket);
            assert!(poll_once(&mut made).is_pending());
            drop(made);
            let_it_end(&rig);
        }
    }
    assert!(rig.driver.counters().descriptors_reclaimed >= 200, "{:?}", rig.driver.counters());
    let all: Vec<_> = (0..16)
        .map(|_| {
            let socket = Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0, direct: true };
            rig.run(rig.op(socket)).expect("every index is free again")
        })
        .collect();
    drop(all);
    rig.end();
}

/// A cancellation that is asked for keeps the answer: a success that was on its way is a success, and the buffer is back.
#[test]
fn a_cancelled_receive_gives_its_buffer_back() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let (one, other) = rig.pair();
        let mut read = rig.recv(&one, vec![0; 8]);
        assert!(poll_once(&mut read).is_pending());
        read.time_out();
        let (result, buf) = rig.run(read);
        assert_eq!(result.expect_err("nothing was sent").kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(buf.len(), 8);

        rig.send_all(&other, b"x");
        let mut read = rig.recv(&one, vec![0; 8]);
        assert!(poll_once(&mut read).is_pending());
        read.time_out();
        let (result, buf) = rig.run(read);
        match result {
            Ok(received) => assert_eq!((received, &buf[..]), (1, &b"x"[..])),
            Err(_) => assert_eq!(rig.recv_exact(&one, 1), b"x"),
        }
        let counters = rig.driver.counters();
        rig.turn_until(|| {
            let counters = rig.driver.counters();
            counters.cancels_won + counters.cancels_lost + counters.cancels_late == counters.cancels
        });
        assert_eq!((counters.cancels, counters.abandoned), (2, 0));
    });
}

fn let_it_end(rig: &Rig) {
    rig.turn_until(|| rig.driver.in_flight() == 0);
}

/// A future that is forgotten once the kernel has closed its descriptor must not close that number again, which by the driver's end
/// may be another's.
#[test]
fn a_forgotten_close_closes_once() {
    let rig = Rig::uring(&DriverConfig::default());
    // Far above the numbers that tests beside this one get, so that nobody else takes it meanwhile.
    let file = tempfile::tempfile().expect("a temporary file");
    let high = || fcntl_dupfd_cloexec(&file, 700).expect("a free number");
    let closed = high();
    let number = closed.as_raw_fd();
    let mut close = rig.op(Close { descriptor: Some(Descriptor::Os(closed)) });
    assert!(poll_once(&mut close).is_pending());
    let_it_end(&rig);
    std::mem::forget(close);
    let taken = high();
    assert_eq!(taken.as_raw_fd(), number, "the kernel has closed it");
    rig.end();
    assert!(fcntl_getfd(&taken).is_ok(), "the number was closed again, and it was somebody else's");
}

/// A receive that fails on a kernel thread has used up the buffer that it picked. If that were forgotten, the ring would be dry
/// after as many failures as it has buffers.
#[test]
fn a_receive_that_fails_on_a_kernel_thread_gives_its_ring_buffer_back() {
    const BUFFERS: u16 = 4;
    let config = DriverConfig { receive_buffers: BUFFERS, ..DriverConfig::default() };
    let rig = Rig::uring(&config);
    let pool = Pool::fixed(4 << 20).expect("4 MiB can be mapped");
    rig.driver.register_buffers(&pool, &config);
    let on_kernel_threads = |force| {
        rig.driver.with_backend(|backend| match backend {
            PlatformDriver::Uring(uring) => uring.force_async = force,
            PlatformDriver::Sim(_) => panic!("this is about the kernel"),
        });
    };
    on_kernel_threads(true);
    for _ in 0..4 * BUFFERS {
        let (one, other) = rig.pair();
        let mut receive = rig.op(RecvMany { fd: one, credit: 0, once: Some(Rc::default()) });
        assert!(poll_once(&mut receive).is_pending());
        // It is with the kernel; whether a kernel thread has begun with it when the cancellation comes is the kernel's.
        for _ in 0..100 {
            rig.driver.process_completions().expect("the ring can be entered");
            std::thread::yield_now();
        }
        drop(receive);
        let_it_end(&rig);
        drop(other);
    }
    on_kernel_threads(false);
    let (one, other) = rig.pair();
    rig.send_all(&other, b"x");
    let received = rig.run(rig.op(RecvMany { fd: one, credit: 0, once: Some(Rc::default()) }));
    assert_eq!(&received.expect("the ring has its buffers")[..], b"x");
    assert_eq!(rig.driver.counters().receive_ring_dry, 0);
    rig.end();
}
