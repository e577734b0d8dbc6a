//! What the runtime's own steps cost, in process: `cargo bench`.
//!
//! Each sample asks a worker, which lives as long as the program, for so many steps that the asking (some ten microseconds) does
//! not count: [`STEPS`] of what takes a microsecond, [`SHORT_STEPS`] of what takes a few nanoseconds. Look at the items per
//! second. They belong to the machine, and are for comparing with each other, and with those before a change.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::io::Write;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use veloq::fs::File;
use veloq::io::buf::FixedBuf;
use veloq::io::op::misc::nop;
use veloq::mesh;
use veloq::runtime::{Builder, Handle};
use veloq::task::{self, Class, yield_now};
use veloq::time::timeout;
use veloq::{WorkerId, spawn, spawn_local, spawn_to};

/// Steps of one sample that go through the kernel or to another worker.
const STEPS: u64 = 10_000;

/// Steps of one sample that stay on their worker.
const SHORT_STEPS: u64 = 200_000;

/// Bytes of a block: the smallest that Direct I/O takes, and the size of a page.
const BLOCK: usize = 4096;

fn main() {
    divan::main();
}

/// A runtime of two workers on threads of its own, for as long as the program runs.
static RUNTIME: LazyLock<Handle> = LazyLock::new(|| start(Builder::new().workers(2)));

fn start(builder: Builder) -> Handle {
    let (handles, handle) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = builder.build().expect("this kernel has io_uring");
        handles.send(runtime.handle()).expect("the program waits for it");
        runtime.block_on(std::future::pending::<()>());
    });
    handle.recv().expect("the runtime starts")
}

/// Measures what `steps` does on worker 0, which is `count` steps.
fn measure<F>(bencher: Bencher<'_, '_>, count: u64, steps: F)
where
    F: AsyncFn() + Copy + Send + Sync + 'static,
{
    bencher
        .counter(ItemsCount::new(count))
        .bench(|| wait(RUNTIME.spawn_to(WorkerId::new(0), async move || steps().await)).expect("no panic"));
}

/// Waits on this thread.
fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// To the kernel and back, one at a time: each costs an entry of its own.
#[divan::bench]
fn nop_alone(bencher: Bencher<'_, '_>) {
    measure(bencher, STEPS, async || {
        for _ in 0..STEPS {
            nop().await.expect("the kernel has nothing against it");
        }
    });
}

/// To the kernel and back, a hundred at a time: one entry for all.
#[divan::bench]
fn nop_of_a_hundred(bencher: Bencher<'_, '_>) {
    measure(bencher, STEPS, async || {
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                spawn_local(async {
                    for _ in 0..STEPS / 100 {
                        nop().await.expect("the kernel has nothing against it");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    });
}

#[divan::bench]
fn spawn_and_join(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        for step in 0..SHORT_STEPS {
            black_box(spawn_local(async move { step }).await.expect("no panic"));
        }
    });
}

/// The same for a task that another worker may take.
#[divan::bench]
fn spawn_and_join_stealable(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        for step in 0..SHORT_STEPS {
            black_box(spawn(async move { step }).await.expect("no panic"));
        }
    });
}

/// The same on a bare queue, with the cell of the crate `async-task`: what a cell of our own is compared with. (The queue is the least
/// there can be; ours is measured with the whole runtime around it.)
#[divan::bench]
fn spawn_and_join_async_task(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(SHORT_STEPS)).bench_local(|| {
        let spawner = async {
            for step in 0..SHORT_STEPS {
                black_box(bare::spawn(async move { step }).await);
            }
        };
        bare::spawn(spawner).detach();
        bare::run();
    });
}

/// A thousand tasks at a time.
#[divan::bench]
fn spawn_and_join_a_thousand(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        for _ in 0..SHORT_STEPS / 1_000 {
            let tasks: Vec<_> = (0..1_000).map(|step| spawn_local(async move { step })).collect();
            for task in tasks {
                black_box(task.await.expect("no panic"));
            }
        }
    });
}

