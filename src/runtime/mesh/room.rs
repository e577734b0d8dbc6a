//! How the sender of a full ring is told that there is room again.
//!
//! ```text
//!   sender                                    receiver
//!   ──────                                    ────────
//! s1  ask: wanted := true                   r1  pop some: head advanced
//! s2  fence(SeqCst)                         r2  fence(SeqCst)
//! s3  try to push again                     r3  wanted? swap(false) was true?
//!     still full ─▶ it will be rung             ─▶ ring the sender's doorbell
//! ```
//!
//! If s2 comes before r2 in the order of fences, r3 sees the wish and rings. If r2 comes first, s3 sees the head that r1
//! advanced, and the push succeeds. Either way no outbox is forgotten.

use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::{AtomicBool, fence};
use crate::sync::mutant;

/// Whether the sender of one ring waits for room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    wanted: AtomicBool,
}

impl Room {
    /// Sender: asks to be rung when there is room. Try again after this.
    pub(crate) fn ask(&self) {
        // Relaxed, here and below: the fences order the word and the ring's head; nothing is published by it.
        self.wanted.store(true, Relaxed);
        if !mutant("room: ask without fence") {
            fence(SeqCst);
        }
    }

    /// Receiver: whether the sender has asked since the last time. Pop first.
    #[must_use]
    pub(crate) fn was_asked_for(&self) -> bool {
        if !mutant("room: answer without fence") {
            fence(SeqCst);
        }
        self.wanted.load(Relaxed) && self.wanted.swap(false, Relaxed)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::runtime::mesh::ring::ring;
    use crate::sync::model;

    /// A sender finds its ring full and asks, while the receiver takes what is in it. In the end the second value must be in
    /// the ring, or the sender rung.
    fn full_against_pop() {
        let (mut producer, mut consumer) = ring::<u32>(1);
        let room = crate::sync::Arc::new(Room::default());
        producer.try_push(1).expect("it is empty");
        producer.publish();
        let receiver = thread::spawn({
            let room = room.clone();
            move || {
                let popped = consumer.pop_batch(4, |_| ());
                (popped > 0 && room.was_asked_for(), consumer)
            }
        });
        let mut sent = producer.try_push(2).is_ok();
        if !sent {
            room.ask();
            sent = !mutant("room: no second try") && producer.try_push(2).is_ok();
        }
        let (rung, _consumer) = receiver.join().expect("it does not panic");
        assert!(sent || rung, "a message waits for room that is there");
    }

    #[test]
    fn loom_room_is_never_missed() {
        model::holds(full_against_pop);
    }

    #[test]
    fn loom_mutant_room_asked_without_fence() {
        model::catches("room: ask without fence", full_against_pop);
    }

    #[test]
    fn loom_mutant_room_answered_without_fence() {
        model::catches("room: answer without fence", full_against_pop);
    }

    #[test]
    fn loom_mutant_room_without_second_try() {
        model::catches("room: no second try", full_against_pop);
    }
}
