//! The model that a checkpoint is of, by the config that it keeps.

use layout::Role;
use model::Architecture;
use train::Config;

use crate::error::CliError;

/// The config that a checkpoint keeps, and the model that it tells.
///
/// # Errors
/// It keeps none, or one of another version.
pub fn model_of(checkpoint: &checkpoint::Checkpoint) -> Result<(Config, Architecture), CliError> {
    let unknown = |why: &str| {
        CliError::mistake(format!(
            "{} {why}, so that nobody knows which model it is of",
            checkpoint.path().display()
        ))
    };
    let config = checkpoint.run_state().extra.get("config").cloned();
    let config = config.ok_or_else(|| unknown("keeps no config"))?;
    let config: Config = serde_json::from_value(config).map_err(|error| {
        unknown(&format!("keeps a config that is not this version's ({error})"))
    })?;
    let schema = checkpoint.schema();
    let table = schema.tensors.iter().find(|tensor| tensor.role == Role::Embedding);
    let vocabulary = table.and_then(|table| table.shape.first().copied()).unwrap_or(1);
    let architecture = config.model.resolve(vocabulary, config.batch.seq_len);
    let architecture =
        architecture.map_err(|error| unknown(&format!("keeps a config: {error}")))?;
    Ok((config, architecture))
}
