//! A local checkpoint, from the ranks' files to a commit on every host.

use checkpoint::{Attempt, RankDigest, RunState, SavePlan};
use comm::Control;

use super::Local;
use crate::TrainError;
use crate::save_outcome::{heard, message};

/// The manifest, or why there is none.
type Manifest = Result<Vec<u8>, String>;

impl Local {
    /// Copies what the ranks have `written`, and commits on every host. Rank 0 has the plan.
    /// Collective. Returns why it was given up, if it was: the run goes on, and what the attempt
    /// left is removed.
    ///
    /// # Errors
    /// Lost peers.
    pub(crate) fn conclude(
        &self,
        control: &dyn Control,
        attempt: Attempt,
        plan: Option<&mut SavePlan>,
        written: &Result<RankDigest, TrainError>,
        state: &RunState,
    ) -> Result<Result<u64, String>, TrainError> {
        let outcome = self.try_conclude(control, attempt, plan, written, state)?;
        if self.leads() {
            // Older ones are of no use once this is committed, and this is none where it is not. A
            // directory that cannot be removed is tried again next time.
            match outcome {
                Ok(_) => self.remove_older(attempt),
                Err(_) => drop(self.store.remove(attempt)),
            }
        }
        Ok(outcome)
    }

    fn try_conclude(
        &self,
        control: &dyn Control,
        attempt: Attempt,
        plan: Option<&mut SavePlan>,
        written: &Result<RankDigest, TrainError>,
        state: &RunState,
    ) -> Result<Result<u64, String>, TrainError> {
        let words = control.all_gather_bytes(&message(written))?;
        let mut digests = Vec::with_capacity(words.len());
        for (rank, word) in words.iter().enumerate() {
            match heard(word) {
                Ok(digest) => digests.push(digest),
                Err(reason) => return Ok(Err(format!("rank {rank}: {reason}"))),
            }
        }
        let names: Vec<_> = digests.iter().map(RankDigest::file_names).collect();
        let copied = match &self.copies {
            None => Ok(()),
            Some(copies) => copies.copy(&self.store.path_of(attempt), &names),
        };
        // Without its peers a rank cannot go on.
        let copied = match copied {
            Err(error @ TrainError::Comm(_)) => return Err(error),
            copied => copied.map_err(|error| error.to_string()),
        };
        if let Err(reason) = agreed(control, copied)? {
            return Ok(Err(reason));
        }
        let mut told = Vec::new();
        if let Some(plan) = plan {
            let manifest: Manifest =
                plan.manifest(attempt, &digests, state).map_err(|error| error.to_string());
            told = match manifest {
                Ok(bytes) => [&[0], &bytes[..]].concat(),
                Err(reason) => [&[1], reason.as_bytes()].concat(),
            };
        }
        control.broadcast_bytes(0, &mut told)?;
        let published = match told.split_first() {
            Some((0, manifest)) if self.leads() => {
                self.store.publish(attempt, manifest).map(drop).map_err(|error| error.to_string())
            }
            Some((0, _)) => Ok(()),
            Some((_, reason)) => Err(String::from_utf8_lossy(reason).into_owned()),
            None => Err("rank 0 has no plan of this save".to_owned()),
        };
        let bytes: u64 = names.iter().flatten().map(|(_, bytes)| bytes).sum();
        Ok(agreed(control, published)?.map(|()| bytes))
    }

    /// Removes all attempts but this one.
    fn remove_older(&self, newest: Attempt) {
        let attempts = self.store.attempts().unwrap_or_default();
        for attempt in attempts.into_iter().filter(|&attempt| attempt != newest) {
            let _ = self.store.remove(attempt);
        }
    }
}

/// Whether all ranks succeeded; else why the first did not. Collective.
fn agreed(
    control: &dyn Control,
    mine: Result<(), String>,
) -> Result<Result<(), String>, TrainError> {
    let word = mine.err().unwrap_or_default();
    let words = control.all_gather_bytes(word.as_bytes())?;
    let failed = words.iter().enumerate().find(|(_, word)| !word.is_empty());
    Ok(failed.map_or(Ok(()), |(rank, word)| {
        Err(format!("rank {rank}: {}", String::from_utf8_lossy(word)))
    }))
}
