//! Lines of a job's output without what launchers and the library put into them.
//!
//! Launchers put a tag before each line: `[1,0]<stdout>:` (Open MPI), `[1,0][HOST:PID]<stdout>: `
//! (its `--output tag-detailed`; `rank` and `timestamp` are alike), `[job@1,0]<stdout>: ` (PRRTE),
//! `0: ` (Slurm), `[0] ` (Hydra), `[default0]:` (torchrun), `worker-0: ` and
//! `2026-07-09T16:03:21Z ` (Kubernetes). The library writes its messages,
//! `HOST:PID:TID [DEVICE] NCCL INFO …`, to the same stream, also between the parts of a row, which
//! are printed one by one:
//!
//! ```text
//!         1024           256     float     sum      -1node:1:2 [0] NCCL INFO a message
//!    12.00    0.09    0.15       0   …
//! ```

use std::borrow::Cow;
use std::ops::Range;

/// The rest of a line behind the tags of launchers.
pub(crate) fn untagged(mut line: &str) -> &str {
    // Several launchers may each put one.
    for _ in 0..3 {
        let rest = after_bracket_tag(line).or_else(|| after_label(line));
        line = rest.or_else(|| after_time(line)).or_else(|| after_name(line)).unwrap_or(line);
    }
    line
}

/// A text without the codes that colour it on a terminal.
pub(crate) fn uncoloured(text: &str) -> Cow<'_, str> {
    if !text.contains("\u{1b}[") {
        return text.into();
    }
    let mut parts = text.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // Numbers and `;`, and the letter that ends them.
        plain += part
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == ';')
            .get(1..)
            .unwrap_or("");
    }
    plain.into()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Behind `[…]<stdout>:`, with more brackets before it or none, or behind `[RANK] `.
fn after_bracket_tag(line: &str) -> Option<&str> {
    let (mut inside, mut rest) = line.strip_prefix('[')?.split_once(']')?;
    let (first, mut brackets) = (inside, 1);
    while let Some((next, behind)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        (inside, rest, brackets) = (next, behind, brackets + 1);
    }
    let stream = rest.strip_prefix("<stdout>:").or_else(|| rest.strip_prefix("<stderr>:"));
    if let Some(rest) = stream {
        // The plain `[1,0]` of old has no blank behind its tag; all others have.
        let job_and_rank = inside.split_once(',').filter(|_| brackets == 1);
        let is_plain = job_and_rank.is_some_and(|(job, rank)| is_number(job) && is_number(rank));
        let rest = rest.strip_prefix(' ').filter(|_| !is_plain).unwrap_or(rest);
        return (!inside.is_empty()).then_some(rest);
    }
    let (_, rest) = line.strip_prefix('[')?.split_once(']')?;
    if let Some(rest) = rest.strip_prefix(':').filter(|rest| is_of_table(rest)) {
        return Some(rest);
    }
    rest.strip_prefix(' ').filter(|_| is_number(first))
}

/// Whether a line of a table begins here: two whole numbers, or a comment.
fn is_of_table(text: &str) -> bool {
    let numbers = words(text).take(2).filter(|(_, word)| is_number(word)).count();
    numbers == 2 || text.trim_start().starts_with("# ")
}

/// Behind `2026-07-09T16:03:21.123456Z `.
fn after_time(line: &str) -> Option<&str> {
    let (time, rest) = line.split_once(' ')?;
    let (date, time) = time.split_once('T')?;
    let is_date = date.len() == 10 && date.split('-').all(is_number);
    let is_time = time.get(..8).is_some_and(|time| time.split(':').all(is_number));
    (is_date && is_time).then_some(rest)
}

/// Behind `NAME: `, where a table follows: other words with a colon are somebody's text.
fn after_name(line: &str) -> Option<&str> {
    let (name, rest) = line.split_once(": ")?;
    let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '#');
    (is_name && is_of_table(rest)).then_some(rest)
}

/// Behind `RANK: `.
fn after_label(line: &str) -> Option<&str> {
    let (rank, rest) = line.split_once(':')?;
    (is_number(rank.trim_start()) && rest.starts_with(' ')).then(|| &rest[1..])
}

/// Words that only messages of the library have.
const MARKS: [&str; 6] =
    [" NCCL INFO", " NCCL WARN", " NCCL TRACE", " NCCL CALL", " NCCL ABORT", " NCCL ERROR"];

/// Where a message of the library is in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it begins, or where the word begins that it shares with a number before it.
    pub start: usize,
    /// The word `HOST:PID:TID`, which that number may be the beginning of.
    pub word: Range<usize>,
    /// Where its own text begins.
    pub text: usize,
}

