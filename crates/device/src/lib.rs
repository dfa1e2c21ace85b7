//! Memory, streams, modules and launch, on the CPU, on NVIDIA and AMD devices, on a simulator of
//! both, and on a guarded test device.
//!
//! ```text
//! Device ──alloc──▶ Buffer ◀── Tensor (offset, shape, dtype)
//!    ├─stream─▶ Stream ──launch(name, kernel)──▶ Kernel ──read/write──▶ &[T], &mut [T]    host
//!    └─load_module─▶ Module ─▶ Function ──launch_module(grid, args)                    the others
//! ```
//!
//! Nothing of a vendor is linked: driver libraries are opened when a device of theirs is made, and
//! what is missing is an error that says what was looked for and what to install.
//!
//! Invariants:
//!   * memory is touched only through a [`Kernel`], a copy or a module's kernel: nothing else hands
//!     out slices;
//!   * closures run on the host devices only; there kernels of one device run one at a time, in
//!     launch order, and a kernel cannot obtain overlapping ranges when one of them is writable, so
//!     the slices are sound by construction;
//!   * [`DeviceKind::Guarded`] runs launches late and keeps its memory inaccessible in between:
//!     code that assumes host memory, or that forgets to wait, fails there.
//!
//! Shared mappings may be changed by other processes; whoever maps one keeps kernels and peers
//! apart by a barrier (see the `comm` crate).

mod driver;
mod dtype;
mod error;
mod gpu;
mod kernel;
mod kind;
mod memory;
mod module;
mod parallel;
mod pool;
mod profile;
mod sim;
pub mod simulated;
mod stream;
mod tensor;
mod vendor;
pub mod work;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use driver::{Grid, Properties};
pub use dtype::{DType, Element};
pub use error::DeviceError;
pub use gpu::entry_points;
pub use kernel::Kernel;
pub use kind::{Arch, DeviceKind};
pub use memory::{Buffer, Pinned, SharedPart};
pub use module::{Function, Graph, Module};
pub use parallel::Parallel;
pub use profile::Operation;
pub use sim::SimOptions;
pub use stream::{Event, Stream};
pub use tensor::{Shape, Tensor};
pub use vendor::Failure;

use driver::Driver;
use memory::{Mapping, Storage};
use profile::Profile;
use sim::Sim;
use stream::{Queue, RawStream};

/// Where the bytes of a buffer live.
#[derive(Debug, Clone)]
pub enum Placement {
    /// This process alone.
    Private,
    /// A part of a shared file, which nobody has used before and other processes may map.
    Shared(SharedPart),
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
    /// What floors above keep with the device, one of each type.
    kept: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    allocated: AtomicUsize,
    peak: AtomicUsize,
    profile: Profile,
    /// What is not a host device has a driver, and a stream for everyone.
    driver: Option<Arc<dyn Driver>>,
    compute: Option<Arc<RawStream>>,
}

impl Device {
    /// A device whose host kernels use `threads` threads.
    ///
    /// # Errors
    /// The thread pool cannot be made; the driver's library, an entry point of it or the device is
    /// missing.
    pub fn new(kind: DeviceKind, threads: usize) -> Result<Device, DeviceError> {
        let driver: Option<Arc<dyn Driver>> = match kind {
            DeviceKind::Cpu | DeviceKind::Guarded => None,
            DeviceKind::Sim(arch) => {
                Some(Arc::new(Sim::new(arch, SimOptions::from_environment(arch)?)))
            }
            DeviceKind::Cuda(ordinal) => Some(Arc::new(gpu::cuda::open(ordinal)?)),
            DeviceKind::Hip(ordinal) => Some(Arc::new(gpu::hip::open(ordinal)?)),
        };
        Device::with_driver(kind, threads, driver)
    }

