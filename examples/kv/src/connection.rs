//! One client's connection: bytes in, commands run, replies out, in order.
//!
//! ```text
//! receive ─▶ run: parse and run command after command ─▶ settle: fetch what other shards owe ─▶ send ─▶ receive
//!                 ▲                                │
//!                 └────────── go on ◀── pause: a command that must wait for something
//! ```
//!
//! Commands on keys of this worker's shard run at once, straight from the receive buffer into the output. One for another
//! shard leaves a *hole* in the output and goes into that shard's batch; at the end of the stretch the batches travel, all
//! at the same time, and their replies fill the holes. So a pipeline costs one round trip over the mesh, not one for each
//! command. Each shard runs its part in the order in which the client said it; once this worker's own shard has something in
//! a batch (its gate was closed, or a command was split), later commands for it go there too. A batch whose replies are long
//! comes back before all of it has run; what can be sent is sent, and it travels again.
//!
//! A command that is for the server rather than for keys (CLIENT LIST, a RENAME over two shards) is a *pause*: what came
//! before it is settled first.
//!
//! While replies are being sent the connection goes on receiving, up to the bound of a query: a client that writes a long
//! pipeline before it reads would otherwise wait for us as we wait for it.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::{Either, join, join_all, select};

use veloq::net::WriteAll;

use crate::batch::{Batch, REPLIES};
use crate::command::{self, Command, Rejection};
use crate::limits;
use crate::node::{Client, Node, Refused, State, add, now_ms, now_us};
use crate::plan::{Merge, Route, route};
use crate::resp::{Args, Encoder, Parser, ProtocolError};
use crate::session::{Action, Session};
use crate::txn::{Transaction, Work, Worked};

/// Output is sent when it has come to so much, however long the pipeline: the client can read while we go on.
const SEND_AT: usize = 256 * 1024;

/// Bytes of requests after which what is owed is fetched: a client that writes a gibibyte before it reads would otherwise have
/// another worker's part of it copied, and a hole for each command of it.
const STRETCH: usize = 1024 * 1024;

/// Bytes that a connection's buffers keep between requests. An idle client must not hold what a large value once took.
const KEEP: usize = 16 * 1024;

/// Serves a client until it has gone, or must go.
pub async fn serve(node: Rc<Node>, client: Rc<Client>) {
    let mut connection = Connection {
        parser: Parser::new(node.config.limits.value_max),
        batches: (0..node.keyspace.shards()).map(|_| None).collect(),
        spare: Vec::new(),
        input: Vec::new(),
        arrived: Vec::new(),
        out: Vec::new(),
        sending: None,
        spare_out: Vec::new(),
        holes: Vec::new(),
        ended: false,
        node: Rc::clone(&node),
        client: Rc::clone(&client),
    };
    // An error is the client's end, in one of the ways in which connections end.
    if connection.run_until_closed().await.is_ok() {
        let _sent = connection.sent().await;
    }
    node.dismiss(&client);
}

/// A connection's state between two pieces of input.
struct Connection {
    node: Rc<Node>,
    client: Rc<Client>,
    parser: Parser,
    /// The beginning of a request whose rest has not arrived.
    input: Vec<u8>,
    /// What came while replies were being sent.
    arrived: Vec<u8>,
    /// Replies, with holes.
    out: Vec<u8>,
    /// Replies that the kernel has.
    sending: Option<WriteAll<Vec<u8>>>,
    /// An empty output, for its memory.
    spare_out: Vec<u8>,
    /// What is missing in `out`, in order.
    holes: Vec<Hole>,
    /// What goes to each shard at the end of the stretch.
    batches: Vec<Option<Batch>>,
    /// Empty batches, for their memory.
    spare: Vec<Batch>,
    /// The client sends no more.
    ended: bool,
}

/// A reply that another shard owes, and where in the output it belongs.
struct Hole {
    at: usize,
    owed: Owed,
}

/// Whose replies fill a hole: shards, and the numbers of the commands in their batches.
enum Owed {
    One(u32, usize),
    Merged(Merge, Vec<(u32, usize)>),
}

/// Why a stretch of commands ended.
enum Pause {
    /// All complete requests were run.
    Input,
    /// There is enough to send, to fetch, or to write.
    Output,
    /// What is owed must be settled before the next command.
    Barrier,
    /// Close, without another word.
    Close,
    /// No request follows: say why, behind what is owed, and close.
    Broken(ProtocolError),
    /// A command over several shards, all or nothing.
    Transaction(Transaction),
    /// A command about the server.
    Action(Action),
}

