//! The kernels that measure memory.

use device::{Grid, Stream, Tensor};

use super::abi::MemoryArgs;
use super::modules::{Family, Kernels};
use crate::KernelError;

const THREADS: u32 = 256;
/// Enough to keep every multiprocessor's loads in flight.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;

/// The access to memory that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    Copy,
    Read,
    Write,
}

impl Traffic {
    pub const ALL: [Traffic; 3] = [Traffic::Copy, Traffic::Read, Traffic::Write];

    /// The word on the command line and in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Traffic::Copy => "copy",
            Traffic::Read => "read",
            Traffic::Write => "write",
        }
    }

    const fn kernel(self) -> &'static str {
        match self {
            Traffic::Copy => "memory_copy",
            Traffic::Read => "memory_read",
            Traffic::Write => "memory_write",
        }
    }

    /// Bytes that cross the memory's pins for `bytes` of a tensor.
    pub const fn moved(self, bytes: u64) -> u64 {
        match self {
            Traffic::Copy => 2 * bytes,
            Traffic::Read | Traffic::Write => bytes,
        }
    }
}

/// Bytes of `target` that [`Traffic::Read`] needs: a word for each thread.
pub fn read_target_bytes(kernels: &Kernels) -> usize {
    (kernels.multiprocessors() * BLOCKS_PER_MULTIPROCESSOR * THREADS) as usize * 4
}

/// Copies `source` to `target`, reads `source`, or fills `target` with the word `value`. A thread
/// of a read whose words' exclusive or is `value` writes it to its place in `target`.
///
/// # Errors
/// Tensors of other sizes, or not of whole aligned 16-byte chunks; no kernels for the device.
pub fn launch(
    kernels: &Kernels,
    stream: &Stream,
    traffic: Traffic,
    (source, target): (&Tensor, &Tensor),
    value: u32,
) -> Result<(), KernelError> {
    let name = traffic.kernel();
    let refused = |message| Err(KernelError::Argument { kernel: name, message });
    let bytes = if traffic == Traffic::Write { target.bytes() } else { source.bytes() };
    let needed = if traffic == Traffic::Read { read_target_bytes(kernels) } else { bytes };
    if target.bytes() < needed {
        return refused(format!("a target of {} bytes, {needed} are needed", target.bytes()));
    }
    let (from, to) = (source.address(), target.address());
    if bytes == 0 || !(bytes as u64 | from | to).is_multiple_of(16) {
        return refused(format!("{bytes} bytes from {from:#x} to {to:#x} are no 16-byte chunks"));
    }
    let args =
        MemoryArgs { source: from, target: to, chunks: bytes as u64 / 16, value, reserved: 0 };
    let grid = Grid::linear(kernels.multiprocessors() * BLOCKS_PER_MULTIPROCESSOR, THREADS);
    let function = kernels.function(Family::Memory, name)?;
    // SAFETY: the kernel stays within `chunks` chunks of both, or the words of `target` that its
    // threads have; both were measured, and buffers are freed after the work enqueued before.
    Ok(unsafe { stream.launch_module(&function, &grid, &args) }?)
}
