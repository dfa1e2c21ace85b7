//! The CPU executor of a [`Program`], in f32 or f64.
//!
//! Operations run one after another, each shared by the threads. With 16-bit storage every matrix
//! of the workspace is rounded when it is written, so that results carry the rounding of a device,
//! but for the order of sums.

use device::{DType, Parallel};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::method::Storage;
use super::norm::Scale;
use super::program::{AOL_LEAST, INPUT, Kind, Op, Product, Program, Register};
use super::square::{self, CHUNK, TILE, Term};
use crate::gemm::{Cut, Layout, serial_shared};
use crate::shared_slice::SharedSlice;
use crate::{Entries, Real};

/// The most registers of a program: 2 of X and 5 of S.
const REGISTERS: usize = 7;

/// Elements of workspace: the registers, without an X that memory of the result can hold, and the
/// factors of a rescale.
pub(super) fn workspace(program: &Program, is_dense: bool) -> usize {
    let (n, m) = (program.short, program.long);
    let xs = program.x_registers - usize::from(is_dense && program.spare_x().is_some());
    xs * n * m + program.s_registers * n * n + if rescales(program) { n } else { 0 }
}

fn rescales(program: &Program) -> bool {
    program.stages.iter().flatten().any(|op| matches!(op, Op::Aol { .. }))
}

/// The caller's matrices, `[rows, cols]` each.
pub(super) struct Caller<'a, T> {
    pub x: &'a [T],
    pub x_stride: usize,
    pub out: &'a SharedSlice<'a, T>,
    pub offset: usize,
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
    /// Factor on the result.
    pub scale: f64,
}

impl<T: Real> Caller<'_, T> {
    fn is_tall(&self) -> bool {
        self.rows > self.cols
    }

    /// The result, short side first.
    fn result(&self) -> Layout {
        let layout = Layout::strided(self.offset, self.rows, self.cols, self.stride);
        if self.is_tall() { layout.t() } else { layout }
    }

    /// Sets every element of the result.
    pub fn fill(&self, value: T) {
        for row in 0..self.rows {
            let start = self.offset + row * self.stride;
            // SAFETY: results of a batch are disjoint, and this thread has this one.
            unsafe { self.out.part(start..start + self.cols) }.fill(value);
        }
    }
}

/// Runs `program` on one matrix.
pub(super) fn run<T: Real>(
    parallel: &Parallel,
    program: &Program,
    storage: Storage,
    caller: &Caller<T>,
    scale: Scale<T>,
    work: &mut [T],
) {
    let (n, m) = (program.short, program.long);
    let spare = program.spare_x().filter(|_| caller.stride == caller.cols);
    let mut lane = Lane { parallel, program, storage, caller, registers: Default::default() };
    let mut work = work;
    for x in 0..program.x_registers {
        lane.registers[x] = match spare == Some(x) {
            // SAFETY: the dense result is this matrix's alone; it is written again, through
            // `out`, only by the last operation, which does not read this register.
            true => unsafe { caller.out.part(caller.offset..caller.offset + n * m) },
            false => work.split_off_mut(..n * m).unwrap_or_default(),
        };
    }
    for s in 0..program.s_registers {
        lane.registers[program.x_registers + s] = work.split_off_mut(..n * n).unwrap_or_default();
    }
    lane.cast(scale);
    for op in program.stages.iter().flatten() {
        match op {
            Op::Product(product) => lane.product(product),
            Op::Aol { x, gram } => lane.rescale(*x, *gram, work),
        }
        // A launch on many or large matrices takes longer than anybody waits for a sign of work.
        device::work::mark();
    }
}

/// One matrix on its way.
struct Lane<'a, T> {
    parallel: &'a Parallel,
    program: &'a Program,
    storage: Storage,
    caller: &'a Caller<'a, T>,
    /// X registers, then S registers.
    registers: [&'a mut [T]; REGISTERS],
}

