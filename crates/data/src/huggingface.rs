//! The properties of a Hugging Face `tokenizer.json` by itself: end of text, bytes per token, safe
//! cuts.
//!
//! Encoding is the `tokenizers` crate's. Truncation and padding that the file may ask for are
//! switched off (they would drop or invent text), and the text of a special token inside a document
//! stays text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{NormalizedString, Normalizer, Tokenizer as HfTokenizer};

use crate::byte_alphabet::byte_alphabet;
use crate::cut::{AddedTokens, Cut, Seams};
use crate::error::{DataError, Result};
use crate::input;
use crate::token_bytes::TokenBytes;
use crate::twin::without_start_mark;
use crate::unknown::may_drop;

/// A tokenizer file, read and understood.
pub(crate) struct Loaded {
    pub tokenizer: HfTokenizer,
    /// Encodes what is not a document's first piece, where that is another matter.
    pub twin: Option<HfTokenizer>,
    /// Whether it would drop characters that it does not know.
    pub may_drop: bool,
    pub vocab_size: u32,
    pub end_of_text: u32,
    pub bytes: Option<TokenBytes>,
    pub cut: Cut,
}

/// Names under which published tokenizers end a text, most telling first.
const USUAL_ENDS: [&str; 9] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|begin_of_text|>",
    "</s>",
    "<eos>",
    // DeepSeek's bars are full-width.
    "<｜end▁of▁sentence｜>",
    "<|eos|>",
    "[EOS]",
    "[SEP]",
];

pub(crate) fn load(path: &Path, content: &[u8]) -> Result<Loaded> {
    let fail = |reason: String| DataError::Tokenizer { path: path.to_path_buf(), reason };
    let json: Value =
        serde_json::from_slice(content).map_err(|e| fail(format!("not JSON: {e}")))?;
    let mut tokenizer =
        HfTokenizer::from_bytes(content).map_err(|e| fail(format!("not a tokenizer.json: {e}")))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| fail(e.to_string()))?;
    tokenizer.set_encode_special_tokens(true);

    refuse_chance(&tokenizer).map_err(fail)?;

    let vocab = tokens_by_id(&tokenizer).map_err(fail)?;
    let Some((&last, _)) = vocab.last_key_value() else {
        return Err(fail("its vocabulary is empty".into()));
    };
    // Ids are dense in published files; a stray huge one would cost memory for nothing.
    if last as usize > vocab.len() + (1 << 20) {
        return Err(fail(format!("token id {last} with only {} tokens", vocab.len())));
    }
    let end_of_text = find_end_of_text(path, &tokenizer)?;
    let bytes = token_bytes(&json, &tokenizer, &vocab, last);
    let (raw, normalized) = added_tokens(&[&tokenizer]);
    let sections = raw.have_effect() || normalized.have_effect();
    let twin = without_start_mark(&tokenizer, sections).map_err(|e| fail(e.to_string()))?;
    let later = twin.as_ref().unwrap_or(&tokenizer);
    let (raw, normalized) = added_tokens(&[&tokenizer, later]);
    let cut = Cut::Neutral(Box::new(Seams::new(later, raw, normalized)));
    let may_drop = may_drop(&tokenizer);
    Ok(Loaded { tokenizer, twin, may_drop, vocab_size: last + 1, end_of_text, bytes, cut })
}

/// The same text must always give the same tokens. (Sampling of a unigram model cannot be asked for
/// in a file.)
fn refuse_chance(tokenizer: &HfTokenizer) -> Result<(), String> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(bpe) if bpe.dropout.is_some_and(|dropout| dropout > 0.0) => {
            let dropout = bpe.dropout.unwrap_or_default();
            Err(format!(
                "its model has \"dropout\": {dropout}: it leaves out merges at random, and the \
                 same text would give other tokens each time; write \"dropout\": null into the \
                 file"
            ))
        }
        _ => Ok(()),
    }
}

