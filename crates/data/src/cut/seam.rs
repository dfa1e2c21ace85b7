//! Which cuts leave the tokens of a tokenizer as they are: a proof for a pair of characters.
//!
//! A text `L + R` is cut between `x`, the last character of `L`, which is ink, and `y`, the first
//! of `R`. The cut is neutral if every step from text to tokens gives for `L + R` what it gives for
//! `L`, followed by what it gives for `R`:
//!
//! ```text
//! added tokens ▶ normalizers ▶ added tokens ▶ pre-tokenizers ▶ model
//!                    each step: neutral whatever is far from the seam, given x and y;
//!                    what x and y have become is what the next step sees
//! ```
//! A pre-tokenizer that always ends a piece at the seam settles the matter: what follows works on
//! each piece alone. If none does, the model has the seam inside a piece, and only byte-pair
//! encoding can be neutral there, where no token of the vocabulary holds `x y`. Whatever is not
//! proven here is no place for a cut.

use regex_syntax::hir::ClassUnicode;
use rustc_hash::FxHashSet;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{NormalizedString, Normalizer, SplitDelimiterBehavior};

use super::pattern::{Pattern, contains};
use crate::byte_alphabet::byte_stand_in;

/// Why a seam is not neutral.
pub type Reason = &'static str;

/// How GPT-2 splits a text (Radford et al. 2019, the released encoder).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A tokenizer, as far as it matters to a seam.
pub struct Seams {
    steps: Vec<Step>,
    raw: AddedTokens,
    normalized: AddedTokens,
    /// For a seam inside a piece.
    inside: Result<Pairs, Reason>,
    /// Of what stays as it is beside anything, if a step needs it.
    plain: Option<ClassUnicode>,
}

enum Step {
    /// Gives for each character what it gives for it alone.
    EachCharacter(NormalizerWrapper),
    /// That, for plain characters.
    EachPlain(NormalizerWrapper),
    Strip {
        left: bool,
        right: bool,
    },
    Replace {
        pattern: Option<Pattern>,
        single: bool,
        content: String,
    },
    Prepend,
    NormalizedTokens,
    Split {
        pattern: Option<Pattern>,
        /// Whether the pattern is a text and no expression.
        text: bool,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// Ends pieces at such characters, and a piece never for another reason.
    Characters {
        one: fn(char) -> bool,
        behavior: SplitDelimiterBehavior,
    },
    Delimiter(char),
    Metaspace {
        mark: char,
        scheme: PrependScheme,
        split: bool,
    },
    /// Puts a space before each piece that does not begin with one.
    PrefixSpace,
    /// From here on, characters stand for bytes.
    Bytes,
    /// Looks far.
    Far(Reason),
}

impl Step {
    fn splits_by_expression(&self) -> bool {
        matches!(self, Self::Split { text: false, .. })
    }
}

/// Characters of tokens, and pairs of them that stand side by side in one.
#[derive(Default)]
struct Pairs {
    characters: FxHashSet<char>,
    pairs: FxHashSet<(char, char)>,
    /// Whether a character that is no token becomes tokens of bytes, which never merge.
    bytes: bool,
}

/// Tokens that are looked for in the text before all else.
#[derive(Default)]
pub struct AddedTokens {
    tokens: Vec<AddedToken>,
    pairs: FxHashSet<(char, char)>,
}

struct AddedToken {
    first: char,
    last: char,
    strips_left: bool,
    strips_right: bool,
    single_word: bool,
}

impl AddedTokens {
    /// Adds a token; if it is `silent`, it is found but has no effect.
    pub fn add(&mut self, token: &tokenizers::AddedToken, text: &str, silent: bool) {
        let characters: Vec<char> = text.chars().collect();
        self.pairs.extend(characters.windows(2).map(|pair| (pair[0], pair[1])));
        if let (Some(&first), Some(&last), false) = (characters.first(), characters.last(), silent)
        {
            self.tokens.push(AddedToken {
                first,
                last,
                strips_left: token.lstrip,
                strips_right: token.rstrip,
                single_word: token.single_word,
            });
        }
    }

    pub(crate) fn have_effect(&self) -> bool {
        !self.tokens.is_empty()
    }

