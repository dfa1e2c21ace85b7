//! Properties of the matches of a regular expression, without the text.
//!
//! An expression is taken apart into *places*, one for each character class in it, and the pairs
//! of places that can match neighbouring characters (Glushkov 1961). Where no pair of places
//! matches the characters `x y` one after the other, no match, and no attempt at one, reaches from
//! `x` into `y`. Look-ahead for "no ink follows", `(?!\S)`, and the end `$` are places of their
//! own: what they see changes where a text is cut behind them.
//!
//! Everything is an over-estimate of what can match, but for [`Pattern::takes_alone`], which is an
//! under-estimate. An expression with anything else in it (other look-around, word boundaries,
//! possessive repetition, back-references, an empty match) is not taken apart.

use std::collections::BTreeSet;

use regex_syntax::hir::{Class, ClassUnicode, Hir, HirKind, Look};

/// Stands for `(?!\S)` while an expression is parsed: a code point that no text has.
const NO_INK_FOLLOWS: char = '\u{10FFFE}';

enum Place {
    One(ClassUnicode),
    NoInkFollows,
    End,
}

/// An expression, taken apart.
pub struct Pattern {
    places: Vec<Place>,
    follow: BTreeSet<(usize, usize)>,
    /// Places that can match a text of one character.
    alone: Vec<usize>,
}

impl Pattern {
    /// `None` if the expression has something that is not understood here.
    pub(crate) fn of_regex(expression: &str) -> Option<Self> {
        let plain = without_look_ahead(expression)?;
        let hir = regex_syntax::parse(&plain).ok()?;
        let mut parts = Parts::default();
        let whole = parts.add(&hir)?;
        if whole.nullable {
            return None;
        }
        // A look-around that has to hold keeps its neighbours from standing alone.
        let alone = whole.first_strict.intersection(&whole.last_strict).copied();
        Some(Self { alone: alone.collect(), places: parts.places, follow: parts.follow })
    }

    /// The pattern that matches this text alone.
    pub fn of_text(text: &str) -> Option<Self> {
        Self::of_regex(&regex_syntax::escape(text))
    }

    fn takes(&self, place: usize, c: char) -> bool {
        matches!(&self.places[place], Place::One(class) if contains(class, c))
    }

    /// Whether a match, or an attempt at one, may depend on whether `y` follows `x` or the text
    /// ends between them.
    pub(crate) fn reaches_across(&self, x: char, y: char) -> bool {
        self.follow.iter().any(|&(before, after)| {
            self.takes(before, x)
                && match &self.places[after] {
                    Place::One(class) => contains(class, y),
                    Place::NoInkFollows => !y.is_whitespace(),
                    Place::End => true,
                }
        })
    }

    /// Whether a match begins at every `c` at which the search arrives.
    pub(crate) fn takes_alone(&self, c: char) -> bool {
        self.alone.iter().any(|&place| self.takes(place, c))
    }

    /// Whether `c` can be in a match.
    pub fn touches(&self, c: char) -> bool {
        (0..self.places.len()).any(|place| self.takes(place, c))
    }
}

pub fn contains(class: &ClassUnicode, c: char) -> bool {
    let ranges = class.ranges();
    let after = ranges.partition_point(|range| range.start() <= c);
    after > 0 && ranges[after - 1].end() >= c
}

/// The expression with [`NO_INK_FOLLOWS`] in the place of each `(?!\S)`; `None` if a repetition is
/// possessive.
fn without_look_ahead(expression: &str) -> Option<String> {
    let (mut out, mut depth, mut rest) = (String::new(), 0usize, expression);
    let mut after_quantifier = false;
    while let Some(c) = rest.chars().next() {
        if depth == 0
            && let Some(behind) = rest.strip_prefix(r"(?!\S)")
        {
            (rest, after_quantifier) = (behind, false);
            out.push(NO_INK_FOLLOWS);
            continue;
        }
        let width = if c == '\\' { escape_bytes(rest) } else { c.len_utf8() };
        if depth == 0 && after_quantifier && c == '+' {
            return None;
        }
        after_quantifier = matches!(c, '+' | '*' | '?' | '}');
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        out.push_str(&rest[..width]);
        rest = &rest[width..];
    }
    Some(out)
}

/// Bytes of the escape that `rest` begins with: `\s`, `\p{L}`.
fn escape_bytes(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    let Some((at, c)) = characters.next() else { return rest.len() };
    let end = at + c.len_utf8();
    match rest[end..].starts_with('{') && "pPxuU".contains(c) {
        true => rest.find('}').map_or(rest.len(), |brace| brace + 1),
        false => end,
    }
}

