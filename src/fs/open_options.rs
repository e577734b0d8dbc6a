//! How a file is to be opened: std's options, Direct I/O, and direct descriptors.
//!
//! The options are collected as data and meet the system at [`OpenOptions::open`] alone: there a combination that no system knows is
//! refused, the rest becomes what the system takes (`os`: flags, or access and disposition), and one operation opens the file. If Direct
//! I/O is wanted, its alignment is asked for next, so that the [`File`] can refuse a transfer that does not fit before the kernel does.
//!
//! Dropping the future of `open` leaves no descriptor behind. What the option to create, or to truncate, has done by then, is done.

use std::io;
use std::path::Path;

use super::{Alignment, Buffering, File};
use crate::io::driver::Descriptor;
use crate::io::op::{self, fs::Open};
use crate::os::{OpenExtras, OpenHow, Wanted, system_path};

/// How a file is to be opened: std's options, and what a ring can do beyond them.
///
/// ```
/// use veloq::fs::{Buffering, OpenOptions};
///
/// #[veloq::main(workers = 1)]
/// async fn main() -> std::io::Result<()> {
///     # let dir = tempfile::tempdir()?;
///     # let path = dir.path().join("log");
///     let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).await?;
///     let again = OpenOptions::new().write(true).create_new(true).open(&path).await;
///     assert_eq!(again.expect_err("it is there").kind(), std::io::ErrorKind::AlreadyExists);
///     file.close().await
/// }
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    wanted: Wanted,
    extras: OpenExtras,
    buffering: Buffering,
    direct_descriptor: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions::new()
    }
}

impl OpenOptions {
    /// Nothing asked for: cached, mode `0o666` for a file that is created, and neither read nor write, so that at least
    /// one of them must follow.
    pub fn new() -> OpenOptions {
        OpenOptions {
            wanted: Wanted::default(),
            extras: OpenExtras::default(),
            buffering: Buffering::Cached,
            direct_descriptor: false,
        }
    }

    /// Whether the file can be read.
    pub fn read(&mut self, read: bool) -> &mut OpenOptions {
        self.wanted.read = read;
        self
    }

    /// Whether the file can be written.
    pub fn write(&mut self, write: bool) -> &mut OpenOptions {
        self.wanted.write = write;
        self
    }

    /// Whether every write goes to the end of the file, whatever its offset: so Linux has it, also for
    /// [`write_at`](File::write_at).
    pub fn append(&mut self, append: bool) -> &mut OpenOptions {
        self.wanted.append = append;
        self
    }

    /// Whether the file is emptied.
    pub fn truncate(&mut self, truncate: bool) -> &mut OpenOptions {
        self.wanted.truncate = truncate;
        self
    }

    /// Whether the file is made if it is not there.
    pub fn create(&mut self, create: bool) -> &mut OpenOptions {
        self.wanted.create = create;
        self
    }

    /// Whether the file is made, and must not have been there. Of several that try, one succeeds.
    pub fn create_new(&mut self, create_new: bool) -> &mut OpenOptions {
        self.wanted.create_new = create_new;
        self
    }

    /// Whether reads and writes go through the page cache. See [`Buffering`].
    pub fn buffering(&mut self, buffering: Buffering) -> &mut OpenOptions {
        self.buffering = buffering;
        self
    }

    /// Whether the file becomes a direct descriptor of this worker's ring: cheaper for the kernel to find, usable on this
    /// worker only, and without a descriptor of the process, so that [`as_fd`](File::as_fd),
    /// [`into_std`](File::into_std) and [`metadata`](File::metadata) are `Unsupported`. Such a file that is also opened
    /// for Direct I/O cannot be asked for its alignment; 4 KiB is taken.
    pub fn direct_descriptor(&mut self, direct_descriptor: bool) -> &mut OpenOptions {
        self.direct_descriptor = direct_descriptor;
        self
    }

    /// Opens the file.
    ///
    /// Dropped before it is ready, the future leaves no descriptor behind; a file that was to be created may be there.
    ///
    /// # Errors
    ///
    /// What the operating system said, the kinds as std has them. `InvalidInput` for options that contradict each other,
    /// for a path with a zero byte in it, and, from the operating system, where the file system knows no Direct I/O.
    /// `Unsupported` for a direct descriptor on a ring without a table for them.
    ///
    /// # Panics
    ///
    /// When polled outside a worker.
    pub async fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let how = self.how()?;
        let direct = how.is_direct();
        let path = system_path(path.as_ref())?;
        let open = Open { path, how, direct: self.direct_descriptor };
        let descriptor = op::start(open).await?;
        let alignment = match &descriptor {
            _ if !direct => None,
            Descriptor::Os(_) => Alignment::of(descriptor.as_os()?),
            Descriptor::Direct(_) => Some(Alignment::UNKNOWN),
        };
        Ok(File::new(descriptor, alignment))
    }

    /// How the system is asked to open it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for options that contradict each other: the same ones as std refuses.
    fn how(&self) -> io::Result<OpenHow> {
        let Wanted { read, write, append, truncate, create, create_new, .. } = self.wanted;
        if !read && !write && !append && !self.extras.name_access() {
            return Err(contradiction("a file is opened to read, to write or to append"));
        }
        if !write && !append && (create || create_new || truncate) {
            return Err(contradiction(
                "a file is created or truncated only if it is opened to write or append",
            ));
        }
        if append && truncate && !create_new {
            return Err(contradiction("a file is opened to be truncated or to be appended to, not both"));
        }
        let wanted = Wanted {
            direct: self.buffering != Buffering::Cached,
            durable: self.buffering == Buffering::DirectSync,
            ..self.wanted
        };
        Ok(OpenHow::new(&wanted, &self.extras))
    }
}

#[cfg(unix)]
impl OpenOptions {
    /// The permission bits of a file that is created, before the process's umask takes some away; `0o666` by default.
    pub fn mode(&mut self, mode: u32) -> &mut OpenOptions {
        self.extras.mode = mode;
        self
    }

    /// More `open(2)` flags. The access mode among them is ignored, and `O_CLOEXEC` is always set.
    pub fn custom_flags(&mut self, flags: i32) -> &mut OpenOptions {
        self.extras.custom_flags = flags;
        self
    }
}

/// std's own trait: `FILE_FLAG_OVERLAPPED` is added to the flags in any case.
#[cfg(windows)]
impl std::os::windows::fs::OpenOptionsExt for OpenOptions {
    fn access_mode(&mut self, access: u32) -> &mut OpenOptions {
        self.extras.access_mode = Some(access);
        self
    }

    fn share_mode(&mut self, share: u32) -> &mut OpenOptions {
        self.extras.share_mode = Some(share);
        self
    }

    fn custom_flags(&mut self, flags: u32) -> &mut OpenOptions {
        self.extras.custom_flags = flags;
        self
    }

    fn attributes(&mut self, attributes: u32) -> &mut OpenOptions {
        self.extras.attributes = attributes;
        self
    }

    fn security_qos_flags(&mut self, flags: u32) -> &mut OpenOptions {
        self.extras.security_qos_flags = Some(flags);
        self
    }
}

fn contradiction(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
