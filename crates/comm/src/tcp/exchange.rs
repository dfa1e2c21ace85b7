//! Moving frames: one to every peer and one from every peer, in rounds of bounded size.

use std::cell::Cell;
use std::time::Duration;

use device::Device;
use futures_util::future::{try_join, try_join_all};

use super::endpoint::{Link, Staging};
use super::frame::Header;
use super::wire::{Reader, Writer};
use crate::error::Moved;
use crate::job::{Job, Members};
use crate::memory::{load, store};
use crate::op::P2p;
use crate::patience::{self, Patience};
use crate::{CommError, Operation, Result};

/// How long a broken connection is not reported, since the peer's signal may say why.
const GRACE: Duration = Duration::from_millis(50);

/// The operation in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub operation: Operation,
    pub token: u64,
    pub sequence: u64,
    pub digest: u64,
}

impl Call {
    pub(super) fn header(&self, length: u64) -> Header {
        let Call { operation, token, sequence, digest } = *self;
        Header { operation: operation as u32, token, sequence, digest, length }
    }

    pub(super) fn lost(&self, rank: usize, cause: impl ToString) -> CommError {
        let Call { operation, sequence, .. } = *self;
        CommError::PeerLost { rank, operation, sequence, cause: cause.to_string() }
    }

    /// A connection broke.
    pub(super) async fn lost_by(&self, rank: usize, error: &std::io::Error) -> CommError {
        tokio::time::sleep(GRACE).await;
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.lost(rank, "it closed the connection"),
            _ => self.lost(rank, error),
        }
    }

    pub(super) fn mismatch(&self, rank: usize, theirs: &Header) -> CommError {
        let name = match Operation::from_code(u64::from(theirs.operation)) {
            Some(operation) => operation.name().to_owned(),
            None => format!("operation {}", theirs.operation),
        };
        let ours = self.header(0);
        let same = (theirs.operation, theirs.sequence) == (ours.operation, ours.sequence);
        let suffix = if same { " with other arguments" } else { "" };
        let theirs = format!("{name} #{}{suffix}", theirs.sequence);
        let Call { operation, sequence, .. } = *self;
        CommError::Mismatch { operation, sequence, rank, theirs }
    }
}

/// How far an operation has come: for its deadline, and for the message when that passes.
pub(super) struct Progress<'a> {
    job: &'a Job,
    members: &'a Members,
    peers: Vec<(usize, Cell<Stage>)>,
    /// Payload bytes, sent and received, so far and in all.
    moved: Cell<Moved>,
    /// Begun anew when bytes move, headers among them.
    patience: Cell<Patience>,
}

/// How far one peer has come, as far as one can tell from here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Stage {
    Absent,
    Arrived,
    Finished,
}

impl<'a> Progress<'a> {
    pub(super) fn new(job: &'a Job, members: &'a Members, peers: Vec<usize>) -> Progress<'a> {
        Progress {
            job,
            members,
            peers: peers.into_iter().map(|place| (place, Cell::new(Stage::Absent))).collect(),
            moved: Cell::default(),
            patience: job.patience(),
        }
    }

    /// Expects `bytes` more.
    pub(super) fn expect(&self, bytes: u64) {
        let moved = self.moved.get();
        self.moved.set(Moved { of: moved.of + bytes, ..moved });
    }

    /// Counts what one call of the system has moved, of payload or not.
    pub(super) fn advance(&self, bytes: usize, is_payload: bool) {
        self.patience.set(self.patience.get().afresh());
        self.job.got_on();
        if is_payload {
            let moved = self.moved.get();
            self.moved.set(Moved { bytes: moved.bytes + bytes as u64, ..moved });
        }
    }

    pub(super) fn moved(&self) -> Moved {
        self.moved.get()
    }

    /// Between two parts of the operation.
    pub(super) fn part_done(&self) {
        self.job.part_done();
    }

    /// Returns once nothing has moved for the timeout and peers stand still: which.
    pub(super) async fn stands_still(&self) -> Vec<usize> {
        loop {
            let missing = self.missing();
            if self.job.is_over(self.members, &self.patience, missing.iter().copied()) {
                let missing = missing.into_iter();
                return self.job.standing(self.members, &self.patience, missing);
            }
            tokio::time::sleep(patience::LOOK).await;
        }
    }

    pub(super) fn reach(&self, place: usize, stage: Stage) {
        if let Some((_, cell)) = self.peers.iter().find(|(peer, _)| *peer == place) {
            cell.set(stage);
        }
    }

    /// The peers that have not begun; if all have, those that have not finished; if all have, those
    /// that may not have taken what this member sends.
    fn missing(&self) -> Vec<usize> {
        let below = |stage| {
            let peers = self.peers.iter().filter(move |(_, cell)| cell.get() < stage);
            peers.map(|(place, _)| *place).collect::<Vec<usize>>()
        };
        let (absent, open) = (below(Stage::Arrived), below(Stage::Finished));
        let all = || self.peers.iter().map(|(place, _)| *place).collect();
        [absent, open].into_iter().find(|found| !found.is_empty()).unwrap_or_else(all)
    }
}

