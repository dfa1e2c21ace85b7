//! The streams of a device: whether their work is over, asked without waiting in the driver.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::table::{Common, Refusal};

#[derive(Default)]
struct State {
    /// It must not be asked: that would spoil the graph.
    captures: bool,
    /// Nobody has it any more, and it is destroyed when its work is over: until then frees must
    /// wait for it as for the others.
    closed: bool,
}

#[derive(Default)]
pub(super) struct Streams {
    states: Mutex<BTreeMap<u64, State>>,
}

impl Streams {
    fn states(&self) -> MutexGuard<'_, BTreeMap<u64, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, stream: u64) {
        self.states().insert(stream, State::default());
    }

    pub(super) fn captures(&self, stream: u64, captures: bool) {
        if let Some(state) = self.states().get_mut(&stream) {
            state.captures = captures;
        }
    }

    pub(super) fn close(&self, stream: u64) {
        if let Some(state) = self.states().get_mut(&stream) {
            state.closed = true;
        }
    }

    /// Whether the work of all streams is over ("not ready" where it is not); those that are closed
    /// and done are destroyed. The device is current in this thread.
    ///
    /// # Errors
    /// An error of the driver.
    pub(super) fn are_over(&self, common: &Common) -> Result<(), Refusal> {
        // Locked, so that none is destroyed while it is asked.
        let mut states = self.states();
        let mut told = Ok(());
        states.retain(|&stream, state| {
            if state.captures {
                return true;
            }
            // SAFETY: a stream of this driver that was not destroyed.
            let over = unsafe { common.stream_query(stream) };
            let is_over = over.is_ok();
            told = told.and(over);
            if is_over && state.closed {
                // SAFETY: as above, and it is forgotten.
                told = told.and(unsafe { common.stream_destroy(stream) });
            }
            !(is_over && state.closed)
        });
        told
    }
}
