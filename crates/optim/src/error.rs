//! Refusals of the optimizer: where in the config, and the nearest valid value.

use kernels::KernelError;

/// A refusal of the optimizer, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OptimError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    /// A value out of range.
    #[error("{at} is {got}; it must be {allowed}: use {nearest}")]
    Value { at: String, got: String, allowed: String, nearest: String },
    /// Coefficients or restarts that make no sense.
    #[error("{at}: {source}")]
    NewtonSchulz { at: String, source: Box<KernelError> },
    #[error(
        "optimizer.rules[{rule}] has no update; give it one of {} (as `adamw: {{}}`, with \
         defaults)",
        crate::Update::WORDS.join(", ")
    )]
    NoUpdate { rule: usize },
    #[error(
        "optimizer.rules[{rule}] has both `{}` and `{}`; split it into two rules",
        words[0], words[1]
    )]
    TwoUpdates { rule: usize, words: [&'static str; 2] },
    /// A parameter that no rule matches.
    #[error(
        "no optimizer rule matches `{tensor}` (role {role}, shape {shape:?}); add a last rule \
         `- match: {{}}` with `adamw`, or add its role or name to a rule"
    )]
    Unmatched { tensor: String, role: &'static str, shape: Vec<usize> },
    /// A rule that matches no parameter of this model.
    #[error("optimizer.rules[{rule}] matches no parameter: {reason}")]
    UnusedRule { rule: usize, reason: String },
    /// A rule whose update is one of matrices, and that matches something else.
    #[error(
        "optimizer.rules[{rule}] gives {update} to `{tensor}`, whose shape is {shape:?}; {update} \
         updates two-dimensional parameters only: leave its role ({role}) to an `adamw` rule"
    )]
    NotAMatrix {
        rule: usize,
        update: &'static str,
        tensor: String,
        role: &'static str,
        shape: Vec<usize>,
    },
    /// An update whose state would be larger than the matrix that it is for.
    #[error(
        "{at} = {got} does not fit {matrix} {shape:?}: its {state} would be {needs:?}; use at \
         most {most}"
    )]
    StateMisfit {
        at: String,
        got: usize,
        matrix: String,
        shape: [usize; 2],
        state: &'static str,
        needs: [usize; 2],
        most: usize,
    },
    /// Neither Muon nor its like updates anything.
    #[error(
        "no parameter is updated by Muon or its like ({}); give a rule that matches role \
         {suggestion} `muon: {{}}`, or set `optimizer.require_muon: false` if that is meant",
        crate::Update::of_matrices().join(", ")
    )]
    NoMuon { suggestion: &'static str },
    /// The momentum of a matrix is no longer finite.
    #[error("the momentum of `{tensor}` (rows {start}..{end}) holds an infinite or NaN value")]
    Momentum { tensor: String, start: usize, end: usize },
    /// A per-tensor or per-slot argument of the wrong length.
    #[error("{what}: {got} entries for {expected}")]
    Count { what: &'static str, got: usize, expected: usize },
    /// A device with too little memory.
    #[error(
        "the optimizer's state needs {:.2} GB on {device}, which has {:.2} GB (most of it: \
         {largest}); use more ranks, or keep the optimizer on the host",
        *.needed as f64 / 1e9, *.has as f64 / 1e9
    )]
    Room { device: device::DeviceKind, needed: u64, has: u64, largest: &'static str },
    /// Weights of a type that no update writes.
    #[error("weights of type {dtype} cannot be trained; use f32 or bf16")]
    WeightsDtype { dtype: device::DType },
}