/// Finds a message; it goes to the end of its line.
pub fn message(line: &str) -> Option<Message> {
    for opening in ["NCCL version ", "RCCL version "] {
        if line.trim_start().starts_with(opening) {
            return Some(Message { start: 0, word: 0..0, text: line.len() });
        }
    }
    let mark = MARKS.iter().filter_map(|mark| line.find(mark)).min()?;
    let before = &line[..mark];
    let is_origin = |(_, word): &(usize, &str)| {
        let mut parts = word.rsplitn(3, ':');
        let numbers = parts.next().is_some_and(is_number) && parts.next().is_some_and(is_number);
        numbers && parts.next().is_some_and(|host| !host.is_empty())
    };
    // A row may have a time of the day, which looks the same, before it.
    let Some((at, word)) = words(before).filter(is_origin).last() else {
        return Some(Message { start: 0, word: 0..0, text: mark });
    };
    let start = stamp(&before[..at]).unwrap_or(at);
    Some(Message { start, word: at..at + word.len(), text: mark })
}

/// Where the date begins that may stand before a message, `[2026-07-09 16:03:21] `.
fn stamp(before: &str) -> Option<usize> {
    let open = before.trim_end().strip_suffix(']')?.rfind('[')?;
    let date = &before.as_bytes()[open + 1..];
    let year = date.get(..4)?.iter().all(u8::is_ascii_digit);
    (year && date.get(4) == Some(&b'-')).then_some(open)
}

/// Words between blanks, with the places where they begin.
pub fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    // The address within the line is the place.
    line.split_whitespace().map(|word| (word.as_ptr() as usize - line.as_ptr() as usize, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_launchers_are_taken_off() {
        for (line, rest) in [
            ("[1,0]<stdout>:# text", "# text"),
            ("[1,12]<stderr>:   8", "   8"),
            ("[prterun-a-12@1,0]<stdout>:  8", " 8"),
            ("[1,12]<stdout>:  8", "  8"),
            ("0: # text", "# text"),
            (" 07:  8", " 8"),
            ("[3] 8", "8"),
            ("0: [1,0]<stdout>:8", "8"),
            ("   8   2", "   8   2"),
            ("[2026-07-09 16:03:21] a", "[2026-07-09 16:03:21] a"),
            ("[1,0][vm:25365]<stdout>:   8  2", "  8  2"),
            ("[0]<stdout>:   8  2", "  8  2"),
            ("[Mon Nov 30 06:44:38 2026]<stdout>: # text", "# text"),
            ("[Mon Nov 30 06:44:38 2026][1,0]<stdout>: # text", "# text"),
            ("[1,mpirank:0,algo-1]<stdout>:   8  2", "  8  2"),
            ("[default0]:   8  2", "   8  2"),
            ("[default0]:text", "[default0]:text"),
            ("2026-11-30T06:44:38.123456789Z   8  2", "  8  2"),
            ("2026-11-30T06:44:38Z worker-0: # text", "# text"),
            ("worker-0:    8  2", "   8  2"),
            ("error: out of memory", "error: out of memory"),
            ("node 1: 8 2", "node 1: 8 2"),
            ("node:1:2 [0] x", "node:1:2 [0] x"),
        ] {
            assert_eq!(untagged(line), rest, "{line}");
        }
    }

    #[test]
    fn colours_are_taken_off() {
        assert_eq!(uncoloured("\u{1b}[32m# a\u{1b}[0m b\u{1b}[1;31mc"), "# a bc");
        assert!(matches!(uncoloured("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn messages_are_found_with_what_they_share_with_a_number() {
        let start = |line: &str| message(line).map(|message| message.start);
        assert_eq!(start("node:1:2 [0] NCCL INFO x"), Some(0));
        assert_eq!(start("  8  -1node:1:2 [0] NCCL INFO x"), Some(5));
        assert_eq!(start("  8  [2026-07-09 16:03:21] n:1:2 [0] a.cc:7 NCCL WARN x"), Some(5));
        assert_eq!(start("NCCL version 2.30.7"), Some(0));
        assert_eq!(start("odd NCCL INFO without a host"), Some(0));
        assert_eq!(start("  8  -1  1.0"), None);
        assert_eq!(start("  8  16:03:21 node:1:2 [0] NCCL INFO x"), Some(14));
        let word = message("  8  -1node:1:2 [0] NCCL INFO x").unwrap().word;
        assert_eq!(word, 5..15);
    }
}
