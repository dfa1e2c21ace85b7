//! Reports of this and of other programs, told apart by what they contain.
//!
//! ```text
//! { … "schema": …            Muster's JSON                                  Report::from_json
//! { … "version": …           nccl-tests' and rccl-tests' JSON (-J)          json
//! [ { "numCycle": …          rccl-tests' JSON (-Z json -X)                  reporter
//! numCycle,collective, …     rccl-tests' CSV (-Z csv -X)                    reporter
//! … bytes, … in_place, …     Muster's CSV, by the names of its columns      csv
//! anything else              what nccl-tests, rccl-tests and Muster print   text
//! ```
//!
//! Each reader takes what these programs are known to write, with the oddities that its header
//! lists, and refuses everything else with line and column. Formats as of nccl-tests 2.19.6 and
//! rccl-tests 2.17.9.

mod csv;
mod cut;
mod interleaved;
mod json;
mod launchers;
mod layout;
mod lines;
#[cfg(test)]
mod made;
mod reporter;
mod text;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::merge::merge_repeats;
use super::report::Report;
use crate::BenchError;

/// Which program wrote a file, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Muster,
    /// nccl-tests' and rccl-tests' `-J`.
    PerfJson,
    /// rccl-tests' `-Z json`.
    ReporterJson,
    /// rccl-tests' `-Z csv`.
    ReporterCsv,
    MusterCsv,
    /// The tables that nccl-tests, rccl-tests and Muster print.
    Text,
}

/// Keys that tell JSON files apart.
#[derive(Deserialize)]
struct Probe {
    schema: Option<IgnoredAny>,
    version: Option<IgnoredAny>,
}

/// Tells the format.
///
/// # Errors
/// [`BenchError::Read`]: nothing is in it, or it is JSON of another kind or damaged.
pub(crate) fn detect(text: &str) -> Result<Format, BenchError> {
    let start = text.trim_start();
    let refuse = |why: &str| Err(BenchError::Read { line: 1, column: 1, why: why.to_owned() });
    if start.is_empty() {
        return refuse("an empty file; give a report or the output of nccl-tests");
    }
    if start.starts_with('{') {
        let probe: Probe = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
        return match (probe.schema, probe.version) {
            (Some(_), _) => Ok(Format::Muster),
            (None, Some(_)) => Ok(Format::PerfJson),
            (None, None) => refuse(
                "JSON that is no report: it has neither `schema`, as Muster's, nor `version`, as \
                 nccl-tests'",
            ),
        };
    }
    // A tag of MPI begins with a bracket, too.
    let after_bracket = start.strip_prefix('[').map(str::trim_start);
    if after_bracket.is_some_and(|rest| rest.starts_with(['{', ']'])) {
        return Ok(Format::ReporterJson);
    }
    Ok(match start {
        start if start.starts_with("numCycle,") => Format::ReporterCsv,
        start if csv::is_header(start.lines().next().unwrap_or_default()) => Format::MusterCsv,
        _ => Format::Text,
    })
}

/// Reads a report in any of the formats. Bytes that are no UTF-8 are replaced, colours left out;
/// JSON that ends too early is read up to its last whole row, and is not complete.
///
/// Cases that were measured several times are one row, by their median.
///
/// # Errors
/// [`BenchError::Read`] with line and column.
pub fn read(bytes: &[u8]) -> Result<Report, BenchError> {
    let text = String::from_utf8_lossy(bytes);
    let text = lines::uncoloured(text.trim_start_matches('\u{feff}'));
    let closed = cut::closed(&text);
    let (text, is_cut) = (closed.as_deref().unwrap_or(&text), closed.is_some());
    let mut report = match detect(text)? {
        Format::Muster => Report::from_json(text)?,
        Format::PerfJson => json::read(text)?,
        Format::ReporterJson => reporter::read_json(text)?,
        Format::ReporterCsv => reporter::read_csv(text)?,
        Format::MusterCsv => csv::read(text.trim_start())?,
        Format::Text => text::read(text)?,
    };
    report.complete &= !is_cut;
    report.rows = merge_repeats(report.rows);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::report::tests::full;
    use super::made::{Made, Style};
    use super::*;

    #[test]
    fn formats_are_known_by_what_is_in_them() {
        let made = Made::example();
        let style = Style::default();
        let tagged = Style { tag: "[1,0]<stdout>: ".into(), ..style.clone() };
        for (text, format) in [
            (full().to_json().unwrap(), Format::Muster),
            (made.json(), Format::PerfJson),
            (made.reporter_json(true), Format::ReporterJson),
            ("[\n]\n".to_owned(), Format::ReporterJson),
            (made.reporter_csv(false), Format::ReporterCsv),
            (full().csv(), Format::MusterCsv),
            // Columns may stand in any order, and one may be missing.
            ("bytes,\"in_place\",dtype,op\n".to_owned(), Format::MusterCsv),
            (full().csv().replacen("op,", "", 1), Format::MusterCsv),
            (made.text(&style), Format::Text),
            (made.text(&tagged), Format::Text),
        ] {
            assert_eq!(detect(&text).unwrap(), format, "{text}");
        }
        for (text, words) in
            [(" \n", "empty"), ("{\"a\": 1}", "neither"), ("{\"schema\"", "line 1, column 9")]
        {
            let message = detect(text).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }

    /// Every valid file of every format.
    fn corpus() -> Vec<String> {
        let made = Made::example();
        let log = Style { log: true, per_iteration: true, timestamp: true, ..Style::default() };
        let amd = Style { hip_events: true, choice: true, ..Style::default() };
        vec![
            full().to_json().unwrap(),
            made.json(),
            made.reporter_json(true),
            made.reporter_json(false),
            made.reporter_csv(true),
            made.reporter_csv(false),
            made.text(&Style::default()),
            made.text(&log),
            made.text(&amd),
            full().csv(),
            super::super::table::table(&full()),
        ]
    }

    #[test]
    fn files_that_end_early_never_panic() {
        for text in corpus() {
            for end in 0..text.len() {
                let _ = read(&text.as_bytes()[..end]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn damaged_files_never_panic(
            file in 0_usize..11,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
            kind in 0_u8..4,
        ) {
            let mut bytes = corpus()[file].clone().into_bytes();
            for (place, byte) in damage {
                let at = place.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 if bytes.len() > 1 => { bytes.remove(at); }
                    _ => {
                        // A part comes twice.
                        let from = cut.index(bytes.len());
                        let part = bytes[from.min(at)..from.max(at)].to_vec();
                        bytes.splice(at..at, part);
                    }
                }
            }
            let _ = read(&bytes);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn random_lines_of_a_log_never_panic(
            lines in prop::collection::vec(
                prop::sample::select(vec![
                    "# Collective test starting: all_gather_perf",
                    "#                      out-of-place                 in-place",
                    "#  size count type redop root time algbw busbw #wrong time algbw busbw #wrong",
                    "#  Rank  0 Group  0 Pid 1 on h device  0 [0000:01:00] GPU",
                    "           8             2     float     sum      -1",
                    "           8             2     float     sum      -1h:1:2 [0] NCCL INFO x",
                    "    1.00    0.01    0.01       0     1.00    0.01    0.01       0",
                    "h:1:2 [0] NCCL INFO channel 00/02",
                    "# Avg bus bandwidth    : 1",
                    "é 8", "[1,0]<stdout>:", "8 8 float", "-",
                ]),
                0..12,
            ),
        ) {
            let _ = read(lines.join("\n").as_bytes());
        }
    }
}
