//! The backward pass: from the loss to the gradients, last layers first.

use device::Tensor;
use kernels::gemm::{Layout, matmul};
use kernels::norm::Rows;
use kernels::{attention, elementwise, embedding, loss, moe, norm, rope};

use crate::config::{Activation, Norm};
use crate::forward::{Model, State};
use crate::params::{Experts, FeedWeights, Layer, Linear, NormWeights, Weight};
use crate::slots::{LayerSlots, Slot, Slots, heads, logit_rows};
use crate::{Hooks, ModelError};

/// Where a backward pass writes.
#[derive(Clone, Copy)]
pub struct Gradients<'a> {
    /// All gradients, flat, in the layout of the weights.
    pub flat: &'a Tensor,
    /// Add to what is there; otherwise everything is overwritten.
    pub accumulate: bool,
    /// Target tokens of the micro-batch: the scale of the auxiliary losses.
    pub tokens: f64,
    /// Receives the summed cross-entropy, `[1]` f64.
    pub loss: &'a Tensor,
}

impl Model {
    /// Head, loss and backward pass of the forwarded micro-batch.
    ///
    /// # Errors
    /// Device errors; a target outside the vocabulary.
    pub fn backward(
        &self,
        state: State,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), ModelError> {
        self.head_backward(state, to)?;
        if let Some(head) = self.params.head {
            hooks.ready(self.flat.offsets[head.tensor]);
        }
        let s = &self.slots;
        let final_norm = (self.params.final_norm, s.x_final, s.stats_final);
        self.norm_backward(state, to, final_norm, false)?;
        for (i, layer) in self.params.layers.iter().enumerate().rev() {
            let slots = &self.slots.layers[i];
            match &layer.feed {
                FeedWeights::Dense(mlp) => {
                    self.mlp_backward(state, to, (mlp.up, mlp.down), slots, false)?;
                }
                FeedWeights::Experts(experts) => {
                    self.experts_backward(state, to, experts, slots)?;
                }
            }
            self.norm_backward(state, to, (layer.feed_norm, slots.x_mid, slots.stats2), true)?;
            self.attention_backward(state, to, layer, slots)?;
            self.norm_backward(state, to, (layer.attention_norm, slots.x, slots.stats1), true)?;
            hooks.ready(self.params.layer_start(&self.flat, i));
        }
        self.embedding_backward(to)?;
        hooks.ready(0);
        Ok(())
    }

    /// Loss, `dh` of the final norm's output, and the gradient of the output projection, a chunk
    /// of rows at a time: the logits of the whole micro-batch never exist.
    fn head_backward(&self, state: State, to: Gradients) -> Result<(), ModelError> {
        let rows = self.batch.rows();
        let losses = self.at(self.slots.losses)?.reshape(&[rows])?;
        let targets = self.at(self.slots.targets)?.reshape(&[rows])?;
        let (h, dh) = (self.at(self.slots.h_final)?, self.at(self.slots.dh)?);
        let output = self.params.output();
        let head = self.weight(state, output)?;
        let dhead = self.gradient(to, output)?;
        for start in (0..rows).step_by(logit_rows(rows)) {
            let chunk = start..rows.min(start + logit_rows(rows));
            let logits = self.logits(&head, chunk.clone())?;
            let part = (targets.flat(chunk.clone())?, losses.flat(chunk.clone())?);
            loss::cross_entropy(&self.stream, &logits, &part.0, &part.1, true)?;
            self.input_gradient(&logits, &head, &dh.rows(chunk.clone())?, false)?;
            let add = to.accumulate || start > 0;
            self.weight_gradient(&logits, &h.rows(chunk)?, &dhead, add)?;
        }
        Ok(loss::total(&self.stream, &losses, to.loss, false)?)
    }

    fn embedding_backward(&self, to: Gradients) -> Result<(), ModelError> {
        let dx = self.at(self.slots.dx)?;
        let tokens = self.at(self.slots.tokens)?;
        let dtable = self.gradient(to, self.params.embedding)?;
        // A tied table already holds the gradient of the output projection.
        if self.params.head.is_some() && !to.accumulate {
            elementwise::zero(&self.stream, &dtable)?;
        }
        embedding::scatter_add(&self.stream, &tokens, &dx, &dtable)?;
        if let Some(table) = self.params.positions {
            let dtable = self.gradient(to, table)?;
            let (positions, add) = (self.batch.positions, to.accumulate);
            embedding::positions_backward(&self.stream, &dx, positions, &dtable, add)?;
        }
        Ok(())
    }

