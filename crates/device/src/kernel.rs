//! What a kernel on the host devices sees while it runs: the borrow checker of device memory.

use std::cell::RefCell;

use crate::memory::Access;
use crate::profile::Work;
use crate::{Buffer, Device, DeviceError, DeviceKind, Element, Parallel, Tensor};

/// Most memory ranges that one kernel may ask for.
const GRANTS: usize = 32;

/// What a kernel sees while it runs: typed slices of device memory and the device's threads.
pub struct Kernel<'a> {
    name: &'static str,
    device: &'a Device,
    grants: RefCell<Grants>,
    work: Work,
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

impl<'a> Kernel<'a> {
    pub(crate) fn new(name: &'static str, device: &'a Device) -> Kernel<'a> {
        Kernel { name, device, grants: RefCell::new(Grants::new()), work: Work::default() }
    }

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

    /// Tells a profile how many floating-point operations this kernel does.
    pub fn flops(&self, flops: usize) {
        self.work.flops.set(flops as u64);
    }

    /// Tells a profile how many bytes its operands have, each counted once.
    pub fn bytes(&self, bytes: usize) {
        self.work.bytes.set(bytes as u64);
    }

    /// As [`Kernel::bytes`], where they are all the memory that this kernel asks for.
    pub fn streams(&self) {
        self.work.streams.set(true);
    }

    /// Floating-point operations and bytes, as far as they are known.
    pub(crate) fn work(&self) -> (u64, u64) {
        let grants = self.grants.borrow();
        let ranges = grants.ranges[..grants.count].iter();
        let asked = ranges.map(|&(start, end, _)| (end - start) as u64).sum();
        let bytes = if self.work.streams.get() { asked } else { self.work.bytes.get() };
        (self.work.flops.get(), bytes)
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
        let mapping = tensor.buffer.mapping().ok_or(DeviceError::Foreign { kernel })?;
        // SAFETY: `Tensor::new` proved that offset + len elements lie inside the buffer.
        let start = unsafe { mapping.start().cast::<T>().add(tensor.offset()) };
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

    pub(crate) fn close(&self) -> Result<(), DeviceError> {
        let mut grants = self.grants.borrow_mut();
        grants.open.drain(..).try_for_each(|buffer| buffer.protect(Access::None))
    }
}
