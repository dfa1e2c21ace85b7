//! Newton–Schulz orthogonalization of a batch of matrices of mixed shapes.
//!
//! For `X` with singular value decomposition `U·S·Vᵀ` the result is `U·p(S/|X|_F)·Vᵀ`, where `p`
//! is the composed polynomial of an [`Iteration`] and `|X|_F` the Frobenius norm, or the
//! iteration's least norm if that is larger. With the short
//! side first (`n ≤ m`; tall matrices are transposed), one step is
//!
//! ```text
//! A = X·Xᵀ          B = b·A + c·A·A          X ← (a·I + B)·X
//! └ lower panels ┘  └── lower panels ──┘     └── one product ──┘
//! ```
//!
//! `A` and `B` are symmetric: only the lower triangle is computed, in panels of whole block rows,
//! and mirrored. `a·I` is added to `B` while it is mirrored.
//!
//! Invariants:
//!   * the bits of a result depend on the matrix, its shape and the iteration alone: not on the
//!     other members of the batch, the number of threads or the size of the workspace;
//!   * the result does not change when the input is multiplied by a power of two, however small
//!     or large its norm (short of underflow of its elements, and above the least norm).

mod coefficients;
mod method;
mod program;
mod range;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use device::{Parallel, Stream, Tensor};

pub use coefficients::{Beyond, Coefficients, MAX_KAPPA, Odd};
pub use method::{Algorithm, Iteration, MAX_DEGREE, MAX_STEPS, Method, Storage};
pub use program::{AOL_LEAST, INPUT, Kind, Op, Product, Program, Slot};
pub use range::{Range, composed_range};

use crate::error::{dispatch, expect};
use crate::gemm::{Layout, product, serial};
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Real, math};

const KERNEL: &str = "newton_schulz";

/// A matrix of finite elements.
pub const STATUS_FINITE: u32 = 0;
/// A matrix that held an infinity or NaN; its result is zero.
pub const STATUS_NON_FINITE: u32 = 1;

/// One dense row-major matrix `[rows, cols]`, by its offsets in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Start in the input tensor.
    pub input: usize,
    /// Start in the output tensor.
    pub output: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Matrix {
    fn len(self) -> usize {
        self.rows * self.cols
    }

    /// Elements of workspace: the other copy of `X`, and two Gram matrices.
    fn workspace(self) -> usize {
        let short = self.rows.min(self.cols);
        self.len() + 2 * short * short
    }
}

/// Matrices that are orthogonalized together; clones share the list.
#[derive(Debug, Clone)]
pub struct Batch {
    matrices: Arc<[Matrix]>,
    /// Elements of workspace of one matrix at a time.
    lane: usize,
    input_end: usize,
    output_end: usize,
}

impl Batch {
    /// A batch; threads take its matrices in order, so the costliest should come first.
    ///
    /// # Errors
    /// Two matrices whose outputs overlap.
    pub fn new(matrices: Vec<Matrix>) -> Result<Batch, KernelError> {
        let mut order: Vec<&Matrix> = matrices.iter().filter(|m| m.len() > 0).collect();
        order.sort_by_key(|matrix| matrix.output);
        for pair in order.windows(2) {
            if pair[0].output + pair[0].len() > pair[1].output {
                let message = format!("the outputs of {:?} and {:?} overlap", pair[0], pair[1]);
                return Err(KernelError::Argument { kernel: KERNEL, message });
            }
        }
        let most = |value: fn(&Matrix) -> usize| matrices.iter().map(value).max().unwrap_or(0);
        let (lane, input_end, output_end) = (
            most(|matrix| matrix.workspace()),
            most(|matrix| matrix.input + matrix.len()),
            most(|matrix| matrix.output + matrix.len()),
        );
        Ok(Batch { matrices: matrices.into(), lane, input_end, output_end })
    }

    pub fn matrices(&self) -> &[Matrix] {
        &self.matrices
    }

    /// Elements of workspace with which `threads` threads work on a matrix each. Any whole number
    /// of matrices' worth will do: [`Batch::least_workspace_elements`] has them share one.
    pub fn workspace_elements(&self, threads: usize) -> usize {
        self.lane * threads.clamp(1, self.matrices.len().max(1))
    }

