//! The loop around the step: when to validate, to save and to end.
//!
//! Saves beside the training are told when all ranks know that they have ended. The last save of a
//! run is waited for, after those before it.

use std::time::Instant;

use checkpoint::{Keep, Store};

use crate::config::CheckpointConfig;
use crate::event::{Action, Evaluation, FinishReason, NonFinite, Saved};
use crate::laps::Part;
use crate::pulse::{self, Phase};
use crate::retention::Retention;
use crate::save_beside::Ended;
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

/// Takes the events of a run.
type Emit<'a> = &'a mut dyn FnMut(Event) -> Result<(), TrainError>;

/// The saves of a run so far.
struct Saves<'a> {
    store: &'a Store,
    retention: Retention,
    /// The last that was committed.
    newest: Option<String>,
}

impl Saves<'_> {
    /// A save beside the training has ended.
    fn tell_ended(&mut self, ended: Ended, emit: Emit) -> Result<(), TrainError> {
        match ended {
            Ended::Saved(saved) => self.tell(saved, emit),
            Ended::Local(Ok(saved)) => emit(Event::SavedLocally(saved)),
            Ended::Local(Err(reason)) => {
                let message = format!("a local checkpoint is left out: {reason}");
                emit(Event::Warning { message })
            }
        }
    }

    /// A save is committed.
    fn tell(&mut self, event: Saved, emit: Emit) -> Result<(), TrainError> {
        self.newest = Some(event.path.clone());
        emit(Event::Saved(event))?;
        self.retention.begin(self.store).map_or(Ok(()), emit)
    }
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
        let mut saves = Saves { store, retention: Retention::new(self.keeps()), newest: None };
        let mut evaluated = None;
        let mut reason = match self.step >= total {
            true => FinishReason::AlreadyComplete,
            false if last < total => FinishReason::MaxSteps,
            false => FinishReason::Complete,
        };
        while self.step < last {
            pulse::enter(Phase::Training);
            if self.quiet_after.contains(&self.step) {
                self.settle_saves()?;
                self.ranks.settle()?;
            }
            let Taken { step, wants: wanted, non_finite } = self.take_step(wants(self.step))?;
            if let Some(report) = &non_finite {
                emit(Event::NonFinite(report.clone()))?;
            }
            self.rank_times().map_or(Ok(()), &mut *emit)?;
            emit(Event::Step(step))?;
            self.tell_saves(&mut saves, emit)?;
            if let Some(NonFinite { step, places, action: Action::Stopped }) = non_finite {
                self.end_saves(&mut saves, emit)?;
                let places: Vec<String> = places.iter().map(ToString::to_string).collect();
                return Err(TrainError::NonFinite { step, places: places.join(", ") });
            }
            // After the last step there is nothing to come back for.
            let ends = (wanted.stop || wanted.terminate) && self.step < total;
            let eval_due = self.is_due(self.config.train.eval_every);
            if (eval_due || self.step == total) && !ends && self.dataset.validation_samples() > 0 {
                let evaluation = self.timed_evaluation()?;
                evaluated = Some((evaluation.loss, evaluation.bits_per_byte));
                emit(Event::Evaluation(evaluation))?;
            }
            if ends || self.step == last {
                self.end_saves(&mut saves, emit)?;
                saves.tell(self.timed_save(store, generation)?, emit)?;
            } else if self.is_due(self.config.checkpoint.every) {
                self.timed_begin_save(generation, &mut saves, emit)?;
            } else if self.is_local_due() {
                self.timed_begin_local_save(generation, emit)?;
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
        // Who has to be gone in a moment leaves that to the next start.
        if reason != FinishReason::Terminated {
            saves.retention.finish(store).into_iter().try_for_each(&mut *emit)?;
        }
        let (final_loss, final_bits_per_byte) = evaluated.unzip();
        let final_bits_per_byte = final_bits_per_byte.flatten();
        let step = self.step;
        let checkpoint = saves.newest;
        Ok(Outcome { reason, step, final_loss, final_bits_per_byte, checkpoint })
    }

    /// Checkpoints that this rank keeps when it removes the others: one removes for all.
    fn keeps(&self) -> Option<Keep> {
        let CheckpointConfig { keep: newest, keep_every: every, .. } = self.config.checkpoint;
        (self.ranks.rank() == 0 && newest > 0).then_some(Keep { newest, every })
    }

    fn is_due(&self, every: u64) -> bool {
        every > 0 && self.step.is_multiple_of(every)
    }

    /// Tells the saves that have ended as far as all ranks know.
    fn tell_saves(&mut self, saves: &mut Saves, emit: Emit) -> Result<(), TrainError> {
        self.known_saves()?.into_iter().try_for_each(|ended| saves.tell_ended(ended, emit))
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

    /// Begins a save between steps, if it can be written; else that is told.
    fn timed_begin_save(
        &mut self,
        generation: u32,
        saves: &mut Saves,
        emit: Emit,
    ) -> Result<(), TrainError> {
        if let Some(message) = self.overtaken("checkpoint.every") {
            return emit(Event::Warning { message });
        }
        if self.beside.is_none() {
            return saves.tell(self.timed_save(saves.store, generation)?, emit);
        }
        pulse::enter(Phase::Saving);
        self.laps.lap(Part::Between);
        let begun = Instant::now();
        self.begin_save(saves.store, generation)?;
        self.laps.lap(Part::Saves);
        self.times.saves_ms += begun.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }

    fn is_local_due(&self) -> bool {
        let every = self.config.checkpoint.local.as_ref().map_or(0, |local| local.every);
        self.local.is_some() && self.beside.is_some() && self.is_due(every)
    }

    /// Begins a local save between steps, if it can be written; else that is told.
    fn timed_begin_local_save(&mut self, generation: u32, emit: Emit) -> Result<(), TrainError> {
        if let Some(message) = self.overtaken("checkpoint.local.every") {
            return emit(Event::Warning { message });
        }
        pulse::enter(Phase::Saving);
        self.laps.lap(Part::Between);
        let begun = Instant::now();
        self.begin_local_save(generation)?;
        self.laps.lap(Part::Saves);
        self.times.saves_ms += begun.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }

    /// Waits for the saves that are being written, and tells them.
    fn end_saves(&mut self, saves: &mut Saves, emit: Emit) -> Result<(), TrainError> {
        pulse::enter(Phase::Saving);
        self.laps.lap(Part::Between);
        let begun = Instant::now();
        let ended = self.all_saves()?;
        self.laps.lap(Part::Saves);
        self.times.saves_ms += begun.elapsed().as_secs_f64() * 1e3;
        ended.into_iter().try_for_each(|ended| saves.tell_ended(ended, emit))
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
