//! Buffers, and page mappings: the only place that talks to the operating system about memory.

use std::any::Any;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::Driver;
use crate::release::release;
use crate::{Device, DeviceError, DeviceKind};

/// The access that the pages of a mapping allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    None,
    ReadWrite,
}

/// Where memory lies that several processes map: in a file without a name, which every one of them
/// holds open and the kernel frees with the last.
#[derive(Debug, Clone)]
pub struct SharedPart {
    file: Arc<File>,
    offset: u64,
}

impl SharedPart {
    /// The part of `file` from byte `offset` on, a multiple of the page size.
    ///
    /// # Safety
    /// The grants of a device ([`crate::Kernel`]) know nothing of other processes and other
    /// mappings. So whoever maps the part, in this process or another, sees to it that while a
    /// kernel or a copy writes bytes of it, nothing else touches these by way of another mapping.
    pub unsafe fn new(file: Arc<File>, offset: u64) -> SharedPart {
        SharedPart { file, offset }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Of its first byte in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// A page-aligned mapping, unmapped on drop; shared memory that was reserved here is given back.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    reserved: Option<SharedPart>,
}

// SAFETY: a mapping is plain memory; who may touch it when is decided by `Kernel`.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself offers no access.
unsafe impl Sync for Mapping {}

const HUGE_PAGE: usize = 2 << 20;

impl Mapping {
    pub(crate) fn private(len: usize) -> Result<Mapping, DeviceError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapping = Mapping::map(len, flags, -1, 0)
            .map_err(|source| DeviceError::OutOfMemory { bytes: len, source })?;
        #[cfg(target_os = "linux")]
        if len >= 2 * HUGE_PAGE {
            // SAFETY: advice on a range that was just mapped; a refusal only costs speed.
            unsafe { libc::madvise(mapping.start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(mapping)
    }

    /// Reserves a part of a shared file, which nobody has used before, and maps it.
    pub(crate) fn create(part: &SharedPart, len: usize) -> Result<Mapping, DeviceError> {
        // Reserving the pages now turns a lack of memory into an error here instead of a SIGBUS at
        // the first touch.
        let reserved = if len == 0 { Ok(()) } else { reserve(part, len) };
        reserved.map_err(|source| DeviceError::Shared { action: "reserve", bytes: len, source })?;
        let mut mapping = Mapping::open(part, len)?;
        mapping.reserved = Some(part.clone());
        Ok(mapping)
    }

    /// Maps a part that another process has reserved.
    pub(crate) fn open(part: &SharedPart, len: usize) -> Result<Mapping, DeviceError> {
        let failed = |source| DeviceError::Shared { action: "map", bytes: len, source };
        let end = part.file.metadata().map_err(failed)?.len();
        // Pages beyond the end would be a SIGBUS.
        if len > 0 && part.offset.saturating_add(len as u64) > end {
            return Err(failed(std::io::Error::other(format!("they end at {end}"))));
        }
        let offset = part.offset as libc::off_t;
        Mapping::map(len, libc::MAP_SHARED, part.file.as_raw_fd(), offset).map_err(failed)
    }

    fn map(
        len: usize,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: libc::off_t,
    ) -> std::io::Result<Mapping> {
        if len == 0 {
            return Ok(Mapping { start: NonNull::dangling(), len, reserved: None });
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the system's choice overlaps nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| std::io::Error::other("null map"))?;
        Ok(Mapping { start, len, reserved: None })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
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
        #[cfg(target_os = "linux")]
        if let Some(part) = self.reserved.as_ref().filter(|_| self.len > 0) {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: it asks for a number and changes nothing.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            // Whole pages, as they were reserved: other parts begin on pages of their own.
            let len = self.len.next_multiple_of(usize::try_from(page).unwrap_or(1).max(1));
            let (offset, len) = (part.offset as libc::off_t, len as libc::off_t);
            // SAFETY: a system call on an open descriptor. Who still maps the part reads zeros; a
            // refusal leaves the pages to the end of the last process.
            unsafe { libc::fallocate(part.file.as_raw_fd(), mode, offset, len) };
        }
    }
}

/// Gives a part of a file pages of its own. A signal that comes in between is no refusal.
fn reserve(part: &SharedPart, len: usize) -> std::io::Result<()> {
    let (offset, len) = (part.offset as libc::off_t, len as libc::off_t);
    loop {
        // SAFETY: a system call on an open descriptor.
        match unsafe { libc::posix_fallocate(part.file.as_raw_fd(), offset, len) } {
            0 => return Ok(()),
            libc::EINTR => {}
            code => return Err(std::io::Error::from_raw_os_error(code)),
        }
    }
}

/// Memory of this machine, in bytes; 0 where it does not tell.
pub(crate) fn host_bytes() -> u64 {
    // SAFETY: both ask for a number and change nothing.
    let (pages, bytes) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0) * u64::try_from(bytes).unwrap_or(0)
}

/// Device memory; clones share it, the last one frees it.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Allocation>,
}

struct Allocation {
    storage: Storage,
    device: Device,
    /// Guarded device only: kernels that use it now.
    open: Mutex<usize>,
}

pub(crate) enum Storage {
    Host(Mapping),
    /// Memory of a driver; address 0 where it is empty.
    Device {
        driver: Arc<dyn Driver>,
        address: u64,
        len: usize,
    },
    /// Memory of the device that a library of its vendor allocated, and frees with its owner.
    Foreign {
        driver: Arc<dyn Driver>,
        address: u64,
        len: usize,
        owner: Option<Box<dyn Any + Send + Sync>>,
    },
}

impl Storage {
    pub(crate) fn len(&self) -> usize {
        match self {
            Storage::Host(mapping) => mapping.len(),
            Storage::Device { len, .. } | Storage::Foreign { len, .. } => *len,
        }
    }
}

impl Buffer {
    pub(crate) fn new(storage: Storage, device: Device) -> Buffer {
        Buffer { inner: Arc::new(Allocation { storage, device, open: Mutex::new(0) }) }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.inner.storage.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Where kernels see the first byte; 0 for an empty buffer. On the host devices a host address,
    /// which is of no use outside kernels.
    pub fn address(&self) -> u64 {
        match &self.inner.storage {
            _ if self.is_empty() => 0,
            Storage::Host(mapping) => mapping.start().as_ptr().addr() as u64,
            Storage::Device { address, .. } | Storage::Foreign { address, .. } => *address,
        }
    }

    /// Makes its pages accessible until as many calls of `close`.
    pub(crate) fn open(&self) -> Result<(), DeviceError> {
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        if *open == 0 {
            self.protect(Access::ReadWrite)?;
        }
        *open += 1;
        Ok(())
    }

    pub(crate) fn close(&self) -> Result<(), DeviceError> {
        let mut open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open -= 1;
        if *open == 0 { self.protect(Access::None) } else { Ok(()) }
    }

    fn protect(&self, access: Access) -> Result<(), DeviceError> {
        self.mapping().map_or(Ok(()), |mapping| mapping.protect(access))
    }

    /// The host memory of a host device.
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        match &self.inner.storage {
            Storage::Host(mapping) => Some(mapping),
            Storage::Device { .. } | Storage::Foreign { .. } => None,
        }
    }

