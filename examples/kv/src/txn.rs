//! MSETNX, RENAME, RENAMENX and COPY over keys of several shards: all or nothing, for every other client.
//!
//! Two parties. A [`Transaction`] belongs to the worker of the client's connection; it is a list of [`Step`]s to be run one after
//! the other, each on one shard, the next depending on the answers so far. A [`Gate`] stands before each shard and keeps
//! everyone else out while a transaction holds it.
//!
//! ```text
//! hold shard a, look ─▶ hold shard b, look ─▶ decide ─▶ write shard b, release ─▶ write shard a, release ─▶ reply
//! ```
//!
//! **Nobody waits for ever.** A transaction holds its shards in ascending order and waits only for those above: so the one
//! that holds the highest shard never waits, and there is no circle. The worker that runs a transaction must run it to its end, even
//! when the client has gone: in a task of its own, not in the connection's. And even when a shard refuses a step (its log
//! cannot be written): then it [gives up](Transaction::give_up), which changes nothing more and releases what it holds.
//!
//! **Nobody sees half of it.** While a shard is held, whatever else arrives there waits in line, whole batches of it, and goes on
//! in order when it is released. A shard is held as a whole rather than by key: a transaction takes two trips over the mesh,
//! and with a lock for each key a pipeline that names several keys could overtake itself.
//!
//! **Nothing is lost in a crash.** The key that is taken away (RENAME's source) is removed in the last step. A worker
//! answers a step once its records are as durable as `--fsync` promises; so with `always`, the new key is on the disk
//! before the old one's removal is, and a crash between leaves both. MSETNX may leave some of its keys then: nobody was told
//! that it succeeded.

use std::collections::VecDeque;

use crate::{
    batch::Batch,
    command::{Command, Id},
    db::{Keyspace, Millis, NEVER},
    exec::{CopyOptions, Fault},
    limits,
    log::{Journal, Record},
    resp::{Args, Encoder},
    shard::{Call, Shard},
};

/// Names a transaction among all that run: no two at a time have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxnId(pub u64);

/// What a transaction wants of one shard at a time.
#[derive(Debug)]
pub struct Step {
    txn: TxnId,
    /// Hold the shard, and look for these keys.
    look: Vec<Look>,
    /// Make these changes, and release the shard. `None` while the shard is only being held.
    write: Option<Vec<Write>>,
}

#[derive(Debug)]
struct Look {
    db: u8,
    key: Box<[u8]>,
    /// Whether the value is wanted, or only whether there is one.
    value: bool,
}

#[derive(Debug)]
struct Write {
    db: u8,
    key: Box<[u8]>,
    /// Remove the key if there is none.
    entry: Option<Found>,
}

/// A key's value and expiry, on the way between shards.
#[derive(Debug, Clone, Default)]
struct Found {
    value: Vec<u8>,
    expire_at: Millis,
}

/// What a shard says to a [`Step`].
#[derive(Debug)]
pub struct Answer {
    found: Vec<Option<Found>>,
    full: bool,
    read_only: Option<String>,
}

impl Step {
    fn run(&self, shard: &mut Shard, now: Millis, journal: &mut Journal) -> Answer {
        let find = |look: &Look| {
            let key = shard.keyspace.key(&look.key);
            let entry = shard.dbs[usize::from(look.db)].find(&key, now)?;
            let value = if look.value { entry.value().to_vec() } else { Vec::new() };
            Some(Found { value, expire_at: entry.expire_at() })
        };
        let found = self.look.iter().map(find).collect();
        for write in self.write.iter().flatten() {
            let (db, key) = (write.db, &*write.key);
            let record = match &write.entry {
                Some(Found { value, expire_at }) => Record::Set { db, key, value, expire_at: *expire_at },
                None => Record::Delete { db, key },
            };
            shard.replay(&record);
            journal.push(&record);
        }
        Answer { found, full: shard.is_full(), read_only: shard.read_only.clone() }
    }
}

// ---- The shard's side -------------------------------------------------------------------------------------------------

/// Lets work through to a shard, in order, one transaction at a time.
///
/// `T` is whatever the owner needs to find its way back when the work is done.
#[derive(Debug)]
pub struct Gate<T> {
    holder: Option<TxnId>,
    waiting: VecDeque<(T, Work)>,
}

/// What goes through a gate.
#[derive(Debug)]
pub enum Work {
    /// Commands. Not run yet on the way in, run on the way out.
    Batch(Batch),
    /// A transaction's step.
    Step(Step),
}

