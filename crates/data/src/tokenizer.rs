//! Text to tokens and back, for three kinds of tokenizer behind one type.
//!
//! A tokenizer knows how many bytes of text each token stands for where that is well defined, so
//! that a loss per token can be reported as bits per byte, which compares across tokenizers.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::config::TokenizerSpec;
use crate::cut::{Cut, PIECE_BYTES, Seams};
use crate::error::{DataError, Result};
use crate::gpt2::{self, Gpt2};
use crate::huggingface;
use crate::input;
use crate::token_bytes::TokenBytes;
use crate::unknown;

/// A loaded tokenizer. Cheap to share between threads; loading takes up to some 100 ms.
pub struct Tokenizer {
    kind: Kind,
    name: String,
    digest: [u8; 32],
    vocab_size: u32,
    end_of_text: u32,
    /// `None` where the bytes of single tokens are not defined.
    bytes: Option<TokenBytes>,
    cut: Cut,
}

enum Kind {
    Byte,
    Gpt2(Box<Gpt2>),
    HuggingFace(Box<HuggingFace>),
    Ids,
}

struct HuggingFace {
    tokenizer: tokenizers::Tokenizer,
    /// For what is not the first piece of a document, if that is another matter.
    twin: Option<tokenizers::Tokenizer>,
    may_drop: bool,
}

impl Tokenizer {
    /// Loads what `spec` names.
    pub fn load(spec: &TokenizerSpec) -> Result<Self> {
        match spec {
            TokenizerSpec::Byte => Ok(Self::byte()),
            TokenizerSpec::Gpt2 => Self::gpt2(),
            TokenizerSpec::File(path) => Self::from_file(path),
            TokenizerSpec::Ids(vocab_size) => Ok(Self::ids(*vocab_size)),
        }
    }

    fn byte() -> Self {
        let bytes = (0..=255u8).map(|b| Cow::Owned(vec![b])).chain([Cow::Borrowed(&[][..])]);
        Self {
            kind: Kind::Byte,
            name: "byte".into(),
            digest: *blake3::hash(b"muster byte tokenizer: 256 bytes, 256 ends a text").as_bytes(),
            vocab_size: 257,
            end_of_text: 256,
            bytes: Some(TokenBytes::new(bytes)),
            cut: Cut::Anywhere,
        }
    }

    fn gpt2() -> Result<Self> {
        let bpe = Gpt2::new()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"muster gpt2 tokenizer");
        for token in bpe.tokens() {
            hasher.update(&(token.len() as u32).to_le_bytes()).update(token);
        }
        let tokens = bpe.tokens().iter().map(|t| Cow::Borrowed(t.as_slice()));
        let bytes = TokenBytes::new(tokens.chain([Cow::Borrowed(&[][..])]));
        Ok(Self {
            name: "gpt2".into(),
            digest: *hasher.finalize().as_bytes(),
            vocab_size: gpt2::END_OF_TEXT + 1,
            end_of_text: gpt2::END_OF_TEXT,
            bytes: Some(bytes),
            cut: Cut::Neutral(Box::new(Seams::gpt2())),
            kind: Kind::Gpt2(Box::new(bpe)),
        })
    }

    fn from_file(path: &Path) -> Result<Self> {
        let content = input::read_file(path, input::TOKENIZER_BYTES_MAX)?;
        let loaded = huggingface::load(path, &content)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"muster tokenizer.json").update(&loaded.end_of_text.to_le_bytes());
        hasher.update(&content);
        Ok(Self {
            name: path.display().to_string(),
            digest: *hasher.finalize().as_bytes(),
            vocab_size: loaded.vocab_size,
            end_of_text: loaded.end_of_text,
            bytes: loaded.bytes,
            cut: loaded.cut,
            kind: Kind::HuggingFace(Box::new(HuggingFace {
                tokenizer: loaded.tokenizer,
                twin: loaded.twin,
                may_drop: loaded.may_drop,
            })),
        })
    }

    fn ids(vocab_size: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"muster ids").update(&vocab_size.to_le_bytes());
        Self {
            kind: Kind::Ids,
            name: format!("ids: {vocab_size}"),
            digest: *hasher.finalize().as_bytes(),
            vocab_size,
            end_of_text: vocab_size.saturating_sub(1),
            bytes: None,
            cut: Cut::Anywhere,
        }
    }

    /// Appends the tokens of one whole document to `out`, without an end-of-text token. Long texts
    /// are encoded in pieces where that changes no token (see [`Cut`]). Text that looks like a
    /// special token is ordinary text here. Bytes that are not UTF-8 become U+FFFD, except for the
    /// byte tokenizer. Characters that would be dropped are an error.
    pub fn encode(&self, text: impl AsRef<[u8]>, out: &mut Vec<u32>) -> Result<()> {
        self.encode_by(PIECE_BYTES, text.as_ref(), out)
    }

    /// The same in pieces of another length; a test's way to many cuts.
    pub(crate) fn encode_by(
        &self,
        piece_bytes: usize,
        text: &[u8],
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let (mut rest, mut starts_document) = (text, true);
        while !rest.is_empty() {
            let end = self.cut.first_piece(rest, true, piece_bytes).unwrap_or(rest.len());
            self.encode_piece(&rest[..end], starts_document, out)?;
            (rest, starts_document) = (&rest[end..], false);
        }
        Ok(())
    }

    /// Encodes one piece of a document, as cut by [`Self::cut`].
    pub(crate) fn encode_piece(
        &self,
        piece: &[u8],
        starts_document: bool,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        match &self.kind {
            Kind::Byte => out.extend(piece.iter().map(|&b| u32::from(b))),
            Kind::Gpt2(bpe) => bpe.encode(utf8(piece)?, out),
            Kind::HuggingFace(this) => {
                let fail = |error: tokenizers::Error| DataError::Tokenizer {
                    path: PathBuf::from(&self.name),
                    reason: error.to_string(),
                };
                let tokenizer = match &this.twin {
                    Some(twin) if !starts_document => twin,
                    _ => &this.tokenizer,
                };
                let text = utf8(piece)?;
                if this.may_drop
                    && let Some(lost) = unknown::lost(tokenizer, text).map_err(fail)?
                {
                    let tokenizer = self.name.clone();
                    return Err(DataError::Unknown { place: "this text".into(), tokenizer, lost });
                }
                let encoding = tokenizer.encode_fast(text, false).map_err(fail)?;
                out.extend_from_slice(encoding.get_ids());
            }
            Kind::Ids => {
                return Err(DataError::config(
                    "data.tokenizer",
                    format!("`{}` cannot read text, only token files; name a tokenizer", self.name),
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn cut(&self) -> &Cut {
        &self.cut
    }

    /// Whether this is a vocabulary size and nothing more.
    pub(crate) fn knows_ids_only(&self) -> bool {
        matches!(self.kind, Kind::Ids)
    }

    /// The bytes the tokens stand for. Special tokens give none; unknown ids are skipped.
    pub fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        match (&self.bytes, &self.kind) {
            (Some(bytes), _) => {
                tokens.iter().filter_map(|&id| bytes.get(id)).flatten().copied().collect()
            }
            (None, Kind::HuggingFace(this)) => {
                this.tokenizer.decode(tokens, true).unwrap_or_default().into_bytes()
            }
            (None, _) => Vec::new(),
        }
    }

    /// The bytes of one token; `None` where they are not defined, or the id is unknown.
    pub fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.bytes.as_ref()?.get(id)
    }

    /// How many bytes of text the token stands for (special tokens: 0); `None` if unknown.
    pub(crate) fn token_bytes(&self, id: u32) -> Option<u32> {
        self.bytes_of(id).map(|b| b.len() as u32)
    }

    /// Number of token ids, i.e. the largest id + 1.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size as usize
    }

    /// The token that ends every document.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// BLAKE3 of what defines the tokenizer.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// `byte`, `gpt2`, the path of the file, or `ids: N`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.name, self.vocab_size)
    }
}

