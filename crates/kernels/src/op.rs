//! The one place that decides whether an operation runs on the host or on a device.
//!
//! An operation is a struct of its arguments, documented with shapes and types:
//!
//! ```text
//! struct of arguments ─▶ launch ──check──┬─ host()    a closure over slices of memory
//!                                        └─ device()  launches of a module's kernels
//! ```
//!
//! A family has a folder: its structs in `mod.rs`, and `host.rs` and `device.rs` beside it; where
//! both are short, one file.
//!
//! What an operation needs on a device beside its tensors (tables of addresses and lengths) is
//! uploaded once, by whatever object the caller keeps from step to step: [`kernels_of`] tells it
//! whether there is something to upload.

use device::{Device, DeviceError, Kernel, Stream, Tensor};

use crate::KernelError;
use crate::gpu::execute::upload;
use crate::gpu::modules::Kernels;

/// The arguments of one launch of an operation: `Add { x, y }.launch(&stream)?`.
pub trait Op: Sized {
    /// As errors, profiles and the guarded device name it.
    const NAME: &'static str;

    /// Every tensor that the operation reads or writes.
    fn operands(&self) -> impl Iterator<Item = &Tensor>;

    /// What is refused wherever it runs: shapes and types.
    fn check(&self) -> Result<(), KernelError>;

    /// The host's code. Refuses now what this code does not do: the closure may run later.
    fn host(
        self,
    ) -> Result<impl FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static, KernelError>;

    /// Enqueues the device's code; all operands are memory of the stream's device.
    fn device(&self, kernels: &Kernels, _: &Stream) -> Result<(), KernelError> {
        Err(KernelError::NoDeviceCode { kernel: Self::NAME, device: kernels.device().kind() })
    }

    /// Checks the operands and enqueues the operation where the stream is.
    ///
    /// # Errors
    /// What [`Op::check`], the host's or the device's code refuses; memory of another device.
    fn launch(self, stream: &Stream) -> Result<(), KernelError> {
        run(stream, self)
    }
}

/// [`Op::host`] of an operation whose loops are the same for f32 and f64: calls its
/// `on_host::<T>(&self, &Kernel)` with the type of one operand, which its `check` has seen.
macro_rules! host_by_type {
    ($($operand:ident).+) => {
        fn host(
            self,
        ) -> Result<
            impl FnOnce(&::device::Kernel) -> Result<(), ::device::DeviceError> + Send + 'static,
            $crate::KernelError,
        > {
            Ok(move |k: &::device::Kernel| match self.$($operand).+.dtype() {
                ::device::DType::F64 => self.on_host::<f64>(k),
                _ => self.on_host::<f32>(k),
            })
        }
    };
}
pub(crate) use host_by_type;

/// Checks an operation and enqueues it where the stream is.
///
/// # Errors
/// What [`Op::check`], the host's or the device's code refuses; memory of another device.
pub(crate) fn run<O: Op>(stream: &Stream, op: O) -> Result<(), KernelError> {
    op.check()?;
    let Some(kernels) = kernels_of(stream.device())? else {
        return Ok(stream.launch(O::NAME, op.host()?)?);
    };
    check_home(O::NAME, stream.device(), op.operands())?;
    op.device(&kernels, stream)
}

/// The kernels of a device whose code comes from modules; `None` on a host device.
///
/// # Errors
/// A tuning table that cannot be read.
pub(crate) fn kernels_of(device: &Device) -> Result<Option<Kernels>, KernelError> {
    if runs_host_code(device) { Ok(None) } else { Kernels::of(device).map(Some) }
}

/// Asked here and nowhere else.
fn runs_host_code(device: &Device) -> bool {
    device.kind().is_host()
}

/// Refuses memory of another device: kernels of modules are given bare addresses.
///
/// # Errors
/// The first such tensor.
pub(crate) fn check_home<'a>(
    kernel: &'static str,
    device: &Device,
    operands: impl IntoIterator<Item = &'a Tensor>,
) -> Result<(), KernelError> {
    match operands.into_iter().all(|tensor| tensor.buffer().device().is_same(device)) {
        true => Ok(()),
        false => Err(DeviceError::Foreign { kernel }.into()),
    }
}

/// Rows of a table, where kernels of the device read them; `None` on a host device, whose code has
/// the list itself.
///
/// # Errors
/// No memory on the device.
pub(crate) fn table<T: bytemuck::Pod>(
    device: &Device,
    rows: impl IntoIterator<Item = T>,
) -> Result<Option<Tensor>, KernelError> {
    if runs_host_code(device) {
        return Ok(None);
    }
    let rows: Vec<T> = rows.into_iter().collect();
    upload(&device.stream(), bytemuck::cast_slice(&rows)).map(Some)
}
