//! The rules of the house that no compiler checks, read from the source tree itself.
//!
//! A rule is a function from one source file to the complaints about it; a complaint names file and line and says what to do.
//! The tests come in pairs: the tree obeys the rule, and the rule catches its hazard (a made-up file that breaks it). What a
//! rule lets pass stands in the tables below, one line and one reason each, so that an exception is a change somebody reads.
//!
//! The files are not parsed, only cut into *code* and *comments* (with literals blanked out), and the code into tokens. That is
//! enough to follow a `use` tree and to tell `unsafe` from "unsafe", it needs no dependency, and it reads the whole tree in a
//! moment.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The files that may hold `unsafe`, each with what for. `unsafe` anywhere else does not compile (`unsafe_code = "deny"`), and
/// the lint is re-opened nowhere but here.
const UNSAFE: &[(&str, &str)] = &[
    ("benches/buffers.rs", "an allocator is called by hand"),
    ("benches/receive.rs", "a ring of buffers, shared with the kernel by hand"),
    ("bench/src/measure.rs", "asks the kernel for processor time, and pins threads"),
    ("bench/src/peers/bare.rs", "wakers over an `Rc`, futexes, and buffers shown to a ring"),
    ("bench/src/peers/tokio.rs", "generic code cannot see that the futures of some rows are `Send`"),
    ("src/io/buf/arena.rs", "raw pointers to a header that lives until the last block is back"),
    ("src/io/buf/atomic_waker.rs", "a cell that two threads hand to each other"),
    ("src/io/buf/fixed.rs", "owns raw memory, part of it uninitialised"),
    ("src/io/buf/io_buf.rs", "the promises that buffers make to the kernel, made for each type by hand"),
    ("src/io/buf/owned.rs", "shares with all threads what only one of them can reach"),
    ("src/io/buf/poison.rs", "two functions of the sanitizer's runtime"),
    ("src/io/buf/returns.rs", "a block given back may be the last, and its home then freed on any thread"),
    ("src/io/buf/ring.rs", "raw pointers to a header that lives until the last buffer is back"),
    ("src/io/buf/shared.rs", "the promises of a buffer, restated for shared bytes"),
    ("src/io/buf/slice.rs", "the promises of a buffer, restated for a range"),
    ("src/io/buf/vectored.rs", "the promises of a buffer, restated for a list"),
    ("src/io/driver/mod.rs", "declares what the encoding of an operation promises about its pointers"),
    ("src/io/driver/iocp/fs.rs", "shows the kernel addresses inside operations in their slots"),
    ("src/io/driver/iocp/misc.rs", "shows the kernel addresses inside operations in their slots"),
    ("src/io/driver/iocp/mod.rs", "shows the kernel addresses of what slots own, and gets them back"),
    ("src/io/driver/iocp/net.rs", "shows the kernel addresses inside operations in their slots"),
    ("src/io/driver/iocp/setup.rs", "asks for functions by their numbers, and attaches handles"),
    ("src/io/driver/iocp/unpark.rs", "makes the port, and posts to it"),
    ("src/io/driver/sim/fs.rs", "an encoding is a promise about addresses"),
    ("src/io/driver/sim/misc.rs", "an encoding is a promise about addresses"),
    ("src/io/driver/sim/mod.rs", "plays the kernel: keeps addresses of what slots own, and uses them later"),
    ("src/io/driver/sim/net.rs", "gives the simulated kernel addresses inside operations in their slots"),
    ("src/io/driver/slab.rs", "slots are shared with the kernel through pointers that outlive any borrow"),
    ("src/io/driver/uring/buffer_table.rs", "tells the kernel addresses that it keeps"),
    ("src/io/driver/uring/fs.rs", "shows the kernel addresses inside operations in their slots"),
    ("src/io/driver/uring/misc.rs", "shows the kernel addresses inside operations in their slots"),
    ("src/io/driver/uring/mod.rs", "enters the ring, and shows the kernel addresses of what slots own"),
    ("src/io/driver/address.rs", "what the kernel wrote becomes an address"),
    ("src/io/driver/uring/net.rs", "shows the kernel addresses inside operations in their slots"),
    ("src/io/driver/uring/receive_ring.rs", "shares a ring of addresses with the kernel"),
    ("src/io/driver/uring/setup.rs", "one registration that the io-uring crate ties to a borrowed submitter"),
    ("src/io/driver/waiter.rs", "a hand-written vtable over a counted reference that the runtime supplies"),
    ("src/io/driver/tests/mod.rs", "a buffer whose memory outlives it, to see who writes to it afterwards"),
    ("src/io/op/mod.rs", "a completed read says how many bytes of a buffer the kernel initialised"),
    ("src/io/socket.rs", "says how much of a buffer a call has filled"),
    ("src/io/stash.rs", "moves stashed bytes into buffers that are known by address only"),
    ("src/os/linux/map.rs", "maps and unmaps memory"),
    ("src/os/windows/accept.rs", "reads the block of addresses, of which only Winsock knows the form"),
    ("src/os/windows/affinity.rs", "asks and tells the system about the calling thread"),
    ("src/os/windows/clock.rs", "reads the performance counter"),
    ("src/os/windows/console.rs", "registers a handler that the system calls"),
    ("src/os/windows/file.rs", "asks the system about a handle"),
    ("src/os/windows/interrupt.rs", "suspends a thread, and reads its stack"),
    ("src/os/windows/limits.rs", "asks the system about this process"),
    ("src/os/windows/map.rs", "maps and unmaps memory"),
    ("src/os/windows/topology.rs", "reads records of different lengths that the system wrote"),
    ("src/runtime/mesh/bell.rs", "the place of a waker passes between threads with a state word"),
    ("src/os/linux/socket.rs", "an option that no crate wraps"),
    ("src/os/linux/preemption.rs", "a call that no crate wraps for a single thread"),
    ("src/os/linux/interrupt.rs", "a signal handler, and the stack of the thread that it interrupts"),
    ("src/runtime/stall.rs", "looks at the task that a thread polls, while the thread stands still"),
    ("src/runtime/task/cells.rs", "memory without a type, between two tasks"),
    ("src/runtime/mesh/mailbox.rs", "says who may take from the remote list, which only one may at a time"),
    ("src/runtime/mesh/reply.rs", "the place of a value passes between threads with a state word"),
    ("src/runtime/mesh/ring.rs", "slots are uninitialised memory that two threads hand to each other"),
    ("src/runtime/runtime.rs", "`block_on` runs a future that may borrow from its caller"),
    (
        "src/runtime/spawner/queue.rs",
        "hands tasks on as pointers, which one thread at a time may push or take",
    ),
    ("src/runtime/task/join.rs", "handles hold counted references to headers, and take the output"),
    ("src/runtime/task/executor.rs", "intrusive lists over headers that the owner's reference keeps"),
    ("src/runtime/task/finished.rs", "one word holds a list of counted entries or a boxed waker"),
    ("src/runtime/task/raw.rs", "any thread may free a task's header, its owner alone touches its future"),
    ("src/runtime/task/ready.rs", "an intrusive list over headers that the owner's reference keeps"),
    ("src/runtime/task/remote.rs", "an intrusive list: its nodes are the headers of tasks"),
    ("src/runtime/task/state.rs", "the owner's words are plain memory in a header that other threads see"),
    ("src/runtime/task/waker.rs", "a hand-written vtable over counted references to headers"),
    ("src/signal/linux.rs", "registers signal handlers"),
    ("tests/buffers.rs", "a waker with a vtable of its own, and an allocator that looks at what comes back"),
    ("tests/iocp.rs", "a buffer whose memory outlives it"),
    ("tests/limits.rs", "installs a seccomp filter"),
    ("tests/signals.rs", "plays the console of Windows"),
    ("tests/system/cpu_time.rs", "asks Windows about this process"),
    ("tests/system/descriptors.rs", "asks Windows about this process"),
    ("tests/system/wine.rs", "asks Windows what it is"),
    (
        "examples/kv/tests/process/windows.rs",
        "attaches to another process's console, and asks what that has used",
    ),
    ("tests/system/processors.rs", "asks Windows about the calling thread"),
];

