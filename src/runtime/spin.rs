//! Whether a worker that has run dry looks around for a moment before it sleeps, and for how long.
//!
//! Waking a core that sleeps takes some sixty microseconds, seeing a word that another core has written a tenth of one. So
//! a worker whose next message is a few microseconds away does better to look for it. But a worker that looks in vain
//! burns a core that somebody else could use, and the power of the machine. So it looks only while *all* of this is true:
//!
//! - There are other workers, and a CPU for each (else the one that is waited for waits for our CPU).
//! - Of the last eight waits at least six ended with a ring of the doorbell within the limit. Whether a wait would have done so
//!   is known of those that were slept through as well: who unparks a sleeper leaves the time. Completions of the kernel and
//!   timers count against it: they come when they come, and a sleep costs them less.
//! - Nobody else runs on this CPU. That shows as a hole in time between two looks, and the system says whether it was another
//!   thread that filled it; an interrupt, or a hypervisor that runs somebody else's machine for a while, makes such holes too, and
//!   there is nobody then whom a sleep would help. (Where the system does not say, every hole counts.) The next waits are slept
//!   through: a few after the first time, since a thread of the kernel's comes by now and then, and four times as many after each
//!   that follows soon.
//!
//! ```text
//!               ≥ 6 of 8 rung in time                        another thread ran here
//!  sleeps ──────────────────────────────▶ looks, then sleeps ────────────────────────▶ sleeps, for 8 waits .. 8,192
//!         ◀──────────────────────────────
//!                third miss of 8
//! ```
//!
//! A spin that ends a moment too early costs a sleep, here and mostly there, too, since the other worker then waits for one that
//! sleeps. So a worker looks for as long as the limit allows: it is to be what a sleep costs. (A limit of twice what the waits took
//! lately was tried: each interrupt on either side sent both to sleep.) When the messages stop, three spins are the price; an idle
//! runtime does not look at all.
//!
//! Two workers that wait for each other asleep would never find out that they need not: each wait takes as long as the other's
//! waking. So who unparks tells how late it was itself, and a wait counts as if it had been awake.
//!
//! [`Spin`] is the policy: numbers in, numbers out. [`Spinner`] asks it, watches the clock and counts. While it looks it
//! reads the words of the doorbell and the tail of the completion queue; nothing of it is a system call.

use std::cell::Cell;
use std::fmt;

use super::mesh::doorbell::Doorbell;
use crate::io::driver::DriverHandle;
use crate::os::preemptions;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Waits that are remembered: bits of a byte. Enough to tell a habit from an accident, few enough to drop the habit soon.
const REMEMBERED: u32 = u8::BITS;

/// Waits of those remembered that must have ended in time. At three quarters a spin in vain costs less than the sleeps saved.
const HITS_MIN: u32 = 6;

/// Waits that are slept through after somebody else ran on this CPU: as many as are remembered, so that the habit is learnt anew.
const REST_MIN: u32 = REMEMBERED;

/// The same if that is a habit: trying costs one wait in so many.
const REST_MAX: u32 = 8192;

/// Waits without a hole after which those before are forgotten. At a microsecond each that is a tick of the system's timer.
const CALM: u32 = 4096;

/// A hole in time that is longer than most interrupts: perhaps somebody else ran here. Asking costs a system call.
const HOLE_NS: u64 = 100_000;

/// Looks between two readings of the clock, which costs about as much as they do together.
const LOOKS_PER_READING: u32 = 8;

/// When spinning pays, judged by how the last waits ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spin {
    limit_ns: u64,
    /// One bit for each of the last waits: rung within the limit. The latest is the lowest.
    history: u8,
    /// Waits left that are slept through whatever the history says.
    rest: u32,
    /// How many it will be after the next hole.
    next_rest: u32,
    /// Waits since the last hole and the rest after it.
    calm: u32,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Another thread rang, so long after the wait had begun.
    Rung { after_ns: u64 },
    /// Otherwise: by the kernel, a timer, or for no reason.
    Otherwise,
}

