//! Small operations in one round: each member puts what it gives into a box that all others read,
//! and takes what it needs out of theirs.
//!
//! ```text
//! member 0   window ──put──▶ box ─┬──────────────┐
//!                                 ▼              ▼
//! member 1   window ──put──▶ box ─┼─▶ sum        └─▶ sum ─▶ window of member 1
//!                                 └───▶ window of member 0
//! ```
//!
//! In two rounds (an owner sums its share, then all gather) fewer bytes are read; here each member
//! reads everything, but waits for the others once, and its own window is not read by anyone.
//!
//! A group has two boxes per member, which its operations use in turn: a member fills a box again
//! only when all have begun the operation between, hence read what was in it.

use std::ops::Range;
use std::sync::Arc;

use device::{DType, Tensor};
use kernels::ordered_sum::ReadySum;

use crate::algorithm;
use crate::copies::Joined;
use crate::ordered::{self, Reduction};
use crate::primitives::{Gather, OrderedReduce};
use crate::site::Site;
use crate::{EvenPlan, Operation, Result, Segments, Window};

/// An operation in one round.
pub(crate) struct OneShot {
    /// Bytes of this member's window.
    from: Tensor,
    turns: [Turn; 2],
    operation: Operation,
    pub digest: u64,
    /// Bytes to, and from, all peers together.
    pub sent_bytes: usize,
    pub received_bytes: usize,
}

/// The operation by one of the two boxes.
pub(crate) struct Turn {
    /// Bytes of this member's box, as many as it gives.
    pub own: Tensor,
    pub take: Take,
}

/// The use that is made of the boxes.
pub(crate) enum Take {
    Sum(Box<Reduction>),
    /// Sums of what is in all boxes.
    Ready(Vec<ReadySum>),
    /// Of each member: bytes of its box, and where they go.
    Copies(Vec<(Tensor, Tensor)>),
}

/// Bytes of a box of the group; none where it has no boxes.
fn room(site: &Site) -> usize {
    site.boxes.map_or(0, |boxes| boxes[0].bytes())
}

/// Most bytes that a member reads where all read all.
fn most_for_all(site: &Site) -> usize {
    site.boxes.map_or(0, |[boxed, _]| algorithm::most_for_all(boxed.bytes(), boxed.is_mapped()))
}

impl OneShot {
    /// The result of all windows, in `out` of each member that `takes` it; none where two rounds
    /// are better.
    ///
    /// # Errors
    /// As the reduction in two rounds.
    pub(crate) fn reduce_whole(
        window: &Window,
        plan: &EvenPlan,
        out: &Tensor,
        takes: impl Fn(usize) -> bool,
        site: &Site,
    ) -> Result<Option<OneShot>> {
        let (range, members) = (plan.range(), site.members.len());
        let bytes = range.len() * plan.dtype().bytes();
        if !algorithm::is_one_round_for_all(bytes, members, most_for_all(site)) {
            return Ok(None);
        }
        let whole = |member| takes(member).then_some(0..range.len()).into_iter().collect();
        let segments = (0..members).map(whole).collect();
        OneShot::reduce(window, plan, site, &|boxed| OrderedReduce {
            range: 0..range.len(),
            segments: Arc::clone(&segments),
            ..plan.reduce(boxed, out.clone())
        })
    }

    /// Each member's share of the sum over all windows; none where two rounds are better.
    ///
    /// # Errors
    /// As the reduction in two rounds.
    pub(crate) fn reduce_scatter(
        window: &Window,
        plan: &EvenPlan,
        out: &Tensor,
        site: &Site,
    ) -> Result<Option<OneShot>> {
        let (range, place) = (plan.range(), site.members.place);
        let bytes = range.len() * plan.dtype().bytes();
        let is_small = algorithm::is_one_round(bytes, room(site));
        if !is_small || plan.segments().len() <= place {
            return Ok(None);
        }
        let in_box =
            |segment: &Range<usize>| segment.start - range.start..segment.end - range.start;
        let segments = plan.segments().iter().map(|own| own.iter().map(in_box).collect());
        let segments: Segments = segments.collect();
        let places = plan.segments()[place].iter().map(|segment| segment.start).collect();
        let places: Arc<[usize]> = places;
        OneShot::reduce(window, plan, site, &|boxed| OrderedReduce {
            range: 0..range.len(),
            segments: Arc::clone(&segments),
            places: Some(Arc::clone(&places)),
            ..plan.reduce(boxed, out.clone())
        })
    }

