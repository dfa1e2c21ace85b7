//! The operations of a group, as data that is made once and used for many calls.

use std::ops::Range;
use std::sync::Arc;

use device::{DType, DeviceError, Tensor};
use kernels::ordered_sum::can_give;
use layout::{Node, Program};

use crate::digest::Digest;
use crate::elsewhere::AllLanes;
use crate::hosts::{GatherByHosts, Hosts, ReduceByHosts};
use crate::job::Members;
use crate::one_shot::{Boxes, OneShot};
use crate::ordered::Sums;
use crate::rooted;
use crate::{CommError, EvenPlan, Operation, RedOp, Result, Window};

/// Of every member: elements of a window or tensor, disjoint.
pub type Segments = Arc<[Vec<Range<usize>>]>;

/// An operation of a group. Members are named by their places in it. All but an exchange are
/// collective: every member calls the same ones in the same order, with the same arguments but for
/// its own memory, and in the same form: into the window, or into another.
///
/// Other memory than a window (`into`, and `out` of [`Op::Reduce`]) is flat, on the group's device,
/// apart from the window, and filled from its first element on, which is the first of the plan or
/// the range, or of a scatter that of the share.
#[derive(Debug, Clone)]
pub enum Op {
    /// Is done when every member has come to it.
    Barrier,
    /// Each owner reduces the partials of all members over its segments.
    ReduceScatterOrdered(OrderedReduce),
    /// Afterwards every member's window holds the segments of every member.
    AllGatherSegments(Gather),
    /// Reduces the windows of all members in the order of the plan's tree (leaf `i` is member `i`)
    /// and gives every member the result: an ordered reduction in place, then a gather. Counted as
    /// those.
    AllReduce { window: Window, plan: EvenPlan },
    /// As [`Op::AllReduce`], into another window, which is indexed like the first and as large: of
    /// that, too, peers reach a part.
    AllReduceInto { window: Window, plan: EvenPlan, into: Window },
    /// As [`Op::AllReduce`] without the gather: `out`, indexed like the window, holds the results
    /// of this member's share.
    ReduceScatter { window: Window, plan: EvenPlan, out: Tensor },
    /// As [`Op::AllReduce`] for `root` alone, whose results go to `out` or, without one, to its
    /// window. The other windows stay as they are; what they say of `out` counts for nothing.
    Reduce { window: Window, plan: EvenPlan, root: usize, out: Option<Tensor> },
    /// Afterwards every window holds every member's share.
    AllGather { window: Window, plan: EvenPlan },
    /// As [`Op::AllGather`], into other memory; the windows stay as they are.
    AllGatherInto { window: Window, plan: EvenPlan, into: Tensor },
    /// Afterwards `into` of `root` or, without one, its window holds every member's share. The
    /// other windows stay as they are; what they say of `into` counts for nothing.
    Gather { window: Window, plan: EvenPlan, root: usize, into: Option<Tensor> },
    /// Afterwards `into` of each member or, without one, its window holds its share of the window
    /// of `root`.
    Scatter { window: Window, plan: EvenPlan, root: usize, into: Option<Tensor> },
    /// Copies `range` (elements of `element_bytes` each) of the window of `root` to every window.
    Broadcast { window: Window, root: usize, element_bytes: usize, range: Range<usize> },
    /// As [`Op::Broadcast`], into other memory of every member, the root's as well.
    BroadcastInto {
        window: Window,
        root: usize,
        element_bytes: usize,
        range: Range<usize>,
        into: Tensor,
    },
    /// Each member gives every member a part of its window.
    AllToAll(AllToAll),
    /// Messages between pairs, all at the same time; only those take part that send or receive.
    Exchange(Vec<P2p>),
}

