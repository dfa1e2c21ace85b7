//! The operations: what is read between entering and leaving.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use device::{Buffer, DType, Device, Placement, SharedPart, Tensor};

use super::board::WORD_BYTES;
use super::endpoint::{Endpoint, Reads, ShmCall, State};
use super::system;
use crate::control::Control;
use crate::copies::{Joined, copy, load};
use crate::job::{Job, Members};
use crate::one_shot::{OneShot, Take};
use crate::ordered::{self, Reduction};
use crate::primitives::{AllToAll, Gather};
use crate::source::{Source, Wanted};
use crate::step::Step;
use crate::transport::Transport;
use crate::{CommError, Operation, Result, Window};

/// Elements that are summed, and bytes that are copied, before this member says that it gets on.
pub(super) const PART: usize = 4 << 20;

impl Control for Endpoint {
    fn barrier(&self) -> Result<()> {
        self.meet_all(Operation::Barrier, 0)
    }

    fn all_gather_bytes_into(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<()> {
        self.collective(Operation::AllGatherBytes, 0, |end, state, call| {
            end.gather_messages(state, (call, 0), |_| true, mine, all)
        })
    }

    fn gather_bytes_to(&self, root: usize, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let digest = root as u64;
        self.collective(Operation::GatherBytes, digest, |end, state, call| {
            end.members.check(root)?;
            let (is_root, mut all) = (root == end.place(), Vec::new());
            end.gather_messages(state, (call, digest), |_| is_root, mine, &mut all)?;
            if !is_root {
                all[end.place()].clear();
            }
            Ok(all)
        })
    }

    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let digest = root as u64;
        self.collective(Operation::BroadcastBytes, digest, |end, state, call| {
            end.members.check(root)?;
            let mine: &[u8] = if root == end.place() { bytes } else { &[] };
            let mut all = std::mem::take(&mut state.messages);
            let call = (call, digest);
            let result = end.gather_messages(state, call, |peer| peer == root, mine, &mut all);
            if result.is_ok() && root != end.place() {
                bytes.clear();
                bytes.extend_from_slice(&all[root]);
            }
            state.messages = all;
            result
        })
    }
}

impl Transport for Endpoint {
    fn job(&self) -> &Arc<Job> {
        self.host.job()
    }

    fn members(&self) -> &Members {
        &self.members
    }

    fn window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window> {
        self.job().counters.add(Operation::Window, 0, 0, 0);
        self.make_window(device, group, bytes, |place| {
            let placement = match self.members.len() {
                // Nobody else reads it, and private memory may have huge pages.
                1 => Placement::Private,
                _ => Placement::Shared(place.clone()),
            };
            Ok(device.alloc(bytes, &placement)?)
        })
    }

    fn box_window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window> {
        // A peer may read it when this member has dropped it: its pages go with the job's memory.
        self.job().counters.add(Operation::Window, 0, 0, 0);
        self.make_window(device, group, bytes, |place| {
            system::reserve(place.file(), place.offset(), bytes)?;
            Ok(device.map_shared(place, bytes)?)
        })
    }

    fn meet(&self, operation: Operation, digest: u64) -> Result<()> {
        self.meet_all(operation, digest)
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.all_gather_bytes(mine)
    }

    fn run(&self, device: &Device, step: &Step) -> Result<()> {
        match step {
            Step::Barrier => self.meet_all(Operation::Barrier, 0),
            Step::OneShot(shot) => self.one_shot(device, shot),
            Step::Reduce(reduction) => {
                self.counted(step.operation(), reduction.digest, |end, state, _| {
                    end.reduce(device, reduction, state)
                })
            }
            Step::ReduceToAll(reduction, into) => self.reduce_to_all(device, reduction, into),
            Step::Gather(gather, digest) => match gather.only_giver() {
                Some(root) => self.collective(step.operation(), *digest, |end, _, call| {
                    end.broadcast(device, gather, root, call)
                }),
                None => self.counted(step.operation(), *digest, |end, state, _| {
                    end.gather(device, gather, &state.reads)
                }),
            },
            // Here all members are on one host.
            Step::ReduceByHosts(_) | Step::GatherByHosts(_) => Err(CommError::ForeignWindow),
            Step::AllToAll(op) => self.all_to_all(device, op),
            Step::Exchange(messages) => self.exchange(device, messages),
        }
    }
}

