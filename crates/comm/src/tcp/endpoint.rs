//! A member's end of a channel or group: meeting, and one operation at a time under its deadline.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::exchange::{Call, Progress};
use super::frame::{self, HEADER_BYTES};
use super::mesh::{self, Met, Purpose, Tries};
use super::net::{Net, Shared};
use super::wire::{Reader, Writer};
use crate::job::{Job, Members};
use crate::patience;
use crate::{CommError, Operation, Result};

pub(crate) struct Endpoint {
    pub(super) net: Arc<Net>,
    pub(super) members: Members,
    token: u64,
    /// Taken when this end goes.
    runtime: Option<Runtime>,
    state: Mutex<State>,
}

/// What only the operation in progress uses.
pub(super) struct State {
    sequence: u64,
    pub exchanges: u64,
    /// By place; this member's own is `None`.
    pub links: Vec<Option<Link>>,
    pub messages: Vec<Vec<u8>>,
}

/// A connection to one peer, with its staging memory.
pub(super) struct Link {
    pub read: Reader,
    pub write: Writer,
    pub outgoing: Staging,
    pub incoming: Staging,
    /// Messages of exchanges so far, sent and received.
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

impl Endpoint {
    /// Connects the members of the channel or group `tag`; returns once all are.
    pub(super) fn meet(net: Arc<Net>, tag: u64, members: Members) -> Result<Endpoint> {
        check_thread()?;
        let (shared, runtime) = (&net.shared, runtime()?);
        let (job, call) = (Arc::clone(&shared.job), (Operation::Join, 0));
        let met = runtime.block_on(async {
            tokio::select! {
                met = meet(shared, tag, &members) => met,
                reason = job.revocation().wait() => {
                    Err(CommError::Revoked { why: reason.why.clone() })
                }
            }
        });
        let streams = job.settle(&members, call, met)?;
        let links = streams.into_iter().enumerate();
        let links: Vec<_> = links.map(|(peer, stream)| Some(Link::new(peer, stream?))).collect();
        let headers = (HEADER_BYTES * links.iter().flatten().count()) as u64;
        job.counters.add(Operation::Join, 0, headers, 0);
        let state = State { sequence: 0, exchanges: 0, links, messages: Vec::new() };
        let token = frame::token_of(shared.me.token, tag);
        Ok(Endpoint { net, members, token, runtime: Some(runtime), state: Mutex::new(state) })
    }

    pub(super) fn job(&self) -> &Arc<Job> {
        &self.net.shared.job
    }

    pub(super) fn place(&self) -> usize {
        self.members.place
    }

    /// Runs one collective: numbers it and gives the job up if it fails.
    pub(super) fn collective<R>(
        &self,
        operation: Operation,
        digest: u64,
        body: impl AsyncFnOnce(&mut State, &Call, &Progress) -> Result<R>,
    ) -> Result<R> {
        let number = |state: &mut State| {
            state.sequence += 1;
            state.sequence
        };
        self.run((operation, digest), self.members.peers().collect(), number, body)
    }

    /// Runs messages with some peers.
    pub(super) fn pairs<R>(
        &self,
        peers: Vec<usize>,
        body: impl AsyncFnOnce(&mut State, &Call, &Progress) -> Result<R>,
    ) -> Result<R> {
        let number = |state: &mut State| {
            state.exchanges += 1;
            state.exchanges
        };
        self.run((Operation::Exchange, 0), peers, number, body)
    }

    fn run<R>(
        &self,
        (operation, digest): (Operation, u64),
        peers: Vec<usize>,
        number: impl FnOnce(&mut State) -> u64,
        body: impl AsyncFnOnce(&mut State, &Call, &Progress) -> Result<R>,
    ) -> Result<R> {
        check_thread()?;
        // After a panic inside an operation the next frames do not fit, which is found out.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let job = self.job();
        job.revocation().error(operation, state.sequence + 1).map_or(Ok(()), Err)?;
        job.disturb();
        let sequence = number(&mut state);
        let call = Call { operation, token: self.token, sequence, digest };
        let progress = Progress::new(job, &self.members, peers);
        let work = body(&mut state, &call, &progress);
        let runtime = self.runtime.as_ref().expect("taken only when this end goes");
        let result = runtime.block_on(self.guard(&call, &progress, work));
        job.settle(&self.members, (operation, sequence), result)
    }

