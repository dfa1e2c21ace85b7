//! Figures that cannot be: a benchmark that fools itself says so.
//!
//! Each check has its reason in [`Flag`]. They look at one curve at a time (same operation, ranks,
//! place, …; [`super::row::curves`]), and a curve that no check flags may still be wrong.

use serde::Serialize;

use super::formula::Op;
use super::report::Report;
use super::row::{Key, Row, curves, labels};

/// A larger size may be faster than a smaller one by this part, where an algorithm changes.
const FASTER: f64 = 0.2;

/// From this size on a message is not all latency on any link there is: at 1 TB/s it takes 1 µs.
const BEYOND_LATENCY_BYTES: u64 = 1 << 20;

/// Sixteen times the bytes take longer than this times the time.
const SAME_TIME: f64 = 1.25;

/// Measured limits are not exact.
const ABOVE: f64 = 1.02;

/// How far a bandwidth may be from size over time, besides rounding to two digits.
const INCONSISTENT: f64 = 0.02;

/// The most that the machine can do; a limit that is `None` is not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Of one rank's link, in one direction: a bound of busbw.
    pub link_gb_per_s: Option<f64>,
    /// Of one rank's memory, reading and writing together: twice algbw at least goes through it.
    pub memory_gb_per_s: Option<f64>,
    /// The least time that the clock can tell.
    pub clock_us: Option<f64>,
}

/// Why a figure cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "flag")]
pub enum Flag {
    /// A larger size is faster by more than what an algorithm's change explains, wherever in their
    /// intervals both medians are. Without intervals, as of few launches, it may be noise.
    LargerIsFaster { larger_bytes: u64, time_us: f64, larger_time_us: f64 },
    /// Sixteen times the bytes, or more, take the same time, at a size where bytes count: probably
    /// another size was measured than was printed.
    SameTime { larger_bytes: u64, time_us: f64, larger_time_us: f64 },
    /// busbw above the link.
    AboveLink { busbw_gb_per_s: f64, limit_gb_per_s: f64 },
    /// The memory would have to be faster than it is.
    AboveMemory { gb_per_s: f64, limit_gb_per_s: f64 },
    /// No time, or one that the clock cannot tell from none.
    BelowClock { time_us: f64, clock_us: f64 },
    /// The bandwidth is not the size over the time.
    Inconsistent { algbw_gb_per_s: f64, expected_gb_per_s: f64 },
}

/// A flag and where it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub key: Key,
    #[serde(flatten)]
    pub flag: Flag,
}

/// All findings about a report, in the order of its curves and sizes.
pub fn findings(report: &Report, limits: Limits) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, rows) in curves(&report.rows) {
        for (index, row) in rows.iter().enumerate() {
            let flags = [
                below_clock(row, limits),
                inconsistent(row),
                above_link(row, limits),
                above_memory(row, limits),
                larger_is_faster(row, &rows[index + 1..]),
                same_time(row, &rows[index + 1..]),
            ];
            let found = flags.into_iter().flatten();
            findings.extend(found.map(|flag| Finding { key: row.key.clone(), flag }));
        }
    }
    findings
}

/// Places of rows whose times, beside those of larger sizes, are none that the operation alone can
/// have taken: something else ran then, perhaps. A row with wrong results is none of them: measured
/// again, it would no longer tell of them.
pub(crate) fn doubtful(rows: &[Row]) -> Vec<usize> {
    let of_curve = |(_, rows): (Key, Vec<&Row>)| {
        let is_doubtful = |index: &usize| {
            let (row, larger) = (rows[*index], &rows[index + 1..]);
            let is_right = row.wrong().is_none_or(|wrong| wrong == 0);
            is_right && larger_is_faster(row, larger).or_else(|| same_time(row, larger)).is_some()
        };
        let doubtful = (0..rows.len()).filter(is_doubtful);
        doubtful.map(|index| rows[index].key.clone()).collect::<Vec<Key>>()
    };
    let keys: Vec<Key> = curves(rows).into_iter().flat_map(of_curve).collect();
    (0..rows.len()).filter(|&index| keys.contains(&rows[index].key)).collect()
}

