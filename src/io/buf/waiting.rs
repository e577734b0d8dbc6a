//! Waiting for a pool to have room.
//!
//! Who waits stands in a queue, in the order of first polls, and only the first tries to take a buffer:
//!
//! ```text
//!   first poll ──▶ Queued ──all before are served──▶ First ──the pool has room──▶ a buffer, and the next is woken
//!       │             └───────────dropped──────────────┘ (its place is gone, and the next is woken)
//!       └── nobody waits and the pool has room ──▶ a buffer
//! ```
//!
//! The first sets the pool's waker to its own, then says in each list of returned blocks that it waits, and then looks
//! whether something has come back meanwhile. Whatever comes back after that, on whichever thread, wakes it. So no return goes
//! unnoticed: it hangs on the list before the mark (and the look finds it), or it finds the mark. Woken for too little,
//! the first looks, and waits again.
//!
//! Nobody overtakes: while anyone is queued, the pool gives to nobody else (`alloc` then takes the heap). Hence a waiter for
//! a large block is served as soon as what was lent when it became the first has come back, however many smaller
//! ones others want. A future that is dropped held nothing but its place.
//!
//! A waker is the program's code when it is cloned, compared or dropped as much as when it wakes: it may use the pool, wait in it,
//! or drop who waits. So none of that happens while the queue is borrowed, and what was known before it is looked up again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::FixedBuf;
use super::chunks::Core;

/// Who waits for a pool. Each place belongs to a future of the program's, and goes with it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The wakers are behind a count, so that one can be used while the queue is not borrowed.
    places: RefCell<BTreeMap<u64, Rc<Waker>>>,
    /// How many places there are, to be read without a borrow.
    len: Cell<usize>,
    next: Cell<u64>,
}

impl Queue {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len.get() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len.get()
    }

    /// Takes a place, the last.
    fn join(&self, waker: &Waker) -> u64 {
        let waker = waker.clone();
        let place = self.next.replace(self.next.get() + 1);
        self.places.borrow_mut().insert(place, Rc::new(waker));
        self.len.set(self.len.get() + 1);
        place
    }

    /// Whether nobody is before `place`.
    fn is_first(&self, place: u64) -> bool {
        self.places.borrow().first_key_value().is_some_and(|(&first, _)| first == place)
    }

    /// Notes who is to be woken when `place` has become the first.
    fn update(&self, place: u64, waker: &Waker) {
        // A handle of our own, so that nothing is borrowed while the wakers are asked.
        let noted = self.places.borrow().get(&place).map(Rc::clone);
        if noted.as_ref().is_none_or(|noted| noted.will_wake(waker)) {
            return;
        }
        let new = Rc::new(waker.clone());
        let old = self.places.borrow_mut().get_mut(&place).map(|noted| std::mem::replace(noted, new));
        drop((old, noted));
    }

    /// Gives up a place, and wakes who is first now.
    fn leave(&self, place: u64) {
        let was_first = self.is_first(place);
        let own = self.places.borrow_mut().remove(&place);
        self.len.set(self.len.get() - usize::from(own.is_some()));
        let next = self.places.borrow().first_key_value().map(|(_, waker)| Rc::clone(waker));
        drop(own);
        if let (true, Some(next)) = (was_first, next) {
            next.wake_by_ref();
        }
    }
}

/// The future of [`BufPool::alloc_async`](super::BufPool::alloc_async). It stays on the pool's thread.
#[must_use = "a future waits only while it is polled"]
pub struct AllocAsync {
    core: Rc<Core>,
    size: usize,
    place: Option<u64>,
}

impl AllocAsync {
    pub(super) fn new(core: Rc<Core>, size: usize) -> AllocAsync {
        AllocAsync { core, size, place: None }
    }

    /// Takes a buffer if it may, after having said that it waits if there is none.
    fn try_take(&self, waker: &Waker) -> Option<FixedBuf> {
        loop {
            if let Some(buf) = self.core.take(self.size) {
                return Some(buf);
            }
            self.core.waker.set(waker);
            if !self.core.announce(self.size) {
                return None;
            }
        }
    }

    /// Gives up its place.
    fn leave(&mut self) {
        let Some(place) = self.place.take() else { return };
        if self.core.queue.is_first(place) {
            // The waker that is set is this one's; only the first sets any.
            self.core.waker.clear();
        }
        self.core.queue.leave(place);
    }
}

