//! Everybody to everybody: a channel for each pair of workers, made by one call.
//!
//! With n workers there are n² rings, of which a program may use few. A ring that nobody has sent over has no room yet (see
//! [`ring`](super::ring)), and a receiver looks only into those of its n that were marked (see [`channel`](super::channel)): so
//! what a mesh costs depends on who talks, but for some words for each pair.

use std::fmt;

use super::channel::{Receiver, SendError, Sender, TrySendError, Values, lane};
use crate::runtime::context;
use crate::runtime::worker_id::WorkerId;
use crate::sync::Arc;

/// Makes every worker's ends of a mesh of its own: a channel from each to each, itself included, every one with room for `capacity` values.
/// In the order of the workers, to be sent to them. The room is made when a pair first uses it.
///
/// ```
/// use veloq::mesh;
///
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// let tasks: Vec<_> = veloq::workers()
///     .zip(mesh::full::<usize>(64))
///     .map(|(worker, mut ends)| {
///         veloq::spawn_to(worker, async move || {
///             for other in veloq::workers() {
///                 ends.send(other, worker.index()).await.expect("everybody is there");
///             }
///             let (senders, mut receiver) = ends.split();
///             drop(senders);
///             let mut heard_of = Vec::new();
///             while let Some(other) = receiver.recv().await {
///                 heard_of.push(other);
///             }
///             heard_of.len()
///         })
///     })
///     .collect();
/// for task in tasks {
///     assert_eq!(task.await.expect("it does not panic"), 2);
/// }
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// If no worker runs on this thread, or `capacity` is not a power of two.
#[track_caller]
#[must_use]
pub fn full<T: Send>(capacity: usize) -> Vec<Mesh<T>> {
    let workers = context::Context::current().shared.workers();
    let values: Vec<_> = (0..workers).map(|_| Arc::new(Values::new(workers))).collect();
    let mut lanes: Vec<Vec<_>> = values.iter().map(|_| Vec::with_capacity(workers)).collect();
    let mut senders: Vec<Vec<_>> = values.iter().map(|_| Vec::with_capacity(workers)).collect();
    for (number, senders) in senders.iter_mut().enumerate() {
        for (values, lanes) in values.iter().zip(&mut lanes) {
            let (sender, lane) = lane(capacity, values, number);
            senders.push(sender);
            lanes.push(lane);
        }
    }
    let receivers = values.into_iter().zip(lanes).map(|(values, lanes)| Receiver::new(values, lanes));
    senders.into_iter().zip(receivers).map(|(senders, receiver)| Mesh { senders, receiver }).collect()
}

/// One worker's ends of a mesh that [`full`] made: a sender to each worker, and one receiver of what they all send, fair between them.
///
/// Like the ends that it is made of, it belongs to no worker: it can be sent to any and used there.
pub struct Mesh<T: Send> {
    senders: Vec<Sender<T>>,
    receiver: Receiver<T>,
}

impl<T: Send> Mesh<T> {
    /// Sends a value to a worker, once there is room for it; see [`Sender::send`].
    ///
    /// # Errors
    ///
    /// Gives the value back if that worker's receiver has gone.
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    pub async fn send(&mut self, to: WorkerId, value: T) -> Result<(), SendError<T>> {
        self.sender(to).send(value).await
    }

    /// Sends a value to a worker if there is room for it now.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::try_send`].
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    #[track_caller]
    pub fn try_send(&mut self, to: WorkerId, value: T) -> Result<(), TrySendError<T>> {
        self.sender(to).try_send(value)
    }

    /// Receives the next value, whoever sent it. As the own sender is at hand, there is always one: to see the others
    /// end, [`split`](Mesh::split) the ends and drop it.
    pub async fn recv(&mut self) -> T {
        match self.receiver.recv().await {
            Some(value) => value,
            None => unreachable!("the sender to this very receiver is in `self`"),
        }
    }

    /// Takes the next value if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        self.receiver.try_recv().ok()
    }

    /// The sender to a worker.
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    #[track_caller]
    pub fn sender(&mut self, to: WorkerId) -> &mut Sender<T> {
        let workers = self.senders.len();
        match self.senders.get_mut(to.index()) {
            Some(sender) => sender,
            None => panic!("there is no worker {to}: the mesh has {workers}"),
        }
    }

    /// The senders, in the order of the workers, and the receiver: for different tasks.
    #[must_use]
    pub fn split(self) -> (Vec<Sender<T>>, Receiver<T>) {
        (self.senders, self.receiver)
    }
}

impl<T: Send> fmt::Debug for Mesh<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workers", &self.senders.len())
            .field("receiver", &self.receiver)
            .finish()
    }
}
