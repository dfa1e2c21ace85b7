//! The host's code: threads share the blocks of a coarse cut of the product.

use device::{DeviceError, Kernel, Parallel};

use super::calls::{self, View};
use super::{Layout, Matmul, check};
use crate::Real;
use crate::shared_slice::SharedSlice;

impl Matmul {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let Matmul { a, b, c, .. } = self;
        k.flops(2 * a.layout.rows * a.layout.cols * b.layout.cols);
        let (alpha, beta) = (T::of(self.alpha), T::of(self.beta));
        let left = (k.read::<T>(&a.tensor)?, a.layout);
        let right = (k.read::<T>(&b.tensor)?, b.layout);
        let into = (k.write::<T>(&c.tensor)?, c.layout);
        product(k.parallel(), alpha, left, right, beta, into);
        Ok(())
    }
}

/// How a product is cut: along rows or columns of `C`, in blocks of so many.
///
/// A pure function of the shape. Blocks hold at least 2²³ multiply-adds, so that packing and
/// dispatch cost little, and there are at most 8, so that a few threads balance and each packs its
/// shared operand seldom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    by_rows: bool,
    block: usize,
    long: usize,
}

impl Cut {
    pub(crate) fn new(m: usize, n: usize, k: usize) -> Cut {
        const MIN_WORK: usize = 1 << 23;
        const MOST: usize = 8;
        // Rows by the inner kernels' 6 and 4, columns by their 64 (AVX-512) and 24 (FMA) where
        // blocks are long enough, so that none but the last has remainders.
        const ROWS: usize = 48;
        const COLS: [usize; 2] = [64, 192];
        let by_rows = m > n;
        let (long, short) = if by_rows { (m, n) } else { (n, m) };
        let least = MIN_WORK.div_ceil((short * k).max(1));
        let block = least.max(long.div_ceil(MOST));
        let grain = if by_rows { ROWS } else { COLS[usize::from(block > COLS[0])] };
        let block = block.next_multiple_of(grain);
        Cut { by_rows, block: block.min(long.max(1)), long }
    }

    /// For `threads` threads: several share products of 2²¹ multiply-adds, too, in blocks of whole
    /// vectors that come out even where they can. No cut changes a bit.
    fn shared(threads: usize, m: usize, n: usize, k: usize) -> Cut {
        const MIN_WORK: usize = 1 << 21;
        const MOST: usize = 8;
        const GRAINS: [usize; 2] = [64, 48];
        if threads == 1 {
            return Cut::new(m, n, k);
        }
        let by_rows = m > n;
        let (long, short) = if by_rows { (m, n) } else { (n, m) };
        let least = MIN_WORK.div_ceil((short * k).max(1));
        let block = least.max(long.div_ceil(MOST)).next_multiple_of(GRAINS[usize::from(by_rows)]);
        Cut { by_rows, block: block.min(long.max(1)), long }
    }

    /// Number of blocks.
    pub(crate) fn count(self) -> usize {
        self.long.div_ceil(self.block)
    }

    /// Narrows the operands to block `i`.
    pub(crate) fn narrow(self, i: usize, operands: [Layout; 3]) -> [Layout; 3] {
        let [mut a, mut b, mut c] = operands;
        let (start, end) = (i * self.block, self.long.min((i + 1) * self.block));
        if self.by_rows {
            a.offset += start * a.row_stride;
            c.offset += start * c.row_stride;
            (a.rows, c.rows) = (end - start, end - start);
        } else {
            b.offset += start * b.col_stride;
            c.offset += start * c.col_stride;
            (b.cols, c.cols) = (end - start, end - start);
        }
        [a, b, c]
    }
}

/// The product inside a kernel, on slices; panics if a layout leaves its slice.
pub fn product<T: Real>(
    parallel: &Parallel,
    alpha: T,
    (a, la): (&[T], Layout),
    (b, lb): (&[T], Layout),
    beta: T,
    (c, lc): (&mut [T], Layout),
) {
    assert_that_they_chain((a.len(), la), (b.len(), lb), (c.len(), lc));
    let cut = Cut::shared(parallel.threads(), lc.rows, lc.cols, la.cols);
    let c = SharedSlice::new(c);
    parallel.each(cut.count(), |i| {
        let [la, lb, lc] = cut.narrow(i, [la, lb, lc]);
        // SAFETY: the layouts were checked and cut to a block; block i alone writes its part of C.
        unsafe { serial_into(alpha, (a, la), (b, lb), beta, (c.as_ptr(), lc)) };
    });
}

/// Asserts the condition that a caller inside a kernel has to keep.
fn assert_that_they_chain(a: (usize, Layout), b: (usize, Layout), c: (usize, Layout)) {
    let chained = check("product", a, b, c);
    assert!(chained.is_ok(), "{chained:?}");
}

/// The product on the calling thread.
pub fn serial<T: Real>(
    alpha: T,
    (a, la): (&[T], Layout),
    (b, lb): (&[T], Layout),
    beta: T,
    (c, lc): (&mut [T], Layout),
) {
    assert_that_they_chain((a.len(), la), (b.len(), lb), (c.len(), lc));
    // SAFETY: the layouts were checked; C is borrowed mutably.
    unsafe { serial_into(alpha, (a, la), (b, lb), beta, (c.as_mut_ptr(), lc)) };
}

/// As [`serial`], into a part of a slice that other threads write elsewhere.
///
/// # Safety
/// No other thread touches the elements of `lc` meanwhile.
pub(crate) unsafe fn serial_shared<T: Real>(
    alpha: T,
    (a, la): (&[T], Layout),
    (b, lb): (&[T], Layout),
    beta: T,
    (c, lc): (&SharedSlice<T>, Layout),
) {
    assert_that_they_chain((a.len(), la), (b.len(), lb), (c.len(), lc));
    // SAFETY: the layouts were checked; exclusiveness is the caller's promise.
    unsafe { serial_into(alpha, (a, la), (b, lb), beta, (c.as_ptr(), lc)) };
}

/// # Safety
/// The layouts lie inside their slices, `c` points to the slice of `lc`, and no other thread
/// touches that part of it meanwhile.
unsafe fn serial_into<T: Real>(
    alpha: T,
    (a, la): (&[T], Layout),
    (b, lb): (&[T], Layout),
    beta: T,
    (c, lc): (*mut T, Layout),
) {
    let (a, b) = (View::of(a.as_ptr(), la), View::of(b.as_ptr(), lb));
    // SAFETY: the caller's promise; A and B are borrowed shared.
    unsafe { calls::multiply(alpha, a, b, beta, View::of(c, lc)) };
}
