//! Promise: files behave as std's do, and an operation owns its buffer whatever becomes of its future.
//!
//! std's file system calls are the oracle: what Veloq writes, std reads, the other way round, and where std fails Veloq
//! fails with the same kind of error. What std does not have (Direct I/O, allocation, owned buffers) is checked against
//! what the kernel then shows.

#[path = "system/file.rs"]
mod file;

use std::fs as oracle;
use std::future::{Future, poll_fn};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::Poll;

use file::descriptors_of;
use tempfile::TempDir;
use veloq::fs::{self, Buffering, File, Misaligned, OpenOptions};
use veloq::io::buf::{BuddyPool, BufPool, FixedBuf, IoBuf};

/// A directory of the test's own, on the disk that the tree is built on: /tmp may be one that knows no Direct I/O.
fn dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

/// `len` bytes without a period that a wrong offset could hide behind.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A buffer of the worker's pool that holds `content`.
fn pooled(content: &[u8]) -> FixedBuf {
    let mut buf = veloq::alloc(content.len());
    buf.extend_from_slice(content);
    buf
}

/// A file that can be read and written, for Direct I/O; `None`, with a word on stderr, where the file system has none.
async fn open_direct(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).buffering(Buffering::Direct);
    match options.open(path).await {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            eprintln!("{} is on a file system without Direct I/O", path.display());
            None
        }
        opened => Some(opened.expect("a file for Direct I/O")),
    }
}

/// Polls a future once; it must not be ready.
async fn poll_once<F: Future + Unpin>(future: &mut F) {
    let pending = poll_fn(|cx| Poll::Ready(pin!(&mut *future).poll(cx).is_pending())).await;
    assert!(pending, "an operation is submitted by its first poll, and answered later");
}

// If offsets, lengths or buffers were mixed up on the way to the kernel, std would find other bytes.
#[veloq::test]
async fn what_is_written_from_any_buffer_is_what_std_reads() {
    let dir = dir();
    let path = dir.path().join("file");
    let bytes = pattern(40_000);
    let file = File::create(&path).await.expect("a new file");
    let (written, fixed) = file.write_at(pooled(&bytes[..10_000]), 0).await;
    assert_eq!(written.expect("a write"), 10_000);
    assert_eq!(fixed[..], bytes[..10_000], "the buffer comes back as it was");
    let (written, _) = file.write_at(bytes[10_000..20_000].to_vec(), 10_000).await;
    assert_eq!(written.expect("a write"), 10_000);
    let parts = (pooled(&bytes[20_000..25_000]), bytes[25_000..30_000].to_vec(), "");
    let (written, _) = file.write_vectored_at(parts, 20_000).await;
    assert_eq!(written.expect("a write"), 10_000);
    let slice = bytes.clone().slice(30_000..);
    let (written, slice) = file.write_all_at(slice, 30_000).await;
    written.expect("a write");
    assert_eq!(slice.into_inner(), bytes);
    assert_eq!(oracle::read(&path).expect("the file"), bytes);
}

// A read that filled the wrong part of a buffer, or set a wrong length, would show other bytes than std wrote.
#[veloq::test]
async fn what_std_wrote_is_what_any_buffer_reads() {
    let dir = dir();
    let path = dir.path().join("file");
    let bytes = pattern(40_000);
    oracle::write(&path, &bytes).expect("a new file");
    let file = File::open(&path).await.expect("the file");
    let (read, fixed) = file.read_at(veloq::alloc(10_000), 1).await;
    assert_eq!((read.expect("a read"), &fixed[..]), (10_000, &bytes[1..10_001]));
    let (read, boxed) = file.read_at(vec![0; 777].into_boxed_slice(), 30_000).await;
    assert_eq!((read.expect("a read"), &boxed[..]), (777, &bytes[30_000..30_777]));
    let (read, parts) = file.read_vectored_at([veloq::alloc(5_000), FixedBuf::heap(3_000)], 5).await;
    assert_eq!(read.expect("a read"), 8_000);
    assert_eq!((&parts[0][..], &parts[1][..]), (&bytes[5..5_005], &bytes[5_005..8_005]));
    let slice = vec![b'-'; 10].slice(2..5);
    let (read, slice) = file.read_exact_at(slice, 100).await;
    read.expect("a read");
    let whole = slice.into_inner();
    assert_eq!((&whole[..2], &whole[2..5], &whole[5..]), (&b"--"[..], &bytes[100..103], &b"-----"[..]));
}

