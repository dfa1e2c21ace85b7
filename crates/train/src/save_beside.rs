//! Saves beside the training: a step waits for a copy of the state, and a thread writes that.
//!
//! ```text
//! training  ─ step ─ vote ─ copy ─ step ─ vote ─ step ─ vote ─ event, retention ─▶
//!                             └▶ one of two buffers                ▲
//! "saving"                      └─ write, fsync ─ digests ─ commit ┘  known to all by the vote
//! ```
//! Invariants:
//!   * every rank hands over the same saves in the same order, so that their threads meet on a
//!     channel of their own; nothing of it is on a step's way;
//!   * the ballot of a step says how many saves a rank has seen end, and ranks act on the fewest:
//!     on a failure, and on buffers that are free, all act after the same step;
//!   * a save that finds both buffers in use is left out, and told: those before it are written,
//!     and nothing is queued.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use checkpoint::{
    Attempt, Chunk, ChunkData, Dtype, RankDigest, Region, RunState, Source, Store, TensorKey,
    WriteOptions,
};
use comm::Control;

use crate::event::Saved;
use crate::local::{Local, Written};
use crate::plan::SAVE_BUFFERS;
use crate::save::Planned;
use crate::save_boxes::key;
use crate::save_outcome::conclude;
use crate::{RunPlan, TrainError};

/// How often a thread that writes no faster than it may looks whether it still must wait.
const LOOK: Duration = Duration::from_millis(20);

/// The saves of a rank beside its training.
pub(crate) struct Beside {
    /// Until the end.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// Steps of saves whose outcome has not been taken.
    open: VecDeque<u64>,
    /// Saves whose outcome has been taken.
    taken: u64,
}

/// Where a save goes.
pub(crate) enum Target {
    Store(Store),
    Local(Arc<Local>),
}

/// A save that has ended.
pub(crate) enum Ended {
    Saved(Saved),
    /// In the directories of the hosts, or why not.
    Local(Result<Saved, String>),
}

