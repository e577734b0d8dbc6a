//! The ring: a bounded queue from one thread to one other, the only road by which values cross from worker to
//! worker.
//!
//! Two ends, one block. The [`Producer`] owns every slot from the tail up to the head plus the capacity; the
//! [`Consumer`] owns every slot from the head up to the published tail. A slot changes hands by one store:
//!
//! ```text
//!            head                    tail            next
//!  ┌──────────┬───────────────────────┬───────────────┬──────────┐
//!  │  free    │  the consumer's       │  pushed, not  │  free    │
//!  │          │  (published)          │  yet visible  │          │
//!  └──────────┴───────────────────────┴───────────────┴──────────┘
//!      stored by the consumer ▲            ▲ stored by the producer: `publish`
//! ```
//!
//! Both numbers only grow (and wrap with `usize`); the slot is the number modulo the capacity, a power of
//! two.
//!
//! **Room is made when it is used.** The slots are allocated by the first push, and the consumer looks at them only below a tail that
//! was published after it. So a ring that nobody sends over is a few words, as most of those between all pairs of many workers are.
//!
//! **Batches.** [`Producer::try_push`] writes a value where only the producer looks; [`Producer::publish`]
//! shows all of them with a single store. So a burst of a hundred messages moves the shared cache line once.
//! In the same way [`Consumer::pop_batch`] gives back the slots of a whole batch with a single store.
//!
//! **Remembering the other side.** Each end keeps the last value it saw of the other's number and reads the
//! real one only when by its memory the ring is full, or empty. The memory is never too optimistic, since
//! both numbers only grow: the other end can have done more than we know, never less.
//!
//! **Closing.** Whichever end is dropped first says so in `closed`; the other is there to see it. A producer
//! publishes what it pushed before it says so: thus once `Consumer::is_closed` has answered `true`, all
//! that will ever come is visible, and the consumer is done when `pop` is next empty.
//!
//! A consumer that goes drops what it leaves, and does not wait for the producer's end: somebody may be waiting for an
//! answer that hangs on one of these values. What is pushed at that moment is dropped by one of the two:
//!
//! ```text
//!   consumer                                  producer
//!   ────────                                  ────────
//! c1  closed := true                        p1  push, publish
//! c2  fence(SeqCst)                         p2  fence(SeqCst)
//! c3  sweep                                 p3  closed? ─▶ sweep
//! ```
//!
//! If p2 comes first in the order of fences, c3 finds the value; if c2 does, p3 sees the end. Both may want to sweep; then the
//! second leaves a mark in `sweepers` and goes away, and the first goes round again, as in [`mailbox`](super::mailbox). A
//! producer that never looks (p3) leaves its late values to the block, which drops the rest when both ends are gone.
#![expect(unsafe_code, reason = "slots are uninitialised memory that two threads hand to each other")]

use std::fmt;
use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use crate::sync::{Arc, UnsafeCell, mutant};

/// Makes a ring with room for `capacity` values.
///
/// # Panics
///
/// If `capacity` is not a power of two.
#[track_caller]
pub(crate) fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity.is_power_of_two(), "a ring's capacity must be a power of two, not {capacity}");
    let block = Arc::new(Block {
        tail: CachePadded::new(AtomicUsize::new(0)),
        head: CachePadded::new(AtomicUsize::new(0)),
        closed: AtomicBool::new(false),
        sweepers: AtomicUsize::new(0),
        capacity,
        slots: UnsafeCell::new(Box::default()),
    });
    // As if full: the first push looks at the head, and finds that there are no slots.
    let head_seen = 0usize.wrapping_sub(capacity);
    let producer = Producer { block: block.clone(), next: 0, tail: 0, head_seen };
    let consumer = Consumer { block, head: 0, tail_seen: 0 };
    (producer, consumer)
}

/// The end that pushes.
pub(crate) struct Producer<T: Send> {
    block: Arc<Block<T>>,
    /// Where the next value goes.
    next: usize,
    /// What was published: the value of `block.tail`, which nobody else writes.
    tail: usize,
    /// `block.head` when we last looked.
    head_seen: usize,
}

