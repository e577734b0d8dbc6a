//! What is asked of an open file on the thread itself.
//!
//! These calls look at a file that is open; they wait for no disk.
#![expect(unsafe_code, reason = "asks the system about a handle")]

use std::io;
use std::mem::MaybeUninit;
use std::os::windows::io::AsRawHandle;

use windows_sys::Wdk::Storage::FileSystem::{FileModeInformation, NtQueryInformationFile};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_ALIGNMENT_INFO, FILE_STORAGE_INFO, FileAlignmentInfo, FileStorageInfo, GetFileInformationByHandleEx,
};
use windows_sys::Win32::System::IO::IO_STATUS_BLOCK;

use super::BorrowedDescriptor;

/// The bit of a file's mode for `FILE_FLAG_NO_BUFFERING`, as the kernel names it: `FILE_NO_INTERMEDIATE_BUFFERING`.
const NO_INTERMEDIATE_BUFFERING: u32 = 8;

/// Whether the file was opened with `FILE_FLAG_NO_BUFFERING`.
pub(crate) fn is_direct(file: BorrowedDescriptor<'_>) -> bool {
    let BorrowedDescriptor::Handle(handle) = file else { return false };
    let (mut mode, mut status) = (0u32, MaybeUninit::<IO_STATUS_BLOCK>::zeroed());
    // SAFETY: the handle is open while it is borrowed. The call writes a status block and at most four bytes, and has written them when it
    // returns: a file's mode is known without asking a device.
    let answer = unsafe {
        NtQueryInformationFile(
            handle.as_raw_handle(),
            status.as_mut_ptr(),
            (&raw mut mode).cast(),
            4,
            FileModeInformation,
        )
    };
    answer == 0 && mode & NO_INTERMEDIATE_BUFFERING != 0
}

/// What Direct I/O on the file demands of addresses, and of offsets and lengths; `None` where the system does not say.
///
/// Offsets and lengths are multiples of the logical sector. Addresses are so as well, since a transfer may be split at sectors; and
/// multiples of what the device's adapter wants.
pub(crate) fn direct_alignment(file: BorrowedDescriptor<'_>) -> Option<(u32, u32)> {
    let BorrowedDescriptor::Handle(handle) = file else { return None };
    let (mut storage, mut alignment) = (FILE_STORAGE_INFO::default(), FILE_ALIGNMENT_INFO::default());
    let bytes = |bytes: usize| u32::try_from(bytes).expect("some dozen bytes");
    // SAFETY: the handle is open while it is borrowed, and each call writes at most the structure whose size it is told.
    let (sectors, adapter) = unsafe {
        let handle = handle.as_raw_handle();
        (
            GetFileInformationByHandleEx(
                handle,
                FileStorageInfo,
                (&raw mut storage).cast(),
                bytes(size_of_val(&storage)),
            ),
            GetFileInformationByHandleEx(
                handle,
                FileAlignmentInfo,
                (&raw mut alignment).cast(),
                bytes(size_of_val(&alignment)),
            ),
        )
    };
    let sector = storage.LogicalBytesPerSector;
    if sectors == 0 || !sector.is_power_of_two() {
        return None;
    }
    // A mask: 511 asks for multiples of 512.
    let address = if adapter == 0 { 1 } else { alignment.AlignmentRequirement.saturating_add(1) };
    Some((address.next_power_of_two().max(sector), sector))
}

/// Sets a file's length after the driver has refused to: there is no other way here.
///
/// # Errors
///
/// The refusal.
pub(crate) fn set_len_otherwise(_: BorrowedDescriptor<'_>, _: u64, refusal: io::Error) -> io::Result<()> {
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use std::os::windows::fs::OpenOptionsExt;
    use std::os::windows::io::AsHandle;

    use windows_sys::Win32::Storage::FileSystem::FILE_FLAG_NO_BUFFERING;

    use super::*;

    // A wrong answer would refuse what the kernel takes, or let through what it does not.
    #[test]
    fn a_file_is_direct_if_it_was_opened_so() {
        let cached = tempfile::NamedTempFile::new().expect("a temporary file");
        assert!(!is_direct(BorrowedDescriptor::Handle(cached.as_file().as_handle())));
        let mut options = std::fs::OpenOptions::new();
        let direct =
            options.read(true).custom_flags(FILE_FLAG_NO_BUFFERING).open(cached.path()).expect("it opens");
        assert!(is_direct(BorrowedDescriptor::Handle(direct.as_handle())));
    }

    // The alignment divides addresses; a zero or an odd number would make nonsense of that.
    #[test]
    fn an_alignment_is_a_power_of_two() {
        let file = tempfile::tempfile().expect("a temporary file");
        if let Some((memory, offset)) = direct_alignment(BorrowedDescriptor::Handle(file.as_handle())) {
            assert!(memory.is_power_of_two() && offset.is_power_of_two(), "{memory} {offset}");
        }
    }
}
