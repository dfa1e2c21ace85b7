//! Signals by which terminals and schedulers end a run: it saves, and asks to be started again.

mod common;

use std::process::Command;

use common::{Job, Workdir, send};

/// Steps enough that a run does not end by itself meanwhile.
const LONG: [&str; 4] = ["--set", "train.steps=1000000", "--ranks", "2"];

fn steps(run: &Workdir, job: &mut Job, count: usize) {
    let steps_of = || run.events_of(&run.name, "step").len();
    let before = steps_of();
    assert!(job.wait_until(|| steps_of() >= before + count), "the run has ended early");
}

#[test]
fn what_ends_a_job_saves_it_first() {
    let cases = [
        ("hup", libc::SIGHUP, "usr1"),
        ("xcpu", libc::SIGXCPU, "usr1"),
        ("usr1", libc::SIGUSR1, "usr1"),
        ("usr2", libc::SIGUSR2, "usr2"),
    ];
    for (name, signal, warn) in cases {
        for to_worker in [false, true] {
            let run = Workdir::new(&format!("signal-{name}-{to_worker}"));
            let set = format!("ranks.warn_signal={warn}");
            let mut job = run.start(&[&LONG[..], &["--set", &set]].concat());
            steps(&run, &mut job, 2);
            match to_worker {
                true => send(job.workers()[1].1, signal),
                false => job.signal(signal),
            }
            let done = job.wait();
            assert_eq!(done.code(), Some(75), "{name}: {done}");
            assert_eq!(run.finished(&run.name)["reason"], "terminated");
            assert_eq!(run.verify(&run.name), 1);
        }
    }
}

#[test]
fn a_signal_that_nobody_asked_for_is_not_caught() {
    use std::os::unix::process::ExitStatusExt;
    let run = Workdir::new("signal-none");
    let mut job = run.start(&[&LONG[..], &["--set", "ranks.warn_signal=none"]].concat());
    steps(&run, &mut job, 2);
    job.signal(libc::SIGUSR1);
    let done = job.wait();
    assert_eq!(done.status.signal(), Some(libc::SIGUSR1), "{done}");
}

#[test]
fn nohup_holds() {
    let run = Workdir::new("signal-nohup");
    let mut command = Command::new("nohup");
    command.args([common::MUSTER, "train", "run.yaml"]).args(LONG);
    let mut job = run.spawn(command);
    steps(&run, &mut job, 2);
    job.signal(libc::SIGHUP);
    send(job.workers()[0].1, libc::SIGHUP);
    steps(&run, &mut job, 20);
    job.signal(libc::SIGTERM);
    let done = job.wait();
    assert_eq!(done.code(), Some(75), "{done}");
}

#[test]
fn a_warning_before_training_asks_to_be_started_again() {
    let run = Workdir::new("signal-early");
    // Text enough for a while of reading and tokenizing.
    let text = "fn main() { println!(); }\n".repeat(4_000_000);
    std::fs::write(run.path().join("text.txt"), text).unwrap();
    let data = run.run_dir(&run.name).join("data");
    for signal in [libc::SIGHUP, libc::SIGUSR1] {
        let mut job = run.start(&[]);
        let begun = job.wait_until(|| data.read_dir().is_ok_and(|mut dir| dir.next().is_some()));
        assert!(begun, "it has ended early");
        job.signal(signal);
        let done = job.wait();
        assert_eq!(done.code(), Some(75), "{done}");
        assert_eq!(done.stderr, "stopped before training began\n");
    }
}
