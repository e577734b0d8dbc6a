//! Two workers on one thread, and programs drawn at random: what the tests of single claims did not think of.
//!
//! Polls, destructors of futures and destructors of outputs all do the same few things to whatever there is: spawn here, there, from afar
//! and for any worker, of both classes; await, abort, wake, wait as an operation does, drop handles and wakers; take turns of the other
//! worker, inside of the poll; and panic. Now and then everything settles, and then the books must agree: each poll and each living task is
//! counted, each task that lives is shown, nobody waits for an end that has come or a wake that was given. In the end each worker closes,
//! in the middle of whatever there is, and then no future, no output and no header is left.
//!
//! `SEED=7 SEEDS=1 cargo test -p veloq --lib runtime::task::random` plays one program again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::mem;
use std::panic::{Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use fastrand::Rng;

use super::{Class, Executor, JoinHandle, Label, TaskRef, id};
use crate::io::driver::waiter::Waiter;
use crate::runtime::mesh::mailbox::Mailbox;
use crate::runtime::spawner::Spawner;

thread_local! {
    /// Where the program is. Never borrowed while tasks or destructors run.
    static WORLD: RefCell<World> = RefCell::new(World::default());
}

/// All that the program holds outside of its tasks, and what should be true of them.
#[derive(Default)]
struct World {
    random: Rng,
    workers: Vec<Rc<Executor>>,
    /// Whose turns are under way, the innermost last.
    turning: Vec<usize>,
    /// Tasks so far; the last one's number.
    tasks: u64,
    /// Those whose future is there.
    alive: HashMap<u64, Alive>,
    /// Outputs that are there.
    outputs: usize,
    /// Polls of each worker.
    polls: [u64; 2],
    handles: Vec<JoinHandle<Output>>,
    wakers: Vec<(u64, Waker)>,
    waiters: Vec<(u64, Waiter)>,
    /// How deep things that are done are inside one another.
    depth: usize,
    /// Nothing is done any more: the program ends.
    over: bool,
}

/// What should be true of a task.
#[derive(Default)]
struct Alive {
    /// Which worker it belongs to.
    worker: usize,
    /// It was woken, and not polled since.
    woken: bool,
    /// It was last polled pending by this one.
    awaits: Option<JoinHandle<Output>>,
}

fn world<R>(look: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with_borrow_mut(look)
}

/// A number below `n`.
fn draw(n: usize) -> usize {
    world(|world| world.random.usize(..n))
}

/// One of a list, which is taken out of it.
fn draw_from<T>(list: impl FnOnce(&mut World) -> &mut Vec<T>) -> Option<T> {
    let at = world(|world| world.random.usize(..));
    world(|world| {
        let list = list(world);
        (!list.is_empty()).then(|| list.swap_remove(at % list.len()))
    })
}

/// Panics, if nothing panics already. Without the hook, whose text nobody needs.
fn panic_quietly(what: &'static str) {
    if !thread::panicking() && !world(|world| world.over) {
        resume_unwind(Box::new(what));
    }
}

/// What a task returns.
struct Output(u64);

impl Drop for Output {
    fn drop(&mut self) {
        world(|world| world.outputs -= 1);
        act(None);
        if self.0 % 50 == 7 {
            panic_quietly("an output");
        }
    }
}

/// A task's future.
struct Random(u64);

impl Random {
    /// A task for that worker.
    fn of(worker: usize) -> Random {
        world(|world| {
            world.tasks += 1;
            world.alive.insert(world.tasks, Alive { worker, ..Alive::default() });
            Random(world.tasks)
        })
    }
}

impl Drop for Random {
    fn drop(&mut self) {
        let alive = world(|world| world.alive.remove(&self.0)).expect("it is dropped once");
        drop(alive);
        act(None);
        if self.0 % 40 == 3 {
            panic_quietly("a future");
        }
    }
}

impl Future for Random {
    type Output = Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Output> {
        let number = self.0;
        let awaited = world(|world| {
            let alive = world.alive.get_mut(&number).expect("it is there as long as its future");
            alive.woken = false;
            world.polls[alive.worker] += 1;
            alive.awaits.take()
        });
        if let Some(handle) = awaited {
            wait_for(number, handle, cx);
        }
        for _ in 0..draw(4) {
            act(Some((number, cx)));
        }
        match draw(10) {
            0..3 => {
                world(|world| world.outputs += 1);
                return Poll::Ready(Output(number));
            }
            3 => panic_quietly("a poll"),
            4..6 => {
                note_wake(number);
                cx.waker().wake_by_ref();
            }
            _ => {}
        }
        Poll::Pending
    }
}

/// Notes that a task is woken.
fn note_wake(number: u64) {
    world(|world| {
        if let Some(alive) = world.alive.get_mut(&number) {
            alive.woken = true;
        }
    });
}

/// Has the task of that number, which is being polled, wait for another.
fn wait_for(number: u64, mut handle: JoinHandle<Output>, cx: &mut Context<'_>) {
    match Pin::new(&mut handle).poll(cx) {
        Poll::Ready(output) => drop(output),
        Poll::Pending => {
            let before = world(|world| {
                world.alive.get_mut(&number).expect("it is being polled").awaits.replace(handle)
            });
            drop(before);
        }
    }
}

fn label() -> Label {
    let class = if draw(4) == 0 { Class::Background } else { Class::Foreground };
    Label::from(Location::caller()).of_class(class)
}

/// A new task, for that worker or for any.
fn spawn(at: usize) -> JoinHandle<Output> {
    let worker = world(|world| Rc::clone(&world.workers[at]));
    let future = Random::of(at);
    match draw(3) {
        0 => worker.spawn(future, label()),
        1 => {
            let (task, handle) = TaskRef::new_remote_at(move || future, worker.mailbox(), label());
            worker.mailbox().push(task);
            handle
        }
        _ => {
            let (task, handle) = TaskRef::new_stealable(future, label());
            worker.mailbox().place(task);
            handle
        }
    }
}

/// Does something; in the poll of the task of that number, if in one.
fn act(polled: Option<(u64, &mut Context<'_>)>) {
    /// Bounds what is done by what is done.
    struct Deeper;
    impl Drop for Deeper {
        fn drop(&mut self) {
            world(|world| world.depth -= 1);
        }
    }
    if world(|world| world.over || world.depth > 12) {
        return;
    }
    world(|world| world.depth += 1);
    let _deeper = Deeper;
    let at = draw(2);
    if world(|world| world.workers.len() <= at) {
        return;
    }
    let has_room = world(|world| world.alive.len() < 40);
    match (draw(16), polled) {
        (0..2, Some((number, cx))) if has_room => {
            let Some(here) = world(|world| world.turning.last().copied()) else { return };
            let handle = Executor::spawn_here(Random::of(here), label()).expect("a worker is entered");
            wait_for(number, handle, cx);
        }
        (0..4, _) if has_room => {
            let handle = spawn(at);
            if draw(2) == 0 {
                world(|world| world.handles.push(handle));
            }
        }
        (4..6, _) => {
            let Some((number, waker)) = draw_from(|world| &mut world.wakers) else { return };
            note_wake(number);
            if draw(2) == 0 {
                waker.wake();
            } else {
                waker.wake_by_ref();
                world(|world| world.wakers.push((number, waker)));
            }
        }
        (6, _) => drop(draw_from(|world| &mut world.wakers)),
        (7, _) => {
            let Some(handle) = draw_from(|world| &mut world.handles) else { return };
            handle.abort();
            world(|world| world.handles.push(handle));
        }
        (8, Some((_, cx))) => {
            let Some(mut handle) = draw_from(|world| &mut world.handles) else { return };
            match Pin::new(&mut handle).poll(cx) {
                Poll::Pending => world(|world| world.handles.push(handle)),
                Poll::Ready(output) => drop(output),
            }
        }
        (9, _) => drop(draw_from(|world| &mut world.handles)),
        (10, Some((number, cx))) => {
            let waker = cx.waker().clone();
            world(|world| world.wakers.push((number, waker)));
        }
        (11, Some((number, cx))) => {
            let waiter = Waiter::of(cx);
            world(|world| world.waiters.push((number, waiter)));
        }
        (12, _) => {
            let Some((number, waiter)) = draw_from(|world| &mut world.waiters) else { return };
            if draw(2) == 0 {
                note_wake(number);
                waiter.wake();
            }
        }
        (13..15, _) => {
            let budget = 1 + draw(6);
            turn(at, budget);
        }
        (15, Some((number, cx))) => {
            let Some(handle) = draw_from(|world| &mut world.handles) else { return };
            wait_for(number, handle, cx);
        }
        _ => {}
    }
}

/// Takes a turn of that worker, unless one is under way. Whether another would find something to do.
fn turn(at: usize, budget: usize) -> bool {
    if world(|world| world.turning.contains(&at)) {
        return false;
    }
    let worker = world(|world| Rc::clone(&world.workers[at]));
    let outer = id();
    world(|world| world.turning.push(at));
    let entered = worker.enter();
    let mut done = worker.drain_remote() + worker.run(budget);
    if worker.has_background() && draw(2) == 0 {
        done += usize::from(worker.run_background());
    }
    drop(entered);
    world(|world| world.turning.pop());
    assert_eq!(id(), outer, "the outer task runs again");
    done > 0 || worker.has_ready()
}

/// Takes turns until nothing is ready, and looks whether the books agree.
fn settle() {
    let mut turns_left = 10_000;
    while turn(0, 64) | turn(1, 64) {
        turns_left -= 1;
        if turns_left == 0 {
            return;
        }
    }
    for at in 0..2 {
        let worker = world(|world| Rc::clone(&world.workers[at]));
        let alive = world(|world| world.alive.values().filter(|alive| alive.worker == at).count());
        let counters = worker.counters();
        assert_eq!((counters.polls, counters.alive), (world(|world| world.polls[at]), alive));
        let mut shown = 0;
        worker.each_task(|_, _| shown += 1);
        assert_eq!(shown, alive);
    }
    let forgotten = world(|world| {
        let is_over = |alive: &Alive| alive.awaits.as_ref().is_some_and(JoinHandle::is_finished);
        world.alive.iter().find(|(_, alive)| alive.woken || is_over(alive)).map(|(number, _)| *number)
    });
    assert_eq!(forgotten, None, "a task that was woken, or whose other has ended, waits");
}

/// Plays a program.
fn play(seed: u64) {
    let spawners = [Spawner::new(1, false), Spawner::new(1, false)];
    let mailboxes = spawners.map(|spawner| Mailbox::new(&spawner, 0, || ()));
    let left = mailboxes.each_ref().map(Arc::downgrade);
    let workers = mailboxes.map(Executor::new).into();
    world(|world| *world = World { random: Rng::with_seed(seed), workers, ..World::default() });
    for _ in 0..6 {
        for _ in 0..12 {
            // What is dropped here is nobody's, and so is its panic.
            drop(catch_unwind(|| act(None)));
            turn(draw(2), 1 + draw(8));
        }
        if draw(3) == 0 {
            settle();
        }
    }
    let workers = world(|world| world.workers.clone());
    if draw(2) == 0 {
        for (at, worker) in workers.iter().enumerate() {
            let _entered = worker.enter();
            world(|world| world.turning.push(at));
            worker.close();
            world(|world| world.turning.pop());
        }
    }
    world(|world| world.over = true);
    let held = world(|world| {
        (mem::take(&mut world.waiters), mem::take(&mut world.handles), mem::take(&mut world.wakers))
    });
    drop(held);
    for worker in &workers {
        worker.close();
    }
    world(|world| world.workers.clear());
    drop(workers);
    assert_eq!(
        world(|world| (world.alive.len(), world.outputs)),
        (0, 0),
        "futures and outputs that are left"
    );
    let counts = left.map(|mailbox| mailbox.strong_count());
    assert_eq!(counts, [0, 0], "a header is left, with a reference to its mailbox");
}

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_program_loses_or_leaves_a_task() {
    let first = given("SEED").unwrap_or(0);
    for seed in first..first + given("SEEDS").unwrap_or(1_000) {
        if catch_unwind(|| play(seed)).is_err() {
            // What is left does things, too, when it is dropped.
            mem::forget(WORLD.take());
            panic!("the program of SEED={seed} fails, as said above");
        }
    }
}
