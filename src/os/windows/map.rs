//! Memory straight from the kernel, for what the kernel itself will read and write.
//!
//! A [`Mapping`] is private, zeroed and page-aligned. It is mapped once, never grows, never moves, and is unmapped when the
//! value is dropped; nothing else in the crate unmaps anything. Its bytes are *committed*, all of them at once: the system
//! promises a page for each, in memory or in the paging file, which counts against what the machine can promise. Memory they
//! take only when they are first touched.
//!
//! **Guarded mappings** ([`Mapping::guarded`]) lie within a larger reservation without any access:
//!
//! ```text
//! reserved:  no access, 64 KiB or more │ base ... the bytes ... base + len │ no access, 64 KiB or more
//! ```
//!
//! One byte before or after is a fault, instead of another allocation's byte. That costs address space and no memory, so it is
//! done in every build. From 2 MiB up `base` is a multiple of that, as on other systems.
//!
//! **Locked** (`VirtualLock`) is what the quota allows: such pages stay in memory, and no transfer waits for the paging file. The system
//! gives a process as many locked pages as the minimum of its *working set* says, which is next to nothing unless the program raises it
//! (`SetProcessWorkingSetSize`). What it does not give is left unlocked.
//!
//! **Which node of a NUMA machine** the pages come from is not asked for: they are of the ideal processor's node of the thread that first
//! touches them, which is the worker's, as it is pinned.
#![expect(unsafe_code, reason = "maps and unmaps memory")]

use std::io;
use std::ptr::{self, NonNull};

use windows_sys::Win32::System::Memory::{
    GetLargePageMinimum, MEM_COMMIT, MEM_LARGE_PAGES, MEM_RELEASE, MEM_RESERVE, PAGE_NOACCESS,
    PAGE_READWRITE, VirtualAlloc, VirtualFree, VirtualLock,
};

/// The size of the large pages that x86-64 and, with 4 KiB pages, AArch64 have.
const HUGE: usize = 2 << 20;

/// Bytes without access on either side of a guarded mapping, at least: what addresses of reservations are multiples of.
const GUARD: usize = 64 << 10;

/// Owned memory without a type.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// What is released in the end: the reservation's start, and those of guards that are reservations of their own.
    reserved: [Option<NonNull<u8>>; 3],
}

