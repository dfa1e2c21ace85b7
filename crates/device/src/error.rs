use std::path::PathBuf;

use crate::DType;

/// What a device refuses.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("device `{got}` is unknown to this build; use `cpu` (or `guarded`, the test device)")]
    UnknownDevice { got: String },
    #[error(
        "cannot allocate {bytes} bytes: {source}; lower the batch, the model or the ranks per host"
    )]
    OutOfMemory { bytes: usize, source: std::io::Error },
    #[error("shared memory {path}: cannot {action} {bytes} bytes: {source}")]
    Shared { path: PathBuf, action: &'static str, bytes: usize, source: std::io::Error },
    #[error("cannot change the protection of device memory: {0}")]
    Protect(std::io::Error),
    #[error("cannot start {threads} threads: {message}")]
    Threads { threads: usize, message: String },
    #[error("elements {start}..{end} lie outside a buffer of {len} elements of {dtype}")]
    Bounds { start: usize, end: usize, len: usize, dtype: DType },
    #[error("a shape of {got} elements where {expected} were needed")]
    Elements { got: usize, expected: usize },
    #[error("a tensor has at most 4 axes, got {got}")]
    Rank { got: usize },
    #[error("kernel `{kernel}` read {expected} memory as {got}")]
    Dtype { kernel: &'static str, got: DType, expected: DType },
    #[error(
        "kernel `{kernel}` asked for memory that it is already writing (or to write what it reads)"
    )]
    Overlap { kernel: &'static str },
    #[error("kernel `{kernel}` asked for more than {limit} memory ranges")]
    Grants { kernel: &'static str, limit: usize },
    #[error("kernel `{kernel}` was given memory of another device")]
    Foreign { kernel: &'static str },
    #[error("kernel `{kernel}`: {message}")]
    Kernel { kernel: &'static str, message: String },
}
