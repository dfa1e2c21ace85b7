//! Random operations over connections to which seeded harm is done: every rank gets the right bytes
//! or a typed error within the deadline, and nothing stays behind.
//!
//! `MUSTER_CHAOS_SEEDS=1000` runs more of them, `MUSTER_CHAOS_SEED=7` one.

mod common;
#[path = "common/mixed.rs"]
mod mixed;
#[path = "common/proxy.rs"]
mod proxy;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use comm::{Backend, Result};
use mixed::{Draw, Mixed, held};
use proxy::{Event, Events, Way};

const TIMEOUT_MS: u64 = 1_200;
/// Where nothing is lost: however busy the machine is.
const PATIENCE_MS: u64 = 30_000;
/// Beyond the timeout: ranks that only wait for others, the grace of connections, a busy machine.
const ALLOWANCE: Duration = Duration::from_secs(8);
/// Operations of a seed.
const STEPS: usize = 25;
const SEEDS: u64 = 36;

/// Faults on the way from one rank to another.
#[derive(Debug, Clone)]
struct Plan {
    /// Of the first connections.
    events: Vec<[Events; 2]>,
}

fn event(draw: &mut Draw, is_harmless: bool) -> Event {
    let short = Duration::from_millis(draw.next() % 60);
    let long = Duration::from_secs(60);
    match draw.below(if is_harmless { 2 } else { 7 }) {
        0 => Event::Delay(short),
        1 => Event::Partition(short),
        2 => Event::Delay(long),
        3 => Event::Partition(long),
        4 => Event::HalfOpen,
        5 => Event::Close,
        _ => Event::Reset,
    }
}

fn events(draw: &mut Draw, count: usize, is_harmless: bool) -> Events {
    let mut events: Events = (0..count)
        .map(|_| {
            // Within the introduction, a frame, a large message.
            let scale = draw.of(&[200, 5_000, 300_000, 4_000_000]);
            (draw.below(scale), event(draw, is_harmless))
        })
        .collect();
    events.sort_by_key(|(at, _)| *at);
    events
}

impl Plan {
    fn new(draw: &mut Draw, is_harmless: bool) -> Plan {
        // Signals, two channels, a group.
        let mut direction = || {
            let count = if draw.below(3) == 0 { 1 + draw.below(2) } else { 0 };
            events(draw, count, is_harmless)
        };
        Plan { events: (0..4).map(|_| [direction(), direction()]).collect() }
    }
}

/// A seed's choice of ranks, faults and operations.
struct Case {
    ranks: usize,
    is_harmless: bool,
    /// From which rank to which lower one.
    plans: Vec<(usize, usize, Plan)>,
}

impl Case {
    fn new(seed: u64) -> Case {
        let mut draw = Draw(seed);
        let (ranks, is_harmless) = (2 + draw.below(4), draw.below(3) == 0);
        let pairs = (1..ranks).flat_map(|from| (0..from).map(move |to| (from, to)));
        let harmed: Vec<_> = pairs.filter(|_| is_harmless || draw.below(3) == 0).collect();
        let plan = |(from, to)| (from, to, Plan::new(&mut draw, is_harmless));
        Case { ranks, is_harmless, plans: harmed.into_iter().map(plan).collect() }
    }
}

/// A rank, until its last operation or its first error.
fn rank(backend: Backend, rank: usize, case: &Case, seed: u64) -> Result<()> {
    let timeout_ms = if case.is_harmless { PATIENCE_MS } else { TIMEOUT_MS };
    let deadline = Duration::from_millis(timeout_ms) + ALLOWANCE;
    let timed = |what: &str, start: Instant| {
        let took = start.elapsed();
        assert!(took < deadline, "seed {seed}: {what} of rank {rank} took {took:?}");
    };
    let start = Instant::now();
    let world = comm::connect_with(backend, rank, case.ranks, common::settings(timeout_ms));
    timed("meeting", start);
    let world = world?;
    let mixed = Mixed::new(&world, seed, &[1, 60, 4_000, 90_000], true);
    timed("making a group", start);
    let mut mixed = mixed?;
    for step in 0..STEPS {
        let start = Instant::now();
        let result = mixed.step();
        timed(&format!("operation {step}"), start);
        result?;
    }
    Ok(())
}

fn run(seed: u64) -> Vec<Result<()>> {
    let case = Case::new(seed);
    let mut backends = common::backends("tcp", case.ranks);
    let ways: Vec<Way> = case
        .plans
        .iter()
        .map(|(from, to, plan)| {
            let Backend::Tcp { peers, .. } = &mut backends[*from] else { panic!("not tcp") };
            let plan = plan.clone();
            let way =
                Way::to(peers[*to], move |nth| plan.events.get(nth).cloned().unwrap_or_default());
            peers[*to] = way.addr;
            way
        })
        .collect();
    let case = &case;
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let all = backends.into_iter().enumerate();
        let all: Vec<_> = all
            .map(|(number, backend)| scope.spawn(move || rank(backend, number, case, seed)))
            .collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    drop(ways);
    for (rank, result) in results.iter().enumerate() {
        let Err(error) = result else { continue };
        assert!(!case.is_harmless, "seed {seed}, rank {rank}: {error}");
        let is_of_others =
            error.fault().is_some() || matches!(error, comm::CommError::Revoked { .. });
        assert!(is_of_others, "seed {seed}, rank {rank}: {error}");
    }
    results
}

/// As before, once what was told to end has ended.
fn nothing_is_left(before: (usize, usize), seed: u64) {
    let start = Instant::now();
    while held().0 > before.0 || held().1 > before.1 {
        let (files, threads) = held();
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "seed {seed}: {files} files and {threads} threads where {before:?} were before"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn chaos_ends_in_right_bytes_or_typed_errors() {
    // Descriptors and threads that are made once for all.
    run(0);
    let before = held();
    let one = number("MUSTER_CHAOS_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..number("MUSTER_CHAOS_SEEDS").unwrap_or(SEEDS),
    };
    let (mut whole, mut failed) = (0, 0);
    for seed in seeds {
        let (done, is_done) = mpsc::channel();
        let watched = std::thread::spawn(move || {
            let results = run(seed);
            let _ = done.send(());
            results
        });
        let hangs =
            is_done.recv_timeout(Duration::from_secs(120)) == Err(mpsc::RecvTimeoutError::Timeout);
        assert!(!hangs, "seed {seed} hangs");
        let results = watched.join().unwrap();
        match results.iter().all(Result::is_ok) {
            true => whole += 1,
            false => failed += 1,
        }
        nothing_is_left(before, seed);
    }
    println!("{whole} seeds came through, {failed} ended in errors of every rank or some");
    assert!(one.is_some() || (whole > 0 && failed > 0), "{whole} whole, {failed} failed");
}
