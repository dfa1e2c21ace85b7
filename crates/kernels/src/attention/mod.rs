//! Causal grouped-query attention with document masks, in blocks: no `T × T` matrix is kept.
//!
//! Forward is the online softmax (Milakov & Gimelshein 2018) over blocks of keys; backward
//! recomputes the probabilities from the saved logsumexp (Dao et al. 2022). Position `i` of a
//! window attends to positions `doc_start[i] ..= i`.
//!
//! `qkv [B·T, (H + 2K)·C]` holds, per row, H query heads, then K key heads, then K value heads.

mod host;

use device::{DType, Tensor};

use crate::KernelError;
use crate::gemm::Layout;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_real};

/// Rows and columns of a block of scores.
const BLOCK: usize = 64;

/// Sizes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// `B`.
    pub windows: usize,
    /// `T`.
    pub positions: usize,
    /// `H`, a multiple of `K`.
    pub heads: usize,
    /// `K`.
    pub kv_heads: usize,
    /// `C`.
    pub head_dim: usize,
}

impl Heads {
    /// Elements of one row of `qkv`.
    pub fn stride(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Rows: windows times positions.
    pub fn rows(self) -> usize {
        self.windows * self.positions
    }

    /// Elements of workspace that [`Forward`] needs.
    pub fn forward_workspace(self) -> usize {
        self.windows * self.heads * (BLOCK * BLOCK + BLOCK * self.head_dim + 2 * BLOCK)
    }

    /// Elements of workspace that [`Backward`] needs.
    pub fn backward_workspace(self) -> usize {
        self.windows * self.kv_heads * (2 * BLOCK * BLOCK + BLOCK)
    }

    fn query(self, window: usize, head: usize, rows: std::ops::Range<usize>) -> Layout {
        let offset = (window * self.positions + rows.start) * self.stride() + head * self.head_dim;
        Layout::strided(offset, rows.len(), self.head_dim, self.stride())
    }

    fn key(self, window: usize, kv: usize, rows: std::ops::Range<usize>) -> Layout {
        self.query(window, self.heads + kv, rows)
    }

    fn value(self, window: usize, kv: usize, rows: std::ops::Range<usize>) -> Layout {
        self.query(window, self.heads + self.kv_heads + kv, rows)
    }

    fn output(self, window: usize, head: usize, rows: std::ops::Range<usize>) -> Layout {
        let stride = self.heads * self.head_dim;
        let offset = (window * self.positions + rows.start) * stride + head * self.head_dim;
        Layout::strided(offset, rows.len(), self.head_dim, stride)
    }
}

/// `out = softmax(q·kᵀ/√C + mask)·v`.
///
/// All operands but `doc_start` are f32, or all are f64.
pub struct Forward {
    pub heads: Heads,
    /// `[B·T, (H + 2K)·C]`.
    pub qkv: Tensor,
    /// `[B·T]`, u32: the window position where each position's document begins.
    pub doc_start: Tensor,
    /// Written, `[B·T, H·C]`.
    pub out: Tensor,
    /// Written, `[B, H, T]`: the logsumexp of each row of scores, for the backward pass.
    pub lse: Tensor,
    /// [`Heads::forward_workspace`] elements of any content.
    pub workspace: Tensor,
}

impl Op for Forward {
    const NAME: &'static str = "attention_forward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.qkv, &self.doc_start, &self.out, &self.lse, &self.workspace].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let &Forward { heads: h, ref qkv, ref doc_start, ref out, ref lse, ref workspace } = self;
        check_heads(Self::NAME, h)?;
        expect_real(Self::NAME, out)?;
        expect_all(Self::NAME, DType::U32, [("doc_start", doc_start, h.rows())])?;
        let lens = [
            ("qkv", qkv, h.rows() * h.stride()),
            ("out", out, h.rows() * h.heads * h.head_dim),
            ("lse", lse, h.rows() * h.heads),
            ("workspace", workspace, h.forward_workspace()),
        ];
        expect_all(Self::NAME, out.dtype(), lens)
    }

    host_by_type!(out);
}

/// Gradient of [`Forward`] with respect to `qkv`.
///
/// All operands but `doc_start` are f32, or all are f64.
pub struct Backward {
    pub heads: Heads,
    /// `[B·T, (H + 2K)·C]`, as of the forward pass.
    pub qkv: Tensor,
    /// `[B·T]`, u32, as of the forward pass.
    pub doc_start: Tensor,
    /// `[B·T, H·C]`, as the forward pass left it.
    pub out: Tensor,
    /// `[B, H, T]`, as the forward pass left it.
    pub lse: Tensor,
    /// Gradient of `out`, `[B·T, H·C]`.
    pub dout: Tensor,
    /// Written, `[B·T, (H + 2K)·C]`.
    pub dqkv: Tensor,
    /// [`Heads::backward_workspace`] elements of any content.
    pub workspace: Tensor,
}

impl Op for Backward {
    const NAME: &'static str = "attention_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let saved = [&self.qkv, &self.doc_start, &self.out, &self.lse];
        saved.into_iter().chain([&self.dout, &self.dqkv, &self.workspace])
    }

    fn check(&self) -> Result<(), KernelError> {
        let (h, dtype) = (self.heads, self.dqkv.dtype());
        let width = h.heads * h.head_dim;
        check_heads(Self::NAME, h)?;
        expect_real(Self::NAME, &self.dqkv)?;
        expect_all(Self::NAME, DType::U32, [("doc_start", &self.doc_start, h.rows())])?;
        let lens = [
            ("qkv", &self.qkv, h.rows() * h.stride()),
            ("out", &self.out, h.rows() * width),
            ("dout", &self.dout, h.rows() * width),
            ("lse", &self.lse, h.rows() * h.heads),
            ("dqkv", &self.dqkv, h.rows() * h.stride()),
            ("workspace", &self.workspace, h.backward_workspace()),
        ];
        expect_all(Self::NAME, dtype, lens)
    }

    host_by_type!(dqkv);
}

fn check_heads(kernel: &'static str, h: Heads) -> Result<(), KernelError> {
    if h.kv_heads == 0 || !h.heads.is_multiple_of(h.kv_heads) {
        let message = format!("{} heads over {} key/value heads", h.heads, h.kv_heads);
        return Err(KernelError::Argument { kernel, message });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
