// Argument structs of the device kernels, shared with Rust (crates/kernels mirrors each one and
// tests compare sizes and offsets on both sides).
//
// A kernel takes one struct by value. Addresses are device addresses as 64-bit integers, so that
// one layout serves every device; 0 stands for "none". "Tiles" are the 64×64 tiles of tile.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Only blocks that meet the lower triangle are computed, and the result is mirrored.
#define MUSTER_GEMM_LOWER 1u
// The caller's result is bf16 (else f32).
#define MUSTER_GEMM_OUT_BF16 2u
// The caller's result is the transpose: element (i, j) goes to out[j·out_row_stride + i].
#define MUSTER_GEMM_OUT_TRANSPOSED 4u

// One product of a launch: D = alpha·A·B + beta·C + gamma·I.
typedef struct MusterGemmProblem {
    uint64_t a;                // grid [m_tiles, k_tiles]
    uint64_t b;                // nt: grid [n_tiles, k_tiles]; nn: grid [k_tiles, n_tiles]
    uint64_t c;                // grid [m_tiles, n_tiles] or 0; may be d
    uint64_t d;                // grid [m_tiles, n_tiles] or 0
    uint64_t out;              // the caller's row-major matrix [rows, cols], times out_scale, or 0
    uint32_t a_tiles_per_row;  // of the grid that `a` points into
    uint32_t b_tiles_per_row;
    uint32_t c_tiles_per_row;
    uint32_t d_tiles_per_row;
    uint32_t m_blocks;         // blocks of the kernel's shape down …
    uint32_t n_blocks;         // … and across; grids are padded with zeros to whole blocks
    uint32_t k_tiles;
    uint32_t first_block;      // blocks of all problems before this one in the launch
    uint32_t rows;             // of the result, without padding
    uint32_t cols;
    uint32_t out_row_stride;   // elements
    uint32_t flags;            // MUSTER_GEMM_*
    float alpha;
    float beta;
    float gamma;               // added where row == column < rows
    float out_scale;
    uint64_t after;            // u32: no unit begins before this has come to after_count; or 0
    uint64_t done;             // u32: every unit that is stored adds to this, in all …; or 0
    uint32_t after_count;
    uint32_t reserved;
} MusterGemmProblem;

// … so much for each of the blocks of its cluster.
#define MUSTER_GEMM_DONE_PER_BLOCK 2u

// A launch of gemm_*: blocks are numbered through all problems, in the order of the table.
typedef struct MusterGemmArgs {
    uint64_t problems;         // MusterGemmProblem[problem_count]
    uint32_t problem_count;
    uint32_t block_count;      // of all problems
    uint32_t group_rows;       // block rows that are visited together, for the caches (≥ 1)
    uint32_t xcds;             // chiplets to which consecutive blocks go in turn (1: one)
} MusterGemmArgs;

// The caller's matrix has 16-bit elements (else f32) …
#define MUSTER_NS_INPUT_16 1u
// … which are f16 (else bf16).
#define MUSTER_NS_INPUT_F16 2u
// X is the transpose of the caller's matrix.
#define MUSTER_NS_TALL 4u
// Tiles hold f16 (else bf16).
#define MUSTER_NS_TILES_F16 8u
// X is the caller's matrix as it is: no norm, no status.
#define MUSTER_NS_PLAIN 16u

// Status of a matrix.
#define MUSTER_NS_FINITE 0u
#define MUSTER_NS_NON_FINITE 1u

// A strip is what one partial sum of squares covers.
#define MUSTER_NS_STRIP_ROWS 64u
#define MUSTER_NS_STRIP_COLS 256u

// One matrix of a launch of ns_norm and of ns_cast.
typedef struct MusterNsMatrix {
    uint64_t input;            // the caller's row-major matrix [rows, cols]
    uint64_t partials;         // f64 [strips down, strips across]: sums of squares
    uint64_t x;                // grid [row_tiles, col_tiles], short side first; 0 if it is empty
    uint64_t norm;             // f64: the Frobenius norm goes here, or 0
    uint64_t status;           // u32: MUSTER_NS_FINITE or _NON_FINITE goes here, or 0
    double least_norm;         // X is divided by the larger of this and the norm
    uint32_t rows;             // of the caller's matrix
    uint32_t cols;
    uint32_t row_stride;       // elements
    uint32_t flags;            // MUSTER_NS_*
    uint32_t row_tiles;        // of X, with padding
    uint32_t col_tiles;
    uint32_t first_strip;      // strips of all matrices before this one in the launch
    uint32_t first_tile;       // tiles of X of all matrices before this one; an empty one counts 1
    uint64_t counters;         // u32 [counter_count]: set to zero by ns_norm
    uint32_t counter_count;
    uint32_t reserved;
} MusterNsMatrix;

