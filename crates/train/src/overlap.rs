//! Reductions that begin while backward goes on.
//!
//! ```text
//! backward of the last leaf    head ──ready──▶ layer 11 ──ready──▶ … ──ready(0)──▶
//! fold, submit                        bucket 0          bucket 1                 the last bucket
//! ```
//!
//! The other leaves have been folded by then; so a bucket that the last backward pass completes is
//! folded by itself, in the schedule's order, and goes to its owners. Sums are elementwise, and
//! their bits do not depend on it.

use device::{Stream, Tensor};
use kernels::{Op, elementwise};
use layout::Bucket;
use model::Hooks;

use crate::TrainError;
use crate::ranks::{Ranks, Submitted};

/// Hooks of the backward pass of a rank's last micro-batch of a step.
pub(crate) struct Reducing<'a> {
    pub(crate) ranks: &'a Ranks,
    pub(crate) stream: &'a Stream,
    pub(crate) buckets: &'a [Bucket],
    /// Gradient buffers, and which to add to which.
    pub(crate) grads: &'a [Tensor],
    pub(crate) folds: &'a [(usize, usize)],
    /// Buckets that are on their way.
    pub(crate) submitted: Result<Submitted, TrainError>,
}

impl Reducing<'_> {
    fn reduce(&self, mut submitted: Submitted, until: usize) -> Result<Submitted, TrainError> {
        for bucket in self.buckets.iter().take(until).skip(submitted.buckets()) {
            for &(into, from) in self.folds {
                let part = |slot: usize| self.grads[slot].flat(bucket.range.clone());
                elementwise::Add { x: part(from)?, y: part(into)? }.launch(self.stream)?;
            }
            self.ranks.submit_next(self.stream, &mut submitted)?;
        }
        Ok(submitted)
    }
}

impl Hooks for Reducing<'_> {
    fn need(&mut self, _from: usize) {}

    fn ready(&mut self, from: usize) {
        let submitted = std::mem::replace(&mut self.submitted, Ok(Submitted::default()));
        let until = complete(self.buckets, from);
        self.submitted = submitted.and_then(|submitted| self.reduce(submitted, until));
    }
}

/// How many buckets, in the order of backward, are complete once gradients from `from` on are.
fn complete(buckets: &[Bucket], from: usize) -> usize {
    buckets.partition_point(|bucket| bucket.range.start >= from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_complete_with_its_first_element() {
        let buckets: Vec<Bucket> = [70..100, 30..70, 0..30]
            .map(|range| Bucket { range, tensors: 0..0 })
            .into_iter()
            .collect();
        let complete = [100, 71, 70, 69, 31, 30, 1, 0].map(|from| complete(&buckets, from));
        assert_eq!(complete, [0, 0, 1, 1, 1, 2, 2, 3]);
    }
}
