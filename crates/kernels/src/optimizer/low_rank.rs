//! One step of a power iteration on momentum, with what it misses fed back. On hosts.
//!
//! Kept transposed, so that every vector of a basis is contiguous:
//!
//! ```text
//! momentum M [rows, cols]    basis Q [rank, cols]    P [rank, rows]    R [rank, cols]
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use device::{DType, Device, Kernel, Tensor};

use super::spans::disjoint;
use super::{at_least, check_dtype};
use crate::KernelError;
use crate::gemm::{Layout, serial};
use crate::math::{self, vectorize};
use crate::newton_schulz::{STATUS_FINITE, STATUS_NON_FINITE};
use crate::op::{self, Inside, Op, on_host};
use crate::shared_slice::SharedSlice;

/// Where one matrix lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowRankAt {
    /// In the flat gradients, and which factor applies.
    pub grads: usize,
    pub unit: usize,
    /// In momentum and directions.
    pub local: usize,
    pub basis: usize,
}

/// Matrices `[rows, cols]` with bases of one rank that do not overlap; clones share the list.
#[derive(Debug, Clone)]
pub struct LowRankMatrices {
    list: Arc<[LowRankAt]>,
    rows: usize,
    cols: usize,
    rank: usize,
    /// One past the last element, or unit.
    ends: LowRankAt,
}

impl LowRankMatrices {
    /// # Errors
    /// Two that overlap.
    pub fn new(
        (rows, cols): (usize, usize),
        rank: usize,
        list: Vec<LowRankAt>,
    ) -> Result<LowRankMatrices, KernelError> {
        let elements = rows * cols;
        let end = |what: fn(&LowRankAt) -> usize| list.iter().map(what).max();
        let ends = LowRankAt {
            grads: end(|at| at.grads).map_or(0, |start| start + elements),
            unit: end(|at| at.unit).map_or(0, |unit| unit + 1),
            local: disjoint("momentum", list.iter().map(|at| (at.local, elements)))?,
            basis: disjoint("basis", list.iter().map(|at| (at.basis, rank * cols)))?,
        };
        Ok(LowRankMatrices { list: list.into(), rows, cols, rank, ends })
    }

    /// Elements of workspace with which `threads` threads work on a matrix each.
    pub fn workspace_elements(&self, threads: usize) -> usize {
        self.lane() * threads.clamp(1, self.list.len().max(1))
    }

    /// Elements of workspace for one matrix at a time.
    fn lane(&self) -> usize {
        self.rank * (self.rows + self.cols)
    }
}

/// The direction of Dion (Ahn et al., arXiv 2504.05295, algorithm 1):
///
/// ```text
/// M ← M + factors[unit]·g
/// P = orth(M·Qᵀ)                    columns orthonormal, in order
/// R = Mᵀ·P
/// M ← M - (1-mu)·P·Rᵀ               error feedback: what P misses stays
/// Q ← R, columns divided by |R| + eps
/// d = P·Qᵀ
/// ```
///
/// (Written for columns, as the paper does; kept as rows.) Vectors are made orthonormal by
/// Gram–Schmidt, each twice, which is enough while the condition number is below 1/roundoff (Giraud
/// et al. 2005). One that vanishes is zero, and keeps its vector of the basis: so a zero gradient
/// leaves the basis as it was. A matrix is one thread's from first to last.
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small, or of another type; a device that is no host.
#[derive(Clone)]
pub struct LowRankStep {
    pub matrices: LowRankMatrices,
    pub mu: f64,
    pub eps: f64,
    /// f32, flat.
    pub grads: Tensor,
    /// f32, one of each unit.
    pub factors: Tensor,
    /// `M` and `Q`: f32, changed.
    pub momentum: Tensor,
    pub basis: Tensor,
    /// `d`: f32, `[rows, cols]` where M is, written.
    pub direction: Tensor,
    /// f32: [`LowRankMatrices::workspace_elements`] of as many threads as work at a time.
    pub workspace: Tensor,
    /// u32, one of each matrix, written: [`STATUS_NON_FINITE`] where M holds an infinity or NaN.
    /// Its direction is then zero, and its basis stays.
    pub status: Tensor,
}

