//! An open file.
//!
//! A [`File`] shares its descriptor, by count, with every operation on it. So a file that is dropped while operations are
//! in flight is closed when the last of them has been answered, and no operation ever meets a number that the kernel has
//! given to somebody else.

use std::io;
use std::path::Path;
use std::rc::Rc;

use super::transfer::transfer;
use super::{Alignment, Metadata, OpenOptions, ReadAt, ReadVectoredAt, WriteAt, WriteVectoredAt};
use crate::io::buf::{BufResult, IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Descriptor, Op, SharedDescriptor};
use crate::io::op::{
    self,
    fs::{Allocate, Allocation, Status, Subject, Sync, Truncate},
    misc::Close,
};
use crate::os;

/// The future of [`File::sync_all`] and [`File::sync_data`].
pub type SyncFile = Op<Sync>;
/// The future of [`File::allocate`] and [`File::allocate_as`].
pub type AllocateFile = Op<Allocate>;

/// An open file. It has no cursor: each transfer names its offset, and any number can be in flight.
///
/// A `File` belongs to the worker that opened it; to hand it to another, go through [`into_std`](Self::into_std).
/// Dropping it closes it, at once or when the last operation in flight has been answered; [`close`](Self::close) lets the
/// kernel do it elsewhere, and yields its answer.
///
/// ```
/// use veloq::fs::File;
///
/// #[veloq::main(workers = 1)]
/// async fn main() -> std::io::Result<()> {
///     # let dir = tempfile::tempdir()?;
///     # let path = dir.path().join("numbers");
///     let file = File::options().read(true).write(true).create(true).open(&path).await?;
///     let (written, _) = file.write_all_at(vec![7; 10_000], 0).await;
///     written?;
///     let (read, buf) = file.read_exact_at(Box::new([0; 4]), 5_000).await;
///     read?;
///     assert_eq!(*buf, [7; 4]);
///     file.close().await
/// }
/// ```
#[derive(Debug)]
pub struct File {
    descriptor: SharedDescriptor,
    /// What Direct I/O demands, if the file is open for it.
    alignment: Option<Alignment>,
}

impl File {
    /// A file over a descriptor that is open.
    pub(super) fn new(descriptor: Descriptor, alignment: Option<Alignment>) -> File {
        File { descriptor: Rc::new(descriptor), alignment }
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// As [`OpenOptions::open`].
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(path).await
    }

    /// Opens a file for writing: an empty one, whether it was there or not.
    ///
    /// # Errors
    ///
    /// As [`OpenOptions::open`].
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn create(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(path).await
    }

    /// Makes a file that is not there yet, and opens it for reading and writing.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if something has that name; else as [`OpenOptions::open`].
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn create_new(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(path).await
    }

    /// Options to open a file with; the same as [`OpenOptions::new`].
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// Takes over a file of std's. Its cursor means nothing here. Whether it is open for Direct I/O is asked of the
    /// kernel.
    pub fn from_std(file: std::fs::File) -> File {
        let descriptor = Descriptor::Os(file.into());
        let alignment = descriptor.as_os().ok().and_then(Alignment::of);
        File::new(descriptor, alignment)
    }

    /// Makes it a file of std's, which can be sent anywhere. Operations still in flight go on.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a direct descriptor. The limit on descriptors, if operations are in flight: they keep theirs,
    /// and the file gets a second one.
    pub fn into_std(self) -> io::Result<std::fs::File> {
        match Rc::try_unwrap(self.descriptor) {
            Ok(Descriptor::Os(fd)) => Ok(fd.into()),
            Ok(direct @ Descriptor::Direct(_)) => os::duplicate(direct.as_os()?).map(Into::into),
            Err(shared) => os::duplicate(shared.as_os()?).map(Into::into),
        }
    }

    /// What Direct I/O demands of buffers, offsets and lengths; `None` for a file that goes through the page cache.
    pub fn direct_alignment(&self) -> Option<Alignment> {
        self.alignment
    }

