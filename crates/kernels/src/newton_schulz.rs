//! Newton–Schulz orthogonalization of a batch of matrices of mixed shapes.
//!
//! For `X` with singular value decomposition `U·S·Vᵀ` the result is `U·p(S/|X|_F)·Vᵀ`, where `p`
//! is the composed polynomial of an [`Iteration`] and `|X|_F` the Frobenius norm, or the
//! method's least norm if that is larger.
//!
//! ```text
//! Method ──check──▶ Iteration ──shape──▶ Program ──▶ CPU (twin.rs), devices, f64 reference
//! Coefficients, algorithm, storage       stages of products
//! ```
//!
//! Invariants:
//!   * the bits of a result depend on the matrix, its shape and the method alone: not on strides,
//!     the other members of the batch, the number of threads or the size of the workspace;
//!   * the result does not change when the input is multiplied by a power of two, however small
//!     or large its norm (short of underflow of its elements, and above the least norm).

mod coefficients;
mod exact;
mod method;
mod norm;
mod program;
mod range;
mod square;
mod twin;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use device::{DType, Parallel, Stream, Tensor};

pub use coefficients::{Beyond, Coefficients, MAX_KAPPA, Odd};
pub use method::{Algorithm, Iteration, MAX_DEGREE, MAX_STEPS, Method, Storage};
pub use program::{AOL_LEAST, INPUT, Kind, Op, Product, Program, Slot};
pub use range::{Range, composed_range};

use crate::error::{dispatch, expect};
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Real, gpu};
use norm::{Norm, norm};
use twin::Caller;

const KERNEL: &str = "newton_schulz";

/// A matrix of finite elements.
pub const STATUS_FINITE: u32 = 0;
/// A matrix that held an infinity or NaN; its result is zero.
pub const STATUS_NON_FINITE: u32 = 1;
/// A matrix whose singular value decomposition did not converge; its result is zero.
pub const STATUS_UNSOLVED: u32 = 2;

/// One row-major matrix `[rows, cols]`, by offsets and strides in elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    /// Start in the input tensor.
    pub input: usize,
    /// Elements between the starts of rows, at least `cols`.
    pub input_stride: usize,
    /// Start in the output tensor.
    pub output: usize,
    pub output_stride: usize,
    pub rows: usize,
    pub cols: usize,
    /// Factor on the result.
    pub scale: f64,
}

impl Matrix {
    /// A matrix without gaps, here and there.
    pub fn dense(input: usize, output: usize, rows: usize, cols: usize) -> Matrix {
        let (input_stride, output_stride) = (cols, cols);
        Matrix { input, input_stride, output, output_stride, rows, cols, scale: 1.0 }
    }

    /// The shorter side.
    pub fn short(self) -> usize {
        self.rows.min(self.cols)
    }

    /// The longer side.
    pub fn long(self) -> usize {
        self.rows.max(self.cols)
    }

    fn span(self, stride: usize) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.rows - 1) * stride + self.cols }
    }

    /// One past the last element of the result.
    fn output_end(self) -> usize {
        self.output + self.span(self.output_stride)
    }

    /// Whether two results share an element, or cannot be seen not to.
    fn meets(self, other: Matrix) -> bool {
        let apart = self.output_end() <= other.output || other.output_end() <= self.output;
        if apart || self.output_stride != other.output_stride {
            return !apart;
        }
        // Columns of the same rows, as where several matrices lie side by side.
        let stride = self.output_stride;
        let (a, b) = (self.output % stride, other.output % stride);
        a.max(b) < (a + self.cols).min(b + other.cols)
            || a + self.cols > stride
            || b + other.cols > stride
    }
}

/// Matrices that are orthogonalized together by one method; clones share the list.
#[derive(Debug, Clone)]
pub struct Batch {
    iteration: Iteration,
    matrices: Arc<[Matrix]>,
    /// One for each shape, and which one each matrix has.
    programs: Arc<[Program]>,
    program_of: Arc<[usize]>,
    /// Elements of workspace of one matrix at a time.
    lane: usize,
    input_end: usize,
    output_end: usize,
}

