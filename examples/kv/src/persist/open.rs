//! From files to shards: the directory, the replay, and a change of the number of workers.
//!
//! **Same number of workers.** Each worker replays its base and its logs, cuts a torn tail, and goes on in the newest log. What was
//! read may be in the system's memory only, if the last server was killed; so the logs are synced before anything builds on them.
//!
//! **Another number.** Each worker replays *all* files, one old shard after the other, and keeps what belongs to it now;
//! then it writes that as the base of a new epoch, with an empty log. Nothing counts before [`settle`] publishes the
//! new manifest, so a crash on the way leaves the old files as they were. An old shard is replayed into a shard of its own
//! first: its FLUSHALL must not remove what came from another.
//!
//! Files are read a piece at a time, so a log may be larger than memory.

use std::fs::TryLockError;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use veloq::fs::{self, File, OpenOptions};

use super::{Fsync, Log, PersistError, Step, at};
use crate::db::Keyspace;
use crate::limits::Limits;
use crate::log::{
    FileName, HEADER_LEN, Header, Journal, Kind, MANIFEST, MANIFEST_TEMPORARY, Manifest, PROBE, Record,
    Recovery, Scanner, Tail, Writer,
};
use crate::shard::{Shard, SnapshotCursor};

/// The file whose lock says that a server uses the directory. It is never removed: a lock on a removed file is nobody's.
const LOCK: &str = "LOCK";

/// Bytes read at a time: enough that the device is what takes the time, and little beside the pool.
const PIECE: usize = 256 * 1024;

/// Bytes of a base that are made at a time. A worker copies that much in a fraction of a millisecond, and serves others
/// before the next.
pub(super) const SLICE: usize = 256 * 1024;

/// Bytes of a base between two syncs: all at the end would keep the disk from the log's syncs for seconds.
const BASE_SYNC: u64 = 8 * 1024 * 1024;

/// A directory that is open, and locked until the last clone is gone.
#[derive(Debug, Clone)]
pub struct Opened(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    fsync: Fsync,
    /// What counts, or will from [`settle`] on.
    manifest: Manifest,
    /// How many shards the files are of, if they must be handed out anew.
    old_shards: Option<u32>,
    plan: Recovery,
    /// Locked; closing it unlocks.
    _lock: std::fs::File,
}

impl Opened {
    /// The seed of the keyspace.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.manifest.seed
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    pub(super) fn fsync(&self) -> Fsync {
        self.0.fsync
    }
}

/// A worker's log, ready for more.
#[derive(Debug)]
pub struct Recovered {
    pub(super) opened: Opened,
    pub(super) log: Log,
    pub(super) base_len: u64,
    /// Bytes of logs before the newest.
    pub(super) older_len: u64,
}

// ---- The three phases -------------------------------------------------------------------------------------------------

/// Locks the directory, which is made if it is not there, and reads what it holds and what is to be done.
///
/// # Errors
/// If another server uses it; if the manifest cannot be read, or is missing although there are logs; or what the
/// operating system said.
pub async fn open_dir(dir: &Path, shards: u32, fsync: Fsync) -> Result<Opened, PersistError> {
    fs::create_dir_all(dir).await.map_err(PersistError::io("create", dir))?;
    let lock = lock(dir).await?;
    let files = list(dir).await?;
    let path = dir.join(MANIFEST);
    let found = match fs::read_to_string(&path).await {
        Ok(text) => Some(text.parse::<Manifest>().map_err(|what| PersistError::corrupt(&path, 0, what))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound && files.is_empty() => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PersistError::Missing(path)),
        Err(error) => return Err(PersistError::io("read", &path)(error)),
    };
    let seed = found.as_ref().map_or_else(random, |found| found.seed);
    let probe = Keyspace::new(shards, seed).hash(PROBE);
    let epoch = found.as_ref().map_or(1, |found| found.epoch);
    let anew = found.as_ref().filter(|found| found.shards != shards || found.probe != probe);
    let plan = Recovery::plan(epoch, files);
    // What an earlier change of the number of workers left unfinished must not pass for a part of the next one.
    for file in plan.remove.iter().filter(|file| file.epoch > epoch) {
        remove(&dir.join(file.to_string())).await?;
    }
    let old_shards = anew.map(|found| found.shards);
    let manifest = Manifest { epoch: epoch + u64::from(old_shards.is_some()), shards, seed, probe };
    if found.is_none() {
        publish(dir, &manifest).await?;
    }
    Ok(Opened(Arc::new(Inner { dir: dir.to_owned(), fsync, manifest, old_shards, plan, _lock: lock })))
}

