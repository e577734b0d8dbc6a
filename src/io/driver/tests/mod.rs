//! The driver's promises, on every backend.
//!
//! A [`Rig`] is a driver with what a test needs around it: pipes, a way to run a future to its end, and a watchdog in the
//! form of bounded loops. Tests that hold for all backends take one and are called for each. A [`Tracked`] buffer tells
//! when it was dropped, and keeps its memory in a [`Graveyard`] afterwards, filled with a pattern: whatever the kernel
//! still writes there is found.
#![expect(unsafe_code, reason = "a buffer whose memory outlives it, to see who writes to it afterwards")]

mod cancel;
mod capability;
pub(crate) mod every_kind;
mod op;
mod shut_down;
mod sim;
mod slab;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::sim::{Faults, SimDriver, SimWorld};
use super::uring::UringDriver;
use super::{
    Descriptor, DriverConfig, DriverHandle, Multishot, MultishotLifecycle, Op, Operation, PlatformDriver,
    SharedDescriptor,
};
use crate::io::buf::{IoBuf, IoBufMut};
use crate::io::op::net::{Recv, RecvMany, Send, kept_whole};
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Turns after which a test has failed, because what it waits for never comes.
const TURNS_MAX: usize = 200_000;

/// Long enough for any kernel to give back what it was asked for, and a test that fails still ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// A driver under test.
struct Rig {
    driver: DriverHandle,
    world: Option<SimWorld>,
}

impl Rig {
    fn uring(config: &DriverConfig) -> Rig {
        let backend = UringDriver::new(config).expect("this kernel has io_uring");
        Rig { driver: DriverHandle::new(PlatformDriver::Uring(backend), config), world: None }
    }

    fn sim(config: &DriverConfig, seed: u64, faults: Faults) -> Rig {
        Rig::in_world(config, &SimWorld::new(seed, faults))
    }

    fn in_world(config: &DriverConfig, world: &SimWorld) -> Rig {
        let backend = SimDriver::new(world, config).expect("an event can be had");
        let driver = DriverHandle::new(PlatformDriver::Sim(backend), config);
        Rig { driver, world: Some(world.clone()) }
    }

    /// The two ends of a pipe that carries bytes both ways.
    fn pair(&self) -> (SharedDescriptor, SharedDescriptor) {
        let (one, other) = self.driver.with_backend(|backend| match backend {
            PlatformDriver::Uring(_) => {
                let (one, other) = UnixStream::pair().expect("a pair of sockets");
                (Descriptor::Os(one.into()), Descriptor::Os(other.into()))
            }
            PlatformDriver::Sim(sim) => sim.pair().expect("a pair of simulated sockets"),
        });
        (Rc::new(one), Rc::new(other))
    }

    /// Runs `future` on this driver.
    fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..TURNS_MAX {
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
            self.driver.park(None).expect("the driver can be entered");
        }
        panic!("not ready after {TURNS_MAX} turns: {:?}", self.driver);
    }

    /// Turns until `done`.
    fn turn_until(&self, mut done: impl FnMut() -> bool) {
        for _ in 0..TURNS_MAX {
            if done() {
                return;
            }
            let soon_ns = self.driver.now_ns() + 1_000_000;
            self.driver.park(Some(soon_ns)).expect("the driver can be entered");
        }
        panic!("not done after {TURNS_MAX} turns: {:?}", self.driver);
    }

    /// The operation as a future.
    fn op<T: Operation>(&self, operation: T) -> Op<T> {
        Op::new(operation, &self.driver)
    }

    fn recv<B: IoBufMut>(&self, fd: &SharedDescriptor, buf: B) -> Op<Recv<B>> {
        self.op(Recv { fd: Rc::clone(fd), buf, flags: 0, waits: false, stash: None, kept: kept_whole })
    }

    fn recv_many(&self, fd: &SharedDescriptor) -> Multishot<RecvMany> {
        Multishot::new(RecvMany { fd: Rc::clone(fd), credit: usize::MAX, once: None }, &self.driver)
    }

    fn send<B: IoBuf>(&self, fd: &SharedDescriptor, buf: B) -> Op<Send<B>> {
        self.op(Send { fd: Some(Rc::clone(fd)), buf, flags: 0, zero_copy: false })
    }

    /// Sends all of `bytes`, in as many pieces as it takes.
    fn send_all(&self, fd: &SharedDescriptor, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let (sent, _) = self.run(self.send(fd, left.to_vec()));
            left = &left[sent.expect("the other end is open")..];
        }
    }

    /// Receives exactly `bytes` bytes.
    fn recv_exact(&self, fd: &SharedDescriptor, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            let (received, buf) = self.run(self.recv(fd, Vec::with_capacity(bytes - all.len())));
            assert_ne!(received.expect("the other end is open"), 0, "the stream ended after {}", all.len());
            all.extend(buf);
        }
        all
    }

    /// Ends the driver; nothing may be left in flight.
    fn end(self) {
        assert_eq!(self.driver.shut_down(PATIENCE).leaked, 0, "{:?}", self.driver);
    }
}

