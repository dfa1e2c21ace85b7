//! Where a long document may be cut so that its pieces can be encoded on their own.
//!
//! A document is cut into pieces of at most [`PIECE_BYTES`], a function of its bytes and the
//! tokenizer alone: not of threads, of memory or of how the file was read. Each piece is cut at the
//! last place that fits where **white space follows a letter or digit**:
//!
//! * GPT-2's split and its descendants (the `\p{L}+`-style expressions of Llama 3, Qwen, o200k …)
//!   end a word exactly there: a letter run or a digit run cannot hold a space, and only
//!   white-space pieces look ahead. Both sides give the tokens they give in the whole text. (After
//!   *punctuation* the newer expressions swallow following newlines, so such a place would not do.)
//! * A tokenizer that marks a word's start by prepending `▁` to every input gives the same tokens
//!   when the cut drops one space, which the mark then stands for.
//! * The byte tokenizer may be cut anywhere.
//!
//! Where half a piece has no such place (it is no text then), the cut is made at a character
//! boundary and the tokens next to it may differ from those of an uncut encoding.

/// Longest piece of a document that is encoded at once; some encoders need a hundred times that in
/// scratch.
pub const PIECE_BYTES: usize = 256 << 10;

/// How much of a document decides its first piece: a reader that holds this much, or all, can cut.
pub const SIGHT_BYTES: usize = PIECE_BYTES + 2;

/// The kind of cut that leaves a tokenizer's output unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Anywhere,
    /// Between a letter or digit and white space; the space begins the next piece.
    BeforeSpace,
    /// Between a letter or digit and one U+0020, which is dropped.
    DropSpace,
}

/// The first piece is `text[..end]`, the rest is `text[next..]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub end: usize,
    pub next: usize,
}

impl Cut {
    /// The first piece of `text`, which must be a whole document or the first [`SIGHT_BYTES`] of
    /// one.
    pub fn first_piece(self, text: &[u8]) -> Piece {
        if text.len() <= PIECE_BYTES {
            return Piece { end: text.len(), next: text.len() };
        }
        if self == Self::Anywhere {
            return Piece { end: PIECE_BYTES, next: PIECE_BYTES };
        }
        (PIECE_BYTES / 2..=PIECE_BYTES).rev().find_map(|at| self.at(text, at)).unwrap_or_else(
            || {
                let end = (0..4).map(|i| PIECE_BYTES - i).find(|&i| is_char_start(text[i]));
                let end = end.unwrap_or(PIECE_BYTES);
                Piece { end, next: end }
            },
        )
    }

    /// The cut at `at`, if it is a good one there.
    fn at(self, text: &[u8], at: usize) -> Option<Piece> {
        let space = match self {
            Self::DropSpace => text[at] == b' ',
            _ => matches!(text[at], b' ' | b'\n' | b'\t' | b'\r'),
        };
        // After a dropped space the next piece must start with a word, or its mark would not be
        // one.
        let word_follows =
            self != Self::DropSpace || text.get(at + 1).is_some_and(u8::is_ascii_alphanumeric);
        let cut = space && word_follows && ends_word(&text[..at]);
        cut.then_some(Piece { end: at, next: at + usize::from(self == Self::DropSpace) })
    }
}

fn is_char_start(byte: u8) -> bool {
    byte & 0xC0 != 0x80
}

/// Whether the last character of `text` is a letter or digit.
fn ends_word(text: &[u8]) -> bool {
    let Some(&last) = text.last() else { return false };
    if last < 0x80 {
        return last.is_ascii_alphanumeric();
    }
    let start = text.len().saturating_sub(4);
    let tail = text[start..].utf8_chunks().last();
    tail.is_some_and(|c| {
        c.invalid().is_empty() && c.valid().chars().next_back().is_some_and(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_texts_are_one_piece() {
        for cut in [Cut::Anywhere, Cut::BeforeSpace, Cut::DropSpace] {
            assert_eq!(cut.first_piece(b"ab cd"), Piece { end: 5, next: 5 });
        }
    }

    #[test]
    fn the_last_word_end_that_fits_is_taken() {
        let mut text = vec![b'x'; PIECE_BYTES + 10];
        text[PIECE_BYTES - 7] = b' ';
        text[PIECE_BYTES - 2] = b'.';
        text[PIECE_BYTES - 1] = b' '; // After punctuation: no good place.
        let end = PIECE_BYTES - 7;
        assert_eq!(Cut::BeforeSpace.first_piece(&text), Piece { end, next: end });
        assert_eq!(Cut::DropSpace.first_piece(&text), Piece { end, next: end + 1 });
        assert_eq!(Cut::Anywhere.first_piece(&text).end, PIECE_BYTES);
    }

    #[test]
    fn without_a_place_characters_stay_whole() {
        let text = "é".repeat(PIECE_BYTES).into_bytes();
        let text = &text[1..]; // Off by one, so that the limit falls inside a character.
        let piece = Cut::BeforeSpace.first_piece(text);
        assert!(is_char_start(text[piece.end]) && piece.end >= PIECE_BYTES - 3);
    }

    /// Words, numbers, punctuation and space in any order, as a regular expression.
    const HARD_TEXT: &str = concat!(
        r"([ \n\t\r\u{a0}]{0,4}('|ll|ve|s|RE|[a-zA-Z]{1,7}|[0-9]{1,7}",
        r"|[-_=*.,;/é中½。\u{301}]{1,5})){0,30}[ \n]{0,4}",
    );

    proptest! {
        #[test]
        fn tokens_do_not_notice_a_cut(text in HARD_TEXT) {
            use tiktoken_rs::{cl100k_base_singleton, o200k_base_singleton, r50k_base_singleton};
            let encoders =
                [r50k_base_singleton(), cl100k_base_singleton(), o200k_base_singleton()];
            for at in 0..text.len() {
                let Some(piece) = Cut::BeforeSpace.at(text.as_bytes(), at) else { continue };
                let (left, right) = (&text[..piece.end], &text[piece.next..]);
                for bpe in encoders {
                    let halves = [bpe.encode_ordinary(left), bpe.encode_ordinary(right)].concat();
                    prop_assert_eq!(halves, bpe.encode_ordinary(&text), "{:?} {:?}", left, right);
                }
            }
        }
    }

    #[test]
    fn words_end_in_any_script() {
        assert!(ends_word("字".as_bytes()) && ends_word(b"a") && ends_word("xé".as_bytes()));
        assert!(
            !ends_word("。".as_bytes())
                && !ends_word(b"a.")
                && !ends_word(b"\xff")
                && !ends_word(b"")
        );
        assert!(!ends_word(b"a\xc3"));
    }
}
