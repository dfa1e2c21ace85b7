//! The host's code: threads take rows, and columns where rows are summed.

use device::{DeviceError, Kernel};

use super::{AddBias, BiasBackward, GeluBackward, GeluForward, SwigluBackward, SwigluForward};
use crate::Real;
use crate::math::vectorize;

/// Elements of one parallel task.
const TASK: usize = 1 << 14;

/// Columns that one parallel task reduces for a bias gradient.
const COLUMNS: usize = 64;

/// √(2/π) and the cubic coefficient of GELU's tanh form (Hendrycks & Gimpel 2016).
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;

type Done = Result<(), DeviceError>;

impl AddBias {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let cols = self.bias.len();
        k.streams();
        let bias = k.read::<T>(&self.bias)?;
        let rows = (TASK / cols.max(1)).max(1);
        k.parallel().chunks(k.write::<T>(&self.y)?, rows * cols, |_, y| {
            vectorize!(|| {
                for y in y.chunks_exact_mut(cols) {
                    y.iter_mut().zip(bias).for_each(|(y, b)| *y += *b);
                }
            });
        });
        Ok(())
    }
}

impl BiasBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let (cols, add) = (self.dbias.len(), self.dbias_onto.adds());
        let rows = self.dy.len() / cols.max(1);
        k.streams();
        let dy = k.read::<T>(&self.dy)?;
        k.parallel().chunks(k.write::<T>(&self.dbias)?, COLUMNS, |task, db| {
            vectorize!(|| {
                if !add {
                    db.fill(T::ZERO);
                }
                for row in 0..rows {
                    let dy = &dy[row * cols + task * COLUMNS..][..db.len()];
                    db.iter_mut().zip(dy).for_each(|(db, dy)| *db += *dy);
                }
            });
        });
        Ok(())
    }
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).portable_exp())
}

impl SwigluForward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let cols = self.gate_up.dim(1) / 2;
        k.streams();
        let gate_up = k.read::<T>(&self.gate_up)?;
        let rows = (TASK / cols.max(1)).max(1);
        k.parallel().chunks(k.write::<T>(&self.y)?, rows * cols, |task, y| {
            vectorize!(|| {
                for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                    let row = &gate_up[(task * rows + i) * 2 * cols..][..2 * cols];
                    let (gate, up) = row.split_at(cols);
                    for j in 0..cols {
                        y[j] = gate[j] * sigmoid(gate[j]) * up[j];
                    }
                }
            });
        });
        Ok(())
    }
}

impl SwigluBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let cols = self.gate_up.dim(1) / 2;
        k.streams();
        let dy = k.read::<T>(&self.dy)?;
        let rows = (TASK / cols.max(1)).max(1);
        k.parallel().chunks(k.write::<T>(&self.gate_up)?, rows * 2 * cols, |task, gate_up| {
            vectorize!(|| {
                for (i, row) in gate_up.chunks_exact_mut(2 * cols).enumerate() {
                    let dy = &dy[(task * rows + i) * cols..][..cols];
                    let (gate, up) = row.split_at_mut(cols);
                    for j in 0..cols {
                        let s = sigmoid(gate[j]);
                        let silu = gate[j] * s;
                        let slope = s * (T::ONE + gate[j] * (T::ONE - s));
                        gate[j] = dy[j] * up[j] * slope;
                        up[j] = dy[j] * silu;
                    }
                }
            });
        });
        Ok(())
    }
}

impl GeluForward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        k.streams();
        let x = k.read::<T>(&self.x)?;
        k.parallel().chunks(k.write::<T>(&self.y)?, TASK, |task, y| {
            vectorize!(|| {
                let (scale, cubic) = (T::of(GELU_SCALE), T::of(GELU_CUBIC));
                for (y, &x) in y.iter_mut().zip(&x[task * TASK..]) {
                    let inner = scale * (x + cubic * x * x * x);
                    *y = x * sigmoid(inner + inner);
                }
            });
        });
        Ok(())
    }
}

impl GeluBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        k.streams();
        let dy = k.read::<T>(&self.dy)?;
        k.parallel().chunks(k.write::<T>(&self.x)?, TASK, |task, x| {
            vectorize!(|| {
                let (scale, cubic) = (T::of(GELU_SCALE), T::of(GELU_CUBIC));
                for (x, &dy) in x.iter_mut().zip(&dy[task * TASK..]) {
                    let v = *x;
                    let inner = scale * (v + cubic * v * v * v);
                    let s = sigmoid(inner + inner);
                    let rise = scale * (T::ONE + T::of(3.0) * cubic * v * v);
                    *x = dy * (s + T::of(2.0) * v * s * (T::ONE - s) * rise);
                }
            });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use device::{DType, Device};

    use super::*;
    use crate::Op;

    /// A method of f32 itself would win over the portable one, unseen.
    #[test]
    fn gelu_has_the_bits_of_the_portable_functions() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 2e-3).collect();
        let device = Device::cpu(1).unwrap();
        let stream = device.stream();
        let from = device.tensor(&[x.len()], &x).unwrap();
        let to = device.zeros(&[x.len()], DType::F32).unwrap();
        GeluForward { x: from, y: to.clone() }.launch(&stream).unwrap();
        let (scale, cubic) = (GELU_SCALE as f32, GELU_CUBIC as f32);
        for (x, y) in x.into_iter().zip(stream.to_vec::<f32>(&to).unwrap()) {
            let inner = scale * (x + cubic * x * x * x);
            let expected = x * (1.0 / (1.0 + crate::exp::exp_f32(-(inner + inner))));
            assert_eq!(y.to_bits(), expected.to_bits(), "gelu({x})");
        }
    }
}
