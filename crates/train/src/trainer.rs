//! One rank of a run: the step, and the loop around it.

use std::cell::Cell;

use comm::{Group, Window, World};
use data::{Dataset, SampleMut, Split};
use device::{DType, Device, Stream, Tensor};
use kernels::{Onto, Op, elementwise};
use layout::Schedule;
use model::{Gradients, Inputs, NoHooks};
use optim::{ClipDecision, Clipper, StepScalars, Verdict};

use crate::diagnose;
use crate::event::{Action, NonFinite, Place, Step, Times};
use crate::laps::{Laps, Part, Spent};
use crate::optimizer::Optimizer;
use crate::overlap::Reducing;
use crate::ranks::{Moving, Ranks, Submitted};
use crate::vote::{Ballot, Tally};
use crate::{Config, Engine, RunPlan, TrainError, Wants};

/// What a trainer is put together from.
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
    /// What any rank was asked.
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
        let (mut slots, mut grads) = (Vec::new(), Vec::new());
        for _ in 0..plan.gradient_slots() {
            let slot = group.window(plan.flat.len * 4)?;
            grads.push(slot.tensor(0, &[plan.flat.len], DType::F32)?);
            slots.push(slot);
        }
        let memory = Memory { loss: device.zeros(&[1], DType::F64)?, weights, grads };
        Ok((memory, window, slots))
    }
}

/// Host buffers of a trainer, reused every step.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) doc_start: Vec<u32>,
    ballot: Ballot,
    bytes: Vec<u8>,
    ballots: Vec<Vec<u8>>,
    pub(crate) tally: Tally,
    decision: ClipDecision,
    statistics: Vec<f64>,
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
    schedule: Schedule,
    pub(crate) optimizer: Optimizer,
    clipper: Clipper,
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
    pub(crate) previous_norm: Option<f64>,
    pub(crate) peak_bytes: Cell<u64>,
    pub(crate) times: Times,
    pub(crate) laps: Laps,
    /// Of each rank, all steps whose times it has told.
    pub(crate) spent: Vec<Spent>,
}

impl<E: Engine> Trainer<E> {
    /// Allocates everything and sets the initial weights.
    ///
    /// # Errors
    /// Memory; peers that are lost meanwhile.
    pub fn new(parts: Parts<E>) -> Result<Trainer<E>, TrainError> {
        let Parts { config, plan, world, device, optimizer_device, dataset, mut engine } = parts;
        let rank = world.rank();
        let schedule = plan.schedule(rank)?;
        let group = world.group(&device)?;
        let (memory, weights, slots) = Memory::new(&plan, &group, &device)?;
        let out = &memory.grads[plan.partials[rank][0].1];
        let mut optimizer = Optimizer::new(&device, optimizer_device.as_ref(), &plan, rank)?;
        let elsewhere = optimizer.elsewhere();
        let ranks = Ranks::new(world, group, &plan, Moving { weights, slots, out, elsewhere })?;
        let stream = device.stream();
        engine.initialize(config.seed, &memory.weights)?;
        engine.weights_changed();
        optimizer.adopt(&stream, &memory.weights)?;
        let optim = &config.optimizer;
        let clipper = Clipper::new(optim.clip, optim.non_finite, &plan.updates, &plan.ownership);
        let rows = plan.batch.rows();
        let mut host = Host {
            tokens: vec![0; rows],
            targets: vec![0; rows],
            doc_start: vec![0; rows],
            statistics: vec![0.0; plan.ownership.slots],
            ..Host::default()
        };
        host.tally.statistics = vec![0.0; plan.ownership.slots];
        host.ballot.counts = vec![0; plan.counts];
        let spent = vec![Spent::default(); plan.world];
        Ok(Trainer {
            config,
            plan,
            ranks,
            dataset,
            engine,
            memory,
            host,
            schedule,
            optimizer,
            clipper,
            stream,
            step: 0,
            samples: 0,
            tokens: 0,
            tokens_loaded: 0,
            updates: 0,
            previous_norm: None,
            peak_bytes: Cell::new(0),
            times: Times::default(),
            laps: Laps::default(),
            spent,
        })
    }

