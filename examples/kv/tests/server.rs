//! The program `kv` with two workers, driven by a real client, the `redis` crate; and by bare sockets where a real client would
//! be too well-behaved.
//!
//! Reply by reply `compare` holds it against Redis. Here are the things that need a whole server: pipelines over several
//! workers, many clients, bad clients, bounds, signals, restarts, damaged files.

mod process;
#[path = "../../../tests/system/wine.rs"]
mod wine;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use process::{PATIENCE, Process, SIGNALS, empty_dir, keys_of, keyspace};
use redis::{
    Cmd, Commands, Connection, ExistenceCheck, Expiry, Pipeline, SetExpiry, SetOptions, Value, cmd, pipe,
};

/// Two workers, whatever the machine: keys are then elsewhere half of the time.
const TWO: &[&str] = &["--workers", "2"];

const MEBIBYTE: usize = 1024 * 1024;

// ---- Every family of commands ------------------------------------------------------------------------------------------

#[test]
fn strings_are_set_read_and_changed() {
    let (_dir, server) = two_workers();
    let mut c = server.client();
    for i in 0..32 {
        // Some keys are this connection's worker's, some the other's.
        let key = &format!("string:{i}");
        assert_eq!(c.get(key), Ok(None::<String>));
        let only_old = SetOptions::default().conditional_set(ExistenceCheck::XX);
        assert_eq!(c.set_options(key, "x", only_old), Ok(None::<String>));
        assert_eq!(c.set(key, "one"), Ok(()));
        let only_new = SetOptions::default().conditional_set(ExistenceCheck::NX).get(true);
        assert_eq!(c.set_options(key, "x", only_new), Ok(Some("one".to_owned())));
        assert_eq!(c.set_nx(key, "x"), Ok(false));
        assert_eq!(c.append(key, "-two"), Ok(7));
        assert_eq!(c.strlen(key), Ok(7));
        assert_eq!(c.getrange(key, 4, -1), Ok("two".to_owned()));
        assert_eq!(c.setrange(key, 8, "!"), Ok(9));
        assert_eq!(c.getset(key, "three"), Ok(Some("one-two\0!".to_owned())));
        assert_eq!(c.get_ex(key, Expiry::PERSIST), Ok(Some("three".to_owned())));
        assert_eq!(c.get_del(key), Ok(Some("three".to_owned())));
        assert_eq!(c.exists(key), Ok(false));
        let binary: Vec<u8> = (0..=255).collect();
        assert_eq!(c.set(key, &binary), Ok(()));
        assert_eq!(c.get(key), Ok(Some(binary)));
    }
}

#[test]
fn numbers_are_counted() {
    let (_dir, server) = two_workers();
    let mut c = server.client();
    for i in 0..32 {
        let key = &format!("number:{i}");
        assert_eq!(cmd("INCR").arg(key).query(&mut c), Ok(1));
        assert_eq!(cmd("DECR").arg(key).query(&mut c), Ok(0));
        assert_eq!(c.incr(key, 41), Ok(41));
        assert_eq!(c.decr(key, 50), Ok(-9));
        assert_eq!(c.incr(key, 0.5), Ok(-8.5));
        refused(cmd("INCR").arg(key), &mut c, "ERR", "value is not an integer or out of range");
        assert_eq!(c.set(key, i64::MAX), Ok(()));
        refused(cmd("INCR").arg(key), &mut c, "ERR", "increment or decrement would overflow");
        assert_eq!(c.get(key), Ok(Some(i64::MAX)));
    }
}

#[test]
fn keys_expire_and_say_when() {
    let (_dir, server) = two_workers();
    let mut c = server.client();
    let far = 4_000_000_000_u64;
    for i in 0..32 {
        let key = &format!("expiring:{i}");
        assert_eq!(query::<i64>(&mut c, "TTL", key), -2);
        assert_eq!(c.set(key, 1), Ok(()));
        assert_eq!(query::<i64>(&mut c, "TTL", key), -1);
        assert_eq!(c.expire(key, 100), Ok(true));
        assert!((99..=100).contains(&query::<i64>(&mut c, "TTL", key)));
        assert_eq!(c.pexpire(key, 100_000), Ok(true));
        assert!((90_000..=100_000).contains(&query::<i64>(&mut c, "PTTL", key)));
        assert_eq!(c.persist(key), Ok(true));
        assert_eq!(c.expire_at(key, 4_000_000_000), Ok(true));
        assert_eq!(query::<u64>(&mut c, "EXPIRETIME", key), far);
        assert_eq!(c.pexpire_at(key, 4_000_000_000_001), Ok(true));
        assert_eq!(query::<u64>(&mut c, "PEXPIRETIME", key), far * 1000 + 1);
        let kept = SetOptions::default().with_expiration(SetExpiry::KEEPTTL);
        assert_eq!(c.set_options(key, 2, kept), Ok(Some("OK".to_owned())));
        assert_eq!(query::<u64>(&mut c, "EXPIRETIME", key), far);
        assert_eq!(c.set_ex(key, 3, 1000), Ok(()));
        assert_eq!(c.pset_ex(key, 3, 1), Ok(()));
        until("the key is gone", || c.exists(key) == Ok(false));
        // In the past is at once.
        assert_eq!(c.set(key, 4), Ok(()));
        assert_eq!(c.expire_at(key, 1), Ok(true));
        assert_eq!(c.get(key), Ok(None::<String>));
    }
}