impl Batch {
    /// Useful floating-point operations, as [`Program::flops`].
    pub fn flops(&self) -> f64 {
        self.program_of.iter().map(|&index| self.programs[index].flops()).sum()
    }

    /// A batch; threads take its matrices in order, so the costliest should come first.
    ///
    /// # Errors
    /// Rows that overlap; two matrices whose outputs overlap.
    pub fn new(iteration: &Iteration, matrices: Vec<Matrix>) -> Result<Batch, KernelError> {
        check(&matrices)?;
        let (mut programs, mut program_of) = (Vec::<Program>::new(), Vec::new());
        for matrix in &matrices {
            let (short, long) = (matrix.short(), matrix.long());
            let same = |program: &Program| program.short == short && program.long == long;
            program_of.push(programs.iter().position(same).unwrap_or_else(|| {
                programs.push(iteration.program(short, long));
                programs.len() - 1
            }));
        }
        let lanes = matrices.iter().zip(&program_of).map(|(matrix, &index)| {
            twin::workspace(&programs[index], matrix.output_stride == matrix.cols)
        });
        let lane = lanes.max().unwrap_or(0);
        let most = |value: fn(&Matrix) -> usize| matrices.iter().map(value).max().unwrap_or(0);
        let input_end = most(|matrix| matrix.input + matrix.span(matrix.input_stride));
        let output_end = most(|matrix| matrix.output_end());
        Ok(Batch {
            iteration: iteration.clone(),
            lane,
            input_end,
            output_end,
            matrices: matrices.into(),
            programs: programs.into(),
            program_of: program_of.into(),
        })
    }

    pub fn iteration(&self) -> &Iteration {
        &self.iteration
    }

    pub fn matrices(&self) -> &[Matrix] {
        &self.matrices
    }

    /// What is done to matrix `index`.
    pub fn program(&self, index: usize) -> &Program {
        &self.programs[self.program_of[index]]
    }

    /// Elements of workspace with which `threads` threads work on a matrix each. Any whole number
    /// of matrices' worth will do: [`Batch::least_workspace_elements`] has them share one.
    pub fn workspace_elements(&self, threads: usize) -> usize {
        self.lane * threads.clamp(1, self.matrices.len().max(1))
    }

    /// Checks that the caller's tensors hold every matrix.
    pub(crate) fn check_operands(&self, input: usize, output: usize) -> Result<(), KernelError> {
        let operands = [("input", input, self.input_end), ("output", output, self.output_end)];
        for (operand, got, expected) in operands {
            if got < expected {
                return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
            }
        }
        Ok(())
    }

    /// Elements of workspace for one matrix at a time.
    pub fn least_workspace_elements(&self) -> usize {
        self.lane
    }
}

fn check(matrices: &[Matrix]) -> Result<(), KernelError> {
    let refused = |message| Err(KernelError::Argument { kernel: KERNEL, message });
    let mut order: Vec<&Matrix> = matrices.iter().filter(|m| m.short() > 0).collect();
    order.sort_by_key(|matrix| matrix.output);
    for (index, matrix) in order.iter().enumerate() {
        if matrix.input_stride < matrix.cols || matrix.output_stride < matrix.cols {
            return refused(format!("the rows of {matrix:?} overlap"));
        }
        let after = order[index + 1..].iter();
        let near = after.take_while(|other| other.output < matrix.output_end());
        for other in near {
            if matrix.meets(**other) {
                return refused(format!("the outputs of {matrix:?} and {other:?} overlap"));
            }
        }
    }
    Ok(())
}

