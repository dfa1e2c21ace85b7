//! Streams of the host devices.
//!
//! ```text
//! launch ─▶ idle? ── yes ─▶ runs on the caller's thread                               cpu
//!             └───── no ──▶ queue ─▶ the stream's own thread, in order                cpu
//!                             └────▶ whoever waits, in an order that a seed draws     guarded
//! host   ─────────────────▶ queue ─▶ a thread, never the caller's                     both
//! ```
//!
//! Invariants:
//!   * one lock guards the state of all streams of a device, so that events, waits and giving up
//!     are conditions on it; no closure runs and nothing of a caller is dropped while it is held;
//!   * of a stream one operation runs at a time, in the order of enqueueing;
//!   * threads are never joined: they own what they need, and end by themselves when their stream
//!     has no handle and nothing to do. One that hangs in a closure holds nobody up.

mod job;
mod op;
mod state;
mod worker;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use job::HostJob;
pub use job::SharedJob;
pub(crate) use op::{Op, Outcome, Stamp};

use crate::abort::Abort;
use crate::sync::{Condvar, Mutex, MutexGuard, thread};
use crate::{Device, DeviceError, DeviceKind, Kernel};
use state::{Lane, State};

/// Operations that the guarded device holds back before it runs one.
const LATE: usize = 64;

/// The streams of a device.
pub(crate) struct Streams {
    kind: DeviceKind,
    /// Guarded device: 0 for the order of enqueueing.
    seed: u64,
    state: Mutex<State>,
    /// Wakes those who wait for a stream.
    done: Condvar,
    pub(crate) abort: Abort,
}

/// A handle to a stream; the last one closes it, and what is queued is still done: on the CPU at
/// once, on the guarded device as soon as somebody waits, for whichever stream. There work for
/// which nobody ever waits is never done, and keeps its device and what it captured to the end of
/// the process, unless the device is given up.
pub(crate) struct HostStream {
    streams: Arc<Streams>,
    index: usize,
}

/// The treatment of a kernel that is launched now.
pub(crate) enum Entry<'a> {
    /// The caller runs it.
    Inline(Turn<'a>),
    /// It is left out, because work before it failed.
    Lost,
    Queue,
}

/// A stream is the caller's until this is dropped. Meanwhile it must not wait for the stream.
#[must_use]
pub struct Turn<'a> {
    stream: &'a HostStream,
}

/// A point in the order of a stream of a host device.
#[derive(Clone)]
pub(crate) enum Mark {
    Reached(Outcome),
    Pending(Arc<Stamp>),
}

impl Streams {
    pub(crate) fn new(kind: DeviceKind, seed: u64) -> Arc<Streams> {
        let (state, done) = (Mutex::new(State::new(seed)), Condvar::new());
        Arc::new(Streams { kind, seed, state, done, abort: Abort::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_late(&self) -> bool {
        self.kind == DeviceKind::Guarded
    }

    /// Something of this stream is over.
    fn tell(&self, lane: &Lane) {
        if lane.waiters > 0 || self.is_late() {
            self.done.notify_all();
        }
    }

    /// Drops all queued work, and tells `why` to whoever waits.
    pub(crate) fn give_up(&self, why: &str) {
        if !self.abort.set(why) {
            return;
        }
        let mut state = self.lock();
        let queued = state.clear();
        self.done.notify_all();
        state.lanes.iter().for_each(|lane| lane.work.notify_all());
        drop(state);
        // The work may close streams, which takes the lock.
        drop(queued);
    }

    /// Waits until `reached` holds of a stream; `None` when `until` came before.
    fn wait(
        self: &Arc<Self>,
        index: usize,
        until: Option<Instant>,
        reached: impl Fn(&Lane) -> bool,
    ) -> Result<Option<MutexGuard<'_, State>>, DeviceError> {
        let is_over = || until.is_some_and(|until| Instant::now() >= until);
        let (mut state, mut has_run) = (self.lock(), false);
        loop {
            self.abort.check(self.kind)?;
            let lane = &state.lanes[index];
            if reached(lane) {
                return Ok(Some(state));
            }
            if lane.busy == Some(thread::current().id()) {
                return Err(self.waits_for_itself());
            }
            // Who only asks still lets the guarded device get on by one operation.
            if has_run && is_over() {
                return Ok(None);
            }
            if self.is_late() {
                (state, has_run) = self.run_one(state);
                if has_run {
                    continue;
                }
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return Ok(None),
                left => self.sleep(state, index, left),
            };
        }
    }

    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        index: usize,
        left: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.lanes[index].waiters += 1;
        let mut state = match left {
            None => self.done.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                let woken = self.done.wait_timeout(state, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.lanes[index].waiters -= 1;
        state
    }

    fn waits_for_itself(&self) -> DeviceError {
        let message = "work of a stream waits for the stream that it is part of".to_owned();
        DeviceError::Misuse { device: self.kind, message }
    }
}

impl HostStream {
    pub(crate) fn new(streams: &Arc<Streams>) -> Arc<HostStream> {
        // The lock is free at the end of the statement.
        let (index, left) = streams.lock().open();
        drop(left);
        Arc::new(HostStream { streams: streams.clone(), index })
    }

    /// Returns the treatment of a kernel that is launched now.
    pub(crate) fn enter(&self) -> Result<Entry<'_>, DeviceError> {
        let mut state = self.streams.lock();
        self.streams.abort.check(self.streams.kind)?;
        let lane = &mut state.lanes[self.index];
        if self.streams.is_late() || !lane.is_idle() {
            return Ok(Entry::Queue);
        }
        if lane.has_failed() {
            return Ok(Entry::Lost);
        }
        Ok(Entry::Inline(self.begin(lane)))
    }

    fn begin(&self, lane: &mut Lane) -> Turn<'_> {
        lane.busy = Some(thread::current().id());
        lane.enqueued += 1;
        Turn { stream: self }
    }

    /// Waits for what was enqueued before, and takes the stream.
    ///
    /// # Errors
    /// The first error since the last wait.
    pub(crate) fn wait_for_turn(&self) -> Result<Turn<'_>, DeviceError> {
        let Some(mut state) = self.streams.wait(self.index, None, Lane::is_idle)? else {
            // Not without a deadline.
            return Err(self.streams.waits_for_itself());
        };
        let lane = &mut state.lanes[self.index];
        lane.report()?;
        Ok(self.begin(lane))
    }

