//! One database of one shard: keys, their values, and when they end.
//!
//! **Where a key lives.** [`Keyspace::hash`] maps a key to 32 bits, read as a position on a line from 0 to 2³². The line is
//! cut into as many equal stretches as there are shards, so a position says which shard a key belongs to
//! ([`Keyspace::shard_of`]); each shard cuts its stretch into [`SEGMENTS`] *segments*, each a hash table of its own.
//! Three things follow from that order:
//!
//! - A SCAN walks the line from left to right and its cursor is the position to go on from. A key has one position for as long
//!   as it lives, whatever tables grow or shrink meanwhile: a key that is there during a whole scan is returned exactly once
//!   (Redis promises "at least once"), and cursors stay good when the number of shards changes.
//! - A table that is full doubles one segment, not the database: no request waits for millions of entries to move.
//! - Whatever must visit all keys (active expiry, a snapshot of the log) stops after any segment and goes on later.
//!
//! **What an entry is.** Key and value share one allocation; the table holds it, the key's position, and the expiry beside each
//! other. A lookup touches a segment, a slot of its table, and the bytes: three cache lines for a small value. A value
//! that is replaced by one of about its size is replaced in place.
//!
//! **Expiry.** An entry past its time is gone for whoever asks ([`Db::find`] removes it); [`Db::sweep`] removes those nobody
//! asks for. Each segment knows a time before which none of its entries ends, so a sweep passes most segments by.

use std::hash::Hasher as _;

use foldhash::{SharedSeed, fast::FoldHasher};
use hashbrown::{HashTable, hash_table};

/// Milliseconds since 1970, the clock of everything that expires.
pub type Millis = u64;

/// The expiry of a key that does not expire.
pub const NEVER: Millis = Millis::MAX;

/// How many tables share the keys of a database. At 10 million keys, each holds some 2,500: few enough to double or to sort
/// within microseconds; an empty database costs 160 KiB, and only once it is used.
pub const SEGMENTS: usize = 1 << SEGMENT_BITS;
const SEGMENT_BITS: u32 = 12;

/// Bytes a key costs besides its own and its value's: its share of the table at the usual load, and the allocator's header.
const ENTRY_COST: usize = size_of::<Entry>() * 3 / 2 + 16;

// ---- Which shard ------------------------------------------------------------------------------------------------------

/// The map from keys to shards: the same on every worker.
#[derive(Debug, Clone)]
pub struct Keyspace {
    shards: u32,
    seed: u64,
    shared: SharedSeed,
}

impl Keyspace {
    /// A keyspace of that many shards. Who does not know the seed cannot choose keys that collide.
    ///
    /// # Panics
    /// If there is no shard.
    #[must_use]
    pub fn new(shards: u32, seed: u64) -> Self {
        assert!(shards > 0, "a keyspace has one shard at least");
        Self { shards, seed, shared: SharedSeed::from_u64(seed) }
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// The seed it was made with; logs keep it, so that a restarted server finds its keys where they were.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The position of a key.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "folds 64 bits to 32 on purpose")]
    pub fn hash(&self, key: &[u8]) -> u32 {
        let mut hasher = FoldHasher::with_seed(self.seed, &self.shared);
        hasher.write(key);
        let hash = hasher.finish();
        (hash ^ hash >> 32) as u32
    }

    /// The key with its position.
    #[inline]
    #[must_use]
    pub fn key<'a>(&self, bytes: &'a [u8]) -> Key<'a> {
        Key { bytes, hash: self.hash(bytes) }
    }

    /// The shard that a position belongs to.
    #[inline]
    #[must_use]
    pub fn shard_of(&self, hash: u32) -> u32 {
        let (shard, _) = split(hash, self.shards);
        shard
    }

    /// The first position of a shard's stretch.
    #[must_use]
    pub fn start_of(&self, shard: u32) -> u32 {
        let start = (u64::from(shard) << 32).div_ceil(u64::from(self.shards));
        u32::try_from(start).expect("a shard begins on the line")
    }
}

/// Which of the equal stretches a position lies in, and how far into it (as a fraction of 2³²).
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes the two halves of a product apart")]
fn split(hash: u32, shards: u32) -> (u32, u32) {
    let product = u64::from(hash) * u64::from(shards);
    ((product >> 32) as u32, product as u32)
}

/// A key and its position.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// What the client calls it.
    pub bytes: &'a [u8],
    /// [`Keyspace::hash`] of the bytes.
    pub hash: u32,
}

// ---- Entries ----------------------------------------------------------------------------------------------------------

