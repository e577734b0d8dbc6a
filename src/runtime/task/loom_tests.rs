//! The protocols of [`super`], in every interleaving that loom can make of them. Each model has its mutants.
//!
//! A model's threads: the *owner* (the model's main thread, which runs a [`Executor`]) and one or two others. Loom itself reports an
//! access that nothing orders, an `Arc` that was leaked (each header holds the mailbox's), and a deadlock; the models
//! assert the rest.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use loom::thread;

use super::{Executor, JoinError, JoinHandle, TaskRef};
use crate::runtime::mesh::mailbox::Mailbox;
use crate::runtime::spawner::Spawner;
use crate::sync::atomic::AtomicUsize;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Arc, model};

/// A worker without a driver.
fn worker() -> Rc<Executor> {
    Executor::new(Mailbox::new(&Spawner::new(1, false), 0, || ()))
}

/// A worker's turn.
fn turn(local: &Rc<Executor>) {
    let _entered = local.enter();
    local.drain_remote();
    local.run(4);
}

#[track_caller]
fn spawn<F: Future + 'static>(local: &Executor, future: F) -> JoinHandle<F::Output> {
    local.spawn(future, Location::caller())
}

/// Polls a handle once, by nobody's waker.
fn look<T>(handle: &mut JoinHandle<T>) -> Poll<Result<T, JoinError>> {
    Pin::new(handle).poll(&mut Context::from_waker(Waker::noop()))
}

/// A task that waits until it sees `sum` in `messages`, and gives its waker to `slot` at its first poll.
fn waits_for(
    sum: usize,
    messages: &Arc<[AtomicUsize; 2]>,
    slot: &Rc<std::cell::RefCell<Option<Waker>>>,
) -> impl Future<Output = ()> + use<> {
    let (messages, slot) = (messages.clone(), Rc::clone(slot));
    poll_fn(move |cx| {
        if slot.borrow().is_none() {
            *slot.borrow_mut() = Some(cx.waker().clone());
        }
        let seen: usize = messages.iter().map(|message| message.load(Relaxed)).sum();
        if seen == sum { Poll::Ready(()) } else { Poll::Pending }
    })
}

/// Messages (relaxed: only the wake publishes them), and a waker's slot.
type Messages = Arc<[AtomicUsize; 2]>;
fn messages() -> (Messages, Rc<std::cell::RefCell<Option<Waker>>>) {
    (Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]), Rc::default())
}

