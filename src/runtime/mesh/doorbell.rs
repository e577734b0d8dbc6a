//! How a worker learns, asleep or awake, that another thread has something for it.
//!
//! A doorbell is a bitmap: a *control* word (one bit for the remote-wake list, one that says the worker has closed) and
//! one bit for each worker that may send over the mesh. Its owner, the *receiver*, takes the bits at the start of each
//! turn and reads only the rings whose bit was set, so a turn costs one load per 64 workers however many rings there are. A
//! *sender* first publishes (ring tail, list push), then rings.
//!
//! # Ringing and parking
//!
//! ```text
//!   sender                                     receiver
//!   ──────                                     ────────
//! s1  publish the message                    r1  rest := asleep
//! s2  before := fetch_or(bit)                r2  fence(SeqCst)
//!     bit was set? ─▶ done                   r3  any bit set? ─▶ go to r5, do not park
//! s3  fence(SeqCst)                          r4  park in the driver (until unparked, a completion, a timer)
//! s4  rest: asleep ─▶ awake? was it we?      r5  rest := awake
//!     ─▶ call the unparker                   r6  before := swap(0) for each word, read those rings
//! ```
//!
//! **No ring is slept through.** The fences s3 and r2 are totally ordered. If s3 comes first, then what stands before it
//! (the bit, s2) is seen by what stands after r2 (the look, r3), and the receiver does not park. If r2 comes first, the
//! announcement r1 is seen by s4, and the sender unparks. Leave out either fence, or r3, and both may look past each
//! other.
//!
//! **One wake per burst.** Senders that see the announcement compete for it with an exchange; one gets it, the others know
//! that it calls the unparker. An awake receiver costs a ringer no system call. An unparker that is called late, after the
//! receiver woke for another reason, wakes it once for nothing; that is the only price of a lost race.
//!
//! **A bit that is already set ends the ring at s2,** without fence and without look. That is right because s2 and r6 are
//! read-modify-writes of the same word, so one comes before the other. Had r6 come first, it would have cleared the bit. So
//! r6 is still to come, it reads from our s2 (or from a later one, in whose release sequence ours stands) and sees
//! our message. That the receiver gets as far as r6 is the debt of whoever set the bit: that one did, or is about to do, s3
//! and s4. A plain load instead of the read-modify-write would not do: it may return the old set bit although r6 has
//! passed, and the message would wait for the next ring.
//!
//! The debt has one consequence to know: while the first ringer of a burst is descheduled between s2 and s4, a parked
//! receiver sleeps on, and later ringers of that bit rely on it. For a mesh bit there is only one ringer.
//!
//! What unparks is an eventfd that the driver watches. A message from ring to ring (`IORING_OP_MSG_RING`) was tried
//! beside it, in interleaved rounds between two parked rings: it takes the same time and the same CPU, and foreign threads, which
//! have no ring, could not send it.
//!
//! # Summons
//!
//! Who makes work visible to thieves wakes one sleeper to search for it (see [`spawner`](crate::runtime::spawner)). The sleeper must know:
//! the role of the searcher comes with the wake. So it is the announcement that is exchanged once more, *asleep* for *summoned*, and
//! r5 finds it. Whoever exchanges it, ringer or summoner, unparks; the other does not.
//!
//! # After closing
//!
//! The control word's second bit is set once, by [`Doorbell::close`], and is the only place that says so. As ringing the
//! control bit and closing are read-modify-writes of one word, each ringer is either before the close, and the closer sees what it
//! had pushed, or after it, and is told. The remote list ends its life by this (see [`super::mailbox`]).

use std::fmt;

use crossbeam_utils::CachePadded;

use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU8, AtomicUsize, fence};
use crate::sync::mutant;

/// The bitmap, the announcement, and the way to wake the receiver.
pub(crate) struct Doorbell {
    /// The control word, of [`REMOTE`] and [`CLOSED`]; and the announcement: [`AWAKE`], [`ASLEEP`] or [`SUMMONED`]. The second of these
    /// while the receiver is about to park or parked, until somebody takes it upon himself to unpark it. Both on one line: who rings
    /// the control bit looks at the announcement next, and would wait for another line to come from the receiver's core.
    control_and_rest: CachePadded<(AtomicUsize, AtomicU8)>,
    /// One bit for each sending worker. Padded, so that a word is a line that only its senders and the receiver touch.
    senders: Box<[CachePadded<AtomicUsize>]>,
    /// Wakes the receiver out of its park, or makes its next park return at once. Must work for as long as the doorbell
    /// exists, even when the receiver's driver is gone: it owns what it writes to.
    unpark: Box<dyn Fn() + Send + Sync>,
}

