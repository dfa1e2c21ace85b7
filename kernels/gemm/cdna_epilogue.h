// The epilogue on CDNA. A lane holds, of each row tile of its wave, a patch of 4 × 4 elements: rows
// 16i + 4g … +4 and columns 4c … +4 of a sub-tile, with g = lane / 16 and c = lane % 16. Element
// (q, t) of it is acc[i][t][q]. So four columns of a row are 8 bytes of a tile, and four rows of a
// column 8 bytes of the transposed tile: results and their mirror images are stored straight from
// registers, whole lines of the cache at a time for the former. The diagonal of a symmetric result
// runs through patches c = 4i + g, everything below it lies in patches with c < 4i + g.
#pragma once

#include "../schedule.h"
#include "epilogue.h"

namespace cdna {

using namespace dev;

constexpr u32 PATCH = 4;
constexpr u32 SUBTILE_ROWS = 4;  // row tiles of a sub-tile

using Row = f32x4[4];  // the accumulators of a row tile

// Bytes of the patch's lines in a tile: line q at first ^ q·LINE, and row tile i as given below.
constexpr u32 LINE = tile::ROW_BYTES + tile::CHUNK_BYTES;

struct Lane {
    u32 g;
    u32 c;
    u32 direct;    // of the patch of row tile 0
    u32 mirrored;  // of its transpose

