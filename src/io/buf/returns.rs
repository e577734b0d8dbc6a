//! How a block comes home from another thread, and how the last one turns off the light.
//!
//! An *owner* (one thread) lends out numbered blocks; they are given back on any thread. Two things must work without a
//! lock: the owner must get back what other threads give, and when the owner is gone, exactly one party must notice
//! that nothing is out any more, and free the home: the arena, or a receive ring. The same protocol serves both.
//!
//! **While the owner is there.** A list of returned blocks hangs on `head`, linked by block number through `links`, a
//! side array (never through the blocks themselves, to which a late kernel may still write). Giving back is one
//! compare-and-swap. The owner takes the whole list with one swap, and only when a plain load says there is something.
//! Nobody ever takes a single element off, so a `head` that went away and came back is harmless: what hangs below it is
//! reached through links that were written before it was put there.
//!
//! **While the owner waits** for a block (`waiting`), it says so in the same word: [`Returns::announce`] sets [`AWAITED`] in
//! `head`, unless something hangs there already. The push that finds the mark replaces it, so that it is answered once, and
//! wakes the owner's [`AtomicWaker`]. Since mark and list are one word there is no moment at which a push sees no mark while the owner
//! sees no push.
//!
//! **When the owner goes.** It knows how many blocks are out, in a plain count.
//!
//! ```text
//! owner                                        any thread that gives a block back
//! 1  swap head → CLOSED, take what hung there   a  head is a list: push, done          (the owner will count it)
//! 2  out := blocks out, less what it took       b  head is CLOSED: orphans −= 1
//! 3  orphans += out                                whoever makes `orphans` zero is the last
//! ```
//!
//! Every block is counted once: if its push came before (1), the owner subtracts it in (2); if after, the push sees
//! CLOSED, for nothing replaces CLOSED, and subtracts in (b). `orphans` starts at zero and takes exactly one addition,
//! of `out`, and exactly `out` subtractions of one. Before the addition the subtractions leave it below zero; after it,
//! it goes down to zero once. So exactly one operation has the result zero, it is the last of all, and the party that
//! did it may free everything. Whoever was not the last does not touch the home again.
#![expect(unsafe_code, reason = "the home may be freed by another thread the moment a block is given back")]

use std::fmt;

use super::atomic_waker::AtomicWaker;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicIsize, AtomicU32, Ordering};
use crate::sync::mutant;

/// The bit of `head` that says that the owner waits for something to hang there. It stands with [`EMPTY`] only.
const AWAITED: u32 = 1 << 31;
/// `head` while nothing hangs on it.
const EMPTY: u32 = AWAITED - 1;
/// `head` once the owner is gone.
const CLOSED: u32 = AWAITED - 2;

/// What giving something back came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the last one must free the home"]
pub(super) enum Release {
    /// The home lives on. It must not be touched again by this party.
    Held,
    /// Nothing is out and the owner is gone: this party frees the home.
    Last,
}

/// The list of returned blocks, and the count of those that are out when their owner is gone.
pub(super) struct Returns {
    /// The block that was given back last, [`EMPTY`] or [`CLOSED`].
    head: AtomicU32,
    /// Blocks still out, once the owner has added them; until then minus those that came back too late for the list.
    orphans: AtomicIsize,
    /// For each block on the list, the block below it (or [`EMPTY`]).
    links: Box<[AtomicU32]>,
    /// What is woken when the owner waits.
    waker: Arc<AtomicWaker>,
}

impl Returns {
    /// For blocks numbered from 0 to `blocks - 1`, and an owner that never waits.
    pub(super) fn new(blocks: u32) -> Returns {
        Returns::with_waker(blocks, Arc::new(AtomicWaker::new()))
    }

    /// The same, and an owner that waits with `waker`.
    pub(super) fn with_waker(blocks: u32, waker: Arc<AtomicWaker>) -> Returns {
        assert!(blocks < CLOSED, "the highest numbers mean EMPTY and CLOSED");
        Returns {
            head: AtomicU32::new(EMPTY),
            orphans: AtomicIsize::new(0),
            links: (0..blocks).map(|_| AtomicU32::new(EMPTY)).collect(),
            waker,
        }
    }

