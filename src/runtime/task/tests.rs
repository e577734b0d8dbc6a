//! What a task owes its worker and its handle, on threads of the system. Interleavings are loom's (see `loom_tests`).

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, panic_any};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use super::{Class, Executor, JoinError, JoinHandle, Label, TaskId, TaskRef, id};
use crate::io::driver::waiter::{Waiter, waker_that_meddles};
use crate::runtime::mesh::mailbox::Mailbox;
use crate::runtime::spawner::Spawner;

/// A worker without a driver, whose unparker counts.
fn worker() -> (Rc<Executor>, Arc<AtomicUsize>) {
    let unparked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&unparked);
    let mailbox = Mailbox::new(&Spawner::new(1, false), 0, move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    (Executor::new(mailbox), unparked)
}

#[track_caller]
fn spawn<F: Future + 'static>(local: &Executor, future: F) -> JoinHandle<F::Output> {
    local.spawn(future, Location::caller())
}

/// Runs turns until there is nothing to do.
fn settle(local: &Rc<Executor>) {
    let _entered = local.enter();
    while local.drain_remote() + local.run(64) > 0 {}
}

/// Polls a handle once, by nobody's waker.
fn look<T>(handle: &mut JoinHandle<T>) -> Poll<Result<T, JoinError>> {
    Pin::new(handle).poll(&mut Context::from_waker(Waker::noop()))
}

/// The result of a task that has ended.
#[track_caller]
fn result<T>(mut handle: JoinHandle<T>) -> Result<T, JoinError> {
    match look(&mut handle) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the task has not ended"),
    }
}

/// Leaves the executor once: wakes itself, and is ready at the next poll.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Notes on which thread it is dropped.
struct DropsOn(Arc<std::sync::Mutex<Vec<thread::ThreadId>>>);
impl Drop for DropsOn {
    fn drop(&mut self) {
        self.0.lock().expect("no test panics under the lock").push(thread::current().id());
    }
}