/// What comes out.
#[derive(Debug)]
pub enum Worked {
    /// The batch, with its replies.
    Batch(Batch),
    /// The answer for [`Transaction::next`].
    Step(Answer),
}

impl<T> Gate<T> {
    /// An open gate.
    #[must_use]
    pub fn new() -> Self {
        Self { holder: None, waiting: VecDeque::new() }
    }

    /// Whether nobody holds the shard, so that its owner may run a command on it directly.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.holder.is_none()
    }

    /// Runs `work` on the shard, or lets it wait. Calls `done` for everything that has been run: this work, and what has waited
    /// for it.
    ///
    /// `now` is for steps; commands bring their own time, which is when they were sent.
    pub fn offer(
        &mut self,
        shard: &mut Shard,
        now: Millis,
        journal: &mut Journal,
        (ticket, work): (T, Work),
        mut done: impl FnMut(T, Worked),
    ) {
        if !self.admits(&work) {
            return self.waiting.push_back((ticket, work));
        }
        let mut next = Some((ticket, work));
        while let Some((ticket, work)) = next {
            let worked = match work {
                Work::Batch(mut batch) => {
                    batch.run(shard, journal);
                    Worked::Batch(batch)
                }
                Work::Step(step) => {
                    self.holder = step.write.is_none().then_some(step.txn);
                    Worked::Step(step.run(shard, now, journal))
                }
            };
            done(ticket, worked);
            next = if self.is_open() { self.waiting.pop_front() } else { None };
        }
    }

    fn admits(&self, work: &Work) -> bool {
        match (work, self.holder) {
            (_, None) => true,
            (Work::Step(step), Some(holder)) => step.txn == holder,
            (Work::Batch(_), Some(_)) => false,
        }
    }
}

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self::new()
    }
}

// ---- The connection's side --------------------------------------------------------------------------------------------

/// A command over keys of several shards, being run.
#[derive(Debug)]
pub struct Transaction {
    id: TxnId,
    command: &'static Command,
    call: Call,
    replace: bool,
    keys: Vec<TxnKey>,
    /// The shards, ascending: held from the front.
    shards: Vec<u32>,
    held: usize,
    /// Filled once all are held: what to write, by shard, in order.
    writes: VecDeque<(u32, Vec<Write>)>,
    full: bool,
    read_only: Option<String>,
    reply: Vec<u8>,
}

#[derive(Debug)]
struct TxnKey {
    shard: u32,
    db: u8,
    key: Box<[u8]>,
    /// MSETNX's value for it.
    value: Vec<u8>,
    found: Option<Found>,
}

