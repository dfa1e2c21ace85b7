//! Several traces as one: parts of ranks, and files of hosts.
//!
//! Lines are copied as they are, since all times are on one clock. What is new are arrows, from the
//! rank that came last to an operation to every other that waited for it there, and `otherData`,
//! which says what is known of the clocks and what is lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chrome::{LOST, Micros, OPENING, OPERATION, RANK};
use crate::console::plural;
use crate::error::CliError;

/// Between the events and the end of a file, in a line of its own.
const CLOSING: &str = "],";

/// The contents of a trace, added up.
#[derive(Debug, Default, PartialEq)]
pub struct Merged {
    /// The record of each rank about itself, and the file it was in.
    ranks: BTreeMap<usize, (Value, PathBuf)>,
    pub spans: u64,
    /// It has none, and the file that was there is still there.
    pub keeps_file: bool,
    /// Lost spans by rank and track.
    lost: BTreeMap<(usize, u32), u64>,
    /// Files whose last line was cut off.
    torn: Vec<PathBuf>,
}

/// As much of an event as is looked at.
#[derive(Deserialize)]
struct Event {
    name: String,
    ph: String,
    pid: usize,
    #[serde(default)]
    tid: u32,
    #[serde(default)]
    cat: String,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Value,
}

/// An operation as one member had it.
#[derive(Debug, Clone, Copy)]
struct Member {
    rank: usize,
    track: u32,
    begin_ns: u64,
    end_ns: u64,
}

/// By group, number and name: the members that were seen.
type Operations = BTreeMap<(String, u64, String), Vec<Member>>;

/// Merges traces into one file, compressed if its name ends in `.gz`. Nothing takes the place of
/// something: where there are no spans, a file that is there stays as it is.
///
/// # Errors
/// Files that cannot be read or written, or are no traces, or have none; a rank that is in two of
/// them; ranks of two runs.
pub fn merge(from: &[PathBuf], into: &Path) -> Result<Merged, CliError> {
    check(from, into)?;
    let (mut merged, mut operations) = (Merged::default(), Operations::new());
    // Twice, so that events need not be in memory, and what is wrong is known before.
    for path in from {
        let mut add = |_: &str, event: Event| {
            merged.add(path, &event)?;
            note(&mut operations, event);
            Ok(())
        };
        if read(path, &mut add)? {
            merged.torn.push(path.clone());
        }
    }
    if merged.ranks.is_empty() {
        let names: Vec<String> = from.iter().map(|path| path.display().to_string()).collect();
        let names = names.join(", ");
        return Err(CliError::mistake(format!("no rank has a trace in {names}")));
    }
    merged.keeps_file = merged.spans == 0 && into.is_file();
    if merged.keeps_file {
        return Ok(merged);
    }
    let other = json!({"displayTimeUnit": "ms", "otherData": merged.other()}).to_string();
    crate::out_file::write_with(into, &mut |out| {
        if !is_gzip(into) {
            return copy(from, &operations, &other, out);
        }
        let mut encoder = GzEncoder::new(out, Compression::default());
        copy(from, &operations, &other, &mut encoder)?;
        encoder.finish().map(drop)
    })?;
    Ok(merged)
}

/// Whether the files can be read twice, the second time while the other is written.
fn check(from: &[PathBuf], into: &Path) -> Result<(), CliError> {
    let of = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let written = std::fs::metadata(into).ok().map(of);
    for path in from {
        let meta = std::fs::metadata(path).map_err(|error| CliError::file("read", path, &error))?;
        let name = path.display();
        if !meta.is_file() {
            let why = format!("{name} is no regular file, and is read twice; save it in one first");
            return Err(CliError::mistake(why));
        }
        if written == Some(of(meta)) {
            let why = format!("{name} is read and cannot be written, too; name another file");
            return Err(CliError::mistake(why));
        }
    }
    Ok(())
}

