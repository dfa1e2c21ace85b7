//! RMSNorm and LayerNorm, over whole rows or over the heads inside them.

use device::{Stream, Tensor};

use crate::error::{dispatch, expect};
use crate::math::{sum, vectorize};
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Real};

/// The vectors that are normalized: `outer · inner` of `len` elements, vector `(n, h)` starting at
/// element `offset + n·stride + h·len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    pub offset: usize,
    pub outer: usize,
    pub stride: usize,
    pub inner: usize,
    pub len: usize,
}

impl Rows {
    /// The rows of a dense matrix.
    pub fn dense(rows: usize, cols: usize) -> Rows {
        Rows { offset: 0, outer: rows, stride: cols, inner: 1, len: cols }
    }

    /// `heads` vectors of `len` in each of `rows` rows of `stride`, from column `column` on.
    pub fn heads(rows: usize, stride: usize, column: usize, heads: usize, len: usize) -> Rows {
        Rows { offset: column, outer: rows, stride, inner: heads, len }
    }

    /// Number of vectors.
    pub fn count(self) -> usize {
        self.outer * self.inner
    }

    fn start(self, row: usize) -> usize {
        self.offset + row / self.inner * self.stride + row % self.inner * self.len
    }

    /// Whether no element belongs to two vectors.
    fn are_disjoint(self) -> bool {
        self.outer <= 1 || self.inner * self.len <= self.stride
    }

    fn end(self) -> usize {
        if self.count() == 0 { 0 } else { self.start(self.count() - 1) + self.len }
    }
}

/// Vectors that one parallel task normalizes.
const TASK: usize = 16;

/// Columns that one parallel task reduces for a gain or bias gradient.
const COLUMNS: usize = 64;

