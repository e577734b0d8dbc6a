//! What a connection knows and runs by itself: commands without keys.
//!
//! [`Session::run`] answers what it can (PING, HELLO, SELECT, COMMAND, ...). What needs more than one connection, or time, it
//! has its caller do, by returning an [`Action`]; the words of the reply are here all the same: [`ClientFilter`] and [`KillFilter`] choose
//! among [`ClientInfo`]s and word the reply, [`Info`] is rendered by section.

use std::{fmt::Write as _, time::Duration};

use crate::{
    command::{self, Command, Id},
    exec::{Fault, parse_db},
    glob,
    resp::{Args, Encoder, Protocol, parse_integer},
    shard::{Call, DbSize},
};

/// The Redis whose replies are copied; clients look at it to know what they may ask for.
pub const REDIS_VERSION: &str = "7.0.15";

/// Microseconds since 1970.
pub type Micros = u64;

/// One connection's state.
#[derive(Debug, Clone)]
pub struct Session {
    /// Unique as long as the server runs, and rising: CLIENT ID.
    pub id: u64,
    /// The selected database.
    pub db: u8,
    /// What replies are written in.
    pub protocol: Protocol,
    /// CLIENT SETNAME; empty if there is none.
    pub name: Vec<u8>,
    /// The last command, for CLIENT LIST.
    pub last: &'static str,
}

/// What the caller does after [`Session::run`].
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Nothing: the reply is written.
    Done,
    /// Send what is written, then close.
    Close,
    /// Block this worker for so long; the reply is written.
    Sleep(Duration),
    /// Gather [`Info`], then [`Info::encode`] these sections.
    Info(Sections),
    /// Gather all [`ClientInfo`]s, then [`ClientFilter::encode`].
    Clients(ClientFilter),
    /// Gather all [`ClientInfo`]s, then [`KillFilter::choose`] and close the chosen ones.
    Kill(KillFilter),
    /// Set all counters back; the reply is written.
    ResetStats,
}