impl Connection {
    async fn run_until_closed(&mut self) -> std::io::Result<()> {
        while !self.ended {
            let data = self.client.stream.recv().await?;
            if data.is_empty() {
                break;
            }
            add(&self.node.counters.bytes_in, data.len() as u64);
            if self.input.is_empty() {
                // The usual case: whole requests, run from the buffer that the kernel filled, and nothing to wait for.
                let (mut at, pause) = self.run(&data);
                if !matches!(pause, Pause::Input) || !self.is_settled() || !self.send_at_once()? {
                    let Some(rest) = self.run_all(&data, at, pause).await? else { break };
                    at = rest;
                }
                self.input.extend_from_slice(&data[at..]);
            } else {
                self.input.extend_from_slice(&data);
                if !self.run_input().await? {
                    break;
                }
            }
            drop(data);
            while !self.arrived.is_empty() {
                let arrived = std::mem::take(&mut self.arrived);
                self.input.extend_from_slice(&arrived);
                if !self.run_input().await? {
                    return Ok(());
                }
            }
            self.make_room()?;
        }
        Ok(())
    }

    /// Runs what has been put together in `input`. Says whether the connection stays open.
    async fn run_input(&mut self) -> std::io::Result<bool> {
        let mut input = std::mem::take(&mut self.input);
        let (at, pause) = self.run(&input);
        let Some(rest) = self.run_all(&input, at, pause).await? else { return Ok(false) };
        input.drain(..rest);
        self.input = input;
        Ok(true)
    }

