//! What each row costs a loop that is written by hand for this row and nothing else: no cancellation, no panics caught, no
//! wakes from elsewhere unless the row is about them, no metrics. What a runtime costs beside it is what it does for its user.
#![expect(unsafe_code, reason = "wakers over an `Rc`, futexes, and buffers shown to a ring")]

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::{Future, poll_fn};
use std::hint::{black_box, spin_loop};
use std::mem::ManuallyDrop;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

use super::CHANNEL;
use crate::measure::{Sample, pin, start};
use crate::rows::{
    ASKED, BLOCK, CONNECTIONS, MESSAGE, Peer, READERS, READS, SLEEPS, TRIPS, TRIPS_AWAKE, UNEQUAL_ROUNDS,
    UNEQUAL_TASKS, block_file, offset_of, timeout_of, unequal,
};

/// An executor of one thread: a queue of `Rc`s. Its wakers must not leave the thread, and those of the rows do not.
pub struct Bare;

thread_local! {
    static QUEUE: RefCell<VecDeque<Rc<dyn Run>>> = const { RefCell::new(VecDeque::new()) };
}

/// What the queue knows of a task.
trait Run {
    fn run(self: Rc<Self>);
}

/// A task: its future, then its output.
struct Task<F: Future> {
    future: RefCell<Option<F>>,
    output: Cell<Option<F::Output>>,
    joiner: Cell<Option<Waker>>,
    queued: Cell<bool>,
}

impl<F: Future + 'static> Task<F> {
    const WAKER: RawWakerVTable = RawWakerVTable::new(Self::clone, Self::wake, Self::wake_by_ref, Self::drop);

    fn queue(self: Rc<Self>) {
        if !self.queued.replace(true) {
            QUEUE.with_borrow_mut(|queue| queue.push_back(self));
        }
    }

    /// # Safety
    ///
    /// `task` is from `Rc::into_raw` of a task of this type, which lives, and this is its thread. So for the next three; of
    /// those that consume the waker the count comes with the call.
    unsafe fn clone(task: *const ()) -> RawWaker {
        // SAFETY: as above.
        unsafe { Rc::increment_strong_count(task.cast::<Self>()) };
        RawWaker::new(task, &Self::WAKER)
    }

    unsafe fn wake(task: *const ()) {
        // SAFETY: as above.
        unsafe { Rc::from_raw(task.cast::<Self>()) }.queue();
    }

    unsafe fn wake_by_ref(task: *const ()) {
        // SAFETY: as above; the count is not given up.
        Rc::clone(&ManuallyDrop::new(unsafe { Rc::from_raw(task.cast::<Self>()) })).queue();
    }

    unsafe fn drop(task: *const ()) {
        // SAFETY: as above.
        drop(unsafe { Rc::from_raw(task.cast::<Self>()) });
    }
}

impl<F: Future + 'static> Run for Task<F> {
    fn run(self: Rc<Self>) {
        self.queued.set(false);
        // SAFETY: the pointer is the `Rc`'s, which outlives this waker, whose count is not given up.
        let waker = ManuallyDrop::new(unsafe { Waker::new(Rc::as_ptr(&self).cast(), &Self::WAKER) });
        let mut future = self.future.borrow_mut();
        let Some(running) = future.as_mut() else { return };
        // SAFETY: the future stays in its `Rc` until it is dropped there.
        if let Poll::Ready(output) =
            unsafe { Pin::new_unchecked(running) }.poll(&mut Context::from_waker(&waker))
        {
            *future = None;
            self.output.set(Some(output));
            if let Some(joiner) = self.joiner.take() {
                joiner.wake();
            }
        }
    }
}

