//! Tables looked up by index.

use device::{DType, Stream, Tensor};
use half::bf16;

use crate::error::{dispatch, expect};
use crate::math::vectorize;
use crate::{KernelError, Real};

/// Rows that one parallel task gathers.
const ROWS: usize = 64;

/// `y[n] = table[tokens[n]]`: `tokens [N]` u32, `table [V, D]` (the type of `y`, or bf16),
/// `y [N, D]`. A token outside the table is an error of the kernel.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn gather(
    stream: &Stream,
    tokens: &Tensor,
    table: &Tensor,
    y: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "embedding_gather";
    let (count, cols) = (table.dim(0), table.dim(1));
    expect(NAME, "y", y, tokens.len() * cols)?;
    let (tokens, table, y) = (tokens.clone(), table.clone(), y.clone());
    dispatch!(NAME, y.dtype(), T => {
        stream.launch(NAME, move |k| {
            let tokens = k.read::<u32>(&tokens)?;
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= count) {
                return Err(k.error(format!("token {token} is outside the table of {count} rows")));
            }
            let y = k.write::<T>(&y)?;
            if table.dtype() == DType::Bf16 {
                let table = k.read::<bf16>(&table)?;
                k.parallel().chunks(y, ROWS * cols, |task, y| {
                    for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                        let row = &table[tokens[task * ROWS + i] as usize * cols..][..cols];
                        y.iter_mut().zip(row).for_each(|(y, x)| *y = T::of(f64::from(*x)));
                    }
                });
                return Ok(());
            }
            let table = k.read::<T>(&table)?;
            k.parallel().chunks(y, ROWS * cols, |task, y| {
                for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                    y.copy_from_slice(&table[tokens[task * ROWS + i] as usize * cols..][..cols]);
                }
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// `dtable[tokens[n]] += dy[n]` for `n` in order. Threads take columns, so the order of the
/// additions to an element is that of the tokens.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn scatter_add(
    stream: &Stream,
    tokens: &Tensor,
    dy: &Tensor,
    dtable: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "embedding_scatter_add";
    let (count, cols) = (dtable.dim(0), dtable.dim(1));
    expect(NAME, "dy", dy, tokens.len() * cols)?;
    let (tokens, dy, dtable) = (tokens.clone(), dy.clone(), dtable.clone());
    dispatch!(NAME, dy.dtype(), T => {
        stream.launch(NAME, move |k| {
            let tokens = k.read::<u32>(&tokens)?;
            if let Some(token) = tokens.iter().find(|&&token| token as usize >= count) {
                return Err(k.error(format!("token {token} is outside the table of {count} rows")));
            }
            let dy = k.read::<T>(&dy)?;
            let dtable = crate::shared_slice::SharedSlice::new(k.write::<T>(&dtable)?);
            let width = 64;
            k.parallel().each(cols.div_ceil(width), |task| {
                let (start, end) = (task * width, cols.min((task + 1) * width));
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
        })?;
        Ok(())
    })
}

/// `y[b, t] += table[t]`: `y [B·T, D]`, `table [max, D]` with `max ≥ T`.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn add_positions(
    stream: &Stream,
    table: &Tensor,
    positions: usize,
    y: &Tensor,
) -> Result<(), KernelError> {
    const NAME: &str = "add_positions";
    let cols = table.dim(1);
    expect(NAME, "y", y, y.len() / (positions * cols).max(1) * positions * cols)?;
    expect(NAME, "table", &table.rows(0..positions.min(table.dim(0)))?, positions * cols)?;
    let (table, y) = (table.clone(), y.clone());
    dispatch!(NAME, y.dtype(), T => {
        stream.launch(NAME, move |k| {
            let table = k.read::<T>(&table)?;
            k.parallel().chunks(k.write::<T>(&y)?, positions * cols, |_, y| {
                y.iter_mut().zip(table).for_each(|(y, x)| *y += *x);
            });
            Ok(())
        })?;
        Ok(())
    })
}

/// Gradient of the table of [`add_positions`]: `dtable[t] = Σ_b dy[b, t]`, windows in order; rows
/// beyond the window are zero. Added to `dtable` when `accumulate`.
///
/// # Errors
/// Operands of the wrong size or type.
pub fn positions_backward(
    stream: &Stream,
    dy: &Tensor,
    positions: usize,
    dtable: &Tensor,
    accumulate: bool,
) -> Result<(), KernelError> {
    const NAME: &str = "positions_backward";
    let cols = dtable.dim(1);
    let windows = dy.len() / (positions * cols).max(1);
    expect(NAME, "dy", dy, windows * positions * cols)?;
    let (dy, dtable) = (dy.clone(), dtable.clone());
    dispatch!(NAME, dy.dtype(), T => {
        stream.launch(NAME, move |k| {
            let dy = k.read::<T>(&dy)?;
            k.parallel().chunks(k.write::<T>(&dtable)?, cols, |t, row| {
                if !accumulate {
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
        })?;
        Ok(())
    })
}
