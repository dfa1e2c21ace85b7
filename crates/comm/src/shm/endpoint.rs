//! A member's end of a channel or group: operations as (enter, read, leave), and waiting.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use device::trace::now_ns;

use super::board::{self, Announcement, Board, Kind};
use super::host::Host;
use super::places::{self, Places};
use super::shared_memory::SharedMemory;
use crate::control::Channel;
use crate::error::Moved;
use crate::job::{InProgress, Job, Members};
use crate::looks::Looks;
use crate::meter::{self, Meter};
use crate::patience::Patience;
use crate::{BackendWord, CommError, Operation, Result};

/// Most looks at a peer's phase before the first yield, where every rank has a core: about 100 µs,
/// in which a peer sums or copies a megabyte.
const SPINS: usize = 2500;
/// Yields before the first sleep.
const YIELDS: usize = 50;
/// Longest sleep: bounds how late revocation and death are noticed.
const TICK: Duration = Duration::from_millis(20);

pub(crate) struct Endpoint {
    pub(super) host: Arc<Host>,
    pub(super) board: Board,
    pub(super) members: Members,
    spins: Looks,
    meter: Meter,
    state: Mutex<State>,
}

/// State that only the operation in progress uses.
pub(super) struct State {
    pub sequence: u64,
    pub places: Places,
    pub reads: Reads,
    /// Messages of a broadcast.
    pub messages: Vec<Vec<u8>>,
    /// Ranges sent and received in an all-to-all, by peer, encoded.
    pub ends: Vec<u8>,
    /// Exchanges so far, and how far each part of the present one has come.
    pub exchanges: u64,
    pub parts: Vec<Part>,
}

/// How far one message of an exchange has come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Part {
    pub bytes: usize,
    pub is_done: bool,
}

/// Bytes that the operation in progress has read out of each member's windows.
pub(super) struct Reads {
    bytes: Vec<AtomicU64>,
}

impl Reads {
    pub(super) fn of(&self, place: usize) -> &AtomicU64 {
        &self.bytes[place]
    }