/// What [`Doorbell::announce_sleep`] answers when something has arrived: do not park.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rung;

/// Whether and how a ring of the control bit is heard by the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Heard {
    /// It will take the bit in its next turn.
    Open,
    /// The same; it slept, and this ring has woken it.
    Woken,
    /// It will never look again.
    Closed,
}

/// How the receiver comes back from its sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum WokenAs {
    /// As it went.
    Itself,
    /// As the searcher.
    Searcher,
}

impl Doorbell {
    /// A silent doorbell for `senders` sending workers. `unpark` wakes the receiver and may be called from any thread
    /// until the doorbell is dropped.
    pub(crate) fn new(senders: usize, unpark: impl Fn() + Send + Sync + 'static) -> Doorbell {
        let words = senders.div_ceil(BITS);
        Doorbell {
            control_and_rest: CachePadded::new((AtomicUsize::new(0), AtomicU8::new(AWAKE))),
            senders: (0..words).map(|_| CachePadded::new(AtomicUsize::new(0))).collect(),
            unpark: Box::new(unpark),
        }
    }

    fn control(&self) -> &AtomicUsize {
        &self.control_and_rest.0
    }

    fn rest(&self) -> &AtomicU8 {
        &self.control_and_rest.1
    }

    /// Tells the receiver that the ring from worker `sender` has something. Publish first.
    ///
    /// # Panics
    ///
    /// If the doorbell was made for fewer senders.
    pub(crate) fn ring(&self, sender: usize) {
        let _ = self.strike(&self.senders[sender / BITS], 1 << (sender % BITS));
    }

    /// Tells the receiver that the remote list has something, or that it should look around. Publish first.
    pub(crate) fn ring_remote(&self) -> Heard {
        match self.strike(self.control(), REMOTE) {
            (before, _) if before & CLOSED != 0 => Heard::Closed,
            (_, true) => Heard::Woken,
            (_, false) => Heard::Open,
        }
    }

    /// Sets `bit` and does what the module's text argues. Returns the word as it was, and whether this has unparked the receiver.
    fn strike(&self, word: &AtomicUsize, bit: usize) -> (usize, bool) {
        if mutant("ring: skip by a load") && word.load(Relaxed) & bit != 0 {
            return (bit, false);
        }
        // Release: pairs with the Acquire of `take`, and publishes the message. Acquire: pairs with the Release of
        // `close`, and hands the consumer's end of the remote list to those who find it closed.
        let before = word.fetch_or(bit, AcqRel);
        if before & bit != 0 {
            return (before, false);
        }
        if !mutant("ring: no fence") {
            fence(SeqCst);
        }
        (before, self.rouse(AWAKE))
    }

    /// Takes the announcement, if there is one, and unparks the receiver. Whether it did.
    fn rouse(&self, to: u8) -> bool {
        // Relaxed: a fence of the caller's orders the look.
        if self.rest().load(Relaxed) != ASLEEP {
            return false;
        }
        // Release: pairs with the Acquire of `wake_up`; what a summoner did before comes before what the searcher does.
        let order = if mutant("rouse: relaxed") { Relaxed } else { Release };
        let taken = self.rest().compare_exchange(ASLEEP, to, order, Relaxed).is_ok();
        if taken || mutant("ring: unpark without the swap") {
            (self.unpark)();
        }
        taken
    }

    /// Wakes the receiver as the searcher, if it sleeps; see *Summons*. Whether it did.
    pub(crate) fn summon(&self) -> bool {
        self.rouse(SUMMONED)
    }

    /// Takes the control bit: whether the remote list was rung since the last time. For the receiver.
    pub(crate) fn take_remote(&self) -> bool {
        // Relaxed look first: silence costs no read-modify-write. A ring that this look misses is found next turn, and
        // before any sleep by `announce_sleep`.
        self.control().load(Relaxed) & REMOTE != 0 && self.control().fetch_and(!REMOTE, Acquire) & REMOTE != 0
    }

