//! Sizes as they are typed, and the sizes of a sweep.
//!
//! `K`, `M` and `G` are powers of 1024, as nccl-tests has them, and so are `KiB`, `MiB` and `GiB`;
//! `KB`, `MB` and `GB` are powers of 1000. A spelling that could be either is refused.

use serde::{Deserialize, Serialize};

use crate::BenchError;

/// 1 PiB: above what any device holds, and far enough below overflow.
pub const BYTES_MAX: u64 = 1 << 50;

/// More points than anybody waits for.
const POINTS_MAX: usize = 4096;

/// Spellings of units; the first of each value is the one that is advised.
const UNITS: [(&str, u64); 22] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("K", 1 << 10),
    ("k", 1 << 10),
    ("Ki", 1 << 10),
    ("MiB", 1 << 20),
    ("M", 1 << 20),
    ("m", 1 << 20),
    ("Mi", 1 << 20),
    ("GiB", 1 << 30),
    ("G", 1 << 30),
    ("g", 1 << 30),
    ("Gi", 1 << 30),
    ("TiB", 1 << 40),
    ("T", 1 << 40),
    ("Ti", 1 << 40),
    ("KB", 1_000),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("", 1),
];

/// Bytes that `text` stands for: `4096`, `64M`, `64MiB`, `64MB`, `1.5G`.
///
/// # Errors
/// [`BenchError::Size`] with the nearest valid spelling: no number, an unknown or ambiguous unit,
/// no whole number of bytes, zero, or more than [`BYTES_MAX`].
pub fn parse_size(text: &str) -> Result<u64, BenchError> {
    let refuse = |why: String| BenchError::Size { text: text.to_owned(), why };
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..end], trimmed[end..].trim_start());
    let bad_number = || refuse("not a size; write it as 4096, 64M, 64MiB or 64MB".to_owned());
    if number.is_empty() {
        return Err(bad_number());
    }
    let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
    let scale = scale.ok_or_else(|| refuse(advice_on_unit(number, unit)))?;
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => {
            let value = number.parse::<f64>().map_err(|_| bad_number())? * scale as f64;
            if value < BYTES_MAX as f64 && value.fract() != 0.0 {
                let near = (value.round() as u64).max(1);
                return Err(refuse(format!("no whole number of bytes; use {near}")));
            }
            // Out of range below, if it is.
            Some(value as u64)
        }
    };
    match bytes {
        Some(0) => Err(refuse("too small; use at least 1".to_owned())),
        Some(bytes) if bytes <= BYTES_MAX => Ok(bytes),
        _ => Err(refuse("too large; use at most 1024TiB".to_owned())),
    }
}

/// Bytes in the binary unit that fits, with a digit after the point below ten: `64 KiB`, `1.5 MiB`.
pub(crate) fn binary(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    let value = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    let digits = usize::from(value < 9.95 && value.fract() > 0.05 && value.fract() < 0.95);
    format!("{value:.digits$} {}", units[unit])
}

/// Advice on a unit that is none: the one that was probably meant.
fn advice_on_unit(number: &str, unit: &str) -> String {
    let letter = unit.chars().next().unwrap_or(' ').to_ascii_uppercase();
    if matches!(letter, 'K' | 'M' | 'G' | 'T') {
        return format!(
            "`{unit}` is no unit; use {number}{letter}iB (powers of 1024) or {number}{letter}B \
             (powers of 1000)"
        );
    }
    format!("`{unit}` is no unit; use {number}KiB, {number}MiB or {number}GiB")
}

/// How a sweep goes from one size to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Each size is so many times the one before.
    Factor(u64),
    /// Each size is so many bytes more than the one before.
    Bytes(u64),
}

/// The sizes to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    pub from_bytes: u64,
    /// The last size that may come.
    pub to_bytes: u64,
    pub step: Step,
    /// Also measure each size less one element and more one element, within the two ends: what is
    /// fast only for round sizes shows there.
    pub odd: bool,
}

