//! Stealing, sleeping, waking and ending, in every interleaving that loom can make of them. Each model has its mutants.
//!
//! A ring holds two tasks here, so that three overflow. Workers have no driver: whether one parks is what its two looks say, and
//! whether it is woken what its unparker counts.

use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use loom::thread;

use super::Spawner;
use crate::runtime::mesh::doorbell::WokenAs;
use crate::runtime::mesh::mailbox::Mailbox;
use crate::runtime::task::{Executor, JoinHandle, Label, TaskRef};
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, model};

/// Workers that have not begun, and how often each was unparked.
struct House<const WORKERS: usize> {
    spawner: Arc<Spawner>,
    mailboxes: [Arc<Mailbox>; WORKERS],
    unparked: [Arc<AtomicUsize>; WORKERS],
}

fn house<const WORKERS: usize>(steals: bool) -> House<WORKERS> {
    let spawner = Spawner::new(WORKERS, steals);
    let unparked = [(); WORKERS].map(|()| Arc::new(AtomicUsize::new(0)));
    let mailboxes = std::array::from_fn(|worker| {
        let count = unparked[worker].clone();
        Mailbox::new(&spawner, worker, move || {
            count.fetch_add(1, Relaxed);
        })
    });
    House { spawner, mailboxes, unparked }
}

fn stealable<F>(future: F) -> (TaskRef, JoinHandle<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    TaskRef::new_stealable(future, Label::from(Location::caller()))
}

/// Takes in what there is, and runs it.
fn turn(worker: &Rc<Executor>) {
    let _entered = worker.enter();
    worker.drain_remote();
    worker.run(4);
}

/// As often as the doorbell says that there is something.
fn turns_while_rung(worker: &Rc<Executor>, mailbox: &Mailbox) {
    loop {
        let rung = mailbox.doorbell().announce_sleep().is_err();
        let _ = mailbox.doorbell().wake_up();
        if !rung && !worker.has_ready() {
            return;
        }
        turn(worker);
    }
}

/// What a task has returned. It must have ended.
fn result<T>(mut handle: JoinHandle<T>) -> Option<T> {
    match Pin::new(&mut handle).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result.ok(),
        Poll::Pending => panic!("a task was lost"),
    }
}

/// The owner pushes three tasks, of which one finds the ring full, and runs what it finds while a thief robs it. Each must run once.
fn steal_against_pop_against_overflow() {
    let house = house::<2>(false);
    let [mine, thiefs] = house.mailboxes;
    let owner = Executor::new(mine.clone());
    let thief = thread::spawn(move || {
        let thief = Executor::new(thiefs);
        let _entered = thief.enter();
        thief.rob();
        thief.run(4);
    });
    let handles = [1, 10, 100].map(|number| {
        let (task, handle) = stealable(async move { number });
        owner.push(task);
        handle
    });
    turn(&owner);
    thief.join().expect("it does not panic");
    turns_while_rung(&owner, &mine);
    // A sum: a task that ran twice would have found its stage empty, and panicked.
    let sum: i32 = handles.into_iter().map(|handle| result(handle).expect("nobody cancels it")).sum();
    assert_eq!(sum, 111);
}

#[test]
fn loom_a_task_is_taken_once_by_its_owner_or_a_thief() {
    model::holds(steal_against_pop_against_overflow);
}

#[test]
fn loom_mutant_head_by_load_and_store() {
    model::catches("take: head by load and store", steal_against_pop_against_overflow);
}

#[test]
fn loom_mutant_tail_relaxed() {
    model::catches("push: tail relaxed", steal_against_pop_against_overflow);
}

#[test]
fn loom_mutant_head_relaxed() {
    model::catches("take: head relaxed", steal_against_pop_against_overflow);
}

/// A task is sent while a thief empties the inbox and the owner wants to. After all of it, the owner's doorbell must be rung if a
/// task is left.
fn send_against_two_takers() {
    let house = house::<2>(false);
    let [mine, thiefs] = house.mailboxes;
    let owner = Executor::new(mine.clone());
    let (first, one) = stealable(async { 1 });
    house.spawner.send(0, first);
    let thief = thread::spawn(move || {
        let thief = Executor::new(thiefs);
        let _entered = thief.enter();
        thief.rob();
        thief.run(4);
    });
    let sender = thread::spawn({
        let spawner = house.spawner.clone();
        move || {
            let (second, two) = stealable(async { 2 });
            spawner.send(0, second);
            two
        }
    });
    {
        let _entered = owner.enter();
        owner.drain_remote();
    }
    let two = sender.join().expect("it does not panic");
    thief.join().expect("it does not panic");
    turns_while_rung(&owner, &mine);
    assert_eq!((result(one), result(two)), (Some(1), Some(2)));
}

