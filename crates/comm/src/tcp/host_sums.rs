//! A reduction by hosts as traffic: to each owner of this member's column go its host's partials of
//! what that owns, made tile by tile from the windows of the host's members as the socket takes
//! them; what comes is summed as soon as the partials of a tile of all other hosts are here.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use device::{Buffer, DType, Device, Tensor};
use kernels::ordered_sum::{Summation, computed_in};

use super::tiles::{TILES, Tiles, tile};
use super::traffic::{EXCUSE, Give, Message, Peer, Take, Traffic, Way, give_pieces};
use crate::Result;
use crate::copies::Joined;
use crate::hosts::ReduceByHosts;
use crate::ordered::{self, at_least};

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
    reduction: &'a ReduceByHosts,
    /// With a tile more for each host, that is sent there.
    tiles: Tiles<'a>,
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
        let own = op.segments.iter().map(|segments| Joined { segments }.len()).max();
        let (host, awaited) = (hosts.of(place).0, hosts.each - 1);
        let tiles = Tiles::new((host, 1), device, op, own.unwrap_or(0), kept)?;
        reduction.making().made.fill(None);
        Ok(HostSums { place, host, reduction, tiles, awaited })
    }

    /// Where the tile begins that is sent to a host.
    fn place_to_send(&self, host: usize) -> usize {
        (self.reduction.hosts.count * TILES + host) * self.tiles.stride
    }

    /// Makes this host's partials of tile `round` of what the owner on `host` owns, one after
    /// another from byte `at` of the room on.
    fn make(&self, host: usize, round: usize, at: usize) -> Result<()> {
        let ReduceByHosts { op, inputs, parts, reads, hosts, .. } = self.reduction;
        let making = &mut *self.reduction.making();
        let (joined, dtype) = (self.tiles.joined(host), op.dtype);
        // Of the partials: what is computed in, or of inputs that go as they are, theirs.
        let made = self.tiles.op.dtype;
        let len = joined.tile_len(self.tiles.len, round);
        for (index, (of, sum)) in parts.iter().enumerate() {
            let mut start = at / made.bytes() + index * len;
            for (_, piece) in joined.pieces(self.tiles.len, round) {
                making.inputs.clear();
                for &(member, buffer) in &inputs[of.clone()] {
                    let buffer = op.buffers[buffer].on_host();
                    let part = buffer.of_member(member, piece.start, piece.len(), dtype)?;
                    if member != self.place {
                        let column = hosts.of(member).1;
                        reads[column].fetch_add(part.bytes() as u64, Ordering::Relaxed);
                    }
                    making.inputs.push(part);
                }
                let out = Tensor::new(self.tiles.room.clone(), start, &[piece.len()], made)?;
                let (stream, number) = (&making.stream, computed_in(dtype).unwrap_or(dtype));
                let workspace = match sum.workspace_elements(stream.device(), out.len()) {
                    0 => out.flat(0..0)?,
                    len => at_least(&mut making.workspace, stream.device(), number, len)?,
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
        while let Some(round) = self.tiles.due() {
            self.make(self.host, round, self.tiles.place_in_room(self.host, round))?;
            let source = self.tiles.received::<true>(round);
            let tile = (self.host, self.tiles.len, round);
            ordered::sum_tile(&self.reduction.across, tile, &source)?;
            self.tiles.has_summed();
        }
        Ok(())
    }
}

/// As [`super::hosts::Column`] sees it: peers are hosts.
impl Traffic for HostSums<'_> {
    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        Some(self.tiles.bytes(way, message.peer))
    }

    fn frame_bytes(&self, way: Way, host: usize) -> usize {
        self.tiles.frame_bytes(way, host)
    }

    fn may_begin(&self, way: Way, message: Message, start: usize) -> bool {
        match way {
            Way::Out => self.awaited == 0,
            Way::In => self.tiles.has_room(message.peer, start),
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
        let (host, tiles) = (message.peer, &self.tiles);
        let round = tiles.round(Way::Out, host, bytes.start);
        let is_made = self.reduction.making().made[host] == Some(round);
        if !is_made && tiles.bytes(Way::Out, host) != 0 {
            self.make(host, round, self.place_to_send(host))?;
            self.reduction.making().made[host] = Some(round);
        }
        let start =
            self.place_to_send(host) + bytes.start - round * tiles.frame_bytes(Way::Out, host);
        let piece = Tensor::new(tiles.room.clone(), start, &[bytes.len()], DType::U8);
        give_pieces(tiles.device, std::iter::once(Ok(piece?)), go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        self.tiles.take(message, bytes, go)
    }

    fn came(&mut self, message: Message, bytes: Range<usize>) -> Result<()> {
        self.tiles.came(message, bytes);
        self.sum()
    }
}

impl Peer for HostSums<'_> {
    fn one_is_ready(&mut self) -> Result<()> {
        self.awaited -= 1;
        self.sum()
    }
}
