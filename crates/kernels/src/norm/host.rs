//! The host's code: threads take vectors, and columns where vectors are summed.

use device::{DeviceError, Kernel};

use super::{LayerBackward, LayerForward, RmsBackward, RmsBackwardInPlace, RmsForward, Rows};
use crate::Real;
use crate::math::{sum, vectorize};
use crate::shared_slice::SharedSlice;

/// Vectors that one parallel task normalizes.
const TASK: usize = 16;

/// Columns that one parallel task reduces for a gain or bias gradient.
const COLUMNS: usize = 64;

type Done = Result<(), DeviceError>;

impl RmsForward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let (rx, ry, eps) = (self.x.rows, self.y.rows, self.eps);
        let (x, gain) = (k.read::<T>(&self.x.tensor)?, k.read::<T>(&self.gain)?);
        let y = SharedSlice::new(k.write::<T>(&self.y.tensor)?);
        k.parallel().chunks(k.write::<T>(&self.rstd)?, TASK, |task, rstd| {
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
    }
}

impl RmsBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let (rdy, rx, rdx) = (self.dy.rows, self.x.rows, self.dx.rows);
        let (dy, x) = (k.read::<T>(&self.dy.tensor)?, k.read::<T>(&self.x.tensor)?);
        let (gain, rstd) = (k.read::<T>(&self.gain)?, k.read::<T>(&self.rstd)?);
        let dgain = (k.write::<T>(&self.dgain)?, self.dgain_onto.adds());
        gain_gradient((dy, rdy), (x, rx), rstd, dgain, k);
        let dx = SharedSlice::new(k.write::<T>(&self.dx.tensor)?);
        let add = self.dx_onto.adds();
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
    }
}

impl RmsBackwardInPlace {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let rows = self.rows;
        let x = k.read::<T>(&self.x)?;
        let (gain, rstd) = (k.read::<T>(&self.gain)?, k.read::<T>(&self.rstd)?);
        let d = k.write::<T>(&self.d)?;
        let dgain = (k.write::<T>(&self.dgain)?, self.dgain_onto.adds());
        gain_gradient((&*d, rows), (x, rows), rstd, dgain, k);
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
    }
}

/// `dgain[j] = Σ dy[row, j]·x[row, j]·rstd[row]`, rows in order; threads take columns.
fn gain_gradient<T: Real>(
    (dy, rdy): (&[T], Rows),
    (x, rx): (&[T], Rows),
    rstd: &[T],
    (dgain, add): (&mut [T], bool),
    k: &Kernel,
) {
    k.parallel().chunks(dgain, COLUMNS, |task, dgain| {
        vectorize!(|| {
            if !add {
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

impl LayerForward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let (cols, eps) = (self.gain.len(), self.eps);
        let x = k.read::<T>(&self.x)?;
        let (gain, bias) = (k.read::<T>(&self.gain)?, k.read::<T>(&self.bias)?);
        let (y, stats) = (k.write::<T>(&self.y)?, k.write::<T>(&self.stats)?);
        k.parallel().chunks2((y, TASK * cols), (stats, TASK * 2), |task, y, stats| {
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
    }
}

impl LayerBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let cols = self.gain.len();
        let (dy, x) = (k.read::<T>(&self.dy)?, k.read::<T>(&self.x)?);
        let (gain, stats) = (k.read::<T>(&self.gain)?, k.read::<T>(&self.stats)?);
        self.weight_gradients((dy, x, stats), k)?;
        let add = self.dx_onto.adds();
        k.parallel().chunks(k.write::<T>(&self.dx)?, TASK * cols, |task, dx| {
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
    }

    /// `dgain[j] = Σ dy[row, j]·(x[row, j] − mean)·rstd` and `dbias[j] = Σ dy[row, j]`, rows in
    /// order; threads take columns.
    fn weight_gradients<T: Real>(&self, (dy, x, stats): (&[T], &[T], &[T]), k: &Kernel) -> Done {
        let (cols, add) = (self.gain.len(), self.weights_onto.adds());
        let (dgain, dbias) = (k.write::<T>(&self.dgain)?, k.write::<T>(&self.dbias)?);
        k.parallel().chunks2((dgain, COLUMNS), (dbias, COLUMNS), |task, dgain, dbias| {
            vectorize!(|| {
                if !add {
                    dgain.fill(T::ZERO);
                    dbias.fill(T::ZERO);
                }
                let width = dgain.len();
                let dbias = &mut dbias[..width];
                for row in 0..stats.len() / 2 {
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
        Ok(())
    }
}
