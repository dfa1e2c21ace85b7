// The way out of a finished sub-tile, for accumulators as fragment.h has them: an image in shared
// memory, from there in whole lines to the grid of tiles or to the caller's matrix.
//
// A sub-tile belongs to a team: the warps that hold it, with two tile images of their own and a
// named barrier. Everything here is done by all threads of a team.
#pragma once

#include "fragment.h"

namespace gemm {

// Images of 16-bit and of 32-bit elements: rows of 16-byte chunks, swizzled against bank conflicts.
struct HalfImage {
    using Value = u16;
    static constexpr u32 CHUNKS = tile::ROW_BYTES / tile::CHUNK_BYTES;  // of a row
    static DEV_FN u32 offset(u32 row, u32 col) { return tile::element_offset(row, col); }
};
struct WholeImage {
    using Value = f32;
    static constexpr u32 CHUNKS = 2 * HalfImage::CHUNKS;
    static DEV_FN u32 offset(u32 row, u32 col) {
        return row * CHUNKS * tile::CHUNK_BYTES + ((col / 4) ^ (row % 8 * 2)) * tile::CHUNK_BYTES +
               col % 4 * 4;
    }
};

// Copies the lower half of an image onto its upper half, so that the result is symmetric to the
// bit. Cells that are read are never written.
template <class Image>
DEV_FN void symmetrize(unsigned char* image, u32 member, u32 members) {
    using Value = typename Image::Value;
#pragma unroll 1
    for (u32 cell = member; cell < tile::SIDE * tile::SIDE; cell += members) {
        const u32 row = cell / tile::SIDE;
        const u32 col = cell % tile::SIDE;
        if (col > row) {
            *reinterpret_cast<Value*>(image + Image::offset(row, col)) =
                *reinterpret_cast<const Value*>(image + Image::offset(col, row));
        }
    }
}

// An image to the caller's matrix, clipped to height × width, its first element at (row, col). 16
// bytes at a time where the caller's address and stride allow.
template <class Image>
DEV_FN void write_rows(const MusterGemmProblem& p, const unsigned char* image, u32 row, u32 col,
                       u32 height, u32 width, u32 member, u32 members) {
    using Value = typename Image::Value;
    constexpr u32 VALUES = tile::CHUNK_BYTES / sizeof(Value);  // of a chunk
    Value* const out = pointer<Value>(p.out);
    const bool aligned = p.out % tile::CHUNK_BYTES == 0 && p.out_row_stride % VALUES == 0;
#pragma unroll 1
    for (u32 piece = member; piece < tile::SIDE * Image::CHUNKS; piece += members) {
        const u32 line = piece / Image::CHUNKS;
        const u32 first = piece % Image::CHUNKS * VALUES;
        if (row + line >= height || col + first >= width) {
            continue;
        }
        const unsigned char* const from = image + Image::offset(line, first);
        Value* const to = out + static_cast<u64>(row + line) * p.out_row_stride + col + first;
        if (aligned && col + first + VALUES <= width) {
            store16(to, load16(from));
        } else {
            for (u32 i = 0; i < VALUES && col + first + i < width; ++i) {
                to[i] = reinterpret_cast<const Value*>(from)[i];
            }
        }
    }
}

struct Outbox {
    unsigned char* images;  // two tiles
    u32 barrier;            // the team's, not 0
    u32 member;             // this thread in the team
    u32 members;

    DEV_FN void meet() const { named_sync(barrier, members); }

    // Sends scale·v to the places of sub-tile (row, col): D's, its mirror image, and the caller's.
    template <class T, class Part>
    DEV_FN void send(const MusterGemmProblem& p, const Part& part, const f32* v, u32 row,
                     u32 col) const {
        const bool twice = mirrored(p, row, col);
        if (p.d != 0) {
            grid<T>(p, part, v, row, col, twice);
        }
        if (p.out != 0) {
#pragma unroll 1
            for (u32 copy = 0; copy < (twice ? 2 : 1); ++copy) {
                caller<T>(p, part, v, row, col, copy != 0 || transposed_out(p));
            }
        }
    }

    template <class T, class Part>
    DEV_FN void grid(const MusterGemmProblem& p, const Part& part, const f32* v, u32 row, u32 col,
                     bool twice) const {
        meet();  // All have read the images before.
        part.template image<T>(images, v, false, 1.0f);
        if (twice) {
            part.template image<T>(images + tile::BYTES, v, true, 1.0f);
        }
        meet();
        if (on_diagonal(p, row, col)) {
            symmetrize<HalfImage>(images, member, members);
            meet();
        }
        carry(p.d + tile::tile_offset(row, col, p.d_tiles_per_row), images);
        if (twice) {
            carry(p.d + tile::tile_offset(col, row, p.d_tiles_per_row), images + tile::BYTES);
        }
    }

    template <class T, class Part>
    DEV_FN void caller(const MusterGemmProblem& p, const Part& part, const f32* v, u32 row, u32 col,
                       bool transposed) const {
        meet();  // All have read the images before.
        if (p.flags & MUSTER_GEMM_OUT_BF16) {
            part.template image<Bf16>(images, v, transposed, p.out_scale);
            to_caller<HalfImage>(p, row, col, transposed);
        } else {
            part.whole_image(images, v, transposed, p.out_scale, WholeImage());
            to_caller<WholeImage>(p, row, col, transposed);
        }
    }

    template <class Image>
    DEV_FN void to_caller(const MusterGemmProblem& p, u32 row, u32 col, bool transposed) const {
        meet();
        if (on_diagonal(p, row, col)) {
            symmetrize<Image>(images, member, members);
            meet();
        }
        write_rows<Image>(p, images, (transposed ? col : row) * tile::SIDE,
                          (transposed ? row : col) * tile::SIDE, transposed ? p.cols : p.rows,
                          transposed ? p.rows : p.cols, member, members);
    }

    // An image of the whole team to a tile of a grid.
    DEV_FN void carry(u64 to, const unsigned char* image) const {
#pragma unroll
        for (u32 i = member; i < tile::BYTES / tile::CHUNK_BYTES; i += members) {
            const u32 byte = i * tile::CHUNK_BYTES;
            store16(pointer<unsigned char>(to) + byte, load16(image + byte));
        }
    }
};

}  // namespace gemm
