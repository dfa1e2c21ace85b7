//! Rows and messages of the library in one line: nccl-tests prints a row in parts, and every rank
//! writes messages to the same file meanwhile.
//!
//! ```text
//!   8   2   float   sum   -1   25.55   0.00host:1:2 [0] NCCL INFO …      a row goes on below
//!   0.00       0
//! host:1:2 [0] NCCL INFO …      16   4   float   sum   -1   26.21   …    a row behind a message
//! ```
//!
//! What belongs to a row is put back together where that is certain: up to the name of a host that
//! the header has, or to where a column ends. How a message ends is not known, so that numbers
//! behind one in the same line are no part of a row, unless a row begins with them.

use super::layout::Layout;
use super::lines::message;

/// What tables end with, and messages do not.
const FOOTERS: [&str; 2] = ["# Out of bounds values", "# Avg bus bandwidth"];

/// A line without the message in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Split<'a> {
    /// Before the message.
    pub before: &'a str,
    /// Whether there is one.
    pub is_broken: bool,
    /// The row that begins behind it, or the table's end.
    pub behind: Option<&'a str>,
}

/// Splits a line, which goes on with a row of which `carried` is there already.
pub fn split<'a>(
    line: &'a str,
    carried: &str,
    layout: Option<&Layout>,
    hosts: &[&str],
) -> Split<'a> {
    let Some(message) = message(line) else {
        return Split { before: line, is_broken: false, behind: None };
    };
    let shared = message.word.clone();
    let of_columns = || {
        let joined = carried.to_owned() + &line[..shared.end];
        let word = carried.len() + shared.start..carried.len() + shared.end;
        Some(layout?.cut(&joined, word)? - carried.len())
    };
    let cut = match shared.start {
        // Nothing stands before it.
        0 => None,
        start => host_in(&line[shared.clone()], hosts).map(|at| start + at).or_else(of_columns),
    };
    let text = &line[message.text..];
    let row = layout.and_then(|layout| layout.row_within(text));
    let footer = FOOTERS.iter().filter_map(|footer| text.find(footer)).min();
    let behind = row.or(footer).map(|at| &text[at..]);
    Split { before: &line[..cut.unwrap_or(message.start)], is_broken: true, behind }
}

/// Where the longest name of a host begins in `HOST:PID:TID`, if a number may stand before it.
fn host_in(word: &str, hosts: &[&str]) -> Option<usize> {
    let name = word.rsplitn(3, ':').nth(2)?;
    let known = hosts.iter().filter(|host| !host.is_empty() && name.ends_with(*host));
    known.map(|host| name.len() - host.len()).min()
}

#[cfg(test)]
mod tests {
    use super::super::super::report::Report;
    use super::super::made::{Made, Style};
    use super::super::text::read;
    use super::*;

    const MESSAGE: &str = "node-a:1:2 [0] NCCL INFO Channel 00/16 : 0 1 2 3";

    fn whole() -> (String, Report) {
        let text = Made::example().text(&Style::default());
        let report = read(&text).unwrap();
        (text, report)
    }

    /// Byte ranges of the lines with rows.
    fn rows_of(text: &str) -> Vec<std::ops::Range<usize>> {
        let mut at = 0;
        let lines = text.split_inclusive('\n').map(|line| {
            at += line.len();
            at - line.len()..at - 1
        });
        lines.filter(|line| text[line.clone()].contains(" float ")).collect()
    }

    #[test]
    fn a_message_anywhere_in_a_row_changes_nothing() {
        let (text, report) = whole();
        for row in rows_of(&text) {
            for at in row.clone() {
                let broken = format!("{}{MESSAGE}\n{}", &text[..at], &text[at..]);
                let read = read(&broken).unwrap();
                assert_eq!(read.rows, report.rows, "{broken}");
                assert!(read.complete && read.skipped.is_empty(), "{broken}");
                // Those of several ranks.
                let broken = format!("{}{MESSAGE}\n{MESSAGE}\n{}", &text[..at], &text[at..]);
                assert_eq!(super::super::text::read(&broken).unwrap().rows, report.rows);
            }
        }
    }

    /// Of a host that no header names, where columns end.
    #[test]
    fn columns_tell_where_a_message_of_an_unknown_host_begins() {
        let (text, report) = whole();
        let unknown = MESSAGE.replace("node-a", "4other");
        for row in rows_of(&text) {
            let line = &text[row.clone()];
            let ends = (1..line.len())
                .filter(|&at| !line[..at].ends_with(' ') && line[at..].starts_with(' '));
            for end in ends.skip(1) {
                let at = row.start + end;
                let broken = format!("{}{unknown}\n{}", &text[..at], &text[at..]);
                let read = read(&broken).unwrap();
                assert_eq!(read.rows, report.rows, "{broken}");
                assert!(read.skipped.is_empty(), "{broken}");
            }
        }
    }

    #[test]
    fn a_row_behind_a_message_is_read() {
        let (text, report) = whole();
        for row in rows_of(&text) {
            let glued = format!("{}{MESSAGE} done{}", &text[..row.start], &text[row.start..]);
            let read = read(&glued).unwrap();
            assert_eq!(read.rows, report.rows, "{glued}");
            assert!(read.complete && read.skipped.is_empty(), "{glued}");
            // And broken once more.
            let at = row.start + 60;
            let both = format!(
                "{}{MESSAGE} done{}{MESSAGE}\n{}",
                &text[..row.start],
                &text[row.start..at],
                &text[at..]
            );
            let read = super::super::text::read(&both).unwrap();
            assert_eq!((&read.rows, &read.skipped[..]), (&report.rows, &[][..]), "{both}");
        }
    }

    #[test]
    fn a_table_may_end_behind_a_message() {
        let (text, report) = whole();
        let glued = text
            .replace("# Out of bounds values : 0 OK", "# Out of bounds values : 3 FAILED")
            .replace("# Out", &format!("{MESSAGE}# Out"))
            .replace("# Avg", &format!("{MESSAGE}# Avg"));
        let read = read(&glued).unwrap();
        assert_eq!(read.failures, ["line 22: Out of bounds values : 3 FAILED"]);
        assert!(read.complete && read.rows == report.rows, "{glued}");
    }

    #[test]
    fn a_row_that_cannot_be_put_together_is_named_and_the_others_are_read() {
        let (text, report) = whole();
        for (index, row) in rows_of(&text).into_iter().enumerate() {
            let at = row.start + 70;
            // The message has no end of its own.
            let broken = format!("{}{MESSAGE}{}", &text[..at], &text[at..]);
            let read = read(&broken).unwrap();
            let line = 19 + index;
            let why = format!("line {line}: a row that a message broke off; its rest is not known");
            assert_eq!(read.skipped, [why], "{broken}");
            assert!(read.complete, "{broken}");
            let others = report.rows.iter().enumerate().filter(|(i, _)| i / 2 != index);
            assert_eq!(read.rows, others.map(|(_, row)| row.clone()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn hosts_are_the_ends_of_words() {
        let hosts = ["node", "e-node"];
        assert_eq!(host_in("0.00node:1:2", &hosts), Some(4));
        assert_eq!(host_in("0.00e-node:1:2", &hosts), Some(4));
        assert_eq!(host_in("node:1:2", &hosts), Some(0));
        assert_eq!(host_in("0.00other:1:2", &hosts), None);
    }
}