    /// From `dh` to `dx`; `add` where the residual stream's gradient is already in `dx`.
    fn norm_backward(
        &self,
        state: State,
        to: Gradients,
        (weights, x, stats): (NormWeights, Slot, Slot),
        add: bool,
    ) -> Result<(), ModelError> {
        let (dh, dx) = (self.at(self.slots.dh)?, self.at(self.slots.dx)?);
        let (x, stats) = (self.at(x)?, self.at(stats)?);
        let gain = self.weight_vector(state, weights.gain)?;
        let dgain = self.gradient_vector(to, weights.gain)?;
        let accumulate = to.accumulate;
        match (self.a.norm, weights.bias) {
            (Norm::Layer, Some(bias)) => {
                let gradients = (&dgain, &self.gradient_vector(to, bias)?);
                let dx = (&dx, add);
                norm::layer_backward(
                    &self.stream,
                    &dh,
                    &x,
                    &gain,
                    &stats,
                    dx,
                    gradients,
                    accumulate,
                )?;
            }
            _ => {
                let rows = Rows::dense(x.dim(0), x.dim(1));
                let (dh, x, dx) = ((&dh, rows), (&x, rows), (&dx, rows, add));
                norm::rms_backward(&self.stream, dh, x, &gain, &stats, dx, &dgain, accumulate)?;
            }
        }
        Ok(())
    }

    /// From `dx` to `dh` (added when `add`), through an MLP.
    fn mlp_backward(
        &self,
        state: State,
        to: Gradients,
        (up, down): (Linear, Linear),
        s: &LayerSlots,
        add: bool,
    ) -> Result<(), ModelError> {
        let (dx, dh) = (self.at(self.slots.dx)?, self.at(self.slots.dh)?);
        let (pre, act) = (self.at(s.up)?, self.at(s.act)?);
        let dact = self.at(self.slots.dact)?.flat(0..act.len())?.reshape(act.dims())?;
        self.project_backward(state, to, down, (&dx, &act), Some((&dact, false)))?;
        match self.a.activation {
            Activation::Swiglu => elementwise::swiglu_backward(&self.stream, &dact, &pre)?,
            Activation::Gelu => elementwise::gelu_backward(&self.stream, &dact, &pre)?,
        }
        self.project_backward(state, to, up, (&pre, &self.at(s.h2)?), Some((&dh, add)))
    }

    /// From `dx` to `dh`, through a mixture of experts.
    fn experts_backward(
        &self,
        state: State,
        to: Gradients,
        weights: &Experts,
        s: &LayerSlots,
    ) -> Result<(), ModelError> {
        let (e, b) = (&s.experts, &self.slots);
        let (dx, dh, h) = (self.at(b.dx)?, self.at(b.dh)?, self.at(s.h2)?);
        let routing = Slots::routing(e, &self.arena)?;
        let (y, dweights) = (self.at(e.y)?, self.at(b.dweights)?);
        moe::combine_backward(&self.stream, &routing, &dx, &y, &dweights)?;
        self.expert_products_backward(state, to, weights, s, &routing)?;
        let (logits, drouter) = (self.at(e.logits)?, self.at(b.drouter)?);
        let from = (&logits, &routing);
        moe::route_backward(&self.stream, self.router(), from, &dweights, to.tokens, &drouter)?;
        let router = Linear { weight: weights.router, bias: None };
        self.project_backward(state, to, router, (&drouter, &h), Some((&dh, false)))?;
        if let Some(shared) = weights.shared {
            self.mlp_backward(state, to, (shared.up, shared.down), s, true)?;
        }
        moe::group_rows_backward(&self.stream, &routing, &self.at(b.dgrouped)?, &dh)?;
        Ok(())
    }

    /// From the gradient in `y` to `dgrouped`, through the experts' matrices.
    fn expert_products_backward(
        &self,
        state: State,
        to: Gradients,
        weights: &Experts,
        s: &LayerSlots,
        routing: &moe::Routing,
    ) -> Result<(), ModelError> {
        let (e, b, stream) = (&s.experts, &self.slots, &self.stream);
        let (gate_up, act, dy) = (self.at(e.gate_up)?, self.at(e.act)?, self.at(e.y)?);
        let (grouped, dact) = (self.at(b.grouped)?, self.at(b.dgrouped_act)?);
        let (wide, narrow) = self.expert_shapes();
        let offsets = &routing.offsets;
        let weight = moe::Product::Weight { accumulate: to.accumulate };
        let w = self.weight(state, weights.down)?;
        moe::grouped_product(stream, moe::Product::Input, narrow, offsets, (&dy, &w, &dact))?;
        let dw = self.gradient(to, weights.down)?;
        moe::grouped_product(stream, weight, narrow, offsets, (&dy, &act, &dw))?;
        elementwise::swiglu_backward(stream, &dact, &gate_up)?;
        moe::group_rows(stream, routing, &self.at(s.h2)?, &grouped)?;
        let dw = self.gradient(to, weights.gate_up)?;
        moe::grouped_product(stream, weight, wide, offsets, (&gate_up, &grouped, &dw))?;
        let (w, dgrouped) = (self.weight(state, weights.gate_up)?, self.at(b.dgrouped)?);
        let operands = (&gate_up, &w, &dgrouped);
        moe::grouped_product(stream, moe::Product::Input, wide, offsets, operands)?;
        Ok(())
    }