    /// Reads at `offset` into `buf`, from its start up to its capacity, and yields how many bytes came: 0 at the end of
    /// the file, and fewer than there is room for before it. The buffer's length is then what was read; after an error it
    /// is what it was.
    ///
    /// At most 2,147,479,552 bytes come at a time.
    ///
    /// # Errors
    ///
    /// What the operating system said, as `IsADirectory`. `InvalidInput` for an offset of 2^63 or more, and, with
    /// [`Misaligned`](super::Misaligned) as its source, for what Direct I/O cannot do.
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn read_at<B: IoBufMut>(&self, buf: B, offset: u64) -> ReadAt<B> {
        let refusal = self.refusal(offset, |check| check(buf.io_ptr(), buf.io_capacity()));
        transfer(op::fs::ReadAt { fd: Rc::clone(&self.descriptor), buf, offset }, refusal)
    }

    /// Writes the content of `buf` at `offset`, or the first bytes of it, and yields how many. The file grows if need
    /// be, with a hole where nothing was written. A file opened to append takes every write at its end.
    ///
    /// Dropped before it is ready, the write may have happened, in part or as a whole.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Self::read_at), and what a write can meet, as `StorageFull`.
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn write_at<B: IoBuf>(&self, buf: B, offset: u64) -> WriteAt<B> {
        self.write_once(buf, offset, false)
    }

    #[track_caller]
    fn write_once<B: IoBuf>(&self, buf: B, offset: u64, durable: bool) -> WriteAt<B> {
        let refusal = self.refusal(offset, |check| check(buf.io_ptr(), buf.io_len()));
        transfer(op::fs::WriteAt { fd: Rc::clone(&self.descriptor), buf, offset, durable }, refusal)
    }

    /// Reads at `offset` into several buffers, each up to its capacity before the next, and yields how many bytes came
    /// in all. A buffer that was not reached is empty afterwards.
    ///
    /// Of more than 1,024 buffers the first 1,024 are used.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Self::read_at).
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn read_vectored_at<V: IoBufMutVec>(&self, mut bufs: V, offset: u64) -> ReadVectoredAt<V> {
        let refusal =
            self.refusal(offset, |check| bufs.io_each_mut(|part, len| check(part.cast_const(), len)));
        transfer(op::fs::ReadVectoredAt { fd: Rc::clone(&self.descriptor), bufs, offset }, refusal)
    }

    /// Writes the contents of several buffers, in order, at `offset`, and yields how many bytes were taken.
    ///
    /// Of more than 1,024 buffers the first 1,024 are used.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at).
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn write_vectored_at<V: IoBufVec>(&self, bufs: V, offset: u64) -> WriteVectoredAt<V> {
        let refusal = self.refusal(offset, |check| bufs.io_each(check));
        transfer(op::fs::WriteVectoredAt { fd: Rc::clone(&self.descriptor), bufs, offset }, refusal)
    }

