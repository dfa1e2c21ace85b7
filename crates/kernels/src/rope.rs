//! Rotary positions (Su et al. 2021): pairs of columns of given vectors turn by their position.
//!
//! Published checkpoints differ in what is a pair, and the weights do not say it: turning another
//! pairing is another model without a word.

use device::{Device, DeviceError, Kernel, Tensor};

use crate::error::{dispatch, expect};
use crate::math::vectorize;
use crate::norm::Vectors;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_dtype, expect_real};
use crate::{KernelError, Real};

/// Rows of one parallel task.
const ROWS: usize = 16;

/// How fast each plane of a vector turns.
#[derive(Debug, Clone, PartialEq)]
pub struct Turns {
    /// Angle from one position to the next, of each of the `C/2` planes.
    pub frequencies: Vec<f64>,
    /// Factor on cos and sin, and so on what turns; 1 keeps its length.
    pub length: f64,
}

impl Turns {
    /// The geometric frequencies `theta^(−2i/C)` of the paper.
    pub fn geometric(head_dim: usize, theta: f64) -> Turns {
        let frequency = |i: usize| libm::pow(theta, -(2.0 * i as f64) / head_dim as f64);
        Turns { frequencies: (0..head_dim / 2).map(frequency).collect(), length: 1.0 }
    }
}

/// The table `[T, C/2, 2]` of cos and sin of `t·frequency`, computed in f64.
///
/// # Errors
/// Memory; a type other than f32 or f64.
pub fn table(
    device: &Device,
    positions: usize,
    turns: &Turns,
    dtype: device::DType,
) -> Result<Tensor, KernelError> {
    let half = turns.frequencies.len();
    let entry = |i: usize| {
        let (t, j) = (i / 2 / half, i / 2 % half);
        let angle = t as f64 * turns.frequencies[j];
        let value = if i.is_multiple_of(2) { libm::cos(angle) } else { libm::sin(angle) };
        turns.length * value
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

/// Which two columns of a vector are the plane that turns by angle `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `C/2 + i`: Llama and most others.
    Halves,
    /// `2i` and `2i + 1`: DeepSeek-V2 and V3, as in the paper.
    Neighbours,
}

/// Rotates vectors in place, each by the angles of the position of its row.
///
/// Both tensors are f32, or both are f64.
pub struct Rotate {
    /// `[T, C/2, 2]`, of [`table`].
    pub table: Tensor,
    /// Changed, vectors of `C` in the rows of `[B·T, S]`; other columns stay.
    pub x: Vectors,
    pub pairs: Pairs,
    pub turn: Turn,
}

impl Op for Rotate {
    const NAME: &'static str = "rope_rotate";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.table, &self.x.tensor].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let Rotate { table, x, .. } = self;
        let (positions, half) = (table.dim(0), table.dim(1));
        expect_real(Self::NAME, &x.tensor)?;
        expect_dtype(Self::NAME, "table", table, x.tensor.dtype())?;
        expect(Self::NAME, "table", table, positions * half * 2)?;
        x.check_in_rows(Self::NAME, "x", x.tensor.dtype())?;
        let (rows, len) = (x.rows.outer, x.rows.len);
        if len != 2 * half || !rows.is_multiple_of(positions) {
            let message = format!(
                "{rows} rows of vectors of {len} are not whole windows of {positions} positions \
                 and {half} angles"
            );
            return Err(KernelError::Argument { kernel: Self::NAME, message });
        }
        Ok(())
    }

    host_by_type!(x.tensor);
}

impl Rotate {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let (positions, half) = (self.table.dim(0), self.table.dim(1));
        let (at, pairs) = (self.x.rows, self.pairs);
        let table = k.read::<T>(&self.table)?;
        let sign = if self.turn == Turn::Back { -T::ONE } else { T::ONE };
        k.parallel().chunks(k.write::<T>(&self.x.tensor)?, ROWS * at.stride, |task, rows| {
            vectorize!(|| {
                for (i, row) in rows.chunks_exact_mut(at.stride).enumerate() {
                    let t = (task * ROWS + i) % positions;
                    let angles = &table[t * 2 * half..][..2 * half];
                    for head in 0..at.inner {
                        let vector = &mut row[at.start(head)..][..2 * half];
                        match pairs {
                            Pairs::Halves => turn_halves(vector, angles, sign),
                            Pairs::Neighbours => turn_neighbours(vector, angles, sign),
                        }
                    }
                }
            });
        });
        Ok(())
    }
}

#[inline(always)]
fn turn_halves<T: Real>(vector: &mut [T], angles: &[T], sign: T) {
    let half = vector.len() / 2;
    let (first, second) = vector.split_at_mut(half);
    for j in 0..half {
        let (cos, sin) = (angles[2 * j], sign * angles[2 * j + 1]);
        let (a, b) = (first[j], second[j]);
        first[j] = a * cos - b * sin;
        second[j] = b * cos + a * sin;
    }
}

#[inline(always)]
fn turn_neighbours<T: Real>(vector: &mut [T], angles: &[T], sign: T) {
    for (pair, angle) in vector.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
        let (cos, sin) = (angle[0], sign * angle[1]);
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * cos - b * sin;
        pair[1] = b * cos + a * sin;
    }
}
