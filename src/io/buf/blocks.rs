//! Which blocks of an arena are lent, whoever cut them.
//!
//! How memory is cut and joined again is the business of [`Buddy`] or [`Slabs`], by the pool's kind. A server lends and frees the
//! same sizes over and over, and would cut and join the same memory each time. So what comes back is *kept* as it is, a few blocks of
//! each class, and lent again, last in, first out, since its lines are the ones still in the cache:
//!
//! ```text
//!           cut                     comes back
//! uncut ──────────▶ Lent ────────────────────────────────▶ Kept
//!   ▲                ▲ │                                   │  │
//!   │                │ └─ comes back, and enough are kept  │  │
//!   │                └────────────── is wanted again ──────┘  │
//!   └─── joined ◀──── no room is left otherwise, or somebody asks how large the largest block is
//! ```
//!
//! To buddies and slabs a kept block is lent. As all of them are joined as soon as that could matter to anyone, what can be lent is
//! exactly what it would be without them, and after everything came back the arena is one piece again.
//!
//! A block is known by the number of its first *unit*, and its class is the power of two of how many it has. Both kinds' books and
//! this table lie beside the memory, never in it, so that what the kernel writes too late can spoil a buffer's bytes, not the
//! books. The table knows the class of each block that is lent, so a number is enough to give one back, and giving one back twice is
//! found out.

use std::cell::{Cell, RefCell};

use super::PAGE;
use super::buddy::Buddy;
use super::pool::PoolKind;
use super::slabs::{self, Slabs};

/// How the memory is cut.
#[derive(Debug)]
enum Cut {
    Buddy(Buddy),
    Slabs(Slabs),
}

/// The books. See the module's prose.
///
/// In cells of their own, so that what nearly every call comes to borrows nothing.
#[derive(Debug)]
pub(super) struct Blocks {
    /// By class.
    kept: Box<[Kept]>,
    /// By unit, the class of the block that begins there if it is lent.
    lent: Box<[Cell<u8>]>,
    unit_log2: u32,
    cut: RefCell<Cut>,
}

/// Blocks of one class that were lent before; the last to come back is the first to go.
#[derive(Clone, Debug, Default)]
struct Kept {
    class: u8,
    count: Cell<usize>,
    blocks: [Cell<u32>; KEPT_MAX],
}

/// Blocks kept of each class: half of what one turn may hold at once in passing. They are joined when they are in the way,
/// at most 608 of them, which takes some microseconds and was saved many times over before.
const KEPT_MAX: usize = 32;

/// Instead of a class, in the table: nothing that is lent begins at the unit.
const NOT_LENT: u8 = u8::MAX;

/// Instead of a class: something larger than any, which is not kept.
const RUN: u8 = u8::MAX - 1;

impl Blocks {
    /// An arena of `bytes`, all of it free.
    pub(super) fn new(kind: PoolKind, bytes: usize) -> Blocks {
        let (cut, unit, largest) = match kind {
            PoolKind::Buddy => (Cut::Buddy(Buddy::new(bytes)), PAGE, bytes),
            PoolKind::Hybrid => (Cut::Slabs(Slabs::new(bytes)), slabs::UNIT, slabs::SLAB),
        };
        let class_max = u8::try_from((largest / unit).ilog2()).expect("an arena has at most 1 GiB");
        Blocks {
            kept: (0..=class_max).map(|class| Kept { class, ..Kept::default() }).collect(),
            lent: vec![Cell::new(NOT_LENT); bytes / unit].into_boxed_slice(),
            unit_log2: unit.ilog2(),
            cut: RefCell::new(cut),
        }
    }

    /// Units of the arena.
    pub(super) fn units(&self) -> u32 {
        u32::try_from(self.lent.len()).expect("an arena has at most 1 GiB")
    }

    /// The unit in which blocks are numbered has two to the power of this many bytes.
    pub(super) fn unit_log2(&self) -> u32 {
        self.unit_log2
    }

    /// Lends a block of at least `bytes`, or nothing if there is none so large.
    #[inline(always)]
    pub(super) fn allocate(&self, bytes: usize) -> Option<u32> {
        let class = self.class_of(bytes);
        let kept = self.kept.get(class)?;
        let block = match kept.take() {
            Some(block) => block,
            None => self.cut(class)?,
        };
        self.lent[block as usize].set(kept.class);
        Some(block)
    }

    /// Lends a block for a receive ring, which may be larger than any buffer of the pool.
    pub(super) fn allocate_ring(&self, bytes: usize) -> Option<u32> {
        if self.class_of(bytes) < self.kept.len() {
            return self.allocate(bytes);
        }
        self.join_kept();
        let Cut::Slabs(slabs) = &mut *self.cut.borrow_mut() else { return None };
        let block = slabs.allocate_run(bytes)?;
        self.lent[block as usize].set(RUN);
        Some(block)
    }

