//! `muster ckpt import`: a published model, or a checkpoint of another one, as the checkpoint of
//! step 0, in a directory as that of a run.
//!
//! ```text
//! TARGET/config.yaml        the model, its tokenizer and longest window; else defaults
//!        checkpoints/       the parameters
//!        published/         tokenizer files, generation_config.json
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use checkpoint::objects::is_url;
use checkpoint::{Checkpoint, Committed, Digest, RunState, Store};
use data::TokenizerSpec;
use interop::dcp::{TorchCheckpoint, open_dcp, open_dcp_safetensors};
use interop::hf::{Published, plan_model, plan_saved, read_safetensors};
use interop::{Arriving, Foreign, ImportPlan, Origin, Rules, Types, open_universal, plan_as_is};
use layout::Dtype;
use model::Architecture;
use train::Config;
use train::mesh_plan::Purpose;

use crate::cli::{ImportArgs, RuleWord};
use crate::config::Loaded;
use crate::console::{bytes, duration, plural};
use crate::error::{CliError, Exit};
use crate::limits::cores;
use crate::output::{complain, say};
use crate::run_dir::{self, COMPANIONS, RunDir, companions};
use crate::saved_model::{self, model_of};
use crate::train_cmd::as_yaml;

/// Where the tensors are from.
enum From {
    Published(Box<Published>),
    Checkpoint(Box<Checkpoint>),
    /// Another trainer's.
    Torch(Box<TorchCheckpoint>),
    /// Safetensors files of whatever model.
    Files(Box<Foreign>),
}

impl From {
    /// # Errors
    /// Files that are missing or damaged; a model that Muster does not have.
    fn open(args: &ImportArgs) -> Result<From, CliError> {
        let path = &args.source;
        // A directory, or a sentence about what is there.
        run_dir::store(path)?;
        if is_url(path) {
            return Ok(From::Checkpoint(Box::new(run_dir::open_checkpoint(path)?)));
        }
        if !args.ignored.is_empty() && !path.join("config.json").exists() {
            return Err(CliError::mistake(format!(
                "--ignore-key is about a config.json, and {} has none; leave it out",
                path.display()
            )));
        }
        let is_ours = run_dir::is_checkpoint(path) || RunDir::new(path).checkpoints().is_dir();
        if is_ours {
            return Ok(From::Checkpoint(Box::new(run_dir::open_checkpoint(path)?)));
        }
        if let Some(torch) = torch(path)? {
            return Ok(From::Torch(Box::new(torch)));
        }
        let has_config = path.join("config.json").exists();
        if args.as_is || args.config.is_some() && !has_config {
            return Ok(From::Files(Box::new(read_safetensors(path)?)));
        }
        Ok(From::Published(Box::new(Published::read(path, &args.ignored)?)))
    }

    fn origin(&self) -> &dyn Origin {
        match self {
            From::Published(published) => &published.foreign,
            From::Checkpoint(checkpoint) => checkpoint.as_ref(),
            From::Torch(torch) => &torch.foreign,
            From::Files(foreign) => foreign.as_ref(),
        }
    }

    /// Files that belong to the model.
    fn companions(&self) -> Vec<PathBuf> {
        match self {
            From::Published(published) => published.companions.clone(),
            From::Torch(_) | From::Files(_) => Vec::new(),
            From::Checkpoint(checkpoint) => {
                let run = checkpoint.path().parent().and_then(Path::parent);
                let tokenizer = model_of(checkpoint).map(|(config, _)| config.data.tokenizer);
                let tokenizer = tokenizer.unwrap_or_default();
                run.map(|run| companions(run, &tokenizer)).unwrap_or_default()
            }
        }
    }

    /// A run's config with the source's model.
    fn config(&self) -> Result<Config, CliError> {
        match self {
            From::Published(published) => Ok(config_for(published)),
            From::Checkpoint(checkpoint) => {
                let (mut config, architecture) = model_of(checkpoint)?;
                config.model.vocab_size = Some(architecture.vocab_size);
                Ok(config)
            }
            From::Torch(_) | From::Files(_) => Err(CliError::mistake(format!(
                "{} says nothing of its model; give --config FILE with that model, or --as-is",
                self.origin().path().display()
            ))),
        }
    }