/// Where the matches of a part begin and end. The strict sets take look-arounds for characters.
#[derive(Clone, Default)]
struct Ends {
    first: BTreeSet<usize>,
    last: BTreeSet<usize>,
    first_strict: BTreeSet<usize>,
    last_strict: BTreeSet<usize>,
    nullable: bool,
    nullable_strict: bool,
}

impl Ends {
    fn empty() -> Self {
        Self { nullable: true, nullable_strict: true, ..Self::default() }
    }

    /// A look-around matches nothing or, strictly, is one place.
    fn place(at: usize, looks: bool) -> Self {
        let one = BTreeSet::from([at]);
        let (first, last) = (one.clone(), one.clone());
        Self {
            first,
            last,
            first_strict: one.clone(),
            last_strict: one,
            nullable: looks,
            nullable_strict: false,
        }
    }

    fn or(mut self, other: Self) -> Self {
        self.first.extend(other.first);
        self.last.extend(other.last);
        self.first_strict.extend(other.first_strict);
        self.last_strict.extend(other.last_strict);
        self.nullable |= other.nullable;
        self.nullable_strict |= other.nullable_strict;
        self
    }

    fn then(mut self, mut next: Self) -> Self {
        if self.nullable {
            self.first.extend(&next.first);
        }
        if self.nullable_strict {
            self.first_strict.extend(&next.first_strict);
        }
        if next.nullable {
            next.last.extend(&self.last);
        }
        if next.nullable_strict {
            next.last_strict.extend(&self.last_strict);
        }
        self.last = next.last;
        self.last_strict = next.last_strict;
        self.nullable &= next.nullable;
        self.nullable_strict &= next.nullable_strict;
        self
    }
}

#[derive(Default)]
struct Parts {
    places: Vec<Place>,
    follow: BTreeSet<(usize, usize)>,
}

impl Parts {
    fn add(&mut self, hir: &Hir) -> Option<Ends> {
        match hir.kind() {
            HirKind::Empty => Some(Ends::empty()),
            HirKind::Literal(literal) => {
                let text = std::str::from_utf8(&literal.0).ok()?;
                let mut ends = Ends::empty();
                for c in text.chars() {
                    let one = match c {
                        NO_INK_FOLLOWS => self.place(Place::NoInkFollows),
                        c => self.class([(c, c)]),
                    };
                    ends = self.join(ends, one);
                }
                Some(ends)
            }
            HirKind::Class(Class::Unicode(class)) => {
                // A class of its own making, of alternatives of which one was the look-ahead.
                let edge = |r: &regex_syntax::hir::ClassUnicodeRange| {
                    [r.start(), r.end()].contains(&NO_INK_FOLLOWS)
                };
                if class.ranges().iter().any(edge) {
                    return None;
                }
                Some(self.place(Place::One(class.clone())))
            }
            HirKind::Look(Look::End) => Some(self.place(Place::End)),
            HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => None,
            HirKind::Repetition(repetition) if repetition.max == Some(0) => Some(Ends::empty()),
            HirKind::Repetition(repetition) => {
                let mut ends = self.add(&repetition.sub)?;
                if repetition.max != Some(1) {
                    self.follow(&ends.last, &ends.first);
                }
                ends.nullable |= repetition.min == 0;
                ends.nullable_strict |= repetition.min == 0;
                if repetition.min > 1 {
                    // More than one character in any case.
                    ends.first_strict.clear();
                    ends.last_strict.clear();
                }
                Some(ends)
            }
            HirKind::Capture(capture) => self.add(&capture.sub),
            HirKind::Concat(parts) => parts.iter().try_fold(Ends::empty(), |ends, part| {
                let next = self.add(part)?;
                Some(self.join(ends, next))
            }),
            HirKind::Alternation(parts) => {
                let mut parts = parts.iter();
                let first = self.add(parts.next()?)?;
                parts.try_fold(first, |ends, part| Some(ends.or(self.add(part)?)))
            }
        }
    }

    fn place(&mut self, place: Place) -> Ends {
        let looks = !matches!(place, Place::One(_));
        self.places.push(place);
        Ends::place(self.places.len() - 1, looks)
    }

    fn class(&mut self, range: [(char, char); 1]) -> Ends {
        let range = range.map(|(a, b)| regex_syntax::hir::ClassUnicodeRange::new(a, b));
        self.place(Place::One(ClassUnicode::new(range)))
    }

    fn follow(&mut self, last: &BTreeSet<usize>, first: &BTreeSet<usize>) {
        self.follow.extend(last.iter().flat_map(|&a| first.iter().map(move |&b| (a, b))));
    }

    fn join(&mut self, left: Ends, right: Ends) -> Ends {
        self.follow(&left.last, &right.first);
        left.then(right)
    }
}
