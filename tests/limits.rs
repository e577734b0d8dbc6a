//! Promise: a limit of the machine makes the runtime smaller and is reported; only where nothing fits is it an error.
//!
//! Limits and filters are a process's, so each test runs itself again as a process of its own (`child`), which lowers the limit
//! and then starts a runtime. Root is not bound by RLIMIT_MEMLOCK, and what is locked is counted for each user: where the
//! tests run as root, the child becomes a user that nobody else is. `scripts/memlock` shows the same with the examples.
#![cfg(target_os = "linux")]
#![expect(unsafe_code, reason = "a seccomp filter is installed by a raw call")]

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, setrlimit};
use veloq::fs::File;
use veloq::io::buf::IoBuf;
use veloq::io::driver::{Capabilities, Unavailable};
use veloq::net::{TcpListener, TcpStream};
use veloq::runtime::{Builder, Runtime};
use veloq::{WorkerId, spawn_to};

/// Runs the test of this name again in a process of its own, with `argument`. Inside that process: the argument.
fn child(test: &str, arguments: &[u64]) -> Option<u64> {
    const CHILD: &str = "VELOQ_TEST_LIMITS";
    if let Ok(argument) = std::env::var(CHILD) {
        return Some(argument.parse().expect("the parent sends a number"));
    }
    for argument in arguments {
        let program = std::env::current_exe().expect("a test has a file");
        let mut command = Command::new(program);
        command.args(["--exact", test, "--nocapture"]).env(CHILD, argument.to_string());
        let output = command.output().expect("it starts");
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "with {argument}:\n{text}\n{errors}");
    }
    None
}

/// Makes this thread an ordinary user's, of which there is no other process, and who may lock so many bytes. Says whether that
/// could be done.
fn as_a_user_who_may_lock(bytes: u64) -> bool {
    setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), maximum: Some(bytes) }).expect("it is lower");
    if !geteuid().is_root() {
        return true;
    }
    let id = 1_500_000_000 + std::process::id();
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    // Of this thread alone, which the workers' threads inherit from.
    rustix::thread::set_thread_res_gid(group, group, group).is_ok()
        && rustix::thread::set_thread_res_uid(user, user, user).is_ok()
}

fn build(workers: usize) -> io::Result<Runtime> {
    Builder::new().workers(workers).pin(false).build()
}

/// The typed source of an error.
fn source<E: Error + 'static>(error: &io::Error) -> &E {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<E>());
    source.unwrap_or_else(|| panic!("{error:?} has another source"))
}

/// Why a feature is not in use, or not wholly.
fn why<'a>(report: &'a Capabilities, name: &str) -> Option<&'a str> {
    let feature = report.features.iter().find(|feature| feature.name == name);
    let refused = feature.unwrap_or_else(|| panic!("{name} is not reported: {report}")).refused.as_ref();
    refused.map(|refusal| &refusal.why[..])
}

/// A worker that takes the whole limit leaves none for the last one's ring, and the runtime does not start; an arena that is
/// registered first does the same. And what is smaller than asked for must be known to whoever looks for why it is slow.
#[test]
fn under_a_small_limit_on_locked_memory_everything_runs_with_less_and_says_so() {
    let name = "under_a_small_limit_on_locked_memory_everything_runs_with_less_and_says_so";
    let Some(limit) = child(name, &[64 << 10, 1 << 20, 8 << 20]) else { return };
    if !as_a_user_who_may_lock(limit) {
        return eprintln!("not shown: this root cannot become another user");
    }
    let runtime = build(2).expect("a ring for each worker fits");
    assert_eq!(runtime.capabilities().len(), 2);
    for report in runtime.capabilities() {
        eprintln!("{limit} bytes:\n{report}");
        if limit < 1 << 20 {
            let why = why(report, "ring_entries").expect("256 entries do not fit twice");
            assert!(report.has("ring_entries") && why.contains("RLIMIT_MEMLOCK of 64 KiB"), "{why}");
        } else {
            assert_eq!(why(report, "ring_entries"), None);
        }
        if limit < 8 << 20 {
            let whole = why(report, "registered_buffers").expect("two pools do not fit beside the rings");
            assert!(whole.contains("share of RLIMIT_MEMLOCK"), "{whole}");
            assert_eq!((why(report, "receive_ring"), why(report, "pool_bytes")), (None, None));
        } else {
            // What many systems give an ordinary user.
            assert_eq!(why(report, "registered_buffers"), None);
            let chunks = why(report, "pool_bytes").expect("two of 4 MiB do not fit beside the rings");
            assert!(chunks.contains("room for chunks of 2048 KiB, not of 4096"), "{chunks}");
            assert!(report.has("receive_ring"), "with half of the chunk");
        }
        for feature in report.refused() {
            let line = feature.to_string();
            assert!(line.contains("raise RLIMIT_MEMLOCK") || !line.contains("RLIMIT_MEMLOCK"), "{line}");
        }
    }
    runtime.block_on(async {
        let work_here = async move || {
            work().await;
            assert_eq!(veloq::alloc(4096).registration().is_some(), limit == 8 << 20);
        };
        work_here().await;
        spawn_to(WorkerId::new(1), work_here).await.expect("it works there as well");
    });
    if limit == 8 << 20 {
        return;
    }
    // A program that insists gets an error. The next one finds what these have given back, although the kernel takes its time.
    let error = Builder::new().workers(2).require("registered_buffers").build().expect_err("it does not fit");
    assert_eq!(source::<Unavailable>(&error).need, "registered_buffers");
    build(2).expect("it is as before").block_on(work());
}

