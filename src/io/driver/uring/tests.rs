//! The backend against the real kernel.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::opcode;

use super::UringDriver;
use crate::io::buf::{BufPool, FixedBuf, IoBuf, Pool, PoolConfig, Registration};
use crate::io::driver::budget::Budget;
use crate::io::driver::{Descriptor, Driver, DriverConfig, DriverHandle, Op, PlatformDriver, PlatformOp};
use crate::io::op::fs::{ReadAt, WriteAt};
use crate::io::op::misc::{self, Nop};

fn driver(config: &DriverConfig) -> DriverHandle {
    let backend = PlatformDriver::Uring(UringDriver::new(config).expect("this kernel has io_uring"));
    DriverHandle::new(backend, config)
}

/// Polls and parks until the future is ready.
fn wait<F: Future + Unpin>(driver: &DriverHandle, mut future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut cx) {
            return output;
        }
        driver.park(None).expect("the ring can be entered");
    }
}

/// If the slot lost its way between submission and completion, this would hang or panic.
#[test]
fn a_nop_goes_through_the_kernel_and_back() {
    let driver = driver(&DriverConfig::default());
    wait(&driver, Op::new(Nop, &driver)).expect("a nop succeeds");
    assert_eq!(driver.occupied(), 0);
    let _ = driver.shut_down(Duration::from_secs(5));
}

/// A registered buffer must carry the same bytes as plain memory.
#[test]
fn a_file_written_from_a_registered_buffer_reads_back() {
    let config = DriverConfig::default();
    let driver = driver(&config);
    let pool = Pool::fixed(4 << 20).expect("4 MiB can be mapped");
    driver.register_buffers(&pool, &config);
    let capabilities = driver.capabilities();
    assert!(capabilities.has("registered_buffers") && capabilities.has("receive_ring"), "{capabilities}");
    let file = Rc::new(Descriptor::Os(tempfile::tempfile().expect("a temporary file").into()));
    let mut buf = pool.alloc(8192);
    buf.extend_from_slice(&[7; 8192]);
    let (written, buf) =
        wait(&driver, Op::new(WriteAt { fd: Rc::clone(&file), buf, offset: 0, durable: false }, &driver));
    assert_eq!(written.expect("a write to a fresh file"), 8192);
    drop(buf);
    let (read, buf) = wait(&driver, Op::new(ReadAt { fd: file, buf: vec![0; 8192], offset: 0 }, &driver));
    assert_eq!(read.expect("a read of what was written"), 8192);
    assert!(buf.iter().all(|byte| *byte == 7));
    assert_eq!(driver.shut_down(Duration::from_secs(5)).leaked, 0);
}

/// Writes a buffer of the pool to a file and reads it back into another: `EFAULT` if an index leads to other memory.
fn write_and_read(driver: &DriverHandle, pool: &Pool, kept: &mut Vec<FixedBuf>) -> [Option<Registration>; 2] {
    let file = Rc::new(Descriptor::Os(tempfile::tempfile().expect("a temporary file").into()));
    let (mut buf, other) = (pool.alloc(16 << 10), pool.alloc(16 << 10));
    buf.resize(16 << 10, 7);
    let registrations = [buf.registration(), other.registration()];
    let (written, buf) =
        wait(driver, Op::new(WriteAt { fd: Rc::clone(&file), buf, offset: 0, durable: false }, driver));
    assert_eq!(written.expect("a write to a fresh file"), 16 << 10);
    let (read, other) = wait(driver, Op::new(ReadAt { fd: file, buf: other, offset: 0 }, driver));
    assert_eq!(read.expect("a read of what was written"), 16 << 10);
    assert!(other[..] == buf[..]);
    kept.extend([buf, other]);
    registrations
}

/// A chunk that came and is not registered costs its pages' pinning with each operation; one that went and stays registered keeps
/// its memory for ever; and an index that is used again for other memory while somebody goes by it would show here as `EFAULT`.
#[test]
fn chunks_are_registered_as_they_come_and_forgotten_as_they_go() {
    let config = DriverConfig { receive_buffers: 0, ..DriverConfig::default() };
    let driver = driver(&config);
    let mut pool_config = PoolConfig::default();
    (pool_config.bytes, pool_config.chunks_max) = (1 << 16, 4);
    let pool = Pool::new(&pool_config).expect("some KiB can be mapped");
    driver.register_buffers(&pool, &config);
    assert_eq!(driver.counters().chunks_registered, 1);
    for round in 1..=3u64 {
        let mut kept = Vec::new();
        let mut indices = BTreeSet::new();
        // Four buffers fill a chunk; each pair is allocated, told to the kernel by the turn of the one before.
        for pair in 0..8 {
            let grown = pool.alloc(16 << 10);
            drop(grown);
            driver.process_completions().expect("the ring can be entered");
            for registration in write_and_read(&driver, &pool, &mut kept) {
                let registration = registration.unwrap_or_else(|| panic!("pair {pair} is not registered"));
                indices.insert(registration.index);
            }
        }
        let expected = BTreeSet::from([0, 1, 2, 3]);
        assert_eq!(indices, expected, "each chunk has its index, and one that went leaves it to the next");
        assert_eq!(driver.counters().chunks_registered, 1 + 3 * round);
        drop(kept);
        while pool.stats().chunks > 1 {
            pool.reclaim();
            driver.process_completions().expect("the ring can be entered");
        }
    }
    assert_eq!(driver.counters().chunks_refused, 0);
    assert_eq!(driver.shut_down(Duration::from_secs(5)).leaked, 0);
}

