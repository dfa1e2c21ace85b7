//! Limits of the machine: which one an error has met, and whether a plan keeps within them.
//!
//! They are nobody's mistake and no bug: exit code 3, with the limit's name and what to do.

use std::io;

use crate::error::CliError;

/// Threads of a rank beside those that compute: its first one, its voice, the control connection,
/// the watchdog over its peers, its group, the removal of checkpoints.
const OF_A_RANK: usize = 6;

/// Threads of the supervisor for each rank, which read its lines and its log.
const READERS: usize = 2;

/// The supervisor's other threads.
const OWN: usize = 4;

/// Threads per core beyond which ranks wait for each other's threads rather than compute.
const CROWDED: usize = 64;

/// The limit that an error of the system has met, and what to do; none if it is of another kind.
pub fn advice(error: &io::Error) -> Option<&'static str> {
    let code = error.raw_os_error();
    // Without a code where the system's word was passed on by another library.
    let code = code.or_else(|| code_in(&error.to_string()))?;
    of_code(code)
}

/// As [`advice`], for a message that holds the system's.
pub fn advice_in(message: &str) -> Option<&'static str> {
    code_in(message).and_then(of_code)
}

/// Whether a message holds the system's word for a machine that fails or is exhausted, rather than
/// for a path, which is the user's to choose.
pub fn is_of_machine(message: &str) -> bool {
    let exhausted = [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE];
    let disk = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EFBIG];
    let codes = [exhausted, disk].concat();
    code_in(message).is_some_and(|code| codes.contains(&code))
}

fn of_code(code: i32) -> Option<&'static str> {
    Some(match code {
        libc::EAGAIN => {
            // Where memory for a thread's stack is lacking, too.
            "there is no room for another process or thread: use fewer --ranks or --threads, or \
             raise the limit (`ulimit -u`, `ulimit -v`, pids.max of the control group)"
        }
        libc::ENOMEM => {
            "memory is exhausted: use fewer --ranks or --threads, or raise the limit (`ulimit -v`, \
             memory.max of the control group)"
        }
        libc::EMFILE | libc::ENFILE => {
            "the limit of open files is reached: use fewer --ranks, or raise it (`ulimit -n`)"
        }
        libc::EFBIG => "the limit of a file's size is reached: raise it (`ulimit -f`)",
        libc::ENOSPC => "the disk is full, of bytes or of files (`df -i`): free some space",
        libc::EDQUOT => "the disk quota is used up: free some space",
        libc::EIO => "the device behind it reports a failure: see the kernel's log",
        _ => return None,
    })
}

