//! Whether the memory that a run plans is there, decided before anything is started.
//!
//! The plan is an estimate: a run is refused where it exceeds what a host can give by more than
//! the estimate has ever been wrong, and warned of where it exceeds it at all. What is offered
//! instead has been planned in the same way, and fits.

use model::MicroBatch;
use train::RunPlan;
use train::config::{Config, MICRO_BATCHES_MAX, WeightsDtype};

use super::room::Limit;
use crate::console::{bytes, plural};

/// Plans have been off by less, above what ranks really used.
const MARGIN: f64 = 1.25;

/// Parts of a plan that are named.
const PARTS: usize = 4;

/// The verdict on a plan and a host's memory.
#[derive(Debug, Clone, PartialEq)]
pub enum Fit {
    Fits,
    /// It may fit, by a little.
    Tight(String),
    Impossible(String),
}

/// A run as it is about to start on this host.
pub struct Start<'a> {
    pub config: &'a Config,
    pub plan: &'a RunPlan,
    /// [`RunPlan::peak_bytes`], which takes a while of many tensors.
    pub peak_bytes: u64,
    pub vocab: usize,
    /// Hosts, and ranks of each.
    pub nodes: usize,
    pub local: usize,
}

/// Compares what is planned with what is there.
pub fn fit(start: &Start, limits: &[Limit]) -> Fit {
    let needed = Needed::new(start.peak_bytes, start.local);
    let Some(limit) = exceeded(needed, limits, 1.0) else { return Fit::Fits };
    let (rank, host) = (bytes(needed.rank), bytes(needed.host));
    let plans = match limit.is_per_rank {
        true => format!("each rank plans {rank} of memory"),
        false => {
            let ranks = plural(start.local, "rank");
            format!("the run plans {host} of memory on this host ({ranks} of {rank})")
        }
    };
    let mut text = format!("{plans}, more than the {} {}", bytes(limit.bytes), limit.what);
    text += &format!("\n  largest parts of a rank: {}", largest_parts(start.plan));
    if exceeded(needed, limits, MARGIN).is_none() {
        return Fit::Tight(format!("{text}\n  it may run out of memory"));
    }
    let ways = ways(start, limits);
    text += &match ways.is_empty() {
        true => "\n  no single key makes it fit: use a smaller model, or a larger machine".into(),
        false => format!("\n  each of these alone makes it fit:\n    {}", ways.join("\n    ")),
    };
    Fit::Impossible(text)
}

/// Planned bytes.
#[derive(Debug, Clone, Copy)]
struct Needed {
    /// Of the rank that needs most.
    rank: u64,
    host: u64,
}

impl Needed {
    fn new(rank: u64, local: usize) -> Needed {
        Needed { rank, host: rank.saturating_mul(local as u64) }
    }
}

/// The limit that is exceeded by the largest factor, if one is by more than `margin`.
fn exceeded(needed: Needed, limits: &[Limit], margin: f64) -> Option<&Limit> {
    let factor = |limit: &Limit| {
        let needed = if limit.is_per_rank { needed.rank } else { needed.host };
        needed as f64 / limit.bytes.max(1) as f64
    };
    let over = limits.iter().filter(|limit| factor(limit) > margin);
    over.max_by(|a, b| factor(a).total_cmp(&factor(b)))
}

fn largest_parts(plan: &RunPlan) -> String {
    let mut parts = plan.memory(0).unwrap_or_default();
    parts.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let parts = parts.iter().take(PARTS);
    parts.map(|(what, size)| format!("{what} {}", bytes(*size))).collect::<Vec<_>>().join(", ")
}

/// Changes that would make it fit, each by itself.
fn ways(start: &Start, limits: &[Limit]) -> Vec<String> {
    let ways = [smaller_micro_batch, shorter_windows, bf16_weights, fewer_ranks, fewer_layers];
    let mut found: Vec<String> = ways.iter().filter_map(|way| way(start, limits)).collect();
    found.extend(more_hosts(start, limits));
    found
}

/// Bytes of a host for so many ranks of so many each, if that fits.
fn fits(rank: u64, local: usize, limits: &[Limit]) -> Option<u64> {
    let needed = Needed::new(rank, local);
    exceeded(needed, limits, 1.0).is_none().then_some(needed.host)
}

/// As [`fits`], for a config.
fn planned(start: &Start, config: &Config, world: usize, limits: &[Limit]) -> Option<u64> {
    let (threads, bucket) = (start.plan.threads, 4 * start.plan.bucket_elements);
    let plan = RunPlan::with_buckets(config, start.vocab, world, threads, bucket).ok()?;
    fits(plan.peak_bytes(), world / start.nodes, limits)
}