impl Peer for Bare {
    fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
        let output = Rc::new(Cell::new(None));
        let into = Rc::clone(&output);
        drop(Self::spawn(async move { into.set(Some(future.await)) }));
        while let Some(task) = QUEUE.with_borrow_mut(VecDeque::pop_front) {
            task.run();
        }
        output.take().expect("nothing that these rows wait for comes from elsewhere")
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + 'static
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let task = Rc::new(Task {
            future: RefCell::new(Some(future)),
            output: Cell::new(None),
            joiner: Cell::new(None),
            queued: Cell::new(false),
        });
        Rc::clone(&task).queue();
        poll_fn(move |cx| match task.output.take() {
            Some(output) => Poll::Ready(output),
            None => {
                task.joiner.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
    }
}

/// Sleeps in a binary heap.
pub fn sleeps() -> Sample {
    let run = |count: u64| {
        let mut heap = BinaryHeap::new();
        for sleep in 0..count {
            let deadline = Instant::now() + Duration::from_micros(1_000 + sleep * 7_919 % 49_000);
            heap.push(Reverse((deadline, sleep)));
        }
        while let Some(Reverse((deadline, _))) = heap.peek() {
            let now = Instant::now();
            if *deadline > now {
                // To the next millisecond, as a wheel does.
                thread::sleep((*deadline - now).max(Duration::from_millis(1)));
            }
            let now = Instant::now();
            while heap.peek().is_some_and(|Reverse((deadline, _))| *deadline <= now) {
                black_box(heap.pop());
            }
        }
    };
    run(1_000);
    let started = start();
    run(SLEEPS);
    started.stop(SLEEPS)
}

/// Timeouts in a wheel of milliseconds: a list through an array for each, as many as the longest timeout has.
pub fn timeouts() -> Sample {
    const SLOTS: usize = 16_384;
    const NONE: u32 = u32::MAX;
    /// A timer in its list; the first `SLOTS` entries are the lists' heads.
    #[derive(Clone, Copy)]
    struct Entry {
        prev: u32,
        next: u32,
    }
    let mut entries: Vec<Entry> = (0..SLOTS as u32).map(|head| Entry { prev: head, next: head }).collect();
    let mut free = NONE;
    let origin = Instant::now();
    let mut run = |count: u64| {
        for step in 0..count {
            let deadline_ms = (origin.elapsed() + timeout_of(step)).as_millis() as u64;
            let head = deadline_ms as usize % SLOTS;
            let entry = if free == NONE {
                entries.push(Entry { prev: NONE, next: NONE });
                entries.len() - 1
            } else {
                let entry = free as usize;
                free = entries[entry].next;
                entry
            };
            let first = entries[head].next;
            entries[entry] = Entry { prev: head as u32, next: first };
            entries[first as usize].prev = entry as u32;
            entries[head].next = entry as u32;
            let entry = black_box(entry);
            let Entry { prev, next, .. } = entries[entry];
            entries[prev as usize].next = next;
            entries[next as usize].prev = prev;
            entries[entry].next = free;
            free = entry as u32;
        }
    };
    run(20_000);
    let started = start();
    run(1_000_000);
    started.stop(1_000_000)
}

/// Runs `second` on a thread of its own on the other CPU, and `first` here.
fn two<T>(first: impl FnOnce() -> T, second: impl FnOnce() + Send) -> T {
    thread::scope(|threads| {
        threads.spawn(|| {
            pin(1);
            second();
        });
        pin(0);
        first()
    })
}

/// A word, and a futex for those who sleep.
fn ping_pong_with(
    count: u32,
    wait: impl Fn(&AtomicU32, u32) + Sync,
    wake: impl Fn(&AtomicU32) + Sync,
) -> Sample {
    let ball = AtomicU32::new(0);
    let warm = count / 20;
    two(
        || {
            let run = |from: u32, to: u32| {
                for trip in from..to {
                    ball.store(2 * trip + 1, Ordering::Release);
                    wake(&ball);
                    wait(&ball, 2 * trip + 2);
                }
            };
            run(0, warm);
            let started = start();
            run(warm, warm + count);
            started.stop(count.into())
        },
        || {
            for trip in 0..warm + count {
                wait(&ball, 2 * trip + 1);
                ball.store(2 * trip + 2, Ordering::Release);
                wake(&ball);
            }
        },
    )
}

/// Both sides sleep in a futex.
pub fn ping_pong_sleeping() -> Sample {
    ping_pong_with(TRIPS as u32, futex_wait_for, futex_wake)
}

/// Both sides spin.
pub fn ping_pong_spinning() -> Sample {
    let wait = |ball: &AtomicU32, number: u32| {
        while ball.load(Ordering::Acquire) != number {
            spin_loop();
        }
    };
    ping_pong_with(TRIPS_AWAKE as u32, wait, |_| ())
}

/// Sleeps until the word is `number`.
fn futex_wait_for(word: &AtomicU32, number: u32) {
    loop {
        let now = word.load(Ordering::Acquire);
        if now == number {
            return;
        }
        let (operation, forever) =
            (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, std::ptr::null::<libc::timespec>());
        // SAFETY: the word is live, and the call writes nothing.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, now, forever) };
    }
}

/// Wakes whoever sleeps on the word.
fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is live, and the call writes nothing.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1) };
}