/// A control group within this process's, which this process is in, and which is gone with the value.
struct Group {
    own: PathBuf,
    within: PathBuf,
}

impl Group {
    /// With a limit on memory, if the hierarchy that counts it is there and lets itself be written to.
    fn with_memory(bytes: u64) -> Option<Group> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let hierarchies = [
            (":memory:", "/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("0::", "/sys/fs/cgroup", "memory.max"),
        ];
        hierarchies.into_iter().find_map(|(name, mount, limit)| {
            let path = groups.lines().find_map(|line| Some(line.split_once(name)?.1))?;
            let own = Path::new(mount).join(path.trim_start_matches('/'));
            let within = own.join(format!("veloq-{}", std::process::id()));
            std::fs::create_dir(&within).ok()?;
            let group = Group { own, within };
            std::fs::write(group.within.join(limit), bytes.to_string()).ok()?;
            std::fs::write(group.within.join("cgroup.procs"), "0").ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let left = std::fs::write(self.own.join("cgroup.procs"), "0");
        let removed = std::fs::remove_dir(&self.within);
        assert!(removed.is_ok(), "{} stays: {left:?}, {removed:?}", self.within.display());
    }
}

/// Pools that take all of their group's memory have the process killed by the kernel; smaller ones that are not reported are a riddle
/// to whoever looks for why buffers come from the heap.
#[test]
fn under_a_small_limit_of_a_control_group_pools_are_smaller_and_say_so() {
    let name = "under_a_small_limit_of_a_control_group_pools_are_smaller_and_say_so";
    let Some(mib) = child(name, &[64, 24]) else { return };
    let Some(_group) = Group::with_memory(mib << 20) else {
        return eprintln!("not shown: no control group can be made here");
    };
    // A quarter for two workers: fewer chunks of 4 MiB, or less than one.
    let share_kib = (mib << 10) / 4 / 2;
    let found_kib = if share_kib >= 4096 { share_kib / 4096 * 4096 } else { 2048 };
    let runtime = build(2).expect("there is memory for smaller pools");
    for report in runtime.capabilities() {
        eprintln!("{mib} MiB:\n{report}");
        let line =
            report.features.iter().find(|feature| feature.name == "pool_bytes").map(ToString::to_string);
        let expected = format!(
            "pool_bytes: in part: a quarter of the control group's memory has room for {found_kib} KiB for each worker, \
             not for 32768; raise the group's memory limit"
        );
        assert!(line.as_ref().is_some_and(|line| line.starts_with(&expected)), "{line:?} is not {expected}");
    }
    runtime.block_on(async {
        work().await;
        spawn_to(WorkerId::new(1), work).await.expect("it works there as well");
    });
    let error =
        Builder::new().workers(2).require("pool_bytes").build().expect_err("it is smaller than asked for");
    let unavailable: &Unavailable = source(&error);
    assert_eq!(unavailable.need, "pool_bytes");
    assert!(unavailable.found.contains("a quarter of the control group's memory"), "{unavailable}");
    assert!(unavailable.remedy.contains("raise the group's memory limit"), "{unavailable}");
}

/// Where not even the smallest ring fits, the program's user must learn which limit it was.
#[test]
fn where_no_ring_fits_the_error_names_need_found_and_remedy() {
    let Some(limit) = child("where_no_ring_fits_the_error_names_need_found_and_remedy", &[0, 8 << 10]) else {
        return;
    };
    if !as_a_user_who_may_lock(limit) {
        return eprintln!("not shown: this root cannot become another user");
    }
    let error = match build(1) {
        Err(error) => error,
        // Kernels up to 6.13 do not count rings, so there is nothing to be refused.
        Ok(runtime) => return runtime.block_on(work()),
    };
    let unavailable: &Unavailable = source(&error);
    assert!(unavailable.need.contains("io_uring"), "{unavailable}");
    let found = format!("RLIMIT_MEMLOCK of {} KiB has no room for a ring of 64 entries", limit / 1024);
    assert!(unavailable.found.contains(&found), "{unavailable}");
    assert!(unavailable.remedy.contains("ulimit -l"), "{unavailable}");
}

/// "Resource temporarily unavailable" would have its reader wait for what does not come by itself: many containers give few threads.
#[test]
fn where_no_thread_is_left_the_error_names_the_worker_and_the_limits() {
    if child("where_no_thread_is_left_the_error_names_the_worker_and_the_limits", &[0]).is_none() {
        return;
    }
    setrlimit(Resource::Nproc, Rlimit { current: Some(1), maximum: Some(1) }).expect("it is lower");
    if !as_a_user_who_may_lock(0) {
        return eprintln!("not shown: this root cannot become another user");
    }
    let error = build(3).expect_err("no thread may be started");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "as the system has it");
    let unavailable: &Unavailable = source(&error);
    assert!(unavailable.found.contains("worker 1 of 3"), "{unavailable}");
    assert!(unavailable.remedy.contains("RLIMIT_NPROC"), "{unavailable}");
}

/// Containers refuse io_uring by a filter, with the error that a missing right has too: the message must not send anybody to
/// look for the wrong one.
#[test]
fn a_seccomp_filter_is_named_as_what_refuses() {
    if child("a_seccomp_filter_is_named_as_what_refuses", &[0]).is_none() {
        return;
    }
    refuse_io_uring();
    let error = build(1).expect_err("the filter refuses it");
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let unavailable: &Unavailable = source(&error);
    eprintln!("{unavailable}");
    let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if switch.trim() == "0" {
        assert!(unavailable.found.contains("seccomp"), "{unavailable}");
        assert!(unavailable.remedy.contains("io_uring_setup"), "{unavailable}");
    }
}

/// Installs a filter on this thread, and those it starts, that answers `io_uring_setup` with `EPERM`.
fn refuse_io_uring() {
    let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let (equal, give) = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    let setup = u32::try_from(libc::SYS_io_uring_setup).expect("numbers of system calls are small");
    let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let step = |code: u32, skip_unless, k| libc::sock_filter {
        code: u16::try_from(code).expect("codes have 16 bits"),
        jt: 0,
        jf: skip_unless,
        k,
    };
    let mut steps = [
        step(load_number, 0, 0),
        step(equal, 1, setup),
        step(give, 0, refused),
        step(give, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program, whose four steps outlive the call, and changes nothing here.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(installed, "a filter can be installed: {}", io::Error::last_os_error());
}

/// A connection, both ways of receiving, a file, a buffer of the pool.
async fn work() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
    let (server, _) = listener.accept().await.expect("it was connected");
    for round in 0..10u8 {
        let mut sent = veloq::alloc(30_000);
        sent.resize(30_000, round);
        client.write_all(sent).await.0.expect("it is connected");
        let mut echoed = 0;
        while echoed < 30_000 {
            let data = server.recv().await.expect("it is connected");
            echoed += data.len();
            server.write_all(data).await.0.expect("it is connected");
        }
        let (read, answer) = client.read_exact(veloq::alloc(30_000)).await;
        read.expect("it is echoed");
        assert_eq!(answer[..], [round; 30_000]);
    }
    let path = tempfile::tempdir().expect("a temporary directory");
    let file = File::options().read(true).write(true).create(true).open(path.path().join("f")).await;
    let file = file.expect("it can be created");
    let mut buf = veloq::alloc(4096);
    buf.resize(4096, 9);
    assert_eq!(file.write_at(buf, 0).await.0.expect("there is room"), 4096);
    let (read, buf) = file.read_at(veloq::alloc(4096), 0).await;
    assert_eq!((read.expect("it can be read"), &buf[..]), (4096, &[9; 4096][..]));
}