/// Reduces the partials of all members into the segments of their owners.
///
/// Input `i` of `program` is the `i`-th partial of all members in their order, which is leaf order,
/// since ranks host contiguous leaf ranges. Every owner computes, for each of its elements, that
/// program's left-to-right floating-point additions; so the result has the same bits for every
/// number of ranks that hosts the same leaves.
#[derive(Debug, Clone)]
pub struct OrderedReduce {
    /// Gradient buffers; slot `s` has the same length on every member.
    pub slots: Arc<[Window]>,
    /// Type of the partials, which [`kernels::ordered_sum::computed_in`] says what is computed in.
    pub dtype: DType,
    /// By what they are combined.
    pub redop: RedOp,
    /// Of every member: each partial's tree node and the slot that holds it there.
    pub partials: Arc<[Vec<(Node, usize)>]>,
    /// Over all partials, as made by [`layout::Tree::combine`].
    pub program: Arc<Program>,
    /// The bucket, in elements of a slot.
    pub range: Range<usize>,
    /// Of every member: the elements it owns, disjoint and cut to the bucket.
    pub segments: Segments,
    /// Of a type that [`kernels::ordered_sum::can_give`] names, flat; only this member's segments
    /// are written. Indexed like the slots it may be the memory of one of this member's slots
    /// (whole, from its first element, and of the same type). It may lie on another device than the
    /// slots, where whatever used it before has been waited for: partials are then copied there and
    /// reduced there, to the same bits.
    pub out: Tensor,
    /// Where each of this member's own segments begins in `out`, in memory of its own; `None`:
    /// where it begins in the slots.
    pub places: Option<Arc<[usize]>>,
}

/// A gather: of every member, the elements (of `element_bytes` each) that it holds before.
#[derive(Debug, Clone)]
pub struct Gather {
    pub window: Window,
    pub element_bytes: usize,
    pub segments: Segments,
}

/// A personalized exchange: member `r` finds in `into[receive[s]]` what member `s` has in
/// `from[send[r]]`.
#[derive(Debug, Clone)]
pub struct AllToAll {
    pub from: Window,
    /// Per destination: elements of this member's window.
    pub send: Vec<Range<usize>>,
    /// Flat; not the memory of `from`. Its type gives the size of an element.
    pub into: Tensor,
    /// Per source: elements of `into`, disjoint, as many as that member sends.
    pub receive: Vec<Range<usize>>,
}

/// One message of an exchange. Messages from one member to another arrive in the order in which
/// they were sent, in one exchange as in several.
#[derive(Debug, Clone)]
pub enum P2p {
    Send {
        to: usize,
        tensor: Tensor,
    },
    /// The next message from there, of exactly the size of `tensor`.
    Receive {
        from: usize,
        tensor: Tensor,
    },
}

impl P2p {
    pub(crate) fn peer(&self) -> usize {
        match self {
            P2p::Send { to, .. } => *to,
            P2p::Receive { from, .. } => *from,
        }
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        match self {
            P2p::Send { tensor, .. } | P2p::Receive { tensor, .. } => tensor,
        }
    }

    pub(crate) fn is_send(&self) -> bool {
        matches!(self, P2p::Send { .. })
    }
}

/// The group of a member, as far as its operations depend on it.
pub(crate) struct Site<'a> {
    /// The number of its windows.
    pub group: u64,
    pub members: &'a Members,
    /// For what is small, where the group has them.
    pub boxes: Option<&'a Boxes>,
    pub lanes: &'a AllLanes,
    /// On which its members are, where operations may go by hosts.
    pub hosts: Option<Hosts>,
}

/// Operations of a transport; every [`Op`] is one or two of these.
pub(crate) enum Step {
    Barrier,
    OneShot(OneShot),
    Reduce(Box<Reduction>),
    /// A reduction into a window that all members reach, whose owners write their results to all.
    ReduceToAll(Box<Reduction>, Window),
    Gather(Gather, u64),
    ReduceByHosts(Box<ReduceByHosts>),
    GatherByHosts(Box<GatherByHosts>),
    AllToAll(AllToAll),
    Exchange(Vec<P2p>),
}

/// A checked ordered reduction.
pub(crate) struct Reduction {
    pub op: OrderedReduce,
    pub sums: Sums,
    pub digest: u64,
}

