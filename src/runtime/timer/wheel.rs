//! The wheel: which deadline comes next, at a cost that does not depend on how many there are.
//!
//! Time is cut into ticks of 2¹⁶ ns (65.5 µs). A deadline is rounded *up* to a tick, so nothing fires early,
//! and nothing later than one tick after it was due and the wheel was asked. Eight levels of 64 lists each
//! cover the 48 bits of a tick number, that is every `u64` of nanoseconds (584 years); no overflow list, no
//! wrap-around.
//!
//! ```text
//! tick number   ┊ 6 bits ┊ 6 bits ┊  ...  ┊ 6 bits ┊ 6 bits ┊
//! level         ┊   7    ┊   6    ┊       ┊   1    ┊   0    ┊      one list of level 0 = 1 tick, of level 1 = 64 ticks, ...
//! ```
//!
//! **Where an entry stands.** Compare its tick with the wheel's present tick. The highest group of six bits
//! in which they differ is its level; its own bits there name the list. So on every level the lists in use
//! lie *after* the present one within the same turn of that level, a lower level is always due before a
//! higher one, and the next list to look at is the lowest set bit of the lowest level in use.
//!
//! **Advancing** goes from one list in use to the next, not from tick to tick: a jump over a year costs as
//! many steps as there are lists in use before its end. When a list of a higher level is reached, its entries
//! move down (each at most seven times in its life); on level 0 they fire, tick by tick, and within a tick in
//! the order in which they came to that list.
//!
//! **Fresh entries.** [`Wheel::arm_after`] takes a duration and no clock reading: the entry waits in a list
//! of its own until somebody reads the clock anyway ([`Wheel::place_fresh`], once a turn), and its duration
//! counts from there. It may be dropped before that, and most are: a timeout around an operation that is
//! answered within the turn costs neither a clock reading (more than all the rest of it) nor a place
//! on the wheel.
//!
//! Entries live in a slab and are linked by index, in circles, so each can leave its list by itself. A key is
//! handed out once and owned by one [`Armed`](super::Armed) until it is given back to [`Wheel::remove`]; it
//! stays valid after the entry has fired.

/// log₂ of a tick in nanoseconds. 65.5 µs is finer than a kernel wakes a sleeping thread by default (50 µs of
/// timer slack), and leaves 48 bits of tick number, exactly eight levels.
const TICK_NS_LOG2: u32 = 16;

/// Six bits per level: the lists in use on a level are the bits of one word.
const LEVEL_BITS: u32 = 6;
const LEVELS: usize = 8;
const LISTS_PER_LEVEL: usize = 1 << LEVEL_BITS;

/// The last tick. Deadlines that would be rounded up past it, and this one, never come: 584 years from the
/// clock's origin.
const TICK_NEVER: u64 = u64::MAX >> TICK_NS_LOG2;

/// The list of entries that wait for a clock reading: behind those of the levels.
const FRESH: u16 = 512;
const LISTS: usize = 513;
/// In no list: fired, or never to come.
const UNLISTED: u16 = u16::MAX;

/// No entry. Keys are smaller, so a wheel holds fewer than 2³² entries; each belongs to a future, which takes
/// more memory.
const NIL: u32 = u32::MAX;

/// Entries of one higher list that are looked at to find the earliest. Looking costs about a nanosecond each
/// and happens only before a park whose deadline is not known already; 64 of them cost less than the park
/// does.
const SEARCH_MAX: usize = 64;

/// Deadlines and what waits for them. `W` is handed back when the deadline has come.
pub(super) struct Wheel<W> {
    /// The present tick: all that is linked comes later.
    tick: u64,
    /// For each level, which of its lists are in use.
    used: [u64; LEVELS],
    /// The first entry of each list, or `NIL`. The others follow in a circle.
    heads: [u32; LISTS],
    entries: Vec<Entry<W>>,
    /// Vacant entries, linked by `next`.
    vacant: u32,
    /// Entries whose keys are out.
    taken: u32,
    /// Entries that stand on a level.
    placed: u32,
    /// The answer of `next_tick`, kept until it may have become wrong.
    next: Option<NextTick>,
}

