//! Promise: nobody waits for somebody who is merely busy.
//!
//! A worker polls at most a *budget* of tasks (64 by default) between two looks at its timers and its driver. So a task that
//! always yields delays due timers and arriving data by a few turns, however long it goes on. The tests count this in
//! polls of the busy task itself, which is exact, whatever the machine does meanwhile: [`TURN`] polls are at least a turn.

#[path = "system/descriptors.rs"]
mod descriptors;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::net::TcpStream as StdStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use veloq::fs::File;
use veloq::io::op::misc::nop;
use veloq::net::{TcpListener, TcpStream, UdpSocket};
use veloq::runtime::{Builder, Handle};
use veloq::task::{self, CancelToken, Class, next_turn, yield_now};
use veloq::time::{Instant, interval, sleep, timeout};
use veloq::{WorkerId, spawn_local, spawn_to};

/// Polls of one turn at most: the budget's default.
const TURN: u64 = 64;

/// What "a few turns" are: one in which something becomes due, one that sees it, one that runs who waited, and as many again
/// for the kernel, which may announce data in one entry and hand it over in the next.
const A_FEW: u64 = 6;

/// A timer's resolution, and a little more.
const TICK: Duration = Duration::from_micros(200);

/// Held by each test for as long as it runs, and alone by the one that counts the process's descriptors.
static OTHERS: RwLock<()> = RwLock::new(());

fn among_others() -> RwLockReadGuard<'static, ()> {
    OTHERS.read().unwrap_or_else(PoisonError::into_inner)
}

fn runtime(workers: usize) -> veloq::Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

/// A timer that is looked at only when nothing is ready would never fire here, and the test hang.
#[test]
fn a_task_that_yields_for_ever_does_not_delay_a_timer() {
    let _running = among_others();
    let late = runtime(1).block_on(async {
        let deadline = Instant::now() + Duration::from_millis(50);
        let busy = Rc::new(Busy::default());
        let endless = spawn_local(Rc::clone(&busy).run(move || Instant::now() >= deadline + TICK));
        veloq::time::sleep_until(deadline).await;
        endless.abort();
        busy.polls_since_due()
    });
    assert!(late <= A_FEW * TURN, "the timer was due for {late} polls of the busy task");
}

