//! The loop around the step: when to validate, to save and to end.

use checkpoint::Store;

use crate::event::{Action, Evaluation, FinishReason, NonFinite, Saved};
use crate::laps::Part;
use crate::pulse::{self, Phase};
use crate::retention::Retention;
use crate::vote::Wants;
use crate::{Engine, Event, Taken, TrainError, Trainer};

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub reason: FinishReason,
    pub step: u64,
    pub final_loss: Option<f64>,
    pub final_bits_per_byte: Option<f64>,
    pub checkpoint: Option<String>,
}

impl<E: Engine> Trainer<E> {
    /// Steps, evaluates and saves until the run is complete or asked to end. Rank 0's events are
    /// the run's.
    ///
    /// # Errors
    /// As a step or a save.
    pub fn run(
        &mut self,
        store: &Store,
        generation: u32,
        max_steps: Option<u64>,
        wants: &mut dyn FnMut(u64) -> Wants,
        emit: &mut dyn FnMut(Event) -> Result<(), TrainError>,
    ) -> Result<Outcome, TrainError> {
        let total = self.config.train.steps;
        let last = max_steps.map_or(total, |most| total.min(most));
        // One rank removes for all.
        let keep = if self.ranks.rank() == 0 { self.config.checkpoint.keep } else { 0 };
        let mut retention = Retention::new(keep);
        let mut saved = None;
        let mut evaluated = None;
        let mut reason = match self.step >= total {
            true => FinishReason::AlreadyComplete,
            false if last < total => FinishReason::MaxSteps,
            false => FinishReason::Complete,
        };
        while self.step < last {
            pulse::enter(Phase::Training);
            if self.quiet_after.contains(&self.step) {
                self.ranks.settle()?;
            }
            let Taken { step, wants: wanted, non_finite } = self.take_step(wants(self.step))?;
            if let Some(report) = &non_finite {
                emit(Event::NonFinite(report.clone()))?;
            }
            self.rank_times().map_or(Ok(()), &mut *emit)?;
            emit(Event::Step(step))?;
            if let Some(NonFinite { step, places, action: Action::Stopped }) = non_finite {
                let places: Vec<String> = places.iter().map(ToString::to_string).collect();
                return Err(TrainError::NonFinite { step, places: places.join(", ") });
            }
            // After the last step there is nothing to come back for.
            let ends = (wanted.stop || wanted.terminate) && self.step < total;
            let due = |every: u64| every > 0 && self.step.is_multiple_of(every);
            let (eval_due, save_due) =
                (due(self.config.train.eval_every), due(self.config.checkpoint.every));
            if (eval_due || self.step == total) && !ends && self.dataset.validation_samples() > 0 {
                let evaluation = self.timed_evaluation()?;
                evaluated = Some((evaluation.loss, evaluation.bits_per_byte));
                emit(Event::Evaluation(evaluation))?;
            }
            if save_due || ends || self.step == last {
                let event = self.timed_save(store, generation)?;
                saved = Some(event.path.clone());
                emit(Event::Saved(event))?;
                retention.begin(store).map_or(Ok(()), &mut *emit)?;
            }
            if ends {
                let terminated = wanted.terminate;
                reason =
                    if terminated { FinishReason::Terminated } else { FinishReason::Interrupted };
                break;
            }
        }
        pulse::enter(Phase::Ending);
        self.last_rank_times()?.map_or(Ok(()), &mut *emit)?;
        retention.finish(store).into_iter().try_for_each(&mut *emit)?;
        let (final_loss, final_bits_per_byte) = evaluated.unzip();
        let final_bits_per_byte = final_bits_per_byte.flatten();
        let step = self.step;
        Ok(Outcome { reason, step, final_loss, final_bits_per_byte, checkpoint: saved })
    }

    /// Evaluates between steps, in time of its own.
    fn timed_evaluation(&mut self) -> Result<Evaluation, TrainError> {
        pulse::enter(Phase::Validating);
        self.laps.lap(Part::Between);
        let evaluation = self.evaluate()?;
        self.note_memory();
        self.laps.lap(Part::Evaluation);
        self.times.evaluation_ms += evaluation.ms;
        Ok(evaluation)
    }

    /// Saves between steps, in time of its own.
    fn timed_save(&mut self, store: &Store, generation: u32) -> Result<Saved, TrainError> {
        pulse::enter(Phase::Saving);
        self.laps.lap(Part::Between);
        let event = self.save(store, generation)?;
        self.note_memory();
        self.laps.lap(Part::Saves);
        self.times.saves_ms += event.ms;
        Ok(event)
    }
}
