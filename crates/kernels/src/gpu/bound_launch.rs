//! From the launches of a plan to launches with their arguments.

use device::{Function, Grid, Stream};

use super::abi::{GemmArgs, NsArgs};
use super::arch::{self, TileType, gemm_name};
use super::modules::{Family, Kernels};
use super::plan::{AolLaunch, GemmLaunch, Launch, Part};
use super::schedule;
use crate::KernelError;

/// Threads of the kernels around the products, and the shared memory of those that need it.
const THREADS: u32 = 256;
const SHARED_BYTES: u32 = 128 + 64 * 66 * 2;
/// Blocks of them that a multiprocessor holds.
const RESIDENT: u32 = 4;

#[derive(Debug, Clone, Copy)]
enum Args {
    Gemm(GemmArgs),
    Ns(NsArgs),
}

/// A launch with its argument.
pub(super) struct BoundLaunch {
    name: &'static str,
    function: Function,
    grid: Grid,
    args: Args,
}

impl BoundLaunch {
    /// The kernel's name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Units of work in the launch.
    pub(super) fn units(&self) -> u32 {
        match &self.args {
            Args::Gemm(args) => args.block_count,
            Args::Ns(args) => args.unit_count,
        }
    }

    /// # Errors
    /// The device refuses.
    ///
    /// # Safety
    /// The tables lie where the plan was told, and hold addresses that stay good until the work is
    /// done.
    pub(super) unsafe fn launch(&self, stream: &Stream) -> Result<(), KernelError> {
        // SAFETY: the caller's; each kernel takes the argument that is made for it below.
        unsafe {
            match &self.args {
                Args::Gemm(args) => stream.launch_module(&self.function, &self.grid, args),
                Args::Ns(args) => stream.launch_module(&self.function, &self.grid, args),
            }
        }?;
        Ok(())
    }
}

/// Binds the launches of a part whose tables start at `tables`.
pub(super) struct Binder<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) tiles: TileType,
    pub(super) tables: u64,
}

impl Binder<'_> {
    pub(super) fn of(&self, part: &Part) -> Result<Vec<BoundLaunch>, KernelError> {
        let mut launches = self.before(part)?;
        for launch in &part.launches {
            match launch {
                Launch::Gemm(gemm) => launches.push(self.gemm(gemm)?),
                Launch::Aol(aol) => {
                    let &AolLaunch { rows, tiles, table, .. } = aol;
                    let count = aol.matrix_count();
                    launches.push(self.around("ns_aol_rows", (table, count, rows), 0)?);
                    launches.push(self.around("ns_aol_scale", (table, count, tiles), 0)?);
                }
            }
        }
        Ok(launches)
    }

    /// Norm and cast.
    pub(super) fn before(&self, part: &Part) -> Result<Vec<BoundLaunch>, KernelError> {
        let (count, mut launches) = (part.matrix_count(), Vec::new());
        for (name, units) in [("ns_norm", part.strips), ("ns_cast", part.tiles)] {
            if units > 0 {
                launches.push(self.around(name, (part.table, count, units), SHARED_BYTES)?);
            }
        }
        Ok(launches)
    }

    fn around(
        &self,
        name: &'static str,
        (table, matrix_count, unit_count): (u64, u32, u32),
        shared_bytes: u32,
    ) -> Result<BoundLaunch, KernelError> {
        let args = NsArgs { matrices: self.tables + table, matrix_count, unit_count };
        let blocks = unit_count.min(self.kernels.multiprocessors() * RESIDENT);
        let grid = Grid { shared_bytes, ..Grid::linear(blocks, THREADS) };
        let function = self.kernels.function(Family::NewtonSchulz, name)?;
        Ok(BoundLaunch { name, function, grid, args: Args::Ns(args) })
    }

    pub(super) fn gemm(&self, launch: &GemmLaunch) -> Result<BoundLaunch, KernelError> {
        let arch = self.kernels.arch();
        let &GemmLaunch { form, class, units, table, .. } = launch;
        let multiprocessors = self.kernels.multiprocessors();
        let args = GemmArgs {
            problems: self.tables + table,
            problem_count: launch.problems.len() as u32,
            block_count: units,
            group_rows: self.kernels.tuning().group_rows(arch, class, multiprocessors),
            xcds: arch::xcds(arch),
        };
        let name = gemm_name(form, self.tiles, class);
        let function = self.kernels.function(Family::Gemm, name)?;
        let mut grid = schedule::launch(arch, class, multiprocessors, units);
        if launch.is_chain {
            (grid.early, grid.together) = (false, true);
            let clusters = function.clusters_together(&grid)?;
            if clusters == 0 {
                let message = format!("no cluster of {name} fits this device");
                return Err(KernelError::Argument { kernel: "newton_schulz", message });
            }
            grid.grid[0] = grid.grid[0].min(clusters * grid.cluster[0]);
        }
        Ok(BoundLaunch { name, function, grid, args: Args::Gemm(args) })
    }
}
