//! In-order streams and the kernel context.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::memory::Access;
use crate::{Buffer, Device, DeviceError, DeviceKind, Element, Parallel, Tensor};

/// Most memory ranges that one kernel may ask for.
const GRANTS: usize = 32;

/// Launches that the guarded device holds back before it runs the oldest.
const LATE: usize = 64;

type Job = Box<dyn FnOnce(&Kernel) -> Result<(), DeviceError> + Send>;

/// Work that the guarded device has accepted and not yet run.
#[derive(Default)]
pub(crate) struct Queue {
    jobs: VecDeque<(&'static str, Job)>,
    /// The first error since the last wait.
    failed: Option<DeviceError>,
}

/// An in-order queue of kernels and copies. All streams of a device share one order, which is
/// always a legal one.
#[derive(Clone)]
pub struct Stream {
    device: Device,
}

/// A point in a stream's order.
#[derive(Clone)]
pub struct Event {
    stream: Stream,
}

impl Event {
    /// Blocks until everything launched before the event has run.
    ///
    /// # Errors
    /// The first error of those launches.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.stream.synchronize()
    }
}

impl Stream {
    pub(crate) fn new(device: Device) -> Stream {
        Stream { device }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `kernel` after everything launched before it. On the CPU it has run when this
    /// returns; on the guarded device it runs later, and its error appears at the next wait.
    ///
    /// # Errors
    /// What `kernel` returned, if it has run.
    pub fn launch<F>(&self, name: &'static str, kernel: F) -> Result<(), DeviceError>
    where
        F: FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static,
    {
        match self.device.kind() {
            DeviceKind::Cpu => self.execute(name, kernel),
            DeviceKind::Guarded => {
                let late = {
                    let mut queue = self.queue();
                    queue.jobs.push_back((name, Box::new(kernel)));
                    queue.jobs.len() > LATE
                };
                if late {
                    self.run_oldest();
                }
                Ok(())
            }
        }
    }

    /// Copies `values` to `to`.
    ///
    /// # Errors
    /// Another number of elements or another type.
    pub fn copy_in<T: Element>(&self, to: &Tensor, values: &[T]) -> Result<(), DeviceError> {
        if to.len() != values.len() {
            return Err(DeviceError::Elements { got: values.len(), expected: to.len() });
        }
        if self.device.kind() == DeviceKind::Cpu {
            return self.execute("copy_in", |k| {
                k.write::<T>(to)?.copy_from_slice(values);
                Ok(())
            });
        }
        let (to, values) = (to.clone(), values.to_vec());
        self.launch("copy_in", move |k| {
            k.write::<T>(&to)?.copy_from_slice(&values);
            Ok(())
        })
    }

    /// Waits for the stream and copies `from` to `values`.
    ///
    /// # Errors
    /// An earlier error of the stream; another number of elements or another type.
    pub fn copy_out<T: Element>(&self, from: &Tensor, values: &mut [T]) -> Result<(), DeviceError> {
        if from.len() != values.len() {
            return Err(DeviceError::Elements { got: values.len(), expected: from.len() });
        }
        self.synchronize()?;
        self.execute("copy_out", |k| {
            values.copy_from_slice(k.read::<T>(from)?);
            Ok(())
        })
    }

    /// As [`Stream::copy_out`], to a new vector.
    ///
    /// # Errors
    /// As [`Stream::copy_out`].
    pub fn to_vec<T: Element>(&self, from: &Tensor) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); from.len()];
        self.copy_out(from, &mut values)?;
        Ok(values)
    }

    /// Waits for the stream, then runs `kernel` at once; for host work on device memory (saving,
    /// communication) whose closure borrows from the caller.
    ///
    /// # Errors
    /// An earlier error of the stream, or what `kernel` returned.
    pub fn with_memory<R>(
        &self,
        name: &'static str,
        kernel: impl FnOnce(&Kernel) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        self.synchronize()?;
        self.execute(name, kernel)
    }

    /// The present end of the stream.
    pub fn record(&self) -> Event {
        Event { stream: self.clone() }
    }

    /// Blocks until everything launched so far has run.
    ///
    /// # Errors
    /// The first error since the last wait.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        if self.device.kind() == DeviceKind::Cpu {
            return Ok(());
        }
        while self.run_oldest() {}
        match self.queue().failed.take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.device.inner.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_oldest(&self) -> bool {
        let Some((name, job)) = self.queue().jobs.pop_front() else { return false };
        if self.queue().failed.is_some() {
            return true;
        }
        if let Err(error) = self.execute(name, job) {
            self.queue().failed.get_or_insert(error);
        }
        true
    }

    fn execute<R>(
        &self,
        name: &'static str,
        kernel: impl FnOnce(&Kernel) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        // A panic in an earlier kernel leaves no broken invariant in `()`.
        let guard = self.device.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        let context = Kernel { name, device: &self.device, grants: RefCell::new(Grants::new()) };
        let result = kernel(&context);
        context.close()?;
        drop(guard);
        result
    }
}

