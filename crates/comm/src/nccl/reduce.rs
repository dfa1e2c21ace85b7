//! The ordered reduction: partials of peers come tile by tile into memory of the group, and the
//! device's kernel adds them to this member's own, in the order of the program.
//!
//! ```text
//! round 0   partials of what peers own ──send──▶      receive ──▶ inputs of peers ──┐
//!           own partials ───────────────────────────────────────────────────────────┴─ sum ─▶ out
//! round 1   …
//! ```
//!
//! All members cut the segments of all owners into the same tiles, so that the sends of a round
//! meet the receives of the same round.

use device::{Device, Tensor};
use kernels::ordered_sum::computed_in;

use super::action::{Action, Sum};
use super::calls::Move;
use crate::copies::Joined;
use crate::ordered::Reduction;
use crate::{OrderedReduce, Result};

/// Bytes that come from peers in a round, at most: enough for links to be busy.
const RECEIVE_BYTES: usize = 32 << 20;
/// Inputs begin at multiples of this many elements, which lets kernels read whole groups.
const ALIGN: usize = 64;

/// Elements of a tile; a function of what all members know.
fn tile(op: &OrderedReduce) -> usize {
    let inputs: usize = op.partials.iter().map(Vec::len).sum();
    let most = RECEIVE_BYTES / (inputs.max(1) * op.dtype.bytes());
    (most / ALIGN).max(1) * ALIGN
}

/// Uses of a group's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Partials of peers.
    Received,
    /// Values that a deep program keeps between its stages.
    Workspace,
}

/// A member's part in a reduction, whose number among those of its plan is `index`.
pub(super) struct Part<'a> {
    pub(super) reduction: &'a Reduction,
    pub(super) index: usize,
    pub(super) place: usize,
    pub(super) device: &'a Device,
    /// Memory of the group for one purpose, of so many bytes at least: its operations run one
    /// after another, and use the same.
    pub(super) room: &'a dyn Fn(Room, usize) -> Result<Tensor>,
}

impl Part<'_> {
    /// # Errors
    /// Memory.
    pub(super) fn actions(&self) -> Result<Vec<Action>> {
        let (op, tile) = (&self.reduction.op, tile(&self.reduction.op));
        let tiles = |segments| Joined { segments }.tiles(tile);
        let longest = op.segments.iter().map(|segments| tiles(segments)).max().unwrap_or(0);
        let own = Joined { segments: &op.segments[self.place] };
        let stride = own.len().min(tile).next_multiple_of(ALIGN);
        let bytes = self.peers().count() * stride * op.dtype.bytes();
        let received = if bytes == 0 { None } else { Some((self.room)(Room::Received, bytes)?) };
        let mut actions = Vec::new();
        for round in 0..longest {
            let mut moves = Vec::new();
            self.sends((tile, round), &mut moves)?;
            let mut sums = Vec::new();
            let mut at = 0;
            for (segment, piece) in own.pieces(tile, round) {
                let (start, len) = (piece.start, piece.len());
                let place = |before: usize| before * stride + at;
                let inputs = self.inputs(start, len, &received, &place, &mut moves)?;
                let start = op.place_in_out(self.place, segment, start);
                let out = op.out.flat(start..start + len)?;
                sums.push(self.sum(inputs, out)?);
                at += len;
            }
            if !moves.is_empty() {
                actions.push(Action::Moves(moves));
            }
            actions.extend(sums.into_iter().map(Action::Sum));
        }
        Ok(actions)
    }

    /// The holder of each input that comes from a peer.
    fn peers(&self) -> impl Iterator<Item = usize> + '_ {
        let partials = self.reduction.op.partials.iter().enumerate();
        let others = partials.filter(|(holder, _)| *holder != self.place);
        others.flat_map(|(holder, partials)| partials.iter().map(move |_| holder))
    }

    /// Adds the sends of this member in a round, of the pieces that peers own.
    fn sends(&self, (tile, round): (usize, usize), moves: &mut Vec<Move>) -> Result<()> {
        let op = &self.reduction.op;
        let owners = op.segments.iter().enumerate().filter(|(owner, _)| *owner != self.place);
        for (peer, segments) in owners {
            for (_, piece) in (Joined { segments }).pieces(tile, round) {
                for (_, buffer) in &op.partials[self.place] {
                    let from = op.buffers[*buffer].tensor(piece.start, &[piece.len()], op.dtype)?;
                    moves.push(Move::Send { from, peer });
                }
            }
        }
        Ok(())
    }

    /// The inputs of `len` elements from `start` on, in order; of those that come from peers, the
    /// one after `n` others is received at `place(n)`.
    fn inputs(
        &self,
        start: usize,
        len: usize,
        received: &Option<Tensor>,
        place: &dyn Fn(usize) -> usize,
        moves: &mut Vec<Move>,
    ) -> Result<Vec<Tensor>> {
        let (op, mut before) = (&self.reduction.op, 0);
        let mut inputs = Vec::new();
        for (peer, partials) in op.partials.iter().enumerate() {
            for (_, buffer) in partials {
                if let (true, Some(memory)) = (peer != self.place, received) {
                    let buffer = memory.buffer().clone();
                    let to = Tensor::new(buffer, place(before), &[len], op.dtype)?;
                    before += 1;
                    inputs.push(to.clone());
                    moves.push(Move::Receive { to, peer });
                } else {
                    inputs.push(op.buffers[*buffer].tensor(start, &[len], op.dtype)?);
                }
            }
        }
        Ok(inputs)
    }

    fn sum(&self, inputs: Vec<Tensor>, out: Tensor) -> Result<Sum> {
        let sum = self.reduction.sums.program();
        let workspace = match sum.workspace_elements(self.device, out.len()) {
            0 => out.flat(0..0)?,
            len => {
                let dtype = self.reduction.op.dtype;
                let number = computed_in(dtype).unwrap_or(dtype);
                let room = (self.room)(Room::Workspace, len * number.bytes())?;
                Tensor::new(room.buffer().clone(), 0, &[len], number)?
            }
        };
        Ok(Sum { index: self.index, inputs, out, workspace })
    }
}
