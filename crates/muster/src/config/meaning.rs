//! The checks that the schema cannot make: numbers that must fit each other, files that must be
//! there.

use std::path::{Path, PathBuf};

use checkpoint::Store;
use checkpoint::objects::is_url;
use data::config::Origin;
use data::{DataError, TextInput, Tokenizer, TokenizerSpec};
use layout::{LayoutError, Mesh, MeshProblem, MeshSpec, Schema, Tree};
use model::{Architecture, MicroBatch, ModelConfig, ModelError};
use optim::OptimError;
use train::config::{Config, LEAVES_MAX, Resume, SaveMode};
use train::mesh_plan::{self, Purpose};

use crate::console::bytes as size;
use crate::run_dir::RunDir;

/// Stands for a tokenizer that could not be loaded: no model's table is too small for it.
const SOME_VOCAB: usize = 2;

/// More tokens in one step are a slip of the keyboard, and would overflow what counts them.
const TOKENS_PER_STEP_MAX: u128 = 1 << 40;

/// More in a whole run would overflow what counts them.
const TOKENS_MAX: u128 = 1 << 62;

/// Bytes that a process can address on x86-64.
const BYTES_MAX: usize = 1 << 47;

/// Something wrong, not placed yet.
#[derive(Debug)]
pub struct Finding {
    pub path: String,
    /// Other keys that it is about, one of which may be the one that was written.
    pub others: Vec<String>,
    pub what: String,
    pub help: Vec<String>,
    /// Sections it follows from; where a mistake is reported there, this one is left out.
    pub sections: &'static [&'static str],
}

/// The values that follow from a config.
#[derive(Debug)]
pub struct Resolved {
    pub tokenizer: Tokenizer,
    pub architecture: Architecture,
    pub schema: Schema,
    pub tree: Tree,
    pub mesh: Mesh,
}

/// Checks everything; the first part is there if nothing that it needs is wrong.
pub fn check(config: &Config, purpose: Purpose) -> (Option<Resolved>, Vec<Finding>) {
    let mut findings = Vec::new();
    findings.extend(check_name(config));
    check_text(config, &mut findings);
    let tree = check_batch(config, &mut findings);
    let tokenizer = load_tokenizer(&config.data.tokenizer, &mut findings);
    findings.extend(check_prompt(config, tokenizer.as_ref()));
    // Without a tokenizer the model can still be wrong in everything but its vocabulary.
    let vocab = tokenizer.as_ref().map_or(SOME_VOCAB, Tokenizer::vocab_size);
    let resolved = config.model.resolve(vocab, config.batch.seq_len);
    let architecture = resolved.map_err(|error| findings.extend(of_model(error))).ok();
    let schema = architecture.as_ref().and_then(|architecture| {
        model::parameters(architecture).map_err(|error| findings.extend(of_model(error))).ok()
    });
    let mut problems = config.optimizer.problems();
    if let (Some((schema, _)), true) = (&schema, problems.is_empty()) {
        problems.extend(optim::plan(schema, &config.optimizer).err());
    }
    findings.extend(problems.into_iter().map(of_optimizer));
    // With a tree the batch has been found small enough to multiply.
    if let (Some(architecture), Some(_), Some(_)) = (&architecture, &schema, &tree) {
        findings.extend(check_micro_batch(config, architecture));
    }
    let mesh = match (&architecture, &schema) {
        (Some(architecture), Some((schema, _))) => {
            let mesh = mesh_plan::mesh(config, architecture, schema, purpose);
            mesh.map_err(|error| findings.push(of_mesh(config, error))).ok()
        }
        _ => None,
    };
    findings.extend(check_resume(config));
    findings.extend(check_init(config));
    findings.extend(check_local(config));
    findings.extend(check_store(config));
    let resolved = match (tokenizer, architecture, schema, tree, mesh) {
        (Some(tokenizer), Some(architecture), Some((schema, _)), Some(tree), Some(mesh)) => {
            Some(Resolved { tokenizer, architecture, schema, tree, mesh })
        }
        _ => None,
    };
    (resolved, findings)
}

