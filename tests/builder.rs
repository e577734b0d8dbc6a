//! Promise: what cannot be had is said, in a type that a program can look at; and whatever can be done without is done without.
//!
//! A setting out of its bounds, a machine without io_uring, a kernel without this or that feature, a call in the wrong place:
//! each has its error or its panic, with what to do about it.

use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use veloq::fs::File;
use veloq::io::driver::{DriverConfig, Unavailable};
use veloq::net::{TcpListener, TcpStream};
use veloq::runtime::{Builder, InvalidSetting, Placement, Runtime, WORKERS_MAX};
use veloq::{WorkerId, spawn_local, spawn_to};

fn builder() -> Builder {
    Builder::new().workers(1).pin(false)
}

/// The typed source of an error.
fn source<E: Error + 'static>(error: &io::Error) -> &E {
    error
        .get_ref()
        .and_then(|source| source.downcast_ref::<E>())
        .unwrap_or_else(|| panic!("{error:?} has another source"))
}

/// A setting that is silently made to fit is one that a program runs with unknowingly for years.
#[test]
fn a_setting_out_of_its_bounds_is_an_error_that_names_it() {
    let driver = |change: fn(&mut DriverConfig)| {
        let mut config = DriverConfig::default();
        change(&mut config);
        config
    };
    let wrong = [
        ("workers", 0, builder().workers(0)),
        ("workers", WORKERS_MAX + 1, builder().workers(WORKERS_MAX + 1)),
        ("workers", WORKERS_MAX + 1, Builder::new().placement(Placement::Cores(vec![0; WORKERS_MAX + 1]))),
        ("budget", 0, builder().budget(0)),
        ("background_percent", 0, builder().background_percent(0)),
        ("background_percent", 101, builder().background_percent(101)),
        ("ring_entries", 0, builder().ring_entries(0)),
        ("ring_entries", 1 << 16, builder().ring_entries(1 << 16)),
        ("operations_max", 1, builder().driver(driver(|config| config.operations_max = 1))),
        ("receive_buffers", 40_000, builder().driver(driver(|config| config.receive_buffers = 40_000))),
    ];
    for (name, found, builder) in wrong {
        let error = builder.build().expect_err(name);
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let setting: &InvalidSetting = source(&error);
        assert_eq!((setting.name, setting.found), (name, found));
        assert!(setting.found < setting.least || setting.found > setting.most);
        assert!(error.to_string().contains(name), "{error}");
    }
    for bytes in [0, 1 << 15, (1 << 16) + 1, usize::MAX] {
        let error = builder().pool_bytes(bytes).build().expect_err("no pool has such a size");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bytes}: {error}");
    }
}

/// The least of everything must work, if more slowly: a bound that is lower than what is needed is no bound.
#[test]
fn the_smallest_settings_serve() {
    let mut config = DriverConfig::default();
    config.operations_max = 16;
    config.receive_buffers = 0;
    config.direct_descriptors = 0;
    let smallest = builder().driver(config).ring_entries(1).budget(1).pool_bytes(1 << 16).build();
    smallest.expect("this kernel has io_uring").block_on(echo());
}

/// A program that is refused io_uring must say what it needs, what it found, and what to do. The test runs itself again as a
/// process without free descriptors, since a limit cannot be taken from one thread alone.
#[cfg(target_os = "linux")]
#[test]
fn a_machine_without_io_uring_is_told_need_found_and_remedy() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use std::process::Command;

    const CHILD: &str = "VELOQ_TEST_WITHOUT_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let test = std::env::current_exe().expect("a test has a file");
        let name = "a_machine_without_io_uring_is_told_need_found_and_remedy";
        let child = Command::new(test).args(["--exact", name]).env(CHILD, "1").output().expect("it starts");
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limits }).expect("a limit can be lowered");
    let error = builder().build().expect_err("there is no descriptor for a ring");
    setrlimit(Resource::Nofile, limits).expect("and raised again up to its maximum");
    let unavailable: &Unavailable = source(&error);
    assert!(unavailable.need.contains("io_uring"), "{unavailable}");
    assert!(unavailable.found.contains("descriptor"), "{unavailable}");
    assert!(unavailable.remedy.contains("RLIMIT_NOFILE"), "{unavailable}");
    for part in [unavailable.need, &unavailable.found, unavailable.remedy] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // Once it can be had, it is had: nothing is left of the attempt.
    builder().build().expect("this kernel has io_uring").block_on(echo());
}

/// What there is always some of: without them the least is taken.
const SIZES: [&str; 2] = ["ring_entries", "pool_bytes"];

/// If one refusal took others with it, or a path without some feature were broken, the echo would fail where nobody looks: on
/// machines that are not ours.
#[test]
fn every_feature_can_be_done_without() {
    let all: Vec<&'static str> = {
        let runtime = builder().build().expect("this kernel has io_uring");
        runtime.capabilities()[0].features.iter().map(|feature| feature.name).collect()
    };
    let least = if cfg!(windows) { 5 } else { 8 };
    assert!(all.len() >= least, "void: only {all:?}");
    let each = all.iter().map(|name| vec![*name]);
    for without in each.chain([all.clone()]) {
        let mut config = DriverConfig::default();
        config.without = without.clone();
        let runtime = builder().workers(2).driver(config).build().expect("no feature is needed");
        assert_eq!(runtime.capabilities().len(), 2, "each worker has its report");
        for report in runtime.capabilities() {
            for name in &without {
                let feature = report.features.iter().find(|feature| feature.name == *name);
                assert!(
                    feature.is_some_and(|feature| feature.refused.is_some()),
                    "{name} is reported: {report}"
                );
                assert!(!report.has(name) || SIZES.contains(name), "{name} is in use: {report}");
            }
        }
        runtime.block_on(async {
            echo().await;
            spawn_to(WorkerId::new(1), async move || echo().await).await.expect("it works there as well");
        });
    }
}