    /// Gives `block` back, on any thread.
    ///
    /// It takes a pointer, not a reference, because the home may be gone before this returns.
    ///
    /// # Safety
    ///
    /// `this` is alive, and `block` is out (it is what keeps `this` alive) and is used by nobody any more. Unless the
    /// answer is [`Release::Last`], the caller does not touch `this` again.
    pub(super) unsafe fn push(this: *const Returns, block: u32) -> Release {
        // SAFETY: `block` is out, so the home is alive until the compare-and-swap below succeeds (then the owner may
        // count it and free the home), and none of the references is used after that.
        let (head, link, waker) =
            unsafe { (&(*this).head, &(&(*this).links)[block as usize], &(*this).waker) };
        // Relaxed: a list is only passed on, not looked into; and CLOSED leads to `leave`, which orders for itself.
        let mut seen = head.load(Ordering::Relaxed);
        while seen != CLOSED {
            // What is woken afterwards must be had before: the home may be gone by then.
            let awaited =
                (seen & AWAITED != 0 && !mutant("returns: push wakes nobody")).then(|| Arc::clone(waker));
            link.store(seen & !AWAITED, Ordering::Relaxed);
            // Release pairs with the Acquire swap in `take` and `close`: it publishes the link and every use of the
            // block's bytes up to now, so that its next user comes after. Later pushes are read-modify-writes of the
            // same word and thus continue this release, for the blocks further down the list. Acquire pairs with the
            // Release in `announce`: whoever answers the mark finds the waker that was set.
            let publish =
                if mutant("returns: push publishes nothing") { Ordering::Acquire } else { Ordering::AcqRel };
            let publish = if mutant("returns: push learns nothing") { Ordering::Release } else { publish };
            match head.compare_exchange_weak(seen, block, publish, Ordering::Relaxed) {
                Ok(_) => {
                    if let Some(waker) = awaited {
                        waker.wake();
                    }
                    return Release::Held;
                }
                Err(now) => seen = now,
            }
        }
        // SAFETY: the list is closed and did not take `block`, so it is still out and keeps the home alive.
        unsafe { Returns::leave(this) }
    }

    /// Counts one that was out when the owner went as back.
    ///
    /// # Safety
    ///
    /// `this` is alive and [`close`](Self::close)d, and the caller's block is one of those that are out. Unless the
    /// answer is [`Release::Last`], the caller does not touch `this` again.
    pub(super) unsafe fn leave(this: *const Returns) -> Release {
        // SAFETY: the caller's block keeps the home alive until this subtraction, and it is the last access.
        let orphans = unsafe { &(*this).orphans };
        // Release publishes every use of the block to the last one; Acquire, in the last one, comes after all of them
        // (and after the owner's addition in `settle`), so that what it frees nobody uses any more.
        let order =
            if mutant("returns: the last learns nothing") { Ordering::Relaxed } else { Ordering::AcqRel };
        if orphans.fetch_sub(1, order) == 1 { Release::Last } else { Release::Held }
    }

    /// The owner takes all that came back, and calls `each` with its number. Returns how many there were.
    ///
    /// When nothing came back this is one plain load.
    pub(super) fn take(&self, each: impl FnMut(u32)) -> usize {
        // Relaxed: what is seen here is not used; a return that is missed is taken the next time.
        if self.head.load(Ordering::Relaxed) & !AWAITED == EMPTY {
            return 0;
        }
        // Acquire pairs with the Release in `push`.
        let order =
            if mutant("returns: the owner learns nothing") { Ordering::Relaxed } else { Ordering::Acquire };
        self.walk(self.head.swap(EMPTY, order), each)
    }

    /// Says that the owner waits: the next push wakes the waker, which has been set. Returns whether something hangs on the
    /// list already; then nothing is said, and the owner should take it.
    #[must_use = "what hangs there rings no more"]
    pub(super) fn announce(&self) -> bool {
        // Release pairs with the Acquire of the push that answers: it publishes the waker that was set. A failed exchange
        // publishes nothing and needs nothing: `take` acquires.
        let publish =
            if mutant("returns: announce publishes nothing") { Ordering::Relaxed } else { Ordering::Release };
        let waits = EMPTY | AWAITED;
        match self.head.compare_exchange(EMPTY, waits, publish, Ordering::Relaxed) {
            // Said before and not answered. The waker may be another one now, so it is published again; a push that is
            // faster answers with either, and `AtomicWaker::set` knows.
            Err(seen) if seen == waits => {
                self.head.compare_exchange(waits, waits, publish, Ordering::Relaxed).is_err()
            }
            said => said.is_err(),
        }
    }

    /// On the owner's thread, when a block came back there: takes the mark away, and returns the waker if there was one.
    #[inline]
    pub(super) fn answer_at_home(&self) -> Option<Arc<AtomicWaker>> {
        // Relaxed, here and below: only this thread sets the mark, and the waker orders for itself.
        let waits = EMPTY | AWAITED;
        if self.head.load(Ordering::Relaxed) != waits {
            return None;
        }
        let took = self.head.compare_exchange(waits, EMPTY, Ordering::Relaxed, Ordering::Relaxed);
        took.is_ok().then(|| Arc::clone(&self.waker))
    }

