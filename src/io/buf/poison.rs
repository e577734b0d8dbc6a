//! Tells AddressSanitizer which bytes of a pool are somebody's.
//!
//! The sanitizer knows the heap's allocations by itself; an arena is one mapping to it, all of which may be touched. So under
//! `--cfg asan` (`scripts/asan`) a pool says what belongs to nobody: an arena is poisoned as a whole, a buffer's own bytes, to
//! the byte, are good from when it is made until it is dropped, and a receive ring's while the kernel may fill them. Then the use of
//! a buffer that is gone, a step beyond its capacity, and a foreign thread's write that is late each end the program with a
//! report, although the page is mapped. What the kernel itself writes, the sanitizer does not see.
//!
//! In every other build both functions are nothing.
#![cfg_attr(asan, expect(unsafe_code, reason = "two functions of the sanitizer's runtime"))]

use std::ptr::NonNull;

#[cfg(asan)]
unsafe extern "C" {
    fn __asan_poison_memory_region(start: *const std::ffi::c_void, len: usize);
    fn __asan_unpoison_memory_region(start: *const std::ffi::c_void, len: usize);
}

/// From now on nobody may touch these bytes.
#[inline(always)]
pub(super) fn poison(start: NonNull<u8>, len: usize) {
    #[cfg(asan)]
    // SAFETY: this marks bytes in the sanitizer's own map, and touches none of them.
    unsafe {
        __asan_poison_memory_region(start.as_ptr().cast(), len);
    }
    let _ = (start, len);
}

/// From now on their owner may.
#[inline(always)]
pub(super) fn unpoison(start: NonNull<u8>, len: usize) {
    #[cfg(asan)]
    // SAFETY: this clears the marks in that map, and touches none of the bytes either.
    unsafe {
        __asan_unpoison_memory_region(start.as_ptr().cast(), len);
    }
    let _ = (start, len);
}

/// The hazards themselves, each in a process of its own, which must end with a report. Without these tests a sanitizer that sees
/// nothing would look like a pool without faults.
#[cfg(all(test, asan))]
mod tests {
    use std::process::Command;

    use super::super::{BuddyPool, BufPool, FixedBuf, HybridPool, IoBuf, Pool};

    const CHILD: &str = "VELOQ_TEST_POISON";

    /// Runs the test of this name again in a process of its own, where `hazard` runs, and wants a report of what is `expected`.
    fn caught(name: &str, expected: &str, hazard: impl FnOnce()) {
        if std::env::var_os(CHILD).is_some() {
            return hazard();
        }
        let program = std::env::current_exe().expect("a test has a file");
        let name = format!("io::buf::poison::tests::{name}");
        let mut child = Command::new(program);
        let output = child.args(["--exact", &name]).env(CHILD, "1").output().expect("it starts");
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && report.contains(expected), "{report}");
    }

    /// Reads a byte at an address that may be nobody's.
    fn read(address: *const u8) -> u8 {
        // SAFETY: there is none; the sanitizer ends the process, which is what is tested.
        unsafe { address.read_volatile() }
    }

    fn pool() -> BuddyPool {
        BuddyPool::new(1 << 16).expect("64 KiB can be mapped")
    }

    #[test]
    fn a_buffer_is_used_after_it_was_dropped() {
        caught("a_buffer_is_used_after_it_was_dropped", "use-after-poison", || {
            let pool = pool();
            let buf = pool.alloc(4096);
            let address = buf.io_ptr();
            read(address);
            drop(buf);
            read(address);
        });
    }

    #[test]
    fn a_buffer_is_used_after_another_thread_dropped_it() {
        caught("a_buffer_is_used_after_another_thread_dropped_it", "use-after-poison", || {
            let pool = HybridPool::new(1 << 16).expect("64 KiB can be mapped");
            let buf = pool.alloc(300);
            let address = buf.io_ptr();
            std::thread::spawn(move || drop(buf)).join().expect("dropping does not panic");
            read(address);
        });
    }

    #[test]
    fn a_step_beyond_the_capacity() {
        caught("a_step_beyond_the_capacity", "use-after-poison", || {
            let pool = pool();
            let buf = pool.alloc(4001);
            read(buf.io_ptr().wrapping_add(4000));
            read(buf.io_ptr().wrapping_add(4001));
        });
    }

    #[test]
    fn a_receive_rings_buffer_is_used_before_the_kernel_has_it_again() {
        caught("a_receive_rings_buffer_is_used_before_the_kernel_has_it_again", "use-after-poison", || {
            let pool = Pool::fixed(1 << 16).expect("64 KiB can be mapped");
            let ring = pool.arena().carve_ring(2, 512).expect("the arena is free");
            read(ring.ptr(1).as_ptr());
            // SAFETY: no kernel has been handed the buffer.
            let buf = unsafe { ring.take(1, 0) };
            drop(buf);
            read(ring.ptr(1).as_ptr());
        });
    }

    // There is room for the alignment behind it, which the sanitizer takes for part of the allocation.
    #[test]
    fn a_step_beyond_a_buffer_of_the_heap() {
        caught("a_step_beyond_a_buffer_of_the_heap", "use-after-poison", || {
            let buf = FixedBuf::heap(5000);
            read(buf.io_ptr().wrapping_add(4999));
            read(buf.io_ptr().wrapping_add(5000));
        });
    }

    #[test]
    fn a_buffer_of_the_heap_is_used_after_it_was_dropped() {
        caught("a_buffer_of_the_heap_is_used_after_it_was_dropped", "heap-use-after-free", || {
            let buf = FixedBuf::heap(100);
            let address = buf.io_ptr();
            drop(buf);
            read(address);
        });
    }
}