    /// Reads at `offset` until `buf` is full.
    ///
    /// Full is its capacity, and a `Vec` may have more of it than was asked for: say how much with
    /// [`slice`](IoBuf::slice), or take a [`FixedBuf`](crate::io::buf::FixedBuf) or a `Box<[u8]>`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before, with what there was in the buffer; else as [`read_at`](Self::read_at).
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn read_exact_at<B: IoBufMut>(&self, buf: B, offset: u64) -> BufResult<(), B> {
        let wanted = buf.io_capacity();
        let mut done = 0;
        let (mut result, mut buf) = self.read_at(buf, offset).await;
        loop {
            match result {
                Ok(0) if done < wanted => return (Err(ended()), buf),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
            if done == wanted {
                return (Ok(()), buf);
            }
            let next = after(offset, done);
            // Direct I/O ends in the middle of a block only where the file does, and could not go on from there.
            if self.alignment.is_some_and(|alignment| !alignment.divides(next)) {
                return (Err(ended()), buf);
            }
            let rest;
            (result, rest) = self.read_at(buf.slice(done..wanted), next).await;
            buf = rest.into_inner();
        }
    }

    /// Writes all of `buf`'s content at `offset`.
    ///
    /// Dropped before it is ready, the write may have happened, in part or as a whole.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at); how much was written before is not known. `WriteZero` if the file takes no more
    /// and does not say why.
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn write_all_at<B: IoBuf>(&self, buf: B, offset: u64) -> BufResult<(), B> {
        self.write_whole(buf, offset, false).await
    }

    /// Writes all of `buf`'s content at `offset` and makes it durable: [`write_all_at`](Self::write_all_at) and
    /// [`sync_data`](Self::sync_data) in one operation, for these bytes alone. What was written before is not synced by it.
    ///
    /// A log gains by it: the kernel hands a write that must wait to a thread of its own, and here it does so once.
    ///
    /// ```
    /// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// let log = veloq::fs::File::create(dir.path().join("log")).await?;
    /// let (durable, _record) = log.write_all_durable_at(Vec::from("begin\n"), 0).await;
    /// durable?; // Only now may anybody be told.
    /// # Ok::<(), std::io::Error>(())
    /// # })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write_all_at`](Self::write_all_at) and [`sync_all`](Self::sync_all): which of the two failed, only the kind of error can tell.
    /// `StorageFull` and `QuotaExceeded` are the write's.
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn write_all_durable_at<B: IoBuf>(&self, buf: B, offset: u64) -> BufResult<(), B> {
        self.write_whole(buf, offset, true).await
    }

    async fn write_whole<B: IoBuf>(&self, buf: B, offset: u64, durable: bool) -> BufResult<(), B> {
        let wanted = buf.io_len();
        let mut done = 0;
        let (mut result, mut buf) = self.write_once(buf, offset, durable).await;
        loop {
            match result {
                Ok(0) if done < wanted => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
            if done == wanted {
                return (Ok(()), buf);
            }
            let rest;
            (result, rest) = self.write_once(buf.slice(done..wanted), after(offset, done), durable).await;
            buf = rest.into_inner();
        }
    }

    /// Makes everything durable that was written before: content and metadata. Only writes that were *awaited* count as
    /// before.
    ///
    /// # Errors
    ///
    /// What the operating system said. After one, what is on disk is not known, and another call may succeed without
    /// having written anything: treat the file as damaged.
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn sync_all(&self) -> SyncFile {
        op::start(Sync { fd: Rc::clone(&self.descriptor), data_only: false })
    }

    /// Makes the content durable that was written before, and as much metadata as is needed to read it again: cheaper
    /// than [`sync_all`](Self::sync_all) where the file did not grow.
    ///
    /// # Errors
    ///
    /// As [`sync_all`](Self::sync_all).
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn sync_data(&self) -> SyncFile {
        op::start(Sync { fd: Rc::clone(&self.descriptor), data_only: true })
    }

    /// Reserves space for `len` bytes at `offset`, and makes the file longer if they end after it. Writes there will not
    /// run out of space, and a sync after them has less metadata to write.
    ///
    /// # Errors
    ///
    /// What the operating system said: `StorageFull`, `InvalidInput` for a `len` of 0, `Unsupported` where the file system
    /// cannot.
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn allocate(&self, offset: u64, len: u64) -> AllocateFile {
        self.allocate_as(Allocation::Extend, offset, len)
    }

    /// Changes the space that `len` bytes at `offset` take on disk. See [`Allocation`].
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate).
    ///
    /// # Panics
    ///
    /// Outside a worker.
    #[track_caller]
    pub fn allocate_as(&self, allocation: Allocation, offset: u64, len: u64) -> AllocateFile {
        op::start(Allocate { fd: Rc::clone(&self.descriptor), allocation, offset, len })
    }

    /// Makes the file `len` bytes long: cuts it, or lets it grow by a hole, which reads as zeros.
    ///
    /// On kernels before 6.9 the worker's thread does it (`ftruncate`).
    ///
    /// # Errors
    ///
    /// What the operating system said: `InvalidInput` for a file that is not open for writing, `FileTooLarge`.
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        match op::start(Truncate { fd: Rc::clone(&self.descriptor), len }).await {
            Err(refusal) => match self.descriptor.as_os() {
                Ok(open) => os::set_len_otherwise(open, len, refusal),
                Err(_) => Err(refusal),
            },
            done => done,
        }
    }

    /// Asks for the file's metadata.
    ///
    /// # Errors
    ///
    /// What the operating system said. `Unsupported` for a direct descriptor: ask by path, with
    /// [`fs::metadata`](super::metadata()).
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn metadata(&self) -> io::Result<Metadata> {
        let subject = Subject::Open(Rc::clone(&self.descriptor));
        Ok(Metadata::new(op::start(Status { subject, status: None }).await?))
    }

