//! `config.json` of a family and the `model` section of a config, as rows of a table.
//!
//! ```text
//! config.json ─to_ours─▶ model section (and the longest window)
//! all that a model is ─to_theirs─▶ config.json
//! ```
//! Values are JSON on both sides, so a row is data alone. A key may have several names, divided by
//! `|`: the first that is there is read, all are written. A dot leads into an object.

use serde_json::{Map, Value, json};

use super::rope;

/// The words of a family's published files.
#[derive(Debug)]
pub(crate) struct Family {
    /// `model.names`.
    pub names: &'static str,
    pub model_type: &'static str,
    pub architecture: &'static str,
    /// Stands before the names of all tensors but the head; some files lack it.
    pub prefix: &'static str,
    /// Whether the balancing biases of routers are published.
    pub router_bias: bool,
    /// In groups, which families share.
    pub rows: &'static [&'static [Row]],
    /// Tensors of published files that a model does not need: a `*` stands for anything without a
    /// dot, `**` for anything, `{layers}` for the number of layers.
    pub left_out: &'static [&'static str],
    /// Which of the model's matrices are FP8 in files that have them so; nothing, if there are no
    /// such files that anything reads. Names as those of `left_out`, without the prefix.
    pub fp8: &'static [&'static str],
    /// Modules that readers might take for FP8 and that are not: told in `config.json`. With none,
    /// readers leave out the head; with some, they need its name, too.
    pub not_fp8: &'static [&'static str],
}

