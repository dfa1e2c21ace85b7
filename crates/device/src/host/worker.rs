//! Who runs what is queued: on the CPU a thread of each stream, on the guarded device whoever
//! waits.

use std::sync::{Arc, PoisonError};

use super::Streams;
use super::op::Op;
use super::state::{State, Taken};
use crate::DeviceError;
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Mutex, MutexGuard};

impl Streams {
    /// Sees to it that a stream has a thread.
    pub(super) fn employ(
        self: &Arc<Self>,
        state: &mut State,
        index: usize,
    ) -> Result<(), DeviceError> {
        if state.lanes[index].worker {
            return Ok(());
        }
        let streams = self.clone();
        begin(move || streams.work(index))?;
        state.lanes[index].worker = true;
        Ok(())
    }

    /// The thread of a stream.
    fn work(&self, index: usize) {
        let mut state = self.lock();
        while !self.abort.is_set() {
            match state.take(index) {
                Taken::Run { op, left_out } => state = self.perform(state, index, op, left_out),
                Taken::Event => self.tell(&state.lanes[index]),
                Taken::Blocked(source) => state = self.sleep(state, source, None),
                Taken::Nothing if !state.lanes[index].open && state.lanes[index].is_idle() => break,
                Taken::Nothing => {
                    let work = state.lanes[index].work.clone();
                    state = work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        state.lanes[index].worker = false;
        state.sweep(index);
    }

    fn perform<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        index: usize,
        op: Op,
        left_out: bool,
    ) -> MutexGuard<'a, State> {
        drop(state);
        let (result, seat) = match left_out {
            true => {
                drop(op);
                (Ok(()), None)
            }
            false => op.run(),
        };
        let mut state = self.lock();
        if let Some(seat) = seat {
            state.seats.give_back(seat);
        }
        state.lanes[index].complete(result);
        self.tell(&state.lanes[index]);
        state
    }

    /// Runs one operation of a stream that may go on; false if there is none. Work on the host is
    /// only begun, on a thread of its own.
    pub(super) fn run_one<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
    ) -> (MutexGuard<'a, State>, bool) {
        let Some(index) = state.choose(self.seed != 0) else { return (state, false) };
        let mut state = match state.take(index) {
            Taken::Run { op: op @ Op::Host(_), left_out: false } => {
                self.hand_over(state, index, op)
            }
            Taken::Run { op, left_out } => self.perform(state, index, op, left_out),
            Taken::Event | Taken::Blocked(_) | Taken::Nothing => {
                self.tell(&state.lanes[index]);
                state
            }
        };
        state.sweep(index);
        (state, true)
    }

    fn hand_over<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        index: usize,
        op: Op,
    ) -> MutexGuard<'a, State> {
        // Kept here too, because nothing of a caller is dropped while the state is locked.
        let (kept, streams) = (Arc::new(Mutex::new(Some(op))), self.clone());
        let given = kept.clone();
        let begun = begin(move || {
            // The lock is free as soon as this thread is known.
            let state = streams.lock();
            let op = given.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(op) = op {
                let mut state = streams.perform(state, index, op, false);
                state.sweep(index);
            }
        });
        match begun {
            Ok(id) => {
                state.lanes[index].busy = Some(id);
                state
            }
            Err(error) => {
                drop(state);
                drop(kept);
                let mut state = self.lock();
                state.lanes[index].complete(Err(error));
                self.tell(&state.lanes[index]);
                state
            }
        }
    }
}

/// Begins a thread that nobody joins.
fn begin(work: impl FnOnce() + Send + 'static) -> Result<ThreadId, DeviceError> {
    let begun = thread::Builder::new().name("stream".to_owned()).spawn(work);
    let refused = |source| DeviceError::Threads { threads: 1, source };
    begun.map(|handle| handle.thread().id()).map_err(refused)
}
