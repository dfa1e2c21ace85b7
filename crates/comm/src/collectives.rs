//! The classical collectives as data for the two primitives (ordered reduction, segment gather)
//! and the personalized exchange.

use std::ops::Range;

use device::{DType, Tensor};
use layout::{Node, Program, Tree};

use crate::{CommError, OrderedReduce, Result, Window};

/// An even division of a window's elements among the ranks, and the order of their sum; made
/// once, used for many calls.
#[derive(Debug, Clone)]
pub struct EvenPlan {
    partials: Vec<Vec<(Node, usize)>>,
    program: Program,
    segments: Vec<Vec<Range<usize>>>,
    range: Range<usize>,
    dtype: DType,
}

impl EvenPlan {
    /// A plan over elements `range` for as many ranks as `tree` has leaves. Shares differ by one
    /// element at most, larger ones first.
    pub fn new(tree: &Tree, range: Range<usize>, dtype: DType) -> EvenPlan {
        let world = tree.leaves();
        let nodes: Vec<Node> = (0..world).map(|rank| Node { leaves: rank..rank + 1 }).collect();
        let (share, extra) = (range.len() / world, range.len() % world);
        let segments = (0..world)
            .map(|rank| {
                let start = range.start + rank * share + rank.min(extra);
                std::iter::once(start..start + share + usize::from(rank < extra)).collect()
            })
            .collect();
        EvenPlan {
            program: tree.combine(&nodes),
            partials: nodes.into_iter().map(|node| vec![(node, 0)]).collect(),
            segments,
            range,
            dtype,
        }
    }

    /// Of every rank: its share.
    pub fn segments(&self) -> &[Vec<Range<usize>>] {
        &self.segments
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The whole of this rank's part of `window`, flat.
    pub(crate) fn tensor(&self, window: &Window) -> Result<Tensor> {
        Ok(window.tensor(0, &[window.bytes() / self.dtype.bytes()], self.dtype)?)
    }

    pub(crate) fn reduce<'a>(&'a self, window: &'a Window, out: &'a Tensor) -> OrderedReduce<'a> {
        OrderedReduce {
            slots: std::slice::from_ref(window),
            partials: &self.partials,
            program: &self.program,
            range: self.range.clone(),
            segments: &self.segments,
            out,
        }
    }
}

/// A personalized exchange: rank `r` finds in `into[receive[s]]` what rank `s` has in
/// `from[send[r]]`.
pub struct AllToAll<'a> {
    pub from: &'a Window,
    /// Per destination: elements of this rank's window.
    pub send: &'a [Range<usize>],
    /// Flat; not the memory of `from`. Its type gives the size of an element.
    pub into: &'a Tensor,
    /// Per source: elements of `into`, disjoint, as many as that rank sends.
    pub receive: &'a [Range<usize>],
}

impl AllToAll<'_> {
    pub(crate) fn check(&self, rank: usize, world: usize) -> Result<()> {
        self.from.check(rank, world)?;
        let len = self.from.bytes() / self.into.dtype().bytes();
        let sides =
            [("send ranges", self.send, len), ("receive ranges", self.receive, self.into.len())];
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
        Ok(())
    }
}
