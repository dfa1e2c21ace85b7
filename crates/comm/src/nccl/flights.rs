//! The operations of a group that were begun and are not known to be done, in their order.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use device::Event;

use super::plan::Check;
use crate::Operation;

/// An operation that was begun; clones are the same.
#[derive(Clone)]
pub(super) struct Flight {
    pub(super) number: u64,
    pub(super) operation: Operation,
    pub(super) check: Arc<Check>,
    /// Sent and received.
    pub(super) bytes: (u64, u64),
    /// Its end on the device, once all of it is in the stream.
    pub(super) end: Arc<OnceLock<Event>>,
}

#[derive(Default)]
struct State {
    begun: u64,
    done: u64,
    open: VecDeque<Flight>,
    /// How many there will be, once the group is dropped.
    last: Option<u64>,
}

#[derive(Default)]
pub(super) struct Flights {
    state: Mutex<State>,
    changed: Condvar,
    /// Whoever follows flights to their end holds it.
    pilot: Mutex<()>,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next operation begins.
    pub(super) fn begin(
        &self,
        operation: Operation,
        check: &Arc<Check>,
        bytes: (u64, u64),
    ) -> Flight {
        let (check, end) = (Arc::clone(check), Arc::default());
        let mut state = self.lock();
        state.begun += 1;
        let flight = Flight { number: state.begun, operation, check, bytes, end };
        state.open.push_back(flight.clone());
        drop(state);
        self.changed.notify_all();
        flight
    }

    /// The oldest one, if its number is `upto` at most.
    pub(super) fn oldest(&self, upto: u64) -> Option<Flight> {
        self.lock().open.front().filter(|flight| flight.number <= upto).cloned()
    }

    /// The oldest one is done.
    pub(super) fn land(&self) {
        let mut state = self.lock();
        state.open.pop_front();
        state.done += 1;
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn is_done(&self, number: u64) -> bool {
        self.lock().done >= number
    }

    /// One that is open, by its number.
    pub(super) fn find(&self, number: u64) -> Option<Flight> {
        self.lock().open.iter().find(|flight| flight.number == number).cloned()
    }

    /// The group is dropped after so many operations.
    pub(super) fn close(&self, submitted: u64) {
        self.lock().last = Some(submitted);
        self.changed.notify_all();
    }

    /// Whether there will be none any more.
    pub(super) fn are_over(&self) -> bool {
        let state = self.lock();
        state.last.is_some_and(|last| state.done >= last)
    }

    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Returns when an operation up to `upto` is open, or when something has happened, or after
    /// `limit`.
    pub(super) fn wait(&self, upto: u64, limit: Duration) {
        let state = self.lock();
        let is_open = state.open.front().is_some_and(|flight| flight.number <= upto);
        if !is_open {
            drop(self.changed.wait_timeout(state, limit));
        }
    }

    /// Returns when something has happened since `number` was open, or after `limit`.
    pub(super) fn wait_for(&self, number: u64, limit: Duration) {
        let state = self.lock();
        if state.done < number {
            drop(self.changed.wait_timeout(state, limit));
        }
    }

    /// The right to follow flights, if nobody else does.
    pub(super) fn pilot(&self) -> Option<MutexGuard<'_, ()>> {
        match self.pilot.try_lock() {
            Ok(pilot) => Some(pilot),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
