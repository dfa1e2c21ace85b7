//! Every activation, gradient and workspace of a micro-batch: what it is called, its shape and
//! type, and where it lies in the one arena.
//!
//! ```text
//! plan (no memory) ─▶ Slots<Slot> ─views(arena)─▶ Slots<Tensor>, made once, used by every pass
//! ```
//!
//! `P` below is a [`Slot`] in a plan and a [`Tensor`] in an arena. Shapes are in the letters of the
//! legend of `kernels`; all are of the compute type, f32 or f64, but those marked u32.

mod plan;

use device::{Buffer, DType, Shape, Tensor};
use kernels::moe::Routing;

use crate::ModelError;

pub use plan::memory_plan;
pub(crate) use plan::{Plan, heads, logit_rows};

/// The types of a model's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Types {
    /// Of activations and gradients: f32 or f64.
    pub compute: DType,
    /// Of the flat weights: as `compute`, or bf16, which is widened where it is used.
    pub weights: DType,
}

impl Types {
    /// Those of training: f32, and weights as they are stored.
    pub fn stored_as(weights: DType) -> Types {
        Types { compute: DType::F32, weights }
    }

    pub(crate) fn widens(self) -> bool {
        self.weights == DType::Bf16
    }
}

/// Shape of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatch {
    pub windows: usize,
    pub positions: usize,
}

impl MicroBatch {
    /// Token rows.
    pub fn rows(self) -> usize {
        self.windows * self.positions
    }
}

/// A place in the arena, and what lies there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    name: &'static str,
    shape: Shape,
    dtype: DType,
    offset_bytes: usize,
}

impl Slot {
    /// The tensor of this slot.
    fn view(&self, arena: &Buffer) -> Result<Tensor, ModelError> {
        let offset = self.offset_bytes / self.dtype.bytes();
        Ok(Tensor::new(arena.clone(), offset, self.shape.dims(), self.dtype)?)
    }

    /// Whether the first elements of this slot can be used under a shape.
    ///
    /// # Errors
    /// A shape of more elements.
    pub fn check_use(&self, what: &str, dims: &[usize]) -> Result<(), ModelError> {
        let elements = |dims: &[usize]| dims.iter().fold(1, |all: usize, n| all.saturating_mul(*n));
        if elements(dims) <= elements(self.shape.dims()) {
            return Ok(());
        }
        let (slot, planned, got) = (self.name, self.shape, format!("{what} {dims:?}"));
        Err(ModelError::Slot { slot, planned, got })
    }
}

/// Saved for the backward pass of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerSlots<P> {
    /// The residual stream before the layer, `[N, D]`.
    pub x: P,
    /// Of the norm before attention, `[N, 1]`: 1/rms; with LayerNorm `[N, 2]`: mean and 1/std.
    pub stats1: P,
    /// What that norm gives, `[N, D]`.
    pub h1: P,
    /// Queries, keys and values as attention reads them, `[N, (H + 2K)·C]`.
    pub qkv: P,
    /// What attention gives, `[N, H·C]`.
    pub attention: P,
    /// Logsumexp of its scores, `[B, H, T]`.
    pub lse: P,
    /// The residual stream between attention and the MLP, `[N, D]`.
    pub x_mid: P,
    /// Of the norm before the MLP: as `stats1`.
    pub stats2: P,
    /// What that norm gives, `[N, D]`.
    pub h2: P,
    /// Of the norms of queries and keys, where the model has them.
    pub qk_norm: Option<QkSlots<P>>,
    /// Of a mixture, where the layer has one.
    pub experts: Option<ExpertSlots<P>>,
    /// Of the dense MLP or the shared experts, of width F: `[N, F]`, or `[N, 2F]` with SwiGLU.
    pub up: P,
    /// `[N, F]`.
    pub act: P,
    /// Gradient of `act`, `[N, F]`: one place for all layers.
    pub dact: P,
}

/// Saved for the backward pass of query and key normalization.
#[derive(Debug, Clone)]
pub(crate) struct QkSlots<P> {
    /// Before normalization, `[N, (H + 2K)·C]`.
    pub raw: P,
    /// 1/rms of each query, `[N, H]`, or of each row of queries, `[N, 1]`.
    pub q_rstd: P,
    /// 1/rms of each key, `[N, K]`, or of each row of keys, `[N, 1]`.
    pub k_rstd: P,
}

/// Saved for the backward pass of a mixture.
#[derive(Debug, Clone)]
pub(crate) struct ExpertSlots<P> {
    /// `[N, E]`.
    pub logits: P,
    /// `[N, E]`.
    pub scores: P,
    /// `[N, A]`, u32.
    pub chosen: P,
    /// `[N, A]`.
    pub weights: P,
    /// `[N·A]`, u32.
    pub slots: P,
    /// `[N·A]`, u32.
    pub sources: P,
    /// `[E + 1]`, u32.
    pub offsets: P,
    /// Of the experts' width F: `[N·A, 2F]`.
    pub gate_up: P,
    /// `[N·A, F]`.
    pub act: P,
    /// `[N·A, D]`.
    pub y: P,
}

/// What a mixture needs while it runs, for one layer at a time.
#[derive(Debug, Clone)]
pub(crate) struct ExpertScratch<P> {
    /// Rows by expert, `[N·A, D]`.
    pub grouped: P,
    /// Their gradient, `[N·A, D]`.
    pub dgrouped: P,
    /// Gradient of `act`, `[N·A, F]`.
    pub dact: P,
    /// Gradient of the routing weights, `[N, A]`.
    pub dweights: P,
    /// Gradient of the router's logits, `[N, E]`.
    pub drouter: P,
}