impl Future for AllocAsync {
    type Output = FixedBuf;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<FixedBuf> {
        if !self.core.could_give(self.size) {
            return Poll::Ready(self.core.heap(self.size));
        }
        let place = match self.place {
            Some(place) => place,
            None => {
                if self.core.queue.is_empty()
                    && let Some(buf) = self.core.take(self.size)
                {
                    return Poll::Ready(buf);
                }
                let place = self.core.queue.join(cx.waker());
                self.place = Some(place);
                place
            }
        };
        self.core.queue.update(place, cx.waker());
        if !self.core.queue.is_first(place) {
            return Poll::Pending;
        }
        match self.try_take(cx.waker()) {
            Some(buf) => {
                self.leave();
                Poll::Ready(buf)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for AllocAsync {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for AllocAsync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllocAsync").field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::thread::{self, Thread};

    use super::super::chunks::Pool;
    use super::super::{BufPool, PoolConfig, PoolKind};
    use super::*;
    use crate::io::driver::waiter::waker_that_panics;

    const CHUNK: usize = 64 << 10;

    fn pool() -> Pool {
        Pool::fixed(CHUNK).expect("64 KiB can be mapped")
    }

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A future that waits, and its count of wakes.
    struct Waiter {
        future: Pin<Box<AllocAsync>>,
        count: Arc<Count>,
    }

    impl Waiter {
        fn new(pool: &Pool, size: usize) -> Waiter {
            Waiter { future: Box::pin(pool.alloc_async(size)), count: Arc::default() }
        }

        fn poll(&mut self) -> Option<FixedBuf> {
            let waker = Waker::from(Arc::clone(&self.count));
            match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(buf) => Some(buf),
                Poll::Pending => None,
            }
        }

        fn wakes(&self) -> usize {
            self.count.0.load(Ordering::SeqCst)
        }
    }

    // A waiter whose return is not noticed sleeps for ever, whichever thread it came from.
    #[test]
    fn a_return_wakes_the_first_from_here_and_from_another_thread() {
        for here in [true, false] {
            let pool = pool();
            let all = pool.alloc(CHUNK);
            let mut waiter = Waiter::new(&pool, CHUNK);
            assert!(waiter.poll().is_none());
            assert_eq!((waiter.wakes(), pool.stats().waiting), (0, 1));
            if here {
                drop(all);
            } else {
                thread::spawn(move || drop(all)).join().expect("dropping does not panic");
            }
            assert_eq!(waiter.wakes(), 1);
            assert_eq!(waiter.poll().map(|buf| buf.capacity()), Some(CHUNK));
            assert_eq!(pool.stats().waiting, 0);
        }
    }

    // If the queue were no queue, or anyone could overtake it, a waiter for much would starve among those who want little.
    #[test]
    fn who_came_first_is_served_first_and_nobody_overtakes() {
        let pool = pool();
        let [half, quarter] = [CHUNK / 2, CHUNK / 4].map(|size| pool.alloc(size));
        let mut large = Waiter::new(&pool, CHUNK);
        let mut small = Waiter::new(&pool, 4096);
        assert!(large.poll().is_none() && small.poll().is_none());
        assert!(pool.try_alloc(4096).is_none(), "a quarter is free, but somebody waits");
        let misses = pool.stats().misses;
        drop(pool.alloc(4096));
        assert_eq!(pool.stats().misses, misses + 1, "from the heap");
        drop(half);
        assert!(large.poll().is_none() && small.poll().is_none());
        drop(quarter);
        assert_eq!(small.wakes(), 0, "it is not its turn");
        let all = large.poll().expect("all is free");
        assert_eq!(small.wakes(), 1, "its turn has come");
        assert!(small.poll().is_none());
        drop(all);
        assert_eq!(small.wakes(), 2);
        assert!(small.poll().is_some());
        assert!(pool.try_alloc(4096).is_some(), "nobody waits any more");
    }

    // A waiter that goes, first or not, woken or not, must neither block those behind it nor keep what it was woken for.
    #[test]
    fn a_waiter_that_is_dropped_loses_nothing() {
        for woken in [false, true] {
            let pool = pool();
            let all = pool.alloc(CHUNK);
            let [mut first, mut second, mut third] = [(); 3].map(|()| Waiter::new(&pool, CHUNK));
            assert!(first.poll().is_none() && second.poll().is_none() && third.poll().is_none());
            drop(second);
            if woken {
                drop(all);
                assert_eq!((first.wakes(), third.wakes()), (1, 0));
                drop(first);
                assert_eq!(third.wakes(), 1);
            } else {
                drop(first);
                assert_eq!(third.wakes(), 1, "it is first now, and looks");
                assert!(third.poll().is_none());
                drop(all);
                assert_eq!(third.wakes(), 2);
            }
            assert!(third.poll().is_some());
            assert_eq!((pool.stats().waiting, pool.stats().blocks_out), (0, 0));
        }
    }

    // A future may move to another task between two polls; the old one's waker is then the wrong one.
    #[test]
    fn the_latest_waker_is_woken() {
        let pool = pool();
        let all = pool.alloc(CHUNK);
        let mut waiter = Waiter::new(&pool, CHUNK);
        assert!(waiter.poll().is_none());
        let old = std::mem::take(&mut waiter.count);
        assert!(waiter.poll().is_none());
        let mut second = Waiter::new(&pool, CHUNK);
        assert!(second.poll().is_none());
        let second_old = std::mem::take(&mut second.count);
        assert!(second.poll().is_none());
        thread::spawn(move || drop(all)).join().expect("dropping does not panic");
        assert_eq!((old.0.load(Ordering::SeqCst), waiter.wakes()), (0, 1));
        drop(waiter);
        assert_eq!(
            (second_old.0.load(Ordering::SeqCst), second.wakes()),
            (0, 1),
            "also of who was not the first"
        );
    }

    // What can never be given must not be waited for.
    #[test]
    fn what_no_pool_could_give_comes_from_the_heap_at_once() {
        for (kind, size) in [(PoolKind::Buddy, CHUNK + 1), (PoolKind::Hybrid, 2 * CHUNK + 1)] {
            let config =
                PoolConfig { kind, bytes: CHUNK, heap_bytes_max: 2 * CHUNK, ..PoolConfig::default() };
            let pool = Pool::new(&config).expect("64 KiB can be mapped");
            let mut waiter = Waiter::new(&pool, size);
            assert!(waiter.poll().is_some_and(|buf| buf.capacity() == size));
            assert_eq!((pool.stats().misses, pool.stats().waiting), (1, 0));
        }
    }

    // The heap's share of a hybrid pool has room again when a buffer of it is dropped, which no list of blocks shows.
    #[test]
    fn room_in_a_hybrid_pools_heap_can_be_waited_for() {
        let config = PoolConfig {
            kind: PoolKind::Hybrid,
            bytes: CHUNK,
            heap_bytes_max: 1 << 20,
            ..PoolConfig::default()
        };
        let pool = Pool::new(&config).expect("64 KiB can be mapped");
        let all = pool.try_alloc(1 << 20).expect("the heap is free");
        let mut waiter = Waiter::new(&pool, 1 << 17);
        assert!(waiter.poll().is_none());
        thread::spawn(move || drop(all)).join().expect("dropping does not panic");
        assert_eq!(waiter.wakes(), 1);
        assert!(waiter.poll().is_some());
    }

    // The waker is the program's: it may use the pool, or end it, from within the return that wakes it.
    #[test]
    fn a_waker_may_use_the_pool_that_wakes_it() {
        struct Ends(std::sync::Mutex<Option<FixedBuf>>);
        impl Wake for Ends {
            fn wake(self: Arc<Self>) {
                drop(self.0.lock().expect("not poisoned").take());
            }
        }
        let pool = pool();
        let [half, other] = [(); 2].map(|()| pool.alloc(CHUNK / 2));
        let ends = Arc::new(Ends(std::sync::Mutex::new(Some(other))));
        let waker = Waker::from(Arc::clone(&ends));
        let mut waiter = Box::pin(pool.alloc_async(CHUNK));
        assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(half);
        assert!(ends.0.lock().expect("not poisoned").is_none());
        assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    }

    // It is called from within a destructor, where a panic can end the process.
    #[test]
    fn a_waker_that_panics_ends_with_it() {
        let pool = pool();
        let all = pool.alloc(CHUNK);
        let mut waiter = Waiter::new(&pool, CHUNK);
        assert!(waiter.future.as_mut().poll(&mut Context::from_waker(&waker_that_panics())).is_pending());
        drop(all);
        assert!(waiter.poll().is_some());
    }

    // The race of a return with the look for it: many rounds, each of which hangs if one is missed.
    #[test]
    fn no_return_is_missed() {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let pool = pool();
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let (lend, lent) = std::sync::mpsc::channel::<FixedBuf>();
        let other = thread::spawn(move || lent.into_iter().for_each(drop));
        for _ in 0..20_000 {
            let mut future = pin!(pool.alloc_async(CHUNK));
            let all = loop {
                match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(buf) => break buf,
                    Poll::Pending => thread::park(),
                }
            };
            lend.send(all).expect("the thread is there");
        }
        drop(lend);
        other.join().expect("dropping does not panic");
    }
}
