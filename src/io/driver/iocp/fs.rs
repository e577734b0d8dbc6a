//! Encodings of `io::op::fs` for completion ports.
//!
//! Reads and writes of an attached file are overlapped calls; of any other file, and all the rest, jobs of the thread pool. A
//! job that needs the file has a handle of its own to it, besides those that read and write.
#![expect(unsafe_code, reason = "shows the kernel addresses inside operations in their slots")]

use std::fs::File;
use std::io;
use std::os::windows::io::{AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr;

use windows_sys::Win32::Foundation::{ERROR_IO_PENDING, HANDLE};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ALLOCATION_INFO, FILE_STANDARD_INFO, FileAllocationInfo, FileStandardInfo,
    GetFileInformationByHandleEx, ReadFile, SetFileInformationByHandle, WriteFile,
};
use windows_sys::Win32::System::IO::{DeviceIoControl, GetOverlappedResult, OVERLAPPED};
use windows_sys::Win32::System::Ioctl::{FILE_ZERO_DATA_INFORMATION, FSCTL_SET_SPARSE, FSCTL_SET_ZERO_DATA};
use windows_sys::Win32::System::Threading::CreateEventW;
use windows_sys::core::BOOL;

use super::{
    Block, Call, Chain, Done, IocpDriver, Request, Span, Step, Work, at, check_direct, ended_file, owned,
};
use crate::io::buf::{FixedBuf, IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Completion, Descriptor, PlatformOp, Yields, fits_inline};
use crate::io::op::fs::{
    Allocate, Allocation, MakeDirectory, Open, ReadAt, ReadVectoredAt, Remove, Rename, Status, Subject, Sync,
    Truncate, WriteAt, WriteVectoredAt,
};
use crate::io::op::{TRANSFER_BYTES_MAX, transfer_len};
use crate::os::{self, BorrowedDescriptor, FileStatus};

// SAFETY: the request holds the block's address only; the path goes with the job.
unsafe impl PlatformOp<IocpDriver> for Open {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        check_direct(self.direct)?;
        let (path, how) = (std::mem::take(&mut self.path), self.how.clone());
        block.job(driver, "opening a file", move || Ok(Done::Descriptor(how.open(&path)?.into())))
    }

    fn yields(&self) -> Yields {
        Yields::OsDescriptor
    }
}

// SAFETY: the address is the buffer's, which `IoBufMut` promises does not move. While a thread has it the slot owns it as it
// does while the kernel has it: until the packet.
unsafe impl<B: IoBufMut> PlatformOp<IocpDriver> for ReadAt<B> {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let into = Span { start: self.buf.io_mut_ptr(), len: transfer_len(self.buf.io_capacity()) };
        let offset = self.offset;
        match driver.file(&self.fd)? {
            (_, Some(target)) => Ok(block.request(Step::File, target, Call::Read { into, offset })),
            (handle, None) => {
                let transfer = Transfer {
                    handle: Borrowed(handle),
                    parts: vec![into],
                    offset,
                    writes: false,
                    durable: false,
                };
                block.job(driver, READING, move || transfer.run())
            }
        }
    }
}

// SAFETY: the address is the buffer's, which `IoBuf` promises does not move; a thread's as long as the kernel's.
unsafe impl<B: IoBuf> PlatformOp<IocpDriver> for WriteAt<B> {
    type Block = Block<Work>;

    /// A durable write is one job: writing, then having it written to the disk.
    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let from = Span { start: self.buf.io_ptr().cast_mut(), len: transfer_len(self.buf.io_len()) };
        let (offset, durable) = (self.offset, self.durable);
        match driver.file(&self.fd)? {
            (_, Some(target)) if !durable => {
                Ok(block.request(Step::File, target, Call::Write { from, offset }))
            }
            (handle, _) => {
                let transfer =
                    Transfer { handle: Borrowed(handle), parts: vec![from], offset, writes: true, durable };
                block.job(driver, WRITING, move || transfer.run())
            }
        }
    }
}

// SAFETY: the parts' addresses are the buffers', which `IoBufMutVec` promises do not move; a thread's as long as the kernel's.
unsafe impl<V: IoBufMutVec> PlatformOp<IocpDriver> for ReadVectoredAt<V> {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let mut parts = Gather::new(self.bufs.io_count());
        self.bufs.io_each_mut(|part, len| parts.add(part, len));
        vectored(parts, &self.fd, self.offset, false, block, driver)
    }
}

