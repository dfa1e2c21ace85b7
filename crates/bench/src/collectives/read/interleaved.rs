//! Rows and messages of the library in one line: nccl-tests prints a row in parts, and every rank
//! writes messages to the same file meanwhile.
//!
//! ```text
//!   8   2   float   sum   -1   25.55   0.00host:1:2 [0] NCCL INFO …      a row goes on below
//!   0.00       0
//! host:1:2 [0] NCCL INFO …      16   4   float   sum   -1   26.21   …    a row behind a message
//! ```
//!
//! The parts of a row are put back together where that is certain: up to the name of a host that
//! the header has, to the date before a message, or to where a column ends. How a message ends is
//! not known, so that numbers behind one in the same line are no part of a row, unless a row begins
//! with them.

use std::collections::BTreeSet;

use super::launchers::launcher;
use super::layout::Layout;
use super::lines::message;

/// Beginnings of lines at the end of tables, and of no message.
const FOOTERS: [&str; 2] = ["# Out of bounds values", "# Avg bus bandwidth"];

/// A line without the message in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Split<'a> {
    /// Before the message.
    pub before: &'a str,
    /// Whether there is one.
    pub is_broken: bool,
    /// Whether it is of a launcher or a shell, and no library's.
    pub is_of_launcher: bool,
    /// Whether `before` ends where a column does because nothing else tells its end: then it has
    /// all digits of its last number, or some of the message's.
    pub is_of_column: bool,
    /// The row that begins behind it, or the table's end.
    pub behind: Option<&'a str>,
}

/// Splits a line, which goes on with a row of which `carried` is there already.
pub fn split<'a>(
    line: &'a str,
    carried: &str,
    layout: Option<&Layout>,
    hosts: &BTreeSet<String>,
) -> Split<'a> {
    let Some(message) = message(line) else {
        let said = layout.and_then(|_| launcher(line));
        return Split {
            before: &line[..said.unwrap_or(line.len())],
            is_broken: said.is_some(),
            is_of_launcher: said.is_some(),
            is_of_column: false,
            behind: None,
        };
    };
    let shared = message.word.clone();
    let of_columns = || {
        let joined = carried.to_owned() + &line[..shared.end];
        let word = carried.len() + shared.start..carried.len() + shared.end;
        Some(layout?.cut(&joined, word)? - carried.len())
    };
    let of_host = || host_in(&line[shared.clone()], hosts).map(|at| shared.start + at);
    let (cut, is_of_column) = match shared.start {
        // A date stands before the host's name: no number shares a word with it.
        start if start != message.start => (None, false),
        0 => (of_host().filter(|at| may_go_on(&line[..*at], carried)), false),
        _ => match of_host() {
            Some(at) => (Some(at), false),
            None => of_columns().map_or((None, false), |at| (Some(at), true)),
        },
    };
    let text = &line[message.text..];
    let row = layout.and_then(|layout| layout.row_within(text));
    let footer = FOOTERS.iter().filter_map(|footer| text.find(footer)).min();
    let behind = row.or(footer).map(|at| &text[at..]);
    let before = &line[..cut.unwrap_or(message.start)];
    Split { before, is_broken: true, is_of_launcher: false, is_of_column, behind }
}

/// Whether a line that begins so goes on with `carried`, or begins a comment.
fn may_go_on(start: &str, carried: &str) -> bool {
    let is_of_number = |c: char| c.is_ascii_digit() || ".-+e".contains(c);
    start == "#" || !carried.is_empty() && start.chars().all(is_of_number)
}

/// Where the longest name of a host begins in `HOST:PID:TID`, if a number may stand before it.
fn host_in(word: &str, hosts: &BTreeSet<String>) -> Option<usize> {
    let name = word.rsplitn(3, ':').nth(2)?;
    let known = hosts.iter().filter(|host| !host.is_empty() && name.ends_with(host.as_str()));
    known.map(|host| name.len() - host.len()).min()
}

#[cfg(test)]
mod tests {
    use super::super::super::report::Report;
    use super::super::super::row::Row;
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

    /// One of each kind of row.
    fn styles() -> Vec<Style> {
        let plain = Style::default();
        vec![
            plain.clone(),
            Style { timestamp: true, ..plain.clone() },
            Style { choice: true, hip_events: true, ..plain.clone() },
            Style { timestamp: true, choice: true, host_time: true, ..plain.clone() },
            Style { timestamp: true, per_iteration: true, ..plain.clone() },
            Style { only_out_of_place: true, ..plain.clone() },
            Style { only_in_place: true, choice: true, timestamp: true, ..plain.clone() },
            Style { narrow_wrong: true, ..plain.clone() },
            Style { blank_out_of_place: true, ..plain.clone() },
            Style { blank_out_of_place: true, timestamp: true, choice: true, ..plain },
        ]
    }

