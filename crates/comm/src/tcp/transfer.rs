//! The operations as traffic.

use std::cell::RefCell;
use std::ops::Range;

use device::{DType, Device, Placement, Stream, Tensor};

use super::exchange::{self, Call, Stage, Traffic};
use super::group::{Link, State, Tcp};
use crate::combine::{self, Located, Number, Scratch};
use crate::memory::{Joined, bytes_of, copy, load, store};
use crate::reduce::{self, Digest};
use crate::{
    AllToAll, CommError, Communicator, Counters, Operation, OrderedReduce, Result, Window,
};

/// Elements of a tile: what is summed, or passed on, at a time.
const TILE: usize = 32 << 10;
/// Bytes of a part of a message between two ranks.
const PART_BYTES: usize = 256 << 10;

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn backend(&self) -> &'static str {
        "tcp"
    }

    fn window(&self, device: &Device, bytes: usize) -> Result<Window> {
        let mine = self.empty(Operation::Window, bytes as u64, |_| {
            Ok(device.alloc(bytes, &Placement::Private)?)
        })?;
        let mut buffers = vec![None; self.world];
        buffers[self.rank] = Some(mine);
        Ok(Window::new(buffers, self.rank, bytes))
    }

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
            if root >= self.world {
                return Err(CommError::NoSuchRank { rank: root, world: self.world });
            }
            let State { links, messages, .. } = state;
            let mine: &[u8] = if root == self.rank { bytes } else { &[] };
            self.fit(mine, messages);
            exchange::exchange_messages(links, call, progress, mine, messages).await?;
            self.count(call, links);
            if root != self.rank {
                bytes.clear();
                bytes.extend_from_slice(&messages[root]);
            }
            Ok(())
        })
    }

    fn reduce_scatter_ordered(&self, stream: &Stream, op: &OrderedReduce) -> Result<()> {
        let operation = Operation::ReduceScatterOrdered;
        self.collective(operation, op.digest(), async |state, call, progress| {
            op.check(self.rank, self.world)?;
            let State { links, scratch, .. } = state;
            scratch.stages.load(op.program, op.inputs())?;
            stream.synchronize()?;
            match op.out.dtype() {
                DType::F32 => {
                    let in_place = combine::in_place_input::<f32>(stream, op, self.rank)?;
                    let traffic = Reduction::<f32>::new(self, stream, op, scratch, in_place);
                    exchange::exchange(links, call, progress, &RefCell::new(traffic)).await
                }
                DType::F64 => {
                    let in_place = combine::in_place_input::<f64>(stream, op, self.rank)?;
                    let traffic = Reduction::<f64>::new(self, stream, op, scratch, in_place);
                    exchange::exchange(links, call, progress, &RefCell::new(traffic)).await
                }
                dtype => Err(CommError::SumType { dtype }),
            }?;
            self.count(call, links);
            Ok(())
        })
    }

    fn all_gather_segments(
        &self,
        stream: &Stream,
        window: &Window,
        element_bytes: usize,
        segments: &[Vec<Range<usize>>],
    ) -> Result<()> {
        let operation = Operation::AllGatherSegments;
        let mut digest = Digest::default();
        digest.add(element_bytes);
        digest.add_segments(segments);
        self.collective(operation, digest.value(), async |state, call, progress| {
            reduce::check_gather(window, element_bytes, segments, self.rank, self.world)?;
            stream.synchronize()?;
            let traffic =
                RefCell::new(Gather { rank: self.rank, stream, window, element_bytes, segments });
            exchange::exchange(&mut state.links, call, progress, &traffic).await?;
            self.count(call, &mut state.links);
            Ok(())
        })
    }

    fn all_to_all(&self, stream: &Stream, op: &AllToAll) -> Result<()> {
        let size = op.into.dtype().bytes();
        self.collective(Operation::AllToAll, size as u64, async |state, call, progress| {
            op.check(self.rank, self.world)?;
            stream.synchronize()?;
            let from = op.from.tensor(0, &[op.from.bytes() / size], op.into.dtype())?;
            let traffic =
                Personal { stream, size, from: bytes_of(&from)?, into: bytes_of(op.into)?, op };
            traffic.keep_own(self.rank)?;
            let traffic = RefCell::new(traffic);
            exchange::exchange(&mut state.links, call, progress, &traffic).await?;
            self.count(call, &mut state.links);
            Ok(())
        })
    }

    fn send(&self, stream: &Stream, to: usize, tensor: &Tensor) -> Result<()> {
        self.pair(Operation::Send, to, async |state, call, progress| {
            progress.reach(to, Stage::Arrived);
            let bytes = bytes_of(tensor)?;
            let link = state.links[to].as_mut().expect("the operation was numbered on it");
            let total = bytes.len();
            exchange::send_one(link, call, progress, total, PART_BYTES, |range, part| {
                load(stream, &bytes.flat(range)?, part)
            })
            .await?;
            self.count(call, &mut state.links);
            Ok(())
        })
    }

    fn recv(&self, stream: &Stream, from: usize, tensor: &Tensor) -> Result<()> {
        self.pair(Operation::Receive, from, async |state, call, progress| {
            let bytes = bytes_of(tensor)?;
            let link = state.links[from].as_mut().expect("the operation was numbered on it");
            let total = bytes.len();
            exchange::receive_one(from, link, call, progress, total, PART_BYTES, |range, part| {
                store(stream, part, &bytes.flat(range)?)
            })
            .await?;
            self.count(call, &mut state.links);
            Ok(())
        })
    }

    fn counters(&self) -> Counters {
        self.counters.snapshot()
    }

    fn revoke(&self, why: &str) {
        self.give_up(why);
    }
}