#[test]
fn keys_are_moved_copied_listed_and_removed() {
    let (_dir, server) = two_workers();
    let mut c = server.client();
    for i in 0..32 {
        let [a, b] = &[format!("from:{i}"), format!("to:{i}")];
        refused(cmd("RENAME").arg(a).arg(b), &mut c, "ERR", "no such key");
        assert_eq!(c.set_ex(a, i, 1000), Ok(()));
        assert_eq!(c.rename(a, b), Ok(()));
        assert!(query::<i64>(&mut c, "TTL", b) > 990);
        assert_eq!(c.exists(&[a, b]), Ok(1));
        assert_eq!(c.set(a, "other"), Ok(()));
        assert_eq!(c.rename_nx(a, b), Ok(false));
        assert_eq!(cmd("COPY").arg(a).arg(b).query(&mut c), Ok(false));
        assert_eq!(cmd("COPY").arg(a).arg(b).arg("REPLACE").query(&mut c), Ok(true));
        assert_eq!(c.get(b), Ok(Some("other".to_owned())));
        assert_eq!(cmd("COPY").arg(a).arg(b).arg(&["DB", "1"]).query(&mut c), Ok(true));
        assert_eq!(query::<String>(&mut c, "TYPE", b), "string");
        assert_eq!(cmd("TOUCH").arg(&[a, b, b]).query(&mut c), Ok(3));
    }
    assert_eq!(cmd("DBSIZE").query(&mut c), Ok(64));
    let mut listed: Vec<String> = c.keys("from:*").expect("KEYS");
    let mut scanned: Vec<String> =
        c.scan_match("from:*").expect("SCAN").collect::<Result<_, _>>().expect("pieces of it");
    let mut expected: Vec<_> = (0..32).map(|i| format!("from:{i}")).collect();
    for keys in [&mut listed, &mut scanned, &mut expected] {
        keys.sort();
    }
    assert_eq!(listed, expected);
    scanned.dedup();
    assert_eq!(scanned, expected);
    let any: String = cmd("RANDOMKEY").query(&mut c).expect("a key");
    assert_eq!(c.unlink(&any), Ok(1));
    assert_eq!(c.del(&expected), Ok(32 - i32::from(any.starts_with("from"))));
    assert_eq!(cmd("SELECT").arg(1).query(&mut c), Ok(()));
    assert_eq!(cmd("DBSIZE").query(&mut c), Ok(32));
    assert_eq!(cmd("FLUSHDB").query(&mut c), Ok(()));
    assert_eq!(cmd("DBSIZE").query(&mut c), Ok(0));
    assert_eq!(cmd("SELECT").arg(0).query(&mut c), Ok(()));
    assert!(cmd("DBSIZE").query::<i32>(&mut c).expect("a number") >= 31);
    assert_eq!(c.flushall(), Ok(()));
    assert_eq!(cmd("DBSIZE").query(&mut c), Ok(0));
}

#[test]
fn many_keys_are_set_and_read_at_once() {
    let (_dir, server) = two_workers();
    let mut c = server.client();
    let pairs: Vec<_> = (0..1000).map(|i| (format!("many:{i}"), i)).collect();
    let keys: Vec<_> = pairs.iter().map(|(key, _)| key).collect();
    assert_eq!(c.mset(&pairs), Ok(()));
    assert_eq!(c.mget(&keys), Ok((0..1000).collect::<Vec<i32>>()));
    assert_eq!(c.exists(&keys), Ok(1000));
    let last_is_old = [("new:1", 1), ("new:2", 2), ("new:3", 3), ("many:1", 4)];
    assert_eq!(c.mset_nx(&last_is_old), Ok(false));
    assert_eq!(c.mget(&["new:1", "many:1", "new:2"]), Ok((None::<i32>, Some(1), None::<i32>)));
    assert_eq!(c.mset_nx(&last_is_old[..3]), Ok(true));
    assert_eq!(c.mget(&["new:1", "none", "new:2", "new:1"]), Ok((1, None::<i32>, 2, 1)));
    assert_eq!(c.del(&keys), Ok(1000));
    assert_eq!(c.mget(&keys), Ok(vec![None::<i32>; 1000]));
}

#[test]
fn a_client_learns_what_it_talks_to() {
    let (dir, server) = two_workers();
    let mut c = server.client();
    assert_eq!(c.ping(), Ok("PONG".to_owned()));
    assert_eq!(cmd("ECHO").arg("hello").query(&mut c), Ok("hello".to_owned()));
    assert_eq!(c.client_setname("me"), Ok(()));
    assert_eq!(c.client_getname(), Ok(Some("me".to_owned())));
    let info: redis::InfoDict = cmd("INFO").query(&mut c).expect("INFO");
    assert_eq!(info.get::<u32>("connected_clients"), Some(1));
    assert_eq!(info.get::<u16>("tcp_port"), Some(server.addr().port()));
    assert!(info.get::<String>("worker0").is_some() && info.get::<String>("worker1").is_some());
    let config: HashMap<String, String> =
        cmd("CONFIG").arg(&["GET", "dir", "maxclients"]).query(&mut c).expect("CONFIG GET");
    assert_eq!(PathBuf::from(&config["dir"]), dir.path().canonicalize().expect("it is there"));
    assert_eq!(config["maxclients"], "10000");
    let commands: usize = cmd("COMMAND").arg("COUNT").query(&mut c).expect("COMMAND COUNT");
    assert_eq!(cmd("COMMAND").query::<Vec<Value>>(&mut c).expect("tables").len(), commands);
    let (seconds, _): (u64, u64) = cmd("TIME").query(&mut c).expect("TIME");
    assert!(seconds > 1_700_000_000);
    assert_eq!(cmd("RESET").query(&mut c), Ok("RESET".to_owned()));
    assert_eq!(c.client_getname(), Ok(None::<String>));
    refused(&cmd("NONE"), &mut c, "ERR", "unknown command 'NONE', with args beginning with: ");
    assert_eq!(cmd("QUIT").query(&mut c), Ok(()));
    assert!(c.ping::<String>().is_err(), "the server closes after QUIT");
}

