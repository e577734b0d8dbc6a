//! Slots: whose they are, and when they are free again.

use std::mem::forget;
use std::rc::Rc;

use super::{Faults, Graveyard, PATIENCE, Rig, on_every_backend, poll_once};
use crate::io::buf::{FixedBuf, IoBuf};
use crate::io::driver::slab::{Abandon, About, LetGo, Notice, PayloadType, StableSlab};
use crate::io::driver::{Answer, DriverConfig, Token, Yields};
use crate::io::op::misc::Nop;
use crate::io::op::net::RecvVectored;

impl LetGo for u64 {
    fn let_go(&mut self) {}
}

static NUMBER: PayloadType = PayloadType::of::<u64>("number", |_, _| ());

static ABOUT: About =
    About { multishot: false, items_max: usize::MAX, yields: Yields::Number, descriptor: None };

fn answer(number: u32) -> Answer {
    Answer { result: Ok(number), more: false, drained: false, buffer: None }
}

/// What is to be done outside the slab's borrow.
fn notices(slab: &mut StableSlab) -> Vec<Notice> {
    slab.take_notices().map(|(_, notices)| notices).unwrap_or_default()
}

fn insert(slab: &mut StableSlab, number: u64) -> Token {
    let (token, _) = slab.insert(number, &NUMBER, ABOUT, None);
    slab.arm(token);
    token
}

/// A late answer to the slot's last tenant must not reach the present one.
#[test]
fn a_stale_completion_is_counted_and_changes_nothing() {
    let mut slab = StableSlab::new(8);
    let first = insert(&mut slab, 1);
    slab.complete(first, answer(10));
    assert_eq!(slab.take::<u64>(first), 1);

    let second = insert(&mut slab, 2);
    assert_eq!(second.index(), first.index(), "the slot is used again");
    assert_ne!(second.generation(), first.generation(), "in another life");
    slab.complete(first, answer(11));
    slab.complete(Token::new(77, 0), answer(12));
    slab.complete(Token::reserved(3), answer(13));
    assert_eq!(slab.stale(), 3);
    assert!(!slab.is_done(second) && !slab.is_done(first));

    slab.complete(second, answer(20));
    slab.complete(second, answer(21));
    assert_eq!(slab.stale(), 4, "a second terminal answer is one too many");
    assert_eq!(slab.answer(second), Some((Yields::Number, answer(20))));
    assert_eq!(slab.take::<u64>(second), 2);
    let discarded = notices(&mut slab).into_iter().filter(|notice| matches!(notice, Notice::Discard(..)));
    assert_eq!(discarded.count(), 4, "what they carried is let go, outside the borrow");
    assert_eq!((slab.in_flight(), slab.occupied()), (0, 0));
}

/// The first answer of a zero-copy send says how much was sent; the kernel has the buffer until the second. A slot that were done
/// with the first would give the buffer back, and its next owner would write into what the network is sending.
#[test]
fn an_answer_in_two_stages_ends_the_operation_with_the_second() {
    let first = || Answer { more: true, ..answer(700) };
    let mut slab = StableSlab::new(8);
    let token = insert(&mut slab, 1);
    slab.complete(token, first());
    assert!(!slab.is_done(token) && slab.in_flight() == 1);
    slab.complete(token, answer(0));
    assert!(slab.is_done(token) && slab.in_flight() == 0);
    assert_eq!(slab.answer(token), Some((Yields::Number, answer(700))), "the first says how much");
    assert_eq!(slab.take::<u64>(token), 1);

    // Dropped between the two, or before both: the slot is kept until the second.
    for dropped_between in [true, false] {
        let token = insert(&mut slab, 2);
        if dropped_between {
            slab.complete(token, first());
        }
        assert!(matches!(slab.abandon(token), Abandon::Cancel));
        if !dropped_between {
            slab.complete(token, first());
        }
        assert_eq!(slab.in_flight(), 1);
        let releases = |slab: &mut StableSlab| {
            notices(slab).iter().filter(|notice| matches!(notice, Notice::Release(_))).count()
        };
        assert_eq!(releases(&mut slab), 0, "the kernel has the buffer");
        slab.complete(token, answer(0));
        assert_eq!((slab.in_flight(), releases(&mut slab)), (0, 1));
        assert_eq!(slab.take::<u64>(token), 2);
    }
    assert_eq!((slab.occupied(), slab.stale()), (0, 0));
}