impl<T: Send> Producer<T> {
    /// Writes `value` behind the others, where the consumer does not see it before
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// The value, if the ring is full, counting what is not yet published. That the consumer is gone is not
    /// an error: what is in the ring will be dropped, whenever that happened.
    pub(crate) fn try_push(&mut self, value: T) -> Result<(), T> {
        if !self.has_room() {
            return Err(value);
        }
        self.block.slot(self.next).with_mut(|slot| {
            // SAFETY: `next` is at least `tail` and less than `head + capacity`, so until `publish` moves the
            // tail past it the slot is the producer's alone; `&mut self` makes us the only one acting for it.
            // The consumer's last read of it happened before the acquiring load by which we learned of that
            // head. Writing to a `MaybeUninit` drops nothing, and nothing is in it: the consumer moved out
            // what was.
            unsafe { (*slot).write(value) };
        });
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Shows the consumer all that was pushed. Whether there was anything to show, and so a reason to ring
    /// its doorbell.
    pub(crate) fn publish(&mut self) -> bool {
        if self.next == self.tail {
            return false;
        }
        self.tail = self.next;
        let order = if mutant("ring-publish-relaxed") { Ordering::Relaxed } else { Ordering::Release };
        // Pairs with the consumer's acquiring load in `refill`: publishes the slots up to this tail.
        self.block.tail.store(self.tail, order);
        true
    }

    /// Whether the next `try_push` would find room.
    pub(crate) fn has_room(&mut self) -> bool {
        if self.next.wrapping_sub(self.head_seen) == self.block.capacity() {
            self.block.make_room();
            // Pairs with the consumer's release of `head` in `give_back`: it has read those slots before, we
            // may write to them now.
            self.head_seen = self.block.head.load(Ordering::Acquire);
        }
        self.next.wrapping_sub(self.head_seen) < self.block.capacity()
    }

    /// How many values wait in the ring, those not yet published included. The consumer may have taken some
    /// since.
    pub(crate) fn len(&self) -> usize {
        // Relaxed: a number to judge the load by; no slot is touched on its account.
        self.next.wrapping_sub(self.block.head.load(Ordering::Relaxed))
    }

    /// How many values fit.
    pub(crate) fn capacity(&self) -> usize {
        self.block.capacity()
    }

    /// Whether the consumer is gone, so that what is pushed now will be dropped unseen.
    pub(crate) fn is_closed(&self) -> bool {
        // Relaxed: nothing is read on its account.
        self.block.closed.load(Ordering::Relaxed)
    }

    /// Drops what was published if the consumer is gone (p3 of the module's text). Call it after a publication and a
    /// `SeqCst` fence.
    pub(crate) fn sweep_if_closed(&self) {
        // Acquire: pairs with the Release in `Consumer::drop`, after its last `take`.
        if self.block.closed.load(Ordering::Acquire) && !mutant("ring: leave a closed ring alone") {
            self.block.sweep();
        }
    }
}

impl<T: Send> Drop for Producer<T> {
    fn drop(&mut self) {
        if mutant("ring-close-before-publish") {
            self.block.closed.store(true, Ordering::Release);
        }
        self.publish();
        // Pairs with the acquiring load in `Consumer::is_closed`: whoever sees it sees the last tail too.
        self.block.closed.store(true, Ordering::Release);
    }
}

impl<T: Send> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

/// The end that pops.
pub(crate) struct Consumer<T: Send> {
    block: Arc<Block<T>>,
    /// The oldest value that is still ours to take: `block.head`, which nobody else writes, or ahead of it
    /// within a batch.
    head: usize,
    /// `block.tail` when we last looked.
    tail_seen: usize,
}

impl<T: Send> Consumer<T> {
    /// Takes the oldest value that was published.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.refill() == 0 {
            return None;
        }
        let value = self.take();
        self.give_back();
        Some(value)
    }

    /// Hands at most `max` values to `each`, oldest first, and gives their slots back together at the end.
    /// How many they were.
    ///
    /// If `each` panics, the values it was given count as taken and the others stay.
    pub(crate) fn pop_batch(&mut self, max: usize, mut each: impl FnMut(T)) -> usize {
        /// Gives back what was taken, even if `each` unwinds.
        struct Batch<'a, T: Send>(&'a mut Consumer<T>);
        impl<T: Send> Drop for Batch<'_, T> {
            fn drop(&mut self) {
                self.0.give_back();
            }
        }
        let count = self.refill().min(max);
        let batch = Batch(self);
        for _ in 0..count {
            each(batch.0.take());
        }
        count
    }

    /// How many published values wait in the ring. The producer may have added some since.
    pub(crate) fn len(&self) -> usize {
        // Relaxed: a number to judge the load by; no slot is touched on its account.
        self.block.tail.load(Ordering::Relaxed).wrapping_sub(self.head)
    }

    /// How many values fit.
    pub(crate) fn capacity(&self) -> usize {
        self.block.capacity()
    }

    /// Whether the producer is gone. If so, whatever it pushed is visible, and nothing comes after that.
    pub(crate) fn is_closed(&self) -> bool {
        // Pairs with the release in `Producer::drop`, after its last `publish`.
        self.block.closed.load(Ordering::Acquire)
    }

    /// How many values can be taken, looking at the producer's tail only if we know of none.
    fn refill(&mut self) -> usize {
        if self.head == self.tail_seen {
            // Pairs with the release in `Producer::publish`: the slots before this tail are written.
            self.tail_seen = self.block.tail.load(Ordering::Acquire);
        }
        self.tail_seen.wrapping_sub(self.head)
    }

    /// Moves the oldest value out, without giving its slot back. There must be one: `refill` said so.
    fn take(&mut self) -> T {
        assert!(self.head != self.tail_seen, "a value is taken only after `refill` counted it");
        let value = self.block.slot(self.head).with(|slot| {
            // SAFETY: `head` is below the published tail, so the producer has written this slot, which
            // happened before our acquiring load of that tail, and will not touch it before `give_back` moves
            // the shared head past it. The value is read once: `head` moves past it below, and never back.
            unsafe { (*slot).assume_init_read() }
        });
        self.head = self.head.wrapping_add(1);
        value
    }

    /// Gives the producer the slots of all values taken so far.
    fn give_back(&self) {
        let order = if mutant("ring-give-back-relaxed") { Ordering::Relaxed } else { Ordering::Release };
        // Pairs with the acquiring load in `Producer::has_room`: our reads of those slots are over.
        self.block.head.store(self.head, order);
    }
}

