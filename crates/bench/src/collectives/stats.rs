//! Percentiles, and an interval of the median that assumes nothing about how times are spread.
//!
//! Percentiles are nearest ranks, as nccl-tests takes them (`computeIterStats` in `src/util.cu`):
//! of *n* ascending times the p-th is number ⌈np/100⌉, and the median number ⌊n/2⌋ + 1.
//!
//! The interval is the pair of order statistics x₍ₖ₎, x₍ₙ₊₁₋ₖ₎ with the largest *k* that keeps the
//! confidence: each time lies below the true median with probability ½, so the median lies outside
//! with probability 2·P(B ≤ k−1), B ~ Binomial(n, ½) (David and Nagaraja, *Order Statistics*,
//! 3rd ed., §7.1). Fewer than 6 times have no such interval at 95 %.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The confidence of every interval that is not asked for otherwise.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// A range that holds the median with a given probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    pub low_us: f64,
    pub high_us: f64,
    /// Between 0 and 1.
    pub confidence: f64,
}

impl Interval {
    /// Half its width.
    pub(crate) fn half_width_us(&self) -> f64 {
        (self.high_us - self.low_us) / 2.0
    }
}

/// Statistics of the times of one case, in microseconds.
///
/// Other programs leave some of it out: nccl-tests without `-I` gives the mean alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Times {
    pub p50_us: Option<f64>,
    pub p90_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub min_us: Option<f64>,
    pub max_us: Option<f64>,
    pub mean_us: Option<f64>,
    /// Standard deviation over the mean, in percent.
    pub cv_pct: Option<f64>,
    pub iterations: Option<u64>,
    /// Of the median.
    pub interval: Option<Interval>,
    /// The time that the host was busy, and not that of the operation (nccl-tests' `-C`).
    pub host_time: bool,
}

