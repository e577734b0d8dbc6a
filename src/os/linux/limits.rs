//! What this process may use of the machine: memory that it may lock, and memory at all.
//!
//! Rings and registered buffers are charged to `RLIMIT_MEMLOCK`, for each user together, except for a process with `CAP_IPC_LOCK` in
//! the first user namespace, whom nothing bounds. A control group bounds all memory: each group up to the root may have a limit, in the
//! form of either hierarchy, and the least of them holds. Both are read when a runtime is built, and `io::driver::budget` shares them
//! out among its workers. What cannot be read bounds nothing: the kernel still refuses what is too much.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// `CAP_IPC_LOCK`, as a bit of a capability set: its holder locks as much as it likes.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// Bytes that this user may lock, rings and registered buffers included (RLIMIT_MEMLOCK). `None` if nothing bounds it.
///
/// All processes of a user share them, so this is a bound and no promise.
pub(crate) fn memlock_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Memlock).current?;
    (!may_lock_all()).then_some(limit)
}

/// Whether this thread has `CAP_IPC_LOCK` where it counts: in the first user namespace, whose ids are mapped to themselves.
fn may_lock_all() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_first = map.split_whitespace().eq(["0", "0", "4294967295"]);
    is_first && effective & CAP_IPC_LOCK != 0
}

/// Bytes of memory that this process's control group may use, and those above it: the least of the bounds. `None` if nothing
/// bounds it.
pub(crate) fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().filter_map(|line| limit_of(line, Path::new("/sys/fs/cgroup"))).min()
}

/// The bound that one line of `/proc/self/cgroup` leads to: `0::/path` for the unified hierarchy, `4:memory:/path` for the
/// older one's memory.
fn limit_of(line: &str, root: &Path) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (mount, file) = match controllers {
        "" => (root.to_path_buf(), "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let mut group = PathBuf::from(path.trim_start_matches('/'));
    let mut least = None::<u64>;
    // Inside a container the path may be the host's, which is not there: then the mount's root is the container's group.
    loop {
        let text = fs::read_to_string(mount.join(&group).join(file)).unwrap_or_default();
        // "max", or more than any machine has, is no bound.
        let bound = text.trim().parse::<u64>().ok().filter(|&bytes| bytes < 1 << 60);
        least = least.into_iter().chain(bound).min();
        if !group.pop() {
            return least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A bound of a group further up, or in the other hierarchy's form, that is overlooked is found by the kernel's killer.
    #[test]
    fn the_least_bound_up_to_the_root_counts() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
            fs::write(path, text).expect("it can be written");
        };
        write("memory.max", "max\n");
        write("a/memory.max", "67108864\n");
        write("a/b/memory.max", "134217728\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/c/memory.limit_in_bytes", "4096\n");
        let limit = |line| limit_of(line, root.path());
        assert_eq!(limit("0::/a/b"), Some(64 << 20));
        assert_eq!(limit("0::/"), None);
        assert_eq!(limit("0::/not/here/but/on/the/host"), None);
        assert_eq!(limit("4:memory:/c/d"), Some(4096));
        assert_eq!(limit("4:memory:/"), None);
        assert_eq!(limit("1:name=systemd:/a"), None);
        assert_eq!(limit("nonsense"), None);
    }
}
