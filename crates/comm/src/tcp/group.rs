//! The group: meeting, one operation at a time under its deadline, giving up.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::exchange::{Call, Progress};
use super::frame::{self, HEADER_BYTES};
use super::mesh::{self, Identity};
use super::signal::Signals;
use super::wire::{Reader, Writer};
use crate::combine::Scratch;
use crate::counters::CounterCells;
use crate::patience::Patience;
use crate::{CommError, Operation, Result};

/// A rank's end of a mesh.
pub struct Tcp {
    pub(super) rank: usize,
    pub(super) world: usize,
    token: u64,
    timeout_ms: u64,
    /// Taken when the group ends.
    runtime: Option<Runtime>,
    inner: Mutex<Inner>,
    revoked: OnceLock<String>,
    notify: Notify,
    pub(super) counters: CounterCells,
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
    /// Meets the other ranks of `job`; returns once all of them are connected. `listener` is this
    /// rank's own, `peers` the address of every rank's, this one's included.
    ///
    /// # Errors
    /// A rank out of range or claimed twice; ranks missing after `timeout_ms`.
    pub fn connect(
        listener: TcpListener,
        peers: &[SocketAddr],
        job: &str,
        rank: usize,
        timeout_ms: u64,
    ) -> Result<Tcp> {
        let world = peers.len();
        if rank >= world {
            return Err(CommError::NoSuchRank { rank, world });
        }
        check_thread()?;
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().enable_time().build().map_err(CommError::Runtime)?;
        let me = Identity { token: frame::token(job), rank, world };
        let pairs = runtime.block_on(async {
            mesh::meet(listener, peers, me, Patience::of_ms(timeout_ms)).await
        })?;
        let absent = |peer: &usize| pairs[*peer].data.is_none() || pairs[*peer].signal.is_none();
        let missing: Vec<usize> = (0..world).filter(|&p| p != rank).filter(absent).collect();
        if !missing.is_empty() {
            let operation = Operation::Join;
            return Err(CommError::Timeout { operation, sequence: 0, missing, timeout_ms });
        }
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
            revoked: OnceLock::new(),
            notify: Notify::new(),
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
        self.run(body, Progress::new(everyone), |state| {
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
        self.run(body, Progress::new([peer]), |state| {
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
            signals.revoke(self.revoked.get_or_init(|| why));
        }
        result
    }

    /// `work` until it is done, the deadline passes or the group is given up.
    async fn guard<R>(
        &self,
        call: &Call,
        progress: &Progress,
        signals: &mut Signals,
        work: impl Future<Output = Result<R>>,
    ) -> Result<R> {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        // Registered before the flag is looked at, so that no revocation falls in between.
        notified.as_mut().enable();
        self.check_revoked()?;
        let timeout_ms = self.timeout_ms;
        tokio::select! {
            result = work => result,
            error = signals.watch(call) => Err(error),
            () = notified => self.check_revoked().and_then(|()| {
                Err(CommError::Revoked { why: "no reason given".to_owned() })
            }),
            () = Patience::of_ms(timeout_ms).passed() => {
                let Call { operation, sequence, .. } = *call;
                let missing = progress.missing();
                Err(CommError::Timeout { operation, sequence, missing, timeout_ms })
            }
        }
    }

    pub(super) fn check_revoked(&self) -> Result<()> {
        let why = self.revoked.get().cloned();
        why.map_or(Ok(()), |why| Err(CommError::Revoked { why }))
    }

    pub(super) fn give_up(&self, why: &str) {
        let why = self.revoked.get_or_init(|| why.to_owned());
        self.notify.notify_waiters();
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
