//! The server as a whole: start, accept, stop.
//!
//! ```text
//! open the directory ─▶ a node on every worker: recover its shard, open its log ─▶ settle ─▶ bind ─▶ accept on every worker
//! stop: accept no more ─▶ close connections ─▶ write and sync every log ─▶ drop the nodes, last worker first
//! ```
//!
//! Each worker has a listener of its own on the same address (`SO_REUSEPORT`), so the kernel spreads connections and no
//! worker hands one to another. Where sockets cannot share an address (Windows), one worker accepts, and hands the connections
//! to all of them in turn, before anything is read from them.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use veloq::net::{TcpListener, TcpStream};
use veloq::task::{CancelToken, JoinHandle};
use veloq::{Sharded, WorkerId, spawn_local};

use crate::connection;
use crate::db::Keyspace;
use crate::limits::{Limits, TOO_MANY_CLIENTS};
use crate::log::Journal;
use crate::node::{Config, Node, NodeInfo, State, now_us};
use crate::options::Options;
use crate::persist::{self, Opened, Persist};
use crate::session::{Info, Settings};
use crate::shard::{DbSize, Shard};
use crate::txn::Gate;

/// Connections that the kernel holds for a worker that is busy: Redis's default is 511.
const BACKLOG: u32 = 511;

/// How long a busy worker waits for as many requests as it has lately had at a time, before it wakes for fewer. The bound is for
/// the moment when the clients stop: short enough that those who come next do not feel it, and long enough that the timer,
/// which is armed anew each time it has passed, does not show. Only where there is one worker: with several, requests for
/// another worker's keys would wait for each hop.
const LINGER: Duration = Duration::from_millis(2);

/// How long connections may take to end when the server stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    nodes: Sharded<Rc<Node>>,
    stopping: CancelToken,
    accepting: Vec<JoinHandle<io::Result<()>>>,
}

impl Server {
    /// Recovers what the logs hold and starts to serve, on every worker of this runtime.
    ///
    /// # Errors
    /// If a log is corrupt or cannot be read or made (the text names file and offset), or the address cannot be bound.
    pub async fn start(options: &Options) -> io::Result<Server> {
        let shards = u32::try_from(veloq::workers().len()).expect("workers are few");
        let limits = options.limits();
        let durability = options.durability();
        let (opened, keyspace) = if durability.enabled {
            let opened =
                persist::open_dir(&options.dir, shards, durability.fsync).await.map_err(io::Error::other)?;
            let keyspace = Keyspace::new(shards, opened.seed());
            (Some(opened), keyspace)
        } else {
            (None, Keyspace::new(shards, seed()))
        };
        // Bound before the shards recover, so that a wrong address is known at once, and port 0 has a number.
        let first = Listener::first(options.bind).await?;
        let addr = first.addr()?;
        let config = Arc::new(Config {
            settings: settings(options, &limits, addr),
            limits,
            fsync: durability.enabled.then_some(durability.fsync),
            addr,
            started: Instant::now(),
            connected: AtomicUsize::new(0),
        });
        let nodes = {
            let (opened, config) = (opened.clone(), Arc::clone(&config));
            Sharded::start(async move |worker| {
                start_node(worker, opened.clone(), Arc::clone(&config), keyspace.clone()).await
            })
            .await?
        };
        if let Some(opened) = &opened {
            persist::settle(opened).await.map_err(io::Error::other)?;
        }
        let stopping = CancelToken::new();
        let mut server = Server { addr, nodes, stopping, accepting: Vec::new() };
        server.accept(first).await?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts the accept loop of every worker that has one; this one's listener is bound already.
    async fn accept(&mut self, first: Listener) -> io::Result<()> {
        let here = veloq::current_worker();
        let node = Rc::clone(&*self.nodes.local()?);
        node.set_nodes(self.nodes.clone());
        spawn_local(Rc::clone(&node).tick_forever());
        for worker in veloq::workers().filter(|worker| *worker != here) {
            let (nodes, stopping) = (self.nodes.clone(), self.stopping.child());
            let addr = first.is_shared.then_some(self.addr);
            let started = self.nodes.on(worker, async move |node: &Rc<Node>| {
                node.set_nodes(nodes);
                spawn_local(Rc::clone(node).tick_forever());
                if let Some(addr) = addr {
                    let listener = Listener::shared(addr).await?;
                    // Detached: it ends by its token.
                    drop(spawn_local(accept_until(listener, Rc::clone(node), stopping)));
                }
                Ok::<(), io::Error>(())
            });
            started.await??;
        }
        self.accepting.push(spawn_local(accept_until(first, node, self.stopping.child())));
        Ok(())
    }

    /// Stops in order: nothing that was acknowledged is lost, whatever `--fsync` says.
    ///
    /// # Errors
    /// If a log could not be written.
    pub async fn stop(self) -> io::Result<()> {
        self.stopping.cancel();
        for accepting in self.accepting {
            drop(accepting.await);
        }
        let mut result = Ok(());
        for worker in veloq::workers() {
            let closed = self.nodes.on(worker, async |node: &Rc<Node>| {
                node.kill_all().await;
                let deadline = veloq::time::Instant::now() + PATIENCE;
                while node.connections() > 0 && veloq::time::Instant::now() < deadline {
                    veloq::time::sleep(Duration::from_millis(1)).await;
                }
            });
            closed.await?;
        }
        for worker in veloq::workers() {
            let flushed = self.nodes.on(worker, async |node: &Rc<Node>| match node.persist() {
                Some(persist) => persist.stop().await.map_err(|error| error.to_string()),
                None => Ok(()),
            });
            result = result.and(flushed.await?.map_err(io::Error::other));
        }
        // Calls in flight are those of connections that did not end in time; they are dropped with their worker.
        let _unfinished = self.nodes.stop(Duration::ZERO).await;
        result
    }

    /// All nodes, for whoever wants to know more of them.
    #[must_use]
    pub fn nodes(&self) -> &Sharded<Rc<Node>> {
        &self.nodes
    }
}

/// A worker's listener.
struct Listener {
    socket: TcpListener,
    /// Whether every worker has one on this address. Otherwise this one is alone, and accepts for all.
    is_shared: bool,
}

impl Listener {
    /// One that shares its address with those of the other workers.
    async fn shared(addr: SocketAddr) -> io::Result<Listener> {
        let builder = TcpListener::builder().reuse_addr(true).reuse_port(true);
        Ok(Listener { socket: builder.backlog(BACKLOG).bind(addr).await?, is_shared: true })
    }