#[test]
fn a_client_that_speaks_resp3_gets_its_types() {
    let (_dir, server) = two_workers();
    let mut c = server.connect("?protocol=resp3").expect("HELLO 3 is accepted");
    for i in 0..8 {
        let key = format!("k{i}");
        assert_eq!(cmd("GET").arg(&key).query(&mut c), Ok(Value::Nil));
        assert_eq!(c.set(&key, 1), Ok(()));
        assert_eq!(c.mget(&[&key, "none"]), Ok(Value::Array(vec![bulk("1"), Value::Nil])));
    }
    let config: Value = cmd("CONFIG").arg(&["GET", "port"]).query(&mut c).expect("CONFIG GET");
    let port = server.addr().port().to_string();
    assert_eq!(config, Value::Map(vec![(bulk("port"), bulk(&port))]));
    let Value::Map(hello) = cmd("HELLO").query(&mut c).expect("HELLO") else { panic!("HELLO gives a map") };
    assert!(hello.contains(&(bulk("proto"), Value::Int(3))));
    // And back: the same connection, with the older types.
    let hello: Value = cmd("HELLO").arg(2).query(&mut c).expect("HELLO 2");
    assert!(matches!(hello, Value::Array(_)));
    refused(cmd("HELLO").arg(4), &mut c, "NOPROTO", "unsupported protocol version");
}

// ---- Pipelines --------------------------------------------------------------------------------------------------------

// What could go wrong: the client writes until the kernel takes no more, and reads only then. A server that waits with reading
// until its replies are taken would wait for ever.
#[test]
fn ten_thousand_commands_are_answered_in_order_though_none_is_read_before_all_are_written() {
    let (_dir, server) = two_workers();
    let mut c = server.client();
    for value in [vec![b'v'; 3], vec![b'v'; 2000]] {
        let mut pipeline = pipe();
        for i in 0..2500 {
            let key = format!("pipeline:{}", i % 100);
            pipeline.cmd("SET").arg(&key).arg(&value);
            pipeline.cmd("ECHO").arg(i);
            pipeline.cmd("GET").arg(&key);
            pipeline.cmd("INCR").arg(format!("count:{}", value.len()));
        }
        let replies = raw(&mut c, &pipeline);
        assert_eq!(replies.len(), 10_000);
        for (i, replies) in replies.chunks(4).enumerate() {
            let count = i64::try_from(i + 1).expect("few");
            let expected =
                [Value::Okay, bulk(&i.to_string()), Value::BulkString(value.clone()), Value::Int(count)];
            assert_eq!(replies, expected, "{i}");
        }
    }
}

// What could go wrong: a command for this worker's keys overtakes one for the other's, or one over both; a reply lands in
// another's place. A server with one worker has no such troubles, so both must answer alike.
#[test]
fn a_pipeline_over_two_workers_is_answered_as_by_one() {
    let (_dir, two) = two_workers();
    let dir = empty_dir();
    let one = Process::start(dir.path(), &["--workers", "1"]);
    for seed in 1..=24 {
        let (mut a, mut b) = (two.client(), one.client());
        let pipeline = scramble(seed, 400);
        for (i, (two, one)) in raw(&mut a, &pipeline).into_iter().zip(raw(&mut b, &pipeline)).enumerate() {
            assert_eq!(two, one, "seed {seed}, command {i}");
        }
    }
}

#[test]
fn a_pipeline_that_is_cut_anywhere_is_answered_as_a_whole_one() {
    let (_dir, server) = two_workers();
    let pipeline = scramble(99, 60).get_packed_pipeline();
    let ask = |pieces: &[&[u8]]| {
        let mut socket = server.socket();
        socket.set_nodelay(true).expect("an option");
        for piece in pieces {
            socket.write_all(piece).expect("it is read");
        }
        socket.shutdown(Shutdown::Write).expect("half a close");
        let mut replies = Vec::new();
        socket.read_to_end(&mut replies).expect("the server closes in order");
        replies
    };
    let whole = ask(&[&pipeline]);
    assert!(whole.len() > 100);
    for step in [1, 2, 3, 7, 64, 1000] {
        let pieces: Vec<_> = pipeline.chunks(step).collect();
        assert!(ask(&pieces) == whole, "pieces of {step} bytes");
    }
}

// What could go wrong: the error is lost when replies are still owed, and what follows the broken request is taken for others.
#[test]
fn a_broken_request_behind_a_pipeline_is_the_last_that_is_answered() {
    let (dir, server) = two_workers();
    let keyspace = keyspace(dir.path());
    for worker in 0..2 {
        let key = keys_of(&keyspace, worker, "none").next().expect("there are many");
        let mut pipeline = pipe();
        for _ in 0..40 {
            pipeline.get(&key);
        }
        for (broken, error) in [
            ("*abc\r\n", "invalid multibulk length"),
            ("*1\r\n$-1\r\n", "invalid bulk length"),
            ("*1\r\nXabc\r\n", "expected '$', got 'X'"),
            ("*1\r\n$900000000\r\n", "invalid bulk length"),
        ] {
            let mut socket = server.socket();
            let frames = [&pipeline.get_packed_pipeline(), broken.as_bytes(), b"$4\r\nPING\r\n"].concat();
            socket.write_all(&frames).expect("it is read");
            let mut replies = String::new();
            socket.read_to_string(&mut replies).expect("the connection is closed");
            let expected = "$-1\r\n".repeat(40) + "-ERR Protocol error: " + error + "\r\n";
            assert_eq!(replies, expected, "worker {worker}, {broken:?}");
        }
    }
}

