//! Two reports, case by case: what is slower, faster, wrong or missing.
//!
//! Cases are matched by everything that both sides state: nccl-tests names no transport, so its
//! rows are compared with those over any. A case is **slower** only if its time grew by more than
//! the threshold and, where both sides know how far their medians may be off, if their intervals do
//! not overlap either: noise is no regression, and a difference that is certain but small is shown
//! and not counted. Times are medians where both sides have them, otherwise means.
//!
//! A side whose run says that it failed is not fit to be compared, whichever it is.

use std::fmt::Write;

use serde::Serialize;

use super::formula::Op;
use super::report::Report;
use super::row::{Key, Row, labels};
use crate::BenchError;
use crate::report::aligned;

/// What counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The part by which a time may grow: 0.05 is 5 %.
    pub threshold: f64,
    /// Only these operations; all, if there are none.
    pub only: Vec<Op>,
    /// Cases of the base that the new report lacks are no regression.
    pub allow_missing: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { threshold: 0.05, only: Vec::new(), allow_missing: false }
    }
}

/// What became of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No more different than noise or the threshold explain.
    Same,
    Faster,
    /// A regression.
    Slower,
    /// Slower for certain, but by less than the threshold.
    SlightlySlower,
    /// Results that are wrong in the new report: a regression.
    Wrong,
    /// Results were wrong in the base, so its time means nothing; now they are right, or unchecked.
    WasWrong,
    /// The base has it alone: a regression, unless that is allowed.
    Missing,
    /// The new report has it alone.
    New,
    /// A side has no time.
    Untimed,
}

impl Verdict {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Same => "same",
            Verdict::Faster => "faster",
            Verdict::Slower => "SLOWER",
            Verdict::SlightlySlower => "slightly slower",
            Verdict::Wrong => "WRONG RESULTS",
            Verdict::WasWrong => "was wrong",
            Verdict::Missing => "MISSING",
            Verdict::New => "new",
            Verdict::Untimed => "no time",
        }
    }
}

/// What was compared of a case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// What either side states.
    pub key: Key,
    pub base_us: Option<f64>,
    pub new_us: Option<f64>,
    /// New over base.
    pub ratio: Option<f64>,
    /// The statistic that both times are.
    pub statistic: &'static str,
    /// Whether the medians' intervals are apart; `None` if a side has none.
    pub apart: Option<bool>,
    pub new_wrong: Option<u64>,
    pub verdict: Verdict,
}

/// All cases of an operation together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub op: Op,
    /// Cases with a ratio.
    pub compared: usize,
    /// Geometric mean of the ratios, new over base.
    pub ratio: Option<f64>,
    /// The largest ratio, and the size that has it.
    pub worst_ratio: Option<f64>,
    pub worst_bytes: Option<u64>,
    pub slower: usize,
    pub faster: usize,
    pub wrong: usize,
    pub missing: usize,
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub threshold: f64,
    /// Whether either run or file ended early.
    pub base_complete: bool,
    pub new_complete: bool,
    /// What either run says of itself that went wrong.
    pub base_failures: Vec<String>,
    pub new_failures: Vec<String>,
    pub cases: Vec<Case>,
    pub summaries: Vec<Summary>,
    /// Why this is a regression; empty if it is none.
    pub regressions: Vec<String>,
}