impl Step {
    /// Whether it makes sums on another device than the group's.
    pub(crate) fn is_elsewhere(&self) -> bool {
        match self {
            Step::Reduce(reduction) | Step::ReduceToAll(reduction, _) => {
                reduction.sums.is_elsewhere()
            }
            Step::ReduceByHosts(reduction) => reduction.across.sums.is_elsewhere(),
            Step::OneShot(shot) => shot.is_elsewhere(),
            _ => false,
        }
    }

    pub(crate) fn is_by_hosts(&self) -> bool {
        matches!(self, Step::ReduceByHosts(_) | Step::GatherByHosts(_))
    }

    pub(crate) fn operation(&self) -> Operation {
        match self {
            Step::Barrier => Operation::Barrier,
            Step::OneShot(shot) => shot.operation(),
            Step::Reduce(_) | Step::ReduceToAll(..) | Step::ReduceByHosts(_) => {
                Operation::ReduceScatterOrdered
            }
            Step::Gather(..) | Step::GatherByHosts(_) => Operation::AllGatherSegments,
            Step::AllToAll(_) => Operation::AllToAll,
            Step::Exchange(_) => Operation::Exchange,
        }
    }
}

impl Op {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Op::Barrier => "barrier",
            Op::ReduceScatterOrdered(_) => "reduce_scatter_ordered",
            Op::AllGatherSegments(_) => "all_gather_segments",
            Op::AllReduce { .. } | Op::AllReduceInto { .. } => "all_reduce",
            Op::ReduceScatter { .. } => "reduce_scatter",
            Op::Reduce { .. } => "reduce",
            Op::AllGather { .. } | Op::AllGatherInto { .. } => "all_gather",
            Op::Gather { .. } => "gather",
            Op::Scatter { .. } => "scatter",
            Op::Broadcast { .. } | Op::BroadcastInto { .. } => "broadcast",
            Op::AllToAll(_) => "all_to_all",
            Op::Exchange(_) => "exchange",
        }
    }

    /// The steps of this operation for a member.
    pub(crate) fn steps(self, site: &Site) -> Result<Vec<Step>> {
        let (group, members) = (site.group, site.members);
        let (place, world) = (members.place, members.len());
        let gather = |op: Gather| op.step(site);
        Ok(match self {
            Op::Barrier => vec![Step::Barrier],
            Op::ReduceScatterOrdered(op) => {
                check_disjoint("reduce segments", op.segments.iter().flatten())?;
                vec![op.step(site)?]
            }
            Op::AllGatherSegments(op) => vec![gather(op)?],
            Op::AllReduce { window, plan } => rooted::all_reduce(&window, &plan, &window, site)?,
            Op::AllReduceInto { window, plan, into } => {
                rooted::all_reduce(&window, &plan, &into, site)?
            }
            Op::ReduceScatter { window, plan, out } => {
                if let Some(shot) = OneShot::reduce_scatter(&window, &plan, &out, site)? {
                    return Ok(vec![Step::OneShot(shot)]);
                }
                vec![plan.reduce(&window, out).step(site)?]
            }
            Op::Reduce { window, plan, root, out } => {
                vec![rooted::reduce(&window, &plan, root, out, site)?]
            }
            Op::AllGather { window, plan } => vec![gather(plan.gather(window))?],
            Op::AllGatherInto { window, plan, into } => {
                rooted::gather_into(plan.gather(window), &plan.range(), &into, site)?
            }
            Op::Gather { window, plan, root, into } => {
                vec![rooted::gather(window, &plan, root, into, site)?]
            }
            Op::Scatter { window, plan, root, into } => {
                vec![rooted::scatter(window, &plan, root, into, site)?]
            }
            Op::Broadcast { window, root, element_bytes, range } => {
                let segments = rooted::only(root, range, world)?;
                vec![gather(Gather { window, element_bytes, segments })?]
            }
            Op::BroadcastInto { window, root, element_bytes, range, into } => {
                let segments = rooted::only(root, range.clone(), world)?;
                let op = Gather { window, element_bytes, segments };
                rooted::gather_into(op, &range, &into, site)?
            }
            Op::AllToAll(op) => {
                op.check(group, world)?;
                vec![Step::AllToAll(op)]
            }
            Op::Exchange(messages) => {
                let stranger = |message: &&P2p| message.peer() >= world || message.peer() == place;
                if let Some(rank) = messages.iter().find(stranger).map(P2p::peer) {
                    return Err(match rank == place {
                        true => CommError::OwnMessage { rank: members.ranks[place] },
                        false => CommError::NoSuchRank { rank, world },
                    });
                }
                vec![Step::Exchange(messages)]
            }
        })
    }
}

