//! Benchmarks on several hosts, which are processes of one host here, of which a rank or all of one
//! host stand still, are killed or are stopped: every host is told whom, how and in what.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Done, Job, MUSTER, Workdir, free_port, send};

/// Far longer than anybody waits here.
const LONG: &str = "collectives all_reduce --max 64 --seconds 600 --within 0.0001 --iterations \
                    999999999";
/// Of which each round lasts as long.
const ROUNDS: &str = "links --messages 99999 --size 4MiB";

/// The hosts of a benchmark of two ranks each.
fn hosts(run: &Workdir, nodes: usize, words: &str, timeout_ms: u64) -> Vec<Job> {
    let port = free_port();
    let start = |node: usize| {
        let mut command = Command::new(MUSTER);
        let place = format!(
            "--rendezvous 127.0.0.1:{port} --nodes {nodes} --node-rank {node} --backend tcp \
             --ranks {} --timeout-ms {timeout_ms}",
            2 * nodes
        );
        command.arg("bench").args(words.split_whitespace()).args(place.split_whitespace());
        run.spawn({
            command.env_remove("MUSTER_SECRET");
            command
        })
    };
    let mut jobs: Vec<Job> = (0..nodes).map(start).collect();
    jobs.iter_mut().for_each(has_met);
    jobs
}

/// Waits until both ranks of a host have met the others, and for a moment in which they measure.
fn has_met(job: &mut Job) {
    loop {
        let workers = job.workers();
        if workers.len() == 2 && workers.iter().all(|&(_, pid)| watches(pid)) {
            break;
        }
        assert!(job.poll().is_none(), "it has ended early\n{}", job.so_far());
        std::thread::sleep(Duration::from_millis(20));
    }
    let begun = Instant::now();
    assert!(job.wait_until(|| begun.elapsed() > Duration::from_secs(2)), "it has ended early");
}

/// Whether a rank watches its peers, as it does once it has met them.
fn watches(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    tasks.filter_map(|task| name(task).ok()).any(|name| name.trim_end() == "watchdog")
}

/// A rank's process.
fn process(job: &Job, rank: usize) -> u32 {
    let found = job.workers().into_iter().find(|(number, _)| *number == rank);
    found.expect("it runs").1
}

/// The first error line of a host at the end.
fn headline(done: &Done) -> &str {
    assert_eq!(done.code(), Some(3), "{done}");
    done.stderr.lines().find(|line| line.starts_with("error: ")).expect("an error")
}

/// Stops all of host `frozen`, and returns what the others say.
fn freeze(jobs: Vec<Job>, frozen: usize) -> Vec<Done> {
    let mut all: Vec<u32> = jobs[frozen].workers().iter().map(|&(_, pid)| pid).collect();
    all.push(jobs[frozen].pid());
    all.iter().for_each(|&pid| send(pid, libc::SIGSTOP));
    let since = Instant::now();
    let (mut others, mut held) = (Vec::new(), Vec::new());
    for (node, job) in jobs.into_iter().enumerate() {
        match node == frozen {
            true => held.push(job),
            false => others.push(job.wait()),
        }
    }
    // A round takes longer, and so would its end.
    assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    others
}

#[test]
fn a_host_that_is_frozen_is_named_in_the_middle_of_a_long_round() {
    let run = Workdir::new("frozen-one");
    for done in freeze(hosts(&run, 3, ROUNDS, 2000), 1) {
        let said = "error: ranks 2 and 3 failed: no sign of life within 2000 ms in ";
        assert!(headline(&done).starts_with(said), "{done}");
        assert!(headline(&done).contains(" #"), "{done}");
        assert!(headline(&done).ends_with("or raise --timeout-ms)"), "{done}");
    }
}

/// Its supervisor, from which the others hear who is lost, is frozen with it.
#[test]
fn all_ranks_of_node_0_are_named_when_it_is_frozen() {
    let run = Workdir::new("frozen-zero");
    for done in freeze(hosts(&run, 3, ROUNDS, 2000), 0) {
        assert!(headline(&done).contains("ranks 0 and 1"), "{done}");
        assert!(headline(&done).contains(" #"), "{done}");
    }
}

/// Nobody on their host waits for them, who could say in which operation.
#[test]
fn of_all_ranks_of_a_host_that_stand_still_every_host_names_an_operation() {
    for frozen in [0, 1] {
        let run = Workdir::new(&format!("frozen-ranks-of-{frozen}"));
        let jobs = hosts(&run, 2, LONG, 3000);
        jobs[frozen].workers().iter().for_each(|&(_, pid)| send(pid, libc::SIGSTOP));
        let ranks = format!("ranks {} and {}", 2 * frozen, 2 * frozen + 1);
        for done in jobs.into_iter().map(Job::wait) {
            let said = format!("error: {ranks} failed: no sign of life ");
            assert!(headline(&done).starts_with(&said), "{done}");
            assert!(headline(&done).contains(" #"), "{done}");
        }
    }
}

#[test]
fn all_ranks_of_a_host_that_is_killed_are_named() {
    let run = Workdir::new("killed-host");
    let mut jobs = hosts(&run, 2, LONG, 30_000);
    // Its ranks die with it.
    let killed = jobs.remove(1);
    send(killed.pid(), libc::SIGKILL);
    let done = jobs.remove(0).wait();
    assert!(headline(&done).starts_with("error: ranks 2 and 3 failed: "), "{done}");
    drop(killed);
}

#[test]
fn of_a_rank_that_stands_still_every_host_names_an_operation() {
    for frozen in [0, 2] {
        let run = Workdir::new(&format!("frozen-rank-{frozen}"));
        let jobs = hosts(&run, 2, LONG, 3000);
        send(process(&jobs[frozen / 2], frozen), libc::SIGSTOP);
        for done in jobs.into_iter().map(Job::wait) {
            let said = format!("error: rank {frozen} failed: no sign of life within 3000 ms in ");
            assert!(headline(&done).starts_with(&said), "{done}");
            assert!(headline(&done).contains(" #"), "{done}");
        }
    }
}

#[test]
fn of_a_rank_that_was_killed_every_host_names_the_signal_and_the_last_operation() {
    let run = Workdir::new("frozen-killed");
    let jobs = hosts(&run, 2, LONG, 30_000);
    send(process(&jobs[1], 3), libc::SIGKILL);
    for done in jobs.into_iter().map(Job::wait) {
        let said = "error: rank 3 failed: killed by signal 9; the last operation it told of was ";
        assert!(headline(&done).starts_with(said), "{done}");
        assert!(headline(&done).contains(" #"), "{done}");
    }
}

#[test]
fn a_host_that_is_stopped_after_the_meeting_says_so_to_the_others() {
    for (stopped, signal, code) in
        [(0, libc::SIGINT, 130), (1, libc::SIGINT, 130), (1, libc::SIGTERM, 3)]
    {
        let run = Workdir::new(&format!("frozen-stopped-{stopped}-{signal}"));
        let mut jobs = hosts(&run, 2, LONG, 30_000);
        jobs[stopped].signal(signal);
        let done = jobs.remove(stopped).wait();
        assert_eq!(done.code(), Some(code), "{done}");
        let done = jobs.remove(0).wait();
        let said = format!("error: rank {} failed: it was asked to stop", 2 * stopped);
        assert_eq!(headline(&done), said, "{done}");
    }
}
