//! Errors of a benchmark. A text from the command line stands in its message; a failure of a crate
//! below keeps that crate's words.

/// Why a benchmark could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("shape `{text}`: {why}")]
    Shape { text: String, why: String },
    #[error("size `{text}`: {why}")]
    Size { text: String, why: String },
    #[error("{0}")]
    Argument(String),
    /// A report that cannot be read; places count from 1.
    #[error("line {line}, column {column}: {why}")]
    Read { line: usize, column: usize, why: String },
    #[error("a wrong result, whose time means nothing: {0}")]
    Wrong(String),
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
    #[error(transparent)]
    Comm(#[from] comm::CommError),
    #[error("--overlap: {0}")]
    NoOverlap(#[from] crate::collectives::run::NoOverlap),
    #[error("the times of another rank cannot be read: {0}")]
    Stamps(postcard::Error),
    #[error("the supervising process is gone: {0}")]
    Supervisor(std::io::Error),
    #[error("the report cannot be written as JSON: {0}")]
    Json(serde_json::Error),
    #[error("the plot cannot be drawn: {0}")]
    Plot(String),
}

impl BenchError {
    /// An error of serde, with its place.
    pub(crate) fn in_json(error: &serde_json::Error) -> BenchError {
        let (line, column) = (error.line().max(1), error.column().max(1));
        let why = error.to_string();
        // Its own words for the place would be said twice.
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why).to_owned();
        BenchError::Read { line, column, why }
    }
}