/// The features that this machine has, besides those of which there is always some.
fn in_use() -> Vec<&'static str> {
    let runtime = builder().build().expect("this kernel has io_uring");
    let report = &runtime.capabilities()[0];
    let names = report.features.iter().map(|feature| feature.name);
    names.filter(|name| report.has(name) && !SIZES.contains(name)).collect()
}

/// A report that leaves out what is refused, or how to get it, is of no use to whoever has to act on it.
#[test]
fn what_is_refused_is_reported_with_a_remedy() {
    let name = *in_use().first().expect("something is in use everywhere");
    let mut config = DriverConfig::default();
    config.without = vec![name];
    let runtime = builder().driver(config).build().expect("no feature is needed");
    let report = &runtime.capabilities()[0];
    assert!(!report.has(name));
    let feature = report.features.iter().find(|feature| feature.name == name);
    let refusal = feature.and_then(|feature| feature.refused.as_ref()).expect("it is reported");
    assert!(refusal.remedy.contains("without"), "{refusal:?}");
    let text = report.to_string();
    assert!(text.contains(&format!("{name}: not in use")) && text.contains(refusal.remedy), "{text}");
}

/// A program that cannot do without something must be told at its start, not find out from its latencies.
#[test]
fn a_program_can_insist_on_a_feature() {
    for name in in_use() {
        let mut config = DriverConfig::default();
        config.without = vec![name];
        let error =
            builder().workers(2).driver(config).require(name).build().expect_err("it is switched off");
        let unavailable: &Unavailable = source(&error);
        assert_eq!((unavailable.need, &unavailable.found[..]), (name, "switched off"));
    }
    let error = builder().require("magic").build().expect_err("there is no such feature");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("magic"), "{error}");
    builder().require("pool_bytes").build().expect("there is memory enough").block_on(echo());
}

/// A runtime inside another's would wait for itself, and hang.
#[test]
fn block_on_inside_a_runtime_says_what_to_do_instead() {
    let message = builder().build().expect("this kernel has io_uring").block_on(async {
        let inner = builder().build().expect("it can be made");
        panic_of(|| inner.block_on(async {}))
    });
    assert_eq!(message, "a Veloq runtime is running on this thread already; await the future instead");
}

/// Whoever sees this for the first time must learn from it where such a call belongs.
#[test]
fn calls_outside_a_worker_say_where_they_belong() {
    const TEXT: &str =
        "no Veloq worker on this thread; call this inside `Runtime::block_on` or a spawned task";
    let calls: [(&str, fn()); 7] = [
        ("spawn_local", || drop(spawn_local(async {}))),
        ("spawn_to", || drop(spawn_to(WorkerId::new(0), async || ()))),
        ("alloc", || drop(veloq::alloc(1))),
        ("capabilities", || drop(veloq::runtime::capabilities())),
        ("current_worker", || _ = veloq::current_worker()),
        ("workers", || _ = veloq::workers().len()),
        ("Handle::current", || drop(veloq::runtime::Handle::current())),
    ];
    for (name, call) in calls {
        assert_eq!(panic_of(call), TEXT, "{name}");
    }
    let runtime = builder().build().expect("this kernel has io_uring");
    assert_eq!(panic_of(|| drop(spawn_local(async {}))), TEXT, "a runtime that does not run is no worker");
    runtime.block_on(echo());
}

/// A worker that does not exist is a mistake in the program, found where it is made.
#[test]
fn a_worker_that_does_not_exist_is_named() {
    let message = builder()
        .build()
        .expect("this kernel has io_uring")
        .block_on(async { panic_of(|| drop(spawn_to(WorkerId::new(5), async || ()))) });
    assert_eq!(message, "there is no worker 5: the runtime has 1");
}

/// Making runtimes and ending them without running leaves no thread behind that waits for its start, and no descriptor.
#[test]
fn a_runtime_that_never_runs_ends() {
    for _ in 0..10 {
        let runtime = builder().workers(3).build().expect("this kernel has io_uring");
        let handle = runtime.handle();
        drop(runtime);
        assert_eq!(handle.leaked_operations(), 0);
    }
    Runtime::new().expect("the defaults serve").block_on(echo());
}

/// What a panic says.
fn panic_of<R>(call: impl FnOnce() -> R) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(call)) else { panic!("it did not panic") };
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or_else(String::new, |text| (*text).to_owned()),
    }
}

/// A connection, both ways of receiving, a file, a buffer of the pool, a timer.
async fn echo() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
    let (server, _) = listener.accept().await.expect("it was connected");
    for round in 0..10u8 {
        let (sent, _) = client.write_all(vec![round; 3_000]).await;
        sent.expect("it is connected");
        let mut echoed = 0;
        while echoed < 3_000 {
            let data = server.recv().await.expect("it is connected");
            echoed += data.len();
            server.write_all(data).await.0.expect("it is connected");
        }
        let (read, answer) = client.read_exact(Vec::with_capacity(3_000)).await;
        read.expect("it is echoed");
        assert_eq!(answer, [round; 3_000]);
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = File::options().read(true).write(true).create(true).open(dir.path().join("f")).await;
    let file = file.expect("it can be created");
    let mut buf = veloq::alloc(4096);
    buf.resize(4096, 9);
    let (written, _) = file.write_at(buf, 0).await;
    assert_eq!(written.expect("there is room"), 4096);
    let (read, buf) = file.read_at(veloq::alloc(4096), 0).await;
    assert_eq!((read.expect("it can be read"), &buf[..]), (4096, &[9; 4096][..]));
    veloq::time::sleep(std::time::Duration::from_millis(1)).await;
}
