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
//! Other choices by place are made here too, for families that have both answers beside their code:
//! [`choose`] picks one of two values (the size of a tile), and [`prepare`] makes what launches on
//! a device need beside tensors (tables of addresses and lengths), which is uploaded once and kept
//! by whatever object the caller has from step to step.

use device::{Device, DeviceError, Kernel, Stream, Tensor};

use crate::KernelError;
use crate::gpu::modules::Kernels;

/// Proof that the caller is this crate: [`Op::operands`] shows tables that nothing else may write.
pub struct Inside(());

/// The arguments of one launch of an operation: `Add { x, y }.launch(&stream)?`.
pub trait Op: Sized {
    /// As errors, profiles and the guarded device name it.
    const NAME: &'static str;

    /// Every tensor that the operation reads or writes, tables among them, which nothing else may
    /// write: so they are shown to this crate alone.
    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor>;

    /// Refuses wrong shapes and types, wherever the operation runs.
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
    /// An operation that [`Op::check`], the host's or the device's code refuses; memory of another
    /// device.
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

/// [`Op::host`] and [`Op::device`] of an operation that has code for both: `self.run(kernel)` and
/// `self.enqueue(kernels, stream)`.
macro_rules! on_both {
    () => {
        $crate::op::on_host!();

        fn device(
            &self,
            kernels: &$crate::gpu::modules::Kernels,
            stream: &::device::Stream,
        ) -> Result<(), $crate::KernelError> {
            self.enqueue(kernels, stream)
        }
    };
}
pub(crate) use on_both;

/// [`Op::host`] of an operation that has code for hosts alone: `self.run(kernel)`.
macro_rules! on_host {
    () => {
        fn host(
            self,
        ) -> Result<
            impl FnOnce(&::device::Kernel) -> Result<(), ::device::DeviceError> + Send + 'static,
            $crate::KernelError,
        > {
            Ok(move |k: &::device::Kernel| self.run(k))
        }
    };
}
pub(crate) use on_host;

/// Refuses a device for an operation that has code for hosts alone, before its first launch.
///
/// # Errors
/// As of that launch.
pub(crate) fn check_host(kernel: &'static str, device: &Device) -> Result<(), KernelError> {
    choose(device, Ok(()), Err(KernelError::NoDeviceCode { kernel, device: device.kind() }))
}

/// Checks an operation and enqueues it where the stream is.
///
/// # Errors
/// An operation that [`Op::check`], the host's or the device's code refuses; memory of another
/// device.
pub(crate) fn run<O: Op>(stream: &Stream, op: O) -> Result<(), KernelError> {
    op.check()?;
    if runs_host_code(stream.device()) {
        return Ok(stream.launch(O::NAME, op.host()?)?);
    }
    check_home(O::NAME, stream.device(), op.operands(Inside(())))?;
    op.device(&Kernels::of(stream.device())?, stream)
}

/// Asked in this file and nowhere else.
fn runs_host_code(device: &Device) -> bool {
    device.kind().is_host()
}

/// Returns the value for the code that runs on a device's streams, of `on_host` and `on_device`.
pub(crate) fn choose<T>(device: &Device, on_host: T, on_device: T) -> T {
    if runs_host_code(device) { on_host } else { on_device }
}

/// Makes a value once, before the launches that need it; `None` on a host device, whose code has
/// the lists that tables are made of.
///
/// # Errors
/// An error of `make`.
pub(crate) fn prepare<T>(
    device: &Device,
    make: impl FnOnce() -> Result<T, KernelError>,
) -> Result<Option<T>, KernelError> {
    if runs_host_code(device) { Ok(None) } else { make().map(Some) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use device::{Arch, DType, SimOptions};

    /// Fills with ones; devices have no code for it.
    struct Ones(Tensor);

    impl Op for Ones {
        const NAME: &'static str = "ones";

        fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
            [&self.0].into_iter()
        }

        fn check(&self) -> Result<(), KernelError> {
            crate::error::expect(Self::NAME, "the tensor", &self.0, 3)
        }

        fn host(
            self,
        ) -> Result<impl FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static, KernelError>
        {
            Ok(move |k: &Kernel| {
                k.write::<f32>(&self.0)?.fill(1.0);
                Ok(())
            })
        }
    }

    #[test]
    fn an_operation_runs_where_its_stream_is_or_says_why_not() {
        let host = Device::guarded(1).unwrap();
        let sim = Device::sim(Arch::Gfx942, 1, SimOptions::default()).unwrap();
        let zeros = |device: &Device, len: usize| device.zeros(&[len], DType::F32).unwrap();
        let x = zeros(&host, 3);
        run(&host.stream(), Ones(x.clone())).unwrap();
        assert_eq!(host.stream().to_vec::<f32>(&x).unwrap(), [1.0; 3]);
        let error = run(&sim.stream(), Ones(zeros(&sim, 3))).unwrap_err().to_string();
        assert!(error.starts_with("ones has no code for sim:gfx942"), "{error}");
        let error = run(&sim.stream(), Ones(x)).unwrap_err();
        assert!(matches!(error, KernelError::Device(DeviceError::Foreign { .. })), "{error}");
        let error = run(&sim.stream(), Ones(zeros(&sim, 2))).unwrap_err();
        assert!(matches!(error, KernelError::Operand { got: 2, expected: 3, .. }), "{error}");
    }
}
