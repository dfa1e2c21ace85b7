//! One optimizer step of a rank.
//!
//! Nothing that outlives the step is written before the vote. Every rank sees the same ballots in
//! the same order and so decides the same.

use data::{SampleMut, Split};
use kernels::{Onto, Op, elementwise};
use model::{Gradients, Inputs};
use optim::{StepScalars, Verdict};

use crate::diagnose;
use crate::event::{Action, NonFinite, Place};
use crate::hooks::{Leaving, Moves};
use crate::laps::Part;
use crate::save_beside::Beside;
use crate::{Engine, Taken, TrainError, Trainer, Wants};

impl<E: Engine> Trainer<E> {
    /// Takes one optimizer step.
    ///
    /// # Errors
    /// A lost peer, of the exchange of weights before it too; device errors. Before the vote the
    /// weights are those of before; after it they may be of neither.
    pub fn take_step(&mut self, wants: Wants) -> Result<Taken, TrainError> {
        self.begin_step()?;
        self.accumulate()?; // this rank's leaves, folded; buckets leave as they become final
        self.reduce()?; // owners have the sums of all ranks
        let verdict = self.vote(wants)?; // the same on every rank
        let mut non_finite = None;
        match verdict {
            Verdict::Apply => {
                self.apply()?; // owners update their pieces; the engine balances
                self.gather()?; // weights go to everyone, until they are read
            }
            Verdict::Skip | Verdict::Stop => non_finite = Some(self.diagnose(verdict)?),
        }
        let step = self.end_step(verdict);
        Ok(Taken { step, wants: self.wanted(), non_finite })
    }

    fn begin_step(&mut self) -> Result<(), TrainError> {
        self.laps.begin(self.step + 1);
        self.host.open.begin();
        let ballot = &mut self.host.ballot;
        (ballot.target_tokens, ballot.target_bytes) = (0, Some(0));
        ballot.losses.clear();
        self.engine.begin_step()
    }

    /// Forward and backward of this rank's leaves, folded along the tree.
    fn accumulate(&mut self) -> Result<(), TrainError> {
        let last = self.accumulation.steps.len() - 1;
        for index in 0..=last {
            let (leaf, buffer) =
                (self.accumulation.steps[index].leaf, self.accumulation.steps[index].buffer);
            if index == last {
                self.leaf(leaf, buffer, Some(index))?; // with its folds, bucket by bucket
                break;
            }
            self.leaf(leaf, buffer, None)?;
            for fold in 0..self.accumulation.steps[index].folds.len() {
                let (into, from) = self.accumulation.steps[index].folds[fold];
                let (y, x) = (self.memory.grads[into].clone(), self.memory.grads[from].clone());
                elementwise::Add { x, y }.launch(&self.stream)?;
            }
            self.laps.lap(Part::Fold);
        }
        self.stream.synchronize()?;
        self.laps.lap(Part::Fold);
        Ok(())
    }

