//! Devices behind a vendor's driver: one implementation over the common table of entry points.
//!
//! ```text
//! Gpu ──▶ Common (what both vendors have)
//!     └─▶ Vendor: Cuda (contexts, launch with clusters), Hip (current device, launch)
//! ```
//!
//! Every call first makes the device current in the calling thread, because threads come and go.
//! Refusals become errors with the name of the call; in destructors they are dropped, because the
//! driver reports a broken device at every other call too.
//!
//! Nothing waits inside the driver where it can be helped: waits ask and pause, so that they end
//! in time, and at once when the device is given up. Whatever a driver would wait for itself, in a
//! free or in a copy from or to memory that is not page-locked, is waited for here before. A device
//! that was given up is not called any more, and what was allocated there is left to the end of
//! the process.

mod bounce;
mod calls;
pub(crate) mod cuda;
pub(crate) mod hip;
mod image;
pub(crate) mod library;
mod patience;
mod streams;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::abort::Abort;
use crate::driver::{Direction, Driver, Found, Handle, HostCall, Properties};
use crate::release::close;
use crate::vendor::{
    Attribute, CAPTURE_RELAXED, EVENT_DEFAULT, FUNCTION_MAX_THREADS, Failure, STREAM_NON_BLOCKING,
};
use crate::{DeviceError, DeviceKind, Grid};
use bounce::Bounce;
use streams::Streams;
use table::{Common, Refusal};

/// The functions in which the vendors differ.
pub(crate) trait Vendor: Send + Sync + 'static {
    /// Makes the device current in this thread.
    fn enter(&self) -> Result<(), Refusal>;
    /// Lets go of the device, after all else.
    fn close(&self);
    fn error_name(&self, code: i32) -> String;
    /// Lets launches of `function` ask for `bytes` bytes of dynamic shared memory.
    fn allow_shared(&self, function: u64, bytes: u32) -> Result<(), Refusal>;
    /// As [`Driver::clusters_together`].
    fn clusters_together(&self, function: u64, grid: &Grid) -> Result<u32, Refusal>;
    /// # Safety
    /// As [`Driver::launch`]; `params` points to the argument.
    unsafe fn launch(
        &self,
        stream: u64,
        function: u64,
        grid: &Grid,
        params: &mut [*mut c_void],
    ) -> Result<(), Refusal>;
}

/// The entry points that a device of this kind needs of its vendor's library.
pub fn entry_points(kind: DeviceKind) -> Vec<&'static str> {
    match kind {
        DeviceKind::Cuda(_) => {
            [Common::symbols(table::CUDA), table::CudaOnly::symbols(table::OWN)].concat()
        }
        DeviceKind::Hip(_) => {
            let own = table::HipOnly::symbols(table::OWN);
            [Common::symbols(table::HIP), own, vec![hip::ERROR_NAME]].concat()
        }
        DeviceKind::Cpu | DeviceKind::Guarded | DeviceKind::Sim(_) => Vec::new(),
    }
}

pub(crate) struct Gpu<V: Vendor> {
    kind: DeviceKind,
    common: Arc<Common>,
    vendor: Arc<V>,
    properties: Properties,
    /// Where new memory is cleared, beside whatever the other streams do.
    service: u64,
    /// Dynamic shared memory that functions have been allowed.
    allowed: Mutex<BTreeMap<u64, u32>>,
    streams: Arc<Streams>,
    bounce: Arc<Bounce>,
    abort: Arc<Abort>,
}

/// Dynamic shared memory that needs no permission.
const FREE_SHARED: u32 = 48 << 10;
/// How long a device that is closed may take with the work that is left. What is not over by then
/// is left to the end of the process.
const LAST_WORK: Duration = Duration::from_secs(2);

pub(crate) fn driver_error(
    device: DeviceKind,
    refusal: Refusal,
    name: impl Fn(i32) -> String,
) -> DeviceError {
    let Refusal { call, code } = refusal;
    let failure = Failure::of(code);
    DeviceError::Driver { device, call, code, name: name(code), failure }
}

