//! Promise: who has nothing to do costs nothing, and who has much to do pays the kernel once for much of it.
//!
//! Told by the workers' own counters (turns and kernel entries), and by the kernel's of their threads. Each test looks at a
//! runtime of its own from outside; they take turns, because one of them asks what CPU time the process used.

#[path = "system/cpu_time.rs"]
mod cpu_time;

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::future::{join, join_all};
use veloq::net::{TcpListener, TcpStream};
use veloq::runtime::{Builder, Handle, WorkerMetrics};
use veloq::task::{CancelToken, yield_now};
use veloq::{WorkerId, spawn_local};

/// How long idleness is watched, in milliseconds: `scripts/idle` watches for a minute. A worker that spins makes a hundred thousand
/// turns in 300 ms; one that looks about once a second is seen in a second.
fn watched() -> Duration {
    let millis = std::env::var("VELOQ_IDLE_MS").ok().and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.unwrap_or(1_200))
}

/// Connections that are busy at once.
const CONNECTIONS: u64 = 64;

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime(workers: usize) -> veloq::Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

/// The threads of a runtime's workers, as the system numbers them, and how often each has left its CPU, of its own accord or not. A thread
/// that slept all the time has not, and so has made no system call but the one it sleeps in.
#[cfg(target_os = "linux")]
mod threads {
    use rustix::thread::{Pid, gettid};
    use veloq::WorkerId;
    use veloq::runtime::Handle;

    pub(super) fn switches(threads: &[Pid]) -> Vec<u64> {
        let of_thread = |thread: &Pid| {
            let path = format!("/proc/self/task/{}/status", thread.as_raw_pid());
            let status = std::fs::read_to_string(path).expect("the thread lives");
            let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
            counts.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
        };
        threads.iter().map(of_thread).collect()
    }

    pub(super) fn of(handle: &Handle) -> Vec<Pid> {
        let (answer, answers) = std::sync::mpsc::channel();
        for worker in 0..handle.workers() {
            let answer = answer.clone();
            drop(handle.spawn_to(WorkerId::new(worker), async move || answer.send(gettid())));
        }
        drop(answer);
        answers.iter().collect()
    }
}

/// Windows does not say how often a thread has run: the workers' counters and the CPU time must do.
#[cfg(windows)]
mod threads {
    use veloq::runtime::Handle;

    pub(super) fn switches(_: &[()]) -> Vec<u64> {
        Vec::new()
    }

    pub(super) fn of(handle: &Handle) -> Vec<()> {
        vec![(); handle.workers()]
    }
}

/// A worker that looks about once in a while, or that returns from its park for no reason, has turned when it is looked at
/// again, and its thread has been on a CPU; one that spins has used the CPU. With an operation armed and a timer far away, as any
/// server has, and after tasks that could be stolen: thieves must not go on looking.
#[test]
fn an_idle_runtime_makes_no_turns_and_no_system_calls_and_uses_no_cpu() {
    let _turn = one_at_a_time();
    let watched = watched();
    let runtime = runtime(2);
    let (handle, stop) = (runtime.handle(), CancelToken::new());
    let (watcher, stopped) = (handle.clone(), stop.clone());
    let watcher = thread::spawn(move || {
        let threads = threads::of(&watcher);
        let before = settled(&watcher);
        let (cpu_before, switches_before) = (cpu_time::of_process(), threads::switches(&threads));
        thread::sleep(watched);
        let (cpu, switches) = (cpu_time::of_process() - cpu_before, threads::switches(&threads));
        let after = counts(&watcher);
        stop.cancel();
        assert_eq!(threads.len(), 2);
        assert_eq!(switches, switches_before, "a worker's thread has run in {watched:?} of idleness");
        (before, after, cpu)
    });
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let _accepting = spawn_local(async move { listener.accept().await.map(drop) });
        let _far = spawn_local(veloq::time::sleep(Duration::from_secs(3_600)));
        for stealable in (0..100).map(|_| veloq::spawn(yield_now())).collect::<Vec<_>>() {
            stealable.await.expect("no panic");
        }
        stopped.cancelled().await;
    });
    let (before, after, cpu) = watcher.join().expect("it does not panic");
    assert_eq!(after, before, "nothing happens while nothing happens");
    assert!(cpu < watched / 10, "{cpu:?} of CPU time in {watched:?} of idleness");
    eprintln!(
        "2 workers, {watched:?}: no turn, no kernel entry, no time on a CPU; {cpu:?} of the whole process"
    );
    // Counters are published with each park. Turns made without parking would have come to light at the latest here.
    for (before, after) in before.iter().zip(handle.metrics()) {
        assert!(after.turns - before.turns <= 4, "{} turns to stop", after.turns - before.turns);
        assert!(after.parks - before.parks <= 4, "{} parks to stop", after.parks - before.parks);
    }
}