/// The whole arena.
#[derive(Debug, Clone)]
pub(crate) struct Slots<P> {
    pub layers: Vec<LayerSlots<P>>,
    /// `[N]`, u32.
    pub tokens: P,
    /// `[N]`, u32.
    pub targets: P,
    /// `[N]`, u32.
    pub doc_start: P,
    /// The residual stream after the last layer, `[N, D]`.
    pub x_final: P,
    /// Of the last norm: as `stats1` of a layer.
    pub stats_final: P,
    /// What that norm gives, `[N, D]`.
    pub h_final: P,
    /// `[N]`.
    pub losses: P,
    /// Gradient of the residual stream, `[N, D]`.
    pub dx: P,
    /// Gradient of what a norm gives, `[N, D]`.
    pub dh: P,
    /// `[N, (H + 2K)·C]`.
    pub dqkv: P,
    /// `[N, H·C]`.
    pub dattention: P,
    /// `[elements that attention asks for]`, one place for both passes.
    pub forward_workspace: P,
    pub backward_workspace: P,
    /// Where any layer has experts.
    pub experts: Option<ExpertScratch<P>>,
    /// A chunk of rows, `[logit_rows(N), V]`.
    pub logits: P,
    /// `[elements of the largest matrix]` of bf16 weights; none of others.
    pub widened: P,
    /// `[2, elements of the longest vector]` of bf16 weights; none of others.
    pub widened_vectors: P,
}

type Views<T> = Result<T, ModelError>;

impl LayerSlots<Slot> {
    fn views(&self, arena: &Buffer) -> Views<LayerSlots<Tensor>> {
        let at = |slot: &Slot| slot.view(arena);
        Ok(LayerSlots {
            x: at(&self.x)?,
            stats1: at(&self.stats1)?,
            h1: at(&self.h1)?,
            qkv: at(&self.qkv)?,
            attention: at(&self.attention)?,
            lse: at(&self.lse)?,
            x_mid: at(&self.x_mid)?,
            stats2: at(&self.stats2)?,
            h2: at(&self.h2)?,
            qk_norm: self.qk_norm.as_ref().map(|slots| slots.views(arena)).transpose()?,
            experts: self.experts.as_ref().map(|slots| slots.views(arena)).transpose()?,
            up: at(&self.up)?,
            act: at(&self.act)?,
            dact: at(&self.dact)?,
        })
    }
}

impl QkSlots<Slot> {
    fn views(&self, arena: &Buffer) -> Views<QkSlots<Tensor>> {
        let at = |slot: &Slot| slot.view(arena);
        Ok(QkSlots { raw: at(&self.raw)?, q_rstd: at(&self.q_rstd)?, k_rstd: at(&self.k_rstd)? })
    }
}

impl ExpertSlots<Slot> {
    fn views(&self, arena: &Buffer) -> Views<ExpertSlots<Tensor>> {
        let at = |slot: &Slot| slot.view(arena);
        Ok(ExpertSlots {
            logits: at(&self.logits)?,
            scores: at(&self.scores)?,
            chosen: at(&self.chosen)?,
            weights: at(&self.weights)?,
            slots: at(&self.slots)?,
            sources: at(&self.sources)?,
            offsets: at(&self.offsets)?,
            gate_up: at(&self.gate_up)?,
            act: at(&self.act)?,
            y: at(&self.y)?,
        })
    }
}

impl ExpertSlots<Tensor> {
    /// The tensors of a routing.
    pub fn routing(&self) -> Routing {
        Routing {
            scores: self.scores.clone(),
            chosen: self.chosen.clone(),
            weights: self.weights.clone(),
            slots: self.slots.clone(),
            sources: self.sources.clone(),
            offsets: self.offsets.clone(),
        }
    }
}

impl ExpertScratch<Slot> {
    fn views(&self, arena: &Buffer) -> Views<ExpertScratch<Tensor>> {
        let at = |slot: &Slot| slot.view(arena);
        Ok(ExpertScratch {
            grouped: at(&self.grouped)?,
            dgrouped: at(&self.dgrouped)?,
            dact: at(&self.dact)?,
            dweights: at(&self.dweights)?,
            drouter: at(&self.drouter)?,
        })
    }
}

impl Slots<Slot> {
    /// The tensors of all slots.
    ///
    /// # Errors
    /// An arena that is smaller than the plan.
    pub fn views(&self, arena: &Buffer) -> Views<Slots<Tensor>> {
        let at = |slot: &Slot| slot.view(arena);
        Ok(Slots {
            layers: self.layers.iter().map(|layer| layer.views(arena)).collect::<Views<_>>()?,
            tokens: at(&self.tokens)?,
            targets: at(&self.targets)?,
            doc_start: at(&self.doc_start)?,
            x_final: at(&self.x_final)?,
            stats_final: at(&self.stats_final)?,
            h_final: at(&self.h_final)?,
            losses: at(&self.losses)?,
            dx: at(&self.dx)?,
            dh: at(&self.dh)?,
            dqkv: at(&self.dqkv)?,
            dattention: at(&self.dattention)?,
            forward_workspace: at(&self.forward_workspace)?,
            backward_workspace: at(&self.backward_workspace)?,
            experts: self.experts.as_ref().map(|slots| slots.views(arena)).transpose()?,
            logits: at(&self.logits)?,
            widened: at(&self.widened)?,
            widened_vectors: at(&self.widened_vectors)?,
        })
    }
}

/// Slots that a model has only where its architecture asks for them.
///
/// # Errors
/// There are none.
pub(crate) fn planned<'a, T>(
    slots: Option<&'a T>,
    what: &'static str,
) -> Result<&'a T, ModelError> {
    slots.ok_or(ModelError::Unplanned { what })
}

#[cfg(test)]
mod tests;
