//! Products of each expert's rows with its matrix: `y = x·Wᵀ`, and the two of its gradient.
//!
//! Expert `e` has rows `offsets[e] .. offsets[e+1]`, and matrix `e` of `W [E, Out, In]`. Blocks of
//! all experts are shared out over the threads.

use device::{DType, DeviceError, Kernel, Tensor};

use crate::gemm::{Cut, Layout, serial_shared};
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_dtype, expect_real};
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Onto, Real};

/// `y = x·Wᵀ`, expert by expert.
///
/// All operands but `offsets` are f32, or all are f64.
pub struct ProductForward {
    /// `[E + 1]`, u32.
    pub offsets: Tensor,
    /// `[R, In]`.
    pub x: Tensor,
    /// `[E, Out, In]`, under any shape.
    pub w: Tensor,
    /// Written, `[R, Out]`.
    pub y: Tensor,
}

impl Op for ProductForward {
    const NAME: &'static str = "moe_product_forward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.offsets, &self.x, &self.w, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        self.experts().check(Self::NAME, [("y", &self.y), ("x", &self.x), ("w", &self.w)])
    }

    host_by_type!(y);
}

impl ProductForward {
    fn experts(&self) -> Experts<'_> {
        Experts::new(&self.offsets, &self.y, &self.x)
    }

    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let of = |part: Part| [part.x, part.w.t(), part.y];
        self.experts().multiply::<T>(k, of, [&self.x, &self.w, &self.y], Onto::Overwrite)
    }
}

/// `dx = dy·W`, expert by expert.
///
/// All operands but `offsets` are f32, or all are f64.
pub struct ProductInput {
    /// `[E + 1]`, u32.
    pub offsets: Tensor,
    /// `[R, Out]`.
    pub dy: Tensor,
    /// `[E, Out, In]`, under any shape.
    pub w: Tensor,
    /// Written, `[R, In]`.
    pub dx: Tensor,
}

impl Op for ProductInput {
    const NAME: &'static str = "moe_product_input";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.offsets, &self.dy, &self.w, &self.dx].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        self.experts().check(Self::NAME, [("dy", &self.dy), ("dx", &self.dx), ("w", &self.w)])
    }

    host_by_type!(dx);
}

impl ProductInput {
    fn experts(&self) -> Experts<'_> {
        Experts::new(&self.offsets, &self.dy, &self.dx)
    }

    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let of = |part: Part| [part.y, part.w, part.x];
        self.experts().multiply::<T>(k, of, [&self.dy, &self.w, &self.dx], Onto::Overwrite)
    }
}

/// `dW = dyᵀ·x`, expert by expert; of an expert without rows it is zero.
///
/// All operands but `offsets` are f32, or all are f64.
pub struct ProductWeight {
    /// `[E + 1]`, u32.
    pub offsets: Tensor,
    /// `[R, Out]`.
    pub dy: Tensor,
    /// `[R, In]`.
    pub x: Tensor,
    /// Written, `[E, Out, In]`, under any shape.
    pub dw: Tensor,
    pub dw_onto: Onto,
}

impl Op for ProductWeight {
    const NAME: &'static str = "moe_product_weight";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.offsets, &self.dy, &self.x, &self.dw].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        self.experts().check(Self::NAME, [("dy", &self.dy), ("x", &self.x), ("dw", &self.dw)])
    }

    host_by_type!(dw);
}

impl ProductWeight {
    fn experts(&self) -> Experts<'_> {
        Experts::new(&self.offsets, &self.dy, &self.x)
    }

    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let of = |part: Part| [part.y.t(), part.x, part.w];
        self.experts().multiply::<T>(k, of, [&self.dy, &self.x, &self.dw], self.dw_onto)
    }
}

/// Experts, the rows of all of them, and the widths of their matrices.
struct Experts<'a> {
    offsets: &'a Tensor,
    count: usize,
    rows: usize,
    out_width: usize,
    in_width: usize,
}

/// The operands and result of one expert, in elements of the whole operands.
struct Part {
    /// `[its rows, In]`.
    x: Layout,
    /// `[Out, In]`.
    w: Layout,
    /// `[its rows, Out]`.
    y: Layout,
}

impl<'a> Experts<'a> {
    /// `y [R, Out]` and `x [R, In]`, or their gradients.
    fn new(offsets: &'a Tensor, y: &Tensor, x: &Tensor) -> Experts<'a> {
        let (count, rows) = (offsets.len().saturating_sub(1), y.dim(0));
        Experts { offsets, count, rows, out_width: y.dim(1), in_width: x.dim(1) }
    }

    /// Operands in the places of `y`, `x` and `W`.
    fn check(
        &self,
        kernel: &'static str,
        [y, x, w]: [(&'static str, &Tensor); 3],
    ) -> Result<(), KernelError> {
        expect_real(kernel, w.1)?;
        expect_dtype(kernel, "offsets", self.offsets, DType::U32)?;
        let lens = [
            (y.0, y.1, self.rows * self.out_width),
            (x.0, x.1, self.rows * self.in_width),
            (w.0, w.1, self.count * self.out_width * self.in_width),
        ];
        expect_all(kernel, w.1.dtype(), lens)
    }

    fn part(&self, offsets: &[u32], expert: usize) -> Part {
        let (start, end) = (offsets[expert] as usize, offsets[expert + 1] as usize);
        let rows = |width| Layout::strided(start * width, end - start, width, width);
        let (out, input) = (self.out_width, self.in_width);
        let w = Layout::strided(expert * out * input, out, input, input);
        Part { x: rows(input), w, y: rows(out) }
    }

    /// `C = A·B` of every expert, with the operands that `of` gives for its part.
    fn multiply<T: Real>(
        &self,
        k: &Kernel,
        of: impl Fn(Part) -> [Layout; 3] + Sync,
        [a, b, c]: [&Tensor; 3],
        c_onto: Onto,
    ) -> Result<(), DeviceError> {
        let (rows, beta) = (self.rows, T::of(c_onto.beta()));
        let offsets = k.read::<u32>(self.offsets)?;
        if !offsets.is_sorted() || offsets.last().is_some_and(|&end| end as usize > rows) {
            return Err(k.error(format!("offsets {offsets:?} do not divide {rows} rows")));
        }
        let (a, b) = (k.read::<T>(a)?, k.read::<T>(b)?);
        let c = SharedSlice::new(k.write::<T>(c)?);
        let routed = offsets.last().map_or(0, |&end| end as usize);
        k.flops(2 * routed * self.out_width * self.in_width);
        let cut = |expert: usize| {
            let [a, _, c] = of(self.part(offsets, expert));
            Cut::new(c.rows, c.cols, a.cols)
        };
        let total: usize = (0..self.count).map(|expert| cut(expert).count()).sum();
        k.parallel().each(total, |task| {
            let (mut expert, mut block) = (0, task);
            while block >= cut(expert).count() {
                block -= cut(expert).count();
                expert += 1;
            }
            let [la, lb, lc] = cut(expert).narrow(block, of(self.part(offsets, expert)));
            // SAFETY: blocks of one expert are disjoint, and so are the experts' outputs.
            unsafe { serial_shared(T::ONE, (a, la), (b, lb), beta, (&c, lc)) };
        });
        Ok(())
    }
}
