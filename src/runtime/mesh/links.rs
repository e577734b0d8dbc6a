//! One worker's ends of the mesh: a link to each other worker, and the rings that come from them.
//!
//! A message is a task that the sender has made and the receiver shall run. Sending pushes it into the pair's ring;
//! [`flush`](Links::flush), once at the end of the turn, publishes each ring that was pushed to and rings its receiver's
//! doorbell: so a burst costs one publication and at most one wake.
//!
//! **Full rings.** What finds its ring full waits in the link's *outbox*, in order, up to [`OUTBOX_MAX`]; the next message
//! is given back to the caller, who either waits for room ([`RoomToSend`]) or fails with a typed error.
//! A sender with a filled outbox asks to be rung when there is room ([`room`](super::room)), and tries once more.
//!
//! **Waiting for room.** Who waits stands in the link's list once, however often it is polled, and leaves it when it is dropped: so
//! the list is as long as there are futures that wait. The future may belong to a task that moves to another worker meanwhile. So it
//! has a count in the list where it stands, can leave it from anywhere, and joins that of the worker that polls it next.
//!
//! Rings are made when a worker first sends to another: a program whose workers do not talk has none.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::MESSAGES_MAX;
use super::ring::{Consumer, Producer, ring};
use crate::io::driver::waiter::Waiter;
use crate::runtime::context;
use crate::runtime::shared::Shared;
use crate::runtime::task::TaskRef;
use crate::runtime::worker_id::WorkerId;
use crate::sync::{Arc, Mutex, lock};

/// Messages that one ring holds: 8 KiB of pointers, and several turns' worth for the receiver.
const RING_MESSAGES: usize = 1024;

/// Messages that wait for a full ring at most. With the ring before it this bounds what a slow worker can make one other
/// hold; beyond it the sender feels the slowness. 4096.
const OUTBOX_MAX: usize = MESSAGES_MAX - RING_MESSAGES;

/// Messages taken from one ring in a turn at most, so that one flooding sender does not delay the others, or the tasks
/// that are ready already, by more than so many.
const TAKE_MAX: usize = 256;

/// One worker's ends of all its rings.
pub(crate) struct Links {
    me: WorkerId,
    shared: Arc<Shared>,
    to: Vec<Link>,
    from: Vec<Option<Consumer<TaskRef>>>,
    /// Links that were pushed to, or whose outbox is not empty.
    unflushed: Vec<WorkerId>,
    /// Rings that may hold more than the last turn took, those that have waited for longest first.
    unfinished: Vec<WorkerId>,
    sent: u64,
    received: u64,
}

/// The sending end of one pair.
#[derive(Default)]
struct Link {
    producer: Option<Producer<TaskRef>>,
    outbox: VecDeque<TaskRef>,
    listed: bool,
    /// Who waits for the outbox to have room, if somebody does.
    waiting: Option<Arc<Mutex<Waiting>>>,
}

/// Who waits for the same room, by ticket: the first to come has the lowest, and is woken first.
#[derive(Default)]
struct Waiting {
    wakers: BTreeMap<u64, Waker>,
    /// The last ticket that was given out.
    tickets: u64,
}

/// Why a task was not sent.
pub(crate) enum Unsent {
    /// Too many wait for that worker already.
    Full,
    /// The worker that sends has ended.
    Closed,
}

impl Links {
    /// The ends of worker `me`.
    pub(crate) fn new(me: WorkerId, shared: Arc<Shared>) -> Links {
        let workers = shared.workers();
        Links {
            me,
            shared,
            to: (0..workers).map(|_| Link::default()).collect(),
            from: (0..workers).map(|_| None).collect(),
            unflushed: Vec::new(),
            unfinished: Vec::new(),
            sent: 0,
            received: 0,
        }
    }