    /// The owner's first step out: from now on nothing is put on the list. Takes what hung there, as
    /// [`take`](Self::take) does.
    pub(super) fn close(&self, each: impl FnMut(u32)) -> usize {
        if mutant("returns: closed in two steps") {
            let taken = self.take(each);
            self.head.store(CLOSED, Ordering::Relaxed);
            return taken;
        }
        // Acquire pairs with the Release in `push`. What this thread did before needs no Release here: whoever sees
        // CLOSED goes on to `orphans`, where `settle` publishes it.
        let order =
            if mutant("returns: closing learns nothing") { Ordering::Relaxed } else { Ordering::Acquire };
        self.walk(self.head.swap(CLOSED, order), each)
    }

    /// The owner's second step out: `out` are still lent, and the owner does not count any more.
    ///
    /// # Safety
    ///
    /// `this` is alive and [`close`](Self::close)d; `out` is exactly how many will yet come to
    /// [`leave`](Self::leave), or did since the list was closed. This is called once. Unless the answer is
    /// [`Release::Last`], the caller does not touch `this` again.
    pub(super) unsafe fn settle(this: *const Returns, out: usize) -> Release {
        let out = isize::try_from(out).expect("blocks are counted in u32");
        // SAFETY: nobody can be the last before the addition below, which is the last access here.
        let orphans = unsafe { &(*this).orphans };
        // Release publishes the owner's plain state to the last one; Acquire, if this is the last, comes after all
        // uses. Both pair with `leave`.
        if orphans.fetch_add(out, Ordering::AcqRel) + out == 0 { Release::Last } else { Release::Held }
    }

    /// Calls `each` for every block of a list that was taken off, and returns how many there were.
    fn walk(&self, head: u32, mut each: impl FnMut(u32)) -> usize {
        let mut next = head & !AWAITED;
        let mut blocks = 0;
        while next != EMPTY {
            debug_assert_ne!(next, CLOSED, "the owner takes from a list that it has closed");
            let block = next;
            // Read before `each`, which may lend the block again, so that it comes back and overwrites its link.
            // Relaxed: the swap that took the list ordered it.
            next = self.links[block as usize].load(Ordering::Relaxed);
            blocks += 1;
            each(block);
        }
        blocks
    }
}

impl fmt::Debug for Returns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Returns").field("blocks", &self.links.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // A link overwritten too early would lose or repeat blocks.
    #[test]
    fn what_is_pushed_is_taken_once_and_the_newest_first() {
        let returns = Returns::new(4);
        for block in [2, 0, 3] {
            // SAFETY: `returns` is alive, and the blocks are this test's.
            assert_eq!(unsafe { Returns::push(&raw const returns, block) }, Release::Held);
        }
        let mut taken = Vec::new();
        assert_eq!(returns.take(|block| taken.push(block)), 3);
        assert_eq!(taken, [3, 0, 2]);
        assert_eq!(returns.take(|_| unreachable!("nothing was given back since")), 0);
    }

    // An off-by-one in the count would free the home too early (a use after free) or never (a leak).
    #[test]
    fn the_last_is_the_one_that_makes_it_zero() {
        let returns = Returns::new(3);
        let this = &raw const returns;
        // SAFETY: `returns` lives on the stack until the end of the test, whatever the answers are.
        unsafe {
            assert_eq!(Returns::push(this, 0), Release::Held);
            assert_eq!(returns.close(|block| assert_eq!(block, 0)), 1);
            assert_eq!(
                Returns::push(this, 1),
                Release::Held,
                "before the owner has added, nobody is the last"
            );
            assert_eq!(Returns::settle(this, 2), Release::Held);
            assert_eq!(Returns::push(this, 2), Release::Last);
        }
    }

    // With nothing out the owner itself is the last: otherwise every unused arena leaks.
    #[test]
    fn the_owner_is_the_last_when_nothing_is_out() {
        let returns = Returns::new(1);
        returns.close(|_| unreachable!("nothing was given back"));
        // SAFETY: `returns` is alive.
        assert_eq!(unsafe { Returns::settle(&raw const returns, 0) }, Release::Last);
    }
}

/// The protocol under loom: two foreign threads give a block back while the owner drains and goes.
#[cfg(all(test, loom))]
mod loom_tests {
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use crate::sync::{UnsafeCell, model};

    struct Home {
        returns: Returns,
        waker: Arc<AtomicWaker>,
        /// Stands for the blocks' bytes: loom fails on any access that is not ordered with the others.
        bytes: [UnsafeCell<u32>; 2],
        lasts: AtomicUsize,
    }

    impl Home {
        /// What the last one does: to free is to write everywhere.
        fn settle(&self, release: Release) {
            if release == Release::Last {
                for bytes in &self.bytes {
                    // SAFETY: the claim under test; loom checks that nobody else accesses it.
                    bytes.with_mut(|bytes| unsafe { *bytes = 0 });
                }
                self.lasts.fetch_add(1, Ordering::Relaxed);
            }
        }