impl OrderedReduce {
    /// Number of partials of all members.
    fn inputs(&self) -> usize {
        self.partials.iter().map(Vec::len).sum()
    }

    /// Where element `element` of the slots, of segment `segment` of the member at `place`, goes in
    /// `out`.
    pub(crate) fn place_in_out(&self, place: usize, segment: usize, element: usize) -> usize {
        match &self.places {
            None => element,
            Some(places) => places[segment] + element - self.segments[place][segment].start,
        }
    }

    /// By hosts, where that is how the group reduces it.
    pub(crate) fn step(self, site: &Site) -> Result<Step> {
        self.check_all(site)?;
        Ok(match ReduceByHosts::of(&self, site)? {
            Some(reduction) => Step::ReduceByHosts(Box::new(reduction)),
            None => Step::Reduce(self.checked(site)?),
        })
    }

    /// Proves that everything lies where it should, on this member.
    pub(crate) fn check_all(&self, site: &Site) -> Result<()> {
        self.check(site.group, site.members.len())?;
        self.check_places(site.members.place)
    }

    pub(crate) fn checked(self, site: &Site) -> Result<Box<Reduction>> {
        let place = site.members.place;
        self.check_all(site)?;
        let sums = Sums::new(&self, self.inputs(), place, site.lanes)?;
        let digest = self.digest();
        Ok(Box::new(Reduction { op: self, sums, digest }))
    }

    /// Proves that every range lies inside its memory and every slot exists.
    fn check(&self, group: u64, world: usize) -> Result<()> {
        let counts = [("partials", self.partials.len()), ("reduce segments", self.segments.len())];
        for (what, got) in counts {
            if got != world {
                return Err(CommError::PerRank { what, got, expected: world });
            }
        }
        let (dtype, sum) = (self.dtype, self.out.dtype());
        if !can_give(dtype, sum) {
            return Err(CommError::SumType { dtype, sum });
        }
        let mut len = if self.places.is_none() { self.out.len() } else { usize::MAX };
        for slot in self.slots.iter() {
            slot.check(group)?;
            len = len.min(slot.bytes() / self.dtype.bytes());
        }
        for (_, slot) in self.partials.iter().flatten() {
            let (start, end, len) = (*slot, slot + 1, self.slots.len());
            if end > len {
                return Err(CommError::Range { what: "slots of partials", start, end, len });
            }
        }
        let Range { start, end } = self.range;
        if end > len {
            return Err(CommError::Range { what: "bucket", start, end, len });
        }
        check_segments("reduce segments", &self.segments, &self.range)
    }

    /// Proves that own segments with places of their own lie inside `out`, apart from each other
    /// and from what is summed.
    fn check_places(&self, place: usize) -> Result<()> {
        let Some(places) = &self.places else { return Ok(()) };
        let (own, len) = (&self.segments[place], self.out.len());
        if places.len() != own.len() {
            let (what, got) = ("places in `out`", places.len());
            return Err(CommError::PerSegment { what, got, expected: own.len() });
        }
        let spans = places.iter().zip(own).map(|(&at, own)| at..at.saturating_add(own.len()));
        let spans: Vec<Range<usize>> = spans.collect();
        let what = "places in `out`";
        if let Some(&Range { start, end }) = spans.iter().find(|span| span.end > len) {
            return Err(CommError::Range { what, start, end, len });
        }
        check_disjoint(what, spans.iter())?;
        let is_out = |slot: &Window| slot.buffer().address() == self.out.buffer().address();
        match !self.out.is_empty() && self.slots.iter().any(is_out) {
            true => Err(DeviceError::Overlap { kernel: "reduce_scatter_ordered" }.into()),
            false => Ok(()),
        }
    }

