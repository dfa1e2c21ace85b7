//! Repeated measurements of one case as one row: nccl-tests' `-N` cycles, several groups of one
//! job that print the same sizes, or several files of one kind.

use super::row::{Check, Row};
use super::stats::{CONFIDENCE, Interval, Times, median_interval};

/// Rows that differ in their keys, in the order in which keys first come.
pub(crate) fn merge_repeats(rows: Vec<Row>) -> Vec<Row> {
    let mut groups: Vec<Vec<Row>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for row in rows {
        let place = *places.entry(row.key.clone()).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.into_iter().filter_map(merge).collect()
}

/// One row of rows with the same key: medians of what is in the middle, the extremes of the ends,
/// and sums of what is counted. What single ranks took is that of the first.
fn merge(mut rows: Vec<Row>) -> Option<Row> {
    if rows.len() == 1 {
        return rows.pop();
    }
    let middle = |of: &dyn Fn(&Row) -> Option<f64>| {
        let mut values: Vec<f64> = rows.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        middle_of(&values)
    };
    let end = |of: fn(&Times) -> Option<f64>, fold: fn(f64, f64) -> f64| {
        rows.iter().filter_map(|row| of(&row.times)).reduce(fold)
    };
    let times = Times {
        p50_us: middle(&|row| row.times.p50_us),
        p90_us: middle(&|row| row.times.p90_us),
        p99_us: middle(&|row| row.times.p99_us),
        min_us: end(|times| times.min_us, f64::min),
        max_us: end(|times| times.max_us, f64::max),
        mean_us: middle(&|row| row.times.mean_us),
        cv_pct: middle(&|row| row.times.cv_pct),
        iterations: rows.iter().map(|row| row.times.iterations).sum(),
        interval: interval(&rows),
        host_time: rows.iter().any(|row| row.times.host_time),
    };
    let algbw_gb_per_s = middle(&|row| row.algbw_gb_per_s);
    let busbw_gb_per_s = middle(&|row| row.busbw_gb_per_s);
    let checks: Vec<&Check> = rows.iter().filter_map(|row| row.check.as_ref()).collect();
    let check = (!checks.is_empty()).then(|| Check {
        wrong: checks.iter().fold(0, |sum, check| sum.saturating_add(check.wrong)),
        launches: checks.iter().map(|check| check.launches).sum(),
        first_bad: checks.iter().find_map(|check| check.first_bad.clone()),
    });
    let first = rows.swap_remove(0);
    Some(Row { times, algbw_gb_per_s, busbw_gb_per_s, check, ..first })
}

/// The median of ascending values; of an even number the mean of the two in the middle, since of
/// two repetitions neither is more likely than the other.
fn middle_of(values: &[f64]) -> Option<f64> {
    let (low, high) =
        (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// Of six or more repetitions the interval of their medians, which holds what differs from one to
/// the next; of fewer the range of all their intervals.
fn interval(rows: &[Row]) -> Option<Interval> {
    let mut centers: Vec<f64> = rows.iter().filter_map(|row| row.times.center_us()).collect();
    centers.sort_by(f64::total_cmp);
    if let Some(interval) = median_interval(&centers, CONFIDENCE) {
        return Some(interval);
    }
    let intervals: Option<Vec<Interval>> = rows.iter().map(|row| row.times.interval).collect();
    intervals?.into_iter().reduce(|a, b| Interval {
        low_us: a.low_us.min(b.low_us),
        high_us: a.high_us.max(b.high_us),
        confidence: a.confidence.min(b.confidence),
    })
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn cycles_become_one_row_with_the_median_of_their_medians() {
        let cycle = |us: f64, wrong: u64| {
            let mut row = row(1024, us);
            row.times.min_us = Some(us / 2.0);
            row.times.iterations = Some(20);
            row.check = Some(Check { wrong, ..Check::default() });
            row
        };
        let rows = vec![cycle(3.0, 0), row(8, 1.0), cycle(1.0, 2), cycle(2.0, 1)];
        let merged = merge_repeats(rows);
        assert_eq!(merged.iter().map(|row| row.key.bytes).collect::<Vec<_>>(), [1024, 8]);
        let times = merged[0].times;
        assert_eq!(
            (times.p50_us, times.min_us, times.iterations),
            (Some(2.0), Some(0.5), Some(60))
        );
        assert_eq!((merged[0].wrong(), merged[1].wrong()), (Some(3), None));
        assert_eq!(times.interval, None);
        // Of two neither hides the other.
        let merged = merge_repeats(vec![cycle(300.0, 0), cycle(100.0, 0)]);
        assert_eq!(merged[0].times.p50_us, Some(200.0));
        // Six cycles know how far they lie apart.
        let merged = merge_repeats((1..=6).map(|us| cycle(f64::from(us), 0)).collect());
        let interval = merged[0].times.interval.unwrap();
        assert_eq!((interval.low_us, interval.high_us), (1.0, 6.0));
    }

    #[test]
    fn few_intervals_become_their_common_range() {
        let with = |low_us: f64, high_us: f64| {
            let mut row = row(8, (low_us + high_us) / 2.0);
            row.times.interval = Some(Interval { low_us, high_us, confidence: 0.95 });
            row
        };
        let merged = merge_repeats(vec![with(1.0, 2.0), with(3.0, 5.0)]);
        let interval = merged[0].times.interval.unwrap();
        assert_eq!((interval.low_us, interval.high_us), (1.0, 5.0));
    }
}
