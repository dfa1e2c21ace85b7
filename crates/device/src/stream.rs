//! In-order streams, and events between them.
//!
//! On the host devices all streams share one order, which is always a legal one. On the others
//! each stream is the driver's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::driver::{Direction, Driver, Handle};
use crate::{Device, DeviceError, DeviceKind, Element, Function, Graph, Grid, Kernel};
use crate::{Pinned, Tensor};

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

/// A stream of a driver.
pub(crate) struct RawStream {
    driver: Arc<dyn Driver>,
    handle: Handle,
    /// What the graph that is being captured will need; `None` when there is none.
    capture: Mutex<Option<Vec<Function>>>,
}

impl RawStream {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Result<RawStream, DeviceError> {
        let handle = driver.stream_create()?;
        Ok(RawStream { driver, handle, capture: Mutex::new(None) })
    }

    fn captured(&self) -> std::sync::MutexGuard<'_, Option<Vec<Function>>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RawStream {
    fn drop(&mut self) {
        self.driver.stream_destroy(self.handle);
    }
}

/// An in-order queue of kernels and copies; clones are handles to the same one.
#[derive(Clone)]
pub struct Stream {
    device: Device,
    raw: Option<Arc<RawStream>>,
}

/// A point in a stream's order.
#[derive(Clone)]
pub struct Event {
    stream: Stream,
    mark: Mark,
}

#[derive(Clone)]
enum Mark {
    Cpu(Instant),
    Guarded,
    Driver(Arc<RawEvent>),
}

struct RawEvent {
    driver: Arc<dyn Driver>,
    handle: Handle,
}

impl Drop for RawEvent {
    fn drop(&mut self) {
        self.driver.event_destroy(self.handle);
    }
}

impl Event {
    /// Blocks until everything launched before the event has run.
    ///
    /// # Errors
    /// The first error of those launches.
    pub fn wait(&self) -> Result<(), DeviceError> {
        match &self.mark {
            Mark::Driver(raw) => raw.driver.event_synchronize(raw.handle),
            Mark::Cpu(_) | Mark::Guarded => self.stream.synchronize(),
        }
    }

    /// Milliseconds of the device from `earlier` to this event; waits for both.
    ///
    /// # Errors
    /// A device on which times mean nothing; an error of the launches before; an event of another
    /// device.
    pub fn elapsed_ms(&self, earlier: &Event) -> Result<f64, DeviceError> {
        let device = self.stream.device.kind();
        match (&earlier.mark, &self.mark) {
            (Mark::Cpu(start), Mark::Cpu(end)) => {
                Ok(end.saturating_duration_since(*start).as_secs_f64() * 1e3)
            }
            (Mark::Driver(start), Mark::Driver(end)) if Arc::ptr_eq(&start.driver, &end.driver) => {
                start.driver.event_synchronize(start.handle)?;
                end.driver.event_synchronize(end.handle)?;
                end.driver.event_elapsed_ms(start.handle, end.handle).map(f64::from)
            }
            (Mark::Guarded, Mark::Guarded) => Err(DeviceError::NoClock { device }),
            _ => Err(foreign_event(device)),
        }
    }
}

fn foreign_event(device: DeviceKind) -> DeviceError {
    DeviceError::Misuse { device, message: "the event is of another device".to_owned() }
}