fn constant_text(text: Option<*const c_char>, otherwise: &str) -> String {
    match text {
        Some(text) if !text.is_null() => {
            // SAFETY: both drivers return constant strings.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        }
        _ => otherwise.to_owned(),
    }
}

/// Initializes the driver and finds a device by number.
fn start(
    common: &Common,
    kind: DeviceKind,
    ordinal: u32,
    advice: &'static str,
    name: impl Fn(i32) -> String,
) -> Result<i32, DeviceError> {
    let mut count = 0;
    // SAFETY: the first call, with the only flags there are; then `count` is written.
    let counted = unsafe { common.init(0).and_then(|()| common.device_count(&raw mut count)) };
    match counted {
        Err(refusal) if Failure::of(refusal.code) == Failure::NoDevice => count = 0,
        other => other.map_err(|refusal| driver_error(kind, refusal, &name))?,
    }
    let wanted = i32::try_from(ordinal).ok().filter(|&ordinal| ordinal < count);
    let Some(wanted) = wanted else {
        let count = u32::try_from(count).unwrap_or(0);
        return Err(DeviceError::NoDevice { device: kind, count, advice });
    };
    let mut device = 0;
    // SAFETY: `device` is written.
    let found = unsafe { common.device_get(&raw mut device, wanted) };
    found.map_err(|refusal| driver_error(kind, refusal, &name))?;
    Ok(device)
}

/// As [`Properties::bus`].
fn bus(common: &Common, device: i32) -> Result<String, Refusal> {
    let mut text = [0_u8; 32];
    // SAFETY: it writes no more than it is told there is.
    unsafe { common.device_bus(text.as_mut_ptr().cast(), 31, device) }?;
    Ok(until_zero(&text).to_lowercase())
}

fn until_zero(text: &[u8]) -> String {
    String::from_utf8_lossy(text.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

/// The properties that both drivers tell in the same way; the architecture is left open.
fn properties(
    common: &Common,
    kind: DeviceKind,
    device: i32,
    column: impl Fn(Attribute) -> i32,
    version: impl Fn(i32) -> String,
    name: impl Fn(i32) -> String,
) -> Result<Properties, DeviceError> {
    let fail = |refusal| driver_error(kind, refusal, &name);
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: `value` is written.
        let told = unsafe { common.device_attribute(&raw mut value, column(attribute), device) };
        told.map(|()| u32::try_from(value).unwrap_or(0)).map_err(fail)
    };
    let (mut text, mut bytes, mut driver) = ([0_u8; 256], 0_usize, 0);
    // SAFETY: each writes to a place of the size that it is told or that its type has.
    unsafe {
        common.device_name(text.as_mut_ptr().cast(), 255, device).map_err(fail)?;
        common.device_memory(&raw mut bytes, device).map_err(fail)?;
        common.driver_version(&raw mut driver).map_err(fail)?;
    }
    Ok(Properties {
        name: until_zero(&text),
        bus: bus(common, device).map_err(fail)?,
        arch: None,
        multiprocessors: attribute(Attribute::Multiprocessors)?,
        l2_bytes: u64::from(attribute(Attribute::L2Bytes)?),
        shared_bytes_per_block: attribute(Attribute::SharedBytesPerBlock)?,
        memory_bytes: bytes as u64,
        clock_khz: attribute(Attribute::ClockKhz)?,
        driver: version(driver),
        simulated: false,
    })
}

/// Calls of the common table, one after the other until one is refused, on the device of `$gpu`.
macro_rules! ask {
    ($gpu:expr, $($call:ident($($arg:expr),*)),+) => {
        $gpu.call(|common| {
            // SAFETY: handles and addresses come from this driver; the public types own them, keep
            // them while they are used, and destroy each once. Places to write to are locals;
            // copies go from and to page-locked memory, which is not freed before they are over.
            unsafe { $(common.$call($($arg),*)?;)+ }
            Ok(())
        })
    };
}

impl<V: Vendor> Gpu<V> {
    fn new(
        kind: DeviceKind,
        common: Common,
        vendor: V,
        properties: Properties,
    ) -> Result<Gpu<V>, DeviceError> {
        let mut gpu = Gpu {
            kind,
            common: Arc::new(common),
            vendor: Arc::new(vendor),
            properties,
            service: 0,
            allowed: Mutex::new(BTreeMap::new()),
            streams: Arc::default(),
            bounce: Arc::default(),
            abort: Arc::default(),
        };
        gpu.service = gpu.stream_create()?.0;
        Ok(gpu)
    }

    /// A call of the common table, on this device.
    fn call(&self, call: impl FnOnce(&Common) -> Result<(), Refusal>) -> Result<(), DeviceError> {
        self.abort.check(self.kind)?;
        let done = self.vendor.enter().and_then(|()| call(&self.common));
        done.map_err(|refusal| self.error(refusal))
    }

    /// Asks until the answer is no longer "not ready"; false when `until` came before.
    fn poll(
        &self,
        until: Option<Instant>,
        ask: impl Fn(&Common) -> Result<(), Refusal>,
    ) -> Result<bool, DeviceError> {
        let mut patience = patience::Patience::new();
        loop {
            self.abort.check(self.kind)?;
            let told = self.vendor.enter().and_then(|()| ask(&self.common));
            match told {
                Ok(()) => {
                    if patience.has_paused() {
                        // The device has done a piece of work meanwhile.
                        crate::work::mark();
                    }
                    return Ok(true);
                }
                Err(Refusal { code, .. }) if Failure::of(code) == Failure::NotReady => {}
                Err(refusal) => {
                    if Failure::of(refusal.code).is_final() {
                        // The driver will not make them.
                        drop(calls::take_all(&self.abort));
                    }
                    return Err(self.error(refusal));
                }
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(false);
            }
            patience.pause(until);
        }
    }

    fn wait_for_stream(&self, stream: u64, until: Option<Instant>) -> Result<bool, DeviceError> {
        // SAFETY: a stream of this driver, which its owner keeps.
        self.poll(until, |common| unsafe { common.stream_query(stream) })
    }

    fn error(&self, refusal: Refusal) -> DeviceError {
        driver_error(self.kind, refusal, |code| self.vendor.error_name(code))
    }
}

impl<V: Vendor> Gpu<V> {
    /// Lets a function have the shared memory that a launch asks for, where that must be said.
    fn allow_shared(&self, function: Handle, grid: &Grid) -> Result<(), DeviceError> {
        if grid.shared_bytes <= FREE_SHARED {
            return Ok(());
        }
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.get(&function.0).is_none_or(|&bytes| bytes < grid.shared_bytes) {
            let entered = self.vendor.enter();
            let done =
                entered.and_then(|()| self.vendor.allow_shared(function.0, grid.shared_bytes));
            done.map_err(|refusal| self.error(refusal))?;
            allowed.insert(function.0, grid.shared_bytes);
        }
        Ok(())
    }
}

impl<V: Vendor> Driver for Gpu<V> {
    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        let mut address = 0;
        ask!(self, alloc(&raw mut address, bytes))?;
        let cleared = ask!(self, fill(address, 0, bytes, self.service));
        match cleared.and_then(|()| self.wait_for_stream(self.service, None)) {
            Ok(_) => Ok(address),
            Err(error) => {
                self.free(address);
                Err(error)
            }
        }
    }

    fn free(&self, address: u64) {
        self.quiesce();
        let _ = ask!(self, free(address));
    }

    /// After that the driver has nothing to wait for when something is destroyed, unless other
    /// threads go on to enqueue work.
    fn quiesce(&self) {
        // A device that fails has ended its work; one that was given up is not called again.
        let _ = self.poll(None, |common| self.streams.are_over(common));
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<u64, DeviceError> {
        let mut address = 0;
        ask!(self, alloc_pinned(&raw mut address, bytes, 0))?;
        // SAFETY: host memory of this size that was just made.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(address)
    }

    fn free_pinned(&self, address: u64) {
        self.quiesce();
        let _ = ask!(self, free_pinned(address));
    }

    fn stream_create(&self) -> Result<Handle, DeviceError> {
        let mut stream = 0;
        ask!(self, stream_create(&raw mut stream, STREAM_NON_BLOCKING))?;
        self.streams.add(stream);
        Ok(Handle(stream))
    }

    fn stream_destroy(&self, stream: Handle) {
        self.streams.close(stream.0);
        // It may be over already; if not, a later look finds it.
        let _ = self.call(|common| self.streams.are_over(common));
    }

    fn stream_synchronize(
        &self,
        stream: Handle,
        until: Option<Instant>,
    ) -> Result<bool, DeviceError> {
        self.wait_for_stream(stream.0, until)
    }

    fn stream_wait(&self, stream: Handle, event: Handle) -> Result<(), DeviceError> {
        ask!(self, stream_wait(stream.0, event.0, 0))
    }

    fn event_create(&self) -> Result<Handle, DeviceError> {
        let mut event = 0;
        ask!(self, event_create(&raw mut event, EVENT_DEFAULT))?;
        Ok(Handle(event))
    }

    fn event_destroy(&self, event: Handle) {
        let _ = ask!(self, event_destroy(event.0));
    }

    fn event_record(&self, event: Handle, stream: Handle) -> Result<(), DeviceError> {
        ask!(self, event_record(event.0, stream.0))
    }

    fn event_synchronize(
        &self,
        event: Handle,
        until: Option<Instant>,
    ) -> Result<bool, DeviceError> {
        // SAFETY: an event of this driver, which its owner keeps.
        self.poll(until, |common| unsafe { common.event_query(event.0) })
    }

    fn event_elapsed_ms(&self, start: Handle, end: Handle) -> Result<f32, DeviceError> {
        let mut ms = 0.0;
        ask!(self, event_elapsed(&raw mut ms, start.0, end.0))?;
        Ok(ms)
    }

    fn copy_in(&self, stream: Handle, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.bounce_in(stream.0, to, from)
    }

    fn copy_out(&self, stream: Handle, to: &mut [u8], from: u64) -> Result<(), DeviceError> {
        self.bounce_out(stream.0, to, from)
    }

    fn copy(
        &self,
        stream: Handle,
        to: u64,
        from: u64,
        bytes: usize,
        direction: Direction,
    ) -> Result<(), DeviceError> {
        match direction {
            Direction::HostToDevice => {
                ask!(self, copy_in(to, from as *const c_void, bytes, stream.0))
            }
            Direction::DeviceToHost => {
                ask!(self, copy_out(to as *mut c_void, from, bytes, stream.0))
            }
            Direction::DeviceToDevice => ask!(self, copy(to, from, bytes, stream.0)),
        }
    }

    fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        ask!(self, fill(to, byte, bytes, stream.0))
    }

    fn module_load(&self, image: &[u8]) -> Result<Handle, DeviceError> {
        let wrong = |message| DeviceError::Image { device: self.kind, message };
        let image = image::whole(image).map_err(wrong)?;
        let mut module = 0;
        ask!(self, module_load(&raw mut module, image.as_ptr().cast()))?;
        Ok(Handle(module))
    }

    fn module_unload(&self, module: Handle) {
        self.quiesce();
        // Its functions are not known here; a new one at an old address must ask again.
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let _ = ask!(self, module_unload(module.0));
    }

    fn function(&self, module: Handle, name: &str) -> Result<Found, DeviceError> {
        let absent = || DeviceError::NoFunction {
            device: self.kind,
            name: name.to_owned(),
            have: String::new(),
        };
        let text = CString::new(name).map_err(|_| absent())?;
        let (mut function, mut threads) = (0, 0);
        match ask!(self, function(&raw mut function, module.0, text.as_ptr())) {
            Err(DeviceError::Driver { failure: Failure::NotFound, .. }) => return Err(absent()),
            other => other?,
        }
        ask!(self, function_attribute(&raw mut threads, FUNCTION_MAX_THREADS, function))?;
        let max_threads = u32::try_from(threads).unwrap_or(0);
        Ok(Found { function: Handle(function), max_threads, args_bytes: None })
    }

    fn clusters_together(&self, function: Handle, grid: &Grid) -> Result<u32, DeviceError> {
        self.abort.check(self.kind)?;
        self.allow_shared(function, grid)?;
        let told =
            self.vendor.enter().and_then(|()| self.vendor.clusters_together(function.0, grid));
        told.map_err(|refusal| self.error(refusal))
    }

    unsafe fn launch(
        &self,
        stream: Handle,
        function: Handle,
        name: &str,
        grid: &Grid,
        args: &[u8],
    ) -> Result<(), DeviceError> {
        self.abort.check(self.kind)?;
        self.allow_shared(function, grid)?;
        let enter = || self.vendor.enter();
        // The driver copies the argument, and reads it only.
        let mut params = [args.as_ptr().cast_mut().cast::<c_void>()];
        let done = enter().and_then(|()| {
            // SAFETY: the caller's.
            unsafe { self.vendor.launch(stream.0, function.0, grid, &mut params) }
        });
        done.map_err(|refusal| match Failure::of(refusal.code) {
            Failure::InvalidValue | Failure::OutOfResources => DeviceError::Launch {
                device: self.kind,
                kernel: name.to_owned(),
                message: format!("{} ({grid:?})", self.error(refusal)),
            },
            _ => self.error(refusal),
        })
    }

    fn host(&self, stream: Handle, call: HostCall) -> Result<(), DeviceError> {
        let data = calls::keep(call);
        let asked = ask!(self, host(stream.0, calls::run, data));
        if asked.is_err() || self.abort.is_set() {
            drop(calls::take(data));
        }
        asked
    }

    fn enter(&self) -> Result<(), DeviceError> {
        self.call(|_| Ok(()))
    }

    fn abort(&self) -> &Arc<Abort> {
        &self.abort
    }

    /// Waits ask again and again; calls that have not begun will not.
    fn wake(&self) {
        drop(calls::take_all(&self.abort));
    }

    fn capture_begin(&self, stream: Handle) -> Result<(), DeviceError> {
        // Before it begins: a query of the stream by another thread would spoil the graph.
        self.streams.captures(stream.0, true);
        let begun = ask!(self, capture_begin(stream.0, CAPTURE_RELAXED));
        if begun.is_err() {
            self.streams.captures(stream.0, false);
        }
        begun
    }

    fn capture_end(&self, stream: Handle) -> Result<Handle, DeviceError> {
        let (mut graph, mut executable) = (0, 0);
        let ended = ask!(self, capture_end(stream.0, &raw mut graph));
        self.streams.captures(stream.0, false);
        ended?;
        let made = ask!(self, graph_instantiate(&raw mut executable, graph, 0));
        let _ = ask!(self, graph_destroy(graph));
        made.map(|()| Handle(executable))
    }

    fn graph_launch(&self, stream: Handle, graph: Handle) -> Result<(), DeviceError> {
        ask!(self, graph_launch(graph.0, stream.0))
    }

    fn graph_destroy(&self, graph: Handle) {
        self.quiesce();
        let _ = ask!(self, executable_destroy(graph.0));
    }
}

impl<V: Vendor> Drop for Gpu<V> {
    fn drop(&mut self) {
        self.streams.close(self.service);
        let (common, vendor) = (self.common.clone(), self.vendor.clone());
        let (streams, bounce) = (self.streams.clone(), self.bounce.clone());
        let abort = self.abort.clone();
        close(move || {
            let mut patience = patience::Patience::new();
            let until = Instant::now() + LAST_WORK;
            while !abort.is_set() && vendor.enter().is_ok() {
                match streams.are_over(&common) {
                    Err(Refusal { code, .. }) if Failure::of(code) == Failure::NotReady => {
                        if Instant::now() >= until {
                            return;
                        }
                        patience.pause(Some(until));
                    }
                    _ => {
                        bounce.free(&common);
                        return vendor.close();
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_columns_name_every_symbol_once() {
        for (kind, prefix) in [(DeviceKind::Cuda(0), "cu"), (DeviceKind::Hip(0), "hip")] {
            let mut symbols = entry_points(kind);
            let all = symbols.len();
            assert!(all > 35 && symbols.iter().all(|symbol| symbol.starts_with(prefix)));
            symbols.sort_unstable();
            symbols.dedup();
            assert_eq!(symbols.len(), all);
        }
    }
}
