//! Writes of members into the windows of their peers, which map each other's memory writable.
//!
//! ```text
//! reduce to all   owner: part of its share ─▶ result ─▶ own window, and all peers'
//! broadcast       root: the end of the range ─▶ all peers' windows
//!                 others: the range up to there, out of the root's
//! ```
//!
//! So one meeting before and one after are enough for an all_reduce, and all members copy at the
//! same time. Nobody reads or writes what another one writes: of a window, the share of a member is
//! that member's alone, in every window, and what the root writes the others do not.

use std::ops::Range;

use device::{DType, Device};

use super::endpoint::{Endpoint, ShmCall, State};
use super::transfer::{Mapped, PART};
use crate::algorithm::{PUSHED_BYTES, pushed_by_root};
use crate::copies::{Joined, copy};
use crate::ordered::Reduction;
use crate::primitives::Gather;
use crate::{Operation, Result, Window, ordered};

/// Tells this operation from a reduction of the same arguments, after which nobody else has the
/// results.
const TO_ALL: u64 = 0x9e37_79b9_7f4a_7c15;

impl Endpoint {
    /// Counted as a reduction and a gather.
    pub(super) fn reduce_to_all(
        &self,
        device: &Device,
        reduction: &Reduction,
        into: &Window,
    ) -> Result<()> {
        let (operation, digest) = (Operation::ReduceScatterOrdered, reduction.digest ^ TO_ALL);
        self.collective(operation, digest, |end, state, call| {
            end.enter(call)?;
            end.reduce_and_push(device, reduction, into, state)?;
            end.leave_counted(call, &state.reads)?;
            let (op, place) = (&reduction.op, end.place());
            let bytes =
                |peer: usize| Joined { segments: &op.segments[peer] }.len() * op.dtype.bytes();
            let received: usize = end.members.peers().map(bytes).sum();
            let sent = bytes(place) * (end.members.len() - 1);
            let gathered = Operation::AllGatherSegments;
            end.job().counters.add(gathered, sent as u64, 0, received as u64);
            Ok(())
        })
    }

    fn reduce_and_push(
        &self,
        device: &Device,
        reduction: &Reduction,
        into: &Window,
        state: &State,
    ) -> Result<()> {
        let (op, place, size) = (&reduction.op, self.place(), reduction.op.dtype.bytes());
        let source = Mapped { device, reduction, reads: &state.reads };
        let (joined, tile) = (Joined { segments: &op.segments[place] }, PUSHED_BYTES / size);
        for round in 0..joined.tiles(tile) {
            ordered::sum_tile(reduction, (place, tile, round), &source)?;
            for (_, piece) in joined.pieces(tile, round) {
                self.push(device, into, piece.start * size..piece.end * size)?;
            }
            self.part_done()?;
        }
        reduction.sums.finish()
    }

    /// Copies these bytes of this member's window to all others.
    fn push(&self, device: &Device, window: &Window, bytes: Range<usize>) -> Result<()> {
        let from = window.of_member(self.place(), bytes.start, bytes.len(), DType::U8)?;
        for peer in self.members.peers() {
            let into = window.of_member(peer, bytes.start, bytes.len(), DType::U8)?;
            copy(device, "push", &from, &into)?;
        }
        Ok(())
    }

    /// A gather of what one member alone has.
    pub(super) fn broadcast(
        &self,
        device: &Device,
        op: &Gather,
        root: usize,
        call: &ShmCall,
    ) -> Result<()> {
        self.enter(call)?;
        let mut all = 0;
        for range in &op.segments[root] {
            let (start, end) = (range.start * op.element_bytes, range.end * op.element_bytes);
            let cut = end - pushed_by_root(end - start, self.members.len());
            all += end - start;
            let mine = if root == self.place() { cut..end } else { start..cut };
            for start in mine.clone().step_by(PART) {
                let part = start..(start + PART).min(mine.end);
                if root == self.place() {
                    self.push(device, &op.window, part)?;
                } else {
                    let of =
                        |member| op.window.of_member(member, part.start, part.len(), DType::U8);
                    copy(device, "all_gather_segments", &of(root)?, &of(self.place())?)?;
                }
                self.part_done()?;
            }
        }
        self.leave(call)?;
        self.check_revoked()?;
        let (sent, received) = match root == self.place() {
            true => (all * (self.members.len() - 1), 0),
            false => (0, all),
        };
        self.job().counters.add(call.operation, sent as u64, 0, received as u64);
        Ok(())
    }
}
