//! Tokenizers of every kind, small, built by hand.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::charsmap::charsmap;
use crate::byte_alphabet::byte_stand_in;
use crate::config::TokenizerSpec;
use crate::tokenizer::Tokenizer;

/// The spelling of a space or a byte in a vocabulary.
#[derive(Clone, Copy, PartialEq)]
pub enum Spelling {
    Text,
    Mark,
    Bytes,
}

impl Spelling {
    fn of(self, text: &str) -> String {
        match self {
            Self::Text => text.to_string(),
            Self::Mark => text.replace(' ', "▁"),
            Self::Bytes => text.bytes().map(byte_stand_in).collect(),
        }
    }
}

/// Merges that meet words, white space of all sorts, and what stands beside it.
const MERGES: [(&str, &str); 26] = [
    ("t", "h"),
    ("th", "e"),
    (" ", "the"),
    ("w", "o"),
    ("wo", "r"),
    ("wor", "d"),
    (" ", "word"),
    (" ", " "),
    ("  ", "  "),
    ("\n", "\n"),
    ("\n", "t"),
    ("d", "\n"),
    ("f", "o"),
    ("fo", "o"),
    (" ", "f"),
    ("日", "本"),
    ("本", "語"),
    ("1", "2"),
    (".", "\n"),
    ("e", "."),
    ("'", "s"),
    ("\t", "f"),
    ("e", "\u{301}"),
    ("o", "w"),
    ("。", "日"),
    ("s", ">"),
];

pub const LETTERS: &str =
    "thewordfQsxpmak<>[]/.,'12_-é日本語。，…\u{301}ｆ＃йΣς\u{e33} \u{a0}\n\t\r";

/// A byte-pair model; `bytes`: with tokens for bytes, `unk`: with an unknown token.
pub fn bpe(spelling: Spelling, bytes: bool, unk: bool, more: Value) -> Value {
    let mut names: Vec<String> = vec!["<unk>".into(), "</s>".into()];
    if bytes {
        names.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
    }
    let mut letters: Vec<String> = match spelling {
        Spelling::Bytes => (0..=255).map(|b| byte_stand_in(b).to_string()).collect(),
        // Some are unknown where there is something to stand for them.
        _ => LETTERS
            .chars()
            .filter(|c| !(bytes || unk) || !"\n\t。…語Q".contains(*c))
            .map(|c| spelling.of(&c.to_string()))
            .collect(),
    };
    letters.push("▁".into());
    let mut merges: Vec<Value> = Vec::new();
    for (left, right) in MERGES {
        let (left, right) = (spelling.of(left), spelling.of(right));
        if spelling == Spelling::Bytes {
            // Characters of several bytes are merged first.
            for part in [&left, &right] {
                let mut joined = String::new();
                for c in part.chars() {
                    if !joined.is_empty() && !letters.contains(&format!("{joined}{c}")) {
                        merges.push(json!([joined, c.to_string()]));
                        letters.push(format!("{joined}{c}"));
                    }
                    joined.push(c);
                }
            }
        }
        let known = |part: &String| letters.contains(part);
        if known(&left) && known(&right) {
            letters.push(format!("{left}{right}"));
            merges.push(json!([left, right]));
        }
    }
    names.extend(letters);
    let mut ids = serde_json::Map::new();
    for name in names {
        let id = ids.len();
        ids.entry(name).or_insert(id.into());
    }
    let mut model = json!({"type": "BPE", "merges": merges, "vocab": ids, "byte_fallback": bytes});
    if unk {
        model["unk_token"] = "<unk>".into();
    }
    for (key, value) in more.as_object().unwrap() {
        model[key] = value.clone();
    }
    model
}

fn unigram() -> Value {
    let mut vocab = vec![json!(["<unk>", 0.0]), json!(["</s>", 0.0])];
    vocab.extend(LETTERS.chars().map(|c| json!([c.to_string(), -4.0])));
    for word in
        ["▁", "▁the", "▁word", "▁▁", "word", "ord", "d\n", "\nt", "日本", "foo▁", "e.", "12"]
    {
        vocab.push(json!([word, -3.0]));
    }
    json!({"type": "Unigram", "unk_id": 0, "vocab": vocab})
}

fn words(kind: &str) -> Value {
    let mut vocab = serde_json::Map::new();
    let more = LETTERS.chars().flat_map(|c| [c.to_string(), format!("##{c}")]);
    let names = ["[UNK]", "</s>", "the", "word", "foo", "##the", "##word", "'", "12", "日"];
    for name in names.map(String::from).into_iter().chain(more) {
        let id = vocab.len();
        vocab.entry(name).or_insert(id.into());
    }
    let mut model = json!({"type": kind, "unk_token": "[UNK]", "vocab": vocab});
    if kind == "WordPiece" {
        model["continuing_subword_prefix"] = "##".into();
        model["max_input_chars_per_word"] = 10.into();
    }
    model
}

fn byte_level(prefix: bool, regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true,
        "use_regex": regex})
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
}

