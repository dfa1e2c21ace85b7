//! The trainer's side of a pass: weights have come before they are read, and gradients leave once
//! they are final.
//!
//! ```text
//! forward of the first leaf     need(embedding): gather of the last bucket ▶ need(layer 0) ▶ …
//! backward of the last leaf     head ▶ ready: fold, submit bucket 0 ▶ layer 11 ▶ bucket 1 ▶ …
//! ```
//!
//! The other leaves have been folded by then; so a bucket that the last backward pass completes is
//! folded by itself, in the accumulation's order, and goes to its owners. Sums are elementwise, and
//! their bits do not depend on it. Buckets leave in their order, whatever the order in which an
//! engine completes them, because members of a group submit alike.

use std::ops::Range;

use device::{Stream, Tensor};
use kernels::{Op, elementwise};
use layout::Bucket;
use model::{HookError, Hooks};

use crate::TrainError;
use crate::laps::{Laps, Part};
use crate::ranks::Ranks;

/// Hooks of a pass.
pub(crate) struct Moves<'a> {
    pub(crate) ranks: &'a mut Ranks,
    pub(crate) laps: &'a mut Laps,
    /// The part of the step that the pass is.
    pub(crate) part: Part,
    /// Of the last backward pass of a step.
    pub(crate) leaving: Option<Leaving<'a>>,
}

/// Gradients that become final.
pub(crate) struct Leaving<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) buckets: &'a [Bucket],
    /// Gradient buffers, and which to add to which.
    pub(crate) grads: &'a [Tensor],
    pub(crate) folds: &'a [(usize, usize)],
    pub(crate) open: &'a mut Open,
}

/// Elements of each bucket that are not final yet, and the buckets that have left.
#[derive(Debug, Default)]
pub(crate) struct Open {
    elements: Vec<usize>,
    gone: usize,
}

impl Open {
    /// Nothing is final.
    pub(crate) fn begin(&mut self, buckets: &[Bucket]) {
        self.elements.clear();
        self.elements.extend(buckets.iter().map(|bucket| bucket.range.len()));
        self.gone = 0;
    }

    /// These elements are final. False if some of them were before.
    fn close(&mut self, buckets: &[Bucket], range: &Range<usize>) -> bool {
        let mut is_new = true;
        for (open, bucket) in self.elements.iter_mut().zip(buckets) {
            let end = range.end.min(bucket.range.end);
            let closed = end.saturating_sub(range.start.max(bucket.range.start));
            is_new &= closed <= *open;
            *open = open.saturating_sub(closed);
        }
        is_new
    }

    /// All elements are final.
    fn close_all(&mut self) {
        self.elements.fill(0);
    }

    /// The next bucket that may leave, and does.
    fn next(&mut self) -> Option<usize> {
        let next = self.gone;
        (self.elements.get(next) == Some(&0)).then(|| {
            self.gone += 1;
            next
        })
    }
}

impl Moves<'_> {
    fn await_weights(&mut self, until: usize) -> Result<(), TrainError> {
        if self.ranks.are_coming(until) {
            self.laps.lap(self.part);
            self.ranks.await_weights(until)?;
            self.laps.lap(Part::Gather);
        }
        Ok(())
    }

    /// Lets buckets leave after these gradients, or all, became final.
    fn leave(&mut self, gradients: Option<&Range<usize>>) -> Result<(), TrainError> {
        if self.leaving.is_none() {
            return Ok(());
        }
        // Operations from here on are counted for this step.
        self.await_weights(usize::MAX)?;
        self.laps.moved(self.ranks.world.timings());
        let Some(Leaving { stream, buckets, grads, folds, open }) = &mut self.leaving else {
            return Ok(());
        };
        match gradients {
            None => open.close_all(),
            Some(range) if !open.close(buckets, range) => {
                let reason = format!("the engine said twice that gradients in {range:?} are ready");
                return Err(TrainError::Declared { reason });
            }
            Some(_) => {}
        }
        while let Some(bucket) = open.next() {
            for &(into, from) in *folds {
                let part = |buffer: usize| grads[buffer].flat(buckets[bucket].range.clone());
                elementwise::Add { x: part(from)?, y: part(into)? }.launch(stream)?;
            }
            self.ranks.reduce(stream, bucket)?;
        }
        Ok(())
    }

    /// Lets everything leave that has not: for engines that do not tell all.
    ///
    /// # Errors
    /// As a reduction.
    pub(crate) fn leave_all(&mut self) -> Result<(), TrainError> {
        self.leave(None)
    }
}

impl Hooks for Moves<'_> {
    fn need(&mut self, weights: Range<usize>) -> Result<(), HookError> {
        Ok(self.await_weights(weights.end)?)
    }

    fn ready(&mut self, gradients: Range<usize>) -> Result<(), HookError> {
        Ok(self.leave(Some(&gradients))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(ranges: &[Range<usize>]) -> Vec<Vec<usize>> {
        let buckets = [70..100, 30..70, 0..30].map(|range| Bucket { range, tensors: 0..0 });
        let mut open = Open::default();
        open.begin(&buckets);
        let leave = |range: &Range<usize>| {
            assert!(open.close(&buckets, range));
            std::iter::from_fn(|| open.next()).collect()
        };
        ranges.iter().map(leave).collect()
    }

    #[test]
    fn a_bucket_leaves_with_its_last_element_and_after_those_before_it() {
        assert_eq!(gone(&[71..100, 60..71, 10..60, 0..10]), [vec![], vec![0], vec![1], vec![2]]);
        // In another order than that of the buckets.
        let last = vec![0, 1, 2];
        assert_eq!(gone(&[0..30, 30..60, 90..100, 60..90]), [vec![], vec![], vec![], last]);
    }

    #[test]
    fn gradients_that_were_final_before_are_noticed_and_all_can_be_closed() {
        let buckets = [10..20, 0..10].map(|range| Bucket { range, tensors: 0..0 });
        let mut open = Open::default();
        open.begin(&buckets);
        assert!(open.close(&buckets, &(15..20)) && !open.close(&buckets, &(12..20)));
        open.begin(&buckets);
        open.close_all();
        assert_eq!(std::iter::from_fn(|| open.next()).collect::<Vec<_>>(), [0, 1]);
    }
}
