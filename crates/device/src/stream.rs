//! In-order streams: kernels, copies, work on the host, and waits.
//!
//! On the host devices a stream is [`crate::host`]'s; on the others it is the driver's.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::driver::{Direction, Driver, Faults, Handle, HostCall};
use crate::host::{Entry, HostJob, HostStream, Op, SharedJob, Turn};
use crate::release::release;
use crate::{Device, DeviceError, DeviceKind, Element, Function, Graph, Grid, Kernel};
use crate::{Pinned, Tensor};

/// A stream of a driver.
pub(crate) struct RawStream {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) handle: Handle,
    /// The functions that the graph which is being captured will need; `None` when there is none.
    capture: Mutex<Option<Vec<Function>>>,
    /// Of calls on the host.
    pub(crate) faults: Arc<Faults>,
}

impl RawStream {
    pub(crate) fn new(driver: &Arc<dyn Driver>) -> Result<RawStream, DeviceError> {
        let (driver, handle) = (driver.clone(), driver.stream_create()?);
        Ok(RawStream { driver, handle, capture: Mutex::new(None), faults: Arc::default() })
    }

    fn captured(&self) -> MutexGuard<'_, Option<Vec<Function>>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A graph would keep it, and run it as often as it is launched.
    pub(crate) fn refuse_in_capture(&self, what: &str) -> Result<(), DeviceError> {
        match *self.captured() {
            None => Ok(()),
            Some(_) => {
                let message = format!("{what} cannot be part of a captured graph");
                Err(DeviceError::Misuse { device: self.driver.kind(), message })
            }
        }
    }

    fn synchronize(&self, until: Option<Instant>) -> Result<bool, DeviceError> {
        let reached = self.driver.stream_synchronize(self.handle, until)?;
        self.faults.report().map(|()| reached)
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        let stream = self.handle;
        release(&self.driver, move |driver| driver.stream_destroy(stream));
    }
}

/// The queue behind a stream.
#[derive(Clone)]
pub(crate) enum Queue {
    Host(Arc<HostStream>),
    Driver(Arc<RawStream>),
}

/// An in-order queue of kernels, copies and work on the host; clones are handles to the same one.
///
/// Work of different streams overlaps, and only events order it. An error of work that was queued
/// appears at the next wait for the stream, or for an event after it. What is left out until then:
///
/// | device | behind a kernel or a copy that failed | behind work on the host that failed |
/// |---|---|---|
/// | host | its stream, and streams that wait for an event there | the same |
/// | simulator | everything, of all streams | its stream |
/// | vendors' | everything, for good | work on the host of its stream |
#[derive(Clone)]
pub struct Stream {
    device: Device,
    pub(crate) queue: Queue,
}

/// A stream that captures a graph; it goes back to running work even where the work panics.
struct Capture<'a> {
    raw: &'a RawStream,
}

impl Capture<'_> {
    fn end(self) -> Result<Graph, DeviceError> {
        std::mem::ManuallyDrop::new(self).finish()
    }

    fn finish(&self) -> Result<Graph, DeviceError> {
        let functions = self.raw.captured().take().unwrap_or_default();
        let handle = self.raw.driver.capture_end(self.raw.handle)?;
        Ok(Graph::new(self.raw.driver.clone(), handle, functions))
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        drop(self.finish());
    }
}

/// The handles that a vendor's library needs to enqueue work of its own.
#[derive(Debug, Clone, Copy)]
pub struct Foreign {
    pub kind: DeviceKind,
    /// The driver's stream (`CUstream`, `hipStream_t`).
    pub stream: *mut c_void,
}

