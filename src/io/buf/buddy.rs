//! The books of an arena: which pages are free, in blocks of a power of two.
//!
//! The arena is a row of 4 KiB pages. A *block* of order `k` is `2^k` pages and begins at a multiple of `2^k`; its
//! *buddy* is the block of the same order that makes up the next larger one with it (their numbers differ in one bit).
//! To allocate, take the smallest free block that is large enough and halve it until it fits; each upper half becomes
//! free. To free, join with the buddy as long as the buddy is free too. Both take at most one step per order.
//!
//! Everything is kept in a table beside the memory, one entry per page, never in the memory itself: what the kernel
//! writes too late can spoil a buffer's bytes, not the books. The table also remembers each block's order, so a block
//! is given back by its first page's number alone, and giving one back twice is found out.
//!
//! Most blocks that come back never get here: `blocks` keeps them as they are for the next who asks.

use super::PAGE;

/// Pages of the largest arena: its order is [`ORDER_MAX`].
const ORDER_MAX: u8 = 18;

/// The largest arena, 1 GiB: Linux refuses to register more than that under one index.
pub(super) const ARENA_MAX: usize = PAGE << ORDER_MAX;

/// The smallest arena, 64 KiB: sixteen pages. Less would not hold one receive ring of a useful size.
pub(super) const ARENA_MIN: usize = 16 * PAGE;

/// "No page", at the end of a free list.
const NONE: u32 = u32::MAX;

/// What a page is, as an entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// Within a block, not its first page. Where the block is free or lent is written at its first page.
    Inside,
    /// The first page of a free block; its neighbours on the free list of that order.
    Free { order: u8, previous: u32, next: u32 },
    /// The first page of a block that is lent.
    Lent { order: u8 },
}

/// The books. Pages are numbered from 0.
#[derive(Debug)]
pub(super) struct Buddy {
    pages: Box<[Page]>,
    /// The first block on the free list of each order.
    heads: [u32; ORDER_MAX as usize + 1],
    /// Bit `k` is set when the free list of order `k` is not empty.
    available: u32,
    /// The order of the whole arena.
    top: u8,
    free_pages: u32,
    lent_blocks: u32,
}

impl Buddy {
    /// One free block of `bytes`, a power of two between [`ARENA_MIN`] and [`ARENA_MAX`].
    pub(super) fn new(bytes: usize) -> Buddy {
        assert!(
            bytes.is_power_of_two() && (ARENA_MIN..=ARENA_MAX).contains(&bytes),
            "the pool checks the arena's size"
        );
        let top = u8::try_from((bytes / PAGE).ilog2()).expect("the size was checked above");
        let mut buddy = Buddy {
            pages: vec![Page::Inside; bytes / PAGE].into_boxed_slice(),
            heads: [NONE; ORDER_MAX as usize + 1],
            available: 0,
            top,
            free_pages: 1 << top,
            lent_blocks: 0,
        };
        buddy.list(0, top);
        buddy
    }

    /// Lends a block of order `order` and returns its first page, or nothing if no free block is large enough.
    pub(super) fn allocate(&mut self, order: u8) -> Option<u32> {
        if order > self.top {
            return None;
        }
        let page = self.split(order)?;
        self.pages[page as usize] = Page::Lent { order };
        self.free_pages -= 1 << order;
        self.lent_blocks += 1;
        Some(page)
    }

    /// Takes back the block that begins at `page`, and makes it free, as one with all the buddies that are.
    pub(super) fn free(&mut self, mut page: u32) {
        let Page::Lent { mut order } = self.pages[page as usize] else {
            panic!(
                "block {page} of an arena was given back, but it is not lent: {:?}",
                self.pages[page as usize]
            );
        };
        self.free_pages += 1 << order;
        self.lent_blocks -= 1;
        self.pages[page as usize] = Page::Inside;
        while order < self.top {
            let buddy = page ^ (1 << order);
            match self.pages[buddy as usize] {
                Page::Free { order: same, .. } if same == order => self.unlist(buddy),
                _ => break,
            }
            page = page.min(buddy);
            order += 1;
        }
        self.list(page, order);
    }

    /// Bytes in blocks that are not lent.
    pub(super) fn free_bytes(&self) -> usize {
        self.free_pages as usize * PAGE
    }

    /// Bytes in the largest free block: the largest size that can be lent now.
    pub(super) fn free_largest_bytes(&self) -> usize {
        self.available.checked_ilog2().map_or(0, |order| PAGE << order)
    }

    /// Blocks that are lent.
    pub(super) fn lent_blocks(&self) -> usize {
        self.lent_blocks as usize
    }