/// The same where nothing is polled but the one who wakes itself: the task that waits for data and the busy one are one.
#[test]
fn a_task_that_wakes_itself_does_not_delay_its_own_timer() {
    let _running = among_others();
    let late = runtime(1).block_on(async {
        let mut sleep = Box::pin(sleep(Duration::from_millis(50)));
        let mut due_for = 0;
        poll_fn(|cx| {
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            due_for += u64::from(Instant::now() >= sleep.deadline() + TICK);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        due_for
    });
    assert!(late <= A_FEW * TURN, "the timer was due for {late} polls");
}

/// Completions that are reaped only when nothing is ready would never be, and the test hang.
#[test]
fn a_task_that_yields_for_ever_does_not_delay_arriving_data() {
    let _running = among_others();
    let late = runtime(1).block_on(async {
        let (stream, mut peer) = connected().await;
        let arrived = duplicate(&stream);
        let busy = Rc::new(Busy::default());
        let mut left = 10 * TURN;
        let endless = spawn_local(Rc::clone(&busy).run(move || {
            left -= 1;
            if left > 0 {
                return false;
            }
            std::io::Write::write_all(&mut peer, b"x").expect("it is connected");
            // Loopback is quick, but not always done when `write` returns.
            while arrived.peek(&mut [std::mem::MaybeUninit::uninit()]).is_err() {}
            true
        }));
        let data = stream.recv().await.expect("it is connected");
        assert_eq!(&data[..], b"x");
        endless.abort();
        busy.polls_since_due()
    });
    assert!(late <= A_FEW * TURN, "the data was there for {late} polls of the busy task");
}

/// Ten thousand tasks that are always ready are ahead of whoever becomes ready, but once: a queue that let them pass twice
/// would starve him.
#[test]
fn ten_thousand_ready_tasks_delay_a_timer_by_one_round_at_most() {
    let _running = among_others();
    const TASKS: u64 = 10_000;
    let late = runtime(1).block_on(async {
        let deadline = Instant::now() + Duration::from_millis(50);
        let busy = Rc::new(Busy::default());
        let endless: Vec<_> = (0..TASKS)
            .map(|_| spawn_local(Rc::clone(&busy).run(move || Instant::now() >= deadline + TICK)))
            .collect();
        veloq::time::sleep_until(deadline).await;
        for task in &endless {
            task.abort();
        }
        busy.polls_since_due()
    });
    assert!(late <= TASKS + A_FEW * TURN, "the timer was due for {late} polls of {TASKS} tasks");
}

/// Wakes beyond a turn's budget must wait for the next turn, not be forgotten. Those from another thread come by another
/// list than those from here.
#[test]
fn five_thousand_tasks_made_ready_at_once_all_run() {
    let _running = among_others();
    const TASKS: usize = 5_000;
    for from_elsewhere in [false, true] {
        runtime(1).block_on(async {
            let token = CancelToken::new();
            let (waiting, ran) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let tasks: Vec<_> = (0..TASKS)
                .map(|_| {
                    let (token, waiting, ran) = (token.clone(), Rc::clone(&waiting), Rc::clone(&ran));
                    spawn_local(async move {
                        waiting.set(waiting.get() + 1);
                        token.cancelled().await;
                        ran.set(ran.get() + 1);
                    })
                })
                .collect();
            while waiting.get() < TASKS {
                yield_now().await;
            }
            if from_elsewhere {
                std::thread::spawn(move || token.cancel()).join().expect("it does not panic");
            } else {
                token.cancel();
            }
            for task in tasks {
                task.await.expect("it does not panic");
            }
            assert_eq!(ran.get(), TASKS);
        });
    }
}

/// A join that waited for the worker to have nothing left to do would hang: here there always is.
#[test]
fn a_joined_task_returns_when_it_ends_and_not_when_others_do() {
    let _running = among_others();
    runtime(2).block_on(async {
        let busy = Rc::new(Busy::default());
        let endless = spawn_local(Rc::clone(&busy).run(|| false));
        let idle = spawn_local(pending::<()>());
        let asleep = spawn_to(WorkerId::new(1), async move || sleep(Duration::from_secs(3_600)).await);
        for worker in 0..2 {
            let answer = spawn_to(WorkerId::new(worker), async move || {
                yield_now().await;
                worker
            });
            assert_eq!(answer.await.expect("it does not panic"), worker);
        }
        assert!(!endless.is_finished() && !idle.is_finished() && !asleep.is_finished());
        // What was joined is not joined by the end of the others either.
        asleep.abort();
        assert!(asleep.await.expect_err("it was aborted").is_cancelled());
        assert!(!endless.is_finished() && !idle.is_finished());
    });
}

/// Each kind of future keeps the waker of its first poll somewhere: a slot, the wheel, a task, a token, the socket. What is
/// not taken out again when the future is dropped shows as a waker too many, or as a slot or a buffer that stays taken.
#[test]
fn a_future_that_was_polled_once_leaves_nothing_when_it_is_dropped() {
    let _alone = OTHERS.write().unwrap_or_else(PoisonError::into_inner);
    runtime(2).block_on(async {
        let (stream, _peer) = connected().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        let file = File::create(&path).await.expect("it can be created");
        let full = listener.local_addr().expect("it is bound");
        let token = CancelToken::new();
        let mut ticks = interval(Duration::from_secs(3_600));
        ticks.tick().await;
        let before = figures().await;

        let wakes = Arc::new(Wakes::default());
        {
            let waker = Waker::from(Arc::clone(&wakes));
            let mut cx = Context::from_waker(&waker);
            let mut polled = |name: &str, future: Pin<Box<dyn Future<Output = ()> + '_>>| {
                let mut future = future;
                assert!(future.as_mut().poll(&mut cx).is_pending(), "{name} is not ready at its first poll");
            };
            for _ in 0..50 {
                polled("recv", Box::pin(discard(stream.recv())));
                polled("read", Box::pin(discard(stream.read(veloq::alloc(4096)))));
                polled("read_exact", Box::pin(discard(stream.read_exact(vec![0; 10]))));
                polled("accept", Box::pin(discard(listener.accept())));
                polled("connect", Box::pin(discard(TcpStream::connect(full))));
                polled("recv_from", Box::pin(discard(socket.recv_from(veloq::alloc(4096)))));
                polled("open", Box::pin(discard(File::open(&path))));
                polled("write_at", Box::pin(discard(file.write_at(veloq::alloc(0), 0))));
                polled("read_at", Box::pin(discard(file.read_at(veloq::alloc(4096), 0))));
                polled("sync", Box::pin(discard(file.sync_all())));
                polled("sleep", Box::pin(sleep(Duration::from_secs(3_600))));
                polled("timeout", Box::pin(discard(timeout(Duration::from_secs(3_600), stream.recv()))));
                polled("tick", Box::pin(discard(ticks.tick())));
                polled("cancelled", Box::pin(token.cancelled()));
                polled("next_turn", Box::pin(next_turn()));
                polled("ctrl_c", Box::pin(discard(veloq::signal::ctrl_c())));
                polled("spawn_to", Box::pin(discard(spawn_to(WorkerId::new(1), async move || ()))));
                let task = spawn_local(pending::<()>());
                let abort = task.abort_handle();
                polled("join", Box::pin(discard(task)));
                abort.abort();
            }
        }
        // These keep the waker of who waited last, as long as they live themselves.
        drop((stream, listener, ticks));
        let mut after = figures().await;
        // Those of the stream and the listener, where they are counted.
        after.descriptors += if cfg!(windows) { 0 } else { 2 };
        assert_eq!(after, before);
        assert_eq!(Arc::strong_count(&wakes), 1, "no waker is kept");
    });
}

/// A worker that sleeps because no foreground task is ready would leave the background where it is, for ever.
#[test]
fn a_worker_does_not_sleep_while_background_work_is_ready() {
    let _others = among_others();
    let polls = runtime(1).block_on(async {
        let background = task::Builder::new().class(Class::Background).spawn_local(async {
            for _ in 0..1_000 {
                yield_now().await;
            }
            1_000
        });
        background.await.expect("no panic")
    });
    assert_eq!(polls, 1_000);
}

/// One that went on at once, or before those whom the kernel has answered, would come first here; and one for whom the worker slept
/// would never come, since nothing else happens.
#[test]
fn the_next_turn_begins_behind_what_the_kernel_has_answered() {
    let _others = among_others();
    runtime(1).block_on(async {
        for _ in 0..1_000 {
            let order = Rc::new(RefCell::new(Vec::new()));
            let answered: Vec<_> = (0..3)
                .map(|_| {
                    let order = Rc::clone(&order);
                    spawn_local(async move {
                        nop().await.expect("the kernel answers");
                        order.borrow_mut().push("answered");
                    })
                })
                .collect();
            next_turn().await;
            order.borrow_mut().push("next turn");
            assert_eq!(*order.borrow(), ["answered", "answered", "answered", "next turn"]);
            next_turn().await;
            for task in answered {
                task.await.expect("no panic");
            }
        }
    });
}

/// A task that is always ready, and counts its polls from the moment at which what is tested was due.
#[derive(Default)]
struct Busy {
    since_due: RefCell<Option<u64>>,
}

impl Busy {
    /// Yields for ever. `due` is asked at each poll until it says yes.
    async fn run(self: Rc<Busy>, mut due: impl FnMut() -> bool) {
        loop {
            {
                let mut since_due = self.since_due.borrow_mut();
                match &mut *since_due {
                    Some(polls) => *polls += 1,
                    None if due() => *since_due = Some(0),
                    None => {}
                }
            }
            yield_now().await;
        }
    }

    /// 0 if what was waited for came before this task found it due.
    fn polls_since_due(&self) -> u64 {
        self.since_due.borrow().unwrap_or(0)
    }
}

/// What is taken, when the kernel has answered everything.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    descriptors: usize,
    slots: u64,
    buffers_out: u64,
    tasks: u64,
}

