//! Commands that travel to another worker's shard, and their replies on the way back.
//!
//! One batch carries many commands in three vectors, whatever their number, and returns with the replies in a fourth; it is
//! then cleared and used again. So a command for another worker costs a copy of its arguments and of its reply, and no
//! allocation.
//!
//! **Goes.** Short commands may have long replies. So a batch runs in *goes*: when its replies have come to [`REPLIES`] it goes
//! back as it is, the replies that can be sent are sent and [released](Batch::release), and it comes again for the rest.
//! What the sender said is [one go](Batch::begin_go) is never cut. It goes back, too, when what it changes is too much for the
//! [log](Shard::is_behind): a COPY of a few bytes may journal a value of 64 MiB.

use crate::{
    command::Command,
    log::Journal,
    resp::{Args, Span},
    shard::{Call, Shard},
};

/// Commands for one shard, then their replies.
#[derive(Debug, Default)]
pub struct Batch {
    data: Vec<u8>,
    spans: Vec<Span>,
    heads: Vec<Head>,
    replies: Vec<u8>,
    /// Where each reply ends, in all replies that there have been.
    ends: Vec<usize>,
    /// How many bytes of them have been released.
    released: usize,
    /// What is pushed now belongs to this go.
    go: usize,
}

#[derive(Debug)]
struct Head {
    command: &'static Command,
    hash: u32,
    call: Call,
    /// Where its spans end.
    spans: usize,
    go: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many commands it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// What is pushed until the next call belongs to one go, if the calls have different numbers.
    pub fn begin_go(&mut self, number: usize) {
        self.go = number;
    }

    /// Adds a command, and gives its number; the replies have the same numbers.
    ///
    /// # Panics
    /// If its arguments come to 4 GiB or more.
    pub fn push<'a>(
        &mut self,
        command: &'static Command,
        args: impl Iterator<Item = &'a [u8]>,
        hash: u32,
        call: Call,
    ) -> usize {
        for arg in args {
            let start = self.data.len();
            self.data.extend_from_slice(arg);
            self.spans.push(Span::new(start, self.data.len()));
        }
        self.heads.push(Head { command, hash, call, spans: self.spans.len(), go: self.go });
        self.heads.len() - 1
    }

    /// Runs what has not run yet, in order, on the shard it was made for: all of it, or a part that has [`REPLIES`] bytes of
    /// replies, or nothing while the shard is behind.
    pub fn run(&mut self, shard: &mut Shard, journal: &mut Journal) {
        let ran = self.ends.len();
        let mut before = ran.checked_sub(1).map(|last| &self.heads[last]);
        for head in &self.heads[ran..] {
            let same_go = before.is_some_and(|before| before.go == head.go);
            // Beyond the second bound the connection will be closed, and nobody wants the rest.
            let enough = self.replies.len() >= REPLIES || shard.is_behind(journal);
            if !same_go && enough || self.replies.len() > shard.output_max {
                break;
            }
            let start = before.map_or(0, |before| before.spans);
            let args = Args::new(&self.data, &self.spans[start..head.spans]);
            shard.execute(head.command, &args, head.hash, &head.call, &mut self.replies, journal);
            self.ends.push(self.released + self.replies.len());
            before = Some(head);
        }
    }

    /// Whether all of it has run.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ends.len() == self.heads.len()
    }

    /// The bytes of replies that it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.replies.len()
    }

    /// Whether command `i` has run.
    #[must_use]
    pub fn has_reply(&self, i: usize) -> bool {
        i < self.ends.len()
    }

    /// The reply to command `i`, after [`run`](Self::run).
    ///
    /// # Panics
    /// If it has not run, or was released.
    #[must_use]
    pub fn reply(&self, i: usize) -> &[u8] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.replies[start - self.released..self.ends[i] - self.released]
    }

    /// Gives the memory of all replies up to that of command `i` back.
    ///
    /// # Panics
    /// If it has not run.
    pub fn release(&mut self, i: usize) {
        let end = self.ends[i];
        if let Some(len) = end.checked_sub(self.released) {
            self.replies.drain(..len);
            self.released = end;
        }
    }

    /// Makes it empty, to be filled again; what one large value, or one long pipeline, has grown is given up.
    pub fn clear(&mut self) {
        empty(&mut self.data);
        empty(&mut self.spans);
        empty(&mut self.heads);
        empty(&mut self.replies);
        empty(&mut self.ends);
        self.released = 0;
    }
}

fn empty<T>(vector: &mut Vec<T>) {
    vector.clear();
    vector.shrink_to(KEEP / size_of::<T>());
}

/// Bytes that each vector of a cleared batch keeps: some three hundred usual commands. A connection has a batch for each shard.
const KEEP: usize = 16 * 1024;