// What could go wrong: while the log cannot be written a shard runs what other workers' clients want written, or closes those who
// only read; afterwards shards that a refused transaction held are held for ever. Only a Unix bounds what another process may write.
#[cfg(unix)]
#[test]
fn a_disk_that_refuses_makes_all_shards_read_only_until_it_takes_writes_again() {
    let dir = empty_dir();
    let server = Process::start(dir.path(), &["--workers", "2", "--fsync", "no"]);
    let keyspace = keyspace(dir.path());
    let key = |worker| keys_of(&keyspace, worker, "key").next().expect("there are many");
    let keys = [&key(0), &key(1)];
    let mut c = server.client();
    for key in keys {
        assert_eq!(c.set(key, "before"), Ok(()));
    }
    for _ in 0..3 {
        // Files cannot grow: for the server that is as good as a full disk.
        let unlimited = server.limit_files(Some(0));
        for key in keys {
            // What is found out by a write is told to the next.
            until("the write is refused", || {
                cmd("SET").arg(key).arg("during").query::<()>(&mut server.client()).is_err()
            });
        }
        let mut clients: Vec<_> = (0..6).map(|_| server.client()).collect();
        for c in &mut clients {
            for (from, to) in [(keys[0], keys[1]), (keys[1], keys[0])] {
                let text = cmd("RENAME").arg(from).arg(to).query::<()>(c).expect_err("no space").to_string();
                assert!(text.contains("MISCONF"), "{text}");
            }
            for key in keys {
                cmd("APPEND").arg(key).arg("during").query::<()>(c).expect_err("no space");
                let value: String = c.get(key).expect("a reader goes on");
                assert!(!value.is_empty());
            }
        }
        server.limit_files(unlimited);
        for c in &mut clients {
            for key in keys {
                until("it is written again", || c.set(key, "after") == Ok(()));
            }
        }
        assert_eq!(c.mget(&keys), Ok(["after", "after"].map(str::to_owned).to_vec()));
    }
    let (status, said) = server.stop();
    assert!(status.success(), "{said}");
}

// What could go wrong: replies of another worker are kept until all of a batch are there, so a short pipeline of long
// values takes the memory of all others.
#[test]
fn a_pipeline_of_large_values_is_answered_without_holding_all_of_them() {
    let (dir, server) = two_workers();
    let mut c = server.client();
    let value = vec![b'x'; 4 * MEBIBYTE];
    let keyspace = keyspace(dir.path());
    for worker in 0..2 {
        let key = keys_of(&keyspace, worker, "large").next().expect("there are many");
        assert_eq!(c.set(&key, &value), Ok(()));
        let mut pipeline = pipe();
        for _ in 0..150 {
            pipeline.get(&key);
        }
        for reply in raw(&mut c, &pipeline) {
            assert!(reply == Value::BulkString(value.clone()), "worker {worker}");
        }
    }
    let peak = server.peak_memory_kib();
    assert!(peak < 400 * 1024, "600 MiB were answered, twice, with {peak} KiB");
}

// What could go wrong: a client that writes much before it reads has it all copied for the other worker, at several times its size.
#[test]
fn a_long_pipeline_for_the_other_worker_goes_there_in_pieces() {
    const COMMANDS: usize = 1024 * 1024;
    let (dir, server) = two_workers();
    let mut c = server.client();
    const LARGE: usize = 16 * MEBIBYTE;
    let keyspace = keyspace(dir.path());
    let none = |worker| keys_of(&keyspace, worker, "n").next().expect("there are many");
    assert_eq!(c.setrange("large", isize::try_from(LARGE - 1).expect("few"), "x"), Ok(LARGE));
    let mut sent = 0;
    for worker in 0..2 {
        // Nothing else is read until somebody reads the large value.
        let small = format!("GET {}\r\n", none(worker)).repeat(COMMANDS);
        let mut socket = server.socket();
        socket.write_all(&["GET large\r\n", &small].concat().into_bytes()).expect("it is read");
        until("all of it has arrived", || {
            let info: String = cmd("INFO").arg("stats").query(&mut c).expect("text");
            let line = info.lines().find_map(|line| line.strip_prefix("total_net_input_bytes:"));
            line.expect("a line for it").parse::<usize>().expect("a number") > sent + small.len()
        });
        sent += small.len();
        socket.shutdown(Shutdown::Write).expect("half a close");
        let mut replies = Vec::new();
        socket.read_to_end(&mut replies).expect("the server closes in order");
        assert!(replies.ends_with(b"$-1\r\n"));
        assert_eq!(replies.len(), "$16777216\r\n\r\n".len() + LARGE + COMMANDS * 5);
    }
    let peak = server.peak_memory_kib();
    assert!(peak < 150 * 1024, "two times eight mebibytes were asked, with {peak} KiB");
}

// What could go wrong: a few bytes journal a large value, and a short pipeline of them takes all memory, or a frame has more than one
// can have.
#[test]
fn a_pipeline_of_copies_waits_for_the_log() {
    let dir = empty_dir();
    let server = Process::start(dir.path(), &["--workers", "2", "--fsync", "no"]);
    let mut c = server.client();
    let keyspace = keyspace(dir.path());
    let value = vec![b'x'; 8 * MEBIBYTE];
    for worker in 0..2 {
        let mut keys = keys_of(&keyspace, worker, "large");
        let (from, to) = (&keys.next().expect("there are many"), &keys.next().expect("there are many"));
        assert_eq!(c.set(from, &value), Ok(()));
        let mut pipeline = pipe();
        for _ in 0..80 {
            pipeline.cmd("COPY").arg(from).arg(to).arg("REPLACE");
            pipeline.cmd("STRLEN").arg(to);
        }
        for replies in raw(&mut c, &pipeline).chunks(2) {
            assert_eq!(replies, [Value::Int(1), Value::Int(i64::try_from(value.len()).expect("few"))]);
        }
    }
    let peak = server.peak_memory_kib();
    assert!(peak < 450 * 1024, "640 MiB were journalled, twice, with {peak} KiB");
}

// ---- Many clients -----------------------------------------------------------------------------------------------------

