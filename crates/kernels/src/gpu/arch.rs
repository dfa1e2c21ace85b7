//! How the product kernels of each architecture are launched: a table of pure data.
//!
//! The block class of a product decides the order of nothing that is summed, but which instructions
//! sum it; so it is part of the numeric plan: a pure function of a matrix's shape.

use device::{Arch, DType};

/// Side of a tile, in elements.
pub(crate) const TILE: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE_BYTES: u64 = (TILE * TILE * 2) as u64;

/// The two sizes of block that product kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Less is computed beyond the edges and above the diagonal.
    Small,
    /// Each byte that is loaded is used more often.
    Large,
}

impl Class {
    /// Matrices are padded to multiples of this.
    pub const fn side(self) -> usize {
        match self {
            Class::Small => 128,
            Class::Large => 256,
        }
    }
}

/// How the right operand lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Form {
    /// Its transpose, `[n, k]`; symmetric operands are their own.
    Nt,
    /// As it is, `[k, n]`.
    Nn,
}

/// 16-bit element types of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TileType {
    Bf16,
    F16,
}

impl TileType {
    pub const fn dtype(self) -> DType {
        match self {
            TileType::Bf16 => DType::Bf16,
            TileType::F16 => DType::F16,
        }
    }
}

/// Name of the product kernel for a form, type and class.
pub(crate) const fn gemm_name(form: Form, tiles: TileType, class: Class) -> &'static str {
    match (form, tiles, class) {
        (Form::Nt, TileType::Bf16, Class::Large) => "gemm_nt_bf16_256",
        (Form::Nt, TileType::Bf16, Class::Small) => "gemm_nt_bf16_128",
        (Form::Nt, TileType::F16, Class::Large) => "gemm_nt_f16_256",
        (Form::Nt, TileType::F16, Class::Small) => "gemm_nt_f16_128",
        (Form::Nn, TileType::Bf16, Class::Large) => "gemm_nn_bf16_256",
        (Form::Nn, TileType::Bf16, Class::Small) => "gemm_nn_bf16_128",
        (Form::Nn, TileType::F16, Class::Large) => "gemm_nn_f16_256",
        (Form::Nn, TileType::F16, Class::Small) => "gemm_nn_f16_128",
    }
}

/// How a product kernel is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemm {
    /// Side of the squares of the result that a cluster computes at a time.
    pub unit: u32,
    /// Of a block.
    pub threads: u32,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Blocks that a multiprocessor holds at a time.
    pub resident: u32,
}

/// The product kernel of an architecture and class.
pub const fn gemm(arch: Arch, class: Class) -> Gemm {
    match (arch, class) {
        (Arch::Sm90a, Class::Large) => {
            Gemm { unit: 256, threads: 384, shared_bytes: 230_112, cluster: 2, resident: 1 }
        }
        (Arch::Sm90a, Class::Small) => {
            Gemm { unit: 128, threads: 384, shared_bytes: 230_144, cluster: 1, resident: 1 }
        }
        (Arch::Sm80 | Arch::Sm100a, _) => {
            Gemm { unit: 128, threads: 256, shared_bytes: 98_304, cluster: 1, resident: 1 }
        }
        (Arch::Gfx90a | Arch::Gfx942, Class::Large) => {
            Gemm { unit: 256, threads: 512, shared_bytes: 64 << 10, cluster: 1, resident: 1 }
        }
        (Arch::Gfx90a | Arch::Gfx942, Class::Small) => {
            Gemm { unit: 128, threads: 256, shared_bytes: 32 << 10, cluster: 1, resident: 2 }
        }
        // Loads go to LDS directly, into a ring of five halves of a step (gemm.hip).
        (Arch::Gfx950, Class::Large) => {
            Gemm { unit: 256, threads: 512, shared_bytes: 160 << 10, cluster: 1, resident: 1 }
        }
        (Arch::Gfx950, Class::Small) => {
            Gemm { unit: 128, threads: 256, shared_bytes: 80 << 10, cluster: 1, resident: 2 }
        }
    }
}

/// Chiplets to which an architecture sends consecutive blocks in turn.
pub const fn xcds(arch: Arch) -> u32 {
    match arch {
        Arch::Gfx942 | Arch::Gfx950 => 8,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fit_their_architecture_and_their_padding() {
        for arch in Arch::ALL {
            for class in [Class::Small, Class::Large] {
                let gemm = gemm(arch, class);
                assert!(gemm.shared_bytes <= arch.shared_bytes_per_block(), "{arch} {class:?}");
                assert!(gemm.threads.is_multiple_of(arch.wave()) && gemm.threads <= 1024);
                assert!((class.side() as u32).is_multiple_of(gemm.unit), "{arch} {class:?}");
            }
        }
    }
}
