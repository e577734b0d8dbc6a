//! The command table: names, arities, flags and where the keys stand.
//!
//! [`resolve`] is on the path of every request. It packs the name into one 128-bit word (no name is longer than 16 bytes),
//! folds case with one `or`, and looks into a perfect hash table that the compiler builds and checks; a word that is equal
//! and as long is the name. The rows themselves (`table`) also answer COMMAND, COMMAND INFO and COMMAND LIST; COMMAND DOCS
//! is answered from `docs`.

mod docs;
mod table;

use crate::{
    glob,
    resp::{Args, Encoder},
};

/// One command or subcommand.
#[derive(Debug)]
pub struct Command {
    /// Lower case; a subcommand's is `config|get`.
    pub name: &'static str,
    /// What to switch over.
    pub id: Id,
    /// How many arguments it takes, name included; at least so many if negative.
    pub arity: i8,
    flags: u16,
    categories: u16,
    /// Which arguments are keys.
    pub keys: Keys,
    tips: &'static [&'static str],
    specs: &'static [KeySpec],
    subcommands: &'static [Command],
}

/// Where the keys of a command stand among its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// The first one; 0 if there are none.
    pub first: u8,
    /// The last one; negative counts from the end (-1 is the last argument).
    pub last: i8,
    /// From one to the next.
    pub step: u8,
}

/// The same in the words of COMMAND INFO: keys begin at `index` and go on to `last`, counted from there.
#[derive(Debug)]
struct KeySpec {
    notes: &'static str,
    flags: &'static [&'static str],
    index: i64,
    last: i64,
    step: i64,
}

macro_rules! bits {
    ($kind:ty, $names:ident: $($constant:ident = $name:literal),+ $(,)?) => {
        bits!(@ $kind, 0, $($constant),+);
        /// The words, in the order in which Redis lists them: bit 0 first.
        const $names: &[&str] = &[$($name),+];
    };
    (@ $kind:ty, $bit:expr, $constant:ident $(, $rest:ident)*) => {
        const $constant: $kind = 1 << ($bit);
        bits!(@ $kind, $bit + 1 $(, $rest)*);
    };
    (@ $kind:ty, $bit:expr $(,)?) => {};
}

bits!(u16, FLAGS:
    WRITE = "write", READONLY = "readonly", DENYOOM = "denyoom", ADMIN = "admin", NOSCRIPT = "noscript",
    LOADING = "loading", STALE = "stale", FAST = "fast", NO_AUTH = "no_auth", ALLOW_BUSY = "allow_busy",
);
bits!(u16, CATEGORIES:
    CAT_KEYSPACE = "@keyspace", CAT_READ = "@read", CAT_WRITE = "@write", CAT_STRING = "@string", CAT_ADMIN = "@admin",
    CAT_FAST = "@fast", CAT_SLOW = "@slow", CAT_DANGEROUS = "@dangerous", CAT_CONNECTION = "@connection",
);

/// Every command, for `match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[rustfmt::skip]
#[expect(missing_docs, reason = "the names are Redis's, and its manual describes them")]
pub enum Id {
    Ping, Echo, Hello, Select, Quit, Reset,
    Command, CommandCount, CommandDocs, CommandHelp, CommandInfo, CommandList,
    Info, Config, ConfigGet, ConfigHelp, ConfigResetStat,
    Client, ClientGetName, ClientHelp, ClientId, ClientInfo, ClientKill, ClientList, ClientSetName,
    Get, Set, SetNx, SetEx, PSetEx, GetEx, GetDel, GetSet, GetRange, SetRange, Del, Unlink, Exists, Touch,
    Incr, Decr, IncrBy, DecrBy, IncrByFloat, Append, StrLen, MGet, MSet, MSetNx,
    Expire, PExpire, ExpireAt, PExpireAt, ExpireTime, PExpireTime, Ttl, PTtl, Persist,
    Type, Rename, RenameNx, Copy, Keys, Scan, RandomKey, DbSize, FlushAll, FlushDb, Time, Debug,
}