/// A stack that one thread fills and another empties at once; a futex if it was empty.
pub fn wake_there() -> Sample {
    const TASKS: usize = 1_000;
    const ROUNDS: usize = 300;
    const WARM: usize = 20;
    const NONE: usize = usize::MAX;
    let next: Vec<AtomicUsize> = (0..TASKS).map(|_| AtomicUsize::new(NONE)).collect();
    let top = AtomicUsize::new(NONE);
    let (rung, arrived) = (AtomicU32::new(0), AtomicU32::new(0));
    two(
        || {
            let run = |rounds: std::ops::Range<usize>| {
                for round in rounds {
                    for (task, next) in next.iter().enumerate() {
                        let mut before = top.load(Ordering::Relaxed);
                        loop {
                            next.store(before, Ordering::Relaxed);
                            match top.compare_exchange_weak(before, task, Ordering::AcqRel, Ordering::Relaxed)
                            {
                                Ok(_) => break,
                                Err(now) => before = now,
                            }
                        }
                        if before == NONE {
                            rung.fetch_add(1, Ordering::AcqRel);
                            futex_wake(&rung);
                        }
                    }
                    futex_wait_for(&arrived, round as u32 + 1);
                }
            };
            run(0..WARM);
            let started = start();
            run(WARM..WARM + ROUNDS);
            started.stop((ROUNDS * TASKS) as u64)
        },
        || {
            for round in 0..WARM + ROUNDS {
                let mut ran = 0;
                while ran < TASKS {
                    let seen = rung.load(Ordering::Acquire);
                    let mut task = top.swap(NONE, Ordering::AcqRel);
                    if task == NONE {
                        futex_wait_for(&rung, seen + 1);
                    }
                    while task != NONE {
                        ran += 1;
                        task = next[black_box(task)].load(Ordering::Relaxed);
                    }
                }
                arrived.store(round as u32 + 1, Ordering::Release);
                futex_wake(&arrived);
            }
        },
    )
}

/// A ring of one producer and one consumer, each with a copy of the other's index; both spin.
pub fn stream(warm: u64, count: u64) -> Sample {
    #[repr(align(128))]
    struct Index(AtomicU64);
    let ring: Vec<AtomicU64> = (0..CHANNEL).map(|_| AtomicU64::new(0)).collect();
    let (head, tail) = (Index(AtomicU64::new(0)), Index(AtomicU64::new(0)));
    two(
        || {
            let mut seen = 0;
            let mut run = |numbers: std::ops::Range<u64>| {
                for number in numbers {
                    while seen == number {
                        spin_loop();
                        seen = tail.0.load(Ordering::Acquire);
                    }
                    assert_eq!(ring[number as usize % CHANNEL].load(Ordering::Relaxed), number);
                    head.0.store(number + 1, Ordering::Release);
                }
            };
            run(0..warm);
            let started = start();
            run(warm..warm + count);
            started.stop(count)
        },
        || {
            let mut seen = 0;
            for number in 0..warm + count {
                while number - seen == CHANNEL as u64 {
                    spin_loop();
                    seen = head.0.load(Ordering::Acquire);
                }
                ring[number as usize % CHANNEL].store(number, Ordering::Relaxed);
                tail.0.store(number + 1, Ordering::Release);
            }
        },
    )
}

/// Two threads take the next task's number from one counter.
pub fn steal() -> Sample {
    let run = |rounds: u64| {
        for _ in 0..rounds {
            let next = AtomicU64::new(0);
            let work = || {
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= UNEQUAL_TASKS {
                        return;
                    }
                    black_box(unequal(task));
                }
            };
            two(work, work);
        }
    };
    run(2);
    let started = start();
    run(UNEQUAL_ROUNDS);
    started.stop(UNEQUAL_ROUNDS * UNEQUAL_TASKS)
}