struct Entry<W> {
    /// The tick to fire at; for a fresh entry, its duration in nanoseconds.
    due: u64,
    next: u32,
    prev: u32,
    list: u16,
    /// What waits. Gone once it fired.
    waiting: Option<W>,
}

/// When the wheel has to be advanced next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextTick {
    Never,
    At(u64),
}

impl<W> Wheel<W> {
    pub(super) fn new() -> Wheel<W> {
        Wheel {
            tick: 0,
            used: [0; LEVELS],
            heads: [NIL; LISTS],
            entries: Vec::new(),
            vacant: NIL,
            taken: 0,
            placed: 0,
            next: Some(NextTick::Never),
        }
    }

    /// Arms an entry for `deadline_ns`. A deadline that has passed fires with the next tick.
    pub(super) fn arm_at(&mut self, deadline_ns: u64, waiting: W) -> u32 {
        let key = self.take_entry(waiting);
        self.place(key, deadline_ns);
        key
    }

    /// Arms an entry for `duration_ns` after the next clock reading that [`place_fresh`](Self::place_fresh)
    /// is given.
    #[inline]
    pub(super) fn arm_after(&mut self, duration_ns: u64, waiting: W) -> u32 {
        let key = self.take_entry(waiting);
        self.entry(key).due = duration_ns;
        self.link(key, FRESH);
        key
    }

    /// Moves an entry that has not fired to another deadline, with what waits for it. Whether there was one
    /// to move.
    #[must_use]
    pub(super) fn move_to(&mut self, key: u32, deadline_ns: u64) -> bool {
        if self.entry(key).waiting.is_none() {
            return false;
        }
        self.unlink(key);
        self.place(key, deadline_ns);
        true
    }

    /// What waits for the entry, or `None` if it has fired.
    pub(super) fn waiting(&mut self, key: u32) -> Option<&mut W> {
        self.entry(key).waiting.as_mut()
    }

    /// Takes a key back, and the entry off the wheel. What waited for it, if it has not fired.
    #[inline]
    pub(super) fn remove(&mut self, key: u32) -> Option<W> {
        self.unlink(key);
        let vacant = self.vacant;
        let entry = self.entry(key);
        entry.next = vacant;
        let waiting = entry.waiting.take();
        self.vacant = key;
        self.taken -= 1;
        waiting
    }

    /// Gives the fresh entries their deadlines, counted from `now_ns`, and tells `each` of them.
    pub(super) fn place_fresh(&mut self, now_ns: u64, mut each: impl FnMut(u32, u64)) {
        while let Some(key) = self.first(FRESH) {
            self.unlink(key);
            let deadline_ns = now_ns.saturating_add(self.entry(key).due);
            self.place(key, deadline_ns);
            each(key, deadline_ns);
        }
    }

    /// Goes on to `now_ns` and moves what waited for deadlines on the way into `fired`, earlier ticks first.
    /// A clock that went back is ignored.
    pub(super) fn advance(&mut self, now_ns: u64, fired: &mut Vec<W>) {
        let target = now_ns >> TICK_NS_LOG2;
        while let Some((list, start)) = self.first_list()
            && start <= target
        {
            self.tick = start;
            while let Some(key) = self.first(list) {
                self.unlink(key);
                let entry = self.entry(key);
                if entry.due <= start {
                    fired.extend(entry.waiting.take());
                } else {
                    let due = entry.due;
                    self.place_at_tick(key, due);
                }
            }
        }
        self.tick = self.tick.max(target);
    }

