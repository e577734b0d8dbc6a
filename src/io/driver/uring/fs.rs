//! Encodings of `io::op::fs` for io_uring: one entry for each operation.
//!
//! A transfer whose buffer is registered with this ring goes by its index (`READ_FIXED`, `WRITE_FIXED`), any other by its address. Paths
//! and lists of parts are shown by address too: the operation in its slot owns the path, its block beside it the list, on the heap. A
//! `statx`, which would fill a slot alone, is boxed by the block.
//!
//! Files are not waited for as sockets are. What the kernel cannot do at once it does on a thread of its own, and that is where a write
//! into a buffer may come from after its ring is closed.
#![expect(unsafe_code, reason = "shows the kernel addresses inside operations in their slots")]

use std::io;

use io_uring::types::{Fd, FsyncFlags, statx};
use io_uring::{opcode, squeue};

use super::net::{Part, destination, part_list, parts_of, parts_of_mut};
use super::{UringDriver, on_target};
use crate::io::buf::{FixedBuf, IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Completion, PlatformOp, Yields, fits_inline};
use crate::io::op::fs::{
    Allocate, Allocation, MakeDirectory, Open, ReadAt, ReadVectoredAt, Remove, Rename, Status, Subject, Sync,
    Truncate, WriteAt, WriteVectoredAt,
};
use crate::io::op::transfer_len;
use crate::os::FileStatus;

/// Relative paths start at the working directory.
const HERE: Fd = Fd(libc::AT_FDCWD);

// SAFETY: the path's bytes are on the heap, owned by the operation.
unsafe impl PlatformOp<UringDriver> for Open {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        driver.check_direct(self.direct)?;
        // A direct descriptor is not inherited by anything, and the kernel refuses the flag for it.
        let flags = if self.direct { self.how.flags } else { self.how.flags | libc::O_CLOEXEC };
        let open = opcode::OpenAt::new(HERE, self.path.as_ptr()).flags(flags).mode(self.how.mode);
        Ok(open.file_index(destination(self.direct)).build())
    }

    fn yields(&self) -> Yields {
        if self.direct { Yields::DirectDescriptor } else { Yields::OsDescriptor }
    }
}

// SAFETY: the address is the buffer's, which `IoBufMut` promises does not move.
unsafe impl<B: IoBufMut> PlatformOp<UringDriver> for ReadAt<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let (address, len) = (self.buf.io_mut_ptr(), transfer_len(self.buf.io_capacity()));
        let target = driver.target(&self.fd)?;
        Ok(match driver.fixed_index(self.buf.registration()) {
            Some(index) => on_target!(target, fd => {
                opcode::ReadFixed::new(fd, address, len, index).offset(self.offset).build()
            }),
            None => on_target!(target, fd => opcode::Read::new(fd, address, len).offset(self.offset).build()),
        })
    }
}

// SAFETY: the address is the buffer's, which `IoBuf` promises does not move.
unsafe impl<B: IoBuf> PlatformOp<UringDriver> for WriteAt<B> {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let (address, len) = (self.buf.io_ptr(), transfer_len(self.buf.io_len()));
        let target = driver.target(&self.fd)?;
        let flags = if self.durable { libc::RWF_DSYNC } else { 0 };
        Ok(match driver.fixed_index(self.buf.registration()) {
            Some(index) => on_target!(target, fd => {
                opcode::WriteFixed::new(fd, address, len, index).offset(self.offset).rw_flags(flags).build()
            }),
            None => on_target!(target, fd => {
                opcode::Write::new(fd, address, len).offset(self.offset).rw_flags(flags).build()
            }),
        })
    }
}

// SAFETY: the parts are in a vector that the block owns; their addresses are the buffers'.
unsafe impl<V: IoBufMutVec> PlatformOp<UringDriver> for ReadVectoredAt<V> {
    type Block = Vec<Part>;

    fn encode(&mut self, parts: &mut Vec<Part>, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        *parts = parts_of_mut(&mut self.bufs);
        let (list, count) = part_list(parts);
        Ok(
            on_target!(driver.target(&self.fd)?, fd => opcode::Readv::new(fd, list, count).offset(self.offset).build()),
        )
    }
}

// SAFETY: the parts are in a vector that the block owns; their addresses are the buffers'.
unsafe impl<V: IoBufVec> PlatformOp<UringDriver> for WriteVectoredAt<V> {
    type Block = Vec<Part>;

