//! `kill -9` in `--fsync always` loses no acknowledged write, however often it comes.
//!
//! Clients write, each to keys of its own, and note what was acknowledged. The server is killed in the midst of it and
//! started again on the same files; whatever was acknowledged must be there. What was sent and not acknowledged may have
//! been done or not. The next round goes on with the files of the last one, with two workers or three in turn, some of them with
//! values so large that a compaction is under way when the kill comes.
//!
//! # What this shows, and what it cannot
//!
//! A killed process loses its memory: journals, frames under way, replies not sent. So this finds a reply that was sent before
//! its record was given to the kernel; a file that cannot be replayed, at whatever byte or step of a compaction it was left;
//! a RENAME that is half done. It was tried against a server that answers without waiting for its log (`Node::commit`
//! returning at once, after it has woken the committer): the first rounds find acknowledged writes missing, since a frame
//! waits for the sync of the one before it.
//!
//! The kernel is not killed, and what was written is in its memory, synced or not. So this cannot find a reply that was
//! sent between write and sync: only a machine that loses its power can, or a look at the order of the steps. That order, and
//! what is left of the files at each step, is tested with `persist`.
//!
//! `KV_KILL_ROUNDS` says how many rounds; `scripts/kill9` runs 200.
#![expect(clippy::print_stdout, reason = "how much was tried is what a reader of the run wants to know")]

mod process;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use process::{PATIENCE, Process, empty_dir};
use redis::{Cmd, Commands, Connection};

/// Rounds if nobody says how many: about ten seconds.
const ROUNDS: u64 = 12;

/// Clients that write at the same time.
const CLIENTS: usize = 6;

/// Keys of each. Few, so that commands meet, and enough that each client has some on every worker.
const KEYS: usize = 12;

/// Every so many rounds the log outgrows what calls for a compaction, and the kill waits for that.
const COMPACTED: u64 = 4;

/// Bytes of the values that make it outgrow it.
const BALLAST: usize = 1024 * 1024;

