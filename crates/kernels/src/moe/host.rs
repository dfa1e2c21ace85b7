//! The host's code of grouping and combining: threads take rows.

use device::{DeviceError, Kernel};

use super::{Combine, CombineBackward, GroupRows, GroupRowsBackward};
use crate::Real;
use crate::math::{dot, vectorize};

/// Rows that one parallel task handles.
const ROWS: usize = 16;

type Done = Result<(), DeviceError>;

impl GroupRows {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let cols = self.x.dim(1);
        let (sources, x) = (k.read::<u32>(&self.routing.sources)?, k.read::<T>(&self.x)?);
        k.parallel().chunks(k.write::<T>(&self.y)?, ROWS * cols, |task, y| {
            for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                y.copy_from_slice(&x[sources[task * ROWS + i] as usize * cols..][..cols]);
            }
        });
        Ok(())
    }
}

impl GroupRowsBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let (cols, top_k) = (self.dx.dim(1), self.routing.chosen.dim(1));
        let (grouped, dy) = (k.read::<u32>(&self.routing.grouped)?, k.read::<T>(&self.dy)?);
        k.parallel().rows(k.write::<T>(&self.dx)?, cols, |row, dx| {
            vectorize!(|| {
                for &at in &grouped[row * top_k..][..top_k] {
                    let dy = &dy[at as usize * cols..][..cols];
                    dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy);
                }
            });
        });
        Ok(())
    }
}

impl Combine {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let (cols, top_k) = (self.out.dim(1), self.routing.chosen.dim(1));
        let from = &self.routing;
        let (grouped, weights) = (k.read::<u32>(&from.grouped)?, k.read::<T>(&from.weights)?);
        let y = k.read::<T>(&self.y)?;
        k.parallel().rows(k.write::<T>(&self.out)?, cols, |row, out| {
            vectorize!(|| {
                for a in row * top_k..(row + 1) * top_k {
                    let y = &y[grouped[a] as usize * cols..][..cols];
                    let weight = weights[a];
                    out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * *y);
                }
            });
        });
        Ok(())
    }
}

impl CombineBackward {
    pub(super) fn on_host<T: Real>(&self, k: &Kernel) -> Done {
        let (cols, top_k) = (self.dout.dim(1), self.routing.chosen.dim(1));
        let from = &self.routing;
        let (grouped, weights) = (k.read::<u32>(&from.grouped)?, k.read::<T>(&from.weights)?);
        let sources = k.read::<u32>(&from.sources)?;
        let dout = k.read::<T>(&self.dout)?;
        let y = k.write::<T>(&self.y)?;
        k.parallel().rows(k.write::<T>(&self.dweights)?, top_k, |row, dweights| {
            let dout = &dout[row * cols..][..cols];
            let grouped = &grouped[row * top_k..][..top_k];
            vectorize!(|| {
                for (dweight, &at) in dweights.iter_mut().zip(grouped) {
                    *dweight = dot(dout, &y[at as usize * cols..][..cols]);
                }
            });
        });
        k.parallel().rows(y, cols, |at, y| {
            let row = sources[at] as usize;
            let choices = row * top_k..(row + 1) * top_k;
            let choice = choices.clone().find(|&choice| grouped[choice] as usize == at);
            // Routing names every grouped row once, as a choice of its source.
            let weight = choice.map_or(T::ZERO, |choice| weights[choice]);
            let dout = &dout[row * cols..][..cols];
            vectorize!(|| y.iter_mut().zip(dout).for_each(|(y, d)| *y = weight * *d));
        });
        Ok(())
    }
}
