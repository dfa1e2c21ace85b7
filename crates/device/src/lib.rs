//! Memory, streams, modules and launch, on the CPU, on NVIDIA and AMD devices, on a simulator of
//! both, and on a guarded test device.
//!
//! ```text
//! Device ──alloc──▶ Buffer ◀── Tensor (offset, shape, dtype)
//!    ├─stream─▶ Stream ──launch(name, kernel)──▶ Kernel ──read/write──▶ &[T], &mut [T]    host
//!    │             ├──host(work)──▶ a thread of no caller
//!    │             └──record──▶ Event ◀── wait_for (of other streams), wait_until (of the host)
//!    └─load_module─▶ Module ─▶ Function ──launch_module(grid, args)                    the others
//! ```
//!
//! Nothing of a vendor is linked: driver libraries are opened when a device of theirs is made, and
//! what is missing is an error that says what was looked for and what to install.
//!
//! Invariants:
//!   * memory is touched only through a [`Kernel`], a copy or a module's kernel: nothing else hands
//!     out slices;
//!   * closures run on the host devices only; there kernels that run at once cannot obtain
//!     overlapping ranges when one of them is writable, nor can one kernel, so the slices are sound
//!     by construction: a missing event is an error that names both kernels;
//!   * [`DeviceKind::Guarded`] runs launches late, in an order that a seed draws where events leave
//!     it open, and keeps its memory inaccessible in between: code that assumes host memory, or
//!     that forgets to wait, fails there;
//!   * a wait can have a deadline, and all of them end when the device is given up
//!     ([`Device::abort`]).
//!
//! Shared mappings may be changed by way of other mappings, of which the grants know nothing; so a
//! [`SharedPart`] is `unsafe` to make, and whoever does keeps kernels and peers apart by a barrier
//! (see the `comm` crate).

mod abort;
mod driver;
mod dtype;
mod error;
mod event;
mod gpu;
mod grants;
mod host;
mod host_call;
mod kernel;
mod kind;
mod memory;
mod module;
mod parallel;
mod pool;
mod profile;
mod random;
mod release;
mod sim;
pub mod simulated;
mod staged;
mod stream;
mod streaming;
mod sync;
mod tensor;
pub mod trace;
mod vendor;
mod watch;
pub mod work;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use driver::{Grid, Properties};
pub use dtype::{DType, Element};
pub use error::DeviceError;
pub use event::Event;
pub use gpu::entry_points;
pub use host::{SharedJob, Turn};
pub use kernel::Kernel;
pub use kind::{Arch, DeviceKind};
pub use memory::{Buffer, Pinned, SharedPart};
pub use module::{Function, Graph, Module};
pub use parallel::Parallel;
pub use profile::Operation;
pub use sim::SimOptions;
pub use staged::{BounceBuffers, Staged};
pub use stream::{Foreign, Stream};
pub use streaming::copy_streaming;
pub use tensor::{Shape, Tensor};
pub use vendor::Failure;

use driver::Driver;
use grants::Grants;
use host::{HostStream, Streams};
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
    /// The proof that the slices of running host kernels are exclusive.
    grants: Grants,
    /// Values that floors above keep with the device, one of each type.
    kept: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    allocated: AtomicUsize,
    peak: AtomicUsize,
    profile: Profile,
    back: Back,
    /// The stream for everyone.
    compute: Queue,
}

/// The back end of a device.
enum Back {
    Host(Arc<Streams>),
    Driver(Arc<dyn Driver>),
}

impl Back {
    fn stream(&self) -> Result<Queue, DeviceError> {
        match self {
            Back::Host(streams) => Ok(Queue::Host(HostStream::new(streams))),
            Back::Driver(driver) => Ok(Queue::Driver(Arc::new(RawStream::new(driver)?))),
        }
    }
}

/// The order in which the guarded device runs what events do not order.
const GUARD_SEED: u64 = 1;

impl Device {
    /// A device whose host kernels use `threads` threads.
    ///
    /// # Errors
    /// The thread pool cannot be made; the driver's library, an entry point of it or the device is
    /// missing.
    pub fn new(kind: DeviceKind, threads: usize) -> Result<Device, DeviceError> {
        let back = match kind {
            DeviceKind::Cpu => Back::Host(Streams::new(kind, 0)),
            DeviceKind::Guarded => Back::Host(Streams::new(kind, guard_seed()?)),
            DeviceKind::Sim(arch) => {
                Back::Driver(Arc::new(Sim::new(arch, SimOptions::from_environment(arch)?)))
            }
            DeviceKind::Cuda(ordinal) => Back::Driver(Arc::new(gpu::cuda::open(ordinal)?)),
            DeviceKind::Hip(ordinal) => Back::Driver(Arc::new(gpu::hip::open(ordinal)?)),
        };
        Device::with_back(kind, threads, back)
    }

    /// Where a device is on the bus of its machine ([`Properties::bus`]), without opening it:
    /// memory of it is not taken. Empty of one that is on none.
    ///
    /// # Errors
    /// The driver's library, an entry point of it or the device is missing.
    pub fn bus_of(kind: DeviceKind) -> Result<String, DeviceError> {
        match kind {
            DeviceKind::Cpu | DeviceKind::Guarded | DeviceKind::Sim(_) => Ok(String::new()),
            DeviceKind::Cuda(ordinal) => gpu::cuda::bus(ordinal),
            DeviceKind::Hip(ordinal) => gpu::hip::bus(ordinal),
        }
    }