    fn stamped(message: &str) -> String {
        format!("[2026-07-09 16:03:21] {}", message.replace("NCCL INFO", "x.cc:7 NCCL WARN"))
    }

    #[test]
    fn a_message_anywhere_in_a_row_changes_nothing() {
        let unknown = MESSAGE.replace("node-a", "4other");
        for style in styles() {
            let text = Made::example().text(&style);
            let report = read(&text).unwrap();
            for message in [MESSAGE.to_owned(), stamped(MESSAGE), stamped(&unknown)] {
                for at in rows_of(&text).into_iter().flatten() {
                    let broken = format!("{}{message}\n{}", &text[..at], &text[at..]);
                    let got = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
                    assert_eq!(got, report, "{broken}");
                    // Those of several ranks.
                    let broken = format!("{}{message}\n{message}\n{}", &text[..at], &text[at..]);
                    assert_eq!(read(&broken).unwrap(), report, "{broken}");
                }
            }
        }
    }

    #[test]
    fn of_two_messages_in_a_row_none_makes_it_wrong() {
        let (text, report) = whole();
        let row = rows_of(&text)[1].clone();
        // Behind the size.
        let places = row.start + 12..row.end;
        for (first, second) in places.flat_map(|a| (a..row.end).map(move |b| (a, b))) {
            let (head, middle, tail) = (&text[..first], &text[first..second], &text[second..]);
            let broken = format!("{head}{MESSAGE}\n{middle}{MESSAGE}\n{tail}");
            let got = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
            // Letters may be a part of the host's name.
            if got.skipped.is_empty() || !middle.contains(char::is_alphabetic) {
                assert_eq!(got, report, "{broken}");
            }
            assert_eq!(
                [&got.rows[..2], &got.rows[got.rows.len() - 2..]],
                [&report.rows[..2], &report.rows[4..]],
                "{broken}"
            );
        }
    }

    #[test]
    fn a_message_anywhere_in_a_comment_changes_nothing() {
        let (text, report) = whole();
        let rows = rows_of(&text);
        let named = text.find("#       size").unwrap();
        let places = (0..rows[0].start).chain(rows[2].end..text.len());
        for at in places.filter(|&at| text.is_char_boundary(at)) {
            let broken = format!("{}{}\n{}", &text[..at], stamped(MESSAGE), &text[at..]);
            let got = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
            assert_eq!(got, report, "{broken}");
            // Without a date it is known by its host.
            if at >= named {
                let broken = format!("{}{MESSAGE}\n{}", &text[..at], &text[at..]);
                assert_eq!(read(&broken).unwrap(), report, "{broken}");
            }
        }
        let failed = text.replace("values : 0 OK", &format!("values : {MESSAGE}\n3 FAILED"));
        let failures = read(&failed).unwrap().failures;
        assert_eq!(failures, ["line 22: Out of bounds values : 3 FAILED"]);
        // A verdict that is lost says nothing.
        let lost = text.replace("values : 0 OK", &format!("values : {MESSAGE}0 OK"));
        assert_eq!(read(&lost).unwrap(), report);
    }

    /// Its first digit may be taken for the last one of a number, and the number's own be lost.
    #[test]
    fn a_message_of_a_host_that_begins_with_a_digit_makes_no_row_wrong() {
        let unknown = MESSAGE.replace("node-a", "4other");
        for style in styles() {
            let text = Made::example().text(&style);
            let report = read(&text).unwrap();
            let is_known = |row: &Row| {
                let same = |known: &Row| {
                    (&known.times, &known.key, &known.check, known.count)
                        == (&row.times, &row.key, &row.check, row.count)
                };
                report.rows.iter().any(same)
            };
            for at in rows_of(&text).into_iter().flatten() {
                let broken = format!("{}{unknown}\n{}", &text[..at], &text[at..]);
                let got = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
                assert!(got.rows.iter().all(is_known), "{broken}\n{:?}", got.rows);
                assert!(got.rows.len() + 2 >= report.rows.len(), "{broken}");
                let lacks = got.rows.len() < report.rows.len();
                assert!(!lacks || !got.skipped.is_empty(), "{broken}");
            }
        }
    }

