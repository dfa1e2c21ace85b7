//! Which elements of a tensor are the vectors that are normalized.

use device::{DType, Tensor};

use crate::KernelError;
use crate::operands::expect_dtype;

/// Vectors inside a tensor: `outer · inner` of `len` elements, vector `(n, h)` starting at element
/// `offset + n·stride + h·head_stride`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    pub offset: usize,
    pub outer: usize,
    pub stride: usize,
    pub inner: usize,
    pub head_stride: usize,
    pub len: usize,
}

impl Rows {
    /// The rows of a dense matrix.
    pub fn dense(rows: usize, cols: usize) -> Rows {
        Rows { offset: 0, outer: rows, stride: cols, inner: 1, head_stride: cols, len: cols }
    }

    /// `heads` vectors of `len` in each of `rows` rows of `stride`, from column `column` on, one
    /// beside the other.
    pub fn heads(rows: usize, stride: usize, column: usize, heads: usize, len: usize) -> Rows {
        Rows { offset: column, outer: rows, stride, inner: heads, head_stride: len, len }
    }

    /// The same vectors, those of a row beginning `head_stride` columns after one another.
    pub fn apart(self, head_stride: usize) -> Rows {
        Rows { head_stride, ..self }
    }

    /// Number of vectors.
    #[inline(always)]
    pub fn count(self) -> usize {
        self.outer * self.inner
    }

    /// First element of a vector. Vectorized loops ask for it, and are in another file.
    #[inline(always)]
    pub(crate) fn start(self, row: usize) -> usize {
        self.offset + row / self.inner * self.stride + row % self.inner * self.head_stride
    }

    /// Whether no element belongs to two vectors.
    fn are_disjoint(self) -> bool {
        (self.inner <= 1 || self.len <= self.head_stride)
            && (self.outer <= 1 || self.span() <= self.stride)
    }

    /// From the first column of a row's vectors to the last.
    fn span(self) -> usize {
        if self.inner == 0 { 0 } else { (self.inner - 1) * self.head_stride + self.len }
    }

    fn end(self) -> usize {
        if self.count() == 0 { 0 } else { self.start(self.count() - 1) + self.len }
    }
}

/// A tensor, and the vectors in it.
#[derive(Clone)]
pub struct Vectors {
    pub tensor: Tensor,
    pub rows: Rows,
}

impl Vectors {
    /// The rows of a matrix.
    pub fn rows_of(matrix: Tensor) -> Vectors {
        let rows = Rows::dense(matrix.dim(0), matrix.dim(1));
        Vectors { tensor: matrix, rows }
    }

    /// Refuses vectors that overlap, that are none, of which some are not in the row of the matrix
    /// that has their number, or of another type.
    pub(crate) fn check_in_rows(
        &self,
        kernel: &'static str,
        operand: &'static str,
        dtype: DType,
    ) -> Result<(), KernelError> {
        let Vectors { tensor, rows } = self;
        let (got, expected) = (tensor.len(), rows.outer * rows.stride);
        if got != expected {
            return Err(KernelError::Operand { kernel, operand, got, expected });
        }
        let some = rows.inner > 0 && rows.len > 0;
        let inside = tensor.dim(1) == rows.stride && rows.offset + rows.span() <= rows.stride;
        if !some || !inside || !rows.are_disjoint() {
            let message = format!("`{operand}`: {rows:?} do not fit {:?}", tensor.dims());
            return Err(KernelError::Argument { kernel, message });
        }
        expect_dtype(kernel, operand, tensor, dtype)
    }
}

/// Refuses vectors of another number or length than the first, and those that overlap, leave their
/// tensor or have another type.
pub(super) fn check_vectors<const COUNT: usize>(
    kernel: &'static str,
    dtype: DType,
    operands: [(&'static str, &Tensor, Rows); COUNT],
) -> Result<(), KernelError> {
    let Some(&(_, _, first)) = operands.first() else { return Ok(()) };
    for (operand, tensor, rows) in operands {
        if (rows.count(), rows.len) != (first.count(), first.len) {
            let message =
                format!("the vectors of `{operand}`, {rows:?}, are not those of {first:?}");
            return Err(KernelError::Argument { kernel, message });
        }
        if !rows.are_disjoint() {
            let message = format!("the vectors of `{operand}` overlap: {rows:?}");
            return Err(KernelError::Argument { kernel, message });
        }
        if rows.end() > tensor.len() {
            let (got, expected) = (tensor.len(), rows.end());
            return Err(KernelError::Operand { kernel, operand, got, expected });
        }
        expect_dtype(kernel, operand, tensor, dtype)?;
    }
    Ok(())
}
