//! An ordered reduction as traffic: to each owner go this member's partials of what it owns, tile
//! by tile; what comes is summed as soon as all peers' part of a tile is here, while the sockets
//! take in the next.

use std::ops::Range;
use std::time::Duration;

use device::{Buffer, DType, Device};

use super::tiles::{TILES, Tiles, tile};
use super::traffic::{EXCUSE, Give, Message, Take, Traffic, Way, give_pieces, places};
use crate::Result;
use crate::copies::Joined;
use crate::ordered::{self, Reduction};

/// Bytes that a group of `members` keeps for its ordered reductions, for a member that owns `own`
/// elements at most of what is reduced at a time; no member has more than `most` partials.
pub fn sum_room_bytes(members: usize, most: usize, dtype: DType, own: usize) -> usize {
    TILES * members * tile(most, dtype, own).1
}

/// An ordered reduction of the member at `place`.
pub(super) struct Summing<'a> {
    place: usize,
    reduction: &'a Reduction,
    tiles: Tiles<'a>,
}

impl<'a> Summing<'a> {
    /// `kept` is memory of `device`, made larger where it has to be.
    pub(super) fn new(
        place: usize,
        device: &'a Device,
        reduction: &'a Reduction,
        kept: &mut Option<Buffer>,
    ) -> Result<Summing<'a>> {
        let op = &reduction.op;
        let own = Joined { segments: &op.segments[place] }.len();
        let tiles = Tiles::new((place, 0), device, op, own, kept)?;
        Ok(Summing { place, reduction, tiles })
    }

    /// The sums of all tiles that are here.
    fn sum(&mut self) -> Result<()> {
        while let Some(round) = self.tiles.due() {
            let source = self.tiles.received::<false>(round);
            ordered::sum_tile(self.reduction, (self.place, self.tiles.len, round), &source)?;
            self.tiles.has_summed();
        }
        Ok(())
    }
}

impl Traffic for Summing<'_> {
    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        Some(self.tiles.bytes(way, message.peer))
    }

    fn frame_bytes(&self, way: Way, peer: usize) -> usize {
        self.tiles.frame_bytes(way, peer)
    }

    fn may_begin(&self, way: Way, message: Message, start: usize) -> bool {
        way == Way::Out || self.tiles.has_room(message.peer, start)
    }

    /// An owner takes no more of one peer while it waits for a tile of another.
    fn excuse(&self, way: Way, _: Message) -> Duration {
        if way == Way::Out { EXCUSE } else { Duration::ZERO }
    }

    fn begin(&mut self) -> Result<()> {
        self.sum()
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        let Tiles { op, len, device, .. } = self.tiles;
        let (joined, size) = (self.tiles.joined(message.peer), op.dtype.bytes());
        let round = self.tiles.round(Way::Out, message.peer, bytes.start);
        let frame = round * self.tiles.frame_bytes(Way::Out, message.peer);
        let (tile, block) = (round * len * size, joined.tile_len(len, round) * size);
        let buffers = op.partials[self.place].iter().enumerate();
        let pieces = buffers.flat_map(|(index, (_, buffer))| {
            let first = frame + index * block;
            let cut = |at: usize| tile + at.clamp(first, first + block) - first;
            let buffer = op.buffers[*buffer].on_host();
            places(joined, size, cut(bytes.start)..cut(bytes.end))
                .map(|piece| Ok(buffer.tensor(piece.start, &[piece.len()], DType::U8)?))
        });
        give_pieces(device, pieces, go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        self.tiles.take(message, bytes, go)
    }

    fn came(&mut self, message: Message, bytes: Range<usize>) -> Result<()> {
        self.tiles.came(message, bytes);
        self.sum()
    }
}
