//! The memory that the ranks of a host share: one file without a name.
//!
//! Whoever starts the ranks makes the file, and they inherit it. No directory lists it, so it goes
//! with the last process that holds it, however those end.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::system;
use crate::{CommError, Result};

/// Shared memory of one job; clones are handles to the same.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    file: Arc<File>,
}

impl SharedMemory {
    /// A new file, which is empty.
    pub(super) fn nameless(name: &str) -> Result<SharedMemory> {
        let failed = |source| CommError::SharedMemory { action: "make", source };
        let file = system::nameless_file(&format!("muster-{name}")).map_err(failed)?;
        Ok(SharedMemory { file: Arc::new(file) })
    }

    /// The number under which processes that are started from here on have it open.
    pub fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// The memory that this process has inherited.
    ///
    /// # Errors
    /// Nothing is open under this number.
    pub fn inherited(descriptor: i32) -> Result<SharedMemory> {
        let failed = |source| CommError::SharedMemory { action: "inherit", source };
        Ok(SharedMemory { file: Arc::new(system::inherited_file(descriptor).map_err(failed)?) })
    }

    /// A number that no other memory of this machine has.
    pub(super) fn identity(&self) -> u64 {
        self.file.metadata().map_or(0, |file| file.ino() ^ file.dev().rotate_left(32))
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }
}
