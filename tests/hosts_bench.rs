//! Benchmarks on several hosts, which are processes of one host here, and what is said where their
//! ranks do not meet or one is lost.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Job, MUSTER, Workdir, free_port, send};

/// A host of a benchmark, with more arguments.
fn host(run: &Workdir, words: &str, more: &str) -> Job {
    let mut command = Command::new(MUSTER);
    command.arg("bench").args(words.split(' ')).args(more.split(' ')).env_remove("MUSTER_SECRET");
    run.spawn(command)
}

fn place(port: u16, node: usize, nodes: usize) -> String {
    format!("--rendezvous 127.0.0.1:{port} --nodes {nodes} --node-rank {node} --backend tcp")
}

#[test]
fn what_can_be_raised_is_named_as_it_is_typed() {
    let run = Workdir::new("bench-waits");
    for (node, said) in [(0, "did not come within 1500 ms"), (1, "nobody answers at ")] {
        let more = format!("{} --timeout-ms 1500", place(free_port(), node, 2));
        let mut job = host(&run, "collectives barrier", &more);
        assert!(job.wait_until_it_says(said), "it has not been said");
        // Told when it is over, and not after the moment that node 0 stays for hosts that are late,
        // which it says.
        assert!(node > 0 || job.poll().is_none(), "it has stayed for nobody");
        let done = job.wait();
        assert_eq!(done.stderr.contains("node 0 stays for 2 s at most"), node == 0, "{done}");
        assert_eq!(done.code(), Some(3), "{done}");
        assert!(done.stderr.contains(said), "{done}");
        assert!(done.stderr.contains("or raise --timeout-ms"), "{done}");
        assert!(!done.stderr.contains("ranks.timeout_ms"), "{done}");
    }
}

#[test]
fn hosts_that_were_started_otherwise_are_told_in_what() {
    let run = Workdir::new("bench-differ");
    let six = "--ranks 6 --timeout-ms 20000";
    let bench = |port, node: usize, nodes: usize, words: &str, more: &str| {
        host(&run, words, &format!("{} {more}", place(port, node, nodes)))
    };
    let port = free_port();
    let counted = [2, 3]
        .into_iter()
        .enumerate()
        .map(|(node, nodes)| bench(port, node, nodes, "collectives barrier", six));
    let counted = counted.collect::<Vec<_>>();
    let port = free_port();
    let sized = [1024, 2048].into_iter().enumerate().map(|(node, most)| {
        bench(port, node, 2, "collectives all_reduce", &format!("--max {most} --ranks 2"))
    });
    let sized = sized.collect::<Vec<_>>();
    let port = free_port();
    let words = ["collectives barrier", "links --messages 2"].into_iter().enumerate();
    let other = words.map(|(node, words)| bench(port, node, 2, words, "--ranks 2"));
    let port = free_port();
    let overlapped = ["", " --overlap"].into_iter().enumerate().map(|(node, more)| {
        bench(port, node, 2, "collectives all_reduce", &format!("--max 1KiB --ranks 2{more}"))
    });
    let overlapped = overlapped.collect::<Vec<_>>();
    let port = free_port();
    let train = format!("{} --ranks 2", place(port, 0, 2));
    let trains = run.start(&train.split(' ').collect::<Vec<_>>());
    let trained = vec![trains, bench(port, 1, 2, "links --messages 2", "--ranks 2")];
    for (jobs, said) in [
        (counted, "node 1 was started as one of 3 nodes, node 0 as one of 2; give every host the"),
        (
            sized,
            "the ranks differ in --max of the arguments of muster bench: 1024 on rank 0, 2048 on \
             rank 1; start every rank with the same",
        ),
        (
            other.collect(),
            "the ranks differ in command: muster bench collectives on rank 0, muster bench links \
             on rank 1; start",
        ),
        (
            overlapped,
            "the ranks differ in --overlap of the arguments of muster bench: not given on rank 0, \
             given on rank 1; start",
        ),
        (
            trained,
            "the ranks differ in command: muster train on rank 0, muster bench links on rank 1; \
             start every rank with the same command",
        ),
    ] {
        for done in jobs.into_iter().map(Job::wait) {
            assert_eq!(done.code(), Some(2), "{done}");
            assert!(done.stderr.contains(said), "{said}\n{done}");
        }
    }
}

/// A host whose only rank was killed hears nothing from the others, and knows what that did last.
#[test]
fn of_a_rank_that_was_killed_every_host_names_an_operation() {
    let run = Workdir::new("bench-killed");
    let port = free_port();
    // Longer than anybody waits.
    let words =
        "collectives all_reduce --max 64 --seconds 600 --within 0.0001 --iterations 999999999";
    let start = |node| host(&run, words, &format!("{} --ranks 2", place(port, node, 2)));
    let [first, mut second] = [0, 1].map(start);
    while second.poll().is_none() && second.workers().is_empty() {}
    let begun = Instant::now();
    assert!(second.wait_until(|| begun.elapsed() > Duration::from_secs(4)), "it has ended");
    send(second.workers()[0].1, libc::SIGKILL);
    let [first, second] = [first, second].map(Job::wait);
    for done in [&first, &second] {
        assert_eq!(done.code(), Some(3), "{done}");
        let (_, said) = done.stderr.split_once("error: rank 1 failed: ").expect("named");
        let (headline, advice) = said.split_once('\n').unwrap();
        assert!(headline.contains(" #"), "{done}");
        assert!(advice.contains("Start all hosts again"), "{done}");
    }
    let last = "rank 1 failed: killed by signal 9; the last operation it told of was ";
    assert!(second.stderr.contains(last), "{second}");
}
