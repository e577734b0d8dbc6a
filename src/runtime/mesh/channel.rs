//! Typed channels: the mesh's rings for a program's own messages.
//!
//! A channel is a [`ring`](super::ring) and two [`bells`](super::bell): the receiver waits at one of them for values, the
//! sender at the other for room. A [`Receiver`] can read several rings, one for each sender that [`full`](super::full) gave it; then
//! all of these senders ring its one bell.
//!
//! ```text
//!   Sender ──push, publish──▶ ring ──pop──▶ Receiver
//!     ▲    ──────ring────────────────────▶ bell        is anybody waiting for values?
//!   bell   ◀─────────────────ring───────────           is it waiting for room?
//! ```
//!
//! **Several rings.** A receiver does not look into all of them, but into those that were *marked*: one bit for each, beside the bell.
//!
//! ```text
//!   sender                                     receiver
//!   ──────                                     ────────
//! s1  publish                                r1  take the marks: swap(0)
//! s2  fence(SeqCst)                          r2  fence(SeqCst)
//! s3  mark on? ─▶ s6                         r3  empty each ring that was marked
//! s4  mark                                       nothing left? announce, and r1 once more
//! s5  fence(SeqCst)
//! s6  is anybody waiting? ─▶ wake
//! ```
//!
//! A mark that is on at s3 spares the sender the write to a line that all senders share. If s2 comes before r2 in the order of fences,
//! r3 finds what s1 published. If r2 does, s3 sees that r1 has taken the mark, and puts a new one. With s5 the mark is to the bell what a
//! value is in a channel with one ring, where the value itself is looked for: published before the fence, looked for after the
//! announcement.
//!
//! **An end belongs to no worker.** It can be sent to wherever it is used, and used from there at once: by a task that stays, by
//! one that may be stolen between two awaits, by a thread outside of the runtime. What makes the other end's task ready is
//! its waker, which knows how to reach its worker. So nothing has to be bound, and there is nothing to get wrong.
//!
//! **A burst wakes once.** The first value of a burst finds the receiver's waker and takes it; the others find none, and cost
//! a store, a fence and a load. On the way to a worker that sleeps, its own doorbell does the same once more.
//!
//! **Fairness.** A receiver takes at most [`STREAK_MAX`] values from one ring before it looks at the next; and an end that has
//! been ready [`UNBROKEN_MAX`] times in a row lets the other tasks of its worker go first.
//!
//! **The end.** A dropped sender publishes, says so and rings: the receiver takes what is left and then yields `None`. A dropped
//! receiver drops what it has not taken, and what was under way (see [`ring`](super::ring)), says so and rings: a
//! sender that waits for room is told.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::bell::Bell;
use super::ring::{Consumer, Producer, ring};
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::{AtomicUsize, fence};
use crate::sync::{Arc, mutant};

/// Values taken from one ring in a row while others may wait: as many as a cache line of pointers eight times over, so
/// that changing rings costs little, and a value waits for at most so many of each other sender.
const STREAK_MAX: u32 = 64;

/// Times that an end is ready without a pause before it lets other tasks go first: some microseconds' worth. The worker
/// counts polls, and one that never waits would be a single poll for ever.
const UNBROKEN_MAX: u32 = 256;

/// Makes a channel from one task to one other, on whichever workers, with room for `capacity` values.
///
/// Either end can be sent to where it is used, and awaited in every kind of task.
///
/// ```
/// use veloq::mesh;
///
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// let (mut numbers, mut received) = mesh::channel(64);
/// let other = veloq::workers().last().expect("there is at least one worker");
/// let sum = veloq::spawn_to(other, async move || {
///     let mut sum = 0;
///     while let Some(number) = received.recv().await {
///         sum += number;
///     }
///     sum
/// });
/// for number in 1..=100 {
///     numbers.send(number).await.expect("it is being read");
/// }
/// drop(numbers);
/// assert_eq!(sum.await.expect("it does not panic"), 5050);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If `capacity` is not a power of two.
#[track_caller]
#[must_use]
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let values = Arc::new(Values::new(1));
    let (sender, lane) = lane(capacity, &values, 0);
    (sender, Receiver::new(values, vec![lane]))
}

/// The ring of number `lane` among those of the receiver that waits at `values`.
#[track_caller]
pub(super) fn lane<T: Send>(capacity: usize, values: &Arc<Values>, lane: usize) -> (Sender<T>, Lane<T>) {
    let (producer, consumer) = ring(capacity);
    let room = Arc::new(Bell::new());
    let values = MarkAtEnd { values: values.clone(), lane };
    let sender = Sender { ring: producer, values, room: room.clone(), unbroken: 0 };
    (sender, Lane { ring: consumer, room: RingAtEnd(room) })
}

