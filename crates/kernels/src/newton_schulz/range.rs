//! The image of an interval of singular values under a composition of odd polynomials.

use std::fmt;

use super::coefficients::Odd;

/// The least and the greatest value over an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    pub least: f64,
    pub greatest: f64,
}

/// As `0.846 to 1.124`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:.3} to {:.3}", self.least, self.greatest)
    }
}

/// The range of the composed polynomial over singular values `lo..=hi`, with `0 <= lo <= hi`.
///
/// Exact up to rounding: a step maps an interval onto an interval, whose ends are values at the
/// ends or at turning points.
pub(crate) fn composed_range(steps: &[Odd], lo: f64, hi: f64) -> Range {
    steps.iter().fold(Range { least: lo, greatest: hi }, |range, step| {
        let Range { least: lo, greatest: hi } = range;
        let turning = turning_points(step, lo.abs().max(hi.abs()));
        let turning = turning.into_iter().flat_map(|x| [x, -x]);
        let values = turning.filter(|x| (lo..=hi).contains(x)).chain([lo, hi]).map(|x| step.at(x));
        values.fold(
            Range { least: f64::INFINITY, greatest: f64::NEG_INFINITY },
            |Range { least, greatest }, value| Range {
                least: least.min(value),
                greatest: greatest.max(value),
            },
        )
    })
}

/// The points of `0..=hi` where `p` turns, and perhaps others.
fn turning_points(p: &Odd, hi: f64) -> Vec<f64> {
    // p'(x) = Σ (2i + 1)·c_i·y^i with y = x².
    let derivative = p.coefficients().iter().enumerate();
    let derivative: Vec<f64> = derivative.map(|(i, c)| (2 * i + 1) as f64 * c).collect();
    roots(&derivative, hi * hi).into_iter().map(f64::sqrt).collect()
}

/// The points of `0..=hi` where `Σ c_i·y^i` changes sign, in order.
///
/// Between two neighbouring points where the derivative changes sign the polynomial is monotone, so
/// that it crosses zero once or not at all, and bisection finds where.
fn roots(polynomial: &[f64], hi: f64) -> Vec<f64> {
    if polynomial.len() < 2 {
        return Vec::new();
    }
    let derivative = polynomial.iter().enumerate().skip(1);
    let derivative: Vec<f64> = derivative.map(|(i, c)| i as f64 * c).collect();
    let at = |y: f64| polynomial.iter().rev().fold(0.0, |sum, c| sum * y + c);
    let mut ends = vec![0.0];
    ends.extend(roots(&derivative, hi));
    ends.push(hi);
    let crossings = ends.windows(2).filter_map(|pair| bisect(at, pair[0], pair[1]));
    crossings.collect()
}

fn bisect(at: impl Fn(f64) -> f64, mut lo: f64, mut hi: f64) -> Option<f64> {
    let rising = at(lo) < at(hi);
    let below = |value: f64| (value < 0.0) == rising;
    if !below(at(lo)) || below(at(hi)) {
        return None;
    }
    loop {
        let middle = lo + (hi - lo) / 2.0;
        if middle <= lo || middle >= hi {
            return Some(hi);
        }
        if below(at(middle)) { lo = middle } else { hi = middle }
    }
}

#[cfg(test)]
mod tests {
    use super::super::coefficients::{AOL, Coefficients, POLAR_EXPRESS};
    use super::*;

    fn first(coefficients: &Coefficients, steps: usize) -> Vec<Odd> {
        (0..steps).map(|index| coefficients.step(index)).collect()
    }

    fn slope(steps: &[Odd]) -> f64 {
        steps.iter().map(Odd::slope).product()
    }

    /// Slope at zero, and range over [1e-3, 1] and [1e-2, 1], to the digits given.
    struct Published {
        name: &'static str,
        steps: Vec<Odd>,
        slope: f64,
        from_thousandth: (f64, f64),
        from_hundredth: (f64, f64),
    }