/// Orthogonalizes every matrix of `batch` from `input` to `output` (f32 or f64, other tensors).
///
/// `workspace` has the type of the input and at least [`Batch::least_workspace_elements`] elements;
/// its contents are lost. Devices whose kernels come from modules take f32, bf16 and f16 inputs,
/// f32 and bf16 outputs, and bytes of workspace as [`gpu::execute::Prepared`] tells; they run the
/// batch in parts where they get less, and plan anew with each call: whoever repeats one holds on
/// to [`gpu::execute::Bound`]. `status` has one u32 per matrix: the launch may run later, so a
/// matrix with an infinity or NaN is no error of this call; its status becomes
/// [`STATUS_NON_FINITE`] and its result zero, all others are unaffected ([`check_status`] makes an
/// error of it). A zero matrix gives zero. 16-bit storage is emulated, for f32 operands.
///
/// # Errors
/// Tensors too small for the batch; mixed or unsupported types.
pub fn orthogonalize(
    stream: &Stream,
    batch: &Batch,
    input: &Tensor,
    output: &Tensor,
    workspace: &Tensor,
    status: &Tensor,
) -> Result<(), KernelError> {
    if !stream.device().kind().is_host() {
        return gpu::execute::orthogonalize(stream, batch, input, output, workspace, status);
    }
    batch.check_operands(input.len(), output.len())?;
    let (got, expected) = (workspace.len(), batch.lane);
    if got < expected {
        let operand = "workspace";
        return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
    }
    expect(KERNEL, "status", status, batch.matrices.len())?;
    let Method { algorithm, storage, .. } = *batch.iteration.method();
    // An exact factor stores nothing in between.
    let rounds = storage != Storage::F32 && algorithm != Algorithm::Svd;
    if rounds && input.dtype() != DType::F32 {
        return Err(KernelError::Dtype { kernel: KERNEL, dtype: input.dtype() });
    }
    let batch = batch.clone();
    let (input, output, workspace, status) =
        (input.clone(), output.clone(), workspace.clone(), status.clone());
    dispatch!(KERNEL, input.dtype(), T => {
        stream.launch(KERNEL, move |k| {
            let (x, o) = (k.read::<T>(&input)?, k.write::<T>(&output)?);
            let (work, status) = (k.write::<T>(&workspace)?, k.write::<u32>(&status)?);
            k.flops(batch.flops() as usize);
            run(k.parallel(), &batch, x, o, work, status);
            Ok(())
        })?;
        Ok(())
    })
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

/// Lanes, each with a workspace of its own, take the matrices one by one.
fn run<T: Real>(
    parallel: &Parallel,
    batch: &Batch,
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
            // `Batch::new` refused overlapping outputs and `index` is taken once.
            let caller = Caller {
                x: &input[matrix.input..matrix.input + matrix.span(matrix.input_stride)],
                x_stride: matrix.input_stride,
                out: &output,
                offset: matrix.output,
                stride: matrix.output_stride,
                rows: matrix.rows,
                cols: matrix.cols,
                scale: matrix.scale,
            };
            let result = one(parallel, batch, batch.program(index), &caller, work);
            // SAFETY: `index` is taken once.
            let status = unsafe { status.part(index..index + 1) };
            status[0] = result;
        }
    });
}

/// Orthogonalizes one matrix and returns its status.
fn one<T: Real>(
    parallel: &Parallel,
    batch: &Batch,
    program: &Program,
    caller: &Caller<T>,
    work: &mut [T],
) -> u32 {
    let Method { least_norm, storage, input_roundoff, .. } = *batch.iteration.method();
    let zero = |status| {
        caller.fill(T::ZERO);
        status
    };
    let scale = match norm(caller.x, caller.cols, caller.x_stride, least_norm) {
        Norm::Positive(scale) => scale,
        Norm::Zero => return zero(STATUS_FINITE),
        Norm::NonFinite => return zero(STATUS_NON_FINITE),
    };
    if program.algorithm != Algorithm::Svd {
        twin::run(parallel, program, storage, caller, scale, work);
        return STATUS_FINITE;
    }
    match exact::polar(caller, scale.share, input_roundoff, |x| scale.apply(x)) {
        true => STATUS_FINITE,
        false => zero(STATUS_UNSOLVED),
    }
}

#[cfg(test)]
mod tests;
