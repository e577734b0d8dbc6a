//! The buffer to use: a piece of a pool's arena, or of the heap where there is no pool.
//!
//! ```text
//! base        base + start          + len                    base + capacity
//!  │  dropped    │   content: what    │   spare: whatever the    │
//!  │  by advance │   Deref shows      │   last user left there   │
//! ```
//!
//! A [`FixedBuf`] owns its bytes alone and gives them back when it is dropped, wherever that is (`Home`). Memory from a
//! pool was somebody else's before. So only the bytes that were written through this buffer (by its methods, or by the
//! kernel and then [`set_len`](FixedBuf::set_len)) can ever be seen through it, and `Debug` shows none at all.
#![expect(unsafe_code, reason = "owns raw memory, part of it uninitialised")]

use std::alloc::{self, Layout};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;

use super::arena::Arena;
use super::meter::Meter;
use super::ring::Ring;
use super::{IoBuf, IoBufMut, PAGE, Registration};
use crate::sync::Arc;

/// An owned buffer of fixed capacity, from a [`BufPool`](super::BufPool) or the heap.
///
/// It begins empty. As an [`IoBufMut`] it is filled by reads from its start, and its length is then what was read; as an
/// [`IoBuf`] its content is what a write sends. From 4 KiB of capacity up it begins at a multiple of 4 KiB, from
/// whatever source, as Direct I/O needs; smaller ones of the heap at a multiple of 16.
///
/// It can be sent to and dropped on any thread; the memory finds its way home without a lock. It is good even after its
/// pool is gone.
///
/// ```
/// use veloq::io::buf::FixedBuf;
///
/// let mut buf = FixedBuf::heap(8);
/// buf.extend_from_slice(b"abcdef");
/// buf.advance(2);
/// assert_eq!(&buf[..], b"cdef");
/// assert_eq!((buf.len(), buf.remaining(), buf.capacity()), (4, 2, 6));
/// buf.clear();
/// assert_eq!((buf.len(), buf.capacity()), (0, 8));
/// ```
pub struct FixedBuf {
    /// The first byte, derived from the mapping or from the allocation; good for `capacity` bytes.
    base: NonNull<u8>,
    /// How many bytes `advance` dropped. `start + len <= capacity`.
    start: usize,
    /// Bytes that are content, from `start`; they are initialised.
    len: usize,
    /// What was asked for, counted from `base`.
    capacity: usize,
    home: Home,
}

/// Where the memory goes when the buffer is dropped.
pub(super) enum Home {
    /// To the allocator, with the layout that `heap_layout` gives for the capacity.
    Heap,
    /// The same, and a pool keeps count.
    Metered(Arc<Meter>),
    /// To an arena, as this block.
    Block { arena: NonNull<Arena>, block: u32 },
    /// To a receive ring, as the buffer that the kernel calls `bid`.
    Ring { ring: NonNull<Ring>, bid: u16 },
}

/// Operations hold their buffer in a slot, whose size is everybody's: a `FixedBuf` is three quarters of a cache line.
const _: () = assert!(size_of::<FixedBuf>() <= 48);

// SAFETY: the bytes are this value's alone, and both homes take them back on any thread (`Arena::give_back`,
// `Ring::give_back`).
unsafe impl Send for FixedBuf {}
// SAFETY: through `&FixedBuf` the content can be read and nothing can be written; the homes' state that can be read
// through it (the registration) is atomic.
unsafe impl Sync for FixedBuf {}

impl FixedBuf {
    /// An empty buffer of the heap, for `capacity` bytes. It is not registered with any ring.
    ///
    /// # Panics
    ///
    /// When `capacity` is more than `isize::MAX`. Running out of memory ends the program, as for a `Vec`.
    #[track_caller]
    pub fn heap(capacity: usize) -> FixedBuf {
        FixedBuf::allocate(capacity, Home::Heap)
    }

    /// The same, on account of a pool.
    #[track_caller]
    pub(super) fn metered(capacity: usize, meter: &Arc<Meter>) -> FixedBuf {
        let buf = FixedBuf::allocate(capacity, Home::Metered(Arc::clone(meter)));
        meter.add(capacity);
        buf
    }