/// A waker that counts how often it wakes.
#[derive(Default)]
struct Counts(AtomicUsize);
impl Wake for Counts {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Panics when it is dropped.
struct Bomb(&'static str);
impl Drop for Bomb {
    fn drop(&mut self) {
        panic_any(self.0);
    }
}

/// A waker that panics when it is dropped, woken or not.
struct WakerBomb;
impl Wake for WakerBomb {
    // Its drop does something, so that it is not std's that does nothing, as a lint would have it.
    fn wake(self: Arc<Self>) {
        drop(self);
    }
}
impl Drop for WakerBomb {
    fn drop(&mut self) {
        panic!("a waker of the program's");
    }
}

#[test]
fn five_thousand_tasks_made_ready_at_once_all_run() {
    // An intrusive queue that loses its tail, or a flag that is cleared too late, loses tasks when many are queued.
    let (local, _) = worker();
    let (woken, ran) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
    let wakers = Rc::new(RefCell::new(Vec::new()));
    let handles: Vec<_> = (0..5_000)
        .map(|_| {
            let (woken, ran, wakers) = (Rc::clone(&woken), Rc::clone(&ran), Rc::clone(&wakers));
            spawn(&local, async move {
                poll_fn(|cx| {
                    if woken.get() {
                        return Poll::Ready(());
                    }
                    wakers.borrow_mut().push(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                ran.set(ran.get() + 1);
            })
        })
        .collect();
    settle(&local);
    assert_eq!((ran.get(), wakers.borrow().len()), (0, 5_000));
    woken.set(true);
    {
        let _entered = local.enter();
        for waker in wakers.take() {
            waker.wake_by_ref();
            waker.wake();
        }
        assert_eq!(local.counters().ready, 5_000, "each is queued once");
    }
    settle(&local);
    assert_eq!(ran.get(), 5_000);
    assert_eq!(local.counters().alive, 0);
    assert!(handles.into_iter().all(|handle| result(handle).is_ok()));
}

#[test]
fn both_kinds_get_polls_however_few_are_run_at_a_time() {
    // A worker whose polls are long runs one at a time. If each call began with the pinned ones, a stealable task would starve.
    let (local, _) = worker();
    let polls = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counts = |kind: usize| {
        let polls = Arc::clone(&polls);
        async move {
            loop {
                polls[kind].fetch_add(1, Ordering::Relaxed);
                yield_once().await;
            }
        }
    };
    let _pinned = spawn(&local, counts(0));
    let (task, _stealable) = TaskRef::new_stealable(counts(1), Location::caller().into());
    local.push(task);
    let _entered = local.enter();
    for _ in 0..160 {
        assert_eq!(local.run(1), 1);
    }
    let polls = polls.each_ref().map(|polls| polls.load(Ordering::Relaxed));
    assert_eq!(polls, [80, 80]);
}

#[test]
fn a_join_returns_when_that_task_ends_not_when_others_do() {
    // A handle that is woken by, or waits for, anything but its own task would show here.
    let (local, _) = worker();
    let gate = Rc::new(Cell::new(false));
    let endless = spawn(&local, pending::<()>());
    let quick = spawn(&local, async { 7 });
    let slow = spawn(&local, {
        let gate = Rc::clone(&gate);
        async move {
            while !gate.get() {
                yield_once().await;
            }
            8
        }
    });
    let log = Rc::new(RefCell::new(Vec::new()));
    let joiner = spawn(&local, {
        let log = Rc::clone(&log);
        async move {
            for handle in [quick, slow] {
                let value = handle.await.expect("it ends");
                log.borrow_mut().push(value);
            }
        }
    });
    let _entered = local.enter();
    local.run(100);
    assert_eq!(*log.borrow(), [7]);
    assert!(!joiner.is_finished() && !endless.is_finished());
    gate.set(true);
    local.run(100);
    assert_eq!(*log.borrow(), [7, 8]);
    assert!(joiner.is_finished() && !endless.is_finished());
}

#[test]
fn a_task_that_wakes_itself_goes_behind_all_that_are_ready() {
    // Otherwise one that yields for ever would be polled again at once and starve the rest.
    let (local, _) = worker();
    let log = Rc::new(RefCell::new(Vec::new()));
    for name in ["a", "b"] {
        let log = Rc::clone(&log);
        drop(spawn(&local, async move {
            for round in 0..2 {
                log.borrow_mut().push((name, round));
                yield_once().await;
            }
        }));
    }
    let _entered = local.enter();
    assert_eq!(local.run(3), 3, "the budget is kept");
    assert!(local.has_ready());
    local.run(64);
    assert_eq!(*log.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
}

/// What somebody says, in order.
type Log = Rc<RefCell<Vec<&'static str>>>;

/// A task that spawns another, awaits it, and says so.
fn await_another<F: Future<Output = ()> + 'static>(
    log: &Log,
    another: F,
) -> impl Future<Output = ()> + 'static {
    let log = Rc::clone(log);
    async move {
        let another = Executor::spawn_here(another, Location::caller().into()).expect("a worker is entered");
        another.await.expect("it does not panic");
        log.borrow_mut().push("awaited");
    }
}

#[test]
fn who_awaits_a_task_comes_after_those_that_were_ready_before() {
    // Who waits for the end of the task just polled may be polled at once. If that is done though others are ready, two tasks that spawn
    // and await each other's keep the worker to themselves.
    let (local, _) = worker();
    let log = Log::default();
    let another = {
        let log = Rc::clone(&log);
        async move {
            let third = Rc::clone(&log);
            let third = async move { third.borrow_mut().push("third") };
            drop(Executor::spawn_here(third, Location::caller().into()));
            log.borrow_mut().push("another");
        }
    };
    spawn(&local, await_another(&log, another));
    settle(&local);
    assert_eq!(*log.borrow(), ["another", "third", "awaited"]);
}

#[test]
fn a_budget_may_end_between_a_task_and_who_awaits_it() {
    // Who is polled at once is a poll like any other: not counted, it would let a turn go on for ever; not queued at the budget's end, it
    // would be lost.
    let (local, _) = worker();
    let log = Log::default();
    spawn(&local, await_another(&log, async {}));
    let _entered = local.enter();
    assert_eq!([local.run(1), local.run(1)], [1, 1]);
    assert_eq!((log.borrow().len(), local.counters().ready), (0, 1));
    assert_eq!((local.run(64), log.borrow().len()), (1, 1));
    let queued = local.counters();
    assert_eq!((queued.polls, queued.wakes_local, queued.spawned, queued.alive), (3, 1, 2, 0));
    spawn(&local, await_another(&log, async {}));
    assert_eq!(local.run(64), 3, "the one who waits, the other, and again the one who waits");
    let handed = local.counters();
    assert_eq!((handed.polls, handed.wakes_local, handed.spawned, handed.alive), (6, 2, 4, 0));
}

#[test]
fn who_awaits_in_the_background_stays_there() {
    // Polled at once by the turn's foreground half, a background task that awaits many others would have a share that nobody measures.
    let (local, _) = worker();
    let log = Log::default();
    let waker = Rc::new(RefCell::new(None));
    let another = {
        let waker = Rc::clone(&waker);
        let mut polls = 0;
        poll_fn(move |cx| {
            polls += 1;
            waker.replace(Some(cx.waker().clone()));
            if polls == 1 { Poll::Pending } else { Poll::Ready(()) }
        })
    };
    let another = local.spawn(another, Label::from(Location::caller()).of_class(Class::Foreground));
    let waits = {
        let log = Rc::clone(&log);
        async move {
            another.await.expect("it does not panic");
            log.borrow_mut().push("background");
        }
    };
    local.spawn(waits, Label::from(Location::caller()).of_class(Class::Background));
    let _entered = local.enter();
    local.run(64);
    assert!(local.run_background());
    waker.take().map(Waker::wake).expect("it was polled");
    assert_eq!((local.run(64), log.borrow().len()), (1, 0));
    assert!(local.run_background());
    assert_eq!(*log.borrow(), ["background"]);
}

#[test]
fn closing_drops_tasks_that_were_never_polled() {
    // Such a task is in no list: it is found in its queue, or never.
    let (local, _) = worker();
    let held = Rc::new(());
    let handles = [Class::Foreground, Class::Background].map(|class| {
        let held = Rc::clone(&held);
        local.spawn(async move { drop(held) }, Label::from(Location::caller()).of_class(class))
    });
    let woken = {
        let held = Rc::clone(&held);
        spawn(&local, async move {
            yield_once().await;
            drop(held);
        })
    };
    {
        let _entered = local.enter();
        // The first ends; the third is in the list by now, and ready.
        assert_eq!(local.run(2), 2);
    }
    let late = {
        let held = Rc::clone(&held);
        spawn(&local, async move { drop(held) })
    };
    assert_eq!((Rc::strong_count(&held), local.counters().alive), (4, 3));
    local.close();
    assert_eq!((Rc::strong_count(&held), local.counters().alive, local.counters().ready), (1, 0, 0));
    let ends = handles.into_iter().chain([woken, late]).map(|task| result(task).is_ok());
    assert_eq!(ends.collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(local.counters().polls, 2, "what is dropped is not polled");
}

#[test]
fn dropping_a_future_that_was_polled_leaks_nothing() {
    // The cell, what the future held, and the mailbox (which every header keeps) must all be gone.
    let (local, _) = worker();
    let mailbox: Weak<Mailbox> = Arc::downgrade(local.mailbox());
    let held = Rc::new(());
    let waker = Rc::new(RefCell::new(None));
    let handle = spawn(&local, {
        let (held, waker) = (Rc::clone(&held), Rc::clone(&waker));
        async move {
            let _held = held;
            poll_fn(|cx| {
                *waker.borrow_mut() = Some(cx.waker().clone());
                Poll::<()>::Pending
            })
            .await;
        }
    });
    settle(&local);
    assert_eq!(Rc::strong_count(&held), 2);
    drop(local);
    assert_eq!(Rc::strong_count(&held), 1, "closing drops the future");
    assert!(result(handle).expect_err("the worker ended before it").is_cancelled());
    assert!(mailbox.upgrade().is_some(), "the waker keeps the header, and that the mailbox");
    drop(waker);
    assert!(mailbox.upgrade().is_none(), "a header leaked");
}

#[test]
fn a_future_is_dropped_on_its_owner_whoever_aborts_it() {
    // `Rc`s in a future are only sound if no other thread ever drops it.
    let (local, _) = worker();
    let dropped = Arc::new(std::sync::Mutex::new(Vec::new()));
    let handle = spawn(&local, {
        let witness = DropsOn(Arc::clone(&dropped));
        async move {
            let _witness = witness;
            pending::<()>().await;
        }
    });
    settle(&local);
    let abort = handle.abort_handle();
    thread::spawn(move || {
        abort.abort();
        abort.abort();
        drop(handle);
    })
    .join()
    .expect("it does not panic");
    assert!(dropped.lock().expect("not poisoned").is_empty());
    settle(&local);
    assert_eq!(*dropped.lock().expect("not poisoned"), [thread::current().id()]);
    assert_eq!(local.counters().alive, 0);
}

#[test]
fn abort_here_and_from_afar_cancels_once() {
    // Whatever the order of abort, wake and end, the handle gets one answer, and an ended task keeps its output.
    let (local, _) = worker();
    let here = spawn(&local, pending::<()>());
    let afar = spawn(&local, pending::<()>());
    let never_polled = spawn(&local, async { 1 });
    never_polled.abort();
    settle(&local);
    {
        let _entered = local.enter();
        here.abort();
        here.abort();
    }
    afar.abort();
    let ended = spawn(&local, async { 2 });
    settle(&local);
    ended.abort();
    settle(&local);
    assert!(result(here).expect_err("aborted").is_cancelled());
    assert!(result(afar).expect_err("aborted").is_cancelled());
    assert!(result(never_polled).expect_err("aborted").is_cancelled());
    assert_eq!(result(ended).expect("it had ended"), 2);
}

#[test]
fn a_task_can_abort_itself() {
    // The abort comes while the future is borrowed for its poll; dropping it then and there would be fatal.
    let (local, _) = worker();
    let slot: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
    let handle = spawn(&local, {
        let slot = Rc::clone(&slot);
        async move {
            slot.borrow().as_ref().expect("put there before the first poll").abort();
            pending::<()>().await;
        }
    });
    *slot.borrow_mut() = Some(handle);
    settle(&local);
    let handle = slot.take().expect("nobody took it");
    assert!(result(handle).expect_err("aborted").is_cancelled());
}

#[test]
fn a_panic_ends_its_task_and_nothing_else() {
    // In a poll, in a future's destructor at completion, in one at abort, in an output's, and in a payload's own.
    let (local, _) = worker();
    let message = |error: JoinError| *error.into_panic().downcast::<&'static str>().expect("a literal");

    let in_poll = spawn(&local, async { panic!("in a poll") });
    /// Ready at once, and panics when dropped.
    struct EndsBadly(#[expect(dead_code, reason = "held for its destructor")] Bomb);
    impl Future for EndsBadly {
        type Output = u32;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u32> {
            Poll::Ready(1)
        }
    }
    let at_completion = spawn(&local, EndsBadly(Bomb("at completion")));
    let bomb = Bomb("at abort");
    let at_abort = spawn(&local, async move {
        let _bomb = bomb;
        pending::<()>().await;
    });
    drop(spawn(&local, async { Bomb("in a detached output") }));
    drop(spawn(&local, async { panic_any(Bomb("in a payload")) }));
    let after = spawn(&local, async { 5 });
    settle(&local);
    at_abort.abort();
    settle(&local);

    assert_eq!(message(result(in_poll).expect_err("it panicked")), "in a poll");
    assert_eq!(message(result(at_completion).expect_err("it panicked")), "at completion");
    assert_eq!(message(result(at_abort).expect_err("it panicked")), "at abort");
    assert_eq!(result(after).expect("others go on"), 5);
    assert_eq!(local.counters().alive, 0);
}

#[test]
fn a_join_error_says_what_happened_where() {
    // An error without the spawn location cannot be acted upon in a program that spawns in a hundred places.
    let (local, _) = worker();
    let panics = spawn(&local, async { panic!("no such key") });
    let id = panics.id();
    settle(&local);
    let error = result(panics).expect_err("it panicked");
    assert!(error.is_panic() && !error.is_cancelled() && error.id() == id);
    let text = error.to_string();
    assert!(text.starts_with(&format!("task {id}, spawned at ")) && text.contains("tests.rs:"), "{text}");
    assert!(text.ends_with("panicked: no such key"), "{text}");

    let cancelled = spawn(&local, pending::<()>());
    cancelled.abort();
    settle(&local);
    let error = result(cancelled).expect_err("it was aborted");
    assert!(error.to_string().ends_with("was cancelled"));
    assert!(error.try_into_panic().expect_err("it did not panic").is_cancelled());
}

#[test]
fn a_waker_outlives_task_and_worker() {
    // It must then wake nobody, leak nothing, and touch no memory of theirs but the header.
    let (local, unparked) = worker();
    let mailbox = Arc::downgrade(local.mailbox());
    let waker = Rc::new(RefCell::new(None));
    let handle = spawn(&local, {
        let waker = Rc::clone(&waker);
        poll_fn(move |cx| {
            *waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Ready(3)
        })
    });
    settle(&local);
    let waker = waker.take().expect("it was polled");
    let before = local.counters();
    {
        let _entered = local.enter();
        waker.wake_by_ref();
    }
    let afar = waker.clone();
    thread::spawn(move || afar.wake()).join().expect("it does not panic");
    settle(&local);
    assert_eq!(local.counters(), before, "a complete task is not woken");
    assert_eq!(result(handle).expect("it ended"), 3);
    drop(local);
    waker.wake_by_ref();
    let clone = waker.clone();
    clone.wake();
    assert_eq!(unparked.load(Ordering::Relaxed), 0);
    drop(waker);
    assert!(mailbox.upgrade().is_none(), "a header leaked");
}

#[test]
fn a_wake_from_afar_is_queued_once_and_polls_once() {
    // Two pushes of one node would tie the list into a ring; a missing unpark would leave the worker asleep.
    let (local, unparked) = worker();
    let waker = Rc::new(RefCell::new(None));
    let polls = Rc::new(Cell::new(0));
    let _handle = spawn(&local, {
        let (waker, polls) = (Rc::clone(&waker), Rc::clone(&polls));
        poll_fn(move |cx| {
            polls.set(polls.get() + 1);
            *waker.borrow_mut() = Some(cx.waker().clone());
            Poll::<()>::Pending
        })
    });
    settle(&local);
    assert_eq!(local.mailbox().doorbell().announce_sleep(), Ok(()));
    let afar = waker.take().expect("it was polled");
    thread::spawn(move || {
        for _ in 0..10 {
            afar.wake_by_ref();
        }
    })
    .join()
    .expect("it does not panic");
    assert_eq!(unparked.load(Ordering::Relaxed), 1);
    settle(&local);
    assert_eq!((polls.get(), local.counters().wakes_remote), (2, 1));
}

#[test]
fn a_task_from_afar_is_started_by_its_owner() {
    // The closure is `Send`, its future is not; so the future must be made, polled and dropped on the owner only.
    let (local, _) = worker();
    let mailbox = Arc::clone(local.mailbox());
    let home = thread::current().id();
    let handle = thread::spawn(move || {
        let start = move || {
            assert_eq!(thread::current().id(), home);
            let not_send = Rc::new(Cell::new(4));
            async move {
                yield_once().await;
                not_send.get()
            }
        };
        let (task, handle) = TaskRef::new_remote_at(start, &mailbox, Location::caller());
        mailbox.push(task);
        handle
    })
    .join()
    .expect("it does not panic");
    settle(&local);
    let value = thread::spawn(move || result(handle)).join().expect("it does not panic");
    assert_eq!(value.expect("it ended"), 4);

    // The same, inside a message; the closure panics.
    let start = || -> std::future::Ready<()> { panic!("no future") };
    let (task, handle) = TaskRef::new_remote_at(start, local.mailbox(), Location::caller());
    local.adopt(task);
    settle(&local);
    assert!(result(handle).expect_err("it panicked").is_panic());
}

#[test]
fn a_task_that_never_reaches_its_owner_is_cancelled() {
    // A message dropped, a push after the end, an adoption after the end: each drops the closure and tells the handle.
    let (local, _) = worker();
    let mailbox = Arc::clone(local.mailbox());
    let held = Arc::new(());
    let task = || {
        let held = Arc::clone(&held);
        TaskRef::new_remote_at(move || async move { drop(held) }, &mailbox, Location::caller())
    };
    let (dropped, of_dropped) = task();
    drop(dropped);
    let (aborted, of_aborted) = task();
    of_aborted.abort();
    local.adopt(aborted);
    settle(&local);
    assert_eq!(local.counters().polls, 0, "aborted before it was adopted");
    let (waiting, of_waiting) = task();
    mailbox.push(waiting);
    local.close();
    let (late, of_late) = task();
    thread::scope(|scope| drop(scope.spawn(|| mailbox.push(late))));
    let (adopted, of_adopted) = task();
    local.adopt(adopted);
    let of_spawned = spawn(&local, async {});
    for handle in [of_dropped, of_aborted, of_waiting, of_late, of_adopted, of_spawned] {
        assert!(result(handle).expect_err("it never ran").is_cancelled());
    }
    assert_eq!(Arc::strong_count(&held), 1);
    let weak = Arc::downgrade(&mailbox);
    drop((local, mailbox));
    assert!(weak.upgrade().is_none(), "a header leaked");
}

#[test]
fn closing_drops_what_destructors_spawn() {
    // A destructor that spawns while the list is being emptied must not leave a task behind, nor recurse for each one.
    struct Spawns(u32, Rc<Cell<u32>>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            self.1.set(self.1.get() + 1);
            if self.0 > 0 {
                let next = Spawns(self.0 - 1, Rc::clone(&self.1));
                Executor::with_current(|local| drop(spawn(local, hold(next)))).expect("closing enters");
            }
        }
    }
    async fn hold(spawns: Spawns) {
        let _spawns = spawns;
        pending::<()>().await;
    }
    let (local, _) = worker();
    let dropped = Rc::new(Cell::new(0));
    drop(spawn(&local, hold(Spawns(100_000, Rc::clone(&dropped)))));
    settle(&local);
    local.close();
    assert_eq!(dropped.get(), 100_001);
    assert_eq!(local.counters().alive, 0);
    let weak = Arc::downgrade(local.mailbox());
    drop(local);
    assert!(weak.upgrade().is_none(), "a header leaked");
}

#[test]
fn a_task_that_awaits_itself_ends_with_its_worker() {
    // Its own waker lies in its own slot: a circle that only cancelling breaks.
    let (local, _) = worker();
    let slot: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
    let handle = spawn(&local, {
        let slot = Rc::clone(&slot);
        async move {
            let own = slot.take().expect("put there before the first poll");
            let _ = own.await;
        }
    });
    *slot.borrow_mut() = Some(handle);
    settle(&local);
    assert_eq!(local.counters().alive, 1);
    let weak = Arc::downgrade(local.mailbox());
    drop(local);
    assert!(weak.upgrade().is_none(), "the circle was not broken");
}

#[test]
fn an_operation_waits_as_the_task_without_a_waker() {
    // The waiter's count must keep the header past the task's end, and its wake must reach the ready queue.
    let (local, _) = worker();
    let waiters: Rc<RefCell<Vec<Waiter>>> = Rc::default();
    let polls = Rc::new(Cell::new(0));
    let handle = spawn(&local, {
        let (waiters, polls) = (Rc::clone(&waiters), Rc::clone(&polls));
        poll_fn(move |cx| {
            polls.set(polls.get() + 1);
            let waiter = Waiter::of(cx);
            assert!(matches!(waiter, Waiter::Task(_)) && waiter.will_wake(cx));
            let foreign = Waker::noop();
            assert!(matches!(Waiter::of(&Context::from_waker(foreign)), Waiter::Waker(_)));
            waiters.borrow_mut().push(waiter);
            if polls.get() == 2 { Poll::Ready(()) } else { Poll::Pending }
        })
    });
    settle(&local);
    let first = waiters.borrow_mut().pop().expect("it was polled");
    {
        let _entered = local.enter();
        first.wake();
    }
    assert_eq!(local.counters().wakes_local, 1);
    settle(&local);
    assert!(result(handle).is_ok());
    // One waiter is left, of a task that is complete, and outlives the worker's tasks (but not its thread).
    let weak = Arc::downgrade(local.mailbox());
    drop(local);
    assert!(weak.upgrade().is_some(), "the waiter counts");
    for waiter in waiters.take() {
        waiter.wake();
    }
    assert!(weak.upgrade().is_none(), "a header leaked");
}

#[test]
fn a_join_waker_is_replaced_and_dropped_with_the_handle() {
    // A handle that moved to another task must wake that one; a dropped one must not keep its waker alive.
    let (local, _) = worker();
    let [first, second] = [(), ()].map(|()| Arc::new(Counts::default()));
    let poll = |handle: &mut JoinHandle<()>, counts: &Arc<Counts>| {
        let waker = Waker::from(Arc::clone(counts));
        Pin::new(handle).poll(&mut Context::from_waker(&waker)).is_ready()
    };
    let mut moved = spawn(&local, async {});
    assert!(!poll(&mut moved, &first) && !poll(&mut moved, &second) && !poll(&mut moved, &second));
    assert_eq!(Arc::strong_count(&first), 1, "the old waker was dropped");
    let mut dropped = spawn(&local, async {});
    assert!(!poll(&mut dropped, &first));
    drop(dropped);
    assert_eq!(Arc::strong_count(&first), 1, "the handle took its waker along");
    settle(&local);
    assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
    assert!(poll(&mut moved, &first));
}

#[test]
fn a_join_waker_whose_clone_panics_costs_the_one_before_it_nothing() {
    // The slot is taken back before the clone, off the owner's thread; who waits next, there, must not take the waker in it for lent.
    let wakes = Arc::new(Counts::default());
    let first = Waker::from(Arc::clone(&wakes));
    let panicking = waker_that_meddles(|| panic!("a clone of the program's"));
    let (local, _) = worker();
    let mut handle = spawn(&local, yield_once());
    assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&first)).is_pending());
    let poll = || Pin::new(&mut handle).poll(&mut Context::from_waker(&panicking)).is_ready();
    catch_unwind(AssertUnwindSafe(poll)).expect_err("the clone panics");
    let entered = local.enter();
    assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&first)).is_pending());
    drop(entered);
    settle(&local);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "it was told of the end");
    assert!(look(&mut handle).is_ready());
    // One that stays in the slot, since nobody waits any more, goes with the task, whose memory another has next.
    let mut handle = spawn(&local, async {});
    assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&first)).is_pending());
    let poll = || Pin::new(&mut handle).poll(&mut Context::from_waker(&panicking)).is_ready();
    catch_unwind(AssertUnwindSafe(poll)).expect_err("the clone panics");
    settle(&local);
    let entered = local.enter();
    result(handle).expect("it has ended");
    assert_eq!(Arc::strong_count(&wakes), 2, "the test's, and its waker's");
    drop(entered);
}