    pub(super) fn add(&self, place: usize, bytes: usize) {
        self.bytes[place].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The operation in progress.
#[derive(Clone)]
pub(super) struct ShmCall {
    pub operation: Operation,
    pub sequence: u64,
    /// For all of its waits together.
    pub patience: Cell<Patience>,
    /// Of its two phases on the board.
    phase: u32,
    /// Whether members that are waited for may themselves wait for ranks elsewhere.
    is_behind: bool,
}

/// The first phase of an operation.
fn phase(sequence: u64) -> u32 {
    (sequence as u32).wrapping_mul(2)
}

impl ShmCall {
    pub(super) fn phase(&self) -> u32 {
        self.phase
    }

    /// As operation `number` on the board, for members that may wait for ranks elsewhere.
    pub(super) fn behind(self, number: u64) -> ShmCall {
        ShmCall { phase: phase(number), is_behind: true, ..self }
    }
}

impl Host {
    /// This rank's end of a channel; returns once all are there.
    ///
    /// # Errors
    /// Ranks missing after the timeout; the job is given up meanwhile.
    pub(crate) fn channel(self: &Arc<Host>, channel: Channel) -> Result<Endpoint> {
        let (ranks, rank) = (Arc::clone(self.ranks()), self.shared.job.rank);
        let at = places::channel_at(ranks.len(), channel.number());
        let place = self.shared.place(rank).unwrap_or(0);
        let everyone = Members { ranks, place };
        let meter = Meter::new(channel.name().to_owned(), BackendWord::Shm.word());
        Endpoint::meet(Arc::clone(self), meter, &self.memory, at, Kind::Channel, everyone)
    }

    /// This rank's end of the group that has `region`; returns once all members are there.
    ///
    /// # Errors
    /// As [`Host::channel`].
    pub(crate) fn group(self: &Arc<Host>, region: u64, members: Members) -> Result<Endpoint> {
        let at = places::region_at(self.ranks().len(), Channel::ALL.len() as u64, region);
        let meter = Meter::new(format!("group {region}"), BackendWord::Shm.word());
        Endpoint::meet(Arc::clone(self), meter, &self.memory, at, Kind::Group, members)
    }
}

impl Endpoint {
    /// Opens the board at `at` and returns once all members have.
    fn meet(
        host: Arc<Host>,
        meter: Meter,
        memory: &SharedMemory,
        at: u64,
        kind: Kind,
        members: Members,
    ) -> Result<Endpoint> {
        let board = Board::open(memory, at, kind, (members.len(), members.place))?;
        let state = State {
            sequence: 0,
            places: Places::new(memory.clone(), members.len(), at),
            reads: Reads { bytes: members.ranks.iter().map(|_| AtomicU64::new(0)).collect() },
            messages: Vec::new(),
            ends: Vec::new(),
            exchanges: 0,
            parts: Vec::new(),
        };
        let have_cores = host.job().settings.has_cores_for(host.ranks().len());
        let spins = Looks::up_to(if have_cores { SPINS } else { 1 });
        let end = Endpoint { host, board, members, spins, meter, state: Mutex::new(state) };
        end.collective(Operation::Join, 0, |end, _, call| {
            end.enter(call)?;
            // In a group whoever goes on may send at once: see `enter`.
            if kind == Kind::Group { end.leave(call) } else { Ok(()) }
        })?;
        if end.members.len() == end.host.ranks().len() {
            end.host.shared.know_everyone();
        }
        Ok(end)
    }

    pub(super) fn job(&self) -> &Job {
        &self.host.shared.job
    }

    pub(super) fn place(&self) -> usize {
        self.members.place
    }

    /// Runs one operation: numbers it, announces it, and gives the job up if it fails.
    pub(super) fn collective<R>(
        &self,
        operation: Operation,
        digest: u64,
        body: impl FnOnce(&Endpoint, &mut State, &ShmCall) -> Result<R>,
    ) -> Result<R> {
        self.run(|state| {
            let call = self.next_call(state, operation);
            let result = self.check_revoked().and_then(|()| {
                self.announce(&call, digest);
                body(self, state, &call)
            });
            ((operation, call.sequence), result)
        })
    }

    /// Runs `body`, which tells what it was and what became of it; it does nothing if the job is
    /// given up.
    pub(super) fn run<R>(
        &self,
        body: impl FnOnce(&mut State) -> ((Operation, u64), Result<R>),
    ) -> Result<R> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let _in_progress = InProgress(self.job());
        self.job().disturb();
        let (call, result) = self.meter.measure(&self.job().timings, || body(&mut state));
        let result = self.job().settle(&self.members, call, result);
        if result.is_err() {
            let _ = self.check_revoked();
        }
        result
    }

    /// The next operation's number and deadline.
    pub(super) fn next_call(&self, state: &mut State, operation: Operation) -> ShmCall {
        state.sequence += 1;
        self.call(operation, state.sequence)
    }

    /// With the whole timeout before it.
    pub(super) fn call(&self, operation: Operation, sequence: u64) -> ShmCall {
        let (patience, phase) = (self.job().patience(), phase(sequence));
        ShmCall { operation, sequence, patience, phase, is_behind: false }
    }

    pub(super) fn announce(&self, call: &ShmCall, digest: u64) {
        let ShmCall { operation, sequence, .. } = *call;
        let operation = operation as u64;
        self.board.announce(self.place(), Announcement { sequence, operation, digest });
    }

    /// Between the parts of an operation, which ends if the job is given up.
    pub(super) fn part_done(&self) -> Result<()> {
        self.job().part_done();
        self.check_revoked()
    }

    pub(super) fn check_revoked(&self) -> Result<()> {
        self.host.shared.check_revoked()
    }

    /// Publishes this member's data; returns when every member's is there and all do the same.
    pub(super) fn enter(&self, call: &ShmCall) -> Result<()> {
        let ours = self.board.announcement(self.place(), call.sequence);
        let phase = call.phase();
        self.board.arrive(self.place(), phase);
        // The last to come has nothing to wait for, and no clock to look at.
        if !self.members.peers().all(|peer| self.board.has_reached(peer, phase)) {
            let begin_ns = now_ns();
            self.await_all(call, phase)?;
            meter::waited_since(begin_ns);
        }
        for place in self.members.peers() {
            let theirs = self.board.announcement(place, call.sequence);
            if theirs != ours {
                let ShmCall { operation, sequence, .. } = *call;
                let theirs = board::describe(theirs, ours);
                return Err(CommError::Mismatch { operation, sequence, rank: place, theirs });
            }
        }
        // A peer that has run ahead may send for later, but nothing may be left from before.
        let (place, sequence) = (self.place(), call.sequence);
        let sent = |&peer: &usize| self.board.has_mail_from_before(peer, place, sequence);
        self.members.peers().find(sent).map_or(Ok(()), |rank| Err(self.at_exchange(call, rank)))
    }

    /// `rank` is at an exchange that should have come before or after.
    fn at_exchange(&self, call: &ShmCall, rank: usize) -> CommError {
        let ShmCall { operation, sequence, .. } = *call;
        let theirs = Operation::Exchange.name().to_owned();
        CommError::Mismatch { operation, sequence, rank, theirs }
    }

    /// Says that this member has read its peers' data; returns when they have read ours. However
    /// long reading took, they get the whole timeout from here on.
    pub(super) fn leave(&self, call: &ShmCall) -> Result<()> {
        let call = self.call(call.operation, call.sequence);
        self.wait_all(&call, call.phase().wrapping_add(1))
    }

    /// As [`Endpoint::leave`], and counts what was read: here, and by peers out of this member's
    /// windows.
    pub(super) fn leave_counted(&self, call: &ShmCall, reads: &Reads) -> Result<()> {
        let mut received = 0;
        for peer in self.members.peers() {
            let bytes = reads.of(peer).swap(0, Ordering::Relaxed);
            self.board.add_read(peer, bytes);
            received += bytes;
        }
        self.leave(call)?;
        // A peer that gave the job up may have dropped its windows while they were read.
        self.check_revoked()?;
        // No peer reads again before this member enters the next operation.
        let sent = self.board.take_read(self.place());
        self.job().counters.add(call.operation, sent, 0, received);
        Ok(())
    }

    pub(super) fn wait_all(&self, call: &ShmCall, phase: u32) -> Result<()> {
        self.board.arrive(self.place(), phase);
        self.await_all(call, phase)
    }

    fn await_all(&self, call: &ShmCall, phase: u32) -> Result<()> {
        for peer in self.members.peers() {
            let done = |place| self.board.has_reached(place, phase);
            self.wait(call, peer, done, |limit| self.board.sleep(peer, phase, limit))?;
        }
        Ok(())
    }

    /// Waits until `done(peer)`. While it waits it watches every member that is not `done`.
    fn wait(
        &self,
        call: &ShmCall,
        peer: usize,
        done: impl Fn(usize) -> bool,
        sleep: impl Fn(Duration),
    ) -> Result<()> {
        let mut pause = self.pause();
        // A phase that has been reached stays reached, even if the job is given up meanwhile.
        while !done(peer) {
            if pause.again() {
                continue;
            }
            self.watch(call, Moved::default(), self.members.peers().filter(|&peer| !done(peer)))?;
            // A peer that has not come but has sent something is at an exchange. One that has never
            // come has no boxes yet.
            let has_boxes = call.operation != Operation::Join;
            let sent = |peer| has_boxes && self.board.has_mail(peer, self.place());
            let ahead = |&peer: &usize| sent(peer) && !done(peer);
            if let Some(rank) = self.members.peers().find(ahead) {
                return Err(self.at_exchange(call, rank));
            }
            sleep(TICK);
        }
        pause.end();
        Ok(())
    }

    pub(super) fn pause(&self) -> Pause<'_> {
        Pause { looks: &self.spins, spins: self.spins.now(), done: 0 }
    }

