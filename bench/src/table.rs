//! The tables, in Markdown.

use std::fmt::Write;
use std::io;

use crate::measure::Sample;
use crate::{Cell, LACKS, PEERS, Row};

/// Where the two columns stand that the others are compared with.
const BY_HAND: usize = 0;
const VELOQ: usize = 1;

/// What a run came to, as text.
pub struct Tables {
    /// Versions, machine, rounds.
    measured: String,
    /// Processor time.
    cpu: String,
    /// Time on the wall, and what was spent spinning.
    wall: String,
    /// Why cells are empty.
    notes: String,
}

impl Tables {
    /// The tables of these rows that have samples.
    pub fn of(rows: &[Row], samples: &[Vec<Vec<Sample>>], rounds: usize) -> Tables {
        let (rows, samples): (Vec<_>, Vec<_>) =
            rows.iter().zip(samples).filter(|(_, row)| row.iter().any(|samples| !samples.is_empty())).unzip();
        let measured = format!("{}; {}; {}; {rounds} rounds, medians.\n", versions(), kernel(), processor());
        let mut cpu =
            "Processor time for each operation, all threads, user and system, in nanoseconds:\n\n".to_owned();
        cpu += &table(&rows, &samples, |sample| sample.cpu_ns);
        let mut wall = "Time on the wall for each operation, in nanoseconds:\n\n".to_owned();
        wall += &table(&rows, &samples, |sample| sample.wall_ns);
        let spinning = rows.iter().zip(&samples).filter_map(|(row, samples)| {
            let spin = median(per_op(&samples[VELOQ], |sample| sample.spin_ns)).filter(|&spin| spin > 0.0)?;
            Some(format!("{} {}", row.title, shown(Some(spin))))
        });
        let spinning = spinning.collect::<Vec<_>>().join("; ");
        if !spinning.is_empty() {
            wall += "\nOf Veloq's processor time, spent awake before it would sleep, in nanoseconds for each operation: ";
            wall += &format!("{spinning}.\n");
        }
        let lacks = |reason| {
            rows.iter()
                .any(|row| row.cells.iter().any(|cell| matches!(cell, Cell::Lacks(of) if *of == reason)))
        };
        let notes = (0..LACKS.len()).filter(|&reason| lacks(reason));
        let notes =
            notes.map(|reason| format!("{} {}", mark(reason), LACKS[reason])).collect::<Vec<_>>().join("; ");
        let notes = if notes.is_empty() { notes } else { format!("{notes}.\n") };
        Tables { measured, cpu, wall, notes }
    }

    /// All of it.
    pub fn everything(&self) -> String {
        let Tables { measured, cpu, wall, notes } = self;
        format!("{measured}\n{cpu}\n{wall}\n{notes}")
    }

    /// Without the time on the wall.
    fn processor_time(&self) -> String {
        let Tables { measured, cpu, notes, .. } = self;
        format!("{measured}\n{cpu}\n{notes}")
    }

    /// Puts the tables that a file asks for between its marks.
    pub fn write(&self, path: &str) -> io::Result<()> {
        let text = std::fs::read_to_string(path)?;
        let wanted = [(EVERYTHING, self.everything()), (PROCESSOR_TIME, self.processor_time())];
        for (mark, tables) in wanted {
            let Some((before, rest)) = text.split_once(mark) else { continue };
            if let Some((_, after)) = rest.split_once(END) {
                return std::fs::write(path, format!("{before}{mark}\n\n{tables}\n{END}{after}"));
            }
        }
        Err(io::Error::other(format!("neither {EVERYTHING} nor {PROCESSOR_TIME}, or no {END} after it")))
    }
}

/// The mark of a file that wants both tables.
const EVERYTHING: &str = "<!-- side-by-side: everything -->";
/// The mark of a file that wants the first only.
const PROCESSOR_TIME: &str = "<!-- side-by-side: processor time -->";
/// Where they end.
const END: &str = "<!-- side-by-side: end -->";

/// One table of the times that `time` takes out of a sample.
fn table(rows: &[&Row], samples: &[&Vec<Vec<Sample>>], time: fn(&Sample) -> u64) -> String {
    let mut text = format!("| | {} | Veloq ÷ best peer | Veloq ÷ by hand |\n", PEERS.join(" | "));
    text.push_str(&"|---".repeat(PEERS.len() + 3));
    text.push_str("|\n");
    for (row, samples) in rows.iter().zip(samples) {
        let figures: Vec<Vec<f64>> = samples.iter().map(|samples| per_op(samples, time)).collect();
        let medians: Vec<Option<f64>> = figures.iter().map(|figures| median(figures.clone())).collect();
        let best = (VELOQ + 1..PEERS.len())
            .filter_map(|peer| Some((peer, medians[peer]?)))
            .min_by(|left, right| left.1.total_cmp(&right.1))
            .map(|(peer, _)| peer);
        let first =
            medians.iter().enumerate().skip(VELOQ).filter_map(|(peer, median)| Some((peer, (*median)?)));
        let first = first.min_by(|left, right| left.1.total_cmp(&right.1)).map(|(peer, _)| peer);
        write!(text, "| {} |", row.title).expect("a String takes all");
        for (peer, cell) in row.cells.iter().enumerate() {
            let figure = match (cell, medians[peer]) {
                (Cell::Lacks(reason), _) => mark(*reason).to_owned(),
                (Cell::Run(_), None) => "failed".to_owned(),
                (Cell::Run(_), figure) if first == Some(peer) => format!("**{}**", shown(figure)),
                (Cell::Run(_), figure) => shown(figure),
            };
            write!(text, " {figure} |").expect("a String takes all");
        }
        let ratio = |other: Option<usize>| {
            let other = &figures[other?];
            median(figures[VELOQ].iter().zip(other).map(|(veloq, other)| veloq / other).collect())
        };
        for other in [best, Some(BY_HAND)] {
            let ratio = ratio(other).map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
            write!(text, " {ratio} |").expect("a String takes all");
        }
        text.push('\n');
    }
    text
}

/// Nanoseconds for each operation, of each round.
fn per_op(samples: &[Sample], time: fn(&Sample) -> u64) -> Vec<f64> {
    samples.iter().map(|sample| time(sample) as f64 / sample.ops as f64).collect()
}

/// The middle one.
fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_unstable_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(figures[middle]),
        _ => Some((figures[middle - 1] + figures[middle]) / 2.0),
    }
}

/// Three figures that count.
fn shown(figure: Option<f64>) -> String {
    match figure {
        None => "–".to_owned(),
        Some(figure) if figure < 100.0 => format!("{figure:.1}"),
        Some(figure) => format!("{figure:.0}"),
    }
}

/// The footnote of a reason.
fn mark(reason: usize) -> &'static str {
    ["¹", "²", "³"][reason]
}

/// What stands in the lock file that this was built with.
fn versions() -> String {
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let entry = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
        Some(format!("{name} {}", entry.split('"').next()?))
    };
    ["tokio", "monoio", "compio", "glommio"].into_iter().filter_map(version).collect::<Vec<_>>().join(", ")
}

/// The kernel's name and version.
fn kernel() -> String {
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", version.trim())
}

/// The processor's name, and how many there are.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, name)| name);
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{count} cores ({name})")
}