    /// Takes the smallest free block that is large enough off its list, and halves it down to `order`. The caller says
    /// what it is now.
    fn split(&mut self, order: u8) -> Option<u32> {
        // The lists of this order and above, from bit 0; the lowest set bit is the smallest block that is large enough.
        let usable = self.available >> order;
        if usable == 0 {
            return None;
        }
        let mut at = order + u8::try_from(usable.trailing_zeros()).expect("a u32 has 32 bits");
        let page = self.heads[usize::from(at)];
        self.unlist(page);
        while at > order {
            at -= 1;
            self.list(page + (1 << at), at);
        }
        Some(page)
    }

    /// Puts the block on the free list of its order.
    fn list(&mut self, page: u32, order: u8) {
        let next = std::mem::replace(&mut self.heads[usize::from(order)], page);
        self.available |= 1 << order;
        self.pages[page as usize] = Page::Free { order, previous: NONE, next };
        self.set_previous(next, page);
    }

    /// Takes a free block off its list; its first page is then [`Page::Inside`].
    fn unlist(&mut self, page: u32) {
        let Page::Free { order, previous, next } = self.pages[page as usize] else {
            panic!("page {page} is on a free list, but not free");
        };
        self.pages[page as usize] = Page::Inside;
        self.set_previous(next, previous);
        if previous != NONE {
            if let Page::Free { next: link, .. } = &mut self.pages[previous as usize] {
                *link = next;
            }
        } else {
            self.heads[usize::from(order)] = next;
            if next == NONE {
                self.available &= !(1 << order);
            }
        }
    }

    /// Points the free block at `page`, if there is one, back to `previous`.
    fn set_previous(&mut self, page: u32, previous: u32) {
        if page == NONE {
            return;
        }
        if let Page::Free { previous: link, .. } = &mut self.pages[page as usize] {
            *link = previous;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // A block freed twice would later be lent to two buffers at once.
    #[test]
    #[should_panic(expected = "was given back, but it is not lent")]
    fn a_block_given_back_twice_is_found_out() {
        let mut buddy = Buddy::new(ARENA_MIN);
        let page = buddy.allocate(0).expect("the arena is empty");
        let _other = buddy.allocate(0);
        buddy.free(page);
        buddy.free(page);
    }

    /// The naive model: which pages are lent, nothing else. A block of order `k` can be lent exactly when some aligned
    /// run of `2^k` pages has no lent page; that is what complete coalescing means.
    struct Model(Vec<bool>);

    impl Model {
        fn can_lend(&self, order: u8) -> bool {
            self.0.chunks_exact(1 << order).any(|run| run.iter().all(|lent| !lent))
        }

        fn mark(&mut self, page: u32, order: u8, lent: bool) {
            for page in &mut self.0[page as usize..page as usize + (1 << order)] {
                assert_ne!(*page, lent, "blocks overlap, or a free page was freed");
                *page = lent;
            }
        }
    }

    proptest! {
        // Overlap, misalignment, a block that is never joined again, counts that drift: each shows against the model.
        #[test]
        fn lending_and_freeing_agree_with_a_map_of_pages(
            top in 4u8..8,
            steps in proptest::collection::vec((any::<bool>(), 0u8..8, any::<prop::sample::Index>()), 0..400),
        ) {
            let bytes = PAGE << top;
            let mut buddy = Buddy::new(bytes);
            let mut model = Model(vec![false; 1 << top]);
            let mut lent = Vec::new();
            for (allocate, order, which) in steps {
                if allocate {
                    let expected = order <= top && model.can_lend(order);
                    let page = buddy.allocate(order);
                    prop_assert_eq!(page.is_some(), expected);
                    if let Some(page) = page {
                        prop_assert_eq!(page % (1 << order), 0, "a block begins at a multiple of its size");
                        model.mark(page, order, true);
                        lent.push((page, order));
                    }
                } else if !lent.is_empty() {
                    let (page, order) = lent.swap_remove(which.index(lent.len()));
                    buddy.free(page);
                    model.mark(page, order, false);
                }
                prop_assert_eq!(buddy.lent_blocks(), lent.len());
                let free = model.0.iter().filter(|lent| !**lent).count();
                prop_assert_eq!(buddy.free_bytes(), free * PAGE);
                let largest = (0..=top).rev().find(|&order| model.can_lend(order));
                prop_assert_eq!(buddy.free_largest_bytes(), largest.map_or(0, |order| PAGE << order));
            }
            for (page, _) in lent {
                buddy.free(page);
            }
            prop_assert_eq!(buddy.free_largest_bytes(), bytes, "all came back, so it is one block again");
        }
    }
}