    /// Oddities that are no errors and may be.
    fn notes(&self) -> Vec<String> {
        match self {
            From::Published(published) if !published.unknown.is_empty() => {
                let keys = published.unknown.join(", ");
                vec![format!("config.json has keys that Muster does not know: {keys}")]
            }
            From::Torch(torch) => {
                let left_out = torch.left_out.iter();
                let left_out =
                    left_out.map(|left| format!("left out: {}: {}", left.name, left.reason));
                torch.notes.iter().cloned().chain(left_out).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Fields of the model that no tensor shows, and that are others than the source's.
    fn unlike(&self, config: &Config) -> Vec<String> {
        let theirs = match self.config() {
            Ok(theirs) => theirs,
            Err(_) => return Vec::new(),
        };
        saved_model::unlike(&theirs, config)
    }

    fn plan(
        &self,
        of: &Architecture,
        rules: &Rules,
        types: Types,
    ) -> Result<ImportPlan<'_>, CliError> {
        Ok(match self {
            From::Published(published) => published.plan(of, rules, types)?,
            From::Checkpoint(checkpoint) => plan_saved(checkpoint, of, rules, types)?,
            other => plan_model(other.origin(), of, rules, types)?,
        })
    }
}

/// A checkpoint of PyTorch's or DeepSpeed's, if that is what a directory holds.
fn torch(path: &Path) -> Result<Option<TorchCheckpoint>, CliError> {
    let has = |name: &str| path.join(name).exists();
    Ok(match () {
        () if has("config.json") => None,
        () if has(".metadata") || has("__0.metadata") => Some(open_dcp(path)?),
        () if has("zero") || has("latest_universal") => Some(open_universal(path)?),
        () if is_sharded(path) => Some(open_dcp_safetensors(path)?),
        () => None,
    })
}

/// Whether a directory has safetensors files as PyTorch's ranks write them.
fn is_sharded(path: &Path) -> bool {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_shard = |name: &String| name.starts_with("shard-") && name.ends_with(".safetensors");
    names.into_iter().any(|name| is_shard(&name))
}

/// # Errors
/// A model that Muster does not have; damaged files; a target that holds something; a full disk.
pub fn import(args: &ImportArgs) -> Result<Exit, CliError> {
    let started = Instant::now();
    let target = match is_url(&args.target) {
        true => args.target.clone(),
        false => std::path::absolute(&args.target).map_err(CliError::mistake)?,
    };
    let from = From::open(args)?;
    let (config, plan) = match args.as_is {
        true => (None, plan_as_is(from.origin())?),
        false => {
            let config = config(args, &from, &target)?;
            let plan = plan(args, &from, &config)?;
            (Some(config), plan)
        }
    };
    let threads = args.threads.map_or_else(cores, usize::from);
    let state = run_state(config.as_ref(), &args.source);
    let (committed, target) = if is_url(&target) {
        let store = empty_store(&target)?;
        let left = from.companions();
        if config.is_some() && !left.is_empty() {
            complain(&format!("warning: {}", left_behind(&left)));
        }
        (plan.write(&store, &state, threads)?, target)
    } else {
        let arriving = Arriving::new(&target)?;
        if let Some(config) = &config {
            arriving.write("config.yaml", as_yaml(config)?.as_bytes())?;
            copy_companions(&from.companions(), arriving.path())?;
        }
        let store = Store::new(RunDir::new(arriving.path()).checkpoints());
        (plan.write(&store, &state, threads)?, arriving.finish()?)
    };
    let unlike = config.iter().flat_map(|config| from.unlike(config));
    let notes = from.notes().into_iter().chain(unlike);
    notes.for_each(|note| complain(&format!("warning: {note}")));
    let mut text = told(&plan, config.as_ref(), &args.source, &target);
    text += &told_data(&committed, started.elapsed().as_secs_f64());
    say(&text)?;
    Ok(Exit::Ok)
}

/// The checkpoints under a URL, of which there are none yet.
fn empty_store(target: &Path) -> Result<Store, CliError> {
    checkpoint::objects::check(target).map_err(CliError::mistake)?;
    let store = Store::new(target);
    match store.list()?.len() {
        0 => Ok(store),
        some => Err(CliError::mistake(format!(
            "{} holds {} already; give a prefix of its own",
            target.display(),
            plural(some, "checkpoint")
        ))),
    }
}

/// An object store takes the checkpoint, which has the config in it, and no files beside it.
fn left_behind(companions: &[PathBuf]) -> String {
    let names = companions.iter().filter_map(|path| path.file_name()?.to_str());
    let names: Vec<&str> = names.collect();
    format!("not copied to an object store, and used where they are: {}", names.join(", "))
}

/// Decides what the states of the config's model are made of.
fn plan<'a>(
    args: &ImportArgs,
    from: &'a From,
    config: &Config,
) -> Result<ImportPlan<'a>, CliError> {
    let architecture = config.model.resolve(2, config.batch.seq_len).map_err(|error| {
        CliError::mistake(format!("the model of {}: {error}", args.source.display()))
    })?;
    if let Some(layers) = args.layers.as_ref().filter(|of| of.len() != architecture.layers) {
        return Err(CliError::mistake(format!(
            "--layers {layers:?} are {}, and the model of the config has {}; give as many",
            layers.len(),
            architecture.layers
        )));
    }
    let allows = |rule| args.allow.contains(&rule);
    let rules = Rules {
        vocabulary: allows(RuleWord::Vocabulary),
        tied: allows(RuleWord::Tied),
        experts: allows(RuleWord::Experts),
        layers: args.layers.clone(),
        seed: config.seed,
        init_std: architecture.init_std,
    };
    from.plan(&architecture, &rules, Types { dtype: Dtype::F32, may_round: args.cast })
}

