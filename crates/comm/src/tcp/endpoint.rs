//! A member's end of a channel or group: meeting, and one operation at a time under its deadline.

use std::sync::{Arc, Mutex, PoisonError};

use device::Buffer;
use tokio::task::JoinSet;

use super::drive::{self, Waiting};
use super::frame::{self, HEADER_BYTES};
use super::link::{Link, Wire};
use super::mesh::{self, Identity, Met, Purpose, Tries};
use super::net::{Net, Shared};
use super::progress::{Progress, TcpCall};
use super::runtime::{check_thread, runtime};
use super::traffic::Traffic;
use crate::control::Channel;
use crate::door;
use crate::job::{InProgress, Job, Members};
use crate::meter::Meter;
use crate::patience;
use crate::tls::Stream;
use crate::{BackendWord, CommError, Operation, Result};

/// Tags of channels and groups; smaller ones are for other purposes.
const FIRST_CHANNEL: u64 = 1;
const FIRST_GROUP: u64 = 1 << 8;

pub(crate) struct Endpoint {
    pub(super) net: Arc<Net>,
    pub(super) members: Members,
    token: u64,
    meter: Meter,
    state: Mutex<State>,
}

/// State that only the operation in progress uses.
struct State {
    sequence: u64,
    exchanges: u64,
    wires: Wires,
    scratch: Scratch,
}

/// The connections to the other members.
struct Wires {
    /// By place; this member's own is `None`.
    links: Vec<Option<Link>>,
    waiting: Waiting,
}

/// Memory that operations keep for the next.
#[derive(Default)]
pub(super) struct Scratch {
    /// Messages of a broadcast.
    pub messages: Vec<Vec<u8>>,
    /// By place, messages of exchanges so far, sent and received.
    pub exchanged: Vec<(u64, u64)>,
    /// Memory for what is summed.
    pub room: Option<Buffer>,
}

/// An operation that runs.
pub(super) struct Running<'a> {
    wires: &'a mut Wires,
    call: TcpCall,
    progress: Progress<'a>,
}

impl Running<'_> {
    /// Moves the messages of the operation, all of them.
    pub(super) fn drive(&mut self, traffic: &mut dyn Traffic) -> Result<()> {
        let Running { wires: Wires { links, waiting }, call, progress } = self;
        drive::drive(links, waiting, call, progress, traffic)
    }

    /// The operation's number.
    pub(super) fn sequence(&self) -> u64 {
        self.call.sequence
    }

    /// Counts the operation, which is done, and what went through the connections since the last.
    fn count(&mut self) {
        let (mut sent, mut headers, mut received) = (0, 0, 0);
        for Link { sending, receiving, .. } in self.wires.links.iter_mut().flatten() {
            sent += std::mem::take(&mut sending.payload_bytes);
            headers += std::mem::take(&mut sending.header_bytes);
            received += std::mem::take(&mut receiving.payload_bytes);
        }
        let counters = &self.progress.job.counters;
        counters.add(self.call.operation, sent, headers, received);
        counters.add_socket(self.call.operation, sent);
    }
}

impl Net {
    /// This rank's end of a channel; returns once all are there.
    ///
    /// # Errors
    /// Ranks that cannot be reached, or are missing after the timeout; the job is given up
    /// meanwhile.
    pub(crate) fn channel(self: &Arc<Net>, channel: Channel) -> Result<Endpoint> {
        let Identity { rank, world, .. } = self.shared.me;
        let tag = FIRST_CHANNEL + channel.number();
        let meter = Meter::new(channel.name().to_owned(), BackendWord::Tcp.word());
        Endpoint::meet(Arc::clone(self), meter, tag, Members::all(rank, world))
    }

    /// This rank's end of group number `region`; returns once all members are there.
    ///
    /// # Errors
    /// As [`Net::channel`].
    pub(crate) fn group(self: &Arc<Net>, region: u64, members: Members) -> Result<Endpoint> {
        let meter = Meter::new(format!("group {region}"), BackendWord::Tcp.word());
        Endpoint::meet(Arc::clone(self), meter, FIRST_GROUP + region, members)
    }
}

