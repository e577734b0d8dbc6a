//! Files are in temporary directories; a crash is a copy of the directory at that moment, opened again.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::task::Context;

use tempfile::TempDir;

use super::*;
use crate::db::{Keyspace, NEVER};
use crate::limits::Limits;
use crate::log::{HEADER_LEN, Journal, Kind, Record};
use crate::shard::Shard;
use crate::txn::Gate;

type Watch = Box<dyn FnMut(Step, &Path)>;

thread_local! {
    /// What a test does at each step. Each test has a thread, and on it one worker.
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

pub(super) fn at(step: Step, dir: &Path) {
    WATCH.with_borrow_mut(|watch| {
        if let Some(watch) = watch {
            watch(step, dir);
        }
    });
}

fn watch(watch: impl FnMut(Step, &Path) + 'static) {
    WATCH.set(Some(Box::new(watch)));
}

/// A server's shards, all on one worker.
struct Rig {
    keyspace: Keyspace,
    shards: Vec<(Rc<RefCell<State>>, Rc<Persist>)>,
}

type Contents = BTreeMap<(usize, String), String>;

impl Rig {
    async fn open(dir: &Path, shards: u32, fsync: Fsync) -> Result<Rig, PersistError> {
        let (rig, opened) = Rig::open_unsettled(dir, shards, fsync).await?;
        settle(&opened).await?;
        Ok(rig)
    }

    async fn open_unsettled(dir: &Path, shards: u32, fsync: Fsync) -> Result<(Rig, Opened), PersistError> {
        let opened = open_dir(dir, shards, fsync).await?;
        let mut rig = Rig { keyspace: Keyspace::new(shards, opened.seed()), shards: Vec::new() };
        for index in 0..shards {
            let mut shard = Shard::new(index, rig.keyspace.clone(), &Limits::default());
            let recovered = recover(&opened, &mut shard).await?;
            let state = Rc::new(RefCell::new(State { shard, journal: Journal::new(), gate: Gate::new() }));
            let persist = Persist::start(recovered, Rc::clone(&state));
            rig.shards.push((state, persist));
        }
        Ok((rig, opened))
    }

    fn run(&self, shard: u32, record: &Record<'_>) {
        let (state, persist) = &self.shards[shard as usize];
        let State { shard, journal, .. } = &mut *state.borrow_mut();
        shard.replay(record);
        journal.push(record);
        persist.wake();
    }

    fn set(&self, key: &str, value: &str) -> &Persist {
        let shard = self.keyspace.shard_of(self.keyspace.hash(key.as_bytes()));
        self.run(
            shard,
            &Record::Set { db: 0, key: key.as_bytes(), value: value.as_bytes(), expire_at: NEVER },
        );
        &self.shards[shard as usize].1
    }

    /// Sets, and waits until it may be acknowledged.
    async fn put(&self, key: &str, value: &str) -> Result<(), PersistError> {
        let persist = self.set(key, value);
        persist.durable(persist.ticket()).await
    }

    fn contents(&self) -> Contents {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut contents = Contents::new();
        for (index, (state, _)) in (0..).zip(&self.shards) {
            for (db, entries) in state.borrow().shard.dbs.iter().enumerate() {
                for entry in entries.iter() {
                    assert_eq!(self.keyspace.shard_of(entry.hash()), index, "every key is where it belongs");
                    contents.insert((db, text(entry.key())), text(entry.value()));
                }
            }
        }
        contents
    }

    async fn stop(self) {
        for (_, persist) in &self.shards {
            persist.stop().await.expect("the disk is fine");
        }
    }
}

fn temp() -> TempDir {
    tempfile::tempdir().expect("there is room for tests")
}

fn copy(from: &Path) -> TempDir {
    let to = temp();
    for entry in std::fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("it can be listed");
        // What is removed meanwhile is gone in the copy too.
        let _gone = std::fs::copy(entry.path(), to.path().join(entry.file_name()));
    }
    to
}

fn first_log(dir: &Path) -> PathBuf {
    dir.join(FileName { epoch: 1, shard: 0, generation: 1, kind: Kind::Log }.to_string())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("it is there");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("listed").file_name().into_string().expect("ASCII")).collect();
    names.sort();
    names
}

/// Three frames, the disk of a server that was killed, and the offset and contents at the end of each.
async fn three_frames() -> (TempDir, Vec<(u64, Contents)>) {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::Always).await.expect("empty");
    let mut ends = Vec::new();
    for n in 0..3 {
        rig.put(&format!("key{n}"), "value").await.expect("written");
        ends.push((rig.shards[0].1.log.borrow().writer.len(), rig.contents()));
    }
    (copy(dir.path()), ends)
}