    fn check(&self, x: char, y: char) -> Result<(), Reason> {
        if self.pairs.contains(&(x, y)) {
            return Err("an added token may reach across");
        }
        let of_word = |c: char| !c.is_whitespace() && (c == '_' || !c.is_ascii_punctuation());
        let looks = self.tokens.iter().any(|token| {
            (token.strips_left || token.strips_right) && x.is_whitespace()
                || token.strips_right && token.last == x && y.is_whitespace()
                || token.single_word && token.last == x && of_word(y)
                || token.single_word && token.first == y && of_word(x)
        });
        if looks { Err("an added token may look across") } else { Ok(()) }
    }
}

/// The seam as a step finds it.
#[derive(Clone, Copy)]
struct At {
    x: char,
    y: char,
    /// Whether a piece surely ends between them.
    parted: bool,
}

impl Seams {
    /// Of GPT-2's own tokenizer, which knows no added tokens.
    pub fn gpt2() -> Self {
        let steps = vec![gpt2_split()];
        let (raw, normalized) = (AddedTokens::default(), AddedTokens::default());
        Self { steps, raw, normalized, inside: Err("nothing ends a piece here"), plain: None }
    }

    /// Of the tokenizer that encodes what is not a document's first piece.
    pub fn new(
        tokenizer: &tokenizers::Tokenizer,
        raw: AddedTokens,
        normalized: AddedTokens,
    ) -> Self {
        let mut steps = Vec::new();
        if let Some(normalizer) = tokenizer.get_normalizer() {
            normalizer_steps(normalizer, &mut steps);
        }
        steps.push(Step::NormalizedTokens);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer_steps(pre_tokenizer, &mut steps);
        }
        let inside = match tokenizer.get_model() {
            // Tokenizers that split by an expression have places enough.
            _ if steps.iter().any(Step::splits_by_expression) => Err("nothing ends a piece here"),
            ModelWrapper::BPE(bpe) => Pairs::of(bpe),
            _ => Err("the model may join what is cut"),
        };
        let plain = steps.iter().any(|s| matches!(s, Step::EachPlain(_))).then(plain_characters);
        Self { steps, raw, normalized, inside, plain: plain.flatten() }
    }

    /// Whether a cut between `x` and `y` changes no token; `before` is what precedes `x`.
    pub(crate) fn neutral(&self, before: Option<char>, x: char, y: char) -> Result<(), Reason> {
        if x.is_whitespace() {
            return Err("white space before a cut may be looked at from behind it");
        }
        let has_plain = self.steps.iter().any(|step| matches!(step, Step::EachPlain(_)));
        let all = [before.unwrap_or(' '), x, y];
        if has_plain && !all.iter().all(|&c| self.is_plain(c)) {
            return Err("the normalizer may join these characters to their neighbours");
        }
        self.raw.check(x, y)?;
        self.walk(&self.steps, At { x, y, parted: false })
    }

    fn is_plain(&self, c: char) -> bool {
        match c {
            ' ' | '\t' | '\n' | '\r' => true,
            _ if c.is_ascii() => c.is_ascii_graphic(),
            _ => {
                self.plain.as_ref().is_some_and(|class| contains(class, c)) && {
                    let mut alone = NormalizedString::from(c.to_string());
                    alone.nfkd();
                    alone.get().chars().eq([c])
                }
            }
        }
    }

    fn walk(&self, steps: &[Step], at: At) -> Result<(), Reason> {
        let Some((step, rest)) = steps.split_first() else { return self.model(at) };
        let At { x, y, parted } = at;
        match step {
            Step::EachCharacter(normalizer) | Step::EachPlain(normalizer) => {
                let x = of_one(normalizer, x)?.1;
                let y = of_one(normalizer, y)?.0;
                self.walk(rest, At { x, y, parted })
            }
            Step::Strip { left, right } => {
                if *left && y.is_whitespace() || *right && x.is_whitespace() {
                    return Err("the normalizer strips a piece's ends");
                }
                self.walk(rest, at)
            }
            Step::Replace { pattern, single, content } => {
                let pattern = pattern.as_ref().ok_or(UNKNOWN_PATTERN)?;
                if pattern.reaches_across(x, y) {
                    return Err("a replaced pattern may reach across");
                }
                for x in replaced(pattern, *single, x, content.chars().next_back())? {
                    for y in replaced(pattern, *single, y, content.chars().next())? {
                        self.walk(rest, At { x, y, parted })?;
                    }
                }
                Ok(())
            }
            Step::Prepend => Err("the normalizer marks each piece's start"),
            Step::NormalizedTokens => {
                self.normalized.check(x, y)?;
                self.walk(rest, at)
            }
            _ => self.walk(rest, pre_tokenize(step, at)?),
        }
    }

    fn model(&self, at: At) -> Result<(), Reason> {
        match &self.inside {
            _ if at.parted => Ok(()),
            Ok(pairs) => pairs.check(at.x, at.y),
            Err(reason) => Err(reason),
        }
    }
}

const UNKNOWN_PATTERN: Reason = "the tokenizer splits by an expression of an unusual kind";