/// A key with its value.
#[derive(Debug)]
pub struct Entry {
    /// The key, then the value.
    data: Vec<u8>,
    key_len: u32,
    hash: u32,
    expire_at: Millis,
}

impl Entry {
    fn new(key: &Key<'_>, value: &[u8], expire_at: Millis) -> Self {
        let mut data = Vec::with_capacity(key.bytes.len() + value.len());
        data.extend_from_slice(key.bytes);
        data.extend_from_slice(value);
        let key_len = u32::try_from(key.bytes.len()).expect("a key fits a receive buffer");
        Self { data, key_len, hash: key.hash, expire_at }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.data[..self.key_len as usize]
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.data[self.key_len as usize..]
    }

    /// When it ends; [`NEVER`] if it does not.
    #[must_use]
    pub fn expire_at(&self) -> Millis {
        self.expire_at
    }

    /// Its position.
    #[must_use]
    pub fn hash(&self) -> u32 {
        self.hash
    }

    /// Whether its time is over.
    #[must_use]
    pub fn has_expired(&self, now: Millis) -> bool {
        now > self.expire_at
    }

    fn is(&self, key: &Key<'_>) -> bool {
        self.hash == key.hash && self.key() == key.bytes
    }

    /// Replaces the value, in place unless it does not fit or would leave more than half of the room empty.
    fn replace(&mut self, value: &[u8]) {
        let len = self.key_len as usize + value.len();
        if len > self.data.capacity() || len < self.data.capacity() / 2 {
            let mut data = Vec::with_capacity(len);
            data.extend_from_slice(self.key());
            self.data = data;
        } else {
            self.data.truncate(self.key_len as usize);
        }
        self.data.extend_from_slice(value);
    }