/// Device memory on its way: what to send, and what to do with what comes.
pub(super) trait Traffic {
    /// Rounds in which something goes to `peer`.
    fn rounds_to(&self, peer: usize) -> usize;

    /// Rounds in which something comes, or is to be done with this rank's own.
    fn rounds(&self) -> usize;

    /// Bytes to and from `peer` in `round`; none beyond its rounds.
    fn bytes(&self, peer: usize, round: usize) -> (usize, usize);

    /// Bytes to and from `peer` altogether.
    fn total(&self, peer: usize) -> (u64, u64) {
        let sent = (0..self.rounds_to(peer)).map(|round| self.bytes(peer, round).0 as u64).sum();
        let received = (0..self.rounds()).map(|round| self.bytes(peer, round).1 as u64).sum();
        (sent, received)
    }

    /// Fills what goes to `peer` in `round`.
    fn fill(&self, peer: usize, round: usize, bytes: &mut [u8]) -> Result<()>;

    /// Takes what came in `round`: `incoming(peer)` for each peer that sent something.
    fn drain<'a>(&mut self, round: usize, incoming: &dyn Fn(usize) -> &'a [u8]) -> Result<()>;
}

/// Sends and receives one frame per peer.
pub(super) async fn exchange<T: Traffic>(
    links: &mut [Option<Link>],
    call: &Call,
    progress: &Progress<'_>,
    traffic: &std::cell::RefCell<T>,
) -> Result<()> {
    let mut senders = Vec::with_capacity(links.len());
    let mut receivers = Vec::with_capacity(links.len());
    for (peer, link) in links.iter_mut().enumerate() {
        if let Some(Link { read, write, outgoing, incoming, .. }) = link {
            let (sent, received) = traffic.borrow().total(peer);
            progress.expect(sent + received);
            senders.push(send(write, outgoing, call, progress, (peer, traffic)));
            receivers.push(Receiver { peer, read, staging: incoming, len: 0 });
        }
    }
    try_join(try_join_all(senders), receive(receivers, call, progress, traffic)).await?;
    Ok(())
}

async fn send<T: Traffic>(
    write: &mut Writer,
    staging: &mut Staging,
    call: &Call,
    progress: &Progress<'_>,
    (peer, traffic): (usize, &std::cell::RefCell<T>),
) -> Result<()> {
    let (total, rounds) = {
        let traffic = traffic.borrow();
        (traffic.total(peer).0, traffic.rounds_to(peer))
    };
    write.header(call, progress, total).await?;
    for round in 0..rounds {
        let bytes = {
            let traffic = traffic.borrow();
            let bytes = staging.bytes(traffic.bytes(peer, round).0);
            traffic.fill(peer, round, bytes)?;
            bytes
        };
        write.payload(call, progress, bytes).await?;
    }
    Ok(())
}

struct Receiver<'a> {
    peer: usize,
    read: &'a mut Reader,
    staging: &'a mut Staging,
    len: usize,
}

async fn receive<T: Traffic>(
    mut receivers: Vec<Receiver<'_>>,
    call: &Call,
    progress: &Progress<'_>,
    traffic: &std::cell::RefCell<T>,
) -> Result<()> {
    try_join_all(receivers.iter_mut().map(async |receiver| {
        let peer = receiver.peer;
        let got = receiver.read.header(call, progress).await?;
        let expected = traffic.borrow().total(peer).1;
        match got == expected {
            true => Ok(()),
            false => Err(CommError::Length { rank: peer, got, expected }),
        }
    }))
    .await?;
    let rounds = traffic.borrow().rounds();
    for round in 0..rounds {
        try_join_all(receivers.iter_mut().map(async |receiver| {
            receiver.len = traffic.borrow().bytes(receiver.peer, round).1;
            let bytes = receiver.staging.bytes(receiver.len);
            receiver.read.payload(call, progress, bytes).await
        }))
        .await?;
        let incoming = |peer: usize| {
            let receiver = receivers.iter().find(|receiver| receiver.peer == peer);
            receiver.map_or(&[][..], |receiver| receiver.staging.filled(receiver.len))
        };
        traffic.borrow_mut().drain(round, &incoming)?;
        progress.part_done();
    }
    receivers.iter().for_each(|receiver| progress.reach(receiver.peer, Stage::Finished));
    Ok(())
}