// SAFETY: the memory belongs to this value alone, as a `Box<[u8]>`'s would, and its methods only copy the pointer out;
// whoever uses that pointer answers for the use. `VirtualFree` may be called from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; through `&Mapping` there is nothing to do but copy the pointer and the length, and to lock the pages, which
// the kernel does by itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of zeroes between two guards. From 2 MiB up they begin at a multiple of that. `_advise_huge` is not heard: large
    /// pages are given to those who may lock memory, and then whole ([`guarded_reserved_huge`](Self::guarded_reserved_huge)).
    ///
    /// # Errors
    ///
    /// What the kernel answered: `OutOfMemory` when it can promise no more. `InvalidInput` when `len` is zero.
    pub(crate) fn guarded(len: usize, _advise_huge: bool) -> io::Result<Mapping> {
        if len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let align = if len >= HUGE { HUGE } else { GUARD };
        let room = len.checked_add(align + 2 * GUARD).ok_or(io::ErrorKind::OutOfMemory)?;
        let start = reserve(ptr::null_mut(), room)?;
        let before = (start.addr().get() + GUARD).next_multiple_of(align) - start.addr().get();
        // SAFETY: `before` is less than `GUARD + align`, so `len` bytes from there, and a guard after them, are within
        // the reservation.
        let base = unsafe { start.add(before) };
        // From here on the reservation is released by this value, whatever comes.
        let mapping = Mapping { base, len, reserved: [Some(start), None, None] };
        // SAFETY: the range is this reservation's own and used by nobody.
        let committed = unsafe { VirtualAlloc(base.as_ptr().cast(), len, MEM_COMMIT, PAGE_READWRITE) };
        if committed.is_null() {
            return Err(io::Error::last_os_error());
        }
        // As far as the quota goes; what is not locked is used all the same.
        let _locked = mapping.lock();
        Ok(mapping)
    }

    /// The same, from large pages, which are locked in memory. Only who may lock memory (`SeLockMemoryPrivilege`) gets any.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`, or what the kernel answered; `InvalidInput` when `len` is not a multiple of 2 MiB; an error also if
    /// something lies where a guard should.
    pub(crate) fn guarded_reserved_huge(len: usize) -> io::Result<Mapping> {
        // SAFETY: the call has no preconditions.
        let page = unsafe { GetLargePageMinimum() };
        if page == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if len == 0 || !len.is_multiple_of(page) || !len.is_multiple_of(HUGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let how = MEM_RESERVE | MEM_COMMIT | MEM_LARGE_PAGES;
        // SAFETY: a null address lets the kernel choose a free range, so no memory that anyone knows of is replaced.
        let base = unsafe { VirtualAlloc(ptr::null(), len, how, PAGE_READWRITE) };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let mut mapping = Mapping { base, len, reserved: [Some(base), None, None] };
        // Large pages are committed as they are reserved, so the guards are reservations of their own, beside them.
        mapping.reserved[1] = Some(reserve(base.as_ptr().wrapping_sub(GUARD), GUARD)?);
        mapping.reserved[2] = Some(reserve(base.as_ptr().wrapping_add(len), GUARD)?);
        Ok(mapping)
    }

    /// Keeps the bytes in memory until the mapping is dropped.
    ///
    /// # Errors
    ///
    /// What the kernel answered, where the process's working set has no room for them.
    fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping's, and locking changes nothing that is in it. Unlocked it is by being released.
        let locked = unsafe { VirtualLock(self.base.as_ptr().cast(), self.len) };
        if locked == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The first byte; the pointer may be used for all [`len`](Self::len) bytes, until the mapping is dropped.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes asked for.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Reserves addresses without access: at `at`, if nothing is there, or wherever the kernel likes if that is null.
fn reserve(at: *mut u8, len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: reserving fails where anything is reserved, so no memory that anyone knows of is replaced.
    let start = unsafe { VirtualAlloc(at.cast(), len, MEM_RESERVE, PAGE_NOACCESS) };
    NonNull::new(start.cast::<u8>()).ok_or_else(io::Error::last_os_error)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        for start in self.reserved.into_iter().flatten() {
            // SAFETY: this is what `VirtualAlloc` reserved for this value, released nowhere else. Pointers into it are the business
            // of whoever took them from `base()`, which says until when they hold.
            let released = unsafe { VirtualFree(start.as_ptr().cast(), 0, MEM_RELEASE) };
            debug_assert!(released != 0, "VirtualFree refused a range that VirtualAlloc gave");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use windows_sys::Win32::System::Memory::{MEMORY_BASIC_INFORMATION, VirtualQuery};

    use super::*;

    /// What may be done with the page of an address.
    fn protection(address: *const u8) -> u32 {
        let mut about = MaybeUninit::<MEMORY_BASIC_INFORMATION>::zeroed();
        // SAFETY: the kernel writes at most the size it is told; it is asked about an address and does not go there. All-zero is a
        // valid answer.
        let about = unsafe {
            VirtualQuery(address.cast(), about.as_mut_ptr(), size_of::<MEMORY_BASIC_INFORMATION>());
            about.assume_init()
        };
        about.Protect
    }

    // Without guards, a driver's arithmetic that is off by one would read or spoil somebody else's memory and nobody would
    // know. The kernel is asked, since a fault would end the test.
    #[test]
    fn a_guarded_mapping_has_no_access_on_either_side() {
        for len in [64 << 10, 4 << 20] {
            let map = Mapping::guarded(len, true).expect("it can be mapped");
            let base = map.base().as_ptr();
            assert!(base.addr().is_multiple_of(if len >= HUGE { HUGE } else { GUARD }));
            // SAFETY: the mapping is alive, `len` bytes long, and nobody else knows its address.
            let bytes = unsafe { std::slice::from_raw_parts_mut(base, map.len()) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes[len - 1] = 7;
            let seen = [base.wrapping_sub(1), base, base.wrapping_add(len - 1), base.wrapping_add(len)]
                .map(|address| protection(address));
            assert!(
                matches!(seen, [0 | PAGE_NOACCESS, PAGE_READWRITE, PAGE_READWRITE, 0 | PAGE_NOACCESS]),
                "{seen:?}"
            );
        }
    }

    // Memory that is not there must come back as an error, and so must none at all.
    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        assert_eq!(
            Mapping::guarded(0, false).map(drop).map_err(|error| error.kind()),
            Err(io::ErrorKind::InvalidInput)
        );
        assert!(Mapping::guarded(usize::MAX - HUGE, false).is_err());
    }

    // Nearly nobody may have large pages: that must be an error and no smaller mapping; where they are given, all of them are.
    #[test]
    fn large_pages_are_given_whole_or_refused() {
        if let Ok(map) = Mapping::guarded_reserved_huge(HUGE) {
            assert_eq!((map.len(), map.base().addr().get() % HUGE), (HUGE, 0));
            assert_eq!(protection(map.base().as_ptr().wrapping_add(HUGE)), 0);
        }
        assert!(Mapping::guarded_reserved_huge(HUGE / 2).is_err());
    }

    // Pages beyond the quota are refused, not fatal; a few are within every quota.
    #[test]
    fn a_few_pages_can_be_locked() {
        let map = Mapping::guarded(4096, false).expect("it can be mapped");
        map.lock().expect("one page is within every working set");
    }
}
