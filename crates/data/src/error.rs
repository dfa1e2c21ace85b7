//! Everything that can go wrong with data, said so that the reader knows what to change and where.

use std::path::{Path, PathBuf};

use crate::kind::Refusal;
use crate::source::is_token_file;
use crate::unknown::Lost;

pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// An error of this crate. Messages are lower-case fragments that fit after "cannot train: ".
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{place}: {reason}")]
    Config { place: String, reason: String },

    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    #[error("cannot start a thread to tokenize: {source}")]
    Thread { source: std::io::Error },

    #[error("{path} is a directory: name its files (your shell can: DIR/*.txt)")]
    IsDirectory { path: PathBuf },

    #[error("{path} is {what}{}", remedy_of(what))]
    NotAFile { path: PathBuf, what: &'static str },

    #[error("{path} is a pipe that nobody writes to: start the program that writes to it first")]
    NobodyWrites { path: PathBuf },

    #[error("{path} is larger than {} MiB, the most that is read here", bytes_max >> 20)]
    TooLarge { path: PathBuf, bytes_max: u64 },

    /// Not text, of whatever kind.
    #[error("{path} is {what}: {remedy}")]
    NotText { path: PathBuf, what: String, remedy: String },

    #[error("{path} is damaged: its {packing} data is wrong at byte {offset}: {reason}")]
    Packed { path: PathBuf, packing: &'static str, offset: u64, reason: String },

    /// Of files that leave no token; `path` is the first of them.
    #[error(
        "{path} holds no text{more}; there is nothing to train on",
        more = left_out(*empty_documents, *blank_lines)
            .map(|what| format!(" ({what})"))
            .unwrap_or_default()
    )]
    NoText { path: PathBuf, empty_documents: u64, blank_lines: u64 },

    #[error(
        "the tokenizer {tokenizer} has no token for {lost} in {place}, and would drop what it does \
         not know: give it an `unk_token` or tokens for bytes (`byte_fallback`), or take these \
         characters out of the text"
    )]
    Unknown { place: String, tokenizer: String, lost: Lost },

    #[error(
        "{place} is not UTF-8: byte {byte:#04x} after {after:?}; convert it \
         (`iconv -f ENCODING -t UTF-8`), or use the tokenizer `byte`, which takes all bytes as \
         they are"
    )]
    NotUtf8 { place: String, byte: u8, after: String },

    #[error("{path} holds tokens and not text; {}", remedy_of_tokens(path))]
    AlreadyTokens { path: PathBuf },

    /// A token file that is not what its own header says.
    #[error(
        "{path} is damaged at byte {offset}: {reason}; make it again with `muster data tokenize`"
    )]
    Damaged { path: PathBuf, offset: u64, reason: String },

    /// A token file of another program that is not what it says.
    #[error(
        "{path} is wrong at byte {offset}: {reason}; make it again with the program that wrote it"
    )]
    WrongIndex { path: PathBuf, offset: u64, reason: String },

    #[error(
        "{path} is {actual_bytes} bytes long but its header says {expected_bytes}: it was cut \
         short or appended to; copy or make it again"
    )]
    WrongSize { path: PathBuf, expected_bytes: u64, actual_bytes: u64 },

    #[error("{path} has format version {found}; this program reads version {supported}")]
    Version { path: PathBuf, found: u64, supported: u64 },

    #[error("{path} is not a token file this program knows: {reason}")]
    UnknownFormat { path: PathBuf, reason: String },

    #[error(
        "{path} has token {token} at index {index}, but the tokenizer `{tokenizer}` has only \
         {vocab_size} tokens (0 to {last}): set data.tokenizer to the one the file was made with",
        last = vocab_size.saturating_sub(1)
    )]
    TokenOutOfRange { path: PathBuf, token: u64, index: u64, tokenizer: String, vocab_size: u32 },

    #[error(
        "{path} has a number at index {index} that no tokenizer has: it is negative, or takes all \
         of 32 bits or more; see whether the file holds what its header says"
    )]
    NoToken { path: PathBuf, index: u64 },

    #[error(
        "{path} was made with the tokenizer `{found}` ({found_vocab} tokens), but data.tokenizer \
         is `{wanted}` ({wanted_vocab} tokens): set data.tokenizer to the file's, or tokenize the \
         text again"
    )]
    TokenizerMismatch {
        path: PathBuf,
        found: String,
        found_vocab: u32,
        wanted: String,
        wanted_vocab: u32,
    },

    #[error("tokenizer {path}: {reason}")]
    Tokenizer { path: PathBuf, reason: String },

    #[error("{path}:{line}: {reason}")]
    Line { path: PathBuf, line: u64, reason: String },

    #[error("{path} cannot be tokenized: {reason}")]
    Encode { path: PathBuf, reason: String },

    #[error("no crate `{name}` in the lock file this program was built with{hint}")]
    UnknownCrate { name: String, hint: String },

    #[error(
        "the sources of the crate {name} {version} are not unpacked here (looked in {looked}): run \
         `cargo fetch` where this program was built, or train on your own text with \
         --set data.files=YOUR.txt"
    )]
    CrateSources { name: String, version: String, looked: String },

    #[error(
        "source `{source_name}` has {tokens} tokens; at sequence length {seq_len} at least \
         {needed} are needed{why}: {remedy}"
    )]
    TooFewTokens {
        source_name: String,
        tokens: u64,
        seq_len: usize,
        needed: u64,
        why: &'static str,
        remedy: String,
    },

    #[error("validation sample {index} was asked for, but there are {count}{hint}")]
    NoSuchSample { index: u64, count: u64, hint: &'static str },

    #[error("{path} changed since the run was prepared (digest {found}, expected {expected})")]
    Changed { path: PathBuf, found: String, expected: String },

    #[error("{0}")]
    Unsupported(String),
}

