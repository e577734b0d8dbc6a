//! What COMMAND DOCS answers: a sentence, history and the arguments of every command.
//!
//! Clients show these texts as hints while a person types (`redis-cli` asks for them when it connects), so they are Redis's
//! own, word for word: from Redis 7.0, Copyright (c) 2006-2020 Salvatore Sanfilippo, BSD 3-Clause licence.
//!
//! A row is a line, so that columns can be read downwards; hence `rustfmt::skip`.

use crate::resp::Encoder;

/// The documentation of one command or subcommand; an empty field is left out of the reply.
#[derive(Debug)]
pub(super) struct Doc {
    pub(super) name: &'static str,
    summary: &'static str,
    since: &'static str,
    group: &'static str,
    complexity: &'static str,
    flags: &'static [&'static str],
    deprecated_since: &'static str,
    replaced_by: &'static str,
    history: &'static [(&'static str, &'static str)],
    arguments: &'static [Arg],
}

/// One argument, or a block or choice of several.
#[derive(Debug)]
struct Arg {
    name: &'static str,
    kind: &'static str,
    key_spec: Option<i64>,
    token: &'static str,
    since: &'static str,
    deprecated_since: &'static str,
    flags: &'static [&'static str],
    arguments: &'static [Arg],
}

impl Doc {
    const EMPTY: Self = Self {
        name: "",
        summary: "",
        since: "",
        group: "",
        complexity: "",
        flags: &[],
        deprecated_since: "",
        replaced_by: "",
        history: &[],
        arguments: &[],
    };

    /// Appends the map that describes this command; `subcommands` are the containers' only.
    pub(super) fn encode(&self, subcommands: &[&Doc], out: &mut Encoder<'_>) {
        let texts = [
            ("summary", self.summary),
            ("since", self.since),
            ("group", self.group),
            ("complexity", self.complexity),
        ];
        let deprecation = [("deprecated_since", self.deprecated_since), ("replaced_by", self.replaced_by)];
        let fields = texts.iter().chain(&deprecation).filter(|(_, text)| !text.is_empty()).count()
            + [self.flags.len(), self.history.len(), self.arguments.len(), subcommands.len()]
                .iter()
                .filter(|&&len| len > 0)
                .count();
        out.map(fields);
        texts.iter().for_each(|(name, text)| encode_text(name, text, out));
        encode_flags("doc_flags", self.flags, out);
        deprecation.iter().for_each(|(name, text)| encode_text(name, text, out));
        if !self.history.is_empty() {
            out.bulk(b"history");
            out.set(self.history.len());
            for (version, change) in self.history {
                out.array(2);
                out.bulk(version.as_bytes());
                out.bulk(change.as_bytes());
            }
        }
        encode_arguments(self.arguments, out);
        if !subcommands.is_empty() {
            out.bulk(b"subcommands");
            out.map(subcommands.len());
            for doc in subcommands {
                out.bulk(doc.name.as_bytes());
                doc.encode(&[], out);
            }
        }
    }
}

impl Arg {
    const fn new(name: &'static str, kind: &'static str) -> Self {
        let (flags, arguments): (&[&str], &[Arg]) = (&[], &[]);
        Self { name, kind, key_spec: None, token: "", since: "", deprecated_since: "", flags, arguments }
    }

    const fn spec(self, index: i64) -> Self {
        Self { key_spec: Some(index), ..self }
    }

    const fn token(self, token: &'static str) -> Self {
        Self { token, ..self }
    }

    const fn since(self, since: &'static str) -> Self {
        Self { since, ..self }
    }

    const fn deprecated_since(self, deprecated_since: &'static str) -> Self {
        Self { deprecated_since, ..self }
    }