// The end of a file is not an error, but it is one for who wants the buffer full.
#[veloq::test]
async fn a_read_ends_where_the_file_ends() {
    let dir = dir();
    let path = dir.path().join("file");
    oracle::write(&path, b"0123456789").expect("a new file");
    let file = File::open(&path).await.expect("the file");
    let (read, buf) = file.read_at(veloq::alloc(100), 6).await;
    assert_eq!((read.expect("a read"), &buf[..]), (4, &b"6789"[..]));
    for offset in [10, 11, 1 << 40] {
        let (read, buf) = file.read_at(vec![7; 3], offset).await;
        assert_eq!((read.expect("the end is no error"), buf.len()), (0, 0));
    }
    let (read, buf) = file.read_exact_at(veloq::alloc(100), 6).await;
    assert_eq!(read.expect_err("it is too short").kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(buf[..], *b"6789", "what there was is in the buffer");
    let (read, buf) = file.read_exact_at(veloq::alloc(4), 6).await;
    read.expect("it ends exactly there");
    assert_eq!(buf[..], *b"6789");
}

// A length of zero reaches the kernel as any other; an empty buffer must not become an end of file or a loop.
#[veloq::test]
async fn empty_buffers_transfer_nothing() {
    let dir = dir();
    let path = dir.path().join("file");
    oracle::write(&path, b"content").expect("a new file");
    let file = File::options().read(true).write(true).open(&path).await.expect("the file");
    assert_eq!(file.read_at(Vec::new(), 0).await.0.expect("nothing"), 0);
    assert_eq!(file.write_at("", 100).await.0.expect("nothing"), 0);
    file.read_exact_at(veloq::alloc(0), 1 << 40).await.0.expect("an empty buffer is full");
    file.write_all_at(Vec::new(), 100).await.0.expect("no bytes are all written");
    assert_eq!(file.read_vectored_at(Vec::<Vec<u8>>::new(), 0).await.0.expect("nothing"), 0);
    assert_eq!(oracle::read(&path).expect("the file"), b"content");
}

// An offset that lost its upper half on the way would land at the beginning.
#[veloq::test]
async fn offsets_beyond_32_bits_leave_a_hole() {
    const FAR: u64 = 5 * (1 << 30) + 123;
    let dir = dir();
    let path = dir.path().join("sparse");
    let file = File::options().read(true).write(true).create(true).open(&path).await.expect("a new file");
    file.write_all_at("far away", FAR).await.0.expect("a write");
    let metadata = file.metadata().await.expect("its metadata");
    assert_eq!(metadata.len(), FAR + 8);
    #[cfg(unix)]
    assert!(metadata.blocks() * 512 < 1 << 20, "the hole takes no space");
    let mut buf = [1; 8];
    let same = oracle::File::open(&path).expect("the file");
    assert_eq!(file::read_at(&same, &mut buf, FAR).expect("a read"), 8);
    assert_eq!(&buf, b"far away");
    let (read, hole) = file.read_exact_at(vec![1; 4096].into_boxed_slice(), 3 << 30).await;
    read.expect("a hole can be read");
    assert!(hole.iter().all(|byte| *byte == 0));
}

// To a ring, an offset of -1 is the file's cursor: the largest `u64` would read from there instead of failing.
#[veloq::test]
async fn offsets_that_are_negative_to_the_kernel_are_refused() {
    let dir = dir();
    let path = dir.path().join("file");
    oracle::write(&path, b"content").expect("a new file");
    let file = File::options().read(true).write(true).open(&path).await.expect("the file");
    let same = oracle::File::open(&path).expect("the file");
    for offset in [u64::MAX, u64::MAX - 1, 1 << 63] {
        // To Windows some of these mean "at the cursor" or "at the end", and std passes them on.
        let theirs = file::read_at(&same, &mut [0; 4], offset);
        let kind = theirs.err().map_or(io::ErrorKind::InvalidInput, |error| error.kind());
        assert_eq!(kind, io::ErrorKind::InvalidInput);
        let (read, buf) = file.read_at(vec![7; 4], offset).await;
        assert_eq!(read.expect_err("a negative offset").kind(), kind);
        assert_eq!(buf, [7; 4], "the buffer comes back");
        let (written, buf) = file.write_at("gone", offset).await;
        assert_eq!(written.expect_err("a negative offset").kind(), kind);
        assert_eq!(buf, "gone");
    }
}

// Linux appends whatever the offset; a program that opens a log this way must not overwrite its beginning.
#[veloq::test]
async fn a_file_opened_to_append_is_written_at_its_end() {
    let dir = dir();
    let path = dir.path().join("log");
    for line in ["one\n", "two\n", "three\n"] {
        let file = File::options().append(true).create(true).open(&path).await.expect("the log");
        file.write_all_at(line, 0).await.0.expect("a write");
        file.close().await.expect("nothing is in flight");
    }
    assert_eq!(oracle::read_to_string(&path).expect("the log"), "one\ntwo\nthree\n");
}

// Options that are refused, or not, unlike std would make a port of a program fail in ways nobody expects.
#[veloq::test]
async fn every_combination_of_options_opens_or_fails_as_with_std() {
    for bits in 0..128_u32 {
        let on = |bit: u32| bits & (1 << bit) != 0;
        let open = |path: &Path| {
            let mut ours = OpenOptions::new();
            ours.read(on(0)).write(on(1)).append(on(2)).truncate(on(3)).create(on(4)).create_new(on(5));
            let mut theirs = oracle::OpenOptions::new();
            theirs.read(on(0)).write(on(1)).append(on(2)).truncate(on(3)).create(on(4)).create_new(on(5));
            #[cfg(unix)]
            {
                ours.mode(0o640);
                std::os::unix::fs::OpenOptionsExt::mode(&mut theirs, 0o640);
            }
            (ours, theirs.open(path))
        };
        let dir = dir();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        if on(6) {
            oracle::write(&one, b"before").expect("a file");
            oracle::write(&other, b"before").expect("a file");
        }
        let (ours, theirs) = open(&other);
        let opened = ours.open(&one).await;
        match (&opened, &theirs) {
            (Ok(_), Ok(_)) => {}
            (Err(ours), Err(theirs)) => assert_eq!(ours.kind(), theirs.kind(), "{bits:#b}"),
            _ => panic!("{bits:#b}: {opened:?}, but std {theirs:?}"),
        }
        let look = |path: &Path| {
            oracle::read(path)
                .ok()
                .map(|content| (content, oracle::metadata(path).expect("it is there").permissions()))
        };
        assert_eq!(look(&one), look(&other), "{bits:#b}");
    }
}

// `create_new` is how programs take a lock: two winners would be one too many.
#[veloq::test]
async fn of_several_that_create_a_file_one_succeeds() {
    let dir = dir();
    let path = dir.path().join("lock");
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let all = futures_util::future::join_all((0..20).map(|_| options.open(&path))).await;
    assert_eq!(all.iter().filter(|opened| opened.is_ok()).count(), 1);
    for error in all.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}

// A program matches on the kind of an error; each of these has another road to the kernel.
#[veloq::test]
async fn errors_are_of_the_kind_that_std_has() {
    #[track_caller]
    fn same<T, U>(ours: io::Result<T>, theirs: io::Result<U>) {
        let (ours, theirs) = (ours.err().expect("it fails"), theirs.err().expect("it fails with std"));
        assert_eq!((ours.kind(), ours.raw_os_error()), (theirs.kind(), theirs.raw_os_error()));
    }
    let dir = dir();
    let (here, missing, file) = (dir.path(), dir.path().join("missing"), dir.path().join("file"));
    oracle::write(&file, b"content").expect("a file");
    let below = file.join("below");
    same(File::open(&missing).await, oracle::File::open(&missing));
    same(File::open(&below).await, oracle::File::open(&below));
    same(File::create(here).await, oracle::File::create(here));
    same(fs::read(here).await, oracle::read(here));
    same(fs::metadata(&missing).await, oracle::metadata(&missing));
    let kind = |error: io::Error| error.kind();
    assert_eq!(fs::exists(&below).await.map_err(kind), oracle::exists(&below).map_err(kind));
    same(fs::rename(&missing, &below).await, oracle::rename(&missing, &below));
    same(fs::remove_file(&missing).await, oracle::remove_file(&missing));
    same(fs::remove_file(here).await, oracle::remove_file(here));
    same(fs::remove_dir(&file).await, oracle::remove_dir(&file));
    same(fs::remove_dir(here).await, oracle::remove_dir(here));
    same(fs::create_dir(here).await, oracle::create_dir(here));
    same(fs::create_dir(missing.join("x")).await, oracle::create_dir(missing.join("x")));
    same(fs::create_dir_all(&below).await, oracle::create_dir_all(&below));
    same(fs::create_dir_all(&file).await, oracle::create_dir_all(&file));
    let (read_only, theirs) =
        (File::open(&file).await.expect("a file"), oracle::File::open(&file).expect("a file"));
    same(read_only.write_at("x", 0).await.0, file::write_at(&theirs, b"x", 0));
    same(read_only.set_len(1).await, theirs.set_len(1));
    let open = oracle::OpenOptions::new().write(true).open(&file).expect("a file");
    same(
        File::from_std(open.try_clone().expect("its twin")).read_at(vec![0; 1], 0).await.0,
        file::read_at(&open, &mut [0], 0),
    );
}

// What root may do anyway cannot be refused to it. Windows has lists of who may do what, which std does not set.
#[cfg(unix)]
#[veloq::test]
async fn a_file_without_permission_is_denied() {
    let dir = dir();
    let path = dir.path().join("secret");
    oracle::write(&path, b"secret").expect("a file");
    oracle::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o0)).expect("it is ours");
    match oracle::File::open(&path) {
        Ok(_) => eprintln!("nothing is denied to the user who runs this test"),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(File::open(&path).await.err().map(|error| error.kind()), Some(error.kind()));
        }
    }
}

