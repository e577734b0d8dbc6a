//! What a server of this kind refuses, and what it says then.

use crate::resp::Encoder;

/// Bounds of one server. Each can be set; the defaults are here, with their reasons.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest key or value. A shard copies values in and out between other requests: 64 MiB take it some 10 ms.
    pub value_max: usize,
    /// Memory of all keys of all shards, 0 for no bound, as in Redis. Each shard has an equal part of it.
    pub memory_max: usize,
    /// Connections at a time: Redis's default.
    pub clients_max: usize,
    /// Bytes of a request that has not arrived whole: Redis's default for `client-query-buffer-limit`. The connection
    /// is closed beyond it.
    pub query_max: usize,
    /// Bytes of replies that a client has not taken yet. Redis has no bound here by default; a client that asks for
    /// more than it reads must not take the memory of all others, so: four of the largest values. Closed beyond it.
    pub output_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let mebibyte = 1024 * 1024;
        Self {
            value_max: 64 * mebibyte,
            memory_max: 0,
            clients_max: 10_000,
            query_max: 1024 * mebibyte,
            output_max: 256 * mebibyte,
        }
    }
}

/// What a client is told that comes when there are [`Limits::clients_max`] others.
pub const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// Bytes of records that a worker may have for the next frame of its log before its clients wait: one value of the largest size.
/// What one request adds may come on top.
pub const BACKLOG_MAX: usize = 64 * 1024 * 1024;

/// Answers a write when the log cannot be written, as Redis words it.
pub(crate) fn misconfigured(why: &dyn std::fmt::Display, out: &mut Encoder<'_>) {
    out.error(format!("MISCONF Errors writing to the AOF file: {why}"));
}

/// Answers a write when memory is used up.
pub(crate) fn out_of_memory(out: &mut Encoder<'_>) {
    out.error("OOM command not allowed when used memory > 'maxmemory'.");
}