#[test]
fn a_hundred_clients_at_once_lose_no_count() {
    const CLIENTS: usize = 100;
    const ROUNDS: i64 = 50;
    let (_dir, server) = two_workers();
    let together = Barrier::new(CLIENTS);
    let counters = ["shared:a", "shared:b", "shared:c", "shared:d"];
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, together) = (&server, &together);
            scope.spawn(move || {
                let mut c = server.client();
                together.wait();
                for round in 1..=ROUNDS {
                    let mut pipeline = pipe();
                    for counter in counters {
                        pipeline.incr(counter, 1).ignore();
                    }
                    pipeline.incr(format!("own:{client}"), 1);
                    assert_eq!(pipeline.query(&mut c), Ok((round,)));
                }
                together.wait();
            });
        }
    });
    let mut c = server.client();
    let total = i64::try_from(CLIENTS).expect("few") * ROUNDS;
    assert_eq!(c.mget(&counters), Ok([total; 4].to_vec()));
}

// What could go wrong: transactions over several workers wait for each other in a circle, or one that nobody waits for any more
// keeps its shards held.
#[test]
fn clients_that_rename_across_workers_and_vanish_leave_no_shard_held() {
    let (dir, server) = two_workers();
    let keyspace = keyspace(dir.path());
    let key = |worker| keys_of(&keyspace, worker, "held").next().expect("there are many");
    let (a, b) = (&key(0), &key(1));
    let mut c = server.client();
    assert_eq!(c.set(a, "the one value"), Ok(()));
    thread::scope(|scope| {
        for client in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for _ in 0..25 {
                    let mut pipeline = pipe();
                    for _ in 0..4 {
                        let (from, to) = if client % 2 == 0 { (a, b) } else { (b, a) };
                        pipeline.cmd("RENAME").arg(from).arg(to);
                    }
                    let mut socket = server.socket();
                    socket.write_all(&pipeline.get_packed_pipeline()).expect("it is read");
                    // Gone without a look at the replies.
                }
            });
        }
    });
    // Somebody's last pipeline may still be at work, and the value go from one worker to the other between the two parts of a look.
    until("the value is in one place", || {
        let (at_a, at_b): (Option<String>, Option<String>) = c.mget(&[a, b]).expect("no shard is held");
        at_a.xor(at_b).as_deref() == Some("the one value")
    });
    assert_eq!(c.set(a, 1), Ok(()));
    assert_eq!(c.set(b, 2), Ok(()));
}

#[test]
fn client_list_shows_the_clients_of_all_workers() {
    let (_dir, server) = two_workers();
    let mut clients: Vec<_> = (0..40).map(|_| server.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.client_setname(format!("name-{i}")), Ok(()));
    }
    let listed: String = cmd("CLIENT").arg("LIST").query(&mut clients[0]).expect("CLIENT LIST");
    let names: Vec<_> = listed.lines().filter_map(|line| field(line, "name")).collect();
    assert_eq!(names.len(), 40);
    for i in 0..40 {
        assert!(names.contains(&&*format!("name-{i}")), "{i} in {listed}");
    }
    let ids: Vec<i64> = clients.iter_mut().map(|client| client.client_id().expect("an id")).collect();
    for id in &ids {
        assert!(listed.lines().any(|line| field(line, "id") == Some(&id.to_string())));
    }
    // The kernel spreads 40 connections over two listeners; all at one would be a chance of 1 in 2^39.
    let info: redis::InfoDict = cmd("INFO").arg("workers").query(&mut clients[0]).expect("INFO");
    for worker in ["worker0", "worker1"] {
        let line: String = info.get(worker).expect("a line for each worker");
        assert!(!line.starts_with("clients=0,"), "{worker}: {line}");
    }
}

#[test]
fn a_client_is_killed_from_any_other() {
    let (_dir, server) = two_workers();
    let mut clients: Vec<_> = (0..16).map(|_| server.client()).collect();
    let ids: Vec<i64> = clients.iter_mut().map(|client| client.client_id().expect("an id")).collect();
    let mut killer = server.client();
    for (client, id) in clients.iter_mut().zip(ids) {
        assert_eq!(cmd("CLIENT").arg("KILL").arg("ID").arg(id).query(&mut killer), Ok(1));
        assert!(client.ping::<String>().expect_err("it was killed").is_io_error());
        assert_eq!(cmd("CLIENT").arg("KILL").arg("ID").arg(id).query(&mut killer), Ok(0));
    }
    refused(cmd("CLIENT").arg("KILL").arg("127.0.0.1:1"), &mut killer, "ERR", "No such client");
    let own: i64 = killer.client_id().expect("an id");
    let own = cmd("CLIENT").arg(&["KILL", "SKIPME", "no", "ID"]).arg(own).query(&mut killer);
    assert_eq!(own, Ok(1), "it is told before it is closed");
    assert!(killer.ping::<String>().is_err());
    assert_eq!(server.client().ping(), Ok("PONG".to_owned()));
}

// ---- Bounds -----------------------------------------------------------------------------------------------------------

