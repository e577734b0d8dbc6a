//! One shim for everything two threads may touch at once: std's atomics and cells, or loom's under `--cfg loom`.