/// A vector has vanished where less than this of it is left: beyond, rounding of f32 decides.
const VANISHED: f64 = 1e-6;

impl LowRankStep {
    /// # Errors
    /// A device without code for it.
    pub fn check_device(device: &Device) -> Result<(), KernelError> {
        op::check_host(Self::NAME, device)
    }
}

impl Op for LowRankStep {
    const NAME: &'static str = "dion";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let (states, io) = ([&self.momentum, &self.basis], [&self.grads, &self.factors]);
        let out = [&self.direction, &self.workspace, &self.status];
        states.into_iter().chain(io).chain(out)
    }

    fn check(&self) -> Result<(), KernelError> {
        let LowRankMatrices { list, ends, .. } = &self.matrices;
        let floats = [
            ("momentum", &self.momentum, ends.local),
            ("basis", &self.basis, ends.basis),
            ("grads", &self.grads, ends.grads),
            ("factors", &self.factors, ends.unit),
            ("direction", &self.direction, ends.local),
            ("workspace", &self.workspace, self.matrices.lane()),
        ];
        for (operand, tensor, len) in floats {
            check_dtype(operand, tensor, DType::F32)?;
            at_least(operand, tensor, len)?;
        }
        check_dtype("status", &self.status, DType::U32)?;
        at_least("status", &self.status, list.len())
    }

    on_host!();
}

/// One matrix and what belongs to it.
struct Caller<'a> {
    grads: &'a [f32],
    factor: f32,
    momentum: &'a mut [f32],
    basis: &'a mut [f32],
    direction: &'a mut [f32],
    p: &'a mut [f32],
    r: &'a mut [f32],
}

impl LowRankStep {
    fn run(&self, k: &Kernel) -> Result<(), device::DeviceError> {
        let LowRankMatrices { ref list, rows, cols, rank, .. } = self.matrices;
        let (elements, count, each) = (rows * cols, list.len(), self.matrices.lane());
        // Four products, and Gram–Schmidt twice.
        k.flops(count * (8 * elements * rank + 8 * rank * rank * rows));
        let (grads, factors) = (k.read::<f32>(&self.grads)?, k.read::<f32>(&self.factors)?);
        let momentum = SharedSlice::new(k.write::<f32>(&self.momentum)?);
        let basis = SharedSlice::new(k.write::<f32>(&self.basis)?);
        let direction = SharedSlice::new(k.write::<f32>(&self.direction)?);
        let work = SharedSlice::new(k.write::<f32>(&self.workspace)?);
        let status = SharedSlice::new(k.write::<u32>(&self.status)?);
        let lanes = work.len().checked_div(each).unwrap_or(1).clamp(1, count.max(1));
        let next = AtomicUsize::new(0);
        k.parallel().each(lanes, |lane| {
            // SAFETY: lane `lane` alone uses this part.
            let work = unsafe { work.part(lane * each..(lane + 1) * each) };
            let (p, r) = work.split_at_mut(rank * rows);
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&at) = list.get(index) else { return };
                // SAFETY: `LowRankMatrices::new` refused matrices that overlap, and `index` is
                // taken once.
                let (momentum, basis, direction, status) = unsafe {
                    (
                        momentum.part(at.local..at.local + elements),
                        basis.part(at.basis..at.basis + rank * cols),
                        direction.part(at.local..at.local + elements),
                        status.part(index..index + 1),
                    )
                };
                let (grads, factor) = (&grads[at.grads..at.grads + elements], factors[at.unit]);
                let caller =
                    Caller { grads, factor, momentum, basis, direction, p: &mut *p, r: &mut *r };
                status[0] = self.one(caller);
            }
        });
        Ok(())
    }

    /// The step of one matrix, and its status.
    fn one(&self, caller: Caller) -> u32 {
        let LowRankMatrices { rows, cols, rank, .. } = self.matrices;
        let Caller { grads, factor, momentum, basis, direction, p, r } = caller;
        vectorize!(|| momentum.iter_mut().zip(grads).for_each(|(m, g)| *m += g * factor));
        if !momentum.iter().all(|m| m.is_finite()) {
            direction.fill(0.0);
            return STATUS_NON_FINITE;
        }
        let dense = Layout::dense;
        let (m, q) = (dense(rows, cols), dense(rank, cols));
        serial(1.0, (&*basis, q), (&*momentum, m.t()), 0.0, (p, dense(rank, rows)));
        orthonormalize(p, rows);
        let transposed = dense(rank, rows).t();
        serial(1.0, (&*p, dense(rank, rows)), (&*momentum, m), 0.0, (r, q));
        serial((self.mu - 1.0) as f32, (&*p, transposed), (&*r, q), 1.0, (momentum, m));
        let vectors = basis.chunks_exact_mut(cols.max(1)).zip(r.chunks_exact(cols.max(1)));
        for ((q, r), p) in vectors.zip(p.chunks_exact(rows.max(1))) {
            // A vector of norm 1 has an element that is not zero.
            if p.iter().any(|&x| x != 0.0) {
                let factor = (1.0 / (norm(r) + self.eps)) as f32;
                vectorize!(|| q.iter_mut().zip(r).for_each(|(q, r)| *q = r * factor));
            }
        }
        serial(1.0, (&*p, transposed), (&*basis, q), 0.0, (direction, m));
        STATUS_FINITE
    }
}

