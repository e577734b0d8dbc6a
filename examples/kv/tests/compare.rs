//! Every command of the corpus, sent to kv and to a real redis-server, and the replies compared.
//!
//! Redis is found by `REDIS_ADDR`, kv by `KV_ADDR`; without them the tests say so and pass. Start Redis with the same limits as kv:
//!
//! ```text
//! redis-server --port 7777 --save '' --proto-max-bulk-len 64mb --enable-debug-command yes
//! REDIS_ADDR=127.0.0.1:7777 KV_ADDR=127.0.0.1:6380 cargo test -p kv --test compare -- --nocapture
//! ```
//!
//! With `REDIS_ADDR` alone, the half of kv that needs no runtime is compared in this process, with one shard and with four.
#![expect(clippy::print_stdout, reason = "the differences are what the tests are for")]

mod corpus;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kv::{
    batch::Batch,
    command::{self, Rejection},
    db::Keyspace,
    limits::Limits,
    log::{FileName, Header, Journal, Kind, Record, Scanner, Writer},
    plan::{Route, route},
    resp::{Args, Encoder, Parser},
    session::{Action, Info, Session, Settings},
    shard::Shard,
    txn::{Gate, Transaction, TxnId, Work, Worked},
};

#[test]
fn the_server_replies_as_redis_does() {
    let (Some(kv), Some(redis)) = (address("KV_ADDR"), address("REDIS_ADDR")) else { return };
    compare(|| Box::new(Remote::connect(&kv)), || Box::new(Remote::connect(&redis)));
}

#[test]
fn one_shard_replies_as_redis_does() {
    let Some(redis) = address("REDIS_ADDR") else { return };
    compare(|| Box::new(Local::new(1)), || Box::new(Remote::connect(&redis)));
}

#[test]
fn four_shards_reply_as_redis_does() {
    let Some(redis) = address("REDIS_ADDR") else { return };
    compare(|| Box::new(Local::new(4)), || Box::new(Remote::connect(&redis)));
}

// What could go wrong: a command changes something that the log does not say, or says in a way that replays differently.
#[test]
fn the_log_of_every_script_replays_to_the_same_state() {
    for (name, script) in corpus::SCRIPTS {
        for shards in [1, 4] {
            let mut kv = Local::new(shards);
            for line in lines(script) {
                let (_, words) = line;
                kv.send(&encode(&words));
                kv.reply().expect("a reply");
            }
            let now = kv.now();
            let replayed = kv.replayed();
            assert!(contents(&replayed, now) == contents(&kv.shards, now), "{name} over {shards} shards");
        }
    }
}

fn address(variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok();
    if address.is_none() {
        println!("skipped: {variable} is not set");
    }
    address
}

// ---- Comparing --------------------------------------------------------------------------------------------------------

/// Somebody who answers requests.
trait Peer {
    fn send(&mut self, request: &[u8]);
    /// The next reply; `None` once the connection has ended.
    fn reply(&mut self) -> Option<Vec<u8>>;
    /// No more requests; everything that still comes back.
    fn rest(&mut self) -> Vec<u8>;
}

type Line = (char, Vec<Vec<u8>>);

/// There is one Redis: tests that flush it take turns.
static REDIS: Mutex<()> = Mutex::new(());