impl Spin {
    /// Spins for at most `limit_ns`; with zero, never.
    pub(crate) fn new(limit_ns: u64) -> Spin {
        Spin { limit_ns, history: 0, rest: 0, next_rest: REST_MIN, calm: 0 }
    }

    /// How long to look before the next sleep. Zero: not at all.
    pub(crate) fn budget_ns(&self) -> u64 {
        if self.limit_ns == 0 || self.rest > 0 || self.history.count_ones() < HITS_MIN {
            return 0;
        }
        self.limit_ns
    }

    /// A wait has ended.
    pub(crate) fn ended(&mut self, how: Ended) {
        match self.rest {
            0 => self.calm = self.calm.saturating_add(1),
            _ => self.rest -= 1,
        }
        self.history <<= 1;
        if let Ended::Rung { after_ns } = how
            && after_ns <= self.limit_ns
        {
            self.history |= 1;
        }
    }

    /// Somebody else ran on this CPU during a spin.
    pub(crate) fn preempted(&mut self) {
        if self.calm >= CALM {
            self.next_rest = REST_MIN;
        }
        self.history = 0;
        self.calm = 0;
        self.rest = self.next_rest;
        self.next_rest = (self.next_rest * 4).min(REST_MAX);
    }
}

/// When a sleeper was unparked, as told by who did it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unparked(Arc<(AtomicU64, AtomicU64)>);

impl Unparked {
    /// Leaves the time, and [how late](Spinner::late_ns) the one who unparks was itself. Called by the thread that unparks, just before.
    pub(crate) fn set(&self, now_ns: u64, late_ns: u64) {
        // Relaxed, here and below: numbers to learn from, of which a wrong one now and then does no harm; nothing is published by them.
        self.0.0.store(now_ns, Ordering::Relaxed);
        self.0.1.store(late_ns, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.0.0.load(Ordering::Relaxed), self.0.1.load(Ordering::Relaxed))
    }
}

/// A worker's spinning: the policy, the wait that is under way, and what it has come to so far.
pub(crate) struct Spinner {
    policy: Cell<Spin>,
    unparked: Unparked,
    /// How often this thread had lost its CPU to another when it last asked.
    preemptions: Cell<Option<u64>>,
    /// When the wait that is under way began.
    began_ns: Cell<u64>,
    /// See [`Spinner::late_ns`].
    late_ns: Cell<u64>,
    spins: Cell<u64>,
    won: Cell<u64>,
    spent_ns: Cell<u64>,
}

impl Spinner {
    /// Spins for at most `limit_ns`; zero turns it off. `unparked` is told by whoever unparks this worker.
    pub(crate) fn new(limit_ns: u64, unparked: Unparked) -> Spinner {
        Spinner {
            policy: Cell::new(Spin::new(limit_ns)),
            unparked,
            preemptions: Cell::default(),
            began_ns: Cell::default(),
            late_ns: Cell::default(),
            spins: Cell::default(),
            won: Cell::default(),
            spent_ns: Cell::default(),
        }
    }

