//! Time as a function of size: t = α + β·S in one to three segments, and what follows from it.
//!
//! Each segment is fitted by least squares of the *relative* error, so that small sizes count as
//! much as large ones; α and β are not negative. All divisions of the sizes into segments of at
//! least [`POINTS_MIN`] points are tried, and their number is the one with the least
//!
//! ```text
//! BIC = n · ln(RSS/n) + ln(n) · (2k + 3(k−1))         k segments, n points
//! ```
//!
//! where a breakpoint counts as three parameters, since its place is searched for (Ninomiya,
//! *Statistics & Probability Letters* 72, 2005, for change points). Errors below `FLOOR` are not
//! told from noise.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::row::Row;

/// Points of a segment at least.
pub const POINTS_MIN: usize = 3;

/// Segments at most.
pub(crate) const SEGMENTS_MAX: usize = 3;

/// The relative error that measuring has anyway.
pub(crate) const FLOOR: f64 = 0.005;

/// A straight piece.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The first size that it holds for; it holds up to the first of the next segment.
    pub from_bytes: u64,
    /// The largest measured size that it was fitted to.
    pub to_bytes: u64,
    /// Time of no bytes.
    pub alpha_us: f64,
    /// Time of one more byte.
    pub beta_us_per_byte: f64,
    /// The most of |fitted − measured| / measured of its sizes.
    pub max_error: f64,
}

impl Segment {
    /// The time of `bytes`.
    pub(crate) fn time_us(&self, bytes: u64) -> f64 {
        self.alpha_us + self.beta_us_per_byte * bytes as f64
    }

    /// Its slope as a bandwidth, in GB/s; infinite where bytes cost nothing.
    pub fn gb_per_s(&self) -> f64 {
        1e-3 / self.beta_us_per_byte
    }
}

/// A fitted curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// Ascending.
    pub segments: Vec<Segment>,
    /// Means and the most of |fitted − measured| / measured.
    pub mean_error: f64,
    pub max_error: f64,
}

impl Fit {
    /// The time of `bytes`; sizes below the first segment belong to it.
    pub(crate) fn time_us(&self, bytes: u64) -> f64 {
        let holds = self.segments.iter().rev().find(|segment| segment.from_bytes <= bytes);
        holds.or(self.segments.first()).map_or(f64::NAN, |segment| segment.time_us(bytes))
    }
}

/// Why there is no fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFit {
    /// The operation moves nothing, so that no size is to be told from another.
    NothingMoves,
    /// So many sizes have a time.
    TooFew { sizes: usize },
}

impl fmt::Display for NoFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoFit::NothingMoves => write!(f, "it moves no bytes"),
            NoFit::TooFew { sizes } => write!(
                f,
                "{sizes} of the {POINTS_MIN} sizes that a line needs were measured; measure more \
                 (--min, --max, --factor)"
            ),
        }
    }
}

/// Fits (bytes, µs) points with ascending sizes; points without a time above 0 are left out.
///
/// ```
/// # use bench::collectives::fit::fit;
/// // 10 µs and 100 GB/s.
/// let sizes = (10..28).map(|log| 1_u64 << log);
/// let times: Vec<(u64, f64)> = sizes.map(|bytes| (bytes, 10.0 + bytes as f64 / 1e5)).collect();
/// let line = fit(&times).unwrap().segments[0];
/// assert!((line.alpha_us - 10.0).abs() < 1e-6 && (line.gb_per_s() - 100.0).abs() < 1e-3);
/// ```
///
/// # Errors
/// [`NoFit`] where fewer than [`POINTS_MIN`] are left.
pub fn fit(points: &[(u64, f64)]) -> Result<Fit, NoFit> {
    let usable = |(_, time): &(u64, f64)| time.is_finite() && *time > 0.0;
    let points: Vec<(u64, f64)> = points.iter().copied().filter(usable).collect();
    let too_few = NoFit::TooFew { sizes: points.len() };
    let best = (1..=SEGMENTS_MAX)
        .filter_map(|count| divide(&points, count))
        .min_by(|a, b| criterion(a, points.len()).total_cmp(&criterion(b, points.len())))
        .ok_or(too_few)?;
    let mut fit = Fit { segments: best.segments, mean_error: 0.0, max_error: 0.0 };
    let errors: Vec<f64> =
        points.iter().map(|&(bytes, time)| (fit.time_us(bytes) / time - 1.0).abs()).collect();
    fit.mean_error = errors.iter().sum::<f64>() / errors.len() as f64;
    fit.max_error = errors.iter().copied().fold(0.0, f64::max);
    Ok(fit)
}

