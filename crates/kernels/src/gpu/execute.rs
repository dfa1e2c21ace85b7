//! Runs a plan: tables to the device once, then launches alone.

use std::collections::BTreeSet;

use device::{DType, Device, Graph, Stream, Tensor};

use super::arch::TileType;
use super::bound_launch::{Binder, BoundLaunch};
use super::layout::{Classes, Extents};
use super::modules::Kernels;
use super::plan::{Bases, Common, Plan};
use crate::error::expect;
use crate::newton_schulz::{Algorithm, Batch, Program, Storage};
use crate::{KernelError, op::check_home};

const KERNEL: &str = "newton_schulz";

/// A batch that is planned for a device with kernels of modules.
pub struct Prepared {
    kernels: Kernels,
    batch: Batch,
    plan: Plan,
    common: Common,
}

impl Prepared {
    /// `limit` is the most bytes of workspace for registers: a batch that needs more runs in parts.
    ///
    /// # Errors
    /// A method without kernels (f32 storage, SVD); types or shapes that kernels do not take.
    pub fn new(
        kernels: &Kernels,
        batch: &Batch,
        (input, output): (DType, DType),
        limit: Option<u64>,
    ) -> Result<Prepared, KernelError> {
        let method = batch.iteration().method();
        if method.algorithm == Algorithm::Svd {
            let message = "the exact polar factor (svd) is computed on CPUs".to_owned();
            return Err(KernelError::Argument { kernel: KERNEL, message });
        }
        let tiles = match method.storage {
            Storage::Bf16 => TileType::Bf16,
            Storage::F16 => TileType::F16,
            Storage::F32 => {
                let message = "storage f32 has no device kernels; use bf16 or f16".to_owned();
                return Err(KernelError::Argument { kernel: KERNEL, message });
            }
        };
        let (arch, least_norm) = (kernels.arch(), method.least_norm);
        let chains = kernels.tuning().chains(arch);
        let multiprocessors = kernels.multiprocessors();
        let common = Common { arch, tiles, input, output, least_norm, chains, multiprocessors };
        let matrices = batch.matrices();
        let programs: Vec<&Program> = (0..matrices.len()).map(|i| batch.program(i)).collect();
        let plan = Plan::new(&common, matrices, &programs, limit)?;
        Ok(Prepared { kernels: kernels.clone(), batch: batch.clone(), plan, common })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The numeric plan, which decides the rounding of each matrix: one line for each kind: of the
    /// method, the shape and the architecture alone, whatever else is in the batch.
    pub fn numeric_plan(&self) -> BTreeSet<String> {
        let method = self.batch.iteration();
        let Common { arch, tiles, .. } = self.common;
        let line = |index: usize| {
            let program = self.batch.program(index);
            let (n, m) = (program.short, program.long);
            let Classes { gram, square, apply } = Extents::new(arch, n, m).ok()?.classes;
            let blocks = [gram, square, apply].map(|class| class.side());
            let (algorithm, tiles) = (program.algorithm.word(), tiles.dtype());
            let restarts = method.restarts();
            Some(format!(
                "{arch} {tiles} {n}x{m}: {method}; {algorithm}, restarts {restarts:?}; blocks of \
                 X·Xᵀ, S·S, S·X {blocks:?}"
            ))
        };
        (0..self.batch.matrices().len()).filter_map(line).collect()
    }

    /// Bytes of workspace, at an address that is a multiple of 256.
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes as usize
    }

    /// Copies the tables to memory of their own, which the result keeps.
    ///
    /// # Errors
    /// Tensors of other types, of another device, or too small; kernels that do not load.
    pub fn bind(
        &self,
        stream: &Stream,
        input: &Tensor,
        output: &Tensor,
        workspace: &Tensor,
        status: &Tensor,
    ) -> Result<Bound, KernelError> {
        self.check(input, output, workspace, status)?;
        let bases = Bases {
            input: input.address(),
            output: output.address(),
            status: status.address(),
            workspace: workspace.address(),
        };
        let tables = upload(stream, &self.plan.tables(&bases))?;
        let start = tables.address();
        let binder = Binder { kernels: &self.kernels, tiles: self.common.tiles, tables: start };
        let mut launches = Vec::new();
        for part in &self.plan.parts {
            launches.extend(binder.of(part)?);
        }
        let operands = [input, output, workspace, status].map(Tensor::clone);
        Ok(Bound { launches, tables, _operands: operands })
    }