/// Layers from the top down; a module names its own layer and those below it, never one above.
const LAYERS: &[(&[&str], usize)] = &[
    (&["net", "fs", "time", "task", "signal", "mesh"], INTERFACE),
    (&["runtime"], 2),
    (&["io"], 1),
    (&["os", "sync"], 0),
];
const INTERFACE: usize = 3;

/// The backends. Each names the portable half of the driver, but no other backend.
const BACKENDS: &[&str] = &["uring", "iocp", "poll", "sim"];

/// Who else may name a backend.
const NAMES_BACKENDS: &[(&str, &str)] = &[
    ("src/io/driver/mod.rs", "declares which backends this build has"),
    ("src/io/driver/tests/mod.rs", "tests run on every backend"),
    ("src/runtime/tests.rs", "several workers in one simulated world"),
];

/// Tests of a layer that are written as its users write: with the names of the layers above.
const TESTS_FROM_ABOVE: &[(&str, &str)] = &[
    ("src/runtime/tests.rs", "simulated workers run tasks that sleep and spawn as a program's do"),
    ("src/runtime/tests/background.rs", "the same, of two classes"),
    ("src/runtime/tests/dump.rs", "the same, asked what they wait for"),
    ("src/runtime/tests/fairness.rs", "the same, with long polls"),
    ("src/runtime/tests/stealing.rs", "the same, where some stand still"),
    ("src/runtime/tests/tear_down.rs", "a worker's tasks are spawned and yield as a program's do"),
];

/// Where the platforms may differ: a folder (with `/` at its end) or a file.
const PLATFORMS: &[(&str, &str)] = &[
    ("src/os/", "the operating systems' own calls live here"),
    ("src/io/driver/uring/", "Linux"),
    ("src/io/driver/iocp/", "Windows"),
    ("src/io/driver/poll/", "readiness, where io_uring is refused"),
    ("src/io/driver/mod.rs", "declares which backends this build has"),
    ("src/lib.rs", "says that a build without a ring does not use all that rings need"),
    ("src/fs/file.rs", "as std: `as_fd`, or `AsHandle`"),
    ("src/fs/metadata.rs", "as std: what only one system keeps of a file"),
    ("src/fs/open_options.rs", "as std: options that only one system knows"),
    ("src/fs/read_dir.rs", "as std: inodes"),
    ("src/net/mod.rs", "as std: `as_fd`, or `AsSocket`"),
    ("src/net/tcp_listener.rs", "as std: `as_fd`, or `AsSocket`"),
    ("src/net/tcp_stream.rs", "as std: `as_fd`, or `AsSocket`"),
    ("src/net/udp.rs", "as std: `as_fd`, or `AsSocket`"),
    ("src/net/tests.rs", "direct descriptors and limits on them are Linux's"),
    ("src/runtime/mod.rs", "the simulated kernel is built on Linux"),
    ("src/runtime/placement.rs", "the tests' machines were captured from Linux"),
    ("src/signal/mod.rs", "a handler of signals and one of console events may do different things"),
    ("benches/buffers.rs", "an allocator of others that is built on one system"),
    ("benches/receive.rs", "tries out what one kernel offers"),
    ("benches/runtime.rs", "a system call to compare with that only one has"),
    ("examples/kv/src/node.rs", "CLIENT LIST shows the system's number of a connection"),
    ("examples/kv/src/persist/tests.rs", "Linux has a device that is always full"),
    ("examples/kv/tests/", "processes are told to stop in different ways, and bounded on one system only"),
    ("tests/", "a test may be about one platform, and says so at its top"),
];

