//! A Redis-protocol key-value server on Veloq: each worker has a shard of the keys, a listener, and a log.
//!
//! Most of it knows nothing of sockets, files or tasks: bytes go in, bytes come out. A request passes these modules in this
//! order:
//!
//! 1. [`resp`] cuts it out of the receive buffer,
//! 2. [`command`] finds what it calls,
//! 3. [`plan`] says which shard has its keys; what has none is run by the connection's [`session`],
//! 4. [`batch`] carries it to another worker, if need be; [`txn`] makes one of commands that several shards run together,
//! 5. [`exec`] runs it on a [`shard`], whose keys are in a [`db`],
//! 6. [`log`] remembers what it changed.
//!
//! [`limits`] is what is refused, [`glob`] matches patterns, [`float`] adds as Redis adds.
//!
//! The rest puts that on Veloq: a [`connection`] per client, a [`node`] per worker, its log on files ([`persist`]), the
//! [`server`] as a whole, its [`options`], and a [`demo`] that drives it.
#![forbid(unsafe_code)]

pub mod batch;
pub mod command;
pub mod connection;
pub mod db;
pub mod demo;
pub mod exec;
pub mod float;
pub mod glob;
pub mod limits;
pub mod log;
pub mod node;
pub mod options;
pub mod persist;
pub mod plan;
pub mod resp;
pub mod server;
pub mod session;
pub mod shard;
pub mod txn;
