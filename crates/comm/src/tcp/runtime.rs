//! The runtime of tokio under calls that block: one per thread that waits, and none inside another.

use tokio::runtime::Runtime;

use crate::{CommError, Result};

/// A runtime for whichever thread drives it.
pub(super) fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_io().enable_time().build().map_err(CommError::Runtime)
}

/// Refuses a thread that tokio would not let block.
pub(super) fn check_thread() -> Result<()> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Err(CommError::Asynchronous),
        Err(_) => Ok(()),
    }
}
