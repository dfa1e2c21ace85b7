//! The operations as traffic.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use device::{DType, Device, Placement, Tensor};

use super::endpoint::{Endpoint, Link, State};
use super::exchange::{self, Call, PART_BYTES, Traffic};
use crate::control::Control;
use crate::job::{Job, Members};
use crate::memory::{Joined, copy, load, store};
use crate::one_shot::Take;
use crate::op::{AllToAll, Gather, Reduction, Step};
use crate::ordered::{self, Source, Wanted};
use crate::transport::Transport;
use crate::{CommError, Operation, Result, Window};

/// Elements of a tile: what is summed, or passed on, at a time.
const TILE: usize = 32 << 10;

impl Control for Endpoint {
    fn barrier(&self) -> Result<()> {
        self.empty(Operation::Barrier, 0, |_| Ok(()))
    }

    fn all_gather_bytes_into(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<()> {
        self.collective(Operation::AllGatherBytes, 0, async |state, call, progress| {
            self.fit(mine, all);
            exchange::exchange_messages(&mut state.links, call, progress, mine, all).await?;
            self.count(call, &mut state.links);
            Ok(())
        })
    }

    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let operation = Operation::BroadcastBytes;
        self.collective(operation, root as u64, async |state, call, progress| {
            let world = self.members.len();
            if root >= world {
                return Err(CommError::NoSuchRank { rank: root, world });
            }
            let State { links, messages, .. } = state;
            let mine: &[u8] = if root == self.place() { bytes } else { &[] };
            self.fit(mine, messages);
            exchange::exchange_messages(links, call, progress, mine, messages).await?;
            self.count(call, links);
            if root != self.place() {
                bytes.clear();
                bytes.extend_from_slice(&messages[root]);
            }
            Ok(())
        })
    }
}

impl Transport for Endpoint {
    fn job(&self) -> &Arc<Job> {
        self.net.job()
    }

    fn members(&self) -> &Members {
        &self.members
    }

    fn window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window> {
        let mine = self.empty(Operation::Window, bytes as u64, |_| {
            Ok(device.alloc(bytes, &Placement::Private)?)
        })?;
        let mut buffers = vec![None; self.members.len()];
        buffers[self.place()] = Some(mine);
        Ok(Window::new(buffers, self.place(), group, bytes))
    }

    fn meet(&self, operation: Operation, digest: u64) -> Result<()> {
        self.empty(operation, digest, |_| Ok(()))
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.all_gather_bytes(mine)
    }

    fn run(&self, device: &Device, step: &Step) -> Result<()> {
        let operation = step.operation();
        match step {
            Step::Barrier => self.empty(operation, 0, |_| Ok(())),
            Step::OneShot(shot) => {
                // What is sent is a copy, so that sums may take its place. One box is enough: when
                // an operation is done all of it is sent.
                let (from, turn) = shot.turn(0);
                let put = || copy(device, "put", from, &turn.own).map(drop);
                match &turn.take {
                    Take::Sum(reduction) => self.reduce(device, shot.digest, reduction, &put),
                    // Boxes are out of reach here.
                    Take::Copies(_) => Err(CommError::ForeignWindow),
                }
            }
            Step::Reduce(reduction) => self.reduce(device, reduction.digest, reduction, &|| Ok(())),
            // Windows are out of reach here.
            Step::ReduceToAll(..) => Err(CommError::ForeignWindow),
            Step::Gather(op, digest) => {
                self.collective(operation, *digest, async |state, call, progress| {
                    let traffic = RefCell::new(Gathering { place: self.place(), device, op });
                    exchange::exchange(&mut state.links, call, progress, &traffic).await?;
                    self.count(call, &mut state.links);
                    Ok(())
                })
            }
            Step::AllToAll(op) => {
                let size = op.into.dtype().bytes();
                self.collective(operation, size as u64, async |state, call, progress| {
                    let from = op.from.tensor(0, &[op.from.bytes() / size], op.into.dtype())?;
                    let (from, into) = (from.as_bytes(), op.into.as_bytes());
                    let traffic = Personal { device, size, from, into, op };
                    traffic.keep_own(self.place())?;
                    let traffic = RefCell::new(traffic);
                    exchange::exchange(&mut state.links, call, progress, &traffic).await?;
                    self.count(call, &mut state.links);
                    Ok(())
                })
            }
            Step::Exchange(messages) => {
                let mut peers: Vec<usize> = messages.iter().map(|message| message.peer()).collect();
                peers.sort_unstable();
                peers.dedup();
                self.pairs(peers, async |state, call, progress| {
                    let links = &mut state.links;
                    exchange::exchange_pairs(links, call, progress, device, messages).await?;
                    self.count(call, links);
                    Ok(())
                })
            }
        }
    }
}