#[test]
fn a_waker_that_panics_as_it_is_dropped_with_a_task_ends_no_turn() {
    let (local, _) = worker();
    // Ready in the poll in which it wakes itself: done, and still in the queue, where its owner's reference is the last.
    let mut handle = spawn(
        &local,
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Ready(())
        }),
    );
    let left = Waker::from(Arc::new(WakerBomb));
    assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&left)).is_pending());
    let panicking = waker_that_meddles(|| panic!("a clone of the program's"));
    let poll = || Pin::new(&mut handle).poll(&mut Context::from_waker(&panicking)).is_ready();
    catch_unwind(AssertUnwindSafe(poll)).expect_err("the clone panics");
    drop(left);
    let after = spawn(&local, async move { drop(handle) });
    settle(&local);
    assert!(result(after).is_ok());
    assert_eq!(local.counters().ready, 0);
}

#[test]
fn a_waker_that_panics_as_it_is_dropped_with_another_workers_task_ends_no_turn() {
    // The end of a task can give up the last reference to one of another worker, whose header is freed here: in the middle of a turn,
    // which a panic of what is left in it would end, and the worker with it.
    let ((one, _), (two, _)) = (worker(), worker());
    let gate = Rc::new(Cell::new(false));
    let ends = spawn(&one, {
        let gate = Rc::clone(&gate);
        async move {
            while !gate.get() {
                yield_once().await;
            }
        }
    });
    let ends = Rc::new(RefCell::new(ends));
    let mut waits = spawn(&two, {
        let ends = Rc::clone(&ends);
        poll_fn(move |cx| Pin::new(&mut *ends.borrow_mut()).poll(cx).map(drop))
    });
    for local in [&one, &two] {
        let _entered = local.enter();
        local.run(1);
    }
    // A waker is left in the slot of the one that waits, which is then aborted: all that refers to it is its waker, where it waits.
    let left = Waker::from(Arc::new(WakerBomb));
    assert!(Pin::new(&mut waits).poll(&mut Context::from_waker(&left)).is_pending());
    let panicking = waker_that_meddles(|| panic_any("a clone of the program's"));
    let poll = || Pin::new(&mut waits).poll(&mut Context::from_waker(&panicking)).is_ready();
    catch_unwind(AssertUnwindSafe(poll)).expect_err("the clone panics");
    drop(left);
    waits.abort();
    settle(&two);
    assert!(result(waits).is_err());
    gate.set(true);
    settle(&one);
    assert!(ends.borrow().is_finished());
}

