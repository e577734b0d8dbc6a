//! A buffer that many may read.
//!
//! A [`SharedBuf`] is a [`FixedBuf`] behind a count, and a range of its content. Nobody writes to it any more, so any number
//! of handles on any threads may show it, and operations may write from it, at the same time. Memory goes home with the
//! last handle.
#![expect(unsafe_code, reason = "the promises of IoBuf, restated for shared bytes")]

use std::fmt;
use std::ops::{Bound, Deref, Range, RangeBounds};

use super::{FixedBuf, IoBuf, Registration};
use crate::sync::Arc;

/// Bytes that are shared for reading: what [`FixedBuf::freeze`] makes.
///
/// A clone is a count, not a copy. As an [`IoBuf`] it can be written from, by several operations at once: one answer for many
/// connections. `bytes::Bytes` can be made of it (feature `bytes`).
#[derive(Clone)]
pub struct SharedBuf {
    buf: Arc<FixedBuf>,
    /// Within the buffer's content.
    range: Range<usize>,
}

impl SharedBuf {
    pub(super) fn new(buf: FixedBuf) -> SharedBuf {
        SharedBuf { range: 0..buf.len(), buf: Arc::new(buf) }
    }

    /// Another handle to the same bytes, which shows `range` of what this one shows.
    ///
    /// # Panics
    ///
    /// When the range is not within this one's bytes.
    #[track_caller]
    #[must_use]
    pub fn part(&self, range: impl RangeBounds<usize>) -> SharedBuf {
        let begin = match range.start_bound() {
            Bound::Included(&begin) => begin,
            Bound::Excluded(&before) => before.checked_add(1).expect("a part begins at an index"),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.checked_add(1).expect("a part ends at an index"),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len(),
        };
        assert!(begin <= end && end <= self.len(), "part {begin}..{end} of {} shared bytes", self.len());
        let range = self.range.start + begin..self.range.start + end;
        SharedBuf { buf: Arc::clone(&self.buf), range }
    }

    /// Gives the buffer back, as it was when it was frozen, if this is the only handle to it.
    ///
    /// # Errors
    ///
    /// This handle, if there are others.
    pub fn try_unfreeze(self) -> Result<FixedBuf, SharedBuf> {
        let range = self.range;
        Arc::try_unwrap(self.buf).map_err(|buf| SharedBuf { buf, range })
    }
}

impl Deref for SharedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf[self.range.clone()]
    }
}

impl AsRef<[u8]> for SharedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Equal to whatever has the same bytes: `buf == b"OK"`.
impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for SharedBuf {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for SharedBuf {}

impl From<FixedBuf> for SharedBuf {
    fn from(buf: FixedBuf) -> SharedBuf {
        buf.freeze()
    }
}

/// No byte is copied: the memory goes home with the last `Bytes`.
#[cfg(feature = "bytes")]
impl From<SharedBuf> for bytes::Bytes {
    fn from(buf: SharedBuf) -> bytes::Bytes {
        bytes::Bytes::from_owner(buf)
    }
}

/// No byte is copied: the memory goes home with the last `Bytes`.
#[cfg(feature = "bytes")]
impl From<FixedBuf> for bytes::Bytes {
    fn from(buf: FixedBuf) -> bytes::Bytes {
        bytes::Bytes::from_owner(buf)
    }
}

// SAFETY: the bytes are a `FixedBuf`'s content, which stays where it is while the count is held; nobody writes to them, since
// the buffer is reached by shared references alone until this is the only handle, and then by whoever gives that up.
unsafe impl IoBuf for SharedBuf {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
    fn registration(&self) -> Option<Registration> {
        self.buf.registration()
    }
}

/// No bytes, as for [`FixedBuf`].
impl fmt::Debug for SharedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBuf")
            .field("len", &self.len())
            .field("registered", &self.registration().is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunks::Pool;
    use super::super::io_buf::sent;
    use super::super::{BufPool, IoBuf};
    use super::*;

    fn frozen(pool: &Pool, content: &[u8]) -> SharedBuf {
        let mut buf = pool.alloc(4096);
        buf.extend_from_slice(content);
        buf.freeze()
    }

    // A handle that showed more than the content would show the block's last user's bytes.
    #[test]
    fn handles_show_the_content_and_no_more() {
        let pool = Pool::fixed(64 << 10).expect("64 KiB can be mapped");
        let mut secret = pool.alloc(4096);
        secret.resize(4096, b'S');
        drop(secret);
        let shared = frozen(&pool, b"0123456789");
        let part = shared.part(2..=5);
        assert_eq!(
            (&shared[..], &part[..], &part.part(1..)[..]),
            (&b"0123456789"[..], &b"2345"[..], &b"345"[..])
        );
        assert_eq!((sent(&part), part.io_capacity()), (b"2345".to_vec(), 4));
        assert_eq!(sent(&shared.clone().slice(8..)), b"89");
        assert_eq!(format!("{part:?}"), "SharedBuf { len: 4, registered: false }");
    }

    // Memory that goes home with the first handle, or with none, is used after free, or lost.
    #[test]
    fn the_memory_goes_home_with_the_last_handle() {
        let pool = Pool::fixed(64 << 10).expect("64 KiB can be mapped");
        let shared = frozen(&pool, b"shared");
        let parts: Vec<_> = (0..4).map(|n| shared.part(n..)).collect();
        let shared = shared.try_unfreeze().expect_err("there are other handles");
        for (n, part) in parts.into_iter().enumerate() {
            std::thread::spawn(move || assert_eq!(part[..], b"shared"[n..]))
                .join()
                .expect("the bytes are there");
        }
        assert_eq!(pool.stats().blocks_out, 1);
        let buf = shared.try_unfreeze().expect("the others are gone");
        assert_eq!((&buf[..], buf.capacity()), (&b"shared"[..], 4096));
        drop(buf);
        assert_eq!(pool.stats().blocks_out, 0);
    }

    #[test]
    #[should_panic(expected = "part 2..7 of 6 shared bytes")]
    fn a_part_past_the_content_panics() {
        let pool = Pool::fixed(64 << 10).expect("64 KiB can be mapped");
        let _ = frozen(&pool, b"shared").part(2..7);
    }
}
