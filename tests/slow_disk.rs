//! Disks that are slow, or hang: their ranks are waited for, but not for ever.

mod common;

use std::process::Command;

use common::{Done, Workdir};

const RANKS: [&str; 4] = ["--ranks", "2", "--set", "ranks.timeout_ms=2000"];

/// The run's command, with calls to the disk that take longer: an action, a part of a path and
/// milliseconds.
fn slow(run: &Workdir, args: &[&str], calls: &str) -> Command {
    let mut command = run.command(&[&RANKS[..], args].concat());
    command.env("MUSTER_SLOW_DISK", calls);
    command
}

fn warnings(run: &Workdir) -> Vec<String> {
    let warnings = run.events_of(&run.name, "warning");
    warnings.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_call_longer_than_the_timeout_is_waited_for_and_told() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new(&format!("slow-disk-{backend}"));
        let mut steps = 0;
        // A rank's files; the commit, while the others wait for its outcome; loading.
        for calls in ["fsync,rank-00001,5000", "link,COMMIT,5000", "read,rank-00001,5000"] {
            steps += 2;
            let most = steps.to_string();
            // Nothing is removed, and so nothing read back slowly.
            let keep = ["--set", "checkpoint.keep=0"];
            let args = [&["--backend", backend, "--max-steps", &most][..], &keep].concat();
            let before = warnings(&run).len();
            let done = run.spawn(slow(&run, &args, calls)).wait();
            assert_eq!(done.code(), Some(0), "{calls}: {done}");
            let told = warnings(&run).split_off(before);
            let (action, _) = calls.split_once(',').unwrap();
            let action = format!(": {action} of ");
            let says = |line: &String| {
                line.contains(" waits for the disk while") && line.contains(&action)
            };
            assert!(told.iter().any(says), "{calls}: {told:?}");
        }
        assert_eq!(run.verify(&run.name), 3);
    }
}

/// Which rank it is is told, and the others neither wait for it nor take it for lost.
#[test]
fn a_rank_whose_disk_is_slow_is_named_while_training_goes_on() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new(&format!("slow-disk-beside-{backend}"));
        let args = ["--backend", backend, "--set", "train.steps=9", "--set", "checkpoint.keep=0"];
        let args = [&args[..], &["--set", "checkpoint.every=3"]].concat();
        let done = run.spawn(slow(&run, &args, "fsync,rank-00001/shard-000.safe,3500")).wait();
        assert_eq!(done.code(), Some(0), "{done}");
        let told = warnings(&run);
        let says = |line: &String| {
            line.starts_with("rank 1 waits for the disk") && line.contains(": fsync of ")
        };
        assert!(told.iter().any(says), "{told:?}");
        // The steps after the first save did not wait for it.
        let steps = run.steps_and_saves(&run.name);
        let first = steps.iter().position(|(_, is_saved)| *is_saved).unwrap();
        assert!(steps[..first].contains(&(5, false)), "{steps:?}");
        assert_eq!(steps[first], (3, true), "{steps:?}");
        assert_eq!(run.verify(&run.name), 3);
    }
}

fn first_line(done: &Done) -> &str {
    done.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default()
}

#[test]
fn a_disk_that_hangs_ends_the_run_and_is_named() {
    let run = Workdir::new("slow-disk-hangs");
    let args = ["--max-steps", "2", "--set", "ranks.step_timeout_ms=4000"];
    let done = run.spawn(slow(&run, &args, "fsync,rank-00001,100000000")).wait();
    assert_eq!(done.code(), Some(3), "{done}");
    let line = first_line(&done);
    assert!(line.starts_with("error: rank 1 failed: a call to the disk has lasted "), "{done}");
    assert!(line.contains(" s: fsync of ") && line.contains("rank-00001"), "{done}");
    assert!(
        line.contains(
            " while it was saving a checkpoint (see whether that disk answers, or raise \
             ranks.step_timeout_ms)"
        ),
        "{done}"
    );
}
