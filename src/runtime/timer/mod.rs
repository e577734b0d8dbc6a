//! Timers: what a worker does about deadlines.
//!
//! Each worker has [`Timers`]: a clock, a [wheel], and the [way back](way_back) for timers that end elsewhere.
//! Whoever waits holds a [`Timer`], which knows its deadline, and from its first poll on also a key to an
//! entry of the wheel it was polled under.
//!
//! ```text
//!                first poll                   fire_due                 poll
//! Timer (no entry) ─────────▶ entry, with a waiter ─────▶ entry, waiter woken ─────▶ Ready
//!                                 │         │
//!            dropped on the worker│         │dropped, or polled, on another thread
//!                                 ▼         ▼
//!                             removed    key on the way back ── the worker's next turn ──▶ removed
//! ```
//!
//! **Who is woken.** The entry, not the timer, holds the waiter. The entry never leaves its worker, so the
//! waiter can be the I/O layer's [`Waiter`]: for the worker's own task a plain count, no atomic instruction.
//! The timer itself is a key and a reference, which makes it `Send` and cheap to move. Polled under another
//! worker it gives its key back and takes an entry there.
//!
//! **When the clock is read.** A reading costs more than all the rest of
//! arming a timer and dropping it. So it is read once in a turn that has timers
//! ([`fire_due`](Timers::fire_due)), whenever a program asks for the time, and otherwise not:
//! - [`Timer::at`] is compared with the latest reading, which cannot be ahead of the clock; what passed since
//!   then fires in this turn's `fire_due`.
//! - [`Timer::after`] counts from the first reading after its first poll, so never from too early a time. It
//!   ends later than asked for by at most the rest of that turn and a tick.
//!
//! **Order of events in a turn.** Tasks run, arming and dropping timers; `fire_due` collects what came back,
//! reads the clock, fires, and places what was armed without a reading;
//! [`next_deadline`](Timers::next_deadline) bounds the park. Waiters are woken and dropped after the wheel's
//! borrow has ended, since both may be foreign code.

mod way_back;
mod wheel;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use crate::io::driver::waiter::Waiter;

use way_back::{Block, WayBack};
use wheel::Wheel;

thread_local! {
    /// The timers of the worker that this thread is just now.
    static CURRENT_TIMERS: RefCell<Option<Timers>> = const { RefCell::new(None) };
}

/// Blocks that no wheel and no timer uses. As many as there were ever wheels at one time, less those in use.
static FREE_BLOCKS: Mutex<Vec<&'static WayBack>> = Mutex::new(Vec::new());

/// What a worker tells the time by: nanoseconds that never go back.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The system's monotonic clock, which is also the driver's: readings of different workers compare, and a
    /// deadline can be handed to the driver as it is.
    #[cfg(not(loom))]
    System,
    /// A number that somebody else moves forward.
    #[cfg(test)]
    Virtual(Rc<Cell<u64>>),
}

impl Clock {
    /// Reads the clock.
    pub(crate) fn now_ns(&self) -> u64 {
        match self {
            #[cfg(not(loom))]
            Clock::System => crate::os::monotonic_ns(),
            #[cfg(test)]
            Clock::Virtual(now_ns) => now_ns.get(),
        }
    }

    /// Looks at the clock as of some milliseconds ago, which is cheaper.
    #[cfg(not(loom))]
    pub(crate) fn coarse_ns(&self) -> u64 {
        match self {
            Clock::System => crate::os::coarse_ns(),
            // As of the last tick of 4 ms, the usual length.
            #[cfg(test)]
            Clock::Virtual(now_ns) => now_ns.get() / 4_000_000 * 4_000_000,
        }
    }
}

/// One worker's clock and wheel. Clones are the same timers.
#[derive(Clone)]
pub(crate) struct Timers(Rc<Inner>);

struct Inner {
    clock: Clock,
    /// The latest reading of the clock: at or before the present.
    latest_ns: Cell<u64>,
    wheel: RefCell<Wheel<Waiter>>,
    way_back: &'static WayBack,
    /// Empty between calls of `fire_due`: kept for its memory.
    firing: Cell<Vec<Waiter>>,
}

impl Timers {
    /// Timers that go by `clock`, with none armed.
    pub(crate) fn new(clock: Clock) -> Timers {
        let free = FREE_BLOCKS.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let way_back = free.unwrap_or_else(|| Box::leak(Box::new(WayBack::new())));
        let latest_ns = Cell::new(clock.now_ns());
        Timers(Rc::new(Inner {
            clock,
            latest_ns,
            wheel: RefCell::new(Wheel::new()),
            way_back,
            firing: Cell::default(),
        }))
    }

