//! The classical collectives as data for the two primitives: ordered reduction, segment gather.

use std::ops::Range;
use std::sync::Arc;

use device::{DType, Tensor};
use kernels::ordered_sum::RedOp;
use layout::{Node, SumProgram, Tree};

use crate::{Gather, OrderedReduce, Segments, Window};

/// A division of a window's elements among the members, an even one if nothing else is asked for,
/// and the order of their reduction; made once, used for many calls. Clones are handles to the
/// same.
#[derive(Debug, Clone)]
pub struct EvenPlan {
    partials: Arc<[Vec<(Node, usize)>]>,
    program: Arc<SumProgram>,
    segments: Segments,
    range: Range<usize>,
    dtype: DType,
    redop: RedOp,
}

impl EvenPlan {
    /// A plan over elements `range` for as many members as `tree` has leaves. Shares differ by one
    /// element at most, larger ones first.
    pub fn new(tree: &Tree, range: Range<usize>, dtype: DType) -> EvenPlan {
        let world = tree.leaves();
        let (share, extra) = (range.len() / world, range.len() % world);
        let counts: Vec<usize> = (0..world).map(|rank| share + usize::from(rank < extra)).collect();
        EvenPlan::with_counts(tree, range.start, &counts, dtype)
    }

    /// A plan with shares of these sizes, one after another from element `start` on, of as many
    /// members as `tree` has leaves.
    pub fn with_counts(tree: &Tree, start: usize, counts: &[usize], dtype: DType) -> EvenPlan {
        let nodes: Vec<Node> =
            (0..tree.leaves()).map(|rank| Node { leaves: rank..rank + 1 }).collect();
        let mut end = start;
        let segment = |&count: &usize| {
            let start = end;
            end = start + count;
            std::iter::once(start..end).collect()
        };
        let segments = counts.iter().map(segment).collect();
        EvenPlan {
            program: tree.combine(&nodes).into(),
            partials: nodes.into_iter().map(|node| vec![(node, 0)]).collect(),
            segments,
            range: start..end,
            dtype,
            redop: RedOp::Sum,
        }
    }

    /// This plan for reductions by `redop` in the place of sums.
    pub fn reducing(self, redop: RedOp) -> EvenPlan {
        EvenPlan { redop, ..self }
    }

    /// Of every member: its share.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn redop(&self) -> RedOp {
        self.redop
    }

    /// The elements of the window that it is about.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    pub(crate) fn reduce(&self, window: &Window, out: Tensor) -> OrderedReduce {
        OrderedReduce {
            buffers: [window.clone()].into(),
            dtype: self.dtype,
            redop: self.redop,
            partials: Arc::clone(&self.partials),
            program: Arc::clone(&self.program),
            range: self.range.clone(),
            segments: Arc::clone(&self.segments),
            out,
            places: None,
        }
    }

    pub(crate) fn gather(&self, window: Window) -> Gather {
        let segments = Arc::clone(&self.segments);
        Gather { window, element_bytes: self.dtype.bytes(), segments }
    }
}
