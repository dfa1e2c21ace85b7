//! The exact polar factor `U·Vᵀ` by a singular value decomposition in f64: the reference.

use faer::Mat;

use super::twin::Caller;
use crate::Real;

/// Writes the polar factor times `share` of `x / norm`; false if the decomposition failed.
///
/// Directions whose singular value may be rounding error have no polar factor and stay zero.
pub(super) fn polar<T: Real>(
    caller: &Caller<T>,
    share: f64,
    input_roundoff: f64,
    scaled: impl Fn(T) -> T,
) -> bool {
    let Caller { x, x_stride, rows, cols, .. } = *caller;
    let x = Mat::from_fn(rows, cols, |i, j| scaled(x[i * x_stride + j]).to_f64());
    let Ok(svd) = x.thin_svd() else {
        return false;
    };
    let (u, s, v) = (svd.U(), svd.S(), svd.V());
    let least = (s[0] * f64::EPSILON * rows.max(cols) as f64).max(rounding(
        &x,
        T::ROUNDOFF,
        input_roundoff,
    ));
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

/// The largest singular value that rounding of the elements may have made.
///
/// Errors of `E` move no singular value by more than `‖E‖₂` (Weyl). Rounding to the type that
/// computes makes at most `‖E‖_F ≤ roundoff · ‖X‖_F`, which for f32 and f64 is nothing beside any
/// direction that matters. Of 16 bits the same bound would take away what an iteration keeps, so
/// their errors count as independent: `‖E‖₂` is then about the largest norm of a row plus that of a
/// column (Latała 2005, Bandeira and van Handel 2016).
fn rounding(x: &Mat<f64>, roundoff: f64, input_roundoff: f64) -> f64 {
    let row = x.row_iter().map(|row| row.norm_l2()).fold(0.0, f64::max);
    let col = x.col_iter().map(|col| col.norm_l2()).fold(0.0, f64::max);
    (roundoff * x.norm_l2()).max(input_roundoff * (row + col))
}