    /// `work` until it is done, a peer stands still for the timeout, or the job is given up.
    async fn guard<R>(
        &self,
        call: &Call,
        progress: &Progress<'_>,
        work: impl Future<Output = Result<R>>,
    ) -> Result<R> {
        let job = self.job();
        tokio::select! {
            biased;
            // What is done stays done, even if the job is given up meanwhile.
            result = work => result,
            reason = job.revocation().wait() => {
                Err(CommError::Revoked { why: reason.why.clone() })
            }
            missing = progress.stands_still() => {
                let (Call { operation, sequence, .. }, moved) = (*call, progress.moved());
                let timeout_ms = job.timeout_ms();
                Err(CommError::Timeout { operation, sequence, missing, timeout_ms, moved })
            }
        }
    }
}

/// The connections of a channel or group by place; this member's own is `None`.
async fn meet(shared: &Shared, tag: u64, members: &Members) -> Result<Vec<Option<TcpStream>>> {
    let (job, me) = (&shared.job, shared.me);
    let tries = Tries::default();
    let mut dials = JoinSet::new();
    for &rank in members.ranks.iter().filter(|&&rank| rank < me.rank) {
        let purpose = Purpose::Data(tag);
        dials.spawn(mesh::connect(shared.addrs[rank], rank, purpose, me, Arc::clone(&tries)));
    }
    let place_of = |rank| members.ranks.iter().position(|&member| member == rank);
    let mut streams: Vec<Option<TcpStream>> = members.ranks.iter().map(|_| None).collect();
    let patience = job.patience();
    loop {
        for place in members.peers().filter(|&place| members.ranks[place] > me.rank) {
            if let Some(stream) = shared.take_arrival(tag, members.ranks[place]) {
                let addr = shared.addrs[members.ranks[place]];
                let failed = |source| CommError::Socket { addr, action: "take", source };
                streams[place] = Some(TcpStream::from_std(stream).map_err(failed)?);
            }
        }
        let missing = members.peers().filter(|&place| streams[place].is_none());
        if missing.clone().next().is_none() {
            return Ok(streams);
        }
        if job.is_over(members, &patience, missing.clone()) {
            let missing = job.standing(members, &patience, missing);
            return Err(mesh::unmet(missing, members, &tries, job.timeout_ms()));
        }
        let dialled = tokio::select! {
            Some(dialled) = dials.join_next() => dialled,
            () = shared.news() => continue,
            () = tokio::time::sleep(patience::LOOK) => continue,
        };
        match dialled {
            Ok(Some(Met { rank, stream, .. })) => {
                if let Some(place) = place_of(rank) {
                    streams[place] = Some(stream);
                }
            }
            // Trying again would not help.
            _ => return Err(mesh::unmet(missing.collect(), members, &tries, job.timeout_ms())),
        }
    }
}

/// A runtime for whichever thread drives it.
pub(super) fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_io().enable_time().build().map_err(CommError::Runtime)
}

/// Refuses a thread that tokio would not let block.
pub(super) fn check_thread() -> Result<()> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Err(CommError::Asynchronous),
        Err(_) => Ok(()),
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Without waiting, so that the last handle may be dropped anywhere.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Link {
    fn new(peer: usize, stream: TcpStream) -> Link {
        let (read, write) = stream.into_split();
        let (read, write) = (Reader::new(peer, read), Writer::new(peer, write));
        let (outgoing, incoming) = (Staging::default(), Staging::default());
        Link { read, write, outgoing, incoming, sent: 0, received: 0 }
    }
}
