//! The progress of an ordered reduction, tile by tile: where its parts lie, and which tiles are
//! whole.
//!
//! Those that send and own are known by their places: members of a group, or hosts of a column.

use std::ops::Range;

use device::{Buffer, DType, Device, Placement, Tensor};

use super::frame::FRAME_BYTES;
use super::traffic::{Message, Take, Way, take_pieces};
use crate::Result;
use crate::copies::{Joined, load};
use crate::primitives::OrderedReduce;
use crate::source::{Source, Wanted};

/// Tiles of each sender that are kept at a time: the one that is being summed, and the next.
pub(super) const TILES: usize = 2;

/// Fewest elements of a tile, however many partials a sender has.
const FEWEST: usize = 1 << 10;

/// Tiles begin at multiples of so many bytes.
const ALIGN: usize = 64;

/// Elements of a tile, the same on every member, so that a tile of each sender is one frame; and
/// bytes of one for an owner of `own` elements. No sender has more than `most` partials.
pub(super) fn tile(most: usize, dtype: DType, own: usize) -> (usize, usize) {
    let tile = (FRAME_BYTES / dtype.bytes() / most.max(1)).max(FEWEST);
    (tile, (tile.min(own) * most * dtype.bytes()).next_multiple_of(ALIGN))
}

/// Tiles of a reduction for the owner at `place`.
pub(super) struct Tiles<'a> {
    place: usize,
    pub device: &'a Device,
    pub op: &'a OrderedReduce,
    /// Elements of a tile.
    pub len: usize,
    /// Bytes of a tile of one sender in `room`, which has [`TILES`] of each.
    pub stride: usize,
    pub room: Buffer,
    /// Tiles that are summed, and of the next ones how many senders' part has come.
    summed: usize,
    came: [usize; TILES],
}

impl<'a> Tiles<'a> {
    /// With a room that has as many tiles more of each sender as `sent` says. `kept` is memory of
    /// `device`, made larger where it has to be; no owner whose tiles lie in it has more than `own`
    /// elements.
    pub(super) fn new(
        (place, sent): (usize, usize),
        device: &'a Device,
        op: &'a OrderedReduce,
        own: usize,
        kept: &mut Option<Buffer>,
    ) -> Result<Tiles<'a>> {
        let most = op.partials.iter().map(Vec::len).max().unwrap_or(0);
        let (len, stride) = tile(most, op.dtype, own);
        let bytes = (TILES + sent) * op.partials.len() * stride;
        let fits = |room: &Buffer| room.len() >= bytes && room.device().is_same(device);
        let room = match kept.take().filter(fits) {
            Some(room) => room,
            None => device.alloc(bytes, &Placement::Private)?,
        };
        *kept = Some(room.clone());
        let (summed, came) = (0, [0; TILES]);
        Ok(Tiles { place, device, op, len, stride, room, summed, came })
    }

    /// The segments that the member at `place` owns.
    pub(super) fn joined(&self, place: usize) -> Joined<'a> {
        Joined { segments: &self.op.segments[place] }
    }

    /// From whom to whom.
    fn ends(&self, way: Way, peer: usize) -> (usize, usize) {
        match way {
            Way::Out => (self.place, peer),
            Way::In => (peer, self.place),
        }
    }

    /// Of all tiles to or from a peer.
    pub(super) fn bytes(&self, way: Way, peer: usize) -> usize {
        let (from, to) = self.ends(way, peer);
        self.op.partials[from].len() * self.joined(to).len() * self.op.dtype.bytes()
    }

    /// Most bytes of one of them, which is a frame.
    pub(super) fn frame_bytes(&self, way: Way, peer: usize) -> usize {
        let (from, _) = self.ends(way, peer);
        self.op.partials[from].len() * self.len * self.op.dtype.bytes()
    }

    /// Which tile a frame is that begins at byte `start` of a message.
    pub(super) fn round(&self, way: Way, peer: usize, start: usize) -> usize {
        start / self.frame_bytes(way, peer).max(1)
    }

    /// Where a tile of a sender begins in the room.
    pub(super) fn place_in_room(&self, peer: usize, round: usize) -> usize {
        (peer * TILES + round % TILES) * self.stride
    }

    /// Whether there is room for the tile at byte `start` of a message.
    pub(super) fn has_room(&self, peer: usize, start: usize) -> bool {
        self.round(Way::In, peer, start) < self.summed + TILES
    }

    pub(super) fn take(&self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        let round = self.round(Way::In, message.peer, bytes.start);
        let frame = round * self.frame_bytes(Way::In, message.peer);
        let start = self.place_in_room(message.peer, round) + bytes.start - frame;
        let piece = Tensor::new(self.room.clone(), start, &[bytes.len()], DType::U8);
        take_pieces(self.device, std::iter::once(Ok(piece?)), go)
    }

    /// Bytes of a message are here whole.
    pub(super) fn came(&mut self, message: Message, bytes: Range<usize>) {
        if !bytes.is_empty() {
            self.came[self.round(Way::In, message.peer, bytes.start) % TILES] += 1;
        }
    }

    /// The next tile to sum, if all senders' part of it is here.
    pub(super) fn due(&self) -> Option<usize> {
        let sends = |&(peer, all): &(usize, &Vec<_>)| peer != self.place && !all.is_empty();
        let senders = self.op.partials.iter().enumerate().filter(sends).count();
        let (round, tiles) = (self.summed, self.joined(self.place).tiles(self.len));
        (round < tiles && self.came[round % TILES] == senders).then_some(round)
    }

    /// The tile that was due is summed.
    pub(super) fn has_summed(&mut self) {
        self.came[self.summed % TILES] = 0;
        self.summed += 1;
    }

    /// Tile `round` of all senders, the own place among them if it `HAS_OWN` partials there.
    pub(super) fn received<const HAS_OWN: bool>(&self, round: usize) -> Received<'_, HAS_OWN> {
        let len = self.joined(self.place).tile_len(self.len, round);
        Received { tiles: self, round, len }
    }
}

/// A tile that is here: of each sender, its partials in turn.
pub(super) struct Received<'a, const HAS_OWN: bool> {
    tiles: &'a Tiles<'a>,
    round: usize,
    /// Elements of the tile.
    len: usize,
}

impl<const HAS_OWN: bool> Source for Received<'_, HAS_OWN> {
    const HAS_OWN: bool = HAS_OWN;

    fn locate(&self, wanted: Wanted) -> Result<Tensor> {
        let Wanted { holder, index, range, at } = wanted;
        let Tiles { room, op, .. } = self.tiles;
        let start = self.tiles.place_in_room(holder, self.round) / op.dtype.bytes();
        let start = start + index * self.len + at;
        Ok(Tensor::new(room.clone(), start, &[range.len()], op.dtype)?)
    }

    fn copy(&self, wanted: Wanted, into: &mut [u8]) -> Result<()> {
        load(self.tiles.device, &self.locate(wanted)?.as_bytes(), into)
    }
}
