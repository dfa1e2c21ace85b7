//! From a config to token files that are there, verified, and described: once per host, before
//! training.
//!
//! Text is tokenized into a cache under a name that holds the digest of text, tokenizer and
//! settings: the same again costs one read of the text and one of the tokens, anything else makes a
//! new file. Token files that are given are read once, so that a wrong tokenizer or a damaged file
//! is found here and not in the middle of a run.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{DataConfig, Origin, SourceSpec, TokenizerSpec};
use crate::corpus;
use crate::digest::as_hex;
use crate::error::{DataError, Result, io_error};
use crate::kind::TextKind;
use crate::open_text::Form;
use crate::source::{TokenSource, is_token_file};
use crate::text::TextInput;
use crate::token_file::open_if_from;
use crate::tokenize::{TokenizeOptions, tokenize};
use crate::tokenizer::Tokenizer;

/// The files that workers need to open the data; written to a file by the process that prepared it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    pub sources: Vec<PreparedSource>,
    /// With an absolute path, so that workers may run anywhere.
    pub tokenizer: TokenizerSpec,
    pub tokenizer_name: String,
    #[serde(with = "as_hex")]
    pub tokenizer_digest: [u8; 32],
    pub vocab_size: u32,
    pub end_of_text: u32,
    /// Digest of contents, weights and tokenizer; not of names and paths.
    #[serde(with = "as_hex")]
    pub digest: [u8; 32],
}

/// One source of the mixture (most runs have one).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreparedSource {
    pub name: String,
    pub weight: f64,
    /// Token files, in order.
    pub parts: Vec<PreparedPart>,
    pub tokens: u64,
    pub documents: u64,
    /// Bytes of text, where known.
    pub bytes: Option<u64>,
    /// Documents without a token and lines without a document, left out when the text was
    /// tokenized; zero where its tokens were in the cache.
    #[serde(default)]
    pub empty_documents: u64,
    #[serde(default)]
    pub blank_lines: u64,
    /// Files of text that went into it (0 for token files).
    pub text_files: u64,
    /// BLAKE3 of the text: of (label, length, content) of each file, compressed as it may be. The
    /// label says how it is read; for crates it is `NAME-VERSION/PATH`. Zeros without text.
    #[serde(with = "as_hex")]
    pub text_digest: [u8; 32],
    /// Digest of the tokens and document boundaries.
    #[serde(with = "as_hex")]
    pub digest: [u8; 32],
}

/// One token file of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreparedPart {
    /// Absolute.
    pub path: PathBuf,
    pub tokens: u64,
    #[serde(with = "as_hex")]
    pub digest: [u8; 32],
}

/// Stages of `prepare`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the text to know whether its tokens are in the cache.
    Hashing,
    /// Tokenizing it.
    Tokenizing,
    /// Reading token files.
    Verifying,
}

/// How far it has come; bytes are of the stage's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    pub source: &'a str,
    pub stage: Stage,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Makes every source of `cfg` ready. Idempotent; safe to run in several processes at once.
///
/// `cargo_lock` is the text of a `Cargo.lock`, used if crates are named.
pub fn prepare(
    cfg: &DataConfig,
    cache_dir: &Path,
    cargo_lock: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared> {
    cfg.check()?;
    let tokenizer = Tokenizer::load(&cfg.tokenizer)?;
    let mut preparing = Preparing { cfg, cache_dir, cargo_lock, tokenizer, progress };
    let specs = cfg.sources()?;
    let sources: Vec<PreparedSource> =
        specs.iter().map(|spec| preparing.source(spec)).collect::<Result<_>>()?;
    let tokenizer = preparing.tokenizer;
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"muster prepared data 1").update(&tokenizer.digest());
    for source in &sources {
        hasher.update(&source.weight.to_le_bytes()).update(&source.digest);
    }
    Ok(Prepared {
        sources,
        tokenizer: match &cfg.tokenizer {
            TokenizerSpec::File(path) => TokenizerSpec::File(absolute(path)?),
            other => other.clone(),
        },
        tokenizer_name: tokenizer.name().to_string(),
        tokenizer_digest: tokenizer.digest(),
        vocab_size: tokenizer.vocab_size() as u32,
        end_of_text: tokenizer.end_of_text(),
        digest: *hasher.finalize().as_bytes(),
    })
}

