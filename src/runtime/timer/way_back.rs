//! The way back: how an entry reaches its wheel when its `Sleep` ends on another thread.
//!
//! A wheel belongs to its worker, and its entries are plain memory. A [`Sleep`](crate::time::Sleep) may go
//! elsewhere, with a task that was stolen or through a channel, and be dropped or polled there. It then
//! leaves its key here; the owner collects the keys in its next turn. Until then the entry stays armed, which
//! is harmless: at worst it wakes a task that looks round and sleeps on.
//!
//! **The list** is a stack of keys, linked through an array beside it: a push is one compare-and-swap, tried
//! again only when another push came between; the owner takes the whole stack with one swap. Nobody else
//! pops, so a key cannot come back while a push is looking at it.
//!
//! **The block's life.** A `Sleep` holds a plain `&'static WayBack`, hence no count is touched when a timer
//! is made or dropped. That is affordable because blocks are not freed but used again, by a later wheel:
//! there are never more of them than there were wheels at one time. A block is free when its wheel is gone
//! and so are the keys that were out. Nobody counts those while the wheel lives (it knows); after that they
//! are *orphans*:
//!
//! ```text
//! wheel:  swap the stack for CLOSED · collect what was on it · orphans += keys still out ──┐
//! sleeps: push, find CLOSED · orphans −= 1 ────────────────────────────────────────────────┤
//!                                              whoever brings it to zero: the block is free
//! ```
//!
//! Before the wheel's addition the number is zero or negative, and each orphan that comes makes it more so;
//! hence only the addition, or a subtraction after it, can arrive at zero, and only one of them does.

use std::sync::OnceLock;

use crate::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use crate::sync::mutant;

/// The bottom of the stack. Keys are smaller.
const EMPTY: u32 = u32::MAX;
/// Instead of the stack's top, once the wheel is gone.
const CLOSED: u32 = u32::MAX - 1;

/// log₂ of the cells in the first segment. Each further one holds as many as all before it together.
const SEGMENT_LOG2: u32 = 6;
/// So many doublings that every `u32` has its place.
const SEGMENTS: usize = 33 - SEGMENT_LOG2 as usize;

/// A deadline that is not known yet. No entry is ever placed at zero.
const UNKNOWN: u64 = 0;

/// What a wheel shares with the `Sleep`s that hold its keys.
pub(super) struct WayBack {
    /// The key that was returned last, or `EMPTY`, or `CLOSED`.
    top: AtomicU32,
    /// What the wheel still had out when it closed, less what came back since.
    orphans: AtomicI64,
    /// One cell per key. Grown by the owner before it hands the key out, never shrunk.
    segments: [OnceLock<Box<[Cell]>>; SEGMENTS],
}

struct Cell {
    /// The key below this one on the stack.
    below: AtomicU32,
    /// When a fresh entry is due, once it was placed: its `Sleep` may have gone where it cannot ask the
    /// wheel.
    deadline_ns: AtomicU64,
}

/// Whether the block may serve another wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a block that is free and not passed on is lost"]
pub(super) enum Block {
    InUse,
    Free,
}

impl WayBack {
    pub(super) fn new() -> WayBack {
        WayBack {
            top: AtomicU32::new(EMPTY),
            orphans: AtomicI64::new(0),
            segments: [const { OnceLock::new() }; SEGMENTS],
        }
    }

    /// Owner: makes room for all keys below `keys_end`.
    pub(super) fn grow(&self, keys_end: usize) {
        let Some(last) = keys_end.checked_sub(1) else { return };
        let (last, _) = place_of(last);
        for (n, segment) in self.segments[..=last].iter().enumerate() {
            segment.get_or_init(|| {
                let len = 1usize << (SEGMENT_LOG2 as usize + n.saturating_sub(1));
                (0..len)
                    .map(|_| Cell { below: AtomicU32::new(EMPTY), deadline_ns: AtomicU64::new(UNKNOWN) })
                    .collect()
            });
        }
    }

