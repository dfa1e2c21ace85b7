//! Moving frames: one to every peer and one from every peer, in rounds of bounded size.

use std::cell::Cell;
use std::time::Duration;

use super::frame::Header;
use super::group::{Link, Staging};
use super::wire::{Reader, Writer};
use crate::error::Moved;
use crate::patience::{self, Patience};
use crate::{CommError, Operation, Result};
use futures_util::future::{try_join, try_join_all};

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
        // The two ends of a message share one frame.
        let operation = match operation {
            Operation::Receive => Operation::Send,
            other => other,
        };
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
pub(super) struct Progress {
    ranks: Vec<(usize, Cell<Stage>)>,
    /// Payload bytes, sent and received, so far and in all.
    moved: Cell<Moved>,
    /// Begun anew when bytes move, headers among them.
    patience: Cell<Patience>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Stage {
    Absent,
    Arrived,
    Finished,
}

impl Progress {
    pub(super) fn new(ranks: impl IntoIterator<Item = usize>, timeout_ms: u64) -> Progress {
        Progress {
            ranks: ranks.into_iter().map(|rank| (rank, Cell::new(Stage::Absent))).collect(),
            moved: Cell::default(),
            patience: Patience::of_ms(timeout_ms).into(),
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
        if is_payload {
            let moved = self.moved.get();
            self.moved.set(Moved { bytes: moved.bytes + bytes as u64, ..moved });
        }
    }

    pub(super) fn moved(&self) -> Moved {
        self.moved.get()
    }

    /// Returns once nothing has moved for the timeout.
    pub(super) async fn stands_still(&self) {
        patience::passed(&self.patience).await;
    }

    pub(super) fn reach(&self, rank: usize, stage: Stage) {
        if let Some((_, cell)) = self.ranks.iter().find(|(peer, _)| *peer == rank) {
            cell.set(stage);
        }
    }

    /// The ranks that have not begun; if all have, those that have not finished.
    pub(super) fn missing(&self) -> Vec<usize> {
        let below = |stage| {
            let ranks = self.ranks.iter().filter(move |(_, cell)| cell.get() < stage);
            ranks.map(|(rank, _)| *rank).collect::<Vec<usize>>()
        };
        let absent = below(Stage::Arrived);
        if absent.is_empty() { below(Stage::Finished) } else { absent }
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
    progress: &Progress,
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
    progress: &Progress,
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
    progress: &Progress,
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
    }
    receivers.iter().for_each(|receiver| progress.reach(receiver.peer, Stage::Finished));
    Ok(())
}

/// Sends one small message to every peer and takes one from every peer, of any lengths.
pub(super) async fn exchange_messages(
    links: &mut [Option<Link>],
    call: &Call,
    progress: &Progress,
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

/// Sends one frame of `total` bytes to one peer, filled part by part.
pub(super) async fn send_one(
    link: &mut Link,
    call: &Call,
    progress: &Progress,
    total: usize,
    part: usize,
    mut fill: impl FnMut(std::ops::Range<usize>, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let Link { write, outgoing, .. } = link;
    progress.expect(total as u64);
    write.header(call, progress, total as u64).await?;
    for start in (0..total).step_by(part) {
        let range = start..(start + part).min(total);
        let bytes = outgoing.bytes(range.len());
        fill(range, bytes)?;
        write.payload(call, progress, bytes).await?;
    }
    Ok(())
}

/// Takes one frame of exactly `total` bytes from one peer, part by part.
pub(super) async fn receive_one(
    peer: usize,
    link: &mut Link,
    call: &Call,
    progress: &Progress,
    total: usize,
    part: usize,
    mut drain: impl FnMut(std::ops::Range<usize>, &[u8]) -> Result<()>,
) -> Result<()> {
    let Link { read, incoming, .. } = link;
    progress.expect(total as u64);
    let (got, expected) = (read.header(call, progress).await?, total as u64);
    if got != expected {
        return Err(CommError::Length { rank: peer, got, expected });
    }
    for start in (0..total).step_by(part) {
        let range = start..(start + part).min(total);
        let bytes = incoming.bytes(range.len());
        read.payload(call, progress, bytes).await?;
        drain(range, bytes)?;
    }
    Ok(())
}