#[test]
fn a_value_may_have_64_mebibytes_and_not_a_byte_more() {
    let (dir, server) = two_workers();
    let keyspace = keyspace(dir.path());
    let mut c = server.client();
    let mut value = vec![b'v'; 64 * MEBIBYTE];
    value[12_345_678] = b'w';
    for worker in 0..2 {
        let key = keys_of(&keyspace, worker, "large").next().expect("there are many");
        assert_eq!(c.set(&key, &value), Ok(()));
        assert!(c.get(&key) == Ok(Some(value.clone())), "worker {worker}");
        let too_long = "string exceeds maximum allowed size (proto-max-bulk-len)";
        refused(cmd("APPEND").arg(&key).arg("x"), &mut c, "ERR", too_long);
        refused(cmd("SETRANGE").arg(&key).arg(64 * MEBIBYTE).arg("x"), &mut c, "ERR", too_long);
        assert_eq!(c.strlen(&key), Ok(64 * MEBIBYTE));
    }
    // The length is refused when it is announced: nothing of the value is taken.
    let mut socket = server.socket();
    write!(socket, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", 64 * MEBIBYTE + 1).expect("it is read");
    let mut reply = String::new();
    socket.read_to_string(&mut reply).expect("an error, then the end");
    assert_eq!(reply, "-ERR Protocol error: invalid bulk length\r\n");
    assert_eq!(c.ping(), Ok("PONG".to_owned()));
}

#[test]
fn one_client_too_many_is_told_so() {
    let dir = empty_dir();
    let server = Process::start(dir.path(), &["--workers", "2", "--maxclients", "5"]);
    let clients: Vec<_> = (0..5).map(|_| server.client()).collect();
    for _ in 0..3 {
        let mut reply = String::new();
        server.socket().read_to_string(&mut reply).expect("an error, then the end");
        assert_eq!(reply, "-ERR max number of clients reached\r\n");
    }
    drop(clients);
    until("there is room again", || server.connect("").is_ok_and(|mut c| c.ping() == Ok("PONG".to_owned())));
}

#[test]
fn writes_are_refused_when_memory_is_used_up_and_taken_again_when_there_is_some() {
    let dir = empty_dir();
    let server = Process::start(dir.path(), &["--workers", "2", "--maxmemory", "4mb"]);
    let mut c = server.client();
    let value = vec![b'v'; 10_000];
    let mut stored = Vec::new();
    let refusal = loop {
        let key = format!("key:{}", stored.len());
        match c.set::<_, _, ()>(&key, &value) {
            Ok(()) => stored.push(key),
            Err(error) => break error,
        }
        assert!(stored.len() < 500, "5 MB are not taken");
    };
    assert_eq!(refusal.code(), Some("OOM"));
    assert_eq!(refusal.detail(), Some("command not allowed when used memory > 'maxmemory'."));
    assert!(stored.len() > 150, "each worker has half of the memory, and keys are spread: {}", stored.len());
    assert_eq!(c.get(&stored[0]), Ok(Some(value.clone())), "reads go on");
    assert_eq!(c.del(&stored), Ok(stored.len()), "and so does what makes room");
    assert_eq!(c.set("key:0", &value), Ok(()));
}

// What could go wrong: the bound is looked at when all of a reply is there, and that is more than any machine has.
#[test]
fn a_client_that_asks_for_more_than_its_output_may_be_is_closed_and_others_are_not() {
    let (dir, server) = two_workers();
    let keyspace = keyspace(dir.path());
    let mut other = server.client();
    for worker in 0..2 {
        let key = keys_of(&keyspace, worker, "large").next().expect("there are many");
        let mut c = server.client();
        assert_eq!(c.set(&key, vec![b'v'; 64 * MEBIBYTE]), Ok(()));
        let times_1000 = vec![&key; 1000];
        let error = c.mget::<_, Vec<Vec<u8>>>(&times_1000).expect_err("64 GiB are more than 256 MiB");
        assert!(error.is_io_error(), "{error}");
        assert_eq!(other.strlen(&key), Ok(64 * MEBIBYTE));
        assert_eq!(other.del(&key), Ok(1));
    }
    let peak = server.peak_memory_kib();
    assert!(peak < 1024 * 1024, "{peak} KiB");
}

// ---- Clients that behave badly ----------------------------------------------------------------------------------------

// What could go wrong: the server waits for a client's window, and with it everybody on that worker.
#[test]
fn clients_that_never_read_stop_nobody_else() {
    let (_dir, server) = two_workers();
    let mut c = server.client();
    assert_eq!(c.set("large", vec![b'v'; MEBIBYTE]), Ok(()));
    let mut deaf: Vec<_> = (0..8).map(|_| server.socket()).collect();
    let request = b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n".repeat(40);
    for socket in &mut deaf {
        socket.write_all(&request).expect("it is read");
    }
    let mut others: Vec<_> = (0..8).map(|_| server.client()).collect();
    for round in 0..50 {
        for other in &mut others {
            assert_eq!(other.set("small", round), Ok(()));
            assert_eq!(other.get("small"), Ok(Some(round)));
        }
    }
    // They were not forgotten either: one that reads at last gets all of it, and so does one that has closed its half.
    let all = 40 * (MEBIBYTE + "$1048576\r\n\r\n".len());
    let mut late = deaf.pop().expect("there are eight");
    late.read_exact(&mut vec![0; all]).expect("all replies");
    let what = "a peer that closes its half ends a send that waits, if a receive waits too";
    if !wine::lacks("clients_that_never_read_stop_nobody_else, who has closed its half", what) {
        let mut closed = deaf.pop().expect("there are seven");
        closed.shutdown(Shutdown::Write).expect("half a close");
        let mut replies = Vec::new();
        closed.read_to_end(&mut replies).expect("all replies, then the end");
        assert_eq!(replies.len(), all);
    }
    // And nobody who does not read keeps the server from stopping.
    assert!(server.stop().0.success());
}

#[test]
fn half_a_request_and_then_silence_stops_nobody_else() {
    let (_dir, server) = two_workers();
    let mut halves: Vec<_> = (0..8).map(|_| server.socket()).collect();
    for socket in &mut halves {
        socket.write_all(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$10\r\n01234").expect("it is read");
    }
    let mut c = server.client();
    for i in 0..100 {
        assert_eq!(c.set("other", i), Ok(()));
    }
    assert_eq!(c.exists("half"), Ok(false));
    for socket in &mut halves {
        socket.write_all(b"56789\r\n").expect("it is read");
        let mut reply = [0; 5];
        socket.read_exact(&mut reply).expect("a reply");
        assert_eq!(&reply, b"+OK\r\n");
    }
    assert_eq!(c.get("half"), Ok(Some("0123456789".to_owned())));
}

#[test]
fn what_a_client_asked_before_it_closed_its_side_is_answered() {
    let (_dir, server) = two_workers();
    for _ in 0..20 {
        let mut socket = server.socket();
        socket.write_all(b"SET a 1\r\nMGET a b c d\r\nECHO end\r\n").expect("it is read");
        socket.shutdown(Shutdown::Write).expect("half a close");
        let mut replies = String::new();
        socket.read_to_string(&mut replies).expect("replies, then the end");
        assert_eq!(replies, "+OK\r\n*4\r\n$1\r\n1\r\n$-1\r\n$-1\r\n$-1\r\n$3\r\nend\r\n");
    }
}

// ---- Stop and start ---------------------------------------------------------------------------------------------------

// What could go wrong: the stop overtakes what is still in the journals or in the kernel's hands. Writers are at it while it comes.
#[test]
fn a_stop_loses_nothing_that_was_acknowledged_and_any_number_of_workers_finds_it() {
    let dir = empty_dir();
    let mut expected = HashMap::new();
    let signals = SIGNALS.into_iter().cycle();
    for (start, (workers, signal)) in ["2", "2", "3", "1"].into_iter().zip(signals).enumerate() {
        let server = Process::start(dir.path(), &["--workers", workers, "--fsync", "no"]);
        check_counters(&server, &expected);
        let counted: Vec<_> = thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|client| {
                    let c = server.client();
                    scope.spawn(move || count_until_closed(c, &format!("{start}:{client}:")))
                })
                .collect();
            thread::sleep(Duration::from_millis(100));
            server.signal(signal);
            clients.into_iter().flat_map(|client| client.join().expect("it counts")).collect()
        });
        assert!(counted.iter().any(|(_, acknowledged)| *acknowledged > 0));
        expected.extend(counted);
        let (status, said) = server.stop();
        assert!(status.success(), "{said}");
    }
    let server = Process::start(dir.path(), TWO);
    check_counters(&server, &expected);
}

