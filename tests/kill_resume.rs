//! A run that is killed again and again ends with the weights of one that was left alone.
//!
//! ```text
//! start ── random events, random milliseconds ──▶ SIGKILL to supervisor and workers ──┐
//!   ▲            another number of ranks, the other backend                            │
//!   └──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The kills are seeded. Two in five wait for an attempt directory without `COMMIT` and hit
//! inside the save; the others fall anywhere: reading, meeting, resuming, between steps. Between
//! them all ranks hang, which their supervisor has to notice, or the whole job stands still for
//! longer than its timeout and goes on.

mod common;

use std::time::Duration;

use common::random::Random;
use common::{Done, Job, Process, Workdir, processes, send, shared_memory_of};

/// Kills that must have happened.
const KILLS: usize = 20;

/// Of them, kills that must have left an attempt without `COMMIT`.
const IN_A_SAVE: usize = 4;

/// Hangs, and standstills, that must have happened.
const STANDS: usize = 3;

/// How long ranks wait for each other where they will stand still.
const TIMEOUT_MS: u64 = 3000;

/// The fate of a start.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Killed,
    /// All of its ranks stop for ever.
    Hangs,
    /// Everything stops for a while.
    StandsStill,
}

/// The number of disturbances so far.
#[derive(Default)]
struct Tally {
    kills: usize,
    in_a_save: usize,
    hangs: usize,
    stands: usize,
}

impl Tally {
    fn is_enough(&self) -> bool {
        let killed = self.kills >= KILLS && self.in_a_save >= IN_A_SAVE;
        killed && self.hangs >= STANDS && self.stands >= STANDS
    }

    fn next_fate(&self, starts: usize) -> Fate {
        match starts % 5 {
            1 if self.hangs < STANDS => Fate::Hangs,
            3 if self.stands < STANDS => Fate::StandsStill,
            _ => Fate::Killed,
        }
    }

    fn check(&self, starts: usize) {
        let Tally { kills, in_a_save, hangs, stands } = self;
        println!(
            "{kills} kills, {in_a_save} of them inside a save, {hangs} hangs, {stands} \
             standstills, {starts} starts"
        );
        assert!(*kills >= KILLS, "the run ended after {kills} kills");
        assert!(*in_a_save >= IN_A_SAVE, "only {in_a_save} kills inside a save");
    }
}

fn steps_of(run: &Workdir) -> usize {
    run.events_of(&run.name, "step").len()
}

/// Attempts without `COMMIT`.
fn torn(run: &Workdir) -> usize {
    run.attempts(&run.name).iter().filter(|path| !path.join("COMMIT").exists()).count()
}

