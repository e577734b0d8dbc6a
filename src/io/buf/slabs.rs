//! The books of an arena that is cut for packets: which pieces are free, in slabs of one size each.
//!
//! The arena is a row of 64 KiB *slabs*. A slab that is in use belongs to a *class*, a power of two from 256 B to 64 KiB,
//! and is cut into equal pieces of that size, so a piece begins at a multiple of its size. Which of them are lent is a
//! bitmap. A slab is on one list at most:
//!
//! ```text
//!            a piece is wanted, no partial slab               its last piece is lent
//!   Empty ────────────────────────────────────▶ Partial(class) ────────────────────▶ Full(class)   (on no list)
//!     ▲                                          │    ▲                                  │
//!     └────── its last piece comes back ─────────┘    └──────── a piece comes back ──────┘
//! ```
//!
//! Every step is constant work: take the list's first slab and its lowest free piece, so that the same few lines of the
//! cache are used again. Most pieces that come back never get here: `blocks` keeps them as they are for the next who asks.
//!
//! What is larger than a slab (a receive ring) is lent as a *run* of slabs, found by looking at each: that happens once in
//! a driver's life.
//!
//! As with `buddy`, all this lies beside the memory, never in it, and giving back what is not lent is found out. Pieces are
//! known by the number of their first [`UNIT`].

/// Pieces are counted in these: the smallest class.
pub(super) const UNIT: usize = 256;

/// Bytes of a slab: the largest class. Larger ones would be heap's business; a packet with all its segments has 64 KiB.
pub(super) const SLAB: usize = 64 << 10;

/// Units of a slab, the most pieces it can have.
const UNITS: u32 = 256;

/// 256 B, 512 B, .. 64 KiB.
const CLASSES: usize = 9;

/// "No slab", at the end of a list.
const NONE: u32 = u32::MAX;

/// What a slab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Cut into nothing yet.
    Empty,
    /// Cut into pieces of this class.
    Class(u8),
    /// The first of so many slabs that are lent as one.
    Run(u32),
    /// A later one of a run.
    Inside,
}

#[derive(Clone, Debug)]
struct Slab {
    what: Use,
    /// Pieces that are lent.
    lent: u16,
    /// Its neighbours on the list that it is on.
    previous: u32,
    next: u32,
    /// Bit `n` is set while piece `n` is lent.
    bits: [u64; 4],
}

/// The books. Slabs are numbered from 0, pieces by their first unit.
#[derive(Debug)]
pub(super) struct Slabs {
    slabs: Box<[Slab]>,
    /// The first slab of those that are empty.
    empty: u32,
    /// By class, the first slab that has a piece to lend.
    partial: [u32; CLASSES],
    free_bytes: usize,
    lent_blocks: usize,
}

impl Slabs {
    /// All slabs of an arena of `bytes`, empty.
    pub(super) fn new(bytes: usize) -> Slabs {
        assert!(bytes > 0 && bytes.is_multiple_of(SLAB), "the pool checks the arena's size");
        let empty = Slab { what: Use::Empty, lent: 0, previous: NONE, next: NONE, bits: [0; 4] };
        let mut slabs = Slabs {
            slabs: vec![empty; bytes / SLAB].into_boxed_slice(),
            empty: NONE,
            partial: [NONE; CLASSES],
            free_bytes: bytes,
            lent_blocks: 0,
        };
        let count = u32::try_from(slabs.slabs.len()).expect("an arena has at most 1 GiB");
        // From the end, so that the first slab is used first.
        (0..count).rev().for_each(|slab| slabs.list(slab));
        slabs
    }

    /// Lends a piece of this class and returns its first unit, or nothing if there is none.
    pub(super) fn allocate(&mut self, class: usize) -> Option<u32> {
        let mut at = self.partial[class];
        if at == NONE {
            at = self.cut(class)?;
        }
        let slab = &mut self.slabs[at as usize];
        let piece = lowest_clear(&slab.bits);
        slab.bits[piece as usize / 64] |= 1 << (piece % 64);
        slab.lent += 1;
        if u32::from(slab.lent) == UNITS >> class {
            self.unlist(at);
        }
        self.free_bytes -= UNIT << class;
        self.lent_blocks += 1;
        Some(at * UNITS + (piece << class))
    }

