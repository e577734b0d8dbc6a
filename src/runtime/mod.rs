//! Workers, tasks, timers and the mesh.

pub(crate) mod mesh;
pub(crate) mod task;
