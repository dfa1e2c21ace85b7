//! The matrices that are orthogonalized together, by their places, and the program of each.

use std::sync::Arc;

use super::{Iteration, KERNEL, Program, twin};
use crate::KernelError;

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

    pub(super) fn span(self, stride: usize) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.rows - 1) * stride + self.cols }
    }

    /// One past the last element of the result.
    pub(super) fn output_end(self) -> usize {
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

    /// The program of matrix `index`.
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