/// Sleeping makes the worker publish. The bound is on how often is looked, not on time.
async fn figures() -> Figures {
    let mut now = Handle::current().metrics()[0];
    for _ in 0..2_000 {
        sleep(Duration::from_millis(1)).await;
        now = Handle::current().metrics()[0];
        if now.in_flight == 0 {
            break;
        }
    }
    // Windows' own threads open and close handles as they like; `tests/iocp.rs` counts them over a thousand rounds.
    let descriptors = if cfg!(windows) { 0 } else { descriptors::open() };
    Figures { descriptors, slots: now.slots, buffers_out: now.buffers_out, tasks: now.tasks }
}

/// Counts wakes, and by its references the wakers that are kept.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn discard<T>(future: impl Future<Output = T>) {
    drop(future.await);
}

/// A connection: one end Veloq's, one std's.
async fn connected() -> (TcpStream, StdStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peer = StdStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (stream, _) = listener.accept().expect("it was connected");
    (TcpStream::from_std(stream).expect("it can be switched to blocking"), peer)
}

/// The stream's socket, under another number.
fn duplicate(stream: &TcpStream) -> socket2::Socket {
    #[cfg(unix)]
    let socket = stream.as_fd().expect("it is the process's");
    #[cfg(windows)]
    let socket = std::os::windows::io::AsSocket::as_socket(stream);
    socket.try_clone_to_owned().expect("there are descriptors").into()
}