    /// An empty buffer of the heap, which is where `home` takes it back to.
    #[track_caller]
    fn allocate(capacity: usize, home: Home) -> FixedBuf {
        let layout = heap_layout(capacity);
        let base = if capacity == 0 {
            layout.dangling_ptr()
        } else {
            // SAFETY: the layout is not of size zero.
            NonNull::new(unsafe { alloc::alloc(layout) }).unwrap_or_else(|| alloc::handle_alloc_error(layout))
        };
        FixedBuf { base, start: 0, len: 0, capacity, home }
    }

    /// The buffer of `capacity` bytes at `base`, the first `len` of them content.
    ///
    /// # Safety
    ///
    /// The bytes are good for reading and writing, and nobody else's, until the buffer gives them back to `home`, which
    /// lent them and stays alive until then. The first `len <= capacity` are initialised.
    pub(super) unsafe fn from_home(base: NonNull<u8>, len: usize, capacity: usize, home: Home) -> FixedBuf {
        debug_assert!(len <= capacity, "a buffer's content is within it");
        debug_assert!(
            capacity < PAGE || base.addr().get().is_multiple_of(PAGE),
            "from 4 KiB up every source gives whole pages"
        );
        FixedBuf { base, start: 0, len, capacity, home }
    }

    /// Bytes of content.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes there is room for, content included: what was asked for, less what [`advance`](Self::advance)
    /// dropped.
    pub fn capacity(&self) -> usize {
        self.capacity - self.start
    }

    /// How many more bytes there is room for, after the content.
    pub fn remaining(&self) -> usize {
        self.capacity() - self.len
    }

    /// Drops all content, and takes back the room that [`advance`](Self::advance) gave up.
    pub fn clear(&mut self) {
        self.start = 0;
        self.len = 0;
    }

    /// Drops the content after the first `len` bytes; does nothing if there is none.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Drops the first `n` bytes of the content, and their room, from the view. Nothing is moved; afterwards the buffer
    /// may begin anywhere, also where Direct I/O does not like it, until [`clear`](Self::clear).
    ///
    /// # Panics
    ///
    /// When the content is shorter than `n`.
    #[track_caller]
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len, "advance({n}) on a buffer with {} bytes of content", self.len);
        self.start += n;
        self.len -= n;
    }

    /// Makes the content `len` bytes long; what is new is `value`.
    ///
    /// # Panics
    ///
    /// When `len` is more than the [`capacity`](Self::capacity): a fixed buffer does not grow.
    #[track_caller]
    pub fn resize(&mut self, len: usize, value: u8) {
        assert!(
            len <= self.capacity(),
            "resize({len}) on a buffer of {} bytes; it does not grow",
            self.capacity()
        );
        if let Some(more) = len.checked_sub(self.len) {
            self.spare_capacity_mut()[..more].fill(MaybeUninit::new(value));
        }
        // The bytes up to `len` were content already or were filled above.
        self.len = len;
    }

    /// Adds `bytes` to the content.
    ///
    /// # Panics
    ///
    /// When there is not room for all of them; see [`remaining`](Self::remaining). `io::Write` takes what fits instead.
    #[track_caller]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        assert!(
            bytes.len() <= self.remaining(),
            "{} bytes do not fit a buffer with room for {} more; it does not grow",
            bytes.len(),
            self.remaining()
        );
        // SAFETY: there is room for `bytes` after the content, as checked above, and this buffer owns it alone, so
        // `bytes` lies elsewhere. The copy initialises what the length then covers.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.view().add(self.len).as_ptr(), bytes.len());
        }
        self.len += bytes.len();
    }

    /// The room after the content. What is in it is unspecified; [`set_len`](Self::set_len) makes it content.
    pub fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the range from `len` to the capacity is within this buffer's memory, which `self` owns and is borrowed
        // exclusively for as long as the slice; `MaybeUninit` asks nothing of the bytes.
        unsafe { slice::from_raw_parts_mut(self.view().add(self.len).as_ptr().cast(), self.remaining()) }
    }

    /// Says that the content is `len` bytes long.
    ///
    /// # Safety
    ///
    /// `len` is at most the [`capacity`](Self::capacity), and the first `len` bytes are initialised.
    pub unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.capacity(), "the content of a buffer is within it");
        self.len = len;
    }

    /// Where the content begins.
    fn view(&self) -> NonNull<u8> {
        // SAFETY: `start <= capacity`, so this is within the memory or one past its end.
        unsafe { self.base.add(self.start) }
    }
}