    const fn flags(self, flags: &'static [&'static str]) -> Self {
        Self { flags, ..self }
    }

    const fn arguments(self, arguments: &'static [Arg]) -> Self {
        Self { arguments, ..self }
    }

    fn encode(&self, out: &mut Encoder<'_>) {
        let optional = [
            self.key_spec.is_some(),
            !self.token.is_empty(),
            !self.since.is_empty(),
            !self.deprecated_since.is_empty(),
            !self.flags.is_empty(),
            !self.arguments.is_empty(),
        ];
        out.map(2 + optional.iter().filter(|&&present| present).count());
        encode_text("name", self.name, out);
        encode_text("type", self.kind, out);
        if let Some(index) = self.key_spec {
            out.bulk(b"key_spec_index");
            out.integer(index);
        }
        encode_text("token", self.token, out);
        encode_text("since", self.since, out);
        encode_text("deprecated_since", self.deprecated_since, out);
        encode_flags("flags", self.flags, out);
        encode_arguments(self.arguments, out);
    }
}

fn encode_text(name: &str, text: &str, out: &mut Encoder<'_>) {
    if !text.is_empty() {
        out.bulk(name.as_bytes());
        out.bulk(text.as_bytes());
    }
}

fn encode_flags(name: &str, flags: &[&str], out: &mut Encoder<'_>) {
    if !flags.is_empty() {
        out.bulk(name.as_bytes());
        out.set(flags.len());
        flags.iter().for_each(|flag| out.status(flag));
    }
}

fn encode_arguments(arguments: &[Arg], out: &mut Encoder<'_>) {
    if !arguments.is_empty() {
        out.bulk(b"arguments");
        out.array(arguments.len());
        arguments.iter().for_each(|argument| argument.encode(out));
    }
}