impl<T: Real> Lane<'_, T> {
    fn index(&self, register: Register) -> usize {
        match register {
            Register::X(x) => x,
            Register::S(s) => self.program.x_registers + s,
            Register::Out => unreachable!("no operation reads the result"),
        }
    }

    fn at(&self, register: Register) -> (&[T], Layout) {
        let Program { short: n, long: m, .. } = *self.program;
        let cols = if matches!(register, Register::X(_)) { m } else { n };
        (&*self.registers[self.index(register)], Layout::dense(n, cols))
    }

    /// The input over its norm, short side first.
    fn cast(&mut self, scale: Scale<T>) {
        let Caller { x, x_stride, rows, cols, .. } = *self.caller;
        let into = self.index(INPUT);
        let to = &mut *self.registers[into];
        if self.caller.is_tall() {
            transpose(self.parallel, (rows, cols, x_stride), x, to, |x| scale.apply(x));
        } else {
            let rows = (CHUNK / cols.max(1)).max(1);
            self.parallel.chunks(to, rows * cols, |chunk, to| {
                crate::math::vectorize!(|| {
                    for (i, to) in to.chunks_exact_mut(cols).enumerate() {
                        let x = &x[(chunk * rows + i) * x_stride..][..cols];
                        to.iter_mut().zip(x).for_each(|(y, &x)| *y = scale.apply(x));
                    }
                });
            });
        }
        round(self.parallel, self.storage, to);
    }

    fn product(&mut self, product: &Product) {
        if product.into == Register::Out {
            return self.last(product);
        }
        let into = self.index(product.into);
        let taken = std::mem::take(&mut self.registers[into]);
        let (left, right) = (self.at(product.left), self.at(product.right));
        let addend = product.addend.map(|(beta, register)| (T::of(beta), self.at(register).0));
        let (alpha, gamma) = (T::of(product.alpha), T::of(product.gamma));
        let parallel = self.parallel;
        match product.kind {
            Kind::Combine => {
                let addend = addend.unwrap_or((T::ZERO, left.0));
                square::combine(parallel, self.program.short, addend, gamma, taken);
            }
            Kind::Apply => apply(parallel, alpha, left, right, addend, taken),
            Kind::Gram | Kind::Square => {
                let turned = product.kind == Kind::Gram;
                let right = if turned { (right.0, right.1.t()) } else { right };
                let term = Term { alpha, left, right, addend, gamma };
                match product.entries {
                    Entries::Triangle => term.triangle(parallel, taken),
                    Entries::All => term.full(parallel, taken),
                }
            }
        }
        round(self.parallel, self.storage, taken);
        self.registers[into] = taken;
    }

    /// The last product, into the caller's matrix.
    fn last(&self, product: &Product) {
        let scale = self.caller.scale;
        let ((a, mut la), (b, lb)) = (self.at(product.left), self.at(product.right));
        let to = self.caller.result();
        if self.caller.is_tall() {
            // The same matrix, as it is symmetric; so its rows are read where they are contiguous.
            la = la.t();
        }
        let beta = product.addend.map_or(0.0, |(beta, register)| {
            self.place(self.at(register).0, to);
            scale * beta
        });
        let (alpha, beta) = (T::of(scale * product.alpha), T::of(beta));
        let cut = Cut::new(to.rows, to.cols, la.cols);
        self.parallel.each(cut.count(), |i| {
            let [la, lb, to] = cut.narrow(i, [la, lb, to]);
            // SAFETY: block i alone writes its part of this matrix's result, and the registers are
            // not part of it: `spare_x` is none that the last operation reads.
            unsafe { serial_shared(alpha, (a, la), (b, lb), beta, (self.caller.out, to)) };
        });
    }

    /// Copies a dense X to where the result belongs.
    fn place(&self, x: &[T], to: Layout) {
        assert!(
            to.offset + (to.rows - 1) * to.row_stride + (to.cols - 1) * to.col_stride
                < self.caller.out.len()
        );
        self.parallel.each(to.rows, |i| {
            for (j, &x) in x[i * to.cols..][..to.cols].iter().enumerate() {
                // SAFETY: inside the result, as asserted; row i is this task's.
                unsafe {
                    *self
                        .caller
                        .out
                        .as_ptr()
                        .add(to.offset + i * to.row_stride + j * to.col_stride) = x;
                }
            }
        });
    }

    /// Scales rows so that almost-orthogonality bounds the singular values by 1.
    fn rescale(&mut self, x: Register, gram: Register, factors: &mut [T]) {
        let Program { short: n, long: m, .. } = *self.program;
        let (x, gram) = (self.index(x), self.index(gram));
        let factors = &mut factors[..n];
        let from = &*self.registers[gram];
        for (factor, row) in factors.iter_mut().zip(from.chunks_exact(n)) {
            let sum = crate::math::vectorize!(|| crate::math::sum([row], |[x]| x.abs()));
            *factor = T::ONE / sum.max(T::of(AOL_LEAST)).sqrt();
        }
        let factors = &*factors;
        self.parallel.chunks(self.registers[x], m, |i, row| {
            row.iter_mut().for_each(|x| *x *= factors[i]);
        });
        self.parallel.chunks(self.registers[gram], n, |i, row| {
            let all = row.iter_mut().zip(factors);
            all.for_each(|(x, &factor)| *x *= factors[i] * factor);
        });
        for register in [x, gram] {
            round(self.parallel, self.storage, self.registers[register]);
        }
    }
}