    /// Digits before a message of such a host begin its line, and digits behind a message end it:
    /// neither is known to be a row's.
    #[test]
    fn a_row_that_lost_digits_is_no_row() {
        let (text, report) = whole();
        let unknown = MESSAGE.replace("node-a", "other");
        let row = rows_of(&text)[1].clone();
        // Behind the type: a row begins with that and two numbers, which messages end with, too.
        let places = row.start + 36..row.end;
        for (first, second) in places.flat_map(|a| (a..row.end).map(move |b| (a, b))) {
            let (head, middle, tail) = (&text[..first], &text[first..second], &text[second..]);
            for broken in [
                format!("{head}{MESSAGE}\n{middle}{unknown}\n{tail}"),
                format!("{head}{MESSAGE}{middle}\n{tail}"),
            ] {
                let got = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
                let is_known = |row: &Row| report.rows.contains(row);
                assert!(got.rows.iter().all(is_known), "{broken}\n{:?}", got.rows);
            }
        }
    }

    /// Of a host that no header names, where columns end.
    #[test]
    fn columns_tell_where_a_message_of_an_unknown_host_begins() {
        let unknown = MESSAGE.replace("node-a", "4other");
        // A replay prints less than the width of the side that it leaves out.
        for style in styles().into_iter().filter(|style| !style.blank_out_of_place) {
            let text = Made::example().text(&style);
            let report = read(&text).unwrap();
            for row in rows_of(&text) {
                let line = &text[row.clone()];
                let ends = (1..line.len())
                    .filter(|&at| !line[..at].ends_with(' ') && line[at..].starts_with(' '));
                // Where the words behind the sides end is not known.
                let tail = 2 * usize::from(style.timestamp && !style.per_iteration)
                    + 3 * usize::from(style.choice);
                let ends: Vec<usize> = ends.skip(1).collect();
                let known = if tail == 0 { ends.len() } else { ends.len() + 1 - tail };
                for end in &ends[..known] {
                    let at = row.start + end;
                    let broken = format!("{}{unknown}\n{}", &text[..at], &text[at..]);
                    let got = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
                    assert_eq!(got, report, "{broken}");
                }
            }
        }
    }

    /// Such a host costs a row at most, and never changes one.
    #[test]
    fn a_message_of_an_unknown_host_anywhere_makes_no_row_wrong() {
        let unknown = MESSAGE.replace("node-a", "other");
        for style in styles() {
            let text = Made::example().text(&style);
            let report = read(&text).unwrap();
            for at in rows_of(&text).into_iter().flatten() {
                let broken = format!("{}{unknown}\n{}", &text[..at], &text[at..]);
                let got = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
                let lacks = got.rows.len() < report.rows.len();
                assert_eq!(lacks, !got.skipped.is_empty(), "{broken}");
                let is_known = |row: &Row| {
                    report.rows.iter().any(|known| {
                        known.times == row.times && known.key == row.key && known.check == row.check
                    })
                };
                assert!(got.rows.iter().all(is_known), "{broken}\n{:?}", got.rows);
            }
        }
    }

    /// All that follows a number that is too wide stands further to the right.
    #[test]
    fn where_a_number_is_too_wide_columns_tell_nothing() {
        let (text, report) = whole();
        let wide = text.replacen("      262144 ", "  1234567890123 ", 1);
        assert_eq!(read(&wide).unwrap().rows.len(), 6);
        let unknown = MESSAGE.replace("node-a", "4other");
        let broken = wide.replacen("114.86", &format!("114.86{unknown}\n"), 1);
        assert!(wide != text && broken != wide);
        let got = read(&broken).unwrap();
        assert_eq!(got.skipped.len(), 1, "{broken}");
        assert_eq!([&got.rows[..2], &got.rows[2..]], [&report.rows[..2], &report.rows[4..]]);
    }

    #[test]
    fn hosts_of_other_groups_are_known_by_their_names() {
        let (text, report) = whole();
        let rank = text.lines().find(|line| line.starts_with("#  Rank  7")).unwrap();
        let other = rank.replace("Group  0", "Group  1").replace("node-a", "node-b");
        let text = text.replace(rank, &format!("{rank}\n{other}"));
        assert_eq!(read(&text).unwrap(), report);
        let message = MESSAGE.replace("node-a", "node-b");
        for at in rows_of(&text).into_iter().flatten() {
            let broken = format!("{}{message}\n{}", &text[..at], &text[at..]);
            assert_eq!(read(&broken).unwrap(), report, "{broken}");
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
        let hosts = ["node", "e-node"].map(str::to_owned).into();
        assert_eq!(host_in("0.00node:1:2", &hosts), Some(4));
        assert_eq!(host_in("0.00e-node:1:2", &hosts), Some(4));
        assert_eq!(host_in("node:1:2", &hosts), Some(0));
        assert_eq!(host_in("0.00other:1:2", &hosts), None);
    }
}
