//! The exact polar factor `U·Vᵀ` by a singular value decomposition in f64: the reference.

use faer::Mat;

use super::twin::Caller;
use crate::Real;

/// Writes the polar factor times `share` of `x / norm`; false if the decomposition failed.
///
/// Directions whose singular value is rounding error beside the largest have no polar factor and
/// stay zero.
pub(super) fn polar<T: Real>(caller: &Caller<T>, share: f64, scaled: impl Fn(T) -> T) -> bool {
    let Caller { x, x_stride, rows, cols, .. } = *caller;
    let at = |i: usize, j: usize| scaled(x[i * x_stride + j]).to_f64();
    let Ok(svd) = Mat::from_fn(rows, cols, at).thin_svd() else {
        return false;
    };
    let (u, s, v) = (svd.U(), svd.S(), svd.V());
    let least = s[0] * f64::EPSILON * rows.max(cols) as f64;
    let factor = caller.scale * share;
    let kept =
        Mat::from_fn(
            rows,
            rows.min(cols),
            |i, j| {
                if s[j] > least { u[(i, j)] * factor } else { 0.0 }
            },
        );
    let polar = kept * v.transpose();
    for i in 0..rows {
        let start = caller.offset + i * caller.stride;
        // SAFETY: results of a batch are disjoint, and this thread has this one.
        let row = unsafe { caller.out.part(start..start + cols) };
        row.iter_mut().enumerate().for_each(|(j, to)| *to = T::of(polar[(i, j)]));
    }
    true
}