/// Compares.
///
/// # Errors
/// [`BenchError::Argument`]: a side has no rows (of the operations asked for), or the two have no
/// case in common; the message names what they differ in.
pub fn compare(base: &Report, new: &Report, options: &Options) -> Result<Comparison, BenchError> {
    let chosen = |row: &&Row| options.only.is_empty() || options.only.contains(&row.key.op);
    let base_rows: Vec<&Row> = base.rows.iter().filter(chosen).collect();
    let new_rows: Vec<&Row> = new.rows.iter().filter(chosen).collect();
    for (rows, all, side) in [(&base_rows, &base.rows, "BASE"), (&new_rows, &new.rows, "NEW")] {
        if rows.is_empty() {
            return Err(BenchError::Argument(nothing_of(all, side, &options.only)));
        }
    }
    let mut cases = Vec::new();
    let mut met = vec![false; new_rows.len()];
    let mut matched = false;
    for row in &base_rows {
        let mut missing = true;
        for (index, other) in new_rows.iter().enumerate() {
            if row.key.agrees(&other.key) {
                cases.push(case(row, other, options.threshold));
                met[index] = true;
                missing = false;
            }
        }
        matched |= !missing;
        if missing {
            cases.push(alone(row, Verdict::Missing));
        }
    }
    if !matched {
        return Err(BenchError::Argument(nothing_in_common(&base_rows, &new_rows)));
    }
    let unmet = new_rows.iter().zip(&met).filter(|(_, met)| !**met);
    cases.extend(unmet.map(|(row, _)| alone(row, Verdict::New)));
    cases.sort_by_cached_key(|case| (case.key.series(), case.key.bytes));
    let summaries = summaries(&cases);
    let mut comparison = Comparison {
        threshold: options.threshold,
        base_complete: base.complete,
        new_complete: new.complete,
        base_failures: base.failures.clone(),
        new_failures: new.failures.clone(),
        cases,
        summaries,
        regressions: Vec::new(),
    };
    comparison.regressions = regressions(&comparison, options);
    Ok(comparison)
}

/// Both sides of a case.
fn case(base: &Row, new: &Row, threshold: f64) -> Case {
    let medians = base.times.p50_us.zip(new.times.p50_us);
    let means = base.times.mean_us.zip(new.times.mean_us);
    let mixed = base.times.center_us().zip(new.times.center_us());
    let (times, statistic) = match (medians, means) {
        (Some(medians), _) => (Some(medians), "median"),
        (None, Some(means)) => (Some(means), "mean"),
        (None, None) => (mixed, "median or mean"),
    };
    // The host's time and the operation's are two things.
    let comparable = base.times.host_time == new.times.host_time;
    let times = times.filter(|(base, new)| comparable && *base > 0.0 && *new > 0.0);
    let ratio = times.map(|(base, new)| new / base);
    let intervals = base.times.interval.zip(new.times.interval).filter(|_| statistic == "median");
    let apart = intervals.map(|(a, b)| a.high_us < b.low_us || b.high_us < a.low_us);
    let verdict = if new.wrong().is_some_and(|wrong| wrong > 0) {
        Verdict::Wrong
    } else if base.wrong().is_some_and(|wrong| wrong > 0) {
        Verdict::WasWrong
    } else {
        ratio.map_or(Verdict::Untimed, |ratio| judge(ratio, apart, threshold))
    };
    Case {
        key: base.key.or(&new.key),
        base_us: times.map(|times| times.0),
        new_us: times.map(|times| times.1),
        ratio,
        statistic,
        apart,
        new_wrong: new.wrong(),
        verdict,
    }
}

/// By how much the time grew, and whether that is certain.
fn judge(ratio: f64, apart: Option<bool>, threshold: f64) -> Verdict {
    let (slower, faster) = (ratio > 1.0 + threshold, ratio < 1.0 / (1.0 + threshold));
    match apart {
        Some(false) => Verdict::Same,
        _ if slower => Verdict::Slower,
        _ if faster => Verdict::Faster,
        Some(true) if ratio > 1.0 => Verdict::SlightlySlower,
        _ => Verdict::Same,
    }
}

/// A case that one side has.
fn alone(row: &Row, verdict: Verdict) -> Case {
    let time = row.times.center_us();
    let (base_us, new_us) = if verdict == Verdict::New { (None, time) } else { (time, None) };
    let new_wrong = row.wrong().filter(|_| verdict == Verdict::New);
    let verdict = if new_wrong.is_some_and(|wrong| wrong > 0) { Verdict::Wrong } else { verdict };
    let statistic = if row.times.p50_us.is_some() { "median" } else { "mean" };
    let key = row.key.clone();
    Case { key, base_us, new_us, ratio: None, statistic, apart: None, new_wrong, verdict }
}

fn nothing_of(rows: &[Row], side: &str, only: &[Op]) -> String {
    if rows.is_empty() {
        return format!("{side} has no rows");
    }
    let mut there: Vec<&str> = rows.iter().map(|row| row.key.op.word()).collect();
    there.sort_unstable();
    there.dedup();
    let asked = only.iter().map(|op| op.word()).collect::<Vec<_>>().join(", ");
    format!("{side} has no {asked}; it has {}", there.join(", "))
}