/// First and last character of what a normalizer makes of one.
fn of_one(normalizer: &NormalizerWrapper, c: char) -> Result<(char, char), Reason> {
    let mut one = NormalizedString::from(c.to_string());
    let done = normalizer.normalize(&mut one);
    let ends = (one.get().chars().next(), one.get().chars().next_back());
    match (done, ends) {
        (Ok(()), (Some(first), Some(last))) => Ok((first, last)),
        _ => Err("the normalizer removes a character"),
    }
}

/// The characters that `c` at the seam can become by a replacement that does not reach across it.
fn replaced(
    pattern: &Pattern,
    single: bool,
    c: char,
    content: Option<char>,
) -> Result<Vec<char>, Reason> {
    match (pattern.touches(c), content) {
        (false, _) => Ok(vec![c]),
        (true, None) => Err("the normalizer removes a character"),
        (true, Some(new)) if single => Ok(vec![new]),
        (true, Some(new)) => Ok(vec![c, new]),
    }
}

/// Whether a split that does not reach across the seam surely ends a piece there.
fn split(
    pattern: &Pattern,
    behavior: SplitDelimiterBehavior,
    invert: bool,
    x: char,
    y: char,
) -> Result<bool, Reason> {
    if pattern.reaches_across(x, y) {
        return Err("a piece of the tokenizer's split may reach across");
    }
    use SplitDelimiterBehavior::{Isolated, MergedWithNext, Removed};
    Ok(match behavior {
        Isolated | Removed => pattern.takes_alone(x) || pattern.takes_alone(y),
        MergedWithNext => !invert && pattern.takes_alone(y),
        _ => false,
    })
}

/// The seam behind a pre-tokenizer.
fn pre_tokenize(step: &Step, at: At) -> Result<At, Reason> {
    use SplitDelimiterBehavior::{Contiguous, Isolated, Removed};
    let At { x, y, parted } = at;
    // A piece that ends at the seam already is split, or marked, by itself.
    match step {
        Step::Split { pattern, behavior, invert, .. } if !parted => {
            let pattern = pattern.as_ref().ok_or(UNKNOWN_PATTERN)?;
            Ok(At { parted: split(pattern, *behavior, *invert, x, y)?, ..at })
        }
        Step::Characters { one, behavior } if !parted => {
            let parted = match behavior {
                Isolated | Removed => one(x) || one(y),
                Contiguous => one(x) != one(y),
                _ => false,
            };
            Ok(At { parted, ..at })
        }
        Step::Delimiter(one) => Ok(At { parted: parted || x == *one || y == *one, ..at }),
        Step::Metaspace { mark, scheme, split } => {
            let marked = |c| if c == ' ' { *mark } else { c };
            let (x, y) = (marked(x), marked(y));
            let marks = match scheme {
                PrependScheme::Never => false,
                PrependScheme::Always => !parted,
                PrependScheme::First => true,
            };
            if marks && y != *mark {
                return Err("the pre-tokenizer marks each piece's start");
            }
            Ok(At { x, y, parted: parted || *split && y == *mark })
        }
        Step::PrefixSpace if !parted && y != ' ' => {
            Err("the pre-tokenizer adds a space to each piece's start")
        }
        Step::Bytes => {
            let mut bytes = [0; 4];
            let last = *x.encode_utf8(&mut bytes).as_bytes().last().unwrap_or(&0);
            let first = y.encode_utf8(&mut bytes).as_bytes()[0];
            Ok(At { x: byte_stand_in(last), y: byte_stand_in(first), parted })
        }
        Step::Far(reason) if !parted => Err(reason),
        _ => Ok(at),
    }
}

fn gpt2_split() -> Step {
    let (pattern, behavior) = (Pattern::of_regex(GPT2), SplitDelimiterBehavior::Isolated);
    Step::Split { pattern, text: false, behavior, invert: false }
}

fn normalizer_steps(normalizer: &NormalizerWrapper, steps: &mut Vec<Step>) {
    use NormalizerWrapper as N;
    steps.push(match normalizer {
        N::Sequence(sequence) => {
            return sequence.as_ref().iter().for_each(|part| normalizer_steps(part, steps));
        }
        N::StripNormalizer(s) => Step::Strip { left: s.strip_left, right: s.strip_right },
        N::Prepend(_) => Step::Prepend,
        N::Replace(replace) => {
            // Its pattern is private.
            let json = serde_json::to_value(replace).unwrap_or_default();
            let (text, regex) = (&json["pattern"]["String"], &json["pattern"]["Regex"]);
            let single = text.as_str().is_some_and(|text| text.chars().count() == 1);
            let pattern = match (text.as_str(), regex.as_str()) {
                (Some(text), _) => Pattern::of_text(text),
                (None, regex) => regex.and_then(Pattern::of_regex),
            };
            Step::Replace { pattern, single, content: replace.content.clone() }
        }
        N::StripAccents(_) | N::Lowercase(_) | N::Nmt(_) | N::ByteLevel(_) => {
            Step::EachCharacter(normalizer.clone())
        }
        N::NFC(_)
        | N::NFD(_)
        | N::NFKC(_)
        | N::NFKD(_)
        | N::BertNormalizer(_)
        | N::Precompiled(_) => Step::EachPlain(normalizer.clone()),
    });
}

