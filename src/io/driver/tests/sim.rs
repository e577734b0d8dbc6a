//! The simulation itself: time, chance, and several drivers on one thread.

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{Faults, Graveyard, PATIENCE, Rig, SimWorld, poll_once};
use crate::io::driver::{Descriptor, DriverConfig, Op, PlatformDriver};
use crate::io::op::misc::{Nop, Poll};
use crate::io::op::net::{Accept, Connect, Socket};

/// The order in which a hundred nops and as many bytes come back, and how long that took.
fn story(seed: u64) -> (Vec<usize>, Vec<u8>, u64) {
    let rig = Rig::sim(&DriverConfig::default(), seed, Faults::SOME);
    let order = rig.run(async {
        let numbered = (0..100).map(|number| {
            let nop = rig.op(Nop);
            async move {
                nop.await.expect("a nop succeeds");
                number
            }
        });
        numbered.collect::<FuturesUnordered<_>>().collect().await
    });
    let (one, other) = rig.pair();
    rig.send_all(&one, &[1; 1000]);
    let lengths = std::iter::from_fn(|| {
        let (received, _) = rig.run(rig.recv(&other, Vec::with_capacity(100)));
        Some(u8::try_from(received.expect("bytes are there")).expect("at most 100"))
    });
    let lengths = lengths.take(10).collect();
    let now_ns = rig.driver.now_ns();
    rig.end();
    (order, lengths, now_ns)
}

/// A failure that cannot be run again cannot be understood.
#[test]
fn the_same_seed_tells_the_same_story_and_another_another() {
    assert_eq!(story(1), story(1));
    let (order, lengths, _) = story(1);
    let (other_order, ..) = story(2);
    assert_ne!(order, other_order);
    assert!(lengths.iter().any(|length| *length < 100), "some receives are short");
}

/// A park must not take real time: an hour goes by at once, and exactly.
#[test]
fn a_park_moves_the_clock_to_its_deadline() {
    let rig = Rig::sim(&DriverConfig::default(), 0, Faults::NONE);
    let hour_ns = 3_600_000_000_000;
    rig.driver.park(Some(hour_ns)).expect("it never fails");
    assert_eq!(rig.driver.now_ns(), hour_ns);
    rig.driver.park(Some(5)).expect("it never fails");
    assert_eq!(rig.driver.now_ns(), hour_ns, "a clock is never set back");
    rig.end();
}

/// A test of a program that waits for what never comes must fail, and say so, not hang.
#[test]
fn a_deadlock_is_a_panic() {
    let rig = Rig::sim(&DriverConfig::default(), 0, Faults::SOME);
    let (one, _other) = rig.pair();
    let read = rig.recv(&one, vec![0; 8]);
    let panic = catch_unwind(AssertUnwindSafe(|| rig.run(read))).expect_err("nobody ever sends");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("simulated deadlock"), "{message}");
    rig.end();
}

/// Several workers on one thread: what one does must reach the other, and neither may run ahead of the other's time.
#[test]
fn drivers_of_one_world_meet() {
    for seed in 0..50 {
        let world = SimWorld::new(seed, Faults::SOME);
        let config = DriverConfig::default();
        let (server, client) = (Rig::in_world(&config, &world), Rig::in_world(&config, &world));
        let listener = server.driver.with_backend(|backend| match backend {
            PlatformDriver::Sim(sim) => Rc::new(sim.listen(80).expect("nobody listens yet")),
            PlatformDriver::Uring(_) => panic!("it is simulated"),
        });
        let mut accept = server.op(Accept::new(listener, true));
        assert!(poll_once(&mut accept).is_pending());
        let socket = Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0, direct: true };
        let near = Rc::new(client.run(client.op(socket)).expect("a socket"));
        let to = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 80)).into();
        let mut connect = client.op(Connect { fd: Rc::clone(&near), to });
        let (mut connected, mut accepted) = (None, None);
        while connected.is_none() || accepted.is_none() {
            turn(&mut connect, &mut connected, &client);
            turn(&mut accept, &mut accepted, &server);
        }
        connected.expect("the loop ended").expect("somebody listens");
        let (far, _) = accepted.expect("the loop ended").expect("somebody connected");
        let far = Rc::new(far);

        let mut read = server.recv(&far, vec![0; 1]);
        let mut send = client.send(&near, vec![9]);
        let (mut received, mut sent) = (None, None);
        while received.is_none() || sent.is_none() {
            turn(&mut read, &mut received, &server);
            turn(&mut send, &mut sent, &client);
        }
        assert_eq!(received.expect("the loop ended").1, [9]);

        let misused = client.op(Poll { fd: Rc::clone(&far) });
        assert!(client.run(misused).is_err(), "there is no poll here");
        let (wrong, _) = client.run(client.send(&far, vec![1]));
        assert_eq!(wrong.expect_err("another driver's descriptor").kind(), std::io::ErrorKind::InvalidInput);
        drop((near, far));
        client.end();
        server.end();
        assert_eq!(world.sockets_open(), 0, "seed {seed}");
    }
}

/// Polls until ready, then not again; parks its driver once.
fn turn<T: crate::io::driver::Operation>(op: &mut Op<T>, output: &mut Option<T::Output>, rig: &Rig) {
    if output.is_none()
        && let std::task::Poll::Ready(ready) = poll_once(op)
    {
        *output = Some(ready);
    }
    rig.driver.park(Some(rig.driver.now_ns() + 1_000_000)).expect("it never fails");
}

/// The check that guards every other test here: a program that writes to a buffer in flight must be caught.
#[test]
#[cfg(debug_assertions)]
fn writing_to_memory_that_the_kernel_has_is_noticed() {
    let rig = Rig::sim(&DriverConfig::default(), 0, Faults::NONE);
    let yard = Graveyard::default();
    let (one, other) = rig.pair();
    let buf = yard.buf(16);
    let scribble = buf.scribbler();
    let mut read = rig.recv(&one, buf);
    assert!(poll_once(&mut read).is_pending());
    rig.driver.process_completions().expect("it never fails");
    scribble();
    let noticed = catch_unwind(AssertUnwindSafe(|| {
        rig.send_all(&other, b"x");
        rig.turn_until(|| rig.driver.in_flight() == 0);
    }));
    let panic = noticed.expect_err("the buffer has changed under the kernel's hands");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("somebody wrote to memory that the kernel had"), "{message}");
    std::mem::forget((rig, read));
}

/// Descriptors of the process mean nothing here: they must be refused with a typed error.
#[test]
fn ordinary_descriptors_are_refused() {
    let rig = Rig::sim(&DriverConfig::default(), 0, Faults::NONE);
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    let one = Rc::new(Descriptor::Os(one.into()));
    let (result, buf) = rig.run(rig.recv(&one, vec![1, 2, 3]));
    assert_eq!(result.expect_err("not simulated").kind(), std::io::ErrorKind::Unsupported);
    assert_eq!(buf, [1, 2, 3]);
    assert_eq!(rig.driver.shut_down(PATIENCE).leaked, 0);
}
