//! Limits of the machine: named, with exit code 3, and where a plan cannot fit before it starts.

mod common;

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use common::{Done, Workdir, skip};

/// Nobody's number, where root's limits do not hold.
const NOBODY: u32 = 65534;

fn error(done: &Done) -> String {
    let masked = done.stderr.split(' ').map(|word| {
        let number = word.trim_matches(|c: char| !c.is_ascii_digit());
        let is_number = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit());
        if is_number { word.replace(number, "N") } else { word.to_owned() }
    });
    masked.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// Neither a bug nor a death by signal, but a limit that is named.
fn is_a_named_limit(done: &Done, name: &str) {
    assert_eq!(done.code(), Some(3), "{done}");
    assert!(done.stderr.contains(name), "{done}");
    assert!(!done.stderr.contains("bug in Muster"), "{done}");
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

#[test]
fn threads_that_no_core_could_serve_are_refused_before_the_start() {
    let run = Workdir::new("limit-threads");
    let done = run.train(&["--ranks", "2", "--threads", "4096"]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(error(&done), @"error: N ranks of N threads each on N cores: they would wait for each other rather than compute; use --threads N at most, or --threads N, which divides the cores");
    assert!(!run.path().join("runs").exists());
    let done = run.train(&["--dry-run", "--ranks", "4", "--threads", "0"]);
    assert_eq!(done.code(), Some(0), "{done}");
}

/// A shell line in the run's directory under a limit that root is not bound by.
fn as_nobody(run: &Workdir, line: &str) -> Option<Command> {
    // SAFETY: a system call without memory.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut command = Command::new(if is_root { "setpriv" } else { "sh" });
    if is_root {
        if !has("setpriv") {
            return None;
        }
        let user = NOBODY.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "sh"]);
        let all = std::fs::read_dir(run.path()).unwrap().map(|entry| entry.unwrap().path());
        for path in all.chain([run.path().to_owned()]) {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    command.args(["-c", line]);
    Some(command)
}

/// The program where everybody may run it.
fn public_copy(run: &Workdir) -> PathBuf {
    let copy = run.path().join("muster");
    std::fs::copy(common::MUSTER, &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn a_limit_of_processes_is_known_before_the_start() {
    let run = Workdir::new("limit-nproc");
    let program = public_copy(&run);
    let line = format!("exec prlimit --nproc=20 {} train run.yaml --ranks 4", program.display());
    let command = as_nobody(&run, &line).filter(|_| has("prlimit"));
    let Some(command) = command else { return skip("needs setpriv and prlimit") };
    let done = run.spawn(command).wait();
    is_a_named_limit(&done, "`ulimit -u` (20, ");
    insta::assert_snapshot!(error(&done), @"error: N ranks of N thread each: N processes and threads are needed, and `ulimit -u` (N, N of them in use) leaves room for N; use --ranks N, or raise the limit");
    assert!(!run.path().join("runs").exists());
}

#[test]
fn a_thread_or_process_that_is_refused_is_a_limit() {
    if !has("strace") {
        return skip("needs strace");
    }
    // Of the supervisor alone, then of every process.
    for (follow, most) in [("-q", 12), ("-f", 6)] {
        for nth in 1..=most {
            let run = Workdir::new(&format!("limit-clone{follow}{nth}"));
            let inject = format!("inject=clone,clone3:error=EAGAIN:when={nth}");
            let mut command = Command::new("strace");
            command.args([follow, "-qq", "-o", "trace.txt", "-e", "trace=clone,clone3"]);
            command.args(["-e", &inject, common::MUSTER, "train", "run.yaml"]);
            command.args(["--ranks", "2", "--threads", "2", "--set", "train.steps=2"]);
            let done = run.spawn(command).wait();
            if done.code() == Some(0) {
                // So many were not needed, or could be done without.
                continue;
            }
            is_a_named_limit(&done, "there is no room for another process or thread");
        }
    }
}

#[test]
fn a_lack_of_memory_is_no_bug() {
    let run = Workdir::new("limit-memory");
    let mut named = 0;
    // As large as what it takes to tokenize it at once.
    std::fs::write(run.path().join("large.txt"), "fn main() {}\n".repeat(6_000_000)).unwrap();
    // From what the program itself needs on to read its arguments, which grows with it: with less
    // the system ends it before it begins.
    let begins = |mib: &u64| {
        let line = format!("ulimit -v {}; exec {} train --help", mib << 10, common::MUSTER);
        Command::new("sh").args(["-c", &line]).output().unwrap().status.success()
    };
    let least = (40..200).step_by(2).find(begins).unwrap();
    let few = (least..=least + 14).step_by(2).map(|mib| (mib, "text"));
    for (mib, text) in few.chain([(400, "text"), (100, "large")]) {
        let exe = common::MUSTER;
        let line = format!(
            "ulimit -v {}; exec {exe} train run.yaml --max-steps 2 --set data.files={text}.txt",
            mib << 10
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        let done = run.spawn(command).wait();
        if done.code() == Some(127) && done.stderr.contains("error while loading") {
            continue;
        }
        let Some(code) = done.code() else {
            // The C library ends a process that has no memory for its own needs, and says so.
            assert!(
                done.stderr.contains("glibc") && done.stderr.contains("out of memory"),
                "{done}"
            );
            named += 1;
            continue;
        };
        assert!(matches!(code, 0 | 3), "{mib} MiB: {done}");
        assert!(!done.stderr.contains("bug in Muster"), "{mib} MiB: {done}");
        named += usize::from(code == 3 && done.stderr.contains("error: out of memory: "));
    }
    assert!(named > 1, "no limit was met");
}

#[test]
fn a_limit_of_file_size_is_named() {
    let run = Workdir::new("limit-fsize");
    let exe = common::MUSTER;
    // Too little for the memory that ranks share.
    let line = format!("ulimit -f 400; exec {exe} train run.yaml --ranks 2");
    let mut command = Command::new("sh");
    command.args(["-c", &line]);
    let done = run.spawn(command).wait();
    is_a_named_limit(&done, "ulimit -f");
}

#[test]
fn a_pipe_that_fails_is_no_bug() {
    if !has("strace") {
        return skip("needs strace");
    }
    for (call, code) in [("read", "EIO"), ("write", "EIO"), ("write", "ENOSPC")] {
        for nth in [1, 4, 16, 40] {
            let run = Workdir::new(&format!("limit-{call}-{code}-{nth}"));
            let inject = format!("inject={call}:error={code}:when={nth}+");
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", "trace.txt", "-e", &format!("trace={call}")]);
            command.args(["-e", &inject, common::MUSTER, "train", "run.yaml"]);
            command.args(["--ranks", "2", "--set", "train.steps=2"]);
            let done = run.spawn(command).wait();
            let ended = done.code().expect("no death by signal");
            // 127: the loader of the program could not read.
            assert!(matches!(ended, 0 | 2 | 3 | 127), "{call} {code} {nth}: {done}");
            assert!(!done.stderr.contains("bug in Muster"), "{call} {code} {nth}: {done}");
        }
    }
}

#[test]
fn a_pool_that_no_thread_is_left_for_is_told_in_plain_words() {
    let run = Workdir::new("limit-bench");
    let program = public_copy(&run).display().to_string();
    let line = format!(
        "exec prlimit --nproc=1 {program} bench gemm --shapes 64x64x64 --iterations 1 --threads 1"
    );
    let command = as_nobody(&run, &line).filter(|_| has("prlimit"));
    let Some(command) = command else { return skip("needs setpriv and prlimit") };
    let done = run.spawn(command).wait();
    if done.code() != Some(0) {
        is_a_named_limit(&done, "error: cannot start a thread: Resource temporarily unavailable");
        assert!(!done.stderr.contains("ThreadPoolBuildError"), "{done}");
    }
}

#[test]
fn a_stack_that_is_too_small_is_named() {
    let run = Workdir::new("limit-stack");
    for kib in [64, 512, 1024] {
        let line = format!("ulimit -s {kib}; exec {} train run.yaml --max-steps 1", common::MUSTER);
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        let done = run.spawn(command).wait();
        is_a_named_limit(&done, &format!("the limit of the stack is {kib} KiB (`ulimit -s`)"));
    }
    let line = format!("ulimit -s 2048; exec {} train run.yaml --max-steps 1", common::MUSTER);
    let mut command = Command::new("sh");
    command.args(["-c", &line]);
    let done = run.spawn(command).wait();
    assert_eq!(done.code(), Some(0), "{done}");
}
