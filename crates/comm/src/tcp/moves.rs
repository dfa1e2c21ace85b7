//! Gathers, personalized exchanges and messages as traffic: bytes that change their place and are
//! otherwise left alone.

use std::ops::Range;

use device::{DType, Device, Tensor};

use super::traffic::{Give, Message, Take, Traffic, Way, give_pieces, places, take_pieces};
use crate::copies::{Joined, copy};
use crate::primitives::{AllToAll, Gather, P2p};
use crate::{CommError, Result};

/// The pieces that the members of a gather hold.
pub(super) trait Held {
    fn members(&self) -> usize;

    /// Bytes of the member at `place`.
    fn bytes(&self, place: usize) -> usize;

    /// Where these of them lie for this member: what is its own to be sent from, the rest to be
    /// received into and sent on from.
    fn pieces(
        &self,
        place: usize,
        bytes: Range<usize>,
    ) -> impl Iterator<Item = Result<Tensor>> + '_;
}

impl Held for Gather {
    fn members(&self) -> usize {
        self.segments.len()
    }

    fn bytes(&self, place: usize) -> usize {
        held_bytes(self, place)
    }

    fn pieces(
        &self,
        place: usize,
        bytes: Range<usize>,
    ) -> impl Iterator<Item = Result<Tensor>> + '_ {
        held(self, place, bytes)
    }
}

/// A gather in which every member sends what it holds to every other.
pub(super) struct Direct<'a, H> {
    pub place: usize,
    pub device: &'a Device,
    pub op: &'a H,
}

/// Bytes of the segments of the member at `place`.
fn held_bytes(op: &Gather, place: usize) -> usize {
    Joined { segments: &op.segments[place] }.len() * op.element_bytes
}

/// Where these bytes of the segments of the member at `place` lie in this member's window.
fn held(
    op: &Gather,
    place: usize,
    bytes: Range<usize>,
) -> impl Iterator<Item = Result<Tensor>> + '_ {
    let joined = Joined { segments: &op.segments[place] };
    // A size of 0 would have no bytes.
    places(joined, op.element_bytes.max(1), bytes)
        .map(|piece| Ok(op.window.tensor(piece.start, &[piece.len()], DType::U8)?))
}

impl<H: Held> Traffic for Direct<'_, H> {
    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        let place = if way == Way::Out { self.place } else { message.peer };
        Some(self.op.bytes(place))
    }

    fn give(&self, _: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        give_pieces(self.device, self.op.pieces(self.place, bytes), go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        take_pieces(self.device, self.op.pieces(message.peer, bytes), go)
    }
}

/// A personalized exchange, in bytes.
pub(super) struct Personal<'a> {
    pub device: &'a Device,
    /// Bytes of an element.
    pub size: usize,
    pub from: Tensor,
    pub into: Tensor,
    pub op: &'a AllToAll,
}

impl Personal<'_> {
    fn bytes_of(&self, elements: &Range<usize>) -> Range<usize> {
        elements.start * self.size..elements.end * self.size
    }

    /// Copies what this rank, at `place`, gives itself.
    pub(super) fn keep_own(&self, place: usize) -> Result<()> {
        let (send, receive) = (&self.op.send[place], &self.op.receive[place]);
        if send.len() != receive.len() {
            let bytes = |range: &Range<usize>| (range.len() * self.size) as u64;
            let (rank, got, expected) = (place, bytes(send), bytes(receive));
            return Err(CommError::Length { rank, got, expected });
        }
        let from = self.from.flat(self.bytes_of(send))?;
        let into = self.into.flat(self.bytes_of(receive))?;
        copy(self.device, "all_to_all", &from, &into)?;
        Ok(())
    }
}

/// These bytes of a part of `tensor`.
fn part(tensor: &Tensor, whole: &Range<usize>, bytes: Range<usize>) -> Result<Tensor> {
    Ok(tensor.flat(whole.start + bytes.start..whole.start + bytes.end)?)
}

impl Traffic for Personal<'_> {
    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        let all = if way == Way::Out { &self.op.send } else { &self.op.receive };
        Some(all[message.peer].len() * self.size)
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        let piece = part(&self.from, &self.bytes_of(&self.op.send[message.peer]), bytes);
        give_pieces(self.device, std::iter::once(piece), go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        let piece = part(&self.into, &self.bytes_of(&self.op.receive[message.peer]), bytes);
        take_pieces(self.device, std::iter::once(piece), go)
    }
}

/// The messages of an exchange.
pub(super) struct Messages<'a> {
    pub device: &'a Device,
    pub all: &'a [P2p],
    /// By place, how many were sent to and received from each peer in earlier exchanges.
    pub before: &'a [(u64, u64)],
}

impl Messages<'_> {
    fn to_or_from(&self, way: Way, peer: usize) -> impl Iterator<Item = &P2p> {
        let is_wanted = move |m: &&P2p| m.peer() == peer && m.is_send() == (way == Way::Out);
        self.all.iter().filter(is_wanted)
    }

    fn memory(&self, way: Way, message: Message) -> Option<Tensor> {
        let found = self.to_or_from(way, message.peer).nth(message.index);
        found.map(|found| found.tensor().as_bytes())
    }
}

impl Traffic for Messages<'_> {
    fn messages(&self, way: Way, peer: usize) -> usize {
        self.to_or_from(way, peer).count()
    }

    fn sequence(&self, way: Way, message: Message) -> Option<u64> {
        let (sent, received) = self.before[message.peer];
        let before = if way == Way::Out { sent } else { received };
        Some(before + message.index as u64 + 1)
    }

    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        self.memory(way, message).map(|memory| memory.len())
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        let memory = self.memory(Way::Out, message);
        give_pieces(
            self.device,
            memory.into_iter().map(|memory| Ok(memory.flat(bytes.clone())?)),
            go,
        )
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        let memory = self.memory(Way::In, message);
        take_pieces(
            self.device,
            memory.into_iter().map(|memory| Ok(memory.flat(bytes.clone())?)),
            go,
        )
    }
}