    fn check(
        &self,
        input: &Tensor,
        output: &Tensor,
        workspace: &Tensor,
        status: &Tensor,
    ) -> Result<(), KernelError> {
        check_home(KERNEL, self.kernels.device(), [input, output, workspace, status])?;
        for (tensor, dtype) in
            [(input, self.common.input), (output, self.common.output), (status, DType::U32)]
        {
            if tensor.dtype() != dtype {
                return Err(KernelError::Dtype { kernel: KERNEL, dtype: tensor.dtype() });
            }
        }
        self.batch.check_operands(input.len(), output.len())?;
        expect(KERNEL, "status", status, self.batch.matrices().len())?;
        let (got, expected) = (workspace.bytes(), self.workspace_bytes());
        if got < expected {
            let operand = "workspace (in bytes)";
            return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
        }
        if !workspace.address().is_multiple_of(256) {
            let message = format!("the workspace starts at {:#x}", workspace.address());
            return Err(KernelError::Argument { kernel: KERNEL, message });
        }
        Ok(())
    }
}

/// A batch with its tensors: launches without any work on the host.
pub struct Bound {
    launches: Vec<BoundLaunch>,
    /// Nobody else has this memory, so the addresses in it stay as they were checked.
    tables: Tensor,
    /// Keeps what the tables point to.
    _operands: [Tensor; 4],
}

impl Bound {
    /// Bytes of the tables.
    pub fn table_bytes(&self) -> usize {
        self.tables.bytes()
    }

    /// Launches of one run.
    pub fn launches(&self) -> usize {
        self.launches.len()
    }

    /// Enqueues one run. What shares its tensors comes before or after it on the stream.
    ///
    /// # Errors
    /// The device refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), KernelError> {
        self.launch_with(stream, |_, _| Ok(()))
    }

    /// The same; `after` each launch is told its kernel and units, for instance to record an event.
    ///
    /// # Errors
    /// The device or `after` refuses.
    pub fn launch_with(
        &self,
        stream: &Stream,
        mut after: impl FnMut(&'static str, u32) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        for bound in &self.launches {
            // SAFETY: the addresses lie in the tensors that `self` keeps, and memory that is freed
            // later is freed after the work that was enqueued before; `plan` keeps every place
            // within the sizes that `bind` checked.
            unsafe { bound.launch(stream) }?;
            after(bound.name(), bound.units())?;
        }
        Ok(())
    }

    /// One run as a graph.
    ///
    /// # Errors
    /// A device without graphs.
    pub fn capture(self, stream: &Stream) -> Result<Captured, KernelError> {
        let mut refused = None;
        let graph = stream.capture(|stream| match self.launch(stream) {
            Ok(()) => Ok(()),
            Err(KernelError::Device(error)) => Err(error),
            Err(error) => {
                refused = Some(error);
                Ok(())
            }
        });
        match refused {
            Some(error) => Err(error),
            None => Ok(Captured { graph: graph?, _bound: self }),
        }
    }
}

/// Tables in memory of their own, which are there when this returns.
pub(crate) fn upload(stream: &Stream, tables: &[u8]) -> Result<Tensor, KernelError> {
    let memory = stream.device().zeros(&[tables.len()], DType::U8)?;
    stream.copy_in(&memory, tables)?;
    stream.synchronize()?;
    Ok(memory)
}

/// The rows of a table, uploaded.
pub(crate) fn upload_rows<T: bytemuck::Pod>(
    device: &Device,
    rows: &[T],
) -> Result<Tensor, KernelError> {
    upload(&device.stream(), bytemuck::cast_slice(rows))
}

/// Bytes `start … start + len` of a tensor of any type.
pub(super) fn bytes_of(tensor: &Tensor, start: usize, len: usize) -> Result<Tensor, KernelError> {
    let start = tensor.offset() * tensor.dtype().bytes() + start;
    Ok(Tensor::new(tensor.buffer().clone(), start, &[len], DType::U8)?)
}

/// A run as one graph.
pub struct Captured {
    graph: Graph,
    _bound: Bound,
}

impl Captured {
    /// Enqueues the run.
    ///
    /// # Errors
    /// The device refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), KernelError> {
        // SAFETY: `_bound` keeps the memory that the captured launches point to.
        Ok(unsafe { stream.launch_graph(&self.graph) }?)
    }
}
