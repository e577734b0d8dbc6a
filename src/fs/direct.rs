//! Direct I/O: transfers between the device and the caller's buffer, with no copy in the page cache.
//!
//! A device moves whole blocks, to and from addresses that its DMA engine likes. So a file that is opened for Direct I/O
//! has an [`Alignment`]: every address must be a multiple of [`memory`](Alignment::memory), every offset and every length
//! one of [`offset`](Alignment::offset). The kernel answers anything else with a bare `EINVAL`, on some file systems, or
//! silently goes through the page cache, on others. Veloq checks before it submits, and says which number is wrong and
//! what it must be a multiple of ([`Misaligned`]).
//!
//! Buffers of 4 KiB and more from the worker's pool begin at a multiple of 4 KiB, which is enough for every common
//! device. A read may end before the buffer does, at the end of the file; the last block of a file whose length is no
//! multiple of a block is written whole and cut with [`set_len`](super::File::set_len), or written through another,
//! cached `File`.

use std::error::Error;
use std::fmt;

use crate::os::{self, BorrowedDescriptor};

/// Where a file's reads and writes go through. Set by [`OpenOptions::buffering`](super::OpenOptions::buffering).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Buffering {
    /// The kernel's page cache, as usual. A write is done when its bytes are in the cache.
    #[default]
    Cached,
    /// None: between the device and the caller's buffer (`O_DIRECT`). A write is done when the device has taken the
    /// bytes, perhaps into a cache of its own: it is durable after [`sync_data`](super::File::sync_data).
    Direct,
    /// None, and each write is durable when it is done (`O_DIRECT` with `O_DSYNC`): one device flush per write, or none
    /// on a device that can write through its cache.
    DirectSync,
}

/// What Direct I/O demands on one file. [`File::direct_alignment`](super::File::direct_alignment) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Alignment {
    /// Every buffer, and every part of a vectored transfer, begins at a multiple of this many bytes.
    pub memory: usize,
    /// Every offset, and every length, is a multiple of this many bytes: the device's logical block, or the file
    /// system's.
    pub offset: u64,
}

impl Alignment {
    /// Where the kernel says nothing of a file: 4 KiB, the largest block of common devices. It is an upper bound, so a
    /// program that obeys it is right on all of them.
    pub(super) const UNKNOWN: Alignment = Alignment { memory: 4096, offset: 4096 };

    /// What the file demands if it is open for Direct I/O.
    pub(super) fn of(fd: BorrowedDescriptor<'_>) -> Option<Alignment> {
        if !os::is_direct(fd) {
            return None;
        }
        let Some((memory, offset)) = os::direct_alignment(fd) else { return Some(Alignment::UNKNOWN) };
        let memory = usize::try_from(memory).expect("a u32 fits the usize of every system with a ring");
        Some(Alignment { memory, offset: u64::from(offset) })
    }

    /// Whether a transfer at `offset`, of one part `len` bytes at `address`, is as the device wants it.
    ///
    /// # Errors
    ///
    /// The first of the three numbers that is not.
    pub(super) fn check(self, offset: u64, address: usize, len: usize) -> Result<(), Misaligned> {
        if !self.divides(offset) {
            return Err(Misaligned { what: "offset", value: offset, alignment: self.offset });
        }
        let (address, len) = (to_u64(address), to_u64(len));
        if !self.divides(len) {
            return Err(Misaligned { what: "length", value: len, alignment: self.offset });
        }
        let memory = to_u64(self.memory);
        if !address.is_multiple_of(memory) {
            return Err(Misaligned { what: "address", value: address, alignment: memory });
        }
        Ok(())
    }

    /// Whether a transfer can begin at `offset`.
    pub(super) fn divides(self, offset: u64) -> bool {
        offset.is_multiple_of(self.offset)
    }
}

/// Why a transfer on a Direct I/O file was refused: one of its numbers is no multiple of what the device works in.
///
/// It is the source of an `InvalidInput` error:
///
/// ```
/// use veloq::fs::{Buffering, Misaligned, OpenOptions};
///
/// #[veloq::main(workers = 1)]
/// async fn main() -> std::io::Result<()> {
///     # let dir = tempfile::tempdir()?;
///     # let path = dir.path().join("data");
///     let mut options = OpenOptions::new();
///     options.read(true).write(true).create(true).buffering(Buffering::Direct);
///     let file = match options.open(&path).await {
///         Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return Ok(()), // no Direct I/O here
///         opened => opened?,
///     };
///     let (refused, _buf) = file.write_at("three", 1).await;
///     let error = refused.expect_err("5 bytes at 1 are no blocks");
///     let misaligned = error.get_ref().and_then(|source| source.downcast_ref::<Misaligned>());
///     assert_eq!(misaligned.map(Misaligned::what), Some("offset"));
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misaligned {
    what: &'static str,
    value: u64,
    alignment: u64,
}

impl Misaligned {
    /// Which number it is: `"offset"`, `"length"` or `"address"`.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// The number.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// What it must be a multiple of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }
}

impl fmt::Display for Misaligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Misaligned { what, value, alignment } = self;
        match *what {
            "address" => write!(
                f,
                "Direct I/O on this file needs buffers that begin at a multiple of {alignment} bytes, and this one is at \
                 {value:#x}; buffers of 4 KiB or more from `veloq::alloc` do"
            ),
            _ => write!(
                f,
                "Direct I/O on this file needs offsets and lengths that are multiples of {alignment} bytes, and this \
                 {what} is {value}"
            ),
        }
    }
}

impl Error for Misaligned {}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a usize has at most 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    // A check that looked at the wrong number, or in the wrong order of operands, would pass what the kernel refuses.
    #[test]
    fn the_first_wrong_number_is_named() {
        let disk = Alignment { memory: 4, offset: 512 };
        assert_eq!(disk.check(1024, 8, 512), Ok(()));
        let what = |offset, address, len| disk.check(offset, address, len).map_err(|wrong| wrong.what());
        assert_eq!(what(100, 8, 512), Err("offset"));
        assert_eq!(what(512, 8, 511), Err("length"));
        assert_eq!(what(512, 6, 512), Err("address"));
    }

    // Whoever reads the message has only it to go by.
    #[test]
    fn the_message_says_what_is_needed() {
        let error = Alignment::UNKNOWN.check(100, 0, 4096).expect_err("100 is no block");
        assert!(error.to_string().contains("multiples of 4096 bytes, and this offset is 100"), "{error}");
        let error = Alignment::UNKNOWN.check(0, 16, 4096).expect_err("16 is no page");
        assert!(error.to_string().contains("`veloq::alloc`"), "{error}");
    }
}
