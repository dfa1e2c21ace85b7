//! A reduction by hosts as traffic: to each owner of this member's column go its host's partials of
//! what that owns, made tile by tile from the windows of the host's members as the socket takes
//! them; what comes is summed as soon as the partials of a tile of all other hosts are here.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use device::{Buffer, DType, Device, Placement, Tensor};
use kernels::ordered_sum::Summation;

use super::hosts::Peer;
use super::sums::{TILES, tile};
use super::traffic::{EXCUSE, Give, Message, Take, Traffic, Way, give_pieces, take_pieces};
use crate::Result;
use crate::hosts::ReduceByHosts;
use crate::memory::{Joined, load};
use crate::op::OrderedReduce;
use crate::ordered::{self, Source, Wanted, at_least};

/// Bytes that a group of `hosts` hosts keeps for its ordered reductions by hosts, for a member
/// whose column owns `own` elements at most a member of what is reduced at a time; no host has more
/// than `most` partials.
pub fn host_sum_room_bytes(hosts: usize, most: usize, dtype: DType, own: usize) -> usize {
    (TILES + 1) * hosts * tile(most, dtype, own).1
}

/// A reduction by hosts of the member at `place`, whose peers are known by their hosts.
pub(super) struct HostSums<'a> {
    place: usize,
    host: usize,
    device: &'a Device,
    reduction: &'a ReduceByHosts,
    /// Elements of a tile.
    tile: usize,
    /// Bytes of a tile of one host in `room`, which has [`TILES`] of each to be summed, and then
    /// one for each that is sent.
    stride: usize,
    room: Buffer,
    /// Tiles that are summed, and of the next ones how many hosts' part has come.
    summed: usize,
    came: [usize; TILES],
    /// Members of this host whose windows are not known to be ready.
    awaited: usize,
}

impl<'a> HostSums<'a> {
    /// `kept` is memory of `device`, made larger where it has to be.
    pub(super) fn new(
        place: usize,
        device: &'a Device,
        reduction: &'a ReduceByHosts,
        kept: &mut Option<Buffer>,
    ) -> Result<HostSums<'a>> {
        let (op, hosts) = (&reduction.across.op, reduction.hosts);
        let most = op.partials.iter().map(Vec::len).max().unwrap_or(0);
        let own = op.segments.iter().map(|segments| Joined { segments }.len()).max();
        let (tile, stride) = tile(most, op.dtype, own.unwrap_or(0));
        let bytes = (TILES + 1) * hosts.count * stride;
        let fits = |room: &Buffer| room.len() >= bytes && room.device().is_same(device);
        let room = match kept.take().filter(fits) {
            Some(room) => room,
            None => device.alloc(bytes, &Placement::Private)?,
        };
        *kept = Some(room.clone());
        reduction.making().made.fill(None);
        let (host, awaited) = (hosts.of(place).0, hosts.each - 1);
        let (summed, came) = (0, [0; TILES]);
        Ok(HostSums { place, host, device, reduction, tile, stride, room, summed, came, awaited })
    }

    fn op(&self) -> &'a OrderedReduce {
        &self.reduction.across.op
    }

    /// What the member of this column on `host` owns.
    fn joined(&self, host: usize) -> Joined<'a> {
        Joined { segments: &self.op().segments[host] }
    }

    /// From which host to which.
    fn ends(&self, way: Way, host: usize) -> (usize, usize) {
        match way {
            Way::Out => (self.host, host),
            Way::In => (host, self.host),
        }
    }

    fn most_bytes(&self, way: Way, host: usize) -> usize {
        let (from, _) = self.ends(way, host);
        self.op().partials[from].len() * self.tile * self.op().dtype.bytes()
    }

    /// Which tile a frame is that begins at byte `start` of a message.
    fn round(&self, way: Way, host: usize, start: usize) -> usize {
        start / self.most_bytes(way, host).max(1)
    }

    /// Where a tile of a host begins that is summed.
    fn place_in_room(&self, host: usize, round: usize) -> usize {
        (host * TILES + round % TILES) * self.stride
    }

    /// Where the tile begins that is sent to a host.
    fn place_to_send(&self, host: usize) -> usize {
        (self.reduction.hosts.count * TILES + host) * self.stride
    }

    /// Makes this host's partials of tile `round` of what the owner on `host` owns, one after
    /// another from byte `at` of the room on.
    fn make(&self, host: usize, round: usize, at: usize) -> Result<()> {
        let ReduceByHosts { op, inputs, parts, reads, hosts, .. } = self.reduction;
        let making = &mut *self.reduction.making();
        let (joined, dtype) = (self.joined(host), op.dtype);
        let len = joined.tile_len(self.tile, round);
        for (index, (of, sum)) in parts.iter().enumerate() {
            let mut start = at / dtype.bytes() + index * len;
            for (_, piece) in joined.pieces(self.tile, round) {
                making.inputs.clear();
                for &(member, slot) in &inputs[of.clone()] {
                    let slot = op.slots[slot].on_host();
                    let part = slot.of_member(member, piece.start, piece.len(), dtype)?;
                    if member != self.place {
                        let column = hosts.of(member).1;
                        reads[column].fetch_add(part.bytes() as u64, Ordering::Relaxed);
                    }
                    making.inputs.push(part);
                }
                let out = Tensor::new(self.room.clone(), start, &[piece.len()], dtype)?;
                let stream = &making.stream;
                let workspace = match sum.workspace_elements(stream.device(), out.len()) {
                    0 => out.flat(0..0)?,
                    len => at_least(&mut making.workspace, stream.device(), dtype, len)?,
                };
                let inputs = &making.inputs;
                Summation { sum, inputs, out: &out, workspace: &workspace }.launch(stream)?;
                start += piece.len();
            }
        }
        making.inputs.clear();
        Ok(making.stream.synchronize()?)
    }

    /// The sums of all tiles that are here.
    fn sum(&mut self) -> Result<()> {
        if self.awaited > 0 {
            return Ok(());
        }
        let sends = |&(host, all): &(usize, &Vec<_>)| host != self.host && !all.is_empty();
        let senders = self.op().partials.iter().enumerate().filter(sends).count();
        let tiles = self.joined(self.host).tiles(self.tile);
        while self.summed < tiles && self.came[self.summed % TILES] == senders {
            let round = self.summed;
            self.make(self.host, round, self.place_in_room(self.host, round))?;
            let len = self.joined(self.host).tile_len(self.tile, round);
            let source = Received { summing: self, round, len };
            let tile = (self.host, self.tile, round);
            ordered::sum_tile(&self.reduction.across, tile, &source)?;
            self.came[round % TILES] = 0;
            self.summed += 1;
        }
        Ok(())
    }
}

