//! Veloq side by side with tokio, monoio, compio and glommio, and with loops written by hand.
//!
//! Each measurement is a process of its own, started by this one: runtimes do not see each other's threads, and each starts
//! with a fresh heap. The rounds are interleaved (every peer of a row once, then again), so that a machine that is slower for
//! a while is so for all. A figure is the median of its rounds; a ratio is the median of the rounds' own ratios, since the two
//! of one round were neighbours in time.
//!
//! ```text
//! side-by-side [--rounds N] [--rows TEXT] [--peers TEXT,..] [--write FILE]    prints the tables
//! side-by-side sample ROW PEER                                                measures once, in this process
//! ```

mod measure;
mod peers;
mod rows;
mod table;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use measure::Sample;
use peers::bare::{self, Bare};
use peers::compio::Compio;
use peers::glommio::Glommio;
use peers::monoio::Monoio;
use peers::tokio::{Tokio, TokioShared};
use peers::veloq::Veloq;
use table::Tables;

/// One line of the table.
pub struct Row {
    /// How it is called on the command line.
    pub name: &'static str,
    /// What it says in the table.
    pub title: &'static str,
    /// In the order of [`PEERS`].
    pub cells: [Cell; PEERS.len()],
}

/// What a peer does in a row.
#[derive(Clone, Copy)]
pub enum Cell {
    /// It runs this.
    Run(fn() -> Sample),
    /// It has no such thing; the reason is in [`LACKS`].
    Lacks(usize),
}

/// The columns.
pub const PEERS: [&str; 7] = ["by hand", "Veloq", "tokio", "tokio, 2 threads", "monoio", "compio", "glommio"];

/// Why a cell is empty.
pub const LACKS: [&str; 3] = [
    "a row about one thread",
    "its scheduler runs the two tasks on one thread, so nothing crosses a core",
    "it does not offer it",
];

use Cell::{Lacks, Run};