    /// Messages sent and received, ever.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.sent, self.received)
    }

    /// Queues a task for another worker. It goes out with the next `flush`.
    ///
    /// # Errors
    ///
    /// Gives the task back if the ring and the outbox are full, or all is closed: to be dropped with nothing borrowed.
    pub(crate) fn send(&mut self, to: WorkerId, task: TaskRef) -> Result<(), (TaskRef, Unsent)> {
        // There are none once all is closed, when destructors still run at the worker's end.
        let Some(link) = self.to.get_mut(to.index()) else { return Err((task, Unsent::Closed)) };
        let producer = link.producer.get_or_insert_with(|| {
            let (producer, receiver_end) = ring(RING_MESSAGES);
            self.shared.hand_over(self.me, to, receiver_end);
            producer
        });
        let refused = if link.outbox.is_empty() { producer.try_push(task).err() } else { Some(task) };
        if let Some(task) = refused {
            if link.outbox.len() >= OUTBOX_MAX {
                return Err((task, Unsent::Full));
            }
            link.outbox.push_back(task);
        }
        self.sent += 1;
        if !link.listed {
            link.listed = true;
            self.unflushed.push(to);
        }
        Ok(())
    }

    /// The list to wait in until `send` to that worker would not be refused for want of room; `None` if it would not be now.
    fn without_room(&mut self, to: WorkerId) -> Option<Arc<Mutex<Waiting>>> {
        let link = self.to.get_mut(to.index())?;
        (link.outbox.len() >= OUTBOX_MAX).then(|| Arc::clone(link.waiting.get_or_insert_default()))
    }

    /// Publishes what was sent and rings. Gives back who waited for room that there is now: to be woken by the caller,
    /// with no borrow held.
    pub(crate) fn flush(&mut self) -> Vec<Waiter> {
        if self.unflushed.is_empty() {
            return Vec::new();
        }
        let mut woken = Vec::new();
        let Links { me, shared, to, unflushed, .. } = self;
        unflushed.retain(|&receiver| {
            let link = &mut to[receiver.index()];
            let producer = link.producer.as_mut().expect("only a link that was sent to is listed");
            if !push_outbox(producer, &mut link.outbox) {
                shared.room(*me, receiver).ask();
                push_outbox(producer, &mut link.outbox);
            }
            if producer.publish() {
                shared.mailbox(receiver).doorbell().ring(me.index());
            }
            if link.outbox.len() < OUTBOX_MAX
                && let Some(waiting) = link.waiting.take()
            {
                let wakers = std::mem::take(&mut lock(&waiting).wakers);
                woken.extend(wakers.into_values().map(Waiter::Waker));
            }
            link.listed = !link.outbox.is_empty();
            link.listed
        });
        woken
    }

    /// Takes what has arrived, `most` messages at most: from the rings with a rest from the last turn, and those whose bit is
    /// set. Rings that had to stand back come first the next time.
    #[inline]
    pub(crate) fn receive(&mut self, most: usize, adopt: impl FnMut(TaskRef)) {
        if self.has_unfinished() || self.shared.mailbox(self.me).doorbell().has_senders() {
            self.take_in(most, adopt);
        }
    }

    /// The same when there is something.
    fn take_in(&mut self, most: usize, mut adopt: impl FnMut(TaskRef)) {
        let mut left = most;
        let mut served = Vec::new();
        let mut rung = std::mem::take(&mut self.unfinished);
        self.shared.mailbox(self.me).doorbell().take_senders(|sender| {
            let sender = WorkerId::new(sender);
            if !rung.contains(&sender) {
                rung.push(sender);
            }
        });
        for sender in rung.drain(..) {
            let ring = &mut self.from[sender.index()];
            if ring.is_none() {
                *ring = self.shared.take_over(sender, self.me);
            }
            // A bit without a ring: the sender has room for us again, or was told of it.
            let Some(ring) = ring else { continue };
            if left == 0 {
                self.unfinished.push(sender);
                continue;
            }
            let share = TAKE_MAX.min(left);
            let taken = ring.pop_batch(share, &mut adopt);
            self.received += taken as u64;
            left -= taken;
            // Not "a whole share was taken": a batch ends where we last saw the tail, and the bit for what came since is taken.
            if ring.len() > 0 {
                served.push(sender);
            }
            if taken > 0 && self.shared.room(sender, self.me).was_asked_for() {
                self.shared.mailbox(sender).doorbell().ring(self.me.index());
            }
        }
        if self.unfinished.is_empty() {
            self.unfinished = rung;
        }
        self.unfinished.append(&mut served);
    }

    /// Whether a ring holds more than the last turn took: then the worker may not sleep.
    pub(crate) fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Lets go of everything, what was not sent and what was not taken, and refuses what comes later. Give it to be dropped
    /// with no borrow held: closures go with it, and their destructors may send.
    pub(crate) fn close(&mut self) -> impl Sized + use<> {
        self.unflushed.clear();
        self.unfinished.clear();
        let mut rings: Vec<_> = std::mem::take(&mut self.from).into_iter().flatten().collect();
        for other in (0..self.shared.workers()).map(WorkerId::new) {
            // Rings to us that we have not looked into, and ours that their receivers, who may have ended, have not.
            rings.extend(self.shared.take_over(other, self.me));
            rings.extend(self.shared.take_over(self.me, other));
        }
        (std::mem::take(&mut self.to), rings)
    }
}

