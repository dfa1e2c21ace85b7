//! Copies between byte views of device memory and the host; segments in tiles.

use std::ops::Range;

use device::{Device, Tensor};

use crate::Result;

/// Bytes that one thread copies at a time.
const COPY_BYTES: usize = 256 << 10;

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

/// Copies a byte view to host memory, in parallel.
pub(crate) fn load(device: &Device, from: &Tensor, into: &mut [u8]) -> Result<()> {
    Ok(device.with_memory("load", |k| {
        let from = k.read::<u8>(from)?;
        k.parallel().chunks(into, COPY_BYTES, |index, into| {
            let start = index * COPY_BYTES;
            into.copy_from_slice(&from[start..start + into.len()]);
        });
        Ok(())
    })?)
}

/// Copies host memory to a byte view, in parallel.
pub(crate) fn store(device: &Device, from: &[u8], into: &Tensor) -> Result<()> {
    Ok(device.with_memory("store", |k| {
        k.parallel().chunks(k.write::<u8>(into)?, COPY_BYTES, |index, into| {
            let start = index * COPY_BYTES;
            into.copy_from_slice(&from[start..start + into.len()]);
        });
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

    /// The parts of segments in tile `index`, as [`Joined::within`].
    pub(crate) fn pieces(
        self,
        tile: usize,
        index: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        self.within(index * tile..(index + 1) * tile)
    }

    /// The parts of segments among these of the joined elements, in order: which segment, and the
    /// part.
    pub(crate) fn within(
        self,
        wanted: Range<usize>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        let mut end = 0;
        self.segments.iter().enumerate().filter_map(move |(index, segment)| {
            let start = end;
            end += segment.len();
            let (from, to) = (wanted.start.max(start), wanted.end.min(end));
            let part = segment.start + from.saturating_sub(start)
                ..segment.start + to.saturating_sub(start);
            (from < to).then_some((index, part))
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
                for (segment, piece) in joined.pieces(tile, index) {
                    let Range { start, end } = segments[segment];
                    prop_assert!(start <= piece.start && piece.end <= end);
                    tiled.extend(piece);
                }
                prop_assert_eq!(tiled.len() - before, joined.tile_len(tile, index));
            }
            prop_assert_eq!(tiled, all);
        }
    }
}
