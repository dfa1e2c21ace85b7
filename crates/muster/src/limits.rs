//! Limits of the machine: which one an error has met, and whether a plan keeps within them.
//!
//! They are nobody's mistake and no bug: exit code 3, with the limit's name and what to do.

use std::error::Error;
use std::io;
use std::path::Path;

use checkpoint::disk::{Disk, OsDisk};

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

/// The limit that an error has met, and what to do; none if it is of another kind.
pub fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    code_of(error).and_then(of_code)
}

/// As [`advice`], for a message that holds the system's.
pub fn advice_in(message: &str) -> Option<&'static str> {
    code_in(message).and_then(of_code)
}

/// As [`advice`], for an error of what lies at `path`: of a full disk it says what has run out.
pub fn advice_at(path: &Path, error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => {
            // The file itself may not have been made.
            let free = path.ancestors().chain([Path::new(".")]).find_map(|at| OsDisk.free(at));
            let is_out_of_files = free.is_some_and(|free| free.files == Some(0));
            Some(if is_out_of_files { OUT_OF_FILES } else { OUT_OF_BYTES })
        }
        _ => advice(error),
    }
}

const OUT_OF_FILES: &str = "no more files can be made there, as all inodes of the file system are \
                            in use (`df -i`): remove some";

const OUT_OF_BYTES: &str = "the disk is full: free some space";

/// The message instead of a library's panic that holds the system's word for a limit.
pub fn met_in(panic: &str) -> Option<String> {
    let code = code_in_panic(panic)?;
    let advice = of_code(code)?;
    let action = match code {
        libc::EAGAIN => "cannot start a thread",
        libc::ENOMEM => "cannot reserve memory",
        _ => "a system call failed",
    };
    Some(format!("{action}: {}; {advice}", io::Error::from_raw_os_error(code)))
}

/// Whether the system's word in an error is that a machine fails or is exhausted, rather than of a
/// path, which is the user's to choose.
pub fn is_of_machine(error: &(dyn Error + 'static)) -> bool {
    code_of(error).is_some_and(is_code_of_machine)
}

/// As [`is_of_machine`], for a message that holds the system's.
pub fn is_of_machine_in(message: &str) -> bool {
    code_in(message).is_some_and(is_code_of_machine)
}

fn is_code_of_machine(code: i32) -> bool {
    let exhausted = [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE];
    let disk = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EFBIG];
    exhausted.contains(&code) || disk.contains(&code)
}

/// The system's number in an error or in what caused it.
fn code_of(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if let Some(code) = io.and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        // Where memory was asked of the allocator, which has no number for it.
        if io.is_some_and(|io| io.kind() == io::ErrorKind::OutOfMemory) {
            return Some(libc::ENOMEM);
        }
        // The error that an error of the standard library wraps is not among its own causes.
        let wrapped = io.and_then(|io| io.get_ref()).map(|inner| inner as &(dyn Error + 'static));
        cause = wrapped.or_else(|| error.source());
    }
    // Other ranks send words, and some libraries keep nothing else of the system's error.
    code_in(&error.to_string())
}

fn of_code(code: i32) -> Option<&'static str> {
    Some(match code {
        libc::EAGAIN => {
            // Where memory for a thread's stack is lacking, too.
            "there is no room for another process or thread: raise the limit (`ulimit -u`, \
             `ulimit -v`, pids.max of the control group), or train with fewer --ranks or --threads"
        }
        libc::ENOMEM => {
            "memory is exhausted: raise the limit (`ulimit -v`, memory.max of the control group), \
             or train with fewer --ranks or --threads, or a smaller model or batch"
        }
        libc::EMFILE | libc::ENFILE => {
            "the limit of open files is reached: raise it (`ulimit -n`), or train with fewer \
             --ranks"
        }
        libc::EFBIG => "the limit of a file's size is reached: raise it (`ulimit -f`)",
        libc::ENOSPC => "the disk is full, of bytes or of files (`df -i`): free some space",
        libc::EDQUOT => "the disk quota is used up: free some space",
        libc::EIO => "the device behind it reports a failure: see the kernel's log",
        _ => return None,
    })
}

