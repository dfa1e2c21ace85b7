//! RMSNorm and LayerNorm, over whole rows or over the heads inside them.

mod host;
mod rows;

use device::Tensor;

pub use rows::{Rows, Vectors};

use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_real};
use crate::{KernelError, Onto};
use rows::check_vectors;

/// `y = x / rms(x) · gain`, `rms(x) = √(mean(x²) + eps)` (Zhang & Sennrich 2019), per vector.
///
/// All operands are f32, or all are f64.
pub struct RmsForward {
    /// Read: vectors of one length, for instance the rows of `[N, D]`.
    pub x: Vectors,
    /// `[length of a vector]`.
    pub gain: Tensor,
    pub eps: f64,
    /// Written: as many vectors of the same length.
    pub y: Vectors,
    /// Written, `[number of vectors]`: `1 / rms(x)`, for the backward pass.
    pub rstd: Tensor,
}

impl Op for RmsForward {
    const NAME: &'static str = "rms_forward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x.tensor, &self.gain, &self.y.tensor, &self.rstd].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let RmsForward { x, gain, y, rstd, .. } = self;
        let dtype = y.tensor.dtype();
        expect_real(Self::NAME, &y.tensor)?;
        let vectors = [("x", &x.tensor, x.rows), ("y", &y.tensor, y.rows)];
        check_vectors(Self::NAME, dtype, vectors)?;
        let lens = [("gain", gain, x.rows.len), ("rstd", rstd, x.rows.count())];
        expect_all(Self::NAME, dtype, lens)
    }

    host_by_type!(y.tensor);
}

/// Gradients of [`RmsForward`].
///
/// All operands are f32, or all are f64.
pub struct RmsBackward {
    /// Gradient of `y`: vectors as those of `x`.
    pub dy: Vectors,
    /// As of the forward pass.
    pub x: Vectors,
    /// `[length of a vector]`.
    pub gain: Tensor,
    /// `[number of vectors]`, as the forward pass left it.
    pub rstd: Tensor,
    /// Written: vectors as those of `x`.
    pub dx: Vectors,
    pub dx_onto: Onto,
    /// Written, `[length of a vector]`.
    pub dgain: Tensor,
    pub dgain_onto: Onto,
}

impl Op for RmsBackward {
    const NAME: &'static str = "rms_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let vectors = [&self.dy.tensor, &self.x.tensor, &self.dx.tensor];
        vectors.into_iter().chain([&self.gain, &self.rstd, &self.dgain])
    }

    fn check(&self) -> Result<(), KernelError> {
        let RmsBackward { dy, x, gain, rstd, dx, dgain, .. } = self;
        let (dtype, len) = (dx.tensor.dtype(), x.rows.len);
        expect_real(Self::NAME, &dx.tensor)?;
        let vectors =
            [("dy", &dy.tensor, dy.rows), ("x", &x.tensor, x.rows), ("dx", &dx.tensor, dx.rows)];
        check_vectors(Self::NAME, dtype, vectors)?;
        let lens = [("gain", gain, len), ("dgain", dgain, len), ("rstd", rstd, x.rows.count())];
        expect_all(Self::NAME, dtype, lens)
    }

    host_by_type!(dx.tensor);
}

/// As [`RmsBackward`], where the gradient of `x` takes the place of the gradient of `y`.
///
/// All operands are f32, or all are f64.
pub struct RmsBackwardInPlace {
    /// The gradient of `y` before, of `x` after: `rows` of it, the rest is left as it is.
    pub d: Tensor,
    /// As of the forward pass, with the same `rows`.
    pub x: Tensor,
    pub rows: Rows,
    /// `[length of a vector]`.
    pub gain: Tensor,
    /// `[number of vectors]`, as the forward pass left it.
    pub rstd: Tensor,
    /// Written, `[length of a vector]`.
    pub dgain: Tensor,
    pub dgain_onto: Onto,
}

impl Op for RmsBackwardInPlace {
    const NAME: &'static str = "rms_backward_in_place";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.d, &self.x, &self.gain, &self.rstd, &self.dgain].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let &RmsBackwardInPlace { ref d, ref x, rows, ref gain, ref rstd, ref dgain, .. } = self;
        expect_real(Self::NAME, d)?;
        check_vectors(Self::NAME, d.dtype(), [("d", d, rows), ("x", x, rows)])?;
        let lens =
            [("gain", gain, rows.len), ("dgain", dgain, rows.len), ("rstd", rstd, rows.count())];
        expect_all(Self::NAME, d.dtype(), lens)
    }

    host_by_type!(d);
}