/// A copy of the state, to be written.
pub(crate) struct Job {
    pub target: Target,
    pub attempt: Attempt,
    pub state: RunState,
    pub buffer: Vec<f32>,
    pub begun: Instant,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Vec<f32>>,
    /// Saves that have ended.
    ended: u64,
    /// Outcomes that have not been taken.
    outcomes: VecDeque<Result<Ended, TrainError>>,
    /// Somebody waits, so that the limit of bytes a second does not count.
    hurry: bool,
    /// The thread has ended.
    is_gone: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is there to be taken, or the thread has ended.
    fn wait<T>(&self, take: impl Fn(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        state.hurry = true;
        let taken = loop {
            let taken = take(&mut state);
            if taken.is_some() || state.is_gone {
                break taken;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.hurry = false;
        taken
    }
}

/// Says that the thread has ended, however it did.
struct Gone(Arc<Shared>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.lock().is_gone = true;
        self.0.changed.notify_all();
    }
}

impl Beside {
    /// Allocates the buffers, all pages of them, and starts the thread of rank `rank`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn start(
        plan: &RunPlan,
        (rank, world): (usize, usize),
        planned: &Arc<Planned>,
        control: &Arc<dyn Control>,
        max_bytes_per_s: Option<f64>,
    ) -> Result<Beside, TrainError> {
        let piece = |(state, region): &(usize, Region)| {
            let state = &plan.states[*state];
            let (key, shape, region) = (key(state), state.shape.clone(), region.clone());
            let len = region.elements().unwrap_or(0);
            Piece { key, dtype: state.dtype, shape, region, len }
        };
        let pieces: Vec<Piece> = planned.boxes().iter().map(piece).collect();
        let len = pieces.iter().map(|piece| piece.len).sum();
        let buffer = |_| {
            let mut buffer = vec![0.0; len];
            // The system gives pages when they are written to: not in the first save.
            buffer.fill(1.0);
            buffer
        };
        let shared = Arc::new(Shared::default());
        shared.lock().idle = (0..SAVE_BUFFERS).map(buffer).collect();
        let (jobs, receiver) = channel();
        let place = (rank as u32, world as u32);
        let (planned, control) = (Arc::clone(planned), Arc::clone(control));
        let of = Arc::clone(&shared);
        let writer = Writer { place, pieces, planned, control, shared: of, max_bytes_per_s };
        let thread = std::thread::Builder::new().name("saving".into());
        let thread = thread.spawn(move || writer.run(&receiver)).map_err(TrainError::Thread)?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        Ok(Beside { jobs, thread, shared, open: VecDeque::new(), taken: 0 })
    }

    /// Saves that this rank has seen end.
    pub(crate) fn ended(&self) -> u64 {
        self.shared.lock().ended
    }

    /// The reason to leave out a save of `step`: as far as all ranks know, none has a buffer free.
    /// `key` says how often there is one.
    pub(crate) fn is_overtaken(&self, step: u64, key: &str) -> Option<String> {
        let steps: Vec<String> = self.open.iter().map(u64::to_string).collect();
        (steps.len() >= SAVE_BUFFERS).then(|| {
            format!(
                "the save of step {step} is left out: those of steps {} are still being written; \
                 save more rarely ({key}), or to a faster disk",
                steps.join(" and ")
            )
        })
    }

    /// Outcomes of saves of which all ranks know that they have ended: so many since the start.
    pub(crate) fn known(&mut self, ended: u64) -> Result<Vec<Ended>, TrainError> {
        let count = ended.saturating_sub(self.taken).min(self.open.len() as u64) as usize;
        let outcomes: Vec<_> = {
            let mut state = self.shared.lock();
            let count = count.min(state.outcomes.len());
            state.outcomes.drain(..count).collect()
        };
        self.open.drain(..outcomes.len());
        self.taken += outcomes.len() as u64;
        outcomes.into_iter().collect()
    }

    /// A buffer, as soon as one is free.
    pub(crate) fn buffer(&self) -> Result<Vec<f32>, TrainError> {
        self.shared.wait(|state| state.idle.pop()).ok_or_else(failed)
    }

    pub(crate) fn hand_over(&mut self, job: Job) -> Result<(), TrainError> {
        self.open.push_back(job.attempt.step);
        let jobs = self.jobs.as_ref().ok_or_else(failed)?;
        jobs.send(job).map_err(|_| failed())
    }

    /// Saves that were handed over.
    pub(crate) fn begun(&self) -> u64 {
        self.taken + self.open.len() as u64
    }

    /// Waits until all saves have ended.
    pub(crate) fn settle(&self) -> Result<(), TrainError> {
        let begun = self.begun();
        self.shared.wait(|state| (state.ended == begun).then_some(())).ok_or_else(failed)
    }
}

impl Drop for Beside {
    /// The thread's end of the channel goes with it. It is not waited for where it is at work: that
    /// is after an error, and the disk may hang.
    fn drop(&mut self) {
        self.jobs = None;
        let is_idle = self.ended() == self.begun();
        if let Some(thread) = self.thread.take().filter(|_| is_idle) {
            // After a panic there is nothing to be told here.
            let _ = thread.join();
        }
    }
}

/// The thread of the saves has ended before its time, which only a fault of this program does.
fn failed() -> TrainError {
    TrainError::Thread(std::io::Error::other("the thread that saves has failed; see its log"))
}

/// A box that a rank writes; its data follow those of the one before.
struct Piece {
    key: TensorKey,
    dtype: Dtype,
    shape: Vec<usize>,
    region: Region,
    len: usize,
}

/// The thread, and all it needs.
struct Writer {
    /// Rank and world.
    place: (u32, u32),
    pieces: Vec<Piece>,
    planned: Arc<Planned>,
    control: Arc<dyn Control>,
    shared: Arc<Shared>,
    max_bytes_per_s: Option<f64>,
}

impl Writer {
    fn run(&self, jobs: &Receiver<Job>) {
        let _gone = Gone(Arc::clone(&self.shared));
        for job in jobs {
            let outcome = self.save(&job);
            let mut state = self.shared.lock();
            state.idle.push(job.buffer);
            state.outcomes.push_back(outcome);
            state.ended += 1;
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    fn save(&self, job: &Job) -> Result<Ended, TrainError> {
        let Job { target, attempt, state, buffer, begun } = job;
        let saved = |path: &Path, bytes| {
            let (path, ms) = (path.display().to_string(), begun.elapsed().as_secs_f64() * 1e3);
            Saved { step: attempt.step, path, bytes, ms }
        };
        let (control, mut plan) = (self.control.as_ref(), self.planned.all());
        match target {
            Target::Store(store) => {
                let written = self.write(store, *attempt, buffer, self.max_bytes_per_s);
                let at = (store, *attempt);
                let committed = conclude(control, at, plan.as_deref_mut(), written, state)?;
                Ok(Ended::Saved(saved(&committed.path, committed.bytes)))
            }
            Target::Local(local) => {
                let written = self.write(&local.store, *attempt, buffer, None);
                let (attempt, plan, digest) = (*attempt, plan.as_deref_mut(), written);
                let written = Written { attempt, plan, digest, state };
                let kept = local.conclude(control, written)?;
                let path = local.store.path_of(attempt);
                Ok(Ended::Local(kept.map(|bytes| saved(&path, bytes))))
            }
        }
    }

    fn write(
        &self,
        store: &Store,
        attempt: Attempt,
        buffer: &[f32],
        max_bytes_per_s: Option<f64>,
    ) -> Result<RankDigest, TrainError> {
        let (since, read) = (Instant::now(), Cell::new(0));
        let pace = Pace { since, read, max_bytes_per_s, of: self };
        let (mut chunks, mut rest) = (Vec::with_capacity(self.pieces.len()), buffer);
        for Piece { key, dtype, shape, region, len } in &self.pieces {
            let (values, more) = rest.split_at(*len);
            let data = Paced { bytes: bytemuck::cast_slice(values), pace: &pace };
            chunks.push(Chunk::new(key.clone(), *dtype, shape, region.clone(), data));
            rest = more;
        }
        let (rank, world) = self.place;
        let report = store.write_rank(attempt, rank, world, &chunks, &WriteOptions::default())?;
        Ok(RankDigest::from(&report))
    }
}

/// How fast a save may be written.
struct Pace<'a> {
    since: Instant,
    /// Bytes so far.
    read: Cell<u64>,
    max_bytes_per_s: Option<f64>,
    of: &'a Writer,
}

impl Pace<'_> {
    /// Returns when so many bytes more may be written. Nobody is kept waiting for that.
    fn wait(&self, bytes: usize) {
        let Some(per_s) = self.max_bytes_per_s else { return };
        self.read.set(self.read.get() + bytes as u64);
        let due = Duration::from_secs_f64(self.read.get() as f64 / per_s);
        while let Some(left) = due.checked_sub(self.since.elapsed()) {
            if self.of.shared.lock().hurry {
                return;
            }
            device::work::mark_waiting();
            std::thread::sleep(left.min(LOOK));
        }
    }
}

/// The bytes of a chunk, given out no faster than they may be written.
struct Paced<'a> {
    bytes: &'a [u8],
    pace: &'a Pace<'a>,
}

impl ChunkData for Paced<'_> {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Source> {
        self.bytes.read_at(offset, out)?;
        self.pace.wait(out.len());
        Ok(())
    }
}
