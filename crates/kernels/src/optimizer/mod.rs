//! The optimizer's elementwise updates and statistics: one pass over memory each.
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
mod host;
mod operations;
mod spans;

use ::device::{DType, Stream, Tensor};

pub use spans::{SlotRange, SlotRanges, Span, Spans};

use crate::{KernelError, op};

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

struct SumOfSquares {
    ranges: SlotRanges,
    grads: Tensor,
    sums: Tensor,
}

/// Writes the sum of squares of each range of `grads` (flat, f32) to its slot of `sums` (f64).
///
/// Squares are exact in f64 and summed there in an order that depends on the range's length
/// alone. Every addition is rounded once: host and devices differ by no more than `len·2^-53` of
/// the sum. A sum is infinite or NaN exactly if an element is. Other slots are left as they are.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn sum_of_squares(
    stream: &Stream,
    ranges: &SlotRanges,
    grads: &Tensor,
    sums: &Tensor,
) -> Result<(), KernelError> {
    let (ranges, grads, sums) = (ranges.clone(), grads.clone(), sums.clone());
    op::run(stream, SumOfSquares { ranges, grads, sums })
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

/// The arguments of [`adamw`].
#[derive(Clone)]
pub struct AdamWStep {
    pub spans: Spans,
    pub numbers: AdamW,
    pub weights: Weights,
    /// f32, flat.
    pub grads: Tensor,
    /// The moments: f32, local.
    pub first: Tensor,
    pub second: Tensor,
    /// f32, one of each unit.
    pub factors: Tensor,
}

/// AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2):
///
/// ```text
/// g ← factors[unit]·g     m ← β1·m + (1-β1)·g     v ← β2·v + (1-β2)·g²
/// w ← (1 - lr·wd)·w - lr · m/(1-β1ᵗ) / (sqrt(v/(1-β2ᵗ)) + eps)
/// ```
///
/// # Errors
/// Tensors too small, or of another type.
pub fn adamw(stream: &Stream, step: AdamWStep) -> Result<(), KernelError> {
    op::run(stream, step)
}

/// The arguments of [`muon_momentum`].
#[derive(Clone)]
pub struct MuonMomentum {
    pub spans: Spans,
    pub mu: f64,
    pub nesterov: bool,
    /// f32, flat.
    pub grads: Tensor,
    /// f32, local.
    pub momentum: Tensor,
    /// `u`: f32, local, written.
    pub update: Tensor,
    /// f32, one of each unit.
    pub factors: Tensor,
}

/// The momentum of Muon as an exponential moving average, as in K. Jordan's reference
/// implementation of Muon (`lerp`):
///
/// ```text
/// g ← factors[unit]·g     m ← mu·m + (1-mu)·g     u = nesterov ? mu·m + (1-mu)·g : m
/// ```
///
/// The heavy-ball form `m ← mu·m + g`, `u = g + mu·m` is this one times `1/(1-mu)`, which
/// orthogonalization removes: both give the same update.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn muon_momentum(stream: &Stream, step: MuonMomentum) -> Result<(), KernelError> {
    op::run(stream, step)
}

/// The arguments of [`muon_apply`].
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

/// `w ← keep·w - rate·o`.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn muon_apply(stream: &Stream, step: MuonApply) -> Result<(), KernelError> {
    op::run(stream, step)
}

struct CopyToMasters {
    spans: Spans,
    flat: Tensor,
    masters: Tensor,
}

/// Sets the f32 masters (local) from flat weights, f32 or bf16.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn copy_to_masters(
    stream: &Stream,
    spans: &Spans,
    flat: &Tensor,
    masters: &Tensor,
) -> Result<(), KernelError> {
    let (spans, flat, masters) = (spans.clone(), flat.clone(), masters.clone());
    op::run(stream, CopyToMasters { spans, flat, masters })
}

struct RoundFromMasters {
    spans: Spans,
    masters: Tensor,
    flat: Tensor,
}

/// Rounds the f32 masters (local) to the flat bf16 weights, to nearest, ties to even.
///
/// # Errors
/// Tensors too small, or of another type.
pub fn round_from_masters(
    stream: &Stream,
    spans: &Spans,
    masters: &Tensor,
    flat: &Tensor,
) -> Result<(), KernelError> {
    let (spans, masters, flat) = (spans.clone(), masters.clone(), flat.clone());
    op::run(stream, RoundFromMasters { spans, masters, flat })
}

struct Cast {
    from: Tensor,
    to: Tensor,
}

/// Rounds f32 `from` to `to`, bf16 or f16 of the same length: to nearest, ties to even.
///
/// # Errors
/// Tensors of other lengths or types.
pub fn cast(stream: &Stream, from: &Tensor, to: &Tensor) -> Result<(), KernelError> {
    let (from, to) = (from.clone(), to.clone());
    op::run(stream, Cast { from, to })
}

#[cfg(test)]
mod tests;
