//! Which shard runs a command, and what becomes of commands whose keys belong to several.
//!
//! | command | over several shards | other clients see |
//! |---|---|---|
//! | one key | – | all of it or nothing |
//! | MGET, MSET, DEL, UNLINK, EXISTS, TOUCH | split; each shard does its part in one go | each shard's part, all or nothing |
//! | MSETNX, RENAME, RENAMENX, COPY | a [`Transaction`](crate::txn) | all of it or nothing |
//! | KEYS, DBSIZE, FLUSHALL, FLUSHDB, RANDOMKEY | split | each shard's part, all or nothing |
//! | SCAN | goes to the shard its cursor is in | – |
//!
//! Redis, with its one thread, promises the second row as a whole. Here a reader may see some keys of an MSET changed and
//! others not yet, if they belong to different workers; when the reply arrives, all are.
//!
//! The parts of a split must reach each shard in one batch: that is what makes them one go.

use crate::{
    command::{self, Command, Id},
    db::Keyspace,
    exec::{CopyOptions, parse_cursor},
    resp::{Args, Encoder, parse_integer},
};

/// Where a command runs.
#[derive(Debug)]
pub enum Route {
    /// On the connection: it has no keys.
    Connection,
    /// On one shard, as it is.
    Shard {
        /// Which one.
        shard: u32,
        /// The position of the first key.
        hash: u32,
    },
    /// In parts, on several.
    Split(Split),
    /// On several, all or nothing: make a [`Transaction`](crate::txn::Transaction) of it.
    Transaction,
}

/// A command in parts.
#[derive(Debug)]
pub struct Split {
    /// What makes one reply of the parts' replies.
    pub merge: Merge,
    /// The parts, in the order that [`Merge::encode`] wants their replies in.
    pub parts: Vec<Part>,
}

/// What one shard runs.
#[derive(Debug)]
pub struct Part {
    /// Which one.
    pub shard: u32,
    /// The position of the part's first key.
    pub hash: u32,
    /// What it runs; not always what the client said.
    pub command: &'static Command,
    picked: Picked,
}

#[derive(Debug)]
enum Picked {
    All,
    One(usize),
    Some(Vec<usize>),
}

impl Part {
    /// The part's arguments, picked from those of the command.
    pub fn args<'a>(&'a self, args: &'a Args<'a>) -> impl Iterator<Item = &'a [u8]> {
        let (all, picked): (_, &[usize]) = match &self.picked {
            Picked::All => (args.from(1..), &[]),
            Picked::One(i) => (args.from(args.len()..), std::slice::from_ref(i)),
            Picked::Some(list) => (args.from(args.len()..), list),
        };
        std::iter::once(args.at(0)).chain(all.iter()).chain(picked.iter().map(|&i| args.at(i)))
    }
}

/// Decides where a command runs. `db` is the selected database.
#[inline]
#[must_use]
pub fn route(command: &'static Command, args: &Args<'_>, keyspace: &Keyspace, db: u8) -> Route {
    if command.keys.first == 1 {
        let hash = keyspace.hash(args.at(1));
        let shard = keyspace.shard_of(hash);
        if command.keys.last == 1 || keyspace.shards() == 1 {
            return Route::Shard { shard, hash };
        }
        return route_keys(command, args, keyspace, db, hash);
    }
    route_keyless(command, args, keyspace)
}

fn route_keys(command: &'static Command, args: &Args<'_>, keyspace: &Keyspace, db: u8, first: u32) -> Route {
    let home = Route::Shard { shard: keyspace.shard_of(first), hash: first };
    let shard_at = |i: usize| keyspace.shard_of(keyspace.hash(args.at(i)));
    let mut positions = command.keys.positions(args.len());
    if positions.all(|i| shard_at(i) == keyspace.shard_of(first)) {
        return home;
    }
    match command.id {
        // What is malformed goes where the first key belongs, and is refused there.
        Id::MSet | Id::MSetNx if args.len().is_multiple_of(2) => home,
        Id::Copy if CopyOptions::parse(args, db).is_err() => home,
        Id::MSetNx | Id::Rename | Id::RenameNx | Id::Copy => Route::Transaction,
        Id::MGet => {
            let get = command::lookup(b"get").expect("it is in the table");
            let part = |i: usize| {
                let hash = keyspace.hash(args.at(i));
                Part { shard: keyspace.shard_of(hash), hash, command: get, picked: Picked::One(i) }
            };
            let parts = command.keys.positions(args.len()).map(part).collect();
            Route::Split(Split { merge: Merge::InOrder, parts })
        }
        _ => {
            let mut parts = Vec::<Part>::new();
            for i in command.keys.positions(args.len()) {
                let hash = keyspace.hash(args.at(i));
                let shard = keyspace.shard_of(hash);
                let own = i..i + usize::from(command.keys.step);
                match parts.iter_mut().find(|part| part.shard == shard) {
                    Some(Part { picked: Picked::Some(list), .. }) => list.extend(own),
                    _ => parts.push(Part { shard, hash, command, picked: Picked::Some(own.collect()) }),
                }
            }
            let merge = if command.id == Id::MSet { Merge::AllOk } else { Merge::Sum };
            Route::Split(Split { merge, parts })
        }
    }
}

