//! `muster train`, `muster generate` and the worker processes.

use crate::cli::{GenerateArgs, TrainArgs, WorkerArgs};
use crate::error::{CliError, Exit};

pub fn train(args: TrainArgs) -> Result<Exit, CliError> {
    crate::config::load(&args.config, &args.overrides())?;
    Err(CliError::bug("training is not joined to the command line yet"))
}

pub fn generate(_: GenerateArgs) -> Result<Exit, CliError> {
    Err(CliError::bug("generation is not joined to the command line yet"))
}

pub fn worker(_: WorkerArgs) -> Result<Exit, CliError> {
    Err(CliError::bug("workers are not joined to the command line yet"))
}
