//! A save that is begun after a step and ends beside the steps to come, as the loop sees it.

use std::time::Instant;

use checkpoint::{Attempt, Store};

use crate::event::Saved;
use crate::save_beside::{Beside, Ended, Job, Target};
use crate::{Engine, TrainError, Trainer};

impl<E: Engine> Trainer<E> {
    /// Saves a checkpoint of the state after the last step beside the steps to come: returns when
    /// the state is copied, and waits before that only where both buffers are in use. Where saves
    /// are not beside ([`crate::RunPlan::saves_beside`]) it is saved at once, and returned. All
    /// ranks call it after the same steps.
    ///
    /// # Errors
    /// As [`Trainer::save`]; of the writing see [`Trainer::finish_saves`].
    pub fn begin_save(
        &mut self,
        store: &Store,
        generation: u32,
    ) -> Result<Option<Saved>, TrainError> {
        let Some(mut beside) = self.beside.take() else {
            return self.save(store, generation).map(Some);
        };
        let handed = self.hand_over(&mut beside, Target::Store(store.clone()), generation);
        self.beside = Some(beside);
        handed.map(|()| None)
    }

    /// As [`Trainer::begin_save`], of a local checkpoint ([`Trainer::keep_local`]).
    ///
    /// # Errors
    /// As there.
    pub fn begin_local_save(&mut self, generation: u32) -> Result<(), TrainError> {
        let (Some(mut beside), Some(local)) = (self.beside.take(), self.local.clone()) else {
            return Ok(());
        };
        let handed = self.hand_over(&mut beside, Target::Local(local), generation);
        self.beside = Some(beside);
        handed
    }

    fn hand_over(
        &mut self,
        beside: &mut Beside,
        target: Target,
        generation: u32,
    ) -> Result<(), TrainError> {
        let begun = Instant::now();
        self.ranks.settle()?;
        self.optimizer.check_momentum()?;
        let mut buffer = beside.buffer()?;
        self.saver()?.copy(self.planned.boxes(), &mut buffer)?;
        let attempt = Attempt { step: self.step, generation };
        let state = self.run_state();
        beside.hand_over(Job { target, attempt, state, buffer, begun })
    }

    /// Waits for the saves that were begun; returns those that no call has returned, but for local
    /// ones.
    ///
    /// # Errors
    /// The first save that failed.
    pub fn finish_saves(&mut self) -> Result<Vec<Saved>, TrainError> {
        let saved = |ended| match ended {
            Ended::Saved(saved) => Some(saved),
            Ended::Local(_) => None,
        };
        Ok(self.all_saves()?.into_iter().filter_map(saved).collect())
    }

    /// As [`Trainer::finish_saves`], with local ones.
    pub(crate) fn all_saves(&mut self) -> Result<Vec<Ended>, TrainError> {
        let Some(beside) = &mut self.beside else { return Ok(Vec::new()) };
        beside.settle()?;
        beside.known(beside.begun())
    }

    /// The saves that have ended as far as all ranks know by the last vote.
    ///
    /// # Errors
    /// The first of them that failed.
    pub(crate) fn known_saves(&mut self) -> Result<Vec<Ended>, TrainError> {
        let ended = self.host.tally.saves;
        self.beside.as_mut().map_or(Ok(Vec::new()), |beside| beside.known(ended))
    }

    /// The reason to leave out a save after this step, if there is one; the same on every rank.
    /// `key` of the config says how often there is one.
    pub(crate) fn overtaken(&self, key: &str) -> Option<String> {
        self.beside.as_ref()?.is_overtaken(self.step, key)
    }
}
