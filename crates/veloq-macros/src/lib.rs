//! The attribute macros of Veloq.
