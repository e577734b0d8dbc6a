//! Commands that travel to another worker's shard, and their replies on the way back.
//!
//! One batch carries many commands in three vectors, whatever their number, and returns with the replies in a fourth; it is
//! then cleared and used again. So a command for another worker costs a copy of its arguments and of its reply, and no
//! allocation.

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
    /// Where each reply ends.
    ends: Vec<usize>,
}

#[derive(Debug)]
struct Head {
    command: &'static Command,
    hash: u32,
    call: Call,
    /// Where its spans end.
    spans: usize,
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

    /// The bytes of its arguments, by which a sender decides that it is full.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data.len()
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
        self.heads.push(Head { command, hash, call, spans: self.spans.len() });
        self.heads.len() - 1
    }

    /// Runs all of it, in order, on the shard it was made for.
    pub fn run(&mut self, shard: &mut Shard, journal: &mut Journal) {
        let mut start = 0;
        for head in &self.heads {
            let args = Args::new(&self.data, &self.spans[start..head.spans]);
            shard.execute(head.command, &args, head.hash, &head.call, &mut self.replies, journal);
            self.ends.push(self.replies.len());
            start = head.spans;
        }
    }

    /// The reply to command `i`, after [`run`](Self::run).
    ///
    /// # Panics
    /// If it has not run.
    #[must_use]
    pub fn reply(&self, i: usize) -> &[u8] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.replies[start..self.ends[i]]
    }

    /// Makes it empty, to be filled again; vectors that one large value has grown are given up.
    pub fn clear(&mut self) {
        for bytes in [&mut self.data, &mut self.replies] {
            bytes.clear();
            bytes.shrink_to(KEEP);
        }
        self.spans.clear();
        self.heads.clear();
        self.ends.clear();
    }
}

/// Bytes a cleared batch keeps: a few hundred usual commands.
const KEEP: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command::lookup, db::Keyspace, limits::Limits, resp::Protocol};

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
}
