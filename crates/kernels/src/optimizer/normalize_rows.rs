//! Rows of orthogonalized matrices divided by the running root mean squares of their elements. On
//! hosts.

use std::sync::Arc;

use device::{DType, Device, Kernel, Tensor};

use super::spans::disjoint;
use super::{at_least, check_dtype};
use crate::KernelError;
use crate::math::{self, vectorize};
use crate::op::{self, Inside, Op, on_host};
use crate::shared_slice::SharedSlice;

/// Where one matrix and the variances of its rows begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsAt {
    /// In the directions, without gaps between rows.
    pub direction: usize,
    pub variance: usize,
}

/// Matrices of one shape that do not overlap; clones share the list.
#[derive(Debug, Clone)]
pub struct RowMatrices {
    list: Arc<[RowsAt]>,
    rows: usize,
    cols: usize,
    directions: usize,
    variances: usize,
}

impl RowMatrices {
    /// Matrices `[rows, cols]`.
    ///
    /// # Errors
    /// Two that overlap.
    pub fn new(rows: usize, cols: usize, list: Vec<RowsAt>) -> Result<RowMatrices, KernelError> {
        let directions = list.iter().map(|at| (at.direction, rows * cols));
        let directions = disjoint("direction", directions)?;
        let variances = disjoint("variance", list.iter().map(|at| (at.variance, rows)))?;
        Ok(RowMatrices { list: list.into(), rows, cols, directions, variances })
    }
}

/// The Frobenius norm of a result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Frobenius {
    /// That of the matrix before.
    Kept,
    Is(f64),
}

/// The normalization of NorMuon (Li et al., arXiv 2510.05491, algorithm 1), in place:
///
/// ```text
/// n = mean over each row of o²       [rows]
/// v ← β2·v + (1-β2)·n                [rows]
/// o ← o / (sqrt(v) + eps) by rows    [rows, cols], times what gives it the norm
/// ```
///
/// Both norms follow from n and v: `|o|² = cols·Σn` before, `cols·Σ n/(sqrt(v) + eps)²` after. A
/// matrix is one thread's, its rows in order; a zero matrix stays zero.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type; a device that is no host.
#[derive(Clone)]
pub struct NormalizeRows {
    pub matrices: RowMatrices,
    pub beta2: f64,
    pub eps: f64,
    pub norm: Frobenius,
    /// `o`: f32, changed.
    pub direction: Tensor,
    /// `v`: f32, changed.
    pub variance: Tensor,
}

impl NormalizeRows {
    /// # Errors
    /// A device without code for it.
    pub fn check_device(device: &Device) -> Result<(), KernelError> {
        op::check_host(Self::NAME, device)
    }
}

impl Op for NormalizeRows {
    const NAME: &'static str = "normuon";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.direction, &self.variance].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        check_dtype("directions", &self.direction, DType::F32)?;
        check_dtype("variances", &self.variance, DType::F32)?;
        at_least("directions", &self.direction, self.matrices.directions)?;
        at_least("variances", &self.variance, self.matrices.variances)
    }

    on_host!();
}

impl NormalizeRows {
    fn run(&self, k: &Kernel) -> Result<(), device::DeviceError> {
        let RowMatrices { ref list, rows, cols, .. } = self.matrices;
        let elements = rows * cols;
        k.bytes(2 * 4 * elements * list.len());
        let direction = SharedSlice::new(k.write::<f32>(&self.direction)?);
        let variance = SharedSlice::new(k.write::<f32>(&self.variance)?);
        k.parallel().each(list.len(), |index| {
            let at = list[index];
            // SAFETY: `RowMatrices::new` refused matrices that overlap; one thread has this one.
            let o = unsafe { direction.part(at.direction..at.direction + elements) };
            // SAFETY: as above, for variances.
            let v = unsafe { variance.part(at.variance..at.variance + rows) };
            self.normalize(o, v);
        });
        Ok(())
    }

    fn normalize(&self, o: &mut [f32], v: &mut [f32]) {
        let cols = self.matrices.cols.max(1);
        let (keep, add) = (self.beta2 as f32, (1.0 - self.beta2) as f32);
        let divisor = |v: f32| v.sqrt() + self.eps as f32;
        let (mut before, mut after) = (0.0_f64, 0.0_f64);
        for (row, v) in o.chunks_exact(cols).zip(v.iter_mut()) {
            let squares = vectorize!(|| math::dot(row, row));
            let mean = squares / cols as f32;
            *v = keep * *v + add * mean;
            let mean = f64::from(mean);
            before += mean;
            after += mean / f64::from(divisor(*v)).powi(2);
        }
        let root = |means: f64| (cols as f64 * means).sqrt();
        let (before, after) = (root(before), root(after));
        let norm = match self.norm {
            Frobenius::Kept => before,
            Frobenius::Is(norm) => norm,
        };
        let factor = if after > 0.0 { norm / after } else { 0.0 };
        for (row, v) in o.chunks_exact_mut(cols).zip(v) {
            let factor = (factor / f64::from(divisor(*v))) as f32;
            vectorize!(|| row.iter_mut().for_each(|o| *o *= factor));
        }
    }
}
