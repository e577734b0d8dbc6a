//! What one worker has of the server: its shard, its log, its clients, and the way to the other workers' shards.
//!
//! Everything here is plain memory of one worker. Work for the shard comes from connections on this worker and, over the
//! mesh, from the other nodes; both pass the shard's [`Gate`], which a transaction over several shards may hold.
//!
//! **Batching.** What connections have for another shard in a turn is collected in an outbox and travels as one message: the
//! first to put something in spawns the task that sends it, which runs behind all that are ready, so the others add theirs
//! first. The answers come back with that message's reply, but for those that must wait for a transaction: these come each
//! for itself, or the transaction might wait for a message that waits for the transaction.
//!
//! **Durability.** With `--fsync always`, work is answered when all that the shard has journalled so far is on the disk:
//! a reply never shows what a crash could take back, be it one's own write or another client's.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_channel::oneshot;
use veloq::net::TcpStream;
use veloq::{Sharded, WorkerId, spawn_local};

use crate::db::{Keyspace, Millis};
use crate::limits::Limits;
use crate::log::Journal;
use crate::persist::{Fsync, Persist};
use crate::session::{ClientInfo, Session, Settings};
use crate::shard::{DbSize, Shard, Stats};
use crate::txn::{Gate, TxnId, Work, Worked};

/// What all workers of a server know alike.
#[derive(Debug)]
pub struct Config {
    /// The bounds.
    pub limits: Limits,
    /// When a write is acknowledged; `None` without a log.
    pub fsync: Option<Fsync>,
    /// What CONFIG GET shows.
    pub settings: Settings,
    /// Where the server listens.
    pub addr: SocketAddr,
    /// When it started.
    pub started: Instant,
    /// Connections of all workers: the one number that they share, for `maxclients` is one bound for all.
    pub connected: AtomicUsize,
}

/// One worker's part of the server.
#[derive(Debug)]
pub struct Node {
    /// The worker's number, which is also its shard's.
    pub index: u32,
    /// What all workers know.
    pub config: Arc<Config>,
    /// Which shard has which key.
    pub keyspace: Keyspace,
    /// The shard and what goes with it. Borrowed for a stretch of commands at a time, never across an await.
    pub state: Rc<RefCell<State>>,
    /// What this node has counted.
    pub counters: Counters,
    persist: OnceCell<Rc<Persist>>,
    nodes: OnceCell<Sharded<Rc<Node>>>,
    outboxes: Vec<RefCell<Vec<Letter>>>,
    clients: RefCell<HashMap<u64, Rc<Client>>>,
    next_client: Cell<u64>,
    next_txn: Cell<u64>,
}

/// The shard, what it has journalled and not written, and who may work on it.
#[derive(Debug)]
pub struct State {
    /// The keys.
    pub shard: Shard,
    /// Effects on their way to the log.
    pub journal: Journal,
    /// Who goes first.
    pub gate: Gate<oneshot::Sender<Worked>>,
}

/// Work for another shard, and who waits for it.
#[derive(Debug)]
struct Letter {
    work: Work,
    answer: oneshot::Sender<Answer>,
}

/// Work that was done, or why what it changed is not safe.
type Answer = Result<Worked, Refused>;

/// What a node says to work that another has sent.
#[derive(Debug)]
enum Received {
    Done(Answer),
    /// It waits for a transaction.
    Later(oneshot::Receiver<Answer>),
}

/// Work that has no result: what it changed could not be made durable, or the server is stopping.
#[derive(Debug, Clone)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node counts besides its shard's statistics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: Cell<u64>,
    /// Connections turned away.
    pub rejected: Cell<u64>,
    /// Bytes received.
    pub bytes_in: Cell<u64>,
    /// Bytes sent.
    pub bytes_out: Cell<u64>,
    /// Commands of connections here, wherever their keys are.
    pub commands: Cell<u64>,
}

/// A connection, as others see it.
#[derive(Debug)]
pub struct Client {
    /// The socket, by which it is closed.
    pub stream: Rc<TcpStream>,
    /// Who it is.
    pub peer: SocketAddr,
    /// Its state.
    pub session: RefCell<Session>,
    /// When it came.
    pub since: Instant,
    /// When it last sent something.
    pub active: Cell<Millis>,
    /// Bytes of an unfinished request.
    pub input: Cell<usize>,
    /// Bytes of replies that it has not taken.
    pub output: Cell<usize>,
    /// Whether it was told to go. Its connection may take a moment to.
    pub killed: Cell<bool>,
}