// What could go wrong: a policy that syncs seldom loses what was written before an orderly stop, or the room that `always` makes is
// read back as something.
#[veloq::test]
async fn a_stop_keeps_everything_whatever_the_policy() {
    for fsync in [Fsync::Always, Fsync::Everysec, Fsync::No] {
        let dir = temp();
        let rig = Rig::open(dir.path(), 2, fsync).await.expect("empty");
        rig.put("a", "1").await.expect("written");
        rig.set("b", "2");
        rig.set("a", "3");
        rig.run(0, &Record::Set { db: 9, key: b"", value: b"", expire_at: NEVER });
        // Its shard is not the empty key's, perhaps, but a record is repeated where it was made.
        rig.run(0, &Record::Delete { db: 9, key: b"" });
        let before = rig.contents();
        rig.stop().await;
        let again = Rig::open(dir.path(), 2, fsync).await.expect("whole");
        assert_eq!(again.contents(), before, "{fsync}");
        again.set("c", "4");
        let before = again.contents();
        again.stop().await;
        let again = Rig::open(dir.path(), 2, fsync).await.expect("whole");
        assert_eq!(again.contents(), before, "{fsync}");
        again.stop().await;
    }
}

// What could go wrong: a write is acknowledged before the sync, and a crash takes it back.
#[veloq::test]
async fn nothing_is_acknowledged_before_it_is_synced() {
    let dir = temp();
    let rig = Rc::new(Rig::open(dir.path(), 1, Fsync::Always).await.expect("empty"));
    let events = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&events);
    watch(move |step, dir| {
        let on_disk = std::fs::read(first_log(dir)).expect("it is there");
        seen.borrow_mut().push((format!("{step:?}"), on_disk.windows(5).any(|bytes| bytes == b"value")));
    });
    let persist = rig.set("key", "value");
    let mut durable = pin!(persist.durable(persist.ticket()));
    assert!(durable.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    durable.await.expect("written");
    events.borrow_mut().push(("answered".to_owned(), true));
    let steps = ["Written", "Synced", "answered"].map(|step| (step.to_owned(), true));
    assert_eq!(*events.borrow(), steps);
}

#[veloq::test]
async fn commands_of_a_turn_share_a_frame_and_a_sync() {
    let dir = temp();
    let rig = Rc::new(Rig::open(dir.path(), 1, Fsync::Always).await.expect("empty"));
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let rig = Rc::clone(&rig);
            spawn_local(async move { rig.put(&format!("key{n}"), "value").await })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("written");
    }
    let stats = rig.shards[0].1.stats();
    assert_eq!((stats.frames, stats.syncs, stats.waiting), (1, 1, 0));
}

// What could go wrong: who was released by a sync asks again at once, and finds the next frame sealed: a client that is answered and one
// that was not yet take turns at the disk, where they could share it.
#[veloq::test]
async fn who_asks_again_at_once_is_in_the_next_frame() {
    let dir = temp();
    let rig = Rc::new(Rig::open(dir.path(), 1, Fsync::Always).await.expect("empty"));
    let released = Rc::clone(&rig);
    let again = spawn_local(async move {
        released.put("first", "value").await?;
        // To the client and back, as fast as that can be.
        veloq::io::op::misc::nop().await.expect("the kernel answers");
        released.put("again", "value").await
    });
    while rig.shards[0].1.sealed.get() == 0 {
        veloq::task::yield_now().await;
    }
    // The committer has just taken the first one, and knows of no answer of the kernel's yet.
    rig.put("second", "value").await.expect("written");
    again.await.expect("no panic").expect("written");
    assert_eq!(rig.shards[0].1.stats().frames, 2);
}

// What could go wrong: a tail that a crash tore stops the server, is replayed in part, or is still there behind new frames.
#[veloq::test]
async fn a_tail_torn_anywhere_is_cut() {
    let (dir, ends) = three_frames().await;
    let whole = std::fs::read(first_log(dir.path())).expect("it is there");
    let (start, end) = (ends[1].0, ends[2].0);
    for cut in start..=end {
        let mut torn = whole.clone();
        // Once with the room behind it, once without.
        torn[usize::try_from(cut).expect("small")..].fill(0);
        if cut % 2 == 0 {
            torn.truncate(usize::try_from(cut).expect("small"));
        }
        std::fs::write(first_log(dir.path()), torn).expect("written");
        let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("a torn tail is no damage");
        let mut expected = ends[if cut == end { 2 } else { 1 }].1.clone();
        assert_eq!(rig.contents(), expected, "cut at {cut}");
        rig.set("later", "x");
        rig.stop().await;
        expected.insert((0, "later".to_owned()), "x".to_owned());
        let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("whole");
        assert_eq!(rig.contents(), expected, "cut at {cut}");
        rig.stop().await;
    }
}