    /// Sizes `input` for the rest of the request that has begun.
    fn make_room(&mut self) -> std::io::Result<()> {
        let len = self.input.len();
        self.client.input.set(len);
        if len > self.node.config.limits.query_max {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        if len == 0 {
            self.input.shrink_to(KEEP);
        } else if self.parser.missing() > KEEP {
            // A large value, whose length is known: its room is made once.
            self.input.reserve(self.parser.missing());
        }
        Ok(())
    }

    /// Runs every complete request in `data` and sends the replies, after the first stretch of them was run up to `at`. Gives where
    /// the rest begins, or `None` to close.
    async fn run_all(
        &mut self,
        data: &[u8],
        mut at: usize,
        mut pause: Pause,
    ) -> std::io::Result<Option<usize>> {
        loop {
            self.settle().await?;
            if self.ended {
                self.send().await?;
                return Ok(None);
            }
            let more = match pause {
                Pause::Input => false,
                Pause::Output => {
                    self.node.room().await;
                    true
                }
                Pause::Barrier => true,
                Pause::Close => return Ok(None),
                Pause::Broken(error) => {
                    error.encode(&mut self.out);
                    self.send().await?;
                    return Ok(None);
                }
                Pause::Transaction(transaction) => {
                    self.transact(transaction).await;
                    true
                }
                Pause::Action(action) => {
                    if self.act(action).await == Next::Close {
                        self.send().await?;
                        return Ok(None);
                    }
                    true
                }
            };
            if !more || self.out.len() >= SEND_AT {
                self.send().await?;
            }
            if !more {
                return Ok(Some(at));
            }
            let (consumed, next) = self.run(&data[at..]);
            at += consumed;
            pause = next;
        }
    }

    /// Runs commands until one must wait. Gives how many bytes they took.
    fn run(&mut self, data: &[u8]) -> (usize, Pause) {
        let now = now_ms();
        self.client.active.set(now);
        let node = Rc::clone(&self.node);
        let Connection { client, parser, out, holes, batches, spare, .. } = self;
        let session = &mut *client.session.borrow_mut();
        let State { shard, journal, gate } = &mut *node.state.borrow_mut();
        let mut push = |batches: &mut Vec<Option<Batch>>,
                        to: u32,
                        command,
                        args: &mut dyn Iterator<Item = &[u8]>,
                        hash,
                        call,
                        hole| {
            let batch = batches[to as usize].get_or_insert_with(|| spare.pop().unwrap_or_default());
            batch.begin_go(hole);
            batch.push(command, args, hash, call)
        };
        let mut commands = 0;
        let mut at = 0;
        let pause = loop {
            if out.len() >= SEND_AT || at >= STRETCH || shard.is_behind(journal) {
                break Pause::Output;
            }
            let frame = match parser.parse(&data[at..]) {
                Ok(Some(frame)) => frame,
                Ok(None) => break Pause::Input,
                Err(error) => break Pause::Broken(error),
            };
            let (args, len) = (frame.args, frame.len);
            if args.is_empty() {
                at += len;
                continue;
            }
            let command = match command::resolve(&args) {
                Ok(command) => command,
                Err(Rejection::Foreign) => {
                    // Somebody speaks HTTP to us, perhaps because a web page made a browser do so: not a word.
                    out.clear();
                    holes.clear();
                    break Pause::Close;
                }
                Err(rejection) => {
                    rejection.encode(&args, &mut Encoder::new(out, session.protocol));
                    at += len;
                    continue;
                }
            };
            let call = session.call(now);
            match route(command, &args, &node.keyspace, session.db) {
                Route::Shard { shard: to, hash }
                    if to == node.index && gate.is_open() && batches[to as usize].is_none() =>
                {
                    shard.execute(command, &args, hash, &call, out, journal);
                }
                Route::Shard { shard: to, hash } => {
                    let number = push(batches, to, command, &mut args.iter(), hash, call, holes.len());
                    holes.push(Hole { at: out.len(), owed: Owed::One(to, number) });
                }
                Route::Split(split) => {
                    let hole = holes.len();
                    let numbers = split.parts.iter().map(|part| {
                        let args = &mut part.args(&args);
                        (part.shard, push(batches, part.shard, part.command, args, part.hash, call, hole))
                    });
                    let owed = Owed::Merged(split.merge, numbers.collect());
                    holes.push(Hole { at: out.len(), owed });
                }
                Route::Transaction | Route::Connection if !holes.is_empty() => break Pause::Barrier,
                Route::Transaction => {
                    at += len;
                    commands += 1;
                    session.last = command.name;
                    break Pause::Transaction(Transaction::new(
                        node.next_txn(),
                        command,
                        &args,
                        &node.keyspace,
                        call,
                    ));
                }
                Route::Connection => {
                    let action = run_here(session, command, &args, &node, out);
                    if action != Action::Done {
                        at += len;
                        commands += 1;
                        session.last = command.name;
                        break Pause::Action(action);
                    }
                }
            }
            at += len;
            commands += 1;
            session.last = command.name;
        };
        add(&node.counters.commands, commands);
        (at, pause)
    }

    /// Whether nothing is owed, and what changed here is as durable as promised.
    fn is_settled(&self) -> bool {
        self.holes.is_empty() && self.node.is_committed()
    }

    /// Sends the batches and fills the holes; then waits until what changed here is as durable as promised.
    async fn settle(&mut self) -> std::io::Result<()> {
        if self.holes.is_empty() {
            if let Err(refused) = self.node.commit().await {
                self.refuse(&refused);
            }
            return Ok(());
        }
        loop {
            if let Some(refused) = self.exchange().await {
                self.refuse(&refused);
                break;
            }
            let rest = self.fill_holes();
            if self.holes.is_empty() {
                break;
            }
            // A single command's replies are more than a batch may hold.
            if self.batches.iter().flatten().any(|batch| batch.held() > self.node.config.limits.output_max) {
                return Err(std::io::ErrorKind::QuotaExceeded.into());
            }
            self.send().await?;
            self.out.extend_from_slice(&rest);
        }
        for mut batch in self.batches.iter_mut().filter_map(Option::take) {
            batch.clear();
            self.spare.push(batch);
        }
        Ok(())
    }

    /// Has the shards run their batches, or some more of them, all at the same time. Says so if nothing of it may be
    /// acknowledged.
    async fn exchange(&mut self) -> Option<Refused> {
        let node = &self.node;
        // One that holds replies still, because others must come first, is not asked for more.
        let wanted = |batch: &mut Batch| !batch.is_done() && batch.held() < REPLIES;
        let sent = self.batches.iter_mut().enumerate().filter_map(|(to, batch)| {
            let to = u32::try_from(to).expect("shards are few");
            let batch = batch.take_if(wanted)?;
            Some(async move { (to, node.work(to, Work::Batch(batch)).await) })
        });
        let (committed, answers) = join(node.commit(), join_all(sent)).await;
        let mut refused = committed.err();
        for (from, answer) in answers {
            match answer {
                Ok(Worked::Batch(batch)) => self.batches[from as usize] = Some(batch),
                Ok(Worked::Step(_)) => panic!("a batch comes back as a batch"),
                Err(why) => refused = Some(why),
            }
        }
        refused
    }

    /// Puts the replies where they belong, up to the first that is not there. The output then ends there; what is behind is
    /// given back.
    fn fill_holes(&mut self) -> Vec<u8> {
        let protocol = self.client.session.borrow().protocol;
        let batch = |shard: u32| self.batches[shard as usize].as_ref().expect("every batch has come back");
        let reply = |(shard, number): (u32, usize)| batch(shard).reply(number);
        let has_reply = |&(shard, number): &(u32, usize)| batch(shard).has_reply(number);
        let with_holes = std::mem::take(&mut self.out);
        let (mut from, mut filled) = (0, 0);
        for hole in &self.holes {
            let there = match &hole.owed {
                Owed::One(shard, number) => has_reply(&(*shard, *number)),
                Owed::Merged(_, parts) => parts.iter().all(has_reply),
            };
            if !there {
                break;
            }
            self.out.extend_from_slice(&with_holes[from..hole.at]);
            from = hole.at;
            filled += 1;
            match &hole.owed {
                Owed::One(shard, number) => self.out.extend_from_slice(reply((*shard, *number))),
                Owed::Merged(merge, parts) => {
                    let mut encoder = Encoder::new(&mut self.out, protocol);
                    merge.encode(parts.iter().copied().map(reply), now_us(), &mut encoder);
                }
            }
        }
        if filled == self.holes.len() {
            self.holes.clear();
            self.out.extend_from_slice(&with_holes[from..]);
            return Vec::new();
        }
        let mut used: Vec<_> = self.batches.iter().map(|_| None).collect();
        for hole in self.holes.drain(..filled) {
            match hole.owed {
                Owed::One(shard, number) => used[shard as usize] = Some(number),
                Owed::Merged(_, parts) => {
                    parts.iter().for_each(|(shard, number)| used[*shard as usize] = Some(*number))
                }
            }
        }
        for (batch, last) in self.batches.iter_mut().zip(used) {
            if let (Some(batch), Some(last)) = (batch, last) {
                batch.release(last);
            }
        }
        for hole in &mut self.holes {
            hole.at -= from;
        }
        with_holes[from..].to_vec()
    }

    /// Answers a stretch whose effects are not safe: nothing of it may be acknowledged, so the connection ends with the
    /// reason.
    fn refuse(&mut self, refused: &Refused) {
        self.holes.clear();
        self.out.clear();
        let mut encoder = self.encoder();
        limits::misconfigured(refused, &mut encoder);
        self.ended = true;
    }

    /// Runs a transaction to its end, in a task of its own: shards that it holds must be released even if the client goes.
    async fn transact(&mut self, mut transaction: Transaction) {
        let node = Rc::clone(&self.node);
        let task = veloq::spawn_local(async move {
            let (mut answer, mut refused) = (None, None);
            while let Some((shard, step)) = transaction.next(answer.take()) {
                match node.work(shard, Work::Step(step)).await {
                    Ok(Worked::Step(step)) => answer = Some(step),
                    Ok(Worked::Batch(_)) => panic!("a step comes back as a step"),
                    Err(why) => {
                        transaction.give_up();
                        refused.get_or_insert(why);
                    }
                }
            }
            refused.map_or(Ok(transaction), Err)
        });
        match task.await {
            Ok(Ok(transaction)) => self.out.extend_from_slice(transaction.reply()),
            Ok(Err(refused)) => self.refuse(&refused),
            Err(_) => self.refuse(&Refused("the server is stopping".to_owned())),
        }
    }

    /// Does what a command about the server asks.
    async fn act(&mut self, action: Action) -> Next {
        let node = Rc::clone(&self.node);
        match action {
            Action::Done => {}
            Action::Close => return Next::Close,
            Action::Sleep(time) => {
                // As in Redis the worker stands still, with all its clients: that is what the command is for.
                std::thread::sleep(time.min(Duration::from_secs(3600)));
            }
            Action::Info(sections) => {
                let info = crate::server::info(&node).await;
                info.encode(&sections, &mut self.encoder());
            }
            Action::Clients(filter) => {
                let clients = self.clients().await;
                filter.encode(&clients, &mut self.encoder());
            }
            Action::Kill(filter) => {
                let clients = self.clients().await;
                let chosen = filter.choose(&clients, &mut self.encoder());
                let id = self.client.session.borrow().id;
                let own = chosen.contains(&id);
                let others: Vec<_> = chosen.into_iter().filter(|other| *other != id).collect();
                node.ask_all(async move |node: &Rc<Node>| node.kill(&others).await).await;
                if own {
                    return Next::Close;
                }
            }
            Action::ResetStats => {
                node.ask_all(async |node: &Rc<Node>| node.reset_stats()).await;
            }
        }
        Next::GoOn
    }

    /// Replies go behind what the output holds.
    fn encoder(&mut self) -> Encoder<'_> {
        Encoder::new(&mut self.out, self.client.session.borrow().protocol)
    }

