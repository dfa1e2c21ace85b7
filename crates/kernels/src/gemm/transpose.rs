//! Transposing f32, or other four bytes: no value is looked at.

use std::ops::Range;

/// `to[i][j] = from[j][i]` for `i` in `rows` and `j` in `cols`: the first stride is between the `j`
/// of `from`, the second between the `i` of `to`.
///
/// # Safety
/// So much of `from` may be read, and of `to` written; they do not overlap.
pub(super) unsafe fn each<T: Copy>(
    (from, from_stride): (*const T, usize),
    (to, to_stride): (*mut T, usize),
    rows: Range<usize>,
    cols: Range<usize>,
) {
    for j in cols {
        for i in rows.clone() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i * to_stride + j) = *from.add(j * from_stride + i) };
        }
    }
}

/// As [`each`] for `0..rows` and `0..cols`, in blocks where the CPU can.
///
/// # Safety
/// As [`each`].
pub(super) unsafe fn blocks(
    from: (*const f32, usize),
    to: (*mut f32, usize),
    rows: usize,
    cols: usize,
) {
    let mut whole = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        whole = (rows / x86::BLOCK * x86::BLOCK, cols / x86::BLOCK * x86::BLOCK);
        // SAFETY: the CPU has AVX; the rest is the caller's promise.
        unsafe { x86::blocks(from, to, whole) };
    }
    // SAFETY: the caller's promise.
    unsafe {
        each(from, to, whole.0..rows, 0..whole.1);
        each(from, to, 0..rows, whole.1..cols);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, _mm_loadu_ps, _mm256_castps128_ps256, _mm256_insertf128_ps, _mm256_shuffle_ps,
        _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    /// Rows and columns of a block.
    pub(super) const BLOCK: usize = 8;

    /// Whole blocks, along the contiguous rows of `from`.
    ///
    /// # Safety
    /// As [`super::each`]; `rows` and `cols` are multiples of [`BLOCK`].
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn blocks(
        (from, from_stride): (*const f32, usize),
        (to, to_stride): (*mut f32, usize),
        (rows, cols): (usize, usize),
    ) {
        for j in (0..cols).step_by(BLOCK) {
            for i in (0..rows).step_by(BLOCK) {
                // SAFETY: one block of what the caller allows.
                unsafe {
                    let from = (from.add(j * from_stride + i), from_stride);
                    block(from, (to.add(i * to_stride + j), to_stride));
                }
            }
        }
    }

    /// One block, in two halves of four `i`: row `j` and row `j + 4` share a register, so that no
    /// shuffle crosses its middle.
    ///
    /// # Safety
    /// As [`super::each`] for a block.
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn block((from, from_stride): (*const f32, usize), (to, to_stride): (*mut f32, usize)) {
        for half in 0..2 {
            let pair = |j: usize| -> __m256 {
                // SAFETY: four elements each, inside the block.
                unsafe {
                    let low = _mm_loadu_ps(from.add(j * from_stride + 4 * half));
                    let high = _mm_loadu_ps(from.add((j + 4) * from_stride + 4 * half));
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
                }
            };
            let [a, b, c, d] = [pair(0), pair(1), pair(2), pair(3)];
            let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let columns = [
                _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
                _mm256_shuffle_ps::<0xEE>(ab_low, cd_low),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                // SAFETY: eight elements of row `4·half + i` of the block.
                unsafe { _mm256_storeu_ps(to.add((4 * half + i) * to_stride), column) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_element_arrives(rows in 0_usize..40, cols in 0_usize..40, gap in 0_usize..9) {
            let (from_stride, to_stride) = (rows + gap, cols + gap);
            let from: Vec<f32> = (0..cols * from_stride).map(|i| i as f32).collect();
            let mut to = vec![-1.0_f32; rows * to_stride];
            let (source, target) = ((from.as_ptr(), from_stride), (to.as_mut_ptr(), to_stride));
            // SAFETY: the vectors have the lengths that the strides make.
            unsafe { super::blocks(source, target, rows, cols) };
            for (at, &value) in to.iter().enumerate() {
                let (i, j) = (at / to_stride, at % to_stride);
                let expected = if j < cols { from[j * from_stride + i] } else { -1.0 };
                prop_assert_eq!(value, expected);
            }
        }
    }
}