/// Segments, and the sum of their squared relative errors.
#[derive(Clone)]
struct Division {
    segments: Vec<Segment>,
    rss: f64,
}

fn criterion(division: &Division, points: usize) -> f64 {
    let (n, k) = (points as f64, division.segments.len() as f64);
    let rss = division.rss.max(n * FLOOR * FLOOR);
    n * (rss / n).ln() + n.ln() * (2.0 * k + 3.0 * (k - 1.0))
}

/// The best division into `count` segments, by dynamic programming over the last one.
fn divide(points: &[(u64, f64)], count: usize) -> Option<Division> {
    let n = points.len();
    if n < count * POINTS_MIN {
        return None;
    }
    // For each end: the best division of the points before it.
    let mut best: Vec<Option<Division>> = (0..=n).map(|end| one(&points[..end])).collect();
    for _ in 1..count {
        let longer = |end: usize| {
            let divided = (0..end).filter_map(|middle| {
                let (before, last) = (best[middle].as_ref()?, one(&points[middle..end])?);
                let segments = [&before.segments[..], &last.segments[..]].concat();
                Some(Division { segments, rss: before.rss + last.rss })
            });
            divided.min_by(|a, b| a.rss.total_cmp(&b.rss))
        };
        best = (0..=n).map(longer).collect();
    }
    best.pop().flatten()
}

/// One segment: minimizes Σ (α/t + β·S/t − 1)² for α, β ≥ 0.
fn one(points: &[(u64, f64)]) -> Option<Division> {
    if points.len() < POINTS_MIN {
        return None;
    }
    // In units of the largest size, so that no square is out of range.
    let scale = points.last().map_or(1.0, |&(bytes, _)| (bytes as f64).max(1.0));
    let [mut uu, mut uv, mut vv, mut u, mut v] = [0.0; 5];
    for &(bytes, time) in points {
        let (a, b) = (1.0 / time, bytes as f64 / scale / time);
        uu += a * a;
        uv += a * b;
        vv += b * b;
        u += a;
        v += b;
    }
    let determinant = uu * vv - uv * uv;
    let flat = (u / uu, 0.0);
    let (alpha, beta) = match determinant > 1e-12 * uu * vv {
        true => {
            let (alpha, beta) = ((u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant);
            match (alpha >= 0.0, beta >= 0.0) {
                (true, true) => (alpha, beta),
                (false, _) if vv > 0.0 => (0.0, v / vv),
                _ => flat,
            }
        }
        false => flat,
    };
    let mut segment = Segment {
        from_bytes: points[0].0,
        to_bytes: points[points.len() - 1].0,
        alpha_us: alpha,
        beta_us_per_byte: beta / scale,
        max_error: 0.0,
    };
    let error = |&(bytes, time): &(u64, f64)| (segment.time_us(bytes) / time - 1.0).abs();
    let rss = points.iter().map(|point| error(point).powi(2)).sum();
    segment.max_error = points.iter().map(error).fold(0.0, f64::max);
    Some(Division { segments: vec![segment], rss })
}

/// Sizes at which a curve reaches parts of its peak; sizes between two points are interpolated,
/// both in logarithms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// The most that was measured.
    pub peak_busbw_gb_per_s: f64,
    pub peak_bytes: u64,
    /// n½: the smallest size with half of the peak.
    pub half_bytes: u64,
    /// n90: the smallest size with 90 % of the peak.
    pub ninety_bytes: u64,
    /// False where the largest size is still more than 5 % above the one before: the peak, and with
    /// it the sizes above, lie beyond what was measured.
    pub saturated: bool,
}

/// Of the rows of one curve, ascending by size; `None` without a bandwidth above 0.
pub fn reach(rows: &[&Row]) -> Option<Reach> {
    let points = rows.iter().filter_map(|row| {
        let busbw = row.busbw_gb_per_s.filter(|busbw| busbw.is_finite() && *busbw > 0.0)?;
        (row.key.bytes > 0).then_some((row.key.bytes, busbw))
    });
    let points: Vec<(u64, f64)> = points.collect();
    let &(peak_bytes, peak) = points.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let saturated = match points[..] {
        [.., (_, before), (_, last)] => last <= before * 1.05,
        _ => false,
    };
    Some(Reach {
        peak_busbw_gb_per_s: peak,
        peak_bytes,
        half_bytes: first_reaching(&points, 0.5 * peak),
        ninety_bytes: first_reaching(&points, 0.9 * peak),
        saturated,
    })
}

