//! Fingerprints of arguments.

use std::ops::Range;

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