    /// Makes these the current timers of the thread until the guard is dropped; then the outer ones are
    /// again.
    pub(crate) fn enter(&self) -> Entered {
        Entered { outer: CURRENT_TIMERS.replace(Some(self.clone())) }
    }

    /// The timers of the worker that runs on this thread.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub(crate) fn current() -> Timers {
        match CURRENT_TIMERS.with_borrow(Option::clone) {
            Some(timers) => timers,
            None => panic!(
                "no Veloq worker on this thread; call this inside `Runtime::block_on` or a spawned task"
            ),
        }
    }

    /// Reads the clock.
    pub(crate) fn now(&self) -> u64 {
        // The latest reading stays the latest even if whoever moves a virtual clock moves it back.
        let now_ns = self.0.clock.now_ns().max(self.0.latest_ns.get());
        self.0.latest_ns.set(now_ns);
        now_ns
    }

    /// The latest reading of the clock, at no cost: now, or some time before.
    pub(crate) fn latest(&self) -> u64 {
        self.0.latest_ns.get()
    }

    /// Wakes whoever waits for a deadline that has passed. How many there were.
    ///
    /// Reads the clock only if a timer is armed.
    pub(crate) fn fire_due(&self) -> usize {
        self.collect();
        let mut wheel = self.0.wheel.borrow_mut();
        if !wheel.has_placed() && !wheel.has_fresh() {
            return 0;
        }
        let now_ns = self.now();
        let mut firing = self.0.firing.take();
        wheel.advance(now_ns, &mut firing);
        wheel.place_fresh(now_ns, |key, deadline_ns| self.0.way_back.note_deadline(key, deadline_ns));
        drop(wheel);
        let count = firing.len();
        for waiter in firing.drain(..) {
            waiter.wake();
        }
        self.0.firing.set(firing);
        count
    }

    /// When `fire_due` will have something to do, if nothing else happens: the time to park until, in
    /// nanoseconds of the clock.
    ///
    /// Reads the clock only if a timer was armed without a reading since the last `fire_due`.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let mut wheel = self.0.wheel.borrow_mut();
        if wheel.has_fresh() {
            let now_ns = self.now();
            wheel.place_fresh(now_ns, |key, deadline_ns| self.0.way_back.note_deadline(key, deadline_ns));
        }
        wheel.next_deadline()
    }

    /// Entries that timers hold, fired ones included.
    pub(crate) fn armed(&self) -> usize {
        self.0.wheel.borrow().taken() as usize
    }

    /// Removes the entries whose timers ended elsewhere.
    fn collect(&self) {
        self.0.way_back.collect(|key| {
            let waiter = self.0.wheel.borrow_mut().remove(key);
            drop(waiter);
        });
    }

    fn arm(&self, due: Due, cx: &Context<'_>) -> Armed {
        let waiter = Waiter::of(cx);
        if self.0.wheel.borrow().is_full() {
            self.collect();
        }
        let mut wheel = self.0.wheel.borrow_mut();
        let keys_end = wheel.keys_end();
        let key = match due {
            Due::At(deadline_ns) => wheel.arm_at(deadline_ns, waiter),
            Due::After(duration_ns) => wheel.arm_after(duration_ns, waiter),
        };
        if wheel.keys_end() > keys_end {
            self.0.way_back.grow(wheel.keys_end());
        }
        if let Due::After(_) = due {
            self.0.way_back.forget_deadline(key);
        }
        Armed { way_back: self.0.way_back, key }
    }

    /// Whether `armed` is an entry of these timers.
    fn own(&self, armed: &Armed) -> bool {
        std::ptr::eq(self.0.way_back, armed.way_back)
    }

    /// Ready if the entry has fired; else sees to it that `cx` is woken when it does. The entry must be ours.
    fn poll(&self, armed: &Armed, cx: &Context<'_>) -> Poll<()> {
        match self.0.wheel.borrow_mut().waiting(armed.key) {
            None => return Poll::Ready(()),
            Some(waiter) if waiter.will_wake(cx) => return Poll::Pending,
            Some(_) => {}
        }
        // Cloning a waker and dropping one are foreign code, so the wheel is not borrowed meanwhile.
        let waiter = Waiter::of(cx);
        let stale = match self.0.wheel.borrow_mut().waiting(armed.key) {
            None => return Poll::Ready(()),
            Some(present) => std::mem::replace(present, waiter),
        };
        drop(stale);
        Poll::Pending
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What still waits is dropped with the wheel, on this thread; timers that hold keys are told by
        // `CLOSED`.
        recycle(self.way_back, self.way_back.close(self.wheel.get_mut().taken()));
    }
}

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timers").field("clock", &self.0.clock).field("armed", &self.armed()).finish()
    }
}

