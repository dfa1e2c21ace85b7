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

/// Fields that tensors do not show and that decide what a model computes.
const UNSEEN: [&str; 12] = [
    "heads",
    "kv_heads",
    "head_dim",
    "norm_eps",
    "positions",
    "activation",
    "top_k",
    "groups",
    "top_groups",
    "scores",
    "normalize_top_k",
    "route_scale",
];

/// Differences between two configs' models in what no tensor shows, in words.
pub fn unlike(theirs: &Config, ours: &Config) -> Vec<String> {
    let resolved = |config: &Config| {
        let architecture = config.model.resolve(2, config.batch.seq_len).ok()?;
        serde_json::to_value(architecture).ok()
    };
    let (Some(theirs), Some(ours)) = (resolved(theirs), resolved(ours)) else { return Vec::new() };
    let found = checkpoint::value_differences("model", &theirs, &ours);
    let is_unseen = |place: &str| place.split('.').any(|part| UNSEEN.contains(&part));
    let word = |value: Option<serde_json::Value>| value.unwrap_or_default().to_string();
    let told = found.into_iter().filter(|of| is_unseen(&of.place)).map(|of| {
        let (there, here) = (word(of.a), word(of.b));
        format!("{} is {there} there and {here} here: the model computes something else", of.place)
    });
    told.collect()
}