/// `y = (x − mean) / √(var + eps) · gain + bias` (Ba et al. 2016), per row.
///
/// All operands are f32, or all are f64.
pub struct LayerForward {
    /// `[N, D]`.
    pub x: Tensor,
    /// `[D]`.
    pub gain: Tensor,
    /// `[D]`.
    pub bias: Tensor,
    pub eps: f64,
    /// Written, `[N, D]`.
    pub y: Tensor,
    /// Written, `[N, 2]`: mean and 1/std of each row, for the backward pass.
    pub stats: Tensor,
}

impl Op for LayerForward {
    const NAME: &'static str = "layer_forward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.gain, &self.bias, &self.y, &self.stats].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let LayerForward { x, gain, bias, y, stats, .. } = self;
        let cols = gain.len();
        let rows = x.len() / cols.max(1);
        expect_real(Self::NAME, y)?;
        let lens = [
            ("x", x, rows * cols),
            ("gain", gain, cols),
            ("bias", bias, cols),
            ("y", y, rows * cols),
            ("stats", stats, 2 * rows),
        ];
        expect_all(Self::NAME, y.dtype(), lens)
    }

    host_by_type!(y);
}

/// Gradients of [`LayerForward`].
///
/// All operands are f32, or all are f64.
pub struct LayerBackward {
    /// Gradient of `y`, `[N, D]`.
    pub dy: Tensor,
    /// `[N, D]`, as of the forward pass.
    pub x: Tensor,
    /// `[D]`.
    pub gain: Tensor,
    /// `[N, 2]`, as the forward pass left it.
    pub stats: Tensor,
    /// Written, `[N, D]`.
    pub dx: Tensor,
    pub dx_onto: Onto,
    /// Written, `[D]`.
    pub dgain: Tensor,
    /// Written, `[D]`.
    pub dbias: Tensor,
    /// Of `dgain` and `dbias`.
    pub weights_onto: Onto,
}

impl Op for LayerBackward {
    const NAME: &'static str = "layer_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let read = [&self.dy, &self.x, &self.gain, &self.stats];
        read.into_iter().chain([&self.dx, &self.dgain, &self.dbias])
    }

    fn check(&self) -> Result<(), KernelError> {
        let LayerBackward { dy, x, gain, stats, dx, dgain, dbias, .. } = self;
        let cols = gain.len();
        let rows = x.len() / cols.max(1);
        expect_real(Self::NAME, dx)?;
        let lens = [
            ("dy", dy, rows * cols),
            ("x", x, rows * cols),
            ("dx", dx, rows * cols),
            ("gain", gain, cols),
            ("dgain", dgain, cols),
            ("dbias", dbias, cols),
            ("stats", stats, 2 * rows),
        ];
        expect_all(Self::NAME, dx.dtype(), lens)
    }

    host_by_type!(dx);
}

#[cfg(test)]
mod tests {
    use device::{DType, Device};

    use super::*;

    /// Otherwise tasks would write over each other's vectors.
    #[test]
    fn views_of_other_shapes_are_refused() {
        let device = Device::cpu(1).unwrap();
        let stream = device.stream();
        let [x, y] = [0, 1].map(|_| device.zeros(&[4, 8], DType::F32).unwrap());
        let gain = device.zeros(&[8], DType::F32).unwrap();
        let rstd = device.zeros(&[4], DType::F32).unwrap();
        let forward = |rows| {
            let (x, y) = (x.clone(), Vectors { tensor: y.clone(), rows });
            let (gain, rstd) = (gain.clone(), rstd.clone());
            RmsForward { x: Vectors::rows_of(x), gain, eps: 1e-6, y, rstd }.launch(&stream)
        };
        forward(Rows::dense(4, 8)).unwrap();
        let shared = Rows { stride: 4, ..Rows::dense(4, 8) };
        for other in [Rows::dense(4, 4), Rows::dense(2, 8), Rows::heads(4, 8, 0, 2, 4), shared] {
            let refused = forward(other);
            assert!(matches!(refused, Err(KernelError::Argument { .. })), "{other:?}");
        }
        let outside = forward(Rows { offset: 1, ..Rows::dense(4, 8) });
        assert!(matches!(outside, Err(KernelError::Operand { operand: "y", .. })));
    }
}