    /// The simulated device.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn sim(arch: Arch, threads: usize, options: SimOptions) -> Result<Device, DeviceError> {
        let back = Back::Driver(Arc::new(Sim::new(arch, options)));
        Device::with_back(DeviceKind::Sim(arch), threads, back)
    }

    fn with_back(kind: DeviceKind, threads: usize, back: Back) -> Result<Device, DeviceError> {
        let compute = back.stream()?;
        let inner = Inner {
            kind,
            parallel: Parallel::new(threads)?,
            grants: Grants::new(),
            kept: Mutex::default(),
            allocated: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            profile: Profile::default(),
            back,
            compute,
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

    /// The guarded test device, whose order the environment variable `MUSTER_GUARD_SEED` draws.
    ///
    /// # Errors
    /// As [`Device::new`]; a seed that is no number.
    pub fn guarded(threads: usize) -> Result<Device, DeviceError> {
        Device::new(DeviceKind::Guarded, threads)
    }

    /// The guarded test device, with the order of what events do not order: 0 runs everything in
    /// the order of launching, other seeds draw one.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn guarded_in_order(threads: usize, seed: u64) -> Result<Device, DeviceError> {
        let back = Back::Host(Streams::new(DeviceKind::Guarded, seed));
        Device::with_back(DeviceKind::Guarded, threads, back)
    }

    pub fn kind(&self) -> DeviceKind {
        self.inner.kind
    }

    /// # Errors
    /// The device was given up.
    fn check(&self) -> Result<(), DeviceError> {
        match &self.inner.back {
            Back::Host(streams) => streams.abort.check(self.kind()),
            Back::Driver(driver) => driver.abort().check(self.kind()),
        }
    }

    fn driver(&self) -> Option<&Arc<dyn Driver>> {
        match &self.inner.back {
            Back::Host(_) => None,
            Back::Driver(driver) => Some(driver),
        }
    }

    /// Gives the device up, from any thread: work on the host that is queued is dropped, waits
    /// return [`DeviceError::Aborted`] at once, and so does everything that is asked of the
    /// device later. A free that waits for work ends, too. Frees and drops of buffers, streams,
    /// events and modules neither wait nor block from then on: what a driver holds for them is left
    /// to the end of the process. Only the first call counts.
    pub fn abort(&self, why: &str) {
        match &self.inner.back {
            Back::Host(streams) => streams.give_up(why),
            Back::Driver(driver) => {
                driver.abort().set(why);
                driver.wake();
            }
        }
    }

    /// Runs `kernel` now, as part of no stream: for work on the host that is part of one itself
    /// ([`Stream::host`]) and whose order with others events have made.
    ///
    /// # Errors
    /// An error of `kernel`; a device whose memory the host cannot reach, or that was given up.
    pub fn with_memory<R>(
        &self,
        name: &'static str,
        kernel: impl FnOnce(&Kernel) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        self.check()?;
        match self.kind().is_host() {
            true => Kernel::run(name, self, kernel),
            false => Err(DeviceError::NoHostKernels { kernel: name, device: self.kind() }),
        }
    }

    /// The properties of the device.
    pub fn properties(&self) -> Properties {
        match self.driver() {
            Some(driver) => driver.properties().clone(),
            None => Properties {
                name: self.kind().to_string(),
                bus: String::new(),
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
        self.check()?;
        let device = self.kind();
        let driver = self.driver().ok_or(DeviceError::Unsupported { device, what: "modules" })?;
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
        self.check()?;
        if let Some(driver) = self.driver() {
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

    /// Memory of this device that a library of its vendor allocated. It is freed by dropping
    /// `owner`, when all work that was enqueued before is over; of a device that was given up it
    /// is left to the end of the process.
    ///
    /// # Errors
    /// A device without a vendor's driver.
    ///
    /// # Safety
    /// The device may read and write `bytes` bytes from `address` on, and they stay until `owner`
    /// is dropped; nobody uses them but by way of the buffer.
    pub unsafe fn adopt_foreign(
        &self,
        address: u64,
        bytes: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Buffer, DeviceError> {
        self.check()?;
        let device = self.kind();
        match self.driver() {
            Some(driver) if !matches!(device, DeviceKind::Sim(_)) => {
                let (driver, owner) = (driver.clone(), Some(owner));
                Ok(self.count(Storage::Foreign { driver, address, len: bytes, owner }))
            }
            _ => Err(DeviceError::Unsupported { device, what: "memory of a vendor's library" }),
        }
    }

    /// Memory that another process made as [`Placement::Shared`].
    ///
    /// # Errors
    /// The file is shorter; another device than the host's.
    pub fn map_shared(&self, part: &SharedPart, bytes: usize) -> Result<Buffer, DeviceError> {
        self.check()?;
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
        let bytes = Shape::new(shape)?.bytes(dtype)?;
        let buffer = self.alloc(bytes, &Placement::Private)?;
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
        self.check()?;
        Pinned::new(self, bytes)
    }

    /// The compute stream.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone(), self.inner.compute.clone())
    }

    /// A stream of its own, which other streams order themselves to by events. On the CPU it has
    /// a thread of its own as soon as something is queued.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn new_stream(&self) -> Result<Stream, DeviceError> {
        self.check()?;
        Ok(Stream::new(self.clone(), self.inner.back.stream()?))
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

    /// Ends the profile and returns the work and time of kernels since [`Device::begin_profile`],
    /// by name.
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

    /// Whether both are handles to one device.
    pub fn is_same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

/// The seed from the environment variable `MUSTER_GUARD_SEED`.
fn guard_seed() -> Result<u64, DeviceError> {
    let Ok(seed) = std::env::var("MUSTER_GUARD_SEED") else { return Ok(GUARD_SEED) };
    seed.trim().parse().map_err(|_| DeviceError::Misuse {
        device: DeviceKind::Guarded,
        message: format!("MUSTER_GUARD_SEED is `{seed}`, which is no whole number"),
    })
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} device, {} threads", self.kind(), self.threads())
    }
}
