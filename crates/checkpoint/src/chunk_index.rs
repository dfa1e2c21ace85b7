//! The chunks of a tensor that touch a box, found without looking at all of them.
//!
//! Chunks are sorted along the axis on which they begin at the most different places. Those that
//! touch a box are then neighbours: the first is found by the largest end so far, the last by where
//! chunks begin. A tensor cut along one axis costs O(log n) and what is found.

use crate::manifest::ChunkRecord;
use crate::region::sweep_axis;
use crate::{Region, manifest::StateTensor};

/// The order of one tensor's chunks.
#[derive(Debug)]
pub(crate) struct ChunkIndex {
    axis: Option<usize>,
    /// Numbers of the chunks by where they begin along the axis.
    order: Vec<u32>,
    /// The largest end along the axis among the chunks up to this one.
    ends: Vec<usize>,
}

impl ChunkIndex {
    pub(crate) fn new(tensor: &StateTensor) -> ChunkIndex {
        let chunks = &tensor.chunks;
        let axis = sweep_axis(tensor.shape.len(), chunks.iter().map(|chunk| &chunk.offset[..]));
        let mut order: Vec<u32> = (0..chunks.len() as u32).collect();
        let mut ends = Vec::new();
        if let Some(axis) = axis {
            order.sort_by_key(|&number| chunks[number as usize].offset[axis]);
            let mut most = 0;
            ends.extend(order.iter().map(|&number| {
                let chunk = &chunks[number as usize];
                most = most.max(chunk.offset[axis] + chunk.shape[axis]);
                most
            }));
        }
        ChunkIndex { axis, order, ends }
    }

    /// The chunks that may touch `region`: all that do, and few others.
    pub(crate) fn touching<'a>(
        &'a self,
        chunks: &'a [ChunkRecord],
        region: &Region,
    ) -> impl Iterator<Item = &'a ChunkRecord> + use<'a> {
        let places = match self.axis {
            None => 0..self.order.len(),
            Some(axis) => {
                let (start, end) = (region.offset[axis], region.offset[axis] + region.shape[axis]);
                let begins = |number: &u32| chunks[*number as usize].offset[axis];
                let first = self.ends.partition_point(|&most| most <= start);
                first..self.order.partition_point(|number| begins(number) < end).max(first)
            }
        };
        self.order[places].iter().map(|&number| &chunks[number as usize])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Dtype;

    /// A grid of boxes whose cuts along each axis are those of `cuts`.
    fn grid(cuts: &[Vec<usize>]) -> Vec<ChunkRecord> {
        let mut boxes = vec![(Vec::new(), Vec::new())];
        for cuts in cuts {
            let longer = |(offset, shape): &(Vec<usize>, Vec<usize>)| {
                let pairs: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
                let (offset, shape) = (offset.clone(), shape.clone());
                pairs.into_iter().map(move |(start, end)| {
                    ([&offset[..], &[start]].concat(), [&shape[..], &[end - start]].concat())
                })
            };
            boxes = boxes.iter().flat_map(longer).collect();
        }
        let chunk = |(offset, shape)| ChunkRecord { offset, shape, file: 0, range: [0, 0] };
        boxes.into_iter().map(chunk).collect()
    }

    fn cuts() -> impl Strategy<Value = Vec<usize>> {
        proptest::collection::btree_set(1_usize..30, 1..6)
            .prop_map(|cuts| [vec![0], cuts.into_iter().collect()].concat())
    }

    proptest! {
        #[test]
        fn the_chunks_found_are_all_that_touch(
            cuts in proptest::collection::vec(cuts(), 0..4),
            seed in proptest::collection::vec((0_usize..30, 1_usize..30), 3),
        ) {
            let shape: Vec<usize> = cuts.iter().map(|cuts| *cuts.last().unwrap()).collect();
            let chunks = grid(&cuts);
            let (name, slot, dtype) = ("t".into(), "param".into(), Dtype::F32);
            let tensor = StateTensor { name, slot, dtype, shape: shape.clone(), chunks };
            let (mut offset, mut extent) = (Vec::new(), Vec::new());
            for (&whole, &(start, len)) in shape.iter().zip(&seed) {
                offset.push(start % whole);
                extent.push(len.min(whole - start % whole));
            }
            let region = Region::new(&offset, &extent);
            let touches = |chunk: &&ChunkRecord| chunk.region().intersect(&region).is_some();
            let index = ChunkIndex::new(&tensor);
            let mut found: Vec<_> =
                index.touching(&tensor.chunks, &region).filter(touches).cloned().collect();
            found.sort_by(|a, b| a.offset.cmp(&b.offset));
            let all: Vec<_> = tensor.chunks.iter().filter(touches).cloned().collect();
            prop_assert_eq!(found, all);
        }
    }

    #[test]
    fn of_many_chunks_few_are_looked_at() {
        let cuts = vec![(0..=1000).collect::<Vec<usize>>(), vec![0, 7]];
        let chunks = grid(&cuts);
        let (name, slot, dtype) = ("t".into(), "param".into(), Dtype::F32);
        let tensor = StateTensor { name, slot, dtype, shape: vec![1000, 7], chunks };
        let index = ChunkIndex::new(&tensor);
        let region = Region::new(&[500, 2], &[3, 4]);
        assert_eq!(index.touching(&tensor.chunks, &region).count(), 3);
    }
}