/// Who may read std's clocks. Everybody else asks the Context, so that the same code runs on virtual time.
const CLOCKS: &[(&str, &str)] = &[
    ("src/os/", "the operating system's clock itself"),
    ("src/runtime/timer/", "the one clock of a worker, real or virtual"),
    ("examples/kv/", "a server tells its clients the time of day"),
    ("bench/", "a benchmark measures"),
    ("benches/", "a benchmark measures"),
    ("tests/", "a watchdog ends a test that hangs"),
];

/// Who may take atomics from std and not from `src/sync.rs`, where loom can get between.
const ATOMICS: &[(&str, &str)] = &[
    ("src/sync.rs", "the shim itself"),
    ("src/io/buf/arena.rs", "numbers and flags by which nothing is published"),
    ("src/io/driver/uring/receive_ring.rs", "the other side is the kernel, which loom cannot run"),
    ("src/io/driver/waiter.rs", "the other side is a signal handler of the same thread"),
    ("src/os/linux/interrupt.rs", "the other side is a signal handler of the same thread"),
    ("src/runtime/metrics.rs", "counters with one writer, by which nothing is published"),
    ("src/runtime/task/state.rs", "numbers of tasks, by which nothing is published"),
];

/// Names that say nothing: a better noun is at hand, or the thing is two things.
const EMPTY_PREFIXES: &[&str] = &["Generic"];
const EMPTY_SUFFIXES: &[&str] = &["Internal", "Impl", "Outcome", "Manager", "Helper"];
const EMPTY_MODULES: &[&str] = &["util", "utils", "common", "helper", "helpers"];

/// Columns in a line. rustfmt wraps code long before; comments and strings may use a wide screen, not more.
const COLUMNS_MAX: usize = 140;

/// Whose lines may be longer.
const WIDE: &[(&str, &str)] = &[("examples/kv/src/command/", "tables: one command, one line")];

/// A rule: what is wrong with this file.
type Rule = fn(&Source) -> Vec<String>;

#[test]
fn layers_point_downwards() {
    obeyed(layers);
}

#[test]
fn layers_that_point_upwards_are_seen() {
    let io = "src/io/driver/slab.rs";
    caught(layers, io, "use crate::runtime::Worker;");
    caught(layers, io, "use crate::{io::buf, net::TcpStream};");
    caught(layers, io, "use super::super::super::task;");
    caught(layers, io, "mod tests { use super::super::super::super::fs; }");
    caught(layers, io, "fn f() { crate::spawn_local(async {}) }");
    caught(layers, io, "use crate::io::driver::uring::Ring;");
    caught(layers, "src/io/mod.rs", "pub use driver::uring::Ring;");
    caught(layers, "src/io/driver/sim/mod.rs", "use crate::io::driver::{token, uring};");
    caught(layers, "src/runtime/worker.rs", "use crate::io::driver::uring;");
    caught(layers, "src/os/linux/map.rs", "use crate::io;");
    passes(
        layers,
        io,
        "//! `crate::runtime`\nuse super::token::Token; use crate::{io::op, os, sync}; mod tests { use super::*; }",
    );
    passes(
        layers,
        "src/io/driver/uring/ring.rs",
        "use crate::io::driver::{Driver, uring::probe}; use super::poll;",
    );
    passes(
        layers,
        "src/net/tcp.rs",
        "use crate::{runtime::context, time::timeout, io::op::Accept, spawn_local};",
    );
}

#[test]
fn unsafe_stands_only_in_the_listed_files() {
    obeyed(unsafe_listed);
    let gone: Vec<_> = UNSAFE.iter().filter(|(path, _)| !root().join(path).exists()).collect();
    assert!(gone.is_empty(), "take these out of UNSAFE in tests/tidy.rs, they do not exist: {gone:?}");
}

#[test]
fn unsafe_elsewhere_is_seen() {
    let (listed, _) = UNSAFE[0];
    caught(unsafe_listed, "src/net/tcp.rs", "//! Tcp.\n#![expect(unsafe_code, reason = \"fast\")]\n");
    caught(unsafe_listed, "src/net/tcp.rs", "#[expect(unsafe_code, reason = \"fast\")] fn f() {}");
    caught(unsafe_listed, "src/net/tcp.rs", "fn f() { unsafe { g() } }");
    caught(unsafe_listed, listed, "//! No attribute.\nfn f() {}");
    passes(
        unsafe_listed,
        listed,
        "//! Slots.\n#![expect(unsafe_code, reason = \"slots\")]\nfn f() { unsafe { g() } }",
    );
    passes(unsafe_listed, "examples/kv/src/lib.rs", "#![forbid(unsafe_code)]");
    passes(unsafe_listed, "src/net/tcp.rs", "// unsafe\nfn f() -> &'static str { \"unsafe\" }");
}

#[test]
fn platforms_differ_in_one_folder() {
    obeyed(platforms);
}

#[test]
fn platforms_that_differ_elsewhere_are_seen() {
    caught(platforms, "src/net/tcp.rs", "#[cfg(target_os = \"linux\")] fn f() {}");
    caught(platforms, "src/net/tcp.rs", "#[cfg(not(windows))] fn f() {}");
    caught(platforms, "examples/cp.rs", "fn f() -> bool { cfg!(unix) }");
    passes(platforms, "src/os/mod.rs", "#[cfg(target_os = \"linux\")] mod linux;");
    passes(platforms, "src/net/tcp.rs", "use std::os::unix::net; #[cfg(test)] mod tests { fn unix() {} }");
}