fn route_keyless(command: &'static Command, args: &Args<'_>, keyspace: &Keyspace) -> Route {
    let merge = match command.id {
        Id::Keys => Merge::Arrays,
        Id::DbSize => Merge::Sum,
        Id::FlushAll | Id::FlushDb => Merge::AllOk,
        Id::RandomKey => Merge::Random,
        Id::Scan => {
            let position = parse_cursor(&args[1]).and_then(|cursor| u32::try_from(cursor).ok()).unwrap_or(0);
            return Route::Shard { shard: keyspace.shard_of(position), hash: 0 };
        }
        _ => return Route::Connection,
    };
    if keyspace.shards() == 1 {
        return Route::Shard { shard: 0, hash: 0 };
    }
    let part = |shard| Part { shard, hash: 0, command, picked: Picked::All };
    Route::Split(Split { merge, parts: (0..keyspace.shards()).map(part).collect() })
}

// ---- Merging ----------------------------------------------------------------------------------------------------------

/// How replies of parts become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// An array of them.
    InOrder,
    /// The sum of their integers.
    Sum,
    /// OK if all are.
    AllOk,
    /// An array of all elements of their arrays.
    Arrays,
    /// One of their keys, the likelier the more keys it was chosen from.
    Random,
}

impl Merge {
    /// Appends the reply that the parts' replies make. An error among them is the reply. `random` is any number.
    ///
    /// # Panics
    /// If a reply is not of the kind that the parts of this merge give.
    pub fn encode<'a>(
        self,
        replies: impl Iterator<Item = &'a [u8]> + Clone,
        random: u64,
        out: &mut Encoder<'_>,
    ) {
        if let Some(error) = replies.clone().find(|reply| reply.starts_with(b"-")) {
            return out.raw(error);
        }
        match self {
            Self::AllOk => out.ok(),
            Self::Sum => out.integer(replies.map(|reply| number(reply).0).sum()),
            Self::InOrder => {
                out.array(replies.clone().count());
                replies.for_each(|reply| out.raw(reply));
            }
            Self::Arrays => {
                let parts = replies.map(number);
                let len: i64 = parts.clone().map(|(len, _)| len).sum();
                out.array(usize::try_from(len).expect("a length"));
                parts.for_each(|(_, elements)| out.raw(elements));
            }
            Self::Random => {
                let weighted = replies.map(|reply| number(number(reply).1));
                let total: i64 = weighted.clone().map(|(keys, _)| keys).sum();
                let mut point =
                    i64::try_from(random % u64::try_from(total.max(1)).expect("positive")).expect("below");
                let chosen = weighted.clone().find(|(keys, _)| {
                    point -= keys;
                    point < 0
                });
                match chosen {
                    Some((_, key)) => out.raw(key),
                    None => out.null(),
                }
            }
        }
    }
}

