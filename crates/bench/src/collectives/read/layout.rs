//! The columns of a table of nccl-tests or rccl-tests, as its header names them, and rows in them.
//!
//! Numbers end where the titles of their columns end; how wide a column is differs by version.
//! Numbers that their columns are too narrow for lose digits and then get an exponent.

use super::super::dtype::{ElementType, RedOp};
use super::lines::words;
use crate::BenchError;

/// Words up to the root.
const KEYS: [&str; 5] = ["size", "count", "type", "redop", "root"];
/// Those behind the size that are no numbers, `type` and `redop`.
const WORDS: [usize; 2] = [1, 2];
/// Words behind the sides.
const CHOICE: [&str; 3] = ["algo", "proto", "nchannels"];

/// A mistake in a line: the byte where it is, from 0, and why.
pub type Mistake = (usize, String);

/// A column of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Time,
    /// With `-C`: the host's.
    HostTime,
    /// rccl-tests': the device's.
    EventTime,
    AlgBw,
    BusBw,
    Wrong,
    /// With `-I`, of single iterations.
    Min,
    Max,
    P99,
    CvPct,
}

impl Column {
    fn titled(title: &str) -> Option<Column> {
        Some(match title {
            "time" => Column::Time,
            "cputime" => Column::HostTime,
            "hipevt" => Column::EventTime,
            "algbw" => Column::AlgBw,
            "busbw" => Column::BusBw,
            "#wrong" => Column::Wrong,
            "i_min" => Column::Min,
            "i_max" => Column::Max,
            "i_p99" => Column::P99,
            "i_cv%" => Column::CvPct,
            _ => return None,
        })
    }
}

/// The columns of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Whether each side is in place.
    pub sides: Vec<bool>,
    /// Of each side.
    pub columns: Vec<Column>,
    /// With `-S`: two words behind the sides.
    pub timestamp: bool,
    /// With rccl-tests' `-A`: algorithm, protocol and channels at the end.
    pub choice: bool,
    /// Where each column ends, from the end of the size: a message may break a row there.
    breaks: Vec<usize>,
}

/// One number of a row, `None` where the program had none.
pub type Cell = (Column, Option<f64>);

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    pub size: u64,
    pub count: u64,
    pub dtype: ElementType,
    pub redop: Option<RedOp>,
    pub root: Option<usize>,
    /// Per side that is there: whether it is in place, and its numbers.
    pub sides: Vec<(bool, Vec<Cell>)>,
    pub choice: Option<String>,
}

impl Layout {
    /// From the line of titles, which begins with `#` and has `size` as its first word, and from
    /// the line above it, which names the places.
    pub fn of(titles: &str, places: &str) -> Result<Layout, Mistake> {
        let titles: Vec<(usize, &str)> = words(titles).filter(|(_, word)| *word != "#").collect();
        for (index, expected) in KEYS.iter().enumerate() {
            match titles.get(index) {
                Some((_, word)) if word == expected => {}
                Some((at, word)) => {
                    let why = format!("column `{word}` where `{expected}` belongs");
                    return Err((*at, why));
                }
                None => return Err((0, format!("no column `{expected}`"))),
            }
        }
        let end = |at: usize, title: &str| at + title.len() - titles[0].0 - titles[0].1.len();
        let mut breaks: Vec<usize> =
            titles[1..KEYS.len()].iter().map(|(at, title)| end(*at, title)).collect();
        let mut sides: Vec<Vec<Column>> = Vec::new();
        let mut rest = titles[KEYS.len()..].iter().peekable();
        while let Some((at, title)) = rest.next_if(|(_, title)| Column::titled(title).is_some()) {
            let column = Column::titled(title).unwrap_or(Column::Time);
            if matches!(column, Column::Time | Column::HostTime) {
                sides.push(Vec::new());
            }
            breaks.push(end(*at, title));
            match sides.last_mut() {
                Some(side) => side.push(column),
                None => return Err((*at, format!("column `{title}` before `time`"))),
            }
        }
        let mut layout = Layout {
            sides: Vec::new(),
            columns: Vec::new(),
            timestamp: false,
            choice: false,
            breaks,
        };
        while let Some((at, title)) = rest.next() {
            match *title {
                "timestamp" if rest.peek().is_none() => layout.timestamp = true,
                "algo" => {
                    let others = [rest.next(), rest.next()];
                    let others = others.map(|word| word.map_or("", |(_, word)| word));
                    if others != CHOICE[1..] {
                        return Err((*at, format!("`{}` belong together", CHOICE.join(" "))));
                    }
                    layout.choice = true;
                }
                _ => return Err((*at, format!("a column `{title}`, which is not known"))),
            }
        }
        layout.columns = sides.first().cloned().unwrap_or_default();
        if sides.iter().any(|side| *side != layout.columns) {
            return Err((0, "two sides with different columns".to_owned()));
        }
        // Its title stands there with `-I` as well, but rows have none then.
        layout.timestamp &= !layout.columns.contains(&Column::Min);
        layout.sides = places_of(places, sides.len())?;
        Ok(layout)
    }

