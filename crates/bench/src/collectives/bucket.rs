//! How large a bucket of gradients should be, from a measured curve: a pure function.
//!
//! ```text
//! wanted = n90, the smallest size with 90 % of the peak
//! least  = n½: below it an operation is more latency than bytes
//! bucket = min(wanted, max(least, what the window hides), max(least, what there is to divide))
//! ```
//!
//! A bucket that is sent while something else is computed is free as long as it takes no longer
//! than that: what its **window** hides. A larger one than that is waited for, even if it moves
//! more bytes per second.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fit::{Fit, Reach};

/// Bounds of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bounds {
    /// Time of what is computed while a bucket is sent.
    pub window_us: Option<f64>,
    /// Bytes, for other reasons.
    pub most_bytes: Option<u64>,
}

/// The bound that decided the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decided {
    /// 90 % of the peak.
    Peak,
    /// The window hides no more.
    Window,
    /// [`Bounds::most_bytes`].
    Most,
    /// The window or the most is below the size with half of the peak, which was taken.
    Half,
}

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Decided::Peak => "the smallest size with 90 % of the peak",
            Decided::Window => "the largest size that the computation beside it hides",
            Decided::Most => "the most that it may be, below 90 % of the peak",
            Decided::Half => "the smallest size with half of the peak, though more than is hidden",
        })
    }
}

/// A size and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    pub bytes: u64,
    pub decided: Decided,
}

/// The bucket for a curve.
///
/// ```
/// use bench::collectives::bucket::{Bounds, bucket};
/// use bench::collectives::fit::{Reach, fit};
///
/// // 10 µs and 100 GB/s: half of that at 1 MB, 90 % at 9 MB.
/// let sizes = (10..28).map(|log| 1_u64 << log);
/// let times: Vec<(u64, f64)> = sizes.map(|bytes| (bytes, 10.0 + bytes as f64 / 1e5)).collect();
/// let reach = Reach {
///     peak_busbw_gb_per_s: 99.3,
///     peak_bytes: 1 << 27,
///     half_bytes: 1_000_000,
///     ninety_bytes: 9_000_000,
///     saturated: true,
/// };
/// let fit = fit(&times).unwrap();
/// let hidden = Bounds { window_us: Some(50.0), most_bytes: None };
/// assert_eq!(bucket(&fit, &reach, Bounds::default()).bytes, 9_000_000);
/// assert!(bucket(&fit, &reach, hidden).bytes.abs_diff(4_000_000) < 1000);
/// ```
pub fn bucket(fit: &Fit, reach: &Reach, bounds: Bounds) -> Bucket {
    let wanted = reach.ninety_bytes.max(1);
    let least = reach.half_bytes.clamp(1, wanted);
    let window = bounds.window_us.map(|window_us| (hidden_bytes(fit, window_us), Decided::Window));
    let most = bounds.most_bytes.map(|most| (most, Decided::Most));
    let limits = [window, most].into_iter().flatten().map(|(bytes, decided)| match bytes < least {
        true => (least, Decided::Half),
        false => (bytes, decided),
    });
    let all = std::iter::once((wanted, Decided::Peak)).chain(limits);
    let least_of_all = all.min_by_key(|&(bytes, _)| bytes);
    let (bytes, decided) = least_of_all.unwrap_or((wanted, Decided::Peak));
    Bucket { bytes, decided }
}

