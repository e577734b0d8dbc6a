//! The scheduler's decisions, as pure functions: where a task goes, whom a thief tries, how much it takes, who is woken for it.
//!
//! Nothing here reads an atomic, a clock or a source of chance: a caller hands in what it has seen, and gets an answer. So the
//! tests below put the same decisions to work in a simulated house of 2 to 128 workers, with words as stale as they like.
//!
//! # What is known of a worker
//!
//! A placer knows of each worker a [`Load`]: how many tasks wait there, and for how long the worker has been in its present turn.
//! These are two words of the worker's, each relaxed, because a decision on old news costs balance and never correctness:
//!
//! | word | holds | written |
//! |---|---|---|
//! | ready | tasks in its queues | stealable ones by who pushes or takes, pinned ones by the worker, once in a turn |
//! | since | when its present turn began to poll; 0 while it is parked | by the worker |
//!
//! *Ready* has to be live for what placers themselves push. Were it published by the worker alone, a burst that is placed within
//! one poll would look at the same numbers from beginning to end, and of two workers the lighter would get all of it. A stealable
//! queue's length is known to who pushes anyway.
//!
//! *Since* is how a worker that is stuck in a long poll is told from one that is merely at work, and from one that is parked. A
//! turn number alone cannot say it: whoever places its first task has no earlier number to compare with. A clock that is precise
//! can, but a reading of it in every turn is what a turn must not cost. The coarse clock (`CLOCK_MONOTONIC_COARSE`) is good
//! enough: the kernel keeps it as a number in memory, renewed at each tick of 1 to 10 ms, and looking at it asks no hardware. The
//! worker looks before it begins to poll (not in a turn that polls nothing), the placer when it places, and so even the first
//! placement, and one from a thread that has no turns, knows who is stuck.
//!
//! # What follows from it
//!
//! - **Two choices** ([`place`]). The lighter of two workers drawn at random. Its worst queue is longer than the average by a few
//!   tasks, where one choice has a multiple of that; and as nobody looks for the very lightest, those who decide on the same old
//!   news do not all send there.
//! - **Half of a queue** ([`take`]). A thief that took one would be back at once; one that took all would be robbed next.
//! - **The longest queue** ([`victim`]). A look at a length is a load, a theft is an exchange over a contended line: robbing the
//!   first that has anything, as many schedulers do, takes many times as many thefts in a large house to share out what lies
//!   with one of them.
//! - **One searcher** ([`summoned`], [`leaves_more`]; see [`spawner`](super::spawner)). A push wakes a sleeper only if nobody is
//!   searching: who searches will find it, and wakes the next when it has found something. So a burst wakes workers one after another,
//!   as many as there is work for, and not all for the first task.
//! - **Background work keeps its distance** ([`background_due`]). After a poll that took so long it is due again when the share
//!   says, however long or short its polls are.
//! - **Patience wears out** ([`passes`], [`back_off`]). A worker whose searches came to nothing looks around fewer times before it
//!   parks; once it always does. That last look is part of parking: it comes after the sleep is announced. If it still sees
//!   something then, the worker parks for a while, longer each time.
//! - **Looks at the clock come as polls go** ([`polls_per_look`]). A turn looks after its first poll, and then after as many as the
//!   slice still has room for, if they are like those before.

use fastrand::Rng;

/// What a placer has seen of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Tasks that wait there for a poll.
    pub(crate) ready: usize,
    /// For how long its present turn has been polling, by the coarse clock; 0 if it is parked.
    pub(crate) turn_ns: u64,
}

/// How long tasks run before the driver is looked at, however large the budget: a tenth of the shortest delay that people
/// notice in a service's tail latency. Less than a tick of the coarse clock, which is 1 ms at the least.
pub(crate) const SLICE_NS: u64 = 500_000;

/// Polls between two looks at the clock, at the most: so many may turn out to be long though the ones before were short. A look costs about
/// as much as one short poll.
const POLLS_PER_LOOK: usize = 16;