    /// The place within `word` at which a number ends and a message of an unknown host begins;
    /// `None` where the whole word is the message's. What may have digits of a number whose end is
    /// not known is not cut off: a word that is no number makes the row unreadable, and not wrong.
    pub fn cut(&self, line: &str, word: std::ops::Range<usize>) -> Option<usize> {
        let text = &line[word.clone()];
        let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            || ["N/A", "nan"].iter().any(|none| text.starts_with(none));
        let unclear = is_number.then_some(word.end);
        let first = words(line).next().filter(|(_, first)| first.parse::<u64>().is_ok());
        let Some(size_end) = first.map(|(at, size)| at + size.len()) else {
            let is_first = line[..word.start].trim().is_empty();
            return unclear.filter(|_| is_first);
        };
        let cuts = || self.breaks.iter().map(|place| size_end + place);
        let before: Vec<(usize, &str)> = words(&line[..word.start]).collect();
        // Where a number was too wide for its column all others are further to the right, and where
        // a side was left out they may be further to the left.
        let is_in_column = |(at, other): &(usize, &str)| cuts().any(|cut| cut == at + other.len());
        let is_one_side = before.get(KEYS.len() - 1).is_some_and(|root| blank(line, *root));
        if is_one_side || !before.iter().skip(1).all(is_in_column) {
            return unclear;
        }
        let of_column = |&(_, cut): &(usize, usize)| {
            word.contains(&cut) && cut > word.start && line.is_char_boundary(cut)
        };
        match cuts().enumerate().find(of_column) {
            Some((column, cut)) if is_number || WORDS.contains(&column) => Some(cut),
            _ => unclear,
        }
    }

    /// Whether a row reaches as far as its columns, so that its last number has lost no digits. How
    /// long the words behind the sides are is not known.
    pub(crate) fn is_filled(&self, line: &str) -> bool {
        let last = self.breaks.last().copied().unwrap_or(0);
        let end = size_end(line).map(|size_end| size_end + last);
        self.tail() == 0 && end.is_some_and(|end| line.trim_end().len() >= end)
    }

    /// Whether every number of a row that was put together reaches the end of its column: one that
    /// does not has lost digits. What a replay leaves out is narrower than its columns.
    pub(crate) fn reaches_columns(&self, line: &str) -> bool {
        let all: Vec<(usize, &str)> = words(line).collect();
        let Some(size_end) = size_end(line) else { return false };
        let is_one_side = all.get(KEYS.len() - 1).is_some_and(|root| blank(line, *root));
        let mut numbers = all.iter().skip(1).zip(&self.breaks);
        is_one_side || numbers.all(|((at, word), end)| at + word.len() >= size_end + end)
    }

    /// Words behind the sides.
    fn tail(&self) -> usize {
        2 * usize::from(self.timestamp) + CHOICE.len() * usize::from(self.choice)
    }

    /// Whether more behind it may make this a row: its last word may be a part of one.
    pub(crate) fn begins_row(&self, line: &str) -> bool {
        let all: Vec<(usize, &str)> = words(line).collect();
        let Some((_, whole)) = all.split_last() else { return false };
        let is_number = |text: &str| text.parse::<u64>().is_ok();
        let is_size = all.iter().take(2).all(|(_, word)| is_number(word));
        let keys = whole.get(..KEYS.len()).is_none_or(|keys| keys_of(keys).is_ok());
        let numbers = whole.get(KEYS.len()..).unwrap_or_default();
        let is_one_side = all.get(KEYS.len() - 1).is_some_and(|root| blank(line, *root));
        let sides = if is_one_side { 1 } else { self.sides.len() };
        let numbers_max = sides * self.columns.len();
        let columns = self.columns.iter().cycle();
        let mut cells = columns.zip(numbers).take(numbers_max);
        let are_numbers = cells.all(|(column, word)| side_of(&[*column], &[*word]).is_ok());
        is_size && keys && are_numbers && all.len() <= KEYS.len() + numbers_max + self.tail()
    }

    /// Where a row begins in what a message ends with, if one does: its first five words stand
    /// nowhere else.
    pub(crate) fn row_within(&self, text: &str) -> Option<usize> {
        let all: Vec<(usize, &str)> = words(text).collect();
        let row = all.windows(KEYS.len()).find(|keys| keys_of(keys).is_ok())?;
        Some(row[0].0)
    }