/// The smallest size with this bandwidth, which at least one point has.
fn first_reaching(points: &[(u64, f64)], gb_per_s: f64) -> u64 {
    let Some(index) = points.iter().position(|&(_, busbw)| busbw >= gb_per_s) else { return 0 };
    let (bytes, busbw) = points[index];
    let Some(&(below, slower)) = index.checked_sub(1).and_then(|before| points.get(before)) else {
        return bytes;
    };
    let part = (gb_per_s / slower).ln() / (busbw / slower).ln();
    let log = (below as f64).ln() + part * (bytes as f64 / below as f64).ln();
    (log.exp().round() as u64).clamp(below, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::row::tests::row;
    use super::*;

    fn sizes() -> Vec<u64> {
        (3..=30).map(|log| 1 << log).collect()
    }

    /// A curve that is made of these segments.
    fn made(segments: &[Segment]) -> Vec<(u64, f64)> {
        let fit = Fit { segments: segments.to_vec(), mean_error: 0.0, max_error: 0.0 };
        sizes().into_iter().map(|bytes| (bytes, fit.time_us(bytes))).collect()
    }

    fn segment(from_bytes: u64, alpha_us: f64, gb_per_s: f64) -> Segment {
        let beta_us_per_byte = 1e-3 / gb_per_s;
        Segment { from_bytes, to_bytes: 0, alpha_us, beta_us_per_byte, max_error: 0.0 }
    }

    #[test]
    fn three_segments_are_found_where_they_are() {
        let truth =
            [segment(8, 14.6, 30.0), segment(1 << 19, 21.8, 133.6), segment(1 << 25, 60.8, 180.9)];
        let fit = fit(&made(&truth)).unwrap();
        assert_eq!(fit.segments.len(), 3);
        assert!(fit.max_error < 1e-9, "{fit:?}");
        for (found, truth) in fit.segments.iter().zip(truth) {
            assert!((found.alpha_us / truth.alpha_us - 1.0).abs() < 1e-6, "{found:?}");
            assert!((found.gb_per_s() / truth.gb_per_s() - 1.0).abs() < 1e-6, "{found:?}");
            assert_eq!(found.from_bytes, truth.from_bytes);
            assert!(found.max_error < 1e-9, "{found:?}");
        }
        let ends: Vec<u64> = fit.segments.iter().map(|segment| segment.to_bytes).collect();
        assert_eq!(ends, [1 << 18, 1 << 24, 1 << 30]);
        // Below the first size the first segment goes on.
        assert!((fit.time_us(1) - 14.6).abs() < 0.01);
    }

    #[test]
    fn too_few_points_and_odd_ones_are_no_curve() {
        let too_few = |sizes| Err(NoFit::TooFew { sizes });
        assert_eq!(fit(&[]), too_few(0));
        assert_eq!(fit(&[(8, 1.0), (16, 1.0)]), too_few(2));
        assert_eq!(fit(&[(8, 1.0), (16, f64::NAN), (32, 0.0), (64, 1.0)]), too_few(2));
        assert!(NoFit::TooFew { sizes: 2 }.to_string().contains("2 of the 3 sizes"));
        // Times that fall have no slope below 0.
        let falling = fit(&[(8, 3.0), (16, 2.0), (32, 1.0)]).unwrap();
        assert_eq!(falling.segments[0].beta_us_per_byte, 0.0);
        assert!(fit(&[(8, 1.0), (8, 2.0), (8, 3.0)]).unwrap().time_us(8).is_finite());
    }

    #[test]
    fn n90_is_where_nine_tenths_of_the_peak_begin() {
        // busbw of all_reduce among 8 ranks is 1.75 S/t.
        let rows: Vec<Row> =
            sizes().into_iter().map(|bytes| row(bytes, 20.0 + bytes as f64 / 100e3)).collect();
        let rows: Vec<&Row> = rows.iter().collect();
        let reach = reach(&rows).unwrap();
        assert!(reach.saturated && reach.peak_bytes == 1 << 30);
        // Half of 100 GB/s where bytes take the 20 µs, nine tenths at nine times that.
        let near = |bytes: u64, expected: f64| (bytes as f64 / expected - 1.0).abs() < 0.08;
        assert!(near(reach.half_bytes, 2e6), "{reach:?}");
        assert!(near(reach.ninety_bytes, 18e6), "{reach:?}");
        let rising = super::reach(&rows[..10]).unwrap();
        assert!(!rising.saturated);
        assert_eq!(super::reach(&[]), None);
        assert_eq!(super::reach(&rows[..1]).unwrap().ninety_bytes, 8);
    }

    /// The same noise every time: what is rare would fail one run in so many otherwise.
    #[test]
    fn noise_alone_seldom_makes_segments() {
        const DRAWS: usize = 400;
        let points = made(&[segment(8, 20.0, 50.0)]);
        let noise = crate::measure::noise(DRAWS * points.len(), 11);
        let mut counts = [0; SEGMENTS_MAX + 1];
        for noise in noise.chunks(points.len()) {
            let noisy = points.iter().zip(noise);
            let noisy = noisy.map(|(&(bytes, t), n)| (bytes, t * (1.0 + 0.01 * f64::from(*n))));
            counts[fit(&noisy.collect::<Vec<_>>()).unwrap().segments.len()] += 1;
        }
        assert!(counts[1] > DRAWS * 9 / 10 && counts[3] < DRAWS / 50, "{counts:?}");
    }

    proptest! {
        /// Noise of 3 % is told again within three times that, however it falls.
        #[test]
        fn one_line_with_noise_is_found(
            alpha in 1.0_f64..100.0,
            gb_per_s in 1.0_f64..500.0,
            noise in prop::collection::vec(-0.03_f64..0.03, 28),
        ) {
            let points = made(&[segment(8, alpha, gb_per_s)]);
            let noisy = points.iter().zip(&noise).map(|(&(bytes, t), n)| (bytes, t * (1.0 + n)));
            let fit = fit(&noisy.collect::<Vec<_>>()).unwrap();
            prop_assert!(fit.max_error < 0.09, "{:?}", fit);
        }

        /// Two pieces that differ by more than the noise are found again, with their bandwidths.
        #[test]
        fn two_segments_are_found_under_noise(
            alpha in 2.0_f64..20.0,
            low in 5.0_f64..50.0,
            step in 10_u32..20,
            noise in prop::collection::vec(-0.02_f64..0.02, 28),
        ) {
            let border = 1_u64 << (step + 4);
            // From there on five times the latency, and four times the bandwidth where bytes count.
            let late = alpha * 5.0 + border as f64 * 1e-3 / low;
            let truth = [segment(8, alpha, low), segment(border, late, low * 4.0)];
            let points = made(&truth);
            let noisy = points.iter().zip(&noise).map(|(&(bytes, t), n)| (bytes, t * (1.0 + n)));
            let fit = fit(&noisy.collect::<Vec<_>>()).unwrap();
            prop_assert!(fit.segments.len() >= 2, "{:?}", fit);
            // The fit gives the measured times again, within twice the noise and the loss of a
            // line.
            for (bytes, time) in points {
                let off = (fit.time_us(bytes) / time - 1.0).abs();
                prop_assert!(off < 0.06, "{bytes}: {off} of {time}; {fit:?}");
            }
            let last = fit.segments[fit.segments.len() - 1];
            prop_assert!(
                (last.gb_per_s() / (low * 4.0) - 1.0).abs() < 0.15, "{:?}, {}", fit, low * 4.0
            );
        }

        /// More bytes never take less time within a segment, and among the sizes of a curve that
        /// rises not even from one to the next, beyond what the fit is off there.
        #[test]
        fn times_do_not_fall(
            alpha in 1.0_f64..50.0,
            rates in prop::collection::vec(1.0_f64..400.0, 3),
            borders in prop::collection::vec(6_usize..26, 2),
        ) {
            let mut points: Vec<(u64, f64)> = Vec::new();
            for bytes in sizes() {
                let passed = borders.iter().filter(|&&border| bytes >= 1 << border).count();
                let rate = rates[passed];
                let (before, time) = points.last().copied().unwrap_or((0, alpha));
                points.push((bytes, time + (bytes - before) as f64 * 1e-3 / rate));
            }
            let fit = fit(&points).unwrap();
            for pair in points.windows(2) {
                let (less, more) = (fit.time_us(pair[0].0), fit.time_us(pair[1].0));
                prop_assert!(more >= less * (1.0 - 2.0 * fit.max_error) - 1e-9, "{fit:?}");
            }
            for segment in &fit.segments {
                let (from, to) = (segment.from_bytes, segment.to_bytes);
                prop_assert!(segment.time_us(to) >= segment.time_us(from));
                prop_assert!(segment.max_error <= fit.max_error + 1e-12);
            }
        }

        #[test]
        fn any_points_have_a_fit_or_none(
            points in prop::collection::vec((0_u64..1 << 50, -1.0_f64..1e12), 0..40),
        ) {
            let mut points = points;
            points.sort_by_key(|point| point.0);
            if let Ok(fit) = fit(&points) {
                prop_assert!(fit.mean_error <= fit.max_error + 1e-12 && fit.max_error.is_finite());
                for segment in &fit.segments {
                    prop_assert!(segment.alpha_us >= 0.0 && segment.beta_us_per_byte >= 0.0);
                }
            }
        }
    }
}
