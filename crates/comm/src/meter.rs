//! The time of operations on a rank: all of it, and the part in which it waits for others.
//!
//! ```text
//! begun here ──── waits ────▶ the last member has come ──── moves ────▶ done here
//! ```
//!
//! An operation runs on one thread from its beginning to its end; what its parts tell meanwhile
//! (bytes, waiting) goes through cells of that thread. Over shared memory the last member's coming
//! is exact; over TCP it is when the first frame of the last peer is here, and what earlier peers
//! send moves already. In an exchange, whose members do not wait for each other, it is when the
//! first frame of the last peer is here, or over shared memory when the first part has moved.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use device::trace::{self, Detail, Moved, Span, Track};

use crate::Operation;

/// Calls and time of the operations of one kind on one rank so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timing {
    pub calls: u64,
    /// From beginning to end, of all calls together; groups may overlap.
    pub ns: u64,
    /// The part before the last member had come.
    pub waited_ns: u64,
}

/// The timings of every kind of operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    of: [Timing; Operation::ALL.len()],
}

impl Timings {
    /// Those of `operation`.
    pub fn of(&self, operation: Operation) -> Timing {
        self.of[operation as usize]
    }

    /// The difference to `earlier`.
    pub fn since(&self, earlier: &Timings) -> Timings {
        let mut of = self.of;
        for (timing, before) in of.iter_mut().zip(&earlier.of) {
            timing.calls -= before.calls;
            timing.ns -= before.ns;
            timing.waited_ns -= before.waited_ns;
        }
        Timings { of }
    }

    /// As three words of each kind, in numeric order: calls, nanoseconds, of which waiting.
    pub fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.of.iter().flat_map(|timing| [timing.calls, timing.ns, timing.waited_ns])
    }

    /// From [`Timings::words`]; what is missing is 0.
    pub fn from_words(mut words: impl Iterator<Item = u64>) -> Timings {
        let mut word = || words.next().unwrap_or(0);
        let of = Operation::ALL.map(|_| Timing { calls: word(), ns: word(), waited_ns: word() });
        Timings { of }
    }
}

/// The live totals.
#[derive(Default)]
pub(crate) struct TimingCells {
    cells: [[AtomicU64; 3]; Operation::ALL.len()],
}

impl TimingCells {
    fn add(&self, operation: Operation, ns: u64, waited_ns: u64) {
        for (cell, amount) in self.cells[operation as usize].iter().zip([1, ns, waited_ns]) {
            if amount > 0 {
                cell.fetch_add(amount, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn snapshot(&self) -> Timings {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Timings::from_words(self.cells.iter().flatten().map(load))
    }
}

/// Bits of an operation's number beside what it was.
const NUMBER_BITS: u32 = 56;

/// The last operation of this process, done or failed; 0 where there was none, since joins have
/// that number.
static LAST: AtomicU64 = AtomicU64::new(0);

/// The last operation that a rank of this process has ended, on any channel and in any group, and
/// its number there: for whoever watches a rank, which may be gone when it is asked.
pub fn last_operation() -> Option<(Operation, u64)> {
    let last = LAST.load(Ordering::Relaxed);
    let operation = Operation::from_code(last >> NUMBER_BITS)?;
    (last > 0).then_some((operation, last & ((1 << NUMBER_BITS) - 1)))
}

/// Times that the parts of this thread's operation have told.
#[derive(Clone, Copy, Default)]
struct Running {
    /// Whether there is one: those within it are parts of it.
    is_measured: bool,
    waited_ns: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

const IDLE: Running =
    Running { is_measured: false, waited_ns: 0, sent_bytes: 0, received_bytes: 0 };

thread_local! {
    static RUNNING: Cell<Running> = const { Cell::new(IDLE) };
}

/// This thread's operation has moved these bytes.
pub(crate) fn moved(sent: u64, received: u64) {
    let running = RUNNING.get();
    RUNNING.set(Running {
        sent_bytes: running.sent_bytes + sent,
        received_bytes: running.received_bytes + received,
        ..running
    });
}

/// This thread's operation has waited until now for members to come, since `begin_ns`.
pub(crate) fn waited_since(begin_ns: u64) {
    let running = RUNNING.get();
    let waited_ns = running.waited_ns + trace::now_ns().saturating_sub(begin_ns);
    RUNNING.set(Running { waited_ns, ..running });
}

/// Ends what this thread measures, also after a panic.
struct Idle;

impl Drop for Idle {
    fn drop(&mut self) {
        RUNNING.set(IDLE);
    }
}

/// The meter of a channel or group.
pub(crate) struct Meter {
    /// Among those of the job, the same on every member: `group 0`.
    name: String,
    transport: &'static str,
    /// Made with the first operation that is recorded.
    track: OnceLock<Track>,
}

impl Meter {
    pub(crate) fn new(name: String, transport: &'static str) -> Meter {
        Meter { name, transport, track: OnceLock::new() }
    }

    /// Runs an operation on this thread; it tells what it was, and its number. Within another one
    /// it is a part of that, and not measured by itself.
    pub(crate) fn measure<R>(
        &self,
        totals: &TimingCells,
        run: impl FnOnce() -> ((Operation, u64), R),
    ) -> ((Operation, u64), R) {
        if RUNNING.get().is_measured {
            return run();
        }
        let (is_recorded, begin_ns) = (trace::is_on(), trace::now_ns());
        RUNNING.set(Running { is_measured: true, ..IDLE });
        let idle = Idle;
        let ((operation, sequence), result) = run();
        let (end_ns, running) = (trace::now_ns(), RUNNING.get());
        drop(idle);
        LAST.store((operation as u64) << NUMBER_BITS | sequence, Ordering::Relaxed);
        let waited_ns = running.waited_ns.min(end_ns - begin_ns);
        totals.add(operation, end_ns - begin_ns, waited_ns);
        if is_recorded {
            let moved = Moved {
                sequence,
                transport: self.transport,
                sent_bytes: running.sent_bytes,
                received_bytes: running.received_bytes,
                waited_ns,
            };
            let (name, detail) = (operation.name(), Detail::Operation(moved));
            let track = self.track.get_or_init(|| trace::track(self.name.clone()));
            trace::record_on(*track, Span { name, begin_ns, end_ns, detail });
        }
        ((operation, sequence), result)
    }
}
