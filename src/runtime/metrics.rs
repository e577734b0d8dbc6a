//! What each worker has done, for whoever asks.
//!
//! A worker writes its numbers into its own padded block once a turn, with plain relaxed stores; any thread may read
//! them. Each number is exact as of some recent turn; two numbers read one after the other may be of different turns.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Defines the published block and its snapshot with the same fields.
macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What one worker has done so far. Every number only grows, besides those that say "now".
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct WorkerMetrics {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// A worker's numbers as it shares them: one writer, any number of readers.
        #[derive(Debug, Default)]
        pub(crate) struct Published {
            $($name: AtomicU64,)+
        }

        impl Published {
            /// Shares a new state. Relaxed: the numbers order nothing.
            pub(crate) fn store(&self, now: &WorkerMetrics) {
                $(self.$name.store(now.$name, Ordering::Relaxed);)+
            }

            /// The state of some recent turn.
            pub(crate) fn load(&self) -> WorkerMetrics {
                WorkerMetrics { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

metrics! {
    /// Turns of the worker's loop.
    turns,
    /// Times a task was polled.
    polls,
    /// Tasks that are not finished, now: those that stay on this worker, and the stealable ones that were first polled here.
    tasks,
    /// Times the worker went to sleep.
    parks,
    /// Times the worker looked around for a while before it would sleep ([`Builder::spin`](super::Builder::spin)).
    spins,
    /// Times it was rung meanwhile, and did not sleep.
    spins_won,
    /// Nanoseconds that it has spent so: CPU time in which nothing was done.
    spin_ns,
    /// System calls that entered the ring.
    kernel_entries,
    /// Operations shown to the kernel.
    operations,
    /// Answers reaped from the kernel.
    completions,
    /// Operations whose answer is outstanding, now.
    in_flight,
    /// Slots of operations that are taken, now: in flight, or answered and not yet asked for.
    slots,
    /// Tasks sent to other workers over the mesh.
    mesh_sent,
    /// Tasks received from other workers over the mesh.
    mesh_received,
    /// Wakes and tasks that came from other threads.
    remote_wakes,
    /// Timers that fired.
    timers_fired,
    /// Tasks that code on this worker gave to the spawner to place, here or elsewhere.
    placed,
    /// Times this worker took tasks from another.
    steals,
    /// Times it looked for some in vain.
    steals_failed,
    /// Tasks that it took.
    stolen,
    /// Cancellations asked of the kernel.
    cancels,
    /// Cancellations that came too late.
    cancels_lost,
    /// Descriptors that an abandoned operation yielded, and that were closed or kept for the next caller.
    descriptors_reclaimed,
    /// Times the kernel found the receive ring empty.
    receive_ring_dry,
    /// Buffers that the pool could not give and the heap did.
    pool_misses,
    /// Blocks of the pool that are lent, now: one for each of its buffers, and one for the receive ring.
    buffers_out,
}
