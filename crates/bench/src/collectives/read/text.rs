//! The output of nccl-tests and rccl-tests, also as it ends up in the log of a job.
//!
//! ```text
//! # nccl-tests version …           the program
//! # Collective test starting: …    the operation
//! # nThread … iters: 20 …          iterations
//! #  Rank  0 … on HOST device …    ranks, hosts and devices
//! #  size  count  type  redop …    columns: rows follow
//!    1024    256  float    sum …
//! # Avg bus bandwidth …            the table's end
//! ```
//!
//! This program's own tables have these columns, too, below `# muster VERSION`; their times are
//! medians, and a line `# N ranks, TRANSPORT, ordered` stands above each.
//!
//! A line `# error: …` below them has the library's last error, which is also what it only warned
//! of: a failure where the run has another sign of one.
//!
//! Several programs may follow each other. Known oddities: see [`super::lines`],
//! [`super::interleaved`] and [`super::layout`]; #wrong is `N/A` where nothing was checked; the
//! file may end anywhere. Between the columns' header and the end of a table nothing but rows,
//! comments, blank lines and messages of the library may come, and what [`super::launchers`] say,
//! mostly at the end. Anything else is refused there if the table goes on behind it; if not, the
//! log of the table ends with it. Elsewhere lines that begin like rows are refused, others passed
//! over.

use std::collections::BTreeSet;

use super::super::formula::Op;
use super::super::host::Host;
use super::super::report::{Report, Tool};
use super::super::row::{Check, Key, Row};
use super::super::stats::Times;
use super::interleaved::split;
use super::json::dotted;
use super::layout::{Cells, Column, Layout};
use super::lines::{untagged, words};
use crate::BenchError;

/// This program, as its tables begin.
const MUSTER: &str = "muster";
const UNVERSIONED: &str = "muster of unknown version";

/// The words of these programs when they give up.
const FAILURES: [&str; 4] =
    [": Test NCCL failure ", ": Test CUDA failure ", ": Test failure ", ": Test timeout "];

/// Of the rows of one table, beside what their columns say.
#[derive(Default)]
struct Stated {
    transport: Option<String>,
    algorithm: Option<String>,
    ordered: Option<bool>,
}

/// A line that is a mistake if the table goes on behind it, and else its end: of a program that
/// crashed, or of a row whose rest is lost.
struct Doubt {
    line: usize,
    column: usize,
    why: String,
    /// How far the tables had come.
    at: [usize; 3],
}

struct Reader {
    report: Report,
    op: Option<Op>,
    ranks: Option<usize>,
    /// The group whose ranks are counted: of several, all have the same number.
    group: Option<String>,
    /// Names of the hosts of all groups: messages may begin with them.
    names: BTreeSet<String>,
    /// The statements of this program's own tables above their columns.
    stated: Stated,
    iterations: Option<u64>,
    /// The comment before, which names the sides where columns follow.
    places: String,
    /// Inside a table.
    layout: Option<Layout>,
    /// The beginning of a row or comment that a message broke off, and its line.
    pending: String,
    begun: usize,
    /// Its last number has all its digits, if it was not cut off wrongly.
    is_of_column: bool,
    /// A launcher or a shell speaks: what is neither row nor comment is its text.
    is_ending: bool,
    /// The first line behind rows that is nothing of a table.
    doubt: Option<Doubt>,
    /// The rest of a row that was skipped may still come.
    has_skipped: bool,
    tables: usize,
    /// Tables with their end.
    ended: usize,
    failed: bool,
    /// The library's last warnings.
    last_words: Vec<String>,
    /// The number of the line that is read.
    line: usize,
}

