//! The group: meeting, operations as (enter, read, leave), waiting, giving up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::control::{self, Announcement, Control};
use super::memory::{Places, SharedMemory};
use super::system::Process;
use crate::combine::Scratch;
use crate::counters::CounterCells;
use crate::error::Moved;
use crate::patience::{self, Patience};
use crate::{CommError, Operation, Result, Revocation};

/// Looks at a peer's phase before the first yield, where every rank has a core.
const SPINS: usize = 300;
/// Yields before the first sleep.
const YIELDS: usize = 50;
/// Longest sleep: bounds how late revocation and death are noticed.
const TICK: Duration = Duration::from_millis(20);

/// A rank's end of a group of processes on one host.
pub struct Shm {
    pub(super) control: Control,
    pub(super) rank: usize,
    pub(super) world: usize,
    timeout_ms: u64,
    revocation: Revocation,
    spins: usize,
    /// Known once everyone is there.
    peers: OnceLock<Vec<Process>>,
    pub(super) state: Mutex<State>,
    pub(super) counters: CounterCells,
}

/// What only the operation in progress uses.
pub(super) struct State {
    sequence: u64,
    pub places: Places,
    pub scratch: Scratch,
    pub reads: Reads,
    /// Messages of a broadcast.
    pub messages: Vec<Vec<u8>>,
    /// Messages so far by peer and direction (true: received).
    messages_with: std::collections::BTreeMap<(usize, bool), u64>,
}

/// Bytes that the operation in progress has read out of each rank's windows.
pub(super) struct Reads {
    bytes: Vec<AtomicU64>,
}

