//! The append-only log: what it looks like, how it is read back, how it is kept short.
//!
//! Everything here is computation on bytes; who opens, writes and syncs files is elsewhere.
//!
//! # Records, frames, files
//!
//! A **record** is an effect, not a command: "key `k` of database 0 has this value and ends at this time". What it says does
//! not depend on clock, chance or other keys, so replaying is deterministic. [`Journal`] collects the records of a turn.
//!
//! A **frame** is what one write puts into the file: a header and the records of all commands since the last write (group
//! commit). [`Writer::seal`] makes one of a journal.
//!
//! ```text
//! frame:  magic u32 │ len u32 │ seq u64 │ synced u64 │ crc of records u32 │ crc of the header before it u32 │ records ...
//! record: kind u8 │ db u8 │ 0 u16 │ key len u32 │ value len u32 │ number u64 │ key │ value         (all little endian)
//! ```
//!
//! `seq` counts the frames of a file from 0. `synced` says that frames below it were on the disk when this one was
//! written. The checksums begin with the file's *salt*, so bytes that a client stored as a value never pass for a frame.
//!
//! A **file** is a [`Header`], then frames. It may have been given room in advance: then zeros follow.
//!
//! # Reading back: torn or corrupt?
//!
//! [`Scanner`] stops at the first frame that is not valid, say number n, and looks at the rest of the file:
//!
//! - nothing but zeros: the room that was never used. The log ends here.
//! - bytes, but no valid frame header that says `synced > n`: frame n was being written when the machine stopped. Nobody was
//!   promised its contents (the promise is made after the sync), so it is cut, with a warning. Several frames may be lost
//!   that way when syncs are rare, and whole frames may lie behind the hole, for a disk may write in any order.
//! - a valid header that says `synced > n`: frame n *was* on the disk, whole. The file has been damaged since: an error, with
//!   file and offset, since acknowledged writes are missing.
//!
//! Who cuts a tail truncates the file there, and syncs, before anything is written behind it: so only the newest log of
//! a shard can be torn.
//!
//! # Compaction
//!
//! A shard's state is a *base* file of some generation and the *logs* from that generation on. To get rid of logs, while
//! commands go on:
//!
//! 1. Create log g+1 (empty, header synced, directory synced).
//! 2. Sync log g. From here on frames go to log g+1; nothing in it is acknowledged before log g is synced.
//! 3. Write the shard's live entries as `Set` records into `base g+1` under a temporary name, some at a time (see
//!    `Shard::snapshot`), an `End` record last; sync it.
//! 4. Rename it to its name; sync the directory.
//! 5. Remove base and logs of generations up to g.
//!
//! | a crash after | leaves | which is replayed as |
//! |---|---|---|
//! | 1 | base g, log g, an empty log g+1 | base g, log g, log g+1 |
//! | 2, during 3 | base g, log g, log g+1, a temporary file | the same; the temporary file is removed |
//! | 4, during 5 | base g+1, log g+1, some of the old ones | base g+1, log g+1; the old ones are removed |
//!
//! The base is *fuzzy*: an entry is in it as it was when its turn came, which may be after writes that log g+1 also has. Replaying
//! them again changes nothing, because a record sets what it speaks of (value, range, expiry, absence) to an absolute state,
//! and records of a key are replayed in their order: whatever of them the base has seen, the last one decides. A range or
//! an expiry of a key that is not there says that the key is removed or set later in the log, and is ignored.
//!
//! # A different number of workers
//!
//! `MANIFEST` ([`Manifest`]) names the *epoch*, the number of shards and the seed of the keyspace; files of other
//! epochs count for nothing. When the number changes, each old shard is replayed by itself, into a
//! `Shard` of a keyspace of one (its `Flush` speaks of its own keys only), whose entries then go where they belong now;
//! the new shards write bases for epoch + 1 and sync them; the rename of the new manifest is the moment from
//! which they count; then the old files go.
//!
//! Keys that have expired are in the log until the next compaction. Replaying does not look at the clock (a later record may
//! make the key persist); the first commands and sweeps after it do.

use std::{fmt, io, ops::Range, path::PathBuf, str::FromStr};

use crc32fast::Hasher as Crc;
use memchr::memmem;

use crate::db::Millis;