impl<T: Send> Drop for Consumer<T> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `Producer::sweep_if_closed`, and hands over the right to take.
        self.block.closed.store(true, Ordering::Release);
        if !mutant("ring: close without fence") {
            fence(Ordering::SeqCst);
        }
        self.block.sweep();
    }
}

impl<T: Send> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

/// What both ends share. The two numbers stand on cache lines of their own: each is written by one end at
/// full speed, and would otherwise take the other's line away with every store.
struct Block<T> {
    /// Values before it are published. Written by the producer.
    tail: CachePadded<AtomicUsize>,
    /// Values before it are taken. Written by the consumer.
    head: CachePadded<AtomicUsize>,
    /// One end is gone. Written once by each.
    closed: AtomicBool,
    /// After the consumer's end: how many have found something to sweep since the sweeper last looked.
    sweepers: AtomicUsize,
    capacity: usize,
    /// Written once, by the producer before its first push; empty until then.
    slots: UnsafeCell<Slots<T>>,
}

type Slots<T> = Box<[UnsafeCell<MaybeUninit<T>>]>;

// SAFETY: a `Block` moves values of `T` between threads, hence `T: Send`; it never lends a `&T` to two of
// them, so `T: Sync` is not asked for. Its slots are reached through the one `Producer` and the one
// `Consumer` only, each with `&mut self`, and at any time each slot belongs to one of the two (module docs).
unsafe impl<T: Send> Sync for Block<T> {}
// SAFETY: a block on its own is a box of values, and whoever moves it has it alone; `T: Send` lets them go along.
unsafe impl<T: Send> Send for Block<T> {}

impl<T> Block<T> {
    fn capacity(&self) -> usize {
        self.capacity
    }

