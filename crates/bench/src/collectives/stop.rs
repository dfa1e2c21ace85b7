//! When a case has been measured often enough: a state machine that is fed times.
//!
//! ```text
//! push(time) ─▶ iterations_max, seconds_max reached?            ─▶ Stop
//!            └▶ iterations_min reached, and 5 % more times than at the last look
//!                  └▶ half width of the median's interval ≤ x · median ─▶ Stop
//! ```
//!
//! It looks only when the number of times has grown by 5 %, so all looks together sort each time a
//! few dozen times. Looking repeatedly stops a little too early in some cases: the interval that is
//! reported is that of a fixed number of times.

use serde::{Deserialize, Serialize};

use super::stats::{CONFIDENCE, median, median_interval};

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StopRule {
    /// Half the width of the interval, as a part of the median, that is narrow enough: 0.01 is 1 %.
    pub half_width: f64,
    /// Of the interval, below 1.
    pub confidence: f64,
    /// No interval is looked at before.
    pub iterations_min: u64,
    pub iterations_max: u64,
    /// Of all measured times together.
    pub seconds_max: f64,
}

impl Default for StopRule {
    fn default() -> StopRule {
        StopRule {
            half_width: 0.01,
            confidence: CONFIDENCE,
            iterations_min: 20,
            iterations_max: 100_000,
            seconds_max: 2.0,
        }
    }
}

/// Why measuring stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The interval is narrow enough.
    Narrow,
    Iterations,
    Seconds,
}

/// The times of a case so far.
#[derive(Debug, Clone)]
pub struct Sampler {
    rule: StopRule,
    samples_us: Vec<f64>,
    total_us: f64,
    /// Number of times at which the interval is looked at next.
    next_look: usize,
}

impl Sampler {
    pub fn new(rule: StopRule) -> Sampler {
        let next_look = usize::try_from(rule.iterations_min).unwrap_or(usize::MAX).max(1);
        Sampler { rule, samples_us: Vec::new(), total_us: 0.0, next_look }
    }

    /// Takes one more time, in microseconds, and says whether it was the last one.
    ///
    /// Times after a stop are counted all the same.
    pub fn push(&mut self, time_us: f64) -> Option<Stop> {
        self.samples_us.push(time_us);
        self.total_us += time_us;
        let n = self.samples_us.len();
        if n >= self.next_look {
            self.next_look = n + (n / 20).max(1);
            if self.look() {
                return Some(Stop::Narrow);
            }
        }
        if n as u64 >= self.rule.iterations_max {
            return Some(Stop::Iterations);
        }
        (self.total_us >= self.rule.seconds_max * 1e6).then_some(Stop::Seconds)
    }

    /// Whether the interval is narrow enough.
    fn look(&self) -> bool {
        let mut sorted = self.samples_us.clone();
        sorted.sort_by(f64::total_cmp);
        match (median_interval(&sorted, self.rule.confidence), median(&sorted)) {
            (Some(interval), Some(median)) => {
                interval.half_width_us() <= self.rule.half_width * median
            }
            _ => false,
        }
    }

    /// All times, in the order in which they came.
    pub(crate) fn samples_us(&self) -> &[f64] {
        &self.samples_us
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(rule: StopRule, time: impl Fn(usize) -> f64) -> (Stop, usize) {
        let mut sampler = Sampler::new(rule);
        for i in 0..1_000_000 {
            if let Some(stop) = sampler.push(time(i)) {
                return (stop, sampler.samples_us().len());
            }
        }
        panic!("never stopped");
    }

    #[test]
    fn equal_times_stop_as_soon_as_they_may() {
        let rule = StopRule { iterations_min: 20, ..StopRule::default() };
        assert_eq!(run(rule, |_| 5.0), (Stop::Narrow, 20));
        // Fewer than six times have no interval.
        let rule = StopRule { iterations_min: 1, ..rule };
        assert_eq!(run(rule, |_| 5.0), (Stop::Narrow, 6));
    }

    #[test]
    fn noisy_times_stop_by_number_or_by_time() {
        let noisy = |i: usize| if i.is_multiple_of(2) { 10.0 } else { 20.0 };
        let rule = StopRule { iterations_max: 300, ..StopRule::default() };
        assert_eq!(run(rule, noisy), (Stop::Iterations, 300));
        let rule = StopRule { seconds_max: 0.001, ..StopRule::default() };
        assert_eq!(run(rule, noisy), (Stop::Seconds, 67));
    }

    /// 100 µs, give or take 1.5 %: however many times there are, the interval is no narrower.
    #[test]
    fn the_half_width_is_that_of_the_rule() {
        let either = |i: usize| if i.is_multiple_of(2) { 98.5 } else { 101.5 };
        let rule = |half_width| StopRule { half_width, iterations_max: 200, ..StopRule::default() };
        assert_eq!(run(rule(0.016), either), (Stop::Narrow, 20));
        assert_eq!(run(rule(0.014), either), (Stop::Iterations, 200));
    }

    /// More noise needs more times, and rare outliers, however large, need none.
    #[test]
    fn what_counts_is_the_spread_around_the_median() {
        let spread = |width: f64| move |i: usize| 100.0 + width * ((i * 7919) % 101) as f64;
        let rule = StopRule { iterations_min: 8, ..StopRule::default() };
        let (few, many) = (run(rule, spread(0.1)), run(rule, spread(1.0)));
        assert_eq!((few.0, many.0), (Stop::Narrow, Stop::Narrow));
        assert!(few.1 < many.1, "{few:?} {many:?}");
        let outliers = |i: usize| if i % 50 == 49 { 1e4 } else { 100.0 };
        assert_eq!(run(rule, outliers), (Stop::Narrow, 8));
    }

    proptest! {
        #[test]
        fn every_rule_ends(
            half_width in 0.0_f64..0.2,
            iterations_max in 1_u64..500,
            seconds_max in 0.0_f64..0.01,
            seed in 1_usize..1000,
        ) {
            let rule = StopRule {
                half_width, iterations_max, seconds_max, ..StopRule::default()
            };
            let (stop, n) = run(rule, |i| 1.0 + ((i * seed) % 97) as f64);
            prop_assert!(n as u64 <= iterations_max);
            prop_assert!(stop != Stop::Narrow || n >= 20);
        }
    }
}
