//! A published model: its family, shape and tensors.

use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, TensorKey};
use layout::{Dtype, Schema};
use model::{Architecture, ModelConfig, Parameters};
use serde_json::Value;

use super::directory;
use super::families::FAMILIES;
use super::table::{Family, Row, SEQ_LEN, get};
use crate::convert::Types;
use crate::files::read_json;
use crate::find::Naming;
use crate::import::{Extra, ImportPlan, plan_import};
use crate::rules::Rules;
use crate::{Error, Foreign, Origin, unread};

/// Tells what a model is.
pub(crate) const CONFIG: &str = "config.json";
const CONFIG_BYTES: u64 = 1 << 24;

/// The slot of the balancing biases of routers.
pub(crate) const ROUTER_BIAS: &str = "router_bias";

/// Files beside the weights that belong to the model.
const COMPANIONS: [&str; 11] = [
    // For the ids of its special tokens.
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// The files of a directory that belong to a model beside its weights.
pub fn companions(dir: &Path) -> Vec<PathBuf> {
    let all = COMPANIONS.iter().map(|name| dir.join(name));
    all.filter(|path| path.is_file()).collect()
}

/// A directory of a published model.
#[derive(Debug)]
pub struct Published {
    pub foreign: Foreign,
    pub model: ModelConfig,
    /// The longest window that `config.json` tells.
    pub seq_len: Option<usize>,
    /// Keys of `config.json` that nothing here knows.
    pub unknown: Vec<String>,
    /// Tokenizer and such.
    pub companions: Vec<PathBuf>,
    block: Option<[usize; 2]>,
    /// Of the model that was published.
    layers: usize,
    family: &'static Family,
}

impl Published {
    /// Reads `config.json`, but for the keys of `ignored`, and the headers of all weights.
    ///
    /// # Errors
    /// Files that are missing or damaged; a model that Muster does not have, and by which key.
    pub fn read(dir: &Path, ignored: &[String]) -> Result<Published, Error> {
        let path = dir.join(CONFIG);
        if !path.exists() {
            let reason = unread::why(dir).map(str::to_owned);
            return Err(Error::refused(dir, reason.unwrap_or(format!("it has no {CONFIG}"))));
        }
        let config: Value = read_json(&path, CONFIG_BYTES)?;
        let family = family(&path, &config)?;
        let (mut ours, unknown) = family.to_ours(&config, ignored).map_err(|misfit| {
            let reason = format!(
                "{}; to read the model as if that key were not there, and know that it computes \
                 something else, give --ignore-key KEY",
                misfit.0
            );
            Error::refused(&path, reason)
        })?;
        let block = block_of(&path, &config)?;
        let seq_len = window(&path, get(&ours, SEQ_LEN))?;
        if let Some(map) = ours.as_object_mut() {
            map.remove(SEQ_LEN);
        }
        dense_alone(&mut ours);
        let model: ModelConfig = serde_path_to_error::deserialize(ours).map_err(|error| {
            let reason = format!("the key of model.{}: {}", error.path(), error.inner());
            Error::malformed(&path, reason)
        })?;
        check_epsilon(&path, &model)?;
        check_theta(&path, &model)?;
        let layers = model.layers.unwrap_or(0);
        let companions = companions(dir);
        let foreign = directory::read_safetensors(dir)?;
        Ok(Published { foreign, model, seq_len, unknown, companions, block, layers, family })
    }

    /// Decides what each state of the model is made of, and which tensors are of no use.
    ///
    /// # Errors
    /// Tensors that nothing there is; shapes that do not fit, and no rule that is allowed mends;
    /// types that are not turned into the one that is asked for; tensors that have no place in the
    /// model.
    pub fn plan(
        &self,
        of: &Architecture,
        rules: &Rules,
        types: Types,
    ) -> Result<ImportPlan<'_>, Error> {
        let refuse =
            |error: model::ModelError| Error::refused(&self.foreign.path, error.to_string());
        let (schema, parameters) = model::parameters(of).map_err(refuse)?;
        let named = |name: &str| self.family.router_bias.then(|| name.to_owned());
        let extras = extras(of, &parameters, named, self.family.router_bias && !rules.experts);
        let naming = (&self.naming(), rules);
        let plan = plan_import(&self.foreign, schema, &extras, naming, types)?;
        self.check_unused(&plan, of, rules)?;
        Ok(plan)
    }

    fn naming(&self) -> Naming {
        let prefixes = [self.family.prefix, ""].map(str::to_owned).to_vec();
        Naming { prefixes, block: self.block }
    }

    /// Refuses tensors that nothing is made of, but for those that are known to be no part of a
    /// model.
    fn check_unused(
        &self,
        plan: &ImportPlan,
        of: &Architecture,
        rules: &Rules,
    ) -> Result<(), Error> {
        if let Some(layers) = rules.layers.as_ref().filter(|layers| layers.end > self.layers) {
            let reason = format!("--layers {layers:?}: it has {} layers", self.layers);
            return Err(Error::refused(&self.foreign.path, reason));
        }
        let is_tied = |name: &str| of.tie_embeddings && name == HEAD;
        let strange = |name: &&str| {
            let is_known = self.family.leaves_out(name, self.layers) || is_tied(name);
            !is_known && !rules.passes_over(name)
        };
        let strange: Vec<&str> = plan.unused.iter().map(String::as_str).filter(strange).collect();
        if strange.is_empty() {
            return if rules.tied { Ok(()) } else { check_tied(&self.foreign, plan) };
        }
        Err(no_place(&self.foreign, &strange))
    }
}

