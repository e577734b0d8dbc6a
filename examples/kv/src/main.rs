//! The `kv` server program.
fn main() {}
