//! `kv --demo SECONDS`: the server at work, with a client of its own.
//!
//! The server runs as it always does, in a directory that is removed afterwards. The client is a second Veloq runtime on a
//! thread of its own, with `CLIENTS` connections that send one command at a time over loopback. Each second a table is
//! shown, a line for each of the server's workers:
//!
//! | column | is |
//! |---|---|
//! | keys | keys of its shard |
//! | commands/s | commands that its connections sent, wherever the keys are |
//! | operations/s | operations it gave to the kernel |
//! | entries/op | system calls for each of them |
//! | mesh/s | messages it sent to other workers, each with what a turn had for them |
//! | p50, p99, p99.9 | what its clients waited for a reply |
#![expect(clippy::print_stdout, reason = "the table is what the demo is for")]

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use veloq::net::TcpStream;
use veloq::runtime::{Builder, Handle, Metrics};

use crate::node::{Node, NodeInfo};
use crate::options::Options;
use crate::server::{self, Server};

/// Connections of the built-in client: what `redis-benchmark` takes.
const CLIENTS: u64 = 50;

/// Keys that it uses.
const KEYS: u64 = 10_000;

/// How often the table is shown.
const BEAT: Duration = Duration::from_secs(1);

/// Latencies are kept in microseconds, up to a minute, to three digits.
type Latencies = Histogram<u32>;

/// Runs the server for so long, under load, and shows what it does.
///
/// # Errors
/// Those of the server's start and stop, and of the client.
pub fn run(options: &Options, time: Duration) -> io::Result<()> {
    let dir = std::env::temp_dir().join(format!("veloq-kv-demo-{}", std::process::id()));
    let options =
        Options { bind: SocketAddr::from(([127, 0, 0, 1], 0)), dir: dir.clone(), ..options.clone() };
    let shown = server::runtime(&options)?.block_on(show(&options, time));
    let removed = if options.no_log { Ok(()) } else { std::fs::remove_dir_all(&dir) };
    shown.and(removed)
}

/// The server, its client's thread, and the table.
async fn show(options: &Options, time: Duration) -> io::Result<()> {
    let server = Server::start(options).await?;
    let (addr, workers) = (server.addr(), veloq::workers().len());
    println!(
        "{workers} workers serve {addr}; {CLIENTS} clients send SET and GET over loopback for {time:?}\n"
    );
    let stop = Arc::new(AtomicBool::new(false));
    let (report, reports) = mpsc::channel();
    let client = {
        let stop = Arc::clone(&stop);
        thread::Builder::new()
            .name("kv-client".to_owned())
            .spawn(move || drive(addr, workers, &stop, &report))?
    };
    let mut table = Table::new(server.nodes().local()?.ask_all(node_info).await);
    let end = veloq::time::Instant::now() + time;
    let mut left = time;
    while left > Duration::ZERO && !client.is_finished() {
        veloq::time::sleep(left.min(BEAT)).await;
        left = end.saturating_duration_since(veloq::time::Instant::now());
        if left == Duration::ZERO {
            // Relaxed: a request to stop, which orders nothing.
            stop.store(true, Ordering::Relaxed);
        }
        let infos = server.nodes().local()?.ask_all(node_info).await;
        table.show(infos, reports.try_iter())?;
    }
    while !client.is_finished() {
        veloq::time::sleep(Duration::from_millis(5)).await;
    }
    let driven = client.join().map_err(|_| io::Error::other("the client panicked"))?;
    server.stop().await?;
    let requests = driven?;
    println!("\n{requests} requests answered, none refused; stopped in order");
    Ok(())
}

async fn node_info(node: &Rc<Node>) -> NodeInfo {
    node.info()
}

// ---- The table --------------------------------------------------------------------------------------------------------

/// What was shown last, to show what has happened since.
struct Table {
    infos: Vec<NodeInfo>,
    metrics: Metrics,
    at: Instant,
    /// Lines to go back over, on a terminal.
    lines: usize,
}

impl Table {
    fn new(infos: Vec<NodeInfo>) -> Table {
        Table { infos, metrics: Handle::current().metrics(), at: Instant::now(), lines: 0 }
    }