/// A buffer of a chunk that came later would travel by its address as well, only slower: so the requests themselves are looked at.
#[test]
fn requests_go_by_the_index_of_whichever_chunk_their_buffer_is_of() {
    let config = DriverConfig { receive_buffers: 0, ..DriverConfig::default() };
    let mut driver = UringDriver::new(&config).expect("this kernel has io_uring");
    let mut pool_config = PoolConfig::default();
    (pool_config.bytes, pool_config.chunks_max) = (1 << 16, 2);
    let pool = Pool::new(&pool_config).expect("some KiB can be mapped");
    driver.register_buffers(&pool, &config);
    let fd = Rc::new(Descriptor::Os(tempfile::tempfile().expect("a temporary file").into()));
    let codes = |driver: &mut UringDriver, bufs: [FixedBuf; 2]| {
        let [from, to] = bufs;
        let mut write = WriteAt { fd: Rc::clone(&fd), buf: from, offset: 0, durable: false };
        let mut read = ReadAt { fd: Rc::clone(&fd), buf: to, offset: 0 };
        let entries = [write.encode(&mut (), driver), read.encode(&mut (), driver)];
        let codes = entries.map(|entry| format!("{:?}", entry.expect("it can be encoded")));
        (codes, [write.buf, read.buf])
    };
    let named = |codes: &[String; 2], expected: [u8; 2]| {
        let is = |(code, expected): (&String, u8)| code.contains(&format!("op_code: {expected},"));
        assert!(codes.iter().zip(expected).all(is), "{codes:?}");
    };
    let [by_address, by_index] =
        [[opcode::Write::CODE, opcode::Read::CODE], [opcode::WriteFixed::CODE, opcode::ReadFixed::CODE]];
    let first = [pool.alloc(1 << 15), pool.alloc(1 << 15)];
    let grown = [pool.alloc(4096), pool.alloc(4096)];
    assert_eq!(pool.stats().chunks, 2);
    named(&codes(&mut driver, first).0, by_index);
    let (said, grown) = codes(&mut driver, grown);
    named(&said, by_address);
    driver.update_buffers(pool.take_changes());
    named(&codes(&mut driver, grown).0, by_index);
    named(&codes(&mut driver, [FixedBuf::heap(4096), FixedBuf::heap(4096)]).0, by_address);
    // Under an index of another ring's it would be other memory.
    let other = Pool::fixed(1 << 16).expect("64 KiB can be mapped");
    other.arena().set_registered(0);
    named(&codes(&mut driver, [other.alloc(4096), other.alloc(4096)]).0, by_address);
}

/// What is over the worker's share must work as plain memory, not fail, and must be counted.
#[test]
fn chunks_beyond_the_share_travel_as_plain_memory() {
    let budget = Budget::of_memlock(200 << 10);
    let config = DriverConfig { receive_buffers: 0, budget, ..DriverConfig::default() };
    let driver = driver(&config);
    let mut pool_config = PoolConfig::default();
    (pool_config.bytes, pool_config.chunks_max) = (1 << 16, 4);
    let pool = Pool::new(&pool_config).expect("some KiB can be mapped");
    driver.register_buffers(&pool, &config);
    let mut kept = Vec::new();
    let mut plain = 0;
    for _ in 0..8 {
        drop(pool.alloc(16 << 10));
        driver.process_completions().expect("the ring can be entered");
        plain += write_and_read(&driver, &pool, &mut kept).into_iter().filter(Option::is_none).count();
    }
    assert_eq!(plain, 8, "two chunks of four are within 200 KiB, beside the ring");
    let counters = driver.counters();
    assert_eq!((counters.chunks_registered, counters.chunks_refused), (2, 2));
    drop(kept);
    assert_eq!(driver.shut_down(Duration::from_secs(5)).leaked, 0);
}

