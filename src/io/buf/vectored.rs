//! Several buffers as one operation's: what is written is their contents in order, what is read fills them in order.
//!
//! A `Vec<B>`, an array or a tuple of up to four buffers of different types is a list; a driver walks it to write the
//! kernel's list of addresses. A read fills the first buffer up to its capacity before it touches the second, and when
//! `n` bytes came, the lengths are set the same way: full, full, the rest, nothing, nothing.
//!
//! The kernel takes at most 1024 parts in one call (`UIO_MAXIOV`); drivers hand over the first 1024, and the count that
//! comes back says how far that went.
#![expect(unsafe_code, reason = "the promises of IoBuf, restated for a list")]

use super::{IoBuf, IoBufMut};

/// A list of buffers to write from.
///
/// # Safety
///
/// [`io_each`](Self::io_each) calls with the same pointers and lengths, in the same order, however often the list is
/// moved, and each pair is what [`IoBuf`] promises. [`io_count`](Self::io_count) is how often it calls.
pub unsafe trait IoBufVec: 'static {
    /// How many buffers there are.
    fn io_count(&self) -> usize;

    /// Calls `each` with the address and the initialised length of every buffer, in order.
    fn io_each(&self, each: impl FnMut(*const u8, usize));

    /// All initialised bytes together.
    fn io_total_len(&self) -> usize {
        let mut total = 0;
        self.io_each(|_, len| total += len);
        total
    }
}

/// A list of buffers to read into.
///
/// # Safety
///
/// What [`IoBufVec`] promises; [`io_each_mut`](Self::io_each_mut) calls with the pointer and the capacity of every
/// buffer, in the same order, and each pair is what [`IoBufMut`] promises.
pub unsafe trait IoBufMutVec: IoBufVec {
    /// Calls `each` with the address and the capacity of every buffer, in order.
    fn io_each_mut(&mut self, each: impl FnMut(*mut u8, usize));

    /// Says that the first `total` bytes of the list are now its content, and nothing after them is.
    ///
    /// # Safety
    ///
    /// `total` is at most the sum of the capacities, and so many bytes, taking each buffer up to its capacity before
    /// the next, are initialised.
    unsafe fn io_set_total_len(&mut self, total: usize);
}

/// Gives one buffer of a list its part of `left`, the bytes that are still to be given out.
///
/// # Safety
///
/// The first `min(left, capacity)` bytes of `buf` are initialised.
unsafe fn take_share<B: IoBufMut>(buf: &mut B, left: &mut usize) {
    let share = buf.io_capacity().min(*left);
    // SAFETY: `share` is within the capacity, and the caller says that so many bytes are initialised.
    unsafe { buf.io_set_len(share) };
    *left -= share;
}

// SAFETY: the elements may lie on the heap and move or not; what they point to is stable either way, as `IoBuf` says.
unsafe impl<B: IoBuf> IoBufVec for Vec<B> {
    fn io_count(&self) -> usize {
        self.len()
    }
    fn io_each(&self, mut each: impl FnMut(*const u8, usize)) {
        self.iter().for_each(|buf| each(buf.io_ptr(), buf.io_len()));
    }
}

// SAFETY: as above, with `IoBufMut`'s promise.
unsafe impl<B: IoBufMut> IoBufMutVec for Vec<B> {
    fn io_each_mut(&mut self, mut each: impl FnMut(*mut u8, usize)) {
        self.iter_mut().for_each(|buf| each(buf.io_mut_ptr(), buf.io_capacity()));
    }
    unsafe fn io_set_total_len(&mut self, mut total: usize) {
        // SAFETY: `total` goes down by each capacity in list order, which is what the caller vouches for.
        self.iter_mut().for_each(|buf| unsafe { take_share(buf, &mut total) });
    }
}

// SAFETY: as for `Vec<B>`.
unsafe impl<B: IoBuf, const N: usize> IoBufVec for [B; N] {
    fn io_count(&self) -> usize {
        N
    }
    fn io_each(&self, mut each: impl FnMut(*const u8, usize)) {
        self.iter().for_each(|buf| each(buf.io_ptr(), buf.io_len()));
    }
}

// SAFETY: as for `Vec<B>`.
unsafe impl<B: IoBufMut, const N: usize> IoBufMutVec for [B; N] {
    fn io_each_mut(&mut self, mut each: impl FnMut(*mut u8, usize)) {
        self.iter_mut().for_each(|buf| each(buf.io_mut_ptr(), buf.io_capacity()));
    }
    unsafe fn io_set_total_len(&mut self, mut total: usize) {
        // SAFETY: as for `Vec<B>`.
        self.iter_mut().for_each(|buf| unsafe { take_share(buf, &mut total) });
    }
}