    /// The first one: shared, if this system knows such a thing.
    async fn first(addr: SocketAddr) -> io::Result<Listener> {
        match Listener::shared(addr).await {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let socket = TcpListener::builder().reuse_addr(true).backlog(BACKLOG).bind(addr).await?;
                Ok(Listener { socket, is_shared: false })
            }
            bound => bound,
        }
    }

    fn addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Makes a worker's node: its shard as the logs have it, and its log ready for more.
async fn start_node(
    worker: WorkerId,
    opened: Option<Opened>,
    config: Arc<Config>,
    keyspace: Keyspace,
) -> io::Result<Rc<Node>> {
    let index = u32::try_from(worker.index()).expect("workers are few");
    let mut shard = Shard::new(index, keyspace.clone(), &config.limits);
    let recovered = match &opened {
        Some(opened) => Some(persist::recover(opened, &mut shard).await.map_err(io::Error::other)?),
        None => None,
    };
    let journal = if recovered.is_some() { Journal::new() } else { Journal::off() };
    let state = Rc::new(RefCell::new(State { shard, journal, gate: Gate::new() }));
    let node = Node::new(worker, config, keyspace, Rc::clone(&state));
    if let Some(recovered) = recovered {
        node.set_persist(Persist::start(recovered, state));
    }
    Ok(node)
}

/// Accepts connections until the server stops: this worker's, or everybody's.
async fn accept_until(listener: Listener, node: Rc<Node>, stopping: CancelToken) -> io::Result<()> {
    let here = veloq::current_worker();
    let takers = if listener.is_shared { vec![here] } else { veloq::workers().collect() };
    let mut turns = takers.into_iter().cycle();
    let handing_over = veloq::task::Gate::new();
    while let Some(accepted) = stopping.run_until_cancelled(listener.socket.accept()).await {
        match accepted {
            Ok((stream, peer)) => match turns.next().expect("there is a worker") {
                worker if worker == here => serve(&node, stream, peer),
                // Not waited for: a worker that is slow to answer must not keep the next connection from the others. Descriptors
                // bound how many are on their way.
                worker => {
                    let (node, pass) =
                        (Rc::clone(&node), handing_over.enter().expect("it is open until the end"));
                    drop(spawn_local(async move {
                        hand_over(&node, worker, stream, peer).await;
                        drop(pass);
                    }));
                }
            },
            // Out of descriptors, mostly: others may close theirs. Without the pause this would spin.
            Err(error) => {
                eprintln!("kv: {:?} cannot accept: {error}", veloq::current_worker());
                veloq::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Who stops kills the connections next: each must be with its worker by then.
    handing_over.close().await;
    Ok(())
}

/// Serves a connection on this worker, if there may be one more.
fn serve(node: &Rc<Node>, stream: TcpStream, peer: SocketAddr) {
    let _option = stream.set_nodelay(true);
    match node.admit(stream, peer) {
        Ok(client) => drop(spawn_local(connection::serve(Rc::clone(node), client))),
        Err(stream) => drop(spawn_local(async move {
            let _told = stream.write_all(TOO_MANY_CLIENTS).await;
        })),
    }
}

/// Has another worker serve a connection. It was just accepted, so it still belongs to nobody, and nothing of it was read.
async fn hand_over(node: &Rc<Node>, worker: WorkerId, stream: TcpStream, peer: SocketAddr) {
    let handed = async {
        let (stream, _nothing) = stream.into_std().await?;
        let served = node.nodes().on(worker, async move |node: &Rc<Node>| {
            serve(node, TcpStream::from_std(stream)?, peer);
            Ok::<(), io::Error>(())
        });
        served.await?
    };
    if let Err(error) = handed.await {
        // A server that stops takes none; and the client sees the connection end.
        eprintln!("kv: {worker:?} did not get a connection: {error}");
    }
}

/// What CONFIG GET shows.
fn settings(options: &Options, limits: &Limits, addr: SocketAddr) -> Settings {
    let dir = options.dir.canonicalize().unwrap_or_else(|_| options.dir.clone());
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    Settings(vec![
        ("bind", addr.ip().to_string()),
        ("port", addr.port().to_string()),
        ("dir", dir.display().to_string()),
        ("databases", crate::shard::DATABASES.to_string()),
        ("maxclients", limits.clients_max.to_string()),
        ("maxmemory", limits.memory_max.to_string()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("proto-max-bulk-len", limits.value_max.to_string()),
        ("client-query-buffer-limit", limits.query_max.to_string()),
        ("appendonly", yes_no(!options.no_log)),
        ("appendfsync", options.fsync.to_string()),
        ("save", String::new()),
        ("timeout", "0".to_owned()),
        ("tcp-backlog", BACKLOG.to_string()),
        ("io-threads", veloq::workers().len().to_string()),
    ])
}

/// Any number: clients must not be able to choose keys that collide.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(now_us())
}

/// Gathers INFO from all nodes.
pub async fn info(node: &Rc<Node>) -> Info {
    let parts = node.ask_all(async |node: &Rc<Node>| (node.index, node.info())).await;
    let config = &node.config;
    let mut info = Info {
        process_id: std::process::id(),
        tcp_port: config.addr.port(),
        now: now_us(),
        uptime: config.started.elapsed(),
        executable: std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default(),
        maxclients: config.limits.clients_max,
        maxmemory: config.limits.memory_max,
        aof_enabled: config.fsync.is_some(),
        databases: vec![DbSize::default(); usize::from(crate::shard::DATABASES)],
        ..Info::default()
    };
    (info.used_memory_rss, info.used_cpu_user, info.used_cpu_sys) = process_usage();
    for (_, part) in &parts {
        add_node(&mut info, part);
    }
    let metrics = veloq::runtime::Handle::current().metrics();
    let workers = parts.iter().zip(metrics).map(|((index, part), metrics)| {
        let line = format!(
            "clients={},keys={},commands={},operations={},kernel_entries={},mesh_sent={},mesh_received={}",
            part.clients,
            part.sizes.iter().map(|db| db.keys).sum::<usize>(),
            part.commands,
            metrics.operations,
            metrics.kernel_entries,
            metrics.mesh_sent,
            metrics.mesh_received,
        );
        (format!("worker{index}"), line)
    });
    info.extra.push(("Workers", workers.collect()));
    info
}

fn add_node(info: &mut Info, part: &NodeInfo) {
    info.connected_clients += part.clients;
    info.used_memory += part.used;
    info.total_connections_received += part.accepted;
    info.rejected_connections += part.rejected;
    info.total_commands_processed += part.commands;
    info.total_net_input_bytes += part.bytes_in;
    info.total_net_output_bytes += part.bytes_out;
    info.expired_keys += part.expired;
    info.keyspace_hits += part.stats.hits;
    info.keyspace_misses += part.stats.misses;
    for (sum, db) in info.databases.iter_mut().zip(&part.sizes) {
        sum.keys += db.keys;
        sum.expires += db.expires;
    }
}

/// Resident memory, and CPU time in user and system mode, from `/proc/self/stat`; zeros where there is none.
fn process_usage() -> (usize, Duration, Duration) {
    // Clock ticks and pages, as every Linux on x86-64 and arm64 counts them here: 100 a second, 4 KiB.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = match stat.rsplit_once(") ") {
        Some((_, rest)) => rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect(),
        None => Vec::new(),
    };
    let field = |n: usize| fields.get(n).copied().unwrap_or(0);
    let ticks = |n: usize| Duration::from_millis(field(n) * 10);
    (usize::try_from(field(21) * 4096).unwrap_or(0), ticks(11), ticks(12))
}

/// The runtime that the options ask for.
///
/// # Errors
/// Those of [`Builder::build`](veloq::runtime::Builder::build).
pub fn runtime(options: &Options) -> io::Result<veloq::Runtime> {
    let mut builder = veloq::runtime::Builder::new().pin(!options.no_pin).thread_name("kv");
    if let Some(workers) = options.workers {
        builder = builder.workers(workers);
    }
    if options.workers == Some(1) {
        builder = builder.linger(LINGER);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use clap::Parser;

    use super::*;

    /// Asks over a connection whether its worker is there; ends when that has answered.
    async fn ping(stream: &TcpStream) {
        stream.write_all(b"PING\r\n").await.0.expect("the connection stands");
        let mut reply = Vec::new();
        while !reply.ends_with(b"\r\n") {
            let (read, some) = stream.read(Vec::with_capacity(16)).await;
            assert_ne!(read.expect("the connection stands"), 0, "the server has closed it");
            reply.extend(some);
        }
        assert_eq!(reply, b"+PONG\r\n");
    }

    /// Where one listener serves all, a worker in a long poll does not take its connections. If the accept loop waited for it, those of the
    /// others would wait as well: here for ever, as the poll ends only after they have been served.
    #[test]
    fn a_worker_in_a_long_poll_keeps_no_connection_from_the_others() {
        let options =
            Options::parse_from(["kv", "--bind=127.0.0.1:0", "--workers=2", "--no-pin", "--no-log"]);
        let served = runtime(&options).expect("a runtime").block_on(async move {
            let server = Server::start(&options).await?;
            let socket = TcpListener::bind(options.bind).await?;
            let (addr, stopping) = (socket.local_addr()?, CancelToken::new());
            let node = Rc::clone(&*server.nodes().local()?);
            let alone = Listener { socket, is_shared: false };
            let accepting = spawn_local(accept_until(alone, node, stopping.child()));

            let (begins, begun) = mpsc::channel();
            let (go_on, goes_on) = mpsc::channel::<()>();
            let other = veloq::workers().last().expect("there are two");
            let poll = veloq::spawn_to(other, async move || {
                begins.send(()).expect("it is waited for");
                goes_on.recv().expect("it is told")
            });
            // A turn's end sends it on its way.
            while begun.try_recv().is_err() {
                veloq::task::yield_now().await;
            }
            let mut streams = Vec::new();
            for _ in 0..4 {
                streams.push(TcpStream::connect(addr).await?);
            }
            // They are dealt out in turn, this worker first.
            ping(&streams[0]).await;
            ping(&streams[2]).await;
            go_on.send(()).expect("it waits");
            poll.await.expect("it does not panic");
            ping(&streams[1]).await;
            ping(&streams[3]).await;
            stopping.cancel();
            accepting.await.expect("it does not panic")?;
            server.stop().await
        });
        served.expect("loopback works");
    }
}