    fn published() -> Vec<Published> {
        let row = |name, steps, slope, from_thousandth, from_hundredth| Published {
            name,
            steps,
            slope,
            from_thousandth,
            from_hundredth,
        };
        let of = |coefficients: Coefficients, steps| first(&coefficients, steps);
        let raw: Vec<Odd> = POLAR_EXPRESS[..5].iter().map(|c| Odd::new(c.to_vec())).collect();
        let gram = Coefficients::PolarExpress { safety: 1.05 };
        vec![
            row("jordan", of(Coefficients::Jordan, 5), 485.0, (0.470, 1.202), (0.682, 1.134)),
            row("jordan", of(Coefficients::Jordan, 6), 1670.0, (0.682, 1.202), (0.682, 1.134)),
            row("you", of(Coefficients::You, 5), 493.0, (0.475, 1.145), (0.978, 1.032)),
            row("raw", raw, 1026.0, (0.876, 1.124), (0.876, 1.124)),
            row("safety 1.05", of(gram, 5), 804.0, (0.729, 1.124), (0.846, 1.124)),
            row(
                "cushion",
                of(Coefficients::PolarExpressCushion, 5),
                990.0 / 1.02,
                (0.847, 1.141),
                (0.859, 1.141),
            ),
            row("eight", of(Coefficients::polar_express(), 8), 6363.0, (1.0, 1.0), (1.0, 1.0)),
            row("cans", of(Coefficients::Cans, 5), 1049.0, (0.884, 1.120), (0.884, 1.120)),
            row("cubic5", of(Coefficients::Cubic5, 5), 119.0, (0.119, 1.300), (0.774, 1.300)),
            row(
                "deepseek",
                of(Coefficients::DeepseekV4, 10),
                79263.0,
                (1.0, 1.0005),
                (1.0, 1.0005),
            ),
            row(
                "taylor cubic",
                of(Coefficients::Taylor { kappa: 1 }, 10),
                58.0,
                (0.058, 1.0),
                (0.529, 1.0),
            ),
            row(
                "taylor quintic",
                of(Coefficients::Taylor { kappa: 2 }, 8),
                153.0,
                (0.152, 1.0),
                (0.943, 1.0),
            ),
        ]
    }

    #[test]
    fn output_ranges_are_the_published_ones() {
        for Published { name, steps, slope: want, from_thousandth, from_hundredth } in published() {
            let slope = slope(&steps);
            assert!((slope - want).abs() < 0.7, "{name}: slope {slope} is not {want}");
            for (lo, want) in [(1e-3, from_thousandth), (1e-2, from_hundredth)] {
                let got = composed_range(&steps, lo, 1.0);
                let close = |a: f64, b: f64| (a - b).abs() <= 6e-4;
                let both = close(got.least, want.0) && close(got.greatest, want.1);
                assert!(both, "{name} from {lo}: {got:?} is not {want:?}");
            }
        }
    }

    /// The published AOL table alone turns singular values around; with the first polynomial made
    /// for 0.8·x nothing does.
    #[test]
    fn aol_is_positive_up_to_its_bound() {
        let raw: Vec<Odd> = AOL.iter().map(|c| Odd::new(c.to_vec())).collect();
        let range = composed_range(&raw, 0.0, 1.0);
        assert!((range.least + 1.08).abs() < 2e-2, "{range:?}");
        let range = composed_range(&first(&Coefficients::Aol, 4), 1e-2, 1.0);
        assert!(range.least > 0.7 && range.greatest < 1.15, "{range:?}");
    }

    /// Five steps with the factor 1.01, which is what runs use and nobody has published: computed
    /// from the table on a grid of 100 000 points, apart from this code.
    #[test]
    fn the_safety_factor_costs_a_little_of_the_range() {
        let five = first(&Coefficients::polar_express(), 5);
        assert!((slope(&five) - 976.27).abs() < 5e-3);
        for (lo, want) in [(1e-3, (0.846177, 1.123559)), (1e-2, (0.870263, 1.123559))] {
            let got = composed_range(&five, lo, 1.0);
            assert!((got.least - want.0).abs() < 2e-6 && (got.greatest - want.1).abs() < 2e-6);
        }
    }

    #[test]
    fn the_range_holds_every_value_and_is_reached() {
        let sets = [
            Coefficients::Jordan,
            Coefficients::polar_express(),
            Coefficients::Cubic5,
            Coefficients::Taylor { kappa: 5 },
            Coefficients::Aol,
        ];
        for coefficients in sets {
            for steps in 1..=8 {
                let steps = first(&coefficients, steps);
                let range = composed_range(&steps, 1e-3, 1.0);
                let grid = (0..=200_000).map(|i| 1e-3 + (1.0 - 1e-3) * f64::from(i) / 200_000.0);
                let values = grid.map(|x| steps.iter().fold(x, |x, step| step.at(x)));
                let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
                    (low.min(value), high.max(value))
                });
                assert!(range.least <= low + 1e-12 && high <= range.greatest + 1e-12);
                let gap = (low - range.least).max(range.greatest - high);
                assert!(gap < 1e-3, "{coefficients:?}, {} steps: {gap}", steps.len());
            }
        }
    }

    #[test]
    fn sign_changes_of_any_degree_are_found() {
        // (y - 0.1)(y - 0.2)(y - 0.5)(y - 0.9)(y + 3)
        let mut product = vec![1.0];
        for root in [0.1, 0.2, 0.5, 0.9, -3.0] {
            let mut next = vec![0.0; product.len() + 1];
            for (i, c) in product.iter().enumerate() {
                next[i] -= root * c;
                next[i + 1] += c;
            }
            product = next;
        }
        let found = roots(&product, 1.0);
        assert_eq!(found.len(), 4);
        for (found, want) in found.iter().zip([0.1, 0.2, 0.5, 0.9]) {
            assert!((found - want).abs() < 1e-12, "{found} is not {want}");
        }
        // A double root is no change of sign.
        assert!(roots(&[0.25, -1.0, 1.0], 1.0).is_empty());
    }
}
