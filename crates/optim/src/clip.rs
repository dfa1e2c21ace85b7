//! From the sums of squares of all statistics to one decision: is the step applied, and how are the
//! gradients scaled?
//!
//! Sums are combined in statistic order, which does not depend on the number of ranks; every rank
//! that holds all statistics decides the same.

use std::ops::Range;

use layout::Ownership;

use crate::OptimError;
use crate::config::{Clip, NonFinite};
use crate::rules::TensorPlan;
use crate::update::Unit;

/// The fate of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Weights are updated.
    Apply,
    /// A gradient was infinite or NaN: nothing is written, the run goes on.
    Skip,
    /// A gradient was infinite or NaN: nothing is written, the run ends.
    Stop,
}

/// The decision about one step.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipDecision {
    pub verdict: Verdict,
    /// Norm of the mean gradient over all parameters, before clipping; not finite if a gradient
    /// is not.
    pub norm: f64,
    /// The parameters (by position in the schema) with an infinite or NaN gradient.
    pub non_finite: Vec<usize>,
    /// Per statistic: the clip factor, at most 1.
    pub factors: Vec<f64>,
}

impl Default for ClipDecision {
    fn default() -> Self {
        let (non_finite, factors) = (Vec::new(), Vec::new());
        Self { verdict: Verdict::Apply, norm: 0.0, non_finite, factors }
    }
}

/// Decides for one model; see [`Clipper::decide`].
#[derive(Debug, Clone)]
pub struct Clipper {
    clip: Clip,
    non_finite: NonFinite,
    statistics: usize,
    tensor_statistics: Vec<Range<usize>>,
    /// The statistics that `per_matrix` clips together: a true matrix, or all of a parameter whose
    /// elements are updated one by one.
    together: Vec<Range<usize>>,
}

impl Clipper {
    pub fn new(
        clip: Clip,
        non_finite: NonFinite,
        plans: &[TensorPlan],
        ownership: &Ownership,
    ) -> Clipper {
        let mut together = Vec::new();
        for (plan, statistics) in plans.iter().zip(&ownership.tensor_statistics) {
            match plan.update.rule().unit() {
                Unit::Matrix => {
                    together.extend(statistics.clone().map(|statistic| statistic..statistic + 1))
                }
                Unit::Element => together.push(statistics.clone()),
            }
        }
        let tensor_statistics = ownership.tensor_statistics.clone();
        Clipper { clip, non_finite, statistics: ownership.statistics, tensor_statistics, together }
    }

    /// Writes the decision for a step whose gradients (sums over `tokens` tokens) have these sums
    /// of squares, one per statistic. `previous_norm` is [`ClipDecision::norm`] of the last applied
    /// step, if there was one. Allocates nothing once `decision` has been used.
    ///
    /// # Errors
    /// Another number of sums than statistics.
    pub fn decide(
        &self,
        sums: &[f64],
        tokens: u64,
        previous_norm: Option<f64>,
        decision: &mut ClipDecision,
    ) -> Result<(), OptimError> {
        if sums.len() != self.statistics {
            let (got, expected) = (sums.len(), self.statistics);
            return Err(OptimError::Count { what: "sums of squares", got, expected });
        }
        decision.norm = mean_norm(sums, tokens);
        decision.factors.clear();
        decision.factors.resize(self.statistics, 1.0);
        decision.non_finite.clear();
        for (tensor, statistics) in self.tensor_statistics.iter().enumerate() {
            if sums[statistics.clone()].iter().any(|sum| !sum.is_finite()) {
                decision.non_finite.push(tensor);
            }
        }
        decision.verdict = match (decision.non_finite.is_empty(), self.non_finite) {
            (true, _) => Verdict::Apply,
            (false, NonFinite::Stop) => Verdict::Stop,
            (false, NonFinite::Skip) => Verdict::Skip,
        };
        if decision.verdict != Verdict::Apply {
            return Ok(());
        }
        match self.clip {
            Clip::None => {}
            Clip::Global(most) => decision.factors.fill(limit(decision.norm, most)),
            Clip::PreviousNorm(most) => {
                let norm = previous_norm.unwrap_or(decision.norm);
                decision.factors.fill(limit(norm, most));
            }
            Clip::PerMatrix(most) => {
                for statistics in &self.together {
                    let norm = mean_norm(&sums[statistics.clone()], tokens);
                    decision.factors[statistics.clone()].fill(limit(norm, most));
                }
            }
        }
        Ok(())
    }
}

