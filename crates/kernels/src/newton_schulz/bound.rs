//! One run of a batch as an operation, and a batch that keeps what its runs need.

use std::collections::BTreeSet;
use std::sync::Arc;

use device::{DType, Device, DeviceError, Kernel, Stream, Tensor};

use super::{Algorithm, Batch, KERNEL, Method, Storage, host};
use crate::KernelError;
use crate::error::expect;
use crate::gpu::execute::{self, Prepared};
use crate::gpu::modules::Kernels;
use crate::op::{self, Inside, Op};

/// Memory of a device that a batch takes beside its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// With so much workspace [`Orthogonalize`] is fastest: on a host a matrix's worth for each
    /// thread, elsewhere the tiles of the whole batch. Less will do.
    pub workspace_elements: usize,
    /// The type of those elements: of the input, elsewhere bytes.
    pub workspace_dtype: DType,
    /// Memory that a [`Bound`] allocates for its launches, given that workspace.
    pub table_bytes: usize,
}

/// Returns the memory that a batch takes of this device, with operands of these types.
///
/// # Errors
/// A method or types that a device has no kernels for.
pub fn room(
    device: &Device,
    batch: &Batch,
    (input, output): (DType, DType),
) -> Result<Room, KernelError> {
    let of_plan = op::prepare(device, || {
        let prepared = Prepared::new(&Kernels::of(device)?, batch, (input, output), None)?;
        Ok(Room {
            workspace_elements: prepared.workspace_bytes(),
            workspace_dtype: DType::U8,
            table_bytes: prepared.plan().table_bytes as usize,
        })
    })?;
    Ok(of_plan.unwrap_or_else(|| Room {
        workspace_elements: batch.workspace_elements(device.threads()),
        workspace_dtype: input,
        table_bytes: 0,
    }))
}

/// Orthogonalizes every matrix of a batch once.
///
/// ```text
///            input           output      storage           workspace
/// host       f32, f64        as input    any (emulated)    as input, a multiple of one matrix's
/// devices    f32, bf16, f16  f32, bf16   bf16, f16         bytes, at a multiple of 256
/// ```
///
/// A device plans anew with each launch: whoever repeats one holds on to a [`Bound`].
///
/// # Errors
/// Of [`crate::Op::launch`]: tensors too small for the batch; mixed or unsupported types; methods
/// that a device has no kernels for (f32 storage, svd).
#[derive(Clone)]
pub struct Orthogonalize {
    pub batch: Batch,
    /// Every [`super::Matrix`] at its place.
    pub input: Tensor,
    /// Another tensor; elements of no matrix are left as they are.
    pub output: Tensor,
    /// [`room`] says how much is best; with less, the host uses fewer threads at a time and a
    /// device runs the batch in parts. Its contents are lost.
    pub workspace: Tensor,
    /// u32, one of each matrix, written. The launch may run later, so a matrix with an infinity or
    /// NaN is no error of it: its status becomes [`super::STATUS_NON_FINITE`] and its result zero,
    /// all others are unaffected ([`super::check_status`] makes an error of it). A zero matrix
    /// gives zero.
    pub status: Tensor,
}

impl Op for Orthogonalize {
    const NAME: &'static str = KERNEL;

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
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
        self.bind(&self.prepare(kernels)?, stream)?.launch(stream)
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

/// The same again and again.
#[derive(Clone)]
struct Repeated {
    once: Orthogonalize,
    /// Its launches, where a device made them.
    planned: Option<Arc<execute::Bound>>,
}

impl Op for Repeated {
    const NAME: &'static str = KERNEL;

    fn operands(&self, inside: Inside) -> impl Iterator<Item = &Tensor> {
        self.once.operands(inside)
    }

    fn check(&self) -> Result<(), KernelError> {
        self.once.check()
    }

    fn host(
        self,
    ) -> Result<impl FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static, KernelError> {
        self.once.host()
    }

    fn device(&self, kernels: &Kernels, stream: &Stream) -> Result<(), KernelError> {
        match &self.planned {
            Some(planned) => planned.launch(stream),
            None => self.once.device(kernels, stream),
        }
    }
}

/// A batch with its tensors: what a device needs to run it is made once, and a launch is no more
/// than that. Several may share one workspace, if they run one after another.
pub struct Bound {
    operation: Repeated,
    numeric_plan: BTreeSet<String>,
}

impl Bound {
    /// Plans and uploads.
    ///
    /// # Errors
    /// As of [`Orthogonalize`].
    pub fn new(stream: &Stream, once: Orthogonalize) -> Result<Bound, KernelError> {
        once.check()?;
        let made = op::prepare(stream.device(), || {
            let prepared = once.prepare(&Kernels::of(stream.device())?)?;
            Ok((Arc::new(once.bind(&prepared, stream)?), prepared.numeric_plan()))
        })?;
        let (planned, numeric_plan) = made.unzip();
        let numeric_plan = numeric_plan.unwrap_or_default();
        Ok(Bound { operation: Repeated { once, planned }, numeric_plan })
    }

    /// The numeric plan, which decides the rounding of each matrix on a device, as
    /// [`Prepared::numeric_plan`]; nothing on a host, where method and CPU do.
    pub fn numeric_plan(&self) -> &BTreeSet<String> {
        &self.numeric_plan
    }

    /// Bytes of the device's memory that the launches' tables take.
    pub fn table_bytes(&self) -> usize {
        self.operation.planned.as_ref().map_or(0, |planned| planned.table_bytes())
    }

    /// Enqueues one run.
    ///
    /// # Errors
    /// A stream of another device; the device refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), KernelError> {
        self.operation.clone().launch(stream)
    }
}