/// What CONFIG GET shows: names and values.
#[derive(Debug, Clone, Default)]
pub struct Settings(pub Vec<(&'static str, String)>);

impl Session {
    /// A connection that has just been accepted.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self { id, db: 0, protocol: Protocol::Resp2, name: Vec::new(), last: "NULL" }
    }

    /// What commands on keys need to know of it.
    #[must_use]
    pub fn call(&self, now: crate::db::Millis) -> Call {
        Call { db: self.db, protocol: self.protocol, now }
    }

    /// Runs a command that [`route`](crate::plan::route) leaves to the connection.
    pub fn run(
        &mut self,
        command: &'static Command,
        args: &Args<'_>,
        now: Micros,
        settings: &Settings,
        out: &mut Vec<u8>,
    ) -> Action {
        let mut encoder = Encoder::new(out, self.protocol);
        match self.answer(command, args, now, settings, &mut encoder) {
            Ok(action) => action,
            Err(fault) => {
                fault.encode(&mut encoder);
                Action::Done
            }
        }
    }

    fn answer(
        &mut self,
        command: &'static Command,
        args: &Args<'_>,
        now: Micros,
        settings: &Settings,
        out: &mut Encoder<'_>,
    ) -> Result<Action, Fault> {
        match command.id {
            Id::Ping => match args.len() {
                1 => out.status("PONG"),
                2 => out.bulk(&args[1]),
                _ => command.encode_arity_error(out),
            },
            Id::Echo => out.bulk(&args[1]),
            Id::Quit => {
                out.ok();
                return Ok(Action::Close);
            }
            Id::Select => {
                self.db = parse_db(&args[1])?;
                out.ok();
            }
            Id::Reset => {
                *self = Self { last: self.last, ..Self::new(self.id) };
                out.status("RESET");
            }
            Id::Hello => self.hello(args, out)?,
            Id::Time => {
                out.array(2);
                for part in [now / 1_000_000, now % 1_000_000] {
                    out.bulk_integer(i64::try_from(part).expect("it is not the year 292 thousand"));
                }
            }
            Id::Debug => return debug(args, out),
            Id::Info => return Ok(Action::Info(Sections::parse(args))),
            Id::ConfigGet => settings.encode(&args.from(2..), out),
            Id::ConfigResetStat => {
                out.ok();
                return Ok(Action::ResetStats);
            }
            Id::ClientId => out.integer(i64::try_from(self.id).expect("ids are counted")),
            Id::ClientGetName => out.bulk_or_null(Some(&self.name[..]).filter(|name| !name.is_empty())),
            Id::ClientSetName => {
                self.set_name(&args[2])?;
                out.ok();
            }
            Id::ClientInfo => return Ok(Action::Clients(ClientFilter::Ids(vec![self.id]))),
            Id::ClientList => return Ok(Action::Clients(ClientFilter::parse(args)?)),
            Id::ClientKill => return Ok(Action::Kill(KillFilter::parse(args, self.id)?)),
            Id::ClientHelp | Id::CommandHelp | Id::ConfigHelp => encode_help(command, out),
            _ => command::describe(command, args, out),
        }
        Ok(Action::Done)
    }

    fn hello(&mut self, args: &Args<'_>, out: &mut Encoder<'_>) -> Result<(), Fault> {
        let protocol = match args.len() {
            1 => self.protocol,
            _ => match parse_integer(&args[1]) {
                Some(2) => Protocol::Resp2,
                Some(3) => Protocol::Resp3,
                Some(_) => return Err(Fault::new("NOPROTO unsupported protocol version")),
                None => return Err(Fault::new("ERR Protocol version is not an integer or out of range")),
            },
        };
        let mut i = 2;
        while i < args.len() {
            let more = args.len() - i - 1;
            if args[i].eq_ignore_ascii_case(b"auth") && more >= 2 {
                // There is one user, who needs no password.
                if args[i + 1] != *b"default" {
                    return Err(Fault::new("WRONGPASS invalid username-password pair or user is disabled."));
                }
                i += 3;
            } else if args[i].eq_ignore_ascii_case(b"setname") && more >= 1 {
                self.set_name(&args[i + 1])?;
                i += 2;
            } else {
                return Err(Fault::shown("ERR Syntax error in HELLO option '", &args[i], "'"));
            }
        }
        self.protocol = protocol;
        out.switch(protocol);
        out.map(7);
        for (name, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
            out.bulk(name.as_bytes());
            out.bulk(value.as_bytes());
        }
        out.bulk(b"proto");
        out.integer(if protocol == Protocol::Resp2 { 2 } else { 3 });
        out.bulk(b"id");
        out.integer(i64::try_from(self.id).expect("ids are counted"));
        for (name, value) in [("mode", "standalone"), ("role", "master")] {
            out.bulk(name.as_bytes());
            out.bulk(value.as_bytes());
        }
        out.bulk(b"modules");
        out.array(0);
        Ok(())
    }

    fn set_name(&mut self, name: &[u8]) -> Result<(), Fault> {
        // CLIENT LIST is a line of words.
        if !name.iter().all(u8::is_ascii_graphic) {
            return Err(Fault::new(
                "ERR Client names cannot contain spaces, newlines or special characters.",
            ));
        }
        self.name = name.to_vec();
        Ok(())
    }
}

fn debug(args: &Args<'_>, out: &mut Encoder<'_>) -> Result<Action, Fault> {
    if args.len() != 3 || !args[1].eq_ignore_ascii_case(b"sleep") {
        let (before, after) =
            ("ERR unknown subcommand or wrong number of arguments for '", "'. Try DEBUG HELP.");
        return Err(Fault::shown(before, &args[1], after));
    }
    out.ok();
    // As `strtod` does: the number at the front, 0 if there is none.
    let text = String::from_utf8_lossy(&args[2]).into_owned();
    let number = (0..=text.len()).rev().find_map(|end| text.get(..end)?.parse::<f64>().ok()).unwrap_or(0.0);
    Ok(Action::Sleep(Duration::try_from_secs_f64(number).unwrap_or_default()))
}

impl Settings {
    fn encode(&self, patterns: &Args<'_>, out: &mut Encoder<'_>) {
        let mut chosen: Vec<(&[u8], &str)> = Vec::new();
        for (name, value) in &self.0 {
            // A name that is no pattern comes back as the client spelled it.
            let named = |pattern: &&[u8]| pattern.eq_ignore_ascii_case(name.as_bytes());
            let matched = |pattern: &[u8]| glob::matches_nocase(pattern, name.as_bytes());
            match patterns.iter().find(named) {
                Some(spelled) => chosen.push((spelled, value)),
                None if patterns.iter().any(matched) => chosen.push((name.as_bytes(), value)),
                None => {}
            }
        }
        out.map(chosen.len());
        for (name, value) in chosen {
            out.bulk(name);
            out.bulk(value.as_bytes());
        }
    }
}

fn encode_help(command: &Command, out: &mut Encoder<'_>) {
    let (name, lines): (_, &[&str]) = match command.id {
        Id::ClientHelp => ("CLIENT", CLIENT_HELP),
        Id::CommandHelp => ("COMMAND", COMMAND_HELP),
        _ => ("CONFIG", CONFIG_HELP),
    };
    out.array(lines.len() + 3);
    out.status(&[name, " <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"].concat());
    lines.iter().chain(&["HELP", "    Prints this help."]).for_each(|line| out.status(line));
}

const CLIENT_HELP: &[&str] = &[
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port>",
    "    Kill connection made from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Kill connections. Options are:",
    "    * ADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made from the specified address",
    "    * LADDR (<ip:port>|<unixsocket>:0)",
    "      Kill connections made to specified local address",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Kill connections by type.",
    "    * USER <username>",
    "      Kill connections authenticated by <username>.",
    "    * SKIPME (YES|NO)",
    "      Skip killing current connection (default: yes).",
    "LIST [options ...]",
    "    Return information about client connections. Options:",
    "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "      Return clients of specified type.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
];
const COMMAND_HELP: &[&str] = &[
    "(no subcommand)",
    "    Return details about all Redis commands.",
    "COUNT",
    "    Return the total number of commands in this Redis server.",
    "LIST",
    "    Return a list of all commands in this Redis server.",
    "INFO [<command-name> ...]",
    "    Return details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "DOCS [<command-name> ...]",
    "    Return documentation details about multiple Redis commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
];
const CONFIG_HELP: &[&str] = &[
    "GET <pattern>",
    "    Return parameters matching the glob-like <pattern> and their values.",
    "RESETSTAT",
    "    Reset statistics reported by the INFO command.",
];

// ---- CLIENT LIST and CLIENT KILL --------------------------------------------------------------------------------------

/// A line of CLIENT LIST. Fields of Redis that mean nothing here are printed as Redis prints them when unused.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of CLIENT LIST, and Redis's manual describes them")]
pub struct ClientInfo {
    pub id: u64,
    pub addr: String,
    pub laddr: String,
    pub fd: i64,
    pub name: Vec<u8>,
    pub age: Duration,
    pub idle: Duration,
    pub db: u8,
    pub qbuf: usize,
    pub omem: usize,
    pub tot_mem: usize,
    pub cmd: &'static str,
    pub protocol: Protocol,
}

impl ClientInfo {
    fn render(&self, out: &mut String) {
        let Self { id, addr, laddr, fd, db, qbuf, omem, tot_mem, cmd, .. } = self;
        let (name, age, idle) =
            (String::from_utf8_lossy(&self.name), self.age.as_secs(), self.idle.as_secs());
        let resp = if self.protocol == Protocol::Resp2 { 2 } else { 3 };
        writeln!(
            out,
            "id={id} addr={addr} laddr={laddr} fd={fd} name={name} age={age} idle={idle} flags=N db={db} sub=0 psub=0 \
             ssub=0 multi=-1 qbuf={qbuf} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem={omem} \
             tot-mem={tot_mem} events=r cmd={cmd} user=default redir=-1 resp={resp}"
        )
        .expect("a string takes everything");
    }
}

/// Which clients CLIENT LIST shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFilter {
    /// All of them.
    All,
    /// None: they would be replicas or subscribers, and there are no such.
    None,
    /// These, in this order.
    Ids(Vec<u64>),
}

