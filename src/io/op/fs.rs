//! Operations on files and directories.

use std::ffi::CString;
use std::io;

use super::{filled, filled_vec, seal};
use crate::io::buf::{BufResult, IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Completion, Descriptor, OpLifecycle, SharedDescriptor};

/// Opens a file.
#[derive(Debug)]
pub struct Open {
    pub(crate) path: CString,
    /// `open(2)` flags.
    pub(crate) flags: i32,
    /// Permissions of a file that is created.
    pub(crate) mode: u32,
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

/// Changes the space a file takes.
#[derive(Debug)]
pub struct Allocate {
    pub(crate) fd: SharedDescriptor,
    /// `fallocate(2)` mode.
    pub(crate) mode: i32,
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
    /// A path, with `statx(2)` flags such as not to follow a symbolic link.
    Path(CString, i32),
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
    pub(crate) from: CString,
    pub(crate) to: CString,
}

/// Removes a name.
#[derive(Debug)]
pub struct Remove {
    pub(crate) path: CString,
    /// Whether the name is an empty directory's.
    pub(crate) directory: bool,
}

/// Makes a directory.
#[derive(Debug)]
pub struct MakeDirectory {
    pub(crate) path: CString,
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