/// As long as it lives, [`Timers::current`] answers with the timers that were entered.
#[must_use = "the timers are left again when the guard is dropped"]
pub(crate) struct Entered {
    outer: Option<Timers>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Bound to a name, so that what may be the last clone is dropped after the cell's borrow.
        let _left = CURRENT_TIMERS.replace(self.outer.take());
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").field("outer", &self.outer).finish()
    }
}

/// Waits for one deadline. The part that `Sleep` and `Timeout` have in common.
pub(crate) struct Timer {
    due: Due,
    armed: Option<Armed>,
}

#[derive(Clone, Copy, Debug)]
enum Due {
    /// At this time, in nanoseconds of the clock.
    At(u64),
    /// So many nanoseconds after the first poll.
    After(u64),
}

impl Timer {
    /// Ready from `deadline_ns` on.
    pub(crate) fn at(deadline_ns: u64) -> Timer {
        Timer { due: Due::At(deadline_ns), armed: None }
    }

    /// Ready `duration_ns` after its first poll, which need not read the clock.
    pub(crate) fn after(duration_ns: u64) -> Timer {
        Timer { due: Due::After(duration_ns), armed: None }
    }

    /// Ready when the deadline has passed; else the task of `cx` is woken then.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    #[track_caller]
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let timers = Timers::current();
        if let Some(armed) = &self.armed {
            if timers.own(armed) {
                return timers.poll(armed, cx);
            }
            // Moved since its last poll. Its entry goes home; what is left of a duration goes on here.
            if let (Due::After(_), Some(deadline_ns)) = (self.due, armed.way_back.deadline(armed.key)) {
                self.due = Due::At(deadline_ns);
            }
            self.armed = None;
        }
        match self.due {
            Due::At(deadline_ns) if deadline_ns <= timers.latest() => Poll::Ready(()),
            Due::After(0) => Poll::Ready(()),
            due => {
                self.armed = Some(timers.arm(due, cx));
                Poll::Pending
            }
        }
    }

    /// Sets another deadline. A task that already waits goes on waiting, for the new one; but one that waited
    /// under another worker, or has been woken, must poll again.
    pub(crate) fn reset(&mut self, deadline_ns: u64) {
        self.due = Due::At(deadline_ns);
        let Some(armed) = &self.armed else { return };
        let moved = CURRENT_TIMERS.with_borrow(|current| match current {
            Some(timers) if timers.own(armed) => timers.0.wheel.borrow_mut().move_to(armed.key, deadline_ns),
            _ => false,
        });
        if !moved {
            self.armed = None;
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("due", &self.due).field("armed", &self.armed.is_some()).finish()
    }
}

/// A key to an entry of some wheel, held by one timer. Dropping it gives the entry back.
struct Armed {
    /// Also says which wheel: a block has one at a time, and stays its block while keys are out.
    way_back: &'static WayBack,
    key: u32,
}

impl Drop for Armed {
    fn drop(&mut self) {
        // Removing runs no foreign code, so it may happen within the cell's borrow; what waited is dropped
        // after it.
        let removed = CURRENT_TIMERS.try_with(|current| match &*current.borrow() {
            Some(timers) if timers.own(self) => Some(timers.0.wheel.borrow_mut().remove(self.key)),
            _ => None,
        });
        match removed {
            Ok(Some(waiter)) => drop(waiter),
            // Another worker's, or no worker here, or the thread itself is ending.
            Ok(None) | Err(_) => recycle(self.way_back, self.way_back.push(self.key)),
        }
    }
}