/// The vocabulary; two tokens of one id would make chance decide what the id stands for.
fn tokens_by_id(tokenizer: &HfTokenizer) -> Result<BTreeMap<u32, String>, String> {
    let mut by_id: BTreeMap<u32, String> = BTreeMap::new();
    for (token, id) in tokenizer.get_vocab(true) {
        if let Some(other) = by_id.insert(id, token) {
            let token = &by_id[&id];
            let (a, b) = if other < *token { (&other, token) } else { (token, &other) };
            return Err(format!("its token id {id} stands for both `{a}` and `{b}`"));
        }
    }
    Ok(by_id)
}

/// The tokens that are looked for in the text as it is, and as these tokenizers normalize it.
/// Special tokens are found, too, and then ignored.
fn added_tokens(tokenizers: &[&HfTokenizer]) -> (AddedTokens, AddedTokens) {
    let (mut raw, mut normalized) = (AddedTokens::default(), AddedTokens::default());
    for tokenizer in tokenizers {
        for token in tokenizer.get_added_tokens_decoder().values() {
            let mut text = NormalizedString::from(token.content.as_str());
            match tokenizer.get_normalizer() {
                _ if !token.normalized => raw.add(token, &token.content, token.special),
                Some(normalizer) if normalizer.normalize(&mut text).is_ok() => {
                    normalized.add(token, text.get(), token.special);
                }
                _ => normalized.add(token, &token.content, token.special),
            }
        }
    }
    (raw, normalized)
}