    /// Takes the bits of the mesh and calls `visit` with the number of each sender that rang. For the receiver.
    pub(crate) fn take_senders(&self, mut visit: impl FnMut(usize)) {
        for (index, word) in self.senders.iter().enumerate() {
            // As in `take_remote`.
            if word.load(Relaxed) == 0 {
                continue;
            }
            // Acquire: pairs with the Release of `strike`; what each of these senders published is visible from here on.
            let mut bits = word.swap(0, Acquire);
            while bits != 0 {
                visit(index * BITS + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// Announces that the receiver is about to park. After `Ok` it parks. When it is back it calls [`wake_up`](Doorbell::wake_up); so it
    /// does, without having parked, after an error.
    ///
    /// # Errors
    ///
    /// [`Rung`] if something has arrived; the receiver takes its bits instead of parking.
    pub(crate) fn announce_sleep(&self) -> Result<(), Rung> {
        self.rest().store(ASLEEP, Relaxed);
        if !mutant("sleep: no fence") {
            fence(SeqCst);
        }
        if self.is_rung() && !mutant("sleep: no second look") { Err(Rung) } else { Ok(()) }
    }

    /// Whether something has arrived that was not taken. For a receiver that is awake and looks around.
    pub(crate) fn is_rung(&self) -> bool {
        // Relaxed: the bits, and with them the messages, are acquired when taken.
        self.control().load(Relaxed) & REMOTE != 0 || self.has_senders()
    }

    /// Whether a sender of the mesh has rung. For the receiver.
    pub(crate) fn has_senders(&self) -> bool {
        // Relaxed: as in `is_rung`.
        self.senders.iter().any(|word| word.load(Relaxed) != 0)
    }

    /// Withdraws the announcement: ringing costs no system call from here on.
    pub(crate) fn wake_up(&self) -> WokenAs {
        // A ringer that still sees the announcement unparks for nothing; one that sees none has set its bit, which this
        // thread takes before it announces again. Acquire: pairs with the Release of `rouse`.
        match self.rest().swap(AWAKE, if mutant("wake up: relaxed") { Relaxed } else { Acquire }) {
            SUMMONED => WokenAs::Searcher,
            _ => WokenAs::Itself,
        }
    }

    /// Whether the receiver has announced that it sleeps and nobody has taken that up. A hint: true only for a moment.
    pub(crate) fn is_sleeping(&self) -> bool {
        self.rest().load(Relaxed) == ASLEEP
    }

    /// Whether the receiver has closed. A hint: true for ever, once it is.
    pub(crate) fn is_closed(&self) -> bool {
        self.control().load(Relaxed) & CLOSED != 0
    }

    /// Marks the receiver, which is awake, as closed, for ever; it never sleeps again. Everything pushed before a ring that was
    /// not answered with [`Heard::Closed`] is visible to the caller from here on.
    pub(crate) fn close(&self) {
        // Before the bit, whose Release publishes it: who is told that the receiver has closed sees no announcement.
        if !mutant("close: leave the announcement") {
            let _ = self.wake_up();
        }
        self.control().fetch_or(CLOSED, AcqRel);
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell")
            .field("control", &self.control().load(Relaxed))
            .field("asleep", &self.is_sleeping())
            .finish_non_exhaustive()
    }
}

/// The bit of the control word that stands for the remote list.
const REMOTE: usize = 1;

/// The bit of the control word that says that the receiver has closed.
const CLOSED: usize = 2;

/// The receiver takes its turns.
const AWAKE: u8 = 0;

/// The receiver has announced its sleep.
const ASLEEP: u8 = 1;

/// The receiver has announced its sleep, and is being woken as the searcher.
const SUMMONED: u8 = 2;

/// Senders per word.
const BITS: usize = usize::BITS as usize;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A doorbell for `senders`, and how often its receiver was unparked.
    fn doorbell(senders: usize) -> (Doorbell, Arc<AtomicUsize>) {
        let unparked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&unparked);
        let bell = Doorbell::new(senders, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (bell, unparked)
    }

    #[test]
    fn every_sender_that_rang_is_visited_once() {
        // An off-by-one between words would visit a neighbour's ring and leave a message lying.
        let (bell, _) = doorbell(200);
        for sender in [0, 63, 64, 127, 199, 64] {
            bell.ring(sender);
        }
        let mut seen = Vec::new();
        bell.take_senders(|sender| seen.push(sender));
        assert_eq!(seen, [0, 63, 64, 127, 199]);
        bell.take_senders(|sender| panic!("sender {sender} rang once"));
        assert!(!bell.take_remote(), "nobody rang the control bit");
    }

    #[test]
    fn a_burst_unparks_a_sleeper_once_and_an_awake_receiver_never() {
        // Each unpark is a system call for the sender; one per message would undo the mesh.
        let (bell, unparked) = doorbell(3);
        bell.ring(0);
        assert_eq!(unparked.load(Ordering::Relaxed), 0, "the receiver was awake");
        bell.take_senders(|_| ());
        assert_eq!(bell.announce_sleep(), Ok(()));
        bell.ring(0);
        bell.ring(1);
        bell.ring(2);
        assert_eq!(bell.ring_remote(), Heard::Open);
        assert_eq!(unparked.load(Ordering::Relaxed), 1);
        assert_eq!(bell.wake_up(), WokenAs::Itself);
    }

    #[test]
    fn a_sleeper_is_summoned_once_and_knows_it_and_nobody_else_is() {
        // A role that is handed over twice, or to somebody who does not learn of it, leaves no searcher or one for ever.
        let (bell, unparked) = doorbell(1);
        assert!(!bell.summon(), "it was awake");
        assert_eq!(bell.announce_sleep(), Ok(()));
        assert!(bell.summon() && !bell.summon());
        bell.ring(0);
        assert_eq!(unparked.load(Ordering::Relaxed), 1, "who summons unparks, and the ringer need not");
        assert_eq!(bell.wake_up(), WokenAs::Searcher);
        assert_eq!(bell.wake_up(), WokenAs::Itself);
    }

    #[test]
    fn what_rang_before_the_announcement_prevents_the_sleep() {
        // A receiver that parks on a set bit sleeps on a message: no later ring of that bit would unpark it.
        let (bell, _) = doorbell(1);
        bell.ring(0);
        assert_eq!(bell.announce_sleep(), Err(Rung));
        assert_eq!(bell.wake_up(), WokenAs::Itself);
        bell.take_senders(|_| ());
        assert_eq!(bell.ring_remote(), Heard::Open);
        assert_eq!(bell.announce_sleep(), Err(Rung));
        assert!(bell.take_remote());
        assert_eq!(bell.announce_sleep(), Ok(()));
    }

    #[test]
    fn a_closed_receiver_is_never_unparked_and_says_so() {
        // After its end the worker's driver is gone; an unpark would be written to nobody.
        let (bell, unparked) = doorbell(1);
        assert_eq!(bell.announce_sleep(), Ok(()));
        assert_eq!(bell.wake_up(), WokenAs::Itself);
        bell.close();
        assert_eq!(bell.ring_remote(), Heard::Closed);
        bell.ring(0);
        assert_eq!(unparked.load(Ordering::Relaxed), 0);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::sync::{Arc, model};

    /// What the threads of a model share: a doorbell whose unparker counts, and one message per sender.
    struct Shared {
        bell: Doorbell,
        unparked: Arc<AtomicUsize>,
        messages: [AtomicUsize; 2],
    }

    fn shared() -> Arc<Shared> {
        let unparked = Arc::new(AtomicUsize::new(0));
        let count = unparked.clone();
        let bell = Doorbell::new(2, move || {
            count.fetch_add(1, Relaxed);
        });
        Arc::new(Shared { bell, unparked, messages: [AtomicUsize::new(0), AtomicUsize::new(0)] })
    }

    /// A sender publishes and rings while the receiver goes to sleep. Afterwards it must not be that the receiver
    /// parked, nobody unparked it, and the message lies there.
    fn park_against_ring() {
        let shared = shared();
        let sender = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.messages[0].store(1, Relaxed);
                shared.bell.ring(0);
            }
        });
        let parks = shared.bell.announce_sleep().is_ok();
        let mut seen = 0;
        if !parks {
            shared.bell.take_senders(|from| seen = shared.messages[from].load(Relaxed));
            assert_eq!(seen, 1, "the bit was set and the message is not visible");
        }
        sender.join().expect("the sender does not panic");
        let unparked = shared.unparked.load(Relaxed);
        assert!(!parks || unparked == 1, "the receiver sleeps on a message");
        assert!(parks || unparked <= 1);
    }

    #[test]
    fn loom_a_ring_is_never_slept_through() {
        model::holds(park_against_ring);
    }

    #[test]
    fn loom_mutant_ring_without_fence() {
        model::catches("ring: no fence", park_against_ring);
    }

    #[test]
    fn loom_mutant_sleep_without_fence() {
        model::catches("sleep: no fence", park_against_ring);
    }

    #[test]
    fn loom_mutant_sleep_without_second_look() {
        model::catches("sleep: no second look", park_against_ring);
    }

    /// A sender that has rung before rings again while the receiver takes bits and then goes to sleep: it may find the bit
    /// set, and skip. The second message must be seen, or the receiver kept from sleeping, or unparked. (The first ring
    /// is made before the threads part; loom explores too few interleavings when one thread does both.)
    fn skip_against_take() {
        let shared = shared();
        shared.messages[0].store(1, Relaxed);
        shared.bell.ring(0);
        let sender = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.messages[0].store(2, Relaxed);
                shared.bell.ring(0);
            }
        });
        let mut seen = 0;
        shared.bell.take_senders(|from| seen = shared.messages[from].load(Relaxed));
        let parks = shared.bell.announce_sleep().is_ok();
        sender.join().expect("the sender does not panic");
        let due = shared.unparked.load(Relaxed) == 1 || !parks;
        assert!(seen == 2 || due, "message 2 waits behind a bit that was taken");
    }

    #[test]
    fn loom_a_ring_may_skip_a_set_bit() {
        model::holds(skip_against_take);
    }

    #[test]
    fn loom_mutant_skip_by_a_load() {
        model::catches("ring: skip by a load", skip_against_take);
    }

    /// Two senders ring at once while the receiver goes to sleep: it is unparked exactly once if it parks.
    fn two_ringers() {
        let shared = shared();
        let senders = [0, 1].map(|from| {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.messages[from].store(1, Relaxed);
                shared.bell.ring(from);
            })
        });
        let parks = shared.bell.announce_sleep().is_ok();
        for sender in senders {
            sender.join().expect("the sender does not panic");
        }
        let unparked = shared.unparked.load(Relaxed);
        assert!(if parks { unparked == 1 } else { unparked <= 1 }, "one wake per burst");
        let mut seen = 0;
        shared.bell.take_senders(|from| seen += shared.messages[from].load(Relaxed));
        assert_eq!(seen, 2);
    }

    #[test]
    fn loom_two_ringers_unpark_once() {
        model::holds(two_ringers);
    }

    /// A sleeper is summoned while it wakes by itself. If it comes as the searcher, it sees what its summoner did before.
    fn summon_against_wake() {
        let shared = shared();
        assert_eq!(shared.bell.announce_sleep(), Ok(()));
        let summoner = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.messages[0].store(1, Relaxed);
                shared.bell.summon()
            }
        });
        let summoned = shared.bell.wake_up() == WokenAs::Searcher;
        let seen = shared.messages[0].load(Relaxed);
        assert!(!summoned || seen == 1, "it was summoned, and does not see what for");
        assert_eq!(summoner.join().expect("it does not panic"), summoned, "both know who searches");
    }

    #[test]
    fn loom_who_is_summoned_sees_what_for() {
        model::holds(summon_against_wake);
    }

    #[test]
    fn loom_mutant_rouse_relaxed() {
        model::catches("rouse: relaxed", summon_against_wake);
    }

    #[test]
    fn loom_mutant_wake_up_relaxed() {
        model::catches("wake up: relaxed", summon_against_wake);
    }

    /// A ringer rings twice while the receiver, which had announced its sleep, wakes and closes. Once a ring has been answered
    /// with `Closed`, nobody is unparked any more: there may be nobody left to receive it.
    fn ring_against_close() {
        let shared = shared();
        assert_eq!(shared.bell.announce_sleep(), Ok(()));
        let ringer = thread::spawn({
            let shared = shared.clone();
            move || {
                let before = shared.unparked.load(Relaxed);
                match shared.bell.ring_remote() {
                    Heard::Open | Heard::Woken => {}
                    Heard::Closed => {
                        assert_eq!(shared.unparked.load(Relaxed), before, "a closed receiver was unparked")
                    }
                }
                shared.bell.ring(0);
            }
        });
        shared.bell.close();
        // Whoever rang before the close is seen after it.
        let rung = shared.bell.take_remote();
        ringer.join().expect("it does not panic");
        assert!(shared.unparked.load(Relaxed) <= 1);
        assert!(shared.unparked.load(Relaxed) == 0 || rung || shared.bell.take_remote());
    }

    #[test]
    fn loom_a_closed_receiver_is_not_unparked() {
        model::holds(ring_against_close);
    }

    #[test]
    fn loom_mutant_close_leaves_the_announcement() {
        model::catches("close: leave the announcement", ring_against_close);
    }

    #[test]
    fn loom_mutant_unpark_by_everyone() {
        model::catches("ring: unpark without the swap", two_ringers);
    }
}