/// Names the fields of the pair that is nearest to a match, among the first ones of each side.
fn nothing_in_common(base: &[&Row], new: &[&Row]) -> String {
    let pairs = base.iter().take(300).flat_map(|a| new.iter().take(300).map(move |b| (a, b)));
    let nearest = pairs
        .map(|(a, b)| (a.key.contradictions(&b.key), a, b))
        .min_by_key(|(fields, ..)| fields.len());
    let Some((fields, a, b)) = nearest else { return "nothing to compare".to_owned() };
    let differences = fields.iter().map(|field| {
        let value = |key: &Key| {
            let mut fields = key.fields().into_iter();
            fields.find(|(name, _)| name == field).map(|(_, value)| value).unwrap_or_default()
        };
        format!("{field} is {} in BASE and {} in NEW", value(&a.key), value(&b.key))
    });
    format!(
        "the two have no case in common; where they are nearest, {}",
        differences.collect::<Vec<_>>().join(", ")
    )
}

fn summaries(cases: &[Case]) -> Vec<Summary> {
    let mut ops: Vec<Op> = cases.iter().map(|case| case.key.op).collect();
    ops.dedup();
    let summary = |op: Op| {
        let all = || cases.iter().filter(move |case| case.key.op == op);
        // What is wrong has no time that counts.
        let timed =
            all().filter(|case| !matches!(case.verdict, Verdict::Wrong | Verdict::WasWrong));
        let ratios: Vec<(f64, u64)> =
            timed.filter_map(|case| Some((case.ratio?, case.key.bytes))).collect();
        let logs: f64 = ratios.iter().map(|(ratio, _)| ratio.ln()).sum();
        let worst = ratios.iter().max_by(|a, b| a.0.total_cmp(&b.0));
        let count = |verdict: Verdict| all().filter(|case| case.verdict == verdict).count();
        Summary {
            op,
            compared: ratios.len(),
            ratio: (!ratios.is_empty()).then(|| (logs / ratios.len() as f64).exp()),
            worst_ratio: worst.map(|worst| worst.0),
            worst_bytes: worst.map(|worst| worst.1),
            slower: count(Verdict::Slower),
            faster: count(Verdict::Faster),
            wrong: count(Verdict::Wrong),
            missing: count(Verdict::Missing),
        }
    };
    ops.into_iter().map(summary).collect()
}

fn regressions(comparison: &Comparison, options: &Options) -> Vec<String> {
    let mut why = Vec::new();
    for (failures, side) in [(&comparison.base_failures, "BASE"), (&comparison.new_failures, "NEW")]
    {
        why.extend(failures.iter().map(|what| format!("the run of {side} failed: {what}")));
    }
    for summary in &comparison.summaries {
        let Summary { op, slower, wrong, missing, .. } = summary;
        if *wrong > 0 {
            why.push(format!("{op}: wrong results in {}", counted(*wrong)));
        }
        if *slower > 0 {
            let percent = options.threshold * 100.0;
            why.push(format!("{op}: slower by more than {percent} % in {}", counted(*slower)));
        }
        if *missing > 0 && !options.allow_missing {
            why.push(format!("{op}: NEW lacks {} of BASE", counted(*missing)));
        }
    }
    let untimed = comparison.cases.iter().filter(|case| case.verdict == Verdict::Untimed).count();
    if untimed > 0 && !options.allow_missing {
        why.push(format!("no times to compare in {}", counted(untimed)));
    }
    // A run that broke off is one, whatever is allowed to be missing.
    if comparison.base_complete && !comparison.new_complete {
        why.push("NEW ended early".to_owned());
    }
    why
}

fn counted(cases: usize) -> String {
    if cases == 1 { "1 case".to_owned() } else { format!("{cases} cases") }
}

impl Comparison {
    /// Whether it found a regression.
    pub fn is_regression(&self) -> bool {
        !self.regressions.is_empty()
    }