#[test]
fn loom_who_is_turned_away_from_an_inbox_is_reminded() {
    model::holds(send_against_two_takers);
}

#[test]
fn loom_mutant_inbox_left_without_a_look() {
    model::catches("inbox: leave without a look", send_against_two_takers);
}

#[test]
fn loom_mutant_inbox_entered_relaxed() {
    model::catches("inbox: entered relaxed", send_against_two_takers);
}

/// One worker pushes a task and blocks, and summons the other. That one must see what it was summoned for.
fn summons_against_search() {
    let house = house::<2>(true);
    let [pushers, searchers] = house.mailboxes;
    assert_eq!(searchers.doorbell().announce_sleep(), Ok(()));
    let searcher = thread::spawn({
        let spawner = house.spawner.clone();
        move || {
            let searcher = Executor::new(searchers.clone());
            if searchers.doorbell().wake_up() == WokenAs::Searcher {
                let taken = searcher.rob();
                assert_eq!(taken, 1, "it was summoned, and does not see what for");
                spawner.end_search(1, taken);
            }
        }
    });
    let pusher = Executor::new(pushers);
    let (task, _handle) = stealable(async {});
    pusher.push(task);
    searcher.join().expect("it does not panic");
}

#[test]
fn loom_who_is_summoned_sees_what_for() {
    model::holds(summons_against_search);
}

#[test]
fn loom_mutant_wake_up_relaxed() {
    model::catches("wake up: relaxed", summons_against_search);
}

/// Two workers search where there are two tasks, one after the other, whichever is first. The second must see what the first has left:
/// else it goes to sleep beside work.
fn search_against_search() {
    /// Searches, if nobody else does, and takes a task.
    fn search(spawner: &Spawner, worker: &Executor, number: usize) {
        if spawner.try_search() {
            let taken = worker.rob();
            assert_eq!(taken, 1, "there were two, and the other has taken one at the most");
            spawner.end_search(number, taken);
        }
    }
    let house = house::<3>(false);
    let [owners, mine, others] = house.mailboxes;
    let owner = Executor::new(owners);
    let _handles = [(); 2].map(|()| {
        let (task, handle) = stealable(async {});
        owner.push(task);
        handle
    });
    let other = thread::spawn({
        let spawner = house.spawner.clone();
        move || search(&spawner, &Executor::new(others), 2)
    });
    let me = Executor::new(mine);
    search(&house.spawner, &me, 1);
    other.join().expect("it does not panic");
}

#[test]
fn loom_a_searcher_sees_what_the_one_before_it_left() {
    model::holds(search_against_search);
}

#[test]
fn loom_mutant_search_begun_relaxed() {
    model::catches("search: begun relaxed", search_against_search);
}

#[test]
fn loom_mutant_search_ended_relaxed() {
    model::catches("search: ended relaxed", search_against_search);
}

/// One worker pushes a task and blocks; the other wakes from one sleep by itself and goes to the next. It may not sleep then, unless it is
/// being woken.
fn push_against_sleep() {
    let house = house::<2>(true);
    let [pushers, sleepers] = house.mailboxes;
    assert_eq!(sleepers.doorbell().announce_sleep(), Ok(()));
    let sleeper = thread::spawn({
        let spawner = house.spawner.clone();
        let doorbell = sleepers.clone();
        move || {
            if doorbell.doorbell().wake_up() == WokenAs::Searcher {
                spawner.end_search(1, 0);
            }
            doorbell.doorbell().announce_sleep().is_ok() && !spawner.needs_searcher(1)
        }
    });
    let pusher = Executor::new(pushers);
    let (task, _handle) = stealable(async {});
    pusher.push(task);
    let sleeps = sleeper.join().expect("it does not panic");
    let woken = sleepers.doorbell().wake_up();
    assert!(!sleeps || woken == WokenAs::Searcher, "it sleeps, and there is a task to steal");
}

#[test]
fn loom_no_task_is_slept_through() {
    model::holds(push_against_sleep);
}

