//! The ordered reduction as data: who holds which partial sums, who owns which elements, and the
//! fixed order in which an owner adds them.

use std::ops::Range;

use device::Tensor;
use layout::{Node, Program};

use crate::{CommError, Window};

/// Sums the partials of all ranks into the segments of their owners.
///
/// Input `i` of `program` is the `i`-th partial of all ranks in rank order, which is leaf order,
/// since ranks host contiguous leaf ranges. Every owner computes, for each of its elements, that
/// program's left-to-right floating-point additions; so the result has the same bits for every
/// number of ranks that hosts the same leaves.
pub struct OrderedReduce<'a> {
    /// Gradient buffers; slot `s` has the same length on every rank.
    pub slots: &'a [Window],
    /// Of every rank: each partial's tree node and the slot that holds it there.
    pub partials: &'a [Vec<(Node, usize)>],
    /// Over all partials, as made by [`layout::Tree::combine`].
    pub program: &'a Program,
    /// The bucket, in elements of a slot.
    pub range: Range<usize>,
    /// Of every rank: the elements it owns, disjoint and cut to the bucket.
    pub segments: &'a [Vec<Range<usize>>],
    /// f32 or f64, flat, indexed like the slots; only this rank's segments are written. It may be
    /// the memory of one of this rank's slots (whole, from its first element).
    pub out: &'a Tensor,
}

impl OrderedReduce<'_> {
    /// Number of partials of all ranks.
    pub(crate) fn inputs(&self) -> usize {
        self.partials.iter().map(Vec::len).sum()
    }

    /// The rank that holds input `input`, and which of that rank's partials it is.
    pub(crate) fn holder(&self, mut input: usize) -> Option<(usize, usize)> {
        for (rank, partials) in self.partials.iter().enumerate() {
            if input < partials.len() {
                return Some((rank, input));
            }
            input -= partials.len();
        }
        None
    }

    /// Proves that every range lies inside its memory and every slot exists.
    pub(crate) fn check(&self, rank: usize, world: usize) -> Result<(), CommError> {
        let counts = [("partials", self.partials.len()), ("reduce segments", self.segments.len())];
        for (what, got) in counts {
            if got != world {
                return Err(CommError::PerRank { what, got, expected: world });
            }
        }
        let mut len = self.out.len();
        for slot in self.slots {
            slot.check(rank, world)?;
            len = len.min(slot.bytes() / self.out.dtype().bytes());
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
        check_segments("reduce segments", self.segments, &self.range)
    }

    /// A fingerprint of everything that must agree between ranks.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = Digest::default();
        digest.add(self.out.dtype().bytes());
        digest.add_range(&self.range);
        for partials in self.partials {
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
        digest.add_segments(self.segments);
        digest.value()
    }
}

/// Proves that segments lie inside `bounds`.
pub(crate) fn check_segments(
    what: &'static str,
    segments: &[Vec<Range<usize>>],
    bounds: &Range<usize>,
) -> Result<(), CommError> {
    for &Range { start, end } in segments.iter().flatten() {
        if start > end || start < bounds.start || end > bounds.end {
            return Err(CommError::Range { what, start, end, len: bounds.end });
        }
    }
    Ok(())
}

/// Proves that a gather's segments lie inside its window.
pub(crate) fn check_gather(
    window: &Window,
    element_bytes: usize,
    segments: &[Vec<Range<usize>>],
    rank: usize,
    world: usize,
) -> Result<(), CommError> {
    window.check(rank, world)?;
    let (what, got) = ("gather segments", segments.len());
    if got != world {
        return Err(CommError::PerRank { what, got, expected: world });
    }
    check_segments(what, segments, &(0..window.bytes() / element_bytes.max(1)))
}

/// A 64-bit FNV-1a-style hash over whole words: ranks compare it to notice different arguments,
/// so it guards against mistakes, not against an adversary. Offset basis and prime are those of
/// FNV (Fowler, Noll, Vo 1991).
#[derive(Clone, Copy)]
pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Digest {
        Digest(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub(crate) fn add(&mut self, word: usize) {
        self.0 = (self.0 ^ word as u64).wrapping_mul(0x0000_0100_0000_01b3);
        // The multiplication only moves information upwards; bring the high half back down.
        self.0 ^= self.0 >> 32;
    }

    pub(crate) fn add_range(&mut self, range: &Range<usize>) {
        self.add(range.start);
        self.add(range.end);
    }

    pub(crate) fn add_segments(&mut self, segments: &[Vec<Range<usize>>]) {
        for segments in segments {
            self.add(segments.len());
            segments.iter().for_each(|range| self.add_range(range));
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}
