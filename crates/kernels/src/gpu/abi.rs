//! The argument structs of `kernels/abi.h`; `tests/abi.rs` compares the two.

use bytemuck::{Pod, Zeroable};

/// Only blocks that meet the lower triangle are computed, and the result is mirrored.
pub const GEMM_LOWER: u32 = 1;
/// The caller's result is bf16.
pub const GEMM_OUT_BF16: u32 = 2;
/// The caller's result is the transpose.
pub const GEMM_OUT_TRANSPOSED: u32 = 4;

/// One product of a launch: `D = alpha·A·B + beta·C + gamma·I`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct GemmProblem {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub d: u64,
    pub out: u64,
    pub a_tiles_per_row: u32,
    pub b_tiles_per_row: u32,
    pub c_tiles_per_row: u32,
    pub d_tiles_per_row: u32,
    pub m_blocks: u32,
    pub n_blocks: u32,
    pub k_tiles: u32,
    pub first_block: u32,
    pub rows: u32,
    pub cols: u32,
    pub out_row_stride: u32,
    pub flags: u32,
    pub alpha: f32,
    pub beta: f32,
    pub gamma: f32,
    pub out_scale: f32,
    pub after: u64,
    pub done: u64,
    pub after_count: u32,
    pub reserved: u32,
}

/// What a stored unit adds to `done`, for each of the blocks of its cluster.
pub const GEMM_DONE_PER_BLOCK: u32 = 2;

/// A launch of `gemm_*`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct GemmArgs {
    pub problems: u64,
    pub problem_count: u32,
    pub block_count: u32,
    pub group_rows: u32,
    pub xcds: u32,
}

/// The caller's matrix has 16-bit elements.
pub const NS_INPUT_16: u32 = 1;
/// Which are f16.
pub const NS_INPUT_F16: u32 = 2;
/// X is the transpose of the caller's matrix.
pub const NS_TALL: u32 = 4;
/// Tiles hold f16.
pub const NS_TILES_F16: u32 = 8;
/// X is the caller's matrix as it is.
pub const NS_PLAIN: u32 = 16;
/// What one partial sum of squares covers.
pub const NS_STRIP: (u32, u32) = (64, 256);

/// One matrix of a launch of `ns_norm` and of `ns_cast`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct NsMatrix {
    pub input: u64,
    pub partials: u64,
    pub x: u64,
    pub norm: u64,
    pub status: u64,
    pub least_norm: f64,
    pub rows: u32,
    pub cols: u32,
    pub row_stride: u32,
    pub flags: u32,
    pub row_tiles: u32,
    pub col_tiles: u32,
    pub first_strip: u32,
    pub first_tile: u32,
    pub counters: u64,
    pub counter_count: u32,
    pub reserved: u32,
}

/// A launch of `ns_norm`, `ns_cast`, `ns_aol_rows` or `ns_aol_scale`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct NsArgs {
    pub matrices: u64,
    pub matrix_count: u32,
    pub unit_count: u32,
}

/// One matrix of a launch of `ns_aol_rows` and of `ns_aol_scale`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NsAol {
    pub gram: u64,
    pub x: u64,
    pub scales: u64,
    pub row_tiles: u32,
    pub col_tiles: u32,
    pub first_row: u32,
    pub first_tile: u32,
    pub flags: u32,
    pub reserved: u32,
}

/// A launch of `memory_*`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct MemoryArgs {
    pub source: u64,
    pub target: u64,
    pub chunks: u64,
    pub value: u32,
    pub reserved: u32,
}
