//! Where a long document may be cut so that its pieces can be encoded on their own.
//!
//! A document is cut into pieces, a function of its bytes and the tokenizer alone: not of threads,
//! of memory or of how the file was read. Each piece is cut at the last place of its second half
//! that is *neutral*: the tokens of the two sides, one after the other, are the tokens of the
//! whole. Where there is none the piece grows to the first neutral place after its limit, or to the
//! document's end: never is a cut made that is not proven. (A tokenizer of an unusual kind, or one
//! with added tokens that divide a text, may so encode a document whole, in memory of a hundred
//! times its size.)
//!
//! * The byte tokenizer may be cut anywhere.
//! * For others the two characters beside a place decide, with what the tokenizer does to a text,
//!   step by step (`seam`, and `pattern` for what its regular expressions may match). Most split a
//!   text between a letter and white space, and in other places, too.
//! * A tokenizer that marks the start of a text (`▁`, or a space) has a twin that does not, for
//!   what is not a document's first piece (`twin`).

mod pattern;
mod seam;

use rustc_hash::FxHashMap;

pub(crate) use seam::{AddedTokens, Seams};

/// Length of a piece of a document, if it can be cut there; some encoders need a hundred times that
/// in scratch.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// The cuts that leave a tokenizer's output unchanged.
pub enum Cut {
    Anywhere,
    /// Where it is proven.
    Neutral(Box<Seams>),
}

impl Cut {
    /// Bytes of the first piece of `text`, which is the rest of a document or, unless `at_end`, a
    /// beginning of it; `None` if more of it has to be seen.
    pub(crate) fn first_piece(
        &self,
        text: &[u8],
        at_end: bool,
        limit_bytes: usize,
    ) -> Option<usize> {
        if text.len() <= limit_bytes && at_end {
            return Some(text.len());
        }
        // A character that begins at the limit must be whole.
        if text.len() < limit_bytes + 4 && !at_end {
            return None;
        }
        let Self::Neutral(seams) = self else { return Some(limit_bytes) };
        let mut known = FxHashMap::default();
        let mut neutral = |at: &usize| is_neutral(seams, text, *at, &mut known);
        let whole = if at_end { text.len() } else { text.len() - 4 };
        let before = (limit_bytes / 2 + 1..=limit_bytes).rev().find(|at| neutral(at));
        let place = before.or_else(|| (limit_bytes + 1..whole).find(|at| neutral(at)));
        place.or(at_end.then_some(text.len()))
    }
}

/// Whether the cut at `at` is proven; `known` remembers what was found of the same characters.
fn is_neutral(
    seams: &Seams,
    text: &[u8],
    at: usize,
    known: &mut FxHashMap<[Option<char>; 3], bool>,
) -> bool {
    let (before, x) = last_two(&text[..at]);
    let (Some(x), Some(y)) = (x, first(&text[at..])) else { return false };
    let found = known.entry([before, Some(x), Some(y)]);
    *found.or_insert_with(|| seams.neutral(before, x, y).is_ok())
}

/// The last character but one, and the last, as far as they are whole.
fn last_two(text: &[u8]) -> (Option<char>, Option<char>) {
    let last = last(text);
    let before = last.and_then(|c| self::last(&text[..text.len() - c.len_utf8()]));
    (before, last)
}

fn last(text: &[u8]) -> Option<char> {
    let start =
        (1..=4).find(|n| text.len().checked_sub(*n).is_some_and(|at| text[at] & 0xC0 != 0x80))?;
    let mut characters = std::str::from_utf8(&text[text.len() - start..]).ok()?.chars();
    characters.next()
}

fn first(text: &[u8]) -> Option<char> {
    let chunk = text[..text.len().min(4)].utf8_chunks().next()?;
    chunk.valid().chars().next()
}

#[cfg(test)]
mod tests;