    /// When the wheel should be advanced next, in nanoseconds; `None` if nothing is placed.
    ///
    /// At that time something fires, with one exception: where the earliest of more than `SEARCH_MAX` entries
    /// in one list of a higher level was removed, the list's own beginning is named, its entries then move
    /// down a level, and the next answer is better. So a park is never too long, and of those that are too
    /// short there are at most seven in a row, each having sorted more than `SEARCH_MAX` entries.
    pub(super) fn next_deadline(&mut self) -> Option<u64> {
        let next = self.next.unwrap_or_else(|| self.find_next());
        self.next = Some(next);
        match next {
            NextTick::Never => None,
            NextTick::At(tick) => Some(tick << TICK_NS_LOG2),
        }
    }

    /// Whether anything is placed, so that a clock is worth reading.
    pub(super) fn has_placed(&self) -> bool {
        self.placed != 0
    }

    /// Whether anything waits for a clock reading.
    pub(super) fn has_fresh(&self) -> bool {
        self.heads[usize::from(FRESH)] != NIL
    }

    /// How many keys are out.
    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    /// Whether arming one more needs a new entry, rather than one that was given back.
    pub(super) fn is_full(&self) -> bool {
        self.vacant == NIL
    }

    /// One past the largest key that was ever out.
    pub(super) fn keys_end(&self) -> usize {
        self.entries.len()
    }

    fn entry(&mut self, key: u32) -> &mut Entry<W> {
        &mut self.entries[key as usize]
    }

    #[inline]
    fn take_entry(&mut self, waiting: W) -> u32 {
        self.taken += 1;
        let key = self.vacant;
        if key == NIL {
            let key = u32::try_from(self.entries.len()).ok().filter(|key| *key != NIL);
            let key = key.expect("a worker has fewer than 2^32 - 1 timers");
            self.entries.push(Entry { due: 0, next: NIL, prev: NIL, list: UNLISTED, waiting: Some(waiting) });
            return key;
        }
        let entry = self.entry(key);
        entry.waiting = Some(waiting);
        self.vacant = entry.next;
        key
    }

    #[inline]
    fn place(&mut self, key: u32, deadline_ns: u64) {
        self.place_at_tick(key, deadline_ns.div_ceil(1 << TICK_NS_LOG2).max(self.tick + 1));
    }

    fn place_at_tick(&mut self, key: u32, due: u64) {
        self.entry(key).due = due;
        if due < TICK_NEVER {
            self.link(key, list_of(self.tick, due));
        }
    }

    /// Puts an unlisted entry at the end of a list.
    #[inline]
    fn link(&mut self, key: u32, list: u16) {
        let head = self.heads[usize::from(list)];
        let (prev, next) = if head == NIL {
            self.heads[usize::from(list)] = key;
            (key, key)
        } else {
            let prev = std::mem::replace(&mut self.entry(head).prev, key);
            self.entry(prev).next = key;
            (prev, head)
        };
        let entry = self.entry(key);
        (entry.prev, entry.next, entry.list) = (prev, next, list);
        if list != FRESH {
            let due = entry.due;
            self.placed += 1;
            let (level, bit) = level_and_bit(list);
            self.used[level] |= bit;
            match self.next {
                Some(NextTick::Never) => self.next = Some(NextTick::At(due)),
                Some(NextTick::At(tick)) if due < tick => self.next = Some(NextTick::At(due)),
                _ => {}
            }
        }
    }

    /// Takes an entry out of the list it is in, if any.
    #[inline]
    fn unlink(&mut self, key: u32) {
        let entry = self.entry(key);
        let (prev, next, list, due) = (entry.prev, entry.next, entry.list, entry.due);
        if list == UNLISTED {
            return;
        }
        entry.list = UNLISTED;
        let emptied = next == key;
        if emptied {
            self.heads[usize::from(list)] = NIL;
        } else {
            self.entry(prev).next = next;
            self.entry(next).prev = prev;
            if self.heads[usize::from(list)] == key {
                self.heads[usize::from(list)] = next;
            }
        }
        if list != FRESH {
            self.placed -= 1;
            if emptied {
                let (level, bit) = level_and_bit(list);
                self.used[level] &= !bit;
            }
            // The answer may also be the beginning of a list, earlier than any entry: it is wrong once this
            // list's first is gone.
            if self.next.is_some_and(|next| next == NextTick::At(due)) || emptied {
                self.next = None;
            }
        }
    }

