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
pub use bound::{Bound, Orthogonalize, Room, room};
pub use coefficients::{Beyond, Coefficients, Odd};
pub use method::{Algorithm, Iteration, MAX_STEPS, Method, Storage};
pub use program::{AOL_LEAST, Kind, Op, Product, Program, Register};
pub use range::Range;

use crate::KernelError;

const KERNEL: &str = "newton_schulz";

/// A matrix of finite elements.
pub const STATUS_FINITE: u32 = 0;
/// A matrix that held an infinity or NaN; its result is zero.
pub const STATUS_NON_FINITE: u32 = 1;
/// A matrix whose singular value decomposition did not converge; its result is zero.
pub(crate) const STATUS_UNSOLVED: u32 = 2;

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
