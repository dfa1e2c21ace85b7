/// Why a benchmark could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("shape `{text}`: {why}")]
    Shape { text: String, why: String },
    #[error("size `{text}`: {why}")]
    Size { text: String, why: String },
    #[error("{0}")]
    Argument(String),
    #[error("a wrong result, whose time means nothing: {0}")]
    Wrong(String),
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
    #[error("the report cannot be written as JSON: {0}")]
    Json(serde_json::Error),
    #[error("the plot cannot be drawn: {0}")]
    Plot(String),
}
