//! Mistakes in a model or its closure, for whoever wrote them.

use candle_core::DType;

/// Reasons why a candle model cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum CandleError {
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    #[error(transparent)]
    Layout(#[from] layout::LayoutError),
    /// A map without a variable.
    #[error("the VarMap is empty; build the model with `VarBuilder::from_varmap` first")]
    NoVariable,
    /// A variable of a type that the trainer keeps no master of.
    #[error(
        "`{name}` is {dtype:?}; trainable variables are F32: build the model with `DType::F32`"
    )]
    Dtype { name: String, dtype: DType },
    /// Weights of another type in the config.
    #[error("train.weights is {weights}; a candle model keeps f32 weights: use f32")]
    Weights { weights: device::DType },
    /// A pattern of the builder that no variable has.
    #[error("no variable is called `{pattern}`; the nearest is `{nearest}`")]
    Unmatched { pattern: String, nearest: String },
    /// Parts that are no rows of a variable.
    #[error(
        "parts of {rows} rows in all do not tile `{name}`, whose shape is {shape:?}: use parts of \
         {} rows in all", .shape.first().copied().unwrap_or(1)
    )]
    Parts { name: String, shape: Vec<usize>, rows: usize },
    /// A trainable variable that the loss reads and the map does not hold.
    #[error(
        "the loss reads a variable of shape {shape:?} that is not in the VarMap, or was not when \
         the engine was built, and so would never be trained{}; make it with the map's \
         `VarBuilder` before, or read it by `as_detached_tensor`",
        like(.alike)
    )]
    Outside { shape: Vec<usize>, alike: Vec<String> },
    /// Parameters of the map that a backward pass gave no gradient.
    #[error(
        "{} no gradient: {}. Either the loss does not read {}, or an operation on the way drops \
         gradients without a word, as these do: {}. If {} meant to stay as {}, name {} with \
         `may_lack_gradient`, in a rule without weight decay",
        if .names.len() == 1 { "a parameter got" } else { "parameters got" },
        some(.names),
        if .names.len() == 1 { "it" } else { "them" },
        crate::gradients::SILENT.join("; "),
        if .names.len() == 1 { "it is" } else { "they are" },
        if .names.len() == 1 { "it is" } else { "they are" },
        if .names.len() == 1 { "it" } else { "them" },
    )]
    NoGradient { names: Vec<String> },
    /// A true matrix of a fused parameter whose gradient is zero while others' are not.
    #[error(
        "part `{part}` of `{name}` got a gradient of exact zeros in the first pass, and other \
         parts did not: an operation on its way drops gradients without a word, as these do: {}. \
         If it is meant to stay as it is, name the parameter with `may_lack_gradient`, in a rule \
         without weight decay",
        crate::gradients::SILENT.join("; ")
    )]
    ZeroPart { name: String, part: String },
    /// Flat buffers that the host does not reach.
    #[error("flat buffers on {device} are not there for a candle engine; use cpu")]
    Device { device: device::DeviceKind },
    /// One variable under two names, of which only one would get the gradient.
    #[error(
        "`{}` and `{}` are one variable; keep one of the names in the VarMap, and let the model \
         read it twice", names[0], names[1]
    )]
    Twice { names: [String; 2] },
    /// A closure that does not compute.
    #[error(
        "the closure took one micro-batch to a loss of {first} and then to {second}: it draws \
         random numbers (as dropout does) or counts its calls, so that no run could be repeated, \
         resumed or divided among ranks; build the model without dropout, or make its masks from \
         the tokens"
    )]
    Inconstant { first: f64, second: f64 },
    /// A closure that returned no sum.
    #[error(
        "the closure returned a loss of shape {shape:?}, and of type {dtype:?}; it must be one F32 \
         or F64 number, the sum over all targets: use `sum_all`, or `candle_engine::cross_entropy` \
         of the logits"
    )]
    NotScalar { shape: Vec<usize>, dtype: DType },
}

/// Parameters of an equal shape, as a hint.
fn like(alike: &[String]) -> String {
    match alike {
        [] => String::new(),
        names => format!(" (parameters of that shape: {})", some(names)),
    }
}

/// The first few.
fn some(names: &[String]) -> String {
    const MOST: usize = 4;
    let named: Vec<String> = names.iter().take(MOST).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(MOST);
    let named = named.join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}

impl From<CandleError> for train::TrainError {
    fn from(error: CandleError) -> train::TrainError {
        train::TrainError::Engine(Box::new(error))
    }
}
