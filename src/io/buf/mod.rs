//! Buffers that an operation owns while the kernel uses them.
//!
//! With completion I/O the kernel writes into a buffer at a time of its own choosing, so an operation takes its buffer
//! by value and gives it back with the result: [`BufResult`]. What may be handed over is said by two traits, [`IoBuf`]
//! (can be written from) and [`IoBufMut`] (can be read into); ordinary vectors, boxes and strings qualify.
//!
//! [`FixedBuf`] is the buffer to use. It comes from a [`BufPool`], whose memory lies in a few large pieces, its *arenas*, so
//! that a driver can register it with the kernel once and the kernel goes by index ever after. Where it is
//! made, sent and dropped is free; it finds home from any thread.
//!
//! ```
//! use veloq::io::buf::{BufPool, BuddyPool, IoBuf};
//!
//! let pool = BuddyPool::new(1 << 20)?;
//! let mut buf = pool.alloc(8192);                 // page-aligned, empty, room for exactly 8192 bytes
//! buf.extend_from_slice(b"hello");
//! assert_eq!(&buf[..], b"hello");                 // only what was written can be seen
//! let part = buf.slice(1..3);                     // the same buffer, as two bytes of it
//! assert_eq!(&part[..], b"el");
//! std::thread::spawn(move || drop(part)).join().unwrap();
//! assert_eq!(pool.stats().blocks_out, 0);         // it came back
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! In reading order: `io_buf` (the traits), `slice`, `vectored`; `fixed` (the buffer), `shared`, `pool` (who makes it), `chunks` (how
//! a pool grows and shrinks), `waiting` (how one waits for it); `arena` (memory and its life), `blocks`, `buddy` and `slabs` (which of it
//! is free), `ring` (the part that the kernel picks from), `returns` (how blocks come home from other threads), `atomic_waker`
//! (who is told), `meter` (what came from the heap), `owned` (how one thread keeps books in a shared place), `poison` (what a sanitizer
//! is told).

mod arena;
mod atomic_waker;
mod blocks;
mod buddy;
mod chunks;
mod fixed;
mod io_buf;
mod meter;
mod owned;
mod poison;
mod pool;
mod returns;
mod ring;
mod shared;
mod slabs;
mod slice;
mod vectored;
mod waiting;

pub use arena::{ArenaId, Registration};
pub use fixed::FixedBuf;
pub use io_buf::{IoBuf, IoBufMut};
pub use pool::{
    BuddyPool, BufPool, CHUNKS_MAX, HugePages, HybridPool, PoolConfig, PoolConfigError, PoolKind, PoolStats,
};
pub use shared::SharedBuf;
pub use slice::Slice;
pub use vectored::{IoBufMutVec, IoBufVec};
pub use waiting::AllocAsync;

pub(crate) use arena::ArenaRef;
pub(crate) use chunks::{ChunkChange, Pool};
pub(crate) use ring::RingBlocks;
pub(crate) use vectored::Rest;

/// What an operation came to, and the buffer that was lent to it, which comes back whatever happened.
pub type BufResult<T, B> = (std::io::Result<T>, B);

/// The unit of arenas, and the alignment of every buffer of at least this size: what Direct I/O asks for on common
/// devices (512 or 4096), and the smallest page of any system that we run on.
const PAGE: usize = 4096;