impl Stream {
    pub(crate) fn new(device: Device, queue: Queue) -> Stream {
        Stream { device, queue }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `kernel` after everything launched before it. On the CPU it has run when this
    /// returns, if nothing else of the stream was queued or running; otherwise it is queued. On
    /// the guarded device it always runs later.
    ///
    /// # Errors
    /// An error of `kernel`, if it has run; a device whose kernels come from modules; a device that
    /// was given up.
    pub fn launch<F>(&self, name: &'static str, kernel: F) -> Result<(), DeviceError>
    where
        F: FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static,
    {
        let stream = self.host_stream(name)?;
        match stream.enter()? {
            Entry::Inline(_turn) => Kernel::run(name, &self.device, kernel),
            Entry::Lost => Ok(()),
            Entry::Queue => stream.push_kernel(self.device.clone(), name, kernel),
        }
    }

    /// Runs `work` on the host after everything launched before it, on no thread of the caller;
    /// later work of the stream waits for it. It may block, for a peer for instance, which stops
    /// no other stream. On the host devices it reaches memory by [`Device::with_memory`]. Where a
    /// driver runs it, it must not call the device, and the driver may run the calls of several
    /// streams one after another: there it must not block for what another stream's call does.
    ///
    /// # Errors
    /// A stream that captures a graph; a device that was given up. What `work` returns appears at
    /// the next wait.
    pub fn host<F>(&self, work: F) -> Result<(), DeviceError>
    where
        F: FnOnce() -> Result<(), DeviceError> + Send + 'static,
    {
        self.enqueue_host(HostJob::Once(Box::new(work)))
    }

    /// As [`Stream::host`], for work that is the same every time: on the host devices nothing is
    /// allocated for it.
    ///
    /// # Errors
    /// As [`Stream::host`].
    pub fn host_shared(&self, work: SharedJob) -> Result<(), DeviceError> {
        self.enqueue_host(HostJob::Shared(work))
    }

    fn enqueue_host(&self, job: HostJob) -> Result<(), DeviceError> {
        match &self.queue {
            Queue::Host(stream) => stream.push(Op::Host(job)),
            Queue::Driver(raw) => {
                raw.refuse_in_capture("work on the host")?;
                let (faults, abort) = (raw.faults.clone(), raw.driver.abort().clone());
                raw.driver.host(raw.handle, HostCall { job, faults, abort, is_left_out: false })
            }
        }
    }

    /// Lets a library of the device's vendor enqueue work: `call` gets the driver's stream, with
    /// the device current in this thread.
    ///
    /// # Errors
    /// An error of `call`; a device without a vendor's driver.
    ///
    /// # Safety
    /// The library's work goes on this stream alone, and every address in it stays good until it is
    /// done. The stream is neither destroyed nor kept beyond its handles.
    pub unsafe fn foreign<R>(
        &self,
        call: impl FnOnce(Foreign) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let raw = self.raw("streams of a vendor's driver")?;
        raw.driver.enter()?;
        let stream = raw.handle.0 as *mut c_void;
        call(Foreign { kind: self.device.kind(), stream })
    }

    /// Enqueues a kernel of a module, with one argument.
    ///
    /// # Errors
    /// A shape that the device or the kernel does not allow; an argument of another size than the
    /// kernel's, where the module knows it; memory of another device. Errors of earlier work may
    /// appear here.
    ///
    /// # Safety
    /// `Args` is the kernel's argument, and until the work is done, or for as long as a graph
    /// that captures it may run, every address in it is good for what the kernel does with it.
    pub unsafe fn launch_module<Args: bytemuck::Pod>(
        &self,
        function: &Function,
        grid: &Grid,
        args: &Args,
    ) -> Result<(), DeviceError> {
        let raw = self.raw("modules")?;
        let args = bytemuck::bytes_of(args);
        function.check(&raw.driver, grid, args.len())?;
        if let Some(functions) = raw.captured().as_mut() {
            functions.push(function.clone());
        }
        // SAFETY: the caller's.
        unsafe { raw.driver.launch(raw.handle, function.handle(), function.name(), grid, args) }
    }

    /// Copies `values` to `to`; they have been taken when this returns.
    ///
    /// # Errors
    /// Another number of elements or another type; a stream that captures a graph.
    pub fn copy_in<T: Element>(&self, to: &Tensor, values: &[T]) -> Result<(), DeviceError> {
        if to.len() != values.len() {
            return Err(DeviceError::Elements { got: values.len(), expected: to.len() });
        }
        let stream = match &self.queue {
            Queue::Host(stream) => stream,
            Queue::Driver(raw) => {
                self.check::<T>("copy_in", to)?;
                let bytes = bytemuck::cast_slice(values);
                raw.refuse_in_capture("a copy from memory of the host")?;
                return match to.is_empty() {
                    true => Ok(()),
                    false => raw.driver.copy_in(raw.handle, to.address(), bytes),
                };
            }
        };
        match stream.enter()? {
            Entry::Inline(_turn) => Kernel::run("copy_in", &self.device, |k| {
                k.write::<T>(to)?.copy_from_slice(values);
                Ok(())
            }),
            Entry::Lost => Ok(()),
            Entry::Queue => {
                let (to, values) = (to.clone(), values.to_vec());
                self.launch("copy_in", move |k| {
                    k.write::<T>(&to)?.copy_from_slice(&values);
                    Ok(())
                })
            }
        }
    }

    /// Waits for the stream and copies `from` to `values`.
    ///
    /// # Errors
    /// An earlier error of the stream; another number of elements or another type.
    pub fn copy_out<T: Element>(&self, from: &Tensor, values: &mut [T]) -> Result<(), DeviceError> {
        if from.len() != values.len() {
            return Err(DeviceError::Elements { got: values.len(), expected: from.len() });
        }
        match &self.queue {
            Queue::Host(_) => self.with_memory("copy_out", |k| {
                values.copy_from_slice(k.read::<T>(from)?);
                Ok(())
            }),
            Queue::Driver(raw) => {
                self.check::<T>("copy_out", from)?;
                raw.refuse_in_capture("a copy to memory of the host")?;
                let values = bytemuck::cast_slice_mut(values);
                if !from.is_empty() {
                    raw.driver.copy_out(raw.handle, values, from.address())?;
                }
                self.synchronize()
            }
        }
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

    /// Enqueues a copy from one tensor to another of the same type and number of elements.
    ///
    /// # Errors
    /// Another type or number of elements; memory of another device; overlapping memory.
    pub fn copy(&self, to: &Tensor, from: &Tensor) -> Result<(), DeviceError> {
        let kernel = "copy";
        if to.len() != from.len() {
            return Err(DeviceError::Elements { got: from.len(), expected: to.len() });
        }
        if to.dtype() != from.dtype() {
            return Err(DeviceError::Dtype { kernel, got: to.dtype(), expected: from.dtype() });
        }
        self.check_device(kernel, to)?;
        self.check_device(kernel, from)?;
        let (start, end, bytes) = (to.address(), from.address(), to.bytes());
        if bytes > 0 && start.abs_diff(end) < bytes as u64 {
            return Err(DeviceError::Overlap { kernel });
        }
        match &self.queue {
            _ if bytes == 0 => Ok(()),
            Queue::Driver(raw) => {
                raw.driver.copy(raw.handle, start, end, bytes, Direction::DeviceToDevice)
            }
            Queue::Host(_) => {
                let (to, from) = (to.as_bytes(), from.as_bytes());
                self.launch(kernel, move |k| {
                    k.write::<u8>(&to)?.copy_from_slice(k.read::<u8>(&from)?);
                    Ok(())
                })
            }
        }
    }

    /// Sets every byte of `to`.
    ///
    /// # Errors
    /// Memory of another device.
    pub fn fill(&self, to: &Tensor, byte: u8) -> Result<(), DeviceError> {
        self.check_device("fill", to)?;
        match &self.queue {
            _ if to.is_empty() => Ok(()),
            Queue::Driver(raw) => raw.driver.fill(raw.handle, to.address(), byte, to.bytes()),
            Queue::Host(_) => {
                let to = to.as_bytes();
                self.launch("fill", move |k| {
                    k.write::<u8>(&to)?.fill(byte);
                    Ok(())
                })
            }
        }
    }

    /// Enqueues a copy of the first bytes of `from` to all of `to`, and does not wait for it.
    ///
    /// # Errors
    /// More bytes than `from` has; memory of another device.
    ///
    /// # Safety
    /// Nothing writes to `from` until the copy is done.
    pub unsafe fn copy_in_async(&self, to: &Tensor, from: &Pinned) -> Result<(), DeviceError> {
        let kernel = "copy_in_async";
        self.check_pinned(kernel, to, from)?;
        match &self.queue {
            _ if to.is_empty() => Ok(()),
            Queue::Driver(raw) => {
                let (to, bytes) = (to.address(), to.bytes());
                let start = from.start().as_ptr().addr() as u64;
                raw.driver.copy(raw.handle, to, start, bytes, Direction::HostToDevice)
            }
            Queue::Host(stream) => {
                let from = from.mapping().ok_or(DeviceError::Foreign { kernel })?.clone();
                stream.push(Op::CopyIn { to: to.as_bytes(), from })
            }
        }
    }

    /// Enqueues a copy of all of `from` to the first bytes of `to`, and does not wait for it.
    ///
    /// # Errors
    /// More bytes than `to` has; memory of another device.
    ///
    /// # Safety
    /// Nothing touches `to` until the copy is done.
    pub unsafe fn copy_out_async(&self, to: &Pinned, from: &Tensor) -> Result<(), DeviceError> {
        let kernel = "copy_out_async";
        self.check_pinned(kernel, from, to)?;
        match &self.queue {
            _ if from.is_empty() => Ok(()),
            Queue::Driver(raw) => {
                let (from, bytes) = (from.address(), from.bytes());
                let start = to.start().as_ptr().addr() as u64;
                raw.driver.copy(raw.handle, start, from, bytes, Direction::DeviceToHost)
            }
            Queue::Host(stream) => {
                let to = to.mapping().ok_or(DeviceError::Foreign { kernel })?.clone();
                stream.push(Op::CopyOut { to, from: from.as_bytes() })
            }
        }
    }

    /// Waits for the stream, then runs `kernel` at once; for host work on device memory (saving,
    /// communication) whose closure borrows from the caller. Work on the host that is itself part
    /// of a stream uses [`Device::with_memory`].
    ///
    /// # Errors
    /// An earlier error of the stream, or what `kernel` returned; a device whose memory the host
    /// cannot reach.
    pub fn with_memory<R>(
        &self,
        name: &'static str,
        kernel: impl FnOnce(&Kernel) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let _turn = self.host_stream(name)?.wait_for_turn()?;
        Kernel::run(name, &self.device, kernel)
    }

    /// The stream as the caller's own, until the turn is dropped, if nothing is queued or running
    /// on it: for work as that of [`Stream::host`] by whoever would wait for it anyway. None on
    /// the guarded device, which runs everything later, and where a driver has the streams.
    ///
    /// # Errors
    /// A device that was given up.
    pub fn try_turn(&self) -> Result<Option<Turn<'_>>, DeviceError> {
        let Queue::Host(stream) = &self.queue else { return Ok(None) };
        Ok(match stream.enter()? {
            Entry::Inline(turn) => Some(turn),
            Entry::Lost | Entry::Queue => None,
        })
    }

    /// Keeps what `work` enqueues on this stream, instead of running it.
    ///
    /// # Errors
    /// An error of `work`; work that cannot be captured; a device without graphs.
    pub fn capture(
        &self,
        work: impl FnOnce(&Stream) -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        let raw = self.raw("graphs")?;
        raw.driver.capture_begin(raw.handle)?;
        *raw.captured() = Some(Vec::new());
        let capture = Capture { raw };
        let done = work(self);
        let graph = capture.end();
        done.and(graph)
    }

    /// Enqueues the work of a graph.
    ///
    /// # Errors
    /// A graph of another device.
    ///
    /// # Safety
    /// The addresses in the captured launches are still good.
    pub unsafe fn launch_graph(&self, graph: &Graph) -> Result<(), DeviceError> {
        let raw = self.raw("graphs")?;
        graph.launch(&raw.driver, raw.handle)
    }

    /// Whether everything launched so far has run.
    ///
    /// # Errors
    /// As [`Stream::synchronize`].
    pub fn is_done(&self) -> Result<bool, DeviceError> {
        match &self.queue {
            Queue::Host(stream) => stream.is_done(),
            Queue::Driver(raw) => raw.synchronize(Some(Instant::now())),
        }
    }

    /// Blocks until everything launched so far has run.
    ///
    /// # Errors
    /// The first error since the last wait; a device that was given up; work that waits for the
    /// stream that it is part of.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.synchronize_bounded(None).map(|_| ())
    }

    /// As [`Stream::synchronize`] up to `at`: false if something had not run by then.
    ///
    /// # Errors
    /// As [`Stream::synchronize`].
    pub fn synchronize_until(&self, at: Instant) -> Result<bool, DeviceError> {
        self.synchronize_bounded(Some(at))
    }

    fn synchronize_bounded(&self, until: Option<Instant>) -> Result<bool, DeviceError> {
        match &self.queue {
            Queue::Host(stream) => stream.synchronize(until),
            Queue::Driver(raw) => raw.synchronize(until),
        }
    }

    fn raw(&self, what: &'static str) -> Result<&RawStream, DeviceError> {
        match &self.queue {
            Queue::Driver(raw) => Ok(raw),
            Queue::Host(_) => Err(DeviceError::Unsupported { device: self.device.kind(), what }),
        }
    }

    fn host_stream(&self, kernel: &'static str) -> Result<&HostStream, DeviceError> {
        match &self.queue {
            Queue::Host(stream) => Ok(stream),
            Queue::Driver(_) => {
                Err(DeviceError::NoHostKernels { kernel, device: self.device.kind() })
            }
        }
    }

    fn check<T: Element>(&self, kernel: &'static str, tensor: &Tensor) -> Result<(), DeviceError> {
        if tensor.dtype() != T::DTYPE {
            let (got, expected) = (T::DTYPE, tensor.dtype());
            return Err(DeviceError::Dtype { kernel, got, expected });
        }
        self.check_device(kernel, tensor)
    }

    fn check_device(&self, kernel: &'static str, tensor: &Tensor) -> Result<(), DeviceError> {
        match tensor.buffer().device().is_same(&self.device) {
            true => Ok(()),
            false => Err(DeviceError::Foreign { kernel }),
        }
    }

    fn check_pinned(
        &self,
        kernel: &'static str,
        tensor: &Tensor,
        pinned: &Pinned,
    ) -> Result<(), DeviceError> {
        self.check_device(kernel, tensor)?;
        if !pinned.is_of(self.device.kind()) {
            return Err(DeviceError::Foreign { kernel });
        }
        match pinned.len() >= tensor.bytes() {
            true => Ok(()),
            false => Err(DeviceError::Elements { got: tensor.bytes(), expected: pinned.len() }),
        }
    }
}

#[cfg(test)]
mod tests;