/// Why a request does not name something that can be run.
#[derive(Debug, Clone, Copy)]
pub enum Rejection {
    /// No such command.
    Unknown,
    /// The container exists, but not with this subcommand.
    Subcommand,
    /// Too many arguments or too few.
    Arity(&'static Command),
    /// A header of HTTP: a web page makes its reader's browser send commands. The connection is closed without a word,
    /// and replies to what came before it are not sent either.
    Foreign,
}

/// Finds the command that `args` call and checks their number.
///
/// # Errors
/// When there is no such command or the number of arguments is wrong; [`Rejection::encode`] says so to the client.
///
/// # Panics
/// If `args` is empty: an empty line is not a request.
#[inline]
pub fn resolve(args: &Args<'_>) -> Result<&'static Command, Rejection> {
    let mut command = lookup(args.at(0)).ok_or_else(|| unknown(args.at(0)))?;
    if !command.subcommands.is_empty() && args.len() > 1 {
        command = command.subcommand(args.at(1)).ok_or(Rejection::Subcommand)?;
    }
    let arity = usize::from(command.arity.unsigned_abs());
    if args.len() < arity || (command.arity > 0 && args.len() > arity) {
        return Err(Rejection::Arity(command));
    }
    Ok(command)
}

#[cold]
fn unknown(name: &[u8]) -> Rejection {
    let foreign = name.eq_ignore_ascii_case(b"host:") || name.eq_ignore_ascii_case(b"post");
    if foreign { Rejection::Foreign } else { Rejection::Unknown }
}

impl Rejection {
    /// Tells the client what is wrong with `args`.
    pub fn encode(&self, args: &Args<'_>, out: &mut Encoder<'_>) {
        // Redis prints these with C formats: at most 128 bytes of each, and none behind a NUL.
        let shown = |text: &[u8], max: usize| {
            let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
            text[..text.len().min(max)].to_vec()
        };
        match self {
            Self::Unknown => {
                let mut list = Vec::new();
                for arg in args.from(1..).iter() {
                    if list.len() >= 128 {
                        break;
                    }
                    list.extend_from_slice(&[b"'", &shown(arg, 128 - list.len())[..], b"' "].concat());
                }
                let name = shown(args.at(0), 128);
                out.error(
                    [b"ERR unknown command '", &name[..], b"', with args beginning with: ", &list].concat(),
                );
            }
            Self::Subcommand => {
                let (container, name) = (shown(args.at(0), 128).to_ascii_uppercase(), shown(args.at(1), 128));
                out.error(
                    [b"ERR unknown subcommand '", &name[..], b"'. Try ", &container, b" HELP."].concat(),
                );
            }
            Self::Arity(command) => command.encode_arity_error(out),
            Self::Foreign => {}
        }
    }
}

impl Command {
    const EMPTY: Self = Self {
        name: "",
        id: Id::Ping,
        arity: 0,
        flags: 0,
        categories: 0,
        keys: Keys::new(0, 0, 0),
        tips: &[],
        specs: &[],
        subcommands: &[],
    };

    /// Whether it may change keys.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.flags & WRITE != 0
    }

    /// Whether it may need more memory, so that it is refused when there is none left.
    #[must_use]
    pub fn denied_when_full(&self) -> bool {
        self.flags & DENYOOM != 0
    }

    /// Says that the number of arguments is wrong.
    pub fn encode_arity_error(&self, out: &mut Encoder<'_>) {
        out.error(["ERR wrong number of arguments for '", self.name, "' command"].concat());
    }

    fn subcommand(&self, name: &[u8]) -> Option<&'static Command> {
        let own = |command: &Command| command.name.split('|').nth(1).unwrap_or_default().as_bytes();
        self.subcommands.iter().find(|command| own(command).eq_ignore_ascii_case(name))
    }

    /// The row of COMMAND INFO.
    fn encode(&self, out: &mut Encoder<'_>) {
        out.array(10);
        out.bulk(self.name.as_bytes());
        out.integer(self.arity.into());
        encode_bits(self.flags, FLAGS, out);
        out.integer(self.keys.first.into());
        out.integer(self.keys.last.into());
        out.integer(self.keys.step.into());
        encode_bits(self.categories, CATEGORIES, out);
        out.set(self.tips.len());
        self.tips.iter().for_each(|tip| out.bulk(tip.as_bytes()));
        out.set(self.specs.len());
        self.specs.iter().for_each(|spec| spec.encode(out));
        out.set(self.subcommands.len());
        self.subcommands.iter().for_each(|command| command.encode(out));
    }
}

