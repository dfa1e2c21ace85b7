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

/// Gradients that are final, and the buckets that have left.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// Final, in order; neighbours are one.
    closed: Vec<Range<usize>>,
    gone: usize,
}

impl Open {
    /// Nothing is final.
    pub(crate) fn begin(&mut self) {
        self.closed.clear();
        self.gone = 0;
    }

    /// These elements are final. False if some of them were before.
    fn close(&mut self, range: &Range<usize>) -> bool {
        let at = self.closed.partition_point(|before| before.end <= range.start);
        let next = self.closed.get(at).map(|next| next.start);
        if range.is_empty() || next.is_some_and(|next| next < range.end) {
            return range.is_empty();
        }
        let follows = at > 0 && self.closed[at - 1].end == range.start;
        match (follows, next == Some(range.end)) {
            (true, true) => self.closed[at - 1].end = self.closed.remove(at).end,
            (true, false) => self.closed[at - 1].end = range.end,
            (false, true) => self.closed[at].start = range.start,
            (false, false) => self.closed.insert(at, range.clone()),
        }
        true
    }

    /// All elements are final.
    fn close_all(&mut self) {
        self.closed.clear();
        self.closed.push(0..usize::MAX);
    }

    /// The next bucket that may leave, and does.
    fn next(&mut self, buckets: &[Bucket]) -> Option<usize> {
        let (next, all) = (self.gone, &buckets.get(self.gone)?.range);
        let holds = |part: &Range<usize>| part.start <= all.start && all.end <= part.end;
        self.closed.iter().any(holds).then(|| {
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
            Some(range) if !open.close(range) => {
                let reason = format!("the engine said twice that gradients in {range:?} are ready");
                return Err(TrainError::Declared { reason });
            }
            Some(_) => {}
        }
        while let Some(bucket) = open.next(buckets) {
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
        open.begin();
        let leave = |range: &Range<usize>| {
            assert!(open.close(range));
            std::iter::from_fn(|| open.next(&buckets)).collect()
        };
        ranges.iter().map(leave).collect()
    }

    #[test]
    fn a_bucket_leaves_with_its_last_element_and_after_those_before_it() {
        assert_eq!(gone(&[71..100, 60..71, 10..60, 0..10]), [vec![], vec![0], vec![1], vec![2]]);
        // In another order than that of the buckets.
        let last = vec![0, 1, 2];
        assert_eq!(gone(&[0..30, 30..60, 90..100, 60..90]), [vec![], vec![], vec![], last]);
        assert_eq!(gone(&[80..90, 5..5, 70..80, 90..100]), [vec![], vec![], vec![], vec![0]]);
    }

    #[test]
    fn gradients_that_were_final_before_are_noticed_and_all_can_be_closed() {
        let buckets = [10..20, 0..10].map(|range| Bucket { range, tensors: 0..0 });
        let mut open = Open::default();
        open.begin();
        assert!(open.close(&(15..20)));
        for again in [15..20, 12..20, 18..30, 0..16, 16..17] {
            assert!(!open.close(&again), "{again:?}");
        }
        assert_eq!(open.next(&buckets), None, "10..15 is not final");
        open.begin();
        open.close_all();
        assert_eq!(std::iter::from_fn(|| open.next(&buckets)).collect::<Vec<_>>(), [0, 1]);
    }
}
