//! The arithmetic of the sample order: permutations, mixtures and the split, without state.
//!
//! ```text
//! sample g ─ Mixture ─▶ (source s, c-th sample of s) ─▶ epoch c / n, place c mod n
//!                          ┌─────────────────────────────────────┘
//!                          └ Permutation ─▶ train window ─ Split ─▶ window
//! ```
//! Each step is a pure function that takes constant time and memory, so that any rank may compute
//! any sample, and a run that continues on other ranks continues the same stream.

/// A pseudo-random bijection of `0..len`: a balanced Feistel network over the next power of four
/// (Luby & Rackoff 1988), walked until it lands inside (Black & Rogaway 2002, "cycle-walking":
/// fewer than 4 rounds on average, since the domain is less than four times `len`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    round_keys: [u64; ROUNDS],
}

/// Four give a strong permutation where the halves are wide; small domains mix better with more.
const ROUNDS: usize = 6;

impl Permutation {
    /// The permutation of `0..len` that belongs to `key`.
    pub fn new(len: u64, key: &[u8; 32]) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut state = u64::from_le_bytes(key[..8].try_into().expect("eight of 32 bytes"));
        let mut round_keys = [0; ROUNDS];
        for (i, round_key) in round_keys.iter_mut().enumerate() {
            let word = &key[8 * (i % 4)..8 * (i % 4) + 8];
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            state = mix(state ^ word.wrapping_add(i as u64 + 1));
            *round_key = state;
        }
        Self { len, half_bits: bits.div_ceil(2).max(1), round_keys }
    }

    /// Where `i` goes; `i` must be less than `len`.
    pub fn apply(&self, i: u64) -> u64 {
        assert!(i < self.len, "index outside the permutation");
        let mut x = i;
        loop {
            x = self.network(x);
            if x < self.len {
                return x;
            }
        }
    }

    fn network(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.round_keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which source each sample comes from: a fixed table, repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mixture {
    /// (source, how many earlier draws have the same source).
    draws: Vec<(u32, u32)>,
    /// Draws of each source.
    counts: Vec<u32>,
}

/// Longest table: shares are exact to 1 in 4096, or exactly what was asked where fewer draws give
/// that.
pub(crate) const PERIOD_MAX: u32 = 4096;

impl Mixture {
    /// The table for these positive weights (at most `PERIOD_MAX` of them).
    pub fn new(weights: &[f64]) -> Self {
        let counts = draw_counts(weights);
        let total: i64 = counts.iter().map(|&c| i64::from(c)).sum();
        // Smooth weighted round-robin: every source's credit grows by its count, the richest is
        // taken.
        let mut credit = vec![0i64; counts.len()];
        let mut taken = vec![0u32; counts.len()];
        let draws = (0..total).map(|_| {
            for (credit, &count) in credit.iter_mut().zip(&counts) {
                *credit += i64::from(count);
            }
            let richest = (0..credit.len()).rev().max_by_key(|&s| credit[s]).unwrap_or(0);
            credit[richest] -= total;
            taken[richest] += 1;
            (richest as u32, taken[richest] - 1)
        });
        Self { draws: draws.collect(), counts }
    }

    /// The source of sample `g`, and how many of the samples before `g` come from it.
    pub fn place(&self, g: u64) -> (usize, u64) {
        let period = self.draws.len() as u64;
        let (source, before) = self.draws[(g % period) as usize];
        let per_period = u64::from(self.counts[source as usize]);
        (source as usize, g / period * per_period + u64::from(before))
    }
}

/// The shortest table that gives the weights exactly, else one of [`PERIOD_MAX`] draws with the
/// remainders going to the largest fractions; never zero for a source.
fn draw_counts(weights: &[f64]) -> Vec<u32> {
    let total: f64 = weights.iter().sum();
    let exact = |period: u32| {
        let ideal = weights.iter().map(|w| w / total * f64::from(period));
        let whole = |x: f64| (x - x.round()).abs() < 1e-7 && x.round() >= 1.0;
        ideal.clone().all(whole).then(|| ideal.map(|x| x.round() as u32).collect())
    };
    if let Some(counts) = (1..=PERIOD_MAX).find_map(exact) {
        return counts;
    }
    let ideal: Vec<f64> = weights.iter().map(|w| w / total * f64::from(PERIOD_MAX)).collect();
    let mut counts: Vec<u32> = ideal.iter().map(|x| (x.floor() as u32).max(1)).collect();
    let mut by_fraction: Vec<usize> = (0..weights.len()).collect();
    by_fraction.sort_by(|&a, &b| ideal[b].fract().total_cmp(&ideal[a].fract()).then(a.cmp(&b)));
    let sum = |counts: &[u32]| counts.iter().sum::<u32>();
    for &s in by_fraction.iter().cycle() {
        if sum(&counts) >= PERIOD_MAX {
            break;
        }
        counts[s] += 1;
    }
    // Sources raised to one draw may have overshot: the largest gives back.
    while sum(&counts) > PERIOD_MAX {
        let largest = (0..counts.len()).max_by_key(|&s| counts[s]).expect("weights are not empty");
        counts[largest] -= 1;
    }
    counts
}

/// Which windows of a source are validation: chunks of neighbours, evenly spaced over the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    windows: u64,
    validation: u64,
    chunks: u64,
}

