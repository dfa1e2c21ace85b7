use kernels::KernelError;

/// What the optimizer refuses, and what to do about it.
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
        "optimizer.rules[{rule}] has no update; give it `muon: {{}}` or `adamw: {{}}` \
         (with defaults)"
    )]
    NoUpdate { rule: usize },
    #[error("optimizer.rules[{rule}] has both `muon` and `adamw`; split it into two rules")]
    TwoUpdates { rule: usize },
    /// A parameter that no rule matches.
    #[error(
        "no optimizer rule matches `{tensor}` (role {role}, shape {shape:?}); add a last rule \
         `- match: {{}}` with `adamw`, or add its role or name to a rule"
    )]
    Unmatched { tensor: String, role: &'static str, shape: Vec<usize> },
    /// A rule that matches no parameter of this model.
    #[error("optimizer.rules[{rule}] matches no parameter: {reason}")]
    UnusedRule { rule: usize, reason: String },
    /// A Muon rule that matches something that is not a matrix.
    #[error(
        "optimizer.rules[{rule}] gives Muon to `{tensor}`, whose shape is {shape:?}; Muon updates \
         two-dimensional parameters only: leave its role ({role}) to an `adamw` rule"
    )]
    NotAMatrix { rule: usize, tensor: String, role: &'static str, shape: Vec<usize> },
    /// Muon updates nothing.
    #[error(
        "no parameter is updated by Muon; give a rule that matches role {suggestion} `muon: {{}}`, \
         or set `optimizer.require_muon: false` if that is meant"
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