#[test]
fn loom_mutant_push_without_fence() {
    model::catches("push: no fence", push_against_sleep);
}

#[test]
fn loom_mutant_summoner_gives_up() {
    model::catches("summon: give up at once", push_against_sleep);
}

/// A task that may move and one that is pinned are sent to a worker that sleeps, while it wakes and takes in what it finds. If both
/// have come the pinned one is first, and may never return; then the other worker may not sleep on.
fn send_against_a_pinned_one() {
    let house = house::<2>(true);
    let [mine, others] = house.mailboxes;
    let owner = Executor::new(mine.clone());
    assert_eq!(mine.doorbell().announce_sleep(), Ok(()));
    assert_eq!(others.doorbell().announce_sleep(), Ok(()));
    let sender = thread::spawn({
        let (spawner, mine) = (house.spawner.clone(), mine.clone());
        move || {
            let (task, one) = stealable(async {});
            spawner.send(0, task);
            let (task, other) = TaskRef::new_remote_at(async || (), &mine, Location::caller());
            mine.push(task);
            (one, other)
        }
    });
    let _ = mine.doorbell().wake_up();
    let _entered = owner.enter();
    owner.drain_remote();
    let waits = owner.pinned_ready() > 0 && mine.queue().in_ring() > 0;
    let _handles = sender.join().expect("it does not panic");
    let woken = others.doorbell().wake_up();
    assert!(!waits || woken == WokenAs::Searcher, "a task lies behind a pinned one, and a worker sleeps");
}

#[test]
fn loom_a_task_that_comes_with_a_pinned_one_is_shown_to_a_thief() {
    model::holds(send_against_a_pinned_one);
}

#[test]
fn loom_mutant_surplus_seen_too_early() {
    model::catches("drain: look before the pinned ones are in", send_against_a_pinned_one);
}

/// A worker searches, finds nothing, and goes on with something else, while another pushes a task and relies on it. Then the third, which
/// sleeps, must be woken.
fn push_against_search() {
    let house = house::<3>(true);
    let [pushers, searchers, sleepers] = house.mailboxes;
    assert_eq!(sleepers.doorbell().announce_sleep(), Ok(()));
    assert!(house.spawner.try_search());
    let searcher = thread::spawn({
        let spawner = house.spawner.clone();
        move || {
            let searcher = Executor::new(searchers);
            let taken = searcher.rob();
            spawner.end_search(1, taken);
            let _entered = searcher.enter();
            searcher.run(1);
            taken
        }
    });
    let pusher = Executor::new(pushers);
    let (task, _handle) = stealable(async {});
    pusher.push(task);
    let taken = searcher.join().expect("it does not panic");
    let woken = house.unparked[2].load(Relaxed);
    assert!(taken == 1 || woken == 1, "a task lies there, and nobody searches");
}

#[test]
fn loom_a_searcher_hands_on_what_it_did_not_see() {
    model::holds(push_against_search);
}

#[test]
fn loom_mutant_search_without_a_last_look() {
    model::catches("search: no look after the end", push_against_search);
}

/// Notes who drops it.
struct DropsOn(Arc<loom::sync::Mutex<Vec<thread::ThreadId>>>);
impl Drop for DropsOn {
    fn drop(&mut self) {
        self.0.lock().expect("no model panics under the lock").push(thread::current().id());
    }
}

