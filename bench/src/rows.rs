//! What is measured: each row once, for every peer.
//!
//! A row is a function that is generic over the peer, so that all of them do the same work. It warms up, starts the clocks
//! inside of the runtime, and stops them there, so that neither making nor ending a runtime counts.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::hint::black_box;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;

use crate::measure::{Sample, start};

/// One thread's worth of a runtime.
pub trait Peer: 'static {
    /// Runs a future on a pinned thread's runtime, as its first task.
    fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T;

    /// Spawns a task on this thread, and yields what it returns.
    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + 'static
    where
        F: Future + 'static,
        F::Output: 'static;
}

/// Time.
pub trait Timers: Peer {
    /// Waits.
    fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static;

    /// Waits for a future, but no longer than that.
    fn timeout<F: Future>(duration: Duration, future: F) -> impl Future<Output = Option<F::Output>>;
}

/// Two threads, each with its worker, core and tasks.
pub trait Pair {
    /// Runs one future on worker 0 and another on worker 1, until both have ended.
    fn pair<T, A, B>(
        first: impl FnOnce() -> A + Send + 'static,
        second: impl FnOnce() -> B + Send + 'static,
    ) -> T
    where
        T: Send + 'static,
        A: Future<Output = T> + 'static,
        B: Future<Output = ()> + 'static;

    /// Spawns a task on the worker that this is called on.
    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static;
}

/// A bounded channel from one thread to another, as its authors mean it to be used.
pub trait Stream {
    /// Sends the numbers up to `count` from worker 0, once `warm` of them have passed unmeasured, and returns the
    /// receiver's measurement.
    fn stream(warm: u64, count: u64) -> Sample;
}

/// Tasks that whichever worker is idle may take.
pub trait Steal {
    /// Runs a future on worker 0 of two.
    fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T;

    /// Spawns a task that may run on any worker.
    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static;
}

/// TCP.
pub trait Net: Peer {
    /// A listening socket.
    type Listener: 'static;
    /// A connection.
    type Stream: 'static;

    /// Listens on a loopback port.
    fn listen() -> impl Future<Output = (Self::Listener, std::net::SocketAddr)>;
    /// Accepts one connection.
    fn accept(listener: &Self::Listener) -> impl Future<Output = Self::Stream>;
    /// Connects.
    fn connect(address: std::net::SocketAddr) -> impl Future<Output = Self::Stream>;
    /// Sends back what comes, until the other side is gone.
    fn echo(stream: Self::Stream) -> impl Future<Output = ()>;
    /// Sends [`MESSAGE`] bytes and reads as many, so many times.
    fn ask(stream: Self::Stream, times: u64) -> impl Future<Output = ()>;
}

/// Files.
pub trait Files: Peer {
    /// An open file.
    type File: 'static;