    /// Closes the file, and yields what the kernel said to it. Some file systems (network, quota) report here that
    /// earlier writes were lost; [`sync_all`](Self::sync_all) before is the way to be sure.
    ///
    /// # Errors
    ///
    /// What the operating system said; the file is closed all the same. `ResourceBusy` if operations on the file are in
    /// flight, as dropped ones can be for a moment: the file is then closed with the last of them, and there is nobody to
    /// tell.
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn close(self) -> io::Result<()> {
        match Rc::try_unwrap(self.descriptor) {
            Ok(descriptor) => op::start(Close { descriptor: Some(descriptor) }).await,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "operations on this file are still in flight; it is closed when the last of them has been answered",
            )),
        }
    }

    /// Why a transfer cannot be submitted, if so. `each_part` calls with the address and length of each of its buffers.
    ///
    /// An offset from 2^63 up is negative to the kernel, and the largest of all would mean a cursor.
    fn refusal(
        &self,
        offset: u64,
        each_part: impl FnOnce(&mut dyn FnMut(*const u8, usize)),
    ) -> Option<io::Error> {
        if i64::try_from(offset).is_err() {
            return Some(io::Error::new(io::ErrorKind::InvalidInput, "a file's offsets end before 2^63"));
        }
        let alignment = self.alignment?;
        let mut misaligned = None;
        each_part(&mut |address, len| {
            // Nothing is transferred for an empty part, and its address need not mean anything.
            if len > 0 && misaligned.is_none() {
                misaligned = alignment.check(offset, address.addr(), len).err();
            }
        });
        misaligned.map(|misaligned| io::Error::new(io::ErrorKind::InvalidInput, misaligned))
    }
}

#[cfg(unix)]
impl File {
    /// The descriptor, for calls that Veloq does not make. What it is set to by `fcntl` holds here too.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a direct descriptor, which has none.
    pub fn as_fd(&self) -> io::Result<std::os::fd::BorrowedFd<'_>> {
        self.descriptor.as_os()
    }
}

/// For calls that Veloq does not make.
#[cfg(windows)]
impl std::os::windows::io::AsHandle for File {
    fn as_handle(&self) -> std::os::windows::io::BorrowedHandle<'_> {
        match self.descriptor.as_os() {
            Ok(os::BorrowedDescriptor::Handle(handle)) => handle,
            _ => unreachable!("a file is a handle, and direct descriptors are of other systems"),
        }
    }
}

#[cfg(windows)]
impl std::os::windows::io::AsRawHandle for File {
    fn as_raw_handle(&self) -> std::os::windows::io::RawHandle {
        std::os::windows::io::AsHandle::as_handle(self).as_raw_handle()
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> File {
        File::from_std(file)
    }
}

/// Reads a whole file.
///
/// # Errors
///
/// As [`OpenOptions::open`] and [`File::read_at`]; `OutOfMemory` for a file that is too large to hold.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let file = File::open(path).await?;
    // The length is a hint, and may change. In /proc it is 0, and some files there say all they have to the first read and
    // nothing to another. One byte more lets the read that finds the end have room.
    let room = match file.metadata().await?.len() {
        0 => READ_MORE_BYTES,
        len => usize::try_from(len).unwrap_or(usize::MAX).saturating_add(1),
    };
    let mut content = Vec::new();
    content.try_reserve_exact(room)?;
    loop {
        if content.len() == content.capacity() {
            content.try_reserve(READ_MORE_BYTES)?;
        }
        let done = content.len();
        let (result, rest) = file.read_at(content.slice(done..), after(0, done)).await;
        content = rest.into_inner();
        match result {
            Ok(0) => return Ok(content),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a whole file that is UTF-8.
///
/// # Errors
///
/// As [`read`]; `InvalidData` if it is not UTF-8.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    let content = read(path).await?;
    String::from_utf8(content).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Makes `content` the whole content of a file, which is created if it is not there. Nothing is synced.
///
/// # Errors
///
/// As [`File::create`] and [`File::write_all_at`]. The file may then be empty or incomplete.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn write<B: IoBuf>(path: impl AsRef<Path>, content: B) -> BufResult<(), B> {
    match File::create(path).await {
        Ok(file) => file.write_all_at(content, 0).await,
        Err(error) => (Err(error), content),
    }
}

/// Room for what a file holds beyond the length it reported: one read of a file in /proc gives at most a page or a few.
const READ_MORE_BYTES: usize = 32 * 1024;

/// Where a transfer goes on after `done` bytes.
fn after(offset: u64, done: usize) -> u64 {
    offset + u64::try_from(done).expect("a usize has at most 64 bits")
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before the buffer is full")
}