/// Peers' windows, mapped here.
pub(super) struct Mapped<'a> {
    pub device: &'a Device,
    pub reduction: &'a Reduction,
    pub reads: &'a Reads,
}

impl Source for Mapped<'_> {
    fn locate(&self, wanted: Wanted) -> Result<Tensor> {
        let Wanted { holder, index, range, .. } = wanted;
        let op = &self.reduction.op;
        let buffer = op.buffers[op.partials[holder][index].1].on_host();
        let part = buffer.of_member(holder, range.start, range.len(), op.dtype)?;
        // Every element of an input is read once.
        self.reads.add(holder, part.bytes());
        Ok(part)
    }

    fn copy(&self, wanted: Wanted, into: &mut [u8]) -> Result<()> {
        load(self.device, &self.locate(wanted)?.as_bytes(), into)
    }
}

impl Endpoint {
    fn meet_all(&self, operation: Operation, digest: u64) -> Result<()> {
        self.collective(operation, digest, |end, _, call| {
            end.enter(call)?;
            end.job().counters.add(operation, 0, 0, 0);
            Ok(())
        })
    }

    pub(super) fn make_window(
        &self,
        device: &Device,
        group: u64,
        bytes: usize,
        mine: impl FnOnce(&SharedPart) -> Result<Buffer>,
    ) -> Result<Window> {
        self.collective(Operation::Window, bytes as u64, |end, state, call| {
            let place = state.places.take(bytes);
            let mine = mine(&place(end.place()))?;
            end.enter(call)?;
            let map = |member| match member == end.place() {
                true => Ok(Some(mine.clone())),
                false => device.map_shared(&place(member), bytes).map(Some),
            };
            let buffers = (0..end.members.len()).map(map);
            let buffers = buffers.collect::<std::result::Result<_, _>>()?;
            end.leave(call)?;
            Ok(Window::new(buffers, end.place(), group, bytes))
        })
    }

    /// An operation whose body reads peers' windows.
    fn counted(
        &self,
        operation: Operation,
        digest: u64,
        body: impl FnOnce(&Endpoint, &mut State, &ShmCall) -> Result<()>,
    ) -> Result<()> {
        self.collective(operation, digest, |end, state, call| {
            end.enter(call)?;
            body(end, state, call)?;
            end.leave_counted(call, &state.reads)
        })
    }

    fn one_shot(&self, device: &Device, shot: &OneShot) -> Result<()> {
        self.collective(shot.operation(), shot.digest, |end, state, call| {
            let (from, turn) = shot.turn(call.sequence);
            copy(device, "put", from, &turn.own)?;
            end.enter(call)?;
            // Peers must leave this turn's boxes alone from here on.
            end.job().disturb();
            match &turn.take {
                Take::Sum(reduction) => {
                    end.reduce(device, reduction, state)?;
                    end.members.peers().for_each(|peer| state.reads.of(peer).store(0, Relaxed));
                }
                Take::Ready(sums) => {
                    for sum in sums {
                        device.with_memory("ordered_sum", |k| sum.run(k))?;
                    }
                }
                Take::Copies(copies) => {
                    for (from, into) in copies {
                        copy(device, "take", from, into)?;
                    }
                }
            }
            let (sent, received) = (shot.sent_bytes as u64, shot.received_bytes as u64);
            end.job().counters.add(call.operation, sent, 0, received);
            Ok(())
        })
    }

    fn reduce(&self, device: &Device, reduction: &Reduction, state: &State) -> Result<()> {
        let place = self.place();
        let source = Mapped { device, reduction, reads: &state.reads };
        for round in 0..(Joined { segments: &reduction.op.segments[place] }).tiles(PART) {
            ordered::sum_tile(reduction, (place, PART, round), &source)?;
            self.part_done()?;
        }
        reduction.sums.finish()
    }

