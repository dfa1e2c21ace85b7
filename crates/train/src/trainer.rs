//! One rank of a run: its memory and its place in the run. What it does is in `step`.

use std::cell::Cell;
use std::sync::Arc;

use comm::{Group, Window, World};
use data::Dataset;
use device::{DType, Device, Stream, Tensor};
use layout::Accumulation;
use optim::{ClipDecision, Clipper};

use crate::engine::Declared;
use crate::event::{NonFinite, Step, Times};
use crate::hooks::Open;
use crate::laps::{Laps, Spent};
use crate::local::Local;
use crate::optimizer::Optimizer;
use crate::ranks::{Moving, Ranks};
use crate::save::Planned;
use crate::save_beside::Beside;
use crate::vote::{Ballot, Tally};
use crate::{Config, Engine, RunPlan, TrainError, Wants, agree};

/// The parts that a trainer is put together from.
pub struct Parts<E> {
    pub config: Config,
    pub plan: RunPlan,
    pub world: World,
    pub device: Device,
    /// Where the optimizer keeps its state and updates, if not on `device`.
    pub optimizer_device: Option<Device>,
    pub dataset: Dataset,
    pub engine: E,
}

/// The result of a step.
pub struct Taken {
    pub step: Step,
    /// Requests to any of the ranks.
    pub wants: Wants,
    /// Gradients that were not finite; nothing was applied then.
    pub non_finite: Option<NonFinite>,
}

/// Device memory of a trainer.
pub(crate) struct Memory {
    pub(crate) weights: Tensor,
    pub(crate) grads: Vec<Tensor>,
    pub(crate) loss: Tensor,
}

impl Memory {
    /// And of it what ranks read of each other: weights, and gradient buffers.
    fn new(
        plan: &RunPlan,
        group: &Group,
        device: &Device,
    ) -> Result<(Memory, Window, Vec<Window>), TrainError> {
        let window = group.window(plan.flat.len * plan.weights.bytes())?;
        let weights = window.tensor(0, &[plan.flat.len], plan.weights)?;
        let (mut buffers, mut grads) = (Vec::new(), Vec::new());
        for _ in 0..plan.gradient_buffers() {
            let buffer = group.window(plan.flat.len * 4)?;
            grads.push(buffer.tensor(0, &[plan.flat.len], DType::F32)?);
            buffers.push(buffer);
        }
        let memory = Memory { loss: device.zeros(&[1], DType::F64)?, weights, grads };
        Ok((memory, window, buffers))
    }
}

/// Host buffers of a trainer, reused every step.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) doc_start: Vec<u32>,
    pub(crate) ballot: Ballot,
    pub(crate) bytes: Vec<u8>,
    pub(crate) ballots: Vec<Vec<u8>>,
    pub(crate) tally: Tally,
    pub(crate) decision: ClipDecision,
    pub(crate) statistics: Vec<f64>,
    pub(crate) open: Open,
}

/// Refuses an engine that the plan was not made for.
fn check_engine(plan: &RunPlan, declared: &Declared) -> Result<(), TrainError> {
    let is_same = plan.schema == declared.schema
        && plan.flat == declared.flat
        && plan.engine_states() == declared.states
        && (plan.batch, plan.weights, plan.counts)
            == (declared.batch, declared.weights, declared.counts);
    if is_same {
        return Ok(());
    }
    let reason = "the plan was made for another engine; make it from this one's declarations: \
                  RunPlan::of(config, engine.declared().clone(), …)";
    Err(TrainError::Declared { reason: reason.to_owned() })
}

/// The boxes of every save, and who writes them beside the training, if that is asked for.
fn saves(
    config: &Config,
    plan: &RunPlan,
    ranks: &Ranks,
) -> Result<(Arc<Planned>, Option<Beside>), TrainError> {
    let place @ (rank, _) = (ranks.rank(), ranks.world.size());
    let planned = Arc::new(Planned::new(plan, rank)?);
    let limit = Some(config.checkpoint.max_mb_per_s).filter(|&limit| limit > 0);
    let limit = limit.map(|limit| limit as f64 * 1e6);
    let start = || Beside::start(plan, place, &planned, &ranks.saving, limit);
    let beside = plan.saves_beside.then(start).transpose()?;
    Ok((planned, beside))
}