/// A row of the table. Literals are JSON.
#[derive(Debug)]
pub(crate) enum Row {
    /// The same value under both names: theirs, and ours.
    Same(&'static str, &'static str, Lacking),
    /// A word that has another name here: (theirs, ours).
    Word(&'static str, &'static str, &'static [(&'static str, &'static str)]),
    /// A key that Muster has nothing for: it may be absent, or one of these values. The first is
    /// written.
    Only(&'static str, &'static [&'static str]),
    /// As [`Row::Only`], and not written.
    Read(&'static str, &'static [&'static str]),
    /// Whatever it says changes nothing.
    Any(&'static str),
    /// How rotary frequencies are stretched.
    Rotary,
    /// A value that all models of the family have here.
    Ours(&'static str, &'static str),
}

/// The meaning of a key that is not there; null means the same, unless another thing is said.
#[derive(Debug)]
pub(crate) enum Lacking {
    /// It must be there.
    Refuse,
    /// Nothing.
    Nothing,
    /// This value; null is false to Python, and none of another type.
    Is(&'static str),
    /// This value; and null means what the second means by a lack.
    Or(&'static str, &'static Lacking),
    /// The value of another key.
    OfKey(&'static str),
    /// So many times another key.
    Times(u64, &'static str),
}

/// Why a file of the family cannot be understood, or a model not be told in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit(pub String);

/// Where a model's stretched frequencies stand.
const SCALING: &str = "positions.rotary.scaling";

/// The window that a model was trained for: no part of it, but files tell it.
pub(crate) const SEQ_LEN: &str = "seq_len";

impl Family {
    /// Reads a `config.json` but for the keys of `ignored`; returns the model section and the keys
    /// that no row knows.
    ///
    /// # Errors
    /// A key that is missing, or has a value that Muster does not have.
    pub(crate) fn to_ours(
        &self,
        theirs: &Value,
        ignored: &[String],
    ) -> Result<(Value, Vec<String>), Misfit> {
        let mut theirs = theirs.clone();
        for path in ignored {
            if !remove(&mut theirs, path) {
                return Err(Misfit(format!("it has no key `{path}`, which is to be ignored")));
            }
        }
        let mut ours = Value::Object(Map::new());
        set(&mut ours, "names", Value::from(self.names));
        for row in self.rows.iter().copied().flatten() {
            row.read(&theirs, &mut ours)?;
        }
        let known = |key: &str| {
            key == "model_type"
                || key == "architectures"
                || self
                    .rows
                    .iter()
                    .copied()
                    .flatten()
                    .flat_map(Row::keys)
                    .any(|known| first(known) == key)
        };
        let all = theirs.as_object().into_iter().flat_map(Map::keys);
        Ok((ours, all.filter(|key| !known(key)).cloned().collect()))
    }

    /// The `config.json` of a model whose every field is given.
    ///
    /// # Errors
    /// A field that the family has no key for.
    pub(crate) fn to_theirs(&self, ours: &Value) -> Result<Value, Misfit> {
        let mut theirs = Value::Object(Map::new());
        set(&mut theirs, "model_type", Value::from(self.model_type));
        set(&mut theirs, "architectures", Value::from(vec![self.architecture]));
        for row in self.rows.iter().copied().flatten() {
            row.write(ours, &mut theirs)?;
        }
        Ok(theirs)
    }

    /// Whether a tensor is FP8 in files that have matrices so.
    pub(crate) fn is_fp8(&self, name: &str) -> bool {
        self.fp8.iter().any(|pattern| matches(pattern, name))
    }

    /// The section of `config.json` on files with FP8 matrices, of tensors of these names.
    pub(crate) fn fp8_config(&self, block: usize, names: &[&str]) -> Value {
        let mut config = json!({
            "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [block, block],
            "activation_scheme": "dynamic",
        });
        let modules = || names.iter().filter_map(|name| name.strip_suffix(".weight"));
        // A plain name is told of every model: a tied head is a module without a tensor.
        let kept = self.not_fp8.iter().flat_map(|pattern| match pattern.contains('*') {
            true => modules().filter(|module| matches(pattern, module)).collect(),
            false => vec![*pattern],
        });
        let kept: Vec<&str> = kept.collect();
        if !kept.is_empty() {
            config["modules_to_not_convert"] = json!(kept);
        }
        config
    }

    /// Whether published files have a tensor of this name that no model of so many layers needs.
    pub(crate) fn leaves_out(&self, name: &str, layers: usize) -> bool {
        let layers = layers.to_string();
        let is_of = |pattern: &&str| matches(&pattern.replace("{layers}", &layers), name);
        self.left_out.iter().any(is_of)
    }
}

impl Row {
    fn keys(&self) -> impl Iterator<Item = &'static str> {
        let keys = match self {
            Row::Same(keys, ..) | Row::Word(keys, ..) => *keys,
            Row::Only(keys, _) | Row::Read(keys, _) | Row::Any(keys) => *keys,
            Row::Rotary => "rope_parameters|rope_scaling",
            Row::Ours(..) => "",
        };
        keys.split('|').filter(|key| !key.is_empty())
    }

    fn read(&self, theirs: &Value, ours: &mut Value) -> Result<(), Misfit> {
        let found = self.keys().find_map(|key| Some((key, get(theirs, key)?)));
        let first = self.keys().next().unwrap_or_default();
        // As the file has it, for messages.
        let (name, found) = found.map_or((first, None), |(key, value)| (key, Some(value)));
        match self {
            Row::Same(_, path, lacking) => {
                let value = match found {
                    Some(value) => Some(value.clone()),
                    None => match self.keys().find(|key| is_null(theirs, key)) {
                        Some(null) => lacking.of_null(null, theirs)?,
                        None => lacking.value(name, theirs)?,
                    },
                };
                value.into_iter().for_each(|value| set(ours, path, value));
            }
            Row::Word(key, path, words) => {
                let of_none = if is_null(theirs, key) { Value::Null } else { words[0].0.into() };
                let found = found.cloned().unwrap_or(of_none);
                let word = words.iter().find(|(theirs, _)| found == *theirs);
                let Some((_, word)) = word else {
                    let known: Vec<&str> = words.iter().map(|(theirs, _)| *theirs).collect();
                    return Err(Misfit(format!(
                        "`{name}` is {found}; Muster has {}",
                        known.join(", ")
                    )));
                };
                set(ours, path, Value::from(*word));
            }
            Row::Only(_, values) | Row::Read(_, values) => {
                let allows = |found: &Value| values.iter().any(|text| equal(found, &literal(text)));
                // Null is as good as false, 0 or nothing to Python, and as nothing else.
                let is_one = |found: &Value| match found {
                    Value::Null => values.iter().any(|text| is_falsy(&literal(text))),
                    found => allows(found),
                };
                let null = self.keys().any(|key| is_null(theirs, key)).then_some(&Value::Null);
                if let Some(found) = found.or(null).filter(|found| !is_one(found)) {
                    return Err(Misfit(format!(
                        "`{name}` is {found}, which Muster does not have; it reads {}",
                        values.join(" or ")
                    )));
                }
            }
            Row::Any(_) => {}
            Row::Rotary => {
                if let Some(scaling) = rope::read(theirs).map_err(Misfit)? {
                    set(ours, SCALING, scaling);
                }
            }
            Row::Ours(path, text) => set(ours, path, literal(text)),
        }
        Ok(())
    }

    fn write(&self, ours: &Value, theirs: &mut Value) -> Result<(), Misfit> {
        match self {
            Row::Same(_, path, lacking) => {
                let value = get(ours, path).cloned();
                if value.is_none() && matches!(lacking, Lacking::Refuse) {
                    return Err(Misfit(format!("model.{path} has no value")));
                }
                // Readers fill in what is missing: of a key that has a default, nothing is null.
                let is_told =
                    value.is_some() || matches!(lacking, Lacking::Is(_) | Lacking::Or(..));
                for key in self.keys().filter(|_| is_told) {
                    set(theirs, key, value.clone().unwrap_or_default());
                }
            }
            Row::Word(_, path, words) => {
                let value = get(ours, path).cloned().unwrap_or_default();
                let word = words.iter().find(|(_, ours)| value == *ours);
                let Some((word, _)) = word else {
                    return Err(Misfit(format!("model.{path} is {value}")));
                };
                self.keys().for_each(|key| set(theirs, key, Value::from(*word)));
            }
            Row::Only(_, values) => {
                let first = values.first().map_or(Value::Null, |text| literal(text));
                self.keys().take(1).for_each(|key| set(theirs, key, first.clone()));
            }
            Row::Rotary => {
                if let Some(theirs) = theirs.as_object_mut() {
                    rope::write(get(ours, SCALING), theirs);
                }
            }
            Row::Read(..) | Row::Any(_) | Row::Ours(..) => {}
        }
        Ok(())
    }
}

impl Lacking {
    /// The value of a key that is not there.
    fn value(&self, name: &str, theirs: &Value) -> Result<Option<Value>, Misfit> {
        Ok(match self {
            Lacking::Refuse => return Err(Misfit(format!("`{name}` is missing"))),
            Lacking::Nothing => None,
            Lacking::Is(text) | Lacking::Or(text, _) => Some(literal(text)),
            Lacking::OfKey(other) => get(theirs, other).cloned(),
            Lacking::Times(factor, other) => {
                let other = get(theirs, other).and_then(Value::as_u64);
                other.and_then(|n| n.checked_mul(*factor)).map(Value::from)
            }
        })
    }

    /// The value of a key that is null.
    fn of_null(&self, name: &str, theirs: &Value) -> Result<Option<Value>, Misfit> {
        match self {
            Lacking::Refuse => Err(Misfit(format!("`{name}` is null, and has no default"))),
            Lacking::Is("true" | "false") => Ok(Some(Value::from(false))),
            Lacking::Is(text) => Err(Misfit(format!(
                "`{name}` is null, which is no value of it; a file without that key means {text}"
            ))),
            Lacking::Or(_, null) => null.value(name, theirs),
            same => same.value(name, theirs),
        }
    }
}

/// A literal of a table; the tables' test reads all of them.
fn literal(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

/// `1` and `1.0` are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a))
}

/// As Python's `not value`.
fn is_falsy(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(parts) => parts.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn first(path: &str) -> &str {
    path.split('.').next().unwrap_or(path)
}

/// The value at a path, unless it is null.
pub(crate) fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |at, key| at.get(key)).filter(|found| !found.is_null())
}

/// Whether the key at a path is there, and is null.
fn is_null(value: &Value, path: &str) -> bool {
    path.split('.').try_fold(value, |at, key| at.get(key)).is_some_and(Value::is_null)
}

/// Removes what is at a path; whether there was anything.
fn remove(value: &mut Value, path: &str) -> bool {
    let (above, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut at = Some(value);
    for key in above.split('.').filter(|key| !key.is_empty()) {
        at = at.and_then(|at| at.get_mut(key));
    }
    at.and_then(Value::as_object_mut).is_some_and(|map| map.remove(key).is_some())
}

/// Puts a value at a path; objects on the way are made.
fn set(value: &mut Value, path: &str, new: Value) {
    let mut at = value;
    for key in path.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[key];
    }
    *at = new;
}

/// Whether a pattern stands for a name.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => {
            let Some(rest) = name.strip_prefix(before) else { return false };
            let (anything, after) = match after.strip_prefix('*') {
                Some(after) => (true, after),
                None => (false, after),
            };
            let ends = (0..=rest.len()).filter(|end| rest.is_char_boundary(*end));
            let mut ends = ends.take_while(|&end| anything || !rest[..end].contains('.'));
            ends.any(|end| matches(after, &rest[end..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FAMILY: Family = Family {
        names: "toy",
        model_type: "toy",
        architecture: "ToyForCausalLM",
        prefix: "",
        router_bias: false,
        rows: &[&[
            Row::Same("hidden|n_embd", "d_model", Lacking::Refuse),
            Row::Same("inner", "d_ff", Lacking::Times(4, "n_embd")),
            Row::Same("rope.theta|theta", "positions.rotary.theta", Lacking::Is("1e4")),
            Row::Rotary,
            Row::Word("act", "activation", &[("silu", "swiglu"), ("gelu_new", "gelu")]),
            Row::Only("dropout", &["0.0"]),
            Row::Only("interleave", &["true"]),
            Row::Same("normalize", "moe.normalize_top_k", Lacking::Is("true")),
            Row::Same("rank", "latent.q_rank", Lacking::Or("1536", &Lacking::Is("0"))),
            Row::Read("scaling.type", &["\"default\""]),
            Row::Ours("norm", "\"rms\""),
        ]],
        left_out: &["h.*.bias", "h.{layers}.**"],
        fp8: &["h.*.*_proj.weight"],
        not_fp8: &["head", "h.*.gate"],
    };

    #[test]
    fn a_config_is_read_and_written() {
        let theirs = json!({"n_embd": 8, "inner": null, "dropout": 0, "act": "gelu_new", "x": 1});
        let (ours, unknown) = FAMILY.to_ours(&theirs, &[]).unwrap();
        let wanted = json!({
            "names": "toy", "d_model": 8, "d_ff": 32, "activation": "gelu", "norm": "rms",
            "positions": {"rotary": {"theta": 1e4}}, "latent": {"q_rank": 1536},
            "moe": {"normalize_top_k": true}
        });
        assert_eq!((ours.clone(), unknown), (wanted, vec!["x".to_owned()]));
        let back = FAMILY.to_theirs(&ours).unwrap();
        let wanted = json!({
            "model_type": "toy", "architectures": ["ToyForCausalLM"], "hidden": 8, "n_embd": 8,
            "inner": 32, "rope": {"theta": 1e4}, "theta": 1e4, "act": "gelu_new", "dropout": 0.0,
            "interleave": true, "normalize": true, "rank": 1536,
            "rope_parameters": {"rope_type": "default"}
        });
        assert_eq!(back, wanted);
        assert_eq!(FAMILY.to_ours(&back, &[]).unwrap().0, ours);
    }

    /// As Python reads it: nothing is false, and no number and no word.
    #[test]
    fn null_is_not_the_default_of_a_key() {
        let read = |key: &str| {
            let mut theirs = json!({"hidden": 8});
            theirs[key] = Value::Null;
            FAMILY.to_ours(&theirs, &[]).map(|(ours, _)| ours).map_err(|misfit| misfit.0)
        };
        let at = |key: &str, path: &str| get(&read(key).unwrap(), path).cloned();
        assert_eq!(at("normalize", "moe.normalize_top_k"), Some(json!(false)));
        assert_eq!(at("rank", "latent.q_rank"), Some(json!(0)));
        assert_eq!(at("dropout", "d_model"), Some(json!(8)));
        for key in ["hidden", "theta", "act", "interleave"] {
            let told = read(key).unwrap_err();
            assert!(told.starts_with(&format!("`{key}` is null")), "{told}");
        }
    }

    #[test]
    fn nothing_is_told_where_readers_have_a_default() {
        let (mut ours, _) = FAMILY.to_ours(&json!({"hidden": 8, "n_embd": 8}), &[]).unwrap();
        remove(&mut ours, "latent");
        let theirs = FAMILY.to_theirs(&ours).unwrap();
        assert_eq!(theirs.get("rank"), Some(&Value::Null));
    }

    #[test]
    fn values_that_muster_lacks_are_named() {
        let told = |theirs: Value| FAMILY.to_ours(&theirs, &[]).unwrap_err().0;
        assert_eq!(told(json!({})), "`hidden` is missing");
        let dropout = told(json!({"hidden": 8, "dropout": 0.1}));
        assert_eq!(dropout, "`dropout` is 0.1, which Muster does not have; it reads 0.0");
        let act = told(json!({"hidden": 8, "act": "relu"}));
        assert_eq!(act, "`act` is \"relu\"; Muster has silu, gelu_new");
        let yarn = json!({"hidden": 8, "scaling": {"type": "yarn"}});
        assert!(told(yarn.clone()).contains("\"yarn\""));
        for path in ["scaling", "scaling.type"] {
            assert!(FAMILY.to_ours(&yarn, &[path.to_owned()]).is_ok());
        }
        let nothing = FAMILY.to_ours(&yarn, &["scaling.kind".to_owned()]).unwrap_err().0;
        assert!(nothing.contains("no key `scaling.kind`"), "{nothing}");
        let rope = told(json!({"hidden": 8, "rope_scaling": {"type": "linear"}}));
        assert_eq!(rope, "`rope_scaling.type` is \"linear\"; Muster has default, llama3 and yarn");
    }

    #[test]
    fn patterns_stand_for_names() {
        let leaves_out = |name| FAMILY.leaves_out(name, 12);
        assert!(leaves_out("h.11.bias") && leaves_out("h.12.a.b"));
        assert!(!leaves_out("h.1.attn.bias") && !leaves_out("h.1.bias.x"));
    }

    #[test]
    fn files_with_fp8_matrices_say_which_are_not() {
        let names = ["embed.weight", "h.0.up_proj.weight", "h.0.gate.weight", "head.weight"];
        assert_eq!(names.map(|name| FAMILY.is_fp8(name)), [false, true, false, false]);
        let config = FAMILY.fp8_config(128, &names);
        assert_eq!(config["modules_to_not_convert"], json!(["head", "h.0.gate"]));
        assert_eq!(config["weight_block_size"], json!([128, 128]));
        let tied = FAMILY.fp8_config(128, &names[..2]);
        assert_eq!(tied["modules_to_not_convert"], json!(["head"]));
        let none = Family { not_fp8: &[], ..FAMILY };
        assert!(none.fp8_config(128, &names).get("modules_to_not_convert").is_none());
    }
}