struct Preparing<'a> {
    cfg: &'a DataConfig,
    cache_dir: &'a Path,
    cargo_lock: &'a str,
    tokenizer: Tokenizer,
    progress: &'a mut dyn FnMut(Progress),
}

/// Text files with the names that go into the digest.
struct Texts {
    inputs: Vec<TextInput>,
    /// Of files of crates. Others have none: the same text elsewhere is the same data.
    names: Vec<Option<String>>,
}

impl Preparing<'_> {
    fn source(&mut self, spec: &SourceSpec) -> Result<PreparedSource> {
        let (texts, token_files) = self.files_of(spec)?;
        let mut source = PreparedSource {
            name: spec.name.to_string(),
            weight: spec.weight,
            parts: Vec::new(),
            tokens: 0,
            documents: 0,
            bytes: Some(0),
            empty_documents: 0,
            blank_lines: 0,
            text_files: texts.inputs.len() as u64,
            text_digest: [0; 32],
            digest: [0; 32],
        };
        let mut hasher = blake3::Hasher::new();
        let mut add = |source: &mut PreparedSource, part: Part| {
            hasher.update(&part.part.digest);
            source.tokens += part.part.tokens;
            source.documents += part.documents;
            source.empty_documents += part.empty_documents;
            source.blank_lines += part.blank_lines;
            source.bytes = source.bytes.zip(part.bytes).map(|(a, b)| a + b);
            source.parts.push(part.part);
        };
        if !texts.inputs.is_empty() {
            source.text_digest = self.text_digest(spec.name, &texts)?;
            let part = self.tokenized(spec.name, &texts, &source.text_digest)?;
            add(&mut source, part);
        }
        for path in &token_files {
            let part = self.given(spec.name, path)?;
            add(&mut source, part);
        }
        source.digest = *hasher.finalize().as_bytes();
        Ok(source)
    }

    fn files_of(&self, spec: &SourceSpec) -> Result<(Texts, Vec<PathBuf>)> {
        let mut texts = Texts { inputs: Vec::new(), names: Vec::new() };
        let mut token_files = Vec::new();
        match spec.origin {
            Origin::Crates(names) => {
                for file in corpus::crate_files(names, self.cargo_lock)? {
                    texts.inputs.push(TextInput::new(file.path));
                    texts.names.push(Some(file.label));
                }
            }
            Origin::Files(paths) => {
                for path in paths {
                    if is_token_file(path) {
                        token_files.push(path.clone());
                    } else {
                        texts.inputs.push(TextInput::new(path));
                        texts.names.push(None);
                    }
                }
            }
        }
        Ok((texts, token_files))
    }

    /// BLAKE3 over each file's label, length and content.
    fn text_digest(&mut self, name: &str, texts: &Texts) -> Result<[u8; 32]> {
        let looked =
            texts.inputs.iter().map(TextInput::look_at_file).collect::<Result<Vec<_>>>()?;
        let total_bytes = looked.iter().map(|(bytes, _)| bytes).sum();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut done_bytes = 0;
        for ((input, in_crate), (bytes, form)) in texts.inputs.iter().zip(&texts.names).zip(looked)
        {
            let label = label_of(in_crate.as_deref(), form, &self.cfg.jsonl_field);
            hasher.update(&(label.len() as u64).to_le_bytes()).update(label.as_bytes());
            hasher.update(&bytes.to_le_bytes());
            let mut file = File::open(&input.path).map_err(io_error("open", &input.path))?;
            loop {
                let n = file.read(&mut buffer).map_err(io_error("read", &input.path))?;
                if n == 0 {
                    break;
                }
                hasher.update(&buffer[..n]);
                done_bytes += n as u64;
                let stage = Stage::Hashing;
                (self.progress)(Progress { source: name, stage, done_bytes, total_bytes });
            }
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// The token file of this text: from the cache, or made now.
    fn tokenized(&mut self, name: &str, texts: &Texts, text_digest: &[u8; 32]) -> Result<Part> {
        let mut hasher = blake3::Hasher::new_derive_key("muster tokenized text 2");
        hasher.update(&self.tokenizer.digest()).update(text_digest);
        let source_digest = *hasher.finalize().as_bytes();
        let tidy = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let tidy_name: String = name.chars().map(tidy).take(40).collect();
        let digest = crate::digest::short(&source_digest);
        let path = absolute(self.cache_dir)?.join(format!("{tidy_name}-{digest}.tok"));
        if let Some(file) = open_if_from(&path, &source_digest)?
            && file.verify().is_ok()
        {
            return self.given(name, &path);
        }
        std::fs::create_dir_all(self.cache_dir).map_err(io_error("create", self.cache_dir))?;
        let options = TokenizeOptions {
            jsonl_field: self.cfg.jsonl_field.clone(),
            source_digest,
            ..TokenizeOptions::default()
        };
        let progress = &mut *self.progress;
        let report = tokenize(&texts.inputs, &self.tokenizer, &path, &options, &mut |p| {
            // Files that were hashed have sizes.
            let (done_bytes, total_bytes) = (p.done_bytes, p.total_bytes.unwrap_or(0));
            progress(Progress { source: name, stage: Stage::Tokenizing, done_bytes, total_bytes });
        })?;
        let part = PreparedPart { path, tokens: report.tokens, digest: report.content_digest };
        Ok(Part {
            part,
            documents: report.documents,
            bytes: Some(report.bytes),
            empty_documents: report.empty_documents,
            blank_lines: report.blank_lines,
        })
    }

    /// A token file that is there already: checked, and read once if it is of a foreign kind.
    fn given(&mut self, name: &str, path: &Path) -> Result<Part> {
        let file = TokenSource::open(path)?;
        let tokens = file.tokens();
        let width = file.element().bytes() as u64;
        let total_bytes = tokens * width;
        let progress = &mut *self.progress;
        let mut report = |tokens_done: u64| {
            let done_bytes = tokens_done * width;
            progress(Progress { source: name, stage: Stage::Verifying, done_bytes, total_bytes });
        };
        let (documents, bytes, digest) = match file.info() {
            Some(info) => {
                check_tokenizer(path, info, &self.tokenizer)?;
                file.verify()?;
                report(tokens);
                (info.documents, info.text_bytes, info.content_digest)
            }
            None => {
                let scan = file.scan(&self.tokenizer, &mut report)?;
                (scan.documents, scan.text_bytes, scan.digest)
            }
        };
        let part = PreparedPart { path: absolute(path)?, tokens, digest };
        Ok(Part { part, documents, bytes, empty_documents: 0, blank_lines: 0 })
    }
}

/// Whatever decides how bytes become text, so that another reading is other data.
fn label_of(name: Option<&str>, form: Form, field: &str) -> String {
    let mut label = match (name, form.kind) {
        (Some(name), _) => name.to_string(),
        (None, TextKind::Whole) => "text".to_string(),
        (None, _) => format!("field {field}"),
    };
    if form.byte_order_mark {
        label += " after a byte order mark";
    }
    if let Some(packing) = form.packing {
        label = format!("{} of {label}", packing.name());
    }
    label
}

struct Part {
    part: PreparedPart,
    documents: u64,
    bytes: Option<u64>,
    empty_documents: u64,
    blank_lines: u64,
}

/// A `.tok` file knows its tokenizer; a vocabulary given by size alone fits every smaller one.
fn check_tokenizer(
    path: &Path,
    info: &crate::token_file::TokenFileInfo,
    tokenizer: &Tokenizer,
) -> Result<()> {
    let vocab_size = tokenizer.vocab_size() as u32;
    let fits = tokenizer.knows_ids_only() && info.vocab_size <= vocab_size;
    if fits || info.tokenizer_digest == tokenizer.digest() {
        return Ok(());
    }
    Err(DataError::TokenizerMismatch {
        path: path.to_path_buf(),
        found: info.tokenizer_name.clone(),
        found_vocab: info.vocab_size,
        wanted: tokenizer.name().to_string(),
        wanted_vocab: vocab_size,
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(io_error("find", path))
}
