//! Memory straight from the kernel, for what the kernel itself will read and write.
//!
//! A [`Mapping`] is private, anonymous, zeroed and page-aligned. It is mapped once, never grows, never moves, and is
//! unmapped when the value is dropped; nothing else in the crate unmaps anything. Pages are committed when they are
//! first touched, so an arena that is larger than a program's need costs address space only, until it is registered
//! with a ring (which pins, and so commits, all of it).
#![expect(unsafe_code, reason = "maps and unmaps memory")]

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A private, anonymous mapping: owned memory without a type.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone, as a `Box<[u8]>`'s would, and its methods only copy the pointer out;
// whoever uses that pointer answers for the use. `munmap` may be called from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; through `&Mapping` there is nothing to do but copy the pointer and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of zeroes, readable and writable.
    ///
    /// # Errors
    ///
    /// What `mmap` answered: `ENOMEM` when there is no room, `EINVAL` when `len` is zero.
    pub(crate) fn new(len: usize) -> io::Result<Mapping> {
        // SAFETY: a null hint without `MAP_FIXED` lets the kernel choose a free range, so no memory that anyone knows
        // of is replaced.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let base =
            NonNull::new(base.cast::<u8>()).expect("the kernel maps nothing at address 0 unless told to");
        Ok(Mapping { base, len })
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

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are what `mmap` gave this value, unmapped nowhere else. Pointers into the range are
        // the business of whoever took them from `base()`, which says until when they hold.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
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
}