/// Whether the model passes its check with `value` in the place of what `path` says, a key of its
/// section that was left out; what is wrong without it, too, is not held against it.
pub fn takes(config: &Config, path: &str, value: &str) -> bool {
    let tokenizer = load_tokenizer(&config.data.tokenizer, &mut Vec::new());
    let vocab = tokenizer.as_ref().map_or(SOME_VOCAB, Tokenizer::vocab_size);
    let wrong = |model: &ModelConfig| {
        model.resolve(vocab, config.batch.seq_len).err().map(|error| error.to_string())
    };
    let with = with_value(&config.model, path, value);
    with.is_some_and(|model| {
        let left = wrong(&model);
        left.is_none() || left == wrong(&config.model)
    })
}

/// The section with one more key.
fn with_value(model: &ModelConfig, path: &str, value: &str) -> Option<ModelConfig> {
    let pointer = path.strip_prefix("model")?.replace('.', "/");
    let (section, key) = pointer.rsplit_once('/')?;
    let mut json = serde_json::to_value(model).ok()?;
    let section = json.pointer_mut(section)?.as_object_mut()?;
    section.insert(key.to_owned(), serde_json::from_str(value).ok()?);
    serde_json::from_value(json).ok()
}

fn finding(
    path: impl Into<String>,
    what: impl Into<String>,
    help: &str,
    sections: &'static [&'static str],
) -> Finding {
    let help = if help.is_empty() { Vec::new() } else { vec![help.to_string()] };
    Finding { path: path.into(), others: Vec::new(), what: what.into(), help, sections }
}

impl Finding {
    fn about(mut self, others: &[&str]) -> Finding {
        self.others.extend(others.iter().map(|other| other.to_string()));
        self
    }
}

/// The name becomes a directory and part of the names of shared memory.
fn check_name(config: &Config) -> Option<Finding> {
    let name = &config.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with(['.', '-']) {
        return None;
    }
    let help = "use letters, digits, `_`, `-` and `.`, beginning with a letter or digit";
    Some(finding("name", format!("`{name}` cannot name a directory"), help, &["name"]))
}

fn check_text(config: &Config, findings: &mut Vec<Finding>) {
    let data = &config.data;
    findings.extend(data.problems().into_iter().map(|error| of_data(error, "data")));
    check_origin("data", &Origin::Files(&data.files), findings);
    // Given together with files, crates are not read.
    if data.files.is_empty() {
        check_origin("data", &Origin::Crates(&data.crates), findings);
    }
    for (i, entry) in data.mixture.iter().enumerate() {
        let at = format!("data.mixture[{i}]");
        check_origin(&at, &Origin::Files(&entry.files), findings);
        check_origin(&at, &Origin::Crates(&entry.crates), findings);
    }
}

fn check_origin(at: &str, origin: &Origin, findings: &mut Vec<Finding>) {
    match origin {
        Origin::Files(files) => {
            for (i, file) in files.iter().enumerate() {
                findings.extend(check_file(&format!("{at}.files[{i}]"), file));
            }
        }
        Origin::Crates(names) => {
            for (i, name) in names.iter().enumerate() {
                let sources =
                    data::corpus::crate_files(std::slice::from_ref(name), crate::CARGO_LOCK);
                let at = format!("{at}.crates[{i}]");
                findings.extend(sources.err().map(|error| of_data(error, &at)));
            }
        }
    }
}

fn check_file(at: &str, file: &Path) -> Option<Finding> {
    let shown = file.display();
    let opened = match data::source::is_token_file(file) {
        true => data::input::look_at_file(file).and_then(|_| data::input::open(file).map(|_| ())),
        false => TextInput::new(file).look_at_file().map(|_| ()),
    };
    let problem = match opened.err()? {
        DataError::IsDirectory { .. } => {
            let help = format!("name its files: `{shown}/PART.txt`, as a list");
            return Some(finding(at, format!("{shown} is a directory"), &help, &["data"]));
        }
        DataError::Io { source, .. } => source,
        DataError::NotText { what, remedy, .. } => {
            return Some(finding(at, format!("{shown} is {what}"), &remedy, &["data"]));
        }
        other => return Some(of_data(other, at)),
    };
    let help = match (neighbour(file), file.is_absolute(), std::env::current_dir()) {
        (Some(near), ..) => format!("did you mean {}?", near.display()),
        (None, false, Ok(here)) => format!("it was looked for in {}", here.display()),
        _ => String::new(),
    };
    Some(finding(at, format!("cannot read {shown}: {problem}"), &help, &["data"]))
}