impl ClientFilter {
    fn parse(args: &Args<'_>) -> Result<Self, Fault> {
        let word = |word: &str| args[2].eq_ignore_ascii_case(word.as_bytes());
        match args.len() {
            2 => Ok(Self::All),
            4 if word("type") => Ok(if is_normal(&args[3])? { Self::All } else { Self::None }),
            4.. if word("id") => {
                let id = |arg| parse_integer(arg).ok_or(Fault::new("ERR Invalid client ID"));
                let ids: Vec<_> = args.from(3..).iter().map(id).collect::<Result<_, _>>()?;
                Ok(Self::Ids(ids.into_iter().filter_map(|id| u64::try_from(id).ok()).collect()))
            }
            _ => Err(Fault::SYNTAX),
        }
    }

    /// Writes the reply, from all clients in order of their ids.
    pub fn encode(&self, clients: &[ClientInfo], out: &mut Encoder<'_>) {
        let mut text = String::new();
        match self {
            Self::All => clients.iter().for_each(|client| client.render(&mut text)),
            Self::None => {}
            Self::Ids(ids) => {
                let found = ids.iter().filter_map(|id| clients.iter().find(|client| client.id == *id));
                found.for_each(|client| client.render(&mut text));
            }
        }
        out.verbatim(text.as_bytes());
    }
}

