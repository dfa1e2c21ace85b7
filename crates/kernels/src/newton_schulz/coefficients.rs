//! Coefficients of the quintic iterations, and what they do to a singular value.
//!
//! One step maps every singular value `x` of a matrix to `p(x) = a·x + b·x³ + c·x⁵` and keeps the
//! singular vectors. A good set brings all of `(0, 1]` near 1 in few steps.

use crate::KernelError;

/// The most steps of one orthogonalization.
pub const MAX_STEPS: usize = 8;

/// One step: `p(x) = a·x + b·x³ + c·x⁵`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quintic {
    pub a: f64,
    pub b: f64,
    pub c: f64,
}

impl Quintic {
    const fn new(a: f64, b: f64, c: f64) -> Quintic {
        Quintic { a, b, c }
    }

    /// `p(x)`.
    pub fn at(self, x: f64) -> f64 {
        let square = x * x;
        x * (self.a + square * (self.b + square * self.c))
    }

    /// `p(x / s)` as a quintic of `x`.
    fn of_scaled(self, s: f64) -> Quintic {
        Quintic::new(self.a / s, self.b / s.powi(3), self.c / s.powi(5))
    }

    /// The positive points where `p` turns: `a + 3b·x² + 5c·x⁴ = 0`.
    fn turning_points(self) -> [Option<f64>; 2] {
        let (linear, square) = (3.0 * self.b, 5.0 * self.c);
        let positive = |root: f64| (root > 0.0).then(|| root.sqrt());
        if square == 0.0 {
            return [positive(-self.a / linear), None];
        }
        let discriminant = linear * linear - 4.0 * square * self.a;
        if discriminant < 0.0 {
            return [None, None];
        }
        let root = discriminant.sqrt();
        [-1.0, 1.0].map(|sign| positive((sign * root - linear) / (2.0 * square)))
    }
}

/// A family of coefficients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coefficients {
    /// One quintic for every step, steep at zero, never settling closer than 0.68 to 1.13.
    /// Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    Jordan,
    /// The best composition of quintics for singular values in `[1e-3, 1]`.
    /// Source: Amsel, Persson, Musco, Gower, "The Polar Express" (arXiv 2505.16932): their degree-5
    /// table for l = 1e-3 with their safety factor on all entries but the last, which repeats.
    PolarExpress,
}

const JORDAN: Quintic = Quintic::new(3.4445, -4.7750, 2.0315);