/// Runs a test on io_uring, on a simulation where all goes well, and on some where all goes wrong.
fn on_every_backend(config: &DriverConfig, test: impl Fn(&Rig)) {
    let rig = Rig::uring(config);
    test(&rig);
    rig.end();
    let rig = Rig::sim(config, 0, Faults::NONE);
    test(&rig);
    rig.end();
    for seed in 0..20 {
        let rig = Rig::sim(config, seed, Faults::SOME);
        test(&rig);
        rig.end();
    }
}

/// Polls once.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls a stream once.
fn next_once<T: Operation + MultishotLifecycle>(stream: &mut Multishot<T>) -> Poll<Option<T::Item>> {
    stream.poll_next(&mut Context::from_waker(Waker::noop()))
}

/// A waker that counts.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the memory of dropped buffers lies, filled with a pattern.
#[derive(Clone, Default)]
pub(crate) struct Graveyard(Rc<Buried>);

#[derive(Default)]
struct Buried {
    made: Cell<usize>,
    graves: RefCell<Vec<(*mut u8, usize)>>,
}

/// What a dropped buffer is filled with: a pattern that no test sends.
pub(crate) const CANARY: u8 = 0xc9;

impl Graveyard {
    /// A buffer of `len` bytes, all zero.
    pub(crate) fn buf(&self, len: usize) -> Tracked {
        self.0.made.set(self.0.made.get() + 1);
        Tracked { base: Box::leak(vec![0; len].into_boxed_slice()).as_mut_ptr(), len, yard: self.clone() }
    }

    pub(crate) fn made(&self) -> usize {
        self.0.made.get()
    }

    pub(crate) fn dropped(&self) -> usize {
        self.0.graves.borrow().len()
    }

    /// Bytes that somebody wrote to buffers after they were dropped.
    pub(crate) fn disturbed(&self) -> usize {
        let graves = self.0.graves.borrow();
        let bytes = graves.iter().flat_map(|(base, len)| (0..*len).map(move |at| base.wrapping_add(at)));
        // SAFETY: a grave is `len` bytes that are never freed, and none of ours writes to it. If the kernel does, which is
        // what is looked for, a volatile read sees some byte or other.
        bytes.filter(|byte| unsafe { byte.read_volatile() } != CANARY).count()
    }
}

/// A buffer that is buried when it is dropped. Its memory is never freed: some test may find a late writer.
pub(crate) struct Tracked {
    base: *mut u8,
    len: usize,
    yard: Graveyard,
}

impl Tracked {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes, this buffer's own until it is dropped, and not the kernel's: an operation
        // that is in flight owns its buffer.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }
}

impl Tracked {
    /// What no program can do without `unsafe`: writes to the buffer after it was given away.
    fn scribbler(&self) -> impl FnOnce() + use<> {
        let base = self.base;
        // SAFETY: the memory is never freed; whoever has it is not running meanwhile. That it is not ours to write is the
        // hazard that is to be noticed.
        move || unsafe { base.write(1) }
    }
}

// SAFETY: the memory is on the heap, is never freed, and nobody else writes to it until the value is dropped; all of it
// is initialised.
unsafe impl IoBuf for Tracked {
    fn io_ptr(&self) -> *const u8 {
        self.base
    }
    fn io_len(&self) -> usize {
        self.len
    }
}

// SAFETY: `io_mut_ptr` names the same bytes as `io_ptr`, for whoever has the buffer alone, as its exclusive borrow shows; the length is
// fixed, and all of it stays initialised.
unsafe impl IoBufMut for Tracked {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.base
    }
    unsafe fn io_set_len(&mut self, _len: usize) {}
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // SAFETY: the memory is still there, and as the buffer is dropped nobody else may use it.
        unsafe { self.base.write_bytes(CANARY, self.len) };
        self.yard.0.graves.borrow_mut().push((self.base, self.len));
    }
}