fn split(pattern: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert})
}

fn split_text(text: &str, behavior: &str) -> Value {
    json!({"type": "Split", "pattern": {"String": text}, "behavior": behavior, "invert": false})
}

fn replace(text: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": text}, "content": content})
}

fn replace_regex(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
}

fn pre(parts: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

fn norm(parts: &[Value]) -> Value {
    json!({"type": "Sequence", "normalizers": parts})
}

fn of(kind: &str) -> Value {
    json!({"type": kind})
}

/// An added token: `how` has letters for special, normalized, lstrip, rstrip, word.
fn added(content: &str, how: &str) -> Value {
    json!({"id": 9000, "content": content, "special": how.contains('s'),
        "normalized": how.contains('n'), "lstrip": how.contains('l'), "rstrip": how.contains('r'),
        "single_word": how.contains('w')})
}

pub const QWEN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|",
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
);
pub const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
pub const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
pub const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];
const DEEPSEEK_LLM: [&str; 4] =
    [r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$"];

/// Name, normalizer, pre-tokenizer, model, added tokens.
type Kind = (&'static str, Value, Value, Value, Vec<Value>);

fn byte_kinds() -> Vec<Kind> {
    let model = || bpe(Spelling::Bytes, false, false, json!({}));
    let whole = || bpe(Spelling::Bytes, false, false, json!({"ignore_merges": true}));
    let then_bytes = |patterns: &[&str]| {
        let mut parts: Vec<Value> =
            patterns.iter().map(|pattern| split(pattern, "Isolated", false)).collect();
        parts.push(byte_level(false, false));
        pre(&parts)
    };
    let none = || Value::Null;
    let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
    let punctuation = |how: &str| json!({"type": "Punctuation", "behavior": how});
    vec![
        ("gpt2", none(), byte_level(false, true), model(), vec![]),
        ("roberta", none(), byte_level(true, true), model(), vec![added("<mask>", "sl")]),
        ("prefix, added", none(), byte_level(true, true), model(), vec![added("<s>", "")]),
        (
            "strips",
            none(),
            byte_level(false, true),
            model(),
            vec![added("<s>", "r"), added("[x]", "l"), added("foo", "w"), added("e.", "nr")],
        ),
        ("bytes, no split", none(), byte_level(false, false), model(), vec![]),
        ("qwen", of("NFC"), then_bytes(&[QWEN]), model(), vec![added("<s>", "s")]),
        ("llama3", none(), then_bytes(&[LLAMA3]), whole(), vec![]),
        ("o200k", none(), then_bytes(&[O200K]), model(), vec![added("d\n", "")]),
        ("deepseek v3", norm(&[]), then_bytes(&DEEPSEEK), model(), vec![]),
        ("deepseek llm", norm(&[]), then_bytes(&DEEPSEEK_LLM), model(), vec![]),
        ("starcoder", none(), pre(&[digits(true), byte_level(false, true)]), model(), vec![]),
        ("digits, prefix", none(), pre(&[digits(false), byte_level(true, true)]), model(), vec![]),
        (
            "split, prefix",
            none(),
            pre(&[split(LLAMA3, "Isolated", false), byte_level(true, false)]),
            model(),
            vec![],
        ),
        (
            "punctuation",
            none(),
            pre(&[punctuation("MergedWithNext"), digits(false), byte_level(false, true)]),
            model(),
            vec![],
        ),
        (
            "contiguous",
            none(),
            pre(&[punctuation("Contiguous"), byte_level(false, true)]),
            model(),
            vec![],
        ),
        ("byte normalizer", of("ByteLevel"), Value::Null, model(), vec![]),
        (
            "nfd, lower",
            norm(&[of("NFD"), of("StripAccents"), of("Lowercase")]),
            byte_level(false, true),
            model(),
            vec![added("word", "n")],
        ),
        ("look-behind", none(), then_bytes(&[r"(?<=\n)\S+|\s+|\S+"]), model(), vec![]),
        ("far look-ahead", none(), then_bytes(&[r"\w+(?=\s+\w)|\s+|\S"]), model(), vec![]),
    ]
}

/// Pieces of byte-pair encoding that begin with a mark in place of the space.
fn mark_kinds() -> Vec<Kind> {
    let falls_back = || bpe(Spelling::Mark, true, true, json!({"fuse_unk": true}));
    let marked = || replace(" ", "▁");
    let prepend = || json!({"type": "Prepend", "prepend": "▁"});
    let none = || Value::Null;
    vec![
        ("mistral", none(), metaspace("first", false), falls_back(), vec![]),
        ("mistral, added", none(), metaspace("first", false), falls_back(), vec![added("<s>", "")]),
        ("always, split", none(), metaspace("always", true), falls_back(), vec![]),
        ("always, added", none(), metaspace("always", true), falls_back(), vec![added("[x]", "r")]),
        ("always", of("NFKC"), metaspace("always", false), falls_back(), vec![]),
        ("never", none(), metaspace("never", true), falls_back(), vec![]),
        ("llama2", norm(&[prepend(), marked()]), none(), falls_back(), vec![added("</s>", "sn")]),
        (
            "llama2, added",
            norm(&[prepend(), marked()]),
            none(),
            falls_back(),
            vec![added("<s>", "n")],
        ),
        ("gemma", marked(), split_text(" ", "MergedWithPrevious"), falls_back(), vec![]),
        (
            "no bytes",
            marked(),
            none(),
            bpe(Spelling::Mark, false, true, json!({"fuse_unk": true})),
            vec![],
        ),
        (
            "precompiled, bytes",
            norm(&[
                json!({"type": "Precompiled", "precompiled_charsmap": charsmap()}),
                replace_regex(" {2,}", " "),
            ]),
            metaspace("first", false),
            falls_back(),
            vec![added("<s>", "n")],
        ),
        (
            "quotes",
            norm(&[replace("''", "\""), replace_regex(r"\s+", " "), prepend()]),
            metaspace("never", true),
            falls_back(),
            vec![],
        ),
    ]
}

/// Pieces with a mark that a unigram model chooses.
fn unigram_kinds() -> Vec<Kind> {
    let none = || Value::Null;
    vec![
        (
            "t5",
            norm(&[
                of("NFKC"),
                replace_regex(" {2,}", "▁"),
                json!({"type": "Strip", "strip_left": false, "strip_right": true}),
            ]),
            metaspace("always", true),
            unigram(),
            vec![],
        ),
        (
            "t5, old",
            of("Nmt"),
            pre(&[of("WhitespaceSplit"), metaspace("always", true)]),
            unigram(),
            vec![],
        ),
        (
            "t5, precompiled",
            json!({"type": "Precompiled", "precompiled_charsmap": charsmap()}),
            pre(&[of("WhitespaceSplit"), metaspace("always", true)]),
            unigram(),
            vec![],
        ),
        (
            "first after split",
            none(),
            pre(&[of("WhitespaceSplit"), metaspace("first", true)]),
            unigram(),
            vec![added("<s>", "")],
        ),
        ("unigram alone", replace(" ", "▁"), none(), unigram(), vec![]),
    ]
}

fn word_kinds() -> Vec<Kind> {
    let text = || bpe(Spelling::Text, false, false, json!({}));
    let suffix = || bpe(Spelling::Text, false, true, json!({"end_of_word_suffix": "/"}));
    let bert = |lower: bool| {
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": lower})
    };
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    let none = || Value::Null;
    let mut kinds = vec![
        ("bert", bert(true), of("BertPreTokenizer"), words("WordPiece"), vec![]),
        (
            "bert, cased",
            bert(false),
            of("BertPreTokenizer"),
            words("WordPiece"),
            vec![added("foo", "nlr")],
        ),
        (
            "bert, strip",
            norm(&[bert(true), strip]),
            of("BertPreTokenizer"),
            words("WordPiece"),
            vec![],
        ),
        (
            "words",
            norm(&[of("NFKD"), of("Lowercase")]),
            of("Whitespace"),
            words("WordLevel"),
            vec![],
        ),
        (
            "delimited",
            none(),
            json!({"type": "CharDelimiterSplit", "delimiter": "\t"}),
            words("WordLevel"),
            vec![],
        ),
        ("suffix", none(), of("WhitespaceSplit"), suffix(), vec![]),
        ("suffix, whole", none(), none(), suffix(), vec![]),
        ("scripts", none(), of("UnicodeScripts"), text(), vec![]),
        ("fixed", none(), json!({"type": "FixedLength", "length": 3}), text(), vec![]),
        (
            "scripts, words",
            none(),
            pre(&[of("WhitespaceSplit"), of("UnicodeScripts")]),
            text(),
            vec![],
        ),
    ];
    let behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"];
    for (at, behavior) in behaviors.into_iter().enumerate() {
        let name = ["removed", "isolated", "previous", "next", "runs"][at];
        kinds.push((name, none(), split(r"[ \n]+|o", behavior, false), text(), vec![]));
        kinds.push((name, none(), split(r"[a-z]+", behavior, true), text(), vec![]));
        kinds.push((name, none(), split(r"the|[\n.]", behavior, false), text(), vec![]));
    }
    kinds
}

/// All of them, loaded.
pub fn all() -> Vec<(&'static str, Tokenizer)> {
    let kinds = [byte_kinds(), mark_kinds(), unigram_kinds(), word_kinds()].into_iter().flatten();
    kinds
        .map(|(name, normalizer, pre_tokenizer, model, added)| {
            let json = json!({"version": "1.0", "normalizer": normalizer,
                "pre_tokenizer": pre_tokenizer, "model": model, "added_tokens": added});
            (name, load(&json))
        })
        .collect()
}

pub fn load(json: &Value) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
    Tokenizer::load(&TokenizerSpec::File(path)).unwrap()
}
