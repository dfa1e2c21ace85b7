//! The group: meeting, one operation at a time under its deadline, giving up.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use tokio::runtime::Runtime;

use super::exchange::{Call, Progress};
use super::frame::{self, HEADER_BYTES};
use super::mesh::{self, Identity};
use super::signal::Signals;
use super::wire::{Reader, Writer};
use crate::combine::Scratch;
use crate::counters::CounterCells;
use crate::{CommError, Operation, Result, Revocation};

/// A rank's end of a mesh.
pub struct Tcp {
    pub(super) rank: usize,
    pub(super) world: usize,
    token: u64,
    timeout_ms: u64,
    /// Taken when the group ends.
    runtime: Option<Runtime>,
    inner: Mutex<Inner>,
    revocation: Revocation,
    pub(super) counters: CounterCells,
}

/// Who connects to a mesh.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Keeps strangers apart: the same on all ranks, and new for each start.
    pub job: &'a str,
    pub rank: usize,
    pub timeout_ms: u64,
}

/// What only the operation in progress uses.
struct Inner {
    state: State,
    signals: Signals,
}

/// Its part that operations use themselves.
pub(super) struct State {
    sequence: u64,
    /// By rank; this rank's own is `None`.
    pub links: Vec<Option<Link>>,
    pub scratch: Scratch,
    pub messages: Vec<Vec<u8>>,
}

/// A connection to one peer, with its staging memory.
pub(super) struct Link {
    pub read: Reader,
    pub write: Writer,
    pub outgoing: Staging,
    pub incoming: Staging,
    /// Messages so far, sent and received, by [`crate::Communicator::send`] and `recv`.
    pub sent: u64,
    pub received: u64,
}

/// Reused bytes, aligned for any element type.
#[derive(Default)]
pub(super) struct Staging {
    words: Vec<u64>,
}

impl Staging {
    /// `len` bytes of unspecified contents.
    pub(super) fn bytes(&mut self, len: usize) -> &mut [u8] {
        let words = len.div_ceil(8);
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        &mut bytemuck::cast_slice_mut(&mut self.words)[..len]
    }

    /// The first `len` bytes as they are.
    pub(super) fn filled(&self, len: usize) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..len]
    }
}

impl Tcp {
    /// Meets the other ranks of a job; returns once all of them are connected, or when
    /// `revocation` gives the group up. `listener` is this rank's own, `peers` the address of every
    /// rank's, this one's included.
    ///
    /// # Errors
    /// A rank out of range; ranks that cannot be reached, or are missing after the timeout.
    pub fn connect(
        listener: TcpListener,
        peers: &[SocketAddr],
        member: Member,
        revocation: Revocation,
    ) -> Result<Tcp> {
        let (Member { job, rank, timeout_ms }, world) = (member, peers.len());
        if rank >= world {
            return Err(CommError::NoSuchRank { rank, world });
        }
        check_thread()?;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
        let me = Identity { token: frame::token(job), rank, world };
        let pairs = runtime.block_on(async {
            tokio::select! {
                met = mesh::meet(listener, peers, me, timeout_ms) => met,
                error = revocation.wait() => Err(error),
            }
        })?;
        let counters = CounterCells::default();
        counters.add(Operation::Join, 0, (2 * (world - 1) * HEADER_BYTES) as u64, 0);
        let (data, signals) = pairs.into_iter().map(|pair| (pair.data, pair.signal)).unzip();
        let data: Vec<Option<tokio::net::TcpStream>> = data;
        let links = data.into_iter().enumerate();
        let links = links.map(|(peer, stream)| Some(Link::new(peer, stream?))).collect();
        let (scratch, messages) = (Scratch::default(), Vec::new());
        let state = State { sequence: 0, links, scratch, messages };
        Ok(Tcp {
            rank,
            world,
            token: me.token,
            timeout_ms,
            runtime: Some(runtime),
            inner: Mutex::new(Inner { state, signals: Signals::new(signals) }),
            revocation,
            counters,
        })
    }