/// Bookkeeping that counts a slot twice, or never, shows as a count that does not return to zero.
#[test]
fn slots_are_reused_and_counts_return_to_zero() {
    let mut slab = StableSlab::new(1000);
    for round in 0..5 {
        let tokens: Vec<Token> = (0..1000).map(|number| insert(&mut slab, number)).collect();
        assert_eq!((slab.in_flight(), slab.occupied()), (1000, 1000));
        assert!(!slab.has_room(), "the bound holds in round {round}");
        for (number, token) in (0..).zip(&tokens) {
            slab.complete(*token, answer(number));
        }
        assert_eq!((slab.in_flight(), slab.occupied()), (0, 1000));
        for (number, token) in (0u64..).zip(tokens) {
            assert_eq!(slab.take::<u64>(token), number);
        }
        assert_eq!(slab.occupied(), 0);
    }
}

/// A bound that is met must be an error with the buffer back, not a panic, not silence.
#[test]
fn a_full_slab_gives_the_operation_back() {
    let config = DriverConfig { operations_max: 2, ..DriverConfig::default() };
    on_every_backend(&config, |rig| {
        let (one, _other) = rig.pair();
        let mut first = rig.recv(&one, vec![0; 8]);
        let mut second = rig.recv(&one, vec![0; 8]);
        assert!(poll_once(&mut first).is_pending() && poll_once(&mut second).is_pending());
        let buf = vec![7; 8];
        let address = buf.as_ptr();
        let (refused, buf) = rig.run(rig.recv(&one, buf));
        assert_eq!(refused.expect_err("two is the bound").kind(), std::io::ErrorKind::QuotaExceeded);
        assert_eq!((buf.as_ptr(), &buf[..]), (address, &[7; 8][..]));
        drop((first, second));
        rig.turn_until(|| rig.driver.occupied() == 0);
        rig.run(rig.op(Nop)).expect("there is room again");
    });
}

/// An operation that does not fit into a slot must work like any other, and be counted.
#[test]
fn a_large_operation_is_boxed() {
    on_every_backend(&DriverConfig::default(), |rig| {
        let (one, other) = rig.pair();
        let bufs: [FixedBuf; 12] = std::array::from_fn(|_| FixedBuf::heap(4));
        let receive = RecvVectored { fd: Rc::clone(&one), bufs, stash: None };
        rig.send_all(&other, &[5; 40]);
        let (received, bufs) = rig.run(rig.op(receive));
        let received = received.expect("bytes are there");
        assert!((1..=40).contains(&received));
        assert_eq!(bufs.iter().map(FixedBuf::len).sum::<usize>(), received);
        assert!(bufs.iter().all(|buf| buf.iter().all(|byte| *byte == 5)));
        assert_eq!(rig.driver.counters().boxed, 1);
        assert_eq!(rig.driver.occupied(), 0);

        // One that is dropped in flight is unboxed and dropped like any other.
        let yard = Graveyard::default();
        let bufs: [_; 12] = std::array::from_fn(|_| yard.buf(4).slice(..));
        let mut dropped = rig.op(RecvVectored { fd: Rc::clone(&one), bufs, stash: None });
        // The short reads of a simulation may have left bytes: then it is ready, which is as well.
        let _ = poll_once(&mut dropped);
        drop(dropped);
        rig.turn_until(|| rig.driver.occupied() == 0);
        assert_eq!(yard.dropped(), 12);
    });
}

/// Nobody ever asks for what a forgotten future left: the driver's end must free it, once, and not before the kernel is done.
#[test]
fn a_forgotten_operation_is_freed_when_the_driver_ends() {
    let config = DriverConfig::default();
    let makers: [fn(&DriverConfig) -> Rig; 2] = [Rig::uring, |config| Rig::sim(config, 3, Faults::SOME)];
    for make in makers {
        let yard = Graveyard::default();
        let rig = make(&config);
        let (one, other) = rig.pair();
        let (silent, other_silent) = rig.pair();
        let mut answered = rig.recv(&one, yard.buf(16));
        let mut unanswered = rig.recv(&silent, yard.buf(16));
        let mut nop = rig.op(Nop);
        assert!(poll_once(&mut answered).is_pending() && poll_once(&mut unanswered).is_pending());
        assert!(poll_once(&mut nop).is_pending());
        forget((answered, unanswered, nop));
        rig.send_all(&other, &[1; 16]);
        rig.turn_until(|| rig.driver.in_flight() == 1);
        assert_eq!((rig.driver.occupied(), yard.dropped()), (3, 0));
        assert_eq!(rig.driver.shut_down(PATIENCE).leaked, 0);
        assert_eq!((rig.driver.in_flight(), rig.driver.occupied(), yard.dropped()), (0, 3, 0));
        drop((rig, one, other, silent, other_silent));
        assert_eq!((yard.dropped(), yard.disturbed()), (2, 0), "a forgotten future does not keep the driver");
    }
}