fn pre_tokenizer_steps(pre_tokenizer: &PreTokenizerWrapper, steps: &mut Vec<Step>) {
    use PreTokenizerWrapper as P;
    use SplitDelimiterBehavior::{Contiguous, Isolated, Removed};
    let white_space = || Step::Characters { one: char::is_whitespace, behavior: Removed };
    // Of those that are punctuation to everyone.
    let punctuation = |c: char| c.is_ascii_punctuation();
    let step = match pre_tokenizer {
        P::Sequence(sequence) => {
            return sequence.as_ref().iter().for_each(|part| pre_tokenizer_steps(part, steps));
        }
        P::BertPreTokenizer(_) => {
            steps.push(white_space());
            Step::Characters { one: punctuation, behavior: Isolated }
        }
        // Its runs of letters and of punctuation may be joined at a seam, and are not counted on.
        P::Whitespace(_) | P::WhitespaceSplit(_) => white_space(),
        P::Punctuation(p) if p.behavior == Contiguous => {
            Step::Far("the pre-tokenizer joins punctuation")
        }
        P::Punctuation(p) => Step::Characters { one: punctuation, behavior: p.behavior },
        P::Digits(digits) => {
            let behavior = if digits.individual_digits { Isolated } else { Contiguous };
            Step::Characters { one: char::is_numeric, behavior }
        }
        P::Delimiter(delimiter) => Step::Delimiter(delimiter.delimiter),
        P::Metaspace(m) => Step::Metaspace {
            mark: m.get_replacement(),
            scheme: m.get_prepend_scheme(),
            split: m.get_split(),
        },
        P::ByteLevel(bytes) => {
            if bytes.add_prefix_space {
                steps.push(Step::PrefixSpace);
            }
            if bytes.use_regex {
                steps.push(gpt2_split());
            }
            Step::Bytes
        }
        P::Split(split) => Step::Split {
            pattern: match &split.pattern {
                SplitPattern::String(text) => Pattern::of_text(text),
                SplitPattern::Regex(regex) => Pattern::of_regex(regex),
            },
            text: matches!(split.pattern, SplitPattern::String(_)),
            behavior: split.behavior,
            invert: split.invert,
        },
        P::UnicodeScripts(_) => Step::Far("the pre-tokenizer remembers scripts"),
        P::FixedLength(_) => Step::Far("the pre-tokenizer counts characters"),
    };
    steps.push(step);
}

/// Characters outside ASCII that neither compose with what is before them nor share its grapheme:
/// no marks, no parts of syllables, no format characters; what decomposes is told apart later.
fn plain_characters() -> Option<ClassUnicode> {
    let hir = regex_syntax::parse(
        r"[[\p{L}\p{N}\p{P}\p{S}&&[\x{A0}-\x{FFFF}]]--[\p{Hangul}\x{D4E}\p{M}]]",
    );
    match hir.ok()?.into_kind() {
        regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => Some(class),
        _ => None,
    }
}

impl Pairs {
    /// Of a model without marks on parts of words and words taken whole.
    fn of(bpe: &BPE) -> Result<Self, Reason> {
        if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() {
            return Err("the model marks parts of words");
        }
        if bpe.ignore_merges {
            return Err("the model looks for whole pieces");
        }
        let mut this = Self::default();
        let vocab = bpe.get_vocab();
        let bytes: Vec<String> = (0..=255).map(|b| format!("<0x{b:02X}>")).collect();
        let merged = |token: &String| {
            token.len() > 6 && token.contains("<0x") && bytes.iter().any(|b| token.contains(b))
        };
        this.bytes = bpe.byte_fallback
            && bytes.iter().all(|byte| vocab.contains_key(byte))
            && !vocab.keys().any(merged);
        for token in vocab.keys() {
            let characters: Vec<char> = token.chars().collect();
            this.pairs.extend(characters.windows(2).map(|pair| (pair[0], pair[1])));
            if let [c] = characters[..] {
                this.characters.insert(c);
            }
        }
        Ok(this)
    }

    fn check(&self, x: char, y: char) -> Result<(), Reason> {
        let known = self.characters.contains(&x) && self.characters.contains(&y);
        match known {
            true if self.pairs.contains(&(x, y)) => Err("a token may reach across"),
            false if !self.bytes => Err("an unknown character may join its neighbours"),
            _ => Ok(()),
        }
    }
}
