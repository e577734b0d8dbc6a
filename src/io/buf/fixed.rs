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
//!
//! **Splitting** makes of one buffer two, each the owner of its part of the bytes. The buffer that was is then behind a count,
//! as the home of both parts. **Freezing** puts the buffer behind a count as it is ([`SharedBuf`]).
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
use super::poison::{poison, unpoison};
use super::ring::Ring;
use super::{IoBuf, IoBufMut, PAGE, Registration, SharedBuf};
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

/// Where the memory goes when the buffer is dropped. Which piece of that place it is, its address says.
///
/// No more than a word besides the tag: a buffer that was made just now is moved by words, each of which was written as one. A
/// payload of two sizes is moved by words that straddle them, and the processor waits for both writes: half of what a
/// buffer cost.
pub(super) enum Home {
    /// To the allocator, as `allocate` got it.
    Heap,
    /// The same, and a pool keeps count.
    Metered(Arc<Meter>),
    /// To an arena.
    Block(NonNull<Arena>),
    /// To a receive ring.
    Ring(NonNull<Ring>),
    /// Nowhere: it is part of the bytes of another buffer, which shows them to nobody any more and takes them home when
    /// the last part is gone.
    Part(Arc<FixedBuf>),
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
        if capacity == 0 {
            return FixedBuf { base: layout.dangling_ptr(), start: 0, len: 0, capacity, home };
        }
        // SAFETY: the layout is not of size zero.
        let all = NonNull::new(unsafe { alloc::alloc(layout) });
        let all = all.unwrap_or_else(|| alloc::handle_alloc_error(layout));
        let base = if capacity < PAGE { all } else { begin_at_a_page(all, capacity) };
        FixedBuf { base, start: 0, len: 0, capacity, home }
    }

    /// The buffer of `capacity` bytes at `base`, the first `len` of them content.
    ///
    /// # Safety
    ///
    /// The bytes are good for reading and writing, and nobody else's, until the buffer gives them back to `home`, which
    /// lent them and stays alive until then. The first `len <= capacity` are initialised.
    #[inline(always)]
    pub(super) unsafe fn from_home(base: NonNull<u8>, len: usize, capacity: usize, home: Home) -> FixedBuf {
        debug_assert!(len <= capacity, "a buffer's content is within it");
        debug_assert!(
            capacity < PAGE || base.addr().get().is_multiple_of(PAGE),
            "from 4 KiB up every source gives whole pages"
        );
        unpoison(base, capacity);
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

    /// Splits the buffer at byte `at` of the view: this one keeps what is before, content and room, and the new one has the
    /// rest. Both are full owners; the memory goes home when both are gone. No byte is copied.
    ///
    /// The parts begin where they are cut, at a page or not.
    ///
    /// ```
    /// use veloq::io::buf::FixedBuf;
    ///
    /// let mut head = FixedBuf::heap(16);
    /// head.extend_from_slice(b"headbody");
    /// let mut body = head.split_off(4);
    /// assert_eq!((&head[..], head.capacity()), (&b"head"[..], 4));
    /// body.extend_from_slice(b"!");
    /// assert_eq!((&body[..], body.capacity()), (&b"body!"[..], 12));
    /// ```
    ///
    /// # Panics
    ///
    /// When `at` is more than the [`capacity`](Self::capacity).
    #[track_caller]
    #[must_use = "the rest is dropped otherwise; `truncate` drops content alone"]
    pub fn split_off(&mut self, at: usize) -> FixedBuf {
        let capacity = self.capacity();
        assert!(at <= capacity, "split_off({at}) on a buffer of {capacity} bytes");
        if at == capacity {
            // No memory is shared for a part without any.
            return FixedBuf::heap(0);
        }
        let whole = self.share();
        let rest = FixedBuf {
            // SAFETY: `at` is within the view, as checked above, and the view within the memory.
            base: unsafe { self.view().add(at) },
            start: 0,
            len: self.len.saturating_sub(at),
            capacity: capacity - at,
            home: Home::Part(whole),
        };
        self.capacity = self.start + at;
        self.len = self.len.min(at);
        rest
    }

    /// Splits the buffer at byte `at` of its content: the new one has what is before, this one keeps the rest, content and
    /// room. Otherwise like [`split_off`](Self::split_off).
    ///
    /// # Panics
    ///
    /// When the content is shorter than `at`.
    #[track_caller]
    #[must_use = "the first part is dropped otherwise; `advance` drops it as well"]
    pub fn split_to(&mut self, at: usize) -> FixedBuf {
        assert!(at <= self.len, "split_to({at}) on a buffer with {} bytes of content", self.len);
        let rest = self.split_off(at);
        std::mem::replace(self, rest)
    }

    /// Makes of the buffer a handle that can be cloned cheaply and sent anywhere, and shows its content, for reading only.
    ///
    /// ```
    /// use veloq::io::buf::FixedBuf;
    ///
    /// let mut buf = FixedBuf::heap(8);
    /// buf.extend_from_slice(b"abcdef");
    /// let shared = buf.freeze();
    /// let tail = shared.part(4..);
    /// let reader = std::thread::spawn({
    ///     let shared = shared.clone();
    ///     move || shared.len()
    /// });
    /// assert_eq!((reader.join().unwrap(), &tail[..]), (6, &b"ef"[..]));
    /// ```
    #[must_use]
    pub fn freeze(self) -> SharedBuf {
        SharedBuf::new(self)
    }

    /// Puts the memory behind a count, unless it is already, and makes this buffer a part of it.
    fn share(&mut self) -> Arc<FixedBuf> {
        if let Home::Part(whole) = &self.home {
            return Arc::clone(whole);
        }
        // The home goes to the whole, which has no content to show; what this buffer has is written below.
        let home = std::mem::replace(&mut self.home, Home::Heap);
        let whole = Arc::new(FixedBuf { base: self.base, start: 0, len: 0, capacity: self.capacity, home });
        self.home = Home::Part(Arc::clone(&whole));
        whole
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

/// How the heap is asked for `capacity` bytes: as `malloc` aligns, and for a page or more with so much to spare that a
/// page begins within, where Direct I/O needs the buffer to begin.
///
/// Asking the allocator itself for such an alignment costs more than twice as much, and glibc maps what is large and so
/// aligned anew each time, page faults and all, which it does not with this.
#[track_caller]
fn heap_layout(capacity: usize) -> Layout {
    let size = if capacity >= PAGE { capacity.checked_add(PAGE) } else { Some(capacity) };
    let layout = size.and_then(|size| Layout::from_size_align(size, HEAP_ALIGN).ok());
    layout.expect("a buffer's capacity is at most isize::MAX")
}

/// What `malloc` gives anyway.
const HEAP_ALIGN: usize = 16;

/// The first page that begins within an allocation for a buffer of `capacity` bytes. Where the allocation itself begins is noted
/// right before that page.
fn begin_at_a_page(all: NonNull<u8>, capacity: usize) -> NonNull<u8> {
    let before = PAGE - all.addr().get() % PAGE;
    // SAFETY: `all` is a multiple of 16, so `before` is from 16 to 4096, and the allocation is of `PAGE` bytes more than the capacity:
    // there is room for a pointer before the page, and for all of the capacity from there on.
    let base = unsafe {
        let base = all.add(before);
        base.cast::<NonNull<u8>>().sub(1).write(all);
        base
    };
    // SAFETY: as above: what is left after the capacity is within the allocation.
    poison(unsafe { base.add(capacity) }, PAGE - before);
    base
}

impl Drop for FixedBuf {
    #[inline]
    fn drop(&mut self) {
        // The way of almost every buffer, apart from the others so that it is short.
        if let Home::Block(arena) = self.home {
            // SAFETY: the block that was lent keeps the header alive.
            if unsafe { arena.as_ref() }.zeroes() {
                self.zero();
            }
            poison(self.base, self.capacity);
            // SAFETY: the block at this address was lent to this buffer, which is at its end, and nobody else has the bytes.
            unsafe { Arena::give_back(arena, self.base) }
        } else {
            self.drop_elsewhere();
        }
    }
}

impl FixedBuf {
    #[inline(never)]
    fn drop_elsewhere(&mut self) {
        match &self.home {
            &Home::Ring(ring) => {
                // SAFETY: the buffer that was taken keeps the header alive.
                if unsafe { ring.as_ref() }.zeroes() {
                    self.zero();
                }
                poison(self.base, self.capacity);
                // SAFETY: the buffer at this address was taken for this value, which is at its end, and nobody else has the bytes.
                unsafe { Ring::give_back(ring, self.base) }
            }
            Home::Heap => self.deallocate(),
            Home::Metered(meter) => {
                if meter.zeroes() {
                    self.zero();
                }
                self.deallocate();
                meter.subtract(self.capacity);
            }
            // The whole goes home when the count does.
            Home::Part(_) | Home::Block(_) => {}
        }
    }

    /// Overwrites all its bytes, whoever wrote them. For `drop` alone.
    #[cold]
    fn zero(&self) {
        // SAFETY: `capacity` bytes from `base` are this buffer's alone, and this is its end: nobody reads them any more.
        unsafe { self.base.write_bytes(0, self.capacity) };
        // Somebody may look: else what is written to memory right before it is given back need not be written at all.
        std::hint::black_box(self.base);
    }

    /// Gives the memory back to the allocator. For `drop` alone.
    fn deallocate(&self) {
        let all = match self.capacity {
            0 => return,
            1..PAGE => self.base,
            _ => {
                // SAFETY: `begin_at_a_page` wrote it there, and nobody else may write before a buffer.
                let all = unsafe { self.base.cast::<NonNull<u8>>().sub(1).read() };
                let before = self.base.addr().get() - all.addr().get();
                // SAFETY: the allocation is a page longer than the buffer, and `before` bytes of that page lie before it: the others lie
                // behind it. They are the allocator's from here on.
                unpoison(unsafe { self.base.add(self.capacity) }, PAGE - before);
                all
            }
        };
        // SAFETY: `allocate` got it with the layout of this very capacity, and this is the buffer's end.
        unsafe { alloc::dealloc(all.as_ptr(), heap_layout(self.capacity)) };
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

/// Equal to whatever has the same bytes: `buf == b"OK"`.
impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for FixedBuf {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for FixedBuf {}

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
            Home::Block(arena) => unsafe { arena.as_ref() }.registration(),
            // SAFETY: likewise.
            Home::Ring(ring) => unsafe { ring.as_ref() }.registration(),
            Home::Part(whole) => whole.registration(),
        }
    }
}

// SAFETY: the bytes are its alone, so all of its capacity may be written to.
unsafe impl IoBufMut for FixedBuf {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.view().as_ptr()
    }
    unsafe fn io_set_len(&mut self, len: usize) {
        // SAFETY: the caller says that `len` bytes are initialised and within the capacity.
        unsafe { self.set_len(len) };
    }
}

/// Takes content from the front, as [`advance`](FixedBuf::advance) does. An empty buffer is an end (`Ok(0)`).
///
/// ```
/// use std::io::{BufRead, Read, Write};
/// use veloq::io::buf::FixedBuf;
///
/// let mut buf = FixedBuf::heap(64);
/// buf.write_all(b"first\nsecond")?;
/// let mut line = String::new();
/// buf.read_line(&mut line)?;
/// assert_eq!((&line[..], &buf[..]), ("first\n", &b"second"[..]));
/// let mut three = [0; 3];
/// buf.read_exact(&mut three)?;
/// assert_eq!((&three, &buf[..]), (b"sec", &b"ond"[..]));
/// # Ok::<(), std::io::Error>(())
/// ```
impl io::Read for FixedBuf {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = into.len().min(self.len);
        into[..n].copy_from_slice(&self[..n]);
        self.advance(n);
        Ok(n)
    }
}