impl Keys {
    const fn new(first: u8, last: i8, step: u8) -> Self {
        Self { first, last, step }
    }

    /// The positions of the keys among `len` arguments.
    pub fn positions(self, len: usize) -> std::iter::StepBy<std::ops::Range<usize>> {
        let last = usize::from(self.last.unsigned_abs());
        let end = if self.last < 0 { (len + 1).saturating_sub(last) } else { last + 1 };
        let first = usize::from(self.first);
        (first..if first == 0 { 0 } else { end.min(len) }).step_by(usize::from(self.step.max(1)))
    }
}

impl KeySpec {
    fn encode(&self, out: &mut Encoder<'_>) {
        out.map(if self.notes.is_empty() { 3 } else { 4 });
        if !self.notes.is_empty() {
            out.bulk(b"notes");
            out.bulk(self.notes.as_bytes());
        }
        out.bulk(b"flags");
        out.set(self.flags.len());
        self.flags.iter().for_each(|flag| out.status(flag));
        encode_search("begin_search", "index", &[("index", self.index)], out);
        let range = [("lastkey", self.last), ("keystep", self.step), ("limit", 0)];
        encode_search("find_keys", "range", &range, out);
    }
}

fn encode_search(name: &str, kind: &str, spec: &[(&str, i64)], out: &mut Encoder<'_>) {
    out.bulk(name.as_bytes());
    out.map(2);
    out.bulk(b"type");
    out.bulk(kind.as_bytes());
    out.bulk(b"spec");
    out.map(spec.len());
    for (name, value) in spec {
        out.bulk(name.as_bytes());
        out.integer(*value);
    }
}

fn encode_bits(bits: u16, names: &[&str], out: &mut Encoder<'_>) {
    out.set(usize::try_from(bits.count_ones()).expect("16 at most"));
    for (bit, name) in names.iter().enumerate() {
        if bits >> bit & 1 == 1 {
            out.status(name);
        }
    }
}

// ---- COMMAND ----------------------------------------------------------------------------------------------------------

/// Answers COMMAND and its subcommands.
pub(crate) fn describe(command: &Command, args: &Args<'_>, out: &mut Encoder<'_>) {
    let names = args.from(2..);
    match command.id {
        Id::CommandCount => out.count(table::COMMANDS.len()),
        Id::CommandInfo if !names.is_empty() => {
            out.array(names.len());
            for name in names.iter() {
                match lookup_full(name) {
                    Some(command) => command.encode(out),
                    None => out.null(),
                }
            }
        }
        Id::CommandDocs => encode_docs(&names, out),
        Id::CommandList => encode_list(&names, out),
        _ => {
            out.array(table::COMMANDS.len());
            table::COMMANDS.iter().for_each(|command| command.encode(out));
        }
    }
}

fn encode_docs(names: &Args<'_>, out: &mut Encoder<'_>) {
    let wanted: Vec<&Command> = match names.len() {
        0 => table::COMMANDS.iter().collect(),
        _ => names.iter().filter_map(lookup_full).collect(),
    };
    out.map(wanted.len());
    for command in wanted {
        out.bulk(command.name.as_bytes());
        let subcommands: Vec<_> = command.subcommands.iter().map(doc_of).collect();
        doc_of(command).encode(&subcommands, out);
    }
}

fn doc_of(command: &Command) -> &'static docs::Doc {
    docs::DOCS.iter().find(|doc| doc.name == command.name).expect("every command has its documentation")
}

fn encode_list(filter: &Args<'_>, out: &mut Encoder<'_>) {
    let wants = |word: &str| filter.len() == 3 && filter.at(1).eq_ignore_ascii_case(word.as_bytes());
    let listed: Vec<&Command> = match filter.len() {
        0 => with_subcommands().collect(),
        3 if !filter.at(0).eq_ignore_ascii_case(b"filterby") => return out.error("ERR syntax error"),
        _ if wants("pattern") => {
            with_subcommands().filter(|row| glob::matches_nocase(filter.at(2), row.name.as_bytes())).collect()
        }
        _ if wants("aclcat") => with_subcommands().filter(|row| row.is_in(filter.at(2))).collect(),
        // There are no modules, so none has a command.
        _ if wants("module") => Vec::new(),
        _ => return out.error("ERR syntax error"),
    };
    out.array(listed.len());
    listed.iter().for_each(|command| out.bulk(command.name.as_bytes()));
}