/// A piece of text, unless it is in another encoding: replacing what does not fit would lose it.
fn utf8(piece: &[u8]) -> Result<&str> {
    std::str::from_utf8(piece).map_err(|error| {
        let at = error.valid_up_to();
        let before = String::from_utf8_lossy(&piece[..at]);
        let start = before.char_indices().rev().nth(15).map_or(0, |(start, _)| start);
        let (place, after) = ("this text".into(), before[start..].to_owned());
        DataError::NotUtf8 { place, byte: piece[at], after }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_tokens() {
        let t = Tokenizer::load(&TokenizerSpec::Byte).unwrap();
        let mut out = Vec::new();
        t.encode(b"a\xff\n", &mut out).unwrap();
        assert_eq!(out, [97, 255, 10]);
        assert_eq!((t.vocab_size(), t.end_of_text()), (257, 256));
        assert_eq!(t.decode(&[97, 256, 255]), b"a\xff");
        assert_eq!(
            (t.token_bytes(3), t.token_bytes(256), t.token_bytes(257)),
            (Some(1), Some(0), None)
        );
    }

    #[test]
    fn gpt2_counts_bytes() {
        let t = Tokenizer::load(&TokenizerSpec::Gpt2).unwrap();
        let text = "naïve — It's 文字.\n";
        let mut out = Vec::new();
        t.encode(text, &mut out).unwrap();
        assert_eq!(t.decode(&out), text.as_bytes());
        let bytes: u32 = out.iter().map(|&id| t.token_bytes(id).unwrap()).sum();
        assert_eq!(bytes as usize, text.len());
        assert_eq!(
            (t.vocab_size(), t.token_bytes(50256), t.token_bytes(50257)),
            (50257, Some(0), None)
        );
    }

    #[test]
    fn ids_alone_read_no_text() {
        let t = Tokenizer::load(&TokenizerSpec::Ids(100)).unwrap();
        assert!(t.encode("x", &mut Vec::new()).is_err());
        assert_eq!(t.token_bytes(5), None);
    }

    proptest! {
        #[test]
        fn byte_round_trip(text: Vec<u8>) {
            let t = Tokenizer::load(&TokenizerSpec::Byte).unwrap();
            let mut out = Vec::new();
            t.encode(&text, &mut out).unwrap();
            prop_assert_eq!(t.decode(&out), text);
        }
    }
}