/// Reads a log.
///
/// # Errors
/// [`BenchError::Read`]: no table, a table of an unknown operation or with unknown columns, or a
/// line in it that is no row.
pub fn read(text: &str) -> Result<Report, BenchError> {
    let tool = Tool { name: "nccl-tests".to_owned(), version: None, commit: None };
    let mut reader = Reader {
        report: Report::new(tool),
        op: None,
        ranks: None,
        group: None,
        names: BTreeSet::new(),
        stated: Stated::default(),
        iterations: None,
        places: String::new(),
        layout: None,
        pending: String::new(),
        begun: 1,
        is_of_column: false,
        is_ending: false,
        doubt: None,
        has_skipped: false,
        tables: 0,
        ended: 0,
        failed: false,
        last_words: Vec::new(),
        line: 1,
    };
    for (index, whole) in text.split_inclusive('\n').enumerate() {
        reader.line = index + 1;
        let line = whole.trim_end_matches(['\n', '\r']);
        let cut_off = !whole.ends_with('\n');
        let taken = reader.line(line, cut_off);
        let line = reader.line;
        taken.map_err(|(column, why)| BenchError::Read { line, column, why })?;
        let at = reader.place();
        if let Some(Doubt { line, column, why, .. }) = reader.doubt.take_if(|doubt| doubt.at != at)
        {
            return Err(BenchError::Read { line, column, why });
        }
    }
    if reader.tables == 0 {
        let why = "no table of nccl-tests or rccl-tests, and no report: a line `# size count type \
                   redop root time …` is missing";
        return Err(BenchError::Read { line: reader.line, column: 1, why: why.to_owned() });
    }
    let is_whole = reader.pending.is_empty() || is_comment(&reader.pending);
    let carried = std::mem::take(&mut reader.pending);
    let ended = reader.give_up(&carried);
    ended.map_err(|why| BenchError::Read { line: reader.begun, column: 1, why })?;
    if let Some(Doubt { line, why, .. }) = reader.doubt.take() {
        reader.failed = true;
        let end = format!("line {line}: {why}, and nothing of the table follows");
        reader.report.skipped.push(end);
    }
    reader.report.complete = reader.ended == reader.tables && !reader.failed && is_whole;
    reader.report.take_last_words(reader.last_words);
    Ok(reader.report)
}

/// A part of a line, without messages.
struct Part<'a> {
    text: &'a str,
    /// The byte of the line that it begins at.
    at: usize,
    /// Whether a message follows it, and whether it follows one.
    is_broken: bool,
    is_behind: bool,
    /// Whether the end of a column alone tells where it ends.
    is_of_column: bool,
    /// Whether the file ends within it.
    is_cut_off: bool,
}

fn is_comment(text: &str) -> bool {
    text.trim_start().starts_with('#')
}

/// Whether a comment begins here: a title of a column may begin with `#`, too.
fn begins_comment(text: &str) -> bool {
    let rest = text.trim_start().strip_prefix('#');
    rest.is_some_and(|rest| rest.chars().next().is_none_or(char::is_whitespace))
}

fn begins_with_a_digit(text: &str) -> bool {
    text.trim_start().starts_with(|c: char| c.is_ascii_digit())
}

/// Rows begin with two whole numbers, and nothing else does.
fn begins_like_a_row(text: &str) -> bool {
    words(text).take(2).filter(|(_, word)| word.parse::<u64>().is_ok()).count() == 2
}

impl Reader {
    /// Takes a line; a mistake is at a column, counted from 1.
    fn line(&mut self, line: &str, cut_off: bool) -> Result<(), (usize, String)> {
        let mut rest = Some(untagged(line));
        let mut is_behind = false;
        while let Some(text) = rest {
            let split = split(text, &self.pending, self.layout.as_ref(), &self.names);
            self.part(&Part {
                text: split.before,
                // Each goes to the end of the line.
                at: line.len() - text.len(),
                is_broken: split.is_broken,
                is_behind,
                is_of_column: split.is_of_column,
                is_cut_off: cut_off && !split.is_broken,
            })?;
            self.is_ending |= split.is_of_launcher;
            rest = split.behind;
            is_behind = true;
        }
        Ok(())
    }

    fn part(&mut self, part: &Part) -> Result<(), (usize, String)> {
        let at = part.at + 1;
        if part.text.trim().is_empty() {
            // The end of a line ends a comment.
            if is_comment(&self.pending) && !part.is_broken {
                return self.end_comment("").map_err(|(_, why)| (1, why));
            }
            if !self.pending.is_empty() {
                self.pending += part.text;
                self.is_of_column &= part.text.is_empty();
            }
            return Ok(());
        }
        let text = self.pending.clone() + part.text;
        if FAILURES.iter().any(|words| text.contains(words)) {
            self.pending.clear();
            self.failed = true;
            self.layout = None;
            return Ok(());
        }
        if is_comment(&self.pending) {
            if !begins_comment(part.text) && !begins_like_a_row(part.text) {
                if part.is_broken {
                    self.pending += part.text;
                    return Ok(());
                }
                return self.end_comment(part.text).map_err(|(_, why)| (1, why));
            }
            self.end_comment("").map_err(|(_, why)| (1, why))?;
        }
        let mut carried = std::mem::take(&mut self.pending);
        let is_of_column = std::mem::take(&mut self.is_of_column) && !carried.is_empty();
        if is_comment(part.text) {
            self.give_up(&carried).map_err(|why| (at, why))?;
            self.has_skipped = false;
            if part.is_broken {
                (self.pending, self.begun) = (part.text.to_owned(), self.line);
                return Ok(());
            }
            return self.comment(part.text).map_err(|(byte, why)| (at + byte, why));
        }
        if is_of_column && !part.text.starts_with(char::is_whitespace) {
            // More digits: those before were in part the message's.
            carried.clear();
            self.skip(self.begun);
        }
        let text = carried.clone() + part.text;
        self.row(part, (&carried, text)).or_else(|mistake| self.doubt(mistake))
    }

