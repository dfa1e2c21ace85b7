//! An ordered reduction as traffic: to each owner go this member's partials of what it owns, tile by
//! tile; what comes is summed as soon as all peers' part of a tile is here, while the sockets take
//! in the next.

use std::ops::Range;
use std::time::Duration;

use device::{Buffer, DType, Device, Placement, Tensor};

use super::frame::FRAME_BYTES;
use super::traffic::{EXCUSE, Give, Message, Take, Traffic, Way, give_pieces, places, take_pieces};
use crate::Result;
use crate::memory::{Joined, load};
use crate::op::{OrderedReduce, Reduction};
use crate::ordered::{self, Source, Wanted};

/// Tiles of each peer that are kept at a time: the one that is being summed, and the next.
pub(super) const TILES: usize = 2;

/// Fewest elements of a tile, however many partials a member has.
const FEWEST: usize = 1 << 10;

/// Tiles begin at multiples of so many bytes.
const ALIGN: usize = 64;

/// Elements of a tile, the same on every member, so that a tile of each sender is one frame; and
/// bytes of one of a member that owns `own` elements. No member has more than `most` partials.
pub(super) fn tile(most: usize, dtype: DType, own: usize) -> (usize, usize) {
    let tile = (FRAME_BYTES / dtype.bytes() / most.max(1)).max(FEWEST);
    (tile, (tile.min(own) * most * dtype.bytes()).next_multiple_of(ALIGN))
}

/// Bytes that a group of `members` keeps for its ordered reductions, for a member that owns `own`
/// elements at most of what is reduced at a time; no member has more than `most` partials.
pub fn sum_room_bytes(members: usize, most: usize, dtype: DType, own: usize) -> usize {
    TILES * members * tile(most, dtype, own).1
}

/// An ordered reduction of the member at `place`.
pub(super) struct Summing<'a> {
    place: usize,
    device: &'a Device,
    reduction: &'a Reduction,
    /// Elements of a tile.
    tile: usize,
    /// Bytes of a tile of one member in `room`, which has [`TILES`] of each.
    stride: usize,
    room: Buffer,
    /// Tiles that are summed, and of the next ones how many peers' part has come.
    summed: usize,
    came: [usize; TILES],
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
        let most = op.partials.iter().map(Vec::len).max().unwrap_or(0);
        let own = Joined { segments: &op.segments[place] }.len();
        let (tile, stride) = tile(most, op.dtype, own);
        let bytes = TILES * op.partials.len() * stride;
        let fits = |room: &Buffer| room.len() >= bytes && room.device().is_same(device);
        let room = match kept.take().filter(fits) {
            Some(room) => room,
            None => device.alloc(bytes, &Placement::Private)?,
        };
        *kept = Some(room.clone());
        let (summed, came) = (0, [0; TILES]);
        Ok(Summing { place, device, reduction, tile, stride, room, summed, came })
    }

    fn op(&self) -> &'a OrderedReduce {
        &self.reduction.op
    }

    /// What the member at `place` owns.
    fn joined(&self, place: usize) -> Joined<'a> {
        Joined { segments: &self.op().segments[place] }
    }

    /// From which member to which.
    fn ends(&self, way: Way, peer: usize) -> (usize, usize) {
        match way {
            Way::Out => (self.place, peer),
            Way::In => (peer, self.place),
        }
    }

    /// Which tile a frame is that begins at byte `start` of a message.
    fn round(&self, way: Way, peer: usize, start: usize) -> usize {
        start / self.frame_bytes(way, peer).max(1)
    }

    /// Where a tile of a peer begins in the room.
    fn place_in_room(&self, peer: usize, round: usize) -> usize {
        (peer * TILES + round % TILES) * self.stride
    }

    /// The sums of all tiles that are here.
    fn sum(&mut self) -> Result<()> {
        let sends = |&(peer, all): &(usize, &Vec<_>)| peer != self.place && !all.is_empty();
        let senders = self.op().partials.iter().enumerate().filter(sends).count();
        let tiles = self.joined(self.place).tiles(self.tile);
        while self.summed < tiles && self.came[self.summed % TILES] == senders {
            let round = self.summed;
            let len = self.joined(self.place).tile_len(self.tile, round);
            let source = Received { summing: self, round, len };
            ordered::sum_tile(self.reduction, (self.place, self.tile, round), &source)?;
            self.came[round % TILES] = 0;
            self.summed += 1;
        }
        Ok(())
    }
}

/// A tile that came from the peers: of each, its partials in turn.
struct Received<'a, 'b> {
    summing: &'a Summing<'b>,
    round: usize,
    /// Elements of the tile.
    len: usize,
}

impl Source for Received<'_, '_> {
    fn locate(&self, wanted: Wanted) -> Result<Tensor> {
        let Wanted { holder, index, range, at } = wanted;
        let Summing { room, .. } = self.summing;
        let dtype = self.summing.op().dtype;
        let start = self.summing.place_in_room(holder, self.round) / dtype.bytes();
        let start = start + index * self.len + at;
        Ok(Tensor::new(room.clone(), start, &[range.len()], dtype)?)
    }

    fn copy(&self, wanted: Wanted, into: &mut [u8]) -> Result<()> {
        load(self.summing.device, &self.locate(wanted)?.as_bytes(), into)
    }
}

impl Traffic for Summing<'_> {
    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        let (from, to) = self.ends(way, message.peer);
        let op = self.op();
        Some(op.partials[from].len() * self.joined(to).len() * op.dtype.bytes())
    }

    fn frame_bytes(&self, way: Way, peer: usize) -> usize {
        let (from, _) = self.ends(way, peer);
        self.op().partials[from].len() * self.tile * self.op().dtype.bytes()
    }

    fn may_begin(&self, way: Way, message: Message, start: usize) -> bool {
        way == Way::Out || self.round(way, message.peer, start) < self.summed + TILES
    }

    /// An owner takes no more of one peer while it waits for a tile of another.
    fn excuse(&self, way: Way, _: Message) -> Duration {
        if way == Way::Out { EXCUSE } else { Duration::ZERO }
    }

    fn begin(&mut self) -> Result<()> {
        self.sum()
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        let (op, size) = (self.op(), self.op().dtype.bytes());
        let joined = self.joined(message.peer);
        let round = self.round(Way::Out, message.peer, bytes.start);
        let frame = round * self.frame_bytes(Way::Out, message.peer);
        let (tile, block) = (round * self.tile * size, joined.tile_len(self.tile, round) * size);
        let slots = op.partials[self.place].iter().enumerate();
        let pieces = slots.flat_map(|(index, (_, slot))| {
            let first = frame + index * block;
            let cut = |at: usize| tile + at.clamp(first, first + block) - first;
            let slot = op.slots[*slot].on_host();
            places(joined, size, cut(bytes.start)..cut(bytes.end))
                .map(|piece| Ok(slot.tensor(piece.start, &[piece.len()], DType::U8)?))
        });
        give_pieces(self.device, pieces, go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        let round = self.round(Way::In, message.peer, bytes.start);
        let frame = round * self.frame_bytes(Way::In, message.peer);
        let start = self.place_in_room(message.peer, round) + bytes.start - frame;
        let piece = Tensor::new(self.room.clone(), start, &[bytes.len()], DType::U8);
        take_pieces(self.device, std::iter::once(Ok(piece?)), go)
    }

    fn came(&mut self, message: Message, bytes: Range<usize>) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let round = self.round(Way::In, message.peer, bytes.start);
        self.came[round % TILES] += 1;
        self.sum()
    }
}
