//! The model and its forward pass.

use device::{Buffer, DType, Device, Placement, Stream, Tensor};
use kernels::gemm::{Layout, matmul};
use kernels::norm::Rows;
use kernels::{attention, elementwise, embedding, loss, moe, norm, rope};
use layout::{FlatLayout, Schema};

use crate::config::{Activation, Architecture, Norm, Positions, QkNorm, Scores};
use crate::params::{Experts, FeedWeights, Layer, Linear, NormWeights, Parameters, Weight};
use crate::slots::{LayerSlots, MicroBatch, Slot, Slots, heads, largest_weight, logit_rows};
use crate::{Hooks, ModelError, parameters};

/// A model on a device: its schema, and one arena for a micro-batch.
pub struct Model {
    pub(crate) a: Architecture,
    pub(crate) schema: Schema,
    pub(crate) params: Parameters,
    pub(crate) flat: FlatLayout,
    pub(crate) batch: MicroBatch,
    pub(crate) slots: Slots,
    pub(crate) arena: Buffer,
    pub(crate) stream: Stream,
    pub(crate) angles: Option<Tensor>,
}

/// Host side of a micro-batch, each `[windows · positions]`.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub tokens: &'a [u32],
    /// The next token of each position, or [`kernels::loss::IGNORE`].
    pub targets: &'a [u32],
    /// The window position where each position's document begins.
    pub doc_start: &'a [u32],
}

/// Tensors that live outside the arena and that every pass uses.
#[derive(Clone, Copy)]
pub struct State<'a> {
    /// All weights, flat.
    pub weights: &'a Tensor,
    /// Balancing biases `[MoE layers, experts]`.
    pub router_bias: &'a Tensor,
    /// Tokens per expert `[MoE layers, experts]` u32, added to.
    pub loads: &'a Tensor,
}

impl Model {
    /// Plans and allocates; `bucket_elements` cuts the flat buffers, `compute` is f32 or f64,
    /// `bf16_weights` says that the flat weights are stored so.
    ///
    /// # Errors
    /// Memory.
    pub fn new(
        device: &Device,
        a: &Architecture,
        batch: MicroBatch,
        bucket_elements: usize,
        compute: DType,
        bf16_weights: bool,
    ) -> Result<Model, ModelError> {
        let (schema, params) = parameters(a)?;
        let flat = FlatLayout::new(&schema, bucket_elements);
        let largest = if bf16_weights { largest_weight(&schema) } else { 0 };
        let slots = Slots::plan(a, batch, largest, compute == DType::F64);
        let arena = device.alloc(slots.bytes, &Placement::Private)?;
        let angles = match a.positions {
            Positions::Rotary { theta } => {
                Some(rope::table(device, batch.positions, a.head_dim, theta, compute)?)
            }
            Positions::Learned { .. } => None,
        };
        let (a, stream) = (a.clone(), device.stream());
        Ok(Model { a, schema, params, flat, batch, slots, arena, stream, angles })
    }

    pub fn architecture(&self) -> &Architecture {
        &self.a
    }

    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    pub fn flat(&self) -> &FlatLayout {
        &self.flat
    }

    pub fn parameters(&self) -> &Parameters {
        &self.params
    }

