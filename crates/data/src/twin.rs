//! A tokenizer's twin for what is not the beginning of a document.
//!
//! Many tokenizers mark the start of a text as if a space stood before it. The start of a later
//! piece of a document is not that, and its twin does not mark it. There is a twin where the mark
//! is put at a document's start only: not where added tokens divide a text into sections, each of
//! which is marked, or where every word is.

use tokenizers::Tokenizer;
use tokenizers::normalizers::{NormalizerWrapper, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// The twin of `tokenizer`, if it differs. `sections`: whether added tokens divide a text.
pub(crate) fn without_start_mark(
    tokenizer: &Tokenizer,
    sections: bool,
) -> tokenizers::Result<Option<Tokenizer>> {
    let normalizer = tokenizer.get_normalizer().filter(|n| !sections && has_prepend(n));
    let mut pre_tokenizer = tokenizer.get_pre_tokenizer().cloned();
    let unmarked = pre_tokenizer.as_mut().is_some_and(|p| unmark(p, !sections));
    if normalizer.is_none() && !unmarked {
        return Ok(None);
    }
    let mut twin = tokenizer.clone();
    if let Some(normalizer) = normalizer {
        twin.with_normalizer(without_prepend(normalizer))?;
    }
    twin.with_pre_tokenizer(pre_tokenizer);
    Ok(Some(twin))
}

fn has_prepend(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::Prepend(_) => true,
        NormalizerWrapper::Sequence(parts) => parts.as_ref().iter().any(has_prepend),
        _ => false,
    }
}

fn without_prepend(normalizer: &NormalizerWrapper) -> Option<NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Prepend(_) => None,
        NormalizerWrapper::Sequence(parts) => {
            let parts = parts.as_ref().iter().filter_map(without_prepend).collect();
            Some(NormalizerWrapper::Sequence(Sequence::new(parts)))
        }
        other => Some(other.clone()),
    }
}

/// Takes the mark of a document's start away; whether there was one. Where `first`, this
/// pre-tokenizer sees the text before it is split.
fn unmark(pre_tokenizer: &mut PreTokenizerWrapper, first: bool) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::Sequence(parts) => {
            let mut first = first;
            parts.as_mut().iter_mut().fold(false, |any, part| {
                let unmarked = unmark(part, std::mem::replace(&mut first, false));
                any | unmarked
            })
        }
        PreTokenizerWrapper::Metaspace(metaspace) => {
            let at_start_only = match metaspace.get_prepend_scheme() {
                PrependScheme::First => true,
                PrependScheme::Always => first,
                PrependScheme::Never => false,
            };
            if at_start_only {
                metaspace.set_prepend_scheme(PrependScheme::Never);
            }
            at_start_only
        }
        PreTokenizerWrapper::ByteLevel(bytes) => {
            first && std::mem::replace(&mut bytes.add_prefix_space, false)
        }
        _ => false,
    }
}