fn compare(kv: impl Fn() -> Box<dyn Peer>, redis: impl Fn() -> Box<dyn Peer>) {
    let _turn = REDIS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut differences = 0;
    let mut report = |what: &str, ours: &[u8], theirs: &[u8]| {
        if ours != theirs {
            differences += 1;
            println!("{what}\n     kv: {}\n  redis: {}", shown(ours), shown(theirs));
        }
    };
    for protocol in ["2", "3"] {
        for (name, script) in corpus::SCRIPTS {
            let mut peers = [kv(), redis()];
            for line in ["HELLO,".to_owned() + protocol, "FLUSHALL".to_owned(), "SELECT,0".to_owned()] {
                let request =
                    encode(&line.split(',').map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
                peers.iter_mut().for_each(|peer| {
                    peer.send(&request);
                    peer.reply().expect("a reply");
                });
            }
            for (mark, words) in lines(script) {
                let [ours, theirs] = peers.each_mut().map(|peer| ask(&mut **peer, mark, &words));
                let what = format!("{name} (RESP{protocol}): {}", shown(&words.join(&b' ')));
                match (mark, integer(&ours), integer(&theirs)) {
                    ('+', Some(a), Some(b)) if (a - b).abs() <= 500 => {}
                    _ => report(&what, &ours, &theirs),
                }
            }
        }
    }
    for raw in corpus::RAW {
        let bytes = corpus::unescape(raw);
        let [ours, theirs] = [kv(), redis()].map(|mut peer| {
            peer.send(&bytes);
            peer.rest()
        });
        report(&format!("raw: {raw}"), &ours, &theirs);
    }
    assert_eq!(differences, 0, "replies differ");
}

/// One line's reply, brought into a form that can be compared.
fn ask(peer: &mut dyn Peer, mark: char, words: &[Vec<u8>]) -> Vec<u8> {
    if mark == '*' {
        return scan(peer, words);
    }
    peer.send(&encode(words));
    let Some(mut reply) = peer.reply() else { return b"(closed)".to_vec() };
    match mark {
        '!' => reply.clear(),
        '?' => reply.truncate(1),
        '~' => {
            let mut parts = elements(&reply);
            parts.sort_unstable();
            reply = [vec![&reply[..1]], parts].concat().concat();
        }
        'h' => {
            let id = reply.windows(9).position(|part| part == b"$2\r\nid\r\n:").map(|at| at + 9);
            let end = id.and_then(|id| Some(id + reply[id..].iter().position(|&byte| byte == b'\r')?));
            if let (Some(id), Some(end)) = (id, end) {
                reply.drain(id..end);
            }
        }
        _ => {}
    }
    reply
}

fn scan(peer: &mut dyn Peer, words: &[Vec<u8>]) -> Vec<u8> {
    let mut found = Vec::new();
    let mut cursor = b"0".to_vec();
    loop {
        let request = [&words[..1], &[cursor], &words[1..]].concat();
        peer.send(&encode(&request));
        let reply = peer.reply().expect("a reply");
        let [next, keys] = elements(&reply)[..] else { return reply };
        found.extend(elements(keys).into_iter().map(<[u8]>::to_vec));
        cursor =
            next[next.iter().position(|&byte| byte == b'\n').expect("a bulk") + 1..next.len() - 2].to_vec();
        if cursor == b"0" {
            break;
        }
    }
    found.sort_unstable();
    found.dedup();
    found.concat()
}

fn lines(script: &str) -> Vec<Line> {
    let line = |line: &str| {
        let line = line.trim();
        match line.chars().next()? {
            mark @ ('~' | '?' | '+' | 'h' | '*' | '!') => Some((mark, corpus::words(&line[1..]))),
            _ => Some((' ', corpus::words(line))),
        }
    };
    script.lines().filter_map(line).collect()
}

fn encode(words: &[Vec<u8>]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    request
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() > 300 { format!("{}... ({} bytes)", &text[..300], bytes.len()) } else { text }
}

fn integer(reply: &[u8]) -> Option<i64> {
    str::from_utf8(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?).ok()?.parse().ok()
}

/// How long the reply at the front of `bytes` is, if it is there whole.
fn reply_len(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let number = || str::from_utf8(&bytes[1..line - 2]).ok()?.parse::<i64>().ok();
    let nested = |count: usize| (0..count).try_fold(line, |at, _| Some(at + reply_len(bytes.get(at..)?)?));
    match bytes[0] {
        b'$' | b'=' => {
            let end = usize::try_from(number()?).map_or(line, |len| line + len + 2);
            (bytes.len() >= end).then_some(end)
        }
        b'*' | b'~' => nested(usize::try_from(number()?).unwrap_or(0)),
        b'%' => nested(usize::try_from(number()?).ok()? * 2),
        _ => Some(line),
    }
}

/// The replies inside an array, set or map.
fn elements(reply: &[u8]) -> Vec<&[u8]> {
    if !matches!(reply[0], b'*' | b'~' | b'%') {
        return vec![reply];
    }
    let mut rest = &reply[reply.iter().position(|&byte| byte == b'\n').expect("a line") + 1..];
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (part, tail) = rest.split_at(reply_len(rest).expect("a whole reply"));
        parts.push(part);
        rest = tail;
    }
    parts
}

