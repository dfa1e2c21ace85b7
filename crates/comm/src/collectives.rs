//! The classical collectives as data for the two primitives: ordered reduction, segment gather.

use std::ops::Range;
use std::sync::Arc;

use device::{DType, Tensor};
use layout::{Node, Program, Tree};

use crate::{Gather, OrderedReduce, Segments, Window};

/// An even division of a window's elements among the members, and the order of their sum; made
/// once, used for many calls. Clones are handles to the same.
#[derive(Debug, Clone)]
pub struct EvenPlan {
    partials: Arc<[Vec<(Node, usize)>]>,
    program: Arc<Program>,
    segments: Segments,
    range: Range<usize>,
    dtype: DType,
}

impl EvenPlan {
    /// A plan over elements `range` for as many members as `tree` has leaves. Shares differ by one
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
            program: tree.combine(&nodes).into(),
            partials: nodes.into_iter().map(|node| vec![(node, 0)]).collect(),
            segments,
            range,
            dtype,
        }
    }

    /// Of every member: its share.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements of the window that it is about.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    pub(crate) fn reduce(&self, window: &Window, out: Tensor) -> OrderedReduce {
        OrderedReduce {
            slots: [window.clone()].into(),
            dtype: self.dtype,
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
