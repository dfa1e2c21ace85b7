//! Lines of a job's output without what launchers and the library put into them.
//!
//! Launchers put a tag before each line: `[1,0]<stdout>:` (Open MPI), `[job@1,0]<stdout>: `
//! (PRRTE), `0: ` (Slurm), `[0] ` (Hydra). The library writes its messages, `HOST:PID:TID [DEVICE]
//! NCCL INFO …`, to the same stream, also between the parts of a row, which are printed one by one:
//!
//! ```text
//!         1024           256     float     sum      -1node:1:2 [0] NCCL INFO a message
//!    12.00    0.09    0.15       0   …
//! ```

use std::ops::Range;

/// What follows the tags of launchers.
pub fn untagged(mut line: &str) -> &str {
    // Two launchers may each put one.
    for _ in 0..2 {
        line = after_bracket_tag(line).or_else(|| after_label(line)).unwrap_or(line);
    }
    line
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Behind `[…,RANK]<stdout>:` or `[RANK] `.
fn after_bracket_tag(line: &str) -> Option<&str> {
    let (inside, rest) = line.strip_prefix('[')?.split_once(']')?;
    let stream = rest.strip_prefix("<stdout>:").or_else(|| rest.strip_prefix("<stderr>:"));
    if let Some(rest) = stream {
        let (job, rank) = inside.rsplit_once(',')?;
        // PRRTE, whose jobs are `name@number`, puts a blank behind its tag.
        let rest = rest.strip_prefix(' ').filter(|_| job.contains('@')).unwrap_or(rest);
        return (is_number(rank) && !job.is_empty()).then_some(rest);
    }
    rest.strip_prefix(' ').filter(|_| is_number(inside))
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
            ("[1,x]<stdout>:8", "[1,x]<stdout>:8"),
            ("node:1:2 [0] x", "node:1:2 [0] x"),
        ] {
            assert_eq!(untagged(line), rest, "{line}");
        }
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
