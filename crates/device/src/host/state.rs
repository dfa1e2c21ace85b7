//! The state of all streams of a host device, and what may run next: decisions only.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::op::{Op, Outcome, Seats, Stamp};
use crate::DeviceError;
use crate::random::Random;
use crate::sync::Condvar;
use crate::sync::thread::{self, ThreadId};

/// Events in use behind other work that are kept to be used again.
const STAMPS: usize = 64;

/// An error that nobody has been told yet.
struct Failed {
    error: DeviceError,
    text: Arc<str>,
}

/// A stream.
pub(super) struct Lane {
    /// With their numbers in the order of enqueueing on the device.
    queue: VecDeque<(u64, Op)>,
    /// The thread that runs an operation of the stream now.
    pub(super) busy: Option<ThreadId>,
    pub(super) enqueued: u64,
    pub(super) completed: u64,
    failed: Option<Failed>,
    /// Threads that wait for this stream.
    pub(super) waiters: usize,
    /// It has a thread of its own.
    pub(super) worker: bool,
    /// Somebody has a handle to it.
    pub(super) open: bool,
    /// Wakes its thread.
    pub(super) work: Arc<Condvar>,
    stamps: Vec<Arc<Stamp>>,
}

impl Lane {
    fn new() -> Lane {
        Lane {
            queue: VecDeque::new(),
            busy: None,
            enqueued: 0,
            completed: 0,
            failed: None,
            waiters: 0,
            worker: false,
            open: true,
            work: Arc::new(Condvar::new()),
            stamps: Vec::new(),
        }
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Nothing is queued, runs or is waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.busy.is_none()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The event of what has happened so far.
    pub(super) fn outcome(&self) -> Outcome {
        let lost = self.failed.as_ref().map(|failed| failed.text.clone());
        Outcome { at: Instant::now(), lost }
    }

    /// A stamp that no event has any more, or a new one.
    pub(super) fn stamp(&mut self) -> Arc<Stamp> {
        for stamp in &mut self.stamps {
            if let Some(free) = Arc::get_mut(stamp) {
                *free = Stamp::default();
                return stamp.clone();
            }
        }
        let stamp = Arc::<Stamp>::default();
        if self.stamps.len() < STAMPS {
            self.stamps.push(stamp.clone());
        }
        stamp
    }

    /// Tells the error of what was queued, once.
    pub(super) fn report(&mut self) -> Result<(), DeviceError> {
        self.failed.take().map_or(Ok(()), |failed| Err(failed.error))
    }

    /// Tells the error before an event: itself the first time, then what it said.
    pub(super) fn report_before(&mut self, event: &Outcome) -> Result<(), DeviceError> {
        let Some(text) = &event.lost else { return Ok(()) };
        let is_it = |failed: &mut Failed| Arc::ptr_eq(&failed.text, text);
        match self.failed.take_if(is_it) {
            Some(failed) => Err(failed.error),
            None => Err(DeviceError::Lost { message: text.to_string() }),
        }
    }

    fn fail(&mut self, error: DeviceError) {
        if self.failed.is_none() {
            let text = error.to_string().into();
            self.failed = Some(Failed { error, text });
        }
    }

    /// The operation that was begun is over.
    pub(super) fn complete(&mut self, result: Result<(), DeviceError>) {
        self.busy = None;
        self.completed += 1;
        if let Err(error) = result {
            self.fail(error);
        }
    }
}

/// The outcome of taking the head of a stream's queue.
pub(super) enum Taken {
    /// The caller runs it, unless it is `left_out`, and completes it.
    Run { op: Op, left_out: bool },
    /// It was an event, and is over.
    Event,
    /// It waits for this stream.
    Blocked(usize),
    /// There is none, or another thread is at it.
    Nothing,
}

pub(super) struct State {
    pub(super) lanes: Vec<Lane>,
    free: Vec<usize>,
    random: Random,
    pub(super) seats: Seats,
    /// Operations in all queues, and how many there ever were.
    pub(super) queued: usize,
    numbered: u64,
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        let (random, seats) = (Random::new(seed), Seats::default());
        State { lanes: Vec::new(), free: Vec::new(), random, seats, queued: 0, numbered: 0 }
    }

