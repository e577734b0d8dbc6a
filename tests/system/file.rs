//! std's calls on files by offset, which every system names in its own way, and who has a file open.

use std::fs::File;
use std::io;
use std::path::Path;

#[cfg(unix)]
pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, offset)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buf, offset)
}

#[cfg(unix)]
pub(crate) fn write_at(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::write_at(file, buf, offset)
}

#[cfg(windows)]
pub(crate) fn write_at(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_write(file, buf, offset)
}

/// The open descriptors of this process that lead to `path`.
#[cfg(target_os = "linux")]
pub(crate) fn descriptors_of(path: &Path) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    all.filter(|entry| {
        let entry = entry.as_ref().expect("an entry of /proc");
        std::fs::read_link(entry.path()).is_ok_and(|target| target == path)
    })
    .count()
}

/// 1 if anybody has the file open, which then nobody can have alone.
#[cfg(windows)]
pub(crate) fn descriptors_of(path: &Path) -> usize {
    let alone = std::os::windows::fs::OpenOptionsExt::share_mode(File::options().read(true), 0).open(path);
    usize::from(alone.is_err())
}
