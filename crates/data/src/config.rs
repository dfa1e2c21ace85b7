//! The data section of a config: the tokenizer, where the text comes from, how much of it is held
//! out.
//!
//! Exactly one place of text is used: `files`, `mixture` or `crates`. `files` wins over `crates`,
//! so that one override (`data.files=mine.txt`) turns a ready-made config into training on a
//! person's own text.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{DataError, Result, nearest};

/// Where the training text comes from and how it becomes tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// How text becomes tokens: `byte` (257 tokens: the bytes and end-of-text), `gpt2` (50 257
    /// tokens), `{file: PATH}` for a Hugging Face `tokenizer.json`, or `{ids: VOCAB_SIZE}` for
    /// token files whose tokenizer is not at hand (no text can be read or generated then).
    pub tokenizer: TokenizerSpec,
    /// Names of Rust crates whose unpacked sources (`.rs` files in the cargo registry) are the
    /// text: real text without a download. Versions come from the lock file this program was built
    /// with.
    pub crates: Vec<String>,
    /// Text files (one document each), `.jsonl` files (one document a line), both also compressed
    /// (`.gz`, `.zst`), token files (`.tok`), Megatron `.bin` + `.idx` pairs, or `.bin` files with
    /// a header of 256 integers. One path or a list. Takes the place of `crates` when not empty.
    pub files: OneOrMany<PathBuf>,
    /// Several sources and the share of the samples that each one gives; instead of `crates` and
    /// `files`.
    pub mixture: Vec<MixtureEntry>,
    /// Share of every source held out for validation, in evenly spaced chunks: 0 (none) to 0.5.
    pub validation_fraction: f64,
    /// Field of a `.jsonl` line, or column of a `.parquet` file, that holds the text.
    pub jsonl_field: String,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            tokenizer: TokenizerSpec::Byte,
            crates: Vec::new(),
            files: OneOrMany::default(),
            mixture: Vec::new(),
            validation_fraction: 0.05,
            jsonl_field: "text".to_string(),
        }
    }
}

/// One source of a mixture: give either `files` or `crates`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixtureEntry {
    /// Name in messages and reports; unique in the mixture.
    pub name: String,
    /// Files of this source, of any kind that `data.files` accepts.
    #[serde(default)]
    pub files: OneOrMany<PathBuf>,
    /// Crate names of this source, as in `data.crates`.
    #[serde(default)]
    pub crates: Vec<String>,
    /// Share of the samples relative to the other sources' weights; any positive number.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// Which tokenizer turns text into tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum TokenizerSpec {
    /// Every byte is a token (ids 0 to 255); 256 ends a document.
    #[default]
    Byte,
    /// The byte-pair encoding of GPT-2 (50 257 tokens), built in.
    Gpt2,
    /// A Hugging Face `tokenizer.json`; `tokenizer_config.json` beside it names the end-of-text
    /// token.
    File(PathBuf),
    /// A vocabulary of this many token ids and nothing else known: for token files only.
    Ids(#[schemars(range(min = 2, max = 16_777_216))] u32),
}

const TOKENIZER_WORDS: [&str; 4] = ["byte", "gpt2", "file", "ids"];

impl Serialize for TokenizerSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        match self {
            Self::Byte => serializer.serialize_str("byte"),
            Self::Gpt2 => serializer.serialize_str("gpt2"),
            Self::File(path) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("file", path)?;
                map.end()
            }
            Self::Ids(size) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("ids", size)?;
                map.end()
            }
        }
    }
}