// A launch of ns_norm (units are strips) or ns_cast (units are tiles).
typedef struct MusterNsArgs {
    uint64_t matrices;         // MusterNsMatrix[matrix_count]
    uint32_t matrix_count;
    uint32_t unit_count;       // of all matrices
} MusterNsArgs;

// Least sum of magnitudes of a row that ns_aol_rows takes the inverse root of.
#define MUSTER_NS_AOL_LEAST 1e-12f

// One matrix of a launch of ns_aol_rows and of ns_aol_scale.
typedef struct MusterNsAol {
    uint64_t gram;             // grid [row_tiles, row_tiles]
    uint64_t x;                // grid [row_tiles, col_tiles]
    uint64_t scales;           // f32 [64·row_tiles]
    uint32_t row_tiles;
    uint32_t col_tiles;
    uint32_t first_row;        // row tiles of all matrices before this one in the launch
    uint32_t first_tile;       // tiles of Gram matrix and X of all before
    uint32_t flags;            // MUSTER_NS_TILES_F16
    uint32_t reserved;
} MusterNsAol;

// A launch of ns_aol_rows (units are rows of tiles) or ns_aol_scale (units are tiles).
typedef struct MusterNsAolArgs {
    uint64_t matrices;         // MusterNsAol[matrix_count]
    uint32_t matrix_count;
    uint32_t unit_count;       // of all matrices
} MusterNsAolArgs;

// A launch of memory_copy, memory_read or memory_write.
typedef struct MusterMemoryArgs {
    uint64_t source;           // 16-byte aligned
    uint64_t target;           // 16-byte aligned
    uint64_t chunks;           // of 16 bytes
    uint32_t value;            // written; or, by memory_read, compared with what it read
    uint32_t reserved;
} MusterMemoryArgs;

// A run of elements of the optimizer's tensors: at most MUSTER_SPAN_LEN.
#define MUSTER_SPAN_LEN 8192u
typedef struct MusterSpan {
    uint64_t flat;             // where it starts in flat tensors (gradients, weights) …
    uint64_t local;            // … and in the rank's own (moments, masters, scratch); elements
    uint32_t len;
    uint32_t unit;             // which gradient factor applies
} MusterSpan;

// A launch of optimizer_momentum.
typedef struct MusterMomentumArgs {
    uint64_t spans;            // MusterSpan[span_count]
    uint64_t grads;            // f32, flat
    uint64_t momentum;         // f32, local
    uint64_t update;           // f32, local
    uint64_t factors;          // f32, one of each unit
    uint32_t span_count;
    uint32_t nesterov;         // whether `update` looks ahead
    float keep;                // mu …
    float add;                 // … and 1 - mu
} MusterMomentumArgs;

// A launch of optimizer_apply.
typedef struct MusterApplyArgs {
    uint64_t spans;            // MusterSpan[span_count]
    uint64_t masters;          // f32, local, or 0: then the weights are f32
    uint64_t weights;          // flat: f32, or bf16 copies of the masters
    uint64_t direction;        // f32, local
    uint32_t span_count;
    float keep;
    float rate;
    uint32_t reserved;
} MusterApplyArgs;

// A launch of optimizer_adamw.
typedef struct MusterAdamWArgs {
    uint64_t spans;            // MusterSpan[span_count]
    uint64_t masters;          // as MusterApplyArgs
    uint64_t weights;
    uint64_t grads;            // f32, flat
    uint64_t first;            // moments: f32, local
    uint64_t second;
    uint64_t factors;          // f32, one of each unit
    uint32_t span_count;
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float root_correction;     // 1 / sqrt(1 - beta2^step)
    float eps;
    float keep;                // 1 - lr·weight_decay
    float rate;                // lr / (1 - beta1^step)
    uint32_t reserved;
} MusterAdamWArgs;

// A launch of optimizer_adopt (masters from weights) or optimizer_publish (bf16 weights from
// masters).
typedef struct MusterMastersArgs {
    uint64_t spans;            // MusterSpan[span_count]
    uint64_t masters;          // f32, local
    uint64_t weights;          // flat: bf16, or f32
    uint32_t span_count;
    uint32_t is_f32;           // the weights; optimizer_adopt alone
} MusterMastersArgs;