impl Endpoint {
    /// `first` runs before anything is sent.
    fn reduce(
        &self,
        device: &Device,
        digest: u64,
        reduction: &Reduction,
        first: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let operation = Operation::ReduceScatterOrdered;
        self.collective(operation, digest, async |state, call, progress| {
            first()?;
            let traffic = RefCell::new(Summing { place: self.place(), device, reduction });
            exchange::exchange(&mut state.links, call, progress, &traffic).await?;
            reduction.sums.finish()?;
            self.count(call, &mut state.links);
            Ok(())
        })
    }

    /// An operation without payload; `first` runs before peers are told.
    fn empty<R>(
        &self,
        operation: Operation,
        digest: u64,
        first: impl FnOnce(&Endpoint) -> Result<R>,
    ) -> Result<R> {
        self.collective(operation, digest, async |state, call, progress| {
            let result = first(self)?;
            exchange::exchange(&mut state.links, call, progress, &RefCell::new(Nothing)).await?;
            self.count(call, &mut state.links);
            Ok(result)
        })
    }

    /// One empty vector per member, but this one's own message.
    fn fit(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) {
        all.resize_with(self.members.len(), Vec::new);
        all.iter_mut().for_each(Vec::clear);
        all[self.place()].extend_from_slice(mine);
    }

    /// Adds a finished call: what went through the connections since the last one.
    fn count(&self, call: &Call, links: &mut [Option<Link>]) {
        let (mut sent, mut headers, mut received) = (0, 0, 0);
        for Link { read, write, .. } in links.iter_mut().flatten() {
            sent += std::mem::take(&mut write.payload_bytes);
            headers += std::mem::take(&mut write.header_bytes);
            received += std::mem::take(&mut read.payload_bytes);
        }
        self.job().counters.add(call.operation, sent, headers, received);
    }
}

/// Frames without payload.
struct Nothing;

impl Traffic for Nothing {
    fn rounds_to(&self, _: usize) -> usize {
        0
    }

    fn rounds(&self) -> usize {
        0
    }

    fn bytes(&self, _: usize, _: usize) -> (usize, usize) {
        (0, 0)
    }

    fn fill(&self, _: usize, _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn drain<'a>(&mut self, _: usize, _: &dyn Fn(usize) -> &'a [u8]) -> Result<()> {
        Ok(())
    }
}

/// An ordered reduction. A round is a tile of the owner's joined segments: each of the sender's
/// partials in turn, over that tile.
struct Summing<'a> {
    place: usize,
    device: &'a Device,
    reduction: &'a Reduction,
}

impl Summing<'_> {
    fn joined(&self, place: usize) -> Joined<'_> {
        Joined { segments: &self.reduction.op.segments[place] }
    }

    fn tile_bytes(&self, from: usize, to: usize, round: usize) -> usize {
        let op = &self.reduction.op;
        let elements = op.partials[from].len() * self.joined(to).tile_len(TILE, round);
        elements * op.dtype.bytes()
    }
}

/// A tile that came from the peers: each peer's partials in turn.
struct Received<'a, 'b> {
    reduction: &'a Reduction,
    place: usize,
    /// Elements of the tile.
    tile: usize,
    /// Of each peer, as it came.
    incoming: &'a dyn Fn(usize) -> &'b [u8],
    /// And in memory of the device that sums, one peer after another; not where that is elsewhere.
    memory: Option<Tensor>,
}

