//! Comparisons of made reports: noise, wrong results and missing rows, one at a time, and the
//! verdict that turns round with the sides.

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
    let again = "measure that side again, or pass over such cases with --allow-missing";
    assert_eq!(all.regressions, [format!("NEW has no time in 1 case; {again}")]);
    assert_eq!((all.cases[1].base_us, all.cases[1].new_us), (Some(1.0), None));
    // Against itself, too.
    let all = compare(&new, &new, &Options::default()).unwrap();
    assert_eq!(all.regressions, [format!("BASE has no time to compare with in 1 case; {again}")]);
    let allowed = Options { allow_missing: true, ..Options::default() };
    assert!(!compare(&new, &new, &allowed).unwrap().is_regression());
    let mut of_host = row(8, 1.0);
    of_host.times.host_time = true;
    let all = compare(&base, &report(vec![of_host]), &Options::default()).unwrap();
    assert!(all.regressions[1].starts_with("one side has the host's time, "), "{all:?}");
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