// The kernel would stop at the zero byte, and act on another file than the one that was named.
#[veloq::test]
async fn paths_with_a_zero_byte_are_refused() {
    let dir = dir();
    let path = dir.path().join("file");
    oracle::write(&path, b"content").expect("a file");
    let longer = PathBuf::from(format!("{}\0.txt", path.display()));
    let invalid = |result: io::Result<()>| {
        assert_eq!(result.expect_err("no such path").kind(), io::ErrorKind::InvalidInput);
    };
    invalid(File::open(&longer).await.map(drop));
    invalid(fs::metadata(&longer).await.map(drop));
    invalid(fs::symlink_metadata(&longer).await.map(drop));
    invalid(fs::remove_file(&longer).await);
    invalid(fs::remove_dir(&longer).await);
    invalid(fs::create_dir(&longer).await);
    invalid(fs::create_dir_all(&longer).await);
    invalid(fs::rename(&longer, &path).await);
    invalid(fs::rename(&path, &longer).await);
    let (written, content) = fs::write(&longer, "new").await;
    invalid(written);
    assert_eq!(content, "new", "the buffer comes back");
    assert_eq!(oracle::read(&path).expect("the file"), b"content");
}

// A field read from a wrong place in the kernel's answer would differ from what std sees.
#[veloq::test]
async fn metadata_is_what_std_reports() {
    let dir = dir();
    let path = dir.path().join("file");
    oracle::write(&path, pattern(12_345)).expect("a file");
    let mut permissions = oracle::metadata(&path).expect("it is there").permissions();
    permissions.set_readonly(true);
    oracle::set_permissions(&path, permissions).expect("it is ours");
    for path in [path.as_path(), dir.path()] {
        let theirs = oracle::metadata(path).expect("it is there");
        same_status(&fs::metadata(path).await.expect("it is there"), &theirs);
        same_status(&fs::symlink_metadata(path).await.expect("it is there"), &theirs);
    }
    let open = File::open(&path).await.expect("it can be opened");
    let theirs = oracle::metadata(&path).expect("it is there");
    same_status(&open.metadata().await.expect("it is open"), &theirs);
    // Windows removes no file that may not be written.
    let mut permissions = theirs.permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "the file is gone in a moment")]
    permissions.set_readonly(false);
    oracle::set_permissions(&path, permissions).expect("it is ours");
}

