//! The backend against the real kernel.

use std::future::Future;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::windows::fs::OpenOptionsExt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_OVERLAPPED;

use super::IocpDriver;
use crate::io::driver::thread_pool::{ThreadPool, ThreadPoolConfig};
use crate::io::driver::{
    Descriptor, DriverConfig, DriverHandle, Op, PlatformDriver, PoolRefused, SharedDescriptor,
};
use crate::io::op::fs::{ReadAt, ReadVectoredAt, Sync, WriteAt, WriteVectoredAt};
use crate::io::op::misc::{Cancel, Nop};
use crate::io::op::net::{Accept, Connect, Recv, RecvFrom, Send, Socket, kept_whole};
use crate::sync::Arc;

fn driver(config: &DriverConfig) -> DriverHandle {
    let backend = PlatformDriver::Iocp(IocpDriver::new(config).expect("Windows has ports"));
    DriverHandle::new(backend, config)
}

/// One driver that spares packets, and one that does not: what they answer must not differ.
fn both() -> [DriverHandle; 2] {
    let without =
        DriverConfig { without: vec!["skip_completion_port_on_success"], ..DriverConfig::default() };
    [driver(&DriverConfig::default()), driver(&without)]
}

/// Polls and parks until the future is ready.
fn wait<F: Future + Unpin>(driver: &DriverHandle, mut future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut cx) {
            return output;
        }
        driver.park(None).expect("the port can be waited at");
    }
}

fn end(driver: &DriverHandle) {
    assert_eq!((driver.shut_down(Duration::from_secs(5)).leaked, driver.occupied()), (0, 0));
}

/// Two files of the same content: one for the port, one for a thread.
fn files(dir: &tempfile::TempDir) -> [SharedDescriptor; 2] {
    [FILE_FLAG_OVERLAPPED, 0].map(|flags| {
        let mut options = std::fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).custom_flags(flags);
        let file = options.open(dir.path().join(flags.to_string())).expect("a file");
        Rc::new(Descriptor::Os(file.into()))
    })
}

fn recv<B: crate::io::buf::IoBufMut>(fd: &SharedDescriptor, buf: B) -> Recv<B> {
    Recv { fd: Rc::clone(fd), buf, flags: 0, waits: false, stash: None, kept: kept_whole }
}

// If the slot lost its way between submission and packet, this would hang or panic.
#[test]
fn a_nop_goes_through_the_port_and_back() {
    let driver = driver(&DriverConfig::default());
    wait(&driver, Op::new(Nop, &driver)).expect("a nop succeeds");
    end(&driver);
}

// A wake that comes while nobody sleeps must end the next sleep, and only that; wakes without end must be one packet.
#[test]
fn a_wake_before_the_sleep_ends_it() {
    let driver = driver(&DriverConfig::default());
    let unparker = driver.unparker();
    for _ in 0..3 {
        (0..1000).for_each(|_| unparker.unpark());
        driver.park(None).expect("the port can be waited at");
    }
    let before = driver.now_ns();
    driver.park(Some(before + 1_000_000)).expect("the port can be waited at");
    assert!(driver.now_ns() >= before + 1_000_000, "the last of a thousand wakes was still at the port");
    end(&driver);
}

// A list of buffers is one call each: a part that is forgotten or done twice shows in the content, an end in the middle in the
// number. By the port and by a thread, with packets spared and without, it must come to the same.
#[test]
fn files_read_what_was_written() {
    for driver in both() {
        let dir = tempfile::tempdir().expect("a directory");
        for fd in files(&dir) {
            let fd = || Rc::clone(&fd);
            let bufs = vec![b"ab".to_vec(), Vec::new(), b"cdef".to_vec(), b"g".to_vec()];
            let write = WriteVectoredAt { fd: fd(), bufs, offset: 1 << 33 };
            assert_eq!(wait(&driver, Op::new(write, &driver)).0.expect("there is room"), 7);
            let write = WriteAt { fd: fd(), buf: b"hi".to_vec(), offset: (1 << 33) + 7, durable: true };
            assert_eq!(wait(&driver, Op::new(write, &driver)).0.expect("there is room"), 2);
            let bufs = vec![Vec::with_capacity(3), Vec::with_capacity(5), Vec::with_capacity(9)];
            let read = ReadVectoredAt { fd: fd(), bufs, offset: 1 << 33 };
            let (read, bufs) = wait(&driver, Op::new(read, &driver));
            assert_eq!(read.expect("it was written"), 9);
            assert_eq!(bufs, [&b"abc"[..], b"defgh", b"i"]);
            let read = ReadAt { fd: fd(), buf: Vec::with_capacity(8), offset: (1 << 33) + 9 };
            assert_eq!(wait(&driver, Op::new(read, &driver)).0.expect("the end is no error"), 0);
            wait(&driver, Op::new(Sync { fd: fd(), data_only: true }, &driver)).expect("it may be written");
            let read = ReadVectoredAt { fd: fd(), bufs: Vec::<Vec<u8>>::new(), offset: 0 };
            assert_eq!(wait(&driver, Op::new(read, &driver)).0.expect("nothing is asked for"), 0);
        }
        end(&driver);
    }
}

