// The common part of all epilogues: the arithmetic, and which sub-tiles of a result are kept. A
// sub-tile is 64×64, a tile of tile.h, at (tile_row, tile_col) of the grid.
#pragma once

#include "../abi.h"
#include "../dev/dev.h"
#include "../tile.h"

namespace gemm {

using namespace dev;

// The result before `+ gamma` on the diagonal. One order of roundings on every target.
DEV_FN f32 combine(const MusterGemmProblem& p, f32 acc, f32 c) {
    return dev::fma(p.beta, c, p.alpha * acc);
}

// The addend takes part; where it does not, C is not read, and NaNs in it do not matter.
DEV_FN bool has_addend(const MusterGemmProblem& p) { return p.c != 0 && p.beta != 0.0f; }

// Of a symmetric result the sub-tiles above the diagonal are dropped: others' transposes fill them.
DEV_FN bool kept(const MusterGemmProblem& p, u32 tile_row, u32 tile_col) {
    return !(p.flags & MUSTER_GEMM_LOWER) || tile_col <= tile_row;
}
DEV_FN bool mirrored(const MusterGemmProblem& p, u32 tile_row, u32 tile_col) {
    return (p.flags & MUSTER_GEMM_LOWER) && tile_col < tile_row;
}
// Its upper half comes from its lower half, so that the result is symmetric to the bit.
DEV_FN bool on_diagonal(const MusterGemmProblem& p, u32 tile_row, u32 tile_col) {
    return (p.flags & MUSTER_GEMM_LOWER) && tile_col == tile_row;
}

// A symmetric result is its own transpose, and goes out as one that is not.
DEV_FN bool transposed_out(const MusterGemmProblem& p) {
    return (p.flags & MUSTER_GEMM_OUT_TRANSPOSED) && !(p.flags & MUSTER_GEMM_LOWER);
}

}  // namespace gemm