/// One node's part of INFO.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "each is a sum's part, named as in INFO")]
pub struct NodeInfo {
    pub clients: usize,
    pub used: usize,
    pub accepted: u64,
    pub rejected: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub commands: u64,
    pub expired: u64,
    pub stats: Stats,
    pub sizes: Vec<DbSize>,
}

impl Node {
    /// The node of a worker, over its recovered shard.
    #[must_use]
    pub fn new(
        worker: WorkerId,
        config: Arc<Config>,
        keyspace: Keyspace,
        state: Rc<RefCell<State>>,
    ) -> Rc<Node> {
        let shards = keyspace.shards();
        Rc::new(Node {
            index: u32::try_from(worker.index()).expect("workers are few"),
            config,
            keyspace,
            state,
            counters: Counters::default(),
            persist: OnceCell::new(),
            nodes: OnceCell::new(),
            outboxes: (0..shards).map(|_| RefCell::default()).collect(),
            clients: RefCell::default(),
            next_client: Cell::new(1),
            next_txn: Cell::new(0),
        })
    }

    /// Gives the node its log, once.
    pub fn set_persist(&self, persist: Rc<Persist>) {
        assert!(self.persist.set(persist).is_ok(), "a node has one log");
    }

    /// Gives the node the way to the others, once.
    pub fn set_nodes(&self, nodes: Sharded<Rc<Node>>) {
        assert!(self.nodes.set(nodes).is_ok(), "a node belongs to one server");
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &Sharded<Rc<Node>> {
        self.nodes.get().expect("connections come after the nodes know each other")
    }

    /// The log, if there is one.
    #[must_use]
    pub fn persist(&self) -> Option<&Rc<Persist>> {
        self.persist.get()
    }

    /// A number that no other transaction has.
    #[must_use]
    pub fn next_txn(&self) -> TxnId {
        let count = self.next_txn.replace(self.next_txn.get() + 1);
        TxnId(count * u64::from(self.keyspace.shards()) + u64::from(self.index))
    }

    /// Waits until what the shard has journalled is as durable as the server promises before it answers.
    ///
    /// # Errors
    /// If it could not be written: it must not be acknowledged.
    pub async fn commit(&self) -> Result<(), Refused> {
        let Some(persist) = self.persist.get() else { return Ok(()) };
        if !self.state.borrow().journal.is_empty() {
            persist.wake();
        }
        persist.durable(persist.ticket()).await.map_err(|error| Refused(error.to_string()))
    }

    /// Whether [`commit`](Self::commit) would not wait, and has no error to tell.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        let Some(persist) = self.persist.get() else { return true };
        if !self.state.borrow().journal.is_empty() {
            persist.wake();
        }
        persist.has(persist.ticket())
    }

    /// Waits while the shard is [behind](Shard::is_behind).
    pub async fn room(&self) {
        if let Some(persist) = self.persist.get() {
            persist.room().await;
        }
    }