fn check(
    kernel: &'static str,
    tensors: &[(&'static str, &Tensor, Rows)],
) -> Result<(), KernelError> {
    let Some(&(_, _, first)) = tensors.first() else { return Ok(()) };
    for &(operand, tensor, rows) in tensors {
        if (rows.count(), rows.len) != (first.count(), first.len) {
            let message =
                format!("the vectors of `{operand}`, {rows:?}, are not those of {first:?}");
            return Err(KernelError::Argument { kernel, message });
        }
        if !rows.are_disjoint() {
            let message = format!("the vectors of `{operand}` overlap: {rows:?}");
            return Err(KernelError::Argument { kernel, message });
        }
        if rows.end() > tensor.len() {
            let (got, expected) = (tensor.len(), rows.end());
            return Err(KernelError::Operand { kernel, operand, got, expected });
        }
    }
    Ok(())
}

/// `y = x / rms(x) · gain`, `rms(x) = √(mean(x²) + eps)` (Zhang & Sennrich 2019), per vector;
/// `rstd [count]` receives `1 / rms` for the backward pass.
///
/// # Errors
/// Operands smaller than the shapes need; a type other than f32 or f64.
pub fn rms_forward(
    stream: &Stream,
    (x, rx): (&Tensor, Rows),
    gain: &Tensor,
    eps: f64,
    (y, ry): (&Tensor, Rows),
    rstd: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "rms_forward";
    check(NAME, &[("x", x, rx), ("y", y, ry)])?;
    expect(NAME, "gain", gain, rx.len)?;
    expect(NAME, "rstd", rstd, rx.count())?;
    let (x, gain, y, rstd) = (x.clone(), gain.clone(), y.clone(), rstd.clone());
    dispatch!(NAME, y.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (x, gain) = (k.read::<T>(&x)?, k.read::<T>(&gain)?);
            let y = SharedSlice::new(k.write::<T>(&y)?);
            k.parallel().chunks(k.write::<T>(&rstd)?, TASK, |task, rstd| {
                vectorize!(|| {
                    for (i, rstd) in rstd.iter_mut().enumerate() {
                        let row = task * TASK + i;
                        let (x, gain) = (&x[rx.start(row)..][..rx.len], &gain[..rx.len]);
                        let square = sum([x], |[x]| x * x) / T::of(rx.len as f64);
                        *rstd = T::ONE / (square + T::of(eps)).sqrt();
                        // SAFETY: vectors do not overlap (checked) and each belongs to one task.
                        let y = unsafe { y.part(ry.start(row)..ry.start(row) + rx.len) };
                        for j in 0..rx.len {
                            y[j] = x[j] * *rstd * gain[j];
                        }
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Gradients of [`rms_forward`]: `dx` (added to when `add`, else overwritten) and `dgain`
/// (accumulated when `accumulate`).
///
/// # Errors
/// As [`rms_forward`].
#[allow(clippy::too_many_arguments)] // The operands of the formula.
pub fn rms_backward(
    stream: &Stream,
    (dy, rdy): (&Tensor, Rows),
    (x, rx): (&Tensor, Rows),
    gain: &Tensor,
    rstd: &Tensor,
    (dx, rdx, add): (&Tensor, Rows, bool),
    dgain: &Tensor,
    accumulate: bool,
) -> Result<(), KernelError> {
    const NAME: &str = "rms_backward";
    check(NAME, &[("dy", dy, rdy), ("x", x, rx), ("dx", dx, rdx)])?;
    expect(NAME, "gain", gain, rx.len)?;
    expect(NAME, "dgain", dgain, rx.len)?;
    expect(NAME, "rstd", rstd, rx.count())?;
    let (dy, x, gain, rstd) = (dy.clone(), x.clone(), gain.clone(), rstd.clone());
    let (dx, dgain) = (dx.clone(), dgain.clone());
    dispatch!(NAME, dx.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (dy, x) = (k.read::<T>(&dy)?, k.read::<T>(&x)?);
            let (gain, rstd) = (k.read::<T>(&gain)?, k.read::<T>(&rstd)?);
            gain_gradient((dy, rdy), (x, rx), rstd, (k.write::<T>(&dgain)?, accumulate), k);
            let dx = SharedSlice::new(k.write::<T>(&dx)?);
            k.parallel().each(rx.count().div_ceil(TASK), |task| {
                vectorize!(|| {
                    for row in task * TASK..rx.count().min((task + 1) * TASK) {
                        let x = &x[rx.start(row)..][..rx.len];
                        let dy = &dy[rdy.start(row)..][..rx.len];
                        let gain = &gain[..rx.len];
                        let inner = sum([dy, gain, x], |[dy, gain, x]| dy * gain * x);
                        let pull = inner * rstd[row] * rstd[row] / T::of(rx.len as f64);
                        // SAFETY: vectors do not overlap (checked) and each belongs to one task.
                        let dx = unsafe { dx.part(rdx.start(row)..rdx.start(row) + rx.len) };
                        for j in 0..rx.len {
                            let value = rstd[row] * (dy[j] * gain[j] - x[j] * pull);
                            dx[j] = if add { dx[j] + value } else { value };
                        }
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// As [`rms_backward`] for vectors inside a larger row, with `d` holding `dy` on entry and `dx` on
/// return; `dgain` is accumulated when its flag says so.
///
/// # Errors
/// As [`rms_forward`].
pub fn rms_backward_in_place(
    stream: &Stream,
    d: &Tensor,
    x: &Tensor,
    rows: Rows,
    gain: &Tensor,
    rstd: &Tensor,
    (dgain, accumulate): (&Tensor, bool),
) -> Result<(), KernelError> {
    const NAME: &str = "rms_backward_in_place";
    check(NAME, &[("d", d, rows), ("x", x, rows)])?;
    expect(NAME, "gain", gain, rows.len)?;
    expect(NAME, "dgain", dgain, rows.len)?;
    expect(NAME, "rstd", rstd, rows.count())?;
    let (d, x, gain) = (d.clone(), x.clone(), gain.clone());
    let (rstd, dgain) = (rstd.clone(), dgain.clone());
    dispatch!(NAME, d.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (x, gain, rstd) = (k.read::<T>(&x)?, k.read::<T>(&gain)?, k.read::<T>(&rstd)?);
            let d = k.write::<T>(&d)?;
            gain_gradient((&*d, rows), (x, rows), rstd, (k.write::<T>(&dgain)?, accumulate), k);
            let d = SharedSlice::new(d);
            k.parallel().each(rows.count().div_ceil(TASK), |task| {
                vectorize!(|| {
                    for row in task * TASK..rows.count().min((task + 1) * TASK) {
                        // SAFETY: vectors do not overlap (checked) and each belongs to one task.
                        let d = unsafe { d.part(rows.start(row)..rows.start(row) + rows.len) };
                        let (x, gain) = (&x[rows.start(row)..][..rows.len], &gain[..rows.len]);
                        let inner = sum([&*d, gain, x], |[d, gain, x]| d * gain * x);
                        let pull = inner * rstd[row] * rstd[row] / T::of(rows.len as f64);
                        for j in 0..rows.len {
                            d[j] = rstd[row] * (d[j] * gain[j] - x[j] * pull);
                        }
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// `dgain[j] = Σ dy[row, j]·x[row, j]·rstd[row]`, rows in order; threads take columns.
fn gain_gradient<T: Real>(
    (dy, rdy): (&[T], Rows),
    (x, rx): (&[T], Rows),
    rstd: &[T],
    (dgain, accumulate): (&mut [T], bool),
    k: &device::Kernel,
) {
    k.parallel().chunks(dgain, COLUMNS, |task, dgain| {
        vectorize!(|| {
            if !accumulate {
                dgain.fill(T::ZERO);
            }
            for (row, &rstd) in rstd.iter().enumerate() {
                let x = &x[rx.start(row) + task * COLUMNS..][..dgain.len()];
                let dy = &dy[rdy.start(row) + task * COLUMNS..][..dgain.len()];
                for (j, dgain) in dgain.iter_mut().enumerate() {
                    *dgain += dy[j] * x[j] * rstd;
                }
            }
        });
    });
}

/// `y = (x − mean) / √(var + eps) · gain + bias` (Ba et al. 2016) per row of `[rows, cols]`;
/// `stats [rows, 2]` receives mean and 1/std.
///
/// # Errors
/// Operands of the wrong size; a type other than f32 or f64.
pub fn layer_forward(
    stream: &Stream,
    x: &Tensor,
    (gain, bias): (&Tensor, &Tensor),
    eps: f64,
    y: &Tensor,
    stats: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "layer_forward";
    let cols = gain.len();
    let rows = x.len() / cols.max(1);
    expect(NAME, "bias", bias, cols)?;
    expect(NAME, "y", y, rows * cols)?;
    expect(NAME, "stats", stats, 2 * rows)?;
    let (x, gain, bias) = (x.clone(), gain.clone(), bias.clone());
    let (y, stats) = (y.clone(), stats.clone());
    dispatch!(NAME, y.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (x, gain, bias) = (k.read::<T>(&x)?, k.read::<T>(&gain)?, k.read::<T>(&bias)?);
            let outputs = ((k.write::<T>(&y)?, TASK * cols), (k.write::<T>(&stats)?, TASK * 2));
            k.parallel().chunks2(outputs.0, outputs.1, |task, y, stats| {
                vectorize!(|| {
                    for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                        let x = &x[(task * TASK + i) * cols..][..cols];
                        let (gain, bias) = (&gain[..cols], &bias[..cols]);
                        let mean = sum([x], |[x]| x) / T::of(cols as f64);
                        let var = sum([x], |[x]| (x - mean) * (x - mean));
                        let rstd = T::ONE / (var / T::of(cols as f64) + T::of(eps)).sqrt();
                        stats[2 * i] = mean;
                        stats[2 * i + 1] = rstd;
                        for j in 0..cols {
                            y[j] = (x[j] - mean) * rstd * gain[j] + bias[j];
                        }
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Gradients of [`layer_forward`]: `dx` (added to when `add`), `dgain` and `dbias` (accumulated
/// when `accumulate`).
///
/// # Errors
/// As [`layer_forward`].
#[allow(clippy::too_many_arguments)] // The operands of the formula.
pub fn layer_backward(
    stream: &Stream,
    dy: &Tensor,
    x: &Tensor,
    gain: &Tensor,
    stats: &Tensor,
    (dx, add): (&Tensor, bool),
    (dgain, dbias): (&Tensor, &Tensor),
    accumulate: bool,
) -> Result<(), KernelError> {
    const NAME: &str = "layer_backward";
    let cols = gain.len();
    let rows = x.len() / cols.max(1);
    for (operand, tensor) in [("dy", dy), ("dx", dx)] {
        expect(NAME, operand, tensor, rows * cols)?;
    }
    expect(NAME, "dgain", dgain, cols)?;
    expect(NAME, "dbias", dbias, cols)?;
    expect(NAME, "stats", stats, 2 * rows)?;
    let (dy, x, gain, stats) = (dy.clone(), x.clone(), gain.clone(), stats.clone());
    let (dx, dgain, dbias) = (dx.clone(), dgain.clone(), dbias.clone());
    dispatch!(NAME, dx.dtype(), T => {
        stream.launch(NAME, move |k| {
            let (dy, x) = (k.read::<T>(&dy)?, k.read::<T>(&x)?);
            let (gain, stats) = (k.read::<T>(&gain)?, k.read::<T>(&stats)?);
            let outputs = (k.write::<T>(&dgain)?, k.write::<T>(&dbias)?);
            let outputs = ((outputs.0, COLUMNS), (outputs.1, COLUMNS));
            k.parallel().chunks2(outputs.0, outputs.1, |task, dgain, dbias| {
                vectorize!(|| {
                    if !accumulate {
                        dgain.fill(T::ZERO);
                        dbias.fill(T::ZERO);
                    }
                    let width = dgain.len();
                    let dbias = &mut dbias[..width];
                    for row in 0..rows {
                        let x = &x[row * cols + task * COLUMNS..][..width];
                        let dy = &dy[row * cols + task * COLUMNS..][..width];
                        let (mean, rstd) = (stats[2 * row], stats[2 * row + 1]);
                        for j in 0..width {
                            dgain[j] += dy[j] * (x[j] - mean) * rstd;
                            dbias[j] += dy[j];
                        }
                    }
                });
            });
            k.parallel().chunks(k.write::<T>(&dx)?, TASK * cols, |task, dx| {
                vectorize!(|| {
                    for (i, dx) in dx.chunks_exact_mut(cols).enumerate() {
                        let row = task * TASK + i;
                        let (x, dy) = (&x[row * cols..][..cols], &dy[row * cols..][..cols]);
                        let gain = &gain[..cols];
                        let (mean, rstd) = (stats[2 * row], stats[2 * row + 1]);
                        let n = T::of(cols as f64);
                        let push = sum([dy, gain], |[dy, gain]| dy * gain) / n;
                        let pull = sum([dy, gain, x], |[dy, gain, x]| dy * gain * (x - mean));
                        let pull = pull * rstd * rstd / n;
                        for j in 0..cols {
                            let value = rstd * (dy[j] * gain[j] - push - (x[j] - mean) * pull);
                            dx[j] = if add { dx[j] + value } else { value };
                        }
                    }
                });
            });
            Ok(())
        })?;
        Ok(())
    })
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
        let whole = Rows::dense(4, 8);
        rms_forward(&stream, (&x, whole), &gain, 1e-6, (&y, whole), &rstd).unwrap();
        for other in [Rows::dense(4, 4), Rows::dense(2, 8), Rows::heads(4, 8, 0, 2, 4)] {
            let refused = rms_forward(&stream, (&x, whole), &gain, 1e-6, (&y, other), &rstd);
            assert!(matches!(refused, Err(KernelError::Argument { .. })), "{other:?}");
        }
    }
}
