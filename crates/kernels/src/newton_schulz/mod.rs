//! Newton–Schulz orthogonalization of a batch of matrices of mixed shapes.
//!
//! For `X` with singular value decomposition `U·S·Vᵀ` the result is `U·p(S/|X|_F)·Vᵀ`, where `p`
//! is the composed polynomial of an [`Iteration`] and `|X|_F` the Frobenius norm, or the
//! method's least norm if that is larger.
//!
//! ```text
//! Method ──check──▶ Iteration ──shape──▶ Program ──▶ host (host.rs, twin.rs), devices (gpu)
//! Coefficients, algorithm, storage       stages of products
//! ```
//!
//! Invariants:
//!   * the bits of a result depend on the matrix, its shape and the method alone: not on strides,
//!     the other members of the batch, the number of threads or the size of the workspace;
//!   * the result does not change when the input is multiplied by a power of two, however small
//!     or large its norm (short of underflow of its elements, and above the least norm).

mod batch;
mod bound;
mod coefficients;
mod exact;
mod host;
mod method;
mod norm;
mod program;
mod range;
mod square;
mod twin;

use device::{Stream, Tensor};

pub use batch::{Batch, Matrix};
pub use bound::{Bound, Room, room};
pub use coefficients::{Beyond, Coefficients, MAX_KAPPA, Odd};
pub use method::{Algorithm, Iteration, MAX_DEGREE, MAX_STEPS, Method, Storage};
pub use program::{AOL_LEAST, INPUT, Kind, Op, Product, Program, Slot};
pub use range::{Range, composed_range};

use crate::{KernelError, op};
use bound::Orthogonalize;

const KERNEL: &str = "newton_schulz";

/// A matrix of finite elements.
pub const STATUS_FINITE: u32 = 0;
/// A matrix that held an infinity or NaN; its result is zero.
pub const STATUS_NON_FINITE: u32 = 1;
/// A matrix whose singular value decomposition did not converge; its result is zero.
pub const STATUS_UNSOLVED: u32 = 2;

/// Orthogonalizes every matrix of `batch` from `input` to `output`, which are other tensors.
///
/// ```text
///            input           output      storage           workspace
/// host       f32, f64        as input    any (emulated)    as input, a multiple of one matrix's
/// devices    f32, bf16, f16  f32, bf16   bf16, f16         bytes, at a multiple of 256
/// ```
///
/// [`room`] says how much workspace is best; with less, the host uses fewer threads at a
/// time and a device runs the batch in parts. Its contents are lost. A device plans anew with each
/// call: whoever repeats one holds on to a [`Bound`].
///
/// `status` has one u32 per matrix: the launch may run later, so a matrix with an infinity or NaN
/// is no error of this call; its status becomes [`STATUS_NON_FINITE`] and its result zero, all
/// others are unaffected ([`check_status`] makes an error of it). A zero matrix gives zero.
///
/// # Errors
/// Tensors too small for the batch; mixed or unsupported types; methods that a device has no
/// kernels for (f32 storage, svd).
pub fn orthogonalize(
    stream: &Stream,
    batch: &Batch,
    input: &Tensor,
    output: &Tensor,
    workspace: &Tensor,
    status: &Tensor,
) -> Result<(), KernelError> {
    let [input, output, workspace, status] = [input, output, workspace, status].map(Clone::clone);
    let batch = batch.clone();
    op::run(stream, Orthogonalize { batch, input, output, workspace, status, planned: None })
}

/// Waits for the stream and makes an error of the first status that is not [`STATUS_FINITE`];
/// `name` says which matrix an index is.
///
/// # Errors
/// That matrix; an earlier error of the stream.
pub fn check_status(
    stream: &Stream,
    status: &Tensor,
    name: impl Fn(usize) -> String,
) -> Result<(), KernelError> {
    let statuses = stream.to_vec::<u32>(status)?;
    match statuses.iter().position(|&status| status != STATUS_FINITE) {
        None => Ok(()),
        Some(index) if statuses[index] == STATUS_UNSOLVED => {
            Err(KernelError::Unsolved { index, name: name(index) })
        }
        Some(index) => Err(KernelError::NonFinite { index, name: name(index) }),
    }
}

#[cfg(test)]
mod tests;
