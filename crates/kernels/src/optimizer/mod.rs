//! The optimizer's updates and statistics: one pass over memory each, but for matrices.
//!
//! Three kinds of storage meet here, and a [`Span`] says where a run of elements lies in each:
//!
//! ```text
//! flat    all parameters of the model      gradients, weights          Span::flat
//! local   what this rank keeps             moments, masters, scratch   Span::local
//! unit    one number per piece             gradient factors            Span::unit
//! ```
//!
//! Weights are f32 and updated in place, or bf16 copies of f32 masters ([`Weights`]). Everything
//! else is f32, but for sums of squares.
//!
//! An element's new value depends on that element alone, and every operation on it is rounded by
//! itself, in one order: chunks, threads and devices change no bit (but in the payload of a NaN).
//! Sums of squares are made in one order on the host and in another on devices, the same on all.

mod device;
mod heavy_ball;
mod host;
mod low_rank;
mod normalize_rows;
mod operations;
mod spans;

use ::device::{DType, Tensor};

pub use heavy_ball::HeavyBall;
pub use low_rank::{LowRankAt, LowRankMatrices, LowRankStep};
pub use normalize_rows::{Frobenius, NormalizeRows, RowMatrices, RowsAt};
pub use spans::{Span, Spans, StatisticRange, StatisticRanges};

use crate::KernelError;

/// As errors name this family.
const AT: &str = "optimizer";

fn at_least(operand: &'static str, tensor: &Tensor, expected: usize) -> Result<(), KernelError> {
    if tensor.len() >= expected {
        return Ok(());
    }
    Err(KernelError::Operand { kernel: AT, operand, got: tensor.len(), expected })
}

fn check_dtype(operand: &str, tensor: &Tensor, expected: DType) -> Result<(), KernelError> {
    if tensor.dtype() == expected {
        return Ok(());
    }
    let message = format!("{operand} are {}, not {expected}", tensor.dtype());
    Err(KernelError::Argument { kernel: AT, message })
}

/// Where the weights are.
#[derive(Debug, Clone)]
pub enum Weights {
    /// f32, flat, updated in place.
    InPlace(Tensor),
    /// f32 masters, local, are updated; the flat bf16 weights become their rounded copy.
    Mastered { masters: Tensor, flat: Tensor },
}

impl Weights {
    fn check(&self, spans: &Spans) -> Result<(), KernelError> {
        match self {
            Weights::InPlace(flat) => {
                check_dtype("weights", flat, DType::F32)?;
                spans.check_flat("weights", flat)
            }
            Weights::Mastered { masters, flat } => {
                check_dtype("masters", masters, DType::F32)?;
                check_dtype("weights", flat, DType::Bf16)?;
                spans.check_local("masters", masters)?;
                spans.check_flat("weights", flat)
            }
        }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (masters, flat) = match self {
            Weights::InPlace(flat) => (None, flat),
            Weights::Mastered { masters, flat } => (Some(masters), flat),
        };
        masters.into_iter().chain([flat])
    }
}