    /// Steps taken.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// Looks how much memory is in use.
    pub(crate) fn note_memory(&self) {
        let bytes = crate::memory::anonymous_bytes().unwrap_or(0);
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

    /// Takes one optimizer step.
    ///
    /// # Errors
    /// A lost peer; device errors. Weights are then those of before.
    pub fn take_step(&mut self, wants: Wants) -> Result<Taken, TrainError> {
        self.host.ballot.spent = self.laps.begin(self.step + 1, self.ranks.world.timings());
        let submitted = self.accumulate(self.samples)?;
        self.ranks.reduce(&self.stream, submitted)?;
        self.laps.lap(Part::Reduce);
        let verdict = self.vote(wants)?;
        self.laps.lap(Part::Vote);
        let non_finite = match verdict {
            Verdict::Apply => None,
            _ => Some(self.diagnose(verdict)?),
        };
        let factor =
            optim::factor(self.step + 1, self.config.train.steps, &self.config.optimizer.schedule);
        let tokens = self.host.tally.target_tokens;
        if verdict == Verdict::Apply {
            let scalars = StepScalars {
                step: self.updates + 1,
                lr_factor: factor,
                inverse_tokens: 1.0 / tokens.max(1) as f64,
                clip: &self.host.decision,
            };
            let out = &self.memory.grads[self.out_slot()];
            self.optimizer.apply(&self.stream, &self.memory.weights, out, &scalars)?;
            self.engine.after_step(&self.host.tally.counts)?;
            self.updates += 1;
            self.previous_norm = Some(self.host.decision.norm);
        }
        self.stream.synchronize()?;
        self.laps.lap(Part::Optimizer);
        if verdict == Verdict::Apply {
            self.ranks.gather(&self.stream)?;
            self.engine.weights_changed();
        }
        self.laps.lap(Part::Gather);
        self.step += 1;
        self.samples += self.config.batch.samples_per_step();
        self.tokens += tokens;
        let took_ns = self.laps.step_done();
        // Looking costs a walk through all pages; later steps use what the first ones did.
        if self.updates <= 2 {
            self.note_memory();
        }
        let step = self.report(factor, took_ns, verdict);
        self.times.add(&step);
        let tally = &self.host.tally;
        let wants = Wants { stop: tally.stop, terminate: tally.terminate };
        Ok(Taken { step, wants, non_finite })
    }

    /// The event of the step, which took `took_ns`.
    fn report(&mut self, factor: f64, took_ns: u64, verdict: Verdict) -> Step {
        let of = |parts: &[Part]| parts.iter().map(|&part| self.laps.spent().part_ns(part)).sum();
        let ms = |ns: u64| ns as f64 / 1e6;
        let phases_ms = [
            ms(of(&[Part::Forward, Part::Backward, Part::Fold])),
            ms(of(&[Part::Reduce])),
            ms(of(&[Part::Vote, Part::Optimizer])),
            ms(of(&[Part::Gather])),
        ];
        let (ms, data_ms) = (ms(took_ns), ms(of(&[Part::Data])));
        let Host { tally, decision, .. } = &self.host;
        let load = self.engine.load(&tally.counts);
        let rule = self.config.optimizer.rules.first();
        let base =
            rule.and_then(|r| r.muon.as_ref().map(|m| m.lr).or(r.adamw.as_ref().map(|a| a.lr)));
        let bytes = tally.target_bytes.filter(|&bytes| bytes > 0);
        Step {
            step: self.step,
            loss: tally.loss / tally.target_tokens.max(1) as f64,
            bits_per_byte: bytes.map(|b| tally.loss / std::f64::consts::LN_2 / b as f64),
            grad_norm: decision.norm,
            lr: factor * base.unwrap_or(1.0),
            ms,
            tokens: tally.target_tokens,
            tokens_per_s: self.config.batch.tokens_per_step() as f64 / ms * 1e3,
            expert_load: load.map(|load| load.spread),
            dead_experts: load.map_or(0, |load| load.idle),
            skipped: verdict != Verdict::Apply,
            phases_ms,
            data_ms,
        }
    }

    /// Forward and backward of this rank's leaves, folded along the tree; where the optimizer is
    /// elsewhere, buckets go there as soon as they are complete. Beside the weights they stay until
    /// the end, because a CPU has no spare core to sum them meanwhile.
    fn accumulate(&mut self, first_sample: u64) -> Result<Submitted, TrainError> {
        let ballot = &mut self.host.ballot;
        (ballot.target_tokens, ballot.target_bytes) = (0, Some(0));
        ballot.losses.clear();
        self.engine.begin_step()?;
        let mut submitted = Submitted::default();
        for index in 0..self.schedule.steps.len() {
            let (leaf, slot) = (self.schedule.steps[index].leaf, self.schedule.steps[index].slot);
            let is_last = index + 1 == self.schedule.steps.len();
            if is_last && self.optimizer.elsewhere().is_some() {
                submitted = self.leaf(first_sample, leaf, slot, Some(index))?;
                break;
            }
            self.leaf(first_sample, leaf, slot, None)?;
            for fold in 0..self.schedule.steps[index].folds.len() {
                let (into, from) = self.schedule.steps[index].folds[fold];
                let (y, x) = (self.memory.grads[into].clone(), self.memory.grads[from].clone());
                elementwise::Add { x, y }.launch(&self.stream)?;
            }
            self.laps.lap(Part::Fold);
        }
        self.stream.synchronize()?;
        self.laps.lap(Part::Fold);
        Ok(submitted)
    }

    /// One leaf into one gradient buffer. If it is said which step of the schedule that is, its
    /// folds are made and buckets submitted while its last backward pass goes on.
    fn leaf(
        &mut self,
        first_sample: u64,
        leaf: usize,
        slot: usize,
        reduced: Option<usize>,
    ) -> Result<Submitted, TrainError> {
        let batch = &self.config.batch;
        let (per_leaf, windows) = (batch.micro_batches, batch.micro_batch);
        let mut submitted = Submitted::default();
        for micro in 0..per_leaf {
            let first = first_sample + ((leaf * per_leaf + micro) * windows) as u64;
            let tokens = self.read(first)?;
            self.laps.lap(Part::Data);
            let Trainer { engine, memory, host, ranks, plan, schedule, stream, laps, .. } = self;
            let inputs =
                Inputs { tokens: &host.tokens, targets: &host.targets, doc_start: &host.doc_start };
            let weights = &memory.weights;
            let stash = engine.forward(&inputs, weights, &mut NoHooks)?;
            laps.lap(Part::Forward);
            let to = Gradients {
                flat: &memory.grads[slot],
                onto: if micro > 0 { Onto::Add } else { Onto::Overwrite },
                tokens: tokens as f64,
                loss: &memory.loss,
            };
            match reduced.filter(|_| micro + 1 == per_leaf) {
                None => engine.backward(stash, weights, to, &mut NoHooks)?,
                Some(index) => {
                    let (folds, grads) = (&schedule.steps[index].folds[..], &memory.grads[..]);
                    let (buckets, nothing) = (&plan.flat.buckets[..], Ok(Submitted::default()));
                    let mut hooks =
                        Reducing { ranks, stream, buckets, grads, folds, submitted: nothing };
                    engine.backward(stash, weights, to, &mut hooks)?;
                    // Also where an engine does not say so.
                    model::Hooks::ready(&mut hooks, 0);
                    submitted = hooks.submitted?;
                }
            }
            let mut loss = [0.0];
            stream.copy_out(&memory.loss, &mut loss)?;
            host.ballot.losses.push(loss[0]);
            laps.lap(Part::Backward);
        }
        Ok(submitted)
    }

    /// Reads a micro-batch of training windows into the host buffers; returns its target tokens.
    fn read(&mut self, first: u64) -> Result<u64, TrainError> {
        let positions = self.plan.batch.positions;
        let host = &mut self.host;
        let mut tokens = 0;
        for row in 0..self.plan.batch.windows {
            let part = row * positions..(row + 1) * positions;
            let mut out = SampleMut {
                inputs: &mut host.tokens[part.clone()],
                targets: &mut host.targets[part.clone()],
                doc_start: &mut host.doc_start[part],
            };
            let read = || self.dataset.read(Split::Train, first + row as u64, &mut out);
            let info = device::work::calling("read of a sample", None, read)?;
            tokens += u64::from(info.target_tokens);
            let bytes = host.ballot.target_bytes.zip(info.target_bytes);
            host.ballot.target_bytes = bytes.map(|(a, b)| a + b);
        }
        host.ballot.target_tokens += tokens;
        Ok(tokens)
    }

    /// The gradient buffer that receives this rank's reduced segments.
    fn out_slot(&self) -> usize {
        self.plan.partials[self.ranks.rank()][0].1
    }

    /// Exchanges statistics and counts, and decides; every rank decides the same.
    fn vote(&mut self, wants: Wants) -> Result<Verdict, TrainError> {
        let out = &self.memory.grads[self.out_slot()];
        let host = &mut self.host;
        self.optimizer.statistics(&self.stream, out, &mut host.statistics)?;
        let ballot = &mut host.ballot;
        (ballot.stop, ballot.terminate) = (wants.stop, wants.terminate);
        ballot.statistics.clear();
        for slots in &self.plan.slots[self.ranks.rank()] {
            ballot.statistics.extend_from_slice(&host.statistics[slots.clone()]);
        }
        self.engine.counts(&mut ballot.counts)?;
        ballot.encode(&mut host.bytes);
        self.ranks.training.all_gather_bytes_into(&host.bytes, &mut host.ballots)?;
        host.tally.count(&host.ballots, &self.plan.slots)?;
        for (sum, spent) in self.spent.iter_mut().zip(&host.tally.spent) {
            *sum = sum.plus(spent);
        }
        let (statistics, tokens) = (&host.tally.statistics, host.tally.target_tokens);
        self.clipper.decide(statistics, tokens, self.previous_norm, &mut host.decision)?;
        Ok(host.decision.verdict)
    }

    /// Runs the leaves again to find where gradients stopped being finite.
    fn diagnose(&mut self, verdict: Verdict) -> Result<NonFinite, TrainError> {
        let mut mine = Vec::new();
        let leaves: Vec<usize> = self.schedule.steps.iter().map(|step| step.leaf).collect();
        for leaf in leaves {
            self.leaf(self.samples, leaf, 0, None)?;
            let grads = &self.memory.grads[0];
            for tensor in diagnose::non_finite_tensors(&self.stream, &self.plan.flat, grads)? {
                let parameter = self.plan.schema.tensors[tensor].name.clone();
                mine.push(Place { parameter, at: Some((self.ranks.rank(), leaf)) });
            }
        }
        mine.truncate(diagnose::MOST);
        let all =
            self.ranks.training.all_gather_bytes(&serde_json::to_vec(&mine).unwrap_or_default())?;
        let mut places: Vec<Place> = Vec::new();
        for message in &all {
            places.extend(serde_json::from_slice::<Vec<_>>(message).unwrap_or_default());
        }
        if places.is_empty() {
            let names = &self.plan.schema.tensors;
            let place = |&t: &usize| Place { parameter: names[t].name.clone(), at: None };
            places = self.host.decision.non_finite.iter().map(place).collect();
        }
        places.truncate(diagnose::MOST);
        let action = if verdict == Verdict::Stop { Action::Stopped } else { Action::Skipped };
        Ok(NonFinite { step: self.step + 1, places, action })
    }

    /// Target tokens trained on since the run's first step.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Of these, the ones since this process started.
    pub fn tokens_since_start(&self) -> u64 {
        self.tokens - self.tokens_loaded
    }

    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }
}