    /// The comparison as JSON.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub fn json(&self) -> Result<String, BenchError> {
        serde_json::to_string_pretty(self).map_err(BenchError::Json)
    }

    /// The comparison as tables, with the verdict at the end.
    pub fn text(&self) -> String {
        let number = |value: Option<f64>| value.map_or("–".to_owned(), |us| format!("{us:.2}"));
        let change = |ratio: Option<f64>| {
            ratio.map_or("–".to_owned(), |ratio| format!("{:+.1} %", (ratio - 1.0) * 100.0))
        };
        let keys: Vec<Key> = self.cases.iter().map(|case| case.key.series()).collect();
        let titles = ["operation", "case", "bytes", "base µs", "new µs", "change", "verdict"];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        for (case, label) in self.cases.iter().zip(labels(&keys)) {
            let op = case.key.op.to_string();
            let label = label.strip_prefix(op.as_str()).unwrap_or(&label).trim().to_owned();
            rows.push(vec![
                op,
                label,
                case.key.bytes.to_string(),
                number(case.base_us),
                number(case.new_us),
                change(case.ratio),
                case.verdict.word().to_owned(),
            ]);
        }
        let mut text = aligned(&rows);
        let titles = ["operation", "cases", "mean change", "worst", "at bytes", "slower", "faster"];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        for summary in &self.summaries {
            rows.push(vec![
                summary.op.to_string(),
                summary.compared.to_string(),
                change(summary.ratio),
                change(summary.worst_ratio),
                summary.worst_bytes.map_or("–".to_owned(), |bytes| bytes.to_string()),
                summary.slower.to_string(),
                summary.faster.to_string(),
            ]);
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{}\n", aligned(&rows));
        for (complete, side) in [(self.base_complete, "BASE"), (self.new_complete, "NEW")] {
            if !complete {
                let _ = writeln!(text, "{side} ended early: only what it has was compared");
            }
        }
        match self.is_regression() {
            true => {
                for why in &self.regressions {
                    let _ = writeln!(text, "regression: {why}");
                }
            }
            false if self.cases.iter().all(|case| case.verdict == Verdict::Same) => {
                text += "no change\n";
            }
            false => text += "no regression\n",
        }
        text
    }
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

    /// With an interval of so many percent to either side.
    fn noisy(bytes: u64, p50_us: f64, percent: f64) -> Row {
        let mut row = row(bytes, p50_us);
        let half = p50_us * percent / 100.0;
        row.times.interval =
            Some(Interval { low_us: p50_us - half, high_us: p50_us + half, confidence: 0.95 });
        row
    }

    fn checked(bytes: u64, p50_us: f64, wrong: u64) -> Row {
        let mut row = row(bytes, p50_us);
        row.check = Some(Check { wrong, ..Check::default() });
        row
    }

    fn verdicts(base: Vec<Row>, new: Vec<Row>) -> Vec<Verdict> {
        let comparison = compare(&report(base), &report(new), &Options::default()).unwrap();
        comparison.cases.iter().map(|case| case.verdict).collect()
    }

    #[test]
    fn noise_is_no_regression_and_what_is_certain_but_small_is_only_shown() {
        let one = |base: Row, new: Row| verdicts(vec![base], vec![new])[0];
        // Without intervals the threshold alone decides.
        assert_eq!(one(row(8, 100.0), row(8, 104.9)), Verdict::Same);
        assert_eq!(one(row(8, 100.0), row(8, 105.1)), Verdict::Slower);
        assert_eq!(one(row(8, 105.1), row(8, 100.0)), Verdict::Faster);
        assert_eq!(one(row(8, 100.0), noisy(8, 106.0, 50.0)), Verdict::Slower);
        // With them they must be apart as well.
        assert_eq!(one(noisy(8, 100.0, 6.0), noisy(8, 110.0, 6.0)), Verdict::Same);
        assert_eq!(one(noisy(8, 100.0, 1.0), noisy(8, 110.0, 1.0)), Verdict::Slower);
        assert_eq!(one(noisy(8, 110.0, 1.0), noisy(8, 100.0, 1.0)), Verdict::Faster);
        assert_eq!(one(noisy(8, 100.0, 0.1), noisy(8, 102.0, 0.1)), Verdict::SlightlySlower);
        assert_eq!(one(noisy(8, 100.0, 0.1), noisy(8, 98.0, 0.1)), Verdict::Same);
    }

    #[test]
    fn wrong_results_are_a_regression_whatever_their_time() {
        let one = |base: Row, new: Row| verdicts(vec![base], vec![new])[0];
        assert_eq!(one(checked(8, 2.0, 0), checked(8, 1.0, 3)), Verdict::Wrong);
        assert_eq!(one(row(8, 2.0), checked(8, 1.0, 3)), Verdict::Wrong);
        assert_eq!(one(checked(8, 2.0, 1), checked(8, 2.0, 1)), Verdict::Wrong);
        assert_eq!(one(checked(8, 1.0, 1), checked(8, 9.0, 0)), Verdict::WasWrong);
        assert_eq!(
            verdicts(vec![row(8, 1.0)], vec![row(8, 1.0), checked(16, 1.0, 1)]),
            [Verdict::Same, Verdict::Wrong]
        );
    }

    #[test]
    fn a_run_that_says_it_failed_is_fit_for_neither_side() {
        let good = report(vec![row(8, 1.0)]);
        let failed = Report { failures: vec!["line 9: 7 FAILED".into()], ..good.clone() };
        let regressions = |base, new| {
            let options = Options { allow_missing: true, ..Options::default() };
            compare(base, new, &options).unwrap().regressions
        };
        assert_eq!(regressions(&good, &failed), ["the run of NEW failed: line 9: 7 FAILED"]);
        assert_eq!(regressions(&failed, &good), ["the run of BASE failed: line 9: 7 FAILED"]);
    }

    #[test]
    fn what_cannot_be_compared_is_no_success() {
        let timeless = |bytes| {
            let mut row = row(bytes, 1.0);
            row.times.p50_us = None;
            row
        };
        let base = report(vec![row(8, 1.0), row(16, 1.0)]);
        let new = report(vec![row(8, 1.0), timeless(16)]);
        let all = compare(&base, &new, &Options::default()).unwrap();
        assert_eq!(all.regressions, ["no times to compare in 1 case"]);
    }

    #[test]
    fn what_one_side_lacks_is_told_and_counts_unless_allowed() {
        let base = report(vec![row(8, 1.0), row(16, 1.0)]);
        let new = report(vec![row(8, 1.0), row(32, 1.0)]);
        let all = compare(&base, &new, &Options::default()).unwrap();
        let verdicts: Vec<Verdict> = all.cases.iter().map(|case| case.verdict).collect();
        assert_eq!(verdicts, [Verdict::Same, Verdict::Missing, Verdict::New]);
        assert_eq!(all.regressions, ["all_reduce: NEW lacks 1 case of BASE"]);
        let allowed = Options { allow_missing: true, ..Options::default() };
        assert!(!compare(&base, &new, &allowed).unwrap().is_regression());
        // A run that broke off is a regression all the same.
        let broken = Report { complete: false, ..new };
        assert_eq!(compare(&base, &broken, &allowed).unwrap().regressions, ["NEW ended early"]);
        let text = compare(&base, &broken, &allowed).unwrap().text();
        assert!(text.contains("MISSING") && text.contains("regression: NEW ended early"), "{text}");
    }

    #[test]
    fn sides_that_state_different_things_are_matched_by_what_both_state() {
        let over = |transport: &str, p50_us: f64| {
            let mut row = row(8, p50_us);
            row.key.transport = Some(transport.into());
            row
        };
        let mean = |mean_us: f64| {
            let mut row = row(8, 1.0);
            row.times.p50_us = None;
            row.times.mean_us = Some(mean_us);
            row.key.ranks = None;
            row
        };
        // nccl-tests against Muster over two transports: each is compared.
        let comparison = compare(
            &report(vec![mean(10.0)]),
            &report(vec![over("shm", 10.0), over("tcp", 20.0)]),
            &Options::default(),
        );
        let cases = comparison.unwrap().cases;
        assert_eq!(cases[0].key.transport.as_deref(), Some("shm"));
        assert_eq!((cases[0].verdict, cases[1].verdict), (Verdict::Same, Verdict::Slower));
        assert_eq!(cases[0].statistic, "median or mean");
        let two = compare(
            &report(vec![over("shm", 1.0)]),
            &report(vec![over("tcp", 1.0)]),
            &Options::default(),
        );
        let message = two.unwrap_err().to_string();
        assert!(message.contains("transport is shm in BASE and tcp in NEW"), "{message}");
    }

    #[test]
    fn only_what_was_asked_for_is_compared() {
        let mut gather = row(8, 1.0);
        gather.key.op = Op::AllGather;
        let base = report(vec![row(8, 1.0), gather.clone()]);
        let mut slow = gather;
        slow.times.p50_us = Some(2.0);
        let new = report(vec![row(8, 1.0), slow]);
        let only = |op| Options { only: vec![op], ..Options::default() };
        assert!(!compare(&base, &new, &only(Op::AllReduce)).unwrap().is_regression());
        let gathered = compare(&base, &new, &only(Op::AllGather)).unwrap();
        assert_eq!(gathered.regressions, ["all_gather: slower by more than 5 % in 1 case"]);
        let none = compare(&base, &new, &only(Op::Broadcast)).unwrap_err().to_string();
        assert!(none.contains("no broadcast; it has all_gather, all_reduce"), "{none}");
        let empty = compare(&report(Vec::new()), &new, &Options::default());
        assert!(empty.unwrap_err().to_string().contains("BASE has no rows"));
    }

    #[test]
    fn the_text_says_all_of_it() {
        let base = report(vec![row(1024, 100.0), row(2048, 100.0), row(4096, 100.0)]);
        let new = report(vec![row(1024, 50.0), row(2048, 200.0), row(4096, 101.0)]);
        let comparison = compare(&base, &new, &Options::default()).unwrap();
        let summary = &comparison.summaries[0];
        assert!((summary.ratio.unwrap() - 1.01_f64.powf(1.0 / 3.0)).abs() < 1e-12);
        assert_eq!((summary.worst_ratio, summary.worst_bytes), (Some(2.0), Some(2048)));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = comparison.text();
        let lines: Vec<String> = text.lines().map(words).collect();
        assert_eq!(
            lines,
            [
                "operation case bytes base µs new µs change verdict",
                "all_reduce 1024 100.00 50.00 -50.0 % faster",
                "all_reduce 2048 100.00 200.00 +100.0 % SLOWER",
                "all_reduce 4096 100.00 101.00 +1.0 % same",
                "",
                "operation cases mean change worst at bytes slower faster",
                "all_reduce 3 +0.3 % +100.0 % 2048 1 1",
                "",
                "regression: all_reduce: slower by more than 5 % in 1 case",
            ]
        );
        let json: serde_json::Value = serde_json::from_str(&comparison.json().unwrap()).unwrap();
        assert_eq!(json["cases"][1]["verdict"], "slower");
        assert_eq!(json["regressions"].as_array().unwrap().len(), 1);
    }

    proptest! {
        /// Nothing is a regression against itself, and one way's slower is the other way's faster.
        #[test]
        fn a_comparison_can_be_turned_round(
            pairs in prop::collection::vec((1.0_f64..1e4, 0.5_f64..2.0, 0.0_f64..10.0), 1..20),
        ) {
            let sized = |i: usize| 8_u64 << i;
            let base: Vec<Row> =
                pairs.iter().enumerate().map(|(i, p)| noisy(sized(i), p.0, p.2)).collect();
            let new: Vec<Row> =
                pairs.iter().enumerate().map(|(i, p)| noisy(sized(i), p.0 * p.1, p.2)).collect();
            let (base, new) = (report(base), report(new));
            let compare = |a, b| compare(a, b, &Options::default()).unwrap();
            prop_assert!(!compare(&base, &base).is_regression());
            let (there, back) = (compare(&base, &new), compare(&new, &base));
            for (there, back) in there.cases.iter().zip(&back.cases) {
                prop_assert_eq!(there.verdict == Verdict::Slower, back.verdict == Verdict::Faster);
            }
            let product = there.summaries[0].ratio.unwrap() * back.summaries[0].ratio.unwrap();
            prop_assert!((product - 1.0).abs() < 1e-9);
        }
    }
}