// ---- Records ----------------------------------------------------------------------------------------------------------

/// An effect on the state of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// The key has this value and expiry, whatever it had before.
    #[expect(missing_docs, reason = "the record says it")]
    Set { db: u8, key: &'a [u8], value: &'a [u8], expire_at: Millis },
    /// The key is gone.
    #[expect(missing_docs, reason = "the record says it")]
    Delete { db: u8, key: &'a [u8] },
    /// The key, if it is there, has this expiry.
    #[expect(missing_docs, reason = "the record says it")]
    Expire { db: u8, key: &'a [u8], expire_at: Millis },
    /// The key, if it is there, has these bytes at this offset; zeros fill a gap before them.
    #[expect(missing_docs, reason = "the record says it")]
    Range { db: u8, key: &'a [u8], offset: u64, bytes: &'a [u8] },
    /// The database is empty; every one is if none is named.
    #[expect(missing_docs, reason = "the record says it")]
    Flush { db: Option<u8> },
    /// A base ends here and is complete.
    End,
}

const RECORD_HEAD: usize = 20;
const EVERY_DB: u8 = u8::MAX;

impl<'a> Record<'a> {
    /// The key it speaks of, if it speaks of one.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Set { key, .. }
            | Self::Delete { key, .. }
            | Self::Expire { key, .. }
            | Self::Range { key, .. } => Some(key),
            Self::Flush { .. } | Self::End => None,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, db, key, value, number): (u8, u8, &[u8], &[u8], u64) = match *self {
            Self::Set { db, key, value, expire_at } => (1, db, key, value, expire_at),
            Self::Delete { db, key } => (2, db, key, &[], 0),
            Self::Expire { db, key, expire_at } => (3, db, key, &[], expire_at),
            Self::Range { db, key, offset, bytes } => (4, db, key, bytes, offset),
            Self::Flush { db } => (5, db.unwrap_or(EVERY_DB), &[], &[], 0),
            Self::End => (6, 0, &[], &[], 0),
        };
        let len = |bytes: &[u8]| {
            u32::try_from(bytes.len()).expect("keys and values fit a receive buffer").to_le_bytes()
        };
        let mut head = [0; RECORD_HEAD];
        (head[0], head[1]) = (kind, db);
        head[4..8].copy_from_slice(&len(key));
        head[8..12].copy_from_slice(&len(value));
        head[12..].copy_from_slice(&number.to_le_bytes());
        out.reserve(RECORD_HEAD + key.len() + value.len());
        out.extend_from_slice(&head);
        out.extend_from_slice(key);
        out.extend_from_slice(value);
    }

    /// Reads the record at the front of `bytes` and steps behind it.
    fn decode(bytes: &mut &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(RECORD_HEAD)?;
        let (key, rest) = rest.split_at_checked(u32_at(head, 4) as usize)?;
        let (value, rest) = rest.split_at_checked(u32_at(head, 8) as usize)?;
        *bytes = rest;
        let (db, number) = (head[1], u64_at(head, 12));
        Some(match head[0] {
            1 => Self::Set { db, key, value, expire_at: number },
            2 => Self::Delete { db, key },
            3 => Self::Expire { db, key, expire_at: number },
            4 => Self::Range { db, key, offset: number, bytes: value },
            5 => Self::Flush { db: (db != EVERY_DB).then_some(db) },
            6 => Self::End,
            _ => return None,
        })
    }
}

/// Records on their way into a frame.
#[derive(Debug)]
pub struct Journal {
    /// Room for the frame's header, then the records.
    bytes: Vec<u8>,
    on: bool,
}

impl Journal {
    /// A journal that keeps what it is told.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: vec![0; FRAME_HEAD], on: true }
    }

    /// A journal that keeps nothing, for a server without a log.
    #[must_use]
    pub fn off() -> Self {
        Self { bytes: vec![0; FRAME_HEAD], on: false }
    }

    /// Adds a record.
    #[inline]
    pub fn push(&mut self, record: &Record<'_>) {
        if self.on {
            record.encode(&mut self.bytes);
        }
    }

    /// The bytes of the records in it. It grows when a command had an effect, and only then.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - FRAME_HEAD
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

// ---- Files and frames -------------------------------------------------------------------------------------------------