/// Where a receiver waits, and which of its rings have something.
pub(super) struct Values {
    bell: Bell,
    /// A bit for each ring, if there are several.
    marks: Box<[AtomicUsize]>,
}

/// Marks per word.
const BITS: usize = usize::BITS as usize;

impl Values {
    /// Of a receiver with so many rings.
    pub(super) fn new(lanes: usize) -> Values {
        let words = if lanes > 1 { lanes.div_ceil(BITS) } else { 0 };
        Values { bell: Bell::new(), marks: (0..words).map(|_| AtomicUsize::new(0)).collect() }
    }

    /// Says that a ring has something, or has ended: s2 to s6.
    fn ring(&self, lane: usize) {
        let Some(word) = self.marks.get(lane / BITS) else { return self.bell.ring() };
        if !mutant("channel: look at the mark without fence") {
            fence(SeqCst);
        }
        let bit = 1 << (lane % BITS);
        // Relaxed, here and in `take`: the fences on both sides order the marks and the rings.
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
            if !mutant("channel: ring behind a mark without fence") {
                fence(SeqCst);
            }
        }
        self.bell.ring_behind_a_fence();
    }

    /// Adds the marks that have come to those in `taken`, r1 and r2. Whether there were any.
    fn take(&self, taken: &mut [usize]) -> bool {
        let mut any = false;
        for (word, taken) in self.marks.iter().zip(taken) {
            // Looked at first: where nobody was, there is nothing to write.
            if word.load(Relaxed) != 0 {
                *taken |= word.swap(0, Relaxed);
                any = true;
            }
        }
        if any && !mutant("channel: take marks without fence") {
            fence(SeqCst);
        }
        any
    }
}

/// The end of a channel that sends. Dropping it ends the channel; what was sent still arrives.
pub struct Sender<T: Send> {
    // In this order: when the sender is dropped, the ring says that it has ended, and then the bell is rung.
    ring: Producer<T>,
    values: MarkAtEnd,
    /// Where this end waits.
    room: Arc<Bell>,
    unbroken: u32,
}

impl<T: Send> Sender<T> {
    /// Sends a value, once there is room for it.
    ///
    /// If the future is dropped before it is ready, the value is dropped and not sent. To keep it, wait for
    /// [`room`](Sender::room) instead, and then [`try_send`](Sender::try_send).
    ///
    /// # Errors
    ///
    /// Gives the value back if the receiver has gone. A value that was sent just before that is dropped like all that the
    /// receiver did not take.
    pub async fn send(&mut self, value: T) -> Result<(), SendError<T>> {
        let mut value = Some(value);
        poll_fn(|cx| {
            if self.poll_room(cx).is_pending() {
                return Poll::Pending;
            }
            let value = value.take().expect("a future is not polled after it was ready");
            Poll::Ready(self.try_send(value).map_err(|error| SendError(error.into_inner())))
        })
        .await
    }

    /// Sends a value if there is room for it now.
    ///
    /// # Errors
    ///
    /// Gives the value back: [`TrySendError::Full`] if there is no room, [`TrySendError::Closed`] if the receiver has gone.
    pub fn try_send(&mut self, value: T) -> Result<(), TrySendError<T>> {
        if self.ring.is_closed() {
            return Err(TrySendError::Closed(value));
        }
        self.ring.try_push(value).map_err(TrySendError::Full)?;
        self.ring.publish();
        // Rings, and thereby fences what was published from the look at the other end.
        self.values.ring();
        self.ring.sweep_if_closed();
        Ok(())
    }

    /// Waits until there is room for a value, or the receiver has gone: then [`try_send`](Sender::try_send) does not answer
    /// `Full`.
    pub async fn room(&mut self) {
        poll_fn(|cx| self.poll_room(cx)).await;
    }

    /// Whether the receiver has gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.ring.is_closed()
    }

    /// Values that were sent and not taken, now. The receiver may have taken some meanwhile.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether the receiver has taken all that was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values that may be under way at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.capacity()
    }

    fn poll_room(&mut self, cx: &Context<'_>) -> Poll<()> {
        if pauses(&mut self.unbroken, cx) {
            return Poll::Pending;
        }
        // A receiver that goes leaves an empty ring, so its end need not be looked at here.
        if self.ring.has_room() {
            return Poll::Ready(());
        }
        self.room.announce(cx.waker());
        if !mutant("channel: no second look for room") && self.ring.has_room() {
            self.room.withdraw();
            return Poll::Ready(());
        }
        self.unbroken = 0;
        Poll::Pending
    }
}

