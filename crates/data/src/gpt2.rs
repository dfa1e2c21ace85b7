//! GPT-2's byte-pair encoding (Radford et al. 2019, §2.2; the vocabulary is OpenAI's `r50k_base`).
//!
//! ```text
//! text ─ split ─▶ pieces: contraction | ␣?letters | ␣?digits | ␣?other | white space
//!                   │ a piece that is a token is done (nine of ten in prose)
//!                   └ merge: bytes, then always the adjacent pair of lowest rank, leftmost first
//! ```
//! Tokens never cross a piece, and a piece is decided by what follows it only inside white space.
//! So between any non-space and a following space a text can be cut, its halves encoded on their
//! own, and the tokens put together: the result is the same.
//!
//! The split is a hand-written scan: the regular expression it stands for needs look-ahead, so its
//! general engine backtracks (and gives up on long runs of spaces). Merging compares pairs of token
//! ids instead of byte strings. Tests hold both against the `tiktoken-rs` encoder.

use rustc_hash::FxHashMap;

use crate::error::{DataError, Result};

/// Ids of ordinary tokens are below this; the id itself is `<|endoftext|>`.
pub(crate) const END_OF_TEXT: u32 = 50256;

/// The classes of characters that the split looks at: `\s`, `\p{L}`, `\p{N}` or anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Other,
    Space,
    Letter,
    Number,
}

/// The encoder: token bytes to ids, and which pairs of ids make a token.
pub struct Gpt2 {
    ids: FxHashMap<Vec<u8>, u32>,
    /// (left id, right id) as `left << 32 | right` → id of the joined token, which is also its
    /// rank.
    merges: FxHashMap<u64, u32>,
    /// Id of each single byte.
    byte_ids: [u32; 256],
    /// Bytes of every ordinary token, by id.
    tokens: Vec<Vec<u8>>,
    classes: Vec<Class>,
}

impl Gpt2 {
    /// Builds the tables from the vocabulary compiled into the program.
    pub fn new() -> Result<Self> {
        let bpe = tiktoken_rs::r50k_base()
            .map_err(|e| DataError::Unsupported(format!("built-in GPT-2 vocabulary: {e}")))?;
        let tokens: Vec<Vec<u8>> = (0..END_OF_TEXT)
            .map(|id| bpe.decode_bytes(&[id]))
            .collect::<Result<_, _>>()
            .map_err(|e| DataError::Unsupported(format!("built-in GPT-2 vocabulary: {e}")))?;
        let ids: FxHashMap<Vec<u8>, u32> =
            (0..).zip(&tokens).map(|(id, t)| (t.clone(), id)).collect();
        let mut merges = FxHashMap::default();
        for (id, token) in (0u32..).zip(&tokens) {
            for cut in 1..token.len() {
                let (left, right) = token.split_at(cut);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                    merges.insert(u64::from(l) << 32 | u64::from(r), id);
                }
            }
        }
        let mut byte_ids = [0; 256];
        for (byte, id) in (0u8..=255).zip(&mut byte_ids) {
            *id = *ids.get([byte].as_slice()).ok_or_else(|| {
                DataError::Unsupported(format!("GPT-2 vocabulary lacks byte {byte}"))
            })?;
        }
        Ok(Self { ids, merges, byte_ids, tokens, classes: character_classes()? })
    }

    /// Bytes of every ordinary token, by id (without `<|endoftext|>`).
    pub fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    /// Appends the tokens of `text` to `out`.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut scratch = Merger::default();
        let mut start = 0;
        while start < text.len() {
            let end = self.piece_end(text, start);
            let piece = &text.as_bytes()[start..end];
            match self.ids.get(piece) {
                Some(&id) => out.push(id),
                None => scratch.merge(self, piece, out),
            }
            start = end;
        }
    }

    fn class(&self, c: char) -> Class {
        self.classes[c as usize]
    }

    /// Class and width of the character at `at`, if there is one.
    fn peek(&self, text: &str, at: usize) -> Option<(Class, usize)> {
        let byte = *text.as_bytes().get(at)?;
        if byte < 0x80 {
            return Some((self.classes[usize::from(byte)], 1));
        }
        let c = text[at..].chars().next()?;
        Some((self.class(c), c.len_utf8()))
    }

    /// End of the run of `class` that starts at `at`.
    fn run_end(&self, text: &str, mut at: usize, class: Class) -> usize {
        while let Some((next, width)) = self.peek(text, at) {
            if next != class {
                break;
            }
            at += width;
        }
        at
    }

    /// End of the piece that starts at `start`, which must be inside the text: the alternatives of
    /// `'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s` in order.
    fn piece_end(&self, text: &str, start: usize) -> usize {
        let bytes = text.as_bytes();
        if bytes[start] == b'\'' {
            match &bytes[start + 1..] {
                [b's' | b'd' | b'm' | b't', ..] => return start + 2,
                [b'l', b'l', ..] | [b'v', b'e', ..] | [b'r', b'e', ..] => return start + 3,
                _ => {}
            }
        }
        let word = start + usize::from(bytes[start] == b' ');
        if let Some((class, width)) = self.peek(text, word)
            && class != Class::Space
        {
            return self.run_end(text, word + width, class);
        }
        let end = self.run_end(text, start, Class::Space);
        if end == text.len() {
            return end;
        }
        // The last space of a run is left for the piece after it, unless it is the only one.
        let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
        if end - last > start { end - last } else { end }
    }
}

