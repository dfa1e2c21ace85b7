//! Operations on tensors: typed arguments over device kernels, and the CPU implementation of each.
//!
//! An operation is a struct of its operands. [`Op::launch`] checks their shapes and types, and
//! enqueues it on a stream: on the host or on a device, as `op` decides. Shapes are in the
//! documentation of each operand; legend:
//!
//! ```text
//! B documents windows of a micro-batch   T positions of a window   N = B·T token rows
//! D model width   H query heads   K key/value heads   C head width   F MLP width
//! Cv width of a value head, where it is another
//! E experts       A experts per token (top-k)   V vocabulary
//! ```
//!
//! Invariants of the CPU implementations:
//!   * an output element is computed by one thread, in an order fixed by the shapes alone, so bits
//!     do not depend on the number of threads;
//!   * f32 and f64 run the same code (f64 is for gradient checks); bf16 is a storage type.

pub mod attention;
pub mod elementwise;
pub mod embedding;
mod error;
mod exp;
pub mod gemm;
pub mod gpu;
pub mod loss;
pub mod math;
pub mod mlp;
pub mod modules;
pub mod moe;
pub mod newton_schulz;
pub mod norm;
mod op;
mod operands;
pub mod optimizer;
pub mod ordered_sum;
mod real;
pub mod rope;
mod shared_slice;

pub use error::KernelError;
pub use op::Op;
pub use operands::{Entries, Onto};
pub use real::Real;
