// What all epilogues have in common: the arithmetic, which sub-tiles of a result are kept, and the
// caller's row-major matrix. A sub-tile is 64×64, a tile of tile.h, at (tile_row, tile_col) of the
// grid.
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

// Copies the lower half of a tile image in shared memory onto its upper half. All `threads` take
// part, between barriers: cells read are never written here.
DEV_FN void symmetrize(unsigned char* image, u32 thread, u32 threads) {
    for (u32 cell = thread; cell < tile::SIDE * tile::SIDE; cell += threads) {
        const u32 row = cell / tile::SIDE;
        const u32 col = cell % tile::SIDE;
        if (col > row) {
            *reinterpret_cast<u16*>(image + tile::element_offset(row, col)) =
                *reinterpret_cast<const u16*>(image + tile::element_offset(col, row));
        }
    }
}

// A symmetric result is its own transpose, and goes out as one that is not.
DEV_FN bool transposed_out(const MusterGemmProblem& p) {
    return (p.flags & MUSTER_GEMM_OUT_TRANSPOSED) && !(p.flags & MUSTER_GEMM_LOWER);
}

// One f32 result to the caller's matrix; of a symmetric one only from its lower half. `transposed`:
// to the transpose's place.
DEV_FN void write_f32(const MusterGemmProblem& p, u32 row, u32 col, bool transposed, f32 value) {
    const bool wanted = !(p.flags & MUSTER_GEMM_LOWER) || col <= row;
    if (row < p.rows && col < p.cols && wanted) {
        const u64 line = transposed ? col : row;
        const u64 at = line * p.out_row_stride + (transposed ? row : col);
        pointer<f32>(p.out)[at] = value * p.out_scale;
    }
}

// A tile image in shared memory, whose rows are rows of the caller's bf16 matrix: sub-tile
// (tile_row, tile_col) of it, clipped to height × width. 16 bytes at a time where the caller's
// stride allows.
DEV_FN void write_bf16(const MusterGemmProblem& p, const unsigned char* image, u32 tile_row,
                       u32 tile_col, bool transposed, u32 thread, u32 threads) {
    const u32 height = transposed ? p.cols : p.rows;
    const u32 width = transposed ? p.rows : p.cols;
    u16* const out = pointer<u16>(p.out);
    const bool aligned = p.out % 16 == 0 && p.out_row_stride % tile::CHUNK_ELEMENTS == 0;
    constexpr u32 CHUNKS = tile::ROW_BYTES / tile::CHUNK_BYTES;
    for (u32 piece = thread; piece < tile::SIDE * CHUNKS; piece += threads) {
        const u32 row = tile_row * tile::SIDE + piece / CHUNKS;
        const u32 col = tile_col * tile::SIDE + piece % CHUNKS * tile::CHUNK_ELEMENTS;
        if (row >= height || col >= width) {
            continue;
        }
        const unsigned char* const from =
            image + tile::chunk_offset(piece / CHUNKS, piece % CHUNKS);
        u16* const to = out + static_cast<u64>(row) * p.out_row_stride + col;
        if (aligned && col + tile::CHUNK_ELEMENTS <= width) {
            store16(to, load16(from));
        } else {
            for (u32 i = 0; i < tile::CHUNK_ELEMENTS && col + i < width; ++i) {
                to[i] = reinterpret_cast<const u16*>(from)[i];
            }
        }
    }
}

}  // namespace gemm
