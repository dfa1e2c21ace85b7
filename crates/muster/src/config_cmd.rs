//! `muster config default|schema|check`.

use std::path::Path;

use model::Feed;
use train::config::Config;
use train::mesh_plan::Purpose;

use crate::cli::ConfigCommand;
use crate::config::{Loaded, Override, Schema, commented, load};
use crate::console::{count, plural};
use crate::error::{CliError, Exit};
use crate::output::say;

pub fn run(command: ConfigCommand) -> Result<Exit, CliError> {
    match command {
        ConfigCommand::Default => {
            say(&format!(
                "# A run of Muster: every key, with its default. Keys behind a `#` follow from \
                 others,\n# such as the preset. Unknown keys are refused; `--set a.b=value` \
                 overrides any.\n\n{}",
                commented(&Schema::of::<Config>(), &Config::default())
            ))?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Schema => {
            let schema = Schema::of::<Config>();
            say(&serde_json::to_string_pretty(schema.json()).map_err(CliError::bug)?)?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Check { file, set } => check(&file, &set.set),
    }
}

fn check(file: &Path, overrides: &[Override]) -> Result<Exit, CliError> {
    let loaded = load(file, overrides, Purpose::Plan, &mut drop)?;
    say(&format!("{}: ok\n{}", file.display(), essentials(&loaded)))?;
    Ok(Exit::Ok)
}

/// The essentials of a config, in a few lines.
fn essentials(loaded: &Loaded) -> String {
    let (config, resolved) = (&loaded.config, &loaded.resolved);
    let model = &resolved.architecture;
    let experts = match &model.moe {
        Some(moe) => {
            let dense = (0..model.layers).filter(|&l| model.feed(l) == Feed::Dense).count();
            let dense =
                if dense > 0 { format!(", {dense} of the layers dense") } else { String::new() };
            let shared = match moe.shared_experts {
                0 => String::new(),
                n => format!(" and {n} shared"),
            };
            let groups = match moe.groups {
                1 => String::new(),
                n => format!(" in {} of {n} groups", moe.top_groups),
            };
            format!(
                ", {} of {} experts{groups}{shared} of width {}{dense}",
                moe.top_k, moe.experts, moe.d_ff
            )
        }
        None => format!(", MLPs of width {}", model.d_ff),
    };
    let keys_and_values = match model.latent {
        Some(latent) => format!("keys and values of rank {}", latent.kv_rank),
        None => format!("{} for keys and values", model.kv_heads),
    };
    let tokens = config.batch.tokens_per_step();
    let radices: Vec<String> = resolved.tree.radices().iter().map(ToString::to_string).collect();
    let tree = if radices.is_empty() { "1".into() } else { radices.join("·") };
    let free: Vec<String> = resolved.tree.free_worlds().iter().map(ToString::to_string).collect();
    let text = match (&config.data.mixture[..], &config.data.files[..], &config.data.crates[..]) {
        ([], [], crates) => plural(crates.len(), "crate"),
        ([], files, _) => plural(files.len(), "file"),
        (mixture, ..) => format!("a mixture of {}", plural(mixture.len(), "source")),
    };
    format!(
        "  model      {total_parameters} parameters, {active} active per token\n  \
           layers     {layers} of width {width}, {heads} ({keys_and_values}){experts}\n  \
           text       {text}, tokenizer {tokenizer} ({vocab} tokens; embedding of {rows} rows)\n  \
           length     {steps} steps of {tokens} tokens: {total} tokens\n  \
           ranks      {ranks}; {leaves} as {tree}: {free} ranks move no more than a ring",
        total_parameters = count(resolved.schema.parameters() as u64),
        active = count(model::active_parameters(model, &resolved.schema) as u64),
        layers = plural(model.layers, "layer"),
        width = model.d_model,
        heads = plural(model.heads, "head"),
        tokenizer = resolved.tokenizer.name(),
        vocab = resolved.tokenizer.vocab_size(),
        rows = model.vocab_size,
        steps = config.train.steps,
        total = count(tokens.saturating_mul(config.train.steps)),
        ranks = plural(config.ranks.count, "rank"),
        leaves = if config.batch.leaves == 1 {
            "1 leaf".into()
        } else {
            format!("{} leaves", config.batch.leaves)
        },
        free = free.join(", "),
    )
}
