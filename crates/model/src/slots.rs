//! Every activation, gradient and workspace of a micro-batch, planned before the first step.

use device::{Buffer, DType, Tensor};
use kernels::attention::Heads;
use kernels::moe::Routing;
use layout::Schema;

use crate::config::{Activation, Architecture, Feed, QkNorm};
use crate::{ModelError, Norm};

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

/// A place in the arena.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Slot {
    offset_bytes: usize,
    dims: [usize; 2],
    integer: bool,
    wide: bool,
}

/// What a slot is for, in the printed plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Activations,
    Gradients,
    Logits,
    Widened,
}

const USES: [(Use, &str); 4] = [
    (Use::Activations, "activations"),
    (Use::Gradients, "activation gradients and workspace"),
    (Use::Logits, "logits chunk"),
    (Use::Widened, "the largest weight as f32"),
];

/// Saved for the backward pass of one layer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LayerSlots {
    pub x: Slot,
    pub stats1: Slot,
    pub h1: Slot,
    /// Before query and key normalization; unused without it.
    pub qkv_raw: Slot,
    pub q_rstd: Slot,
    pub k_rstd: Slot,
    pub qkv: Slot,
    pub attention: Slot,
    pub lse: Slot,
    pub x_mid: Slot,
    pub stats2: Slot,
    pub h2: Slot,
    /// The dense MLP, or the shared experts.
    pub up: Slot,
    pub act: Slot,
    pub experts: ExpertSlots,
}

/// Saved for the backward pass of a mixture.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ExpertSlots {
    pub logits: Slot,
    pub scores: Slot,
    pub chosen: Slot,
    pub weights: Slot,
    pub slots: Slot,
    pub sources: Slot,
    pub offsets: Slot,
    pub gate_up: Slot,
    pub act: Slot,
    pub y: Slot,
}

/// The whole arena.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slots {
    pub layers: Vec<LayerSlots>,
    pub tokens: Slot,
    pub targets: Slot,
    pub doc_start: Slot,
    pub x_final: Slot,
    pub stats_final: Slot,
    pub h_final: Slot,
    pub losses: Slot,
    pub dx: Slot,
    pub dh: Slot,
    pub dqkv: Slot,
    pub dattention: Slot,
    pub dact: Slot,
    pub grouped: Slot,
    pub dgrouped: Slot,
    pub dgrouped_act: Slot,
    pub dweights: Slot,
    pub drouter: Slot,
    pub workspace: Slot,
    pub logits: Slot,
    pub widened: Slot,
    pub widened_vectors: Slot,
    pub bytes: usize,
    by_use: [usize; 4],
}

impl Slot {
    /// The tensor of this slot.
    pub fn of(self, buffer: &Buffer) -> Result<Tensor, ModelError> {
        let dtype = match (self.integer, self.wide) {
            (true, _) => DType::U32,
            (_, true) => DType::F64,
            _ => DType::F32,
        };
        let offset = self.offset_bytes / dtype.bytes();
        Ok(Tensor::new(buffer.clone(), offset, &self.dims, dtype)?)
    }
}

/// Rows of logits that exist at a time: half of the micro-batch, at most 512.
pub(crate) fn logit_rows(rows: usize) -> usize {
    rows.div_ceil(2).min(512)
}

/// Sizes of an attention call.
pub(crate) fn heads(a: &Architecture, batch: MicroBatch) -> Heads {
    Heads {
        windows: batch.windows,
        positions: batch.positions,
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
    }
}

/// Columns of the MLP's first projection.
pub(crate) fn up_width(a: &Architecture, width: usize) -> usize {
    if a.activation == Activation::Swiglu { 2 * width } else { width }
}

struct Planner {
    slots: Slots,
    wide: bool,
}

impl Planner {
    fn take(&mut self, what: Use, rows: usize, cols: usize) -> Slot {
        let bytes = if self.wide { 8 } else { 4 };
        Slot { wide: self.wide, ..self.place(what, rows, cols, bytes) }
    }

    fn integers(&mut self, rows: usize, cols: usize) -> Slot {
        Slot { integer: true, ..self.place(Use::Activations, rows, cols, 4) }
    }

    fn place(&mut self, what: Use, rows: usize, cols: usize, element: usize) -> Slot {
        const LINE: usize = 64;
        // A plan beyond the address space says so by its size; whoever allocates it is refused.
        let bytes = rows.saturating_mul(cols).saturating_mul(element);
        let bytes = bytes.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        let offset_bytes = self.slots.bytes;
        self.slots.bytes = offset_bytes.saturating_add(bytes);
        let index = USES.iter().position(|(u, _)| *u == what).expect("USES lists every use");
        self.slots.by_use[index] = self.slots.by_use[index].saturating_add(bytes);
        Slot { offset_bytes, dims: [rows, cols], ..Slot::default() }
    }

