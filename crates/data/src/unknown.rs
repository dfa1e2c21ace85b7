//! Characters that a tokenizer would drop without a word.
//!
//! Byte-pair encoding without an unknown token and without tokens for bytes leaves out characters
//! that its vocabulary lacks. Text that has such characters is refused, and the first is named.

use std::fmt;

use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizer, Tokenizer};

use crate::byte_alphabet::{byte_alphabet, byte_stand_in};

/// Characters that a tokenizer would have dropped from a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub characters: u64,
    /// Of them as the tokenizer normalized them.
    pub bytes: u64,
    pub first: char,
    /// Whether characters stand for bytes.
    pub byte_level: bool,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.characters == 1 { "" } else { "s" };
        if self.byte_level {
            let byte = byte_alphabet().get(&self.first).copied().unwrap_or_default();
            return write!(f, "{} byte{s}, of which 0x{byte:02X} is the first", self.characters);
        }
        let (n, first) = (self.characters, self.first);
        let code = u32::from(first);
        write!(
            f,
            "{n} character{s} ({} bytes), of which `{first}` (U+{code:04X}) is the first",
            self.bytes
        )
    }
}

/// Whether the tokenizer can drop characters.
pub(crate) fn may_drop(tokenizer: &Tokenizer) -> bool {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return false };
    let has = |token: &str| bpe.token_to_id(token).is_some();
    let plain = bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none();
    let has_byte = |byte| has(byte_stand_in(byte).encode_utf8(&mut [0; 4]));
    let by_bytes = plain && byte_level(tokenizer) && (0..=255).all(has_byte);
    let falls_back = bpe.byte_fallback && (0..=255).all(|b: u8| has(&byte_token(b)));
    bpe.unk_token.is_none() && !by_bytes && !falls_back
}

/// The characters that `tokenizer`, which [`may_drop`] some, drops of `text`.
pub(crate) fn lost(tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<Option<Lost>> {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return Ok(None) };
    let normalizer = tokenizer.get_normalizer();
    let mut pieces = tokenizer.get_added_vocabulary().extract_and_normalize(normalizer, text);
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut pieces)?;
    }
    let byte_level = byte_level(tokenizer);
    let mut lost: Option<Lost> = None;
    for (piece, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
        if tokens.is_some() || bpe.ignore_merges && bpe.token_to_id(piece).is_some() {
            continue;
        }
        let unknown = piece.char_indices().filter(|&(at, c)| !is_known(bpe, piece, at, c));
        for (_, c) in unknown {
            let lost = lost.get_or_insert(Lost { characters: 0, bytes: 0, first: c, byte_level });
            lost.characters += 1;
            lost.bytes += c.len_utf8() as u64;
        }
    }
    Ok(lost)
}

/// Whether the character `c`, at `at` in `piece`, becomes a token or tokens of bytes.
fn is_known(bpe: &BPE, piece: &str, at: usize, c: char) -> bool {
    let mut spelled = String::new();
    if at > 0 {
        spelled.push_str(bpe.continuing_subword_prefix.as_deref().unwrap_or_default());
    }
    spelled.push(c);
    if at + c.len_utf8() == piece.len() {
        spelled.push_str(bpe.end_of_word_suffix.as_deref().unwrap_or_default());
    }
    let has = |token: &str| bpe.token_to_id(token).is_some();
    has(&spelled) || bpe.byte_fallback && spelled.bytes().all(|b| has(&byte_token(b)))
}

fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// Whether the model sees characters that stand for bytes.
fn byte_level(tokenizer: &Tokenizer) -> bool {
    let last = |p: &PreTokenizerWrapper| matches!(p, PreTokenizerWrapper::ByteLevel(_));
    let normalizes = |n: &NormalizerWrapper| matches!(n, NormalizerWrapper::ByteLevel(_));
    let pre_tokenizer = tokenizer.get_pre_tokenizer().is_some_and(|p| match p {
        PreTokenizerWrapper::Sequence(parts) => parts.as_ref().last().is_some_and(last),
        one => last(one),
    });
    pre_tokenizer
        || tokenizer.get_normalizer().is_some_and(|n| match n {
            NormalizerWrapper::Sequence(parts) => parts.as_ref().last().is_some_and(normalizes),
            one => normalizes(one),
        })
}