    /// Overwrites from `offset` on; a gap before it fills with zeros.
    fn write_range(&mut self, offset: usize, bytes: &[u8]) {
        let start = self.key_len as usize + offset;
        if start + bytes.len() > self.data.len() {
            self.data.resize(start + bytes.len(), 0);
        }
        self.data[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn cost(&self) -> usize {
        self.data.capacity() + ENTRY_COST
    }
}

/// What a table is asked with. It keeps apart what a segment's positions share (their first bits) and spreads the rest.
#[inline]
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

// ---- The database -----------------------------------------------------------------------------------------------------

/// A stretch of the keyspace and the table of its keys.
#[derive(Debug)]
pub struct Segment {
    table: HashTable<Entry>,
    /// No entry ends before this.
    earliest: Millis,
}

impl Segment {
    /// How many entries it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

/// One database of one shard.
#[derive(Debug)]
pub struct Db {
    shards: u32,
    /// [`SEGMENTS`] of them, or none while the database has never held a key.
    segments: Vec<Segment>,
    len: usize,
    expiring: usize,
    used: usize,
    expired: u64,
    /// Where the next sweep starts.
    sweep: usize,
}

impl Db {
    /// An empty database of a shard of a keyspace of that many.
    #[must_use]
    pub fn new(shards: u32) -> Self {
        Self { shards, segments: Vec::new(), len: 0, expiring: 0, used: 0, expired: 0, sweep: 0 }
    }

    /// How many keys it holds, those included that have expired unnoticed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of its keys will expire.
    #[must_use]
    pub fn expiring(&self) -> usize {
        self.expiring
    }

    /// How many keys have expired so far.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// The memory its keys take, in bytes, as far as it can be told without asking the allocator.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// The entry of a key, unless it has expired: then it is removed.
    #[inline]
    pub fn find(&mut self, key: &Key<'_>, now: Millis) -> Option<&Entry> {
        self.occupied(key, now).map(|found| &*found.into_mut())
    }

    /// Gives a key a value and an expiry, whatever it had before.
    #[inline]
    pub fn set(&mut self, key: &Key<'_>, value: &[u8], expire_at: Millis) {
        if self.segments.is_empty() {
            self.segments.extend((0..SEGMENTS).map(|_| Segment { table: HashTable::new(), earliest: NEVER }));
        }
        let segment = &mut self.segments[segment_of(key.hash, self.shards)];
        let slot = segment.table.entry(spread(key.hash), |entry| entry.is(key), |entry| spread(entry.hash));
        match slot {
            hash_table::Entry::Occupied(mut found) => {
                let entry = found.get_mut();
                self.used -= entry.cost();
                entry.replace(value);
                self.used += entry.cost();
                self.expiring -= usize::from(entry.expire_at != NEVER);
                entry.expire_at = expire_at;
            }
            hash_table::Entry::Vacant(vacant) => {
                let entry = Entry::new(key, value, expire_at);
                self.used += entry.cost();
                self.len += 1;
                vacant.insert(entry);
            }
        }
        self.expiring += usize::from(expire_at != NEVER);
        segment.earliest = segment.earliest.min(expire_at);
    }

    /// Overwrites part of a key's value; false if there is no such key.
    pub fn write_range(&mut self, key: &Key<'_>, offset: usize, bytes: &[u8]) -> bool {
        let Some(mut found) = self.occupied(key, 0) else { return false };
        let entry = found.get_mut();
        let before = entry.cost();
        entry.write_range(offset, bytes);
        let after = entry.cost();
        self.used = self.used - before + after;
        true
    }

    /// Changes when a key expires; false if there is no such key.
    pub fn set_expiry(&mut self, key: &Key<'_>, expire_at: Millis) -> bool {
        let Some(mut found) = self.occupied(key, 0) else { return false };
        let before = std::mem::replace(&mut found.get_mut().expire_at, expire_at);
        self.expiring -= usize::from(before != NEVER);
        self.expiring += usize::from(expire_at != NEVER);
        let segment = &mut self.segments[segment_of(key.hash, self.shards)];
        segment.earliest = segment.earliest.min(expire_at);
        true
    }

    /// Takes a key out; `None` if it was not there or has expired.
    pub fn remove(&mut self, key: &Key<'_>, now: Millis) -> Option<Entry> {
        let (entry, _) = self.occupied(key, now)?.remove();
        self.forget(&entry);
        Some(entry)
    }

    /// Empties the database. What it held comes back, to be dropped a segment at a time; empty tables go at once.
    #[must_use]
    pub fn clear(&mut self) -> Vec<Segment> {
        (self.len, self.expiring, self.used, self.sweep) = (0, 0, 0, 0);
        let mut held = std::mem::take(&mut self.segments);
        held.retain(|segment| !segment.is_empty());
        held
    }

    /// Visits the entries from position `from` on, in order, until `enough` says so. Gives the position to go on from,
    /// or `None` at the end.
    ///
    /// Entries at the same position are visited together, so that none is lost between two calls.
    pub fn scan<'a>(
        &'a self,
        from: u32,
        mut visit: impl FnMut(&'a Entry),
        mut enough: impl FnMut() -> bool,
    ) -> Option<u32> {
        let mut ordered = Vec::new();
        for segment in self.segments.get(segment_of(from, self.shards)..).unwrap_or_default() {
            ordered.clear();
            ordered.extend(segment.table.iter().filter(|entry| entry.hash >= from));
            ordered.sort_unstable_by_key(|entry| entry.hash);
            let mut last = None;
            for &entry in &ordered {
                if last.is_some_and(|last| last != entry.hash) && enough() {
                    return Some(entry.hash);
                }
                visit(entry);
                last = Some(entry.hash);
            }
            // The segment is done. If that is enough, the next one is found by the position behind its last entry.
            if enough()
                && let Some(last) = last
            {
                let same_shard = |next: &u32| split(*next, self.shards).0 == split(last, self.shards).0;
                return last.checked_add(1).filter(same_shard);
            }
        }
        None
    }

    /// Every entry, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.segments.iter().flat_map(|segment| segment.table.iter())
    }

    /// The entry that `n` others come before, in an order that is no one's business; for a random `n`, a random entry.
    #[must_use]
    pub fn nth(&self, mut n: usize) -> Option<&Entry> {
        for segment in &self.segments {
            match n.checked_sub(segment.table.len()) {
                Some(rest) => n = rest,
                None => return segment.table.iter().nth(n),
            }
        }
        None
    }

    /// Removes entries whose time is over, looking at some `budget` entries (a segment is looked at whole). Goes on
    /// where the last sweep stopped. Gives how many it looked at: less than `budget` once nothing is left to do.
    pub fn sweep(&mut self, now: Millis, budget: usize) -> usize {
        let mut seen = 0;
        for _ in 0..self.segments.len() {
            if seen >= budget {
                break;
            }
            let segment = &mut self.segments[self.sweep];
            self.sweep = (self.sweep + 1) % SEGMENTS;
            if segment.earliest >= now {
                continue;
            }
            seen += segment.table.len();
            let mut earliest = NEVER;
            segment.table.retain(|entry| {
                if !entry.has_expired(now) {
                    earliest = earliest.min(entry.expire_at);
                    return true;
                }
                self.len -= 1;
                self.expiring -= 1;
                self.expired += 1;
                self.used -= entry.cost();
                false
            });
            segment.earliest = earliest;
        }
        seen
    }

    /// The slot of a key that is alive at `now`.
    #[inline]
    fn occupied(&mut self, key: &Key<'_>, now: Millis) -> Option<hash_table::OccupiedEntry<'_, Entry>> {
        let segment = self.segments.get_mut(segment_of(key.hash, self.shards))?;
        let found = segment.table.find_entry(spread(key.hash), |entry| entry.is(key)).ok()?;
        if !found.get().has_expired(now) {
            return Some(found);
        }
        let (entry, _) = found.remove();
        self.len -= 1;
        self.expiring -= 1;
        self.expired += 1;
        self.used -= entry.cost();
        None
    }

    fn forget(&mut self, entry: &Entry) {
        self.len -= 1;
        self.expiring -= usize::from(entry.expire_at != NEVER);
        self.used -= entry.cost();
    }
}

#[inline]
fn segment_of(hash: u32, shards: u32) -> usize {
    let (_, fraction) = split(hash, shards);
    (fraction >> (u32::BITS - SEGMENT_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn keyspace() -> Keyspace {
        Keyspace::new(3, 7)
    }

    fn numbered(n: u32) -> Vec<u8> {
        format!("key:{n}").into_bytes()
    }

    /// A database of shard 1 of 3 and the keys among the first `n` that belong there.
    fn filled(n: u32) -> (Keyspace, Db, Vec<Vec<u8>>) {
        let keyspace = keyspace();
        let mut db = Db::new(3);
        let keys: Vec<_> =
            (0..n).map(numbered).filter(|key| keyspace.shard_of(keyspace.hash(key)) == 1).collect();
        for key in &keys {
            db.set(&keyspace.key(key), b"value", NEVER);
        }
        (keyspace, db, keys)
    }

    #[test]
    fn a_position_belongs_to_the_shard_whose_stretch_holds_it() {
        for shards in [1, 2, 3, 7, 64] {
            let keyspace = Keyspace::new(shards, 0);
            for shard in 0..shards {
                let start = keyspace.start_of(shard);
                assert_eq!(keyspace.shard_of(start), shard);
                assert!(shard == 0 || keyspace.shard_of(start - 1) == shard - 1);
            }
            assert_eq!(keyspace.shard_of(u32::MAX), shards - 1);
        }
    }

    // What could go wrong: keys pile up in one shard, or in a few segments of it, since both are cut from the same hash.
    #[test]
    fn keys_spread_evenly_over_shards_and_segments() {
        let keyspace = Keyspace::new(4, 99);
        let mut shards = [0; 4];
        let mut segments = vec![0; SEGMENTS];
        for n in 0..4 * 40_960 {
            let hash = keyspace.hash(&numbered(n));
            shards[keyspace.shard_of(hash) as usize] += 1;
            segments[segment_of(hash, 4)] += 1;
        }
        assert!(shards.iter().all(|&n| (40_000..42_000).contains(&n)), "{shards:?}");
        assert!(segments.iter().all(|&n| (10..90).contains(&n)), "expected 40, with a deviation of 6");
    }

    // What could go wrong: SCAN loses keys that are there all along while others come and go and tables double.
    #[test]
    fn a_scan_returns_each_key_that_stays_exactly_once() {
        let (keyspace, mut db, keys) = filled(30_000);
        let (mut from, mut seen, mut step) = (0, Vec::new(), 0_u32);
        loop {
            let count = std::cell::Cell::new(0);
            let next = db.scan(
                from,
                |entry| {
                    count.set(count.get() + 1);
                    seen.push(entry.key().to_vec());
                },
                || count.get() >= 10,
            );
            let Some(next) = next else { break };
            from = next;
            step += 1;
            for n in 0..20 {
                let key = format!("new:{step}:{n}");
                if keyspace.shard_of(keyspace.hash(key.as_bytes())) == 1 {
                    db.set(&keyspace.key(key.as_bytes()), b"", NEVER);
                }
                db.remove(&keyspace.key(format!("new:{}:{n}", step / 2).as_bytes()), 0);
            }
        }
        seen.retain(|key| key.starts_with(b"key"));
        assert_eq!(seen.len(), keys.len());
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), keys.into_iter().collect());
    }

    #[test]
    fn every_entry_can_be_the_random_one() {
        let (_, db, keys) = filled(1000);
        let all: BTreeSet<_> = (0..db.len()).map(|n| db.nth(n).expect("that many").key().to_vec()).collect();
        assert_eq!(all, keys.into_iter().collect());
        assert!(db.nth(db.len()).is_none());
    }

    #[test]
    fn a_sweep_removes_what_has_expired_and_passes_by_the_rest() {
        let (keyspace, mut db, keys) = filled(10_000);
        for (n, key) in (0..).zip(&keys) {
            db.set_expiry(&keyspace.key(key), if n % 2 == 0 { 100 + n } else { NEVER });
        }
        let before = db.len();
        assert_eq!(db.sweep(100, usize::MAX), 0, "nothing ends before 101");
        while db.sweep(NEVER - 1, 100) >= 100 {}
        assert_eq!((db.len(), db.expiring()), (before / 2, 0));
        assert_eq!(db.sweep(NEVER - 1, usize::MAX), 0);
        assert!(
            db.find(&keyspace.key(&keys[0]), 0).is_none()
                && db.find(&keyspace.key(&keys[1]), NEVER - 1).is_some()
        );
    }

    #[derive(Debug, Clone)]
    enum Change {
        Set(u32, usize, Millis),
        Range(u32, usize, usize),
        Expire(u32, Millis),
        Remove(u32),
        Tick(Millis),
        Sweep,
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let millis = || prop_oneof![1..200_u64, Just(NEVER)];
        prop_oneof![
            (0..20_u32, 0..100_usize, millis()).prop_map(|(k, n, e)| Change::Set(k, n, e)),
            (0..20_u32, 0..50_usize, 0..50_usize).prop_map(|(k, o, n)| Change::Range(k, o, n)),
            (0..20_u32, millis()).prop_map(|(k, e)| Change::Expire(k, e)),
            (0..20_u32).prop_map(Change::Remove),
            (0..20_u64).prop_map(Change::Tick),
            Just(Change::Sweep),
        ]
    }

    proptest! {
        // What could go wrong: the counters drift from what they count, and maxmemory means nothing after a day.
        #[test]
        fn the_database_is_a_map_and_its_counters_are_right(changes in prop::collection::vec(any_change(), 1..100)) {
            let keyspace = Keyspace::new(1, 1);
            let (mut db, mut now) = (Db::new(1), 0);
            let mut model = BTreeMap::<u32, (Vec<u8>, Millis)>::new();
            for change in changes {
                model.retain(|_, (_, expire_at)| now <= *expire_at);
                match change {
                    Change::Set(k, len, expire_at) => {
                        db.find(&keyspace.key(&numbered(k)), now);
                        db.set(&keyspace.key(&numbered(k)), &vec![1; len], expire_at);
                        model.insert(k, (vec![1; len], expire_at));
                    }
                    Change::Range(k, offset, len) => {
                        db.find(&keyspace.key(&numbered(k)), now);
                        let found = db.write_range(&keyspace.key(&numbered(k)), offset, &vec![2; len]);
                        prop_assert_eq!(found, model.contains_key(&k));
                        if let Some((value, _)) = model.get_mut(&k) {
                            value.resize(value.len().max(offset + len), 0);
                            value[offset..offset + len].fill(2);
                        }
                    }
                    Change::Expire(k, expire_at) => {
                        db.find(&keyspace.key(&numbered(k)), now);
                        prop_assert_eq!(db.set_expiry(&keyspace.key(&numbered(k)), expire_at), model.contains_key(&k));
                        if let Some(entry) = model.get_mut(&k) {
                            entry.1 = expire_at;
                        }
                    }
                    Change::Remove(k) => {
                        let removed = db.remove(&keyspace.key(&numbered(k)), now).map(|entry| entry.value().to_vec());
                        prop_assert_eq!(removed, model.remove(&k).map(|(value, _)| value));
                    }
                    Change::Tick(millis) => now += millis,
                    Change::Sweep => {
                        db.sweep(now, usize::MAX);
                        prop_assert_eq!(db.len(), model.len());
                    }
                }
            }
            db.sweep(now, usize::MAX);
            model.retain(|_, (_, expire_at)| now <= *expire_at);
            prop_assert_eq!(db.len(), model.len());
            prop_assert_eq!(db.expiring(), model.values().filter(|(_, expire_at)| *expire_at != NEVER).count());
            prop_assert_eq!(db.used(), db.iter().map(Entry::cost).sum::<usize>());
            for (k, (value, expire_at)) in model {
                let entry = db.find(&keyspace.key(&numbered(k)), now).expect("the model has it");
                prop_assert_eq!((entry.value(), entry.expire_at()), (&value[..], expire_at));
            }
        }
    }
}
