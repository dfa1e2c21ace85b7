//! Operations that the simulated device has accepted and not yet run, and the memory they run on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::{Faults, Handle, HostCall};
use crate::memory::Mapping;
use crate::random::Random;
use crate::simulated::{SimFailure, SimModule, SimOrder, SimRange};
use crate::{DeviceError, DeviceKind, Grid};

/// Operations that may pile up before one has to run.
const LATE: usize = 64;

#[derive(Clone)]
pub(super) enum Op {
    Launch { module: Arc<SimModule>, kernel: usize, grid: Grid, args: Arc<[u8]> },
    Write { to: u64, from: Arc<[u8]> },
    Copy { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, byte: u8, bytes: u64 },
    Record { event: Handle, generation: u64 },
    Wait { event: Handle, generation: u64 },
    Host(PendingCall),
}

/// A call on the host, until its turn has come.
pub(super) type PendingCall = Arc<Mutex<Option<HostCall>>>;

/// The outcome of running the next operation.
pub(super) enum Ran {
    /// There is none that may go on.
    Nothing,
    One,
    /// The caller runs it while nothing is locked, and says when it is over.
    Begun(Handle, Task),
}

/// An operation that runs on a thread of its own.
pub(super) enum Task {
    Host(PendingCall),
    Launch(Launch),
}

impl Task {
    pub(super) fn run(self) -> Result<(), DeviceError> {
        match self {
            Task::Launch(launch) => {
                let ran = launch.run();
                crate::work::mark();
                ran
            }
            Task::Host(call) => {
                let call = call.lock().unwrap_or_else(PoisonError::into_inner).take();
                // Its error is kept by its stream.
                call.into_iter().for_each(HostCall::run);
                Ok(())
            }
        }
    }
}

/// A kernel, and the memory that there is while it runs.
pub(super) struct Launch {
    device: DeviceKind,
    module: Arc<SimModule>,
    kernel: usize,
    grid: Grid,
    args: Arc<[u8]>,
    ranges: Vec<SimRange>,
    order: SimOrder,
}

impl Launch {
    fn run(self) -> Result<(), DeviceError> {
        let Launch { device, module, kernel, grid, args, ranges, order } = self;
        // SAFETY: the ranges come from a sorted map. Nothing else touches memory while a kernel is
        // under way (`Queues::is_executing`), and none is freed.
        let result = unsafe { module.launch(kernel, &grid, &args, &ranges, order) };
        let name = || module.kernels()[kernel].name.clone();
        result.map_err(|failure| match failure {
            SimFailure::Refused(message) => DeviceError::Launch { device, kernel: name(), message },
            SimFailure::Fault(message) => DeviceError::Fault { device, kernel: name(), message },
        })
    }
}

/// Live allocations by start.
#[derive(Default)]
pub(super) struct Memory {
    blocks: BTreeMap<u64, (u64, Mapping)>,
}

impl Memory {
    pub(super) fn insert(&mut self, start: u64, bytes: u64, mapping: Mapping) {
        self.blocks.insert(start, (bytes, mapping));
    }

    pub(super) fn remove(&mut self, start: u64) {
        self.blocks.remove(&start);
    }

    fn ranges(&self) -> Vec<SimRange> {
        let range = |(&start, &(bytes, _)): (&u64, &(u64, Mapping))| SimRange { start, bytes };
        self.blocks.iter().map(range).collect()
    }

    fn contains(&self, start: u64, bytes: u64) -> bool {
        let below = self.blocks.range(..=start).next_back();
        below.is_some_and(|(&from, &(len, _))| {
            let offset = start - from;
            offset <= len && bytes <= len - offset
        })
    }

    fn check(&self, start: u64, bytes: u64) -> Result<(), String> {
        match bytes == 0 || self.contains(start, bytes) {
            true => Ok(()),
            false => Err(format!("{bytes} bytes at {start:#x} are not in one live buffer")),
        }
    }