/// The end of a channel that receives. Dropping it drops what it has not taken.
///
/// It is a [`Stream`] of what is sent, for what works on streams.
pub struct Receiver<T: Send> {
    /// `None` is one whose sender has gone, and all it sent was taken.
    lanes: Vec<Option<Lane<T>>>,
    /// How many are left.
    open: usize,
    /// The ring to take from next, and how many were taken from it in a row.
    turn: usize,
    streak: u32,
    /// If there are several: those that may have something, by the marks that were taken.
    marked: Box<[usize]>,
    unbroken: u32,
    /// Where this end waits.
    values: Arc<Values>,
}

/// The receiving end of one ring.
pub(super) struct Lane<T: Send> {
    // In this order, as in `Sender`.
    ring: Consumer<T>,
    room: RingAtEnd,
}

impl<T: Send> Receiver<T> {
    pub(super) fn new(values: Arc<Values>, lanes: Vec<Lane<T>>) -> Receiver<T> {
        let marked = vec![0; values.marks.len()].into();
        let open = lanes.len();
        let lanes = lanes.into_iter().map(Some).collect();
        Receiver { lanes, open, turn: 0, streak: 0, marked, unbroken: 0, values }
    }

    /// Receives the next value, or `None` when every sender has gone and all they sent was taken.
    ///
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Takes the next value if there is one.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`] if there is none yet, [`TryRecvError::Closed`] if there will be none.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        match self.take() {
            Poll::Ready(Some(value)) => Ok(value),
            Poll::Ready(None) => Err(TryRecvError::Closed),
            Poll::Pending => Err(TryRecvError::Empty),
        }
    }

    /// [`recv`](Receiver::recv), for futures written by hand.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if pauses(&mut self.unbroken, cx) {
            return Poll::Pending;
        }
        let taken = self.take();
        if taken.is_ready() {
            return taken;
        }
        self.values.bell.announce(cx.waker());
        if !mutant("channel: no second look for values") {
            let taken = self.take();
            if taken.is_ready() {
                self.values.bell.withdraw();
                return taken;
            }
        }
        self.unbroken = 0;
        Poll::Pending
    }

    /// Takes a value, from each ring in its turn. `Pending` if there is none, `None` if there will be none.
    fn take(&mut self) -> Poll<Option<T>> {
        if self.marked.is_empty() {
            // There is one ring: no need of marks.
            return self.take_from(0);
        }
        if self.streak == STREAK_MAX {
            // Those that have come meanwhile have their turn before this one has its next.
            self.values.take(&mut self.marked);
            self.turn_to((self.turn + 1) % self.lanes.len());
        }
        loop {
            let Some(lane) = self.next_marked() else {
                if self.open == 0 {
                    return Poll::Ready(None);
                }
                if !self.values.take(&mut self.marked) {
                    return Poll::Pending;
                }
                continue;
            };
            if lane != self.turn {
                self.turn_to(lane);
            }
            if let Poll::Ready(Some(value)) = self.take_from(lane) {
                self.streak += 1;
                return Poll::Ready(Some(value));
            }
            self.marked[lane / BITS] &= !(1 << (lane % BITS));
        }
    }

    /// Takes a value from one ring, and lets go of it at its end.
    fn take_from(&mut self, number: usize) -> Poll<Option<T>> {
        let Some(lane) = &mut self.lanes[number] else { return Poll::Ready(None) };
        // An end is looked at before what it may have left: what is empty then stays empty.
        let mut closed = lane.ring.is_closed();
        if let Some(value) = lane.ring.pop() {
            lane.room.0.ring();
            return Poll::Ready(Some(value));
        }
        if mutant("channel: look at the end last") {
            closed = lane.ring.is_closed();
        }
        if !closed {
            return Poll::Pending;
        }
        self.lanes[number] = None;
        self.open = if mutant("channel: the end of one is the end of all") { 0 } else { self.open - 1 };
        Poll::Ready(None)
    }

    /// The next ring that was marked, beginning with the one whose turn it is.
    fn next_marked(&self) -> Option<usize> {
        let (first, bit) = (self.turn / BITS, self.turn % BITS);
        let later = self.marked[first] >> bit;
        if later != 0 {
            return Some(self.turn + later.trailing_zeros() as usize);
        }
        let words = self.marked.len();
        let mut others = (1..=words).map(|step| (first + step) % words);
        let word = others.find(|word| self.marked[*word] != 0)?;
        Some(word * BITS + self.marked[word].trailing_zeros() as usize)
    }

    fn turn_to(&mut self, lane: usize) {
        (self.turn, self.streak) = (lane, 0);
    }
}

/// Whether an end that was ready so many times in a row has to let others go first. If so, its task is woken.
fn pauses(unbroken: &mut u32, cx: &Context<'_>) -> bool {
    if *unbroken < UNBROKEN_MAX {
        *unbroken += 1;
        return false;
    }
    *unbroken = 0;
    cx.waker().wake_by_ref();
    true
}

/// The other side's bell, rung when this side goes.
pub(super) struct RingAtEnd(Arc<Bell>);

impl Drop for RingAtEnd {
    fn drop(&mut self) {
        if !mutant("channel: go in silence") {
            self.0.ring();
        }
    }
}

/// The way to a receiver's bell from one of its rings, which is marked when its sender goes.
struct MarkAtEnd {
    values: Arc<Values>,
    lane: usize,
}

impl MarkAtEnd {
    fn ring(&self) {
        self.values.ring(self.lane);
    }
}

impl Drop for MarkAtEnd {
    fn drop(&mut self) {
        if !mutant("channel: go in silence") {
            self.ring();
        }
    }
}

impl<T: Send> Stream for Receiver<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.get_mut().poll_recv(cx)
    }
}

impl<T: Send> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl<T: Send> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len: usize = self.lanes.iter().flatten().map(|lane| lane.ring.len()).sum();
        f.debug_struct("Receiver").field("senders", &self.open).field("len", &len).finish_non_exhaustive()
    }
}

/// The receiver has gone. Gives the value back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<T>(pub T);

/// Why a value was not sent. Gives it back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// There is no room for it now.
    Full(T),
    /// The receiver has gone.
    Closed(T),
}

/// Why no value was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// There is none yet.
    Empty,
    /// Every sender has gone, and all they sent was taken.
    Closed,
}

impl<T> TrySendError<T> {
    /// The value.
    #[must_use]
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(value) | TrySendError::Closed(value) => value,
        }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the receiver has gone")
    }
}

impl<T> Error for SendError<T> {}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "the channel is full",
            TrySendError::Closed(_) => "the receiver has gone",
        })
    }
}

impl<T> Error for TrySendError<T> {}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryRecvError::Empty => "the channel is empty",
            TryRecvError::Closed => "every sender has gone",
        })
    }
}

impl Error for TryRecvError {}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::sync::model::{self, block_on};

    /// Two values through a channel for one: the sender waits for room, the receiver for values, and then for the end.
    fn there_and_the_end() {
        let (mut sender, mut receiver) = channel::<Box<u32>>(1);
        let other = thread::spawn(move || {
            block_on(async {
                sender.send(Box::new(0)).await.expect("it is being read");
                sender.send(Box::new(1)).await.expect("it is being read");
            });
        });
        block_on(async {
            assert_eq!(receiver.recv().await.as_deref(), Some(&0));
            assert_eq!(receiver.recv().await.as_deref(), Some(&1));
            assert_eq!(receiver.recv().await, None);
        });
        other.join().expect("it does not panic");
    }

    #[test]
    fn loom_a_channel_waits_for_nothing_that_is_there() {
        model::holds(there_and_the_end);
    }

    #[test]
    fn loom_mutant_channel_without_second_look_for_values() {
        model::catches("channel: no second look for values", there_and_the_end);
    }

    #[test]
    fn loom_mutant_channel_without_second_look_for_room() {
        model::catches("channel: no second look for room", there_and_the_end);
    }

    #[test]
    fn loom_mutant_sender_goes_in_silence() {
        model::catches("channel: go in silence", there_and_the_end);
    }

    #[test]
    fn loom_mutant_channel_looks_at_the_end_last() {
        model::catches("channel: look at the end last", there_and_the_end);
    }

    /// A receiver goes while its sender waits for room: the sender must be told, and what it had sent be dropped.
    fn full_and_deserted() {
        let (mut sender, receiver) = channel::<Arc<u32>>(1);
        let kept = Arc::new(7);
        sender.try_send(kept.clone()).expect("there is room for one");
        let other = thread::spawn(move || drop(receiver));
        let refused = block_on(sender.send(kept.clone()));
        other.join().expect("it does not panic");
        drop(refused);
        assert_eq!(Arc::strong_count(&kept), 1, "a value lies in a ring that nobody reads");
    }

    #[test]
    fn loom_a_sender_that_waits_is_told_of_the_end() {
        model::holds(full_and_deserted);
    }

    #[test]
    fn loom_mutant_receiver_goes_in_silence() {
        model::catches("channel: go in silence", full_and_deserted);
    }

    /// Two senders of one receiver: neither's values are missed, and the end is the end of both. The one that has a thread of its own
    /// sends once more, where its mark may be on or just taken.
    fn two_senders() {
        let values = Arc::new(Values::new(2));
        let (mut first, first_lane) = lane::<u32>(2, &values, 0);
        let (mut second, second_lane) = lane::<u32>(1, &values, 1);
        let mut receiver = Receiver::new(values, vec![first_lane, second_lane]);
        second.try_send(4).expect("there is room");
        drop(second);
        first.try_send(1).expect("there is room");
        let other = thread::spawn(move || {
            first.try_send(2).expect("there is room");
            first
        });
        let sum = block_on(async {
            let mut sum = 0;
            while sum != 7 {
                sum += receiver.recv().await.expect("one of them is there");
            }
            sum
        });
        assert_eq!(sum, 7);
        drop(other.join().expect("it does not panic"));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn loom_one_receiver_hears_two_senders() {
        model::holds(two_senders);
    }

    #[test]
    fn loom_mutant_the_end_of_one_is_the_end_of_all() {
        model::catches("channel: the end of one is the end of all", two_senders);
    }

    #[test]
    fn loom_mutant_mark_looked_at_without_fence() {
        model::catches("channel: look at the mark without fence", two_senders);
    }

    #[test]
    fn loom_mutant_ring_behind_a_mark_without_fence() {
        model::catches("channel: ring behind a mark without fence", two_senders);
    }

    /// A mark is left whose value was taken already, and is taken while its ring is sent over once more.
    fn send_behind_an_idle_mark() {
        let values = Arc::new(Values::new(2));
        let (mut first, first_lane) = lane::<u32>(1, &values, 0);
        let (_second, second_lane) = lane::<u32>(1, &values, 1);
        let mut receiver = Receiver::new(values, vec![first_lane, second_lane]);
        for n in [1, 2] {
            first.try_send(n).expect("there is room");
            assert_eq!(receiver.try_recv(), Ok(n));
        }
        let other = thread::spawn(move || {
            first.try_send(3).expect("there is room");
            first
        });
        assert_eq!(block_on(receiver.recv()), Some(3));
        other.join().expect("it does not panic");
    }

    #[test]
    fn loom_a_mark_that_is_on_is_enough() {
        model::holds(send_behind_an_idle_mark);
    }

    #[test]
    fn loom_mutant_marks_taken_without_fence() {
        model::catches("channel: take marks without fence", send_behind_an_idle_mark);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::Ordering;
    use std::task::{Wake, Waker};

    use futures_util::StreamExt;

    use super::*;
    use crate::io::driver::waiter::waker_that_panics;

    /// Counts its drops.
    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts its wakes.
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counting() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_full_channel_and_a_closed_one_give_the_value_back() {
        // A value that was neither sent nor given back would be lost without a word.
        let (mut sender, mut receiver) = channel(2);
        assert_eq!([1, 2].map(|n| sender.try_send(n)), [Ok(()), Ok(())]);
        assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!(receiver.try_recv(), Ok(1));
        assert_eq!(sender.try_send(3), Ok(()));
        drop(receiver);
        assert_eq!(sender.try_send(4), Err(TrySendError::Closed(4)));
        assert!(sender.is_closed() && sender.is_empty());
    }

    #[test]
    fn a_waker_that_panics_takes_no_value_with_it() {
        // Who waits at the other end is woken when a value has left the ring, and before it has reached who takes it.
        let (mut sender, mut receiver) = channel(1);
        sender.try_send(1).expect("there is room");
        let waker = waker_that_panics();
        assert!(std::pin::pin!(sender.room()).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(receiver.try_recv(), Ok(1));
        assert!(std::pin::pin!(receiver.recv()).poll(&mut Context::from_waker(&waker)).is_pending());
        sender.try_send(2).expect("there is room");
        assert_eq!(receiver.try_recv(), Ok(2));
    }

    #[test]
    fn what_was_sent_before_the_end_arrives_and_then_the_end() {
        // A receiver that looked at the end first would lose what stands before it.
        let (mut sender, mut receiver) = channel(4);
        sender.try_send(1).expect("there is room");
        assert_eq!(receiver.try_recv(), Ok(1));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        sender.try_send(2).expect("there is room");
        drop(sender);
        assert_eq!(receiver.try_recv(), Ok(2));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn a_receiver_is_a_stream_that_ends_with_its_sender() {
        // What collects a stream would stop before its end, or wait behind it for ever.
        let (mut sender, receiver) = channel(4);
        for n in 1..=3 {
            sender.try_send(n).expect("there is room");
        }
        drop(sender);
        let mut all = pin!(receiver.map(|n| n * 2).collect::<Vec<u32>>());
        let all = all.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(all, Poll::Ready(vec![2, 4, 6]));
    }

    #[test]
    fn values_under_way_are_dropped_when_the_receiver_goes() {
        // If they stayed in the ring until the sender goes, a question in it would keep its asker waiting for ever.
        let drops = Arc::new(AtomicUsize::new(0));
        let (mut sender, mut receiver) = channel(4);
        for _ in 0..3 {
            sender.try_send(Counted(Arc::clone(&drops))).expect("there is room");
        }
        drop(receiver.try_recv().expect("there are three"));
        drop(receiver);
        assert_eq!(drops.load(Ordering::Relaxed), 3);
        drop(sender);
        assert_eq!(drops.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_burst_wakes_its_receiver_once() {
        // A wake for each value would be a message to another core for each.
        let (count, waker) = counting();
        let (mut sender, mut receiver) = channel(64);
        assert!(receiver.poll_recv(&mut Context::from_waker(&waker)).is_pending());
        for n in 0..50 {
            sender.try_send(n).expect("there is room");
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        let received = std::iter::from_fn(|| receiver.try_recv().ok());
        assert!(received.eq(0..50));
        sender.try_send(50).expect("there is room");
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "nobody waits, so nobody is woken");
    }

    #[test]
    fn each_ring_is_read_in_its_turn() {
        // One that is never empty would keep the receiver to itself, and the value of the other would wait for ever.
        let values = Arc::new(Values::new(2));
        let (mut flood, first) = lane(1024, &values, 0);
        let (mut quiet, second) = lane(1024, &values, 1);
        let mut receiver = Receiver::new(values, vec![first, second]);
        while flood.try_send("flood").is_ok() {}
        // The quiet one comes when the other has begun.
        assert_eq!(receiver.try_recv(), Ok("flood"));
        quiet.try_send("quiet").expect("there is room");
        let before = std::iter::from_fn(|| receiver.try_recv().ok()).position(|value| value == "quiet");
        assert_eq!(before, Some(usize::try_from(STREAK_MAX).expect("it is small") - 1));
        drop(quiet);
        assert_eq!(receiver.try_recv(), Ok("flood"), "the end of one is not the end of both");
    }

    #[test]
    fn rings_are_found_by_their_marks_and_the_last_end_is_the_end() {
        // One beyond a word's edge that is looked for in the wrong place would never be read, or its end never be seen.
        let values = Arc::new(Values::new(130));
        let (senders, lanes): (Vec<_>, Vec<_>) = (0..130).map(|number| lane(2, &values, number)).unzip();
        let mut receiver = Receiver::new(values, lanes);
        let mut senders: Vec<_> = senders.into_iter().map(Some).collect();
        let order = [129, 0, 63, 64, 128, 127, 1];
        for number in order {
            let sender = senders[number].as_mut().expect("it is there");
            sender.try_send(number).expect("there is room");
        }
        let mut received: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        received.sort_unstable();
        assert_eq!(received, [0, 1, 63, 64, 127, 128, 129]);
        for number in order.into_iter().chain(0..130) {
            assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty), "before the end of {number}");
            senders[number] = None;
            if senders.iter().all(Option::is_none) {
                break;
            }
        }
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    fn an_end_that_is_always_ready_lets_others_go_first() {
        // A worker counts polls, so a poll that never ends is not bounded by anything else.
        let (count, waker) = counting();
        let mut cx = Context::from_waker(&waker);
        let (mut sender, mut receiver) = channel(1024);
        while sender.try_send(()).is_ok() {}
        let taken = std::iter::repeat_with(|| receiver.poll_recv(&mut cx)).take_while(Poll::is_ready).count();
        assert_eq!(taken, usize::try_from(UNBROKEN_MAX).expect("it is small"));
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "and comes back");
        assert!(receiver.poll_recv(&mut cx).is_ready());
    }
}