impl Times {
    /// Of times in any order; all `None` where there are none. Those that are not finite are left
    /// out.
    pub fn of(samples_us: &[f64], confidence: f64) -> Times {
        let mut sorted: Vec<f64> =
            samples_us.iter().copied().filter(|time| time.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        if n == 0 {
            return Times::default();
        }
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let variance = sorted.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / n as f64;
        Times {
            p50_us: median(&sorted),
            p90_us: percentile(&sorted, 90),
            p99_us: percentile(&sorted, 99),
            min_us: sorted.first().copied(),
            max_us: sorted.last().copied(),
            mean_us: Some(mean),
            cv_pct: (mean > 0.0).then(|| variance.sqrt() / mean * 100.0),
            iterations: Some(n as u64),
            interval: median_interval(&sorted, confidence),
            host_time: false,
        }
    }

    /// The median, or the mean where nothing better is known.
    pub(crate) fn center_us(&self) -> Option<f64> {
        self.p50_us.or(self.mean_us)
    }
}

/// The median of ascending times: number ⌊n/2⌋ + 1.
pub fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

/// The nearest rank of a percentile from 1 to 100 of ascending times.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

/// The interval of the median of ascending times; `None` where there are too few for the
/// confidence, which is at least 0 and below 1.
pub(crate) fn median_interval(sorted: &[f64], confidence: f64) -> Option<Interval> {
    let k = order_from_end(sorted.len(), confidence)?;
    let (low_us, high_us) = (sorted[k - 1], sorted[sorted.len() - k]);
    Some(Interval { low_us, high_us, confidence })
}

/// The largest `k` with 2·P(B ≤ k−1) ≤ 1 − confidence for B ~ Binomial(n, ½).
///
/// Goes from the middle, where half the probability lies on either side, outwards; there every
/// term is of ordinary size, while the outermost, 2⁻ⁿ, is no number any more.
pub(crate) fn order_from_end(n: usize, confidence: f64) -> Option<usize> {
    if n == 0 || !(0.0..1.0).contains(&confidence) {
        return None;
    }
    let tail = (1.0 - confidence) / 2.0;
    let (half, odd) = (n / 2, n % 2 == 1);
    // The middle of Binomial(2·half, ½).
    let middle: f64 = (1..=half).map(|i| (2 * i - 1) as f64 / (2 * i) as f64).product();
    // P(B = j) and P(B ≤ j), first for the last j below the middle of n.
    let (mut j, mut term, mut below) = match odd {
        true => (half, middle * (2 * half + 1) as f64 / (2 * half + 2) as f64, 0.5),
        false => (half - 1, middle * half as f64 / (half + 1) as f64, (1.0 - middle) / 2.0),
    };
    while below > tail {
        below -= term;
        term *= j as f64 / (n - j + 1) as f64;
        j = j.checked_sub(1)?;
    }
    Some(j + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_those_of_nccl_tests() {
        let sorted: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(median(&sorted), Some(11.0));
        assert_eq!(percentile(&sorted, 90), Some(18.0));
        assert_eq!(percentile(&sorted, 95), Some(19.0));
        assert_eq!(percentile(&sorted, 99), Some(20.0));
        assert_eq!(percentile(&sorted, 1), Some(1.0));
        assert_eq!((median(&[]), percentile(&[], 50)), (None, None));
        let times = Times::of(&[3.0, 1.0, f64::NAN, 2.0], CONFIDENCE);
        assert_eq!((times.p50_us, times.min_us, times.max_us), (Some(2.0), Some(1.0), Some(3.0)));
        assert_eq!((times.mean_us, times.iterations), (Some(2.0), Some(3)));
        assert!((times.cv_pct.unwrap() - 40.824_829).abs() < 1e-6);
        assert_eq!(Times::of(&[], CONFIDENCE), Times::default());
    }

    /// From tables of the sign test at 95 %.
    #[test]
    fn intervals_are_those_of_the_sign_test() {
        let orders = [
            (5, None),
            (6, Some(1)),
            (8, Some(1)),
            (9, Some(2)),
            (10, Some(2)),
            (20, Some(6)),
            (25, Some(8)),
            (30, Some(10)),
            (50, Some(18)),
            (100, Some(40)),
        ];
        for (n, k) in orders {
            assert_eq!(order_from_end(n, 0.95), k, "{n}");
        }
        assert_eq!((order_from_end(0, 0.95), order_from_end(1, 0.5)), (None, None));
        assert_eq!((order_from_end(9, 1.0), order_from_end(9, f64::NAN)), (None, None));
    }

    #[test]
    fn a_million_times_have_an_interval_as_the_normal_distribution_gives_it() {
        let n = 1_000_000;
        let k = order_from_end(n, 0.95).unwrap() as f64;
        let normal = n as f64 / 2.0 - 1.959_964 * (n as f64).sqrt() / 2.0;
        assert!((k - normal).abs() < 2.0, "{k} {normal}");
    }

    /// P(B ≤ j) by the sum itself.
    fn cdf(n: usize, last: usize) -> f64 {
        let mut term = 0.5_f64.powi(n as i32);
        let mut sum = 0.0;
        for j in 0..=last {
            sum += term;
            term *= (n - j) as f64 / (j + 1) as f64;
        }
        sum
    }

    proptest! {
        #[test]
        fn the_interval_is_the_narrowest_that_keeps_its_confidence(
            n in 1_usize..300,
            confidence in 0.0_f64..0.999_999,
        ) {
            let tail = (1.0 - confidence) / 2.0;
            match order_from_end(n, confidence) {
                None => prop_assert!(cdf(n, 0) > tail * (1.0 - 1e-9)),
                Some(k) => {
                    prop_assert!(k >= 1 && 2 * k <= n + 1);
                    prop_assert!(cdf(n, k - 1) <= tail * (1.0 + 1e-9) + 1e-12);
                    if 2 * (k + 1) <= n {
                        prop_assert!(cdf(n, k) > tail * (1.0 - 1e-9) - 1e-12);
                    }
                }
            }
        }

        #[test]
        fn everything_lies_between_the_ends_and_in_order(
            samples in prop::collection::vec(0.0_f64..1e6, 1..200),
        ) {
            let times = Times::of(&samples, CONFIDENCE);
            let [p50, p90, p99] = [times.p50_us, times.p90_us, times.p99_us].map(Option::unwrap);
            let [min, max, mean] = [times.min_us, times.max_us, times.mean_us].map(Option::unwrap);
            prop_assert!(min <= p50 && p50 <= p90.max(p50) && p90 <= p99 && p99 <= max);
            prop_assert!(min <= mean * (1.0 + 1e-12) && mean <= max * (1.0 + 1e-12));
            if let Some(interval) = times.interval {
                prop_assert!(min <= interval.low_us && interval.high_us <= max);
                prop_assert!(interval.low_us <= p50 && p50 <= interval.high_us);
            }
        }
    }
}
