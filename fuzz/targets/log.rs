//! kv's log reader: any bytes, and files that were written well and then damaged.
//!
//! What could go wrong: a panic, a length that runs away, a record that nobody wrote or that comes out of order, a file that reads
//! differently in other pieces, an end that nobody can go on from.
#![no_main]

use arbitrary::Arbitrary;
use kv::log::{Corrupt, FileName, Header, Journal, Kind, Record, Scanner, Tail, Writer};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Case {
    Any { bytes: Vec<u8>, piece: u8 },
    Damaged { frames: Vec<Vec<Effect>>, synced: Vec<u8>, damage: Vec<Damage>, piece: u8 },
}

#[derive(Arbitrary, Debug)]
enum Effect {
    Set { db: u8, key: Vec<u8>, value: Vec<u8>, expire_at: u64 },
    Delete { db: u8, key: Vec<u8> },
    Expire { db: u8, key: Vec<u8>, expire_at: u64 },
    Range { db: u8, key: Vec<u8>, offset: u16, bytes: Vec<u8> },
    Flush { db: Option<u8> },
}

impl Effect {
    /// The record of it, in one of the databases that there are.
    fn record(&self) -> Record<'_> {
        let of = |db: u8| db % 16;
        match self {
            Effect::Set { db, key, value, expire_at } => {
                Record::Set { db: of(*db), key, value, expire_at: *expire_at }
            }
            Effect::Delete { db, key } => Record::Delete { db: of(*db), key },
            Effect::Expire { db, key, expire_at } => {
                Record::Expire { db: of(*db), key, expire_at: *expire_at }
            }
            Effect::Range { db, key, offset, bytes } => {
                Record::Range { db: of(*db), key, offset: u64::from(*offset), bytes }
            }
            Effect::Flush { db } => Record::Flush { db: db.map(of) },
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Damage {
    Flip { at: u32, by: u8 },
    Cut { at: u32 },
    Zeros(u8),
    Append(Vec<u8>),
    Hole { at: u32, len: u8 },
}

/// What a reading comes to: the records, as text, and the end.
fn scan(bytes: &[u8], piece: usize) -> (Vec<String>, Result<Tail, (u64, String)>) {
    let mut records = Vec::new();
    let mut scanner = Scanner::new("x.log");
    let why = |corrupt: Corrupt| (corrupt.offset, corrupt.to_string());
    for piece in bytes.chunks(piece.max(1)) {
        if let Err(corrupt) = scanner.feed(piece, |record| records.push(format!("{record:?}"))) {
            return (records, Err(why(corrupt)));
        }
    }
    (records, scanner.finish().map_err(why))
}

fn run(case: Case) {
    let header =
        Header { file: FileName { epoch: 1, shard: 0, generation: 1, kind: Kind::Log }, salt: 0x5a17 };
    let (bytes, piece, written, damaged) = match case {
        Case::Any { bytes, piece } => (bytes, piece, None, true),
        Case::Damaged { frames, synced, damage, piece } => {
            let (mut writer, mut journal) = (Writer::create(&header), Journal::new());
            let (mut bytes, mut written) = (header.encode().to_vec(), Vec::new());
            for (number, frame) in (0u64..).zip(&frames) {
                for effect in frame {
                    journal.push(&effect.record());
                    written.push(format!("{:?}", effect.record()));
                }
                if journal.is_empty() {
                    continue;
                }
                if synced.get(number as usize).is_some_and(|synced| synced % 2 == 0) && number > 0 {
                    writer.synced(number - 1);
                }
                bytes.extend_from_slice(&writer.seal(&mut journal, Vec::new()).bytes);
            }
            for damage in &damage {
                let at = |at: u32| at as usize % (bytes.len() + 1);
                match damage {
                    &Damage::Flip { at: place, by } => {
                        let place = at(place);
                        bytes.get_mut(place).into_iter().for_each(|byte| *byte ^= by);
                    }
                    &Damage::Cut { at: place } => bytes.truncate(at(place)),
                    &Damage::Zeros(n) => bytes.resize(bytes.len() + 64 * usize::from(n), 0),
                    Damage::Append(more) => bytes.extend_from_slice(more),
                    &Damage::Hole { at: place, len } => {
                        let place = at(place);
                        let end = (place + usize::from(len)).min(bytes.len());
                        bytes[place..end].fill(0);
                    }
                }
            }
            (bytes, piece, Some(written), !damage.is_empty())
        }
    };
    let whole = scan(&bytes, usize::MAX);
    assert_eq!(scan(&bytes, usize::from(piece)), whole, "in pieces of {piece}");
    if let Some(written) = written {
        let read = &whole.0;
        assert!(read.len() <= written.len() && read[..] == written[..read.len()], "{read:?} of {written:?}");
        if !damaged {
            assert_eq!(read.len(), written.len());
            assert!(whole.1.as_ref().is_ok_and(|tail| !tail.torn && tail.len == bytes.len() as u64));
        }
    }
    // What was cut off reads back whole, and can be written on.
    if let Ok(tail) = &whole.1
        && let Some(header) = &tail.header
    {
        let len = usize::try_from(tail.len).expect("it was read");
        assert!(len <= bytes.len());
        let (records, again) = scan(&bytes[..len], usize::MAX);
        assert_eq!((&records, again.as_ref().map(|tail| tail.torn)), (&whole.0, Ok(false)));
        let mut journal = Journal::new();
        journal.push(&Record::Delete { db: 0, key: b"more" });
        let more = Writer::resume(header, tail).seal(&mut journal, Vec::new());
        assert_eq!(more.offset, tail.len);
        let (records, _) = scan(&[&bytes[..len], &more.bytes[..]].concat(), usize::MAX);
        assert_eq!(records.len(), whole.0.len() + 1);
    }
}

fuzz_target!(|case: Case| run(case));
