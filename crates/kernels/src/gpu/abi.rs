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

/// The amount that a stored unit adds to `done`, for each of the blocks of its cluster.
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
/// Rows and columns that one partial sum of squares covers.
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

/// Elements of a span, at most.
pub const SPAN_LEN: u32 = 8192;

/// A run of elements of the optimizer's tensors.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Span {
    pub flat: u64,
    pub local: u64,
    pub len: u32,
    pub unit: u32,
}

/// A launch of `optimizer_momentum`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct MomentumArgs {
    pub spans: u64,
    pub grads: u64,
    pub momentum: u64,
    pub update: u64,
    pub factors: u64,
    pub span_count: u32,
    pub nesterov: u32,
    pub keep: f32,
    pub add: f32,
}

/// A launch of `optimizer_apply`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct ApplyArgs {
    pub spans: u64,
    pub masters: u64,
    pub weights: u64,
    pub direction: u64,
    pub span_count: u32,
    pub keep: f32,
    pub rate: f32,
    pub reserved: u32,
}

/// A launch of `optimizer_adamw`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct AdamWArgs {
    pub spans: u64,
    pub masters: u64,
    pub weights: u64,
    pub grads: u64,
    pub first: u64,
    pub second: u64,
    pub factors: u64,
    pub span_count: u32,
    pub beta1: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub root_correction: f32,
    pub eps: f32,
    pub keep: f32,
    pub rate: f32,
    pub reserved: u32,
}

/// A launch of `optimizer_adopt` or `optimizer_publish`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct MastersArgs {
    pub spans: u64,
    pub masters: u64,
    pub weights: u64,
    pub span_count: u32,
    pub is_f32: u32,
}

/// A launch of `optimizer_cast`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct CastArgs {
    pub source: u64,
    pub target: u64,
    pub len: u64,
    pub is_f16: u32,
    pub reserved: u32,
}

/// Elements of a strip, at most.
pub const SQUARES_LEN: u32 = 16384;

/// Elements of which one block sums the squares.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Strip {
    pub start: u64,
    pub to: u64,
    pub len: u32,
    pub is_whole: u32,
}

/// A range of several strips.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct LongRange {
    pub first: u64,
    pub statistic: u64,
    pub count: u32,
    pub reserved: u32,
}

/// A launch of `optimizer_squares` or `optimizer_sums`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct SquaresArgs {
    pub strips: u64,
    pub long_ranges: u64,
    pub grads: u64,
    pub partials: u64,
    pub sums: u64,
    pub strip_count: u32,
    pub long_range_count: u32,
}

/// Inputs of one launch of `ordered_sum_*`.
pub const SUM_INPUTS: usize = 24;
/// Sums on its stack, at most.
pub const SUM_DEPTH: u32 = 16;
/// The next input, on top of the stack.
pub const SUM_PUSH: u32 = 0;
/// The next input, added to the top.
pub const SUM_ADD: u32 = 1;
/// The top, added to the sum below.
pub const SUM_FOLD: u32 = 2;

/// A stage of a program.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SumArgs {
    pub inputs: [u64; SUM_INPUTS],
    pub out: u64,
    pub carry: u64,
    pub len: u64,
    pub ops: [u64; 2],
    pub op_count: u32,
    pub height: u32,
}

/// By what `ordered_sum_*` combines. An average is a sum that is divided in the end.
pub const REDUCE_SUM: u32 = 0;
pub const REDUCE_PROD: u32 = 1;
pub const REDUCE_MIN: u32 = 2;
pub const REDUCE_MAX: u32 = 3;

/// A launch of `ordered_sum_*`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct ReduceArgs {
    pub stage: SumArgs,
    pub factor: f64,
    pub inputs: u64,
    pub reduce: u32,
    pub is_rounded: u32,
}