/// How a file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which file it is, as its name says.
    pub file: FileName,
    /// A random number, so that frames cannot be forged by those who do not know it.
    pub salt: u64,
}

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 64;
const FILE_MAGIC: &[u8; 8] = b"VELOQ-KV";
const VERSION: u32 = 1;

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(FILE_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.file.shard.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.file.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.file.generation.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.salt.to_le_bytes());
        bytes[40] = u8::from(self.file.kind != Kind::Log);
        let crc = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes[..8] != *FILE_MAGIC {
            return Err("this is not a log of kv");
        }
        if u32_at(bytes, HEADER_LEN - 4) != crc32fast::hash(&bytes[..HEADER_LEN - 4]) {
            return Err("the header's checksum is wrong");
        }
        if u32_at(bytes, 8) != VERSION {
            return Err("the log was written by another version of kv");
        }
        let kind = if bytes[40] == 0 { Kind::Log } else { Kind::Base };
        let file = FileName {
            shard: u32_at(bytes, 12),
            epoch: u64_at(bytes, 16),
            generation: u64_at(bytes, 24),
            kind,
        };
        Ok(Self { file, salt: u64_at(bytes, 32) })
    }
}

const FRAME_HEAD: usize = 32;
const FRAME_MAGIC: [u8; 4] = *b"vqFR";

/// The fields of a frame's header.
#[derive(Debug, Clone, Copy)]
struct FrameHead {
    len: u32,
    seq: u64,
    synced: u64,
    crc: u32,
}

impl FrameHead {
    fn encode(self, salt: u64) -> [u8; FRAME_HEAD] {
        let mut bytes = [0; FRAME_HEAD];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.synced.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.crc.to_le_bytes());
        let crc = checksum(salt, &bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        let valid = bytes[..4] == FRAME_MAGIC && u32_at(bytes, 28) == checksum(salt, &bytes[..28]);
        valid.then(|| Self {
            len: u32_at(bytes, 4),
            seq: u64_at(bytes, 8),
            synced: u64_at(bytes, 16),
            crc: u32_at(bytes, 24),
        })
    }
}

fn checksum(salt: u64, bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(&salt.to_le_bytes());
    crc.update(bytes);
    crc.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Numbers the frames of one file and says where they go.
#[derive(Debug)]
pub struct Writer {
    salt: u64,
    seq: u64,
    synced: u64,
    offset: u64,
}

/// Bytes to write, and where.
#[derive(Debug)]
pub struct Frame {
    /// Where in the file they go.
    pub offset: u64,
    /// Once these bytes are synced, call [`Writer::synced`] with this.
    pub seq: u64,
    /// Header and records.
    pub bytes: Vec<u8>,
}

impl Writer {
    /// For a new file, whose header has been written.
    #[must_use]
    pub fn create(header: &Header) -> Self {
        Self { salt: header.salt, seq: 0, synced: 0, offset: HEADER_LEN as u64 }
    }

    /// For a file that was read back to its end, and cut there if it was torn.
    #[must_use]
    pub fn resume(header: &Header, tail: &Tail) -> Self {
        Self { salt: header.salt, seq: tail.frames, synced: tail.frames, offset: tail.len }
    }

    /// Makes a frame of the journal's records, of which there are some. The journal goes on in `spare`, a vector to reuse.
    ///
    /// # Panics
    /// If there are 4 GiB of records: a shard takes no commands when there are [`BACKLOG_MAX`](crate::limits::BACKLOG_MAX), and no
    /// request adds 2 GiB.
    #[must_use]
    pub fn seal(&mut self, journal: &mut Journal, mut spare: Vec<u8>) -> Frame {
        spare.clear();
        spare.resize(FRAME_HEAD, 0);
        let mut bytes = std::mem::replace(&mut journal.bytes, spare);
        let (head, records) = bytes.split_at_mut(FRAME_HEAD);
        let len = u32::try_from(records.len()).expect("a frame is smaller than 4 GiB");
        let crc = checksum(self.salt, records);
        head.copy_from_slice(&FrameHead { len, seq: self.seq, synced: self.synced, crc }.encode(self.salt));
        let frame = Frame { offset: self.offset, seq: self.seq, bytes };
        self.seq += 1;
        self.offset += frame.bytes.len() as u64;
        frame
    }

    /// Notes that every frame up to `seq` is on the disk.
    pub fn synced(&mut self, seq: u64) {
        self.synced = self.synced.max(seq + 1);
    }

    /// How long the file is, room in advance not counted.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// Whether it has no frame yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seq == 0
    }
}