    #[expect(clippy::cast_precision_loss, reason = "rates are shown to a few digits")]
    fn show(
        &mut self,
        infos: Vec<NodeInfo>,
        reports: impl Iterator<Item = Vec<Latencies>>,
    ) -> io::Result<()> {
        let mut latencies: Vec<Latencies> = infos.iter().map(|_| latencies()).collect();
        for report in reports {
            for (sum, part) in latencies.iter_mut().zip(&report) {
                sum.add(part).map_err(io::Error::other)?;
            }
        }
        let metrics = Handle::current().metrics();
        let work = metrics.since(&self.metrics);
        let seconds = self.at.elapsed().as_secs_f64();
        let mut text = String::from(
            "worker     keys  commands/s  operations/s  entries/op    mesh/s   p50 µs   p99 µs  p99.9 µs\n",
        );
        for (worker, latencies) in latencies.iter().enumerate() {
            let (info, before) = (&infos[worker], &self.infos[worker]);
            let work = &work[worker];
            let rate = |number: u64| number as f64 / seconds;
            let entries = work.kernel_entries as f64 / work.operations.max(1) as f64;
            let keys: usize = info.sizes.iter().map(|db| db.keys).sum();
            text += &format!(
                "{worker:>6} {keys:>8} {:>11.0} {:>13.0} {entries:>11.3} {:>9.0} {:>8} {:>8} {:>9}\n",
                rate(info.commands - before.commands),
                rate(work.operations),
                rate(work.mesh_sent),
                latencies.value_at_quantile(0.5),
                latencies.value_at_quantile(0.99),
                latencies.value_at_quantile(0.999),
            );
        }
        let mut out = io::stdout().lock();
        if out.is_terminal() && self.lines > 0 {
            write!(out, "\x1b[{}A\x1b[J", self.lines)?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        *self = Table { infos, metrics, at: Instant::now(), lines: text.lines().count() };
        Ok(())
    }
}

// ---- The client -------------------------------------------------------------------------------------------------------

/// What the client's connections share; they are tasks of one worker.
struct Driver {
    /// By the server's worker that the connection belongs to.
    latencies: RefCell<Vec<Latencies>>,
    requests: Cell<u64>,
}

fn latencies() -> Latencies {
    Latencies::new_with_max(60_000_000, 3)
        .expect("a minute in microseconds, to three digits, is a valid histogram")
}

/// The client's thread: connects, and sends until told to stop. Gives the number of requests.
fn drive(
    addr: SocketAddr,
    workers: usize,
    stop: &AtomicBool,
    report: &mpsc::Sender<Vec<Latencies>>,
) -> io::Result<u64> {
    let driver = Rc::new(Driver {
        latencies: RefCell::new((0..workers).map(|_| latencies()).collect()),
        requests: Cell::new(0),
    });
    let shared = Rc::clone(&driver);
    Builder::new().workers(1).pin(false).thread_name("kv-client").build()?.block_on(async move {
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|number| veloq::spawn_local(request_forever(addr, number, Rc::clone(&shared))))
            .collect();
        let fresh = || (0..workers).map(|_| latencies()).collect();
        // Relaxed: as where it is set.
        while !stop.load(Ordering::Relaxed) {
            veloq::time::sleep(Duration::from_millis(100)).await;
            // Nobody listens when the server has stopped.
            let _shown = report.send(shared.latencies.replace(fresh()));
            if let Some(ended) = clients.iter().position(|client| client.is_finished()) {
                return clients.swap_remove(ended).await.map_err(io::Error::other)?;
            }
        }
        Ok(())
    })?;
    Ok(driver.requests.get())
}

/// One connection: a SET or a GET at a time, one SET for seven GETs.
async fn request_forever(addr: SocketAddr, number: u64, driver: Rc<Driver>) -> io::Result<()> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (sent, _) = stream.write_all("CLIENT ID\r\n".to_owned()).await;
    sent?;
    let reply = stream.recv().await?;
    let id = std::str::from_utf8(&reply)
        .ok()
        .and_then(|reply| reply.trim().strip_prefix(':')?.parse::<u64>().ok());
    let id = id.ok_or_else(|| io::Error::other("CLIENT ID is not a number"))?;
    let workers = driver.latencies.borrow().len();
    let worker = usize::try_from(id - 1).expect("ids are counted") % workers;
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut request = Vec::new();
    loop {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let key = random % KEYS;
        request.clear();
        if random >> 32 & 15 < 2 {
            write!(request, "*3\r\n$3\r\nSET\r\n$8\r\nkey:{key:04}\r\n$16\r\nvalue-{key:010}\r\n")?;
        } else {
            write!(request, "*2\r\n$3\r\nGET\r\n$8\r\nkey:{key:04}\r\n")?;
        }
        let start = Instant::now();
        let (sent, buf) = stream.write_all(request).await;
        request = buf;
        sent?;
        // Replies here are shorter than one segment, so they arrive whole.
        let reply = stream.recv().await?;
        if reply.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if reply.starts_with(b"-") {
            return Err(io::Error::other(String::from_utf8_lossy(&reply).into_owned()));
        }
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        driver.latencies.borrow_mut()[worker].saturating_record(micros);
        driver.requests.set(driver.requests.get() + 1);
    }
}
