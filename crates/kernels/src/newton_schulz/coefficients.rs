//! Coefficient sets of the iterations: odd polynomials, one a step.
//!
//! One step maps every singular value `x` of a matrix to `p(x) = c₀·x + c₁·x³ + c₂·x⁵ + …` and
//! keeps the singular vectors. A good set brings all of `(0, 1]` near 1 in few steps.

/// `p(x) = c₀·x + c₁·x³ + c₂·x⁵ + …`.
#[derive(Debug, Clone, PartialEq)]
pub struct Odd {
    coefficients: Vec<f64>,
}

impl Odd {
    /// From the coefficients of `x`, `x³`, …; zeros at the end are dropped.
    pub fn new(mut coefficients: Vec<f64>) -> Odd {
        while coefficients.last() == Some(&0.0) {
            coefficients.pop();
        }
        Odd { coefficients }
    }

    /// Of `x`, `x³`, `x⁵`, …
    pub fn coefficients(&self) -> &[f64] {
        &self.coefficients
    }

    /// The slope at zero.
    pub fn slope(&self) -> f64 {
        self.coefficients.first().copied().unwrap_or(0.0)
    }

    /// `p(x)`.
    pub fn at(&self, x: f64) -> f64 {
        let square = x * x;
        x * self.coefficients.iter().rev().fold(0.0, |sum, c| sum * square + c)
    }

    /// `p(x / s)` as a polynomial of `x`.
    pub(crate) fn of_scaled(&self, s: f64) -> Odd {
        let powers = (0..).map(|i| s.powi(2 * i + 1));
        Odd { coefficients: self.coefficients.iter().zip(powers).map(|(c, s)| c / s).collect() }
    }
}

/// The continuation of a table after its last polynomial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Beyond {
    /// The last one again.
    #[default]
    Repeat,
    /// The table from its start.
    Cycle,
}

/// A family of coefficients.
#[derive(Debug, Clone, PartialEq)]
pub enum Coefficients {
    /// One quintic for every step, steep at zero, never settling closer than 0.68 to 1.13.
    /// Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    Jordan,
    /// The best composition of quintics for singular values in `[1e-3, 1]`.
    /// Source: Amsel, Persson, Musco, Gower, "The Polar Express" (arXiv 2505.16932): their degree-5
    /// table for l = 1e-3. All entries but the eighth, which repeats, are made for `x / safety`:
    /// rounding may carry a singular value above 1, where the untouched polynomials fall off
    /// (§3.4). The paper has 1.01; 1.05 is usual where the Gram matrix is kept in 16 bits.
    PolarExpress { safety: f64 },
    /// Polar Express computed with a cushion (2) and a safety of 2 %, for matrices divided by 1.02
    /// times their norm, as modded-nanogpt and dion use it.
    PolarExpressCushion,
    /// Source: Grishina, Smirnov, Rakhuba, "Accelerating Newton–Schulz iteration for
    /// orthogonalization via Chebyshev-type polynomials" (CANS, arXiv 2506.10935).
    Cans,
    /// The quintics of J. You, tuned step by step for the flattest result.
    You,
    /// The degree-`2κ+1` family whose every step is the Taylor polynomial of the sign at 1: cubic
    /// (1.5, -0.5), quintic (1.875, -1.25, 0.375), and on. Slow from small singular values, exact
    /// in the limit. Source: "Convergence of Muon with Newton–Schulz" (arXiv 2601.19156).
    Taylor { kappa: usize },
    /// Four quintics for a matrix whose rows are first scaled so that almost-orthogonality bounds
    /// its largest singular value by 1 (AOL; Turbo-Muon, arXiv 2512.04632). The published table
    /// turns singular values above 0.88 around, and a matrix of rank one has 1 exactly: the first
    /// polynomial is made for `0.8·x` here, which costs a fifth of the slope at zero.
    Aol,
    /// Cubics (arXiv 2606.00371): of all sets the least growth, so that the Gram form needs no
    /// restart, at the price of a range of 0.77 to 1.30.
    Cubic5,
    /// Eight steps of Jordan and two of (2, -1.5, 0.5), as DeepSeek-V4 has it.
    DeepseekV4,
    /// The user's own: the coefficients of `x`, `x³`, … of each step.
    Custom { steps: Vec<Vec<f64>>, beyond: Beyond },
}