    /// Runs one collective: numbers it and gives the group up if it fails.
    pub(super) fn collective<R>(
        &self,
        operation: Operation,
        digest: u64,
        body: impl AsyncFnOnce(&mut State, &Call, &Progress) -> Result<R>,
    ) -> Result<R> {
        let everyone = (0..self.world).filter(|&rank| rank != self.rank);
        self.run(body, Progress::new(everyone, self.timeout_ms), |state| {
            state.sequence += 1;
            Ok(Call { operation, token: self.token, sequence: state.sequence, digest })
        })
    }

    /// Runs one end of a message between this rank and `peer`.
    pub(super) fn pair<R>(
        &self,
        operation: Operation,
        peer: usize,
        body: impl AsyncFnOnce(&mut State, &Call, &Progress) -> Result<R>,
    ) -> Result<R> {
        self.run(body, Progress::new([peer], self.timeout_ms), |state| {
            let (rank, world) = (peer, self.world);
            let link = state.links.get_mut(peer).and_then(Option::as_mut);
            let link = link.ok_or(CommError::NoSuchRank { rank, world })?;
            let count = match operation {
                Operation::Send => &mut link.sent,
                _ => &mut link.received,
            };
            *count += 1;
            Ok(Call { operation, token: self.token, sequence: *count, digest: 0 })
        })
    }

    fn run<R>(
        &self,
        body: impl AsyncFnOnce(&mut State, &Call, &Progress) -> Result<R>,
        progress: Progress,
        number: impl FnOnce(&mut State) -> Result<Call>,
    ) -> Result<R> {
        check_thread()?;
        // After a panic inside an operation the next frames do not fit, which is found out.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { state, signals } = &mut *inner;
        self.check_revoked()?;
        let result = number(state).and_then(|call| {
            let work = body(state, &call, &progress);
            let runtime = self.runtime.as_ref().expect("taken only when the group ends");
            runtime.block_on(self.guard(&call, &progress, signals, work))
        });
        if let Err(error) = &result {
            let why = match error {
                CommError::Revoked { why } => why.clone(),
                _ => format!("rank {}: {error}", self.rank),
            };
            signals.revoke(self.revocation.revoke(&why));
        }
        result
    }

    /// `work` until it is done, no byte has moved for the timeout, or the group is given up.
    async fn guard<R>(
        &self,
        call: &Call,
        progress: &Progress,
        signals: &mut Signals,
        work: impl Future<Output = Result<R>>,
    ) -> Result<R> {
        let timeout_ms = self.timeout_ms;
        tokio::select! {
            result = work => result,
            error = signals.watch(call) => Err(error),
            error = self.revocation.wait() => Err(error),
            () = progress.stands_still() => {
                let Call { operation, sequence, .. } = *call;
                let (missing, moved) = (progress.missing(), progress.moved());
                Err(CommError::Timeout { operation, sequence, missing, timeout_ms, moved })
            }
        }
    }

    pub(super) fn check_revoked(&self) -> Result<()> {
        self.revocation.check()
    }

    pub(super) fn give_up(&self, why: &str) {
        let why = self.revocation.revoke(why);
        // An operation in progress fails at once and lets go.
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.signals.revoke(why);
    }
}

/// Refuses a thread that tokio would not let block.
fn check_thread() -> Result<()> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Err(CommError::Asynchronous),
        Err(_) => Ok(()),
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).signals.leave();
        // Without waiting, so that the last handle may be dropped anywhere.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Link {
    fn new(peer: usize, stream: tokio::net::TcpStream) -> Link {
        let (read, write) = stream.into_split();
        let (read, write) = (Reader::new(peer, read), Writer::new(peer, write));
        let (outgoing, incoming) = (Staging::default(), Staging::default());
        Link { read, write, outgoing, incoming, sent: 0, received: 0 }
    }
}
