//! The backend against the real kernel.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::UringDriver;
use crate::io::buf::{BufPool, Pool};
use crate::io::driver::{Descriptor, DriverConfig, DriverHandle, Op, PlatformDriver};
use crate::io::op::fs::{ReadAt, WriteAt};
use crate::io::op::misc::Nop;

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
    let _ = driver.shut_down(std::time::Duration::from_secs(5));
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
    assert_eq!(driver.shut_down(std::time::Duration::from_secs(5)).leaked, 0);
}
