//! The operating systems' own calls: mapping memory, affinity, limits.
