//! The divisor of a matrix before the first product.

use crate::{Real, math};

/// The divisor of the elements, in two factors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale<T> {
    largest: T,
    /// The inverse of the divisor of the elements over `largest`.
    inverse: T,
    /// The Frobenius norm over the least norm where that is larger, else 1.
    pub share: f64,
}

impl<T: Real> Scale<T> {
    #[inline(always)]
    pub fn apply(self, x: T) -> T {
        x / self.largest * self.inverse
    }
}

/// 2⁻¹⁰⁰⁰ and its inverse are normal f64, and no f32 is below it.
const LEAST_EXPONENT: i32 = -1000;

pub(super) enum Norm<T> {
    Zero,
    NonFinite,
    Positive(Scale<T>),
}

/// The Frobenius norm of rows of `cols` elements, `stride` apart, or `least` if that is larger;
/// summed in f64 in a fixed order that `stride` does not change.
///
/// The largest magnitude is divided out first (rounded down to a power of two, so that nothing is
/// rounded), which keeps squares of tiny and of huge elements in range; the rest lies in
/// `1 ..= 2·sqrt(len)`, so that no epsilon is needed in the division.
pub(super) fn norm<T: Real>(x: &[T], cols: usize, stride: usize, least: f64) -> Norm<T> {
    if cols == 0 || x.is_empty() {
        return Norm::Zero;
    }
    let (largest, probe) = math::vectorize!(|| {
        let (mut largest, mut probe) = (T::ZERO, T::ZERO);
        for row in rows(x, cols, stride) {
            largest = largest_of(row).max(largest);
            // 0·x is NaN where x is infinite or NaN.
            probe += math::sum([row], |[x]| x * T::ZERO);
        }
        (largest, probe)
    });
    if !probe.is_finite() {
        return Norm::NonFinite;
    }
    if largest == T::ZERO {
        return Norm::Zero;
    }
    let exponent = largest.to_f64().log2().floor() as i32;
    let largest = T::of(2_f64.powi(exponent.max(LEAST_EXPONENT)));
    let sum = math::vectorize!(|| {
        let mut sum = 0.0;
        for row in rows(x, cols, stride) {
            sum += math::sum([row], |[x]| {
                let x = (x / largest).to_f64();
                x * x
            });
        }
        sum
    });
    let norm = sum.sqrt();
    let whole = norm * largest.to_f64();
    let (inverse, share) = match whole < least {
        true => (largest.to_f64() / least, whole / least),
        false => (1.0 / norm, 1.0),
    };
    Norm::Positive(Scale { largest, inverse: T::of(inverse), share })
}

#[inline(always)]
fn rows<T>(x: &[T], cols: usize, stride: usize) -> impl Iterator<Item = &[T]> {
    x.chunks(stride).map(
        #[inline(always)]
        move |row| &row[..cols],
    )
}

#[inline(always)]
fn largest_of<T: Real>(row: &[T]) -> T {
    let mut largest = [T::ZERO; 16];
    let (whole, tail) = row.as_chunks::<16>();
    for chunk in whole {
        for (largest, x) in largest.iter_mut().zip(chunk) {
            *largest = x.abs().max(*largest);
        }
    }
    largest.iter().chain(tail).fold(T::ZERO, |most, x| x.abs().max(most))
}
