//! Symmetric `n × n` matrices: products that compute one triangle, and what is done to each
//! element.

use device::Parallel;

use crate::Real;
use crate::gemm::{Layout, product, serial_shared};
use crate::shared_slice::SharedSlice;

/// Elements of a chunk of an elementwise loop.
pub(super) const CHUNK: usize = 1 << 15;

/// Rows of a panel: a pure function of the side.
///
/// At most 8 panels keep the products large; the work beyond the triangle is 1/8 of it then. A
/// small matrix is one panel: its products cost less than sharing them.
fn panel(n: usize) -> usize {
    const GRAIN: usize = 48;
    match n {
        0..=192 => n,
        _ => n.div_ceil(8).next_multiple_of(GRAIN).max(2 * GRAIN),
    }
}

/// A product with an `n × n` result.
#[derive(Clone, Copy)]
pub(super) struct Term<'a, T> {
    pub alpha: T,
    pub left: (&'a [T], Layout),
    pub right: (&'a [T], Layout),
    /// Factor and matrix.
    pub addend: Option<(T, &'a [T])>,
    /// Added to the diagonal after everything else.
    pub gamma: T,
}

impl<T: Real> Term<'_, T> {
    fn beta(&self) -> T {
        self.addend.map_or(T::ZERO, |(beta, _)| beta)
    }

    /// The result in full.
    pub fn full(&self, parallel: &Parallel, into: &mut [T]) {
        let n = self.left.1.rows;
        if let Some((_, addend)) = self.addend {
            copy(parallel, addend, into);
        }
        let to = Layout::dense(n, n);
        product(parallel, self.alpha, self.left, self.right, self.beta(), (into, to));
        if self.gamma != T::ZERO {
            (0..n).for_each(|i| into[i * n + i] += self.gamma);
        }
    }

    /// The result where it is known to be symmetric: panels of whole block rows up to the diagonal,
    /// then the mirror image.
    pub fn triangle(&self, parallel: &Parallel, into: &mut [T]) {
        let ((a, la), (b, lb)) = (self.left, self.right);
        let n = la.rows;
        let panel = panel(n);
        let panels = n.div_ceil(panel.max(1));
        let into = SharedSlice::new(into);
        parallel.each(panels, |turn| {
            // The long panels first.
            let i = panels - 1 - turn;
            let (start, end) = (i * panel, n.min((i + 1) * panel));
            if let Some((_, addend)) = self.addend {
                for row in start..end {
                    // SAFETY: panel i alone writes these rows.
                    let to = unsafe { into.part(row * n..row * n + end) };
                    to.copy_from_slice(&addend[row * n..row * n + end]);
                }
            }
            let (mut la, mut lb) = (la, lb);
            la.offset += start * la.row_stride;
            (la.rows, lb.cols) = (end - start, end);
            let to = Layout::strided(start * n, end - start, end, n);
            // SAFETY: panel i alone writes these rows.
            unsafe { serial_shared(self.alpha, (a, la), (b, lb), self.beta(), (&into, to)) };
        });
        mirror(parallel, n, self.gamma, &into);
    }
}

pub(super) fn copy<T: Real>(parallel: &Parallel, from: &[T], to: &mut [T]) {
    parallel.chunks(to, CHUNK, |i, to| to.copy_from_slice(&from[i * CHUNK..][..to.len()]));
}

/// Rows that are written together: one cache line of the source is used whole.
pub(super) const TILE: usize = 16;

/// Writes the lower triangle's mirror image above the diagonal, and adds to the diagonal.
fn mirror<T: Real>(parallel: &Parallel, n: usize, diagonal: T, matrix: &SharedSlice<T>) {
    assert!(n * n <= matrix.len(), "{n}×{n} of {}", matrix.len());
    let tiles = (CHUNK / (TILE * n).max(1)).max(1);
    let rows = tiles * TILE;
    parallel.each(n.div_ceil(rows), |chunk| {
        let (first, end) = (chunk * rows, n.min((chunk + 1) * rows));
        for start in (first..end).step_by(TILE) {
            let stop = end.min(start + TILE);
            for j in start..n {
                // Column j above the diagonal is a run of row j below it. Nobody writes below, and
                // the rows start..stop above it are written here alone.
                let (from, to) = (j * n + start, j * n + j.min(stop));
                // SAFETY: a run below the diagonal; nobody writes there.
                let run = unsafe { &*matrix.part(from..to) };
                for (i, &x) in run.iter().enumerate() {
                    // SAFETY: inside the n × n elements, above the diagonal.
                    unsafe { *matrix.as_ptr().add((start + i) * n + j) = x };
                }
                if j < stop {
                    // SAFETY: the diagonal of these rows is touched here alone.
                    unsafe { matrix.part(j * n + j..j * n + j + 1)[0] += diagonal };
                }
            }
        }
    });
}

/// `into = beta·addend + gamma·I`.
pub(super) fn combine<T: Real>(
    parallel: &Parallel,
    n: usize,
    (beta, addend): (T, &[T]),
    gamma: T,
    into: &mut [T],
) {
    parallel.chunks(into, CHUNK, |i, into| {
        let from = &addend[i * CHUNK..][..into.len()];
        into.iter_mut().zip(from).for_each(|(into, &x)| *into = beta * x);
    });
    (0..n).for_each(|i| into[i * n + i] += gamma);
}
