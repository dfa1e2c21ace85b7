//! All parameters of a model in one flat buffer, cut into buckets.
//!
//! Invariants:
//!   * tensor order is schema order and does not depend on the number of ranks;
//!   * a tensor starts at a multiple of [`ALIGN`] elements unless it is `fused`;
//!   * buckets tile the buffer, are numbered in the order backward completes them (highest
//!     offsets first) and never cut a tensor or a run of fused tensors.

use std::ops::Range;

use crate::{LayoutError, Schema};

/// Alignment of a tensor that is not fused to the one before, in elements: one cache line of f32.
pub const ALIGN: usize = 16;

/// One unit of communication: a range of the flat buffer that holds whole tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Elements of the flat buffer, padding included.
    pub range: Range<usize>,
    /// The tensors inside.
    pub tensors: Range<usize>,
}

/// Offsets of tensors in the flat buffer and its buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatLayout {
    /// Start of each tensor, in elements.
    pub offsets: Vec<usize>,
    /// Length of each tensor, in elements.
    pub lens: Vec<usize>,
    /// Length of the buffer, in elements, padding included.
    pub len: usize,
    /// In backward order: `buckets[0]` is complete first.
    pub buckets: Vec<Bucket>,
}

impl FlatLayout {
    /// Lays the tensors of `schema` out; a bucket is closed once it holds `bucket_elements`.
    pub fn new(schema: &Schema, bucket_elements: usize) -> FlatLayout {
        let mut offsets = Vec::with_capacity(schema.tensors.len());
        let mut len = 0_usize;
        for tensor in &schema.tensors {
            if !tensor.fused {
                len = len.next_multiple_of(ALIGN);
            }
            offsets.push(len);
            len += tensor.len();
        }
        len = len.next_multiple_of(ALIGN);
        let lens = schema.tensors.iter().map(|tensor| tensor.len()).collect();
        let mut layout = FlatLayout { offsets, lens, len, buckets: Vec::new() };
        layout.buckets = layout.cut(schema, bucket_elements.max(1));
        layout
    }

    fn cut(&self, schema: &Schema, bucket_elements: usize) -> Vec<Bucket> {
        let mut buckets = Vec::new();
        let mut end = self.len;
        let mut last = schema.tensors.len();
        for index in (0..schema.tensors.len()).rev() {
            let start = self.offsets[index];
            let whole = !schema.tensors[index].fused;
            if whole && (end - start >= bucket_elements || index == 0) {
                buckets.push(Bucket { range: start..end, tensors: index..last });
                (end, last) = (start, index);
            }
        }
        buckets
    }

    /// The elements of tensor `index`.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index] + self.lens[index]
    }

    /// Checks that a per-tensor argument has an entry for each tensor.
    pub(crate) fn check_count(&self, what: &'static str, got: usize) -> Result<(), LayoutError> {
        if got == self.offsets.len() {
            return Ok(());
        }
        Err(LayoutError::Count { what, got, expected: self.offsets.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogicalTensor, Role};
    use proptest::prelude::*;

    fn schema(sizes: &[(usize, bool)]) -> Schema {
        let tensors = sizes.iter().enumerate().map(|(i, &(len, fused))| {
            let mut tensor = LogicalTensor::new(format!("t{i}"), &[len], Role::Vector);
            tensor.fused = fused && i > 0;
            tensor
        });
        Schema::new(tensors.collect()).unwrap()
    }

    proptest! {
        #[test]
        fn buckets_tile_and_keep_fused_runs_whole(
            sizes in prop::collection::vec((1_usize..200, any::<bool>()), 1..30),
            bucket in 1_usize..500,
        ) {
            let schema = schema(&sizes);
            let layout = FlatLayout::new(&schema, bucket);
            let mut end = layout.len;
            for bucket in &layout.buckets {
                prop_assert_eq!(bucket.range.end, end);
                prop_assert!(!schema.tensors[bucket.tensors.start].fused);
                end = bucket.range.start;
            }
            prop_assert_eq!(end, 0);
            for (i, tensor) in schema.tensors.iter().enumerate() {
                if tensor.fused {
                    prop_assert_eq!(layout.offsets[i], layout.range(i - 1).end);
                } else {
                    prop_assert_eq!(layout.offsets[i] % ALIGN, 0);
                }
            }
        }
    }
}
