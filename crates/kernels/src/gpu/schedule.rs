//! Rust's side of `kernels/schedule.h`: how many units a product has, and how many blocks work.

use device::{Arch, Grid};

use super::arch::{Class, Gemm, gemm, xcds};
use crate::Entries;

/// Units of a product whose result has `m_blocks` × `n_blocks` squares; of a triangle, those that
/// meet it.
pub const fn units(m_blocks: u64, n_blocks: u64, entries: Entries) -> u64 {
    match entries {
        Entries::All => m_blocks * n_blocks,
        Entries::Triangle => m_blocks * (m_blocks + 1) / 2,
    }
}

/// Stages of more rounds than this are launches of their own: what a chain saves at their ends is
/// little then, and its blocks drift apart, so that their operands leave the second-level cache
/// (216 × 2048×7168 on an H200: a third slower; 64 × 1024×2816, 35 rounds: the same).
pub(crate) const CHAIN_ROUNDS: u32 = 40;

/// Whether a stage of so many units may be part of a chain.
pub(crate) fn is_short(arch: Arch, class: Class, multiprocessors: u32, units: u64) -> bool {
    units <= u64::from(CHAIN_ROUNDS) * u64::from(clusters(arch, class, multiprocessors))
}

/// Whether a kernel cuts its last round into half units.
const fn cuts_halves(arch: Arch, class: Class) -> bool {
    matches!((arch, class), (Arch::Sm90a, Class::Large))
}

/// Number of pieces that `clusters` clusters take in turn: units, and those of the last round as
/// halves where half of the clusters or more would stand idle.
pub const fn pieces(units: u32, clusters: u32) -> u32 {
    let rest = units % clusters;
    if rest <= clusters / 2 { units + rest } else { units }
}

/// How a product kernel is launched: as many blocks as run at a time, in whole clusters, and no
/// more than there is work for.
pub fn launch(arch: Arch, class: Class, multiprocessors: u32, units: u32) -> Grid {
    let Gemm { threads, shared_bytes, cluster, .. } = gemm(arch, class);
    let clusters = busy_clusters(arch, class, multiprocessors, units);
    let blocks = clusters * cluster;
    // The kernel that waits for the launch before by itself (sm90.h).
    let early = matches!(arch, Arch::Sm90a);
    Grid { cluster: [cluster, 1, 1], shared_bytes, early, ..Grid::linear(blocks, threads) }
}

/// Clusters that run at a time.
pub fn clusters(arch: Arch, class: Class, multiprocessors: u32) -> u32 {
    let shape = gemm(arch, class);
    (multiprocessors * shape.resident / shape.cluster).max(1)
}

/// Of those, the ones that a launch of `units` units has work for.
fn busy_clusters(arch: Arch, class: Class, multiprocessors: u32, units: u32) -> u32 {
    let most = if cuts_halves(arch, class) { units.saturating_mul(2) } else { units };
    clusters(arch, class, multiprocessors).min(most)
}

/// The share of a unit's work that each piece has, in the order in which clusters take them: piece
/// `i` goes to cluster `i % clusters`.
pub fn shares(arch: Arch, class: Class, clusters: u32, units: u32) -> impl Iterator<Item = f64> {
    let halves = match cuts_halves(arch, class) {
        true => pieces(units, clusters) - units,
        false => 0,
    };
    let whole = std::iter::repeat_n(1.0, (units - halves) as usize);
    whole.chain(std::iter::repeat_n(0.5, 2 * halves as usize))
}

/// Rows of units that are visited together: with as many columns as fill the clusters of a chiplet,
/// the fewest operand tiles are in flight where the two are equal.
pub fn group_rows(arch: Arch, class: Class, multiprocessors: u32) -> u32 {
    (clusters(arch, class, multiprocessors) / xcds(arch)).isqrt().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triangles_hold_their_diagonal() {
        let (all, triangle) = (Entries::All, Entries::Triangle);
        assert_eq!((units(4, 4, triangle), units(4, 4, all), units(0, 0, triangle)), (10, 16, 0));
    }

    #[test]
    fn grids_are_whole_clusters() {
        let blocks = |arch, class, multiprocessors, units| {
            launch(arch, class, multiprocessors, units).grid[0]
        };
        assert_eq!(blocks(Arch::Sm90a, Class::Large, 131, 1000), 130);
        assert_eq!(blocks(Arch::Sm90a, Class::Large, 132, 3), 12);
        assert_eq!(blocks(Arch::Sm90a, Class::Small, 132, 3), 3);
        assert_eq!(blocks(Arch::Gfx942, Class::Small, 304, 1000), 608);
        assert_eq!(blocks(Arch::Sm90a, Class::Large, 1, 6), 2);
    }

    #[test]
    fn a_last_round_of_halves_is_the_work_of_all_units() {
        for units in 1..300 {
            let shares: Vec<f64> = shares(Arch::Sm90a, Class::Large, 66, units).collect();
            assert_eq!(shares.len(), pieces(units, 66) as usize);
            assert_eq!(shares.iter().sum::<f64>(), f64::from(units));
        }
        assert_eq!(shares(Arch::Sm80, Class::Large, 66, 7).sum::<f64>(), 7.0);
    }

    #[test]
    fn bands_are_about_square() {
        assert_eq!(group_rows(Arch::Sm90a, Class::Large, 132), 8);
        assert_eq!(group_rows(Arch::Gfx942, Class::Large, 304), 6);
        assert_eq!(group_rows(Arch::Gfx942, Class::Large, 4), 1);
    }
}
