//! `muster generate`: text from a checkpoint.

use std::path::Path;

use checkpoint::Checkpoint;
use checkpoint::objects::is_url;
use data::Tokenizer;
use device::Device;
use safetensors::tensor::TensorView;
use train::config::Config;
use train::{Sampler, Sampling};

use crate::cli::GenerateArgs;
use crate::config::CONFIG_BYTES_MAX;
use crate::error::{CliError, Exit};
use crate::saved_model::model_of;
use crate::{limits, out_file, run_dir};

/// Continues a prompt.
///
/// # Errors
/// No checkpoint, no config beside it, or a damaged one.
pub fn generate(args: GenerateArgs) -> Result<Exit, CliError> {
    if !args.temperature.is_finite() || args.temperature < 0.0 {
        return Err(CliError::mistake(format!(
            "--temperature {} is no temperature; give 0 or more (0 always takes the likeliest)",
            args.temperature
        )));
    }
    let path = run_dir::checkpoint_path(&args.from)?;
    let checkpoint = Checkpoint::open(&path)?;
    let config = match is_url(&path) {
        // No run's directory is around it, and it keeps the config itself.
        true => model_of(&checkpoint)?.0,
        false => config_of(&path, &args.from)?,
    };
    let tokenizer = Tokenizer::load(&config.data.tokenizer)?;
    if let Some(file) = &args.logits {
        return logits(&args, file, &checkpoint, (&config, &tokenizer));
    }
    let threads = limits::cores();
    let device = Device::cpu(threads)?;
    let prompt = prompt(&args, &tokenizer)?;
    let positions = (prompt.len() + args.tokens).clamp(1, config.batch.seq_len);
    let of = (&config, tokenizer.vocab_size());
    let sampler = Sampler::of_checkpoint(&device, &checkpoint, of, positions)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, seed: args.seed };
    let vocab = tokenizer.vocab_size();
    let tokens = sampler.generate(&prompt, args.tokens, vocab, sampling)?;
    let text = tokenizer.decode(&tokens);
    crate::output::pass_on(&format!("{}{}", args.prompt, String::from_utf8_lossy(&text)))?;
    Ok(Exit::Ok)
}

/// The tokens of the prompt, after the mark that begins a document.
fn prompt(args: &GenerateArgs, tokenizer: &Tokenizer) -> Result<Vec<u32>, CliError> {
    let mut prompt = vec![tokenizer.end_of_text()];
    tokenizer.encode(&args.prompt, &mut prompt)?;
    Ok(prompt)
}

/// Writes the logits after each token.
fn logits(
    args: &GenerateArgs,
    file: &Path,
    checkpoint: &Checkpoint,
    (config, tokenizer): (&Config, &Tokenizer),
) -> Result<Exit, CliError> {
    out_file::check(file)?;
    let tokens = match args.ids.is_empty() {
        true => prompt(args, tokenizer)?,
        false => args.ids.clone(),
    };
    if tokens.len() > config.batch.seq_len {
        return Err(CliError::mistake(format!(
            "{} tokens are more than the window of the model has, {}; give fewer",
            tokens.len(),
            config.batch.seq_len
        )));
    }
    let vocabulary = config.model.resolve(tokenizer.vocab_size(), config.batch.seq_len)?.vocab_size;
    if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
        return Err(CliError::mistake(format!(
            "--ids: the model has no token {token}; use 0 to {}",
            vocabulary - 1
        )));
    }
    let threads = limits::cores();
    let device = Device::cpu(threads)?;
    let of = (config, tokenizer.vocab_size());
    let sampler = Sampler::of_checkpoint(&device, checkpoint, of, tokens.len())?;
    let logits = sampler.logits(&tokens)?;
    let vocabulary = logits.len() / tokens.len();
    let numbers: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    let (numbers, logits): (Vec<u8>, Vec<u8>) = (
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
        logits.iter().flat_map(|logit| logit.to_le_bytes()).collect(),
    );
    let shape = vec![tokens.len(), vocabulary];
    let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).map_err(CliError::bug);
    let views = [
        ("tokens", view(safetensors::Dtype::I64, vec![tokens.len()], &numbers)?),
        ("logits", view(safetensors::Dtype::F32, shape, &logits)?),
    ];
    let bytes = safetensors::serialize(views, None).map_err(CliError::bug)?;
    out_file::write(file, &bytes)?;
    Ok(Exit::Ok)
}

fn is_run(dir: &Path) -> bool {
    dir.join("config.yaml").is_file()
}

/// The config of the run that a checkpoint lies in, or else of the one that was named.
fn config_of(checkpoint: &Path, named: &Path) -> Result<Config, CliError> {
    // `..` has a parent by name that is not the directory above it.
    let absolute = checkpoint.canonicalize().or_else(|_| std::path::absolute(checkpoint));
    let absolute = absolute.map_err(CliError::mistake)?;
    let around = absolute.parent().and_then(Path::parent);
    // A run may keep its checkpoints elsewhere.
    let run = around.filter(|run| run.join("config.yaml").exists() || !is_run(named));
    let run = run.or(is_run(named).then_some(named));
    let file = run.map(|run| run.join("config.yaml")).unwrap_or_default();
    let text = data::input::read_file(&file, CONFIG_BYTES_MAX).map_err(|error| {
        CliError::mistake(format!(
            "{error}; a checkpoint is read with the config of the run it lies in"
        ))
    })?;
    let failed =
        |error: &dyn std::fmt::Display| CliError::mistake(format!("{}: {error}", file.display()));
    // Through JSON's data model, in which single-key maps are enums.
    let value: serde_json::Value = serde_yaml::from_slice(&text).map_err(|error| failed(&error))?;
    let mut config: Config = serde_json::from_value(value).map_err(|error| failed(&error))?;
    if let Some(run) = run {
        config.data.tokenizer = run_dir::tokenizer_of(run, config.data.tokenizer);
    }
    Ok(config)
}
