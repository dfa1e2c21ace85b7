//! The product of one thread: calls of the `gemm` crate on blocks.
//!
//! `gemm` vectorizes along the columns of C, and takes packed panels of A and B. Left to itself it
//! packs element by element, which costs a tenth of a product with few rows where B has `k` along
//! its rows (`x·Wᵀ`, every forward product), and into memory that it allocates for every call: as
//! many rows of A as the call has, 32 MiB for the gradient of a large vocabulary. So blocks of such
//! a B, and both operands of products with many rows, are copied to the stack here, turned by
//! shuffles of vectors where that is needed, and `gemm` gets calls that are small enough for it to
//! read them where they lie:
//!
//! ```text
//!               n: blocks of 128 or 144       for blocks of columns:
//!             ┌───────┬───────┬──               for slices of k:
//!          k: │       │       │                   copy or turn the block of B
//!      slices ├───────┤   B   │                   for 48 or 32 rows: one call of gemm
//!       ≤ 512 │       │       │
//!       ┌─────┼───────┼───────┼──             where A has k along its rows (`dyᵀ·x`, every
//! rows: │  A  │   C   │       │               gradient of a weight), 384 rows of A are turned
//!       └─────┴───────┴───────┴──             first, and take their turns with all blocks of B
//! ```
//!
//! An element of C is the sum of its slices in order, each a chain of multiply-adds over `k`, but
//! for small products and those with a vector, where `gemm` has other ways. Where `k` is cut
//! depends on `k` alone: `gemm` would cut by the CPU's caches, but never below 512.

use std::mem::MaybeUninit;

use super::{Layout, transpose};
use crate::Real;

/// Most of `k` in a slice of f32; of f64 half of it.
const DEPTH: usize = 512;
/// Elements between the rows of a turned block: whole cache lines, but no multiple of a page,
/// whose lines would share sets of the caches.
const STRIDE: usize = 144 + 16;
/// Rows of A that are turned at a time: whole calls of 48 or of 32.
const PANEL: usize = 384;
/// Elements between the rows of a turned panel of A.
const PANEL_STRIDE: usize = DEPTH + 16;
/// Products with fewer rows or columns go to `gemm` as they are.
const LEAST: usize = 32;
/// So many rows of A `gemm` may pack for itself: 2 MiB, which every thread is planned to have.
/// That is a few percent faster than copies on the stack, and has the same bits.
const MOST_PACKED: usize = 1024;

/// A matrix in memory that may be read, and written if it is the result.
#[derive(Clone, Copy)]
pub(super) struct View<T> {
    start: *mut T,
    layout: Layout,
}

impl<T> View<T> {
    pub(super) fn of(start: *const T, layout: Layout) -> View<T> {
        View { start: start.cast_mut(), layout }
    }

    /// The pointer to entry (0, 0).
    fn first(&self) -> *mut T {
        self.start.wrapping_add(self.layout.offset)
    }

    fn t(mut self) -> View<T> {
        self.layout = self.layout.t();
        self
    }

    /// `rows × cols` entries from `(row, col)`, or as many as there are.
    fn part(mut self, (row, rows): (usize, usize), (col, cols): (usize, usize)) -> View<T> {
        let Layout { row_stride, col_stride, .. } = self.layout;
        self.layout.offset += row * row_stride + col * col_stride;
        self.layout.rows = rows.min(self.layout.rows - row);
        self.layout.cols = cols.min(self.layout.cols - col);
        self
    }
}

/// `C = alpha·A·B + beta·C` on the calling thread; C is not read if `beta` is zero.
///
/// # Safety
/// All entries lie in memory that is valid for reads; those of C also for writes, by this thread
/// alone, and they are no entries of A or B. The shapes chain.
pub(super) unsafe fn multiply<T: Real>(alpha: T, a: View<T>, b: View<T>, beta: T, c: View<T>) {
    // SAFETY: the caller's promise.
    unsafe { multiply_packing(MOST_PACKED, alpha, a, b, beta, c) }
}