// What could go wrong: a server was killed before it synced; what the next one reads back from the system's memory it takes for
// safe, and so do the frames that it adds. A power cut then leaves a hole before them, and that is damage.
#[veloq::test]
async fn what_is_read_back_is_synced_before_anything_is_added() {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("empty");
    rig.put("key", "value").await.expect("written");
    let crashed = Rc::new(RefCell::new(None));
    let seen = Rc::clone(&crashed);
    watch(move |step, dir| {
        if step == Step::Switched {
            *seen.borrow_mut() = Some(copy(dir));
        }
    });
    rig.shards[0].1.compact();
    while crashed.borrow().is_none() {
        veloq::time::sleep(Duration::from_millis(1)).await;
    }
    let crashed = crashed.take().expect("two logs");
    let synced = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&synced);
    watch(move |step, path| {
        if step == Step::TailSynced {
            seen.borrow_mut().push(path.to_owned());
        }
    });
    drop(Rig::open(crashed.path(), 1, Fsync::Always).await.expect("a crash is no damage"));
    let logs = ["e1-s0-g1.log", "e1-s0-g2.log"].map(|name| crashed.path().join(name));
    assert_eq!(*synced.borrow(), logs);
    rig.stop().await;
}

#[veloq::test]
async fn damage_in_the_middle_is_an_error_with_file_and_offset() {
    let (dir, ends) = three_frames().await;
    let path = first_log(dir.path());
    let mut bytes = std::fs::read(&path).expect("it is there");
    bytes[HEADER_LEN + 40] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let text = Rig::open(dir.path(), 1, Fsync::Always).await.err().expect("writes are missing").to_string();
    assert!(text.starts_with(&format!("{} is corrupt at byte {HEADER_LEN}: ", path.display())), "{text}");
    // The same for the others, when the number of workers changes.
    let text = Rig::open(dir.path(), 2, Fsync::Always).await.err().expect("writes are missing").to_string();
    assert!(text.starts_with(&format!("{} is corrupt at byte {HEADER_LEN}: ", path.display())), "{text}");
    bytes[HEADER_LEN + 40] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    assert_eq!(Rig::open(dir.path(), 1, Fsync::No).await.expect("mended").contents(), ends[2].1);
}

// What could go wrong: a crash between two steps of a compaction loses what was acknowledged before it, or brings back what was
// overwritten. Writes go on meanwhile; each key's value only grows.
#[veloq::test]
async fn a_crash_during_compaction_loses_nothing() {
    let dir = temp();
    let rig = Rc::new(Rig::open(dir.path(), 1, Fsync::Always).await.expect("empty"));
    let filler = "x".repeat(100);
    for n in 0..8_000 {
        rig.set(&format!("bulk{n}"), &filler);
    }
    rig.put("counter", "0").await.expect("written");
    let crashes = Rc::new(RefCell::new(Vec::new()));
    let acknowledged = Rc::new(Cell::new(0));
    let (seen, promised) = (Rc::clone(&crashes), Rc::clone(&acknowledged));
    watch(move |step, dir| {
        if !matches!(step, Step::Written | Step::Synced) {
            seen.borrow_mut().push((step, promised.get(), copy(dir)));
        }
    });
    let persist = Rc::clone(&rig.shards[0].1);
    persist.compact();
    let mut issued = 0;
    while persist.stats().compactions == 0 {
        issued += 1;
        rig.put("counter", &issued.to_string()).await.expect("written");
        acknowledged.set(issued);
    }
    watch(|_, _| {});
    let crashes = crashes.take();
    let steps: Vec<_> = crashes.iter().map(|(step, ..)| *step).collect();
    for step in
        [Step::NextLog, Step::Switched, Step::BasePart, Step::BaseSynced, Step::BaseNamed, Step::Removed]
    {
        assert!(steps.contains(&step), "{step:?}");
    }
    assert!(steps.iter().filter(|step| **step == Step::BasePart).count() > 2, "in slices");
    for (step, promised, crashed) in &crashes {
        let rig = Rig::open(crashed.path(), 1, Fsync::No).await.expect("a crash is no damage");
        let contents = rig.contents();
        let counter: u64 = contents[&(0, "counter".to_owned())].parse().expect("a number");
        assert!(*promised <= counter && counter <= issued, "{step:?}: {promised} <= {counter} <= {issued}");
        assert_eq!(contents.len(), 8_001, "{step:?}");
        assert!(!names(crashed.path()).iter().any(|name| name.ends_with(".tmp")), "{step:?}");
    }
    let before = rig.contents();
    persist.stop().await.expect("the disk is fine");
    assert_eq!(names(dir.path()), ["LOCK", "MANIFEST", "e1-s0-g2.base", "e1-s0-g2.log"]);
    drop((persist, rig));
    assert_eq!(Rig::open(dir.path(), 1, Fsync::No).await.expect("whole").contents(), before);
}