    /// How often, how often with success, and for how many nanoseconds it has spun.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.spins.get(), self.won.get(), self.spent_ns.get())
    }

    /// Begins a wait, and looks around for as long as seems worth it, but not beyond `deadline_ns`. Whether something has
    /// come, so that the worker need not sleep. What was submitted must have gone to the kernel before, if
    /// [`would_spin`](Spinner::would_spin).
    pub(crate) fn spin(&self, doorbell: &Doorbell, driver: &DriverHandle, deadline_ns: Option<u64>) -> bool {
        if self.policy.get().limit_ns == 0 {
            return false;
        }
        let began_ns = driver.now_ns();
        self.began_ns.set(began_ns);
        let left_ns = deadline_ns.map_or(u64::MAX, |deadline_ns| deadline_ns.saturating_sub(began_ns));
        let budget_ns = self.policy.get().budget_ns().min(left_ns);
        if budget_ns == 0 {
            return false;
        }
        let mut read_ns = began_ns;
        let found = loop {
            let found = (0..LOOKS_PER_READING).find_map(|_| look(doorbell, driver));
            let now_ns = driver.now_ns();
            if now_ns - read_ns > HOLE_NS && self.was_preempted() {
                self.change(Spin::preempted);
            }
            read_ns = now_ns;
            if found.is_some() || now_ns - began_ns >= budget_ns {
                break found;
            }
        };
        let after_ns = read_ns - began_ns;
        self.spins.set(self.spins.get() + 1);
        self.spent_ns.set(self.spent_ns.get() + after_ns);
        let Some(found) = found else { return false };
        let how = match found {
            Found::Ring => Ended::Rung { after_ns },
            Found::Completion => Ended::Otherwise,
        };
        self.won.set(self.won.get() + u64::from(found == Found::Ring));
        self.change(|policy| policy.ended(how));
        true
    }

    /// Whether another thread has run on this CPU since this was last asked. At the first time, yes.
    fn was_preempted(&self) -> bool {
        let now = preemptions();
        let before = self.preemptions.replace(now);
        now.is_none() || now != before
    }

    /// Whether the next wait begins with a spin.
    pub(crate) fn would_spin(&self) -> bool {
        self.policy.get().budget_ns() > 0
    }

    /// The sleep that a wait came to is over, and it is `now_ns`.
    pub(crate) fn slept(&self, now_ns: u64) {
        if self.policy.get().limit_ns == 0 {
            return;
        }
        let (at_ns, late_ns) = self.unparked.get();
        let how = match at_ns.checked_sub(self.began_ns.get()) {
            Some(after_ns) => {
                self.late_ns.set(now_ns.saturating_sub(at_ns));
                Ended::Rung { after_ns: after_ns.saturating_sub(late_ns) }
            }
            None => Ended::Otherwise,
        };
        self.change(|policy| policy.ended(how));
    }

    /// How much earlier all that this worker does in this turn would have been, had it been awake when it was rung.
    pub(crate) fn late_ns(&self) -> u64 {
        self.late_ns.get()
    }

    /// A turn's work is over. What comes later has other reasons to come when it does.
    pub(crate) fn turned(&self) {
        self.late_ns.set(0);
    }

    fn change(&self, change: impl FnOnce(&mut Spin)) {
        let mut policy = self.policy.get();
        change(&mut policy);
        self.policy.set(policy);
    }
}

/// What a look has found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Ring,
    Completion,
}

/// One look, and a breath for the other half of the core.
fn look(doorbell: &Doorbell, driver: &DriverHandle) -> Option<Found> {
    if doorbell.is_rung() {
        return Some(Found::Ring);
    }
    if driver.has_news() {
        return Some(Found::Completion);
    }
    std::hint::spin_loop();
    None
}