    /// All clients of the server, by id.
    async fn clients(&self) -> Vec<crate::session::ClientInfo> {
        let mut clients: Vec<_> = self
            .node
            .ask_all(async |node: &Rc<Node>| node.client_infos())
            .await
            .into_iter()
            .flatten()
            .collect();
        clients.sort_by_key(|client| client.id);
        clients
    }

    /// Hands the output to the kernel. A usual reply is sent by the time of the next request, so nobody is woken to hear
    /// of it; a long one is waited for, since the client's reading must set the pace.
    async fn send(&mut self) -> std::io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        if self.out.len() > self.node.config.limits.output_max {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        self.sent().await?;
        let waits = self.out.len() > KEEP;
        self.hand_over()?;
        if waits { self.sent().await } else { Ok(()) }
    }

    /// The same without waiting. Says whether that was possible.
    fn send_at_once(&mut self) -> std::io::Result<bool> {
        if self.out.is_empty() {
            return Ok(true);
        }
        if self.out.len() > KEEP || !self.is_sent()? {
            return Ok(false);
        }
        self.hand_over()?;
        Ok(true)
    }

    /// Hands the output to the kernel, which has none of it now.
    fn hand_over(&mut self) -> std::io::Result<()> {
        let out = std::mem::replace(&mut self.out, std::mem::take(&mut self.spare_out));
        add(&self.node.counters.bytes_out, out.len() as u64);
        self.client.output.set(out.len());
        self.sending = Some(self.client.stream.write_all(out));
        self.is_sent().map(drop)
    }