    /// The simulated device.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn sim(arch: Arch, threads: usize, options: SimOptions) -> Result<Device, DeviceError> {
        let driver = Arc::new(Sim::new(arch, options));
        Device::with_driver(DeviceKind::Sim(arch), threads, Some(driver))
    }

    fn with_driver(
        kind: DeviceKind,
        threads: usize,
        driver: Option<Arc<dyn Driver>>,
    ) -> Result<Device, DeviceError> {
        let compute = match &driver {
            Some(driver) => Some(Arc::new(RawStream::new(driver.clone())?)),
            None => None,
        };
        let inner = Inner {
            kind,
            parallel: Parallel::new(threads)?,
            driver,
            compute,
            running: Mutex::new(()),
            queue: Mutex::new(Queue::default()),
            kept: Mutex::default(),
            allocated: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            profile: Profile::default(),
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

    /// What is known of the device.
    pub fn properties(&self) -> Properties {
        match &self.inner.driver {
            Some(driver) => driver.properties().clone(),
            None => Properties {
                name: self.kind().to_string(),
                arch: None,
                multiprocessors: u32::try_from(self.threads()).unwrap_or(u32::MAX),
                l2_bytes: 0,
                shared_bytes_per_block: 0,
                memory_bytes: memory::host_bytes(),
                clock_khz: 0,
                driver: "host".to_owned(),
                simulated: false,
            },
        }
    }

    /// Loads device kernels.
    ///
    /// # Errors
    /// An image that is no module for this device; a host device.
    pub fn load_module(&self, image: &[u8]) -> Result<Module, DeviceError> {
        let device = self.kind();
        let driver = self.inner.driver.as_ref();
        let driver = driver.ok_or(DeviceError::Unsupported { device, what: "modules" })?;
        Module::load(driver, image)
    }

    /// The `T` that is kept with the device, made by the first call. It must not hold the device,
    /// which would then never close.
    pub fn kept<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(found)) = kept.get(&TypeId::of::<T>()).map(|x| x.clone().downcast::<T>()) {
            return found;
        }
        let made = Arc::new(make());
        kept.insert(TypeId::of::<T>(), made.clone());
        made
    }

    /// Threads that a host kernel may use.
    pub fn threads(&self) -> usize {
        self.inner.parallel.threads()
    }

    /// Zeroed memory of `bytes` bytes, page-aligned on the host devices and 256-byte aligned on the
    /// others.
    ///
    /// # Errors
    /// The operating system or the driver refuses; shared memory on another device than the host's.
    pub fn alloc(&self, bytes: usize, placement: &Placement) -> Result<Buffer, DeviceError> {
        if let Some(driver) = &self.inner.driver {
            if let Placement::Shared(_) = placement {
                let (device, what) = (self.kind(), "memory that is shared between processes");
                return Err(DeviceError::Unsupported { device, what });
            }
            let address = if bytes == 0 { 0 } else { driver.alloc(bytes)? };
            return Ok(self.count(Storage::Device { driver: driver.clone(), address, len: bytes }));
        }
        let mapping = match placement {
            Placement::Private => Mapping::private(bytes)?,
            Placement::Shared(part) => Mapping::create(part, bytes)?,
        };
        self.adopt(mapping)
    }

    /// Memory that another process made as [`Placement::Shared`].
    ///
    /// # Errors
    /// The file is shorter; another device than the host's.
    pub fn map_shared(&self, part: &SharedPart, bytes: usize) -> Result<Buffer, DeviceError> {
        if !self.kind().is_host() {
            let (device, what) = (self.kind(), "memory that is shared between processes");
            return Err(DeviceError::Unsupported { device, what });
        }
        self.adopt(Mapping::open(part, bytes)?)
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

    /// Page-locked host memory of `bytes` bytes, for copies that nobody waits for.
    ///
    /// # Errors
    /// The operating system or the driver refuses.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, DeviceError> {
        Pinned::new(self, bytes)
    }

    /// The compute stream.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone(), self.inner.compute.clone())
    }

    /// A stream of its own, which other streams order themselves to by events. The host devices
    /// have one order for all.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn new_stream(&self) -> Result<Stream, DeviceError> {
        let raw = match &self.inner.driver {
            Some(driver) => Some(Arc::new(RawStream::new(driver.clone())?)),
            None => None,
        };
        Ok(Stream::new(self.clone(), raw))
    }

    /// Bytes in live buffers.
    pub fn allocated_bytes(&self) -> usize {
        self.inner.allocated.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever in live buffers.
    pub fn peak_bytes(&self) -> usize {
        self.inner.peak.load(Ordering::Relaxed)
    }

    /// From now on the kernels of a host device are timed.
    pub fn begin_profile(&self) {
        self.inner.profile.begin();
    }

    /// What kernels took since [`Device::begin_profile`], by name; they are no longer timed.
    pub fn end_profile(&self) -> Vec<(&'static str, Operation)> {
        self.inner.profile.end()
    }

    fn adopt(&self, mapping: Mapping) -> Result<Buffer, DeviceError> {
        if self.inner.kind == DeviceKind::Guarded {
            mapping.protect(memory::Access::None)?;
        }
        Ok(self.count(Storage::Host(mapping)))
    }

    fn count(&self, storage: Storage) -> Buffer {
        let now = self.inner.allocated.fetch_add(storage.len(), Ordering::Relaxed) + storage.len();
        self.inner.peak.fetch_max(now, Ordering::Relaxed);
        Buffer::new(storage, self.clone())
    }

    fn is_same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} device, {} threads", self.kind(), self.threads())
    }
}