    /// To be called between sleeps while `awaited` members are waited for: fails if one of them
    /// never will come, or stands still for the timeout.
    pub(super) fn watch(
        &self,
        call: &ShmCall,
        moved: Moved,
        awaited: impl Iterator<Item = usize> + Clone,
    ) -> Result<()> {
        self.check_revoked()?;
        let ShmCall { operation, sequence, .. } = *call;
        for place in awaited.clone() {
            let left = self.board.has_left(place).then_some("it left the group");
            let gone = left.or_else(|| self.host.shared.gone(self.members.ranks[place]));
            // Looked at again: it may have arrived before it went.
            if let Some(cause) = gone.filter(|_| awaited.clone().any(|still| still == place)) {
                let cause = cause.to_owned();
                self.check_revoked()?;
                return Err(CommError::PeerLost { rank: place, operation, sequence, cause });
            }
        }
        let (job, patience) = (self.job(), &call.patience);
        let is_over = match call.is_behind {
            true => job.is_over_behind(&self.members, patience, awaited.clone()),
            false => job.is_over(&self.members, patience, awaited.clone()),
        };
        if is_over {
            let missing = job.standing(&self.members, patience, awaited);
            let timeout_ms = job.timeout_ms();
            return Err(CommError::Timeout { operation, sequence, missing, timeout_ms, moved });
        }
        Ok(())
    }