/// Without the safety factor.
const POLAR_EXPRESS: [Quintic; 8] = [
    Quintic::new(8.28721201814563, -23.595886519098837, 17.300387312530933),
    Quintic::new(4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    Quintic::new(3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    Quintic::new(3.3184196573706015, -2.488488024314874, 0.51004894012372),
    Quintic::new(2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    Quintic::new(1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    Quintic::new(1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    Quintic::new(1.875, -1.25, 0.375),
];

/// Each entry but the last is made for `x / 1.01`: rounding may carry a singular value above 1,
/// where the untouched polynomials fall off (Polar Express §3.4).
const POLAR_EXPRESS_SAFETY: f64 = 1.01;

impl Coefficients {
    /// The quintic of step `index`, counted from zero.
    pub fn step(self, index: usize) -> Quintic {
        match self {
            Coefficients::Jordan => JORDAN,
            Coefficients::PolarExpress => {
                let last = POLAR_EXPRESS.len() - 1;
                match index < last {
                    true => POLAR_EXPRESS[index].of_scaled(POLAR_EXPRESS_SAFETY),
                    false => POLAR_EXPRESS[last],
                }
            }
        }
    }
}

/// The quintics of one orthogonalization, first step first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Iteration {
    quintics: [Quintic; MAX_STEPS],
    count: usize,
    least_norm: f64,
}

impl Iteration {
    /// The first `steps` steps of a family.
    ///
    /// # Errors
    /// No step, or more than [`MAX_STEPS`].
    pub fn new(coefficients: Coefficients, steps: usize) -> Result<Iteration, KernelError> {
        if steps == 0 || steps > MAX_STEPS {
            let message = format!("{steps} steps; use 1 to {MAX_STEPS}");
            return Err(KernelError::Argument { kernel: "newton_schulz", message });
        }
        let quintics = std::array::from_fn(|index| coefficients.step(index));
        Ok(Iteration { quintics, count: steps, least_norm: 0.0 })
    }

    /// Divides by `least_norm` where the Frobenius norm is smaller, so that a matrix that fades
    /// away, as the momentum of an expert without tokens does, leaves no update behind. Muon's
    /// reference implementations use 1e-7.
    pub fn with_least_norm(self, least_norm: f64) -> Iteration {
        Iteration { least_norm, ..self }
    }

    /// The least divisor of a matrix.
    pub fn least_norm(&self) -> f64 {
        self.least_norm
    }

    /// The steps, in order.
    pub fn quintics(&self) -> &[Quintic] {
        &self.quintics[..self.count]
    }

    /// What the iteration makes of a singular value.
    pub fn at(&self, x: f64) -> f64 {
        self.quintics().iter().fold(x, |x, quintic| quintic.at(x))
    }
}

/// The least and the greatest value of the composed polynomial over singular values `lo..=hi`,
/// with `0 <= lo <= hi`.
///
/// Exact up to rounding: a step maps an interval onto an interval, whose ends are values at the
/// ends or at turning points.
pub fn composed_range(quintics: &[Quintic], lo: f64, hi: f64) -> (f64, f64) {
    quintics.iter().fold((lo, hi), |(lo, hi), quintic| {
        let turning = quintic.turning_points().into_iter().flatten();
        let turning = turning.flat_map(|x| [x, -x]).filter(|x| (lo..=hi).contains(x));
        let values = turning.chain([lo, hi]).map(|x| quintic.at(x));
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), value| {
            (least.min(value), greatest.max(value))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slope(quintics: &[Quintic]) -> f64 {
        quintics.iter().map(|quintic| quintic.a).product()
    }

    fn assert_range(quintics: &[Quintic], lo: f64, want: (f64, f64), digits: f64) {
        let got = composed_range(quintics, lo, 1.0);
        let close = |a: f64, b: f64| (a - b).abs() <= digits;
        assert!(close(got.0, want.0) && close(got.1, want.1), "{got:?} is not {want:?}");
    }

    /// The published behaviour of each set: slope at zero, and range over [1e-3, 1] and [1e-2, 1].
    #[test]
    fn output_ranges_are_the_published_ones() {
        let jordan = |steps| Iteration::new(Coefficients::Jordan, steps).unwrap();
        let five = jordan(5);
        assert!((slope(five.quintics()) - 485.0).abs() < 0.5);
        assert_range(five.quintics(), 1e-3, (0.470, 1.202), 6e-4);
        assert_range(five.quintics(), 1e-2, (0.682, 1.134), 6e-4);
        let six = jordan(6);
        assert!((slope(six.quintics()) - 1670.0).abs() < 0.5);
        assert_range(six.quintics(), 1e-3, (0.682, 1.202), 6e-4);
        assert_range(six.quintics(), 1e-2, (0.682, 1.134), 6e-4);

        let raw = &POLAR_EXPRESS[..5];
        assert!((slope(raw) - 1026.0).abs() < 0.5);
        assert_range(raw, 1e-3, (0.876, 1.124), 6e-4);
        assert_range(raw, 1e-2, (0.876, 1.124), 6e-4);

        let cushioned = raw.iter().map(|quintic| quintic.of_scaled(1.05)).collect::<Vec<_>>();
        assert!((slope(&cushioned) - 804.0).abs() < 0.5);
        assert_range(&cushioned, 1e-3, (0.729, 1.124), 6e-4);
        assert_range(&cushioned, 1e-2, (0.846, 1.124), 6e-4);

        let eight = Iteration::new(Coefficients::PolarExpress, 8).unwrap();
        assert!((slope(eight.quintics()) - 6363.0).abs() < 0.5);
        assert_range(eight.quintics(), 1e-3, (1.0, 1.0), 5e-5);
        assert_range(eight.quintics(), 1e-2, (1.0, 1.0), 5e-5);
    }

    /// Five steps with the factor 1.01, which is what runs use and nobody has published: computed
    /// from the table on a grid of 100 000 points, apart from this code.
    #[test]
    fn the_safety_factor_costs_a_little_of_the_range() {
        let five = Iteration::new(Coefficients::PolarExpress, 5).unwrap();
        assert!((slope(five.quintics()) - 976.27).abs() < 5e-3);
        assert_range(five.quintics(), 1e-3, (0.846177, 1.123559), 2e-6);
        assert_range(five.quintics(), 1e-2, (0.870263, 1.123559), 2e-6);
    }

    #[test]
    fn the_range_holds_every_value_and_is_reached() {
        for coefficients in [Coefficients::Jordan, Coefficients::PolarExpress] {
            for steps in 1..=MAX_STEPS {
                let iteration = Iteration::new(coefficients, steps).unwrap();
                let (least, greatest) = composed_range(iteration.quintics(), 1e-3, 1.0);
                let grid = (0..=200_000).map(|i| 1e-3 + (1.0 - 1e-3) * f64::from(i) / 200_000.0);
                let values = grid.map(|x| iteration.at(x));
                let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| {
                    (low.min(value), high.max(value))
                });
                assert!(least <= low + 1e-12 && high <= greatest + 1e-12);
                assert!(low - least < 1e-3 && greatest - high < 1e-3, "{coefficients:?} {steps}");
            }
        }
    }

    #[test]
    fn the_last_polar_express_entry_repeats_and_steps_are_bounded() {
        let last = Coefficients::PolarExpress.step(7);
        assert_eq!(last, Quintic::new(1.875, -1.25, 0.375));
        assert_eq!(Coefficients::PolarExpress.step(30), last);
        assert!(Coefficients::PolarExpress.step(6) != POLAR_EXPRESS[6]);
        for steps in [0, MAX_STEPS + 1] {
            let error = Iteration::new(Coefficients::Jordan, steps).unwrap_err();
            assert_eq!(error.to_string(), format!("newton_schulz: {steps} steps; use 1 to 8"));
        }
    }
}