/// f32 operands of `spans`, by whether they are flat or local.
fn check_f32<const FLAT: usize, const LOCAL: usize>(
    spans: &Spans,
    flat: [(&'static str, &Tensor); FLAT],
    local: [(&'static str, &Tensor); LOCAL],
) -> Result<(), KernelError> {
    for (operand, tensor) in flat {
        check_dtype(operand, tensor, DType::F32)?;
        spans.check_flat(operand, tensor)?;
    }
    for (operand, tensor) in local {
        check_dtype(operand, tensor, DType::F32)?;
        spans.check_local(operand, tensor)?;
    }
    Ok(())
}

fn check_factors(spans: &Spans, factors: &Tensor) -> Result<(), KernelError> {
    check_dtype("factors", factors, DType::F32)?;
    at_least("factors", factors, spans.units)
}

/// Writes the sum of squares of each range of the gradients to its statistic; other statistics are
/// left as they are.
///
/// Squares are exact in f64 and summed there in an order that depends on the range's length
/// alone. Every addition is rounded once: host and devices differ by no more than `len·2^-53` of
/// the sum. A sum is infinite or NaN exactly if an element is.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type.
#[derive(Clone)]
pub struct SumOfSquares {
    pub ranges: StatisticRanges,
    /// f32, flat.
    pub grads: Tensor,
    /// f64, one of each statistic, written.
    pub sums: Tensor,
}

/// The numbers of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate, schedule included.
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Number of this update, from 1; corrects the bias of the moments.
    pub step: u64,
}

/// [`AdamW`] as the inner loop needs it, rounded once.
#[derive(Clone, Copy)]
struct AdamWFactors {
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// `1 / sqrt(1 - beta2^step)`.
    root_correction: f32,
    eps: f32,
    /// `1 - lr·weight_decay`.
    keep: f32,
    /// `lr / (1 - beta1^step)`.
    rate: f32,
}

impl AdamWFactors {
    fn new(adamw: &AdamW) -> AdamWFactors {
        let power = |beta: f64| libm::pow(beta, adamw.step.max(1) as f64);
        AdamWFactors {
            beta1: adamw.beta1 as f32,
            one_minus_beta1: (1.0 - adamw.beta1) as f32,
            beta2: adamw.beta2 as f32,
            one_minus_beta2: (1.0 - adamw.beta2) as f32,
            root_correction: (1.0 / (1.0 - power(adamw.beta2)).sqrt()) as f32,
            eps: adamw.eps as f32,
            keep: (1.0 - adamw.lr * adamw.weight_decay) as f32,
            rate: (adamw.lr / (1.0 - power(adamw.beta1))) as f32,
        }
    }
}

/// AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2):
///
/// ```text
/// g ← factors[unit]·g     m ← β1·m + (1-β1)·g     v ← β2·v + (1-β2)·g²
/// w ← (1 - lr·wd)·w - lr · m/(1-β1ᵗ) / (sqrt(v/(1-β2ᵗ)) + eps)
/// ```
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type.
#[derive(Clone)]
pub struct AdamWStep {
    pub spans: Spans,
    pub numbers: AdamW,
    pub weights: Weights,
    /// f32, flat.
    pub grads: Tensor,
    /// `m` and `v`: f32, local.
    pub first: Tensor,
    pub second: Tensor,
    /// f32, one of each unit.
    pub factors: Tensor,
}

/// The direction of an update, after the gradient has joined the momentum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Momentum {
    /// The momentum itself: `m`.
    Classical,
    /// The momentum as the same gradient would move it once more: of an average
    /// `mu·m + (1-mu)·g`, of a sum `mu·m + g`.
    Nesterov,
}

/// The momentum of Muon as an exponential moving average, as in K. Jordan's reference
/// implementation of Muon (`lerp`):
///
/// ```text
/// g ← factors[unit]·g     m ← mu·m + (1-mu)·g     u = what `form` says
/// ```
///
/// The heavy-ball form `m ← mu·m + g`, `u = g + mu·m` is this one times `1/(1-mu)`, which
/// orthogonalization removes: both give the same update.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type.
#[derive(Clone)]
pub struct MuonMomentum {
    pub spans: Spans,
    pub mu: f64,
    pub form: Momentum,
    /// f32, flat.
    pub grads: Tensor,
    /// `m`: f32, local.
    pub momentum: Tensor,
    /// `u`: f32, local, written.
    pub update: Tensor,
    /// f32, one of each unit.
    pub factors: Tensor,
}

/// `w ← keep·w - rate·o`.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type.
#[derive(Clone)]
pub struct MuonApply {
    pub spans: Spans,
    /// `1 - lr·weight_decay`.
    pub keep: f64,
    /// `lr·scale`.
    pub rate: f64,
    pub weights: Weights,
    /// `o`: f32, local.
    pub direction: Tensor,
}

/// Sets the masters from the weights.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type.
#[derive(Clone)]
pub struct CopyToMasters {
    pub spans: Spans,
    /// The weights: f32 or bf16, flat.
    pub flat: Tensor,
    /// f32, local, written.
    pub masters: Tensor,
}

/// Rounds the masters to the weights: to nearest, ties to even.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type.
#[derive(Clone)]
pub struct RoundFromMasters {
    pub spans: Spans,
    /// f32, local.
    pub masters: Tensor,
    /// The weights: bf16, flat, written.
    pub flat: Tensor,
}

/// Rounds to nearest, ties to even.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors of other lengths or types.
#[derive(Clone)]
pub struct Cast {
    /// f32.
    pub from: Tensor,
    /// bf16 or f16, of the same length, written.
    pub to: Tensor,
}

#[cfg(test)]
mod tests;