/// Leading layers without experts.
const DENSE: &str = "moe.first_dense_layers";

/// A mixture none of whose layers has experts is none.
fn dense_alone(ours: &mut Value) {
    let number = |path| get(ours, path).and_then(Value::as_u64);
    let is_dense = number(DENSE).zip(number("layers")).is_some_and(|(dense, all)| dense >= all);
    if let Some(map) = ours.as_object_mut().filter(|_| is_dense) {
        map.remove("moe");
    }
}

/// A model without experts, of a family whose files tell of some: of the least that there may be,
/// in layers after the last.
fn with_no_experts(family: &Family, ours: &mut Value) {
    let tells = |row: &Row| matches!(row, Row::Same(_, path, _) if *path == DENSE);
    if get(ours, "moe").is_none() && family.rows.iter().copied().flatten().any(tells) {
        ours["moe"] = serde_json::json!({
            "experts": 1, "top_k": 1, "groups": 1, "top_groups": 1, "d_ff": 1,
            "shared_experts": 1, "first_dense_layers": ours["layers"],
            "route_scale": 1.0, "normalize_top_k": true
        });
    }
}

/// An epsilon keeps a root from nothing, and is small beside the rest under it.
fn check_epsilon(path: &Path, model: &ModelConfig) -> Result<(), Error> {
    match model.norm_eps {
        Some(eps) if !(eps > 0.0 && eps <= 1.0) => {
            let reason = format!(
                "its norms add {eps} to a mean of squares; published models add 1e-6 to 1e-5, and \
                 no more than 1 is read"
            );
            Err(Error::refused(path, reason))
        }
        _ => Ok(()),
    }
}

/// The base of frequencies is one that a config may have.
fn check_theta(path: &Path, model: &ModelConfig) -> Result<(), Error> {
    match model.positions {
        Some(model::Positions::Rotary { theta, .. }) if !(1.0..=1e15).contains(&theta) => {
            let reason = format!(
                "`rope_theta` is {theta}, of which frequencies are powers; 1 to 1e15 are read, and \
                 published models have 10000 and more"
            );
            Err(Error::refused(path, reason))
        }
        _ => Ok(()),
    }
}