/// Norm of the mean gradient over `tokens` tokens, from sums of squares in statistic order.
fn mean_norm(sums: &[f64], tokens: u64) -> f64 {
    let sum: f64 = sums.iter().fold(0.0, |total, sum| total + sum);
    sum.sqrt() / tokens.max(1) as f64
}

/// The factor that brings `norm` down to `most`.
fn limit(norm: f64, most: f64) -> f64 {
    if norm > most { most / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OptimizerConfig;
    use layout::{CostTable, FlatLayout, LogicalTensor, Role, Schema};
    use proptest::prelude::*;

    /// Statistics: 0 and 1 the matrices of a fused parameter, 2.. the blocks of an embedding.
    fn clipper(clip: Clip, non_finite: NonFinite) -> Clipper {
        let mut fused = LogicalTensor::new("qk", &[8, 4], Role::Matrix);
        fused.parts = [0..4, 4..8].map(|rows| layout::Part { label: String::new(), rows }).to_vec();
        let table = LogicalTensor::new("embed", &[3000, 4], Role::Embedding);
        let schema = Schema::new(vec![fused, table]).unwrap();
        let plans = crate::plan(&schema, &OptimizerConfig::default()).unwrap();
        let flat = FlatLayout::new(&schema, 1 << 20);
        let treatments = crate::treatments(&plans).unwrap();
        let ownership = Ownership::new(&schema, &flat, &treatments, 2, &CostTable::CPU).unwrap();
        assert_eq!(ownership.statistics, 5);
        Clipper::new(clip, non_finite, &plans, &ownership)
    }

    fn decide(clip: Clip, sums: [f64; 5], tokens: u64, previous: Option<f64>) -> ClipDecision {
        let mut decision = ClipDecision::default();
        clipper(clip, NonFinite::Skip).decide(&sums, tokens, previous, &mut decision).unwrap();
        decision
    }

    const SUMS: [f64; 5] = [900.0, 1600.0, 16.0, 0.0, 9.0];

    #[test]
    fn each_mode_by_hand() {
        let none = decide(Clip::None, SUMS, 10, None);
        assert_eq!((none.norm, &none.factors[..]), (2525_f64.sqrt() / 10.0, &[1.0; 5][..]));
        let global = decide(Clip::Global(1.0), SUMS, 10, Some(99.0));
        assert_eq!(global.factors, [1.0 / global.norm; 5]);
        let previous = decide(Clip::PreviousNorm(1.0), SUMS, 10, Some(4.0));
        assert_eq!(previous.factors, [0.25; 5]);
        let first = decide(Clip::PreviousNorm(1.0), SUMS, 10, None);
        assert_eq!(first.factors, global.factors);
        let each = decide(Clip::PerMatrix(1.0), SUMS, 10, None);
        assert_eq!(each.factors, [1.0 / 3.0, 0.25, 1.0, 1.0, 1.0]);
        let each = decide(Clip::PerMatrix(1.0), SUMS, 1, None);
        assert_eq!(each.factors, [1.0 / 30.0, 1.0 / 40.0, 0.2, 0.2, 0.2]);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named_and_never_applied() {
        for bad in [f64::NAN, f64::INFINITY] {
            let decision = decide(Clip::Global(1.0), [1.0, bad, 1.0, 1.0, 1.0], 1, None);
            assert_eq!((decision.verdict, &decision.non_finite[..]), (Verdict::Skip, &[0][..]));
            let mut decision = ClipDecision::default();
            let stop = clipper(Clip::None, NonFinite::Stop);
            stop.decide(&[1.0, 1.0, 1.0, bad, 1.0], 1, None, &mut decision).unwrap();
            assert_eq!((decision.verdict, &decision.non_finite[..]), (Verdict::Stop, &[1][..]));
        }
        let mut decision = ClipDecision::default();
        let error = clipper(Clip::None, NonFinite::Stop).decide(&[1.0], 1, None, &mut decision);
        assert_eq!(error.unwrap_err().to_string(), "sums of squares: 1 entries for 5");
    }

    proptest! {
        #[test]
        fn a_clipped_norm_is_at_most_the_limit(
            sums in prop::array::uniform5(0.0_f64..1e6),
            tokens in 1_u64..1000,
            most in 0.01_f64..10.0,
        ) {
            let decision = decide(Clip::Global(most), sums, tokens, None);
            let scaled: f64 = sums.iter().zip(&decision.factors).map(|(s, f)| s * f * f).sum();
            prop_assert!(scaled.sqrt() / tokens as f64 <= most * (1.0 + 1e-12));
            prop_assert!(decision.factors.iter().all(|&f| 0.0 < f && f <= 1.0));
        }
    }
}