fn below_clock(row: &Row, limits: Limits) -> Option<Flag> {
    let (time_us, clock_us) = (row.times.center_us()?, limits.clock_us.unwrap_or(0.0));
    (time_us <= clock_us).then_some(Flag::BelowClock { time_us, clock_us })
}

/// The size of all_to_all_v says nothing of what moves, and the host's time is not the operation's.
fn inconsistent(row: &Row) -> Option<Flag> {
    if row.times.host_time || row.key.op == Op::AllToAllV {
        return None;
    }
    let algbw_gb_per_s = row.algbw_gb_per_s?;
    // nccl-tests computes bandwidths from the mean, Muster from the median.
    let near = [row.times.p50_us, row.times.mean_us].into_iter().flatten().map(|time_us| {
        let ranks = row.key.ranks.unwrap_or(2);
        let expected = row.key.op.bandwidths(row.key.bytes, ranks, time_us);
        expected.map(|both| both.algbw_gb_per_s)
    });
    let near: Vec<f64> = near.flatten().collect();
    let fits =
        |expected: &f64| (algbw_gb_per_s - expected).abs() <= 0.01 + INCONSISTENT * expected.abs();
    match near.iter().any(fits) {
        true => None,
        false => near
            .first()
            .map(|&expected_gb_per_s| Flag::Inconsistent { algbw_gb_per_s, expected_gb_per_s }),
    }
}

fn above_link(row: &Row, limits: Limits) -> Option<Flag> {
    let (busbw_gb_per_s, limit_gb_per_s) = (row.busbw_gb_per_s?, limits.link_gb_per_s?);
    let above = busbw_gb_per_s > limit_gb_per_s * ABOVE;
    above.then_some(Flag::AboveLink { busbw_gb_per_s, limit_gb_per_s })
}

/// Every rank reads what it sends and writes what it receives.
fn above_memory(row: &Row, limits: Limits) -> Option<Flag> {
    let (algbw, limit_gb_per_s) = (row.algbw_gb_per_s?, limits.memory_gb_per_s?);
    let bytes_per_size = match row.key.op {
        Op::AllReduce | Op::AllToAll | Op::SendRecv => 2.0,
        _ => 1.0,
    };
    let gb_per_s = algbw * bytes_per_size;
    (gb_per_s > limit_gb_per_s * ABOVE).then_some(Flag::AboveMemory { gb_per_s, limit_gb_per_s })
}

fn larger_is_faster(row: &Row, larger: &[&Row]) -> Option<Flag> {
    let time_us = row.times.center_us()?;
    let faster = larger.iter().filter_map(|other| {
        let larger_time_us = other.times.center_us()?;
        let (own, of_other) = row.times.interval.zip(other.times.interval)?;
        let is_certain = of_other.high_us < own.low_us * (1.0 - FASTER);
        is_certain.then_some((other, larger_time_us))
    });
    let (other, larger_time_us) = faster.min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Flag::LargerIsFaster { larger_bytes: other.key.bytes, time_us, larger_time_us })
}

fn same_time(row: &Row, larger: &[&Row]) -> Option<Flag> {
    let time_us = row.times.center_us()?;
    // One rank moves nothing.
    if row.key.bytes < BEYOND_LATENCY_BYTES || row.key.ranks == Some(1) {
        return None;
    }
    // The nearest size of sixteen times: the others follow from it.
    let other = larger.iter().find(|other| other.key.bytes / 16 >= row.key.bytes)?;
    let larger_time_us = other.times.center_us()?;
    let same = (time_us * (1.0 - FASTER)..time_us * SAME_TIME).contains(&larger_time_us);
    same.then_some(Flag::SameTime { larger_bytes: other.key.bytes, time_us, larger_time_us })
}

