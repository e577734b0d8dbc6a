//! A Redis-protocol key-value server on Veloq.
