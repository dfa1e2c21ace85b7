//! Rust's side of `kernels/schedule.h`: how many units a product has, and how many blocks work.

use device::{Arch, Grid};

use super::arch::{Class, Gemm, gemm, halves};

/// Units of a product whose result has `m_blocks` × `n_blocks` squares; with `triangle`, those that
/// meet the lower triangle.
pub const fn units(m_blocks: u64, n_blocks: u64, triangle: bool) -> u64 {
    if triangle { m_blocks * (m_blocks + 1) / 2 } else { m_blocks * n_blocks }
}

/// How a product kernel is launched: as many blocks as run at a time, in whole clusters, and no
/// more than there is work for.
pub fn launch(arch: Arch, class: Class, multiprocessors: u32, units: u32) -> Grid {
    let Gemm { threads, shared_bytes, cluster, .. } = gemm(arch, class);
    let pieces = if halves(arch, class) { units.saturating_mul(2) } else { units };
    let blocks = clusters(arch, class, multiprocessors).min(pieces) * cluster;
    Grid { cluster: [cluster, 1, 1], shared_bytes, ..Grid::linear(blocks, threads) }
}

/// Clusters that run at a time.
pub fn clusters(arch: Arch, class: Class, multiprocessors: u32) -> u32 {
    let shape = gemm(arch, class);
    (multiprocessors * shape.resident / shape.cluster).max(1)
}

/// Units at the end of a launch that are dealt in halves, where the kernel does that.
pub const fn halved(units: usize, clusters: usize) -> usize {
    let rest = units % clusters;
    if rest <= clusters / 2 { rest } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triangles_hold_their_diagonal() {
        assert_eq!((units(4, 4, true), units(4, 4, false), units(0, 0, true)), (10, 16, 0));
    }

    #[test]
    fn a_last_round_is_halved_where_half_the_clusters_suffice() {
        assert_eq!([288, 297, 298, 264, 3].map(|units| halved(units, 66)), [24, 33, 0, 0, 3]);
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
}