/// The end-of-text token: `eos_token` of `tokenizer_config.json` beside the file, else a usual
/// name.
fn find_end_of_text(path: &Path, tokenizer: &HfTokenizer) -> Result<u32> {
    let fail = |reason: String| DataError::Tokenizer { path: path.to_path_buf(), reason };
    let config_path = path.with_file_name("tokenizer_config.json");
    let text = match input::read_file(&config_path, input::TOKENIZER_BYTES_MAX) {
        Ok(text) => Some(text),
        Err(DataError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(text) = text {
        let config: Value = serde_json::from_slice(&text)
            .map_err(|e| fail(format!("{} is not JSON: {e}", config_path.display())))?;
        let eos = &config["eos_token"];
        if let Some(name) = eos.as_str().or_else(|| eos["content"].as_str()) {
            return tokenizer.token_to_id(name).ok_or_else(|| {
                fail(format!("eos_token `{name}` of {} is not a token", config_path.display()))
            });
        }
    }
    let added = tokenizer.get_added_tokens_decoder();
    // An ordinary token of such a name is text in a document.
    let usual = || USUAL_ENDS.iter().filter_map(|name| tokenizer.token_to_id(name));
    let is_special = |id: &u32| added.get(id).is_some_and(|token| token.special);
    if let Some(id) = usual().find(is_special).or_else(|| usual().next()) {
        return Ok(id);
    }
    let special: Vec<String> = added
        .into_values()
        .filter(|t| t.special)
        .map(|t| format!("`{}`", t.content))
        .take(12)
        .collect();
    Err(fail(format!(
        "no end-of-text token found; write {{\"eos_token\": \"NAME\"}} into {} (its special \
         tokens: {})",
        config_path.display(),
        if special.is_empty() { "none".to_string() } else { special.join(", ") },
    )))
}

/// How a token's text in the vocabulary stands for bytes.
#[derive(Clone, Copy)]
enum Spelling {
    /// One printable character for each byte (GPT-2, Llama 3, Qwen …).
    ByteLevel,
    /// `▁` for a space and `<0x0A>` for a byte (SentencePiece: Llama 2, Mixtral, Gemma …).
    SentencePiece,
}

fn token_bytes(
    json: &Value,
    tokenizer: &HfTokenizer,
    vocab: &BTreeMap<u32, String>,
    last: u32,
) -> Option<TokenBytes> {
    let parts = [&json["decoder"], &json["pre_tokenizer"]];
    let spelling = if parts.iter().any(|p| mentions_type(p, "ByteLevel")) {
        Spelling::ByteLevel
    } else if json["model"]["byte_fallback"] == Value::Bool(true)
        || parts.iter().any(|p| mentions_type(p, "Metaspace"))
    {
        Spelling::SentencePiece
    } else {
        return None;
    };
    let bytes_of_char = byte_alphabet();
    let added = tokenizer.get_added_tokens_decoder();
    let tokens: Vec<Vec<u8>> = (0..=last)
        .map(|id| match (added.get(&id), vocab.get(&id)) {
            (Some(token), _) if token.special => Some(Vec::new()),
            (Some(token), _) => Some(token.content.as_bytes().to_vec()),
            (None, None) => Some(Vec::new()),
            (None, Some(text)) => spelled_bytes(text, spelling, &bytes_of_char),
        })
        .collect::<Option<_>>()?;
    Some(TokenBytes::new(tokens.into_iter().map(Cow::Owned)))
}

fn spelled_bytes(text: &str, spelling: Spelling, alphabet: &BTreeMap<char, u8>) -> Option<Vec<u8>> {
    match spelling {
        Spelling::ByteLevel => text.chars().map(|c| alphabet.get(&c).copied()).collect(),
        Spelling::SentencePiece => {
            let byte = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
            match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => Some(vec![byte]),
                None => Some(text.replace('▁', " ").into_bytes()),
            }
        }
    }
}

/// Whether the part, or any part inside it, has this `type`.
fn mentions_type(part: &Value, name: &str) -> bool {
    match part {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some(name)
                || map.values().any(|v| mentions_type(v, name))
        }
        Value::Array(list) => list.iter().any(|v| mentions_type(v, name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenizerSpec;
    use crate::tokenizer::Tokenizer;

    /// A byte-level BPE with one merge and one special token, and its directory.
    fn byte_level(eos: bool) -> (tempfile::TempDir, std::path::PathBuf) {
        let mut vocab = serde_json::Map::new();
        for (c, byte) in byte_alphabet() {
            vocab.insert(c.to_string(), Value::from(u32::from(byte)));
        }
        vocab.insert("th".into(), Value::from(256));
        let mut json = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2,
                "strategy": "LongestFirst", "stride": 0},
            "added_tokens": [{"id": 257, "content": "<stop>", "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "merges": ["t h"]},
        });
        json["model"]["vocab"] = Value::Object(vocab);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        if eos {
            let config = r#"{"eos_token": {"content": "<stop>"}}"#;
            std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        }
        (dir, path)
    }

    #[test]
    fn byte_level_round_trip_and_bytes() {
        let (_dir, path) = byte_level(true);
        let t = Tokenizer::load(&TokenizerSpec::File(path)).unwrap();
        assert_eq!((t.vocab_size(), t.end_of_text()), (258, 257));
        let text = "the thé\n<stop> ü";
        let mut out = Vec::new();
        t.encode(text, &mut out).unwrap();
        assert!(out.len() > 2, "the file's truncation must be off: {out:?}");
        assert!(!out.contains(&257), "a special token's text in a document is text: {out:?}");
        assert_eq!(t.decode(&out), text.as_bytes());
        let bytes: u32 = out.iter().map(|&id| t.token_bytes(id).unwrap()).sum();
        assert_eq!(bytes as usize, text.len());
        assert_eq!(t.token_bytes(257), Some(0));
    }

    #[test]
    fn a_missing_end_of_text_says_what_to_write() {
        let (_dir, path) = byte_level(false);
        let error = Tokenizer::load(&TokenizerSpec::File(path)).unwrap_err().to_string();
        assert!(error.contains("eos_token") && error.contains("`<stop>`"), "{error}");
    }

    #[test]
    fn sentence_piece_marks_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let mut vocab: Vec<(String, f64)> = vec![("<unk>".into(), 0.0), ("</s>".into(), 0.0)];
        vocab.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), -20.0)));
        vocab.push(("▁".into(), -2.0));
        vocab.extend(('a'..='z').map(|c| (c.to_string(), -3.0)));
        vocab.push(("▁the".into(), -1.0));
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": vocab},
        });
        std::fs::write(&path, json.to_string()).unwrap();
        let t = Tokenizer::load(&TokenizerSpec::File(path)).unwrap();
        let mut out = Vec::new();
        t.encode("the fox\n", &mut out).unwrap();
        assert_eq!(t.decode(&out), b" the fox\n");
        assert_eq!(t.bytes_of(out[0]), Some(&b" the"[..]));
    }

    /// The file at `path` with a change.
    fn changed(path: &Path, change: impl Fn(&mut Value)) -> Result<Tokenizer> {
        let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        change(&mut json);
        let path = path.with_file_name("changed.json");
        std::fs::write(&path, json.to_string()).unwrap();
        Tokenizer::load(&TokenizerSpec::File(path))
    }

    #[test]
    fn chance_is_refused() {
        let (_dir, path) = byte_level(true);
        let error = changed(&path, |json| json["model"]["dropout"] = 0.5.into()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\"dropout\": 0.5") && text.contains("\"dropout\": null"), "{text}");
        // The model's type may be left out.
        let untyped = changed(&path, |json| {
            json["model"]["dropout"] = 0.1.into();
            json["model"].as_object_mut().unwrap().remove("type");
        });
        assert!(untyped.unwrap_err().to_string().contains("dropout"));
        for none in [Value::Null, 0.0.into()] {
            changed(&path, |json| json["model"]["dropout"] = none.clone()).unwrap();
        }
        let twice = changed(&path, |json| json["model"]["vocab"]["zz"] = 256.into());
        let text = twice.unwrap_err().to_string();
        assert!(text.contains("256 stands for both `th` and `zz`"), "{text}");
    }

    #[test]
    fn a_special_end_wins_over_an_ordinary_token() {
        let (_dir, path) = byte_level(false);
        let end_of = |ends: &[(&str, bool)]| {
            let t = changed(&path, |json| {
                let added = json["added_tokens"].as_array_mut().unwrap();
                for (at, (content, special)) in ends.iter().enumerate() {
                    let mut token = added[0].clone();
                    token["id"] = (258 + at).into();
                    token["content"] = (*content).into();
                    token["special"] = (*special).into();
                    added.push(token);
                }
            })
            .unwrap();
            ends[t.end_of_text() as usize - 258].0.to_string()
        };
        let deepseek = "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>";
        assert_eq!(end_of(&[(deepseek, true)]), deepseek);
        assert_eq!(end_of(&[("</s>", false), (deepseek, true)]), deepseek);
        assert_eq!(end_of(&[("<eos>", true), ("</s>", true)]), "</s>");
        assert_eq!(end_of(&[("</s>", false)]), "</s>");
    }

    #[test]
    fn unknown_characters_are_named() {
        let (_dir, path) = byte_level(true);
        let encode = |t: Result<Tokenizer>, text: &str| {
            let mut out = Vec::new();
            t.unwrap().encode(text, &mut out).map(|()| out).map_err(|error| error.to_string())
        };
        let rename = |json: &mut Value, token: &str| {
            let vocab = json["model"]["vocab"].as_object_mut().unwrap();
            let id = vocab.remove(token).unwrap();
            vocab.insert("renamed".into(), id);
        };
        // Without a token for a byte.
        let bytes = || changed(&path, |json| rename(json, "\u{120}"));
        assert_eq!(encode(bytes(), "the"), Ok(vec![256, 101]));
        let error = encode(bytes(), "a b c").unwrap_err();
        assert!(error.contains("2 bytes, of which 0x20 is the first"), "{error}");
        // Without a token for a character.
        let letters = |more: &[(&str, Value)]| {
            changed(&path, |json| {
                json["pre_tokenizer"] = Value::Null;
                json["decoder"] = Value::Null;
                for (key, value) in more {
                    json["model"][*key] = value.clone();
                }
            })
        };
        let error = encode(letters(&[]), "the \u{2603} \u{2603}!").unwrap_err();
        assert!(error.contains("4 characters (8 bytes), of which ` ` (U+0020)"), "{error}");
        assert!(error.contains("unk_token") && error.contains("byte_fallback"), "{error}");
        assert_eq!(encode(letters(&[]), "the"), Ok(vec![256, 101]));
        let unknown = letters(&[("unk_token", "!".into())]);
        assert_eq!(encode(unknown, "\u{2603}th"), Ok(vec![33, 256]));
    }

    #[test]
    fn nonsense_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        for content in ["", "{}", "[1]", r#"{"model": {"type": "BPE"}}"#] {
            std::fs::write(&path, content).unwrap();
            assert!(Tokenizer::load(&TokenizerSpec::File(path.clone())).is_err(), "{content}");
        }
    }
}