    fn gather(&self, device: &Device, op: &Gather, reads: &Reads) -> Result<()> {
        for peer in self.members.peers() {
            for range in &op.segments[peer] {
                let (start, end) = (range.start * op.element_bytes, range.end * op.element_bytes);
                for start in (start..end).step_by(PART) {
                    let len = PART.min(end - start);
                    let from = op.window.of_member(peer, start, len, DType::U8)?;
                    let into = op.window.of_member(self.place(), start, len, DType::U8)?;
                    reads.add(peer, copy(device, "all_gather_segments", &from, &into)?);
                    self.part_done()?;
                }
            }
        }
        Ok(())
    }

    fn all_to_all(&self, device: &Device, op: &AllToAll) -> Result<()> {
        self.collective(Operation::AllToAll, op.digest(), |end, state, call| {
            let members = end.members.len();
            let mut ends = std::mem::take(&mut state.ends);
            ends.resize(WORD_BYTES * members, 0);
            for (ends, range) in ends.chunks_exact_mut(WORD_BYTES).zip(&op.send) {
                ends[..8].copy_from_slice(&range.start.to_ne_bytes());
                ends[8..].copy_from_slice(&range.end.to_ne_bytes());
            }
            end.board.put_mail(end.place(), call.sequence, ends.len(), &ends);
            end.enter(call)?;
            for peer in 0..members {
                end.board.get_mail(peer, call.sequence, &mut ends);
                let at = WORD_BYTES * end.place();
                let word = |at: usize| {
                    let bytes = ends[at..at + 8].first_chunk().expect("eight bytes");
                    usize::from_ne_bytes(*bytes)
                };
                end.take_part(device, op, peer, word(at)..word(at + 8), &state.reads)?;
            }
            state.ends = ends;
            end.leave_counted(call, &state.reads)
        })
    }

    /// Copies what `peer` has for this member in elements `theirs` of its window.
    fn take_part(
        &self,
        device: &Device,
        op: &AllToAll,
        peer: usize,
        theirs: std::ops::Range<usize>,
        reads: &Reads,
    ) -> Result<()> {
        let into = op.into.flat(op.receive[peer].clone())?;
        if theirs.len() != into.len() {
            let bytes = |elements| (elements * op.into.dtype().bytes()) as u64;
            let (got, expected) = (bytes(theirs.len()), bytes(into.len()));
            return Err(CommError::Length { rank: peer, got, expected });
        }
        let from = op.from.of_member(peer, theirs.start, theirs.len(), into.dtype())?;
        let (from, into) = (from.as_bytes(), into.as_bytes());
        for start in (0..from.len()).step_by(PART) {
            let part = start..(start + PART).min(from.len());
            let (from, into) = (from.flat(part.clone())?, into.flat(part)?);
            reads.add(peer, copy(device, "all_to_all", &from, &into)?);
            self.part_done()?;
        }
        Ok(())
    }

    /// Messages through the mail boxes, in as many rounds as the longest needs: this member's goes
    /// into its box, and those of the peers that it `reads` come.
    fn gather_messages(
        &self,
        state: &mut State,
        (call, digest): (&ShmCall, u64),
        reads: impl Fn(usize) -> bool,
        mine: &[u8],
        all: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        all.resize_with(self.members.len(), Vec::new);
        all.iter_mut().for_each(Vec::clear);
        all[self.place()].extend_from_slice(mine);
        let (mut call, mut done, mail_bytes) = (call.clone(), 0, self.board.mail_bytes());
        let (mut sent, mut received) = (0, 0);
        loop {
            let part = &mine[done.min(mine.len())..(done + mail_bytes).min(mine.len())];
            self.board.put_mail(self.place(), call.sequence, mine.len(), part);
            sent += part.len() * (self.members.len() - 1);
            self.enter(&call)?;
            done += mail_bytes;
            let mut longest = mine.len();
            for peer in self.members.peers() {
                let total = self.board.mail_total(peer, call.sequence);
                longest = longest.max(total);
                if !reads(peer) {
                    continue;
                }
                let message = &mut all[peer];
                let start = message.len();
                message.resize(total.min(done), 0);
                self.board.get_mail(peer, call.sequence, &mut message[start..]);
                received += message.len() - start;
            }
            if done >= longest {
                break;
            }
            // Each round is an operation of its own: that is what frees the boxes.
            call = self.next_call(state, call.operation);
            self.announce(&call, digest);
        }
        self.job().counters.add(call.operation, sent as u64, 0, received as u64);
        Ok(())
    }
}