impl Endpoint {
    /// Connects the members of the channel or group `tag`; returns once all are.
    fn meet(net: Arc<Net>, meter: Meter, tag: u64, members: Members) -> Result<Endpoint> {
        check_thread()?;
        let (shared, runtime) = (&net.shared, runtime()?);
        let (job, call) = (Arc::clone(&shared.job), (Operation::Join, 0));
        // Connections that peers have made for it already are open.
        let more = (members.len() - 1).saturating_sub(shared.arrived(tag));
        job.settle(&members, call, door::check_room(more))?;
        let met = runtime.block_on(async {
            tokio::select! {
                met = meet(shared, tag, &members) => met,
                reason = job.revocation().wait() => {
                    Err(CommError::Revoked { why: reason.why.clone() })
                }
            }
        });
        let wires = job.settle(&members, call, met)?;
        let links = wires.into_iter().enumerate();
        let links: Vec<Option<Link>> =
            links.map(|(peer, wire)| Some(Link::new(peer, wire?))).collect();
        let headers = (HEADER_BYTES * links.iter().flatten().count()) as u64;
        job.counters.add(Operation::Join, 0, headers, 0);
        let have_cores = job.settings.has_cores_for(shared.ranks_here());
        let wires = Wires { links, waiting: Waiting::new(have_cores) };
        let scratch = Scratch { exchanged: vec![(0, 0); members.len()], ..Scratch::default() };
        let state = State { sequence: 0, exchanges: 0, wires, scratch };
        let token = frame::token_of(shared.me.token, tag);
        Ok(Endpoint { net, members, token, meter, state: Mutex::new(state) })
    }

    pub(super) fn job(&self) -> &Arc<Job> {
        &self.net.shared.job
    }

    pub(super) fn place(&self) -> usize {
        self.members.place
    }

    /// Runs one operation: numbers it, counts it, and gives the job up if it fails. Exchanges have
    /// numbers of their own.
    pub(super) fn run<R>(
        &self,
        operation: Operation,
        digest: u64,
        body: impl FnOnce(&mut Running<'_>, &mut Scratch) -> Result<R>,
    ) -> Result<R> {
        check_thread()?;
        let job = self.job();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { sequence, exchanges, wires, scratch } = &mut *state;
        let _in_progress = InProgress(job);
        // As it also is after a panic.
        job.revocation().error(operation, *sequence + 1).map_or(Ok(()), Err)?;
        job.disturb();
        let number = if operation == Operation::Exchange { exchanges } else { sequence };
        *number += 1;
        let call = TcpCall { operation, token: self.token, sequence: *number, digest };
        let progress = Progress::new(job, &self.members);
        let mut running = Running { wires, call, progress };
        let (call, result) = self.meter.measure(&job.timings, || {
            let result = body(&mut running, scratch).inspect(|_| running.count());
            ((operation, call.sequence), result)
        });
        job.settle(&self.members, call, result)
    }
}

/// The connections of a channel or group by place; this member's own is `None`.
async fn meet(shared: &Shared, tag: u64, members: &Members) -> Result<Vec<Option<Wire>>> {
    let (job, me) = (&shared.job, &shared.me);
    let tries = Tries::default();
    let mut dials = JoinSet::new();
    for &rank in members.ranks.iter().filter(|&&rank| rank < me.rank) {
        let purpose = Purpose::Data(tag);
        let (addr, me, tries) = (shared.addrs[rank], me.clone(), Arc::clone(&tries));
        dials.spawn(mesh::connect(addr, rank, purpose, me, tries));
    }
    let place_of = |rank| members.ranks.iter().position(|&member| member == rank);
    let mut wires: Vec<Option<Wire>> = members.ranks.iter().map(|_| None).collect();
    let unmet =
        |missing| mesh::unmet(missing, members, [&tries, &shared.turned_away], job.timeout_ms());
    let patience = job.patience();
    loop {
        for place in members.peers().filter(|&place| members.ranks[place] > me.rank) {
            if let Some(wire) = shared.take_arrival(tag, members.ranks[place]) {
                wires[place] = Some(wire);
            }
        }
        let missing = members.peers().filter(|&place| wires[place].is_none());
        if missing.clone().next().is_none() {
            return Ok(wires);
        }
        if job.is_over(members, &patience, missing.clone()) {
            let missing = job.standing(members, &patience, missing);
            return Err(unmet(missing));
        }
        let dialled = tokio::select! {
            Some(dialled) = dials.join_next() => dialled,
            () = shared.news() => continue,
            () = tokio::time::sleep(patience::LOOK) => continue,
        };
        match dialled {
            Ok(Some(Met { rank, stream, keys, .. })) => {
                if let Some(place) = place_of(rank) {
                    let addr = shared.addrs[rank];
                    let failed = |source| CommError::Socket { addr, action: "take", source };
                    // Such a connection does not block, and goes on without its runtime.
                    let stream = Stream::new(stream).map_err(failed)?;
                    wires[place] = Some(Wire { stream, keys });
                }
            }
            // Trying again would not help.
            _ => return Err(unmet(missing.collect())),
        }
    }
}