impl Sweep {
    /// The sizes, in bytes, ascending and without repetition. Odd ones differ by `element_bytes`.
    ///
    /// # Errors
    /// [`BenchError::Argument`]: a sweep that is empty, never ends, or has over 4096 sizes.
    pub fn sizes(&self, element_bytes: u64) -> Result<Vec<u64>, BenchError> {
        let Sweep { from_bytes, to_bytes, step, odd } = *self;
        let refuse = |why: String| Err(BenchError::Argument(why));
        if from_bytes == 0 || from_bytes > to_bytes {
            return refuse(format!(
                "no sizes from {from_bytes} to {to_bytes} bytes; start with at least 1 and end \
                 with at least {}",
                from_bytes.max(1)
            ));
        }
        if matches!(step, Step::Factor(0 | 1)) {
            return refuse("sizes that do not grow; use a factor of at least 2".to_owned());
        }
        if step == Step::Bytes(0) {
            return refuse("sizes that do not grow; use a step of at least 1 byte".to_owned());
        }
        let next = |size: &u64| match step {
            Step::Factor(factor) => size.checked_mul(factor),
            Step::Bytes(bytes) => size.checked_add(bytes),
        };
        let round = std::iter::successors(Some(from_bytes), next).take_while(|&s| s <= to_bytes);
        let round: Vec<u64> = round.take(POINTS_MAX + 1).collect();
        if round.len() > POINTS_MAX {
            let least = (to_bytes - from_bytes).div_ceil(POINTS_MAX as u64 - 1);
            return refuse(format!(
                "more than {POINTS_MAX} sizes; use a step of at least {least} bytes, or a factor"
            ));
        }
        let beside = |&size: &u64| {
            let (less, more) = (size.saturating_sub(element_bytes), size + element_bytes);
            let odd = [less, more].into_iter().filter(move |_| odd);
            std::iter::once(size).chain(odd)
        };
        let within = |size: &u64| (from_bytes..=to_bytes).contains(size);
        let mut sizes: Vec<u64> = round.iter().flat_map(beside).filter(within).collect();
        sizes.sort_unstable();
        sizes.dedup();
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_defined_and_ambiguous_ones_are_refused() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1k", 1024),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("64MB", 64_000_000),
            ("2 GB", 2_000_000_000),
            ("1.5G", 3 << 29),
            ("16kB", 16_000),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for (text, words) in [
            ("64mb", "64MiB (powers of 1024) or 64MB (powers of 1000)"),
            ("64Mb", "64MiB"),
            ("64MIB", "64MiB"),
            ("3X", "3KiB, 3MiB or 3GiB"),
            ("", "64MiB"),
            ("M", "not a size"),
            ("-1", "not a size"),
            ("1..5M", "not a size"),
            ("0", "at least 1"),
            ("0.3", "no whole number of bytes; use 1"),
            ("1.0000001K", "use 1024"),
            ("99999999999999999999", "at most 1024TiB"),
            ("1025T", "at most 1024TiB"),
            ("99999999999999999999G", "at most 1024TiB"),
        ] {
            let message = parse_size(text).unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn sweeps_go_by_factor_or_step_and_beside_round_sizes() {
        let sweep = |from_bytes, to_bytes, step, odd| Sweep { from_bytes, to_bytes, step, odd };
        let sizes = |sweep: Sweep| sweep.sizes(4).unwrap();
        assert_eq!(sizes(sweep(8, 70, Step::Factor(2), false)), [8, 16, 32, 64]);
        assert_eq!(sizes(sweep(8, 20, Step::Bytes(4), false)), [8, 12, 16, 20]);
        assert_eq!(sizes(sweep(8, 32, Step::Factor(2), true)), [8, 12, 16, 20, 28, 32]);
        for (wrong, words) in [
            (sweep(0, 8, Step::Factor(2), false), "at least 1"),
            (sweep(9, 8, Step::Factor(2), false), "at least 9"),
            (sweep(1, 8, Step::Factor(1), false), "at least 2"),
            (sweep(1, 8, Step::Bytes(0), false), "at least 1 byte"),
        ] {
            assert!(wrong.sizes(4).unwrap_err().to_string().contains(words));
        }
    }

    /// The advised step is one that is accepted.
    #[test]
    fn the_advised_step_is_accepted() {
        let fine = Sweep { from_bytes: 1, to_bytes: 1 << 30, step: Step::Bytes(1), odd: false };
        let message = fine.sizes(1).unwrap_err().to_string();
        let words = message.split_whitespace();
        let least: u64 = words.filter_map(|word| word.parse().ok()).nth(1).unwrap();
        assert!(Sweep { step: Step::Bytes(least), ..fine }.sizes(1).is_ok(), "{message}");
        assert!(Sweep { step: Step::Bytes(least - 100), ..fine }.sizes(1).is_err());
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (2047, "2 KiB"),
            (64 << 10, "64 KiB"),
            (25 << 20, "25 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(binary(bytes), text, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC{0,12}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn sizes_ascend_between_the_ends(
            from in 1_u64..1000,
            span in 0_u64..100_000,
            factor in 2_u64..5,
            odd: bool,
        ) {
            let sweep = Sweep {
                from_bytes: from, to_bytes: from + span, step: Step::Factor(factor), odd,
            };
            let sizes = sweep.sizes(4).unwrap();
            prop_assert_eq!(sizes[0], from);
            prop_assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(*sizes.last().unwrap() <= from + span);
        }
    }
}