// What could go wrong: keys are lost or doubled on their way to another worker, or a flush of one old shard removes what came from
// another.
#[veloq::test]
async fn keys_follow_a_change_of_the_number_of_workers() {
    let dir = temp();
    let mut shards_before = 1;
    let mut contents = Contents::new();
    for shards in [1, 3, 3, 2, 5] {
        let rig = Rig::open(dir.path(), shards, Fsync::No).await.expect("whole");
        assert_eq!(rig.contents(), contents, "{shards_before} to {shards}");
        for n in 0..100 {
            rig.set(&format!("{shards}:{n}"), "value");
        }
        // The last shard's keys go, and it gets one again.
        rig.run(shards - 1, &Record::Flush { db: None });
        for n in 0..10 {
            rig.set(&format!("{shards}:again{n}"), "value");
        }
        contents = rig.contents();
        rig.stop().await;
        shards_before = shards;
    }
    let files = names(dir.path());
    assert!(files.iter().skip(2).all(|name| name.starts_with("e4-")), "{files:?}");
}

// What could go wrong: a change of workers that a crash ended halfway leaves files that a later change mixes in.
#[veloq::test]
async fn a_change_of_workers_counts_only_once_it_is_settled() {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("empty");
    for n in 0..50 {
        rig.set(&format!("key{n}"), "old");
    }
    rig.stop().await;
    let (rig, opened) = Rig::open_unsettled(dir.path(), 4, Fsync::No).await.expect("whole");
    rig.stop().await;
    drop(opened);
    let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("as before");
    rig.set("key1", "new");
    rig.run(0, &Record::Delete { db: 0, key: b"key2" });
    let contents = rig.contents();
    rig.stop().await;
    for shards in [2, 4, 1] {
        let rig = Rig::open(dir.path(), shards, Fsync::No).await.expect("whole");
        assert_eq!(rig.contents(), contents, "{shards}");
        rig.stop().await;
    }
}