    /// From `dx` to `dh`, through attention.
    fn attention_backward(
        &self,
        state: State,
        to: Gradients,
        layer: &Layer,
        s: &LayerSlots,
    ) -> Result<(), ModelError> {
        let b = &self.slots;
        let (dx, dh, dqkv) = (self.at(b.dx)?, self.at(b.dh)?, self.at(b.dqkv)?);
        let (out, dout) = (self.at(s.attention)?, self.at(b.dattention)?);
        self.project_backward(state, to, layer.out, (&dx, &out), Some((&dout, false)))?;
        let h = heads(&self.a, self.batch);
        let inputs = (&self.at(s.qkv)?, &self.at(b.doc_start)?);
        let saved = (&out, &self.at(s.lse)?, &dout);
        let workspace = self.at(b.workspace)?.flat(0..h.backward_workspace())?;
        attention::backward(&self.stream, h, inputs, saved, &dqkv, &workspace)?;
        if let Some(angles) = &self.angles {
            rope::rotate(&self.stream, angles, &dqkv, self.a.heads + self.a.kv_heads, true)?;
        }
        if let Some(gains) = layer.qk_norm {
            let raw = self.at(s.qkv_raw)?;
            for ((w, rows), rstd) in self.qk_rows(gains).into_iter().zip([s.q_rstd, s.k_rstd]) {
                let (gain, rstd) = (self.weight_vector(state, w)?, self.at(rstd)?);
                let dgain = (&self.gradient_vector(to, w)?, to.accumulate);
                norm::rms_backward_in_place(&self.stream, &dqkv, &raw, rows, &gain, &rstd, dgain)?;
            }
        }
        self.project_backward(state, to, layer.qkv, (&dqkv, &self.at(s.h1)?), Some((&dh, false)))
    }

    /// Gradients of `y = x·Wᵀ + bias`: of W and bias from `dy` and `x`, and of `x` to `dx`.
    fn project_backward(
        &self,
        state: State,
        to: Gradients,
        linear: Linear,
        (dy, x): (&Tensor, &Tensor),
        dx: Option<(&Tensor, bool)>,
    ) -> Result<(), ModelError> {
        let dw = self.gradient(to, linear.weight)?;
        self.weight_gradient(dy, x, &dw, to.accumulate)?;
        if let Some(bias) = linear.bias {
            let db = self.gradient_vector(to, bias)?;
            elementwise::bias_backward(&self.stream, dy, &db, to.accumulate)?;
        }
        match dx {
            Some((dx, add)) => {
                self.input_gradient(dy, &self.weight(state, linear.weight)?, dx, add)
            }
            None => Ok(()),
        }
    }

    /// `dx = dy·W` (added when `add`): `dy [n, out]`, `w [out, in]`, `dx [n, in]`.
    fn input_gradient(
        &self,
        dy: &Tensor,
        w: &Tensor,
        dx: &Tensor,
        add: bool,
    ) -> Result<(), ModelError> {
        let (n, out, input) = (dy.dim(0), w.dim(0), w.dim(1));
        let (a, b) = ((dy, Layout::dense(n, out)), (w, Layout::dense(out, input)));
        let beta = if add { 1.0 } else { 0.0 };
        Ok(matmul(&self.stream, 1.0, a, b, beta, (dx, Layout::dense(n, input)))?)
    }

    /// `dW = dyᵀ·x` (added when `add`).
    fn weight_gradient(
        &self,
        dy: &Tensor,
        x: &Tensor,
        dw: &Tensor,
        add: bool,
    ) -> Result<(), ModelError> {
        let (n, out, input) = (dy.dim(0), dw.dim(0), dw.dim(1));
        let (a, b) = ((dy, Layout::dense(n, out).t()), (x, Layout::dense(n, input)));
        let beta = if add { 1.0 } else { 0.0 };
        Ok(matmul(&self.stream, 1.0, a, b, beta, (dw, Layout::dense(out, input)))?)
    }

    fn gradient(&self, to: Gradients, w: Weight) -> Result<Tensor, ModelError> {
        let start = self.flat.offsets[w.tensor];
        Ok(to.flat.flat(start..start + w.len())?.reshape(&[w.rows, w.cols])?)
    }

    fn gradient_vector(&self, to: Gradients, w: Weight) -> Result<Tensor, ModelError> {
        Ok(self.gradient(to, w)?.reshape(&[w.len()])?)
    }
}