impl Tcp {
    /// An operation without payload; `first` runs before peers are told.
    fn empty<R>(
        &self,
        operation: Operation,
        digest: u64,
        first: impl FnOnce(&Tcp) -> Result<R>,
    ) -> Result<R> {
        self.collective(operation, digest, async |state, call, progress| {
            let result = first(self)?;
            exchange::exchange(&mut state.links, call, progress, &RefCell::new(Nothing)).await?;
            self.count(call, &mut state.links);
            Ok(result)
        })
    }

    /// One empty vector per rank, but this rank's own message.
    fn fit(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) {
        all.resize_with(self.world, Vec::new);
        all.iter_mut().for_each(Vec::clear);
        all[self.rank].extend_from_slice(mine);
    }

    /// Adds a finished call: what went through the connections since the last one.
    fn count(&self, call: &Call, links: &mut [Option<Link>]) {
        let (mut sent, mut headers, mut received) = (0, 0, 0);
        for Link { read, write, .. } in links.iter_mut().flatten() {
            sent += std::mem::take(&mut write.payload_bytes);
            headers += std::mem::take(&mut write.header_bytes);
            received += std::mem::take(&mut read.payload_bytes);
        }
        self.counters.add(call.operation, sent, headers, received);
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
struct Reduction<'a, T> {
    rank: usize,
    stream: &'a Stream,
    op: &'a OrderedReduce<'a>,
    scratch: &'a mut Scratch,
    in_place: Option<usize>,
    element: std::marker::PhantomData<T>,
}

impl<'a, T: Number> Reduction<'a, T> {
    fn new(
        group: &Tcp,
        stream: &'a Stream,
        op: &'a OrderedReduce<'a>,
        scratch: &'a mut Scratch,
        in_place: Option<usize>,
    ) -> Reduction<'a, T> {
        let element = std::marker::PhantomData;
        Reduction { rank: group.rank, stream, op, scratch, in_place, element }
    }

    fn joined(&self, rank: usize) -> Joined<'_> {
        Joined { segments: &self.op.segments[rank] }
    }

    fn tile_bytes(&self, from: usize, to: usize, round: usize) -> usize {
        let elements = self.op.partials[from].len() * self.joined(to).tile_len(TILE, round);
        elements * size_of::<T>()
    }
}