/// Whether a client type is the one that all clients here have.
fn is_normal(name: &[u8]) -> Result<bool, Fault> {
    match name.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(true),
        b"slave" | b"replica" | b"pubsub" | b"master" => Ok(false),
        _ => Err(Fault::shown("ERR Unknown client type '", name, "'")),
    }
}

/// Which clients CLIENT KILL closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillFilter {
    addr: Option<Vec<u8>>,
    laddr: Option<Vec<u8>>,
    id: Option<u64>,
    other_type: bool,
    /// Who asks, if it is to be spared.
    spare: Option<u64>,
    /// `CLIENT KILL addr`: answers OK rather than a count.
    old_style: bool,
}

impl KillFilter {
    fn parse(args: &Args<'_>, own: u64) -> Result<Self, Fault> {
        let mut it =
            Self { addr: None, laddr: None, id: None, other_type: false, spare: Some(own), old_style: false };
        if args.len() == 3 {
            return Ok(Self { addr: Some(args[2].to_vec()), spare: None, old_style: true, ..it });
        }
        for i in (2..args.len()).step_by(2) {
            let value = args.from(i + 1..);
            let value = if value.is_empty() { return Err(Fault::SYNTAX) } else { value.at(0) };
            match args[i].to_ascii_lowercase().as_slice() {
                b"id" => {
                    let id = parse_integer(value).and_then(|id| u64::try_from(id).ok()).filter(|&id| id > 0);
                    it.id = Some(id.ok_or(Fault::new("ERR client-id should be greater than 0"))?);
                }
                b"type" => it.other_type = !is_normal(value)?,
                b"addr" => it.addr = Some(value.to_vec()),
                b"laddr" => it.laddr = Some(value.to_vec()),
                b"user" if value == b"default" => {}
                b"user" => return Err(Fault::shown("ERR No such user '", value, "'")),
                b"skipme" if value.eq_ignore_ascii_case(b"yes") => it.spare = Some(own),
                b"skipme" if value.eq_ignore_ascii_case(b"no") => it.spare = None,
                _ => return Err(Fault::SYNTAX),
            }
        }
        Ok(it)
    }

    /// Writes the reply, and gives the ids of those to close. (The one who asks is closed after its reply, if it is
    /// among them.)
    pub fn choose(&self, clients: &[ClientInfo], out: &mut Encoder<'_>) -> Vec<u64> {
        let is = |wanted: &Option<Vec<u8>>, addr: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == addr.as_bytes())
        };
        let matches = |client: &&ClientInfo| {
            is(&self.addr, &client.addr)
                && is(&self.laddr, &client.laddr)
                && self.id.is_none_or(|id| id == client.id)
                && self.spare != Some(client.id)
                && !self.other_type
        };
        let chosen: Vec<_> = clients.iter().filter(matches).map(|client| client.id).collect();
        match (self.old_style, chosen.is_empty()) {
            (false, _) => out.count(chosen.len()),
            (true, false) => out.ok(),
            (true, true) => out.error("ERR No such client"),
        }
        chosen
    }
}