    /// The limit of one sleep.
    pub(super) fn tick() -> Duration {
        TICK
    }
}

/// Between the looks of one wait.
pub(super) struct Pause<'a> {
    looks: &'a Looks,
    spins: usize,
    done: usize,
}

impl Pause<'_> {
    /// The first looks come in quick succession; false when it is time to sleep.
    pub(super) fn again(&mut self) -> bool {
        self.done += 1;
        match self.done {
            few if few <= self.spins => std::hint::spin_loop(),
            few if few <= self.spins + YIELDS => std::thread::yield_now(),
            _ => return false,
        }
        true
    }

    /// Ends a wait whose event has come.
    pub(super) fn end(self) {
        match self.done {
            0 => {}
            few if few <= self.spins => self.looks.helped(),
            few if few <= self.spins + YIELDS => self.looks.held_up(),
            // It came long after, and needed no core of ours.
            _ => {}
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Peers that see this member gone look whether it has given the job up, and why.
        let _ = self.check_revoked();
        self.board.leave(self.place());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Channel;
    use crate::job::Settings;

    #[test]
    fn only_who_comes_between_yields_needed_this_core() {
        // Looks that are left after a wait of `waited` looks, of `before` at first.
        let after = |before: usize, waited: usize| {
            let looks = Looks::up_to(64);
            while looks.now() > before {
                looks.held_up();
            }
            let mut pause = Pause { looks: &looks, spins: looks.now(), done: 0 };
            let goes_on = (0..waited).filter(|_| pause.again()).count();
            assert_eq!(goes_on, waited.min(before + YIELDS));
            pause.end();
            looks.now()
        };
        assert_eq!([after(16, 0), after(16, 1), after(16, 16)], [16, 32, 32]);
        assert_eq!([after(16, 17), after(16, 16 + YIELDS)], [4, 4]);
        assert_eq!(after(16, 16 + YIELDS + 1), 16, "it came in a sleep");
        assert_eq!([after(0, 1), after(64, 9)], [0, 64]);
    }

    #[test]
    fn waits_spin_where_the_ranks_have_a_core_each_whatever_this_one_may_use() {
        for (cores, spins) in [(1, 1), (2, SPINS), (64, SPINS)] {
            let memory = SharedMemory::create("spins", 2).unwrap();
            let meet = |rank| {
                let settings = Settings { cores, ..Settings::new(60_000) };
                let host = Arc::new(Host::new(memory.clone(), rank, 2, settings).unwrap());
                host.channel(Channel::Training).unwrap().spins.most
            };
            std::thread::scope(|scope| {
                let other = scope.spawn(|| meet(1));
                assert_eq!([meet(0), other.join().unwrap()], [spins; 2], "{cores} cores");
            });
        }
    }
}
