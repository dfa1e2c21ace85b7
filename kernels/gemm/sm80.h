// The core for mma.sync: sm_80 and every later NVIDIA chip without a core of its own. Persistent
// blocks of 128×128, a ring of three stages filled by cp.async, eight warps of 64×32 each.
//
//   warp 0 1 2 3    rows 0–63      sub-tiles (0, 0) of warps 0 and 1, (0, 1) of 2 and 3
//   warp 4 5 6 7    rows 64–127
//
// A stage is 64 k's: two tiles of A, two of B, copied as they lie (tile.h); ldmatrix meets no bank
// conflict in them. 96 KiB, so that it fits the chips with 99 KiB for a block. The epilogue reuses
// the ring for its tile images.
#pragma once

#include "../schedule.h"
#include "outbox.h"

namespace gemm {

struct Sm80 {
    static constexpr u32 UNIT_TILES = 2;
    static constexpr u32 THREADS = 256;
    static constexpr u32 STAGES = 3;
    static constexpr u32 STAGE_BYTES = 4 * tile::BYTES;
    static constexpr u32 SHARED_BYTES = STAGES * STAGE_BYTES;
    static constexpr u32 TEAM = 64;  // threads of a sub-tile

};

// This warp's and thread's place in the block.
struct Place80 {
    u32 row;     // sub-tile
    u32 col;
    u32 half;    // of the sub-tile: columns 0–31 or 32–63
    u32 member;  // of the sub-tile's threads
};

DEV_FN Place80 place80() {
    const u32 warp = uniform(wave());
    return {warp / 4, warp / 2 % 2, warp % 2, thread() % Sm80::TEAM};
}

// One stage; the grids' tiles are whole and padded, so nothing is checked.
template <bool B_MN>
DEV_FN void load80(const MusterGemmProblem& p, u32 m_tile, u32 n_tile, u32 k,
                   unsigned char* stage) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 n = n_tile + i - 2;
        const u64 at = i < 2  ? p.a + tile::tile_offset(m_tile + i, k, p.a_tiles_per_row)
                       : B_MN ? p.b + tile::tile_offset(k, n, p.b_tiles_per_row)
                              : p.b + tile::tile_offset(n, k, p.b_tiles_per_row);
#pragma unroll
        for (u32 byte = 0; byte < tile::BYTES; byte += Sm80::THREADS * tile::CHUNK_BYTES) {
            const u32 offset = byte + thread() * tile::CHUNK_BYTES;
            cp_async16(stage + i * tile::BYTES + offset, pointer<const unsigned char>(at) + offset);
        }
    }
}

// Two blocks of 8 columns of the right operand, for 16 k's, from column `col` of a tile on.
template <bool B_MN>
DEV_FN void right80(u32 (&b)[4], const unsigned char* image, u32 col, u32 k) {
    const u32 line = lane() % 8;
    const u32 odd = lane() / 8 % 2;
    const u32 upper = lane() / 16;
    if constexpr (B_MN) {
        ldmatrix_x4_trans(b, image + tile::chunk_offset(k + line + odd * 8, col / 8 + upper));
    } else {
        ldmatrix_x4(b, image + tile::chunk_offset(col + line + upper * 8, k / 8 + odd));
    }
}

template <class T, bool B_MN>
DEV_FN void multiply_stage80(const unsigned char* stage, const Place80& at, f32 (&acc)[16][4]) {
    const unsigned char* const a_image = stage + at.row * tile::BYTES;
    const unsigned char* const b_image = stage + (2 + at.col) * tile::BYTES;
#pragma unroll
    for (u32 k = 0; k < tile::SIDE; k += 16) {
        u32 b[2][4];
#pragma unroll
        for (u32 across = 0; across < 2; ++across) {
            right80<B_MN>(b[across], b_image, at.half * 32 + across * FRAGMENT, k);
        }
#pragma unroll
        for (u32 down = 0; down < 4; ++down) {
            u32 a[4];
            ldmatrix_x4(a, a_image + tile::chunk_offset(down * FRAGMENT + lane() % 16,
                                                        k / 8 + lane() / 16));
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 pair[2] = {b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]};
                mma_16816<T>(acc[down * 4 + i], a, pair);
            }
        }
    }
}

template <class T, bool B_MN>
DEV_FN void multiply80(const MusterGemmProblem& p, u32 m_tile, u32 n_tile, const Place80& at,
                       f32 (&acc)[16][4]) {
    using S = Sm80;
#pragma unroll
    for (u32 i = 0; i < 64; ++i) {
        acc[i / 4][i % 4] = 0.0f;
    }
    for (u32 k = 0; k + 1 < S::STAGES; ++k) {
        if (k < p.k_tiles) {
            load80<B_MN>(p, m_tile, n_tile, k, shared() + k * S::STAGE_BYTES);
        }
        cp_async_commit();
    }
    u32 stage = 0;
    for (u32 k = 0; k < p.k_tiles; ++k) {
        cp_async_wait<S::STAGES - 2>();
        sync();
        // Into the stage that all warps have left before this barrier.
        if (k + S::STAGES - 1 < p.k_tiles) {
            load80<B_MN>(p, m_tile, n_tile, k + S::STAGES - 1,
                         shared() + (stage == 0 ? S::STAGES - 1 : stage - 1) * S::STAGE_BYTES);
        }
        cp_async_commit();
        multiply_stage80<T, B_MN>(shared() + stage * S::STAGE_BYTES, at, acc);
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
    }
    sync();
}

// Each sub-tile by its own 64 threads, with room in the ring that is now at rest.
template <class T>
DEV_FN void finish80(const MusterGemmProblem& p, u32 m_tile, u32 n_tile, const Place80& at,
                     f32 (&acc)[16][4]) {
    const Part<8, 2> warp = {0, at.half * 32};
    const u32 row = m_tile + at.row;
    const u32 col = n_tile + at.col;
    f32* const v = &acc[0][0];
    if (kept(p, row, col)) {
        const u32 team = at.row * 2 + at.col;
        const u64 c = p.c + tile::tile_offset(row, col, p.c_tiles_per_row);
        Outbox outbox = {shared() + team * 2 * tile::BYTES, 1 + team, at.member, Sm80::TEAM};
        warp.finish<T>(p, v, has_addend(p) ? pointer<const unsigned char>(c) : nullptr, row, col);
        outbox.send<T>(p, warp, v, row, col);
    }
    sync();
}

template <class T, bool B_MN>
DEV_FN void run_sm80(const MusterGemmArgs& args) {
    const MusterGemmProblem* const problems = pointer<const MusterGemmProblem>(args.problems);
    const Place80 at = place80();
    u32 problem = 0;
    for (u32 unit = block(); unit < args.block_count; unit += grid()) {
        const schedule::Unit found =
            schedule::locate(problems, args.problem_count, unit, args.group_rows, problem);
        problem = found.problem;
        const MusterGemmProblem p = problems[problem];
        const u32 m_tile = found.at.row * Sm80::UNIT_TILES;
        const u32 n_tile = found.at.col * Sm80::UNIT_TILES;
        f32 acc[16][4];
        multiply80<T, B_MN>(p, m_tile, n_tile, at, acc);
        finish80<T>(p, m_tile, n_tile, at, acc);
    }
}

}  // namespace gemm
