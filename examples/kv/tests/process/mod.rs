//! A `kv` process of the test's own: started, connected to, stopped or killed.
//!
//! It listens on a free port of 127.0.0.1, which it says on its standard error. It is killed when the test ends, however that
//! ends, so that a test that fails leaves nothing behind. What systems do in different ways (how a process is told to stop, what it
//! has used) is in `unix` and `windows`.
#![allow(dead_code, reason = "each test program needs some of this")]

#[cfg(unix)]
#[path = "unix.rs"]
mod system;
#[cfg(windows)]
#[path = "windows.rs"]
mod system;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kv::db::Keyspace;
use kv::log::{MANIFEST, Manifest};

pub(crate) use system::{SIGNALS, Signal};

/// How long anything may take before a test fails rather than hangs: a debug build on a busy machine has moved 64 MiB by then.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    addr: SocketAddr,
    /// Memory that it has for the program itself.
    program_kib: u64,
    /// Collects what it says after its first line.
    said: Option<JoinHandle<String>>,
}

/// A server that did not start.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: ExitStatus,
    pub(crate) said: String,
}

/// An empty directory on the disk that the build is on: `/tmp` may be memory, where a sync is nothing.
pub(crate) fn empty_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

impl Process {
    /// Starts a server on this directory.
    #[track_caller]
    pub(crate) fn start(dir: &Path, options: &[&str]) -> Process {
        Self::try_start(dir, options).unwrap_or_else(|refused| panic!("the server starts: {}", refused.said))
    }

    /// Starts a server, which may refuse.
    #[expect(clippy::zombie_processes, reason = "dropping a `Process` waits")]
    pub(crate) fn try_start(dir: &Path, options: &[&str]) -> Result<Process, Refused> {
        let mut child = system::kv()
            .args(["--bind", "127.0.0.1:0", "--dir"])
            .arg(dir)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        loop {
            let from = said.len();
            if stderr.read_line(&mut said).expect("text") == 0 {
                return Err(Refused { status: child.wait().expect("it was started"), said });
            }
            if let Some((_, addr)) = said[from..].split_once(" serve ") {
                let addr = addr.trim().parse().expect("an address");
                let said = std::thread::spawn(move || {
                    // What is no text, or no longer there, is nothing to a test.
                    let _end = stderr.read_to_string(&mut said);
                    said
                });
                let program_kib = system::program_kib(&child);
                return Ok(Process { child, addr, program_kib, said: Some(said) });
            }
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connects the real client.
    #[track_caller]
    pub(crate) fn client(&self) -> redis::Connection {
        self.connect("").expect("a connection")
    }

    /// Connects the real client, with something behind the address, as `?protocol=resp3`.
    pub(crate) fn connect(&self, more: &str) -> redis::RedisResult<redis::Connection> {
        let client = redis::Client::open(format!("redis://{}/{more}", self.addr))?;
        let connection = client.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    /// Connects with nothing but a socket.
    pub(crate) fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.addr).expect("a connection");
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        socket.set_write_timeout(Some(PATIENCE)).expect("an option");
        socket
    }

    /// Bounds the size of the files that it may write, and gives the bound before.
    #[cfg(unix)]
    pub(crate) fn limit_files(&self, bytes: Option<u64>) -> Option<u64> {
        system::limit_files(&self.child, bytes)
    }

    /// The most memory that it has had, besides the program itself.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        system::peak_memory_kib(&self.child) - self.program_kib
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        system::signal(&self.child, signal);
    }

    /// Asks it to stop, and gives how it ended and what it said.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        self.signal(SIGNALS[0]);
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                break status;
            }
            assert!(Instant::now() < end, "the server stops when it is told to");
            std::thread::sleep(Duration::from_millis(2));
        };
        let said = self.said.take().expect("it is taken once");
        (status, said.join().expect("it only reads"))
    }

    /// Kills it, without a chance to do anything about it.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is our child, and not waited for");
        self.child.wait().expect("our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// How the server in that directory hands out keys.
pub(crate) fn keyspace(dir: &Path) -> Keyspace {
    let manifest = std::fs::read_to_string(dir.join(MANIFEST)).expect("a manifest");
    let manifest: Manifest = manifest.parse().expect("a manifest");
    Keyspace::new(manifest.shards, manifest.seed)
}

/// Some keys of that worker, beginning with `prefix`.
pub(crate) fn keys_of(keyspace: &Keyspace, worker: u32, prefix: &str) -> impl Iterator<Item = String> {
    let (keyspace, prefix) = (keyspace.clone(), prefix.to_owned());
    (0..)
        .map(move |i| format!("{prefix}{i}"))
        .filter(move |key| keyspace.shard_of(keyspace.hash(key.as_bytes())) == worker)
}