// SAFETY: the parts' addresses are the buffers', which `IoBufVec` promises do not move; a thread's as long as the kernel's.
unsafe impl<V: IoBufVec> PlatformOp<IocpDriver> for WriteVectoredAt<V> {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let mut parts = Gather::new(self.bufs.io_count());
        self.bufs.io_each(|part, len| parts.add(part.cast_mut(), len));
        vectored(parts, &self.fd, self.offset, true, block, driver)
    }
}

/// A list of buffers, one part after the other: by the port, or by a thread.
fn vectored(
    Gather { parts, .. }: Gather,
    fd: &Descriptor,
    offset: u64,
    writes: bool,
    block: &mut Block<Work>,
    driver: &mut IocpDriver,
) -> io::Result<Request> {
    match driver.file(fd)? {
        (_, Some(target)) => {
            let mut chain = Chain { parts, next: 0, done: 0, offset, writes };
            let call = chain.next_call().unwrap_or(Call::Post);
            let step = if chain.next == 0 { Step::File } else { Step::Chain };
            block.extra = Work::Chain(chain);
            Ok(block.request(step, target, call))
        }
        (handle, None) => {
            let transfer = Transfer { handle: Borrowed(handle), parts, offset, writes, durable: false };
            block.job(driver, if writes { WRITING } else { READING }, move || transfer.run())
        }
    }
}

/// What a thread is needed for, in the words of [`PoolRefused`](crate::io::driver::PoolRefused).
const READING: &str = "reading a file that was not opened for overlapped use";
const WRITING: &str = "writing a file that was not opened for overlapped use, or durably";

/// Parts of one vectored call at most: what Linux takes, so that programs meet the same bound.
const PARTS_MAX: usize = 1024;

/// Gathers the parts of a list that are not empty, as many bytes as one transfer may have.
struct Gather {
    parts: Vec<Span>,
    room: usize,
}

impl Gather {
    fn new(count: usize) -> Gather {
        Gather { parts: Vec::with_capacity(count.min(PARTS_MAX)), room: TRANSFER_BYTES_MAX }
    }

    fn add(&mut self, start: *mut u8, len: usize) {
        let len = len.min(self.room);
        if self.parts.len() < PARTS_MAX && len > 0 {
            self.room -= len;
            self.parts.push(Span { start, len: transfer_len(len) });
        }
    }
}

/// The handle of an operation in flight, which is open until the operation's packet.
struct Borrowed(HANDLE);

// SAFETY: a handle is a number that any thread may use while it is open.
unsafe impl Send for Borrowed {}

/// What a thread reads or writes, without a packet.
struct Transfer {
    handle: Borrowed,
    parts: Vec<Span>,
    offset: u64,
    writes: bool,
    durable: bool,
}