/// A ring as a runtime of one thread would set it up.
fn ring() -> IoUring {
    let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(256);
    ring.expect("this kernel has io_uring")
}

/// Both ends of each connection in one ring: whatever has received sends, and whatever has sent receives.
pub fn echo() -> Sample {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let address = listener.local_addr().expect("it is bound");
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS {
        sockets.push(TcpStream::connect(address).expect("the listener is there"));
        sockets.push(listener.accept().expect("a client comes").0);
    }
    let mut buffers = vec![[7_u8; MESSAGE]; sockets.len()];
    let buffers: Vec<NonNull<u8>> = buffers.iter_mut().map(|buffer| NonNull::from(buffer).cast()).collect();
    let mut ring = ring();
    const SENT: u64 = 1 << 32;
    let mut run = |times: u64| {
        let entry = |socket: usize, sends: bool| {
            let (fd, buffer) = (types::Fd(sockets[socket].as_raw_fd()), buffers[socket].as_ptr());
            if sends {
                opcode::Send::new(fd, buffer, MESSAGE as u32).build().user_data(socket as u64 | SENT)
            } else {
                opcode::Recv::new(fd, buffer, MESSAGE as u32).build().user_data(socket as u64)
            }
        };
        // Even sockets are the clients: they begin.
        for socket in 0..sockets.len() {
            // SAFETY: each buffer is in one operation at a time, and outlives the ring's last answer, awaited below.
            unsafe { ring.submission().push(&entry(socket, socket % 2 == 0)) }
                .expect("there are fewer than entries");
        }
        let mut left = vec![times; sockets.len()];
        let mut in_flight = sockets.len();
        while in_flight > 0 {
            ring.submit_and_wait(1).expect("the ring is entered");
            let (_, mut submission, completion) = ring.split();
            for answer in completion {
                assert_eq!(answer.result(), MESSAGE as i32);
                let (socket, sent) = (answer.user_data() as u32 as usize, answer.user_data() & SENT != 0);
                // A client's turn ends when it has received, a server's when it has sent.
                left[socket] -= u64::from(sent == (socket % 2 == 1));
                if left[socket] == 0 {
                    in_flight -= 1;
                    continue;
                }
                // SAFETY: as above.
                unsafe { submission.push(&entry(socket, !sent)) }.expect("there are fewer than entries");
            }
        }
    };
    run(ASKED / 20);
    let started = start();
    run(ASKED);
    started.stop(CONNECTIONS * ASKED)
}

/// As many reads in flight as there would be tasks.
pub fn reads() -> Sample {
    let file = std::fs::File::open(block_file()).expect("it is there");
    let mut buffers: Vec<Vec<u8>> = (0..READERS).map(|_| vec![0; BLOCK]).collect();
    let buffers: Vec<*mut u8> = buffers.iter_mut().map(|buffer| buffer.as_mut_ptr()).collect();
    let mut ring = ring();
    let mut run = |times: u64| {
        let entry = |reader: usize, step: u64| {
            let (fd, offset) = (types::Fd(file.as_raw_fd()), offset_of(reader as u64, step));
            opcode::Read::new(fd, buffers[reader], BLOCK as u32)
                .offset(offset)
                .build()
                .user_data(reader as u64)
        };
        for reader in 0..buffers.len() {
            // SAFETY: each buffer is in one operation at a time, and outlives the ring's last answer, awaited below.
            unsafe { ring.submission().push(&entry(reader, 0)) }.expect("there are fewer than entries");
        }
        let mut steps = vec![0; buffers.len()];
        let mut readers = READERS;
        while readers > 0 {
            ring.submit_and_wait(1).expect("the ring is entered");
            let (_, mut submission, completion) = ring.split();
            for answer in completion {
                assert_eq!(answer.result(), BLOCK as i32);
                let reader = answer.user_data() as usize;
                steps[reader] += 1;
                if steps[reader] == times {
                    readers -= 1;
                } else {
                    // SAFETY: as above.
                    unsafe { submission.push(&entry(reader, steps[reader])) }
                        .expect("there are fewer than entries");
                }
            }
        }
    };
    run(READS / 20);
    let started = start();
    run(READS);
    started.stop(READERS * READS)
}