impl Received<'_, '_> {
    /// Partials of the peers before `peer`.
    fn partials_before(&self, peer: usize) -> usize {
        let partials = self.reduction.op.partials.iter().take(peer).enumerate();
        partials.filter(|(member, _)| *member != self.place).map(|(_, all)| all.len()).sum()
    }

    /// All that came from `peer`, in memory of the device.
    fn of(&self, memory: &Tensor, peer: usize) -> Result<Tensor> {
        let (start, count) = (self.partials_before(peer), self.reduction.op.partials[peer].len());
        Ok(memory.flat(start * self.tile..(start + count) * self.tile)?)
    }
}

impl Source for Received<'_, '_> {
    fn locate(&self, wanted: Wanted) -> Result<Tensor> {
        let Wanted { holder, index, range, at } = wanted;
        let memory = self.memory.as_ref().ok_or(CommError::ForeignWindow)?;
        let at = index * self.tile + at;
        Ok(self.of(memory, holder)?.flat(at..at + range.len())?)
    }

    fn copy(&self, wanted: Wanted, into: &mut [u8]) -> Result<()> {
        let Wanted { holder, index, at, .. } = wanted;
        let start = (index * self.tile + at) * self.reduction.op.dtype.bytes();
        into.copy_from_slice(&(self.incoming)(holder)[start..start + into.len()]);
        Ok(())
    }
}

impl Traffic for Summing<'_> {
    fn rounds_to(&self, peer: usize) -> usize {
        self.joined(peer).tiles(TILE)
    }

    fn rounds(&self) -> usize {
        self.joined(self.place).tiles(TILE)
    }

    fn bytes(&self, peer: usize, round: usize) -> (usize, usize) {
        (self.tile_bytes(self.place, peer, round), self.tile_bytes(peer, self.place, round))
    }

    fn fill(&self, peer: usize, round: usize, mut bytes: &mut [u8]) -> Result<()> {
        let op = &self.reduction.op;
        for (_, slot) in &op.partials[self.place] {
            let slot = op.slots[*slot].on_host();
            for (_, piece) in self.joined(peer).pieces(TILE, round) {
                let slot = slot.tensor(piece.start, &[piece.len()], op.dtype)?;
                let (part, rest) = bytes.split_at_mut(slot.bytes());
                load(self.device, &slot.as_bytes(), part)?;
                bytes = rest;
            }
        }
        Ok(())
    }

    fn drain<'b>(&mut self, round: usize, incoming: &dyn Fn(usize) -> &'b [u8]) -> Result<()> {
        let Summing { place, device, reduction } = *self;
        let tile = self.joined(place).tile_len(TILE, round);
        let members = reduction.op.partials.len();
        let count: usize = reduction.op.partials.iter().map(Vec::len).sum();
        let count = count - reduction.op.partials[place].len();
        let memory = reduction.sums.received(&reduction.op, count * tile)?;
        let source = Received { reduction, place, tile, incoming, memory };
        if let Some(memory) = &source.memory {
            for peer in (0..members).filter(|&peer| peer != place) {
                store(device, incoming(peer), &source.of(memory, peer)?.as_bytes())?;
            }
        }
        ordered::sum_tile(reduction, (place, TILE, round), &source)
    }
}

/// A gather: a round is a tile of the sender's joined segments.
struct Gathering<'a> {
    place: usize,
    device: &'a Device,
    op: &'a Gather,
}

impl Gathering<'_> {
    fn joined(&self, place: usize) -> Joined<'_> {
        Joined { segments: &self.op.segments[place] }
    }

    fn view(&self, piece: &Range<usize>) -> Result<Tensor> {
        let (start, len) =
            (piece.start * self.op.element_bytes, piece.len() * self.op.element_bytes);
        Ok(self.op.window.tensor(start, &[len], DType::U8)?)
    }
}

