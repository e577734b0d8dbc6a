//! The commands on keys, as one shard runs them.
//!
//! A command reads its arguments, looks at entries, appends one reply to the output, and puts what it changed into the
//! journal: effects, with absolute times and values. A command that fails changes nothing, and its reply is an error
//! (`Fault`) in Redis's words; the order of checks is Redis's too, since a request can be wrong in more than one way.

use std::{borrow::Cow, cell::Cell};

use crate::{
    batch::REPLIES,
    command::{Command, Id},
    db::{Db, Entry, Key, Millis, NEVER},
    float::{Extended, FloatError},
    glob, limits,
    log::{Journal, Record},
    resp::{Args, Encoder, is_space, parse_integer},
    shard::{Call, DATABASES, Shard},
};

/// Why a command did not run.
#[derive(Debug)]
pub(crate) struct Fault(Cow<'static, [u8]>);

impl Fault {
    pub(crate) const SYNTAX: Self = Self::new("ERR syntax error");
    pub(crate) const NOT_INTEGER: Self = Self::new("ERR value is not an integer or out of range");
    pub(crate) const DB_RANGE: Self = Self::new("ERR DB index is out of range");
    const NOT_INT: Self =
        Self::new("ERR value is out of range, value must between -2147483648 and 2147483647");
    const NOT_FLOAT: Self = Self::new("ERR value is not a valid float");
    const INFINITE: Self = Self::new("ERR increment would produce NaN or Infinity");
    const OVERFLOW: Self = Self::new("ERR increment or decrement would overflow");
    const TOO_LONG: Self = Self::new("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    pub(crate) const NO_KEY: Self = Self::new("ERR no such key");
    const NOT_COMPATIBLE: Self =
        Self::new("ERR NX and XX, GT or LT options at the same time are not compatible");

    pub(crate) const fn new(text: &'static str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }

    /// A text with something of the client's in it, as a C format prints that: up to a NUL.
    pub(crate) fn shown(before: &str, text: &[u8], after: &str) -> Self {
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        Self(Cow::Owned([before.as_bytes(), text, after.as_bytes()].concat()))
    }

    fn expire_time(command: &Command) -> Self {
        Self::shown("ERR invalid expire time in '", command.name.as_bytes(), "' command")
    }

    pub(crate) fn encode(&self, out: &mut Encoder<'_>) {
        out.error(&self.0);
    }
}

type Done = Result<(), Fault>;

impl Shard {
    /// Runs a command on the keys of this shard: appends its reply to `out` and its effects to `journal`.
    ///
    /// All keys it names belong to this shard; `hash` is the position of the first one (anything if there is none).
    #[inline]
    pub fn execute(
        &mut self,
        command: &Command,
        args: &Args<'_>,
        hash: u32,
        call: &Call,
        out: &mut Vec<u8>,
        journal: &mut Journal,
    ) {
        self.stats.commands += 1;
        let mut out = Encoder::new(out, call.protocol);
        if command.denied_when_full() && self.is_full() {
            return limits::out_of_memory(&mut out);
        }
        if let Some(why) = &self.read_only
            && command.is_write()
        {
            return limits::misconfigured(why, &mut out);
        }
        let mut run = Run { shard: self, command, args, hash, call, out, journal };
        if let Err(fault) = run.run() {
            fault.encode(&mut run.out);
        }
    }
}

/// A command being run.
struct Run<'a> {
    shard: &'a mut Shard,
    command: &'a Command,
    args: &'a Args<'a>,
    hash: u32,
    call: &'a Call,
    out: Encoder<'a>,
    journal: &'a mut Journal,
}

impl<'a> Run<'a> {
    fn run(&mut self) -> Done {
        match self.command.id {
            Id::Get => self.get(),
            Id::Set => self.set(),
            Id::SetNx => self.setnx(),
            Id::SetEx => self.setex(Unit::Seconds),
            Id::PSetEx => self.setex(Unit::Millis),
            Id::GetEx => self.getex(),
            Id::GetDel => self.getdel(),
            Id::GetSet => self.getset(),
            Id::GetRange => self.getrange(),
            Id::SetRange => self.setrange(),
            Id::Append => self.append(),
            Id::StrLen => self.strlen(),
            Id::Incr => self.increment(1),
            Id::Decr => self.increment(-1),
            Id::IncrBy => self.increment(self.integer(2)?),
            Id::DecrBy => {
                let by = self.integer(2)?.checked_neg().ok_or(Fault::new("ERR decrement would overflow"))?;
                self.increment(by)
            }
            Id::IncrByFloat => self.increment_float(),
            Id::MGet => self.mget(),
            Id::MSet => self.mset(false),
            Id::MSetNx => self.mset(true),
            Id::Del | Id::Unlink => self.delete(),
            Id::Exists | Id::Touch => self.exists(),
            Id::Expire => self.expire(Unit::Seconds),
            Id::PExpire => self.expire(Unit::Millis),
            Id::ExpireAt => self.expire(Unit::UnixSeconds),
            Id::PExpireAt => self.expire(Unit::UnixMillis),
            Id::Ttl => self.ttl(|expire_at, now| expire_at.saturating_sub(now).saturating_add(500) / 1000),
            Id::PTtl => self.ttl(Millis::saturating_sub),
            Id::ExpireTime => self.ttl(|expire_at, _| expire_at.saturating_add(500) / 1000),
            Id::PExpireTime => self.ttl(|expire_at, _| expire_at),
            Id::Persist => self.persist(),
            Id::Type => self.kind(),
            Id::Rename => self.rename(),
            Id::RenameNx => self.rename(),
            Id::Copy => self.copy(),
            Id::Keys => self.keys(),
            Id::Scan => self.scan(),
            Id::RandomKey => self.random_key(),
            Id::DbSize => {
                self.out.count(self.shard.dbs[usize::from(self.call.db)].len());
                Ok(())
            }
            Id::FlushAll => self.flush(None),
            Id::FlushDb => self.flush(Some(self.call.db)),
            _ => unreachable!("{} has no keys and is run by the connection", self.command.name),
        }
    }

    // ---- What all of them need ----

    /// The key that is the first argument.
    fn key(&self) -> Key<'a> {
        Key { bytes: self.args.at(1), hash: self.hash }
    }

    /// The key that is argument `i`.
    fn key_at(&self, i: usize) -> Key<'a> {
        self.shard.keyspace.key(self.args.at(i))
    }

    fn db(&mut self) -> &mut Db {
        &mut self.shard.dbs[usize::from(self.call.db)]
    }

    fn find(&mut self, key: &Key<'_>) -> Option<&Entry> {
        let now = self.call.now;
        self.db().find(key, now)
    }

    /// The same for a command that only reads, so that it counts.
    fn read(&mut self, key: &Key<'_>) -> Option<&Entry> {
        let found = self.shard.dbs[usize::from(self.call.db)].find(key, self.call.now);
        let stats = &mut self.shard.stats;
        *if found.is_some() { &mut stats.hits } else { &mut stats.misses } += 1;
        found
    }

    fn integer(&self, i: usize) -> Result<i64, Fault> {
        parse_integer(&self.args[i]).ok_or(Fault::NOT_INTEGER)
    }

    /// Sets a key and says so in the journal.
    fn put(&mut self, key: &Key<'_>, value: &[u8], expire_at: Millis) {
        self.put_into(self.call.db, key, value, expire_at);
    }

    fn put_into(&mut self, db: u8, key: &Key<'_>, value: &[u8], expire_at: Millis) {
        self.shard.dbs[usize::from(db)].set(key, value, expire_at);
        self.journal.push(&Record::Set { db, key: key.bytes, value, expire_at });
    }

    fn remove(&mut self, key: &Key<'_>) -> Option<Entry> {
        let (db, now) = (self.call.db, self.call.now);
        let removed = self.db().remove(key, now)?;
        self.journal.push(&Record::Delete { db, key: key.bytes });
        Some(removed)
    }

    fn set_expiry(&mut self, key: &Key<'_>, expire_at: Millis) {
        let db = self.call.db;
        self.db().set_expiry(key, expire_at);
        self.journal.push(&Record::Expire { db, key: key.bytes, expire_at });
    }

    fn check_len(&self, len: usize, more: usize) -> Done {
        match len.checked_add(more) {
            Some(total) if total <= self.shard.value_max => Ok(()),
            _ => Err(Fault::TOO_LONG),
        }
    }

    // ---- Strings ----

    #[inline]
    fn get(&mut self) -> Done {
        let key = self.key();
        let found = self.shard.dbs[usize::from(self.call.db)].find(&key, self.call.now);
        let stats = &mut self.shard.stats;
        *if found.is_some() { &mut stats.hits } else { &mut stats.misses } += 1;
        self.out.bulk_or_null(found.map(Entry::value));
        Ok(())
    }

    #[inline]
    fn set(&mut self) -> Done {
        let (key, value) = (self.key(), self.args.at(2));
        if self.args.len() == 3 {
            self.put(&key, value, NEVER);
            self.out.ok();
            return Ok(());
        }
        let options = SetOptions::parse(&self.args.from(3..), true)?;
        let expire_at = self.deadline(options.expire)?;
        let old = self.find(&key).map(|entry| (entry.value().to_vec(), entry.expire_at()));
        if options.get {
            self.out.bulk_or_null(old.as_ref().map(|(value, _)| &value[..]));
        }
        if if old.is_some() { options.nx } else { options.xx } {
            if !options.get {
                self.out.null();
            }
            return Ok(());
        }
        let kept = old.filter(|_| options.keep_ttl).map(|(_, expire_at)| expire_at);
        self.put(&key, value, expire_at.or(kept).unwrap_or(NEVER));
        if !options.get {
            self.out.ok();
        }
        Ok(())
    }

    fn setnx(&mut self) -> Done {
        let key = self.key();
        let absent = self.find(&key).is_none();
        if absent {
            self.put(&key, self.args.at(2), NEVER);
        }
        self.out.integer(absent.into());
        Ok(())
    }

    fn setex(&mut self, unit: Unit) -> Done {
        let expire_at = self.deadline(Some((unit, self.args.at(2))))?;
        self.put(&self.key(), self.args.at(3), expire_at.unwrap_or(NEVER));
        self.out.ok();
        Ok(())
    }

    fn getex(&mut self) -> Done {
        let options = SetOptions::parse(&self.args.from(2..), false)?;
        let key = self.key();
        let Some(entry) = self.read(&key) else {
            self.out.null();
            return Ok(());
        };
        let (value, expires) = (entry.value().to_vec(), entry.expire_at() != NEVER);
        let expire_at = self.deadline(options.expire)?;
        self.out.bulk(&value);
        match expire_at {
            Some(expire_at) if expire_at <= self.call.now => drop(self.remove(&key)),
            Some(expire_at) => self.set_expiry(&key, expire_at),
            None if options.persist && expires => self.set_expiry(&key, NEVER),
            None => {}
        }
        Ok(())
    }

    fn getdel(&mut self) -> Done {
        let key = self.key();
        let removed = self.remove(&key);
        self.out.bulk_or_null(removed.as_ref().map(Entry::value));
        Ok(())
    }

    fn getset(&mut self) -> Done {
        self.get()?;
        self.put(&self.key(), self.args.at(2), NEVER);
        Ok(())
    }

    fn getrange(&mut self) -> Done {
        let (start, end) = (self.integer(2)?, self.integer(3)?);
        let key = self.key();
        let shard = &mut *self.shard;
        let found = shard.dbs[usize::from(self.call.db)].find(&key, self.call.now);
        let value = found.map(Entry::value).unwrap_or_default();
        self.out.bulk(sub_range(value, start, end));
        Ok(())
    }

    fn setrange(&mut self) -> Done {
        let (offset, bytes) = (self.integer(2)?, self.args.at(3));
        let offset = usize::try_from(offset).map_err(|_| Fault::new("ERR offset is out of range"))?;
        let (key, db) = (self.key(), self.call.db);
        let len = self.find(&key).map(|entry| entry.value().len());
        if bytes.is_empty() {
            self.out.count(len.unwrap_or(0));
            return Ok(());
        }
        self.check_len(offset, bytes.len())?;
        match len {
            None => {
                let value = [&vec![0; offset], bytes].concat();
                self.put(&key, &value, NEVER);
            }
            Some(_) => {
                self.db().write_range(&key, offset, bytes);
                self.journal.push(&Record::Range { db, key: key.bytes, offset: offset as u64, bytes });
            }
        }
        self.out.count(len.unwrap_or(0).max(offset + bytes.len()));
        Ok(())
    }

    fn append(&mut self) -> Done {
        let (key, bytes, db) = (self.key(), self.args.at(2), self.call.db);
        let len = self.find(&key).map(|entry| entry.value().len());
        match len {
            None => self.put(&key, bytes, NEVER),
            Some(len) => {
                self.check_len(len, bytes.len())?;
                self.db().write_range(&key, len, bytes);
                self.journal.push(&Record::Range { db, key: key.bytes, offset: len as u64, bytes });
            }
        }
        self.out.count(len.unwrap_or(0) + bytes.len());
        Ok(())
    }

    fn strlen(&mut self) -> Done {
        let key = self.key();
        let len = self.read(&key).map_or(0, |entry| entry.value().len());
        self.out.count(len);
        Ok(())
    }

    fn increment(&mut self, by: i64) -> Done {
        let key = self.key();
        let (value, expire_at) = match self.find(&key) {
            Some(entry) => (parse_integer(entry.value()).ok_or(Fault::NOT_INTEGER)?, entry.expire_at()),
            None => (0, NEVER),
        };
        let sum = value.checked_add(by).ok_or(Fault::OVERFLOW)?;
        self.put(&key, itoa::Buffer::new().format(sum).as_bytes(), expire_at);
        self.out.integer(sum);
        Ok(())
    }

    fn increment_float(&mut self) -> Done {
        let key = self.key();
        let (value, expire_at) = match self.find(&key) {
            Some(entry) => (Extended::parse(entry.value()), entry.expire_at()),
            None => (Extended::parse(b"0"), NEVER),
        };
        let by = Extended::parse(self.args.at(2));
        if [value, by].contains(&Err(FloatError::Invalid)) {
            return Err(Fault::NOT_FLOAT);
        }
        let sum = value.and_then(|value| value.plus(by?)).map_err(|_| Fault::INFINITE)?.format();
        self.put(&key, sum.as_bytes(), expire_at);
        self.out.bulk(sum.as_bytes());
        Ok(())
    }

    fn mget(&mut self) -> Done {
        self.out.array(self.args.len() - 1);
        for i in 1..self.args.len() {
            if self.out.position() > self.shard.output_max {
                // The connection is closed for so much output, and nobody sees that it ends here.
                return Ok(());
            }
            let key = self.key_at(i);
            let shard = &mut *self.shard;
            let found = shard.dbs[usize::from(self.call.db)].find(&key, self.call.now);
            self.out.bulk_or_null(found.map(Entry::value));
        }
        Ok(())
    }

    fn mset(&mut self, only_new: bool) -> Done {
        if self.args.len().is_multiple_of(2) {
            self.command.encode_arity_error(&mut self.out);
            return Ok(());
        }
        let pairs = (1..self.args.len()).step_by(2);
        let taken = only_new && pairs.clone().any(|i| self.find(&self.key_at(i)).is_some());
        if !taken {
            pairs.for_each(|i| self.put(&self.key_at(i), self.args.at(i + 1), NEVER));
        }
        if only_new {
            self.out.integer((!taken).into())
        } else {
            self.out.ok()
        }
        Ok(())
    }

    // ---- Keys ----

    fn delete(&mut self) -> Done {
        let removed = (1..self.args.len()).filter(|&i| self.remove(&self.key_at(i)).is_some()).count();
        self.out.count(removed);
        Ok(())
    }

    fn exists(&mut self) -> Done {
        let found = (1..self.args.len()).filter(|&i| self.read(&self.key_at(i)).is_some()).count();
        self.out.count(found);
        Ok(())
    }

    fn expire(&mut self, unit: Unit) -> Done {
        let condition = ExpireIf::parse(&self.args.from(3..))?;
        let when = self.expire_when(unit)?;
        let key = self.key();
        let Some(entry) = self.find(&key) else {
            self.out.integer(0);
            return Ok(());
        };
        let applies = condition.holds(Shard::expiry_of(entry.expire_at()), when);
        self.out.integer(applies.into());
        if !applies {
            return Ok(());
        }
        match Millis::try_from(when) {
            Ok(when) if when > self.call.now => self.set_expiry(&key, when),
            _ => drop(self.remove(&key)),
        }
        Ok(())
    }

    /// The time that EXPIRE and its kin name; it may lie before 1970.
    fn expire_when(&self, unit: Unit) -> Result<i64, Fault> {
        let invalid = || Fault::expire_time(self.command);
        let when = self.integer(2)?;
        let when = when.checked_mul(unit.millis()).ok_or_else(invalid)?;
        when.checked_add(if unit.is_relative() { self.now() } else { 0 }).ok_or_else(invalid)
    }

    /// The time that SET and its kin name; it lies behind 1970.
    fn deadline(&self, expire: Option<(Unit, &[u8])>) -> Result<Option<Millis>, Fault> {
        let Some((unit, text)) = expire else { return Ok(None) };
        let time = parse_integer(text).ok_or(Fault::NOT_INTEGER)?;
        let invalid = || Fault::expire_time(self.command);
        let time = if time > 0 { time.checked_mul(unit.millis()) } else { None }.ok_or_else(invalid)?;
        let when = time.checked_add(if unit.is_relative() { self.now() } else { 0 }).ok_or_else(invalid)?;
        Ok(Some(Millis::try_from(when).expect("a sum of positive numbers")))
    }

    fn now(&self) -> i64 {
        i64::try_from(self.call.now).expect("it is not the year 292 million")
    }

    fn ttl(&mut self, show: impl Fn(Millis, Millis) -> Millis) -> Done {
        let (key, now) = (self.key(), self.call.now);
        let reply = match self.read(&key).map(|entry| Shard::expiry_of(entry.expire_at())) {
            None => -2,
            Some(None) => -1,
            Some(Some(expire_at)) => i64::try_from(show(expire_at, now)).expect("expiries come from i64"),
        };
        self.out.integer(reply);
        Ok(())
    }

    fn persist(&mut self) -> Done {
        let key = self.key();
        let expires = self.find(&key).is_some_and(|entry| entry.expire_at() != NEVER);
        if expires {
            self.set_expiry(&key, NEVER);
        }
        self.out.integer(expires.into());
        Ok(())
    }

    fn kind(&mut self) -> Done {
        let key = self.key();
        let kind = if self.read(&key).is_some() { "string" } else { "none" };
        self.out.status(kind);
        Ok(())
    }

    fn rename(&mut self) -> Done {
        let (from, to) = (self.key(), self.key_at(2));
        let only_new = self.command.id == Id::RenameNx;
        if self.find(&from).is_none() {
            return Err(Fault::NO_KEY);
        }
        let same = from.bytes == to.bytes;
        if only_new && (same || self.find(&to).is_some()) {
            self.out.integer(0);
            return Ok(());
        }
        if !same {
            let entry = self.remove(&from).expect("found above");
            self.put(&to, entry.value(), entry.expire_at());
        }
        if only_new {
            self.out.integer(1)
        } else {
            self.out.ok()
        }
        Ok(())
    }

    fn copy(&mut self) -> Done {
        let options = CopyOptions::parse(self.args, self.call.db)?;
        let (from, to) = (self.key(), self.key_at(2));
        let now = self.call.now;
        let copied = match self.find(&from).map(|entry| (entry.value().to_vec(), entry.expire_at())) {
            None => false,
            Some(_)
                if !options.replace && self.shard.dbs[usize::from(options.db)].find(&to, now).is_some() =>
            {
                false
            }
            Some((value, expire_at)) => {
                self.put_into(options.db, &to, &value, expire_at);
                true
            }
        };
        self.out.integer(copied.into());
        Ok(())
    }

    fn keys(&mut self) -> Done {
        let (pattern, now) = (self.args.at(1), self.call.now);
        let start = self.out.position();
        let mut count = 0;
        for entry in self.shard.dbs[usize::from(self.call.db)].iter() {
            // As for MGET: nobody sees that it ends here.
            if self.out.position() > self.shard.output_max {
                break;
            }
            if !entry.has_expired(now) && (glob::matches_all(pattern) || glob::matches(pattern, entry.key()))
            {
                self.out.bulk(entry.key());
                count += 1;
            }
        }
        self.out.array_since(start, count);
        Ok(())
    }

    fn scan(&mut self) -> Done {
        let options = ScanOptions::parse(self.args)?;
        let (out, now) = (&mut self.out, self.call.now);
        let db = &self.shard.dbs[usize::from(self.call.db)];
        let (visited, bytes, mut found) = (Cell::new(0), Cell::new(0), Vec::new());
        let visit = |entry: &'_ Entry| -> bool {
            visited.set(visited.get() + 1);
            !entry.has_expired(now) && options.wants(entry.key())
        };
        // A cursor behind the last position was never given out; it is at the end.
        let next = u32::try_from(options.cursor).ok().and_then(|from| {
            let from = from.max(self.shard.keyspace.start_of(self.shard.index));
            let next = db.scan(
                from,
                |entry| {
                    if visit(entry) {
                        bytes.set(bytes.get() + entry.key().len());
                        found.push(entry)
                    }
                },
                // COUNT is a hint, and no promise to fill the memory.
                || visited.get() >= options.count || bytes.get() >= REPLIES,
            );
            let following = || Some(self.shard.index + 1).filter(|&next| next < self.shard.keyspace.shards());
            next.or_else(|| following().map(|shard| self.shard.keyspace.start_of(shard)))
        });
        out.array(2);
        out.bulk_integer(next.unwrap_or(0).into());
        out.array(found.len());
        found.iter().for_each(|entry| out.bulk(entry.key()));
        Ok(())
    }

    /// One shard answers with a key; of several, each answers with how many keys it chose from, and the key.
    fn random_key(&mut self) -> Done {
        let (db, now) = (usize::from(self.call.db), self.call.now);
        let mut n = self.shard.random_below(self.shard.dbs[db].len());
        if self.shard.dbs[db].nth(n).is_some_and(|entry| entry.has_expired(now)) {
            self.shard.dbs[db].sweep(now, usize::MAX);
            n = self.shard.random_below(self.shard.dbs[db].len());
        }
        let len = self.shard.dbs[db].len();
        if self.shard.keyspace.shards() > 1 {
            self.out.array(2);
            self.out.count(len);
        }
        self.out.bulk_or_null(self.shard.dbs[db].nth(n).map(Entry::key));
        Ok(())
    }

    fn flush(&mut self, db: Option<u8>) -> Done {
        let mode = self.args.from(1..);
        let word = |word: &[u8]| mode.at(0).eq_ignore_ascii_case(word);
        if mode.len() > 1 || (mode.len() == 1 && !word(b"sync") && !word(b"async")) {
            return Err(Fault::SYNTAX);
        }
        match db {
            Some(db) => self.shard.flush(usize::from(db)),
            None => (0..self.shard.dbs.len()).for_each(|db| self.shard.flush(db)),
        }
        self.journal.push(&Record::Flush { db });
        self.out.ok();
        Ok(())
    }
}

