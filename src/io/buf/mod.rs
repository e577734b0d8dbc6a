//! Buffers that an operation owns while the kernel uses them.