#[test]
fn a_restart_finds_values_and_expiries_of_every_database() {
    let dir = empty_dir();
    let server = Process::start(dir.path(), &["--workers", "2", "--fsync", "no"]);
    let mut c = server.client();
    for db in [0, 7, 15] {
        assert_eq!(cmd("SELECT").arg(db).query(&mut c), Ok(()));
        for i in 0..100 {
            let key = format!("key:{i}");
            assert_eq!(c.set(&key, format!("{db}:{i}")), Ok(()));
            if i % 2 == 1 {
                assert_eq!(c.expire_at(&key, 4_000_000_000 + i), Ok(true));
            }
        }
        assert_eq!(c.del(&["key:0", "key:1"]), Ok(2));
    }
    assert_eq!(cmd("SELECT").arg(3).query(&mut c), Ok(()));
    assert_eq!(c.set("flushed", 1), Ok(()));
    assert_eq!(cmd("FLUSHDB").query(&mut c), Ok(()));
    drop(c);
    assert!(server.stop().0.success());
    for workers in ["2", "3", "2"] {
        let server = Process::start(dir.path(), &["--workers", workers]);
        let mut c = server.client();
        for db in [0, 7, 15] {
            assert_eq!(cmd("SELECT").arg(db).query(&mut c), Ok(()));
            assert_eq!(cmd("DBSIZE").query(&mut c), Ok(98), "database {db}, {workers} workers");
            for i in 2..100_i64 {
                let key = format!("key:{i}");
                assert_eq!(c.get(&key), Ok(Some(format!("{db}:{i}"))));
                let end = if i % 2 == 1 { 4_000_000_000 + i } else { -1 };
                assert_eq!(query::<i64>(&mut c, "EXPIRETIME", &key), end);
            }
        }
        assert_eq!(cmd("SELECT").arg(3).query(&mut c), Ok(()));
        assert_eq!(cmd("DBSIZE").query(&mut c), Ok(0));
        drop(c);
        assert!(server.stop().0.success());
    }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let (dir, server) = two_workers();
    let refused = Process::try_start(dir.path(), TWO).expect_err("the directory is taken");
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.said.contains("is in use by another server"), "{}", refused.said);
    assert!(refused.said.contains(&dir.path().display().to_string()), "{}", refused.said);
    assert_eq!(server.client().ping(), Ok("PONG".to_owned()));
    assert!(server.stop().0.success());
    Process::start(dir.path(), TWO);
}

#[test]
fn a_server_whose_address_is_taken_says_so() {
    let (_dir, server) = two_workers();
    let dir = empty_dir();
    // A port of somebody who does not share it.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("it is bound").to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_kv"))
        .args(["--bind", &addr, "--workers", "2", "--dir"])
        .arg(dir.path())
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    // Windows says it in the user's language, with a number.
    assert!(said.contains("in use") || said.contains("os error 10048"), "{said}");
    drop(server);
}

#[test]
fn a_log_that_is_damaged_in_its_middle_is_refused_by_name_and_offset() {
    let dir = empty_dir();
    let server = Process::start(dir.path(), &["--workers", "1", "--fsync", "always"]);
    let mut c = server.client();
    for i in 0..200 {
        assert_eq!(c.set(format!("key:{i}"), "value"), Ok(()));
    }
    drop(c);
    assert!(server.stop().0.success());
    let path = the_log(dir.path());
    let whole = fs::read(&path).expect("a log");
    let find =
        |what: &[u8]| whole.windows(what.len()).position(|bytes| bytes == what).expect("it was logged");
    let damaged_at = find(b"key:100");
    let mut damaged = whole.clone();
    damaged[damaged_at] ^= 1;
    fs::write(&path, &damaged).expect("our file");
    let refused =
        Process::try_start(dir.path(), &["--workers", "1"]).expect_err("acknowledged writes are missing");
    assert_eq!(refused.status.code(), Some(1));
    let said = refused.said;
    let told = said.split_once(" is corrupt at byte ").expect("what is wrong").1;
    let offset: usize = told.split(':').next().and_then(|offset| offset.parse().ok()).expect("an offset");
    // The frame that holds it, which begins less than a frame before.
    assert!((damaged_at - 200..=damaged_at).contains(&offset), "{said} {damaged_at}");
    assert!(said.contains(&path.display().to_string()), "{said}");
    assert!(
        fs::read(&path).expect("a log") == damaged,
        "what is damaged is left as it is, for whoever repairs it"
    );
    // A torn tail is another thing: nobody was promised what was in it.
    let tail = find(b"key:199");
    let mut torn = whole[..tail + 3].to_vec();
    torn.extend_from_slice(b"torn");
    fs::write(&path, &torn).expect("our file");
    let server = Process::start(dir.path(), &["--workers", "1"]);
    let mut c = server.client();
    assert_eq!(c.get("key:198"), Ok(Some("value".to_owned())));
    assert_eq!(c.exists("key:199"), Ok(false));
    drop(c);
    let (status, said) = server.stop();
    assert!(
        status.success() && said.contains("warning") || said.contains("torn") || said.contains("cut"),
        "{said}"
    );
}