    /// Whether the output that was handed over last has been sent. Nobody is woken when it is.
    fn is_sent(&mut self) -> std::io::Result<bool> {
        let Some(write) = &mut self.sending else { return Ok(true) };
        match Pin::new(write).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Ok(false),
            Poll::Ready((sent, out)) => {
                self.sending = None;
                self.take_back(sent, out).map(|()| true)
            }
        }
    }

    /// Waits until the output that was handed over last has been sent, and keeps receiving meanwhile.
    async fn sent(&mut self) -> std::io::Result<()> {
        // The usual case: it was sent long ago. Then nobody needs to be told when, and nothing else to be received.
        if self.is_sent()? {
            return Ok(());
        }
        let Some(mut write) = self.sending.take() else { return Ok(()) };
        let stream = Rc::clone(&self.client.stream);
        let (sent, out) = loop {
            if self.ended || self.arrived.len() > self.node.config.limits.query_max {
                break write.await;
            }
            match select(&mut write, pin!(stream.recv())).await {
                Either::Left((sent, _)) => break sent,
                Either::Right((Ok(data), _)) if !data.is_empty() => {
                    add(&self.node.counters.bytes_in, data.len() as u64);
                    self.arrived.extend_from_slice(&data);
                }
                // The stream's end, or its error, comes again at the next receive; the replies go out all the same.
                Either::Right(_) => break write.await,
            }
        };
        self.take_back(sent, out)
    }

    /// Keeps a sent output's memory for the next one.
    fn take_back(&mut self, sent: std::io::Result<()>, mut out: Vec<u8>) -> std::io::Result<()> {
        self.client.output.set(0);
        out.clear();
        out.shrink_to(KEEP);
        self.spare_out = out;
        sent
    }
}

/// Whether a connection goes on.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Close,
}

/// Runs a command that has no keys.
fn run_here(
    session: &mut Session,
    command: &'static Command,
    args: &Args<'_>,
    node: &Node,
    out: &mut Vec<u8>,
) -> Action {
    session.run(command, args, now_us(), &node.config.settings, out)
}