/// How many times as many polls as were seen may follow unseen.
const TRUST: usize = 4;

/// Longer than this no healthy turn polls: a turn ends its polls at the first look after half a millisecond, or after a tick of a clock of
/// 10 ms per tick (the slowest there is), and two looks at that clock can see one tick more than has passed. Below it, placement
/// goes by the queues alone.
pub(crate) const STUCK_NS: u64 = 20_000_000;

/// How late background work may be and still be due the earlier for it: some turns' time. More would let it run at each look for as
/// long, after a foreground task that did not yield.
const CATCH_UP_NS: u64 = 2_000_000;

/// How long a worker sleeps after a search that found nothing although there was something to be seen: about what waking it costs.
const BACK_OFF_NS: u64 = 50_000;

/// How often that time is doubled: up to 1.6 ms, the time slice of a thread that was interrupted in the middle of sending a task.
const BACK_OFF_DOUBLINGS: u32 = 5;

/// Times that a worker looks around for work before it gives up, if its last search found some.
const PASSES_MAX: u32 = 4;

/// Whether a worker is one to give work to; better ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It comes by.
    Free,
    /// It is in a poll that does not end.
    Stuck,
    /// It has ended.
    Closed,
}

/// By what two workers are compared: less is better.
fn burden(load: Option<Load>) -> (Standing, usize) {
    match load {
        None => (Standing::Closed, 0),
        Some(load) if load.turn_ns > STUCK_NS => (Standing::Stuck, load.ready),
        // What it is polling counts as one more: a parked worker would begin at once.
        Some(load) => (Standing::Free, load.ready + usize::from(load.turn_ns > 0)),
    }
}

/// The worker, of so many, that gets a new task: the lighter of two drawn at random.
///
/// `load` says what is known of a worker, `None` of one that has ended. `home` is the worker that places, if one does: of two
/// that are equal it is preferred, since a task that stays need not travel. Who is stuck or has ended gets nothing as long as anybody else
/// is there; if nobody is, somebody gets it all the same.
pub(crate) fn place(
    workers: usize,
    home: Option<usize>,
    random: &mut Rng,
    load: impl Fn(usize) -> Option<Load>,
) -> usize {
    if workers < 2 {
        return 0;
    }
    let (one, other) = two_of(workers, random);
    let (one_burden, other_burden) = (burden(load(one)), burden(load(other)));
    let other_wins = other_burden < one_burden || (other_burden == one_burden && home == Some(other));
    let (lighter, (standing, _)) = if other_wins { (other, other_burden) } else { (one, one_burden) };
    if standing == Standing::Free {
        return lighter;
    }
    // Rare, so it may cost a look at everyone.
    around(workers, random).find(|worker| burden(load(*worker)).0 == Standing::Free).unwrap_or(lighter)
}

/// How many tasks a thief takes of a queue of `ready`, having room for so many: half, the odd one too.
///
/// So a single task behind a poll that does not end is taken, and a queue of a thousand is shared out in ten steps.
pub(crate) fn take(ready: usize, room: usize) -> usize {
    ready.div_ceil(2).min(room)
}

/// Whom a thief robs: whose queue is the longest, of equals any. `None` if all are empty; then there is nothing to search for.
pub(crate) fn victim(
    thief: usize,
    workers: usize,
    random: &mut Rng,
    ready: impl Fn(usize) -> usize,
) -> Option<usize> {
    around(workers, random)
        .filter(|victim| *victim != thief)
        .map(|victim| (ready(victim), victim))
        .filter(|(ready, _)| *ready > 0)
        .max_by_key(|(ready, _)| *ready)
        .map(|(_, victim)| victim)
}

/// How often a worker that has nothing left looks at everyone's queues before it parks, after so many searches in a row that found
/// nothing: 4, 2, 1 times, and once from there on.
///
/// More than one pass is for races that it lost. The last one has to come after the announcement of the sleep, so that it meets
/// every push that was not told of a sleeper.
pub(crate) fn passes(failures: u32) -> u32 {
    PASSES_MAX.checked_shr(failures).unwrap_or(0).max(1)
}