    /// A fingerprint of everything that must agree between members.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        // Members may reduce to other types.
        digest.add(self.dtype as usize + 64 * self.redop as usize);
        digest.add_range(&self.range);
        for partials in self.partials.iter() {
            digest.add(partials.len());
            partials.iter().for_each(|(node, _)| digest.add_range(&node.leaves));
        }
        for op in &self.program.ops {
            digest.add(match *op {
                layout::ReduceOp::Push(input) => 3 * input,
                layout::ReduceOp::AddInput(input) => 3 * input + 1,
                layout::ReduceOp::Fold => 2,
            });
        }
        digest.add_segments(&self.segments);
        self.slots.iter().for_each(|slot| digest.add(slot.number()));
        digest.value()
    }
}

impl Gather {
    pub(crate) fn step(self, site: &Site) -> Result<Step> {
        let digest = self.check(site.group, site.members.len())?;
        if let Some(shot) = OneShot::gather(&self, digest, site, None)? {
            return Ok(Step::OneShot(shot));
        }
        Ok(match GatherByHosts::of(&self, digest, site) {
            Some(gather) => Step::GatherByHosts(Box::new(gather)),
            None => Step::Gather(self, digest),
        })
    }

    /// A fingerprint of everything that must agree between members.
    pub(crate) fn check(&self, group: u64, world: usize) -> Result<u64> {
        self.window.check(group)?;
        let (what, got) = ("gather segments", self.segments.len());
        if got != world {
            return Err(CommError::PerRank { what, got, expected: world });
        }
        let len = self.window.bytes() / self.element_bytes.max(1);
        check_segments(what, &self.segments, &(0..len))?;
        check_disjoint(what, self.segments.iter().flatten())?;
        let mut digest = Digest::default();
        digest.add(self.element_bytes);
        digest.add_segments(&self.segments);
        digest.add(self.window.number());
        Ok(digest.value())
    }
}

impl Gather {
    /// The member that has something, where it is one alone.
    pub(crate) fn only_giver(&self) -> Option<usize> {
        let mut givers = self.segments.iter().enumerate().filter(|(_, own)| !own.is_empty());
        let (first, second) = (givers.next(), givers.next());
        first.map(|(member, _)| member).filter(|_| second.is_none() && self.segments.len() > 1)
    }
}

impl AllToAll {
    /// A fingerprint of what must agree between members: the size of an element and the window.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        digest.add(self.into.dtype().bytes());
        digest.add(self.from.number());
        digest.value()
    }

    pub(crate) fn check(&self, group: u64, world: usize) -> Result<()> {
        self.from.check(group)?;
        let len = self.from.bytes() / self.into.dtype().bytes();
        let sides =
            [("send ranges", &self.send, len), ("receive ranges", &self.receive, self.into.len())];
        for (what, ranges, len) in sides {
            if ranges.len() != world {
                return Err(CommError::PerRank { what, got: ranges.len(), expected: world });
            }
            for &Range { start, end } in ranges {
                if start > end || end > len {
                    return Err(CommError::Range { what, start, end, len });
                }
            }
        }
        check_disjoint("receive ranges", self.receive.iter())
    }
}

/// Proves that no two ranges meet: what one member writes no other touches.
fn check_disjoint<'a>(
    what: &'static str,
    ranges: impl Iterator<Item = &'a Range<usize>>,
) -> Result<()> {
    let mut ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    match ranges.windows(2).find(|pair| pair[0].end > pair[1].start) {
        None => Ok(()),
        Some(pair) => {
            let [first, second] = [0, 1].map(|index| pair[index].clone());
            Err(CommError::Overlap { what, first, second })
        }
    }
}

/// Proves that segments lie inside `bounds`.
fn check_segments(
    what: &'static str,
    segments: &[Vec<Range<usize>>],
    bounds: &Range<usize>,
) -> Result<()> {
    for &Range { start, end } in segments.iter().flatten() {
        if start > end || start < bounds.start || end > bounds.end {
            return Err(CommError::Range { what, start, end, len: bounds.end });
        }
    }
    Ok(())
}
