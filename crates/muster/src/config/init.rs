//! A config that begins with another run's parameters and names no model: it has that run's.

use checkpoint::Checkpoint;
use data::TokenizerSpec;
use model::ModelConfig;
use train::Config;

use crate::error::CliError;
use crate::run_dir::usable;

/// Gives a config without a `model` section that of the checkpoint it begins with, and the
/// checkpoint's tokenizer, if it names none.
///
/// # Errors
/// There is no such checkpoint, or it does not say what model it is of.
pub fn follow(mut config: Config) -> Result<Config, (Box<Config>, CliError)> {
    let Some(init) = config.checkpoint.init.clone() else { return Ok(config) };
    if config.model != ModelConfig::default() || !init.is_dir() {
        return Ok(config);
    }
    let read = || -> Result<Config, CliError> {
        let (path, _) = usable(&init)?;
        let checkpoint = Checkpoint::open_lazily(path)?;
        Ok(crate::saved_model::model_of(&checkpoint)?.0)
    };
    match read() {
        Ok(theirs) => {
            config.model = theirs.model;
            if config.data.tokenizer == TokenizerSpec::default() {
                config.data.tokenizer = theirs.data.tokenizer;
            }
            Ok(config)
        }
        Err(error) => Err((Box::new(config), error)),
    }
}