    /// Opens a file for reading.
    fn open(path: &'static str) -> impl Future<Output = Self::File>;
    /// Reads one block at each of the offsets, one after the other.
    fn read(file: &Self::File, offsets: impl Iterator<Item = u64>) -> impl Future<Output = ()>;
}

/// A task is spawned and awaited, one at a time.
pub fn spawn_join<P: Peer>() -> Sample {
    P::block_on(async {
        let run = async |count: u64| {
            for step in 0..count {
                assert_eq!(black_box(P::spawn(async move { step }).await), step);
            }
        };
        run(20_000).await;
        let started = start();
        run(500_000).await;
        started.stop(500_000)
    })
}

/// A thousand tasks are spawned, then awaited.
pub fn spawn_join_many<P: Peer>() -> Sample {
    P::block_on(async {
        let run = async |rounds: u64| {
            for round in 0..rounds {
                let tasks: Vec<_> = (0..1_000).map(|task| P::spawn(async move { round + task })).collect();
                for task in tasks {
                    black_box(task.await);
                }
            }
        };
        run(20).await;
        let started = start();
        run(500).await;
        started.stop(500_000)
    })
}

/// A task wakes itself and returns, so that it goes to the end of the queue: the same future for all.
fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// So many tasks yield, all the time.
fn yields<P: Peer>(tasks: u64) -> Sample {
    let run = async move |each: u64| {
        let tasks: Vec<_> = (0..tasks)
            .map(|_| {
                P::spawn(async move {
                    for _ in 0..each {
                        yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
    };
    P::block_on(async move {
        run(20_000 / tasks).await;
        let started = start();
        run(1_000_000 / tasks).await;
        started.stop(1_000_000)
    })
}

/// One task yields.
pub fn yield_one<P: Peer>() -> Sample {
    yields::<P>(1)
}

/// A thousand tasks yield.
pub fn yield_many<P: Peer>() -> Sample {
    yields::<P>(1_000)
}

/// Two tasks of one thread wake each other, by turns.
pub fn wake_here<P: Peer>() -> Sample {
    /// Whose turn it is, and who waits for it.
    #[derive(Default)]
    struct Turn {
        number: Cell<u64>,
        waits: RefCell<Option<Waker>>,
    }
    impl Turn {
        async fn play(self: Rc<Turn>, parity: u64, end: u64) {
            loop {
                let number = poll_fn(|cx| {
                    let number = self.number.get();
                    if number % 2 == parity || number >= end {
                        return Poll::Ready(number);
                    }
                    *self.waits.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                })
                .await;
                self.number.set(number + 1);
                let other = self.waits.borrow_mut().take();
                if let Some(other) = other {
                    other.wake();
                }
                if number >= end {
                    return;
                }
            }
        }
    }
    let run = async |end: u64| {
        let turn = Rc::new(Turn::default());
        let other = P::spawn(Rc::clone(&turn).play(1, end));
        turn.play(0, end).await;
        other.await;
    };
    P::block_on(async move {
        run(20_000).await;
        let started = start();
        run(500_000).await;
        started.stop(500_000)
    })
}

/// Every task sleeps once, for up to 50 ms, all at the same time.
pub fn sleeps<P: Timers>() -> Sample {
    let run = async |count: u64| {
        let tasks: Vec<_> = (0..count)
            // Neighbours in the list are far from each other in time.
            .map(|task| P::spawn(P::sleep(Duration::from_micros(1_000 + task * 7_919 % 49_000))))
            .collect();
        for task in tasks {
            task.await;
        }
    };
    P::block_on(async move {
        run(1_000).await;
        let started = start();
        run(SLEEPS).await;
        started.stop(SLEEPS)
    })
}

/// Sleeps of a run.
pub const SLEEPS: u64 = 100_000;

/// How long the timeouts of a run would be: from 1 to 10 s.
pub fn timeout_of(step: u64) -> Duration {
    Duration::from_millis(1_000 + step * 7_919 % 9_000)
}

/// Timeouts between two yields: fewer than the 128 after which tokio makes a task pause.
pub const TIMEOUTS_AT_A_TIME: u64 = 50;

/// Timeouts are made, polled once so that they are armed, and dropped.
pub fn timeouts<P: Timers>() -> Sample {
    let run = async |count: u64| {
        let mut step = 0;
        while step < count {
            poll_fn(|cx| {
                for _ in 0..TIMEOUTS_AT_A_TIME {
                    let timeout = pin!(P::timeout(timeout_of(step), pending::<()>()));
                    assert!(timeout.poll(cx).is_pending());
                    step += 1;
                }
                Poll::Ready(())
            })
            .await;
            yield_now().await;
        }
    };
    P::block_on(async move {
        P::spawn(run(20_000)).await;
        let started = start();
        P::spawn(run(1_000_000)).await;
        started.stop(1_000_000)
    })
}

/// How often a ball goes there and back.
pub const TRIPS: u64 = 10_000;
/// The same, for those who wait awake.
pub const TRIPS_AWAKE: u64 = 200_000;

/// A word that two tasks give each other.
#[derive(Default)]
struct Ball {
    number: AtomicU64,
    wakers: [AtomicWaker; 2],
}

impl Ball {
    /// Waits until the number is `number`.
    async fn caught(&self, side: usize, number: u64) {
        poll_fn(|cx| {
            if self.number.load(Ordering::Acquire) >= number {
                return Poll::Ready(());
            }
            self.wakers[side].register(cx.waker());
            if self.number.load(Ordering::Acquire) >= number { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Sets the number to `number`, and wakes the other side.
    fn throw(&self, side: usize, number: u64) {
        self.number.store(number, Ordering::Release);
        self.wakers[1 - side].wake();
    }
}

/// A ball goes to the other worker and back.
pub fn ping_pong<P: Pair>() -> Sample {
    ping_pong_of::<P>(TRIPS)
}

/// The same, more often.
pub fn ping_pong_awake<P: Pair>() -> Sample {
    ping_pong_of::<P>(TRIPS_AWAKE)
}

/// So many times there and back.
fn ping_pong_of<P: Pair>(count: u64) -> Sample {
    let warm = count / 20;
    let ball = Arc::new(Ball::default());
    let other = Arc::clone(&ball);
    P::pair(
        move || async move {
            let run = async |from: u64, to: u64| {
                for trip in from..to {
                    ball.throw(0, 2 * trip + 1);
                    ball.caught(0, 2 * trip + 2).await;
                }
            };
            run(0, warm).await;
            let started = start();
            run(warm, warm + count).await;
            started.stop(count)
        },
        move || async move {
            for trip in 0..warm + count {
                other.caught(1, 2 * trip + 1).await;
                other.throw(1, 2 * trip + 2);
            }
        },
    )
}

/// Worker 0 wakes each of a thousand tasks of worker 1, one by one, and then waits until all have run.
pub fn wake_there<P: Pair>() -> Sample {
    const TASKS: u64 = 1_000;
    const ROUNDS: u64 = 300;
    const WARM: u64 = 20;
    /// One waiting task.
    #[derive(Default)]
    struct Place {
        woken: AtomicBool,
        waker: AtomicWaker,
    }
    /// What both workers see.
    struct All {
        places: Vec<Place>,
        arrived: AtomicU64,
        waker: AtomicWaker,
    }
    impl All {
        /// One of the tasks waits until it is woken, and says that it ran.
        async fn wait(&self, task: usize) {
            let place = &self.places[task];
            poll_fn(|cx| {
                if place.woken.swap(false, Ordering::AcqRel) {
                    return Poll::Ready(());
                }
                place.waker.register(cx.waker());
                if place.woken.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            if (self.arrived.fetch_add(1, Ordering::AcqRel) + 1).is_multiple_of(TASKS) {
                self.waker.wake();
            }
        }

        /// Wakes all tasks, and waits until they have run.
        async fn wake(&self, round: u64) {
            for place in &self.places {
                place.woken.store(true, Ordering::Release);
                place.waker.wake();
            }
            poll_fn(|cx| {
                self.waker.register(cx.waker());
                if self.arrived.load(Ordering::Acquire) >= (round + 1) * TASKS {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
        }
    }
    let places = (0..TASKS).map(|_| Place::default()).collect();
    let all = Arc::new(All { places, arrived: AtomicU64::new(0), waker: AtomicWaker::new() });
    let other = Arc::clone(&all);
    P::pair(
        move || async move {
            for round in 0..WARM {
                all.wake(round).await;
            }
            let started = start();
            for round in WARM..WARM + ROUNDS {
                all.wake(round).await;
            }
            started.stop(ROUNDS * TASKS)
        },
        move || async move {
            let tasks: Vec<_> = (0..other.places.len())
                .map(|task| {
                    let all = Arc::clone(&other);
                    P::spawn(async move {
                        for _ in 0..WARM + ROUNDS {
                            all.wait(task).await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        },
    )
}

/// One-way: numbers through the peer's channel between two threads.
pub fn stream<P: Stream>() -> Sample {
    P::stream(100_000, 2_000_000)
}

/// How many times the unequal tasks are spawned, and how many there are.
pub const UNEQUAL_ROUNDS: u64 = 20;
/// Tasks of a round.
pub const UNEQUAL_TASKS: u64 = 1_000;

/// Works for as many steps as the task of that number takes: one in 50 takes a hundred times as long as the others.
pub fn unequal(task: u64) -> u64 {
    let steps = if task.is_multiple_of(50) { 50_000 } else { 500 };
    let mut state = task + 1;
    for _ in 0..steps {
        // An xorshift: cheap, and no compiler sees through it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    black_box(state)
}

/// Worker 0 spawns a thousand tasks of unequal length that any worker may run, and awaits them.
pub fn steal<P: Steal>() -> Sample {
    P::block_on(async {
        let run = async |rounds: u64| {
            for _ in 0..rounds {
                let tasks: Vec<_> =
                    (0..UNEQUAL_TASKS).map(|task| P::spawn(async move { unequal(task) })).collect();
                for task in tasks {
                    black_box(task.await);
                }
            }
        };
        run(2).await;
        let started = start();
        run(UNEQUAL_ROUNDS).await;
        started.stop(UNEQUAL_ROUNDS * UNEQUAL_TASKS)
    })
}

/// Bytes of a message.
pub const MESSAGE: usize = 64;
/// Connections at a time.
pub const CONNECTIONS: u64 = 50;
/// Messages that each connection sends, one after the other.
pub const ASKED: u64 = 1_000;

/// Clients and a server in one thread: each of the connections sends a message, and waits for it to come back.
pub fn echo<P: Net>() -> Sample {
    P::block_on(async {
        let (listener, address) = P::listen().await;
        let run = async |times: u64| {
            let clients: Vec<_> = (0..CONNECTIONS)
                .map(|_| P::spawn(async move { P::ask(P::connect(address).await, times).await }))
                .collect();
            for _ in 0..CONNECTIONS {
                drop_handle(P::spawn(P::echo(P::accept(&listener).await)));
            }
            for client in clients {
                client.await;
            }
        };
        run(ASKED / 20).await;
        let started = start();
        run(ASKED).await;
        started.stop(CONNECTIONS * ASKED)
    })
}

/// Forgets the handle, since some peers cancel what is dropped.
fn drop_handle<T>(handle: T) {
    std::mem::forget(handle);
}

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of the file: 16 MiB, which the page cache holds.
pub const BLOCKS: u64 = 4096;
/// Tasks that read at the same time, and blocks that each reads.
pub const READERS: u64 = 32;
/// Blocks that each task reads.
pub const READS: u64 = 2_000;

/// Where the `step`th read of a task is.
pub fn offset_of(reader: u64, step: u64) -> u64 {
    (reader * 1_299_709 + step * 7_919) % BLOCKS * BLOCK as u64
}

/// Tasks that read blocks of a cached file.
pub fn reads<P: Files>() -> Sample {
    P::block_on(async {
        let path = block_file();
        let file = Rc::new(P::open(path).await);
        let run = async |times: u64| {
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    let file = Rc::clone(&file);
                    P::spawn(
                        async move { P::read(&file, (0..times).map(|step| offset_of(reader, step))).await },
                    )
                })
                .collect();
            for reader in readers {
                reader.await;
            }
        };
        run(READS / 20).await;
        let started = start();
        run(READS).await;
        started.stop(READERS * READS)
    })
}

/// A file of so many blocks, in the page cache, that nobody else sees and that is gone with the process.
pub fn block_file() -> &'static str {
    use std::os::fd::IntoRawFd;
    let path = std::env::temp_dir().join(format!("side-by-side-{}", std::process::id()));
    std::fs::write(&path, vec![7; BLOCK * BLOCKS as usize]).expect("a temporary file of 16 MiB");
    let file = std::fs::File::open(&path).expect("it was just written");
    std::fs::remove_file(&path).expect("it was just written");
    // The descriptor stays open, and with it the file.
    format!("/proc/self/fd/{}", file.into_raw_fd()).leak()
}