/// Replays into an empty shard what is its own, and opens the log that its records go to from now on.
///
/// # Errors
/// If a file is damaged or missing: the error names file and offset. Or what the operating system said.
pub async fn recover(opened: &Opened, shard: &mut Shard) -> Result<Recovered, PersistError> {
    match opened.0.old_shards {
        None => resume(opened, shard).await,
        Some(old_shards) => hand_out_anew(opened, old_shards, shard).await,
    }
}

/// Makes what was recovered count, once every worker has done so, and removes the files that do not count any more.
///
/// # Errors
/// What the operating system said.
pub async fn settle(opened: &Opened) -> Result<(), PersistError> {
    let Inner { dir, manifest, old_shards, plan, .. } = &*opened.0;
    let mut remove_also = &[][..];
    if old_shards.is_some() {
        publish(dir, manifest).await?;
        remove_also = &plan.replay;
    }
    // A rename that the last server was killed behind is on the disk before what it replaced goes.
    sync_dir(dir).await?;
    for file in plan.remove.iter().chain(remove_also).filter(|file| file.epoch <= manifest.epoch) {
        remove(&dir.join(file.to_string())).await?;
    }
    Ok(())
}

async fn resume(opened: &Opened, shard: &mut Shard) -> Result<Recovered, PersistError> {
    let Inner { dir, manifest, plan, .. } = &*opened.0;
    let read = replay(dir, plan.of_shard(shard.index), |record| shard.replay(&record)).await?;
    for ReadBack { path, len, tail, .. } in read.iter().filter(|file| file.name.kind == Kind::Log) {
        if tail.torn {
            let (shown, cut) = (path.display(), len - tail.len);
            eprintln!(
                "kv: warning: {shown} ends in the middle of a write: {cut} bytes cut at byte {}",
                tail.len
            );
        }
        sync_tail(path, tail.torn.then_some(tail.len)).await?;
    }
    let len_of =
        |kind| read.iter().filter(|file| file.name.kind == kind).map(|file| file.tail.len).sum::<u64>();
    let (base_len, logs_len) = (len_of(Kind::Base), len_of(Kind::Log));
    let log = match read.last() {
        None => {
            let name = FileName { epoch: manifest.epoch, shard: shard.index, generation: 1, kind: Kind::Log };
            create_log(dir, name).await?
        }
        Some(ReadBack { tail: Tail { header: None, .. }, name, .. }) => create_log(dir, *name).await?,
        Some(ReadBack { tail: tail @ Tail { header: Some(header), .. }, name, path, len }) => {
            let opening = OpenOptions::new().write(true).open(path).await;
            let file = Rc::new(opening.map_err(PersistError::io("open", path))?);
            let room = if tail.torn { tail.len } else { *len };
            let writer = Writer::resume(header, tail);
            Log { name: *name, path: path.clone(), file, writer, written: None, room, no_more_room: false }
        }
    };
    let older_len = logs_len.saturating_sub(log.writer.len());
    Ok(Recovered { opened: opened.clone(), log, base_len, older_len })
}

async fn hand_out_anew(
    opened: &Opened,
    old_shards: u32,
    shard: &mut Shard,
) -> Result<Recovered, PersistError> {
    let Inner { dir, manifest, plan, .. } = &*opened.0;
    for old in 0..old_shards {
        let mut part = Shard::new(shard.index, shard.keyspace.clone(), &Limits::default());
        let is_ours = |key: &[u8]| shard.keyspace.shard_of(shard.keyspace.hash(key)) == shard.index;
        let read = replay(dir, plan.of_shard(old), |record| {
            if record.key().is_none_or(is_ours) {
                part.replay(&record);
            }
        });
        for file in read.await?.iter().filter(|file| file.tail.torn && shard.index == 0) {
            let (path, cut) = (file.path.display(), file.len - file.tail.len);
            eprintln!(
                "kv: warning: {path} ends in the middle of a write: {cut} bytes left out at byte {}",
                file.tail.len
            );
        }
        for (db, entries) in (0..).zip(&part.dbs) {
            for entry in entries.iter() {
                let (key, value, expire_at) = (entry.key(), entry.value(), entry.expire_at());
                shard.replay(&Record::Set { db, key, value, expire_at });
            }
        }
    }
    let base = FileName { epoch: manifest.epoch, shard: shard.index, generation: 1, kind: Kind::Base };
    let log = create_log(dir, FileName { kind: Kind::Log, ..base }).await?;
    let mut cursor = SnapshotCursor::default();
    let slice = |journal: &mut Journal| shard.snapshot(&mut cursor, SLICE, journal);
    let base_len = write_base(dir, base, slice, || {}).await?;
    name_base(dir, base).await?;
    Ok(Recovered { opened: opened.clone(), log, base_len, older_len: 0 })
}