const JORDAN: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Without the safety factor.
pub(super) const POLAR_EXPRESS: [[f64; 3]; 8] = [
    [8.28721201814563, -23.595886519098837, 17.300387312530933],
    [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
    [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
    [3.3184196573706015, -2.488488024314874, 0.51004894012372],
    [2.300652019954817, -1.6689039845747493, 0.4188073119525673],
    [1.891301407787398, -1.2679958271945868, 0.37680408948524835],
    [1.8750014808534479, -1.2500016453999487, 0.3750001645474248],
    [1.875, -1.25, 0.375],
];

const CUSHION: [[f64; 3]; 5] = [
    [8.156554524902461, -22.48329292557795, 15.878769915207462],
    [4.042929935166739, -2.808917465908714, 0.5000178451051316],
    [3.8916678022926607, -2.772484153217685, 0.5060648178503393],
    [3.285753657755655, -2.3681294933425376, 0.46449024233003106],
    [2.3465413258596377, -1.7097828382687081, 0.42323551169305323],
];

/// The divisor of a matrix, beside its norm, before the cushioned table.
const CUSHION_NORM: f64 = 1.02;

const CANS: [[f64; 3]; 5] = [
    [8.4703, -25.1081, 18.6293],
    [4.1828, -3.1087, 0.5806],
    [3.9619, -2.9541, 0.5630],
    [3.2866, -2.4647, 0.5074],
    [2.2737, -1.6447, 0.4162],
];

const YOU: [[f64; 3]; 5] = [
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
];

pub(super) const AOL: [[f64; 3]; 4] = [
    [4.0098, -7.0585, 2.4635],
    [3.4585, -5.5479, 2.5959],
    [2.7573, -3.2939, 1.4254],
    [2.7215, -3.0494, 1.3169],
];

/// Brings 1 below 0.88, where the first AOL polynomial crosses zero.
const AOL_NORM: f64 = 1.25;

const CUBIC5: [[f64; 2]; 5] = [
    [3.3656576, -3.3420992],
    [2.5744352, -1.4957376],
    [2.5368962, -1.4312570],
    [2.4418906, -1.2764040],
    [2.2230472, -0.9630650],
];

/// The greatest κ: its coefficients, up to 3000 of both signs, still cancel well in f32.
pub(crate) const MAX_KAPPA: usize = 12;

impl Coefficients {
    /// Polar Express with the paper's safety factor.
    pub const fn polar_express() -> Coefficients {
        Coefficients::PolarExpress { safety: 1.01 }
    }

    /// The word in configs and reports.
    pub fn word(&self) -> &'static str {
        match self {
            Coefficients::Jordan => "jordan",
            Coefficients::PolarExpress { .. } => "polar_express",
            Coefficients::PolarExpressCushion => "polar_express_cushion",
            Coefficients::Cans => "cans",
            Coefficients::You => "you",
            Coefficients::Taylor { .. } => "taylor",
            Coefficients::Aol => "aol",
            Coefficients::Cubic5 => "cubic5",
            Coefficients::DeepseekV4 => "deepseek_v4",
            Coefficients::Custom { .. } => "custom",
        }
    }

    /// The steps that the set was made for.
    pub fn usual_steps(&self) -> usize {
        match self {
            Coefficients::Aol => AOL.len(),
            Coefficients::DeepseekV4 => 10,
            Coefficients::Taylor { kappa } => 12_usize.div_ceil(kappa + 1).max(2) * 2,
            Coefficients::Custom { steps, .. } => steps.len(),
            _ => 5,
        }
    }

    /// Whether rows are first scaled by what almost-orthogonality bounds.
    pub fn is_preconditioned(&self) -> bool {
        matches!(self, Coefficients::Aol)
    }

    /// The polynomial of step `index`, counted from zero; of degree −1 in an empty custom table.
    pub fn step(&self, index: usize) -> Odd {
        match self {
            Coefficients::Jordan => Odd::new(JORDAN.to_vec()),
            Coefficients::PolarExpress { safety } => match entry(&POLAR_EXPRESS, index) {
                last if index + 1 >= POLAR_EXPRESS.len() => last,
                entry => entry.of_scaled(*safety),
            },
            Coefficients::PolarExpressCushion => first_scaled(&CUSHION, index, CUSHION_NORM),
            Coefficients::Cans => entry(&CANS, index),
            Coefficients::You => entry(&YOU, index),
            Coefficients::Taylor { kappa } => taylor(*kappa),
            Coefficients::Aol => first_scaled(&AOL, index, AOL_NORM),
            Coefficients::Cubic5 => entry(&CUBIC5, index),
            Coefficients::DeepseekV4 if index < 8 => Odd::new(JORDAN.to_vec()),
            Coefficients::DeepseekV4 => Odd::new(vec![2.0, -1.5, 0.5]),
            Coefficients::Custom { steps, beyond } => {
                let index = match beyond {
                    Beyond::Repeat => index.min(steps.len().saturating_sub(1)),
                    Beyond::Cycle => index % steps.len().max(1),
                };
                Odd::new(steps.get(index).cloned().unwrap_or_default())
            }
        }
    }
}

fn entry<const N: usize>(table: &[[f64; N]], index: usize) -> Odd {
    Odd::new(table[index.min(table.len() - 1)].to_vec())
}

fn first_scaled<const N: usize>(table: &[[f64; N]], index: usize, s: f64) -> Odd {
    match index {
        0 => entry(table, 0).of_scaled(s),
        _ => entry(table, index),
    }
}

/// `x·Σ_{s ≤ κ} c_s·(1 - x²)^s` with `c_s = (2s)! / (4^s·s!²)`, by powers of `x²`.
fn taylor(kappa: usize) -> Odd {
    let mut sum = vec![0.0; kappa + 1];
    // The coefficients of c_s·(1 - y)^s.
    let mut term = vec![0.0; kappa + 1];
    term[0] = 1.0;
    for s in 0..=kappa {
        if s > 0 {
            let ratio = (2 * s - 1) as f64 / (2 * s) as f64;
            for j in (0..=s).rev() {
                let below = if j > 0 { term[j - 1] } else { 0.0 };
                term[j] = ratio * (term[j] - below);
            }
        }
        sum.iter_mut().zip(&term).for_each(|(sum, term)| *sum += term);
    }
    Odd::new(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_taylor_family_is_that_of_the_paper() {
        assert_eq!(taylor(1), Odd::new(vec![1.5, -0.5]));
        assert_eq!(taylor(2), Odd::new(vec![1.875, -1.25, 0.375]));
        // Σ c_s (1 - y)^s by hand: c = 1, 1/2, 3/8, 5/16.
        assert_eq!(taylor(3), Odd::new(vec![2.1875, -2.1875, 1.3125, -0.3125]));
        for kappa in 1..=MAX_KAPPA {
            let mut c = 1.0;
            let mut sum = 0.0;
            for s in 0..=kappa {
                if s > 0 {
                    c *= (2 * s - 1) as f64 / (2 * s) as f64;
                }
                sum += c * 0.7_f64.powi(s as i32);
            }
            let x = 0.3_f64.sqrt();
            assert!((taylor(kappa).at(x) - x * sum).abs() < 1e-10, "{kappa}");
            // Flat at 1: that is what makes the convergence one of order κ + 1.
            assert!((taylor(kappa).at(1.0) - 1.0).abs() < 1e-10);
            assert!((taylor(kappa).at(1.0 - 1e-4) - 1.0).abs() < 2e-7, "{kappa}");
        }
    }

    #[test]
    fn tables_go_on_as_the_set_says() {
        let polar_express = Coefficients::polar_express();
        let last = Odd::new(vec![1.875, -1.25, 0.375]);
        assert_eq!(polar_express.step(7), last);
        assert_eq!(polar_express.step(30), last);
        assert!((polar_express.step(6).slope() * 1.01 - POLAR_EXPRESS[6][0]).abs() < 1e-12);
        assert_eq!(Coefficients::DeepseekV4.step(7), Odd::new(JORDAN.to_vec()));
        assert_eq!(Coefficients::DeepseekV4.step(8), Odd::new(vec![2.0, -1.5, 0.5]));
        assert_eq!(Coefficients::Cans.step(9), Coefficients::Cans.step(4));
        let steps = vec![vec![1.5, -0.5], vec![1.875, -1.25, 0.375, 0.0]];
        let custom = |beyond| Coefficients::Custom { steps: steps.clone(), beyond };
        assert_eq!(custom(Beyond::Repeat).step(3), last);
        assert_eq!(custom(Beyond::Repeat).step(4), last);
        assert_eq!(custom(Beyond::Cycle).step(4), Odd::new(vec![1.5, -0.5]));
    }

    #[test]
    fn a_scaled_polynomial_is_the_polynomial_of_the_scaled() {
        let odd = Odd::new(vec![3.0, -2.0, 0.5, 0.25]);
        for x in [0.0, 0.1, 0.7, 1.3] {
            assert!((odd.of_scaled(1.7).at(x) - odd.at(x / 1.7)).abs() < 1e-14);
        }
    }
}