// ---- Reading back -----------------------------------------------------------------------------------------------------

/// Reads one file back, from pieces of any size: no more than a frame is held in memory.
#[derive(Debug)]
pub struct Scanner {
    path: PathBuf,
    /// What was fed and is not used up.
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    base: u64,
    frames: u64,
    ended: bool,
    header: Option<Header>,
    /// Set once a frame was not valid: from here on only headers are looked for.
    bad: Option<Bad>,
}

#[derive(Debug, Clone, Copy)]
struct Bad {
    offset: u64,
    what: &'static str,
    /// Whether anything but zeros lies at `offset` or behind it.
    torn: bool,
}

/// How a file ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// What the file says it is; `None` for a file that was created and never written.
    pub header: Option<Header>,
    /// Bytes that are good; the file is cut here if it is torn.
    pub len: u64,
    /// How many frames those are.
    pub frames: u64,
    /// Bytes of frames that were being written when the machine stopped lie behind `len`.
    pub torn: bool,
    /// The last record was [`Record::End`].
    pub ended: bool,
}

/// A file that cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupt {
    /// Which one.
    pub path: PathBuf,
    /// Where the trouble begins.
    pub offset: u64,
    /// What it is.
    pub what: &'static str,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is corrupt at byte {}: {}", self.path.display(), self.offset, self.what)
    }
}

impl std::error::Error for Corrupt {}

impl From<Corrupt> for io::Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::new(io::ErrorKind::InvalidData, corrupt)
    }
}