    /// Any thread: gives `key` back to its wheel, or reports it as an orphan.
    pub(super) fn push(&self, key: u32) -> Block {
        let below = &self.cell(key).below;
        let mut top = self.top.load(Ordering::Relaxed);
        while top != CLOSED {
            // Relaxed: published by the exchange below, and read by nobody before it.
            below.store(top, Ordering::Relaxed);
            let order = if mutant("timer-push-relaxed") { Ordering::Relaxed } else { Ordering::Release };
            // Pairs with the swap in `collect` or `close`: publishes `below`. A push that builds on another's
            // continues its release sequence, so the one swap sees all links of the stack.
            match self.top.compare_exchange_weak(top, key, order, Ordering::Relaxed) {
                Ok(_) => return Block::InUse,
                Err(now) => top = now,
            }
        }
        // Acquire and release: whoever arrives at zero has all the others' use of the block behind it.
        match self.orphans.fetch_sub(1, Ordering::AcqRel) {
            1 => Block::Free,
            _ => Block::InUse,
        }
    }

    /// Owner: hands each returned key to `each`.
    pub(super) fn collect(&self, each: impl FnMut(u32)) {
        // Relaxed: a look that comes too early costs a turn.
        if self.top.load(Ordering::Relaxed) != EMPTY {
            // Pairs with the exchange in `push`.
            self.walk(self.top.swap(EMPTY, Ordering::Acquire), each);
        }
    }

    /// Owner: closes the wheel's side while `taken` keys are out, those that have been returned included.
    pub(super) fn close(&self, taken: u32) -> Block {
        let mut orphans = i64::from(taken);
        // Pairs with the exchange in `push`, as in `collect`: what comes after it finds `CLOSED`.
        let top = if mutant("timer-close-in-two-steps") {
            let top = self.top.load(Ordering::Acquire);
            self.top.store(CLOSED, Ordering::Release);
            top
        } else {
            self.top.swap(CLOSED, Ordering::AcqRel)
        };
        self.walk(top, |_key| orphans -= 1);
        // Acquire and release: as in `push`.
        match self.orphans.fetch_add(orphans, Ordering::AcqRel) + orphans {
            0 => Block::Free,
            _ => Block::InUse,
        }
    }

    /// Whoever was told `Block::Free`: makes it as new.
    pub(super) fn open(&self) {
        // Relaxed: the block goes to its next wheel through a lock, or stays on this thread.
        self.orphans.store(0, Ordering::Relaxed);
        self.top.store(EMPTY, Ordering::Relaxed);
    }

    /// Owner: a fresh entry was made.
    pub(super) fn forget_deadline(&self, key: u32) {
        // Relaxed: precedes whatever hands the `Sleep` to another thread.
        self.cell(key).deadline_ns.store(UNKNOWN, Ordering::Relaxed);
    }

    /// Owner: a fresh entry was placed.
    pub(super) fn note_deadline(&self, key: u32, deadline_ns: u64) {
        // Relaxed: the number is all there is to see. A `Sleep` that left before may see it late; it then
        // starts afresh.
        self.cell(key).deadline_ns.store(deadline_ns, Ordering::Relaxed);
    }

    /// Any thread: the deadline that an entry armed as fresh was given, if it was placed.
    pub(super) fn deadline(&self, key: u32) -> Option<u64> {
        // Relaxed: as in `note_deadline`.
        Some(self.cell(key).deadline_ns.load(Ordering::Relaxed)).filter(|deadline| *deadline != UNKNOWN)
    }

    fn walk(&self, mut key: u32, mut each: impl FnMut(u32)) {
        while key != EMPTY {
            // Read before `each`, which may hand the key out again. Relaxed: ordered by the swap that took
            // the stack.
            let below = self.cell(key).below.load(Ordering::Relaxed);
            each(key);
            key = below;
        }
    }

