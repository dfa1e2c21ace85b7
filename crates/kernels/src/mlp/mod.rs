//! The operations between the two products of an MLP, and the biases of any product.

mod host;

use device::Tensor;

use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_real};
use crate::{KernelError, Onto};

/// `y[n, j] += bias[j]`.
///
/// Both tensors are f32, or both are f64.
pub struct AddBias {
    /// `[columns]`.
    pub bias: Tensor,
    /// Added to, `[N, columns]`.
    pub y: Tensor,
}

impl Op for AddBias {
    const NAME: &'static str = "add_bias";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.bias, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let AddBias { bias, y } = self;
        let cols = bias.len();
        expect_real(Self::NAME, y)?;
        let lens = [("y", y, y.len() / cols.max(1) * cols), ("bias", bias, cols)];
        expect_all(Self::NAME, y.dtype(), lens)
    }

    host_by_type!(y);
}

/// Gradient of the bias of [`AddBias`]: `dbias[j] = Σ_n dy[n, j]`, rows in order.
///
/// Both tensors are f32, or both are f64.
pub struct BiasBackward {
    /// `[N, columns]`.
    pub dy: Tensor,
    /// Written, `[columns]`.
    pub dbias: Tensor,
    pub dbias_onto: Onto,
}

impl Op for BiasBackward {
    const NAME: &'static str = "bias_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.dy, &self.dbias].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let BiasBackward { dy, dbias, .. } = self;
        let cols = dbias.len();
        expect_real(Self::NAME, dbias)?;
        expect_all(Self::NAME, dbias.dtype(), [("dy", dy, dy.len() / cols.max(1) * cols)])
    }

    host_by_type!(dbias);
}

/// `y = silu(gate) · up` (Shazeer 2020).
///
/// Both tensors are f32, or both are f64.
pub struct SwigluForward {
    /// `[N, 2F]`: per row gate, then up.
    pub gate_up: Tensor,
    /// Written, `[N, F]`.
    pub y: Tensor,
}

impl Op for SwigluForward {
    const NAME: &'static str = "swiglu_forward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.gate_up, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.y)?;
        expect_gates(Self::NAME, &self.gate_up, ("y", &self.y))
    }

    host_by_type!(y);
}

/// Gradient of [`SwigluForward`].
///
/// Both tensors are f32, or both are f64.
pub struct SwigluBackward {
    /// Gradient of `y`, `[N, F]`.
    pub dy: Tensor,
    /// `[N, 2F]`: as of the forward pass before, its gradient after.
    pub gate_up: Tensor,
}

impl Op for SwigluBackward {
    const NAME: &'static str = "swiglu_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.dy, &self.gate_up].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.dy)?;
        expect_gates(Self::NAME, &self.gate_up, ("dy", &self.dy))
    }

    host_by_type!(dy);
}

/// `gate_up [N, 2F]` and another operand `[N, F]`, whose type counts.
fn expect_gates(
    kernel: &'static str,
    gate_up: &Tensor,
    (operand, narrow): (&'static str, &Tensor),
) -> Result<(), KernelError> {
    let (rows, cols) = (gate_up.dim(0), gate_up.dim(1) / 2);
    let lens = [("gate_up", gate_up, rows * 2 * cols), (operand, narrow, rows * cols)];
    expect_all(kernel, narrow.dtype(), lens)
}

/// `y = x/2 · (1 + tanh(u))` with `u = √(2/π)(x + 0.044715 x³)` (Hendrycks & Gimpel 2016), as
/// `x · σ(2u)`, which is the same and takes one exponential.
///
/// Both tensors are f32, or both are f64.
pub struct GeluForward {
    /// `[N, F]`.
    pub x: Tensor,
    /// Written, `[N, F]`.
    pub y: Tensor,
}

impl Op for GeluForward {
    const NAME: &'static str = "gelu_forward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.y)?;
        expect_all(Self::NAME, self.y.dtype(), [("x", &self.x, self.y.len())])
    }

    host_by_type!(y);
}

/// Gradient of [`GeluForward`].
///
/// Both tensors are f32, or both are f64.
pub struct GeluBackward {
    /// Gradient of `y`, `[N, F]`.
    pub dy: Tensor,
    /// `[N, F]`: as of the forward pass before, its gradient after.
    pub x: Tensor,
}

impl Op for GeluBackward {
    const NAME: &'static str = "gelu_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.dy, &self.x].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        expect_real(Self::NAME, &self.dy)?;
        expect_all(Self::NAME, self.dy.dtype(), [("x", &self.x, self.dy.len())])
    }

    host_by_type!(dy);
}