impl Scanner {
    /// Begins a file; `path` is for messages.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let (path, buffer) = (path.into(), Vec::new());
        Self { path, buffer, base: 0, frames: 0, ended: false, header: None, bad: None }
    }

    /// Takes the next piece of the file and hands on the records that are whole now.
    ///
    /// # Errors
    /// When the file is damaged, as far as this can be told by now.
    pub fn feed(&mut self, piece: &[u8], mut replay: impl FnMut(Record<'_>)) -> Result<(), Corrupt> {
        self.buffer.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let Some(header) = self.header else {
                if self.base == 0 {
                    let Some(bytes) = self.buffer.get(..HEADER_LEN) else { return Ok(()) };
                    if bytes.iter().any(|&byte| byte != 0) {
                        match Header::decode(bytes) {
                            Ok(header) => self.header = Some(header),
                            Err(what) => return self.corrupt(0, what),
                        }
                        at = HEADER_LEN;
                        continue;
                    }
                }
                // Created, given room, and never written. Should anything follow, it has no header to go by.
                let dirty = self.buffer.iter().any(|&byte| byte != 0);
                self.base += self.buffer.len() as u64;
                self.buffer.clear();
                return if dirty { self.corrupt(0, "the header is missing") } else { Ok(()) };
            };
            let step = match self.bad {
                Some(bad) => self.search(at, header.salt, bad)?,
                None => self.frame(at, header.salt, &mut replay)?,
            };
            match step {
                Some(next) => at = next,
                None => break,
            }
        }
        // What is left belongs to a frame that is not whole yet. In search, `search` keeps what may be half a header.
        let used =
            at + if self.bad.is_some() { (self.buffer.len() - at).saturating_sub(FRAME_HEAD - 1) } else { 0 };
        self.base += used as u64;
        self.buffer.drain(..used);
        Ok(())
    }

    /// Says how the file ended, once it was fed whole.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn finish(self) -> Result<Tail, Corrupt> {
        let rest = self.base..self.base + self.buffer.len() as u64;
        let dirty = self.buffer.iter().any(|&byte| byte != 0);
        let (len, torn) = match self.bad {
            Some(bad) => (bad.offset, bad.torn || dirty),
            None => (rest.start, dirty),
        };
        // A header is written, synced and only then followed by frames: half of one is a file that never was in use.
        let len = if self.header.is_some() { len } else { 0 };
        Ok(Tail { header: self.header, len, frames: self.frames, torn, ended: self.ended && !torn })
    }

    /// Replays the frame at `at` of the buffer. Gives where the next one begins, or `None` if more bytes are needed.
    fn frame(
        &mut self,
        at: usize,
        salt: u64,
        replay: &mut impl FnMut(Record<'_>),
    ) -> Result<Option<usize>, Corrupt> {
        let Some(head) = self.buffer.get(at..at + FRAME_HEAD) else { return Ok(None) };
        let head = match FrameHead::decode(head, salt) {
            Some(head) if head.seq == self.frames => head,
            Some(_) => return Ok(self.stop(at, "frames are missing")),
            None => return Ok(self.stop(at, "this is no frame")),
        };
        let records = at + FRAME_HEAD..at + FRAME_HEAD + head.len as usize;
        let Some(mut rest) = self.buffer.get(records.clone()) else { return Ok(None) };
        if checksum(salt, rest) != head.crc {
            return Ok(self.stop(at, "the checksum is wrong"));
        }
        while !rest.is_empty() {
            let offset = self.base + (records.end - rest.len()) as u64;
            let Some(record) = Record::decode(&mut rest) else {
                return self.corrupt(offset, "a record cannot be read though its checksum is right");
            };
            self.ended = record == Record::End;
            replay(record);
        }
        self.frames += 1;
        Ok(Some(records.end))
    }

    /// Ends replaying at `at`; what follows is only searched.
    fn stop(&mut self, at: usize, what: &'static str) -> Option<usize> {
        self.bad = Some(Bad { offset: self.base + at as u64, what, torn: false });
        Some(at)
    }

    /// Looks for a header that proves the bad frame was good once.
    fn search(&mut self, at: usize, salt: u64, bad: Bad) -> Result<Option<usize>, Corrupt> {
        let rest = &self.buffer[at..];
        let dirty = rest.iter().position(|&byte| byte != 0);
        if dirty.is_some() {
            self.bad = Some(Bad { torn: true, ..bad });
        }
        for found in memmem::find_iter(rest, &FRAME_MAGIC) {
            let Some(head) = rest.get(found..found + FRAME_HEAD) else { break };
            if FrameHead::decode(head, salt).is_some_and(|head| head.synced > self.frames) {
                return self.corrupt(bad.offset, bad.what);
            }
        }
        Ok(None)
    }

    fn corrupt<T>(&self, offset: u64, what: &'static str) -> Result<T, Corrupt> {
        Err(Corrupt { path: self.path.clone(), offset, what })
    }
}

// ---- The directory ----------------------------------------------------------------------------------------------------

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The state that a generation starts from; sorts before its log.
    Base,
    /// What happened since.
    Log,
    /// A base that is being written.
    Temporary,
}

/// The name of a file: `e1-s0-g3.log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// Counts changes of the number of shards.
    pub epoch: u64,
    /// Whose file it is.
    pub shard: u32,
    /// Counts compactions.
    pub generation: u64,
    /// What it is for.
    pub kind: Kind,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Base => "base",
            Kind::Log => "log",
            Kind::Temporary => "base.tmp",
        };
        write!(f, "e{}-s{}-g{}.{kind}", self.epoch, self.shard, self.generation)
    }
}

impl FromStr for FileName {
    type Err = ();

    /// Reads a name back; what is not exactly such a name is somebody else's file.
    fn from_str(name: &str) -> Result<Self, ()> {
        let (stem, kind) = name.split_once('.').ok_or(())?;
        let kind = match kind {
            "base" => Kind::Base,
            "log" => Kind::Log,
            "base.tmp" => Kind::Temporary,
            _ => return Err(()),
        };
        let mut parts = stem.split('-');
        let mut number =
            |letter: char| parts.next().and_then(|part| part.strip_prefix(letter)?.parse::<u64>().ok());
        let (epoch, shard, generation) =
            (number('e').ok_or(())?, number('s').ok_or(())?, number('g').ok_or(())?);
        let file = Self { epoch, shard: u32::try_from(shard).map_err(|_| ())?, generation, kind };
        if file.to_string() == name { Ok(file) } else { Err(()) }
    }
}

