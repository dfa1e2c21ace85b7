//! Where a matrix lies in the elements of a tensor.

use device::Tensor;

/// A matrix inside elements: `rows × cols` from `offset`, with strides in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl Layout {
    /// A dense row-major matrix.
    pub fn dense(rows: usize, cols: usize) -> Layout {
        Layout { offset: 0, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A row-major matrix whose rows are `row_stride` elements apart.
    pub fn strided(offset: usize, rows: usize, cols: usize, row_stride: usize) -> Layout {
        Layout { offset, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose of the same elements.
    pub fn t(self) -> Layout {
        Layout {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// One past the last element.
    pub(super) fn end(self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return self.offset;
        }
        let down = (self.rows - 1).saturating_mul(self.row_stride);
        let along = (self.cols - 1).saturating_mul(self.col_stride);
        self.offset.saturating_add(down).saturating_add(along).saturating_add(1)
    }

    /// Whether no two entries are one element: rows lie apart, or columns do.
    pub(super) fn is_injective(self) -> bool {
        let span = |len: usize, stride: usize| len.saturating_sub(1).saturating_mul(stride);
        let apart = |outer: usize, outer_stride: usize, inner: usize, inner_stride: usize| {
            (inner <= 1 || inner_stride > 0)
                && (outer <= 1 || outer_stride > span(inner, inner_stride))
        };
        apart(self.rows, self.row_stride, self.cols, self.col_stride)
            || apart(self.cols, self.col_stride, self.rows, self.row_stride)
    }
}

/// A tensor, and the matrix in it.
#[derive(Clone)]
pub struct Matrix {
    pub tensor: Tensor,
    pub layout: Layout,
}

impl Matrix {
    /// The tensor as it is: `[rows, columns]`.
    pub fn of(tensor: Tensor) -> Matrix {
        let layout = Layout::dense(tensor.dim(0), tensor.dim(1));
        Matrix { tensor, layout }
    }

    /// The transpose of the same elements.
    pub fn t(self) -> Matrix {
        Matrix { layout: self.layout.t(), ..self }
    }
}