/// A file in the same directory whose name is nearly the one given.
pub fn neighbour(file: &Path) -> Option<PathBuf> {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let entries = std::fs::read_dir(parent).ok()?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let name = file.file_name()?.to_str()?;
    let near = super::nearest(name, names.iter().map(String::as_str).filter(|n| *n != name))?;
    Some(file.with_file_name(near))
}

const BATCH_KEYS: [&str; 4] =
    ["batch.leaves", "batch.micro_batches", "batch.micro_batch", "batch.seq_len"];

/// A micro-batch must be small enough to be routed and held.
fn check_micro_batch(config: &Config, a: &Architecture) -> Option<Finding> {
    let (windows, positions) = (config.batch.micro_batch, config.batch.seq_len);
    let per_token = a.moe.as_ref().map_or(1, |moe| moe.top_k);
    let rows = windows * positions;
    let shape = format!("a micro-batch of {windows} windows of {positions} tokens");
    // Routing numbers its rows by 32 bits.
    let most = u32::MAX as usize / per_token;
    let (what, help) = if rows > most {
        let what = format!("{shape}, each visiting {per_token} experts, has more than 2^32 rows");
        (what, format!("use at most {most} tokens and more micro_batches"))
    } else {
        let batch = MicroBatch { windows, positions };
        let plan =
            model::memory_plan(a, batch, config.train.weights.dtype(), 1).unwrap_or_default();
        let bytes = plan.iter().fold(0_usize, |all, (_, bytes)| all.saturating_add(*bytes));
        if bytes <= BYTES_MAX {
            return None;
        }
        let what = format!("{shape} needs {}; a process addresses 128 TiB", size(bytes as u64));
        (what, "use a smaller micro_batch and more micro_batches, or a shorter seq_len".into())
    };
    let sections = &["batch", "model", "data"];
    Some(finding("batch.micro_batch", what, &help, sections).about(&["batch.seq_len"]))
}

fn load_tokenizer(spec: &TokenizerSpec, findings: &mut Vec<Finding>) -> Option<Tokenizer> {
    if let TokenizerSpec::File(path) = spec
        && let Some(unreadable) = check_file("data.tokenizer.file", path)
    {
        findings.push(unreadable);
        return None;
    }
    let failed = |error| findings.push(of_data(error, "data.tokenizer"));
    Tokenizer::load(spec).map_err(failed).ok()
}

/// A prompt is text that the tokenizer knows; token ids alone cannot say which tokens it is.
fn check_prompt(config: &Config, tokenizer: Option<&Tokenizer>) -> Option<Finding> {
    let train = &config.train;
    if train.sample_tokens == 0 || train.sample_prompt.is_empty() {
        return None;
    }
    let prompt = &train.sample_prompt;
    let TokenizerSpec::Ids(ids) = &config.data.tokenizer else {
        let error = tokenizer?.encode(prompt, &mut Vec::new()).err()?;
        let what = format!("{prompt:?} cannot become tokens: {error}");
        return Some(finding("train.sample_prompt", what, "use other words", &["train", "data"]));
    };
    let what = format!("{prompt:?} cannot become tokens: data.tokenizer is {{ids: {ids}}}");
    let help = "leave it empty, or name the tokenizer that the token files were made with";
    Some(finding("train.sample_prompt", what, help, &["train", "data"]))
}

/// The most leaves that the rest of the batch leaves room for.
fn most_leaves(config: &Config) -> usize {
    let batch = &config.batch;
    let others = [batch.micro_batches, batch.micro_batch, batch.seq_len];
    let others = others.iter().fold(1_u128, |all, &n| all.saturating_mul(n.max(1) as u128));
    (TOKENS_PER_STEP_MAX / others).min(LEAVES_MAX as u128) as usize
}