/// A connection of `driver`'s.
fn connection(driver: &DriverHandle) -> [SharedDescriptor; 2] {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let listener = Rc::new(Descriptor::Os(listener.into()));
    let mut accept = Op::new(Accept::new(listener, false), driver);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut accept).poll(&mut cx).is_pending());
    let socket = Socket {
        domain: socket2::Domain::IPV4.into(),
        kind: socket2::Type::STREAM.into(),
        protocol: socket2::Protocol::TCP.into(),
        direct: false,
    };
    let ours = Rc::new(wait(driver, Op::new(socket, driver)).expect("a socket"));
    wait(driver, Op::new(Connect { fd: Rc::clone(&ours), to: address.into() }, driver)).expect("it listens");
    let (theirs, peer) = wait(driver, accept).expect("a connection");
    let Descriptor::Os(os) = &*ours else { unreachable!("no other kind here") };
    let own = socket2::SockRef::from(os).local_addr().expect("it is connected");
    assert_eq!(peer, own.as_socket(), "AcceptEx says who has connected");
    [ours, Rc::new(theirs)]
}

// A success that was taken for one without a packet, and has one, would complete the slot's next tenant: bytes in the wrong buffer.
#[test]
fn streams_carry_their_bytes_in_order() {
    for driver in both() {
        let [ours, theirs] = connection(&driver);
        for round in 0..200u8 {
            let send = |buf| Send { fd: Some(Rc::clone(&ours)), buf, flags: 0, zero_copy: false };
            let before = Op::new(recv(&theirs, Vec::with_capacity(64)), &driver);
            let (sent, _) = wait(&driver, Op::new(send(vec![round; 10]), &driver));
            assert_eq!(sent.expect("there is room"), 10);
            let (received, buf) = wait(&driver, before);
            assert_eq!((received.expect("it was sent"), buf), (10, vec![round; 10]));
        }
        end(&driver);
    }
}

// A datagram that does not fit ends with what Windows calls an error, and has run: taken for a failed call, its packet would
// come to nobody. Here it is cut, as elsewhere, and the next one is whole.
#[test]
fn a_datagram_that_does_not_fit_is_cut() {
    for driver in both() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let address = receiver.local_addr().expect("its address");
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let receiver = Rc::new(Descriptor::Os(receiver.into()));
        for waits in [true, false] {
            let receive = |room| RecvFrom {
                fd: Rc::clone(&receiver),
                buf: Vec::with_capacity(room),
                flags: 0,
                from: None,
                stash: None,
            };
            let mut cut = Op::new(receive(4), &driver);
            if waits {
                assert!(Pin::new(&mut cut).poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            sender.send_to(b"123456", address).expect("there is room");
            sender.send_to(b"abc", address).expect("there is room");
            let (received, buf) = wait(&driver, cut);
            let (bytes, from) = received.expect("it is cut");
            assert_eq!((&buf[..bytes.min(4)], from), (&b"1234"[..], sender.local_addr().ok()));
            let (received, buf) = wait(&driver, Op::new(receive(4), &driver));
            assert_eq!((received.expect("it fits").0, &buf[..]), (3, &b"abc"[..]));
        }
        end(&driver);
    }
}

// A socket answers to one port for life: on another its operations would never end, so they must be refused.
#[test]
fn a_socket_that_was_used_elsewhere_is_refused() {
    let (one, other) = (driver(&DriverConfig::default()), driver(&DriverConfig::default()));
    let [ours, _theirs] = connection(&one);
    let (refused, _) = wait(&other, Op::new(recv(&ours, Vec::with_capacity(1)), &other));
    assert_eq!(refused.expect_err("it is the other's").kind(), std::io::ErrorKind::InvalidInput);
    end(&one);
    end(&other);
}

// The operation that is cancelled must end as cancelled, and the one that cancels must say whether it found it.
#[test]
fn a_receive_is_cancelled_and_counted() {
    let driver = driver(&DriverConfig::default());
    let [ours, _theirs] = connection(&driver);
    let mut receive = Op::new(recv(&ours, Vec::with_capacity(1)), &driver);
    assert!(Pin::new(&mut receive).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let target = receive.token().expect("it was submitted");
    wait(&driver, Op::new(Cancel { target }, &driver)).expect("it is there to be cancelled");
    let error = wait(&driver, receive).0.expect_err("it was cancelled");
    assert!(crate::io::stash::is_cancelled(&error), "{error}");
    let late = wait(&driver, Op::new(Cancel { target }, &driver)).expect_err("it is gone");
    assert_eq!(late.kind(), std::io::ErrorKind::NotFound);
    let counters = driver.counters();
    assert_eq!((counters.cancels_won, counters.cancels_late), (1, 1));
    end(&driver);
}

// Where a program may not block a thread silently, a job of the pool is such a use, and the error must say so.
#[test]
fn a_strict_pool_refuses_jobs_with_a_typed_error() {
    let driver = driver(&DriverConfig::default());
    let config = ThreadPoolConfig { strict: true, ..ThreadPoolConfig::default() };
    driver.share_threads(&Arc::new(ThreadPool::new(config)));
    let dir = tempfile::tempdir().expect("a directory");
    let [fd, _] = files(&dir);
    let refused = wait(&driver, Op::new(Sync { fd, data_only: false }, &driver)).expect_err("it would block");
    let source = refused.get_ref().and_then(|source| source.downcast_ref::<PoolRefused>());
    assert!(matches!(source, Some(PoolRefused::Strict { .. })), "{refused}");
    end(&driver);
}
