//! One run of a batch as an operation, and a batch that keeps what its runs need.

use std::collections::BTreeSet;
use std::sync::Arc;

use device::{DType, Device, DeviceError, Kernel, Stream, Tensor};

use super::{Algorithm, Batch, KERNEL, Method, Storage, host};
use crate::error::expect;
use crate::gpu::execute::{self, Prepared};
use crate::gpu::modules::Kernels;
use crate::{KernelError, op};

/// Bytes of a device's memory that a batch takes beside its operands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// With so much workspace [`super::orthogonalize`] is fastest: on a host a matrix's worth for
    /// each thread, elsewhere the tiles of the whole batch. Less will do.
    pub workspace_bytes: usize,
    /// What a [`Bound`] allocates for its launches, given that workspace.
    pub table_bytes: usize,
}

/// What a batch takes of this device, with operands of these types.
///
/// # Errors
/// A method or types that a device has no kernels for.
pub fn room(
    device: &Device,
    batch: &Batch,
    (input, output): (DType, DType),
) -> Result<Room, KernelError> {
    let Some(kernels) = op::kernels_of(device)? else {
        let workspace_bytes = batch.workspace_elements(device.threads()) * input.bytes();
        return Ok(Room { workspace_bytes, table_bytes: 0 });
    };
    let prepared = Prepared::new(&kernels, batch, (input, output), None)?;
    let table_bytes = prepared.plan().table_bytes as usize;
    Ok(Room { workspace_bytes: prepared.workspace_bytes(), table_bytes })
}

/// One run: see [`super::orthogonalize`] for the tensors.
#[derive(Clone)]
pub(super) struct Orthogonalize {
    pub batch: Batch,
    pub input: Tensor,
    pub output: Tensor,
    pub workspace: Tensor,
    pub status: Tensor,
    /// Its launches, where they were made before.
    pub planned: Option<Arc<execute::Bound>>,
}

impl op::Op for Orthogonalize {
    const NAME: &'static str = KERNEL;

    fn operands(&self) -> impl Iterator<Item = &Tensor> {
        [&self.input, &self.output, &self.workspace, &self.status].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        self.batch.check_operands(self.input.len(), self.output.len())?;
        expect(KERNEL, "status", &self.status, self.batch.matrices().len())
    }

    fn host(
        self,
    ) -> Result<impl FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static, KernelError> {
        let (got, expected) = (self.workspace.len(), self.batch.least_workspace_elements());
        if got < expected {
            let operand = "workspace";
            return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
        }
        let Method { algorithm, storage, .. } = *self.batch.iteration().method();
        // An exact factor stores nothing in between.
        let rounds = storage != Storage::F32 && algorithm != Algorithm::Svd;
        let dtype = self.input.dtype();
        if !matches!((dtype, rounds), (DType::F32, _) | (DType::F64, false)) {
            return Err(KernelError::Dtype { kernel: KERNEL, dtype });
        }
        Ok(move |k: &Kernel| match dtype {
            DType::F64 => self.run::<f64>(k),
            _ => self.run::<f32>(k),
        })
    }

    fn device(&self, kernels: &Kernels, stream: &Stream) -> Result<(), KernelError> {
        match &self.planned {
            Some(bound) => bound.launch(stream),
            None => self.bind(&self.prepare(kernels)?, stream)?.launch(stream),
        }
    }
}

impl Orthogonalize {
    fn run<T: crate::Real>(&self, k: &Kernel) -> Result<(), DeviceError> {
        let (x, o) = (k.read::<T>(&self.input)?, k.write::<T>(&self.output)?);
        let (work, status) = (k.write::<T>(&self.workspace)?, k.write::<u32>(&self.status)?);
        k.flops(self.batch.flops() as usize);
        host::run(k.parallel(), &self.batch, x, o, work, status);
        Ok(())
    }

    /// The plan of a device, in the fewest parts that fit the workspace.
    fn prepare(&self, kernels: &Kernels) -> Result<Prepared, KernelError> {
        let types = (self.input.dtype(), self.output.dtype());
        Prepared::new(kernels, &self.batch, types, Some(self.workspace.bytes() as u64))
    }

    fn bind(&self, plan: &Prepared, stream: &Stream) -> Result<execute::Bound, KernelError> {
        plan.bind(stream, &self.input, &self.output, &self.workspace, &self.status)
    }
}

/// A batch with its tensors: what a device needs to run it is made once, and a launch is no more
/// than that. Several may share one workspace, if they run one after another.
pub struct Bound {
    operation: Orthogonalize,
    numeric_plan: BTreeSet<String>,
}

impl Bound {
    /// Plans and uploads; see [`super::orthogonalize`] for the tensors.
    ///
    /// # Errors
    /// As [`super::orthogonalize`].
    pub fn new(
        stream: &Stream,
        batch: &Batch,
        input: &Tensor,
        output: &Tensor,
        workspace: &Tensor,
        status: &Tensor,
    ) -> Result<Bound, KernelError> {
        let [input, output, workspace, status] =
            [input, output, workspace, status].map(Clone::clone);
        let batch = batch.clone();
        let mut operation =
            Orthogonalize { batch, input, output, workspace, status, planned: None };
        op::Op::check(&operation)?;
        let mut numeric_plan = BTreeSet::new();
        if let Some(kernels) = op::kernels_of(stream.device())? {
            let prepared = operation.prepare(&kernels)?;
            numeric_plan = prepared.numeric_plan();
            operation.planned = Some(Arc::new(operation.bind(&prepared, stream)?));
        }
        Ok(Bound { operation, numeric_plan })
    }

    /// What decides the rounding of each matrix on a device, as [`Prepared::numeric_plan`]; nothing
    /// on a host, where method and CPU do.
    pub fn numeric_plan(&self) -> &BTreeSet<String> {
        &self.numeric_plan
    }

    /// Bytes of the device's memory that the launches' tables take.
    pub fn table_bytes(&self) -> usize {
        self.operation.planned.as_ref().map_or(0, |bound| bound.table_bytes())
    }

    /// Enqueues one run.
    ///
    /// # Errors
    /// A stream of another device; the device refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), KernelError> {
        op::run(stream, self.operation.clone())
    }
}
