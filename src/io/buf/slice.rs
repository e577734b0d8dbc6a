//! Part of a buffer, still owning the whole.
//!
//! A [`Slice`] remembers where its range begins and ends in the buffer, and how much of the range is content. A write
//! sends that content. A read fills the range from its beginning, and the slice's length is then what was read; the
//! buffer's own length grows if the new bytes reach past it and never shrinks, so what lies around the range is kept.
#![expect(unsafe_code, reason = "the promises of IoBuf, restated for a range")]

use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};

use super::{IoBuf, IoBufMut, Registration};

/// A range of an owned buffer, as a buffer. Made by [`IoBuf::slice`].
///
/// It dereferences to the range's initialised bytes.
///
/// ```
/// use veloq::io::buf::IoBuf;
///
/// let mut page = vec![0u8; 16];
/// page[4..8].copy_from_slice(b"body");
/// let body = page.slice(4..8);
/// assert_eq!(&body[..], b"body");
/// assert_eq!(body.into_inner().len(), 16);
/// ```
pub struct Slice<B> {
    buf: B,
    /// `begin <= begin + len <= end <= buf.io_capacity()`, and `begin + len <= buf.io_len()`.
    begin: usize,
    end: usize,
    len: usize,
}

impl<B: IoBuf> Slice<B> {
    /// See [`IoBuf::slice`].
    #[track_caller]
    pub(super) fn new(buf: B, range: impl RangeBounds<usize>) -> Self {
        let (initialised, capacity) = (buf.io_len(), buf.io_capacity());
        let begin = match range.start_bound() {
            Bound::Included(&begin) => begin,
            Bound::Excluded(&before) => before.checked_add(1).expect("a slice begins at an index"),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.checked_add(1).expect("a slice ends at an index"),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => capacity,
        };
        assert!(begin <= end, "slice {begin}..{end} ends before it begins");
        assert!(
            begin <= initialised,
            "slice {begin}..{end} begins after the buffer's {initialised} initialised bytes"
        );
        assert!(end <= capacity, "slice {begin}..{end} ends after the buffer's capacity of {capacity} bytes");
        let len = initialised.min(end) - begin;
        Slice { buf, begin, end, len }
    }

    /// The whole buffer.
    pub fn get_ref(&self) -> &B {
        &self.buf
    }

    /// Where in the buffer the range begins.
    pub fn begin(&self) -> usize {
        self.begin
    }

    /// Where in the buffer the range ends.
    pub fn end(&self) -> usize {
        self.end
    }
}

impl<B> Slice<B> {
    /// Gives the whole buffer back.
    pub fn into_inner(self) -> B {
        self.buf
    }
}

impl<B: IoBuf> Deref for Slice<B> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `io_ptr` and `io_len` below are within the inner buffer's initialised bytes, which nobody writes
        // while `self`, their owner, is borrowed.
        unsafe { std::slice::from_raw_parts(self.io_ptr(), self.io_len()) }
    }
}

impl<B: IoBuf> AsRef<[u8]> for Slice<B> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

// SAFETY: the range lies within the inner buffer (checked in `new`, and a `Slice` gives out no `&mut` to it), whose
// promises therefore hold for it.
unsafe impl<B: IoBuf> IoBuf for Slice<B> {
    fn io_ptr(&self) -> *const u8 {
        // SAFETY: `begin` is at most `io_len`, so the sum is in the same allocation or one past its end.
        unsafe { self.buf.io_ptr().add(self.begin) }
    }
    fn io_len(&self) -> usize {
        self.len
    }
    fn io_capacity(&self) -> usize {
        self.end - self.begin
    }
    fn registration(&self) -> Option<Registration> {
        self.buf.registration()
    }
}

// SAFETY: as above; `end` is within the capacity that the inner buffer lets be written.
unsafe impl<B: IoBufMut> IoBufMut for Slice<B> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: as in `io_ptr`.
        unsafe { self.buf.io_mut_ptr().add(self.begin) }
    }
    unsafe fn io_set_len(&mut self, len: usize) {
        debug_assert!(len <= self.io_capacity(), "more was read than the slice has room for");
        self.len = len;
        if self.buf.io_len() < self.begin + len {
            // SAFETY: the first `begin` bytes were initialised when the slice was made and the length never shrank
            // since; the caller says that `len` more are. Their end is within the capacity.
            unsafe { self.buf.io_set_len(self.begin + len) };
        }
    }
}

impl<B> fmt::Debug for Slice<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice")
            .field("begin", &self.begin)
            .field("end", &self.end)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::io_buf::{fill, sent};
    use super::*;

    // Off-by-one at either end would send a neighbour's byte.
    #[test]
    fn a_write_sends_only_the_range() {
        assert_eq!(sent(&vec![0u8, 1, 2, 3, 4, 5].slice(2..4)), [2, 3]);
        assert_eq!(sent(&"abcdef".slice(..=2)), b"abc");
        assert_eq!(sent(&"abcdef".slice(6..)), b"");
        assert_eq!(sent(&"abcdef".slice(1..5).slice(1..3)), b"cd");
    }

    // If the inner length were set to the end of what was read, the bytes after the range would be lost.
    #[test]
    fn a_read_fills_only_the_range_and_keeps_what_lies_around_it() {
        let mut slice = b"0123456789".to_vec().slice(2..5);
        assert_eq!(fill(&mut slice, b"abcdefgh"), 3);
        assert_eq!(&slice[..], b"abc");
        assert_eq!(fill(&mut slice, b"x"), 1);
        assert_eq!(&slice[..], b"x");
        assert_eq!(slice.into_inner(), b"01xbc56789");
    }

    // The spare capacity of a vector must be reachable, and the vector's length must follow.
    #[test]
    fn a_read_past_the_initialised_bytes_makes_them_content() {
        let mut vec = Vec::with_capacity(8);
        vec.extend_from_slice(b"ab");
        let mut slice = vec.slice(2..);
        assert!(slice.is_empty());
        let room = slice.io_capacity();
        assert!(room >= 6);
        fill(&mut slice, b"cde");
        assert_eq!(slice.into_inner(), b"abcde");
    }

    #[test]
    #[should_panic(expected = "slice 3..9 ends after the buffer's capacity of 6 bytes")]
    fn a_range_past_the_capacity_panics() {
        let _ = "abcdef".slice(3..9);
    }

    // A gap of uninitialised bytes before the range would become content after a read.
    #[test]
    #[should_panic(expected = "slice 1..4 begins after the buffer's 0 initialised bytes")]
    fn a_range_that_begins_after_the_content_panics() {
        let _ = Vec::with_capacity(16).slice(1..4);
    }

    #[test]
    #[should_panic(expected = "slice 4..2 ends before it begins")]
    #[expect(clippy::reversed_empty_ranges, reason = "the reversed range is the point")]
    fn a_reversed_range_panics() {
        let _ = "abcdef".slice(4..2);
    }
}