    /// Takes back the block that begins at unit `block`.
    #[inline(always)]
    pub(super) fn free(&self, block: u32) {
        let class = self.lent.get(block as usize).map_or(NOT_LENT, |class| class.replace(NOT_LENT));
        assert!(class != NOT_LENT, "block {block} of an arena was given back, but it is not lent");
        if !self.kept.get(usize::from(class)).is_some_and(|kept| kept.put(block)) {
            self.join(block);
        }
    }

    /// Blocks that are lent.
    pub(super) fn lent_blocks(&self) -> usize {
        let known = match &*self.cut.borrow() {
            Cut::Buddy(buddy) => buddy.lent_blocks(),
            Cut::Slabs(slabs) => slabs.lent_blocks(),
        };
        known - self.kept.iter().map(|kept| kept.count.get()).sum::<usize>()
    }

    /// Blocks that are kept.
    #[cfg(test)]
    pub(super) fn kept_blocks(&self) -> usize {
        self.kept.iter().map(|kept| kept.count.get()).sum()
    }

    /// Bytes that are not lent.
    pub(super) fn free_bytes(&self) -> usize {
        let known = match &*self.cut.borrow() {
            Cut::Buddy(buddy) => buddy.free_bytes(),
            Cut::Slabs(slabs) => slabs.free_bytes(),
        };
        let kept = |(class, kept): (usize, &Kept)| kept.count.get() << class << self.unit_log2;
        known + self.kept.iter().enumerate().map(kept).sum::<usize>()
    }

    /// The largest block that could be lent now.
    pub(super) fn free_largest_bytes(&self) -> usize {
        self.join_kept();
        match &*self.cut.borrow() {
            Cut::Buddy(buddy) => buddy.free_largest_bytes(),
            Cut::Slabs(slabs) => slabs.free_largest_bytes(),
        }
    }

    /// The smallest class that holds `bytes`: how many bits the number of their last unit has.
    #[inline(always)]
    fn class_of(&self, bytes: usize) -> usize {
        (usize::BITS - (bytes.saturating_sub(1) >> self.unit_log2).leading_zeros()) as usize
    }

    /// Cuts a block of this class, if need be from what was kept.
    #[cold]
    fn cut(&self, class: usize) -> Option<u32> {
        if let Some(block) = self.cut_uncut(class) {
            return Some(block);
        }
        self.join_kept();
        self.cut_uncut(class)
    }

    fn cut_uncut(&self, class: usize) -> Option<u32> {
        match &mut *self.cut.borrow_mut() {
            Cut::Buddy(buddy) => buddy.allocate(u8::try_from(class).ok()?),
            Cut::Slabs(slabs) => slabs.allocate(class),
        }
    }

    #[cold]
    fn join(&self, block: u32) {
        match &mut *self.cut.borrow_mut() {
            Cut::Buddy(buddy) => buddy.free(block),
            Cut::Slabs(slabs) => slabs.free(block),
        }
    }

    /// Joins all that is kept.
    fn join_kept(&self) {
        for class in 0..self.kept.len() {
            while let Some(block) = self.kept[class].take() {
                self.join(block);
            }
        }
    }
}

impl Kept {
    #[inline(always)]
    fn take(&self) -> Option<u32> {
        let count = self.count.get().checked_sub(1)?;
        self.count.set(count);
        Some(self.blocks[count].get())
    }