/// The bytes from `start` to `end`, both included, negative ones counted from the end.
fn sub_range(value: &[u8], start: i64, end: i64) -> &[u8] {
    let len = i64::try_from(value.len()).expect("a slice");
    if value.is_empty() || (start < 0 && end < 0 && start > end) {
        return &[];
    }
    let from_end = |at: i64| if at < 0 { at.saturating_add(len).max(0) } else { at };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    let at = |at: i64| usize::try_from(at).expect("not negative, nor behind the end");
    if start > end { &[] } else { &value[at(start)..=at(end)] }
}

// ---- Options ----------------------------------------------------------------------------------------------------------

/// How a time is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Millis,
    UnixSeconds,
    UnixMillis,
}

impl Unit {
    fn millis(self) -> i64 {
        if matches!(self, Self::Seconds | Self::UnixSeconds) { 1000 } else { 1 }
    }

    fn is_relative(self) -> bool {
        matches!(self, Self::Seconds | Self::Millis)
    }
}

/// The options of SET and GETEX.
#[derive(Debug, Default)]
struct SetOptions<'a> {
    nx: bool,
    xx: bool,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    expire: Option<(Unit, &'a [u8])>,
}

impl<'a> SetOptions<'a> {
    fn parse(words: &Args<'a>, is_set: bool) -> Result<Self, Fault> {
        let mut it = Self::default();
        let mut i = 0;
        while i < words.len() {
            let word = |word: &str| words.at(i).eq_ignore_ascii_case(word.as_bytes());
            let units = [Unit::Seconds, Unit::Millis, Unit::UnixSeconds, Unit::UnixMillis];
            let unit = units.into_iter().zip(["ex", "px", "exat", "pxat"]).find(|(_, name)| word(name));
            // The same unit again is fine with Redis, and the last one counts.
            let other_unit = |unit| it.expire.is_some_and(|(other, _)| other != unit);
            if is_set && word("nx") && !it.xx {
                it.nx = true;
            } else if is_set && word("xx") && !it.nx {
                it.xx = true;
            } else if is_set && word("get") {
                it.get = true;
            } else if is_set && word("keepttl") && it.expire.is_none() {
                it.keep_ttl = true;
            } else if !is_set && word("persist") && it.expire.is_none() {
                it.persist = true;
            } else if let Some((unit, _)) = unit
                && !(it.keep_ttl || it.persist || other_unit(unit))
                && i + 1 < words.len()
            {
                it.expire = Some((unit, words.at(i + 1)));
                i += 1;
            } else {
                return Err(Fault::SYNTAX);
            }
            i += 1;
        }
        Ok(it)
    }
}

