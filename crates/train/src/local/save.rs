//! A local checkpoint, from the ranks' files to a commit on every host.

use checkpoint::{Attempt, RankDigest, RunState, SavePlan};
use comm::Control;

use super::Local;
use crate::TrainError;
use crate::save_outcome::{heard, message};

/// A save, as a rank knows it after it has written its files.
pub(crate) struct Written<'a> {
    pub(crate) attempt: Attempt,
    /// Of rank 0.
    pub(crate) plan: Option<&'a mut SavePlan>,
    pub(crate) digest: Result<RankDigest, TrainError>,
    pub(crate) state: &'a RunState,
}

impl Local {
    /// Copies what the ranks have `written`, and commits on every host. Collective. Returns the
    /// bytes of all files, each counted once, or why it was given up, if it was: the run goes on,
    /// and what the attempt left is removed.
    ///
    /// # Errors
    /// Lost peers.
    pub(crate) fn conclude(
        &self,
        control: &dyn Control,
        written: Written,
    ) -> Result<Result<u64, String>, TrainError> {
        let attempt = written.attempt;
        let outcome = self.try_conclude(control, written)?;
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
        Written { attempt, plan, digest, state }: Written,
    ) -> Result<Result<u64, String>, TrainError> {
        let words = control.all_gather_bytes(&message(&digest))?;
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
            told = match plan.manifest(attempt, &digests, state) {
                Ok(bytes) => [&[0], &bytes[..]].concat(),
                Err(error) => [&[1], error.to_string().as_bytes()].concat(),
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

    /// Removes what is older than this attempt, committed or not.
    fn remove_older(&self, newest: Attempt) {
        let is_older = |attempt: &Attempt| attempt.age_key() < newest.age_key();
        for attempt in self.store.attempts().unwrap_or_default().into_iter().filter(is_older) {
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
