//! Work on the host that knows no kernel: of a stream of a host device, or what a driver's stream
//! calls.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::DeviceError;

/// Work that is the same every time.
pub type SharedJob = Arc<dyn Fn() -> Result<(), DeviceError> + Send + Sync>;

/// Work on the host that knows no kernel.
pub(crate) enum HostJob {
    Once(Box<dyn FnOnce() -> Result<(), DeviceError> + Send>),
    Shared(SharedJob),
}

impl HostJob {
    /// Runs it; a panic becomes an error.
    pub(crate) fn run(self) -> Result<(), DeviceError> {
        match self {
            HostJob::Once(job) => run_marked(job),
            HostJob::Shared(job) => run_shared(&job),
        }
    }
}

/// Runs it as [`HostJob::run`].
pub(super) fn run_shared(job: &SharedJob) -> Result<(), DeviceError> {
    run_marked(|| job())
}

fn run_marked(job: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
    let done = caught("host", job);
    crate::work::mark();
    done
}

/// Returns the result of `work`; a panic becomes an error, because it has no caller to go on to.
pub(super) fn caught(
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
