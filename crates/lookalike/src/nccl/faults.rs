//! Faults on purpose, as the environment asks for them.
//!
//! `LOOKALIKE_NCCL_FAULTS` is a list of `kind:rank` or `kind:rank@number`, with commas between:
//!
//! | fault | what happens |
//! |---|---|
//! | `absent:1` | rank 1 never comes: all stay in progress |
//! | `late:1@300` | rank 1 comes after 300 ms |
//! | `dies:1@2` | rank 1's process is killed at its operation 2; at 0, while ranks come |
//! | `error:1@2` | rank 1 is told an asynchronous error at its operation 2 |
//! | `hangs:1@2` | rank 1's operation 2 is never over, until an abort |
//! | `abort:1@400` | rank 1's abort takes 400 ms |
//!
//! Operations count from 1, per communicator; communicators made of others have no faults.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Absent,
    Late,
    Dies,
    Error,
    Hangs,
    Abort,
}

const NAMES: [(&str, Fault); 6] = [
    ("absent", Fault::Absent),
    ("late", Fault::Late),
    ("dies", Fault::Dies),
    ("error", Fault::Error),
    ("hangs", Fault::Hangs),
    ("abort", Fault::Abort),
];

/// The number of a fault of a rank, if it has that one.
pub(crate) fn number(fault: Fault, rank: u32) -> Option<u64> {
    let list = std::env::var("LOOKALIKE_NCCL_FAULTS").ok()?;
    let faults = parse(&list).unwrap_or_else(|what| {
        eprintln!("lookalike: LOOKALIKE_NCCL_FAULTS: {what}");
        Vec::new()
    });
    let found = faults.into_iter().find(|(kind, of, _)| (*kind, *of) == (fault, rank));
    found.map(|(_, _, number)| number)
}

fn parse(list: &str) -> Result<Vec<(Fault, u32, u64)>, String> {
    let one = |text: &str| {
        let (name, rest) = text.split_once(':')?;
        let (rank, number) = rest.split_once('@').unwrap_or((rest, "0"));
        let fault = NAMES.iter().find(|(known, _)| *known == name)?.1;
        Some((fault, rank.parse().ok()?, number.parse().ok()?))
    };
    let parts = list.split(',').filter(|part| !part.is_empty());
    parts.map(|part| one(part).ok_or_else(|| format!("`{part}` is no fault"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_mistakes_in_them_named() {
        let list = parse("absent:1,dies:2@3").unwrap();
        assert_eq!(list, [(Fault::Absent, 1, 0), (Fault::Dies, 2, 3)]);
        assert_eq!(parse("").unwrap(), []);
        for wrong in ["dies", "dies:x", "dies:1@x", "lives:1"] {
            assert_eq!(parse(wrong).unwrap_err(), format!("`{wrong}` is no fault"));
        }
    }
}