/// Sends one small message to every peer and takes one from every peer, of any lengths.
pub(super) async fn exchange_messages(
    links: &mut [Option<Link>],
    call: &Call,
    progress: &Progress<'_>,
    mine: &[u8],
    all: &mut [Vec<u8>],
) -> Result<()> {
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for ((peer, link), message) in links.iter_mut().enumerate().zip(all) {
        if let Some(Link { read, write, .. }) = link {
            senders.push(async move {
                write.header(call, progress, mine.len() as u64).await?;
                write.payload(call, progress, mine).await
            });
            receivers.push(async move {
                let length = read.header(call, progress).await?;
                read.message(call, progress, length, message).await?;
                progress.reach(peer, Stage::Finished);
                Ok(())
            });
        }
    }
    try_join(try_join_all(senders), try_join_all(receivers)).await?;
    Ok(())
}

/// Bytes of a part of a message between two members.
pub(super) const PART_BYTES: usize = 256 << 10;

/// Moves the messages of an exchange, those of different ways at the same time.
pub(super) async fn exchange_pairs(
    links: &mut [Option<Link>],
    call: &Call,
    progress: &Progress<'_>,
    device: &Device,
    messages: &[P2p],
) -> Result<()> {
    progress.expect(messages.iter().map(|message| message.tensor().bytes() as u64).sum());
    // Peers do not wait for each other: each of them is awaited until its own messages are through.
    let open: Vec<Cell<usize>> = links.iter().map(|_| Cell::new(2)).collect();
    let way_is_done = |peer: usize| {
        open[peer].set(open[peer].get() - 1);
        if open[peer].get() == 0 {
            progress.reach(peer, Stage::Finished);
        }
    };
    let way_is_done = &way_is_done;
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for (peer, link) in links.iter_mut().enumerate() {
        let mine = messages.iter().filter(move |message| message.peer() == peer);
        let Some(Link { read, write, outgoing, incoming, sent, received }) = link else { continue };
        progress.reach(peer, Stage::Arrived);
        let (sends, receives) = (mine.clone(), mine);
        senders.push(async move {
            for message in sends.filter(|message| message.is_send()) {
                *sent += 1;
                let call = Call { sequence: *sent, ..*call };
                send_one(write, outgoing, (&call, progress), device, message).await?;
            }
            way_is_done(peer);
            Result::Ok(())
        });
        receivers.push(async move {
            for message in receives.filter(|message| !message.is_send()) {
                *received += 1;
                let call = Call { sequence: *received, ..*call };
                receive_one(read, incoming, (&call, progress), device, message).await?;
            }
            way_is_done(peer);
            Result::Ok(())
        });
    }
    try_join(try_join_all(senders), try_join_all(receivers)).await?;
    Ok(())
}

async fn send_one(
    write: &mut Writer,
    staging: &mut Staging,
    (call, progress): (&Call, &Progress<'_>),
    device: &Device,
    message: &P2p,
) -> Result<()> {
    let bytes = message.tensor().as_bytes();
    write.header(call, progress, bytes.len() as u64).await?;
    for start in (0..bytes.len()).step_by(PART_BYTES) {
        let range = start..(start + PART_BYTES).min(bytes.len());
        let part = staging.bytes(range.len());
        load(device, &bytes.flat(range)?, part)?;
        write.payload(call, progress, part).await?;
        progress.part_done();
    }
    Ok(())
}

async fn receive_one(
    read: &mut Reader,
    staging: &mut Staging,
    (call, progress): (&Call, &Progress<'_>),
    device: &Device,
    message: &P2p,
) -> Result<()> {
    let bytes = message.tensor().as_bytes();
    let (got, expected) = (read.header(call, progress).await?, bytes.len() as u64);
    if got != expected {
        return Err(CommError::Length { rank: message.peer(), got, expected });
    }
    for start in (0..bytes.len()).step_by(PART_BYTES) {
        let range = start..(start + PART_BYTES).min(bytes.len());
        let part = staging.bytes(range.len());
        read.payload(call, progress, part).await?;
        store(device, part, &bytes.flat(range)?)?;
        progress.part_done();
    }
    Ok(())
}