/// The number in the first line of a reply, and what follows the line.
fn number(reply: &[u8]) -> (i64, &[u8]) {
    let end = memchr::memchr(b'\r', reply).expect("a reply has a line end");
    let number = parse_integer(&reply[1..end]).expect("the parts' replies begin with a number");
    (number, &reply[end + 2..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Parser, Protocol};

    fn keyspace() -> Keyspace {
        Keyspace::new(4, 11)
    }

    /// A key of that shard.
    fn key_of(shard: u32, n: usize) -> String {
        let own = |key: &String| keyspace().shard_of(keyspace().hash(key.as_bytes())) == shard;
        (0..).map(|n| format!("k{n}")).filter(own).nth(n).expect("there are many")
    }

    fn routed<T>(line: &str, look: impl FnOnce(Route, &Args<'_>) -> T) -> T {
        let line = format!("{line}\r\n");
        let mut parser = Parser::new(1000);
        let frame = parser.parse(line.as_bytes()).expect("a line").expect("a whole one");
        let command = command::resolve(&frame.args).expect("a command");
        look(route(command, &frame.args, &keyspace(), 0), &frame.args)
    }

    fn parts(line: &str) -> (Merge, Vec<(u32, String)>) {
        routed(line, |route, args| {
            let Route::Split(split) = route else { panic!("{line} is split, not {route:?}") };
            let words = |part: &Part| {
                let words: Vec<_> =
                    part.args(args).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
                (part.shard, words.join(" "))
            };
            (split.merge, split.parts.iter().map(words).collect())
        })
    }

    #[test]
    fn keys_of_one_shard_stay_together() {
        let (a, b) = (key_of(2, 0), key_of(2, 1));
        for line in ["MGET", "DEL", "RENAME", "COPY"] {
            routed(&format!("{line} {a} {b}"), |route, _| {
                assert!(matches!(route, Route::Shard { shard: 2, .. }))
            });
        }
        routed(&format!("MSET {a} 1 {b} 2"), |route, _| {
            assert!(matches!(route, Route::Shard { shard: 2, .. }))
        });
    }

    #[test]
    fn keys_of_several_shards_are_split_or_make_a_transaction() {
        let (a, b, c) = (key_of(0, 0), key_of(3, 0), key_of(0, 1));
        assert_eq!(
            parts(&format!("MSET {a} 1 {b} 2 {c} 3")),
            (Merge::AllOk, vec![(0, format!("MSET {a} 1 {c} 3")), (3, format!("MSET {b} 2"))])
        );
        assert_eq!(
            parts(&format!("DEL {a} {b} {c}")),
            (Merge::Sum, vec![(0, format!("DEL {a} {c}")), (3, format!("DEL {b}"))])
        );
        let (merge, gets) = parts(&format!("MGET {a} {b} {c}"));
        assert_eq!((merge, gets.iter().map(|(shard, _)| *shard).collect()), (Merge::InOrder, vec![0, 3, 0]));
        for line in [format!("RENAME {a} {b}"), format!("MSETNX {a} 1 {b} 2"), format!("COPY {a} {b} DB 3")] {
            routed(&line, |route, _| assert!(matches!(route, Route::Transaction), "{line}"));
        }
        for line in [format!("MSET {a} 1 {b}"), format!("COPY {a} {b} DB x")] {
            routed(&line, |route, _| assert!(matches!(route, Route::Shard { shard: 0, .. }), "{line}"));
        }
    }

    #[test]
    fn commands_without_keys_go_everywhere_or_nowhere() {
        assert_eq!(parts("KEYS *").1.len(), 4);
        routed("PING", |route, _| assert!(matches!(route, Route::Connection)));
        for shard in 0..4 {
            let line = format!("SCAN {}", keyspace().start_of(shard));
            routed(&line, |route, _| assert!(matches!(route, Route::Shard { shard: it, .. } if it == shard)));
        }
    }

    #[test]
    fn replies_of_parts_become_one() {
        let merged = |merge: Merge, replies: &[&str], random: u64| {
            let mut out = Vec::new();
            let mut encoder = Encoder::new(&mut out, Protocol::Resp2);
            merge.encode(replies.iter().map(|reply| reply.as_bytes()), random, &mut encoder);
            String::from_utf8(out).expect("text")
        };
        assert_eq!(merged(Merge::Sum, &[":2\r\n", ":0\r\n", ":5\r\n"], 0), ":7\r\n");
        assert_eq!(merged(Merge::AllOk, &["+OK\r\n", "-OOM no\r\n"], 0), "-OOM no\r\n");
        assert_eq!(merged(Merge::InOrder, &["$-1\r\n", "$1\r\nx\r\n"], 0), "*2\r\n$-1\r\n$1\r\nx\r\n");
        assert_eq!(merged(Merge::Arrays, &["*0\r\n", "*1\r\n$1\r\nx\r\n"], 0), "*1\r\n$1\r\nx\r\n");
        let keys = ["*2\r\n:1\r\n$1\r\na\r\n", "*2\r\n:0\r\n$-1\r\n", "*2\r\n:2\r\n$1\r\nb\r\n"];
        assert_eq!(
            [0, 1, 2].map(|random| merged(Merge::Random, &keys, random)),
            ["$1\r\na\r\n", "$1\r\nb\r\n", "$1\r\nb\r\n"]
        );
        assert_eq!(merged(Merge::Random, &keys[1..2], 9), "$-1\r\n");
    }
}
