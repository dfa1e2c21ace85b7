//! The model and its forward pass.

use device::{DType, Device, Placement, Stream, Tensor};
use kernels::gemm::{Matmul, Matrix};
use kernels::norm::{Rows, Vectors};
use kernels::{Onto, Op, attention, elementwise, embedding, loss, mlp, moe, norm, rope};
use layout::{FlatLayout, Schema};

use crate::architecture::Architecture;
use crate::config::{Activation, Norm, Positions, QkNorm, Scores};
use crate::params::{Experts, FeedWeights, Layer, Linear, NormWeights, Parameters, Weight};
use crate::slots::{LayerSlots, MicroBatch, Plan, Slots, Types, heads, logit_rows, planned};
use crate::{Hooks, ModelError, parameters};

/// A model on a device: its schema, and one arena for a micro-batch.
pub struct Model {
    pub(crate) a: Architecture,
    pub(crate) schema: Schema,
    pub(crate) params: Parameters,
    pub(crate) flat: FlatLayout,
    pub(crate) batch: MicroBatch,
    /// All in one arena.
    pub(crate) slots: Slots<Tensor>,
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
    /// Plans and allocates; `bucket_elements` cuts the flat buffers.
    ///
    /// # Errors
    /// Memory.
    pub fn new(
        device: &Device,
        a: &Architecture,
        batch: MicroBatch,
        bucket_elements: usize,
        types: Types,
    ) -> Result<Model, ModelError> {
        let (schema, params) = parameters(a)?;
        let flat = FlatLayout::new(&schema, bucket_elements);
        let plan = Plan::new(a, &schema, batch, types);
        if types.widens() {
            plan.check_widened(&params)?;
        }
        let slots = plan.slots.views(&device.alloc(plan.bytes, &Placement::Private)?)?;
        let angles = match a.positions {
            Positions::Rotary { theta } => {
                Some(rope::table(device, batch.positions, a.head_dim, theta, types.compute)?)
            }
            Positions::Learned { .. } => None,
        };
        let (a, stream) = (a.clone(), device.stream());
        Ok(Model { a, schema, params, flat, batch, slots, stream, angles })
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
    /// A layer without experts.
    pub fn chosen(&self, layer: usize) -> Result<Tensor, ModelError> {
        let slots = self.slots.layers.get(layer).and_then(|slots| slots.experts.as_ref());
        Ok(planned(slots, "experts of this layer")?.chosen.clone())
    }

    /// Copies a micro-batch in.
    ///
    /// # Errors
    /// Inputs of another size.
    pub fn load(&self, inputs: &Inputs) -> Result<(), ModelError> {
        self.stream.copy_in(&self.slots.tokens, inputs.tokens)?;
        self.stream.copy_in(&self.slots.targets, inputs.targets)?;
        self.stream.copy_in(&self.slots.doc_start, inputs.doc_start)?;
        Ok(())
    }

    /// Runs the loaded micro-batch up to the final norm.
    ///
    /// # Errors
    /// Device errors; a token outside the vocabulary.
    pub fn forward(&self, state: State, hooks: &mut dyn Hooks) -> Result<(), ModelError> {
        let after = |layer: usize| {
            self.slots.layers.get(layer).map_or(&self.slots.x_final, |layer| &layer.x).clone()
        };
        hooks.need(0);
        let x = after(0);
        let tokens = self.slots.tokens.clone();
        let table = self.stored(state, self.params.embedding)?;
        self.run(embedding::Gather { tokens, table, y: x.clone() })?;
        if let Some(table) = self.params.positions {
            let table = self.weight(state, table)?;
            self.run(embedding::AddPositions { table, positions: self.batch.positions, y: x })?;
        }
        let mut moe_layer = 0;
        for (i, layer) in self.params.layers.iter().enumerate() {
            hooks.need(self.params.layer_start(&self.flat, i));
            let slots = &self.slots.layers[i];
            self.attention(state, layer, slots)?;
            self.normalize(state, layer.feed_norm, [&slots.x_mid, &slots.h2, &slots.stats2])?;
            let next = after(i + 1);
            self.run(elementwise::Copy { x: slots.x_mid.clone(), y: next.clone() })?;
            match &layer.feed {
                FeedWeights::Dense(mlp) => {
                    self.mlp(state, mlp.up, mlp.down, slots, &next)?;
                }
                FeedWeights::Experts(experts) => {
                    self.experts(state, experts, moe_layer, slots, &next)?;
                    moe_layer += 1;
                }
            }
        }
        hooks.need(self.flat.offsets[self.params.final_norm.gain.tensor]);
        let s = &self.slots;
        self.normalize(state, self.params.final_norm, [&s.x_final, &s.h_final, &s.stats_final])
    }

    /// Sum of the cross-entropies of the forwarded micro-batch, written to `loss [1]` f64.
    ///
    /// # Errors
    /// Device errors.
    pub fn evaluate(&self, state: State, loss: &Tensor) -> Result<(), ModelError> {
        let rows = self.batch.rows();
        let losses = self.slots.losses.clone();
        let targets = self.slots.targets.clone();
        let head = self.weight(state, self.params.output())?;
        for start in (0..rows).step_by(logit_rows(rows)) {
            let chunk = start..rows.min(start + logit_rows(rows));
            let logits = self.logits(&head, chunk.clone())?;
            self.run(loss::CrossEntropy {
                logits,
                logits_become: loss::Becomes::Unchanged,
                targets: targets.flat(chunk.clone())?,
                losses: losses.flat(chunk)?,
            })?;
        }
        self.run(loss::Total { values: losses, out: loss.clone(), out_onto: Onto::Overwrite })
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
        let logits = self.slots.logits.rows(0..chunk.len())?;
        let h = self.slots.h_final.rows(chunk)?;
        self.linear(&h, head, &logits, Onto::Overwrite)?;
        Ok(logits)
    }

    fn attention(
        &self,
        state: State,
        layer: &Layer,
        s: &LayerSlots<Tensor>,
    ) -> Result<(), ModelError> {
        self.normalize(state, layer.attention_norm, [&s.x, &s.h1, &s.stats1])?;
        let qkv = s.qkv.clone();
        let projected = s.qk_norm.as_ref().map_or(&qkv, |norm| &norm.raw);
        self.project(state, layer.qkv, &s.h1, projected, Onto::Overwrite)?;
        if let Some(gains) = layer.qk_norm {
            let slots = planned(s.qk_norm.as_ref(), "normalized queries and keys")?;
            self.run(elementwise::Copy { x: slots.raw.clone(), y: qkv.clone() })?;
            let rstds = [&slots.q_rstd, &slots.k_rstd];
            for ((gain, rows), rstd) in self.qk_rows(gains).into_iter().zip(rstds) {
                self.run(norm::RmsForward {
                    x: Vectors { tensor: slots.raw.clone(), rows },
                    gain: self.weight_vector(state, gain)?,
                    eps: self.a.norm_eps,
                    y: Vectors { tensor: qkv.clone(), rows },
                    rstd: rstd.clone(),
                })?;
            }
        }
        self.rotate(&qkv, rope::Turn::Forward)?;
        let heads = heads(&self.a, self.batch);
        let out = s.attention.clone();
        self.run(attention::Forward {
            heads,
            qkv,
            doc_start: self.slots.doc_start.clone(),
            out: out.clone(),
            lse: s.lse.clone(),
            workspace: self.slots.forward_workspace.clone(),
        })?;
        let x_mid = s.x_mid.clone();
        self.run(elementwise::Copy { x: s.x.clone(), y: x_mid.clone() })?;
        self.project(state, layer.out, &out, &x_mid, Onto::Add)
    }

    /// Turns queries and keys by their positions, where the model does so.
    pub(crate) fn rotate(&self, qkv: &Tensor, turn: rope::Turn) -> Result<(), ModelError> {
        let Some(table) = self.angles.clone() else { return Ok(()) };
        let heads = self.a.heads + self.a.kv_heads;
        self.run(rope::Rotate { table, x: qkv.clone(), heads, turn })
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
        operands: [&Tensor; 3],
    ) -> Result<(), ModelError> {
        let [x, y, stats] = operands.map(Tensor::clone);
        let gain = self.weight_vector(state, weights.gain)?;
        let eps = self.a.norm_eps;
        match (self.a.norm, weights.bias) {
            (Norm::Layer, Some(bias)) => {
                let bias = self.weight_second(state, bias)?;
                self.run(norm::LayerForward { x, gain, bias, eps, y, stats })
            }
            _ => {
                let (x, y) = (Vectors::rows_of(x), Vectors::rows_of(y));
                self.run(norm::RmsForward { x, gain, eps, y, rstd: stats })
            }
        }
    }

    fn mlp(
        &self,
        state: State,
        up: Linear,
        down: Linear,
        s: &LayerSlots<Tensor>,
        out: &Tensor,
    ) -> Result<(), ModelError> {
        let (pre, act) = (s.up.clone(), s.act.clone());
        self.project(state, up, &s.h2, &pre, Onto::Overwrite)?;
        match self.a.activation {
            Activation::Swiglu => {
                self.run(mlp::SwigluForward { gate_up: pre, y: act.clone() })?;
            }
            Activation::Gelu => self.run(mlp::GeluForward { x: pre, y: act.clone() })?,
        }
        self.project(state, down, &act, out, Onto::Add)
    }

    fn experts(
        &self,
        state: State,
        weights: &Experts,
        moe_layer: usize,
        s: &LayerSlots<Tensor>,
        out: &Tensor,
    ) -> Result<(), ModelError> {
        let e = planned(s.experts.as_ref(), "experts of this layer")?;
        let scratch = planned(self.slots.experts.as_ref(), "experts")?;
        let (h, logits) = (s.h2.clone(), e.logits.clone());
        self.linear(&h, &self.weight(state, weights.router)?, &logits, Onto::Overwrite)?;
        let routing = e.routing();
        self.run(moe::Route {
            router: self.router(),
            logits,
            bias: state.router_bias.rows(moe_layer..moe_layer + 1)?,
            routing: routing.clone(),
            loads: state.loads.rows(moe_layer..moe_layer + 1)?,
        })?;
        if let Some(shared) = weights.shared {
            self.mlp(state, shared.up, shared.down, s, out)?;
        }
        let (grouped, gate_up) = (scratch.grouped.clone(), e.gate_up.clone());
        let (act, y, offsets) = (e.act.clone(), e.y.clone(), routing.offsets.clone());
        self.run(moe::GroupRows { routing: routing.clone(), x: h, y: grouped.clone() })?;
        self.run(moe::ProductForward {
            offsets: offsets.clone(),
            x: grouped,
            w: self.weight(state, weights.gate_up)?,
            y: gate_up.clone(),
        })?;
        self.run(mlp::SwigluForward { gate_up, y: act.clone() })?;
        let w = self.weight(state, weights.down)?;
        self.run(moe::ProductForward { offsets, x: act, w, y: y.clone() })?;
        self.run(moe::Combine { routing, y, out: out.clone() })
    }

    pub(crate) fn router(&self) -> moe::Router {
        let none = moe::Router {
            experts: 0,
            top_k: 0,
            scores: moe::Scores::Softmax,
            shares: moe::Shares::Scores,
            scale: 1.0,
            aux_loss: 0.0,
            z_loss: 0.0,
        };
        self.a.moe.as_ref().map_or(none, |m| moe::Router {
            experts: m.experts,
            top_k: m.top_k,
            scores: match m.scores {
                Scores::Softmax => moe::Scores::Softmax,
                Scores::Sigmoid => moe::Scores::Sigmoid,
            },
            shares: match m.normalize_top_k {
                true => moe::Shares::Normalized,
                false => moe::Shares::Scores,
            },
            scale: m.route_scale,
            aux_loss: m.aux_loss,
            z_loss: m.z_loss,
        })
    }

    /// Enqueues an operation.
    pub(crate) fn run(&self, operation: impl Op) -> Result<(), ModelError> {
        Ok(operation.launch(&self.stream)?)
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
        let wide = self.slots.widened.flat(0..w.len())?.reshape(&[w.rows, w.cols])?;
        self.run(elementwise::Widen { x: stored, y: wide.clone() })?;
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
        let scratch = self.slots.widened_vectors.rows(which..which + 1)?;
        let wide = scratch.flat(0..w.len())?;
        self.run(elementwise::Widen { x: stored, y: wide.clone() })?;
        Ok(wide)
    }

    /// `y = x·Wᵀ + bias`: `y` is overwritten or added to.
    fn project(
        &self,
        state: State,
        linear: Linear,
        x: &Tensor,
        y: &Tensor,
        y_onto: Onto,
    ) -> Result<(), ModelError> {
        self.linear(x, &self.weight(state, linear.weight)?, y, y_onto)?;
        if let Some(bias) = linear.bias {
            let bias = self.weight_vector(state, bias)?;
            self.run(mlp::AddBias { bias, y: y.clone() })?;
        }
        Ok(())
    }

    /// `y = x·Wᵀ`: `x [n, in]`, `w [out, in]`, `y [n, out]`.
    pub(crate) fn linear(
        &self,
        x: &Tensor,
        w: &Tensor,
        y: &Tensor,
        y_onto: Onto,
    ) -> Result<(), ModelError> {
        self.run(Matmul {
            alpha: 1.0,
            a: Matrix::of(x.clone()),
            b: Matrix::of(w.clone()).t(),
            beta: y_onto.beta(),
            c: Matrix::of(y.clone()),
        })
    }
}
