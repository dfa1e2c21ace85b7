//! Reproducible random values.

use std::ops::RangeInclusive;

/// SplitMix64 (Steele et al. 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A whole number of `range`.
    pub fn size(&mut self, range: RangeInclusive<usize>) -> usize {
        let count = range.end() - range.start() + 1;
        range.start() + (self.next() % count as u64) as usize
    }

    pub fn flag(&mut self) -> bool {
        self.size(0..=1) == 1
    }

    /// Uniform in `[-most, most)`.
    pub fn value(&mut self, most: f64) -> f64 {
        most * ((self.next() >> 11) as f64 / 2f64.powi(52) - 1.0)
    }

    pub fn values(&mut self, count: usize, most: f64) -> Vec<f64> {
        (0..count).map(|_| self.value(most)).collect()
    }

    pub fn indices(&mut self, count: usize, below: usize) -> Vec<u32> {
        (0..count).map(|_| self.size(0..=below - 1) as u32).collect()
    }

    /// Windows cut into documents at random: the start of each position's document.
    pub fn doc_start(&mut self, windows: usize, positions: usize) -> Vec<u32> {
        let mut starts = Vec::with_capacity(windows * positions);
        for _ in 0..windows {
            let mut start = 0;
            for position in 0..positions {
                if self.size(0..=positions / 3) == 0 {
                    start = position as u32;
                }
                starts.push(start);
            }
        }
        starts
    }
}
