//! The state behind all entry points: devices, memory, handles, and what may be done with them.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use device::Arch;
use device::simulated::SimModule;

use crate::op::{Op, Work};
use crate::order::{Clock, Order};

/// Whose names a call came under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Cuda,
    Hip,
}

/// Error codes, of which both vendors have the same.
pub(crate) mod code {
    pub const INVALID_VALUE: i32 = 1;
    pub const OUT_OF_MEMORY: i32 = 2;
    pub const NOT_INITIALIZED: i32 = 3;
    pub const NO_DEVICE: i32 = 100;
    pub const INVALID_DEVICE: i32 = 101;
    pub const INVALID_IMAGE: i32 = 200;
    pub const INVALID_CONTEXT: i32 = 201;
    pub const NO_BINARY: i32 = 209;
    pub const INVALID_HANDLE: i32 = 400;
    pub const COOPERATIVE_TOO_LARGE: i32 = 720;
    pub const ILLEGAL_STATE: i32 = 401;
    pub const NOT_FOUND: i32 = 500;
    pub const NOT_READY: i32 = 600;
    pub const ILLEGAL_ADDRESS: i32 = 700;
    pub const NOT_PERMITTED: i32 = 800;
    pub const CAPTURE_UNSUPPORTED: i32 = 900;
    pub const CAPTURE_INVALIDATED: i32 = 901;
}

/// The result of a call, in place of a vendor's error enum.
pub(crate) type Told = Result<(), i32>;

pub(crate) struct Block {
    pub(crate) bytes: u64,
    layout: Layout,
    pub(crate) device: i32,
}

pub(crate) struct StreamState {
    pub(crate) device: i32,
    /// Work of the graph that is being captured.
    pub(crate) capture: Option<Capture>,
}

#[derive(Default)]
pub(crate) struct Capture {
    pub(crate) work: Vec<Work>,
    pub(crate) broken: bool,
}

#[derive(Default)]
pub(crate) struct EventState {
    pub(crate) clock: Option<Clock>,
    pub(crate) enqueued: u64,
    pub(crate) reached: u64,
    pub(crate) at: Option<Instant>,
}

pub(crate) struct FunctionState {
    pub(crate) module: u64,
    pub(crate) code: Arc<SimModule>,
    pub(crate) index: usize,
    pub(crate) dynamic_shared: u32,
}

/// A handle is a number that is never given twice.
pub(crate) struct World {
    pub(crate) initialized: bool,
    /// Retained primary contexts, by device.
    pub(crate) contexts: BTreeMap<i32, u32>,
    pub(crate) memory: BTreeMap<u64, Block>,
    pub(crate) pinned: BTreeMap<u64, Block>,
    pub(crate) streams: BTreeMap<u64, StreamState>,
    pub(crate) events: BTreeMap<u64, EventState>,
    pub(crate) modules: BTreeMap<u64, Arc<SimModule>>,
    pub(crate) functions: BTreeMap<u64, FunctionState>,
    pub(crate) graphs: BTreeMap<u64, Arc<Vec<Work>>>,
    pub(crate) executables: BTreeMap<u64, Arc<Vec<Work>>>,
    pub(crate) queue: std::collections::VecDeque<Op>,
    /// Work that was begun and is not over: calls on the host. Stream, number there.
    pub(crate) running: Vec<(u64, u64)>,
    pub(crate) order: Order,
    /// The error of a kernel that failed; nothing works after it.
    pub(crate) broken: Option<i32>,
    next: u64,
}

static WORLD: Mutex<World> = Mutex::new(World {
    initialized: false,
    contexts: BTreeMap::new(),
    memory: BTreeMap::new(),
    pinned: BTreeMap::new(),
    streams: BTreeMap::new(),
    events: BTreeMap::new(),
    modules: BTreeMap::new(),
    functions: BTreeMap::new(),
    graphs: BTreeMap::new(),
    executables: BTreeMap::new(),
    queue: std::collections::VecDeque::new(),
    running: Vec::new(),
    order: Order::new(),
    broken: None,
    next: 1,
});

/// A call on the host is over.
static OVER: Condvar = Condvar::new();

thread_local! {
    /// Whether this thread is in a call on the host, which must not call the driver.
    static IN_HOST_CALL: Cell<bool> = const { Cell::new(false) };
    /// The device that is current in this thread; CUDA has none at first, HIP device 0.
    static CURRENT: Cell<Option<i32>> = const { Cell::new(None) };
}

/// A call in progress: the state, and under which name it was called.
pub(crate) struct ApiCall {
    /// Away only while the call sleeps.
    world: Option<MutexGuard<'static, World>>,
    pub(crate) api: Api,
    pub(crate) name: &'static str,
}

impl std::ops::Deref for ApiCall {
    type Target = World;

    fn deref(&self) -> &World {
        self.world.as_ref().expect("it is away only in `sleep`")
    }
}

