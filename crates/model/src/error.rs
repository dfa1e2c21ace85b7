//! Refusals of a model: the key at fault, and a value that passes the whole check.

use device::DeviceError;
use kernels::KernelError;
use layout::LayoutError;

/// Errors of describing and running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A key that neither the preset nor the config gives.
    #[error("model.{key} is not set; {hint}")]
    Missing { key: &'static str, hint: &'static str },
    /// A model that no process can hold.
    #[error(
        "the model would have {parameters} parameters in {tensors} tensors; the most are \
         {} parameters (2^45: f32 weights that fill an address space) in {} tensors",
        crate::transformer::PARAMETERS_MAX,
        crate::transformer::TENSORS_MAX
    )]
    TooLarge { parameters: String, tensors: String },
    /// Two numbers that do not divide, or a number out of range.
    #[error("model.{key} = {value}: {problem}; {remedy}")]
    Shape { key: &'static str, value: String, problem: String, remedy: String },
    /// A family has no name for what the model has.
    #[error("the names of {names} have no row for {part}; choose another `model.names`")]
    Unnamed { part: String, names: String },
    /// More forward passes than there is room for.
    #[error(
        "{most} micro-batches are in flight, the most that were planned; run one of them backward \
         first"
    )]
    InFlight { most: usize },
    /// A request for something that is no part of this model.
    #[error("this model's plan has no {what}")]
    Unplanned { what: &'static str },
    /// A hook ended the pass.
    #[error(transparent)]
    Hook(#[from] crate::HookError),
    /// Mistakes that have nothing to do with each other.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<ModelError>),
}