    /// Allocates the slots if that was not done yet. For the producer.
    fn make_room(&self) {
        // SAFETY: only the producer writes them, and this is called for it.
        if self.slots.with(|slots| unsafe { &*slots }.is_empty()) {
            let slots = (0..self.capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
            // SAFETY: nothing was pushed yet, so the tail is where the head is, and nobody else looks at slots: not before an
            // acquiring load of a tail that is published after this.
            self.slots.with_mut(|place| unsafe { *place = slots });
        }
    }

    /// The slot of a number at or beyond the head: pushed, or about to be.
    fn slot(&self, number: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // SAFETY: the slots were made before the first push, which comes before this: it is the producer that asks, or the number
        // is below a tail that was seen. They are never changed again, and live as long as the block.
        let slots: &Slots<T> = self.slots.with(|slots| unsafe { &*slots });
        &slots[number & (slots.len() - 1)]
    }

    /// Drops what was published, unless somebody is at it; that one then goes round again. Only after the consumer's last
    /// `take`: called by its end, or by one who saw `closed`.
    fn sweep(&self) {
        // Release: pairs with the Acquire of the exchange below, by which the present sweeper learns of what we published.
        // Acquire: pairs with the Release of the sweeper before us, whose place at the head we take.
        if self.sweepers.fetch_add(1, Ordering::AcqRel) != 0 && !mutant("ring: everyone sweeps at once") {
            return;
        }
        let mut seen = 1;
        loop {
            self.discard();
            // On success Release: pairs with the Acquire of the next sweeper's addition, and passes it the head. On failure Acquire:
            // pairs with the Release of the addition that made it fail, whose publication the next round finds.
            let done = self.sweepers.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire);
            match done {
                Ok(_) => return,
                Err(marks) => seen = marks,
            }
        }
    }