    /// Elements of workspace for one matrix at a time.
    pub fn least_workspace_elements(&self) -> usize {
        self.lane
    }
}

/// Orthogonalizes every matrix of `batch` from `input` to `output` (f32 or f64, other tensors).
///
/// `workspace` has the type of the input and at least [`Batch::least_workspace_elements`]
/// elements; its contents are lost. `status` has one u32 per matrix: the launch may run later, so
/// a matrix with an infinity or NaN is no error of this call; its status becomes
/// [`STATUS_NON_FINITE`] and its result zero, all others are unaffected. A zero matrix gives zero.
///
/// # Errors
/// Tensors too small for the batch; mixed or unsupported types.
pub fn orthogonalize(
    stream: &Stream,
    batch: &Batch,
    iteration: &Iteration,
    input: &Tensor,
    output: &Tensor,
    workspace: &Tensor,
    status: &Tensor,
) -> Result<(), KernelError> {
    let operands = [
        ("input", input.len(), batch.input_end),
        ("output", output.len(), batch.output_end),
        ("workspace", workspace.len(), batch.lane),
    ];
    for (operand, got, expected) in operands {
        if got < expected {
            return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
        }
    }
    expect(KERNEL, "status", status, batch.matrices.len())?;
    let (batch, iteration) = (batch.clone(), iteration.clone());
    let (input, output, workspace, status) =
        (input.clone(), output.clone(), workspace.clone(), status.clone());
    dispatch!(KERNEL, input.dtype(), T => {
        stream.launch(KERNEL, move |k| {
            let (x, o) = (k.read::<T>(&input)?, k.write::<T>(&output)?);
            let (work, status) = (k.write::<T>(&workspace)?, k.write::<u32>(&status)?);
            run(k.parallel(), &batch, &iteration, x, o, work, status);
            Ok(())
        })?;
        Ok(())
    })
}

/// Lanes, each with a workspace of its own, take the matrices one by one.
fn run<T: Real>(
    parallel: &Parallel,
    batch: &Batch,
    iteration: &Iteration,
    input: &[T],
    output: &mut [T],
    work: &mut [T],
    status: &mut [u32],
) {
    let lanes = match batch.lane {
        0 => 1,
        lane => (work.len() / lane).clamp(1, batch.matrices.len().max(1)),
    };
    let (output, work) = (SharedSlice::new(output), SharedSlice::new(work));
    let status = SharedSlice::new(status);
    let next = AtomicUsize::new(0);
    parallel.each(lanes, |lane| {
        // SAFETY: lane `lane` alone uses this part.
        let work = unsafe { work.part(lane * batch.lane..(lane + 1) * batch.lane) };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&matrix) = batch.matrices.get(index) else { return };
            let x = &input[matrix.input..matrix.input + matrix.len()];
            // SAFETY: `Batch::new` refused overlapping outputs and `index` is taken once.
            let o = unsafe { output.part(matrix.output..matrix.output + matrix.len()) };
            let finite = one(parallel, iteration, (matrix.rows, matrix.cols), x, o, work);
            // SAFETY: `index` is taken once.
            let status = unsafe { status.part(index..index + 1) };
            status[0] = if finite { STATUS_FINITE } else { STATUS_NON_FINITE };
        }
    });
}

