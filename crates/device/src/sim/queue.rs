//! What the simulated device has accepted and not yet run, and the memory it runs on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::driver::Handle;
use crate::memory::Mapping;
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
        // SAFETY: the range lies in a live mapping, and only the holder of the state, which is
        // the caller, runs anything on it.
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
    random: u64,
    /// Operations with their number in the order of enqueueing.
    streams: BTreeMap<Handle, VecDeque<(u64, Op)>>,
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
            random: order.seed,
            streams: BTreeMap::new(),
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

    pub(super) fn remove(&mut self, stream: Handle) {
        self.streams.remove(&stream);
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
        if self.waiting > LATE {
            self.run_one();
        }
    }

    pub(super) fn run_until_empty(&mut self, stream: Handle) {
        while self.streams.get(&stream).is_some_and(|queue| !queue.is_empty()) && self.run_one() {}
    }

    pub(super) fn run_until_reached(&mut self, event: Handle) {
        let pending = |queues: &Queues| {
            queues.events.get(&event).is_some_and(|event| event.reached < event.enqueued)
        };
        while pending(self) && self.run_one() {}
    }

    pub(super) fn drain(&mut self) {
        while self.run_one() {}
    }

    /// The first error since the last report.
    pub(super) fn report(&mut self) -> Result<(), DeviceError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Runs one operation of a stream that may go on; false if there is none.
    fn run_one(&mut self) -> bool {
        let ready = |(_, queue): &(&Handle, &VecDeque<(u64, Op)>)| match queue.front() {
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
            return false;
        }
        let choice = match self.order.seed {
            0 => 0,
            _ => self.draw() as usize % ready.len(),
        };
        let queue = self.streams.get_mut(&ready[choice].1);
        let Some((_, op)) = queue.and_then(VecDeque::pop_front) else { return false };
        self.waiting -= 1;
        if let Op::Record { event, generation } = op {
            if let Some(event) = self.events.get_mut(&event) {
                event.reached = generation;
            }
        } else if self.failed.is_none() {
            self.failed = self.execute(&op).err();
        }
        self.forget_doomed();
        true
    }

    /// The next number of a sequence that the seed fixes (splitmix64).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn execute(&mut self, op: &Op) -> Result<(), DeviceError> {
        let misuse = |message| DeviceError::Misuse { device: self.kind, message };
        match op {
            Op::Launch { module, kernel, grid, args } => self.run(module, *kernel, grid, args),
            Op::Write { to, from } => {
                self.memory.check(*to, from.len() as u64).map_err(misuse)?;
                // SAFETY: the range lies in a live mapping, which this thread alone runs on.
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
            Op::Record { .. } | Op::Wait { .. } => Ok(()),
        }
    }

    fn run(
        &mut self,
        module: &SimModule,
        kernel: usize,
        grid: &Grid,
        args: &[u8],
    ) -> Result<(), DeviceError> {
        let mut order = self.order;
        if order.seed != 0 {
            order.seed = self.draw();
        }
        let ranges = self.memory.ranges();
        // SAFETY: the map is sorted; its memory is touched by whoever holds the state alone.
        let result = unsafe { module.launch(kernel, grid, args, &ranges, order) };
        let name = || module.kernels()[kernel].name.clone();
        result.map_err(|failure| match failure {
            SimFailure::Refused(message) => {
                DeviceError::Launch { device: self.kind, kernel: name(), message }
            }
            SimFailure::Fault(message) => {
                DeviceError::Fault { device: self.kind, kernel: name(), message }
            }
        })
    }
}
