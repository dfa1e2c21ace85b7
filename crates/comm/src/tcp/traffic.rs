//! The traffic of an operation, as the loop that moves it sees it: messages, where they lie, and
//! when their parts may go.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::time::Duration;

use device::{Device, Tensor};

use super::frame::FRAME_BYTES;
use crate::Result;
use crate::copies::Joined;

/// Most pieces of memory that one call of the system takes.
pub(super) const SLICES: usize = 16;

/// How much longer than for the timeout a peer is waited for that may itself wait for others: they
/// have time to say who does not come. Less than a group gives its own operations.
pub(super) const EXCUSE: Duration = Duration::from_secs(1);

/// A direction, as this rank sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

/// A message to or from a peer: how many went before it the same way in this operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub peer: usize,
    pub index: usize,
}

/// Takes memory to send from.
pub(super) type Give<'a> = &'a mut dyn FnMut(&[IoSlice<'_>]);
/// Takes memory to receive into.
pub(super) type Take<'a> = &'a mut dyn FnMut(&mut [IoSliceMut<'_>]);

/// An operation. Both ends of a connection cut its messages in the same way.
pub(super) trait Traffic {
    /// How many messages go to or come from `peer`.
    fn messages(&self, _: Way, _: usize) -> usize {
        1
    }

    /// The number of a message, where it has one that is not the operation's.
    fn sequence(&self, _: Way, _: Message) -> Option<u64> {
        None
    }

    /// Size of a message; `None` of one that comes and is as long as its header says.
    fn bytes(&self, way: Way, message: Message) -> Option<usize>;

    /// Most bytes of a frame to or from `peer`.
    fn frame_bytes(&self, _: Way, _: usize) -> usize {
        FRAME_BYTES
    }

    /// Whether the frame that begins at byte `start` of a message may be sent, or be received.
    fn may_begin(&self, _: Way, _: Message, _start: usize) -> bool {
        true
    }

    /// How much longer than others a peer is waited for that has begun and does not send or take a
    /// message: up to [`EXCUSE`] where it may have to wait for other members before it can.
    fn excuse(&self, _: Way, _: Message) -> Duration {
        Duration::ZERO
    }

    /// Before anything moves.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// Calls `go` once, with the memory of the first bytes of this range of a message, which lies
    /// within one frame: all of them, unless that lies in more than [`SLICES`] places.
    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()>;

    /// As [`Traffic::give`], with memory to receive into.
    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()>;

    /// This frame of a message has come, and is undamaged.
    fn came(&mut self, _: Message, _: Range<usize>) -> Result<()> {
        Ok(())
    }
}

/// Traffic among the members of a column, each known by its host.
pub(super) trait Peer: Traffic {
    /// Another member of this host has its window ready.
    fn one_is_ready(&mut self) -> Result<()>;
}

/// Frames without payload.
pub(super) struct Nothing;

impl Traffic for Nothing {
    fn bytes(&self, _: Way, _: Message) -> Option<usize> {
        Some(0)
    }

    fn give(&self, _: Message, _: Range<usize>, go: Give) -> Result<()> {
        go(&[]);
        Ok(())
    }

    fn take(&mut self, _: Message, _: Range<usize>, go: Take) -> Result<()> {
        go(&mut []);
        Ok(())
    }
}

/// One small message to every peer and one from every peer, of any lengths.
pub(super) struct Words<'a> {
    pub mine: &'a [u8],
    /// Who gets it, if not all do; to the others goes an empty one.
    pub to: Option<usize>,
    /// By place.
    pub all: &'a mut [Vec<u8>],
}

impl Traffic for Words<'_> {
    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        let gets = self.to.is_none_or(|to| to == message.peer);
        (way == Way::Out).then_some(if gets { self.mine.len() } else { 0 })
    }

    fn give(&self, _: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        go(&[IoSlice::new(&self.mine[bytes])]);
        Ok(())
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        let all = &mut self.all[message.peer];
        // Grows with what really comes, not with what a header promises.
        all.resize(bytes.end, 0);
        go(&mut [IoSliceMut::new(&mut all[bytes])]);
        Ok(())
    }
}

/// Calls `go` with the memory of the first pieces, in order.
pub(super) fn give_pieces(
    device: &Device,
    pieces: impl Iterator<Item = Result<Tensor>>,
    go: Give,
) -> Result<()> {
    let pieces = first_of(pieces)?;
    Ok(device.with_memory("send", |k| {
        let (mut slices, mut count) = ([IoSlice::new(&[]); SLICES], 0);
        for (slice, piece) in slices.iter_mut().zip(pieces.iter().flatten()) {
            *slice = IoSlice::new(k.read::<u8>(piece)?);
            count += 1;
        }
        go(&slices[..count]);
        Ok(())
    })?)
}

/// As [`give_pieces`], with memory to receive into.
pub(super) fn take_pieces(
    device: &Device,
    pieces: impl Iterator<Item = Result<Tensor>>,
    go: Take,
) -> Result<()> {
    let pieces = first_of(pieces)?;
    Ok(device.with_memory("receive", |k| {
        let (mut slices, mut count) = ([(); SLICES].map(|()| IoSliceMut::new(&mut [])), 0);
        for (slice, piece) in slices.iter_mut().zip(pieces.iter().flatten()) {
            *slice = IoSliceMut::new(k.write::<u8>(piece)?);
            count += 1;
        }
        go(&mut slices[..count]);
        Ok(())
    })?)
}

fn first_of(pieces: impl Iterator<Item = Result<Tensor>>) -> Result<[Option<Tensor>; SLICES]> {
    let mut first = [const { None }; SLICES];
    for (entry, piece) in first.iter_mut().zip(pieces) {
        *entry = Some(piece?);
    }
    Ok(first)
}

/// Where these bytes of segments that are laid end to end lie: ranges of bytes of their memory, in
/// order. An element has `size` bytes.
pub(super) fn places(
    joined: Joined<'_>,
    size: usize,
    bytes: Range<usize>,
) -> impl Iterator<Item = Range<usize>> + '_ {
    let elements = bytes.start / size..bytes.end.div_ceil(size);
    let mut at = elements.start * size;
    joined.within(elements).map(move |(_, piece)| {
        let (start, len) = (piece.start * size, piece.len() * size);
        let (from, to) = (bytes.start.saturating_sub(at), (bytes.end - at).min(len));
        at += len;
        start + from..start + to
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_of_segments_are_found_where_they_lie(
            gaps in prop::collection::vec((0_usize..9, 0_usize..40), 1..8),
            size in 1_usize..9,
            cut in (0.0..1.0, 0.0..1.0),
        ) {
            let mut at = 0;
            let segments: Vec<Range<usize>> = gaps
                .iter()
                .map(|&(gap, len)| {
                    let start = at + gap;
                    at = start + len;
                    start..at
                })
                .collect();
            let all: Vec<usize> =
                segments.iter().flat_map(|s| s.start * size..s.end * size).collect();
            let at = |share: f64| (share * all.len() as f64) as usize;
            let range = at(f64::min(cut.0, cut.1))..at(f64::max(cut.0, cut.1));
            let found = places(Joined { segments: &segments }, size, range.clone());
            let found: Vec<usize> = found.flatten().collect();
            prop_assert_eq!(&found[..], &all[range]);
        }
    }
}