/// Every command and subcommand, in the order of the command table.
#[rustfmt::skip]
pub(super) static DOCS: &[Doc] = &[
    Doc { name: "ping", summary: "Ping the server", since: "1.0.0", group: "connection", complexity: "O(1)", arguments: &[Arg::new("message", "string").flags(&["optional"])], ..Doc::EMPTY },
    Doc { name: "echo", summary: "Echo the given string", since: "1.0.0", group: "connection", complexity: "O(1)", arguments: &[Arg::new("message", "string")], ..Doc::EMPTY },
    Doc { name: "hello", summary: "Handshake with Redis", since: "6.0.0", group: "connection", complexity: "O(1)", history: &[("6.2.0", "`protover` made optional; when called without arguments the command reports the current connection's context.")], arguments: &[Arg::new("arguments", "block").flags(&["optional"]).arguments(&[Arg::new("protover", "integer"), Arg::new("username_password", "block").token("AUTH").flags(&["optional"]).arguments(&[Arg::new("username", "string"), Arg::new("password", "string")]), Arg::new("clientname", "string").token("SETNAME").flags(&["optional"])])], ..Doc::EMPTY },
    Doc { name: "select", summary: "Change the selected database for the current connection", since: "1.0.0", group: "connection", complexity: "O(1)", arguments: &[Arg::new("index", "integer")], ..Doc::EMPTY },
    Doc { name: "quit", summary: "Close the connection", since: "1.0.0", group: "connection", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "reset", summary: "Reset the connection", since: "6.2.0", group: "connection", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "command", summary: "Get array of Redis command details", since: "2.8.13", group: "server", complexity: "O(N) where N is the total number of Redis commands", ..Doc::EMPTY },
    Doc { name: "command|count", summary: "Get total number of Redis commands", since: "2.8.13", group: "server", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "command|docs", summary: "Get array of specific Redis command documentation", since: "7.0.0", group: "server", complexity: "O(N) where N is the number of commands to look up", arguments: &[Arg::new("command-name", "string").flags(&["optional", "multiple"])], ..Doc::EMPTY },
    Doc { name: "command|help", summary: "Show helpful text about the different subcommands", since: "5.0.0", group: "server", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "command|info", summary: "Get array of specific Redis command details, or all when no argument is given.", since: "2.8.13", group: "server", complexity: "O(N) where N is the number of commands to look up", history: &[("7.0.0", "Allowed to be called with no argument to get info on all commands.")], arguments: &[Arg::new("command-name", "string").flags(&["optional", "multiple"])], ..Doc::EMPTY },
    Doc { name: "command|list", summary: "Get an array of Redis command names", since: "7.0.0", group: "server", complexity: "O(N) where N is the total number of Redis commands", arguments: &[Arg::new("filterby", "oneof").token("FILTERBY").flags(&["optional"]).arguments(&[Arg::new("module-name", "string").token("MODULE"), Arg::new("category", "string").token("ACLCAT"), Arg::new("pattern", "pattern").token("PATTERN")])], ..Doc::EMPTY },
    Doc { name: "info", summary: "Get information and statistics about the server", since: "1.0.0", group: "server", complexity: "O(1)", history: &[("7.0.0", "Added support for taking multiple section arguments.")], arguments: &[Arg::new("section", "string").flags(&["optional", "multiple"])], ..Doc::EMPTY },
    Doc { name: "config", summary: "A container for server configuration commands", since: "2.0.0", group: "server", complexity: "Depends on subcommand.", ..Doc::EMPTY },
    Doc { name: "config|get", summary: "Get the values of configuration parameters", since: "2.0.0", group: "server", complexity: "O(N) when N is the number of configuration parameters provided", history: &[("7.0.0", "Added the ability to pass multiple pattern parameters in one call")], arguments: &[Arg::new("parameter", "block").flags(&["multiple"]).arguments(&[Arg::new("parameter", "string")])], ..Doc::EMPTY },
    Doc { name: "config|help", summary: "Show helpful text about the different subcommands", since: "5.0.0", group: "server", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "config|resetstat", summary: "Reset the stats returned by INFO", since: "2.0.0", group: "server", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "client", summary: "A container for client connection commands", since: "2.4.0", group: "connection", complexity: "Depends on subcommand.", ..Doc::EMPTY },
    Doc { name: "client|getname", summary: "Get the current connection name", since: "2.6.9", group: "connection", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "client|help", summary: "Show helpful text about the different subcommands", since: "5.0.0", group: "connection", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "client|id", summary: "Returns the client ID for the current connection", since: "5.0.0", group: "connection", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "client|info", summary: "Returns information about the current client connection.", since: "6.2.0", group: "connection", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "client|kill", summary: "Kill the connection of a client", since: "2.4.0", group: "connection", complexity: "O(N) where N is the number of client connections", history: &[("2.8.12", "Added new filter format."), ("2.8.12", "`ID` option."), ("3.2.0", "Added `master` type in for `TYPE` option."), ("5.0.0", "Replaced `slave` `TYPE` with `replica`. `slave` still supported for backward compatibility."), ("6.2.0", "`LADDR` option.")], arguments: &[Arg::new("filter", "oneof").arguments(&[Arg::new("ip:port", "string").deprecated_since("2.8.12"), Arg::new("new-format", "oneof").flags(&["multiple"]).arguments(&[Arg::new("client-id", "integer").token("ID").since("2.8.12").flags(&["optional"]), Arg::new("normal_master_slave_pubsub", "oneof").token("TYPE").since("2.8.12").flags(&["optional"]).arguments(&[Arg::new("normal", "pure-token").token("NORMAL"), Arg::new("master", "pure-token").token("MASTER").since("3.2.0"), Arg::new("slave", "pure-token").token("SLAVE"), Arg::new("replica", "pure-token").token("REPLICA").since("5.0.0"), Arg::new("pubsub", "pure-token").token("PUBSUB")]), Arg::new("username", "string").token("USER").flags(&["optional"]), Arg::new("ip:port", "string").token("ADDR").flags(&["optional"]), Arg::new("ip:port", "string").token("LADDR").since("6.2.0").flags(&["optional"]), Arg::new("yes/no", "string").token("SKIPME").flags(&["optional"])])])], ..Doc::EMPTY },
    Doc { name: "client|list", summary: "Get the list of client connections", since: "2.4.0", group: "connection", complexity: "O(N) where N is the number of client connections", history: &[("2.8.12", "Added unique client `id` field."), ("5.0.0", "Added optional `TYPE` filter."), ("6.0.0", "Added `user` field."), ("6.2.0", "Added `argv-mem`, `tot-mem`, `laddr` and `redir` fields and the optional `ID` filter."), ("7.0.0", "Added `resp`, `multi-mem`, `rbs` and `rbp` fields."), ("7.0.3", "Added `ssub` field.")], arguments: &[Arg::new("normal_master_replica_pubsub", "oneof").token("TYPE").since("5.0.0").flags(&["optional"]).arguments(&[Arg::new("normal", "pure-token").token("NORMAL"), Arg::new("master", "pure-token").token("MASTER"), Arg::new("replica", "pure-token").token("REPLICA"), Arg::new("pubsub", "pure-token").token("PUBSUB")]), Arg::new("id", "block").token("ID").since("6.2.0").flags(&["optional"]).arguments(&[Arg::new("client-id", "integer").flags(&["multiple"])])], ..Doc::EMPTY },
    Doc { name: "client|setname", summary: "Set the current connection name", since: "2.6.9", group: "connection", complexity: "O(1)", arguments: &[Arg::new("connection-name", "string")], ..Doc::EMPTY },
    Doc { name: "get", summary: "Get the value of a key", since: "1.0.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "set", summary: "Set the string value of a key", since: "1.0.0", group: "string", complexity: "O(1)", history: &[("2.6.12", "Added the `EX`, `PX`, `NX` and `XX` options."), ("6.0.0", "Added the `KEEPTTL` option."), ("6.2.0", "Added the `GET`, `EXAT` and `PXAT` option."), ("7.0.0", "Allowed the `NX` and `GET` options to be used together.")], arguments: &[Arg::new("key", "key").spec(0), Arg::new("value", "string"), Arg::new("condition", "oneof").since("2.6.12").flags(&["optional"]).arguments(&[Arg::new("nx", "pure-token").token("NX"), Arg::new("xx", "pure-token").token("XX")]), Arg::new("get", "pure-token").token("GET").since("6.2.0").flags(&["optional"]), Arg::new("expiration", "oneof").flags(&["optional"]).arguments(&[Arg::new("seconds", "integer").token("EX").since("2.6.12"), Arg::new("milliseconds", "integer").token("PX").since("2.6.12"), Arg::new("unix-time-seconds", "unix-time").token("EXAT").since("6.2.0"), Arg::new("unix-time-milliseconds", "unix-time").token("PXAT").since("6.2.0"), Arg::new("keepttl", "pure-token").token("KEEPTTL").since("6.0.0")])], ..Doc::EMPTY },
    Doc { name: "setnx", summary: "Set the value of a key, only if the key does not exist", since: "1.0.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("value", "string")], ..Doc::EMPTY },
    Doc { name: "setex", summary: "Set the value and expiration of a key", since: "2.0.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("seconds", "integer"), Arg::new("value", "string")], ..Doc::EMPTY },
    Doc { name: "psetex", summary: "Set the value and expiration in milliseconds of a key", since: "2.6.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("milliseconds", "integer"), Arg::new("value", "string")], ..Doc::EMPTY },
    Doc { name: "getex", summary: "Get the value of a key and optionally set its expiration", since: "6.2.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("expiration", "oneof").flags(&["optional"]).arguments(&[Arg::new("seconds", "integer").token("EX"), Arg::new("milliseconds", "integer").token("PX"), Arg::new("unix-time-seconds", "unix-time").token("EXAT"), Arg::new("unix-time-milliseconds", "unix-time").token("PXAT"), Arg::new("persist", "pure-token").token("PERSIST")])], ..Doc::EMPTY },
    Doc { name: "getdel", summary: "Get the value of a key and delete the key", since: "6.2.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "getset", summary: "Set the string value of a key and return its old value", since: "1.0.0", group: "string", complexity: "O(1)", deprecated_since: "6.2.0", replaced_by: "`SET` with the `!GET` argument", flags: &["deprecated"], arguments: &[Arg::new("key", "key").spec(0), Arg::new("value", "string")], ..Doc::EMPTY },
    Doc { name: "getrange", summary: "Get a substring of the string stored at a key", since: "2.4.0", group: "string", complexity: "O(N) where N is the length of the returned string. The complexity is ultimately determined by the returned length, but because creating a substring from an existing string is very cheap, it can be considered O(1) for small strings.", arguments: &[Arg::new("key", "key").spec(0), Arg::new("start", "integer"), Arg::new("end", "integer")], ..Doc::EMPTY },
    Doc { name: "setrange", summary: "Overwrite part of a string at key starting at the specified offset", since: "2.2.0", group: "string", complexity: "O(1), not counting the time taken to copy the new string in place. Usually, this string is very small so the amortized complexity is O(1). Otherwise, complexity is O(M) with M being the length of the value argument.", arguments: &[Arg::new("key", "key").spec(0), Arg::new("offset", "integer"), Arg::new("value", "string")], ..Doc::EMPTY },
    Doc { name: "del", summary: "Delete a key", since: "1.0.0", group: "generic", complexity: "O(N) where N is the number of keys that will be removed. When a key to remove holds a value other than a string, the individual complexity for this key is O(M) where M is the number of elements in the list, set, sorted set or hash. Removing a single key that holds a string value is O(1).", arguments: &[Arg::new("key", "key").spec(0).flags(&["multiple"])], ..Doc::EMPTY },
    Doc { name: "unlink", summary: "Delete a key asynchronously in another thread. Otherwise it is just as DEL, but non blocking.", since: "4.0.0", group: "generic", complexity: "O(1) for each key removed regardless of its size. Then the command does O(N) work in a different thread in order to reclaim memory, where N is the number of allocations the deleted objects where composed of.", arguments: &[Arg::new("key", "key").spec(0).flags(&["multiple"])], ..Doc::EMPTY },
    Doc { name: "exists", summary: "Determine if a key exists", since: "1.0.0", group: "generic", complexity: "O(N) where N is the number of keys to check.", history: &[("3.0.3", "Accepts multiple `key` arguments.")], arguments: &[Arg::new("key", "key").spec(0).flags(&["multiple"])], ..Doc::EMPTY },
    Doc { name: "touch", summary: "Alters the last access time of a key(s). Returns the number of existing keys specified.", since: "3.2.1", group: "generic", complexity: "O(N) where N is the number of keys that will be touched.", arguments: &[Arg::new("key", "key").spec(0).flags(&["multiple"])], ..Doc::EMPTY },
    Doc { name: "incr", summary: "Increment the integer value of a key by one", since: "1.0.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "decr", summary: "Decrement the integer value of a key by one", since: "1.0.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "incrby", summary: "Increment the integer value of a key by the given amount", since: "1.0.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("increment", "integer")], ..Doc::EMPTY },
    Doc { name: "decrby", summary: "Decrement the integer value of a key by the given number", since: "1.0.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("decrement", "integer")], ..Doc::EMPTY },
    Doc { name: "incrbyfloat", summary: "Increment the float value of a key by the given amount", since: "2.6.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("increment", "double")], ..Doc::EMPTY },
    Doc { name: "append", summary: "Append a value to a key", since: "2.0.0", group: "string", complexity: "O(1). The amortized time complexity is O(1) assuming the appended value is small and the already present value is of any size, since the dynamic string library used by Redis will double the free space available on every reallocation.", arguments: &[Arg::new("key", "key").spec(0), Arg::new("value", "string")], ..Doc::EMPTY },
    Doc { name: "strlen", summary: "Get the length of the value stored in a key", since: "2.2.0", group: "string", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "mget", summary: "Get the values of all the given keys", since: "1.0.0", group: "string", complexity: "O(N) where N is the number of keys to retrieve.", arguments: &[Arg::new("key", "key").spec(0).flags(&["multiple"])], ..Doc::EMPTY },
    Doc { name: "mset", summary: "Set multiple keys to multiple values", since: "1.0.1", group: "string", complexity: "O(N) where N is the number of keys to set.", arguments: &[Arg::new("key_value", "block").flags(&["multiple"]).arguments(&[Arg::new("key", "key").spec(0), Arg::new("value", "string")])], ..Doc::EMPTY },
    Doc { name: "msetnx", summary: "Set multiple keys to multiple values, only if none of the keys exist", since: "1.0.1", group: "string", complexity: "O(N) where N is the number of keys to set.", arguments: &[Arg::new("key_value", "block").flags(&["multiple"]).arguments(&[Arg::new("key", "key").spec(0), Arg::new("value", "string")])], ..Doc::EMPTY },
    Doc { name: "expire", summary: "Set a key's time to live in seconds", since: "1.0.0", group: "generic", complexity: "O(1)", history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")], arguments: &[Arg::new("key", "key").spec(0), Arg::new("seconds", "integer"), Arg::new("condition", "oneof").since("7.0.0").flags(&["optional"]).arguments(&[Arg::new("nx", "pure-token").token("NX"), Arg::new("xx", "pure-token").token("XX"), Arg::new("gt", "pure-token").token("GT"), Arg::new("lt", "pure-token").token("LT")])], ..Doc::EMPTY },
    Doc { name: "pexpire", summary: "Set a key's time to live in milliseconds", since: "2.6.0", group: "generic", complexity: "O(1)", history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")], arguments: &[Arg::new("key", "key").spec(0), Arg::new("milliseconds", "integer"), Arg::new("condition", "oneof").since("7.0.0").flags(&["optional"]).arguments(&[Arg::new("nx", "pure-token").token("NX"), Arg::new("xx", "pure-token").token("XX"), Arg::new("gt", "pure-token").token("GT"), Arg::new("lt", "pure-token").token("LT")])], ..Doc::EMPTY },
    Doc { name: "expireat", summary: "Set the expiration for a key as a UNIX timestamp", since: "1.2.0", group: "generic", complexity: "O(1)", history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")], arguments: &[Arg::new("key", "key").spec(0), Arg::new("unix-time-seconds", "unix-time"), Arg::new("condition", "oneof").since("7.0.0").flags(&["optional"]).arguments(&[Arg::new("nx", "pure-token").token("NX"), Arg::new("xx", "pure-token").token("XX"), Arg::new("gt", "pure-token").token("GT"), Arg::new("lt", "pure-token").token("LT")])], ..Doc::EMPTY },
    Doc { name: "pexpireat", summary: "Set the expiration for a key as a UNIX timestamp specified in milliseconds", since: "2.6.0", group: "generic", complexity: "O(1)", history: &[("7.0.0", "Added options: `NX`, `XX`, `GT` and `LT`.")], arguments: &[Arg::new("key", "key").spec(0), Arg::new("unix-time-milliseconds", "unix-time"), Arg::new("condition", "oneof").since("7.0.0").flags(&["optional"]).arguments(&[Arg::new("nx", "pure-token").token("NX"), Arg::new("xx", "pure-token").token("XX"), Arg::new("gt", "pure-token").token("GT"), Arg::new("lt", "pure-token").token("LT")])], ..Doc::EMPTY },
    Doc { name: "expiretime", summary: "Get the expiration Unix timestamp for a key", since: "7.0.0", group: "generic", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "pexpiretime", summary: "Get the expiration Unix timestamp for a key in milliseconds", since: "7.0.0", group: "generic", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "ttl", summary: "Get the time to live for a key in seconds", since: "1.0.0", group: "generic", complexity: "O(1)", history: &[("2.8.0", "Added the -2 reply.")], arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "pttl", summary: "Get the time to live for a key in milliseconds", since: "2.6.0", group: "generic", complexity: "O(1)", history: &[("2.8.0", "Added the -2 reply.")], arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "persist", summary: "Remove the expiration from a key", since: "2.2.0", group: "generic", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "type", summary: "Determine the type stored at key", since: "1.0.0", group: "generic", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0)], ..Doc::EMPTY },
    Doc { name: "rename", summary: "Rename a key", since: "1.0.0", group: "generic", complexity: "O(1)", arguments: &[Arg::new("key", "key").spec(0), Arg::new("newkey", "key").spec(1)], ..Doc::EMPTY },
    Doc { name: "renamenx", summary: "Rename a key, only if the new key does not exist", since: "1.0.0", group: "generic", complexity: "O(1)", history: &[("3.2.0", "The command no longer returns an error when source and destination names are the same.")], arguments: &[Arg::new("key", "key").spec(0), Arg::new("newkey", "key").spec(1)], ..Doc::EMPTY },
    Doc { name: "copy", summary: "Copy a key", since: "6.2.0", group: "generic", complexity: "O(N) worst case for collections, where N is the number of nested items. O(1) for string values.", arguments: &[Arg::new("source", "key").spec(0), Arg::new("destination", "key").spec(1), Arg::new("destination-db", "integer").token("DB").flags(&["optional"]), Arg::new("replace", "pure-token").token("REPLACE").flags(&["optional"])], ..Doc::EMPTY },
    Doc { name: "keys", summary: "Find all keys matching the given pattern", since: "1.0.0", group: "generic", complexity: "O(N) with N being the number of keys in the database, under the assumption that the key names in the database and the given pattern have limited length.", arguments: &[Arg::new("pattern", "pattern")], ..Doc::EMPTY },
    Doc { name: "scan", summary: "Incrementally iterate the keys space", since: "2.8.0", group: "generic", complexity: "O(1) for every call. O(N) for a complete iteration, including enough command calls for the cursor to return back to 0. N is the number of elements inside the collection.", history: &[("6.0.0", "Added the `TYPE` subcommand.")], arguments: &[Arg::new("cursor", "integer"), Arg::new("pattern", "pattern").token("MATCH").flags(&["optional"]), Arg::new("count", "integer").token("COUNT").flags(&["optional"]), Arg::new("type", "string").token("TYPE").since("6.0.0").flags(&["optional"])], ..Doc::EMPTY },
    Doc { name: "randomkey", summary: "Return a random key from the keyspace", since: "1.0.0", group: "generic", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "dbsize", summary: "Return the number of keys in the selected database", since: "1.0.0", group: "server", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "flushall", summary: "Remove all keys from all databases", since: "1.0.0", group: "server", complexity: "O(N) where N is the total number of keys in all databases", history: &[("4.0.0", "Added the `ASYNC` flushing mode modifier."), ("6.2.0", "Added the `SYNC` flushing mode modifier.")], arguments: &[Arg::new("async", "oneof").flags(&["optional"]).arguments(&[Arg::new("async", "pure-token").token("ASYNC").since("4.0.0"), Arg::new("sync", "pure-token").token("SYNC").since("6.2.0")])], ..Doc::EMPTY },
    Doc { name: "flushdb", summary: "Remove all keys from the current database", since: "1.0.0", group: "server", complexity: "O(N) where N is the number of keys in the selected database", history: &[("4.0.0", "Added the `ASYNC` flushing mode modifier."), ("6.2.0", "Added the `SYNC` flushing mode modifier.")], arguments: &[Arg::new("async", "oneof").flags(&["optional"]).arguments(&[Arg::new("async", "pure-token").token("ASYNC").since("4.0.0"), Arg::new("sync", "pure-token").token("SYNC").since("6.2.0")])], ..Doc::EMPTY },
    Doc { name: "time", summary: "Return the current server time", since: "2.6.0", group: "server", complexity: "O(1)", ..Doc::EMPTY },
    Doc { name: "debug", summary: "A container for debugging commands", since: "1.0.0", group: "server", complexity: "Depends on subcommand.", flags: &["syscmd"], ..Doc::EMPTY },
];
