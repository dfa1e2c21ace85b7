//! A communicator's state among the threads that use it.
//!
//! ```text
//! enter ─▶ Lease ─▶ call of the library ─▶ settle ─▶ (drop)
//!                                            ▲
//! abort ── marks the end, waits for leases ──┘  and only then frees the communicator
//! ```
//!
//! The library wants one thread at a time to enqueue, and frees a communicator in `abort` whoever
//! else looks at it. So a call holds a lease, those that enqueue one after another; an abort marks
//! the end first, which every wait looks at, and frees when the last lease is gone. If a call
//! never comes back, the abort's own deadline ends it, and that call frees when it does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crate::config::Sent;
use crate::error::{End, Seat};
use crate::table::{Handle, Table};
use crate::wait::{DROP_PATIENCE, Deadline, run_bounded};
use crate::{Code, Error, Library};

pub(crate) struct Shared {
    pub(crate) library: Library,
    /// A child's is its parent's until it is ready.
    seat: Mutex<Seat>,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the release of something has been waited for in vain.
    was_late: AtomicBool,
    /// The library may keep pointers to its texts.
    _config: Box<Sent>,
}

struct State {
    handle: Handle,
    phase: Phase,
    /// Who enqueues, and how many leases it has: several within a group.
    owner: Option<(ThreadId, u32)>,
    /// Calls that only look.
    lookers: u32,
    /// Aborts that wait for the leases to end.
    aborting: u32,
    timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    Revoked,
    /// Is over for everybody, and not freed yet.
    Aborting,
    /// The library is freeing it, and may still use the memory that it knows.
    Freeing(End),
    Over(End),
}

/// The state of the communicator that a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// To enqueue an operation.
    Operation,
    /// To make others of it or to let go of something; may be revoked.
    Manage,
    /// To read its state, beside whatever else goes on.
    Look,
}

/// The state of a communicator's operations, by the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All calls so far are done; their operations are in their streams.
    Done,
    /// A call is still at work in the background.
    InProgress,
}

impl State {
    fn is_used(&self) -> bool {
        self.owner.is_some() || self.lookers > 0
    }

    fn is_owned_by_me(&self) -> bool {
        self.owner.is_some_and(|(owner, _)| owner == std::thread::current().id())
    }

    /// The handle, for the one who frees it.
    fn take(&mut self, end: End) -> Option<Handle> {
        self.phase = Phase::Freeing(end);
        let handle = std::mem::replace(&mut self.handle, Handle::NULL);
        (!handle.is_null()).then_some(handle)
    }
}