/// How the heap is asked for `capacity` bytes: at a page from a page up (Direct I/O), else as `malloc` aligns.
#[track_caller]
fn heap_layout(capacity: usize) -> Layout {
    let align = if capacity >= PAGE { PAGE } else { 16 };
    Layout::from_size_align(capacity, align).expect("a buffer's capacity is at most isize::MAX")
}

impl Drop for FixedBuf {
    #[inline]
    fn drop(&mut self) {
        match &self.home {
            &Home::Block { arena, block } => {
                // SAFETY: the block that was lent keeps the header alive.
                if unsafe { arena.as_ref() }.zeroes() {
                    self.zero();
                }
                // SAFETY: the block was lent to this buffer, which is at its end, and nobody else has the bytes.
                unsafe { Arena::give_back(arena, block) }
            }
            &Home::Ring { ring, bid } => {
                // SAFETY: the buffer that was taken keeps the header alive.
                if unsafe { ring.as_ref() }.zeroes() {
                    self.zero();
                }
                // SAFETY: as for a block.
                unsafe { Ring::give_back(ring, bid) }
            }
            Home::Heap => self.deallocate(),
            Home::Metered(meter) => {
                self.deallocate();
                meter.subtract(self.capacity);
            }
        }
    }
}

impl FixedBuf {
    /// Overwrites all its bytes, whoever wrote them.
    #[cold]
    fn zero(&mut self) {
        // SAFETY: `capacity` bytes from `base` are this buffer's alone.
        unsafe { self.base.write_bytes(0, self.capacity) };
    }

    /// Gives the memory back to the allocator. For `drop` alone.
    fn deallocate(&self) {
        if self.capacity > 0 {
            // SAFETY: `allocate` got it with the layout of this very capacity, and this is the buffer's end.
            unsafe { alloc::dealloc(self.base.as_ptr(), heap_layout(self.capacity)) };
        }
    }
}

