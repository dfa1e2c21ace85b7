//! The backward pass: from the loss to the gradients, last layers first.

use device::Tensor;
use kernels::gemm::{Matmul, Matrix};
use kernels::norm::Vectors;
use kernels::{Onto, attention, elementwise, embedding, loss, mlp, moe, norm, rope};

use crate::config::{Activation, Norm};
use crate::forward::{Model, State};
use crate::params::{Experts, FeedWeights, Layer, Linear, NormWeights, Weight};
use crate::slots::{LayerSlots, heads, logit_rows, planned};
use crate::{Hooks, ModelError};

/// Where a backward pass writes.
#[derive(Clone, Copy)]
pub struct Gradients<'a> {
    /// All gradients, flat, in the layout of the weights.
    pub flat: &'a Tensor,
    /// Whether the gradients replace those of earlier micro-batches, or are added to them.
    pub onto: Onto,
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
        let final_norm = (self.params.final_norm, &s.x_final, &s.stats_final);
        self.norm_backward(state, to, final_norm, Onto::Overwrite)?;
        for (i, layer) in self.params.layers.iter().enumerate().rev() {
            let slots = &self.slots.layers[i];
            match &layer.feed {
                FeedWeights::Dense(mlp) => {
                    let (up, down, dh_onto) = (mlp.up, mlp.down, Onto::Overwrite);
                    self.mlp_backward(state, to, (up, down), slots, dh_onto)?;
                }
                FeedWeights::Experts(experts) => {
                    self.experts_backward(state, to, experts, slots)?;
                }
            }
            let norm = (layer.feed_norm, &slots.x_mid, &slots.stats2);
            self.norm_backward(state, to, norm, Onto::Add)?;
            self.attention_backward(state, to, layer, slots)?;
            let norm = (layer.attention_norm, &slots.x, &slots.stats1);
            self.norm_backward(state, to, norm, Onto::Add)?;
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
        let losses = self.slots.losses.clone();
        let targets = self.slots.targets.clone();
        let (h, dh) = (self.slots.h_final.clone(), self.slots.dh.clone());
        let output = self.params.output();
        let head = self.weight(state, output)?;
        let dhead = self.gradient(to, output)?;
        for start in (0..rows).step_by(logit_rows(rows)) {
            let chunk = start..rows.min(start + logit_rows(rows));
            let logits = self.logits(&head, chunk.clone())?;
            self.run(loss::CrossEntropy {
                logits: logits.clone(),
                logits_become: loss::Becomes::Gradient,
                targets: targets.flat(chunk.clone())?,
                losses: losses.flat(chunk.clone())?,
            })?;
            self.input_gradient(&logits, &head, &dh.rows(chunk.clone())?, Onto::Overwrite)?;
            let dhead_onto = if start > 0 { Onto::Add } else { to.onto };
            self.weight_gradient(&logits, &h.rows(chunk)?, &dhead, dhead_onto)?;
        }
        self.run(loss::Total { values: losses, out: to.loss.clone(), out_onto: Onto::Overwrite })
    }

    fn embedding_backward(&self, to: Gradients) -> Result<(), ModelError> {
        let dx = self.slots.dx.clone();
        let tokens = self.slots.tokens.clone();
        let dtable = self.gradient(to, self.params.embedding)?;
        // A tied table already holds the gradient of the output projection.
        if self.params.head.is_some() && to.onto == Onto::Overwrite {
            self.run(elementwise::Zero { y: dtable.clone() })?;
        }
        self.run(embedding::ScatterAdd { tokens, dy: dx.clone(), dtable })?;
        let Some(table) = self.params.positions else { return Ok(()) };
        let (dtable, positions) = (self.gradient(to, table)?, self.batch.positions);
        self.run(embedding::PositionsBackward { dy: dx, positions, dtable, dtable_onto: to.onto })
    }

    /// From `dh` to `dx`, which may hold the gradient of the residual stream already.
    fn norm_backward(
        &self,
        state: State,
        to: Gradients,
        (weights, x, stats): (NormWeights, &Tensor, &Tensor),
        dx_onto: Onto,
    ) -> Result<(), ModelError> {
        let (dy, dx) = (self.slots.dh.clone(), self.slots.dx.clone());
        let (x, stats) = (x.clone(), stats.clone());
        let gain = self.weight_vector(state, weights.gain)?;
        let dgain = self.gradient_vector(to, weights.gain)?;
        match (self.a.norm, weights.bias) {
            (Norm::Layer, Some(bias)) => self.run(norm::LayerBackward {
                dy,
                x,
                gain,
                stats,
                dx,
                dx_onto,
                dgain,
                dbias: self.gradient_vector(to, bias)?,
                weights_onto: to.onto,
            }),
            _ => self.run(norm::RmsBackward {
                dy: Vectors::rows_of(dy),
                x: Vectors::rows_of(x),
                gain,
                rstd: stats,
                dx: Vectors::rows_of(dx),
                dx_onto,
                dgain,
                dgain_onto: to.onto,
            }),
        }
    }

    /// From `dx` to `dh`, through an MLP.
    fn mlp_backward(
        &self,
        state: State,
        to: Gradients,
        (up, down): (Linear, Linear),
        s: &LayerSlots<Tensor>,
        dh_onto: Onto,
    ) -> Result<(), ModelError> {
        let (dx, dh) = (self.slots.dx.clone(), self.slots.dh.clone());
        let (pre, act) = (s.up.clone(), s.act.clone());
        let dact = s.dact.clone();
        self.project_backward(state, to, down, (&dx, &act), (&dact, Onto::Overwrite))?;
        match self.a.activation {
            Activation::Swiglu => {
                self.run(mlp::SwigluBackward { dy: dact, gate_up: pre.clone() })?;
            }
            Activation::Gelu => self.run(mlp::GeluBackward { dy: dact, x: pre.clone() })?,
        }
        self.project_backward(state, to, up, (&pre, &s.h2), (&dh, dh_onto))
    }

    /// From `dx` to `dh`, through a mixture of experts.
    fn experts_backward(
        &self,
        state: State,
        to: Gradients,
        weights: &Experts,
        s: &LayerSlots<Tensor>,
    ) -> Result<(), ModelError> {
        let e = planned(s.experts.as_ref(), "experts of this layer")?;
        let (b, scratch) = (&self.slots, planned(self.slots.experts.as_ref(), "experts")?);
        let (dx, dh, h) = (b.dx.clone(), b.dh.clone(), s.h2.clone());
        let routing = e.routing();
        let dweights = scratch.dweights.clone();
        self.run(moe::CombineBackward {
            routing: routing.clone(),
            dout: dx,
            y: e.y.clone(),
            dweights: dweights.clone(),
        })?;
        self.expert_products_backward(state, to, weights, s, &routing)?;
        let drouter = scratch.drouter.clone();
        self.run(moe::RouteBackward {
            router: self.router(),
            logits: e.logits.clone(),
            routing: routing.clone(),
            dweights,
            tokens: to.tokens,
            dlogits: drouter.clone(),
        })?;
        let router = Linear { weight: weights.router, bias: None };
        self.project_backward(state, to, router, (&drouter, &h), (&dh, Onto::Overwrite))?;
        if let Some(shared) = weights.shared {
            self.mlp_backward(state, to, (shared.up, shared.down), s, Onto::Add)?;
        }
        self.run(moe::GroupRowsBackward { routing, dy: scratch.dgrouped.clone(), dx: dh })
    }

    /// From the gradient in `y` to `dgrouped`, through the experts' matrices.
    fn expert_products_backward(
        &self,
        state: State,
        to: Gradients,
        weights: &Experts,
        s: &LayerSlots<Tensor>,
        routing: &moe::Routing,
    ) -> Result<(), ModelError> {
        let e = planned(s.experts.as_ref(), "experts of this layer")?;
        let b = planned(self.slots.experts.as_ref(), "experts")?;
        let (gate_up, act, dy) = (e.gate_up.clone(), e.act.clone(), e.y.clone());
        let (grouped, dact) = (b.grouped.clone(), b.dact.clone());
        let offsets = || routing.offsets.clone();
        self.run(moe::ProductInput {
            offsets: offsets(),
            dy: dy.clone(),
            w: self.weight(state, weights.down)?,
            dx: dact.clone(),
        })?;
        let (dw, dw_onto) = (self.gradient(to, weights.down)?, to.onto);
        self.run(moe::ProductWeight { offsets: offsets(), dy, x: act, dw, dw_onto })?;
        self.run(mlp::SwigluBackward { dy: dact, gate_up: gate_up.clone() })?;
        let (routing, x, y) = (routing.clone(), s.h2.clone(), grouped.clone());
        self.run(moe::GroupRows { routing, x, y })?;
        self.run(moe::ProductWeight {
            offsets: offsets(),
            dy: gate_up.clone(),
            x: grouped,
            dw: self.gradient(to, weights.gate_up)?,
            dw_onto,
        })?;
        self.run(moe::ProductInput {
            offsets: offsets(),
            dy: gate_up,
            w: self.weight(state, weights.gate_up)?,
            dx: b.dgrouped.clone(),
        })
    }

    /// From `dx` to `dh`, through attention.
    fn attention_backward(
        &self,
        state: State,
        to: Gradients,
        layer: &Layer,
        s: &LayerSlots<Tensor>,
    ) -> Result<(), ModelError> {
        let b = &self.slots;
        let (dx, dh, dqkv) = (b.dx.clone(), b.dh.clone(), b.dqkv.clone());
        let (out, dout) = (s.attention.clone(), b.dattention.clone());
        self.project_backward(state, to, layer.out, (&dx, &out), (&dout, Onto::Overwrite))?;
        let heads = heads(&self.a, self.batch);
        self.run(attention::Backward {
            heads,
            qkv: s.qkv.clone(),
            doc_start: b.doc_start.clone(),
            out,
            lse: s.lse.clone(),
            dout,
            dqkv: dqkv.clone(),
            workspace: b.backward_workspace.clone(),
        })?;
        self.rotate(&dqkv, rope::Turn::Back)?;
        if let Some(gains) = layer.qk_norm {
            let slots = planned(s.qk_norm.as_ref(), "normalized queries and keys")?;
            let rstds = [&slots.q_rstd, &slots.k_rstd];
            for ((w, rows), rstd) in self.qk_rows(gains).into_iter().zip(rstds) {
                self.run(norm::RmsBackwardInPlace {
                    d: dqkv.clone(),
                    x: slots.raw.clone(),
                    rows,
                    gain: self.weight_vector(state, w)?,
                    rstd: rstd.clone(),
                    dgain: self.gradient_vector(to, w)?,
                    dgain_onto: to.onto,
                })?;
            }
        }
        let operands = (&dqkv, &s.h1);
        self.project_backward(state, to, layer.qkv, operands, (&dh, Onto::Overwrite))
    }

    /// Gradients of `y = x·Wᵀ + bias`: of W and bias from `dy` and `x`, and of `x` to `dx`.
    fn project_backward(
        &self,
        state: State,
        to: Gradients,
        linear: Linear,
        (dy, x): (&Tensor, &Tensor),
        (dx, dx_onto): (&Tensor, Onto),
    ) -> Result<(), ModelError> {
        let dw = self.gradient(to, linear.weight)?;
        self.weight_gradient(dy, x, &dw, to.onto)?;
        if let Some(bias) = linear.bias {
            let dbias = self.gradient_vector(to, bias)?;
            self.run(mlp::BiasBackward { dy: dy.clone(), dbias, dbias_onto: to.onto })?;
        }
        self.input_gradient(dy, &self.weight(state, linear.weight)?, dx, dx_onto)
    }

    /// `dx = dy·W`: `dy [n, out]`, `w [out, in]`, `dx [n, in]`.
    fn input_gradient(
        &self,
        dy: &Tensor,
        w: &Tensor,
        dx: &Tensor,
        dx_onto: Onto,
    ) -> Result<(), ModelError> {
        self.run(Matmul {
            alpha: 1.0,
            a: Matrix::of(dy.clone()),
            b: Matrix::of(w.clone()),
            beta: dx_onto.beta(),
            c: Matrix::of(dx.clone()),
        })
    }

    /// `dW = dyᵀ·x`: `dy [n, out]`, `x [n, in]`, `dw [out, in]`.
    fn weight_gradient(
        &self,
        dy: &Tensor,
        x: &Tensor,
        dw: &Tensor,
        dw_onto: Onto,
    ) -> Result<(), ModelError> {
        self.run(Matmul {
            alpha: 1.0,
            a: Matrix::of(dy.clone()).t(),
            b: Matrix::of(x.clone()),
            beta: dw_onto.beta(),
            c: Matrix::of(dw.clone()),
        })
    }

    fn gradient(&self, to: Gradients, w: Weight) -> Result<Tensor, ModelError> {
        let start = self.flat.offsets[w.tensor];
        Ok(to.flat.flat(start..start + w.len())?.reshape(&[w.rows, w.cols])?)
    }

    fn gradient_vector(&self, to: Gradients, w: Weight) -> Result<Tensor, ModelError> {
        Ok(self.gradient(to, w)?.reshape(&[w.len()])?)
    }
}