/// Every row, in the order of the table.
fn rows() -> Vec<Row> {
    let row = |name, title, cells| Row { name, title, cells };
    vec![
        row(
            "spawn-join",
            "spawn a task, await it",
            [
                Run(rows::spawn_join::<Bare>),
                Run(rows::spawn_join::<Veloq>),
                Run(rows::spawn_join::<Tokio>),
                Run(rows::spawn_join::<TokioShared>),
                Run(rows::spawn_join::<Monoio>),
                Run(rows::spawn_join::<Compio>),
                Run(rows::spawn_join::<Glommio>),
            ],
        ),
        row(
            "spawn-join-1000",
            "spawn 1,000 tasks, await them",
            [
                Run(rows::spawn_join_many::<Bare>),
                Run(rows::spawn_join_many::<Veloq>),
                Run(rows::spawn_join_many::<Tokio>),
                Run(rows::spawn_join_many::<TokioShared>),
                Run(rows::spawn_join_many::<Monoio>),
                Run(rows::spawn_join_many::<Compio>),
                Run(rows::spawn_join_many::<Glommio>),
            ],
        ),
        row(
            "yield-1",
            "yield, 1 task",
            [
                Run(rows::yield_one::<Bare>),
                Run(rows::yield_one::<Veloq>),
                Run(rows::yield_one::<Tokio>),
                Run(rows::yield_one::<TokioShared>),
                Run(rows::yield_one::<Monoio>),
                Run(rows::yield_one::<Compio>),
                Run(rows::yield_one::<Glommio>),
            ],
        ),
        row(
            "yield-1000",
            "yield, 1,000 tasks",
            [
                Run(rows::yield_many::<Bare>),
                Run(rows::yield_many::<Veloq>),
                Run(rows::yield_many::<Tokio>),
                Run(rows::yield_many::<TokioShared>),
                Run(rows::yield_many::<Monoio>),
                Run(rows::yield_many::<Compio>),
                Run(rows::yield_many::<Glommio>),
            ],
        ),
        row(
            "wake-here",
            "wake a task of the same thread",
            [
                Run(rows::wake_here::<Bare>),
                Run(rows::wake_here::<Veloq>),
                Run(rows::wake_here::<Tokio>),
                Lacks(0),
                Run(rows::wake_here::<Monoio>),
                Run(rows::wake_here::<Compio>),
                Run(rows::wake_here::<Glommio>),
            ],
        ),
        row(
            "sleeps",
            "100,000 sleeps at a time",
            [
                Run(bare::sleeps),
                Run(rows::sleeps::<Veloq>),
                Run(rows::sleeps::<Tokio>),
                Run(rows::sleeps::<TokioShared>),
                Run(rows::sleeps::<Monoio>),
                Run(rows::sleeps::<Compio>),
                Run(rows::sleeps::<Glommio>),
            ],
        ),
        row(
            "timeouts",
            "a timeout, armed and cancelled",
            [
                Run(bare::timeouts),
                Run(rows::timeouts::<Veloq>),
                Run(rows::timeouts::<Tokio>),
                Run(rows::timeouts::<TokioShared>),
                Run(rows::timeouts::<Monoio>),
                Run(rows::timeouts::<Compio>),
                Run(rows::timeouts::<Glommio>),
            ],
        ),
        row(
            "wake-there",
            "wake 1,000 tasks of another thread",
            [
                Run(bare::wake_there),
                Run(rows::wake_there::<Veloq>),
                Run(rows::wake_there::<Tokio>),
                Lacks(1),
                Run(rows::wake_there::<Monoio>),
                Run(rows::wake_there::<Compio>),
                Run(rows::wake_there::<Glommio>),
            ],
        ),
        row(
            "ping-pong",
            "to another thread and back, both sleep",
            [
                Run(bare::ping_pong_sleeping),
                Run(rows::ping_pong::<Veloq<0>>),
                Run(rows::ping_pong::<Tokio>),
                Lacks(1),
                Run(rows::ping_pong::<Monoio>),
                Run(rows::ping_pong::<Compio>),
                Run(rows::ping_pong::<Glommio>),
            ],
        ),
        row(
            "ping-pong-awake",
            "to another thread and back, both spin",
            [
                Run(bare::ping_pong_spinning),
                Run(rows::ping_pong_awake::<Veloq>),
                Lacks(2),
                Lacks(2),
                Lacks(2),
                Lacks(2),
                Run(peers::glommio::ping_pong_awake),
            ],
        ),
        row(
            "stream",
            "one way to another thread, a message",
            [
                Run(|| bare::stream(100_000, 2_000_000)),
                Run(rows::stream::<Veloq>),
                Run(rows::stream::<Tokio>),
                Lacks(1),
                Run(rows::stream::<Monoio>),
                Run(rows::stream::<Compio>),
                Run(rows::stream::<Glommio>),
            ],
        ),
        row(
            "steal",
            "1,000 tasks of unequal length, 2 threads",
            [
                Run(bare::steal),
                Run(rows::steal::<Veloq>),
                Lacks(2),
                Run(rows::steal::<TokioShared>),
                Lacks(2),
                Lacks(2),
                Lacks(2),
            ],
        ),
        row(
            "echo",
            "TCP, 64 bytes there and back, 50 connections",
            [
                Run(bare::echo),
                Run(rows::echo::<Veloq>),
                Run(rows::echo::<Tokio>),
                Lacks(0),
                Run(rows::echo::<Monoio>),
                Run(rows::echo::<Compio>),
                Run(rows::echo::<Glommio>),
            ],
        ),
        row(
            "reads",
            "read 4 KiB of a cached file, 32 at a time",
            [
                Run(bare::reads),
                Run(rows::reads::<Veloq>),
                Run(rows::reads::<Tokio>),
                Lacks(0),
                Run(rows::reads::<Monoio>),
                Run(rows::reads::<Compio>),
                Run(rows::reads::<Glommio>),
            ],
        ),
    ]
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["sample", row, peer] => sample(row, peer),
        _ => match Options::parse(&arguments) {
            Some(options) => run(&options),
            None => {
                eprintln!(
                    "usage: side-by-side [--rounds N] [--rows TEXT] [--peers TEXT,..] [--write FILE].."
                );
                ExitCode::from(2)
            }
        },
    }
}