/// One thread writes and wakes twice while the owner polls. When all is over and the owner has had its turn, the task must
/// have seen the second message.
fn wake_against_poll() {
    let local = worker();
    let (messages, slot) = messages();
    let handle = spawn(&local, waits_for(2, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    let other = thread::spawn({
        let messages = messages.clone();
        move || {
            messages[0].store(1, Relaxed);
            waker.wake_by_ref();
            messages[0].store(2, Relaxed);
            waker.wake();
        }
    });
    turn(&local);
    if local.mailbox().doorbell().announce_sleep().is_err() {
        turn(&local);
    }
    other.join().expect("it does not panic");
    turn(&local);
    assert!(handle.is_finished(), "a wake was lost");
}

#[test]
fn loom_a_wake_during_a_poll_is_not_lost() {
    model::holds(wake_against_poll);
}

#[test]
fn loom_mutant_queued_until_polled() {
    model::catches("wake: queued until polled", wake_against_poll);
}

/// The message must be seen by the poll that its wake causes, before the threads meet in any other way.
fn wake_publishes() {
    let local = worker();
    let (messages, slot) = messages();
    let handle = spawn(&local, waits_for(1, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    let other = thread::spawn({
        let messages = messages.clone();
        move || {
            waker.wake_by_ref();
            messages[0].store(1, Relaxed);
            waker.wake();
        }
    });
    let polls = local.counters().polls;
    turn(&local);
    turn(&local);
    // Two wakes were seen: then the second poll came after the message.
    if local.counters().wakes_remote == 2 {
        assert!(handle.is_finished(), "a poll after the wake did not see what came before it");
    }
    assert!(local.counters().polls - polls <= 2);
    other.join().expect("it does not panic");
    turn(&local);
    assert!(handle.is_finished(), "a wake was lost");
}

#[test]
fn loom_a_poll_sees_what_came_before_its_wake() {
    model::holds(wake_publishes);
}

#[test]
fn loom_mutant_list_links_publish_nothing() {
    model::catches("list: link relaxed", wake_publishes);
}

/// Two threads wake the task at once. It is in the list at most once at a time, and sees both messages.
fn two_wakes() {
    let local = worker();
    let (messages, slot) = messages();
    let handle = spawn(&local, waits_for(2, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    let others = [0, 1].map(|number| {
        let (messages, waker) = (messages.clone(), waker.clone());
        thread::spawn(move || {
            messages[number].store(1, Relaxed);
            waker.wake_by_ref();
            drop(waker);
        })
    });
    drop(waker);
    turn(&local);
    let early = local.counters().wakes_remote;
    for other in others {
        other.join().expect("it does not panic");
    }
    let _entered = local.enter();
    let late = local.drain_remote();
    assert!(early <= 2 && late <= 1, "a task is in the list once");
    local.run(4);
    assert!(handle.is_finished(), "a wake was lost");
}

#[test]
fn loom_two_wakes_at_once_queue_once_and_lose_none() {
    model::holds(two_wakes);
}

#[test]
fn loom_mutant_flag_by_load_and_store() {
    model::catches("wake: load, then store", two_wakes);
}

/// A waker that finds the task queued relies on the poll to come to see its message.
fn wake_behind_a_wake() {
    let local = worker();
    let (messages, slot) = messages();
    let handle = spawn(&local, waits_for(1, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    // Not entered here, so this wake goes by the remote list: QUEUED is on.
    waker.wake_by_ref();
    let other = thread::spawn({
        let messages = messages.clone();
        move || {
            messages[0].store(1, Relaxed);
            waker.wake();
        }
    });
    turn(&local);
    other.join().expect("it does not panic");
    let rung = local.mailbox().doorbell().announce_sleep().is_err();
    assert!(rung || handle.is_finished(), "the wake relied on a poll that did not see its message");
    turn(&local);
    assert!(handle.is_finished());
}

#[test]
fn loom_a_wake_behind_a_wake_is_seen_by_the_same_poll() {
    model::holds(wake_behind_a_wake);
}

#[test]
fn loom_mutant_asked_without_release() {
    model::catches("wake: asked relaxed", wake_behind_a_wake);
}

#[test]
fn loom_mutant_taken_without_acquire() {
    model::catches("wake: taken without acquire", wake_behind_a_wake);
}

/// A wake comes while the task completes, its future is dropped, and the worker ends. Loom sees a leak or a use after free.
fn wake_against_completion() {
    let local = worker();
    let (messages, slot) = messages();
    messages[1].store(1, Relaxed);
    let handle = spawn(&local, waits_for(2, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    messages[0].store(1, Relaxed);
    {
        let _entered = local.enter();
        waker.wake_by_ref();
    }
    let other = thread::spawn(move || waker.wake());
    turn(&local);
    assert!(handle.is_finished());
    drop(local);
    drop(handle);
    other.join().expect("it does not panic");
}

#[test]
fn loom_a_wake_at_completion_and_close_leaks_nothing() {
    model::holds(wake_against_completion);
}

#[test]
fn loom_mutant_closed_list_left_alone() {
    model::catches("push: leave a closed list alone", wake_against_completion);
}

/// Two threads send tasks while the worker closes. Each task has an answer, and its closure is gone.
fn push_against_close() {
    let local = worker();
    let held = Arc::new(());
    let others = [(), ()].map(|()| {
        let (mailbox, held) = (local.mailbox().clone(), held.clone());
        thread::spawn(move || {
            let start = move || async move { drop(held) };
            let (task, handle) = TaskRef::new_remote_at(start, &mailbox, Location::caller());
            mailbox.push(task);
            handle
        })
    });
    local.close();
    drop(local);
    // Both first: one may have left its task to the sweep of the other.
    for mut handle in others.map(|other| other.join().expect("it does not panic")) {
        match look(&mut handle) {
            Poll::Ready(result) => assert!(result.expect_err("nobody runs it").is_cancelled()),
            Poll::Pending => panic!("a task was left in a closed list"),
        }
    }
    assert_eq!(Arc::strong_count(&held), 1, "its closure was left");
}

#[test]
fn loom_a_push_against_close_is_cancelled() {
    model::holds(push_against_close);
}

#[test]
fn loom_mutant_sent_task_left_in_closed_list() {
    model::catches("push: leave a closed list alone", push_against_close);
}

#[test]
fn loom_mutant_two_sweepers_at_once() {
    model::catches("sweep: everyone at once", push_against_close);
}

/// Two threads send tasks to a worker that runs. Both run, in whatever state of the list they were found.
fn push_against_take() {
    let local = worker();
    let others = [1, 2].map(|number| {
        let mailbox = local.mailbox().clone();
        thread::spawn(move || {
            let (task, handle) =
                TaskRef::new_remote_at(move || async move { number }, &mailbox, Location::caller());
            mailbox.push(task);
            handle
        })
    });
    turn(&local);
    let handles = others.map(|other| other.join().expect("it does not panic"));
    turn(&local);
    let sum: i32 = handles
        .into_iter()
        .map(|mut handle| match look(&mut handle) {
            Poll::Ready(result) => result.expect("it ran"),
            Poll::Pending => panic!("a task was lost in the list"),
        })
        .sum();
    assert_eq!(sum, 3);
}

#[test]
fn loom_pushes_against_take_lose_none() {
    model::holds(push_against_take);
}

#[test]
fn loom_mutant_list_link_relaxed() {
    model::catches("list: link relaxed", push_against_take);
}

#[test]
fn loom_mutant_list_swap_relaxed() {
    model::catches("list: swap relaxed", push_against_take);
}

#[test]
fn loom_mutant_list_next_relaxed() {
    model::catches("list: next relaxed", push_against_take);
}

/// Counts its wakes.
struct Counts(AtomicUsize);
impl std::task::Wake for Counts {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// The handle is polled, with two wakers, elsewhere, while the task completes. If the last poll was in vain, its waker must have
/// been woken by the time both are done.
fn join_against_completion() {
    let local = worker();
    let value = std::sync::Arc::new(());
    let mut handle = spawn(&local, {
        let value = std::sync::Arc::clone(&value);
        async move { value }
    });
    let other = thread::spawn(move || {
        let counts = [(), ()].map(|()| std::sync::Arc::new(Counts(AtomicUsize::new(0))));
        for counts in &counts {
            let waker = Waker::from(std::sync::Arc::clone(counts));
            if let Poll::Ready(result) = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)) {
                drop(result.expect("it ends"));
                return None;
            }
        }
        Some((handle, counts))
    });
    turn(&local);
    if let Some((mut handle, [_, last])) = other.join().expect("it does not panic") {
        assert_eq!(last.0.load(Relaxed), 1, "the joiner sleeps for ever");
        let Poll::Ready(result) = look(&mut handle) else { panic!("woken, and not complete") };
        drop(result.expect("it ends"));
        drop(handle);
        assert_eq!(std::sync::Arc::strong_count(&last), 1, "the waker was left in the slot");
    }
    assert_eq!(std::sync::Arc::strong_count(&value), 1, "the output was left in the cell");
}

#[test]
fn loom_a_join_against_completion_returns() {
    model::holds(join_against_completion);
}

#[test]
fn loom_mutant_no_look_after_lending() {
    model::catches("join: no look after lending", join_against_completion);
}

#[test]
fn loom_mutant_completion_relaxed() {
    model::catches("complete: relaxed", join_against_completion);
}

/// One thread takes the output, another only asks whether the task has ended: it sees what the task did, whoever wrote the word that
/// says so.
fn finished_is_seen_with_what_was_done() {
    let local = worker();
    let done = Arc::new(AtomicUsize::new(0));
    let mut handle = spawn(&local, {
        let done = Arc::clone(&done);
        async move { done.store(1, Relaxed) }
    });
    let asks = handle.abort_handle();
    let takes = thread::spawn(move || look(&mut handle).is_ready());
    let other =
        thread::spawn(move || assert!(!asks.is_finished() || done.load(Relaxed) == 1, "ended, and not done"));
    turn(&local);
    takes.join().expect("it does not panic");
    other.join().expect("it does not panic");
}

#[test]
fn loom_finished_is_seen_with_what_was_done() {
    model::holds(finished_is_seen_with_what_was_done);
}

#[test]
fn loom_mutant_taken_relaxed() {
    model::catches("taken: relaxed", finished_is_seen_with_what_was_done);
}

/// A handle is polled elsewhere, and then at home.
fn join_there_then_here() {
    let local = worker();
    let counts = std::sync::Arc::new(Counts(AtomicUsize::new(0)));
    let mut handle = spawn(&local, async {});
    let other = thread::spawn(move || {
        let pending = look(&mut handle).is_pending();
        (handle, pending)
    });
    let (mut handle, pending) = other.join().expect("it does not panic");
    assert!(pending, "nobody has polled the task");
    let waker = Waker::from(std::sync::Arc::clone(&counts));
    {
        let _entered = local.enter();
        assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    drop(waker);
    let drops = thread::spawn(move || handle);
    turn(&local);
    let mut handle = drops.join().expect("it does not panic");
    assert_eq!(counts.0.load(Relaxed), 1, "the joiner sleeps for ever");
    assert!(look(&mut handle).is_ready());
    drop(handle);
    assert_eq!(std::sync::Arc::strong_count(&counts), 1, "the waker was left in the slot");
}

#[test]
fn loom_a_join_there_and_then_here_returns() {
    model::holds(join_there_then_here);
}

/// The handle is polled and dropped elsewhere while the task completes. One of the two drops the output, and one the waker.
fn detach_against_completion() {
    let local = worker();
    let value = std::sync::Arc::new(());
    let counts = std::sync::Arc::new(Counts(AtomicUsize::new(0)));
    let mut handle = spawn(&local, {
        let value = std::sync::Arc::clone(&value);
        async move { value }
    });
    let waker = Waker::from(std::sync::Arc::clone(&counts));
    assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    let other = thread::spawn(move || drop(handle));
    turn(&local);
    other.join().expect("it does not panic");
    assert_eq!(std::sync::Arc::strong_count(&value), 1, "the output was left, or dropped twice");
    assert_eq!(std::sync::Arc::strong_count(&counts), 1, "the waker was left, or dropped twice");
}

#[test]
fn loom_a_detach_against_completion_leaves_nothing() {
    model::holds(detach_against_completion);
}

/// The handle is polled on the owner's thread, where a plain store lends the waker, and then moves to another thread, which polls it
/// again and drops it while the task completes.
fn join_here_then_there() {
    let local = worker();
    let value = std::sync::Arc::new(());
    let counts = std::sync::Arc::new(Counts(AtomicUsize::new(0)));
    let mut handle = spawn(&local, {
        let value = std::sync::Arc::clone(&value);
        async move { value }
    });
    let waker = Waker::from(std::sync::Arc::clone(&counts));
    {
        let _entered = local.enter();
        assert!(Pin::new(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let other = thread::spawn(move || {
        let polled = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker));
        drop((handle, waker));
        polled.map(|result| drop(result.expect("it ends"))).is_ready()
    });
    turn(&local);
    other.join().expect("it does not panic");
    assert_eq!(std::sync::Arc::strong_count(&value), 1, "the output was left, or dropped twice");
    assert_eq!(std::sync::Arc::strong_count(&counts), 1, "the waker was left, or dropped twice");
}

#[test]
fn loom_a_handle_that_moves_leaves_nothing() {
    model::holds(join_here_then_there);
}

#[test]
fn loom_mutant_plain_words_for_whoever_asks() {
    model::catches("owner: whoever asks", join_here_then_there);
}

#[test]
fn loom_mutant_detach_by_load_and_store() {
    model::catches("drop handle: load, then store", detach_against_completion);
}

/// Aborts from elsewhere, of a task that would wait for ever and is queued by a wake, and of one that is about to end by itself. Each
/// ends once, one way or the other.
fn abort_against_completion() {
    let local = worker();
    let (messages, slot) = messages();
    let endless = spawn(&local, waits_for(1, &messages, &slot));
    turn(&local);
    // Not entered here, so this wake goes by the remote list: QUEUED is on.
    slot.take().expect("it was polled").wake();
    let ends = spawn(&local, async {});
    let other = thread::spawn({
        let (endless, ends) = (endless.abort_handle(), ends.abort_handle());
        move || {
            endless.abort();
            ends.abort();
        }
    });
    turn(&local);
    other.join().expect("it does not panic");
    turn(&local);
    for (name, mut handle) in [("endless", endless), ("ends", ends)] {
        match look(&mut handle) {
            Poll::Ready(Ok(())) => assert_eq!(name, "ends"),
            Poll::Ready(Err(error)) => assert!(error.is_cancelled()),
            Poll::Pending => panic!("the abort of {name} was lost"),
        }
    }
    assert_eq!(local.counters().alive, 0);
}

#[test]
fn loom_an_abort_against_completion_ends_the_task_once() {
    model::holds(abort_against_completion);
}

#[test]
fn loom_mutant_abort_flag_after_request() {
    model::catches("abort: flag after the request", abort_against_completion);
}

/// The last references are given up on two threads at once, neither of them the owner's end. The cell is freed once.
fn last_references() {
    let local = worker();
    let (messages, slot) = messages();
    let handle = spawn(&local, waits_for(0, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    let other = thread::spawn(move || drop(waker));
    drop(handle);
    drop(local);
    other.join().expect("it does not panic");
}

#[test]
fn loom_the_last_reference_frees_once() {
    model::holds(last_references);
}

/// Two tasks of a set end on their worker while the set is polled elsewhere, with two wakers. Each end is told once; if the last
/// poll was in vain, its waker must have been woken since.
fn finished_against_poll() {
    let mut finished = super::Finished::new();
    let wakers = [0, 1].map(|place| finished.entry(place));
    let other = thread::spawn(move || {
        for waker in wakers {
            waker.wake_by_ref();
            waker.wake();
        }
    });
    let counts = [(), ()].map(|()| std::sync::Arc::new(Counts(AtomicUsize::new(0))));
    let (mut seen, mut places) = (Vec::new(), VecDeque::new());
    let mut waits = None;
    for counts in &counts {
        let waker = Waker::from(std::sync::Arc::clone(counts));
        waits = match finished.poll(&Context::from_waker(&waker), &mut places) {
            Poll::Ready(()) => None,
            Poll::Pending => Some(counts),
        };
        seen.extend(places.drain(..));
    }
    other.join().expect("it does not panic");
    // What nobody was told of while the other thread pushed must have woken the one who waited.
    if finished.take(&mut places)
        && let Some(last) = waits
    {
        assert_eq!(last.0.load(Relaxed), 1, "whoever waits sleeps for ever");
    }
    seen.extend(places.drain(..));
    assert_eq!(seen, [0, 1], "each end is told once, in order");
    drop(finished);
    assert!(counts.iter().all(|counts| std::sync::Arc::strong_count(counts) == 1), "a waker was left");
}

#[test]
fn loom_ends_against_poll_are_told_once() {
    model::holds(finished_against_poll);
}

#[test]
fn loom_mutant_wait_without_a_look() {
    model::catches("finished: wait without a look", finished_against_poll);
}

#[test]
fn loom_mutant_pushed_relaxed() {
    model::catches("finished: pushed relaxed", finished_against_poll);
}

/// Tasks end on two threads while the set is dropped on a third. What is pushed, before and after, is freed.
fn finished_against_drop() {
    let finished = super::Finished::new();
    let others = [0, 1].map(|place| {
        let waker = finished.entry(place);
        thread::spawn(move || waker.wake())
    });
    drop(finished);
    for other in others {
        other.join().expect("it does not panic");
    }
}

#[test]
fn loom_ends_against_drop_are_freed() {
    model::holds(finished_against_drop);
}

#[test]
fn loom_mutant_list_left_open() {
    model::catches("finished: leave it open", finished_against_drop);
}

#[test]
fn loom_mutant_stock_left_in_the_cell() {
    model::catches("let go: only one", last_references);
}

/// References come out of the owner's stock and go back to it while another thread gives up one from there: the sum stays right.
fn stock_against_elsewhere() {
    let local = worker();
    let (messages, slot) = messages();
    let handle = spawn(&local, waits_for(1, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    let other = thread::spawn({
        let waker = waker.clone();
        move || drop(waker.clone())
    });
    messages[0].store(1, Relaxed);
    {
        let _entered = local.enter();
        // Made elsewhere (nobody was entered), or here: they all go back to the stock.
        drop(waker.clone());
        waker.wake();
        local.run(4);
        drop(handle);
    }
    other.join().expect("it does not panic");
}

#[test]
fn loom_references_made_here_and_dropped_there_add_up() {
    model::holds(stock_against_elsewhere);
}

#[test]
fn loom_mutant_stock_for_whoever_asks() {
    model::catches("owner: whoever asks", stock_against_elsewhere);
}

/// A finished task is given back while another task is woken. Who gives back may stand still half way, so
/// that the owner finds the woken task behind a gap, and goes to sleep: then it must be rung for it.
fn give_back_against_wake() {
    let unparks = Arc::new(AtomicUsize::new(0));
    let unpark = Arc::clone(&unparks);
    let mailbox = Mailbox::new(&Spawner::new(1, false), 0, move || {
        unpark.fetch_add(1, Relaxed);
    });
    let local = Executor::new(mailbox);
    let (messages, slot) = messages();
    let handle = spawn(&local, waits_for(1, &messages, &slot));
    turn(&local);
    let waker = slot.take().expect("it was polled");
    // To the list all nodes are alike: one that was never polled stands for one that has ended.
    let (other, other_handle) = TaskRef::new_remote_at(|| async {}, local.mailbox(), Location::caller());
    let giver = thread::spawn({
        let mailbox = Arc::clone(local.mailbox());
        move || mailbox.give_back(other.into_counted())
    });
    let woken = thread::spawn({
        let messages = messages.clone();
        move || {
            messages[0].store(1, Relaxed);
            waker.wake();
        }
    });
    turn(&local);
    let sleeps = local.mailbox().doorbell().announce_sleep().is_ok();
    giver.join().expect("it does not panic");
    woken.join().expect("it does not panic");
    if sleeps {
        assert!(handle.is_finished() || unparks.load(Relaxed) > 0, "it sleeps, and its task is ready");
        let _ = local.mailbox().doorbell().wake_up();
    }
    turn(&local);
    assert!(handle.is_finished(), "a wake was lost");
    drop(other_handle);
}

#[test]
fn loom_a_wake_behind_a_task_given_back_is_rung_for() {
    model::holds(give_back_against_wake);
}

#[test]
fn loom_mutant_given_back_without_a_ring() {
    model::catches("give back: ring nobody", give_back_against_wake);
}