impl Command {
    fn is_in(&self, category: &[u8]) -> bool {
        CATEGORIES.iter().enumerate().any(|(bit, name)| {
            self.categories >> bit & 1 == 1 && name.as_bytes()[1..].eq_ignore_ascii_case(category)
        })
    }
}

fn with_subcommands() -> impl Iterator<Item = &'static Command> {
    table::COMMANDS.iter().flat_map(|command| std::iter::once(command).chain(command.subcommands))
}

// ---- Finding a name ---------------------------------------------------------------------------------------------------

/// Finds a command by its name, in any case.
#[must_use]
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    let packed = pack(name)?;
    let row = usize::from(SLOTS[slot(packed, MULTIPLIER)]);
    let command = table::COMMANDS.get(row)?;
    (PACKED[row] == packed && command.name.len() == name.len()).then_some(command)
}

/// The same, also for `container|subcommand`.
fn lookup_full(name: &[u8]) -> Option<&'static Command> {
    match name.iter().position(|&byte| byte == b'|') {
        None => lookup(name),
        Some(bar) => lookup(&name[..bar])?.subcommand(&name[bar + 1..]),
    }
}

/// Slots of the hash table. With 512 for some 60 names, one multiplier in thirty has no collision.
const SLOTS_LEN: usize = 512;
/// A slot that holds no command.
const VACANT: u8 = u8::MAX;

static PACKED: [u128; table::COMMANDS.len()] = packed_names();
static SLOTS: [u8; SLOTS_LEN] = place(MULTIPLIER).expect("MULTIPLIER was chosen for this");
const MULTIPLIER: u64 = multiplier();

/// The name as one word, in lower case. Bytes that are no letters may become other bytes, but never letters.
#[inline]
fn pack(name: &[u8]) -> Option<u128> {
    let mut word = [b' '; 16];
    word.get_mut(..name.len())?.copy_from_slice(name);
    Some(u128::from_le_bytes(word) | LOWER)
}

const LOWER: u128 = u128::from_le_bytes([b' '; 16]);

#[expect(
    clippy::cast_possible_truncation,
    reason = "folds 128 bits to 64, and 64 to the bits of a slot, on purpose"
)]
const fn slot(packed: u128, multiplier: u64) -> usize {
    let folded = (packed as u64) ^ ((packed >> 64) as u64).rotate_left(32);
    (folded.wrapping_mul(multiplier) >> (u64::BITS - SLOTS_LEN.ilog2())) as usize
}

const fn packed_names() -> [u128; table::COMMANDS.len()] {
    let mut packed = [0; table::COMMANDS.len()];
    let mut row = 0;
    while row < packed.len() {
        let name = table::COMMANDS[row].name.as_bytes();
        let mut word = [b' '; 16];
        let mut i = 0;
        while i < name.len() {
            word[i] = name[i];
            i += 1;
        }
        packed[row] = u128::from_le_bytes(word);
        row += 1;
    }
    packed
}

/// Puts every name into its slot, unless two want the same one.
#[expect(clippy::cast_possible_truncation, reason = "there are fewer than 255 commands, asserted here")]
const fn place(multiplier: u64) -> Option<[u8; SLOTS_LEN]> {
    assert!(table::COMMANDS.len() < VACANT as usize);
    let packed = packed_names();
    let mut slots = [VACANT; SLOTS_LEN];
    let mut row = 0;
    while row < packed.len() {
        let slot = slot(packed[row], multiplier);
        if slots[slot] != VACANT {
            return None;
        }
        slots[slot] = row as u8;
        row += 1;
    }
    Some(slots)
}