/// The number in `… (os error 11)` or `Os { code: 11, …`.
fn code_in(message: &str) -> Option<i32> {
    ["(os error ", "code: "].iter().find_map(|before| {
        let (_, rest) = message.rsplit_once(before)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

/// The system would not `action`.
pub fn refused(action: impl std::fmt::Display, error: &io::Error) -> CliError {
    match advice(error) {
        Some(advice) => CliError::peer(format!("cannot {action}: {error}; {advice}")),
        None => CliError::peer(format!("cannot {action}: {error}")),
    }
}

/// What this host allows.
#[derive(Debug, Clone)]
struct Host {
    cores: usize,
    /// Processes and threads that may still be started, and the limit that says so.
    room: Option<(usize, String)>,
}

/// Whether this host can run `ranks` processes of `threads` threads each.
///
/// # Errors
/// More threads than cores could serve; more than the system's limits leave room for.
pub fn check_threads(ranks: usize, threads: usize) -> Result<(), CliError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    fits(ranks, threads, &Host { cores, room: system::room() })
}

fn fits(ranks: usize, threads: usize, host: &Host) -> Result<(), CliError> {
    let Host { cores, room } = host;
    let (crowd, beside) = (CROWDED * cores, OF_A_RANK + READERS);
    let room_for_ranks = room.as_ref().map(|(room, _)| room.saturating_sub(OWN));
    // What keeps within both.
    let knob = || {
        let each = |most: usize, beside: usize| most.saturating_sub(beside * ranks) / ranks;
        let roomy = room_for_ranks.map_or(usize::MAX, |most| each(most, beside));
        match each(crowd, 0).min(roomy) {
            0 => {
                let roomy = room_for_ranks.map_or(usize::MAX, |most| most / (beside + 1));
                let single = if threads > 1 { " --threads 1" } else { "" };
                format!("--ranks {}{single}", crowd.min(roomy).max(1))
            }
            threads => format!("--threads {threads}"),
        }
    };
    let plural = crate::console::plural;
    let plan = format!("{} of {} each", plural(ranks, "rank"), plural(threads, "thread"));
    if ranks.saturating_mul(threads) > crowd {
        return Err(CliError::mistake(format!(
            "{plan} on {}: they would wait for each other rather than compute; use {}{}",
            plural(*cores, "core"),
            knob(),
            if threads > 1 { " at most, or --threads 0, which divides the cores" } else { "" }
        )));
    }
    let each = if threads > 1 { threads } else { 0 } + beside;
    let needed = ranks.saturating_mul(each).saturating_add(OWN);
    if let Some((room, name)) = room
        && needed > *room
    {
        return Err(CliError::peer(format!(
            "{plan}: {needed} processes and threads are needed, and {name} leaves room for {room}; \
             use {}, or raise the limit",
            knob()
        )));
    }
    Ok(())
}

/// What the system says of its limits, from `/proc` and the control group's files; whatever cannot
/// be read limits nothing.
mod system {
    use std::fs::read_to_string;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    /// Capabilities that lift a user's limit of processes: SYS_ADMIN and SYS_RESOURCE.
    const LIFTS: u64 = 1 << 21 | 1 << 24;

    /// The smallest room that a limit leaves.
    pub fn room() -> Option<(usize, String)> {
        [of_user(), of_group(), of_system()].into_iter().flatten().min()
    }

    fn number(text: &str) -> Option<usize> {
        text.trim().parse().ok()
    }

    /// The word after the first line's beginning.
    fn field(text: &str, begin: &str) -> Option<String> {
        let line = text.lines().find_map(|line| line.strip_prefix(begin))?;
        line.split_whitespace().next().map(str::to_owned)
    }

    fn of_user() -> Option<(usize, String)> {
        let most = number(&field(&read_to_string("/proc/self/limits").ok()?, "Max processes")?)?;
        let status = read_to_string("/proc/self/status").ok()?;
        let user = field(&status, "Uid:")?.parse::<u32>().ok()?;
        let capabilities = u64::from_str_radix(&field(&status, "CapEff:")?, 16).ok()?;
        if user == 0 || capabilities & LIFTS != 0 {
            return None;
        }
        let processes = Path::new("/proc").read_dir().ok()?.flatten();
        let theirs = processes.filter(|entry| {
            let is_process = entry.file_name().to_string_lossy().parse::<u32>().is_ok();
            is_process && entry.metadata().is_ok_and(|data| data.uid() == user)
        });
        let threads = |path: PathBuf| path.join("task").read_dir().map_or(0, Iterator::count);
        let used: usize = theirs.map(|entry| threads(entry.path())).sum();
        Some((most.saturating_sub(used), format!("`ulimit -u` ({most}, {used} of them in use)")))
    }

    fn of_group() -> Option<(usize, String)> {
        let groups = read_to_string("/proc/self/cgroup").ok()?;
        let dirs = groups.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            match rest.split_once(':')? {
                ("", path) => Some(format!("/sys/fs/cgroup{path}")),
                ("pids", path) => Some(format!("/sys/fs/cgroup/pids{path}")),
                _ => None,
            }
        });
        // A limit of a group above holds too.
        let dirs: Vec<PathBuf> = dirs.map(PathBuf::from).collect();
        let all = dirs.iter().flat_map(|dir| dir.ancestors());
        all.filter(|dir| dir.starts_with("/sys/fs/cgroup")).filter_map(of_dir).min()
    }

    fn of_dir(dir: &Path) -> Option<(usize, String)> {
        let path = dir.join("pids.max");
        let most = number(&read_to_string(&path).ok()?)?;
        let used = number(&read_to_string(dir.join("pids.current")).ok()?)?;
        let name = format!("{} ({most}, {used} of them in use)", path.display());
        Some((most.saturating_sub(used), name))
    }

    fn of_system() -> Option<(usize, String)> {
        let path = "/proc/sys/kernel/threads-max";
        let most = number(&read_to_string(path).ok()?)?;
        // `0.42 0.30 0.28 1/230 4711`: running and existing tasks.
        let load = read_to_string("/proc/loadavg").ok()?;
        let used = number(load.split_once('/')?.1.split_whitespace().next()?)?;
        Some((most.saturating_sub(used), format!("{path} ({most}, {used} of them in use)")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(ranks: usize, threads: usize, cores: usize, room: Option<usize>) -> (u8, String) {
        let room = room.map(|room| (room, "`ulimit -u`".to_owned()));
        match fits(ranks, threads, &Host { cores, room }) {
            Ok(()) => (0, String::new()),
            Err(error) => (error.exit.code(), error.message),
        }
    }

    #[test]
    fn what_cannot_run_names_the_knob() {
        assert_eq!(judge(2, 64, 2, None).0, 0);
        assert_eq!(judge(128, 1, 2, Some(800)).0, 0);
        insta::assert_snapshot!(judge(2, 4096, 2, None).1, @"2 ranks of 4096 threads each on 2 cores: they would wait for each other rather than compute; use --threads 64 at most, or --threads 0, which divides the cores");
        insta::assert_snapshot!(judge(129, 1, 2, None).1, @"129 ranks of 1 thread each on 2 cores: they would wait for each other rather than compute; use --ranks 128");
        insta::assert_snapshot!(judge(4, 8, 8, Some(50)).1, @"4 ranks of 8 threads each: 60 processes and threads are needed, and `ulimit -u` leaves room for 50; use --threads 5, or raise the limit");
        insta::assert_snapshot!(judge(16, 1, 8, Some(50)).1, @"16 ranks of 1 thread each: 100 processes and threads are needed, and `ulimit -u` leaves room for 50; use --ranks 6, or raise the limit");
        assert_eq!((judge(2, 4096, 2, None).0, judge(4, 8, 8, Some(50)).0), (2, 3));
    }

    /// What is advised fits.
    #[test]
    fn advice_is_within_the_limits() {
        for (ranks, threads) in [(1, 4096), (2, 4096), (3, 65), (500, 1), (7, 300)] {
            for room in [None, Some(24), Some(60), Some(10_000)] {
                let (code, text) = judge(ranks, threads, 2, room);
                if code == 0 {
                    continue;
                }
                let words: Vec<&str> = text.split(&[' ', ','][..]).collect();
                let at = words.iter().position(|word| word.starts_with("--")).unwrap();
                let value: usize = words[at + 1].parse().unwrap();
                let (ranks, threads) =
                    if words[at] == "--ranks" { (value, 1) } else { (ranks, value) };
                // Too little room for one rank is told as what one rank needs.
                if room.is_none_or(|room| room >= OWN + OF_A_RANK + READERS) {
                    assert_eq!(judge(ranks, threads, 2, room).1, "", "{text}");
                }
            }
        }
    }

    #[test]
    fn limits_are_known_by_their_numbers() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        let advised = "; the disk is full, of bytes or of files (`df -i`): free some space";
        assert!(refused("write", &full).message.ends_with(advised));
        let passed_on = io::Error::other("pool: Resource temporarily unavailable (os error 11)");
        assert!(advice(&passed_on).unwrap().contains("ulimit -u"));
        assert!(advice_in("x: Os { code: 12, kind: OutOfMemory }").unwrap().contains("memory"));
        assert_eq!(advice(&io::Error::from_raw_os_error(libc::ENOENT)), None);
        assert_eq!(advice_in("code: none"), None);
        assert!(is_of_machine("cannot read x: Input/output error (os error 5)"));
        assert!(!is_of_machine("cannot read x: No such file or directory (os error 2)"));
        assert!(!is_of_machine("cannot read x5"));
    }

    #[test]
    fn this_host_has_room() {
        let (room, name) = system::room().expect("Linux says");
        assert!(room > 0, "{name}");
    }
}