impl Stream {
    pub(crate) fn new(device: Device, raw: Option<Arc<RawStream>>) -> Stream {
        Stream { device, raw }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `kernel` after everything launched before it. On the CPU it has run when this
    /// returns; on the guarded device it runs later, and its error appears at the next wait.
    ///
    /// # Errors
    /// What `kernel` returned, if it has run; a device whose kernels come from modules.
    pub fn launch<F>(&self, name: &'static str, kernel: F) -> Result<(), DeviceError>
    where
        F: FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static,
    {
        match self.device.kind() {
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
            _ => self.execute(name, kernel),
        }
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
        if let Some(raw) = &self.raw {
            self.check::<T>("copy_in", to)?;
            return match to.is_empty() {
                true => Ok(()),
                false => raw.driver.copy_in(raw.handle, to.address(), bytemuck::cast_slice(values)),
            };
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
        if let Some(raw) = &self.raw {
            self.check::<T>("copy_out", from)?;
            let values = bytemuck::cast_slice_mut(values);
            return match from.is_empty() {
                true => self.synchronize(),
                false => raw.driver.copy_out(raw.handle, values, from.address()),
            };
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
        match &self.raw {
            _ if bytes == 0 => Ok(()),
            Some(raw) => raw.driver.copy(raw.handle, start, end, bytes, Direction::DeviceToDevice),
            None => {
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
        match &self.raw {
            _ if to.is_empty() => Ok(()),
            Some(raw) => raw.driver.fill(raw.handle, to.address(), byte, to.bytes()),
            None => {
                let to = to.as_bytes();
                self.launch("fill", move |k| {
                    k.write::<u8>(&to)?.fill(byte);
                    Ok(())
                })
            }
        }
    }

    /// Enqueues a copy of all of `from` to `to`, and does not wait for it.
    ///
    /// # Errors
    /// Another number of bytes; memory of another device.
    ///
    /// # Safety
    /// Nothing writes to `from` until the copy is done.
    pub unsafe fn copy_in_async(&self, to: &Tensor, from: &Pinned) -> Result<(), DeviceError> {
        self.check_pinned("copy_in_async", to, from)?;
        let start = from.start();
        match &self.raw {
            _ if to.is_empty() => Ok(()),
            Some(raw) => {
                let (to, bytes) = (to.address(), to.bytes());
                let start = start.as_ptr().addr() as u64;
                raw.driver.copy(raw.handle, to, start, bytes, Direction::HostToDevice)
            }
            None => self.with_memory("copy_in_async", |k| {
                // SAFETY: the caller's.
                k.write::<u8>(&to.as_bytes())?.copy_from_slice(unsafe { from.bytes() });
                Ok(())
            }),
        }
    }

    /// Enqueues a copy of `from` to all of `to`, and does not wait for it.
    ///
    /// # Errors
    /// Another number of bytes; memory of another device.
    ///
    /// # Safety
    /// Nothing touches `to` until the copy is done.
    pub unsafe fn copy_out_async(&self, to: &Pinned, from: &Tensor) -> Result<(), DeviceError> {
        self.check_pinned("copy_out_async", from, to)?;
        let start = to.start();
        match &self.raw {
            _ if from.is_empty() => Ok(()),
            Some(raw) => {
                let (from, bytes) = (from.address(), from.bytes());
                let start = start.as_ptr().addr() as u64;
                raw.driver.copy(raw.handle, start, from, bytes, Direction::DeviceToHost)
            }
            None => self.with_memory("copy_out_async", |k| {
                let from = from.as_bytes();
                let from = k.read::<u8>(&from)?;
                // SAFETY: `check_pinned` compared the lengths, and the caller keeps away.
                unsafe { from.as_ptr().copy_to_nonoverlapping(start.as_ptr(), from.len()) };
                Ok(())
            }),
        }
    }

    /// Waits for the stream, then runs `kernel` at once; for host work on device memory (saving,
    /// communication) whose closure borrows from the caller.
    ///
    /// # Errors
    /// An earlier error of the stream, or what `kernel` returned; a device whose memory the host
    /// cannot reach.
    pub fn with_memory<R>(
        &self,
        name: &'static str,
        kernel: impl FnOnce(&Kernel) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        self.synchronize()?;
        self.execute(name, kernel)
    }

    /// The present end of the stream.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self) -> Result<Event, DeviceError> {
        let mark = match &self.raw {
            Some(raw) => {
                let driver = raw.driver.clone();
                let handle = driver.event_create()?;
                let event = RawEvent { driver, handle };
                raw.driver.event_record(handle, raw.handle)?;
                Mark::Driver(Arc::new(event))
            }
            None if self.device.kind() == DeviceKind::Cpu => Mark::Cpu(Instant::now()),
            None => Mark::Guarded,
        };
        Ok(Event { stream: self.clone(), mark })
    }

    /// Lets the stream's later work wait for `event`; the caller goes on.
    ///
    /// # Errors
    /// An event of another device.
    pub fn wait_for(&self, event: &Event) -> Result<(), DeviceError> {
        match (&self.raw, &event.mark) {
            (Some(raw), Mark::Driver(event)) if Arc::ptr_eq(&raw.driver, &event.driver) => {
                raw.driver.stream_wait(raw.handle, event.handle)
            }
            (None, _) if event.stream.device.is_same(&self.device) => Ok(()),
            _ => Err(foreign_event(self.device.kind())),
        }
    }

    /// Keeps what `work` enqueues on this stream, instead of running it.
    ///
    /// # Errors
    /// What `work` returned; work that cannot be captured; a device without graphs.
    pub fn capture(
        &self,
        work: impl FnOnce(&Stream) -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        let raw = self.raw("graphs")?;
        raw.driver.capture_begin(raw.handle)?;
        *raw.captured() = Some(Vec::new());
        let done = work(self);
        let functions = raw.captured().take().unwrap_or_default();
        let graph = raw.driver.capture_end(raw.handle);
        let graph = graph.map(|handle| Graph::new(raw.driver.clone(), handle, functions));
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

    /// Blocks until everything launched so far has run.
    ///
    /// # Errors
    /// The first error since the last wait.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        if let Some(raw) = &self.raw {
            return raw.driver.stream_synchronize(raw.handle);
        }
        if self.device.kind() == DeviceKind::Cpu {
            return Ok(());
        }
        while self.run_oldest() {}
        match self.queue().failed.take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn raw(&self, what: &'static str) -> Result<&RawStream, DeviceError> {
        let device = self.device.kind();
        self.raw.as_deref().ok_or(DeviceError::Unsupported { device, what })
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
        match pinned.len() == tensor.bytes() {
            true => Ok(()),
            false => Err(DeviceError::Elements { got: pinned.len(), expected: tensor.bytes() }),
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
        if !self.device.kind().is_host() {
            let device = self.device.kind();
            return Err(DeviceError::NoHostKernels { kernel: name, device });
        }
        // A panic in an earlier kernel leaves no broken invariant in `()`.
        let guard = self.device.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        let context = Kernel::new(name, &self.device);
        let start = self.device.inner.profile.start();
        let result = kernel(&context);
        if let Some(start) = start {
            self.device.inner.profile.add(name, start, context.work());
        }
        context.close()?;
        drop(guard);
        crate::work::mark();
        result
    }
}

#[cfg(test)]
mod tests;