/// How long a worker sleeps after so many searches in a row that found nothing, although there was something to be seen. `None` after the
/// first: then it is to try again at once.
pub(crate) fn back_off(failures: u32) -> Option<u64> {
    let doublings = failures.checked_sub(2)?.min(BACK_OFF_DOUBLINGS);
    Some(BACK_OFF_NS << doublings)
}

/// How many polls come before the next look at the clock, in a turn whose first `polls` were seen to take `took_ns`.
///
/// As many as the slice has room for if they are like those, but not many more than were seen: after a single poll nobody knows what the
/// others are like.
pub(crate) fn polls_per_look(polls: usize, took_ns: u64) -> usize {
    let room = SLICE_NS.saturating_sub(took_ns).saturating_mul(polls as u64).checked_div(took_ns);
    let room = room.and_then(|room| usize::try_from(room).ok()).unwrap_or(usize::MAX);
    room.min(TRUST * polls).clamp(1, POLLS_PER_LOOK)
}

/// Who is woken to search for a task that has just become visible to thieves, if somebody shall be: nobody while somebody searches,
/// else one who sleeps. The first of them, so that where there is little to do the others sleep on.
pub(crate) fn summoned(searching: bool, workers: usize, is_asleep: impl Fn(usize) -> bool) -> Option<usize> {
    if searching { None } else { (0..workers).find(|worker| is_asleep(*worker)) }
}

/// Whether a searcher that has taken so many, and is about to run the first of them, leaves work for another. `has_loot`: whether others'
/// queues hold any.
pub(crate) fn leaves_more(taken: usize, has_loot: impl FnOnce() -> bool) -> bool {
    taken > 1 || has_loot()
}

/// When a background task is due next, though foreground tasks are ready: it was due at `due_ns`, began at `began_ns`, ended at
/// `ended_ns`, and may have `percent` of the time.
///
/// What it was kept waiting is caught up with, up to a limit, and what it had while nobody else wanted it is not held against it:
/// it is never due later than if this had been its first poll.
pub(crate) fn background_due(due_ns: u64, began_ns: u64, ended_ns: u64, percent: u32) -> u64 {
    let cost_ns = ended_ns.saturating_sub(began_ns).saturating_mul(100) / u64::from(percent.max(1));
    let due_ns = due_ns.max(began_ns.saturating_sub(CATCH_UP_NS));
    due_ns.min(began_ns).saturating_add(cost_ns)
}

/// Two different workers, each pair as likely as any other. There are at least two.
fn two_of(workers: usize, random: &mut Rng) -> (usize, usize) {
    let one = random.usize(..workers);
    let other = random.usize(..workers - 1);
    (one, if other < one { other } else { other + 1 })
}