impl<T: Number> Traffic for Reduction<'_, T> {
    fn rounds_to(&self, peer: usize) -> usize {
        self.joined(peer).tiles(TILE)
    }

    fn rounds(&self) -> usize {
        self.joined(self.rank).tiles(TILE)
    }

    fn bytes(&self, peer: usize, round: usize) -> (usize, usize) {
        (self.tile_bytes(self.rank, peer, round), self.tile_bytes(peer, self.rank, round))
    }

    fn fill(&self, peer: usize, round: usize, mut bytes: &mut [u8]) -> Result<()> {
        for (_, slot) in &self.op.partials[self.rank] {
            for piece in self.joined(peer).pieces(TILE, round) {
                let slot = self.op.slots[*slot].tensor(piece.start, &[piece.len()], T::DTYPE)?;
                let (part, rest) = bytes.split_at_mut(piece.len() * size_of::<T>());
                load(self.stream, &bytes_of(&slot)?, part)?;
                bytes = rest;
            }
        }
        Ok(())
    }

    fn drain<'b>(&mut self, round: usize, incoming: &dyn Fn(usize) -> &'b [u8]) -> Result<()> {
        let (rank, op, in_place) = (self.rank, self.op, self.in_place);
        let joined = Joined { segments: &op.segments[rank] };
        let tile = joined.tile_len(TILE, round);
        let (stages, carry) = T::parts(self.scratch);
        let mut done = 0;
        for piece in joined.pieces(TILE, round) {
            // Where the summation wants elements: within the piece, so within the tile.
            let start = piece.start - done;
            done += piece.len();
            stages.sum(self.stream, op.out, piece, carry, &|input, range| {
                if in_place == Some(input) {
                    return Ok(Located::Out);
                }
                let (holder, index) = op.holder(input).expect("the program was checked");
                if holder == rank {
                    let slot = &op.slots[op.partials[rank][index].1];
                    let part = slot.tensor(range.start, &[range.len()], T::DTYPE)?;
                    return Ok(Located::Memory(part));
                }
                let values: &[T] = bytemuck::cast_slice(incoming(holder));
                let at = index * tile + range.start - start;
                Ok(Located::Host(&values[at..at + range.len()]))
            })?;
        }
        Ok(())
    }
}

/// A gather: a round is a tile of the sender's joined segments.
struct Gather<'a> {
    rank: usize,
    stream: &'a Stream,
    window: &'a Window,
    element_bytes: usize,
    segments: &'a [Vec<Range<usize>>],
}

impl Gather<'_> {
    fn joined(&self, rank: usize) -> Joined<'_> {
        Joined { segments: &self.segments[rank] }
    }

    fn view(&self, piece: &Range<usize>) -> Result<Tensor> {
        let (start, len) = (piece.start * self.element_bytes, piece.len() * self.element_bytes);
        Ok(self.window.tensor(start, &[len], DType::U8)?)
    }
}

impl Traffic for Gather<'_> {
    fn rounds_to(&self, _: usize) -> usize {
        self.joined(self.rank).tiles(TILE)
    }

    fn rounds(&self) -> usize {
        let peers = (0..self.segments.len()).filter(|&peer| peer != self.rank);
        peers.map(|peer| self.joined(peer).tiles(TILE)).max().unwrap_or(0)
    }

    fn bytes(&self, peer: usize, round: usize) -> (usize, usize) {
        let bytes = |rank| self.joined(rank).tile_len(TILE, round) * self.element_bytes;
        (bytes(self.rank), bytes(peer))
    }

    fn fill(&self, _: usize, round: usize, mut bytes: &mut [u8]) -> Result<()> {
        for piece in self.joined(self.rank).pieces(TILE, round) {
            let (part, rest) = bytes.split_at_mut(piece.len() * self.element_bytes);
            load(self.stream, &self.view(&piece)?, part)?;
            bytes = rest;
        }
        Ok(())
    }

    fn drain<'b>(&mut self, round: usize, incoming: &dyn Fn(usize) -> &'b [u8]) -> Result<()> {
        for peer in (0..self.segments.len()).filter(|&peer| peer != self.rank) {
            let mut bytes = incoming(peer);
            for piece in self.joined(peer).pieces(TILE, round) {
                let (part, rest) = bytes.split_at(piece.len() * self.element_bytes);
                store(self.stream, part, &self.view(&piece)?)?;
                bytes = rest;
            }
        }
        Ok(())
    }
}

/// A personalized exchange: a round is a part of what goes to one peer.
struct Personal<'a> {
    stream: &'a Stream,
    /// Bytes of an element.
    size: usize,
    from: Tensor,
    into: Tensor,
    op: &'a AllToAll<'a>,
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
        copy(self.stream, "all_to_all", &from, &into)?;
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
        load(self.stream, &self.from.flat(part)?, bytes)
    }

    fn drain<'b>(&mut self, round: usize, incoming: &dyn Fn(usize) -> &'b [u8]) -> Result<()> {
        for (peer, elements) in self.op.receive.iter().enumerate() {
            let (part, bytes) = (self.part(elements, round), incoming(peer));
            if !bytes.is_empty() {
                store(self.stream, bytes, &self.into.flat(part)?)?;
            }
        }
        Ok(())
    }
}