/// `into = alpha·S·X + beta·addend`.
fn apply<T: Real>(
    parallel: &Parallel,
    alpha: T,
    left: (&[T], Layout),
    right: (&[T], Layout),
    addend: Option<(T, &[T])>,
    into: &mut [T],
) {
    if let Some((_, addend)) = addend {
        square::copy(parallel, addend, into);
    }
    let beta = addend.map_or(T::ZERO, |(beta, _)| beta);
    let to = Layout::dense(left.1.rows, right.1.cols);
    crate::gemm::product(parallel, alpha, left, right, beta, (into, to));
}

/// `to = fromᵀ` with `map` on each element; `from` is `[rows, cols]`, its rows `stride` apart.
fn transpose<T: Real>(
    parallel: &Parallel,
    (rows, cols, stride): (usize, usize, usize),
    from: &[T],
    to: &mut [T],
    map: impl Fn(T) -> T + Sync + Send,
) {
    // A tile of the result, so that one cache line of the source is used whole.
    let tile = TILE * rows;
    let tiles = (CHUNK / tile).max(1);
    parallel.chunks(to, tiles * tile, |chunk, to| {
        for (index, to) in to.chunks_mut(tile).enumerate() {
            let (start, width) = ((chunk * tiles + index) * TILE, to.len() / rows);
            debug_assert!(start + width <= cols);
            for i in 0..rows {
                for (j, &x) in from[i * stride + start..][..width].iter().enumerate() {
                    to[j * rows + i] = map(x);
                }
            }
        }
    });
}

/// Rounds every element to the nearest of the storage type.
fn round<T: Real>(parallel: &Parallel, storage: Storage, x: &mut [T]) {
    if storage == Storage::F32 {
        return;
    }
    assert_eq!(T::DTYPE, DType::F32, "f64 is not rounded");
    parallel.chunks(x, CHUNK, |_, x| {
        let x: &mut [f32] = bytemuck::cast_slice_mut(x);
        for x in x.chunks_mut(256) {
            match storage {
                Storage::F32 => {}
                Storage::Bf16 => {
                    let mut short = [bf16::ZERO; 256];
                    short[..x.len()].convert_from_f32_slice(x);
                    short[..x.len()].convert_to_f32_slice(x);
                }
                Storage::F16 => {
                    let mut short = [f16::ZERO; 256];
                    short[..x.len()].convert_from_f32_slice(x);
                    short[..x.len()].convert_to_f32_slice(x);
                }
            }
        }
    });
}