    fn first(&self, list: u16) -> Option<u32> {
        Some(self.heads[usize::from(list)]).filter(|key| *key != NIL)
    }

    /// The list that is due first, and the tick at which it begins.
    fn first_list(&self) -> Option<(u16, u64)> {
        let level = self.used.iter().position(|used| *used != 0)?;
        let index = self.used[level].trailing_zeros();
        let shift = LEVEL_BITS * u32::try_from(level).expect("a level is at most 7");
        let turn = (self.tick >> shift) & !(LISTS_PER_LEVEL as u64 - 1);
        let list = level * LISTS_PER_LEVEL + index as usize;
        let list = u16::try_from(list).expect("a list is less than 512");
        Some((list, (turn | u64::from(index)) << shift))
    }

    fn find_next(&mut self) -> NextTick {
        let Some((list, start)) = self.first_list() else { return NextTick::Never };
        let first = self.heads[usize::from(list)];
        let (mut key, mut earliest) = (first, u64::MAX);
        for _ in 0..SEARCH_MAX {
            let entry = self.entry(key);
            earliest = earliest.min(entry.due);
            key = entry.next;
            // On level 0 all entries of a list have the same tick.
            if key == first || earliest == start {
                return NextTick::At(earliest);
            }
        }
        NextTick::At(start)
    }
}

/// The list for `due` as seen from `tick`, which is before it.
fn list_of(tick: u64, due: u64) -> u16 {
    // The lowest bit set keeps equal numbers off the logarithm's edge, and does not change the level.
    let level = ((tick ^ due) | 1).ilog2() / LEVEL_BITS;
    let index = (due >> (level * LEVEL_BITS)) & (LISTS_PER_LEVEL as u64 - 1);
    u16::try_from(u64::from(level << LEVEL_BITS) | index).expect("48 bits make levels 0 to 7")
}