/// Makes the vectors of `len` elements orthonormal, in order; what vanishes becomes zero.
fn orthonormalize(vectors: &mut [f32], len: usize) {
    let len = len.max(1);
    for index in 0..vectors.len() / len {
        let (before, rest) = vectors.split_at_mut(index * len);
        let vector = &mut rest[..len];
        let first = norm(vector);
        for _ in 0..2 {
            for earlier in before.chunks_exact(len) {
                vectorize!(|| {
                    let share = math::dot(earlier, vector);
                    vector.iter_mut().zip(earlier).for_each(|(x, e)| *x -= share * e);
                });
            }
        }
        let left = norm(vector);
        let factor = if left > VANISHED * first { (1.0 / left) as f32 } else { 0.0 };
        vectorize!(|| vector.iter_mut().for_each(|x| *x *= factor));
    }
}

/// In f64, where squares neither vanish nor overflow.
fn norm(x: &[f32]) -> f64 {
    vectorize!(|| math::sum([x], |[x]| f64::from(x) * f64::from(x))).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Vectors whose lengths differ by ten orders of magnitude, and some that lie in the span
        /// of those before.
        #[test]
        fn vectors_become_orthonormal_or_zero(
            count in 1_usize..9, len in 9_usize..40, seed: u32, copies: bool,
        ) {
            let value = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed) >> 8;
            let noise = |i: usize| value(i as u32 + 1) as f32 / (1 << 23) as f32 - 1.0;
            let mut vectors: Vec<f32> = (0..count * len)
                .map(|i| noise(i) * 10_f32.powi(-((i / len) as i32)))
                .collect();
            if copies && count > 2 {
                let twice: Vec<f32> = vectors[..len].iter().map(|x| 2.0 * x).collect();
                vectors[len..2 * len].copy_from_slice(&twice);
            }
            orthonormalize(&mut vectors, len);
            let rows: Vec<&[f32]> = vectors.chunks_exact(len).collect();
            for (i, a) in rows.iter().enumerate() {
                let gone = copies && count > 2 && i == 1;
                prop_assert!((norm(a) - f64::from(u8::from(!gone))).abs() < 1e-6);
                for b in &rows[..i] {
                    prop_assert!(math::dot(a, b).abs() < 1e-6);
                }
            }
        }
    }
}
