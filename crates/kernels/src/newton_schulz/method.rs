//! The method that a person asks for, and the checked form of it.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::KERNEL;
use super::coefficients::{Coefficients, MAX_KAPPA, Odd};
use super::range::{Range, composed_range};
use crate::KernelError;

/// How the iteration is arranged; all arrangements follow the same polynomial.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Gram where that saves a tenth of the FLOPs and the storage carries it, else symmetric: a
    /// pure function of shape and method.
    #[default]
    Auto,
    /// Every product in full: what most published code does.
    Standard,
    /// Symmetric products compute one triangle.
    Symmetric,
    /// The iteration runs on the Gram matrix, and the matrix itself is multiplied at the end, and
    /// at restarts.
    Gram,
    /// The exact polar factor by a singular value decomposition, on CPUs.
    Svd,
}

impl Algorithm {
    /// Every algorithm, the usual first.
    pub const ALL: [Algorithm; 5] = [
        Algorithm::Auto,
        Algorithm::Standard,
        Algorithm::Symmetric,
        Algorithm::Gram,
        Algorithm::Svd,
    ];

    /// The word in configs and reports.
    pub fn word(self) -> &'static str {
        match self {
            Algorithm::Auto => "auto",
            Algorithm::Standard => "standard",
            Algorithm::Symmetric => "symmetric",
            Algorithm::Gram => "gram",
            Algorithm::Svd => "svd",
        }
    }
}

/// The type that every matrix between two products is rounded to; products accumulate in f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// No rounding: f32 (f64 where the operands are).
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Storage {
    /// Every type.
    pub const ALL: [Storage; 3] = [Storage::F32, Storage::Bf16, Storage::F16];

    /// The word in configs and reports.
    pub fn word(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::Bf16 => "bf16",
            Storage::F16 => "f16",
        }
    }
}

/// An orthogonalization as a person describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    pub algorithm: Algorithm,
    /// Steps, counted from zero, before which the Gram form starts afresh from the matrix. `None`
    /// chooses them by the slopes of the set, so that rounding is not amplified.
    pub restarts: Option<Vec<usize>>,
    pub coefficients: Coefficients,
    pub steps: usize,
    pub storage: Storage,
    /// Divides by this where the Frobenius norm is smaller, so that a matrix that fades away, as
    /// the momentum of an expert without tokens does, leaves no update behind. Muon's reference
    /// implementations use 1e-7.
    pub least_norm: f64,
    /// The relative rounding error that the elements carry already, where it exceeds that of the
    /// type that computes: 2⁻⁸ of values that were stored as bf16. The exact polar factor alone
    /// asks for it.
    pub input_roundoff: f64,
}

impl Default for Method {
    fn default() -> Method {
        Method {
            algorithm: Algorithm::Auto,
            restarts: None,
            coefficients: Coefficients::polar_express(),
            steps: 5,
            storage: Storage::F32,
            least_norm: 0.0,
            input_roundoff: 0.0,
        }
    }
}

/// The most steps: far beyond any use, and a program of so many is still small.
pub const MAX_STEPS: usize = 1000;

/// The highest degree of a polynomial.
pub(crate) const MAX_DEGREE: usize = 2 * MAX_KAPPA + 1;

/// Products of slopes that a Gram form survives without a restart, measured on spectra of momentum
/// in 16 bits: see the rounding table among the tests. Cubics square the Gram matrix's error less
/// often.
const MOST_GROWTH: f64 = 48.0;
const MOST_GROWTH_OF_CUBICS: f64 = 128.0;

/// A method whose polynomials were checked; clones share them.
#[derive(Debug, Clone, PartialEq)]
pub struct Iteration(Arc<Checked>);

#[derive(Debug, PartialEq)]
struct Checked {
    method: Method,
    polynomials: Vec<Odd>,
    restarts: Vec<usize>,
}

