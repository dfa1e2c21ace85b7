//! The view that a kernel on the host devices has while it runs: the borrow checker of device
//! memory.

use std::cell::{Cell, RefCell};

use crate::grants::{Denied, GRANTS, Range};
use crate::profile::Work;
use crate::trace::{self, Detail};
use crate::{Buffer, Device, DeviceError, DeviceKind, Element, Parallel, Tensor};

/// The view that a kernel has while it runs: typed slices of device memory and the device's
/// threads.
pub struct Kernel<'a> {
    name: &'static str,
    device: &'a Device,
    /// Its entry among the grants of the device, from its first range on.
    entry: Cell<Option<usize>>,
    /// Bytes of all that it asked for.
    asked: Cell<u64>,
    /// Guarded device only: buffers made accessible for this kernel.
    open: RefCell<Vec<Buffer>>,
    work: Work,
}

impl<'a> Kernel<'a> {
    /// Runs `kernel` now, on this thread.
    pub(crate) fn run<R>(
        name: &'static str,
        device: &'a Device,
        kernel: impl FnOnce(&Kernel) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let (entry, asked, open) = (Cell::new(None), Cell::new(0), RefCell::default());
        let context = Kernel { name, device, entry, asked, open, work: Work::default() };
        let start = device.inner.profile.start();
        let begin_ns = trace::begin();
        let result = kernel(&context);
        if let Some(begin_ns) = begin_ns {
            let (flops, bytes) = context.work();
            trace::end(name, begin_ns, Detail::Kernel { flops, bytes });
        }
        if let Some(start) = start {
            device.inner.profile.add(name, start, context.work());
        }
        context.close()?;
        crate::work::mark();
        result
    }

    /// The elements of `tensor`.
    ///
    /// # Errors
    /// Another type; memory that this kernel already writes, or that another kernel writes at the
    /// same time because no event orders the two; memory of another device.
    pub fn read<'s, T: Element>(&'s self, tensor: &'s Tensor) -> Result<&'s [T], DeviceError> {
        let (start, len) = self.grant::<T>(tensor, false)?;
        // SAFETY: `Tensor::new` keeps the range inside the buffer, which `tensor` keeps alive for
        // 's; it is page-aligned memory plus whole elements of T, so aligned; every bit pattern
        // is a T. Until this kernel is dropped, the grants of the device exclude writable slices
        // of the range, of this kernel and of all others.
        Ok(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// The elements of `tensor`, to be written.
    ///
    /// # Errors
    /// Another type; memory that this kernel already reads or writes, or that another kernel uses
    /// at the same time because no event orders the two; memory of another device.
    #[allow(clippy::mut_from_ref)] // `grant` is the borrow checker of device memory.
    pub fn write<'s, T: Element>(&'s self, tensor: &'s Tensor) -> Result<&'s mut [T], DeviceError> {
        let (start, len) = self.grant::<T>(tensor, true)?;
        // SAFETY: as in `read`; the grants exclude all other slices of the range.
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
        let bytes = if self.work.streams.get() { self.asked.get() } else { self.work.bytes.get() };
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
        let (from, bytes) = (start.addr().get(), tensor.len() * size_of::<T>());
        let range = Range { start: from, end: from + bytes, writes: write };
        let claimed = self.device.inner.grants.claim(self.entry.get(), kernel, range);
        let entry = claimed.map_err(|denied| match denied {
            Denied::Own => DeviceError::Overlap { kernel },
            Denied::Other(other) => DeviceError::Unordered { kernel, other },
            Denied::Full => DeviceError::Grants { kernel, limit: GRANTS },
        })?;
        self.entry.set(Some(entry));
        self.asked.set(self.asked.get() + bytes as u64);
        if self.device.kind() == DeviceKind::Guarded {
            self.open(&tensor.buffer)?;
        }
        Ok((start.as_ptr(), tensor.len()))
    }

    fn open(&self, buffer: &Buffer) -> Result<(), DeviceError> {
        let mut open = self.open.borrow_mut();
        if !open.iter().any(|open| open.is_same(buffer)) {
            buffer.open()?;
            open.push(buffer.clone());
        }
        Ok(())
    }

    fn close(&self) -> Result<(), DeviceError> {
        let mut done = Ok(());
        for buffer in self.open.borrow_mut().drain(..) {
            // All of them, whatever becomes of one.
            done = buffer.close().and(done);
        }
        done
    }
}

impl Drop for Kernel<'_> {
    fn drop(&mut self) {
        // After a panic; else it was done, and its error told.
        let _ = self.close();
        if let Some(entry) = self.entry.get() {
            self.device.inner.grants.release(entry);
        }
    }
}