/// Orthogonalizes one matrix; false if it is not finite.
fn one<T: Real>(
    parallel: &Parallel,
    iteration: &Iteration,
    (rows, cols): (usize, usize),
    x: &[T],
    out: &mut [T],
    work: &mut [T],
) -> bool {
    let scale = match norm(x, iteration.method().least_norm) {
        Norm::Positive(scale) => scale,
        Norm::Zero => {
            out.fill(T::ZERO);
            return true;
        }
        Norm::NonFinite => {
            out.fill(T::ZERO);
            return false;
        }
    };
    let (n, m, tall) = (rows.min(cols), rows.max(cols), rows > cols);
    let (lower, work) = work.split_at_mut(n * n);
    let (full, work) = work.split_at_mut(n * n);
    let spare = &mut work[..n * m];
    // `X` moves between `out` and `spare` with every step, so that a wide result ends in `out`
    // and a tall one in `spare`, to be transposed.
    let even = iteration.polynomials().len().is_multiple_of(2);
    let mut in_out = tall != even;
    let start = if in_out { &mut *out } else { &mut *spare };
    match tall {
        true => transpose(parallel, (rows, cols), x, start, |x| scale.apply(x)),
        false => parallel.chunks(start, CHUNK, |i, start| {
            let x = &x[i * CHUNK..][..start.len()];
            math::vectorize!(|| start.iter_mut().zip(x).for_each(|(y, &x)| *y = scale.apply(x)));
        }),
    }
    for polynomial in iteration.polynomials() {
        let (from, to) = match in_out {
            true => (&*out, &mut *spare),
            false => (&*spare, &mut *out),
        };
        step(parallel, polynomial, (n, m), from, lower, full, to);
        in_out = !in_out;
    }
    if tall {
        transpose(parallel, (n, m), spare, out, |x| x);
    }
    true
}

/// `to = (a·I + b·A + c·A·A)·from` with `A = from·fromᵀ`, all `[n, m]` or `[n, n]`.
fn step<T: Real>(
    parallel: &Parallel,
    polynomial: &Odd,
    (n, m): (usize, usize),
    from: &[T],
    lower: &mut [T],
    full: &mut [T],
    to: &mut [T],
) {
    let (x, square) = (Layout::dense(n, m), Layout::dense(n, n));
    symmetric(parallel, T::ONE, (from, x), (from, x.t()), T::ZERO, lower);
    mirror(parallel, n, lower, T::ZERO, full);
    let c = |i: usize| T::of(polynomial.coefficients().get(i).copied().unwrap_or(0.0));
    let (a, b, c) = (c(0), c(1), c(2));
    symmetric(parallel, c, (full, square), (full, square), b, lower);
    mirror(parallel, n, lower, a, full);
    product(parallel, T::ONE, (full, square), (from, x), T::ZERO, (to, x));
}

/// Elements of a chunk of an elementwise loop.
const CHUNK: usize = 1 << 15;

/// What the elements are divided by.
#[derive(Debug, Clone, Copy)]
struct Scale<T> {
    largest: T,
    /// The inverse Frobenius norm of the elements over `largest`.
    inverse: T,
}

impl<T: Real> Scale<T> {
    #[inline(always)]
    fn apply(self, x: T) -> T {
        x / self.largest * self.inverse
    }
}

/// 2⁻¹⁰⁰⁰ and its inverse are normal f64, and no f32 is below it.
const LEAST_EXPONENT: i32 = -1000;

enum Norm<T> {
    Zero,
    NonFinite,
    Positive(Scale<T>),
}

/// The Frobenius norm, or `least` if that is larger, summed in f64 in a fixed order.
///
/// The largest magnitude is divided out first (rounded down to a power of two, so that nothing is
/// rounded), which keeps squares of tiny and of huge elements in range; the rest lies in
/// `1 ..= 2·sqrt(len)`, so that no epsilon is needed in the division.
fn norm<T: Real>(x: &[T], least: f64) -> Norm<T> {
    let (largest, probe) = math::vectorize!(|| {
        let mut largest = [T::ZERO; 16];
        let (whole, tail) = x.as_chunks::<16>();
        for chunk in whole {
            for (largest, x) in largest.iter_mut().zip(chunk) {
                *largest = x.abs().max(*largest);
            }
        }
        let largest = largest.iter().chain(tail).fold(T::ZERO, |most, x| x.abs().max(most));
        // 0·x is NaN where x is infinite or NaN.
        (largest, math::sum([x], |[x]| x * T::ZERO))
    });
    if !probe.is_finite() {
        return Norm::NonFinite;
    }
    if largest == T::ZERO {
        return Norm::Zero;
    }
    let exponent = largest.to_f64().log2().floor() as i32;
    let largest = T::of(2_f64.powi(exponent.max(LEAST_EXPONENT)));
    let sum = math::vectorize!(|| {
        math::sum([x], |[x]| {
            let x = (x / largest).to_f64();
            x * x
        })
    });
    let inverse = match sum.sqrt() {
        norm if norm * largest.to_f64() < least => largest.to_f64() / least,
        norm => 1.0 / norm,
    };
    Norm::Positive(Scale { largest, inverse: T::of(inverse) })
}