/// The same where `gemm` may pack at most so many rows of A.
///
/// # Safety
/// As [`multiply`].
unsafe fn multiply_packing<T: Real>(
    most_packed: usize,
    alpha: T,
    a: View<T>,
    b: View<T>,
    beta: T,
    c: View<T>,
) {
    // The inner kernels write rows of C; a C of columns is the transposed product.
    let columns = c.layout.row_stride == 1 && c.layout.col_stride != 1;
    let (a, b, c) = if columns { (b.t(), a.t(), c.t()) } else { (a, b, c) };
    let large = c.layout.rows.min(c.layout.cols) >= LEAST;
    let across = b.layout.row_stride == 1 && b.layout.col_stride != 1;
    let along = b.layout.col_stride == 1 && c.layout.rows > most_packed;
    // SAFETY: the caller's promise, which transposing does not touch.
    unsafe {
        match large {
            true if across || (along && a.layout.col_stride == 1) => in_place(alpha, a, b, beta, c),
            true if along && a.layout.row_stride == 1 => in_panels(alpha, a, b, beta, c),
            _ => direct(alpha, a, b, beta, c),
        }
    }
}

/// As `gemm` does it, but for where `k` is cut.
///
/// # Safety
/// As [`multiply`].
unsafe fn direct<T: Real>(alpha: T, a: View<T>, b: View<T>, beta: T, c: View<T>) {
    let (m, n, k) = (c.layout.rows, c.layout.cols, a.layout.cols);
    let depth = slice_depth::<T>(k);
    for deep in (0..k.max(1)).step_by(depth) {
        let (a, b) = (a.part((0, m), (deep, depth)), b.part((deep, depth), (0, n)));
        // SAFETY: parts of the caller's views.
        unsafe { inner(alpha, a, b, if deep == 0 { beta } else { T::ONE }, c) };
    }
}

/// The loops of the picture above, with A where it lies.
///
/// # Safety
/// As [`multiply`]; entries of B lie side by side along its rows or its columns.
unsafe fn in_place<T: Real>(alpha: T, a: View<T>, b: View<T>, beta: T, c: View<T>) {
    // On the stack, so that no thread allocates at a step where it first multiplies.
    let mut scratch = MaybeUninit::<[Line; SCRATCH_BYTES / size_of::<Line>()]>::uninit();
    let scratch = scratch.as_mut_ptr().cast::<T>();
    let (m, k) = (c.layout.rows, a.layout.cols);
    let depth = slice_depth::<T>(k);
    let (rows, cols) = block_shape();
    let across = b.layout.col_stride != 1;
    // That a turned B does not join is how these products have always ended.
    let single = if across { Single::Apart } else { Single::Joins };
    for (col, cols) in blocks(c.layout.cols, cols, single) {
        for deep in (0..k.max(1)).step_by(depth) {
            let beta = if deep == 0 { beta } else { T::ONE };
            // SAFETY: parts of the caller's views; a block is what the scratch has room for.
            unsafe {
                let b = b.part((deep, depth), (col, cols));
                let reused = across || m > rows;
                let b = if reused { gather(b, (scratch, STRIDE)) } else { b };
                let (a, c) = (a.part((0, m), (deep, depth)), c.part((0, m), (col, cols)));
                strip(alpha, a, b, beta, c);
            }
        }
    }
}

/// The loops of the picture above, with rows of A turned.
///
/// # Safety
/// As [`multiply`]; entries of A lie side by side along its columns, those of B along its rows.
unsafe fn in_panels<T: Real>(alpha: T, a: View<T>, b: View<T>, beta: T, c: View<T>) {
    let mut panel = MaybeUninit::<[Line; PANEL_BYTES / size_of::<Line>()]>::uninit();
    let mut scratch = MaybeUninit::<[Line; SCRATCH_BYTES / size_of::<Line>()]>::uninit();
    let panel = panel.as_mut_ptr().cast::<T>();
    let scratch = scratch.as_mut_ptr().cast::<T>();
    let stride = PANEL_STRIDE * size_of::<f32>() / size_of::<T>();
    let (m, k) = (c.layout.rows, a.layout.cols);
    let depth = slice_depth::<T>(k);
    for (row, rows) in blocks(m, PANEL, Single::Joins) {
        for deep in (0..k.max(1)).step_by(depth) {
            let beta = if deep == 0 { beta } else { T::ONE };
            // SAFETY: a part of the caller's view, for which the panel has room.
            let a = unsafe { gather(a.part((row, rows), (deep, depth)), (panel, stride)) };
            for (col, cols) in blocks(c.layout.cols, block_shape().1, Single::Joins) {
                // SAFETY: as in `in_place`.
                unsafe {
                    let b = gather(b.part((deep, depth), (col, cols)), (scratch, STRIDE));
                    strip(alpha, a, b, beta, c.part((row, rows), (col, cols)));
                }
            }
        }
    }
}