    fn cell(&self, key: u32) -> &Cell {
        let (segment, offset) = place_of(key as usize);
        &self.segments[segment].get().expect("the owner grew the block before it handed the key out")[offset]
    }
}

/// The segment that holds `key`, and where in it: 64, 64, 128, 256, ... of them.
fn place_of(key: usize) -> (usize, usize) {
    let first = 1usize << SEGMENT_LOG2;
    if key < first {
        return (0, key);
    }
    let log = key.ilog2();
    ((log - SEGMENT_LOG2) as usize + 1, key - (1 << log))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn collected(returns: &WayBack) -> Vec<u32> {
        let mut keys = Vec::new();
        returns.collect(|key| keys.push(key));
        keys
    }

    #[test]
    fn every_key_has_a_cell_of_its_own() {
        // A segment that overlaps its neighbour, or ends too early, would link two stacks into one or panic
        // far from here.
        let mut expected = (0, 0);
        for key in 0..10_000 {
            assert_eq!(place_of(key), expected);
            let len = 1 << (SEGMENT_LOG2 as usize + expected.0.saturating_sub(1));
            expected = if expected.1 + 1 == len { (expected.0 + 1, 0) } else { (expected.0, expected.1 + 1) };
        }
        assert_eq!(place_of(u32::MAX as usize).0, SEGMENTS - 1);
        let returns = WayBack::new();
        for end in [0, 1, 64, 65, 128, 129, 1_000] {
            returns.grow(end);
            let cells: usize =
                returns.segments.iter().filter_map(OnceLock::get).map(|segment| segment.len()).sum();
            assert!(cells >= end);
        }
    }

    #[test]
    fn what_is_returned_is_collected_once() {
        let returns = WayBack::new();
        returns.grow(3);
        for key in [0, 2, 1] {
            assert_eq!(returns.push(key), Block::InUse);
        }
        assert_eq!(collected(&returns), [1, 2, 0]);
        assert_eq!(collected(&returns), []);
    }

    #[test]
    fn the_last_orphan_frees_the_block() {
        // Freed too early, two wheels would share a block; never freed, each runtime would leak one per
        // worker.
        let returns = WayBack::new();
        returns.grow(3);
        assert_eq!(returns.push(1), Block::InUse);
        assert_eq!(returns.close(3), Block::InUse);
        assert_eq!(returns.push(0), Block::InUse);
        assert_eq!(returns.push(2), Block::Free);
        returns.open();
        assert_eq!(returns.close(0), Block::Free);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sync::Arc;
    use crate::sync::model::{catches, holds};

    /// Two `Sleep`s end elsewhere while their wheel collects once and closes. Each key must be counted once,
    /// as returned or as an orphan, and exactly one party told that the block is free.
    fn two_returns_against_collect_and_close() {
        let returns = Arc::new(WayBack::new());
        returns.grow(2);
        let sleeps = [0, 1].map(|key| {
            let returns = returns.clone();
            loom::thread::spawn(move || returns.push(key))
        });
        let mut collected = BTreeSet::new();
        returns.collect(|key| assert!(collected.insert(key), "collected twice"));
        let taken = 2 - u32::try_from(collected.len()).unwrap();
        let mut verdicts = vec![returns.close(taken)];
        verdicts.extend(sleeps.map(|sleep| sleep.join().unwrap()));
        let free = verdicts.iter().filter(|verdict| **verdict == Block::Free).count();
        assert_eq!(free, 1, "{verdicts:?}");
    }

    #[test]
    fn loom_timer_entry_dropped_elsewhere_comes_back_once() {
        holds(two_returns_against_collect_and_close);
    }

    #[test]
    fn loom_timer_returning_must_release() {
        catches("timer-push-relaxed", two_returns_against_collect_and_close);
    }

    #[test]
    fn loom_timer_closing_must_be_one_step() {
        catches("timer-close-in-two-steps", two_returns_against_collect_and_close);
    }
}