/// The config of the result.
fn config(args: &ImportArgs, from: &From, target: &Path) -> Result<Config, CliError> {
    let mut config = match &args.config {
        None => from.config()?,
        Some(file) => {
            let Loaded { config, resolved } =
                crate::config::load(file, &[], Purpose::Plan, &mut |_| {})?;
            let Config { mut model, data, batch, seed, .. } = config;
            // As many rows as its tokenizer asks for, whatever reads this config.
            model.vocab_size = Some(resolved.architecture.vocab_size);
            let tokenizer = data.tokenizer;
            let data = data::DataConfig { tokenizer, ..Default::default() };
            Config { model, data, batch, seed, ..Config::default() }
        }
    };
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    config.name = name.into_owned();
    // The copied file is this directory's own from now on.
    let own = from.companions().into_iter().find(|path| path.ends_with("tokenizer.json"));
    if let Some(own) = own.filter(|_| args.config.is_none()) {
        let path = match is_url(target) {
            true => std::path::absolute(own).map_err(CliError::mistake)?,
            false => target.join(COMPANIONS).join("tokenizer.json"),
        };
        if path.to_str().is_none() {
            return Err(CliError::mistake(format!(
                "{} is no UTF-8, and a config, which is text, keeps the path of its tokenizer; \
                 give directories of other names",
                path.display()
            )));
        }
        config.data.tokenizer = TokenizerSpec::File(path);
    }
    Ok(config)
}

fn told_data(committed: &Committed, seconds: f64) -> String {
    format!(
        "  {:<10} {} in {}, {} at {:.2} GB/s\n  {:<10} {}",
        "data",
        bytes(committed.bytes),
        plural(committed.shards, "file"),
        duration(seconds),
        committed.bytes as f64 / 1e9 / seconds.max(1e-9),
        "digest",
        committed.manifest_blake3,
    )
}

fn told(plan: &ImportPlan, config: Option<&Config>, source: &Path, target: &Path) -> String {
    let mut text = format!("{} imported\n", source.display());
    let mut line = |name: &str, what: String| {
        let _ = writeln!(text, "  {name:<10} {what}");
    };
    line("written to", target.display().to_string());
    match config {
        Some(_) => {
            let parameters = crate::console::count(plan.schema.parameters() as u64);
            let tensors = plural(plan.schema.tensors.len(), "tensor");
            line("model", format!("{parameters} parameters in {tensors}"));
        }
        None => line("as it is", plural(plan.states.len(), "tensor")),
    }
    for (from, to, number) in plan.casts() {
        line("values", format!("{} from {from} to {to}", plural(number, "tensor")));
    }
    for (change, number) in &plan.changes {
        line("changed", format!("{}: {change}", plural(*number, "tensor")));
    }
    if !plan.unused.is_empty() {
        let first: Vec<&str> = plan.unused.iter().take(3).map(String::as_str).collect();
        let more = plan.unused.len() - first.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        line("left out", format!("{}{more}: no part of the model", first.join(", ")));
    }
    text
}

/// Window of a model whose `config.json` tells none.
const WINDOW: usize = 2048;

/// A run's config with this model.
fn config_for(published: &Published) -> Config {
    let mut config = Config { model: published.model.clone(), ..Config::default() };
    config.batch.seq_len = published.seq_len.unwrap_or(match published.model.positions {
        Some(model::Positions::Learned { max }) => max,
        _ => WINDOW,
    });
    let vocabulary = published.model.vocab_size.unwrap_or(0);
    config.data.tokenizer = match vocabulary {
        50_257 => TokenizerSpec::Gpt2,
        other => TokenizerSpec::Ids(u32::try_from(other).unwrap_or(u32::MAX)),
    };
    config
}

fn copy_companions(files: &[PathBuf], into: &Path) -> Result<(), CliError> {
    if files.is_empty() {
        return Ok(());
    }
    let dir = into.join(COMPANIONS);
    std::fs::create_dir(&dir).map_err(|error| CliError::file("create", &dir, &error))?;
    for path in files {
        let to = dir.join(path.file_name().unwrap_or_default());
        std::fs::copy(path, &to).map_err(|error| CliError::file("write", &to, &error))?;
        let sync = std::fs::File::open(&to).and_then(|file| file.sync_all());
        sync.map_err(|error| CliError::file("fsync", &to, &error))?;
    }
    Ok(())
}

/// Nothing has been trained yet.
fn run_state(config: Option<&Config>, source: &Path) -> RunState {
    let text = serde_json::to_vec(&config).unwrap_or_default();
    let source = match is_url(source) {
        true => source.to_path_buf(),
        false => std::path::absolute(source).unwrap_or_else(|_| source.to_path_buf()),
    };
    // A path may be any bytes, and JSON is text.
    let mut extra = serde_json::json!({ "imported_from": source.to_string_lossy() });
    if let Some(config) = config {
        extra["config"] = serde_json::to_value(config).unwrap_or_default();
    }
    RunState {
        muster_version: env!("CARGO_PKG_VERSION").to_owned(),
        step: 0,
        samples: 0,
        tokens: 0,
        seed: config.map_or(0, |config| config.seed),
        rng_counter: 0,
        config_digest: Digest::of(&text),
        numeric_plan_digest: Digest::of(b""),
        schedule: serde_json::Value::Null,
        extra,
    }
}