/// The treatment of a single row or column that is left over: a product with a vector, which rounds
/// otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Single {
    /// The last whole block takes it with it.
    Joins,
    /// It is a block.
    Apart,
}

/// Start and length of the blocks of `0..len`.
fn blocks(len: usize, width: usize, single: Single) -> impl Iterator<Item = (usize, usize)> {
    let joined = single == Single::Joins && len > width && len % width == 1;
    let count = if joined { len / width } else { len.div_ceil(width) };
    (0..count).map(move |i| {
        let end = if i + 1 == count { len } else { (i + 1) * width };
        (i * width, end - i * width)
    })
}

/// One block of columns, in calls for which `gemm` does not pack.
///
/// # Safety
/// As [`multiply`].
unsafe fn strip<T: Real>(alpha: T, a: View<T>, b: View<T>, beta: T, c: View<T>) {
    let (depth, width) = (b.layout.rows, b.layout.cols);
    for (row, rows) in blocks(c.layout.rows, block_shape().0, Single::Joins) {
        let (a, c) = (a.part((row, rows), (0, depth)), c.part((row, rows), (0, width)));
        // SAFETY: parts of the caller's views.
        unsafe { inner(alpha, a, b, beta, c) };
    }
}

/// Slices of equal depth but the last, a multiple of a vector.
fn slice_depth<T>(k: usize) -> usize {
    let most = DEPTH * size_of::<f32>() / size_of::<T>();
    k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(8).max(8)
}

/// Rows and columns of a call for which `gemm` does not pack: at most 8 of the rows that its
/// kernels take at once (6 with AVX-512, 4 with FMA), whole panels of columns (64 or 24 of f32).
fn block_shape() -> (usize, usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return (48, 128);
    }
    (32, 144)
}

/// Bytes of a turned block.
const SCRATCH_BYTES: usize = DEPTH * STRIDE * size_of::<f32>();

#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

/// Bytes of a turned panel of A, of which the last has one row more.
const PANEL_BYTES: usize = (PANEL + 1) * PANEL_STRIDE * size_of::<f32>();

/// Bytes that a product takes on its thread: `gemm`'s packing of A or a panel on the stack, a block
/// of B there, and what `gemm` fills of its own buffer where a block has an odd width.
pub(super) const THREAD_BYTES: usize = {
    let packed = MOST_PACKED * DEPTH * size_of::<f32>();
    let most = if packed > PANEL_BYTES { packed } else { PANEL_BYTES };
    most + 2 * SCRATCH_BYTES
};

/// A copy with contiguous rows of a view with contiguous rows or columns.
///
/// # Safety
/// `from` may be read, and `to` has room for as many rows, so many elements apart.
unsafe fn gather<T: Real>(from: View<T>, (to, stride): (*mut T, usize)) -> View<T> {
    let Layout { rows, cols, row_stride, col_stride, .. } = from.layout;
    let start = from.first();
    // SAFETY: the caller's promise; `transpose` moves f32 as they are, T has their size there.
    unsafe {
        if col_stride == 1 {
            for row in 0..rows {
                let (from, to) = (start.add(row * row_stride), to.add(row * stride));
                from.copy_to_nonoverlapping(to, cols);
            }
        } else if size_of::<T>() == size_of::<f32>() {
            let (from, to) = (start.cast::<f32>(), to.cast::<f32>());
            transpose::blocks((from, col_stride), (to, stride), rows, cols);
        } else {
            transpose::each((start, col_stride), (to, stride), 0..rows, 0..cols);
        }
    }
    let layout = Layout { offset: 0, rows, cols, row_stride: stride, col_stride: 1 };
    View { start: to, layout }
}