/// What was asked for.
struct Options {
    rounds: usize,
    rows: String,
    peers: Vec<String>,
    write: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Option<Options> {
        let mut options = Options { rounds: 5, rows: String::new(), peers: Vec::new(), write: Vec::new() };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { return None };
            match name.as_str() {
                "--rounds" => options.rounds = value.parse().ok().filter(|&rounds| rounds > 0)?,
                "--rows" => options.rows = value.clone(),
                "--peers" => options.peers = value.split(',').map(str::to_owned).collect(),
                "--write" => options.write.push(value.clone()),
                _ => return None,
            }
        }
        Some(options)
    }

    fn wants(&self, row: &Row, peer: &str) -> bool {
        let row_wanted = row.name.starts_with(&self.rows);
        row_wanted
            && (self.peers.is_empty() || self.peers.iter().any(|wanted| wanted.eq_ignore_ascii_case(peer)))
    }
}

/// Measures once, here.
fn sample(row: &str, peer: &str) -> ExitCode {
    let rows = rows();
    let (row, peer) =
        (rows.iter().find(|known| known.name == row), PEERS.iter().position(|&known| known == peer));
    let (Some(row), Some(peer)) = (row, peer) else {
        eprintln!("no such row or peer");
        return ExitCode::from(2);
    };
    let Run(measure) = row.cells[peer] else {
        eprintln!("{} has no such row", PEERS[peer]);
        return ExitCode::from(2);
    };
    // Runtimes with threads of their own pin them; the others run on this one, which stays on the first CPU.
    if !["Veloq", "tokio, 2 threads"].contains(&PEERS[peer]) {
        measure::pin(0);
    }
    measure().print();
    ExitCode::SUCCESS
}

/// Measures everything, and prints it.
fn run(options: &Options) -> ExitCode {
    let rows = rows();
    let began = Instant::now();
    // Of each row, each peer and each round.
    let mut samples = vec![vec![Vec::new(); PEERS.len()]; rows.len()];
    for round in 0..options.rounds {
        for (row, samples) in rows.iter().zip(&mut samples) {
            for turn in 0..PEERS.len() {
                // Nobody always comes after the same one.
                let peer = (turn + round) % PEERS.len();
                if !options.wants(row, PEERS[peer]) || matches!(row.cells[peer], Lacks(_)) {
                    continue;
                }
                eprint!("\r\x1b[Kround {} of {}: {}, {}", round + 1, options.rounds, row.name, PEERS[peer]);
                match measure(row.name, PEERS[peer]) {
                    Ok(sample) => samples[peer].push(sample),
                    Err(error) => eprintln!("\r\x1b[K{}, {}: {error}", row.name, PEERS[peer]),
                }
            }
        }
    }
    eprintln!("\r\x1b[K{} rounds in {} s", options.rounds, began.elapsed().as_secs());
    let tables = Tables::of(&rows, &samples, options.rounds);
    println!("{}", tables.everything());
    for path in &options.write {
        if let Err(error) = tables.write(path) {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Measures once, in a process of its own.
fn measure(row: &str, peer: &str) -> Result<Sample, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program)
        .args(["sample", row, peer])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    // A line and a panic's message fit into the pipes, so the child never waits for us.
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > deadline {
            child.kill().map_err(|error| error.to_string())?;
            return Err(format!("not finished after {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let line = String::from_utf8_lossy(&output.stdout);
    Sample::parse(&line).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// How long one measurement may take; the longest takes a second.
const PATIENCE: Duration = Duration::from_secs(20);