    /// Keeps a block, unless enough are kept. Says whether it does.
    #[inline(always)]
    fn put(&self, block: u32) -> bool {
        let count = self.count.get();
        let Some(free) = self.blocks.get(count) else { return false };
        free.set(block);
        self.count.set(count + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::buddy::ARENA_MIN;
    use super::*;

    #[test]
    fn classes_are_the_smallest_power_of_two_that_holds() {
        for (kind, unit) in [(PoolKind::Buddy, PAGE), (PoolKind::Hybrid, slabs::UNIT)] {
            let blocks = Blocks::new(kind, ARENA_MIN);
            for (bytes, class) in [(0, 0), (1, 0), (unit, 0), (unit + 1, 1), (2 * unit, 1), (5 * unit, 3)] {
                assert_eq!(blocks.class_of(bytes), class, "{bytes} bytes");
            }
            assert_eq!(blocks.allocate(ARENA_MIN + 1), None);
            assert_eq!(blocks.allocate(usize::MAX), None);
            assert_eq!(
                blocks.allocate(ARENA_MIN),
                Some(0),
                "the largest class is all of a slab, or of a small arena"
            );
        }
    }

    // A block that is given back twice would be kept twice, and then be lent to two buffers at once.
    #[test]
    #[should_panic(expected = "block 0 of an arena was given back, but it is not lent")]
    fn a_kept_block_given_back_again_is_found_out() {
        let blocks = Blocks::new(PoolKind::Buddy, ARENA_MIN);
        let block = blocks.allocate(1).expect("all is free");
        blocks.free(block);
        blocks.free(block);
    }

    // A wrong number would free somebody else's block.
    #[test]
    #[should_panic(expected = "block 1 of an arena was given back, but it is not lent")]
    fn the_middle_of_a_block_is_none() {
        let blocks = Blocks::new(PoolKind::Hybrid, ARENA_MIN);
        let block = blocks.allocate(1024).expect("all is free");
        blocks.free(block + 1);
    }

    // What is kept for one class must not be missing when another is asked for.
    #[test]
    fn what_is_kept_serves_every_class_when_it_is_needed() {
        for kind in [PoolKind::Buddy, PoolKind::Hybrid] {
            let blocks = Blocks::new(kind, ARENA_MIN);
            let small: Vec<_> = std::iter::from_fn(|| blocks.allocate(4096)).collect();
            assert_eq!((small.len(), blocks.free_bytes()), (16, 0));
            small.into_iter().for_each(|block| blocks.free(block));
            assert_eq!((blocks.lent_blocks(), blocks.free_bytes()), (0, ARENA_MIN));
            let all = blocks.allocate(ARENA_MIN).expect("all came back");
            blocks.free(all);
            assert!(blocks.allocate_ring(ARENA_MIN).is_some(), "again");
        }
    }

    proptest! {
        // Overlap, a block that is kept for ever, counts that drift: each shows against a map of who has which unit. For buddies what
        // can be lent is told by that map alone; of slabs, that an empty one serves every class.
        #[test]
        fn keeping_blocks_changes_nothing_that_can_be_seen(
            buddy in any::<bool>(),
            slabs in 0u32..3,
            steps in proptest::collection::vec((0u8..5, 0usize..70_000, 0u8..9, any::<prop::sample::Index>()), 0..400),
            // Asking joins what was kept; half of the runs never ask, so that they live with kept blocks.
            ask in any::<bool>(),
        ) {
            let bytes = ARENA_MIN << slabs;
            let (kind, unit) = if buddy { (PoolKind::Buddy, PAGE) } else { (PoolKind::Hybrid, slabs::UNIT) };
            let blocks = Blocks::new(kind, bytes);
            let mut model = vec![false; bytes / unit];
            let can_lend = |model: &[bool], units: usize| model.chunks(units).any(|run| run.iter().all(|lent| !lent));
            let mut lent: Vec<(u32, usize)> = Vec::new();
            for (what, size, shift, which) in steps {
                // Sizes of every magnitude.
                let units = (size >> shift).div_ceil(unit).max(1).next_power_of_two();
                if what < 3 {
                    let block = blocks.allocate(size >> shift);
                    if buddy {
                        prop_assert_eq!(block.is_some(), units <= model.len() && can_lend(&model, units));
                    } else if units * unit <= slabs::SLAB {
                        prop_assert!(block.is_some() || !can_lend(&model, slabs::SLAB / unit));
                    } else {
                        prop_assert_eq!(block, None);
                    }
                    let Some(block) = block else { continue };
                    prop_assert_eq!(block as usize % units, 0, "a block begins at a multiple of its size");
                    for lent in &mut model[block as usize..block as usize + units] {
                        prop_assert!(!std::mem::replace(lent, true), "blocks overlap");
                    }
                    lent.push((block, units));
                } else if !lent.is_empty() {
                    let (block, units) = lent.swap_remove(which.index(lent.len()));
                    blocks.free(block);
                    model[block as usize..block as usize + units].fill(false);
                }
                prop_assert_eq!(blocks.lent_blocks(), lent.len());
                prop_assert_eq!(blocks.free_bytes(), model.iter().filter(|lent| !**lent).count() * unit);
                if ask && buddy {
                    let largest = (0..=model.len().ilog2()).rev().find(|&class| can_lend(&model, 1 << class));
                    prop_assert_eq!(blocks.free_largest_bytes(), largest.map_or(0, |class| unit << class));
                }
            }
            for (block, _) in lent {
                blocks.free(block);
            }
            prop_assert!(blocks.allocate_ring(bytes).is_some(), "all came back, so it is one piece again");
        }
    }
}