fn check_batch(config: &Config, findings: &mut Vec<Finding>) -> Option<Tree> {
    let batch = &config.batch;
    let factors = [batch.leaves, batch.micro_batches, batch.micro_batch, batch.seq_len];
    let product = factors.iter().try_fold(1_u128, |all, &n| all.checked_mul(n as u128));
    if product.is_none_or(|tokens| tokens > TOKENS_PER_STEP_MAX) {
        let what = format!(
            "leaves · micro_batches · micro_batch · seq_len = {} tokens per step, more than 2^40",
            factors.map(|n| n.to_string()).join(" · ")
        );
        let help = "lower one of the four";
        findings.push(finding("batch", what, help, &["batch"]).about(&BATCH_KEYS));
        return None;
    }
    let (steps, per_step) = (config.train.steps, batch.tokens_per_step());
    if u128::from(steps) * u128::from(per_step) > TOKENS_MAX {
        let what = format!("{steps} steps of {per_step} tokens are more than 2^62 tokens");
        let most = TOKENS_MAX / u128::from(per_step);
        let help = format!("use at most {most} steps, or a smaller batch");
        let found = finding("train.steps", what, &help, &["batch", "train"]);
        findings.push(found.about(&BATCH_KEYS));
    }
    // Ranks along pp and tp share samples.
    let spec = mesh_plan::spec(&config.ranks);
    let sampling = config.ranks.count / spec.pp.saturating_mul(spec.tp).max(1);
    match Tree::with_leaves(&batch.radices, batch.leaves) {
        Ok(tree) => {
            let (ranks, leaves) = (config.ranks.count, batch.leaves);
            // In a mesh not every rank need have samples of its own.
            let has_mesh = spec != MeshSpec::default();
            if ranks > leaves && !has_mesh {
                let what = format!("{ranks} ranks cannot share the batch's {leaves} leaves");
                let help = match ranks <= most_leaves(config) {
                    false => format!("use at most {leaves} ranks"),
                    true if batch.radices.is_empty() => {
                        format!("use at most {leaves} ranks, or batch.leaves: {ranks} or more")
                    }
                    true => format!(
                        "use at most {leaves} ranks, or batch.leaves: {ranks} or more without \
                         batch.radices"
                    ),
                };
                let found = finding("ranks.count", what, &help, &["batch", "ranks"]);
                findings.push(found.about(&["batch.leaves"]));
            }
            Some(tree)
        }
        Err(error) => {
            let help = match error {
                LayoutError::RadicesProduct { product, .. } => {
                    let fits = (sampling..=most_leaves(config)).contains(&product);
                    let leaves = if fits { format!("leaves: {product}, or ") } else { "".into() };
                    let radices = match Tree::for_leaves(batch.leaves).radices() {
                        [] => String::new(),
                        radices => format!("radices: {radices:?}, or "),
                    };
                    match sampling > batch.leaves {
                        // The leaves that there are would be refused next.
                        true if fits => format!("use leaves: {product}"),
                        true => format!("use at most {} ranks without batch.radices", batch.leaves),
                        false => format!("use {leaves}{radices}leave radices empty"),
                    }
                }
                _ => "leave radices empty for the prime factors of leaves".into(),
            };
            let found = finding("batch.radices", error.to_string(), &help, &["batch"]);
            findings.push(found.about(&["batch.leaves"]));
            None
        }
    }
}

fn check_resume(config: &Config) -> Option<Finding> {
    let Resume::From(path) = &config.checkpoint.resume else { return None };
    if is_url(path) {
        return check_url("checkpoint.resume", path);
    }
    if path.is_dir() {
        return None;
    }
    let what = format!("there is no directory {}", path.display());
    let help = match neighbour(path) {
        Some(near) => format!("did you mean {}?", near.display()),
        None => "give the directory of a checkpoint or of a run, `auto` or `never`".into(),
    };
    Some(finding("checkpoint.resume", what, &help, &["checkpoint"]))
}

/// That a URL can be one; what lies there is looked at when it is needed.
fn check_url(key: &str, path: &Path) -> Option<Finding> {
    let error = checkpoint::objects::check(path).err()?;
    Some(finding(key, error.to_string(), "", &["checkpoint"]))
}