// ---- A server ---------------------------------------------------------------------------------------------------------

struct Remote {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Remote {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        Self { stream, buffer: Vec::new() }
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> bool {
        let mut piece = vec![0; 1 << 20];
        // A server may close while requests are still on their way to it: what it said before that has been read.
        let len = self.stream.read(&mut piece).unwrap_or(0);
        self.buffer.extend_from_slice(&piece[..len]);
        len > 0
    }
}

impl Peer for Remote {
    fn send(&mut self, request: &[u8]) {
        // The server may have closed the connection; then the missing reply says so.
        let _ = self.stream.write_all(request);
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(len) = reply_len(&self.buffer) {
                return Some(self.buffer.drain(..len).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn rest(&mut self) -> Vec<u8> {
        let _ = self.stream.shutdown(Shutdown::Write);
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }
}

// ---- kv in this process -----------------------------------------------------------------------------------------------

/// A connection and its shards on one thread: what a server does, without waiting for anything.
struct Local {
    keyspace: Keyspace,
    shards: Vec<Shard>,
    gates: Vec<Gate<()>>,
    journals: Vec<Journal>,
    parser: Parser,
    session: Session,
    settings: Settings,
    input: Vec<u8>,
    output: Vec<u8>,
    closed: bool,
    random: u64,
}

impl Local {
    fn new(shards: u32) -> Self {
        let (keyspace, limits) = (Keyspace::new(shards, 42), Limits::default());
        let settings =
            [("maxmemory-policy", "noeviction"), ("databases", "16"), ("proto-max-bulk-len", "67108864")];
        Self {
            shards: (0..shards).map(|n| Shard::new(n, keyspace.clone(), &limits)).collect(),
            gates: (0..shards).map(|_| Gate::new()).collect(),
            journals: (0..shards).map(|_| Journal::new()).collect(),
            parser: Parser::new(limits.value_max),
            session: Session::new(3),
            settings: Settings(settings.map(|(name, value)| (name, value.to_owned())).to_vec()),
            input: Vec::new(),
            output: Vec::new(),
            closed: false,
            random: 1,
            keyspace,
        }
    }

    fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
        u64::try_from(now.as_millis()).expect("it is not the year 292 million")
    }

    fn run(&mut self, args: &Args<'_>) {
        let now = self.now();
        let call = self.session.call(now);
        let command = match command::resolve(args) {
            Ok(command) => command,
            Err(Rejection::Foreign) => {
                self.output.clear();
                self.closed = true;
                return;
            }
            Err(rejection) => {
                return rejection.encode(args, &mut Encoder::new(&mut self.output, call.protocol));
            }
        };
        match route(command, args, &self.keyspace, self.session.db) {
            Route::Connection => {
                let action = self.session.run(command, args, now * 1000, &self.settings, &mut self.output);
                self.act(action);
            }
            Route::Shard { shard, hash } => {
                let (shard, journal) = (&mut self.shards[shard as usize], &mut self.journals[shard as usize]);
                shard.execute(command, args, hash, &call, &mut self.output, journal);
            }
            Route::Split(split) => {
                let mut batches: Vec<_> = self.shards.iter().map(|_| Batch::new()).collect();
                let push = |part: &kv::plan::Part| {
                    let batch = &mut batches[part.shard as usize];
                    (part.shard as usize, batch.push(part.command, part.args(args), part.hash, call))
                };
                let places: Vec<_> = split.parts.iter().map(push).collect();
                for (n, batch) in batches.iter_mut().enumerate() {
                    batch.run(&mut self.shards[n], &mut self.journals[n]);
                }
                let replies = places.iter().map(|&(shard, i)| batches[shard].reply(i));
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                split.merge.encode(
                    replies,
                    self.random >> 33,
                    &mut Encoder::new(&mut self.output, call.protocol),
                );
            }
            Route::Transaction => {
                let mut transaction = Transaction::new(TxnId(1), command, args, &self.keyspace, call);
                let mut answer = None;
                while let Some((shard, step)) = transaction.next(answer.take()) {
                    let n = shard as usize;
                    let (gate, shard, journal) =
                        (&mut self.gates[n], &mut self.shards[n], &mut self.journals[n]);
                    gate.offer(shard, now, journal, ((), Work::Step(step)), |(), worked| match worked {
                        Worked::Step(it) => answer = Some(it),
                        Worked::Batch(_) => unreachable!("nothing else is going on"),
                    });
                }
                self.output.extend_from_slice(transaction.reply());
            }
        }
    }

    fn act(&mut self, action: Action) {
        let out = &mut Encoder::new(&mut self.output, self.session.protocol);
        match action {
            Action::Done | Action::ResetStats => {}
            Action::Close => self.closed = true,
            Action::Sleep(time) => std::thread::sleep(time),
            Action::Info(sections) => {
                let sizes = self.shards.iter().map(|shard| shard.sizes().collect::<Vec<_>>());
                let sum = sizes.reduce(|mut sum, sizes| {
                    sum.iter_mut().zip(sizes).for_each(|(sum, size)| {
                        sum.keys += size.keys;
                        sum.expires += size.expires;
                    });
                    sum
                });
                Info { databases: sum.unwrap_or_default(), ..Info::default() }.encode(&sections, out);
            }
            Action::Clients(filter) => filter.encode(&[], out),
            Action::Kill(filter) => drop(filter.choose(&[], out)),
        }
    }

    /// Shards made of nothing but the logs, one more than before: a restart with another number of workers.
    fn replayed(&mut self) -> Vec<Shard> {
        let (limits, now, count) = (Limits::default(), self.now(), self.keyspace.shards() + 1);
        let keyspace = Keyspace::new(count, 43);
        let mut shards: Vec<_> = (0..count).map(|n| Shard::new(n, keyspace.clone(), &limits)).collect();
        for (n, journal) in self.journals.iter_mut().enumerate() {
            let file =
                FileName { epoch: 1, shard: u32::try_from(n).expect("few"), generation: 1, kind: Kind::Log };
            let header = Header { file, salt: 99 };
            let frame = Writer::create(&header).seal(journal, Vec::new());
            let (mut scanner, mut old) =
                (Scanner::new(file.to_string()), Shard::new(0, Keyspace::new(1, 0), &limits));
            for piece in [&header.encode()[..], &frame.bytes] {
                scanner.feed(piece, |record| old.replay(&record)).expect("the log is good");
            }
            for record in old.entries(now) {
                let key = record.key().expect("an entry has a key");
                shards[keyspace.shard_of(keyspace.hash(key)) as usize].replay(&record);
            }
        }
        shards
    }
}

impl Peer for Local {
    fn send(&mut self, request: &[u8]) {
        self.input.extend_from_slice(request);
        let (mut input, mut parser) =
            (std::mem::take(&mut self.input), std::mem::replace(&mut self.parser, Parser::new(0)));
        let mut at = 0;
        while !self.closed {
            match parser.parse(&input[at..]) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if !frame.args.is_empty() {
                        self.run(&frame.args);
                    }
                    at += frame.len;
                }
                Err(error) => {
                    error.encode(&mut self.output);
                    self.closed = true;
                }
            }
        }
        input.drain(..at);
        (self.input, self.parser) = (input, parser);
    }

    fn reply(&mut self) -> Option<Vec<u8>> {
        let len = reply_len(&self.output)?;
        Some(self.output.drain(..len).collect())
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }
}

/// Everything that shards hold.
fn contents(shards: &[Shard], now: u64) -> BTreeMap<(u8, Vec<u8>), (Vec<u8>, u64)> {
    let entry = |record| match record {
        Record::Set { db, key, value, expire_at } => ((db, key.to_vec()), (value.to_vec(), expire_at)),
        other => panic!("an entry is not {other:?}"),
    };
    shards.iter().flat_map(|shard| shard.entries(now)).map(entry).collect()
}