/// By hand, so that YAML's plain `{file: PATH}` works (its enums are tags otherwise) and a slip is
/// named.
impl<'de> Deserialize<'de> for TokenizerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpecVisitor;
        impl<'de> Visitor<'de> for SpecVisitor {
            type Value = TokenizerSpec;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("`byte`, `gpt2`, `{file: PATH}` or `{ids: VOCAB_SIZE}`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<TokenizerSpec, E> {
                match word {
                    "byte" => Ok(TokenizerSpec::Byte),
                    "gpt2" => Ok(TokenizerSpec::Gpt2),
                    _ if word.ends_with(".json") => Err(E::custom(format_args!(
                        "unknown tokenizer `{word}`; for a tokenizer file write `{{file: {word}}}`"
                    ))),
                    _ => Err(unknown_word(word)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenizerSpec, A::Error> {
                let Some(key) = map.next_key::<String>()? else {
                    return Err(de::Error::invalid_length(0, &self));
                };
                let spec = match key.as_str() {
                    "file" => TokenizerSpec::File(map.next_value()?),
                    "ids" => TokenizerSpec::Ids(map.next_value()?),
                    _ => return Err(unknown_word(&key)),
                };
                match map.next_key::<String>()? {
                    None => Ok(spec),
                    Some(_) => Err(de::Error::invalid_length(2, &self)),
                }
            }
        }
        deserializer.deserialize_any(SpecVisitor)
    }
}

fn unknown_word<E: de::Error>(word: &str) -> E {
    let hint =
        nearest(word, TOKENIZER_WORDS).map_or(String::new(), |w| format!(", did you mean `{w}`?"));
    E::custom(format_args!(
        "unknown tokenizer `{word}`{hint} (there are `byte`, `gpt2`, `{{file: PATH}}` and \
         `{{ids: VOCAB_SIZE}}`)"
    ))
}

/// A list that may be written as its only element.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> std::ops::Deref for OneOrMany<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let one = generator.subschema_for::<T>();
        let many = generator.subschema_for::<Vec<T>>();
        schemars::json_schema!({ "anyOf": [one, many] })
    }
}

/// By hand rather than `untagged`, whose errors lose their place.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("one path or a list of paths")
            }

            fn visit_str<E: de::Error>(self, one: &str) -> Result<OneOrMany<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(one)).map(|t| OneOrMany(vec![t]))
            }

            fn visit_unit<E: de::Error>(self) -> Result<OneOrMany<T>, E> {
                Ok(OneOrMany::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(next) = seq.next_element()? {
                    all.push(next);
                }
                Ok(OneOrMany(all))
            }
        }
        deserializer.deserialize_any(ListVisitor(std::marker::PhantomData))
    }
}

/// Where one source's tokens come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin<'a> {
    /// Text or token files.
    Files(&'a [PathBuf]),
    /// Crate names.
    Crates(&'a [String]),
}

/// One source as `prepare` sees it, whichever key it was written under.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceSpec<'a> {
    pub name: &'a str,
    pub origin: Origin<'a>,
    pub weight: f64,
}

impl DataConfig {
    /// The first mistake that can be seen without looking at a file.
    pub fn check(&self) -> Result<()> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// Every mistake that can be seen without looking at a file.
    pub fn problems(&self) -> Vec<DataError> {
        let mut problems = Vec::new();
        let mut wrong = |place: &str, reason: String| {
            problems.push(DataError::config(place, reason));
        };
        if !(0.0..=0.5).contains(&self.validation_fraction) {
            let reason =
                format!("{} is outside 0 to 0.5 (0.05 is usual)", self.validation_fraction);
            wrong("data.validation_fraction", reason);
        }
        if self.jsonl_field.is_empty() {
            wrong("data.jsonl_field", "empty; `text` is usual".into());
        }
        if let TokenizerSpec::Ids(size) = self.tokenizer
            && size < 2
        {
            wrong("data.tokenizer.ids", format!("{size} is not a vocabulary size"));
        }
        if self.files.is_empty() && self.crates.is_empty() && self.mixture.is_empty() {
            let reason = "no text: give data.files, data.crates or data.mixture (for your own \
                          text: --set data.files=YOUR.txt)";
            wrong("data", reason.into());
        }
        for (key, given) in [("files", !self.files.is_empty()), ("crates", !self.crates.is_empty())]
        {
            if given && !self.mixture.is_empty() {
                let reason = format!(
                    "given together with data.{key}: keep one (an empty list `[]` removes the \
                     other)"
                );
                wrong("data.mixture", reason);
            }
        }
        for (i, entry) in self.mixture.iter().enumerate() {
            let place = format!("data.mixture[{i}]");
            entry.problems(&self.mixture[..i], &mut |reason| wrong(&place, reason));
        }
        problems
    }