fn same_status(ours: &fs::Metadata, theirs: &oracle::Metadata) {
    assert_eq!(ours.len(), theirs.len());
    assert_eq!(ours.permissions(), theirs.permissions());
    assert_eq!(ours.modified().expect("a time"), theirs.modified().expect("a time"));
    assert_eq!(ours.accessed().expect("a time"), theirs.accessed().expect("a time"));
    assert_eq!(ours.created().ok(), theirs.created().ok());
    let (our_type, their_type) = (ours.file_type(), theirs.file_type());
    assert_eq!(our_type.is_dir(), their_type.is_dir());
    assert_eq!(our_type.is_file(), their_type.is_file());
    assert_eq!(our_type.is_symlink(), their_type.is_symlink());
    #[cfg(windows)]
    assert_eq!(ours.file_attributes(), std::os::windows::fs::MetadataExt::file_attributes(theirs));
}

// The same of what only a Unix keeps: modes, owners, inodes, links, devices.
#[cfg(unix)]
#[veloq::test]
async fn metadata_of_a_unix_is_what_std_reports() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let dir = dir();
    let path = dir.path().join("file");
    oracle::write(&path, pattern(12_345)).expect("a file");
    oracle::hard_link(&path, dir.path().join("again")).expect("another name");
    oracle::set_permissions(&path, oracle::Permissions::from_mode(0o751)).expect("it is ours");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    let same = |ours: &fs::Metadata, theirs: &oracle::Metadata| {
        same_status(ours, theirs);
        assert_eq!(ours.mode(), theirs.mode());
        assert_eq!((ours.uid(), ours.gid()), (theirs.uid(), theirs.gid()));
        assert_eq!(
            (ours.ino(), ours.nlink(), ours.blocks()),
            (theirs.ino(), theirs.nlink(), theirs.blocks())
        );
    };
    for path in [path.as_path(), link.as_path(), dir.path(), Path::new("/dev/null")] {
        same(&fs::metadata(path).await.expect("it is there"), &oracle::metadata(path).expect("it is there"));
        let theirs = oracle::symlink_metadata(path).expect("it is there");
        same(&fs::symlink_metadata(path).await.expect("it is there"), &theirs);
        let open = File::open(path).await.expect("it can be opened");
        same(&open.metadata().await.expect("it is open"), &oracle::metadata(path).expect("it is there"));
    }
    assert!(fs::metadata("/dev/null").await.expect("it is there").file_type().is_char_device());
}

