//! Workers, tasks, timers and the mesh.