fn check_store(config: &Config) -> Option<Finding> {
    let path = config.checkpoint.store.as_ref()?;
    if is_url(path) {
        return check_url("checkpoint.store", path);
    }
    let is_other = path.exists() && !path.is_dir();
    let what = || format!("{} is no directory", path.display());
    let help = "give a directory, or the URL of a prefix in an object store";
    is_other.then(|| finding("checkpoint.store", what(), help, &["checkpoint"]))
}

fn check_init(config: &Config) -> Option<Finding> {
    let path = config.checkpoint.init.as_ref().filter(|path| !path.is_dir())?;
    if is_url(path) {
        return check_url("checkpoint.init", path);
    }
    let own = RunDir::new(config.runs_dir.join(&config.name)).checkpoints_of(config);
    if Store::new(own).committed().is_ok_and(|committed| committed > 0) {
        // A run that goes on does not need it any more.
        return None;
    }
    let what = format!("there is no directory {}", path.display());
    let help = match neighbour(path) {
        Some(near) => format!("did you mean {}?", near.display()),
        None => "give the directory of an import, of a run or of a checkpoint".into(),
    };
    Some(finding("checkpoint.init", what, &help, &["checkpoint"]))
}

fn check_local(config: &Config) -> Option<Finding> {
    let local = config.checkpoint.local.as_ref()?;
    if config.checkpoint.mode == SaveMode::Sync {
        let what = "local checkpoints are written beside the steps, and mode is sync".to_owned();
        return Some(finding("checkpoint.local", what, "set mode: async", &["checkpoint"]));
    }
    if local.dir.is_relative() {
        let what = format!("{} is relative, and hosts may differ there", local.dir.display());
        let help = "give an absolute path, as /dev/shm";
        return Some(finding("checkpoint.local.dir", what, help, &["checkpoint"]));
    }
    None
}

fn of_mesh(config: &Config, error: LayoutError) -> Finding {
    let sections = &["ranks", "model", "batch", "data"];
    let LayoutError::Mesh { problem, near } = error else {
        return finding("ranks.mesh", error.to_string(), "", sections);
    };
    let path = match problem.axis() {
        Some(axis) => format!("ranks.mesh.{axis}"),
        None => "ranks.mesh".into(),
    };
    let mut found = finding(path, problem.to_string(), &near.to_string(), sections);
    let MeshSpec { pp, ep, tp, .. } = mesh_plan::spec(&config.ranks);
    let divides_the_model = (pp, ep, tp) != (1, 1, 1);
    // Leaves are all that a mesh of data alone can lack.
    if let MeshProblem::Samples { ranks, .. } = problem
        && !divides_the_model
        && config.batch.radices.is_empty()
        && ranks <= most_leaves(config)
    {
        found.help.push(format!("or use batch.leaves: {ranks} or more"));
    }
    found.about(&["ranks.mesh", "ranks.count"])
}

fn of_data(error: DataError, at: &str) -> Finding {
    match error {
        DataError::Config { place, reason } => finding(place, reason, "", &["data"]),
        other => finding(at, other.to_string(), "", &["data"]),
    }
}

fn of_model(error: ModelError) -> Vec<Finding> {
    let sections = &["model", "data", "batch"];
    let found = match error {
        ModelError::Several(errors) => return errors.into_iter().flat_map(of_model).collect(),
        ModelError::Missing { key, hint } => {
            finding(format!("model.{key}"), "not set", hint, sections)
        }
        ModelError::Shape { key, value, problem, remedy } => {
            let what = format!("{value} does not fit: {problem}");
            let found = finding(format!("model.{key}"), what, &remedy, sections);
            // `kv_heads = 3 does not divide it`: the other number has a key, too.
            match (problem.split_once(" = "), key) {
                (Some(_), "kv_heads") => found.about(&["model.latent", "model.heads"]),
                (Some((other, _)), _) => found.about(&[&format!("model.{other}")]),
                (None, "vocab_size") => found.about(&["data.tokenizer"]),
                (None, "positions.learned.max") => found.about(&["batch.seq_len"]),
                (None, "moe.top_k") => {
                    found.about(&["model.moe.experts", "model.moe.groups", "model.moe.top_groups"])
                }
                (None, "moe.top_groups") => found.about(&["model.moe.groups"]),
                // An option that latent attention excludes may be a preset's.
                (None, "qk_norm" | "positions" | "attention_bias" | "names") => {
                    found.about(&["model.latent"])
                }
                (None, _) => found,
            }
        }
        ModelError::TooLarge { .. } => {
            let help = "use fewer or narrower layers or experts";
            finding("model", error.to_string(), help, sections)
        }
        other => finding("model", other.to_string(), "", sections),
    };
    vec![found]
}