    fn encode(&mut self, parts: &mut Vec<Part>, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        *parts = parts_of(&self.bufs);
        let (list, count) = part_list(parts);
        Ok(
            on_target!(driver.target(&self.fd)?, fd => opcode::Writev::new(fd, list, count).offset(self.offset).build()),
        )
    }
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Sync {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let flags = if self.data_only { FsyncFlags::DATASYNC } else { FsyncFlags::empty() };
        Ok(on_target!(driver.target(&self.fd)?, fd => opcode::Fsync::new(fd).flags(flags).build()))
    }
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Allocate {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        let mode = match self.allocation {
            Allocation::Extend => 0,
            Allocation::KeepSize => libc::FALLOC_FL_KEEP_SIZE,
            Allocation::Zero => libc::FALLOC_FL_ZERO_RANGE,
            Allocation::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        };
        Ok(on_target!(driver.target(&self.fd)?, fd => {
            opcode::Fallocate::new(fd, self.len).offset(self.offset).mode(mode).build()
        }))
    }
}

// SAFETY: the entry holds no address.
unsafe impl PlatformOp<UringDriver> for Truncate {
    type Block = ();

    fn encode(&mut self, (): &mut (), driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        Ok(on_target!(driver.target(&self.fd)?, fd => opcode::Ftruncate::new(fd, self.len).build()))
    }
}

/// What `statx` writes; boxed, because it is as large as a slot's room.
#[derive(Default)]
pub(crate) struct StatusBlock(Option<Box<libc::statx>>);

// SAFETY: the path's bytes and the status are on the heap, owned by the operation and the block. With an open file the
// path is a constant.
unsafe impl PlatformOp<UringDriver> for Status {
    type Block = StatusBlock;

    fn encode(&mut self, block: &mut StatusBlock, driver: &mut UringDriver) -> io::Result<squeue::Entry> {
        // SAFETY: a `statx` is integers, for which zero is a value.
        let status = block.0.insert(Box::new(unsafe { std::mem::zeroed::<libc::statx>() }));
        let status: *mut statx = (&raw mut **status).cast();
        let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        let (dir, path, flags) = match &self.subject {
            Subject::Open(fd) => {
                let super::Target::Os(fd) = driver.target(fd)? else {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "a direct descriptor's metadata cannot be asked for: the kernel looks it up by path or number",
                    ));
                };
                (fd, c"".as_ptr(), libc::AT_EMPTY_PATH)
            }
            Subject::Path(path, true) => (HERE, path.as_ptr(), 0),
            Subject::Path(path, false) => (HERE, path.as_ptr(), libc::AT_SYMLINK_NOFOLLOW),
        };
        Ok(opcode::Statx::new(dir, path, status).flags(flags).mask(mask).build())
    }

    fn decode(&mut self, block: &mut StatusBlock, completion: &Completion) {
        if completion.result.is_ok() {
            self.status = block.0.take().map(FileStatus::new);
        }
    }
}

// SAFETY: the paths' bytes are on the heap, owned by the operation.
unsafe impl PlatformOp<UringDriver> for Rename {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut UringDriver) -> io::Result<squeue::Entry> {
        Ok(opcode::RenameAt::new(HERE, self.from.as_ptr(), HERE, self.to.as_ptr()).build())
    }
}

// SAFETY: the path's bytes are on the heap, owned by the operation.
unsafe impl PlatformOp<UringDriver> for Remove {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut UringDriver) -> io::Result<squeue::Entry> {
        let flags = if self.directory { libc::AT_REMOVEDIR } else { 0 };
        Ok(opcode::UnlinkAt::new(HERE, self.path.as_ptr()).flags(flags).build())
    }
}

// SAFETY: the path's bytes are on the heap, owned by the operation.
unsafe impl PlatformOp<UringDriver> for MakeDirectory {
    type Block = ();

    fn encode(&mut self, (): &mut (), _: &mut UringDriver) -> io::Result<squeue::Entry> {
        Ok(opcode::MkDirAt::new(HERE, self.path.as_ptr()).mode(self.mode).build())
    }
}

// Every operation of ours lives in its slot with the buffers a program uses most.
const _: () = {
    assert!(fits_inline::<ReadAt<FixedBuf>, UringDriver>() && fits_inline::<ReadAt<Vec<u8>>, UringDriver>());
    assert!(
        fits_inline::<WriteAt<FixedBuf>, UringDriver>() && fits_inline::<WriteAt<Vec<u8>>, UringDriver>()
    );
    assert!(fits_inline::<Status, UringDriver>() && fits_inline::<Rename, UringDriver>());
};
#[cfg(feature = "bytes")]
const _: () = assert!(fits_inline::<WriteAt<bytes::Bytes>, UringDriver>());
