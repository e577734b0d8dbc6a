//! What may be handed to the kernel: owned memory whose address does not change when its owner is moved.
//!
//! An operation takes its buffer by value and gives it back with the result ([`BufResult`](super::BufResult)). In
//! between, the buffer lies in the operation's slot, and the kernel holds a pointer into its memory. So two things
//! must be true of a buffer: moving the value does not move the bytes, and no one else writes to them meanwhile.
//! [`IoBuf`] and [`IoBufMut`] are the promise that both are; they are `unsafe` to implement, and safe to use.
//!
//! | type | written from | read into | registered |
//! |---|---|---|---|
//! | [`FixedBuf`](super::FixedBuf) | yes | yes | when its arena is |
//! | `Vec<u8>`, `Box<[u8]>`, `Box<[u8; N]>` | yes | yes | no |
//! | `BytesMut` (feature `bytes`) | yes | yes | no |
//! | [`SharedBuf`](super::SharedBuf) | yes | no | when its arena is |
//! | `String`, `Bytes` (feature `bytes`), `Arc<[u8]>`, `Rc<[u8]>` | yes | no | no |
//! | `&'static [u8]`, `&'static [u8; N]`, `&'static str` | yes | no | no |
//!
//! A plain `[u8; N]` does not qualify: it moves with its owner.
//!
//! **Reading** fills a buffer from its start up to its capacity, and then its length *is* what was read. An empty `Vec`
//! without capacity therefore reads nothing; make it with `Vec::with_capacity`. Types of fixed size (`Box<[u8]>`) keep
//! their length; the result says how much of it is new. **Writing** sends the initialised bytes. For less than the
//! whole, use [`slice`](IoBuf::slice).
#![expect(unsafe_code, reason = "the two traits are promises to the kernel, made for each type by hand")]

use std::ops::RangeBounds;
use std::rc::Rc;
use std::sync::Arc;

use super::{Registration, Slice};

/// Owned bytes that the kernel may read while their owner lies in an operation's slot.
///
/// The module's table lists who is one. The methods begin with `io_` so that they do not hide a type's own `len` or
/// `as_ptr`; programs seldom call them, drivers do, once the buffer stands where it will stay.
///
/// # Safety
///
/// From a call of [`io_ptr`](Self::io_ptr) until the value is dropped or changed through `&mut`, and however often it
/// is moved meanwhile:
/// - the pointer stays the same and valid for reads of [`io_len`](Self::io_len) initialised bytes;
/// - nobody else writes to those bytes.
///
/// [`io_capacity`](Self::io_capacity) is never less than `io_len`. A [`registration`](Self::registration) may be
/// `Some` only if all `io_capacity` bytes lie in that arena.
pub unsafe trait IoBuf: 'static {
    /// The first byte.
    fn io_ptr(&self) -> *const u8;

    /// How many bytes, from the first, are initialised: what a write sends.
    fn io_len(&self) -> usize;

    /// How many bytes there are room for: what a read may fill. The same as [`io_len`](Self::io_len) unless the type
    /// can be read into.
    fn io_capacity(&self) -> usize {
        self.io_len()
    }

    /// Under which index the kernel knows this memory, if it does. A driver uses it only for an arena that is its own.
    fn registration(&self) -> Option<Registration> {
        None
    }

    /// Views `range` of the buffer as a buffer: a write sends only that range, a read fills only that range.
    ///
    /// An open end means "up to the capacity". [`Slice::into_inner`] gives the whole back.
    ///
    /// ```
    /// use veloq::io::buf::IoBuf;
    ///
    /// let word = String::from("hello world").slice(6..);
    /// assert_eq!(&word[..], b"world");
    /// assert_eq!(word.into_inner(), "hello world");
    /// ```
    ///
    /// # Panics
    ///
    /// When the range begins after the initialised bytes, ends after the capacity, or ends before it begins.
    #[track_caller]
    fn slice(self, range: impl RangeBounds<usize>) -> Slice<Self>
    where
        Self: Sized,
    {
        Slice::new(self, range)
    }
}