// A grown part that is not zeros, or a cut that keeps bytes, would show in what std reads.
#[veloq::test]
async fn set_len_grows_with_zeros_and_cuts() {
    let dir = dir();
    let path = dir.path().join("file");
    let file = File::options().read(true).write(true).create(true).open(&path).await.expect("a new file");
    file.write_all_at("content", 0).await.0.expect("a write");
    file.set_len(10).await.expect("it grows");
    assert_eq!(oracle::read(&path).expect("the file"), b"content\0\0\0");
    file.set_len(3).await.expect("it shrinks");
    assert_eq!(oracle::read(&path).expect("the file"), b"con");
    file.set_len(0).await.expect("it shrinks");
    assert_eq!(oracle::read(&path).expect("the file"), b"");
}

// A wrong mode would take space that was to be given back, or lengthen what was to stay. What a file takes on disk is a Unix's to say.
#[cfg(unix)]
#[veloq::test]
async fn space_is_reserved_and_given_back() {
    use veloq::fs::Allocation;

    const MIB: u64 = 1 << 20;
    let dir = dir();
    let path = dir.path().join("file");
    let file = File::options().read(true).write(true).create(true).open(&path).await.expect("a new file");
    if let Err(error) = file.allocate_as(Allocation::KeepSize, 0, MIB).await {
        assert_eq!(error.kind(), io::ErrorKind::Unsupported, "only a file system that cannot may refuse");
        return;
    }
    let look = || {
        let found = oracle::metadata(&path).expect("it is there");
        (found.len(), std::os::unix::fs::MetadataExt::blocks(&found) * 512)
    };
    assert_eq!(look().0, 0);
    assert!(look().1 >= MIB);
    file.allocate(0, 2 * MIB).await.expect("there is space");
    assert_eq!(look().0, 2 * MIB);
    let bytes = pattern(100_000);
    file.write_all_at(bytes.clone(), 0).await.0.expect("a write");
    file.sync_data().await.expect("a sync");
    let before = look().1;
    file.allocate_as(Allocation::PunchHole, 0, 65_536).await.expect("a hole");
    assert_eq!(look().0, 2 * MIB);
    assert!(look().1 < before, "a hole gives space back");
    let content = oracle::read(&path).expect("the file");
    assert!(content[..65_536].iter().all(|byte| *byte == 0));
    assert_eq!(content[65_536..100_000], bytes[65_536..]);
    assert_eq!(file.allocate(0, 0).await.expect_err("no range").kind(), io::ErrorKind::InvalidInput);
}

// Programs put their own files in place of others by rename, and build directories as they go.
#[veloq::test]
async fn names_are_given_and_taken() {
    let dir = dir();
    let (deep, from, to) = (dir.path().join("a/b/c"), dir.path().join("from"), dir.path().join("a/b/c/to"));
    fs::create_dir_all(&deep).await.expect("three directories");
    fs::create_dir_all(&deep).await.expect("they are there");
    fs::create_dir_all("").await.expect("as std has it");
    fs::write(&from, "new").await.0.expect("a file");
    fs::write(&to, "the old content").await.0.expect("a file");
    fs::rename(&from, &to).await.expect("another name");
    assert!(!fs::exists(&from).await.expect("it can be asked"));
    assert_eq!(fs::read_to_string(&to).await.expect("the file"), "new");
    fs::remove_file(&to).await.expect("it is there");
    fs::remove_dir(&deep).await.expect("it is empty");
    assert!(!oracle::exists(&deep).expect("it can be asked"));
    fs::sync_dir(dir.path()).await.expect("a directory can be synced");
    fs::sync_dir(&deep).await.expect_err("one that is not there cannot");
    fs::write(dir.path().join("file"), "").await.0.expect("a file");
    let file = fs::sync_dir(dir.path().join("file")).await.expect_err("a file is no directory");
    assert_eq!(file.kind(), io::ErrorKind::NotADirectory);
}