/// Bytes of replies after which a batch goes back: another trip over the mesh is little beside a mebibyte copied.
pub const REPLIES: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::lookup,
        db::Keyspace,
        limits::{BACKLOG_MAX, Limits},
        resp::Protocol,
    };

    #[test]
    fn each_reply_has_the_number_of_its_command() {
        let keyspace = Keyspace::new(1, 1);
        let mut shard = Shard::new(0, keyspace.clone(), &Limits::default());
        let (mut batch, mut journal) = (Batch::new(), Journal::new());
        let call = Call { db: 0, protocol: Protocol::Resp2, now: 1 };
        for round in 0..2 {
            for words in [&["SET", "k", "v"][..], &["GET", "k"], &["GET", "none"]] {
                let command = lookup(words[0].as_bytes()).expect("listed");
                let hash = keyspace.hash(words[1].as_bytes());
                batch.push(command, words.iter().map(|word| word.as_bytes()), hash, call);
            }
            batch.run(&mut shard, &mut journal);
            assert_eq!(
                [0, 1, 2].map(|i| batch.reply(i)),
                [&b"+OK\r\n"[..], b"$1\r\nv\r\n", b"$-1\r\n"],
                "{round}"
            );
            batch.clear();
        }
    }

    // What could go wrong: short commands that journal long values fill the memory, or a frame, before the log has any of it.
    #[test]
    fn a_batch_that_journals_much_comes_in_several_goes_and_never_cuts_one() {
        let keyspace = Keyspace::new(1, 1);
        let mut shard = Shard::new(0, keyspace.clone(), &Limits::default());
        let (mut batch, mut journal) = (Batch::new(), Journal::new());
        let call = Call { db: 0, protocol: Protocol::Resp2, now: 1 };
        let value = vec![b'v'; BACKLOG_MAX / 4];
        let words: [&[u8]; 3] = [b"SET", b"k", &value];
        batch.push(lookup(b"set").expect("listed"), words.into_iter(), keyspace.hash(b"k"), call);
        for i in 1..=20 {
            batch.begin_go(i / 2);
            let words: [&[u8]; 4] = [b"COPY", b"k", b"to", b"REPLACE"];
            batch.push(lookup(b"copy").expect("listed"), words.into_iter(), keyspace.hash(b"k"), call);
        }
        let mut runs = 0;
        while !batch.is_done() {
            batch.run(&mut shard, &mut journal);
            assert!(journal.len() < 2 * BACKLOG_MAX);
            let ran = (0..batch.len()).take_while(|&i| batch.has_reply(i)).count();
            assert!(ran % 2 == 0 || ran == batch.len(), "a go is whole");
            // While it is behind it takes nothing; read-only it changes nothing, and need not wait.
            batch.run(&mut shard, &mut journal);
            assert_eq!((0..batch.len()).take_while(|&i| batch.has_reply(i)).count(), ran);
            journal = Journal::new();
            runs += 1;
        }
        assert!((4..8).contains(&runs), "{runs}");
        batch.clear();
        journal.push(&crate::log::Record::Set {
            db: 0,
            key: b"",
            value: &[0; BACKLOG_MAX + 1],
            expire_at: 0,
        });
        shard.read_only = Some("why".to_owned());
        let words: [&[u8]; 2] = [b"STRLEN", b"to"];
        batch.push(lookup(b"strlen").expect("listed"), words.into_iter(), keyspace.hash(b"to"), call);
        batch.run(&mut shard, &mut journal);
        assert!(batch.is_done());
    }

    // What could go wrong: a client that has once sent a long pipeline, or a large value, holds its memory for ever.
    #[test]
    fn a_cleared_batch_holds_little() {
        let keyspace = Keyspace::new(1, 1);
        let mut shard = Shard::new(0, keyspace.clone(), &Limits::default());
        let mut batch = Batch::new();
        let call = Call { db: 0, protocol: Protocol::Resp2, now: 1 };
        let command = lookup(b"append").expect("listed");
        for _ in 0..10_000 {
            let words: [&[u8]; 3] = [b"APPEND", b"key", b"0123456789"];
            batch.push(command, words.into_iter(), keyspace.hash(b"key"), call);
        }
        batch.run(&mut shard, &mut Journal::off());
        assert!(batch.is_done());
        batch.clear();
        let Batch { data, spans, heads, replies, ends, .. } = &batch;
        let held = [
            data.capacity() + replies.capacity(),
            spans.capacity() * size_of::<Span>() + heads.capacity() * size_of::<Head>(),
            ends.capacity() * size_of::<usize>(),
        ];
        assert!(held.iter().sum::<usize>() <= 5 * KEEP, "{held:?}");
    }

    // What could go wrong: a go is cut, a command runs twice or never, a reply is found under another's number.
    #[test]
    fn long_replies_come_in_several_goes_and_short_ones_in_one() {
        let keyspace = Keyspace::new(1, 1);
        let mut shard = Shard::new(0, keyspace.clone(), &Limits::default());
        let (mut batch, mut journal) = (Batch::new(), Journal::new());
        let call = Call { db: 0, protocol: Protocol::Resp2, now: 1 };
        let push = |batch: &mut Batch, go, words: &[&[u8]]| {
            batch.begin_go(go);
            let command = lookup(words[0]).expect("listed");
            batch.push(command, words.iter().copied(), keyspace.hash(words[1]), call)
        };
        let value = vec![b'v'; REPLIES / 2];
        push(&mut batch, 0, &[b"SET", b"k", &value]);
        for go in [1, 2, 3, 3, 3, 4] {
            push(&mut batch, go, &[b"APPEND", b"count", b"x"]);
            push(&mut batch, go, &[b"GET", b"k"]);
        }
        let mut ran = Vec::new();
        while !batch.is_done() {
            batch.run(&mut shard, &mut journal);
            let last =
                (0..batch.len()).take_while(|&i| batch.has_reply(i)).last().expect("each run does something");
            for i in ran.last().map_or(0, |last| last + 1)..=last {
                match i {
                    0 => assert_eq!(batch.reply(i), b"+OK\r\n"),
                    i if i % 2 == 0 => assert!(batch.reply(i).ends_with(b"vv\r\n")),
                    i => assert_eq!(batch.reply(i), format!(":{}\r\n", i.div_ceil(2)).as_bytes()),
                }
            }
            batch.release(last);
            assert_eq!(batch.held(), 0);
            ran.push(last);
        }
        assert_eq!(ran, [4, 10, 12], "go 3, of six commands, is whole");
    }
}
