//! Ranks that keep to their share of the CPUs: on this host, described as one of two NUMA nodes.

mod common;

use std::path::Path;
use std::process::Command;

use common::cpus::{list, two_cpus, two_nodes};
use common::{LONG, Workdir, steps};
use serde_json::Value;

/// The CPUs that each thread of a process may use, by `/proc`: each list once.
fn allowed(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut lists: Vec<String> = threads.filter_map(|thread| list(&thread.path())).collect();
    lists.sort_unstable();
    lists.dedup();
    lists
}

const WORDS: &str = "bound: rank 0 in NUMA node 0, rank 1 in NUMA node 1";

#[test]
fn every_thread_of_a_rank_keeps_to_its_node() {
    let Some(cpus) = two_cpus() else { return };
    for backend in ["shm", "tcp"] {
        let run = Workdir::new("cpus-bound");
        let host = two_nodes(&run, &cpus);
        let more = ["--ranks", "2", "--threads", "2", "--backend", backend];
        let mut job = run.start(&[&LONG[..], &more, &host].concat());
        steps(&run, &mut job, 2);
        let workers = job.workers();
        assert_eq!(workers.len(), 2);
        for (rank, pid) in workers {
            assert_eq!(allowed(pid), [cpus[rank].as_str()], "rank {rank} over {backend}");
        }
        // The supervisor, which prepares data, keeps what it had.
        assert_eq!(allowed(job.pid()), [list(Path::new("/proc/self")).unwrap()]);
    }
}

#[test]
fn weights_are_the_same_bound_and_unbound_and_the_header_says_which() {
    let Some(cpus) = two_cpus() else { return };
    let run = Workdir::new("cpus-bits");
    let host = two_nodes(&run, &cpus);
    let said = |name: &str| run.events_of(name, "header")[0]["cpus"].as_str().unwrap().to_owned();
    let ranks = ["--ranks", "2"];
    let bound = run.digest("bound", &[&ranks[..], &host].concat());
    assert_eq!(said("bound"), WORDS);
    let free = run.digest("free", &[&ranks[..], &host, &["--cpus", "any"]].concat());
    assert_eq!(said("free"), "not bound: as asked");
    let key = ["--set", "ranks.cpus=any"];
    assert_eq!(run.digest("key", &[&ranks[..], &host, &key].concat()), free);
    assert_eq!(said("key"), "not bound: as asked");
    let crowd = run.digest("crowd", &[&["--ranks", "4"][..], &host].concat());
    assert_eq!(said("crowd"), "not bound: 4 ranks outnumber 2 cores");
    assert_eq!([&free, &crowd], [&bound; 2]);
    // Nothing describes nodes there, and one rank has nothing to divide.
    let nowhere = ["--ranks", "2", "--topology", "nowhere"];
    assert_eq!(run.digest("nowhere", &nowhere), bound);
    assert_eq!(said("nowhere"), "not bound: no NUMA node is known that has CPUs for them");
    let header = run.train(&[&ranks[..], &host, &["--dry-run"]].concat());
    assert!(header.stdout.contains(&format!("cpus       {WORDS}\n")), "{header}");
}

#[test]
fn a_benchmark_tells_what_was_bound() {
    let Some(cpus) = two_cpus() else { return };
    let run = Workdir::new("cpus-bench");
    let host = two_nodes(&run, &cpus);
    let measure = |more: &[&str]| {
        let args = "bench collectives barrier --ranks 2 --threads 1 --seconds 0.02 --json r.json";
        let mut command = Command::new(common::MUSTER);
        command.args(args.split(' ')).args(host).args(more);
        let done = run.spawn(command).wait();
        assert_eq!(done.code(), Some(0), "{done}");
        let text = std::fs::read_to_string(run.path().join("r.json")).unwrap();
        let report: Value = serde_json::from_str(&text).unwrap();
        let line = format!("# cpus {}\n", report["cpus"].as_str().unwrap());
        assert!(done.stdout.contains(&line), "{done}");
        report
    };
    let bound = measure(&[]);
    assert_eq!(bound["cpus"], WORDS);
    assert_eq!(bound["hosts"][0]["cpus"], serde_json::json!(cpus));
    let free = measure(&["--cpus", "any"]);
    assert_eq!(free["cpus"], "not bound: as asked");
    let all = list(Path::new("/proc/self")).unwrap();
    assert_eq!(free["hosts"][0]["cpus"], serde_json::json!([all, all]));
}