    /// One leaf into one gradient buffer. Of the last one of a step it is said which step of the
    /// accumulation it is: its folds are made, and buckets leave, while its last backward pass goes
    /// on.
    fn leaf(&mut self, leaf: usize, buffer: usize, last: Option<usize>) -> Result<(), TrainError> {
        let batch = &self.config.batch;
        let (per_leaf, windows) = (batch.micro_batches, batch.micro_batch);
        for micro in 0..per_leaf {
            let first = self.samples + ((leaf * per_leaf + micro) * windows) as u64;
            let tokens = self.read(first)?;
            self.laps.lap(Part::Data);
            let Trainer { engine, memory, host, ranks, plan, accumulation, stream, laps, .. } =
                self;
            let weights = &memory.weights;
            let mut moves = Moves { ranks, laps, part: Part::Forward, leaving: None };
            let inputs =
                Inputs { tokens: &host.tokens, targets: &host.targets, doc_start: &host.doc_start };
            let stash = engine.forward(&inputs, weights, &mut moves)?;
            moves.laps.lap(Part::Forward);
            let to = Gradients {
                flat: &memory.grads[buffer],
                onto: if micro > 0 { Onto::Add } else { Onto::Overwrite },
                tokens: tokens as f64,
                loss: &memory.loss,
            };
            moves.part = Part::Backward;
            moves.leaving = last.filter(|_| micro + 1 == per_leaf).map(|index| Leaving {
                stream,
                buckets: &plan.flat.buckets,
                grads: &memory.grads,
                folds: &accumulation.steps[index].folds,
                open: &mut host.open,
            });
            engine.backward(stash, weights, to, &mut moves)?;
            moves.leave_all()?;
            let mut loss = [0.0];
            stream.copy_out(&memory.loss, &mut loss)?;
            host.ballot.losses.push(loss[0]);
            laps.lap(Part::Backward);
        }
        Ok(())
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

    /// Waits until the gradients of all ranks are added.
    fn reduce(&mut self) -> Result<(), TrainError> {
        self.ranks.reduced()?;
        self.laps.lap(Part::Reduce);
        Ok(())
    }

    /// The gradient buffer that receives this rank's reduced segments.
    fn sums(&self) -> usize {
        self.plan.partials[self.ranks.rank()][0].1
    }

    /// Exchanges statistics and counts, and decides; every rank decides the same.
    fn vote(&mut self, wants: Wants) -> Result<Verdict, TrainError> {
        let out = &self.memory.grads[self.sums()];
        let host = &mut self.host;
        self.optimizer.statistics(&self.stream, out, &mut host.statistics)?;
        let ballot = &mut host.ballot;
        (ballot.stop, ballot.terminate) = (wants.stop, wants.terminate);
        ballot.spent = self.laps.ended();
        ballot.saves = self.beside.as_ref().map_or(0, Beside::ended);
        ballot.statistics.clear();
        for numbers in &self.plan.own_statistics[self.ranks.rank()] {
            ballot.statistics.extend_from_slice(&host.statistics[numbers.clone()]);
        }
        self.engine.counts(&mut ballot.counts)?;
        ballot.encode(&mut host.bytes);
        self.ranks.training.all_gather_bytes_into(&host.bytes, &mut host.ballots)?;
        host.tally.count(&host.ballots, &self.plan.own_statistics)?;
        for (sum, spent) in self.spent.iter_mut().zip(&host.tally.spent) {
            *sum = sum.plus(spent);
        }
        let (statistics, tokens) = (&host.tally.statistics, host.tally.target_tokens);
        self.clipper.decide(statistics, tokens, self.previous_norm, &mut host.decision)?;
        let verdict = host.decision.verdict;
        self.laps.lap(Part::Vote);
        Ok(verdict)
    }

    /// Updates this rank's pieces of the weights.
    fn apply(&mut self) -> Result<(), TrainError> {
        // Nobody may still write what is updated here, nor read it elsewhere.
        self.ranks.settle()?;
        let scalars = StepScalars {
            step: self.updates + 1,
            lr_factor: self.lr_factor(self.step + 1),
            inverse_tokens: 1.0 / self.host.tally.target_tokens.max(1) as f64,
            clip: &self.host.decision,
        };
        let sums = &self.memory.grads[self.sums()];
        self.optimizer.apply(&self.stream, &self.memory.weights, sums, &scalars)?;
        self.engine.after_step(&self.host.tally.counts)?;
        self.updates += 1;
        self.previous_norm = Some(self.host.decision.norm);
        self.stream.synchronize()?;
        self.laps.lap(Part::Optimizer);
        Ok(())
    }

    /// Lets the weights go to everyone; they are waited for where they are read.
    fn gather(&mut self) -> Result<(), TrainError> {
        self.ranks.gather(&self.stream)?;
        self.engine.weights_changed();
        self.laps.lap(Part::Gather);
        Ok(())
    }

    /// Runs the leaves again to find where gradients stopped being finite.
    fn diagnose(&mut self, verdict: Verdict) -> Result<NonFinite, TrainError> {
        let mut mine = Vec::new();
        let leaves: Vec<usize> = self.accumulation.steps.iter().map(|step| step.leaf).collect();
        for leaf in leaves {
            self.leaf(leaf, 0, None)?;
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
        self.laps.lap(Part::Vote);
        let action = if verdict == Verdict::Stop { Action::Stopped } else { Action::Skipped };
        Ok(NonFinite { step: self.step + 1, places, action })
    }
}
