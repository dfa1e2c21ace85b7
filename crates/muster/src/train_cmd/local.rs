//! The directories of local checkpoints: `DIR/muster-ID` on each host, where ID is a word that the
//! run's own directory keeps, so that another run never takes them for its own.

use std::io::ErrorKind;
use std::path::Path;

use comm::{Channel, World};
use train::{Engine, Trainer};

use super::job::Job;
use crate::error::CliError;
use crate::run_dir::RunDir;

/// The file with a run's word, beside its checkpoints.
const FILE: &str = "local-id";

/// Keeps local checkpoints, if the config asks for them. Collective.
///
/// # Errors
/// A directory that cannot be made or written.
pub fn keep<E: Engine>(job: &Job, world: &World, trainer: &mut Trainer<E>) -> Result<(), CliError> {
    let Some(local) = &job.config.checkpoint.local else { return Ok(()) };
    let mut word = Vec::new();
    if world.rank() == 0 {
        let run = RunDir::new(job.config.runs_dir.join(&job.config.name));
        word = word_in(run.root())?.into_bytes();
    }
    world.control(Channel::Saving).broadcast_bytes(0, &mut word)?;
    let name = format!("muster-{}", String::from_utf8_lossy(&word));
    Ok(trainer.keep_local(&local.dir.join(name))?)
}

/// The run's word, which is drawn by its first start.
fn word_in(run: &Path) -> Result<String, CliError> {
    let path = run.join(FILE);
    let failed = |action: &str, error: std::io::Error| {
        CliError::mistake(format!("cannot {action} {}: {error}", path.display()))
    };
    match std::fs::read_to_string(&path) {
        Ok(word) => {
            let word = word.trim();
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if word.is_empty() || !word.chars().all(is_word) {
                return Err(CliError::mistake(format!(
                    "{} does not hold the word of this run's local checkpoints; remove it, and \
                     those that are there are not used",
                    path.display()
                )));
            }
            Ok(word.to_owned())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let drawn = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
            let word = drawn.map_err(|error| failed("draw a word for", error))?.trim().to_owned();
            std::fs::create_dir_all(run).map_err(|error| failed("write", error))?;
            std::fs::write(&path, &word).map_err(|error| failed("write", error))?;
            Ok(word)
        }
        Err(error) => Err(failed("read", error)),
    }
}