/// Answers at a time that make a driver busy.
const BUSY: usize = 16;

/// A driver that lingers for as long, and is busy.
fn busy_driver(linger: Duration) -> DriverHandle {
    let driver = driver(&DriverConfig { linger, ..DriverConfig::default() });
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..32 {
        let mut nops: Vec<_> = (0..BUSY).map(|_| Op::new(Nop, &driver)).collect();
        assert!(nops.iter_mut().all(|nop| Pin::new(nop).poll(&mut cx).is_pending()));
        driver.process_completions().expect("the ring can be entered");
        assert!(nops.iter_mut().all(|nop| Pin::new(nop).poll(&mut cx).is_ready()));
    }
    driver
}

fn with_uring<R>(driver: &DriverHandle, look: impl FnOnce(&mut UringDriver) -> R) -> R {
    driver.with_backend(|backend| match backend {
        PlatformDriver::Uring(uring) => look(uring),
        PlatformDriver::Sim(_) => unreachable!("made by `driver`"),
    })
}

/// A busy worker waits for more answers than its own request's. If the timer did not end that, the last client of a busy time
/// would wait for ever, and this would hang; if the wait in vain were not noticed, each of those that come after would wait
/// as long.
#[test]
fn a_wait_for_company_that_does_not_come_ends_and_is_the_last() {
    let driver = busy_driver(Duration::from_millis(1));
    wait(&driver, Op::new(Nop, &driver)).expect("a nop succeeds");
    let (lately, armed) = with_uring(&driver, |uring| (uring.answers_lately, uring.linger_armed));
    assert_eq!((lately, armed), (0, false), "the timer has ended the wait, and the busy time");
    wait(&driver, Op::new(Nop, &driver)).expect("a nop succeeds");
    assert!(!with_uring(&driver, |uring| uring.linger_armed), "an idle driver does not linger");
    assert_eq!(driver.shut_down(Duration::from_secs(5)).leaked, 0);
}

/// The timer outlives the wait it was armed for. If tear-down forgot it, this would take an hour; if a wait that has company took it for
/// its end, one answer alone would end the wait.
#[test]
fn a_wait_that_has_company_leaves_the_timer_and_the_driver_takes_it_along() {
    let hour = Duration::from_secs(3600);
    let driver = busy_driver(hour);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let reader = Rc::new(Descriptor::Os(reader));
    let mut cx = Context::from_waker(Waker::noop());
    for round in 0..4 {
        let mut company: Vec<_> =
            (0..BUSY).map(|_| Op::new(misc::Poll { fd: Rc::clone(&reader) }, &driver)).collect();
        assert!(company.iter_mut().all(|poll| Pin::new(poll).poll(&mut cx).is_pending()));
        driver.process_completions().expect("the ring can be entered");
        let before = driver.counters().completions;
        rustix::io::write(&writer, &[0]).expect("room in the pipe");
        let mut nop = Op::new(Nop, &driver);
        assert!(Pin::new(&mut nop).poll(&mut cx).is_pending());
        driver.park(None).expect("the ring can be entered");
        let answers = driver.counters().completions - before;
        assert!(answers > 1, "round {round}: woken by {answers}");
        assert!(
            with_uring(&driver, |uring| uring.linger_armed),
            "round {round}: it is there for the next wait"
        );
        wait(&driver, nop).expect("a nop succeeds");
        for poll in company {
            wait(&driver, poll).expect("the pipe is readable");
        }
        let Descriptor::Os(fd) = &*reader else { unreachable!("made above") };
        assert_eq!(rustix::io::read(fd, &mut [0; 2]).expect("the byte"), 1);
    }
    assert_eq!(driver.shut_down(hour).leaked, 0);
}

/// The timer may expire while the worker polls its tasks. Its answer is then waiting when the wait begins, and ends nothing: without
/// another bound this would hang, and a request that has come would lie there unanswered.
#[test]
fn a_wait_for_company_ends_though_the_timer_was_over_before_it() {
    let driver = busy_driver(Duration::from_millis(1));
    with_uring(&driver, |uring| assert!(uring.arm_linger()));
    driver.process_completions().expect("the ring can be entered");
    // Expired, and not seen: the kernel has work for this thread.
    while with_uring(&driver, |uring| uring.linger_armed && !uring.ring.submission().taskrun()) {
        std::hint::spin_loop();
    }
    let mut nop = Op::new(Nop, &driver);
    assert!(Pin::new(&mut nop).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    driver.park(None).expect("the ring can be entered");
    wait(&driver, nop).expect("a nop succeeds");
    assert_eq!(driver.shut_down(Duration::from_secs(5)).leaked, 0);
}