    /// A sum of what is in the boxes, as `reduce` makes it of the box of a turn.
    fn reduce(
        window: &Window,
        plan: &EvenPlan,
        site: &Site,
        reduce: &dyn Fn(&Window) -> OrderedReduce,
    ) -> Result<Option<OneShot>> {
        let (range, dtype) = (plan.range(), plan.dtype());
        let Some(boxes) = site.boxes.filter(|_| !range.is_empty()) else { return Ok(None) };
        window.check(site.group)?;
        let from = window.tensor(range.start, &[range.len()], dtype)?.as_bytes();
        let reductions = [reduce(&boxes[0]).checked(site)?, reduce(&boxes[1]).checked(site)?];
        // Elsewhere in the window is another operation.
        let digest = reductions[0].digest.wrapping_add(range.start as u64);
        let (place, peers) = (site.members.place, site.members.len() - 1);
        let of = |member: usize| {
            Joined { segments: &reductions[0].op.segments[member] }.len() * dtype.bytes()
        };
        // As the peers count it: the segments that they own.
        let (sent_bytes, received_bytes) = (site.members.peers().map(of).sum(), peers * of(place));
        let turn = |reduction: Box<Reduction>, boxed: &Window| -> Result<Turn> {
            let own = boxed.of_member(place, 0, range.len(), dtype)?.as_bytes();
            let ready = boxed.is_mapped().then(|| ordered::ready(&reduction, place)).transpose()?;
            let take = ready.flatten().map_or(Take::Sum(reduction), Take::Ready);
            Ok(Turn { own, take })
        };
        let [first, second] = reductions;
        let turns = [turn(first, &boxes[0])?, turn(second, &boxes[1])?];
        let operation = Operation::ReduceScatterOrdered;
        Ok(Some(OneShot { from, turns, operation, digest, sent_bytes, received_bytes }))
    }

    /// A gather, into the window or into other memory, of which `into` gives the bytes that are
    /// these of the window; none where two rounds are better, or peers' boxes are out of reach.
    ///
    /// # Errors
    /// Segments out of bounds.
    pub(crate) fn gather(
        gather: &Gather,
        digest: u64,
        site: &Site,
        into: Option<&dyn Fn(Range<usize>) -> Result<Tensor>>,
    ) -> Result<Option<OneShot>> {
        let (Some(boxes), place) = (site.boxes, site.members.place) else { return Ok(None) };
        let one_range = |segments: &Vec<Range<usize>>| segments.len() <= 1;
        let all: usize = gather.segments.iter().flatten().map(|range| range.len()).sum();
        let bytes = all * gather.element_bytes;
        let is_small = all > 0 && algorithm::is_one_round(bytes, most_for_all(site));
        if !is_small || !gather.segments.iter().all(one_range) || !boxes[0].is_mapped() {
            return Ok(None);
        }
        let bytes = |place: usize| {
            let range = gather.segments[place].first().cloned().unwrap_or(0..0);
            range.start * gather.element_bytes..range.end * gather.element_bytes
        };
        let part = |range: Range<usize>| -> Result<Tensor> {
            Ok(gather.window.tensor(range.start, &[range.len()], DType::U8)?)
        };
        // This member's own part is there already, in the window.
        let (is_apart, into) = (into.is_some(), into.unwrap_or(&part));
        let turn = |boxed: &Window| -> Result<Turn> {
            let in_box = |member, len| boxed.of_member(member, 0, len, DType::U8);
            let taken = (0..gather.segments.len()).filter(|&peer| peer != place || is_apart);
            let copies = taken.filter(|&peer| !bytes(peer).is_empty()).map(|peer| {
                let range = bytes(peer);
                Ok((in_box(peer, range.len())?, into(range)?))
            });
            let take = Take::Copies(copies.collect::<Result<_>>()?);
            Ok(Turn { own: in_box(place, bytes(place).len())?, take })
        };
        let turns = [turn(&boxes[0])?, turn(&boxes[1])?];
        let (from, operation) = (part(bytes(place))?, Operation::AllGatherSegments);
        let (sent_bytes, peers) = (from.bytes() * (site.members.len() - 1), site.members.peers());
        let received_bytes = peers.map(|peer| bytes(peer).len()).sum();
        Ok(Some(OneShot { from, turns, operation, digest, sent_bytes, received_bytes }))
    }

    pub(crate) fn operation(&self) -> Operation {
        self.operation
    }

    /// Whether it makes sums on another device than the group's.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(&self.turns[0].take, Take::Sum(reduction) if reduction.sums.is_elsewhere())
    }

    /// The tensor that this member gives, and the boxes of the operation with this number.
    pub(crate) fn turn(&self, sequence: u64) -> (&Tensor, &Turn) {
        (&self.from, &self.turns[(sequence % 2) as usize])
    }
}