/// Writes all events, then arrows, then what is known of the whole.
fn copy(
    from: &[PathBuf],
    operations: &Operations,
    other: &str,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let mut events = Events { out, separator: "{\"traceEvents\":[\n" };
    for path in from {
        let mut failure = None;
        let copied = read(path, &mut |line, _| {
            events.write(line).map_err(|error| {
                let told = CliError::file("write", path, &error);
                failure = Some(error);
                told
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        copied.map_err(|error| std::io::Error::other(error.message))?;
    }
    arrows(operations, &mut events)?;
    write!(events.out, "\n{CLOSING}\n{}\n", other.trim_start_matches('{'))
}

/// Events, a line each.
struct Events<'a> {
    out: &'a mut dyn Write,
    /// Before the next one.
    separator: &'static str,
}

impl Events<'_> {
    fn write(&mut self, event: &str) -> std::io::Result<()> {
        self.out.write_all(std::mem::replace(&mut self.separator, ",\n").as_bytes())?;
        self.out.write_all(event.as_bytes())
    }
}

fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"))
}

/// Tells every event but arrows, which are made anew; whether the last line was cut off.
fn read(
    path: &Path,
    tell: &mut dyn FnMut(&str, Event) -> Result<(), CliError>,
) -> Result<bool, CliError> {
    let failed = |error: std::io::Error| CliError::file("read", path, &error);
    let file = File::open(path).map_err(failed)?;
    let plain: Box<dyn Read> =
        if is_gzip(path) { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let (mut reader, mut line, mut number) = (BufReader::new(plain), String::new(), 0);
    loop {
        line.clear();
        number += 1;
        if reader.read_line(&mut line).map_err(failed)? == 0 {
            return Ok(false);
        }
        let text = line.trim_end_matches(['\n', ',']);
        match text {
            CLOSING_START => return Ok(false),
            OPENING | "{\"traceEvents\":[" if number == 1 => continue,
            _ if number == 1 => {}
            "" => continue,
            _ => match serde_json::from_str::<Event>(text) {
                Ok(event) if matches!(&event.ph[..], "s" | "f") => continue,
                Ok(event) => {
                    tell(text, event)?;
                    continue;
                }
                // A rank was killed while it wrote.
                Err(_) if !line.ends_with('\n') => return Ok(true),
                Err(_) => {}
            },
        }
        return Err(CliError::mistake(format!(
            "{}, line {number}, is no line of a trace that muster wrote; merge such files alone",
            path.display()
        )));
    }
}

/// [`CLOSING`] without its comma.
const CLOSING_START: &str = "]";

impl Merged {
    pub fn ranks(&self) -> usize {
        self.ranks.len()
    }

    fn add(&mut self, path: &Path, event: &Event) -> Result<(), CliError> {
        match (&event.ph[..], &event.name[..]) {
            ("X", _) => self.spans += 1,
            ("M", RANK) => {
                self.is_of_run(path, event)?;
                let entry = (event.args.clone(), path.to_owned());
                if let Some((_, before)) = self.ranks.insert(event.pid, entry) {
                    return Err(CliError::mistake(format!(
                        "rank {} is in {} and in {}; merge files of one run, each once",
                        event.pid,
                        before.display(),
                        path.display()
                    )));
                }
            }
            ("M", LOST) => {
                let spans = event.args["spans"].as_u64().unwrap_or(0);
                let lost = self.lost.entry((event.pid, event.tid)).or_default();
                *lost = lost.saturating_add(spans);
            }
            _ => {}
        }
        Ok(())
    }

    /// Ranks of one run have one moment at which time begins, to the nanosecond.
    fn is_of_run(&self, path: &Path, event: &Event) -> Result<(), CliError> {
        let origin = |rank: &Value| rank["origin_ns"].as_u64();
        let Some((known, (first, before))) = self.ranks.first_key_value() else { return Ok(()) };
        match origin(first).zip(origin(&event.args)) {
            Some((first, this)) if first != this => Err(CliError::mistake(format!(
                "rank {known} in {} and rank {} in {} are of two runs, whose clocks begin at other \
                 times; merge files of one run",
                before.display(),
                event.pid,
                path.display()
            ))),
            _ => Ok(()),
        }
    }

    fn other(&self) -> Value {
        let ranks: Vec<&Value> = self.ranks.values().map(|(rank, _)| rank).collect();
        let lost: Vec<Value> = self
            .lost
            .iter()
            .map(|((rank, track), spans)| json!({"rank": rank, "tid": track, "spans": spans}))
            .collect();
        json!({"ranks": ranks, "lost": lost})
    }

    /// The gaps of the trace, of so many ranks, in words.
    pub fn warnings(&self, ranks: usize) -> Vec<String> {
        let mut all = Vec::new();
        if self.ranks.len() < ranks {
            let there = plural(self.ranks.len(), "rank");
            all.push(format!("the trace has {there} of {ranks}; the others had begun none"));
        }
        if self.spans == 0 {
            let what = "no step of --trace-steps was taken, or no timed launch";
            let stays = if self.keeps_file { "; the file is left as it was" } else { "" };
            all.push(format!("the trace is empty: {what}{stays}"));
        }
        let mut of_rank = BTreeMap::<usize, u64>::new();
        for ((rank, _), spans) in &self.lost {
            *of_rank.entry(*rank).or_default() += spans;
        }
        for (rank, spans) in of_rank {
            all.push(format!(
                "{spans} spans of rank {rank} are not in the trace: they came faster than they \
                 could be written; write the trace to a faster disk"
            ));
        }
        for path in &self.torn {
            all.push(format!("the last line of {} was cut off and is left out", path.display()));
        }
        all
    }
}

/// Remembers an operation of a channel or group.
fn note(operations: &mut Operations, event: Event) {
    if event.cat != OPERATION {
        return;
    }
    let ns = |us: f64| (us * 1e3).round() as u64;
    let (begin_ns, end_ns) = (ns(event.ts), ns(event.ts).saturating_add(ns(event.dur)));
    let group = event.args["group"].as_str().unwrap_or_default().to_owned();
    let sequence = event.args["sequence"].as_u64().unwrap_or(0);
    let member = Member { rank: event.pid, track: event.tid, begin_ns, end_ns };
    operations.entry((group, sequence, event.name)).or_default().push(member);
}

/// From the member that came last to an operation to all others, which could not end before.
fn arrows(operations: &Operations, events: &mut Events) -> std::io::Result<()> {
    let mut number = 0;
    for ((_, _, name), members) in operations {
        let Some(last) = members.iter().max_by_key(|member| member.begin_ns) else { continue };
        for other in members.iter().filter(|other| other.rank != last.rank) {
            // Inside the span that it ends at; clocks of hosts may be apart by more.
            let at = other.end_ns.saturating_sub(1);
            if at < last.begin_ns || at < other.begin_ns {
                continue;
            }
            number += 1;
            let name = Value::from(&name[..]);
            for (end, member, ns) in
                [("\"s\"", last, last.begin_ns), ("\"f\",\"bp\":\"e\"", other, at)]
            {
                let (ts, Member { rank, track, .. }) = (Micros(ns), member);
                events.write(&format!(
                    "{{\"name\":{name},\"cat\":\"waits for\",\"ph\":{end},\"id\":{number},\
                     \"ts\":{ts},\"pid\":{rank},\"tid\":{track}}}"
                ))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
