//! What a stream of a host device can be asked to do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::memory::Mapping;
use crate::sync::OnceLock;
use crate::{Device, DeviceError, Kernel, Tensor};

/// A kernel that waits for its turn.
pub(crate) type KernelJob = Box<dyn FnOnce(&Kernel) -> Result<(), DeviceError> + Send>;

/// Work that is the same every time.
pub(crate) type SharedJob = Arc<dyn Fn() -> Result<(), DeviceError> + Send + Sync>;

/// Work on the host that knows no kernel.
pub(crate) enum HostJob {
    Once(Box<dyn FnOnce() -> Result<(), DeviceError> + Send>),
    Shared(SharedJob),
}

impl HostJob {
    /// Runs it; a panic becomes an error.
    pub(crate) fn run(self) -> Result<(), DeviceError> {
        let done = caught("host", || match self {
            HostJob::Once(job) => job(),
            HostJob::Shared(job) => job(),
        });
        crate::work::mark();
        done
    }
}

pub(crate) enum Op {
    Kernel { device: Device, name: &'static str, job: KernelJob },
    CopyIn { to: Tensor, from: Arc<Mapping> },
    CopyOut { to: Arc<Mapping>, from: Tensor },
    Host(HostJob),
    Record(Arc<Stamp>),
    Wait { source: usize, stamp: Arc<Stamp> },
}

/// How an event was reached.
#[derive(Clone)]
pub(crate) struct Outcome {
    pub(crate) at: Instant,
    /// What failed before it and had not been told by then.
    pub(crate) lost: Option<Arc<str>>,
}

/// An event that is recorded behind other work.
#[derive(Default)]
pub(crate) struct Stamp(pub(crate) OnceLock<Outcome>);

impl Op {
    /// Runs what is not an event.
    pub(super) fn run(self) -> Result<(), DeviceError> {
        match self {
            Op::Kernel { device, name, job } => caught(name, || Kernel::run(name, &device, job)),
            Op::CopyIn { to, from } => {
                let device = to.buffer.device();
                Kernel::run("copy_in_async", device, |k| {
                    // SAFETY: the lengths were compared, and whoever enqueued the copy vouches
                    // that nothing writes to `from` meanwhile.
                    let bytes =
                        unsafe { std::slice::from_raw_parts(from.start().as_ptr(), from.len()) };
                    k.write::<u8>(&to)?.copy_from_slice(bytes);
                    Ok(())
                })
            }
            Op::CopyOut { to, from } => {
                let device = from.buffer.device();
                Kernel::run("copy_out_async", device, |k| {
                    let from = k.read::<u8>(&from)?;
                    // SAFETY: the lengths were compared, and whoever enqueued the copy vouches
                    // that nothing touches `to` meanwhile.
                    unsafe {
                        from.as_ptr().copy_to_nonoverlapping(to.start().as_ptr(), from.len())
                    };
                    Ok(())
                })
            }
            Op::Host(job) => job.run(),
            Op::Record(_) | Op::Wait { .. } => Ok(()),
        }
    }
}

/// What `work` returns; a panic becomes an error, because it has no caller to go on to.
fn caught(
    kernel: &'static str,
    work: impl FnOnce() -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let message = format!("it panicked: {}", text.unwrap_or("without a text"));
        Err(DeviceError::Kernel { kernel, message })
    })
}