    /// Lends whole slabs in a row, `bytes` or more, and returns their first unit.
    pub(super) fn allocate_run(&mut self, bytes: usize) -> Option<u32> {
        let count = bytes.div_ceil(SLAB).max(1);
        let free = |run: &[Slab]| run.iter().all(|slab| slab.what == Use::Empty);
        let first = self.slabs.windows(count).position(free)?;
        let [first, count] = [first, count].map(|n| u32::try_from(n).expect("an arena has at most 1 GiB"));
        for at in first..first + count {
            self.unlist(at);
            self.slabs[at as usize].what = if at == first { Use::Run(count) } else { Use::Inside };
        }
        self.free_bytes -= count as usize * SLAB;
        self.lent_blocks += 1;
        Some(first * UNITS)
    }

    /// Takes back the piece, or the run, that begins at `unit`.
    pub(super) fn free(&mut self, unit: u32) {
        let (at, within) = (unit / UNITS, unit % UNITS);
        let slab = &mut self.slabs[at as usize];
        let class = match slab.what {
            Use::Class(class) => usize::from(class),
            Use::Run(count) if within == 0 => return self.free_run(at, count),
            what => {
                panic!("unit {unit} of an arena was given back, but it is not lent: its slab is {what:?}")
            }
        };
        let piece = within >> class;
        let bit = 1 << (piece % 64);
        let word = &mut slab.bits[piece as usize / 64];
        let lent = within == piece << class && *word & bit != 0;
        assert!(lent, "unit {unit} of an arena was given back, but it is not lent");
        *word &= !bit;
        slab.lent -= 1;
        self.lent_blocks -= 1;
        let (lent, pieces) = (slab.lent, UNITS >> class);
        self.free_bytes += UNIT << class;
        if u32::from(lent) + 1 == pieces {
            self.list(at);
        }
        if lent == 0 {
            self.uncut(at);
        }
    }

    /// Bytes that are not lent.
    pub(super) fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    /// The largest piece that could be lent now.
    pub(super) fn free_largest_bytes(&self) -> usize {
        let partial = self.partial.iter().rposition(|&first| first != NONE).map_or(0, |class| UNIT << class);
        if self.empty != NONE { SLAB } else { partial }
    }

    /// Pieces and runs that are lent.
    pub(super) fn lent_blocks(&self) -> usize {
        self.lent_blocks
    }

    /// Makes an empty slab one of `class`, and puts it on that list.
    fn cut(&mut self, class: usize) -> Option<u32> {
        let at = self.empty;
        if at == NONE {
            return None;
        }
        self.unlist(at);
        let slab = &mut self.slabs[at as usize];
        slab.what = Use::Class(u8::try_from(class).expect("there are nine"));
        // Pieces that the class does not have are marked as lent for good.
        slab.bits = pieces_missing(class);
        self.list(at);
        Some(at)
    }

    /// Makes a slab of which nothing is lent an empty one.
    fn uncut(&mut self, at: u32) {
        self.unlist(at);
        self.slabs[at as usize].what = Use::Empty;
        self.list(at);
    }

    fn free_run(&mut self, first: u32, count: u32) {
        for at in (first..first + count).rev() {
            self.slabs[at as usize].what = Use::Empty;
            self.list(at);
        }
        self.free_bytes += count as usize * SLAB;
        self.lent_blocks -= 1;
    }

    /// The list on which a slab of this use may be.
    fn head(&mut self, what: Use) -> &mut u32 {
        match what {
            Use::Empty => &mut self.empty,
            Use::Class(class) => &mut self.partial[usize::from(class)],
            Use::Run(_) | Use::Inside => unreachable!("a run that is lent is on no list"),
        }
    }

    /// Puts a slab in front of the list of its use.
    fn list(&mut self, at: u32) {
        let what = self.slabs[at as usize].what;
        let next = std::mem::replace(self.head(what), at);
        if let Some(next) = self.slabs.get_mut(next as usize) {
            next.previous = at;
        }
        let slab = &mut self.slabs[at as usize];
        (slab.previous, slab.next) = (NONE, next);
    }

    /// Takes a slab off the list of its use.
    fn unlist(&mut self, at: u32) {
        let Slab { what, previous, next, .. } = self.slabs[at as usize];
        if let Some(next) = self.slabs.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.slabs.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => *self.head(what) = next,
        }
    }
}

