//! Names: giving, taking away, and the directories they stand in.
//!
//! A dropped future may have done its work all the same. What must survive a crash of the machine (a rename that replaces
//! a file) needs the directory synced afterwards: [`sync_dir`].

use std::io;
use std::path::Path;

use super::{File, metadata};
use crate::io::op::{
    self,
    fs::{MakeDirectory, Open, Remove, Rename},
};
use crate::os::{OpenHow, system_path};

/// The permission bits of a new directory, before the process's umask takes some away: as std has it.
const DIRECTORY_MODE: u32 = 0o777;

/// Gives a file or directory another name, in place of what had that name. Nobody sees a moment in between.
///
/// # Errors
///
/// What the operating system said, as `NotFound`, or `CrossesDevices` if the names are on two file systems.
/// `InvalidInput` for a path with a zero byte in it.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (system_path(from.as_ref())?, system_path(to.as_ref())?);
    op::start(Rename { from, to }).await
}

/// Removes a file's name. The file itself goes with its last name and its last open descriptor.
///
/// # Errors
///
/// What the operating system said, as `NotFound`, or `IsADirectory`. `InvalidInput` for a path with a zero byte in it.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    op::start(Remove { path: system_path(path.as_ref())?, directory: false }).await
}

/// Removes an empty directory.
///
/// # Errors
///
/// What the operating system said, as `NotFound`, `NotADirectory`, or `DirectoryNotEmpty`. `InvalidInput` for a path
/// with a zero byte in it.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn remove_dir(path: impl AsRef<Path>) -> io::Result<()> {
    op::start(Remove { path: system_path(path.as_ref())?, directory: true }).await
}

/// Makes a directory in one that is there.
///
/// # Errors
///
/// What the operating system said, as `AlreadyExists`, or `NotFound` if the one above is not there. `InvalidInput` for a
/// path with a zero byte in it.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    op::start(MakeDirectory { path: system_path(path.as_ref())?, mode: DIRECTORY_MODE }).await
}

/// Makes a directory, and those above it that are not there. Others may do the same at the same time.
///
/// ```
/// #[veloq::main(workers = 1)]
/// async fn main() -> std::io::Result<()> {
///     # let dir = tempfile::tempdir()?;
///     let deep = dir.path().join("a/b/c");
///     veloq::fs::create_dir_all(&deep).await?;
///     veloq::fs::create_dir_all(&deep).await?;        // nothing to do, and no error
///     assert!(veloq::fs::metadata(&deep).await?.is_dir());
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// What the operating system said to the first directory that could not be made. Those above it stay.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    // Up, until there is a directory or one can be made; then down again. The empty path is where relative ones start.
    let mut missing = Vec::new();
    for dir in path.as_ref().ancestors().take_while(|dir| !dir.as_os_str().is_empty()) {
        match create_unless_there(dir).await {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(dir),
            Err(error) => return Err(error),
        }
    }
    for dir in missing.into_iter().rev() {
        create_unless_there(dir).await?;
    }
    Ok(())
}

/// Waits until the names in a directory are on the device: files made, renamed or removed in it before.
///
/// It does for a directory what [`File::sync_all`] does for a file, on systems that open directories as files (Linux) and on those that
/// do so only if asked in another way (Windows).
///
/// ```
/// use veloq::fs;
///
/// #[veloq::main(workers = 1)]
/// async fn main() -> std::io::Result<()> {
///     # let dir = tempfile::tempdir()?;
///     # let dir = dir.path();
///     let (written, _) = fs::write(dir.join("new"), "content").await;
///     written?;
///     fs::rename(dir.join("new"), dir.join("file")).await?;
///     fs::sync_dir(dir).await
/// }
/// ```
///
/// # Errors
///
/// What the operating system said, as `NotFound`, `NotADirectory`, or, on Windows, `PermissionDenied` to who may not write to it.
/// `InvalidInput` for a path with a zero byte in it.
///
/// # Panics
///
/// When polled outside a worker.
pub async fn sync_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let open = Open { path: system_path(path.as_ref())?, how: OpenHow::directory(), direct: false };
    File::new(op::start(open).await?, None).sync_all().await
}

/// Makes a directory, or finds one there.
async fn create_unless_there(dir: &Path) -> io::Result<()> {
    match create_dir(dir).await {
        // A mount point may answer with another error than `AlreadyExists`; what counts is that it is a directory.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            if metadata(dir).await.is_ok_and(|found| found.is_dir()) { Ok(()) } else { Err(error) }
        }
        made => made,
    }
}
