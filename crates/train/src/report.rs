//! The end of a step: counters, its event, and the times of all ranks.

use optim::Verdict;

use crate::event::Step;
use crate::laps::Part;
use crate::rank_times::{RankTimes, Spread, spreads};
use crate::trainer::Host;
use crate::vote::{Ballot, Tally, Wants};
use crate::{Engine, Event, TrainError, Trainer};

impl<E: Engine> Trainer<E> {
    /// Counts the step that was decided so, and tells of it.
    pub(crate) fn end_step(&mut self, verdict: Verdict) -> Step {
        self.step += 1;
        self.samples += self.config.batch.samples_per_step();
        self.tokens += self.host.tally.target_tokens;
        let took_ns = self.laps.step_done();
        // Looking costs a walk through all pages; later steps use what the first ones did.
        if self.updates <= 2 {
            self.note_memory();
        }
        let step = self.report(took_ns, verdict);
        self.times.add(&step);
        step
    }

    /// Whatever any rank was asked.
    pub(crate) fn wanted(&self) -> Wants {
        let tally = &self.host.tally;
        Wants { stop: tally.stop, terminate: tally.terminate }
    }

    /// The schedule's factor on the learning rates of a step.
    pub(crate) fn lr_factor(&self, step: u64) -> f64 {
        optim::factor(step, self.config.train.steps, &self.config.optimizer.schedule)
    }

    /// The event of the step, which took `took_ns`.
    fn report(&mut self, took_ns: u64, verdict: Verdict) -> Step {
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
        let base = self.plan.updates.iter().find(|plan| plan.rule == 0).map(|p| p.update.lr());
        let bytes = tally.target_bytes.filter(|&bytes| bytes > 0);
        Step {
            step: self.step,
            loss: tally.loss / tally.target_tokens.max(1) as f64,
            bits_per_byte: bytes.map(|b| tally.loss / std::f64::consts::LN_2 / b as f64),
            grad_norm: decision.norm,
            lr: self.lr_factor(self.step) * base.unwrap_or(1.0),
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

    /// The times that came with the last vote, if any; on rank 0 alone.
    pub(crate) fn rank_times(&self) -> Option<Event> {
        let Tally { spent_step, spent, .. } = &self.host.tally;
        let is_told = self.ranks.rank() == 0 && *spent_step > 0;
        is_told.then(|| Event::Ranks(RankTimes::new(*spent_step, spent)))
    }

    /// As [`Trainer::rank_times`] of the last step, which no vote follows. Collective.
    ///
    /// # Errors
    /// As a vote.
    pub(crate) fn last_rank_times(&mut self) -> Result<Option<Event>, TrainError> {
        if self.laps.is_idle() {
            return Ok(None);
        }
        self.ranks.settle()?;
        let spent = Some(self.laps.end(self.ranks.world.timings()));
        let mut mine = Vec::new();
        Ballot { spent, target_bytes: Some(0), ..Ballot::default() }.encode(&mut mine);
        let ballots = self.ranks.training.all_gather_bytes(&mine)?;
        let mut tally = Tally::default();
        tally.count(&ballots, &vec![Vec::new(); ballots.len()])?;
        for (sum, spent) in self.spent.iter_mut().zip(&tally.spent) {
            *sum = sum.plus(spent);
        }
        let is_told = self.ranks.rank() == 0;
        Ok(is_told.then(|| Event::Ranks(RankTimes::new(tally.spent_step, &tally.spent))))
    }

    /// How the time of all steps of this start was spread over the ranks; nothing for one alone.
    pub fn spreads(&self) -> Vec<Spread> {
        if self.spent.len() > 1 { spreads(&self.spent) } else { Vec::new() }
    }
}