/// What `MANIFEST` says: which files count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The epoch whose files count.
    pub epoch: u64,
    /// How many shards it has.
    pub shards: u32,
    /// The seed of its keyspace.
    pub seed: u64,
    /// [`Keyspace::hash`](crate::db::Keyspace::hash) of [`PROBE`] in that keyspace: another value means that keys hash
    /// differently now, and must be handed out anew as if the number of shards had changed.
    pub probe: u32,
}

/// The file that holds the [`Manifest`].
pub const MANIFEST: &str = "MANIFEST";
/// Its temporary name: written, synced, and then renamed over the old one.
pub const MANIFEST_TEMPORARY: &str = "MANIFEST.tmp";
/// The key that shows whether keys still hash as they did.
pub const PROBE: &[u8] = b"veloq";

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, shards, seed, probe } = self;
        writeln!(f, "veloq-kv {VERSION}\nepoch {epoch}\nshards {shards}\nseed {seed}\nprobe {probe}")
    }
}

impl FromStr for Manifest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.lines();
        let mut field = |name: &str| -> Result<u64, &'static str> {
            let value =
                lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
            value.ok_or("the manifest cannot be read")
        };
        if field("veloq-kv")? != u64::from(VERSION) {
            return Err("the manifest was written by another version of kv");
        }
        let small = |value| u32::try_from(value).map_err(|_| "the manifest cannot be read");
        let (epoch, shards, seed) = (field("epoch")?, small(field("shards")?)?, field("seed")?);
        Ok(Self { epoch, shards, seed, probe: small(field("probe")?)? })
    }
}

/// What to do with the files of a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Replay these, in this order: shard by shard, each one's base first, then its logs.
    pub replay: Vec<FileName>,
    /// Remove these.
    pub remove: Vec<FileName>,
}

impl Recovery {
    /// Sorts the files found beside a manifest.
    #[must_use]
    pub fn plan(epoch: u64, files: impl IntoIterator<Item = FileName>) -> Self {
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort_unstable();
        let base_of = |shard| {
            let bases =
                files.iter().filter(|file| (file.epoch, file.shard, file.kind) == (epoch, shard, Kind::Base));
            bases.map(|file| file.generation).max().unwrap_or(0)
        };
        let (replay, remove) = files.iter().partition(|file| {
            file.epoch == epoch && file.kind != Kind::Temporary && file.generation >= base_of(file.shard)
        });
        Self { replay, remove }
    }

    /// The files of one shard, among those to replay.
    #[must_use]
    pub fn of_shard(&self, shard: u32) -> &[FileName] {
        let range = |files: &[FileName]| -> Range<usize> {
            files.partition_point(|file| file.shard < shard)
                ..files.partition_point(|file| file.shard <= shard)
        };
        &self.replay[range(&self.replay)]
    }
}

/// Logs shorter than this are not worth a compaction: 64 MiB, as in Redis, replay in a fraction of a second.
pub const COMPACT_MIN: u64 = 64 * 1024 * 1024;

