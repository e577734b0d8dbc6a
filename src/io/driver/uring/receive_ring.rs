//! The ring of buffers that the kernel picks from when something arrives.
//!
//! A block of the worker's arena is cut into equal buffers, and their addresses stand in a ring that the kernel reads
//! (`IORING_REGISTER_PBUF_RING`). Each buffer is, at any time, in one of three hands:
//!
//! ```text
//! kernel ──completion──▶ program (a FixedBuf) ──drop, any thread──▶ returned list ──next turn──▶ kernel
//! ```
//!
//! So an idle connection holds no buffer: one is taken when data has arrived. When all are with the program the kernel
//! answers `ENOBUFS`, and the socket receives some other way until buffers come back.
#![expect(unsafe_code, reason = "shares a ring of addresses with the kernel")]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::DriverConfig;
use crate::io::buf::{FixedBuf, Pool, RingBlocks};
use crate::os::map::Mapping;

/// The group that receives name. Each ring has one.
const GROUP: u16 = 0;

/// Buffers handed to the kernel, and the ring that says where they are.
pub(super) struct ReceiveRing {
    /// The shared ring of entries: `count` of them, page-aligned, the tail in the first one's spare field.
    entries: Mapping,
    count: u16,
    /// The next entry to write; published to the kernel as the tail.
    tail: u16,
    blocks: RingBlocks,
}

impl ReceiveRing {
    /// Carves the buffers out of the pool's first chunk, as many as half of it has room for, and registers the ring. The other half is for
    /// those who ask for buffers.
    pub(super) fn register(ring: &IoUring, pool: &Pool, config: &DriverConfig) -> io::Result<ReceiveRing> {
        let mut count = config.receive_buffers.next_power_of_two().min(1 << 15);
        let arena = pool.arena();
        let half = arena.len() as u64 / 2;
        let blocks = loop {
            let within = count == 1 || u64::from(count) * u64::from(config.receive_buffer_bytes) <= half;
            if within && let Some(blocks) = arena.carve_ring(count, config.receive_buffer_bytes) {
                break blocks;
            }
            count /= 2;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::OutOfMemory,
                    "the pool has no room for a receive ring",
                ));
            }
        };
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let address = entries.base().as_ptr() as u64;
        // SAFETY: the ring's memory is mapped, page-aligned and large enough for `count` entries; `self.entries` keeps it
        // until `unregister`, or, if that fails, for ever.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0)? };
        let mut tail = 0;
        for buffer in 0..count {
            offer(&entries, count, &mut tail, &blocks, buffer);
        }
        let mut ring = ReceiveRing { entries, count, tail, blocks };
        ring.publish();
        Ok(ring)
    }

    /// How many buffers there are.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// The group's number.
    pub(super) fn group(&self) -> u16 {
        GROUP
    }

    /// The owned buffer that the kernel picked and wrote `len` bytes to.
    pub(super) fn filled(&mut self, buffer: u16, len: u32) -> FixedBuf {
        // SAFETY: the kernel took this buffer from the ring and says in the completion that was just reaped that it wrote
        // `len` bytes to it; it has forgotten the buffer until it is offered again.
        unsafe { self.blocks.take(buffer, len as usize) }
    }

    /// Offers the kernel every buffer that came back.
    pub(super) fn refill(&mut self) {
        let before = self.tail;
        let ReceiveRing { entries, count, tail, blocks } = self;
        blocks.drain_returned(|buffer| offer(entries, *count, tail, blocks, buffer));
        if self.tail != before {
            self.publish();
        }
    }

    /// Shows the kernel the entries written so far.
    fn publish(&mut self) {
        // SAFETY: the base is the first entry, initialised (zeroed by the mapping), and its spare field is the tail; the
        // kernel only reads it. Release pairs with the kernel's acquire of the tail and publishes the entries below it.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.base().as_ptr().cast()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// Takes the ring away from the kernel. Only once nothing receives any more.
    pub(super) fn unregister(self, ring: &IoUring) {
        if ring.submitter().unregister_buf_ring(GROUP).is_err() {
            // The kernel may still read the entries and write to the buffers: keep both.
            std::mem::forget(self);
        }
    }
}

/// Writes the next entry. The kernel does not see it before `publish`.
fn offer(entries: &Mapping, count: u16, tail: &mut u16, blocks: &RingBlocks, buffer: u16) {
    let slot = *tail & (count - 1);
    // SAFETY: `slot` is below `count`, so the entry is inside the mapping, whose page alignment suits it. The kernel
    // reads only entries below the published tail that it has not taken; this one was taken a lap ago, because there
    // are no more buffers than entries.
    unsafe {
        let entry = entries.base().cast::<BufRingEntry>().add(usize::from(slot));
        // Field by field: the first entry's spare field is the tail, which must not be overwritten.
        let entry = &mut *entry.as_ptr();
        entry.set_addr(blocks.ptr(buffer).as_ptr() as u64);
        entry.set_len(blocks.size());
        entry.set_bid(buffer);
    }
    *tail = tail.wrapping_add(1);
}