impl Iteration {
    /// Checks a method.
    ///
    /// # Errors
    /// No step, or more than [`MAX_STEPS`]; restarts out of order or range; coefficients that are
    /// not finite, of too high a degree, or whose composed polynomial is negative or beyond 2
    /// somewhere in `[0, 1]`.
    pub fn new(method: &Method) -> Result<Iteration, KernelError> {
        if method.steps == 0 || method.steps > MAX_STEPS {
            return Err(refused(format!("{} steps; use 1 to {MAX_STEPS}", method.steps)));
        }
        check_numbers(method)?;
        let polynomials: Vec<Odd> =
            (0..method.steps).map(|index| method.coefficients.step(index)).collect();
        let set = method.coefficients.word();
        for (index, odd) in polynomials.iter().enumerate() {
            let (finite, degree) = (
                odd.coefficients().iter().all(|c| c.is_finite()),
                2 * odd.coefficients().len() as i64 - 1,
            );
            if !finite || !(3..=MAX_DEGREE as i64).contains(&degree) {
                let message = format!(
                    "step {index} of {set} is {:?}; use finite coefficients of degree 3 to \
                     {MAX_DEGREE}",
                    odd.coefficients()
                );
                return Err(refused(message));
            }
        }
        let range = composed_range(&polynomials, 0.0, 1.0);
        let slope: f64 = polynomials.iter().map(Odd::slope).product();
        let sane = range.least >= -1e-9 && range.greatest <= 2.0 && slope > 0.0;
        if !sane && method.algorithm != Algorithm::Svd {
            return Err(KernelError::Coefficients { set, steps: method.steps, range });
        }
        let restarts = method.restarts.clone().unwrap_or_else(|| default_restarts(&polynomials));
        let ordered = restarts.windows(2).all(|pair| pair[0] < pair[1]);
        if !ordered || restarts.iter().any(|at| !(1..method.steps).contains(at)) {
            let most = method.steps - 1;
            let message = format!("restarts {restarts:?}; use rising numbers from 1 to {most}");
            return Err(refused(message));
        }
        Ok(Iteration(Arc::new(Checked { method: method.clone(), polynomials, restarts })))
    }

    pub fn method(&self) -> &Method {
        &self.0.method
    }

    /// The steps, in order.
    pub fn polynomials(&self) -> &[Odd] {
        &self.0.polynomials
    }

    /// Steps before which a Gram form starts afresh.
    pub fn restarts(&self) -> &[usize] {
        &self.0.restarts
    }

    /// The image of a singular value.
    pub fn at(&self, x: f64) -> f64 {
        match self.0.method.algorithm {
            Algorithm::Svd => f64::from(u8::from(x > 0.0)),
            _ => self.polynomials().iter().fold(x, |x, step| step.at(x)),
        }
    }

    /// The range of results for singular values of `lo..=1`.
    pub(crate) fn range_from(&self, lo: f64) -> Range {
        match self.0.method.algorithm {
            Algorithm::Svd => Range { least: 1.0, greatest: 1.0 },
            _ => composed_range(self.polynomials(), lo, 1.0),
        }
    }
}

/// As `Newton–Schulz, 5 steps of polar_express: singular values of 0.001 to 1 become …`.
impl fmt::Display for Iteration {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Method { algorithm, coefficients, steps, .. } = self.method();
        if *algorithm == Algorithm::Svd {
            return write!(f, "exact polar factor (svd)");
        }
        let (thousandth, hundredth) = (self.range_from(1e-3), self.range_from(1e-2));
        write!(f, "Newton–Schulz, {steps} steps of {}: ", coefficients.word())?;
        write!(f, "singular values of 0.001 to 1 become {thousandth}, ")?;
        write!(f, "those of 0.01 to 1 become {hundredth}")
    }
}

fn refused(message: String) -> KernelError {
    KernelError::Argument { kernel: KERNEL, message }
}

fn check_numbers(method: &Method) -> Result<(), KernelError> {
    match &method.coefficients {
        Coefficients::PolarExpress { safety } if !(1.0..=1.2).contains(safety) => {
            Err(refused(format!("safety {safety}; use 1 to 1.2")))
        }
        Coefficients::Taylor { kappa } if !(1..=MAX_KAPPA).contains(kappa) => {
            Err(refused(format!("kappa {kappa}; use 1 to {MAX_KAPPA}")))
        }
        Coefficients::Custom { steps, .. } if steps.is_empty() => {
            Err(refused("custom coefficients without a step".to_owned()))
        }
        _ if method.least_norm >= 0.0 && method.least_norm.is_finite() => Ok(()),
        _ => Err(refused(format!("least norm {}; use 0 or more", method.least_norm))),
    }
}

