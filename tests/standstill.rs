//! Runs that stand still: a rank, all of them, their supervisor, the whole job.
//!
//! A rank that says nothing is named and ended; time in which the job was stopped is nobody's
//! fault.

mod common;

use std::time::{Duration, Instant};

use common::{Done, Job, Workdir, send};

/// Steps enough that a run does not end by itself meanwhile.
const LONG: [&str; 2] = ["--set", "train.steps=1000000"];

const SHORT_TIMEOUT: [&str; 2] = ["--set", "ranks.timeout_ms=2000"];

/// More than a supervisor with that timeout waits for a silent rank.
const LONGER: Duration = Duration::from_millis(7000);

fn steps_of(run: &Workdir) -> usize {
    run.events_of(&run.name, "step").len()
}

/// Waits until the run has taken `count` steps more.
fn steps(run: &Workdir, job: &mut Job, count: usize) {
    let before = steps_of(run);
    let done = job.wait_until(|| steps_of(run) >= before + count);
    assert!(done, "the run has ended early");
}

/// A message with its durations replaced.
fn masked(text: &str) -> String {
    let mut words: Vec<&str> = text.trim_end().split(' ').collect();
    for at in 1..words.len() {
        if words[at - 1] == "for" && words[at].parse::<u64>().is_ok() {
            words[at] = "N";
        }
    }
    words.join(" ")
}

/// The first error line for the user.
fn headline(done: &Done) -> String {
    let line = done.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    let line = common::without_operation(line);
    let (line, step) = line.split_once(" last step was ").expect("a last step");
    assert!(step.parse::<u64>().is_ok(), "{done}");
    masked(line)
}

#[test]
fn ranks_that_all_hang_are_named() {
    for ranks in ["1", "2"] {
        let run = Workdir::new(&format!("still-all-{ranks}"));
        let mut job = run.start(&[&LONG[..], &SHORT_TIMEOUT, &["--ranks", ranks]].concat());
        steps(&run, &mut job, 3);
        let stopped = Instant::now();
        job.workers().iter().for_each(|&(_, pid)| send(pid, libc::SIGSTOP));
        let done = job.wait();
        assert!(stopped.elapsed() < Duration::from_secs(40), "{:?}", stopped.elapsed());
        assert_eq!(done.code(), Some(3), "{done}");
        let text = headline(&done);
        let who = if ranks == "1" { ("rank 0", "its") } else { ("ranks 0 and 1", "their") };
        let expected = format!(
            "error: {} failed: no sign of life for N ms (see what it is doing, or raise \
             ranks.timeout_ms); {}",
            who.0, who.1
        );
        assert_eq!(text, expected, "{done}");
    }
}

#[test]
fn a_rank_that_hangs_cannot_ignore_a_stop() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let run = Workdir::new(&format!("still-stop-{signal}"));
        // The timeout is a minute.
        let mut job = run.start(&LONG);
        steps(&run, &mut job, 3);
        send(job.workers()[0].1, libc::SIGSTOP);
        job.signal(signal);
        let asked = Instant::now();
        let done = job.wait();
        assert!(asked.elapsed() < Duration::from_secs(40), "{:?}", asked.elapsed());
        assert_eq!(done.code(), Some(3), "{done}");
        insta::allow_duplicates! {
            insta::assert_snapshot!(headline(&done), @"error: rank 0 failed: no sign of life for N ms, and the run was asked to stop; its");
        }
    }
}

/// Stops a thread, such as the one that computes, and leaves the others of its process alone. Until
/// this thread lets go of it, SIGKILL does not end the process either, as in a file system that
/// hangs.
fn hold(thread: u32) -> bool {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: system calls without memory, on a process that the test has started.
    unsafe {
        libc::ptrace(libc::PTRACE_SEIZE, thread as libc::pid_t, null, null) == 0
            && libc::ptrace(libc::PTRACE_INTERRUPT, thread as libc::pid_t, null, null) == 0
    }
}

