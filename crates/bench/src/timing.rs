//! Repeated measurements and what is said of them: the median, and the least and the most beside
//! it.

use serde::Serialize;

/// Times of one case, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timing {
    pub median_ms: f64,
    pub least_ms: f64,
    pub most_ms: f64,
    pub iterations: usize,
}

impl Timing {
    /// Of at least one measurement, in any order.
    ///
    /// The median of an even number is the mean of the two in the middle.
    pub fn of(mut times_ms: Vec<f64>) -> Option<Timing> {
        times_ms.sort_by(f64::total_cmp);
        let (&least_ms, &most_ms) = (times_ms.first()?, times_ms.last()?);
        let half = times_ms.len() / 2;
        let median_ms = match times_ms.len() % 2 {
            0 => (times_ms[half - 1] + times_ms[half]) / 2.0,
            _ => times_ms[half],
        };
        Some(Timing { median_ms, least_ms, most_ms, iterations: times_ms.len() })
    }

    /// 10¹² operations per second at the median.
    pub fn tflops(&self, flops: f64) -> f64 {
        flops / (self.median_ms * 1e9)
    }

    /// 10⁹ bytes per second at the median.
    pub fn gb_per_s(&self, bytes: f64) -> f64 {
        bytes / (self.median_ms * 1e6)
    }
}

/// How often a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// Runs whose times are thrown away: loading, caches, clocks.
    pub warmup: usize,
    pub iterations: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let timing = Timing::of(vec![5.0, 1.0, 2.0]).unwrap();
        assert_eq!((timing.median_ms, timing.least_ms, timing.most_ms), (2.0, 1.0, 5.0));
        assert_eq!(Timing::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median_ms, 2.5);
        assert_eq!(Timing::of(Vec::new()), None);
        assert_eq!(timing.tflops(4e12), 2000.0);
        assert_eq!(timing.gb_per_s(2e9), 1000.0);
    }
}