/// The class of every Unicode scalar value, from the tables of the regular-expression engine.
fn character_classes() -> Result<Vec<Class>> {
    let mut classes = vec![Class::Other; char::MAX as usize + 1];
    for (pattern, class) in
        [(r"\s", Class::Space), (r"\p{L}", Class::Letter), (r"\p{N}", Class::Number)]
    {
        let hir = regex_syntax::parse(pattern)
            .map_err(|e| DataError::Unsupported(format!("character class {pattern}: {e}")))?;
        let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) =
            hir.kind()
        else {
            return Err(DataError::Unsupported(format!("character class {pattern} is not one")));
        };
        for range in ranges.ranges() {
            classes[range.start() as usize..=range.end() as usize].fill(class);
        }
    }
    Ok(classes)
}

/// Pieces up to this many bytes are merged by scanning, longer ones with a heap.
const SCAN_BYTES: usize = 96;

/// Scratch of the merge loop, reused between pieces.
#[derive(Default)]
struct Merger {
    parts: Vec<u32>,
    ranks: Vec<u32>,
    heap: std::collections::BinaryHeap<std::cmp::Reverse<(u32, u32)>>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Merger {
    fn merge(&mut self, bpe: &Gpt2, piece: &[u8], out: &mut Vec<u32>) {
        self.parts.clear();
        self.parts.extend(piece.iter().map(|&b| bpe.byte_ids[usize::from(b)]));
        if piece.len() <= SCAN_BYTES {
            self.merge_short(bpe);
            out.extend_from_slice(&self.parts);
        } else {
            self.merge_long(bpe, out);
        }
    }

    /// Quadratic, but fastest for words: the ranks of all adjacent pairs lie side by side.
    fn merge_short(&mut self, bpe: &Gpt2) {
        let Self { parts, ranks, .. } = self;
        ranks.clear();
        ranks.extend(parts.windows(2).map(|pair| rank(bpe, pair[0], pair[1])));
        loop {
            let mut best = (NONE, 0);
            for (i, &r) in ranks.iter().enumerate() {
                if r < best.0 {
                    best = (r, i);
                }
            }
            let (id, i) = best;
            if id == NONE {
                return;
            }
            parts[i] = id;
            parts.remove(i + 1);
            ranks.remove(i);
            if i < ranks.len() {
                ranks[i] = rank(bpe, id, parts[i + 1]);
            }
            if i > 0 {
                ranks[i - 1] = rank(bpe, parts[i - 1], id);
            }
        }
    }

    /// O(n log n) for long pieces (a line of dashes, base64): a linked list and a heap of (rank,
    /// place).
    fn merge_long(&mut self, bpe: &Gpt2, out: &mut Vec<u32>) {
        let Self { parts, ranks, heap, next, previous } = self;
        let n = parts.len() as u32;
        next.clear();
        next.extend((1..n).chain([NONE]));
        previous.clear();
        previous.extend([NONE].into_iter().chain(0..n - 1));
        ranks.clear();
        ranks.extend(parts.windows(2).map(|pair| rank(bpe, pair[0], pair[1])));
        ranks.push(NONE);
        heap.clear();
        let pairs = (0u32..).zip(ranks.iter()).filter(|(_, r)| **r != NONE);
        heap.extend(pairs.map(|(i, &r)| std::cmp::Reverse((r, i))));
        while let Some(std::cmp::Reverse((id, i))) = heap.pop() {
            let at = i as usize;
            if ranks[at] != id {
                continue; // The pair changed after it was put on the heap.
            }
            let right = next[at] as usize;
            parts[at] = id;
            ranks[right] = NONE;
            next[at] = next[right];
            ranks[at] = NONE;
            if next[at] != NONE {
                previous[next[at] as usize] = i;
                ranks[at] = rank(bpe, id, parts[next[at] as usize]);
            }
            let left = previous[at];
            if left != NONE {
                ranks[left as usize] = rank(bpe, parts[left as usize], id);
            }
            for place in [i, left].into_iter().filter(|p| *p != NONE) {
                if ranks[place as usize] != NONE {
                    heap.push(std::cmp::Reverse((ranks[place as usize], place)));
                }
            }
        }
        let mut at = 0;
        while at != NONE {
            out.push(parts[at as usize]);
            at = next[at as usize];
        }
    }
}

fn rank(bpe: &Gpt2, left: u32, right: u32) -> u32 {
    bpe.merges.get(&(u64::from(left) << 32 | u64::from(right))).copied().unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::OnceLock;

    fn ours() -> &'static Gpt2 {
        static OURS: OnceLock<Gpt2> = OnceLock::new();
        OURS.get_or_init(|| Gpt2::new().unwrap())
    }

