//! Ranks that fail are started again by `muster train` itself, from the newest checkpoint, and the
//! run ends with the bits of one that was left alone.

mod common;

use common::{LONG, Workdir, send, steps};

#[test]
fn ranks_that_are_killed_start_again_and_the_bits_are_the_same() {
    let run = Workdir::new("restart-killed");
    let undisturbed = run.digest("alone", &["--ranks", "2", "--set", "train.steps=40"]);
    let every = ["--ranks", "2", "--set", "train.steps=40", "--set", "checkpoint.every=5"];
    // The save of step 5 is there when step 7 is told, however slow the disk is.
    let more = ["--set", "ranks.restarts=2", "--set", "checkpoint.mode=sync"];
    let mut job = run.start(&[&every[..], &more].concat());
    steps(&run, &mut job, 7);
    send(job.workers()[1].1, libc::SIGKILL);
    let restarts = || run.events_of(&run.name, "restarting");
    assert!(job.wait_until(|| restarts().len() == 1));
    let done = job.wait();
    assert_eq!(done.code(), Some(0), "{done}");
    let words = [
        "rank 1 failed: killed by signal 9; its last step was ",
        "starting again in 1 s from the newest checkpoint (1 of 2 times until the next one is ",
        "resuming after step 5 from ",
    ];
    for words in words {
        assert!(done.stdout.contains(words), "{words}: {done}");
    }
    assert_eq!(run.final_digest(&run.name), undisturbed);
}

#[test]
fn the_same_failure_at_the_same_step_ends_the_run_with_the_reason() {
    let run = Workdir::new("restart-same");
    let args = ["--ranks", "2", "--set", "ranks.restarts=9", "--set", "checkpoint.every=3"];
    let limit = ["--set", "ranks.step_timeout_ms=1500", "--set", "checkpoint.mode=sync"];
    let mut command = run.command(&[&LONG[..], &args, &limit].concat());
    // No save gets past it.
    command.env("MUSTER_SLOW_DISK", "fsync,rank-00001,60000");
    let done = run.spawn(command).wait();
    assert_eq!(done.code(), Some(3), "{done}");
    let twice = "It was the same failure twice after step 3, so the ranks were not started again.";
    assert!(done.stderr.contains(twice), "{done}");
    assert_eq!(run.events_of(&run.name, "restarting").len(), 1, "{done}");
}

#[test]
fn who_asks_it_to_stop_meanwhile_need_not_wait() {
    let run = Workdir::new("restart-stop");
    let args = ["--ranks", "2", "--set", "ranks.restarts=9", "--set", "checkpoint.every=2"];
    let mut job = run.start(&[&LONG[..], &args].concat());
    steps(&run, &mut job, 3);
    send(job.workers()[0].1, libc::SIGKILL);
    assert!(job.wait_until(|| run.events_of(&run.name, "restarting").len() == 1));
    job.signal(libc::SIGTERM);
    let done = job.wait();
    // As a scheduler that asks a run to end expects: to be started again.
    assert_eq!(done.code(), Some(75), "{done}");
    assert!(done.stdout.contains("rank 0 failed: killed by signal 9"), "{done}");
}

/// Two that start each other off would go on for ever.
#[test]
fn who_is_fenced_off_ends_and_is_not_started_again() {
    let run = Workdir::new("restart-fenced");
    let args = ["--ranks", "2", "--set", "ranks.restarts=9", "--set", "checkpoint.every=1"];
    let mut job = run.start(&[&LONG[..], &args].concat());
    steps(&run, &mut job, 3);
    // As a later start of the job does, whose lock did not hold this one off.
    let store = checkpoint::Store::new(run.run_dir(&run.name).join("checkpoints"));
    assert_eq!(store.claim_generation().unwrap(), 2);
    let done = job.wait();
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(done.stderr.contains("let one of the two go on, or give this one a name"), "{done}");
    assert_eq!(run.events_of(&run.name, "restarting").len(), 0, "{done}");
}

#[test]
fn a_run_does_not_go_on_from_another_ones_checkpoint_in_a_store_of_both() {
    let run = Workdir::new("restart-stranger");
    let store = format!("checkpoint.store={}", run.path().join("store").display());
    let args = ["--max-steps", "2", "--set", &store];
    let done = run.train(&args);
    assert_eq!(done.code(), Some(0), "{done}");
    let done = run.train(&[&args[..], &["--name", "other"]].concat());
    assert_eq!(done.code(), Some(2), "{done}");
    let said = "was saved by the run `restart-stranger`, not by `other`: give this run a directory";
    assert!(done.stderr.contains(said), "{done}");
    // Its advice can be followed.
    let newest = run.path().join("store/step-00000002.g0001");
    let own = format!("checkpoint.store={}", run.path().join("own").display());
    let done = run.train(&["--name", "other", "--set", &own, "--resume", newest.to_str().unwrap()]);
    assert_eq!(done.code(), Some(0), "{done}");
}
