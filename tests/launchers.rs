//! Tasks of launchers, by the environment that these give: what is found is said in one line, what
//! is wrong is named, and the tasks of a job meet. Real launchers run in `launch/test_*.sh`.

mod common;

use std::process::Command;

use common::{Job, MUSTER, Workdir, free_port, message};

/// Starts a task of torchrun's on this machine, whose agent would listen at `port`.
fn torchrun(run: &Workdir, port: u16, task: usize, of: usize, words: &str) -> Job {
    let mut command = Command::new(MUSTER);
    command.args(words.split(' '));
    for (name, value) in [
        ("RANK", task),
        ("LOCAL_RANK", task),
        ("WORLD_SIZE", of),
        ("LOCAL_WORLD_SIZE", of),
        ("MASTER_PORT", port.into()),
    ] {
        command.env(name, value.to_string());
    }
    command.env("MASTER_ADDR", "localhost").env("TORCHELASTIC_RUN_ID", format!("id-{port}"));
    run.spawn(command)
}

/// Where the tasks meet whose agent listens at `port`.
fn meeting(port: u16) -> u16 {
    20_000 + port % 10_000
}

#[test]
fn tasks_meet_without_a_flag_and_each_is_a_rank() {
    let run = Workdir::new("launchers-meet");
    let expected = run.digest("one", &[]);
    let port = free_port();
    let jobs = [0, 1].map(|task| torchrun(&run, port, task, 2, "train run.yaml --backend tcp"));
    for (task, done) in jobs.map(Job::wait).into_iter().enumerate() {
        assert_eq!(done.code(), Some(0), "{done}");
        let line = format!(
            "started by torchrun as task {task} of 2, all on this machine (RANK={task}, \
             WORLD_SIZE=2, LOCAL_WORLD_SIZE=2); all meet at 127.0.0.1:{} (MASTER_ADDR=localhost, \
             MASTER_PORT={port})\n",
            meeting(port)
        );
        assert!(done.stdout.starts_with(&line), "{line}{done}");
    }
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn tasks_measure_together() {
    let run = Workdir::new("launchers-bench");
    let (port, words) = (free_port(), "bench collectives barrier --backend tcp --seconds 0.1");
    let jobs = [0, 1].map(|task| torchrun(&run, port, task, 2, words));
    for done in jobs.map(Job::wait) {
        assert_eq!(done.code(), Some(0), "{done}");
        assert!(done.stderr.starts_with("started by torchrun as task "), "{done}");
    }
}

#[test]
fn a_dry_run_says_what_was_found() {
    let run = Workdir::new("launchers-dry");
    let words = "train run.yaml --backend tcp --ranks 4 --dry-run";
    let done = torchrun(&run, 29500, 0, 2, words).wait();
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(done.stdout.starts_with("started by torchrun as task 0 of 2,"), "{done}");
}

#[test]
fn mistakes_name_the_variables_or_the_flags() {
    let run = Workdir::new("launchers-wrong");
    let told = |job: Job| {
        let done = job.wait();
        assert_eq!(done.code(), Some(2), "{done}");
        message(&run, &done, &[])
    };
    let beyond = told(torchrun(&run, 29500, 2, 2, "train run.yaml --backend tcp"));
    insta::assert_snapshot!(beyond, @"error: RANK=2 is not among WORLD_SIZE=2 (from torchrun): numbers run from 0 to one less; start with torchrun again, or leave the environment alone with --launcher none");
    let shm = told(torchrun(&run, 29500, 0, 2, "train run.yaml"));
    insta::assert_snapshot!(shm, @r"
    error: ranks share memory only with those that the same process starts, and a launcher started several here; use --backend tcp, or one task per machine
    node 0 will not start; telling the other hosts at 127.0.0.1:29500 for 10 s at most, so that they need not wait
    ");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let at = format!("train run.yaml --backend tcp --rendezvous 127.0.0.1:{port}");
    let done = torchrun(&run, 29500, 0, 2, &at).wait();
    assert_eq!(done.code(), Some(2), "{done}");
    let taken = format!("error: --rendezvous 127.0.0.1:{port}: cannot listen at");
    assert!(done.stderr.contains(&taken), "{done}");
}

#[test]
fn two_jobs_at_one_meeting_point_are_told_apart() {
    let run = Workdir::new("launchers-two");
    let at = free_port();
    let words = format!(
        "train run.yaml --backend tcp --rendezvous 127.0.0.1:{at} --set ranks.timeout_ms=4000"
    );
    // A task of another job comes to the first one's address.
    let (first, second) = (free_port(), free_port());
    let waits = torchrun(&run, first, 0, 2, &words);
    let strays = torchrun(&run, second, 1, 2, &words).wait();
    assert_eq!(strays.code(), Some(2), "{strays}");
    let (ours, theirs) = (format!("torchrun-id-{first}"), format!("torchrun-id-{second}"));
    let what = format!("a worker of job `{theirs}` came to job `{ours}`; ");
    assert!(strays.stderr.contains(&what), "{strays}");
    let waits = waits.wait();
    assert_eq!(waits.code(), Some(3), "{waits}");
    let what = format!("turned away: a worker of job `{theirs}` from 127.0.0.1");
    assert!(waits.stderr.contains(&what), "{waits}");
}