/// See `spawn_and_join_a_thousand`.
#[divan::bench]
fn spawn_and_join_a_thousand_async_task(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(SHORT_STEPS)).bench_local(|| {
        let spawner = async {
            for _ in 0..SHORT_STEPS / 1_000 {
                let tasks: Vec<_> = (0..1_000).map(|step| bare::spawn(async move { step })).collect();
                for task in tasks {
                    black_box(task.await);
                }
            }
        };
        bare::spawn(spawner).detach();
        bare::run();
    });
}

/// See `yields`.
#[divan::bench(args = [1, 1_000])]
fn yields_stealable(bencher: Bencher<'_, '_>, tasks: u64) {
    let each = SHORT_STEPS / tasks;
    bencher.counter(ItemsCount::new(each * tasks)).bench(|| {
        let work = async move || {
            let tasks: Vec<_> = (0..tasks).map(|_| spawn(yield_often(each))).collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        };
        wait(RUNTIME.spawn_to(WorkerId::new(0), work)).expect("no panic");
    });
}

/// See `yields`.
#[divan::bench(args = [1, 1_000])]
fn yields_async_task(bencher: Bencher<'_, '_>, tasks: u64) {
    let each = SHORT_STEPS / tasks;
    bencher.counter(ItemsCount::new(each * tasks)).bench_local(|| {
        for _ in 0..tasks {
            bare::spawn(yield_often(each)).detach();
        }
        bare::run();
    });
}

async fn yield_often(times: u64) {
    for _ in 0..times {
        yield_now().await;
    }
}

/// See `wakes_here`.
#[divan::bench]
fn wakes_async_task(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(SHORT_STEPS)).bench_local(|| {
        let turn = Rc::new(Turn::default());
        bare::spawn(Rc::clone(&turn).play(1, SHORT_STEPS / 2)).detach();
        bare::spawn(turn.play(0, SHORT_STEPS / 2)).detach();
        bare::run();
    });
}

/// The least executor there is: a queue of this thread.
mod bare {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use async_task::{Runnable, Task};

    thread_local! {
        static QUEUE: RefCell<VecDeque<Runnable>> = const { RefCell::new(VecDeque::new()) };
    }

    pub(super) fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
        let push = |runnable| QUEUE.with_borrow_mut(|queue| queue.push_back(runnable));
        let (runnable, task) = async_task::spawn_local(future, push);
        runnable.schedule();
        task
    }

    /// Runs what is ready, until nothing is.
    pub(super) fn run() {
        while let Some(runnable) = QUEUE.with_borrow_mut(VecDeque::pop_front) {
            runnable.run();
        }
    }
}

/// A poll and a place at the end of the queue, with so many in it.
#[divan::bench(args = [1, 1_000])]
fn yields(bencher: Bencher<'_, '_>, tasks: u64) {
    yields_on(bencher, &RUNTIME, tasks);
}

/// The same in a runtime whose polls are watched: what stall reports cost those who ask for them.
#[divan::bench(args = [1, 1_000])]
fn yields_watched(bencher: Bencher<'_, '_>, tasks: u64) {
    static WATCHED: LazyLock<Handle> =
        LazyLock::new(|| start(Builder::new().workers(2).stall_threshold(Duration::from_secs(1))));
    yields_on(bencher, &WATCHED, tasks);
}

/// The same beside a background task that is always ready: what the look at its share costs, and the share.
#[divan::bench(args = [1, 1_000])]
fn yields_beside_background(bencher: Bencher<'_, '_>, tasks: u64) {
    let each = SHORT_STEPS / tasks;
    bencher.counter(ItemsCount::new(each * tasks)).bench(|| {
        let work = async move || {
            let background = task::Builder::new().class(Class::Background).spawn_local(yield_often(u64::MAX));
            yield_together(tasks, each).await;
            background.abort();
        };
        wait(RUNTIME.spawn_to(WorkerId::new(0), work)).expect("no panic");
    });
}

fn yields_on(bencher: Bencher<'_, '_>, runtime: &Handle, tasks: u64) {
    let each = SHORT_STEPS / tasks;
    bencher.counter(ItemsCount::new(each * tasks)).bench(|| {
        let work = async move || yield_together(tasks, each).await;
        wait(runtime.spawn_to(WorkerId::new(0), work)).expect("no panic");
    });
}

