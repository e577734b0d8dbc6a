//! Operations on files and directories.
//!
//! Transfers name their offset and own their buffer, which comes back with the answer; they count on no cursor, so any number may be in
//! flight on one file. Where an operation is about an open file it holds a counted reference to its descriptor, where it is about a
//! name it owns the path, as the kernel takes it: neither can go while the kernel looks.
//!
//! Which of them a kernel does itself, and which it leaves to a thread, is the backend's affair. An abandoned one is decoded like any
//! other: a file that was opened for nobody is closed, and nothing else here needs care.

use std::io;

use super::{filled, filled_vec, seal};
use crate::io::buf::{BufResult, IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Completion, Descriptor, OpLifecycle, SharedDescriptor};
use crate::os::{OpenHow, SystemPath};

/// Opens a file.
#[derive(Debug)]
pub struct Open {
    pub(crate) path: SystemPath,
    pub(crate) how: OpenHow,
    /// Whether the file is to be a direct descriptor of this worker's ring.
    pub(crate) direct: bool,
}

/// Reads at an offset.
#[derive(Debug)]
pub struct ReadAt<B> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) buf: B,
    pub(crate) offset: u64,
}

/// Writes at an offset.
#[derive(Debug)]
pub struct WriteAt<B> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) buf: B,
    pub(crate) offset: u64,
    /// Whether the answer comes only when what was written is durable, as after `fdatasync`.
    pub(crate) durable: bool,
}

/// Reads at an offset into several buffers, one after the other.
#[derive(Debug)]
pub struct ReadVectoredAt<V> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) bufs: V,
    pub(crate) offset: u64,
}

/// Writes several buffers, one after the other, at an offset.
#[derive(Debug)]
pub struct WriteVectoredAt<V> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) bufs: V,
    pub(crate) offset: u64,
}

/// Makes a file's content durable.
#[derive(Debug)]
pub struct Sync {
    pub(crate) fd: SharedDescriptor,
    /// Content only, with no more metadata than is needed to find it again.
    pub(crate) data_only: bool,
}

/// What [`File::allocate_as`](crate::fs::File::allocate_as) does to a range of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Allocation {
    /// Reserves space, and makes the file longer if the range ends after it. What is new reads as zeros.
    #[default]
    Extend,
    /// Reserves space, and leaves the length as it is, so that later appends find their space.
    KeepSize,
    /// Makes the range read as zeros, with its space reserved; the file grows if the range ends after it.
    Zero,
    /// Gives the range's space back: it reads as zeros. The length stays.
    PunchHole,
}

/// Changes the space a file takes.
#[derive(Debug)]
pub struct Allocate {
    pub(crate) fd: SharedDescriptor,
    pub(crate) allocation: Allocation,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Changes a file's length.
#[derive(Debug)]
pub struct Truncate {
    pub(crate) fd: SharedDescriptor,
    pub(crate) len: u64,
}

/// What a [`Status`] is asked of.
#[derive(Debug)]
pub(crate) enum Subject {
    /// An open file.
    Open(SharedDescriptor),
    /// A path, and whether a symbolic link at its end is followed.
    Path(SystemPath, bool),
}

/// Asks for a file's metadata.
#[derive(Debug)]
pub struct Status {
    pub(crate) subject: Subject,
    /// Known once the completion is decoded.
    pub(crate) status: Option<crate::os::FileStatus>,
}

/// Gives a file another name, in place of what had that name.
#[derive(Debug)]
pub struct Rename {
    pub(crate) from: SystemPath,
    pub(crate) to: SystemPath,
}

/// Removes a name.
#[derive(Debug)]
pub struct Remove {
    pub(crate) path: SystemPath,
    /// Whether the name is an empty directory's.
    pub(crate) directory: bool,
}

/// Makes a directory.
#[derive(Debug)]
pub struct MakeDirectory {
    pub(crate) path: SystemPath,
    pub(crate) mode: u32,
}

seal!(
    Open, Sync, Allocate, Truncate, Status, Rename, Remove, MakeDirectory, ReadAt<B: IoBufMut>, WriteAt<B: IoBuf>,
    ReadVectoredAt<V: IoBufMutVec>, WriteVectoredAt<V: IoBufVec>,
);

impl OpLifecycle for Open {
    type Output = io::Result<Descriptor>;
    const KIND: &'static str = "open";

    fn into_output(self, completion: Completion) -> io::Result<Descriptor> {
        completion.into_descriptor()
    }
}

impl<B: IoBufMut> OpLifecycle for ReadAt<B> {
    type Output = BufResult<usize, B>;
    const KIND: &'static str = "read";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, B> {
        filled(self.buf, completion)
    }
}

impl<B: IoBuf> OpLifecycle for WriteAt<B> {
    type Output = BufResult<usize, B>;
    const KIND: &'static str = "write";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, B> {
        (completion.into_bytes(), self.buf)
    }
}

impl<V: IoBufMutVec> OpLifecycle for ReadVectoredAt<V> {
    type Output = BufResult<usize, V>;
    const KIND: &'static str = "readv";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, V> {
        filled_vec(self.bufs, completion)
    }
}

impl<V: IoBufVec> OpLifecycle for WriteVectoredAt<V> {
    type Output = BufResult<usize, V>;
    const KIND: &'static str = "writev";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, V> {
        (completion.into_bytes(), self.bufs)
    }
}

impl OpLifecycle for Sync {
    type Output = io::Result<()>;
    const KIND: &'static str = "sync";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Allocate {
    type Output = io::Result<()>;
    const KIND: &'static str = "allocate";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Truncate {
    type Output = io::Result<()>;
    const KIND: &'static str = "truncate";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Status {
    type Output = io::Result<crate::os::FileStatus>;
    const KIND: &'static str = "status";

    fn into_output(self, completion: Completion) -> io::Result<crate::os::FileStatus> {
        completion.result?;
        Ok(self.status.expect("the backend decodes the status of a successful answer"))
    }
}

impl OpLifecycle for Rename {
    type Output = io::Result<()>;
    const KIND: &'static str = "rename";

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Remove {
    type Output = io::Result<()>;
    const KIND: &'static str = "remove";

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for MakeDirectory {
    type Output = io::Result<()>;
    const KIND: &'static str = "make directory";

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}
