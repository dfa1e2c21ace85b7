//! Copies between a device and memory that is not page-locked, by way of some that is.
//!
//! With other memory a driver waits inside the call for the work before the copy, where nobody can
//! end the wait, or goes on to copy after it has returned. Here the driver sees page-locked memory
//! of ours alone. If the wait for a copy fails it may still be under way, so its memory is left to
//! the end of the process.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use super::table::Common;
use super::{Gpu, Vendor};
use crate::DeviceError;

/// Bytes that are copied at a time: long enough that the pauses between two are small beside it.
const CHUNK: usize = 4 << 20;

/// Page-locked memory in which no copy is under way.
#[derive(Default)]
pub(super) struct Bounce {
    chunks: Mutex<Vec<u64>>,
}

impl Bounce {
    fn take(&self) -> Option<u64> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, chunk: u64) {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).push(chunk);
    }

    /// Frees all; the device is current in this thread.
    pub(super) fn free(&self, common: &Common) {
        while let Some(chunk) = self.take() {
            // SAFETY: page-locked memory of this driver, which nobody has any more.
            let _ = unsafe { common.free_pinned(chunk) };
        }
    }
}

impl<V: Vendor> Gpu<V> {
    fn chunk(&self) -> Result<u64, DeviceError> {
        if let Some(chunk) = self.bounce.take() {
            return Ok(chunk);
        }
        let mut chunk = 0;
        // SAFETY: the address is written.
        self.call(|common| unsafe { common.alloc_pinned(&raw mut chunk, CHUNK, 0) })?;
        Ok(chunk)
    }

    /// Enqueues a copy from or to `chunk`, which is put back if it is refused, and waits for it.
    fn bounced(
        &self,
        stream: u64,
        chunk: u64,
        enqueue: impl FnOnce(&Common) -> Result<(), super::Refusal>,
    ) -> Result<(), DeviceError> {
        self.call(enqueue).inspect_err(|_| self.bounce.put(chunk))?;
        self.wait_for_stream(stream, None).map(|_| ())
    }

    /// Copies `from` to the device, behind the work of `stream`, and waits for it.
    pub(super) fn bounce_in(&self, stream: u64, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        let chunk = self.chunk()?;
        for (index, part) in from.chunks(CHUNK).enumerate() {
            let (to, bytes) = (to + (index * CHUNK) as u64, part.len());
            // SAFETY: page-locked memory of `CHUNK` bytes, in which no copy is under way.
            unsafe { part.as_ptr().copy_to_nonoverlapping(chunk as *mut u8, bytes) };
            // SAFETY: the owner of `to` keeps it while it waits here; the chunk stays.
            self.bounced(stream, chunk, |common| unsafe {
                common.copy_in(to, chunk as *const c_void, bytes, stream)
            })?;
        }
        self.bounce.put(chunk);
        Ok(())
    }

    /// Copies `from` to `to`, behind the work of `stream`, and waits for it.
    pub(super) fn bounce_out(
        &self,
        stream: u64,
        to: &mut [u8],
        from: u64,
    ) -> Result<(), DeviceError> {
        let chunk = self.chunk()?;
        for (index, part) in to.chunks_mut(CHUNK).enumerate() {
            let (from, bytes) = (from + (index * CHUNK) as u64, part.len());
            // SAFETY: the owner of `from` keeps it while it waits here; the chunk stays.
            self.bounced(stream, chunk, |common| unsafe {
                common.copy_out(chunk as *mut c_void, from, bytes, stream)
            })?;
            // SAFETY: the copy to page-locked memory of `CHUNK` bytes is over.
            unsafe { part.as_mut_ptr().copy_from_nonoverlapping(chunk as *const u8, bytes) };
        }
        self.bounce.put(chunk);
        Ok(())
    }
}