    pub(super) fn read(&self, from: u64, to: &mut [u8]) -> Result<(), String> {
        self.check(from, to.len() as u64)?;
        // SAFETY: the range lies in a live mapping, and the caller, who holds the state, has seen
        // that no kernel is under way.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
}

struct Recorded {
    /// Times it was recorded, and how many of these have been run.
    enqueued: u64,
    reached: u64,
}

pub(super) struct Queues {
    kind: DeviceKind,
    order: SimOrder,
    random: Random,
    /// Operations with their number in the order of enqueueing.
    streams: BTreeMap<Handle, VecDeque<(u64, Op)>>,
    /// Streams whose call on the host or kernel is under way, and the one with the kernel.
    calling: BTreeSet<Handle>,
    executing: Option<Handle>,
    /// Errors of calls on the host, by stream.
    faults: BTreeMap<Handle, Arc<Faults>>,
    /// Streams that were destroyed, and whose work is still to be done.
    closed: BTreeSet<Handle>,
    events: BTreeMap<Handle, Recorded>,
    /// Events that were destroyed.
    doomed: Vec<Handle>,
    enqueued: u64,
    waiting: usize,
    failed: Option<DeviceError>,
    pub(super) memory: Memory,
    pub(super) pinned: Memory,
}

impl Queues {
    pub(super) fn new(kind: DeviceKind, order: SimOrder) -> Queues {
        Queues {
            kind,
            order,
            random: Random::new(order.seed),
            streams: BTreeMap::new(),
            calling: BTreeSet::new(),
            executing: None,
            faults: BTreeMap::new(),
            closed: BTreeSet::new(),
            events: BTreeMap::new(),
            doomed: Vec::new(),
            enqueued: 0,
            waiting: 0,
            failed: None,
            memory: Memory::default(),
            pinned: Memory::default(),
        }
    }

    pub(super) fn add(&mut self, stream: Handle) {
        self.streams.insert(stream, VecDeque::new());
    }

    /// Its work is done all the same.
    pub(super) fn remove(&mut self, stream: Handle) {
        self.closed.insert(stream);
        self.forget_closed(stream);
    }

    fn forget_closed(&mut self, stream: Handle) {
        if !self.has_work(stream) && self.closed.remove(&stream) {
            self.streams.remove(&stream);
            self.faults.remove(&stream);
        }
    }

    pub(super) fn add_event(&mut self, event: Handle) {
        self.events.insert(event, Recorded { enqueued: 0, reached: 0 });
    }

    /// Enqueued records and waits outlive the event, so it is forgotten when nothing is enqueued.
    pub(super) fn remove_event(&mut self, event: Handle) {
        self.doomed.push(event);
        self.forget_doomed();
    }

    fn forget_doomed(&mut self) {
        if self.waiting == 0 {
            for event in self.doomed.drain(..) {
                self.events.remove(&event);
            }
        }
    }

    pub(super) fn recorded(&self, event: Handle) -> u64 {
        self.events.get(&event).map_or(0, |event| event.enqueued)
    }

    pub(super) fn next_generation(&mut self, event: Handle) -> u64 {
        self.events.get_mut(&event).map_or(0, |event| {
            event.enqueued += 1;
            event.enqueued
        })
    }

    pub(super) fn push(&mut self, stream: Handle, op: Op) {
        if let Some(queue) = self.streams.get_mut(&stream) {
            queue.push_back((self.enqueued, op));
            self.enqueued += 1;
            self.waiting += 1;
        }
    }

    /// So much has piled up that something has to run.
    pub(super) fn is_late(&self) -> bool {
        self.waiting > LATE
    }

    pub(super) fn has_work(&self, stream: Handle) -> bool {
        let is_queued = self.streams.get(&stream).is_some_and(|queue| !queue.is_empty());
        is_queued || self.calling.contains(&stream)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.waiting > 0 || !self.calling.is_empty()
    }

    /// A kernel is under way.
    pub(super) fn is_executing(&self) -> bool {
        self.executing.is_some()
    }

    pub(super) fn has_reached(&self, event: Handle) -> bool {
        self.events.get(&event).is_none_or(|event| event.reached >= event.enqueued)
    }

    /// Ends the operation that a stream has begun.
    pub(super) fn is_over(&mut self, stream: Handle, result: Result<(), DeviceError>) {
        self.calling.remove(&stream);
        self.executing.take_if(|executing| *executing == stream);
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
        self.forget_closed(stream);
    }