/// Waits until a message from the worker that polls it to another would not be refused for want of room.
#[must_use = "futures do nothing unless awaited"]
pub(crate) struct RoomToSend {
    to: WorkerId,
    /// Where it waits, and its ticket there.
    place: Option<(Arc<Mutex<Waiting>>, u64)>,
}

impl RoomToSend {
    /// Waits for room towards `to`.
    pub(crate) fn new(to: WorkerId) -> RoomToSend {
        RoomToSend { to, place: None }
    }

    /// Waits no more.
    fn leave(&mut self) {
        if let Some((waiting, ticket)) = self.place.take() {
            let waker = lock(&waiting).wakers.remove(&ticket);
            // Foreign code, with no lock held.
            drop(waker);
        }
    }
}

impl Future for RoomToSend {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let without_room = || context::Context::current().links.borrow_mut().without_room(self.to);
        if without_room().is_none() {
            self.leave();
            return Poll::Ready(());
        }
        // Foreign code, called with nothing borrowed; there may be room after it.
        let waker = cx.waker().clone();
        let Some(waiting) = without_room() else {
            self.leave();
            return Poll::Ready(());
        };
        if self.place.as_ref().is_none_or(|(place, _)| !Arc::ptr_eq(place, &waiting)) {
            self.leave();
            let mut list = lock(&waiting);
            list.tickets += 1;
            self.place = Some((Arc::clone(&waiting), list.tickets));
        }
        let (_, ticket) = self.place.as_ref().expect("it was put there just now");
        let before = lock(&waiting).wakers.insert(*ticket, waker);
        drop(before);
        Poll::Pending
    }
}

impl Drop for RoomToSend {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for RoomToSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomToSend").field("to", &self.to).finish_non_exhaustive()
    }
}

/// Moves what waits into the ring. Whether all of it went.
fn push_outbox(producer: &mut Producer<TaskRef>, outbox: &mut VecDeque<TaskRef>) -> bool {
    while let Some(task) = outbox.pop_front() {
        if let Err(task) = producer.try_push(task) {
            outbox.push_front(task);
            return false;
        }
    }
    true
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("me", &self.me)
            .field("sent", &self.sent)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runtime::mesh::mailbox::Mailbox;
    use crate::runtime::spawner::Spawner;
    use crate::runtime::task::Label;

    // The receiver remembers an older tail of a ring with a rest. What lies behind it, its bit taken, must not have to wait
    // for the next message.
    #[test]
    fn what_is_sent_behind_an_unfinished_burst_is_taken_too() {
        const BURSTS: [usize; 2] = [TAKE_MAX + 44, 50];
        let spawner = Spawner::new(2, false);
        let mailboxes = (0..2).map(|worker| Mailbox::new(&spawner, worker, || ())).collect();
        let shared = Arc::new(Shared::new(spawner, mailboxes, Duration::ZERO));
        let receives = WorkerId::new(1);
        let mut sender = Links::new(WorkerId::new(0), Arc::clone(&shared));
        let mut receiver = Links::new(receives, Arc::clone(&shared));
        let mut taken = 0;
        for burst in BURSTS {
            for _ in 0..burst {
                let (task, _handle) =
                    TaskRef::new_remote_at(async || (), shared.mailbox(receives), Label::here());
                assert!(sender.send(receives, task).is_ok(), "there is room");
            }
            assert!(sender.flush().is_empty(), "nobody waits for room");
            receiver.receive(usize::MAX, |_task| taken += 1);
        }
        while receiver.has_unfinished() {
            receiver.receive(usize::MAX, |_task| taken += 1);
        }
        assert_eq!(taken, BURSTS.iter().sum::<usize>());
    }
}
