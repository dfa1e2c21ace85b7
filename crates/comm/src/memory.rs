//! Byte views of device memory and copies between it and the host.

use std::ops::Range;

use device::{DType, Device, Tensor};

use crate::Result;

/// Bytes that one thread copies at a time.
const COPY_BYTES: usize = 256 << 10;

/// The bytes of a tensor.
pub(crate) fn bytes_of(tensor: &Tensor) -> Result<Tensor> {
    let size = tensor.dtype().bytes();
    let (start, len) = (tensor.offset() * size, tensor.len() * size);
    Ok(Tensor::new(tensor.buffer().clone(), start, &[len], DType::U8)?)
}

/// Copies bytes between disjoint views, in parallel; returns how many.
pub(crate) fn copy(
    device: &Device,
    name: &'static str,
    from: &Tensor,
    into: &Tensor,
) -> Result<usize> {
    let copied = device.with_memory(name, |k| {
        let from = k.read::<u8>(from)?;
        k.parallel().chunks(k.write::<u8>(into)?, COPY_BYTES, |index, into| {
            let start = index * COPY_BYTES;
            into.copy_from_slice(&from[start..start + into.len()]);
        });
        Ok(from.len())
    })?;
    Ok(copied)
}

/// Copies a byte view to host memory.
pub(crate) fn load(device: &Device, from: &Tensor, into: &mut [u8]) -> Result<()> {
    Ok(device.with_memory("load", |k| {
        into.copy_from_slice(k.read::<u8>(from)?);
        Ok(())
    })?)
}

/// Copies host memory to a byte view.
pub(crate) fn store(device: &Device, from: &[u8], into: &Tensor) -> Result<()> {
    Ok(device.with_memory("store", |k| {
        k.write::<u8>(into)?.copy_from_slice(from);
        Ok(())
    })?)
}

/// Segments laid end to end, so that they can be cut at any multiple of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Joined<'a> {
    pub segments: &'a [Range<usize>],
}

impl<'a> Joined<'a> {
    /// Number of elements.
    pub(crate) fn len(self) -> usize {
        self.segments.iter().map(ExactSizeIterator::len).sum()
    }

    /// Number of tiles of `tile` elements, the last one shorter.
    pub(crate) fn tiles(self, tile: usize) -> usize {
        self.len().div_ceil(tile)
    }

    /// Number of elements in tile `index`.
    pub(crate) fn tile_len(self, tile: usize, index: usize) -> usize {
        self.len().saturating_sub(index * tile).min(tile)
    }

    /// The parts of segments in tile `index`, in order.
    pub(crate) fn pieces(
        self,
        tile: usize,
        index: usize,
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        let wanted = index * tile..(index + 1) * tile;
        let mut end = 0;
        self.segments.iter().filter_map(move |segment| {
            let start = end;
            end += segment.len();
            let (from, to) = (wanted.start.max(start), wanted.end.min(end));
            (from < to).then(|| segment.start + from - start..segment.start + to - start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tiles_cover_the_segments_in_order(
            gaps in prop::collection::vec((0_usize..9, 0_usize..40), 0..8), tile in 1_usize..20,
        ) {
            let mut at = 0;
            let segments: Vec<Range<usize>> = gaps
                .iter()
                .map(|&(gap, len)| {
                    let start = at + gap;
                    at = start + len;
                    start..at
                })
                .collect();
            let joined = Joined { segments: &segments };
            let all: Vec<usize> = segments.iter().cloned().flatten().collect();
            let mut tiled = Vec::new();
            for index in 0..joined.tiles(tile) {
                let before = tiled.len();
                joined.pieces(tile, index).for_each(|piece| tiled.extend(piece));
                prop_assert_eq!(tiled.len() - before, joined.tile_len(tile, index));
            }
            prop_assert_eq!(tiled, all);
        }
    }
}