impl std::ops::DerefMut for ApiCall {
    fn deref_mut(&mut self) -> &mut World {
        self.world.as_mut().expect("it is away only in `sleep`")
    }
}

/// The state that a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    Driver,
    Device,
}

/// Runs an entry point and returns its code.
pub(crate) fn enter(
    api: Api,
    name: &'static str,
    needs: Needs,
    body: impl FnOnce(&mut ApiCall) -> Told,
) -> i32 {
    let world = Some(WORLD.lock().unwrap_or_else(PoisonError::into_inner));
    let mut call = ApiCall { world, api, name };
    match call.admit(needs).and_then(|()| body(&mut call)) {
        Ok(()) => 0,
        Err(code) => code,
    }
}

impl ApiCall {
    /// A call of a library above the drivers, which sees their devices as the HIP runtime does:
    /// device 0 where none is current.
    pub(crate) fn of_library(name: &'static str, needs: Needs) -> Result<ApiCall, i32> {
        let world = Some(WORLD.lock().unwrap_or_else(PoisonError::into_inner));
        let call = ApiCall { world, api: Api::Hip, name };
        call.admit(needs).map(|()| call)
    }

    /// Does something while a device is current in this thread.
    pub(crate) fn on_device<T>(&mut self, device: i32, work: impl FnOnce(&mut ApiCall) -> T) -> T {
        let before = CURRENT.replace(Some(device));
        let done = work(self);
        CURRENT.set(before);
        done
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

impl ApiCall {
    fn admit(&self, needs: Needs) -> Told {
        if needs == Needs::Nothing {
            return Ok(());
        }
        if IN_HOST_CALL.get() {
            return Err(self.wrong(code::NOT_PERMITTED, "called by a function on the host"));
        }
        if !self.initialized {
            return Err(self.wrong(code::NOT_INITIALIZED, "called before the driver was started"));
        }
        if needs == Needs::Device {
            self.device()?;
            self.broken.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Waits until a call on the host is over.
    pub(crate) fn sleep(&mut self) {
        let world = self.world.take();
        self.world = world.map(|world| OVER.wait(world).unwrap_or_else(PoisonError::into_inner));
    }

    /// Says what is wrong and returns `code`.
    pub(crate) fn wrong(&self, code: i32, what: impl std::fmt::Display) -> i32 {
        eprintln!("lookalike: {}: {what}", self.name);
        code
    }

    pub(crate) fn devices(&self) -> i32 {
        i32::try_from(number("LOOKALIKE_DEVICES", 1)).unwrap_or(0)
    }

    pub(crate) fn arch(&self) -> Arch {
        let otherwise = match self.api {
            Api::Cuda => Arch::Sm90a,
            Api::Hip => Arch::Gfx942,
        };
        let named = std::env::var("LOOKALIKE_ARCH").ok();
        named.and_then(|name| name.parse().ok()).unwrap_or(otherwise)
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        number("LOOKALIKE_MEMORY", 1 << 32)
    }

    /// Starts the driver; `at_exit` is called when the process ends.
    pub(crate) fn start(&mut self, flags: u32, at_exit: extern "C" fn()) -> Told {
        if flags != 0 {
            return Err(self.wrong(code::INVALID_VALUE, "flags must be 0"));
        }
        if self.devices() == 0 {
            return Err(code::NO_DEVICE);
        }
        if !self.initialized {
            // SAFETY: a function without arguments, which lives as long as the process: libraries
            // of drivers are not closed.
            unsafe { libc::atexit(at_exit) };
        }
        self.initialized = true;
        Ok(())
    }

    /// The current device of the thread.
    pub(crate) fn device(&self) -> Result<i32, i32> {
        match (CURRENT.get(), self.api) {
            (Some(device), Api::Cuda) if self.contexts.get(&device).is_none_or(|&n| n == 0) => {
                Err(self.wrong(code::INVALID_CONTEXT, "the current context was released"))
            }
            (Some(device), _) => Ok(device),
            (None, Api::Hip) => Ok(0),
            (None, Api::Cuda) => {
                Err(self.wrong(code::INVALID_CONTEXT, "no context is current in this thread"))
            }
        }
    }

    pub(crate) fn set_device(&self, device: Option<i32>) -> Told {
        if device.is_some_and(|device| !(0..self.devices()).contains(&device)) {
            return Err(self.wrong(code::INVALID_DEVICE, "there is no such device"));
        }
        CURRENT.set(device);
        Ok(())
    }

    /// Handle of something new.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        // Above what a null page or a small integer could be, and never an address of ours.
        0x1000_0000 + self.next * 16
    }

    pub(crate) fn alloc(&mut self, bytes: usize, pinned: bool) -> Result<u64, i32> {
        self.alloc_aligned(bytes, pinned, 512)
    }

    pub(crate) fn alloc_aligned(
        &mut self,
        bytes: usize,
        pinned: bool,
        align: usize,
    ) -> Result<u64, i32> {
        let used: u64 = self.memory.values().map(|block| block.bytes).sum();
        if bytes == 0 {
            return Err(self.wrong(code::INVALID_VALUE, "an allocation of no bytes"));
        }
        if used + bytes as u64 > self.memory_bytes() {
            return Err(code::OUT_OF_MEMORY);
        }
        // Room behind it, so that no two allocations touch.
        let layout =
            Layout::from_size_align(bytes + align, align).map_err(|_| code::OUT_OF_MEMORY)?;
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(code::OUT_OF_MEMORY);
        }
        // SAFETY: just allocated with this size. Memory of a device is not zero.
        unsafe { std::ptr::write_bytes(start, 0xa5, layout.size()) };
        let device = self.device()?;
        let block = Block { bytes: bytes as u64, layout, device };
        let blocks = if pinned { &mut self.pinned } else { &mut self.memory };
        blocks.insert(start as u64, block);
        Ok(start as u64)
    }

    pub(crate) fn free(&mut self, address: u64, pinned: bool) -> Told {
        // Of page-locked memory no original promises to wait for the copies from and to it.
        if !pinned {
            self.wait_for_all()?;
        }
        let blocks = if pinned { &mut self.pinned } else { &mut self.memory };
        let Some(block) = blocks.remove(&address) else {
            let what = format!("{address:#x} is no allocation, or was freed already");
            return Err(self.wrong(code::INVALID_VALUE, what));
        };
        // SAFETY: allocated with this layout, and no longer listed.
        unsafe { dealloc(address as *mut u8, block.layout) };
        Ok(())
    }

    /// Checks that a range lies in one live allocation of the current device.
    pub(crate) fn inside(&self, start: u64, bytes: u64) -> Told {
        let below = self.memory.range(..=start).next_back();
        let block = below.filter(|(from, block)| {
            let offset = start - **from;
            offset <= block.bytes && bytes <= block.bytes - offset
        });
        match block {
            Some((_, block)) if block.device == self.device()? => Ok(()),
            Some(_) => Err(self.wrong(code::INVALID_VALUE, "memory of another device")),
            None => {
                let what = format!("{bytes} bytes at {start:#x} are not in one live allocation");
                Err(self.wrong(code::INVALID_VALUE, what))
            }
        }
    }

    pub(crate) fn is_pinned(&self, start: u64, bytes: u64) -> bool {
        let below = self.pinned.range(..=start).next_back();
        below.is_some_and(|(from, block)| start + bytes <= from + block.bytes)
    }

    pub(crate) fn live(&self) -> Vec<Range<u64>> {
        self.memory.iter().map(|(&start, block)| start..start + block.bytes).collect()
    }

    /// The stream, which must be of the current device.
    pub(crate) fn stream(&self, stream: u64) -> Result<&StreamState, i32> {
        let device = self.device()?;
        match self.streams.get(&stream) {
            Some(state) if state.device == device => Ok(state),
            Some(_) => Err(self.wrong(code::INVALID_HANDLE, "a stream of another device")),
            None => Err(self.gone("stream", stream)),
        }
    }

    pub(crate) fn gone(&self, what: &str, handle: u64) -> i32 {
        let told = format!("{handle:#x} is no {what}, or was destroyed");
        self.wrong(code::INVALID_HANDLE, told)
    }

    /// Writes a result.
    ///
    /// # Safety
    /// `to` is null or a place for a `T`.
    pub(crate) unsafe fn give<T>(&self, to: *mut T, value: T) -> Told {
        if to.is_null() {
            return Err(self.wrong(code::INVALID_VALUE, "a null pointer where a result goes"));
        }
        // SAFETY: the caller's, and not null.
        unsafe { to.write(value) };
        Ok(())
    }
}

/// Runs a function on the host, on a thread of its own; `id` is its stream and its number there.
pub(crate) fn call_host(function: unsafe extern "C" fn(*mut c_void), data: u64, id: (u64, u64)) {
    // SAFETY: the caller of the entry point vouches for both.
    run_apart(id, move || unsafe { function(data as *mut c_void) });
}

/// Does a stream's work on a thread of its own.
pub(crate) fn run_apart(id: (u64, u64), work: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        IN_HOST_CALL.set(true);
        work();
        let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
        world.running.retain(|running| *running != id);
        OVER.notify_all();
    });
}

/// Handles that are alive, by kind.
pub(crate) fn held() -> [(usize, &'static str); 8] {
    let world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let contexts: usize = world.contexts.values().map(|&count| count as usize).sum();
    [
        (world.memory.len(), "allocations"),
        (world.pinned.len(), "page-locked allocations"),
        (world.streams.len(), "streams"),
        (world.events.len(), "events"),
        (world.modules.len(), "modules"),
        (world.graphs.len(), "graphs"),
        (world.executables.len(), "executable graphs"),
        (contexts, "contexts"),
    ]
}