/// The lowest bit that is clear. There is one.
fn lowest_clear(bits: &[u64; 4]) -> u32 {
    let mut base = 0;
    for &word in bits {
        if word != u64::MAX {
            return base + word.trailing_ones();
        }
        base += 64;
    }
    unreachable!("a slab on a partial list has a piece to lend")
}

/// A bitmap in which the bits are set that a slab of `class` has no pieces for.
fn pieces_missing(class: usize) -> [u64; 4] {
    let pieces = UNITS >> class;
    std::array::from_fn(|word| {
        let first = u32::try_from(word).expect("there are four") * 64;
        match pieces.saturating_sub(first) {
            0 => u64::MAX,
            64.. => 0,
            here => u64::MAX << here,
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // A piece freed twice would later be lent to two buffers at once.
    #[test]
    #[should_panic(expected = "was given back, but it is not lent")]
    fn a_piece_given_back_twice_is_found_out() {
        let mut slabs = Slabs::new(SLAB);
        let piece = slabs.allocate(0).expect("the arena is empty");
        let _other = slabs.allocate(0);
        slabs.free(piece);
        slabs.free(piece);
    }

    // A wrong number would free somebody else's piece.
    #[test]
    #[should_panic(expected = "was given back, but it is not lent")]
    fn the_middle_of_a_piece_is_none() {
        let mut slabs = Slabs::new(SLAB);
        let piece = slabs.allocate(2).expect("the arena is empty");
        slabs.free(piece + 1);
    }

    proptest! {
        // Overlap, misalignment, a slab that never becomes empty again, counts that drift: each shows against a map of units
        // in which nothing is known but who has what.
        #[test]
        fn lending_and_freeing_agree_with_a_map_of_units(
            count in 1usize..5,
            steps in proptest::collection::vec((0u8..8, 0usize..CLASSES, any::<prop::sample::Index>()), 0..400),
        ) {
            let mut slabs = Slabs::new(count * SLAB);
            let mut model = vec![false; count * UNITS as usize];
            let mut lent: Vec<(u32, usize)> = Vec::new();
            let mark = |model: &mut Vec<bool>, unit: u32, units: usize, to: bool| {
                for unit in &mut model[unit as usize..unit as usize + units] {
                    assert_ne!(*unit, to, "pieces overlap, or a free piece was freed");
                    *unit = to;
                }
            };
            for (what, class, which) in steps {
                // Small pieces often, so that slabs hold several.
                let class = if what % 2 == 0 { class } else { class / 2 };
                if what < 4 {
                    let free_slab = model.chunks_exact(UNITS as usize).any(|slab| slab.iter().all(|lent| !lent));
                    let piece = slabs.allocate(class);
                    prop_assert!(piece.is_some() || !free_slab, "an empty slab serves every class");
                    if let Some(unit) = piece {
                        prop_assert_eq!(unit % (1 << class), 0, "a piece begins at a multiple of its size");
                        mark(&mut model, unit, 1 << class, true);
                        lent.push((unit, 1 << class));
                    }
                } else if what == 4 {
                    let two_free = model
                        .chunks_exact(UNITS as usize)
                        .map(|slab| slab.iter().all(|lent| !lent))
                        .collect::<Vec<_>>()
                        .windows(2)
                        .any(|two| two == [true, true]);
                    let run = slabs.allocate_run(SLAB + 1);
                    prop_assert_eq!(run.is_some(), two_free);
                    if let Some(unit) = run {
                        mark(&mut model, unit, 2 * UNITS as usize, true);
                        lent.push((unit, 2 * UNITS as usize));
                    }
                } else if !lent.is_empty() {
                    let (unit, units) = lent.swap_remove(which.index(lent.len()));
                    slabs.free(unit);
                    mark(&mut model, unit, units, false);
                }
                prop_assert_eq!(slabs.lent_blocks(), lent.len());
                prop_assert_eq!(slabs.free_bytes(), model.iter().filter(|lent| !**lent).count() * UNIT);
                let largest = slabs.free_largest_bytes();
                if largest > 0 {
                    let unit = slabs.allocate((largest / UNIT).ilog2() as usize).expect("it said so");
                    slabs.free(unit);
                }
            }
            for (unit, _) in lent {
                slabs.free(unit);
            }
            prop_assert!(slabs.allocate_run(count * SLAB).is_some(), "all came back, so every slab is empty again");
        }
    }
}
