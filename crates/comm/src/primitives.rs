//! The operations that all others are made of, as data: an ordered reduction, a gather of segments,
//! a personalized exchange, and messages. Each proves that its ranges lie inside its memory and
//! that what one member writes no other touches, and has a fingerprint of all that members must
//! agree on.

use std::ops::Range;
use std::sync::Arc;

use device::{DType, DeviceError, Tensor};
use kernels::ordered_sum::can_give;
use layout::{Node, SumProgram};

use crate::digest::Digest;
use crate::{CommError, RedOp, Result, Window};

/// Of every member: elements of a window or tensor, disjoint.
pub type Segments = Arc<[Vec<Range<usize>>]>;

/// Reduces the partials of all members into the segments of their owners.
///
/// Input `i` of `program` is the `i`-th partial of all members in their order, which is leaf order,
/// since ranks host contiguous leaf ranges. Every owner computes, for each of its elements, that
/// program's left-to-right floating-point additions; so the result has the same bits for every
/// number of ranks that hosts the same leaves.
#[derive(Debug, Clone)]
pub struct OrderedReduce {
    /// Gradient buffers; buffer `s` has the same length on every member.
    pub buffers: Arc<[Window]>,
    /// Type of the partials, which [`kernels::ordered_sum::computed_in`] says what is computed in.
    pub dtype: DType,
    /// By what they are combined.
    pub redop: RedOp,
    /// Of every member: each partial's tree node and the buffer that holds it there.
    pub partials: Arc<[Vec<(Node, usize)>]>,
    /// Over all partials, as made by [`layout::Tree::combine`].
    pub program: Arc<SumProgram>,
    /// The bucket, in elements of a buffer.
    pub range: Range<usize>,
    /// Of every member: the elements it owns, disjoint and cut to the bucket.
    pub segments: Segments,
    /// Of a type that [`kernels::ordered_sum::can_give`] names, flat; only this member's segments
    /// are written. Indexed like the buffers it may be the memory of one of this member's buffers
    /// (whole, from its first element, and of the same type). It may lie on another device than the
    /// buffers, where whatever used it before has been waited for: partials are then copied there
    /// and reduced there, to the same bits.
    pub out: Tensor,
    /// Where each of this member's own segments begins in `out`, in memory of its own; `None`:
    /// where it begins in the buffers.
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

impl OrderedReduce {
    /// Number of partials of all members.
    pub(crate) fn inputs(&self) -> usize {
        self.partials.iter().map(Vec::len).sum()
    }

    /// Where element `element` of the buffers, of segment `segment` of the member at `place`, goes
    /// in `out`.
    pub(crate) fn place_in_out(&self, place: usize, segment: usize, element: usize) -> usize {
        match &self.places {
            None => element,
            Some(places) => places[segment] + element - self.segments[place][segment].start,
        }
    }

    /// Proves that every range lies inside its memory and every buffer exists.
    pub(crate) fn check(&self, group: u64, world: usize) -> Result<()> {
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
        for buffer in self.buffers.iter() {
            buffer.check(group)?;
            len = len.min(buffer.bytes() / self.dtype.bytes());
        }
        for (_, buffer) in self.partials.iter().flatten() {
            let (start, end, len) = (*buffer, buffer + 1, self.buffers.len());
            if end > len {
                return Err(CommError::Range { what: "buffers of partials", start, end, len });
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
    pub(crate) fn check_places(&self, place: usize) -> Result<()> {
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
        let is_out = |window: &Window| window.buffer().address() == self.out.buffer().address();
        match !self.out.is_empty() && self.buffers.iter().any(is_out) {
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
        self.buffers.iter().for_each(|buffer| digest.add(buffer.number()));
        digest.value()
    }
}

impl Gather {
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
pub(crate) fn check_disjoint<'a>(
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
