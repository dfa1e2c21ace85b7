//! Errors of a device. Where a limit of the machine is behind one, its message says which, and what
//! to lower or raise; a vendor's number keeps its name.

use crate::vendor::Failure;
use crate::{DType, DeviceKind};

/// Errors of a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "device `{got}` is unknown; use `cpu`, `cuda:0`, `hip:0`, `sim` or `sim:gfx942` (kernels \
         simulated on the CPU), or `guarded` (the test device)"
    )]
    UnknownDevice { got: String },
    #[error(
        "architecture `{got}` has no kernels; there are sm_80, sm_90a, sm_100a, gfx90a, gfx942 \
         and gfx950"
    )]
    UnknownArch { got: String },
    #[error(
        "cannot allocate {bytes} bytes: {source}; lower the batch, the model or the ranks per host"
    )]
    OutOfMemory { bytes: usize, source: std::io::Error },
    #[error(
        "cannot {action} {bytes} bytes of shared memory: {source}; lower the batch, the model or \
         the ranks per host, or use --backend tcp"
    )]
    Shared { action: &'static str, bytes: usize, source: std::io::Error },
    #[error("cannot change the protection of device memory: {0}")]
    Protect(std::io::Error),
    #[error("cannot start {threads} threads: {source}")]
    Threads { threads: usize, source: std::io::Error },
    #[error("elements {start}..{end} lie outside a buffer of {len} elements of {dtype}")]
    Bounds { start: usize, end: usize, len: usize, dtype: DType },
    #[error("a shape of {got} elements where {expected} were needed")]
    Elements { got: usize, expected: usize },
    #[error(
        "a tensor of shape {shape:?} with elements of {element_bytes} byte(s) is larger than any \
         memory"
    )]
    Size { shape: Vec<usize>, element_bytes: usize },
    #[error("a tensor has at most 4 axes, got {got}")]
    Rank { got: usize },
    #[error("kernel `{kernel}` read {expected} memory as {got}")]
    Dtype { kernel: &'static str, got: DType, expected: DType },
    #[error(
        "kernel `{kernel}` asked for memory that it is already writing (or to write what it reads)"
    )]
    Overlap { kernel: &'static str },
    /// A bug of the caller: nothing orders two kernels that share memory.
    #[error(
        "kernel `{kernel}` asked for memory that kernel `{other}` is using at the same time, and \
         one of them writes to it; an event is missing: let the stream of the later one wait for \
         the other (`Stream::wait_for`)"
    )]
    Unordered { kernel: &'static str, other: &'static str },
    #[error("kernel `{kernel}` asked for more than {limit} memory ranges")]
    Grants { kernel: &'static str, limit: usize },
    #[error("kernel `{kernel}` was given memory of another device")]
    Foreign { kernel: &'static str },
    #[error("kernel `{kernel}`: {message}")]
    Kernel { kernel: &'static str, message: String },
    /// The error of work on the host ([`crate::Stream::host`]); its type is kept.
    #[error(transparent)]
    Host(Box<dyn std::error::Error + Send + Sync>),
    /// The error itself was, or will be, told by the stream that met it.
    #[error("work was left out, because work before it failed: {message}")]
    Lost { message: String },
    #[error("{device} was given up: {why}")]
    Aborted { device: DeviceKind, why: String },

    #[error("kernel `{kernel}` has no implementation for {device} yet")]
    NoHostKernels { kernel: &'static str, device: DeviceKind },
    #[error("{device} has no {what}")]
    Unsupported { device: DeviceKind, what: &'static str },
    #[error("{device} is not open: {library} was not found (tried {tried}: {reason}); {install}")]
    Library {
        device: DeviceKind,
        library: &'static str,
        tried: String,
        reason: String,
        install: &'static str,
    },
    #[error(
        "{device} is not open: {library} has no entry point `{symbol}`; the driver is too old: \
         {install}"
    )]
    Symbol { device: DeviceKind, library: String, symbol: &'static str, install: &'static str },
    #[error("there is no {device}: the driver sees {count} device(s){advice}")]
    NoDevice { device: DeviceKind, count: u32, advice: &'static str },
    #[error("{device} is a {name}, for which there are no kernels ({found})")]
    NoKernels { device: DeviceKind, name: String, found: String },
    #[error("{device}: {call} failed: {name} ({code}){}", advice(call, *failure))]
    Driver { device: DeviceKind, call: &'static str, code: i32, name: String, failure: Failure },
    #[error("{device}: this is no module: {message}")]
    Image { device: DeviceKind, message: String },
    #[error("{device}: the module has no kernel `{name}`{have}")]
    NoFunction { device: DeviceKind, name: String, have: String },
    #[error("{device}: kernel `{kernel}` cannot be launched: {message}")]
    Launch { device: DeviceKind, kernel: String, message: String },
    /// Found by the simulator while the kernel ran.
    #[error("{device}: kernel `{kernel}` is wrong: {message}")]
    Fault { device: DeviceKind, kernel: String, message: String },
    #[error("{device}: {message}")]
    Misuse { device: DeviceKind, message: String },
    #[error("{device} has no clock: times there are not measurements")]
    NoClock { device: DeviceKind },
}

/// Calls for memory of the host, which tell of its lack as of a lack of their own.
const PINNED: [&str; 2] = ["cuMemHostAlloc", "hipHostMalloc"];

/// Advice, as the end of a message.
fn advice(call: &str, failure: Failure) -> &'static str {
    match failure {
        Failure::OutOfMemory if PINNED.contains(&call) => {
            "; the host has no more memory to pin for copies: use fewer ranks on this host, or \
             raise its limit of locked memory (`ulimit -l`)"
        }
        _ => failure.advice(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_pinned_memory_is_one_of_the_host() {
        let text = |call| {
            let (name, failure) = ("CUDA_ERROR_OUT_OF_MEMORY".to_owned(), Failure::OutOfMemory);
            DeviceError::Driver { device: DeviceKind::Cuda(0), call, code: 2, name, failure }
                .to_string()
        };
        assert!(text("cuMemHostAlloc").contains("the host has no more memory to pin"));
        assert!(text("cuMemAlloc_v2").contains("device memory is full"));
    }
}
