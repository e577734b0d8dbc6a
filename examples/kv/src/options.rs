//! What can be set on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::limits::Limits;
use crate::persist::{Durability, Fsync};

/// A Redis-protocol key-value server on Veloq, one shard of the keys for each core.
#[derive(Debug, Clone, Parser)]
#[command(version, about)]
pub struct Options {
    /// Where to listen. Port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:6380")]
    pub bind: SocketAddr,
    /// Workers, each with a shard of the keys; one for each CPU that the process may use, if not given.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Leave the workers unpinned, to run where the system puts them.
    #[arg(long)]
    pub no_pin: bool,
    /// Where the logs are.
    #[arg(long, default_value = "./data")]
    pub dir: PathBuf,
    /// When a write is acknowledged: once it is on the disk, or before (then the disk has it within a second, or whenever
    /// the system writes it).
    #[arg(long, value_enum, default_value_t = Fsync::Everysec)]
    pub fsync: Fsync,
    /// Keep no log: everything is gone when the server ends.
    #[arg(long)]
    pub no_log: bool,
    /// Connections at a time.
    #[arg(long, default_value_t = Limits::default().clients_max)]
    pub maxclients: usize,
    /// Memory for keys and values, as 100mb or 2gb; writes are refused beyond it. 0: no bound.
    #[arg(long, default_value = "0", value_parser = parse_bytes)]
    pub maxmemory: usize,
    /// Run for so many seconds in a directory of its own, driven by a built-in client, and show what each worker does.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub demo: Option<Duration>,
}

impl Options {
    /// The bounds of the server.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { memory_max: self.maxmemory, clients_max: self.maxclients, ..Limits::default() }
    }

    /// What is kept, and how safely.
    #[must_use]
    pub fn durability(&self) -> Durability {
        Durability { fsync: self.fsync, enabled: !self.no_log }
    }
}

/// A number of bytes with a unit, as Redis's configuration has them: `1k` is 1,000 and `1kb` is 1,024.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1_000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return Err(format!("`{unit}` is none of b, k, kb, m, mb, g, gb")),
    };
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(scale));
    bytes.ok_or_else(|| format!("`{text}` is not a number of bytes"))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_with_the_units_of_redis() {
        assert_eq!(parse_bytes("100"), Ok(100));
        assert_eq!(parse_bytes("2k"), Ok(2_000));
        assert_eq!(parse_bytes("2GB"), Ok(2 << 30));
        assert!(parse_bytes("2 gb").is_err() && parse_bytes("x").is_err() && parse_bytes("").is_err());
        assert!(parse_bytes("99999999999999999999gb").is_err());
    }
}