/// The conditions of EXPIRE and its kin.
#[derive(Debug, Default)]
struct ExpireIf {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl ExpireIf {
    fn parse(words: &Args<'_>) -> Result<Self, Fault> {
        let mut it = Self::default();
        for word in words.iter() {
            match word.to_ascii_lowercase().as_slice() {
                b"nx" => it.nx = true,
                b"xx" => it.xx = true,
                b"gt" => it.gt = true,
                b"lt" => it.lt = true,
                _ => return Err(Fault::shown("ERR Unsupported option ", word, "")),
            }
        }
        if it.nx && (it.xx || it.gt || it.lt) {
            return Err(Fault::NOT_COMPATIBLE);
        }
        if it.gt && it.lt {
            return Err(Fault::new("ERR GT and LT options at the same time are not compatible"));
        }
        Ok(it)
    }

    /// Whether a key that ends at `current` may end at `when` instead. One that does not end, ends later than any other.
    fn holds(&self, current: Option<Millis>, when: i64) -> bool {
        let current = current.map(|it| i64::try_from(it).expect("expiries come from i64"));
        !(self.nx && current.is_some()
            || self.xx && current.is_none()
            || self.gt && current.is_none_or(|current| when <= current)
            || self.lt && current.is_some_and(|current| when >= current))
    }
}

/// The options of COPY.
#[derive(Debug)]
pub(crate) struct CopyOptions {
    pub(crate) db: u8,
    pub(crate) replace: bool,
}

impl CopyOptions {
    pub(crate) fn parse(args: &Args<'_>, current: u8) -> Result<Self, Fault> {
        let mut it = Self { db: current, replace: false };
        let mut i = 3;
        while i < args.len() {
            if args[i].eq_ignore_ascii_case(b"replace") {
                it.replace = true;
            } else if args[i].eq_ignore_ascii_case(b"db") && i + 1 < args.len() {
                it.db = parse_db(&args[i + 1])?;
                i += 1;
            } else {
                return Err(Fault::SYNTAX);
            }
            i += 1;
        }
        if it.db == current && args[1] == args[2] {
            return Err(Fault::new("ERR source and destination objects are the same"));
        }
        Ok(it)
    }
}

/// The number of a database.
pub(crate) fn parse_db(text: &[u8]) -> Result<u8, Fault> {
    let number = parse_integer(text).ok_or(Fault::NOT_INTEGER)?;
    let number = i32::try_from(number).map_err(|_| Fault::NOT_INT)?;
    u8::try_from(number).ok().filter(|&db| db < DATABASES).ok_or(Fault::DB_RANGE)
}

/// The options of SCAN.
#[derive(Debug)]
struct ScanOptions<'a> {
    cursor: u64,
    count: usize,
    pattern: &'a [u8],
    strings: bool,
}

