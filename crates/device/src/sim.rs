//! The simulated device: kernels of simulated modules over host memory.
//!
//! ```text
//! stream 1: copy ─▶ launch ─▶ record(e) ─▶ …      each in order
//! stream 2: wait(e) ─▶ launch ─▶ …                between streams: any order that events allow,
//!                                                 chosen by the seed
//! ```
//!
//! Invariants:
//!   * work runs as late as it may: when somebody waits, or when much has piled up. So a program
//!     that forgets to wait sees old memory;
//!   * operations hold plain bytes and handles and no buffers. Freeing memory first runs what was
//!     enqueued before, as the vendors' drivers do; work enqueued after a free finds the memory
//!     gone, and the module reports the access;
//!   * the first error stays until a wait reports it; work after it is dropped, of all streams;
//!     behind a call on the host that failed, work of its stream is;
//!   * calls on the host run on threads of their own, and hold up their stream alone. So do
//!     kernels, one at a time, beside which nothing else touches memory: whoever waits for one
//!     that hangs can stop waiting. No lock is held while either runs, nor while anything of a
//!     caller is dropped.

mod queue;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::abort::Abort;
use crate::driver::{Direction, Driver, Found, Handle, HostCall, Properties};
use crate::memory::Mapping;
use crate::simulated::{SimModule, SimOrder};
use crate::{Arch, DeviceError, DeviceKind, Grid};
use queue::{Op, Queues, Ran, Task};

/// How the simulated device behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimOptions {
    /// Chooses the order between streams, blocks and threads; 0 is the natural one.
    pub seed: u64,
    /// Whether unordered accesses are looked for, which costs time.
    pub check_races: bool,
    pub multiprocessors: u32,
}

impl Default for SimOptions {
    fn default() -> SimOptions {
        SimOptions { seed: 0, check_races: true, multiprocessors: 4 }
    }
}

impl SimOptions {
    /// The default, with the seed from the environment variable `MUSTER_SIM_SEED` and without race
    /// checks where `MUSTER_SIM_RACES` is `0`.
    ///
    /// # Errors
    /// A seed that is no number.
    pub fn from_environment(arch: Arch) -> Result<SimOptions, DeviceError> {
        let mut options = SimOptions::default();
        if let Ok(seed) = std::env::var("MUSTER_SIM_SEED") {
            options.seed = seed.trim().parse().map_err(|_| DeviceError::Misuse {
                device: DeviceKind::Sim(arch),
                message: format!("MUSTER_SIM_SEED is `{seed}`, which is no whole number"),
            })?;
        }
        options.check_races = std::env::var("MUSTER_SIM_RACES").as_deref() != Ok("0");
        Ok(options)
    }
}

pub(crate) struct Sim {
    kind: DeviceKind,
    arch: Arch,
    properties: Properties,
    shared: Arc<Shared>,
    abort: Arc<Abort>,
}

struct Shared {
    state: Mutex<State>,
    /// A call on the host or a kernel is over, or the device was given up.
    done: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a panic: operations are taken before they run.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct State {
    next: u64,
    queues: Queues,
    modules: BTreeMap<Handle, Arc<SimModule>>,
    functions: BTreeMap<Handle, (Arc<SimModule>, usize)>,
    graphs: BTreeMap<Handle, Arc<Vec<Op>>>,
    captures: BTreeMap<Handle, Vec<Op>>,
}

impl State {
    fn fresh(&mut self) -> Handle {
        self.next += 1;
        Handle(self.next)
    }
}

/// Pages around each allocation that belong to none, so that an access beside it is out of range.
const GAP: usize = 4096;

impl Sim {
    pub(crate) fn new(arch: Arch, options: SimOptions) -> Sim {
        let kind = DeviceKind::Sim(arch);
        let properties = Properties {
            name: format!("SIMULATED {arch}"),
            bus: String::new(),
            arch: Some(arch),
            multiprocessors: options.multiprocessors.max(1),
            l2_bytes: 0,
            shared_bytes_per_block: arch.shared_bytes_per_block(),
            memory_bytes: crate::memory::host_bytes(),
            clock_khz: 0,
            driver: "simulator".to_owned(),
            simulated: true,
        };
        let order = SimOrder { seed: options.seed, check_races: options.check_races };
        let state = State {
            next: 0,
            queues: Queues::new(kind, order),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            captures: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), done: Condvar::new() });
        Sim { kind, arch, properties, shared, abort: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// The state of a device that was not given up.
    fn live(&self) -> Result<MutexGuard<'_, State>, DeviceError> {
        self.abort.check(self.kind)?;
        Ok(self.state())
    }