/// Fewest chunks, where there are that many validation windows, and longest chunk in windows.
const CHUNKS_MIN: u64 = 8;
const CHUNK_WINDOWS_MAX: u64 = 64;

impl Split {
    /// `validation` is the fraction rounded to whole windows, at least one unless the fraction is
    /// 0.
    pub fn new(windows: u64, fraction: f64) -> Self {
        let rounded = (windows as f64 * fraction).round() as u64;
        let validation = if fraction > 0.0 { rounded.max(1).min(windows) } else { 0 };
        let chunks = validation.div_ceil(CHUNK_WINDOWS_MAX).max(CHUNKS_MIN).min(validation);
        Self { windows, validation, chunks }
    }

    pub fn validation(&self) -> u64 {
        self.validation
    }

    pub fn train(&self) -> u64 {
        self.windows - self.validation
    }

    /// `n` shared over the chunks: how much lies before chunk `j`.
    fn before(&self, n: u64, j: u64) -> u64 {
        (u128::from(n) * u128::from(j) / u128::from(self.chunks)) as u64
    }

    /// First window and length of validation chunk `j`, in the middle of the j-th stretch.
    fn chunk(&self, j: u64) -> (u64, u64) {
        let (begin, end) = (self.before(self.windows, j), self.before(self.windows, j + 1));
        let len = self.before(self.validation, j + 1) - self.before(self.validation, j);
        (begin + (end - begin - len) / 2, len)
    }

    /// The window of the i-th validation sample; `i` < [`Split::validation`].
    pub(crate) fn validation_window(&self, i: u64) -> u64 {
        let j = self.last_chunk(|j| self.before(self.validation, j) <= i);
        self.chunk(j).0 + i - self.before(self.validation, j)
    }

    /// The window of the i-th training sample; `i` < [`Split::train`].
    pub(crate) fn train_window(&self, i: u64) -> u64 {
        if self.chunks == 0 {
            return i;
        }
        // Training windows before chunk j are those before its start that are not in earlier
        // chunks.
        let earlier = |j| self.chunk(j).0 - self.before(self.validation, j);
        if i < earlier(0) {
            return i;
        }
        let j = self.last_chunk(|j| earlier(j) <= i);
        i + self.before(self.validation, j + 1)
    }

    /// The last chunk for which `holds`, which holds for the first and for no chunk after a
    /// failure.
    fn last_chunk(&self, holds: impl Fn(u64) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.chunks);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if holds(middle) { low = middle } else { high = middle }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn permutations_are_bijections(len in 1u64..5000, key: [u8; 32]) {
            let permutation = Permutation::new(len, &key);
            let mut seen = vec![false; len as usize];
            for i in 0..len {
                let to = permutation.apply(i) as usize;
                prop_assert!(!std::mem::replace(&mut seen[to], true), "{to} twice");
            }
        }