// A batch boundary is where an entry could be lost or listed twice, and a dropped future where a batch could.
#[veloq::test]
async fn a_directory_lists_what_std_lists() {
    let dir = dir();
    for name in 0..1000 {
        oracle::write(dir.path().join(format!("file {name}")), "").expect("a file");
    }
    oracle::create_dir(dir.path().join("below")).expect("a directory");
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", dir.path().join("link")).expect("a link");
    #[cfg(unix)]
    let number = (std::os::unix::fs::DirEntryExt::ino, fs::DirEntry::ino);
    #[cfg(windows)]
    let number = (|_: &oracle::DirEntry| 0, |_: &fs::DirEntry| 0);
    let theirs = oracle::read_dir(dir.path()).expect("the directory").map(|entry| {
        let entry = entry.expect("an entry");
        let file_type = entry.file_type().expect("its type");
        (entry.path(), file_type.is_dir(), file_type.is_symlink(), number.0(&entry))
    });
    let mut theirs: Vec<_> = theirs.collect();
    let mut entries = fs::read_dir(dir.path()).await.expect("the directory");
    let mut ours = Vec::new();
    loop {
        let dropped = poll_fn(|cx| Poll::Ready(pin!(entries.next_entry()).poll(cx))).await;
        let entry = match dropped {
            Poll::Ready(entry) => entry,
            Poll::Pending => entries.next_entry().await,
        };
        let Some(entry) = entry.expect("an entry") else { break };
        let file_type = entry.file_type();
        ours.push((entry.path().to_owned(), file_type.is_dir(), file_type.is_symlink(), number.1(&entry)));
        if file_type.is_symlink() {
            assert!(entry.metadata().await.expect("the link's own").is_symlink());
            assert_eq!(entry.file_name(), "link");
        }
    }
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
    let (missing, file) = (dir.path().join("link"), dir.path().join("file 0"));
    for path in [file, missing] {
        let kind = oracle::read_dir(&path).expect_err("no directory").kind();
        assert_eq!(fs::read_dir(&path).await.expect_err("no directory").kind(), kind);
    }
}

// /proc reports lengths of zero; a read that trusted them would come back empty.
#[veloq::test]
async fn whole_files_are_read_whatever_length_they_report() {
    let dir = dir();
    let path = dir.path().join("file");
    for len in [0, 1, 4096, 1_000_003] {
        let bytes = pattern(len);
        fs::write(&path, bytes.clone()).await.0.expect("a file");
        assert_eq!(fs::read(&path).await.expect("the file"), bytes);
    }
    #[cfg(target_os = "linux")]
    {
        let status = fs::read_to_string("/proc/self/status").await.expect("a text");
        assert!(status.contains("Threads:"), "{status}");
        // It says its number to the first read, and nothing to one that begins after the first digit.
        let number = "/proc/sys/kernel/pid_max";
        assert_eq!(fs::read(number).await.expect("a number"), oracle::read(number).expect("a number"));
    }
    oracle::write(&path, [0xff]).expect("a file");
    assert_eq!(fs::read_to_string(&path).await.expect_err("no text").kind(), io::ErrorKind::InvalidData);
}

// Direct I/O that went through the cache would pass any test of content; O_DIRECT must stand in the file's flags.
#[veloq::test]
async fn direct_io_moves_aligned_blocks_by_any_buffer() {
    let dir = dir();
    let path = dir.path().join("blocks");
    let Some(file) = open_direct(&path).await else { return };
    let alignment = file.direct_alignment().expect("a file for Direct I/O has one");
    assert!(alignment.memory.is_power_of_two() && alignment.offset.is_power_of_two(), "{alignment:?}");
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;

        let info = oracle::read_to_string(format!(
            "/proc/self/fdinfo/{}",
            file.as_fd().expect("its descriptor").as_raw_fd()
        ));
        let flags = info
            .expect("/proc is mounted")
            .lines()
            .find_map(|line| line.strip_prefix("flags:").map(str::to_owned));
        let flags = i32::from_str_radix(flags.expect("it has flags").trim(), 8).expect("octal");
        assert_ne!(flags & libc::O_DIRECT, 0, "it is open for Direct I/O");
    }

    let bytes = pattern(64 * 1024);
    file.write_all_at(pooled(&bytes[..32 * 1024]), 0).await.0.expect("from a registered buffer");
    let mut heap = FixedBuf::heap(16 * 1024);
    heap.extend_from_slice(&bytes[32 * 1024..48 * 1024]);
    file.write_all_at(heap, 32 * 1024).await.0.expect("from plain memory");
    let parts = (pooled(&bytes[48 * 1024..56 * 1024]), pooled(&bytes[56 * 1024..]));
    assert_eq!(file.write_vectored_at(parts, 48 * 1024).await.0.expect("from several"), 16 * 1024);
    assert_eq!(oracle::read(&path).expect("the file"), bytes);
    let (read, buf) = file.read_exact_at(veloq::alloc(64 * 1024), 0).await;
    read.expect("a read");
    assert_eq!(buf[..], bytes);

    // A tail that is no block: cut, it ends a read in the middle, which is no error until more is wanted.
    file.set_len(10_000).await.expect("it is cut");
    let (read, buf) = file.read_at(veloq::alloc(16 * 1024), 0).await;
    assert_eq!((read.expect("a read"), &buf[..]), (10_000, &bytes[..10_000]));
    let (read, _) = file.read_exact_at(veloq::alloc(16 * 1024), 0).await;
    assert_eq!(read.expect_err("it is too short").kind(), io::ErrorKind::UnexpectedEof);
}

