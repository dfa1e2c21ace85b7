//! Loops over single elements, and sums over rows.

use device::{DType, Element, Stream, Tensor};
use half::bf16;

use crate::error::{dispatch, expect};
use crate::math::vectorize;
use crate::{KernelError, Real};

/// Elements of one parallel task.
const TASK: usize = 1 << 14;

/// Columns that one parallel task reduces for a bias gradient.
const COLUMNS: usize = 64;

/// Sets every element to zero.
///
/// # Errors
/// A type other than f32, f64 or u32.
pub fn zero(stream: &Stream, y: &Tensor) -> Result<(), KernelError> {
    match y.dtype() {
        DType::U32 => zero_as::<u32>(stream, y),
        dtype => dispatch!("zero", dtype, T => zero_as::<T>(stream, y)),
    }
}

fn zero_as<T: Element>(stream: &Stream, y: &Tensor) -> Result<(), KernelError> {
    let y = y.clone();
    stream.launch("zero", move |k| {
        k.streams();
        k.parallel().chunks(k.write::<T>(&y)?, TASK, |_, y| y.fill(T::zeroed()));
        Ok(())
    })?;
    Ok(())
}

/// `y = x`.
///
/// # Errors
/// Different lengths or types.
pub fn copy(stream: &Stream, x: &Tensor, y: &Tensor) -> Result<(), KernelError> {
    expect("copy", "x", x, y.len())?;
    let (x, y) = (x.clone(), y.clone());
    dispatch!("copy", y.dtype(), T => {
        stream.launch("copy", move |k| {
            k.streams();
            let x = k.read::<T>(&x)?;
            k.parallel().chunks(k.write::<T>(&y)?, TASK, |task, y| {
                y.copy_from_slice(&x[task * TASK..][..y.len()]);
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// `y += x`: one fold of the summation tree, or a residual connection.
///
/// # Errors
/// Different lengths or types.
pub fn add(stream: &Stream, x: &Tensor, y: &Tensor) -> Result<(), KernelError> {
    expect("add", "x", x, y.len())?;
    let (x, y) = (x.clone(), y.clone());
    dispatch!("add", y.dtype(), T => {
        stream.launch("add", move |k| {
            k.streams();
            let x = k.read::<T>(&x)?;
            k.parallel().chunks(k.write::<T>(&y)?, TASK, |task, y| {
                vectorize!(|| {
                    let x = &x[task * TASK..][..y.len()];
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Widens bf16 storage to f32.
///
/// # Errors
/// Different lengths; other types.
pub fn widen(stream: &Stream, x: &Tensor, y: &Tensor) -> Result<(), KernelError> {
    expect("widen", "x", x, y.len())?;
    let (x, y) = (x.clone(), y.clone());
    stream.launch("widen", move |k| {
        k.streams();
        let x = k.read::<bf16>(&x)?;
        k.parallel().chunks(k.write::<f32>(&y)?, TASK, |task, y| {
            vectorize!(|| {
                let x = &x[task * TASK..][..y.len()];
                for (y, x) in y.iter_mut().zip(x) {
                    *y = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            });
        });
        Ok(())
    })?;
    Ok(())
}

/// `y[n, j] += bias[j]`.
///
/// # Errors
/// `y` is not whole rows of the bias; mixed types.
pub fn add_bias(stream: &Stream, bias: &Tensor, y: &Tensor) -> Result<(), KernelError> {
    let cols = bias.len();
    expect("add_bias", "y", y, y.len() / cols.max(1) * cols)?;
    let (bias, y) = (bias.clone(), y.clone());
    dispatch!("add_bias", y.dtype(), T => {
        stream.launch("add_bias", move |k| {
            k.streams();
            let bias = k.read::<T>(&bias)?;
            let rows = (TASK / cols.max(1)).max(1);
            k.parallel().chunks(k.write::<T>(&y)?, rows * cols, |_, y| {
                vectorize!(|| {
                    for y in y.chunks_exact_mut(cols) {
                        y.iter_mut().zip(bias).for_each(|(y, b)| *y += *b);
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// `db[j] = Σ_n dy[n, j]`, rows in order; added to `db` when `accumulate`.
///
/// # Errors
/// `dy` is not whole rows of the bias; mixed types.
pub fn bias_backward(
    stream: &Stream,
    dy: &Tensor,
    db: &Tensor,
    accumulate: bool,
) -> Result<(), KernelError> {
    let cols = db.len();
    let rows = dy.len() / cols.max(1);
    expect("bias_backward", "dy", dy, rows * cols)?;
    let (dy, db) = (dy.clone(), db.clone());
    dispatch!("bias_backward", db.dtype(), T => {
        stream.launch("bias_backward", move |k| {
            k.streams();
            let dy = k.read::<T>(&dy)?;
            k.parallel().chunks(k.write::<T>(&db)?, COLUMNS, |task, db| {
                vectorize!(|| {
                    if !accumulate {
                        db.fill(T::ZERO);
                    }
                    for row in 0..rows {
                        let dy = &dy[row * cols + task * COLUMNS..][..db.len()];
                        db.iter_mut().zip(dy).for_each(|(db, dy)| *db += *dy);
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).portable_exp())
}

/// `y = silu(gate) · up` (Shazeer 2020): `gate_up [rows, 2F]` holds gate, then up, per row;
/// `y [rows, F]`.
///
/// # Errors
/// Operands of the wrong size; a type other than f32 or f64.
pub fn swiglu_forward(stream: &Stream, gate_up: &Tensor, y: &Tensor) -> Result<(), KernelError> {
    const NAME: &str = "swiglu_forward";
    let cols = gate_up.dim(1) / 2;
    expect(NAME, "y", y, gate_up.dim(0) * cols)?;
    let (gate_up, y) = (gate_up.clone(), y.clone());
    dispatch!(NAME, y.dtype(), T => {
        stream.launch(NAME, move |k| {
            k.streams();
            let gate_up = k.read::<T>(&gate_up)?;
            let rows = (TASK / cols.max(1)).max(1);
            k.parallel().chunks(k.write::<T>(&y)?, rows * cols, |task, y| {
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
        })?;
        Ok(())
    })
}

/// Gradient of [`swiglu_forward`], written over `gate_up`.
///
/// # Errors
/// As [`swiglu_forward`].
pub fn swiglu_backward(stream: &Stream, dy: &Tensor, gate_up: &Tensor) -> Result<(), KernelError> {
    const NAME: &str = "swiglu_backward";
    let cols = gate_up.dim(1) / 2;
    expect(NAME, "dy", dy, gate_up.dim(0) * cols)?;
    let (gate_up, dy) = (gate_up.clone(), dy.clone());
    dispatch!(NAME, dy.dtype(), T => {
        stream.launch(NAME, move |k| {
            k.streams();
            let dy = k.read::<T>(&dy)?;
            let rows = (TASK / cols.max(1)).max(1);
            k.parallel().chunks(k.write::<T>(&gate_up)?, rows * 2 * cols, |task, gate_up| {
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
        })?;
        Ok(())
    })
}

/// √(2/π) and the cubic coefficient of GELU's tanh form (Hendrycks & Gimpel 2016).
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;

/// `y = x/2 · (1 + tanh(u))` with `u = √(2/π)(x + 0.044715 x³)`, as `x · σ(2u)`, which is the same
/// and takes one exponential.
///
/// # Errors
/// Different lengths; a type other than f32 or f64.
pub fn gelu_forward(stream: &Stream, x: &Tensor, y: &Tensor) -> Result<(), KernelError> {
    const NAME: &str = "gelu_forward";
    expect(NAME, "x", x, y.len())?;
    let (x, y) = (x.clone(), y.clone());
    dispatch!(NAME, y.dtype(), T => {
        stream.launch(NAME, move |k| {
            k.streams();
            let x = k.read::<T>(&x)?;
            k.parallel().chunks(k.write::<T>(&y)?, TASK, |task, y| {
                vectorize!(|| {
                    let (scale, cubic) = (T::of(GELU_SCALE), T::of(GELU_CUBIC));
                    for (y, &x) in y.iter_mut().zip(&x[task * TASK..]) {
                        let inner = scale * (x + cubic * x * x * x);
                        *y = x * sigmoid(inner + inner);
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Gradient of [`gelu_forward`], written over `x`.
///
/// # Errors
/// As [`gelu_forward`].
pub fn gelu_backward(stream: &Stream, dy: &Tensor, x: &Tensor) -> Result<(), KernelError> {
    const NAME: &str = "gelu_backward";
    expect(NAME, "dy", dy, x.len())?;
    let (x, dy) = (x.clone(), dy.clone());
    dispatch!(NAME, dy.dtype(), T => {
        stream.launch(NAME, move |k| {
            k.streams();
            let dy = k.read::<T>(&dy)?;
            k.parallel().chunks(k.write::<T>(&x)?, TASK, |task, x| {
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
        })?;
        Ok(())
    })
}

/// Whether every element is finite, written as 1 or 0 to `flag [1]` (u32).
///
/// # Errors
/// A type other than f32 or f64.
pub fn all_finite(stream: &Stream, x: &Tensor, flag: &Tensor) -> Result<(), KernelError> {
    const NAME: &str = "all_finite";
    expect(NAME, "flag", flag, 1)?;
    if flag.dtype() != DType::U32 {
        return Err(KernelError::Dtype { kernel: NAME, dtype: flag.dtype() });
    }
    let (x, flag) = (x.clone(), flag.clone());
    dispatch!(NAME, x.dtype(), T => {
        stream.launch(NAME, move |k| {
            let finite = k.read::<T>(&x)?.iter().all(|x| x.is_finite());
            k.write::<u32>(&flag)?[0] = u32::from(finite);
            Ok(())
        })?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use device::Device;

    use super::*;

    /// A method of f32 itself would win over the portable one, unseen.
    #[test]
    fn gelu_has_the_bits_of_the_portable_functions() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 2e-3).collect();
        let device = Device::cpu(1).unwrap();
        let stream = device.stream();
        let from = device.tensor(&[x.len()], &x).unwrap();
        let to = device.zeros(&[x.len()], DType::F32).unwrap();
        gelu_forward(&stream, &from, &to).unwrap();
        let (scale, cubic) = (GELU_SCALE as f32, GELU_CUBIC as f32);
        for (x, y) in x.into_iter().zip(stream.to_vec::<f32>(&to).unwrap()) {
            let inner = scale * (x + cubic * x * x * x);
            let expected = x * (1.0 / (1.0 + crate::math::exp_f32(-(inner + inner))));
            assert_eq!(y.to_bits(), expected.to_bits(), "gelu({x})");
        }
    }
}