impl fmt::Debug for Spinner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spinner").field("policy", &self.policy).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_NS: u64 = 20_000;

    /// A policy after so many waits that each ended like that.
    fn after(waits: u32, how: Ended) -> Spin {
        let mut spin = Spin::new(LIMIT_NS);
        (0..waits).for_each(|_| spin.ended(how));
        spin
    }

    fn rung(after_ns: u64) -> Ended {
        Ended::Rung { after_ns }
    }

    #[test]
    fn nobody_spins_before_it_is_known_to_pay() {
        // A worker that spins on trust burns a core at every start, and in every program that is idle.
        assert_eq!(Spin::new(LIMIT_NS).budget_ns(), 0);
        assert_eq!(after(5, rung(1_000)).budget_ns(), 0);
        assert!(after(6, rung(1_000)).budget_ns() > 0);
    }

    #[test]
    fn three_misses_end_it() {
        // When the messages stop, each further spin is in vain.
        let mut spin = after(8, rung(5_000));
        spin.ended(Ended::Otherwise);
        spin.ended(Ended::Otherwise);
        assert!(spin.budget_ns() > 0, "two may be an accident");
        spin.ended(Ended::Otherwise);
        assert_eq!(spin.budget_ns(), 0);
    }

    #[test]
    fn rings_that_come_late_do_not_count() {
        // A worker that is rung once a millisecond would otherwise spin for its whole limit each time, and sleep all the same.
        assert_eq!(after(100, rung(LIMIT_NS + 1)).budget_ns(), 0);
        assert!(after(100, rung(LIMIT_NS)).budget_ns() > 0);
    }

    #[test]
    fn answers_of_the_kernel_do_not_count() {
        // A server with one connection is woken by the kernel within microseconds; spinning there costs CPU for each request.
        assert_eq!(after(100, Ended::Otherwise).budget_ns(), 0);
    }

    #[test]
    fn two_that_wait_for_each_other_asleep_find_out_that_they_need_not() {
        // Each wait takes as long as the other's waking. If that counted, both would sleep for ever.
        const WAKING_NS: u64 = 3 * LIMIT_NS;
        let spinner = Spinner::new(LIMIT_NS, Unparked::default());
        let mut now_ns = 0;
        let mut wait = |late_ns| {
            spinner.began_ns.set(now_ns);
            spinner.unparked.set(now_ns + WAKING_NS + 500, late_ns);
            now_ns += 2 * WAKING_NS;
            spinner.slept(now_ns);
            (spinner.would_spin(), spinner.late_ns())
        };
        (0..100)
            .for_each(|_| assert_eq!(wait(0), (false, WAKING_NS - 500), "the other one was awake, and slow"));
        (0..8).for_each(|_| {
            wait(WAKING_NS);
        });
        assert_eq!(wait(WAKING_NS), (true, WAKING_NS - 500));
    }

    #[test]
    fn a_worker_that_is_preempted_rests() {
        // If somebody else wants this CPU, it may be the very thread whose message is waited for.
        let mut spin = after(8, rung(1_000));
        spin.preempted();
        (0..REST_MIN - 1).for_each(|_| spin.ended(rung(1_000)));
        assert_eq!(spin.budget_ns(), 0);
        spin.ended(rung(1_000));
        assert!(spin.budget_ns() > 0, "and then it tries again");
    }

    /// After how many more waits it spins again.
    fn rested(spin: &mut Spin) -> usize {
        (0..)
            .take_while(|_| {
                spin.budget_ns() == 0 && {
                    spin.ended(rung(1_000));
                    true
                }
            })
            .count()
    }

    #[test]
    fn a_worker_that_shares_its_cpu_rests_longer_each_time() {
        // Each try would cost a time slice of the other's, if somebody else runs here all the time.
        let mut spin = after(8, rung(1_000));
        let rests: Vec<_> = (0..8)
            .map(|_| {
                spin.preempted();
                rested(&mut spin)
            })
            .collect();
        assert_eq!(rests, [8, 32, 128, 512, 2048, 8192, 8192, 8192]);
    }

    #[test]
    fn one_long_interrupt_now_and_then_costs_a_few_sleeps() {
        // A sleep costs as much as a hundred spins: a long rest after each interrupt is what most of the time would go to.
        let mut spin = after(8, rung(1_000));
        for _ in 0..8 {
            spin.preempted();
            assert_eq!(rested(&mut spin), 8);
            (0..CALM).for_each(|_| spin.ended(rung(1_000)));
        }
    }

    #[test]
    fn a_limit_of_zero_turns_it_off() {
        let mut spin = Spin::new(0);
        (0..100).for_each(|_| spin.ended(rung(0)));
        assert_eq!(spin.budget_ns(), 0);
    }
}