#[test]
fn nobody_runs_between_the_polls_of_a_worker_that_a_task_drives() {
    // What is dropped there is neither the task's that drives, nor that of the one polled before.
    struct Says(Rc<RefCell<Vec<Option<TaskId>>>>);
    impl Drop for Says {
        fn drop(&mut self) {
            self.0.borrow_mut().push(id());
        }
    }
    let ((one, _), (two, _)) = (worker(), worker());
    let log = Rc::new(RefCell::new(Vec::new()));
    let outer = spawn(&one, {
        let log = Rc::clone(&log);
        async move {
            let _entered = two.enter();
            let tasks = [(); 3].map(|()| {
                let says = Says(Rc::clone(&log));
                spawn(&two, async move { drop(says) })
            });
            tasks[0].abort();
            tasks[2].abort();
            two.run(64);
            let second = tasks[1].id();
            log.borrow_mut().extend([id(), Some(second)]);
        }
    });
    let first = outer.id();
    settle(&one);
    let [before, inside, after, outer, second] = log.take()[..] else {
        panic!("three drops, and two at the end")
    };
    assert_eq!([before, after], [None, None]);
    assert_eq!((inside, outer), (second, Some(first)));
}

#[test]
fn two_workers_on_one_thread_keep_their_tasks_apart() {
    // Identity is the entered worker, not the thread: a waker of the other worker must go by the remote list.
    let (one, _) = worker();
    let (two, _) = worker();
    let waker = Rc::new(RefCell::new(None));
    let _handle = spawn(&one, {
        let waker = Rc::clone(&waker);
        poll_fn(move |cx| {
            *waker.borrow_mut() = Some(cx.waker().clone());
            Poll::<()>::Pending
        })
    });
    settle(&one);
    let _outer = one.enter();
    {
        let _inner = two.enter();
        waker.borrow().as_ref().expect("it was polled").wake_by_ref();
    }
    assert!(!one.has_ready() && !two.has_ready());
    assert_eq!(one.drain_remote(), 1);
    assert!(one.has_ready());
    waker.borrow().as_ref().expect("it was polled").wake_by_ref();
    assert_eq!(one.counters().wakes_local, 0, "it was ready already");
}