/// The largest size that takes no longer than `window_us`; 0 where none does.
pub(crate) fn hidden_bytes(fit: &Fit, window_us: f64) -> u64 {
    let ends = fit.segments.iter().skip(1).map(|next| next.from_bytes.saturating_sub(1));
    let ends = ends.chain([u64::MAX]);
    let hidden = fit.segments.iter().enumerate().zip(ends).filter_map(|((index, segment), end)| {
        // Sizes below the first segment belong to it.
        let start = if index == 0 { 0 } else { segment.from_bytes };
        let left_us = window_us - segment.alpha_us;
        if left_us.is_nan() || left_us < 0.0 {
            return None;
        }
        // Without a slope all of its sizes; casts saturate.
        let bytes = match segment.beta_us_per_byte > 0.0 {
            true => (left_us / segment.beta_us_per_byte) as u64,
            false => u64::MAX,
        };
        (bytes >= start).then_some(bytes.min(end))
    });
    hidden.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fit::Segment;
    use super::*;

    fn line(from_bytes: u64, alpha_us: f64, gb_per_s: f64) -> Segment {
        let beta_us_per_byte = 1e-3 / gb_per_s;
        Segment { from_bytes, to_bytes: 0, alpha_us, beta_us_per_byte, max_error: 0.0 }
    }

    fn fit(segments: &[Segment]) -> Fit {
        Fit { segments: segments.to_vec(), mean_error: 0.0, max_error: 0.0 }
    }

    fn reach(half_bytes: u64, ninety_bytes: u64) -> Reach {
        let peak_bytes = ninety_bytes * 8;
        Reach { peak_busbw_gb_per_s: 10.0, peak_bytes, half_bytes, ninety_bytes, saturated: true }
    }

    #[test]
    fn what_is_hidden_is_found_in_each_segment() {
        // 1 µs and 1 GB/s up to 1000 bytes, then 10 µs and 10 GB/s.
        let fit = fit(&[line(8, 1.0, 1.0), line(1000, 10.0, 10.0)]);
        let hidden = |window_us| hidden_bytes(&fit, window_us);
        assert_eq!([hidden(0.5), hidden(1.0), hidden(1.5)], [0, 0, 500]);
        // Everything of the first segment, and nothing of the second.
        assert_eq!([hidden(2.0), hidden(9.0), hidden(10.05)], [999; 3]);
        assert_eq!((hidden(20.0), hidden(f64::NAN)), (100_000, 0));
        let flat =
            Fit { segments: vec![Segment { beta_us_per_byte: 0.0, ..line(8, 1.0, 1.0) }], ..fit };
        assert_eq!(hidden_bytes(&flat, 1.0), u64::MAX);
    }

    #[test]
    fn each_bound_is_told() {
        let (fit, reach) = (fit(&[line(8, 10.0, 10.0)]), reach(100_000, 900_000));
        let choose = |window_us, most_bytes| bucket(&fit, &reach, Bounds { window_us, most_bytes });
        let bucket = |bytes, decided| Bucket { bytes, decided };
        assert_eq!(choose(None, None), bucket(900_000, Decided::Peak));
        assert_eq!(choose(Some(1e9), Some(1 << 40)), bucket(900_000, Decided::Peak));
        assert_eq!(choose(Some(30.0), Some(1 << 40)), bucket(200_000, Decided::Window));
        assert_eq!(choose(Some(30.0), Some(150_000)), bucket(150_000, Decided::Most));
        assert_eq!(choose(Some(11.0), None), bucket(100_000, Decided::Half));
        assert_eq!(choose(None, Some(0)), bucket(100_000, Decided::Half));
    }

    proptest! {
        /// A longer window and more to divide never make the bucket smaller, and it stays between
        /// the sizes with half and with 90 % of the peak.
        #[test]
        fn the_bucket_grows_with_its_bounds(
            alphas in prop::collection::vec(0.1_f64..100.0, 3),
            rates in prop::collection::vec(0.1_f64..500.0, 3),
            half in 1_u64..1 << 30,
            more in 0_u64..1 << 32,
            windows in prop::array::uniform2(0.0_f64..1e7),
            most in prop::array::uniform2(0_u64..1 << 36),
        ) {
            let segments = [0, 1, 2].map(|i| line(8 << (10 * i), alphas[i], rates[i]));
            let (fit, reach) = (fit(&segments), reach(half, half + more));
            let choose = |window, most| {
                let bounds = Bounds { window_us: Some(window), most_bytes: Some(most) };
                bucket(&fit, &reach, bounds).bytes
            };
            let (short, long) = (windows[0].min(windows[1]), windows[0].max(windows[1]));
            let (few, many) = (most[0].min(most[1]), most[0].max(most[1]));
            prop_assert!(choose(short, few) <= choose(long, few));
            prop_assert!(choose(short, few) <= choose(short, many));
            for bytes in [choose(short, few), choose(long, many)] {
                prop_assert!((reach.half_bytes..=reach.ninety_bytes).contains(&bytes));
            }
        }

        /// The bucket's time fits the window, and with one byte more of the same segment it would
        /// not.
        #[test]
        fn what_is_hidden_fits_the_window(
            alpha in 0.1_f64..100.0,
            rate in 0.1_f64..500.0,
            window in 0.1_f64..1e6,
        ) {
            let fit = fit(&[line(8, alpha, rate)]);
            let bytes = hidden_bytes(&fit, window);
            if bytes > 0 {
                prop_assert!(fit.time_us(bytes) <= window * (1.0 + 1e-9));
            }
            prop_assert!(fit.time_us(bytes + 1) >= window.min(alpha) * (1.0 - 1e-9));
            if window >= alpha {
                prop_assert!(fit.time_us(bytes + 1) >= window * (1.0 - 1e-9));
            }
        }
    }
}