    /// The calls on the host that have not begun.
    pub(super) fn take_calls(&mut self) -> Vec<HostCall> {
        let ops = self.streams.values().flatten();
        let call = |(_, op): &(u64, Op)| match op {
            Op::Host(call) => call.lock().unwrap_or_else(PoisonError::into_inner).take(),
            _ => None,
        };
        ops.filter_map(call).collect()
    }

    /// The first error since the last report.
    pub(super) fn report(&mut self) -> Result<(), DeviceError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Runs one operation of a stream that may go on. While a kernel is under way there is none.
    pub(super) fn run_one(&mut self) -> Ran {
        if self.is_executing() {
            return Ran::Nothing;
        }
        let calling = &self.calling;
        let ready = |(stream, queue): &(&Handle, &VecDeque<(u64, Op)>)| match queue.front() {
            _ if calling.contains(stream) => false,
            Some((_, Op::Wait { event, generation })) => {
                self.events.get(event).is_none_or(|event| event.reached >= *generation)
            }
            front => front.is_some(),
        };
        let number = |queue: &VecDeque<(u64, Op)>| queue.front().map_or(u64::MAX, |front| front.0);
        let ready = self.streams.iter().filter(ready);
        let mut ready: Vec<(u64, Handle)> = ready.map(|(&s, queue)| (number(queue), s)).collect();
        ready.sort_unstable();
        if ready.is_empty() {
            return Ran::Nothing;
        }
        let choice = match self.order.seed {
            0 => 0,
            _ => self.random.draw() as usize % ready.len(),
        };
        let stream = ready[choice].1;
        let queue = self.streams.get_mut(&stream);
        let Some((_, op)) = queue.and_then(VecDeque::pop_front) else { return Ran::Nothing };
        self.waiting -= 1;
        let left_out = self.failed.is_some()
            || self.faults.get(&stream).is_some_and(|faults| faults.are_some());
        let task = match op {
            Op::Host(call) => Some(self.host(stream, call, left_out)),
            Op::Launch { module, kernel, grid, args } if !left_out => {
                self.executing = Some(stream);
                let (device, ranges, order) = (self.kind, self.memory.ranges(), self.draw());
                Some(Task::Launch(Launch { device, module, kernel, grid, args, ranges, order }))
            }
            Op::Record { event, generation } => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.reached = generation;
                }
                None
            }
            op if !left_out => {
                self.failed = self.execute(&op).err();
                None
            }
            _ => None,
        };
        self.forget_doomed();
        match task {
            Some(task) => {
                self.calling.insert(stream);
                Ran::Begun(stream, task)
            }
            None => {
                self.forget_closed(stream);
                Ran::One
            }
        }
    }

    fn host(&mut self, stream: Handle, call: PendingCall, left_out: bool) -> Task {
        let mut waiting = call.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = waiting.as_mut() {
            self.faults.insert(stream, waiting.faults.clone());
            // It is still dropped where nothing is locked.
            if left_out {
                waiting.leave_out();
            }
        }
        drop(waiting);
        Task::Host(call)
    }

    /// The order of a kernel's blocks and threads.
    fn draw(&mut self) -> SimOrder {
        let mut order = self.order;
        if order.seed != 0 {
            order.seed = self.random.draw();
        }
        order
    }

    /// Runs what is over at once.
    fn execute(&self, op: &Op) -> Result<(), DeviceError> {
        let misuse = |message| DeviceError::Misuse { device: self.kind, message };
        match op {
            Op::Write { to, from } => {
                self.memory.check(*to, from.len() as u64).map_err(misuse)?;
                // SAFETY: the range lies in a live mapping. This thread holds the state and no
                // kernel is under way, so nothing else touches it.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), *to as *mut u8, from.len()) };
                Ok(())
            }
            Op::Copy { to, from, bytes } => {
                for start in [*to, *from] {
                    let pinned = self.pinned.check(start, *bytes);
                    pinned.or_else(|_| self.memory.check(start, *bytes)).map_err(misuse)?;
                }
                // SAFETY: as above, for both; they may overlap.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes as usize) };
                Ok(())
            }
            Op::Fill { to, byte, bytes } => {
                self.memory.check(*to, *bytes).map_err(misuse)?;
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(*to as *mut u8, *byte, *bytes as usize) };
                Ok(())
            }
            Op::Record { .. } | Op::Wait { .. } | Op::Host(_) | Op::Launch { .. } => Ok(()),
        }
    }
}