#[test]
fn kill_9_loses_no_acknowledged_write() {
    let rounds = std::env::var("KV_KILL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    let seed = std::env::var("KV_KILL_SEED").map_or(0x9e37_79b9, |seed| seed.parse().expect("a number"));
    let mut random = Random(seed);
    let dir = empty_dir();
    let mut writers: Vec<_> = (0..CLIENTS).map(|client| Writer::new(client, random.next())).collect();
    let (mut acknowledged, mut uncertain, mut compacting) = (0, 0, 0);
    for round in 0..rounds {
        let workers = if round % 8 < 6 { "2" } else { "3" };
        let server = Process::start(dir.path(), &["--workers", workers, "--fsync", "always"]);
        let mut c = server.client();
        for writer in &mut writers {
            uncertain += writer.check(&mut c, round);
        }
        drop(c);
        let compacted = round % COMPACTED == COMPACTED - 1;
        let killed = AtomicBool::new(false);
        let done: u64 = thread::scope(|scope| {
            let connections: Vec<_> = writers.iter().map(|_| server.client()).collect();
            let working: Vec<_> = writers
                .iter_mut()
                .zip(connections)
                .map(|(writer, c)| scope.spawn(|| writer.write_until_killed(c, &killed)))
                .collect();
            let ballast = compacted.then(|| (server.client(), server.client()));
            if let Some((first, second)) = ballast {
                scope.spawn(|| fill_until_killed(first, "ballast:a"));
                scope.spawn(|| fill_until_killed(second, "ballast:b"));
                compacting += u64::from(wait_for_a_compaction(dir.path()));
                // From its first byte to well behind its last.
                thread::sleep(Duration::from_micros(random.below(60_000)));
            } else {
                thread::sleep(Duration::from_micros(random.below(150_000)));
            }
            killed.store(true, Ordering::Relaxed);
            server.kill();
            working.into_iter().map(|writer| writer.join().expect("a writer only stops")).sum()
        });
        acknowledged += done;
    }
    // The last round's writes are looked at as well, and then a stop in order finds nothing to complain of.
    let server = Process::start(dir.path(), &["--workers", "2", "--fsync", "always"]);
    let mut c = server.client();
    for writer in &mut writers {
        uncertain += writer.check(&mut c, rounds);
    }
    drop(c);
    let (status, said) = server.stop();
    assert!(status.success(), "{said}");
    println!(
        "{rounds} kills, {compacting} of them during or just after a compaction: {acknowledged} acknowledged writes are there; \
         of {uncertain} commands that were not answered, each was done or not"
    );
    assert!(acknowledged > rounds, "a run in which nothing is written shows nothing");
}

/// One client: what its keys must be.
#[derive(Debug)]
struct Writer {
    client: usize,
    random: Random,
    /// By number of the key.
    values: Vec<Option<String>>,
    /// Sent, and not answered before the kill.
    unanswered: Option<Write>,
    /// Makes values unlike each other.
    count: u64,
}

/// A command that changes keys, by their numbers.
#[derive(Debug, Clone)]
enum Write {
    Set(usize, String),
    Append(usize, String),
    Incr(usize),
    Del(usize),
    /// Key and target: of the same worker or of two.
    Rename(usize, usize),
    Copy(usize, usize),
    MSet([(usize, String); 3]),
}

impl Writer {
    fn new(client: usize, seed: u64) -> Writer {
        Writer { client, random: Random(seed | 1), values: vec![None; KEYS], unanswered: None, count: 0 }
    }

    fn key(&self, number: usize) -> String {
        format!("writer:{}:{number}", self.client)
    }

    /// Writes, and notes what is acknowledged. Gives how much was.
    fn write_until_killed(&mut self, mut c: Connection, killed: &AtomicBool) -> u64 {
        for acknowledged in 0.. {
            let write = self.choose();
            match self.command(&write).query::<redis::Value>(&mut c) {
                Ok(_) => self.values = self.after(&write),
                Err(error) => {
                    // Relaxed: the kill itself is what is seen, through the socket.
                    assert!(error.is_io_error() && killed.load(Ordering::Relaxed), "{write:?}: {error}");
                    self.unanswered = Some(write);
                    return acknowledged;
                }
            }
        }
        unreachable!("the kill comes first")
    }

    fn choose(&mut self) -> Write {
        self.count += 1;
        let value = format!("{}-{}", self.count, "v".repeat(self.random.index(200)));
        let key = self.random.index(KEYS);
        let other = (key + 1 + self.random.index(KEYS - 1)) % KEYS;
        match (self.random.index(8), &self.values[key]) {
            (0, _) => Write::Append(key, value),
            (1 | 2, Some(old)) if old.parse::<i64>().is_ok() => Write::Incr(key),
            (1 | 2, None) => Write::Incr(key),
            (3, _) => Write::Del(key),
            (4 | 5, Some(_)) => Write::Rename(key, other),
            (6, Some(_)) => Write::Copy(key, other),
            (7, _) => Write::MSet([0, 1, 2].map(|i| ((key + i * 5) % KEYS, value.clone()))),
            _ => Write::Set(key, value),
        }
    }

    fn command(&self, write: &Write) -> Cmd {
        let mut command = Cmd::new();
        match write {
            Write::Set(key, value) => command.arg("SET").arg(self.key(*key)).arg(value),
            Write::Append(key, value) => command.arg("APPEND").arg(self.key(*key)).arg(value),
            Write::Incr(key) => command.arg("INCR").arg(self.key(*key)),
            Write::Del(key) => command.arg("DEL").arg(self.key(*key)),
            Write::Rename(from, to) => command.arg("RENAME").arg(self.key(*from)).arg(self.key(*to)),
            Write::Copy(from, to) => {
                command.arg("COPY").arg(self.key(*from)).arg(self.key(*to)).arg("REPLACE")
            }
            Write::MSet(pairs) => pairs
                .iter()
                .fold(command.arg("MSET"), |command, (key, value)| command.arg(self.key(*key)).arg(value)),
        };
        command
    }

    /// What the keys are when it has been done.
    fn after(&self, write: &Write) -> Vec<Option<String>> {
        let mut values = self.values.clone();
        match write {
            Write::Set(key, value) => values[*key] = Some(value.clone()),
            Write::Append(key, value) => values[*key].get_or_insert_default().push_str(value),
            Write::Incr(key) => {
                let old = values[*key].as_deref().map_or(0, |old| old.parse::<i64>().expect("a number"));
                values[*key] = Some((old + 1).to_string());
            }
            Write::Del(key) => values[*key] = None,
            Write::Rename(from, to) => values[*to] = values[*from].take(),
            Write::Copy(from, to) => values[*to] = values[*from].clone(),
            Write::MSet(pairs) => {
                for (key, value) in pairs {
                    values[*key] = Some(value.clone());
                }
            }
        }
        values
    }

    /// Looks whether everything that was acknowledged is there, and how far what was not answered has come. Gives how many
    /// commands that were.
    fn check(&mut self, c: &mut Connection, round: u64) -> u64 {
        let keys: Vec<_> = (0..KEYS).map(|number| self.key(number)).collect();
        let found: Vec<Option<String>> = c.mget(&keys).expect("the server has just started");
        let unanswered = self.unanswered.take();
        let uncertain = u64::from(unanswered.is_some());
        let after = unanswered.as_ref().map(|write| self.after(write));
        for (number, found) in found.iter().enumerate() {
            let new = after.as_ref().map(|after| &after[number]);
            assert!(
                *found == self.values[number] || Some(found) == new,
                "round {round}, {}: {found:?} is neither {:?}, which was acknowledged, nor {new:?}, which was sent: {unanswered:?}",
                self.key(number),
                self.values[number]
            );
        }
        // Over several workers it may be half done; but never so that RENAME's value is in neither place.
        if let Some(Write::Rename(from, to)) = unanswered {
            let value = &self.values[from];
            assert!(found[from] == *value || found[to] == *value, "round {round}: RENAME has lost {value:?}");
        }
        self.values = found;
        uncertain
    }
}

/// Writes the same few large values again and again, which is what a compaction is for.
fn fill_until_killed(mut c: Connection, key: &str) {
    let value = vec![b'b'; BALLAST];
    for i in 0_u64.. {
        // Eight keys: on both workers, but for a chance of 1 in 128, and then the other writer's are.
        if c.set::<_, _, ()>(format!("{key}:{}", i % 8), &value).is_err() {
            return;
        }
    }
}

/// Waits until a base is being written. False if that takes too long: on a disk so slow the round is one like the others.
fn wait_for_a_compaction(dir: &Path) -> bool {
    let end = Instant::now() + PATIENCE;
    let before = bases(dir);
    while Instant::now() < end {
        if bases(dir) != before {
            return true;
        }
        thread::sleep(Duration::from_micros(500));
    }
    false
}

/// The bases in a directory, finished or under way.
fn bases(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir)
        .expect("a directory")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.contains(".base")).collect()
}

/// xorshift64: any order will do, as long as a seed gives it again.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }
}
