//! A job's secret, as people use it: hosts that have different ones, files that others may read,
//! and where a secret must not be seen. Hosts are processes of one host here.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Done, Job, MUSTER, Workdir, free_port};

const OURS: &str = "the secret of this job, of 39 bytes or so";
const OTHER: &str = "a secret of another job";
/// The message where there is none.
const NONE: &str = "the hosts of this job have no common secret";
/// The advice about different ones.
const ADVICE: &str = "give every host of the job the same one (ranks.secret_file, --secret-file or \
                      MUSTER_SECRET), or none";

fn place(port: u16, node: usize) -> Vec<String> {
    let words = format!(
        "--rendezvous 127.0.0.1:{port} --nodes 2 --node-rank {node} --ranks 2 --backend tcp"
    );
    words.split(' ').map(str::to_owned).collect()
}

/// A host that has its secret from the environment, or none.
fn host(run: &Workdir, port: u16, node: usize, secret: Option<&str>, more: &[&str]) -> Job {
    let mut command = run.command(more);
    command.args(place(port, node)).env_remove("MUSTER_SECRET");
    command.envs(secret.map(|secret| ("MUSTER_SECRET", secret)));
    run.spawn(command)
}

fn file(run: &Workdir, name: &str, mode: u32) {
    let path = run.path().join(name);
    std::fs::write(&path, format!("{OURS}\nsecond line\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn is_well(done: &Done) {
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(!done.stderr.contains(NONE), "{done}");
}

/// Both sides say so within a second, and the host that has the right one is taken in its stead.
#[test]
fn a_host_with_another_secret_is_named_on_both_sides_and_the_job_goes_on() {
    let run = Workdir::new("secret-other");
    let expected = run.digest("one", &["--ranks", "2", "--backend", "tcp"]);
    let port = free_port();
    let mut first = host(&run, port, 0, Some(OURS), &[]);
    first.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    for other in [Some(OTHER), None] {
        let guest = host(&run, port, 1, other, &["--name", "guest"]).wait();
        assert_eq!(guest.code(), Some(2), "{guest}");
        let said = format!(
            "error: the meeting point at 127.0.0.1:{port}, node 0 of the job, has another secret \
             than this process; {ADVICE}"
        );
        assert!(guest.stderr.starts_with(&said), "{guest}");
        let ended = Instant::now();
        let told = format!("turned away rank 1 from 127.0.0.1, which has another secret; {ADVICE}");
        assert!(first.wait_until(|| run.warnings().contains(&told)), "{:?}", run.warnings());
        assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
    }
    // One whose own cannot be used proves nothing, and says that.
    let guest = host(&run, port, 1, Some("short"), &["--name", "guest"]).wait();
    assert_eq!(guest.code(), Some(2), "{guest}");
    let told = "turned away node 1 from 127.0.0.1, which says, without a proof, that it will not \
                start: its secret cannot be used; see its own messages";
    let is_told = || run.warnings().iter().any(|warning| warning == told);
    assert!(first.wait_until(is_told), "{:?}", run.warnings());
    let second = host(&run, port, 1, Some(OURS), &[]);
    for done in [first.wait(), second.wait()] {
        is_well(&done);
    }
    assert_eq!(run.final_digest(&run.name), expected);
    // Once, though it came thrice or more, and so did the process that had started it.
    let rank =
        run.warnings().into_iter().filter(|told| told.contains("turned away rank 1")).count();
    assert_eq!(rank, 1, "{:?}", run.warnings());
}

trait Warnings {
    fn warnings(&self) -> Vec<String>;
}

impl Warnings for Workdir {
    fn warnings(&self) -> Vec<String> {
        let events = self.events_of(&self.name, "warning").into_iter();
        events.filter_map(|event| Some(event["message"].as_str()?.to_owned())).collect()
    }
}

#[test]
fn hosts_without_a_secret_work_and_are_warned_once() {
    let run = Workdir::new("secret-none");
    let port = free_port();
    let [first, second] = [0, 1].map(|node| host(&run, port, node, None, &[])).map(Job::wait);
    assert_eq!((first.code(), second.code()), (Some(0), Some(0)), "{first}\n{second}");
    let said = |done: &Done| format!("{}{}", done.stdout, done.stderr).matches(NONE).count();
    assert_eq!((said(&first), said(&second)), (1, 0), "{first}\n{second}");
}

#[test]
fn hosts_may_have_it_in_files_of_their_own() {
    let run = Workdir::new("secret-files");
    file(&run, "one", 0o600);
    file(&run, "two", 0o400);
    let port = free_port();
    let more = [&["--secret-file", "one"][..], &["--set", "ranks.secret_file=two"]];
    let hosts = [0, 1].map(|node| host(&run, port, node, Some(OTHER), more[node]));
    hosts.map(Job::wait).iter().for_each(is_well);
}

#[test]
fn files_that_others_may_read_and_short_secrets_are_refused() {
    let run = Workdir::new("secret-mode");
    file(&run, "open", 0o644);
    std::fs::write(run.path().join("short"), "0123456789abcde\n").unwrap();
    let only_ours = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(run.path().join("short"), only_ours).unwrap();
    let open = "others than its owner may use open (mode 644); `chmod 600 open`, and if they have \
                read it, make another";
    let short = "the secret in short has 15 bytes; use 16 or more: make one with";
    for (more, said) in [
        (["--secret-file", "open"], format!("error: ranks.secret_file: {open}")),
        (["--secret-file", "short"], format!("error: ranks.secret_file: {short}")),
        (["--secret-file", "none"], "error: ranks.secret_file: cannot read none: ".into()),
    ] {
        let done = run.train(&more);
        assert_eq!(done.code(), Some(2), "{done}");
        assert!(done.stderr.starts_with(&said), "{done}");
    }
    let done = host(&run, free_port(), 0, Some("too short"), &[]).wait();
    assert_eq!(done.code(), Some(2), "{done}");
    let said = "error: the secret in MUSTER_SECRET has 9 bytes; use 16 or more";
    assert!(done.stderr.starts_with(said), "{done}");
    let args = ["bench", "links", "--ranks", "2", "--secret-file", "open"];
    let done = run.muster(&args);
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(done.stderr.starts_with(&format!("error: --secret-file: {open}")), "{done}");
}

/// Arguments are for everyone on a machine, environments and files for whoever may read them.
#[test]
fn ranks_have_it_where_nobody_looks() {
    let run = Workdir::new("secret-seen");
    let mut command = run.command(&["--ranks", "2", "--backend", "tcp", "--name", "seen"]);
    command.env("MUSTER_SECRET", OURS);
    let mut job = run.spawn(command);
    let mut seen = Vec::new();
    let pid = job.pid();
    let workers = || {
        let all = common::processes().into_iter();
        let ours = all.filter(|process| process.parent == pid && process.rank().is_some());
        ours.map(|process| process.pid).collect::<Vec<_>>()
    };
    assert!(job.wait_until(|| workers().len() == 2));
    for worker in workers() {
        for what in ["cmdline", "environ"] {
            seen.extend(std::fs::read(format!("/proc/{worker}/{what}")).unwrap_or_default());
        }
    }
    let done = job.wait();
    is_well(&done);
    for entry in std::fs::read_dir(run.run_dir("seen")).unwrap().flatten() {
        seen.extend(std::fs::read(entry.path()).unwrap_or_default());
    }
    let seen = String::from_utf8_lossy(&seen);
    let key = comm::Secret::of_text(OURS.as_bytes()).unwrap().to_hex();
    assert!(seen.contains("--rank") && seen.contains("rendezvous"), "nothing was looked at");
    assert!(!seen.contains(OURS) && !seen.contains(&key), "{seen}");
}

#[test]
fn benchmarks_over_hosts_have_it_too() {
    let run = Workdir::new("secret-bench");
    file(&run, "one", 0o600);
    for words in ["links --messages 2 --size 4KiB", "collectives all_reduce --max 1KiB"] {
        let start = |port: u16, node: usize, with: bool| {
            let mut command = Command::new(MUSTER);
            command.arg("bench").args(words.split(' ')).args(place(port, node));
            command.args(["--timeout-ms", "20000"]).env_remove("MUSTER_SECRET");
            if with {
                command.args(["--secret-file", "one"]);
            }
            run.spawn(command)
        };
        let port = free_port();
        [0, 1].map(|node| start(port, node, true)).map(Job::wait).iter().for_each(is_well);
        let port = free_port();
        let mut first = start(port, 0, true);
        first.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let guest = start(port, 1, false).wait();
        assert_eq!(guest.code(), Some(2), "{guest}");
        assert!(guest.stderr.contains("has another secret than this process"), "{guest}");
        let second = start(port, 1, true).wait();
        is_well(&second);
        let first = first.wait();
        is_well(&first);
        let told = "warning: turned away rank 1 from 127.0.0.1, which has another secret";
        assert!(first.stderr.contains(told), "{first}");
    }
}