    pub(crate) fn is_same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        match &mut self.storage {
            &mut Storage::Device { ref driver, address, len: 1.. } => {
                release(driver, move |driver| driver.free(address));
            }
            Storage::Foreign { driver, owner, .. } => {
                let owner = owner.take();
                release(driver, move |driver| {
                    driver.quiesce();
                    match driver.abort().is_set() {
                        // The library might wait for the device.
                        true => std::mem::forget(owner),
                        false => drop(owner),
                    }
                });
            }
            Storage::Host(mapping) if mapping.len() > 0 => {
                let start = mapping.start().addr().get();
                self.device.inner.grants.forget(start, start + mapping.len());
            }
            _ => {}
        }
        self.device.inner.allocated.fetch_sub(self.storage.len(), Ordering::Relaxed);
    }
}

/// Host memory that copies can run from and to while the host goes on: page-locked where the
/// device needs that.
pub struct Pinned {
    home: Home,
    len: usize,
}

enum Home {
    /// Shared with the copies that are still to run.
    Host(Arc<Mapping>),
    Device {
        driver: Arc<dyn Driver>,
        address: u64,
    },
}

impl Pinned {
    pub(crate) fn new(device: &Device, len: usize) -> Result<Pinned, DeviceError> {
        let home = match device.driver() {
            None => Home::Host(Arc::new(Mapping::private(len)?)),
            Some(driver) => {
                let address = driver.alloc_pinned(len.max(1))?;
                Home::Device { driver: driver.clone(), address }
            }
        };
        Ok(Pinned { home, len })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        match &self.home {
            Home::Host(mapping) => mapping.start(),
            Home::Device { address, .. } => {
                NonNull::new(*address as *mut u8).unwrap_or(NonNull::dangling())
            }
        }
    }

    /// The bytes.
    ///
    /// # Safety
    /// No copy to this memory is under way.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: initialized memory of `len` bytes that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }

    /// The bytes, to be written.
    ///
    /// # Safety
    /// No copy from or to this memory is under way.
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }

    /// The host memory of a host device.
    pub(crate) fn mapping(&self) -> Option<&Arc<Mapping>> {
        match &self.home {
            Home::Host(mapping) => Some(mapping),
            Home::Device { .. } => None,
        }
    }

    pub(crate) fn is_of(&self, kind: DeviceKind) -> bool {
        match &self.home {
            Home::Host(_) => kind.is_host(),
            Home::Device { driver, .. } => driver.kind() == kind,
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let &Home::Device { ref driver, address } = &self.home {
            release(driver, move |driver| driver.free_pinned(address));
        }
    }
}