    /// Queues a kernel.
    pub(crate) fn push_kernel<F>(
        &self,
        device: Device,
        name: &'static str,
        kernel: F,
    ) -> Result<(), DeviceError>
    where
        F: FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static,
    {
        self.push_with(|state| Op::Kernel { device, name, kernel: state.seats.take(kernel) })
    }

    pub(crate) fn push(&self, op: Op) -> Result<(), DeviceError> {
        self.push_with(|_| op)
    }

    fn push_with(&self, op: impl FnOnce(&mut State) -> Op) -> Result<(), DeviceError> {
        let streams = &self.streams;
        let mut state = streams.lock();
        streams.abort.check(streams.kind)?;
        if !streams.is_late() {
            streams.employ(&mut state, self.index)?;
        }
        let op = op(&mut state);
        state.push(self.index, op);
        let lane = &state.lanes[self.index];
        if lane.busy.is_none() && lane.worker {
            lane.work.notify_one();
        }
        if streams.is_late() && state.queued > LATE {
            drop(streams.run_one(state));
        }
        Ok(())
    }

    pub(crate) fn record(&self) -> Result<Mark, DeviceError> {
        let mut state = self.streams.lock();
        self.streams.abort.check(self.streams.kind)?;
        let lane = &mut state.lanes[self.index];
        if lane.is_idle() {
            return Ok(Mark::Reached(lane.outcome()));
        }
        let stamp = lane.stamp();
        drop(state);
        self.push(Op::Record(stamp.clone()))?;
        Ok(Mark::Pending(stamp))
    }

    /// Later work waits for `event` of `source`.
    pub(crate) fn wait_for(&self, source: &HostStream, event: &Mark) -> Result<(), DeviceError> {
        let reached = match event {
            Mark::Reached(outcome) => Some(outcome),
            Mark::Pending(stamp) => stamp.0.get(),
        };
        match (reached, event) {
            _ if self.index == source.index => Ok(()),
            (Some(Outcome { lost: None, .. }), _) => Ok(()),
            (_, Mark::Pending(stamp)) => {
                self.push(Op::Wait { source: source.index, stamp: stamp.clone() })
            }
            (_, Mark::Reached(outcome)) => {
                let stamp = Arc::new(Stamp(outcome.clone().into()));
                self.push(Op::Wait { source: source.index, stamp })
            }
        }
    }

    /// Whether what was enqueued before is done. On the guarded device nothing gets on by that.
    pub(crate) fn is_done(&self) -> Result<bool, DeviceError> {
        let mut state = self.streams.lock();
        self.streams.abort.check(self.streams.kind)?;
        let lane = &mut state.lanes[self.index];
        if !lane.is_idle() {
            return Ok(false);
        }
        lane.report().map(|()| true)
    }

    /// Waits for what was enqueued before; false when `until` came before.
    pub(crate) fn synchronize(&self, until: Option<Instant>) -> Result<bool, DeviceError> {
        let last = self.streams.lock().lanes[self.index].enqueued;
        let over = |lane: &Lane| lane.completed >= last;
        match self.streams.wait(self.index, until, over)? {
            Some(mut state) => state.lanes[self.index].report().map(|()| true),
            None => Ok(false),
        }
    }

    /// Waits for an event of this stream; `None` when `until` came before.
    pub(crate) fn reach(
        &self,
        event: &Mark,
        until: Option<Instant>,
    ) -> Result<Option<Instant>, DeviceError> {
        let stamp = match event {
            Mark::Pending(stamp) => stamp,
            Mark::Reached(outcome) => {
                self.streams.abort.check(self.streams.kind)?;
                if outcome.lost.is_some() {
                    self.streams.lock().lanes[self.index].report_before(outcome)?;
                }
                return Ok(Some(outcome.at));
            }
        };
        let reached = |_: &Lane| stamp.0.get().is_some();
        let Some(mut state) = self.streams.wait(self.index, until, reached)? else {
            return Ok(None);
        };
        let Some(outcome) = stamp.0.get() else { return Ok(None) };
        state.lanes[self.index].report_before(outcome)?;
        Ok(Some(outcome.at))
    }
}

impl Turn<'_> {
    /// Runs work as that of [`crate::Stream::host_shared`], and ends the turn. A panic is an error.
    ///
    /// # Errors
    /// An error of the work.
    pub fn run(self, work: &SharedJob) -> Result<(), DeviceError> {
        job::run_shared(work)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let streams = &self.stream.streams;
        let mut state = streams.lock();
        let lane = &mut state.lanes[self.stream.index];
        lane.complete(Ok(()));
        streams.tell(lane);
        if lane.has_queued() && lane.worker {
            lane.work.notify_one();
        }
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        let lane = &mut state.lanes[self.index];
        lane.open = false;
        lane.work.notify_all();
        state.sweep(self.index);
    }
}
