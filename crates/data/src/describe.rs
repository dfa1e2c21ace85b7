//! The contents of a token file, for a person who looks at one.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::TokenizerSpec;
use crate::digest::hex;
use crate::error::{Result, io_error};
use crate::source::TokenSource;
use crate::tokenizer::Tokenizer;

const FIRST_TOKENS: usize = 16;

/// A token file, as `describe` found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    pub path: PathBuf,
    /// `tok`, `megatron` or `256-int header`.
    pub kind: &'static str,
    /// Type of a token in the file, as numpy names it.
    pub dtype: &'static str,
    pub file_bytes: u64,
    pub tokens: u64,
    pub documents: u64,
    /// Bytes of text the tokens were made from, if the file says.
    pub text_bytes: Option<u64>,
    /// Vocabulary size, end-of-text token and tokenizer, if the file says.
    pub vocab_size: Option<u32>,
    pub end_of_text: Option<u32>,
    pub tokenizer: Option<String>,
    /// The largest token in it, where the vocabulary size is not known.
    pub largest_token: Option<u32>,
    /// Of tokens and document boundaries, hexadecimal.
    pub digest: String,
    pub first_tokens: Vec<u32>,
}

/// Opens a token file of any kind and reads it whole: a damaged one is an error.
pub fn describe(path: &Path) -> Result<Description> {
    let file = TokenSource::open(path)?;
    file.verify()?;
    let info = file.info();
    let (documents, digest, largest_token) = match info {
        Some(info) => (info.documents, info.content_digest, None),
        None => {
            let any = Tokenizer::load(&TokenizerSpec::Ids(u32::MAX))?;
            let scan = file.scan(&any, &mut |_| {})?;
            (scan.documents, scan.digest, scan.largest_token)
        }
    };
    let mut first_tokens = vec![0; FIRST_TOKENS.min(file.tokens() as usize)];
    file.read(0, &mut first_tokens);
    let file_bytes = std::fs::metadata(path).map_err(io_error("read", path))?.len();
    Ok(Description {
        path: path.to_path_buf(),
        kind: file.kind(),
        dtype: file.element().name(),
        file_bytes,
        tokens: file.tokens(),
        documents,
        text_bytes: info.and_then(|i| i.text_bytes),
        vocab_size: info.map(|i| i.vocab_size),
        end_of_text: info.map(|i| i.end_of_text),
        tokenizer: info.map(|i| i.tokenizer_name.clone()),
        largest_token,
        digest: hex(&digest),
        first_tokens,
    })
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<14}{value}");
        row("file", &format_args!("{} ({} bytes)", self.path.display(), self.file_bytes))?;
        row("kind", &format_args!("{}, {}", self.kind, self.dtype))?;
        row("tokens", &self.tokens)?;
        row("documents", &self.documents)?;
        if let Some(bytes) = self.text_bytes {
            let per_token = bytes as f64 / self.tokens.max(1) as f64;
            row("text", &format_args!("{bytes} bytes, {per_token:.3} per token"))?;
        }
        if let (Some(tokenizer), Some(size)) = (&self.tokenizer, self.vocab_size) {
            row("tokenizer", &format_args!("{tokenizer}, {size} tokens"))?;
        }
        if let Some(end) = self.end_of_text {
            row("end of text", &end)?;
        }
        if let Some(largest) = self.largest_token {
            row("largest token", &largest)?;
        }
        row("digest", &self.digest)?;
        let tokens: Vec<String> = self.first_tokens.iter().map(u32::to_string).collect();
        row("first tokens", &tokens.join(" "))
    }
}
