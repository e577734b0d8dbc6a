//! (layer: interface)