// A launch of optimizer_cast (units are runs of MUSTER_SPAN_LEN elements).
typedef struct MusterCastArgs {
    uint64_t source;           // f32
    uint64_t target;           // bf16 or f16
    uint64_t len;
    uint32_t is_f16;
    uint32_t reserved;
} MusterCastArgs;

// Elements of which one block sums the squares: at most MUSTER_SQUARES_LEN.
#define MUSTER_SQUARES_LEN 16384u
typedef struct MusterStrip {
    uint64_t start;            // in the gradients
    uint64_t to;               // the statistic, if this is its whole range; else the partial sum
    uint32_t len;
    uint32_t is_whole;
} MusterStrip;

// A range of several strips.
typedef struct MusterLongRange {
    uint64_t first;            // of its partial sums
    uint64_t statistic;
    uint32_t count;
    uint32_t reserved;
} MusterLongRange;

// A launch of optimizer_squares (units are strips), then of optimizer_sums (units are long
// ranges).
typedef struct MusterSquaresArgs {
    uint64_t strips;           // MusterStrip[strip_count]
    uint64_t long_ranges;      // MusterLongRange[long_range_count]
    uint64_t grads;            // f32
    uint64_t partials;         // f64
    uint64_t sums;             // f64, by statistic
    uint32_t strip_count;
    uint32_t long_range_count;
} MusterSquaresArgs;

// Inputs of one launch of ordered_sum_*, sums on its stack, and what its operations are.
#define MUSTER_SUM_INPUTS 24u
#define MUSTER_SUM_DEPTH 16u
#define MUSTER_SUM_PUSH 0u     // the next input, on top of the stack
#define MUSTER_SUM_ADD 1u      // the next input, added to the top
#define MUSTER_SUM_FOLD 2u     // the top, added to the sum below

// A launch of ordered_sum_*: one stage of a program, over `len` elements.
typedef struct MusterSumArgs {
    uint64_t inputs[MUSTER_SUM_INPUTS];
    uint64_t out;              // where the last stage puts the sum; else 0
    uint64_t carry;            // the stack between stages: [MUSTER_SUM_DEPTH or fewer, len]
    uint64_t len;
    uint64_t ops[2];           // two bits each, the first lowest
    uint32_t op_count;
    uint32_t height;           // sums that the carried stack begins with
} MusterSumArgs;

#ifdef __cplusplus
static_assert(sizeof(MusterGemmProblem) == 128, "mirrored in Rust");
static_assert(offsetof(MusterGemmProblem, a_tiles_per_row) == 40, "mirrored in Rust");
static_assert(offsetof(MusterGemmProblem, alpha) == 88, "mirrored in Rust");
static_assert(offsetof(MusterGemmProblem, after) == 104, "mirrored in Rust");
static_assert(sizeof(MusterGemmArgs) == 24, "mirrored in Rust");
static_assert(sizeof(MusterNsMatrix) == 96, "mirrored in Rust");
static_assert(offsetof(MusterNsMatrix, rows) == 48, "mirrored in Rust");
static_assert(sizeof(MusterNsArgs) == 16, "mirrored in Rust");
static_assert(sizeof(MusterNsAol) == 48, "mirrored in Rust");
static_assert(sizeof(MusterNsAolArgs) == 16, "mirrored in Rust");
static_assert(sizeof(MusterMemoryArgs) == 32, "mirrored in Rust");
static_assert(sizeof(MusterSpan) == 24, "mirrored in Rust");
static_assert(sizeof(MusterMomentumArgs) == 56, "mirrored in Rust");
static_assert(sizeof(MusterApplyArgs) == 48, "mirrored in Rust");
static_assert(sizeof(MusterAdamWArgs) == 96, "mirrored in Rust");
static_assert(sizeof(MusterMastersArgs) == 32, "mirrored in Rust");
static_assert(sizeof(MusterCastArgs) == 32, "mirrored in Rust");
static_assert(sizeof(MusterStrip) == 24, "mirrored in Rust");
static_assert(sizeof(MusterLongRange) == 24, "mirrored in Rust");
static_assert(sizeof(MusterSquaresArgs) == 48, "mirrored in Rust");
static_assert(sizeof(MusterSumArgs) == 240, "mirrored in Rust");
#endif
