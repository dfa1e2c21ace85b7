//! A storm of signals: workers and supervisors are killed, stopped and told to end at random, again
//! and again, and the weights are those of a run that was left alone.
//!
//! ```text
//! start ─▶ (some steps, random milliseconds ─▶ a signal)* ─▶ the supervisor ends ─┐
//!   ▲   the ranks start again by themselves ◀─┘                                   │
//!   └────────────── another number of ranks, the other backend ◀──────────────────┘
//! ```
//! `MUSTER_STORM=1500` makes it that many signals; `MUSTER_STORM_SEED` chooses others.
//! benches/cpu/storm.md has the output of a long one.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use common::random::Random;
use common::{Job, Workdir, processes, send};

/// Signals, unless MUSTER_STORM says how many.
const SIGNALS: u64 = 30;

/// A blow to a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillWorker,
    KillSupervisor,
    KillAll,
    TerminateSupervisor,
    TerminateWorker,
    /// For less than anybody waits.
    StopWorker,
    StopAll,
}

impl Blow {
    fn draw(random: &mut Random) -> Blow {
        match random.below(20) {
            0..7 => Blow::KillWorker,
            7..11 => Blow::KillSupervisor,
            11..13 => Blow::KillAll,
            13..15 => Blow::TerminateSupervisor,
            15..17 => Blow::TerminateWorker,
            17..19 => Blow::StopWorker,
            _ => Blow::StopAll,
        }
    }

    /// Strikes; whether there was anything to strike.
    fn strike(self, job: &Job, random: &mut Random) -> bool {
        let workers: Vec<u32> = job.workers().into_iter().map(|(_, pid)| pid).collect();
        if workers.is_empty() {
            return false;
        }
        let one = workers[random.below(workers.len() as u64) as usize];
        let pause = Duration::from_millis(50 + random.below(400));
        match self {
            Blow::KillWorker => send(one, libc::SIGKILL),
            Blow::KillSupervisor => job.signal(libc::SIGKILL),
            Blow::KillAll => {
                job.signal(libc::SIGKILL);
                workers.iter().for_each(|&pid| send(pid, libc::SIGKILL));
            }
            Blow::TerminateSupervisor => job.signal(libc::SIGTERM),
            Blow::TerminateWorker => send(one, libc::SIGTERM),
            Blow::StopWorker => {
                send(one, libc::SIGSTOP);
                std::thread::sleep(pause);
                send(one, libc::SIGCONT);
            }
            Blow::StopAll => {
                job.signal(libc::SIGSTOP);
                workers.iter().for_each(|&pid| send(pid, libc::SIGSTOP));
                std::thread::sleep(pause);
                workers.iter().for_each(|&pid| send(pid, libc::SIGCONT));
                job.signal(libc::SIGCONT);
            }
        }
        true
    }
}

/// The blows so far, and how the jobs ended.
#[derive(Default)]
struct Tally {
    blows: BTreeMap<Blow, u64>,
    starts: u64,
    codes: BTreeMap<Option<i32>, u64>,
}

impl Tally {
    fn signals(&self) -> u64 {
        self.blows.values().sum()
    }

    fn tell(&self, run: &Workdir, started: Instant) {
        println!(
            "{} signals in {:.0} s: {:?}; {} starts by the command, ended with {:?}; {} by \
             itself; {} saves",
            self.signals(),
            started.elapsed().as_secs_f64(),
            self.blows,
            self.starts,
            self.codes,
            run.events_of(&run.name, "restarting").len(),
            run.events_of(&run.name, "saved").len(),
        );
    }
}

fn number(name: &str, or: u64) -> u64 {
    std::env::var(name).map_or(or, |text| text.parse().expect(name))
}

/// Counts the steps of a run as its events are written; reading all of them each time would take
/// longer than the steps.
#[derive(Default)]
struct Steps {
    read: u64,
    count: usize,
}

impl Steps {
    fn look(&mut self, run: &Workdir) -> usize {
        let path = run.run_dir(&run.name).join("events.jsonl");
        let Ok(mut file) = File::open(path) else { return 0 };
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        file.read_to_end(&mut text).unwrap();
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines = text[..whole].split(|&byte| byte == b'\n');
        self.count += lines.filter(|line| line.starts_with(br#"{"step":"#)).count();
        self.read += whole as u64;
        self.count
    }
}

/// Workers whose supervisor was killed end by themselves; nobody waits for them but this test.
fn wait_for_orphans(run: &Workdir) {
    let here = run.path().canonicalize().unwrap();
    let is_ours =
        |pid: u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == here);
    let until = Instant::now() + Duration::from_secs(30);
    while processes().iter().any(|p| p.rank().is_some() && p.state != 'Z' && is_ours(p.pid)) {
        assert!(Instant::now() < until, "workers are left that nobody supervises");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_storm_of_signals_does_not_change_the_weights() {
    let (signals, seed) = (number("MUSTER_STORM", SIGNALS), number("MUSTER_STORM_SEED", 7));
    let run = Workdir::new(&format!("storm_{}", std::process::id()));
    let steps = format!("train.steps={}", 20 + signals * 3);
    let sets = ["--set", &steps, "--set", "batch.micro_batches=1", "--set", "batch.seq_len=16"];
    let expected = run.digest("undisturbed", &sets);
    let (mut random, mut tally) = (Random(seed), Tally::default());
    let (mut seen, started) = (Steps::default(), Instant::now());
    while run.events_of(&run.name, "finished").is_empty() || !tally.codes.contains_key(&Some(0)) {
        let ranks = (1 + random.below(3)).to_string();
        let backend = ["shm", "tcp"][random.below(2) as usize];
        let place = ["--ranks", &ranks, "--backend", backend, "--set", "ranks.restarts=100"];
        let every = ["--set", "checkpoint.every=2", "--set", "checkpoint.keep=3"];
        let mut job = run.start(&[&sets[..], &place, &every].concat());
        tally.starts += 1;
        let mut running = true;
        while running && tally.signals() < signals {
            let wanted = seen.look(&run) + random.below(3) as usize;
            running = job.wait_until(|| seen.look(&run) >= wanted);
            std::thread::sleep(Duration::from_millis(random.below(60)));
            let blow = Blow::draw(&mut random);
            running = running && job.poll().is_none();
            if running && blow.strike(&job, &mut random) {
                *tally.blows.entry(blow).or_default() += 1;
                if tally.signals().is_multiple_of(100) {
                    tally.tell(&run, started);
                }
            }
        }
        let done = job.wait();
        // Done, killed, a failure that is told, or saved to be started again.
        assert!([Some(0), None, Some(3), Some(75)].contains(&done.code()), "{done}");
        assert!(!done.stderr.contains("bug in Muster"), "{done}");
        *tally.codes.entry(done.code()).or_default() += 1;
        wait_for_orphans(&run);
    }
    tally.tell(&run, started);
    assert!(tally.signals() >= signals, "the run ended after {} signals", tally.signals());
    assert_eq!(run.finished(&run.name)["reason"], "complete");
    assert_eq!(run.final_digest(&run.name), expected);
    assert!(run.verify(&run.name) > 0);
    println!("the weights are those of the run that was left alone: {expected}");
}
