//! Vector-friendly arithmetic: fixed-order sums, and loops for the CPU's widest instructions.
//!
//! `vectorize!` runs a loop compiled for the widest instruction set of this CPU. Rust never
//! contracts `a * b + c`, so the bits are those of the plain loop on any CPU.

use half::bf16;

use crate::Real;

/// Runs a closure compiled for the CPU's vector instructions, and what is inlined into it.
///
/// A macro, because the closure must say that it is always inlined: the compiler may leave any
/// other as a function of its own, with the instructions that every CPU has. Functions that it
/// calls in a loop must say so, too, and closures of more than a few operations.
macro_rules! vectorize {
    (|| $body:expr) => {
        $crate::math::vectorized(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use vectorize;

/// The body of [`vectorize!`].
#[inline(always)]
pub(crate) fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Body<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _simd: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Body(body))
}

/// Rounds to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round_out(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        // Only NaNs wrap, which take the other way.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // A quiet bit keeps the payload from rounding to infinity.
        let nan = (bits >> 16) | 0x40;
        let half = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded };
        *to = bf16::from_bits(half as u16);
    }
}

/// Sum of a term of each row of `slices`, which have at least the length of the first: in 64
/// interleaved partial sums folded by halves, then what is left in 8, then one by one. One fixed
/// order, and loops long enough for the compiler to keep and make vectors of.
#[inline(always)]
pub fn sum<const N: usize, T: Copy, S: Real>(slices: [&[T]; N], term: impl Fn([T; N]) -> S) -> S {
    let len = slices.first().map_or(0, |slice| slice.len());
    let (most, rest) = interleaved::<64, N, T, S>(slices.map(|slice| &slice[..len]), &term);
    let (some, rest) = interleaved::<8, N, T, S>(rest, &term);
    (0..len % 8).fold(most + some, |sum, i| sum + term(rest.map(|slice| slice[i])))
}

/// The sum over whole groups of `LANES` rows, and the rows that are left.
#[inline(always)]
fn interleaved<'a, const LANES: usize, const N: usize, T: Copy, S: Real>(
    slices: [&'a [T]; N],
    term: &impl Fn([T; N]) -> S,
) -> (S, [&'a [T]; N]) {
    let parts = slices.map(|slice| slice.as_chunks::<LANES>());
    let groups = parts.first().map_or(0, |(whole, _)| whole.len());
    let mut lanes = [S::ZERO; LANES];
    for group in 0..groups {
        let rows = parts.map(|(whole, _)| &whole[group]);
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(rows.map(|row| row[lane]));
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            let other = lanes[lane + half];
            lanes[lane] += other;
        }
        half /= 2;
    }
    (lanes[0], parts.map(|(_, rest)| rest))
}

/// The largest of `x`, −∞ for none; NaN is passed over.
#[inline(always)]
pub fn most<T: Real>(x: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; 16];
    let (whole, tail) = x.as_chunks::<16>();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(x);
        }
    }
    lanes.iter().chain(tail).fold(T::NEG_INFINITY, |most, &x| most.max(x))
}

/// Inner product in the order of [`sum`].
#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    sum([a, b], |[a, b]| a * b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sum_has_every_row_once(
            rows in prop::collection::vec((-9_i32..9, -9_i32..9), 0..300),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) =
                rows.iter().map(|&(a, b)| (a as f32, b as f32)).unzip();
            // Integers, so that every order gives the same.
            let want: i32 = rows.iter().map(|(a, b)| a * b).sum();
            prop_assert_eq!(dot(&a, &b), want as f32);
        }

        #[test]
        fn a_sum_has_the_same_bits_vectorized(
            values in prop::collection::vec(-1.0_f32..1.0, 0..200),
        ) {
            let plain = sum([&values[..]], |[x]| x);
            let fast = vectorize!(|| sum([&values[..]], |[x]| x));
            prop_assert_eq!(plain.to_bits(), fast.to_bits());
        }
    }
}