    /// Takes what is no comment: a row, of which `carried` was there before.
    fn row(&mut self, part: &Part, (carried, text): (&str, String)) -> Result<(), (usize, String)> {
        let at = part.at + 1;
        let is_row = begins_like_a_row(&text);
        let Some(layout) = &self.layout else {
            return match is_row {
                true => Err((at, "a row before the names of its columns".to_owned())),
                false => Ok(()),
            };
        };
        if part.is_cut_off {
            // Its last number may have lost digits.
            self.failed = true;
            if let Some(cells) = layout.row_cut_off(&text) {
                self.rows(cells);
            }
            return Ok(());
        }
        let has_skipped = std::mem::take(&mut self.has_skipped);
        let may_lack = part.is_broken || part.is_behind;
        let begun = if carried.is_empty() { self.line } else { self.begun };
        // Its first digits may be lost.
        let is_rest = has_skipped && carried.is_empty() && !text.starts_with(char::is_whitespace);
        let reaches = carried.is_empty() || layout.reaches_columns(&text);
        let is_filled = layout.is_filled(&text) && !part.is_of_column && reaches;
        let is_theirs = self.is_ending && !begins_like_a_row(part.text);
        match layout.row(&text) {
            Ok(_) if is_rest => self.skip(self.line),
            Ok(Some(_)) if !may_lack && !reaches => self.skip(begun),
            Ok(Some(cells)) if !may_lack || is_filled => self.rows(cells),
            _ if is_theirs && !layout.begins_row(&text) => self.put_back(carried, has_skipped),
            Ok(_) => self.keep(part, text, begun),
            Err(_) if may_lack && layout.begins_row(&text) => self.keep(part, text, begun),
            Err(_) if is_theirs => self.put_back(carried, has_skipped),
            Err(_) if !carried.is_empty() => {
                self.give_up(carried).map_err(|why| (at, why))?;
                // A part that is no row by itself may be the rest of one.
                if self.row(part, ("", part.text.to_owned())).is_err() {
                    self.skip(self.line);
                }
            }
            Err((byte, why)) if !has_skipped && !may_lack => return Err((at + byte, why)),
            Err(_) if is_row || !has_skipped && begins_with_a_digit(&text) => self.skip(self.line),
            // The rest of what was skipped, or something else before a message.
            Err(_) => self.has_skipped = has_skipped && part.is_broken,
        }
        Ok(())
    }

    /// How far the tables have come.
    fn place(&self) -> [usize; 3] {
        [self.report.rows.len(), self.tables, self.ended]
    }

    /// A line that is no row is a mistake at once only where no row of the table was before it.
    fn doubt(&mut self, (column, why): (usize, String)) -> Result<(), (usize, String)> {
        if self.layout.is_none() || self.report.rows.is_empty() {
            return Err((column, why));
        }
        self.is_ending = true;
        let (line, at) = (self.line, self.place());
        self.doubt.get_or_insert(Doubt { line, column, why, at });
        Ok(())
    }

    /// Keeps the beginning of a row until its rest comes.
    fn keep(&mut self, part: &Part, text: String, begun: usize) {
        (self.pending, self.begun, self.is_of_column) = (text, begun, part.is_of_column);
    }

    /// Leaves what there was of a row as it was before a line that is not its own.
    fn put_back(&mut self, carried: &str, has_skipped: bool) {
        carried.clone_into(&mut self.pending);
        self.has_skipped = has_skipped;
    }

    /// Takes what was broken off and has no rest: a row only if nothing is missing.
    fn give_up(&mut self, carried: &str) -> Result<(), String> {
        if is_comment(carried) {
            carried.clone_into(&mut self.pending);
            return self.end_comment("").map_err(|(_, why)| why);
        }
        let whole = self.layout.as_ref().filter(|layout| layout.reaches_columns(carried));
        match whole.map(|layout| layout.row(carried)) {
            Some(Ok(Some(cells))) => self.rows(cells),
            _ if carried.is_empty() => {}
            _ => self.skip(self.begun),
        }
        Ok(())
    }

