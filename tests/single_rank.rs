//! One rank of several is killed, or stops, at seeded moments: it is named, the others end, and the
//! same command goes on to the weights of a run that was left alone.

mod common;

use std::time::Duration;

use common::random::Random;
use common::{Workdir, send, skip};

const RANKS: usize = 3;

/// A stopped rank is missed after this long.
const TIMEOUT_MS: u64 = 1500;

/// A run whose ranks are killed and stopped so many times, and the most steps between.
struct Trial<'a> {
    run: Workdir,
    sets: Vec<&'a str>,
    kills: usize,
    stops: usize,
    steps_between: u64,
}

impl Trial<'_> {
    fn steps(&self) -> usize {
        self.run.events_of(&self.run.name, "step").len()
    }

    /// Starts, disturbs a rank if a signal is given, and sees that it is named.
    fn start(&self, backend: &str, signal: Option<i32>, random: &mut Random) {
        let (ranks, timeout) = (RANKS.to_string(), format!("ranks.timeout_ms={TIMEOUT_MS}"));
        let place = ["--ranks", &ranks, "--backend", backend, "--set", &timeout];
        let mut job = self.run.start(&[&self.sets[..], &place].concat());
        let Some(signal) = signal else {
            let done = job.wait();
            assert_eq!(done.code(), Some(0), "{done}");
            return;
        };
        let wanted = self.steps() + 1 + random.below(self.steps_between) as usize;
        let running = job.wait_until(|| self.steps() >= wanted);
        std::thread::sleep(Duration::from_millis(random.below(30)));
        let rank = random.below(RANKS as u64) as usize;
        let workers = job.workers();
        let worker = workers.iter().find(|(number, _)| *number == rank);
        let Some((_, pid)) = worker.filter(|_| running) else { panic!("it has ended early") };
        send(*pid, signal);
        let done = job.wait();
        assert_eq!(done.code(), Some(3), "{backend} {signal}: {done}");
        let how = match signal {
            libc::SIGKILL => format!("error: rank {rank} failed: killed by signal 9"),
            _ => format!("error: rank {rank} failed: no sign of life "),
        };
        assert!(done.stderr.contains(&how), "{backend} {signal}: {done}");
    }

    fn is_like_one_left_alone(&self, seed: u64) {
        let expected = self.run.digest("undisturbed", &self.sets);
        let mut random = Random(seed);
        let kills = std::iter::repeat_n(libc::SIGKILL, self.kills);
        let signals = kills.chain(std::iter::repeat_n(libc::SIGSTOP, self.stops));
        for (number, signal) in signals.enumerate() {
            self.start(["shm", "tcp"][number % 2], Some(signal), &mut random);
        }
        self.start("tcp", None, &mut random);
        assert_eq!(self.run.finished(&self.run.name)["reason"], "complete");
        assert_eq!(self.run.final_digest(&self.run.name), expected);
        assert!(self.run.verify(&self.run.name) > 0);
    }
}

#[test]
fn a_rank_that_is_killed_or_stops_is_named_and_changes_no_weight() {
    let run = Workdir::new(&format!("single_{}", std::process::id()));
    // More steps than the disturbed starts take before they are.
    let sets = ["--set", "train.steps=300", "--set", "checkpoint.every=7"].to_vec();
    let trial = Trial { run, sets, kills: 6, stops: 4, steps_between: 12 };
    trial.is_like_one_left_alone(11);
}

#[test]
fn so_it_is_where_the_optimizer_has_a_device() {
    let run = Workdir::new(&format!("single_device_{}", std::process::id()));
    let rules = "optimizer.rules=[{match: {roles: [matrix]}, muon: {storage: bf16, algorithm: \
                 symmetric}}, {match: {}, adamw: {}}]";
    let sets = [
        "ranks.optimizer_device=sim:gfx942",
        "model={layers: 1, d_model: 16, heads: 2, d_ff: 24}",
        rules,
        "train.steps=16",
        "checkpoint.every=2",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|&set| ["--set", set]).collect();
    let probe = run.train(&[&sets[..], &["--name", "probe", "--max-steps", "1"]].concat());
    if probe.stderr.contains("this build of muster has no") {
        return skip("the build has no simulated kernels");
    }
    let trial = Trial { run, sets, kills: 2, stops: 2, steps_between: 2 };
    trial.is_like_one_left_alone(12);
}