/// So many tasks yield so often each.
async fn yield_together(tasks: u64, each: u64) {
    let tasks: Vec<_> = (0..tasks).map(|_| spawn_local(yield_often(each))).collect();
    for task in tasks {
        task.await.expect("no panic");
    }
}

/// Two tasks that wake each other, by turns.
#[divan::bench]
fn wakes_here(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        let turn = Rc::new(Turn::default());
        let other = spawn_local(Rc::clone(&turn).play(1, SHORT_STEPS / 2));
        turn.play(0, SHORT_STEPS / 2).await;
        other.await.expect("no panic");
    });
}

/// To the other worker and back, one at a time: both ends sleep in between.
#[divan::bench]
fn round_trip_to_another_worker(bencher: Bencher<'_, '_>) {
    measure(bencher, STEPS / 10, async || {
        for step in 0..STEPS / 10 {
            let answer = spawn_to(WorkerId::new(1), async move || step);
            black_box(answer.await.expect("no panic"));
        }
    });
}

/// The same, a hundred at a time.
#[divan::bench]
fn round_trips_of_a_hundred(bencher: Bencher<'_, '_>) {
    measure(bencher, STEPS, async || {
        for _ in 0..STEPS / 100 {
            let answers: Vec<_> =
                (0..100).map(|step| spawn_to(WorkerId::new(1), async move || step)).collect();
            for answer in answers {
                black_box(answer.await.expect("no panic"));
            }
        }
    });
}

/// Values to the other worker, one after another, as fast as they go.
#[divan::bench]
fn channel_one_way(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        let (mut sender, mut receiver) = mesh::channel(1024);
        let reads = spawn_to(WorkerId::new(1), async move || {
            while let Some(step) = receiver.recv().await {
                black_box(step);
            }
        });
        for step in 0..SHORT_STEPS {
            sender.send(step).await.expect("it is being read");
        }
        drop(sender);
        reads.await.expect("no panic");
    });
}

/// A value to the other worker and back, one at a time: both look out for it, if that has paid lately.
#[divan::bench]
fn channel_ping_pong(bencher: Bencher<'_, '_>) {
    ping_pong(bencher, &RUNTIME, STEPS);
}

/// The same between workers that sleep.
#[divan::bench]
fn channel_ping_pong_asleep(bencher: Bencher<'_, '_>) {
    static SLEEPY: LazyLock<Handle> = LazyLock::new(|| start(Builder::new().workers(2).spin(Duration::ZERO)));
    ping_pong(bencher, &SLEEPY, STEPS / 10);
}

fn ping_pong(bencher: Bencher<'_, '_>, runtime: &Handle, count: u64) {
    bencher.counter(ItemsCount::new(count)).bench(|| {
        let work = async move || {
            let (mut pings, mut pinged) = mesh::channel(16);
            let (mut pongs, mut ponged) = mesh::channel(16);
            let echo = spawn_to(WorkerId::new(1), async move || {
                while let Some(step) = pinged.recv().await {
                    pongs.send(step).await.expect("it is being read");
                }
            });
            for step in 0..count {
                pings.send(step).await.expect("it is being read");
                black_box(ponged.recv().await);
            }
            drop(pings);
            echo.await.expect("no panic");
        };
        wait(runtime.spawn_to(WorkerId::new(0), work)).expect("no panic");
    });
}

/// Values of every worker to one, over a mesh.
#[divan::bench]
fn mesh_many_to_one(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        let mut ends = mesh::full(1024).into_iter().map(mesh::Mesh::split);
        let (own, mut receiver) = ends.next().expect("there is worker 0");
        let others: Vec<_> = veloq::workers()
            .zip(std::iter::once(own).chain(ends.map(|(senders, _receiver)| senders)))
            .map(|(worker, senders)| {
                spawn_to(worker, async move || {
                    let mut sender = senders.into_iter().next().expect("there is worker 0");
                    for step in 0..SHORT_STEPS / 2 {
                        sender.send(step).await.expect("it is being read");
                    }
                })
            })
            .collect();
        while let Some(step) = receiver.recv().await {
            black_box(step);
        }
        for other in others {
            other.await.expect("no panic");
        }
    });
}