#[test]
#[should_panic(expected = "reverse order")]
fn guards_out_of_order_are_told_so() {
    // Putting back a pointer to a worker that is gone would be a use after free at the next wake.
    let ((one, _), (two, _)) = (worker(), worker());
    let outer = one.enter();
    let _inner = two.enter();
    drop(outer);
}

#[test]
fn many_threads_wake_and_send_while_the_worker_runs_and_closes() {
    // What the models cannot reach by size: thousands of wakes and tasks from several threads, and a close in between.
    const ROUNDS: usize = 200;
    for round in 0..ROUNDS {
        let (local, _) = worker();
        let mailbox = Arc::clone(local.mailbox());
        let weak = Arc::downgrade(&mailbox);
        let held = Arc::new(());
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let (mailbox, held) = (Arc::clone(&mailbox), Arc::clone(&held));
                thread::spawn(move || {
                    let mut handles = Vec::new();
                    for _ in 0..50 {
                        let held = Arc::clone(&held);
                        let start = move || async move {
                            let _held = held;
                            yield_once().await;
                        };
                        let (task, handle) = TaskRef::new_remote_at(start, &mailbox, Location::caller());
                        mailbox.push(task);
                        if handles.len() % 3 == 0 {
                            handle.abort();
                        }
                        handles.push(handle);
                    }
                    handles
                })
            })
            .collect();
        for _ in 0..round {
            let _entered = local.enter();
            local.drain_remote();
            local.run(64);
        }
        local.close();
        let handles: Vec<_> =
            senders.into_iter().map(|sender| sender.join().expect("it does not panic")).collect();
        for handle in handles.into_iter().flatten() {
            // Run, aborted, or cancelled because it came too late; but it has an answer, now that all senders are done
            // (the last of them may have swept for the others).
            assert!(result(handle).map_or_else(|error| error.is_cancelled(), |()| true));
        }
        drop((local, mailbox));
        assert_eq!(Arc::strong_count(&held), 1, "a closure or future leaked in round {round}");
        assert!(weak.upgrade().is_none(), "a header leaked in round {round}");
    }
}

#[test]
fn handles_are_send_when_what_they_yield_is() {
    // A compile-time claim: an output that must stay on its thread pins its handle there.
    fn send<T: Send + Sync>() {}
    send::<JoinHandle<u32>>();
    send::<super::AbortHandle>();
    send::<JoinError>();
    send::<TaskRef>();
}
