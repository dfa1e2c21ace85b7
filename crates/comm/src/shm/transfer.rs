//! The operations: what is read between entering and leaving.

use std::ops::Range;

use device::{DType, Device, Placement, Stream, Tensor};

use super::channel::{BOX_BYTES, Channel};
use super::control::MAIL_BYTES;
use super::group::{Call, Shm, State};
use crate::combine::{self, Located, Number};
use crate::error::Moved;
use crate::memory::{bytes_of, copy};
use crate::reduce::{self, Digest};
use crate::{
    AllToAll, CommError, Communicator, Counters, Operation, OrderedReduce, Result, Window,
};

impl Communicator for Shm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn backend(&self) -> &'static str {
        "shm"
    }

    fn window(&self, device: &Device, bytes: usize) -> Result<Window> {
        self.collective(Operation::Window, bytes as u64, |group, state, call| {
            let place = state.places.take(bytes);
            let placement = match group.world {
                // Nobody else reads it, and private memory may have huge pages.
                1 => Placement::Private,
                _ => Placement::Shared(place(group.rank)),
            };
            let mine = device.alloc(bytes, &placement)?;
            group.enter(call)?;
            let map = |rank| match rank == group.rank {
                true => Ok(Some(mine.clone())),
                false => device.map_shared(&place(rank), bytes).map(Some),
            };
            let buffers = (0..group.world).map(map).collect::<std::result::Result<_, _>>()?;
            group.leave(call)?;
            group.counters.add(Operation::Window, 0, 0, 0);
            Ok(Window::new(buffers, group.rank, bytes))
        })
    }

    fn barrier(&self) -> Result<()> {
        self.collective(Operation::Barrier, 0, |group, _, call| {
            group.enter(call)?;
            group.counters.add(Operation::Barrier, 0, 0, 0);
            Ok(())
        })
    }

    fn all_gather_bytes_into(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<()> {
        self.collective(Operation::AllGatherBytes, 0, |group, state, call| {
            group.gather_messages(state, call, 0, mine, all)
        })
    }

    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let digest = root as u64;
        self.collective(Operation::BroadcastBytes, digest, |group, state, call| {
            if root >= group.world {
                return Err(CommError::NoSuchRank { rank: root, world: group.world });
            }
            let mine: &[u8] = if root == group.rank { bytes } else { &[] };
            let mut all = std::mem::take(&mut state.messages);
            let result = group.gather_messages(state, call, digest, mine, &mut all);
            if result.is_ok() && root != group.rank {
                bytes.clear();
                bytes.extend_from_slice(&all[root]);
            }
            state.messages = all;
            result
        })
    }

    fn reduce_scatter_ordered(&self, stream: &Stream, op: &OrderedReduce) -> Result<()> {
        let operation = Operation::ReduceScatterOrdered;
        self.collective(operation, op.digest(), |group, state, call| {
            op.check(group.rank, group.world)?;
            state.scratch.stages.load(op.program, op.inputs())?;
            stream.synchronize()?;
            group.enter(call)?;
            match op.out.dtype() {
                DType::F32 => group.sum_segments::<f32>(stream, op, state),
                DType::F64 => group.sum_segments::<f64>(stream, op, state),
                dtype => Err(CommError::SumType { dtype }),
            }?;
            group.leave_counted(call, &state.reads)
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
        self.collective(operation, digest.value(), |group, state, call| {
            reduce::check_gather(window, element_bytes, segments, group.rank, group.world)?;
            stream.synchronize()?;
            group.enter(call)?;
            for peer in group.peers() {
                for range in &segments[peer] {
                    let (start, len) = (range.start * element_bytes, range.len() * element_bytes);
                    let from = window.of_rank(peer, start, len, DType::U8)?;
                    let into = window.of_rank(group.rank, start, len, DType::U8)?;
                    state.reads.add(peer, copy(stream, "all_gather_segments", &from, &into)?);
                }
            }
            group.leave_counted(call, &state.reads)
        })
    }

    fn all_to_all(&self, stream: &Stream, op: &AllToAll) -> Result<()> {
        let element_bytes = op.into.dtype().bytes();
        self.collective(Operation::AllToAll, element_bytes as u64, |group, state, call| {
            op.check(group.rank, group.world)?;
            let ends = state.scratch.bytes(16 * group.world);
            for (ends, range) in ends.chunks_exact_mut(16).zip(op.send) {
                ends[..8].copy_from_slice(&range.start.to_ne_bytes());
                ends[8..].copy_from_slice(&range.end.to_ne_bytes());
            }
            group.control.put_mail(group.rank, call.sequence, ends.len(), ends);
            stream.synchronize()?;
            group.enter(call)?;
            for peer in 0..group.world {
                group.control.get_mail(peer, call.sequence, ends);
                let at = 16 * group.rank;
                let word = |at: usize| {
                    let bytes = ends[at..at + 8].first_chunk().expect("eight bytes");
                    usize::from_ne_bytes(*bytes)
                };
                let theirs = word(at)..word(at + 8);
                let into = op.into.flat(op.receive[peer].clone())?;
                if theirs.len() != into.len() {
                    let (got, expected) = (theirs.len(), into.len());
                    let bytes = |elements| (elements * element_bytes) as u64;
                    let (got, expected) = (bytes(got), bytes(expected));
                    return Err(CommError::Length { rank: peer, got, expected });
                }
                let from = op.from.of_rank(peer, theirs.start, theirs.len(), into.dtype())?;
                let read = copy(stream, "all_to_all", &bytes_of(&from)?, &bytes_of(&into)?)?;
                state.reads.add(peer, read);
            }
            group.leave_counted(call, &state.reads)
        })
    }

    fn send(&self, stream: &Stream, to: usize, tensor: &Tensor) -> Result<()> {
        self.pair(Operation::Send, to, |group, call| {
            let bytes = bytes_of(tensor)?;
            let channel = Channel { words: group.control.channel(group.rank, to) };
            let mut sent = 0;
            for start in (0..bytes.len().max(1)).step_by(BOX_BYTES) {
                let part = bytes.flat(start..(start + BOX_BYTES).min(bytes.len()))?;
                let moved = Moved { bytes: sent as u64, of: bytes.len() as u64 };
                let sleep = |limit| channel.sleep_for_room(limit);
                group.wait_box(call, moved, to, || channel.has_room(), sleep)?;
                stream.with_memory("send", |k| {
                    channel.put(bytes.len() as u64, k.read::<u8>(&part)?);
                    Ok(())
                })?;
                sent += part.len();
            }
            group.counters.add(Operation::Send, sent as u64, 0, 0);
            Ok(())
        })
    }

    fn recv(&self, stream: &Stream, from: usize, tensor: &Tensor) -> Result<()> {
        self.pair(Operation::Receive, from, |group, call| {
            let bytes = bytes_of(tensor)?;
            let channel = Channel { words: group.control.channel(from, group.rank) };
            let mut received = 0;
            for start in (0..bytes.len().max(1)).step_by(BOX_BYTES) {
                let part = bytes.flat(start..(start + BOX_BYTES).min(bytes.len()))?;
                let moved = Moved { bytes: received as u64, of: bytes.len() as u64 };
                let sleep = |limit| channel.sleep_for_mail(limit);
                group.wait_box(call, moved, from, || channel.has_mail(), sleep)?;
                let (got, expected) = (channel.total(), bytes.len() as u64);
                if got != expected {
                    return Err(CommError::Length { rank: from, got, expected });
                }
                stream.with_memory("recv", |k| {
                    channel.take(k.write::<u8>(&part)?);
                    Ok(())
                })?;
                received += part.len();
            }
            group.counters.add(Operation::Receive, 0, 0, received as u64);
            Ok(())
        })
    }

    fn counters(&self) -> Counters {
        self.counters.snapshot()
    }

    fn revoke(&self, why: &str) {
        self.control.revoke(why);
    }
}

impl Shm {
    /// Everyone's messages through the mail boxes, in as many rounds as the longest needs.
    fn gather_messages(
        &self,
        state: &mut State,
        call: &Call,
        digest: u64,
        mine: &[u8],
        all: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        all.resize_with(self.world, Vec::new);
        all.iter_mut().for_each(Vec::clear);
        all[self.rank].extend_from_slice(mine);
        let (mut call, mut done) = (call.clone(), 0);
        let (mut sent, mut received) = (0, 0);
        loop {
            let part = &mine[done.min(mine.len())..(done + MAIL_BYTES).min(mine.len())];
            self.control.put_mail(self.rank, call.sequence, mine.len(), part);
            sent += part.len() * (self.world - 1);
            self.enter(&call)?;
            done += MAIL_BYTES;
            let mut longest = mine.len();
            for peer in self.peers() {
                let (total, message) =
                    (self.control.mail_total(peer, call.sequence), &mut all[peer]);
                let start = message.len();
                message.resize(total.min(done), 0);
                self.control.get_mail(peer, call.sequence, &mut message[start..]);
                received += message.len() - start;
                longest = longest.max(total);
            }
            if done >= longest {
                break;
            }
            // Each round is an operation of its own: that is what frees the boxes.
            call = self.next_call(state, call.operation);
            self.announce(&call, digest);
        }
        self.counters.add(call.operation, sent as u64, 0, received as u64);
        Ok(())
    }

    fn sum_segments<T: Number>(
        &self,
        stream: &Stream,
        op: &OrderedReduce,
        state: &mut State,
    ) -> Result<()> {
        let in_place = combine::in_place_input::<T>(stream, op, self.rank)?;
        let State { scratch, reads, .. } = state;
        let (stages, carry) = T::parts(scratch);
        for range in &op.segments[self.rank] {
            stages.sum(stream, op.out, range.clone(), carry, &|input, range| {
                if in_place == Some(input) {
                    return Ok(Located::Out);
                }
                let (rank, index) = op.holder(input).expect("the program was checked");
                let slot = &op.slots[op.partials[rank][index].1];
                let part = slot.of_rank(rank, range.start, range.len(), T::DTYPE)?;
                Ok(match rank == self.rank {
                    true => Located::Memory(part),
                    false => Located::Peer(part, reads.of(rank)),
                })
            })?;
        }
        Ok(())
    }

    /// Runs one end of a message between this rank and `peer`.
    fn pair(
        &self,
        operation: Operation,
        peer: usize,
        body: impl FnOnce(&Shm, &Call) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.check_revoked()?;
        let call = self.pair_call(&mut state, operation, peer);
        let result = match peer < self.world && peer != self.rank {
            true => body(self, &call),
            false => Err(CommError::NoSuchRank { rank: peer, world: self.world }),
        };
        self.settle(&call, result)
    }
}