/// The content itself, without a copy.
impl io::BufRead for FixedBuf {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self)
    }

    fn consume(&mut self, n: usize) {
        self.advance(n);
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

/// Its room is what [`remaining`](FixedBuf::remaining) says: it does not grow.
#[cfg(feature = "bytes")]
// SAFETY: `chunk_mut` is all the room there is, and `advance_mut` makes as much of it content as its caller initialised.
unsafe impl bytes::BufMut for FixedBuf {
    fn remaining_mut(&self) -> usize {
        self.remaining()
    }

    fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
        self.spare_capacity_mut().into()
    }

    unsafe fn advance_mut(&mut self, n: usize) {
        assert!(
            n <= self.remaining(),
            "{n} bytes were not written to a buffer with room for {}",
            self.remaining()
        );
        self.len += n;
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

    // A part that reached into its neighbour, or came home alone, would mix two owners' bytes.
    #[test]
    fn the_parts_of_a_split_buffer_own_their_bytes_and_go_home_together() {
        let pool = Pool::fixed(64 << 10).expect("64 KiB can be mapped");
        let sources: [fn(&Pool) -> FixedBuf; 3] =
            [|pool| pool.alloc(100), |_| FixedBuf::heap(100), |pool| pool.core.heap(100)];
        for source in sources {
            let mut middle = source(&pool);
            let out = pool.stats().blocks_out;
            middle.extend_from_slice(b"..headmiddletail");
            middle.advance(2);
            let mut tail = middle.split_off(10);
            let mut head = middle.split_to(4);
            assert_eq!([&head[..], &middle[..], &tail[..]], [&b"head"[..], b"middle", b"tail"]);
            assert_eq!([head.capacity(), middle.capacity(), tail.capacity()], [4, 6, 88]);
            for (part, byte) in [(&mut head, 1), (&mut middle, 2), (&mut tail, 3)] {
                part.clear();
                part.resize(part.capacity(), byte);
            }
            assert_eq!(head.capacity(), 6, "`clear` takes back what `advance` gave up");
            assert!(head.iter().all(|&byte| byte == 1));
            assert!(middle.iter().all(|&byte| byte == 2) && tail.iter().all(|&byte| byte == 3));
            drop(middle);
            std::thread::spawn(move || drop(head)).join().expect("dropping does not panic");
            assert_eq!(pool.stats().blocks_out, out, "the tail is still there");
            assert!(tail.iter().all(|&byte| byte == 3));
            drop(tail);
            assert_eq!((pool.stats().blocks_out, pool.stats().heap_bytes), (0, 0));
        }
    }

    // A cut at either end must leave a part without room, not one of a foreign byte.
    #[test]
    fn a_buffer_can_be_split_at_its_ends() {
        let mut buf = FixedBuf::heap(4);
        buf.extend_from_slice(b"ab");
        let room = buf.split_off(2);
        assert_eq!((&buf[..], buf.remaining(), room.len(), room.capacity()), (&b"ab"[..], 0, 0, 2));
        let rest = buf.split_off(2);
        assert_eq!((buf.len(), rest.capacity()), (2, 0));
        let nothing = buf.split_to(0);
        assert_eq!((nothing.capacity(), &buf[..]), (0, &b"ab"[..]));
        let all = buf.split_to(2);
        assert_eq!((&all[..], buf.capacity()), (&b"ab"[..], 0));
    }

    #[test]
    #[should_panic(expected = "split_off(5) on a buffer of 4 bytes")]
    fn splitting_past_the_capacity_panics() {
        let _ = FixedBuf::heap(4).split_off(5);
    }

    // `BufMut` is how codecs write; a length that it does not keep shows as bytes that were never written.
    #[cfg(feature = "bytes")]
    #[test]
    fn codecs_write_into_it() {
        use bytes::BufMut;

        let mut buf = FixedBuf::heap(8);
        buf.put_u16(0x4142);
        buf.put_slice(b"cd");
        assert_eq!((&buf[..], buf.remaining_mut()), (&b"ABcd"[..], 4));
        let frozen = bytes::Bytes::from(buf.freeze().part(1..3));
        assert_eq!(&frozen[..], b"Bc");
    }

    // A log line must not print a client's password.
    #[test]
    fn it_is_equal_to_whatever_has_its_bytes() {
        let mut buf = FixedBuf::heap(8);
        buf.write_all(b"OK").expect("there is room");
        assert!(buf == b"OK" && buf == *"OK" && buf == vec![b'O', b'K'] && buf == *b"OK".as_slice());
        assert!(buf != b"OK!" && buf != FixedBuf::heap(8));
        let shared = buf.freeze();
        assert!(shared == b"OK" && shared == shared.clone());
    }

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
