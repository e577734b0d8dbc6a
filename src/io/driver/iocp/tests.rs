//! The backend against the real kernel.
