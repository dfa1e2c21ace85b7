//! Where the vectors of queries, keys and values lie: columns of one tensor, or of three.
//!
//! ```text
//! one tensor   row n: │ q 0 │ q 1 │ q 2 │ q 3 │ k 0 │ k 1 │ v 0 │ v 1 │       Panels::packed
//! three        row n: │ q 0 │ q 1 │   │ k 0 │ k 1 │   │ n 0 │ v 0 │ n 1 │ v 1 │
//!                                                           └── column of v   └ head_stride on
//! ```
//!
//! A mixture of both is refused: gradients are written, and two writable slices of one memory must
//! never be. Panels of one tensor lie apart in it for the same reason.

use device::{DType, Tensor};

use super::Heads;
use crate::KernelError;
use crate::gemm::Layout;
use crate::operands::expect_dtype;

/// The vectors of some heads: those of head `h` begin at column `column + h·head_stride`.
#[derive(Clone)]
pub struct Panel {
    /// `[B·T, S]`, with `S` columns or more.
    pub tensor: Tensor,
    pub column: usize,
    pub head_stride: usize,
}

/// Queries, keys and values, or the gradients of them.
#[derive(Clone)]
pub struct Panels {
    /// `H` heads of `C`.
    pub query: Panel,
    /// `K` heads of `C`.
    pub key: Panel,
    /// `K` heads of `Cv`.
    pub value: Panel,
}

impl Panels {
    /// Of one tensor `[B·T, H·C + K·(C + Cv)]`, whose rows hold all query heads, then all key
    /// heads, then all value heads.
    pub fn packed(h: Heads, tensor: Tensor) -> Panels {
        let panel = |column, head_stride| Panel { tensor: tensor.clone(), column, head_stride };
        Panels {
            query: panel(0, h.key_dim),
            key: panel(h.heads * h.key_dim, h.key_dim),
            value: panel((h.heads + h.kv_heads) * h.key_dim, h.value_dim),
        }
    }

    /// Their tensors, in order; of one tensor three times the same.
    pub(super) fn tensors(&self) -> [&Tensor; 3] {
        [&self.query.tensor, &self.key.tensor, &self.value.tensor]
    }

    /// Where their vectors lie, in order.
    pub(super) fn columns(&self, h: Heads) -> [Columns; 3] {
        let of = |panel: &Panel, heads, width| {
            let (first, head_stride) = (panel.column, panel.head_stride);
            Columns { first, head_stride, heads, width, stride: panel.tensor.dim(1) }
        };
        [
            of(&self.query, h.heads, h.key_dim),
            of(&self.key, h.kv_heads, h.key_dim),
            of(&self.value, h.kv_heads, h.value_dim),
        ]
    }

    /// Whether they are of one tensor.
    pub(super) fn are_of_one(&self) -> bool {
        let [query, key, _] = self.tensors();
        is_same(query, key)
    }

    /// Refuses tensors of other sizes or types, vectors outside their rows or in each other's, and
    /// memory that some of the three share and others do not.
    pub(super) fn check(
        &self,
        kernel: &'static str,
        operands: [&'static str; 3],
        h: Heads,
        dtype: DType,
    ) -> Result<(), KernelError> {
        let (tensors, columns) = (self.tensors(), self.columns(h));
        for ((operand, tensor), columns) in operands.into_iter().zip(tensors).zip(columns) {
            let (got, expected) = (tensor.len(), h.rows() * columns.stride);
            if got != expected {
                return Err(KernelError::Operand { kernel, operand, got, expected });
            }
            columns.check(kernel, operand)?;
            expect_dtype(kernel, operand, tensor, dtype)?;
        }
        let refused = |message| Err(KernelError::Argument { kernel, message });
        let [q, k, v] = operands;
        for [i, j] in [[0, 1], [1, 2], [0, 2]] {
            let [one, other] = [operands[i], operands[j]];
            if self.are_of_one() && !is_same(tensors[i], tensors[j])
                || !self.are_of_one() && share_memory(tensors[i], tensors[j])
            {
                return refused(format!(
                    "`{q}`, `{k}` and `{v}` are neither one tensor nor three apart: see `{one}` \
                     and `{other}`"
                ));
            }
            if self.are_of_one() && columns[i].meet(columns[j]) {
                return refused(format!("the columns of `{one}` and `{other}` overlap"));
            }
        }
        Ok(())
    }
}

/// Whether both are the same elements.
fn is_same(a: &Tensor, b: &Tensor) -> bool {
    (a.address(), a.dims()) == (b.address(), b.dims())
}

fn share_memory(a: &Tensor, b: &Tensor) -> bool {
    let end = |tensor: &Tensor| tensor.address() + tensor.bytes() as u64;
    a.address() < end(b) && b.address() < end(a)
}

/// The columns of a panel, in elements.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    first: usize,
    head_stride: usize,
    heads: usize,
    pub width: usize,
    /// Of a row.
    pub stride: usize,
}

impl Columns {
    /// The vectors of one head in `count` rows from `row` on, as a matrix.
    pub fn rows(self, head: usize, row: usize, count: usize) -> Layout {
        let offset = row * self.stride + self.first + head * self.head_stride;
        Layout::strided(offset, count, self.width, self.stride)
    }

    /// Runs of neighbouring columns.
    pub fn runs(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let together = self.head_stride == self.width;
        let (count, len) = if together { (1, self.heads) } else { (self.heads, 1) };
        (0..count).map(move |run| {
            let start = self.first + run * self.head_stride;
            start..start + len * self.width
        })
    }

    /// One past the last column.
    fn end(self) -> usize {
        let last = self.heads.saturating_sub(1).saturating_mul(self.head_stride);
        self.first.saturating_add(last).saturating_add(self.width)
    }

    fn meet(self, other: Columns) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// Refuses heads that overlap or leave their rows.
    fn check(self, kernel: &'static str, operand: &'static str) -> Result<(), KernelError> {
        let Columns { first, head_stride, heads, width, stride } = self;
        let overlap = heads > 1 && head_stride < width;
        if !overlap && self.end() <= stride {
            return Ok(());
        }
        let message = format!(
            "`{operand}`: {heads} heads of {width}, {head_stride} apart from column {first} on, do \
             not fit rows of {stride}"
        );
        Err(KernelError::Argument { kernel, message })
    }
}
