//! The operations of a group, as data that is made once and used for many calls.

use std::ops::Range;

use device::Tensor;

use crate::primitives::{AllToAll, Gather, OrderedReduce, P2p};
use crate::{EvenPlan, Window};

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
}