    /// The sources this config names: `files`, else `mixture`, else `crates`.
    pub fn sources(&self) -> Result<Vec<SourceSpec<'_>>> {
        self.check()?;
        let source = |name, origin, weight| SourceSpec { name, origin, weight };
        if !self.mixture.is_empty() {
            let sources = self.mixture.iter();
            return Ok(sources.map(|e| source(e.name.as_str(), e.origin(), e.weight)).collect());
        }
        Ok(vec![match self.files.is_empty() {
            false => source("files", Origin::Files(&self.files), 1.0),
            true => source("crates", Origin::Crates(&self.crates), 1.0),
        }])
    }
}

impl MixtureEntry {
    /// Tells the mistakes of the entry beside the entries `before` it.
    fn problems(&self, before: &[MixtureEntry], wrong: &mut dyn FnMut(String)) {
        let name = &self.name;
        if name.is_empty() || before.iter().any(|entry| entry.name == *name) {
            wrong(format!("the name `{name}` is empty or used twice; each source needs its own"));
        }
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            wrong(format!("weight {} of `{name}` is not a positive number", self.weight));
        }
        if self.files.is_empty() == self.crates.is_empty() {
            let found = if self.files.is_empty() { "neither" } else { "both" };
            wrong(format!("`{name}` has {found} files and crates; give one of the two"));
        }
    }

    fn origin(&self) -> Origin<'_> {
        match self.files.is_empty() {
            false => Origin::Files(&self.files),
            true => Origin::Crates(&self.crates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_may_be_one_path_and_win_over_crates() {
        let cfg: DataConfig = serde_json::from_str(
            r#"{"files": "mine.txt", "crates": ["rayon"], "tokenizer": "gpt2"}"#,
        )
        .unwrap();
        let sources = cfg.sources().unwrap();
        assert_eq!(sources[0].origin, Origin::Files(&[PathBuf::from("mine.txt")]));
        assert_eq!(cfg.tokenizer, TokenizerSpec::Gpt2);
    }

    #[test]
    fn tokenizer_spec_survives_a_round_trip() {
        for spec in [
            TokenizerSpec::Byte,
            TokenizerSpec::Gpt2,
            TokenizerSpec::File("a/tokenizer.json".into()),
            TokenizerSpec::Ids(32000),
        ] {
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<TokenizerSpec>(&text).unwrap(), spec, "{text}");
        }
    }

    #[test]
    fn a_misspelt_tokenizer_names_the_nearest() {
        let error = serde_json::from_str::<TokenizerSpec>(r#""gtp2""#).unwrap_err().to_string();
        assert!(error.contains("did you mean `gpt2`?"), "{error}");
        let error =
            serde_json::from_str::<TokenizerSpec>(r#""t/tokenizer.json""#).unwrap_err().to_string();
        assert!(error.contains("{file: t/tokenizer.json}"), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        let bad = [
            r#"{}"#,
            r#"{"mixture": [{"name": "a", "files": "x.txt"}], "files": "y.txt"}"#,
            r#"{"mixture": [{"name": "a", "files": "x.txt", "weight": 0}]}"#,
            r#"{"mixture": [{"name": "a", "files": "x.txt"}, {"name": "a", "files": "y.txt"}]}"#,
            r#"{"mixture": [{"name": "a"}]}"#,
            r#"{"files": "x.txt", "validation_fraction": 0.6}"#,
            r#"{"files": "x.txt", "tokenizer": {"ids": 0}}"#,
        ];
        for text in bad {
            let cfg: DataConfig = serde_json::from_str(text).unwrap();
            assert!(cfg.check().is_err(), "{text}");
        }
        let unknown = serde_json::from_str::<DataConfig>(r#"{"file": "x.txt"}"#);
        assert!(unknown.unwrap_err().to_string().contains("unknown field `file`"));
    }

    #[test]
    fn the_schema_knows_the_short_forms() {
        let schema = serde_json::to_string(&schemars::schema_for!(DataConfig)).unwrap();
        for word in ["byte", "gpt2", "OneOrMany", "validation_fraction"] {
            assert!(schema.contains(word), "{word} missing in {schema}");
        }
    }
}