// The kernel's answer to these is a bare EINVAL, or a silent detour through the page cache.
#[veloq::test]
async fn direct_io_says_what_is_misaligned_and_gives_the_buffer_back() {
    fn wrong(result: io::Result<usize>) -> Misaligned {
        let error = result.expect_err("it is misaligned");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        *error.get_ref().and_then(|source| source.downcast_ref::<Misaligned>()).expect("with its reason")
    }
    let dir = dir();
    let path = dir.path().join("blocks");
    let Some(file) = open_direct(&path).await else { return };
    let alignment = file.direct_alignment().expect("a file for Direct I/O has one");

    let (read, buf) = file.read_at(veloq::alloc(8192), 1).await;
    assert_eq!((wrong(read).what(), buf.capacity()), ("offset", 8192));
    let (written, buf) = file.write_at(pooled(&[7; 4095]), 0).await;
    assert_eq!((wrong(written).alignment(), buf.len()), (alignment.offset, 4095));
    let (written, parts) = file.write_vectored_at((pooled(&[7; 4096]), "odd"), 0).await;
    assert_eq!((wrong(written).value(), parts.1), (3, "odd"));
    let (read, _) = file.read_vectored_at([veloq::alloc(4096), veloq::alloc(1)], 0).await;
    assert_eq!(wrong(read).what(), "length");
    if alignment.memory > 1 {
        let inside = pooled(&[7; 8192]).slice(1..4097);
        assert_eq!(wrong(file.write_at(inside, 0).await.0).what(), "address");
    }
    file.write_at("", 1).await.0.expect("nothing is aligned to anything");
    assert_eq!(oracle::metadata(&path).expect("it is there").len(), 0, "nothing reached the file");
}

// A file that came with O_DIRECT from elsewhere must be treated as one that Veloq opened so.
#[veloq::test]
async fn a_file_of_std_goes_both_ways() {
    let dir = dir();
    let path = dir.path().join("file");
    let theirs =
        oracle::File::options().read(true).write(true).create_new(true).open(&path).expect("a new file");
    let ours = File::from_std(theirs);
    assert_eq!(ours.direct_alignment(), None);
    ours.write_all_at("content", 0).await.0.expect("a write");
    let number = number_of(&ours);
    let theirs = ours.into_std().expect("it has a descriptor");
    assert_eq!(number_of_std(&theirs), number, "the same descriptor");
    let mut buf = [0; 7];
    assert_eq!(file::read_at(&theirs, &mut buf, 0).expect("a read"), 7);
    assert_eq!(&buf, b"content");
    let mut options = oracle::File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT);
    #[cfg(windows)]
    std::os::windows::fs::OpenOptionsExt::custom_flags(
        &mut options,
        windows_sys::Win32::Storage::FileSystem::FILE_FLAG_NO_BUFFERING,
    );
    if let Ok(direct) = options.open(&path) {
        let ours = File::from(direct);
        assert!(ours.direct_alignment().is_some());
        assert_eq!(
            ours.read_at(veloq::alloc(4096), 7).await.0.expect_err("7").kind(),
            io::ErrorKind::InvalidInput
        );
    }
}

#[cfg(unix)]
fn number_of(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&file.as_fd().expect("its descriptor"))
}