/// As [`fits`], for the plan with other activations: the rest of it stays.
fn with_batch(start: &Start, batch: MicroBatch, limits: &[Limit]) -> Option<u64> {
    let (plan, model) = (start.plan, &start.config.model);
    let a = model.resolve(start.vocab, plan.batch.positions).ok()?;
    let arena = |batch| -> u64 {
        let parts = model::memory_plan(&a, batch, plan.weights, 1);
        parts.iter().flatten().fold(0, |all, (_, size)| all.saturating_add(*size as u64))
    };
    let rest = start.peak_bytes.saturating_sub(arena(plan.batch));
    fits(rest.saturating_add(arena(batch)), start.local, limits)
}

/// The same tokens a step, in more pieces.
fn smaller_micro_batch(start: &Start, limits: &[Limit]) -> Option<String> {
    let batch = &start.config.batch;
    let now = batch.micro_batch;
    let mut smaller = (1..now).rev().filter(|windows| now.is_multiple_of(*windows));
    smaller.find_map(|windows| {
        let size = with_batch(start, MicroBatch { windows, ..start.plan.batch }, limits)?;
        let more = batch.micro_batches.checked_mul(now / windows)?;
        let more = Some(more).filter(|more| *more <= MICRO_BATCHES_MAX)?;
        let size = bytes(size);
        Some(format!("batch.micro_batch={windows} with batch.micro_batches={more} ({size})"))
    })
}

fn shorter_windows(start: &Start, limits: &[Limit]) -> Option<String> {
    let now = start.config.batch.seq_len;
    let shorter = std::iter::successors(Some(now / 2), |len| Some(len / 2));
    shorter.take_while(|len| *len > 0).find_map(|positions| {
        let size = with_batch(start, MicroBatch { positions, ..start.plan.batch }, limits)?;
        Some(format!("batch.seq_len={positions} ({})", bytes(size)))
    })
}

fn bf16_weights(start: &Start, limits: &[Limit]) -> Option<String> {
    let mut config = start.config.clone();
    if config.train.weights == WeightsDtype::Bf16 {
        return None;
    }
    // Without planning it: weights and gradients alone.
    let plan = start.plan;
    let least = plan.flat.len as u64 * (2 + 4 * plan.gradient_buffers() as u64);
    fits(least, start.local, limits)?;
    config.train.weights = WeightsDtype::Bf16;
    let size = planned(start, &config, start.plan.world, limits)?;
    Some(format!("train.weights=bf16 ({})", bytes(size)))
}

/// The bits are the same at any number of ranks.
fn fewer_ranks(start: &Start, limits: &[Limit]) -> Option<String> {
    let fewer = std::iter::successors(Some(start.local / 2), |local| Some(local / 2));
    fewer.take_while(|local| *local > 0).find_map(|local| {
        let world = local * start.nodes;
        let size = planned(start, start.config, world, limits)?;
        Some(format!("--ranks {world} ({})", bytes(size)))
    })
}

/// The ranks of one host on several; over shared memory there is but one.
fn more_hosts(start: &Start, limits: &[Limit]) -> Option<String> {
    let world = start.plan.world;
    let mut hosts = (start.nodes + 1..=world).filter(|nodes| world.is_multiple_of(*nodes));
    hosts.find_map(|nodes| {
        let size = fits(start.peak_bytes, world / nodes, limits)?;
        let tcp = "--backend tcp";
        Some(format!("{tcp} --nodes {nodes}, on as many hosts ({} on each)", bytes(size)))
    })
}

/// The most layers that fit, found from below: small plans are quick to make.
fn fewer_layers(start: &Start, limits: &[Limit]) -> Option<String> {
    let positions = start.plan.batch.positions;
    let now = start.config.model.resolve(start.vocab, positions).ok()?.layers;
    let fits_with = |layers: usize| {
        let mut config = start.config.clone();
        config.model.layers = Some(layers);
        planned(start, &config, start.plan.world, limits)
    };
    let (mut fits, mut too_many) = (0, 1);
    while too_many < now && fits_with(too_many).is_some() {
        (fits, too_many) = (too_many, too_many * 2);
    }
    too_many = too_many.min(now);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        match fits_with(middle) {
            Some(_) => fits = middle,
            None => too_many = middle,
        }
    }
    let size = fits_with(fits).filter(|_| fits > 0)?;
    Some(format!("model.layers={fits} ({})", bytes(size)))
}