// What could go wrong: a write that did not reach the disk is acknowledged, or the log has a hole once there is space again.
#[cfg(target_os = "linux")]
#[veloq::test]
async fn a_disk_that_is_full_acknowledges_nothing_and_recovers() {
    for fsync in [Fsync::Always, Fsync::No] {
        let dir = temp();
        let rig = Rig::open(dir.path(), 1, fsync).await.expect("empty");
        rig.put("before", "1").await.expect("written");
        let persist = Rc::clone(&rig.shards[0].1);
        let full = File::options().write(true).open("/dev/full").await.expect("Linux has it");
        let file = std::mem::replace(&mut persist.log.borrow_mut().file, Rc::new(full));
        let refused = rig.put("during", "1").await;
        if fsync == Fsync::Always {
            let text = refused.expect_err("there is no space").to_string();
            assert!(text.contains("e1-s0-g1.log: No space left on device"), "{text}");
        } else {
            // Nobody waits for the write: it is the next one that is refused.
            while persist.failure().is_none() {
                veloq::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(persist.failure().is_some());
        let refuses = || rig.shards[0].0.borrow().shard.read_only.is_some();
        assert!(refuses());
        persist.durable(persist.ticket()).await.expect("who only reads is not refused");
        rig.put("later", "1").await.expect_err("still no space");
        persist.log.borrow_mut().file = file;
        while persist.failure().is_some() {
            veloq::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!refuses());
        rig.put("after", "1").await.expect("there is space again");
        let contents = rig.contents();
        drop(persist);
        rig.stop().await;
        assert_eq!(Rig::open(dir.path(), 1, fsync).await.expect("whole").contents(), contents);
    }
}

// What could go wrong: the write after one whose sync may have failed succeeds, and what the kernel dropped meanwhile is
// acknowledged.
#[veloq::test]
async fn a_durable_write_that_failed_is_never_forgiven() {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::Always).await.expect("empty");
    let persist = Rc::clone(&rig.shards[0].1);
    // It fails with something else than a lack of space, which therefore may be the sync's.
    let unwritable = File::open("/dev/null").await.expect("every Unix has it");
    let file = std::mem::replace(&mut persist.log.borrow_mut().file, Rc::new(unwritable));
    rig.put("key", "value").await.expect_err("it is not on the disk");
    persist.log.borrow_mut().file = file;
    rig.put("key", "value").await.expect_err("not any more");
    persist.stop().await.expect_err("and it is said at the end");
}

// What could go wrong: the last sync fails, and the server ends as if all were well.
#[veloq::test]
async fn a_sync_that_failed_is_said_at_the_end() {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("empty");
    let persist = Rc::clone(&rig.shards[0].1);
    // It takes every write, and cannot be synced.
    let null = File::options().write(true).open("/dev/null").await.expect("every Unix has it");
    persist.log.borrow_mut().file = Rc::new(null);
    rig.put("key", "value").await.expect("nobody asked for a sync");
    persist.stop().await.expect_err("it is synced at the end");
}

// What could go wrong: with a slow disk and no sync to wait for, clients fill the memory with what is to be written.
#[veloq::test]
async fn writers_wait_when_too_much_is_to_be_written() {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("empty");
    let value = "x".repeat(1024 * 1024);
    rig.set("key", &value);
    let persist = Rc::clone(&rig.shards[0].1);
    let poll = |future: std::pin::Pin<&mut dyn Future<Output = Result<(), PersistError>>>| {
        future.poll(&mut Context::from_waker(Waker::noop()))
    };
    assert!(poll(pin!(persist.durable(persist.ticket()))).is_ready());
    for _ in 0..BACKLOG_MAX / value.len() {
        rig.set("key", &value);
    }
    let mut durable = pin!(persist.durable(persist.ticket()));
    assert!(poll(durable.as_mut()).is_pending());
    durable.await.expect("written");
    rig.stop().await;
}

// What could go wrong: who waits for room is never told of it, or takes it for room that the disk refuses writes.
#[veloq::test]
async fn a_shard_that_is_behind_has_room_again_when_the_log_has_what_it_journalled() {
    for fsync in [Fsync::Always, Fsync::No] {
        let dir = temp();
        let rig = Rig::open(dir.path(), 1, fsync).await.expect("empty");
        let (state, persist) = &rig.shards[0];
        let value = "x".repeat(16 * 1024 * 1024);
        for round in 0..2 {
            for _ in 0..=BACKLOG_MAX / value.len() {
                rig.set("key", &value);
            }
            let is_behind = || state.borrow().shard.is_behind(&state.borrow().journal);
            assert!(is_behind());
            // One waits before the committer has begun, the other meets it at work.
            let mut room = pin!(persist.room());
            assert!(room.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "{round}");
            persist.room().await;
            assert!(!is_behind(), "{fsync} {round}");
            room.await;
        }
        rig.stop().await;
    }
}

#[veloq::test]
async fn a_directory_has_one_server() {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("empty");
    let text = Rig::open(dir.path(), 1, Fsync::No).await.err().expect("in use").to_string();
    assert!(text.ends_with("is in use by another server"), "{text}");
    rig.stop().await;
    drop(Rig::open(dir.path(), 1, Fsync::No).await.expect("free again"));
}

#[veloq::test]
async fn files_that_others_build_on_are_missed() {
    let dir = temp();
    let rig = Rig::open(dir.path(), 1, Fsync::No).await.expect("empty");
    rig.shards[0].1.compact();
    while rig.shards[0].1.stats().compactions == 0 {
        veloq::time::sleep(Duration::from_millis(1)).await;
    }
    rig.stop().await;
    for name in ["e1-s0-g2.base", "e1-s0-g2.log", "MANIFEST"] {
        let broken = copy(dir.path());
        std::fs::remove_file(broken.path().join(name)).expect("it is there");
        let text = Rig::open(broken.path(), 1, Fsync::No).await.err().expect("it is not whole").to_string();
        assert!(text.ends_with("is missing, and files beside it build on it"), "{name}: {text}");
    }
}
