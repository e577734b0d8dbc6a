//! One shard: sixteen databases that one worker owns.
//!
//! A shard is a value, without threads, locks or clock. Whoever owns it calls [`Shard::execute`](crate::exec) for commands,
//! [`Shard::tick`] ten times a second, [`Shard::replay`] at start and [`Shard::snapshot`] when its log is compacted.

use crate::{
    db::{Db, Keyspace, Millis, NEVER, SEGMENTS, Segment},
    limits::{BACKLOG_MAX, Limits},
    log::{Journal, Record},
    resp::Protocol,
};

/// Databases for SELECT: Redis's default.
pub const DATABASES: u8 = 16;

/// Entries that a tick frees, and that it looks at, before it looks whether it is worth going on: a fraction of a millisecond.
const SWEEP: usize = 2_000;

/// One worker's part of the keyspace.
#[derive(Debug)]
pub struct Shard {
    pub(crate) index: u32,
    pub(crate) keyspace: Keyspace,
    pub(crate) value_max: usize,
    pub(crate) output_max: usize,
    memory_max: usize,
    pub(crate) dbs: Vec<Db>,
    /// What flushed databases held, dropped bit by bit: freeing ten million keys at once takes a second. No more segments
    /// than there are in all databases.
    pub(crate) garbage: Vec<Segment>,
    pub(crate) stats: Stats,
    /// Why writes are refused, while the log cannot be written.
    pub(crate) read_only: Option<String>,
    random: u64,
}

/// For whom a command runs, and when.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The selected database.
    pub db: u8,
    /// How to write the reply.
    pub protocol: Protocol,
    /// The time. All commands of a turn may share one look at the clock.
    pub now: Millis,
}

/// What a shard has counted since start, or since CONFIG RESETSTAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Commands run.
    pub commands: u64,
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
}

/// Sizes of one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DbSize {
    /// Keys in it.
    pub keys: usize,
    /// Those among them that will expire.
    pub expires: usize,
}

/// How far a snapshot has come.
#[derive(Debug, Clone, Copy, Default)]
pub struct SnapshotCursor {
    db: usize,
    from: u32,
}

impl Shard {
    /// An empty shard, number `index` of the keyspace.
    #[must_use]
    pub fn new(index: u32, keyspace: Keyspace, limits: &Limits) -> Self {
        let shards = keyspace.shards();
        let parts = usize::try_from(shards).expect("a count of workers");
        Self {
            index,
            value_max: limits.value_max,
            output_max: limits.output_max,
            memory_max: limits.memory_max.div_ceil(parts),
            dbs: (0..DATABASES).map(|_| Db::new(shards)).collect(),
            garbage: Vec::new(),
            stats: Stats::default(),
            read_only: None,
            random: keyspace.seed() | 1,
            keyspace,
        }
    }

    /// The memory its keys take.
    #[must_use]
    pub fn used(&self) -> usize {
        self.dbs.iter().map(Db::used).sum()
    }