fn of_optimizer(error: OptimError) -> Finding {
    // Whether a rule matches depends on the model, too.
    let sections = &["optimizer", "model"];
    match error {
        OptimError::Value { at, got, allowed, nearest } => {
            let help = format!("write {allowed}, such as {nearest}");
            finding(at, format!("{got} is out of range"), &help, sections)
        }
        OptimError::NewtonSchulz { at, source } => finding(at, source.to_string(), "", sections),
        OptimError::NoUpdate { rule } => {
            let words = optim::Update::WORDS.join(", ");
            let help = format!("give it one of {words} (as `adamw: {{}}`, with defaults)");
            finding(format!("optimizer.rules[{rule}]"), "it has no update", &help, sections)
        }
        OptimError::TwoUpdates { rule, words: [one, other] } => {
            let what = format!("it has both `{one}` and `{other}`");
            finding(format!("optimizer.rules[{rule}]"), what, "split it into two rules", sections)
        }
        OptimError::UnusedRule { rule, reason } => {
            let what = format!("it matches no parameter: {reason}");
            finding(format!("optimizer.rules[{rule}]"), what, "", sections)
        }
        OptimError::StateMisfit { at, got, matrix, shape, state, needs, most } => {
            let what =
                format!("{got} does not fit {matrix} {shape:?}: its {state} would be {needs:?}");
            finding(at, what, &format!("use at most {most}"), sections)
        }
        OptimError::NotAMatrix { rule, update, tensor, role, shape } => {
            let what = format!(
                "it gives {update} to `{tensor}`, whose shape is {shape:?}; {update} updates \
                 two-dimensional parameters only"
            );
            let help = format!("leave the role `{role}` to an `adamw` rule");
            finding(format!("optimizer.rules[{rule}]"), what, &help, sections)
        }
        other => finding("optimizer.rules", other.to_string(), "", sections),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Leaves, radices and ranks that a message says to use are taken.
        #[test]
        fn offered_batches_are_taken(
            leaves in 1_usize..40,
            radices in prop::collection::vec(2_usize..5, 0..4),
            ranks in 1_usize..50,
            micro_batches in prop::sample::select(vec![1_usize, 1 << 20]),
        ) {
            let mut config = Config::default();
            (config.batch.leaves, config.batch.radices) = (leaves, radices);
            (config.ranks.count, config.batch.micro_batches) = (ranks, micro_batches);
            config.batch.micro_batch = 1 << 10;
            let mut findings = Vec::new();
            check_batch(&config, &mut findings);
            let first = findings.first().filter(|finding| finding.path != "batch");
            let Some(Finding { help, path, .. }) = first else { return Ok(()) };
            for offer in help[0].trim_start_matches("use ").split(", or ") {
                let words = offer.split(|c: char| !c.is_ascii_digit());
                let numbers = words.filter_map(|word| word.parse().ok());
                let numbers: Vec<usize> = numbers.collect();
                let mut changed = config.clone();
                match offer {
                    offer if offer.contains("leaves: ") => changed.batch.leaves = numbers[0],
                    offer if offer.starts_with("at most") => changed.ranks.count = numbers[0],
                    // None, where they are to be left empty.
                    _ => changed.batch.radices = numbers,
                }
                if offer.contains("without batch.radices") {
                    changed.batch.radices.clear();
                }
                let mut left = Vec::new();
                check_batch(&changed, &mut left);
                // More ranks than leaves were a mistake before, where it was not shown first.
                let new = left.iter().any(|finding| {
                    finding.path != "ranks.count"
                        || offer.contains("leaves: ")
                        || path == "ranks.count"
                });
                prop_assert!(!new, "{config:?}: {offer}: {left:?}");
            }
        }
    }
}