// ---- Reading ----------------------------------------------------------------------------------------------------------

/// A file that was replayed.
struct ReadBack {
    name: FileName,
    path: PathBuf,
    len: u64,
    tail: Tail,
}

/// Replays the files of one shard: they must follow each other, and only the end of it all may be torn.
async fn replay(
    dir: &Path,
    files: &[FileName],
    mut apply: impl FnMut(Record<'_>),
) -> Result<Vec<ReadBack>, PersistError> {
    let mut read: Vec<ReadBack> = Vec::new();
    for &name in files {
        let path = dir.join(name.to_string());
        let before =
            read.last().map_or(FileName { generation: 0, kind: Kind::Log, ..name }, |last| last.name);
        let expected = match name.kind {
            Kind::Base => name,
            _ if before.kind == Kind::Base => FileName { kind: Kind::Log, ..before },
            _ => FileName { generation: before.generation + 1, ..before },
        };
        if name != expected {
            return Err(PersistError::Missing(dir.join(expected.to_string())));
        }
        let (tail, len) = replay_file(name, &path, &mut apply).await?;
        if let Some(header) = &tail.header
            && header.file != name
        {
            return Err(PersistError::corrupt(&path, 0, "this is the content of another file"));
        }
        if name.kind == Kind::Base && !tail.ended {
            return Err(PersistError::corrupt(&path, tail.len, "the base ends early"));
        }
        // A log is synced before the next one gets its first frame.
        if let Some(cut) = read.iter().find(|file| file.tail.torn || file.tail.header.is_none())
            && tail.frames > 0
        {
            return Err(PersistError::corrupt(
                &cut.path,
                cut.tail.len,
                "frames are missing that the next log builds on",
            ));
        }
        read.push(ReadBack { name, path, len, tail });
    }
    match read.last() {
        Some(last) if last.name.kind == Kind::Base => {
            Err(PersistError::Missing(dir.join(FileName { kind: Kind::Log, ..last.name }.to_string())))
        }
        _ => Ok(read),
    }
}

async fn replay_file(
    name: FileName,
    path: &Path,
    apply: &mut impl FnMut(Record<'_>),
) -> Result<(Tail, u64), PersistError> {
    let file = File::open(path).await.map_err(PersistError::io("open", path))?;
    let mut scanner = Scanner::new(path);
    let (mut buf, mut at) = (veloq::alloc(PIECE), 0);
    loop {
        let read;
        (read, buf) = file.read_at(buf, at).await;
        match read {
            Ok(0) => break,
            Ok(count) => at += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PersistError::io("read", path)(error)),
        }
        scanner
            .feed(&buf, |record| {
                if name.kind != Kind::Base || record != Record::End {
                    apply(record)
                }
            })
            .map_err(PersistError::Corrupt)?;
    }
    Ok((scanner.finish().map_err(PersistError::Corrupt)?, at))
}

async fn list(dir: &Path) -> Result<Vec<FileName>, PersistError> {
    let failed = || PersistError::io("list", dir);
    let mut entries = fs::read_dir(dir).await.map_err(failed())?;
    let mut files = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(failed())? {
        files.extend(entry.file_name().to_str().and_then(|name| name.parse::<FileName>().ok()));
    }
    Ok(files)
}

/// The files of a base's shard and epoch that the base replaces.
pub(super) async fn of_shard_before(dir: &Path, base: FileName) -> Result<Vec<FileName>, PersistError> {
    let mut files = list(dir).await?;
    files.retain(|file| {
        (file.epoch, file.shard) == (base.epoch, base.shard) && file.generation < base.generation
    });
    Ok(files)
}

// ---- Writing ----------------------------------------------------------------------------------------------------------

async fn lock(dir: &Path) -> Result<std::fs::File, PersistError> {
    let path = dir.join(LOCK);
    let opening = OpenOptions::new().write(true).create(true).open(&path).await;
    let file = opening.and_then(File::into_std).map_err(PersistError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PersistError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(PersistError::io("lock", &path)(error)),
    }
}

/// Makes an empty log, which is there after a crash. What had its name had no frame.
pub(super) async fn create_log(dir: &Path, name: FileName) -> Result<Log, PersistError> {
    let path = dir.join(name.to_string());
    let (file, header) = create(&path, name).await?;
    file.sync_all().await.map_err(PersistError::io("sync", &path))?;
    sync_dir(dir).await?;
    let (file, writer) = (Rc::new(file), Writer::create(&header));
    Ok(Log { name, path, file, writer, written: None, room: HEADER_LEN as u64, no_more_room: false })
}

async fn create(path: &Path, name: FileName) -> Result<(File, Header), PersistError> {
    let header = Header { file: name, salt: random() };
    let file = File::create(path).await.map_err(PersistError::io("create", path))?;
    let (written, _) = file.write_all_at(header.encode().to_vec(), 0).await;
    written.map_err(PersistError::io("write", path))?;
    Ok((file, header))
}

/// Writes a base under its temporary name, from slices, until one says that it is the last; syncs it. Gives its length.
pub(super) async fn write_base(
    dir: &Path,
    name: FileName,
    mut slice: impl FnMut(&mut Journal) -> bool,
    mut part_written: impl FnMut(),
) -> Result<u64, PersistError> {
    let path = dir.join(FileName { kind: Kind::Temporary, ..name }.to_string());
    let (file, header) = create(&path, name).await?;
    let (mut writer, mut journal, mut spare) = (Writer::create(&header), Journal::new(), Vec::new());
    let mut synced = 0;
    loop {
        let last = slice(&mut journal);
        if !journal.is_empty() {
            let frame = writer.seal(&mut journal, spare);
            let written;
            (written, spare) = file.write_all_at(frame.bytes, frame.offset).await;
            written.map_err(PersistError::io("write", &path))?;
        }
        part_written();
        if last {
            file.sync_all().await.map_err(PersistError::io("sync", &path))?;
            return Ok(writer.len());
        }
        if writer.len() >= synced + BASE_SYNC {
            file.sync_data().await.map_err(PersistError::io("sync", &path))?;
            synced = writer.len();
        }
    }
}

/// Gives a base that is complete its name.
pub(super) async fn name_base(dir: &Path, name: FileName) -> Result<(), PersistError> {
    let path = dir.join(name.to_string());
    let temporary = dir.join(FileName { kind: Kind::Temporary, ..name }.to_string());
    fs::rename(temporary, &path).await.map_err(PersistError::io("rename", &path))?;
    sync_dir(dir).await
}

/// Replaces the manifest: the moment from which another epoch counts.
async fn publish(dir: &Path, manifest: &Manifest) -> Result<(), PersistError> {
    let (path, temporary) = (dir.join(MANIFEST), dir.join(MANIFEST_TEMPORARY));
    let failed = |doing| PersistError::io(doing, &temporary);
    let file = File::create(&temporary).await.map_err(failed("create"))?;
    let (written, _) = file.write_all_at(manifest.to_string(), 0).await;
    written.map_err(failed("write"))?;
    file.sync_all().await.map_err(failed("sync"))?;
    fs::rename(&temporary, &path).await.map_err(failed("rename"))?;
    sync_dir(dir).await
}

/// Makes what was read of a log safe, and ends it there if its tail is torn.
async fn sync_tail(path: &Path, cut: Option<u64>) -> Result<(), PersistError> {
    let file = OpenOptions::new().write(true).open(path).await.map_err(PersistError::io("open", path))?;
    if let Some(len) = cut {
        file.set_len(len).await.map_err(PersistError::io("cut", path))?;
    }
    file.sync_all().await.map_err(PersistError::io("sync", path))?;
    at(Step::TailSynced, path);
    Ok(())
}

/// Removes a file; that it is gone already is as well.
pub(super) async fn remove(path: &Path) -> Result<(), PersistError> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PersistError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

async fn sync_dir(dir: &Path) -> Result<(), PersistError> {
    fs::sync_dir(dir).await.map_err(PersistError::io("sync", dir))
}

/// A number that clients cannot guess: the hash of nothing under the random keys that std gives its tables.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