/// The matrix of an output projection of its own.
const HEAD: &str = "lm_head.weight";

/// Tensors that have no place in a model.
fn no_place(origin: &dyn Origin, strange: &[&str]) -> Error {
    let told: Vec<String> = strange.iter().take(4).map(|name| format!("`{name}`")).collect();
    let more = match strange.len().saturating_sub(4) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let reason = format!("{}{more} have no place in the model", told.join(", "));
    Error::refused(origin.path(), reason)
}

/// A head that is tied to the embedding, and there all the same, is equal to it.
fn check_tied(origin: &dyn Origin, plan: &ImportPlan) -> Result<(), Error> {
    let Some(head) = plan.unused.iter().find(|name| *name == HEAD) else { return Ok(()) };
    let table = plan.schema.tensors.first().map(|tensor| tensor.name.clone());
    let state = plan.states.iter().find(|state| Some(&state.key.name) == table.as_ref());
    let source = state.and_then(|state| state.sources().first().copied()).unwrap_or_default();
    if equal(origin, head, source)? {
        return Ok(());
    }
    let reason = format!(
        "differs from `{source}`, which is the head of the model; --allow tied leaves it out"
    );
    Err(Error::Tensor { name: head.clone(), reason })
}

/// Whether two tensors have the same bytes.
fn equal(origin: &dyn Origin, a: &str, b: &str) -> Result<bool, Error> {
    let (a, b) = (origin.elements(a)?, origin.elements(b)?);
    if (a.dtype(), a.len()) != (b.dtype(), b.len()) {
        return Ok(false);
    }
    let (size, step) = (a.dtype().size_bytes(), 1 << 20);
    let (mut ours, mut theirs) = (vec![0; step * size], vec![0; step * size]);
    for start in (0..a.len()).step_by(step) {
        let bytes = (a.len() - start).min(step) * size;
        a.read(start, &mut ours[..bytes])?;
        b.read(start, &mut theirs[..bytes])?;
        if ours[..bytes] != theirs[..bytes] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Decides what each state of a model is made of, of tensors that are called as it calls them:
/// of another checkpoint of Muster's, or of another trainer's, which may have a word before all
/// names.
///
/// # Errors
/// As [`Published::plan`], but for tensors that are left over.
pub fn plan_model<'a>(
    origin: &'a dyn Origin,
    of: &Architecture,
    rules: &Rules,
    types: Types,
) -> Result<ImportPlan<'a>, Error> {
    let refuse = |error: model::ModelError| Error::refused(origin.path(), error.to_string());
    let (schema, parameters) = model::parameters(of).map_err(refuse)?;
    let prefix = prefix(origin, &schema)?;
    let named = |name: &str| {
        let state = format!("{name}:{ROUTER_BIAS}");
        let is_there = origin.find(&format!("{prefix}{state}")).is_some();
        Some(if is_there { state } else { name.to_owned() })
    };
    let extras = extras(of, &parameters, named, false);
    let naming = Naming { prefixes: vec![prefix.clone()], block: None };
    plan_import(origin, schema, &extras, (&naming, rules), types)
}

/// As [`plan_model`], of a checkpoint of Muster's, whose parameters all have a place.
///
/// # Errors
/// As [`Published::plan`].
pub fn plan_saved<'a>(
    checkpoint: &'a Checkpoint,
    of: &Architecture,
    rules: &Rules,
    types: Types,
) -> Result<ImportPlan<'a>, Error> {
    let plan = plan_model(checkpoint, of, rules, types)?;
    let is_tied = |name: &str| of.tie_embeddings && name == HEAD;
    // Other states are the optimizer's.
    let is_param = |name: &&str| !name.contains(':');
    let strange = plan.unused.iter().map(String::as_str).filter(is_param);
    let strange: Vec<&str> =
        strange.filter(|name| !is_tied(name) && !rules.passes_over(name)).collect();
    match strange.is_empty() {
        true if rules.tied => Ok(plan),
        true => check_tied(checkpoint, &plan).map(|()| plan),
        false => Err(no_place(checkpoint, &strange)),
    }
}

