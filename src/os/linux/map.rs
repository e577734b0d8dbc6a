//! Memory straight from the kernel, for what the kernel itself will read and write.
//!
//! A [`Mapping`] is private, anonymous, zeroed and page-aligned. It is mapped once, never grows, never moves, and is
//! unmapped when the value is dropped; nothing else in the crate unmaps anything. Pages are committed when they are
//! first touched, so an arena that is larger than a program's need costs address space only, until it is registered
//! with a ring (which pins, and so commits, all of it).
//!
//! **Guarded mappings** ([`Mapping::guarded`]) lie within a larger reservation without any access:
//!
//! ```text
//! reserved:  no access, 64 KiB or more │ base ... the bytes ... base + len │ no access, 64 KiB or more
//! ```
//!
//! One byte before or after is a fault, instead of another allocation's byte. That costs address space and two entries in
//! the process's table of mappings, no memory, so it is done in every build. The slack also lets `base` be a multiple of
//! 2 MiB, without which the kernel has no huge page to give.
//!
//! **Which node of a NUMA machine** the pages come from is not asked for. The kernel takes them from the node of the CPU
//! that first touches them: the worker's, as it is pinned before it maps anything, and registering touches all pages on
//! that same thread. Binding them by `mbind` would say the same again, and overrule whoever runs the program under a
//! policy of theirs (`numactl --interleave`).
#![expect(unsafe_code, reason = "maps and unmaps memory")]

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};

/// The size of the huge pages that x86-64 and, with 4 KiB pages, AArch64 have by default.
const HUGE: usize = 2 << 20;

/// Bytes without access on either side of a guarded mapping, at least: the largest page of any system that we run on.
const GUARD: usize = 64 << 10;

/// A private, anonymous mapping: owned memory without a type.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// What is unmapped in the end: the bytes and their guards.
    reserved: (NonNull<u8>, usize),
}