/// Round trips to another worker until it has looked out for one and won, or `rounds` have been made. What the workers say then.
fn round_trips(builder: Builder, rounds: u64) -> Vec<WorkerMetrics> {
    let runtime = builder.pin(false).build().expect("this kernel has io_uring");
    let (handle, watcher) = (runtime.handle(), runtime.handle());
    runtime.block_on(async move {
        let to = veloq::workers().last().expect("there is at least one");
        for round in 0..rounds {
            veloq::spawn_to(to, async move || round).await.expect("it does not panic");
            if round % 256 == 0 && watcher.metrics().iter().any(|worker| worker.spins_won > 0) {
                break;
            }
        }
    });
    handle.metrics().to_vec()
}

/// Looking out for messages that do come soon must be learned, or each costs a sleep; where it is turned off, or there is
/// nobody to look out for, it must not happen at all.
#[test]
fn a_worker_looks_out_for_messages_only_where_that_can_pay() {
    let _turn = one_at_a_time();
    let generous = Duration::from_millis(50);
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() >= 2) {
        let workers = round_trips(Builder::new().workers(2).spin(generous), 100_000);
        assert!(workers.iter().any(|worker| worker.spins_won > 0 && worker.spin_ns > 0), "{workers:?}");
    }
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    for builder in [
        Builder::new().workers(2).spin(Duration::ZERO),
        Builder::new().workers(1).spin(generous),
        Builder::new().workers(cpus + 1).spin(generous),
    ] {
        let workers = round_trips(builder, 500);
        assert!(workers.iter().all(|worker| worker.spins == 0 && worker.spin_ns == 0), "{workers:?}");
    }
}

/// A system call in each turn, to see whether there is anything, shows as entries that grow with the turns. A ring shows its completions
/// in memory; a port of Windows tells only who asks, so there each turn does ask.
#[cfg(target_os = "linux")]
#[test]
fn a_turn_with_nothing_for_the_kernel_makes_no_system_call() {
    const TURNS: u64 = 1_000;
    let _turn = one_at_a_time();
    let (before, after) = runtime(1).block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let _accepting = spawn_local(async move { listener.accept().await.map(drop) });
        let before = turned(128).await;
        (before, turned(before.turns + TURNS).await)
    });
    assert!(after.turns - before.turns >= TURNS);
    assert_eq!(after.kernel_entries, before.kernel_entries, "in {} turns", after.turns - before.turns);
    assert_eq!(after.parks, before.parks, "there was always something ready");
}

/// An entry for each operation is what a runtime costs that submits at once, or that reaps one at a time.
///
/// Both ends on one worker: then how many are ready together does not depend on who runs how fast.
#[test]
fn one_kernel_entry_carries_the_operations_of_many_busy_connections() {
    let _turn = one_at_a_time();
    let worker = runtime(1).block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        spawn_local(serve(listener));
        ask(address, 50).await;
        latest().await
    });
    let (operations, entries) = (worker.operations, worker.kernel_entries);
    assert!(operations >= 2 * 50 * CONNECTIONS, "void: {operations} operations");
    let shared = entries.saturating_sub(after_slices(&worker));
    assert!(operations >= 16 * shared, "{operations} operations in {entries} entries");
}

/// The same of one task that has them all: no slice divides a poll, so what it starts in one is submitted together however long it takes.
#[test]
fn one_kernel_entry_carries_the_operations_of_one_poll() {
    let _turn = one_at_a_time();
    let worker = runtime(1).block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let echoes = async {
            let mut streams = Vec::new();
            for _ in 0..CONNECTIONS {
                streams.push(listener.accept().await.expect("there are descriptors left").0);
            }
            join_all(streams.into_iter().map(echo)).await
        };
        join(echoes, join_all((0..CONNECTIONS).map(|_| client(address, 50)))).await;
        latest().await
    });
    let (operations, entries) = (worker.operations, worker.kernel_entries);
    assert!(operations >= 2 * 50 * CONNECTIONS, "void: {operations} operations");
    assert!(operations >= 16 * entries, "{operations} operations in {entries} entries");
}