/// Keeps a block for the next wheel, if it was found to be free.
fn recycle(way_back: &'static WayBack, block: Block) {
    match block {
        Block::InUse => {}
        Block::Free => {
            way_back.open();
            FREE_BLOCKS.lock().unwrap_or_else(PoisonError::into_inner).push(way_back);
        }
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    pub(crate) const MS: u64 = 1_000_000;

    /// Counts how often it is woken.
    #[derive(Default)]
    pub(crate) struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    impl Wakes {
        pub(crate) fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// A waker that counts, and its count.
    pub(crate) fn waker() -> (Waker, Arc<Wakes>) {
        let wakes = Arc::new(Wakes::default());
        (Waker::from(wakes.clone()), wakes)
    }

    /// Timers by a virtual clock, and the clock.
    pub(crate) fn virtual_timers() -> (Timers, Rc<Cell<u64>>) {
        let clock = Rc::new(Cell::new(1_000 * MS));
        (Timers::new(Clock::Virtual(clock.clone())), clock)
    }

    /// Parks as a worker would that has nothing else to do.
    pub(crate) fn park(timers: &Timers, clock: &Cell<u64>) -> usize {
        clock.set(timers.next_deadline().expect("something is armed").max(clock.get()));
        timers.fire_due()
    }

    fn poll(timer: &mut Timer, waker: &Waker) -> Poll<()> {
        timer.poll(&Context::from_waker(waker))
    }

    #[test]
    fn a_timer_wakes_once_when_it_is_due() {
        // Early, never or twice: each would show in the count.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        let (waker, wakes) = waker();
        let deadline = clock.get() + 5 * MS;
        let mut timer = Timer::at(deadline);
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        clock.set(deadline - 1);
        assert_eq!((timers.fire_due(), wakes.count()), (0, 0));
        assert_eq!((park(&timers, &clock), wakes.count()), (1, 1));
        assert_eq!(poll(&mut timer, &waker), Poll::Ready(()));
        assert_eq!((timers.fire_due(), timers.next_deadline()), (0, None));
        drop(timer);
        assert_eq!(timers.armed(), 0);
    }

    #[test]
    fn a_duration_counts_from_a_reading_after_the_poll() {
        // The latest reading may be old. Counting from it would fire early by as much.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        let (waker, wakes) = waker();
        clock.set(clock.get() + 100 * MS);
        let polled_at = clock.get();
        let mut timer = Timer::after(5 * MS);
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        assert!(timers.next_deadline().unwrap() >= polled_at + 5 * MS);
        assert_eq!((park(&timers, &clock), wakes.count()), (1, 1));
    }

    #[test]
    fn a_timer_dropped_in_its_first_turn_reads_no_clock() {
        // The promise that makes timeouts cheap. A virtual clock that moves unseen tells whether it was
        // looked at.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        let (waker, _) = waker();
        let latest = timers.latest();
        clock.set(clock.get() + MS);
        let mut timer = Timer::after(5 * MS);
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        drop(timer);
        assert_eq!((timers.fire_due(), timers.next_deadline()), (0, None));
        assert_eq!(timers.latest(), latest);
    }

    #[test]
    fn the_last_waker_is_the_one_that_is_woken() {
        // A future that moved to another task, or into a combinator, is polled with another waker.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        let ((first, first_wakes), (second, second_wakes)) = (waker(), waker());
        let mut timer = Timer::at(clock.get() + MS);
        assert_eq!(poll(&mut timer, &first), Poll::Pending);
        assert_eq!(poll(&mut timer, &second), Poll::Pending);
        drop(first);
        assert_eq!(Arc::strong_count(&first_wakes), 1, "a replaced waker is dropped");
        park(&timers, &clock);
        assert_eq!((first_wakes.count(), second_wakes.count()), (0, 1));
    }

    #[test]
    fn a_reset_moves_the_one_who_waits() {
        // A reset that forgot the waiter would leave the task asleep; one that kept the old place would wake
        // it early.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        let (waker, wakes) = waker();
        let start = clock.get();
        let mut timer = Timer::at(start + MS);
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        timer.reset(start + 10 * MS);
        clock.set(start + 9 * MS);
        assert_eq!(timers.fire_due(), 0);
        assert_eq!(park(&timers, &clock), 1);
        timer.reset(start + 20 * MS);
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        assert_eq!((park(&timers, &clock), wakes.count()), (1, 2));
        assert_eq!(poll(&mut timer, &waker), Poll::Ready(()));
    }

    #[test]
    fn a_timer_polled_under_another_worker_waits_there() {
        // Two workers on one thread, as in simulation. The entry at home must go, and what is left of the
        // duration must be kept.
        let ((home, home_clock), (away, away_clock)) = (virtual_timers(), virtual_timers());
        let (waker, wakes) = waker();
        let mut timer = Timer::after(10 * MS);
        let deadline = home_clock.get() + 10 * MS;
        {
            let _entered = home.enter();
            assert_eq!(poll(&mut timer, &waker), Poll::Pending);
            home.fire_due();
        }
        away_clock.set(away_clock.get() + 5 * MS);
        let entered = away.enter();
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        assert!(away.next_deadline().unwrap() - deadline < MS, "the duration did not start again");
        home.fire_due();
        assert_eq!((home.armed(), away.armed()), (0, 1));
        assert_eq!((park(&away, &away_clock), wakes.count()), (1, 1));
        drop(entered);
        drop(timer);
        away.fire_due();
        assert_eq!(away.armed(), 0);
    }

    #[test]
    fn a_duration_that_no_reading_has_started_yet_starts_where_it_goes() {
        // Its entry has been another's before. The other's deadline, long past, must not become its own.
        let ((home, _home_clock), (away, away_clock)) = (virtual_timers(), virtual_timers());
        let (waker, wakes) = waker();
        let entered = home.enter();
        let mut earlier = Timer::after(MS);
        assert_eq!(poll(&mut earlier, &waker), Poll::Pending);
        home.fire_due();
        drop(earlier);
        let mut timer = Timer::after(10 * MS);
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        drop(entered);
        away_clock.set(away_clock.get() + 5 * MS);
        let moved_at = away_clock.get();
        let _entered = away.enter();
        assert_eq!(poll(&mut timer, &waker), Poll::Pending);
        assert_eq!((park(&away, &away_clock), wakes.count()), (1, 1));
        assert!(away_clock.get() >= moved_at + 10 * MS);
    }

    #[test]
    fn a_timer_dropped_on_another_thread_comes_home() {
        // Freed there, the wheel's memory would be touched by two threads; not at all, entries would pile up.
        let (timers, clock) = virtual_timers();
        let (waker, wakes) = waker();
        let sleepers: Vec<_> = {
            let _entered = timers.enter();
            let armed = (0..100).map(|n| {
                let mut timer = Timer::at(clock.get() + n * MS + MS);
                assert_eq!(poll(&mut timer, &waker), Poll::Pending);
                timer
            });
            armed.collect()
        };
        std::thread::spawn(move || drop(sleepers)).join().unwrap();
        assert_eq!(timers.armed(), 100);
        timers.fire_due();
        assert_eq!((timers.armed(), timers.next_deadline(), wakes.count()), (0, None, 0));
        drop(waker);
        assert_eq!(Arc::strong_count(&wakes), 1);
    }

    #[test]
    fn a_timer_may_outlive_its_worker() {
        // Its key then leads nowhere: dropping it must be harmless, and polling it elsewhere must work.
        let (timers, clock) = virtual_timers();
        let (waker, wakes) = waker();
        let deadline = clock.get() + MS;
        let [mut kept, dropped] = [(); 2].map(|()| {
            let _entered = timers.enter();
            let mut timer = Timer::at(deadline);
            assert_eq!(poll(&mut timer, &waker), Poll::Pending);
            timer
        });
        drop(timers);
        assert_eq!(Arc::strong_count(&wakes), 2, "waiters go with the wheel");
        std::thread::spawn(move || drop(dropped)).join().unwrap();
        let (other, clock) = virtual_timers();
        let _entered = other.enter();
        assert_eq!(poll(&mut kept, &waker), Poll::Pending);
        assert_eq!((park(&other, &clock), wakes.count()), (1, 1));
        assert_eq!(poll(&mut kept, &waker), Poll::Ready(()));
    }

    #[test]
    fn entering_is_nested() {
        // Several workers on one thread, one inside the other's call: each must find its own timers, and
        // leave what it found.
        let ((outer, _), (inner, _)) = (virtual_timers(), virtual_timers());
        let is_current = |timers: &Timers| Rc::ptr_eq(&Timers::current().0, &timers.0);
        let _outer = outer.enter();
        {
            let _inner = inner.enter();
            assert!(is_current(&inner));
        }
        assert!(is_current(&outer));
    }

    #[test]
    #[should_panic(expected = "no Veloq worker on this thread")]
    fn without_a_worker_there_is_no_time() {
        // A fallback to the system's clock would let a simulation see real time unnoticed.
        Timers::current();
    }
}