impl Shared {
    pub(crate) fn new(
        library: &Library,
        seat: Seat,
        handle: Handle,
        config: Box<Sent>,
        timeout: Duration,
    ) -> Arc<Shared> {
        let (phase, owner) = (Phase::Live, None);
        let state = State { handle, phase, owner, lookers: 0, aborting: 0, timeout };
        let (seat, state) = (Mutex::new(seat), Mutex::new(state));
        let (library, changed) = (library.clone(), Condvar::new());
        let was_late = AtomicBool::new(false);
        Arc::new(Shared { library, seat, state, changed, was_late, _config: config })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Deadline) -> MutexGuard<'a, State> {
        // A day at most: some systems refuse longer ones.
        let left = deadline.left().min(Duration::from_secs(86_400));
        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn seat(&self) -> Seat {
        *self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_seat(&self, seat: Seat) {
        *self.seat.lock().unwrap_or_else(PoisonError::into_inner) = seat;
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.lock().timeout
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) {
        self.lock().timeout = timeout;
    }

    pub(crate) fn late(
        &self,
        call: &'static str,
        deadline: Deadline,
        awaited: &'static str,
    ) -> Error {
        let waited_ms = u64::try_from(deadline.waited().as_millis()).unwrap_or(u64::MAX);
        Error::Deadline { call, seat: self.seat(), waited_ms, awaited }
    }

    fn ended(&self, call: &'static str, phase: Phase) -> Error {
        let end = match phase {
            Phase::Live | Phase::Aborting => End::Aborted,
            Phase::Revoked => End::Revoked,
            Phase::Freeing(end) | Phase::Over(end) => end,
        };
        Error::Ended { call, seat: self.seat(), end }
    }

    /// # Errors
    /// The communicator is over, or another thread's call lasts until the deadline.
    pub(crate) fn enter(
        self: &Arc<Shared>,
        call: &'static str,
        need: Need,
        deadline: Deadline,
    ) -> Result<Lease, Error> {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Live => {}
                Phase::Revoked if need != Need::Operation => {}
                phase => return Err(self.ended(call, phase)),
            }
            let me = std::thread::current().id();
            match state.owner {
                _ if need == Need::Look => state.lookers += 1,
                None => state.owner = Some((me, 1)),
                Some((owner, leases)) if owner == me => state.owner = Some((me, leases + 1)),
                Some(_) if deadline.is_over() => {
                    return Err(self.late(call, deadline, "another thread's call was under way"));
                }
                Some(_) => {
                    state = self.wait(state, deadline);
                    continue;
                }
            }
            let (shared, handle) = (Arc::clone(self), state.handle);
            return Ok(Lease { shared, handle, looks: need == Need::Look, began: state.phase });
        }
    }

    /// # Errors
    /// The communicator is over.
    pub(crate) fn mark_revoked(&self, call: &'static str) -> Result<(), Error> {
        let mut state = self.lock();
        match state.phase {
            Phase::Live | Phase::Revoked => state.phase = Phase::Revoked,
            phase => return Err(self.ended(call, phase)),
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Ends the communicator for everybody and frees it.
    ///
    /// # Errors
    /// The deadline: another thread's call, or the library's own abort, lasts longer, and is left
    /// to end by itself.
    pub(crate) fn abort(self: &Arc<Shared>, deadline: Deadline) -> Result<(), Error> {
        let call = "ncclCommAbort";
        let mut state = self.lock();
        if let Phase::Freeing(_) | Phase::Over(_) = state.phase {
            return Ok(());
        }
        state.phase = Phase::Aborting;
        self.changed.notify_all();
        state.aborting += 1;
        while state.is_used() && !state.is_owned_by_me() && !deadline.is_over() {
            state = self.wait(state, deadline);
        }
        state.aborting -= 1;
        if state.is_used() {
            // Our own lease, of an open group, frees it when it ends; so does another thread's.
            let awaited = "another thread is in a call, which will finish this when it returns";
            return if state.is_owned_by_me() {
                Ok(())
            } else {
                Err(self.late(call, deadline, awaited))
            };
        }
        let handle = state.take(End::Aborted);
        drop(state);
        handle.map_or(Ok(()), |handle| self.free(call, handle, deadline, Table::abort))
    }

    /// Frees the communicator after `ncclCommFinalize`.
    ///
    /// # Errors
    /// The deadline, or what the library says.
    pub(crate) fn destroy(
        self: &Arc<Shared>,
        lease: Lease,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let call = "ncclCommDestroy";
        // Nobody enters any more, whoever was faster.
        match &mut self.lock().phase {
            phase @ Phase::Live => *phase = Phase::Freeing(End::Finalized),
            phase => return Err(self.ended(call, *phase)),
        }
        drop(lease);
        let mut state = self.lock();
        while state.is_used() && !deadline.is_over() {
            state = self.wait(state, deadline);
        }
        if state.is_used() {
            // The call frees it when it returns, unless somebody's abort does.
            state.phase = Phase::Aborting;
            return Err(self.late(call, deadline, "another thread's call was under way"));
        }
        let handle = state.take(End::Finalized);
        drop(state);
        handle.map_or(Ok(()), |handle| self.free(call, handle, deadline, Table::destroy))
    }

    fn has_been_freed(&self) {
        let mut state = self.lock();
        if let Phase::Freeing(end) = state.phase {
            state.phase = Phase::Over(end);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// How long a release may last: of many that would all be late only the first is waited for.
    pub(crate) fn patience(&self) -> Deadline {
        let timeout = match self.was_late.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => self.timeout().min(DROP_PATIENCE),
        };
        Deadline::after(timeout)
    }

    /// A release was waited for in vain.
    pub(crate) fn lose_patience(&self, error: Error) -> Error {
        self.was_late.store(true, Ordering::Relaxed);
        error
    }

    /// Waits until the communicator, which is over, is freed, with all that the library knew of it.
    ///
    /// # Errors
    /// The deadline: the library may still use the memory that it knows.
    pub(crate) fn wait_until_freed(
        &self,
        call: &'static str,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let mut state = self.lock();
        while !matches!(state.phase, Phase::Over(_)) {
            if deadline.is_over() {
                drop(state);
                let late = self.late(call, deadline, "the library was freeing the communicator");
                return Err(self.lose_patience(late));
            }
            state = self.wait(state, deadline);
        }
        Ok(())
    }

    /// Frees on a thread of its own, because the library may wait for the device there.
    fn free(
        self: &Arc<Shared>,
        call: &'static str,
        handle: Handle,
        deadline: Deadline,
        free: unsafe fn(&Table, Handle) -> crate::table::Told,
    ) -> Result<(), Error> {
        let shared = Arc::clone(self);
        let told = run_bounded(deadline, move || {
            // SAFETY: whoever took the handle is the only one who has it.
            let told = unsafe { free(shared.library.table(), handle) };
            shared.has_been_freed();
            shared.library.check_begun(told)
        });
        let told = told.map_err(|source| Error::Thread { call, source })?;
        told.unwrap_or_else(|| Err(self.late(call, deadline, "the library was waiting")))
    }
}

/// The right to use a communicator, which exists at least as long.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    handle: Handle,
    looks: bool,
    began: Phase,
}

impl Lease {
    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Asks the library for the progress of the communicator.
    ///
    /// # Errors
    /// Its asynchronous error; it is being aborted, or was revoked since the call began.
    pub(crate) fn progress(&self, call: &'static str) -> Result<Progress, Error> {
        let (library, seat) = (&self.shared.library, self.shared.seat());
        let phase = self.shared.lock().phase;
        // The revoke waits until earlier calls are over; those after it are to make or free.
        let is_revoked = phase == Phase::Revoked && self.began == Phase::Live && !self.looks;
        if phase == Phase::Aborting || is_revoked {
            return Err(self.shared.ended(call, phase));
        }
        let mut number = 0;
        // SAFETY: the lease keeps the communicator; `number` is written.
        let told = unsafe { library.table().async_error(self.handle, &raw mut number) };
        library.check(told)?;
        match Code::of(number) {
            None => Ok(Progress::Done),
            Some(Code::InProgress) => Ok(Progress::InProgress),
            Some(code) => {
                let (text, detail) = (library.error_text(number), library.last_error());
                Err(Error::Async { call, seat, code, text, detail })
            }
        }
    }

    /// Waits until what was begun in the background is done.
    ///
    /// # Errors
    /// As [`Lease::progress`], and the deadline.
    pub(crate) fn settle(
        &self,
        call: &'static str,
        deadline: Deadline,
        awaited: &'static str,
    ) -> Result<(), Error> {
        self.settle_while(call, deadline, awaited, || true)
    }

    /// As [`Lease::settle`], as long as `goes_on`; the end of that is told as the deadline's.
    ///
    /// # Errors
    /// As [`Lease::settle`].
    pub(crate) fn settle_while(
        &self,
        call: &'static str,
        deadline: Deadline,
        awaited: &'static str,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), Error> {
        loop {
            if self.progress(call)? == Progress::Done {
                return Ok(());
            }
            if deadline.is_over() || !goes_on() {
                return Err(self.shared.late(call, deadline, awaited));
            }
            deadline.pause();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        match (self.looks, state.owner) {
            (true, _) => state.lookers -= 1,
            (false, Some((owner, leases))) if leases > 1 => state.owner = Some((owner, leases - 1)),
            (false, _) => state.owner = None,
        }
        let is_left = state.phase == Phase::Aborting && !state.is_used() && state.aborting == 0;
        let handle = if is_left { state.take(End::Aborted) } else { None };
        drop(state);
        self.shared.changed.notify_all();
        if let Some(handle) = handle {
            // Nobody waits for it any more.
            let now = Deadline::after(Duration::ZERO);
            let _ = self.shared.free("ncclCommAbort", handle, now, Table::abort);
        }
    }
}