impl Transfer {
    fn run(self) -> io::Result<Done> {
        let event = Event::new()?;
        let mut done = 0;
        for part in &self.parts {
            match self.part(&event, *part, self.offset + u64::from(done)) {
                Ok(bytes) => {
                    done += bytes;
                    if bytes < part.len {
                        break;
                    }
                }
                // What was done is worth more than an error, which the next call gets again.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if self.durable {
            // SAFETY: the operation that this is the job of owns a count of the handle until its packet, which comes after this.
            let handle = unsafe { BorrowedHandle::borrow_raw(self.handle.0) };
            File::from(handle.try_clone_to_owned()?).sync_data()?;
        }
        Ok(Done::Number(done))
    }

    fn part(&self, event: &Event, part: Span, offset: u64) -> io::Result<u32> {
        let (handle, mut overlapped) = (self.handle.0, OVERLAPPED { hEvent: event.quiet(), ..at(offset) });
        let raw = &raw mut overlapped;
        // SAFETY: the operation that this is the job of owns the memory and a count of the handle until its packet, which comes
        // after this; the `OVERLAPPED` is here until the call has ended, which is waited for.
        ended_file(unsafe {
            wait_for(handle, raw, |bytes| {
                if self.writes {
                    WriteFile(handle, part.start, part.len, bytes, raw)
                } else {
                    ReadFile(handle, part.start, part.len, bytes, raw)
                }
            })
        })
    }
}

/// Waits for a call that may go on in the kernel. Says how many bytes it has moved.
///
/// # Safety
///
/// `call` is made on the open `handle` with `overlapped`, whose event is its own.
unsafe fn wait_for(
    handle: HANDLE,
    overlapped: *mut OVERLAPPED,
    call: impl FnOnce(*mut u32) -> BOOL,
) -> io::Result<u32> {
    let mut bytes = 0;
    if call(&raw mut bytes) != 0 {
        return Ok(bytes);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(ERROR_IO_PENDING.cast_signed()) {
        return Err(error);
    }
    // SAFETY: as the caller says; this returns when the kernel is done.
    let ended = unsafe { GetOverlappedResult(handle, overlapped, &raw mut bytes, 1) };
    if ended == 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}

/// What one thread waits for the end of one call with.
struct Event(OwnedHandle);

impl Event {
    fn new() -> io::Result<Event> {
        // SAFETY: no name, no attributes: a new event that nobody else knows.
        let event = unsafe { CreateEventW(ptr::null(), 1, 0, ptr::null()) };
        if event.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was made just now, and nobody else knows it.
        Ok(Event(unsafe { OwnedHandle::from_raw_handle(event) }))
    }

    /// The event, marked so that the call sends no packet, be the file attached or not.
    fn quiet(&self) -> HANDLE {
        self.0.as_raw_handle().map_addr(|number| number | 1)
    }
}

/// A handle of its own to an operation's file, for a job that may end after it.
fn file_of(fd: &Descriptor) -> io::Result<File> {
    match os::lend(owned(fd)?) {
        BorrowedDescriptor::Handle(handle) => Ok(File::from(handle.try_clone_to_owned()?)),
        BorrowedDescriptor::Socket(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket is no file"))
        }
    }
}

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Sync {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let (file, data_only) = (file_of(&self.fd)?, self.data_only);
        block.job(driver, "syncing a file", move || {
            if data_only { file.sync_data() } else { file.sync_all() }.map(|()| Done::Number(0))
        })
    }
}

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Allocate {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let (file, allocation, offset, len) = (file_of(&self.fd)?, self.allocation, self.offset, self.len);
        block.job(driver, "allocating space for a file", move || {
            allocate(&file, allocation, offset, len).map(|()| Done::Number(0))
        })
    }
}

/// Does to a range what Linux's `fallocate` does.
fn allocate(file: &File, allocation: Allocation, offset: u64, len: u64) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let end = offset.checked_add(len).and_then(|end| i64::try_from(end).ok()).ok_or_else(invalid)?;
    if len == 0 {
        return Err(invalid());
    }
    let file_len = file.metadata()?.len();
    let end_u64 = end.cast_unsigned();
    match allocation {
        // A longer file has its space: NTFS leaves holes in sparse files only.
        Allocation::Extend if end_u64 > file_len => file.set_len(end_u64),
        Allocation::Extend => Ok(()),
        Allocation::KeepSize => reserve(file, end),
        Allocation::Zero => {
            if end_u64 > file_len {
                file.set_len(end_u64)?;
            }
            zero(file, offset.cast_signed(), end)
        }
        Allocation::PunchHole => {
            control(file, FSCTL_SET_SPARSE, &[])?;
            zero(file, offset.cast_signed(), end)
        }
    }
}