// ---- INFO -------------------------------------------------------------------------------------------------------------

/// Which sections INFO shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sections {
    all: bool,
    named: Vec<String>,
}

impl Sections {
    fn parse(args: &Args<'_>) -> Self {
        let named: Vec<_> =
            args.from(1..).iter().map(|name| String::from_utf8_lossy(name).to_ascii_lowercase()).collect();
        let all = named.is_empty()
            || named.iter().any(|name| matches!(name.as_str(), "default" | "all" | "everything"));
        Self { all, named }
    }

    fn wants(&self, name: &str) -> bool {
        self.all || self.named.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

/// What INFO tells: what tools look for in Redis, as far as there is such a thing here, and `extra` sections of our own.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names are those of INFO, and Redis's manual describes them")]
pub struct Info {
    pub process_id: u32,
    pub tcp_port: u16,
    pub now: Micros,
    pub uptime: Duration,
    pub executable: String,
    pub connected_clients: usize,
    pub maxclients: usize,
    pub used_memory: usize,
    pub used_memory_rss: usize,
    pub maxmemory: usize,
    pub aof_enabled: bool,
    pub aof_rewrite_in_progress: bool,
    pub total_connections_received: u64,
    pub total_commands_processed: u64,
    pub total_net_input_bytes: u64,
    pub total_net_output_bytes: u64,
    pub rejected_connections: u64,
    pub expired_keys: u64,
    pub keyspace_hits: u64,
    pub keyspace_misses: u64,
    pub used_cpu_sys: Duration,
    pub used_cpu_user: Duration,
    /// The sizes of the databases, summed over shards.
    pub databases: Vec<DbSize>,
    /// Title, and names and values.
    pub extra: Vec<(&'static str, Vec<(String, String)>)>,
}

impl Info {
    /// Writes the reply.
    pub fn encode(&self, sections: &Sections, out: &mut Encoder<'_>) {
        let mut text = String::new();
        for (title, lines) in self.sections() {
            if !sections.wants(title) {
                continue;
            }
            let gap = if text.is_empty() { "" } else { "\r\n" };
            write!(text, "{gap}# {title}\r\n").expect("a string takes everything");
            lines.iter().for_each(|(name, value)| {
                write!(text, "{name}:{value}\r\n").expect("a string takes everything");
            });
        }
        out.verbatim(text.as_bytes());
    }

    fn sections(&self) -> Vec<(&'static str, Vec<(String, String)>)> {
        let lines = |lines: &[(&str, &dyn ToString)]| -> Vec<(String, String)> {
            lines.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
        };
        let seconds = |time: Duration| format!("{}.{:06}", time.as_secs(), time.subsec_micros());
        let used = self.databases.iter().enumerate().filter(|(_, db)| db.keys > 0);
        let database = |(n, db): (usize, &DbSize)| {
            (format!("db{n}"), format!("keys={},expires={},avg_ttl=0", db.keys, db.expires))
        };
        let uptime = self.uptime.as_secs();
        let mut sections = vec![
            (
                "Server",
                lines(&[
                    ("redis_version", &REDIS_VERSION),
                    ("veloq_kv_version", &env!("CARGO_PKG_VERSION")),
                    ("redis_mode", &"standalone"),
                    ("os", &std::env::consts::OS),
                    ("arch_bits", &usize::BITS),
                    ("process_id", &self.process_id),
                    ("tcp_port", &self.tcp_port),
                    ("server_time_usec", &self.now),
                    ("uptime_in_seconds", &uptime),
                    ("uptime_in_days", &(uptime / 86_400)),
                    ("executable", &self.executable),
                    ("config_file", &""),
                ]),
            ),
            (
                "Clients",
                lines(&[("connected_clients", &self.connected_clients), ("maxclients", &self.maxclients)]),
            ),
            (
                "Memory",
                lines(&[
                    ("used_memory", &self.used_memory),
                    ("used_memory_human", &human(self.used_memory)),
                    ("used_memory_rss", &self.used_memory_rss),
                    ("used_memory_rss_human", &human(self.used_memory_rss)),
                    ("maxmemory", &self.maxmemory),
                    ("maxmemory_human", &human(self.maxmemory)),
                    ("maxmemory_policy", &"noeviction"),
                ]),
            ),
            (
                "Persistence",
                lines(&[
                    ("loading", &0),
                    ("aof_enabled", &u8::from(self.aof_enabled)),
                    ("aof_rewrite_in_progress", &u8::from(self.aof_rewrite_in_progress)),
                ]),
            ),
            (
                "Stats",
                lines(&[
                    ("total_connections_received", &self.total_connections_received),
                    ("total_commands_processed", &self.total_commands_processed),
                    ("total_net_input_bytes", &self.total_net_input_bytes),
                    ("total_net_output_bytes", &self.total_net_output_bytes),
                    ("rejected_connections", &self.rejected_connections),
                    ("expired_keys", &self.expired_keys),
                    ("evicted_keys", &0),
                    ("keyspace_hits", &self.keyspace_hits),
                    ("keyspace_misses", &self.keyspace_misses),
                ]),
            ),
            ("Replication", lines(&[("role", &"master"), ("connected_slaves", &0)])),
            (
                "CPU",
                lines(&[
                    ("used_cpu_sys", &seconds(self.used_cpu_sys)),
                    ("used_cpu_user", &seconds(self.used_cpu_user)),
                ]),
            ),
            ("Cluster", lines(&[("cluster_enabled", &0)])),
        ];
        sections.extend(self.extra.iter().cloned());
        sections.push(("Keyspace", used.map(database).collect()));
        sections
    }
}

/// Bytes as Redis shows them to people: `1.47M`.
#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn human(bytes: usize) -> String {
    let units = [(1_u64 << 40, 'T'), (1 << 30, 'G'), (1 << 20, 'M'), (1 << 10, 'K')];
    match units.iter().find(|(size, _)| bytes as u64 >= *size) {
        Some((size, letter)) => format!("{:.2}{letter}", bytes as f64 / *size as f64),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::Parser;

    fn run(session: &mut Session, line: &str) -> (Action, String) {
        let line = format!("{line}\r\n");
        let mut parser = Parser::new(1000);
        let args = parser.parse(line.as_bytes()).expect("a line").expect("a whole one").args;
        let command = command::resolve(&args).expect("a command");
        let settings = Settings(vec![("maxmemory", "0".to_owned()), ("save", String::new())]);
        let mut out = Vec::new();
        let action = session.run(command, &args, 5_000_001, &settings, &mut out);
        (action, String::from_utf8(out).expect("text"))
    }

    fn reply(session: &mut Session, line: &str) -> String {
        run(session, line).1
    }

    fn client(id: u64, addr: &str) -> ClientInfo {
        ClientInfo {
            id,
            addr: addr.to_owned(),
            laddr: "127.0.0.1:6380".to_owned(),
            fd: 8,
            name: b"me".to_vec(),
            age: Duration::from_secs(3),
            idle: Duration::ZERO,
            db: 2,
            qbuf: 0,
            omem: 0,
            tot_mem: 0,
            cmd: "client|list",
            protocol: Protocol::Resp2,
        }
    }

    #[test]
    fn a_connection_answers_what_has_no_keys() {
        let mut session = Session::new(7);
        for (line, expected) in [
            ("PING", "+PONG\r\n"),
            ("PING x", "$1\r\nx\r\n"),
            ("PING x y", "-ERR wrong number of arguments for 'ping' command\r\n"),
            ("TIME", "*2\r\n$1\r\n5\r\n$1\r\n1\r\n"),
            ("SELECT 16", "-ERR DB index is out of range\r\n"),
            ("SELECT x", "-ERR value is not an integer or out of range\r\n"),
            ("SELECT 3", "+OK\r\n"),
            ("CLIENT ID", ":7\r\n"),
            (
                "CLIENT SETNAME \"a b\"",
                "-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
            ),
            ("CLIENT SETNAME ab", "+OK\r\n"),
            ("CLIENT GETNAME", "$2\r\nab\r\n"),
            ("CONFIG GET MAX* save s*", "*4\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n$4\r\nsave\r\n$0\r\n\r\n"),
            ("HELLO 4", "-NOPROTO unsupported protocol version\r\n"),
            ("HELLO 3 AUTH a b", "-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
        ] {
            assert_eq!(reply(&mut session, line), expected, "{line}");
        }
        assert_eq!((session.db, session.protocol), (3, Protocol::Resp2));
        assert!(reply(&mut session, "HELLO 3 AUTH default x").starts_with("%7\r\n"));
        assert_eq!(reply(&mut session, "CONFIG GET nope"), "%0\r\n");
        assert_eq!(reply(&mut session, "RESET"), "+RESET\r\n");
        assert_eq!((session.db, session.protocol, session.name.len()), (0, Protocol::Resp2, 0));
    }

    #[test]
    fn what_a_connection_cannot_do_alone_it_leaves_to_its_caller() {
        let mut session = Session::new(7);
        assert_eq!(run(&mut session, "QUIT now"), (Action::Close, "+OK\r\n".to_owned()));
        assert_eq!(run(&mut session, "DEBUG SLEEP 0.5s").0, Action::Sleep(Duration::from_millis(500)));
        assert_eq!(run(&mut session, "DEBUG SLEEP x").0, Action::Sleep(Duration::ZERO));
        assert_eq!(run(&mut session, "CLIENT INFO").0, Action::Clients(ClientFilter::Ids(vec![7])));
        assert_eq!(run(&mut session, "CLIENT LIST TYPE pubsub").0, Action::Clients(ClientFilter::None));
        assert_eq!(reply(&mut session, "CLIENT LIST ID x"), "-ERR Invalid client ID\r\n");
    }

    #[test]
    fn kill_chooses_by_every_condition() {
        let clients = [client(7, "127.0.0.1:1"), client(8, "127.0.0.1:2"), client(9, "127.0.0.1:3")];
        for (line, ids, expected) in [
            ("CLIENT KILL 127.0.0.1:2", vec![8], "+OK\r\n"),
            ("CLIENT KILL nobody", vec![], "-ERR No such client\r\n"),
            ("CLIENT KILL TYPE normal", vec![8, 9], ":2\r\n"),
            ("CLIENT KILL TYPE normal SKIPME no", vec![7, 8, 9], ":3\r\n"),
            ("CLIENT KILL ID 9 ADDR 127.0.0.1:2", vec![], ":0\r\n"),
            ("CLIENT KILL TYPE replica", vec![], ":0\r\n"),
        ] {
            let mut out = Vec::new();
            let (Action::Kill(filter), _) = run(&mut Session::new(7), line) else { panic!("{line}") };
            assert_eq!(filter.choose(&clients, &mut Encoder::new(&mut out, Protocol::Resp2)), ids, "{line}");
            assert_eq!(out, expected.as_bytes(), "{line}");
        }
    }

    #[test]
    fn info_shows_the_sections_asked_for() {
        let info =
            Info { databases: vec![DbSize::default(), DbSize { keys: 2, expires: 1 }], ..Info::default() };
        let shown = |line: &str| {
            let (Action::Info(sections), _) = run(&mut Session::new(1), line) else { panic!("{line}") };
            let mut out = Vec::new();
            info.encode(&sections, &mut Encoder::new(&mut out, Protocol::Resp2));
            String::from_utf8(out).expect("text")
        };
        assert_eq!(shown("INFO keyspace"), "$44\r\n# Keyspace\r\ndb1:keys=2,expires=1,avg_ttl=0\r\n\r\n");
        assert_eq!(shown("INFO nope"), "$0\r\n\r\n");
        assert!(shown("INFO").contains("\r\n\r\n# Clients\r\n"));
        assert_eq!(human(1_539_584), "1.47M");
    }
}
