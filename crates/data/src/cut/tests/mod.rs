//! Tokens do not depend on where a text was cut: the proof of a seam, held against the encoders.

mod charsmap;
mod kinds;

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::tokenizer::Tokenizer;
use kinds::{DEEPSEEK, LLAMA3, O200K, QWEN};

fn whole(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    tokenizer.encode_piece(text.as_bytes(), true, &mut tokens).unwrap();
    tokens
}

/// Every cut of `text` that is said to be neutral, made.
fn check_cuts(name: &str, tokenizer: &Tokenizer, text: &str) {
    let Cut::Neutral(seams) = tokenizer.cut() else { panic!("{name}") };
    let tokens = whole(tokenizer, text);
    let mut known = FxHashMap::default();
    for (at, _) in text.char_indices().skip(1) {
        if !is_neutral(seams, text.as_bytes(), at, &mut known) {
            continue;
        }
        let (left, right) = text.split_at(at);
        let mut halves = whole(tokenizer, left);
        tokenizer.encode_piece(right.as_bytes(), false, &mut halves).unwrap();
        assert_eq!(halves, tokens, "{name}: {left:?} {right:?}");
    }
    for limit in [1, 4, 9] {
        let mut pieces = Vec::new();
        tokenizer.encode_by(limit, text.as_bytes(), &mut pieces).unwrap();
        assert_eq!(pieces, tokens, "{name}: {text:?} in pieces of {limit}");
    }
}

/// Words, white space, punctuation, scripts, marks and the text of added tokens, in any order.
fn hard_text() -> impl Strategy<Value = String> {
    let words = [
        "the", "word", "foo", "fo", "Q", "12", "2", "é", "e\u{301}", "\u{301}", "日本", "語", "。",
        "，", "…", "'s", "'", ".", "e.", "<s>", "</s>", "<mask>", "[x]", "</", "_", "-", "Σ", "й",
        "ｆ＃", "\u{e33}", "x", "d", "''",
    ];
    let spaces = [" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u{a0}", "", "", "", " \n"];
    let pair = (prop::sample::select(words.to_vec()), prop::sample::select(spaces.to_vec()));
    prop::collection::vec(pair, 0..14)
        .prop_map(|pairs| pairs.into_iter().flat_map(|(a, b)| [a, b]).collect::<String>())
}

/// Loaded once.
fn tokenizers() -> &'static [(&'static str, Tokenizer)] {
    static KINDS: OnceLock<Vec<(&str, Tokenizer)>> = OnceLock::new();
    KINDS.get_or_init(kinds::all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn tokens_do_not_depend_on_where_a_text_was_cut(text in hard_text()) {
        for (name, tokenizer) in tokenizers() {
            check_cuts(name, tokenizer, &text);
        }
    }
}

/// How many pieces of about `limit` bytes a text is cut into.
fn pieces(tokenizer: &Tokenizer, text: &str, limit: usize) -> usize {
    let (mut rest, mut pieces) = (text.as_bytes(), 0);
    while !rest.is_empty() {
        rest = &rest[tokenizer.cut().first_piece(rest, true, limit).unwrap()..];
        pieces += 1;
    }
    pieces
}

/// Whatever is not cut is encoded whole, which takes memory: texts of each sort must be cut.
#[test]
fn texts_of_all_sorts_are_cut() {
    let texts = [
        "the word foo, the 12 foo. ".repeat(40),
        "word\n".repeat(200),
        "foo\t12\tword\n".repeat(80),
        "日本語，日語本日。\n".repeat(40),
    ];
    let everything = [
        "gpt2",
        "roberta",
        "qwen",
        "llama3",
        "deepseek v3",
        "deepseek llm",
        "starcoder",
        "mistral",
        "always, split",
        "llama2",
        "gemma",
        "t5, old",
        "t5, precompiled",
        "bert",
        "words",
    ];
    // Where added tokens divide a text, each section is marked; nothing is known of the others.
    let nothing = ["llama2, added", "look-behind", "far look-ahead", "unigram alone", "fixed"];
    for (name, tokenizer) in tokenizers() {
        for text in &texts {
            check_cuts(name, tokenizer, text);
            let pieces = pieces(tokenizer, text, 100);
            assert!(pieces > 4 || !everything.contains(name), "{name}: {text:.20?}");
            assert!(pieces == 1 || !nothing.contains(name), "{name}: {text:.20?}");
        }
    }
}

/// The reader sees a beginning of the document, which must not change a cut.
#[test]
fn cuts_do_not_depend_on_how_far_the_reader_sees() {
    let text = format!("{}\n{}。word\t{}", "日本".repeat(90), "x".repeat(300), "foo, ".repeat(99));
    for (name, tokenizer) in tokenizers() {
        for limit in [8, 50, 200] {
            let whole = tokenizer.cut().first_piece(text.as_bytes(), true, limit).unwrap();
            for seen in 0..text.len() {
                let found = tokenizer.cut().first_piece(&text.as_bytes()[..seen], false, limit);
                assert!(found.is_none_or(|found| found == whole), "{name}: {seen} bytes in sight");
            }
        }
    }
}

#[test]
fn characters_are_found_at_the_ends_of_bytes() {
    assert_eq!(last_two("a字".as_bytes()), (Some('a'), Some('字')));
    assert_eq!(last_two(b"\xffa"), (None, Some('a')));
    assert_eq!(last_two(b"a\xc3"), (None, None));
    assert_eq!((last(b""), first(b"")), (None, None));
    assert_eq!((first("é".as_bytes()), first(b"\xa9a")), (Some('é'), None));
}

#[test]
fn published_expressions_are_understood() {
    let all = [QWEN, LLAMA3, O200K].into_iter().chain(DEEPSEEK);
    for expression in all {
        let pattern = pattern::Pattern::of_regex(expression).expect(expression);
        assert!(!pattern.reaches_across('d', ' '), "{expression}");
        assert!(!pattern.reaches_across('d', '\n'), "{expression}");
    }
    let llama = pattern::Pattern::of_regex(LLAMA3).unwrap();
    assert!(llama.reaches_across('.', '\n') && llama.reaches_across('1', '2'));
    assert!(llama.takes_alone(' ') && llama.takes_alone('d'));
    for far in [r"(?<=a)b", r"\bword", r"a++b", r"\s*", r"(a)\1", r"x(?=\s+y)", r"(?>ab)"] {
        assert!(pattern::Pattern::of_regex(far).is_none(), "{far}");
    }
}