/// The findings as lines.
pub fn text(findings: &[Finding]) -> String {
    let keys: Vec<Key> = findings.iter().map(|finding| finding.key.series()).collect();
    let line = |(finding, label): (&Finding, String)| {
        let op = finding.key.op.to_string();
        // Where nothing else tells cases apart their label is the operation.
        let label = label.strip_prefix(op.as_str()).unwrap_or(&label).trim();
        let case = format!("{op} {label}");
        let case = case.trim_end();
        let what = match finding.flag {
            Flag::LargerIsFaster { larger_bytes, time_us, larger_time_us } => format!(
                "took {time_us:.2} µs, but {larger_bytes} bytes only {larger_time_us:.2} µs"
            ),
            Flag::SameTime { larger_bytes, time_us, larger_time_us } => format!(
                "took {time_us:.2} µs, and {larger_bytes} bytes {larger_time_us:.2} µs: the same \
                 size may have been measured twice"
            ),
            Flag::AboveLink { busbw_gb_per_s, limit_gb_per_s } => {
                format!("busbw {busbw_gb_per_s:.2} GB/s over a link of {limit_gb_per_s:.2} GB/s")
            }
            Flag::AboveMemory { gb_per_s, limit_gb_per_s } => {
                format!("{gb_per_s:.2} GB/s through memory that carries {limit_gb_per_s:.2} GB/s")
            }
            Flag::BelowClock { time_us, clock_us } => {
                format!("took {time_us:.3} µs, which a clock of {clock_us:.3} µs cannot tell")
            }
            Flag::Inconsistent { algbw_gb_per_s, expected_gb_per_s } => format!(
                "algbw {algbw_gb_per_s:.2} GB/s, where size over time is {expected_gb_per_s:.2} \
                 GB/s"
            ),
        };
        format!("impossible: {case}, {} bytes: {what}\n", finding.key.bytes)
    };
    let labels = labels(&keys).into_iter();
    findings.iter().zip(labels).map(line).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::report::Tool;
    use super::super::row::Check;
    use super::super::row::tests::row;
    use super::super::stats::Interval;
    use super::*;

    fn report(rows: Vec<Row>) -> Report {
        let tool = Tool { name: "muster".into(), version: None, commit: None };
        Report { rows, ..Report::new(tool) }
    }

    fn flags(rows: Vec<Row>, limits: Limits) -> Vec<(u64, Flag)> {
        let findings = findings(&report(rows), limits).into_iter();
        findings.map(|finding| (finding.key.bytes, finding.flag)).collect()
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_size_that_is_printed_but_not_measured_shows() {
        // Always the first size, as a benchmark once did.
        let rows = [1, 4, 16, 64, 256].map(|mib| row(mib * MIB, 20.0)).to_vec();
        let flags = flags(rows, Limits::default());
        assert_eq!(flags.len(), 3);
        let same = Flag::SameTime { larger_bytes: 16 * MIB, time_us: 20.0, larger_time_us: 20.0 };
        assert_eq!(flags[0], (MIB, same));
    }

    #[test]
    fn a_larger_size_that_is_much_faster_shows_unless_noise_explains_it() {
        let noisy = |bytes: u64, low_us: f64, time: f64, high_us: f64| {
            let mut row = row(bytes, time);
            row.times.interval = Some(Interval { low_us, high_us, confidence: 0.95 });
            row
        };
        let apart = vec![noisy(8, 90.0, 100.0, 110.0), noisy(16, 40.0, 50.0, 60.0)];
        let flags_of = |rows| flags(rows, Limits::default());
        assert!(matches!(
            flags_of(apart)[..],
            [(8, Flag::LargerIsFaster { larger_bytes: 16, .. })]
        ));
        let overlapping = vec![noisy(8, 50.0, 100.0, 110.0), noisy(16, 40.0, 50.0, 60.0)];
        assert_eq!(flags_of(overlapping), []);
        // Apart, but perhaps by little.
        let near = vec![noisy(8, 62.0, 100.0, 110.0), noisy(16, 40.0, 50.0, 60.0)];
        assert_eq!(flags_of(near), []);
        // Too few launches to tell.
        assert_eq!(flags_of(vec![row(8, 100.0), row(16, 20.0)]), []);
        // A change of algorithm.
        let change = vec![noisy(8, 99.0, 100.0, 101.0), noisy(16, 84.0, 85.0, 86.0)];
        assert_eq!(flags_of(change), []);
    }

    #[test]
    fn what_another_program_may_have_slowed_is_doubtful() {
        let noisy = |bytes: u64, time: f64| {
            let mut row = row(bytes, time);
            let (low_us, high_us) = (time * 0.95, time * 1.05);
            row.times.interval = Some(Interval { low_us, high_us, confidence: 0.95 });
            row
        };
        // In the order in which they were measured, of two curves.
        let mut other = noisy(8, 10.0);
        other.key.in_place = true;
        let mut rows = vec![noisy(8, 9.0), other, noisy(16, 100.0), noisy(32, 12.0)];
        assert_eq!(doubtful(&rows), [2]);
        rows[2].check = Some(Check { wrong: 1, ..Check::default() });
        assert!(doubtful(&rows).is_empty());
        rows[2] = noisy(16, 10.0);
        assert!(doubtful(&rows).is_empty());
        let rows = [1, 4, 16].map(|mib| row(mib * MIB, 20.0));
        assert_eq!(doubtful(&rows), [0]);
    }

    #[test]
    fn a_finding_names_its_operation_once() {
        let zero = |op: Op| {
            let mut row = row(8, 0.0);
            row.key.op = op;
            row
        };
        let told = |rows| text(&findings(&report(rows), Limits::default()));
        let one = told(vec![zero(Op::AllReduce)]);
        assert!(one.starts_with("impossible: all_reduce, 8 bytes: took"), "{one}");
        let mut inside = zero(Op::AllReduce);
        inside.key.in_place = true;
        let two = told(vec![zero(Op::AllReduce), inside, zero(Op::Broadcast)]);
        assert!(two.contains("impossible: all_reduce in place, 8 bytes: took"), "{two}");
        assert!(two.contains("impossible: broadcast out of place, 8 bytes: took"), "{two}");
    }

    #[test]
    fn limits_and_clocks_bound_what_may_be() {
        let rows = || vec![row(1 << 30, 4000.0)];
        let link = |link| Limits { link_gb_per_s: Some(link), ..Limits::default() };
        assert!(matches!(flags(rows(), link(450.0))[..], [(_, Flag::AboveLink { .. })]));
        assert_eq!(flags(rows(), link(480.0)), []);
        let memory = |memory| Limits { memory_gb_per_s: Some(memory), ..Limits::default() };
        assert!(matches!(flags(rows(), memory(500.0))[..], [(_, Flag::AboveMemory { .. })]));
        assert_eq!(flags(rows(), memory(540.0)), []);
        let clock = Limits { clock_us: Some(0.5), ..Limits::default() };
        assert!(matches!(flags(vec![row(8, 0.5)], clock)[..], [(8, Flag::BelowClock { .. })]));
        assert!(matches!(
            flags(vec![row(8, 0.0)], Limits::default())[..],
            [(8, Flag::BelowClock { .. })]
        ));
        let mut odd = row(1 << 30, 4000.0);
        odd.algbw_gb_per_s = Some(500.0);
        let odd = report(vec![odd]);
        let found = findings(&odd, Limits::default());
        assert!(matches!(found[0].flag, Flag::Inconsistent { .. }));
        assert!(text(&found).contains("size over time is 268.44 GB/s"), "{}", text(&found));
    }

    proptest! {
        /// Latency plus bytes over bandwidth, with noise, is always possible.
        #[test]
        fn honest_curves_are_not_flagged(
            alpha in 0.5_f64..100.0,
            gb_per_s in 0.1_f64..900.0,
            noise in prop::collection::vec(-0.05_f64..0.05, 24),
        ) {
            let rows = noise.iter().enumerate().map(|(i, noise)| {
                let bytes = 8_u64 << i;
                row(bytes, (alpha + bytes as f64 / gb_per_s / 1e3) * (1.0 + noise))
            });
            let limits = Limits {
                link_gb_per_s: Some(gb_per_s * 2.0), memory_gb_per_s: Some(gb_per_s * 3.0),
                clock_us: Some(0.1),
            };
            let found = findings(&report(rows.collect()), limits);
            // At 900 GB/s and 100 µs a MiB is latency alone.
            let flat = alpha * gb_per_s > 16.0 * 1024.0;
            prop_assert!(found.is_empty() || flat, "{}", text(&found));
        }
    }
}