impl<'a> ScanOptions<'a> {
    fn parse(args: &Args<'a>) -> Result<Self, Fault> {
        let cursor = parse_cursor(&args[1]).ok_or(Fault::new("ERR invalid cursor"))?;
        let mut it = Self { cursor, count: 10, pattern: b"*", strings: true };
        for i in (2..args.len()).step_by(2) {
            let value = args.from(i + 1..);
            let value = if value.is_empty() { return Err(Fault::SYNTAX) } else { value.at(0) };
            match args[i].to_ascii_lowercase().as_slice() {
                b"count" => {
                    let count = parse_integer(value).ok_or(Fault::NOT_INTEGER)?;
                    it.count = usize::try_from(count).ok().filter(|&count| count > 0).ok_or(Fault::SYNTAX)?;
                }
                b"match" => it.pattern = value,
                b"type" => it.strings = value.eq_ignore_ascii_case(b"string"),
                _ => return Err(Fault::SYNTAX),
            }
        }
        Ok(it)
    }

    fn wants(&self, key: &[u8]) -> bool {
        self.strings && (glob::matches_all(self.pattern) || glob::matches(self.pattern, key))
    }
}

/// Reads a cursor the way Redis does, with `strtoul`: a sign is fine, spaces are not, nothing is 0.
pub(crate) fn parse_cursor(text: &[u8]) -> Option<u64> {
    if text.first().copied().is_some_and(is_space) {
        return None;
    }
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return text.is_empty().then_some(0);
    }
    let digits =
        str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let value: u64 = digits.parse().ok()?;
    Some(if negative { value.wrapping_neg() } else { value })
}
