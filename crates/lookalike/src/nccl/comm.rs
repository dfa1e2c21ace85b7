//! One rank's end of a communicator: its state, its connection, and how it begins and ends.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::faults::{self, Fault};
use super::frame::Frame;
use super::number::DataType;
use super::{Refusal, hub, result, version};

pub(crate) struct Comm {
    pub(crate) handle: u64,
    pub(crate) name: String,
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    pub(crate) device: i32,
    pub(crate) is_blocking: bool,
    state: Mutex<State>,
    changed: Condvar,
    writer: Mutex<Option<UnixStream>>,
}

/// How the name of a communicator begins that was made of another.
pub(crate) const CHILD_PREFIX: &str = "lookalike-nccl-child-";

/// Brings a batch into its stream.
pub(crate) type Held = Box<dyn FnOnce() -> Result<(), Refusal> + Send>;

/// A reduction that was made: its type and factor.
pub(crate) type Factor = (DataType, [u8; 8]);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) is_ready: bool,
    /// The asynchronous error.
    pub(crate) failure: Option<Refusal>,
    pub(crate) end: Option<&'static str>,
    /// All ranks are done, and connections may end.
    has_said_goodbye: bool,
    /// The connection has ended.
    is_gone: bool,
    /// Calls at work in the background: a split, a window.
    pub(crate) busy: u32,
    /// Batches that are not in their streams yet, and after how many polls they will be.
    pub(crate) held: Vec<Held>,
    pub(crate) polls: u32,
    /// Number of the next batch; those below `cancelled` are given up.
    pub(crate) next: u64,
    cancelled: u64,
    pub(crate) outstanding: u32,
    /// Of those, batches that have begun.
    pub(crate) running: u32,
    done: HashMap<u64, Vec<Vec<u8>>>,
    /// Operations begun, and communicators made of this one.
    pub(crate) operations: u64,
    pub(crate) children: u32,
    pub(crate) factors: BTreeMap<i32, Factor>,
    /// Registrations and windows, by handle: address, bytes.
    pub(crate) known: BTreeMap<u64, (u64, u64)>,
}

static COMMS: Mutex<BTreeMap<u64, Arc<Comm>>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A handle that is never given twice, and never an address.
pub(crate) fn fresh() -> u64 {
    0x2000_0000 + NEXT.fetch_add(1, Ordering::Relaxed) * 16
}

pub(crate) fn all() -> MutexGuard<'static, BTreeMap<u64, Arc<Comm>>> {
    COMMS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn find(handle: u64) -> Result<Arc<Comm>, Refusal> {
    let gone = || Refusal::argument(format!("{handle:#x} is no communicator, or was destroyed"));
    all().get(&handle).cloned().ok_or_else(gone)
}

impl Comm {
    pub(crate) fn new(
        name: &str,
        rank: u32,
        ranks: u32,
        device: i32,
        is_blocking: bool,
    ) -> Arc<Comm> {
        let (handle, name) = (fresh(), name.to_owned());
        let (state, changed, writer) = (Mutex::default(), Condvar::new(), Mutex::new(None));
        let comm = Comm { handle, name, rank, ranks, device, is_blocking, state, changed, writer };
        let comm = Arc::new(comm);
        all().insert(handle, Arc::clone(&comm));
        comm
    }

    /// The number of a fault that it has by the environment; a child has none.
    pub(crate) fn fault(&self, fault: Fault) -> Option<u64> {
        match self.name.starts_with(CHILD_PREFIX) {
            true => None,
            false => faults::number(fault, self.rank),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes whoever waits for that.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state());
        self.changed.notify_all();
        changed
    }