    // Opaque, so that offsets made from it do not occupy registers throughout the main loop.
    DEV_FN Lane() {
        const u32 l = opaque(lane());
        g = l / 16;
        c = l % 16;
        direct = tile::element_offset(PATCH * g, PATCH * c);
        mirrored = tile::element_offset(PATCH * c, PATCH * g);
    }
    DEV_FN u32 direct_at(u32 i, u32 q) const {
        return (direct ^ q * LINE) + i * 16 * tile::ROW_BYTES;
    }
    DEV_FN u32 mirrored_at(u32 i, u32 t) const {
        return mirrored ^ t * LINE ^ i * 2 * tile::CHUNK_BYTES;
    }
    DEV_FN bool below(u32 i) const { return c < 4 * i + g; }
    DEV_FN bool across(u32 i) const { return c == 4 * i + g; }
};

// A lane's part of a sub-tile of C.
struct Addend {
    u32x2 line[SUBTILE_ROWS][PATCH];
};

// Of a symmetric result C is read where the result is kept, on its diagonal in the lower half only:
// others may already write elsewhere.
DEV_FN Addend fetch(const MusterGemmProblem& p, u32 tile_row, u32 tile_col, const Lane& at) {
    Addend addend = {};
    if (gemm::has_addend(p) && gemm::kept(p, tile_row, tile_col)) {
        const bool half = gemm::on_diagonal(p, tile_row, tile_col);
        const u64 offset = tile::tile_offset(tile_row, tile_col, p.c_tiles_per_row);
        const unsigned char* const c = pointer<const unsigned char>(p.c + offset);
#pragma unroll
        for (u32 i = 0; i < SUBTILE_ROWS; ++i) {
            if (!half || at.below(i) || at.across(i)) {
#pragma unroll
                for (u32 q = 0; q < PATCH; ++q) {
                    addend.line[i][q] = load8(c + at.direct_at(i, q));
                }
            }
        }
    }
    return addend;
}

// acc ← alpha·acc + beta·C + gamma·I.
template <class T>
DEV_FN void combine(const MusterGemmProblem& p, u32 tile_row, u32 tile_col, const Lane& at,
                    const Addend& addend, Row* acc) {
#pragma unroll
    for (u32 i = 0; i < SUBTILE_ROWS; ++i) {
#pragma unroll
        for (u32 q = 0; q < PATCH; ++q) {
            f32 v[PATCH];
            unpack<T>(addend.line[i][q][0], v[0], v[1]);
            unpack<T>(addend.line[i][q][1], v[2], v[3]);
#pragma unroll
            for (u32 t = 0; t < PATCH; ++t) {
                acc[i][t][q] = gemm::combine(p, acc[i][t][q], v[t]);
            }
        }
    }
    if (tile_row == tile_col) {
        const u32 length = schedule::smaller(p.rows, p.cols);  // of the diagonal, without padding
#pragma unroll
        for (u32 i = 0; i < SUBTILE_ROWS; ++i) {
#pragma unroll
            for (u32 q = 0; q < PATCH; ++q) {
                const u32 row = tile_row * tile::SIDE + 16 * i + PATCH * at.g + q;
                acc[i][q][q] += at.across(i) && row < length ? p.gamma : 0.0f;
            }
        }
    }
}

// The patches on the diagonal take their upper halves from their lower ones.
DEV_FN void symmetrize(const Lane& at, Row* acc) {
#pragma unroll
    for (u32 i = 0; i < SUBTILE_ROWS; ++i) {
#pragma unroll
        for (u32 t = 1; t < PATCH; ++t) {
#pragma unroll
            for (u32 q = 0; q < t; ++q) {
                acc[i][t][q] = at.across(i) ? acc[i][q][t] : acc[i][t][q];
            }
        }
    }
}

template <class T>
DEV_FN void store_direct(unsigned char* to, const Lane& at, u32 i, const Row& acc) {
#pragma unroll
    for (u32 q = 0; q < PATCH; ++q) {
        store8(to + at.direct_at(i, q),
               u32x2{pack<T>(acc[0][q], acc[1][q]), pack<T>(acc[2][q], acc[3][q])});
    }
}

template <class T>
DEV_FN void store_mirrored(unsigned char* to, const Lane& at, u32 i, const Row& acc) {
#pragma unroll
    for (u32 t = 0; t < PATCH; ++t) {
        store8(to + at.mirrored_at(i, t),
               u32x2{pack<T>(acc[t][0], acc[t][1]), pack<T>(acc[t][2], acc[t][3])});
    }
}

template <class T>
DEV_FN void store_tiles(const MusterGemmProblem& p, u32 tile_row, u32 tile_col, const Lane& at,
                        Row* acc) {
    const bool diagonal = gemm::on_diagonal(p, tile_row, tile_col);
    const bool mirrored = gemm::mirrored(p, tile_row, tile_col);
    unsigned char* const to =
        pointer<unsigned char>(p.d + tile::tile_offset(tile_row, tile_col, p.d_tiles_per_row));
    unsigned char* const image =
        pointer<unsigned char>(p.d + tile::tile_offset(tile_col, tile_row, p.d_tiles_per_row));
#pragma unroll
    for (u32 i = 0; i < SUBTILE_ROWS; ++i) {
        if (!diagonal || at.below(i) || at.across(i)) {
            store_direct<T>(to, at, i, acc[i]);
        }
        if (mirrored || (diagonal && at.below(i))) {
            store_mirrored<T>(image, at, i, acc[i]);
        }
    }
}

// Four neighbours in a row of the caller's matrix, of which `width` − col exist. The loop of the
// slow way stays one: epilogues have much code, and instructions have a cache too.
DEV_FN void write_four(const MusterGemmProblem& p, u64 row, u32 col, u32 width, f32x4 v) {
    const u64 first = row * p.out_row_stride + col;
    const u32 count = schedule::smaller(PATCH, width - col);
    const bool whole = p.out_row_stride % PATCH == 0 && count == PATCH;
    const bool bf16 = p.flags & MUSTER_GEMM_OUT_BF16;
    if (bf16 && whole && p.out % 8 == 0) {
        store8(pointer<u16>(p.out) + first, u32x2{pack<Bf16>(v[0], v[1]), pack<Bf16>(v[2], v[3])});
    } else if (!bf16 && whole && p.out % 16 == 0) {
        store16(pointer<f32>(p.out) + first, __builtin_bit_cast(u32x4, v));
    } else {
#pragma unroll 1
        for (u32 i = 0; i < count; ++i) {
            if (bf16) {
                pointer<u16>(p.out)[first + i] = to_bf16(v[0]);
            } else {
                pointer<f32>(p.out)[first + i] = v[0];
            }
            v = f32x4{v[1], v[2], v[3], v[3]};
        }
    }
}

// A patch at (row, col) of the result into the caller's matrix, as it is or transposed.
DEV_FN void write_patch(const MusterGemmProblem& p, u32 row, u32 col, bool transpose,
                        const Row& acc) {
    const u32 first = transpose ? col : row;
    const u32 across = transpose ? row : col;
    const u32 height = transpose ? p.cols : p.rows;
    const u32 width = transpose ? p.rows : p.cols;
    f32x4 v[PATCH];
#pragma unroll
    for (u32 line = 0; line < PATCH; ++line) {
#pragma unroll
        for (u32 j = 0; j < PATCH; ++j) {
            v[line][j] = (transpose ? acc[line][j] : acc[j][line]) * p.out_scale;
        }
    }
    if (across >= width) {
        return;
    }
#pragma unroll 1
    for (u32 line = 0; line < PATCH && first + line < height; ++line) {
        write_four(p, first + line, across, width, v[0]);
        v[0] = v[1];
        v[1] = v[2];
        v[2] = v[3];
    }
}

DEV_FN void write_out(const MusterGemmProblem& p, u32 tile_row, u32 tile_col, const Lane& at,
                      Row* acc) {
    const bool symmetric = p.flags & MUSTER_GEMM_LOWER;
    const bool diagonal = gemm::on_diagonal(p, tile_row, tile_col);
    const bool transposed = !symmetric && p.flags & MUSTER_GEMM_OUT_TRANSPOSED;
#pragma unroll
    for (u32 i = 0; i < SUBTILE_ROWS; ++i) {
        const u32 row = tile_row * tile::SIDE + 16 * i + PATCH * at.g;
        const u32 col = tile_col * tile::SIDE + PATCH * at.c;
#pragma unroll 1
        for (u32 pass = 0; pass < (symmetric ? 2 : 1); ++pass) {
            const bool mirror = pass == 1;
            if (!diagonal || at.below(i) || (!mirror && at.across(i))) {
                write_patch(p, row, col, mirror || transposed, acc[i]);
            }
        }
    }
}

template <class T>
DEV_FN void store(const MusterGemmProblem& p, u32 tile_row, u32 tile_col, const Lane& at,
                  Row* acc) {
    if (!gemm::kept(p, tile_row, tile_col)) {
        return;
    }
    if (gemm::on_diagonal(p, tile_row, tile_col)) {
        symmetrize(at, acc);
    }
    if (p.d != 0) {
        store_tiles<T>(p, tile_row, tile_col, at, acc);
    }
    if (p.out != 0) {
        write_out(p, tile_row, tile_col, at, acc);
    }
}

// The results of a wave: ROW_TILES row tiles from sub-tile (tile_row, tile_col) down. The second
// sub-tile's addend is on its way while the first is stored.
template <class T, u32 ROW_TILES>
DEV_FN void finish(const MusterGemmProblem& p, u32 tile_row, u32 tile_col,
                   f32x4 (&acc)[ROW_TILES][4]) {
    const Lane at;
    combine<T>(p, tile_row, tile_col, at, fetch(p, tile_row, tile_col, at), acc);
    if constexpr (ROW_TILES == SUBTILE_ROWS) {
        store<T>(p, tile_row, tile_col, at, acc);
    } else {
        static_assert(ROW_TILES == 2 * SUBTILE_ROWS, "a wave is one or two sub-tiles tall");
        const Addend second = fetch(p, tile_row + 1, tile_col, at);
        store<T>(p, tile_row, tile_col, at, acc);
        combine<T>(p, tile_row + 1, tile_col, at, second, acc + SUBTILE_ROWS);
        store<T>(p, tile_row + 1, tile_col, at, acc + SUBTILE_ROWS);
    }
}

}  // namespace cdna