        #[test]
        fn large_permutations_do_not_collide(
            len in 1u64 << 40..1 << 62, key: [u8; 32], i: u64, j: u64,
        ) {
            let permutation = Permutation::new(len, &key);
            let (i, j) = (i % len, j % len);
            prop_assert_eq!(permutation.apply(i) == permutation.apply(j), i == j);
        }

        #[test]
        fn a_mixture_counts_what_came_before(
            weights in prop::collection::vec(0.01f64..10.0, 1..8), from in 0u64..20_000,
        ) {
            let mixture = Mixture::new(&weights);
            let mut next = vec![None; weights.len()];
            for g in from..from + 5000 {
                let (source, before) = mixture.place(g);
                prop_assert_eq!(next[source].unwrap_or(before), before);
                next[source] = Some(before + 1);
            }
            let first = (0..weights.len()).map(|s| {
                (0..from).filter(|&g| mixture.place(g).0 == s).count() as u64
            });
            for (s, count) in first.enumerate() {
                let g = (from..).find(|&g| mixture.place(g).0 == s).unwrap();
                prop_assert_eq!(mixture.place(g).1, count);
            }
        }

        #[test]
        fn shares_are_near_at_every_moment(weights in prop::collection::vec(0.05f64..10.0, 1..6)) {
            let mixture = Mixture::new(&weights);
            let total: f64 = weights.iter().sum();
            let mut counts = vec![0u64; weights.len()];
            for g in 0..10_000u64 {
                counts[mixture.place(g).0] += 1;
                for (s, w) in weights.iter().enumerate() {
                    let ideal = (g + 1) as f64 * w / total;
                    let drift = (g + 1) as f64 / f64::from(PERIOD_MAX) + weights.len() as f64;
                    prop_assert!((counts[s] as f64 - ideal).abs() <= drift, "{g} {s}");
                }
            }
        }

        #[test]
        fn every_window_is_in_one_split(windows in 1u64..3000, fraction in 0.0f64..0.5) {
            let split = Split::new(windows, fraction);
            let mut owner = vec![None; windows as usize];
            for i in 0..split.validation() {
                let w = split.validation_window(i) as usize;
                prop_assert!(owner[w].replace('v').is_none());
            }
            let mut last = None;
            for i in 0..split.train() {
                let w = split.train_window(i) as usize;
                prop_assert!(owner[w].replace('t').is_none());
                prop_assert!(last < Some(w), "training windows keep their order");
                last = Some(w);
            }
            prop_assert!(owner.iter().all(Option::is_some));
        }
    }

    #[test]
    fn simple_weights_are_exact_and_even() {
        let mixture = Mixture::new(&[0.7, 0.3]);
        assert_eq!(mixture.counts, [7, 3]);
        let order: Vec<usize> = (0..10).map(|g| mixture.place(g).0).collect();
        assert_eq!(order, [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]);
        assert_eq!(Mixture::new(&[5.0]).counts, [1]);
        assert_eq!(Mixture::new(&[1.0, 1.0, 2.0]).counts, [1, 1, 2]);
    }

    #[test]
    fn tiny_weights_keep_a_draw() {
        let mixture = Mixture::new(&[1.0, 1e-9, std::f64::consts::PI]);
        assert_eq!(mixture.counts[1], 1);
        assert_eq!(mixture.counts.iter().sum::<u32>(), PERIOD_MAX);
    }

    #[test]
    fn validation_is_spread_out() {
        let split = Split::new(1000, 0.05);
        assert_eq!((split.validation(), split.train()), (50, 950));
        let windows: Vec<u64> = (0..50).map(|i| split.validation_window(i)).collect();
        let chunks = 1 + windows.windows(2).filter(|w| w[1] != w[0] + 1).count();
        assert_eq!(chunks, 8);
        assert!(windows[0] > 0 && windows[49] < 999);
        assert_eq!(Split::new(10, 0.05).validation(), 1);
        assert_eq!(Split::new(100, 0.0).train(), 100);
    }

    #[test]
    fn epochs_differ() {
        let [a, b] = [1u8, 2].map(|k| Permutation::new(1000, &[k; 32]));
        let same = (0..1000).filter(|&i| a.apply(i) == b.apply(i)).count();
        assert!(same < 20, "{same} of 1000 in the same place");
    }
}