#[test]
fn clocks_are_read_by_their_keepers() {
    obeyed(clocks);
}

#[test]
fn clocks_read_elsewhere_are_seen() {
    caught(clocks, "src/net/tcp.rs", "fn f() { std::time::Instant::now(); }");
    caught(clocks, "src/net/tcp.rs", "use std::time::{Duration, Instant}; fn f() { Instant::now(); }");
    caught(clocks, "src/net/tcp.rs", "use std::time; fn f() { time::SystemTime::now(); }");
    passes(
        clocks,
        "src/net/tcp.rs",
        "use crate::time::Instant; use std::time::Duration; fn f() { Instant::now(); }",
    );
    passes(
        clocks,
        "src/fs/metadata.rs",
        "use std::time::SystemTime; fn modified() -> SystemTime { SystemTime::UNIX_EPOCH }",
    );
}

#[test]
fn atomics_come_from_the_shim() {
    obeyed(atomics);
}

#[test]
fn atomics_from_elsewhere_are_seen() {
    caught(atomics, "src/net/tcp.rs", "use std::sync::atomic::AtomicU64;");
    caught(atomics, "src/net/tcp.rs", "use std::sync::{Arc, atomic};");
    caught(atomics, "src/net/tcp.rs", "fn f() { core::sync::atomic::fence(o) }");
    passes(
        atomics,
        "src/net/tcp.rs",
        "use crate::sync::atomic::AtomicU64;\nmod tests {\n use std::sync::atomic::AtomicU64;\n}",
    );
    passes(atomics, "examples/kv/src/main.rs", "use std::sync::atomic::AtomicU64;");
}

#[test]
fn every_mutant_is_caught_by_a_model() {
    // A bug that can be put back and never is proves nothing about the model that should notice it.
    let forgotten = mutants_forgotten(&sources());
    assert!(forgotten.is_empty(), "have a loom model catch these mutants (`model::catches`): {forgotten:?}");

    let asks = "fn f() { if mutant(\"no fence\") {} }";
    assert_eq!(mutants_forgotten(&[Source::new("src/a.rs", asks)]), ["no fence"]);
    let model = Source::new("src/b.rs", "fn loom_f() { catches(\"no fence\", f); }");
    assert!(mutants_forgotten(&[Source::new("src/a.rs", asks), model]).is_empty());
}

#[test]
fn files_open_with_prose_and_keep_to_the_page() {
    obeyed(page);
}

#[test]
fn files_off_the_page_are_seen() {
    caught(page, "src/a.rs", "use std::fs;\n");
    caught(page, "src/a.rs", "//! A.\nfn f() {} \n");
    caught(page, "src/a.rs", "//! A.\n\tfn f() {}\n");
    caught(page, "src/a.rs", "//! A.\nfn f() {}");
    caught(page, "src/a.rs", &format!("//! A.\n// {}\n", "wide ".repeat(28)));
    passes(page, "src/a.rs", "//! A.\n\nfn f() {}\n");
}

#[test]
fn nothing_is_left_for_later() {
    obeyed(finished);
}

#[test]
fn what_is_left_for_later_is_seen() {
    caught(finished, "src/a.rs", &["//! TO", "DO: write this.\n"].concat());
    caught(finished, "src/a.rs", &["fn f() { to", "do!() }"].concat());
    caught(finished, "src/a.rs", "#[ignore] fn f() {}");
    caught(finished, "src/a.rs", "#[ignore = \"slow\"] fn f() {}");
    passes(finished, "src/a.rs", "/// Keeps `#[ignore]` where it stands.\nfn f() { let todo = 1; }");
}

#[test]
fn names_say_something() {
    obeyed(names);
}

#[test]
fn names_that_say_nothing_are_seen() {
    caught(names, "src/a.rs", "struct RingManager;");
    caught(names, "src/a.rs", "pub(crate) enum ReadOutcome { A }");
    caught(names, "src/a.rs", "trait GenericDriver {}");
    caught(names, "src/a.rs", "mod utils;");
    caught(names, "src/common.rs", "//! What everybody needs.\n");
    caught(names, "tests/common/mod.rs", "//! What every test needs.\n");
    passes(names, "src/a.rs", "//! struct RingManager\nstruct Generation; impl Ring {} const IMPL: u8 = 0;");
}

#[test]
fn every_package_takes_the_lints_of_the_workspace() {
    // A package without these two lines would build with any `unsafe` in it.
    let missing: Vec<_> = files("Cargo.toml")
        .into_iter()
        .filter(|path| !path.starts_with("bench/") && !path.starts_with("fuzz/"))
        .filter(|path| !read(path).contains("\n[lints]\nworkspace = true\n"))
        .collect();
    assert!(missing.is_empty(), "put `[lints]` and `workspace = true` into {missing:?}");
}

