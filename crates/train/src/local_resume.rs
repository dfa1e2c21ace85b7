//! A run that keeps local checkpoints, and goes on from one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Attempt, FileRange};

use crate::load::Taken;
use crate::local::{Found, Local, find};
use crate::save::{Loaded, check_model};
use crate::{Engine, TrainError, Trainer};

/// A local checkpoint that a run went on from.
#[derive(Debug)]
pub struct LoadedLocally {
    pub path: PathBuf,
    pub loaded: Loaded,
    pub warnings: Vec<String>,
}

impl<E: Engine> Trainer<E> {
    /// Keeps local checkpoints in `root`, a directory of this host that is this run's alone; as
    /// often as the config says. Collective.
    ///
    /// # Errors
    /// A directory that cannot be made or written; lost peers.
    pub fn keep_local(&mut self, root: &Path) -> Result<(), TrainError> {
        let (world, control) = (&self.ranks.world, self.ranks.saving.as_ref());
        self.local = Some(Arc::new(Local::new(root, world, control)?));
        Ok(())
    }

    /// Takes over the newest local checkpoint that is newer than `than` and can be read; with what
    /// was passed over on the way, a line each. A file that one host cannot read is read by
    /// another that has a copy. Collective.
    ///
    /// # Errors
    /// A checkpoint of another model; lost peers.
    pub fn load_local(
        &mut self,
        than: Option<Attempt>,
    ) -> Result<(Option<LoadedLocally>, Vec<String>), TrainError> {
        let Some(local) = self.local.clone() else { return Ok((None, Vec::new())) };
        self.settle_saves()?;
        let (found, mut told) = find(&local, self.ranks.saving.as_ref(), than)?;
        let Some(found) = found else { return Ok((None, told)) };
        check_model(&found.checkpoint, &self.plan)?;
        match self.load_found(&local, found, &mut told) {
            Err(TrainError::Damaged { reason, .. }) => {
                told.push(format!("passed over: {reason}"));
                Ok((None, told))
            }
            loaded => Ok((Some(loaded?), told)),
        }
    }

    /// Loads a checkpoint whose files lie with several hosts.
    fn load_found(
        &mut self,
        local: &Local,
        found: Found,
        told: &mut Vec<String>,
    ) -> Result<LoadedLocally, TrainError> {
        let Found { checkpoint, mut holders } = found;
        loop {
            let can_read = |rank: usize, at: FileRange| {
                holders[at.file as usize].contains(&local.hosts.of(rank))
            };
            match self.take_from(&checkpoint, Taken::All, can_read) {
                Ok(()) => break,
                Err(TrainError::Damaged { reason, at: Some((rank, file)), path }) => {
                    let (host, holders) = (local.hosts.of(rank), &mut holders[file as usize]);
                    let before = holders.len();
                    holders.retain(|&other| other != host);
                    if holders.is_empty() || holders.len() == before {
                        return Err(TrainError::Damaged { path, reason, at: None });
                    }
                    told.push(format!("{reason}; the copy on another host serves instead"));
                }
                Err(error) => return Err(error),
            }
        }
        let (loaded, warnings) = self.adopt(&checkpoint)?;
        Ok(LoadedLocally { path: checkpoint.path().to_owned(), loaded, warnings })
    }

    /// Removes the local checkpoints, which are of no use when a later one is on the disk.
    /// Collective.
    ///
    /// # Errors
    /// Lost peers. A directory that cannot be removed stays.
    pub fn end_local(&mut self) -> Result<(), TrainError> {
        let Some(local) = self.local.take() else { return Ok(()) };
        self.settle_saves()?;
        self.ranks.saving.barrier()?;
        if local.leads() {
            local.remove();
        }
        Ok(())
    }
}
