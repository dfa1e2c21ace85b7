//! Memory, streams and launch, on the CPU and on the guarded test device.
//!
//! ```text
//! Device ──alloc──▶ Buffer ◀── Tensor (offset, shape, dtype)
//!    │
//!    └─stream─▶ Stream ──launch(name, kernel)──▶ Kernel ──read/write──▶ &[T], &mut [T]
//! ```
//!
//! Invariants:
//!   * memory is touched only through a [`Kernel`] or a copy: nothing else hands out slices;
//!   * kernels of one device run one at a time, in launch order, and a kernel cannot obtain
//!     overlapping ranges when one of them is writable, so the slices are sound by construction;
//!   * [`DeviceKind::Guarded`] runs launches late and keeps its memory inaccessible in between:
//!     code that assumes host memory, or that forgets to wait, fails there.
//!
//! Shared mappings may be changed by other processes; whoever maps one keeps kernels and peers
//! apart by a barrier (see the `comm` crate).

mod dtype;
mod error;
mod memory;
mod parallel;
mod stream;
mod tensor;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub use dtype::{DType, Element};
pub use error::DeviceError;
pub use memory::Buffer;
pub use parallel::Parallel;
pub use stream::{Event, Kernel, Stream};
pub use tensor::{Shape, Tensor};

use memory::Mapping;
use stream::Queue;

/// Which device this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Host memory; a launch runs at once.
    Cpu,
    /// Host memory that is inaccessible outside kernels and copies; a launch runs late.
    Guarded,
}

impl std::str::FromStr for DeviceKind {
    type Err = DeviceError;

    fn from_str(word: &str) -> Result<DeviceKind, DeviceError> {
        match word {
            "cpu" => Ok(DeviceKind::Cpu),
            "guarded" => Ok(DeviceKind::Guarded),
            _ => Err(DeviceError::UnknownDevice { got: word.to_owned() }),
        }
    }
}

/// Where the bytes of a buffer live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// This process alone.
    Private,
    /// A new file (in a memory file system) that other processes may map.
    Shared(PathBuf),
}

/// A device; clones are handles to the same one.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    kind: DeviceKind,
    parallel: Parallel,
    /// Held while a kernel runs: the proof that its slices are exclusive.
    running: Mutex<()>,
    queue: Mutex<Queue>,
    allocated: AtomicUsize,
    peak: AtomicUsize,
}

impl Device {
    /// A device whose kernels use `threads` threads.
    ///
    /// # Errors
    /// The thread pool cannot be made.
    pub fn new(kind: DeviceKind, threads: usize) -> Result<Device, DeviceError> {
        let inner = Inner {
            kind,
            parallel: Parallel::new(threads)?,
            running: Mutex::new(()),
            queue: Mutex::new(Queue::default()),
            allocated: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        };
        Ok(Device { inner: Arc::new(inner) })
    }

    /// The CPU.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn cpu(threads: usize) -> Result<Device, DeviceError> {
        Device::new(DeviceKind::Cpu, threads)
    }

    /// The guarded test device.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn guarded(threads: usize) -> Result<Device, DeviceError> {
        Device::new(DeviceKind::Guarded, threads)
    }

    pub fn kind(&self) -> DeviceKind {
        self.inner.kind
    }

    /// Threads that a kernel may use.
    pub fn threads(&self) -> usize {
        self.inner.parallel.threads()
    }

    /// Runs `work` on a thread of the device's pool, so that kernels launched by it start their
    /// parallel loops without handing over first.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.inner.parallel.install(work)
    }

    /// Zeroed memory of `bytes` bytes, page-aligned.
    ///
    /// # Errors
    /// The operating system refuses; a shared file exists already or cannot be made.
    pub fn alloc(&self, bytes: usize, placement: &Placement) -> Result<Buffer, DeviceError> {
        let mapping = match placement {
            Placement::Private => Mapping::private(bytes)?,
            Placement::Shared(path) => Mapping::create(path, bytes)?,
        };
        self.adopt(mapping)
    }

    /// Memory that another process made as [`Placement::Shared`].
    ///
    /// # Errors
    /// The file is missing or has another length.
    pub fn map_shared(&self, path: &Path, bytes: usize) -> Result<Buffer, DeviceError> {
        self.adopt(Mapping::open(path, bytes)?)
    }

    /// A zeroed tensor in memory of its own.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn zeros(&self, shape: &[usize], dtype: DType) -> Result<Tensor, DeviceError> {
        let elements: usize = shape.iter().product();
        let buffer = self.alloc(elements * dtype.bytes(), &Placement::Private)?;
        Tensor::new(buffer, 0, shape, dtype)
    }

    /// A tensor with the given values.
    ///
    /// # Errors
    /// As [`Device::alloc`]; the number of values does not match the shape.
    pub fn tensor<T: Element>(&self, shape: &[usize], values: &[T]) -> Result<Tensor, DeviceError> {
        let tensor = self.zeros(shape, T::DTYPE)?;
        self.stream().copy_in(&tensor, values)?;
        Ok(tensor)
    }

    /// The compute stream.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone())
    }

    /// Bytes in live buffers.
    pub fn allocated_bytes(&self) -> usize {
        self.inner.allocated.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever in live buffers.
    pub fn peak_bytes(&self) -> usize {
        self.inner.peak.load(Ordering::Relaxed)
    }

    fn adopt(&self, mapping: Mapping) -> Result<Buffer, DeviceError> {
        if self.inner.kind == DeviceKind::Guarded {
            mapping.protect(memory::Access::None)?;
        }
        let now = self.inner.allocated.fetch_add(mapping.len(), Ordering::Relaxed) + mapping.len();
        self.inner.peak.fetch_max(now, Ordering::Relaxed);
        Ok(Buffer::new(mapping, self.clone()))
    }

    fn is_same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} device, {} threads", self.kind(), self.threads())
    }
}