    /// Runs work on a shard, this worker's or another's, and waits for its result.
    ///
    /// # Errors
    /// If what it changed is not safe, or the server is stopping.
    pub async fn work(self: &Rc<Node>, shard: u32, work: Work) -> Answer {
        if shard == self.index {
            self.room().await;
            let worked = self.offer(work);
            let worked = worked.await.map_err(|_| stopping())?;
            return self.commit().await.map(|()| worked);
        }
        let (answer, answered) = oneshot::channel();
        let first = {
            let mut outbox = self.outboxes[shard as usize].borrow_mut();
            outbox.push(Letter { work, answer });
            outbox.len() == 1
        };
        if first {
            let node = Rc::clone(self);
            // Behind all that are ready: whatever they have for that shard goes along.
            spawn_local(async move { node.send(shard).await });
        }
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Hands work to the shard's gate, which runs it now or in its turn.
    fn offer(&self, work: Work) -> oneshot::Receiver<Worked> {
        let (ticket, worked) = oneshot::channel();
        let State { shard, journal, gate } = &mut *self.state.borrow_mut();
        gate.offer(shard, now_ms(), journal, (ticket, work), |ticket, worked| {
            // Nobody waits any more if the client has gone; then there is nobody to tell.
            drop(ticket.send(worked));
        });
        worked
    }

    /// Sends what is in the outbox for a shard, and hands the answers out.
    async fn send(self: Rc<Node>, shard: u32) {
        let letters = std::mem::take(&mut *self.outboxes[shard as usize].borrow_mut());
        let (works, waiting): (Vec<_>, Vec<_>) =
            letters.into_iter().map(|letter| (letter.work, letter.answer)).unzip();
        let worker = WorkerId::new(shard as usize);
        let answers = self.nodes().on(worker, async move |node: &Rc<Node>| node.receive(works).await).await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => waiting.iter().map(|_| Received::Done(Err(Refused(error.to_string())))).collect(),
        };
        for (waits, answer) in waiting.into_iter().zip(answers) {
            match answer {
                Received::Done(answer) => drop(waits.send(answer)),
                Received::Later(answer) => drop(spawn_local(async move {
                    drop(waits.send(answer.await.unwrap_or_else(|_| Err(stopping()))));
                })),
            }
        }
    }

    /// Does what another node has sent. Answers when all of it that the gate lets through is done and safe; what must wait
    /// for a transaction is answered by itself, later: the transaction's own step may be in the same message.
    async fn receive(self: &Rc<Self>, works: Vec<Work>) -> Vec<Received> {
        self.room().await;
        let offered: Vec<_> = works.into_iter().map(|work| self.offer(work)).collect();
        let answer = |mut worked: oneshot::Receiver<Worked>| match worked.try_recv() {
            Ok(Some(worked)) => Received::Done(Ok(worked)),
            Ok(None) => Received::Later(self.answer_later(worked)),
            Err(oneshot::Canceled) => Received::Done(Err(stopping())),
        };
        let mut answers: Vec<_> = offered.into_iter().map(answer).collect();
        if let Err(refused) = self.commit().await {
            for answer in &mut answers {
                if let Received::Done(answer) = answer {
                    *answer = Err(refused.clone());
                }
            }
        }
        answers
    }

    /// Answers work that waits at the gate, once it is done and safe.
    fn answer_later(self: &Rc<Self>, worked: oneshot::Receiver<Worked>) -> oneshot::Receiver<Answer> {
        let (ticket, answer) = oneshot::channel();
        let node = Rc::clone(self);
        spawn_local(async move {
            let worked = worked.await.map_err(|_| stopping());
            let safe = node.commit().await;
            // Nobody waits any more if the other worker is stopping.
            drop(ticket.send(safe.and(worked)));
        });
        answer
    }