impl Deref for FixedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` are within the memory and initialised; only `&mut self` writes to them.
        unsafe { slice::from_raw_parts(self.view().as_ptr(), self.len) }
    }
}

impl DerefMut for FixedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.view().as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for FixedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for FixedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

// SAFETY: the bytes lie in an arena or on the heap, not in the value, until it is dropped, and are its alone. Those of a
// registered arena lie in it.
unsafe impl IoBuf for FixedBuf {
    fn io_ptr(&self) -> *const u8 {
        self.view().as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len
    }
    fn io_capacity(&self) -> usize {
        self.capacity()
    }
    fn registration(&self) -> Option<Registration> {
        match &self.home {
            Home::Heap | Home::Metered(_) => None,
            // SAFETY: what this buffer was lent keeps the header alive.
            Home::Block { arena, .. } => unsafe { arena.as_ref() }.registration(),
            // SAFETY: likewise.
            Home::Ring { ring, .. } => unsafe { ring.as_ref() }.registration(),
        }
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for FixedBuf {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.view().as_ptr()
    }
    unsafe fn io_set_len(&mut self, len: usize) {
        // SAFETY: the caller says that `len` bytes are initialised and within the capacity.
        unsafe { self.set_len(len) };
    }
}

/// Adds what fits; a full buffer takes nothing (`Ok(0)`, which `write_all` reports as `WriteZero`).
impl io::Write for FixedBuf {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.remaining());
        self.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// No bytes: they may be a secret, and the spare ones are not even this buffer's.
impl fmt::Debug for FixedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FixedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .field("registered", &self.registration().is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::chunks::Pool;
    use super::super::{BufPool, PoolConfig, PoolKind};

    use super::super::io_buf::{fill, sent};
    use super::*;

    // Direct I/O fails with EINVAL on a misaligned address, and only on some file systems.
    #[test]
    fn the_heap_gives_pages_from_4_kib_up() {
        for capacity in [0, 1, 4095, 4096, 5000, 1 << 20] {
            let buf = FixedBuf::heap(capacity);
            assert_eq!((buf.len(), buf.capacity()), (0, capacity));
            assert!(capacity < PAGE || buf.io_ptr().addr().is_multiple_of(PAGE));
            assert_eq!(buf.registration(), None);
        }
    }

    // A length that counts from the wrong end would show stale bytes.
    #[test]
    fn the_view_shows_exactly_the_content() {
        let mut buf = FixedBuf::heap(10);
        buf.extend_from_slice(b"abcdef");
        buf.advance(2);
        buf.truncate(3);
        assert_eq!(&buf[..], b"cde");
        buf.resize(5, b'x');
        assert_eq!(&buf[..], b"cdexx");
        buf.resize(1, 0);
        buf[0] = b'C';
        assert_eq!(sent(&buf), b"C");
        assert_eq!((buf.capacity(), buf.remaining()), (8, 7));
        buf.truncate(100);
        assert_eq!(buf.len(), 1);
    }

    // After `advance` a read must fill the view, not the memory's first bytes.
    #[test]
    fn a_read_fills_the_view_up_to_its_capacity() {
        let mut buf = FixedBuf::heap(8);
        buf.extend_from_slice(b"ab");
        buf.advance(2);
        assert_eq!(fill(&mut buf, b"0123456789"), 6);
        assert_eq!(&buf[..], b"012345");
        assert!(buf.spare_capacity_mut().is_empty());
    }

    // `write` that panicked or overran would turn a full buffer into a crash.
    #[test]
    fn writing_takes_what_fits() {
        let mut buf = FixedBuf::heap(4);
        assert_eq!(buf.write(b"abc").expect("a buffer does not fail"), 3);
        assert_eq!(buf.write(b"def").expect("a buffer does not fail"), 1);
        assert_eq!(&buf[..], b"abcd");
        assert_eq!(buf.write_all(b"x").map_err(|e| e.kind()), Err(io::ErrorKind::WriteZero));
    }

    #[test]
    #[should_panic(expected = "3 bytes do not fit a buffer with room for 2 more")]
    fn extending_past_the_capacity_panics() {
        let mut buf = FixedBuf::heap(4);
        buf.extend_from_slice(b"ab");
        buf.extend_from_slice(b"cde");
    }

    #[test]
    #[should_panic(expected = "advance(3) on a buffer with 2 bytes of content")]
    fn advancing_past_the_content_panics() {
        let mut buf = FixedBuf::heap(4);
        buf.extend_from_slice(b"ab");
        buf.advance(3);
    }

    // A log line must not print a client's password.
    #[test]
    fn debug_shows_no_bytes() {
        let mut buf = FixedBuf::heap(4);
        buf.extend_from_slice(b"abc");
        assert_eq!(format!("{buf:?}"), "FixedBuf { len: 3, capacity: 4, registered: false }");
    }

    // A secret that stays in a recycled block would be in a core dump.
    #[test]
    fn zero_on_recycle_leaves_no_byte() {
        for kind in [PoolKind::Buddy, PoolKind::Hybrid] {
            for zero_on_recycle in [true, false] {
                let config = PoolConfig {
                    kind,
                    bytes: 64 << 10,
                    chunks_max: 1,
                    zero_on_recycle,
                    ..PoolConfig::default()
                };
                let pool = Pool::new(&config).expect("64 KiB can be mapped");
                let mut secret = pool.alloc(5000);
                let address = secret.io_ptr();
                secret.resize(5000, 0xEE);
                // What was written and then taken out of sight must go as well.
                secret.truncate(1);
                drop(secret);
                let mut next = pool.alloc(5000);
                assert_eq!(next.io_ptr(), address, "the block is lent again at once");
                let spare = next.spare_capacity_mut().iter();
                // SAFETY: the mapping was zeroed, or written above, so every byte of it is initialised.
                let left = spare.filter(|byte| unsafe { byte.assume_init() } != 0).count();
                assert_eq!(left, if zero_on_recycle { 0 } else { 5000 });
            }
        }
    }
}
