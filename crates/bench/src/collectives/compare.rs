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

/// Options of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The part by which a time may grow: 0.05 is 5 %.
    pub threshold: f64,
    /// Only these operations; all, if there are none.
    pub only: Vec<Op>,
    /// Cases of the base that the new report lacks are no regression, nor are those without times.
    pub allow_missing: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { threshold: 0.05, only: Vec::new(), allow_missing: false }
    }
}

/// The outcome of a case.
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

/// The comparison of one case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// The fields that either side states.
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

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub threshold: f64,
    /// Whether either run or file ended early.
    pub base_complete: bool,
    pub new_complete: bool,
    /// Failures that either run reports of itself.
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
    let is_time = |time: &f64| *time > 0.0;
    let ratio = times.filter(|(base, new)| comparable && is_time(base) && is_time(new));
    let ratio = ratio.map(|(base, new)| new / base);
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
        base_us: times.map(|times| times.0).or(base.times.center_us()).filter(is_time),
        new_us: times.map(|times| times.1).or(new.times.center_us()).filter(is_time),
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
        // Wrong results have no time that counts.
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
    if !options.allow_missing {
        why.extend(untimed(&comparison.cases));
    }
    // A run that broke off is one, whatever is allowed to be missing.
    if comparison.base_complete && !comparison.new_complete {
        why.push("NEW ended early".to_owned());
    }
    why
}

/// Cases without two times of one kind, by the side that lacks them, and what to do about it.
fn untimed(cases: &[Case]) -> Vec<String> {
    let all = || cases.iter().filter(|case| case.verdict == Verdict::Untimed);
    let no_base = all().filter(|case| case.base_us.is_none()).count();
    let no_new = all().filter(|case| case.base_us.is_some() && case.new_us.is_none()).count();
    let of_two_kinds = all().count() - no_base - no_new;
    let sides = [
        (no_base, "BASE has no time to compare with in"),
        (no_new, "NEW has no time in"),
        (of_two_kinds, "one side has the host's time, the other the operation's, in"),
    ];
    let there = sides.into_iter().filter(|(cases, _)| *cases > 0);
    let why = there.map(|(cases, what)| {
        let of_side = "measure that side again, or pass over such cases with --allow-missing";
        format!("{what} {}; {of_side}", counted(cases))
    });
    why.collect()
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
mod tests;