    /// Asks every node the same, and gives their answers by worker. Those of nodes that are stopping are left out.
    pub async fn ask_all<R: Send + 'static>(
        &self,
        ask: impl AsyncFnOnce(&Rc<Node>) -> R + Clone + Send + 'static,
    ) -> Vec<R> {
        let mut answers = Vec::new();
        for worker in veloq::workers() {
            answers.extend(self.nodes().on(worker, ask.clone()).await.ok());
        }
        answers
    }

    /// Takes in a connection.
    ///
    /// # Errors
    /// Gives it back if there are too many.
    pub fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Result<Rc<Client>, TcpStream> {
        // Relaxed: a bound on a count; nothing is read on the strength of it.
        let before = self.config.connected.fetch_add(1, Ordering::Relaxed);
        if before >= self.config.limits.clients_max {
            self.config.connected.fetch_sub(1, Ordering::Relaxed);
            add(&self.counters.rejected, 1);
            return Err(stream);
        }
        add(&self.counters.accepted, 1);
        // Interleaved by worker, so that ids are unique without anything shared, and an id tells its worker.
        let count = self.next_client.replace(self.next_client.get() + 1);
        let id = (count - 1) * u64::from(self.keyspace.shards()) + u64::from(self.index) + 1;
        let now = Instant::now();
        let client = Rc::new(Client {
            stream: Rc::new(stream),
            peer,
            session: RefCell::new(Session::new(id)),
            since: now,
            active: Cell::new(now_ms()),
            input: Cell::new(0),
            output: Cell::new(0),
            killed: Cell::new(false),
        });
        self.clients.borrow_mut().insert(id, Rc::clone(&client));
        Ok(client)
    }

    /// Lets a connection go.
    pub fn dismiss(&self, client: &Client) {
        let id = client.session.borrow().id;
        if self.clients.borrow_mut().remove(&id).is_some() {
            self.config.connected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.clients.borrow().len()
    }

    /// What CLIENT LIST shows of the connections here.
    #[must_use]
    pub fn client_infos(&self) -> Vec<ClientInfo> {
        let laddr = self.config.addr.to_string();
        let clients = self.clients.borrow();
        let shown = clients.values().filter(|client| !client.killed.get());
        shown.map(|client| client.info(&laddr)).collect()
    }

    /// Closes those of these clients that are here: each finds its stream ended, and is not listed any more.
    pub async fn kill(&self, ids: &[u64]) {
        let chosen: Vec<_> = ids.iter().filter_map(|id| self.clients.borrow().get(id).cloned()).collect();
        for client in chosen {
            client.killed.set(true);
            // An error means that the connection has ended by itself.
            let _closed = client.stream.shutdown(std::net::Shutdown::Both).await;
        }
    }

    /// Closes all connections.
    pub async fn kill_all(&self) {
        let ids: Vec<_> = self.clients.borrow().keys().copied().collect();
        self.kill(&ids).await;
    }

    /// This node's part of INFO.
    #[must_use]
    pub fn info(&self) -> NodeInfo {
        let state = self.state.borrow();
        let Counters { accepted, rejected, bytes_in, bytes_out, commands } = &self.counters;
        NodeInfo {
            clients: self.connections(),
            used: state.shard.used(),
            accepted: accepted.get(),
            rejected: rejected.get(),
            bytes_in: bytes_in.get(),
            bytes_out: bytes_out.get(),
            commands: commands.get(),
            expired: state.shard.expired(),
            stats: state.shard.stats(),
            sizes: state.shard.sizes().collect(),
        }
    }

    /// Counts from 0 again, as CONFIG RESETSTAT asks.
    pub fn reset_stats(&self) {
        let Counters { accepted, rejected, bytes_in, bytes_out, commands } = &self.counters;
        for counter in [accepted, rejected, bytes_in, bytes_out, commands] {
            counter.set(0);
        }
        self.state.borrow_mut().shard.reset_stats();
    }

    /// Removes expired keys and frees flushed ones, ten times a second, a bounded piece at a time.
    pub async fn tick_forever(self: Rc<Node>) {
        let mut beat = veloq::time::interval(Duration::from_millis(100));
        loop {
            beat.tick().await;
            while self.state.borrow_mut().shard.tick(now_ms()) {
                // Between two pieces, everybody else.
                veloq::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

impl Client {
    fn info(&self, laddr: &str) -> ClientInfo {
        let session = self.session.borrow();
        let (input, output) = (self.input.get(), self.output.get());
        ClientInfo {
            id: session.id,
            addr: self.peer.to_string(),
            laddr: laddr.to_owned(),
            fd: number(&self.stream),
            name: session.name.clone(),
            age: self.since.elapsed(),
            idle: Duration::from_millis(now_ms().saturating_sub(self.active.get())),
            db: session.db,
            qbuf: input,
            omem: output,
            tot_mem: size_of::<Self>() + input + output,
            cmd: session.last,
            protocol: session.protocol,
        }
    }
}

/// The connection's number in this process, as CLIENT LIST shows it.
#[cfg(unix)]
fn number(stream: &TcpStream) -> i64 {
    stream.as_fd().map_or(-1, |fd| std::os::fd::AsRawFd::as_raw_fd(&fd).into())
}

/// The connection's number in this process, as CLIENT LIST shows it.
#[cfg(windows)]
fn number(stream: &TcpStream) -> i64 {
    std::os::windows::io::AsRawSocket::as_raw_socket(stream).cast_signed()
}

/// Adds to a counter.
pub fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

/// The wall clock.
#[must_use]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).expect("it is not the year 586 thousand")
}

/// The wall clock, in the unit of expiries.
#[must_use]
pub fn now_ms() -> Millis {
    now_us() / 1000
}

fn stopping() -> Refused {
    Refused("the server is stopping".to_owned())
}