/// SIGKILL to the supervisor and to every worker that it has at that moment. Workers that it
/// starts in between die with it.
fn kill(mut job: Job) {
    let workers = job.workers();
    job.signal(libc::SIGKILL);
    for (_, pid) in &workers {
        send(*pid, libc::SIGKILL);
    }
    job.wait_until(|| false);
    let gone = |pid: u32| processes().iter().all(|p| p.pid != pid || p.rank().is_none());
    while !workers.iter().all(|&(_, pid)| gone(pid)) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Stops all of its `ranks` for ever, and waits for the end that its supervisor makes of it.
fn hang(mut job: Job, ranks: usize) -> Done {
    while job.poll().is_none() && job.workers().len() < ranks {}
    job.workers().iter().for_each(|&(_, pid)| send(pid, libc::SIGSTOP));
    job.wait()
}

/// Stops the job as a whole for longer than its ranks wait for each other; returns whether there
/// were any.
fn stand_still(job: &Job) -> bool {
    // Then it starts no more of them.
    job.signal(libc::SIGSTOP);
    let workers = job.workers();
    let all = || workers.iter().map(|&(_, pid)| pid);
    all().for_each(|pid| send(pid, libc::SIGSTOP));
    std::thread::sleep(Duration::from_millis(TIMEOUT_MS + 1000));
    all().for_each(|pid| send(pid, libc::SIGCONT));
    job.signal(libc::SIGCONT);
    !workers.is_empty()
}

/// Lets a random amount happen; returns whether the job still runs.
fn let_happen(run: &Workdir, job: &mut Job, random: &mut Random, torn_before: usize) -> bool {
    if random.below(5) < 2 {
        // Inside a save: an attempt has appeared that is not committed.
        return job.wait_until(|| torn(run) > torn_before);
    }
    let wanted = steps_of(run) + random.below(3) as usize;
    let running = job.wait_until(|| steps_of(run) >= wanted);
    std::thread::sleep(Duration::from_millis(random.below(40)));
    running && job.poll().is_none()
}

#[test]
fn kills_do_not_change_the_weights() {
    // The name of shared memory is made of letters, digits and `_` of the run's.
    let run = Workdir::new(&format!("kill_{}", std::process::id()));
    let sets = ["--set", "train.steps=80", "--set", "batch.micro_batches=1"];
    let expected = run.digest("undisturbed", &sets);
    let mut random = Random(20);
    let mut tally = Tally::default();
    let mut starts = 0;
    let mut seen = false;
    while run.events_of(&run.name, "finished").is_empty() {
        // Never the number of ranks of the start before.
        let ranks = (1 + (starts * 3 + random.below(2) as usize * 2) % 4).to_string();
        let backend = ["shm", "tcp"][starts % 2];
        let (enough, fate) = (tally.is_enough(), tally.next_fate(starts));
        let every = if enough { 50 } else { 1 + starts % 2 };
        let every = format!("checkpoint.every={every}");
        starts += 1;
        let timeout_ms = if fate == Fate::Killed { 60_000 } else { TIMEOUT_MS };
        let timeout = format!("ranks.timeout_ms={timeout_ms}");
        let place = ["--ranks", &ranks, "--backend", backend, "--set", &every, "--set", &timeout];
        let torn_before = torn(&run);
        let mut job = run.start(&[&sets[..], &place].concat());
        if enough {
            let done = job.wait();
            assert_eq!(done.code(), Some(0), "{done}");
            break;
        }
        if backend == "shm" && ranks != "1" && !seen {
            // The memory that is looked for at the end can be found while it is there.
            seen = job.wait_until(|| worker_with_shared_memory(&run));
        }
        if let_happen(&run, &mut job, &mut random, torn_before) {
            if fate == Fate::Hangs {
                let done = hang(job, ranks.parse().unwrap());
                assert_eq!(done.code(), Some(3), "{done}");
                assert!(done.stderr.contains("failed: no sign of life for "), "{done}");
                tally.hangs += 1;
                continue;
            }
            if fate == Fate::StandsStill && stand_still(&job) {
                tally.stands += 1;
                let before = steps_of(&run);
                // It takes another step, or ends because all are done.
                if !job.wait_until(|| steps_of(&run) > before) {
                    let done = job.wait();
                    assert_eq!(done.code(), Some(0), "{done}");
                    continue;
                }
            }
            kill(job);
            tally.kills += 1;
            tally.in_a_save += usize::from(torn(&run) > torn_before);
        } else {
            let done = job.wait();
            assert_eq!(done.code(), Some(0), "{done}");
        }
    }
    assert!(seen, "no worker with shared memory was found while a job ran");
    tally.check(starts);
    let resumed = run.events_of(&run.name, "resumed").len();
    assert!(resumed > KILLS / 4, "resumed only {resumed} times");
    assert_eq!(run.finished(&run.name)["reason"], "complete");
    assert_eq!(run.final_digest(&run.name), expected);
    assert!(run.verify(&run.name) > 0);
    leaves_nothing(&run);
}

/// Shared memory has no name that could be left, and no worker outlives its job.
fn leaves_nothing(run: &Workdir) {
    assert_eq!(shared_memory_of(&run.name), Vec::<String>::new());
    for process in processes() {
        let zombie = process.state == 'Z' && process.parent == std::process::id();
        let left = zombie || is_here(run, &process);
        assert!(!left, "{} is left: {:?}", process.pid, process.words);
    }
}

/// Whether a process was started in the run's directory, as its jobs and their workers are.
fn is_here(run: &Workdir, process: &Process) -> bool {
    let here = run.path().canonicalize().unwrap();
    std::fs::read_link(format!("/proc/{}/cwd", process.pid)).is_ok_and(|cwd| cwd == here)
}

/// Whether a worker that is here has mapped shared memory of the run's name.
fn worker_with_shared_memory(run: &Workdir) -> bool {
    processes().iter().any(|process| {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid));
        let mapped = maps.is_ok_and(|maps| {
            maps.lines().any(|line| line.contains("/memfd:muster-") && line.contains(&run.name))
        });
        mapped && process.rank().is_some() && is_here(run, process)
    })
}
