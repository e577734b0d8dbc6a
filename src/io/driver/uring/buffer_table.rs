//! The kernel's table of buffers: which of the pool's chunks it knows, and under which index.
//!
//! The table is sparse: it is made empty, with room for as many chunks as a pool may have, and an entry is filled when a chunk
//! comes and emptied when it goes, one system call each. Between the two the table has a hold on the chunk, since registered
//! pages must not be unmapped under a living ring.
//!
//! ```text
//! empty ──came──▶ filled (index, hold) ──went──▶ empty           refused: over the worker's share of RLIMIT_MEMLOCK, or by the
//!   └──came, refused──▶ the chunk travels as plain memory                 kernel; counted
//! ```
//!
//! Nothing in flight uses an entry that is emptied: each operation owns its buffer, and a chunk goes when none of its buffers is
//! left. An entry that the kernel does not empty stays filled, with its hold, until the ring is closed.
#![expect(unsafe_code, reason = "tells the kernel addresses that it keeps")]

use std::io;

use io_uring::IoUring;

use crate::io::buf::{ArenaId, ArenaRef, CHUNKS_MAX, ChunkChange, Registration};
use crate::io::driver::budget::Budget;

/// The table of one ring. It must be dropped after the ring.
#[derive(Debug)]
pub(super) struct BufferTable {
    /// By index.
    chunks: Vec<Option<ArenaRef>>,
    budget: Budget,
    /// Bytes of the chunks that are registered.
    locked_bytes: usize,
    /// Chunks that were registered and that were not, ever.
    pub(super) registered: u64,
    pub(super) refused: u64,
}

impl BufferTable {
    /// An empty table, for a ring that has none.
    pub(super) fn new(ring: &IoUring, budget: Budget) -> io::Result<BufferTable> {
        ring.submitter()
            .register_buffers_sparse(u32::try_from(CHUNKS_MAX).expect("a pool has few chunks"))?;
        let chunks = (0..CHUNKS_MAX).map(|_| None).collect();
        Ok(BufferTable { chunks, budget, locked_bytes: 0, registered: 0, refused: 0 })
    }

    /// The index of a buffer whose chunk stands in this table; one of another ring's is plain memory here.
    pub(super) fn index(&self, registration: Registration) -> Option<u16> {
        let chunk = self.chunks.get(usize::from(registration.index))?.as_ref()?;
        (chunk.id() == registration.arena).then_some(registration.index)
    }

    /// Fills or empties the entry of a chunk that came or went.
    ///
    /// # Errors
    ///
    /// What the kernel said, or `ENOMEM` where the share is used up. The chunk is plain memory then, or stays held.
    pub(super) fn update(&mut self, ring: &IoUring, change: ChunkChange) -> io::Result<()> {
        match change {
            ChunkChange::Came(chunk) => self.fill(ring, chunk),
            ChunkChange::Went(id) => self.empty(ring, id),
        }
    }

    fn fill(&mut self, ring: &IoUring, chunk: ArenaRef) -> io::Result<()> {
        let free = self.chunks.iter().position(Option::is_none);
        let locked_bytes = self.locked_bytes + chunk.len();
        let filled = match free {
            Some(index) if self.budget.allows_locked(locked_bytes, ring.params().sq_entries()) => {
                let entry = libc::iovec { iov_base: chunk.base().as_ptr().cast(), iov_len: chunk.len() };
                let offset = u32::try_from(index).expect("a pool has few chunks");
                // SAFETY: the chunk's mapping outlives the entry: the hold is kept until the entry is emptied or the
                // ring is closed.
                unsafe { ring.submitter().register_buffers_update(offset, &[entry], None) }.map(|()| index)
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        };
        match filled {
            Ok(index) => {
                chunk.set_registered(u16::try_from(index).expect("a pool has few chunks"));
                self.chunks[index] = Some(chunk);
                self.locked_bytes = locked_bytes;
                self.registered += 1;
                Ok(())
            }
            Err(error) => {
                self.refused += 1;
                Err(error)
            }
        }
    }

    fn empty(&mut self, ring: &IoUring, id: ArenaId) -> io::Result<()> {
        let is_it = |chunk: &Option<ArenaRef>| chunk.as_ref().is_some_and(|chunk| chunk.id() == id);
        let Some(index) = self.chunks.iter().position(is_it) else { return Ok(()) };
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let offset = u32::try_from(index).expect("a pool has few chunks");
        // SAFETY: the entry names no memory: it takes the place of one that did.
        unsafe { ring.submitter().register_buffers_update(offset, &[nothing], None) }?;
        let gone = self.chunks[index].take().expect("found above");
        self.locked_bytes -= gone.len();
        Ok(())
    }
}