/// Whether logs of so many bytes, on top of a base of so many, should be compacted: when they have outgrown it.
#[must_use]
pub fn worth_compacting(log_len: u64, base_len: u64) -> bool {
    log_len >= COMPACT_MIN && log_len >= base_len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: FileName = FileName { epoch: 1, shard: 0, generation: 1, kind: Kind::Log };
    const HEADER: Header = Header { file: FILE, salt: 0x5a17 };

    fn set(n: u64) -> Record<'static> {
        Record::Set {
            db: 0,
            key: b"key",
            value: &[7; 40][..usize::try_from(n % 40).expect("small")],
            expire_at: n,
        }
    }

    /// A file of `frames` frames, and where each begins; frame n + lag says that frame n is synced.
    fn file(frames: u64, lag: u64) -> (Vec<u8>, Vec<usize>) {
        let (mut writer, mut journal) = (Writer::create(&HEADER), Journal::new());
        let mut bytes = HEADER.encode().to_vec();
        let mut starts = Vec::new();
        for n in 0..frames {
            if let Some(synced) = n.checked_sub(lag) {
                writer.synced(synced);
            }
            journal.push(&set(n));
            journal.push(&Record::Delete { db: 1, key: b"other" });
            let frame = writer.seal(&mut journal, Vec::new());
            assert_eq!(frame.offset, bytes.len() as u64);
            starts.push(bytes.len());
            bytes.extend_from_slice(&frame.bytes);
        }
        (bytes, starts)
    }

    fn scan(bytes: &[u8], piece: usize) -> (usize, Result<Tail, Corrupt>) {
        let (mut scanner, mut records) = (Scanner::new("x.log"), 0);
        for piece in bytes.chunks(piece.max(1)) {
            if let Err(corrupt) = scanner.feed(piece, |_| records += 1) {
                return (records, Err(corrupt));
            }
        }
        (records, scanner.finish())
    }

    fn clean(len: usize, frames: u64) -> Tail {
        Tail { header: Some(HEADER), len: len as u64, frames, torn: false, ended: false }
    }

    #[test]
    fn records_are_read_back_as_they_were_written() {
        let records = [
            Record::Set { db: 15, key: b"k", value: b"", expire_at: Millis::MAX },
            Record::Delete { db: 0, key: b"" },
            Record::Expire { db: 3, key: b"k\0\r\n", expire_at: 5 },
            Record::Range { db: 0, key: b"k", offset: 9, bytes: b"xyz" },
            Record::Flush { db: None },
            Record::Flush { db: Some(2) },
            Record::End,
        ];
        let (mut writer, mut journal, mut scanner) =
            (Writer::create(&HEADER), Journal::new(), Scanner::new("x.log"));
        records.iter().for_each(|record| journal.push(record));
        let frame = writer.seal(&mut journal, Vec::new());
        assert!(journal.is_empty());
        let mut read = 0;
        let file = [&HEADER.encode()[..], &frame.bytes].concat();
        scanner
            .feed(&file, |record| {
                assert_eq!(record, records[read]);
                read += 1;
            })
            .expect("nothing is wrong");
        assert_eq!(read, records.len());
        let tail = scanner.finish().expect("nothing is wrong");
        assert!(tail.ended && !tail.torn);
        assert_eq!(Writer::resume(&HEADER, &tail).len(), file.len() as u64);
    }

    #[test]
    fn room_that_was_never_used_is_the_end() {
        let (bytes, _) = file(3, 1);
        let roomy = [&bytes[..], &[0; 5000]].concat();
        for piece in [1, 7, 100_000] {
            assert_eq!(scan(&roomy, piece), (6, Ok(clean(bytes.len(), 3))));
        }
        assert_eq!(
            scan(&[0; 5000], 64).1,
            Ok(Tail { header: None, len: 0, frames: 0, torn: false, ended: false })
        );
    }

    // What could go wrong: a torn tail refuses to start the server, or a hole in the middle silently drops what followed it.
    #[test]
    fn a_file_cut_anywhere_is_torn_and_never_corrupt() {
        let (bytes, starts) = file(4, 1);
        for cut in HEADER_LEN..bytes.len() {
            for room in [0, 1000] {
                let torn = [&bytes[..cut], &vec![0; room]].concat();
                let whole = starts.iter().rposition(|&start| start <= cut).expect("behind the header");
                let tail = scan(&torn, 13).1.expect("torn is not corrupt");
                assert_eq!((tail.frames, tail.len), (whole as u64, starts[whole] as u64), "{cut}");
                assert_eq!(tail.torn, cut > starts[whole], "{cut}");
            }
        }
    }

    #[test]
    fn a_hole_in_what_was_synced_is_corrupt_at_its_offset() {
        let (bytes, starts) = file(5, 1);
        for at in starts[0]..starts[3] {
            for room in [0, 1000] {
                let mut broken = [&bytes[..], &vec![0; room]].concat();
                broken[at] ^= 0x10;
                let frame = starts.iter().rposition(|&start| start <= at).expect("behind the header");
                let corrupt = scan(&broken, 50).1.expect_err("acknowledged writes are missing");
                assert_eq!(corrupt.offset, starts[frame] as u64);
                assert!(corrupt.to_string().starts_with("x.log is corrupt at byte "));
            }
        }
    }

    // What could go wrong: a disk that wrote a later sector first makes an honest crash look like damage.
    #[test]
    fn frames_written_out_of_order_before_a_sync_are_torn() {
        let (bytes, starts) = file(5, 9);
        let mut holed = bytes.clone();
        holed[starts[2]..starts[3]].fill(0);
        let expected = Tail { torn: true, ..clean(starts[2], 2) };
        assert_eq!(scan(&holed, 17), (4, Ok(expected)));
    }

    #[test]
    fn a_value_that_looks_like_a_frame_is_a_value() {
        let forged = FrameHead { len: 0, seq: 9, synced: 9, crc: 0 }.encode(0);
        let (mut bytes, starts) = file(2, 9);
        bytes.truncate(starts[1] + 10);
        bytes.extend_from_slice(&forged);
        assert_eq!(scan(&bytes, 1000).1, Ok(Tail { torn: true, ..clean(starts[1], 1) }));
    }

    #[test]
    fn a_broken_header_is_named() {
        let (mut bytes, _) = file(1, 1);
        bytes[20] ^= 1;
        assert_eq!(scan(&bytes, 1000).1.expect_err("broken").what, "the header's checksum is wrong");
        assert_eq!(scan(&[1; 64], 64).1.expect_err("foreign").what, "this is not a log of kv");
    }

    // What could go wrong: a header that stands behind a hole, at the beginning of a piece, is taken for the file's own.
    #[test]
    fn a_header_stands_at_the_beginning_or_is_missing() {
        let (bytes, _) = file(2, 1);
        let holed = [&[0; HEADER_LEN][..], &bytes].concat();
        for piece in [1, HEADER_LEN, 100_000] {
            let (records, end) = scan(&holed, piece);
            assert_eq!((records, end.expect_err("it has none").what), (0, "the header is missing"));
        }
    }

    #[test]
    fn each_crash_during_a_compaction_leaves_a_state_to_replay() {
        let name = |generation, kind| FileName { generation, kind, ..FILE };
        let (base2, log2) = (name(2, Kind::Base), name(2, Kind::Log));
        let (base3, log3, half3) = (name(3, Kind::Base), name(3, Kind::Log), name(3, Kind::Temporary));
        let stale = FileName { epoch: 0, ..log2 };
        for (files, replay, remove) in [
            (vec![log2, base2, log3], vec![base2, log2, log3], vec![]),
            (vec![log3, half3, log2, base2, stale], vec![base2, log2, log3], vec![stale, half3]),
            (vec![log3, base3, log2, base2], vec![base3, log3], vec![base2, log2]),
            (vec![log3, base3, log2], vec![base3, log3], vec![log2]),
            (vec![FILE], vec![FILE], vec![]),
        ] {
            assert_eq!(Recovery::plan(1, files), Recovery { replay, remove });
        }
        let other = FileName { shard: 1, ..log2 };
        assert_eq!(Recovery::plan(1, [other, log3, log2]).of_shard(0), [log2, log3]);
    }

    #[test]
    fn names_and_manifests_are_read_back() {
        for kind in [Kind::Base, Kind::Log, Kind::Temporary] {
            let name = FileName { epoch: 12, shard: 3, generation: 400, kind };
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for other in
            ["e1-s0-g1.logs", "e01-s0-g1.log", "e1-s0.log", "MANIFEST", "e1-s0-g1-x2.log", "e1-s+0-g1.log"]
        {
            assert_eq!(other.parse::<FileName>(), Err(()), "{other}");
        }
        let manifest = Manifest { epoch: 3, shards: 8, seed: u64::MAX, probe: 77 };
        assert_eq!(manifest.to_string().parse(), Ok(manifest));
        assert!("veloq-kv 2\n".parse::<Manifest>().is_err());
    }

    proptest! {
        // What could go wrong: damage anywhere makes the reader panic, replay a record that was never written, or run away
        // with a length.
        #[test]
        fn no_damage_is_replayed(
            flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
            piece in 1..200_usize,
        ) {
            let (mut bytes, _) = file(6, 2);
            for (index, flip) in flips {
                let at = index.index(bytes.len());
                bytes[at] ^= flip;
            }
            let (mut scanner, mut read) = (Scanner::new("x.log"), 0);
            for piece in bytes.chunks(piece) {
                let fed = scanner.feed(piece, |record| {
                    let expected = if read % 2 == 0 { set(read / 2) } else { Record::Delete { db: 1, key: b"other" } };
                    assert_eq!(record, expected);
                    read += 1;
                });
                if fed.is_err() {
                    break;
                }
            }
        }
    }
}