/// A question to the other worker and its answer, one at a time.
#[divan::bench]
fn question_and_answer(bencher: Bencher<'_, '_>) {
    measure(bencher, STEPS, async || {
        let (mut questions, mut asked) = mesh::channel::<(u64, mesh::Reply<u64>)>(16);
        let answers = spawn_to(WorkerId::new(1), async move || {
            while let Some((step, reply)) = asked.recv().await {
                reply.send(step).expect("somebody waits");
            }
        });
        for step in 0..STEPS {
            let (reply, answer) = mesh::reply();
            questions.send((step, reply)).await.expect("it is being read");
            black_box(answer.await.expect("it is answered"));
        }
        drop(questions);
        answers.await.expect("no panic");
    });
}

/// A deadline that is set and not met, as with nearly every request.
#[divan::bench]
fn timeout_made_and_dropped(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        for _ in 0..SHORT_STEPS {
            timeout(Duration::from_secs(30), yield_now()).await.expect("it is quick");
        }
    });
}

#[divan::bench]
fn buffer_of_the_pool(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        for _ in 0..SHORT_STEPS {
            black_box(veloq::alloc(BLOCK));
        }
    });
}

#[divan::bench]
fn buffer_of_the_heap(bencher: Bencher<'_, '_>) {
    measure(bencher, SHORT_STEPS, async || {
        for _ in 0..SHORT_STEPS {
            black_box(Vec::<u8>::with_capacity(BLOCK));
        }
    });
}

/// A block that is in the page cache, read into a buffer that the kernel knows beforehand.
#[divan::bench]
fn read_into_a_buffer_of_the_pool(bencher: Bencher<'_, '_>) {
    measure(bencher, STEPS, async || {
        let file = cached_file();
        let mut buf: FixedBuf = veloq::alloc(BLOCK);
        for step in 0..STEPS {
            let (read, back) = file.read_at(buf, offset(step)).await;
            assert_eq!(read.expect("it can be read"), BLOCK);
            buf = back;
        }
    });
}

/// The same into memory that it has to look up first.
#[divan::bench]
fn read_into_a_buffer_of_the_heap(bencher: Bencher<'_, '_>) {
    measure(bencher, STEPS, async || {
        let file = cached_file();
        let mut buf = Vec::with_capacity(BLOCK);
        for step in 0..STEPS {
            let (read, back) = file.read_at(buf, offset(step)).await;
            assert_eq!(read.expect("it can be read"), BLOCK);
            buf = back;
        }
    });
}

/// The same by the system call, which blocks: what there is to be compared with.
#[cfg(unix)]
#[divan::bench]
fn read_by_system_call(bencher: Bencher<'_, '_>) {
    use std::os::unix::fs::FileExt;

    let mut buf = [0; BLOCK];
    bencher.counter(ItemsCount::new(STEPS)).bench_local(|| {
        for step in 0..STEPS {
            CACHED.read_exact_at(&mut buf, offset(step)).expect("it can be read");
        }
    });
}

/// A file of a megabyte, just written and so in the page cache, without a name.
static CACHED: LazyLock<std::fs::File> = LazyLock::new(|| {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&vec![7; BLOCK * 256]).expect("there is room");
    file
});

fn cached_file() -> File {
    File::from_std(CACHED.try_clone().expect("a descriptor"))
}

fn offset(step: u64) -> u64 {
    (step % 256) * BLOCK as u64
}

/// Whose turn it is of two, and who waits for it.
#[derive(Default)]
struct Turn {
    of: RefCell<u64>,
    waits: RefCell<Option<Waker>>,
}

impl Turn {
    async fn play(self: Rc<Turn>, player: u64, times: u64) {
        for _ in 0..times {
            poll_fn(|cx| {
                if *self.of.borrow() % 2 == player {
                    return Poll::Ready(());
                }
                *self.waits.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            *self.of.borrow_mut() += 1;
            if let Some(other) = self.waits.borrow_mut().take() {
                other.wake();
            }
        }
    }
}
