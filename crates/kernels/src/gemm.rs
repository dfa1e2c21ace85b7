//! Matrix products.
//!
//! The inner kernels are those of the `gemm` crate, called on blocks that depend on the product's
//! shape alone (`gemm/calls.rs`). Threads share the blocks of a coarser cut (`Cut`).

mod calls;
mod transpose;

use calls::View;
use device::{Parallel, Stream, Tensor};

use crate::error::dispatch;
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Real};

/// A matrix inside a tensor's elements: `rows × cols` from `offset`, with strides in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl Layout {
    /// A dense row-major matrix.
    pub fn dense(rows: usize, cols: usize) -> Layout {
        Layout { offset: 0, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A row-major matrix whose rows are `row_stride` elements apart.
    pub fn strided(offset: usize, rows: usize, cols: usize, row_stride: usize) -> Layout {
        Layout { offset, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose of the same elements.
    pub fn t(self) -> Layout {
        Layout {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// One past the last element.
    fn end(self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return self.offset;
        }
        let down = (self.rows - 1).saturating_mul(self.row_stride);
        let along = (self.cols - 1).saturating_mul(self.col_stride);
        self.offset.saturating_add(down).saturating_add(along).saturating_add(1)
    }

    /// Whether no two entries are one element: rows lie apart, or columns do.
    fn is_injective(self) -> bool {
        let span = |len: usize, stride: usize| len.saturating_sub(1).saturating_mul(stride);
        let apart = |outer: usize, outer_stride: usize, inner: usize, inner_stride: usize| {
            (inner <= 1 || inner_stride > 0)
                && (outer <= 1 || outer_stride > span(inner, inner_stride))
        };
        apart(self.rows, self.row_stride, self.cols, self.col_stride)
            || apart(self.cols, self.col_stride, self.rows, self.row_stride)
    }
}

/// What decides how products round on this CPU, beside their shapes: the instruction set that the
/// inner kernels use. All other arithmetic of this crate has the same bits on every CPU.
pub fn arithmetic() -> String {
    format!("{} {}", std::env::consts::ARCH, instructions())
}

/// The set that `gemm` chooses.
#[cfg(target_arch = "x86_64")]
fn instructions() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        "avx512f"
    } else if std::arch::is_x86_feature_detected!("fma") {
        "fma"
    } else {
        "sse2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> &'static str {
    "baseline"
}

/// Bytes that a thread keeps to pack operands in, whatever their shapes.
pub fn packing_bytes() -> usize {
    calls::THREAD_BYTES
}

/// `C = alpha·A·B + beta·C`, where `A` is `[m, k]`, `B` is `[k, n]` and `C` is `[m, n]`.
///
/// # Errors
/// Shapes that do not chain, a view outside its tensor, mixed types.
pub fn matmul(
    stream: &Stream,
    alpha: f64,
    (a, la): (&Tensor, Layout),
    (b, lb): (&Tensor, Layout),
    beta: f64,
    (c, lc): (&Tensor, Layout),
) -> Result<(), KernelError> {
    check("matmul", (a.len(), la), (b.len(), lb), (c.len(), lc))?;
    let (a, b, c) = (a.clone(), b.clone(), c.clone());
    dispatch!("matmul", c.dtype(), T => {
        stream.launch("matmul", move |k| {
            k.flops(2 * la.rows * la.cols * lb.cols);
            let (a, b, c) = (k.read::<T>(&a)?, k.read::<T>(&b)?, k.write::<T>(&c)?);
            product(k.parallel(), T::of(alpha), (a, la), (b, lb), T::of(beta), (c, lc));
            Ok(())
        })?;
        Ok(())
    })
}

fn check(
    kernel: &'static str,
    (a_len, a): (usize, Layout),
    (b_len, b): (usize, Layout),
    (c_len, c): (usize, Layout),
) -> Result<(), KernelError> {
    if a.cols != b.rows || a.rows != c.rows || b.cols != c.cols {
        let message = format!("shapes do not chain: {a:?} · {b:?} -> {c:?}");
        return Err(KernelError::Argument { kernel, message });
    }
    if !c.is_injective() {
        let message = format!("entries of the result share elements: {c:?}");
        return Err(KernelError::Argument { kernel, message });
    }
    for (operand, len, layout) in [("a", a_len, a), ("b", b_len, b), ("c", c_len, c)] {
        if layout.end() > len {
            let (got, expected) = (len, layout.end());
            return Err(KernelError::Operand { kernel, operand, got, expected });
        }
    }
    Ok(())
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
    let chained = check("product", (a.len(), la), (b.len(), lb), (c.len(), lc));
    assert!(chained.is_ok(), "{chained:?}");
    let cut = Cut::new(lc.rows, lc.cols, la.cols);
    let c = SharedSlice::new(c);
    parallel.each(cut.count(), |i| {
        let [la, lb, lc] = cut.narrow(i, [la, lb, lc]);
        // SAFETY: the layouts were checked and cut to a block; block i alone writes its part of C.
        unsafe { serial_into(alpha, (a, la), (b, lb), beta, (c.as_ptr(), lc)) };
    });
}

/// The product on the calling thread.
pub fn serial<T: Real>(
    alpha: T,
    (a, la): (&[T], Layout),
    (b, lb): (&[T], Layout),
    beta: T,
    (c, lc): (&mut [T], Layout),
) {
    let chained = check("product", (a.len(), la), (b.len(), lb), (c.len(), lc));
    assert!(chained.is_ok(), "{chained:?}");
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
    let chained = check("product", (a.len(), la), (b.len(), lb), (c.len(), lc));
    assert!(chained.is_ok(), "{chained:?}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use device::Device;
    use proptest::prelude::*;

    fn values(len: usize, seed: u64) -> Vec<f32> {
        calls::tests::values(len, seed).into_iter().map(|x| x as f32).collect()
    }

    fn run(threads: usize, (m, n, k): (usize, usize, usize), ta: bool, tb: bool) -> Vec<f32> {
        let device = Device::cpu(threads).unwrap();
        let a = device.tensor(&[m, k], &values(m * k, 1)).unwrap();
        let b = device.tensor(&[k, n], &values(k * n, 2)).unwrap();
        let c = device.tensor(&[m, n], &values(m * n, 3)).unwrap();
        let la = if ta { Layout::dense(k, m).t() } else { Layout::dense(m, k) };
        let lb = if tb { Layout::dense(n, k).t() } else { Layout::dense(k, n) };
        let stream = device.stream();
        matmul(&stream, 0.5, (&a, la), (&b, lb), 2.0, (&c, Layout::dense(m, n))).unwrap();
        stream.to_vec(&c).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn matches_the_definition(
            m in 1_usize..70, n in 1_usize..70, k in 1_usize..70, ta: bool, tb: bool,
        ) {
            let (a, b, c) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            let got = run(1, (m, n, k), ta, tb);
            for i in 0..m {
                for j in 0..n {
                    let at = |p: usize| if ta { a[p * m + i] } else { a[i * k + p] };
                    let bt = |p: usize| if tb { b[j * k + p] } else { b[p * n + j] };
                    let sum: f64 = (0..k).map(|p| f64::from(at(p)) * f64::from(bt(p))).sum();
                    let want = 0.5 * sum + 2.0 * f64::from(c[i * n + j]);
                    prop_assert!((f64::from(got[i * n + j]) - want).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        for shape in [(256, 700, 300), (1000, 70, 513), (64, 5000, 64), (333, 333, 333)] {
            let one = run(1, shape, false, true);
            for threads in 2..4 {
                let more = run(threads, shape, false, true);
                let same = one.iter().zip(&more).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{shape:?} with {threads} threads");
            }
        }
    }

    #[test]
    fn a_view_outside_its_tensor_is_refused() {
        let device = Device::cpu(1).unwrap();
        let a = device.zeros(&[4, 4], device::DType::F32).unwrap();
        let c = device.zeros(&[4, 4], device::DType::F32).unwrap();
        let good = Layout::dense(4, 4);
        let bad = Layout::strided(1, 4, 4, 4);
        let result = matmul(&device.stream(), 1.0, (&a, good), (&a, bad), 0.0, (&c, good));
        assert!(matches!(result, Err(KernelError::Operand { operand: "b", .. })));
        let overlapping = Layout::strided(0, 4, 4, 3);
        let far = Layout { row_stride: usize::MAX / 2, ..good };
        for bad in [overlapping, Layout { col_stride: 0, ..good }, far] {
            let result = matmul(&device.stream(), 1.0, (&a, good), (&a, good), 0.0, (&c, bad));
            assert!(result.is_err(), "{bad:?}");
        }
    }
}
