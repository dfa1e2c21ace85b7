// Argument structs of the device kernels, shared with Rust (crates/kernels mirrors each one and tests
// compare sizes and offsets on both sides).
//
// A kernel takes one struct by value. Addresses are device addresses as 64-bit integers, so that one
// layout serves every device; 0 stands for "none". "Tiles" are the 64×64 tiles of tile.h.
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
    uint32_t reserved[6];
} MusterGemmProblem;

// A launch of gemm_*: blocks are numbered through all problems, in the order of the table.
typedef struct MusterGemmArgs {
    uint64_t problems;         // MusterGemmProblem[problem_count]
    uint32_t problem_count;
    uint32_t block_count;      // of all problems
    uint32_t group_rows;       // block rows that are visited together, for the caches (≥ 1)
    uint32_t xcds;             // chiplets over which consecutive blocks are dealt (1: one)
} MusterGemmArgs;

#ifdef __cplusplus
static_assert(sizeof(MusterGemmProblem) == 128, "mirrored in Rust");
static_assert(offsetof(MusterGemmProblem, a_tiles_per_row) == 40, "mirrored in Rust");
static_assert(offsetof(MusterGemmProblem, alpha) == 88, "mirrored in Rust");
static_assert(sizeof(MusterGemmArgs) == 24, "mirrored in Rust");
#endif