/// A stealable task of `worker` that waits until it sees a message, and its waker.
fn waiting(
    worker: &Rc<Executor>,
    message: &Arc<AtomicUsize>,
    held: impl Send + 'static,
) -> (JoinHandle<()>, Waker) {
    let slot = std::sync::Arc::new(std::sync::Mutex::new(None));
    let (task, handle) = stealable({
        let (message, slot) = (message.clone(), std::sync::Arc::clone(&slot));
        let mut first = true;
        poll_fn(move |cx| {
            let _held = &held;
            if std::mem::take(&mut first) {
                *slot.lock().expect("it does not panic") = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if message.load(Relaxed) == 1 { Poll::Ready(()) } else { Poll::Pending }
        })
    });
    worker.push(task);
    turn(worker);
    let waker = slot.lock().expect("it does not panic").take().expect("it was polled");
    (handle, waker)
}

/// A task is polled on its worker while another thread leaves a message, wakes it, and then steals and polls it itself. The message must be
/// seen by some poll, and no two polls overlap (loom watches the future's cell).
fn wake_against_poll_against_steal() {
    let house = house::<2>(false);
    let [mine, thiefs] = house.mailboxes;
    let owner = Executor::new(mine.clone());
    let message = Arc::new(AtomicUsize::new(0));
    let (handle, waker) = waiting(&owner, &message, ());
    {
        let _entered = owner.enter();
        waker.wake_by_ref();
    }
    let thief = thread::spawn(move || {
        message.store(1, Relaxed);
        waker.wake();
        let thief = Executor::new(thiefs);
        let _entered = thief.enter();
        thief.rob();
        thief.run(1);
    });
    turn(&owner);
    thief.join().expect("it does not panic");
    turns_while_rung(&owner, &mine);
    assert_eq!(result(handle), Some(()), "a wake was lost");
}

#[test]
fn loom_a_stealable_task_is_polled_by_one_at_a_time_and_no_wake_is_lost() {
    model::holds(wake_against_poll_against_steal);
}

#[test]
fn loom_mutant_pause_by_load_and_store() {
    model::catches("pause: load, then store", wake_against_poll_against_steal);
}

#[test]
fn loom_mutant_pause_relaxed() {
    model::catches("pause: relaxed", wake_against_poll_against_steal);
}

/// A task is aborted by one thread, woken by another and polled by its worker. It ends once, and its future is dropped on a worker.
fn abort_against_poll_against_wake() {
    let house = house::<1>(false);
    let [mine] = house.mailboxes;
    let owner = Executor::new(mine.clone());
    let (message, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(loom::sync::Mutex::new(Vec::new())));
    let (handle, waker) = waiting(&owner, &message, DropsOn(dropped.clone()));
    let aborts = handle.abort_handle();
    let others = [thread::spawn(move || waker.wake()), thread::spawn(move || aborts.abort())];
    turn(&owner);
    for other in others {
        other.join().expect("it does not panic");
    }
    turns_while_rung(&owner, &mine);
    assert_eq!(result(handle), None, "it waits for a message that does not come");
    assert_eq!(*dropped.lock().expect("no panic"), [thread::current().id()]);
}

#[test]
fn loom_a_stealable_task_that_is_aborted_ends_once() {
    model::holds(abort_against_poll_against_wake);
}

#[test]
fn loom_mutant_stealable_abort_flag_after_request() {
    model::catches("abort: flag after the request", abort_against_poll_against_wake);
}

/// Two workers end, in whatever order, while a thread that is none wakes a task. Its future must be dropped, once, on a worker.
fn wake_against_the_end() {
    let house = house::<2>(false);
    let [mine, others] = house.mailboxes;
    let owner = Executor::new(mine);
    let (message, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(loom::sync::Mutex::new(Vec::new())));
    let (handle, waker) = waiting(&owner, &message, DropsOn(dropped.clone()));
    let waker = thread::spawn(move || {
        waker.wake();
        thread::current().id()
    });
    let other = thread::spawn(move || drop(Executor::new(others)));
    drop(owner);
    let foreign = waker.join().expect("it does not panic");
    other.join().expect("it does not panic");
    assert_eq!(result(handle), None, "nobody could run it to its end");
    let dropped = dropped.lock().expect("no panic");
    assert!(dropped.len() == 1 && dropped[0] != foreign, "dropped once, by a worker");
}

#[test]
fn loom_the_last_worker_drops_what_was_about_to_be_queued() {
    model::holds(wake_against_the_end);
}

#[test]
fn loom_mutant_nothing_is_left_to_the_last() {
    model::catches("end: leave nothing", wake_against_the_end);
}

/// A task is sent to a worker that closes. It has an answer.
fn send_against_the_end() {
    let house = house::<1>(false);
    let [mine] = house.mailboxes;
    let owner = Executor::new(mine);
    let sender = thread::spawn({
        let spawner = house.spawner.clone();
        move || {
            let (task, handle) = stealable(async {});
            spawner.send(0, task);
            handle
        }
    });
    drop(owner);
    let handle = sender.join().expect("it does not panic");
    assert_eq!(result(handle), None, "nobody ran it");
}

#[test]
fn loom_a_task_sent_to_a_closing_worker_is_cancelled() {
    model::holds(send_against_the_end);
}

#[test]
fn loom_mutant_closed_inbox_left_alone() {
    model::catches("send: leave a closed inbox alone", send_against_the_end);
}