#[test]
fn scripts_run_by_hand_and_are_documented() {
    // A step of CI that cannot be run by hand cannot be debugged by hand, and one that nobody is told of is not run.
    let documents = read("CONTRIBUTING.md") + &read("docs/testing.md");
    let mut complaints = String::new();
    for path in entries("scripts").into_iter().chain([".ci/run".to_owned()]) {
        let text = read(&path);
        if !executable(&path) {
            let _ = writeln!(complaints, "{path}: chmod +x");
        }
        if !text.starts_with("#!/usr/bin/env bash\n") || !text.contains("\nset -euo pipefail\n") {
            let _ = writeln!(
                complaints,
                "{path}: begin with `#!/usr/bin/env bash`, prose, and `set -euo pipefail`"
            );
        }
        if !documents.contains(&format!("`{path}")) {
            let _ = writeln!(complaints, "{path}: say in CONTRIBUTING.md or docs/testing.md what it is for");
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut complaints = String::new();
    for path in files(".md") {
        let folder = Path::new(&path).parent().expect("a file has a folder").to_owned();
        for link in links(&read(&path)) {
            if !root().join(&folder).join(&link).exists() {
                let _ = writeln!(complaints, "{path}: the link to {link} leads nowhere");
            }
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
    assert_eq!(links("[a](b.md#c) [d](https://e.f) `[g](h)` [i](#j)\n```text\n[k](l)\n```\n"), ["b.md"]);
}

#[test]
fn what_documents_name_exists() {
    // A document that names a file or a test which has gone, or never came, promises what nobody keeps.
    const FOLDERS: &[&str] =
        &["src/", "tests/", "scripts/", "examples/", "docs/", "crates/", "benches/", ".ci/"];
    let functions: BTreeSet<String> = sources()
        .iter()
        .flat_map(|source| {
            source.tokens.windows(2).filter(|pair| pair[0].text == "fn").map(|pair| pair[1].text.clone())
        })
        .collect();
    let mut complaints = String::new();
    for path in files(".md") {
        for span in code_spans(&read(&path)) {
            let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
            let a_path = plain && FOLDERS.iter().any(|folder| span.starts_with(folder));
            if a_path && !root().join(&span).exists() {
                let _ = writeln!(complaints, "{path}: there is no {span}");
            }
            let claim = span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if claim && span.matches('_').count() >= 3 && !functions.contains(&span) {
                let _ = writeln!(complaints, "{path}: there is no test {span}");
            }
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
    assert_eq!(code_spans("a `b` c\n```sh\n`d`\n```\n`e\nf` g"), ["b", "e\nf"]);
}

#[test]
fn the_index_of_the_documents_is_complete() {
    let index = links(&read("docs/README.md"));
    let missing: Vec<_> = entries("docs")
        .into_iter()
        .filter_map(|path| path.strip_prefix("docs/").map(str::to_owned))
        .filter(|name| name != "README.md" && !index.contains(name))
        .collect();
    assert!(missing.is_empty(), "docs/README.md does not lead to {missing:?}");
}

#[test]
fn both_readmes_show_the_same_code() {
    // The English one is compiled as a documentation test; the Chinese one is held to it here.
    let (english, chinese) = (read("README.md"), read("README.zh-CN.md"));
    assert!(!code_blocks(&english).is_empty());
    assert_eq!(
        code_blocks(&english),
        code_blocks(&chinese),
        "copy the code of README.md into README.zh-CN.md"
    );
}

/// A module names its own layer and those below; a backend is named by itself and by the seam only.
fn layers(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let Some(top) = module.first() else { return Vec::new() };
    let Some(rank) = rank(top) else {
        return vec![format!("{}: which layer is `{top}`? Add it to LAYERS", source.path)];
    };
    let mut complaints = Vec::new();
    for (line, path, absolute) in source.resolved_paths(&module) {
        let Some(named) = path.first() else { continue };
        // What is no layer is an item of the crate's root, which the interface alone may name.
        let above = absolute && self::rank(named).unwrap_or(INTERFACE) > rank;
        if above && !listed(TESTS_FROM_ABOVE, &source.path) {
            complaints.push(
                source
                    .at(line, &format!("`{top}` lies below `{named}`; have it handed in from above instead")),
            );
        }
        let Some(backend) = backend(&path) else { continue };
        if self::backend(&module) != Some(backend) && !listed(NAMES_BACKENDS, &source.path) {
            let advice = format!("go through `PlatformDriver`; only the seam names the backend `{backend}`");
            complaints.push(source.at(line, &advice));
        }
    }
    complaints
}

/// `unsafe` stands in the files of [`UNSAFE`] and re-opens the lint there, for the whole file.
fn unsafe_listed(source: &Source) -> Vec<String> {
    let listed = listed(UNSAFE, &source.path);
    let reopened = source
        .tokens
        .windows(3)
        .any(|three| three.iter().map(|token| &token.text).eq(["expect", "(", "unsafe_code"]));
    let mut complaints = Vec::new();
    if listed && !reopened {
        complaints.push(
            source.at(1, "it is in UNSAFE, but has no `#![expect(unsafe_code, reason = ..)]` of its own"),
        );
    }
    let forbids = |at: usize| at >= 2 && source.tokens[at - 2].text == "forbid";
    let held = source.tokens.iter().enumerate().find_map(|(at, token)| match token.text.as_str() {
        "unsafe" => Some(token),
        "unsafe_code" if !forbids(at) => Some(token),
        _ => None,
    });
    if let Some(token) = held.filter(|_| !listed) {
        complaints
            .push(source.at(token.line, "do this safely, or argue for a line in UNSAFE of tests/tidy.rs"));
    }
    complaints
}

/// `cfg(target_os = ..)` and its like stand in the folders of [`PLATFORMS`].
fn platforms(source: &Source) -> Vec<String> {
    if listed(PLATFORMS, &source.path) {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    let mut condition = 0_usize;
    for (index, token) in source.tokens.iter().enumerate() {
        match token.text.as_str() {
            "cfg" | "cfg_attr" => condition = index,
            "target_os" | "target_family" | "target_env" | "unix" | "windows"
                if source.inside_call(condition, index) =>
            {
                complaints.push(
                    source
                        .at(token.line, "platforms differ in src/os and in the drivers' backends, not here"),
                );
            }
            _ => {}
        }
    }
    complaints
}

/// std's clocks are read in the files of [`CLOCKS`].
fn clocks(source: &Source) -> Vec<String> {
    if listed(CLOCKS, &source.path) {
        return Vec::new();
    }
    let paths = source.paths();
    let imported = |clock: &str| {
        paths.iter().any(|(_, path)| {
            path.first().is_some_and(|first| first == "std")
                && path.get(1).is_some_and(|second| second == "time")
                && path.get(2).is_none_or(|third| third == clock || third == "*" || third == "self")
        })
    };
    let mut complaints = Vec::new();
    for token in source.tokens.iter().filter(|token| token.text == "clock_gettime") {
        complaints.push(
            source.at(token.line, "the system's clock is read in src/os; ask the Context for the time"),
        );
    }
    for (line, path) in &paths {
        let [.., clock, call] = path.as_slice() else { continue };
        let ours = path.first().is_some_and(|first| first == "crate" || first == "veloq");
        if call == "now" && (clock == "Instant" || clock == "SystemTime") && !ours && imported(clock) {
            complaints.push(
                source.at(*line, "ask the Context for the time, so that this runs on virtual time too"),
            );
        }
    }
    complaints
}

/// The library's atomics come from `crate::sync`, so that loom runs the code that ships.
fn atomics(source: &Source) -> Vec<String> {
    if source.module().is_none() || source.path.ends_with("/tests.rs") || listed(ATOMICS, &source.path) {
        return Vec::new();
    }
    let from_std = |path: &[String]| match path {
        [root, sync, atomic, ..] => {
            matches!(root.as_str(), "std" | "core") && sync == "sync" && atomic == "atomic"
        }
        _ => false,
    };
    let paths = source.paths();
    // Tests stand last, and their counters need no model.
    let tests = source.tokens.windows(2).find(|pair| pair[0].text == "mod" && pair[1].text == "tests");
    let end = tests.map_or(usize::MAX, |pair| pair[0].line);
    let taken = paths.iter().filter(|(line, path)| *line < end && from_std(path));
    taken
        .map(|(line, _)| source.at(*line, "take atomics from `crate::sync`, so that loom can explore this"))
        .collect()
}

/// The names of mutants that the library's code asks for and that no test names.
fn mutants_forgotten(sources: &[Source]) -> Vec<String> {
    const ASKS: &str = "mutant(\"";
    let library = || sources.iter().filter(|source| source.module().is_some());
    let asked: BTreeSet<&str> = library()
        .flat_map(|source| source.text.split(ASKS).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    let named = |mutant: &&str| {
        let quoted = format!("\"{mutant}\"");
        let asks = format!("{ASKS}{mutant}\"");
        library().any(|source| source.text.matches(&quoted).count() > source.text.matches(&asks).count())
    };
    asked.into_iter().filter(|mutant| !named(mutant)).map(str::to_owned).collect()
}

/// A file opens with prose, and its lines are clean.
fn page(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    if !source.text.starts_with("//! ") {
        complaints.push(source.at(1, "open with `//!`: what the file is for and how it works"));
    }
    if !source.text.ends_with('\n') {
        complaints.push(source.at(source.text.lines().count(), "end the file with a line break"));
    }
    for (index, line) in source.text.lines().enumerate() {
        let mut complain = |advice: &str| complaints.push(source.at(index + 1, advice));
        if line.chars().count() > COLUMNS_MAX && !listed(WIDE, &source.path) {
            complain("break the line: it is longer than 140 columns");
        }
        if line.contains('\t') {
            complain("indent by spaces; in a string, write \\t");
        }
        if line.ends_with(char::is_whitespace) {
            complain("take away the blanks at the end of the line");
        }
    }
    complaints
}

/// Nothing is postponed in the code; what is to come stands in the issues.
fn finished(source: &Source) -> Vec<String> {
    let later = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["X", "XX"].concat()];
    let mut complaints = Vec::new();
    for (index, line) in source.comments.lines().enumerate() {
        if line.split(|c: char| !c.is_alphanumeric()).any(|word| later.iter().any(|later| word == later)) {
            complaints.push(source.at(index + 1, "do it now, or open an issue"));
        }
    }
    for tokens in source.tokens.windows(3) {
        let [first, second, third] = tokens else { continue };
        match [first.text.as_str(), second.text.as_str(), third.text.as_str()] {
            ["todo" | "unimplemented", "!", _] => complaints.push(source.at(first.line, "write it")),
            ["#", "[", "ignore"] => complaints
                .push(source.at(first.line, "a test runs, or it is no test; a long one is a script")),
            _ => {}
        }
    }
    complaints
}

/// Types, traits and modules have names that say what they are.
fn names(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for tokens in source.tokens.windows(2) {
        let [keyword, name] = tokens else { continue };
        let empty = match keyword.text.as_str() {
            "struct" | "enum" | "trait" | "type" | "union" => {
                EMPTY_PREFIXES
                    .iter()
                    .any(|prefix| name.text.starts_with(prefix) && starts_a_word(&name.text[prefix.len()..]))
                    || EMPTY_SUFFIXES.iter().any(|suffix| name.text.ends_with(suffix))
            }
            "mod" => EMPTY_MODULES.contains(&name.text.as_str()),
            _ => false,
        };
        if empty {
            complaints.push(source.at(
                name.line,
                &format!("`{}` says nothing: use the field's noun (one per idea)", name.text),
            ));
        }
    }
    if source.path.split('/').any(|part| EMPTY_MODULES.contains(&part.trim_end_matches(".rs"))) {
        complaints.push(source.at(1, "name the file after what it holds"));
    }
    complaints
}

/// Whether `rest` begins a new word of a CamelCase name, or nothing is left.
fn starts_a_word(rest: &str) -> bool {
    rest.chars().next().is_none_or(char::is_uppercase)
}

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().find(|(modules, _)| modules.contains(&module)).map(|(_, rank)| *rank)
}

/// The backend that a path from the crate's root leads into.
fn backend(path: &[String]) -> Option<&'static str> {
    let [io, driver, name, ..] = path else { return None };
    let backend = BACKENDS.iter().find(|backend| *backend == name)?;
    (io == "io" && driver == "driver").then_some(*backend)
}

/// Whether a table lets this file pass: by its path, or by its folder's.
fn listed(table: &[(&str, &str)], path: &str) -> bool {
    table.iter().any(|(entry, _)| if entry.ends_with('/') { path.starts_with(entry) } else { path == *entry })
}

#[track_caller]
fn obeyed(rule: Rule) {
    let complaints: Vec<String> = sources().iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[track_caller]
fn caught(rule: Rule, path: &str, text: &str) {
    assert!(!rule(&Source::new(path, text)).is_empty(), "this should not pass as {path}:\n{text}");
}

#[track_caller]
fn passes(rule: Rule, path: &str, text: &str) {
    assert_eq!(rule(&Source::new(path, text)), Vec::<String>::new(), "this should pass as {path}:\n{text}");
}

/// A source file, cut up.
struct Source {
    /// From the root of the tree, with `/`.
    path: String,
    text: String,
    /// The text with everything but comments blanked out: line for line as long as the text.
    comments: String,
    /// The code's words, its `::`, and every other sign by itself.
    tokens: Vec<Token>,
}

struct Token {
    text: String,
    line: usize,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let (code, comments) = cut(text);
        let tokens = tokens(&code);
        Self { path: path.to_owned(), text: text.to_owned(), comments, tokens }
    }

    fn at(&self, line: usize, advice: &str) -> String {
        format!("{}:{line}: {advice}", self.path)
    }

    /// The module's path in the library, without `crate`; nothing for a file that is not of the library.
    fn module(&self) -> Option<Vec<String>> {
        let path = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
            module.pop();
        }
        Some(module)
    }

    /// Whether the token at `index` stands in the parentheses that follow the token at `call`.
    fn inside_call(&self, call: usize, index: usize) -> bool {
        let mut depth = 0_usize;
        let mut opened = false;
        for token in self.tokens.get(call + 1..index).unwrap_or_default() {
            match token.text.as_str() {
                "(" => (depth, opened) = (depth + 1, true),
                ")" => depth = depth.saturating_sub(1),
                "!" if !opened => {}
                _ if !opened => return false,
                _ => {}
            }
            if opened && depth == 0 {
                return false;
            }
        }
        opened
    }

    /// Every path that is written out, with its line; a `use` tree gives one path for each leaf.
    fn paths(&self) -> Vec<(usize, Vec<String>)> {
        let mut paths = Vec::new();
        let mut index = 0;
        while index < self.tokens.len() {
            index =
                if is_word(&self.tokens[index].text) { self.tree(index, &[], &mut paths) } else { index + 1 };
        }
        paths
    }

    /// Reads the path that begins at `index` (or the branches of a `use` tree) and returns where it ends.
    fn tree(&self, mut index: usize, prefix: &[String], paths: &mut Vec<(usize, Vec<String>)>) -> usize {
        let text = |index: usize| self.tokens.get(index).map_or("", |token| token.text.as_str());
        let line = self.tokens[index].line;
        let mut path = prefix.to_vec();
        while is_word(text(index)) || text(index) == "*" {
            path.push(text(index).to_owned());
            index += 1;
            if text(index) != "::" {
                break;
            }
            index += 1;
        }
        if text(index) != "{" || text(index - 1) != "::" {
            paths.push((line, path));
            return index;
        }
        index += 1;
        while index < self.tokens.len() && text(index) != "}" {
            index = if is_word(text(index)) || text(index) == "*" {
                self.tree(index, &path, paths)
            } else {
                index + 1
            };
            if text(index) == "as" {
                index += 2;
            }
        }
        index + 1
    }

    /// Every path that leads somewhere in the library, from the crate's root, with its line; and whether it was written as one
    /// from the root (`crate`, or enough `super`), so that its first segment is surely a module or an item of the root.
    fn resolved_paths(&self, module: &[String]) -> Vec<(usize, Vec<String>, bool)> {
        let mut resolved = Vec::new();
        let mut inline: Vec<(usize, String)> = Vec::new();
        let mut depth = 0_usize;
        let mut index = 0;
        while index < self.tokens.len() {
            let text = self.tokens[index].text.as_str();
            match text {
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    inline.retain(|(opened, _)| *opened <= depth);
                }
                "mod" if self.tokens.get(index + 2).is_some_and(|token| token.text == "{") => {
                    inline.push((depth + 1, self.tokens[index + 1].text.clone()));
                    index += 2;
                    continue;
                }
                _ => {}
            }
            if !is_word(text) {
                index += 1;
                continue;
            }
            let mut paths = Vec::new();
            index = self.tree(index, &[], &mut paths);
            for (line, path) in paths {
                let here: Vec<String> =
                    module.iter().cloned().chain(inline.iter().map(|(_, name)| name.clone())).collect();
                let supers = path.iter().take_while(|segment| *segment == "super").count();
                match path.first().map(String::as_str) {
                    Some("crate") => resolved.push((line, path[1..].to_vec(), true)),
                    Some("super") => {
                        let up = here.len().saturating_sub(supers);
                        let whole: Vec<String> = here[..up].iter().chain(&path[supers..]).cloned().collect();
                        resolved.push((line, whole, true));
                    }
                    Some("self") => {
                        resolved.push((line, here.iter().chain(&path[1..]).cloned().collect(), false))
                    }
                    _ => resolved.push((line, here.iter().chain(&path).cloned().collect(), false)),
                }
            }
        }
        resolved
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Cuts a text into its code and its comments. Both have the lines of the text; what is not theirs is blank.
fn cut(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut comments = String::with_capacity(text.len());
    let mut index = 0;
    while index < chars.len() {
        let rest = &chars[index..];
        let (length, part) = match rest {
            ['/', '/', ..] => (rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()), Part::Comment),
            ['/', '*', ..] => (block_comment(rest), Part::Comment),
            ['"', ..] => (string(rest), Part::Literal),
            ['\'', '\\', _, after @ ..] => {
                (4 + after.iter().position(|c| *c == '\'').unwrap_or(0), Part::Literal)
            }
            ['\'', _, '\'', ..] => (3, Part::Literal),
            ['r' | 'b' | 'c', ..]
                if !index.checked_sub(1).is_some_and(|before| is_word_sign(chars[before])) =>
            {
                raw_string(rest).map_or((1, Part::Code), |length| (length, Part::Literal))
            }
            _ => (1, Part::Code),
        };
        for c in &rest[..length.min(rest.len())] {
            let blank = if *c == '\n' { '\n' } else { ' ' };
            code.push(if part == Part::Code { *c } else { blank });
            comments.push(if part == Part::Comment { *c } else { blank });
        }
        index += length;
    }
    (code, comments)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

fn is_word_sign(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the block comment, with those inside it, that begins here.
fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut index = 0;
    while index < rest.len() {
        match &rest[index..] {
            ['/', '*', ..] => (depth, index) = (depth + 1, index + 2),
            ['*', '/', ..] => {
                (depth, index) = (depth - 1, index + 2);
                if depth == 0 {
                    return index;
                }
            }
            _ => index += 1,
        }
    }
    rest.len()
}

/// The length of the string literal that begins here.
fn string(rest: &[char]) -> usize {
    let mut index = 1;
    while index < rest.len() {
        match rest[index] {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    rest.len()
}

/// The length of the raw string literal that begins here, if one does.
fn raw_string(rest: &[char]) -> Option<usize> {
    let letters = if rest[0] == 'r' { 1 } else { 2 };
    if rest.get(letters - 1) != Some(&'r') {
        return None;
    }
    let hashes = rest[letters..].iter().take_while(|c| **c == '#').count();
    let start = letters + hashes + 1;
    if rest.get(start - 1) != Some(&'"') {
        return None;
    }
    let end = (start..rest.len()).find(|end| {
        rest[*end] == '"'
            && rest.len() - end > hashes
            && rest[end + 1..].iter().take(hashes).all(|c| *c == '#')
    });
    Some(end.map_or(rest.len(), |end| end + 1 + hashes))
}

/// The words and signs of a code.
fn tokens(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (index, text) in code.lines().enumerate() {
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let word = rest.find(|c: char| !is_word_sign(c)).unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => rest.chars().next().map_or(1, char::len_utf8),
                word => word,
            };
            tokens.push(Token { text: rest[..length].to_owned(), line: index + 1 });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

#[test]
fn code_comments_and_literals_are_told_apart() {
    // If the cut went wrong, every rule above would look at the wrong half and pass.
    let (code, comments) = cut(
        "a /* b /* c */ d */ 'e' \"f \\\" // g\" h::<'i>() // j \"\nr#\"k \" l\"# '\\'' '\\u{6d}' br\"n\" o",
    );
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "h::<'i>()", "o"]);
    assert_eq!(
        comments.split_whitespace().collect::<Vec<_>>(),
        ["/*", "b", "/*", "c", "*/", "d", "*/", "//", "j", "\""]
    );
    assert_eq!(code.lines().count(), 2);
}

#[test]
fn use_trees_give_one_path_for_each_leaf() {
    let source = Source::new("src/a.rs", "use a::{b::{c, d as e}, self, f::*};\nfn g() { h::i(); }");
    let paths: Vec<String> =
        source.paths().iter().map(|(line, path)| format!("{line} {}", path.join("::"))).collect();
    for path in ["1 a::b::c", "1 a::b::d", "1 a::self", "1 a::f::*", "2 h::i"] {
        assert!(paths.iter().any(|found| found == path), "{path} in {paths:?}");
    }
}

/// Every Rust file of the tree.
fn sources() -> Vec<Source> {
    let sources: Vec<Source> = files(".rs").iter().map(|path| Source::new(path, &read(path))).collect();
    assert!(sources.len() > 10, "the tree is not where this test looks for it");
    sources
}

/// Paths, from the root, of the files whose name ends so.
fn files(ending: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let name = path.rsplit('/').next().unwrap_or(&path);
            if root().join(&path).is_dir() {
                if !name.starts_with('.') && name != "target" && name != "data" {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                found.insert(path);
            }
        }
    }
    found.into_iter().collect()
}

/// Paths, from the root, of what lies in a folder, in order.
fn entries(folder: &str) -> Vec<String> {
    let listing =
        fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("cannot list {folder:?}: {error}"));
    let mut paths: Vec<String> = listing
        .map(|entry| {
            let name = entry.expect("the folder stays while it is listed").file_name();
            let name = name.to_str().expect("names in the tree are plain");
            if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
        })
        .collect();
    paths.sort();
    paths
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[cfg(unix)]
fn executable(path: &str) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    root().join(path).metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
}

/// Windows keeps no such bit; the tree is checked where it does.
#[cfg(not(unix))]
fn executable(_path: &str) -> bool {
    true
}

/// Where a document's links lead, inside the tree: no anchors, no addresses, nothing that stands in code.
fn links(document: &str) -> Vec<String> {
    let prose = document.split("```").step_by(2).flat_map(|part| part.split('`').step_by(2));
    prose
        .flat_map(|prose| prose.split("](").skip(1))
        .filter_map(|rest| rest.split(')').next()?.split('#').next())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
        .map(str::to_owned)
        .collect()
}

/// What a document sets as code within its prose.
fn code_spans(document: &str) -> Vec<String> {
    let parts = document.split("```").step_by(2);
    parts.flat_map(|part| part.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The fenced blocks of a document.
fn code_blocks(document: &str) -> Vec<&str> {
    document.split("```").skip(1).step_by(2).collect()
}