    /// A new stream, and what is left of the one whose place it has: it may hold an error of a
    /// caller, and is dropped where nothing is locked.
    pub(super) fn open(&mut self) -> (usize, Option<Lane>) {
        match self.free.pop() {
            Some(index) => {
                let Lane { work, waiters, .. } = &self.lanes[index];
                // Who has waited for the stream before may not have woken yet.
                let (work, waiters) = (work.clone(), *waiters);
                let lane = Lane { work, waiters, ..Lane::new() };
                (index, Some(std::mem::replace(&mut self.lanes[index], lane)))
            }
            None => {
                self.lanes.push(Lane::new());
                (self.lanes.len() - 1, None)
            }
        }
    }

    /// Frees a stream without handles that has nothing left to do.
    pub(super) fn sweep(&mut self, index: usize) {
        let lane = &self.lanes[index];
        if !lane.open && lane.is_idle() && !lane.worker && !self.free.contains(&index) {
            self.free.push(index);
        }
    }

    pub(super) fn push(&mut self, index: usize, op: Op) {
        let lane = &mut self.lanes[index];
        lane.queue.push_back((self.numbered, op));
        lane.enqueued += 1;
        self.numbered += 1;
        self.queued += 1;
    }

    /// The stream that the head of this one's queue waits for.
    fn blocked(&self, index: usize) -> Option<usize> {
        match self.lanes[index].queue.front() {
            Some((_, Op::Wait { source, stamp })) if stamp.0.get().is_none() => Some(*source),
            _ => None,
        }
    }

    /// Begins the head of a stream's queue, on this thread.
    pub(super) fn take(&mut self, index: usize) -> Taken {
        if let Some(source) = self.blocked(index) {
            return Taken::Blocked(source);
        }
        let lane = &mut self.lanes[index];
        if lane.busy.is_some() {
            return Taken::Nothing;
        }
        let Some((_, op)) = lane.queue.pop_front() else { return Taken::Nothing };
        self.queued -= 1;
        match op {
            Op::Record(stamp) => {
                // It was given to this operation alone, so it is not set.
                let _ = stamp.0.set(lane.outcome());
                lane.complete(Ok(()));
                Taken::Event
            }
            Op::Wait { stamp, .. } => {
                let lost = stamp.0.get().and_then(|outcome| outcome.lost.as_ref());
                let lost = lost.map(|text| DeviceError::Lost { message: text.to_string() });
                lane.complete(lost.map_or(Ok(()), Err));
                Taken::Event
            }
            op => {
                lane.busy = Some(thread::current().id());
                Taken::Run { op, left_out: lane.has_failed() }
            }
        }
    }

    /// A stream that may go on: the one whose head was enqueued first, or any of them (`drawn`).
    pub(super) fn choose(&mut self, drawn: bool) -> Option<usize> {
        let head = |index: usize| {
            let lane = &self.lanes[index];
            let number = lane.queue.front().map(|(number, _)| *number)?;
            (lane.busy.is_none() && self.blocked(index).is_none()).then_some((number, index))
        };
        let mut ready: Vec<(u64, usize)> = (0..self.lanes.len()).filter_map(head).collect();
        if ready.is_empty() {
            return None;
        }
        ready.sort_unstable();
        let choice = if drawn { self.random.draw() as usize % ready.len() } else { 0 };
        Some(ready[choice].1)
    }

    /// Everything that is queued, taken out.
    pub(super) fn clear(&mut self) -> Vec<VecDeque<(u64, Op)>> {
        self.queued = 0;
        self.lanes.iter_mut().map(|lane| std::mem::take(&mut lane.queue)).collect()
    }
}