/// The word that stands before the names of most of a model's tensors there.
///
/// # Errors
/// There are several such words.
fn prefix(origin: &dyn Origin, schema: &Schema) -> Result<String, Error> {
    let first = schema.tensors.first().map_or("", |tensor| &tensor.name);
    let names = origin.names();
    let before = names.iter().filter_map(|name| name.strip_suffix(first));
    let words: Vec<&str> =
        before.filter(|before| before.is_empty() || before.ends_with('.')).collect();
    match words[..] {
        [] => Ok(String::new()),
        [word] => Ok(word.to_owned()),
        _ => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}{first}`")).collect();
            let reason = format!(
                "{} are there, and nobody knows which of these models is meant; export one of them \
                 alone",
                words.join(" and ")
            );
            Err(Error::refused(origin.path(), reason))
        }
    }
}

/// The balancing biases of a model's routers, each made of the tensor that `named` says.
fn extras(
    of: &Architecture,
    parameters: &Parameters,
    named: impl Fn(&str) -> Option<String>,
    needed: bool,
) -> Vec<Extra> {
    let experts = of.moe.as_ref().map_or(0, |moe| moe.experts);
    let extra = |name: &String| Extra {
        key: TensorKey::new(&**name, ROUTER_BIAS),
        shape: vec![experts],
        named: named(name),
        needed,
    };
    parameters.router_biases.iter().map(extra).collect()
}

/// The longest window that a model was trained with, if it is told.
fn window(path: &Path, told: Option<&Value>) -> Result<Option<usize>, Error> {
    let Some(told) = told else { return Ok(None) };
    match told.as_u64().filter(|len| (1..=1 << 24).contains(len)) {
        Some(len) => Ok(Some(len as usize)),
        None => {
            let reason = format!("a window of {told} positions is none; use 1 to 16777216");
            Err(Error::refused(path, reason))
        }
    }
}

fn family(path: &Path, config: &Value) -> Result<&'static Family, Error> {
    let named = get(config, "model_type").and_then(Value::as_str).unwrap_or_default();
    let found = FAMILIES.iter().find(|family| family.model_type == named);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        let reason = format!("`model_type` is `{named}`; Muster has {}", known.join(", "));
        Error::refused(path, reason)
    })
}

/// The blocks that share a factor, of a model whose matrices are FP8.
fn block_of(path: &Path, config: &Value) -> Result<Option<[usize; 2]>, Error> {
    let Some(quantization) = get(config, "quantization_config") else { return Ok(None) };
    let word = |key| get(quantization, key).and_then(Value::as_str).unwrap_or_default();
    let (method, fmt) = (word("quant_method"), word("fmt"));
    let block = get(quantization, "weight_block_size").cloned();
    let block = block.map_or(Ok([128; 2]), serde_json::from_value::<[usize; 2]>);
    match block {
        Ok(block) if method == "fp8" && ["", "e4m3"].contains(&fmt) && !block.contains(&0) => {
            Ok(Some(block))
        }
        _ => {
            let reason = format!(
                "`quantization_config` is {quantization}; FP8 in blocks (quant_method fp8, fmt \
                 e4m3) can be read"
            );
            Err(Error::refused(path, reason))
        }
    }
}

/// The `config.json` of a model.
///
/// # Errors
/// A family without one; a field that its files have no key for.
pub(crate) fn config_of(
    of: &Architecture,
    seq_len: usize,
    dtype: Dtype,
) -> Result<(&'static Family, Value), Error> {
    let refuse = |reason: String| Error::Refused { path: PathBuf::from(CONFIG), reason };
    let mut ours = serde_json::to_value(of).map_err(|error| refuse(error.to_string()))?;
    let names = get(&ours, "names").cloned().unwrap_or_default();
    let family = FAMILIES.iter().find(|family| names == family.names);
    let family = *family.ok_or_else(|| refuse(format!("no family is called {names}")))?;
    ours[SEQ_LEN] = Value::from(seq_len);
    with_no_experts(family, &mut ours);
    let class = family.architecture;
    let cannot = |why: String| {
        refuse(format!(
            "a {class} cannot be what this model is: {why}; to write its tensors without a \
             {CONFIG}, give --to safetensors or --to dcp"
        ))
    };
    let mut theirs = family.to_theirs(&ours).map_err(|misfit| cannot(misfit.0))?;
    check_same(family, &theirs, of, seq_len).map_err(cannot)?;
    let word = match dtype {
        Dtype::Bf16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    };
    theirs["torch_dtype"] = Value::from(word);
    Ok((family, theirs))
}

/// Keys of a `config.json` that belong to the tokenizer.
const OF_TOKENIZER: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// The longest window, of families that have no table of positions.
const WINDOW: &str = "max_position_embeddings";

/// Takes over the ids of special tokens, and a longer window, from the file of the model that was
/// imported.
///
/// # Errors
/// It cannot be read.
pub(crate) fn keep_tokens(config: &mut Value, companions: &[PathBuf]) -> Result<(), Error> {
    let Some(path) = companions.iter().find(|path| path.ends_with(CONFIG)) else { return Ok(()) };
    let before: Value = read_json(path, CONFIG_BYTES)?;
    for key in OF_TOKENIZER {
        if let Some(value) = before.get(key) {
            config[key] = value.clone();
        }
    }
    // A run's window may be shorter than the model's.
    let number = |of: &Value| of.get(WINDOW).and_then(Value::as_u64);
    if number(&before) > number(config) && number(config).is_some() {
        config[WINDOW] = before[WINDOW].clone();
    }
    Ok(())
}

/// Fields that steer training alone, and need no key.
const OF_TRAINING: [&str; 4] = ["init_std", "moe.balance_rate", "moe.aux_loss", "moe.z_loss"];

/// A file that is read back tells the same model.
fn check_same(
    family: &Family,
    theirs: &Value,
    of: &Architecture,
    seq_len: usize,
) -> Result<(), String> {
    let (mut back, _) = family.to_ours(theirs, &[]).map_err(|misfit| misfit.0)?;
    if let Some(map) = back.as_object_mut() {
        map.remove(SEQ_LEN);
    }
    dense_alone(&mut back);
    let back: ModelConfig = serde_json::from_value(back).map_err(|error| error.to_string())?;
    let back = back.resolve(2, seq_len).map_err(|error| error.to_string())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    leaves("", &told(of), &mut ours);
    leaves("", &told(&back), &mut theirs);
    let unlike = |(path, value): &&(String, Value)| {
        let there = theirs.iter().find(|(other, _)| other == path).map(|(_, value)| value);
        !OF_TRAINING.contains(&&**path) && there != Some(value)
    };
    match ours.iter().find(unlike) {
        None => Ok(()),
        Some((path, value)) => {
            let there = theirs.iter().find(|(other, _)| other == path).map(|(_, value)| value);
            let there = there.map_or_else(|| "nothing".to_owned(), ToString::to_string);
            Err(format!("model.{path} is {value}, and there it is {there}"))
        }
    }
}

/// All that a model is, with what stands there once for several norms.
fn told(of: &Architecture) -> Value {
    let mut all = serde_json::to_value(of).unwrap_or_default();
    if let Some(latent) = of.latent {
        all["latent"]["norm_eps"] = Value::from(latent.norm_eps.unwrap_or(of.norm_eps));
    }
    all
}

/// All values of a JSON tree, with their paths.
fn leaves(path: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&path, value, into);
            }
        }
        value => into.push((path.to_owned(), value.clone())),
    }
}

#[cfg(test)]
mod tests {
    use model::Preset;

    use super::*;
    use crate::hf::table::{Lacking, Row};

    fn told(preset: Preset) -> Result<Value, String> {
        let model = ModelConfig { preset: Some(preset), ..ModelConfig::default() };
        let architecture = model.resolve(2, 1024).unwrap();
        let told = config_of(&architecture, 1024, Dtype::Bf16);
        told.map(|(_, config)| config).map_err(|error| error.to_string())
    }

    #[test]
    fn every_published_preset_is_told_as_it_was_published() {
        let classes = [
            (Preset::Gpt2124m, "GPT2LMHeadModel", "n_embd", 768),
            (Preset::Llama3_8b, "LlamaForCausalLM", "intermediate_size", 14_336),
            (Preset::Qwen3Moe30b, "Qwen3MoeForCausalLM", "num_experts", 128),
            (Preset::Olmoe7b, "OlmoeForCausalLM", "intermediate_size", 1024),
            (Preset::Mixtral8x7b, "MixtralForCausalLM", "num_local_experts", 8),
            (Preset::DeepseekV3, "DeepseekV3ForCausalLM", "kv_lora_rank", 512),
        ];
        for (preset, class, key, value) in classes {
            let config = told(preset).unwrap();
            assert_eq!((&config["architectures"][0], &config[key]), (&class.into(), &value.into()));
            assert_eq!(config["torch_dtype"], "bfloat16");
        }
    }

    #[test]
    fn a_base_of_frequencies_is_one_that_a_config_may_have() {
        let read = |theta: f64| {
            let positions = Some(model::Positions::rotary(theta));
            let model = ModelConfig { positions, ..ModelConfig::default() };
            check_theta(Path::new(CONFIG), &model).map_err(|error| error.to_string())
        };
        assert_eq!(read(5e5), Ok(()));
        for theta in [0.0, -5.0, 0.5, f64::INFINITY] {
            assert!(read(theta).unwrap_err().contains("`rope_theta` is"));
        }
    }

    /// DeepSeek-V3's short vectors have 1e-6 in every reader.
    #[test]
    fn an_epsilon_that_readers_do_not_take_is_refused() {
        let written = |norm_eps: f64, own: f64| {
            let preset = Preset::DeepseekV3.config();
            let latent =
                model::config::LatentConfig { norm_eps: Some(own), ..preset.latent.unwrap() };
            let model = ModelConfig {
                preset: Some(Preset::DeepseekV3),
                latent: Some(latent),
                norm_eps: Some(norm_eps),
                ..ModelConfig::default()
            };
            let architecture = model.resolve(2, 1024).unwrap();
            config_of(&architecture, 1024, Dtype::Bf16).map_err(|error| error.to_string())
        };
        assert_eq!(written(1e-5, 1e-6).unwrap().1["rms_norm_eps"], 1e-5);
        let told = written(1e-5, 1e-5).unwrap_err();
        assert!(told.contains("model.latent.norm_eps is 0.00001, and there it is 1e-6"), "{told}");
    }

    #[test]
    fn a_model_that_no_family_has_is_refused_by_its_field() {
        let told = told(Preset::TinyMoe).unwrap_err();
        let wanted = "a Qwen3MoeForCausalLM cannot be what this model is: model.moe.";
        assert!(told.contains(wanted) && told.contains("--to safetensors"), "{told}");
    }

    #[test]
    fn literals_of_the_tables_are_json() {
        let parse = |text: &str| serde_json::from_str::<Value>(text).expect(text);
        for row in FAMILIES.iter().flat_map(|family| family.rows.iter().copied().flatten()) {
            match row {
                Row::Same(_, _, Lacking::Is(text) | Lacking::Or(text, _)) | Row::Ours(_, text) => {
                    parse(text);
                }
                Row::Only(_, texts) | Row::Read(_, texts) => {
                    texts.iter().for_each(|text| drop(parse(text)));
                }
                _ => {}
            }
        }
    }
}