/// The number in `… (os error 11)`: the last one of a message, which may quote what a user wrote.
fn code_in(message: &str) -> Option<i32> {
    let (_, rest) = message.rsplit_once("(os error ")?;
    rest.split_once(')')?.0.parse().ok()
}

/// The same in a library's panic, or the number in its `Os { code: 11, …`.
fn code_in_panic(message: &str) -> Option<i32> {
    let debug = || {
        let (_, rest) = message.rsplit_once("Os { code: ")?;
        rest.split_once(',')?.0.parse().ok()
    };
    code_in(message).or_else(debug)
}

/// The system would not `action`.
pub fn refused(action: impl std::fmt::Display, error: &io::Error) -> CliError {
    match advice(error) {
        Some(advice) => CliError::peer(format!("cannot {action}: {error}; {advice}")),
        None => CliError::peer(format!("cannot {action}: {error}")),
    }
}

/// Memory that processes share could not be had.
pub fn no_memory(error: &dyn Error, source: &io::Error) -> CliError {
    let code = match source.raw_os_error() {
        Some(libc::ENOSPC) => Some(libc::ENOMEM),
        code => code,
    };
    match code.and_then(of_code) {
        Some(advice) => CliError::peer(format!("{error}; {advice}")),
        None => CliError::peer(error),
    }
}

/// The least that the commands need.
const STACK_KIB: usize = 2048;

/// Whether the stack of this process is large enough; a process cannot say so when it overflows.
///
/// # Errors
/// The limit that keeps it small.
pub fn check_stack() -> Result<(), CliError> {
    match system::stack_bytes().map(|bytes| bytes / 1024) {
        Some(kib) if kib < STACK_KIB => Err(CliError::peer(format!(
            "the limit of the stack is {kib} KiB (`ulimit -s`), and {STACK_KIB} KiB are needed: \
             raise it"
        ))),
        _ => Ok(()),
    }
}

/// The limits of this host.
#[derive(Debug, Clone)]
struct Host {
    cores: usize,
    /// Hosts, all alike; the ranks that a user asks for are those of all.
    nodes: usize,
    /// Processes and threads that may still be started, and the limit that says so.
    room: Option<(usize, String)>,
}

/// Cores that this process may use, at least one.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether this host, one of `nodes`, can run `ranks` processes of `threads` threads each.
///
/// # Errors
/// More threads than cores could serve; more than the system's limits leave room for.
pub fn check_threads(ranks: usize, threads: usize, nodes: usize) -> Result<(), CliError> {
    let cores = cores();
    fits(ranks, threads, &Host { cores, nodes, room: system::room() })
}

