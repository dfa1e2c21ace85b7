//! Rotary positions (Su et al. 2021), in the half-split form of the published checkpoints.

use device::{Device, DeviceError, Kernel, Tensor};

use crate::error::{dispatch, expect};
use crate::math::vectorize;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_dtype, expect_real};
use crate::{KernelError, Real};

/// Rows of one parallel task.
const ROWS: usize = 16;

/// The table `[T, C/2, 2]` of cos and sin of `t·theta^(−2i/C)`, computed in f64.
///
/// # Errors
/// Memory; a type other than f32 or f64.
pub fn table(
    device: &Device,
    positions: usize,
    head_dim: usize,
    theta: f64,
    dtype: device::DType,
) -> Result<Tensor, KernelError> {
    let half = head_dim / 2;
    let entry = |i: usize| {
        let (t, j) = (i / 2 / half, i / 2 % half);
        let angle = t as f64 * libm::pow(theta, -(2.0 * j as f64) / head_dim as f64);
        if i.is_multiple_of(2) { libm::cos(angle) } else { libm::sin(angle) }
    };
    dispatch!("rope_table", dtype, T => {
        let values: Vec<T> = (0..positions * half * 2).map(|i| T::of(entry(i))).collect();
        Ok(device.tensor(&[positions, half, 2], &values)?)
    })
}

/// Which way vectors turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the angles of the table.
    Forward,
    /// By as much the other way, which is the gradient.
    Back,
}

/// Rotates the first `heads` heads of each row in place, by the angles of its position.
///
/// Both tensors are f32, or both are f64.
pub struct Rotate {
    /// `[T, C/2, 2]`, of [`table`].
    pub table: Tensor,
    /// Changed, `[B·T, S]` with `S ≥ heads·C`: heads lie from column 0 on.
    pub x: Tensor,
    pub heads: usize,
    pub turn: Turn,
}

impl Op for Rotate {
    const NAME: &'static str = "rope_rotate";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.table, &self.x].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let Rotate { table, x, heads, .. } = self;
        let (positions, half, stride) = (table.dim(0), table.dim(1), x.dim(1));
        expect_real(Self::NAME, x)?;
        expect_dtype(Self::NAME, "table", table, x.dtype())?;
        expect(Self::NAME, "table", table, positions * half * 2)?;
        expect(Self::NAME, "x", x, x.dim(0) / positions.max(1) * positions * stride)?;
        if heads * 2 * half > stride {
            let message = format!("{heads} heads of {} do not fit rows of {stride}", 2 * half);
            return Err(KernelError::Argument { kernel: Self::NAME, message });
        }
        Ok(())
    }

    host_by_type!(x);
}

impl Rotate {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let (positions, half) = (self.table.dim(0), self.table.dim(1));
        let (stride, heads) = (self.x.dim(1), self.heads);
        let table = k.read::<T>(&self.table)?;
        let sign = if self.turn == Turn::Back { -T::ONE } else { T::ONE };
        k.parallel().chunks(k.write::<T>(&self.x)?, ROWS * stride, |task, rows| {
            vectorize!(|| {
                for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
                    let t = (task * ROWS + i) % positions;
                    let angles = &table[t * 2 * half..][..2 * half];
                    for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                        let (first, second) = head.split_at_mut(half);
                        for j in 0..half {
                            let (cos, sin) = (angles[2 * j], sign * angles[2 * j + 1]);
                            let (a, b) = (first[j], second[j]);
                            first[j] = a * cos - b * sin;
                            second[j] = b * cos + a * sin;
                        }
                    }
                }
            });
        });
        Ok(())
    }
}