/// Every worker once, beginning at random.
fn around(workers: usize, random: &mut Rng) -> impl Iterator<Item = usize> + use<> {
    let first = random.usize(..workers);
    (first..workers).chain(0..first)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// The sizes of the simulated houses.
    const HOUSES: [usize; 9] = [2, 3, 4, 6, 8, 16, 32, 64, 128];

    /// The decision that two choices are compared with.
    fn place_at_random(workers: usize, random: &mut Rng) -> usize {
        random.usize(..workers)
    }

    fn at_work(ready: usize) -> Option<Load> {
        Some(Load { ready, turn_ns: 1_000 })
    }

    fn stuck(ready: usize) -> Option<Load> {
        Some(Load { ready, turn_ns: 3 * STUCK_NS })
    }

    /// How far the longest queue is above the average, after so many tasks for each worker.
    fn excess(workers: usize, each: usize, mut choose: impl FnMut(&[usize]) -> usize) -> usize {
        let mut queues = vec![0; workers];
        for _ in 0..workers * each {
            let chosen = choose(&queues);
            queues[chosen] += 1;
        }
        queues.iter().max().expect("there are workers") - each
    }

    // A comparison the wrong way round, or one choice in disguise, shows as queues that differ by what chance alone makes of them.
    #[test]
    fn two_choices_keep_queues_even_where_one_does_not() {
        for workers in HOUSES {
            let mut random = Rng::with_seed(1);
            let two =
                excess(workers, 1_000, |queues| place(workers, None, &mut random, |w| at_work(queues[w])));
            let one = excess(workers, 1_000, |_| place_at_random(workers, &mut random));
            assert!(two <= 4, "{workers} workers: the longest is {two} above the average");
            assert!(workers < 4 || one >= 6 * two, "void: one choice is {one} above, two {two}");
        }
    }

    // Everybody sees the same empty worker, and nobody sees what the others have sent there since. A policy that looks for the
    // lightest of all sends it everything.
    #[test]
    fn a_worker_that_looks_empty_is_not_overrun() {
        for workers in HOUSES.into_iter().filter(|workers| *workers > 2) {
            let mut random = Rng::with_seed(2);
            let burst = 1_000 * workers;
            let got = (0..burst)
                .filter(|_| place(workers, None, &mut random, |w| at_work(if w == 0 { 0 } else { 10 })) == 0)
                .count();
            // It wins whenever it is drawn, which is twice in `workers` draws.
            assert!(got > 1_800 && got < 2_200, "{workers} workers: {got} of {burst}");
        }
    }

    // With live lengths not even a house of two sends a burst to one.
    #[test]
    fn a_burst_evens_queues_out() {
        for workers in HOUSES {
            let mut random = Rng::with_seed(3);
            let mut queues = vec![30; workers];
            queues[0] = 0;
            for _ in 0..60 * workers {
                let chosen = place(workers, Some(1), &mut random, |w| at_work(queues[w]));
                queues[chosen] += 1;
            }
            let (least, most) = (queues.iter().min().expect("some"), queues.iter().max().expect("some"));
            assert!(most - least <= 8, "{workers} workers: {queues:?}");
        }
    }

    // A worker in a poll that does not end has an empty queue as often as not, and would look like the best of all.
    #[test]
    fn who_is_stuck_or_has_ended_gets_nothing() {
        for workers in HOUSES {
            let mut random = Rng::with_seed(4);
            // All but one: then both that are drawn are mostly bad.
            for good in [0, workers / 2, workers - 1] {
                let load = |worker: usize| match worker {
                    worker if worker == good => at_work(1_000),
                    worker if worker % 3 == 0 => None,
                    _ => stuck(0),
                };
                for _ in 0..1_000 {
                    assert_eq!(place(workers, Some(0), &mut random, load), good, "of {workers} workers");
                }
            }
        }
    }

    // Were there no answer when all are stuck, a program whose workers are all in long polls could not spawn.
    #[test]
    fn where_nobody_is_free_the_stuck_are_better_than_the_ended() {
        let mut random = Rng::with_seed(5);
        for _ in 0..100 {
            assert_eq!(place(2, None, &mut random, |worker| if worker == 0 { stuck(9) } else { None }), 0);
            assert!(place(5, None, &mut random, |_| stuck(3)) < 5);
            assert!(place(5, None, &mut random, |_| None) < 5);
            assert_eq!(place(1, Some(0), &mut random, |_| stuck(3)), 0);
        }
    }

    // A turn of ordinary length, seen by a clock that jumps by 10 ms, must not look like a stuck one.
    #[test]
    fn a_turn_that_a_tick_fell_into_is_not_stuck() {
        let mut random = Rng::with_seed(6);
        let load = |worker| Some(Load { ready: worker, turn_ns: if worker == 0 { 10_500_000 } else { 1 } });
        for _ in 0..100 {
            assert_eq!(place(2, None, &mut random, load), 0);
        }
    }

    // A tie that went to the one drawn first would send every other task on a journey that gains nothing.
    #[test]
    fn of_two_equals_home_is_chosen() {
        let mut random = Rng::with_seed(7);
        for home in 0..2 {
            assert!((0..100).all(|_| place(2, Some(home), &mut random, |_| at_work(0)) == home));
        }
        let at_home = (0..8_000).filter(|_| place(8, Some(5), &mut random, |_| at_work(0)) == 5).count();
        assert!(at_home > 1_800 && at_home < 2_200, "it is drawn in a quarter of the cases: {at_home}");
    }

    // Whoever is at work and has an empty queue looks like a parked worker, but the new task would have to wait there.
    #[test]
    fn a_parked_worker_is_better_than_one_at_work() {
        let mut random = Rng::with_seed(12);
        let load = |worker| if worker == 0 { at_work(0) } else { Some(Load { ready: 0, turn_ns: 0 }) };
        assert!((0..100).all(|_| place(2, Some(0), &mut random, load) == 1));
    }

    // A draw that left someone out, or favoured someone, would be seen in no other test.
    #[test]
    fn each_pair_is_drawn_as_often_as_any_other() {
        let mut random = Rng::with_seed(8);
        let mut drawn = [[0; 4]; 4];
        for _ in 0..12_000 {
            let (one, other) = two_of(4, &mut random);
            drawn[one][other] += 1;
        }
        for (one, row) in drawn.iter().enumerate() {
            for (other, count) in row.iter().enumerate() {
                let fair = if one == other { *count == 0 } else { (850..1_150).contains(count) };
                assert!(fair, "{one} and {other}: {count}");
            }
        }
    }

    // Work may lie with any of them, so leaving one out strands it; looking at oneself is taking from oneself; and thieves that all
    // begin with the same of two equals meet there.
    #[test]
    fn a_thief_robs_the_longest_queue_wherever_it_is_and_any_of_equals() {
        for workers in HOUSES {
            let mut random = Rng::with_seed(9);
            for rich in 1..workers {
                let ready = |worker| if worker == rich { 9 } else { worker % 8 };
                assert_eq!(victim(0, workers, &mut random, ready), Some(rich), "of {workers} workers");
                let alone = |worker| usize::from(worker == rich);
                assert_eq!(victim(0, workers, &mut random, alone), Some(rich), "of {workers} workers");
                assert_eq!(victim(rich, workers, &mut random, alone), None, "nobody robs himself");
            }
            let mut robbed = vec![0; workers];
            for _ in 0..100 * workers {
                robbed[victim(0, workers, &mut random, |_| 5).expect("all have some")] += 1;
            }
            assert!(robbed[0] == 0 && robbed[1..].iter().all(|count| *count > 50), "{robbed:?}");
        }
        assert_eq!(victim(0, 1, &mut Rng::with_seed(9), |_| 1), None);
    }

    // One task must be worth taking (it may be behind a poll that does not end), nothing must not, and no more than fits.
    #[test]
    fn a_thief_takes_half() {
        assert_eq!([0, 1, 2, 3, 1_000].map(|ready| take(ready, 256)), [0, 1, 1, 2, 256]);
        assert_eq!(take(10, 0), 0);
    }

    // A count that reached zero would let a worker park without its last look.
    #[test]
    fn searches_get_shorter_and_never_end() {
        let first: Vec<u32> = (0..5).map(passes).collect();
        assert_eq!(first, [4, 2, 1, 1, 1]);
        assert_eq!(passes(u32::MAX), 1);
    }

    // Sleep that did not end would be a lost wake-up; none at all, a worker that turns on the spot; and a first failure is a lost race.
    #[test]
    fn a_worker_that_searches_in_vain_sleeps_longer_each_time_and_never_long() {
        assert_eq!([0, 1].map(back_off), [None; 2]);
        let times: Vec<u64> = (2..9).map(|failures| back_off(failures).expect("it sleeps")).collect();
        assert_eq!(times, [50_000, 100_000, 200_000, 400_000, 800_000, 1_600_000, 1_600_000]);
        assert_eq!(back_off(u32::MAX), Some(1_600_000));
    }

    /// Runs polls of these lengths until the slice is over. How many ran, how long they took, and how many looks there were.
    fn turn_of(mut polls: impl Iterator<Item = u64>) -> (usize, u64, usize) {
        let (mut ran, mut took_ns, mut looks) = (0, 0, 0);
        while took_ns < SLICE_NS {
            let count = polls_per_look(ran, took_ns);
            took_ns += polls.by_ref().take(count).sum::<u64>();
            (ran, looks) = (ran + count, looks + 1);
        }
        (ran, took_ns, looks)
    }

    // Looks that come by number alone let sixteen polls of 10 ms pass unseen; an average that is trusted too early does the same.
    #[test]
    fn a_turn_is_longer_than_its_slice_by_one_poll_at_the_most() {
        for poll_ns in [1, 100, 7_000, 31_000, 120_000, 499_999, 500_000, 10_000_000] {
            let (_, took_ns, _) = turn_of(std::iter::repeat(poll_ns));
            assert!(took_ns <= SLICE_NS + poll_ns, "polls of {poll_ns} ns make a turn of {took_ns}");
        }
        // What could not be foreseen is bounded.
        let long_from = |short| std::iter::repeat_n(100, short).chain(std::iter::repeat(10_000_000));
        assert_eq!(turn_of(long_from(0)).0, 1);
        assert_eq!(turn_of(long_from(1)).0, 1 + TRUST);
        assert!(turn_of(long_from(100)).0 <= 100 + POLLS_PER_LOOK);
    }

    // A look at each poll would cost as much as the polls.
    #[test]
    fn short_polls_are_hardly_looked_at() {
        let (ran, _, looks) = turn_of(std::iter::repeat(100));
        assert!(looks <= ran / POLLS_PER_LOOK + 20, "{looks} looks at {ran} polls");
    }

    /// What background polls of so many nanoseconds get of the time, if there is an opportunity after each `look_ns` of foreground work.
    fn background_share(poll_ns: u64, look_ns: u64, percent: u32) -> f64 {
        let (mut now_ns, mut due_ns, mut had_ns) = (1_000_000_000, 0, 0u32);
        let end_ns = now_ns + 10_000_000_000;
        while now_ns < end_ns {
            now_ns += look_ns;
            if due_ns <= now_ns {
                due_ns = background_due(due_ns, now_ns, now_ns + poll_ns, percent);
                now_ns += poll_ns;
                had_ns += u32::try_from(poll_ns / 100).expect("it is short");
            }
        }
        f64::from(had_ns) / 1e8
    }

    // A share that is counted in polls, or that starts anew after each poll however late it came, gives long polls too much and short ones
    // too little.
    #[test]
    fn background_work_gets_its_share_whatever_the_length_of_its_polls() {
        for percent in [1, 10, 50] {
            let due = f64::from(percent) / 100.0;
            for poll_ns in [100_000u32, 1_000_000, 20_000_000] {
                let share = background_share(u64::from(poll_ns), 50_000, percent);
                // The last poll may be over the edge: ten seconds hold few long ones.
                let one_poll = f64::from(poll_ns) / 1e10;
                assert!(
                    share <= due * 1.01 + one_poll && share > due * 0.9,
                    "{percent} %, {poll_ns} ns: {share}"
                );
            }
        }
        // There are fewer opportunities than it would need.
        let share = background_share(1_000, 50_000, 10);
        assert!(share > 0.019 && share < 0.02, "{share}");
    }

    // Ten seconds of idleness, all of it spent in the background, must not be held against it in the eleventh; nor must ten seconds
    // without any give it all of the eleventh.
    #[test]
    fn the_past_neither_starves_background_work_nor_lets_it_flood() {
        let (mut now_ns, mut due_ns) = (0, 0);
        for _ in 0..10_000 {
            due_ns = background_due(due_ns, now_ns, now_ns + 1_000_000, 10);
            now_ns += 1_000_000;
        }
        assert!(due_ns <= now_ns + 9_000_000);
        now_ns += 10_000_000_000;
        let at_once = (0..1_000)
            .take_while(|_| {
                let is_due = due_ns <= now_ns;
                due_ns = background_due(due_ns, now_ns, now_ns + 100_000, 10);
                now_ns += 100_000;
                is_due
            })
            .count();
        assert!(at_once <= 3, "{at_once} polls in a row");
    }

    /// A simulated house. In a step, tasks arrive, every worker runs one, and those without one search and park.
    struct House {
        /// For each queued task the steps that it takes.
        queues: Vec<VecDeque<u32>>,
        /// Steps that each worker is yet busy.
        busy: Vec<u32>,
        parked: Vec<bool>,
        /// Who searches, or has been woken to.
        searcher: Option<usize>,
        steals: usize,
        stolen: usize,
        woken: usize,
        finished: usize,
        random: Rng,
    }

    impl House {
        fn new(workers: usize, seed: u64) -> House {
            House {
                queues: vec![VecDeque::new(); workers],
                busy: vec![0; workers],
                parked: vec![false; workers],
                searcher: None,
                steals: 0,
                stolen: 0,
                woken: 0,
                finished: 0,
                random: Rng::with_seed(seed),
            }
        }

        fn workers(&self) -> usize {
            self.queues.len()
        }

        /// A task arrives at a worker. The worker is rung, or another is woken for it.
        fn push(&mut self, to: usize, steps: u32) {
            self.queues[to].push_back(steps);
            if std::mem::replace(&mut self.parked[to], false) {
                self.woken += 1;
            } else {
                self.wake_one();
            }
        }

        fn wake_one(&mut self) {
            if let Some(sleeper) = summoned(self.searcher.is_some(), self.workers(), |w| self.parked[w]) {
                self.searcher = Some(sleeper);
                self.parked[sleeper] = false;
                self.woken += 1;
            }
        }

        fn place(&mut self, steps: u32) {
            let (queues, busy) = (&self.queues, &self.busy);
            let load = |w: usize| Some(Load { ready: queues[w].len(), turn_ns: u64::from(busy[w]) });
            let to = place(queues.len(), None, &mut self.random, load);
            self.push(to, steps);
        }

        /// Everybody's next step. `robs`: whether there are thieves.
        fn step(&mut self, robs: bool) {
            for worker in 0..self.workers() {
                if self.busy[worker] > 0 {
                    self.busy[worker] -= 1;
                    self.finished += usize::from(self.busy[worker] == 0);
                }
                self.begin(worker);
            }
            for worker in 0..self.workers() {
                if self.busy[worker] == 0 && !self.parked[worker] {
                    if robs && *self.searcher.get_or_insert(worker) == worker {
                        self.search(worker);
                    }
                    self.begin(worker);
                    self.parked[worker] = self.busy[worker] == 0;
                }
            }
        }

        /// Takes the worker's next task, if it is free for one.
        fn begin(&mut self, worker: usize) {
            if self.busy[worker] == 0 && !self.parked[worker] {
                self.busy[worker] = self.queues[worker].pop_front().unwrap_or(0);
            }
        }

        fn search(&mut self, thief: usize) {
            let queues = &self.queues;
            let victim = victim(thief, queues.len(), &mut self.random, |w| queues[w].len());
            let mut taken = 0;
            if let Some(victim) = victim {
                taken = take(self.queues[victim].len(), 128);
                let half: Vec<u32> = self.queues[victim].drain(..taken).collect();
                self.steals += 1;
                self.stolen += taken;
                self.queues[thief].extend(half);
            }
            self.searcher = None;
            let has_loot = || (0..self.workers()).any(|w| w != thief && !self.queues[w].is_empty());
            if leaves_more(taken, has_loot) {
                self.wake_one();
            }
        }
    }

    /// A house in which all sleep but worker 0, which is in a poll that does not end, and where so many tasks have just been pushed to it.
    fn burst(workers: usize, tasks: usize) -> House {
        let mut house = House::new(workers, 14);
        house.parked.fill(true);
        (house.parked[0], house.busy[0]) = (false, u32::MAX);
        for _ in 0..tasks {
            house.push(0, 1);
        }
        house
    }

    // A push that woke a sleeper although one is on its way would wake the whole house for a burst that the first of them finishes alone: a
    // system call and a search each.
    #[test]
    fn a_burst_wakes_one_worker_and_then_no_more_than_there_is_work_for() {
        for workers in HOUSES {
            for tasks in [1, 2, 3, 10, 1_000] {
                let mut house = burst(workers, tasks);
                assert_eq!(house.woken, 1, "{workers} workers, {tasks} tasks");
                let mut steps = 0;
                while house.finished < tasks || house.parked[1..].contains(&false) {
                    house.step(true);
                    steps += 1;
                    assert!(steps < 2_000, "{workers} workers: {} of {tasks} done", house.finished);
                }
                assert!(house.woken <= tasks, "{workers} workers, {tasks} tasks: {} wakes", house.woken);
            }
            // With as many tasks as there are idle workers, and time for all of them to come, all do.
            let mut house = burst(workers, 20 * workers);
            (0..4 * workers).for_each(|_| house.step(true));
            assert!(house.woken >= workers - 1, "{workers} workers: {} wakes", house.woken);
        }
    }

    // Everything lies with one worker that never comes back. If half were taken of too few victims, or nobody woke the next thief, it
    // would take far longer than its share of steps; if thieves robbed each other in circles, there would be as many thefts as tasks.
    #[test]
    fn thieves_clear_a_stuck_workers_queue_together_and_in_few_steps() {
        for workers in HOUSES {
            let tasks = 1_000 * (workers - 1);
            let mut house = burst(workers, tasks);
            let mut steps = 0;
            while house.finished < tasks {
                house.step(true);
                steps += 1;
                assert!(steps < 1_300, "{workers} workers: {} of {tasks} done", house.finished);
            }
            assert!(
                house.steals * 50 < tasks,
                "{workers} workers: {} thefts for {tasks} tasks",
                house.steals
            );
        }
    }

    /// Lets tasks arrive that use so many percent of what the house can do. Returns how many were placed and stolen, and the
    /// steps that all of them together waited.
    fn under_load(workers: usize, percent: usize, robs: bool) -> (usize, usize, usize) {
        let mut house = House::new(workers, 11);
        let (mut arrivals, mut placed, mut waited) = (Rng::with_seed(13), 0, 0);
        for step in 0..2_000 {
            // One task in ten takes thirty steps, the others one: 3.9 on average.
            let due = |step: usize| step * workers * percent / 390;
            for _ in due(step)..due(step + 1) {
                let steps = if arrivals.u32(..10) == 0 { 30 } else { 1 };
                house.place(steps);
                placed += 1;
            }
            house.step(robs);
            waited += house.queues.iter().map(VecDeque::len).sum::<usize>();
        }
        (placed, house.stolen, waited)
    }

    // Stealing mends what two choices cannot know: how long a task will take. It must pay, and must not become the usual way of a
    // task where there are idle workers to place it with; and tasks must not wander from thief to thief.
    #[test]
    fn stealing_shortens_the_wait_and_moves_few_tasks() {
        for workers in HOUSES {
            let (_, _, waited_alone) = under_load(workers, 80, false);
            let (placed, stolen, waited) = under_load(workers, 80, true);
            assert!(
                waited < waited_alone,
                "{workers} workers: {waited} with thieves, {waited_alone} without"
            );
            assert!(stolen <= placed, "{workers} workers at 80 %: {stolen} of {placed}");
            let (placed, stolen, _) = under_load(workers, 30, true);
            assert!(stolen * 3 < placed, "{workers} workers at 30 %: {stolen} of {placed}");
        }
    }
}