    fn layer(&mut self, a: &Architecture, batch: MicroBatch, layer: usize) -> LayerSlots {
        let (n, d) = (batch.rows(), a.d_model);
        let h = heads(a, batch);
        let stats = if a.norm == Norm::Layer { 2 } else { 1 };
        let act = Use::Activations;
        let mut s = LayerSlots {
            x: self.take(act, n, d),
            stats1: self.take(act, n, stats),
            h1: self.take(act, n, d),
            qkv: self.take(act, n, h.stride()),
            attention: self.take(act, n, a.heads * a.head_dim),
            lse: self.take(act, n, a.heads),
            x_mid: self.take(act, n, d),
            stats2: self.take(act, n, stats),
            h2: self.take(act, n, d),
            ..LayerSlots::default()
        };
        if a.qk_norm != QkNorm::None {
            let heads = a.qk_norm == QkNorm::Head;
            s.qkv_raw = self.take(act, n, h.stride());
            s.q_rstd = self.take(act, n, if heads { a.heads } else { 1 });
            s.k_rstd = self.take(act, n, if heads { a.kv_heads } else { 1 });
        }
        let width = match (a.feed(layer), &a.moe) {
            (Feed::Experts, Some(moe)) => {
                s.experts = self.experts(a, n, moe.experts, moe.top_k, moe.d_ff);
                moe.shared_experts * moe.d_ff
            }
            _ => a.d_ff,
        };
        s.up = self.take(act, n, up_width(a, width));
        s.act = self.take(act, n, width);
        s
    }

    fn experts(
        &mut self,
        a: &Architecture,
        n: usize,
        experts: usize,
        top_k: usize,
        d_ff: usize,
    ) -> ExpertSlots {
        let act = Use::Activations;
        ExpertSlots {
            logits: self.take(act, n, experts),
            scores: self.take(act, n, experts),
            chosen: self.integers(n, top_k),
            weights: self.take(act, n, top_k),
            slots: self.integers(n, top_k),
            sources: self.integers(n, top_k),
            offsets: self.integers(1, experts + 1),
            gate_up: self.take(act, n * top_k, 2 * d_ff),
            act: self.take(act, n * top_k, d_ff),
            y: self.take(act, n * top_k, a.d_model),
        }
    }
}

impl Slots {
    /// Plans the arena; `largest` is the largest fused weight if weights are bf16, `wide` makes
    /// everything f64.
    pub fn plan(a: &Architecture, batch: MicroBatch, largest: usize, wide: bool) -> Slots {
        let mut p = Planner { slots: Slots::default(), wide };
        let (n, d) = (batch.rows(), a.d_model);
        let h = heads(a, batch);
        p.slots.layers = (0..a.layers).map(|layer| p.layer(a, batch, layer)).collect();
        (p.slots.tokens, p.slots.targets) = (p.integers(1, n), p.integers(1, n));
        p.slots.doc_start = p.integers(1, n);
        p.slots.x_final = p.take(Use::Activations, n, d);
        let stats = if a.norm == Norm::Layer { 2 } else { 1 };
        p.slots.stats_final = p.take(Use::Activations, n, stats);
        p.slots.h_final = p.take(Use::Activations, n, d);
        p.slots.losses = p.take(Use::Activations, 1, n);
        let back = Use::Gradients;
        p.slots.dx = p.take(back, n, d);
        p.slots.dh = p.take(back, n, d);
        p.slots.dqkv = p.take(back, n, h.stride());
        p.slots.dattention = p.take(back, n, a.heads * a.head_dim);
        p.slots.workspace = p.take(back, 1, h.forward_workspace().max(h.backward_workspace()));
        let mut dense = if a.moe_layers() < a.layers { a.d_ff } else { 0 };
        if let Some(moe) = &a.moe {
            let rows = n * moe.top_k;
            dense = dense.max(moe.shared_experts * moe.d_ff);
            p.slots.grouped = p.take(back, rows, d);
            p.slots.dgrouped = p.take(back, rows, d);
            p.slots.dgrouped_act = p.take(back, rows, moe.d_ff);
            p.slots.dweights = p.take(back, n, moe.top_k);
            p.slots.drouter = p.take(back, n, moe.experts);
        }
        p.slots.dact = p.take(back, n, dense);
        p.slots.logits = p.take(Use::Logits, logit_rows(n), a.vocab_size);
        p.slots.widened = p.take(Use::Widened, 1, largest);
        let vector = h.stride().max(d).max(up_width(a, a.d_ff));
        p.slots.widened_vectors = p.take(Use::Widened, 2, if largest > 0 { vector } else { 0 });
        p.slots
    }

    /// The tensors of a routing.
    pub fn routing(s: &ExpertSlots, buffer: &Buffer) -> Result<Routing, ModelError> {
        let flat = |slot: Slot| -> Result<Tensor, ModelError> {
            let tensor = slot.of(buffer)?;
            Ok(tensor.reshape(&[tensor.len()])?)
        };
        Ok(Routing {
            scores: s.scores.of(buffer)?,
            chosen: s.chosen.of(buffer)?,
            weights: s.weights.of(buffer)?,
            slots: flat(s.slots)?,
            sources: flat(s.sources)?,
            offsets: flat(s.offsets)?,
        })
    }
}

/// Elements of the largest weight that the engine uses as one matrix.
pub(crate) fn largest_weight(schema: &Schema) -> usize {
    let (mut most, mut run) = (0, 0);
    for tensor in &schema.tensors {
        run = if tensor.fused { run + tensor.len() } else { tensor.len() };
        most = most.max(run);
    }
    most
}

/// Bytes of the arena by use, without allocating it.
pub fn memory_plan(
    a: &Architecture,
    schema: &Schema,
    batch: MicroBatch,
    bf16_weights: bool,
) -> Vec<(&'static str, usize)> {
    let largest = if bf16_weights { largest_weight(schema) } else { 0 };
    let slots = Slots::plan(a, batch, largest, false);
    let uses = USES.iter().zip(slots.by_use).map(|((_, name), bytes)| (*name, bytes));
    uses.filter(|(_, bytes)| *bytes > 0).collect()
}