        /// A foreign thread uses its block and gives it back.
        fn use_and_return(&self, block: u32) {
            // SAFETY: the block is lent to this thread; loom checks.
            self.bytes[block as usize].with_mut(|bytes| unsafe { *bytes += 1 });
            // SAFETY: the `Arc` of the model keeps the home; the block is out and used no more.
            self.settle(unsafe { Returns::push(&raw const self.returns, block) });
        }

        /// The owner uses a block that came back.
        fn reuse(&self, block: u32) {
            // SAFETY: the block came back to the owner; loom checks.
            self.bytes[block as usize].with_mut(|bytes| unsafe { *bytes += 1 });
        }
    }

    /// A home with both blocks lent, each to a thread of its own, and the threads.
    fn lent() -> (Arc<Home>, Vec<loom::thread::JoinHandle<()>>) {
        let waker = Arc::new(AtomicWaker::new());
        let home = Arc::new(Home {
            returns: Returns::with_waker(2, Arc::clone(&waker)),
            waker,
            bytes: [UnsafeCell::new(0), UnsafeCell::new(0)],
            lasts: AtomicUsize::new(0),
        });
        let foreign = (0..2)
            .map(|block| {
                let home = home.clone();
                loom::thread::spawn(move || home.use_and_return(block))
            })
            .collect();
        (home, foreign)
    }

    /// The owner goes, with `out` blocks lent.
    fn go(home: &Home, mut out: usize) {
        out -= home.returns.close(|block| home.reuse(block));
        // SAFETY: the `Arc` of the model keeps the home; `out` is what no drain brought.
        home.settle(unsafe { Returns::settle(&raw const home.returns, out) });
    }

    fn give_back_while_the_owner_goes() {
        let (home, foreign) = lent();
        let out = 2 - home.returns.take(|block| home.reuse(block));
        go(&home, out);
        for thread in foreign {
            thread.join().expect("a model's thread does not panic");
        }
        assert_eq!(home.lasts.load(Ordering::Relaxed), 1, "the home is freed exactly once");
    }

    /// The owner stays until both are back. (Loom seldom lets the model above find something at `take`.)
    fn give_back_while_the_owner_drains() {
        let (home, _foreign) = lent();
        let mut out = 2;
        while out > 0 {
            out -= home.returns.take(|block| home.reuse(block));
            loom::thread::yield_now();
        }
        go(&home, 0);
        assert_eq!(home.lasts.load(Ordering::Relaxed), 1, "the owner is the last");
    }

    /// The owner waits until both are back, and changes its waker once, as a future does that moves to another task.
    fn give_back_while_the_owner_waits() {
        let (home, _foreign) = lent();
        let mut out = 2;
        let mut poll = |waker: &Waker| {
            loop {
                out -= home.returns.take(|block| home.reuse(block));
                if out == 0 {
                    return Poll::Ready(());
                }
                home.waker.set(waker);
                if !home.returns.announce() {
                    return Poll::Pending;
                }
            }
        };
        if poll(Waker::noop()).is_pending() {
            // A wake that is missed is a deadlock, which loom finds.
            loom::future::block_on(poll_fn(|cx| {
                // A setter that is late wakes itself until who rings has gone on: between two turns others run.
                loom::thread::yield_now();
                poll(cx.waker())
            }));
        }
        go(&home, 0);
    }

    // Lost or doubled blocks, a block reused while its last user still writes, a home freed early, twice or never.
    #[test]
    fn loom_blocks_come_home_and_the_last_one_frees() {
        model::holds(give_back_while_the_owner_goes);
        model::holds(give_back_while_the_owner_drains);
    }

    // A wake that is missed, or a waker that two threads touch at once.
    #[test]
    fn loom_an_owner_that_waits_is_woken() {
        model::holds(give_back_while_the_owner_waits);
    }

    #[test]
    fn loom_catches_each_mutant_of_the_waker() {
        model::catches("returns: push wakes nobody", give_back_while_the_owner_waits);
        model::catches("returns: push learns nothing", give_back_while_the_owner_waits);
        model::catches("returns: announce publishes nothing", give_back_while_the_owner_waits);
        model::catches("atomic waker: a setter that is late says nothing", give_back_while_the_owner_waits);
        model::catches("atomic waker: wake learns nothing", give_back_while_the_owner_waits);
        model::catches("atomic waker: wake publishes nothing", give_back_while_the_owner_waits);
    }

    #[test]
    fn loom_catches_each_mutant_of_the_return_list() {
        model::catches("returns: push publishes nothing", give_back_while_the_owner_drains);
        model::catches("returns: the owner learns nothing", give_back_while_the_owner_drains);
        model::catches("returns: closing learns nothing", give_back_while_the_owner_goes);
        model::catches("returns: the last learns nothing", give_back_while_the_owner_goes);
        model::catches("returns: closed in two steps", give_back_while_the_owner_goes);
    }
}