/// One rank of a run.
pub struct Trainer<E: Engine> {
    pub(crate) config: Config,
    pub(crate) plan: RunPlan,
    pub(crate) ranks: Ranks,
    pub(crate) dataset: Dataset,
    pub(crate) engine: E,
    pub(crate) memory: Memory,
    pub(crate) host: Host,
    pub(crate) accumulation: Accumulation,
    pub(crate) optimizer: Optimizer,
    pub(crate) clipper: Clipper,
    pub(crate) stream: Stream,
    /// Steps taken.
    pub(crate) step: u64,
    /// Global sample cursor.
    pub(crate) samples: u64,
    pub(crate) tokens: u64,
    /// Tokens counted in the checkpoint that the run resumed from.
    pub(crate) tokens_loaded: u64,
    /// Updates applied; skipped steps are not among them.
    pub(crate) updates: u64,
    /// Of each parameter, how many updates there had been when its averages began.
    pub(crate) begun: Vec<i64>,
    pub(crate) previous_norm: Option<f64>,
    pub(crate) peak_bytes: Cell<u64>,
    pub(crate) times: Times,
    pub(crate) laps: Laps,
    /// Steps after which nothing is in flight.
    pub(crate) quiet_after: [u64; 2],
    /// Of each rank, all steps whose times it has told.
    pub(crate) spent: Vec<Spent>,
    /// The boxes of every save.
    pub(crate) planned: Arc<Planned>,
    /// Where saves are written beside the training.
    pub(crate) beside: Option<Beside>,
    /// Where local checkpoints are kept.
    pub(crate) local: Option<Arc<Local>>,
}

impl<E: Engine> Trainer<E> {
    /// Allocates everything and sets the initial weights.
    ///
    /// # Errors
    /// Memory; peers that are lost meanwhile.
    pub fn new(parts: Parts<E>) -> Result<Trainer<E>, TrainError> {
        let Parts { config, plan, world, device, optimizer_device, dataset, mut engine } = parts;
        check_engine(&plan, engine.declared())?;
        let rank = world.rank();
        let accumulation = plan.accumulation(rank)?;
        let group = world.group(&device)?;
        let (memory, weights, buffers) = Memory::new(&plan, &group, &device)?;
        let out = &memory.grads[plan.partials[rank][0].1];
        let mut optimizer = Optimizer::new(&device, optimizer_device.as_ref(), &plan, rank)?;
        let elsewhere = optimizer.elsewhere();
        let ranks = Ranks::new(world, group, &plan, Moving { weights, buffers, out, elsewhere })?;
        let stream = device.stream();
        engine.initialize(config.seed, &memory.weights)?;
        engine.weights_changed();
        agree::on_weights(ranks.training.as_ref(), &stream, &plan, &memory.weights)?;
        optimizer.initialize(config.seed)?;
        optimizer.adopt(&stream, &memory.weights)?;
        let begun = vec![0; plan.schema.tensors.len()];
        let optim = &config.optimizer;
        let clipper = Clipper::new(optim.clip, optim.non_finite, &plan.updates, &plan.ownership);
        let rows = plan.batch.rows();
        let mut host = Host {
            tokens: vec![0; rows],
            targets: vec![0; rows],
            doc_start: vec![0; rows],
            statistics: vec![0.0; plan.ownership.statistics],
            ..Host::default()
        };
        host.tally.statistics = vec![0.0; plan.ownership.statistics];
        host.ballot.counts = vec![0; plan.counts];
        host.tally.counts = vec![0; plan.counts];
        let spent = vec![Spent::default(); plan.world];
        let (planned, beside) = saves(&config, &plan, &ranks)?;
        Ok(Trainer {
            config,
            plan,
            ranks,
            dataset,
            engine,
            memory,
            host,
            accumulation,
            optimizer,
            clipper,
            stream,
            step: 0,
            samples: 0,
            tokens: 0,
            tokens_loaded: 0,
            updates: 0,
            begun,
            previous_norm: None,
            peak_bytes: Cell::new(0),
            times: Times::default(),
            laps: Laps::default(),
            quiet_after: [u64::MAX; 2],
            spent,
            planned,
            beside,
            local: None,
        })
    }

    /// After so many steps [`Trainer::run`] waits for all weights before it asks for wants, so that
    /// nothing is in flight: for whoever begins or ends to watch there.
    pub fn quiet_after(&mut self, steps: [u64; 2]) {
        self.quiet_after = steps;
    }

    /// Steps taken.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// Looks how much memory is in use.
    pub(crate) fn note_memory(&self) {
        let bytes = crate::resident::anonymous_bytes().unwrap_or(0);
        self.peak_bytes.set(self.peak_bytes.get().max(bytes));
    }

    /// Most bytes of anonymous and shared memory that were seen: after each of the first steps,
    /// validation and save.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes.get()
    }

    /// Where the time went, as far as steps, validation and saves are concerned.
    pub fn times(&self) -> Times {
        self.times
    }

    /// Bytes moved so far.
    pub fn counters(&self) -> comm::Counters {
        self.ranks.world.counters()
    }

    /// Target tokens trained on since the run's first step.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Of these, the ones since this process started.
    pub fn tokens_since_start(&self) -> u64 {
        self.tokens - self.tokens_loaded
    }

    /// Waits for all weights, and brings whatever the engine shows of them outside up to date: the
    /// variables of a candle model, before they are saved.
    ///
    /// # Errors
    /// A lost peer; device errors.
    pub fn renew(&mut self) -> Result<(), TrainError> {
        self.ranks.settle()?;
        self.engine.renew(&self.memory.weights)
    }

    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }
}