fn fits(ranks: usize, threads: usize, host: &Host) -> Result<(), CliError> {
    let Host { cores, nodes, room } = host;
    let (crowd, beside) = (CROWDED * cores, OF_A_RANK + READERS);
    let room_for_ranks = room.as_ref().map(|(room, _)| room.saturating_sub(OWN));
    // The nearest command that keeps within both.
    let knob = || {
        let each = |most: usize, beside: usize| most.saturating_sub(beside * ranks) / ranks;
        let roomy = room_for_ranks.map_or(usize::MAX, |most| each(most, beside));
        match each(crowd, 0).min(roomy) {
            0 => {
                let roomy = room_for_ranks.map_or(usize::MAX, |most| most / (beside + 1));
                let single = if threads > 1 { " --threads 1" } else { "" };
                format!("--ranks {}{single}", crowd.min(roomy).max(1) * nodes)
            }
            threads => format!("--threads {threads}"),
        }
    };
    let plural = crate::console::plural;
    let here = if *nodes > 1 { " on this host" } else { "" };
    let plan = format!("{}{here} of {} each", plural(ranks, "rank"), plural(threads, "thread"));
    let divided = ranks.saturating_mul((cores / ranks.max(1)).max(1)) <= crowd;
    if ranks.saturating_mul(threads) > crowd {
        return Err(CliError::mistake(format!(
            "{plan} on {}: they would wait for each other rather than compute; use {}{}",
            plural(*cores, "core"),
            knob(),
            match threads > 1 {
                true if divided => " at most, or --threads 0, which divides the cores",
                true => " at most",
                false => "",
            }
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

/// The system's limits, from `/proc` and the control group's files; whatever cannot be read limits
/// nothing.
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

    /// None: unlimited.
    pub fn stack_bytes() -> Option<usize> {
        number(&field(&read_to_string("/proc/self/limits").ok()?, "Max stack size")?)
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
        match fits(ranks, threads, &Host { cores, nodes: 1, room }) {
            Ok(()) => (0, String::new()),
            Err(error) => (error.exit.code(), error.message),
        }
    }

    #[test]
    fn what_cannot_run_names_the_knob() {
        assert_eq!(judge(2, 64, 2, None).0, 0);
        assert_eq!(judge(128, 1, 2, Some(1100)).0, 0);
        insta::assert_snapshot!(judge(2, 4096, 2, None).1, @"2 ranks of 4096 threads each on 2 cores: they would wait for each other rather than compute; use --threads 64 at most, or --threads 0, which divides the cores");
        insta::assert_snapshot!(judge(129, 1, 2, None).1, @"129 ranks of 1 thread each on 2 cores: they would wait for each other rather than compute; use --ranks 128");
        insta::assert_snapshot!(judge(4, 8, 8, Some(50)).1, @"4 ranks of 8 threads each: 68 processes and threads are needed, and `ulimit -u` leaves room for 50; use --threads 3, or raise the limit");
        insta::assert_snapshot!(judge(16, 1, 8, Some(50)).1, @"16 ranks of 1 thread each: 132 processes and threads are needed, and `ulimit -u` leaves room for 50; use --ranks 5, or raise the limit");
        assert_eq!((judge(2, 4096, 2, None).0, judge(4, 8, 8, Some(50)).0), (2, 3));
    }

    #[test]
    fn ranks_are_those_of_all_hosts() {
        let room = Some((50, "`ulimit -u`".to_owned()));
        let refused = fits(16, 1, &Host { cores: 8, nodes: 2, room }).unwrap_err();
        assert!(refused.message.starts_with("16 ranks on this host of 1 thread each"), "{refused}");
        assert!(refused.message.contains("use --ranks 10, or raise"), "{refused}");
        let crowded = judge(500, 2, 2, None).1;
        assert!(crowded.ends_with("use --ranks 128 --threads 1 at most"), "{crowded}");
    }

    /// The values in advice fit.
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
        assert!(met_in("x: Os { code: 12, kind: OutOfMemory }").unwrap().contains("memory"));
        // A config may have such a key.
        assert_eq!(advice_in("unknown key\n  1 | exit_code: 5"), None);
        assert_eq!(advice_in("a (os error 5"), None);
        assert_eq!(advice(&io::Error::from_raw_os_error(libc::ENOENT)), None);
        assert_eq!(advice_in("code: none"), None);
        assert!(is_of_machine_in("cannot read x: Input/output error (os error 5)"));
        assert!(!is_of_machine_in("cannot read x: No such file or directory (os error 2)"));
        assert!(!is_of_machine_in("cannot read x5"));
    }

    #[test]
    fn limits_are_known_by_what_caused_an_error() {
        let source = io::Error::from_raw_os_error(libc::EMFILE);
        let path = "a (os error 5)".into();
        let error = data::DataError::Io { action: "read", path, source };
        assert!(advice(&error).unwrap().contains("ulimit -n"), "{error}");
        assert!(is_of_machine(&io::Error::other(error)));
        // The name of a file is no word of the system's.
        let source = io::Error::from_raw_os_error(libc::ENOENT);
        let action = "read of a file";
        let path = "a (os error 5)".into();
        assert!(!is_of_machine(&data::DataError::Io { action, path, source }));
    }

    #[test]
    fn a_librarys_panic_is_told_in_the_systems_words() {
        let debug = "The global thread pool has not been initialized.: ThreadPoolBuildError { \
                     kind: IOError(Os { code: 11, kind: WouldBlock, message: \"…\" }) }";
        let told = met_in(debug).unwrap();
        let expected = "cannot start a thread: Resource temporarily unavailable (os error 11); ";
        assert!(told.starts_with(expected), "{told}");
        assert_eq!(met_in("index out of bounds: the len is 11"), None);
    }

    #[test]
    fn this_host_has_room() {
        let (room, name) = system::room().expect("Linux says");
        assert!(room > 0, "{name}");
    }
}