/// The same where client and server are runtimes of their own, on threads of their own, and one may run ahead of the other.
/// Per request the server has one operation, the answer's send: requests come by receives that stay armed.
#[test]
fn a_server_batches_what_its_clients_send_together() {
    let _turn = one_at_a_time();
    let (address, addresses) = std::sync::mpsc::channel();
    let stop = CancelToken::new();
    let stopped = stop.clone();
    let server = thread::spawn(move || {
        runtime(1).block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            address.send(listener.local_addr().expect("it is bound")).expect("somebody waits for it");
            spawn_local(serve(listener));
            stopped.cancelled().await;
            latest().await
        })
    });
    let address = addresses.recv().expect("it listens");
    runtime(1).block_on(ask(address, 200));
    stop.cancel();
    let worker = server.join().expect("it does not panic");
    let (carried, entries) = (worker.operations + worker.completions, worker.kernel_entries);
    assert!(worker.operations >= 200 * CONNECTIONS, "void: {} operations", worker.operations);
    let shared = entries.saturating_sub(after_slices(&worker));
    assert!(carried >= 8 * shared, "{carried} operations and answers in {entries} entries");
}

/// How many entries there were at the most because tasks had run for a slice, and the driver is to be looked at however few operations they
/// have started. A call of Windows starts each within its task's poll; on Linux a poll queues, and is over long before.
fn after_slices(worker: &WorkerMetrics) -> u64 {
    const SLICE_NS: u64 = 500_000;
    if cfg!(windows) { worker.busy_ns / SLICE_NS } else { 0 }
}

/// Echoes on every connection that comes, each with a task of its own.
async fn serve(listener: TcpListener) {
    loop {
        let (stream, _) = listener.accept().await.expect("there are descriptors left");
        spawn_local(echo(stream));
    }
}

async fn echo(stream: TcpStream) {
    while let Ok(data) = stream.recv().await {
        if data.is_empty() || stream.write_all(data).await.0.is_err() {
            break;
        }
    }
}

/// Asks on all connections at once, so many times.
async fn ask(address: SocketAddr, rounds: u8) {
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| spawn_local(client(address, rounds))).collect();
    for client in clients {
        client.await.expect("it does not panic");
    }
}

async fn client(address: SocketAddr, rounds: u8) {
    let stream = TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("it is TCP");
    for round in 0..rounds {
        let (sent, _) = stream.write_all(vec![round; 100]).await;
        sent.expect("it is connected");
        let (read, answer) = stream.read_exact(Vec::with_capacity(100)).await;
        read.expect("it is echoed");
        assert_eq!(answer, [round; 100]);
    }
}

/// The workers' counters once they stand still: after that, nobody has anything left to do. If they never do, the last that were
/// seen, which will not stand still later either. The bound is on how often is looked, not on time.
fn settled(handle: &Handle) -> Vec<WorkerMetrics> {
    let mut before = counts(handle);
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(50));
        let now = counts(handle);
        if now == before && now.iter().all(|worker| worker.parks > 0) {
            break;
        }
        before = now;
    }
    before
}

/// The workers' counters, besides the time they have slept: that goes on.
fn counts(handle: &Handle) -> Vec<WorkerMetrics> {
    let awake = |mut worker: WorkerMetrics| {
        worker.idle_ns = 0;
        worker
    };
    handle.metrics().into_iter().map(awake).collect()
}

/// This worker's counters, after yielding until it has made so many turns. A busy worker publishes every 64.
#[cfg(target_os = "linux")]
async fn turned(turns: u64) -> WorkerMetrics {
    loop {
        let now = Handle::current().metrics()[0];
        if now.turns >= turns {
            return now;
        }
        yield_now().await;
    }
}

/// This worker's counters as of now: it publishes before it sleeps.
async fn latest() -> WorkerMetrics {
    veloq::time::sleep(Duration::from_millis(1)).await;
    Handle::current().metrics()[WorkerId::new(0).index()]
}