/// The two traits for a tuple of `$count` buffers, each of its own type.
macro_rules! tuple {
    ($count:literal: $($buf:ident $index:tt),+) => {
        // SAFETY: as for `Vec<B>`; the fields are visited in the order of their index.
        unsafe impl<$($buf: IoBuf),+> IoBufVec for ($($buf,)+) {
            fn io_count(&self) -> usize {
                $count
            }
            fn io_each(&self, mut each: impl FnMut(*const u8, usize)) {
                $(each(self.$index.io_ptr(), self.$index.io_len());)+
            }
        }

        // SAFETY: as for `Vec<B>`.
        unsafe impl<$($buf: IoBufMut),+> IoBufMutVec for ($($buf,)+) {
            fn io_each_mut(&mut self, mut each: impl FnMut(*mut u8, usize)) {
                $(each(self.$index.io_mut_ptr(), self.$index.io_capacity());)+
            }
            unsafe fn io_set_total_len(&mut self, mut total: usize) {
                $(
                    // SAFETY: as for `Vec<B>`.
                    unsafe { take_share(&mut self.$index, &mut total) };
                )+
            }
        }
    };
}

tuple!(1: A 0);
tuple!(2: A 0, B 1);
tuple!(3: A 0, B 1, C 2);
tuple!(4: A 0, B 1, C 2, D 3);

/// What is left of a list that is written in several calls: all but its first bytes, and no empty buffer. So a call that takes
/// the first 1024 parts only has something to do as long as anything is left.
#[derive(Debug)]
pub(crate) struct Rest<V> {
    pub(crate) bufs: V,
    /// How many bytes are written already.
    pub(crate) written: usize,
}

// SAFETY: the pairs are those of the list, which stay as they are, some left out and one begun later, in the buffer still:
// `written` does not change while an operation has the rest.
unsafe impl<V: IoBufVec> IoBufVec for Rest<V> {
    fn io_count(&self) -> usize {
        let mut count = 0;
        self.io_each(|_, _| count += 1);
        count
    }
    fn io_each(&self, mut each: impl FnMut(*const u8, usize)) {
        let mut written = self.written;
        self.bufs.io_each(|ptr, len| {
            if written < len {
                // SAFETY: so the sum is within the buffer.
                each(unsafe { ptr.add(written) }, len - written);
            }
            written = written.saturating_sub(len);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does what the kernel does in a vectored write.
    fn gathered(list: &impl IoBufVec) -> Vec<u8> {
        let (mut all, mut parts) = (Vec::new(), 0);
        list.io_each(|ptr, len| {
            parts += 1;
            // SAFETY: each pair is an `IoBuf`'s, and `list` is borrowed.
            all.extend_from_slice(unsafe { std::slice::from_raw_parts(ptr, len) });
        });
        assert_eq!(parts, list.io_count());
        assert_eq!(all.len(), list.io_total_len());
        all
    }

    /// Does what the kernel does in a vectored read.
    fn scattered(list: &mut impl IoBufMutVec, data: &[u8]) -> usize {
        let mut rest = data;
        list.io_each_mut(|ptr, capacity| {
            let (part, after) = rest.split_at(rest.len().min(capacity));
            // SAFETY: each pair is an `IoBufMut`'s, borrowed exclusively; `part` fits the capacity.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), ptr, part.len()) };
            rest = after;
        });
        let n = data.len() - rest.len();
        // SAFETY: the loop above initialised `n` bytes, each buffer up to its capacity before the next.
        unsafe { list.io_set_total_len(n) };
        n
    }

    // A part out of order, or a field left out by the macro, would show as other bytes.
    #[test]
    fn a_write_sends_the_parts_in_order() {
        assert_eq!(gathered(&vec!["ab", "", "c"]), b"abc");
        assert_eq!(gathered(&[String::from("ab"), String::from("c")]), b"abc");
        assert_eq!(gathered(&("a",)), b"a");
        assert_eq!(gathered(&("a", vec![b'b'])), b"ab");
        assert_eq!(gathered(&("a", vec![b'b'], b"c")), b"abc");
        assert_eq!(gathered(&("a", vec![b'b'], b"c", String::from("d"))), b"abcd");
    }

    // A byte that is sent twice or left out where one call ends and the next begins; and a call that is shown empty parts only
    // would send nothing, for ever.
    #[test]
    fn the_rest_of_a_list_is_what_is_not_written_yet() {
        let mut bufs = vec!["ab", "", "", "cde", "f", ""];
        for written in 0..=6 {
            let rest = Rest { bufs, written };
            assert_eq!(gathered(&rest), b"abcdef"[written..]);
            rest.io_each(|_, len| assert_ne!(len, 0));
            bufs = rest.bufs;
        }
    }

    // A short read must not leave old lengths behind in the buffers that it did not reach.
    #[test]
    fn a_read_fills_the_parts_in_order_and_empties_the_rest() {
        let mut list = vec![vec![0u8; 2], vec![0; 3], vec![0; 4]];
        assert_eq!(scattered(&mut list, b"abc"), 3);
        assert_eq!(list, [b"ab".to_vec(), b"c".to_vec(), Vec::new()]);

        let mut pair = (vec![0u8; 2], Box::new([9u8; 3]));
        assert_eq!(scattered(&mut pair, b"abcdefgh"), 5);
        assert_eq!((&pair.0[..], &pair.1[..]), (&b"ab"[..], &b"cde"[..]));

        let mut array = [vec![0u8; 1], vec![0; 1]];
        assert_eq!(scattered(&mut array, b""), 0);
        assert_eq!(array, [Vec::new(), Vec::new()]);
    }
}