/// Reserves space up to `end`, if the file has less: to give it less would cut the file.
fn reserve(file: &File, end: i64) -> io::Result<()> {
    let handle = file.as_raw_handle();
    let mut now = FILE_STANDARD_INFO::default();
    let bytes = u32::try_from(size_of::<FILE_STANDARD_INFO>()).expect("some bytes");
    // SAFETY: the handle is open while `file` is borrowed, and so many bytes may be written to `now`.
    let known =
        unsafe { GetFileInformationByHandleEx(handle, FileStandardInfo, (&raw mut now).cast(), bytes) != 0 };
    if !known {
        return Err(io::Error::last_os_error());
    }
    if now.AllocationSize.max(now.EndOfFile) >= end {
        return Ok(());
    }
    let wanted = FILE_ALLOCATION_INFO { AllocationSize: end };
    let bytes = u32::try_from(size_of::<FILE_ALLOCATION_INFO>()).expect("some bytes");
    // SAFETY: the handle is open while `file` is borrowed, and so many bytes are read from `wanted`.
    let set = unsafe {
        SetFileInformationByHandle(handle, FileAllocationInfo, (&raw const wanted).cast(), bytes) != 0
    };
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a range read as zeros; of a sparse file, by giving its space back.
fn zero(file: &File, from: i64, to: i64) -> io::Result<()> {
    control(
        file,
        FSCTL_SET_ZERO_DATA,
        &[FILE_ZERO_DATA_INFORMATION { FileOffset: from, BeyondFinalZero: to }],
    )
}

/// Asks the file system for something that has a number.
fn control(file: &File, code: u32, argument: &[FILE_ZERO_DATA_INFORMATION]) -> io::Result<()> {
    let (handle, event) = (file.as_raw_handle(), Event::new()?);
    let mut overlapped = OVERLAPPED { hEvent: event.quiet(), ..OVERLAPPED::default() };
    let raw = &raw mut overlapped;
    let bytes = u32::try_from(size_of_val(argument)).expect("one argument at most");
    // SAFETY: the handle is open while `file` is borrowed; so many bytes are read from the argument, none are written; all of it is
    // here until the call has ended, which is waited for.
    unsafe {
        wait_for(handle, raw, |moved| {
            DeviceIoControl(handle, code, argument.as_ptr().cast(), bytes, ptr::null_mut(), 0, moved, raw)
        })
    }
    .map(drop)
}

// SAFETY: the request holds the block's address only.
unsafe impl PlatformOp<IocpDriver> for Truncate {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let (file, len) = (file_of(&self.fd)?, self.len);
        block.job(driver, "changing a file's length", move || file.set_len(len).map(|()| Done::Number(0)))
    }
}

// SAFETY: the request holds the block's address only; the path goes with the job.
unsafe impl PlatformOp<IocpDriver> for Status {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        const WHAT: &str = "asking for a file's metadata";
        let status = |metadata| Done::Status(FileStatus::new(metadata));
        match &mut self.subject {
            Subject::Open(fd) => {
                let file = file_of(fd)?;
                block.job(driver, WHAT, move || file.metadata().map(status))
            }
            Subject::Path(path, follow) => {
                let (path, follow) = (std::mem::take(path), *follow);
                block.job(driver, WHAT, move || {
                    if follow { path.metadata() } else { path.symlink_metadata() }.map(status)
                })
            }
        }
    }

    fn decode(&mut self, block: &mut Block<Work>, completion: &Completion) {
        if completion.result.is_ok()
            && let Work::Status(status) = std::mem::take(&mut block.extra)
        {
            self.status = Some(status);
        }
    }
}

// SAFETY: the request holds the block's address only; the paths go with the job.
unsafe impl PlatformOp<IocpDriver> for Rename {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let (from, to) = (std::mem::take(&mut self.from), std::mem::take(&mut self.to));
        block.job(driver, "renaming a file", move || std::fs::rename(from, to).map(|()| Done::Number(0)))
    }
}

// SAFETY: the request holds the block's address only; the path goes with the job.
unsafe impl PlatformOp<IocpDriver> for Remove {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let (path, directory) = (std::mem::take(&mut self.path), self.directory);
        block.job(driver, "removing a file", move || {
            if directory { std::fs::remove_dir(path) } else { std::fs::remove_file(path) }
                .map(|()| Done::Number(0))
        })
    }
}

// SAFETY: the request holds the block's address only; the path goes with the job.
unsafe impl PlatformOp<IocpDriver> for MakeDirectory {
    type Block = Block<Work>;

    fn encode(&mut self, block: &mut Block<Work>, driver: &mut IocpDriver) -> io::Result<Request> {
        let path = std::mem::take(&mut self.path);
        block.job(driver, "making a directory", move || std::fs::create_dir(path).map(|()| Done::Number(0)))
    }
}

// Every operation of ours lives in its slot with the buffers a program uses most.
const _: () = {
    assert!(fits_inline::<ReadAt<FixedBuf>, IocpDriver>() && fits_inline::<ReadAt<Vec<u8>>, IocpDriver>());
    assert!(fits_inline::<WriteAt<FixedBuf>, IocpDriver>() && fits_inline::<WriteAt<Vec<u8>>, IocpDriver>());
    assert!(fits_inline::<Status, IocpDriver>() && fits_inline::<Rename, IocpDriver>());
};
#[cfg(feature = "bytes")]
const _: () = assert!(fits_inline::<WriteAt<bytes::Bytes>, IocpDriver>());