    /// Drops what is published. For the one sweeper.
    fn discard(&self) {
        // Relaxed: the takers before us are ordered by `closed` and `sweepers`. Acquire: pairs with `Producer::publish`.
        let mut head = self.head.load(Ordering::Relaxed);
        while head != self.tail.load(Ordering::Acquire) {
            let value = self.slot(head).with(|slot| {
                // SAFETY: `head` is below the published tail, so the slot holds a value, and the producer leaves it alone
                // until the head has moved past. The consumer is gone and there is one sweeper at a time, so nobody else
                // takes it; the head is stored before the value is dropped, so nobody takes it again.
                unsafe { (*slot).assume_init_read() }
            });
            head = head.wrapping_add(1);
            // Pairs with the acquiring load in `Producer::has_room`.
            self.head.store(head, Ordering::Release);
            drop(value);
        }
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        // Relaxed: both ends are gone, and the `Arc` has ordered all they did before this.
        let tail = self.tail.load(Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        while head != tail && !mutant("ring: the block forgets the rest") {
            self.slot(head).with_mut(|slot| {
                // SAFETY: from head to tail the slots hold values that were published (the producer's drop
                // published the rest) and not taken (every way out of the consumer's methods has stored its
                // head). Each is dropped once; if one panics, the rest leak.
                unsafe { (*slot).assume_init_drop() };
            });
            head = head.wrapping_add(1);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// Counts its drops.
    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_value_is_invisible_until_it_is_published() {
        // A push that leaked out early would break the batch: a receiver could be rung for half a burst.
        let (mut producer, mut consumer) = ring(4);
        producer.try_push(1).unwrap();
        assert_eq!((consumer.pop(), consumer.len(), producer.len()), (None, 0, 1));
        assert!(producer.publish());
        assert!(!producer.publish(), "nothing new, so no reason to ring");
        assert_eq!((consumer.pop(), consumer.pop()), (Some(1), None));
    }

    #[test]
    fn a_full_ring_gives_the_value_back() {
        // An off-by-one in `full` would overwrite the oldest value, or waste a slot.
        let (mut producer, mut consumer) = ring(2);
        assert_eq!([1, 2, 3].map(|n| producer.try_push(n)), [Ok(()), Ok(()), Err(3)]);
        producer.publish();
        assert_eq!(consumer.pop(), Some(1));
        assert_eq!([3, 4].map(|n| producer.try_push(n)), [Ok(()), Err(4)]);
        producer.publish();
        assert_eq!([(); 3].map(|()| consumer.pop()), [Some(2), Some(3), None]);
    }

    #[test]
    fn values_left_behind_are_dropped_once() {
        // Published, unpublished and taken values take different ways out; whichever end is last must drop
        // exactly the rest.
        for consumer_first in [true, false] {
            let drops = Arc::new(AtomicUsize::new(0));
            let (mut producer, mut consumer) = ring(8);
            for _ in 0..3 {
                producer.try_push(Counted(drops.clone())).unwrap();
            }
            producer.publish();
            drop(consumer.pop());
            producer.try_push(Counted(drops.clone())).unwrap();
            if consumer_first {
                drop(consumer);
                assert!(producer.is_closed());
                drop(producer);
            } else {
                drop(producer);
                assert!(consumer.is_closed());
                assert_eq!(consumer.len(), 3, "dropping the producer publishes what it had pushed");
                drop(consumer);
            }
            assert_eq!(drops.load(Ordering::Relaxed), 4);
        }
    }

    #[test]
    fn a_panic_in_the_middle_of_a_batch_loses_only_what_was_handed_over() {
        // If the head were not stored on the way out, the block would drop the taken values a second time.
        let drops = Arc::new(AtomicUsize::new(0));
        let (mut producer, mut consumer) = ring(4);
        for _ in 0..4 {
            producer.try_push(Counted(drops.clone())).unwrap();
        }
        producer.publish();
        let mut calls = 0;
        let batch = std::panic::AssertUnwindSafe(|| {
            consumer.pop_batch(4, |_value| {
                calls += 1;
                assert!(calls < 2, "the second value is refused");
            })
        });
        std::panic::catch_unwind(batch).unwrap_err();
        assert_eq!((drops.load(Ordering::Relaxed), consumer.len()), (2, 2));
        drop((producer, consumer));
        assert_eq!(drops.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn two_threads_see_one_sequence() {
        // The whole thing at speed, in a ring small enough to be full and empty all the time.
        let (mut producer, mut consumer) = ring::<u32>(8);
        let sender = std::thread::spawn(move || {
            for n in 0..100_000 {
                let mut value = n;
                while let Err(back) = producer.try_push(value) {
                    value = back;
                    producer.publish();
                    std::thread::yield_now();
                }
                if n % 3 == 0 {
                    producer.publish();
                }
            }
        });
        let mut expected = 0;
        loop {
            let closed = consumer.is_closed();
            let taken = consumer.pop_batch(5, |n| {
                assert_eq!(n, expected);
                expected += 1;
            });
            match (taken, closed) {
                (0, true) => break,
                (0, false) => std::thread::yield_now(),
                _ => {}
            }
        }
        assert_eq!(expected, 100_000);
        sender.join().unwrap();
    }

    #[test]
    fn the_ends_are_send_when_the_values_are() {
        // The ends go to different threads; that the ring itself asks `T: Send` keeps an `Rc` from crossing.
        fn assert_send<T: Send>(_: &T) {}
        let (producer, consumer) = ring::<std::cell::Cell<u8>>(1);
        assert_send(&producer);
        assert_send(&consumer);
        let _not_crossing = Rc::new(());
    }

    proptest! {
        #[test]
        fn behaves_as_a_bounded_queue(
            capacity_log in 0u32..4,
            steps in prop::collection::vec((0u8..4, 0usize..6), 0..200),
        ) {
            // Wrapping, remembered counterparts and batches in every mixture, against the queue anyone would
            // write.
            let capacity = 1 << capacity_log;
            let (mut producer, mut consumer) = ring(capacity);
            let (mut visible, mut hidden) = (VecDeque::new(), VecDeque::new());
            for (n, (step, count)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        let full = visible.len() + hidden.len() == capacity;
                        prop_assert_eq!(producer.try_push(n), if full { Err(n) } else { Ok(()) });
                        if !full {
                            hidden.push_back(n);
                        }
                    }
                    1 => {
                        prop_assert_eq!(producer.publish(), !hidden.is_empty());
                        visible.append(&mut hidden);
                    }
                    2 => prop_assert_eq!(consumer.pop(), visible.pop_front()),
                    _ => {
                        let mut taken = Vec::new();
                        consumer.pop_batch(count, |n| taken.push(n));
                        // A batch may stop where the consumer last saw the tail: what it takes is a beginning
                        // of what there is.
                        prop_assert_eq!(taken.is_empty(), count == 0 || visible.is_empty());
                        for n in taken {
                            prop_assert_eq!(Some(n), visible.pop_front());
                        }
                    }
                }
                prop_assert_eq!((producer.len(), consumer.len()), (visible.len() + hidden.len(), visible.len()));
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::model::{catches, holds};

    /// Three values through a ring of two: the producer meets a full ring and must write into a slot that was
    /// read.
    fn through_a_small_ring() {
        let (mut producer, mut consumer) = ring::<Box<u32>>(2);
        let sender = loom::thread::spawn(move || {
            for n in 0..3 {
                let mut value = Box::new(n);
                while let Err(back) = producer.try_push(value) {
                    value = back;
                    loom::thread::yield_now();
                }
                producer.publish();
            }
        });
        let mut expected = 0;
        while expected < 3 {
            match consumer.pop() {
                Some(n) => {
                    assert_eq!(*n, expected);
                    expected += 1;
                }
                None => loom::thread::yield_now(),
            }
        }
        assert_eq!(consumer.pop(), None);
        sender.join().unwrap();
    }

    #[test]
    fn loom_ring_in_order_nothing_lost_or_twice() {
        holds(through_a_small_ring);
    }

    #[test]
    fn loom_ring_publish_must_release() {
        catches("ring-publish-relaxed", through_a_small_ring);
    }

    #[test]
    fn loom_ring_giving_back_must_release() {
        catches("ring-give-back-relaxed", through_a_small_ring);
    }

    /// A batch that is published only by the producer's end: a consumer that saw the end must see the batch.
    fn closing_behind_a_batch() {
        let (mut producer, mut consumer) = ring::<Box<u32>>(2);
        let sender = loom::thread::spawn(move || {
            producer.try_push(Box::new(0)).unwrap();
            producer.try_push(Box::new(1)).unwrap();
        });
        if consumer.is_closed() {
            let mut taken = Vec::new();
            consumer.pop_batch(2, |n| taken.push(*n));
            assert_eq!(taken, [0, 1]);
        }
        sender.join().unwrap();
    }

    #[test]
    fn loom_ring_close_shows_all() {
        holds(closing_behind_a_batch);
    }

    #[test]
    fn loom_ring_close_must_follow_publish() {
        catches("ring-close-before-publish", closing_behind_a_batch);
    }

    /// A producer in front of a full ring while the consumer takes one and goes: what was pushed, before and after, must
    /// be dropped by then, although the producer's end is still there. One value (its `Arc`) stands for a question whose
    /// asker waits.
    fn full_and_close() {
        let (mut producer, mut consumer) = ring::<Arc<u32>>(1);
        let kept = Arc::new(7);
        producer.try_push(kept.clone()).unwrap();
        producer.publish();
        let receiver = loom::thread::spawn(move || {
            drop(consumer.pop());
            drop(consumer);
        });
        if producer.try_push(kept.clone()).is_ok() {
            producer.publish();
            fence(Ordering::SeqCst);
            producer.sweep_if_closed();
        }
        receiver.join().unwrap();
        assert_eq!(Arc::strong_count(&kept), 1, "a value lies in a ring that nobody reads");
    }

    #[test]
    fn loom_ring_full_and_close_leaves_nothing() {
        holds(full_and_close);
    }

    #[test]
    fn loom_ring_mutant_closed_ring_left_alone() {
        catches("ring: leave a closed ring alone", full_and_close);
    }

    #[test]
    fn loom_ring_mutant_close_without_fence() {
        catches("ring: close without fence", full_and_close);
    }

    #[test]
    fn loom_ring_mutant_two_sweepers_at_once() {
        catches("ring: everyone sweeps at once", full_and_close);
    }

    /// Both ends go at the same time, with values inside, one of which is published by the end itself; loom fails if a tracked
    /// `Arc` is dropped twice or leaked.
    fn both_ends_dropped_at_once() {
        let (mut producer, mut consumer) = ring::<Arc<u32>>(2);
        let kept = Arc::new(7);
        producer.try_push(kept.clone()).unwrap();
        producer.publish();
        producer.try_push(kept.clone()).unwrap();
        let sender = loom::thread::spawn(move || drop(producer));
        drop(consumer.pop());
        drop(consumer);
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn loom_ring_ends_dropped_at_once() {
        holds(both_ends_dropped_at_once);
    }

    #[test]
    fn loom_ring_mutant_block_forgets_the_rest() {
        catches("ring: the block forgets the rest", both_ends_dropped_at_once);
    }
}