#[cfg(unix)]
fn number_of_std(file: &oracle::File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

#[cfg(windows)]
fn number_of(file: &File) -> usize {
    std::os::windows::io::AsRawHandle::as_raw_handle(file).addr()
}

#[cfg(windows)]
fn number_of_std(file: &oracle::File) -> usize {
    std::os::windows::io::AsRawHandle::as_raw_handle(file).addr()
}

// A direct descriptor has no number; calls that need one must say so instead of naming another file. Only a ring has such.
#[cfg(target_os = "linux")]
#[veloq::test]
async fn a_direct_descriptor_reads_and_writes_and_has_no_number() {
    let dir = dir();
    let path = dir.path().join("file");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).direct_descriptor(true);
    let file = options.open(&path).await.expect("the ring has a table");
    assert_eq!(descriptors_of(&path), 0);
    file.write_all_at(pooled(b"content"), 0).await.0.expect("a write");
    file.sync_all().await.expect("a sync");
    file.set_len(4).await.expect("it is cut");
    assert_eq!(file.read_at(vec![0; 10], 0).await.1, b"cont");
    let unsupported = |result: io::Result<()>| {
        assert_eq!(result.expect_err("it has no number").kind(), io::ErrorKind::Unsupported);
    };
    unsupported(file.as_fd().map(drop));
    unsupported(file.metadata().await.map(drop));
    file.close().await.expect("nothing is in flight");
    let file = options.open(&path).await.expect("the ring has a table");
    unsupported(file.into_std().map(drop));
}

// A descriptor that stays open after its file is a leak; one closed too early is somebody else's file.
#[veloq::test]
async fn a_file_is_closed_once_by_drop_or_by_close() {
    let dir = dir();
    let path = dir.path().join("file").canonicalize().unwrap_or_else(|_| dir.path().join("file"));
    let file = File::create(&path).await.expect("a new file");
    assert_eq!(descriptors_of(&path), 1);
    drop(file);
    assert_eq!(descriptors_of(&path), 0);
    let file = File::create(&path).await.expect("the file");
    file.close().await.expect("nothing is in flight");
    assert_eq!(descriptors_of(&path), 0);
    let file = File::create(&path).await.expect("the file");
    let mut write = file.write_at(vec![7; 1000], 0);
    poll_once(&mut write).await;
    let busy = file.close().await.expect_err("a write is in flight");
    assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(write.await.0.expect("the write goes on"), 1000);
    assert_eq!(descriptors_of(&path), 0, "the last operation closes it");
}

// If a dropped future freed its buffer, the kernel would write into freed memory; if nobody did, it would leak.
#[veloq::test]
async fn dropped_transfers_give_their_buffers_and_descriptors_back() {
    let dir = dir();
    let path = dir.path().join("file");
    oracle::write(&path, pattern(1 << 20)).expect("a file");
    let pool = BuddyPool::new(32 << 20).expect("32 MiB can be mapped");
    let file = File::options().read(true).write(true).open(&path).await.expect("the file");
    for round in 0..200 {
        let mut read = file.read_at(pool.alloc(64 * 1024), round * 512);
        if round % 4 != 0 {
            poll_once(&mut read).await;
        }
        drop(read);
        let mut read = file.read_at(veloq::alloc(64 * 1024), round * 512);
        poll_once(&mut read).await;
        drop(read);
        let mut open = Box::pin(File::open(&path));
        poll_once(&mut open).await;
        drop(open);
    }
    // Each turn reaps what has been answered; a few hundred operations of the kernel's own take some of them.
    for _ in 0..10_000 {
        if pool.stats().blocks_out == 0 && descriptors_of(&path) == 1 {
            break;
        }
        let (read, _) = file.read_at(vec![0; 1], 0).await;
        read.expect("the file is there");
    }
    assert_eq!(pool.stats().blocks_out, 0, "every buffer came back, once");
    assert_eq!(pool.stats().misses, 0, "and all of them were the pool's");
    assert_eq!(descriptors_of(&path), 1, "every abandoned open was closed");
    file.close().await.expect("and no operation holds the file");
}

// Many transfers share one file and one ring; each must get its own answer.
#[veloq::test]
async fn transfers_in_flight_together_keep_their_offsets() {
    const PART: usize = 4096;
    let dir = dir();
    let path = dir.path().join("file");
    let bytes = pattern(300 * PART);
    let file = File::options().read(true).write(true).create(true).open(&path).await.expect("a new file");
    let at = |index: usize| u64::try_from(index * PART).expect("a small file");
    let parts = bytes.chunks(PART).enumerate();
    let writes = parts.map(|(index, part)| file.write_all_at(pooled(part), at(index)));
    for (written, _) in futures_util::future::join_all(writes).await {
        written.expect("a write");
    }
    assert_eq!(oracle::read(&path).expect("the file"), bytes);
    let path = path.as_path();
    let reads = (0..300).rev().map(async |index| (index, file_part(path, index).await));
    for (index, part) in futures_util::future::join_all(reads).await {
        assert_eq!(part[..], bytes[index * PART..][..PART]);
    }

    async fn file_part(path: &Path, index: usize) -> FixedBuf {
        let file = File::open(path).await.expect("the file");
        let offset = u64::try_from(index * PART).expect("a small file");
        let (read, buf) = file.read_exact_at(veloq::alloc(PART), offset).await;
        read.expect("a read");
        buf
    }
}
