//! The end of a step: counters, and its event.

use optim::Verdict;

use crate::event::Step;
use crate::laps::Part;
use crate::trainer::Host;
use crate::{Engine, Trainer, Wants};

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
        let first = self.config.optimizer.rules.first();
        let base = first.and_then(|rule| Some(rule.update(0).ok()?.lr()));
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
}