/// What a kernel sees while it runs: typed slices of device memory and the device's threads.
pub struct Kernel<'a> {
    name: &'static str,
    device: &'a Device,
    grants: RefCell<Grants>,
}

struct Grants {
    ranges: [(usize, usize, bool); GRANTS],
    count: usize,
    /// Guarded device only: buffers made accessible for this kernel.
    open: Vec<Buffer>,
}

impl Grants {
    fn new() -> Grants {
        Grants { ranges: [(0, 0, false); GRANTS], count: 0, open: Vec::new() }
    }
}

impl Kernel<'_> {
    /// The elements of `tensor`.
    ///
    /// # Errors
    /// Another type; memory that this kernel already writes; memory of another device.
    pub fn read<'s, T: Element>(&'s self, tensor: &'s Tensor) -> Result<&'s [T], DeviceError> {
        let (start, len) = self.grant::<T>(tensor, false)?;
        // SAFETY: `Tensor::new` keeps the range inside the buffer, which `tensor` keeps alive for
        // 's; it is page-aligned memory plus whole elements of T, so aligned; every bit pattern
        // is a T. `grant` refused overlaps with writable slices of this kernel, and the running
        // lock excludes other kernels of this device.
        Ok(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// The elements of `tensor`, to be written.
    ///
    /// # Errors
    /// Another type; memory that this kernel already reads or writes; memory of another device.
    #[allow(clippy::mut_from_ref)] // `grant` is the borrow checker of device memory.
    pub fn write<'s, T: Element>(&'s self, tensor: &'s Tensor) -> Result<&'s mut [T], DeviceError> {
        let (start, len) = self.grant::<T>(tensor, true)?;
        // SAFETY: as in `read`; `grant` refused overlaps with any slice of this kernel.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, len) })
    }

    /// Parallel loops on the device's threads.
    pub fn parallel(&self) -> &Parallel {
        &self.device.inner.parallel
    }

    /// An error of this kernel.
    pub fn error(&self, message: impl std::fmt::Display) -> DeviceError {
        DeviceError::Kernel { kernel: self.name, message: message.to_string() }
    }

    fn grant<T: Element>(
        &self,
        tensor: &Tensor,
        write: bool,
    ) -> Result<(*mut T, usize), DeviceError> {
        let kernel = self.name;
        if tensor.dtype() != T::DTYPE {
            let (got, expected) = (T::DTYPE, tensor.dtype());
            return Err(DeviceError::Dtype { kernel, got, expected });
        }
        if !tensor.buffer.device().is_same(self.device) {
            return Err(DeviceError::Foreign { kernel });
        }
        if tensor.is_empty() {
            return Ok((std::ptr::NonNull::dangling().as_ptr(), 0));
        }
        // SAFETY: `Tensor::new` proved that offset + len elements lie inside the buffer.
        let start = unsafe { tensor.buffer.start().cast::<T>().add(tensor.offset()) };
        let range = (start.addr().get(), start.addr().get() + tensor.len() * size_of::<T>());
        let mut grants = self.grants.borrow_mut();
        for &(from, to, writes) in &grants.ranges[..grants.count] {
            if (write || writes) && range.0 < to && from < range.1 {
                return Err(DeviceError::Overlap { kernel });
            }
        }
        if grants.count == GRANTS {
            return Err(DeviceError::Grants { kernel, limit: GRANTS });
        }
        let next = grants.count;
        grants.ranges[next] = (range.0, range.1, write);
        grants.count += 1;
        if self.device.kind() == DeviceKind::Guarded {
            self.open(&mut grants, &tensor.buffer)?;
        }
        Ok((start.as_ptr(), tensor.len()))
    }

    fn open(&self, grants: &mut Grants, buffer: &Buffer) -> Result<(), DeviceError> {
        if !grants.open.iter().any(|open| open.is_same(buffer)) {
            buffer.protect(Access::ReadWrite)?;
            grants.open.push(buffer.clone());
        }
        Ok(())
    }

    fn close(&self) -> Result<(), DeviceError> {
        let mut grants = self.grants.borrow_mut();
        grants.open.drain(..).try_for_each(|buffer| buffer.protect(Access::None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Placement};

    fn add_one(stream: &Stream, x: &Tensor) -> Result<(), DeviceError> {
        let x = x.clone();
        stream.launch("add_one", move |k| {
            k.write::<f32>(&x)?.iter_mut().for_each(|x| *x += 1.0);
            Ok(())
        })
    }

    #[test]
    fn kernels_run_in_order_on_both_devices() {
        for device in [Device::cpu(2).unwrap(), Device::guarded(2).unwrap()] {
            let x = device.tensor(&[3], &[1.0_f32, 2.0, 3.0]).unwrap();
            let stream = device.stream();
            for _ in 0..200 {
                add_one(&stream, &x).unwrap();
            }
            assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [201.0, 202.0, 203.0], "{device:?}");
        }
    }

    #[test]
    fn overlapping_writes_and_wrong_types_are_refused() {
        let device = Device::cpu(1).unwrap();
        let x = device.zeros(&[8], DType::F32).unwrap();
        let tail = x.flat(4..8).unwrap();
        let (a, b) = (x.clone(), tail.clone());
        let twice = device.stream().launch("twice", move |k| {
            let _a = k.write::<f32>(&a)?;
            k.read::<f32>(&b).map(|_| ())
        });
        assert!(matches!(twice, Err(DeviceError::Overlap { kernel: "twice" })));
        let wrong = device.stream().launch("wrong", move |k| k.read::<f64>(&tail).map(|_| ()));
        assert!(matches!(wrong, Err(DeviceError::Dtype { .. })));
    }

    #[test]
    fn a_late_error_surfaces_at_the_next_wait() {
        let device = Device::guarded(1).unwrap();
        let x = device.zeros(&[8], DType::F32).unwrap();
        let stream = device.stream();
        stream.launch("fail", |k| Err(k.error("on purpose"))).unwrap();
        add_one(&stream, &x).unwrap();
        let error = stream.synchronize().unwrap_err();
        assert_eq!(error.to_string(), "kernel `fail`: on purpose");
        assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [0.0; 8], "work after an error is dropped");
    }

    #[test]
    fn guarded_memory_is_inaccessible_between_kernels() {
        let device = Device::guarded(1).unwrap();
        let x = device.zeros(&[1024], DType::F32).unwrap();
        device.stream().synchronize().unwrap();
        // The system refuses to read inaccessible pages on our behalf: EFAULT instead of a crash.
        let path = std::env::temp_dir().join(format!("muster-guarded-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        let start = x.buffer().start().as_ptr();
        // SAFETY: write(2) validates the range itself and fails without touching our memory.
        let wrote =
            unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&file), start.cast(), 16) };
        std::fs::remove_file(&path).unwrap();
        assert_eq!(wrote, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn shared_memory_is_seen_by_another_mapping_and_removed_with_its_maker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("window");
        let device = Device::cpu(1).unwrap();
        let ours = device.alloc(64, &Placement::Shared(path.clone())).unwrap();
        let theirs = device.map_shared(&path, 64).unwrap();
        let ours = Tensor::new(ours, 0, &[16], DType::U32).unwrap();
        let theirs = Tensor::new(theirs, 0, &[16], DType::U32).unwrap();
        device.stream().copy_in(&ours, &[7_u32; 16]).unwrap();
        assert_eq!(device.stream().to_vec::<u32>(&theirs).unwrap(), [7; 16]);
        assert!(device.map_shared(&path, 65).is_err());
        drop(ours);
        assert!(!path.exists());
        assert_eq!(device.allocated_bytes(), 64);
    }
}