#[test]
fn without_a_log_nothing_is_kept() {
    let dir = empty_dir();
    let server = Process::start(dir.path(), &["--workers", "2", "--no-log"]);
    assert_eq!(server.client().set("key", 1), Ok(()));
    assert!(server.stop().0.success());
    assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0);
    let server = Process::start(dir.path(), &["--workers", "2", "--no-log"]);
    assert_eq!(server.client().exists("key"), Ok(false));
}

#[test]
fn the_demo_shows_every_worker_and_ends() {
    let child = Command::new(env!("CARGO_BIN_EXE_kv"))
        .args(["--demo", "1", "--workers", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let output = child.wait_with_output().expect("it ends by itself");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for column in ["2 workers serve", "commands/s", "entries/op", "mesh/s", "p99.9"] {
        assert!(shown.contains(column), "{column} in {shown}");
    }
}

// ---- What the tests need ----------------------------------------------------------------------------------------------

fn two_workers() -> (tempfile::TempDir, Process) {
    let dir = empty_dir();
    let server = Process::start(dir.path(), TWO);
    (dir, server)
}

#[track_caller]
fn query<T: redis::FromRedisValue>(c: &mut Connection, command: &str, key: &str) -> T {
    cmd(command).arg(key).query(c).expect("a reply")
}

fn bulk(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

/// The command is answered with this error.
#[track_caller]
fn refused(command: &Cmd, c: &mut Connection, code: &str, text: &str) {
    let error = command.query::<Value>(c).expect_err("an error");
    let is = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    assert!(is == format!("{code} {text}") || is.ends_with(&format!("{code} {text}")), "{is}: {error}");
}

/// The replies to a pipeline, errors among them, read after all of it has been written.
fn raw(c: &mut Connection, pipeline: &Pipeline) -> Vec<Value> {
    c.send_packed_command(&pipeline.get_packed_pipeline()).expect("it is read");
    pipeline.cmd_iter().map(|_| c.recv_response().expect("a reply")).collect()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The value of `name=value` in a line of CLIENT LIST.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

/// Commands whose replies depend on their order, over a few keys of both workers.
fn scramble(seed: u64, len: usize) -> Pipeline {
    let mut state = seed;
    let mut below = |bound: u64| {
        // xorshift64: any order will do, as long as a seed gives it again.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    let mut pipeline = pipe();
    pipeline.cmd("FLUSHALL");
    for i in 0..len {
        let mut key = || format!("k{}", below(12));
        let (a, b, c) = (key(), key(), key());
        match below(20) {
            0 | 1 => pipeline.cmd("SET").arg(&a).arg(i),
            2 => pipeline.cmd("MSET").arg(&a).arg(i).arg(&b).arg(i + 1).arg(&c).arg("text"),
            3 => pipeline.cmd("MSETNX").arg(&a).arg(i).arg(&b).arg(i + 1),
            4 => pipeline.cmd("MGET").arg(&a).arg(&b).arg(&c).arg(&a),
            5 | 6 => pipeline.cmd("RENAME").arg(&a).arg(&b),
            7 => pipeline.cmd("RENAMENX").arg(&a).arg(&b),
            8 => pipeline.cmd("COPY").arg(&a).arg(&b).arg("REPLACE"),
            9 => pipeline.cmd("DEL").arg(&a).arg(&b),
            10 => pipeline.cmd("EXISTS").arg(&a).arg(&b).arg(&c),
            11 => pipeline.cmd("INCR").arg(&a),
            12 => pipeline.cmd("APPEND").arg(&a).arg("x"),
            13 => pipeline.cmd("DBSIZE"),
            14 => pipeline.cmd("GETDEL").arg(&a),
            15 => pipeline.cmd("ECHO").arg(i),
            16 => pipeline.cmd("SET").arg(&a).arg(i).arg("GET"),
            17 if below(8) == 0 => pipeline.cmd("FLUSHDB"),
            18 => pipeline.cmd("SELECT").arg(below(2)),
            _ => pipeline.cmd("GET").arg(&a),
        };
    }
    pipeline
}

/// Counts in a few keys until the connection ends. Gives each one's last acknowledged count.
fn count_until_closed(mut c: Connection, prefix: &str) -> HashMap<String, i64> {
    let mut counts = HashMap::new();
    for i in 0_u64.. {
        let key = format!("{prefix}{}", i % 10);
        match c.incr::<_, _, i64>(&key, 1) {
            Ok(count) => counts.insert(key, count),
            Err(_) => break,
        };
    }
    counts
}

#[track_caller]
fn check_counters(server: &Process, expected: &HashMap<String, i64>) {
    let mut c = server.client();
    for (key, acknowledged) in expected {
        let found = c.get::<_, Option<i64>>(key).expect("a reply").unwrap_or(0);
        // One more may have been done whose reply did not arrive.
        assert!((*acknowledged..=acknowledged + 1).contains(&found), "{key}: {found}, not {acknowledged}");
    }
}

/// The one log in a directory.
fn the_log(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let logs: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    let [log] = &logs[..] else { panic!("one log, not {logs:?}") };
    log.clone()
}