/// Owned bytes that the kernel may write while their owner lies in an operation's slot.
///
/// # Safety
///
/// What [`IoBuf`] promises, and: the pointer of [`io_mut_ptr`](Self::io_mut_ptr) is that of
/// [`io_ptr`](IoBuf::io_ptr), is valid for writes of [`io_capacity`](IoBuf::io_capacity) bytes, and nobody else reads
/// or writes them until the value is dropped or changed through `&mut`.
pub unsafe trait IoBufMut: IoBuf {
    /// The first byte, to be written.
    fn io_mut_ptr(&mut self) -> *mut u8;

    /// Says that the first `len` bytes are now the content. Types of fixed size ignore it.
    ///
    /// # Safety
    ///
    /// `len` is at most [`io_capacity`](IoBuf::io_capacity), and the first `len` bytes are initialised.
    unsafe fn io_set_len(&mut self, len: usize);
}

// SAFETY: a vector's bytes are on the heap (or there are none) and stay there when the vector is moved; it owns them
// alone; its first `len()` bytes are initialised and `capacity()` are allocated.
unsafe impl IoBuf for Vec<u8> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
    fn io_capacity(&self) -> usize {
        self.capacity()
    }
}

// SAFETY: as above; `as_mut_ptr` is the same address, for all of the capacity.
unsafe impl IoBufMut for Vec<u8> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    unsafe fn io_set_len(&mut self, len: usize) {
        // SAFETY: the caller says `len <= capacity` and that so many bytes are initialised.
        unsafe { self.set_len(len) };
    }
}

// SAFETY: the bytes of a box are on the heap (or there are none), do not move with it, and are its own.
unsafe impl IoBuf for Box<[u8]> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; all bytes of the box are initialised, always, and may be written.
unsafe impl IoBufMut for Box<[u8]> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    unsafe fn io_set_len(&mut self, _len: usize) {}
}

// SAFETY: as for `Box<[u8]>`; only the length is known earlier.
unsafe impl<const N: usize> IoBuf for Box<[u8; N]> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        N
    }
}

// SAFETY: as for `Box<[u8]>`.
unsafe impl<const N: usize> IoBufMut for Box<[u8; N]> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    unsafe fn io_set_len(&mut self, _len: usize) {}
}