/// The first odd multiplier, from the golden ratio on, that gives every name a slot of its own.
const fn multiplier() -> u64 {
    let mut multiplier = 0x9e37_79b9_7f4a_7c15;
    while place(multiplier).is_none() {
        multiplier = multiplier.wrapping_mul(0x5851_f42d_4c95_7f2d);
    }
    multiplier
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Protocol, Span};

    fn reply_to(words: &[&str]) -> String {
        let data: Vec<u8> = words.concat().into_bytes();
        let mut end = 0;
        let spans: Vec<_> = words
            .iter()
            .map(|word| {
                (end, {
                    end += word.len();
                    end
                })
            })
            .map(|(a, b)| Span::new(a, b))
            .collect();
        let args = Args::new(&data, &spans);
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, Protocol::Resp2);
        match resolve(&args) {
            Ok(command) => describe(command, &args, &mut encoder),
            Err(rejection) => rejection.encode(&args, &mut encoder),
        }
        String::from_utf8(out).expect("the table is text")
    }

    // What could go wrong: a packed name equals another one's, because case folding maps bytes that are no letters.
    #[test]
    fn a_name_is_found_in_any_case_and_nothing_else_is() {
        for command in table::COMMANDS {
            let upper = command.name.to_ascii_uppercase();
            assert!(std::ptr::eq(lookup(command.name.as_bytes()).expect("listed"), command));
            assert!(std::ptr::eq(lookup(upper.as_bytes()).expect("listed"), command));
            for tail in ["\0", " ", "x"] {
                assert!(
                    lookup(format!("{}{tail}", command.name).as_bytes())
                        .is_none_or(|it| !std::ptr::eq(it, command))
                );
            }
        }
        assert!(lookup(b"").is_none());
        assert!(lookup(b"a name that is longer than sixteen bytes").is_none());
    }

    #[test]
    fn rejections_are_worded_as_redis_words_them() {
        assert_eq!(reply_to(&["foo"]), "-ERR unknown command 'foo', with args beginning with: \r\n");
        assert_eq!(
            reply_to(&["f\r\noo", "x\0y"]),
            "-ERR unknown command 'f  oo', with args beginning with: 'x' \r\n"
        );
        let (a, b) = ("a".repeat(100), "b".repeat(100));
        let cut =
            format!("-ERR unknown command 'foo', with args beginning with: '{a}' '{}' \r\n", "b".repeat(25));
        assert_eq!(reply_to(&["foo", &a, &b, "c"]), cut);
        assert_eq!(reply_to(&["client", "f\no"]), "-ERR unknown subcommand 'f o'. Try CLIENT HELP.\r\n");
        assert_eq!(reply_to(&["CLIENT"]), "-ERR wrong number of arguments for 'client' command\r\n");
        assert_eq!(
            reply_to(&["Config", "GET"]),
            "-ERR wrong number of arguments for 'config|get' command\r\n"
        );
        assert_eq!(reply_to(&["get", "a", "b"]), "-ERR wrong number of arguments for 'get' command\r\n");
    }

    #[test]
    fn every_command_is_documented_and_listed() {
        for command in with_subcommands() {
            assert_eq!(doc_of(command).name, command.name);
        }
        assert_eq!(reply_to(&["command", "count"]), format!(":{}\r\n", table::COMMANDS.len()));
        assert_eq!(reply_to(&["command", "info", "nope"]), "*1\r\n$-1\r\n");
        assert_eq!(reply_to(&["command", "list", "filterby", "pattern", "SET"]), "*1\r\n$3\r\nset\r\n");
        assert_eq!(reply_to(&["command", "list", "filterby", "pattern"]), "-ERR syntax error\r\n");
        assert_eq!(reply_to(&["command", "list", "filterby", "module", "json"]), "*0\r\n");
    }

    #[test]
    fn keys_are_where_the_table_says() {
        let positions = |name: &str, len| {
            lookup(name.as_bytes()).expect("listed").keys.positions(len).collect::<Vec<_>>()
        };
        assert_eq!(positions("get", 2), [1]);
        assert_eq!(positions("mset", 7), [1, 3, 5]);
        assert_eq!(positions("del", 4), [1, 2, 3]);
        assert_eq!(positions("copy", 6), [1, 2]);
        assert_eq!(positions("ping", 2), [0_usize; 0]);
    }
}