/// Advice instead of naming a pipe, a device or a socket.
fn remedy_of(what: &str) -> &'static str {
    match what {
        "a pipe" => {
            ", but is needed more than once: write it to a file, and name that (`muster data \
             tokenize` reads text from a pipe)"
        }
        _ => ", which has no size and may have no end: name a file",
    }
}

/// Whether a file is of text or of tokens is told by its name.
fn remedy_of_tokens(path: &Path) -> String {
    match is_token_file(path) {
        true => format!("it is used as it is (data.files={})", path.display()),
        false => "it is used as it is if its name ends in .tok, or in .bin where it has a header \
                  of 256 integers"
            .into(),
    }
}

impl DataError {
    pub(crate) fn config(place: impl Into<String>, reason: String) -> Self {
        Self::Config { place: place.into(), reason }
    }

    /// Says which text could not be taken as it is.
    pub(crate) fn in_text(self, text: impl std::fmt::Display) -> Self {
        match self {
            Self::Unknown { tokenizer, lost, .. } => {
                Self::Unknown { place: text.to_string(), tokenizer, lost }
            }
            Self::NotUtf8 { byte, after, .. } => {
                Self::NotUtf8 { place: text.to_string(), byte, after }
            }
            other => other,
        }
    }

    /// A refusal says `FILE` where the path stands.
    pub(crate) fn refused(path: &Path, Refusal { what, remedy }: Refusal) -> Self {
        let remedy = remedy.replace("FILE", &path.display().to_string());
        Self::NotText { path: path.to_path_buf(), what, remedy }
    }

    pub(crate) fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), offset, reason: reason.into() }
    }
}

/// The documents and lines that were left out, in words, if there were any.
pub fn left_out(empty_documents: u64, blank_lines: u64) -> Option<String> {
    let some = |n: u64, what: &str| {
        (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }))
    };
    match (some(empty_documents, "empty document"), some(blank_lines, "blank line")) {
        (Some(a), Some(b)) => Some(format!("{a} and {b}")),
        (a, b) => a.or(b),
    }
}

/// Wraps an I/O error with what was done to which file.
pub(crate) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::Io { action, path, source }
}

/// The candidate most like `word`, if one is close enough to be worth saying.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}
