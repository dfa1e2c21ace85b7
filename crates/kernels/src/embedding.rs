//! Tables looked up by index: of tokens, and of positions.

use device::{DType, DeviceError, Kernel, Tensor};
use half::bf16;

use crate::error::expect;
use crate::math::vectorize;
use crate::op::{Inside, Op, host_by_type};
use crate::operands::{expect_all, expect_dtype, expect_real};
use crate::shared_slice::SharedSlice;
use crate::{KernelError, Onto, Real};

/// Rows that one parallel task gathers.
const ROWS: usize = 64;

/// Columns that one parallel task adds up.
const COLUMNS: usize = 64;

/// `y[n] = table[tokens[n]]`.
///
/// A token outside the table is an error of the kernel.
pub struct Gather {
    /// `[N]`, u32.
    pub tokens: Tensor,
    /// `[V, D]`, of the type of `y` or bf16.
    pub table: Tensor,
    /// Written, `[N, D]`, f32 or f64.
    pub y: Tensor,
}

impl Op for Gather {
    const NAME: &'static str = "embedding_gather";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.tokens, &self.table, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let Gather { tokens, table, y } = self;
        expect_real(Self::NAME, y)?;
        expect_dtype(Self::NAME, "tokens", tokens, DType::U32)?;
        if table.dtype() != DType::Bf16 {
            expect_dtype(Self::NAME, "table", table, y.dtype())?;
        }
        expect(Self::NAME, "table", table, table.dim(0) * table.dim(1))?;
        expect(Self::NAME, "y", y, tokens.len() * table.dim(1))
    }

    host_by_type!(y);
}

impl Gather {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let cols = self.table.dim(1);
        let tokens = k.read::<u32>(&self.tokens)?;
        check_tokens(tokens, self.table.dim(0), k)?;
        let y = k.write::<T>(&self.y)?;
        if self.table.dtype() == DType::Bf16 {
            let table = k.read::<bf16>(&self.table)?;
            k.parallel().chunks(y, ROWS * cols, |task, y| {
                for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                    let row = &table[tokens[task * ROWS + i] as usize * cols..][..cols];
                    y.iter_mut().zip(row).for_each(|(y, x)| *y = T::of(f64::from(*x)));
                }
            });
            return Ok(());
        }
        let table = k.read::<T>(&self.table)?;
        k.parallel().chunks(y, ROWS * cols, |task, y| {
            for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                y.copy_from_slice(&table[tokens[task * ROWS + i] as usize * cols..][..cols]);
            }
        });
        Ok(())
    }
}

fn check_tokens(tokens: &[u32], count: usize, k: &Kernel) -> Result<(), DeviceError> {
    match tokens.iter().find(|&&token| token as usize >= count) {
        Some(token) => Err(k.error(format!("token {token} is outside the table of {count} rows"))),
        None => Ok(()),
    }
}

/// `dtable[tokens[n]] += dy[n]` for `n` in order: the gradient of [`Gather`], added.
///
/// A token outside the table is an error of the kernel.
pub struct ScatterAdd {
    /// `[N]`, u32.
    pub tokens: Tensor,
    /// `[N, D]`, f32 or f64.
    pub dy: Tensor,
    /// Added to, `[V, D]`, of the type of `dy`.
    pub dtable: Tensor,
}

impl Op for ScatterAdd {
    const NAME: &'static str = "embedding_scatter_add";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.tokens, &self.dy, &self.dtable].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let ScatterAdd { tokens, dy, dtable } = self;
        let (count, cols) = (dtable.dim(0), dtable.dim(1));
        expect_real(Self::NAME, dy)?;
        expect_dtype(Self::NAME, "tokens", tokens, DType::U32)?;
        let lens = [("dy", dy, tokens.len() * cols), ("dtable", dtable, count * cols)];
        expect_all(Self::NAME, dy.dtype(), lens)
    }

    host_by_type!(dy);
}

impl ScatterAdd {
    /// Threads take columns, so the order of the additions to an element is that of the tokens.
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let cols = self.dtable.dim(1);
        let tokens = k.read::<u32>(&self.tokens)?;
        check_tokens(tokens, self.dtable.dim(0), k)?;
        let dy = k.read::<T>(&self.dy)?;
        let dtable = SharedSlice::new(k.write::<T>(&self.dtable)?);
        k.parallel().each(cols.div_ceil(COLUMNS), |task| {
            let (start, end) = (task * COLUMNS, cols.min((task + 1) * COLUMNS));
            vectorize!(|| {
                for (n, &token) in tokens.iter().enumerate() {
                    let row = token as usize * cols;
                    // SAFETY: each task has its own columns.
                    let to = unsafe { dtable.part(row + start..row + end) };
                    let from = &dy[n * cols + start..n * cols + end];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
                }
            });
        });
        Ok(())
    }
}

/// `y[b, t] += table[t]`.
///
/// Both tensors are f32, or both are f64.
pub struct AddPositions {
    /// `[most positions, D]`.
    pub table: Tensor,
    /// `T`, at most the rows of the table.
    pub positions: usize,
    /// Added to, `[B·T, D]`.
    pub y: Tensor,
}

impl Op for AddPositions {
    const NAME: &'static str = "add_positions";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.table, &self.y].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let &AddPositions { ref table, positions, ref y } = self;
        let window = positions * table.dim(1);
        expect_real(Self::NAME, y)?;
        expect_dtype(Self::NAME, "table", table, y.dtype())?;
        expect(Self::NAME, "y", y, y.len() / window.max(1) * window)?;
        expect(Self::NAME, "table", &table.rows(0..positions.min(table.dim(0)))?, window)
    }

    host_by_type!(y);
}

impl AddPositions {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let window = self.positions * self.table.dim(1);
        let table = k.read::<T>(&self.table)?;
        k.parallel().chunks(k.write::<T>(&self.y)?, window, |_, y| {
            y.iter_mut().zip(table).for_each(|(y, x)| *y += *x);
        });
        Ok(())
    }
}

/// Gradient of the table of [`AddPositions`]: `dtable[t] = Σ_b dy[b, t]`, windows in order; rows
/// beyond the window get none.
///
/// Both tensors are f32, or both are f64.
pub struct PositionsBackward {
    /// `[B·T, D]`.
    pub dy: Tensor,
    /// `T`.
    pub positions: usize,
    /// Written, `[most positions, D]`.
    pub dtable: Tensor,
    pub dtable_onto: Onto,
}

impl Op for PositionsBackward {
    const NAME: &'static str = "positions_backward";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.dy, &self.dtable].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        let PositionsBackward { dy, positions, dtable, .. } = self;
        let (most, cols) = (dtable.dim(0), dtable.dim(1));
        let window = positions * cols;
        expect_real(Self::NAME, dy)?;
        let lens = [("dy", dy, dy.len() / window.max(1) * window), ("dtable", dtable, most * cols)];
        expect_all(Self::NAME, dy.dtype(), lens)
    }

    host_by_type!(dy);
}

impl PositionsBackward {
    fn on_host<T: Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let (cols, positions) = (self.dtable.dim(1), self.positions);
        let windows = self.dy.len() / (positions * cols).max(1);
        let dy = k.read::<T>(&self.dy)?;
        k.parallel().chunks(k.write::<T>(&self.dtable)?, cols, |t, row| {
            if !self.dtable_onto.adds() {
                row.fill(T::ZERO);
            }
            if t < positions {
                for b in 0..windows {
                    let from = &dy[(b * positions + t) * cols..][..cols];
                    row.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
                }
            }
        });
        Ok(())
    }
}
