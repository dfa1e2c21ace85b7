//! Causal grouped-query attention with document masks, in blocks: no `T × T` matrix is kept.
//!
//! Forward is the online softmax (Milakov & Gimelshein 2018) over blocks of keys; backward
//! recomputes the probabilities from the saved logsumexp (Dao et al. 2022). Position `i` of a
//! window attends to positions `doc_start[i] ..= i`.
//!
//! Queries and keys are `C` wide and values `Cv`; where they lie, a caller says by [`Panels`].

mod host;
mod join;
mod panels;

use device::{DType, Tensor};

pub use join::{JoinKeys, JoinKeysBackward};
pub use panels::{Panel, Panels};

use crate::KernelError;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_real};

/// Rows and columns of a block of scores.
const BLOCK: usize = 64;

/// Sizes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// `B`.
    pub windows: usize,
    /// `T`.
    pub positions: usize,
    /// `H`, a multiple of `K`.
    pub heads: usize,
    /// `K`.
    pub kv_heads: usize,
    /// `C`, of queries and keys.
    pub key_dim: usize,
    /// `Cv`, of values and of the output.
    pub value_dim: usize,
    /// Factor on the scores beside `1/√C`: 1, unless positions are scaled.
    pub sharpness: f64,
}

impl Heads {
    /// Where queries, keys and values are of one width.
    pub fn packed(
        windows: usize,
        positions: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Heads {
        let [key_dim, value_dim] = [head_dim; 2];
        Heads { windows, positions, heads, kv_heads, key_dim, value_dim, sharpness: 1.0 }
    }

    /// Columns of a tensor that holds all three, [`Panels::packed`].
    pub fn stride(self) -> usize {
        (self.heads + self.kv_heads) * self.key_dim + self.kv_heads * self.value_dim
    }

    /// Rows: windows times positions.
    pub fn rows(self) -> usize {
        self.windows * self.positions
    }

    /// Elements of workspace that [`Forward`] needs.
    pub fn forward_workspace(self) -> usize {
        self.windows * self.heads * (BLOCK * BLOCK + BLOCK * self.value_dim + 2 * BLOCK)
    }

    /// Elements of workspace that [`Backward`] needs.
    pub fn backward_workspace(self) -> usize {
        self.windows * self.kv_heads * (2 * BLOCK * BLOCK + BLOCK)
    }

    /// Refuses query heads that do not divide among the others, and heads of no width.
    fn check(self, kernel: &'static str) -> Result<(), KernelError> {
        let Heads { heads, kv_heads, key_dim, value_dim, .. } = self;
        let message = if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            format!("{heads} heads over {kv_heads} key/value heads")
        } else if key_dim == 0 || value_dim == 0 {
            format!("keys of width {key_dim} and values of width {value_dim}")
        } else {
            return Ok(());
        };
        Err(KernelError::Argument { kernel, message })
    }
}

/// `out = softmax(sharpness·q·kᵀ/√C + mask)·v`.
///
/// All operands but `doc_start` are f32, or all are f64.
pub struct Forward {
    pub heads: Heads,
    pub qkv: Panels,
    /// `[B·T]`, u32: the window position where each position's document begins.
    pub doc_start: Tensor,
    /// Written, `[B·T, H·Cv]`.
    pub out: Tensor,
    /// Written, `[B, H, T]`: the logsumexp of each row of scores, for the backward pass.
    pub lse: Tensor,
    /// [`Heads::forward_workspace`] elements of any content.
    pub workspace: Tensor,
}

impl Op for Forward {
    const NAME: &'static str = "attention_forward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let others = [&self.doc_start, &self.out, &self.lse, &self.workspace];
        self.qkv.tensors().into_iter().chain(others)
    }

    fn check(&self) -> Result<(), KernelError> {
        let &Forward { heads: h, ref qkv, ref doc_start, ref out, ref lse, ref workspace } = self;
        h.check(Self::NAME)?;
        expect_real(Self::NAME, out)?;
        expect_all(Self::NAME, DType::U32, [("doc_start", doc_start, h.rows())])?;
        qkv.check(Self::NAME, ["q", "k", "v"], h, out.dtype())?;
        let lens = [
            ("out", out, h.rows() * h.heads * h.value_dim),
            ("lse", lse, h.rows() * h.heads),
            ("workspace", workspace, h.forward_workspace()),
        ];
        expect_all(Self::NAME, out.dtype(), lens)
    }

    host_by_type!(out);
}

/// Gradient of [`Forward`] with respect to queries, keys and values.
///
/// All operands but `doc_start` are f32, or all are f64.
pub struct Backward {
    pub heads: Heads,
    /// As of the forward pass.
    pub qkv: Panels,
    /// `[B·T]`, u32, as of the forward pass.
    pub doc_start: Tensor,
    /// `[B·T, H·Cv]`, as the forward pass left it.
    pub out: Tensor,
    /// `[B, H, T]`, as the forward pass left it.
    pub lse: Tensor,
    /// Gradient of `out`, `[B·T, H·Cv]`.
    pub dout: Tensor,
    /// Written; other columns than those of the panels stay.
    pub dqkv: Panels,
    /// [`Heads::backward_workspace`] elements of any content.
    pub workspace: Tensor,
}

impl Op for Backward {
    const NAME: &'static str = "attention_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let others = [&self.doc_start, &self.out, &self.lse, &self.dout, &self.workspace];
        self.qkv.tensors().into_iter().chain(self.dqkv.tensors()).chain(others)
    }

    fn check(&self) -> Result<(), KernelError> {
        let (h, dtype) = (self.heads, self.dout.dtype());
        let width = h.heads * h.value_dim;
        h.check(Self::NAME)?;
        expect_real(Self::NAME, &self.dout)?;
        expect_all(Self::NAME, DType::U32, [("doc_start", &self.doc_start, h.rows())])?;
        self.qkv.check(Self::NAME, ["q", "k", "v"], h, dtype)?;
        self.dqkv.check(Self::NAME, ["dq", "dk", "dv"], h, dtype)?;
        let lens = [
            ("out", &self.out, h.rows() * width),
            ("dout", &self.dout, h.rows() * width),
            ("lse", &self.lse, h.rows() * h.heads),
            ("workspace", &self.workspace, h.backward_workspace()),
        ];
        expect_all(Self::NAME, dtype, lens)
    }

    host_by_type!(dout);
}

#[cfg(test)]
mod tests;