    fn skip(&mut self, line: usize) {
        let why = format!("line {line}: a row that a message broke off; its rest is not known");
        self.report.skipped.push(why);
        self.has_skipped = true;
    }

    /// Takes the comment that a message broke off, as it goes on: it is told with the line where
    /// it began.
    fn end_comment(&mut self, rest: &str) -> Result<(), (usize, String)> {
        let whole = std::mem::take(&mut self.pending) + rest;
        let line = std::mem::replace(&mut self.line, self.begun);
        self.comment(&whole)?;
        self.line = line;
        Ok(())
    }

    /// Takes a line that begins with `#`; a mistake is at a byte of it.
    fn comment(&mut self, text: &str) -> Result<(), (usize, String)> {
        self.is_ending = false;
        let body = text.trim_start().trim_start_matches('#').trim();
        let mut all = body.split_whitespace();
        match (all.next(), all.next()) {
            (Some("nccl-tests" | "rccl-tests"), Some("version")) => self.program(body),
            (Some(MUSTER), Some(version)) if is_version(version) || body == UNVERSIONED => {
                self.report.tool.name = MUSTER.to_owned();
                self.report.tool.version = Some(version.to_owned()).filter(|v| is_version(v));
            }
            (Some("incomplete:"), _) if self.is_own() => self.failed = true,
            (Some("cpus"), Some(_)) if self.is_own() => {
                self.report.cpus = Some(body["cpus".len()..].trim().to_owned());
            }
            (Some(library), Some(version))
                if self.is_own() && self.op.is_none() && is_version(version) =>
            {
                self.report.libraries.insert(library.to_owned(), version.to_owned());
            }
            (Some("Collective"), Some("test")) => self.test(body),
            (Some("nThread"), _) => {
                let iterations = body.split(" iters: ").nth(2).and_then(|rest| {
                    rest.split_whitespace().next().and_then(|number| number.parse().ok())
                });
                self.iterations = iterations;
            }
            (Some("Using"), Some("devices")) => {
                (self.ranks, self.group) = (None, None);
                self.report.hosts.clear();
            }
            (Some("Rank"), Some(_)) => self.rank(body)?,
            (Some(n), Some("ranks," | "ranks")) if n.parse::<usize>().is_ok() => {
                self.ranks = n.parse().ok();
                self.stated = stated(body);
            }
            (Some("size"), Some("count")) => return self.table(text),
            (Some("Out"), Some("of")) => {
                let verdict = body.split_once(':').map_or("", |(_, verdict)| verdict.trim());
                // It may be lost, and says nothing then.
                let number = verdict.split_whitespace().next().unwrap_or("0");
                let is_good = number == "0" && !verdict.ends_with("FAILED");
                // This program's counts rows, which say it themselves.
                if !is_good && !self.is_own() {
                    let said = self.said(body);
                    self.report.failures.push(said);
                }
            }
            (Some("error:"), Some(_)) => {
                let said = self.said(body);
                self.last_words.push(said);
            }
            (Some("Avg"), Some("bus")) => {
                self.ended += usize::from(self.layout.take().is_some());
            }
            _ => {}
        }
        self.places = text.to_owned();
        Ok(())
    }

    /// Whether this program wrote what is read.
    fn is_own(&self) -> bool {
        self.report.tool.name == MUSTER
    }

    /// With its line.
    fn said(&self, said: &str) -> String {
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("line {}: {said}", self.line)
    }

    /// `nccl-tests version V nccl-headers=N nccl-library=N`.
    fn program(&mut self, body: &str) {
        let mut all = body.split_whitespace();
        let name = all.next().unwrap_or_default().to_owned();
        self.report.tool.version = all.nth(1).map(str::to_owned);
        self.report.tool.name = name;
        for word in all {
            let Some((library, number)) = word.split_once("-library=") else { continue };
            if let Ok(number) = number.parse() {
                self.report.libraries.insert(library.to_owned(), dotted(number));
            }
        }
    }

    /// `Collective test starting: NAME`; an unknown name is told where its table comes.
    fn test(&mut self, body: &str) {
        if let Some(name) = body.strip_prefix("Collective test starting:") {
            self.op = name.trim().parse().ok();
            self.layout = None;
            self.stated = Stated::default();
        }
    }

