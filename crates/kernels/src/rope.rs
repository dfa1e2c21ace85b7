//! Rotary positions (Su et al. 2021), in the half-split form of the published checkpoints.

use device::{Device, Stream, Tensor};

use crate::error::{dispatch, expect};
use crate::math::vectorize;
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

/// Rotates `heads` heads of `head_dim` from column 0 of each row of `x [B·T, stride]` in place by
/// its position's angles; `inverse` rotates back, which is the gradient.
///
/// # Errors
/// Operands of the wrong size; a type other than f32 or f64.
pub fn rotate(
    stream: &Stream,
    table: &Tensor,
    x: &Tensor,
    heads: usize,
    inverse: bool,
) -> Result<(), KernelError> {
    const NAME: &str = "rope_rotate";
    let (positions, half) = (table.dim(0), table.dim(1));
    let stride = x.dim(1);
    expect(NAME, "x", x, x.dim(0) / positions.max(1) * positions * stride)?;
    if heads * 2 * half > stride {
        let message = format!("{heads} heads of {} do not fit rows of {stride}", 2 * half);
        return Err(KernelError::Argument { kernel: NAME, message });
    }
    let (table, x) = (table.clone(), x.clone());
    dispatch!(NAME, x.dtype(), T => {
        stream.launch(NAME, move |k| {
            let table = k.read::<T>(&table)?;
            let sign = if inverse { -T::ONE } else { T::ONE };
            k.parallel().chunks(k.write::<T>(&x)?, ROWS * stride, |task, rows| {
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
        })?;
        Ok(())
    })
}
