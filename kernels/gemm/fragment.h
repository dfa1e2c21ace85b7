// Accumulators of NVIDIA's matrix instructions, and tiles.
//
// Both mma.m16n8k16 and wgmma leave a warp with blocks of 16 rows and 8 columns: lane l holds
// columns 2·(l % 4) and the next one, of rows l / 4 and l / 4 + 8. Here a fragment is 16×16, two of
// those side by side: eight floats a lane, and packed to 16 bits the four registers of ldmatrix and
// stmatrix.
//
//   v[0..2] rows 0–7, columns 0–7    v[4..6] rows 0–7, columns 8–15
//   v[2..4] rows 8–15                v[6..8] rows 8–15
#pragma once

#include "epilogue.h"

namespace gemm {

constexpr u32 FRAGMENT = 16;  // rows and columns
constexpr u32 FRAGMENT_F32 = 8;

// Row and column, in its fragment, of a lane's element i.
DEV_FN u32 fragment_row(u32 i) { return lane() / 4 + i / 2 % 2 * 8; }
DEV_FN u32 fragment_col(u32 i) { return lane() % 4 * 2 + i % 2 + i / 4 * 8; }

// Stores a packed fragment, whose first element is (row, col), to a tile image in shared memory.
// `transposed`: to the transpose's place there.
DEV_FN void put(unsigned char* image, u32 row, u32 col, bool transposed, const u32 (&r)[4]) {
#if defined(DEV_SM90)
    const u32 line = lane() % 8;
    const u32 odd = lane() / 8 % 2;  // of matrix lane() / 8: rows 8–15
    const u32 right = lane() / 16;   // columns 8–15
    if (transposed) {
        stmatrix_x4_trans(image + tile::chunk_offset(col + line + right * 8, row / 8 + odd), r);
    } else {
        stmatrix_x4(image + tile::chunk_offset(row + line + odd * 8, col / 8 + right), r);
    }
#else
#pragma unroll
    for (u32 i = 0; i < FRAGMENT_F32; i += 2) {
        const u32 at_row = row + fragment_row(i);
        const u32 at_col = col + fragment_col(i);
        if (transposed) {
            u16* const first = reinterpret_cast<u16*>(image + tile::element_offset(at_col, at_row));
            *first = static_cast<u16>(r[i / 2]);
            u16* const second =
                reinterpret_cast<u16*>(image + tile::element_offset(at_col + 1, at_row));
            *second = static_cast<u16>(r[i / 2] >> 16);
        } else {
            store4(image + tile::element_offset(at_row, at_col), r[i / 2]);
        }
    }
#endif
}

// Reads a fragment of a tile: on Hopper from shared memory, else from memory of any kind.
DEV_FN void get(const unsigned char* image, u32 row, u32 col, u32 (&r)[4]) {
#if defined(DEV_SM90)
    const u32 line = lane() % 8;
    ldmatrix_x4(r, image + tile::chunk_offset(row + line + lane() / 8 % 2 * 8,
                                              col / 8 + lane() / 16));
#else
#pragma unroll
    for (u32 i = 0; i < FRAGMENT_F32; i += 2) {
        r[i / 2] =
            load4(image + tile::element_offset(row + fragment_row(i), col + fragment_col(i)));
    }
#endif
}

// A warp's part of a 64×64 sub-tile: fragments, ACROSS of them side by side, from (row, col) on.
// v[f * FRAGMENT_F32 + i] is element i of fragment f.
template <u32 FRAGMENTS, u32 ACROSS>
struct Part {
    u32 row;
    u32 col;

    DEV_FN u32 row_of(u32 f) const { return row + f / ACROSS * FRAGMENT; }
    DEV_FN u32 col_of(u32 f) const { return col + f % ACROSS * FRAGMENT; }

    // The epilogue's arithmetic in place; `addend` is C's tile or null.
    template <class T>
    DEV_FN void finish(const MusterGemmProblem& p, f32* v, const unsigned char* addend,
                       u32 tile_row, u32 tile_col) const {
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            f32 c[FRAGMENT_F32] = {};
            if (addend != nullptr) {
                u32 r[4];
                get(addend, row_of(f), col_of(f), r);
#pragma unroll
                for (u32 i = 0; i < FRAGMENT_F32; i += 2) {
                    unpack<T>(r[i / 2], c[i], c[i + 1]);
                }
            }
#pragma unroll
            for (u32 i = 0; i < FRAGMENT_F32; ++i) {
                v[f * FRAGMENT_F32 + i] = combine(p, v[f * FRAGMENT_F32 + i], c[i]);
            }
        }
        if (tile_row == tile_col) {
            add_identity(p, v, tile_row);
        }
    }

    // The diagonal of a sub-tile runs through fragments on it, and in a lane through few elements.
    DEV_FN void add_identity(const MusterGemmProblem& p, f32* v, u32 tile_row) const {
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
            for (u32 i = 0; i < FRAGMENT_F32; ++i) {
                if (i / 2 % 2 == i / 4 && row_of(f) == col_of(f)) {
                    const u32 at = fragment_row(i);
                    const bool inside = tile_row * tile::SIDE + row_of(f) + at < p.rows;
                    v[f * FRAGMENT_F32 + i] += at == fragment_col(i) && inside ? p.gamma : 0.0f;
                }
            }
        }
    }

    // The warp's part of the image of scale·v, or of its transpose.
    template <class T>
    DEV_FN void image(unsigned char* to, const f32* v, bool transposed, f32 scale) const {
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; ++f) {
            u32 r[4];
#pragma unroll
            for (u32 i = 0; i < FRAGMENT_F32; i += 2) {
                const f32* const pair = v + f * FRAGMENT_F32 + i;
                r[i / 2] = pack<T>(pair[0] * scale, pair[1] * scale);
            }
            put(to, row_of(f), col_of(f), transposed, r);
        }
    }

    // The same in f32; Image says where an element lies.
    template <class Image>
    DEV_FN void whole_image(unsigned char* to, const f32* v, bool transposed, f32 scale,
                            Image) const {
#pragma unroll
        for (u32 i = 0; i < FRAGMENTS * FRAGMENT_F32; ++i) {
            const u32 f = i / FRAGMENT_F32;
            const u32 at_row = row_of(f) + fragment_row(i % FRAGMENT_F32);
            const u32 at_col = col_of(f) + fragment_col(i % FRAGMENT_F32);
            const u32 at =
                transposed ? Image::offset(at_col, at_row) : Image::offset(at_row, at_col);
            *reinterpret_cast<f32*>(to + at) = v[i] * scale;
        }
    }
};

}  // namespace gemm