    fn sleep<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.state().end.is_some()
    }

    /// Comes to the hub and listens to it, on a thread of its own, until the end.
    pub(crate) fn begin(self: &Arc<Comm>) {
        let comm = Arc::clone(self);
        std::thread::spawn(move || comm.live());
    }

    fn live(&self) {
        let late_ms = self.fault(Fault::Late).unwrap_or(0);
        let is_absent = self.fault(Fault::Absent).is_some();
        let begun = std::time::Instant::now();
        let stream = loop {
            if self.is_over() {
                return;
            }
            let is_late = begun.elapsed() < Duration::from_millis(late_ms);
            let address = hub::address(&self.name);
            let come = if is_absent || is_late { None } else { address.ok() };
            // Where nobody listens yet, somebody soon will.
            match come.and_then(|address| UnixStream::connect_addr(&address).ok()) {
                Some(stream) => break stream,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let (rank, ranks) = (self.rank, self.ranks);
        if self.fault(Fault::Dies) == Some(0) {
            die();
        }
        let hello = Frame::Hello { rank, ranks, version: version() };
        // A hub that has refused this rank already has hung up; what it said can still be read.
        let _ = hello.write(&stream);
        let reader = stream.try_clone();
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        if self.is_over() {
            self.hang_up();
        }
        let Ok(reader) = reader else {
            return self.fail(result::SYSTEM, "the connection was lost".to_owned());
        };
        loop {
            match Frame::read(&reader) {
                Ok(Frame::Welcome) => self.change(|state| state.is_ready = true),
                Ok(Frame::Done { number, results }) => {
                    self.change(|state| drop(state.done.insert(number, results)));
                }
                Ok(Frame::Failed { code, text }) => self.fail(code, text),
                Ok(_) => self.fail(result::INTERNAL, "the hub says nonsense".to_owned()),
                Err(_) => {
                    self.change(|state| state.is_gone = true);
                    let text = "the process that the ranks were connected through is gone";
                    return self.fail(result::REMOTE, text.to_owned());
                }
            }
        }
    }

    /// The first error stays; after the end there is none.
    pub(crate) fn fail(&self, code: i32, text: String) {
        self.change(|state| {
            let is_over = matches!(state.end, Some(ABORTED | REVOKED)) || state.has_said_goodbye;
            if state.failure.is_none() && !is_over {
                state.failure = Some(Refusal { code, text });
            }
        });
    }

    pub(crate) fn say(&self, frame: &Frame) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection that is lost is noticed by the reader.
        let _ = writer.as_ref().map(|stream| frame.write(stream));
    }

    fn hang_up(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.as_ref().map(|stream| stream.shutdown(std::net::Shutdown::Both));
    }

    /// Sends a batch and waits for what it gets; `None` if it is given up. An error of the
    /// communicator leaves it waiting.
    pub(crate) fn exchange(&self, number: u64, frame: &Frame) -> Option<Vec<Vec<u8>>> {
        if number >= self.state().cancelled {
            self.say(frame);
        }
        let mut state = self.state();
        loop {
            if let Some(results) = state.done.remove(&number) {
                return Some(results);
            }
            if number < state.cancelled {
                return None;
            }
            state = self.sleep(state);
        }
    }

    /// Waits until an operation is given up.
    pub(crate) fn hang(&self, number: u64) {
        let mut state = self.state();
        while number >= state.cancelled {
            state = self.sleep(state);
        }
    }

    /// Gives up all operations so far.
    pub(crate) fn cancel(&self) {
        self.change(|state| {
            state.cancelled = state.next;
            state.held.clear();
        });
    }

    /// Number of the next batch, in the order of the calls.
    pub(crate) fn take_number(&self) -> u64 {
        let mut state = self.state();
        state.next += 1;
        state.outstanding += 1;
        state.next - 1
    }

    /// Waits until it is ready, or has failed, or is over.
    pub(crate) fn wait_until_ready(&self) -> Result<(), Refusal> {
        let mut state = self.state();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if state.is_ready {
                return Ok(());
            }
            if state.end.is_some() {
                return Err(Refusal::usage("it was aborted"));
            }
            state = self.sleep(state);
        }
    }

    /// Waits until no operation is in a stream; false if it fails before.
    pub(crate) fn wait_until_idle(&self) -> bool {
        let mut state = self.state();
        while state.outstanding > 0 || !state.held.is_empty() {
            if state.failure.is_some() || state.end == Some(ABORTED) {
                return false;
            }
            state = self.sleep(state);
        }
        state.failure.is_none()
    }

    /// Says that nobody needs this rank any more, and waits until all ranks have said so.
    pub(crate) fn say_goodbye(&self) {
        self.change(|state| state.has_said_goodbye = true);
        self.say(&Frame::Bye);
        let mut state = self.state();
        while !state.is_gone && state.end != Some(ABORTED) {
            state = self.sleep(state);
        }
    }

    /// Whether something of it goes on in the background.
    pub(crate) fn is_in_progress(state: &State) -> bool {
        let quiesces = state.end == Some(REVOKED) && state.running > 0;
        !state.is_ready || state.busy > 0 || !state.held.is_empty() || quiesces
    }

    /// Whether a call may enqueue.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        let state = self.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        if let Some(end) = state.end {
            return Err(Refusal::usage(format!("a call on a communicator that was {end}")));
        }
        match Comm::is_in_progress(&state) {
            true => Err(Refusal::argument("the call before is still in progress")),
            false => Ok(()),
        }
    }

    /// Ends it for good.
    pub(crate) fn close(&self, end: &'static str) {
        self.change(|state| state.end = Some(end));
        self.cancel();
        self.hang_up();
        all().remove(&self.handle);
    }
}

pub(crate) const REVOKED: &str = "revoked";
pub(crate) const FINALIZED: &str = "finalized";
pub(crate) const ABORTED: &str = "aborted";

/// As a machine that fails: nothing is cleaned up.
pub(crate) fn die() {
    eprintln!("lookalike: nccl: this process is killed on purpose");
    // SAFETY: a signal to this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}