impl Reads {
    fn new(world: usize) -> Reads {
        Reads { bytes: (0..world).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn of(&self, rank: usize) -> &AtomicU64 {
        &self.bytes[rank]
    }

    pub(super) fn add(&self, rank: usize, bytes: usize) {
        self.bytes[rank].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The operation in progress.
#[derive(Clone)]
pub(super) struct Call {
    pub operation: Operation,
    pub sequence: u64,
    /// For all of its waits together.
    patience: Cell<Patience>,
}

impl Call {
    fn phase(&self) -> u32 {
        (self.sequence as u32).wrapping_mul(2)
    }
}

impl State {
    fn new(memory: SharedMemory, world: usize) -> State {
        State {
            sequence: 0,
            places: Places::new(memory, world),
            scratch: Scratch::default(),
            reads: Reads::new(world),
            messages: Vec::new(),
            messages_with: std::collections::BTreeMap::new(),
        }
    }
}

impl Shm {
    /// Meets the other ranks that share `memory`; returns once all `world` are there, or when
    /// `revocation` gives the group up.
    ///
    /// # Errors
    /// A rank out of range or claimed twice; ranks missing after `timeout_ms`; memory of another
    /// group.
    pub fn connect(
        memory: SharedMemory,
        rank: usize,
        world: usize,
        timeout_ms: u64,
        revocation: Revocation,
    ) -> Result<Shm> {
        if rank >= world {
            return Err(CommError::NoSuchRank { rank, world });
        }
        let control = Control::open(&memory, world)?;
        if !control.claim(rank) {
            return Err(CommError::RankTaken { rank });
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let group = Shm {
            control,
            rank,
            world,
            timeout_ms,
            revocation,
            spins: if world <= cores { SPINS } else { 1 },
            peers: OnceLock::new(),
            state: Mutex::new(State::new(memory, world)),
            counters: CounterCells::default(),
        };
        group.collective(Operation::Join, 0, |group, _, call| {
            group.enter(call)?;
            let _ = group.peers.set((0..world).map(|rank| group.control.process(rank)).collect());
            Ok(())
        })?;
        Ok(group)
    }

    /// Runs one operation: numbers it, announces it, and gives the group up if it fails.
    pub(super) fn collective<R>(
        &self,
        operation: Operation,
        digest: u64,
        body: impl FnOnce(&Shm, &mut State, &Call) -> Result<R>,
    ) -> Result<R> {
        // A panic in an earlier operation leaves at most stale scratch behind.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_revoked()?;
        let call = self.next_call(&mut state, operation);
        self.announce(&call, digest);
        self.settle(&call, body(self, &mut state, &call))
    }

    /// The next operation's number and deadline.
    pub(super) fn next_call(&self, state: &mut State, operation: Operation) -> Call {
        state.sequence += 1;
        self.call(operation, state.sequence)
    }

    /// With the whole timeout before it.
    fn call(&self, operation: Operation, sequence: u64) -> Call {
        Call { operation, sequence, patience: Patience::of_ms(self.timeout_ms).into() }
    }

    /// The next message between this rank and `peer` in one direction; such messages have
    /// numbers of their own, since the other ranks do not take part.
    pub(super) fn pair_call(&self, state: &mut State, operation: Operation, peer: usize) -> Call {
        let receives = operation == Operation::Receive;
        let count = state.messages_with.entry((peer, receives)).or_default();
        *count += 1;
        self.call(operation, *count)
    }

    /// Waits for one end of a message whose earlier boxes have moved.
    pub(super) fn wait_box(
        &self,
        call: &Call,
        moved: Moved,
        peer: usize,
        done: impl Fn() -> bool,
        sleep: impl Fn(Duration),
    ) -> Result<()> {
        let call = self.call(call.operation, call.sequence);
        let waited = self.wait(&call, peer, |rank| rank != peer || done(), sleep);
        waited.map_err(|error| match error {
            CommError::Timeout { operation, sequence, missing, timeout_ms, .. } => {
                CommError::Timeout { operation, sequence, missing, timeout_ms, moved }
            }
            other => other,
        })
    }

    pub(super) fn announce(&self, call: &Call, digest: u64) {
        self.control.announce(self.rank, announcement(call, digest));
    }

    /// Gives the group up if the operation failed.
    pub(super) fn settle<R>(&self, call: &Call, result: Result<R>) -> Result<R> {
        if let Err(error) = &result
            && !matches!(error, CommError::Revoked { .. })
        {
            let Call { operation, sequence, .. } = call;
            self.control.revoke(&match error {
                CommError::Timeout { .. }
                | CommError::PeerLost { .. }
                | CommError::Mismatch { .. } => format!("rank {}: {error}", self.rank),
                _ => format!("rank {}: {operation} #{sequence}: {error}", self.rank),
            });
        }
        result
    }

    pub(super) fn check_revoked(&self) -> Result<()> {
        // Of this process first: the others need to hear of it.
        if let Some(why) = self.revocation.why() {
            self.control.revoke(why);
        }
        self.control.revoked().map_or(Ok(()), |why| Err(CommError::Revoked { why }))
    }

    /// Publishes this rank's data; returns when every rank's is there and all do the same.
    pub(super) fn enter(&self, call: &Call) -> Result<()> {
        let ours = self.control.announcement(self.rank, call.sequence);
        self.wait_all(call, call.phase())?;
        for rank in self.peers() {
            let theirs = self.control.announcement(rank, call.sequence);
            if theirs != ours {
                let Call { operation, sequence, .. } = *call;
                let theirs = control::describe(theirs, ours);
                return Err(CommError::Mismatch { operation, sequence, rank, theirs });
            }
        }
        Ok(())
    }

    /// Says that this rank has read its peers' data; returns when they have read ours. However
    /// long reading took, they get the whole timeout from here on.
    pub(super) fn leave(&self, call: &Call) -> Result<()> {
        let call = self.call(call.operation, call.sequence);
        self.wait_all(&call, call.phase().wrapping_add(1))
    }

    /// As [`Shm::leave`], and counts what was read: here, and by peers out of this rank's windows.
    pub(super) fn leave_counted(&self, call: &Call, reads: &Reads) -> Result<()> {
        let mut received = 0;
        for peer in self.peers() {
            let bytes = reads.of(peer).swap(0, Ordering::Relaxed);
            self.control.add_read(peer, bytes);
            received += bytes;
        }
        self.leave(call)?;
        // A peer that gave the group up may have dropped its windows while they were read.
        self.check_revoked()?;
        // No peer reads again before this rank enters the next operation.
        self.counters.add(call.operation, self.control.take_read(self.rank), 0, received);
        Ok(())
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.world).filter(move |&peer| peer != rank)
    }

    fn wait_all(&self, call: &Call, phase: u32) -> Result<()> {
        self.control.arrive(self.rank, phase);
        for peer in self.peers() {
            let done = |rank| self.control.has_reached(rank, phase);
            let sleep = |limit| self.control.sleep(peer, phase, limit);
            self.wait(call, peer, done, sleep)?;
        }
        Ok(())
    }

    /// Waits until `done(peer)`. While it waits it watches every rank that is not `done`.
    pub(super) fn wait(
        &self,
        call: &Call,
        peer: usize,
        done: impl Fn(usize) -> bool,
        sleep: impl Fn(Duration),
    ) -> Result<()> {
        for _ in 0..self.spins {
            if done(peer) {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        for _ in 0..YIELDS {
            if done(peer) {
                return Ok(());
            }
            std::thread::yield_now();
        }
        // What has been reached stays reached, even if the group is given up meanwhile.
        while !done(peer) {
            self.check_revoked()?;
            self.check_peers(call, &done)?;
            let left = patience::left(&call.patience);
            if left.is_zero() {
                let missing = self.peers().filter(|&rank| !done(rank)).collect();
                let Call { operation, sequence, .. } = *call;
                let timeout_ms = self.timeout_ms;
                let moved = Moved::default();
                return Err(CommError::Timeout { operation, sequence, missing, timeout_ms, moved });
            }
            sleep(left.min(TICK));
        }
        Ok(())
    }

    /// Fails if a rank that is not `done` never will be.
    fn check_peers(&self, call: &Call, done: &impl Fn(usize) -> bool) -> Result<()> {
        for rank in self.peers() {
            let cause = match self.peers.get() {
                _ if self.control.has_left(rank) => "it left the group",
                Some(peers) if !peers[rank].is_alive() => "its process has ended",
                _ => continue,
            };
            // Looked at again: it may have arrived before it went.
            if !done(rank) {
                let (cause, Call { operation, sequence, .. }) = (cause.to_owned(), call.clone());
                self.check_revoked()?;
                return Err(CommError::PeerLost { rank, operation, sequence, cause });
            }
        }
        Ok(())
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        self.control.leave(self.rank);
    }
}

fn announcement(call: &Call, digest: u64) -> Announcement {
    Announcement { sequence: call.sequence, operation: call.operation as u64, digest }
}