// SAFETY: the memory belongs to this value alone, as a `Box<[u8]>`'s would, and its methods only copy the pointer out;
// whoever uses that pointer answers for the use. `munmap` may be called from any thread.
unsafe impl Send for Mapping {}
// SAFETY: through `&Mapping` there is nothing to do but copy the pointer and the length, which never change.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of zeroes, readable and writable.
    ///
    /// # Errors
    ///
    /// What `mmap` answered: `ENOMEM` when there is no room, `EINVAL` when `len` is zero.
    pub(crate) fn new(len: usize) -> io::Result<Mapping> {
        let base = reserve(len, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Mapping { base, len, reserved: (base, len) })
    }

    /// Maps `len` bytes of zeroes between two guards. From 2 MiB up they begin at a multiple of that, and with
    /// `advise_huge` the kernel is asked for huge pages, which it gives if it likes.
    ///
    /// # Errors
    ///
    /// What the kernel answered: `ENOMEM` when there is no room.
    pub(crate) fn guarded(len: usize, advise_huge: bool) -> io::Result<Mapping> {
        let mapping = Mapping::within_guards(len)?;
        if advise_huge && len >= HUGE {
            // Advice: where it is not heard (a kernel built without huge pages) the pages are small, and all is well.
            // SAFETY: the range is this mapping's, and the advice changes how it is backed, not what is in it.
            let _heard = unsafe { madvise(mapping.base.as_ptr().cast(), len, Advice::LinuxHugepage) };
        }
        Ok(mapping)
    }

    /// The same, from the huge pages that the administrator has set aside, which are committed at once.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when too few are set aside; `EINVAL` when `len` is not a multiple of 2 MiB.
    pub(crate) fn guarded_reserved_huge(len: usize) -> io::Result<Mapping> {
        if !len.is_multiple_of(HUGE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        // Mapped where there is nothing, then the guards where there is nothing: mapping over a reservation would, if it
        // failed, leave a hole that another thread's memory may fill before the reservation is unmapped.
        // SAFETY: a null hint without `MAP_FIXED` replaces nothing.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        let base =
            NonNull::new(base.cast::<u8>()).expect("the kernel maps nothing at address 0 unless told to");
        let mut mapping = Mapping { base, len, reserved: (base, len) };
        let start = base.as_ptr().wrapping_sub(GUARD);
        guard(start)?;
        // What is unmapped grows with each guard that stands, and stays one range.
        mapping.reserved = (NonNull::new(start).expect("mapped just now"), GUARD + len);
        guard(base.as_ptr().wrapping_add(len))?;
        mapping.reserved.1 += GUARD;
        Ok(mapping)
    }

    fn within_guards(len: usize) -> io::Result<Mapping> {
        let align = if len >= HUGE { HUGE } else { GUARD };
        let room = len.checked_add(align + 2 * GUARD).ok_or(io::ErrorKind::OutOfMemory)?;
        let start = reserve(room, ProtFlags::empty())?;
        let before = (start.addr().get() + GUARD).next_multiple_of(align) - start.addr().get();
        // SAFETY: `before` is less than `GUARD + align`, so `len` bytes from there, and a guard after them, are within
        // the reservation.
        let base = unsafe { start.add(before) };
        // From here on the reservation is unmapped by this value, whatever comes.
        let mapping = Mapping { base, len, reserved: (start, room) };
        // Opened rather than mapped again: if that fails, the range is still this reservation's.
        // SAFETY: the range is this reservation's own and used by nobody.
        unsafe { mprotect(base.as_ptr().cast(), len, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        Ok(mapping)
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

/// Maps a guard at `start`, if nothing is mapped there.
fn guard(start: *mut u8) -> io::Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: `MAP_FIXED_NOREPLACE` fails where anything is mapped, so no memory that anyone knows of is replaced.
    let mapped = unsafe { mmap_anonymous(start.cast(), GUARD, ProtFlags::empty(), flags) }?;
    assert!(std::ptr::eq(mapped.cast(), start), "every kernel that Veloq runs on knows the flag");
    Ok(())
}

/// Maps `len` bytes wherever the kernel likes.
fn reserve(len: usize, prot: ProtFlags) -> io::Result<NonNull<u8>> {
    let flags = MapFlags::PRIVATE;
    // SAFETY: a null hint without `MAP_FIXED` lets the kernel choose a free range, so no memory that anyone knows of is
    // replaced.
    let base = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, flags) }?;
    Ok(NonNull::new(base.cast::<u8>()).expect("the kernel maps nothing at address 0 unless told to"))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = self.reserved;
        // SAFETY: this is the range that `mmap` gave this value, unmapped nowhere else. Pointers into it are the business
        // of whoever took them from `base()`, which says until when they hold.
        let unmapped = unsafe { munmap(start.as_ptr().cast(), len) };
        debug_assert!(unmapped.is_ok(), "munmap refused a range that mmap gave: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Wrong flags would show as a fault at the first or the last byte, or as bytes that are not zero.
    #[test]
    fn a_mapping_is_zeroed_page_aligned_and_writable_to_its_last_byte() {
        let map = Mapping::new(1 << 16).expect("64 KiB can be mapped");
        assert_eq!(map.base().as_ptr().addr() % 4096, 0);
        // SAFETY: the mapping is alive, `1 << 16` bytes long, and nobody else knows its address.
        let bytes = unsafe { std::slice::from_raw_parts_mut(map.base().as_ptr(), map.len()) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes[(1 << 16) - 1] = 7;
        assert_eq!(bytes[(1 << 16) - 1], 7);
    }

    // A length of zero must come back as the kernel's error, not as a panic or a dangling mapping.
    #[test]
    fn an_empty_mapping_is_the_kernels_error() {
        assert_eq!(Mapping::new(0).map(|_| ()).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
    }

    // Without guards, a driver's arithmetic that is off by one would read or spoil somebody else's memory and nobody would
    // know. The kernel is asked, since a fault would end the test: it refuses (`EFAULT`) to read where nobody may.
    #[test]
    fn a_guarded_mapping_has_no_access_on_either_side() {
        for len in [64 << 10, 4 << 20] {
            let map = Mapping::guarded(len, true).expect("it can be mapped");
            assert!(map.base().addr().get().is_multiple_of(if len >= HUGE { HUGE } else { GUARD }));
            let (read, write) = rustix::pipe::pipe().expect("there are descriptors");
            let readable = |offset: isize| {
                // SAFETY: the kernel is given one byte of this mapping's own reservation to read, and copes if it
                // may not be read.
                let written = unsafe {
                    libc::write(raw(&write), map.base().as_ptr().wrapping_offset(offset).cast(), 1)
                };
                written == 1
            };
            let end = isize::try_from(len).expect("it was mapped");
            assert_eq!([-1, 0, end - 1, end].map(readable), [false, true, true, false], "{len} bytes");
            drop(read);
        }
    }

    fn raw(fd: &impl std::os::fd::AsRawFd) -> i32 {
        fd.as_raw_fd()
    }

    // Most machines have none set aside: that must be an error and no smaller mapping; where there are some, it is whole.
    #[test]
    fn reserved_huge_pages_are_given_whole_or_refused() {
        match Mapping::guarded_reserved_huge(HUGE) {
            Ok(map) => assert_eq!((map.len(), map.base().addr().get() % HUGE), (HUGE, 0)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{error}"),
        }
        assert_eq!(
            Mapping::guarded_reserved_huge(HUGE / 2).map(|_| ()).map_err(|e| e.kind()),
            Err(io::ErrorKind::InvalidInput)
        );
    }
}