    /// Reads a row, or `None` if it breaks off where it may: behind its root or its first side.
    pub fn row(&self, line: &str) -> Result<Option<Cells>, Mistake> {
        let all: Vec<(usize, &str)> = words(line).collect();
        if let Some((at, word)) = all.first().filter(|(_, word)| word.parse::<u64>().is_err()) {
            return Err((*at, format!("`{word}` begins neither a row nor a comment")));
        }
        let Some(keys) = all.get(..KEYS.len()) else {
            return Err((
                line.trim_end().len(),
                format!("a row ends before its {}", KEYS[all.len()]),
            ));
        };
        let mut cells = keys_of(keys)?;
        let tail = self.tail();
        let numbers = &all[KEYS.len()..];
        let width = self.columns.len();
        let full = self.sides.len() * width + tail;
        let sides: Vec<bool> = if numbers.len() == full {
            self.sides.clone()
        } else if self.sides.len() == 2 && numbers.len() == width + tail && blank(line, keys[4]) {
            vec![true]
        } else if numbers.is_empty() || (self.sides.len() == 2 && numbers.len() == width) {
            return Ok(None);
        } else {
            let (at, _) = numbers.get(full).or(numbers.last()).copied().unwrap_or((0, ""));
            let why = format!("{} numbers behind the root where {full} belong", numbers.len());
            return Err((at, why));
        };
        for (index, in_place) in sides.iter().enumerate() {
            let side = &numbers[index * width..(index + 1) * width];
            cells.sides.push((*in_place, side_of(&self.columns, side)?));
        }
        if self.choice {
            let words: Vec<&str> = all[all.len() - 3..].iter().map(|(_, word)| *word).collect();
            cells.choice = (words[0] != "N/A").then(|| words.join("/"));
        }
        Ok(Some(cells))
    }

    /// The sides of a row whose end is missing that are whole for sure: another word follows.
    pub(crate) fn row_cut_off(&self, line: &str) -> Option<Cells> {
        let all: Vec<(usize, &str)> = words(line).collect();
        let mut cells = keys_of(all.get(..KEYS.len())?).ok()?;
        let numbers = &all[KEYS.len()..];
        let width = self.columns.len();
        for (index, in_place) in self.sides.iter().enumerate() {
            let end = (index + 1) * width;
            if width == 0 || numbers.len() <= end {
                break;
            }
            cells
                .sides
                .push((*in_place, side_of(&self.columns, &numbers[index * width..end]).ok()?));
        }
        (!cells.sides.is_empty()).then_some(cells)
    }
}

/// Where the first word ends.
fn size_end(line: &str) -> Option<usize> {
    words(line).next().map(|(at, size)| at + size.len())
}

/// Whether a replay left out the first side: it prints 32 blanks in its place.
fn blank(line: &str, root: (usize, &str)) -> bool {
    let rest = &line[root.0 + root.1.len()..];
    rest.len() - rest.trim_start().len() > 32
}

/// Which sides there are.
fn places_of(places: &str, sides: usize) -> Result<Vec<bool>, Mistake> {
    let named = [places.contains("out-of-place"), places.contains("in-place")];
    match (sides, named) {
        (2, _) => Ok(vec![false, true]),
        (1, [true, false]) => Ok(vec![false]),
        (1, [false, true]) => Ok(vec![true]),
        (1, _) => Err((0, "one side, of which the line above does not say the place".to_owned())),
        _ => Err((0, format!("{sides} sides; nccl-tests has one or two"))),
    }
}

fn keys_of(keys: &[(usize, &str)]) -> Result<Cells, Mistake> {
    let whole = |(at, text): (usize, &str), what: &str| {
        text.parse::<u64>().map_err(|_| (at, format!("`{text}` is no {what}")))
    };
    let typed = |at: usize, error: BenchError| (at, error.to_string());
    let redop = match keys[3].1 {
        "none" => None,
        word => Some(word.parse().map_err(|error| typed(keys[3].0, error))?),
    };
    let root = match keys[4].1 {
        "-1" => None,
        text => Some(text.parse().map_err(|_| (keys[4].0, format!("`{text}` is no root")))?),
    };
    Ok(Cells {
        size: whole(keys[0], "size")?,
        count: whole(keys[1], "count")?,
        dtype: keys[2].1.parse().map_err(|error| typed(keys[2].0, error))?,
        redop,
        root,
        sides: Vec::new(),
        choice: None,
    })
}

fn side_of(columns: &[Column], words: &[(usize, &str)]) -> Result<Vec<Cell>, Mistake> {
    let cell = |(column, (at, text)): (&Column, &(usize, &str))| {
        let value = match *text {
            "N/A" | "nan" | "-nan" => None,
            text => match text.parse::<f64>() {
                Ok(value) if value.is_finite() => Some(value),
                _ => return Err((*at, format!("`{text}` is no number"))),
            },
        };
        if *column == Column::Wrong && value.is_some_and(|n| n < 0.0 || n.fract() != 0.0) {
            return Err((*at, format!("`{text}` is no number of elements")));
        }
        Ok((*column, value))
    };
    columns.iter().zip(words).map(cell).collect()
}