    /// `Rank R Group G Pid P on HOST device D [BUS] NAME`; one that is cut off makes their number
    /// unknown, and one that comes twice is that of another run.
    fn rank(&mut self, body: &str) -> Result<(), (usize, String)> {
        let all: Vec<&str> = body.split_whitespace().collect();
        let after = |name: &str| {
            all.iter().position(|word| *word == name).and_then(|at| all.get(at + 1)).copied()
        };
        let rank = after("Rank").and_then(|rank| rank.parse::<usize>().ok());
        let (Some(rank), Some(host), Some(device)) = (rank, after("on"), body.split_once("] "))
        else {
            self.ranks = None;
            self.group = Some(String::new());
            return Ok(());
        };
        self.names.insert(host.to_owned());
        let group = after("Group").unwrap_or("0").to_owned();
        if *self.group.get_or_insert_with(|| group.clone()) != group {
            return Ok(());
        }
        if self.report.hosts.iter().any(|known| known.ranks.contains(&rank)) {
            let why = format!(
                "rank {rank} for the second time: the log is of several runs at once, each on its \
                 own; build nccl-tests with MPI=1, so that they become one"
            );
            return Err((0, why));
        }
        self.ranks = Some(self.ranks.unwrap_or(0) + 1);
        let device = device.1.to_owned();
        match self.report.hosts.iter_mut().find(|known| known.name == host) {
            Some(known) => {
                known.ranks.push(rank);
                known.devices.push(device);
            }
            None => {
                let name = host.to_owned();
                self.report.hosts.push(Host {
                    name,
                    ranks: vec![rank],
                    devices: vec![device],
                    cpus: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// The line of columns.
    fn table(&mut self, titles: &str) -> Result<(), (usize, String)> {
        if self.op.is_none() {
            let known = Op::ALL.iter().filter_map(|op| op.program()).collect::<Vec<_>>().join(", ");
            let why = format!(
                "a table of an operation that is not named; write the line `# Collective test \
                 starting: NAME` above it, where NAME is one of {known}"
            );
            return Err((0, why));
        }
        self.layout = Some(Layout::of(titles, &self.places)?);
        self.tables += 1;
        // Of several programs in one file the first says how many ranks there are.
        self.report.ranks = self.report.ranks.or(self.ranks);
        Ok(())
    }

    fn rows(&mut self, cells: Cells) {
        self.is_ending = false;
        let Some(op) = self.op else { return };
        for (in_place, side) in &cells.sides {
            let number = |column: Column| {
                side.iter().find(|(known, _)| *known == column).and_then(|(_, value)| *value)
            };
            let host_time = side.iter().any(|(column, _)| *column == Column::HostTime);
            let time = number(if host_time { Column::HostTime } else { Column::Time });
            let (p50_us, mean_us) = if self.is_own() { (time, None) } else { (None, time) };
            let times = Times {
                p50_us,
                mean_us,
                min_us: number(Column::Min),
                max_us: number(Column::Max),
                p99_us: number(Column::P99),
                cv_pct: number(Column::CvPct),
                iterations: self.iterations,
                host_time,
                ..Times::default()
            };
            // A side that was not measured has no numbers at all.
            if side.iter().all(|(_, value)| value.is_none()) {
                continue;
            }
            let key = Key {
                op,
                dtype: cells.dtype,
                redop: cells.redop.filter(|_| op.reduces()),
                root: cells.root,
                ranks: self.ranks,
                bytes: cells.size,
                in_place: *in_place,
                algorithm: self.stated.algorithm.clone(),
                transport: self.stated.transport.clone(),
                ordered: self.stated.ordered,
            };
            let wrong = number(Column::Wrong);
            self.report.rows.push(Row {
                algbw_gb_per_s: number(Column::AlgBw),
                busbw_gb_per_s: number(Column::BusBw),
                check: wrong.map(|n| Check { wrong: n as u64, ..Check::default() }),
                chosen: cells.choice.clone(),
                ..Row::new(key, Some(cells.count), times)
            });
        }
    }
}

/// `N ranks, TRANSPORT, ALGORITHM, ordered`, of which only the first is always there.
fn stated(body: &str) -> Stated {
    let mut stated = Stated::default();
    for word in body.split(',').skip(1).map(str::trim) {
        match word {
            "ordered" => stated.ordered = Some(true),
            "unordered" => stated.ordered = Some(false),
            word if stated.transport.is_none() => stated.transport = Some(word.to_owned()),
            word => stated.algorithm = Some(word.to_owned()),
        }
    }
    stated
}

/// `2.30.7`
fn is_version(word: &str) -> bool {
    word.contains('.') && word.split('.').all(|part| part.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests;