    pub fn batch(&self) -> MicroBatch {
        self.batch
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The experts that each token of the last pass visits `[tokens, per token]` (u32), in a layer
    /// that has experts.
    ///
    /// # Errors
    /// As of a tensor that lies outside the arena.
    pub fn chosen(&self, layer: usize) -> Result<Tensor, ModelError> {
        self.at(self.slots.layers[layer].experts.chosen)
    }

    /// Copies a micro-batch in.
    ///
    /// # Errors
    /// Inputs of another size.
    pub fn load(&self, inputs: &Inputs) -> Result<(), ModelError> {
        let flat = |slot: Slot| -> Result<Tensor, ModelError> { self.at(slot) };
        self.stream.copy_in(&flat(self.slots.tokens)?, inputs.tokens)?;
        self.stream.copy_in(&flat(self.slots.targets)?, inputs.targets)?;
        self.stream.copy_in(&flat(self.slots.doc_start)?, inputs.doc_start)?;
        Ok(())
    }

    /// Runs the loaded micro-batch up to the final norm.
    ///
    /// # Errors
    /// Device errors; a token outside the vocabulary.
    pub fn forward(&self, state: State, hooks: &mut dyn Hooks) -> Result<(), ModelError> {
        let first = self.slots.layers.first().map_or(self.slots.x_final, |layer| layer.x);
        hooks.need(0);
        let x = self.at(first)?;
        let tokens = self.at(self.slots.tokens)?;
        embedding::gather(&self.stream, &tokens, &self.stored(state, self.params.embedding)?, &x)?;
        if let Some(table) = self.params.positions {
            let table = self.weight(state, table)?;
            embedding::add_positions(&self.stream, &table, self.batch.positions, &x)?;
        }
        let mut moe_layer = 0;
        for (i, layer) in self.params.layers.iter().enumerate() {
            hooks.need(self.params.layer_start(&self.flat, i));
            let slots = &self.slots.layers[i];
            let next = self.slots.layers.get(i + 1).map_or(self.slots.x_final, |next| next.x);
            self.attention(state, layer, slots)?;
            self.normalize(state, layer.feed_norm, slots.x_mid, slots.h2, slots.stats2)?;
            elementwise::copy(&self.stream, &self.at(slots.x_mid)?, &self.at(next)?)?;
            match &layer.feed {
                FeedWeights::Dense(mlp) => {
                    self.mlp(state, mlp.up, mlp.down, slots, &self.at(next)?)?;
                }
                FeedWeights::Experts(experts) => {
                    self.experts(state, experts, moe_layer, slots, &self.at(next)?)?;
                    moe_layer += 1;
                }
            }
        }
        hooks.need(self.flat.offsets[self.params.final_norm.gain.tensor]);
        let s = &self.slots;
        self.normalize(state, self.params.final_norm, s.x_final, s.h_final, s.stats_final)
    }

    /// Sum of the cross-entropies of the forwarded micro-batch, written to `loss [1]` f64.
    ///
    /// # Errors
    /// Device errors.
    pub fn evaluate(&self, state: State, loss: &Tensor) -> Result<(), ModelError> {
        let rows = self.batch.rows();
        let losses = self.at(self.slots.losses)?.reshape(&[rows])?;
        let targets = self.at(self.slots.targets)?.reshape(&[rows])?;
        let head = self.weight(state, self.params.output())?;
        for start in (0..rows).step_by(logit_rows(rows)) {
            let chunk = start..rows.min(start + logit_rows(rows));
            let logits = self.logits(&head, chunk.clone())?;
            let (targets, losses) = (targets.flat(chunk.clone())?, losses.flat(chunk)?);
            loss::cross_entropy(&self.stream, &logits, &targets, &losses, false)?;
        }
        Ok(loss::total(&self.stream, &losses, loss, false)?)
    }

    /// Logits of one row of the forwarded micro-batch, for sampling.
    ///
    /// # Errors
    /// Device errors.
    pub fn row_logits(&self, state: State, row: usize) -> Result<Vec<f32>, ModelError> {
        let head = self.weight(state, self.params.output())?;
        let logits = self.logits(&head, row..row + 1)?;
        Ok(self.stream.to_vec(&logits)?)
    }

    /// Logits `[chunk, V]` in the logits slot.
    pub(crate) fn logits(
        &self,
        head: &Tensor,
        chunk: std::ops::Range<usize>,
    ) -> Result<Tensor, ModelError> {
        let logits = self.at(self.slots.logits)?.rows(0..chunk.len())?;
        let h = self.at(self.slots.h_final)?.rows(chunk)?;
        self.linear(&h, head, &logits, false)?;
        Ok(logits)
    }

    fn attention(&self, state: State, layer: &Layer, s: &LayerSlots) -> Result<(), ModelError> {
        self.normalize(state, layer.attention_norm, s.x, s.h1, s.stats1)?;
        let qkv = self.at(s.qkv)?;
        let projected = if layer.qk_norm.is_some() { self.at(s.qkv_raw)? } else { qkv.clone() };
        self.project(state, layer.qkv, &self.at(s.h1)?, &projected, false)?;
        if let Some(gains) = layer.qk_norm {
            elementwise::copy(&self.stream, &projected, &qkv)?;
            for ((gain, rows), rstd) in self.qk_rows(gains).into_iter().zip([s.q_rstd, s.k_rstd]) {
                let (gain, rstd) = (self.weight_vector(state, gain)?, self.at(rstd)?);
                let eps = self.a.norm_eps;
                let (from, to) = ((&projected, rows), (&qkv, rows));
                norm::rms_forward(&self.stream, from, &gain, eps, to, &rstd)?;
            }
        }
        if let Some(angles) = &self.angles {
            rope::rotate(&self.stream, angles, &qkv, self.a.heads + self.a.kv_heads, false)?;
        }
        let h = heads(&self.a, self.batch);
        let inputs = (&qkv, &self.at(self.slots.doc_start)?);
        let out = self.at(s.attention)?;
        let workspace = self.at(self.slots.workspace)?.flat(0..h.forward_workspace())?;
        attention::forward(&self.stream, h, inputs, (&out, &self.at(s.lse)?), &workspace)?;
        let x_mid = self.at(s.x_mid)?;
        elementwise::copy(&self.stream, &self.at(s.x)?, &x_mid)?;
        self.project(state, layer.out, &out, &x_mid, true)
    }

    /// The query and key vectors inside qkv that are normalized, with their gains.
    pub(crate) fn qk_rows(&self, (q, k): (Weight, Weight)) -> [(Weight, Rows); 2] {
        let a = &self.a;
        let (n, stride) = (self.batch.rows(), heads(a, self.batch).stride());
        let (wide, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        match a.qk_norm {
            QkNorm::Projection => {
                [(q, Rows::heads(n, stride, 0, 1, wide)), (k, Rows::heads(n, stride, wide, 1, kv))]
            }
            _ => [
                (q, Rows::heads(n, stride, 0, a.heads, a.head_dim)),
                (k, Rows::heads(n, stride, wide, a.kv_heads, a.head_dim)),
            ],
        }
    }

    fn normalize(
        &self,
        state: State,
        weights: NormWeights,
        x: Slot,
        y: Slot,
        stats: Slot,
    ) -> Result<(), ModelError> {
        let (x, y, stats) = (self.at(x)?, self.at(y)?, self.at(stats)?);
        let gain = self.weight_vector(state, weights.gain)?;
        let eps = self.a.norm_eps;
        match (self.a.norm, weights.bias) {
            (Norm::Layer, Some(bias)) => {
                let bias = self.weight_second(state, bias)?;
                norm::layer_forward(&self.stream, &x, (&gain, &bias), eps, &y, &stats)?;
            }
            _ => {
                let rows = Rows::dense(x.dim(0), x.dim(1));
                norm::rms_forward(&self.stream, (&x, rows), &gain, eps, (&y, rows), &stats)?;
            }
        }
        Ok(())
    }

    fn mlp(
        &self,
        state: State,
        up: Linear,
        down: Linear,
        s: &LayerSlots,
        out: &Tensor,
    ) -> Result<(), ModelError> {
        let (pre, act) = (self.at(s.up)?, self.at(s.act)?);
        self.project(state, up, &self.at(s.h2)?, &pre, false)?;
        match self.a.activation {
            Activation::Swiglu => elementwise::swiglu_forward(&self.stream, &pre, &act)?,
            Activation::Gelu => elementwise::gelu_forward(&self.stream, &pre, &act)?,
        }
        self.project(state, down, &act, out, true)
    }

    fn experts(
        &self,
        state: State,
        weights: &Experts,
        moe_layer: usize,
        s: &LayerSlots,
        out: &Tensor,
    ) -> Result<(), ModelError> {
        let e = &s.experts;
        let (h, logits) = (self.at(s.h2)?, self.at(e.logits)?);
        self.linear(&h, &self.weight(state, weights.router)?, &logits, false)?;
        let routing = Slots::routing(e, &self.arena)?;
        let router = self.router();
        let bias = state.router_bias.rows(moe_layer..moe_layer + 1)?;
        let loads = state.loads.rows(moe_layer..moe_layer + 1)?;
        moe::route(&self.stream, router, &logits, &bias, &routing, &loads)?;
        if let Some(shared) = weights.shared {
            self.mlp(state, shared.up, shared.down, s, out)?;
        }
        let (grouped, gate_up) = (self.at(self.slots.grouped)?, self.at(e.gate_up)?);
        let (act, y) = (self.at(e.act)?, self.at(e.y)?);
        moe::group_rows(&self.stream, &routing, &h, &grouped)?;
        let (wide, narrow) = self.expert_shapes();
        let (forward, offsets) = (moe::Product::Forward, &routing.offsets);
        let w = self.weight(state, weights.gate_up)?;
        moe::grouped_product(&self.stream, forward, wide, offsets, (&grouped, &w, &gate_up))?;
        elementwise::swiglu_forward(&self.stream, &gate_up, &act)?;
        let w = self.weight(state, weights.down)?;
        moe::grouped_product(&self.stream, forward, narrow, offsets, (&act, &w, &y))?;
        moe::combine(&self.stream, &routing, &y, out)?;
        Ok(())
    }

    /// `(out, in)` of one expert's gate-and-up and down matrices.
    pub(crate) fn expert_shapes(&self) -> ((usize, usize), (usize, usize)) {
        let d_ff = self.a.moe.as_ref().map_or(0, |moe| moe.d_ff);
        ((2 * d_ff, self.a.d_model), (self.a.d_model, d_ff))
    }

    pub(crate) fn router(&self) -> moe::Router {
        let none = moe::Router {
            experts: 0,
            top_k: 0,
            sigmoid: false,
            normalize: false,
            scale: 1.0,
            aux_loss: 0.0,
            z_loss: 0.0,
        };
        self.a.moe.as_ref().map_or(none, |m| moe::Router {
            experts: m.experts,
            top_k: m.top_k,
            sigmoid: m.scores == Scores::Sigmoid,
            normalize: m.normalize_top_k,
            scale: m.route_scale,
            aux_loss: m.aux_loss,
            z_loss: m.z_loss,
        })
    }

    pub(crate) fn at(&self, slot: Slot) -> Result<Tensor, ModelError> {
        slot.of(&self.arena)
    }

    /// A weight as it is stored.
    pub(crate) fn stored(&self, state: State, w: Weight) -> Result<Tensor, ModelError> {
        let start = self.flat.offsets[w.tensor];
        Ok(state.weights.flat(start..start + w.len())?.reshape(&[w.rows, w.cols])?)
    }

    /// A matrix in the compute type; bf16 is widened to the one scratch, valid until the next.
    pub(crate) fn weight(&self, state: State, w: Weight) -> Result<Tensor, ModelError> {
        let stored = self.stored(state, w)?;
        if stored.dtype() != DType::Bf16 {
            return Ok(stored);
        }
        let wide = self.at(self.slots.widened)?.flat(0..w.len())?.reshape(&[w.rows, w.cols])?;
        elementwise::widen(&self.stream, &stored, &wide)?;
        Ok(wide)
    }

    pub(crate) fn weight_vector(&self, state: State, w: Weight) -> Result<Tensor, ModelError> {
        self.small(state, w, 0)
    }

    pub(crate) fn weight_second(&self, state: State, w: Weight) -> Result<Tensor, ModelError> {
        self.small(state, w, 1)
    }

    /// A vector in the compute type, in one of two scratches of its own.
    fn small(&self, state: State, w: Weight, which: usize) -> Result<Tensor, ModelError> {
        let stored = self.stored(state, w)?.reshape(&[w.len()])?;
        if stored.dtype() != DType::Bf16 {
            return Ok(stored);
        }
        let scratch = self.at(self.slots.widened_vectors)?.rows(which..which + 1)?;
        let wide = scratch.flat(0..w.len())?;
        elementwise::widen(&self.stream, &stored, &wide)?;
        Ok(wide)
    }

    /// `y = x·Wᵀ + bias`, or added to `y`.
    fn project(
        &self,
        state: State,
        linear: Linear,
        x: &Tensor,
        y: &Tensor,
        add: bool,
    ) -> Result<(), ModelError> {
        self.linear(x, &self.weight(state, linear.weight)?, y, add)?;
        if let Some(bias) = linear.bias {
            elementwise::add_bias(&self.stream, &self.weight_vector(state, bias)?, y)?;
        }
        Ok(())
    }

    /// `y = x·Wᵀ` (added when `add`): `x [n, in]`, `w [out, in]`, `y [n, out]`.
    pub(crate) fn linear(
        &self,
        x: &Tensor,
        w: &Tensor,
        y: &Tensor,
        add: bool,
    ) -> Result<(), ModelError> {
        let (n, out, input) = (x.dim(0), w.dim(0), w.dim(1));
        let a = (x, Layout::dense(n, input));
        let b = (w, Layout::dense(out, input).t());
        let beta = if add { 1.0 } else { 0.0 };
        Ok(matmul(&self.stream, 1.0, a, b, beta, (y, Layout::dense(n, out)))?)
    }
}
