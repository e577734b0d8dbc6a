//! The portable half of the kernel connection.

pub mod waiter;