fn level_and_bit(list: u16) -> (usize, u64) {
    (usize::from(list >> LEVEL_BITS), 1 << (usize::from(list) % LISTS_PER_LEVEL))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK_NS: u64 = 1 << TICK_NS_LOG2;

    /// Advances, and answers with what fired.
    fn advance(wheel: &mut Wheel<u32>, now_ns: u64) -> Vec<u32> {
        let mut fired = Vec::new();
        wheel.advance(now_ns, &mut fired);
        fired
    }

    #[test]
    fn fires_at_the_first_tick_that_is_not_early() {
        // Rounding down would fire up to a tick early; rounding up twice, a tick later than promised.
        for deadline in
            [1, TICK_NS - 1, TICK_NS, TICK_NS + 1, 64 * TICK_NS, 1_000_000_000, 86_400_000_000_000]
        {
            let mut wheel = Wheel::new();
            wheel.arm_at(deadline, 7);
            let due = wheel.next_deadline().unwrap();
            assert!(due >= deadline && due - deadline < TICK_NS, "{deadline} would fire at {due}");
            assert_eq!(advance(&mut wheel, due - 1), []);
            assert_eq!(advance(&mut wheel, due), [7]);
            assert_eq!(wheel.next_deadline(), None);
        }
    }

    #[test]
    fn one_jump_fires_everything_on_the_way_in_order() {
        // A jump must neither skip a list nor hand out a far deadline before a near one that stood on another
        // level.
        let mut wheel = Wheel::new();
        let deadlines = (0..40).map(|n| 3u64 << n).rev();
        for (deadline, name) in deadlines.zip(0..) {
            wheel.arm_at(deadline * TICK_NS, name);
        }
        assert_eq!(advance(&mut wheel, u64::MAX / 2), (0..40).rev().collect::<Vec<_>>());
    }

    #[test]
    fn entries_of_one_tick_fire_in_the_order_they_were_armed() {
        // Programs that arm the same duration one after the other expect to be woken in that order.
        let mut wheel = Wheel::new();
        for name in 0..5 {
            wheel.arm_at(1_000 * TICK_NS, name);
        }
        assert_eq!(advance(&mut wheel, 1_000 * TICK_NS), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_deadline_584_years_away_is_kept_and_never_comes() {
        // `sleep(Duration::MAX)` must not wrap round to now, nor be lost so that giving it back fails.
        let mut wheel = Wheel::new();
        let key = wheel.arm_at(u64::MAX, 1);
        assert_eq!(wheel.next_deadline(), None);
        assert_eq!(advance(&mut wheel, u64::MAX), []);
        assert_eq!(wheel.remove(key), Some(1));
    }

    #[test]
    fn a_fresh_entry_counts_from_the_reading_it_is_placed_with() {
        // Counting from an older reading would fire early. One that is removed first must leave nothing
        // behind.
        let mut wheel = Wheel::new();
        let (gone, _kept) = (wheel.arm_after(10 * TICK_NS, 1), wheel.arm_after(10 * TICK_NS, 2));
        assert_eq!(wheel.remove(gone), Some(1));
        assert_eq!(wheel.next_deadline(), None);
        assert!(wheel.has_fresh());
        let mut placed = Vec::new();
        wheel.place_fresh(5 * TICK_NS, |_key, deadline| placed.push(deadline));
        assert_eq!(placed, [15 * TICK_NS]);
        assert!(!wheel.has_fresh());
        assert_eq!(advance(&mut wheel, 14 * TICK_NS), []);
        assert_eq!(advance(&mut wheel, 15 * TICK_NS), [2]);
    }

    #[test]
    fn entries_are_used_again() {
        // A leak of entries would make a program that makes and drops timeouts grow for ever.
        let mut wheel = Wheel::new();
        for n in 0..1_000 {
            let key = wheel.arm_at(n * TICK_NS, 0);
            if n % 2 == 0 {
                advance(&mut wheel, n * TICK_NS);
            }
            wheel.remove(key);
        }
        assert_eq!((wheel.taken(), wheel.keys_end()), (0, 1));
    }

    #[test]
    fn a_crowd_in_one_list_costs_few_parks_for_nothing() {
        // The earliest of many was removed: the park may be too short then, but must make progress each time
        // and find the others.
        let mut wheel = Wheel::new();
        let first = wheel.arm_at((1 << 30) * TICK_NS, 0);
        for n in 1..=1_000 {
            wheel.arm_at(((1 << 30) + n) * TICK_NS, 1);
        }
        wheel.remove(first);
        let mut parks = 1;
        while {
            let due = wheel.next_deadline().expect("a thousand are left");
            advance(&mut wheel, due).is_empty()
        } {
            parks += 1;
            assert!(parks <= 8, "seven levels to move down, and one to fire");
        }
        assert!(parks > 1, "or this test is about nothing");
    }

    #[derive(Clone, Debug)]
    enum Step {
        ArmAt(u64),
        ArmAfter(u64),
        PlaceFresh,
        Remove(usize),
        Move(usize, u64),
        Advance(u64),
        AdvanceToNext,
    }

    /// Nanoseconds from a few to many years, each power of two as likely as any other.
    fn nanoseconds() -> impl Strategy<Value = u64> {
        (0u32..62, any::<u64>()).prop_map(|(log, low)| (1 << log) | (low & ((1 << log) - 1)))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => nanoseconds().prop_map(Step::ArmAt),
            2 => nanoseconds().prop_map(Step::ArmAfter),
            1 => Just(Step::PlaceFresh),
            3 => any::<usize>().prop_map(Step::Remove),
            2 => (any::<usize>(), nanoseconds()).prop_map(|(n, delta)| Step::Move(n, delta)),
            2 => nanoseconds().prop_map(Step::Advance),
            4 => Just(Step::AdvanceToNext),
        ]
    }

    /// What the model knows of an entry whose key is out.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Entry {
        Deadline(u64),
        Fresh(u64),
        Fired,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]
        #[test]
        fn agrees_with_a_map_of_deadlines(steps in prop::collection::vec(step(), 0..60)) {
            // Every level, cascade, cached answer and list in any order, against a map that is searched from
            // end to end.
            let tick_of = |deadline: u64| deadline.div_ceil(TICK_NS);
            let mut wheel = Wheel::new();
            let mut model = BTreeMap::<u32, Entry>::new();
            let mut names = 0..;
            let mut keys = BTreeMap::<u32, u32>::new();
            let mut now = 0u64;
            for step in steps {
                let nth = |n: usize| keys.iter().nth(n % keys.len().max(1)).map(|(name, key)| (*name, *key));
                match step {
                    Step::ArmAt(delta) => {
                        let (name, deadline) = (names.next().unwrap(), now.saturating_add(delta));
                        keys.insert(name, wheel.arm_at(deadline, name));
                        model.insert(name, Entry::Deadline(deadline));
                    }
                    Step::ArmAfter(duration) => {
                        let name = names.next().unwrap();
                        keys.insert(name, wheel.arm_after(duration, name));
                        model.insert(name, Entry::Fresh(duration));
                    }
                    Step::PlaceFresh => {
                        wheel.place_fresh(now, |_, _| {});
                        for entry in model.values_mut() {
                            if let Entry::Fresh(duration) = *entry {
                                *entry = Entry::Deadline(now.saturating_add(duration));
                            }
                        }
                    }
                    Step::Remove(n) => {
                        let Some((name, key)) = nth(n) else { continue };
                        let fired = model.remove(&name) == Some(Entry::Fired);
                        prop_assert_eq!(wheel.remove(key), if fired { None } else { Some(name) });
                        keys.remove(&name);
                    }
                    Step::Move(n, delta) => {
                        let Some((name, key)) = nth(n) else { continue };
                        let deadline = now.saturating_add(delta);
                        let fired = model[&name] == Entry::Fired;
                        prop_assert_eq!(wheel.move_to(key, deadline), !fired);
                        if !fired {
                            model.insert(name, Entry::Deadline(deadline));
                        }
                    }
                    Step::Advance(_) | Step::AdvanceToNext => {
                        now = match step {
                            Step::Advance(delta) => now.saturating_add(delta),
                            _ => wheel.next_deadline().unwrap_or(now),
                        };
                        let fired = advance(&mut wheel, now);
                        let mut last = 0;
                        for name in &fired {
                            let Some(Entry::Deadline(deadline)) = model.insert(*name, Entry::Fired) else {
                                panic!("{name} fired without a deadline");
                            };
                            prop_assert!(deadline <= now, "fired early");
                            prop_assert!(last <= tick_of(deadline), "fired out of order");
                            last = tick_of(deadline);
                        }
                    }
                }
                let pending = || model.values().filter_map(|entry| match entry {
                    Entry::Deadline(deadline) if tick_of(*deadline) < TICK_NEVER => Some(tick_of(*deadline)),
                    _ => None,
                });
                prop_assert_eq!(wheel.next_deadline(), pending().min().map(|tick| tick << TICK_NS_LOG2));
                prop_assert!(pending().all(|tick| tick > now >> TICK_NS_LOG2), "something due did not fire");
                prop_assert_eq!(wheel.has_placed(), pending().next().is_some());
                prop_assert_eq!(wheel.taken() as usize, model.len());
            }
        }
    }
}
