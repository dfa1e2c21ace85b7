//! Runs that keep checkpoints in a directory of each host: they go on from there, with the bits of
//! one that was left alone, when a rank or a whole host is lost. Hosts are processes in directories
//! of their own here, under a path that is the same for all.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use common::{Job, MUSTER, Workdir, free_port, send, steps};

/// So that no checkpoint on the disk comes in between.
const RUN: [&str; 4] = ["--set", "train.steps=40", "--set", "checkpoint.every=0"];

/// Local checkpoints in `near` of wherever a host's processes are.
const LOCAL: [&str; 4] =
    ["--set", "checkpoint.local={dir: /proc/self/cwd/near, every: 3}", "--set", "ranks.restarts=3"];

/// The directories of local checkpoints on a host.
fn kept(run: &Workdir, host: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(run.path().join(host).join("near")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_rank_that_is_lost_goes_on_from_memory_of_its_host() {
    let run = Workdir::new("local-rank");
    let undisturbed = run.digest("alone", &["--ranks", "3", "--set", "train.steps=40"]);
    let mut job = run.start(&[&RUN[..], &LOCAL, &["--ranks", "3"]].concat());
    assert!(job.wait_until(|| !run.events_of(&run.name, "saved_locally").is_empty()));
    let from = run.events_of(&run.name, "saved_locally")[0]["step"].as_u64().unwrap();
    steps(&run, &mut job, from as usize + 4);
    let [kept] = &kept(&run, ".")[..] else { panic!("{:?}", kept(&run, ".")) };
    assert!(kept.starts_with("muster-"), "{kept}");
    send(job.workers()[1].1, libc::SIGKILL);
    let done = job.wait();
    assert_eq!(done.code(), Some(0), "{done}");
    let resumed = run.events_of(&run.name, "resumed");
    let path = resumed[0]["path"].as_str().unwrap();
    assert!(path.contains("/near/muster-") && path.contains("/step-000000"), "{path}");
    assert!(resumed[0]["step"].as_u64().unwrap() >= from, "{done}");
    assert!(done.stdout.contains(" | saved on every host ("), "{done}");
    assert_eq!(run.final_digest(&run.name), undisturbed);
    // Its last checkpoint lies with the others.
    assert!(self::kept(&run, ".").is_empty());
}

#[test]
fn without_a_host_the_others_go_on_from_the_copies_of_its_files() {
    let run = Workdir::new("local-host");
    let undisturbed = run.digest("alone", &["--set", "train.steps=40"]);
    let port = free_port();
    let start = |node: usize| -> Job {
        let dir = format!("node{node}");
        fs::create_dir(run.path().join(&dir)).unwrap();
        for name in ["run.yaml", "text.txt", "runs"] {
            symlink(format!("../{name}"), run.path().join(&dir).join(name)).unwrap();
        }
        let place = format!(
            "--rendezvous 127.0.0.1:{port} --nodes 3 --node-rank {node} --ranks 3 --backend tcp \
             --set ranks.min_hosts=2 --set ranks.host_wait_ms=500 --set ranks.host_timeout_ms=2000"
        );
        let mut command = Command::new("sh");
        command.args(["-c", "cd $0 && exec \"$@\"", &dir, MUSTER, "train", "run.yaml"]);
        command.args(place.split(' ')).args(RUN).args(LOCAL);
        run.spawn(command)
    };
    fs::create_dir_all(run.path().join("runs")).unwrap();
    let mut jobs: Vec<Job> = (0..3).map(start).collect();
    assert!(jobs[0].wait_until(|| !run.events_of(&run.name, "saved_locally").is_empty()));
    let from = run.events_of(&run.name, "saved_locally")[0]["step"].as_u64().unwrap();
    send(jobs[1].pid(), libc::SIGKILL);
    drop(jobs.remove(1));
    // With it its memory is gone.
    let done: Vec<_> = jobs.into_iter().map(Job::wait).collect();
    done.iter().for_each(|done| assert_eq!(done.code(), Some(0), "{done}"));
    let resumed = run.events_of(&run.name, "resumed");
    assert!(resumed[0]["path"].as_str().unwrap().contains("/near/muster-"), "{resumed:?}");
    assert!(resumed[0]["step"].as_u64().unwrap() >= from, "{resumed:?}");
    assert_eq!(run.final_digest(&run.name), undisturbed);
}