#[test]
fn a_rank_that_is_alive_and_does_nothing_is_told_and_ended_where_so_configured() {
    for limit in [0, 4000] {
        let run = Workdir::new(&format!("still-stuck-{limit}"));
        let set = format!("ranks.step_timeout_ms={limit}");
        let mut job = run.start(&[&LONG[..], &SHORT_TIMEOUT, &["--set", &set]].concat());
        steps(&run, &mut job, 3);
        if !hold(job.workers()[0].1) {
            return common::skip("other processes cannot be traced here");
        }
        let told = || !run.events_of(&run.name, "warning").is_empty();
        assert!(job.wait_until(told), "it was not told");
        let warning =
            run.events_of(&run.name, "warning")[0]["message"].as_str().unwrap().to_owned();
        insta::allow_duplicates! {
            insta::assert_snapshot!(masked(&warning), @"rank 0 is alive, but without progress for N s; a step may take long, so it goes on; Ctrl-C twice stops at once, and ranks.step_timeout_ms sets a limit");
        }
        if limit == 0 {
            // Twice the time in which silence would have ended it.
            std::thread::sleep(2 * LONGER);
            assert!(job.poll().is_none());
            assert_eq!(run.events_of(&run.name, "warning").len(), 1);
            job.signal(libc::SIGINT);
            std::thread::sleep(Duration::from_millis(300));
            job.signal(libc::SIGINT);
            assert_eq!(job.wait().code(), Some(130));
            continue;
        }
        let done = job.wait();
        assert_eq!(done.code(), Some(3), "{done}");
        insta::assert_snapshot!(headline(&done), @"error: rank 0 failed: alive, but without progress for N ms (see what it is doing, or raise ranks.step_timeout_ms), and its process cannot be killed; its");
    }
}

/// Ends a run that goes on, and sees that it is saved.
fn ends_well(run: &Workdir, mut job: Job) {
    steps(run, &mut job, 2);
    job.signal(libc::SIGTERM);
    let done = job.wait();
    assert_eq!(done.code(), Some(75), "{done}");
    assert_eq!(run.finished(&run.name)["reason"], "terminated", "{done}");
    assert_eq!(run.verify(&run.name), 1);
}

#[test]
fn a_supervisor_that_was_stopped_goes_on_and_its_ranks_did_meanwhile() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new(&format!("still-supervisor-{backend}"));
        let place = ["--ranks", "2", "--backend", backend];
        let mut job = run.start(&[&LONG[..], &SHORT_TIMEOUT, &place].concat());
        steps(&run, &mut job, 3);
        job.signal(libc::SIGSTOP);
        std::thread::sleep(2 * LONGER);
        let before = steps_of(&run);
        job.signal(libc::SIGCONT);
        // The lines that a pipe holds are told at once, and the rest of them when all was done.
        steps(&run, &mut job, 1000);
        assert!(before > 0);
        ends_well(&run, job);
    }
}

#[test]
fn a_job_that_was_stopped_as_a_whole_goes_on() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new(&format!("still-whole-{backend}"));
        let place = ["--ranks", "3", "--backend", backend];
        let mut job = run.start(&[&LONG[..], &SHORT_TIMEOUT, &place].concat());
        // In the middle of the meeting, then of steps.
        for meets in [true, false] {
            match meets {
                true => assert!(job.wait_until(|| true)),
                false => steps(&run, &mut job, 3),
            }
            while job.workers().len() < 3 {
                assert!(job.poll().is_none(), "it has ended early");
            }
            let mut all: Vec<u32> = job.workers().iter().map(|&(_, pid)| pid).collect();
            all.push(job.pid());
            all.iter().for_each(|&pid| send(pid, libc::SIGSTOP));
            std::thread::sleep(LONGER);
            // Whoever wakes first must not take the others for dead.
            for &pid in &all {
                send(pid, libc::SIGCONT);
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        ends_well(&run, job);
    }
}

/// Stops a thread of a process, by its name.
fn hold_thread(pid: u32, name: &str) -> Option<libc::pid_t> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let is_named = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|found| found.trim_end() == name)
    };
    let path = tasks.map(|task| task.path()).find(is_named)?;
    let thread: u32 = path.file_name()?.to_str()?.parse().ok()?;
    hold(thread).then_some(thread as libc::pid_t)
}

#[test]
fn a_thread_that_hangs_does_not_keep_a_run_from_its_end() {
    for (backend, name) in [("shm", "watchdog"), ("tcp", "watchdog"), ("shm", "control")] {
        let run = Workdir::new(&format!("still-thread-{backend}-{name}"));
        let mut job = run.start(&[&LONG[..], &["--ranks", "2", "--backend", backend]].concat());
        steps(&run, &mut job, 3);
        let Some(thread) = hold_thread(job.workers()[1].1, name) else {
            return common::skip("other processes cannot be traced here");
        };
        job.signal(libc::SIGINT);
        // Whoever traces a thread also collects it, or its process never goes.
        let collected = || {
            // SAFETY: a system call without memory, on a thread that the test traces.
            unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
            false
        };
        job.wait_until(collected);
        let done = job.wait();
        assert_eq!(done.code(), Some(0), "{backend} {name}: {done}");
        assert_eq!(run.finished(&run.name)["reason"], "interrupted", "{done}");
    }
}