    fn check(text: &str) {
        let mut tokens = Vec::new();
        ours().encode(text, &mut tokens);
        assert_eq!(tokens, tiktoken_rs::r50k_base_singleton().encode_ordinary(text), "{text:?}");
    }

    #[test]
    fn known_ids() {
        let mut tokens = Vec::new();
        ours().encode("Hello world, it's 2024!", &mut tokens);
        assert_eq!(tokens, [15496, 995, 11, 340, 338, 48609, 0]);
    }

    #[test]
    fn corners_of_the_split() {
        for text in [
            "",
            " ",
            "  ",
            "   x",
            "x  ",
            "\n\n  a",
            " 's",
            "'s't'll've're'LL'",
            "''s",
            " '",
            "\u{a0}\u{a0}x",
            "a\u{a0}b",
            "\u{2003} b",
            "½ Ⅷ ²x",
            "é e\u{301}x",
            "中文 字",
            "\t\tif x:\n\n\n\treturn  1;\r\n",
            "\u{1F600}\u{200d}x",
            "ªº ʰ",
            "\u{345}a",
        ] {
            check(text);
        }
        check(&"-".repeat(1000));
        check(&"aGVsbG8gd29ybGQ".repeat(50));
        check(&" ".repeat(500));
        check(include_str!("gpt2.rs"));
    }

    #[test]
    fn a_million_spaces_do_not_defeat_the_split() {
        let mut tokens = Vec::new();
        ours().encode(&(" ".repeat(1_000_000) + "x"), &mut tokens);
        assert_eq!(*tokens.last().unwrap(), 2124); // " x"
    }

    /// Words, contractions, punctuation and space in any order, as a regular expression.
    const HARD_TEXT: &str = concat!(
        r"([ \n\t\u{a0}]{0,4}('|ll|ve|s|re|[a-zA-Z0-9]{1,7}",
        r"|[-_=*.,;é中½\u{301}]{1,5})){0,40}[ \n]{0,4}",
    );

    proptest! {
        #[test]
        fn like_tiktoken_on_any_text(text in "\\PC{0,60}") { check(&text); }

        #[test]
        fn like_tiktoken_on_hard_text(text in HARD_TEXT) { check(&text); }

        #[test]
        fn like_tiktoken_on_long_pieces(text in "[a-zA-Z]{90,300}") { check(&text); }
    }
}
