//! How much memory this host can give: what the kernel says of the machine, of the control groups
//! around this process, and of its own limit.

use std::path::{Path, PathBuf};

/// A limit and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// In words, after a size: `of memory and swap that this machine has`.
    pub what: String,
    pub bytes: u64,
    /// Of each rank, rather than of all on this host.
    pub is_per_rank: bool,
}

/// All limits of this process. What cannot be read limits nothing.
pub fn limits() -> Vec<Limit> {
    limits_below(Path::new("/"))
}

/// As [`limits`], with the kernel's files below `root`.
fn limits_below(root: &Path) -> Vec<Limit> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let info = read("proc/meminfo");
    let kib = |name: &str| field(&info, name).and_then(|n| n.checked_mul(1024));
    let swap = kib("SwapTotal:").unwrap_or(0);
    let machine = kib("MemTotal:").map(|memory| memory.saturating_add(swap));
    let group = group_bytes(&root.join("sys/fs/cgroup"), &read("proc/self/cgroup"), swap);
    let process = field(&read("proc/self/limits"), "Max address space");
    [
        (machine, "of memory and swap that this machine has", false),
        (group, "that the control group of this process may use", false),
        (process, "of address space that a process may use (ulimit -v)", true),
    ]
    .into_iter()
    .filter_map(|(bytes, what, is_per_rank)| {
        Some(Limit { what: what.to_owned(), bytes: bytes?, is_per_rank })
    })
    .collect()
}

/// The number behind `name`, in the file's unit; `unlimited` is none.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The least that a control group of this process or one around it allows, swap included; of
/// either version, mounted where systems do.
fn group_bytes(mount: &Path, groups: &str, swap: u64) -> Option<u64> {
    // `ID:CONTROLLERS:PATH`; the controllers of version 2 are empty.
    let groups = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((parts.next()?, parts.next()?))
    });
    let mut least: Option<u64> = None;
    for (controllers, path) in groups {
        let is_v2 = controllers.is_empty();
        if !is_v2 && !controllers.split(',').any(|one| one == "memory") {
            continue;
        }
        let top = if is_v2 { mount.to_path_buf() } else { mount.join("memory") };
        // In a container the path may be another's view of it: what is missing limits nothing.
        let inner = top.join(path.trim_start_matches('/'));
        for dir in inner.ancestors().take_while(|dir| dir.starts_with(&top)) {
            let bytes = if is_v2 { of_v2(dir, swap) } else { of_v1(dir, swap) };
            least = least.into_iter().chain(bytes).min();
        }
    }
    least
}

/// The number in a file; `max` is none.
fn number(path: PathBuf) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn of_v2(dir: &Path, swap: u64) -> Option<u64> {
    let memory = number(dir.join("memory.max"))?;
    Some(memory.saturating_add(number(dir.join("memory.swap.max")).unwrap_or(swap).min(swap)))
}

fn of_v1(dir: &Path, swap: u64) -> Option<u64> {
    let memory = number(dir.join("memory.limit_in_bytes"))?.saturating_add(swap);
    // Counts memory and swap together, where the kernel counts swap at all.
    Some(number(dir.join("memory.memsw.limit_in_bytes")).unwrap_or(memory).min(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> Vec<(u64, bool)> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        limits_below(dir.path()).iter().map(|l| (l.bytes, l.is_per_rank)).collect()
    }

    const INFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 9 kB\nSwapTotal:  24 kB\n");

    #[test]
    fn the_machine_and_the_process() {
        let free = ("proc/self/limits", "Max address space  unlimited  unlimited  bytes\n");
        assert_eq!(host(&[INFO, free]), [(1024 * 1024, false)]);
        let tight =
            ("proc/self/limits", "Max cpu time 1 1 s\nMax address space  5000  9000  bytes");
        assert_eq!(host(&[INFO, tight]), [(1024 * 1024, false), (5000, true)]);
        assert_eq!(host(&[]), []);
    }

    #[test]
    fn groups_of_version_2_and_those_around_them() {
        let group = ("proc/self/cgroup", "0::/user/job\n");
        let outer = ("sys/fs/cgroup/user/memory.max", "4096\n");
        let inner = ("sys/fs/cgroup/user/job/memory.max", "max\n");
        let no_swap = ("sys/fs/cgroup/user/memory.swap.max", "0\n");
        assert_eq!(host(&[INFO, group, inner]).len(), 1);
        assert_eq!(host(&[INFO, group, inner, outer])[1], (4096 + 24 * 1024, false));
        assert_eq!(host(&[INFO, group, inner, outer, no_swap])[1], (4096, false));
        // Inside a namespace the group is the top.
        let top = [("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "77\n")];
        assert_eq!(host(&top), [(77, false)]);
    }

    #[test]
    fn groups_of_version_1() {
        let group = ("proc/self/cgroup", "5:cpu:/a\n4:memory:/job\n0::/\n");
        let limit = ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2048\n");
        let both = ("sys/fs/cgroup/memory/job/memory.memsw.limit_in_bytes", "3000\n");
        let top = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(host(&[INFO, group, limit, top])[1], (2048 + 24 * 1024, false));
        assert_eq!(host(&[INFO, group, limit, top, both])[1], (3000, false));
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(limits().iter().any(|limit| limit.bytes > 1 << 20));
    }
}