/// Starts afresh before the step with which the slopes since the last start would grow too far.
fn default_restarts(polynomials: &[Odd]) -> Vec<usize> {
    let cubic = polynomials.iter().all(|odd| odd.coefficients().len() == 2);
    let most = if cubic { MOST_GROWTH_OF_CUBICS } else { MOST_GROWTH };
    let (mut restarts, mut growth) = (Vec::new(), 1.0);
    for (index, odd) in polynomials.iter().enumerate() {
        growth *= odd.slope();
        if growth > most && index > 0 {
            restarts.push(index);
            growth = odd.slope();
        }
    }
    restarts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(coefficients: Coefficients, steps: usize) -> Result<Iteration, KernelError> {
        Iteration::new(&Method { coefficients, steps, ..Method::default() })
    }

    #[test]
    fn every_set_passes_with_its_usual_steps_and_most_others() {
        let sets = [
            Coefficients::Jordan,
            Coefficients::polar_express(),
            Coefficients::PolarExpress { safety: 1.05 },
            Coefficients::PolarExpressCushion,
            Coefficients::Cans,
            Coefficients::You,
            Coefficients::Taylor { kappa: 1 },
            Coefficients::Taylor { kappa: 2 },
            Coefficients::Taylor { kappa: MAX_KAPPA },
            Coefficients::Aol,
            Coefficients::Cubic5,
            Coefficients::DeepseekV4,
        ];
        for set in sets {
            for steps in [set.usual_steps(), 5, 8, 10, 30] {
                let iteration = of(set.clone(), steps).unwrap();
                let Range { least, greatest } = iteration.range_from(1e-2);
                assert!(least > 0.0 && greatest < 1.5, "{iteration}");
            }
        }
    }

    #[test]
    fn the_range_is_printed() {
        let iteration = Iteration::new(&Method::default()).unwrap();
        assert_eq!(
            iteration.to_string(),
            "Newton–Schulz, 5 steps of polar_express: singular values of 0.001 to 1 become 0.846 \
             to 1.124, those of 0.01 to 1 become 0.870 to 1.124"
        );
        let svd = Method { algorithm: Algorithm::Svd, ..Method::default() };
        assert_eq!(Iteration::new(&svd).unwrap().to_string(), "exact polar factor (svd)");
    }

    #[test]
    fn what_is_not_sane_is_refused() {
        let message = |coefficients, steps| of(coefficients, steps).unwrap_err().to_string();
        let custom =
            |steps: Vec<Vec<f64>>| Coefficients::Custom { steps, beyond: Default::default() };
        assert_eq!(message(Coefficients::Jordan, 0), "newton_schulz: 0 steps; use 1 to 1000");
        assert_eq!(message(Coefficients::Jordan, 1001), "newton_schulz: 1001 steps; use 1 to 1000");
        assert_eq!(
            message(custom(vec![vec![3.0, -3.2]]), 1),
            "coefficients custom: 1 step maps singular values of 0 to 1 to -0.200 to 1.118; use \
             polynomials that stay in 0 to 2"
        );
        assert!(message(custom(vec![vec![2.0, 1.0]]), 2).contains("to 0.000 to 33.000"));
        // The published AOL table without its margin.
        let aol = custom(super::super::coefficients::AOL.iter().map(|c| c.to_vec()).collect());
        assert!(message(aol, 4).contains("to -1.0"));
        assert!(message(custom(vec![vec![0.0, 1.0]]), 1).contains("stay in 0 to 2"));
        assert!(message(custom(vec![]), 1).contains("without a step"));
        for bad in [vec![], vec![1.5], vec![f64::NAN, 0.5], vec![0.1; MAX_KAPPA + 2]] {
            let text = message(custom(vec![bad]), 1);
            assert!(text.contains("use finite coefficients of degree 3 to 25"), "{text}");
        }
        assert!(message(Coefficients::PolarExpress { safety: 0.9 }, 5).contains("use 1 to 1.2"));
        assert!(message(Coefficients::Taylor { kappa: 0 }, 5).contains("use 1 to 12"));
        for restarts in [vec![0], vec![5], vec![3, 2], vec![2, 2]] {
            let method = Method { restarts: Some(restarts), ..Method::default() };
            let text = Iteration::new(&method).unwrap_err().to_string();
            assert!(text.contains("use rising numbers from 1 to 4"), "{text}");
        }
    }

    /// The restart that the source of the Gram form recommends, for every set with such slopes.
    #[test]
    fn restarts_follow_the_slopes() {
        let restarts = |set: Coefficients, steps| of(set, steps).unwrap().restarts().to_vec();
        for set in [
            Coefficients::polar_express(),
            Coefficients::PolarExpress { safety: 1.05 },
            Coefficients::PolarExpressCushion,
            Coefficients::Cans,
            Coefficients::You,
        ] {
            assert_eq!(restarts(set.clone(), 5), [2], "{set:?}");
            assert!(restarts(set, 2).is_empty());
        }
        assert_eq!(restarts(Coefficients::Jordan, 5), [3]);
        assert_eq!(restarts(Coefficients::polar_express(), 8), [2, 5]);
        assert!(restarts(Coefficients::Cubic5, 5).is_empty());
        assert!(restarts(Coefficients::Taylor { kappa: 1 }, 10).is_empty());
    }
}