/// A tile of all hosts: of each, its partials in turn.
struct Received<'a, 'b> {
    summing: &'a HostSums<'b>,
    round: usize,
    /// Elements of the tile.
    len: usize,
}

impl Source for Received<'_, '_> {
    const HAS_OWN: bool = true;

    fn locate(&self, wanted: Wanted) -> Result<Tensor> {
        let Wanted { holder, index, range, at } = wanted;
        let dtype = self.summing.op().dtype;
        let start = self.summing.place_in_room(holder, self.round) / dtype.bytes();
        let start = start + index * self.len + at;
        Ok(Tensor::new(self.summing.room.clone(), start, &[range.len()], dtype)?)
    }

    fn copy(&self, wanted: Wanted, into: &mut [u8]) -> Result<()> {
        load(self.summing.device, &self.locate(wanted)?.as_bytes(), into)
    }
}

/// As [`super::hosts::Column`] sees it: peers are hosts.
impl Traffic for HostSums<'_> {
    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        let (from, to) = self.ends(way, message.peer);
        let op = self.op();
        Some(op.partials[from].len() * self.joined(to).len() * op.dtype.bytes())
    }

    fn frame_bytes(&self, way: Way, host: usize) -> usize {
        self.most_bytes(way, host)
    }

    fn may_begin(&self, way: Way, message: Message, start: usize) -> bool {
        match way {
            Way::Out => self.awaited == 0,
            Way::In => self.round(way, message.peer, start) < self.summed + TILES,
        }
    }

    /// An owner takes no more of one host while it waits for a tile of another.
    fn excuse(&self, way: Way, _: Message) -> Duration {
        if way == Way::Out { EXCUSE } else { Duration::ZERO }
    }

    fn begin(&mut self) -> Result<()> {
        self.sum()
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        let host = message.peer;
        let round = self.round(Way::Out, host, bytes.start);
        let is_made = self.reduction.making().made[host] == Some(round);
        if !is_made && self.bytes(Way::Out, message) != Some(0) {
            self.make(host, round, self.place_to_send(host))?;
            self.reduction.making().made[host] = Some(round);
        }
        let start =
            self.place_to_send(host) + bytes.start - round * self.most_bytes(Way::Out, host);
        let piece = Tensor::new(self.room.clone(), start, &[bytes.len()], DType::U8);
        give_pieces(self.device, std::iter::once(Ok(piece?)), go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        let round = self.round(Way::In, message.peer, bytes.start);
        let frame = round * self.most_bytes(Way::In, message.peer);
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

impl Peer for HostSums<'_> {
    fn one_is_ready(&mut self) -> Result<()> {
        self.awaited -= 1;
        self.sum()
    }
}