// SAFETY: a `String` is a `Vec<u8>` that is read only here, so it stays UTF-8.
unsafe impl IoBuf for String {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: the bytes live, unchanged, as long as the program; the reference is only a copy of their address.
unsafe impl IoBuf for &'static [u8] {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: as for `&'static [u8]`. It is here so that `write_all(b"literal")` needs no conversion.
unsafe impl<const N: usize> IoBuf for &'static [u8; N] {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        N
    }
}

// SAFETY: as for `&'static [u8]`.
unsafe impl IoBuf for &'static str {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: the counted allocation holds the bytes; it lives as long as this count, and while the count is there nobody
// gets `&mut` to the bytes: `Arc::get_mut` and `make_mut` want to be the only owner.
unsafe impl IoBuf for Arc<[u8]> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: as for `Arc<[u8]>`, on one thread.
unsafe impl IoBuf for Rc<[u8]> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: `Bytes` is a counted view of immutable bytes outside of it; the count keeps them, and they are never written
// while it is held.
#[cfg(feature = "bytes")]
unsafe impl IoBuf for bytes::Bytes {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: `BytesMut` is the only owner of its range of a heap allocation, `len()` bytes of it initialised and
// `capacity()` allocated; the range does not move with the value.
#[cfg(feature = "bytes")]
unsafe impl IoBuf for bytes::BytesMut {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
    fn io_capacity(&self) -> usize {
        self.capacity()
    }
}

// SAFETY: being the only owner of that range, it may write to all of its capacity.
#[cfg(feature = "bytes")]
unsafe impl IoBufMut for bytes::BytesMut {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    unsafe fn io_set_len(&mut self, len: usize) {
        // SAFETY: the caller says `len <= capacity` and that so many bytes are initialised.
        unsafe { self.set_len(len) };
    }
}

/// Does what the kernel does in a read: writes from the start, then sets the length. Returns how much went in.
#[cfg(test)]
pub(super) fn fill<B: IoBufMut>(buf: &mut B, data: &[u8]) -> usize {
    let n = data.len().min(buf.io_capacity());
    // SAFETY: `io_mut_ptr` is good for `io_capacity` bytes, `n` is at most that, and `data` lies elsewhere: `buf` is
    // borrowed exclusively. After the copy `n` bytes are initialised.
    unsafe {
        std::ptr::copy_nonoverlapping(data.as_ptr(), buf.io_mut_ptr(), n);
        buf.io_set_len(n);
    }
    n
}

/// Does what the kernel does in a write: reads the initialised bytes.
#[cfg(test)]
pub(super) fn sent<B: IoBuf>(buf: &B) -> Vec<u8> {
    // SAFETY: an `IoBuf`'s pointer is good for `io_len` initialised bytes, and `buf` stays borrowed.
    unsafe { std::slice::from_raw_parts(buf.io_ptr(), buf.io_len()) }.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves `buf` and compares: the promise of the trait, as far as a test can see it.
    fn stays<B: IoBuf>(buf: B) -> B {
        let before = buf.io_ptr();
        let boxed = Box::new(buf);
        assert_eq!(boxed.io_ptr(), before, "moving the owner moved the bytes");
        assert!(boxed.io_capacity() >= boxed.io_len());
        *boxed
    }

    // A type that forwards to the wrong pointer or length would send other bytes than it shows.
    #[test]
    fn every_type_sends_its_own_bytes_from_a_stable_address() {
        assert_eq!(sent(&stays(vec![1u8, 2, 3])), [1, 2, 3]);
        assert_eq!(sent(&stays(vec![1u8, 2, 3].into_boxed_slice())), [1, 2, 3]);
        assert_eq!(sent(&stays(Box::new([1u8, 2, 3]))), [1, 2, 3]);
        assert_eq!(sent(&stays(String::from("abc"))), b"abc");
        assert_eq!(sent(&stays("abc")), b"abc");
        assert_eq!(sent(&stays(b"abc")), b"abc");
        assert_eq!(sent(&stays(&b"abc"[..])), b"abc");
        assert_eq!(sent(&stays(Arc::<[u8]>::from(&b"abc"[..]))), b"abc");
        assert_eq!(sent(&stays(Rc::<[u8]>::from(&b"abc"[..]))), b"abc");
        #[cfg(feature = "bytes")]
        {
            assert_eq!(sent(&stays(bytes::Bytes::from_static(b"abc"))), b"abc");
            assert_eq!(sent(&stays(bytes::BytesMut::from(&b"abc"[..]))), b"abc");
        }
    }

    // If a read appended, or kept the old length, a program would see bytes that were not read.
    #[test]
    fn after_a_read_the_length_is_what_was_read() {
        let mut vec = Vec::with_capacity(8);
        vec.extend_from_slice(b"previous");
        assert_eq!(fill(&mut vec, b"new"), 3);
        assert_eq!(vec, b"new");
        assert_eq!(vec.capacity(), 8);
        #[cfg(feature = "bytes")]
        {
            let mut bytes = bytes::BytesMut::with_capacity(8);
            bytes.extend_from_slice(b"previous");
            fill(&mut bytes, b"new");
            assert_eq!(&bytes[..], b"new");
        }
    }

    // A box cannot shrink; if set_len were forwarded somewhere it would lose its tail.
    #[test]
    fn a_box_keeps_its_length() {
        let mut bytes = vec![9u8; 5].into_boxed_slice();
        assert_eq!(fill(&mut bytes, b"ab"), 2);
        assert_eq!(&bytes[..], b"ab\x09\x09\x09");
        let mut array = Box::new([9u8; 3]);
        assert_eq!(fill(&mut array, b"abcd"), 3);
        assert_eq!(&array[..], b"abc");
    }
}