impl Traffic for Gathering<'_> {
    fn rounds_to(&self, _: usize) -> usize {
        self.joined(self.place).tiles(TILE)
    }

    fn rounds(&self) -> usize {
        let peers = (0..self.op.segments.len()).filter(|&peer| peer != self.place);
        peers.map(|peer| self.joined(peer).tiles(TILE)).max().unwrap_or(0)
    }

    fn bytes(&self, peer: usize, round: usize) -> (usize, usize) {
        let bytes = |place| self.joined(place).tile_len(TILE, round) * self.op.element_bytes;
        (bytes(self.place), bytes(peer))
    }

    fn fill(&self, _: usize, round: usize, mut bytes: &mut [u8]) -> Result<()> {
        for (_, piece) in self.joined(self.place).pieces(TILE, round) {
            let (part, rest) = bytes.split_at_mut(piece.len() * self.op.element_bytes);
            load(self.device, &self.view(&piece)?, part)?;
            bytes = rest;
        }
        Ok(())
    }

    fn drain<'b>(&mut self, round: usize, incoming: &dyn Fn(usize) -> &'b [u8]) -> Result<()> {
        for peer in (0..self.op.segments.len()).filter(|&peer| peer != self.place) {
            let mut bytes = incoming(peer);
            for (_, piece) in self.joined(peer).pieces(TILE, round) {
                let (part, rest) = bytes.split_at(piece.len() * self.op.element_bytes);
                store(self.device, part, &self.view(&piece)?)?;
                bytes = rest;
            }
        }
        Ok(())
    }
}

/// A personalized exchange: a round is a part of what goes to one peer.
struct Personal<'a> {
    device: &'a Device,
    /// Bytes of an element.
    size: usize,
    from: Tensor,
    into: Tensor,
    op: &'a AllToAll,
}

impl Personal<'_> {
    /// The bytes of part `round` of `elements`.
    fn part(&self, elements: &Range<usize>, round: usize) -> Range<usize> {
        let (start, end) = (elements.start * self.size, elements.end * self.size);
        (start + round * PART_BYTES).min(end)..(start + (round + 1) * PART_BYTES).min(end)
    }

    fn parts(&self, elements: &Range<usize>) -> usize {
        (elements.len() * self.size).div_ceil(PART_BYTES)
    }

    /// Copies what this rank gives itself.
    fn keep_own(&self, rank: usize) -> Result<()> {
        let (send, receive) = (&self.op.send[rank], &self.op.receive[rank]);
        if send.len() != receive.len() {
            let bytes = |range: &Range<usize>| (range.len() * self.size) as u64;
            let (got, expected) = (bytes(send), bytes(receive));
            return Err(CommError::Length { rank, got, expected });
        }
        let bytes = |range: &Range<usize>| range.start * self.size..range.end * self.size;
        let (from, into) = (self.from.flat(bytes(send))?, self.into.flat(bytes(receive))?);
        copy(self.device, "all_to_all", &from, &into)?;
        Ok(())
    }
}

impl Traffic for Personal<'_> {
    fn rounds_to(&self, peer: usize) -> usize {
        self.parts(&self.op.send[peer])
    }

    fn rounds(&self) -> usize {
        self.op.receive.iter().map(|elements| self.parts(elements)).max().unwrap_or(0)
    }

    fn bytes(&self, peer: usize, round: usize) -> (usize, usize) {
        let (send, receive) = (&self.op.send[peer], &self.op.receive[peer]);
        (self.part(send, round).len(), self.part(receive, round).len())
    }

    fn fill(&self, peer: usize, round: usize, bytes: &mut [u8]) -> Result<()> {
        let part = self.part(&self.op.send[peer], round);
        load(self.device, &self.from.flat(part)?, bytes)
    }

    fn drain<'b>(&mut self, round: usize, incoming: &dyn Fn(usize) -> &'b [u8]) -> Result<()> {
        for (peer, elements) in self.op.receive.iter().enumerate() {
            let (part, bytes) = (self.part(elements, round), incoming(peer));
            if !bytes.is_empty() {
                store(self.device, bytes, &self.into.flat(part)?)?;
            }
        }
        Ok(())
    }
}
