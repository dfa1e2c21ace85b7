//! The kind of a file of text, from its name and its first bytes: a pure function.
//!
//! Content decides what a file *is* (compressed, tokens, an image, UTF-16 …), so that a wrong name
//! hides nothing; the name decides how text is *divided* into documents. What cannot be read as
//! text is refused with its name and with what to do.

use crate::foreign::Headered;
use crate::signature;
pub use crate::signature::Refusal;
use crate::token_file;

/// How much of a file [`kind_of`] wants to see: beyond the places where formats sign themselves.
pub(crate) const START_BYTES: usize = 4096;

/// The byte order mark that some programs put before UTF-8; it is not part of the text.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// How a file of text is divided into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextKind {
    /// The whole file is one document.
    Whole,
    /// One JSON object per line.
    JsonLines,
    /// A column of a parquet file.
    Parquet,
}

/// The compression of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// As in "the gzip data".
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, or a file that holds text in a column.
    Text { kind: TextKind, byte_order_mark: bool },
    /// Compressed; what is inside is asked again, by its name without the ending.
    Packed(Packing),
    /// A token file.
    Tokens,
}

/// The kind of a file of this name that begins with `start`: all of it, or [`START_BYTES`].
///
/// # Errors
/// The format, where it is none of text, and what to do.
pub(crate) fn kind_of(name: &str, start: &[u8]) -> Result<Kind, Refusal> {
    if start.starts_with(token_file::MAGIC) || Headered::matches(start) {
        return Ok(Kind::Tokens);
    }
    if let Some(packing) = packing_of(start) {
        return Ok(Kind::Packed(packing));
    }
    let extension = extension(name);
    if extension == "parquet" && start.starts_with(b"PAR1") {
        return Ok(Kind::Text { kind: TextKind::Parquet, byte_order_mark: false });
    }
    signature::refuse(start)?;
    let promised = promised(&extension).map(Packing::name);
    if let Some(promised) = promised.or((extension == "parquet").then_some("parquet")) {
        let what = format!("not {promised}, though its name says so");
        return Err(Refusal::new(what, "give it the name of what it holds, or copy it again"));
    }
    if let Some(at) = memchr::memchr(0, start) {
        return Err(nul_at(at as u64));
    }
    let text = start.strip_prefix(BYTE_ORDER_MARK);
    let kind = division(&extension, text.unwrap_or(start))?;
    Ok(Kind::Text { kind, byte_order_mark: text.is_some() })
}

/// The name of what is inside a compressed file: `a.jsonl` for `a.jsonl.gz`.
pub(crate) fn unpacked_name(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((inner, end)) if promised(&end.to_ascii_lowercase()).is_some() => inner,
        _ => name,
    }
}

/// The refusal of text with a NUL byte, which no text has.
pub(crate) fn nul_at(offset: u64) -> Refusal {
    Refusal::new(
        format!("not text: its byte {offset} is NUL"),
        "name a text file in UTF-8; a file of another kind must be converted to one, or to .jsonl",
    )
}

fn packing_of(start: &[u8]) -> Option<Packing> {
    // zstd's frames of data, and those that it skips, which have sixteen magic numbers.
    let skipped = |b: &[u8]| b[0] & 0xF0 == 0x50 && b[1..] == [0x2A, 0x4D, 0x18];
    match start {
        [0x1F, 0x8B, 8, ..] => Some(Packing::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Packing::Zstd),
        _ => start.get(..4).filter(|b| skipped(b)).map(|_| Packing::Zstd),
    }
}

fn promised(extension: &str) -> Option<Packing> {
    match extension {
        "gz" | "gzip" => Some(Packing::Gzip),
        "zst" | "zstd" => Some(Packing::Zstd),
        _ => None,
    }
}

/// In lower case; empty for none.
fn extension(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => extension.to_ascii_lowercase(),
        _ => String::new(),
    }
}

/// How text of this extension is divided.
fn division(extension: &str, text: &[u8]) -> Result<TextKind, Refusal> {
    let text = text.trim_ascii_start();
    match extension {
        "jsonl" | "ndjson" => Ok(TextKind::JsonLines),
        // Megatron's tools call a file JSON that has an object a line.
        "json" if text.starts_with(b"{") => Ok(TextKind::JsonLines),
        "json" if text.starts_with(b"[") => Err(Refusal::new(
            "one JSON array",
            "write one object a line: `jq -c '.[]' FILE > FILE.jsonl`",
        )),
        // Nothing says what a pipe holds, or `corpus.gz`; and no prose begins with `{"`.
        "" if text
            .strip_prefix(b"{")
            .is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\"")) =>
        {
            Ok(TextKind::JsonLines)
        }
        _ => Ok(TextKind::Whole),
    }
}

#[cfg(test)]
#[path = "kind_tests.rs"]
mod tests;