impl Transaction {
    /// Prepares what [`route`](crate::plan::route) calls a transaction.
    ///
    /// # Panics
    /// If it is not one.
    #[must_use]
    pub fn new(
        id: TxnId,
        command: &'static Command,
        args: &Args<'_>,
        keyspace: &Keyspace,
        call: Call,
    ) -> Self {
        let copy = (command.id == Id::Copy).then(|| {
            CopyOptions::parse(args, call.db).expect("the route of a wrong COPY is not a transaction")
        });
        let key = |i: usize| TxnKey {
            shard: keyspace.shard_of(keyspace.hash(args.at(i))),
            db: if i == 2 { copy.as_ref().map_or(call.db, |copy| copy.db) } else { call.db },
            key: args.at(i).into(),
            value: if command.id == Id::MSetNx { args.at(i + 1).to_vec() } else { Vec::new() },
            found: None,
        };
        let keys: Vec<_> = command.keys.positions(args.len()).map(key).collect();
        let mut shards: Vec<_> = keys.iter().map(|key| key.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let replace = copy.is_some_and(|copy| copy.replace);
        let (writes, reply) = (VecDeque::new(), Vec::new());
        let (full, read_only) = (false, None);
        Self { id, command, call, replace, keys, shards, held: 0, writes, full, read_only, reply }
    }

    /// Takes the answer to the last step (none at first) and gives the next one, and the shard that it is for.
    /// `None` when all is done.
    pub fn next(&mut self, answer: Option<Answer>) -> Option<(u32, Step)> {
        if let Some(answer) = answer.filter(|_| self.held < self.shards.len()) {
            let shard = self.shards[self.held];
            let asked = self.keys.iter_mut().filter(|key| key.shard == shard);
            asked.zip(answer.found).for_each(|(key, found)| key.found = found);
            self.full |= answer.full;
            self.read_only = self.read_only.take().or(answer.read_only);
            self.held += 1;
            if self.held == self.shards.len() {
                self.decide();
            }
        }
        if let Some(&shard) = self.shards.get(self.held) {
            let own = self.keys.iter().enumerate().filter(|(_, key)| key.shard == shard);
            // Only a source's value is looked at.
            let wants_value = |i: usize| i == 0 && self.command.id != Id::MSetNx;
            let look = own
                .map(|(i, key)| Look { db: key.db, key: key.key.clone(), value: wants_value(i) })
                .collect();
            return Some((shard, Step { txn: self.id, look, write: None }));
        }
        let (shard, writes) = self.writes.pop_front()?;
        Some((shard, Step { txn: self.id, look: Vec::new(), write: Some(writes) }))
    }

    /// Says that the last step was refused: nothing more is changed. What [`next`](Self::next) gives from now on releases what
    /// is held, and must be run all the same.
    pub fn give_up(&mut self) {
        match self.shards.get(..=self.held) {
            // The last of these steps has taken its shard too, unless that shard is gone: it was its answer that was refused.
            Some(held) => self.writes = held.iter().map(|&shard| (shard, Vec::new())).collect(),
            None => self.writes.iter_mut().for_each(|(_, writes)| writes.clear()),
        }
        self.held = self.shards.len();
    }

    /// The reply, once [`next`](Self::next) has given `None`.
    #[must_use]
    pub fn reply(&self) -> &[u8] {
        &self.reply
    }

    /// All shards are held: says what happens.
    fn decide(&mut self) {
        let mut writes = Vec::new();
        let out = &mut Encoder::new(&mut self.reply, self.call.protocol);
        let write = |key: &TxnKey, entry| (key.shard, Write { db: key.db, key: key.key.clone(), entry });
        let (source, target) = (&self.keys[0], &self.keys[1]);
        match self.command.id {
            _ if self.full && self.command.denied_when_full() => limits::out_of_memory(out),
            _ if let Some(why) = &self.read_only => limits::misconfigured(why, out),
            Id::MSetNx => {
                let free = self.keys.iter().all(|key| key.found.is_none());
                if free {
                    let entry = |key: &TxnKey| Some(Found { value: key.value.clone(), expire_at: NEVER });
                    writes.extend(self.keys.iter().map(|key| write(key, entry(key))));
                }
                out.integer(free.into());
            }
            Id::Copy => {
                let copied = source.found.is_some() && (self.replace || target.found.is_none());
                if copied {
                    writes.push(write(target, source.found.clone()));
                }
                out.integer(copied.into());
            }
            only_new => match (&source.found, &target.found) {
                (None, _) => Fault::NO_KEY.encode(out),
                (Some(_), Some(_)) if only_new == Id::RenameNx => out.integer(0),
                (Some(found), _) => {
                    writes.push(write(target, Some(found.clone())));
                    writes.push(write(source, None));
                    if only_new == Id::RenameNx { out.integer(1) } else { out.ok() }
                }
            },
        }
        // The source's shard comes last; every shard comes, if only to be released.
        let last = source.shard;
        self.shards.sort_unstable_by_key(|&shard| shard == last);
        for &shard in &self.shards {
            let (own, rest) = writes.into_iter().partition::<Vec<_>, _>(|(it, _)| *it == shard);
            self.writes.push_back((shard, own.into_iter().map(|(_, write)| write).collect()));
            writes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command,
        limits::Limits,
        plan::{Route, route},
        resp::{Parser, Protocol},
    };

    const CALL: Call = Call { db: 0, protocol: Protocol::Resp2, now: 1 };

    /// A transaction, and the step it wants to be run.
    type Running = (Transaction, Option<(u32, Step)>);

    /// Four workers in one place: every message is delivered when the test says so.
    struct World {
        keyspace: Keyspace,
        shards: Vec<(Shard, Gate<usize>, Journal)>,
        /// Transactions, by ticket.
        running: Vec<Option<Running>>,
        replies: Vec<String>,
        /// Steps are run, and their answers refused.
        refusing: bool,
    }

    impl World {
        fn new(limits: &Limits) -> Self {
            let keyspace = Keyspace::new(4, 5);
            let shard = |n| (Shard::new(n, keyspace.clone(), limits), Gate::new(), Journal::new());
            let shards = (0..4).map(shard).collect();
            Self { shards, keyspace, running: Vec::new(), replies: Vec::new(), refusing: false }
        }

        /// Key number `n` of that shard.
        fn key(&self, shard: u32, n: usize) -> String {
            let own = |key: &String| self.keyspace.shard_of(self.keyspace.hash(key.as_bytes())) == shard;
            (0..).map(|n| format!("k{n}")).filter(own).nth(n).expect("there are many")
        }

        /// Sends a command; one shard runs it now, or a transaction begins. Gives its number.
        fn send(&mut self, line: &str) -> usize {
            let line = format!("{line}\r\n");
            let mut parser = Parser::new(1000);
            let args = parser.parse(line.as_bytes()).expect("a line").expect("a whole one").args;
            let command = command::resolve(&args).expect("a command");
            let ticket = self.running.len();
            self.replies.push(String::new());
            self.running.push(None);
            match route(command, &args, &self.keyspace, 0) {
                Route::Shard { shard, hash } => {
                    let mut batch = Batch::new();
                    batch.push(command, args.iter(), hash, CALL);
                    self.offer(shard, ticket, Work::Batch(batch));
                }
                Route::Transaction => {
                    let id = TxnId(ticket as u64);
                    let mut transaction = Transaction::new(id, command, &args, &self.keyspace, CALL);
                    let first = transaction.next(None);
                    self.running[ticket] = Some((transaction, first));
                }
                other => panic!("{line:?} is not for this test: {other:?}"),
            }
            ticket
        }

        /// Delivers the step that a transaction wants to be run; false if there is none on its way.
        fn step(&mut self, ticket: usize) -> bool {
            let step = self.running[ticket].as_mut().and_then(|(_, step)| step.take());
            step.is_some_and(|(shard, step)| {
                self.offer(shard, ticket, Work::Step(step));
                true
            })
        }

        fn offer(&mut self, shard: u32, ticket: usize, work: Work) {
            let (running, replies, refusing) = (&mut self.running, &mut self.replies, self.refusing);
            let (shard, gate, journal) = &mut self.shards[shard as usize];
            gate.offer(shard, 1, journal, (ticket, work), |ticket, worked| match worked {
                Worked::Batch(batch) => {
                    replies[ticket] = String::from_utf8_lossy(batch.reply(0)).into_owned()
                }
                Worked::Step(answer) => {
                    let (transaction, step) = running[ticket].as_mut().expect("it is running");
                    if refusing {
                        transaction.give_up();
                    }
                    *step = transaction.next(Some(answer).filter(|_| !refusing));
                    if step.is_none() {
                        replies[ticket] = String::from_utf8_lossy(transaction.reply()).into_owned();
                    }
                }
            });
        }

        fn run(&mut self, line: &str) -> String {
            let ticket = self.send(line);
            while self.step(ticket) {}
            self.replies[ticket].clone()
        }
    }

    #[test]
    fn they_reply_as_on_one_shard() {
        let mut world = World::new(&Limits::default());
        let [a, b, c] = [0, 3, 1].map(|shard| world.key(shard, 0));
        for (line, reply) in [
            (format!("RENAME {a} {b}"), "-ERR no such key\r\n"),
            (format!("MSETNX {a} 1 {b} 2 {c} 3"), ":1\r\n"),
            (format!("MSETNX {a} 4 {b} 5"), ":0\r\n"),
            (format!("RENAMENX {a} {b}"), ":0\r\n"),
            (format!("RENAME {a} {b}"), "+OK\r\n"),
            (format!("GET {a}"), "$-1\r\n"),
            (format!("GET {b}"), "$1\r\n1\r\n"),
            (format!("COPY {b} {c}"), ":0\r\n"),
            (format!("PEXPIRE {b} 1000"), ":1\r\n"),
            (format!("COPY {b} {c} REPLACE"), ":1\r\n"),
            (format!("PTTL {c}"), ":1000\r\n"),
            (format!("RENAMENX {c} {a}"), ":1\r\n"),
            (format!("PTTL {a}"), ":1000\r\n"),
            (format!("COPY {c} {b} DB 2"), ":0\r\n"),
            (format!("COPY {a} {b} DB 2"), ":1\r\n"),
        ] {
            assert_eq!(world.run(&line), reply, "{line}");
        }
        assert!(world.shards.iter().all(|(_, gate, _)| gate.is_open()));
    }

    #[test]
    fn what_grows_is_refused_when_memory_is_used_up() {
        let mut world = World::new(&Limits { memory_max: 4, ..Limits::default() });
        let [a, b] = [0, 3].map(|shard| world.key(shard, 0));
        assert_eq!(world.run(&format!("SET {a} 1")), "+OK\r\n");
        let refused = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
        assert_eq!(world.run(&format!("COPY {a} {b}")), refused);
        assert_eq!(world.run(&format!("RENAME {a} {b}")), "+OK\r\n");
    }

    // What could go wrong: a shard whose log cannot be written is asked by another worker, and runs the write all the same.
    #[test]
    fn a_shard_that_is_read_only_refuses_writes_from_anywhere() {
        let mut world = World::new(&Limits::default());
        let [a, b] = [0, 3].map(|shard| world.key(shard, 0));
        assert_eq!(world.run(&format!("SET {a} 1")), "+OK\r\n");
        for read_only in [0, 3] {
            world.shards[read_only].0.read_only = Some("why".to_owned());
            let writes = [format!("RENAME {a} {b}"), format!("COPY {a} {b}"), format!("MSETNX {a} 1 {b} 2")];
            let own = [&a, &b][usize::from(read_only == 3)];
            for write in writes.into_iter().chain([format!("SET {own} 2"), format!("DEL {own}")]) {
                let refused = "-MISCONF Errors writing to the AOF file: why\r\n";
                assert_eq!(world.run(&write), refused, "{write}");
            }
            world.shards[read_only].0.read_only = None;
        }
        assert!(world.shards.iter().all(|(_, gate, journal)| gate.is_open() && journal.len() < 100));
        assert_eq!(world.run(&format!("GET {a}")), "$1\r\n1\r\n");
        assert_eq!(world.run(&format!("RENAME {a} {b}")), "+OK\r\n");
    }

    // What could go wrong: a reader between two steps sees both names of a renamed key, or neither.
    #[test]
    fn nobody_sees_half_of_a_rename() {
        for steps in 0..=4 {
            let mut world = World::new(&Limits::default());
            let [a, b] = [3, 0].map(|shard| world.key(shard, 0));
            world.run(&format!("SET {a} x"));
            let rename = world.send(&format!("RENAME {a} {b}"));
            (0..steps).for_each(|_| assert!(world.step(rename)));
            let reads = [world.send(&format!("GET {a}")), world.send(&format!("GET {b}"))];
            while world.step(rename) {}
            let seen = reads.map(|read| world.replies[read].as_str());
            let expected = match steps {
                0 => ["$1\r\nx\r\n", "$-1\r\n"],
                // Only the lower shard is held: the read of the other one comes before the rename, and this one after it.
                1 => ["$1\r\nx\r\n", "$1\r\nx\r\n"],
                _ => ["$-1\r\n", "$1\r\nx\r\n"],
            };
            assert_eq!(seen, expected, "after {steps} steps");
        }
    }

    // What could go wrong: a shard refuses a step, and those that are held, perhaps that one among them, are held for ever; or
    // the key that is taken away goes though the new one was refused.
    #[test]
    fn who_gives_up_after_any_step_releases_all_shards_and_loses_no_key() {
        for steps in 0..4 {
            let mut world = World::new(&Limits::default());
            let [a, b] = [3, 0].map(|shard| world.key(shard, 0));
            world.run(&format!("SET {a} x"));
            let rename = world.send(&format!("RENAME {a} {b}"));
            (0..steps).for_each(|_| assert!(world.step(rename)));
            world.refusing = true;
            assert!(world.step(rename));
            world.refusing = false;
            while world.step(rename) {}
            assert!(world.shards.iter().all(|(_, gate, _)| gate.is_open()), "after {steps} steps");
            // The last step is the one that removes it.
            let kept = if steps < 3 { a } else { b };
            assert_eq!(world.run(&format!("GET {kept}")), "$1\r\nx\r\n", "after {steps} steps");
        }
    }

    // What could go wrong: transactions that want each other's shards wait for each other for ever.
    #[test]
    fn transactions_in_any_order_of_steps_all_end() {
        for seed in 0..200_usize {
            let mut world = World::new(&Limits::default());
            let keys: Vec<_> = (0..8).map(|n| world.key(n % 4, n as usize / 4)).collect();
            keys.iter().step_by(2).for_each(|key| assert_eq!(world.run(&format!("SET {key} v")), "+OK\r\n"));
            let mut random = seed * 2_654_435_761 + 1;
            let mut below = |end: usize| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % end
            };
            let tickets: Vec<_> = (0..20)
                .map(|_| {
                    let (from, to) = (below(8), below(8));
                    let line = ["RENAME", "RENAMENX"][below(2)];
                    if from % 4 == to % 4 {
                        format!("GET {}", keys[from])
                    } else {
                        format!("{line} {} {}", keys[from], keys[to])
                    }
                })
                .map(|line| world.send(&line))
                .collect();
            for _ in 0..2000 {
                world.step(tickets[below(tickets.len())]);
            }
            assert!(tickets.iter().all(|&ticket| !world.replies[ticket].is_empty()), "seed {seed}");
            assert!(world.shards.iter().all(|(_, gate, _)| gate.is_open() && gate.waiting.is_empty()));
        }
    }
}
