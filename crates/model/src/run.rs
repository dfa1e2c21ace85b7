//! The means by which blocks run their operations: places as tensors, weights in the compute type,
//! and the operations of several lines that all blocks have.

use std::ops::{Deref, Range};

use device::{DType, Stream, Tensor};
use kernels::gemm::{Matmul, Matrix};
use kernels::{Onto, Op, elementwise, mlp};
use layout::FlatLayout;

use crate::ModelError;
use crate::arena::{MicroBatch, Place, Views};
use crate::declare::{InputPlaces, Linear, Weight};

/// The result of an operation.
pub(crate) type Done = Result<(), ModelError>;

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

/// The parts of a model that all its passes share.
pub(crate) struct Core {
    pub flat: FlatLayout,
    /// First tensors of the sections that hooks hear of, in order.
    pub sections: Vec<usize>,
    pub batch: MicroBatch,
    /// Of each stash.
    pub views: Vec<Views>,
    pub inputs: InputPlaces,
    pub stream: Stream,
    /// Sines and cosines of positions, where a block turns by them.
    pub angles: Option<Tensor>,
    /// Where bf16 weights are widened: a matrix, and two vectors.
    pub widened: [Place; 2],
}

/// A pass over the micro-batch.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub core: &'a Core,
    /// Of its stash.
    pub views: &'a Views,
    pub state: State<'a>,
}

/// A backward pass.
#[derive(Clone, Copy)]
pub(crate) struct Back<'a> {
    pub pass: Pass<'a>,
    pub to: Gradients<'a>,
}

impl<'a> Deref for Back<'a> {
    type Target = Pass<'a>;

    fn deref(&self) -> &Pass<'a> {
        &self.pass
    }
}

impl Pass<'_> {
    /// Enqueues an operation.
    pub fn run(&self, operation: impl Op) -> Done {
        Ok(operation.launch(&self.core.stream)?)
    }

    /// The flat elements of the section that `tensor` is in, up to the next section.
    pub fn section(&self, tensor: usize) -> Range<usize> {
        let Core { flat, sections, .. } = self.core;
        let next = sections.partition_point(|&first| first <= tensor);
        let start = |section: usize| flat.offsets[sections[section]];
        start(next - 1)..if next < sections.len() { start(next) } else { flat.len }
    }

    pub fn at(&self, place: Place) -> Tensor {
        self.views.at(place).clone()
    }

    pub fn copy(&self, x: Place, y: Place) -> Done {
        self.run(elementwise::Copy { x: self.at(x), y: self.at(y) })
    }

    /// A weight as it is stored.
    pub fn stored(&self, w: Weight) -> Result<Tensor, ModelError> {
        let start = self.core.flat.offsets[w.tensor];
        Ok(self.state.weights.flat(start..start + w.len())?.reshape(&[w.rows, w.cols])?)
    }

    /// A matrix in the compute type; bf16 is widened to the one scratch, valid until the next.
    pub fn matrix(&self, w: Weight) -> Result<Tensor, ModelError> {
        let stored = self.stored(w)?;
        if stored.dtype() != DType::Bf16 {
            return Ok(stored);
        }
        let scratch = self.views.at(self.core.widened[0]);
        let wide = scratch.flat(0..w.len())?.reshape(&[w.rows, w.cols])?;
        self.run(elementwise::Widen { x: stored, y: wide.clone() })?;
        Ok(wide)
    }

    /// A vector in the compute type, as [`Pass::matrix`].
    pub fn vector(&self, w: Weight) -> Result<Tensor, ModelError> {
        self.vector_in(w, 0)
    }

    /// As [`Pass::vector`], beside one.
    pub(crate) fn second_vector(&self, w: Weight) -> Result<Tensor, ModelError> {
        self.vector_in(w, 1)
    }

    fn vector_in(&self, w: Weight, which: usize) -> Result<Tensor, ModelError> {
        let stored = self.stored(w)?.reshape(&[w.len()])?;
        if stored.dtype() != DType::Bf16 {
            return Ok(stored);
        }
        let scratch = self.views.at(self.core.widened[1]).rows(which..which + 1)?;
        let wide = scratch.flat(0..w.len())?;
        self.run(elementwise::Widen { x: stored, y: wide.clone() })?;
        Ok(wide)
    }

    /// `y = x·Wᵀ + bias`, or added to `y`: `x [n, in]`, `W [out, in]`, `y [n, out]`.
    pub fn linear(&self, linear: Linear, x: Place, y: Place, onto: Onto) -> Done {
        let (x, y) = (self.at(x), self.at(y));
        self.product(&x, &self.matrix(linear.weight)?, &y, onto)?;
        match linear.bias {
            Some(bias) => self.run(mlp::AddBias { bias: self.vector(bias)?, y }),
            None => Ok(()),
        }
    }

    /// `y = x·Wᵀ`, or added to `y`.
    pub fn product(&self, x: &Tensor, w: &Tensor, y: &Tensor, onto: Onto) -> Done {
        self.run(Matmul {
            alpha: 1.0,
            a: Matrix::of(x.clone()),
            b: Matrix::of(w.clone()).t(),
            beta: onto.beta(),
            c: Matrix::of(y.clone()),
        })
    }
}

impl Back<'_> {
    pub fn gradient(&self, w: Weight) -> Result<Tensor, ModelError> {
        let start = self.core.flat.offsets[w.tensor];
        Ok(self.to.flat.flat(start..start + w.len())?.reshape(&[w.rows, w.cols])?)
    }

    pub(crate) fn gradient_vector(&self, w: Weight) -> Result<Tensor, ModelError> {
        Ok(self.gradient(w)?.reshape(&[w.len()])?)
    }

    /// Of `y = x·Wᵀ + bias`: the gradients of W and bias from `dy [n, out]` and `x [n, in]`, and
    /// that of `x` to `dx [n, in]`.
    pub(crate) fn linear_back(
        &self,
        linear: Linear,
        dy: Place,
        x: Place,
        dx: (Place, Onto),
    ) -> Done {
        let (dy, onto) = (self.at(dy), self.to.onto);
        self.weight_gradient(&dy, &self.at(x), &self.gradient(linear.weight)?, onto)?;
        if let Some(bias) = linear.bias {
            let dbias = self.gradient_vector(bias)?;
            self.run(mlp::BiasBackward { dy: dy.clone(), dbias, dbias_onto: onto })?;
        }
        self.input_gradient(&dy, &self.matrix(linear.weight)?, &self.at(dx.0), dx.1)
    }

    /// `dx = dy·W`, or added to `dx`.
    pub(crate) fn input_gradient(&self, dy: &Tensor, w: &Tensor, dx: &Tensor, onto: Onto) -> Done {
        self.run(Matmul {
            alpha: 1.0,
            a: Matrix::of(dy.clone()),
            b: Matrix::of(w.clone()),
            beta: onto.beta(),
            c: Matrix::of(dx.clone()),
        })
    }

    /// `dW = dyᵀ·x`, or added to `dW`.
    pub(crate) fn weight_gradient(&self, dy: &Tensor, x: &Tensor, dw: &Tensor, onto: Onto) -> Done {
        self.run(Matmul {
            alpha: 1.0,
            a: Matrix::of(dy.clone()).t(),
            b: Matrix::of(x.clone()),
            beta: onto.beta(),
            c: Matrix::of(dw.clone()),
        })
    }
}