/// Rows of a panel of [`symmetric`]: a pure function of the side.
///
/// At most 8 panels keep the products large; the work beyond the triangle is 1/8 of it then. A
/// small matrix is one panel: its products cost less than sharing them.
fn panel(n: usize) -> usize {
    const GRAIN: usize = 48;
    match n {
        0..=192 => n,
        _ => n.div_ceil(8).next_multiple_of(GRAIN).max(2 * GRAIN),
    }
}

/// The lower triangle of `C = alpha·A·B + beta·C`, `[n, n]`, where the result is symmetric; what
/// lies above it is left undefined.
fn symmetric<T: Real>(
    parallel: &Parallel,
    alpha: T,
    (a, la): (&[T], Layout),
    (b, lb): (&[T], Layout),
    beta: T,
    c: &mut [T],
) {
    let n = la.rows;
    let panel = panel(n);
    let panels = n.div_ceil(panel);
    let c = SharedSlice::new(c);
    parallel.each(panels, |turn| {
        // The long panels first.
        let i = panels - 1 - turn;
        let (start, end) = (i * panel, n.min((i + 1) * panel));
        // SAFETY: panel i alone writes these rows.
        let rows = unsafe { c.part(start * n..end * n) };
        let (mut la, mut lb) = (la, lb);
        la.offset += start * la.row_stride;
        (la.rows, lb.cols) = (end - start, end);
        serial(alpha, (a, la), (b, lb), beta, (rows, Layout::strided(0, end - start, end, n)));
    });
}

/// Rows of the result that are written together: one cache line of the source is used whole.
const TILE: usize = 16;

/// Calls `body` with the first row and the contents of each tile of `to`, whose rows have `len`
/// elements; a thread takes about [`CHUNK`] elements of tiles at a time.
fn each_tile<T: Real>(
    parallel: &Parallel,
    len: usize,
    to: &mut [T],
    body: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let tile = TILE * len;
    let tiles = (CHUNK / tile).max(1);
    parallel.chunks(to, tiles * tile, |chunk, to| {
        for (index, to) in to.chunks_mut(tile).enumerate() {
            body((chunk * tiles + index) * TILE, to);
        }
    });
}

/// `full = L + Lᵀ - diag(L) + diagonal·I`, where `L` is the lower triangle of `lower`.
fn mirror<T: Real>(parallel: &Parallel, n: usize, lower: &[T], diagonal: T, full: &mut [T]) {
    each_tile(parallel, n, full, |start, full| {
        let rows = full.len() / n;
        for (i, row) in full.chunks_mut(n).enumerate() {
            let i = start + i;
            row[..=i].copy_from_slice(&lower[i * n..=i * n + i]);
            row[i] += diagonal;
        }
        for j in start + 1..n {
            // Column j right of the diagonal: a run of row j of the lower triangle.
            for (i, &x) in lower[j * n + start..j * n + j.min(start + rows)].iter().enumerate() {
                full[i * n + j] = x;
            }
        }
    });
}

/// `to = fromᵀ` with `map` on each element; `from` is `[rows, cols]`.
fn transpose<T: Real>(
    parallel: &Parallel,
    (rows, cols): (usize, usize),
    from: &[T],
    to: &mut [T],
    map: impl Fn(T) -> T + Sync + Send,
) {
    each_tile(parallel, rows, to, |start, to| {
        let width = to.len() / rows;
        for i in 0..rows {
            for (j, &x) in from[i * cols + start..][..width].iter().enumerate() {
                to[j * rows + i] = map(x);
            }
        }
    });
}

#[cfg(test)]
mod tests;
