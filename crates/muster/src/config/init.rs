//! A config that begins with another run's parameters and names no model: it has that run's.

use std::path::Path;

use checkpoint::Checkpoint;
use checkpoint::objects::is_url;
use data::TokenizerSpec;
use model::ModelConfig;
use train::Config;

use crate::error::CliError;
use crate::run_dir::{tokenizer_of, usable};

/// Gives a config without a `model` section that of the checkpoint it begins with, and the
/// checkpoint's tokenizer, if it names none.
///
/// # Errors
/// There is no such checkpoint, or it does not say what model it is of.
pub fn follow(mut config: Config) -> Result<Config, CliError> {
    let Some(init) = config.checkpoint.init.clone() else { return Ok(config) };
    // A run that has begun goes on from its own checkpoints, whatever became of the other.
    let own = config.runs_dir.join(&config.name);
    let from = if init.is_dir() || is_url(&init) { init } else { own.clone() };
    if config.model != ModelConfig::default() || !is_url(&from) && !from.is_dir() {
        return Ok(config);
    }
    let read = |from: &Path| -> Result<Config, CliError> {
        let (path, _) = usable(from)?;
        let checkpoint = Checkpoint::open_lazily(&path)?;
        let (mut theirs, _) = crate::saved_model::model_of(&checkpoint)?;
        if let Some(run) = path.parent().and_then(Path::parent) {
            theirs.data.tokenizer = tokenizer_of(run, theirs.data.tokenizer);
        }
        Ok(theirs)
    };
    let theirs = read(&from).or_else(|error| match is_url(&from) && own.is_dir() {
        true => read(&own).map_err(|_| error),
        false => Err(error),
    })?;
    config.model = theirs.model;
    if config.data.tokenizer == TokenizerSpec::default() {
        config.data.tokenizer = theirs.data.tokenizer;
    }
    Ok(config)
}