    /// Keeps `op` for the graph that the stream is capturing, or enqueues it.
    fn submit<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        stream: Handle,
        op: Op,
    ) -> MutexGuard<'a, State> {
        match state.captures.get_mut(&stream) {
            Some(capture) => {
                capture.push(op);
                state
            }
            None => self.push(state, stream, op),
        }
    }

    fn push<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        stream: Handle,
        op: Op,
    ) -> MutexGuard<'a, State> {
        state.queues.push(stream, op);
        if !state.queues.is_late() {
            return state;
        }
        // The next draw must not depend on how long a kernel takes.
        while state.queues.is_executing() && !self.abort.is_set() {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.run_one(state).0
    }

    /// Runs one operation, or begins it on a thread of its own; false if none may go on.
    fn run_one<'a>(&'a self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, bool) {
        let (stream, task) = match state.queues.run_one() {
            Ran::Nothing => return (state, false),
            Ran::One => return (state, true),
            Ran::Begun(stream, task) => (stream, task),
        };
        // Kept here too, because nothing of a caller is dropped while the state is locked.
        let (kept, shared) = (Arc::new(Mutex::new(Some(task))), self.shared.clone());
        let given = kept.clone();
        let take =
            |task: &Mutex<Option<Task>>| task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let work = move || {
            let result = take(&given).map_or(Ok(()), Task::run);
            shared.state().queues.is_over(stream, result);
            shared.done.notify_all();
        };
        let begun = std::thread::Builder::new().name("stream".to_owned()).spawn(work);
        if let Err(source) = begun {
            let error = DeviceError::Threads { threads: 1, source };
            state.queues.is_over(stream, Err(error));
            self.shared.done.notify_all();
            drop(state);
            drop(take(&kept));
            state = self.state();
        }
        (state, true)
    }

    /// Runs operations while something is `pending`; false when `until` came before.
    fn settle<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        until: Option<Instant>,
        pending: impl Fn(&Queues) -> bool,
    ) -> Result<(MutexGuard<'a, State>, bool), DeviceError> {
        let is_over = || until.is_some_and(|until| Instant::now() >= until);
        let mut has_run = false;
        loop {
            self.abort.check(self.kind)?;
            if !pending(&state.queues) {
                return Ok((state, true));
            }
            // Who only asks still lets the device get on by one operation.
            if has_run && is_over() {
                return Ok((state, false));
            }
            (state, has_run) = self.run_one(state);
            if has_run {
                continue;
            }
            let done = &self.shared.done;
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return Ok((state, false)),
                Some(left) => {
                    done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => done.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Waits for everything, so that what it uses can be freed.
    fn drain(&self) -> Result<MutexGuard<'_, State>, DeviceError> {
        self.settle(self.live()?, None, Queues::is_busy).map(|(state, _)| state)
    }

    fn misuse(&self, message: &str) -> DeviceError {
        DeviceError::Misuse { device: self.kind, message: message.to_owned() }
    }

    fn map(&self, bytes: usize) -> Result<(u64, Mapping), DeviceError> {
        let with_gaps = bytes.checked_add(2 * GAP).ok_or_else(|| DeviceError::OutOfMemory {
            bytes,
            source: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        let mapping = Mapping::private(with_gaps)?;
        let start = mapping.start().as_ptr().addr() + GAP;
        Ok((start as u64, mapping))
    }

    fn refuse_in_capture(&self, state: &State, stream: Handle) -> Result<(), DeviceError> {
        match state.captures.contains_key(&stream) {
            true => Err(self.misuse("a stream cannot be waited for while it captures a graph")),
            false => Ok(()),
        }
    }
}

impl Driver for Sim {
    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        let (start, mapping) = self.map(bytes)?;
        self.live()?.queues.memory.insert(start, bytes as u64, mapping);
        Ok(start)
    }

    fn free(&self, address: u64) {
        let Ok(mut state) = self.drain() else { return };
        state.queues.memory.remove(address);
    }

    fn quiesce(&self) {
        drop(self.drain());
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<u64, DeviceError> {
        let (start, mapping) = self.map(bytes)?;
        self.live()?.queues.pinned.insert(start, bytes as u64, mapping);
        Ok(start)
    }

    fn free_pinned(&self, address: u64) {
        let Ok(mut state) = self.drain() else { return };
        state.queues.pinned.remove(address);
    }

    fn stream_create(&self) -> Result<Handle, DeviceError> {
        let mut state = self.live()?;
        let stream = state.fresh();
        state.queues.add(stream);
        Ok(stream)
    }

    fn stream_destroy(&self, stream: Handle) {
        let mut state = self.state();
        state.captures.remove(&stream);
        state.queues.remove(stream);
    }

    fn stream_synchronize(
        &self,
        stream: Handle,
        until: Option<Instant>,
    ) -> Result<bool, DeviceError> {
        let state = self.live()?;
        self.refuse_in_capture(&state, stream)?;
        let (mut state, done) = self.settle(state, until, |queues| queues.has_work(stream))?;
        if done { state.queues.report().map(|()| true) } else { Ok(false) }
    }

    fn stream_wait(&self, stream: Handle, event: Handle) -> Result<(), DeviceError> {
        let state = self.live()?;
        if state.captures.contains_key(&stream) {
            return Err(self.misuse("events in captured graphs are not simulated"));
        }
        let generation = state.queues.recorded(event);
        drop(self.push(state, stream, Op::Wait { event, generation }));
        Ok(())
    }

    fn event_create(&self) -> Result<Handle, DeviceError> {
        let mut state = self.live()?;
        let event = state.fresh();
        state.queues.add_event(event);
        Ok(event)
    }

    fn event_destroy(&self, event: Handle) {
        self.state().queues.remove_event(event);
    }

    fn event_record(&self, event: Handle, stream: Handle) -> Result<(), DeviceError> {
        let mut state = self.live()?;
        if state.captures.contains_key(&stream) {
            return Err(self.misuse("events in captured graphs are not simulated"));
        }
        let generation = state.queues.next_generation(event);
        drop(self.push(state, stream, Op::Record { event, generation }));
        Ok(())
    }

    fn event_synchronize(
        &self,
        event: Handle,
        until: Option<Instant>,
    ) -> Result<bool, DeviceError> {
        let pending = |queues: &Queues| !queues.has_reached(event);
        let (mut state, done) = self.settle(self.live()?, until, pending)?;
        if done { state.queues.report().map(|()| true) } else { Ok(false) }
    }

    fn event_elapsed_ms(&self, _start: Handle, _end: Handle) -> Result<f32, DeviceError> {
        Err(DeviceError::NoClock { device: self.kind })
    }

    fn copy_in(&self, stream: Handle, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        let state = self.live()?;
        self.refuse_in_capture(&state, stream)?;
        drop(self.push(state, stream, Op::Write { to, from: from.into() }));
        Ok(())
    }

    fn copy_out(&self, stream: Handle, to: &mut [u8], from: u64) -> Result<(), DeviceError> {
        let state = self.live()?;
        self.refuse_in_capture(&state, stream)?;
        // Nor may a kernel of another stream run beside the copy.
        let pending = |queues: &Queues| queues.has_work(stream) || queues.is_executing();
        let (mut state, _) = self.settle(state, None, pending)?;
        state.queues.report()?;
        state.queues.memory.read(from, to).map_err(|message| self.misuse(&message))
    }

    fn copy(
        &self,
        stream: Handle,
        to: u64,
        from: u64,
        bytes: usize,
        _direction: Direction,
    ) -> Result<(), DeviceError> {
        drop(self.submit(self.live()?, stream, Op::Copy { to, from, bytes: bytes as u64 }));
        Ok(())
    }

    fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        drop(self.submit(self.live()?, stream, Op::Fill { to, byte, bytes: bytes as u64 }));
        Ok(())
    }

    fn module_load(&self, image: &[u8]) -> Result<Handle, DeviceError> {
        let wrong = |message| DeviceError::Image { device: self.kind, message };
        let module = SimModule::load(image).map_err(wrong)?;
        if module.arch() != self.arch {
            return Err(wrong(format!("it simulates {}", module.arch())));
        }
        let mut state = self.live()?;
        let handle = state.fresh();
        state.modules.insert(handle, Arc::new(module));
        Ok(handle)
    }

    fn module_unload(&self, module: Handle) {
        let mut state = self.state();
        // Enqueued launches hold the module themselves.
        if let Some(module) = state.modules.remove(&module) {
            state.functions.retain(|_, (of, _)| !Arc::ptr_eq(of, &module));
        }
    }

    fn function(&self, module: Handle, name: &str) -> Result<Found, DeviceError> {
        let mut state = self.live()?;
        let module = state.modules.get(&module).cloned();
        let module = module.ok_or_else(|| self.misuse("the module was unloaded"))?;
        let kernels = module.kernels();
        let Some(index) = kernels.iter().position(|kernel| kernel.name == name) else {
            let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
            let have = format!("; it has {}", names.join(", "));
            return Err(DeviceError::NoFunction { device: self.kind, name: name.to_owned(), have });
        };
        let (max_threads, args_bytes) = (kernels[index].max_threads, kernels[index].args_bytes);
        let function = state.fresh();
        state.functions.insert(function, (module, index));
        Ok(Found { function, max_threads, args_bytes: Some(args_bytes) })
    }

    /// Clusters run one after another here.
    fn clusters_together(&self, _function: Handle, _grid: &Grid) -> Result<u32, DeviceError> {
        Ok(1)
    }

    unsafe fn launch(
        &self,
        stream: Handle,
        function: Handle,
        _name: &str,
        grid: &Grid,
        args: &[u8],
    ) -> Result<(), DeviceError> {
        let state = self.live()?;
        let found = state.functions.get(&function).cloned();
        let (module, kernel) = found.ok_or_else(|| self.misuse("the module was unloaded"))?;
        let op = Op::Launch { module, kernel, grid: *grid, args: args.into() };
        drop(self.submit(state, stream, op));
        Ok(())
    }

    fn host(&self, stream: Handle, call: HostCall) -> Result<(), DeviceError> {
        let state = self.live()?;
        drop(self.push(state, stream, Op::Host(Arc::new(Mutex::new(Some(call))))));
        Ok(())
    }

    fn enter(&self) -> Result<(), DeviceError> {
        let (device, what) = (self.kind, "streams of a vendor's driver");
        Err(DeviceError::Unsupported { device, what })
    }

    fn abort(&self) -> &Arc<Abort> {
        &self.abort
    }

    fn wake(&self) {
        let calls = self.state().queues.take_calls();
        self.shared.done.notify_all();
        // The calls may hold the last handles of memory, which is freed here.
        drop(calls);
    }

    fn capture_begin(&self, stream: Handle) -> Result<(), DeviceError> {
        let mut state = self.live()?;
        if state.captures.insert(stream, Vec::new()).is_some() {
            return Err(self.misuse("the stream captures a graph already"));
        }
        Ok(())
    }

    fn capture_end(&self, stream: Handle) -> Result<Handle, DeviceError> {
        let mut state = self.live()?;
        let ops = state.captures.remove(&stream);
        let ops = ops.ok_or_else(|| self.misuse("the stream captures no graph"))?;
        let graph = state.fresh();
        state.graphs.insert(graph, Arc::new(ops));
        Ok(graph)
    }

    fn graph_launch(&self, stream: Handle, graph: Handle) -> Result<(), DeviceError> {
        let mut state = self.live()?;
        let ops = state.graphs.get(&graph).cloned();
        let ops = ops.ok_or_else(|| self.misuse("the graph was destroyed"))?;
        for op in ops.iter() {
            state = self.submit(state, stream, op.clone());
        }
        Ok(())
    }

    fn graph_destroy(&self, graph: Handle) {
        self.state().graphs.remove(&graph);
    }
}