/// One call of `gemm`.
///
/// # Safety
/// As [`multiply`].
unsafe fn inner<T: Real>(alpha: T, a: View<T>, b: View<T>, beta: T, c: View<T>) {
    let (la, lb, lc) = (a.layout, b.layout, c.layout);
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            lc.rows,
            lc.cols,
            la.cols,
            c.first(),
            lc.col_stride as isize,
            lc.row_stride as isize,
            beta != T::ZERO,
            a.first(),
            la.col_stride as isize,
            la.row_stride as isize,
            b.first(),
            lb.col_stride as isize,
            lb.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Noise in −1 ..= 1, exact in f32.
    pub(in crate::gemm) fn values(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    /// A view with gaps, by rows or by columns, and the length that it needs.
    fn spaced(rows: usize, cols: usize, by_columns: bool) -> (Layout, usize) {
        let (outer, inner) = if by_columns { (cols, rows) } else { (rows, cols) };
        let layout = Layout::strided(3, outer, inner, inner + 5);
        (if by_columns { layout.t() } else { layout }, 3 + outer * (inner + 5))
    }

    fn at(layout: Layout, i: usize, j: usize) -> usize {
        layout.offset + i * layout.row_stride + j * layout.col_stride
    }

    /// The product, and what it should be, with the elements between C's rows untouched; with
    /// operands as `gemm` packs them, and in blocks of copies.
    fn check<T: Real>(shape: (usize, usize, usize), by: [bool; 3], beta: f64, within: f64) {
        for packed in [MOST_PACKED, 0] {
            check_packing::<T>(packed, shape, by, beta, within);
        }
    }

    fn check_packing<T: Real>(
        packed: usize,
        (m, n, k): (usize, usize, usize),
        by: [bool; 3],
        beta: f64,
        within: f64,
    ) {
        let [(la, a), (lb, b), (lc, c)] =
            [spaced(m, k, by[0]), spaced(k, n, by[1]), spaced(m, n, by[2])];
        let typed = |values: &[f64]| values.iter().map(|&x| T::of(x)).collect::<Vec<T>>();
        let (a, b, mut before) = (values(a, 1), values(b, 2), values(c, 3));
        if beta == 0.0 {
            // Must not be read.
            (0..m).for_each(|i| (0..n).for_each(|j| before[at(lc, i, j)] = f64::NAN));
        }
        let (ta, tb, mut tc) = (typed(&a), typed(&b), typed(&before));
        let (va, vb) = (View::of(ta.as_ptr(), la), View::of(tb.as_ptr(), lb));
        let vc = View::of(tc.as_mut_ptr(), lc);
        // SAFETY: `spaced` made the layouts with the slices' lengths; C is mutable and its own.
        unsafe { multiply_packing(packed, T::of(0.5), va, vb, T::of(beta), vc) };
        let mut expected = before;
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|p| a[at(la, i, p)] * b[at(lb, p, j)]).sum();
                let c = &mut expected[at(lc, i, j)];
                *c = 0.5 * sum + if beta == 0.0 { 0.0 } else { beta * *c };
            }
        }
        for (i, (got, want)) in tc.iter().zip(&expected).enumerate() {
            let off = (got.to_f64() - want).abs();
            assert!(off < within, "{m}×{n}×{k} {by:?} beta {beta}: element {i} is off by {off}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn products_of_every_shape_and_stride_are_right(
            m in 0_usize..300, n in 1_usize..200, k in 0_usize..300, by: [bool; 3], keep: bool,
        ) {
            let beta = if keep { 2.0 } else { 0.0 };
            check::<f32>((m, n, k), by, beta, 1e-3);
            check::<f64>((m, n, k), by, beta, 1e-11);
        }

        /// Copies of operands are for speed and memory alone.
        #[test]
        fn blocks_have_the_bits_of_one_call(
            m in 32_usize..450, n in 32_usize..300, k in 1_usize..600, turned: bool, keep: bool,
        ) {
            same_as_direct((m, n, k), turned, keep)?;
        }

        /// So that no cut along rows or columns of C can change a bit.
        #[test]
        fn an_element_does_not_depend_on_its_neighbours(
            m in 64_usize..300, n in 64_usize..300, k in 1_usize..600, by: [bool; 3],
        ) {
            same_in_parts((m, n, k), by)?;
        }
    }

    /// Blocks of rows that would leave one over.
    #[test]
    fn an_element_does_not_depend_on_its_neighbours_at_the_end() {
        for m in [97, 145, 65] {
            for by in [[false, true, false], [true, false, true]] {
                same_in_parts((m, 64, 600), by).unwrap();
                same_in_parts((64, m, 600), by).unwrap();
            }
        }
    }

    /// Sizes that would leave one row or column over.
    #[test]
    fn blocks_have_the_bits_of_one_call_at_the_end() {
        for m in [33, 49, 385, 769] {
            for n in [33, 129, 145, 257] {
                for turned in [false, true] {
                    same_as_direct((m, n, 70), turned, true).unwrap();
                }
            }
        }
    }

    /// More rows than `gemm` may pack: the gradient of a vocabulary.
    #[test]
    fn many_rows_have_the_bits_of_one_call() {
        for turned in [false, true] {
            same_as_direct((MOST_PACKED + 76, 161, 530), turned, true).unwrap();
            check::<f32>((MOST_PACKED + 1, 33, 40), [turned, false, false], 2.0, 1e-3);
        }
    }

    /// A product whose B has its entries along rows, in blocks and as `gemm` does it.
    fn same_as_direct(
        (m, n, k): (usize, usize, usize),
        turned: bool,
        keep: bool,
    ) -> Result<(), TestCaseError> {
        let [(la, a), (lb, b), (lc, c)] =
            [spaced(m, k, turned), spaced(k, n, false), spaced(m, n, false)];
        let typed = |len, seed| values(len, seed).iter().map(|&x| x as f32).collect::<Vec<_>>();
        let (a, b, mut blocks) = (typed(a, 1), typed(b, 2), typed(c, 3));
        let mut whole = blocks.clone();
        let beta = if keep { 2.0 } else { 0.0 };
        let (va, vb) = (View::of(a.as_ptr(), la), View::of(b.as_ptr(), lb));
        // SAFETY: as in `check`.
        unsafe {
            multiply_packing(0, 0.5, va, vb, beta, View::of(blocks.as_mut_ptr(), lc));
            direct(0.5, va, vb, beta, View::of(whole.as_mut_ptr(), lc));
        }
        let same = whole.iter().zip(&blocks).all(|(a, b)| a.to_bits() == b.to_bits());
        prop_assert!(same, "{m}×{n}×{k} turned {turned} keep {keep}");
        Ok(())
    }

    /// Four parts of a product by themselves, and the whole in blocks of copies.
    fn same_in_parts((m, n, k): (usize, usize, usize), by: [bool; 3]) -> Result<(), TestCaseError> {
        let [(la, a), (lb, b), (lc, c)] =
            [spaced(m, k, by[0]), spaced(k, n, by[1]), spaced(m, n, by[2])];
        let typed = |len, seed| values(len, seed).iter().map(|&x| x as f32).collect::<Vec<_>>();
        let (a, b, mut whole) = (typed(a, 1), typed(b, 2), typed(c, 3));
        let mut parts = whole.clone();
        let (va, vb) = (View::of(a.as_ptr(), la), View::of(b.as_ptr(), lb));
        // SAFETY: as in `check`; the parts are inside the whole.
        unsafe {
            multiply_packing(0, 1.0, va, vb, 0.0, View::of(whole.as_mut_ptr(), lc));
            for (row, rows) in [(0, 32), (32, m - 32)] {
                for (col, cols) in [(0, 32), (32, n - 32)] {
                    let (a, b) = (va.part((row, rows), (0, k)), vb.part((0, k), (col, cols)));
                    let c = View::of(parts.as_mut_ptr(), lc);
                    multiply(1.0, a, b, 0.0, c.part((row, rows), (col, cols)));
                }
            }
        }
        let same = whole.iter().zip(&parts).all(|(a, b)| a.to_bits() == b.to_bits());
        prop_assert!(same, "{m}×{n}×{k} {by:?}");
        Ok(())
    }

    #[test]
    fn deep_products_are_right() {
        for by in [[false, false, false], [false, true, false], [true, true, false], [true; 3]] {
            for beta in [0.0, 2.0] {
                check::<f32>((300, 70, 2500), by, beta, 1e-2);
                check::<f32>((5, 9, 1300), by, beta, 1e-2);
            }
        }
    }
}
