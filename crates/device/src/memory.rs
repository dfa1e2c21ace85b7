//! Page mappings: the only place that talks to the operating system about memory.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::{Device, DeviceError};

/// What the pages of a mapping allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    None,
    ReadWrite,
}

/// A page-aligned mapping, unmapped on drop; a created shared file is unlinked on drop.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    unlink: Option<PathBuf>,
}

// SAFETY: a mapping is plain memory; who may touch it when is decided by `Kernel`.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself offers no access.
unsafe impl Sync for Mapping {}

const HUGE_PAGE: usize = 2 << 20;

impl Mapping {
    pub(crate) fn private(len: usize) -> Result<Mapping, DeviceError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapping = Mapping::map(len, flags, -1)
            .map_err(|source| DeviceError::OutOfMemory { bytes: len, source })?;
        #[cfg(target_os = "linux")]
        if len >= 2 * HUGE_PAGE {
            // SAFETY: advice on a range that was just mapped; a refusal only costs speed.
            unsafe { libc::madvise(mapping.start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(mapping)
    }

    pub(crate) fn create(path: &Path, len: usize) -> Result<Mapping, DeviceError> {
        let failed = |action| {
            move |source| DeviceError::Shared { path: path.to_owned(), action, bytes: len, source }
        };
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(failed("create"))?;
        // Reserving the blocks now turns a full memory file system into an error here instead of
        // a SIGBUS at the first touch.
        let code = match len {
            0 => 0,
            // SAFETY: a system call on an open descriptor.
            _ => unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len as libc::off_t) },
        };
        if code != 0 {
            let _ = std::fs::remove_file(path);
            return Err(failed("reserve")(std::io::Error::from_raw_os_error(code)));
        }
        let mapping = Mapping::map(len, libc::MAP_SHARED, file.as_raw_fd());
        let mut mapping = mapping.map_err(failed("map"))?;
        mapping.unlink = Some(path.to_owned());
        Ok(mapping)
    }

    pub(crate) fn open(path: &Path, len: usize) -> Result<Mapping, DeviceError> {
        let failed = |action| {
            move |source| DeviceError::Shared { path: path.to_owned(), action, bytes: len, source }
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open"))?;
        let actual = file.metadata().map_err(failed("measure"))?.len();
        if actual != len as u64 {
            let source = std::io::Error::other(format!("the file has {actual} bytes"));
            return Err(failed("map")(source));
        }
        Mapping::map(len, libc::MAP_SHARED, file.as_raw_fd()).map_err(failed("map"))
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int) -> std::io::Result<Mapping> {
        if len == 0 {
            return Ok(Mapping { start: NonNull::dangling(), len, unlink: None });
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the system's choice overlaps nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| std::io::Error::other("null map"))?;
        Ok(Mapping { start, len, unlink: None })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn protect(&self, access: Access) -> Result<(), DeviceError> {
        if self.len == 0 {
            return Ok(());
        }
        let protection = match access {
            Access::None => libc::PROT_NONE,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: the range is exactly this mapping; only `Kernel` hands out references into it,
        // and protection is withdrawn only after the kernel has returned.
        let code = unsafe { libc::mprotect(self.start.as_ptr().cast(), self.len, protection) };
        if code == 0 { Ok(()) } else { Err(DeviceError::Protect(std::io::Error::last_os_error())) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range was mapped by `map` and no reference into it outlives its buffer.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
        if let Some(path) = &self.unlink {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Device memory; clones share it, the last one frees it.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Allocation>,
}

struct Allocation {
    mapping: Mapping,
    device: Device,
}

impl Buffer {
    pub(crate) fn new(mapping: Mapping, device: Device) -> Buffer {
        Buffer { inner: Arc::new(Allocation { mapping, device }) }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.inner.mapping.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    pub(crate) fn protect(&self, access: Access) -> Result<(), DeviceError> {
        self.inner.mapping.protect(access)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.inner.mapping.start
    }

    pub(crate) fn is_same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.device.inner.allocated.fetch_sub(self.mapping.len(), Ordering::Relaxed);
    }
}