    /// Whether its part of `maxmemory` is used up.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.memory_max > 0 && self.used() > self.memory_max
    }

    /// Whether so much is journalled that commands must wait until the log has it. (What is read-only adds nothing.)
    #[inline]
    #[must_use]
    pub fn is_behind(&self, journal: &Journal) -> bool {
        journal.len() > BACKLOG_MAX && self.read_only.is_none()
    }

    /// What it has counted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Counts from 0 again.
    pub fn reset_stats(&mut self) {
        self.stats = Stats::default();
    }

    /// The sizes of its databases.
    pub fn sizes(&self) -> impl Iterator<Item = DbSize> {
        self.dbs.iter().map(|db| DbSize { keys: db.len(), expires: db.expiring() })
    }

    /// How many keys have expired so far.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.dbs.iter().map(Db::expired).sum()
    }

    /// Does a bounded piece of what is due: removes expired keys, frees flushed ones. True if more is left, and worth another
    /// call soon.
    pub fn tick(&mut self, now: Millis) -> bool {
        let mut freed = 0;
        while freed < SWEEP
            && let Some(segment) = self.garbage.pop()
        {
            freed += segment.len();
        }
        let mut more = !self.garbage.is_empty();
        for db in &mut self.dbs {
            let before = db.len();
            let seen = db.sweep(now, SWEEP);
            // As in Redis: go on while more than a tenth of what was looked at had expired.
            more |= seen >= SWEEP && (before - db.len()) * 10 > seen;
        }
        more
    }

    /// Repeats an effect that the log remembers.
    ///
    /// # Panics
    /// If the record names a database that there is not; the log's checksums make sure that we wrote it.
    pub fn replay(&mut self, record: &Record<'_>) {
        match *record {
            Record::Set { db, key, value, expire_at } => {
                self.dbs[usize::from(db)].set(&self.keyspace.key(key), value, expire_at);
            }
            Record::Delete { db, key } => {
                self.dbs[usize::from(db)].remove(&self.keyspace.key(key), 0);
            }
            Record::Expire { db, key, expire_at } => {
                self.dbs[usize::from(db)].set_expiry(&self.keyspace.key(key), expire_at);
            }
            Record::Range { db, key, offset, bytes } => {
                let offset = usize::try_from(offset).expect("an offset is below the limit of a value");
                self.dbs[usize::from(db)].write_range(&self.keyspace.key(key), offset, bytes);
            }
            // Dropped at once: nobody waits, and nobody ticks.
            Record::Flush { db: Some(db) } => drop(self.dbs[usize::from(db)].clear()),
            Record::Flush { db: None } => self.dbs.iter_mut().for_each(|db| drop(db.clear())),
            Record::End => {}
        }
    }

    pub(crate) fn flush(&mut self, db: usize) {
        let held = self.dbs[db].clear();
        // Who flushes faster than ticks free, frees as much as it adds.
        self.garbage.truncate((self.dbs.len() * SEGMENTS).saturating_sub(held.len()));
        self.garbage.extend(held);
    }

    /// Writes the next entries, of some `budget` bytes, as records of a base; true once that was the last of them.
    ///
    /// Other commands may run between two calls (see [`log`](crate::log#compaction) why that is right). What has expired is
    /// among them: a command that was sent earlier may find it still, and say in the log what only the base can tell of whom.
    pub fn snapshot(&self, cursor: &mut SnapshotCursor, budget: usize, journal: &mut Journal) -> bool {
        let end = journal.len() + budget;
        while let Some(db) = self.dbs.get(cursor.db) {
            let number = u8::try_from(cursor.db).expect("databases are few");
            let journal = std::cell::RefCell::new(&mut *journal);
            let visit = |entry: &crate::db::Entry| {
                let (key, value, expire_at) = (entry.key(), entry.value(), entry.expire_at());
                journal.borrow_mut().push(&Record::Set { db: number, key, value, expire_at });
            };
            match db.scan(cursor.from, visit, || journal.borrow().len() >= end) {
                Some(next) => {
                    cursor.from = next;
                    return false;
                }
                None => *cursor = SnapshotCursor { db: cursor.db + 1, from: 0 },
            }
        }
        journal.push(&Record::End);
        true
    }

    /// All entries that have not expired, as records, in no order: what another shard, or several, are told to become this
    /// one.
    pub fn entries(&self, now: Millis) -> impl Iterator<Item = Record<'_>> {
        let numbered = (0..DATABASES).zip(&self.dbs);
        numbered.flat_map(move |(db, entries)| {
            let alive = entries.iter().filter(move |entry| !entry.has_expired(now));
            alive.map(move |it| Record::Set {
                db,
                key: it.key(),
                value: it.value(),
                expire_at: it.expire_at(),
            })
        })
    }

    /// A random number below `end`, of which there are some. (An xorshift: nobody stakes anything on RANDOMKEY.)
    pub(crate) fn random_below(&mut self, end: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let wide = u128::from(self.random) * u128::try_from(end).expect("usize fits");
        usize::try_from(wide >> 64).expect("below `end`")
    }

    /// When a key that is there ends, as PEXPIRETIME has it.
    pub(crate) fn expiry_of(expire_at: Millis) -> Option<Millis> {
        (expire_at != NEVER).then_some(expire_at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn shard() -> Shard {
        Shard::new(0, Keyspace::new(1, 3), &Limits::default())
    }

    fn contents(shard: &Shard) -> BTreeMap<(u8, Vec<u8>), (Vec<u8>, Millis)> {
        let entry = |record| match record {
            Record::Set { db, key, value, expire_at } => ((db, key.to_vec()), (value.to_vec(), expire_at)),
            other => panic!("an entry is not {other:?}"),
        };
        shard.entries(0).map(entry).collect()
    }

    fn run(shard: &mut Shard, now: Millis, words: &[&str], journal: &mut Journal) -> String {
        let command = crate::command::lookup(words[0].as_bytes()).expect("listed");
        let hash = words.get(1).map_or(0, |key| shard.keyspace.hash(key.as_bytes()));
        let mut batch = crate::batch::Batch::new();
        let call = Call { db: 0, protocol: Protocol::Resp2, now };
        batch.push(command, words.iter().map(|word| word.as_bytes()), hash, call);
        batch.run(shard, journal);
        String::from_utf8_lossy(batch.reply(0)).into_owned()
    }

    fn replayed(journals: [Journal; 2]) -> Shard {
        use crate::log::{FileName, Header, Kind, Scanner, Writer};
        let header =
            Header { file: FileName { epoch: 1, shard: 0, generation: 1, kind: Kind::Log }, salt: 1 };
        let mut shard = shard();
        for mut journal in journals {
            let frame = Writer::create(&header).seal(&mut journal, Vec::new());
            let mut scanner = Scanner::new("x");
            scanner.feed(&header.encode(), |_| {}).expect("good");
            scanner.feed(&frame.bytes, |record| shard.replay(&record)).expect("good");
        }
        shard
    }

    // What could go wrong: a write between two pieces of a snapshot is in neither base nor log, or replaying it over a base
    // that has seen it gives something else.
    #[test]
    fn a_base_and_the_log_since_its_start_give_the_state_at_its_end() {
        let (mut shard, mut base, mut log) = (shard(), Journal::new(), Journal::new());
        let key = |n: u32| format!("key:{n}").into_bytes();
        for n in 0..3000 {
            shard.replay(&Record::Set {
                db: u8::from(n % 3 == 0),
                key: &key(n),
                value: b"old",
                expire_at: NEVER,
            });
        }
        let (mut cursor, mut step) = (SnapshotCursor::default(), 0);
        while !shard.snapshot(&mut cursor, 500, &mut base) {
            step += 7;
            let (a, b, c, d) = (key(step), key(step * 3 % 3000), key(step * 5 % 3000), key(step * 11 % 3000));
            for record in [
                Record::Set { db: 0, key: &a, value: b"new", expire_at: NEVER },
                Record::Delete { db: 1, key: &b },
                Record::Range { db: 0, key: &c, offset: u64::from(step % 9), bytes: b"range" },
                Record::Expire { db: 1, key: &d, expire_at: 1_000_000 },
            ] {
                log.push(&record);
                shard.replay(&record);
            }
            if step == 700 {
                log.push(&Record::Flush { db: Some(1) });
                shard.replay(&Record::Flush { db: Some(1) });
            }
        }
        assert!(step > 700 && !contents(&shard).is_empty());
        assert!(contents(&replayed([base, log])) == contents(&shard));
    }

    // What could go wrong: a command for another worker finds a key that had expired when the base was written, since it brings the
    // time at which it was sent; what it did is then lost.
    #[test]
    fn what_is_done_to_a_key_that_has_just_expired_is_in_base_and_log() {
        let (mut shard, mut base, mut log) = (shard(), Journal::new(), Journal::new());
        shard.replay(&Record::Set { db: 0, key: b"key", value: b"value", expire_at: 100 });
        assert!(shard.snapshot(&mut SnapshotCursor::default(), 500, &mut base));
        assert_eq!(run(&mut shard, 100, &["PERSIST", "key"], &mut log), ":1\r\n");
        assert!(!contents(&shard).is_empty() && contents(&replayed([base, log])) == contents(&shard));
    }

    // What could go wrong: a key that has expired is found to be so, and another one that has is given for it.
    #[test]
    fn a_random_key_is_one_that_is_there() {
        for seed in 0..100_u64 {
            let keyspace = Keyspace::new(1, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut shard = Shard::new(0, keyspace, &Limits::default());
            for n in 0..10_u8 {
                let expire_at = if n == 0 { NEVER } else { 100 };
                shard.replay(&Record::Set { db: 0, key: &[b'a' + n], value: b"", expire_at });
            }
            let key = run(&mut shard, 101, &["RANDOMKEY"], &mut Journal::off());
            assert_eq!(key, "$1\r\na\r\n", "seed {seed}");
        }
    }

    // What could go wrong: a reply that is too long to be sent is made all the same, and takes as much memory as all keys.
    #[test]
    fn a_list_of_keys_ends_when_it_is_too_long_to_be_sent() {
        let mut shard =
            Shard::new(0, Keyspace::new(1, 3), &Limits { output_max: 10_000, ..Limits::default() });
        for n in 0..100_u8 {
            shard.replay(&Record::Set { db: 0, key: &[n; 1000], value: b"", expire_at: NEVER });
        }
        let keys = run(&mut shard, 0, &["KEYS", "*"], &mut Journal::off());
        assert!((10_001..12_000).contains(&keys.len()), "{}", keys.len());
        for n in 0..100_u8 {
            shard.replay(&Record::Set { db: 1, key: &vec![n; 100_000], value: b"", expire_at: NEVER });
        }
        shard.dbs.swap(0, 1);
        let (mut cursor, mut calls) = ("0".to_owned(), 0);
        while calls == 0 || cursor != "0" {
            let reply = run(&mut shard, 0, &["SCAN", &cursor, "COUNT", "1000000"], &mut Journal::off());
            assert!(reply.len() < 1_500_000);
            cursor = reply.split("\r\n").nth(2).expect("a cursor").to_owned();
            calls += 1;
        }
        assert!((9..=11).contains(&calls), "{calls}");
    }

    #[test]
    fn a_tick_frees_what_was_flushed_and_what_has_expired() {
        let mut shard = shard();
        for n in 0..10_000_u32 {
            shard.replay(&Record::Set { db: 0, key: &n.to_le_bytes(), value: b"", expire_at: NEVER });
            shard.replay(&Record::Set { db: 1, key: &n.to_le_bytes(), value: b"", expire_at: 5 });
        }
        shard.flush(0);
        assert!(shard.garbage.iter().map(Segment::len).sum::<usize>() == 10_000);
        while shard.tick(6) {}
        assert_eq!((shard.garbage.len(), shard.used(), shard.expired()), (0, 0, 10_000));
    }

    // What could go wrong: databases are flushed faster than ticks free them, or in a replay, where there are none.
    #[test]
    fn what_was_flushed_does_not_pile_up() {
        let mut shard = shard();
        for round in 0..100_u32 {
            for n in 0..1000_u32 {
                let key = (round * 1000 + n).to_le_bytes();
                shard.replay(&Record::Set { db: 0, key: &key, value: b"", expire_at: NEVER });
            }
            shard.flush(0);
        }
        assert!(shard.garbage.len() > 50_000);
        assert!(shard.garbage.len() <= usize::from(DATABASES) * SEGMENTS);
        for _ in 0..10 {
            shard.replay(&Record::Set { db: 0, key: b"key", value: b"", expire_at: NEVER });
            while shard.tick(1) {}
            shard.flush(0);
            assert_eq!(shard.garbage.len(), 1, "tables without keys go at once");
        }
        while shard.tick(1) {}
        for db in [None, Some(3)] {
            shard.replay(&Record::Set { db: 3, key: b"key", value: b"", expire_at: NEVER });
            shard.replay(&Record::Flush { db });
            assert_eq!((shard.garbage.len(), shard.used()), (0, 0));
        }
    }
}
